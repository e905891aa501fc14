"""Figures of what a remedy changed: every network on one scale."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch

import zfkit
from zfkit.figures.health import steps_figure, strips_figure


def test_steps_share_a_scale_and_show_the_numbers():
    columns = {"right": [6.0, 60.0, 70.0], "folded": [36.0, 23.0, math.nan]}
    table = pd.DataFrame(columns, index=["a", "b", "c"])
    chart = steps_figure(table, {"folded": 15})
    right, folded = chart.data
    assert list(right.x) == [6, 60, 70] and list(right.y) == ["a", "b", "c"]
    assert folded.text == ("36", "23", "not measured")
    assert [(line.x0, line.xref) for line in chart.layout.shapes] == [(15, "x2")]
    assert chart.layout.xaxis.range[0] == 0 and chart.layout.xaxis.range[1] > 70


def test_strips_are_drawn_on_the_scale_of_the_strongest():
    torch.manual_seed(0)
    strong, weak = torch.randn(4, 3, 7, 7), 0.01 * torch.randn(4, 3, 11, 11)
    photos = torch.randint(0, 256, (4, 3, 7, 7), dtype=torch.uint8)
    figure = strips_figure({"strong": strong, "weak": weak, "photos": photos}, "title")
    shown = [axes.images[0].get_array() for axes in figure.axes]
    scale = float(np.percentile(strong.abs().numpy(), 99.5))
    tile = 70  # 7 px, ten times as large
    for strip, expected in ((shown[0], zfkit.figures.signed_to_rgb(strong, scale)), (shown[2], photos)):
        assert np.array_equal(strip[4, 4], expected[0, :, 0, 0].numpy())
        assert np.array_equal(strip[tile - 1, tile - 1], expected[0, :, 6, 6].numpy())
    inner = shown[1][:, : 5 * 11]
    assert abs(inner.astype(int) - 128).max() <= math.ceil(127 * float(weak.abs().max()) / scale)
