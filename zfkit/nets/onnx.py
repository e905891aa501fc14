"""Networks from ONNX files: `load_onnx`, for plain chains of layers such as the ONNX zoo's zfnet512.

Every operation in the file becomes the torch module that computes the same, under the paper's names. What has
no such module, and a network that branches, is refused by name: convert those to PyTorch and use
`zfkit.wrap_model`. What each operation means: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelError, unknown

Array = np.ndarray[Any, np.dtype[Any]]


class OnnxNetwork(nn.Sequential):
    """A chain of layers out of an ONNX file.

    Attributes:
        input_name: what the file calls its input.
        input_shape: (C, H, W) that the file gives it.
    """

    input_name: str = ""
    input_shape: tuple[int, ...] = ()

    def swap_red_and_blue(self) -> None:
        """Turn the first convolution's filters round, (O, 3, h, w) -> [:, (2, 1, 0)]: BGR in becomes RGB in.

        Raises ModelError where the first layer is no convolution of three channels.
        """
        first = next(iter(self))
        if not isinstance(first, nn.Conv2d) or first.in_channels != 3 or first.groups != 1:
            raise ModelError(
                f"channels='bgr' turns round the filters of a first convolution of 3 channels, not of {first}"
            )
        first.weight = nn.Parameter(first.weight.flip(1), requires_grad=False)


def load_onnx(path: str | Path, *, channels: Literal["rgb", "bgr"] = "rgb") -> OnnxNetwork:
    """The network in an ONNX file, if it is a plain chain of layers: evaluation mode, float32, on the CPU.

    Reads Conv, Relu, LRN, MaxPool, AveragePool, GlobalAveragePool, BatchNormalization, Flatten, Reshape, Gemm,
    MatMul, Add (of a bias), Dropout, Softmax and Identity. Takes (N, C, H, W) and gives what the file's network
    gives: for zfnet512 (N, 1000) probabilities.

    Layers get the paper's names. Convolutions and fully connected layers are counted together (conv1 ...
    conv5, fc6 ...); relu, norm, pool, bn and drop take the number of the one they follow; a second of the same
    name is "pool5_2". Padding that differs between opposite sides is read where torch gives the same numbers
    without it, at the input size that the file states.

    Args:
        path: a file as `torch.onnx.export` and `onnx.save` write it, its weights inside or beside it.
        channels: the order in which the file's network takes its colours; an ONNX file does not say. With
            "bgr" (Caffe, OpenCV) the first convolution's filters are turned round, so that what is returned
            takes RGB; with "rgb" the weights stay as they are.

    Raises ModelError where the file is missing or damaged, where an operation is not in the list above or has
    no equal in torch, and where the package onnx is not installed.

    >>> net = load_onnx("mynet.onnx")
    >>> model = zfkit.wrap_model(net, mean=[123.7, 116.3, 103.5], scale=1 / 58, input_size=224)
    """
    if channels not in ("rgb", "bgr"):
        raise ModelError(unknown("order of channels", channels, ("rgb", "bgr")))
    path = Path(path).expanduser()
    model = _read(path)
    constants = _initialisers(path, model.graph)
    now, shape = _input(path, model.graph, constants)
    net = OnnxNetwork(_layers(path.name, model, constants, now, shape)).eval().requires_grad_(False)
    net.input_name, net.input_shape = now, shape[1:]
    if channels == "bgr":
        net.swap_red_and_blue()
    return net


def _read(path: Path) -> Any:
    """The file as an onnx.ModelProto, with the weights that lie beside it."""
    try:
        import onnx
    except ImportError:
        raise ModelError(f"reading {path.name} needs the package onnx: pip install 'zfkit[onnx]'") from None
    if not path.is_file():
        raise ModelError(f"there is no file {str(path)!r}; check the path")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # of protobuf, or of the disk
        raise ModelError(
            f"{path.name} is no ONNX file, or it is cut short or damaged ({_line(error)}); download or copy it again"
        ) from None
    if not model.graph.node or not any(o.domain in _DOMAINS for o in model.opset_import):
        raise ModelError(
            f"{path.name} holds no network: it is empty, cut short or no ONNX file; download or copy it again"
        )
    beside = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # onnx raises what it likes for a missing, short or forbidden file
        raise ModelError(
            f"{path.name} keeps its weights in {', '.join(sorted(beside))}, which cannot be read ({_line(error)}); "
            "put it into the same folder"
        ) from None
    return model


def _initialisers(path: Path, graph: Any) -> dict[str, Array]:
    from onnx import numpy_helper

    constants = {}
    for tensor in graph.initializer:
        try:
            constants[tensor.name] = numpy_helper.to_array(tensor)
        except Exception as error:
            raise ModelError(
                f"{path.name}: the weights {tensor.name!r} are damaged ({_line(error)}); download or copy it again"
            ) from None
    return constants


def _input(path: Path, graph: Any, constants: Mapping[str, Array]) -> tuple[str, tuple[int, ...]]:
    """Name and (N, C, H, W) of the one input that is not a weight; N = 1 where the file leaves it open."""
    inputs = [i for i in graph.input if i.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        names = [", ".join(repr(v.name) for v in values) or "none" for values in (inputs, graph.output)]
        raise ModelError(
            f"{path.name}: zfkit reads networks with one input and one output; inputs here: {names[0]}; outputs: "
            f"{names[1]}"
        )
    dims = inputs[0].type.tensor_type.shape.dim
    shape = tuple(d.dim_value if d.dim_value > 0 else (1 if i == 0 else 0) for i, d in enumerate(dims))
    if len(shape) != 4 or 0 in shape:
        told = _line(", ".join(str(d.dim_value or d.dim_param or "?") for d in dims))
        raise ModelError(
            f"{path.name}: its input {inputs[0].name!r} is stated as ({told}); expected (N, channels, rows, columns) "
            "with numbers for all but N: export it for pictures of a fixed size"
        )
    return inputs[0].name, shape


@dataclass
class _Node:
    """One operation of the file, as the functions below read it; each takes the attributes it knows.

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

    def pair(self, attribute: str, default: Sequence[int] = ()) -> tuple[int, int]:
        """An attribute that has a number for rows and one for columns."""
        numbers = self.take(attribute, default)
        if len(numbers) != 2:
            raise self.refused(
                f"has {attribute} {list(numbers)}, and zfkit reads networks of pictures, with two"
            )
        return numbers[0], numbers[1]

    def constant(self, index: int) -> Array | None:
        return self.constants[index] if index < len(self.constants) else None

    def needed(self, index: int) -> Array:
        array = self.constant(index)
        if array is None:
            raise self.refused(f"lacks its input {index + 2}")
        return array

    def maps(self) -> tuple[int, int]:
        """Rows and columns of the feature maps that it reads."""
        if len(self.shape) != 4:
            raise self.refused(f"reads {self.shape} where feature maps (N, C, H, W) belong")
        return self.shape[2], self.shape[3]

    def features(self) -> int:
        """How many numbers of each picture it reads, where they are in one row."""
        if len(self.shape) != 2:
            raise self.refused(f"reads {self.shape} where flattened features (N, F) belong")
        return self.shape[1]

    def refused(self, why: str) -> ModelError:
        return ModelError(
            f"{self.name} {why}; convert the network to PyTorch and use zfkit.wrap_model(net, ...)"
        )


