"""Arrays and data frames -> matplotlib figures in one style.

Every function here takes what an analysis returned and gives back a `matplotlib.figure.Figure`; nothing is
computed but what is needed to draw. Colours are those of Okabe & Ito, which colour-blind readers tell apart.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from .aliasing import Aliasing, GratingResponse, ShiftConsistency, fold, wave
from .atlas import PERCENTILE, montage, signed_to_rgb
from .errors import LayerError, ZfkitError, unknown
from .experiments.evolution import convergence, settled
from .experiments.randomisation import MEASURES
from .spectra import HIGH, LOW, FilterSpectra, Lattice, RandomControl

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor

    from .experiments.ablation import Ablation
    from .experiments.correspondence import Correspondence
    from .experiments.ensemble import Ensemble
    from .experiments.evolution import Evolution, LayerEvolution
    from .experiments.invariance import Invariance
    from .experiments.occlusion import Elsewhere, Occlusion
    from .experiments.randomisation import SanityChecks
    from .experiments.selectivity import PoseVariation, Selectivity
    from .experiments.transfer import Transfer
    from .health import Finding, Report

# Okabe & Ito's colours, in the order in which series take them.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000",
)  # fmt: skip
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK)
GREY = "#8C8C8C"  # controls: random filters, shuffled labels, untrained networks
MODEL_COLOURS = {"zfnet64": BLUE, "alexnet64": ORANGE}  # the bundled pair keeps its colours in every figure

# What matplotlib reads while it makes axes; titles and legends are set where they are drawn.
STYLE: dict[str, Any] = {
    "figure.dpi": 100,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
}


def new_figure(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (8, 4), **options: Any
) -> tuple[Figure, Any]:
    """A figure of `size` inches with (rows, columns) axes in zfkit's style; options go to `plt.subplots`.

    No more than 9 inches wide, so that it reads at the width of a page on GitHub.
    """
    import matplotlib.pyplot as plt
    from cycler import cycler

    with plt.rc_context(STYLE | {"axes.prop_cycle": cycler(color=PALETTE)}):
        return plt.subplots(rows, columns, figsize=size, layout="constrained", **options)


def show_picture(axes: Any, picture: Any, title: str = "") -> None:
    """A picture, uint8 (H, W, 3) or (H, W), without ticks."""
    axes.imshow(picture, cmap=None if picture.ndim == 3 else "gray")
    axes.set_title(title)
    axes.set_axis_off()


# --------------------------------------------------------------- occlusion, invariance, correspondence


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


def _hwc(picture: Tensor) -> Any:
    """uint8 (3, H, W) as matplotlib takes it, (H, W, 3)."""
    return picture.permute(1, 2, 0).cpu().numpy()


def _tiles(pictures: Tensor) -> Any:
    """Up to four pictures (n, 3, H, W) in a square, row by row, white where there is none; (h, w, 3)."""
    n, _, H, W = pictures.shape
    if n == 1:
        return _hwc(pictures[0])
    gap = max(1, H // 32)
    sheet = pictures.new_full((3, 2 * H + gap, 2 * W + gap), 255)
    for i, picture in enumerate(pictures[:4]):
        top, left = (i // 2) * (H + gap), (i % 2) * (W + gap)
        sheet[:, top : top + H, left : left + W] = picture
    return _hwc(sheet)


# -------------------------------------------------------------------- spectra of filters, lattices in pictures


def filter_sheet(
    spectra: FilterSpectra | Sequence[FilterSpectra], *, order: str = "centroid", columns: int = 12
) -> Figure:
    """First-layer filters of one or several networks side by side, sorted by a column of `FilterSpectra.table`.

    Each filter has its own symmetric scale around mid-grey, its largest weight at full contrast. Beside each row
    stands the value of its first filter. Raises LayerError for filters that do not look at a picture.
    """
    several = [spectra] if isinstance(spectra, FilterSpectra) else list(spectra)
    width = min(9, 4.5 * len(several))
    figure, all_axes = new_figure(1, len(several), size=(width, width / len(several)), squeeze=False, dpi=150)
    for axes, one in zip(all_axes[0], several, strict=True):
        if one.sees == "maps":
            raise LayerError(
                f"the filters of {one.title} do not look at a picture, so they have no colours to be shown in; "
                "take a first layer, or project the units of this one"
            )
        table = one.table()
        if order not in table:
            raise ZfkitError(unknown("column", order, table.columns))
        # What differs in rounding alone keeps its order, which then is the same on every machine.
        values = table[order].round(9).sort_values(kind="stable", na_position="last")
        weight = one.weight.float()[values.index.tolist()]
        kh, kw = weight.shape[2:]
        tiles = signed_to_rgb(weight, weight.abs().amax((1, 2, 3), keepdim=True))
        tile = max(kh, kw) * max(1, 66 // max(kh, kw))
        rows, step = -(-len(tiles) // columns), tile + 6
        sheet = torch.full((rows * step - 6, columns * step - 6, 3), 255, dtype=torch.uint8)
        for i, one_tile in enumerate(tiles):
            large = one_tile.repeat_interleave(tile // max(kh, kw), 1).repeat_interleave(
                tile // max(kh, kw), 2
            )
            top, left = i // columns * step, i % columns * step
            sheet[top : top + large.shape[1], left : left + large.shape[2]] = large.permute(1, 2, 0)
        axes.imshow(sheet.numpy(), interpolation="nearest")  # a pixel of a filter is a square
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_xticks([])
        middles = [row * step + tile / 2 for row in range(rows)]
        axes.set_yticks(middles, [f"{value:.2f}" for value in values.iloc[::columns]])
        axes.tick_params(length=0, labelsize=8)
        axes.set_title(f"{one.title}: {kh}x{kw}, stride {one.stride[0]}", loc="left", fontsize=10)
        unit = {"centroid": " (cycles/px)", "peak": " (cycles/px)", "bandwidth": " (cycles/px)"}.get(
            order, ""
        )
        axes.set_ylabel(f"{order} of the row's first{unit}", fontsize=8)
    figure.set_size_inches(width, 0.35 + max(axes.images[0].get_array().shape[0] for axes in all_axes[0])
                           * (width / len(several) - 0.55) / (columns * step))  # fmt: skip
    return figure


def radial_spectra(controls: RandomControl | Sequence[RandomControl]) -> Figure:
    """Pooled radial spectra of several layers, each over the band where random filters of its size lie.

    Density is relative to white filters', which have 1 at every frequency. A triangle on the axis marks where a
    layer's stride begins to alias: 1/(2 stride).
    """
    several = [controls] if isinstance(controls, RandomControl) else list(controls)
    figure, axes = new_figure(size=(9, 4.4))
    lowest, highest = 1.0, 1.0
    for control, colour in zip(several, _colours([c.spectra.name for c in several]), strict=True):
        spectra = control.spectra
        profile, (low, high) = spectra.profile(), control.profile_interval()
        summary = spectra.summary()
        shares = ", ".join(f"{100 * summary[band]:.0f} % {band}" for band in ("low", "mid", "high"))
        axes.fill_between(spectra.radii, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(spectra.radii, profile, color=colour, linewidth=2.2, label=f"{spectra.title}: {shares}")
        nyquist = 1 / (2 * max(spectra.stride))
        if nyquist < 0.5:
            axes.plot(
                nyquist, 0, marker="^", markersize=9, color=colour, transform=axes.get_xaxis_transform(), clip_on=False,
                zorder=5,
            )  # fmt: skip
        lowest = min(lowest, float(profile.min()), float(low.min()))
        highest = max(highest, float(profile.max()), float(high.max()))
    axes.axhline(1, color=GREY, linewidth=1, linestyle="--", zorder=1)
    axes.annotate(
        f"random filters: mean 1, bands {several[0].level:.0%} of {len(several[0].profiles)} draws",
        (0.495, 1.06), ha="right", va="bottom", fontsize=9, color="#555555",
    )  # fmt: skip
    for left, right, name in ((0, LOW, "low"), (LOW, HIGH, "middle"), (HIGH, 0.5, "high")):
        axes.axvspan(left, right, color="#F3F3F3" if name == "middle" else "white", zorder=0)
        axes.annotate(
            name, ((left + right) / 2, 1.01), xycoords=("data", "axes fraction"), ha="center", va="bottom",
            fontsize=9, color="#555555",
        )  # fmt: skip
    axes.set(yscale="log", xlim=(0, 0.5), ylim=(lowest / 1.3, highest * 1.3))
    axes.set_xlabel("cycles per pixel (triangle: Nyquist frequency of the layer's output)")
    axes.set_ylabel("power density, 1 = white")
    axes.set_xticks([0, 1 / 12, 1 / 8, 1 / 4, 1 / 3, 1 / 2], ["0", "1/12", "1/8", "1/4", "1/3", "1/2"])
    _plain_log(axes.yaxis)
    axes.legend(loc="lower left", fontsize=9)
    return figure


def spectrum_maps(spectra: FilterSpectra | Sequence[FilterSpectra]) -> Figure:
    """Pooled two-dimensional spectra on one logarithmic scale, up to four in a row, more in rows of three.

    Circles are the bounds of the bands; the dashed square holds what the layer's stride can keep apart.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Circle, Rectangle

    several = [spectra] if isinstance(spectra, FilterSpectra) else list(spectra)
    columns = len(several) if len(several) <= 4 else 3
    rows = -(-len(several) // columns)
    width = min(9, 3.4 * columns + 0.8)
    figure, all_axes = new_figure(
        rows, columns, size=(width, rows * (width - 1.2) / columns + 0.5), squeeze=False
    )
    densities = [s.pooled * s.pooled.numel() for s in several]
    high = max(float(d.max()) for d in densities)
    norm = LogNorm(high / 300, high)
    for axes, one, density in zip(all_axes.flat, several, densities, strict=False):
        _plane_axes(axes)
        shown = axes.imshow(
            density.clamp(min=high / 300).numpy(), norm=norm, cmap="viridis", extent=_plane_extent(density)
        )
        for radius in (LOW, HIGH):
            axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor="white", linewidth=1))
        if max(one.stride) > 1:
            half = [1 / (2 * s) for s in one.stride]
            square = Rectangle((-half[1], -half[0]), 2 * half[1], 2 * half[0])
            square.set(fill=False, edgecolor="white", linewidth=1.4, linestyle="--")
            axes.add_patch(square)
        axes.set_title(one.title, loc="left", fontsize=10)
        axes.label_outer()
    for axes in all_axes.flat[len(several) :]:
        axes.set_axis_off()
    figure.colorbar(shown, ax=all_axes, label="power density, 1 = white", shrink=0.85, format="%g")
    return figure


