"""How much the answers and features change when the picture moves by a few pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..deconv.receptive_field import Interval, receptive_field
from ..errors import LayerError, ZfkitError
from ..images.imageset import ImageSet
from ..nets.model import VisionModel
from .aliasing import _resampled

if TYPE_CHECKING:
    import pandas as pd


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
