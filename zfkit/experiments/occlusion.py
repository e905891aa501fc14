"""Does the network look at the object? A grey square over every place of a picture (section 4.2, Fig. 7).

`occlude` slides the square and records, for each of its places, what the strongest feature map of a layer still does
and what the network still says. `occluder` computes that without running the whole network at each place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ..batching import OnStep, Portions, steps
from ..checks import one_of, rgb, whole_number
from ..deconv.project import project
from ..deconv.receptive_field import Box
from ..errors import ImageError, LayerError, ModelError, ZfkitError
from ..images.given import one_picture
from ..images.imageset import UNLABELLED, ImageSet
from ..nets.model import VisionModel, expect_model
from ..results import Result
from ..topk.mine import mine
from ..topk.table import TopK
from .occluder import Occluder

if TYPE_CHECKING:
    import pandas as pd

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish, nn.PReLU)
Strongest = Literal["sum", "max"]
Colour = float | Sequence[float] | None  # RGB 0-255; None for the model's mean
TargetFrom = Literal["named", "label", "model"]


@dataclass(frozen=True)
class Occlusion(Result, figure="occlusion_figure"):
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

    def table(self) -> pd.DataFrame:
        """Data frame, a row for each place of the square: top, left, activity, probability, class."""
        import pandas as pd

        R, Q = self.activity.shape
        best = None if self.best is None else [self.class_name(c) for c in self.best.flatten().tolist()]
        columns = {"top": self.top.repeat_interleave(Q), "left": self.left.repeat(R)}
        columns["activity"] = self.activity.flatten()
        probability = None if self.probability is None else self.probability.flatten()
        return pd.DataFrame({**columns, "probability": probability, "class": best})

    def class_name(self, index: int | None = None) -> str:
        """Name of a class, of `target` by default; "class 7" where classes have no names."""
        index = self.target if index is None else index
        return self.classes[index] if index is not None and self.classes else f"class {index}"

    def within(self, box: Box | Sequence[float]) -> Tensor:
        """(R, Q) bool: does the square's centre lie in this box (left, top, right, bottom, in pixels)?"""
        left, top, right, bottom = box
        rows, columns = self.top + self.size / 2, self.left + self.size / 2
        return ((rows >= top) & (rows < bottom))[:, None] & (columns >= left) & (columns < right)

    def covered(self, picture: Tensor) -> Tensor:
        """(R, Q): how much of a picture (H, W), of numbers >= 0, lies under the square at each place; its share."""
        rows, columns = self._covering()
        picture = picture.double()
        return rows @ picture @ columns.T / picture.sum().clamp(min=torch.finfo(torch.float64).tiny)

    def drop_per_pixel(self, of: Literal["probability", "activity"] = "probability") -> Tensor:
        """(H, W): by how much covering a pixel lowers this number, the mean over the squares that cover it.

        This is the attribution that Captum's `Occlusion` gives to each channel of a pixel.
        """
        one_of(of, "number", ["probability", "activity"])
        values, whole = self.activity, self.whole_activity
        if of == "probability":
            if self.probability is None or self.whole_probability is None:
                raise LayerError(f"the network was cut at {self.layer!r}: occlude with classify=True")
            values, whole = self.probability, self.whole_probability
        rows, columns = self._covering()
        drop = rows.T @ (whole - values.double()) @ columns
        return drop / (rows.sum(0)[:, None] * columns.sum(0)).clamp(min=1)

    def _covering(self) -> tuple[Tensor, Tensor]:
        """(R, H) and (Q, W) float64: 1 where the square at a place covers a row, or a column, of pixels."""
        spans = []
        for start, length in zip((self.top, self.left), self.image.shape[1:], strict=True):
            pixel = torch.arange(length)
            spans.append(((pixel >= start[:, None]) & (pixel < start[:, None] + self.size)).double())
        return spans[0], spans[1]


