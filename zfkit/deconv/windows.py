"""An optimisation: only the part of each map that a unit depends on is carried back.

A unit of a layer depends on an interval of rows and of columns of every map before it (`receptive_field.extents`).
`Windows` cuts these windows out of the maps, for many units at once, and puts what a rule returns into the window of
the map before. The result is, number for number, what whole maps give (`project.WholeMaps`); it takes a fraction of the
time and memory where the receptive field is smaller than the picture. Of pictures with one unit each, `Trim` has the
forward pass, too, compute no more than these windows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nets import graph
from ..nets.graph import Step
from ..nets.paper import BlurPool
from .receptive_field import POINTWISE, Extent, extent_before, filters, slides

Shapes = dict[str, tuple[int, ...]]  # of every step's output, without the first axis


@dataclass(frozen=True)
class Window:
    """The part of a map that is carried back for each unit."""

    origin: Tensor  # (B, 2) int64: row and column of its first position, possibly outside the map
    size: tuple[int, int]

    def cut(self, maps: Tensor, image: Tensor) -> Tensor:
        """Each unit's window of maps (N, C, H, W), of the image (B,) it belongs to -> (B, C, h, w).

        Outside a map the nearest values stand; what comes back is 0 there.
        """
        N, C, H, W = maps.shape
        h, w = self.size
        rows = (self.origin[:, :1] + torch.arange(h, device=maps.device)).clamp(0, H - 1)
        columns = (self.origin[:, 1:] + torch.arange(w, device=maps.device)).clamp(0, W - 1)
        places = (image[:, None, None] * H + rows[:, :, None]) * W + columns[:, None, :]
        flat = maps.permute(0, 2, 3, 1).reshape(N * H * W, C)  # a view, for channels-last maps
        return flat.index_select(0, places.flatten()).view(len(image), h, w, C).permute(0, 3, 1, 2)


def paste(R: Tensor, origin: Tensor, size: Sequence[int]) -> Tensor:
    """Windows (B, C, h, w) put at `origin` (B, 2) of maps of `size`, 0 elsewhere -> (B, C, H, W)."""
    H, W = size
    maps = Window(-origin, (H, W)).cut(R, torch.arange(len(R), device=R.device))
    rows = torch.arange(H, device=R.device) - origin[:, :1]
    columns = torch.arange(W, device=R.device) - origin[:, 1:]
    inside_rows = ((rows >= 0) & (rows < R.shape[2]))[:, :, None]
    inside_columns = ((columns >= 0) & (columns < R.shape[3]))[:, None]
    return maps * (inside_rows & inside_columns)[:, None]


def uncrop(R: Tensor, step: Step, size: Sequence[int]) -> Tensor:
    """What a sliding operation's rule returned for whole maps, brought to the size of its input.

    The transpose of a filter reaches into the padding, where there is no input: that is cut off. Rows and columns
    behind the last position of the filter were never read: they get 0.
    """
    sliding = filters(step)
    if sliding is None or not slides(step) or R.dim() != 4:
        return R
    (top, left), (height, width) = (f.padding for f in sliding), size
    if not (top or left) and R.shape[2:] == (height, width):
        return R
    R = R[:, :, top : top + height, left : left + width]
    return F.pad(R, (0, width - R.shape[3], 0, height - R.shape[2]))


class Windows:
    """Where each unit's window of every map lies: cut out around the unit, or the whole map.

    A window is the whole map where one unit depends on all of it, or would cover it anyway.

    Args:
        extents: of the units' layer, by step (`receptive_field.extents`).
        steps: on the way to the layer.
        position: (B, 2) row and column of each unit, on the CPU.
    """

    def __init__(
        self,
        extents: dict[str, Extent | None],
        shapes: Shapes,
        steps: list[Step],
        position: Tensor,
        device: torch.device,
    ) -> None:
        self.extents, self.shapes, self.position, self.device = extents, shapes, position, device
        self.steps = [step for step in steps if step.maps and step.name in extents]
        self.whole = {n for n in extents if n in shapes and self._covers(n)}
        for step in reversed(steps):
            if step.name not in extents or step.name not in shapes or not step.inputs:
                continue
            if step.name in self.whole or not slides(step) or self._repeats(step):
                # The rule is given whole maps, and returns whole maps.
                self.whole.update(n for n in (step.name, *step.maps) if n in extents and n in shapes)
        self.first, self.last = position.min(0).values.tolist(), position.max(0).values.tolist()

    def _covers(self, name: str) -> bool:
        extent, shape = self.extents[name], self.shapes[name]
        if extent is None or len(shape) != 3:
            return True
        return all(i.stride != int(i.stride) or i.size >= n for i, n in zip(extent, shape[1:], strict=True))

    def _repeats(self, step: Step) -> bool:
        """Does it read a smaller map again and again, as a product with a gate does?"""
        return filters(step) == (POINTWISE, POINTWISE) and any(
            self.shapes[name][1:] != self.shapes[step.name][1:] for name in step.maps if name in self.shapes
        )

    def _intervals(self, name: str) -> Extent:
        extent = self.extents[name]
        assert extent is not None, name
        return extent

    def size(self, name: str) -> tuple[int, int]:
        """Rows and columns of the window of this step's output."""
        if name in self.whole:
            return self.shapes[name][1], self.shapes[name][2]
        rows, columns = self._intervals(name)
        return rows.size, columns.size

    def window(self, name: str) -> Window | None:
        """Of this step's output; None where it is the whole map, or has no rows and columns."""
        if name in self.whole or len(self.shapes[name]) != 3:
            return None
        return self._place(self._intervals(name))

    def _place(self, extent: Extent) -> Window:
        stride, low, size = zip(*((i.stride, i.low, i.size) for i in extent), strict=True)
        origin = self.position * torch.tensor(stride) + torch.tensor(low)
        return Window(origin.to(self.device), size)

    def seed(self, layer: str, channel: Tensor, value: Tensor) -> Tensor:
        """(B, C, 1, 1) or the whole map (B, C, H, W): 0 but for the unit, which gets its value (B,)."""
        B, shape = len(channel), self.shapes[layer]
        one = value.new_zeros(B, shape[0], 1, 1)
        one[torch.arange(B, device=one.device), channel, 0, 0] = value
        return paste(one, self.position.to(one.device), shape[1:]) if layer in self.whole else one

    def fit(self, R: Tensor, step: Step, name: str) -> Tensor:
        """What a rule returned, moved into the window of the step's input `name`; 0 outside the map."""
        shape, sliding = self.shapes[name], filters(step)
        if len(shape) != 3 or sliding is None or not slides(step):
            return R
        if step.name in self.whole:
            return uncrop(R, step, shape[1:])
        after = self._intervals(step.name)
        low = [f.stride * i.low - f.padding for f, i in zip(sliding, after, strict=True)]
        if name in self.whole:
            stride = [f.stride * i.stride for f, i in zip(sliding, after, strict=True)]
            origin = self.position * torch.tensor(stride) + torch.tensor(low)
            return paste(R, origin.to(R.device), shape[1:])
        planned = self._intervals(name)
        before = [a - i.low for a, i in zip(low, planned, strict=True)]
        behind = [i.size - b - n for i, b, n in zip(planned, before, R.shape[2:], strict=True)]
        if any(before) or any(behind):
            R = F.pad(R, (before[1], behind[1], before[0], behind[0]))
        if isinstance(step.module, nn.Conv2d | nn.AvgPool2d | BlurPool) or step.target in graph.ELEMENTWISE:
            return self._erase_outside(R, planned, name)
        return R  # other rules leave zeros where they found zeros

    def _erase_outside(self, R: Tensor, planned: Extent, name: str, value: float = 0.0) -> Tensor:
        """What padding sent beyond the map's border is lost."""
        outside = None
        for axis, (i, length) in enumerate(zip(planned, self.shapes[name][1:], strict=True)):
            first, last = i.stride * self.first[axis] + i.low, i.stride * self.last[axis] + i.high
            if first < 0 or last >= length:  # for some unit; most never come near a border
                place = self.position[:, axis, None] * i.stride + torch.arange(i.low, i.high + 1)
                there = ((place < 0) | (place >= length)).to(R.device)
                there = there[:, None, :, None] if axis == 0 else there[:, None, None, :]
                outside = there if outside is None else outside | there
        if outside is None:
            return R
        return R.masked_fill(outside, value) if value else R.masked_fill_(outside, 0.0)


