"""Figures of frequencies: what is drawn is what was measured."""

import math

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from signals import (
    F64,
    classifier,
    distances_from_0,
    literal_power,
    mean_of_channels,
    noise,
    random_weight,
    wrap,
)
from torch import nn

import zfkit
import zfkit.figures as figures
from zfkit import ZfkitError
from zfkit.errors import LayerError
from zfkit.frequency import grating_response, lattice, measure_aliasing, random_control, shift_consistency

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_a_sheet_of_filters_is_sorted_and_symmetric_about_grey():
    """Flat filters of one colour each, and one of stripes: its tile comes last, and 0 is grey 128."""
    strengths = torch.tensor([0.5, -3.0, 1.0, 2.0], dtype=F64).view(4, 1, 1, 1)
    weight = torch.ones(4, 3, 2, 2, dtype=F64) * strengths
    weight[2, :, :, 1] *= -1
    weight[3, 0] = 0
    axes = figures.filter_sheet(zfkit.filter_spectra(weight), columns=2).axes[0]
    sheet = np.asarray(axes.images[0].get_array())
    tile, step = 66, 72
    colours = [sheet[y : y + tile, x : x + tile].reshape(-1, 3) for y in (0, step) for x in (0, step)]
    assert [set(map(tuple, c.tolist())) for c in colours] == [
        {(255, 255, 255)}, {(1, 1, 1)}, {(128, 255, 255)}, {(255, 255, 255), (1, 1, 1)},
    ]  # fmt: skip
    table = zfkit.filter_spectra(weight).table()
    firsts = [float(label.get_text()) for label in axes.get_yticklabels()]
    np.testing.assert_allclose(firsts, table.centroid.sort_values().iloc[::2], atol=0.006)
    with pytest.raises(LayerError, match="do not look at a picture"):
        figures.filter_sheet(zfkit.filter_spectra(random_weight(2, 5, 3, 3)))
    with pytest.raises(ZfkitError, match=r"there is no column 'centre'\. Did you mean 'centroid'"):
        figures.filter_sheet(zfkit.filter_spectra(weight), order="centre")


