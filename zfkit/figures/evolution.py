"""Figures of features that form during training (Fig. 4)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ..errors import LayerError, ZfkitError, unknown
from ..experiments.evolution import convergence, settled
from .pictures import PERCENTILE, signed_to_rgb
from .style import GREY, _shades, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ..experiments.evolution import Evolution, LayerEvolution


def evolution_figure(
    found: Evolution, layers: Sequence[str] | None = None, *, scale: Literal["row", "picture"] = "row"
) -> Figure:
    """The paper's Fig. 4: a block for each layer, a row for each map, a column for each snapshot.

    Each picture is the projection of the map's strongest activation then; grey is 0, and a map that is active on no
    picture is left grey. An orange bar to the left of a picture: another picture excites the map most than at the
    snapshot before.

    Args:
        layers: which of them; None for all.
        scale: "row" for one symmetric scale for each row, its 99.5th percentile of |values|; "picture" for one each,
            which shows early, weak projections, too.

    Raises LayerError for a layer that was not looked at.
    """
    names = list(found.layers if layers is None else layers)
    shown = [(name, found[name]) for name in names if len(found[name].channels)]
    if not shown:
        raise LayerError("no feature maps were chosen to be shown: give channels, or leave them to chance")
    E = len(found.epochs)
    columns = 2 if len(shown) > 1 and E <= 14 else 1
    sheets = [evolution_sheet(layer, scale) for _, layer in shown]
    wide = 8.9 / columns - 0.45
    rows = [range(i, min(i + columns, len(shown))) for i in range(0, len(shown), columns)]
    heights = [0.5 + max(len(sheets[i]) / sheets[i].shape[1] for i in row) * wide for row in rows]
    notes = [
        f"{found.name}: each map's strongest activation over {found.count:,} pictures ({found.images}), projected.",
        "Grey is 0; each row has one scale of its own." if scale == "row" else "Grey is 0; each picture has a scale of "
        "its own, so brightness does not compare.",
        "Orange bar: the strongest picture is another than at the snapshot before.",
        *(f"Missing: {told}." for told in found.missing),
    ]  # fmt: skip
    if E == 1:
        notes[2] = "There is one snapshot, so nothing to compare it with."
    corner = len(shown) % columns  # an empty place at the end has room for the notes
    told = notes if corner else [" ".join(notes)]
    lines = [line for note in told for line in textwrap.wrap(note, 62 if corner else 140)]
    below = 0.0 if corner else 0.15 * len(lines) + 0.1
    total = sum(heights) + below
    figure, all_axes = new_figure(
        len(rows), columns, size=(9, total), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axes in all_axes.flat:
        axes.set_axis_off()
    for axes, (name, layer), sheet in zip(all_axes.flat, shown, sheets, strict=False):
        axes.set_axis_on()
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.imshow(sheet, interpolation="nearest" if layer.projection.shape[-1] < 40 else "antialiased")
        step_x, step_y = sheet.shape[1] / E, (len(sheet) + SHEET_GAP) / len(layer.channels)
        axes.set_xticks([(i + 0.5) * step_x + SHEET_GAP / 2 for i in range(E)], map(str, found.epochs))
        axes.set_yticks([(i + 0.5) * step_y for i in range(len(layer.channels))], layer.channels.tolist())
        axes.tick_params(length=0, labelsize=7, pad=1)
        axes.set_title(f"{name}: {layer.projection.shape[-1]} px", loc="left", fontsize=9, pad=3)
        axes.set_xlabel("after epoch", fontsize=8, labelpad=1)
        axes.set_ylabel("map", fontsize=8, labelpad=1)
        axes.set_anchor("NW")
    words: dict[str, Any] = {"fontsize": 7.5, "color": "#444444", "linespacing": 1.4}
    if corner:
        all_axes[-1, -1].text(0, 1, "\n".join(lines), va="top", transform=all_axes[-1, -1].transAxes, **words)
    else:
        figure.text(0.01, 0.05 / total, "\n".join(lines), va="bottom", **words)
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0, below / total, 1, 1 - below / total))
    return figure


# px between the pictures of an evolution; to its left, a picture's bar if it is not the one of the snapshot before
SHEET_GAP = 6


CHANGED = "#E69F00"


def evolution_sheet(
    layer: LayerEvolution, scale: Literal["row", "picture"] = "row", tile: int = 64
) -> np.ndarray:
    """One block of Fig. 4, uint8 (h, w, 3): a row of up to `tile` px for each map, a column for each snapshot."""
    if scale not in ("row", "picture"):
        raise ZfkitError(unknown("scale", scale, ["row", "picture"]))
    M, E = layer.projection.shape[:2]
    S = layer.projection.shape[-1]
    factor = max(1, tile // S)
    side = S * factor if factor > 1 else min(S, tile)
    step = side + SHEET_GAP
    sheet = np.full((M * step - SHEET_GAP, E * step, 3), 255, np.uint8)
    orange = [int(CHANGED[k : k + 2], 16) for k in (1, 3, 5)]
    active, changed = layer.active[layer.channels], layer.changed[layer.channels]
    for m, row in enumerate(evolution_rgb(layer, scale)):
        for e, picture in enumerate(row):
            top, left = m * step, e * step + SHEET_GAP
            sheet[top : top + side, left : left + side] = _brought_to(picture, side)
            if changed[m, e] and active[m, e]:
                sheet[top : top + side, left - SHEET_GAP + 1 : left - 1] = orange
    return sheet


def evolution_rgb(layer: LayerEvolution, scale: Literal["row", "picture"] = "row") -> Tensor:
    """Projections of a layer's maps as uint8 (M, E, 3, S, S): one symmetric scale for each row, or each picture."""
    projection = layer.projection * layer.active[layer.channels][:, :, None, None, None]
    if scale == "picture":
        return signed_to_rgb(projection)
    magnitude = projection.abs().flatten(1)
    # not torch.quantile, which refuses rows of more than 16 million numbers
    rows = np.percentile(magnitude.numpy(), PERCENTILE, axis=1)
    high = torch.from_numpy(np.where(rows > 0, rows, magnitude.amax(1).numpy())).to(projection.dtype)
    return signed_to_rgb(projection, high[:, None, None, None, None])


