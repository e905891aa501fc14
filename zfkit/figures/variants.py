"""Charts that compare networks: first layers, ablation, transfer, averages."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .charts import Style, Where, draw, faded, mark, new_chart, note
from .style import BLACK, BLUE, GREY, KERNEL_COLOURS, ORANGE, PALETTE, RED, one_or_several

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure as Chart

    from ..experiments.transfer import Transfer
    from ..experiments.variants import Ablation, Ensemble

# Colour, marker and dash of the features that are compared.
FEATURE_STYLES = {
    "trained": (BLUE, "circle", "solid"),
    "random weights": (GREY, "square", "solid"),
    "from scratch": (ORANGE, "diamond", "dash"),
    "pixels": (BLACK, "triangle-up", "dot"),
}


def first_layer_figure(table: pd.DataFrame, mark: tuple[int, Mapping[str, float]] | None = None) -> Chart:
    """Every measure of `load_first_layer_runs().table` against stride, a line a kernel, without and with blur: a chart.

    Dots are runs, lines join means over seeds: a line that slopes is the stride's doing, lines apart are the
    kernel's, lines that are not parallel are both together; hollow dots have a blur. Each measure has a scale of its
    own, which need not begin at 0. Measures that are the same in all runs are only named.
    mark: a stride and numbers to show in black.
    """
    from ..experiments.first_layer import MEASURES

    same = {m: float(table[m].iloc[0]) for m in MEASURES if table[m].nunique() == 1}
    measures = [m for m in MEASURES if m not in same]
    rows = -(-len(measures) // 3)
    titles = ["<br>".join(textwrap.wrap(MEASURES[m], 36)) for m in measures]
    alike = ", ".join(f"{MEASURES[m]} = {value:g}" for m, value in same.items())
    title = f"the same in all runs: {alike}" if alike else ""
    chart = new_chart(rows, 3, title=title, titles=titles, height=230 * rows + 120)
    strides = sorted(table.stride.unique(), reverse=True)
    for i, measure in enumerate(measures):
        where = (1 + i // 3, 1 + i % 3)
        _draw_strides(chart, where, table, measure, strides)
        if mark is not None and mark[0] in strides:
            told = f"this run: {mark[1][measure]:.3g}"
            style: Style = {"mode": "markers", "marker": {"symbol": "diamond", "color": BLACK, "size": 8}}
            x, y = [strides.index(mark[0])], [mark[1][measure]]
            draw(chart, where, "this run", x=x, y=y, told=told, **style)
    ticks = {"tickvals": list(range(len(strides))), "ticktext": [f"stride {s}" for s in strides]}
    return chart.update_xaxes(range=[-0.35, len(strides) - 0.65], **ticks)


def _draw_strides(chart: Chart, where: Where, table: pd.DataFrame, measure: str, strides: list[int]) -> None:
    """One measure against stride, lines of different kernels and blurs a little beside each other."""
    kernels = sorted(table.kernel.unique(), reverse=True)
    for (kernel, blur), part in table.groupby(["kernel", "blur"]):
        i = kernels.index(kernel)
        shift = 0.06 * (2 * i - 1) + (0.03 if blur else -0.03)
        colour = KERNEL_COLOURS.get(kernel, PALETTE[2 + i])
        name = f"{kernel}x{kernel}{', blur' if blur else ''}"
        mean = part.groupby("stride")[measure].agg(["mean", "std", "size"]).reindex(strides)
        line: Style = {"color": colour, "dash": "dash" if blur else "solid", "width": 1.5}
        draw(
            chart, where, name, x=[k + shift for k in range(len(strides))], y=mean["mean"], mode="lines",
            line=line, customdata=mean[["std", "size"]],
            told=f"{name}, mean of %{{customdata[1]}} seeds: %{{y:.4g}}, sd %{{customdata[0]:.2g}}",
        )  # fmt: skip
        symbol = {"color": colour, "symbol": "circle-open" if blur else "circle", "size": 7, "opacity": 0.9}
        told = f"{name}, stride %{{customdata[0]}}, seed %{{customdata[1]}}: %{{y:.4g}}"
        draw(
            chart, where, name, x=part.stride.map(strides.index) + shift, y=part[measure], mode="markers",
            marker=symbol, customdata=part[["stride", "seed"]], told=told,
        )  # fmt: skip


def effects_figure(effects: Mapping[str, pd.DataFrame]) -> Chart:
    """Effects of `factorial_effects` with their intervals, a row for each measure, a column for each effect: a chart.

    Each row has its own scale, the same in all columns, as is written below. Intervals that leave out 0 are blue and
    filled. Measures that are the same in all runs are left out. effects: tables by heading, drawn side by side.
    """
    from ..experiments.first_layer import MEASURES

    moving = [table[(table.effect != 0) | (table.se != 0)] for table in effects.values()]
    measures = list(dict.fromkeys(m for table in moving for m, _ in table.index))
    columns = [
        ("<br>".join(filter(None, (head, _effect(name, table)))), table.xs(name, level="factor"))
        for head, table in effects.items()
        for name in dict.fromkeys(e for _, e in table.index)
    ]
    ends = {m: [c.loc[m, ["low", "high"]].abs().max() for _, c in columns if m in c.index] for m in measures}
    titles = [title for title, _ in columns]
    size: Style = {"height": 40 * len(measures) + 130, "shared_yaxes": True, "horizontal_spacing": 0.02}
    chart = new_chart(1, len(columns), titles=titles, **size)
    for i, (title, part) in enumerate(columns, start=1):
        mark(chart, (1, i), x=0, colour=BLACK, dash="solid")
        for y, measure in enumerate(measures):
            if measure in part.index:
                name, scale = f"{title}: {MEASURES.get(measure, measure)}", max(ends[measure]) or 1.0
                _draw_effect(chart, (1, i), y, part.loc[measure], scale, name)
    names = {"tickvals": list(range(len(measures))), "ticktext": [MEASURES.get(m, m) for m in measures]}
    chart.update_yaxes(range=[len(measures) - 0.4, -0.8], showgrid=False, **names)
    chart.update_xaxes(range=[-1.8, 1.8], tickvals=[], ticktext=[])
    words = "each row has a scale of its own, the same in all columns"
    below = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "top", "yshift": -8}
    chart.add_annotation(x=0, y=0, text=words, showarrow=False, **below)
    return chart.update_layout(showlegend=False, margin_b=40)


def _draw_effect(chart: Chart, where: Where, y: int, effect: pd.Series, scale: float, name: str) -> None:
    """One effect's interval, its middle, and its number at the end that is farther from 0, clear of the line there."""
    colour, right = BLUE if effect.moves else GREY, effect.effect >= 0
    told = f"{name}<br>{effect.effect:+.4g}, 95 % interval {effect.low:.4g} to {effect.high:.4g}, p = {effect.p:.2g}"
    symbol = {"color": colour, "symbol": "circle" if effect.moves else "circle-open", "size": 9}
    draw(
        chart, where, x=[effect.effect / scale], y=[y], mode="markers", marker=symbol,
        error_x={
            "array": [(effect.high - effect.effect) / scale], "arrayminus": [(effect.effect - effect.low) / scale],
            "symmetric": False, "color": colour, "width": 0, "thickness": 2,
        },
        told=told,
    )  # fmt: skip
    end, words = effect.high if right else effect.low, f"{effect.effect:+.2f}" if effect.effect else "0"
    side = "left" if right else "right"
    note(chart, where, end / scale, y, words, colour, xanchor=side, xshift=5 if right else -5)


