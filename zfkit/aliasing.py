"""What subsampling does to a signal, measured: aliasing, gratings, and consistency under shifts.

A map that is read at every s-th place can hold frequencies up to 1 / (2s) cycles per place of the map it is read
from. What lies above does not vanish: it arrives at a lower frequency, where it looks like something that is
not in the picture (Nyquist 1928, Shannon 1949). Zeiler & Fergus (section 4.1) saw this in AlexNet's second
layer and blamed the stride of 4. Here it is measured in three ways:

- `measure_aliasing`: run a layer with stride 1, split its response at the new limit, subsample both parts;
- `grating_response`: show drifting gratings, and see at which frequency the answer arrives;
- `shift_consistency`: move the picture by single pixels, and see how features and classes change (Azulay &
  Weiss 2018, arXiv 1805.12177; Zhang 2019, arXiv 1904.11486).

The remedy, `BlurPool`, is an option of the networks (``Architecture(blur=3)``).

Frequencies are in cycles per pixel, and orientation is the direction in which a grating varies, in degrees
from the x axis (to the right) towards the y axis (down): 0 for upright stripes, 90 for level ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .errors import LayerError, ZfkitError
from .graph import Step, pair
from .images import ImageSet
from .models import BlurPool, VisionModel
from .receptive_field import POINTWISE, Interval, filters, receptive_field

if TYPE_CHECKING:
    import pandas as pd

# ---------------------------------------------------------------------------------------------- gratings

Numbers = float | Sequence[float] | Tensor


def wave(frequency: Numbers, orientation: Numbers) -> tuple[Tensor, Tensor]:
    """Frequency along x (to the right) and along y (down), in cycles/px, of gratings; float64.

    fx = frequency cos(orientation), fy = frequency sin(orientation); orientation in degrees.
    """
    f, angle = _float64(frequency), torch.deg2rad(_float64(orientation))
    return f * torch.cos(angle), f * torch.sin(angle)


def gratings(
    frequency: Numbers,
    orientation: Numbers = 0.0,
    phase: Numbers = 0.0,
    *,
    size: int | tuple[int, int] = 64,
    contrast: float = 1.0,
    colour: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    """Sinusoidal gratings as pictures (N, 3, H, W), 0-255 around 127.5.

    picture[c, y, x] = 127.5 (1 + contrast colour[c] cos(2 pi (fx x + fy y) + phase)), with fx and fy from `wave`.

    Args:
        frequency: cycles per pixel. Above 1/2 a picture cannot hold it: it is drawn as what its pixels then are.
        orientation: degrees; phase: radians. Single numbers go with every frequency, lists one by one.
        size: side, or height and width, in pixels.
        contrast: from 0 to 1.
        colour: how much red, green and blue swing, from -1 to 1; (1, -1, 0) for red against green.
        dtype: torch.uint8 rounds, as pictures are; torch.float64 or float32 do not.

    Raises ZfkitError for a contrast, colour or size that is no picture's.

    >>> model.preprocess(gratings(0.25, [0, 45, 90], size=64)).shape
    torch.Size([3, 3, 64, 64])
    """
    if not 0 <= contrast <= 1:
        raise ZfkitError(f"contrast goes from 0 to 1, not {contrast}")
    swing = _float64(colour)
    if swing.shape != (3,) or swing.abs().max() > 1:
        raise ZfkitError(
            f"colour must be three numbers from -1 to 1, for red, green and blue, not {colour!r}"
        )
    height, width = pair(size)
    if height < 1 or width < 1:
        raise ZfkitError(f"size must be positive, in pixels, not {size!r}")
    fx, fy = wave(frequency, orientation)
    fx, fy, start = (t.flatten()[:, None, None] for t in torch.broadcast_tensors(fx, fy, _float64(phase)))
    y, x = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
    swings = torch.cos(2 * math.pi * (fx * x + fy * y) + start)  # (N, H, W)
    pictures = 127.5 * (1 + contrast * swing[:, None, None] * swings[:, None])
    return pictures.round().to(dtype) if dtype == torch.uint8 else pictures.to(dtype)


def fold(frequency: Numbers, stride: float) -> Tensor:
    """Where a frequency arrives that is read at every `stride`-th place: ((f + 1/(2s)) mod 1/s) - 1/(2s).

    Cycles per place of the map that is read, in and out, from -1/(2s) to below 1/(2s); float64. Frequencies of
    which a multiple of 1/s is apart cannot be told from each other (sampling theorem).

    >>> fold(0.4, 2)  # seen as a tenth of a cycle, going the other way
    tensor(-0.1000, dtype=torch.float64)
    """
    band = 1 / stride
    return torch.remainder(_float64(frequency) + band / 2, band) - band / 2


def _float64(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _as_input(model: VisionModel, pictures: Tensor) -> Tensor:
    """`model.preprocess` for pictures that are not rounded: float (N, 3, H, W), 0-255."""
    x = pictures.to(model.device, model.dtype)
    if len(model.mean) == 1:
        x = (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    return (x - x.new_tensor(model.mean).view(-1, 1, 1)) * x.new_tensor(model.scale).view(-1, 1, 1)


# ------------------------------------------------------------------------------------- which layers subsample

_SUBSAMPLING = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | BlurPool


def subsampling_layers(model: VisionModel) -> dict[str, tuple[int, int]]:
    """Layers that read their input at every s-th place only, with s along rows and columns."""
    found = {}
    for name in model.layers:
        module = model.network.steps[name].module
        if isinstance(module, _SUBSAMPLING) and pair(module.stride) != (1, 1):
            found[name] = pair(module.stride)
    return found


@dataclass(frozen=True)
class _Subsampler:
    """A layer that subsamples, and what follows it place by place up to the layer that was asked for."""

    step: Step
    then: tuple[Step, ...]
    stride: tuple[int, int]

    @classmethod
    def of(cls, model: VisionModel, layer: str) -> _Subsampler:
        step, then = model.network.find(layer), []
        known = subsampling_layers(model)
        while step.name not in known:
            if len(step.inputs) != 1 or filters(step) != (POINTWISE, POINTWISE):
                raise LayerError(
                    f"{layer!r} does not subsample, so no frequency is lost there; layers of {model.name} that do: "
                    + (", ".join(f"{n} (stride {max(s)})" for n, s in known.items()) or "none")
                )
            then.append(step)
            step = model.network.steps[step.inputs[0]]
        return cls(step, tuple(reversed(then)), known[step.name])

    def dense(self, model: VisionModel, x: Tensor) -> Tensor:
        """What the layer would give at every place: the same with stride 1; (N, C, h, w)."""
        before = self.step.inputs[0]
        if before != model.network.input:
            *_, (_, _, x) = model.network.walk(x, [before])
        module = copy.copy(self.step.module)  # shares its weights
        assert module is not None
        module.stride = (1, 1) if isinstance(module, nn.Conv2d) else 1  # type: ignore[assignment]
        y = module(x)
        for step in self.then:
            y = step.run(y)
        return y


# ------------------------------------------------------------------------------------------------- aliasing


@dataclass(frozen=True, eq=False)
class Aliasing:
    """How much of what a layer hands on lies at frequencies that are not those of its input.

    Attributes:
        model, layer: whose.
        stride: along rows and columns, of the layer's own input.
        kept: (C,) float64, energy (mean square about the mean of the map, activation^2) that stays at its own
            frequency when filter c's stride-1 response is subsampled.
        folded: (C,) float64, energy that arrives at wrong frequencies.
        by_picture: (N, 2) float64, kept and folded energy of each picture, over all filters.
    """

    model: str
    layer: str
    stride: tuple[int, int]
    kept: Tensor
    folded: Tensor
    by_picture: Tensor

    @property
    def share(self) -> Tensor:
        """(C,) folded / (kept + folded), 0 to 1; NaN for filters that do not answer."""
        return self.folded / (self.kept + self.folded)

    @property
    def layer_share(self) -> float:
        """Share of the whole layer's energy, 0 to 1: strong filters count more."""
        return float(self.folded.sum() / (self.kept.sum() + self.folded.sum()))

    def interval(self, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Interval of `layer_share`: bootstrap over pictures, 2000 draws."""
        sums = _resampled(self.by_picture, seed)  # (draws, 2)
        return _quantiles(sums[:, 1] / sums.sum(1), level)

    def table(self) -> pd.DataFrame:
        """One row per filter: channel, kept and folded energy, share."""
        import pandas as pd

        return pd.DataFrame(
            {"channel": range(len(self.kept)), "kept": self.kept, "folded": self.folded, "share": self.share}
        )


@torch.no_grad()
def measure_aliasing(
    model: VisionModel, images: ImageSet | Tensor, layer: str, *, progress: bool = False
) -> Aliasing:
    """Energy that lands on wrong frequencies where `layer` subsamples, on these pictures, per filter.

    The layer is run with stride 1. Its response, minus its mean and under a Hann window, so that the picture's
    edges count for nothing, is split by the Fourier transform at the limit of the subsampled grid:

        low: max(|fx| sx, |fy| sy) <= 1/2,   high: the rest,
        share = E|high[::s]|^2 / (E|low[::s]|^2 + E|high[::s]|^2).

    The subsampled response is low[::s] + high[::s]. The first is what ideal sampling would give; all of the
    second lies at frequencies that are not its own (`fold`). Convolutions (grouped and dilated, too), max- and
    average pools and `BlurPool`, of any kernel, are all measured so; 1x1 kernels filter nothing and fold most.

    Args:
        images: an `ImageSet`, or uint8 pictures (N, 3, H, W). The larger the maps, the sharper the split: 224 px
            rather than 64.
        layer: one that subsamples (`subsampling_layers`), or a ReLU or norm behind it ("relu1"), to measure
            what comes out of that.

    Raises LayerError for a layer that does not subsample; ZfkitError where maps have fewer than eight places
    in the subsampled grid.
    """
    source = _Subsampler.of(model, layer)
    sh, sw = source.stride
    kept: Tensor | float = 0.0
    folded: Tensor | float = 0.0
    places, by_picture = 0.0, []
    count = len(images)
    if not count:
        raise ZfkitError("there are no pictures to measure with")
    with tqdm(total=count, desc=f"aliasing at {layer}", unit="img", disable=not progress, leave=False) as bar:
        start, step = 0, 1
        while start < count:
            index = range(start, min(start + step, count))
            pictures = (
                images.take(index) if isinstance(images, ImageSet) else images[index.start : index.stop]
            )
            r = source.dense(model, model.preprocess(pictures))
            h, w = r.shape[2:]
            if h < 8 * sh or w < 8 * sw:
                raise ZfkitError(
                    f"pictures of {pictures.shape[3]} x {pictures.shape[2]} px leave {w} x {h} places at {layer!r} "
                    f"before it subsamples; take larger ones, for at least {8 * sw} x {8 * sh}"
                )
            window = _hann(h, r)[:, None] * _hann(w, r)
            r = (r - (r * window).sum((2, 3), keepdim=True) / window.sum()) * window
            low, high = _split(r, (sh, sw))
            energies = [(part[:, :, ::sh, ::sw].double() ** 2).sum((2, 3)) for part in (low, high)]  # (n, C)
            places += len(r) * float((window[::sh, ::sw].double() ** 2).sum())
            kept, folded = kept + energies[0].sum(0).cpu(), folded + energies[1].sum(0).cpu()
            by_picture.append(torch.stack([e.sum(1).cpu() for e in energies], 1))
            bar.update(len(r))
            start += len(r)
            step = max(1, min(64, 2**23 // r[0].numel()))
    assert isinstance(kept, Tensor) and isinstance(folded, Tensor)
    return Aliasing(model.name, layer, source.stride, kept / places, folded / places, torch.cat(by_picture))


def _hann(n: int, like: Tensor) -> Tensor:
    return torch.hann_window(n + 2, periodic=False, dtype=like.dtype, device=like.device)[1:-1]


def _split(r: Tensor, stride: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Maps (N, C, h, w) as the sum of what a grid with this stride can hold and what it cannot."""
    h, w = r.shape[2:]
    rows = torch.fft.fftfreq(h, dtype=torch.float64).abs() * stride[0] <= 0.5 + 1e-9
    columns = torch.fft.rfftfreq(w, dtype=torch.float64) * stride[1] <= 0.5 + 1e-9
    keep = (rows[:, None] & columns).to(r.device)
    low = torch.fft.irfft2(torch.fft.rfft2(r) * keep, s=(h, w))
    return low, r - low


def _resampled(values: Tensor, seed: int, draws: int = 2000) -> Tensor:
    """Sums of (N, ...) over N rows drawn with replacement -> (draws, ...)."""
    counts = torch.zeros(draws, len(values), dtype=torch.float64)
    drawn = torch.randint(len(values), counts.shape, generator=torch.Generator().manual_seed(seed))
    counts.scatter_add_(1, drawn, torch.ones_like(counts))
    return torch.tensordot(counts, values.double(), 1)


def _quantiles(values: Tensor, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ZfkitError(f"level must lie between 0 and 1, not {level}")
    low, high = torch.quantile(values, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=values.dtype))
    return float(low), float(high)


# --------------------------------------------------------------------------------- responses to drifting gratings


@dataclass(frozen=True, eq=False)
class GratingResponse:
    """How a layer's filters answer to drifting gratings; made by `grating_response`.

    Attributes:
        model, layer: whose.
        channels: (C,) int64.
        spacing: pixels between neighbouring units, along rows and columns: they hold up to 1 / (2 spacing) c/px.
        frequency: (F,) float64, cycles per pixel. orientation: (O,) float64, degrees.
        harmonics: (C, F, O, H + 1) complex128, of the response over the phase of the grating:
            g(phase) = Re(sum over h of harmonics[h] e^(i h phase)), for the unit at 0. Its neighbour n places on
            has e^(2 pi i h f s n) times as much.
    """

    model: str
    layer: str
    channels: Tensor
    spacing: tuple[int, int]
    frequency: Tensor
    orientation: Tensor
    harmonics: Tensor

    @property
    def mean(self) -> Tensor:
        """(C, F, O) mean response over one period of drift."""
        return self.harmonics[..., 0].real

    @property
    def power(self) -> Tensor:
        """(C, F, O, H) mean square of the part of the response that follows the h-th harmonic, h = 1 to H."""
        return self.harmonics[..., 1:].abs().square() / 2

    def _harmonics(self) -> tuple[Tensor, Tensor]:
        """Frequencies (F, O, H) along x and y of every harmonic, in c/px of the picture."""
        fx, fy = wave(self.frequency[:, None], self.orientation)
        h = torch.arange(1, self.harmonics.shape[-1])
        return fx[..., None] * h, fy[..., None] * h

    @property
    def is_folded(self) -> Tensor:
        """(F, O, H) bool: harmonics that the units' grid cannot hold, max(|fx| sx, |fy| sy) > 1/2."""
        fx, fy = self._harmonics()
        return torch.maximum(fx.abs() * self.spacing[1], fy.abs() * self.spacing[0]) > 0.5 + 1e-9

    @property
    def arrives(self) -> tuple[Tensor, Tensor]:
        """(F, O) each: frequency along x and y, c/px, at which the gratings themselves are seen in the map."""
        fx, fy = self._harmonics()
        return fold(fx[..., 0], self.spacing[1]), fold(fy[..., 0], self.spacing[0])

    @property
    def before(self) -> Tensor:
        """(C, F, O) root mean square of the response about its mean: what units at every pixel would hold."""
        return self.power.sum(-1).sqrt()

    @property
    def in_place(self) -> Tensor:
        """(C, F, O) the part of it that the map shows at its own frequency."""
        return (self.power * ~self.is_folded).sum(-1).sqrt()

    @property
    def folded(self) -> Tensor:
        """(C, F, O) the part that it shows at a wrong frequency; before^2 = in_place^2 + folded^2."""
        return (self.power * self.is_folded).sum(-1).sqrt()

    @property
    def share(self) -> Tensor:
        """(C,) folded energy over all energy, all frequencies up to the largest weighing the same: white noise.

        Rings of the frequency plane grow with frequency, so gratings are weighted with theirs.
        """
        weight = self.frequency[:, None, None]
        return (self.power * self.is_folded * weight).sum((1, 2, 3)) / (self.power * weight).sum((1, 2, 3))

    def table(self) -> pd.DataFrame:
        """One row per filter: the grating it answers to most (c/px, degrees), how much, and its folded share."""
        import pandas as pd

        before = self.before
        best = before.flatten(1).argmax(1)
        f, o = best // len(self.orientation), best % len(self.orientation)
        rows = torch.arange(len(before))
        return pd.DataFrame(
            {
                "channel": self.channels, "frequency": self.frequency[f], "orientation": self.orientation[o],
                "response": before[rows, f, o], "is_folded": self.is_folded[f, o, 0], "share": self.share,
            }
        )  # fmt: skip


@torch.no_grad()
def grating_response(
    model: VisionModel,
    layer: str,
    channels: Sequence[int] | Tensor | None = None,
    *,
    frequencies: Sequence[float] | Tensor | None = None,
    orientations: Sequence[float] | Tensor | None = None,
    phases: int = 16,
    contrast: float = 1.0,
    colour: Sequence[float] = (1.0, 1.0, 1.0),
) -> GratingResponse:
    """Show every grating, drifting through one period, to one unit of each feature map.

    One unit is enough. Its neighbour n places on sees the picture shifted by n s pixels, and a shifted grating is
    the same grating with its phase moved on by 2 pi f s n. So what the map shows over space is the unit's answer
    over phase, g(phase + 2 pi f s n), whatever non-linearities lie before it; the h-th harmonic of g over phase
    is a wave of frequency h f over the map, which its grid shows at `fold` (h f, s). A linear layer has only
    h = 1; rectification and maxima add the others.

    Args:
        layer: a layer with feature maps.
        channels: feature maps; None for all.
        frequencies: cycles per pixel; None for 1/48 to 1/2 in 24 steps.
        orientations: degrees; None for 0 to 165 in steps of 15.
        phases: steps of one period; harmonics below half as many are told apart.
        contrast, colour: of the gratings, as for `gratings`.

    Raises LayerError for an unknown layer or channel, and for layers whose units see the whole picture.
    """
    window = receptive_field(model, layer)
    spacing = (window.rows.stride, window.columns.stride)
    if 0 in spacing:
        raise LayerError(
            f"units of {layer!r} see the whole picture, or have no even grid: there is no place at which they could "
            f"follow a grating. Take a convolutional layer: {', '.join(model.conv_layers)}"
        )
    if not isinstance(phases, int) or phases < 4:
        raise ZfkitError(f"phases must be a whole number of at least 4, not {phases!r}")
    f = _float64([i / 48 for i in range(1, 25)] if frequencies is None else frequencies).flatten()
    o = _float64([15.0 * i for i in range(12)] if orientations is None else orientations).flatten()
    if not len(f) or not len(o) or not torch.isfinite(f).all() or f.min() < 0 or not torch.isfinite(o).all():
        raise ZfkitError(
            "frequencies (from 0 on, in cycles/px) and orientations (degrees) must be finite numbers"
        )
    # The first unit whose receptive field does not stick out of the picture sees no padding on any map before.
    (row, height), (col, width) = (_first_inside(i) for i in (window.rows, window.columns))
    phase = torch.arange(phases, dtype=torch.float64) * (2 * math.pi / phases)
    grid = [t.flatten() for t in torch.meshgrid(f, o, phase, indexing="ij")]
    answers = []
    for part in torch.arange(len(grid[0])).split(max(1, 2**21 // (height * width))):
        pictures = gratings(
            *(t[part] for t in grid),
            size=(height, width),
            contrast=contrast,
            colour=colour,
            dtype=torch.float64,
        )
        *_, (_, _, maps) = model.network.walk(_as_input(model, pictures), [layer])
        answers.append(maps[:, :, row, col].double().cpu())
    g = torch.cat(answers).view(len(f), len(o), phases, -1)  # over phase, for every map
    chosen = _chosen(channels, g.shape[-1], layer)
    c = torch.fft.rfft(g[..., chosen], dim=2).movedim(3, 0) / phases  # (C, F, O, phases // 2 + 1)
    c[..., 1 : (phases + 1) // 2] *= 2  # with their counterparts of negative frequency
    return GratingResponse(model.name, layer, chosen, spacing, f, o, c[..., : (phases + 1) // 2])


def _first_inside(i: Interval) -> tuple[int, int]:
    """The first unit whose receptive field begins inside the picture, and the side that its field then needs."""
    unit = max(0, -(i.low // i.stride))
    return unit, unit * i.stride + i.high + 1


def _chosen(channels: Sequence[int] | Tensor | None, count: int, layer: str) -> Tensor:
    if channels is None:
        return torch.arange(count)
    chosen = torch.as_tensor(channels)
    if chosen.dim() != 1 or chosen.is_floating_point() or not ((chosen >= 0) & (chosen < count)).all():
        raise LayerError(
            f"channels must be a list of feature maps, 0 to {count - 1} of {layer!r}, not {channels!r}"
        )
    return chosen.long()


# --------------------------------------------------------------------------------------- consistency under shifts


@dataclass(frozen=True, eq=False)
class ShiftConsistency:
    """What changes when the picture moves by a few pixels; made by `shift_consistency`.

    Attributes:
        model: whose.
        layers: names, in order.
        spacing: pixels between neighbouring units of each layer; 0 where units see the whole picture.
        inside: for each layer, are there units whose receptive fields lie inside the window? Then only these are
            compared. Otherwise padding, which does not move with the picture, holds the features in place, and
            they are compared in place, as those of fully connected layers are.
        shifts: (D,) int64, pixels, from 0.
        distance: (L, 2, D) float64, relative feature distance, for shifts down and to the right.
        agreement: (2, D, N) float64, how often picture n keeps its class; NaN where there are no classes.
        probability: (2, D, N) float64, mean |change| of the probability of the class before the shift.
        circular: were pictures rolled round instead of cut out of larger ones?
    """

    model: str
    layers: tuple[str, ...]
    spacing: tuple[int, ...]
    inside: tuple[bool, ...]
    shifts: Tensor
    distance: Tensor
    agreement: Tensor
    probability: Tensor
    circular: bool = field(default=False)

    def consistency(self) -> Tensor:
        """(D,) share of pictures whose class stays, mean over both directions."""
        return self.agreement.mean((0, 2))

    def interval(self, level: float = 0.95, seed: int = 0) -> Tensor:
        """(D, 2): interval of `consistency`; bootstrap over pictures, 2000 draws."""
        means = _resampled(self.agreement.mean(0).T, seed) / self.agreement.shape[2]  # (draws, D)
        if not 0 < level < 1:
            raise ZfkitError(f"level must lie between 0 and 1, not {level}")
        ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=means.dtype)
        return torch.quantile(means, ends, dim=0).T

    def table(self) -> pd.DataFrame:
        """One row per shift, both directions together: class agreement, change of probability, then every layer."""
        import pandas as pd

        columns = {"agreement": self.consistency(), "probability": self.probability.mean((0, 2))}
        columns |= dict(zip(self.layers, self.distance.mean(1), strict=True))
        return pd.DataFrame(columns, index=pd.Index(self.shifts.tolist(), name="shift"))


@torch.no_grad()
def shift_consistency(
    model: VisionModel,
    images: ImageSet | Tensor,
    shifts: int = 8,
    *,
    layers: Sequence[str] | None = None,
    window: int | None = None,
    circular: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> ShiftConsistency:
    """Feature distance and class agreement under shifts of 0 to `shifts` pixels, down and to the right.

    Windows are cut out of larger pictures, so that what comes in at a border is the picture's own. A unit
    `s` pixels from its neighbour sees after a shift by d what the unit d / s places on saw before, so features are
    compared after moving the map by k = floor(d / s + 1/2) places. With f the layer and T_d the shift,

        distance(d) = mean of |T_k f(x) - f(T_d x)| / mean of |f(x) - f(y)|,   |.| root mean square over units,

    over pictures x and other pictures y: 0 for a layer that moves with its input, 1 where a shift changes as much
    as another picture would. Subsampling makes the distance swing with period s: 0 at multiples of s, most in
    between. Only units that see no border are compared; where there are none (deep layers in small windows, fully
    connected ones), all are, with k = 0. Class agreement is how often the strongest output stays (Azulay & Weiss
    2018; Zhang 2019 calls it consistency).

    Args:
        images: an `ImageSet`, or uint8 (N, 3, H, W), of at least two pictures. Without `circular`, larger than
            `window` by `shifts` px; where they are larger still, every start that leaves room is averaged over.
        layers: None for convolutional and fully connected ones.
        window: side in px; None for the model's input size. With another, only layers before the first fully
            connected one can be asked, and there is no class agreement.
        circular: roll windows of the whole picture round instead. That invents an edge.
        seed: of the other pictures y.

    Raises ZfkitError for pictures without room for the shifts, and LayerError for an unknown layer.
    """
    if not isinstance(shifts, int) or shifts < 1:
        raise ZfkitError(f"shifts must be a whole number of pixels, at least 1, not {shifts!r}")
    if len(images) < 2:
        raise ZfkitError("distances are measured against those between pictures: at least two are needed")
    side = model.input_size if window is None else window
    names, classes = _layers_to_compare(model, layers, side)
    height, width = _take(images, [0]).shape[2:]
    need = side if circular else side + shifts
    if min(height, width) < need or side < 1:
        raise ZfkitError(
            f"pictures of {width} x {height} px have no room for windows of {side} px"
            + ("" if circular else f" that shift by {shifts} px")
            + f"; take pictures of {need} px, as load_images(..., size={need}) gives them"
        )
    fields = [receptive_field(model, name) for name in names]
    spacing = tuple(f.stride if f.stride == f.columns.stride else 0 for f in fields)
    compare = [
        _Comparison(name, s, _inside(f.rows, side), _inside(f.columns, side))
        for name, s, f in zip(names, spacing, fields, strict=True)
    ]
    N, D, L = len(images), shifts + 1, len(names)
    distance = torch.zeros(L, 2, D, dtype=torch.float64)
    agreement = torch.full((2, D, N), math.nan, dtype=torch.float64)
    probability = agreement.clone()
    if classes:
        agreement[:], probability[:] = 0, 0
    at_once = max(1, min(32, 2**18 // side**2))
    last = 0 if circular else min(height, width) - side - shifts  # of the starts

    def features(pictures: Tensor, axis: int, start: int) -> tuple[list[Tensor], Tensor | None]:
        if circular:
            cut = pictures[:, :, :side, :side].roll(-start, 2 + axis)
        else:
            across = (pictures.shape[3 - axis] - side) // 2
            top, left = (start, across) if axis == 0 else (across, start)
            cut = pictures[:, :, top : top + side, left : left + side]
        return _outputs(model, cut, names, classes)

    chunks = torch.arange(N).split(at_once)
    total = 2 * N * (last + D)
    with tqdm(total=total, desc="shifting", unit="img", disable=not progress, leave=False) as bar:
        for chunk in chunks:
            pictures = _take(images, chunk)
            for axis in (0, 1):
                anchors: dict[int, tuple[list[Tensor], Tensor | None]] = {}
                for start in range(last + D):
                    now = features(pictures, axis, start)
                    if start <= last:
                        anchors[start] = now
                    anchors.pop(start - D, None)
                    for anchor, before in anchors.items():
                        d = start - anchor
                        for i, how in enumerate(compare):
                            distance[i, axis, d] += how.shifted(before[0][i], now[0][i], axis, d).sum() / (
                                last + 1
                            )
                        if before[1] is not None and now[1] is not None:
                            same, change = _classes_compared(before[1], now[1])
                            agreement[axis, d, chunk] += same / (last + 1)
                            probability[axis, d, chunk] += change / (last + 1)
                    bar.update(len(chunk))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    apart = torch.zeros(L, 1, 1, dtype=torch.float64)
    for chunk in chunks:
        x, y = (features(_take(images, o[chunk]), 0, 0)[0] for o in (order, order.roll(1)))
        apart += torch.stack(
            [how.shifted(a, b, 0, 0).sum() for how, a, b in zip(compare, x, y, strict=True)]
        )[:, None, None]
    return ShiftConsistency(
        model.name, tuple(names), spacing, tuple(c.rows is not None and c.columns is not None for c in compare),
        torch.arange(D), distance / apart, agreement, probability, circular,
    )  # fmt: skip


def _layers_to_compare(
    model: VisionModel, layers: Sequence[str] | None, side: int
) -> tuple[list[str], str | None]:
    """Names of the layers, and of the one that gives the classes, if it can be run."""
    steps = model.network.steps
    flat = [n for n in model.layers if isinstance(steps[n].module, nn.Linear)]
    whole = side == model.input_size
    if layers is None:
        names = [*model.conv_layers, *(flat if whole else [])]
    else:
        names = [layers] if isinstance(layers, str) else list(layers)
        if not names:
            raise LayerError("layers must name at least one layer")
        for name in names:
            model.network.find(name)
    return names, (flat[-1] if flat and whole else None)


def _take(images: ImageSet | Tensor, index: Sequence[int] | Tensor) -> Tensor:
    return images.take(index) if isinstance(images, ImageSet) else images[index]


def _outputs(
    model: VisionModel, pictures: Tensor, names: Sequence[str], classes: str | None
) -> tuple[list[Tensor], Tensor | None]:
    found = {}
    wanted = [*names, *([classes] if classes else [])]
    try:
        for step, _, y in model.network.walk(model.preprocess(pictures), wanted):
            if step.name in wanted:
                found[step.name] = y.clone()  # a ReLU may follow in place
    except RuntimeError as error:
        raise LayerError(
            f"{model.name} cannot run to {', '.join(wanted)} on windows of {pictures.shape[-1]} px "
            f"({str(error).splitlines()[0]}); take layers before the first fully connected one"
        ) from error
    return [found[name] for name in names], found[classes].softmax(1) if classes else None


def _classes_compared(before: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    best = before.argmax(1)
    rows = torch.arange(len(before), device=before.device)
    change = (now[rows, best] - before[rows, best]).abs()
    return (now.argmax(1) == best).double().cpu(), change.double().cpu()


@dataclass(frozen=True)
class _Comparison:
    """How the maps of one layer before and after a shift are compared."""

    name: str
    spacing: int
    rows: tuple[int, int] | None  # first and last unit that sees no border; None where there are none
    columns: tuple[int, int] | None

    def shifted(self, before: Tensor, now: Tensor, axis: int, d: int) -> Tensor:
        """Root mean square over units of the difference, (N,) float64, after moving `before` by d px."""
        if self.rows is not None and self.columns is not None:
            (top, bottom), (left, right) = self.rows, self.columns
            before, now = (t[:, :, top : bottom + 1, left : right + 1] for t in (before, now))
            k = math.floor(d / self.spacing + 0.5)
            length = before.shape[2 + axis] - k
            if length < 1:  # moved out of the window
                return torch.full((len(before),), math.nan, dtype=torch.float64)
            before, now = before.narrow(2 + axis, k, length), now.narrow(2 + axis, 0, length)
        return (now - before).double().flatten(1).square().mean(1).sqrt().cpu()


def _inside(i: Interval, side: int) -> tuple[int, int] | None:
    """First and last unit whose receptive field lies inside a picture, if there are at least two."""
    if not i.stride:
        return None
    first, last = -(i.low // i.stride), (side - 1 - i.high) // i.stride
    return (first, last) if last > first else None
