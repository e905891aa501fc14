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

from ..deconv.receptive_field import extents
from ..errors import LayerError, ZfkitError, unknown
from ..nets.graph import pair
from ..nets.model import VisionModel
from ..nets.zoo import load_model

if TYPE_CHECKING:
    import pandas as pd


SIZE = 64  # bins along each side of a spectrum


LOW, HIGH = 1 / 12, 1 / 3  # bounds of the bands, cycles per pixel: periods of 12 px and of 3 px


Part = Literal["all", "luminance", "opponent"]


Sees = Literal["colour", "grey", "maps"]


Of = Literal["energy", "pixels"]


# What is told of a whole layer, in this order. The first eight are means over its filters.
MEASURES = (
    "centroid", "bandwidth", "selectivity", "low", "mid", "high", "aliasable", "luminance", "mid_coverage", "entropy",
)  # fmt: skip


# Those whose mean over random filters follows from the mean of their spectra.
LINEAR = ("centroid", "low", "mid", "high", "aliasable", "luminance")


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

    >>> found = top.table("conv1").join(zfkit.frequency.spectral_table(model, ["conv1"]), on=["layer", "channel"])
    >>> found.sort_values(["centroid", "rank"])
    """
    import pandas as pd

    model = load_model(model, device="cpu") if isinstance(model, str) else model
    names = [layers] if isinstance(layers, str) else list(model.conv_layers if layers is None else layers)
    if not names:
        raise LayerError(f"no layer was named; {model.name} has {', '.join(model.conv_layers)}")
    tables = {name: filter_spectra(model, name, size=size).table() for name in names}
    return pd.concat(tables, names=["layer"])
