"""Figures of networks compared: what they show is what the tables say."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import image_set, random_pixels, tiny_model

import zfkit
import zfkit.figures.variants as plotting
from zfkit.experiments.first_layer import MEASURES, factorial_effects
from zfkit.experiments.variants import Ablation, ensemble
from zfkit.figures.style import GREY, KERNEL_COLOURS
from zfkit.figures.variants import ablation_figure, ensemble_figure, transfer_figure

FACTORS = {"kernel": (11, 7), "stride": (4, 2)}


def test_ablation_shows_the_tables_numbers():
    errors = {("full", 0): 20.0, ("full", 1): 24.0, ("without-7", 0): 23.0, ("without-7", 1): 25.0}
    rows = [
        {"variant": v, "seed": s, "parameters": 1000, "top1": 100 - e, "train_top1": 90.0}
        for (v, s), e in errors.items()
    ]
    runs = pd.DataFrame(rows).assign(base="tiny", images="textures", pictures=100, epochs=2, recipe="he",
                                     batch_size=8, dropout=0.5)  # fmt: skip
    chart = ablation_figure(Ablation(runs, "here"))
    (mean,) = chart.select_traces({"type": "bar"})
    assert dict(zip(mean.y, mean.x, strict=True)) == {"without-7": 24, "full": 22}
    (seeds,) = chart.select_traces({"name": "each seed"})
    shown = zip(seeds.y, seeds.customdata, seeds.x, strict=True)
    assert {(v, s): e for v, s, e in shown} == errors
    (alexnet,) = chart.select_traces({"name": "AlexNet, in the paper"})
    assert dict(zip(alexnet.y, alexnet.x, strict=True)) == {"full": 18.1, "without-7": 18.4}
    assert all(axis.rangemode == "tozero" for axis in chart.select_xaxes())


def test_ensemble_shows_the_tables_numbers():
    models = [tiny_model(s) for s in range(3)]
    images = image_set(random_pixels(23, 32), np.arange(23) % 5, "abcde")
    found = [ensemble(models, images, crops, progress=False) for crops in (1, 10)]
    chart = ensemble_figure(found)
    (mean,) = chart.select_traces({"name": "10 crops, mean"}, row=1, col=1)
    assert list(mean.y) == found[1].by_size().top1_error.tolist()
    (dots,) = chart.select_traces({"name": "1 crop"}, row=1, col=2)
    table = found[0].table()
    assert list(dots.y) == table.loss.tolist() and list(dots.customdata) == list(table.index)


def test_transfer_shows_the_tables_numbers():
    train, test = (image_set(random_pixels(n, 32, n), np.arange(n) % 3, ("r", "g", "b")) for n in (24, 30))
    options = {"per_class": [2, 8], "splits": 2, "progress": False}
    found = zfkit.experiments.transfer(tiny_model(0), train, test, ["norm1", "pool5"], **options)
    chart = transfer_figure(found, "norm1")
    for line in chart.select_traces(row=1, col=1):
        assert list(line.x) == ["norm1", "pool5"]
        assert list(line.y) == pytest.approx(found.by_layer()[line.name].tolist())
    lines = {line.name: list(line.y) for line in chart.select_traces(row=1, col=2)}
    assert set(lines) == {"trained", "random weights", "pixels"}
    for kind, values in lines.items():
        assert values == pytest.approx(found.by_count("norm1")[kind].tolist())


def test_figure_of_the_runs_shows_every_run():
    table = zfkit.experiments.load_first_layer_runs().table.query("images == 'textures'")
    numbers = dict.fromkeys(MEASURES, 0.5)
    chart = plotting.first_layer_figure(table, mark=(2, numbers))
    moving = [m for m in MEASURES if table[m].nunique() > 1]
    assert len(moving) >= 9
    for i, measure in enumerate(moving):
        panel = list(chart.select_traces(row=1 + i // 3, col=1 + i % 3))
        dots = [t for t in panel if t.mode == "markers" and t.name != "this run"]
        assert sorted(y for t in dots for y in t.y) == pytest.approx(sorted(table[measure]))
        runs = {(t.name, *row): y for t in dots for row, y in zip(t.customdata.tolist(), t.y, strict=True)}
        for row in table.itertuples():
            name = f"{row.kernel}x{row.kernel}{', blur' if row.blur else ''}"
            assert runs[name, row.stride, row.seed] == getattr(row, measure)
        assert [list(t.y) for t in panel if t.name == "this run"] == [[0.5]]


def test_figure_of_effects_marks_those_that_move():
    rng = np.random.default_rng(1)
    rows = [
        {"kernel": kernel, "stride": stride, "seed": seed, "y": 5 * (kernel == 7) + rng.normal(0, 0.1)}
        for kernel, stride, seed in itertools.product((11, 7), (4, 2), range(3))
    ]
    table = pd.DataFrame(rows)
    effects = factorial_effects(table, FACTORS, ["y"])
    assert effects.loc["y"].moves.tolist() == [True, False, False]
    chart = plotting.effects_figure({"plain": effects})
    assert [t.marker.color == plotting.BLUE for t in chart.data] == [True, False, False]
    ends = [(t.x[0] - t.error_x.arrayminus[0], t.x[0] + t.error_x.array[0]) for t in chart.data]
    largest = max(abs(x) for pair in ends for x in pair)
    assert largest == pytest.approx(1), "one scale a row"
    for words, trace, (low, high) in zip(chart.layout.annotations[3:], chart.data, ends, strict=False):
        beyond = words.x == pytest.approx(high) if trace.x[0] >= 0 else words.x == pytest.approx(low)
        assert beyond and words.xanchor == ("left" if trace.x[0] >= 0 else "right"), "none on the line at 0"
    wide = float(effects.loc[("y", "kernel"), "high"])
    assert ends[1][1] == pytest.approx(float(effects.loc[("y", "stride"), "high"]) / wide)
    assert f"{effects.loc[('y', 'kernel'), 'low']:.4g} to" in chart.data[0].hovertemplate


def test_chart_of_profiles_is_the_mean_and_the_range():
    generator = torch.Generator().manual_seed(0)
    drawn = [zfkit.filter_spectra(torch.randn(4, 3, 7, 7, generator=generator)) for _ in range(3)]
    chart = zfkit.figures.profiles_figure({"untrained": drawn, "7x7, stride 4": drawn, "11x11": drawn})
    lines = {t.name: t for t in chart.data if t.hovertemplate}
    expected = torch.stack([s.profile() for s in drawn])[:, 1:]  # without frequency 0
    np.testing.assert_allclose(lines["untrained"].y, expected.mean(0))
    (area,) = (t for t in chart.data if t.fill and t.legendgroup == "untrained")
    np.testing.assert_allclose(area.y, torch.cat([expected.amax(0), expected.amin(0).flip(0)]))
    assert [t.line.color for t in lines.values()] == [GREY, KERNEL_COLOURS[7], KERNEL_COLOURS[11]]
    assert lines["7x7, stride 4"].line.dash == "dash" and lines["11x11"].line.dash == "solid"
