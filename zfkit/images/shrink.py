"""Pictures and projections brought to the size of a tile: smaller, never larger, and without aliasing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fitted(height: int, width: int, most: int) -> tuple[int, int]:
    """Height and width with a longer side of at most `most` px; what is smaller stays."""
    factor = min(1.0, most / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def shrink(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W), uint8 or floating-point, brought to `size`, (h, w); as they are where they have it."""
    if tuple(pictures.shape[-2:]) == size:
        return pictures
    if pictures.is_floating_point() or pictures.device.type == "cpu":
        return F.interpolate(pictures, size, mode="bicubic", antialias=True)
    # On a GPU torch has this for fractions alone.
    return shrink(pictures.float(), size).round().clamp(0, 255).to(torch.uint8)
