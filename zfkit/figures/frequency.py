"""Figures of filters' spectra, aliasing and shifts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import LayerError, ZfkitError, unknown
from ..frequency import HIGH, LOW, wave
from ..images.colour import signed_to_rgb
from .pictures import montage
from .style import (
    BLUE,
    FOLDED,
    GREY,
    PALE,
    PALETTE,
    RED,
    SOFT,
    kept_and_folded,
    model_colours,
    new_figure,
    one_or_several,
    panel_grid,
    panel_title,
    plain_log,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ..frequency import Aliasing, FilterSpectra, GratingResponse, Lattice, RandomControl, ShiftConsistency

EIGHTHS = ([0, 1 / 8, 1 / 4, 3 / 8, 1 / 2], ["0", "1/8", "1/4", "3/8", "1/2"])  # cycles per pixel, as written


def filter_sheet(
    spectra: FilterSpectra | Sequence[FilterSpectra], *, order: str = "centroid", columns: int = 12
) -> Figure:
    """First-layer filters of one or several networks side by side, sorted by a column of `FilterSpectra.table`.

    Each filter has its own symmetric scale around mid-grey, its largest weight at full contrast. Beside each row
    stands the value of its first filter. Raises LayerError for filters that do not look at a picture.
    """
    several = one_or_several(spectra)
    width = min(9, 4.5 * len(several))
    figure, panels = new_figure(1, len(several), size=(width, width / len(several)), squeeze=False, dpi=150)
    gap, tallest = 6, 0.0
    for axes, one in zip(panels[0], several, strict=True):
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
        tile = max(kh, kw) * max(1, 66 // max(kh, kw))
        filters = signed_to_rgb(weight, weight.abs().amax((1, 2, 3), keepdim=True))
        sheet = montage(filters, columns, tile, gap=gap)
        axes.imshow(sheet, interpolation="nearest")  # a pixel of a filter is a square
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_xticks([])
        rows = values.iloc[::columns]
        step = (sheet.height + gap) / len(rows)
        middles = [(row + 0.5) * step - gap / 2 for row in range(len(rows))]
        axes.set_yticks(middles, [f"{value:.2f}" for value in rows])
        axes.tick_params(length=0, labelsize=8)
        panel_title(axes, f"{one.title}: {kh}x{kw}, stride {one.stride[0]}")
        unit = " (cycles/px)" if order in ("centroid", "peak", "bandwidth") else ""
        axes.set_ylabel(f"{order} of the row's first{unit}", fontsize=8)
        tallest = max(tallest, sheet.height / (sheet.width + gap))
    figure.set_size_inches(width, 0.35 + tallest * (width / len(several) - 0.55))
    return figure


def radial_spectra(controls: RandomControl | Sequence[RandomControl]) -> Figure:
    """Pooled radial spectra of several layers, each over the band where random filters of its size lie.

    Density is relative to white filters', which have 1 at every frequency. A triangle on the axis marks where a
    layer's stride begins to alias: 1/(2 stride).
    """
    several = one_or_several(controls)
    figure, axes = new_figure(size=(9, 4.4))
    lowest, highest = 1.0, 1.0
    for control, colour in zip(several, model_colours([c.spectra.name for c in several]), strict=True):
        spectra = control.spectra
        profile, (low, high) = spectra.profile(), control.profile_interval()
        summary = spectra.summary()
        shares = ", ".join(f"{100 * summary[band]:.0f} % {band}" for band in ("low", "mid", "high"))
        axes.fill_between(spectra.radii, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(spectra.radii, profile, color=colour, linewidth=2.2, label=f"{spectra.title}: {shares}")
        nyquist = 1 / (2 * max(spectra.stride))
        if nyquist < 0.5:
            marker = {"marker": "^", "markersize": 9, "clip_on": False, "zorder": 5}
            axes.plot(nyquist, 0, color=colour, transform=axes.get_xaxis_transform(), **marker)
        lowest = min(lowest, float(profile.min()), float(low.min()))
        highest = max(highest, float(profile.max()), float(high.max()))
    axes.axhline(1, color=GREY, linewidth=1, linestyle="--", zorder=1)
    random = f"random filters: mean 1, bands {several[0].level:.0%} of {len(several[0].profiles)} draws"
    axes.annotate(random, (0.495, 1.06), ha="right", va="bottom", fontsize=9, color=SOFT)
    words = {"ha": "center", "va": "bottom", "fontsize": 9, "color": SOFT}
    for left, right, name in ((0, LOW, "low"), (LOW, HIGH, "middle"), (HIGH, 0.5, "high")):
        axes.axvspan(left, right, color=PALE if name == "middle" else "white", zorder=0)
        axes.annotate(name, ((left + right) / 2, 1.01), xycoords=("data", "axes fraction"), **words)
    axes.set(
        yscale="log", xlim=(0, 0.5), ylim=(lowest / 1.3, highest * 1.3), ylabel="power density, 1 = white"
    )
    axes.set_xlabel("cycles per pixel (triangle: Nyquist frequency of the layer's output)")
    axes.set_xticks([0, 1 / 12, 1 / 8, 1 / 4, 1 / 3, 1 / 2], ["0", "1/12", "1/8", "1/4", "1/3", "1/2"])
    plain_log(axes.yaxis)
    axes.legend(loc="lower left", fontsize=9)
    return figure


def profiles_figure(groups: Mapping[str, Sequence[FilterSpectra]], title: str = "") -> Figure:
    """Pooled radial spectra of groups of first layers: the mean over a group, and its range as a band.

    The middle band is shaded. 1 is the density of filters of random numbers; the first group in grey is a control
    if its name begins with "untrained".
    """
    figure, axes = new_figure(size=(8, 3.8))
    colours = iter(PALETTE)
    axes.axvspan(LOW, HIGH, color=PALE, zorder=0)
    for name, spectra in groups.items():
        colour = GREY if name.startswith("untrained") else next(colours)
        x, y = spectra[0].radii, torch.stack([s.profile() for s in spectra])
        axes.fill_between(x, y.amin(0), y.amax(0), color=colour, alpha=0.2, linewidth=0)
        axes.plot(x, y.mean(0), color=colour, label=name)
    axes.axhline(1, color=GREY, linewidth=1, linestyle=":")
    axes.set(yscale="log", xlim=(0, 0.5), xlabel="cycles per pixel", ylabel="power density, 1 = white")
    plain_log(axes.yaxis)
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(fontsize=8)
    return figure


def spectrum_maps(spectra: FilterSpectra | Sequence[FilterSpectra]) -> Figure:
    """Pooled two-dimensional spectra on one logarithmic scale, up to four in a row, more in rows of three.

    Circles are the bounds of the bands; the dashed square holds what the layer's stride can keep apart.
    """
    from matplotlib.patches import Circle, Rectangle

    several = one_or_several(spectra)
    columns = len(several) if len(several) <= 4 else 3
    width = min(9, 3.4 * columns + 0.8)
    figure, panels = panel_grid(len(several), columns, width, row=(width - 1.2) / columns, beside=0.5)
    densities = [s.pooled * s.pooled.numel() for s in several]
    high = max(float(d.max()) for d in densities)
    for axes, one, density in zip(panels, several, densities, strict=True):
        shown = _draw_plane(axes, density, high / 300, high)
        for radius in (LOW, HIGH):
            axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor="white", linewidth=1))
        if max(one.stride) > 1:
            half = [1 / (2 * s) for s in one.stride]
            square = Rectangle((-half[1], -half[0]), 2 * half[1], 2 * half[0])
            square.set(fill=False, edgecolor="white", linewidth=1.4, linestyle="--")
            axes.add_patch(square)
        panel_title(axes, one.title)
        axes.label_outer()
    figure.colorbar(shown, ax=panels, label="power density, 1 = white", shrink=0.85, format="%g")
    return figure


def _draw_plane(axes: Any, power: Tensor, low: float, high: float) -> Any:
    """A spectrum (S, S) in logarithmic colours from `low` to `high`, frequency 0 in the middle."""
    from matplotlib.colors import LogNorm

    axes.grid(False)
    ticks = [-0.5, -0.25, 0, 0.25, 0.5]
    axes.set_xticks(ticks, ["-1/2", "", "0", "", "1/2"], fontsize=8)
    axes.set_yticks(ticks, ["-1/2", "", "0", "", "1/2"], fontsize=8)
    axes.set_xlabel("cycles/px to the right", fontsize=9)
    axes.set_ylabel("cycles/px down", fontsize=9)
    axes.set(xlim=(-0.5, 0.5), ylim=(0.5, -0.5))
    half = 0.5 / len(power)  # bins are centred on their frequencies, the first on -1/2
    extent = (-0.5 - half, 0.5 - half, 0.5 - half, -0.5 - half)
    return axes.imshow(power.clamp(min=low).numpy(), norm=LogNorm(low, high), cmap="viridis", extent=extent)


def lattice_figure(lattices: Lattice | Sequence[Lattice], controls: Sequence[Lattice] = ()) -> Figure:
    """For each `lattice`: where the pictures have their energy, the spectrum of it, and a cut through both axes.

    In the spectrum, circles are the frequencies looked for; in the cut, dotted lines. A lattice shows as peaks there
    in the spectrum, and as a grid in the map of energy. `controls`, one for each lattice, as of pictures that no
    stride has touched, appear in the cuts in grey.
    """
    several = one_or_several(lattices)
    figure, panels = new_figure(
        len(several), 3, size=(9, 2.75 * len(several) + 0.2), squeeze=False, width_ratios=[1, 1, 1.35]
    )
    for i, ((where, plane, cut), one) in enumerate(zip(panels, several, strict=True)):
        energy, high = one.energy.numpy(), float(one.energy.quantile(0.998))
        where.imshow(energy, cmap="gray", vmin=0, vmax=high, interpolation="nearest")
        panel_title(where, one.name)
        where.set_xlabel(f"px; mean energy of {one.count:,} pictures", fontsize=9)
        where.grid(False)
        most = float(one.power.max())
        floor = most * (1e-6 if one.of == "energy" else 1e-4)
        _draw_plane(plane, one.power, floor, most)
        circle = {
            "markersize": 9,
            "fillstyle": "none",
            "color": "white",
            "markeredgewidth": 1,
            "clip_on": False,
        }
        for u, v in one.points.tolist():  # the spectrum is symmetric
            plane.plot(v, u, "o", **circle)
            plane.plot(-v, -u, "o", **circle)
        panel_title(plane, f"spectrum of their {one.of}")
        if controls:
            _draw_cut(cut, controls[i], (GREY, GREY), (controls[i].name, None))
        _draw_cut(cut, one, (BLUE, RED), ("to the right", "down"))
        for k in range(1, max(one.stride) // 2 + 1):
            cut.axvline(k / max(one.stride), color="black", linewidth=1.2, linestyle=":", clip_on=False)
        panel_title(
            cut, f"peaks {one.ratio:.3g}x their neighbours, elsewhere to {one.interval()[1]:.2g}x", 8.5
        )
        unit = "power, 1 = at frequency 0" if one.of == "energy" else "power, all = 1"
        cut.set(yscale="log", xlim=(0, 0.5), ylim=(floor, most * 1.5), xlabel="cycles per pixel", ylabel=unit)
        cut.set_xticks(*EIGHTHS)
        cut.legend(loc="upper right", fontsize=8)
    return figure


def _draw_cut(
    axes: Any, lattice: Lattice, colours: tuple[str, str], labels: tuple[str | None, str | None]
) -> None:
    """Power along both axes from frequency 0 to 1/2: spectra of real numbers are symmetric."""
    middle = len(lattice.power) // 2
    axis = -lattice.frequencies[: middle + 1].flip(0)
    along = lattice.power[middle], lattice.power[:, middle]
    for power, mark, colour, label in zip(along, ("-", "--"), colours, labels, strict=True):
        axes.plot(axis, power[: middle + 1].flip(0), mark, color=colour, linewidth=1.6, label=label)


def aliasing_figure(results: Sequence[Aliasing]) -> Figure:
    """How much of what each filter hands on lies at wrong frequencies: layer by layer, networks side by side.

    A dot is a filter, larger where it answers more strongly; a bar is the whole layer's share, with its 95 %
    interval over pictures.
    """
    models = list(dict.fromkeys(one.model for one in results))
    colours = dict(zip(models, model_colours(models), strict=True))
    # in the order of the network of which most layers were measured
    of_model = sorted(
        ([one.layer for one in results if one.model == m] for m in models), key=len, reverse=True
    )
    layers = list(dict.fromkeys(layer for own in of_model for layer in own))
    figure, axes = new_figure(size=(9, 4.2))
    width = 0.8 / len(models)
    highest = 0.0
    for one in results:
        colour = colours[one.model]
        middle = layers.index(one.layer) + (models.index(one.model) - (len(models) - 1) / 2) * width
        known = ~one.share.isnan()
        share, energy, count = 100 * one.share[known], (one.kept + one.folded), int(known.sum())
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        x = middle + width * torch.linspace(-0.32, 0.32, count)[order]  # dots beside each other
        size = 4 + 60 * (energy[known] / energy.max())
        axes.scatter(x.numpy(), share.numpy(), s=size.numpy(), color=colour, alpha=0.35, linewidth=0)
        (low, high), total = one.interval(), 100 * one.layer_share
        axes.plot([middle - 0.42 * width, middle + 0.42 * width], [total, total], color=colour, linewidth=3)
        axes.plot([middle, middle], [100 * low, 100 * high], color="black", linewidth=1)
        beside = {"xytext": (1, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
        axes.annotate(f"{total:.1f}", (middle + 0.43 * width, total), **beside)
        highest = max(highest, float(torch.quantile(share, 0.99)), 100 * high)
    axes.set_xticks(range(len(layers)), [_layer_and_stride(layer, results) for layer in layers], fontsize=9)
    axes.grid(False, axis="x")
    axes.set(ylim=(0, 1.1 * highest), xlim=(-0.5, len(layers) - 0.4), ylabel="energy at wrong frequencies, %")
    for model, colour in colours.items():
        axes.plot([], [], color=colour, linewidth=3, label=model)
    axes.legend(loc="upper right", ncols=len(models), frameon=False)
    return figure


def _layer_and_stride(layer: str, results: Sequence[Aliasing]) -> str:
    """The layer's name, and below it the stride that all networks have there, or that of each."""
    strides = {one.model: max(one.stride) for one in results if one.layer == layer}
    if len(set(strides.values())) == 1:
        return f"{layer}\nstride {next(iter(strides.values()))}"
    return "\n".join([layer, *(f"{model}: stride {stride}" for model, stride in strides.items())])


