"""Figures of what is wrong with a network, and of remedies."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .pictures import PERCENTILE, montage, signed_to_rgb
from .style import BLUE, ORANGE, RED, SKY, STYLE, new_figure, show_picture

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor

    from ..health import Finding, Report


def report_figure(report: Report, most: int = 8) -> Figure:
    """`zfkit.diagnose`'s report on one page: the layers' numbers with their limits, and the findings with pictures.

    Args:
        most: findings that are drawn, worst first; of those left out the page says how many there are.
    """
    import matplotlib.pyplot as plt

    shown = report.findings[:most]
    foot = [f"Not looked at: {remark}" for remark in report.remarks]
    if len(report.findings) > len(shown):
        foot.insert(0, f"And {len(report.findings) - len(shown)} more: print(report) has them all.")
    foot = [line for told in foot for line in textwrap.wrap(told, 130)]
    texts = [_report_lines(f) for f in shown]
    line = 0.165  # inches
    heights = [
        0.42 + max(line * len(t), 0.55 * (f.pictures is not None)) for t, f in zip(texts, shown, strict=True)
    ]
    width, above = 9.0, 2.75
    height = above + sum(heights) + line * len(foot) + 0.1
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height))

        def axes_at(
            left: float, top: float, wide: float, high: float
        ) -> Any:  # inches, top from the page's top
            return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

        title = textwrap.fill(report.title, 100)
        figure.text(0.1 / width, 1 - 0.08 / height, title, fontsize=10, fontweight="bold", va="top")
        _report_layers([axes_at(0.55 + 2.2 * i, 0.65, 1.6, 1.25) for i in range(4)], report)
        top = above
        for finding, told, high in zip(shown, texts, heights, strict=True):
            axes = axes_at(0.15, top, 5.2, high - 0.2)
            axes.set_axis_off()
            axes.plot(
                [0, 0],
                [0, 1],
                color=SEVERITY_COLOURS[finding.severity],
                linewidth=6,
                transform=axes.transAxes,
            )
            place = f"{finding.layer}: {finding.fault}" if finding.layer else finding.fault
            head = f"{place} ({finding.severity}; {finding.number:.2g}, alarm at {finding.threshold:.2g})"
            axes.text(0.02, 1, head, fontsize=9, fontweight="bold", va="top", transform=axes.transAxes)
            below = 1 - 0.2 / (high - 0.2)
            axes.text(
                0.02, below, "\n".join(told), fontsize=8, va="top", transform=axes.transAxes, linespacing=1.25
            )
            if finding.pictures is not None:
                _report_pictures(axes_at(5.4, top, 3.5, 0.62), finding)
            top += high
        figure.text(0.15 / width, 1 - top / height, "\n".join(foot), fontsize=8, va="top", color="#555555")
    return figure


SEVERITY_COLOURS = {"fault": RED, "warning": ORANGE, "note": SKY}


def _report_lines(finding: Finding) -> list[str]:
    lines = textwrap.wrap(finding.told, 84)
    if finding.severity == "note":
        return lines
    return (
        lines
        + textwrap.wrap(f"Remedy: {finding.remedy}.", 84)
        + textwrap.wrap(f"Paper: {finding.paper}.", 84)
    )


def _report_pictures(axes: Any, finding: Finding) -> None:
    """Up to eight maps in a row, each with its number."""
    assert finding.pictures is not None
    pictures = finding.pictures[:8]
    side = pictures.shape[-1]
    step = side + 3
    strip = pictures.new_full((3, side, 8 * step - 3), 255)
    for i, picture in enumerate(pictures):
        strip[:, :, i * step : i * step + side] = picture
    show_picture(axes, strip.permute(1, 2, 0).numpy())
    axes.set_anchor("NW")
    numbers = [str(c) for c in finding.channels] or ["as given", "reordered"] * 4
    for i in range(len(pictures)):
        axes.text(i * step + side / 2, side + 4, numbers[i], fontsize=7, ha="center", va="top")


def _report_layers(panels: Sequence[Any], report: Report) -> None:
    """Four panels over the layers: idle maps, strongest filter, spread of the signal, learning signal."""
    layers, limits = report.layers, report.thresholds
    x = list(range(len(layers)))
    dead, rare = (100 * layers[name] / layers.maps for name in ("dead", "rare"))
    panels[0].bar(x, dead, color=RED, label="never active")
    panels[0].bar(x, rare, bottom=dead, color=SKY, label="rarely")
    panels[0].set(title="idle maps", ylabel="%", ylim=(0, max(5, 1.5 * float((dead + rare).max()))))
    panels[0].set_yticks([tick for tick in panels[0].get_yticks() if tick <= 100])  # above, the legend
    panels[0].legend(fontsize=7, loc="upper left")
    for axes, column, limit, name, unit in (
        (panels[1], "dominance", limits.dominance, "strongest filter", "RMS / median RMS"),
        (panels[2], "signal", None, "spread over pictures", "activation"),
        (panels[3], "learning", limits.learning, "change by one step", "of the weights, lr 0.01"),
    ):
        values = layers[column].where(np.isfinite(layers[column]))
        axes.plot(x, values.to_numpy(), "o-", color=BLUE, markersize=4)
        axes.set(title=name, ylabel=unit)
        if limit is not None:
            axes.axhline(limit, color=RED, linestyle="--", linewidth=1)
        if column == "dominance":
            axes.set_ylim(0, None)
        elif (values > 0).any():
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter("")
    for axes in panels:
        axes.set_xticks(x, list(layers.index), rotation=90, fontsize=7)
        axes.set_title(axes.get_title(), fontsize=9)
        axes.set_ylabel(axes.get_ylabel(), fontsize=8)
        axes.tick_params(axis="y", labelsize=7)


def steps_figure(table: pd.DataFrame, limits: Mapping[str, float] | None = None) -> Figure:
    """What was measured after each step: a row for each, a panel for each column, one scale for all rows.

    Args:
        table: data frame by step, numbers in its columns. Its last row stands out.
        limits: by column, where an alarm begins: a dashed line.
    """
    limits = limits or {}
    figure, panels = new_figure(
        1, len(table.columns), size=(9, 1.1 + 0.36 * len(table)), sharey=True, squeeze=False
    )
    for axes, column in zip(panels[0], table.columns, strict=True):
        values = table[column].astype(float)
        high = max(float(values.max()), limits.get(column, 0.0), 1e-12)
        colours = [SKY] * (len(table) - 1) + [BLUE]
        axes.barh(range(len(table)), values, color=colours, height=0.7)
        for y, value in enumerate(values):
            told = "not measured" if value != value else f"{value:.3g}"
            place = (0 if value != value else value) + 0.03 * high
            over = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # the dashed line may run there
            axes.text(place, y, told, va="center", fontsize=8, bbox=over)
        if column in limits:
            axes.axvline(limits[column], color=RED, linestyle="--", linewidth=1.2)
        axes.set_xlim(0, 1.3 * high)
        axes.set_title(textwrap.fill(str(column), 20), fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
    panels[0][0].set_yticks(range(len(table)), [str(name) for name in table.index], fontsize=9)
    panels[0][0].invert_yaxis()
    return figure


def strips_figure(rows: Mapping[str, Tensor], title: str = "", *, scale: float | None = None) -> Figure:
    """Filters or projections of several networks, signed (n, 3, h, w) each, a strip for each on one common scale.

    Args:
        rows: by name; uint8 pictures are shown as they are. Sizes may differ.
        scale: what is drawn white or black; default: the 99.5th percentile of all |values|, the largest strip's.
    """
    signed = [t for t in rows.values() if t.dtype != torch.uint8]
    if scale is None and signed:
        scale = max(float(np.percentile(t.abs().cpu().numpy(), PERCENTILE)) for t in signed)
    figure, panels = new_figure(len(rows), 1, size=(9, 0.5 + 0.95 * len(rows)), squeeze=False)
    for axes, (name, pictures) in zip(panels[:, 0], rows.items(), strict=True):
        shown = pictures if pictures.dtype == torch.uint8 else signed_to_rgb(pictures, max(scale or 0, 1e-30))
        axes.imshow(np.asarray(montage(shown.cpu(), columns=len(shown), tile=64)))
        axes.set_title(name, loc="left", fontsize=9)
        axes.set_axis_off()
    figure.suptitle(title, fontsize=11)
    return figure
