"""Figures of what a remedy changed: every network on one scale."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch

import zfkit
from zfkit.figures.health import steps_figure, strips_figure


def test_steps_share_a_scale_and_show_the_numbers():
    table = pd.DataFrame(
        {"right": [6.0, 60.0, 70.0], "folded": [36.0, 23.0, math.nan]}, index=["a", "b", "c"]
    )
    figure = steps_figure(table, {"folded": 15})
    right, folded = figure.axes
    assert [bar.get_width() for bar in right.patches] == [6, 60, 70]
    assert [t.get_text() for t in folded.texts] == ["36", "23", "not measured"]
    assert list(folded.lines[0].get_xdata()) == [15, 15] and not right.lines
    assert [t.get_text() for t in right.get_yticklabels()] == ["a", "b", "c"]
    assert right.get_xlim()[1] > 70


def test_strips_are_drawn_on_the_scale_of_the_strongest():
    torch.manual_seed(0)
    strong, weak = torch.randn(4, 3, 7, 7), 0.01 * torch.randn(4, 3, 11, 11)
    photos = torch.randint(0, 256, (4, 3, 7, 7), dtype=torch.uint8)
    figure = strips_figure({"strong": strong, "weak": weak, "photos": photos}, "title")
    shown = [axes.images[0].get_array() for axes in figure.axes]
    scale = float(np.percentile(strong.abs().numpy(), 99.5))
    tile = 63  # 7 px, nine times as large
    for strip, expected in ((shown[0], zfkit.figures.signed_to_rgb(strong, scale)), (shown[2], photos)):
        assert np.array_equal(strip[4, 4], expected[0, :, 0, 0].numpy())
        assert np.array_equal(strip[tile - 1, tile - 1], expected[0, :, 6, 6].numpy())
    inner = shown[1][:, : 5 * 11]
    assert abs(inner.astype(int) - 128).max() <= math.ceil(127 * float(weak.abs().max()) / scale)
