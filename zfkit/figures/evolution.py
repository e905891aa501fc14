"""Figures of features that form during training (Fig. 4)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont

from ..checks import one_of
from ..errors import LayerError
from ..images.colour import full_scale, signed_to_rgb
from .charts import Style, band, draw, faded, mark, new_chart, note, shades
from .pictures import montage
from .style import ORANGE, new_figure, one_or_several

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as Chart
    from torch import Tensor

    from ..experiments.evolution import Evolution, LayerEvolution

# px between the pictures of an evolution; to its left, a picture's bar if it is not the one of the snapshot before
SHEET_GAP = 6
CHANGED = ORANGE

Scale = Literal["row", "picture"]
SCALES = {
    "row": "Grey is 0; each row has one scale of its own.",
    "picture": "Grey is 0; each picture has a scale of its own, so brightness does not compare.",
}


def evolution_rgb(layer: LayerEvolution, scale: Scale = "row") -> Tensor:
    """Projections of a layer's maps as uint8 (M, E, 3, S, S): one symmetric scale for each row, or each picture."""
    projection = layer.projection * layer.active[layer.channels][:, :, None, None, None]
    return signed_to_rgb(projection, full_scale(projection, axes=3 if scale == "picture" else 4))


def evolution_sheet(layer: LayerEvolution, scale: Scale = "row", tile: int = 64) -> np.ndarray:
    """One block of Fig. 4, uint8 (h, w, 3): a row of up to `tile` px for each map, a column for each snapshot."""
    one_of(scale, "scale", SCALES)
    M, E = layer.projection.shape[:2]
    S = layer.projection.shape[-1]
    side = max(tile // S * S, min(S, tile))  # enlarged by whole factors alone
    step = side + SHEET_GAP
    sheet = np.full((M * step - SHEET_GAP, E * step, 3), 255, np.uint8)
    pictures = evolution_rgb(layer, scale).flatten(0, 1)
    sheet[:, SHEET_GAP:] = np.asarray(montage(pictures, E, side, gap=SHEET_GAP))
    orange = ImageColor.getrgb(CHANGED)
    other = layer.changed[layer.channels] & layer.active[layer.channels]
    for m, e in other.nonzero().tolist():
        top, left = m * step, e * step
        sheet[top : top + side, left + 1 : left + SHEET_GAP - 1] = orange
    return sheet


def evolution_figure(
    evolution: Evolution, layers: Sequence[str] | None = None, *, scale: Scale = "row"
) -> Figure:
    """The paper's Fig. 4: a block for each layer, a row for each map, a column for each snapshot: a plate.

    Each picture is the projection of the map's strongest activation then; grey is 0, and a map that is active on no
    picture is left grey. An orange bar to the left of a picture: another picture excites the map most than at the
    snapshot before.

    Args:
        layers: which of them; None for all.
        scale: "row" for one symmetric scale for each row, its 99.5th percentile of |values|; "picture" for one each,
            which shows early, weak projections, too.

    Raises LayerError for a layer that was not looked at.
    """
    names = list(evolution.layers if layers is None else layers)
    blocks = {name: evolution[name] for name in names if len(evolution[name].channels)}
    if not blocks:
        raise LayerError("no feature maps were chosen to be shown: give channels, or leave them to chance")
    sheets = [evolution_sheet(layer, scale) for layer in blocks.values()]
    columns = 2 if len(blocks) > 1 and len(evolution.epochs) <= 14 else 1
    width = 8.9 / columns - 0.45  # of a block, in inches
    tall = [len(sheet) / sheet.shape[1] * width for sheet in sheets]
    heights = [0.5 + max(tall[i : i + columns]) for i in range(0, len(tall), columns)]
    corner = len(blocks) % columns > 0  # an empty place at the end has room for the notes
    notes = _notes(evolution, scale)
    paragraphs = notes if corner else [" ".join(notes)]
    lines = [line for text in paragraphs for line in textwrap.wrap(text, 62 if corner else 140)]
    below = 0.0 if corner else 0.15 * len(lines) + 0.1
    total = sum(heights) + below
    shape: dict[str, Any] = {"squeeze": False, "height_ratios": heights}
    figure, panels = new_figure(len(heights), columns, size=(9, total), **shape)
    for axes in panels.flat[len(blocks) :]:
        axes.set_axis_off()
    for axes, (name, layer), sheet in zip(panels.flat, blocks.items(), sheets, strict=False):
        _draw_block(axes, name, layer, sheet, evolution.epochs)
    words: dict[str, Any] = {"fontsize": 7.5, "color": "#444444", "linespacing": 1.4}
    if corner:
        panels[-1, -1].text(0, 1, "\n".join(lines), va="top", transform=panels[-1, -1].transAxes, **words)
    else:
        figure.text(0.01, 0.05 / total, "\n".join(lines), va="bottom", **words)
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0, below / total, 1, 1 - below / total))
    return figure


