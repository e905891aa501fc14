"""What a network takes no notice of: shifted, scaled and turned pictures (section 4, Fig. 5).

`invariance` transforms pictures step by step and measures how far the features of a low and a high layer move
away from the untransformed picture's, and what becomes of the probability of the class.

Two things besides the motion could move features. *What comes in at the border*: pictures larger than the window
that the network is shown bring real pixels with them (`margin` says how many are needed); where they end, `fill`
stands. *Resampling*: a turned picture is also slightly blurred; the control is the same picture transformed there
and back again, which leaves it in its place and resamples it twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batching import OnStep, steps
from ..checks import in_px, layer_names, one_of, square_side, uint8_rgb, whole_number
from ..errors import ImageError, LayerError, ZfkitError
from ..images.imageset import ImageSet, as_set
from ..nets.activations import features
from ..nets.model import VisionModel, expect_model
from ..results import Result
from .occlusion import Colour, TargetFrom, choose_target, last_block, probabilities, shown_colour

if TYPE_CHECKING:
    import pandas as pd

Motion = Literal["shift", "scale", "rotation"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]
Fill = Colour | Literal["edge", "reflect"]
UNITS: dict[str, str] = {"shift": "px down", "scale": "times", "rotation": "degrees"}
STILL: dict[str, float] = {"shift": 0.0, "scale": 1.0, "rotation": 0.0}  # where nothing moves


@dataclass(frozen=True)
class Invariance(Result, figure="invariance_figure"):
    """How features and answers of N pictures change under T steps of one kind of motion.

    Attributes:
        motion: "shift" (pixels down), "scale" (times) or "rotation" (degrees, counter-clockwise).
        values: (T,) float64, the steps.
        layers: the layers looked at, low to high.
        distance: by layer, (N, T): Euclidean distance of the features from the untransformed picture's.
        control: by layer, (N, T): the same for the picture moved there and back, which only resampling changes.
        different: by layer, the mean distance between features of different untransformed pictures.
        probability: (N, T), of each picture's class.
        control_probability: (N, T), the same for the picture moved there and back.
        whole_probability: (N,), the same untransformed.
        correct: (N, T) bool: is that class the most probable one?
        target: (N,) int64, the classes.
        target_from: for each picture, was its class "named", its "label", or the "model"'s own top class?
        picture: (N,) int64, places in the image set.
        invented: (T,), share of the window's pixels that lie beyond the picture, where `fill` stands.
        classes: names of the model's outputs, or empty.
        model: the model's name.
        window: side in pixels of what the network was shown.
    """

    motion: Motion
    values: Tensor
    layers: tuple[str, ...]
    distance: dict[str, Tensor]
    control: dict[str, Tensor]
    different: dict[str, float]
    probability: Tensor
    control_probability: Tensor
    whole_probability: Tensor
    correct: Tensor
    target: Tensor
    target_from: tuple[TargetFrom, ...]
    picture: Tensor
    invented: Tensor
    classes: tuple[str, ...]
    model: str
    window: int

    def normalised(self, layer: str, control: bool = False) -> Tensor:
        """(N, T): |f(x) - f(Tx)| / E|f(x) - f(y)|; 1 is as far as another picture. Layers can be compared by it.

        Raises LayerError for a layer that was not looked at.
        """
        one_of(layer, "layer among those looked at", self.layers, LayerError)
        return (self.control if control else self.distance)[layer] / self.different[layer]

    def table(self) -> pd.DataFrame:
        """Data frame: motion, value, picture, class, probability, layer, distance, normalised, control.

        A line for each picture, step and layer; `control` is normalised, too.
        """
        import pandas as pd

        N, T = self.probability.shape
        names = [self.classes[i] if self.classes else f"class {i}" for i in self.target.tolist()]
        parts = []
        for layer in self.layers:
            columns = {
                "motion": self.motion, "value": self.values.repeat(N), "picture": self.picture.repeat_interleave(T),
                "class": np.repeat(np.array(names, dtype=object), T),
                "probability": self.probability.flatten().double(), "layer": layer,
                "distance": self.distance[layer].flatten().double(),
                "normalised": self.normalised(layer).flatten().double(),
                "control": self.normalised(layer, control=True).flatten().double(),
            }  # fmt: skip
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)

    def linearity(self, layer: str) -> float:
        """How far the mean curve is a straight line from the untransformed picture on: R^2 of y = slope |value|.

        The paper calls its layer 7 "quasi-linear" for translation and scaling. 1 is a straight line. A curve
        that jumps up and then stays is worse than its own mean, and gets a negative number.
        """
        x = (self.values - STILL[self.motion]).abs()
        y = self.normalised(layer).double().mean(0)
        slope = (x * y).sum() / (x * x).sum()
        return float(1 - ((y - slope * x) ** 2).sum() / ((y - y.mean()) ** 2).sum())

    def symmetry(self, layer: str, order: int = 4, control: bool = False) -> Tensor:
        """(N,): how much nearer a picture comes to itself at whole 360/order degrees than half-way between.

        Mean normalised distance at half-way angles minus that at the whole ones (0 left out), interpolated
        between steps. For a square object and order 4 it is large; for a picture that looks equal at every
        angle, or at none, 0. `control` gives what resampling alone does: quarter turns need none.

        Raises ZfkitError unless rotations over nearly the whole circle were measured.
        """
        if self.motion != "rotation":
            raise ZfkitError(f"symmetry is of rotations, and this is a {self.motion}")
        part = 360 / whole_number(order, "order", 2)
        low, high = float(self.values.min()), float(self.values.max())
        if low > part / 2 or high < 360 - part / 2:
            raise ZfkitError(
                f"symmetry of order {order} needs angles {part / 2:g} to {360 - part / 2:g} degrees"
            )
        curves = self.normalised(layer, control).double()
        rising = self.values.argsort()
        angles = self.values[rising].numpy()
        whole, half_way = np.arange(1, order) * part, (np.arange(order) + 0.5) * part
        by_angle = [partial(np.interp, xp=angles, fp=curve) for curve in curves[:, rising].numpy()]
        return torch.tensor([at(half_way).mean() - at(whole).mean() for at in by_angle])


def default_values(motion: Motion, window: int) -> list[float]:
    """The paper's range of steps, for a window of this side in pixels.

    Shifts of -60 to 60 of 224 px, in whole pixels so that nothing is resampled, 17 of them at most; scales of 1 to
    1.8 by 0.05; rotations of 0 to 350 degrees by 10.
    """
    if motion == "scale":
        return [round(1 + 0.05 * i, 2) for i in range(17)]
    if motion == "rotation":
        return [10.0 * i for i in range(36)]
    reach = max(1, round(window * 60 / 224))
    step = math.ceil(reach / 8)
    ends = list(range(0, reach, step))
    if reach - ends[-1] > step // 2 or len(ends) == 1:
        ends.append(reach)
    ends[-1] = reach  # a last step that is not much longer than the others
    return sorted({float(sign * end) for end in ends for sign in (-1, 1)})


def margin(motion: Motion, window: int, values: Sequence[float] | None = None) -> int:
    """Pixels that a picture needs on each side of the window so that nothing has to be filled in.

    With `oversample`, that many times as many.
    """
    values = default_values(motion, window) if values is None else values
    half = (window - 1) / 2
    if motion == "shift":
        reach = max(abs(v) for v in values)
    elif motion == "scale":
        reach = max(half / v - half for v in values)
    else:
        turns = [math.radians(v) for v in values]
        reach = max(half * (abs(math.cos(t)) + abs(math.sin(t)) - 1) for t in turns)
    return max(0, math.ceil(reach - 1e-9))


def invariance(
    model: VisionModel,
    images: Any,
    motion: Motion = "shift",
    values: Sequence[float] | None = None,
    *,
    index: Sequence[int] | None = None,
    layers: str | Sequence[str] | None = None,
    targets: Sequence[int | str | None] | None = None,
    window: int | None = None,
    oversample: int = 1,
    interpolation: Interpolation = "bicubic",
    fill: Fill = None,
    batch_size: int = 64,
    progress: bool = True,
    on_step: OnStep | None = None,
) -> Invariance:
    """Features and probabilities under a motion (Zeiler & Fergus, Fig. 5).

    Args:
        images: pictures at least as large as the window; what is larger comes in at the border. The network sees
            the middle of them. A set, or what `ImageSet.of` makes one of.
        motion: "shift" downwards, "scale" (magnification) or "rotation" counter-clockwise, about the centre.
        values: the steps, in pixels, times, degrees; default the paper's (`default_values`).
        index: places of the pictures; default all.
        layers: default the first and the last hidden one after their ReLU: the paper's layers 1 and 7.
        targets: for each picture its class, by place or name, or None. Default: the set's labels where its
            classes have the model's names, else the model's own top class. `Invariance.target_from` says which.
        window: side of what the network is shown, in pixels; default `model.input_size`.
        oversample: the pictures are this many times as fine as the window: they are moved as they are, and then
            each square of oversample x oversample pixels becomes one, by its mean. 2 takes most of resampling's
            own effect away, for 64 px and for pictures that have the detail.
        interpolation: between pixels: "bicubic", which blurs least, "bilinear" or "nearest". The paper does not say.
        fill: beyond the picture: RGB 0-255 or one number, "edge" (the nearest pixel) or "reflect"; default the
            model's mean, 0 to the network. The paper's examples show a plain colour.
        on_step: called after each step with (done, total) pictures; it may raise `Cancelled`.

    Transformed pictures are rounded to 0-255 as a file would be. Distances are of all of a layer's features, raw;
    `Invariance.normalised` divides by the mean distance between different pictures (of windows cut from
    photographs, those that share no pixels).

    Raises ImageError for fewer than 2 pictures or ones smaller than the window, ZfkitError for an unknown motion,
    class or values that are no motion, LayerError for a layer that the model does not have.

    >>> result = invariance(model, load_images("photos", size=100), "rotation", index=range(0, 800, 25))
    >>> result.normalised("relu7").mean(0)
    """
    expect_model(model)
    one_of(motion, "motion", get_args(Motion))
    one_of(interpolation, "interpolation", get_args(Interpolation))
    window = square_side(model.input_size, "the window is a square") if window is None else window
    whole_number(window, "window, in pixels,")
    whole_number(batch_size, "batch_size")
    whole_number(oversample, "oversample")
    values = _check_values(motion, default_values(motion, window) if values is None else values)
    first, _, last_hidden = paper_layers(model)
    layers = layer_names(layers, model.layers, [first, last_hidden])
    images = as_set(images, window * oversample, progress)
    place = _places(images, index)
    pictures = _middle(images.take(place), window * oversample)
    apart = _different_pairs(images, place)
    colour = filled(model, fill)
    how: dict[str, Any] = {"oversample": oversample, "interpolation": interpolation, "fill": colour}
    output = model.network.output

    def look(shown: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Features of the layers, each (N, F), and probabilities (N, classes)."""
        rows = features(
            model, shown, [*layers, output], lambda name, y, _: y if name == output else y.flatten(1),
            batch_size=batch_size, what=motion,
        )  # fmt: skip
        return {name: rows[name] for name in layers}, probabilities(model, rows[output])

    N, T = len(pictures), len(values)
    whole, whole_answers = look(move(pictures, motion, STILL[motion], window, **how)[0])
    target, target_from = _targets(model, images, place, targets, whole_answers)
    own = torch.arange(N)
    distance = {name: torch.empty(N, T) for name in layers}
    control = {name: torch.empty(N, T) for name in layers}
    probability, control_probability = torch.empty(N, T), torch.empty(N, T)
    correct, invented = torch.empty(N, T, dtype=torch.bool), torch.empty(T)
    with steps(2 * N * T, motion, "img", progress, on_step) as done:
        for t, value in enumerate(values):
            moved, invented[t] = move(pictures, motion, value, window, **how)
            there, answers = look(moved)
            back, back_answers = look(there_and_back(pictures, motion, value, window, **how))
            for name in layers:
                distance[name][:, t] = (there[name] - whole[name]).norm(dim=1)
                control[name][:, t] = (back[name] - whole[name]).norm(dim=1)
            probability[:, t], control_probability[:, t] = answers[own, target], back_answers[own, target]
            correct[:, t] = answers.argmax(1) == target
            done(2 * N)
    different = {}
    for name, rows in whole.items():
        # Not by matrix products, which lose the digits of small distances.
        between = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist")
        different[name] = float(between[apart].mean())
    return Invariance(
        motion=motion, values=torch.tensor(values, dtype=torch.float64), layers=tuple(layers), distance=distance,
        control=control, different=different, probability=probability,
        control_probability=control_probability, whole_probability=whole_answers[own, target],
        correct=correct, target=target, target_from=target_from, picture=place, invented=invented,
        classes=model.classes, model=model.name, window=window,
    )  # fmt: skip


