"""Tensors into the explorer's pictures (`PIL.Image`) and small plots (SVG). Nothing here knows of widgets.

Plots are SVG in the page's own colours (``currentColor`` and the style sheet's variables), so that they are
sharp at any zoom and readable on light and dark pages.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..deconv.receptive_field import Box, Field
from ..figures.pictures import number, tile_sheet, to_picture, wrap_words
from ..images.colour import full_scale, signed_to_rgb
from ..nets.model import VisionModel

TILE, GAP = 92, 2  # of the 3x3 grids, in px
GRID = 3 * TILE + 2 * GAP
LARGE = 184  # side of a whole photograph, in px
BETWEEN = (126, 130, 138)  # colour between tiles: calm on light pages and on dark ones
MARK = "#ffc233"


def scales(projections: Tensor, gain: float = 1.0) -> Tensor:
    """The value (N,) shown at full colour for each of N projections (N, C, H, W): 99.5th percentile / gain."""
    return full_scale(projections.float().cpu()).flatten() / gain


def coloured(projections: Tensor, gain: float = 1.0, scale: Tensor | None = None) -> Tensor:
    """Signed projections (N, C, H, W) as uint8 (N, 3, H, W), each on its own symmetric scale around grey.

    `scale`, (N,), is `scales` of them, where that is at hand.
    """
    scale = scales(projections, gain) if scale is None else scale
    return signed_to_rgb(projections.float().cpu(), scale[:, None, None, None])


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """Brought to side x side px: pixels stay visible squares where it is enlarged twice or more."""
    if picture.size == (side, side):
        return picture
    large = max(picture.size) * 2 <= side
    return picture.resize((side, side), Image.Resampling.NEAREST if large else Image.Resampling.BICUBIC)


def grid(
    pictures: Tensor, there: Sequence[bool] | None = None, columns: int = 3, tile: int = TILE
) -> Image.Image:
    """uint8 pictures (k, 3, H, W) row by row in tiles, `GAP` px between; those not `there` are left empty."""
    tiles = [
        fitted(to_picture(p), tile) if there is None or there[i] else None for i, p in enumerate(pictures)
    ]
    return tile_sheet(tiles, columns, (tile, tile), GAP, BETWEEN)


def with_box(picture: Image.Image, box: Box, side: int, side_on_page: int = LARGE) -> Image.Image:
    """A photograph of `side` px, brought to `side_on_page`, with a box of the photograph's pixels on it."""
    shown = fitted(picture, side_on_page).copy()
    draw = ImageDraw.Draw(shown)
    factor = side_on_page / side
    left, top, right, bottom = (round(v * factor) for v in box)
    edge = (max(left, 0), max(top, 0), min(right, side_on_page) - 1, min(bottom, side_on_page) - 1)
    if edge[0] < edge[2] and edge[1] < edge[3]:
        draw.rectangle((edge[0] - 1, edge[1] - 1, edge[2] + 1, edge[3] + 1), outline="black")
        draw.rectangle(edge, outline=MARK, width=2)
    return shown


def heat(
    picture: Image.Image, values: Tensor, area: Sequence[float], side_on_page: int = LARGE
) -> Image.Image:
    """A feature map (h, w) over the greyed photograph: nothing at 0 and below, bright yellow at its maximum.

    `area` is where the map lies: left, top, right, bottom as fractions of the photograph. Each unit is drawn
    at the middle of what it sees.
    """
    grey = np.asarray(fitted(picture, side_on_page).convert("L"), np.float32)[..., None] * 0.55 + 20
    share = (values.float().clamp(min=0) / values.max().clamp(min=torch.finfo(torch.float32).tiny)).numpy()
    left, top, right, bottom = (v * side_on_page for v in area)
    place = np.arange(side_on_page) + 0.5
    rows = np.floor((place - top) / (bottom - top) * values.shape[0]).astype(int)
    cols = np.floor((place - left) / (right - left) * values.shape[1]).astype(int)
    inside = (((rows >= 0) & (rows < values.shape[0]))[:, None]) & ((cols >= 0) & (cols < values.shape[1]))
    at = share[rows.clip(0, values.shape[0] - 1)][:, cols.clip(0, values.shape[1] - 1)] * inside
    stops = np.array([0, 0.35, 0.7, 1.0])
    colours = np.array([[70, 20, 110], [200, 50, 80], [250, 150, 40], [255, 245, 170]], np.float32)
    colour = np.stack([np.interp(at, stops, colours[:, c]) for c in range(3)], -1)
    alpha = np.clip(at * 1.6, 0, 0.9)[..., None]
    return Image.fromarray((grey * (1 - alpha) + colour * alpha).astype(np.uint8))