def _brought_to(picture: Tensor, side: int) -> np.ndarray:
    """uint8 (3, S, S) as (side, side, 3): pixels stay squares where it is enlarged."""
    from PIL import Image

    pixels = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
    if len(pixels) == side:
        return pixels
    how = Image.Resampling.NEAREST if len(pixels) < side else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((side, side), how))


def convergence_figure(
    found: Evolution | Sequence[Evolution], *, level: float = 0.9, lr_falls: Sequence[float] = ()
) -> Figure:
    """Numbers beside Fig. 4: distance, CKA and changed pictures over epochs, and when each layer settled.

    Of several runs lines are means and bands reach from the lowest to the highest. Below right: a dot for each
    run, by the layer's CKA; a line from the first to the third quartile of the maps, by each map's own similarity,
    with a tick at the median.

    Args:
        level: of the final similarity, at which a layer counts as settled; see `convergence`.
        lr_falls: epochs after which the learning rate fell, as dotted lines.
    """
    runs = [found] if not isinstance(found, Sequence) else list(found)
    first = runs[0]
    several = len(first.epochs) > 1
    table = convergence(runs, level) if several else None
    figure, panels = new_figure(2, 2, size=(9, 6.4))
    colours = _shades(len(first.layers))
    series = (
        (panels[0, 0], "distance", "distance to the final weights, first = 1", "distance, first = 1"),
        (panels[0, 1], "cka", "linear CKA with the last snapshot", "similarity, 0 to 1"),
        (panels[1, 0], "share_changed", "share of maps with another strongest picture", "share, 0 to 1"),
    )
    for axes, name, title, unit in series:
        for layer, colour in zip(first.layers, colours, strict=True):
            values = torch.stack([getattr(run[layer], name) for run in runs])
            axes.plot(first.epochs, values.mean(0), "o-", color=colour, markersize=3, label=layer)
            if len(runs) > 1:
                low, high = values.amin(0), values.amax(0)
                axes.fill_between(first.epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        for epoch in lr_falls:
            axes.axvline(epoch, color=GREY, linestyle=":", linewidth=1)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set(ylim=(0, 1.05), xlabel="epoch", ylabel=unit)
    panels[0, 1].axhline(level, color=GREY, linestyle="--", linewidth=1)
    panels[0, 0].legend(fontsize=8, ncols=2 if len(first.layers) > 4 else 1)
    last = panels[1, 1]
    if table is None:
        for axes, *_ in series[:2]:
            told = "one snapshot: nothing to compare with"
            axes.text(0.5, 0.5, told, ha="center", transform=axes.transAxes)
        last.set_axis_off()
        return figure
    for y, (layer, colour) in enumerate(zip(first.layers, colours, strict=True)):
        told = table.loc[layer]
        last.plot([told.map_q25, told.map_q75], [y + 0.18] * 2, color=colour, linewidth=5, alpha=0.35)
        last.plot([told["map"]] * 2, [y + 0.04, y + 0.32], color=colour, linewidth=2)
        dots = settled(first.epochs, torch.stack([run[layer].cka for run in runs]), level)
        last.plot(dots, [y - 0.18] * len(dots), "o", color=colour, markersize=6, alpha=0.8)
    for epoch in lr_falls:
        last.axvline(epoch, color=GREY, linestyle=":", linewidth=1)
    last.set_yticks(range(len(first.layers)), list(first.layers))
    last.invert_yaxis()
    last.set(xlim=(0, first.epochs[-1]), xlabel="epoch")
    last.set_title(f"settled: similarity stays at {level:g} or above", loc="left", fontsize=10)
    last.grid(axis="y", visible=False)
    return figure