def gratings_figure(responses: Sequence[GratingResponse], channel: int | None = None) -> Figure:
    """Responses to drifting gratings, a network per row: with stride 1, after the stride, and where they arrive.

    Grey is what stays in place, vermilion what arrives at a wrong frequency; the dashed line is the limit of the
    grid. `channel` picks one feature map; None takes the root mean square of all.
    """
    rows = len(responses)
    figure, panels = new_figure(rows, 3, size=(9, 2.75 * rows + 0.2), squeeze=False)
    for one, (plain, folding, arriving) in zip(responses, panels, strict=True):
        picked = slice(None) if channel is None else (one.channels == channel).nonzero()[:, 0]
        parts = (one.before, one.in_place, one.folded)
        before, kept, folded = (part[picked].square().mean(0).sqrt() for part in parts)
        if not before.numel() or not before.max() > 0:
            raise ZfkitError(f"feature map {channel} of {one.layer!r} did not answer to these gratings")
        top = float(before.max())
        _draw_gratings(plain, one, kept_and_folded(before / top, 0 * before))
        _draw_gratings(folding, one, kept_and_folded(kept / top, folded / top))
        plain.set_ylabel("orientation, degrees")
        name = f"{one.model} {one.layer}" + ("" if channel is None else f", map {channel}")
        plain.set_title(f"{name}, at every pixel", fontsize=10)
        folding.set_title(f"after stride {max(one.spacing)}", fontsize=10)
        _draw_arrivals(arriving, one, picked)
    plain.set_xlabel("frequency of the grating, cycles/px")  # below the last row alone
    folding.set_xlabel("frequency of the grating, cycles/px")
    arriving.set_xlabel("frequency it is seen at, cycles/px")
    return figure


