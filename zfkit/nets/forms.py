"""Functions and tensor methods in the normal form of modules: `describe`.

A network's author may write ``nn.ReLU()``, ``F.relu(x)`` or ``x.relu_()``: all three are described by an `nn.ReLU`.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .graph import (
    DROPOUTS,
    Add,
    BatchStatistics,
    ChannelSlice,
    Concat,
    Padding,
    Pointwise,
    Rearrange,
    Reshape,
    ReshapeChannels,
    Scale,
    SlidingFunction,
)

Shape = tuple[int, ...] | None  # of a node's output without N; None where it is no tensor

# Each place of the result depends on the same place of the maps: names of functions and of tensor methods.
_POINTWISE = frozenset(
    """
    leaky_relu prelu rrelu elu selu celu gelu silu mish hardswish softplus threshold relu6 hardtanh sigmoid tanh
    hardsigmoid logsigmoid softsign tanhshrink hardshrink softshrink clamp clip exp log log1p expm1 sqrt rsqrt pow abs
    sin cos erf square reciprocal neg mul imul sub isub rsub div truediv itruediv true_divide maximum minimum
    batch_norm alpha_dropout to type float double where lerp addcmul sign round floor ceil gt ge lt le eq ne
    """.split()
)
# Functions that give a tuple, of which an index takes one tensor.
TUPLES = frozenset("chunk split tensor_split unbind split_with_sizes sort topk".split())
TUPLES_ALONG_AN_AXIS = frozenset("max min median mode kthvalue".split())  # without one they give a tensor
VIEWS = frozenset(
    """
    view reshape flatten unflatten squeeze unsqueeze permute transpose swapaxes movedim expand expand_as chunk split
    tensor_split unbind getitem select narrow contiguous detach T mT view_as reshape_as to type float double getattr
    diagonal unfold real
    """.split()
)


def describe(node: fx.Node, shape: Callable[[fx.Node], Shape]) -> nn.Module | None:
    """The module that does what this function or method call does; None where none is known.

    Args:
        shape: gives the shape, without N, of a node's output for one picture.
    """
    name, result = called(node), shape(node)
    known = _FORMS.get(node.target)
    if known is not None:
        try:
            inspect.signature(known).bind(*node.args, **node.kwargs)
        except TypeError:
            known = None  # called in a way this form does not know
    form = known(*node.args, **node.kwargs) if known is not None else None
    flat = node.all_input_nodes and len(shape(node.all_input_nodes[0]) or ()) != 3
    if form is not None and not (isinstance(form, nn.AdaptiveAvgPool2d) and name == "mean" and flat):
        return form
    read: Any = next(iter(node.all_input_nodes), None)
    if name == "getitem" and read is not None and gives_several(read):
        node, name, read = read, called(read), read.all_input_nodes[0]  # what one of several is a piece of
    before, after = (shape(read), result) if read is not None else (None, None)
    if before is None or after is None:
        return Reshape() if name in ("view", "reshape", "flatten") else None
    if name == "conv2d":
        return _conv2d(shape, *node.args, **node.kwargs)
    if name == "interpolate" and len(before) == len(after) == 3:
        arguments = _arguments(node, "input size scale_factor mode align_corners")
        fixed = arguments.get("size") is not None and not isinstance(arguments["size"], fx.Node)
        mode = str(arguments.get("mode", "nearest"))
        return None if fixed else upsampling(before, after, mode, bool(arguments.get("align_corners")))
    if name == "pad":
        return _pad(*node.args, **node.kwargs)
    same_places = len(after) == len(before) == 3 and before[1:] == after[1:]
    if name == "batch_norm":
        arguments = _arguments(node, "input running_mean running_var weight bias training")
        if arguments.get("running_var") is None or arguments.get("training"):
            return BatchStatistics()
    if same_places and (
        (name in _POINTWISE and _constants_fit(node, name, shape)) or _leaves_places_alone(node, name)
    ):
        return Pointwise()
    if name in ("view", "reshape", "flatten", "unflatten"):
        # Whatever happens to the axes before them, the last two stay rows and columns.
        return (
            ReshapeChannels()
            if len(before) >= 3 and len(after) >= 3 and before[-2:] == after[-2:]
            else Reshape()
        )
    if name in ("transpose", "swapaxes") and len(before) > 3 and set(node.args[1:]) == {1, 2}:
        return Pointwise()  # of groups and channels
    return None


def called(node: fx.Node) -> str:
    """Name of the function or method, without the underscore of its variant in place."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return str(name).removesuffix("_")