def _effect(name: str, table: pd.DataFrame) -> str:
    """ "kernel: 11 to 7" where the table knows the levels."""
    levels = table.attrs.get("levels", {}).get(name)
    if levels is None or any(isinstance(v, bool) for v in levels):
        return name.replace(" x ", " × ")
    return f"{name}: {levels[0]} to {levels[1]}"


def ablation_figure(ablation: Ablation) -> Chart:
    """Error of each variant, a dot for each seed, beside the paper's for the same change (Table 3): a chart."""
    from ..experiments.variants import PAPER

    table, runs, budget = ablation.table(), ablation.runs, ablation.budget
    names = list(table.index)[::-1]
    here_title = f"here: {budget['base']} on {budget['images']}, top-1 error, %"
    titles = here_title, "the paper: ImageNet, top-5 error, %"
    chart = new_chart(1, 2, titles=titles, height=34 * len(names) + 140, shared_yaxes=True)
    here, paper = (1, 1), (1, 2)
    errors, trained = table.error[names], table.train_error[names]
    told = "%{y}: %{x:.1f} % on validation pictures"
    bars: Style = {"orientation": "h", "marker_color": faded(BLUE, 0.4), "width": 0.6, "told": told}
    draw(chart, here, "validation, mean", "bar", x=errors, y=names, **bars)
    told = "%{y}: %{x:.1f} % on training pictures"
    bar = {"symbol": "line-ns-open", "color": BLACK, "size": 14, "line": {"width": 2}}
    draw(chart, here, "training", x=trained, y=names, mode="markers", marker=bar, told=told)
    told = "%{y}, seed %{customdata}: %{x:.1f} %"
    seeds: Style = {"x": 100 - runs.top1, "y": runs.variant, "customdata": runs.seed, "told": told}
    ring = {"symbol": "circle-open", "color": BLUE, "size": 8, "line": {"width": 1.5}}
    draw(chart, here, "each seed", mode="markers", marker=ring, **seeds)
    if "full" in names:
        mark(chart, here, x=float(table.error["full"]))
    networks = ("AlexNet", ORANGE, "square"), ("ZFNet", BLUE, "diamond")
    for column, (network, colour, symbol) in enumerate(networks):
        told = f"{network}, %{{y}}: %{{x:.1f}} %"
        errors = {name: PAPER[name][column] for name in names if name in PAPER}
        known = {name: error for name, error in errors.items() if error is not None}
        style: Style = {"mode": "markers", "marker": {"color": colour, "symbol": symbol, "size": 8}}
        name, x = f"{network}, in the paper", list(known.values())
        draw(chart, paper, name, x=x, y=list(known), told=told, **style)
        mark(chart, paper, colour=colour, x=PAPER["full"][column] or math.nan)
    chart.update_yaxes(categoryorder="array", categoryarray=names, showgrid=False)
    return chart.update_xaxes(rangemode="tozero")


