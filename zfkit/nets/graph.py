"""A network as the list of operations that it runs: `trace`.

`torch.fx` follows the input through the network once. What it finds is brought into one normal form: every
operation is described by an `nn.Module`, whether the network's author wrote ``nn.ReLU()``, ``F.relu(x)`` or
``x.relu_()``. Receptive fields, projections and mining all read this list, so each of them needs to know
an operation once, and in-place or reused modules make no difference.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..errors import LayerError, ModelError, unknown

# Operations of users that have a rule of their own (`zfkit.register_rule`). Their modules are not traced into.
LEAVES: set[type[nn.Module]] = set()


ELEMENTWISE: set[Any] = set()


class Add(nn.Module):
    """Describes a sum of feature maps, as at the end of a residual block."""


class Concat(nn.Module):
    """Describes the feature maps of several branches, one after the other."""


class Scale(nn.Module):
    """Describes a product with a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor


class ChannelSlice(nn.Module):
    """Describes x[:, channels]."""

    def __init__(self, channels: slice) -> None:
        super().__init__()
        self.channels = channels


class Reshape(nn.Module):
    """Describes the same numbers, in the same order, in another shape (view, flatten, squeeze ...)."""


class Rearrange(nn.Module):
    """Describes numbers picked out of others, or given further axes (indexing, squeeze, unsqueeze)."""


@dataclass(frozen=True)
class Step:
    """One operation of a traced network.

    Attributes:
        name: dotted module path for modules ("features.3"; a second use of the same module is
            "features.3_1"), and torch.fx's node name for functions ("add_1").
        target: the module's class, the function, or the name of the tensor's method.
        module: what it does, as an `nn.Module`; None for the input and where nothing is known about it.
        inputs: names of the steps it reads from.
        maps: those of them that carry the image's activations, rather than parameters, constants or sizes.
        run: computes it from what these steps gave.
        listed: is it a module of the user's network, and so a layer with a name?
    """

    name: str
    target: Any
    module: nn.Module | None
    inputs: tuple[str, ...]
    run: Callable[..., Any]
    maps: tuple[str, ...] = ()
    listed: bool = False

    @property
    def operation(self) -> str:
        """What it is called in a message: the class, function or method."""
        return (
            self.target
            if isinstance(self.target, str)
            else getattr(self.target, "__name__", str(self.target))
        )


Evaluate = Callable[[Step, tuple[Any, ...]], Any]


@dataclass(frozen=True)
class Network:
    """The steps of a traced network in order of execution; the first is the input."""

    steps: dict[str, Step]

    @property
    def layers(self) -> tuple[str, ...]:
        """Dotted names of the modules that run, in order."""
        return tuple(s.name for s in self.steps.values() if s.listed)

    @property
    def input(self) -> str:
        """Name of the step that stands for the image."""
        return next(iter(self.steps))

    def find(self, layer: str) -> Step:
        """The step of that name. Raises LayerError, nearest names first, if there is none."""
        if layer not in self.steps or not self.steps[layer].listed:
            raise LayerError(unknown("layer", layer, self.layers, limit=24))
        return self.steps[layer]

    def upto(self, layers: Iterable[str]) -> list[Step]:
        """The steps that these layers need, in order of execution: the network cut after the last."""
        needed = set(layers)
        for step in reversed(self.steps.values()):
            if step.name in needed:
                needed.update(step.inputs)
        return [s for s in self.steps.values() if s.name in needed]

    def way_to(self, layer: str) -> list[Step]:
        """The operations between the image and this layer, in order: those that activations pass through."""
        reached = {layer}
        for step in reversed(self.upto([layer])):
            if step.name in reached:
                reached.update(step.maps)
        return [self.steps[name] for name in self.steps if name in reached and self.steps[name].maps]

    def walk(
        self, x: Tensor, layers: Sequence[str], evaluate: Evaluate | None = None
    ) -> Iterator[tuple[Step, tuple[Any, ...], Any]]:
        """Run as far as these layers need; yield each step with its inputs and output.

        Values are freed after their last use, and ReLUs overwrite what a convolution or the like gave if
        nobody needs it any longer: look at an output when it is yielded, not later. `evaluate` replaces
        ``step.run(*inputs)``.
        """
        steps = self.upto(layers)
        last_use = {name: i for i, step in enumerate(steps) for name in step.inputs}
        evaluate = evaluate or (lambda step, inputs: step.run(*inputs))
        values: dict[str, Any] = {}
        for i, step in enumerate(steps):
            inputs = tuple(values[name] for name in step.inputs)
            if step.name == self.input:
                values[step.name] = x
            elif (
                type(step.module) is nn.ReLU
                and isinstance(self.steps[step.inputs[0]].module, _FRESH)
                and last_use[step.inputs[0]] == i
            ):
                values[step.name] = inputs[0].relu_()
            else:
                values[step.name] = evaluate(step, inputs)
            yield step, inputs, values[step.name]
            for name in step.inputs:
                if last_use[name] == i:
                    values.pop(name, None)


