"""`trace`: from an `nn.Module` to the list of its operations, checked against the module itself.

`torch.fx` follows the input through the network once. What it finds is brought into one normal form (`forms`). Then the
network and the list are run on the same noise, twice: if they differ anywhere, the list is not the user's network (a
hook, dropout at work, control flow that fx did not see), and the first step that differs is named.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import ModelError
from .forms import describe, gives_several, is_view, upsampling
from .graph import BLOCK, DROPOUTS, LEAVES, Network, Step, evaluation_mode

# In evaluation mode these give back what they were given.
_REST = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


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
    """Follows the image alone, and remembers what each module that is made of others gave."""

    def __init__(self, bgr: bool) -> None:
        super().__init__()
        self.bgr = bgr
        self.blocks: dict[str, fx.Node] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        # Further arguments of forward keep their defaults, as when the network is called with an image.
        return (lambda root, image: root_fn(root, image.flip(1) if self.bgr else image)), [
            self.root,
            self.create_proxy("placeholder", "input", (), {}),
        ]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) in LEAVES or super().is_leaf_module(m, module_qualified_name):
            return True
        # A subclass that inherits its forward from one of torch's modules is that module.
        base: Any = next(
            (c for c in type(m).__mro__ if c.__module__.startswith("torch.nn.modules")), nn.Module
        )
        return m.__class__.forward is base.forward and base not in (nn.Module, nn.Sequential)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_module(m, forward, args, kwargs)
        name = self.path_of_module(m)
        if name and isinstance(result, fx.Proxy) and result.node.target != name:
            self.blocks.setdefault(name, result.node)
        return result


def trace(net: nn.Module, example: Tensor, *, output: str | int | None = None, bgr: bool = False) -> Network:
    """The operations of `net` in evaluation mode.

    Args:
        example: an input (1, C, H, W) on the network's device; its values do not matter.
        output: which part of what the network returns is its output; None for the first tensor.
        bgr: the network takes blue first: the traced one takes red first, and begins with turning them round.

    Raises ModelError where `torch.fx` cannot follow the network (control flow that depends on data), where
    an operation in place changes a tensor that is read again through a view of it, and where the operations do not
    give what the network gives.
    """
    with evaluation_mode(net):
        tracer = _Tracer(bgr)
        try:
            graph = tracer.trace(net)
        except Exception as error:
            raise ModelError(
                f"torch.fx cannot trace {type(net).__name__} ({type(error).__name__}: {error}); take out control "
                "flow that depends on data, or wrap the part of the network that can be traced"
            ) from error
        _read_what_was_written(graph, net)
        _keep_channel_axes(graph)
        nodes = _named(graph, net, tracer.blocks)
        names = {node: name for name, node in nodes.items() if isinstance(node, fx.Node)}
        steps = _steps(net, nodes, names)
        returned = _returned(graph, output)
        network = Network(steps, names[returned] if returned is not None else next(reversed(steps)))
        noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
        shapes = _compare(net, network, noise, noise.flip(1) if bgr else noise, output)
        for name, node in nodes.items():
            if isinstance(node, fx.Node) and node.op in ("call_function", "call_method"):
                form = describe(node, lambda n: shapes.get(names[n]) if n in names else None)
                steps[name] = replace(steps[name], module=form)
            elif isinstance(module := steps[name].module, nn.Upsample):
                before, after = (shapes[n] for n in (steps[name].inputs[0], name))
                by_a_factor = module.size is None  # to a fixed size it depends on the picture's
                form = (
                    upsampling(before, after, module.mode, bool(module.align_corners))
                    if by_a_factor
                    else None
                )
                steps[name] = replace(steps[name], module=form)
        return replace(network, shapes=shapes)


def parts_of(outputs: Any) -> dict[Any, Any]:
    """What a network returns, by key, field or number; empty for a single tensor."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if isinstance(outputs, tuple | list):
        return getattr(outputs, "_asdict", lambda: dict(enumerate(outputs)))()
    return dict(vars(outputs)) if is_dataclass(outputs) else {}


def chosen(outputs: Any, output: str | int | None) -> Any:
    """The part of this key, field or number; None for all of it."""
    return outputs if output is None else parts_of(outputs)[output]