def _layers(
    file: str, model: Any, constants: dict[str, Array], now: str, shape: tuple[int, ...]
) -> OrderedDict[str, nn.Module]:
    """The chain from the input, named `now`, to the output. Shapes are followed on torch's "meta" device."""
    opset = next(o.version for o in model.opset_import if o.domain in _DOMAINS)
    nodes = model.graph.node
    made = {now, *(o for proto in nodes for o in proto.output)}
    used = {o.name for o in model.graph.output}.union(*(proto.input for proto in nodes))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    count = 0
    for proto in nodes:
        node = _Node(
            name=_line(f"{file}: node {proto.name or ' '.join(proto.output)!r} ({proto.op_type})"),
            opset=opset,
            shape=shape,
            attributes=_attributes(file, proto),
            constants=[constants.get(i) for i in proto.input if i != now],
            previous=next(reversed(layers.values()), None),
        )
        data = [i for i in proto.input if i and i not in constants]
        if proto.op_type in _FOLDED and not data and proto.output:
            constants[proto.output[0]] = _fold(node, proto, constants, model.opset_import)
            continue
        if proto.domain not in _DOMAINS or proto.op_type not in _OPERATIONS:
            raise node.refused(f"is none of the operations that zfkit reads ({', '.join(_OPERATIONS)})")
        missing = [i for i in data if i not in made]
        if missing:
            raise node.refused(f"reads {missing[0]!r}, which the file does not hold")
        outputs = [o for i, o in enumerate(proto.output) if i == 0 or o in used]
        if data != [now] or len(outputs) != 1:
            raise node.refused(
                f"reads {_list(data)} and gives {_list(outputs)}: the network branches there, and zfkit reads "
                f"plain chains (a node that reads {now!r} alone and gives one output)"
            )
        if proto.input[0] != now and proto.op_type != "Add":
            raise node.refused(f"takes the data, {now!r}, for its weights")
        kind, read = _OPERATIONS[proto.op_type]
        try:
            layer = read(node)
            if layer is not None:
                shape = tuple(layer.module.eval()(torch.empty(shape, device="meta")).shape)
                layer.module.load_state_dict(_tensors(node, layer.numbers), assign=True)
        except ModelError:
            raise
        except Exception as error:  # whatever torch and numpy say of numbers that do not fit together
            raise node.refused(f"cannot work on an input {shape} ({_line(error)})") from None
        node.take("consumed_inputs")  # a hint to the memory of the first opsets
        if node.attributes:
            raise node.refused(f"has an attribute that zfkit does not know, {_list(sorted(node.attributes))}")
        if layer is not None:
            count += kind in ("conv", "fc")
            name = kind if kind in ("flatten", "softmax") else f"{kind}{count}"
            again = sum(n.split("_")[0] == name for n in layers)
            layers[f"{name}_{again + 1}" if again else name] = layer.module
        now = proto.output[0]
    if model.graph.output[0].name != now:
        raise ModelError(
            f"{file}: its output {model.graph.output[0].name!r} is not where its chain of layers ends, {now!r}; zfkit "
            "reads plain chains: convert the network to PyTorch and use zfkit.wrap_model(net, ...)"
        )
    return layers


