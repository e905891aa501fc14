"""Figures of filters' spectra, aliasing and shifts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import LayerError, ZfkitError, unknown
from ..frequency import HIGH, LOW, wave
from ..images.colour import signed_to_rgb
from .charts import Style, Where, band, draw, new_chart, note
from .pictures import montage
from .style import (
    BLACK,
    BLUE,
    FOLDED,
    GREY,
    KERNEL_COLOURS,
    PALE,
    PALETTE,
    RED,
    kept_and_folded,
    model_colours,
    new_figure,
    one_or_several,
    panel_grid,
    panel_title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as Chart
    from torch import Tensor

    from ..frequency import Aliasing, FilterSpectra, GratingResponse, Lattice, RandomControl, ShiftConsistency

EIGHTHS = ([0, 1 / 8, 1 / 4, 3 / 8, 1 / 2], ["0", "1/8", "1/4", "3/8", "1/2"])  # cycles per pixel, as written


def filter_sheet(
    spectra: FilterSpectra | Sequence[FilterSpectra], *, order: str = "centroid", columns: int = 12
) -> Figure:
    """First-layer filters of one or several networks side by side, sorted by a column of its table: a plate.

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
                f"the filters of {one.title} do not look at a picture: take a first layer, or project its units"
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


def radial_spectra(controls: RandomControl | Sequence[RandomControl]) -> Chart:
    """Pooled radial spectra of several layers, each over the band where random filters of its size lie: a chart.

    Density is relative to white filters', which have 1 at every frequency. A triangle on the axis marks where a
    layer's stride begins to alias: 1/(2 stride).
    """
    several = one_or_several(controls)
    chart = _radial_chart(height=440)
    for control, colour in zip(several, model_colours([c.spectra.name for c in several]), strict=True):
        spectra = control.spectra
        summary = spectra.summary()
        shares = ", ".join(f"{100 * summary[name]:.0f} % {name}" for name in ("low", "mid", "high"))
        name = f"{spectra.title}: {shares}"
        band(chart, (1, 1), spectra.radii, *control.profile_interval(), colour, name)
        _draw_profile(chart, name, spectra.title, spectra.radii, spectra.profile(), colour)
        nyquist = 1 / (2 * max(spectra.stride))
        if nyquist < 0.5:
            words = f"{spectra.title}: its stride of {max(spectra.stride)} px keeps frequencies below {nyquist:.3g}"
            place: Style = {"yref": "y domain", "yanchor": "bottom", "xshift": -6, "hovertext": words}
            note(chart, (1, 1), nyquist, 0, f"▲ limit of stride {max(spectra.stride)}", colour, **place)
    random = f"random filters: mean 1, bands {several[0].level:.0%} of {len(several[0].profiles)} draws"
    note(chart, (1, 1), 0.5, 0, random, xanchor="right", xshift=0, yanchor="bottom")
    return chart


def _radial_chart(title: str = "", height: int = 400) -> Chart:
    """An empty chart of density over frequency, with the bands and the line where random filters lie."""
    chart = new_chart(title=title, height=height)
    middle: Style = {"fillcolor": PALE, "line_width": 0, "layer": "below", "exclude_empty_subplots": False}
    chart.add_vrect(x0=LOW, x1=HIGH, row=1, col=1, **middle)
    for left, right, name in ((0, LOW, "low"), (LOW, HIGH, "middle"), (HIGH, 0.5, "high")):
        above: Style = {"yref": "y domain", "xanchor": "center", "yanchor": "bottom", "xshift": 0}
        note(chart, (1, 1), (left + right) / 2, 1, name, **above)
    dashes = {"color": GREY, "dash": "dash", "width": 1}
    draw(chart, x=[0, 0.5], y=[1, 1], mode="lines", line=dashes)
    ticks = [0, 1 / 12, 1 / 8, 1 / 4, 1 / 3, 1 / 2]
    chart.update_xaxes(range=[0, 0.5], tickvals=ticks, ticktext=["0", "1/12", "1/8", "1/4", "1/3", "1/2"])
    chart.update_xaxes(title_text="cycles per pixel")
    ticks = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
    chart.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    chart.update_yaxes(title_text="power density, 1 = white")
    return chart