def paper_layers(model: VisionModel) -> tuple[str, str, str]:
    """The layers in the places of the paper's 1, 5 and 7, each after its ReLU where it has one.

    That is the first layer, the last convolutional one (or the output of the last block, `last_block`), and the last
    before the classes (in a network without ReLUs as modules, the last layer but one).
    """
    steps, leaves = model.network.steps, model.network.leaves
    idle = nn.Dropout | nn.Dropout2d | nn.Flatten | nn.Identity | nn.Softmax | nn.LogSoftmax
    active = [name for name in leaves if not isinstance(steps[name].module, idle)]
    rectified = [name for name in active if isinstance(steps[name].module, nn.ReLU)]
    fifth = last_block(model)
    after = leaves.index(fifth) + 1 if fifth in leaves else len(leaves)
    if after < len(leaves) and leaves[after] in rectified:
        fifth = leaves[after]
    return (rectified or active)[0], fifth, (active[-2:] or active)[0]


# ------------------------------------------------------------------------------------------ moving pictures


def filled(model: VisionModel, fill: Fill) -> Sequence[float] | str:
    """`fill` as `move` takes it. Raises ImageError for another word or no colour."""
    if isinstance(fill, str):
        return one_of(fill, "fill", ["edge", "reflect"], ImageError)
    return shown_colour(model, fill)


