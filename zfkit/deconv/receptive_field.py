"""What part of the image a unit sees: size, stride and offset of its receptive field.

Going back from a unit through the network, the positions it depends on are an interval along each axis of
every map before it: through a filter of size k, stride s, padding p and dilation d, an interval [low, high]
becomes [s low - p, s high - p + d (k - 1)] (Araujo et al. 2019, distill.pub/2019/computing-receptive-fields).
`project` cuts its windows out of every map with the same intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checks import Size, in_px, pair
from ..errors import LayerError
from ..nets.graph import (
    ELEMENTWISE,
    WHOLE,
    Add,
    ChannelSlice,
    Concat,
    Network,
    Padding,
    Pointwise,
    ReshapeChannels,
    Scale,
    SlidingFunction,
    Step,
)
from ..nets.model import VisionModel, expect_model
from ..nets.paper import BlurPool


class Interval(NamedTuple):
    """Positions [stride * i + low, stride * i + high] of a map that position i of a later map depends on.

    Behind an upsampling the stride may be a fraction, and so may the others be.
    """

    stride: Any  # int, or Fraction
    low: Any
    high: Any

    @property
    def size(self) -> int:
        """How many positions it holds at most."""
        return math.floor(self.high - self.low) + 1


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
    Units that see the whole image, as those of fully connected layers do, have stride 0. Behind an upsampling units
    of different phase see different pixels, and the field is the smallest that holds them all.

    Attributes:
        measured: was it found by gradients of noise, since the extent of some operation is not known? Such a field
            holds all pixels that had an influence there.
    """

    rows: Interval
    columns: Interval
    measured: bool = False

    @property
    def size(self) -> int:
        """Side of the field in pixels."""
        return self.rows.size

    @property
    def stride(self) -> int | Fraction:
        """Pixels between the fields of neighbouring units; a fraction where there are more units than pixels."""
        stride: int | Fraction = self.rows.stride
        return stride

    @property
    def offset(self) -> int:
        """Where the field of unit 0 begins; negative where padding comes in."""
        return math.ceil(self.rows.low)

    def exceeds(self, size: Size) -> bool:
        """Is it larger than pictures of this size, along one axis at least?"""
        height, width = pair(size)
        return self.rows.size > height or self.columns.size > width

    def box(self, row: int, col: int) -> Box:
        """Rectangle of the image, in pixels, that unit (row, col) sees; it may stick out of the image."""
        (sr, top, bottom), (sc, left, right) = self.rows, self.columns
        first = math.ceil(sc * col + left), math.ceil(sr * row + top)
        return Box(*first, math.floor(sc * col + right) + 1, math.floor(sr * row + bottom) + 1)


def receptive_field(model: VisionModel, layer: str) -> Field:
    """Receptive field of the units of `layer`, in pixels of the model's input.

    It follows from the sizes, strides and paddings on the way. Where an operation's extent is not known, the field is
    measured: by the gradients of units in the middle of noise (`Field.measured`).

    Raises LayerError for an unknown layer.

    >>> field = receptive_field(load_model("zfnet224"), "conv5")
    >>> field.size, field.stride
    (139, 16)
    """
    expect_model(model)
    model.network.find(layer)
    extent = extents(model.network, layer).get(model.network.input)
    if extent is not None:
        return Field(*extent)
    if len(model.network.shapes.get(layer, ())) == 3 and (found := _measured(model, layer)) is not None:
        return Field(*found, measured=True)
    return Field(*_whole(model.input_size))


def extents(network: Network, layer: str) -> dict[str, Extent | None]:
    """For every step up to `layer`, which of its positions a unit of `layer` depends on; None for all."""
    reach: dict[str, Extent | None] = {layer: (Interval(1, 0, 0), Interval(1, 0, 0))}
    for step in reversed(network.upto([layer])):
        if step.name not in reach:
            continue
        for name in step.maps:
            # A smaller map that is read again and again, as a gate is, counts as a whole.
            repeats = filters(step) == (POINTWISE, POINTWISE) and _places(network, name) != _places(
                network, step.name
            )
            before = None if repeats else extent_before(step, reach[step.name])
            reach[name] = _union(reach[name], before) if name in reach else before
    return reach


def _places(network: Network, name: str) -> tuple[int, ...]:
    """Rows and columns of a step's output, in pictures of the size that the network was traced with."""
    return network.shapes.get(name, ())[1:]


def _union(a: Extent | None, b: Extent | None) -> Extent | None:
    """What two branches together depend on; all of the map where their strides differ."""
    if a is None or b is None or any(x.stride != y.stride for x, y in zip(a, b, strict=True)):
        return None
    rows, columns = (
        Interval(x.stride, min(x.low, y.low), max(x.high, y.high)) for x, y in zip(a, b, strict=True)
    )
    return rows, columns


