"""Each operation of an ONNX file as the torch module that computes the same, for `onnx.load_onnx`.

A reader takes one node of the file, as `Node`, and gives a `Layer`; `OPERATIONS`, at the end, lists them. What each
operation means: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelError

Array = np.ndarray[Any, np.dtype[Any]]
Pair = tuple[int, int]  # rows, columns; or before, after

CONVERT = "convert the network to PyTorch and use zfkit.wrap_model(net, ...)"


@dataclass
class Node:
    """One operation of the file, as the readers below see it; each takes the attributes that it knows.

    Attributes:
        name: for messages: file, node and operation.
        opset: version of the operations' definitions.
        shape: (N, C, H, W) or (N, F) of the data it reads.
        attributes: by name; those that nobody takes are unknown.
        constants: its other inputs, in order; None where one is left out.
        previous: the layer before it.
    """

    name: str
    opset: int
    shape: tuple[int, ...]
    attributes: dict[str, Any]
    constants: list[Array | None]
    previous: nn.Module | None

    def take(self, attribute: str, default: Any = None) -> Any:
        """The attribute's value; next time it is no longer there."""
        value = self.attributes.pop(attribute, default)
        return value.decode() if isinstance(value, bytes) else value

    def expect(self, attribute: str, *allowed: Any, default: Any = None) -> None:
        """Take an attribute that has no counterpart in torch, but for these values; the first is the default."""
        value = self.take(attribute, allowed[0] if default is None else default)
        if value not in allowed:
            raise self.refused(f"has {attribute}={value}, and zfkit reads {' or '.join(map(str, allowed))}")

    def pair(self, attribute: str, default: Sequence[int] = ()) -> Pair:
        """An attribute that has a number for rows and one for columns."""
        numbers = self.take(attribute, default)
        if len(numbers) != 2:
            raise self.refused(f"has {attribute} {list(numbers)}; zfkit reads networks of pictures, with two")
        return numbers[0], numbers[1]

    def constant(self, index: int) -> Array | None:
        return self.constants[index] if index < len(self.constants) else None

    def needed(self, index: int) -> Array:
        array = self.constant(index)
        if array is None:
            raise self.refused(f"lacks its input {index + 2}")
        return array

    def expect_maps(self) -> None:
        if len(self.shape) != 4:
            raise self.refused(f"reads {self.shape} where feature maps (N, C, H, W) belong")

    def expect_features(self) -> None:
        if len(self.shape) != 2:
            raise self.refused(f"reads {self.shape} where flattened features (N, F) belong")

    def refused(self, why: str) -> ModelError:
        return ModelError(f"{self.name} {why}; {CONVERT}")


class Layer(NamedTuple):
    """The module that does the same, on the "meta" device, and the numbers that go into it, if there are any."""

    module: nn.Module
    numbers: Mapping[str, Array | None] = {}


@contextlib.contextmanager
def refusing(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever onnx, numpy, torch or the disk raise into a ModelError that says what and what to do."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{what} ({one_line(error)}); {remedy}") from None


def one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def quoted(names: Iterable[str]) -> str:
    return " and ".join(repr(n) for n in names if n) or "nothing"


def tensors(node: Node, numbers: Mapping[str, Array | None]) -> dict[str, Tensor]:
    """Copies in float32. Raises ModelError for NaN and infinities, and for what is no real number."""
    arrays = {name: a for name, a in numbers.items() if a is not None}
    for name, a in arrays.items():
        if a.dtype.kind != "f" or not np.isfinite(a.astype(np.float32)).all():
            raise ModelError(
                f"{node.name}: {name} ({a.dtype}) must be finite floating-point numbers; export it again"
            )
    return {name: torch.tensor(np.asarray(a, np.float32)) for name, a in arrays.items()}


# ------------------------------------------------------------------------------------------------ padding


