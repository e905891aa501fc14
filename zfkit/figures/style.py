"""Colours that all figures share, and the axes of plates (matplotlib); charts have theirs in `charts`.

A colour has one meaning in all figures and notebooks:

- blue: a trained network and what was measured of it; of several networks `zfnet64`, of kernels 7x7
- orange: what it is compared with: `alexnet64`, kernels of 11x11
- grey: a control or a state before: random weights, shuffled labels, unrelated units, resampling alone
- vermilion: what is wrong, and the limit at which it begins: folded frequencies, dead maps, guessing
- black: a reference: this run, the mean of all, the paper's number
- green, purple, sky: the rules deconvnet, guided and gradient
- light to dark (`charts.shades`): layers, from the first to the last

What has no meaning of its own (runs, pictures, classes) takes `PALETTE` in order, and is named where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import ImageColor

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

T = TypeVar("T")

# Okabe & Ito's colours, which colour-blind readers tell apart, in the order in which series take them.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK = PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000",
)  # fmt: skip
GREY = "#8C8C8C"
GRID = "#E6E6E6"
PALE = "#F3F3F3"  # a band of the axis that is only marked
SOFT = "#555555"  # words in a figure that are not its data
FOLDED = RED  # what arrives at a wrong frequency, in every figure
MODEL_COLOURS = {"zfnet64": BLUE, "alexnet64": ORANGE}  # the bundled pair keeps its colours in every figure
RULE_COLOURS = {"deconvnet": GREEN, "guided": PURPLE, "gradient": SKY}
KERNEL_COLOURS = {7: BLUE, 11: ORANGE}  # of first layers, as of the bundled pair

# What matplotlib reads while it makes axes; titles and legends are set where they are drawn.
STYLE: dict[str, Any] = {
    "figure.dpi": 100,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
}


def new_figure(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (8, 4), **options: Any
) -> tuple[Figure, Any]:
    """A figure of `size` inches with (rows, columns) axes in zfkit's style; options go to `plt.subplots`.

    No more than 9 inches wide, so that it reads at the width of a page on GitHub.
    """
    import matplotlib.pyplot as plt
    from cycler import cycler

    with plt.rc_context(STYLE | {"axes.prop_cycle": cycler(color=PALETTE)}):
        return plt.subplots(rows, columns, figsize=size, layout="constrained", **options)


def panel_grid(
    count: int, columns: int, width: float = 9, row: float = 2.75, beside: float = 0
) -> tuple[Figure, list[Any]]:
    """So many panels in rows of `columns`, places left over empty; rows of so many inches, and room `beside` them."""
    rows = -(-count // columns)
    figure, axes = new_figure(rows, columns, size=(width, rows * row + beside), squeeze=False)
    for unused in axes.flat[count:]:
        unused.set_axis_off()
    return figure, list(axes.flat)[:count]


def one_or_several(results: T | Sequence[T]) -> list[T]:
    """Results as a list, where a figure takes one or several."""
    return list(results) if isinstance(results, Sequence) else [results]


def panel_title(axes: Any, text: str, size: float = 10) -> None:
    """A panel's title, at its left."""
    axes.set_title(text, loc="left", fontsize=size)


def show_picture(axes: Any, picture: Any, title: str = "") -> None:
    """A picture, a `PIL.Image` or uint8 (H, W, 3) or (H, W), without ticks."""
    axes.imshow(picture, cmap="gray")  # which colour pictures ignore
    axes.set_title(title)
    axes.set_axis_off()


def picture_row(pictures: Mapping[str, Tensor], title: str = "") -> Figure:
    """uint8 pictures (3, H, W) side by side, each under its name."""
    width = min(9.0, 2.3 * len(pictures))
    figure, panels = new_figure(1, len(pictures), size=(width, width / len(pictures) + 0.5), squeeze=False)
    for axes, (name, picture) in zip(panels[0], pictures.items(), strict=True):
        show_picture(axes, picture.permute(1, 2, 0).numpy(), name)
        axes.title.set_fontsize(10)
    figure.suptitle(title, fontsize=10)
    return figure


def model_colours(names: Sequence[str]) -> list[str]:
    """A colour for each network: the bundled pair its own, others those that are left."""
    left = [c for c in PALETTE if c not in MODEL_COLOURS.values()]
    unique = list(dict.fromkeys(n for n in names if n not in MODEL_COLOURS))
    own = MODEL_COLOURS | {name: left[i % len(left)] for i, name in enumerate(unique)}
    return [own[name] for name in names]


def kept_and_folded(kept: Tensor, folded: Tensor) -> Tensor:
    """(H, W, 3) from 0 to 1: white where nothing answers, towards dark grey for what is kept, vermilion for folded."""
    dark, red = (torch.tensor(ImageColor.getrgb(c)) / 255 for c in ("#1A1A1A", FOLDED))
    return (1 - kept[..., None] * (1 - dark) - folded[..., None] * (1 - red)).clamp(0, 1).float()


def legend_below(figure: Figure, handles: Sequence[Any], **options: Any) -> None:
    """One legend under the whole figure, in one row."""
    words = {"loc": "outside lower center", "frameon": False, "fontsize": 9, "ncols": len(handles)}
    figure.legend(handles=handles, **words | options)
