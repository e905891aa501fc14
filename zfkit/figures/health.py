"""Figures of what is wrong with a network, and of remedies."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..images.colour import full_scale, signed_to_rgb
from .charts import draw, mark, new_chart
from .pictures import montage
from .style import BLUE, GREY, ORANGE, RED, SKY, SOFT, STYLE, new_figure, panel_title, show_picture

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as Chart
    from torch import Tensor

    from ..health import Finding, Report

SEVERITY_COLOURS = {"fault": RED, "warning": ORANGE, "note": SKY}
WIDTH, ABOVE, LINE = 9.0, 2.75, 0.165  # inches: the report's page, the part above its findings, a line


def report_figure(report: Report, most: int = 8) -> Figure:
    """`zfkit.diagnose`'s report on one page: the layers' numbers with their limits, and the findings with pictures.

    Args:
        most: findings that are drawn, worst first; of those left out the page says how many there are.
    """
    import matplotlib.pyplot as plt

    findings = report.findings[:most]
    notes = [f"Not looked at: {remark}" for remark in report.remarks]
    if len(report.findings) > len(findings):
        notes.insert(0, f"And {len(report.findings) - len(findings)} more: print(report) has them all.")
    foot = [line for note in notes for line in textwrap.wrap(note, 130)]
    texts = [_finding_lines(f) for f in findings]
    pairs = zip(texts, findings, strict=True)
    heights = [0.42 + max(LINE * len(text), 0.55 * (f.pictures is not None)) for text, f in pairs]
    height = ABOVE + sum(heights) + LINE * len(foot) + 0.1
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(WIDTH, height))

        def axes_at(left: float, top: float, wide: float, high: float) -> Any:
            """In inches, from the page's top left corner."""
            return figure.add_axes((left / WIDTH, 1 - (top + high) / height, wide / WIDTH, high / height))

        heading = textwrap.fill(report.title, 100)
        figure.text(0.1 / WIDTH, 1 - 0.08 / height, heading, fontsize=10, fontweight="bold", va="top")
        _draw_layers([axes_at(0.55 + 2.2 * i, 0.65, 1.6, 1.25) for i in range(4)], report)
        top = ABOVE
        for finding, lines, high in zip(findings, texts, heights, strict=True):
            _draw_finding(axes_at(0.15, top, 5.2, high - 0.2), finding, lines, high - 0.2)
            if finding.pictures is not None:
                _draw_maps(axes_at(5.4, top, 3.5, 0.62), finding, finding.pictures[:8])
            top += high
        figure.text(0.15 / WIDTH, 1 - top / height, "\n".join(foot), fontsize=8, va="top", color=SOFT)
    return figure


def _finding_lines(finding: Finding) -> list[str]:
    texts = [finding.told]
    if finding.severity != "note":
        texts += [f"Remedy: {finding.remedy}.", f"Paper: {finding.paper}."]
    return [line for text in texts for line in textwrap.wrap(text, 84)]


def _draw_finding(axes: Any, finding: Finding, lines: Sequence[str], high: float) -> None:
    """A bar in the severity's colour, and the words beside it; `high` is the panel's height in inches."""
    axes.set_axis_off()
    axes.plot([0, 0], [0, 1], color=SEVERITY_COLOURS[finding.severity], linewidth=6, transform=axes.transAxes)
    what = f"{finding.layer}: {finding.fault}" if finding.layer else finding.fault
    head = f"{what} ({finding.severity}; {finding.number:.2g}, alarm at {finding.threshold:.2g})"
    where = {"va": "top", "transform": axes.transAxes}
    axes.text(0.02, 1, head, fontsize=9, fontweight="bold", **where)
    axes.text(0.02, 1 - 0.2 / high, "\n".join(lines), fontsize=8, linespacing=1.25, **where)


