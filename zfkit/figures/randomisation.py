"""Figures of the sanity checks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..checks import whole_number
from ..errors import ZfkitError
from ..images.colour import signed_to_rgb
from .charts import Where, draw, faded, mark, new_chart
from .pictures import to_picture
from .style import BLACK, GREY, RULE_COLOURS, new_figure, show_picture

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as Chart

    from ..deconv.rules import Rule
    from ..experiments.randomisation import SanityChecks

SANITY_ROWS = {
    "other channel": "other channel",
    "other picture": "other picture",
    "other switches": "other picture's switches",
    "centre switches": "switches at the middle",
    "random switches": "switches at random",
}


def sanity_figure(checks: SanityChecks, layer: str) -> Chart:
    """How much of a layer's projections survives each change: three measures, mean and sd over units, by rule: a chart.

    The grey band is what unrelated units score: from the rule with the lowest mean to that with the highest.
    """
    from ..experiments.randomisation import MEASURES

    table = checks.table(layer)
    rules, untrained = checks.rules, checks.untrained(layer)
    keys = [key[2:] for key in table.index if key[1] == rules[0]]
    rows = {(c, ""): name for c, name in SANITY_ROWS.items() if (c, "") in keys}
    rows |= {key: _redrawn(layer, key[1], untrained) for key in keys if key[0] == "down to"}
    units = f"mean and sd of {int(table.units.max())} units; grey: unrelated units"
    title = f"{checks.model} {layer}: likeness to the trained network's projection ({units})"
    size = {"height": 40 * len(rows) + 170, "shared_yaxes": True}
    chart = new_chart(1, 3, title=title, titles=list(MEASURES.values()), **size)
    for column, measure in enumerate(MEASURES, start=1):
        floor = [float(table.loc[(layer, r, "unrelated", ""), measure]) for r in rules]
        place = {"row": 1, "col": column, "line_width": 0, "layer": "below", "exclude_empty_subplots": False}
        chart.add_vrect(x0=min(floor), x1=max(floor), fillcolor=GREY, opacity=0.3, **place)
        mark(chart, (1, column), x=sum(floor) / len(floor), dash="solid")
        for i, rule in enumerate(rules):
            part = table.loc[[(layer, rule, *row) for row in rows]]
            y = [n + 0.22 * (i - (len(rules) - 1) / 2) for n in range(len(rows))]
            told = f"{rule}, %{{customdata}}<br>{MEASURES[measure]}: %{{x:.3f}}, sd %{{error_x.array:.3f}}"
            draw(
                chart, (1, column), rule, x=part[measure], y=y, mode="markers", told=told,
                marker={"color": RULE_COLOURS[rule], "size": 7}, customdata=list(rows.values()),
                error_x={"array": part[f"{measure}_sd"], "thickness": 1.2, "width": 0},
            )  # fmt: skip
    ticks = {"tickvals": list(range(len(rows))), "ticktext": list(rows.values())}
    return chart.update_yaxes(autorange="reversed", **ticks).update_xaxes(range=[-0.3, 1.05])


def _redrawn(layer: str, weights: str, untrained: str) -> str:
    if weights == layer:
        return f"weights of {layer} redrawn"
    return f"{layer} to {weights} redrawn" + (" (untrained)" if weights == untrained else "")


def sanity_sheet(
    checks: SanityChecks, layer: str, unit: int = 0, conditions: Sequence[tuple[str, str]] | None = None
) -> Figure:
    """One unit's projections: a row for each rule, a column for each change, the photo first: a plate.

    Args:
        unit: one of those whose projections were kept.
        conditions: pairs (condition, layer of the weights or ""); default: trained, other channel, other picture,
            other switches, and all weights redrawn. Each projection is on its own scale, as in the atlas.

    Raises LayerError for a layer that was not looked at, ZfkitError for a unit or condition that was not kept.
    """
    untrained = checks.untrained(layer)
    kept = [key[2:] for key in checks.examples if key[:2] == (layer, checks.rules[0])]
    if conditions is None:
        usual = ("trained", "other channel", "other picture", "other switches")
        conditions = [c for c in [*((name, "") for name in usual), ("down to", untrained)] if c in kept]
    if missing := [c for c in conditions if c not in kept]:
        names = ", ".join(map(str, kept))
        raise ZfkitError(f"{layer!r} has no projections for {missing[0]}; there are {names}")
    whole_number(unit, "unit, of those kept,", 0, len(checks.photos[layer]) - 1)
    rows, columns = len(checks.rules), 1 + len(conditions)
    figure, panels = new_figure(rows, columns, size=(9, 0.6 + 9 / columns * rows), squeeze=False)
    for axes, rule in zip(panels, checks.rules, strict=True):
        show_picture(axes[0], to_picture(checks.photos[layer][unit]))
        where = {"ha": "center", "va": "center", "transform": axes[0].transAxes}
        axes[0].text(-0.08, 0.5, rule, rotation=90, fontsize=9, **where)
        for panel, (condition, weights) in zip(axes[1:], conditions, strict=True):
            projection = checks.examples[layer, rule, condition, weights][unit]
            show_picture(panel, to_picture(signed_to_rgb(projection)))
    panels[0, 0].set_title("what the unit sees", fontsize=9)
    for panel, (condition, weights) in zip(panels[0, 1:], conditions, strict=True):
        name = _redrawn(layer, weights, untrained) if condition == "down to" else condition
        panel.set_title(textwrap.fill(name, 15), fontsize=9)
    units = checks.pictures
    channel = units[(units.layer == layer) & (units.unit == unit)].channel.iloc[0]
    figure.suptitle(f"{checks.model}, {layer}, map {channel}", fontsize=11)
    return figure


def sanity_layers_figure(checks: SanityChecks) -> Chart:
    """Across layers: signed rank correlation after each of four changes, a panel for each rule: a chart.

    In the rule's colour what changes the input or the unit; in grey the controls, whose weights or unit are others.
    """
    changes = {
        "other channel": ("other channel", "circle", "solid"),
        "other picture": ("other picture", "diamond-open", "solid"),
        "down to": ("untrained weights", "square", "solid"),
        "unrelated": ("unrelated unit", "square-open", "dash"),
    }
    title = f"{checks.model}: what is left of a projection (mean and sd over units)"
    chart = new_chart(1, len(checks.rules), title=title, titles=checks.rules, shared_yaxes=True)
    for where, rule, k, condition, x, part in _by_layer(checks, changes):
        name, symbol, dash = changes[condition]
        colour = RULE_COLOURS[rule] if condition.startswith("other") else GREY
        told = f"{rule}, {name}, %{{customdata}}<br>rank correlation %{{y:.3f}}, sd %{{error_y.array:.3f}}"
        draw(
            chart, where, name, x=[i + 0.06 * (k - 1.5) for i in x], y=part.spearman, mode="lines+markers",
            line={"color": colour, "dash": dash}, marker={"symbol": symbol, "size": 8},
            error_y={"array": part.spearman_sd, "thickness": 1, "width": 3},
            customdata=[checks.layers[i] for i in x], told=told,
        )  # fmt: skip
    chart.update_yaxes(title_text="rank correlation with the trained projection", row=1, col=1)
    chart.update_xaxes(tickvals=list(range(len(checks.layers))), ticktext=checks.layers)
    return chart


def photo_likeness_figure(checks: SanityChecks) -> Chart:
    """Is a projection the photo again? Rank correlation with the photo's detail, by layer, a panel a rule: a chart.

    In the rule's colour the trained network's projections, pale with another picture's switches; grey: untrained.
    """
    changes = {
        "trained": "trained",
        "down to": "untrained weights",
        "other switches": "trained, other picture's switches",
    }
    title = f"{checks.model}: how much of the photo is in a projection (mean and sd over units)"
    chart = new_chart(1, len(checks.rules), title=title, titles=checks.rules, shared_yaxes=True)
    for where, rule, k, condition, x, part in _by_layer(checks, changes):
        name, own = changes[condition], RULE_COLOURS[rule]
        colour = {"trained": own, "down to": GREY, "other switches": faded(own, 0.4)}[condition]
        told = f"{rule}, {name}, %{{customdata}}<br>rank correlation %{{y:.3f}}, sd %{{error_y.array:.3f}}"
        draw(
            chart, where, name, "bar", x=[i + 0.24 * (k - 1) for i in x], y=part.photo, width=0.22,
            marker_color=colour, error_y={"array": part.photo_sd, "thickness": 1, "width": 0},
            customdata=[checks.layers[i] for i in x], told=told,
        )  # fmt: skip
    chart.update_yaxes(title_text="rank correlation with the photo's detail", row=1, col=1)
    chart.update_xaxes(tickvals=list(range(len(checks.layers))), ticktext=checks.layers)
    return chart.update_yaxes(zeroline=True, zerolinecolor=BLACK)


def _by_layer(
    checks: SanityChecks, conditions: Iterable[str]
) -> Iterator[tuple[Where, Rule, int, str, list[int], pd.DataFrame]]:
    """A panel for each rule, and in it for each condition the layers (by number) that have it, with their rows."""
    table = checks.table()
    for column, rule in enumerate(checks.rules, start=1):
        for k, condition in enumerate(conditions):
            keys = [
                (layer, rule, condition, checks.untrained(layer) if condition == "down to" else "")
                for layer in checks.layers
            ]
            x = [i for i, key in enumerate(keys) if key in table.index]
            yield (1, column), rule, k, condition, x, table.loc[[keys[i] for i in x]]
