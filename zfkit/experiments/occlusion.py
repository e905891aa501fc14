"""Does the network look at the object? A grey square over every place of a picture (section 4.2, Fig. 7).

`occlude` slides the square and records, for each of its places, what the strongest feature map of a layer
still does and what the network still says. A square changes only part of each feature map, so only that part
is computed anew, from the unoccluded picture's maps and the patch that differs: see "The part that changes".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..deconv.project import project
from ..deconv.receptive_field import POINTWISE, Box, filters
from ..errors import ImageError, LayerError, ModelError, ZfkitError, unknown
from ..images.imageset import UNLABELLED, ImageSet
from ..nets.activations import cannot_run
from ..nets.graph import Step, pair
from ..nets.model import VisionModel
from ..topk.mine import mine
from ..topk.table import TopK

Strongest = Literal["sum", "max"]
Colour = float | Sequence[float] | None  # RGB 0-255; None for the model's mean
TargetFrom = Literal["named", "label", "model"]


@dataclass(frozen=True)
class Occlusion:
    """What a grey square does at each of R x Q places of one picture.

    Attributes:
        image: (3, H, W) uint8, the picture.
        layer, channel: the feature map that was watched.
        size, stride: side of the square, and from one place to the next, in pixels.
        colour: RGB 0-255 of the square.
        top: (R,) int64, first row of pixels that the square covers; it covers `size` of them, or those up to the
            border.
        left: (Q,) int64, likewise for columns.
        activity: (R, Q), the map's activity, max(output, 0) summed over its positions: the paper's (b).
        whole_activity: the same without a square.
        projection: (C, H, W), what the deconvnet makes of the map's strongest position: the first of (c).
        position: row and column of that position.
        probability: (R, Q), of the class `target`: (d). None where the network was cut at the layer.
        whole_probability: the same without a square.
        best: (R, Q) int64, the most probable class: (e).
        whole_best: the same without a square.
        target: the class whose probability is shown.
        target_from: was it "named" by the caller, or the "model"'s own top class, for want of a label?
        classes: names of the model's outputs, or empty.
        model: the model's name.
    """

    image: Tensor
    layer: str
    channel: int
    size: int
    stride: int
    colour: tuple[float, float, float]
    top: Tensor
    left: Tensor
    activity: Tensor
    whole_activity: float
    projection: Tensor
    position: tuple[int, int]
    probability: Tensor | None
    whole_probability: float | None
    best: Tensor | None
    whole_best: int | None
    target: int | None
    target_from: TargetFrom
    classes: tuple[str, ...]
    model: str

    def class_name(self, index: int | None = None) -> str:
        """Name of a class, of `target` by default; "class 7" where classes have no names."""
        index = self.target if index is None else index
        return self.classes[index] if index is not None and self.classes else f"class {index}"

    def within(self, box: Box | Sequence[float]) -> Tensor:
        """(R, Q) bool: does the square's centre lie in this box (left, top, right, bottom, in pixels)?"""
        left, top, right, bottom = box
        rows, columns = self.top + self.size / 2, self.left + self.size / 2
        inside_rows = (rows >= top) & (rows < bottom)
        return inside_rows[:, None] & ((columns >= left) & (columns < right))

    def covered(self, picture: Tensor) -> Tensor:
        """(R, Q): how much of a picture (H, W), of numbers >= 0, lies under the square at each place; its share."""
        total = F.pad(picture.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
        H, W = picture.shape
        rows = [self.top, (self.top + self.size).clamp(max=H)]
        columns = [self.left, (self.left + self.size).clamp(max=W)]
        (a, b), (c, d) = ([total[r][:, q] for q in columns] for r in rows)
        return (d - b - c + a) / total[-1, -1].clamp(min=torch.finfo(torch.float64).tiny)

    def drop_per_pixel(self, of: Literal["probability", "activity"] = "probability") -> Tensor:
        """(H, W): by how much covering a pixel lowers this number, the mean over the squares that cover it.

        This is the attribution that Captum's `Occlusion` gives to each channel of a pixel.
        """
        shown, whole = self.activity, self.whole_activity
        if of == "probability":
            if self.probability is None or self.whole_probability is None:
                raise LayerError(f"the network was cut at {self.layer!r}: occlude with classify=True")
            shown, whole = self.probability, self.whole_probability
        elif of != "activity":
            raise ZfkitError(unknown("number", of, ["probability", "activity"]))
        H, W = self.image.shape[1:]
        # (R, H) and (Q, W): which rows and columns of pixels each place covers
        rows = _spans(self.top, self.size, H)
        columns = _spans(self.left, self.size, W)
        drop = rows.T @ (whole - shown.double()) @ columns
        return drop / (rows.sum(0)[:, None] * columns.sum(0)).clamp(min=1)


def occlude(
    model: VisionModel,
    image: Tensor,
    target: int | str | None = None,
    *,
    layer: str | None = None,
    channel: int | None = None,
    strongest: Strongest = "sum",
    size: int | None = None,
    stride: int | None = None,
    fill: Colour = None,
    classify: bool = True,
    batch_size: int | None = None,
    progress: bool = True,
) -> Occlusion:
    """Slide a square over a picture; watch a feature map and the classes (Zeiler & Fergus, Fig. 7).

    Args:
        image: (3, H, W) uint8 RGB, of `model.input_size` for the classes of most networks.
        target: the correct class, by place or name. None, or the -1 of unlabelled pictures, for the model's own
            top class; `Occlusion.target_from` says which it was.
        layer: whose strongest map is watched; default the last convolutional layer, the paper's layer 5.
        channel: a feature map; None for the strongest one of the picture without a square.
        strongest: by the "sum" of its activity over all positions, which is what is then shown, or by its "max".
        size: of the square in pixels. The paper does not say; default a quarter of the smaller side, about what
            its first column shows.
        stride: pixels from one place to the next. Default 1/32 of the smaller side: with the default size, 25 x 25
            places in a square picture.
        fill: RGB 0-255, or one number for all three. The paper's "grey"; default the model's mean colour, which
            is 0 to the network and thus as little of a thing as there is.
        classify: False to cut the network after `layer`, for sizes that its classes do not take.
        batch_size: squares at a time; results do not depend on it, but for rounding.

    Squares begin at multiples of the stride; the last of a row or column ends at the border or, where the stride
    does not divide what is left, is cut off there, so that every pixel is covered.

    Raises ImageError for a picture of another kind or a square that does not fit into it, LayerError for a layer,
    map or size that the network does not have, ZfkitError for a class that it does not know.

    >>> found = occlude(model, photos[104][0], "espresso")
    >>> found.probability.shape
    torch.Size([25, 25])
    """
    x = model.preprocess(_one_picture(image))
    H, W = x.shape[2:]
    layer = layer or model.conv_layers[-1]
    model.network.find(layer)
    if strongest not in get_args(Strongest):
        raise ZfkitError(unknown("way to choose the strongest map", strongest, get_args(Strongest)))
    size = max(1, min(H, W) // 4) if size is None else size
    if stride is None:
        stride = max(1, min(H // 32, W // 32, size)) if type(size) is int else 1
    for what, value in (("size", size), ("stride", stride), ("batch_size", batch_size)):
        if value is not None and (type(value) is not int or value < 1):
            raise ZfkitError(f"{what} must be a whole number of at least 1, not {value!r}")
    if size > min(H, W):
        raise ImageError(
            f"a square of {size} px does not fit into a picture of {W} x {H} px: take a smaller one"
        )
    if stride > size:
        raise ZfkitError(f"a stride of {stride} px skips pixels between squares of {size} px: at most {size}")
    grey = preprocessed_colour(model, fill)
    whole = Occluder.of(model, x, layer, classify)
    output = whole.values[layer]
    if output.dim() != 4:
        raise LayerError(
            f"{layer!r} has no feature maps; a convolutional layer was expected: {', '.join(model.conv_layers)}"
        )
    rectified = output[0].clamp(min=0)
    sums = rectified.sum((1, 2))
    if channel is None:
        channel = int((sums if strongest == "sum" else rectified.amax((1, 2))).argmax())
    elif type(channel) is not int or not 0 <= channel < len(sums):
        raise LayerError(
            f"channel {channel!r} does not exist: {layer!r} has {len(sums)}, 0 to {len(sums) - 1}"
        )
    answer = probabilities(model, whole.values[whole.last])[0] if classify else None
    index: int | None = None
    target_from: TargetFrom = "model"
    if answer is not None:
        index, target_from = choose_target(model, target, answer)

    top, left = _places(H, size, stride), _places(W, size, stride)
    corner = torch.cartesian_prod(top, left)  # (R * Q, 2)
    activity, probability, best = [], [], []
    batch_size = batch_size or _default_batch(model, H, W)
    with tqdm(total=len(corner), desc="occluding", unit="place", disable=not progress, leave=False) as bar:
        for part in corner.split(batch_size):
            outputs = whole.occluded(part, size, grey)
            activity.append(outputs[layer][:, channel].clamp(min=0).sum((1, 2)).cpu())
            if answer is not None:
                told = probabilities(model, outputs[whole.last])
                probability.append(told[:, index].cpu())
                best.append(told.argmax(1).cpu())
            bar.update(len(part))
    grid = len(top), len(left)
    place = int(output[0, channel].argmax())
    return Occlusion(
        image=image.detach().cpu(), layer=layer, channel=channel, size=size, stride=stride,
        colour=shown_colour(model, fill), top=top, left=left,
        activity=torch.cat(activity).view(grid), whole_activity=float(sums[channel]),
        projection=project(model, x, layer, channel)[0].cpu(), position=divmod(place, output.shape[3]),
        probability=torch.cat(probability).view(grid) if probability else None,
        whole_probability=None if answer is None else float(answer[index]),
        best=torch.cat(best).view(grid) if best else None,
        whole_best=None if answer is None else int(answer.argmax()),
        target=index, target_from=target_from, classes=model.classes, model=model.name,
    )  # fmt: skip


@dataclass(frozen=True)
class Elsewhere:
    """The same feature map on other pictures: the rest of Fig. 7 (c).

    Attributes:
        image: (k,) int64, places in the image set, strongest first.
        photo: (k, 3, S, S) uint8, the pictures.
        projection: (k, C, S, S), what the deconvnet makes of each one's strongest position.
        value: (k,) activations there.
    """

    image: Tensor
    photo: Tensor
    projection: Tensor
    value: Tensor


def project_elsewhere(
    model: VisionModel,
    images: ImageSet,
    found: Occlusion,
    *,
    k: int = 3,
    top: TopK | None = None,
    progress: bool = True,
) -> Elsewhere:
    """The k other pictures that excite the watched map most, with its projection from each (Fig. 7 (c)).

    Left out are the occluded picture itself and, of windows cut from photographs, all of the photograph that it
    comes from; each other photograph is shown once.

    Args:
        top: from `mine`, with more pictures of each map than k; None to mine `images` now.

    Raises ZfkitError where that leaves fewer than k pictures, or for a table of other pictures.
    """
    if type(k) is not int or k < 1:
        raise ZfkitError(f"k must be a whole number of at least 1, not {k!r}")
    if top is None:
        top = mine(
            model, images, found.layer, k=min(len(images), 4 * k + 4), per_photograph=1, progress=progress
        )
    top.check(model, images)
    if found.layer not in top.layers:
        raise LayerError(f"the table was mined from {', '.join(top.layers)}, not from {found.layer!r}")
    ranked = [int(i) for i in top[found.layer].image[found.channel] if i >= 0]
    chosen: list[int] = []
    used: set[int] = set()
    if images.windows is not None:
        same = [i for i in range(len(images)) if torch.equal(images.take([i])[0], found.image)]
        used = {int(images.windows.photograph[i]) for i in same}
    for i in ranked:
        photograph = int(images.windows.photograph[i]) if images.windows is not None else -1 - i
        if photograph not in used and not torch.equal(images.take([i])[0], found.image):
            chosen.append(i)
            used.add(photograph)
    if len(chosen) < k:
        raise ZfkitError(
            f"{k} other pictures were asked for, and the table has {len(chosen)} of other photographs: mine with a "
            "larger k, or ask for fewer"
        )
    chosen = chosen[:k]
    photo = images.take(chosen)
    projection = project(model, model.preprocess(photo), found.layer, found.channel).cpu()
    rank = [ranked.index(i) for i in chosen]
    value = top[found.layer].value[found.channel][rank]
    return Elsewhere(torch.tensor(chosen), photo, projection, value)


# ------------------------------------------------------------------------------------- classes and colours


def probabilities(model: VisionModel, outputs: Tensor) -> Tensor:
    """The network's outputs (N, classes) as probabilities: a softmax, unless it ends in one itself.

    Raises ModelError for outputs that are not one number for each class.
    """
    if outputs.dim() != 2:
        raise ModelError(
            f"{model.name} gives {tuple(outputs.shape[1:])} for a picture, and one number per class was expected; "
            "for its feature maps alone, cut it at a layer"
        )
    ending = list(model.network.steps.values())[-1]
    if isinstance(ending.module, nn.LogSoftmax) or ending.operation == "log_softmax":
        return outputs.exp()
    return outputs if isinstance(ending.module, nn.Softmax) else outputs.softmax(1)


def choose_target(model: VisionModel, target: int | str | None, answer: Tensor) -> tuple[int, TargetFrom]:
    """The class meant by `target`, or the most probable of `answer` (classes,) where there is no label.

    Raises ZfkitError for a class that the model does not know.
    """
    if target is None or (type(target) is int and target == UNLABELLED):
        return int(answer.argmax()), "model"
    if isinstance(target, str):
        if target not in model.classes:
            raise ZfkitError(unknown("class", target, model.classes))
        return model.classes.index(target), "named"
    if type(target) is not int or not 0 <= target < len(answer):
        raise ZfkitError(
            f"class {target!r} does not exist: {model.name} has {len(answer)}, 0 to {len(answer) - 1}"
        )
    return target, "named"


def preprocessed_colour(model: VisionModel, fill: Colour) -> Tensor:
    """A colour as the network takes it, (C, 1, 1): 0 for None, the model's mean.

    Raises ImageError for anything but one number or three within 0-255.
    """
    mean = torch.tensor(model.mean, dtype=torch.float64)
    try:
        rgb = torch.as_tensor(0.0 if fill is None else fill, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        rgb = torch.tensor(math.nan, dtype=torch.float64)
    if rgb.shape not in ((), (3,)) or not ((rgb >= 0) & (rgb <= 255)).all():
        raise ImageError(
            f"fill must be one number or three (RGB) within 0-255, or None for the mean, not {fill!r}"
        )
    rgb = rgb.expand(3)
    if len(mean) == 1:  # the luma of ITU-R 601, as in model.preprocess
        rgb = (rgb * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)).sum(0, keepdim=True)
    colour = torch.zeros_like(mean) if fill is None else (rgb - mean) * torch.tensor(model.scale).double()
    return colour.to(model.device, model.dtype)[:, None, None]


def shown_colour(model: VisionModel, fill: Colour) -> tuple[float, float, float]:
    """RGB 0-255 of a colour that `preprocessed_colour` took."""
    red, green, blue = (
        torch.as_tensor(model.mean if fill is None else fill).double().flatten().expand(3).tolist()
    )
    return red, green, blue


def _one_picture(image: Tensor) -> Tensor:
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.dim() != 3 or len(image) != 3:
        found = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise ImageError(f"expected one uint8 RGB picture (3, H, W), as photos[0][0] is, got {found}")
    return image[None]


def _places(length: int, size: int, stride: int) -> Tensor:
    """Where squares begin along a side: multiples of the stride, up to the first that reaches the end."""
    return torch.arange(math.ceil((length - size) / stride) + 1) * stride


def _spans(start: Tensor, size: int, length: int) -> Tensor:
    """(places, length) float64: 1 where a square that begins at `start` covers a row (or column) of pixels."""
    at = torch.arange(length)
    return ((at >= start[:, None]) & (at < start[:, None] + size)).double()


def _default_batch(model: VisionModel, H: int, W: int) -> int:
    """As many squares as 64 pictures of 64 px have pixels: more do not fit into a processor's caches."""
    return max(1, 2 ** (18 if model.device.type == "cpu" else 22) // (H * W))


# ------------------------------------------------------------------------------------- the part that changes
# Under a square of s pixels, a convolution or pool changes only at the positions whose filter touches it. Between
# the first of them and the last lies a patch of the map; everywhere else stands what the whole picture gave. So
# each batch of squares is carried as patches with their places, until a layer where they cover most of the map or
# that needs all of it: there they are pasted into the whole picture's map, and the network goes on as usual.

WORTH_IT = (
    0.7  # patches that cover more of a map than this are pasted: cutting them out would cost what it saves
)


@dataclass(frozen=True)
class _Patch:
    """The part (B, C, h, w) of each map that differs, and its first row and column there (B, 2)."""

    values: Tensor
    origin: Tensor


@dataclass(frozen=True)
class Occluder:
    """One picture, ready to be covered at any place: `Occluder.of(...)`, then `occluded(...)`.

    Attributes:
        values: outputs of every step for the picture without a square, (1, C, H, W), kept to fill in from.
        layer: whose maps are watched.
        last: the network's output, or the layer where it was cut.
    """

    model: VisionModel
    steps: list[Step]
    values: dict[str, Any]
    layer: str
    last: str

    @classmethod
    @torch.inference_mode()
    def of(cls, model: VisionModel, x: Tensor, layer: str, classify: bool = True) -> Occluder:
        """For a preprocessed picture (1, C, H, W). Raises LayerError for a size that the network does not take."""
        network = model.network
        last = list(network.steps)[-1] if classify else layer
        values: dict[str, Any] = {}
        steps = network.upto([layer, last])
        try:
            for step in steps:
                # Copies, since a step may work in place and every output is needed later.
                inputs = [_copy(values[name]) for name in step.inputs]
                values[step.name] = x if step.name == network.input else step.run(*inputs)
        except RuntimeError as error:
            told = cannot_run(model, [last], x, error)
            if classify and isinstance(told, LayerError):
                told = LayerError(
                    f"{told}. With classify=False its classes are left out, and {layer} is all it needs"
                )
            raise told from error
        return cls(model, steps, values, layer, last)

    @torch.inference_mode()
    def occluded(self, corner: Tensor, size: int, grey: Tensor) -> dict[str, Tensor]:
        """Outputs of the layer, (B, C, H, W), and of the network, (B, classes), with a square at each corner (B, 2)."""
        last_use = {name: i for i, step in enumerate(self.steps) for name in step.inputs}
        values: dict[str, Any] = {}
        outputs: dict[str, Tensor] = {}
        for i, step in enumerate(self.steps):
            if step.name == self.steps[0].name:
                result: Any = self._square(corner.to(grey.device), size, grey)
            elif not step.inputs:
                result = self.values[step.name]
            else:
                result = self._step(step, [values[name] for name in step.inputs], len(corner))
            values[step.name] = result
            if step.name in (self.layer, self.last):
                outputs[step.name] = self._paste(step.name, result).clone()  # a ReLU may follow in place
            for name in step.inputs:
                if last_use[name] == i:
                    values.pop(name, None)
        return outputs

    def _square(self, corner: Tensor, size: int, grey: Tensor) -> _Patch:
        """The picture under the square; of squares cut off at the border, also some of what lies beside them."""
        image = self.values[self.steps[0].name]
        limit = torch.tensor(image.shape[2:], device=corner.device)
        origin = corner.minimum(limit - size)
        patch = _cut(image, None, origin, (size, size))
        at = torch.arange(size, device=corner.device)
        rows, columns = ((at + (origin - corner)[:, axis, None] >= 0) for axis in (0, 1))
        under = rows[:, None, :, None] & columns[:, None, None, :]
        return _Patch(torch.where(under, grey, patch), origin)

    def _step(self, step: Step, inputs: list[Any], count: int) -> Any:
        patch, module = inputs[0], step.module
        if len(inputs) == 1 and isinstance(patch, _Patch):
            sliding = filters(step)
            if sliding == (POINTWISE, POINTWISE) and not isinstance(
                module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d
            ):
                return _Patch(step.run(patch.values), patch.origin)
            if sliding is not None and isinstance(module, nn.Conv2d | nn.MaxPool2d):
                moved = self._slide(step, patch)
                if moved is not None:
                    return moved
        whole = [
            self._paste(name, value) if isinstance(value, _Patch) else value
            for name, value in zip(step.inputs, inputs, strict=True)
        ]
        return step.run(*whole)

    def _slide(self, step: Step, patch: _Patch) -> _Patch | None:
        """The part of a convolution's or pool's output that a patch of its input changes; None if most of it."""
        sliding, module = filters(step), step.module
        assert sliding is not None and isinstance(module, nn.Conv2d | nn.MaxPool2d)
        first, sizes, starts, lengths = [], [], [], []
        for axis, f in enumerate(sliding):
            begin, reach = patch.origin[:, axis], f.dilation * (f.kernel - 1)
            end = begin + patch.values.shape[2 + axis] - 1
            n = self.values[step.name].shape[2 + axis]
            low = (-((reach - f.padding - begin) // f.stride)).clamp(0, n - 1)  # rounded up
            high = ((end + f.padding) // f.stride).clamp(0, n - 1)
            side = max(1, int((high - low).max()) + 1)
            low = low.clamp(max=n - side)
            first.append(low)
            sizes.append(side / n)
            starts.append(f.stride * low - f.padding)
            lengths.append(f.stride * (side - 1) + reach + 1)
        if math.prod(sizes) > WORTH_IT:
            return None
        conv = isinstance(module, nn.Conv2d)
        outside = 0.0 if conv else -math.inf
        source = self.values[step.inputs[0]]
        x = _cut(source, patch, torch.stack(starts, 1), (lengths[0], lengths[1]), outside)
        if isinstance(module, nn.Conv2d):
            y = F.conv2d(x, module.weight, module.bias, module.stride, 0, module.dilation, module.groups)
        else:
            y = F.max_pool2d(x, pair(module.kernel_size), pair(module.stride), 0, pair(module.dilation))
        return _Patch(y, torch.stack(first, 1))

    def _paste(self, name: str, value: Tensor | _Patch) -> Tensor:
        """The whole maps (B, C, H, W) of a step."""
        if not isinstance(value, _Patch):
            return value
        source = self.values[name]
        zero = torch.zeros(len(value.values), 2, dtype=torch.long, device=source.device)
        return _cut(source, value, zero, tuple(source.shape[2:]))


def _cut(
    whole: Tensor, patch: _Patch | None, origin: Tensor, size: Sequence[int], outside: float = 0.0
) -> Tensor:
    """Windows of `size` at `origin` (B, 2) of a map (1, C, H, W) with patches laid over it; `outside` beyond it.

    One gather, out of the map's positions followed by those of all patches -> (B, C, *size), channels last.
    """
    _, C, H, W = whole.shape
    B, device = len(origin), whole.device
    sources = [whole.permute(0, 2, 3, 1).reshape(H * W, C), whole.new_full((1, C), outside)]
    at = [origin[:, axis, None] + torch.arange(size[axis], device=device) for axis in (0, 1)]  # (B, size)
    rows, columns = at[0][:, :, None], at[1][:, None, :]
    index = torch.where((rows >= 0) & (rows < H) & (columns >= 0) & (columns < W), rows * W + columns, H * W)
    if patch is not None:
        h, w = patch.values.shape[2:]
        sources.append(patch.values.permute(0, 2, 3, 1).reshape(B * h * w, C))
        r, c = rows - patch.origin[:, 0, None, None], columns - patch.origin[:, 1, None, None]
        number = torch.arange(B, device=device)[:, None, None]
        in_patch = (r >= 0) & (r < h) & (c >= 0) & (c < w)
        index = torch.where(in_patch, H * W + 1 + (number * h + r) * w + c, index)
    picked = torch.cat(sources).index_select(0, index.flatten())
    return picked.view(B, size[0], size[1], C).permute(0, 3, 1, 2)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