def _attributes(file: str, proto: Any) -> dict[str, Any]:
    from onnx.helper import get_attribute_value

    try:
        return {a.name: get_attribute_value(a) for a in proto.attribute}
    except Exception as error:
        raise ModelError(f"{file} is damaged ({_line(error)}); download or copy it again") from None


def _tensors(node: _Node, numbers: Mapping[str, Array]) -> dict[str, Tensor]:
    """Copies, in float32 but for counts. Raises ModelError for NaN and infinities, and for what is no real number."""
    odd = [
        f"{n} ({a.dtype})" for n, a in numbers.items() if a.dtype.kind != "f" and n != "num_batches_tracked"
    ]
    if odd:
        raise ModelError(f"{node.name}: {', '.join(odd)} should hold floating-point numbers; export it again")
    tensors = {
        name: torch.tensor(a if a.dtype.kind == "i" else np.asarray(a, np.float32))
        for name, a in numbers.items()
    }
    broken = [name for name, t in tensors.items() if not torch.isfinite(t).all()]
    if broken:
        raise ModelError(f"{node.name}: {', '.join(broken)} hold NaN or infinite values; export it again")
    return tensors


def _fold(node: _Node, proto: Any, constants: Mapping[str, Array], opsets: Any) -> Array:
    """What an operation on constants gives, by onnx's own reference implementation."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    given = {i: constants[i] for i in proto.input if i}
    inputs = [
        helper.make_tensor_value_info(i, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for i, a in given.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(proto.output[0])]
    graph = helper.make_graph([proto], "constants", inputs, outputs)
    try:
        values = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run(None, given)
        return np.asarray(values[0])
    except Exception as error:
        raise node.refused(f"cannot be computed ({_line(error)})") from None


def _line(error: object) -> str:
    """An error of onnx, numpy or torch in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _list(names: Iterable[str]) -> str:
    return " and ".join(repr(n) for n in names if n) or "nothing"


# Each gives the module that does the same, on the "meta" device, and the numbers that go into it, or None
# where no layer is needed.


class _Layer(NamedTuple):
    module: nn.Module
    numbers: dict[str, Array] = {}  # noqa: RUF012  (nobody writes to it)


def _conv(node: _Node) -> _Layer:
    weight, bias = node.needed(0), node.constant(1)
    if weight.ndim != 4:
        raise node.refused(
            f"has weights of shape {weight.shape}, and zfkit reads convolutions over rows and columns"
        )
    kernel, groups = node.pair("kernel_shape", weight.shape[2:]), node.take("group", 1)
    stride, dilation = node.pair("strides", (1, 1)), node.pair("dilations", (1, 1))
    reach = _reach(kernel, dilation)
    pads = _pads(node, reach, stride)
    padding: Any = "same"
    # torch's "same" has the odd row or column of zeros at the end.
    if stride != (1, 1) or _even(pads) or pads != tuple(((r - 1) // 2, r // 2) for r in reach):
        padding, _ = _padding(node, pads, reach, stride, ceil=False, choices=[False])
    module = nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], kernel, stride, padding, dilation, groups, bias is not None,
        device="meta",
    )  # fmt: skip
    return _Layer(module, {"weight": weight} if bias is None else {"weight": weight, "bias": bias})


