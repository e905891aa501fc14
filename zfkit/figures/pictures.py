"""Tensors to pictures (`PIL.Image`), pictures to sheets, and words and numbers as they stand on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFont

from ..images.colour import signed_to_rgb

if TYPE_CHECKING:
    from torch import Tensor

    from ..topk.patches import Patches

TILE = 84  # side of one patch in the pictures, in px
Pair = tuple[
    Image.Image | None, Image.Image
]  # projections, None where there are none, and photo patches of a map
GAP = 2  # between the patches of one feature map, in px


def to_picture(pixels: Tensor) -> Image.Image:
    """uint8 (3, H, W) as a `PIL.Image`."""
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()))


def tile_sheet(
    tiles: Sequence[Image.Image | None],
    columns: int,
    size: tuple[int, int],
    gap: int = GAP,
    background: str | tuple[int, int, int] = "white",
) -> Image.Image:
    """Pictures of one size (width, height), left to right and top to bottom; None leaves its place empty."""
    wide, high = size[0] + gap, size[1] + gap
    rows = max(-(-len(tiles) // columns), 1)
    sheet = Image.new("RGB", (columns * wide - gap, rows * high - gap), background)
    for i, tile in enumerate(tiles):
        if tile is not None:
            sheet.paste(tile, (i % columns * wide, i // columns * high))
    return sheet


def montage(pictures: Tensor, columns: int = 3, tile: int = TILE, *, gap: int = GAP) -> Image.Image:
    """uint8 pictures (k, 3, H, W), left to right and top to bottom, as one `PIL.Image` on white.

    Small ones are enlarged to at most `tile` px by whole factors, so that their pixels can be seen; larger
    ones are brought to `tile` px.
    """
    height, width = pictures.shape[-2:]
    longest = max(height, width)
    enlarge = tile // longest >= 2
    side = tile // longest * longest if enlarge else tile
    size = (max(1, round(width * side / longest)), max(1, round(height * side / longest)))
    how = Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS
    return tile_sheet([to_picture(p).resize(size, how) for p in pictures], columns, size, gap)


def square_columns(count: int) -> int:
    """Columns of a grid of so many pictures that is as square as can be: 3 for 9, 4 for 10."""
    return math.ceil(math.sqrt(count))


def pair_of_montages(patches: Patches, i: int, tile: int = TILE) -> Pair:
    """Projections (None where there are none) and photo patches of the i-th feature map, each a grid of k."""
    columns = square_columns(patches.value.shape[1])
    projection = patches.projection[i]
    projections = montage(signed_to_rgb(projection), columns, tile) if len(projection) else None
    return projections, montage(patches.photo[i], columns, tile)


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