def occlude(
    model: VisionModel,
    image: Tensor | np.ndarray | str | Path,
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
    on_step: OnStep | None = None,
) -> Occlusion:
    """Slide a square over a picture; watch a feature map and the classes (Zeiler & Fergus, Fig. 7).

    Args:
        image: (3, H, W) uint8 RGB, of `model.input_size` for the classes of most networks; an array (H, W, 3) of
            numpy; or the path of a picture, which is brought to that size.
        target: the correct class, by name or by place in `model.classes` (labels of a set are places in its own
            `classes`: `zfkit.images.align_labels(photos, model.classes)` brings them together). None, or the -1 of
            unlabelled pictures, for the model's own top class; `Occlusion.target_from` says which it was.
        layer: whose strongest map is watched; default the last convolutional layer, the paper's layer 5, or, in a
            network that branches, what comes out of its last block (`last_block`).
        channel: a feature map; None for the strongest one of the picture without a square.
        strongest: by the "sum" of its activity over all positions, which is what is then shown, or by its "max".
        size: of the square in pixels. The paper does not say; default a quarter of the smaller side, about what
            its first column shows.
        stride: pixels from one place to the next, at most `size`. Default 1/32 of the smaller side: with the default
            size, 25 x 25 places in a square picture.
        fill: RGB 0-255, or one number for all three. The paper's "grey"; default the model's mean colour, which
            is 0 to the network and thus as little of a thing as there is.
        classify: False to cut the network after `layer`, for sizes that its classes do not take.
        batch_size: squares at a time; results do not depend on it, but for rounding.
        on_step: called after each batch with (done, total) places; it may raise `Cancelled`.

    Squares begin at multiples of the stride; the last of a row or column ends at the border or, where the stride
    does not divide what is left, is cut off there, so that every pixel is covered.

    Raises ImageError for a picture of another kind or a square that does not fit into it, LayerError for a layer,
    map or size that the network does not have, ZfkitError for a class that it does not know.

    >>> result = occlude(model, photos[104][0], "espresso")
    >>> result.probability.shape
    torch.Size([25, 25])
    """
    expect_model(model)
    image = one_picture(image, model.input_size)
    x = model.preprocess(image)
    H, W = x.shape[2:]
    layer = layer or last_block(model)
    model.network.find(layer)
    one_of(strongest, "way to choose the strongest map", get_args(Strongest))
    size = max(1, min(H, W) // 4) if size is None else size
    whole_number(size, f"size, of a square in a picture of {W} x {H} px,", 1, min(H, W), ImageError)
    stride = max(1, min(H // 32, W // 32, size)) if stride is None else stride
    whole_number(stride, "stride, which skips pixels if longer than the square,", 1, size)
    # As many squares as 64 pictures of 64 px have pixels: more do not fit into a processor's caches.
    cached = max(1, 2 ** (18 if model.device.type == "cpu" else 22) // (H * W))
    batch_size = whole_number(cached if batch_size is None else batch_size, "batch_size")
    grey = preprocessed_colour(model, fill)

    occluder = Occluder.of(model, x, layer, classify)
    output = occluder.values[layer]
    if output.dim() != 4:
        raise LayerError(
            f"{layer!r} has no feature maps; a convolutional layer was expected: {', '.join(model.conv_layers)}"
        )
    maps = output[0].clamp(min=0)  # (C, h, w)
    sums = maps.sum((1, 2))
    if channel is None:
        channel = int((sums if strongest == "sum" else maps.amax((1, 2))).argmax())
    whole_number(channel, f"channel of {layer!r}", 0, len(maps) - 1, LayerError)
    whole = probabilities(model, occluder.values[occluder.last])[0] if classify else None
    index: int | None = None
    target_from: TargetFrom = "model"
    if whole is not None:
        index, target_from = choose_target(model, target, whole)

    top, left = (torch.arange(-(-(side - size) // stride) + 1) * stride for side in (H, W))
    corners = torch.cartesian_prod(top, left)  # (R * Q, 2)
    activity, probability, best = [], [], []
    portions = Portions(f"occluding with {model.name}", batch_size, "squares")
    with steps(len(corners), "occluding", "place", progress, on_step, "a larger stride takes less") as done:
        for part in portions.of(len(corners)):
            with portions.attempt():
                outputs = occluder.occluded(corners[part], size, grey)
                p = None if whole is None else probabilities(model, outputs[occluder.last]).cpu()
                activity.append(outputs[layer][:, channel].clamp(min=0).sum((1, 2)).cpu())
                if p is not None:
                    probability.append(p[:, index])
                    best.append(p.argmax(1))
                done(part.stop - part.start)
    grid = len(top), len(left)
    return Occlusion(
        image=image.detach().cpu(), layer=layer, channel=channel, size=size, stride=stride,
        colour=shown_colour(model, fill), top=top, left=left,
        activity=torch.cat(activity).view(grid), whole_activity=float(sums[channel]),
        projection=project(model, x, layer, channel)[0].cpu(),
        position=divmod(int(output[0, channel].argmax()), output.shape[3]),
        probability=None if whole is None else torch.cat(probability).view(grid),
        whole_probability=None if whole is None else float(whole[index]),
        best=None if whole is None else torch.cat(best).view(grid),
        whole_best=None if whole is None else int(whole.argmax()),
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
    occlusion: Occlusion,
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
    whole_number(k, "k")
    layer, channel = occlusion.layer, occlusion.channel
    if top is None:
        most = min(len(images), 4 * k + 4)
        top = mine(model, images, layer, k=most, per_photograph=1, progress=progress)
    top.check(model, images)
    table = top[layer]
    # Which photograph a picture comes from; of a set without windows, each is its own.
    photograph = torch.arange(len(images)) if images.windows is None else images.windows.photograph
    used = set()
    if images.windows is not None:  # the occluded picture need not be among the table's
        used = {int(photograph[i]) for i in range(len(images)) if torch.equal(images[i][0], occlusion.image)}
    ranks = []
    for rank, i in enumerate(table.image[channel].tolist()):
        if i < 0 or int(photograph[i]) in used or torch.equal(images[i][0], occlusion.image):
            continue
        used.add(int(photograph[i]))
        ranks.append(rank)
    if len(ranks) < k:
        raise ZfkitError(
            f"the table has {len(ranks)} pictures of other photographs, fewer than {k}: mine with a larger k"
        )
    chosen = table.image[channel][ranks[:k]]
    photo = images.take(chosen)
    projection = project(model, model.preprocess(photo), layer, channel).cpu()
    return Elsewhere(chosen, photo, projection, table.value[channel][ranks[:k]])


# ------------------------------------------------------------------------------------- classes and colours


def probabilities(model: VisionModel, outputs: Tensor) -> Tensor:
    """The network's outputs (N, classes) as probabilities: a softmax, unless it ends in one itself.

    Raises ModelError for outputs that are not one number for each class.
    """
    if outputs.dim() != 2:
        raise ModelError(
            f"{model.name} gives {tuple(outputs.shape[1:])} for a picture, and one number per class was expected: "
            "cut it at a layer that gives them"
        )
    ending = list(model.network.steps.values())[-1]
    if isinstance(ending.module, nn.LogSoftmax) or ending.operation == "log_softmax":
        return outputs.exp()
    return outputs if isinstance(ending.module, nn.Softmax) else outputs.softmax(1)


def last_block(model: VisionModel) -> str:
    """The last convolutional layer; in a network that branches, the output of its last block, after the ReLU.

    There the convolution that runs last may be a shortcut's. What comes out of the block is the last layer of the same
    rows and columns: an activation, or the block itself.
    """
    network, last = model.network, model.conv_layers[-1]
    if not any(len(step.maps) > 1 for step in network.steps.values()):
        return last
    size, output = network.shapes[last][1:], last
    for name in model.layers[model.layers.index(last) + 1 :]:
        step, shape = network.steps[name], network.shapes.get(name, ())
        if len(shape) != 3 or shape[1:] != size:
            break
        if step.block or isinstance(step.module, ACTIVATIONS):
            output = name
    return output


def choose_target(model: VisionModel, target: int | str | None, answer: Tensor) -> tuple[int, TargetFrom]:
    """The class meant by `target`, or the most probable of `answer` (classes,) where there is no label.

    Raises ZfkitError for a class that the model does not know.
    """
    if target is None or (type(target) is int and target == UNLABELLED):
        return int(answer.argmax()), "model"
    if isinstance(target, str):
        return model.classes.index(one_of(target, "class", model.classes)), "named"
    return whole_number(target, f"a class of {model.name}", 0, len(answer) - 1), "named"


def preprocessed_colour(model: VisionModel, fill: Colour) -> Tensor:
    """A colour as the network takes it, (C, 1, 1): 0 for None, the model's mean.

    Raises ImageError for anything but one number or three within 0-255.
    """
    if fill is None:
        return torch.zeros(len(model.mean), 1, 1, device=model.device, dtype=model.dtype)
    return model.normalise(torch.tensor(rgb(fill, "fill", ImageError)).view(1, 3, 1, 1))[0]


def shown_colour(model: VisionModel, fill: Colour) -> tuple[float, float, float]:
    """RGB 0-255 of a colour that `preprocessed_colour` takes. Raises as that does."""
    if fill is None:  # a mean may lie outside 0-255, as for networks that want [-1, 1]
        red, green, blue = model.mean * (3 // len(model.mean))
    else:
        red, green, blue = rgb(fill, "fill", ImageError)
    return red, green, blue