def lattice_figure(lattices: Lattice | Sequence[Lattice], controls: Sequence[Lattice] = ()) -> Figure:
    """For each `lattice`: where the pictures have their energy, the spectrum of it, and a cut through both axes.

    In the spectrum, circles are the frequencies looked for; in the cut, dotted lines. A lattice shows as peaks there
    in the spectrum, and as a grid in the map of energy. `controls`, one for each lattice, as of pictures that no
    stride has touched, appear in the cuts in grey.
    """
    from matplotlib.colors import LogNorm

    several = [lattices] if isinstance(lattices, Lattice) else list(lattices)
    figure, all_axes = new_figure(
        len(several), 3, size=(9, 2.75 * len(several) + 0.2), squeeze=False, width_ratios=[1, 1, 1.35]
    )
    beside: list[Lattice | None] = list(controls) or [None] * len(several)
    for (where, plane, cut), one, control in zip(all_axes, several, beside, strict=True):
        where.imshow(
            one.energy.numpy(),
            cmap="gray",
            vmin=0,
            vmax=float(one.energy.quantile(0.998)),
            interpolation="nearest",
        )
        where.set_title(one.name, loc="left", fontsize=10)
        where.set_xlabel(f"px; mean energy of {one.count:,} pictures", fontsize=9)
        where.grid(False)
        _plane_axes(plane)
        floor = float(one.power.max()) * (1e-6 if one.of == "energy" else 1e-4)
        plane.imshow(
            one.power.clamp(min=floor).numpy(), norm=LogNorm(floor, float(one.power.max())), cmap="viridis",
            extent=_plane_extent(one.power),
        )  # fmt: skip
        for u, v in one.points.tolist():
            for sign in (1, -1):
                plane.plot(
                    sign * v, sign * u, "o", markersize=9, fillstyle="none", color="white", markeredgewidth=1,
                    clip_on=False,
                )  # fmt: skip
        plane.set_title(f"spectrum of their {one.of}", loc="left", fontsize=10)
        for shown, colours, label in (
            (control, (GREY, GREY), control and control.name),
            (one, (BLUE, RED), ""),
        ):
            if shown is None:
                continue
            middle = len(shown.power) // 2
            axis = -shown.frequencies[: middle + 1].flip(0)  # 0 to 1/2; spectra of real numbers are symmetric
            right, down = (p[: middle + 1].flip(0) for p in (shown.power[middle], shown.power[:, middle]))
            cut.plot(axis, right, color=colours[0], linewidth=1.6, label=label or "to the right")
            cut.plot(axis, down, "--", color=colours[1], linewidth=1.6, label=None if label else "down")
        for k in range(1, max(one.stride) // 2 + 1):
            cut.axvline(k / max(one.stride), color="black", linewidth=1.2, linestyle=":", clip_on=False)
        high = one.interval()[1]
        cut.set_title(
            f"peaks {one.ratio:.3g}x their neighbours, elsewhere to {high:.2g}x", loc="left", fontsize=8.5
        )
        cut.set(
            yscale="log", xlim=(0, 0.5), ylim=(floor, float(one.power.max()) * 1.5), xlabel="cycles per pixel",
            ylabel="power, 1 = at frequency 0" if one.of == "energy" else "power, all = 1",
        )  # fmt: skip
        cut.set_xticks([0, 1 / 8, 1 / 4, 3 / 8, 1 / 2], ["0", "1/8", "1/4", "3/8", "1/2"])
        cut.legend(loc="upper right", fontsize=8)
    return figure


def _colours(names: Sequence[str]) -> list[str]:
    """A colour for each network: the bundled pair its own, others those that are left."""
    left = [c for c in PALETTE if c not in MODEL_COLOURS.values()]
    unique = list(dict.fromkeys(n for n in names if n not in MODEL_COLOURS))
    own = MODEL_COLOURS | {name: left[i % len(left)] for i, name in enumerate(unique)}
    return [own[name] for name in names]


def _plane_axes(axes: Any) -> None:
    axes.grid(False)
    ticks = [-0.5, -0.25, 0, 0.25, 0.5]
    axes.set_xticks(ticks, ["-1/2", "", "0", "", "1/2"], fontsize=8)
    axes.set_yticks(ticks, ["-1/2", "", "0", "", "1/2"], fontsize=8)
    axes.set_xlabel("cycles/px to the right", fontsize=9)
    axes.set_ylabel("cycles/px down", fontsize=9)
    axes.set(xlim=(-0.5, 0.5), ylim=(0.5, -0.5))


def _plane_extent(power: Tensor) -> tuple[float, float, float, float]:
    """So that bins are centred on their frequencies, the first on -1/2."""
    half = 0.5 / len(power)
    return -0.5 - half, 0.5 - half, 0.5 - half, -0.5 - half


def _plain_log(axis: Any) -> None:
    """Numbers on a logarithmic axis as they are written, 0.1 and 3."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


# ------------------------------------------------------------- aliasing, gratings, consistency under shifts

FOLDED = RED  # what arrives at a wrong frequency, in every figure


def aliasing_figure(found: Sequence[Aliasing]) -> Figure:
    """How much of what each filter hands on lies at wrong frequencies: layer by layer, networks side by side.

    A dot is a filter, larger where it answers more strongly; a bar is the whole layer's share, with its 95 %
    interval over pictures.
    """
    models = list(dict.fromkeys(f.model for f in found))
    # in the order of the network of which most layers were measured
    of_model = sorted(([f.layer for f in found if f.model == m] for m in models), key=len, reverse=True)
    layers = list(dict.fromkeys(layer for told in of_model for layer in told))
    figure, axes = new_figure(size=(9, 4.2))
    width = 0.8 / len(models)
    highest = 0.0
    for one in found:
        colour = _colours(models)[models.index(one.model)]
        middle = layers.index(one.layer) + (models.index(one.model) - (len(models) - 1) / 2) * width
        share, energy = one.share, one.kept + one.folded
        known = ~share.isnan()
        place = torch.linspace(-0.32, 0.32, int(known.sum()))[
            torch.randperm(int(known.sum()), generator=torch.Generator().manual_seed(0))
        ]
        size = 4 + 60 * (energy[known] / energy.max())
        x, y = (middle + width * place).numpy(), (100 * share[known]).numpy()
        axes.scatter(x, y, s=size.numpy(), color=colour, alpha=0.35, linewidth=0)
        low, high = one.interval()
        total = 100 * one.layer_share
        axes.plot([middle - 0.42 * width, middle + 0.42 * width], [total, total], color=colour, linewidth=3)
        axes.plot([middle, middle], [100 * low, 100 * high], color="black", linewidth=1)
        axes.annotate(
            f"{total:.1f}", (middle + 0.43 * width, total), xytext=(1, 0), textcoords="offset points", va="center",
            fontsize=8,
        )  # fmt: skip
        highest = max(highest, 100 * float(torch.quantile(share[known], 0.99)), 100 * high)
    strides: dict[str, list[str]] = {f.layer: [] for f in found}
    for one in found:
        strides[one.layer].append(f"{one.model}: stride {max(one.stride)}")
    same = {k: len({v.split(": ")[1] for v in told}) == 1 for k, told in strides.items()}
    labels = [
        f"{layer}\n" + (strides[layer][0].split(": ")[1] if same[layer] else "\n".join(strides[layer]))
        for layer in layers
    ]
    axes.set_xticks(range(len(layers)), labels, fontsize=9)
    axes.grid(False, axis="x")
    axes.set(ylim=(0, 1.1 * highest), xlim=(-0.5, len(layers) - 0.4))
    axes.set_ylabel("energy at wrong frequencies, %")
    for model, colour in zip(models, _colours(models), strict=True):
        axes.plot([], [], color=colour, linewidth=3, label=model)
    axes.legend(loc="upper right", ncols=len(models), frameon=False)
    return figure


def gratings_figure(found: Sequence[GratingResponse], channel: int | None = None) -> Figure:
    """Responses to drifting gratings, a network per row: with stride 1, after the stride, and where they arrive.

    Grey is what stays in place, vermilion what arrives at a wrong frequency; the dashed line is the limit of the
    grid. `channel` picks one feature map; None takes the root mean square of all.
    """
    found = list(found)
    figure, all_axes = new_figure(len(found), 3, size=(9, 2.75 * len(found) + 0.2), squeeze=False)
    for row, (one, axes) in enumerate(zip(found, all_axes, strict=True)):
        picked = slice(None) if channel is None else (one.channels == channel).nonzero()[:, 0]
        before, kept, folded = (
            part[picked].square().mean(0).sqrt() for part in (one.before, one.in_place, one.folded)
        )
        if not before.numel() or not before.max() > 0:
            raise ZfkitError(f"feature map {channel} of {one.layer!r} did not answer to these gratings")
        top = float(before.max())
        f, o = one.frequency, one.orientation
        step = float(o[1] - o[0]) if len(o) > 1 else 15.0
        # the last row repeats the first: 180 degrees are 0 again
        extent = (
            float(f[0] - (f[1] - f[0]) / 2),
            float(f[-1] + (f[1] - f[0]) / 2),
            -step / 2,
            180 - step / 2,
        )
        plain, coloured = _mix(before / top, 0 * before), _mix(kept / top, folded / top)
        for place, (axis, picture) in enumerate(zip(axes[:2], (plain, coloured), strict=True)):
            axis.imshow(picture.transpose(0, 1).numpy(), extent=extent, origin="lower", aspect="auto")
            axis.grid(False)
            axis.set_yticks([0, 45, 90, 135])
            axis.set_xticks([0, 1 / 8, 1 / 4, 3 / 8, 1 / 2], ["0", "1/8", "1/4", "3/8", "1/2"])
            limit = [1 / (2 * max(abs(v) * s for v, s in zip(wave(1.0, a), one.spacing[::-1], strict=True)))
                     for a in range(-8, 180)]  # fmt: skip
            axis.plot(limit, range(-8, 180), color="black", linewidth=1, linestyle="--")
            axis.set(xlim=extent[:2], ylim=extent[2:])
            if place == 0:
                axis.set_ylabel("orientation, degrees")
            if row == len(found) - 1:
                axis.set_xlabel("frequency of the grating, cycles/px")
        name = f"{one.model} {one.layer}" + ("" if channel is None else f", map {channel}")
        axes[0].set_title(f"{name}, at every pixel", fontsize=10)
        axes[1].set_title(f"after stride {max(one.spacing)}", fontsize=10)
        _arrivals(axes[2], one, picked)
        if row == len(found) - 1:
            axes[2].set_xlabel("frequency it is seen at, cycles/px")
    return figure


def _mix(kept: Tensor, folded: Tensor) -> Tensor:
    """White where nothing answers, towards dark grey for what is kept, towards vermilion for what is folded."""
    dark, red = (torch.tensor([int(c[k : k + 2], 16) / 255 for k in (1, 3, 5)]) for c in ("#1A1A1A", FOLDED))
    return (1 - kept[..., None] * (1 - dark) - folded[..., None] * (1 - red)).clamp(0, 1).float()


def _arrivals(axes: Any, one: GratingResponse, picked: Any) -> None:
    """Energy by the frequency at which the map shows it, white light coming in: rings weigh as their size."""
    energy = one.power[picked].mean(0) * one.frequency[:, None, None]  # (F, O, H)
    h = torch.arange(1, energy.shape[-1] + 1)
    fx, fy = (v[..., None] * h for v in wave(one.frequency[:, None], one.orientation))
    seen = torch.hypot(fold(fx, one.spacing[1]), fold(fy, one.spacing[0]))
    edges = torch.linspace(0, 0.5 * 2**0.5 / min(one.spacing), 13, dtype=seen.dtype)
    bins = torch.bucketize(seen, edges[1:-1])
    parts = [torch.bincount(bins[m], energy[m], 12) for m in (~one.is_folded, one.is_folded)]
    total = sum(float(p.sum()) for p in parts)
    middle, width = (edges[:-1] + edges[1:]) / 2, float(edges[1] - edges[0])
    below = torch.zeros_like(parts[0])
    for part, colour, label in zip(parts, ("#4D4D4D", FOLDED), ("its own", "wrong"), strict=True):
        axes.bar(
            middle.numpy(), (100 * part / total).numpy(), 0.92 * width, (100 * below / total).numpy(), color=colour,
            label=f"{label}: {100 * float(part.sum()) / total:.0f} %",
        )  # fmt: skip
        below = below + part
    axes.set_ylabel("energy, %")
    axes.set_xlim(0, float(edges[-1]))
    axes.set_title("where it arrives", fontsize=10)
    axes.set_ylim(0, 1.42 * 100 * float(below.max()) / total)
    axes.legend(fontsize=8, loc="upper left", handlelength=1, frameon=False)


def shift_figure(found: Sequence[ShiftConsistency], layers: Sequence[str] | None = None) -> Figure:
    """What a shift changes, networks in one colour each: class agreement where there is one, then layer by layer.

    Bands are 95 % intervals over pictures. Triangles on the axis mark shifts by whole units of the layer's map;
    "in place": no unit is free of the border, so maps are compared without moving them.
    """
    found = list(found)
    names = list(dict.fromkeys(n for one in found for n in one.layers)) if layers is None else list(layers)
    for name in names:
        if not any(name in one.layers for one in found):
            raise LayerError(unknown("layer with distances", name, [n for one in found for n in one.layers]))
    classes = any(not one.agreement.isnan().all() for one in found)
    count = len(names) + classes
    columns = min(count, 3)
    rows = -(-count // columns)
    figure, all_axes = new_figure(
        rows, columns, size=(3 * columns if columns > 1 else 5, 2.9 * rows), squeeze=False
    )
    panels = iter(all_axes.flat)
    colours = _colours([one.model for one in found])
    if classes:
        axes = next(panels)
        for one, colour in zip(found, colours, strict=True):
            low, high = (100 * one.interval().T).numpy()
            shifts = one.shifts.numpy()
            axes.fill_between(shifts, low, high, color=colour, alpha=0.2, linewidth=0)
            kept = (100 * one.consistency()).numpy()
            axes.plot(shifts, kept, color=colour, marker="o", markersize=4, label=one.model)
        axes.set_title("same class as before", fontsize=10)
        axes.set(ylabel="pictures, %", ylim=(0, 102), xlim=(0, None))
    top = max(float(one.distance[one.layers.index(n)].mean(0).nan_to_num(0).max())
              for one in found for n in names if n in one.layers) if names else 1.0  # fmt: skip
    for name in names:
        axes, in_place = next(panels), []
        for one, colour in zip(found, colours, strict=True):
            if name not in one.layers:
                continue
            i = one.layers.index(name)
            distance = one.distance[i].mean(0).numpy()
            axes.plot(one.shifts.numpy(), distance, color=colour, marker="o", markersize=4, label=one.model)
            if not one.inside[i]:
                in_place.append(one.model)
                continue
            whole = list(range(0, int(one.shifts[-1]) + 1, one.spacing[i]))
            foot = axes.get_xaxis_transform()
            marks = {"color": colour, "markersize": 8, "alpha": 0.8, "clip_on": False}
            axes.plot(whole, [0] * len(whole), "^", transform=foot, **marks)
        said = (
            ", in place"
            if len(in_place) == len(found)
            else "".join(f", {model} in place" for model in in_place)
        )
        axes.set_title(name + said, fontsize=10)
        axes.set(ylim=(0, 1.1 * top), xlim=(0, None))
    for axes in list(all_axes.flat)[:count]:
        axes.set_xlabel("shift, px")
        axes.xaxis.get_major_locator().set_params(integer=True)
    for row in all_axes:
        first = row[1] if classes and row is all_axes[0] and columns > 1 else row[0]
        if first in list(all_axes.flat)[classes:count]:
            first.set_ylabel("feature distance\n1 = another picture")
    for axes in panels:
        axes.set_axis_off()
    all_axes.flat[0].legend(fontsize=8, loc="best", frameon=False)
    return figure


# ------------------------------------------------------------------------------------------------ training


def training_figure(histories: pd.DataFrame | Mapping[str, pd.DataFrame]) -> Figure:
    """Loss, validation accuracy and dominance over epochs, of one run or of several by name (`Run.history`).

    Dotted lines mark where the learning rate fell.
    """
    several = histories if isinstance(histories, Mapping) else {"": histories}
    figure, (loss, accuracy, largest) = new_figure(1, 3, size=(9, 2.8))
    for (name, history), colour in zip(several.items(), PALETTE * len(several), strict=False):
        label = f"{name}: " if name else ""
        loss.plot(history.epoch, history.loss, color=colour, label=f"{label}training")
        loss.plot(history.epoch, history.val_loss, "--", color=colour, label=f"{label}validation")
        accuracy.plot(history.epoch, history.top1, color=colour, label=name or "top-1")
        largest.plot(history.epoch, history.dominance, color=colour, label=name or None)
        for epoch in history.epoch[history.lr.diff() < 0]:
            for axes in (loss, accuracy, largest):
                axes.axvline(epoch - 0.5, color=GREY, linestyle=":", linewidth=1)
    loss.set(title="cross-entropy", xlabel="epoch", ylabel="nats", ylim=(0, None))
    accuracy.set(title="validation top-1", xlabel="epoch", ylabel="%", ylim=(0, 102))
    high = max(float(history.dominance.max()) for history in several.values())
    largest.set(
        title="dominance in conv1", xlabel="epoch", ylabel="largest / median RMS", ylim=(0, 1.1 * high)
    )
    for axes in (loss, accuracy, largest):
        axes.xaxis.get_major_locator().set_params(integer=True)
    loss.legend(fontsize=8)
    if len(several) > 1:
        accuracy.legend(fontsize=8)
    return figure


# ------------------------------------------------------------------------------------- health and selectivity


def report_figure(report: Report, most: int = 8) -> Figure:
    """`zfkit.diagnose`'s report on one page: the layers' numbers with their limits, and the findings with pictures.

    Args:
        most: findings that are drawn, worst first; of those left out the page says how many there are.
    """
    import matplotlib.pyplot as plt

    shown = report.findings[:most]
    foot = [f"Not looked at: {remark}" for remark in report.remarks]
    if len(report.findings) > len(shown):
        foot.insert(0, f"And {len(report.findings) - len(shown)} more: print(report) has them all.")
    foot = [line for told in foot for line in textwrap.wrap(told, 130)]
    texts = [_report_lines(f) for f in shown]
    line = 0.165  # inches
    heights = [
        0.42 + max(line * len(t), 0.55 * (f.pictures is not None)) for t, f in zip(texts, shown, strict=True)
    ]
    width, above = 9.0, 2.75
    height = above + sum(heights) + line * len(foot) + 0.1
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height))

        def axes_at(
            left: float, top: float, wide: float, high: float
        ) -> Any:  # inches, top from the page's top
            return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

        title = textwrap.fill(report.title, 100)
        figure.text(0.1 / width, 1 - 0.08 / height, title, fontsize=10, fontweight="bold", va="top")
        _report_layers([axes_at(0.55 + 2.2 * i, 0.65, 1.6, 1.25) for i in range(4)], report)
        top = above
        for finding, told, high in zip(shown, texts, heights, strict=True):
            axes = axes_at(0.15, top, 5.2, high - 0.2)
            axes.set_axis_off()
            axes.plot(
                [0, 0],
                [0, 1],
                color=SEVERITY_COLOURS[finding.severity],
                linewidth=6,
                transform=axes.transAxes,
            )
            place = f"{finding.layer}: {finding.fault}" if finding.layer else finding.fault
            head = f"{place} ({finding.severity}; {finding.number:.2g}, alarm at {finding.threshold:.2g})"
            axes.text(0.02, 1, head, fontsize=9, fontweight="bold", va="top", transform=axes.transAxes)
            below = 1 - 0.2 / (high - 0.2)
            axes.text(
                0.02, below, "\n".join(told), fontsize=8, va="top", transform=axes.transAxes, linespacing=1.25
            )
            if finding.pictures is not None:
                _report_pictures(axes_at(5.4, top, 3.5, 0.62), finding)
            top += high
        figure.text(0.15 / width, 1 - top / height, "\n".join(foot), fontsize=8, va="top", color="#555555")
    return figure


SEVERITY_COLOURS = {"fault": RED, "warning": ORANGE, "note": SKY}


def _report_lines(finding: Finding) -> list[str]:
    lines = textwrap.wrap(finding.told, 84)
    if finding.severity == "note":
        return lines
    return (
        lines
        + textwrap.wrap(f"Remedy: {finding.remedy}.", 84)
        + textwrap.wrap(f"Paper: {finding.paper}.", 84)
    )


def _report_pictures(axes: Any, finding: Finding) -> None:
    """Up to eight maps in a row, each with its number."""
    assert finding.pictures is not None
    pictures = finding.pictures[:8]
    side = pictures.shape[-1]
    step = side + 3
    strip = pictures.new_full((3, side, 8 * step - 3), 255)
    for i, picture in enumerate(pictures):
        strip[:, :, i * step : i * step + side] = picture
    show_picture(axes, strip.permute(1, 2, 0).numpy())
    axes.set_anchor("NW")
    numbers = [str(c) for c in finding.channels] or ["as given", "reordered"] * 4
    for i in range(len(pictures)):
        axes.text(i * step + side / 2, side + 4, numbers[i], fontsize=7, ha="center", va="top")


def _report_layers(panels: Sequence[Any], report: Report) -> None:
    """Four panels over the layers: idle maps, strongest filter, spread of the signal, learning signal."""
    layers, limits = report.layers, report.thresholds
    x = list(range(len(layers)))
    dead, rare = (100 * layers[name] / layers.maps for name in ("dead", "rare"))
    panels[0].bar(x, dead, color=RED, label="never active")
    panels[0].bar(x, rare, bottom=dead, color=SKY, label="rarely")
    panels[0].set(title="idle maps", ylabel="%", ylim=(0, max(5, 1.5 * float((dead + rare).max()))))
    panels[0].set_yticks([tick for tick in panels[0].get_yticks() if tick <= 100])  # above, the legend
    panels[0].legend(fontsize=7, loc="upper left")
    for axes, column, limit, name, unit in (
        (panels[1], "dominance", limits.dominance, "strongest filter", "RMS / median RMS"),
        (panels[2], "signal", None, "spread over pictures", "activation"),
        (panels[3], "learning", limits.learning, "change by one step", "of the weights, lr 0.01"),
    ):
        values = layers[column].where(np.isfinite(layers[column]))
        axes.plot(x, values.to_numpy(), "o-", color=BLUE, markersize=4)
        axes.set(title=name, ylabel=unit)
        if limit is not None:
            axes.axhline(limit, color=RED, linestyle="--", linewidth=1)
        if column == "dominance":
            axes.set_ylim(0, None)
        elif (values > 0).any():
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter("")
    for axes in panels:
        axes.set_xticks(x, list(layers.index), rotation=90, fontsize=7)
        axes.set_title(axes.get_title(), fontsize=9)
        axes.set_ylabel(axes.get_ylabel(), fontsize=8)
        axes.tick_params(axis="y", labelsize=7)


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


# ------------------------------------------------------------------------------------------------ evolution


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


def _shades(count: int) -> list[Any]:
    """Colours from the first layer to the last, light to dark, that colour-blind readers can put in order."""
    import matplotlib as mpl

    return [mpl.colormaps["viridis"](0.9 * (1 - i / max(count - 1, 1))) for i in range(count)]


# ------------------------------------------------------------------------------------------- sanity checks

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


def _legend_below(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, ncols=len(labels), loc="outside lower center", frameon=False)


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


# ------------------------------------------------------------------------------- kernel, stride and blur apart


def first_layer_figure(table: pd.DataFrame, mark: tuple[int, Mapping[str, float]] | None = None) -> Figure:
    """Every measure of `load_first_layer_runs().table` against stride, a line for each kernel, without and with blur.

    Dots are runs, lines join means over seeds: a line that slopes is the stride's doing, lines apart are the
    kernel's, lines that are not parallel are both together; hollow dots have a blur. Measures that are the same in
    all runs are only named.
    mark: a stride and numbers to show in black.
    """
    from .experiments.first_layer import MEASURES

    flat = {m: float(table[m].iloc[0]) for m in MEASURES if table[m].nunique() == 1}
    shown = {m: told for m, told in MEASURES.items() if m not in flat}
    rows = -(-len(shown) // 3)
    figure, panels = new_figure(rows, 3, size=(9, 2.35 * rows + 0.6), squeeze=False)
    strides = sorted(table.stride.unique(), reverse=True)
    kernels = sorted(table.kernel.unique(), reverse=True)
    for axes, (measure, told) in zip(panels.flat, shown.items(), strict=False):
        for (kernel, blur), part in table.groupby(["kernel", "blur"]):
            place = kernels.index(kernel)
            colour, shift = (ORANGE, BLUE)[place % 2], 0.06 * (2 * place - 1) + (0.03 if blur else -0.03)
            face = "white" if blur else colour
            x = part.stride.map(strides.index) + shift
            (dots,) = axes.plot(
                x, part[measure], "o", color=colour, markerfacecolor=face, markersize=4.5, alpha=0.9
            )
            mean = part.groupby("stride")[measure].mean().reindex(strides)
            where = [i + shift for i in range(len(strides))]
            (line,) = axes.plot(where, mean, "--" if blur else "-", color=colour, linewidth=1.5)
            # In the legend a blur is a hollow dot: a single cell has no line.
            (dots if blur else line).set_label(f"{kernel}x{kernel}{', blur' if blur else ''}")
        if mark is not None and mark[0] in strides:
            place = strides.index(mark[0])
            axes.plot(place, mark[1][measure], "D", color=BLACK, markersize=5, label="this run")
        axes.set_xticks(range(len(strides)), [f"stride {s}" for s in strides])
        axes.set_xlim(-0.35, len(strides) - 0.65)
        axes.set_title("\n".join(textwrap.wrap(told, 32)), fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    handles, labels = panels[0, 0].get_legend_handles_labels()
    alike = ", ".join(f"{MEASURES[m]} = {value:g}" for m, value in flat.items())
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False,
        title=f"the same in all runs: {alike}" if alike else None, title_fontsize=9,
    )  # fmt: skip
    return figure


def effects_figure(effects: Mapping[str, pd.DataFrame]) -> Figure:
    """Effects of `factorial_effects` with their intervals: a row for each measure, a column for each effect.

    Each row has its own scale, the same in all columns. Intervals that leave out 0 are blue and filled. Measures that
    are the same in all runs are left out. effects: tables by heading, drawn side by side.
    """
    from .experiments.first_layer import MEASURES

    moving = [table[(table.effect != 0) | (table.se != 0)] for table in effects.values()]
    measures = list(dict.fromkeys(m for table in moving for m, _ in table.index))
    columns = [
        ("\n".join(filter(None, (head, _effect(name, table)))), table.xs(name, level="factor"))
        for head, table in effects.items()
        for name in dict.fromkeys(e for _, e in table.index)
    ]
    size = (9, 0.9 + 0.42 * len(measures))
    figure, panels = new_figure(1, len(columns), size=size, sharey=True, squeeze=False)
    for axes, (title, part) in zip(panels[0], columns, strict=True):
        axes.axvline(0, color=BLACK, linewidth=0.8)
        for y, measure in enumerate(measures):
            if measure not in part.index:
                continue
            ends = [c.loc[measure, ["low", "high"]].abs().max() for _, c in columns if measure in c.index]
            row, scale = part.loc[measure], max(ends) or 1.0
            colour = BLUE if row.moves else GREY
            axes.plot([row.low / scale, row.high / scale], [y, y], color=colour, linewidth=2)
            face = colour if row.moves else "white"
            axes.plot(row.effect / scale, y, "o", color=colour, markerfacecolor=face, markersize=6)
            told = f"{row.effect:+.2f}" if row.effect else "0"
            where = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "fontsize": 7.5}
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85}
            axes.annotate(told, (row.effect / scale, y), color=colour, bbox=box, **where)
        axes.set_title(title, fontsize=9)
        axes.set_xlim(-1.2, 1.2)
        axes.set_xticks([])
    panels[0, 0].set_yticks(range(len(measures)), [MEASURES.get(m, m) for m in measures], fontsize=8)
    panels[0, 0].set_ylim(len(measures) - 0.4, -0.8)
    return figure


def _effect(name: str, table: pd.DataFrame) -> str:
    """ "kernel: 11 to 7" where the table knows the levels."""
    levels = table.attrs.get("levels", {}).get(name)
    if levels is None or any(isinstance(v, bool) for v in levels):
        return name.replace(" x ", " × ")
    return f"{name}: {levels[0]} to {levels[1]}"


def profiles_figure(groups: Mapping[str, Sequence[FilterSpectra]], title: str = "") -> Figure:
    """Pooled radial spectra of groups of first layers: the mean over a group, and its range as a band.

    The middle band is shaded. 1 is the density of filters of random numbers; the first group in grey is a control
    if its name begins with "untrained".
    """
    figure, axes = new_figure(size=(8, 3.8))
    colours = iter(PALETTE)
    axes.axvspan(LOW, HIGH, color="#F3F3F3", zorder=0)
    for name, spectra in groups.items():
        colour = GREY if name.startswith("untrained") else next(colours)
        x, y = spectra[0].radii, torch.stack([s.profile() for s in spectra])
        axes.fill_between(x, y.amin(0), y.amax(0), color=colour, alpha=0.2, linewidth=0)
        axes.plot(x, y.mean(0), color=colour, label=name)
    axes.axhline(1, color=GREY, linewidth=1, linestyle=":")
    axes.set(yscale="log", xlim=(0, 0.5), xlabel="cycles per pixel", ylabel="power density, 1 = white")
    _plain_log(axes.yaxis)
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(fontsize=8)
    return figure


# ------------------------------------------------------------------------- ablation, transfer, ensembles


def ablation_figure(ablation: Ablation) -> Figure:
    """Error of each variant, a dot for each seed, beside the paper's for the same change (Table 3)."""
    from .experiments.ablation import PAPER

    table, runs = ablation.table(), ablation.runs
    names = list(table.index)[::-1]
    figure, (here, paper) = new_figure(1, 2, size=(9, 1.1 + 0.32 * len(names)), sharey=True)
    rows = range(len(names))
    here.barh(rows, table.error[names], color=SKY, height=0.6, label="validation, mean")
    here.plot(
        table.train_error[names], rows, "|", color=BLACK, markersize=12, markeredgewidth=2, label="training"
    )
    for row, name in enumerate(names):
        errors = 100 - runs[runs.variant == name].top1
        here.plot(
            errors, [row] * len(errors), "o", color=BLUE, markersize=4, label="each seed" if not row else None
        )
    if "full" in names:
        here.axvline(table.error["full"], color=GREY, linestyle="--", linewidth=1)
    here.set_yticks(list(rows), names)
    budget = ablation.budget
    here.set(xlabel="top-1 error, %", xlim=(0, None), title=f"here: {budget['base']} on {budget['images']}")
    for column, (network, colour, mark) in enumerate((("AlexNet", ORANGE, "s"), ("ZFNet", BLUE, "o"))):
        told = [PAPER.get(name, (None, None))[column] for name in names]
        paper.plot([math.nan if e is None else e for e in told], rows, mark, color=colour, label=network)
        paper.axvline(PAPER["full"][column] or math.nan, color=colour, linestyle="--", linewidth=1)
    paper.set(xlabel="top-5 error, %", xlim=(0, None), title="the paper: ImageNet")
    for axes in (here, paper):
        axes.title.set_fontsize(10)
    handles, labels = (
        here.get_legend_handles_labels()[i] + paper.get_legend_handles_labels()[i] for i in (0, 1)
    )
    figure.legend(handles, labels, fontsize=8, ncols=len(labels), loc="outside lower center", frameon=False)
    return figure


FEATURE_STYLES = {
    "trained": (BLUE, "o-"),
    "random weights": (GREY, "s-"),
    "from scratch": (ORANGE, "D-"),
    "pixels": (BLACK, "^:"),
}


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
    figure, (by_layer, by_count) = new_figure(1, 2, size=(9, 3.6), sharey=True)
    for kind, (colour, mark) in FEATURE_STYLES.items():
        part = scores[scores.features == kind]
        if not len(part):
            continue
        style = {"color": colour, "capsize": 2, "markersize": 5, "elinewidth": 1}
        at_most = part[part.per_class == most].groupby("layer").accuracy
        if kind in ("trained", "random weights"):
            means, spread = at_most.mean()[layers], at_most.std()[layers]
            by_layer.errorbar(range(len(layers)), means, spread, fmt=mark, label=kind, **style)
            part = part[part.layer == best]
        else:
            line = ":" if kind == "pixels" else "--"
            by_layer.axhline(at_most.mean().iloc[0], color=colour, linestyle=line, label=kind)
        counts = part.groupby("per_class").accuracy
        by_count.errorbar(counts.mean().index, counts.mean(), counts.std(), fmt=mark, label=kind, **style)
    for axes in (by_layer, by_count):
        axes.axhline(transfer.chance, color=RED, linestyle="--", linewidth=1, label="guessing")
        axes.set(ylim=(0, 100))
        axes.title.set_fontsize(10)
    by_layer.set_xticks(range(len(layers)), layers, rotation=45)
    by_layer.set(ylabel="mean accuracy over classes, %", title=f"{most} pictures per class")
    tried = sorted(scores.per_class.unique())
    if len(tried) > 1 and tried[-1] > 4 * tried[0]:
        by_count.set_xscale("log")
    by_count.set_xticks(tried, [str(n) for n in tried])
    by_count.minorticks_off()
    by_count.set(xlabel="training pictures per class", title=f"features of {best}")
    handles, labels = by_layer.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=len(labels), loc="outside lower center", frameon=False)
    figure.suptitle(f"{transfer.model}, linear {transfer.classifier} on {transfer.train}", fontsize=11)
    return figure


