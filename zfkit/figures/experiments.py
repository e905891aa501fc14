"""Figures of occlusion (Fig. 7), invariance (Fig. 5), correspondence (Table 1) and selectivity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import ImageColor

from ..images.colour import signed_to_rgb
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
    panel_grid,
    panel_title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ..experiments.correspondence import Correspondence
    from ..experiments.invariance import Invariance
    from ..experiments.occlusion import Elsewhere, Occlusion
    from ..experiments.selectivity import PoseVariation, Selectivity

PART_COLOURS = (SKY, ORANGE, YELLOW, PURPLE, GREEN, RED, BLUE)  # bright ones first: they lie on photographs
CLASS_NAMES = {"class": "labels", "photograph": "photographs"}
MOTIONS = {"shift": "shift down, px", "scale": "scale, times", "rotation": "rotation, degrees"}


def occlusion_figure(occlusion: Occlusion, elsewhere: Elsewhere | None = None) -> Figure:
    """The paper's Fig. 7 for one picture: `occlude`'s result and, with `project_elsewhere`'s, the rest of (c).

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
    panel_title(photo, f"(a) {o.model}; square of {o.size} px")
    photo.set_axis_off()
    heat(activity, f"(b) {o.layer} map {o.channel}, summed", o.activity, o.whole_activity)
    projected, photos = o.projection[None].float().cpu(), o.image[None]
    if elsewhere is not None:
        projected = torch.cat([projected, elsewhere.projection.float().cpu()])
        photos = torch.cat([photos, elsewhere.photo])
    tiles(projections, f"(c) projections of map {o.channel}", signed_to_rgb(projected))
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
    results: Sequence[Invariance], examples: Sequence[int] = (), names: Sequence[str] = ()
) -> Figure:
    """The paper's Fig. 5: a row for each motion; distances in a low and a high layer, and P(class).

    Args:
        results: from `invariance`, of the same pictures and layers.
        examples: rows of the results to draw as coloured lines, beside the mean of all (black; the band reaches
            from the 10th to the 90th percentile).
        names: of the examples, for the legend.

    Distances are normalised: 1 is the mean distance between different pictures. The dashed grey line is the
    control, where nothing but resampling changed the pictures.
    """
    from matplotlib.lines import Line2D

    layers, rows = results[0].layers, len(results)
    figure, axes = new_figure(rows, len(layers) + 1, size=(9, 2.3 * rows + 0.5), squeeze=False)
    distances = [result.normalised(layer) for result in results for layer in layers]
    drawn = [d[list(examples)] for d in distances if len(examples)] + [d.quantile(0.9, 0) for d in distances]
    high = max(1.0, *(float(d.max()) for d in drawn))
    for row, result in zip(axes, results, strict=True):
        curves = [(result.normalised(layer), result.normalised(layer, control=True)) for layer in layers]
        curves.append((result.probability, result.control_probability))
        for axis, (curve, control) in zip(row, curves, strict=True):
            low, upper = (curve.quantile(q, 0) for q in (0.1, 0.9))
            axis.fill_between(result.values, low, upper, color=BLACK, alpha=0.1, linewidth=0)
            for i, colour in zip(examples, PALETTE, strict=False):
                axis.plot(result.values, curve[i], color=colour, linewidth=1.2)
            axis.plot(result.values, control.mean(0), color=GREY, linewidth=1.5, linestyle=(0, (4, 2)))
            axis.plot(result.values, curve.mean(0), color=BLACK, linewidth=2)
            axis.set(xlabel=MOTIONS[result.motion], ylim=(0, 1.03 if axis is row[-1] else 1.03 * high))
            axis.margins(x=0)
            if result.motion == "rotation":
                axis.set_xticks(range(0, 361, 90))
    for axis, layer in zip(axes[0], layers, strict=False):
        panel_title(axis, f"{layer}: distance /\nmean distance between pictures")
    panel_title(axes[0][-1], "P(class)")
    handles = [Line2D([], [], color=c, label=n) for n, c in zip(names, PALETTE, strict=False)]
    mean = f"mean of {len(results[0].probability)}"
    handles.append(Line2D([], [], color=BLACK, linewidth=2, label=mean))
    handles.append(Line2D([], [], color=GREY, linestyle=(0, (4, 2)), label="resampling alone"))
    legend_below(figure, handles=handles, ncols=min(4, len(handles)))
    return figure


