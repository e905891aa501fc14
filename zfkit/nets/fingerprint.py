"""What decides a network's answers: looked at to notice that it was changed, and put into its fingerprint."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from functools import partial
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from .graph import ELEMENTWISE, LEAVES, RESTING, WHOLE, Step

_OF_TORCH = frozenset(vars(nn.Module()))  # attributes that every module has
_PLAIN = (int, float, complex, str, bytes, slice, torch.dtype, torch.device)


def decides(net: nn.Module) -> list[Any]:
    """The objects that decide which operations run: modules, parameters, settings, hooks; and the registered rules.

    As these are kept, an object that was replaced cannot be taken for a new one at its old address. Tensors that
    modules leave in attributes are not among them: some keep what they computed last.
    """
    objects: list[Any] = [*LEAVES, *ELEMENTWISE, *WHOLE]
    for module in net.modules():
        objects += [type(module), module, *module._modules.values(), *module._parameters.values()]
        objects += [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        objects += [v for k, v in vars(module).items() if k != "training" and type(v) is not Tensor]
    return objects


def unchanged(before: list[Any], now: list[Any]) -> bool:
    """Are these the same objects, one by one?"""
    return len(before) == len(now) and all(map(operator.is_, before, now))


def described(step: Step) -> Iterator[str | Tensor]:
    """An operation with its arguments; and settings, hooks and tensors of the module that does it."""
    yield f"{step.name} {step.call}"
    if step.call.startswith("['get_attr'"):
        yield from _contents(step.run())
    if step.layer is None or step.block or isinstance(step.layer, RESTING):
        return
    # not all of them are stored with weights
    state = step.layer.state_dict() | dict(step.layer.named_buffers())
    for i, module in enumerate(step.layer.modules()):
        own = {k: v for k, v in vars(module).items() if k not in _OF_TORCH and k != "inplace"}
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        kind = type(module)
        forward = None if kind.__module__.startswith("torch.") else kind.forward
        yield text([kind, forward, sorted(own.items()), hooks])
        state |= {f"{i} {name}": value for name, value in own.items() if isinstance(value, Tensor)}
    for name, value in state.items():
        yield name
        yield from _contents(value)


def _contents(value: Any) -> Iterator[str | Tensor]:
    """An entry of a state dict; those of quantised layers are no tensors, or tensors of their own kind."""
    if isinstance(value, tuple | list):
        for part in value:
            yield from _contents(part)
    elif not isinstance(value, Tensor):
        yield repr(value)
    elif value.is_quantized:
        yield from (value.int_repr(), value.dequantize())
    else:
        yield value


def text(value: Any, depth: int = 6) -> str:
    """Any setting or argument as text, the same in every process: without addresses, of functions their code."""
    if value is None or isinstance(value, _PLAIN):
        return repr(value)
    if depth == 0 or isinstance(value, nn.Module | Tensor):
        return type(value).__qualname__
    if isinstance(value, Mapping):
        return text([*value.items()], depth)
    if isinstance(value, list | tuple):
        return f"[{' '.join(text(v, depth - 1) for v in value)}]"
    if isinstance(value, set | frozenset):
        return text(sorted(text(v, depth - 1) for v in value), depth)
    if isinstance(value, partial):
        return text([value.func, value.args, value.keywords], depth)
    if isinstance(value, CodeType):
        return value.co_code.hex() + text([value.co_names, value.co_consts], depth - 1)
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    if (code := getattr(value, "__code__", None)) and not name.startswith("torch"):
        # What else a function encloses may be where a hook leaves what it saw.
        enclosed = [c.cell_contents for c in value.__closure__ or () if isinstance(c.cell_contents, _PLAIN)]
        return value.__qualname__ + text([code, value.__defaults__, enclosed], depth - 1)
    attributes = {} if callable(value) and hasattr(value, "__qualname__") else getattr(value, "__dict__", {})
    return name + text(sorted(attributes.items()), depth - 1) if attributes else name