def _draw_profile(chart: Chart, name: str, words: str, radii: Tensor, values: Tensor, colour: str) -> None:
    told = f"{words}<br>%{{x:.3f}} cycles/px: density %{{y:.3g}}"
    data: Style = {"x": radii.numpy(), "y": values.numpy()}
    draw(chart, name=name, line_color=colour, mode="lines", told=told, **data)


def profiles_figure(groups: Mapping[str, Sequence[FilterSpectra]], title: str = "") -> Chart:
    """Pooled radial spectra of groups of first layers, the mean over a group and its range as a band: a chart.

    1 is the density of filters of random numbers. A group is grey if its name begins with "untrained", has its
    kernel's colour if with "7x7" or "11x11", and is dashed if it says "stride 4". Frequency 0, the filters' mean, is
    left out: it is 0 where a mean was taken off.
    """
    chart = _radial_chart(title)
    left = iter([c for c in PALETTE if c not in KERNEL_COLOURS.values()])
    kernels = {f"{k}x{k}": colour for k, colour in KERNEL_COLOURS.items()}
    for name, spectra in groups.items():
        known = GREY if name.startswith("untrained") else kernels.get(name.partition(",")[0])
        colour = known or next(left)
        x, y = spectra[0].radii[1:], torch.stack([s.profile() for s in spectra])[:, 1:]
        band(chart, (1, 1), x, y.amin(0), y.amax(0), colour, name)
        _draw_profile(chart, name, f"{name}, mean of {len(spectra)}", x, y.mean(0), colour)
        chart.data[-1].line.dash = "dash" if "stride 4" in name else "solid"
    return chart


