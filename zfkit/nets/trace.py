"""`trace`: from an `nn.Module` to the list of its operations, checked against the module itself.

`torch.fx` follows the input through the network once. What it finds is brought into one normal form (`forms`). Then the
network and the list are run on the same noise, twice: if they differ anywhere, the list is not the user's network (a
hook, dropout at work, control flow that fx did not see), and the first step that differs is named.
"""

from __future__ import annotations

import inspect
import operator
import warnings
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import ModelError
from .fingerprint import text
from .forms import VIEWS, called, describe, gives_several, upsampling
from .graph import BLOCK, DROPOUTS, Network, Step, Together, evaluation_mode, full_float32
from .tracer import follow


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
        graph, blocks = follow(net, bgr)
        _mark_numbers(graph)
        returned = _returned(graph, output)
        noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
        last = 0  # steps of the last attempt
        while True:
            nodes = _named(graph, net, blocks)
            names = {node: name for name, node in nodes.items() if isinstance(node, fx.Node)}
            steps = _steps(net, nodes, names)
            network = Network(steps, names[returned] if returned is not None else next(reversed(steps)))
            shapes, strange = _compare(net, network, noise, noise.flip(1) if bgr else noise, output)
            found = [n for n in map(nodes.get, strange) if isinstance(n, fx.Node)]
            parts = [n for n in found if n is not returned and not _is_several(n)]
            if not parts or len(steps) == last:  # putting them together once more would change nothing
                break
            last = len(steps)
            _put_together(parts)
            _mark_numbers(graph)
        for name, node in nodes.items():
            if isinstance(steps[name].module, Together):
                continue
            if isinstance(node, fx.Node) and node.op in ("call_function", "call_method"):
                form = describe(node, lambda n: shapes.get(names[n]) if n in names else None)
                steps[name] = replace(steps[name], module=form)
            elif isinstance(module := steps[name].module, nn.Upsample):
                before, after = (shapes[n] for n in (steps[name].inputs[0], name))
                form = None  # to a fixed size it depends on the picture's
                if module.size is None:
                    form = upsampling(before, after, module.mode, bool(module.align_corners))
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
        if node.op == "output" or node.meta.get("inside"):
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
    sizing: set[str] = set()  # and those that are a map's shape
    for name, node in nodes.items():
        if isinstance(node, str):
            carrying.add(name)
            layer = net.get_submodule(name)
            steps[name] = Step(name, BLOCK, nn.Identity(), (node,), lambda x: x, (node,), layer=layer)
            continue
        sources = _sources(node)
        maps = tuple(names[n] for n in sources if names[n] in carrying)
        counts = tuple(names[n] for n in sources if names[n] in counting)
        sizes = tuple(names[n] for n in sources if names[n] in sizing)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.name)
        call = text([node.op, node.target, args, kwargs])
        step = _step(net, node, name, sources, names)
        steps[name] = replace(step, maps=maps, counts=counts, sizes=sizes, call=call)
        if node.op == "placeholder" or (maps and not _is_a_number(node)):
            carrying.add(name)
        if _counts_images(node) and (maps or sizes):
            counting.add(name)
        elif maps and (node.args[1:] == ("shape",) or (node.target == "size" and not node.args[1:])):
            sizing.add(name)
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


def _mark_numbers(graph: fx.Graph) -> None:
    """What is computed from the number of images becomes part of the operations that it goes into.

    On the way back there are other numbers of them.
    """
    carrying: set[fx.Node] = set()
    for node in graph.nodes:
        reads = node.all_input_nodes
        if node.op == "placeholder" or (carrying.intersection(reads) and not _is_a_number(node)):
            carrying.add(node)
        elif node.op != "output":
            computed = not _is_a_number(node) and not _counts_images(node)
            from_a_count = computed and (any(map(_counts_images, reads)) or _begins_a_size(node))
            # Sizes of what is itself no map of one picture are numbers of the same kind.
            node.meta["inside"] = from_a_count or any(n.meta.get("inside") for n in reads)


