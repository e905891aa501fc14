"""A network as the list of operations that it runs: `Network`, made by `trace.trace`.

Every operation is described by an `nn.Module`, whether the network's author wrote ``nn.ReLU()``, ``F.relu(x)`` or
``x.relu_()``. Receptive fields, projections and mining all read this list, so each of them needs to know an operation
once, and in-place or reused modules make no difference.
"""

from __future__ import annotations

import contextlib
import math
import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ImageError, LayerError, ModelError, unknown

# Operations of users that have a rule of their own (`zfkit.register_rule`). Their modules are not traced into.
LEAVES: set[type[nn.Module]] = set()
ELEMENTWISE: set[Any] = set()  # of them, those that leave rows and columns alone
WHOLE: set[Any] = set()  # and those whose rules are given whole maps


# ------------------------------------------------------- modules that describe functions and tensor methods


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


class ReshapeChannels(Reshape):
    """A `Reshape` that leaves rows and columns, the last two axes, alone, as in a channel shuffle."""


class Rearrange(nn.Module):
    """Describes numbers picked out of others, or given further axes (indexing, squeeze, unsqueeze)."""


class Pointwise(nn.Module):
    """Describes an operation each of whose places depends on the same place of what it reads, and on no other."""


class Together(nn.Module):
    """Describes operations that are one on the way back: what they hand on among them are not maps of one picture each.

    Heads of attention that are put beside the pictures, say, or the several tensors of `nn.MultiheadAttention`; also a
    module with control flow, or together with hooks that change what it gives.
    """


class BatchStatistics(nn.Module):
    """Describes a batch normalisation by the statistics of the batch at hand."""


class Padding(nn.Module):
    """Describes rows and columns put around the maps."""

    def __init__(self, top: int, left: int) -> None:
        super().__init__()
        self.top, self.left = top, left


class SlidingFunction(nn.Module):
    """Describes a convolution called as a function, whose weights may be computed."""

    def __init__(self, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation


# ----------------------------------------------------------------------------------------------- the network


@dataclass(frozen=True)
class Step:
    """One operation of a traced network.

    Attributes:
        name: dotted module path for modules ("features.3"; a second use of the same module is
            "features.3_1"), and torch.fx's node name for functions ("add_1").
        target: the module's class, the function, or the name of the tensor's method.
        module: what it does, as an `nn.Module`; None for the input and where nothing is known about it.
        inputs: names of the steps it reads from.
        run: computes it from what these steps gave.
        maps: those of `inputs` that carry the image's activations, rather than parameters, constants or sizes.
        counts: those of `inputs` that say how many images there are.
        sizes: those of `inputs` that are a map's whole shape, with the number of images in front.
        layer: the module of the user's network whose output this is; None for functions. Modules made of others
            ("layer4") have a step of their own, which hands on what the last of them gave.
        call: the operation with its arguments, as text.
    """

    name: str
    target: Any
    module: nn.Module | None
    inputs: tuple[str, ...]
    run: Callable[..., Any]
    maps: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    layer: nn.Module | None = None
    call: str = ""

    @property
    def listed(self) -> bool:
        """Is it a layer, with a name that users know?"""
        return self.layer is not None

    @property
    def block(self) -> bool:
        """Does it stand for a module made of others?"""
        return self.layer is not None and self.target is BLOCK

    @property
    def operation(self) -> str:
        """What it is called in a message: the class, function or method."""
        return (
            self.target
            if isinstance(self.target, str)
            else getattr(self.target, "__name__", str(self.target))
        )

    @property
    def typed(self) -> str:
        """What one types to name the operation, as `register_rule` takes it: torch.mul, 'mul', torch.nn.SiLU."""
        if isinstance(self.target, str):
            return repr(self.target)
        name = self.operation
        for module in (torch, F, operator, nn):
            if getattr(module, name, None) is self.target:
                return f"{module.__name__}.{name}"
        return f"{self.target.__module__}.{getattr(self.target, '__qualname__', name)}"


BLOCK = "block"  # target of the steps that stand for modules made of others

Evaluate = Callable[[Step, tuple[Any, ...]], Any]


@dataclass(frozen=True)
class Network:
    """The steps of a traced network in order of execution; the first is the input.

    Attributes:
        output: name of the step that the network returns.
        shapes: of every step's output that is a tensor, without N, for a picture of the size it was traced with.
    """

    steps: dict[str, Step]
    output: str = ""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)

    @property
    def layers(self) -> tuple[str, ...]:
        """Dotted names of the modules that run, in order; a block's after those it is made of."""
        return tuple(s.name for s in self.steps.values() if s.listed)

    @property
    def leaves(self) -> tuple[str, ...]:
        """The layers that are not made of others, in order."""
        return tuple(s.name for s in self.steps.values() if s.listed and not s.block)

    @property
    def input(self) -> str:
        """Name of the step that stands for the image."""
        return next(iter(self.steps))

    def find(self, layer: str) -> Step:
        """The step of that name. Raises LayerError, nearest names first, if there is none."""
        if layer not in self.steps or not self.steps[layer].listed:
            raise LayerError(unknown("layer", layer, self.layers, limit=24))
        return self.steps[layer]

    def readers(self, name: str) -> list[Step]:
        """The operations that read what this step gives."""
        return [s for s in self.steps.values() if name in s.inputs and not s.block]

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
        return [step for step in self.steps.values() if step.name in reached and step.maps]

    @torch.no_grad()
    def expect_finite(self, x: Tensor, layer: str, output: Tensor) -> None:
        """Raise where a layer's output for pictures (N, C, H, W) as they go in is not finite.

        ImageError names the first picture that is not finite itself, ModelError the first operation that gives, or
        holds, values that are not: behind a ReLU or a switch they may look like any others.
        """
        if not output.is_floating_point() or math.isfinite(float(output.sum(dtype=torch.float32))):
            return  # a sum is several times as quick as looking at each, and may itself be too large
        if output.isfinite().all():
            return
        if not (whole := _finite(x)).all():
            raise ImageError(
                f"picture {int(whole.int().argmin())} of the {len(x)} at hand holds values that are not finite, NaN or "
                "infinite; leave it out"
            )
        for step, _, y in self.walk(x.clone(), [layer]):
            maps = y if step.maps and isinstance(y, Tensor) and y.is_floating_point() else x  # not parameters
            if not (whole := _finite(maps)).all():
                own = step.layer.named_parameters() if step.layer is not None else ()
                broken = [f"its {n} holds NaN or infinite values" for n, p in own if not p.isfinite().all()]
                why = broken[0] if broken else "numbers grow beyond what their type holds"
                raise ModelError(
                    f"{step.name!r} gives values that are not finite, first for picture {int(whole.int().argmin())} of "
                    f"the {len(x)} at hand: {why}. Load the weights again, or train anew"
                )

    def walk(
        self, x: Tensor, layers: Sequence[str], evaluate: Evaluate | None = None
    ) -> Iterator[tuple[Step, tuple[Any, ...], Any]]:
        """Run as far as these layers need; yield each step with its inputs and output.

        Modules run in evaluation mode, and are put back into the mode they were in. Values are freed after their
        last use, and ReLUs overwrite what a convolution or the like gave if nobody needs it any longer: look at an
        output when it is yielded, not later. `evaluate` replaces ``step.run(*inputs)``.
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
                and step.target not in ELEMENTWISE | WHOLE
                and isinstance(self.steps[step.inputs[0]].module, _FRESH)
                and last_use[step.inputs[0]] == i
            ):
                values[step.name] = inputs[0].relu_()
            else:
                with full_float32():
                    values[step.name] = evaluate(step, inputs)
            yield step, inputs, values[step.name]
            for name in step.inputs:
                if last_use[name] == i:
                    values.pop(name, None)


def _finite(values: Tensor) -> Tensor:
    """(N,) bool: is all of a picture's finite?"""
    return values.isfinite().reshape(len(values), -1).all(1)


