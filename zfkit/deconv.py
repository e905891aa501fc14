"""The deconvnet: from one unit back to the pixels that excite it (Zeiler & Fergus, section 2.1, Fig. 1).

Set every activation of the layer to zero but one; then undo the layers one after the other: put each value
back where max-pooling took it from (the *switches* of the forward pass), rectify, and filter with the
transposed filters, down to an image with positive and negative values. `project` does it.

One short function per kind of operation says what it does on the way back, under "The rules" below. The
rest is bookkeeping: a unit depends on a window of every map before it, so only these windows are carried
back, for many units at once, and no autograd graph is built.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import graph
from .errors import LayerError, ZfkitError, out_of_memory, unknown
from .graph import Network, Step, pair
from .models import BlurPool, VisionModel
from .receptive_field import Extent, extents, filters

Rule = Literal["deconvnet", "guided", "gradient"]
Seed = Literal["one", "activation"]
Norm = Literal["skip", "gradient"]


@dataclass(frozen=True)
class Options:
    """How the reverse path treats what the literature treats differently.

    Attributes:
        rule: at a ReLU, with R what comes back and x what went in: "deconvnet" max(R, 0) (Zeiler & Fergus),
            "gradient" R [x > 0] (Simonyan 2013), "guided" max(R, 0) [x > 0] (Springenberg 2014).
        seed: what is put at the unit: "one", or its "activation" for the paper's brightness.
        lrn: contrast normalisation: "skip", as the paper does, or its "gradient".
    """

    rule: Rule = "deconvnet"
    seed: Seed = "one"
    lrn: Norm = "skip"

    def __post_init__(self) -> None:
        for name, kinds in (("rule", Rule), ("seed", Seed), ("lrn", Norm)):
            if getattr(self, name) not in get_args(kinds):
                raise LayerError(unknown(name, getattr(self, name), get_args(kinds)))


@dataclass(frozen=True)
class Tape:
    """What the reverse path needs to know of one forward pass over N images."""

    shapes: dict[str, tuple[int, ...]]  # of every step's output, without N
    kept: dict[str, Any]  # what a step's rule recorded: switches, masks ...
    outputs: dict[str, Tensor]  # of the layers asked, (N, C, H, W) or (N, F); none if it was made without
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Memory that it holds."""
        held = [t for t in (*self.kept.values(), *self.outputs.values()) if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in held)

    @classmethod
    def together(cls, tapes: Sequence[Tape]) -> Tape:
        """Tapes of single images, of one size, as the tape of all of them; without outputs."""
        first = tapes[0].kept
        kept = {n: torch.cat([t.kept[n] for t in tapes]) for n in first if first[n] is not None}
        return cls(tapes[0].shapes, kept, {}, tapes[0].dtype)


@dataclass(frozen=True)
class Window:
    """The part of a map that is carried back for each unit; fully connected layers have none."""

    origin: Tensor  # (B, 2) int64: row and column of its first position, possibly outside the map
    size: tuple[int, int]


@dataclass(frozen=True)
class Context:
    """What a rule can see: its step, the options, what it recorded, and where the windows are."""

    step: Step
    options: Options
    kept: Any
    shapes: tuple[tuple[int, ...], ...]  # of the step's inputs, without N
    image: Tensor  # (B,) int64: which image of the tape each unit belongs to
    window: Window | None  # of the step's output; None where that has no rows and columns

    def cut(self, maps: Tensor) -> Tensor:
        """Each unit's part of maps (N, C, H, W) shaped like the step's output -> (B, C, h, w).

        Outside the map the nearest values stand; R is 0 there.
        """
        if self.window is None:
            return maps[self.image]
        return _gather(maps, self.image, self.window)


Record = Callable[[Any, Tensor, Tensor, Options], Any]  # module, input, output, options -> kept
Reverse = Callable[[Tensor, Any, Context], Tensor | Sequence[Tensor]]  # R, module, context -> R of the inputs


@dataclass(frozen=True)
class _Entry:
    reverse: Reverse
    record: Record | None = None
    when: Callable[[Options], bool] = lambda options: True  # does it record anything under these options?


RULES: dict[Any, _Entry] = {}


