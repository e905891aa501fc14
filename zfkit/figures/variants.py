"""Figures that compare networks: first layers, ablation, transfer, averages."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    PALETTE,
    RED,
    SKY,
    legend_below,
    new_figure,
    one_or_several,
    panel_grid,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from ..experiments.transfer import Transfer
    from ..experiments.variants import Ablation, Ensemble

FEATURE_STYLES = {
    "trained": (BLUE, "o-"),
    "random weights": (GREY, "s-"),
    "from scratch": (ORANGE, "D-"),
    "pixels": (BLACK, "^:"),
}


def first_layer_figure(table: pd.DataFrame, mark: tuple[int, Mapping[str, float]] | None = None) -> Figure:
    """Every measure of `load_first_layer_runs().table` against stride, a line for each kernel, without and with blur.

    Dots are runs, lines join means over seeds: a line that slopes is the stride's doing, lines apart are the
    kernel's, lines that are not parallel are both together; hollow dots have a blur. Measures that are the same in
    all runs are only named.
    mark: a stride and numbers to show in black.
    """
    from ..experiments.first_layer import MEASURES

    same = {m: float(table[m].iloc[0]) for m in MEASURES if table[m].nunique() == 1}
    measures = [m for m in MEASURES if m not in same]
    figure, panels = panel_grid(len(measures), 3, row=2.35, beside=0.6)
    strides = sorted(table.stride.unique(), reverse=True)
    for axes, measure in zip(panels, measures, strict=True):
        _draw_strides(axes, table, measure, strides)
        if mark is not None and mark[0] in strides:
            axes.plot(
                strides.index(mark[0]), mark[1][measure], "D", color=BLACK, markersize=5, label="this run"
            )
        axes.set_xticks(range(len(strides)), [f"stride {s}" for s in strides])
        axes.set_xlim(-0.35, len(strides) - 0.65)
        axes.set_title("\n".join(textwrap.wrap(MEASURES[measure], 32)), fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
    alike = ", ".join(f"{MEASURES[m]} = {value:g}" for m, value in same.items())
    heading = f"the same in all runs: {alike}" if alike else None
    legend_below(figure, panels[0], fontsize=9, title=heading, title_fontsize=9)
    return figure


def _draw_strides(axes: Any, table: pd.DataFrame, measure: str, strides: list[int]) -> None:
    """One measure against stride, lines of different kernels and blurs a little beside each other."""
    kernels = sorted(table.kernel.unique(), reverse=True)
    for (kernel, blur), part in table.groupby(["kernel", "blur"]):
        i = kernels.index(kernel)
        colour, shift = (ORANGE, BLUE)[i % 2], 0.06 * (2 * i - 1) + (0.03 if blur else -0.03)
        x = part.stride.map(strides.index) + shift
        style = {
            "color": colour,
            "markerfacecolor": "white" if blur else colour,
            "markersize": 4.5,
            "alpha": 0.9,
        }
        (dots,) = axes.plot(x, part[measure], "o", **style)
        mean = part.groupby("stride")[measure].mean().reindex(strides)
        where = [k + shift for k in range(len(strides))]
        (line,) = axes.plot(where, mean, "--" if blur else "-", color=colour, linewidth=1.5)
        # In the legend a blur is a hollow dot: a single cell has no line.
        (dots if blur else line).set_label(f"{kernel}x{kernel}{', blur' if blur else ''}")


def effects_figure(effects: Mapping[str, pd.DataFrame]) -> Figure:
    """Effects of `factorial_effects` with their intervals: a row for each measure, a column for each effect.

    Each row has its own scale, the same in all columns. Intervals that leave out 0 are blue and filled. Measures that
    are the same in all runs are left out. effects: tables by heading, drawn side by side.
    """
    from ..experiments.first_layer import MEASURES

    moving = [table[(table.effect != 0) | (table.se != 0)] for table in effects.values()]
    measures = list(dict.fromkeys(m for table in moving for m, _ in table.index))
    columns = [
        ("\n".join(filter(None, (head, _effect(name, table)))), table.xs(name, level="factor"))
        for head, table in effects.items()
        for name in dict.fromkeys(e for _, e in table.index)
    ]
    ends = {m: [c.loc[m, ["low", "high"]].abs().max() for _, c in columns if m in c.index] for m in measures}
    size = (9, 0.9 + 0.42 * len(measures))
    figure, panels = new_figure(1, len(columns), size=size, sharey=True, squeeze=False)
    for axes, (title, part) in zip(panels[0], columns, strict=True):
        axes.axvline(0, color=BLACK, linewidth=0.8)
        for y, measure in enumerate(measures):
            if measure in part.index:
                _draw_effect(axes, y, part.loc[measure], max(ends[measure]) or 1.0)
        axes.set_title(title, fontsize=9)
        axes.set_xlim(-1.2, 1.2)
        axes.set_xticks([])
    panels[0, 0].set_yticks(range(len(measures)), [MEASURES.get(m, m) for m in measures], fontsize=8)
    panels[0, 0].set_ylim(len(measures) - 0.4, -0.8)
    return figure


def _draw_effect(axes: Any, y: int, effect: pd.Series, scale: float) -> None:
    """One effect's interval, its middle, and its number above."""
    colour = BLUE if effect.moves else GREY
    axes.plot([effect.low / scale, effect.high / scale], [y, y], color=colour, linewidth=2)
    face = colour if effect.moves else "white"
    axes.plot(effect.effect / scale, y, "o", color=colour, markerfacecolor=face, markersize=6)
    where = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "fontsize": 7.5}
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85}
    text = f"{effect.effect:+.2f}" if effect.effect else "0"
    axes.annotate(text, (effect.effect / scale, y), color=colour, bbox=box, **where)


