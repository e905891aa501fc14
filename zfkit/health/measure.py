"""All numbers that a diagnosis rests on: from the weights, and from what pictures do to the network."""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..batching import out_of_memory
from ..errors import ImageError, ZfkitError
from ..frequency.aliasing import measure_aliasing, subsampling_layers
from ..images.imageset import ImageSet
from ..nets.activations import cannot_run
from ..nets.graph import Network, Step
from ..nets.model import VisionModel

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Layer:
    """What was measured of one convolution or fully connected layer with C maps.

    Attributes:
        name: its own. first: does it look at the picture? last: does it give the classes?
        weight: (C, ...) float32 on the CPU.
        rectified: is it followed by a ReLU, so that "active" means above 0?
        peak, floor: (C,) largest and smallest value on any picture, behind the ReLU where there is one.
        active: (C,) fraction of pictures on which the map is active anywhere; for layers without a ReLU, 1 where
            it is not the same everywhere.
        best: (C,) place in `Measurements.places` of the picture with the peak.
        rms: root mean square of the layer's output. signal: its spread over pictures, unit by unit, RMS.
        folded: (C,) share of a map's energy that the stride folds; None for stride 1. folded_energy: of all maps'.
        correlation: (C, C) of maps over pictures and places; None for layers too large.
        saturated: share of activations at the end of a bounded range; None where it has none.
    """

    name: str
    weight: Tensor
    grouped: bool
    rectified: bool
    first: bool = False
    last: bool = False
    peak: Tensor = field(default_factory=lambda: torch.empty(0))
    floor: Tensor = field(default_factory=lambda: torch.empty(0))
    active: Tensor = field(default_factory=lambda: torch.empty(0))
    best: Tensor = field(default_factory=lambda: torch.empty(0))
    rms: float = math.nan
    signal: float = math.nan
    folded: Tensor | None = None
    folded_energy: float = math.nan
    correlation: Tensor | None = None
    saturated: float = math.nan
    finite: bool = True

    @property
    def filter_rms(self) -> Tensor:
        return self.weight.flatten(1).double().square().mean(1).sqrt()

    @property
    def filter_max(self) -> Tensor:
        return self.weight.flatten(1).abs().amax(1)

    @property
    def dead(self) -> Tensor:
        """(C,) bool: never active; without a ReLU, the same everywhere on every picture."""
        return self.active == 0

    @property
    def dependence(self) -> float:
        """Spread over pictures over RMS, 0 to about 1; 0 for a layer that is 0 throughout."""
        return self.signal / self.rms if self.rms else 0.0


@dataclass
class Measurements:
    """All numbers that the checks read."""

    model: VisionModel
    images: ImageSet
    places: list[int]  # of the pictures looked at, in the image set
    layers: dict[str, Layer]  # those that run on pictures of this size, in order
    input_signal: float  # spread of the network's input over pictures, RMS over its pixels and channels
    logits: Tensor | None  # (N, K) float64, log-probabilities up to a constant
    labels: Tensor | None  # (N,) int64, where they are the network's classes
    learning: dict[str, float]  # relative change by one step of SGD, by layer
    blank: dict[str, float]  # largest probability, by colour
    colour: dict[str, float]  # standard errors by which another order is preferred
    remarks: list[str]

    @property
    def count(self) -> int:
        return len(self.places)


POSITIONS = 49  # of a map, at which its correlation with others is taken
COLUMNS = 8192  # of a filter's weights, of which its cosine with others is taken
LARGEST = 4096  # maps of a layer whose pairs are compared
SAMPLE = (
    128  # pictures for what needs several passes: learning signal and aliasing (half of them), colour order
)
LEARNING_RATE = 0.01  # the paper's