def _draw_gratings(axes: Any, one: GratingResponse, colours: Tensor) -> None:
    """Colours (F, O, 3) over frequency and orientation, and the frequency that the grid holds."""
    f, o = one.frequency, one.orientation
    half, step = float(f[1] - f[0]) / 2, float(o[1] - o[0]) if len(o) > 1 else 15.0
    # 180 degrees are 0 again
    extent = (float(f[0]) - half, float(f[-1]) + half, -step / 2, 180 - step / 2)
    axes.imshow(colours.transpose(0, 1).numpy(), extent=extent, origin="lower", aspect="auto")
    axes.grid(False)
    axes.set_yticks([0, 45, 90, 135])
    axes.set_xticks(*EIGHTHS)
    angles = torch.arange(-8.0, 180)
    fx, fy = wave(1.0, angles)
    limit = 0.5 / torch.maximum(fx.abs() * one.spacing[1], fy.abs() * one.spacing[0])
    axes.plot(limit, angles, color="black", linewidth=1, linestyle="--")
    axes.set(xlim=extent[:2], ylim=extent[2:])


def _draw_arrivals(axes: Any, one: GratingResponse, picked: Any) -> None:
    """Energy by the frequency at which the map shows it, its own and wrong ones on top of each other."""
    edges, own, wrong = one.arrivals(picked)
    total = float(own.sum()) + float(wrong.sum())
    middle, width = (edges[:-1] + edges[1:]) / 2, float(edges[1] - edges[0])
    below = torch.zeros_like(own)
    for part, colour, label in ((own, "#4D4D4D", "its own"), (wrong, FOLDED, "wrong")):
        heights, bottoms = ((100 * v / total).numpy() for v in (part, below))
        label = f"{label}: {100 * float(part.sum()) / total:.0f} %"
        axes.bar(middle.numpy(), heights, 0.92 * width, bottoms, color=colour, label=label)
        below = below + part
    axes.set(
        ylabel="energy, %", xlim=(0, float(edges[-1])), ylim=(0, 1.42 * 100 * float(below.max()) / total)
    )
    axes.set_title("where it arrives", fontsize=10)
    axes.legend(fontsize=8, loc="upper left", handlelength=1, frameon=False)


