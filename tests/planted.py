"""Networks broken on purpose, to see whether `zfkit.diagnose` finds out: the control of a diagnosis.

`plant` breaks a copy of a network that works, `train_badly` trains one the wrong way. Either says what has to be found,
and where; and which other findings are its consequences.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from zfkit.health import FAULTS
from zfkit.nets.model import wrap_model
from zfkit.nets.paper import build

# What any network does whose features no longer fit each other, and one that passes no signal on.
UPSET = ("one class for most", "colour order", "exploding activations", "rarely active", "dead maps")
LOST = ("input has no effect", "no learning signal", "one class for most", "dead maps", "rarely active")

# What is planted -> the fault that has to be found, and others that may follow from it.
PLANTS = {
    "zeroed filters": ("weak filters", ("dead maps", "rarely active")),
    "one filter x20": ("one filter dominates", (*UPSET, "weak filters", "aliasing")),
    "duplicated filters": ("duplicates", ()),
    "high-pass only": (
        "extreme frequencies",
        (*UPSET, "middle band missing", "aliasing", "input has no effect", "weak filters", "duplicates"),
    ),
    "stride 4": ("aliasing", UPSET),
    "swapped RGB": ("colour order", ()),
    "constant init": (
        "filters all alike", (*LOST, *UPSET, "duplicates", "middle band missing", "extreme frequencies")
    ),
}  # fmt: skip
TRAININGS = {
    "std-scaled inputs": ("no learning signal", (*LOST, "filters look like noise")),
    "lr too high": (
        "dead maps",
        (*LOST, *UPSET, "not finite", "weak filters", "one filter dominates", "duplicates", "filters all alike",
         "middle band missing", "extreme frequencies", "aliasing"),
    ),
}  # fmt: skip
assert {f for fault, others in (PLANTS | TRAININGS).values() for f in (fault, *others)} <= set(FAULTS)


@dataclass(frozen=True)
class Planted:
    """A network with a fault, and what a diagnosis has to say of it.

    Attributes:
        fault: what has to be found. consequences: what else may be.
        layer: where; "" where the whole network is concerned, None where it may be any layer.
        channels: the maps that have to be named; empty where it is not about single ones.
    """

    model: object
    fault: str
    consequences: tuple[str, ...]
    layer: str | None = None
    channels: tuple[int, ...] = ()

    def found_in(self, report):
        """Is it among the alarms, in the right layer, with all of its maps?"""
        return any(
            f.fault == self.fault and self.layer in (None, f.layer) and set(self.channels) <= set(f.channels)
            for f in report.alarms
        )

    def false_alarms(self, report, before=None):
        """Alarms that are neither the fault nor a consequence of it, nor were there before it was planted."""
        earlier = {(f.fault, f.layer) for f in before.alarms} if before else set()
        return [
            f"{f.layer}: {f.fault}".removeprefix(": ")
            for f in report.alarms
            if f.fault not in (self.fault, *self.consequences) and (f.fault, f.layer) not in earlier
        ]


def plant(model, name, seed=0):
    """A copy of the network with one of `PLANTS`; `seed` says in which layer and maps."""
    generator = torch.Generator().manual_seed(seed)
    net = copy.deepcopy(model.net)
    layer, channels = model.conv_layers[0], ()
    if name in ("zeroed filters", "one filter x20", "duplicated filters"):
        layer = model.conv_layers[int(torch.randint(len(model.conv_layers), (), generator=generator))]
    conv = net.get_submodule(layer)
    with torch.no_grad():
        if name == "zeroed filters":  # one in twelve
            channels = torch.randperm(conv.out_channels, generator=generator)[
                : max(1, conv.out_channels // 12)
            ]
            conv.weight[channels] = 0
            conv.bias[channels] = 0
        elif name == "one filter x20":
            # A filter of ordinary strength: 20 times a filter that does next to nothing would dominate nobody.
            rms = conv.weight.flatten(1).square().mean(1).sqrt()
            ordinary = (rms > rms.median() / 2).nonzero()[:, 0]
            channels = ordinary[torch.randperm(len(ordinary), generator=generator)[:1]]
            conv.weight[channels] *= 20
        elif name == "duplicated filters":  # four are copies of four others, up to 1 % noise
            size = conv.weight.flatten(1).abs().amax(1)
            strong = (size > 0.1 * size.max()).nonzero()[:, 0]
            channels = strong[torch.randperm(len(strong), generator=generator)[:8]]
            copies = conv.weight[channels[:4]]
            noise = torch.randn(copies.shape, generator=generator) * copies.flatten(1).std(1).view(
                -1, 1, 1, 1
            )
            conv.weight[channels[4:]] = copies + 0.01 * noise
            conv.bias[channels[4:]] = conv.bias[channels[:4]]
        elif name == "high-pass only":
            conv.weight.copy_(high_passed(conv.weight))
        elif name == "stride 4":  # the first layer reads every fourth pixel, without a low-pass
            old = net.architecture
            net = build(replace(old, conv1=(old.conv1[0], 4, old.conv1[2]), pool2=(3, 1, 1)))
            net.load_state_dict(model.net.state_dict())
        elif name == "swapped RGB":
            conv.weight.copy_(conv.weight.flip(1))
            layer = ""
        elif name == "constant init":  # 0.01 itself instead of N(0, 0.01^2)
            for parameter in net.parameters():
                parameter.fill_(0.01 if parameter.dim() > 1 else 0)
            layer = None
    fault, consequences = PLANTS[name]
    broken = wrap_model(
        net, mean=model.mean, scale=model.scale, input_size=model.input_size, classes=model.classes,
        name=f"{model.name}, {name}",
    )  # fmt: skip
    return Planted(broken, fault, consequences, layer, tuple(int(c) for c in channels))


def high_passed(weight):
    """Filters (C, 3, h, w) without what lies below 1/3 cycles/px, as strong as they were.

    The best that filters of this size can do: a projection onto the windows whose energy lies above, the eigenvectors
    of the quadratic form "energy above" (Slepian 1978, for a disc instead of an interval).
    """
    n = 48
    f = (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5
    high = ((f[:, None].square() + f.square()).sqrt() > 1 / 3).flatten()
    y, x = torch.meshgrid(*(torch.arange(k) for k in weight.shape[2:]), indexing="ij")
    phase = (f[:, None, None] * y.flatten() + f[None, :, None] * x.flatten()).flatten(0, 1)  # (n * n, taps)
    angle = 2 * torch.pi * phase[high]
    share, windows = torch.linalg.eigh((angle.cos().T @ angle.cos() + angle.sin().T @ angle.sin()) / n**2)
    windows = windows[:, share > 0.95]
    passed = (weight.flatten(2) @ (windows @ windows.T).to(weight)).view_as(weight)
    before, after = (w.square().sum((1, 2, 3), keepdim=True) for w in (weight, passed))
    return passed * (before / after).sqrt()


def train_badly(architecture, images, name, steps=40, seed=0):
    """Train a network on labelled pictures in one of the ways of `TRAININGS`, for some steps of SGD.

    "std-scaled inputs": divided by their standard deviation, with weights from N(0, 0.01^2). "lr too high": ReLUs die.
    SGD has momentum 0.9, batches of 32 and gradients of norm 1 at most; no RMS clip, no decay, no augmentation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(replace(architecture, classes=len(images.classes)))
        if name == "lr too high":
            for module in net.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        model = wrap_model(
            net, mean=(122.5573, 114.3941, 101.4863), scale=1 / 58, input_size=images.size, classes=images.classes,
            name=f"{architecture.family}, {name}",
        )  # fmt: skip
        optimizer = torch.optim.SGD(net.parameters(), 0.3 if name == "lr too high" else 0.01, momentum=0.9)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            chosen = torch.randint(len(images), (32,), generator=generator)
            labels = torch.tensor([images[int(i)][1] for i in chosen])
            loss = F.cross_entropy(net(model.preprocess(images.take(chosen))), labels)
            if not torch.isfinite(loss):
                break  # what it was before is what has to be explained
            optimizer.zero_grad()
            loss.backward()
            # too large steps kill ReLUs and do not end in NaN
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
    net.requires_grad_(False)
    fault, consequences = TRAININGS[name]
    return Planted(model, fault, consequences)