def register_rule(
    *targets: Any, record: Record | None = None, elementwise: bool = True
) -> Callable[[Reverse], Reverse]:
    """Teach the reverse path a kind of operation; a decorator.

    Args:
        targets: module classes, functions, or names of tensor methods, as the network calls them.
        record: called in the forward pass as ``record(module, input, output, options)``; what it returns
            (a tensor shaped like the output, say) is at hand on the way back as ``context.kept``.
        elementwise: True if each output depends only on the same position of the input. Otherwise the rule
            is given, and has to return, whole maps.

    The function gets R, (B, C, h, w), what came back to the operation's output; the module, or None for a
    function; and the `Context`. It returns what goes back to the first input, in that input's shape.
    ``context.cut(tensor)`` cuts the recorded maps to R's windows. R may be overwritten; of `input` and
    `output`, `record` has to clone what it keeps as it is, since later steps may overwrite them.

    >>> @register_rule(torch.nn.SiLU, record=lambda module, x, y, options: x > 0)
    ... def silu(R, module, context):
    ...     positive = R.clamp(min=0)
    ...     return positive if context.options.rule == "deconvnet" else positive * context.cut(context.kept)
    """

    def register(reverse: Reverse) -> Reverse:
        for target in targets:
            RULES[target] = _Entry(reverse, record)
            if elementwise:
                graph.ELEMENTWISE.add(target)
            if isinstance(target, type) and not target.__module__.startswith("torch.nn."):
                graph.LEAVES.add(target)
        return reverse

    return register


def _rule(
    *targets: type, record: Record | None = None, when: Callable[[Options], bool] = lambda options: True
) -> Callable[[Reverse], Reverse]:
    def register(reverse: Reverse) -> Reverse:
        RULES.update(dict.fromkeys(targets, _Entry(reverse, record, when)))
        return reverse

    return register


def _entry(step: Step) -> _Entry | None:
    """The rule for a step: one registered for just this operation, else the one of its module's kind."""
    if step.target in RULES:
        return RULES[step.target]
    return next((RULES[kind] for kind in type(step.module).__mro__ if kind in RULES), None)


# ---------------------------------------------------------------------------------------------- the rules
# Each gets R, what came back to the output of an operation, and returns what goes back to its input. Where
# an operation slides a filter, R is a window of its output, and the rule returns all that the window reaches.
# R belongs to the rule, which may overwrite it.


def _relu_mask(module: Any, x: Tensor, y: Tensor, options: Options) -> Tensor:
    return (y > 0) & (y < 6) if isinstance(module, nn.ReLU6) else y > 0


@_rule(nn.ReLU, nn.ReLU6, record=_relu_mask, when=lambda options: options.rule != "deconvnet")
def relu(R: Tensor, module: nn.Module, context: Context) -> Tensor:
    """Rectify what comes back; the gradient masks it by what went forward; guided backpropagation does both.

    The deconvnet treats ReLU6 as ReLU (nothing is capped on the way back); the masks of the other two know the 6.
    """
    if context.options.rule != "gradient":
        R = R.clamp_(min=0)
    return R if context.kept is None else R.mul_(context.cut(context.kept))


@_rule(nn.Conv2d)
def conv(R: Tensor, module: nn.Conv2d, context: Context) -> Tensor:
    """Filter with the transposed filters; biases have no part in it."""
    if module.padding_mode != "zeros":  # what was read at the border goes back to where it came from
        return adjoint(lambda x: module._conv_forward(x, module.weight, None), R, context.shapes[0])
    weight, stride, dilation = module.weight, pair(module.stride), pair(module.dilation)
    height, width = pair(module.kernel_size)
    if module.groups == 1 and R.shape[2:] == (1, 1) and dilation == (1, 1):
        return (R.flatten(1) @ weight.flatten(1)).view(len(R), -1, height, width)
    if module.groups == 1 and stride == (1, 1):
        reach = dilation[0] * (height - 1), dilation[1] * (width - 1)
        flipped = weight.transpose(0, 1).flip(2, 3).contiguous(memory_format=torch.channels_last)
        return F.conv2d(R, flipped, padding=reach, dilation=dilation)
    if module.groups == 1 and dilation == (1, 1) and height >= stride[0] and width >= stride[1]:
        return _strided_transpose(R, weight, stride)
    return F.conv_transpose2d(R, weight, stride=stride, dilation=dilation, groups=module.groups)


