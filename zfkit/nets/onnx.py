"""Networks from ONNX files: `load_onnx`, for plain chains of layers such as the ONNX zoo's zfnet512.

Every operation in the file becomes the torch module that computes the same (`onnx_layers`), under the paper's names.
What has no such module, and a network that branches, is refused by name: convert those to PyTorch and use
`zfkit.wrap_model`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..checks import as_path, one_of
from ..errors import ModelError
from .onnx_layers import CONVERT, OPERATIONS, Array, Node, one_line, quoted, refusing, tensors

DOMAINS = ("", "ai.onnx")
MOST_VALUES = 10**8  # of a constant that is made up
AGAIN = "download or copy it again"
# Done once, where they work on constants alone: the same numbers, in another form.
FOLDED = {"Cast", "Constant", "ConstantOfShape", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


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
    one_of(channels, "order of channels", ("rgb", "bgr"), ModelError)
    path = as_path(path)
    model = _read(path)
    constants = _initialisers(path.name, model.graph)
    name, shape = _input(path.name, model.graph, constants)
    net = OnnxNetwork(_layers(path.name, model, constants, name, shape)).eval().requires_grad_(False)
    net.input_name, net.input_shape = name, shape[1:]
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
    with refusing(f"{path.name} is no ONNX file, or it is cut short or damaged", AGAIN):
        model = onnx.load(path, load_external_data=False)
    if not model.graph.node or not any(o.domain in DOMAINS for o in model.opset_import):
        raise ModelError(f"{path.name} holds no network: it is empty, cut short or no ONNX file; {AGAIN}")
    beside = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    missing = f"{path.name} keeps its weights in {', '.join(sorted(beside))}, which cannot be read"
    with refusing(missing, "put it into the same folder"):
        onnx.load_external_data_for_model(model, str(path.parent))
    return model


def _initialisers(file: str, graph: Any) -> dict[str, Array]:
    from onnx import numpy_helper

    constants = {}
    for tensor in graph.initializer:
        with refusing(f"{file}: the weights {tensor.name!r} are damaged", AGAIN):
            constants[tensor.name] = numpy_helper.to_array(tensor)
    return constants


def _input(file: str, graph: Any, constants: Mapping[str, Array]) -> tuple[str, tuple[int, ...]]:
    """Name and (N, C, H, W) of the one input that is not a weight; N = 1 where the file leaves it open."""
    inputs = [i for i in graph.input if i.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        names = [", ".join(repr(v.name) for v in values) or "none" for values in (inputs, graph.output)]
        raise ModelError(
            f"{file}: zfkit reads networks with one input and one output; inputs here: {names[0]}; outputs: {names[1]}"
        )
    dims = inputs[0].type.tensor_type.shape.dim
    shape = tuple(d.dim_value if d.dim_value > 0 else (1 if i == 0 else 0) for i, d in enumerate(dims))
    if len(shape) != 4 or 0 in shape:
        stated = one_line(", ".join(str(d.dim_value or d.dim_param or "?") for d in dims))
        raise ModelError(
            f"{file}: its input {inputs[0].name!r} is stated as ({stated}); expected (N, channels, rows, columns) with "
            "numbers for all but N: export it for pictures of a fixed size"
        )
    return inputs[0].name, shape


def _layers(
    file: str, model: Any, constants: dict[str, Array], now: str, shape: tuple[int, ...]
) -> OrderedDict[str, nn.Module]:
    """The chain from the input, named `now`, to the output. Shapes are followed on torch's "meta" device."""
    opset = next(o.version for o in model.opset_import if o.domain in DOMAINS)
    outputs = [o.name for o in model.graph.output]
    used = {*outputs, *(i for proto in model.graph.node for i in proto.input)}
    made = {now, *(o for proto in model.graph.node for o in proto.output)}
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    count = 0
    for proto in model.graph.node:
        with refusing(f"{file} is damaged", AGAIN):
            node = Node(
                name=one_line(f"{file}: node {proto.name or ' '.join(proto.output)!r} ({proto.op_type})"),
                opset=opset,
                shape=shape,
                attributes=_attributes(proto),
                constants=[constants.get(i) for i in proto.input if i != now],
                previous=next(reversed(layers.values()), None),
            )
        if proto.op_type in FOLDED and proto.output and all(i in constants for i in proto.input if i):
            with refusing(f"{node.name} cannot be computed", CONVERT):
                constants[proto.output[0]] = _fold(proto, constants, model.opset_import)
            continue
        _check_links(node, proto, now, constants, made, used)
        kind, read = OPERATIONS[proto.op_type]
        with refusing(f"{node.name} cannot work on an input {shape}", CONVERT):
            layer = read(node)
            if layer is not None:
                shape = tuple(layer.module.eval()(torch.empty(shape, device="meta")).shape)
                layer.module.load_state_dict(tensors(node, layer.numbers), strict=False, assign=True)
        node.take("consumed_inputs")  # a hint to the memory of the first opsets
        if node.attributes:
            raise node.refused(f"has an attribute zfkit does not know, {quoted(sorted(node.attributes))}")
        if layer is not None:
            count += kind in ("conv", "fc")
            name = kind if kind in ("flatten", "softmax") else f"{kind}{count}"
            again = sum(n.split("_")[0] == name for n in layers)
            layers[f"{name}_{again + 1}" if again else name] = layer.module
        now = proto.output[0]
    if outputs != [now]:
        raise ModelError(
            f"{file}: its output {outputs[0]!r} is not where its chain of layers ends, {now!r}; zfkit reads plain "
            f"chains: {CONVERT}"
        )
    return layers


def _check_links(
    node: Node, proto: Any, now: str, constants: Mapping[str, Array], made: set[str], used: set[str]
) -> None:
    """Raise ModelError unless the node is of a known kind, reads `now` and constants, and gives one output."""
    if proto.domain not in DOMAINS or proto.op_type not in OPERATIONS:
        raise node.refused(f"is none of the operations that zfkit reads ({', '.join(OPERATIONS)})")
    data = [i for i in proto.input if i and i not in constants]
    for missing in (i for i in data if i not in made):
        raise node.refused(f"reads {missing!r}, which the file does not hold")
    outputs = [o for i, o in enumerate(proto.output) if i == 0 or o in used]
    if data != [now] or len(outputs) != 1:
        raise node.refused(
            f"reads {quoted(data)} and gives {quoted(outputs)}: the network branches there, and zfkit reads "
            f"plain chains (a node that reads {now!r} alone and gives one output)"
        )
    if proto.input[0] != now and proto.op_type != "Add":
        raise node.refused(f"takes the data, {now!r}, for its weights")


def _attributes(proto: Any) -> dict[str, Any]:
    from onnx.helper import get_attribute_value

    return {a.name: get_attribute_value(a) for a in proto.attribute}


def _fold(proto: Any, constants: Mapping[str, Array], opsets: Any) -> Array:
    """What an operation on constants gives, by onnx's own reference implementation."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    values = {i: constants[i] for i in proto.input if i}
    if proto.op_type == "ConstantOfShape":  # twenty bytes that may ask for any number
        count = math.prod(int(n) for a in values.values() for n in a.flatten())
        if count > MOST_VALUES:
            raise ValueError(f"it would hold {count:,} values, and at most {MOST_VALUES:,} are made")
    inputs = [
        helper.make_tensor_value_info(i, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for i, a in values.items()
    ]
    graph = helper.make_graph(
        [proto], "constants", inputs, [helper.make_empty_tensor_value_info(proto.output[0])]
    )
    model = helper.make_model(graph, opset_imports=opsets)
    return np.asarray(ReferenceEvaluator(model).run(None, values)[0])