# Their outputs are memory of their own; what an Identity or a view returns may be another step's.
_FRESH = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, Add)


@contextlib.contextmanager
def evaluation_mode(net: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and each of its modules back into its own mode at the end.

    Dropout called as a function rests, too, whatever its `training` argument says by default.
    """
    training = [m for m in net.modules() if m.training]
    try:
        for module in training:
            module.training = False
        with _DropoutRests():
            yield
    finally:
        for module in training:
            module.training = True


class _DropoutRests(TorchFunctionMode):
    """Within it, dropout gives back what it was given."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in DROPOUTS and args else func(*args, **(kwargs or {}))


DROPOUTS = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
    torch.dropout_, torch.alpha_dropout, torch.feature_dropout,
}  # fmt: skip


# In evaluation mode these modules give back what they were given.
RESTING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


_exact = threading.Lock()
_threads_inside = 0
_before: list[tuple[Any, str, Any]] = []  # settings as they were before the first thread came in


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Within it, float32 is float32: neither TF32, which cuDNN takes for convolutions by default, nor bfloat16.

    TF32 keeps 10 of 23 bits: enough that here and there another value of a pool is the largest, and a whole branch of
    a projection goes elsewhere. The settings are the process's, so they are put back when the last thread leaves.
    """
    global _threads_inside
    with _exact:
        if not _threads_inside:
            switches = tf32_switches()
            _before[:] = [(where, name, getattr(where, name)) for where, name, _ in switches]
            for where, name, off in switches:
                setattr(where, name, off)
        _threads_inside += 1
    try:
        yield
    finally:
        with _exact:
            _threads_inside -= 1
            if not _threads_inside:
                for setting in _before:
                    setattr(*setting)


def tf32_switches() -> list[tuple[Any, str, Any]]:
    """Where torch keeps what allows less than float32, under which name, and the value that does not."""
    torch_backends: Any = torch.backends
    matmul, cudnn, mkldnn = torch_backends.cuda.matmul, torch_backends.cudnn, torch_backends.mkldnn
    switches: list[tuple[Any, str, Any]] = [(matmul, "allow_tf32", False)]
    if hasattr(matmul, "fp32_precision"):  # torch 2.9
        switches = [(kind, "fp32_precision", "ieee") for kind in (matmul, mkldnn.matmul)]
    try:
        _ = cudnn.allow_tf32
    except RuntimeError:  # somebody set it in torch's new way, which the old one does not want to know of
        return [*switches, (cudnn.conv, "fp32_precision", "ieee")]
    return [*switches, (cudnn, "allow_tf32", False)]