def shift_figure(results: Sequence[ShiftConsistency], layers: Sequence[str] | None = None) -> Figure:
    """What a shift changes, networks in one colour each: class agreement where there is one, then layer by layer.

    Bands are 95 % intervals over pictures. Triangles on the axis mark shifts by whole units of the layer's map;
    "in place": no unit is free of the border, so maps are compared without moving them.
    """
    results = list(results)
    measured = list(dict.fromkeys(name for one in results for name in one.layers))
    names = measured if layers is None else list(layers)
    for name in names:
        if name not in measured:
            raise LayerError(unknown("layer with distances", name, measured))
    classes = any(not one.agreement.isnan().all() for one in results)
    count = len(names) + classes
    columns = min(count, 3)
    figure, panels = panel_grid(count, columns, width=3 * columns if columns > 1 else 5, row=2.9)
    colours = model_colours([one.model for one in results])
    if classes:
        _draw_agreement(panels[0], results, colours)
    distances = [one.distance[one.layers.index(n)] for one in results for n in names if n in one.layers]
    top = max((float(d.mean(0).nan_to_num(0).max()) for d in distances), default=1.0)
    for axes, name in zip(panels[classes:], names, strict=True):
        _draw_distances(axes, results, colours, name)
        axes.set(ylim=(0, 1.1 * top), xlim=(0, None))
    for i, axes in enumerate(panels):
        axes.set_xlabel("shift, px")
        axes.xaxis.get_major_locator().set_params(integer=True)
        # in the first panel of a row, or beside the classes'
        if (i % columns == 0 and i >= classes) or (i == 1 and classes and columns > 1):
            axes.set_ylabel("feature distance\n1 = another picture")
    panels[0].legend(fontsize=8, loc="best", frameon=False)
    return figure


