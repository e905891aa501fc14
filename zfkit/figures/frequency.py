"""Figures of filters' spectra, aliasing and shifts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import LayerError, ZfkitError, unknown
from ..frequency.aliasing import Aliasing
from ..frequency.control import RandomControl
from ..frequency.gratings import GratingResponse, fold, wave
from ..frequency.lattice import Lattice
from ..frequency.shifts import ShiftConsistency
from ..frequency.spectra import HIGH, LOW, FilterSpectra
from .pictures import signed_to_rgb
from .style import BLUE, FOLDED, GREY, MODEL_COLOURS, PALETTE, RED, _mix, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


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