@dataclass(frozen=True)
class SlidingWindow:
    """Where the windows of a convolution or pool lie on the maps: rows, then columns, of everything."""

    node: Node
    kernel: Pair
    stride: Pair
    dilation: Pair
    pads: tuple[Pair, Pair]  # (top, bottom), (left, right)
    reach: Pair  # from the first place that a window reads to the last

    @classmethod
    def of(cls, node: Node, kernel: Sequence[int] = ()) -> SlidingWindow:
        """From the node's attributes; kernel: where `kernel_shape` is left out."""
        node.expect_maps()
        size, stride = node.pair("kernel_shape", kernel), node.pair("strides", (1, 1))
        dilation = node.pair("dilations", (1, 1))
        reach = tuple(d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True))
        mode, explicit = node.take("auto_pad", "NOTSET"), node.take("pads", (0, 0, 0, 0))
        if mode == "NOTSET":
            top, left, bottom, right = explicit
            pads = ((top, bottom), (left, right))
        elif mode == "VALID":
            pads = ((0, 0), (0, 0))
        elif mode in (
            "SAME_UPPER",
            "SAME_LOWER",
        ):  # a window for every stride; an odd place where the name says
            sides = []
            for n, r, s in zip(node.shape[2:], reach, stride, strict=True):
                total = max((math.ceil(n / s) - 1) * s + r - n, 0)
                half, rest = total // 2, total - total // 2
                sides.append((half, rest) if mode == "SAME_UPPER" else (rest, half))
            pads = (sides[0], sides[1])
        else:
            raise node.refused(f"has auto_pad={mode!r}, which ONNX does not define")
        return cls(node, size, stride, dilation, pads, (reach[0], reach[1]))

    @property
    def even(self) -> bool:
        return all(before == after for before, after in self.pads)

    def fit(self, ceil: bool, choices: Sequence[bool]) -> tuple[Pair, bool]:
        """torch's padding (rows, columns) and ceil_mode, one of `choices`, that give as many windows.

        torch pads both ends alike. With the same padding before the first window and the same number of windows,
        they are the same windows.
        """
        (top, bottom), (left, right) = self.pads
        wanted = self._counts(self.pads, ceil)
        for choice in choices:
            if self._counts(((top, top), (left, left)), choice) == wanted:
                return (top, left), choice
        raise self.node.refused(
            f"pads unevenly (top {top}, left {left}, bottom {bottom}, right {right}), which torch's layers do not"
        )

    def _counts(self, pads: Iterable[Pair], ceil: bool) -> list[int]:
        """How many windows there are; rounding up leaves out those that start behind the end."""
        counts = []
        for axis, (before, after) in enumerate(pads):
            size, reach, stride = self.node.shape[2 + axis], self.reach[axis], self.stride[axis]
            room = size + before + after - reach
            count = -(-room // stride) + 1 if ceil else room // stride + 1
            counts.append(count - (ceil and (count - 1) * stride >= size + before))
        return counts


# ------------------------------------------------------------------------- each operation as a torch module


def _conv(node: Node) -> Layer:
    weight, bias = node.needed(0), node.constant(1)
    if weight.ndim != 4:
        raise node.refused(
            f"has weights of shape {weight.shape}, and zfkit reads convolutions over rows and columns"
        )
    groups = node.take("group", 1)
    w = SlidingWindow.of(node, weight.shape[2:])
    padding: Any = "same"
    # torch's "same" has the odd row or column of zeros at the end.
    if w.stride != (1, 1) or w.even or w.pads != tuple(((r - 1) // 2, r // 2) for r in w.reach):
        padding, _ = w.fit(ceil=False, choices=[False])
    module = nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], w.kernel, w.stride, padding, w.dilation, groups,
        bias is not None, device="meta",
    )  # fmt: skip
    return Layer(module, {"weight": weight, "bias": bias})


def _max_pool(node: Node) -> Layer:
    w, ceil = SlidingWindow.of(node), bool(node.take("ceil_mode", 0))
    node.expect("storage_order", 0)
    # Padding at the end alone is often what a converter made of rounding up.
    padding, ceil = w.fit(ceil, [ceil] if w.even else [True, False])
    return Layer(nn.MaxPool2d(w.kernel, w.stride, padding, w.dilation, ceil_mode=ceil))


def _average_pool(node: Node) -> Layer:
    w = SlidingWindow.of(node)
    if w.dilation != (1, 1):
        raise node.refused("is dilated, which torch's average pool cannot be")
    ceil, counted = bool(node.take("ceil_mode", 0)), bool(node.take("count_include_pad", 0))
    # Where the padding counts in the mean, rounding up is no substitute for it.
    choices = [ceil] if w.even else [False] * (not ceil) if counted else [True, False]
    padding, ceil = w.fit(ceil, choices)
    return Layer(nn.AvgPool2d(w.kernel, w.stride, padding, ceil, counted))


def _global_average_pool(node: Node) -> Layer:
    node.expect_maps()
    return Layer(nn.AdaptiveAvgPool2d(1))


def _lrn(node: Node) -> Layer:
    node.expect_maps()
    size = node.take("size")
    if size % 2 == 0:
        raise node.refused(
            f"has size {size}: torch has the odd neighbour of an even number on the other side"
        )
    # Both divide alpha by size.
    alpha, beta, k = node.take("alpha", 1e-4), node.take("beta", 0.75), node.take("bias", 1.0)
    return Layer(nn.LocalResponseNorm(size, alpha, beta, k))


def _batch_norm(node: Node) -> Layer:
    node.expect("training_mode", 0)
    if node.opset < 7:
        node.expect("is_test", 1, default=0)
    node.expect("spatial", 1)
    node.take("momentum")
    kind = nn.BatchNorm2d if len(node.shape) == 4 else nn.BatchNorm1d
    module = kind(node.shape[1], node.take("epsilon", 1e-5), device="meta")
    module.num_batches_tracked = torch.tensor(0)  # which no ONNX file holds
    names = ("weight", "bias", "running_mean", "running_var")
    return Layer(module, {name: node.needed(i) for i, name in enumerate(names)})


def _gemm(node: Node) -> Layer:
    weight, bias = node.needed(0), node.constant(1)
    alpha, beta = node.take("alpha", 1.0), node.take("beta", 1.0)
    node.take("broadcast")  # of the first opsets; the shape of the bias says it
    node.expect("transA", 0)
    if not node.take("transB", 0):
        weight = weight.T
    if alpha != 1:
        weight = alpha * weight
    if bias is not None:
        bias = beta * np.broadcast_to(bias, (1, len(weight)))[0]
    return _linear(node, weight, bias)


def _linear(node: Node, weight: Array, bias: Array | None) -> Layer:
    """weight: (outputs, inputs)."""
    node.expect_features()
    outputs, inputs = weight.shape
    return Layer(
        nn.Linear(inputs, outputs, bias is not None, device="meta"), {"weight": weight, "bias": bias}
    )


def _add(node: Node) -> None:
    """A bias goes into the layer before."""
    layer, bias, axis = node.previous, node.needed(0), node.take("axis")
    node.take("broadcast")
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise node.refused("adds numbers to something else than a convolution or a fully connected layer")
    rank = len(node.shape)
    if axis is not None:  # before opset 7: the axis that the first of the numbers' axes is
        bias = bias.reshape(bias.shape + (1,) * (rank - axis % rank - bias.ndim))
    one = np.broadcast_to(bias, (1, node.shape[1], 1, 1)[:rank]).reshape(-1)
    there = 0 if layer.bias is None else layer.bias.detach().numpy()
    layer.bias = nn.Parameter(tensors(node, {"bias": one + there})["bias"])


def _flatten(node: Node) -> Layer | None:
    node.expect("axis", 1, 1 - len(node.shape))
    return Layer(nn.Flatten()) if len(node.shape) > 2 else None


def _reshape(node: Node) -> Layer | None:
    stated = node.take("shape") or node.needed(0).tolist()  # an attribute before opset 5
    keep = not node.take("allowzero", 0)
    count = math.prod(node.shape)
    wanted = [node.shape[i] if n == 0 and keep and i < len(node.shape) else n for i, n in enumerate(stated)]
    if wanted.count(-1) == 1:
        wanted[wanted.index(-1)] = count // max(1, -math.prod(wanted))
    if wanted == list(node.shape):
        return None
    if wanted != [node.shape[0], count // node.shape[0]]:
        raise node.refused(f"makes {stated} out of {node.shape}; zfkit reads those that flatten feature maps")
    return Layer(nn.Flatten())


def _dropout(node: Node) -> Layer:
    ratio, training = node.constant(0), node.constant(1)  # inputs since opset 12
    node.take("is_test")
    node.take("seed")
    if training is not None and training.any():
        raise node.refused("is in training mode: export the network in evaluation mode")
    return Layer(nn.Dropout(node.take("ratio", 0.5) if ratio is None else float(ratio)))


def _softmax(node: Node) -> Layer:
    node.expect_features()
    node.expect("axis", 1, -1)
    return Layer(nn.Softmax(1))


# What its layer is called, and how it is read; None where no layer is needed.
OPERATIONS: dict[str, tuple[str, Callable[[Node], Layer | None]]] = {
    "Conv": ("conv", _conv),
    "Relu": ("relu", lambda node: Layer(nn.ReLU())),
    "LRN": ("norm", _lrn),
    "BatchNormalization": ("bn", _batch_norm),
    "MaxPool": ("pool", _max_pool),
    "AveragePool": ("pool", _average_pool),
    "GlobalAveragePool": ("pool", _global_average_pool),
    "Flatten": ("flatten", _flatten),
    "Reshape": ("flatten", _reshape),
    "Gemm": ("fc", _gemm),
    "MatMul": ("fc", lambda node: _linear(node, node.needed(0).T, None)),
    "Add": ("", _add),
    "Dropout": ("drop", _dropout),
    "Softmax": ("softmax", _softmax),
    "Identity": ("", lambda node: None),
}
