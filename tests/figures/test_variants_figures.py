"""Figures of networks compared: what they show is what the tables say."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import TINY, image_set, random_pixels
from torch import nn

import zfkit
import zfkit.figures.variants as plotting
from zfkit.experiments.first_layer import MEASURES, factorial_effects
from zfkit.experiments.variants import Ablation, ensemble
from zfkit.figures.style import GREY
from zfkit.figures.variants import ablation_figure, ensemble_figure, transfer_figure
from zfkit.nets.paper import build

mpl.use("Agg")
FACTORS = {"kernel": (11, 7), "stride": (4, 2)}


def tiny_model(random_seed):
    torch.manual_seed(random_seed)
    net = build(TINY)
    for parameter in net.parameters():  # wide enough that answers differ
        nn.init.normal_(parameter, 0, 0.15 if parameter.dim() > 1 else 0.1)
    return zfkit.wrap_model(net, mean=120.0, scale=1 / 200, input_size=32, name="tiny")


def test_ablation_shows_the_tables_numbers():
    errors = {("full", 0): 20.0, ("full", 1): 24.0, ("without-7", 0): 23.0, ("without-7", 1): 25.0}
    rows = [
        {"variant": v, "seed": s, "parameters": 1000, "top1": 100 - e, "train_top1": 90.0}
        for (v, s), e in errors.items()
    ]
    runs = pd.DataFrame(rows).assign(base="tiny", images="textures", pictures=100, epochs=2, recipe="he",
                                     batch_size=8, dropout=0.5)  # fmt: skip
    figure = ablation_figure(Ablation(runs, "here"))
    here, paper = figure.axes
    names = [t.get_text() for t in here.get_yticklabels()]
    assert names == ["without-7", "full"]
    assert [bar.get_width() for bar in here.patches] == [24, 22]
    assert sorted(paper.lines[0].get_xdata().tolist()) == [18.1, 18.4]  # AlexNet's
    assert "zfnet" not in names


def test_ensemble_shows_the_tables_numbers():
    models = [tiny_model(s) for s in range(3)]
    images = image_set(random_pixels(23, 32), np.arange(23) % 5)
    found = [ensemble(models, images, crops, progress=False) for crops in (1, 10)]
    errors, losses = ensemble_figure(found).axes
    means = [line for line in errors.lines if line.get_label() == "10 crops"]
    assert means[0].get_ydata().tolist() == found[1].by_size().top1_error.tolist()
    assert losses.lines[0].get_ydata().tolist() == found[0].table().loss.tolist()


def test_transfer_shows_the_tables_numbers():
    train, test = (image_set(random_pixels(n, 32, n), np.arange(n) % 3, ("r", "g", "b")) for n in (24, 30))
    options = {"per_class": [2, 8], "splits": 2, "progress": False}
    found = zfkit.experiments.transfer(tiny_model(0), train, test, ["norm1", "pool5"], **options)
    by_layer, by_count = transfer_figure(found, "norm1").axes
    assert [t.get_text() for t in by_layer.get_xticklabels()] == ["norm1", "pool5"]
    lines = {c.get_label(): c.lines[0].get_ydata() for c in by_layer.containers}
    for kind, values in lines.items():
        assert values.tolist() == pytest.approx(found.by_layer()[kind].tolist())
    lines = {c.get_label(): c.lines[0].get_ydata() for c in by_count.containers}
    assert set(lines) == {"trained", "random weights", "pixels"}
    for kind, values in lines.items():
        assert values.tolist() == pytest.approx(found.by_count("norm1")[kind].tolist())


def test_figure_of_the_runs_shows_every_run():
    table = zfkit.experiments.load_first_layer_runs().table.query("images == 'textures'")
    numbers = dict.fromkeys(MEASURES, 0.5)
    figure = plotting.first_layer_figure(table, mark=(2, numbers))
    moving = [m for m in MEASURES if table[m].nunique() > 1]
    assert len(moving) >= 9
    for axes, measure in zip(figure.axes, moving, strict=False):
        dots = [line for line in axes.lines if line.get_linestyle() == "None"]
        drawn = sorted(y for line in dots if line.get_marker() == "o" for y in line.get_ydata())
        assert drawn == pytest.approx(sorted(table[measure]))
        assert [list(line.get_ydata()) for line in dots if line.get_marker() == "D"] == [[0.5]]
    assert figure.get_figwidth() <= 9


def test_figure_of_effects_marks_those_that_move():
    rng = np.random.default_rng(1)
    rows = [
        {"kernel": kernel, "stride": stride, "seed": seed, "y": 5 * (kernel == 7) + rng.normal(0, 0.1)}
        for kernel, stride, seed in itertools.product((11, 7), (4, 2), range(3))
    ]
    table = pd.DataFrame(rows)
    effects = factorial_effects(table, FACTORS, ["y"])
    assert effects.loc["y"].moves.tolist() == [True, False, False]
    figure = plotting.effects_figure({"plain": effects})
    bars = [axes.lines[1] for axes in figure.axes]
    assert [bar.get_color() == plotting.BLUE for bar in bars] == [True, False, False]
    ends = [bar.get_xdata() for bar in bars]  # one scale a row: the largest end is 1
    assert max(abs(x) for pair in ends for x in pair) == pytest.approx(1)
    wide = float(effects.loc[("y", "kernel"), "high"])
    assert ends[1][1] == pytest.approx(float(effects.loc[("y", "stride"), "high"]) / wide)


def test_figure_of_profiles_is_the_mean_and_the_range():
    generator = torch.Generator().manual_seed(0)
    group = [zfkit.filter_spectra(torch.randn(4, 3, 7, 7, generator=generator)) for _ in range(3)]
    (axes,) = zfkit.figures.profiles_figure({"untrained": group}).axes
    line = next(line for line in axes.lines if line.get_label() == "untrained")
    np.testing.assert_allclose(line.get_ydata(), torch.stack([s.profile() for s in group]).mean(0))
    assert line.get_color() == GREY
