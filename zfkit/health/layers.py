"""One layer's numbers: its filters, and statistics of its output that are added to while pictures go through."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..nets.graph import Network, Step

POSITIONS = 49  # of a map, at which its correlation with others is taken
COLUMNS = 8192  # of a filter's weights, of which its cosine with others is taken
LARGEST = 4096  # maps of a layer whose pairs are compared


class Unit(NamedTuple):
    """A convolution or fully connected layer, and the step at which its maps are said to be active or not."""

    layer: str
    module: nn.Conv2d | nn.Linear
    looked_at: str  # the ReLU or bounded function behind it, or itself
    bounds: tuple[float, float] | None
    rectified: bool


BETWEEN = (nn.BatchNorm2d, nn.BatchNorm1d, nn.Identity, nn.Dropout, nn.Dropout2d)
BOUNDED: dict[type[nn.Module], tuple[float, float]] = {  # nn.ReLU6 is a kind of nn.Hardtanh: it comes first
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
            if not isinstance(behind.module, BETWEEN):
                break
        rectified = isinstance(behind.module, nn.ReLU | nn.ReLU6)
        bounds = next((b for kind, b in BOUNDED.items() if isinstance(behind.module, kind)), None)
        looked_at = behind.name if rectified or bounds else step.name
        units[id(step.module)] = Unit(step.name, step.module, looked_at, bounds, rectified)
    return list(units.values())


@dataclass
class Layer:
    """What was measured of one convolution or fully connected layer with C maps.

    Attributes:
        name: its own. first: does it look at the picture? last: does it give the classes?
        weight: (C, ...) float32 on the CPU.
        grouped: do its filters see different maps, so that they do not compare?
        rectified: is it followed by a ReLU, so that "active" means above 0?
        finite: are its weights and all of its activations numbers? Where not, what follows is NaN.
        peak: (C,) largest value on any picture, behind the ReLU where there is one.
        best: (C,) place in the image set of the picture with the peak.
        active: (C,) fraction of pictures on which the map is active anywhere; for layers without a ReLU, 1 where
            it is not the same everywhere.
        rms: root mean square of the layer's output. signal: its spread over pictures, unit by unit, RMS.
        saturated: share of activations at the end of a bounded range; NaN where it has none.
        correlation: (C, C) of maps over pictures and places; None for layers too large.
        folded: (C,) share of a map's energy that the stride folds; None for stride 1. folded_energy: of all maps'.
    """

    name: str
    weight: Tensor
    grouped: bool
    rectified: bool
    finite: bool
    peak: Tensor
    best: Tensor
    active: Tensor
    rms: float = math.nan
    signal: float = math.nan
    saturated: float = math.nan
    correlation: Tensor | None = None
    folded: Tensor | None = None
    folded_energy: float = math.nan
    first: bool = False
    last: bool = False

    @property
    def filter_rms(self) -> Tensor:
        """(C,) float64, root mean square of each filter's weights."""
        return self.weight.flatten(1).double().square().mean(1).sqrt()

    @property
    def filter_max(self) -> Tensor:
        """(C,) largest |weight| of each filter."""
        return self.weight.flatten(1).abs().amax(1)

    @property
    def dead(self) -> Tensor:
        """(C,) bool: never active; without a ReLU, the same everywhere on every picture."""
        return self.active == 0

    @property
    def dependence(self) -> float:
        """Spread over pictures over RMS, 0 to about 1; 0 for a layer that is 0 throughout."""
        return self.signal / self.rms if self.rms else 0.0


class Moments:
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


class Pairs:
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


class Statistics:
    """Statistics of one layer, added to batch by batch while the pictures go through the network."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.weight = unit.module.weight.detach().float().cpu()
        self.finite = bool(torch.isfinite(self.weight).all())
        self.moments = Moments()
        self.pairs = Pairs() if len(self.weight) <= LARGEST else None
        self.count, self.saturated = 0, 0.0
        self.active = torch.zeros(len(self.weight), dtype=torch.long)

    def add_output(self, output: Tensor) -> None:
        """What the layer gave, before any ReLU."""
        self.finite &= _is_finite(output)
        if self.finite:
            self.moments.add(output)
            if self.pairs is not None:
                self.pairs.add(_maps(output))

    def add_activations(self, output: Tensor, places: Tensor) -> None:
        """What the layer hands on behind its ReLU, if it has one; places: (N,) of these pictures."""
        maps = _maps(output)
        self.finite &= _is_finite(output)
        if not self.finite:
            return
        high, low = maps.amax(2), maps.amin(2)  # (N, C)
        value, row = high.max(0)
        best = places.to(row.device)[row]
        if not self.count:
            self.peak, self.floor, self.best = value, low.amin(0), best
        else:
            self.best = torch.where(value > self.peak, best, self.best)
            self.peak = torch.maximum(self.peak, value)
            self.floor = torch.minimum(self.floor, low.amin(0))
        self.count += len(high)
        self.active += (high > 0).sum(0).cpu()
        if self.unit.bounds:
            bottom, top = self.unit.bounds
            # Within 1 % of the range. At its lower end, 0, a ReLU6 is off and not saturated.
            reach = 0.01 * (top if bottom == -math.inf else top - bottom)
            ended = (maps <= bottom + reach) | (maps >= top - reach)
            self.saturated += float(ended.double().mean()) * len(maps)

    def finish(self) -> Layer:
        """Everything on the CPU."""
        unit, C = self.unit, len(self.weight)
        grouped = isinstance(unit.module, nn.Conv2d) and unit.module.groups > 1
        if not self.finite or not self.count:
            none = torch.full((C,), math.nan)
            best = torch.zeros(C, dtype=torch.long)
            return Layer(unit.layer, self.weight, grouped, unit.rectified, self.finite, none, best, none)
        peak, floor = self.peak.float().cpu(), self.floor.float().cpu()
        varied = (peak - floor) > 1e-6 * peak.abs().clamp(min=1e-30)
        return Layer(
            unit.layer, self.weight, grouped, unit.rectified, self.finite,
            peak=peak.clone(), best=self.best.cpu().clone(),
            active=(self.active / self.count).float() if unit.rectified else varied.float(),
            rms=self.moments.rms, signal=self.moments.signal,
            saturated=self.saturated / self.count if unit.bounds else math.nan,
            correlation=None if self.pairs is None else self.pairs.correlation().cpu(),
        )  # fmt: skip


def _is_finite(output: Tensor) -> bool:
    """No NaN, no infinity: a sum is quicker to look at than each number, and has them if one of these has."""
    return bool(torch.isfinite(output.sum())) or bool(torch.isfinite(output).all())


def _maps(output: Tensor) -> Tensor:
    """(N, C, H, W), (N, C) -> (N, C, places). Of a fully connected layer on other shapes, the last axis is C."""
    if output.dim() == 4:
        return output.flatten(2)
    return output.flatten(1, -2).transpose(1, 2) if output.dim() > 2 else output[:, :, None]


def cosines(weight: Tensor) -> Tensor:
    """(C, C) cosines between filters, 0 on the diagonal; of long filters, over `COLUMNS` weights drawn at random."""
    flat = weight.flatten(1)
    if flat.shape[1] > COLUMNS:
        generator = torch.Generator().manual_seed(0)
        flat = flat[:, torch.randperm(flat.shape[1], generator=generator)[:COLUMNS]]
    flat = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return (flat @ flat.T).fill_diagonal_(0)
