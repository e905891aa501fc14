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
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import ImageError, LayerError, ZfkitError, unknown
from ..images.imageset import ImageSet
from ..nets.activations import cannot_run
from ..nets.model import VisionModel
from .occlusion import Colour, TargetFrom, choose_target, probabilities

if TYPE_CHECKING:
    import pandas as pd

Motion = Literal["shift", "scale", "rotation"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]
UNITS: dict[str, str] = {"shift": "px down", "scale": "times", "rotation": "degrees"}
STILL: dict[str, float] = {"shift": 0.0, "scale": 1.0, "rotation": 0.0}  # where nothing moves


@dataclass(frozen=True)
class Invariance:
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
        if layer not in self.distance:
            raise LayerError(f"layer {layer!r} was not looked at; there are {', '.join(self.layers)}")
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
                "motion": self.motion,
                "value": self.values.repeat(N).tolist(),
                "picture": self.picture.repeat_interleave(T).tolist(),
                "class": [name for name in names for _ in range(T)],
                "probability": self.probability.flatten().tolist(),
                "layer": layer,
                "distance": self.distance[layer].flatten().tolist(),
                "normalised": self.normalised(layer).flatten().tolist(),
                "control": self.normalised(layer, control=True).flatten().tolist(),
            }
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)

    def linearity(self, layer: str) -> float:
        """How far the mean curve is a straight line from the untransformed picture on: R^2 of y = slope |value|.

        The paper calls its layer 7 "quasi-linear" for translation and scaling. 1 is a straight line. A curve
        that jumps up and then stays is worse than its own mean, and gets a negative number.
        """
        steps = (self.values - STILL[self.motion]).abs()
        mean = self.normalised(layer).double().mean(0)
        slope = (steps * mean).sum() / (steps * steps).sum()
        return float(1 - ((mean - slope * steps) ** 2).sum() / ((mean - mean.mean()) ** 2).sum())

    def symmetry(self, layer: str, order: int = 4, control: bool = False) -> Tensor:
        """(N,): how much nearer a picture comes to itself at whole 360/order degrees than half-way between.

        Mean normalised distance at half-way angles minus that at the whole ones (0 left out), interpolated
        between steps. For a square object and order 4 it is large; for a picture that looks equal at every
        angle, or at none, 0. `control` gives what resampling alone does: quarter turns need none.

        Raises ZfkitError unless rotations over nearly the whole circle were measured.
        """
        if self.motion != "rotation":
            raise ZfkitError(f"symmetry is of rotations, and this is a {self.motion}")
        if type(order) is not int or order < 2:
            raise ZfkitError(f"order must be a whole number of at least 2, not {order!r}")
        part = 360 / order
        whole = torch.arange(1, order) * part
        between = (torch.arange(order) + 0.5) * part
        low, high = float(self.values.min()), float(self.values.max())
        if low > part / 2 or high < float(between.max()):
            raise ZfkitError(
                f"symmetry of order {order} needs angles from {part / 2:g} to {360 - part / 2:g} degrees"
            )
        curve = self.normalised(layer, control).double()
        return _interpolate(curve, self.values, between).mean(1) - _interpolate(
            curve, self.values, whole
        ).mean(1)