def gives_several(node: fx.Node) -> bool:
    """Does it give a tuple of tensors?"""
    name = called(node)
    along = "dim" in node.kwargs or any(type(a) is int for a in node.args[1:])
    return name in TUPLES or (name in TUPLES_ALONG_AN_AXIS and along)


def is_view(node: fx.Node) -> bool:
    """Can the result of this function or method share memory with what it reads?"""
    return node.target in DROPOUTS or called(node) in VIEWS


def upsampling(
    before: tuple[int, ...], after: tuple[int, ...], mode: str, align_corners: bool = False
) -> nn.Module | None:
    """Describes maps (C, H, W) made larger by a whole factor; with aligned corners it depends on their size."""
    factor = after[1] // before[1]
    whole = after[1:] == tuple(factor * n for n in before[1:])
    if not whole or align_corners or mode not in ("nearest", "bilinear"):
        return None
    return nn.Upsample(scale_factor=factor, mode=mode)


def _leaves_places_alone(node: fx.Node, name: str) -> bool:
    """Does it work along the channels alone?"""
    if name == "getitem":
        index = node.args[1]
        return isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None)
    if name not in _AXIS:
        return name == "channel_shuffle"
    named = [node.kwargs[n] for n in ("dim", "dims", "axis") if n in node.kwargs]
    behind = node.args[_AXIS[name] :]
    given = [*named, *behind] if name == "flip" else named or list(behind[:1])  # x.flip(1, 2)
    axes = [a for g in given for a in (g if isinstance(g, tuple | list) else [g])]
    return bool(axes) and all(type(a) is int and a in (1, -3) for a in axes)


# Where the axis stands among the arguments, of operations that work along one.
_AXIS = {
    "flip": 1, "roll": 2, "softmax": 1, "log_softmax": 1, "index_select": 1, "cumsum": 1, "mean": 1, "sum": 1,
    "amax": 1, "chunk": 2, "split": 2, "tensor_split": 2, "unbind": 1, "max": 1, "min": 1, "median": 1, "sort": 1,
    "topk": 2,
}  # fmt: skip


def _arguments(node: fx.Node, names: str) -> dict[str, Any]:
    """The arguments of a call by their names, of which these are the first."""
    return dict(zip(names.split(), node.args, strict=False)) | dict(node.kwargs)


def _constants_fit(node: fx.Node, name: str, shape: Callable[[fx.Node], Shape]) -> bool:
    """Are parameters among the arguments the same at every place? Masks and mean images are not."""
    if name in ("batch_norm", "prelu"):  # one number for each channel
        return True
    constants = [n for n in node.all_input_nodes if n.op == "get_attr"]
    return all((s := shape(n)) is not None and len(s) >= 2 and s[-2:] == (1, 1) for n in constants)


def _max_pool2d(  # type: ignore[no-untyped-def]
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, ceil_mode=ceil_mode)