def test_radial_spectra_show_profiles_over_the_controls_band():
    spectra = [zfkit.filter_spectra(random_weight(3, 3, k, k, random_seed=k), stride=k // 2) for k in (3, 5)]
    controls = [random_control(s, draws=5) for s in spectra]
    chart = figures.radial_spectra(controls)
    curves = [trace for trace in chart.data if trace.hovertemplate]
    bands = [trace for trace in chart.data if trace.fill]
    for control, curve, area in zip(controls, curves, bands, strict=True):
        np.testing.assert_allclose(curve.y, control.spectra.profile())
        low, high = control.profile_interval()
        np.testing.assert_allclose(area.y, torch.cat([high, low.flip(0)]))
        assert area.legendgroup == curve.name, "hidden together"
    triangles = [(note.x, note.hovertext) for note in chart.layout.annotations if note.text.startswith("▲")]
    assert [x for x, _ in triangles] == [0.25] and "below 0.25" in triangles[0][1]  # stride 1 folds nothing


def test_maps_of_spectra_share_one_scale():
    weights = [random_weight(3, 3, k, k, random_seed=k) for k in (2, 3, 4, 5, 6)]
    spectra = [zfkit.filter_spectra(weight, stride=2) for weight in weights]
    figure = figures.spectrum_maps(spectra)
    shown = [axes.images[0] for axes in figure.axes if axes.images and axes.get_title(loc="left")]
    assert len(shown) == 5 and len({(i.norm.vmin, i.norm.vmax) for i in shown}) == 1
    np.testing.assert_allclose(shown[2].get_array(), spectra[2].pooled * 4096)
    left, right, bottom, top = shown[0].get_extent()
    assert [64 * edge for edge in (left, right, bottom, top)] == [-32.5, 31.5, 31.5, -32.5]


def test_the_cut_through_a_lattice_runs_from_0_to_the_nyquist_frequency():
    normal = torch.randn(2, 50, 1, 32, 32, generator=torch.Generator().manual_seed(0), dtype=F64)
    pictures = normal[0] * (1 + 0.5 * torch.cos(math.pi * torch.arange(32) / 2)).sqrt()
    found, control = lattice(pictures, 4, name="grid"), lattice(normal[1], 4, name="noise")
    axes = figures.lattice_figure(found, [control]).axes
    curves = {line.get_label(): line for line in axes[2].lines}
    right = curves["to the right"]
    assert right.get_xdata()[0] == 0 and right.get_xdata()[-1] == 0.5
    at = dict(zip(np.round(right.get_xdata(), 6), right.get_ydata(), strict=True))
    assert at[0] == pytest.approx(1)
    peak = found.table().iloc[0]
    assert (peak.u, abs(peak.v)) == (0, 0.25) and at[0.25] == pytest.approx(peak.power)
    assert curves["noise"].get_ydata()[0] == pytest.approx(1)


def test_the_chart_of_shifts_draws_agreement_and_distances_and_marks_whole_units():
    found = shift_consistency(classifier(), noise(4, 22), 4)
    chart = figures.shift_figure([found])
    _, agreement = chart.select_traces(row=1, col=1)
    assert np.allclose(agreement.y, 100 * found.consistency())
    assert np.allclose(agreement.customdata, 100 * found.interval())
    line, triangles = chart.select_traces(row=1, col=2)
    assert np.allclose(line.y, found.distance[0].mean(0))
    assert list(triangles.x) == [0, 2, 4]  # stride 2
    titles = [words.text for words in chart.layout.annotations]
    assert titles[0].endswith("% of pictures") and titles[2] == "3, in place"
    ranges = [chart.get_subplot(1, column).yaxis.range for column in (2, 3)]
    assert ranges[0] == ranges[1], "distances share one scale"
    with pytest.raises(LayerError, match="no layer with distances 'conv1'"):
        figures.shift_figure([found], ["conv1"])


def test_the_chart_of_aliasing_has_a_dot_for_every_filter_and_a_bar_for_the_layer():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 7, 3, 2)
    found = measure_aliasing(wrap(conv), noise(3, 48), "0")
    dots, bar, interval = figures.aliasing_figure([found]).data
    channels = [row[0] for row in dots.customdata]
    assert sorted(channels) == list(range(7))
    power, (rho, _) = literal_power(conv.weight.detach(), 64), distances_from_0(64)
    frequency = (power * rho).sum((1, 2)) / power.sum((1, 2))
    told = [f"<br>its filter: {frequency[c]:.2f} cycles/px" for c in channels]
    assert [row[2] for row in dots.customdata] == told
    pool = measure_aliasing(wrap(nn.Conv2d(3, 2, 3), nn.MaxPool2d(2)), noise(3, 48), "1")
    assert {row[2] for row in figures.aliasing_figure([pool]).data[0].customdata} == {""}
    np.testing.assert_allclose(dots.y, 100 * found.share[channels])
    assert list(bar.y) == pytest.approx([100 * found.layer_share] * 2)
    low, high = found.interval()
    assert interval.y[0] + interval.error_y.array[0] == pytest.approx(100 * high)
    assert interval.y[0] - interval.error_y.arrayminus[0] == pytest.approx(100 * low)


def test_the_chart_of_gratings_is_coloured_where_answers_are_folded():
    found = grating_response(
        wrap(mean_of_channels(stride=2)), "0", frequencies=[0.1, 0.2, 0.3, 0.4], orientations=[0, 90]
    )
    chart = figures.gratings_figure([found])
    before, after = chart.select_traces({"type": "image"})
    plain, coloured = np.asarray(before.z), np.asarray(after.z)
    assert np.ptp(plain, axis=2).max() == 0  # grey
    assert (np.ptp(coloured, axis=2) > 25).tolist() == [[False, False, True, True]] * 2
    assert (after.customdata[..., 1] > 1e-6).tolist() == [[False, False, True, True]] * 2
    assert before.x0 + 3 * before.dx == pytest.approx(0.4)
    assert sum(sum(bar.y) for bar in chart.select_traces({"type": "bar"})) == pytest.approx(100)
    with pytest.raises(ZfkitError, match="feature map 5 of '0' did not answer"):
        figures.gratings_figure([found], channel=5)
