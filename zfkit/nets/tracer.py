"""What `torch.fx` sees of a network: `follow`, the graph that `trace` makes steps of.

It follows the input through the network once. What it finds is brought into one form: what reads a tensor that was
changed in place reads the change, keywords stand in the order of the arguments.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.operator_schemas import get_signature_for_torch_op

from ..errors import ModelError
from .forms import is_view
from .graph import DROPOUTS, LEAVES, RESTING


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
    """Follows the image alone, and remembers what each module that is made of others gave.

    A module whose `forward` it cannot follow, because of control flow, is one operation.
    """

    def __init__(self, bgr: bool) -> None:
        super().__init__()
        self.bgr = bgr
        self.blocks: dict[str, fx.Node] = {}
        self.opaque: set[nn.Module] = set()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        # Further arguments of forward keep their defaults, as when the network is called with an image.
        return (lambda root, image: root_fn(root, image.flip(1) if self.bgr else image)), [
            self.root,
            self.create_proxy("placeholder", "input", (), {}),
        ]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) in LEAVES or m in self.opaque or super().is_leaf_module(m, module_qualified_name):
            return True
        # A subclass that inherits its forward from one of torch's modules is that module.
        base: Any = next(
            (c for c in type(m).__mro__ if c.__module__.startswith("torch.nn.modules")), nn.Module
        )
        return m.__class__.forward is base.forward and base not in (nn.Module, nn.Sequential)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        try:
            name = self.path_of_module(m)
        except NameError:  # made in `forward`: it has no name, and is what it calls
            return forward(*args, **kwargs)
        before, depth = len(self.graph.nodes), len(self.module_stack)
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception:  # whatever a stand-in for a tensor brings about in an `if`, a `range`, a `float`
            for node in reversed(list(self.graph.nodes)[before:]):
                if node.op != "get_attr":  # fx keeps those for the next reader
                    self.graph.erase_node(node)
            while len(self.module_stack) > depth:
                self.module_stack.popitem()
            left = set(self.graph.nodes)
            self.blocks = {n: node for n, node in self.blocks.items() if node in left}
            self.opaque.add(m)
            result = super().call_module(m, forward, args, kwargs)
        if name and isinstance(result, fx.Proxy):
            if result.node.target == name:
                result.node.meta |= {"module": m, "opaque": m in self.opaque}
            else:
                self.blocks.setdefault(name, result.node)
        return result


def follow(net: nn.Module, bgr: bool) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """The operations of a network in evaluation mode, and what each module that is made of others gives.

    Raises ModelError where `torch.fx` cannot follow it, and where an operation in place changes a tensor that is read
    again through a view of it.
    """
    tracer = _Tracer(bgr)
    try:
        graph = tracer.trace(net)
    except Exception as error:
        raise ModelError(
            f"torch.fx cannot trace {type(net).__name__} ({type(error).__name__}: {error}); take out control "
            "flow that depends on data, or wrap the part of the network that can be traced"
        ) from error
    _order_keywords(graph)
    _read_what_was_written(graph, net)
    _keep_channel_axes(graph)
    return graph, tracer.blocks


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


def _order_keywords(graph: fx.Graph) -> None:
    """Put the keywords of a call into the order of the function's arguments, so that rules find its maps in that."""
    for node in graph.nodes:
        if len(node.kwargs) < 2 or node.op not in ("call_function", "call_module"):
            continue
        function: Any = node.meta["module"].forward if node.op == "call_module" else node.target
        try:
            signatures = [inspect.signature(function)]
        except (TypeError, ValueError):  # written in C: torch says it in another place
            signatures = get_signature_for_torch_op(function) or []
        orders = [list(s.parameters) for s in signatures if set(node.kwargs) <= set(s.parameters)]
        if orders:
            node.kwargs = {name: node.kwargs[name] for name in orders[0] if name in node.kwargs}


def _called(node: fx.Node) -> str:
    return repr(str(node.target) if node.op == "call_module" else node.name)


_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


def _is_in_place(net: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        return bool(getattr(module, "inplace", False)) and not isinstance(module, RESTING)
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
            net.get_submodule(str(node.target)), (*RESTING, nn.Identity, nn.Flatten, nn.Unflatten)
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
