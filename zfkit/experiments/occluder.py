"""An optimisation: a picture under a square, computed from the picture without one.

Under a square of s pixels, a convolution or pool changes only at the positions whose filter touches it. Between the
first of them and the last lies a patch of the map; everywhere else stands what the whole picture gave. So a batch of
squares is carried through the network as patches with their origins. At a layer where the patches cover most of the
map, or that needs all of it, they are pasted into the whole picture's map, and the network goes on as usual. The
result is what running the network on each covered picture gives, but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import pair
from ..deconv.receptive_field import POINTWISE, filters
from ..errors import LayerError
from ..nets.activations import cannot_run
from ..nets.graph import Reshape, Step, evaluation_mode
from ..nets.model import VisionModel

# Patches that cover more of a map than this are pasted: cutting them out of it would cost what it saves.
WORTH_IT = 0.7


@dataclass(frozen=True)
class Patch:
    """The part (B, C, h, w) of a map that differs for each of B squares, and its first row and column (B, 2)."""

    values: Tensor
    origin: Tensor


@dataclass(frozen=True)
class Occluder:
    """One picture, ready to be covered at any place: `Occluder.of(...)`, then `occluded(...)`.

    Attributes:
        net: the network; it is run in evaluation mode.
        steps: the operations as far as the layer and the network's output.
        values: outputs of every step for the picture without a square, (1, C, H, W), kept to fill in from.
        layer: whose maps are watched.
        last: the network's output, or the layer where it was cut.
    """

    net: nn.Module
    steps: list[Step]
    values: dict[str, Any]
    layer: str
    last: str

    @classmethod
    @torch.inference_mode()
    def of(cls, model: VisionModel, x: Tensor, layer: str, classify: bool = True) -> Occluder:
        """For a preprocessed picture (1, C, H, W). Raises LayerError for a size that the network does not take."""
        network = model.network
        last = network.output if classify else layer
        steps = network.upto([layer, last])
        values: dict[str, Any] = {}
        try:
            with evaluation_mode(model.net):
                for step in steps:
                    # Copies, since a step may work in place and every output is needed later.
                    inputs = [v.clone() if isinstance(v := values[n], Tensor) else v for n in step.inputs]
                    values[step.name] = x if step.name == network.input else step.run(*inputs)
        except RuntimeError as error:
            reason = cannot_run(model, [last], x, error)
            if classify and isinstance(reason, LayerError):
                hint = f"With classify=False its classes are left out, and {layer} is all it needs"
                reason = LayerError(f"{reason}. {hint}")
            raise reason from error
        return cls(model.net, steps, values, layer, last)

    @torch.inference_mode()
    def occluded(self, corner: Tensor, size: int, grey: Tensor) -> dict[str, Tensor]:
        """Outputs of `layer`, (B, C, H, W), and of `last`, (B, classes), with a square at each corner (B, 2).

        Args:
            corner: first row and column of pixels that each square covers; at the border it is cut off.
            grey: (C, 1, 1), the square's colour as the network takes it.
        """
        last_use = {name: i for i, step in enumerate(self.steps) for name in step.inputs}
        values: dict[str, Any] = {}
        outputs: dict[str, Tensor] = {}
        with evaluation_mode(self.net):
            for i, step in enumerate(self.steps):
                if i == 0:
                    values[step.name] = self._square(corner.to(grey.device), size, grey)
                elif not step.inputs:  # a parameter
                    values[step.name] = self.values[step.name]
                else:
                    values[step.name] = self._run(step, [values[name] for name in step.inputs])
                if step.name in (self.layer, self.last):
                    # A copy, since a ReLU may follow in place.
                    outputs[step.name] = self._pasted(step.name, values[step.name]).clone()
                for name in set(step.inputs):
                    if last_use[name] == i:
                        del values[name]
        return outputs

    def _square(self, corner: Tensor, size: int, grey: Tensor) -> Patch:
        """The picture under the square; of squares cut off at the border, also some of what lies beside them."""
        image = self.values[self.steps[0].name]
        origin = corner.minimum(corner.new_tensor(image.shape[2:]) - size)
        pixel = torch.arange(size, device=corner.device)
        rows, columns = (pixel >= (corner - origin)[:, axis, None] for axis in (0, 1))  # those that it covers
        under = rows[:, None, :, None] & columns[:, None, None, :]
        return Patch(torch.where(under, grey, _cut(image, None, origin, (size, size))), origin)

    def _run(self, step: Step, inputs: list[Any]) -> Any:
        """A step's output: a patch where one can be carried on, else whole maps."""
        patch = inputs[0]
        if len(inputs) == 1 and isinstance(patch, Patch):
            if self._is_pointwise(step):
                return Patch(step.run(patch.values), patch.origin)
            if isinstance(step.module, nn.Conv2d | nn.MaxPool2d) and (slid := self._slide(step, patch)):
                return slid
        return step.run(*(self._pasted(name, v) for name, v in zip(step.inputs, inputs, strict=True)))

    def _is_pointwise(self, step: Step) -> bool:
        """Does each place of its output depend on the same place of its input alone, whatever the maps' size?"""
        before, after = self.values[step.inputs[0]], self.values[step.name]
        if not isinstance(after, Tensor) or after.dim() != 4 or isinstance(step.module, Reshape):
            return False
        same_size = before.shape[2:] == after.shape[2:]  # padding behind the last row changes it
        return same_size and filters(step) == (POINTWISE, POINTWISE)

    def _slide(self, step: Step, patch: Patch) -> Patch | None:
        """The part of a convolution's or pool's output that a patch of its input changes; None if most of it."""
        sliding, module = filters(step), step.module
        if sliding is None:  # padded with something else than zeros
            return None
        shape = self.values[step.name].shape[2:]
        origins, sides, starts, seen = [], [], [], []
        for axis, f in enumerate(sliding):
            stride, padding, reach = int(f.stride), int(f.padding), f.dilation * (int(f.kernel) - 1)
            # Output o sees the inputs from stride * o - padding to stride * o - padding + reach.
            start = patch.origin[:, axis]
            end = start + patch.values.shape[2 + axis] - 1
            first = (-((reach - padding - start) // stride)).clamp(0, shape[axis] - 1)  # rounded up
            last = ((end + padding) // stride).clamp(0, shape[axis] - 1)
            side = max(1, int((last - first).max()) + 1)  # the same for all squares
            origins.append(first.clamp(max=shape[axis] - side))
            sides.append(side)
            # The part of the input that these outputs see, padding included.
            starts.append(stride * origins[-1] - padding)
            seen.append(stride * (side - 1) + reach + 1)
        if math.prod(sides) > WORTH_IT * math.prod(shape):
            return None
        outside = 0.0 if isinstance(module, nn.Conv2d) else -math.inf
        x = _cut(self.values[step.inputs[0]], patch, torch.stack(starts, 1), seen, outside)
        if isinstance(module, nn.Conv2d):
            y = F.conv2d(x, module.weight, module.bias, module.stride, 0, module.dilation, module.groups)
        else:
            assert isinstance(module, nn.MaxPool2d)
            y = F.max_pool2d(x, pair(module.kernel_size), pair(module.stride), 0, pair(module.dilation))
        return Patch(y, torch.stack(origins, 1))

    def _pasted(self, name: str, value: Any) -> Any:
        """The whole maps (B, C, H, W) of a step, where its value is a patch of them."""
        if not isinstance(value, Patch):
            return value
        whole = self.values[name]
        return _cut(whole, value, torch.zeros_like(value.origin), whole.shape[2:])


def _cut(
    whole: Tensor, patch: Patch | None, origin: Tensor, size: Sequence[int], outside: float = 0.0
) -> Tensor:
    """Windows of `size` at `origin` (B, 2) of a map (1, C, H, W) with patches laid over it; `outside` beyond it.

    One gather, out of the map's positions followed by those of all patches -> (B, C, *size), channels last.
    """
    _, C, H, W = whole.shape
    B, device = len(origin), whole.device
    sources = [whole.permute(0, 2, 3, 1).reshape(H * W, C), whole.new_full((1, C), outside)]
    rows, columns = (origin[:, axis, None] + torch.arange(size[axis], device=device) for axis in (0, 1))
    rows, columns = rows[:, :, None], columns[:, None, :]
    inside = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
    index = torch.where(inside, rows * W + columns, H * W)  # (B, *size); H * W is where `outside` stands
    if patch is not None:
        h, w = patch.values.shape[2:]
        sources.append(patch.values.permute(0, 2, 3, 1).reshape(B * h * w, C))
        r, c = rows - patch.origin[:, 0, None, None], columns - patch.origin[:, 1, None, None]
        number = torch.arange(B, device=device)[:, None, None]
        in_patch = (r >= 0) & (r < h) & (c >= 0) & (c < w)
        index = torch.where(in_patch, H * W + 1 + (number * h + r) * w + c, index)
    picked = torch.cat(sources).index_select(0, index.flatten())
    return picked.view(B, size[0], size[1], C).permute(0, 3, 1, 2)
