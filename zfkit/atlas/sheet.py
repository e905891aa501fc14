"""One layer of Fig. 2 as a picture: projections beside patches, map by map; or patches alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..checks import one_of
from ..figures.natural import Colours, NaturalColours
from ..figures.pictures import TILE, Pair, number, pair_of_montages, wrap_words
from ..topk.frame import shown_part
from ..topk.patches import Patches
from ..topk.table import TopK

MARGIN, BETWEEN, HEAD, GUTTER = 28, 26, 24, 6  # px: of the sheet, between maps, above a map, in its pair
NARROWEST = 900  # px, so that the words have room
PAIRED = "of each, projections on the left, and on the right the patches of pictures that they come from"


def draw_layer(
    patches: Patches,
    top: TopK,
    caption: tuple[str, str] | None = None,
    columns: int = 4,
    tile: int = TILE,
    colours: Colours = "signed",
) -> Image.Image:
    """One layer's feature maps as a sheet: 3x3 projections beside 3x3 patches, map number and maximum above.

    Patches of `zfkit.topk.cut_top` stand alone. Where projections fill a small part of their windows, both are cut to
    that, and the line says to what, how much larger they are so, and how alike the projections of a map.

    Args:
        caption: title and the line below it; default: network, layer, how many of how many, and what stands where.
        tile: side of one patch in px.
        colours: "natural" brings projections to the colours and the spectrum of photographs, for looking:
            `zfkit.figures.NaturalColours` has the formula.
    """
    patches, words = shown_part(patches)
    if one_of(colours, "colours", get_args(Colours)) == "natural" and patches.projection.shape[1]:
        patches = NaturalColours.of(patches)(patches)
    channels = patches.channels.tolist()
    pairs = [pair_of_montages(patches, i, tile) for i in range(len(channels))]
    of = top[patches.layer].max
    line = f"{len(channels)} of {len(of)} feature maps; "
    line += PAIRED if patches.projection.shape[1] else "the pictures that excite each most"
    title, line = caption or (f"{top.model} {patches.layer}", line)
    return draw_maps(pairs, channels, of, (title, f"{line} · {words}" if words else line), columns)


def draw_maps(
    pairs: Sequence[Pair],
    channels: Sequence[int],
    strongest: Tensor,
    caption: tuple[str, str],
    columns: int = 4,
) -> Image.Image:
    """The sheet of `draw_layer`, from the two grids of each map and the maxima (C,) of all maps of the layer."""
    width, height = pairs[0][1].size if pairs else (TILE, TILE)
    pair = 2 * width + GUTTER if pairs and pairs[0][0] is not None else width
    columns = max(1, min(columns, len(pairs)))
    rows = -(-len(pairs) // columns)
    title, line = caption
    sheet_width = max(2 * MARGIN + columns * (pair + BETWEEN) - BETWEEN, NARROWEST)
    small, middle, large = (ImageFont.load_default(size) for size in (15, 17, 30))
    lines = wrap_words(line, middle, sheet_width - 2 * MARGIN)
    first_row = MARGIN + 40 + 24 * len(lines) + 14
    row_height = HEAD + height + BETWEEN
    sheet = Image.new("RGB", (sheet_width, first_row + rows * row_height - BETWEEN + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 8), title, "#111111", large)
    for i, text in enumerate(lines):
        draw.text((MARGIN, MARGIN + 36 + 24 * i), text, "#555555", middle)
    for i, (channel, (projections, photos)) in enumerate(zip(channels, pairs, strict=True)):
        x, y = MARGIN + i % columns * (pair + BETWEEN), first_row + i // columns * row_height
        draw.text((x, y), f"map {channel}", "#111111", middle)
        draw.text((x + pair, y + 1), f"max {number(strongest[channel])}", "#777777", small, anchor="ra")
        if projections is not None:
            sheet.paste(projections, (x, y + HEAD))
        sheet.paste(photos, (x + pair - width, y + HEAD))
    return sheet
