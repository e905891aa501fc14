"""What frequencies a layer's filters pass.

Zeiler & Fergus (section 4.1, Fig. 6) saw in AlexNet's first layer "a mix of extremely high and low frequency
information, with little coverage of the mid frequencies". `filter_spectra` turns that into numbers for any
convolution. Small filters leak into every frequency and few filters scatter, so `random_control` says what
filters that learned nothing would give, with an interval.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from ..checks import layer_names, one_of, pair, whole_number
from ..deconv.receptive_field import extents
from ..errors import LayerError, ZfkitError
from ..nets.model import VisionModel, expect_model
from ..nets.zoo import load_model
from ..results import Result
from .plane import HIGH, LOW, SIZE, Plane, autocorrelation, frequency_bins, plane, power_of_autocorrelation

if TYPE_CHECKING:
    import pandas as pd

Part = Literal["all", "luminance", "opponent"]
Sees = Literal["colour", "grey", "maps"]

# What `FilterSpectra.summary` says of a layer, in this order. The first eight are means over its filters.
MEASURES = (
    "centroid", "bandwidth", "selectivity", "low", "mid", "high", "aliasable", "luminance", "mid_coverage", "entropy",
)  # fmt: skip
# Those whose mean over random filters follows from the mean of their spectra.
LINEAR = ("centroid", "low", "mid", "high", "aliasable", "luminance")


@dataclass(frozen=True, eq=False)
class FilterSpectra(Result, figure="spectrum_maps"):
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
        size: bins along each side of the spectra.
        stride, dilation: of the convolution, along rows and columns.
        input_stride: pixels of the picture between neighbouring positions of the layer's input; 1 for a first
            layer, None where there is no such number.
        sees: "colour" where the input is a picture in RGB, "grey" a picture in one channel, "maps" otherwise.
        part: what of the filters this is: "all", or what `part_of` made.
    """

    name: str
    layer: str
    weight: Tensor
    size: int
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
        one_of(part, "part", get_args(Part))
        if part == self.part:
            return self
        if self.part != "all":
            raise ZfkitError(f"this is the {self.part} part already; ask the whole filters for {part!r}")
        if self.sees != "colour":
            raise LayerError(
                f"{self.title} does not take a picture in RGB, but {self.weight.shape[1]} channels: ask a first layer"
            )
        return replace(self, part=part, weight=take_part(self.weight, part))

    @functools.cached_property
    def power(self) -> Tensor:
        """(C, size, size) float64; a filter's sum over all bins is its sum of squares (Parseval).

        It is the DFT of the autocorrelation (Wiener & Khinchin): one large transform for each filter, however many
        input channels it has.
        """
        return power_of_autocorrelation(autocorrelation(self.weight), self.dilation, self.size)

    @property
    def frequencies(self) -> Tensor:
        """(size,) float64 cycles per pixel, ascending from -1/2, of power's rows and columns alike."""
        return frequency_bins(self.size)

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

        r = autocorrelation(self.weight)
        kh, kw = self.weight.shape[2:]
        y = self.dilation[0] * torch.arange(1 - kh, kh, dtype=torch.float64)[:, None]
        x = self.dilation[1] * torch.arange(1 - kw, kw, dtype=torch.float64)
        distance = torch.sqrt(y.square() + x.square())

        def disc(radius: float) -> Tensor:
            bessel = radius * torch.special.bessel_j1(2 * math.pi * radius * distance) / distance
            return torch.where(distance > 0, bessel, math.pi * radius**2)

        along_y, along_x = (torch.sinc(t / s) / s for t, s in zip((y, x), self.stride, strict=True))
        kernels = (disc(LOW), disc(HIGH), along_y * along_x)
        low, below, kept = ((r * kernel).sum((1, 2)) / r[:, kh - 1, kw - 1] for kernel in kernels)
        shares = {"low": low, "mid": below - low, "high": 1 - below, "aliasable": 1 - kept}
        return pd.DataFrame({k: v.numpy() for k, v in shares.items()}).rename_axis("channel")

    @functools.cached_property
    def _per_filter(self) -> dict[str, Tensor]:
        """The table's columns, (C,) each."""
        energy = self.power.sum((1, 2))
        mean = self._plane.means(self._shares)
        z = torch.complex(mean["cos"], mean["sin"]) / mean["beyond 0"]
        peak = self._plane.rho.flatten()[self.power.flatten(1).argmax(1)]
        nan = torch.full_like(energy, torch.nan)
        if self.sees == "colour":
            luminance = self.weight.mean(1).square().sum((1, 2)) * 3 / self.weight.square().sum((1, 2, 3))
        else:
            luminance = torch.where(energy > 0, 1.0, nan) if self.sees == "grey" else nan
        return {
            "centroid": mean["rho"],
            "bandwidth": (mean["rho^2"] - mean["rho"].square()).clamp(min=0).sqrt(),
            "peak": torch.where(energy > 0, peak, nan),
            "orientation": torch.where(z.abs() > 1e-9, torch.rad2deg(z.angle() / 2) % 180, nan),
            "selectivity": z.abs(),
            **{name: mean[name] for name in ("low", "mid", "high", "aliasable")},
            "luminance": luminance,
            "energy": energy,
        }

    @property
    def _plane(self) -> Plane:
        return plane(self.size, self.stride)

    @functools.cached_property
    def _shares(self) -> Tensor:
        """(C, size, size), each filter's power divided by its sum; NaN where that is zero."""
        return self.power / self.power.sum((1, 2), keepdim=True)

    @functools.cached_property
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
        return self._plane.profile(self.pooled)

    @property
    def radii(self) -> Tensor:
        """(size // 2 + 1,) cycles per pixel, from 0 to 1/2: the rings of `profile`, one bin wide."""
        return torch.arange(self.size // 2 + 1, dtype=torch.float64) / self.size

    def summary(self) -> dict[str, float]:
        """The layer in ten numbers: the table's columns averaged over filters, and two of the pooled spectrum.

        - mid_coverage: fraction of the middle band's area where some filter is within half of its own largest
          power, as banks of Gabor filters are laid out (Manjunath & Ma 1996);
        - entropy of `pooled`: -sum(p log p) / log(size^2), from 0 for one frequency to 1 for all alike.
        """
        means = {name: float(self._per_filter[name].nanmean()) for name in MEASURES[:-2]}
        peaks = self.power.amax((1, 2), keepdim=True)
        covered = ((self.power >= peaks / 2) & (peaks > 0)).any(0)
        entropy = torch.special.entr(self.pooled).sum() / math.log(self.pooled.numel())
        coverage = float(covered[self._plane.mid].double().mean())
        return means | {"mid_coverage": coverage, "entropy": float(entropy)}


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
        spectra = _of_weights(model, layer, stride, size)
    else:
        model = load_model(model, weights=weights, device="cpu") if isinstance(model, str) else model
        expect_model(model)
        spectra = _of_layer(model, model.conv_layers[0] if layer is None else layer, size)
    called = f"{spectra.layer!r} of {spectra.name}" if spectra.layer else "the weights"
    taps = zip(spectra.dilation, spectra.weight.shape[2:], strict=True)
    side = max(d * (k - 1) + 1 for d, k in taps)
    whole_number(size, f"size, in bins, of filters of {side} px,", low=max(side, 2))
    if not torch.isfinite(spectra.weight).all():
        raise LayerError(f"{called} are not all finite; check the training that made them")
    if not spectra.weight.any():
        raise LayerError(f"all filters of {called} are zero, so they have no spectrum; check the weights")
    return spectra


def _of_weights(weight: Tensor, layer: str | None, stride: int | tuple[int, int], size: int) -> FilterSpectra:
    if weight.dim() != 4 or not weight.numel() or not weight.is_floating_point():
        dtype = str(weight.dtype).removeprefix("torch.")
        raise ZfkitError(f"expected weights (C, c, kh, kw) as floats, got {dtype} {tuple(weight.shape)}")
    if layer is not None:
        raise ZfkitError(f"bare weights have no layer {layer!r}; pass the network, or leave the layer out")
    sees: Sees = {3: "colour", 1: "grey"}.get(weight.shape[1], "maps")  # type: ignore[assignment]
    return FilterSpectra("weights", "", _float64(weight), size, stride_pair(stride), (1, 1), 1, sees)


def _of_layer(model: VisionModel, layer: str, size: int) -> FilterSpectra:
    step = model.network.find(layer)
    conv = step.module
    if not isinstance(conv, nn.Conv2d):
        raise LayerError(
            f"{layer!r} is {step.operation}, which has no filters; take one of {', '.join(model.conv_layers)}"
        )
    before = model.network.upto(step.inputs)
    sees: Sees = "maps"
    first = not any(isinstance(s.module, nn.Conv2d | nn.Linear) for s in before)
    if first and conv.weight.shape[1] == len(model.mean):  # a grouped one sees only some of the colours
        sees = "colour" if len(model.mean) == 3 else "grey"
    weight = conv.weight.flip(1) if sees == "colour" and model.channels == "bgr" else conv.weight  # red first
    extent = extents(model.network, step.inputs[0]).get(model.network.input)
    even = extent is not None and extent[0].stride == extent[1].stride
    return FilterSpectra(
        model.name, layer, _float64(weight), size, pair(conv.stride), pair(conv.dilation),
        extent[0].stride if extent and even else None, sees,
    )  # fmt: skip


def _float64(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", torch.float64)


def take_part(weight: Tensor, part: Part) -> Tensor:
    """The luminance part of filters (C, 3, kh, kw), their mean over colours, or the rest; "all" for both."""
    if part == "all":
        return weight
    grey = weight.mean(1, keepdim=True).expand_as(weight)
    return grey if part == "luminance" else weight - grey


def stride_pair(stride: int | tuple[int, int]) -> tuple[int, int]:
    """A stride along rows and columns. Raises ZfkitError for anything but whole numbers from 1 on."""
    numbers = stride if isinstance(stride, tuple | list) and len(stride) == 2 else (stride, stride)
    rows, columns = (whole_number(n, "stride, in pixels,") for n in numbers)
    return rows, columns


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

    model = expect_model(load_model(model, device="cpu") if isinstance(model, str) else model)
    names = layer_names(layers, model.layers, default=model.conv_layers)
    tables = {name: filter_spectra(model, name, size=size).table() for name in names}
    return pd.concat(tables, names=["layer"])
