"""What part of the image a unit sees: size, stride and offset of its receptive field.

Going back from a unit through the network, the positions it depends on are an interval along each axis of
every map before it: through a filter of size k, stride s, padding p and dilation d, an interval [low, high]
becomes [s low - p, s high - p + d (k - 1)] (Araujo et al. 2019, distill.pub/2019/computing-receptive-fields).
`project` cuts its windows out of every map with the same intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from ..errors import LayerError
from ..nets.graph import ELEMENTWISE, Add, ChannelSlice, Concat, Network, Scale, Step, pair
from ..nets.model import VisionModel
from ..nets.paper import BlurPool


class Interval(NamedTuple):
    """Positions [stride * i + low, stride * i + high] of a map that position i of a later map depends on."""

    stride: int
    low: int
    high: int

    @property
    def size(self) -> int:
        return self.high - self.low + 1


Extent = tuple[Interval, Interval]  # along rows, along columns


class Box(NamedTuple):
    """A rectangle of the image in pixels; right and bottom are exclusive, and it may stick out."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Field:
    """Receptive field of a layer: unit i along a side sees `size` pixels from ``stride * i + offset`` on.

    All three are pixels, for the rows; `columns` differs only in networks with filters that are not square.
    Units that see the whole image, as those of fully connected layers do, have stride 0.
    """

    rows: Interval
    columns: Interval

    @property
    def size(self) -> int:
        """Side of the field in pixels."""
        return self.rows.size

    @property
    def stride(self) -> int:
        """Pixels between the fields of neighbouring units."""
        return self.rows.stride

    @property
    def offset(self) -> int:
        """Where the field of unit 0 begins; negative where padding comes in."""
        return self.rows.low

    def box(self, row: int, col: int) -> Box:
        """Rectangle of the image, in pixels, that unit (row, col) sees; it may stick out of the image."""
        (sr, top, bottom), (sc, left, right) = self.rows, self.columns
        return Box(sc * col + left, sr * row + top, sc * col + right + 1, sr * row + bottom + 1)


def receptive_field(model: VisionModel, layer: str) -> Field:
    """Receptive field of the units of `layer`, in pixels of the model's input.

    Raises LayerError for an unknown layer.

    >>> field = receptive_field(load_model("zfnet224"), "conv5")
    >>> field.size, field.stride
    (139, 16)
    """
    model.network.find(layer)
    extent = extents(model.network, layer).get(model.network.input)
    if extent is None:
        whole = Interval(0, 0, model.input_size - 1)
        return Field(whole, whole)
    return Field(*extent)


def extents(network: Network, layer: str) -> dict[str, Extent | None]:
    """For every step up to `layer`, which of its positions a unit of `layer` depends on; None for all."""
    found: dict[str, Extent | None] = {layer: (Interval(1, 0, 0), Interval(1, 0, 0))}
    for step in reversed(network.upto([layer])):
        if step.name not in found:
            continue
        before = extent_before(step, found[step.name])
        for name in step.inputs:
            found[name] = _union(found[name], before) if name in found else before
    return found


def _union(a: Extent | None, b: Extent | None) -> Extent | None:
    """What two branches together depend on; all of the map where their strides differ."""
    if a is None or b is None or any(x.stride != y.stride for x, y in zip(a, b, strict=True)):
        return None
    rows, columns = (
        Interval(x.stride, min(x.low, y.low), max(x.high, y.high)) for x, y in zip(a, b, strict=True)
    )
    return rows, columns


class Filter(NamedTuple):
    """How a step slides over its input along one axis."""

    kernel: int
    stride: int
    padding: int  # before the first position
    dilation: int


POINTWISE = Filter(1, 1, 0, 1)


_POINTWISE_MODULES = (
    Add, Concat, ChannelSlice, Scale, nn.Identity, nn.ReLU, nn.ReLU6, nn.Dropout, nn.Dropout2d,
    nn.AlphaDropout, nn.BatchNorm2d, nn.LocalResponseNorm, nn.Softmax2d,
)  # fmt: skip


def filters(step: Step) -> tuple[Filter, Filter] | None:
    """How a step slides over rows and columns; None where one output depends on every position."""
    module = step.module
    if isinstance(module, _POINTWISE_MODULES) or step.target in ELEMENTWISE:
        return POINTWISE, POINTWISE
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros":
        kernel, stride, dilation = pair(module.kernel_size), pair(module.stride), pair(module.dilation)
        if module.padding == "same":  # torch puts the odd pixel behind
            padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        else:
            padding = pair(0 if isinstance(module.padding, str) else module.padding)
    elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        kernel = pair(module.kernel_size)
        stride = pair(module.stride)
        padding = pair(module.padding)
        dilation = pair(module.dilation) if isinstance(module, nn.MaxPool2d) else (1, 1)
    elif isinstance(module, BlurPool):
        kernel, stride, padding = pair(module.kernel_size), pair(module.stride), pair(module.padding)
        dilation = (1, 1)
    else:
        return None
    rows, columns = (Filter(*f) for f in zip(kernel, stride, padding, dilation, strict=True))
    return rows, columns


def extent_before(step: Step, after: Extent | None) -> Extent | None:
    """Positions of a step's input that its output positions `after` depend on; None for all of them."""
    sliding = filters(step)
    if after is None or sliding is None:
        return None
    rows, columns = (
        Interval(
            f.stride * i.stride,
            f.stride * i.low - f.padding,
            f.stride * i.high - f.padding + f.dilation * (f.kernel - 1),
        )
        for i, f in zip(after, sliding, strict=True)
    )
    return rows, columns


def units_inside(model: VisionModel, layer: str, side: int) -> tuple[slice, slice]:
    """Rows and columns of the units whose receptive field lies within pictures of this side.

    Raises LayerError where there is none.
    """
    spans = []
    for i in field_in(model, side, layer):
        first = -(i.low // i.stride) if i.stride else 0  # the first n with n * stride + low >= 0
        last = (side - 1 - i.high) // i.stride if i.stride else 0
        if last < first:
            raise LayerError(
                f"units of {layer!r} see {i.size} px, so in pictures of {side} px none looks at the picture alone: "
                "take larger pictures, or leave out inside"
            )
        spans.append(slice(first, last + 1))
    return spans[0], spans[1]


def field_in(model: VisionModel, side: int, layer: str) -> Extent:
    """Receptive field of a layer's units in pictures of this side; those of fully connected layers see all."""
    extent = extents(model.network, layer).get(model.network.input)
    return extent if extent is not None else (Interval(0, 0, side - 1), Interval(0, 0, side - 1))


def fits_inside(model: VisionModel, layers: Sequence[str], side: int) -> bool:
    """Has each of these layers units that see nothing but the picture, in pictures of this side?"""
    try:
        for layer in layers:
            units_inside(model, layer, side)
    except LayerError:
        return False
    return True