def _max_pool(node: _Node) -> _Layer:
    kernel, stride = node.pair("kernel_shape"), node.pair("strides", (1, 1))
    dilation, ceil = node.pair("dilations", (1, 1)), bool(node.take("ceil_mode", 0))
    if node.take("storage_order", 0):
        raise node.refused("counts the places of its maxima along columns (storage_order=1)")
    reach = _reach(kernel, dilation)
    pads = _pads(node, reach, stride)
    # Padding at the end alone is often what a converter made of rounding up.
    choices = [ceil] if _even(pads) else [True, False]
    padding, ceil = _padding(node, pads, reach, stride, ceil, choices)
    return _Layer(nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil))


def _average_pool(node: _Node) -> _Layer:
    kernel, stride = node.pair("kernel_shape"), node.pair("strides", (1, 1))
    if node.pair("dilations", (1, 1)) != (1, 1):
        raise node.refused("is dilated, which torch's average pool cannot be")
    ceil, counted = bool(node.take("ceil_mode", 0)), bool(node.take("count_include_pad", 0))
    pads = _pads(node, kernel, stride)
    # Where the padding counts in the mean, rounding up is no substitute for it.
    choices = [ceil] if _even(pads) else [False] * (not ceil) if counted else [True, False]
    padding, ceil = _padding(node, pads, kernel, stride, ceil, choices)
    return _Layer(nn.AvgPool2d(kernel, stride, padding, ceil, counted))


def _global_average_pool(node: _Node) -> _Layer:
    node.maps()
    return _Layer(nn.AdaptiveAvgPool2d(1))


def _relu(node: _Node) -> _Layer:
    return _Layer(nn.ReLU())


def _lrn(node: _Node) -> _Layer:
    node.maps()
    size = node.take("size")
    if size % 2 == 0:
        raise node.refused(
            f"has size {size}: torch has the odd neighbour of an even number on the other side"
        )
    # Both divide alpha by size.
    alpha, beta, k = node.take("alpha", 1e-4), node.take("beta", 0.75), node.take("bias", 1.0)
    return _Layer(nn.LocalResponseNorm(size, alpha, beta, k))


def _batch_norm(node: _Node) -> _Layer:
    training = node.take("training_mode", 0) or (node.opset < 7 and not node.take("is_test", 0))
    if training or not node.take("spatial", 1):
        raise node.refused("is in training mode, or not spatial: export the network in evaluation mode")
    node.take("momentum")
    kind = nn.BatchNorm2d if len(node.shape) == 4 else nn.BatchNorm1d
    names = ("weight", "bias", "running_mean", "running_var")
    numbers = {name: node.needed(i) for i, name in enumerate(names)}
    numbers |= {"num_batches_tracked": np.array(0)}
    return _Layer(kind(node.shape[1], node.take("epsilon", 1e-5), device="meta"), numbers)


def _gemm(node: _Node) -> _Layer:
    weight, bias = node.needed(0), node.constant(1)
    alpha, beta = node.take("alpha", 1.0), node.take("beta", 1.0)
    node.take("broadcast")  # of the first opsets; the shape of the bias says it
    if node.take("transA", 0):
        raise node.refused("turns pictures into features (transA=1)")
    if not node.take("transB", 0):
        weight = weight.T
    if alpha != 1:
        weight = alpha * weight
    if bias is not None:
        bias = beta * np.broadcast_to(bias, (1, len(weight)))[0]
    return _linear(node, weight, bias)


def _matmul(node: _Node) -> _Layer:
    return _linear(node, node.needed(0).T, None)


def _linear(node: _Node, weight: Array, bias: Array | None) -> _Layer:
    """weight: (outputs, inputs)."""
    node.features()
    outputs, inputs = weight.shape
    module = nn.Linear(inputs, outputs, bias is not None, device="meta")
    return _Layer(module, {"weight": weight} if bias is None else {"weight": weight, "bias": bias})


def _add(node: _Node) -> None:
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
    layer.bias = nn.Parameter(_tensors(node, {"bias": one + there})["bias"])


def _flatten(node: _Node) -> _Layer | None:
    axis = node.take("axis", 1)
    if axis not in (1, 1 - len(node.shape)):
        raise node.refused(f"has axis={axis}, which mixes pictures; zfkit reads axis=1")
    return _Layer(nn.Flatten()) if len(node.shape) > 2 else None