def _notes(evolution: Evolution, scale: Scale) -> list[str]:
    """What is to be known to read the figure."""
    count, images = evolution.count, evolution.images
    what = f"{evolution.name}: each map's strongest activation over {count:,} pictures ({images}), projected."
    bar = "Orange bar: the strongest picture is another than at the snapshot before."
    if len(evolution.epochs) == 1:
        bar = "There is one snapshot, so nothing to compare it with."
    return [what, SCALES[scale], bar, *(f"Missing: {words}." for words in evolution.missing)]


def _draw_block(
    axes: Any, name: str, layer: LayerEvolution, sheet: np.ndarray, epochs: Sequence[int]
) -> None:
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.imshow(sheet, interpolation="nearest" if layer.projection.shape[-1] < 40 else "antialiased")
    step_x, step_y = sheet.shape[1] / len(epochs), (len(sheet) + SHEET_GAP) / len(layer.channels)
    axes.set_xticks([(i + 0.5) * step_x + SHEET_GAP / 2 for i in range(len(epochs))], map(str, epochs))
    axes.set_yticks([(i + 0.5) * step_y for i in range(len(layer.channels))], layer.channels.tolist())
    axes.tick_params(length=0, labelsize=7, pad=1)
    axes.set_title(f"{name}: {layer.projection.shape[-1]} px", loc="left", fontsize=9, pad=3)
    axes.set_xlabel("after epoch", fontsize=8, labelpad=1)
    axes.set_ylabel("map", fontsize=8, labelpad=1)
    axes.set_anchor("NW")


def evolution_film(
    evolution: Evolution, layers: Sequence[str] | None = None, *, scale: Scale = "row", tile: int = 64
) -> list[Image.Image]:
    """Fig. 4 as a film: a picture for each snapshot, a line of maps for each layer, for `animated`.

    Of each map the projection of its strongest activation then, and below it the patch that it comes from, both up to
    `tile` px. layers, scale: as for `evolution_figure`.
    """
    names = list(evolution.layers if layers is None else layers)
    coloured = {name: evolution_rgb(evolution[name], scale) for name in names}
    font, head, left, gap = ImageFont.load_default(13), 22, 52, 10
    frames = []
    for e, epoch in enumerate(evolution.epochs):
        lines = []
        for name, rgb in coloured.items():
            pictures = torch.cat([rgb[:, e], evolution[name].photo[:, e]])
            lines.append(montage(pictures, len(rgb), tile))
        size = left + max(line.width for line in lines), head + sum(line.height + gap for line in lines) - gap
        frame, top = Image.new("RGB", size, "white"), head
        draw = ImageDraw.Draw(frame)
        draw.text((left, 2), f"after epoch {epoch}", "black", font)
        for name, line in zip(names, lines, strict=True):
            draw.text((0, top), name, "black", font)
            frame.paste(line, (left, top))
            top += line.height + gap
        frames.append(frame)
    return frames


