"""What frequencies a layer's filters pass, and what lattices a stride leaves in reconstructions.

Zeiler & Fergus (section 4.1, Fig. 6) saw in AlexNet's first layer "a mix of extremely high and low frequency
information, with little coverage of the mid frequencies". `filter_spectra` turns that into numbers for any
convolution. Small filters leak into every frequency and few filters scatter, so `random_control` says what
filters that learned nothing would give, with an interval. `lattice` looks for the periodic artefacts that a
stride leaves in pictures.

Conventions. Frequencies are cycles per pixel *of the layer's own input*, from -1/2 to 1/2: u along the rows'
index (down), v along the columns' (to the right), rho = sqrt(u^2 + v^2). The direction of a wave is that of
(v, u), in degrees from 0 to 180, turning from right to down: 0 for upright stripes, 90 for level ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from .errors import LayerError, ZfkitError, unknown
from .graph import pair
from .models import VisionModel, load_model
from .patches import Patches
from .receptive_field import extents

if TYPE_CHECKING:
    import pandas as pd

SIZE = 64  # bins along each side of a spectrum

LOW, HIGH = 1 / 12, 1 / 3  # bounds of the bands, cycles per pixel: periods of 12 px and of 3 px

Part = Literal["all", "luminance", "opponent"]
Sees = Literal["colour", "grey", "maps"]
ControlKind = Literal["normal", "shuffled"]
Of = Literal["energy", "pixels"]

# What is told of a whole layer, in this order. The first eight are means over its filters.
MEASURES = (
    "centroid", "bandwidth", "selectivity", "low", "mid", "high", "aliasable", "luminance", "mid_coverage", "entropy",
)  # fmt: skip
# Those whose mean over random filters follows from the mean of their spectra.
LINEAR = ("centroid", "low", "mid", "high", "aliasable", "luminance")


# ---------------------------------------------------------------------------------------- spectra of filters


@dataclass(frozen=True, eq=False)
class FilterSpectra:
    """The power spectra of one layer's C filters; made by `filter_spectra`.

    P_i(u, v) = sum_c |DFT(w_ic)(u, v)|^2 / size^2, the filter padded with zeros to `size` x `size`; with
    dilation, the filter is the one with zeros between its taps. What P means depends on the layer's input:

    - *The picture* (a first layer): how much of a grating's energy at (u, v) the filter passes, summed over
      colours. `part_of` tells luminance from colour.
    - *Feature maps* (any later layer): input channels are different features, and P is the answer to maps that
      have nothing to do with each other. There are no colours. A cycle per pixel of those maps is
      1 / `input_stride` cycles per pixel of the picture, but it is a frequency *of the map*: the rectification
      in between puts energy at frequencies that the picture does not have.

    Attributes:
        name: of the network.
        layer: its name; "" for a bare tensor of weights.
        weight: (C, c, kh, kw) float64, the filters, without the zeros of dilation.
        power: (C, size, size) float64; a filter's sum over all bins is its sum of squares (Parseval).
        frequencies: (size,) float64 cycles per pixel, ascending from -1/2, of power's rows and columns alike.
        stride, dilation: of the convolution, along rows and columns.
        input_stride: pixels of the picture between neighbouring positions of the layer's input; 1 for a first
            layer, None where there is no such number.
        sees: "colour" where the input is a picture in RGB, "grey" a picture in one channel, "maps" otherwise.
        part: what of the filters this is: "all", or what `part_of` made.
    """

    name: str
    layer: str
    weight: Tensor
    power: Tensor
    frequencies: Tensor
    stride: tuple[int, int]
    dilation: tuple[int, int]
    input_stride: int | None
    sees: Sees
    part: Part = "all"

    def __repr__(self) -> str:
        C, c, kh, kw = self.weight.shape
        return f"FilterSpectra({self.title}: {C} filters {c}x{kh}x{kw}, stride {self.stride[0]})"

    @property
    def title(self) -> str:
        """Network, layer and part, for tables and captions."""
        part = "" if self.part == "all" else f", {self.part}"
        return f"{self.name} {self.layer}".strip() + part

    def part_of(self, part: Part) -> FilterSpectra:
        """Spectra of the filters' luminance or colour-opponent part alone; "all" gives both together.

        The luminance part of a filter is its mean over R, G and B: what it answers to grey pictures. The
        opponent part is the rest, which sums to zero over the colours and is blind to grey. They are orthogonal,
        so their powers add up to the whole (luminance and opponent axes as in Ruderman, Cronin & Chiao 1998,
        the two opponent ones together).

        Raises LayerError where the layer's input is not a picture in colour.
        """
        if part not in get_args(Part):
            raise ZfkitError(unknown("part", part, get_args(Part)))
        if part == self.part:
            return self
        if self.part != "all":
            raise ZfkitError(f"this is the {self.part} part already; ask the whole filters for {part!r}")
        if self.sees != "colour":
            raise LayerError(
                f"{self.title or 'this layer'} does not take a picture in RGB (a filter has {self.weight.shape[1]} "
                "input channels), so there is no luminance apart from colour; ask a first layer that takes RGB"
            )
        return replace(self, part=part)._of(self.weight)

    def _of(self, weight: Tensor) -> FilterSpectra:
        """The same with other filters, of which this part is taken."""
        if self.part != "all":
            grey = weight.mean(1, keepdim=True).expand_as(weight)
            weight = grey if self.part == "luminance" else weight - grey
        return replace(self, weight=weight, power=_power(weight, self.dilation, len(self.frequencies)))

    # ------------------------------------------------------------------------------------- one row per filter

    def table(self) -> pd.DataFrame:
        """Data frame by channel, one row per filter; NaN throughout for filters that are zero.

        - centroid: sum(rho P) / sum(P), cycles/px; bandwidth: standard deviation of rho about it, cycles/px;
        - peak: rho where P is largest, cycles/px;
        - orientation: direction of the wave in degrees, arg(z) / 2 with z = sum(P e^(2i angle)) / sum(P), both
          without the bin at 0; NaN where no direction prevails. selectivity: |z|, from 0 for none to 1 for a
          pure grating (one minus the circular variance of Ringach, Shapley & Hawken 2002);
        - low, mid, high: shares of sum(P) with rho < 1/12, from 1/12 to 1/3, > 1/3 cycles/px;
        - aliasable: share with |u| > 1/(2 stride) or |v| > 1/(2 stride), which the stride folds onto lower
          frequencies; 0 for stride 1. Bins on the bound are not counted (see `exact_shares`);
        - luminance: share of the luminance part; 1 for filters of a grey picture, NaN for filters of maps;
        - energy: sum of squares of the weights.

        >>> spectra = zfkit.filter_spectra("zfnet64")
        >>> spectra.table().sort_values("centroid")[["centroid", "orientation", "luminance"]]
        """
        import pandas as pd

        columns = {name: value.numpy() for name, value in self._per_filter.items()}
        return pd.DataFrame(columns).rename_axis("channel")

    def exact_shares(self) -> pd.DataFrame:
        """The table's low, mid, high and aliasable as integrals over frequency instead of sums over bins.

        With r(d) the autocorrelation of a filter, its energy in a region of frequencies is sum_d r(d) K(d), where
        K(d) is the integral of cos(2 pi f.d) over the region: sin(2 pi a n) / (pi n) along each axis for
        |u|, |v| < a, and R J_1(2 pi R |d|) / |d| for rho < R. A grid of bins gives the regions' edges to whole
        bins; that moves `aliasable` most, by about 0.02 at 64 bins, as 1/(2 stride) is itself a bin.
        """
        import pandas as pd

        r = _autocorrelation(self.weight)
        kh, kw = self.weight.shape[2:]
        y = self.dilation[0] * torch.arange(1 - kh, kh, dtype=torch.float64)[:, None]
        x = self.dilation[1] * torch.arange(1 - kw, kw, dtype=torch.float64)
        distance = torch.sqrt(y.square() + x.square())

        def disc(radius: float) -> Tensor:
            bessel = radius * torch.special.bessel_j1(2 * math.pi * radius * distance) / distance
            return torch.where(distance > 0, bessel, math.pi * radius**2)

        kept = (
            torch.sinc(y / self.stride[0]) / self.stride[0] * torch.sinc(x / self.stride[1]) / self.stride[1]
        )
        low, below, kept = (
            (r * kernel).sum((1, 2)) / r[:, kh - 1, kw - 1] for kernel in (disc(LOW), disc(HIGH), kept)
        )
        shares = {"low": low, "mid": below - low, "high": 1 - below, "aliasable": 1 - kept}
        return pd.DataFrame({k: v.numpy() for k, v in shares.items()}).rename_axis("channel")

    @cached_property
    def _per_filter(self) -> dict[str, Tensor]:
        """The table's columns, (C,) each."""
        plane = _Plane(self.frequencies, self.stride)
        energy = self.power.sum((1, 2))
        moments = dict(zip(plane.names, (self._shares.flatten(1) @ plane.masks).T, strict=True))
        z = torch.complex(moments["cos"], moments["sin"]) / moments["beyond 0"]
        spread = (moments["rho^2"] - moments["rho"].square()).clamp(min=0).sqrt()
        peak = plane.rho.flatten()[self.power.flatten(1).argmax(1)]
        nan = torch.full_like(energy, torch.nan)
        if self.sees == "colour":
            luminance = self.weight.mean(1).square().sum((1, 2)) * 3 / self.weight.square().sum((1, 2, 3))
        else:
            luminance = torch.where(energy > 0, 1.0, nan) if self.sees == "grey" else nan
        return {
            "centroid": moments["rho"],
            "bandwidth": spread,
            "peak": torch.where(energy > 0, peak, nan),
            "orientation": torch.where(z.abs() > 1e-9, torch.rad2deg(z.angle() / 2) % 180, nan),
            "selectivity": z.abs(),
            **{name: moments[name] for name in ("low", "mid", "high", "aliasable")},
            "luminance": luminance,
            "energy": energy,
        }

    @cached_property
    def _shares(self) -> Tensor:
        """(C, size, size), each filter's power divided by its sum; NaN where that is zero."""
        return self.power / self.power.sum((1, 2), keepdim=True)

    # ----------------------------------------------------------------------------------- the layer as a whole

    @cached_property
    def pooled(self) -> Tensor:
        """(size, size), sums to 1: the mean of the filters' spectra, each divided by its own sum.

        So a weak filter counts as much as a strong one; filters that are zero are left out.
        """
        return self._shares.nanmean(0)

    def profile(self) -> Tensor:
        """(size // 2 + 1,) radial profile of `pooled`: mean density on rings at `radii`.

        In units of white filters' density, which is the same at every frequency: 1 everywhere for them. Rings
        end at 1/2 cycle per pixel; the corners beyond, with diagonal waves only, are left out.
        """
        return _Plane(self.frequencies, self.stride).profile(self.pooled)

    @property
    def radii(self) -> Tensor:
        """(size // 2 + 1,) cycles per pixel, from 0 to 1/2: the rings of `profile`, one bin wide."""
        size = len(self.frequencies)
        return torch.arange(size // 2 + 1, dtype=torch.float64) / size

    def summary(self) -> dict[str, float]:
        """The layer in ten numbers: the table's columns averaged over filters, and two of the pooled spectrum.

        - mid_coverage: fraction of the middle band's area where some filter is within half of its own largest
          power, as banks of Gabor filters are laid out (Manjunath & Ma 1996);
        - entropy of `pooled`: -sum(p log p) / log(size^2), from 0 for one frequency to 1 for all alike.
        """
        plane = _Plane(self.frequencies, self.stride)
        means = {name: float(self._per_filter[name].nanmean()) for name in MEASURES[:-2]}
        peaks = self.power.amax((1, 2), keepdim=True)
        covered = ((self.power >= peaks / 2) & (peaks > 0)).any(0)
        entropy = torch.special.entr(self.pooled).sum() / math.log(self.pooled.numel())
        return means | {"mid_coverage": float(covered[plane.mid].double().mean()), "entropy": float(entropy)}


class _Plane:
    """The plane of frequencies: where its bins lie, and what is summed over them."""

    def __init__(self, frequencies: Tensor, stride: tuple[int, int]) -> None:
        u, v = frequencies[:, None], frequencies
        self.rho = torch.sqrt(u.square() + v.square())
        self.mid = (self.rho >= LOW) & (self.rho <= HIGH)
        squared = self.rho.square().clamp(min=torch.finfo(torch.float64).tiny)
        parts = {
            "rho": self.rho,
            "rho^2": self.rho.square(),
            "beyond 0": self.rho > 0,
            "cos": (v.square() - u.square()) / squared,  # of twice the direction
            # At |u| or |v| = 1/2 the waves (u, v) and (u, -v) are one and the same.
            "sin": torch.where((u.abs() < 0.5) & (v.abs() < 0.5), 2 * u * v / squared, 0.0),
            "low": self.rho < LOW,
            "mid": self.mid,
            "high": self.rho > HIGH,
            "aliasable": (u.abs() > 1 / (2 * stride[0])) | (v.abs() > 1 / (2 * stride[1])),
        }
        self.names = list(parts)
        self.masks = torch.stack([m.double().flatten() for m in parts.values()], 1)  # (size^2, 9)

    def profile(self, pooled: Tensor) -> Tensor:
        """Mean over rings of one bin's width, times the number of bins."""
        size = len(pooled)
        ring = (self.rho * size).round().long().flatten()
        total, bins = (
            torch.zeros(int(ring.max()) + 1, dtype=torch.float64).index_add(0, ring, x)
            for x in (pooled.flatten(), torch.ones(size**2, dtype=torch.float64))
        )
        return (total / bins * size**2)[: size // 2 + 1]


def _autocorrelation(weight: Tensor) -> Tensor:
    """(C, 2 kh - 1, 2 kw - 1): sum over input channels and taps of w(t) w(t + d), displacement 0 in the middle."""
    C, c, kh, kw = weight.shape
    sides = 2 * kh - 1, 2 * kw - 1  # so that displacements do not wrap around
    r = weight.new_empty(C, *sides)
    for part in torch.arange(C).split(max(1, 2**22 // (c * sides[0] * sides[1]))):  # bounded memory
        r[part] = torch.fft.irfft2(torch.fft.rfft2(weight[part], s=sides).abs().square().sum(1), s=sides)
    return torch.fft.fftshift(r, (1, 2))


def _power(weight: Tensor, dilation: tuple[int, int], size: int) -> Tensor:
    """(C, size, size) of `FilterSpectra.power`, as the DFT of the autocorrelation (Wiener & Khinchin).

    That is one large transform for each filter, however many input channels it has.
    """
    return _spectrum(_autocorrelation(weight), dilation, size)


def _spectrum(r: Tensor, dilation: tuple[int, int], size: int) -> Tensor:
    for axis in (1, 2):  # displacement d goes to position d modulo size
        reach = r.shape[axis] // 2
        place = dilation[axis - 1] * torch.arange(-reach, reach + 1) % size
        shape = list(r.shape)
        shape[axis] = size
        r = r.new_zeros(shape).index_add(axis, place, r)
    power = torch.fft.fft2(r).real.clamp(min=0) / size**2
    return torch.fft.fftshift(power, (1, 2))


def _frequencies(size: int) -> Tensor:
    return (torch.arange(size, dtype=torch.float64) - size // 2) / size


def filter_spectra(
    model: VisionModel | str | Tensor,
    layer: str | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    size: int = SIZE,
    weights: str | None = "DEFAULT",
) -> FilterSpectra:
    """The power spectra of a convolutional layer's filters.

    Args:
        model: a network, the name of one for `load_model`, or bare weights (C, c, kh, kw); bare filters with 3
            or 1 input channels are taken to look at a picture.
        layer: a convolution; None for the first one.
        stride: for bare weights: the convolution's; a network knows its own.
        size: bins along each side of the spectra, at least the filters' side.
        weights: for the name of a torchvision network, as in `load_model`; None for random ones, no download.

    Raises LayerError for a layer that does not exist or is no convolution, and for filters that are all zero or
    not finite; ZfkitError for weights or numbers that fit no filter.

    >>> zfkit.filter_spectra("torchvision:vgg11", weights=None).summary()["mid"]
    """
    if isinstance(model, Tensor):
        if model.dim() != 4 or not model.numel() or not model.is_floating_point():
            raise ZfkitError(
                "expected weights (C_out, C_in, kh, kw) as floats, got "
                f"{str(model.dtype).removeprefix('torch.')} {tuple(model.shape)}"
            )
        if layer is not None:
            raise ZfkitError(
                f"bare weights have no layer {layer!r}; pass the network, or leave the layer out"
            )
        name, layer, weight, steps, dilation = "weights", "", model, _steps("stride", stride), (1, 1)
        sees: Sees = {3: "colour", 1: "grey"}.get(model.shape[1], "maps")  # type: ignore[assignment]
        input_stride: int | None = 1
    else:
        model = load_model(model, weights=weights, device="cpu") if isinstance(model, str) else model
        layer = model.conv_layers[0] if layer is None else layer
        step = model.network.find(layer)
        conv = step.module
        if not isinstance(conv, nn.Conv2d):
            raise LayerError(
                f"{layer!r} is {step.operation}, which has no filters; take one of {', '.join(model.conv_layers)}"
            )
        name, weight, steps, dilation = model.name, conv.weight, pair(conv.stride), pair(conv.dilation)
        before = model.network.upto(step.inputs)
        first = not any(isinstance(s.module, nn.Conv2d | nn.Linear) for s in before)
        sees = "maps"
        if first and weight.shape[1] == len(model.mean):  # a grouped one sees only some of the colours
            sees = "colour" if len(model.mean) == 3 else "grey"
        extent = extents(model.network, step.inputs[0]).get(model.network.input)
        rows, columns = extent if extent is not None else (None, None)
        same = rows is not None and columns is not None and rows.stride == columns.stride
        input_stride = rows.stride if rows is not None and same else None
    called = f"{layer!r} of {name}" if layer else "the weights"
    weight = weight.detach().to("cpu", torch.float64)
    reach = max(d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True))
    if not isinstance(size, int) or size < max(reach, 2):
        raise ZfkitError(
            f"size must be a whole number of bins, at least the filters' {reach} px, not {size!r}"
        )
    if not torch.isfinite(weight).all():
        raise LayerError(f"{called} are not all finite; check the training that made them")
    if not weight.any():
        raise LayerError(f"all filters of {called} are zero, so they have no spectrum; check the weights")
    return FilterSpectra(
        name, layer, weight, _power(weight, dilation, size), _frequencies(size),
        steps, dilation, input_stride, sees,
    )  # fmt: skip


def _steps(what: str, value: int | tuple[int, int]) -> tuple[int, int]:
    numbers = pair(value) if isinstance(value, int | tuple | list) and value != () else (0, 0)
    if not all(isinstance(n, int) and n >= 1 for n in numbers):
        raise ZfkitError(f"{what} must be a whole number of pixels from 1 on, or two of them, not {value!r}")
    return numbers


def spectral_table(
    model: VisionModel | str, layers: Sequence[str] | None = None, *, size: int = SIZE
) -> pd.DataFrame:
    """`FilterSpectra.table` of several layers as one data frame by (layer, channel), to join with others.

    Args:
        layers: default: every convolution.

    Raises what `filter_spectra` raises.

    Sort what `mine` found by what the filters are tuned to:

    >>> found = top.table("conv1").join(zfkit.spectral_table(model, ["conv1"]), on=["layer", "channel"])
    >>> found.sort_values(["centroid", "rank"])
    """
    import pandas as pd

    model = load_model(model, device="cpu") if isinstance(model, str) else model
    names = [layers] if isinstance(layers, str) else list(model.conv_layers if layers is None else layers)
    if not names:
        raise LayerError(f"no layer was named; {model.name} has {', '.join(model.conv_layers)}")
    tables = {name: filter_spectra(model, name, size=size).table() for name in names}
    return pd.concat(tables, names=["layer"])


# ---------------------------------------------------------------------------------------------- the control


@dataclass(frozen=True, eq=False)
class RandomControl:
    """What filters that learned nothing give, beside what a layer has; made by `random_control`.

    Attributes:
        spectra: of the layer.
        kind: of the random filters, "normal" or "shuffled".
        seed: they were drawn with.
        level: of the intervals, 0.95 for 95 %.
        drawn: for each of `MEASURES`, (draws,): what each random layer gives.
        profiles: (draws, size // 2 + 1), each random layer's radial profile.
        expected: closed forms of the random layers' mean, for the measures that have one.
    """

    spectra: FilterSpectra
    kind: ControlKind
    seed: int
    level: float
    drawn: dict[str, Tensor]
    profiles: Tensor
    expected: dict[str, float]

    def __repr__(self) -> str:
        drawn = f"{len(self.profiles)} layers of {self.kind} filters, seed {self.seed}"
        return f"RandomControl({self.spectra.title}: {drawn})"

    def interval(self, measure: str) -> tuple[float, float]:
        """Between these two lie `level` of the random layers."""
        if measure not in self.drawn:
            raise ZfkitError(unknown("measure", measure, self.drawn))
        low, high = torch.quantile(self.drawn[measure], self._tails).tolist()
        return low, high

    def profile_interval(self) -> tuple[Tensor, Tensor]:
        """For each ring of `FilterSpectra.profile`, the two values between which `level` of the layers lie."""
        low, high = torch.quantile(self.profiles, self._tails, 0)
        return low, high

    @property
    def _tails(self) -> Tensor:
        return torch.tensor([(1 - self.level) / 2, (1 + self.level) / 2], dtype=torch.float64)

    def table(self) -> pd.DataFrame:
        """Data frame by measure: value of the layer, expected of random filters, low and high of the interval.

        `expected` is a closed form where there is one, the mean of the draws elsewhere; `outside` says whether
        the value lies outside the interval. NaN where the measure has no meaning for the layer.
        """
        import pandas as pd

        rows = {}
        for name, value in self.spectra.summary().items():
            low, high = self.interval(name)
            middle = self.expected.get(name, float(self.drawn[name].mean()))
            margin = 1e-9  # a 1x1 filter's interval is one number
            outside = value < low - margin or value > high + margin
            rows[name] = {"value": value, "expected": middle, "low": low, "high": high, "outside": outside}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("measure")


def random_control(
    spectra: FilterSpectra,
    *,
    kind: ControlKind = "normal",
    draws: int = 100,
    seed: int = 0,
    level: float = 0.95,
) -> RandomControl:
    """What as many filters of the same size would give if they had learned nothing.

    Args:
        kind: "normal": weights drawn from one normal distribution each by itself, as in an untrained layer. Their
            spectra, each divided by its sum, are flat on average: padding with zeros only smooths. So the mean
            of a band's share is the band's share of the plane, and that of luminance 1/3.
            "shuffled": each filter's own weights with its taps in random order, the same for all of its input
            channels: that keeps the weights, their sum (so the power at frequency 0) and the colours, and loses
            the arrangement.
        draws: random layers, each with as many filters as the layer has.
        seed: of the draws.
        level: share of the draws within the intervals.

    >>> zfkit.random_control(zfkit.filter_spectra("zfnet64")).table().round(2)
    """
    if kind not in get_args(ControlKind):
        raise ZfkitError(unknown("kind of control", kind, get_args(ControlKind)))
    if not isinstance(draws, int) or draws < 2:
        raise ZfkitError(f"draws must be a whole number from 2 on, not {draws!r}: an interval needs several")
    if not 0 < level < 1:
        raise ZfkitError(f"level must lie between 0 and 1, as 0.95, not {level!r}")
    generator = torch.Generator().manual_seed(seed)
    weight = spectra.weight
    found, profiles = [], []
    for _ in range(draws):
        if kind == "normal":
            random = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        else:
            order = torch.rand(weight.shape[0], 1, weight[0, 0].numel(), generator=generator).argsort(-1)
            random = weight.flatten(2).gather(2, order.expand(-1, weight.shape[1], -1)).view_as(weight)
        layer = spectra._of(random)
        found.append(layer.summary())
        profiles.append(layer.profile())
    drawn = {name: torch.tensor([f[name] for f in found], dtype=torch.float64) for name in MEASURES}
    mean = _expected_control(spectra, kind).summary()
    expected = {name: mean[name] for name in LINEAR}
    if kind == "normal" and spectra.sees == "colour":
        expected["luminance"] = {"all": 1 / 3, "luminance": 1.0, "opponent": 0.0}[spectra.part]
    return RandomControl(spectra, kind, seed, level, drawn, torch.stack(profiles), expected)


def _expected_control(spectra: FilterSpectra, kind: ControlKind) -> FilterSpectra:
    """Spectra that are the mean of the random filters' (each divided by its sum)."""
    weight = spectra.weight
    C, _, kh, kw = weight.shape
    r = weight.new_zeros(C, 2 * kh - 1, 2 * kw - 1)
    if kind == "shuffled" and kh * kw > 1:
        # Any two taps are equally likely at any displacement, so w(t) w(t + d) has the same mean for all d but 0.
        taps = kh * kw
        pairs = (weight.sum((2, 3)).square() - weight.square().sum((2, 3))).sum(1) / (taps * (taps - 1))
        overlap = [k - torch.arange(1 - k, k).abs() for k in (kh, kw)]  # taps that have a tap d further on
        r = pairs[:, None, None] * torch.outer(*overlap)
    r[:, kh - 1, kw - 1] = weight.square().sum((1, 2, 3)) if kind == "shuffled" else 1.0
    return replace(spectra, power=_spectrum(r, spectra.dilation, len(spectra.frequencies)))


def compare_spectra(
    models: Sequence[VisionModel | str | FilterSpectra],
    layer: str | None = None,
    *,
    kind: ControlKind = "normal",
    draws: int = 100,
    seed: int = 0,
    size: int = SIZE,
    weights: str | None = "DEFAULT",
) -> pd.DataFrame:
    """`RandomControl.table` of several networks as one data frame by (model, measure).

    Args:
        models: networks, names for `load_model`, or spectra.
        layer, size, weights: as for `filter_spectra`; the first convolution of each by default.
        kind, draws, seed: as for `random_control`.

    >>> zfkit.compare_spectra(["alexnet64", "zfnet64"])["value"].unstack("model").round(2)
    """
    import pandas as pd

    if isinstance(models, str | VisionModel | FilterSpectra):
        models = [models]
    if not models:
        raise ZfkitError("no model to compare; pass networks, their names or their spectra")
    tables = {}
    for model in models:
        spectra = model
        if not isinstance(spectra, FilterSpectra):
            spectra = filter_spectra(spectra, layer, size=size, weights=weights)
        if spectra.title in tables:
            raise ZfkitError(f"two of the models are called {spectra.title!r}; give them different names")
        tables[spectra.title] = random_control(spectra, kind=kind, draws=draws, seed=seed).table()
    return pd.concat(tables, names=["model"])


# ------------------------------------------------------------------------------------ lattices in the pictures


@dataclass(frozen=True, eq=False)
class Lattice:
    """How much of a set of pictures repeats with the period of a stride; made by `lattice`.

    Attributes:
        of: "energy" or "pixels", what the spectrum is of.
        stride: period looked for, in pixels along rows and columns.
        name: for captions.
        count: pictures that were averaged.
        energy: (H, W) float64, mean over pictures of their squared pixels, each divided by its sum.
        power: (size, size) float64 spectrum; for "energy" 1 at frequency 0, for "pixels" it sums to 1.
        frequencies: (size,) float64 cycles per pixel, ascending from -1/2, of power's rows and columns alike.
        reach: cycles per pixel from a point to its neighbours, 2 / side: what a Hann window resolves.
        points: (n, 2) float64, the lattice's frequencies (u, v) in cycles per pixel, one of each pair +-(u, v).
        peak: (n,) power there. neighbours: (n,) mean power next to it.
        control: (m,) `ratio` for the same lattice, shifted to frequencies that are no multiples of 1/stride.
    """

    of: Of
    stride: tuple[int, int]
    name: str
    count: int
    energy: Tensor
    power: Tensor
    frequencies: Tensor
    reach: float
    points: Tensor
    peak: Tensor
    neighbours: Tensor
    control: Tensor

    def __repr__(self) -> str:
        low, high = self.interval()
        called = f"{self.name}: " if self.name else ""
        return (
            f"Lattice({called}peaks of the {self.of} every 1/{self.stride[0]} c/px are {self.ratio:.2g} times their "
            f"neighbours; at other frequencies {low:.2g} to {high:.2g})"
        )

    @property
    def ratio(self) -> float:
        """Power at the lattice's frequencies over the power next to them; about 1 where there is no lattice."""
        return float(self.peak.sum() / self.neighbours.sum())

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Between these two lies `level` of the ratios at shifted frequencies."""
        tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = torch.quantile(self.control, tails).tolist()
        return low, high

    def table(self) -> pd.DataFrame:
        """Data frame, a row for each of the lattice's frequencies: u, v, power, neighbours, ratio; strongest first."""
        import pandas as pd

        columns = {
            "u": self.points[:, 0],
            "v": self.points[:, 1],
            "power": self.peak,
            "neighbours": self.neighbours,
            "ratio": self.peak / self.neighbours,
        }
        found = pd.DataFrame({k: v.numpy() for k, v in columns.items()})
        return found.sort_values("power", ascending=False, ignore_index=True)


def lattice(
    pictures: Patches | Tensor, stride: int | tuple[int, int], *, of: Of = "energy", name: str = ""
) -> Lattice:
    """Look for artefacts that repeat every `stride` pixels, as peaks at multiples of 1/stride cycles per pixel.

    Where a layer with stride s is inverted, its maps are filled up with zeros to every s-th pixel before they are
    filtered: spectra repeat every 1/s (Oppenheim & Schafer, section 4.6), and filters that overlap unevenly leave
    a grid (Odena, Dumoulin & Olah 2016). Two spectra can be asked for:

    - "energy": of the mean over all pictures of their squared pixels. The grid lies at the same pixels in all of
      them (windows around units begin at multiples of the stride) and so adds up, while what the pictures show
      averages out. Its square root is the depth of the grid, relative to the mean.
    - "pixels": the mean of the pictures' own power spectra. It shows what the eye sees, but a *filter* tuned to
      such a frequency looks the same as a grid. It finds a chequerboard of plus and minus, which the energy,
      being a square, does not.

    Each picture counts the same, whatever its contrast; its mean is taken off, and a Hann window applied.
    Neighbours lie 2 / side cycles per pixel away, along the axis for points on an axis, along the diagonals for
    others. The control asks for the same ratio at the lattice's points shifted to all frequencies in between, at
    least as far from them; where a later layer has made a wider lattice, its peaks count into the control.

    Args:
        pictures: projections from `project_top`, or pixels (..., C, H, W) or (H, W), signed or not.
        stride: period in pixels: of the layer, times those before it.
        name: for captions; default: the layer of the projections.

    Raises ZfkitError for a stride of 1, and for pictures that are empty, not finite or less than 4 strides wide.

    >>> patches = zfkit.project_top(model, photos, top, "conv2")
    >>> zfkit.lattice(patches, stride=4).ratio
    """
    if of not in get_args(Of):
        raise ZfkitError(unknown("kind of spectrum", of, get_args(Of)))
    if isinstance(pictures, Patches):
        name, pictures = name or pictures.layer, pictures.projection
    if not isinstance(pictures, Tensor) or pictures.dim() < 2 or not pictures.numel():
        got = tuple(pictures.shape) if isinstance(pictures, Tensor) else type(pictures).__name__
        raise ZfkitError(f"expected Patches, or pixels (..., C, H, W) or (H, W) as a tensor, got {got}")
    periods = _steps("stride", stride)
    if 1 in periods:
        raise ZfkitError(
            "a stride of 1 leaves no lattice: every pixel is treated alike; take one of 2 or more"
        )
    x = pictures.detach().to("cpu", torch.float64)
    x = x.reshape(-1, x.shape[-3] if x.dim() > 2 else 1, *x.shape[-2:])  # (N, C, H, W)
    height, width = x.shape[2:]
    if min(height, width) < 4 * max(periods):
        raise ZfkitError(
            f"pictures of {height}x{width} px are too small to tell a lattice of period {max(periods)} px from what "
            f"lies next to it; take pictures of at least {4 * max(periods)} px"
        )
    if not torch.isfinite(x).all():
        raise ZfkitError("some pixels are not finite; check the network's weights and the pictures")
    x = x - x.mean((2, 3), keepdim=True)
    total = x.square().sum((1, 2, 3))
    x = x[total > 0] / total[total > 0].sqrt()[:, None, None, None]
    if not len(x):
        raise ZfkitError(
            "every picture is of one colour throughout, so there is nothing to look for a lattice in"
        )
    energy = x.square().sum(1).mean(0)
    # All of the lattice's frequencies are bins. Small pictures are padded, so that peaks are drawn smoothly.
    step = math.lcm(2, *periods)
    side = max(height, width)
    size = step * math.ceil(max(side, min(4 * side, 256)) / step)
    window = torch.outer(
        *(torch.hann_window(n + 2, periodic=False, dtype=torch.float64)[1:-1] for n in (height, width))
    )
    if of == "energy":
        power = torch.fft.fft2(energy * window, s=(size, size)).abs().square()
        power = power / power[0, 0]
    else:
        power = torch.zeros(size, size, dtype=torch.float64)
        for part in x.split(max(1, 2**24 // (x.shape[1] * size**2))):
            power += torch.fft.fft2(part * window, s=(size, size)).abs().square().sum((0, 1))
        power = power / power.sum()
    reach = math.ceil(2 * size / side)  # bins
    points = torch.cartesian_prod(*(torch.arange(0, size, size // s) for s in periods))[1:]
    opposite = -points % size
    half = points[:, 0] * size + points[:, 1] <= opposite[:, 0] * size + opposite[:, 1]
    points = points[half]  # (n, 2) bins
    shifts = range(reach, size // max(periods) - reach + 1)
    control = [_contrast(power, points, shift, reach) for shift in shifts]
    peak, neighbours = _contrast(power, points, 0, reach)
    return Lattice(
        of, periods, name, len(x), energy, torch.fft.fftshift(power), _frequencies(size), reach / size,
        torch.where(points > size // 2, points - size, points).double() / size, peak, neighbours,
        torch.stack([p.sum() / n.sum() for p, n in control]),
    )  # fmt: skip


def _contrast(power: Tensor, points: Tensor, shift: int, reach: int) -> tuple[Tensor, Tensor]:
    """Power (n,) at these bins (n, 2), shifted, and the mean power beside them; on an axis, both along it."""
    direction = (points != 0).long()  # (1, 0) or (0, 1) on an axis, (1, 1) elsewhere
    mirrored = direction * torch.tensor([1, -1])
    place = points + shift * direction

    def at(bins: Tensor) -> Tensor:
        return power[bins[:, 0] % len(power), bins[:, 1] % len(power)]

    beside = [at(place + sign * reach * way) for way in (direction, mirrored) for sign in (1, -1)]
    return at(place), torch.stack(beside).mean(0)
