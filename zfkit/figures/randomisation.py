"""Figures of the sanity checks."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ZfkitError
from ..experiments.randomisation import MEASURES
from .pictures import _hwc, signed_to_rgb
from .style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, _legend_below, new_figure, show_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..experiments.randomisation import SanityChecks


RULE_COLOURS = {"deconvnet": BLUE, "guided": ORANGE, "gradient": GREEN}


def sanity_figure(found: SanityChecks, layer: str) -> Figure:
    """How much of a layer's projections survives each change: three measures, mean and sd over units, by rule.

    The grey band is what unrelated units score: from the rule with the lowest mean to that with the highest.
    """
    table = found.table(layer)
    untrained = found.untrained(layer)
    keys = [key[2:] for key in table.index if key[1] == found.rules[0]]
    redrawn = [weights for condition, weights in keys if condition == "down to"]
    rows = [(c, "") for c in SANITY_ROWS if (c, "") in keys]
    rows += [("down to", w) for w in redrawn]
    names = [SANITY_ROWS[c] if c in SANITY_ROWS else _redrawn(layer, w, untrained) for c, w in rows]
    figure, panels = new_figure(1, 3, size=(9, 1.4 + 0.34 * len(rows)), sharey=True)
    for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        floor = [float(table.loc[(layer, r, "unrelated", ""), measure]) for r in found.rules]
        axes.axvspan(min(floor), max(floor), color=GREY, alpha=0.3, linewidth=0)
        axes.axvline(sum(floor) / len(floor), color=GREY, linewidth=1)
        for i, rule in enumerate(found.rules):
            part = table.loc[[(layer, rule, *row) for row in rows]]
            y = [n + 0.22 * (i - (len(found.rules) - 1) / 2) for n in range(len(rows))]
            axes.errorbar(
                part[measure], y, xerr=part[f"{measure}_sd"], fmt="o", markersize=4, elinewidth=1.2,
                color=RULE_COLOURS[rule], label=rule,
            )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlim(min(-0.15, axes.get_xlim()[0]), 1.05)
    panels[0].set_yticks(range(len(rows)), names, fontsize=9)
    panels[0].invert_yaxis()
    _legend_below(figure, panels[0])
    units = int(table.units.max())
    figure.suptitle(
        f"{found.model} {layer}: likeness to the trained network's projection ({units} units; grey: unrelated units)",
        fontsize=11,
    )  # fmt: skip
    return figure


SANITY_ROWS = {
    "other channel": "other channel",
    "other picture": "other picture",
    "other switches": "other picture's switches",
    "centre switches": "switches at the middle",
    "random switches": "switches at random",
}


def _redrawn(layer: str, weights: str, untrained: str) -> str:
    if weights == layer:
        return f"weights of {layer} redrawn"
    return f"{layer} to {weights} redrawn" + (" (untrained)" if weights == untrained else "")


def sanity_sheet(
    found: SanityChecks, layer: str, unit: int = 0, conditions: Sequence[tuple[str, str]] | None = None
) -> Figure:
    """One unit's projections: a row for each rule, a column for each change, the photo first.

    Args:
        unit: one of those whose projections were kept.
        conditions: pairs (condition, layer of the weights or ""); default: trained, other channel, other picture,
            other switches, and all weights redrawn. Each projection is on its own scale, as in the atlas.

    Raises LayerError for a layer that was not looked at, ZfkitError for a unit or condition that was not kept.
    """
    untrained = found.untrained(layer)
    shown = list(conditions or [
        ("trained", ""), ("other channel", ""), ("other picture", ""), ("other switches", ""), ("down to", untrained),
    ])  # fmt: skip
    kept = [key[2:] for key in found.examples if key[:2] == (layer, found.rules[0])]
    if conditions is None:
        shown = [c for c in shown if c in kept]
    for one in shown:
        if one not in kept:
            raise ZfkitError(f"{layer!r} has no projections for {one}; there are {', '.join(map(str, kept))}")
    if not 0 <= unit < len(found.photos[layer]):
        raise ZfkitError(f"unit must be 0 to {len(found.photos[layer]) - 1}, those kept, not {unit!r}")
    rows, columns = len(found.rules), 1 + len(shown)
    figure, axes = new_figure(rows, columns, size=(9, 0.6 + 9 / columns * rows), squeeze=False)
    part = found.pictures
    told = part[(part.layer == layer) & (part.unit == unit)].iloc[0]
    for i, rule in enumerate(found.rules):
        show_picture(axes[i, 0], _hwc(found.photos[layer][unit]))
        where = {"ha": "center", "va": "center", "transform": axes[i, 0].transAxes}
        axes[i, 0].text(-0.08, 0.5, rule, rotation=90, fontsize=9, **where)
        for j, (condition, weights) in enumerate(shown, 1):
            name = condition if condition != "down to" else _redrawn(layer, weights, untrained)
            title = textwrap.fill(name, 15) if i == 0 else ""
            projection = found.examples[layer, rule, condition, weights][unit]
            show_picture(axes[i, j], _hwc(signed_to_rgb(projection)))
            axes[i, j].set_title(title, fontsize=9)
    axes[0, 0].set_title("what the unit sees", fontsize=9)
    figure.suptitle(f"{found.model}, {layer}, map {told.channel}", fontsize=11)
    return figure


def sanity_layers_figure(found: SanityChecks) -> Figure:
    """Across layers: signed rank correlation after each of four changes, a panel for each rule; unrelated in grey."""
    figure, panels = new_figure(1, len(found.rules), size=(9, 3.2), sharey=True, squeeze=False)
    x = range(len(found.layers))
    shown = [
        ("other channel", "other channel", ORANGE), ("other picture", "other picture", PURPLE),
        ("down to", "untrained weights", BLUE), ("unrelated", "unrelated unit", GREY),
    ]  # fmt: skip
    for axes, rule in zip(panels[0], found.rules, strict=True):
        for k, (condition, label, colour) in enumerate(shown):
            keys = [
                (layer, rule, condition, found.untrained(layer) if condition == "down to" else "")
                for layer in found.layers
            ]
            part = found.table().loc[keys]
            style = {"fmt": "s--" if condition == "unrelated" else "o-", "capsize": 2, "markersize": 4}
            at = [i + 0.06 * (k - 1.5) for i in x]
            axes.errorbar(at, part.spearman, part.spearman_sd, color=colour, label=label, **style)
        axes.set_xticks(list(x), found.layers)
        axes.set_title(rule, fontsize=10)
    panels[0][0].set(ylabel="rank correlation\nwith the trained projection", ylim=(-0.4, 1.05))
    _legend_below(figure, panels[0][0])
    figure.suptitle(f"{found.model}: what is left of a projection (mean and sd over units)", fontsize=11)
    return figure


def photo_likeness_figure(found: SanityChecks) -> Figure:
    """Is a projection the photo again? Rank correlation with the photo's detail, trained and untrained, by layer."""
    figure, panels = new_figure(1, len(found.rules), size=(9, 2.9), sharey=True, squeeze=False)
    shown = [("trained", "trained", BLUE), ("down to", "untrained weights", ORANGE),
             ("other switches", "trained, other picture's switches", GREY)]  # fmt: skip
    for axes, rule in zip(panels[0], found.rules, strict=True):
        for k, (condition, label, colour) in enumerate(shown):
            table = found.table()
            keys = [
                (layer, rule, condition, found.untrained(layer) if condition == "down to" else "")
                for layer in found.layers
            ]
            there = [i for i, key in enumerate(keys) if key in table.index]
            part = table.loc[[keys[i] for i in there]]
            at = [i + 0.24 * (k - 1) for i in there]
            style = {"color": colour, "label": label, "error_kw": {"elinewidth": 1}}
            axes.bar(at, part.photo, 0.22, yerr=part.photo_sd, **style)
        axes.axhline(0, color=BLACK, linewidth=0.8)
        axes.set_xticks(range(len(found.layers)), found.layers)
        axes.set_title(rule, fontsize=10)
    panels[0][0].set(ylabel="rank correlation\nwith the photo's detail")
    _legend_below(figure, panels[0][0])
    figure.suptitle(
        f"{found.model}: how much of the photo is in a projection (mean and sd over units)", fontsize=11
    )
    return figure