def _draw_maps(axes: Any, finding: Finding, pictures: Tensor) -> None:
    """Up to eight maps in a row, each with its number."""
    side, gap = pictures.shape[-1], 3
    show_picture(axes, montage(pictures, 8, side, gap=gap))
    axes.set_anchor("NW")
    numbers = [str(c) for c in finding.channels] or ["as given", "reordered"] * 4
    for i, name in zip(range(len(pictures)), numbers, strict=False):
        axes.text(i * (side + gap) + side / 2, side + 4, name, fontsize=7, ha="center", va="top")


def _draw_layers(panels: Sequence[Any], report: Report) -> None:
    """Four panels over the layers: idle maps, strongest filter, spread of the signal, learning signal."""
    layers, limits = report.layers, report.thresholds
    x = list(range(len(layers)))
    idle = panels[0]
    dead, rare = (100 * layers[name] / layers.maps for name in ("dead", "rare"))
    idle.bar(x, dead, color=RED, label="never active")
    idle.bar(x, rare, bottom=dead, color=SKY, label="rarely")
    idle.set(title="idle maps", ylabel="%", ylim=(0, max(5, 1.5 * float((dead + rare).max()))))
    idle.set_yticks([tick for tick in idle.get_yticks() if tick <= 100])  # above, the legend
    idle.legend(fontsize=7, loc="upper left")
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


def steps_figure(table: pd.DataFrame, limits: Mapping[str, float] | None = None) -> Chart:
    """What was measured after each step, a row for each, a panel for each column, one scale for all rows: a chart.

    Args:
        table: data frame by step, numbers in its columns. Its last row stands out.
        limits: by column, where an alarm begins: a dashed line.
    """
    limits = limits or {}
    rows, columns = table.shape
    titles = [textwrap.fill(str(column), 20).replace("\n", "<br>") for column in table.columns]
    size = {"height": 140 + 34 * rows, "shared_yaxes": True, "horizontal_spacing": 0.02}
    chart = new_chart(1, columns, titles=titles, **size)
    names = [str(name) for name in table.index]
    for i, column in enumerate(table.columns, start=1):
        values = table[column].astype(float)
        written = ["not measured" if value != value else f"{value:.3g}" for value in values]
        draw(
            chart, (1, i), str(column), "bar", orientation="h", x=values.fillna(0), y=names, text=written,
            textposition="outside", cliponaxis=False, marker_color=[GREY] * (rows - 1) + [BLUE],
            told=f"%{{y}}<br>{column}: %{{text}}",
        )  # fmt: skip
        if column in limits:
            mark(chart, (1, i), colour=RED, x=limits[column])
        high = max(float(values.max()), limits.get(column, 0.0), 1e-12)
        chart.update_xaxes(range=[0, 1.35 * high], nticks=4, row=1, col=i)
    chart.update_yaxes(autorange="reversed", showgrid=False)
    return chart.update_layout(showlegend=False, margin={"t": 80, "b": 40})


def strips_figure(rows: Mapping[str, Tensor], title: str = "", *, scale: float | None = None) -> Figure:
    """Filters or projections of several networks, signed (n, 3, h, w) each, a strip for each on one common scale.

    Args:
        rows: by name; uint8 pictures are shown as they are. Sizes may differ.
        scale: what is drawn white or black; default: the 99.5th percentile of all |values|, the largest strip's.
    """
    if scale is None:
        signed = [t for t in rows.values() if t.dtype != torch.uint8]
        scale = max((float(full_scale(t, axes=4)) for t in signed), default=0.0)
    figure, panels = new_figure(len(rows), 1, size=(9, 0.5 + 0.95 * len(rows)), squeeze=False)
    for axes, (name, pictures) in zip(panels[:, 0], rows.items(), strict=True):
        rgb = pictures if pictures.dtype == torch.uint8 else signed_to_rgb(pictures, scale)
        axes.imshow(montage(rgb, columns=len(rgb), tile=64))
        panel_title(axes, name, 9)
        axes.set_axis_off()
    figure.suptitle(title, fontsize=11)
    return figure
