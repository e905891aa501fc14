"""How much the answers and features change when the picture moves by a few pixels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..batching import steps
from ..checks import in_px, layer_names, square_side, whole_number
from ..deconv.receptive_field import Interval, receptive_field
from ..errors import ZfkitError
from ..images.imageset import as_set
from ..nets.activations import activations
from ..nets.model import VisionModel, expect_model
from ..results import Result
from .intervals import bootstrap_sums, interval

if TYPE_CHECKING:
    import pandas as pd


STARTS = 16  # of windows in larger pictures, at most


@dataclass(frozen=True, eq=False)
class ShiftConsistency(Result, figure="shift_figure"):
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
    spacing: tuple[int | Fraction, ...]
    inside: tuple[bool, ...]
    shifts: Tensor
    distance: Tensor
    agreement: Tensor
    probability: Tensor
    circular: bool = field(default=False)

    def consistency(self) -> Tensor:
        """(D,) share of pictures whose class stays, mean over both directions."""
        return self.agreement.mean((0, 2))

    def interval(self, level: float = 0.95, random_seed: int = 0) -> Tensor:
        """(D, 2): interval of `consistency`; bootstrap over pictures, 2000 draws."""
        kept = self.agreement.mean(0)  # (D, N)
        return interval(bootstrap_sums(kept.T, random_seed) / kept.shape[1], level).T

    def table(self) -> pd.DataFrame:
        """One row per shift, both directions together: class agreement with its 95 % interval, change of probability,
        then every layer.
        """
        import pandas as pd

        low, high = self.interval().T
        columns = {"agreement": self.consistency(), "agreement_low": low, "agreement_high": high}
        columns["probability"] = self.probability.mean((0, 2))
        columns |= dict(zip(self.layers, self.distance.mean(1), strict=True))
        return pd.DataFrame(columns, index=pd.Index(self.shifts.tolist(), name="shift"))


@torch.no_grad()
def shift_consistency(
    model: VisionModel,
    images: Any,
    shifts: int = 8,
    *,
    layers: Sequence[str] | None = None,
    window: int | None = None,
    circular: bool = False,
    limit: int | None = 100,
    random_seed: int = 0,
    progress: bool = True,
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
        images: at least two, a set or what `ImageSet.of` makes one of. Without `circular`, larger than
            `window` by `shifts` px; where they are larger still, up to 16 neighbouring starts in their middle are
            averaged over: a whole period of any stride up to that.
        layers: None for convolutional and fully connected ones.
        window: side in px; None for the model's input size. With another, only layers before the first fully
            connected one can be asked, and there is no class agreement.
        circular: roll windows of the whole picture round instead. That invents an edge.
        limit: so many of the pictures, evenly spread over them; None for all. `interval` says what that leaves open.
        random_seed: of the other pictures y.

    Raises ZfkitError for pictures without room for the shifts, and LayerError for an unknown layer.
    """
    expect_model(model)
    whole_number(shifts, "shifts, in pixels,")
    side = square_side(model.input_size, "windows are squares") if window is None else window
    whole_number(side, "window, in pixels,")
    images = as_set(images, side + shifts, progress)
    if len(images) < 2:
        raise ZfkitError("distances are measured against those between pictures: at least two are needed")
    names, classes = _layers_to_compare(model, layers, side)
    compare = [_Comparison.of(model, name, side) for name in names]
    height, width = images.take([0]).shape[2:]
    need = side if circular else side + shifts
    if min(height, width) < need:
        raise ZfkitError(
            f"pictures of {in_px((height, width))} have no room for windows of {side} px"
            + ("" if circular else f" that shift by {shifts} px")
            + f"; take pictures of {need} px, as load_images(..., size={need}) gives them"
        )
    N = len(images) if limit is None else min(len(images), whole_number(limit, "limit, in pictures,", 2))
    places, D = torch.linspace(0, len(images) - 1, N).round().long(), shifts + 1
    room = 1 if circular else min(height, width) - need + 1  # places that leave room for all shifts
    starts = min(room, STARTS)
    first = (room - starts) // 2
    distance = torch.zeros(len(names), 2, D, dtype=torch.float64)
    agreement = torch.full((2, D, N), math.nan if classes is None else 0.0, dtype=torch.float64)
    probability = agreement.clone()

    def outputs(pictures: Tensor, axis: int, start: int) -> dict[str, Tensor]:
        window = _window(pictures, side, axis, start, circular)
        layers = [*names, classes] if classes else names
        # Copies: a ReLU may follow in place.
        return {name: y.clone() for name, y in activations(model, window, layers)}

    chunks = torch.arange(N).split(max(1, min(32, 2**18 // side**2)))
    shorter = "fewer pictures (limit=50), shifts or layers take less"
    with steps(2 * N * (starts + shifts), "shifting", progress=progress, shorter=shorter) as done:
        for chunk, axis in itertools.product(chunks, (0, 1)):
            pictures = images.take(places[chunk])
            anchors: dict[int, dict[str, Tensor]] = {}  # outputs at starts that may still be shifted from
            for start in range(starts + shifts):
                now = outputs(pictures, axis, first + start)
                if start < starts:
                    anchors[start] = now
                anchors.pop(start - D, None)
                for anchor, before in anchors.items():
                    d = start - anchor
                    for i, layer in enumerate(compare):
                        apart = layer.shifted(before[layer.name], now[layer.name], axis, d)
                        distance[i, axis, d] += apart.sum() / starts
                    if classes:
                        same, change = _classes_compared(before[classes], now[classes])
                        agreement[axis, d, chunk] += same / starts
                        probability[axis, d, chunk] += change / starts
                done(len(chunk))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(random_seed))
    between = torch.zeros(len(names), 1, 1, dtype=torch.float64)  # summed distance to another picture
    for chunk in chunks:
        x, y = (outputs(images.take(places[o[chunk]]), 0, first) for o in (order, order.roll(1)))
        for i, layer in enumerate(compare):
            between[i] += layer.shifted(x[layer.name], y[layer.name], 0, 0).sum()
    return ShiftConsistency(
        model.name, tuple(names), tuple(c.spacing for c in compare), tuple(c.units is not None for c in compare),
        torch.arange(D), distance / between, agreement, probability, circular,
    )  # fmt: skip


def _layers_to_compare(
    model: VisionModel, layers: Sequence[str] | None, side: int
) -> tuple[list[str], str | None]:
    """Names of the layers, and of the one that gives the classes, if it can be run."""
    flat = [n for n in model.layers if isinstance(model.network.steps[n].module, nn.Linear)]
    if side != model.input_size:  # fully connected layers take pictures of one size only
        flat = []
    names = layer_names(layers, model.layers, default=[*model.conv_layers, *flat])
    return names, flat[-1] if flat else None


def _window(pictures: Tensor, side: int, axis: int, start: int, circular: bool) -> Tensor:
    """(N, 3, side, side), from row (axis 0) or column (axis 1) `start` on, in the middle of the other axis."""
    if circular:
        return pictures[:, :, :side, :side].roll(-start, 2 + axis)
    middle = (pictures.shape[3 - axis] - side) // 2
    return pictures.narrow(2 + axis, start, side).narrow(3 - axis, middle, side)


def _classes_compared(before: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    """Of outputs (N, classes): (N,) is the class the same, and |change| of the probability of the class before."""
    before, now = before.softmax(1), now.softmax(1)
    best = before.argmax(1, keepdim=True)
    change = (now.gather(1, best) - before.gather(1, best)).abs()[:, 0]
    return (now.argmax(1) == best[:, 0]).double().cpu(), change.double().cpu()


@dataclass(frozen=True)
class _Comparison:
    """How the outputs of one layer before and after a shift are compared."""

    name: str
    spacing: int | Fraction  # pixels between neighbouring units; 0 where units see the whole picture
    units: tuple[slice, slice] | None  # rows and columns of those that see no border, if there are any

    @classmethod
    def of(cls, model: VisionModel, layer: str, side: int) -> _Comparison:
        field = receptive_field(model, layer)
        rows, columns = _inside(field.rows, side), _inside(field.columns, side)
        spacing = field.stride if field.stride == field.columns.stride else 0
        return cls(layer, spacing, (rows, columns) if rows and columns and spacing else None)

    def shifted(self, before: Tensor, now: Tensor, axis: int, d: int) -> Tensor:
        """Root mean square over units of the difference, (N,) float64, after moving `before` by d px."""
        if self.units is not None:
            before, now = (t[:, :, self.units[0], self.units[1]] for t in (before, now))
            k = math.floor(d / self.spacing + 0.5)
            length = before.shape[2 + axis] - k
            if length < 1:  # moved out of the window
                return torch.full((len(before),), math.nan, dtype=torch.float64)
            before, now = before.narrow(2 + axis, k, length), now.narrow(2 + axis, 0, length)
        return (now - before).double().flatten(1).square().mean(1).sqrt().cpu()


def _inside(i: Interval, side: int) -> slice | None:
    """Units whose receptive field lies inside a picture, if there are at least two."""
    if not i.stride:
        return None
    first, last = -(i.low // i.stride), (side - 1 - i.high) // i.stride
    return slice(first, last + 1) if last > first else None