def _avg_pool2d(  # type: ignore[no-untyped-def]
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    return nn.AvgPool2d(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _local_response_norm(input, size, alpha=1e-4, beta=0.75, k=1.0):  # type: ignore[no-untyped-def]
    return nn.LocalResponseNorm(size, alpha, beta, k)


def _conv2d(  # type: ignore[no-untyped-def]
    shape, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1
):
    size = shape(weight)
    if size is None or padding == "same":
        return None
    # size lacks one axis
    return SlidingFunction(size[1:], stride, 0 if padding == "valid" else padding, dilation)


def _pad(input, pad, mode="constant", value=None):  # type: ignore[no-untyped-def]
    whole = isinstance(pad, tuple | list) and len(pad) == 4 and all(isinstance(n, int) for n in pad)
    return Padding(pad[2], pad[0]) if whole and mode == "constant" else None


def _concat(tensors, dim=0, axis=None):  # type: ignore[no-untyped-def]
    if isinstance(tensors, fx.Node):
        return None  # several at once, as chunk gives them
    tensors = list(tensors)
    channels = (dim if axis is None else axis) in (1, -3)
    return Concat() if channels and len(set(tensors)) == len(tensors) else None


def _sum(input, other, alpha=1):  # type: ignore[no-untyped-def]
    if not (isinstance(input, fx.Node) and isinstance(other, fx.Node)):
        return nn.Identity()  # a constant takes no part in the reverse path
    if alpha != 1:
        return None
    return Scale(2.0) if input is other else Add()


def _difference(input, other, alpha=1):  # type: ignore[no-untyped-def]
    if isinstance(input, fx.Node) and not isinstance(other, fx.Node):
        return nn.Identity()
    return (
        Scale(-1.0) if isinstance(other, fx.Node) and not isinstance(input, fx.Node) and alpha == 1 else None
    )


def _product(input, other):  # type: ignore[no-untyped-def]
    factor = other if isinstance(input, fx.Node) else input
    return Scale(float(factor)) if isinstance(factor, int | float) else None


def _quotient(input, other):  # type: ignore[no-untyped-def]
    return Scale(1 / other) if isinstance(input, fx.Node) and isinstance(other, int | float) else None


def _mean(input, dim=None, keepdim=False):  # type: ignore[no-untyped-def]
    spatial = {d % 4 for d in dim} == {2, 3} if isinstance(dim, tuple | list) else False
    return nn.AdaptiveAvgPool2d(1) if spatial else None


def _getitem(input, index):  # type: ignore[no-untyped-def]
    if not isinstance(index, tuple) or not index or index[0] != slice(None):
        return None
    bounds = [b for i in index if isinstance(i, slice) for b in (i.start, i.stop, i.step)]
    if any(isinstance(b, fx.Node) for b in bounds):
        return None  # as far as another map goes
    if len(index) == 2 and isinstance(index[1], slice):
        return ChannelSlice(index[1])
    constant = all(isinstance(i, int | slice | type(None) | type(Ellipsis)) for i in index)
    return Rearrange() if constant else None


def _always(module: Callable[[], nn.Module]) -> Callable[..., nn.Module]:
    return lambda *args, **kwargs: module()


_FORMS: dict[Any, Callable[..., nn.Module | None]] = {
    **dict.fromkeys([F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"], _always(nn.ReLU)),
    F.relu6: _always(nn.ReLU6),
    **dict.fromkeys([F.max_pool2d, torch.max_pool2d], _max_pool2d),
    F.avg_pool2d: _avg_pool2d,
    F.adaptive_avg_pool2d: lambda input, output_size: nn.AdaptiveAvgPool2d(output_size),
    F.adaptive_max_pool2d: lambda input, output_size, return_indices=False: nn.AdaptiveMaxPool2d(output_size),
    F.local_response_norm: _local_response_norm,
    **dict.fromkeys(DROPOUTS, _always(nn.Identity)),
    **dict.fromkeys(["contiguous", "clone", "detach", torch.clone], _always(nn.Identity)),
    **dict.fromkeys([F.softmax, F.log_softmax, torch.softmax, "softmax", "log_softmax"], _always(nn.Softmax)),
    **dict.fromkeys([torch.squeeze, torch.unsqueeze, "squeeze", "unsqueeze"], _always(Rearrange)),
    **dict.fromkeys([operator.add, operator.iadd, torch.add, "add", "add_"], _sum),
    **dict.fromkeys([operator.sub, operator.isub, torch.sub, "sub", "sub_"], _difference),
    **dict.fromkeys([operator.neg, torch.neg, "neg"], lambda input: Scale(-1.0)),
    **dict.fromkeys([operator.mul, operator.imul, torch.mul, "mul", "mul_"], _product),
    **dict.fromkeys([operator.truediv, operator.itruediv, torch.div, "div", "div_"], _quotient),
    **dict.fromkeys([torch.mean, "mean"], _mean),
    **dict.fromkeys([torch.cat, torch.concat], _concat),
    operator.getitem: _getitem,
}
