"""Gratings, and what a layer's stride makes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..batching import Portions
from ..checks import channel_list, number, pair, whole_number
from ..deconv.receptive_field import Interval, receptive_field
from ..errors import LayerError, ZfkitError
from ..nets.model import VisionModel
from ..results import Result

if TYPE_CHECKING:
    import pandas as pd

Numbers = float | Sequence[float] | Tensor
BINS = 12  # of `GratingResponse.arrivals`


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
    number(contrast, "contrast", 0, 1)
    swing = _float64(colour)
    if swing.shape != (3,) or swing.abs().max() > 1:
        raise ZfkitError(f"colour must be three numbers from -1 to 1 (red, green, blue), not {colour!r}")
    height, width = (whole_number(side, "size, in pixels,") for side in pair(size))
    fx, fy = wave(frequency, orientation)
    fx, fy, start = (t.flatten()[:, None, None] for t in torch.broadcast_tensors(fx, fy, _float64(phase)))
    y, x = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
    swings = torch.cos(2 * math.pi * (fx * x + fy * y) + start)  # (N, H, W)
    pictures = 127.5 * (1 + contrast * swing[:, None, None] * swings[:, None])
    return pictures.round().to(dtype) if dtype == torch.uint8 else pictures.to(dtype)


def fold(frequency: Numbers, stride: float) -> Tensor:
    """Where a frequency arrives that is read at every `stride`-th place: ((f + 1/(2s)) mod 1/s) - 1/(2s).

    Cycles per place of the map that is read, in and out, from -1/(2s) to below 1/(2s); float64. Frequencies
    that differ by a multiple of 1/s look the same there (sampling theorem).

    >>> fold(0.4, 2)  # seen as a tenth of a cycle, going the other way
    tensor(-0.1000, dtype=torch.float64)
    """
    band = 1 / stride
    return torch.remainder(_float64(frequency) + band / 2, band) - band / 2


@dataclass(frozen=True, eq=False)
class GratingResponse(Result, figure="gratings_figure"):
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

    def arrivals(self, picked: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        """Energy by the frequency at which the map shows it, for white light: rings weigh as their size.

        The mean over the `picked` filters. Returns edges (13,) in c/px, and the energy between them at the
        gratings' own frequencies and at wrong ones, (12,) each.
        """
        energy = self.power[picked].mean(0) * self.frequency[:, None, None]  # (F, O, H)
        fx, fy = self._harmonics()
        seen = torch.hypot(fold(fx, self.spacing[1]), fold(fy, self.spacing[0]))
        edges = torch.linspace(0, 0.5 * 2**0.5 / min(self.spacing), BINS + 1, dtype=seen.dtype)
        bin_of = torch.bucketize(seen, edges[1:-1])
        own, wrong = (torch.bincount(bin_of[m], energy[m], BINS) for m in (~self.is_folded, self.is_folded))
        return edges, own, wrong

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
    # 0, or a fraction behind a layer that enlarges maps.
    if not all(isinstance(s, int) and s for s in spacing):
        raise LayerError(
            f"units of {layer!r} see the whole picture, or lie on no grid of whole pixels: take one of "
            f"{', '.join(model.conv_layers)}"
        )
    whole_number(phases, "phases", low=4)
    f = _float64([i / 48 for i in range(1, 25)] if frequencies is None else frequencies).flatten()
    o = _float64([15.0 * i for i in range(12)] if orientations is None else orientations).flatten()
    if not len(f) or not len(o) or not torch.isfinite(f).all() or f.min() < 0 or not torch.isfinite(o).all():
        raise ZfkitError("frequencies (from 0 on, in cycles/px) and orientations (degrees) must be numbers")
    # The first unit whose receptive field does not stick out of the picture sees no padding on any map before.
    (row, height), (col, width) = (_first_inside(i) for i in (window.rows, window.columns))
    phase = torch.arange(phases, dtype=torch.float64) * (2 * math.pi / phases)
    grid = [t.flatten() for t in torch.meshgrid(f, o, phase, indexing="ij")]
    portions = Portions(f"gratings through {model.name}", max(1, 2**21 // (height * width)), "gratings")
    answers = []
    for part in portions.of(len(grid[0])):
        with portions.attempt():
            pictures = gratings(
                *(t[part] for t in grid), size=(height, width), contrast=contrast, colour=colour, dtype=torch.float64
            )  # fmt: skip
            *_, (_, _, maps) = model.network.walk(model.normalise(pictures), [layer])
            answers.append(maps[:, :, row, col].double().cpu())
    g = torch.cat(answers).view(len(f), len(o), phases, -1)  # over phase, for every map
    chosen = channel_list(channels, g.shape[-1], layer)
    c = torch.fft.rfft(g[..., chosen], dim=2).movedim(3, 0) / phases  # (C, F, O, phases // 2 + 1)
    c[..., 1 : (phases + 1) // 2] *= 2  # with their counterparts of negative frequency
    return GratingResponse(model.name, layer, chosen, spacing, f, o, c[..., : (phases + 1) // 2])


def _first_inside(i: Interval) -> tuple[int, int]:
    """The first unit whose receptive field begins inside the picture, and the side that its field then needs."""
    unit = max(0, -(i.low // i.stride))
    return unit, unit * i.stride + i.high + 1


def _float64(value: Numbers) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)