class Trim(Windows):
    """A forward pass over pictures with one unit each, which computes the units' windows alone.

    Filters run without padding: what lies outside a map is 0 in its window, or below all else before a maximum.
    """

    @property
    def possible(self) -> bool:
        """Not where a mean counts the border in a way of its own, nor where a map is overwritten that others read."""
        return not any(self._odd(step, step.module) for step in self.steps)

    def _odd(self, step: Step, module: Any) -> bool:
        if isinstance(module, nn.AvgPool2d):
            return module.ceil_mode or not module.count_include_pad or module.divisor_override is not None
        before, here, called = step.maps[0], step.name, step.operation
        if self.extents[before] == self.extents[here] and (before in self.whole) == (here in self.whole):
            return False
        inplace = getattr(module, "inplace", False) or isinstance(module, nn.ReLU)
        return inplace or called.startswith("i") or called.endswith("_")

    def clear(self, name: str, y: Tensor) -> Tensor:
        """A step's output, without what lies outside the map."""
        unmoved = name not in self.extents or self.window(name) is None
        return y if unmoved else self._erase_outside(y, self._intervals(name), name)

    def alone(self, step: Step, inputs: tuple[Any, ...]) -> tuple[Step, tuple[Any, ...]]:
        """The step without padding, and of its inputs what its own window needs."""
        if step.name not in self.extents or not step.maps or self.window(step.name) is None:
            return step, inputs
        needed = extent_before(step, self._intervals(step.name))
        assert needed is not None, step.name
        given = dict(zip(step.inputs, inputs, strict=True))
        constants = [x for name, x in given.items() if name not in step.maps and isinstance(x, Tensor)]
        if any(max(x.shape[-2:], default=1) > 1 for x in constants):  # as large as a map: nobody cuts it
            raise RuntimeError(f"{step.operation} at {step.name} reads a constant with places of its own")
        below = -math.inf if isinstance(step.module, nn.MaxPool2d) else 0.0
        for name in set(step.maps):
            x = given[name]
            if name in self.whole:
                x = self._place(needed).cut(x, torch.arange(len(x), device=x.device))
            else:
                start = [n.low - i.low for n, i in zip(needed, self._intervals(name), strict=True)]
                rows, columns = (slice(a, a + n.size) for a, n in zip(start, needed, strict=True))
                x = x[:, :, rows, columns]
            given[name] = self._erase_outside(x, needed, name, below)
        if filters(step) != (POINTWISE, POINTWISE):
            module: Any = copy.copy(step.module)
            module.padding = (0, 0) if isinstance(module, nn.Conv2d) else 0
            if hasattr(module, "ceil_mode"):
                module.ceil_mode = False
            step = replace(step, module=module, run=module)
        return step, tuple(given[name] for name in step.inputs)
