"""Tensors into pictures (`PIL.Image`) and small plots (SVG). Nothing here knows of what a widget shows.

Plots are SVG in the page's own colours (``currentColor`` and the style sheet's variables), so that they are
sharp at any zoom and readable on light and dark pages.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..deconv.receptive_field import Box, Field
from ..figures.pictures import wrap_words
from ..images.colour import full_scale, signed_to_rgb
from ..nets.model import VisionModel

MARK = "#ffc233"


def coloured(projections: Tensor, gain: float = 1.0) -> Tensor:
    """Signed projections (N, C, H, W) as uint8 (N, 3, H, W): each has full colour at its 99.5th percentile / gain."""
    values = projections.float().cpu()
    return signed_to_rgb(values, full_scale(values) / gain)


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """Brought to side x side px: pixels stay visible squares where it is enlarged twice or more."""
    if picture.size == (side, side):
        return picture
    large = max(picture.size) * 2 <= side
    return picture.resize((side, side), Image.Resampling.NEAREST if large else Image.Resampling.BICUBIC)


def over(photo: Image.Image, colours: Image.Image, area: Sequence[float], side: int) -> Image.Image:
    """A map's colours over the greyed photograph, as the page shows them; `area` as `map_area` gives it."""
    grey = fitted(photo, side).convert("L").point(lambda v: v * 0.55 + 20).convert("RGB")
    left, top, right, bottom = (round(v * side) for v in area)
    shown = colours.resize((max(right - left, 1), max(bottom - top, 1)), Image.Resampling.NEAREST)
    grey.paste(shown.convert("RGB"), (left, top), shown.getchannel("A"))
    return grey


def with_box(picture: Image.Image, box: Box, side: int, side_on_page: int) -> Image.Image:
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


def map_area(field: Field, shape: Sequence[int], side: int) -> tuple[float, float, float, float]:
    """Where a map of this shape lies over a photograph: left, top, right, bottom as fractions of its side."""
    (sr, top, bottom), (sc, left, right) = field.rows, field.columns
    y, x = (top + bottom + 1 - sr) / 2, (left + right + 1 - sc) / 2
    return x / side, y / side, (x + sc * shape[1]) / side, (y + sr * shape[0]) / side


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


def bars(rows: Sequence[tuple[str, float, str]], width: int = 236, label: str = "", split: int = 114) -> str:
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
            f'<text x="{split + long + 5:.1f}" y="{y + 13}">{html.escape(words)}</text>'
        )
    tall = high * len(rows)
    return (
        f'<svg role="img" aria-label="{html.escape(label)}" width="{width}" height="{tall}" '
        f'viewBox="0 0 {width} {tall}">{"".join(parts)}</svg>'
    )


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
