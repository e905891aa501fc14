"""Colours, fonts and axes that all figures share."""

from __future__ import annotations

from collections.abc import Sequence
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
GREY = "#8C8C8C"  # controls: random filters, shuffled labels, untrained networks
PALE = "#F3F3F3"  # a band of the axis that is only marked
SOFT = "#555555"  # words in a figure that are not its data
FOLDED = RED  # what arrives at a wrong frequency, in every figure
MODEL_COLOURS = {"zfnet64": BLUE, "alexnet64": ORANGE}  # the bundled pair keeps its colours in every figure

# What matplotlib reads while it makes axes; titles and legends are set where they are drawn.
STYLE: dict[str, Any] = {
    "figure.dpi": 100,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
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


def model_colours(names: Sequence[str]) -> list[str]:
    """A colour for each network: the bundled pair its own, others those that are left."""
    left = [c for c in PALETTE if c not in MODEL_COLOURS.values()]
    unique = list(dict.fromkeys(n for n in names if n not in MODEL_COLOURS))
    own = MODEL_COLOURS | {name: left[i % len(left)] for i, name in enumerate(unique)}
    return [own[name] for name in names]


def shades(count: int) -> list[Any]:
    """Colours from the first layer to the last, light to dark, that colour-blind readers can put in order."""
    import matplotlib as mpl

    return [mpl.colormaps["viridis"](0.9 * (1 - i / max(count - 1, 1))) for i in range(count)]


def kept_and_folded(kept: Tensor, folded: Tensor) -> Tensor:
    """(H, W, 3) from 0 to 1: white where nothing answers, towards dark grey for what is kept, vermilion for folded."""
    dark, red = (torch.tensor(ImageColor.getrgb(c)) / 255 for c in ("#1A1A1A", FOLDED))
    return (1 - kept[..., None] * (1 - dark) - folded[..., None] * (1 - red)).clamp(0, 1).float()


def legend_below(figure: Figure, *panels: Any, handles: Sequence[Any] = (), **options: Any) -> None:
    """One legend under the whole figure: these handles, or what the panels have, in one row."""
    entries = [axes.get_legend_handles_labels() for axes in panels]
    handles = [*handles, *(handle for own, _ in entries for handle in own)]
    labels = [handle.get_label() for handle in handles]
    options = {"fontsize": 8, "ncols": len(handles)} | options
    figure.legend(handles, labels, loc="outside lower center", frameon=False, **options)


def plain_log(axis: Any) -> None:
    """Numbers on a logarithmic axis as they are written, 0.1 and 3."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
