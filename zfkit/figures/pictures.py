"""Arrays to pictures: signed projections to colours, tiles to sheets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageFont
from torch import Tensor

from ..topk.patches import Patches

if TYPE_CHECKING:
    from torch import Tensor


def _hwc(picture: Tensor) -> Any:
    """uint8 (3, H, W) as matplotlib takes it, (H, W, 3)."""
    return picture.permute(1, 2, 0).cpu().numpy()


def _tiles(pictures: Tensor) -> Any:
    """Up to four pictures (n, 3, H, W) in a square, row by row, white where there is none; (h, w, 3)."""
    n, _, H, W = pictures.shape
    if n == 1:
        return _hwc(pictures[0])
    gap = max(1, H // 32)
    sheet = pictures.new_full((3, 2 * H + gap, 2 * W + gap), 255)
    for i, picture in enumerate(pictures[:4]):
        top, left = (i // 2) * (H + gap), (i % 2) * (W + gap)
        sheet[:, top : top + H, left : left + W] = picture
    return _hwc(sheet)


TILE = 84  # side of one patch in the pictures, in px


GAP = 2  # between the patches of one feature map, in px


PERCENTILE = 99.5  # of a projection's |values|, shown at full contrast


def signed_to_rgb(projections: Tensor, scale: float | Tensor | None = None) -> Tensor:
    """Signed projections (..., C, H, W) as uint8 RGB (..., 3, H, W) around mid-grey.

    0 is grey 128, +scale and beyond 255, -scale and beyond 1: one symmetric scale for all of a picture's
    channels and pixels. By default each picture has its own, the 99.5th percentile of its |values|; pass one
    number to compare pictures with each other.
    """
    if scale is None:
        magnitude = projections.abs().flatten(-3)
        scale = torch.quantile(magnitude, PERCENTILE / 100, dim=-1)
        # A patch that is nearly empty has its few values above the percentile.
        scale = torch.where(scale > 0, scale, magnitude.amax(-1))[..., None, None, None]
    scale = torch.as_tensor(scale, dtype=projections.dtype, device=projections.device)
    shown = 128 + 127 * (projections / scale.clamp(min=torch.finfo(projections.dtype).tiny)).clamp(-1, 1)
    rgb = shown.round().to(torch.uint8)
    return rgb if rgb.shape[-3] == 3 else rgb.expand(*rgb.shape[:-3], 3, *rgb.shape[-2:])


def montage(pictures: Tensor, columns: int = 3, tile: int = TILE, background: str = "white") -> Image.Image:
    """uint8 pictures (k, 3, H, W), left to right and top to bottom, as one `PIL.Image`.

    Small ones are enlarged to at most `tile` px by whole factors, so that their pixels can be seen; larger
    ones are brought to `tile` px.
    """
    k, _, height, width = pictures.shape
    factor = tile // max(height, width)
    size = (width * factor, height * factor) if factor >= 2 else _fit((width, height), tile)
    rows = -(-k // columns)
    whole = Image.new("RGB", (columns * (size[0] + GAP) - GAP, rows * (size[1] + GAP) - GAP), background)
    for i, picture in enumerate(pictures):
        one = Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy()))
        one = one.resize(size, Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS)
        whole.paste(one, (i % columns * (size[0] + GAP), i // columns * (size[1] + GAP)))
    return whole


def _fit(size: tuple[int, int], longest: int) -> tuple[int, int]:
    return max(1, round(size[0] * longest / max(size))), max(1, round(size[1] * longest / max(size)))


def pair_of_montages(patches: Patches, i: int, tile: int = TILE) -> tuple[Image.Image, Image.Image]:
    """Projections and photo patches of the i-th feature map, each a grid of k."""
    columns = int(np.ceil(np.sqrt(patches.value.shape[1])))
    projections = signed_to_rgb(patches.projection[i])
    return montage(projections, columns, tile), montage(patches.photo[i], columns, tile)


def number(value: float | Tensor) -> str:
    """Three significant digits without an exponent: 0.123, 12.3, 1234."""
    value = float(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def wrap_words(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text in lines of at most `width` px; a longer word stands alone."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
