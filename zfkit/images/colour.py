"""Brightness of RGB, and signed arrays, as projections and filters are, as uint8 RGB around mid-grey."""

from __future__ import annotations

import torch
from torch import Tensor

PERCENTILE = 99.5  # of an array's |values|, shown at full contrast


def luma(rgb: Tensor) -> Tensor:
    """Brightness after ITU-R 601: floating-point (..., 3, H, W) -> (..., 1, H, W), in the same range."""
    return (rgb * rgb.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(-3, keepdim=True)


def full_scale(values: Tensor, axes: int = 3) -> Tensor:
    """The 99.5th percentile of |values| over the last `axes` axes, which are kept with length 1.

    An array that is nearly empty has its few values above the percentile: there it is the largest |value|.
    """
    magnitude = values.abs().flatten(-axes)
    n = magnitude.shape[-1]
    # As `torch.quantile` interpolates. The few largest are found sooner than all are sorted, and it takes no more
    # than 16 million numbers.
    rank = float(torch.tensor(PERCENTILE / 100, dtype=values.dtype)) * (n - 1)
    largest = magnitude.topk(n - int(rank)).values
    above = largest[..., -2] if n > int(rank) + 1 else largest[..., -1]
    scale = torch.lerp(largest[..., -1], above, rank - int(rank))
    return torch.where(scale > 0, scale, largest[..., 0])[(..., *[None] * axes)]


def signed_to_rgb(values: Tensor, scale: float | Tensor | None = None) -> Tensor:
    """Signed (..., C, H, W) with 1 or 3 channels as uint8 RGB (..., 3, H, W) around mid-grey.

    0 is grey 128, +scale and beyond 255, -scale and beyond 1: one symmetric scale for all of a picture's channels
    and pixels. By default each picture has its own, `full_scale`; pass one number to compare pictures with each other.
    """
    if scale is None:
        scale = full_scale(values)
    scale = torch.as_tensor(scale, dtype=values.dtype, device=values.device)
    share = (values / scale.clamp(min=torch.finfo(values.dtype).tiny)).clamp(-1, 1)
    rgb = (128 + 127 * share).round().to(torch.uint8)
    return rgb if rgb.shape[-3] == 3 else rgb.expand(*rgb.shape[:-3], 3, *rgb.shape[-2:])
