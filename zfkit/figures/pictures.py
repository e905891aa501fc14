"""Tensors to pictures (`PIL.Image`), pictures to sheets, and words and numbers as they stand on them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..images.colour import signed_to_rgb
from ..topk.frame import shown_part
from .style import SOFT

if TYPE_CHECKING:
    from torch import Tensor

    from ..topk.patches import Patches

TILE = 96  # side of one patch in the pictures, in px
CRISP = 64  # px: up to this side, about that of a second layer's fields, pixels are shown as squares
BAR = 4  # px, height of the bar under a patch
Pair = tuple[Image.Image | None, Image.Image]  # a map's projections, None without any, and its patches
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


def shown_at(height: int, width: int, tile: int = TILE) -> tuple[tuple[int, int], Image.Resampling]:
    """Width and height at which a picture is shown in tiles of `tile` px, and the filter: one rule for all figures.

    Pictures of up to `CRISP` px grow by the smallest whole factor that brings their longer side to `tile` px or more,
    with their pixels as squares; if they are larger than `tile`, and all others, they are brought to it smoothly.
    """
    longest = max(height, width)
    if longest <= min(CRISP, tile):
        factor = -(-tile // longest)
        return (width * factor, height * factor), Image.Resampling.NEAREST
    size = max(1, round(width * tile / longest)), max(1, round(height * tile / longest))
    return size, Image.Resampling.LANCZOS


def montage(
    pictures: Tensor, columns: int = 3, tile: int = TILE, *, gap: int = GAP, bars: Tensor | None = None
) -> Image.Image:
    """uint8 pictures (k, 3, H, W), left to right and top to bottom, on white, enlarged as `shown_at` says: a picture.

    bars: (k,) from 0 to 1, the length of a bar under each picture: how strong its activation is, which a picture on a
    scale of its own does not show.
    """
    size, how = shown_at(pictures.shape[-2], pictures.shape[-1], tile)
    tiles = [to_picture(p).resize(size, how) for p in pictures]
    if bars is not None:
        tiles = [_with_bar(t, share) for t, share in zip(tiles, bars.nan_to_num(0).tolist(), strict=True)]
        size = (size[0], size[1] + BAR)
    return tile_sheet(tiles, columns, size, gap)


def _with_bar(tile: Image.Image, share: float) -> Image.Image:
    whole = Image.new("RGB", (tile.width, tile.height + BAR), "white")
    whole.paste(tile)
    whole.paste(SOFT, (0, tile.height + 1, round(tile.width * min(max(share, 0.0), 1.0)), tile.height + BAR))
    return whole


def animated(frames: Sequence[Image.Image], milliseconds: int = 100, colours: int = 256) -> bytes:
    """Pictures of one size as an animated PNG that repeats for ever; what cannot animate it shows the first.

    All frames share at most 256 `colours`, so that a moving picture stays as small as a notebook needs it.
    """
    size = frames[0].size
    together = tile_sheet([frame.convert("RGB") for frame in frames], 1, size, gap=0)
    shared = together.quantize(colours, dither=Image.Dither.NONE)
    few = [shared.crop((0, i * size[1], size[0], (i + 1) * size[1])) for i in range(len(frames))]
    buffer = io.BytesIO()
    few[0].save(buffer, "PNG", save_all=True, append_images=few[1:], duration=milliseconds, loop=0)
    return buffer.getvalue()


def square_columns(count: int) -> int:
    """Columns of a grid of so many pictures that is as square as can be: 3 for 9, 4 for 10."""
    return math.ceil(math.sqrt(count))


def pair_of_montages(patches: Patches, i: int, tile: int = TILE) -> Pair:
    """Projections (None where there are none) and photo patches of the i-th feature map, each a grid of k.

    The bar under a tile is its activation over the map's strongest.
    """
    columns, value = square_columns(patches.value.shape[1]), patches.value[i]
    bars = value / value.max().clamp(min=torch.finfo(value.dtype).tiny)
    projection = patches.projection[i]
    projections = montage(signed_to_rgb(projection), columns, tile, bars=bars) if len(projection) else None
    return projections, montage(patches.photo[i], columns, tile, bars=bars)


def patches_figure(patches: Patches, columns: int = 4, tile: int = TILE) -> Image.Image:
    """What `project_top` gave, map by map: its projections beside its patches, or patches alone: a picture.

    Where projections fill a small part of their windows, both are cut to that, as by `zfkit.atlas.draw_layer`, and
    words on top say to what, how much larger they are so, and how alike the projections of a map.
    """
    patches, words = shown_part(patches)
    pairs = [pair_of_montages(patches, i, tile) for i in range(len(patches.channels))]
    maps = [tile_sheet([grid for grid in pair if grid], 2, pair[1].size) for pair in pairs]
    sheet = tile_sheet(maps, min(columns, len(maps)), maps[0].size, gap=8 * GAP)
    if not words:
        return sheet
    font, width = ImageFont.load_default(15), max(sheet.width, 4 * TILE)
    text = "\n".join(wrap_words(words, font, width))
    head = math.ceil(ImageDraw.Draw(sheet).textbbox((0, 0), text, font)[3]) + 4 * GAP
    whole = Image.new("RGB", (width, head + sheet.height), "white")
    whole.paste(sheet, (0, head))
    ImageDraw.Draw(whole).text((0, 0), text, "#555555", font)
    return whole


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