def move(
    pictures: Tensor,
    motion: Motion,
    value: float,
    window: int,
    *,
    oversample: int = 1,
    interpolation: Interpolation = "bicubic",
    fill: Sequence[float] | str = (128, 128, 128),
) -> tuple[Tensor, float]:
    """The middle of uint8 pictures (N, 3, H, W) after a motion, (N, 3, window, window), and the share filled in.

    Shifts by whole pixels, quarter turns and no motion at all only copy pixels. Arguments as for `invariance`.
    """
    far = value * oversample if motion == "shift" else value
    pixels, beyond = _sample(pictures.double(), motion, far, window * oversample, interpolation, fill)
    return _as_file(F.avg_pool2d(pixels, oversample)), beyond


def there_and_back(
    pictures: Tensor,
    motion: Motion,
    value: float,
    window: int,
    *,
    oversample: int = 1,
    interpolation: Interpolation = "bicubic",
    fill: Sequence[float] | str = (128, 128, 128),
) -> Tensor:
    """Pictures moved as by `move` and back again: in their place, resampled twice; (N, 3, window, window)."""
    far = value * oversample if motion == "shift" else value
    inverse = 1 / value if motion == "scale" else -far
    side = window * oversample
    # What the way back reads: the corners of a turned square reach out by (sqrt(2) - 1) / 2 of its side.
    reach = {"shift": abs(far), "scale": side * max(value - 1, 0) / 2, "rotation": 0.21 * side}[motion]
    between = side + 2 * (math.ceil(reach) + 2)  # even more, so that the centre stays between the same pixels
    moved, _ = _sample(pictures.double(), motion, far, between, interpolation, fill)
    back, _ = _sample(moved, motion, inverse, side, interpolation, fill)
    return _as_file(F.avg_pool2d(back, oversample))