def convergence_figure(evolutions: Evolution | Sequence[Evolution], *, level: float = 0.9) -> Chart:
    """Numbers beside Fig. 4: distance, CKA and changed pictures over epochs, and when each layer settled: a chart.

    Of several runs lines are means and bands reach from the lowest to the highest. Below right: a dot for each
    run, by the layer's CKA; a line from the first to the third quartile of the maps, by each map's own similarity,
    with a tick at the median. A click in the legend hides a layer, a double click shows it alone.

    level: of the final similarity, at which a layer counts as settled; see `convergence`.
    """
    from ..experiments.evolution import convergence, settled

    runs = one_or_several(evolutions)
    layers, epochs = list(runs[0].layers), runs[0].epochs
    titles = (
        "distance to the final weights, first = 1", "linear CKA with the last snapshot, 0 to 1",
        "share of maps with another strongest picture",
        f"settled at {level:g}: runs as dots, half of the maps as bars" if len(epochs) > 1 else "",
    )  # fmt: skip
    chart = new_chart(2, 2, titles=titles, height=640)
    panels = {"distance": (1, 1), "cka": (1, 2), "share_changed": (2, 1)}
    colours = dict(zip(layers, shades(len(layers)), strict=True))
    for layer, colour in colours.items():
        for column, where in panels.items():
            values = torch.stack([getattr(run[layer], column) for run in runs])
            if len(runs) > 1 and len(epochs) > 1:
                band(chart, where, epochs, values.amin(0), values.amax(0), colour, layer)
            told = f"{layer}, epoch %{{x}}: %{{y:.3f}}<br>{titles[list(panels).index(column)]}"
            style: Style = {"line_color": colour, "marker_size": 5, "mode": "lines+markers", "told": told}
            draw(chart, where, layer, x=list(epochs), y=values.mean(0).numpy(), **style)
    for where in panels.values():
        chart.update_yaxes(range=[0, 1.05], row=where[0], col=where[1])
    chart.update_xaxes(title_text="epoch")
    mark(chart, (1, 2), y=level)
    if len(epochs) == 1:
        for where in ((1, 1), (1, 2)):
            middle = {"xref": "x domain", "yref": "y domain", "xanchor": "center"}
            note(chart, where, 0.5, 0.5, "one snapshot: nothing to compare with", **middle)
        return chart.update_xaxes(visible=False, row=2, col=2).update_yaxes(visible=False, row=2, col=2)
    table = convergence(runs, level)
    for y, (layer, colour) in enumerate(colours.items()):
        row = table.loc[layer]
        quartiles: Style = {"mode": "lines", "line": {"color": faded(colour, 0.35), "width": 6}}
        draw(chart, (2, 2), x=[row.map_q25, row.map_q75], y=[y + 0.18] * 2, legendgroup=layer, **quartiles)
        told = f"{layer}: half of its maps settled by epoch {row['map']:.1f} ({row.map_q25:.1f} to {row.map_q75:.1f})"
        tick = {"symbol": "line-ns-open", "color": colour, "size": 9, "line": {"width": 2}}
        words: Style = {"mode": "markers", "marker": tick, "told": told}
        draw(chart, (2, 2), x=[row["map"]], y=[y + 0.18], legendgroup=layer, **words)
        dots = settled(epochs, torch.stack([run[layer].cka for run in runs]), level)
        told = f"{layer}, %{{customdata}}<br>its CKA settled at epoch %{{x:.1f}}"
        words = {"mode": "markers", "marker": {"color": colour, "size": 8, "opacity": 0.8}, "told": told}
        words |= {"customdata": [run.name for run in runs], "legendgroup": layer}
        draw(chart, (2, 2), x=dots.numpy(), y=[y - 0.18] * len(runs), **words)
    ticks = {"tickvals": list(range(len(layers))), "ticktext": layers, "showgrid": False}
    chart.update_yaxes(autorange="reversed", row=2, col=2, **ticks)
    return chart.update_xaxes(range=[0, epochs[-1]], row=2, col=2)