def correspondence_figure(correspondence: Correspondence, *, relative: bool = False) -> Figure:
    """The paper's Table 1 as a figure: a panel for each layer, a line for each part and control.

    Dots with their jackknife error are the parts'; small grey dots are the draws of a control, the line their mean.

    Args:
        relative: the score over what signs in no order would give, without error bars (`Correspondence.relative`).
    """
    c = correspondence
    lines = (*c.parts, "random", "same place")
    size = (9, 0.34 * len(lines) + 1.1)
    figure, axes = new_figure(1, len(c.layers), size=size, squeeze=False, sharey=True)
    for axis, layer in zip(axes[0], c.layers, strict=True):
        for y, part in enumerate(lines):
            score = c.relative(layer, part) if relative else c.score(layer, part)
            if part in c.parts:
                error = None if relative else c.error(layer, part)
                axis.errorbar(score, y, xerr=error, fmt="o", color=BLUE, capsize=3, markersize=6)
                continue
            draws = c.controls[layer, part].flatten(1).nanmean(1)
            if relative:
                draws = draws / c.expected[layer, part].flatten(1).nanmean(1)
            axis.plot(draws, [y] * len(draws), "o", color=GREY, markersize=4, alpha=0.5, markeredgewidth=0)
            axis.plot([score] * 2, [y - 0.3, y + 0.3], color=BLACK, linewidth=2)
        panel_title(axis, f"{c.model} {layer}")
        axis.set_xlabel(
            "score / score of signs in no order" if relative else "mean Hamming distance of sign(eps)"
        )
        axis.set_yticks(range(len(lines)), lines)
        axis.locator_params(axis="x", nbins=5)
        axis.grid(axis="y", visible=False)
    axes[0][0].invert_yaxis()
    return figure


def parts_figure(
    pictures: Tensor, parts: Mapping[str, Tensor], objects: Tensor | None = None, *, columns: int = 10
) -> Figure:
    """Pictures (N, 3, H, W) with each part's boxes (N, 4) drawn in its colour, the object's in white."""
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
    legend_below(figure, handles=handles, fontsize=9)
    return figure


def selectivity_figure(selectivity: Selectivity) -> Figure:
    """Class-selectivity index and entropy of the top k's classes by layer, maps as a band, shuffled labels in grey."""
    table = selectivity.table()
    figure, panels = new_figure(1, 2, size=(9, 3.2))
    x = range(len(table))
    shuffled = f"{CLASS_NAMES[selectivity.kind]} shuffled"
    for axes, name in zip(panels, ("index", "entropy"), strict=True):
        low, high = table[f"{name}_q25"], table[f"{name}_q75"]
        axes.fill_between(x, low, high, color=BLUE, alpha=0.25, label="middle half of maps")
        axes.plot(x, table[name], "o-", color=BLUE, label="median map")
        axes.plot(x, table[f"{name}_shuffled"], "s--", color=GREY, label=shuffled)
        axes.set_xticks(list(x), list(table.index))
    panels[0].set(title="class-selectivity index", ylim=(0, 1), ylabel="0: all alike, 1: one class only")
    most = float(table.entropy_most.max())
    panels[1].set(title=f"classes of the top {selectivity.k}", ylabel="entropy, bits", ylim=(0, 1.06 * most))
    panels[1].axhline(most, color=GREY, linewidth=1)
    panels[0].legend(fontsize=8)
    kind = "photographs" if selectivity.kind == "photograph" else "classes"
    pictures = f"{selectivity.pictures:,} pictures of {selectivity.classes} {kind}"
    figure.suptitle(f"{selectivity.model} on {pictures}", fontsize=11)
    return figure


def pose_variation_figure(pose: PoseVariation) -> Figure:
    """How different each layer's top k are, in pixels and in the layers up to its own; 1 is that of different maps."""
    table = pose.table()
    figure, axes = new_figure(size=(8, 3.6))
    steps = list(dict.fromkeys(table.index.get_level_values("seen_by")))
    layers = list(dict.fromkeys(table.index.get_level_values("layer")))
    style = {"fmt": "o-", "capsize": 2, "markersize": 5, "elinewidth": 1}
    for layer, colour in zip(layers, PALETTE * len(layers), strict=False):
        part = table.loc[layer]
        x = [steps.index(s) for s in part.index]
        axes.errorbar(x, part.ratio, part.sd, color=colour, label=f"top {pose.k} of {layer}", **style)
    axes.axhline(1, color=GREY, linestyle="--", linewidth=1)
    axes.set_xticks(range(len(steps)), steps)
    axes.set(ylim=(0, None), xlabel="compared in", ylabel="distance / that of different maps")
    axes.set_title(f"{pose.model}: how different are a map's strongest {pose.k}? (mean, sd over maps)")
    axes.legend(fontsize=8, ncols=2)
    return figure
