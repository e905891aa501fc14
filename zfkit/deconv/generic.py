"""The way back through operations without a rule of their own: their transpose, or their gradient.

Three kinds are told apart, and `way_back` says of every operation which it was:

* *linear* operations (transposed convolutions, upsampling, padding, shuffles, sums ...): the transpose, as for those
  in `rules`;
* *activations like ReLU* (LeakyReLU, GELU, SiLU ...): what comes back is rectified under "deconvnet"; under "guided"
  it is also multiplied with the derivative; under "gradient" it is multiplied with the derivative alone. With ReLU in
  their place all three are the rules of the literature;
* *everything else* (products, gates, normalisations over the picture, attention, modules with control flow): the
  gradient at what went forward, on every input. The literature says nothing of these under "deconvnet". ReLUs and
  activations like them inside such an operation are rectified as elsewhere.

Autograd gives all of them: the gradient of a linear operation is its transpose, wherever it is taken.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import LayerError
from ..nets.graph import Step, Together
from .rules import Context, Inputs, OperationRule, Rule

# Names of classes, functions and tensor methods: one name serves nn.PixelShuffle, F.pixel_shuffle and x.sum() alike.
LINEAR = frozenset(
    """
    ConvTranspose1d ConvTranspose2d conv1d conv2d conv_transpose2d linear Upsample UpsamplingNearest2d
    UpsamplingBilinear2d interpolate pad ZeroPad2d ConstantPad2d ReflectionPad2d ReplicationPad2d CircularPad2d
    PixelShuffle PixelUnshuffle ChannelShuffle pixel_shuffle pixel_unshuffle channel_shuffle Fold Unfold fold unfold
    permute transpose swapaxes movedim flip roll chunk split tensor_split unbind stack cat concat concatenate
    getitem select narrow index_select gather repeat repeat_interleave expand expand_as tile T mT
    unflatten Unflatten flatten Flatten reshape view squeeze unsqueeze contiguous clone to type float double
    sum mean sub isub rsub neg add iadd batch_norm BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm
    FrozenBatchNorm2d avg_pool1d avg_pool2d adaptive_avg_pool2d AdaptiveAvgPool1d AvgPool1d
    """.split()
)
# With several inputs that carry activations, most operations multiply them; these still add or arrange them.
LINEAR_IN_ALL = frozenset("add iadd sub isub rsub stack cat concat concatenate".split())
PRODUCTS = frozenset("mul imul multiply div truediv itruediv true_divide matmul bmm".split())
LIKE_RELU = frozenset(
    """
    LeakyReLU PReLU RReLU ELU SELU CELU GELU SiLU Mish Hardswish Softplus Threshold
    leaky_relu leaky_relu_ prelu rrelu rrelu_ elu elu_ selu selu_ celu celu_ gelu silu mish hardswish hardswish_
    softplus threshold threshold_
    """.split()
)


def generic_rule(step: Step) -> OperationRule:
    """The way back through an operation that has no rule of its own."""
    kind = kind_of(step)
    if kind == "rectified":
        return OperationRule(
            rectified,
            when=lambda options: options.rule != "deconvnet",
            inputs=None,
            treatment=kind,
            keeps_inputs=True,
        )
    # Of a linear operation the transpose is the same wherever it is taken, so that only its constants are kept.
    keeps = kind == "gradient" or set(step.inputs) != {*step.maps, *step.counts}
    return OperationRule(gradient, inputs=None, treatment=kind, keeps_inputs=keeps)


def kind_of(step: Step) -> str:
    """How the operation is treated: "transpose", "rectified" or "gradient"."""
    if isinstance(step.module, Together):
        return "gradient"
    name = step.operation.removesuffix("_") if isinstance(step.target, str) else step.operation
    if name in LIKE_RELU:
        return "rectified"
    if len(step.maps) > 1:
        return "transpose" if name in LINEAR_IN_ALL else "gradient"
    times_a_constant = name in PRODUCTS and len(step.inputs) > 1
    return "transpose" if name in LINEAR or times_a_constant else "gradient"


def rectified(R: Tensor, module: nn.Module | None, context: Context) -> list[Tensor | None]:
    """As a ReLU, with the derivative in place of its mask."""
    if context.options.rule != "gradient":
        R = R.clamp_(min=0)
    return [R] if context.kept is None else gradient(R, module, context)


def gradient(R: Tensor, module: nn.Module | None, context: Context) -> list[Tensor | None]:
    """R times the derivative of the operation by each of its maps, at what went forward."""
    step, B = context.step, len(R)
    inputs = context.kept or Inputs({}, {})
    maps: dict[str, Tensor] = {}
    for name, shape in zip(step.maps, context.shapes, strict=True):
        if name in inputs.maps:
            value = inputs.maps[name]
            maps[name] = context.cut(value) if value.dim() == 4 else value[context.image]
        else:
            maps[name] = R.new_zeros(B, *(shape if context.window is None else (shape[0], *R.shape[2:])))
    with torch.inference_mode(False), torch.enable_grad():
        maps = {n: v.clone().requires_grad_(v.is_floating_point()) for n, v in maps.items()}
        values: list[Any] = []
        for name in step.inputs:
            if name in maps:  # a copy: it may work in place
                values.append(maps[name] * 1 if maps[name].requires_grad else maps[name])
            elif name in step.counts:  # how many images there are: here one for each unit
                values.append(B)
            else:
                value = inputs.others[name]
                values.append(torch.Size((B, *value[1:])) if name in step.sizes else value)
        try:
            with _ActivationsRectified(context.options.rule):
                y = step.run(*values)
        except RuntimeError as error:
            raise no_way_back(step, str(error).splitlines()[0]) from error
        sources = [m for m in maps.values() if m.requires_grad]
        if not isinstance(y, Tensor):
            raise no_way_back(step, "it gives several tensors at once")
        if not y.requires_grad:
            return [None] * len(step.maps)  # a comparison, say: nothing goes back through it
        # Contiguous: given another layout, torch's batch norm went back wrongly for one image (seen in torch 2.14).
        parts = iter(torch.autograd.grad(y, sources, R.contiguous().reshape(y.shape), allow_unused=True))
    return [next(parts) if maps[name].requires_grad else None for name in step.maps]


class _ActivationsRectified(TorchFunctionMode):
    """Within it, activations like ReLU that are called as functions or methods go back as the rule says."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        called = getattr(func, "__name__", "")
        name = called.strip("_")
        relu6 = name == "hardtanh" and (kwargs.get("min_val"), kwargs.get("max_val")) == (0, 6)
        if self.rule == "gradient" or not (relu6 or name in LIKE_RELU or name in ("relu", "relu6")):
            return func(*args, **kwargs)
        x, *rest = args or (kwargs.pop("input"),)
        in_place = kwargs.pop("inplace", False) or called.endswith("_")
        y = plain = getattr(F, name)(x.clone(), *rest, **kwargs)
        if self.rule == "deconvnet":  # what comes back goes on to x as it is
            y = x.clone()
            y.data.copy_(plain.data)
        if y.requires_grad:
            y.register_hook(lambda R: R.clamp(min=0))
        return x.copy_(y) if in_place else y


def no_way_back(step: Step, why: str) -> LayerError:
    """What to raise for an operation that cannot be undone; several together have no name to give it one by."""
    typed = "" if isinstance(step.module, Together) else f"({step.typed})"
    return LayerError(
        f"there is no way back through {step.operation!r} (at {step.name!r}): {why}. "
        f"Give it one with zfkit.register_rule{typed}"
    )