def ensemble_figure(found: Sequence[Ensemble]) -> Figure:
    """Top-1 error and loss against how many networks are averaged, a dot for each combination (Table 2).

    Args:
        found: for one crop and for ten, say.
    """
    figure, panels = new_figure(1, 2, size=(9, 3.2))
    marks = ("o-", "s--", "^:")
    for one, colour, mark in zip(found, PALETTE, marks * len(found), strict=False):
        table, means = one.table(), one.by_size()
        for axes, column in zip(panels, ("top1_error", "loss"), strict=True):
            axes.plot(table.networks, table[column], ".", color=colour, alpha=0.35)
            label = f"{one.crops} crop{'s' if one.crops > 1 else ''}"
            axes.plot(means.index, means[column], mark, color=colour, label=label)
    for axes, unit, title in zip(panels, ("%", "nats"), ("top-1 error", "cross-entropy"), strict=True):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="networks averaged", ylabel=unit, title=title)
    panels[0].legend(fontsize=8)
    return figure


# ------------------------------------------------------------------------------------ before and after a remedy


def steps_figure(table: pd.DataFrame, limits: Mapping[str, float] | None = None) -> Figure:
    """What was measured after each step: a row for each, a panel for each column, one scale for all rows.

    Args:
        table: data frame by step, numbers in its columns. Its last row stands out.
        limits: by column, where an alarm begins: a dashed line.
    """
    limits = limits or {}
    figure, panels = new_figure(
        1, len(table.columns), size=(9, 1.1 + 0.36 * len(table)), sharey=True, squeeze=False
    )
    for axes, column in zip(panels[0], table.columns, strict=True):
        values = table[column].astype(float)
        high = max(float(values.max()), limits.get(column, 0.0), 1e-12)
        colours = [SKY] * (len(table) - 1) + [BLUE]
        axes.barh(range(len(table)), values, color=colours, height=0.7)
        for y, value in enumerate(values):
            told = "not measured" if value != value else f"{value:.3g}"
            place = (0 if value != value else value) + 0.03 * high
            over = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # the dashed line may run there
            axes.text(place, y, told, va="center", fontsize=8, bbox=over)
        if column in limits:
            axes.axvline(limits[column], color=RED, linestyle="--", linewidth=1.2)
        axes.set_xlim(0, 1.3 * high)
        axes.set_title(textwrap.fill(str(column), 20), fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
    panels[0][0].set_yticks(range(len(table)), [str(name) for name in table.index], fontsize=9)
    panels[0][0].invert_yaxis()
    return figure


def strips_figure(rows: Mapping[str, Tensor], title: str = "", *, scale: float | None = None) -> Figure:
    """Filters or projections of several networks, signed (n, 3, h, w) each, a strip for each on one common scale.

    Args:
        rows: by name; uint8 pictures are shown as they are. Sizes may differ.
        scale: what is drawn white or black; default: the 99.5th percentile of all |values|, the largest strip's.
    """
    signed = [t for t in rows.values() if t.dtype != torch.uint8]
    if scale is None and signed:
        scale = max(float(np.percentile(t.abs().cpu().numpy(), PERCENTILE)) for t in signed)
    figure, panels = new_figure(len(rows), 1, size=(9, 0.5 + 0.95 * len(rows)), squeeze=False)
    for axes, (name, pictures) in zip(panels[:, 0], rows.items(), strict=True):
        shown = pictures if pictures.dtype == torch.uint8 else signed_to_rgb(pictures, max(scale or 0, 1e-30))
        axes.imshow(np.asarray(montage(shown.cpu(), columns=len(shown), tile=64)))
        axes.set_title(name, loc="left", fontsize=9)
        axes.set_axis_off()
    figure.suptitle(title, fontsize=11)
    return figure
