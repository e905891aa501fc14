"""Networks broken on purpose, to see whether `zfkit.diagnose` finds out: the control of a diagnosis.

`PLANTS` lists what can be planted. Seven are done to the weights of a network that works, three come out of a
training gone wrong. Each says what has to be found, and where; and which other findings are its consequences.
`find_faults` plants, diagnoses and counts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError, TrainingError, ZfkitError, unknown
from ..health import DEFAULTS, FAULTS, Report, Thresholds, diagnose
from ..images.imageset import ImageSet
from ..nets.model import VisionModel, wrap_model
from ..nets.paper import ARCHITECTURES, Architecture, build

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Planted:
    """A network with a fault, and what a diagnosis has to say of it.

    Attributes:
        model: the broken network.
        plant: what was done to it, a key of `PLANTS`.
        fault: what has to be found, a key of `health.FAULTS`.
        layer: where; "" where the whole network is concerned, None where it may be any layer.
        channels: the maps that have to be named; empty where it is not about single ones.
    """

    model: VisionModel
    plant: str
    fault: str
    layer: str | None
    channels: tuple[int, ...] = ()

    def found_in(self, report: Report) -> bool:
        """Is it among the alarms, in the right layer, with all of its maps?"""
        return any(
            f.fault == self.fault and self.layer in (None, f.layer) and set(self.channels) <= set(f.channels)
            for f in report.alarms
        )

    def false_alarms(self, report: Report, before: Report | None = None) -> list[str]:
        """Alarms that are neither the fault nor a consequence of it, nor were there before it was planted."""
        known = {self.fault, *PLANTS[self.plant].consequences}
        earlier = {(f.fault, f.layer) for f in before.alarms} if before else set()
        return [
            f"{f.layer}: {f.fault}" if f.layer else f.fault
            for f in report.alarms
            if f.fault not in known and (f.fault, f.layer) not in earlier
        ]


class _Plant:
    """How to break a network."""

    def __init__(self, told: str, consequences: Sequence[str], do: Callable[..., Any], trains: bool) -> None:
        self.told, self.consequences, self.do, self.trains = told, tuple(consequences), do, trains


PLANTS: dict[str, _Plant] = {}

# What any network does whose features no longer fit each other.
UPSET = ("one class for most", "colour order", "exploding activations", "rarely active", "dead maps")
LOST = ("input has no effect", "no learning signal", "one class for most", "dead maps", "rarely active")


def _plant(
    name: str, told: str, consequences: Sequence[str] = (), trains: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(do: Callable[..., Any]) -> Callable[..., Any]:
        PLANTS[name] = _Plant(told, consequences, do, trains)
        return do

    return register


def plant(model: VisionModel, name: str, *, seed: int = 0) -> Planted:
    """A copy of the network with a fault of that name; `seed` says in which layer and maps.

    Raises ZfkitError for a name that does not exist, or one that needs a training (`train_badly`).

    >>> broken = plant(zfkit.load_model("zfnet64"), "zeroed filters")
    >>> print(zfkit.diagnose(broken.model, photos))
    """
    if name not in PLANTS:
        raise ZfkitError(unknown("fault to plant", name, PLANTS))
    if PLANTS[name].trains:
        raise ZfkitError(f"{name!r} comes out of a training: train_badly(architecture, images, {name!r})")
    planted: Planted = PLANTS[name].do(
        _copy(model, f"{model.name}, {name}"), torch.Generator().manual_seed(seed)
    )
    return planted


def _copy(model: VisionModel, name: str, net: nn.Module | None = None) -> VisionModel:
    return wrap_model(
        copy.deepcopy(model.net) if net is None else net, mean=model.mean, scale=model.scale,
        input_size=model.input_size, classes=model.classes, name=name,
    )  # fmt: skip


def _conv(model: VisionModel, layer: str) -> nn.Conv2d:
    conv = model.network.find(layer).module
    assert isinstance(conv, nn.Conv2d)
    return conv


def _any_conv(model: VisionModel, generator: torch.Generator) -> tuple[str, nn.Conv2d]:
    layer = model.conv_layers[int(torch.randint(len(model.conv_layers), (), generator=generator))]
    return layer, _conv(model, layer)


def _some(count: int, of: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(of, generator=generator)[:count]


@_plant(
    "zeroed filters", "one filter in twelve of a layer is 0, with its bias", ("dead maps", "rarely active")
)
def _zeroed(model: VisionModel, generator: torch.Generator) -> Planted:
    layer, conv = _any_conv(model, generator)
    chosen = _some(max(1, conv.out_channels // 12), conv.out_channels, generator)
    with torch.no_grad():
        conv.weight[chosen] = 0
        if conv.bias is not None:
            conv.bias[chosen] = 0
    return Planted(model, "zeroed filters", "weak filters", layer, tuple(chosen.tolist()))


@_plant("one filter x20", "one filter of a layer is 20 times as strong", (*UPSET, "weak filters", "aliasing"))
def _dominant(model: VisionModel, generator: torch.Generator) -> Planted:
    layer, conv = _any_conv(model, generator)
    # A filter of ordinary strength: 20 times a filter that does next to nothing would dominate nobody.
    rms = conv.weight.flatten(1).square().mean(1).sqrt()
    ordinary = (rms > rms.median() / 2).nonzero()[:, 0].cpu()
    chosen = ordinary[_some(1, len(ordinary), generator)]
    with torch.no_grad():
        conv.weight[chosen] *= 20
    return Planted(model, "one filter x20", "one filter dominates", layer, tuple(chosen.tolist()))


@_plant("duplicated filters", "four filters of a layer are copies of four others, up to 1% noise")
def _duplicated(model: VisionModel, generator: torch.Generator) -> Planted:
    layer, conv = _any_conv(model, generator)
    size = conv.weight.flatten(1).abs().amax(1)
    strong = (size > 0.1 * size.max()).nonzero()[:, 0].cpu()
    chosen = strong[_some(8, len(strong), generator)]
    with torch.no_grad():
        copies = conv.weight[chosen[:4]]
        noise = torch.randn(copies.shape, generator=generator).to(copies)
        spread = copies.flatten(1).std(1).view(-1, 1, 1, 1)
        conv.weight[chosen[4:]] = copies + 0.01 * spread * noise
        if conv.bias is not None:
            conv.bias[chosen[4:]] = conv.bias[chosen[:4]]
    return Planted(model, "duplicated filters", "duplicates", layer, tuple(chosen.tolist()))


@_plant(
    "high-pass only", "the first layer's filters keep only what lies above 1/3 cycles/px",
    (*UPSET, "middle band missing", "aliasing", "input has no effect", "weak filters", "duplicates"),
)  # fmt: skip
def _high_pass(model: VisionModel, generator: torch.Generator) -> Planted:
    layer = model.conv_layers[0]
    conv = _conv(model, layer)
    kh, kw = conv.kernel_size
    # The best that filters of this size can do: project onto the windows whose energy lies above 1/3 cycles/px,
    # the eigenvectors of the quadratic form "energy above" (Slepian 1978, for a disc instead of an interval).
    n = 48
    f = (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5
    high = ((f[:, None].square() + f.square()).sqrt() > 1 / 3).flatten()
    y, x = torch.meshgrid(torch.arange(kh), torch.arange(kw), indexing="ij")
    phase = f[:, None, None] * y.flatten()  # (n, 1, taps)
    angle = 2 * torch.pi * (phase + f[None, :, None] * x.flatten()).flatten(0, 1)[high]
    form = (angle.cos().T @ angle.cos() + angle.sin().T @ angle.sin()) / n**2
    share, windows = torch.linalg.eigh(form)
    windows = windows[:, share > 0.95]
    with torch.no_grad():
        flat = conv.weight.flatten(2)
        passed = (flat @ (windows @ windows.T).to(flat)).view_as(conv.weight)
        energy = [w.square().sum((1, 2, 3), keepdim=True) for w in (conv.weight, passed)]
        conv.weight.copy_(passed * (energy[0] / energy[1]).sqrt())  # as strong as they were
    return Planted(model, "high-pass only", "extreme frequencies", layer)


@_plant("stride 4", "the first layer reads every fourth pixel, without a low-pass", UPSET)
def _stride(model: VisionModel, generator: torch.Generator) -> Planted:
    old = getattr(model.net, "architecture", None)
    if not isinstance(old, Architecture):
        raise ModelError("stride 4 can be planted in the paper's networks only: other parts have to fit")
    kernel, _, padding = old.conv1
    new = replace(old, conv1=(kernel, 4, padding), pool2=(3, 1, 1))
    net = build(new)
    net.load_state_dict(model.net.state_dict())
    return Planted(_copy(model, model.name, net), "stride 4", "aliasing", "conv1")


@_plant("swapped RGB", "the first layer takes blue for red")
def _swapped(model: VisionModel, generator: torch.Generator) -> Planted:
    conv = _conv(model, model.conv_layers[0])
    with torch.no_grad():
        conv.weight.copy_(conv.weight.flip(1))
    return Planted(model, "swapped RGB", "colour order", "")


@_plant(
    "constant init",
    "every weight begins at 0.01 itself instead of N(0, 0.01^2)",
    (*LOST, *UPSET, "duplicates", "middle band missing", "extreme frequencies"),
)
def _constant(model: VisionModel, generator: torch.Generator) -> Planted:
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.fill_(0.01 if parameter.dim() > 1 else 0)
    return Planted(model, "constant init", "filters all alike", None)


# ----------------------------------------------------------------------------------- trainings gone wrong


@_plant(
    "std-scaled inputs", "inputs divided by their standard deviation, weights from N(0, 0.01^2)",
    (*LOST, "filters look like noise"), trains=True,
)  # fmt: skip
def _small_inputs(
    net: nn.Module, images: ImageSet, scale: float, steps: int, seed: int
) -> tuple[VisionModel, str]:
    return _sgd(net, images, scale=scale, lr=0.01, steps=steps, seed=seed), "no learning signal"


@_plant(
    "lr too high", "a learning rate at which ReLUs die",
    (*LOST, *UPSET, "not finite", "weak filters", "one filter dominates", "duplicates", "filters all alike",
     "middle band missing", "extreme frequencies", "aliasing"),
    trains=True,
)  # fmt: skip
def _high_lr(
    net: nn.Module, images: ImageSet, scale: float, steps: int, seed: int
) -> tuple[VisionModel, str]:
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return _sgd(net, images, scale=scale, lr=0.3, steps=steps, seed=seed), "dead maps"


def train_badly(
    architecture: str | Architecture, images: ImageSet, name: str, *, steps: int = 40, seed: int = 0
) -> Planted:
    """Train a network the wrong way for some steps of SGD, and say what has to be found.

    Args:
        architecture: a name, or an `Architecture` (a narrow one trains in seconds).
        images: labelled.
        name: "std-scaled inputs" (the paper's initialisation without the paper's inputs), or "lr too high".

    Raises ZfkitError for another name, and TrainingError for pictures without labels.
    """
    trained = [n for n, p in PLANTS.items() if p.trains]
    if name not in trained:
        raise ZfkitError(unknown("training gone wrong", name, trained))
    old = ARCHITECTURES[architecture] if isinstance(architecture, str) else architecture
    if not images.classes or images[0][1] < 0:
        raise TrainingError(f"{images.source!r} has no labels to train with; take 'textures'")
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        net = build(replace(old, classes=len(images.classes)))
        model, fault = PLANTS[name].do(net, images, 1 / 58, steps, seed)
    finally:
        torch.random.set_rng_state(torch_state)
    return Planted(replace(model, name=f"{old.family}, {name}"), name, fault, None)


def _sgd(net: nn.Module, images: ImageSet, *, scale: float, lr: float, steps: int, seed: int) -> VisionModel:
    """SGD with momentum 0.9 on batches of 32, gradients of norm 1 at most; no RMS clip, no decay, no augmentation."""
    model = wrap_model(net, mean=(122.5573, 114.3941, 101.4863), scale=scale, input_size=images.size,
                       classes=images.classes)  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(images), (32,), generator=generator)
        labels = torch.tensor([images[int(i)][1] for i in chosen])
        loss = F.cross_entropy(net(model.preprocess(images.take(chosen))), labels)
        if not torch.isfinite(loss):
            break  # what it was before is what has to be explained
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(
            net.parameters(), 1.0
        )  # so that too large steps kill ReLUs and do not end in NaN
        optimizer.step()
    net.requires_grad_(False)
    return model


# -------------------------------------------------------------------------------------------------- the table


def find_faults(
    networks: Sequence[tuple[VisionModel, ImageSet]],
    plants: Sequence[str] | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    narrow: Sequence[tuple[Architecture, ImageSet]] = (),
    limit: int | None = 256,
    thresholds: Thresholds = DEFAULTS,
    progress: bool = False,
) -> pd.DataFrame:
    """Plant faults, diagnose, and count: a row for each network and fault.

    Args:
        networks: that work, each with pictures like those it was trained with.
        plants: names in `PLANTS`; default: all.
        seeds: each plants every fault once. Faults that leave no choice (stride, colours, constants) are planted
            once only.
        narrow: architectures with labelled pictures, for the faults that come out of a training.
        limit, thresholds, progress: as for `diagnose`.

    Columns: network, fault ("none" for the network as it is), planted (how often), found (in the right layer, with
    the right maps), false_alarms (how many, over all), which (they were).
    """
    import pandas as pd

    names = list(PLANTS) if plants is None else list(plants)
    for name in names:
        if name not in PLANTS:
            raise ZfkitError(unknown("fault to plant", name, PLANTS))
    rows = []
    for model, images in networks:
        before = diagnose(model, images, limit=limit, thresholds=thresholds, progress=progress)
        alarms = [f"{f.layer}: {f.fault}" if f.layer else f.fault for f in before.alarms]
        rows.append(_row(model.name, "none", 0, 0, alarms))
        for name in [n for n in names if not PLANTS[n].trains]:
            found, false = 0, []
            chosen = (
                seeds if name in ("zeroed filters", "one filter x20", "duplicated filters") else seeds[:1]
            )
            for seed in chosen:
                planted = plant(model, name, seed=seed)
                report = diagnose(
                    planted.model, images, limit=limit, thresholds=thresholds, progress=progress
                )
                found += planted.found_in(report)
                false += planted.false_alarms(report, before)
            rows.append(_row(model.name, name, len(chosen), found, false))
    for architecture, images in narrow:
        for name in [n for n in names if PLANTS[n].trains]:
            found, false = 0, []
            for seed in seeds:
                planted = train_badly(architecture, images, name, seed=seed)
                report = diagnose(
                    planted.model, images, limit=limit, thresholds=thresholds, progress=progress
                )
                found += planted.found_in(report)
                false += planted.false_alarms(report)
            rows.append(_row(f"narrow {architecture.family}", name, len(seeds), found, false))
    return pd.DataFrame(rows)


def _row(network: str, name: str, planted: int, found: int, false: list[str]) -> dict[str, object]:
    return {
        "network": network, "fault": name, "planted": planted, "found": found, "false_alarms": len(false),
        "which": ", ".join(sorted(set(false))),
    }  # fmt: skip


assert {c for p in PLANTS.values() for c in p.consequences} <= set(FAULTS)