def _returned(graph: fx.Graph, output: str | int | None) -> fx.Node | None:
    """The node that the network returns; of several outputs, the one that is named, or the first tensor."""
    node = next(node for node in graph.nodes if node.op == "output")
    if output is None:
        return next(iter(node.all_input_nodes), None)
    outputs: Any = node.args[0]
    if isinstance(outputs, fx.Node) and isinstance(outputs.target, type):  # a named tuple, made while tracing
        outputs = inspect.signature(outputs.target).bind(*outputs.args, **outputs.kwargs).arguments
    part = parts_of(outputs).get(output)
    return part if isinstance(part, fx.Node) else None


def _named(graph: fx.Graph, net: nn.Module, blocks: dict[str, fx.Node]) -> dict[str, fx.Node | str]:
    """Nodes by the name of their step, in order; under a block's name, the name of the step that it ends with."""
    nodes: dict[str, fx.Node | str] = {}
    uses: dict[str, int] = {}
    taken = {name for name, _ in net.named_modules()}
    for node in graph.nodes:
        if node.op == "output":
            continue
        name = node.name
        if node.op == "call_module":
            target = name = str(node.target)
            while name in nodes or (name in taken and name != target):
                uses[target] = uses.get(target, 0) + 1
                name = f"{target}_{uses[target]}"
        else:
            while name in nodes or name in taken:
                name += "_"
        nodes[name] = node
        for block, last in blocks.items():
            if last is node:
                nodes[block] = name
    return nodes


def _steps(net: nn.Module, nodes: dict[str, fx.Node | str], names: dict[fx.Node, str]) -> dict[str, Step]:
    steps: dict[str, Step] = {}
    carrying: set[str] = set()  # steps that carry the image's activations
    counting: set[str] = set()  # steps that say how many images there are
    for name, node in nodes.items():
        if isinstance(node, str):
            carrying.add(name)
            layer = net.get_submodule(name)
            steps[name] = Step(name, BLOCK, nn.Identity(), (node,), lambda x: x, (node,), layer=layer)
            continue
        sources = _sources(node)
        maps = tuple(names[n] for n in sources if names[n] in carrying)
        counts = tuple(names[n] for n in sources if names[n] in counting)
        steps[name] = replace(_step(net, node, name, sources, names), maps=maps, counts=counts)
        if node.op == "placeholder" or (maps and not _is_a_number(node)):
            carrying.add(name)
        if _counts_images(node):
            counting.add(name)
    return steps


def _is_a_number(node: fx.Node) -> bool:
    """Does it ask a tensor for its shape or length, through which no activation passes?"""
    return node.target is getattr or (node.op == "call_method" and node.target in ("size", "dim", "numel"))


def _counts_images(node: fx.Node) -> bool:
    """Is it ``x.size(0)``, ``x.shape[0]`` or ``x.size()[0]``?"""
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] == (0,)
    whole = node.args[0] if node.target is operator.getitem else None
    return isinstance(whole, fx.Node) and _is_a_number(whole) and bool(node.args[1] == 0)


def _sources(node: fx.Node) -> list[fx.Node]:
    """What a node reads; through ``x.chunk(2)``, whose result is no tensor but several, what the chunks are made of."""
    sources: list[fx.Node] = []
    for n in node.all_input_nodes:
        sources += [s for s in (_sources(n) if _is_several(n) else [n]) if s not in sources]
    return sources


def _is_several(node: fx.Node) -> bool:
    """Does it give several tensors, rather than one?"""
    if node.target is operator.getitem:
        whole = node.args[0]
        return isinstance(whole, fx.Node) and _is_several(whole) and isinstance(node.args[1], slice)
    return node.op in ("call_function", "call_method") and gives_several(node)


def _step(
    net: nn.Module, node: fx.Node, name: str, sources: list[fx.Node], names: dict[fx.Node, str]
) -> Step:
    if node.op == "placeholder":
        return Step(name, "input", None, (), lambda: None)
    if node.op == "get_attr":
        read = operator.attrgetter(str(node.target))
        return Step(name, f"attribute {node.target}", None, (), lambda: read(net))
    inputs = tuple(names[n] for n in sources)
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        plain = len(node.args) == 1 and not node.kwargs
        run = _resting(module, module if plain else _caller(node, sources, module))
        return Step(name, type(module), module, inputs, run, layer=module)
    of_several = node.target is operator.getitem and _is_several(node.args[0])  # type: ignore[arg-type]
    target = node.args[0].target if of_several else node.target  # type: ignore[union-attr]
    return Step(name, target, None, inputs, _caller(node, sources, _callable(node)))