def map_area(field: Field, shape: Sequence[int], side: int) -> tuple[float, float, float, float]:
    """Where a map of this shape lies over a photograph: left, top, right, bottom as fractions of its side."""
    (sr, top, bottom), (sc, left, right) = field.rows, field.columns
    first_row, first_col = (top + bottom + 1 - sr) / 2, (left + right + 1 - sc) / 2
    return (
        first_col / side,
        first_row / side,
        (first_col + sc * shape[1]) / side,
        (first_row + sr * shape[0]) / side,
    )


def whole_projection(
    projection: Tensor, box: Box, gain: float, side_on_page: int = LARGE
) -> tuple[Image.Image, float, float]:
    """A projection (C, S, S) of the whole photograph, its scale, and how often its magnifier enlarges (or 0).

    Where the unit sees less than 40 % of the side, what it sees is shown enlarged in a corner, too.
    """
    side = projection.shape[-1]
    left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2], side), min(box[3], side)
    window = projection[:, top:bottom, left:right] if left < right and top < bottom else projection[:, :1, :1]
    scale = float(scales(window[None], gain)[0])
    rgb = signed_to_rgb(projection.float(), max(scale, float(torch.finfo(torch.float32).tiny)))
    shown = fitted(to_picture(rgb), side_on_page)
    factor = side_on_page / side
    if max(right - left, bottom - top) * 2.5 >= side or min(right - left, bottom - top) < 1:
        return shown, scale, 0.0
    large = round(side_on_page * 0.52)
    times = large / max(right - left, bottom - top)
    size = (max(1, round((right - left) * times)), max(1, round((bottom - top) * times)))
    resample = Image.Resampling.NEAREST if times >= 3 else Image.Resampling.BICUBIC
    lens = to_picture(rgb[:, top:bottom, left:right]).resize(size, resample)
    x = 3 if (left + right) / 2 * factor > side_on_page / 2 else side_on_page - size[0] - 3
    y = 3 if (top + bottom) / 2 * factor > side_on_page / 2 else side_on_page - size[1] - 3
    draw = ImageDraw.Draw(shown)
    draw.rectangle(
        [round(left * factor) - 2, round(top * factor) - 2, round(right * factor) + 1, round(bottom * factor) + 1],
        outline=MARK,
    )  # fmt: skip
    draw.rectangle([x - 2, y - 2, x + size[0] + 1, y + size[1] + 1], fill=MARK)
    shown.paste(lens, (x, y))
    return shown, scale, times


def grey(values: Tensor) -> Image.Image:
    """Non-negative values (H, W) as grey, brightest at their maximum, on a square-root scale."""
    share = (values / values.max().clamp(min=1e-30)).sqrt()
    return Image.fromarray((255 * share).round().to(torch.uint8).numpy())


def with_caption(
    blocks: Sequence[tuple[str, Image.Image]], title: str, lines: Sequence[str], columns: Sequence[int] = (2,)
) -> Image.Image:
    """Pictures under their headings, below a title, above lines of caption, on white: a figure to keep.

    `columns` says how many stand side by side, for each row.
    """
    margin, head, space = 22, 20, 14
    title, lines = title.replace("×", "x"), [line.replace("×", "x") for line in lines]  # not in Pillow's font
    heading, normal, small = (ImageFont.load_default(size) for size in (20, 14, 13))
    ends = np.cumsum(columns)
    table = [line for n, end in zip(columns, ends, strict=True) if (line := blocks[end - n : end])]
    widths = [sum(p.width for _, p in line) + space * (len(line) - 1) for line in table]
    width = max([*widths, 480]) + 2 * margin
    wrapped = [part for line in lines for part in wrap_words(line, small, width - 2 * margin)]
    heights = [max(p.height for _, p in line) + head + space for line in table]
    height = margin + 34 + sum(heights) + 18 * len(wrapped) + margin
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin - 4), title, "#14171c", heading)
    y = margin + 34
    for line, high in zip(table, heights, strict=True):
        x = margin
        for words, picture in line:
            draw.text((x, y), words, "#4b5260", normal)
            sheet.paste(picture, (x, y + head))
            x += picture.width + space
        y += high
    for i, words in enumerate(wrapped):
        draw.text((margin, y + 18 * i), words, "#4b5260", small)
    return sheet


# --------------------------------------------------------------------------------------------------- plots


