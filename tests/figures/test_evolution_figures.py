"""Figures of features that form during training: what they show is what was measured."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from tiny import image_set, network, random_pixels

import zfkit.figures
import zfkit.figures.evolution as plotting
from zfkit import ZfkitError
from zfkit.errors import LayerError
from zfkit.experiments.evolution import evolution, settled

mpl.use("Agg")


@pytest.fixture(scope="module")
def images():
    return image_set(random_pixels(24))


@pytest.fixture(scope="module")
def found(images):
    pairs = [(epoch, network(epoch)) for epoch in (0, 2, 5)]
    return evolution(pairs, images, ["0", "3", "6"], maps=3, compare=24, places=4, progress=False)


def all_text(figure):
    return " ".join(t.get_text() for axes in [figure, *figure.axes] for t in axes.texts).replace("\n", " ")


def test_the_grid_has_a_block_for_each_layer_a_row_for_each_map_a_column_for_each_epoch(found):
    figure = plotting.evolution_figure(found)
    blocks = [a for a in figure.axes if a.images]
    assert [a.get_title(loc="left") for a in blocks] == ["0: 3 px", "3: 9 px", "6: 20 px"]
    for axes, layer in zip(blocks, found.layers.values(), strict=True):
        assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "2", "5"]
        assert [t.get_text() for t in axes.get_yticklabels()] == [str(c) for c in layer.channels.tolist()]
    assert len([a for a in plotting.evolution_figure(found, ["3"]).axes if a.images]) == 1
    with pytest.raises(LayerError, match="was not looked at"):
        plotting.evolution_figure(found, ["9"])


def test_each_row_has_one_symmetric_scale(found):
    layer = found["3"]
    rgb = plotting.evolution_rgb(layer)
    for m in range(3):
        row = layer.projection[m] * layer.active[layer.channels[m]][:, None, None, None]
        high = np.percentile(row.abs().numpy(), 99.5)
        expected = np.round(128 + 127 * np.clip(row.numpy() / high, -1, 1))
        assert np.abs(rgb[m].numpy().astype(int) - expected).max() <= 1
    each = plotting.evolution_rgb(layer, "picture")
    shown = layer.active[layer.channels]
    assert torch.equal(each[shown], zfkit.figures.signed_to_rgb(layer.projection[shown]))
    with pytest.raises(ZfkitError, match="there is no scale 'colum'"):
        plotting.evolution_sheet(layer, "colum")


def test_bars_stand_where_the_strongest_picture_changed(found):
    layer = found["0"]
    sheet = plotting.evolution_sheet(layer)
    side, gap = 63, plotting.SHEET_GAP  # 3 px, 21 times as large
    assert sheet.shape == (3 * (side + gap) - gap, 3 * (side + gap), 3)
    rgb = plotting.evolution_rgb(layer)
    for m, c in enumerate(layer.channels.tolist()):
        for e in range(3):
            top, left = m * (side + gap), e * (side + gap) + gap
            bar = sheet[top + side // 2, left - gap // 2]
            orange = tuple(bar) == tuple(int(plotting.CHANGED[k : k + 2], 16) for k in (1, 3, 5))
            assert orange == (e > 0 and bool(layer.image[c, e] != layer.image[c, e - 1]))
            assert tuple(sheet[top + 10, left + 10]) == tuple(rgb[m, e, :, 0, 0].tolist())


def test_maps_that_are_active_nowhere_are_left_grey(images):
    def silenced(seed):
        model = network(seed)
        model.net[0].bias.data[1] = -1e6 if seed == 0 else 0
        return model

    run = evolution([(s, silenced(s)) for s in (0, 1)], images, "0", [1], progress=False)
    rgb = plotting.evolution_rgb(run["0"])
    assert (rgb[0, 0] == 128).all() and (rgb[0, 1] != 128).any()


def test_the_chart_of_numbers_draws_them(found):
    chart = plotting.convergence_figure([found, found], level=0.8)
    (line,) = chart.select_traces({"name": "3"}, row=1, col=1)
    assert list(line.y) == pytest.approx(found["3"].distance.tolist()) and list(line.x) == [0, 2, 5]
    (line,) = chart.select_traces({"name": "6"}, row=1, col=2)
    assert list(line.y) == pytest.approx(found["6"].cka.tolist())
    dots = [t for t in chart.select_traces(row=2, col=2) if t.customdata is not None]
    expected = [float(settled(found.epochs, layer.cka, 0.8)) for layer in found.layers.values()]
    assert [list(t.x) for t in dots] == [pytest.approx([epoch, epoch]) for epoch in expected]
    assert [t.legendgroup for t in dots] == ["0", "3", "6"], "hidden and shown with their layer"
    colours = [t.line.color for t in chart.select_traces(row=1, col=1) if t.showlegend]
    assert len(set(colours)) == 3


def test_what_is_missing_is_said(images):
    pairs = [(epoch, network(epoch)) for epoch in (0, 2)]
    run = evolution(pairs, images, ["0", "3"], maps=1, epochs=[2, 7], name="mine", progress=False)
    text = all_text(plotting.evolution_figure(run))
    assert "mine: each map's strongest" in text and "epoch 7 was not kept (there are: 0, 2)" in text
    assert "one snapshot, so nothing to compare it with" in text
    assert "one snapshot: nothing to compare with" in {
        a.text for a in plotting.convergence_figure(run).layout.annotations
    }


def test_a_film_has_a_picture_for_each_snapshot_with_the_patch_below_the_projection(found):
    """Tiles of 18 px: windows of 9 px are twice as large; to the left and above are words."""
    film = plotting.evolution_film(found, ["3", "6"], tile=18)
    assert len(film) == 3 and len({frame.size for frame in film}) == 1
    layer, rgb = found["3"], plotting.evolution_rgb(found["3"])
    for e, frame in enumerate(film):
        shown = np.asarray(frame)
        for m in range(3):
            left = 52 + m * (18 + 2)
            for row, picture in enumerate([rgb[m, e], layer.photo[m, e]]):
                top = 22 + row * (18 + 2)
                expected = picture.permute(1, 2, 0).numpy().repeat(2, 0).repeat(2, 1)
                np.testing.assert_array_equal(shown[top : top + 18, left : left + 18], expected)
