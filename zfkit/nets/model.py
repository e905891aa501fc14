"""`VisionModel`: a network together with what its input has to look like."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import whole_number
from ..errors import ImageError, ModelError
from ..images.colour import luma
from .graph import LEAVES, Network
from .trace import trace
from .weights import Provenance


@dataclass(frozen=True, eq=False)
class VisionModel:
    """A network, how pictures go into it, and what its outputs are called.

    Attributes:
        net: the `nn.Module`, in evaluation mode.
        mean, scale: input = (rgb_0_255 - mean) * scale, one number per channel.
        input_size: side in pixels of the pictures it was trained on. Convolutional layers take larger ones.
        classes: names of its outputs, or empty.
        name: what to call it in tables and captions.
        provenance: data, recipe and accuracy, where known.
    """

    net: nn.Module
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    input_size: int
    classes: tuple[str, ...] = ()
    name: str = "mine"
    provenance: Provenance = field(default_factory=dict, repr=False)
    _traced: dict[frozenset[type], Network] = field(default_factory=dict, repr=False)
    _hashed: dict[Any, str] = field(default_factory=dict, repr=False)

    def preprocess(self, images: Tensor) -> Tensor:
        """uint8 RGB (N, 3, H, W) or (3, H, W) -> what the network takes, on its device, (N, C, H, W).

        One-channel networks get the luma (ITU-R 601). Raises ImageError for another dtype or shape.
        """
        if images.dim() == 3:
            images = images[None]
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ImageError(
                "expected uint8 RGB pictures (N, 3, H, W) with values 0-255, got "
                f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            )
        return self.normalise(images)

    def normalise(self, rgb: Tensor) -> Tensor:
        """`preprocess` for pictures of any dtype, not rounded to whole levels: (N, 3, H, W), 0-255."""
        x = rgb.to(self.device).to(self.dtype)
        if len(self.mean) == 1:
            x = luma(x)
        return (x - x.new_tensor(self.mean).view(-1, 1, 1)) * x.new_tensor(self.scale).view(-1, 1, 1)

    @property
    def network(self) -> Network:
        """The traced network; traced again if rules for more kinds of module were registered since."""
        key = frozenset(LEAVES)
        if key not in self._traced:
            side, count = self.input_size, len(self.mean)
            example = torch.zeros(1, count, side, side, device=self.device, dtype=self.dtype)
            self._traced[key] = trace(self.net, example)
        return self._traced[key]

    @property
    def layers(self) -> tuple[str, ...]:
        """Dotted names of the layers in order of execution."""
        return self.network.layers

    @property
    def conv_layers(self) -> tuple[str, ...]:
        """Names of the convolutional layers in order of execution."""
        steps = self.network.steps
        return tuple(name for name in self.layers if isinstance(steps[name].module, nn.Conv2d))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return next(self.net.parameters()).dtype

    def fingerprint(self) -> str:
        """16 hex digits that change with any parameter or buffer of the network."""
        state = self.net.state_dict()
        # Also buffers that are not stored with the weights, such as the filter of a blur.
        state |= {name: buffer for name, buffer in self.net.named_buffers() if name not in state}
        # torch counts the changes of a tensor; weights that nobody touched are not read again.
        counted = not any(t.is_inference() for t in state.values())
        version = tuple((name, t.data_ptr(), t._version) for name, t in state.items()) if counted else None
        if version is None or version not in self._hashed:
            digest = hashlib.sha256()
            for name, tensor in state.items():
                numbers = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                digest.update(name.encode() + b"\0" + numbers.tobytes())
            self._hashed.clear()
            self._hashed[version] = digest.hexdigest()[:16]
        return self._hashed[version]

    def to(self, device: str | torch.device) -> VisionModel:
        """Move the network to a device; returns the same model."""
        self.net.to(device)
        return self

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.net.parameters())
        classes = f"{len(self.classes)} classes" if self.classes else "classes without names"
        return f"VisionModel({self.name!r}: {count:,} parameters, {self.input_size} px, {classes})"


def wrap_model(
    net: nn.Module,
    *,
    mean: float | Sequence[float],
    scale: float | Sequence[float],
    input_size: int,
    classes: Sequence[str] | None = None,
    name: str = "mine",
    provenance: Provenance | None = None,
) -> VisionModel:
    """Your own network, as zfkit uses them: any CNN that torch.fx can trace, for 1 or 3 channels.

    Args:
        net: takes (N, C, S, S) floats; it is put into evaluation mode.
        mean, scale: input = (rgb_0_255 - mean) * scale; one number, or one per channel. For torchvision's
            habit of dividing by 255 and normalising: ``mean=255 * mean, scale=1 / (255 * std)``.
        input_size: S, in pixels.
        classes: names of the outputs.

    Raises ModelError where the numbers do not fit the network, or the network cannot be run or traced.

    >>> model = wrap_model(net, mean=[123.7, 116.3, 103.5], scale=1 / 58, input_size=224)
    """
    if not isinstance(net, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, got {type(net).__name__}")
    whole_number(input_size, "input_size, in pixels,", error=ModelError)
    first = next((m for m in net.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise ModelError(f"{type(net).__name__} has no Conv2d layer, so it has no feature maps to look at")
    channels = first.in_channels
    if channels not in (1, 3):
        raise ModelError(
            f"{type(net).__name__} takes {channels} channels; zfkit shows networks that take 1 or 3"
        )
    listed = classes is None or (isinstance(classes, Iterable) and not isinstance(classes, dict))
    names = tuple(classes) if classes is not None and listed else ()
    if not listed or not all(isinstance(c, str) for c in names):
        raise ModelError(
            f"classes must be a list of names, one for each output, or None, not {classes!r:.80}"
        )
    means, scales = _per_channel("mean", mean, channels), _per_channel("scale", scale, channels)
    if 0 in scales:
        raise ModelError("scale must not be 0: every picture would look the same to the network")
    model = VisionModel(net.eval(), means, scales, input_size, names, name, provenance or {})
    try:
        with torch.inference_mode():
            blank = torch.zeros(1, channels, input_size, input_size, device=model.device, dtype=model.dtype)
            outputs = net(blank).shape[-1]
    except Exception as error:
        raise ModelError(
            f"{type(net).__name__} does not run on an input (1, {channels}, {input_size}, {input_size}): {error}"
        ) from error
    if names and len(names) != outputs:
        raise ModelError(f"{len(names)} class names for a network with {outputs} outputs")
    _ = model.network  # trace now, so that a network zfkit cannot follow is refused here
    return model


def _per_channel(what: str, value: Any, channels: int) -> tuple[float, ...]:
    """One finite number per channel, out of as many or of one for all; lists and arrays alike."""
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.tensor(math.nan)
    if (numbers.dim() and numbers.numel() != channels) or not numbers.isfinite().all():
        raise ModelError(f"{what} must be one finite number or {channels}, one per channel, not {value!r}")
    return tuple(numbers.flatten().expand(channels).tolist())
