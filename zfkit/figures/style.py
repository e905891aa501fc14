"""Colours, fonts and axes that all figures share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


# Okabe & Ito's colours, in the order in which series take them.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000",
)  # fmt: skip


PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK)


GREY = "#8C8C8C"  # controls: random filters, shuffled labels, untrained networks


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

FOLDED = RED  # what arrives at a wrong frequency, in every figure


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


def show_picture(axes: Any, picture: Any, title: str = "") -> None:
    """A picture, uint8 (H, W, 3) or (H, W), without ticks."""
    axes.imshow(picture, cmap=None if picture.ndim == 3 else "gray")
    axes.set_title(title)
    axes.set_axis_off()


def _mix(kept: Tensor, folded: Tensor) -> Tensor:
    """White where nothing answers, towards dark grey for what is kept, towards vermilion for what is folded."""
    dark, red = (torch.tensor([int(c[k : k + 2], 16) / 255 for k in (1, 3, 5)]) for c in ("#1A1A1A", FOLDED))
    return (1 - kept[..., None] * (1 - dark) - folded[..., None] * (1 - red)).clamp(0, 1).float()


def _shades(count: int) -> list[Any]:
    """Colours from the first layer to the last, light to dark, that colour-blind readers can put in order."""
    import matplotlib as mpl

    return [mpl.colormaps["viridis"](0.9 * (1 - i / max(count - 1, 1))) for i in range(count)]


def _legend_below(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, ncols=len(labels), loc="outside lower center", frameon=False)
