"""What a projection has to be, by autograd through the user's own module; it knows nothing of zfkit.

Functions that torch calls for activations like ReLU are replaced: forward they are what they were, backward they do
what the rule says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_RELU = {F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_, F.relu_, F.relu6}
_LIKE_RELU = {
    F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.softplus,
    F.prelu, torch.prelu, F.threshold,
}  # fmt: skip


class RuledActivation(torch.autograd.Function):
    """Forward as the activation; backward as the rule says."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Callable[[Tensor], Tensor], rule: str) -> Tensor:
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            y = activation(inner)
        ctx.rule, ctx.inner, ctx.y = rule, inner, y
        return y.detach()

    @staticmethod
    def backward(ctx: Any, *R: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        back = R[0] if ctx.rule == "gradient" else R[0].clamp(min=0)
        if ctx.rule != "deconvnet":
            (back,) = torch.autograd.grad(ctx.y, ctx.inner, back, retain_graph=True)
        return back, None, None


class Ruled(TorchFunctionMode):
    """Within it, torch's activations like ReLU have the rule's backward pass."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rule = rule

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        six = func is F.hardtanh and (kwargs.get("min_val"), kwargs.get("max_val")) == (
            0,
            6,
        )  # so nn.ReLU6 calls it
        if func in _RELU or func in _LIKE_RELU or six:
            kwargs.pop("inplace", None)
            plain = getattr(F, func.__name__.removesuffix("_"))
            result: Any = RuledActivation.apply(args[0], lambda x: plain(x, *args[1:], **kwargs), self.rule)
            return result
        result = func(*args, **kwargs)
        if func is F.batch_norm and result.requires_grad:
            # Given a gradient that lies channels-last, torch goes back wrongly for one image (seen in torch 2.14).
            result.register_hook(lambda g: g.contiguous())
        return result


def outputs(net: nn.Module, x: Tensor, layers: Sequence[str], rule: str) -> tuple[dict[str, Tensor], Tensor]:
    """Outputs of these layers, with the graph behind them, and the input that gradients are taken by."""
    given: dict[str, Tensor] = {}

    def keep(layer: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            given.setdefault(layer, output * 1)  # a copy: a later step may overwrite it

        return hook

    modules = dict(net.named_modules())
    hooks = [modules[name].register_forward_hook(keep(name)) for name in layers if name in modules]
    source = x.clone().requires_grad_()
    with Ruled(rule):
        net(source * 1)
    for hook in hooks:
        hook.remove()
    return given, source


def projection(net: nn.Module, x: Tensor, layer: str, unit: Sequence[int], rule: str) -> Tensor:
    """The unit (channel, row, column) of every image of x, carried back: (N, C, H, W)."""
    given, source = outputs(net, x, [layer], rule)
    (back,) = torch.autograd.grad(given[layer][(slice(None), *unit)].sum(), source)
    return back


def assert_close(found, expected, tolerance=1e-10):
    """Largest difference at most `tolerance` of the largest expected value."""
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