def _draw_agreement(axes: Any, results: Sequence[ShiftConsistency], colours: Sequence[str]) -> None:
    for one, colour in zip(results, colours, strict=True):
        low, high = (100 * one.interval().T).numpy()
        shifts, kept = one.shifts.numpy(), (100 * one.consistency()).numpy()
        axes.fill_between(shifts, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(shifts, kept, color=colour, marker="o", markersize=4, label=one.model)
    axes.set_title("same class as before", fontsize=10)
    axes.set(ylabel="pictures, %", ylim=(0, 102), xlim=(0, None))


def _draw_distances(
    axes: Any, results: Sequence[ShiftConsistency], colours: Sequence[str], name: str
) -> None:
    in_place = []
    for one, colour in zip(results, colours, strict=True):
        if name not in one.layers:
            continue
        i = one.layers.index(name)
        distance = one.distance[i].mean(0).numpy()
        axes.plot(one.shifts.numpy(), distance, color=colour, marker="o", markersize=4, label=one.model)
        if not one.inside[i]:
            in_place.append(one.model)
            continue
        whole = [shift for shift in range(int(one.shifts[-1]) + 1) if shift % one.spacing[i] == 0]
        mark = {"color": colour, "markersize": 8, "alpha": 0.8, "clip_on": False}
        axes.plot(whole, [0] * len(whole), "^", transform=axes.get_xaxis_transform(), **mark)
    words = [", in place"] if len(in_place) == len(results) else [f", {m} in place" for m in in_place]
    axes.set_title("".join([name, *words]), fontsize=10)
