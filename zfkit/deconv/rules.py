"""What each kind of operation does on the way back: one short rule each.

Everything is the transpose of what went forward, with three exceptions (Zeiler & Fergus, section 2.1): a ReLU
rectifies what comes back (`relu`); max-pooling, which is not linear, puts each value where its maximum came from, its
*switch* (`max_unpool`); contrast normalisation is left out (`local_response_norm`).

A rule gets R, what came back to the output of an operation, (B, C, h, w) or (B, F) for B units; the module that
describes the operation; and the `Context`. It returns what goes back to the operation's input, or one tensor for each
of its inputs. Where the operation slides a filter, R may be a window of its output, and the rule returns all that the
window reaches, padding included. R belongs to the rule, which may overwrite it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import one_of, pair
from ..errors import LayerError
from ..nets import graph
from ..nets.graph import Step
from ..nets.paper import BlurPool
from .windows import Window

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
            one_of(getattr(self, name), name, get_args(kinds), LayerError)


@dataclass(frozen=True)
class Context:
    """What a rule can see: its step, the options, what it recorded, and where the windows are."""

    step: Step
    options: Options
    kept: Any
    shapes: tuple[tuple[int, ...], ...]  # of the step's inputs, without N
    image: Tensor  # (B,) int64: which image of the forward pass each unit belongs to
    window: Window | None  # of the step's output; None where R is the whole map
    trimmed: bool = False  # is what was kept each unit's window, or the whole map of a unit?

    def cut(self, maps: Tensor) -> Tensor:
        """Each unit's part of maps (N, C, H, W) shaped like the step's output -> (B, C, h, w), like R.

        Outside the map the nearest values stand; R is 0 there.
        """
        return maps[self.image] if self.window is None or self.trimmed else self.window.cut(maps, self.image)


Record = Callable[[Any, Tensor, Tensor, Options], Any]  # module, input, output, options -> kept
# R, module, context -> R of the inputs; None for an input that nothing goes back to
Reverse = Callable[[Tensor, Any, Context], Tensor | Sequence[Tensor | None]]


@dataclass(frozen=True)
class Inputs:
    """What an operation read in the forward pass."""

    maps: dict[str, Tensor]  # copies, which later steps cannot overwrite
    others: dict[str, Any]  # parameters, constants and sizes

    @classmethod
    def of(cls, step: Step, inputs: Sequence[Any]) -> Inputs:
        values = dict(zip(step.inputs, inputs, strict=True))
        maps = {n: v.detach().clone() for n, v in values.items() if n in step.maps and isinstance(v, Tensor)}
        return cls(maps, {n: v for n, v in values.items() if n not in maps})


@dataclass(frozen=True)
class OperationRule:
    """The way back through one kind of operation, and what it needs to know of the forward pass."""

    reverse: Reverse
    record: Record | None = None  # of max-pooling, `output` are the places that the maxima came from
    when: Callable[[Options], bool] = lambda options: True  # does it record anything under these options?
    inputs: int | None = 1  # to how many of the operation's inputs it sends something back; None: to all
    treatment: str = "transpose"  # in a word, for `way_back`
    keeps_inputs: bool = False  # instead of `record`: what the operation read is kept, as `Inputs`


RULES: dict[Any, OperationRule] = {}  # by module class, function, or name of a tensor method


def register_rule(
    *targets: Any, record: Record | None = None, elementwise: bool = True, inputs: int = 1
) -> Callable[[Reverse], Reverse]:
    """Teach the reverse path a kind of operation; a decorator.

    Args:
        targets: module classes, functions, or names of tensor methods, as the network calls them.
        record: called in the forward pass as ``record(module, input, output, options)``, with the first input;
            what it returns (a tensor shaped like the output, say) is at hand on the way back as ``context.kept``.
        elementwise: True if each output depends only on the same position of the input. Otherwise the rule
            is given, and has to return, whole maps.
        inputs: how many of the operation's inputs the rule sends something back to. An operation that reads more
            maps than that is refused, since part of the way back would be missing.

    The function gets R, (B, C, h, w), what came back to the operation's output; the module, or None for a
    function; and the `Context`. It returns what goes back to the first input, in that input's shape, or a list, one
    tensor for each of its `inputs`, in the order of its arguments. ``context.cut(tensor)`` cuts recorded
    maps to R's windows. R may be overwritten; of `input` and `output`, `record` has to clone what it keeps as it is,
    since later steps may overwrite them.

    >>> @register_rule(torch.nn.SiLU, record=lambda module, x, y, options: x > 0)
    ... def silu(R, module, context):
    ...     positive = R.clamp(min=0)
    ...     return positive if context.options.rule == "deconvnet" else positive * context.cut(context.kept)
    """

    def register(reverse: Reverse) -> Reverse:
        for target in targets:
            RULES[target] = OperationRule(reverse, record, inputs=inputs, treatment="registered")
            (graph.ELEMENTWISE if elementwise else graph.WHOLE).add(target)
            if isinstance(target, type) and not target.__module__.startswith("torch.nn."):
                graph.LEAVES.add(target)  # torch.fx would look into modules that are not torch's own
        return reverse

    return register


def rule_of(step: Step) -> OperationRule | None:
    """The rule for a step: one registered for just this operation, else the one of its module's kind, if any."""
    own = RULES.get(step.target)
    if own is not None and (own.treatment == "registered" or not isinstance(step.module, graph.Together)):
        return own
    module: Any = type(step.module)
    for kind in module.__mro__:
        # A subclass that does something else in its forward is not that kind of module.
        if kind in RULES and (step.layer is None or module.forward is kind.forward):
            return RULES[kind]
    return None


