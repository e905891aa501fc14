"""The part of each map that a unit depends on: cut out, carried back, put back in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nets import graph
from ..nets.graph import Step
from ..nets.paper import BlurPool
from .receptive_field import Extent, filters


@dataclass(frozen=True)
class Window:
    """The part of a map that is carried back for each unit; fully connected layers have none."""

    origin: Tensor  # (B, 2) int64: row and column of its first position, possibly outside the map
    size: tuple[int, int]


class _Plan:
    """Where each unit's window of every map lies: cut out around the unit, or the whole map.

    A window is the whole map where one unit depends on all of it, or would cover it anyway.
    """

    def __init__(
        self,
        extent: dict[str, Extent | None],
        shapes: dict[str, tuple[int, ...]],
        steps: list[Step],
        position: Tensor | None,
        device: torch.device,
    ) -> None:
        self.extent, self.shapes, self.position, self.device = extent, shapes, position, device
        self.whole = {n for n in extent if n in shapes and self._covers(n)}
        for step in reversed(steps):
            if step.name not in extent or step.name not in shapes or not step.inputs:
                continue
            if step.name in self.whole or filters(step) is None:  # such rules are given whole maps
                self.whole.update(n for n in (step.name, *step.inputs) if n in extent and n in shapes)
        if position is not None:
            self.first, self.last = position.min(0).values.tolist(), position.max(0).values.tolist()

    def _covers(self, name: str) -> bool:
        extent, shape = self.extent[name], self.shapes[name]
        if extent is None or len(shape) != 3:
            return True
        return all(i.size >= n for i, n in zip(extent, shape[1:], strict=True))

    def _intervals(self, name: str) -> Extent:
        extent = self.extent[name]
        assert extent is not None
        return extent

    def size(self, name: str) -> tuple[int, int]:
        if name in self.whole:
            return self.shapes[name][1], self.shapes[name][2]
        rows, columns = self._intervals(name)
        return rows.size, columns.size

    def window(self, name: str) -> Window | None:
        if len(self.shapes[name]) != 3:
            return None
        if name in self.whole or self.position is None:
            count = 1 if self.position is None else len(self.position)
            return Window(torch.zeros(count, 2, dtype=torch.long, device=self.device), self.size(name))
        stride, low = zip(*((i.stride, i.low) for i in self._intervals(name)), strict=True)
        origin = self.position * torch.tensor(stride) + torch.tensor(low)
        return Window(origin.to(self.device), self.size(name))

    def seed(self, layer: str, channel: Tensor, value: Tensor, channels: int) -> Tensor:
        """(B, C, 1, 1), the whole map, or (B, F): zero but for the unit."""
        B = len(channel)
        one = value.new_zeros(B, channels)
        one[torch.arange(B, device=one.device), channel] = value
        if self.position is None:
            return one
        one = one[:, :, None, None]
        if layer not in self.whole:
            return one
        return paste(one, self.position.to(one.device), self.shapes[layer][1:])

    def fit(self, R: Tensor, step: Step, name: str) -> Tensor:
        """What a rule returned, moved into the planned window of the step's input `name`; 0 outside the map."""
        shape = self.shapes[name]
        sliding = filters(step)
        if len(shape) != 3 or sliding is None:
            return R
        height, width = shape[1:]
        if step.name in self.whole:  # R begins `padding` before the map
            (top, left) = (f.padding for f in sliding)
            R = R[:, :, top : top + height, left : left + width]
            return F.pad(R, (0, width - R.shape[3], 0, height - R.shape[2]))
        after = self._intervals(step.name)
        low = [f.stride * i.low - f.padding for f, i in zip(sliding, after, strict=True)]
        if name in self.whole:
            assert self.position is not None
            stride = [f.stride * i.stride for f, i in zip(sliding, after, strict=True)]
            origin = self.position * torch.tensor(stride) + torch.tensor(low)
            return paste(R, origin.to(R.device), (height, width))
        planned = self._intervals(name)
        before = [a - i.low for a, i in zip(low, planned, strict=True)]
        behind = [i.size - b - n for i, b, n in zip(planned, before, R.shape[2:], strict=True)]
        if any(before) or any(behind):
            R = F.pad(R, (before[1], behind[1], before[0], behind[0]))
        if isinstance(step.module, nn.Conv2d | nn.AvgPool2d | BlurPool) or step.target in graph.ELEMENTWISE:
            return self._erase_outside(R, planned, (height, width))
        return R  # other rules leave zeros where they found zeros

    def _erase_outside(self, R: Tensor, planned: Extent, size: tuple[int, int]) -> Tensor:
        """What padding sent beyond the map's border is lost."""
        assert self.position is not None
        inside = None
        for axis, (i, length) in enumerate(zip(planned, size, strict=True)):
            first, last = i.stride * self.first[axis] + i.low, i.stride * self.last[axis] + i.high
            if first < 0 or last >= length:
                place = self.position[:, axis, None] * i.stride + torch.arange(i.low, i.high + 1)
                here = ((place >= 0) & (place < length)).to(R.device)
                here = here[:, None, :, None] if axis == 0 else here[:, None, None, :]
                inside = here if inside is None else inside & here
        return R if inside is None else R.mul_(inside)


def _gather(maps: Tensor, image: Tensor, window: Window) -> Tensor:
    """Windows (B, C, h, w) of maps (N, C, H, W); outside a map, its nearest values."""
    N, C, H, W = maps.shape
    h, w = window.size
    rows = (window.origin[:, :1] + torch.arange(h, device=maps.device)).clamp(0, H - 1)
    columns = (window.origin[:, 1:] + torch.arange(w, device=maps.device)).clamp(0, W - 1)
    places = (image[:, None, None] * H + rows[:, :, None]) * W + columns[:, None, :]
    flat = maps.permute(0, 2, 3, 1).reshape(N * H * W, C)  # a view, for channels-last maps
    return flat.index_select(0, places.flatten()).view(len(image), h, w, C).permute(0, 3, 1, 2)


def paste(R: Tensor, origin: Tensor, size: Sequence[int]) -> Tensor:
    """Windows (B, C, h, w) put at `origin` (B, 2) of maps of `size`, 0 elsewhere -> (B, C, H, W)."""
    H, W = size
    maps = _gather(R, torch.arange(len(R), device=R.device), Window(-origin, (H, W)))
    rows = torch.arange(H, device=R.device) - origin[:, :1]
    columns = torch.arange(W, device=R.device) - origin[:, 1:]
    inside = ((rows >= 0) & (rows < R.shape[2]))[:, :, None] & ((columns >= 0) & (columns < R.shape[3]))[
        :, None
    ]
    return maps * inside[:, None]