def _reshape(node: _Node) -> _Layer | None:
    told = node.take("shape") or node.needed(0).tolist()  # an attribute before opset 5
    keep = not node.take("allowzero", 0)
    count = math.prod(node.shape)
    wanted = [node.shape[i] if n == 0 and keep and i < len(node.shape) else n for i, n in enumerate(told)]
    if wanted.count(-1) == 1:
        wanted[wanted.index(-1)] = count // max(1, -math.prod(wanted))
    if wanted == list(node.shape):
        return None
    if wanted != [node.shape[0], count // node.shape[0]]:
        raise node.refused(f"makes {told} out of {node.shape}; zfkit reads those that flatten feature maps")
    return _Layer(nn.Flatten())


def _dropout(node: _Node) -> _Layer:
    ratio, training = node.constant(0), node.constant(1)  # inputs since opset 12
    node.take("is_test")
    node.take("seed")
    if training is not None and training.any():
        raise node.refused("is in training mode: export the network in evaluation mode")
    return _Layer(nn.Dropout(node.take("ratio", 0.5) if ratio is None else float(ratio)))


def _softmax(node: _Node) -> _Layer:
    node.features()
    axis = node.take("axis", 1 if node.opset < 13 else -1)
    if axis not in (1, -1):
        raise node.refused(f"has axis={axis}, which mixes pictures; zfkit reads axis=1")
    return _Layer(nn.Softmax(1))


def _identity(node: _Node) -> None:
    return None


# What each is called, and how it is read.
_OPERATIONS: dict[str, tuple[str, Callable[[_Node], _Layer | None]]] = {
    "Conv": ("conv", _conv),
    "Relu": ("relu", _relu),
    "LRN": ("norm", _lrn),
    "BatchNormalization": ("bn", _batch_norm),
    "MaxPool": ("pool", _max_pool),
    "AveragePool": ("pool", _average_pool),
    "GlobalAveragePool": ("pool", _global_average_pool),
    "Flatten": ("flatten", _flatten),
    "Reshape": ("flatten", _reshape),
    "Gemm": ("fc", _gemm),
    "MatMul": ("fc", _matmul),
    "Add": ("", _add),
    "Dropout": ("drop", _dropout),
    "Softmax": ("softmax", _softmax),
    "Identity": ("", _identity),
}


# Done once, where they work on constants alone: the same numbers, in another form.
_FOLDED = {
    "Cast", "Constant", "ConstantOfShape", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


_DOMAINS = ("", "ai.onnx")


Pads = tuple[tuple[int, int], ...]  # before and after: of rows, of columns


def _reach(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Rows and columns from the first to the last that a window reads."""
    return tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))


def _even(pads: Pads) -> bool:
    return all(before == after for before, after in pads)


def _pads(node: _Node, reach: Sequence[int], stride: Sequence[int]) -> Pads:
    """What the node's `pads` or `auto_pad` say."""
    mode, told = node.take("auto_pad", "NOTSET"), node.take("pads", (0, 0, 0, 0))
    if mode == "NOTSET":
        top, left, bottom, right = told
        return (top, bottom), (left, right)
    if mode == "VALID":
        return (0, 0), (0, 0)
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise node.refused(f"has auto_pad={mode!r}, which ONNX does not define")
    pads = []
    for size, r, s in zip(node.maps(), reach, stride, strict=True):
        total = max((math.ceil(size / s) - 1) * s + r - size, 0)
        less, more = total // 2, total - total // 2
        pads.append((less, more) if mode == "SAME_UPPER" else (more, less))
    return tuple(pads)


def _padding(
    node: _Node, pads: Pads, reach: Sequence[int], stride: Sequence[int], ceil: bool, choices: Sequence[bool]
) -> tuple[tuple[int, int], bool]:
    """torch's padding (rows, columns) and ceil_mode, one of `choices`, that give as many windows.

    torch pads both ends alike. With the same padding before the first window and the same number of windows,
    they are the same windows.
    """
    (top, bottom), (left, right) = pads
    sides = list(zip(node.maps(), pads, reach, stride, strict=True))
    wanted = [_windows(size, *pad, r, s, ceil) for size, pad, r, s in sides]
    for choice in choices:
        if [_windows(size, pad[0], pad[0], r, s, choice) for size, pad, r, s in sides] == wanted:
            return (top, left), choice
    raise node.refused(
        f"pads unevenly (top {top}, left {left}, bottom {bottom}, right {right}), which torch's layers do not"
    )


def _windows(size: int, before: int, after: int, reach: int, stride: int, ceil: bool) -> int:
    """How many windows there are along one side; rounding up leaves out those that start behind the end."""
    room = size + before + after - reach
    if not ceil:
        return room // stride + 1
    count = math.ceil(room / stride) + 1
    return count - ((count - 1) * stride >= size + before)