def spectrum_maps(spectra: FilterSpectra | Sequence[FilterSpectra]) -> Figure:
    """Pooled two-dimensional spectra on one logarithmic scale, up to four in a row, more in rows of three: a plate.

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
    """For each `lattice`: where the pictures have their energy, its spectrum, and a cut through both axes: a plate.

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
        circle = {"markersize": 9, "fillstyle": "none", "color": "white", "clip_on": False}
        for u, v in one.points.tolist():  # the spectrum is symmetric
            plane.plot([v, -v], [u, -u], "o", markeredgewidth=1, **circle)
        panel_title(plane, f"spectrum of their {one.of}")
        if controls:
            _draw_cut(cut, controls[i], (GREY, GREY), (controls[i].name, None))
        _draw_cut(cut, one, (BLUE, RED), ("to the right", "down"))
        for k in range(1, max(one.stride) // 2 + 1):
            cut.axvline(k / max(one.stride), color="black", linewidth=1.2, linestyle=":", clip_on=False)
        beyond = one.interval()[1]
        panel_title(cut, f"peaks {one.ratio:.3g}x their neighbours, elsewhere to {beyond:.2g}x", 8.5)
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


def aliasing_figure(results: Aliasing | Sequence[Aliasing]) -> Chart:
    """How much of what each filter hands on lies at wrong frequencies, layer by layer, networks side by side: a chart.

    A dot is a filter, larger where it answers more strongly; a bar is the whole layer's share, with its 95 %
    interval over pictures.
    """
    results = one_or_several(results)
    models = list(dict.fromkeys(one.model for one in results))
    colours = dict(zip(models, model_colours(models), strict=True))
    # in the order of the network of which most layers were measured
    of_model = ([one.layer for one in results if one.model == m] for m in models)
    layers = list(dict.fromkeys(layer for own in sorted(of_model, key=len, reverse=True) for layer in own))
    chart = new_chart(height=430)
    width = 0.8 / len(models)
    for one in results:
        colour = colours[one.model]
        middle = layers.index(one.layer) + (models.index(one.model) - (len(models) - 1) / 2) * width
        channels = (~one.share.isnan()).nonzero()[:, 0]
        energy = (one.kept + one.folded)[channels]
        order = torch.randperm(len(channels), generator=torch.Generator().manual_seed(0))
        x = middle + width * torch.linspace(-0.32, 0.32, len(channels))[order]  # dots beside each other
        size = 4 + 8 * (energy / energy.max()).sqrt()
        told = f"{one.model} {one.layer}, map %{{customdata[0]}}<br>%{{y:.1f}} % of its energy at wrong frequencies"
        frequencies = one.frequency[channels].tolist()
        of_filter = [f"<br>its filter: {f:.2f} cycles/px" if f == f else "" for f in frequencies]
        words = zip(channels.tolist(), (energy / energy.sum() * 100).tolist(), of_filter, strict=True)
        draw(
            chart, name=one.model, x=x.numpy(), y=(100 * one.share[channels]).numpy(), mode="markers",
            marker={"color": colour, "size": size.numpy(), "opacity": 0.4, "line": {"width": 0}},
            customdata=[list(row) for row in words],
            told=told + "<br>%{customdata[1]:.1f} % of the layer's energy%{customdata[2]}",
        )  # fmt: skip
        (low, high), total = one.interval(), 100 * one.layer_share
        told = f"{one.model} {one.layer}: {total:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f}"
        ends = [middle - 0.42 * width, middle + 0.42 * width]
        line = {"color": colour, "width": 4}
        draw(chart, x=ends, y=[total, total], mode="lines", line=line, hoverinfo="skip")
        draw(
            chart, x=[middle], y=[total], mode="markers", marker={"color": colour, "size": 1},
            error_y={"array": [100 * high - total], "arrayminus": [total - 100 * low], "color": BLACK, "width": 3},
            told=told,
        )  # fmt: skip
        first = models.index(one.model) < len(models) / 2  # its number to the left, clear of others' dots
        place: Style = {"xanchor": "right", "xshift": -2} if first else {"xshift": 2}
        note(chart, (1, 1), ends[not first], total, f"{total:.1f}", BLACK, **place)
    ticks = [_layer_and_stride(layer, results) for layer in layers]
    chart.update_xaxes(range=[-0.5, len(layers) - 0.4], tickvals=list(range(len(layers))), ticktext=ticks)
    chart.update_yaxes(title_text="energy at wrong frequencies, %", rangemode="tozero")
    return chart


def _layer_and_stride(layer: str, results: Sequence[Aliasing]) -> str:
    """The layer's name, and below it the stride that all networks have there, or that of each."""
    strides = {one.model: max(one.stride) for one in results if one.layer == layer}
    if len(set(strides.values())) == 1:
        return f"{layer}<br>stride {next(iter(strides.values()))}"
    return "<br>".join([layer, *(f"{model}: stride {stride}" for model, stride in strides.items())])


def gratings_figure(
    responses: GratingResponse | Sequence[GratingResponse], channel: int | None = None
) -> Chart:
    """Responses to drifting gratings, a network per row: with stride 1, after the stride, where they arrive: a chart.

    Grey is what stays in place, vermilion what arrives at a wrong frequency; the dashed line is the limit of the
    grid. `channel` picks one feature map; None takes the root mean square of all.
    """
    responses = one_or_several(responses)
    rows = len(responses)
    picks = [slice(None) if channel is None else (r.channels == channel).nonzero()[:, 0] for r in responses]
    titles = [_titles(one, picked, channel) for one, picked in zip(responses, picks, strict=True)]
    size: Style = {"height": 270 * rows + 90, "horizontal_spacing": 0.08}
    chart = new_chart(rows, 3, titles=list(itertools.chain(*titles)), **size)
    for row, (one, picked) in enumerate(zip(responses, picks, strict=True), start=1):
        parts = (one.before, one.in_place, one.folded)
        before, kept, folded = (part[picked].square().mean(0).sqrt() for part in parts)
        if not before.numel() or not before.max() > 0:
            raise ZfkitError(f"feature map {channel} of {one.layer!r} did not answer to these gratings")
        top = before.max()
        _draw_gratings(chart, (row, 1), one, before / top, 0 * before)
        _draw_gratings(chart, (row, 2), one, kept / top, folded / top)
        chart.update_yaxes(title_text="orientation, degrees", row=row, col=1)
        _draw_arrivals(chart, (row, 3), one, picked)
    for column, of in enumerate(("of the grating", "of the grating", "it is seen at"), start=1):
        chart.update_xaxes(title_text=f"frequency {of}, cycles/px", row=rows, col=column)
    chart.update_xaxes(matches="x3", tickvals=EIGHTHS[0], ticktext=EIGHTHS[1], col=3)  # networks on one scale
    return chart.update_yaxes(matches="y3", col=3).update_layout(barmode="stack")


def _titles(one: GratingResponse, picked: Any, channel: int | None) -> tuple[str, str, str]:
    """What stands above a row's panels."""
    _, own, wrong = (float(part.sum()) for part in one.arrivals(picked))
    name = f"{one.model} {one.layer}" + ("" if channel is None else f", map {channel}")
    share = 100 * wrong / max(own + wrong, 1e-30)
    after, arrives = f"after stride {max(one.spacing)}", f"where it arrives: {share:.0f} % wrong"
    return f"{name}, at every pixel", after, arrives


def _draw_gratings(chart: Chart, where: Where, one: GratingResponse, kept: Tensor, folded: Tensor) -> None:
    """Answers (F, O) over frequency and orientation in colours, and the frequency that the grid holds."""
    f, o = one.frequency, one.orientation
    step = float(o[1] - o[0]) if len(o) > 1 else 15.0
    draw(
        chart, where, kind="image", z=(255 * kept_and_folded(kept, folded)).round().transpose(0, 1).tolist(),
        x0=float(f[0]), dx=float(f[1] - f[0]), y0=float(o[0]), dy=step,
        customdata=torch.stack([kept, folded], -1).transpose(0, 1).numpy(),
        told="%{x:.3f} cycles/px at %{y:.0f} degrees<br>answer in place %{customdata[0]:.2f}, at a wrong "
        "frequency %{customdata[1]:.2f} (1: the strongest)",
    )  # fmt: skip
    angles = torch.arange(-8.0, 180)
    fx, fy = wave(1.0, angles)
    limit = 0.5 / torch.maximum(fx.abs() * one.spacing[1], fy.abs() * one.spacing[0])
    dashes = {"color": BLACK, "width": 1, "dash": "dash"}
    draw(chart, where, x=limit.numpy(), y=angles.numpy(), mode="lines", line=dashes)
    half, (row, column) = float(f[1] - f[0]) / 2, where
    ends = [float(f[0]) - half, float(f[-1]) + half]
    ticks = {"tickvals": EIGHTHS[0], "ticktext": EIGHTHS[1]}
    chart.update_xaxes(range=ends, row=row, col=column, constrain=None, **ticks)
    # 180 degrees are 0 again; an image's axes keep its pixels square unless they are let go
    chart.update_yaxes(range=[-step / 2, 180 - step / 2], tickvals=[0, 45, 90, 135], row=row, col=column)
    chart.update_yaxes(scaleanchor=False, row=row, col=column)


def _draw_arrivals(chart: Chart, where: Where, one: GratingResponse, picked: Any) -> None:
    """Energy by the frequency at which the map shows it, its own and wrong ones on top of each other."""
    edges, own, wrong = one.arrivals(picked)
    total = float(own.sum()) + float(wrong.sum())
    middle = (edges[:-1] + edges[1:]) / 2
    for part, colour, name in ((own, "#4D4D4D", "its own frequency"), (wrong, FOLDED, "a wrong frequency")):
        told = f"{name}<br>seen at %{{x:.3f}} cycles/px: %{{y:.1f}} % of the energy"
        options: Style = {"marker": {"color": colour, "line": {"width": 0}}, "told": told}
        draw(chart, where, f"at {name}", "bar", x=middle.numpy(), y=(100 * part / total).numpy(), **options)
    chart.update_yaxes(title_text="energy, %", rangemode="tozero", row=where[0], col=where[1])
    chart.update_xaxes(rangemode="tozero", row=where[0], col=where[1])


def shift_figure(
    results: ShiftConsistency | Sequence[ShiftConsistency], layers: Sequence[str] | None = None
) -> Chart:
    """What a shift changes, networks in one colour each: class agreement, then layer by layer: a chart.

    Bands are 95 % intervals over pictures. Triangles on the axis mark shifts by whole units of the layer's map;
    "in place": no unit is free of the border, so maps are compared without moving them.
    """
    results = one_or_several(results)
    measured = list(dict.fromkeys(name for one in results for name in one.layers))
    names = measured if layers is None else list(layers)
    for name in names:
        if name not in measured:
            raise LayerError(unknown("layer with distances", name, measured))
    classes = any(not one.agreement.isnan().all() for one in results)
    count = len(names) + classes
    columns = min(count, 3)
    titles = ["same class as before, % of pictures"] * classes
    titles += [_shift_title(name, results) for name in names]
    places = [(1 + i // columns, 1 + i % columns) for i in range(count)]
    chart = new_chart(places[-1][0], columns, titles=titles, height=260 * places[-1][0] + 100)
    colours = model_colours([one.model for one in results])
    if classes:
        _draw_agreement(chart, results, colours)
    distances = [one.distance[one.layers.index(n)] for one in results for n in names if n in one.layers]
    top = max((float(d.mean(0).nan_to_num(0).max()) for d in distances), default=1.0)
    for where, name in zip(places[classes:], names, strict=True):
        _draw_distances(chart, where, results, colours, name)
        chart.update_yaxes(range=[0, 1.1 * top], row=where[0], col=where[1])
        if where == places[classes] or where[1] == 1:
            chart.update_yaxes(title_text="feature distance, 1 = another picture", row=where[0], col=where[1])
    for row, column in places:
        chart.update_xaxes(title_text="shift, px", rangemode="tozero", row=row, col=column)
    return chart


def _shift_title(name: str, results: Sequence[ShiftConsistency]) -> str:
    own = [one for one in results if name in one.layers]
    in_place = [one.model for one in own if not one.inside[one.layers.index(name)]]
    words = [", in place"] if len(in_place) == len(results) else [f", {m} in place" for m in in_place]
    return "".join([name, *words])


def _draw_agreement(chart: Chart, results: Sequence[ShiftConsistency], colours: Sequence[str]) -> None:
    for one, colour in zip(results, colours, strict=True):
        low, high = (100 * one.interval().T).numpy()
        shifts, kept = one.shifts.numpy(), (100 * one.consistency()).numpy()
        band(chart, (1, 1), shifts, low, high, colour, one.model)
        told = f"{one.model}<br>moved by %{{x}} px, %{{y:.1f}} % keep their class"
        draw(
            chart, (1, 1), one.model, x=shifts, y=kept, mode="lines+markers", line_color=colour,
            customdata=one.interval().mul(100).numpy(),
            told=told + " (%{customdata[0]:.1f} to %{customdata[1]:.1f})",
        )  # fmt: skip
    chart.update_yaxes(range=[0, 102], row=1, col=1)


def _draw_distances(
    chart: Chart, where: Where, results: Sequence[ShiftConsistency], colours: Sequence[str], name: str
) -> None:
    for one, colour in zip(results, colours, strict=True):
        if name not in one.layers:
            continue
        i = one.layers.index(name)
        told = f"{one.model} {name}<br>moved by %{{x}} px: distance %{{y:.3f}}"
        options: Style = {"mode": "lines+markers", "line_color": colour, "told": told}
        draw(chart, where, one.model, x=one.shifts.numpy(), y=one.distance[i].mean(0).numpy(), **options)
        if one.inside[i]:
            whole = [shift for shift in range(int(one.shifts[-1]) + 1) if shift % one.spacing[i] == 0]
            triangles = {"symbol": "triangle-up", "size": 9, "color": colour, "opacity": 0.8}
            told = f"{one.model} {name}: %{{x}} px are whole units"
            options = {"marker": triangles, "cliponaxis": False, "told": told}
            draw(chart, where, x=whole, y=[0] * len(whole), mode="markers", **options)
