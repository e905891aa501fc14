"""Networks to scale, and their feature maps as points."""

from __future__ import annotations

import pandas as pd
import pytest
from tiny import image_set, network, random_pixels

import zfkit
from zfkit import figures
from zfkit.errors import LayerError
from zfkit.experiments.selectivity import selectivity


def boxes(chart):
    """Front faces by what hovering tells: (width, height)."""
    faces = [trace for trace in chart.data if trace.fill]  # three of each box, the front first
    dots = [trace for trace in chart.data if trace.hovertemplate]
    return {
        dot.hovertemplate.partition("<br>")[0]: (max(f.x) - min(f.x), max(f.y) - min(f.y), dot.hovertemplate)
        for f, dot in zip(faces[::3], dots, strict=True)
    }


def test_boxes_are_to_scale_and_tell_what_a_layer_is(zfnet64):
    found = boxes(figures.network(zfnet64))
    assert list(found) == ["input", "conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert found["input"][1] == 64 and "3 maps of 64 x 64" in found["input"][2]
    for name, (wide, high, _) in found.items():
        if name != "input":
            maps, rows = (*zfnet64.network.shapes[name], 1)[:2]
            assert high == rows and wide / found["input"][0] == pytest.approx(maps / 3)
    weight = zfnet64.net.conv1.weight
    assert f"7x7 filters, stride 2, {weight.numel() + len(weight):,} weights" in found["conv1"][2]
    assert "each unit sees 7 px, its neighbour 2 px on" in found["conv1"][2]
    assert "sees the whole picture" in found["fc8"][2]
    assert list(boxes(figures.network(zfnet64, ["pool1", "conv2"]))) == ["input", "pool1", "conv2"]
    with pytest.raises(LayerError, match="conv9"):
        figures.network(zfnet64, ["conv9"])


def test_every_map_is_a_point_at_its_reach_and_selectivity():
    model = network(0)
    images = image_set(random_pixels(30), [i % 3 for i in range(30)], ("r", "g", "b"))
    top = zfkit.mine(model, images, k=2, progress=False)
    found = selectivity(model, images, k=2, shuffles=1, progress=False)
    chart = figures.map_of_maps(model, top, found)
    drawn = {
        (t.name, int(row[0])): (x, y, row)
        for t in chart.data
        for x, y, row in zip(t.x, t.y, t.customdata, strict=True)
    }
    assert len(drawn) == len(found.maps)
    for row in found.maps.itertuples():
        x, y, (_, active, _, image) = drawn[row.layer, row.channel]
        layer = top[row.layer]
        assert x == pytest.approx(float(layer.max[row.channel].clamp(min=0) / layer.max.max()))
        assert y == row.index or pd.isna(y) or y == pytest.approx(found.maps.loc[row.Index, "index"])
        assert active == f"{float(layer.active[row.channel]):.1%}"
        assert image == int(layer.image[row.channel, 0])
    with pytest.raises(LayerError, match="nothing to draw"):
        figures.map_of_maps(model, zfkit.mine(model, images, ["6"], k=1, progress=False), found)