def data_url(encoded: bytes, kind: str = "png") -> str:
    """An encoded picture as a link that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def bars(rows: Sequence[tuple[str, float, str]], width: int = 236, label: str = "", split: int = 104) -> str:
    """Horizontal bars as SVG: (name, share of the full length 0 to 1, what is written behind the bar)."""
    high = 19
    length = width - split - 44
    parts = []
    for i, (name, share, words) in enumerate(rows):
        y = i * high
        long = max(1.0, length * min(max(share, 0.0), 1.0))
        shown = name if len(name) <= 15 else name[:14] + "…"
        parts.append(
            f'<text x="{split - 6}" y="{y + 13}" text-anchor="end"><title>{html.escape(name)}</title>'
            f"{html.escape(shown)}</text>"
            f'<rect x="{split}" y="{y + 4}" width="{long:.1f}" height="11" rx="2" class="zfkit-bar"/>'
            f'<text x="{split + long + 5:.1f}" y="{y + 13}" class="zfkit-dim">{html.escape(words)}</text>'
        )
    return _svg(width, high * len(rows), label, "".join(parts))


def class_name(model: VisionModel, index: int) -> str:
    """Name of a class, or "class 7" where the network has none."""
    return model.classes[index] if model.classes else f"class {index}"


def class_bars(
    model: VisionModel,
    probability: Tensor,
    form: str = "{:.2f}",
    *,
    target: int | None = None,
    count: int = 5,
    **options: int,
) -> str:
    """The likeliest classes (classes,) as `bars`, with the target among them; `form` writes their probabilities."""
    first = probability.argsort(descending=True, stable=True)[:count].tolist()
    if target is not None and target not in first:
        first[-1] = target
    rows = [(class_name(model, i), float(probability[i]), form.format(float(probability[i]))) for i in first]
    return bars(rows, label="; ".join(f"{name} {words}" for name, _, words in rows), **options)


def histogram(values: np.ndarray, mark: float, label: str, width: int = 236, height: int = 74) -> str:
    """How often which value, 24 bars, as SVG; above `mark` in the second colour."""
    low, high = min(0.0, float(values.min())), float(values.max())
    if high <= low:
        high = low + 1
    counts, edges = np.histogram(values, 24, (low, high))
    plot = height - 17
    step = width / len(counts)
    parts = []
    for i, count in enumerate(counts):
        tall = plot * count / max(counts.max(), 1)
        if count:
            tall = max(tall, 1.5)
        above = edges[i + 1] > mark
        parts.append(
            f'<rect x="{i * step + 0.5:.1f}" y="{plot - tall:.1f}" width="{step - 1:.1f}" height="{tall:.1f}" '
            f'class="{"zfkit-bar-top" if above else "zfkit-bar"}"/>'
        )
    parts.append(f'<line x1="0" y1="{plot + 0.5}" x2="{width}" y2="{plot + 0.5}" class="zfkit-axis"/>')
    parts.append(f'<text x="0" y="{height - 3}" class="zfkit-dim">{number(low)}</text>')
    parts.append(
        f'<text x="{width}" y="{height - 3}" text-anchor="end" class="zfkit-dim">{number(high)}</text>'
    )
    return _svg(width, height, label, "".join(parts))


ROW = 30  # height of one layer in the strip, in px


def strip(layers: Sequence[tuple[str, int, int]], chosen: str) -> str:
    """The network as blocks, one row per layer, from the picture down: (name, maps, side of a map).

    A block is as wide as its maps (to scale) and as high as their number (to scale); the chosen one is lit.
    """
    width = 64
    widest = max((side for _, _, side in layers), default=1)
    most = max((maps for _, maps, _ in layers), default=1)
    parts, before = [], 0.0
    for i, (name, maps, side) in enumerate(layers):
        wide = max(3.0, (width - 8) * side / widest)
        tall = max(2.0, (ROW - 8) * maps / most)
        y = i * ROW + ROW / 2
        lit = "zfkit-block-lit" if name == chosen else "zfkit-block"
        if i:
            parts.append(
                f'<line x1="{width / 2}" y1="{y - ROW + before / 2:.1f}" x2="{width / 2}" '
                f'y2="{y - tall / 2:.1f}" class="zfkit-axis"/>'
            )
        parts.append(
            f'<rect x="{(width - wide) / 2:.1f}" y="{y - tall / 2:.1f}" width="{wide:.1f}" height="{tall:.1f}" '
            f'rx="1.5" class="{lit}"><title>{html.escape(name)}: {maps} maps of {side} x {side}</title></rect>'
        )
        before = tall
    label = "Network: " + ", ".join(f"{name} {maps} maps of {side} x {side}" for name, maps, side in layers)
    return _svg(width, max(ROW * len(layers), 1), label, "".join(parts))


def _svg(width: int, height: int, label: str, body: str) -> str:
    return (
        f'<svg class="zfkit-plot" role="img" aria-label="{html.escape(label)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{body}</svg>'
    )