def _begins_a_size(node: fx.Node) -> bool:
    """Is it ``x.shape[:2]``, with the number of images in it?"""
    whole, part = (*node.args, None, None)[:2]
    number = node.target is operator.getitem and isinstance(whole, fx.Node) and _is_a_number(whole)
    return number and isinstance(part, slice) and part.start in (None, 0)


def _put_together(nodes: list[fx.Node]) -> None:
    """Make these part of the operations that read them."""
    for node in nodes:
        node.meta |= {"inside": True, "holds maps": True}
    hidden = [str(n.target) for n in nodes if isinstance(n.meta.get("module"), nn.Conv2d)]
    if hidden:
        warnings.warn(
            f"{', '.join(hidden)} look at parts of a picture as if each were one, and are not among the layers",
            stacklevel=5,
        )


def _is_inside(node: fx.Node) -> bool:
    """Is it no step of its own, but part of those that read it?"""
    return bool(node.meta.get("inside")) or _is_several(node)


def _sources(node: fx.Node) -> list[fx.Node]:
    """What a node reads; through ``x.chunk(2)``, whose result is no tensor but several, what the chunks are made of."""
    return [n for n, inside in _around(node, {}).items() if not inside]


def _inside(node: fx.Node) -> list[fx.Node]:
    """The nodes that are part of this one, each behind what it reads, and itself at the end."""
    return [n for n, inside in _around(node, {}).items() if inside]


def _around(node: fx.Node, seen: dict[fx.Node, bool]) -> dict[fx.Node, bool]:
    """Add to `seen` what a node reads, and what is part of it, each once: is it part?"""
    for n in node.all_input_nodes:
        if n not in seen:
            if _is_inside(n):
                _around(n, seen)
            else:
                seen[n] = False
    seen[node] = True
    return seen


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
    if parts := _parts(node):
        run = _caller(node, sources, _callable(node))
        return Step(name, ", ".join(parts), Together(), inputs, run, layer=node.meta.get("module"))
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        plain = len(node.args) == 1 and not node.kwargs
        run = _resting(module, module if plain else _caller(node, sources, module))
        # What a module with control flow inherits may say nothing of what it does.
        described = Together() if node.meta["opaque"] else module
        return Step(name, type(module), described, inputs, run, layer=module)
    of_several = node.target is operator.getitem and _is_several(node.args[0])  # type: ignore[arg-type]
    target = node.args[0].target if of_several else node.target  # type: ignore[union-attr]
    return Step(name, target, None, inputs, _caller(node, sources, _callable(node)))


def _parts(node: fx.Node) -> list[str]:
    """Names of the operations on maps that are part of this one, and its own; empty where there are none."""
    inside = _inside(node)
    if not any(n.meta.get("holds maps") for n in inside):
        return []
    modules = {n: type(n.meta["module"]).__name__ for n in inside if "module" in n.meta}
    names = [modules.get(n, called(n)) for n in inside if n.meta.get("holds maps") or n is node]
    return list(dict.fromkeys([n for n in names if n not in VIEWS] or names))


def _callable(node: fx.Node) -> Any:
    """The function, module or name of the method that runs this node."""
    if node.op == "call_module":
        return _resting(node.meta["module"], node.meta["module"])
    if node.target in DROPOUTS:
        return lambda input, *args, **kwargs: input
    if node.target == "view":
        return "reshape"  # the maps may be channels-last, where a view across channels does not exist
    if node.target in ("squeeze", torch.squeeze) and len(node.args) + len(node.kwargs) == 1:
        # also for one image
        return lambda input: input.reshape(len(input), *(n for n in input.shape[1:] if n != 1))
    return node.target