def _rule(
    *targets: type,
    record: Record | None = None,
    when: Callable[[Options], bool] = lambda options: True,
    inputs: int | None = 1,
    treatment: str = "transpose",
) -> Callable[[Reverse], Reverse]:
    def register(reverse: Reverse) -> Reverse:
        RULES.update(dict.fromkeys(targets, OperationRule(reverse, record, when, inputs, treatment)))
        return reverse

    return register


# ------------------------------------------------------------------------------- the three exceptions


def _relu_mask(module: Any, x: Tensor, y: Tensor, options: Options) -> Tensor:
    return (y > 0) & (y < 6) if isinstance(module, nn.ReLU6) else y > 0


@_rule(
    nn.ReLU, nn.ReLU6, record=_relu_mask, when=lambda options: options.rule != "deconvnet", treatment="rectified"
)  # fmt: skip
def relu(R: Tensor, module: nn.Module, context: Context) -> Tensor:
    """Rectify what comes back; the gradient masks it by what went forward; guided backpropagation does both.

    The deconvnet treats ReLU6 as ReLU (nothing is capped on the way back); the masks of the other two know the 6.
    """
    if context.options.rule != "gradient":
        R = R.clamp_(min=0)
    return R if context.kept is None else R.mul_(context.cut(context.kept))


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


@_rule(nn.MaxPool2d, record=_switches, treatment="switches")
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


@_rule(nn.AdaptiveMaxPool2d, record=lambda module, x, y, options: y, treatment="switches")
def adaptive_max_unpool(R: Tensor, module: nn.Module, context: Context) -> Tensor:
    """As `max_unpool`, for windows that follow from the output's size."""
    C, H, W = context.shapes[0]
    unpooled = R.new_zeros(len(R), C, H * W)
    return unpooled.scatter_add_(2, context.kept[context.image].flatten(2), R.flatten(2)).view(-1, C, H, W)


@_rule(
    nn.LocalResponseNorm,
    record=lambda module, x, y, options: x.clone(),
    when=lambda options: options.lrn == "gradient",
    treatment="left out",
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


# ---------------------------------------------------------------------------------- the transposes


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


@_rule(nn.BatchNorm2d)
def batch_norm(R: Tensor, module: nn.BatchNorm2d, context: Context) -> Tensor:
    """Times what the layer multiplies each map by in evaluation mode."""
    assert module.running_var is not None  # without it there is no way back: see project
    factor = (module.running_var + module.eps).rsqrt()
    return R * (factor if module.weight is None else factor * module.weight)[:, None, None]


@_rule(nn.Linear)
def linear(R: Tensor, module: nn.Linear, context: Context) -> Tensor:
    """Times the transposed weights."""
    return R @ module.weight


@_rule(graph.Add, inputs=None)
def add(R: Tensor, module: nn.Module, context: Context) -> list[Tensor]:
    """Every term gets all of it."""
    return [R, *(R.clone() for _ in context.shapes[1:])]


@_rule(graph.Concat, inputs=None)
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
    """Back into the shape it had; rows and columns that it leaves alone may be a window."""
    if isinstance(module, graph.ReshapeChannels) and len(context.shapes[0]) == 3 and R.dim() == 4:
        return R.reshape(len(R), context.shapes[0][0], *R.shape[2:])
    return R.reshape(len(R), *context.shapes[0])


@_rule(graph.Rearrange)
def rearrange(R: Tensor, module: nn.Module, context: Context) -> Tensor:
    """Back to the places it was read from."""
    return adjoint(context.step.run, R, context.shapes[0])


@_rule(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
def identity(R: Tensor, module: nn.Module, context: Context) -> Tensor:
    """Unchanged: dropout rests outside training."""
    return R


@_rule(nn.Softmax, nn.LogSoftmax, treatment="left out")
def softmax(R: Tensor, module: nn.Module, context: Context) -> Tensor:
    """Left out at the end, where a class is shown by its logit; elsewhere it is passed by its gradient."""
    return R


def adjoint(linear_map: Callable[[Tensor], Tensor], R: Tensor, shape: Sequence[int]) -> Tensor:
    """The transpose of any linear map, applied to R; `shape` is that of its input without the first axis."""
    pull_back = torch.func.vjp(linear_map, R.new_zeros(len(R), *shape))[1]
    back: Tensor = pull_back(R)[0]
    return back