def default_values(motion: Motion, window: int) -> list[float]:
    """The paper's range of steps, for a window of this side in pixels.

    Shifts of -60 to 60 of 224 px, in whole pixels so that nothing is resampled, 17 of them at most; scales of 1 to
    1.8 by 0.05; rotations of 0 to 350 degrees by 10.
    """
    if motion == "shift":
        reach = max(1, round(window * 60 / 224))
        step = max(1, math.ceil(reach / 8))
        ends = list(range(0, reach, step))
        ends = ends if reach - ends[-1] <= step // 2 and len(ends) > 1 else [*ends, reach]
        ends[-1] = reach
        return sorted({float(s * e) for e in ends for s in (-1, 1)})
    if motion == "scale":
        return [round(1 + 0.05 * i, 2) for i in range(17)]
    return [10.0 * i for i in range(36)]


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
    images: ImageSet | Tensor,
    motion: Motion = "shift",
    values: Sequence[float] | None = None,
    *,
    index: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    targets: Sequence[int | str | None] | None = None,
    window: int | None = None,
    oversample: int = 1,
    interpolation: Interpolation = "bicubic",
    fill: Colour | Literal["edge", "reflect"] = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Invariance:
    """Features and probabilities under a motion (Zeiler & Fergus, Fig. 5).

    Args:
        images: pictures at least as large as the window; what is larger comes in at the border. The network sees
            the middle of them. As a set, or uint8 (N, 3, H, W).
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
        batch_size: pictures at a time.

    Transformed pictures are rounded to 0-255 as a file would be. Distances are of all of a layer's features, raw;
    `Invariance.normalised` divides by the mean distance between different pictures (of windows cut from
    photographs, those that share no pixels).

    Raises ImageError for fewer than 2 pictures or ones smaller than the window, ZfkitError for an unknown motion,
    class or values that are no motion, LayerError for a layer that the model does not have.

    >>> found = invariance(model, load_images("photos", size=100), "rotation", index=range(0, 800, 25))
    >>> found.normalised("relu7").mean(0)
    """
    if motion not in get_args(Motion):
        raise ZfkitError(unknown("motion", motion, get_args(Motion)))
    if interpolation not in get_args(Interpolation):
        raise ZfkitError(unknown("interpolation", interpolation, get_args(Interpolation)))
    window = model.input_size if window is None else window
    if type(window) is not int or window < 1:
        raise ZfkitError(f"window must be a whole number of pixels, not {window!r}")
    if type(batch_size) is not int or batch_size < 1:
        raise ZfkitError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
    if type(oversample) is not int or oversample < 1:
        raise ZfkitError(f"oversample must be a whole number of at least 1, not {oversample!r}")
    steps = _check_values(motion, default_values(motion, window) if values is None else values)
    names = tuple(default_layers(model) if layers is None else layers)
    if not names:
        raise LayerError(f"no layer was named to look at. There are: {', '.join(model.layers)}")
    for name in names:
        model.network.find(name)
    pictures, place = _pictures(images, index, window * oversample)
    N, T = len(pictures), len(steps)

    options: dict[str, Any] = {
        "oversample": oversample,
        "interpolation": interpolation,
        "fill": filled(model, fill),
    }
    still, answers = _look(
        model, move(pictures, motion, STILL[motion], window, **options)[0], names, batch_size
    )
    chosen, origin = _targets(model, images, place, targets, answers)
    own = torch.arange(N)
    distance = {name: torch.empty(N, T) for name in names}
    control = {name: torch.empty(N, T) for name in names}
    probability, control_probability = torch.empty(N, T), torch.empty(N, T)
    correct, invented = torch.empty(N, T, dtype=torch.bool), torch.empty(T)
    with tqdm(total=2 * N * T, desc=motion, unit="img", disable=not progress, leave=False) as bar:
        for t, value in enumerate(steps):
            moved, beyond = move(pictures, motion, value, window, **options)
            features, told = _look(model, moved, names, batch_size)
            back = there_and_back(pictures, motion, value, window, **options)
            resampled, told_back = _look(model, back, names, batch_size)
            for name in names:
                distance[name][:, t] = (features[name] - still[name]).norm(dim=1)
                control[name][:, t] = (resampled[name] - still[name]).norm(dim=1)
            probability[:, t], control_probability[:, t] = told[own, chosen], told_back[own, chosen]
            correct[:, t] = told.argmax(1) == chosen
            invented[t] = beyond
            bar.update(2 * N)
    apart = _different_pairs(images, place)
    different = {}
    for name in names:
        between = torch.cdist(
            still[name].double(), still[name].double(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        different[name] = float(between[apart].mean())
    return Invariance(
        motion=motion, values=torch.tensor(steps, dtype=torch.float64), layers=names, distance=distance,
        control=control, different=different, probability=probability,
        control_probability=control_probability, whole_probability=answers[own, chosen],
        correct=correct, target=chosen, target_from=origin, picture=place, invented=invented,
        classes=model.classes, model=model.name, window=window,
    )  # fmt: skip


def default_layers(model: VisionModel) -> tuple[str, str]:
    """The first layer and the last before the classes, each after its ReLU: the paper's layers 1 and 7.

    In a network without ReLUs as modules, the first convolutional layer and the last layer but one.
    """
    steps = model.network.steps
    idle = nn.Dropout | nn.Dropout2d | nn.Flatten | nn.Identity | nn.Softmax | nn.LogSoftmax
    active = [name for name in model.layers if not isinstance(steps[name].module, idle)]
    rectified = [name for name in active if isinstance(steps[name].module, nn.ReLU)]
    return (rectified or active)[0], (active[-2:] or active)[0]


# ------------------------------------------------------------------------------------------ moving pictures


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
    values, beyond = _sample(pictures.double(), motion, far, window * oversample, interpolation, fill)
    return _as_file(F.avg_pool2d(values, oversample)), beyond


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
    reach = {"shift": abs(far), "scale": side * max(value - 1, 0) / 2, "rotation": 0.21 * side}[motion]
    between = side + 2 * (
        math.ceil(reach) + 2
    )  # an even number more: the centre stays between the same pixels
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
    top, left = (H - window) // 2, (W - window) // 2
    middle = (window - 1) / 2
    offset = torch.arange(window, dtype=torch.float64) - middle
    down, right = torch.meshgrid(offset, offset, indexing="ij")
    if motion == "shift":
        down = down - value
    elif motion == "scale":
        down, right = down / value, right / value
    else:
        # Rows count downwards: a picture turned counter-clockwise by a shows at (x, y) what was at (x, y) turned by -a.
        quarter = value % 90 == 0
        cosine, sine = (f(math.radians(value)) for f in (math.cos, math.sin))
        cosine, sine = (round(cosine), round(sine)) if quarter else (cosine, sine)
        down, right = cosine * down + sine * right, cosine * right - sine * down
    rows, columns = down + top + middle, right + left + middle
    # Rounding leaves 1e-14 of a pixel, which would count as lying outside.
    rows, columns = (v.mul(2**30).round().div(2**30) for v in (rows, columns))
    inside = (rows >= 0) & (rows <= H - 1) & (columns >= 0) & (columns <= W - 1)
    grid = torch.stack([(2 * columns + 1) / W - 1, (2 * rows + 1) / H - 1], -1)[None].to(pictures.device)
    padding = "reflection" if fill == "reflect" else "border"
    read = F.grid_sample(
        pictures, grid.expand(N, -1, -1, -1), mode=interpolation, padding_mode=padding, align_corners=False
    )
    read = (
        read.mul(2**20).round().div(2**20)
    )  # likewise: means of copied pixels may lie half-way between two numbers
    if not isinstance(fill, str):
        colour = torch.tensor(list(fill), dtype=torch.float64, device=pictures.device)[:, None, None]
        read = torch.where(inside.to(pictures.device), read, colour)
    return read, float((~inside).double().mean())


# ---------------------------------------------------------------------------------------------- bookkeeping


def _check_values(motion: Motion, values: Sequence[float]) -> list[float]:
    try:
        steps = [float(v) for v in values]
    except (TypeError, ValueError):
        steps = []
    if not steps or not all(math.isfinite(v) for v in steps):
        raise ZfkitError(f"values must be a list of finite numbers ({UNITS[motion]}), not {values!r}")
    if motion == "scale" and min(steps) < 1:
        raise ZfkitError(
            f"scale {min(steps):g} would shrink the picture, which takes a filter against aliasing: scales from 1 on"
        )
    return steps


def _pictures(images: ImageSet | Tensor, index: Sequence[int] | None, window: int) -> tuple[Tensor, Tensor]:
    """The pictures, uint8 (N, 3, H, W), and their places (N,)."""
    count = len(images)
    place = torch.arange(count) if index is None else torch.as_tensor(list(index), dtype=torch.long)
    if len(place) < 2:
        raise ImageError(
            f"at least 2 pictures are needed, for the distance between different ones; there are {len(place)}"
        )
    if len(place.unique()) < len(place) or not ((place >= 0) & (place < count)).all():
        raise ImageError(f"index must name different pictures, 0 to {count - 1}, not {place.tolist()}")
    pictures = images[place] if isinstance(images, Tensor) else images.take(place)
    if pictures.dtype != torch.uint8 or pictures.dim() != 4 or pictures.shape[1] != 3:
        raise ImageError(
            f"expected uint8 RGB pictures (N, 3, H, W), got {pictures.dtype} {tuple(pictures.shape)}"
        )
    H, W = pictures.shape[2:]
    if min(H, W) < window:
        raise ImageError(
            f"pictures of {W} x {H} px are smaller than the window of {window} px: load them larger"
        )
    # The window's centre has to fall on the picture's, between the same pixels.
    return pictures[:, :, : H - (H - window) % 2, : W - (W - window) % 2], place


def _targets(
    model: VisionModel,
    images: ImageSet | Tensor,
    place: Tensor,
    targets: Sequence[int | str | None] | None,
    answers: Tensor,
) -> tuple[Tensor, tuple[TargetFrom, ...]]:
    """Each picture's class, and where it comes from."""
    if targets is not None:
        if isinstance(targets, str) or len(targets) != len(place):
            raise ZfkitError(
                f"targets must name one class for each of the {len(place)} pictures, not {targets!r}"
            )
        found = [choose_target(model, t, a) for t, a in zip(targets, answers, strict=True)]
        return torch.tensor([i for i, _ in found]), tuple(origin for _, origin in found)
    chosen: list[int] = []
    origin: list[TargetFrom] = []
    for i, answer in zip(place.tolist(), answers, strict=True):
        label = -1 if isinstance(images, Tensor) else images[i][1]
        name = (
            ""
            if isinstance(images, Tensor) or not 0 <= label < len(images.classes)
            else images.classes[label]
        )
        known = name in model.classes
        chosen.append(model.classes.index(name) if known else int(answer.argmax()))
        origin.append("label" if known else "model")
    return torch.tensor(chosen), tuple(origin)


def filled(model: VisionModel, fill: Colour | Literal["edge", "reflect"]) -> Sequence[float] | str:
    """`fill` as `move` takes it."""
    if isinstance(fill, str):
        if fill not in ("edge", "reflect"):
            raise ImageError(
                unknown("fill", fill, ["edge", "reflect"]) + ", a colour, or None for the model's mean"
            )
        return fill
    try:
        rgb = torch.as_tensor(model.mean if fill is None else fill, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError):
        rgb = torch.empty(0)
    if len(rgb) not in (1, 3) or (fill is not None and not ((rgb >= 0) & (rgb <= 255)).all()):
        raise ImageError(
            f"fill must be one number or three (RGB) within 0-255, 'edge' or 'reflect', not {fill!r}"
        )
    return [float(v) for v in rgb.expand(3)]


@torch.inference_mode()
def _look(
    model: VisionModel, pictures: Tensor, layers: Sequence[str], batch_size: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Features of these layers, each (N, F), and probabilities (N, classes)."""
    network = model.network
    last = list(network.steps)[-1]
    wanted = [*layers, last]
    features: dict[str, list[Tensor]] = {name: [] for name in layers}
    told = []
    for part in pictures.split(batch_size):
        x = model.preprocess(part).contiguous(memory_format=torch.channels_last)
        try:
            for step, _, y in network.walk(x, wanted):
                if step.name in features:
                    features[step.name].append(y.flatten(1).cpu().clone())
                if step.name == last:
                    told.append(probabilities(model, y).cpu())
        except RuntimeError as error:
            raise cannot_run(model, wanted, x, error) from error
    return {name: torch.cat(parts) for name, parts in features.items()}, torch.cat(told)


def _different_pairs(images: ImageSet | Tensor, place: Tensor) -> Tensor:
    """(N, N) bool: pairs of different pictures, and of windows those that share no pixels; each pair once.

    Raises ImageError where there is none.
    """
    N = len(place)
    apart = torch.ones(N, N, dtype=torch.bool).triu(1)
    if not isinstance(images, Tensor) and images.windows is not None:
        apart &= ~images.windows.overlap(place)
    if not apart.any():
        raise ImageError(
            "all of these pictures are overlapping windows of one photograph: take different ones"
        )
    return apart


def _interpolate(curves: Tensor, at: Tensor, wanted: Tensor) -> Tensor:
    """Curves (N, T), known at `at` (T,), read between its steps -> (N, len(wanted))."""
    order = at.argsort()
    at, curves = at[order], curves[:, order]
    right = torch.searchsorted(at, wanted.to(at)).clamp(1, len(at) - 1)
    share = ((wanted - at[right - 1]) / (at[right] - at[right - 1])).clamp(0, 1)
    return curves[:, right - 1] * (1 - share) + curves[:, right] * share