def measure(
    model: VisionModel, images: ImageSet, limit: int | None, batch_size: int, seed: int, progress: bool
) -> Measurements:
    """Everything that `diagnose` reads: from the weights, one pass over pictures, and a few small ones."""
    remarks: list[str] = []
    places, pixels = _pictures(images, limit, seed, remarks)
    units = units_of(model.network)
    runs = _what_runs(model, images)
    if not [u for u in units if u.layer in runs]:
        shape = torch.empty(1, 3, images.size, images.size)
        raise cannot_run(model, [units[0].layer], shape, RuntimeError("no layer runs on them"))
    left_out = [u.layer for u in units if u.layer not in runs]
    if left_out:
        remarks.append(
            f"{', '.join(left_out)} cannot run on pictures of {images.size} px and were not looked at, nor what "
            f"the network says: take pictures of {model.input_size} px"
        )
    layers = {u.layer: _Watch(u) for u in units if u.layer in runs}
    whole = not left_out
    logits, entering = [], _Moments()
    batches = list(torch.arange(len(places)).split(batch_size))
    for batch in tqdm(
        batches, desc=f"diagnosing {model.name}", unit="batch", disable=not progress, leave=False
    ):
        x = model.preprocess(pixels[batch])
        entering.add(x)
        output = _watch(model, x, layers, batch, stop=None if whole else set(layers))
        if whole:
            logits.append(_log_probabilities(output).double().cpu())
    m = Measurements(
        model, images, places, {n: w.finish() for n, w in layers.items()}, entering.signal,
        torch.cat(logits) if logits else None, None, {}, {}, {}, remarks,
    )  # fmt: skip
    subsampling = subsampling_layers(model)
    first, last = next(iter(m.layers.values())), list(m.layers.values())[-1]
    first.first = first.weight.dim() == 4
    last.last = whole and not last.rectified
    for layer in m.layers.values():
        if layer.finite and layer.signal and subsampling.get(layer.name):
            with contextlib.suppress(ZfkitError):  # maps too small to tell one frequency from another
                aliasing = measure_aliasing(model, pixels[: SAMPLE // 2], layer.name)
                layer.folded, layer.folded_energy = aliasing.share.nan_to_num(0), aliasing.layer_share
    if whole and torch.isfinite(torch.cat(logits)).all():
        m.labels = _labels(m)
        m.blank = _blank(m)
        m.learning = _learning(m, pixels[: SAMPLE // 2], seed, batch_size)
        m.colour = _colour(m, pixels, batch_size)
    return m


def _pictures(images: ImageSet, limit: int | None, seed: int, remarks: list[str]) -> tuple[list[int], Tensor]:
    """Places in the set, drawn at random and in random order, and pictures uint8 (n, 3, S, S).

    Labelled sets come sorted or with a period, so that every k-th picture would be of few classes.
    """
    count = min(len(images), limit or len(images))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    places, pixels = [], []
    for i in order.tolist():
        try:
            pixels.append(images[i][0])
            places.append(i)
        except ImageError as error:
            remarks.append(f"left out: {error}")
    if not places:
        reason = f": {remarks[0]}" if remarks else ""
        raise ImageError(f"none of the {len(images)} pictures of {images.source!r} can be read{reason}")
    return places, torch.stack(pixels)


class Unit(NamedTuple):
    """A convolution or fully connected layer, and the step at which its maps are said to be active or not."""

    layer: str
    module: nn.Conv2d | nn.Linear
    looked_at: str  # the ReLU or bounded function behind it, or itself
    bounds: tuple[float, float] | None
    rectified: bool


_BETWEEN = (nn.BatchNorm2d, nn.BatchNorm1d, nn.Identity, nn.Dropout, nn.Dropout2d)
_BOUNDED: dict[type[nn.Module], tuple[float, float]] = {  # nn.ReLU6 is a kind of nn.Hardtanh: it comes first
    nn.ReLU6: (-math.inf, 6.0),
    nn.Sigmoid: (0.0, 1.0),
    nn.Tanh: (-1.0, 1.0),
    nn.Hardtanh: (-1.0, 1.0),
}


def units_of(network: Network) -> list[Unit]:
    """The layers with weights, each once however often it is used."""
    readers: dict[str, list[Step]] = {}
    for step in network.steps.values():
        for name in step.inputs:
            readers.setdefault(name, []).append(step)
    units: dict[int, Unit] = {}
    for step in network.steps.values():
        if not step.listed or not isinstance(step.module, nn.Conv2d | nn.Linear) or id(step.module) in units:
            continue
        behind = step
        while len(after := readers.get(behind.name, [])) == 1:
            behind = after[0]
            if not isinstance(behind.module, _BETWEEN):
                break
        rectified = isinstance(behind.module, nn.ReLU | nn.ReLU6)
        bounds = next((b for kind, b in _BOUNDED.items() if isinstance(behind.module, kind)), None)
        looked_at = behind.name if rectified or bounds else step.name
        units[id(step.module)] = Unit(step.name, step.module, looked_at, bounds, rectified)
    return list(units.values())


@torch.inference_mode()
def _what_runs(model: VisionModel, images: ImageSet) -> set[str]:
    """Names of the steps that run on pictures of this size."""
    x = model.preprocess(torch.zeros(1, 3, images.size, images.size, dtype=torch.uint8))
    reached = set()
    try:
        for step, _, _ in model.network.walk(x, list(model.network.steps)):
            reached.add(step.name)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
    return reached


@torch.inference_mode()
def _watch(
    model: VisionModel, x: Tensor, layers: dict[str, _Watch], places: Tensor, stop: set[str] | None
) -> Tensor:
    """One batch through the network, each layer's output shown to its watch; returns what the network gives."""
    looking = {w.unit.looked_at: w for w in layers.values()}
    names = list(model.network.steps) if stop is None else [*stop, *looking]
    output = x
    for step, _, output in model.network.walk(x, names):
        if step.name in layers:
            layers[step.name].weighted(output)
        if step.name in looking:
            looking[step.name].activated(output, places)
    return output


class _Moments:
    """Sums over pictures, unit by unit, of what is shown to it batch by batch."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, x: Tensor) -> None:
        """x: (N, ...), one picture a row."""
        if not self.count:
            # Sums of the distance from the first picture, so that a large mean does not swallow a small spread.
            self.origin = x[0].clone()
            self.sum = torch.zeros_like(self.origin, dtype=torch.float64)
            self.squares = torch.zeros_like(self.sum)
            self.total = 0.0
        self.count += len(x)
        self.total += float(x.square().mean(tuple(range(1, x.dim()))).double().sum())
        away = x - self.origin
        self.sum += away.sum(0, dtype=torch.float64)
        self.squares += away.square().sum(0, dtype=torch.float64)

    @property
    def rms(self) -> float:
        return math.sqrt(self.total / self.count) if math.isfinite(self.total) else math.inf

    @property
    def signal(self) -> float:
        """Standard deviation over pictures, root mean square over units."""
        variance = (self.squares / self.count - (self.sum / self.count).square()).clamp(min=0)
        return math.sqrt(float(variance.mean())) if torch.isfinite(variance).all() else math.inf


class _Watch:
    """Watches one layer while the pictures go through the network."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        weight = unit.module.weight.detach().float().cpu()
        grouped = isinstance(unit.module, nn.Conv2d) and unit.module.groups > 1
        self.layer = Layer(unit.layer, weight, grouped, unit.rectified)
        self.layer.finite = bool(torch.isfinite(weight).all())
        self.moments = _Moments()
        self.seen, self.ended = 0, 0.0
        self.active = torch.zeros(len(weight), dtype=torch.long)
        self.pairs: _Pairs | None = _Pairs() if len(weight) <= LARGEST else None

    def weighted(self, output: Tensor) -> None:
        """What the layer gave, before any ReLU."""
        self.layer.finite &= _is_finite(output)
        if not self.layer.finite:
            return
        self.moments.add(output)
        if self.pairs is not None:
            self.pairs.add(_maps(output))

    def activated(self, output: Tensor, places: Tensor) -> None:
        """What the layer gives on behind its ReLU, if it has one; places: (N,) of these pictures."""
        layer, maps = self.layer, _maps(output)
        layer.finite &= _is_finite(output)
        if not layer.finite:
            return
        high, low = maps.amax(2), maps.amin(2)  # (N, C)
        value, row = high.max(0)
        if not self.seen:
            layer.peak, layer.floor, layer.best = value, low.amin(0), places.to(row.device)[row]
        else:
            layer.best = torch.where(value > layer.peak, places.to(row.device)[row], layer.best)
            layer.peak = torch.maximum(layer.peak, value)
            layer.floor = torch.minimum(layer.floor, low.amin(0))
        self.seen += len(high)
        self.active += (high > 0).sum(0).cpu()
        if self.unit.bounds:
            bottom, top = self.unit.bounds
            reach = 0.01 * (top - max(bottom, 0.0 if top == 6.0 else bottom))
            self.ended += float(((maps <= bottom + reach) | (maps >= top - reach)).double().mean()) * len(
                maps
            )

    def finish(self) -> Layer:
        """Everything on the CPU."""
        layer = self.layer
        C = len(layer.weight)
        if not layer.finite or not self.seen:
            nothing = torch.full((C,), math.nan)
            layer.peak = layer.floor = nothing
            layer.active, layer.best = nothing.clone(), torch.zeros(C, dtype=torch.long)
            return layer
        layer.peak, layer.floor, layer.best = (
            layer.peak.float().cpu().clone(),
            layer.floor.float().cpu().clone(),
            layer.best.cpu().clone(),
        )
        if self.unit.rectified:
            layer.active = (self.active / self.seen).float()
        else:
            varied = (layer.peak - layer.floor) > 1e-6 * layer.peak.abs().clamp(min=1e-30)
            layer.active = varied.float()
        layer.rms, layer.signal = self.moments.rms, self.moments.signal
        if self.pairs is not None:
            layer.correlation = self.pairs.correlation().cpu()
        if self.unit.bounds:
            layer.saturated = self.ended / self.seen
        return layer


def _is_finite(output: Tensor) -> bool:
    """No NaN, no infinity: a sum is quicker to look at than each number, and has them if one of these has."""
    return bool(torch.isfinite(output.sum())) or bool(torch.isfinite(output).all())


def _maps(output: Tensor) -> Tensor:
    """(N, C, H, W), (N, C) -> (N, C, places). Of a fully connected layer on other shapes, the last axis is C."""
    if output.dim() == 4:
        return output.flatten(2)
    return output.flatten(1, -2).transpose(1, 2) if output.dim() > 2 else output[:, :, None]


class _Pairs:
    """Correlation of every two maps, over pictures and up to `POSITIONS` places of each."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, maps: Tensor) -> None:
        """maps: (N, C, places)."""
        step = torch.linspace(0, maps.shape[2] - 1, min(POSITIONS, maps.shape[2]), device=maps.device).long()
        x = maps[:, :, step].transpose(0, 1).flatten(1).float()  # (C, N * places)
        if not self.count:
            self.origin = x.mean(1, keepdim=True)  # so that large means cost no digits
            self.sum = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            self.products = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
        x = x - self.origin
        self.count += x.shape[1]
        self.sum += x.sum(1, dtype=torch.float64)
        self.products += (x @ x.T).double()

    def correlation(self) -> Tensor:
        """(C, C); 0 on the diagonal and for maps that never vary."""
        mean = self.sum / self.count
        covariance = self.products / self.count - mean[:, None] * mean
        scale = covariance.diagonal().clamp(min=0).sqrt()
        r = covariance / (scale[:, None] * scale)
        return r.nan_to_num(0, 0, 0).fill_diagonal_(0).float()


def _log_probabilities(output: Tensor) -> Tensor:
    """Logits (N, K); of networks that end in a softmax, its logarithm, which is the same up to a constant."""
    flat = output.flatten(1)
    if flat.shape[1] > 1 and bool((flat >= 0).all()) and bool(((flat.sum(1) - 1).abs() < 1e-3).all()):
        return flat.clamp(min=torch.finfo(flat.dtype).tiny).log()
    return flat


def _labels(m: Measurements) -> Tensor | None:
    """(N,) labels of the pictures, where they are the network's classes."""
    assert m.logits is not None
    classes = m.images.classes
    if m.model.classes and classes:
        fit = tuple(m.model.classes) == tuple(classes)
    else:
        fit = len(classes or m.model.classes) == m.logits.shape[1]
    if not fit:
        return None
    labels = torch.tensor([m.images[i][1] for i in m.places])
    return labels if ((labels >= 0) & (labels < m.logits.shape[1])).all() else None


@torch.inference_mode()
def _run(m: Measurements, x: Tensor) -> Tensor:
    """What the network gives, as log-probabilities up to a constant, (N, K) float64."""
    parts = [_log_probabilities(m.model.net(part)).double().cpu() for part in x.split(64)]
    return torch.cat(parts)


def _blank(m: Measurements) -> dict[str, float]:
    """Largest probability of a class on pictures of one colour; nan where the network gives no numbers."""
    side = m.images.size
    given = {"black": 0, "grey": 128, "white": 255}
    x = {
        n: m.model.preprocess(torch.full((1, 3, side, side), v, dtype=torch.uint8)) for n, v in given.items()
    }
    x["the mean colour"] = torch.zeros_like(x["grey"])
    return {name: float(_run(m, blank).softmax(1).amax()) for name, blank in x.items()}


def _learning(m: Measurements, pixels: Tensor, seed: int, batch_size: int) -> dict[str, float]:
    """lr |gradient| / |weight| of each layer, for these pictures: what a first step of SGD would change."""
    assert m.logits is not None
    if m.labels is not None:
        labels = m.labels[: len(pixels)]
    else:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(m.logits.shape[1], (len(pixels),), generator=generator)
    weights = {n: p.detach().clone().requires_grad_() for n, p in m.model.net.named_parameters()}
    names = {f"{layer}.weight": layer for layer in m.layers if f"{layer}.weight" in weights}
    gradients: list[Tensor | None] = [None] * len(names)
    for part in torch.arange(len(pixels)).split(batch_size):
        with torch.enable_grad():
            output = torch.func.functional_call(m.model.net, weights, (m.model.preprocess(pixels[part]),))
            right = labels[part].to(output.device)
            loss = F.cross_entropy(_log_probabilities(output), right, reduction="sum") / len(pixels)
            added = torch.autograd.grad(loss, [weights[n] for n in names], allow_unused=True)
        gradients = [
            b if a is None else a if b is None else a + b for a, b in zip(gradients, added, strict=True)
        ]
    found = {}
    for (name, layer), gradient in zip(names.items(), gradients, strict=True):
        size = float(weights[name].detach().double().norm())
        change = 0.0 if gradient is None else LEARNING_RATE * float(gradient.double().norm())
        found[layer] = change / size if size else 0.0
    return found


def _colour(m: Measurements, pixels: Tensor, batch_size: int) -> dict[str, float]:
    """By how many standard errors the network prefers its pictures with colours in another order, by order.

    What it prefers: the order in which the logit of the right class, or, without labels, the largest one, stands out
    more from the mean of all. Orders are compared on `SAMPLE` pictures, and the one that leads is judged on all.
    Windows of one photograph count as one picture: they are not independent.
    """
    if len(m.model.mean) != 3 or m.logits is None or m.logits.shape[1] < 2:
        return {}
    grey = (pixels == pixels[:, :1]).flatten(1).all(1)
    colourful = (~grey).nonzero()[:, 0]
    source = torch.arange(m.count)
    if m.images.windows:
        source = m.images.windows.photograph[torch.tensor(m.places)]
    if len(source[colourful[:SAMPLE]].unique()) < 8:
        m.remarks.append(
            "whether colours come in the right order: fewer than 8 independent pictures in colour, too few to tell"
        )
        return {}

    def evidence(logits: Tensor, chosen: Tensor) -> Tensor:
        if m.labels is None:
            return logits.amax(1) - logits.mean(1)
        return logits.gather(1, m.labels[chosen, None])[:, 0] - logits.mean(1)

    def preference(order: tuple[int, ...], chosen: Tensor) -> float:
        assert m.logits is not None
        parts = [
            _run(m, m.model.preprocess(pixels[part][:, list(order)])) for part in chosen.split(batch_size)
        ]
        other = torch.cat(parts)
        gain = evidence(other, chosen) - evidence(m.logits[chosen], chosen)
        each = torch.stack([gain[source[chosen] == g].mean() for g in source[chosen].unique()])
        error = float(each.std()) / math.sqrt(len(each))
        return float(each.mean()) / error if error > 0 else 0.0

    orders = [order for order in itertools.permutations(range(3)) if order != (0, 1, 2)]
    found = {order: preference(order, colourful[:SAMPLE]) for order in orders}
    leads = max(found, key=found.__getitem__)
    if found[leads] > 2:
        found[leads] = preference(leads, colourful)
    if max(abs(t) for t in found.values()) < 2:
        m.remarks.append(
            "whether colours come in the right order: the network answers all six alike on these pictures; take "
            "some like those that it was trained with, best with labels"
        )
    return {"".join("RGB"[c] for c in order): t for order, t in found.items()}


def cosines(weight: Tensor) -> Tensor:
    """(C, C) cosines between filters, 0 on the diagonal; of long filters, over `COLUMNS` weights drawn at random."""
    flat = weight.flatten(1)
    if flat.shape[1] > COLUMNS:
        generator = torch.Generator().manual_seed(0)
        flat = flat[:, torch.randperm(flat.shape[1], generator=generator)[:COLUMNS]]
    flat = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return (flat @ flat.T).fill_diagonal_(0)


def layer_table(m: Measurements) -> pd.DataFrame:
    """Data frame by layer of all that was measured.

    maps; dead and rare: how many (rare: active on under 1% of pictures); weakest: ||w||_inf of the weakest filter
    over the strongest's; dominance: largest RMS over the median; cosine: largest of two filters; rms and signal of
    the output (signal: spread over pictures); dependence: signal / rms; learning: change by one step of SGD; folded:
    share of energy that the stride folds, NaN for stride 1.
    """
    import pandas as pd

    rows = []
    for layer in m.layers.values():
        largest, median = float(layer.filter_max.max()), float(layer.filter_rms.median())
        C = len(layer.weight)
        compared = 1 < C <= LARGEST and not layer.grouped and bool(torch.isfinite(layer.weight).all())
        rows.append(
            {
                "layer": layer.name,
                "maps": C,
                "dead": int(layer.dead.sum()),
                "rare": int(((layer.active < 0.01) & ~layer.dead).sum()),
                "weakest": float(layer.filter_max.min()) / largest if largest else 0.0,
                "dominance": float(layer.filter_rms.max()) / median if median else math.nan,
                "cosine": float(cosines(layer.weight).max()) if compared else math.nan,
                "rms": layer.rms,
                "signal": layer.signal,
                "dependence": layer.dependence,
                "learning": m.learning.get(layer.name, math.nan),
                "folded": layer.folded_energy,
            }
        )
    return pd.DataFrame(rows).set_index("layer")