# Their outputs are memory of their own; what an Identity or a view returns may be another step's.
_FRESH = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, Add)


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """torch's "one number, or rows and columns" as two."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class _Proxy(fx.Proxy):
    """Stands for a value while tracing. `fx` itself would take ``x += y`` for ``x = x + y``."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in LEAVES or super().is_leaf_module(m, module_qualified_name)


def trace(net: nn.Module) -> Network:
    """The operations of `net` in evaluation mode.

    Raises ModelError where `torch.fx` cannot follow the network (control flow that depends on data), and where
    an operation in place changes a tensor that is read again through a view of it.
    """
    training = {m: m.training for m in net.modules()}
    net.eval()
    try:
        graph = _Tracer().trace(net)
    except Exception as error:
        raise ModelError(
            f"torch.fx cannot trace {type(net).__name__} ({type(error).__name__}: {error}); take out control "
            "flow that depends on data, or wrap the part of the network that can be traced"
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode
    _read_what_was_written(graph, net)
    _keep_channel_axes(graph)
    steps: dict[str, Step] = {}
    names: dict[fx.Node, str] = {}
    uses: dict[str, int] = {}
    taken = {name for name, _ in net.named_modules()}
    carrying: set[str] = set()  # steps that carry the image's activations
    for node in graph.nodes:
        if node.op == "output" or (node.op == "placeholder" and names):
            continue  # further arguments of forward keep their defaults
        name = node.name
        if node.op == "call_module":
            target = name = str(node.target)
            while name in steps or (name in taken and name != target):
                uses[target] = uses.get(target, 0) + 1
                name = f"{target}_{uses[target]}"
        else:
            while name in steps or name in taken:
                name += "_"
        names[node] = name
        maps = tuple(names[n] for n in node.all_input_nodes if names[n] in carrying)
        steps[name] = _step(net, node, name, names, maps)
        if node.op == "placeholder" or (maps and not _is_a_number(node)):
            carrying.add(name)
    return Network(steps)


def _is_a_number(node: fx.Node) -> bool:
    """Does it ask a tensor for its shape or length, through which no activation passes?"""
    return node.target is getattr or (node.op == "call_method" and node.target in ("size", "dim", "numel"))


def _read_what_was_written(graph: fx.Graph, net: nn.Module) -> None:
    """Let what reads a tensor after an operation in place (``y.relu_()``) read that operation's result."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    memory: dict[fx.Node, fx.Node] = {}  # the first node whose numbers lie where this node's may lie, too
    for node in graph.nodes:
        sources = node.all_input_nodes
        overwrites = bool(sources) and _is_in_place(net, node)
        shares = bool(sources) and (overwrites or _may_be_a_view(net, node))
        memory[node] = memory[sources[0]] if shares else node
        if not overwrites:
            continue
        for other in [n for n, first in memory.items() if first is memory[node] and n is not node]:
            for reader in [n for n in other.users if order[n] > order[node] and n.op != "output"]:
                if other is not sources[0]:
                    raise ModelError(
                        f"{_called(node)} changes, in place, numbers that {_called(reader)} reads as "
                        f"{_called(other)}; let it make a tensor of its own (without inplace=True or a trailing _)"
                    )
                reader.replace_input_with(other, node)


def _called(node: fx.Node) -> str:
    return repr(str(node.target) if node.op == "call_module" else node.name)


_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


def _is_in_place(net: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        return bool(getattr(module, "inplace", False)) and not isinstance(module, _DROPOUTS)
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op != "call_function" or node.target in _RESTING:
        return False
    if node.target in _IN_PLACE or getattr(node.target, "__name__", "").endswith("_"):
        return True
    try:
        arguments = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a built-in function, which has no such argument
        return False
    return arguments.get("inplace") is True


# Dropout in evaluation mode: gives back what it was given, in place or not.
_RESTING = {F.dropout, F.dropout2d, F.alpha_dropout, torch.dropout}


_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def _may_be_a_view(net: nn.Module, node: fx.Node) -> bool:
    """Can the result share memory with the first input?"""
    if node.op == "call_module":
        return isinstance(net.get_submodule(str(node.target)), (*_DROPOUTS, nn.Identity, nn.Flatten))
    if node.target in _RESTING or node.target in ("contiguous", "detach"):
        return True
    known = _describe(node)
    return known is None or isinstance(known, Reshape | Rearrange | ChannelSlice)


def _keep_channel_axes(graph: fx.Graph) -> None:
    """Write ``x[:, i].unsqueeze(1)`` as ``x[:, i : i + 1]``, which is known to leave rows and columns alone."""
    for node in graph.nodes:
        if node.target not in (torch.unsqueeze, "unsqueeze") or node.args[1:] != (1,):
            continue
        picked = node.args[0]
        if not isinstance(picked, fx.Node) or picked.target is not operator.getitem:
            continue
        index: Any = picked.args[1]
        if isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None) and type(index[1]) is int:
            i = index[1]
            node.op, node.target, node.kwargs = "call_function", operator.getitem, {}
            node.args = (picked.args[0], (slice(None), slice(i, i + 1 or None)))


def _step(net: nn.Module, node: fx.Node, name: str, names: dict[fx.Node, str], maps: tuple[str, ...]) -> Step:
    if node.op == "placeholder":
        return Step(name, "input", None, (), lambda: None)
    if node.op == "get_attr":
        read = operator.attrgetter(str(node.target))
        return Step(name, f"attribute {node.target}", None, (), lambda: read(net))
    inputs = tuple(names[n] for n in node.all_input_nodes)
    sources = node.all_input_nodes
    module = net.get_submodule(str(node.target)) if node.op == "call_module" else None
    call: Any = module if module is not None else node.target
    if call == "view":
        call = "reshape"  # the maps may be channels-last, where a view across channels does not exist
    if call in ("squeeze", torch.squeeze) and len(node.args) + len(node.kwargs) == 1:
        call = _squeeze  # also for one image

    def run(*values: Any) -> Any:
        bound = dict(zip(sources, values, strict=True))
        args = fx.node.map_arg(node.args, bound.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, bound.__getitem__)
        return getattr(args[0], call)(*args[1:], **kwargs) if isinstance(call, str) else call(*args, **kwargs)

    if module is not None:
        return Step(
            name, type(module), module, inputs, module if len(inputs) == 1 else run, maps, listed=True
        )
    return Step(name, node.target, _describe(node), inputs, run, maps)


def _squeeze(input: Tensor) -> Tensor:
    return input.reshape(len(input), *(n for n in input.shape[1:] if n != 1))


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


def _concat(tensors, dim=0, axis=None):  # type: ignore[no-untyped-def]
    tensors = list(tensors)
    channels = (dim if axis is None else axis) in (1, -3)
    return Concat() if channels and len(set(tensors)) == len(tensors) else None


def _sum(input, other, alpha=1):  # type: ignore[no-untyped-def]
    if not (isinstance(input, fx.Node) and isinstance(other, fx.Node)):
        return nn.Identity()  # a constant takes no part in the reverse path
    if alpha != 1:
        return None
    return Scale(2.0) if input is other else Add()


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
    if len(index) == 2 and isinstance(index[1], slice):
        return ChannelSlice(index[1])
    return Rearrange()


def _always(module: Callable[[], nn.Module]) -> Callable[..., nn.Module]:
    return lambda *args, **kwargs: module()


_NORMAL_FORMS: dict[Any, Callable[..., nn.Module | None]] = {
    **dict.fromkeys([F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"], _always(nn.ReLU)),
    F.relu6: _always(nn.ReLU6),
    **dict.fromkeys([F.max_pool2d, torch.max_pool2d], _max_pool2d),
    F.avg_pool2d: _avg_pool2d,
    F.adaptive_avg_pool2d: lambda input, output_size: nn.AdaptiveAvgPool2d(output_size),
    F.adaptive_max_pool2d: lambda input, output_size, return_indices=False: nn.AdaptiveMaxPool2d(output_size),
    F.local_response_norm: _local_response_norm,
    **dict.fromkeys([F.dropout, F.dropout2d, F.alpha_dropout, torch.dropout], _always(nn.Identity)),
    **dict.fromkeys(["contiguous", "clone", "detach", torch.clone], _always(nn.Identity)),
    **dict.fromkeys([F.softmax, F.log_softmax, torch.softmax, "softmax", "log_softmax"], _always(nn.Softmax)),
    **dict.fromkeys([torch.flatten, "flatten", "view", "reshape", torch.reshape], _always(Reshape)),
    **dict.fromkeys([torch.squeeze, torch.unsqueeze, "squeeze", "unsqueeze"], _always(Rearrange)),
    **dict.fromkeys([operator.add, operator.iadd, torch.add, "add", "add_"], _sum),
    **dict.fromkeys([operator.mul, operator.imul, torch.mul, "mul", "mul_"], _product),
    **dict.fromkeys([operator.truediv, operator.itruediv, torch.div, "div", "div_"], _quotient),
    **dict.fromkeys([torch.mean, "mean"], _mean),
    **dict.fromkeys([torch.cat, torch.concat], _concat),
    operator.getitem: _getitem,
}


def _describe(node: fx.Node) -> nn.Module | None:
    """The module that does what this function or method call does; None where none is known."""
    form = _NORMAL_FORMS.get(node.target)
    if form is None:
        return None
    try:
        inspect.signature(form).bind(*node.args, **node.kwargs)
    except TypeError:
        return None  # called in a way this form does not know
    return form(*node.args, **node.kwargs)