@torch.enable_grad()
def _measured(model: VisionModel, layer: str, draws: int = 4) -> Extent | None:
    """The field by gradients of noise, from two units near the middle; None where they see the whole picture.

    What a ReLU or a maximum hides in one noise shows in another, or in another map.
    """
    # So large that border effects stay away from the middle, if the network takes that size.
    sides = [2 * n for n in pair(model.input_size)]
    generator = torch.Generator().manual_seed(0)
    seen: list[Tensor] = []
    for _ in range(draws):
        x = torch.randn(1, len(model.mean), *sides, generator=generator)
        x = x.to(model.device, model.dtype).requires_grad_()
        try:
            *_, (_, _, y) = model.network.walk(x * 1, [layer])
            middle = [n // 2 for n in y.shape[2:]]
            if min(y.shape[2:]) < 4:
                return None
            weights = torch.randn(y.shape[1], generator=generator).to(y)
            units = [(weights * y[0, :, middle[0] + i, middle[1] + i]).sum() for i in (0, 1)]
            gradients = [torch.autograd.grad(u, x, retain_graph=True)[0][0] for u in units]
        except RuntimeError:  # it takes no pictures of this size, or an operation on the way has no gradient
            return None
        seen.append(torch.stack([g.abs().sum(0) > 0 for g in gradients]))
    support = torch.stack(seen).any(0)  # (2, rows, columns)
    intervals = []
    for axis, first in enumerate(middle):
        lines = [mask.any(1 - axis).nonzero().flatten().tolist() for mask in support]
        if not all(lines) or any(line[0] == 0 or line[-1] == sides[axis] - 1 for line in lines):
            return None
        (low, high), (low_next, high_next) = ((line[0], line[-1]) for line in lines)
        stride = low_next - low
        if stride < 1 or high_next - high != stride:
            return None
        intervals.append(Interval(stride, low - stride * first, high - stride * first))
    return intervals[0], intervals[1]


class Filter(NamedTuple):
    """How a step slides over its input along one axis; fractions where it makes the maps larger."""

    kernel: int | Fraction
    stride: int | Fraction
    padding: int | Fraction  # before the first position
    dilation: int


POINTWISE = Filter(1, 1, 0, 1)
_POINTWISE_MODULES = (
    Add, Concat, ChannelSlice, Scale, Pointwise, ReshapeChannels,
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.ChannelShuffle,
    nn.BatchNorm2d, nn.SyncBatchNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d, nn.Softmax2d,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Softplus, nn.Threshold, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.LogSigmoid,
    nn.Softsign, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink,
)  # fmt: skip


def filters(step: Step) -> tuple[Filter, Filter] | None:
    """How a step slides over rows and columns; None where one output depends on every position."""
    module: Any = step.module
    if isinstance(module, _POINTWISE_MODULES) or step.target in ELEMENTWISE:
        return POINTWISE, POINTWISE
    if type(module).__name__ == "FrozenBatchNorm2d":  # of torchvision, whose import takes as long as torch's
        return POINTWISE, POINTWISE
    if isinstance(module, Padding):
        return Filter(1, 1, module.top, 1), Filter(1, 1, module.left, 1)
    if isinstance(module, nn.ZeroPad2d | nn.ConstantPad2d):
        left, _, top, _ = module.padding
        return Filter(1, 1, top, 1), Filter(1, 1, left, 1)
    if isinstance(module, nn.Upsample):
        return (_upsampling(round(float(module.scale_factor)), module.mode),) * 2  # type: ignore[arg-type]
    if isinstance(module, nn.PixelShuffle):
        return (_upsampling(module.upscale_factor, "nearest"),) * 2
    if isinstance(module, nn.PixelUnshuffle):
        return (Filter(module.downscale_factor, module.downscale_factor, 0, 1),) * 2
    if isinstance(module, nn.ConvTranspose2d):
        sizes = [pair(n) for n in (module.kernel_size, module.stride, module.padding, module.dilation)]  # type: ignore[arg-type]
        rows, columns = (_transposed(*size) for size in zip(*sizes, strict=True))
        return rows, columns
    if (
        isinstance(module, nn.Conv2d | SlidingFunction)
        and getattr(module, "padding_mode", "zeros") == "zeros"
    ):
        kernel, stride, dilation = pair(module.kernel_size), pair(module.stride), pair(module.dilation)
        if module.padding == "same":  # torch puts the odd pixel behind
            padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        else:
            padding = pair(0 if isinstance(module.padding, str) else module.padding)
    elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d | BlurPool):
        kernel, stride, padding = pair(module.kernel_size), pair(module.stride), pair(module.padding)
        dilation = pair(module.dilation) if isinstance(module, nn.MaxPool2d) else (1, 1)
    else:
        return None
    rows, columns = (Filter(*f) for f in zip(kernel, stride, padding, dilation, strict=True))
    return rows, columns


def slides(step: Step) -> bool:
    """Can its rule be given a window of its output, and return all that the window reaches?"""
    if step.target in WHOLE or (isinstance(step.module, Concat) and len(step.inputs) > len(step.maps)):
        return False
    how = filters(step)
    return how == (POINTWISE, POINTWISE) or (how is not None and isinstance(step.module, _SLIDING))