def _callable(node: fx.Node) -> Any:
    """The function, or name of the method, that runs this node."""
    if node.target in DROPOUTS:
        return lambda input, *args, **kwargs: input
    if node.target == "view":
        return "reshape"  # the maps may be channels-last, where a view across channels does not exist
    if node.target in ("squeeze", torch.squeeze) and len(node.args) + len(node.kwargs) == 1:
        return lambda input: input.reshape(
            len(input), *(n for n in input.shape[1:] if n != 1)
        )  # also for one image
    return node.target


def _caller(node: fx.Node, sources: list[fx.Node], call: Any) -> Any:
    """Runs a node on the values of its sources."""

    def run(*values: Any) -> Any:
        bound = dict(zip(sources, values, strict=True))

        def value(n: fx.Node) -> Any:
            return bound[n] if n in bound else _caller(n, sources, _callable(n))(*values)

        args, kwargs = fx.node.map_arg(node.args, value), fx.node.map_arg(node.kwargs, value)
        return getattr(args[0], call)(*args[1:], **kwargs) if isinstance(call, str) else call(*args, **kwargs)

    return run


def _resting(module: nn.Module, run: Any) -> Any:
    """A module in evaluation mode, whatever mode its owner has put it into since."""

    def at_rest(*values: Any) -> Any:
        if not module.training and not next(module.children(), None):
            return run(*values)
        with evaluation_mode(module):
            return run(*values)

    return at_rest


@torch.no_grad()
def _compare(
    net: nn.Module, network: Network, noise: Tensor, given_to_net: Tensor, output: str | int | None
) -> dict[str, tuple[int, ...]]:
    """Run the network, and twice its traced steps, on the same noise; the shapes of all steps' outputs.

    Raises ModelError, with the first step that differs, where they do not agree.
    """
    given: dict[str, Tensor] = {}  # what the network's own modules gave, when they were first called

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and name not in given:
                given[name] = output.clone()

        return hook

    listed = [s.name for s in network.steps.values() if s.layer is not None]
    hooks = [net.get_submodule(n).register_forward_hook(keep(n)) for n in listed if _is_module(net, n)]
    try:
        result = chosen(net(given_to_net.clone()), output)
    finally:
        for hook in hooks:
            hook.remove()
    if isinstance(result, Tensor):
        given[network.output] = result
    shapes: dict[str, tuple[int, ...]] = {}
    for _ in range(2):  # what is drawn at random differs from itself
        for step, _, y in network.walk(noise.clone(), list(network.steps)):
            if isinstance(y, Tensor):
                shapes[step.name] = tuple(y.shape[1:])
                expected = given.get(step.name)
                if expected is not None and not _alike(y, expected):
                    raise ModelError(
                        f"{type(net).__name__} does not give what its traced operations give: they part at "
                        f"{step.name!r} ({step.operation}). Something there is drawn at random, changed by a hook, or "
                        "depends on the data or on the call; make it the same in every call in evaluation mode"
                    )
    return shapes


def _is_module(net: nn.Module, name: str) -> bool:
    try:
        net.get_submodule(name)
    except AttributeError:  # a second use of one module, "relu_1"
        return False
    return True


def _alike(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, which differs with the layout in memory."""
    if a.numel() != b.numel():
        return False
    a = a.reshape(b.shape)  # the network itself may drop the axis of images where there is one
    tolerance = torch.finfo(b.dtype).eps ** 0.5 if b.is_floating_point() else 0.0
    scale = float(b.abs().nan_to_num(0.0, 0.0).max()) if b.numel() else 0.0  # weights may hold NaN
    return bool(torch.isclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True).all())


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
        return bool(getattr(module, "inplace", False)) and not isinstance(module, _REST)
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op != "call_function" or node.target in DROPOUTS:
        return False
    if node.target in _IN_PLACE or getattr(node.target, "__name__", "").endswith("_"):
        return True
    try:
        arguments = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a built-in function, which has no such argument
        return False
    return arguments.get("inplace") is True


def _may_be_a_view(net: nn.Module, node: fx.Node) -> bool:
    """Can the result share memory with the first input?"""
    if node.op == "call_module":
        return isinstance(
            net.get_submodule(str(node.target)), (*_REST, nn.Identity, nn.Flatten, nn.Unflatten)
        )
    return is_view(node)


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