def _strided_transpose(R: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
    """`F.conv_transpose2d`, several times faster where there are few output channels, as in the first layer.

    The output pixels of one phase (row mod stride, column mod stride) are a stride-1 convolution of R with
    every stride-th row and column of the filter. All phases together are one convolution with
    stride^2 x channels outputs; a pixel shuffle puts the phases in place.
    """
    outputs, inputs, kh, kw = weight.shape
    sh, sw = stride
    mh, mw = -(-kh // sh), -(-kw // sw)  # rows and columns of the filter in each phase
    phases = F.pad(weight, (0, mw * sw - kw, 0, mh * sh - kh))
    phases = phases.view(outputs, inputs, mh, sh, mw, sw).permute(1, 3, 5, 0, 2, 4)
    phases = phases.reshape(inputs * sh * sw, outputs, mh, mw).flip(2, 3)
    y = F.conv2d(R, phases.contiguous(memory_format=torch.channels_last), padding=(mh - 1, mw - 1))
    B, _, h, w = y.shape
    y = y.view(B, inputs, sh, sw, h, w).permute(0, 1, 4, 2, 5, 3).reshape(B, inputs, h * sh, w * sw)
    return y[:, :, : (R.shape[2] - 1) * sh + kh, : (R.shape[3] - 1) * sw + kw]


def _switches(module: nn.MaxPool2d, x: Tensor, y: Tensor, options: Options) -> Tensor:
    """Which place of its window each pooled value came from: 16 x row + column, uint8 (N, C, h, w).

    Windows too large for that get 256 x row + column, int16, or 65536 x row + column, int32.
    """
    (h, w), width = y.shape[2:], x.shape[3]  # y: places in the input, counted along its rows
    place = y.int()
    row, column = place // width, place % width
    down, across = _pool_starts(module, h, w, x.device)
    row, column = row - down[:, None], column - across
    (kh, kw), (dh, dw) = pair(module.kernel_size), pair(module.dilation)
    rows, columns = dh * (kh - 1) + 1, dw * (kw - 1) + 1
    if rows <= 16 and columns <= 16:
        return ((row << 4) + column).byte()
    if rows <= 128 and columns <= 256:
        return ((row << 8) + column).short()
    return (row << 16) + column


_COLUMN_BITS = {torch.uint8: 4, torch.int16: 8, torch.int32: 16}


def _pool_starts(module: nn.MaxPool2d, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First row of each row of windows, first column of each column of windows; int32."""
    stride, padding = pair(module.stride), pair(module.padding)
    down, across = (
        torch.arange(n, device=device, dtype=torch.int32) * s - p
        for n, s, p in zip((h, w), stride, padding, strict=True)
    )
    return down, across


@_rule(nn.MaxPool2d, record=_switches)
def max_unpool(R: Tensor, module: nn.MaxPool2d, context: Context) -> Tensor:
    """Put each value where its maximum came from; values of overlapping windows that meet there add up."""
    (kh, kw), (sh, sw), (dh, dw) = pair(module.kernel_size), pair(module.stride), pair(module.dilation)
    B, C, h, w = R.shape
    height, width = (h - 1) * sh + dh * (kh - 1) + 1, (w - 1) * sw + dw * (kw - 1) + 1
    bits = _COLUMN_BITS[context.kept.dtype]
    place = context.cut(context.kept).permute(0, 2, 3, 1).long()
    start = torch.arange(h, device=R.device)[:, None] * (sh * width) + torch.arange(w, device=R.device) * sw
    place = (place >> bits).mul_(width - (1 << bits)).add_(place)  # row * width + column
    place = place.add_(start[..., None])
    unpooled = R.new_zeros(B, height * width, C)
    unpooled.scatter_add_(1, place.reshape(B, h * w, C), R.permute(0, 2, 3, 1).reshape(B, h * w, C))
    return unpooled.view(B, height, width, C).permute(0, 3, 1, 2)


def _shares(module: nn.AvgPool2d, x: Tensor, y: Tensor, options: Options) -> Tensor:
    """What one value of its window counts in each mean, (N, 1, h, w): it differs at borders."""
    ones = torch.ones_like(x[:1, :1])
    size = module.kernel_size, module.stride, module.padding, module.ceil_mode
    means = F.avg_pool2d(ones, *size, module.count_include_pad, module.divisor_override)
    counts = F.avg_pool2d(ones, *size, divisor_override=1)
    return (means / counts).expand(len(x), -1, -1, -1)


@_rule(nn.AvgPool2d, record=_shares)
def avg_unpool(R: Tensor, module: nn.AvgPool2d, context: Context) -> Tensor:
    """Share each value evenly among the places it is the mean of."""
    B, C = R.shape[:2]
    R = (R * context.cut(context.kept)).flatten(0, 1)[:, None]
    ones = R.new_ones(1, 1, *pair(module.kernel_size))
    spread = F.conv_transpose2d(R, ones, stride=pair(module.stride))
    return spread.view(B, C, *spread.shape[2:])


@_rule(BlurPool)
def blur_unpool(R: Tensor, module: BlurPool, context: Context) -> Tensor:
    """Spread each value over the places it was blurred from, by the weights of the blur."""
    B, C = R.shape[:2]
    spread = F.conv_transpose2d(R.flatten(0, 1)[:, None], module.kernel.to(R), stride=module.stride)
    return spread.view(B, C, *spread.shape[2:])


@_rule(nn.AdaptiveAvgPool2d)
def adaptive_avg_unpool(R: Tensor, module: nn.AdaptiveAvgPool2d, context: Context) -> Tensor:
    """As `avg_unpool`, for windows that follow from the output's size."""
    C, H, W = context.shapes[0]
    asked: Any = module.output_size
    size = (asked, asked) if asked is None or isinstance(asked, int) else asked
    wanted = (size[0] or H, size[1] or W)
    return adjoint(lambda x: F.adaptive_avg_pool2d(x, wanted), R.reshape(len(R), C, *wanted), (C, H, W))


@_rule(nn.AdaptiveMaxPool2d, record=lambda module, x, y, options: y)
def adaptive_max_unpool(R: Tensor, module: nn.Module, context: Context) -> Tensor:
    """As `max_unpool`, for windows that follow from the output's size."""
    C, H, W = context.shapes[0]
    unpooled = R.new_zeros(len(R), C, H * W)
    return unpooled.scatter_add_(2, context.kept[context.image].flatten(2), R.flatten(2)).view(-1, C, H, W)


@_rule(nn.BatchNorm2d)
def batch_norm(R: Tensor, module: nn.BatchNorm2d, context: Context) -> Tensor:
    """Times what the layer multiplies each map by in evaluation mode."""
    if module.running_var is None:
        raise LayerError(f"{context.step.name}: a BatchNorm2d without running statistics has no way back")
    factor = (module.running_var + module.eps).rsqrt()
    return R * (factor if module.weight is None else factor * module.weight)[:, None, None]


@_rule(
    nn.LocalResponseNorm,
    record=lambda module, x, y, options: x.clone(),
    when=lambda options: options.lrn == "gradient",
)
def local_response_norm(R: Tensor, module: nn.LocalResponseNorm, context: Context) -> Tensor:
    """Pass it on unchanged, as the paper does, or multiply with the derivative.

    With y = x S^-beta and S = k + alpha / n sum x^2 over n neighbouring maps, what goes back is
    R S^-beta - (2 alpha beta / n) x sum(R x S^(-beta - 1)) over the same neighbourhoods.
    """
    if context.kept is None:
        return R
    x, n, alpha, beta = context.cut(context.kept), module.size, module.alpha, module.beta
    before, behind = n // 2, (n - 1) // 2

    def neighbours(t: Tensor, low: int, high: int) -> Tensor:
        return F.pad(t, (0, 0, 0, 0, low, high)).unfold(1, n, 1).sum(-1)

    S = module.k + alpha / n * neighbours(x * x, before, behind)
    return R * S**-beta - 2 * alpha * beta / n * x * neighbours(R * x * S ** (-beta - 1), behind, before)


@_rule(nn.Linear)
def linear(R: Tensor, module: nn.Linear, context: Context) -> Tensor:
    """Times the transposed weights."""
    return R @ module.weight


@_rule(graph.Add)
def add(R: Tensor, module: nn.Module, context: Context) -> list[Tensor]:
    """Every term gets all of it."""
    return [R, *(R.clone() for _ in context.shapes[1:])]


@_rule(graph.Concat)
def concat(R: Tensor, module: nn.Module, context: Context) -> list[Tensor]:
    """Every branch gets its own maps."""
    return list(R.split([shape[0] for shape in context.shapes], 1))


@_rule(graph.ChannelSlice)
def channel_slice(R: Tensor, module: graph.ChannelSlice, context: Context) -> Tensor:
    """The maps that were left out get nothing."""
    whole = R.new_zeros(len(R), context.shapes[0][0], *R.shape[2:])
    whole[:, module.channels] = R
    return whole


@_rule(graph.Scale)
def scale(R: Tensor, module: graph.Scale, context: Context) -> Tensor:
    """Times the same constant."""
    return R * module.factor


@_rule(graph.Reshape, nn.Flatten)
def reshape(R: Tensor, module: nn.Module, context: Context) -> Tensor:
    """Back into the shape it had."""
    return R.reshape(len(R), *context.shapes[0])


@_rule(graph.Rearrange)
def rearrange(R: Tensor, module: nn.Module, context: Context) -> Tensor:
    """Back to the places it was read from."""
    return adjoint(context.step.run, R, context.shapes[0])


@_rule(nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.Softmax, nn.LogSoftmax)
def identity(R: Tensor, module: nn.Module, context: Context) -> Tensor:
    """Unchanged: dropout rests outside training, and a softmax at the end is left out."""
    return R


def adjoint(linear_map: Callable[[Tensor], Tensor], R: Tensor, shape: Sequence[int]) -> Tensor:
    """The transpose of any linear map, applied to R; `shape` is that of its input without the first axis."""
    pull_back = torch.func.vjp(linear_map, R.new_zeros(len(R), *shape))[1]
    back: Tensor = pull_back(R)[0]
    return back


# ------------------------------------------------------------------------------------------- the way back


class Deconvnet:
    """Forward passes that keep switches, and reverse passes for many units of them.

    Args:
        network: a traced network.
        layers: the units' layers; the forward pass ends after the last of them.

    Raises LayerError for an unknown layer, and for an operation on the way that no rule covers.
    """

    def __init__(self, network: Network, layers: Sequence[str], options: Options = Options()) -> None:
        self.network, self.layers, self.options = network, tuple(layers), options
        self._extents: dict[str, dict[str, Extent | None]] = {}
        for layer in layers:
            network.find(layer)
            self._extents[layer] = extents(network, layer)
            self._check_rules(layer)

    def _check_rules(self, layer: str) -> None:
        reached = {layer}
        for step in reversed(self.network.upto([layer])):
            if step.name not in reached or not step.inputs:
                continue
            entry = _entry(step)
            inner_softmax = isinstance(step.module, nn.Softmax | nn.LogSoftmax) and step.name != layer
            if entry is None or (inner_softmax and entry.reverse is identity):
                raise LayerError(
                    f"no rule says what {step.operation!r} (at {step.name!r}, on the way from {layer!r} to the "
                    f"image) does on the way back. Give it one with zfkit.register_rule({step.operation})"
                )
            reached.update(
                step.inputs if isinstance(step.module, graph.Add | graph.Concat) else step.inputs[:1]
            )

    def _record(self, step: Step) -> Record | None:
        """What records something of this step in the forward pass."""
        entry = _entry(step) if step.inputs else None
        return entry.record if entry and entry.record and entry.when(self.options) else None

    def forward(self, x: Tensor, outputs: bool = True) -> Tape:
        """Run images (N, C, H, W) as far as the layers need, keeping what the reverse path asks for.

        Without `outputs` the pass ends after the last step of which anything is kept: for the deconvnet, the
        last max-pooling. That serves units whose position is known and whose seed is 1.
        """
        if not outputs:
            try:
                return result_of(self.running(x, outputs=False))
            except RuntimeError as error:  # an operation that does not take an empty batch
                if out_of_memory(error):
                    raise
        return result_of(self.running(x))

    @torch.no_grad()
    def running(self, x: Tensor, outputs: bool = True) -> Generator[None, None, Tape]:
        """`forward`, one operation at a time: for who has to answer to others meanwhile."""
        pooled_from: dict[str, Tensor] = {}

        def evaluate(step: Step, inputs: tuple[Any, ...]) -> Any:
            module = step.module
            if isinstance(module, nn.MaxPool2d):
                y, pooled_from[step.name] = F.max_pool2d(
                    inputs[0], module.kernel_size, module.stride, module.padding, module.dilation,
                    module.ceil_mode, return_indices=True,
                )  # fmt: skip
                return y
            if isinstance(module, nn.AdaptiveMaxPool2d):
                y, pooled_from[step.name] = F.adaptive_max_pool2d(
                    inputs[0], module.output_size, return_indices=True
                )  # type: ignore[call-overload]
                return y
            return step.run(*inputs)

        def shapes_only(step: Step, inputs: tuple[Any, ...]) -> Any:
            """On no image at all."""
            given = zip(step.inputs, inputs, strict=True)
            return step.run(*(v[:0] if isinstance(v, Tensor) and n in images else v for n, v in given))

        steps = self.network.steps
        order = [step.name for step in self.network.upto(self.layers)]
        images = {name for name in order if steps[name].inputs or name == self.network.input}
        recording = {name for name in order if self._record(steps[name])}
        needed = set(order)
        if not outputs:
            needed = {step.name for step in self.network.upto(recording)}

        def run(step: Step, inputs: tuple[Any, ...]) -> Any:
            return (evaluate if step.name in needed else shapes_only)(step, inputs)

        shapes, kept, found = {}, {}, {}
        for step, inputs, y in self.network.walk(x, self.layers, run):
            yield
            if not isinstance(y, Tensor):
                continue
            self._check_sum(step, inputs, y)
            shapes[step.name] = tuple(y.shape[1:])
            record = self._record(step)
            if record:
                kept[step.name] = record(step.module, inputs[0], pooled_from.pop(step.name, y), self.options)
            if outputs and step.name in self.layers:
                found[step.name] = y.clone()  # a ReLU may follow in place
        return Tape(shapes, kept, found, x.dtype)

    def _check_sum(self, step: Step, inputs: tuple[Any, ...], y: Tensor) -> None:
        """Raise LayerError for a sum of maps of different shapes: what goes back to the smaller is not R."""
        steps = self.network.steps
        terms = [  # without parameters, to which nothing goes back
            x
            for x, name in zip(inputs, step.inputs, strict=True)
            if steps[name].inputs or name == self.network.input
        ]
        if isinstance(step.module, graph.Add) and any(x[: len(y)].shape != y.shape for x in terms):
            found = " and ".join(str(tuple(x.shape[1:])) for x in terms)
            raise LayerError(
                f"{step.name!r} adds maps of different shapes, {found}: no rule says what that does on the way back"
            )

    @torch.no_grad()
    def reverse(
        self, tape: Tape, layer: str, image: Tensor, channel: Tensor, position: Tensor | None
    ) -> tuple[Tensor, Window]:
        """Carry units back to the pixels.

        Args:
            image: (B,) which image of the tape each unit belongs to.
            channel: (B,) feature map.
            position: (B, 2) row and column; None in layers that have none.

        Returns (B, C, h, w), signed, 0 outside the image, and where in the image these windows lie.
        """
        plan = _Plan(self._extents[layer], tape.shapes, self.network.upto([layer]), position, image.device)
        if self.options.seed == "activation":
            units = (image, channel) if position is None else (image, channel, *position.to(image.device).T)
            seed = tape.outputs[layer][units]
        else:
            seed = torch.ones(len(image), dtype=tape.dtype, device=image.device)
        R = plan.seed(layer, channel, seed, tape.shapes[layer][0])
        coming: dict[str, Tensor] = {layer: R}
        for step in reversed(self.network.upto([layer])):
            if step.name == self.network.input or step.name not in coming:
                continue
            entry, R = _entry(step), coming.pop(step.name)
            if entry is None or not step.inputs:
                continue
            tensors = [name for name in step.inputs if name in tape.shapes]
            context = Context(
                step, self.options, tape.kept.get(step.name), tuple(tape.shapes[name] for name in tensors),
                image, plan.window(step.name),
            )  # fmt: skip
            back = entry.reverse(R, step.module, context)
            for name, part in zip(tensors, [back] if isinstance(back, Tensor) else back, strict=False):
                part = plan.fit(part, step, name)
                coming[name] = coming[name].add_(part) if name in coming else part
        source = self.network.input
        window = plan.window(source)
        assert window is not None
        return coming[source], window

    def unit_bytes(self, layer: str, tape: Tape) -> int:
        """Memory that one unit of `layer` needs on the way back, roughly: four copies of its largest window."""
        anywhere = torch.zeros(1, 2, dtype=torch.long)
        steps = self.network.upto([layer])
        plan = _Plan(self._extents[layer], tape.shapes, steps, anywhere, anywhere.device)
        sizes = (
            tape.shapes[name][0] * plan.size(name)[0] * plan.size(name)[1]
            for name in self._extents[layer]
            if len(tape.shapes.get(name, ())) == 3
        )
        return 4 * tape.dtype.itemsize * max(sizes, default=1)


Made = TypeVar("Made")


def result_of(steps: Generator[Any, None, Made]) -> Made:
    """What a generator returns, once it has run to its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: Made = end.value
            return made


class _Plan:
    """Where each unit's window of every map lies: cut out around the unit, or the whole map.

    A window is the whole map where one unit depends on all of it, or would cover it anyway.
    """

    def __init__(
        self,
        extent: dict[str, Extent | None],
        shapes: dict[str, tuple[int, ...]],
        steps: list[Step],
        position: Tensor | None,
        device: torch.device,
    ) -> None:
        self.extent, self.shapes, self.position, self.device = extent, shapes, position, device
        self.whole = {n for n in extent if n in shapes and self._covers(n)}
        for step in reversed(steps):
            if step.name not in extent or step.name not in shapes or not step.inputs:
                continue
            if step.name in self.whole or filters(step) is None:  # such rules are given whole maps
                self.whole.update(n for n in (step.name, *step.inputs) if n in extent and n in shapes)
        if position is not None:
            self.first, self.last = position.min(0).values.tolist(), position.max(0).values.tolist()

    def _covers(self, name: str) -> bool:
        extent, shape = self.extent[name], self.shapes[name]
        if extent is None or len(shape) != 3:
            return True
        return all(i.size >= n for i, n in zip(extent, shape[1:], strict=True))

    def _intervals(self, name: str) -> Extent:
        extent = self.extent[name]
        assert extent is not None
        return extent

    def size(self, name: str) -> tuple[int, int]:
        if name in self.whole:
            return self.shapes[name][1], self.shapes[name][2]
        rows, columns = self._intervals(name)
        return rows.size, columns.size

    def window(self, name: str) -> Window | None:
        if len(self.shapes[name]) != 3:
            return None
        if name in self.whole or self.position is None:
            count = 1 if self.position is None else len(self.position)
            return Window(torch.zeros(count, 2, dtype=torch.long, device=self.device), self.size(name))
        stride, low = zip(*((i.stride, i.low) for i in self._intervals(name)), strict=True)
        origin = self.position * torch.tensor(stride) + torch.tensor(low)
        return Window(origin.to(self.device), self.size(name))

    def seed(self, layer: str, channel: Tensor, value: Tensor, channels: int) -> Tensor:
        """(B, C, 1, 1), the whole map, or (B, F): zero but for the unit."""
        B = len(channel)
        one = value.new_zeros(B, channels)
        one[torch.arange(B, device=one.device), channel] = value
        if self.position is None:
            return one
        one = one[:, :, None, None]
        if layer not in self.whole:
            return one
        return paste(one, self.position.to(one.device), self.shapes[layer][1:])

    def fit(self, R: Tensor, step: Step, name: str) -> Tensor:
        """What a rule returned, moved into the planned window of the step's input `name`; 0 outside the map."""
        shape = self.shapes[name]
        sliding = filters(step)
        if len(shape) != 3 or sliding is None:
            return R
        height, width = shape[1:]
        if step.name in self.whole:  # R begins `padding` before the map
            (top, left) = (f.padding for f in sliding)
            R = R[:, :, top : top + height, left : left + width]
            return F.pad(R, (0, width - R.shape[3], 0, height - R.shape[2]))
        after = self._intervals(step.name)
        low = [f.stride * i.low - f.padding for f, i in zip(sliding, after, strict=True)]
        if name in self.whole:
            assert self.position is not None
            stride = [f.stride * i.stride for f, i in zip(sliding, after, strict=True)]
            origin = self.position * torch.tensor(stride) + torch.tensor(low)
            return paste(R, origin.to(R.device), (height, width))
        planned = self._intervals(name)
        before = [a - i.low for a, i in zip(low, planned, strict=True)]
        behind = [i.size - b - n for i, b, n in zip(planned, before, R.shape[2:], strict=True)]
        if any(before) or any(behind):
            R = F.pad(R, (before[1], behind[1], before[0], behind[0]))
        if isinstance(step.module, nn.Conv2d | nn.AvgPool2d | BlurPool) or step.target in graph.ELEMENTWISE:
            return self._erase_outside(R, planned, (height, width))
        return R  # other rules leave zeros where they found zeros

    def _erase_outside(self, R: Tensor, planned: Extent, size: tuple[int, int]) -> Tensor:
        """What padding sent beyond the map's border is lost."""
        assert self.position is not None
        inside = None
        for axis, (i, length) in enumerate(zip(planned, size, strict=True)):
            first, last = i.stride * self.first[axis] + i.low, i.stride * self.last[axis] + i.high
            if first < 0 or last >= length:
                place = self.position[:, axis, None] * i.stride + torch.arange(i.low, i.high + 1)
                here = ((place >= 0) & (place < length)).to(R.device)
                here = here[:, None, :, None] if axis == 0 else here[:, None, None, :]
                inside = here if inside is None else inside & here
        return R if inside is None else R.mul_(inside)


def _gather(maps: Tensor, image: Tensor, window: Window) -> Tensor:
    """Windows (B, C, h, w) of maps (N, C, H, W); outside a map, its nearest values."""
    N, C, H, W = maps.shape
    h, w = window.size
    rows = (window.origin[:, :1] + torch.arange(h, device=maps.device)).clamp(0, H - 1)
    columns = (window.origin[:, 1:] + torch.arange(w, device=maps.device)).clamp(0, W - 1)
    places = (image[:, None, None] * H + rows[:, :, None]) * W + columns[:, None, :]
    flat = maps.permute(0, 2, 3, 1).reshape(N * H * W, C)  # a view, for channels-last maps
    return flat.index_select(0, places.flatten()).view(len(image), h, w, C).permute(0, 3, 1, 2)


def paste(R: Tensor, origin: Tensor, size: Sequence[int]) -> Tensor:
    """Windows (B, C, h, w) put at `origin` (B, 2) of maps of `size`, 0 elsewhere -> (B, C, H, W)."""
    H, W = size
    maps = _gather(R, torch.arange(len(R), device=R.device), Window(-origin, (H, W)))
    rows = torch.arange(H, device=R.device) - origin[:, :1]
    columns = torch.arange(W, device=R.device) - origin[:, 1:]
    inside = ((rows >= 0) & (rows < R.shape[2]))[:, :, None] & ((columns >= 0) & (columns < R.shape[3]))[
        :, None
    ]
    return maps * inside[:, None]


# ------------------------------------------------------------------------------------------------ project


def project(
    model: VisionModel,
    batch: Tensor,
    layer: str,
    channel: int | Tensor | Sequence[int],
    position: Tensor | Sequence[Sequence[int]] | None = None,
    *,
    rule: Rule = "deconvnet",
    seed: Seed = "one",
    lrn: Norm = "skip",
) -> Tensor:
    """What excites one unit of each image, in pixels (Zeiler & Fergus, section 2.1).

    Args:
        batch: preprocessed images (N, C, H, W), as `model.preprocess` returns them.
        layer: dotted name, one of `model.layers`.
        channel: feature map (or output of a fully connected layer), one for all or (N,).
        position: (N, 2) row and column of the unit; None for each image's maximum of that map.
        rule: "deconvnet", "guided" (Springenberg 2014) or "gradient" (Simonyan 2013).
        seed: put 1 at the unit ("one"), or its "activation", for the paper's brightness.
        lrn: contrast normalisation is left out on the way back ("skip", as in the paper), or differentiated
            ("gradient").

    Returns (N, C, H, W): positive and negative values around 0; 0 wherever the unit does not look.

    Raises LayerError for an unknown layer, a channel or position out of range, images too small to reach
    the layer, or an operation on the way for which there is no rule.

    >>> x = model.preprocess(photos.take([0, 1]))
    >>> pixels = project(model, x, "conv5", channel=17)
    """
    deconvnet = Deconvnet(model.network, [layer], Options(rule, seed, lrn))
    tape = forward(model, deconvnet, batch)
    output = tape.outputs[layer]
    N, channels = output.shape[:2]
    chosen = _channels(channel, N, channels, layer, output.device)
    if output.dim() == 4:
        if position is None:
            places = _strongest(output[torch.arange(N, device=output.device), chosen])
        else:
            places = _positions(position, N, tuple(output.shape[2:]), layer)
    elif position is not None:
        raise LayerError(f"units of {layer!r} have no position: leave out position")
    else:
        places = None
    image = torch.arange(N, device=output.device)
    pixels, window = deconvnet.reverse(tape, layer, image, chosen, places)
    if window.size == tuple(batch.shape[2:]) and not window.origin.any():
        return pixels
    return paste(pixels, window.origin, batch.shape[2:])


def forward(model: VisionModel, deconvnet: Deconvnet, batch: Tensor, outputs: bool = True) -> Tape:
    """`deconvnet.forward`, with errors in the user's terms."""
    channels, dtype = len(model.mean), str(model.dtype).removeprefix("torch.")
    expected = f"expected preprocessed images, {dtype} (N, {channels}, H, W), as model.preprocess(images) returns them"
    if not isinstance(batch, Tensor):
        raise LayerError(f"{expected}, got {type(batch).__name__}")
    if batch.dim() != 4 or batch.dtype != model.dtype or batch.shape[1] != channels or not len(batch):
        raise LayerError(f"{expected}, got {str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}")
    try:
        # A copy: the network's first operation may work in place.
        return deconvnet.forward(batch.clone(memory_format=torch.channels_last), outputs)
    except RuntimeError as error:
        raise cannot_run(model, deconvnet.layers, batch, error) from error


def cannot_run(model: VisionModel, layers: Sequence[str], batch: Tensor, error: RuntimeError) -> Exception:
    """What to raise when a network fails on these images: their size is wrong, unless memory ran out."""
    if isinstance(error, ZfkitError) or out_of_memory(error):
        return error
    return LayerError(
        f"{model.name} cannot run to {', '.join(layers)} on images of {batch.shape[3]} x {batch.shape[2]} px; "
        f"it was made for {model.input_size} px ({str(error).splitlines()[0]})"
    )


def _channels(
    channel: int | Tensor | Sequence[int], N: int, count: int, layer: str, device: torch.device
) -> Tensor:
    chosen = _whole_numbers(channel)
    if chosen is None or chosen.shape not in ((), (N,)):
        raise LayerError(
            f"channel must be one whole number, or one for each of the {N} images, not {channel!r}"
        )
    chosen = chosen.to(device).expand(N)
    if N and not (int(chosen.min()) >= 0 and int(chosen.max()) < count):
        raise LayerError(f"channel {channel} is out of range: {layer!r} has {count}, 0 to {count - 1}")
    return chosen


def _positions(
    position: Tensor | Sequence[Sequence[int]], N: int, size: tuple[int, ...], layer: str
) -> Tensor:
    places = _whole_numbers(position)
    if places is not None and places.shape == (2,):
        places = places.expand(N, 2)
    if places is None or places.shape != (N, 2):
        raise LayerError(
            f"position must be (row, column) whole numbers for each of the {N} images, not {position!r}"
        )
    if N and not ((places >= 0).all() and (places < torch.tensor(size)).all()):
        raise LayerError(
            f"position {places.tolist()} is out of range: maps of {layer!r} are {size[0]} x {size[1]} here"
        )
    return places


def _whole_numbers(value: Any) -> Tensor | None:
    """As int64 on the CPU; None for anything else than whole numbers."""
    try:
        numbers = torch.as_tensor(value).cpu()
    except (TypeError, ValueError, RuntimeError):
        return None
    return None if numbers.is_floating_point() or numbers.is_complex() else numbers.long()


def _strongest(maps: Tensor) -> Tensor:
    """(N, 2) row and column of the maximum of each map (N, H, W); of equals, the first along the rows."""
    W = maps.shape[2]
    flat = maps.flatten(1)
    place = (flat == flat.amax(1, keepdim=True)).int().argmax(1).cpu()
    return torch.stack([place // W, place % W], 1)
