"""Arrays and data frames -> matplotlib figures in one style.

Every function here takes what an analysis returned and gives back a `matplotlib.figure.Figure`; nothing is
computed but what is needed to draw. Colours are those of Okabe & Ito, which colour-blind readers tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .pictures import _hwc, _tiles, signed_to_rgb
from .style import BLACK, BLUE, GREEN, GREY, ORANGE, PALETTE, PURPLE, RED, SKY, YELLOW, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ..experiments.correspondence import Correspondence
    from ..experiments.invariance import Invariance
    from ..experiments.occlusion import Elsewhere, Occlusion
    from ..experiments.selectivity import PoseVariation, Selectivity


def occlusion_figure(found: Occlusion, elsewhere: Elsewhere | None = None) -> Figure:
    """The paper's Fig. 7 for one picture: `occlude`'s result and, with `project_elsewhere`'s, the rest of (c).

    Heat maps lie over the picture, each place at its square's centre, which comes no nearer to the border than
    half a square. The red line in a colour bar is the value without a square.
    """
    from matplotlib.patches import Patch, Rectangle

    H, W = found.image.shape[1:]
    figure, axes = new_figure(2, 3, size=(9, 6.4))
    photo, activity, probability, projections, pictures, labels = axes.flat
    rows, columns = found.top.double() + found.size / 2, found.left.double() + found.size / 2
    step = found.stride / 2
    extent = [float(v) for v in (columns[0] - step, columns[-1] + step, rows[-1] + step, rows[0] - step)]

    def over_picture(axes: Any, title: str, values: Any, **options: Any) -> Any:
        pale = 255 - (255 - _hwc(found.image).mean(-1)) / 3
        axes.imshow(pale, cmap="gray", vmin=0, vmax=255, extent=(0, W, H, 0))
        shown = axes.imshow(values, extent=extent, **options)
        axes.set(xlim=(0, W), ylim=(H, 0))
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_axis_off()
        return shown

    def heat(axes: Any, title: str, values: Tensor, whole: float) -> None:
        high = max(whole, float(values.max()), 1e-12)
        shown = over_picture(axes, title, values.float().numpy(), vmin=0, vmax=high, cmap="viridis")
        bar = figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.03)
        bar.ax.axhline(whole, color=RED, linewidth=2.5)
        bar.ax.tick_params(labelsize=8)

    def tiles(axes: Any, title: str, shown: Tensor) -> None:
        axes.imshow(_tiles(shown))
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_axis_off()
        if len(shown) > 1:
            axes.add_patch(Rectangle((-0.5, -0.5), W, H, fill=False, edgecolor="black", linewidth=2.5))

    photo.imshow(_hwc(found.image), extent=(0, W, H, 0))
    grey = [v / 255 for v in found.colour]
    photo.add_patch(
        Rectangle((0, 0), found.size, found.size, facecolor=grey, edgecolor="white", linewidth=1.5)
    )
    photo.set_title(f"(a) {found.model}; square of {found.size} px", loc="left", fontsize=10)
    photo.set_axis_off()
    heat(activity, f"(b) {found.layer} map {found.channel}, summed", found.activity, found.whole_activity)
    shown, photos = found.projection[None].float().cpu(), found.image[None]
    if elsewhere is not None:
        shown = torch.cat([shown, elsewhere.projection.float().cpu()])
        photos = torch.cat([photos, elsewhere.photo])
    tiles(projections, f"(c) projections of map {found.channel}", signed_to_rgb(shown))
    tiles(pictures, f"(c) from {'these pictures' if elsewhere else 'this picture'}", photos)
    if found.probability is None or found.best is None or found.whole_probability is None:
        probability.set_axis_off(), labels.set_axis_off()
        return figure
    own = " (its top class)" if found.target_from == "model" else ""
    heat(probability, f"(d) P({found.class_name()}){own}", found.probability, found.whole_probability)

    kinds, count = found.best.unique(return_counts=True)
    order = count.argsort(descending=True, stable=True)[: len(PALETTE) - 1].tolist()
    colours = torch.full((*found.best.shape, 3), 0.55)
    handles = []
    for colour, i in zip(PALETTE, order, strict=False):
        colours[found.best == kinds[i]] = torch.tensor([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        handles.append(Patch(color=colour, label=f"{found.class_name(int(kinds[i]))}, {int(count[i])}"))
    if len(kinds) > len(order):
        rest = found.best.numel() - int(count[order].sum())
        handles.append(Patch(color=GREY, label=f"{len(kinds) - len(order)} others, {rest}"))
    over_picture(labels, "(e) most probable class, places", colours.numpy())
    labels.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(-0.02, 0.0), ncol=2, fontsize=8, frameon=False,
        handlelength=1, columnspacing=1, labelspacing=0.3,
    )  # fmt: skip
    return figure


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
    layers = results[0].layers
    figure, axes = new_figure(
        len(results), len(layers) + 1, size=(9, 2.3 * len(results) + 0.5), squeeze=False
    )
    labels = {"shift": "shift down, px", "scale": "scale, times", "rotation": "rotation, degrees"}
    distances = [found.normalised(layer) for found in results for layer in layers]
    drawn = [d[list(examples)] for d in distances if len(examples)] + [d.quantile(0.9, 0) for d in distances]
    high = max(1.0, *(float(d.max()) for d in drawn))
    for row, found in zip(axes, results, strict=True):
        curves = [(found.normalised(layer), found.normalised(layer, control=True)) for layer in layers]
        curves.append((found.probability, found.control_probability))
        for axis, (curve, control) in zip(row, curves, strict=True):
            low, upper = (curve.quantile(q, 0) for q in (0.1, 0.9))
            axis.fill_between(found.values, low, upper, color=BLACK, alpha=0.1, linewidth=0)
            for i, colour in zip(examples, PALETTE, strict=False):
                axis.plot(found.values, curve[i], color=colour, linewidth=1.2)
            axis.plot(found.values, control.mean(0), color=GREY, linewidth=1.5, linestyle=(0, (4, 2)))
            axis.plot(found.values, curve.mean(0), color=BLACK, linewidth=2)
            axis.set(xlabel=labels[found.motion], ylim=(0, 1.03 if axis is row[-1] else 1.03 * high))
            axis.margins(x=0)
            if found.motion == "rotation":
                axis.set_xticks(range(0, 361, 90))
    for axis, layer in zip(axes[0], layers, strict=False):
        axis.set_title(f"{layer}: distance /\nmean distance between pictures", loc="left", fontsize=10)
    axes[0][-1].set_title("P(class)", loc="left", fontsize=10)
    from matplotlib.lines import Line2D

    many = len(results[0].probability)
    handles = [Line2D([], [], color=c, label=n) for n, c in zip(names, PALETTE, strict=False)]
    handles += [
        Line2D([], [], color=BLACK, linewidth=2, label=f"mean of {many}"),
        Line2D([], [], color=GREY, linestyle=(0, (4, 2)), label="resampling alone"),
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncol=min(4, len(handles)), fontsize=8, frameon=False
    )
    return figure


def correspondence_figure(found: Correspondence, *, relative: bool = False) -> Figure:
    """The paper's Table 1 as a figure: a panel for each layer, a line for each part and control.

    Dots with their jackknife error are the parts'; small grey dots are the draws of a control, the line their mean.

    Args:
        relative: the score over what signs in no order would give, without error bars (`Correspondence.relative`).
    """
    lines = (*found.parts, "random", "same place")
    figure, axes = new_figure(
        1, len(found.layers), size=(9, 0.34 * len(lines) + 1.1), squeeze=False, sharey=True
    )
    for axis, layer in zip(axes[0], found.layers, strict=True):
        for y, part in enumerate(lines):
            score = found.relative(layer, part) if relative else found.score(layer, part)
            if part in found.parts:
                error = None if relative else found.error(layer, part)
                axis.errorbar(score, y, xerr=error, fmt="o", color=BLUE, capsize=3, markersize=6)
                continue
            draws = found.controls[layer, part].flatten(1).nanmean(1)
            if relative:
                draws = draws / found.expected[layer, part].flatten(1).nanmean(1)
            axis.plot(draws, [y] * len(draws), "o", color=GREY, markersize=4, alpha=0.5, markeredgewidth=0)
            axis.plot([score] * 2, [y - 0.3, y + 0.3], color=BLACK, linewidth=2)
        axis.set_title(f"{found.model} {layer}", loc="left", fontsize=10)
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
    rows = -(-N // columns)
    figure, axes = new_figure(rows, columns, size=(9, 9 / columns * rows + 0.3), squeeze=False)
    drawn = [] if objects is None else [(objects, "white", 1.0)]
    drawn += [(boxes, colour, 1.5) for boxes, colour in zip(parts.values(), PART_COLOURS, strict=False)]
    for i, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if i >= N:
            continue
        axis.imshow(_hwc(pictures[i]), extent=(0, W, H, 0))
        for boxes, colour, width in drawn:
            left, top, right, bottom = (float(v) for v in boxes[i])
            if left == left:  # not NaN: the part can be seen
                axis.add_patch(
                    Rectangle(
                        (left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=width
                    )
                )
    handles = [Patch(color=colour, label=name) for name, colour in zip(parts, PART_COLOURS, strict=False)]
    figure.legend(handles=handles, loc="outside lower center", ncol=len(handles), fontsize=9, frameon=False)
    return figure


PART_COLOURS = (SKY, ORANGE, YELLOW, PURPLE, GREEN, RED, BLUE)  # bright ones first: they lie on photographs


def selectivity_figure(selectivity: Selectivity) -> Figure:
    """Class-selectivity index and entropy of the top k's classes by layer, maps as a band, shuffled labels in grey."""
    table = selectivity.table()
    figure, panels = new_figure(1, 2, size=(9, 3.2))
    x = range(len(table))
    for axes, name in zip(panels, ("index", "entropy"), strict=True):
        low, high = table[f"{name}_q25"], table[f"{name}_q75"]
        axes.fill_between(x, low, high, color=BLUE, alpha=0.25, label="middle half of maps")
        axes.plot(x, table[name], "o-", color=BLUE, label="median map")
        axes.plot(
            x, table[f"{name}_shuffled"], "s--", color=GREY, label=f"{CLASS_NAMES[selectivity.kind]} shuffled"
        )
        axes.set_xticks(list(x), list(table.index))
    panels[0].set(title="class-selectivity index", ylim=(0, 1), ylabel="0: all alike, 1: one class only")
    most = float(table.entropy_most.max())
    panels[1].set(title=f"classes of the top {selectivity.k}", ylabel="entropy, bits", ylim=(0, 1.06 * most))
    panels[1].axhline(most, color=GREY, linewidth=1)
    panels[0].legend(fontsize=8)
    figure.suptitle(
        f"{selectivity.model} on {selectivity.pictures:,} pictures of {selectivity.classes} "
        f"{'photographs' if selectivity.kind == 'photograph' else 'classes'}", fontsize=11,
    )  # fmt: skip
    return figure


CLASS_NAMES = {"class": "labels", "photograph": "photographs"}


def pose_variation_figure(pose: PoseVariation) -> Figure:
    """How different each layer's top k are, in pixels and in the layers up to its own; 1 is that of different maps."""
    table = pose.table()
    figure, axes = new_figure(size=(8, 3.6))
    steps = list(dict.fromkeys(table.index.get_level_values("seen_by")))
    names = list(dict.fromkeys(table.index.get_level_values("layer")))
    for layer, colour in zip(names, PALETTE * len(names), strict=False):
        part = table.loc[layer]
        x = [steps.index(s) for s in part.index]
        style = {"fmt": "o-", "capsize": 2, "markersize": 5, "elinewidth": 1}
        axes.errorbar(x, part.ratio, part.sd, color=colour, label=f"top {pose.k} of {layer}", **style)
    axes.axhline(1, color=GREY, linestyle="--", linewidth=1)
    axes.set_xticks(range(len(steps)), steps)
    axes.set(ylim=(0, None), xlabel="compared in", ylabel="distance / that of different maps",
             title=f"{pose.model}: how different are a map's strongest {pose.k}? (mean, sd over maps)")  # fmt: skip
    axes.legend(fontsize=8, ncols=2)
    return figure
