"""Figures of the sanity checks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..checks import whole_number
from ..errors import ZfkitError
from ..images.colour import signed_to_rgb
from .pictures import to_picture
from .style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, legend_below, new_figure, show_picture

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from ..experiments.randomisation import SanityChecks

RULE_COLOURS = {"deconvnet": BLUE, "guided": ORANGE, "gradient": GREEN}
SANITY_ROWS = {
    "other channel": "other channel",
    "other picture": "other picture",
    "other switches": "other picture's switches",
    "centre switches": "switches at the middle",
    "random switches": "switches at random",
}


def sanity_figure(checks: SanityChecks, layer: str) -> Figure:
    """How much of a layer's projections survives each change: three measures, mean and sd over units, by rule.

    The grey band is what unrelated units score: from the rule with the lowest mean to that with the highest.
    """
    from ..experiments.randomisation import MEASURES

    table = checks.table(layer)
    rules, untrained = checks.rules, checks.untrained(layer)
    keys = [key[2:] for key in table.index if key[1] == rules[0]]
    rows = {(c, ""): name for c, name in SANITY_ROWS.items() if (c, "") in keys}
    rows |= {key: _redrawn(layer, key[1], untrained) for key in keys if key[0] == "down to"}
    figure, panels = new_figure(1, 3, size=(9, 1.4 + 0.34 * len(rows)), sharey=True)
    for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        floor = [float(table.loc[(layer, r, "unrelated", ""), measure]) for r in rules]
        axes.axvspan(min(floor), max(floor), color=GREY, alpha=0.3, linewidth=0)
        axes.axvline(sum(floor) / len(floor), color=GREY, linewidth=1)
        for i, rule in enumerate(rules):
            part = table.loc[[(layer, rule, *row) for row in rows]]
            y = [n + 0.22 * (i - (len(rules) - 1) / 2) for n in range(len(rows))]
            style = {"fmt": "o", "markersize": 4, "elinewidth": 1.2, "color": RULE_COLOURS[rule]}
            axes.errorbar(part[measure], y, xerr=part[f"{measure}_sd"], label=rule, **style)
        axes.set_title(title, fontsize=10)
        axes.set_xlim(min(-0.15, axes.get_xlim()[0]), 1.05)
    panels[0].set_yticks(range(len(rows)), rows.values(), fontsize=9)
    panels[0].invert_yaxis()
    legend_below(figure, panels[0], fontsize=9)
    units = f"{int(table.units.max())} units; grey: unrelated units"
    figure.suptitle(
        f"{checks.model} {layer}: likeness to the trained network's projection ({units})", fontsize=11
    )
    return figure


def _redrawn(layer: str, weights: str, untrained: str) -> str:
    if weights == layer:
        return f"weights of {layer} redrawn"
    return f"{layer} to {weights} redrawn" + (" (untrained)" if weights == untrained else "")


def sanity_sheet(
    checks: SanityChecks, layer: str, unit: int = 0, conditions: Sequence[tuple[str, str]] | None = None
) -> Figure:
    """One unit's projections: a row for each rule, a column for each change, the photo first.

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


def sanity_layers_figure(checks: SanityChecks) -> Figure:
    """Across layers: signed rank correlation after each of four changes, a panel for each rule; unrelated in grey."""
    changes = {
        "other channel": ("other channel", ORANGE),
        "other picture": ("other picture", PURPLE),
        "down to": ("untrained weights", BLUE),
        "unrelated": ("unrelated unit", GREY),
    }
    figure, panels = new_figure(1, len(checks.rules), size=(9, 3.2), sharey=True, squeeze=False)
    for axes, k, condition, x, part in _by_layer(checks, panels[0], changes):
        label, colour = changes[condition]
        style = {"fmt": "s--" if condition == "unrelated" else "o-", "capsize": 2, "markersize": 4}
        at = [i + 0.06 * (k - 1.5) for i in x]
        axes.errorbar(at, part.spearman, part.spearman_sd, color=colour, label=label, **style)
    panels[0][0].set(ylabel="rank correlation\nwith the trained projection", ylim=(-0.4, 1.05))
    legend_below(figure, panels[0][0], fontsize=9)
    figure.suptitle(f"{checks.model}: what is left of a projection (mean and sd over units)", fontsize=11)
    return figure


def photo_likeness_figure(checks: SanityChecks) -> Figure:
    """Is a projection the photo again? Rank correlation with the photo's detail, trained and untrained, by layer."""
    changes = {
        "trained": ("trained", BLUE),
        "down to": ("untrained weights", ORANGE),
        "other switches": ("trained, other picture's switches", GREY),
    }
    figure, panels = new_figure(1, len(checks.rules), size=(9, 2.9), sharey=True, squeeze=False)
    for axes, k, condition, x, part in _by_layer(checks, panels[0], changes):
        label, colour = changes[condition]
        at = [i + 0.24 * (k - 1) for i in x]
        axes.bar(
            at, part.photo, 0.22, yerr=part.photo_sd, color=colour, label=label, error_kw={"elinewidth": 1}
        )
    for axes in panels[0]:
        axes.axhline(0, color=BLACK, linewidth=0.8)
    panels[0][0].set(ylabel="rank correlation\nwith the photo's detail")
    legend_below(figure, panels[0][0], fontsize=9)
    title = f"{checks.model}: how much of the photo is in a projection (mean and sd over units)"
    figure.suptitle(title, fontsize=11)
    return figure


def _by_layer(
    checks: SanityChecks, panels: Sequence[Any], conditions: Iterable[str]
) -> Iterator[tuple[Any, int, str, list[int], pd.DataFrame]]:
    """A panel for each rule, and in it for each condition the layers (by number) that have it, with their rows."""
    table = checks.table()
    for axes, rule in zip(panels, checks.rules, strict=True):
        for k, condition in enumerate(conditions):
            keys = [
                (layer, rule, condition, checks.untrained(layer) if condition == "down to" else "")
                for layer in checks.layers
            ]
            x = [i for i, key in enumerate(keys) if key in table.index]
            yield axes, k, condition, x, table.loc[[keys[i] for i in x]]
        axes.set_xticks(range(len(checks.layers)), checks.layers)
        axes.set_title(rule, fontsize=10)