def transfer_figure(transfer: Transfer, layer: str | None = None) -> Chart:
    """Accuracy against layer (Table 7) and against pictures per class (Tables 4, 5), with sd over splits: a chart.

    Args:
        layer: of the second panel; default: the one that is best on average, for the trained network.
    """
    scores = transfer.scores
    most = scores.per_class.max()
    trained = scores[scores.features == "trained"]
    layers = list(trained.layer.unique())
    best = trained.groupby("layer", sort=False).accuracy.mean().idxmax() if layer is None else layer
    what = f"{transfer.model}, linear {transfer.classifier} on {transfer.train}"
    titles = (f"{most} pictures per class, by layer", f"features of {best}, by training pictures per class")
    title = f"{what}: mean accuracy over classes, %"
    chart = new_chart(1, 2, title=title, titles=titles, height=420, shared_yaxes=True)
    for kind, (colour, symbol, dash) in FEATURE_STYLES.items():
        part = scores[scores.features == kind]
        if not len(part):
            continue
        at_most = part[part.per_class == most].groupby("layer").accuracy
        style: Style = {"line": {"color": colour, "dash": dash}, "marker": {"symbol": symbol, "size": 8}}
        told = f"{kind}, %{{x}}: %{{y:.1f}} %, sd %{{error_y.array:.1f}}"
        style |= {"mode": "lines+markers", "told": told}
        if kind in ("trained", "random weights"):
            mean, sd = at_most.mean()[layers], at_most.std()[layers]
            draw(chart, (1, 1), kind, x=layers, y=mean, error_y=_error(sd), **style)
            part = part[part.layer == best]
        else:  # features of no layer
            mark(chart, (1, 1), "", colour, dash, y=float(at_most.mean().iloc[0]))
        counts = part.groupby("per_class").accuracy
        mean = counts.mean()
        draw(chart, (1, 2), kind, x=list(mean.index), y=mean, error_y=_error(counts.std()), **style)
    for column in (1, 2):
        mark(chart, (1, column), "guessing" * (column == 1), RED, y=transfer.chance)
    counts = [int(n) for n in sorted(scores.per_class.unique())]
    if len(counts) > 1 and counts[-1] > 4 * counts[0]:
        chart.update_xaxes(type="log", row=1, col=2)
    chart.update_xaxes(tickvals=counts, ticktext=[str(n) for n in counts], row=1, col=2)
    return chart.update_yaxes(range=[0, 103])


def _error(sd: pd.Series) -> dict[str, object]:
    return {"array": sd, "thickness": 1, "width": 3}


def ensemble_figure(ensembles: Ensemble | Sequence[Ensemble]) -> Chart:
    """Top-1 error and loss against how many networks are averaged, a dot for each combination (Table 2): a chart.

    The axes do not begin at 0.

    Args:
        ensembles: for one crop and for ten, say.
    """
    chart = new_chart(1, 2, titles=("top-1 error, %", "cross-entropy, nats"))
    dashes = ("solid", "dash", "dot") * 3
    for one, colour, dash in zip(one_or_several(ensembles), PALETTE, dashes, strict=False):
        table, means = one.table(), one.by_size()
        name = f"{one.crops} crop{'s' if one.crops > 1 else ''}"
        for where, column in (((1, 1), "top1_error"), ((1, 2), "loss")):
            told = f"{name}, %{{customdata}}: %{{y:.4g}}"
            dots: Style = {"mode": "markers", "marker": {"color": colour, "size": 6, "opacity": 0.4}}
            data = {"x": table.networks, "y": table[column], "customdata": list(table.index), "told": told}
            draw(chart, where, name, **data, **dots)
            told = f"{name}, mean over all %{{x}}: %{{y:.4g}}"
            line: Style = {"line": {"color": colour, "dash": dash}, "mode": "lines+markers", "told": told}
            draw(chart, where, f"{name}, mean", x=list(means.index), y=means[column], **line)
    return chart.update_xaxes(title_text="networks averaged", dtick=1)