def _effect(name: str, table: pd.DataFrame) -> str:
    """ "kernel: 11 to 7" where the table knows the levels."""
    levels = table.attrs.get("levels", {}).get(name)
    if levels is None or any(isinstance(v, bool) for v in levels):
        return name.replace(" x ", " × ")
    return f"{name}: {levels[0]} to {levels[1]}"


def ablation_figure(ablation: Ablation) -> Figure:
    """Error of each variant, a dot for each seed, beside the paper's for the same change (Table 3)."""
    from ..experiments.variants import PAPER

    table, runs, budget = ablation.table(), ablation.runs, ablation.budget
    names = list(table.index)[::-1]
    rows = range(len(names))
    figure, panels = new_figure(1, 2, size=(9, 1.1 + 0.32 * len(names)), sharey=True)
    here, paper = panels
    here.barh(rows, table.error[names], color=SKY, height=0.6, label="validation, mean")
    bar = {"color": BLACK, "markersize": 12, "markeredgewidth": 2, "label": "training"}
    here.plot(table.train_error[names], rows, "|", **bar)
    for row, name in enumerate(names):
        errors = 100 - runs[runs.variant == name].top1
        label = "each seed" if row == 0 else None
        here.plot(errors, [row] * len(errors), "o", color=BLUE, markersize=4, label=label)
    if "full" in names:
        here.axvline(table.error["full"], color=GREY, linestyle="--", linewidth=1)
    here.set_yticks(list(rows), names)
    here.set(xlabel="top-1 error, %", title=f"here: {budget['base']} on {budget['images']}")
    for column, (network, colour, mark) in enumerate((("AlexNet", ORANGE, "s"), ("ZFNet", BLUE, "o"))):
        errors = [PAPER.get(name, (None, None))[column] for name in names]
        paper.plot([math.nan if e is None else e for e in errors], rows, mark, color=colour, label=network)
        paper.axvline(PAPER["full"][column] or math.nan, color=colour, linestyle="--", linewidth=1)
    paper.set(xlabel="top-5 error, %", title="the paper: ImageNet")
    for axes in panels:
        axes.set_xlim(0, None)
        axes.title.set_fontsize(10)
    legend_below(figure, *panels)
    return figure


def transfer_figure(transfer: Transfer, layer: str | None = None) -> Figure:
    """Accuracy against the layer (Table 7) and against pictures per class (Tables 4 and 5), with sd over splits.

    Args:
        layer: of the second panel; default: the one that is best on average, for the trained network.
    """
    scores = transfer.scores
    most = scores.per_class.max()
    trained = scores[scores.features == "trained"]
    layers = list(trained.layer.unique())
    best = trained.groupby("layer", sort=False).accuracy.mean().idxmax() if layer is None else layer
    figure, panels = new_figure(1, 2, size=(9, 3.6), sharey=True)
    by_layer, by_count = panels
    for kind, (colour, mark) in FEATURE_STYLES.items():
        part = scores[scores.features == kind]
        if not len(part):
            continue
        style = {"color": colour, "capsize": 2, "markersize": 5, "elinewidth": 1, "fmt": mark, "label": kind}
        at_most = part[part.per_class == most].groupby("layer").accuracy
        if kind in ("trained", "random weights"):
            by_layer.errorbar(range(len(layers)), at_most.mean()[layers], at_most.std()[layers], **style)
            part = part[part.layer == best]
        else:  # features of no layer
            line = ":" if kind == "pixels" else "--"
            by_layer.axhline(at_most.mean().iloc[0], color=colour, linestyle=line, label=kind)
        counts = part.groupby("per_class").accuracy
        by_count.errorbar(counts.mean().index, counts.mean(), counts.std(), **style)
    for axes in panels:
        axes.axhline(transfer.chance, color=RED, linestyle="--", linewidth=1, label="guessing")
        axes.set(ylim=(0, 100))
        axes.title.set_fontsize(10)
    by_layer.set_xticks(range(len(layers)), layers, rotation=45)
    by_layer.set(ylabel="mean accuracy over classes, %", title=f"{most} pictures per class")
    counts = sorted(scores.per_class.unique())
    if len(counts) > 1 and counts[-1] > 4 * counts[0]:
        by_count.set_xscale("log")
    by_count.set_xticks(counts, [str(n) for n in counts])
    by_count.minorticks_off()
    by_count.set(xlabel="training pictures per class", title=f"features of {best}")
    legend_below(figure, by_layer)
    figure.suptitle(f"{transfer.model}, linear {transfer.classifier} on {transfer.train}", fontsize=11)
    return figure


def ensemble_figure(ensembles: Ensemble | Sequence[Ensemble]) -> Figure:
    """Top-1 error and loss against how many networks are averaged, a dot for each combination (Table 2).

    Args:
        ensembles: for one crop and for ten, say.
    """
    figure, panels = new_figure(1, 2, size=(9, 3.2))
    several = one_or_several(ensembles)
    for one, colour, mark in zip(several, PALETTE, ("o-", "s--", "^:") * len(several), strict=False):
        table, means = one.table(), one.by_size()
        label = f"{one.crops} crop{'s' if one.crops > 1 else ''}"
        for axes, column in zip(panels, ("top1_error", "loss"), strict=True):
            axes.plot(table.networks, table[column], ".", color=colour, alpha=0.35)
            axes.plot(means.index, means[column], mark, color=colour, label=label)
    for axes, unit, title in zip(panels, ("%", "nats"), ("top-1 error", "cross-entropy"), strict=True):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="networks averaged", ylabel=unit, title=title)
    panels[0].legend(fontsize=8)
    return figure