# Their rules do so; other operations with a filter are undone by autograd, which wants whole maps.
_SLIDING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, BlurPool)


def _upsampling(factor: int, mode: str) -> Filter:
    """Position i reads i // factor (nearest), or the two positions around (i + 1/2) / factor - 1/2 (bilinear)."""
    if mode == "nearest":
        return _phases(factor, [(0, 0)] * factor)
    middle = [Fraction(2 * r + 1, 2 * factor) - Fraction(1, 2) for r in range(factor)]
    return _phases(factor, [(math.floor(m), math.ceil(m)) for m in middle])


def _transposed(kernel: int, stride: int, padding: int, dilation: int) -> Filter:
    """Position i reads every j with i = stride j - padding + dilation t, t from 0 to kernel - 1."""
    reads = []
    for i in range(stride):
        taps = [(i + padding - dilation * t) for t in range(kernel)]
        positions = [n // stride for n in taps if n % stride == 0] or [0]  # of a gap: nothing
        reads.append((min(positions), max(positions)))
    return _phases(stride, reads)


def _phases(factor: int, reads: Sequence[tuple[int, int]]) -> Filter:
    """The interval around i / factor that holds what positions i read, whose phase i mod factor decides on it."""
    low = min(first - Fraction(r, factor) for r, (first, _) in enumerate(reads))
    high = max(last - Fraction(r, factor) for r, (_, last) in enumerate(reads))
    return Filter(high - low + 1, Fraction(1, factor), -low, 1)


def extent_before(step: Step, after: Extent | None) -> Extent | None:
    """Positions of a step's input that its output positions `after` depend on; None for all of them."""
    sliding = filters(step)
    if after is None or sliding is None:
        return None
    intervals = []
    for i, f in zip(after, sliding, strict=True):
        low, high = f.stride * i.low - f.padding, f.stride * i.high - f.padding + f.dilation * (f.kernel - 1)
        stride = f.stride * i.stride
        if stride == int(stride):  # then only whole positions count
            stride, low, high = int(stride), math.ceil(low), math.floor(high)
        intervals.append(Interval(stride, low, high))
    return intervals[0], intervals[1]


def units_inside(model: VisionModel, layer: str, size: Size) -> tuple[slice, slice]:
    """Rows and columns of the units whose receptive field lies within pictures of this size.

    Raises LayerError where there is none.
    """
    spans = []
    if len(shape := expect_model(model).network.shapes.get(layer, ())) == 3 and shape[1] * shape[2] > 1:
        culprit = _sees_everything(model.network, layer)
        if culprit is not None:
            raise LayerError(
                f"units of {layer!r} see the whole picture, through {culprit.operation!r} at {culprit.name!r} (or its "
                "extent is not known), so none looks at the picture's inside alone: leave out inside"
            )
    for i, side in zip(field_in(model, size, layer), pair(size), strict=True):
        first = -(i.low // i.stride) if i.stride else 0  # the first n with n * stride + low >= 0
        last = (side - 1 - i.high) // i.stride if i.stride else 0
        if last < first:
            raise LayerError(
                f"units of {layer!r} see {i.size} px, so in pictures of {in_px(size)} none looks at the picture alone: "
                "take larger pictures or a layer that sees less, or leave out inside"
            )
        spans.append(slice(first, last + 1))
    return spans[0], spans[1]


def _sees_everything(network: Network, layer: str) -> Step | None:
    """The operation through which a unit depends on the whole picture, or on an unknown part of it."""
    reach = extents(network, layer)
    if (extent := reach.get(network.input)) is not None and all(i.stride == int(i.stride) for i in extent):
        return None
    way = network.way_to(layer)
    return next(
        (s for s in reversed(way) if reach[s.name] is not None and extent_before(s, reach[s.name]) is None),
        way[-1] if way else network.steps[layer],  # nothing leads back to the picture: it was detached, say
    )


def field_in(model: VisionModel, size: Size, layer: str) -> Extent:
    """Receptive field of a layer's units in pictures of this size; those of fully connected layers see all."""
    extent = extents(expect_model(model).network, layer).get(model.network.input)
    return _whole(size) if extent is None or any(i.stride != int(i.stride) for i in extent) else extent


def _whole(size: Size) -> Extent:
    """Every unit sees the whole picture."""
    height, width = pair(size)
    return Interval(0, 0, height - 1), Interval(0, 0, width - 1)


def window_in(model: VisionModel, size: Size, layer: str) -> Extent:
    """What is shown of a picture of this size for each unit: its receptive field, or all where that is larger."""
    field = zip(field_in(model, size, layer), _whole(size), strict=True)
    rows, columns = (whole if i.size > whole.size else i for i, whole in field)
    return rows, columns


def fits_inside(model: VisionModel, layers: Sequence[str], size: Size) -> bool:
    """Has each of these layers units that see nothing but the picture, in pictures of this size?"""
    try:
        for layer in layers:
            units_inside(model, layer, size)
    except LayerError:
        return False
    return True
