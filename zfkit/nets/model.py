"""`VisionModel`: a network together with what its input has to look like."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..batching import out_of_memory
from ..checks import Size, in_px, one_of, pair, picture_size, whole_numbers
from ..checksums import digest
from ..errors import ImageError, ModelError
from ..images.colour import luma
from ..images.decode import MAX_PIXELS
from ..images.given import MOST_BANDS
from .fingerprint import decides, described, unchanged
from .graph import Network, evaluation_mode
from .trace import chosen, parts_of, trace
from .weights import Provenance

Channels = Literal["rgb", "bgr"]


@dataclass(frozen=True, eq=False)
class VisionModel:
    """A network, how pictures go into it, and what its outputs are called.

    Attributes:
        net: the `nn.Module`, in whatever mode its owner has put it into: zfkit's own passes run in evaluation mode.
        mean, scale: input = (rgb_0_255 - mean) * scale, one number per channel, red first.
        input_size: side in pixels of the pictures it was trained on, or (height, width). Convolutional layers take
            larger ones.
        classes: names of its outputs, or empty.
        name: what to call it in tables and captions.
        provenance: data, recipe and accuracy, where known.
        channels: "bgr" for a network that takes blue first. `preprocess` gives red first all the same, as do the
            projections, and `logits` turns them round: the traced network begins with that step.
        output: key, field or number of the tensor that is looked at, of a network that returns several.
        show: which bands of its pictures are displayed as red, green and blue, counted from 0.
    """

    net: nn.Module
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    input_size: Size
    classes: tuple[str, ...] = ()
    name: str = "mine"
    provenance: Provenance = field(default_factory=dict, repr=False)
    channels: Channels = "rgb"
    output: str | int | None = None
    show: tuple[int, ...] = (0, 1, 2)
    _traced: list[tuple[list[Any], Network]] = field(default_factory=list, repr=False)  # the last, if any

    def preprocess(self, images: Tensor) -> Tensor:
        """uint8 RGB (N, 3, H, W) or (3, H, W) -> what the network takes, on its device, (N, C, H, W).

        One-channel networks get the luma (ITU-R 601), those of other than 3 channels pictures of as many `bands`.
        Raises ImageError for another dtype or shape.
        """
        if images.dim() == 3:
            images = images[None]
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != self.bands:
            kind = "RGB pictures" if self.bands == 3 else f"pictures of {self.bands} bands"
            hint = "" if self.bands == 3 else "; zfkit.ImageSet.of makes a set of tensors or arrays of them"
            raise ImageError(
                f"expected uint8 {kind} (N, {self.bands}, H, W) with values 0-255, got "
                f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}{hint}"
            )
        return self.normalise(images)

    @property
    def bands(self) -> int:
        """Of the pictures that it looks at: as many as it takes channels, and 3 if that is one."""
        return len(self.mean) if len(self.mean) > 1 else 3

    def blank(self, size: Size) -> Tensor:
        """A black picture of that size, uint8 (1, bands, H, W)."""
        return torch.zeros(1, self.bands, *pair(size), dtype=torch.uint8)

    def shown(self, x: Tensor) -> Tensor:
        """What is displayed of pictures or projections (..., C, H, W): the bands `show`, (..., 3, H, W)."""
        C = len(self.mean)
        if C == 1 or x.shape[-3] != C or self.show == tuple(range(C)):
            return x
        return x[..., list(self.show), :, :]

    def normalise(self, rgb: Tensor) -> Tensor:
        """`preprocess` for pictures of any dtype, not rounded to whole levels: (N, 3, H, W), 0-255."""
        x = rgb.to(self.device).to(self.dtype)
        if len(self.mean) == 1:
            x = luma(x)
        return (x - x.new_tensor(self.mean).view(-1, 1, 1)) * x.new_tensor(self.scale).view(-1, 1, 1)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """What the network returns for preprocessed pictures (N, C, H, W): in evaluation mode, without gradients.

        Raises ImageError or ModelError where that is not finite.
        """
        outputs = self.forward(x)
        self.network.expect_finite(x, self.network.output, outputs)
        return outputs

    def forward(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """`logits` with gradients, and with other `weights` in place of the parameters of these names."""
        x = x.flip(1) if self.channels == "bgr" else x
        with evaluation_mode(self.net):
            outputs = self.net(x) if weights is None else functional_call(self.net, dict(weights), (x,))
        return chosen(outputs, self.output)

    @property
    def network(self) -> Network:
        """The traced network; traced again if its modules, their settings or hooks, or the rules have changed since.

        Raises ModelError where it can no longer be traced.
        """
        if self._traced and unchanged(self._traced[0][0], self._decides()):
            return self._traced[0][1]
        size = len(self.mean), *pair(self.input_size)
        example = torch.zeros(1, *size, device=self.device, dtype=self.dtype)
        network = trace(self.net, example, output=self.output, bgr=self.channels == "bgr")
        self._traced[:] = [(self._decides(), network)]
        return network

    def _decides(self) -> list[Any]:
        return [self.channels, self.output, self.input_size, *decides(self.net)]

    @property
    def layers(self) -> tuple[str, ...]:
        """Dotted names of the layers in order of execution."""
        return self.network.layers

    @property
    def conv_layers(self) -> tuple[str, ...]:
        """Names of the convolutional layers in order of execution; those that compute their weights, too."""
        steps = self.network.steps
        return tuple(name for name in self.layers if isinstance(steps[name].layer, nn.Conv2d))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return next(self.net.parameters()).dtype

    def fingerprint(self, layers: Iterable[str] | None = None) -> str:
        """16 hex digits that change with whatever decides what these layers, or all, answer to a picture.

        These are the operations as far as there with their settings, arguments and hooks, the bytes of every tensor,
        `mean`, `scale` and the order of channels. All are looked at each time: torch does not count every change.
        """
        network = self.network
        steps = network.upto(network.steps if layers is None else layers)
        how = repr((self.mean, self.scale, self.channels, network.output if layers is None else ""))
        return digest(itertools.chain([how], *map(described, steps)))[:16]

    def __deepcopy__(self, memo: dict[int, Any]) -> VisionModel:
        # The traced steps run this network's own modules: a copy is traced anew.
        return replace(self, net=copy.deepcopy(self.net, memo), _traced=[])

    def to(self, device: str | torch.device) -> VisionModel:
        """Move the network to a device; returns the same model."""
        self.net.to(device)
        return self

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.net.parameters())
        classes = f"{len(self.classes)} classes" if self.classes else "classes without names"
        return f"VisionModel({self.name!r}: {count:,} parameters, {in_px(self.input_size)}, {classes})"


def expect_model(model: Any) -> VisionModel:
    """The model. Raises ModelError for anything but a `VisionModel`; a bare network is the most common of them."""
    if isinstance(model, VisionModel):
        return model
    how = "make one with zfkit.load_model(name) or zfkit.wrap_model(net, ...)"
    if isinstance(model, nn.Module):
        how = "wrap it first: model = zfkit.wrap_model(net, mean=..., scale=..., input_size=...)"
    elif isinstance(model, str | Path):
        how = f"load it first: model = zfkit.load_model({str(model)!r})"
    raise ModelError(
        f"expected a network together with what its input looks like, got {type(model).__name__}: {how}"
    )


def wrap_model(
    net: nn.Module,
    *,
    mean: float | Sequence[float],
    scale: float | Sequence[float],
    input_size: Size,
    classes: Sequence[str] | None = None,
    name: str = "mine",
    provenance: Provenance | None = None,
    channels: Channels = "rgb",
    output: str | int | None = None,
    show: Sequence[int] | None = None,
) -> VisionModel:
    """Your own network, as zfkit uses them: any CNN that torch.fx can trace, for 1 to 64 channels.

    Args:
        net: takes (N, C, H, W) floats. It is left as it is, in the mode that it is in.
        mean, scale: input = (rgb_0_255 - mean) * scale; one number, or one per channel. For torchvision's
            habit of dividing by 255 and normalising: ``mean=255 * mean, scale=1 / (255 * std)``. Numbers for pictures
            from 0 to 1 are warned about, with the right ones.
        input_size: side of square pictures in pixels, or (height, width).
        classes: names of the outputs.
        channels: "bgr" for a network that takes blue first, as OpenCV and Caffe do; `mean` and `scale` are then in
            that order, too.
        output: of a network that returns a dictionary, a tuple or the like: which part to look at, by its key or place.
        show: of a network of other bands than red, green and blue: which three to display as those, counted from 0;
            (3, 2, 1) for the first bands of Sentinel-2. Default the first three.

    Raises ModelError where the numbers do not fit the network, or the network cannot be run or traced.

    >>> model = wrap_model(net, mean=[123.7, 116.3, 103.5], scale=1 / 58, input_size=224)
    """
    _expect_plain(net)
    input_size = picture_size(input_size, "input_size", math.isqrt(MAX_PIXELS), ModelError)
    one_of(channels, "order of channels", ("rgb", "bgr"), ModelError)
    count, outputs = _try(net, input_size)
    if not isinstance(outputs, Tensor) or output is not None:
        outputs = _chosen(net, outputs, output)
    listed = classes is None or (isinstance(classes, Iterable) and not isinstance(classes, dict))
    names = tuple(classes) if classes is not None and listed else ()
    if not listed or not all(isinstance(c, str) for c in names):
        raise ModelError(
            f"classes must be a list of names, one for each output, or None, not {classes!r:.80}"
        )
    means, scales = _per_channel("mean", mean, count), _per_channel("scale", scale, count)
    if 0 in scales:
        raise ModelError("scale must not be 0: every picture would look the same to the network")
    _warn_of_unit_range(means, scales)
    if channels == "bgr":
        if count != 3:
            raise ModelError(
                f'channels="bgr" is for networks of three, and this one takes {count}: leave it out'
            )
        means, scales = means[::-1], scales[::-1]
    K = outputs.shape[1] if outputs.dim() > 1 else outputs.numel()  # squeezed, or one number
    if names and len(names) != K:
        raise ModelError(f"{len(names)} class names for a network with {K} outputs")
    model = VisionModel(
        net, means, scales, input_size, names, name, provenance or {}, channels, output,
        _bands_to_show(show, count),
    )  # fmt: skip
    _ = model.network  # trace now, so that a network zfkit cannot follow is refused here
    return model


# Modules that hold the network which zfkit can follow, and the attribute where they do.
AROUND = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}


def _expect_plain(net: Any) -> None:
    """Raise ModelError for what is no network, or one whose operations cannot be seen from outside."""
    kind = type(net).__name__
    if not isinstance(net, nn.Module):
        hint = ": build the network, then net.load_state_dict(...)" if isinstance(net, Mapping) else ""
        raise ModelError(f"expected a torch.nn.Module, got {kind}{hint}")
    if kind in AROUND:
        raise ModelError(
            f"{kind} is put around the network that zfkit can follow: wrap net.{AROUND[kind]} instead"
        )
    if isinstance(net, torch.jit.ScriptModule):
        raise ModelError("a scripted network cannot be traced; wrap the one that it was scripted from")
    for name, parameter in net.named_parameters():
        if not parameter.is_floating_point():
            raise ModelError(
                f"{kind}'s {name} is {str(parameter.dtype).removeprefix('torch.')}: zfkit follows weights of real "
                "floating-point numbers; convert it, as net.float() does for whole numbers"
            )
    modules = list(net.modules())
    if any(isinstance(m, nn.Conv2d) for m in modules):
        return
    if any("quantized" in type(m).__module__ for m in modules):
        raise ModelError(
            f"{kind}'s convolutions are quantised, which have no way back; wrap it as it was before"
        )
    raise ModelError(f"{kind} has no Conv2d layer, so it has no feature maps to look at")


@torch.no_grad()
def _try(net: nn.Module, size: Size) -> tuple[int, Any]:
    """How many channels the network takes, and what it returns for an input of as many.

    3 or 1, or as many as one of its convolutions. The one that is defined first does not say: it may be that of a head.

    Raises ModelError where it runs on none of them.
    """
    errors: dict[int, Exception] = {}
    takes = [m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d)]
    for count in dict.fromkeys([3, 1, *(n for n in takes if n <= MOST_BANDS)]):
        try:
            with evaluation_mode(net):
                return count, net(next(net.parameters()).new_zeros(1, count, *pair(size)))
        except Exception as error:
            if out_of_memory(error):
                raise
            errors[count] = error
    channels = next((n for n in takes if n in (3, 1)), takes[0])
    if channels not in errors:
        raise ModelError(
            f"{type(net).__name__} takes {channels} channels; zfkit shows networks that take 1 to {MOST_BANDS}"
        )
    shape, failed = (1, channels, *pair(size)), errors[channels]
    reason = (str(failed).splitlines() or [type(failed).__name__])[0]  # torch adds its own stack of calls
    raise ModelError(f"{type(net).__name__} does not run on an input {shape}: {reason}") from failed


def _bands_to_show(show: Any, count: int) -> tuple[int, ...]:
    """Three bands, counted from 0; by default the first."""
    if show is None:
        return (0, 1, 2) if count >= 3 else (0, count - 1, count - 1)
    numbers = whole_numbers(show)
    if numbers is None or numbers.shape != (3,) or not ((numbers >= 0) & (numbers < count)).all():
        raise ModelError(f"show must be three bands, each from 0 to {count - 1}, not {show!r:.80}")
    return tuple(numbers.tolist())


def _chosen(net: nn.Module, outputs: Any, output: str | int | None) -> Tensor:
    """The tensor that `output` names. Raises ModelError, with the names that there are, where it names none."""
    keys = [key for key, part in parts_of(outputs).items() if isinstance(part, Tensor)]
    if output in keys:
        return chosen(outputs, output)
    returns = f"{type(net).__name__} returns a {type(outputs).__name__}"
    if not keys:
        raise ModelError(f"{returns}, of which nothing is chosen by output={output!r}: leave it out")
    raise ModelError(
        f"{returns} with {', '.join(map(repr, keys))}: say which of them to look at, wrap_model(..., "
        f"output={keys[0]!r}){'' if output is None else f', not {output!r}'}"
    )


def _warn_of_unit_range(means: tuple[float, ...], scales: tuple[float, ...]) -> None:
    """Warn where the numbers are those for pictures from 0 to 1: no pictures from 0 to 255 have a mean below 1."""
    if not all(0 <= m <= 1 for m in means) or not any(means):
        return
    # From 0 to 1 networks are given (x - mean) / std with std about 0.2: the scale, or by mistake std itself.
    right = [s if s < 0.1 else s / 255 if s >= 1 else 1 / (255 * s) for s in scales]
    warnings.warn(
        f"mean={_short(means)} and scale={_short(scales)} look like numbers for pictures from 0 to 1, and zfkit's go "
        f"from 0 to 255: say mean={_short([255 * m for m in means])}, scale={_short(right)}",
        stacklevel=3,
    )


def _short(numbers: Sequence[float]) -> str:
    return "[" + ", ".join(f"{v:.4g}" for v in numbers) + "]"


def _per_channel(what: str, value: Any, channels: int) -> tuple[float, ...]:
    """One finite number per channel, out of as many or of one for all; lists and arrays alike."""
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.tensor(math.nan)
    if (numbers.dim() and numbers.numel() != channels) or not numbers.isfinite().all():
        raise ModelError(f"{what} must be one finite number or {channels}, one per channel, not {value!r}")
    return tuple(numbers.flatten().expand(channels).tolist())
