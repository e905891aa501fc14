"""Figures of occlusion (Fig. 7), invariance (Fig. 5), correspondence (Table 1) and selectivity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import ImageColor

from ..images.colour import signed_to_rgb
from .charts import Style, Where, band, draw, faded, mark, new_chart, shades
from .pictures import montage, to_picture
from .style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALETTE,
    PURPLE,
    RED,
    SKY,
    YELLOW,
    legend_below,
    new_figure,
    one_or_several,
    panel_grid,
    panel_title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as Chart
    from torch import Tensor

    from ..experiments.correspondence import Correspondence
    from ..experiments.invariance import Invariance
    from ..experiments.occlusion import Elsewhere, Occlusion
    from ..experiments.selectivity import PoseVariation, Selectivity

PART_COLOURS = (SKY, ORANGE, YELLOW, PURPLE, GREEN, RED, BLUE)  # bright ones first: they lie on photographs
CLASS_NAMES = {"class": "labels", "photograph": "photographs"}
MOTIONS = {"shift": "shift down, px", "scale": "scale, times", "rotation": "rotation, degrees"}


def occlusion_figure(occlusion: Occlusion, elsewhere: Elsewhere | None = None) -> Figure:
    """The paper's Fig. 7 for one picture, `occlude`'s result and, with `project_elsewhere`'s, the rest of (c): a plate.

    Heat maps lie over the picture, each place at its square's centre, which comes no nearer to the border than
    half a square. The red line in a colour bar is the value without a square.
    """
    from matplotlib.patches import Rectangle

    o = occlusion
    H, W = o.image.shape[1:]
    figure, axes = new_figure(2, 3, size=(9, 6.4))
    photo, activity, probability, projections, pictures, labels = axes.flat

    def heat(axes: Any, text: str, values: Tensor, whole: float) -> None:
        high = max(whole, float(values.max()), 1e-12)
        shown = _over_picture(axes, o, text, values.float().numpy(), vmin=0, vmax=high, cmap="viridis")
        bar = figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.03)
        bar.ax.axhline(whole, color=RED, linewidth=2.5)
        bar.ax.tick_params(labelsize=8)

    def tiles(axes: Any, text: str, shown: Tensor) -> None:
        """Up to four pictures in a square, as large as they are; this picture's, the first, is framed."""
        columns = min(len(shown), 2)
        axes.imshow(montage(shown[:4], columns, max(H, W), gap=max(1, H // 32)))
        panel_title(axes, text)
        axes.set_axis_off()
        if len(shown) > 1:
            axes.add_patch(Rectangle((-0.5, -0.5), W, H, fill=False, edgecolor="black", linewidth=2.5))

    photo.imshow(to_picture(o.image), extent=(0, W, H, 0))
    colour = [v / 255 for v in o.colour]
    photo.add_patch(Rectangle((0, 0), o.size, o.size, facecolor=colour, edgecolor="white", linewidth=1.5))
    panel_title(photo, f"(a) with a square of {o.size} px")
    figure.suptitle(f"{o.model}, {o.layer}, map {o.channel}", fontsize=11)
    photo.set_axis_off()
    heat(activity, f"(b) activity of map {o.channel}", o.activity, o.whole_activity)
    projected, photos = o.projection[None].float().cpu(), o.image[None]
    if elsewhere is not None:
        projected = torch.cat([projected, elsewhere.projection.float().cpu()])
        photos = torch.cat([photos, elsewhere.photo])
    tiles(projections, f"(c) projection of map {o.channel}", signed_to_rgb(projected))
    tiles(pictures, f"(c) from {'these pictures' if elsewhere else 'this picture'}", photos)
    if o.probability is None or o.best is None or o.whole_probability is None:  # a network without classes
        probability.set_axis_off()
        labels.set_axis_off()
        return figure
    own = " (its top class)" if o.target_from == "model" else ""
    heat(probability, f"(d) P({o.class_name()}){own}", o.probability, o.whole_probability)
    _draw_best_classes(labels, o, o.best)
    return figure


def _over_picture(axes: Any, o: Occlusion, text: str, values: Any, **options: Any) -> Any:
    """Values (rows, columns[, 3]), each drawn at its square's centre over the paled picture."""
    H, W = o.image.shape[1:]
    pale = (255 - (255 - o.image.double().mean(0)) / 3).numpy()
    axes.imshow(pale, cmap="gray", vmin=0, vmax=255, extent=(0, W, H, 0))
    rows, columns = o.top.double() + o.size / 2, o.left.double() + o.size / 2
    step = o.stride / 2
    extent = [float(v) for v in (columns[0] - step, columns[-1] + step, rows[-1] + step, rows[0] - step)]
    shown = axes.imshow(values, extent=extent, **options)
    axes.set(xlim=(0, W), ylim=(H, 0))
    panel_title(axes, text)
    axes.set_axis_off()
    return shown


def _draw_best_classes(axes: Any, o: Occlusion, best: Tensor) -> None:
    """(e): the most probable class at each place; the commonest in colours, the others in grey."""
    from matplotlib.patches import Patch

    classes, counts = best.unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)[: len(PALETTE) - 1].tolist()
    colours = torch.full((*best.shape, 3), 0.55)
    handles = []
    for colour, i in zip(PALETTE, order, strict=False):
        colours[best == classes[i]] = torch.tensor(ImageColor.getrgb(colour)) / 255
        handles.append(Patch(color=colour, label=f"{o.class_name(int(classes[i]))}, {int(counts[i])}"))
    if len(classes) > len(order):
        rest = best.numel() - int(counts[order].sum())
        handles.append(Patch(color=GREY, label=f"{len(classes) - len(order)} others, {rest}"))
    _over_picture(axes, o, "(e) most probable class, places", colours.numpy())
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(-0.02, 0.0), ncol=2, fontsize=8, frameon=False,
        handlelength=1, columnspacing=1, labelspacing=0.3,
    )  # fmt: skip


def invariance_figure(
    results: Invariance | Sequence[Invariance], examples: Sequence[int] = (), names: Sequence[str] = ()
) -> Chart:
    """The paper's Fig. 5, a row for each motion; distances in a low and a high layer, and P(class): a chart.

    Args:
        results: one or several from `invariance`, of the same pictures and layers.
        examples: rows of the results to draw as coloured lines, beside the mean of all (black; the band reaches
            from the 10th to the 90th percentile).
        names: of the examples, for the legend.

    Distances are normalised: 1 is the mean distance between different pictures. They share one scale. The dashed grey
    line is the control, where nothing but resampling changed the pictures.
    """
    results = one_or_several(results)
    layers, rows = results[0].layers, len(results)
    titles = [f"{layer}: distance, 1 = another picture" for layer in layers] + ["P(class)"]
    chart = new_chart(rows, len(titles), titles=titles, height=210 * rows + 130)
    distances = [result.normalised(layer) for result in results for layer in layers]
    drawn = [d[list(examples)] for d in distances if len(examples)] + [d.quantile(0.9, 0) for d in distances]
    high = max(1.0, *(float(d.max()) for d in drawn))
    labels = dict(zip(examples, [*names, *(f"picture {i}" for i in examples[len(names) :])], strict=False))
    mean = f"mean of {len(results[0].probability)}"
    for row, result in enumerate(results, start=1):
        curves = [(result.normalised(layer), result.normalised(layer, control=True)) for layer in layers]
        curves.append((result.probability, result.control_probability))
        for column, (curve, control) in enumerate(curves, start=1):
            where, x = (row, column), result.values.numpy()
            step = f"<br>{MOTIONS[result.motion]}: %{{x:.3g}}<br>{titles[column - 1]}: %{{y:.3f}}"
            band(chart, where, x, curve.quantile(0.1, 0), curve.quantile(0.9, 0), BLACK, mean)
            shown = zip(labels.items(), PALETTE, strict=False)
            lines = [(name, curve[i], colour, "solid") for (i, name), colour in shown]
            lines.append(("resampling alone", control.mean(0), GREY, "dash"))
            lines.append((mean, curve.mean(0), BLACK, "solid"))
            for name, y, colour, dash in lines:
                line = {"color": colour, "dash": dash, "width": 2.5 if colour == BLACK else 1.5}
                draw(chart, where, name, x=x, y=y.numpy(), mode="lines", line=line, told=name + step)
            last = column == len(titles)
            chart.update_yaxes(range=[0, 1.03 if last else 1.03 * high], row=row, col=column)
            chart.update_xaxes(title_text=MOTIONS[result.motion], row=row, col=column)
            if result.motion == "rotation":
                chart.update_xaxes(dtick=90, row=row, col=column)
    return chart


def correspondence_figure(correspondence: Correspondence, *, relative: bool = False) -> Chart:
    """The paper's Table 1 as a chart: a panel for each layer, a line for each part and control.

    Dots with their jackknife error are the parts'; small grey dots are the draws of a control, the line their mean.
    The axes do not begin at 0.

    Args:
        relative: the score over what signs in no order would give, without error bars (`Correspondence.relative`).
    """
    c = correspondence
    lines = (*c.parts, *c.control_boxes)
    of = "score / score of signs in no order" if relative else "mean Hamming distance of sign(eps)"
    titles = [f"{c.model} {layer}" for layer in c.layers]
    size: Style = {"height": 34 * len(lines) + 130, "shared_yaxes": True}
    chart = new_chart(1, len(c.layers), titles=titles, **size)
    for column, layer in enumerate(c.layers, start=1):
        where = (1, column)
        for part in lines:
            score = c.relative(layer, part) if relative else c.score(layer, part)
            if part in c.parts:
                error = 0.0 if relative else c.error(layer, part)
                told = f"{part}: {score:.4f}" + ("" if relative else f", jackknife error {error:.4f}")
                draw(
                    chart, where, x=[score], y=[part], mode="markers", marker={"color": BLUE, "size": 9},
                    error_x={"array": [error], "visible": not relative}, told=told,
                )  # fmt: skip
                continue
            draws = c.controls[layer, part].flatten(1).nanmean(1)
            if relative:
                draws = draws / c.expected[layer, part].flatten(1).nanmean(1)
            told = f"{part}: %{{x:.4f}}<br>boxes at %{{customdata}}"
            draw(
                chart, where, x=draws.numpy(), y=[part] * len(draws), customdata=_corners(c.control_boxes[part]),
                mode="markers", marker={"color": GREY, "size": 6, "opacity": 0.5}, told=told,
            )  # fmt: skip
            tick: Style = {"symbol": "line-ns-open", "color": BLACK, "size": 20, "line": {"width": 2}}
            told = f"{part}, mean: {score:.4f}"
            draw(chart, where, x=[score], y=[part], mode="markers", marker=tick, told=told)
    chart.update_yaxes(autorange="reversed", showgrid=False)
    return chart.update_xaxes(title_text=of, nticks=6).update_layout(showlegend=False, margin_b=60)


def _corners(boxes: Tensor) -> list[str]:
    """Boxes (draws, N, 4) in words, a line for each draw: where they lie in the first four pictures, in px."""
    return [
        "; ".join(f"{left:.0f}, {top:.0f}" for left, top, _, _ in draw[:4].tolist())
        + f" px from left, top ({draw[0, 2] - draw[0, 0]:.0f} x {draw[0, 3] - draw[0, 1]:.0f} px; first pictures)"
        for draw in boxes
    ]


def parts_figure(
    pictures: Tensor, parts: Mapping[str, Tensor], objects: Tensor | None = None, *, columns: int = 10
) -> Figure:
    """Pictures (N, 3, H, W) with each part's boxes (N, 4) drawn in its colour, the object's in white: a plate."""
    from matplotlib.patches import Patch, Rectangle

    N, _, H, W = pictures.shape
    columns = min(columns, N)
    figure, panels = panel_grid(N, columns, row=9 / columns, beside=0.3)
    drawn = [] if objects is None else [(objects, "white", 1.0)]
    drawn += [(boxes, colour, 1.5) for boxes, colour in zip(parts.values(), PART_COLOURS, strict=False)]
    for i, axis in enumerate(panels):
        axis.set_axis_off()
        axis.imshow(to_picture(pictures[i]), extent=(0, W, H, 0))
        for boxes, colour, width in drawn:
            left, top, right, bottom = boxes[i].tolist()
            if left == left:  # not NaN: the part can be seen
                box = Rectangle((left, top), right - left, bottom - top)
                box.set(fill=False, edgecolor=colour, linewidth=width)
                axis.add_patch(box)
    handles = [Patch(color=colour, label=name) for name, colour in zip(parts, PART_COLOURS, strict=False)]
    legend_below(figure, handles)
    return figure


def selectivity_figure(selectivity: Selectivity) -> Chart:
    """Class-selectivity index and entropy of the top k's classes by layer, maps as a band, shuffled grey: a chart."""
    table = selectivity.table()
    kind = CLASS_NAMES[selectivity.kind]
    pictures = f"{selectivity.pictures:,} pictures of {selectivity.classes} "
    pictures += "photographs" if selectivity.kind == "photograph" else "classes"
    entropy = f"classes of the top {selectivity.k}: entropy, bits"
    titles = "class-selectivity index, 0: all alike, 1: one class only", entropy
    chart = new_chart(1, 2, title=f"{selectivity.model} on {pictures}", titles=titles)
    layers = [str(layer) for layer in table.index]
    for column, name in enumerate(("index", "entropy"), start=1):
        where = (1, column)
        middle = "median map; band: the middle half of maps", table[name], BLUE, "solid"
        shuffled = f"{kind} shuffled", table[f"{name}_shuffled"], GREY, "dash"
        for line, y, colour, dash in (middle, shuffled):
            half = ", half of the maps from %{customdata[0]:.3f} to %{customdata[1]:.3f}"
            told = "%{x}: %{y:.3f}" + half * (colour == BLUE)
            draw(
                chart, where, line, x=layers, y=y, mode="lines+markers", line={"color": colour, "dash": dash},
                customdata=table[[f"{name}_q25", f"{name}_q75"]], told=f"{line.partition(';')[0]}<br>{told}",
            )  # fmt: skip
        _spread(chart, where, layers, table[f"{name}_q25"], table[f"{name}_q75"], BLUE)
    most = float(table.entropy_most.max())
    mark(chart, (1, 2), "as many bits as there can be", y=most)
    chart.update_yaxes(range=[0, 1], row=1, col=1)
    return chart.update_yaxes(range=[0, 1.1 * most], row=1, col=2)


def _spread(chart: Chart, where: Where, names: Sequence[str], low: Any, high: Any, colour: str) -> None:
    """A pale band over names instead of numbers."""
    draw(
        chart, where, x=[*names, *names[::-1]], y=[*high, *list(low)[::-1]], fill="toself", mode="lines",
        fillcolor=faded(colour, 0.2), line_width=0,
    )  # fmt: skip


def pose_variation_figure(pose: PoseVariation) -> Chart:
    """How different each layer's top k are, in pixels and layers up to its own, 1 for different maps: a chart."""
    table = pose.table()
    title = f"{pose.model}: how different are a map's strongest {pose.k}? (mean and sd over maps)"
    chart = new_chart(title=title)
    steps = list(dict.fromkeys(table.index.get_level_values("seen_by")))
    layers = list(dict.fromkeys(table.index.get_level_values("layer")))
    for layer, colour in zip(layers, shades(len(layers)), strict=True):
        part = table.loc[layer]
        draw(
            chart, name=f"top {pose.k} of {layer}", x=list(part.index), y=part.ratio, line_color=colour,
            mode="lines+markers", error_y={"array": part.sd, "thickness": 1, "width": 3},
            told=f"top {pose.k} of {layer}, compared in %{{x}}: %{{y:.3f}}, sd %{{error_y.array:.3f}}",
        )  # fmt: skip
    mark(chart, (1, 1), "different maps", y=1)
    chart.update_xaxes(title_text="compared in", categoryorder="array", categoryarray=steps)
    return chart.update_yaxes(title_text="distance / that of different maps", rangemode="tozero")