def _caller(node: fx.Node, sources: list[fx.Node], call: Any) -> Any:
    """Runs a node, and what is part of it, on the values of its sources.

    Without functions that know each other: such a cycle would keep the maps until Python next looks for cycles.
    """
    calls = [(n, call if n is node else _callable(n)) for n in _inside(node)]

    def run(*values: Any) -> Any:
        known = dict(zip(sources, values, strict=True))
        for n, call in calls:
            args, kwargs = fx.node.map_arg((n.args, n.kwargs), known.__getitem__)
            if isinstance(call, str):
                args, call = args[1:], getattr(args[0], call)
            known[n] = call(*args, **kwargs)
        return known[node]

    return run


def _resting(module: nn.Module, run: Any) -> Any:
    """A module in evaluation mode, whatever mode its owner has put it into since."""

    def at_rest(*values: Any, **named: Any) -> Any:
        if not module.training and not next(module.children(), None):
            return run(*values, **named)
        with evaluation_mode(module):
            return run(*values, **named)

    return at_rest


@torch.no_grad()
@full_float32()  # where bfloat16 is allowed, processors that have it take it, and the two round otherwise
def _compare(
    net: nn.Module, network: Network, noise: Tensor, given_to_net: Tensor, output: str | int | None
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Run the network, and twice its traced steps, on the same noise; the shapes of all steps' outputs.

    And the names of steps that do not give one tensor with the image first, but several, or one of another order.

    Raises ModelError, with the first step that differs, where they do not agree.
    """
    given: dict[str, Tensor] = {}  # what the network's own modules gave, when they were first called
    read: dict[str, Any] = {}  # and what those with hooks of the user's were called with
    changed: list[nn.Module] = []  # by their hooks

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if name not in given:
                read[name] = fx.node.map_aggregate((args, kwargs), _copied)

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and name not in given:
                given[name] = output.clone()
                if name in read and not _gives(module, read[name], output):
                    changed.append(module)

        return hook

    hooks: list[Any] = []
    for step in network.steps.values():
        if step.layer is not None and _is_module(net, step.name):
            if not step.block and (step.layer._forward_hooks or step.layer._forward_pre_hooks):
                hook = step.layer.register_forward_pre_hook(before(step.name), prepend=True, with_kwargs=True)
                hooks.append(hook)
            hooks.append(step.layer.register_forward_hook(after(step.name)))
    try:
        result = chosen(net(given_to_net.clone()), output)
    finally:
        for hook in hooks:
            hook.remove()
    if isinstance(result, Tensor):
        given[network.output] = result
    for name, step in network.steps.items():
        if any(step.layer is module for module in changed):  # its kind says nothing of what it does
            network.steps[name] = replace(step, module=Together())
    shapes: dict[str, tuple[int, ...]] = {}
    strange: dict[str, None] = {}
    for _ in range(2):  # what is drawn at random differs from itself
        for step, _, y in network.walk(noise.clone(), list(network.steps)):
            if step.maps and not _says_a_size(y) and not (isinstance(y, Tensor) and y.shape[:1] == (1,)):
                strange[step.name] = None
            if isinstance(y, Tensor):
                shapes[step.name] = tuple(y.shape[1:])
                expected = given.get(step.name)
                if expected is not None and not _alike(y, expected):
                    raise ModelError(
                        f"{type(net).__name__} does not give what its traced operations give: they part at "
                        f"{step.name!r} ({step.operation}). Something there is drawn at random, changed by a hook, or "
                        "depends on the data or on the call; make it the same in every call in evaluation mode"
                    )
    return shapes, list(strange)


def _gives(module: nn.Module, read: Any, output: Tensor) -> bool:
    """Is this what the module gives without hooks, called with the same arguments?"""
    try:
        return _alike(module.forward(*read[0], **read[1]), output)
    except Exception:  # it takes only what a hook makes of it
        return False


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _says_a_size(y: Any) -> bool:
    return isinstance(y, int | float | torch.Size | torch.dtype | torch.device)


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