def _as_file(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def _sample(
    pictures: Tensor,
    motion: Motion,
    value: float,
    window: int,
    interpolation: Interpolation,
    fill: Sequence[float] | str,
) -> tuple[Tensor, float]:
    """float64 pictures (N, 3, H, W) read where each pixel of the moved window comes from."""
    N, _, H, W = pictures.shape
    middle = (window - 1) / 2
    offset = torch.arange(window, dtype=torch.float64) - middle
    down, right = torch.meshgrid(offset, offset, indexing="ij")
    if motion == "shift":
        down = down - value
    elif motion == "scale":
        down, right = down / value, right / value
    else:
        # Rows count downwards: a picture turned counter-clockwise by a shows at (x, y) what was at (x, y) turned by -a.
        cosine, sine = math.cos(math.radians(value)), math.sin(math.radians(value))
        if value % 90 == 0:
            cosine, sine = round(cosine), round(sine)
        down, right = cosine * down + sine * right, cosine * right - sine * down
    rows, columns = down + (H - window) // 2 + middle, right + (W - window) // 2 + middle
    # Rounding leaves 1e-14 of a pixel, which would count as lying outside.
    rows, columns = (v.mul(2**30).round().div(2**30) for v in (rows, columns))
    inside = (rows >= 0) & (rows <= H - 1) & (columns >= 0) & (columns <= W - 1)
    grid = torch.stack([(2 * columns + 1) / W - 1, (2 * rows + 1) / H - 1], -1)[None].to(pictures.device)
    padding = "reflection" if fill == "reflect" else "border"
    pixels = F.grid_sample(
        pictures, grid.expand(N, -1, -1, -1), mode=interpolation, padding_mode=padding, align_corners=False
    )
    # Likewise: means of copied pixels may lie half-way between two numbers.
    pixels = pixels.mul(2**20).round().div(2**20)
    if not isinstance(fill, str):
        colour = torch.tensor(list(fill), dtype=torch.float64, device=pictures.device)[:, None, None]
        pixels = torch.where(inside.to(pictures.device), pixels, colour)
    return pixels, float((~inside).double().mean())


# ------------------------------------------------------------------------------------------------ arguments


def _check_values(motion: Motion, values: Sequence[float]) -> list[float]:
    try:
        numbers = [float(v) for v in values]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or not all(math.isfinite(v) for v in numbers):
        raise ZfkitError(f"values must be a list of finite numbers ({UNITS[motion]}), not {values!r:.80}")
    if motion == "scale" and min(numbers) < 1:
        raise ZfkitError(
            f"scale {min(numbers):g} would shrink the picture, which takes a filter against aliasing: scales from 1 on"
        )
    return numbers


def _places(images: ImageSet, index: Sequence[int] | None) -> Tensor:
    """(N,) int64, which pictures to look at."""
    count = len(images)
    place = torch.arange(count) if index is None else torch.as_tensor(list(index), dtype=torch.long)
    if len(place) < 2:
        raise ImageError(
            f"at least 2 pictures are needed, for the distance between different ones; there are {len(place)}"
        )
    if len(place.unique()) < len(place) or not ((place >= 0) & (place < count)).all():
        raise ImageError(f"index must name different pictures, 0 to {count - 1}, not {place.tolist()}")
    return place


def _middle(pictures: Tensor, window: int) -> Tensor:
    """Pictures (N, 3, H, W) with at most a row and a column less, so that their middle is that of the window."""
    H, W = uint8_rgb(pictures).shape[2:]
    if min(H, W) < window:
        raise ImageError(
            f"pictures of {in_px((H, W))} are smaller than the window of {window} px: load them larger"
        )
    return pictures[:, :, : H - (H - window) % 2, : W - (W - window) % 2]


def _targets(
    model: VisionModel,
    images: ImageSet,
    place: Tensor,
    targets: Sequence[int | str | None] | None,
    answers: Tensor,
) -> tuple[Tensor, tuple[TargetFrom, ...]]:
    """Each picture's class (N,), and where it comes from."""
    origin: TargetFrom = "named"
    if targets is None:
        origin = "label"
        targets = [None] * len(place)
        if images.classes:
            labels = [images[i][1] for i in place.tolist()]
            names = [images.classes[i] if 0 <= i < len(images.classes) else "" for i in labels]
            targets = [name if name in model.classes else None for name in names]
    if isinstance(targets, str) or len(targets) != len(place):
        raise ZfkitError(f"targets must name a class for each of {len(place)} pictures, not {targets!r:.60}")
    chosen = [choose_target(model, t, a) for t, a in zip(targets, answers, strict=True)]
    return torch.tensor([i for i, _ in chosen]), tuple("model" if o == "model" else origin for _, o in chosen)


def _different_pairs(images: ImageSet, place: Tensor) -> Tensor:
    """(N, N) bool: pairs of different pictures, and of windows those that share no pixels; each pair once.

    Raises ImageError where there is none.
    """
    apart = torch.ones(len(place), len(place), dtype=torch.bool).triu(1)
    if images.windows is not None:
        apart &= ~images.windows.overlap(place)
    if not apart.any():
        raise ImageError("all of these pictures are overlapping windows of one photograph: take others")
    return apart
