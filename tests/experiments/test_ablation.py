"""Variants of Table 3: counted by closed forms, trained as `fit` trains them, read back as they were written."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import TINY

import zfkit
from zfkit.errors import ModelError, ZfkitError
from zfkit.experiments.ablation import BUDGET, CHANGES, PAPER, Ablation, ablate, ablations, read_ablation
from zfkit.images.imageset import ImageSet
from zfkit.nets.paper import ARCHITECTURES, build
from zfkit.sweeps import plan_sweep, read_grid

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def conv(inputs, outputs, kernel):
    return inputs * outputs * kernel**2 + outputs


def linear(inputs, outputs):
    return inputs * outputs + outputs


# ----------------------------------------------------------------------------------------------- variants


def test_the_papers_network_has_the_papers_numbers():
    """By closed form at 224 px, where the last pool leaves 6x6 places."""
    first = conv(3, 96, 7) + conv(96, 256, 5)
    upper = conv(256, 384, 3) + conv(384, 384, 3) + conv(384, 256, 3)
    expected = {
        "full": first + upper + linear(9216, 4096) + linear(4096, 4096) + linear(4096, 1000),
        "without-3-4": first + conv(256, 256, 3) + linear(9216, 4096) + linear(4096, 4096) + linear(4096, 1000),
        "without-7": first + upper + linear(9216, 4096) + linear(4096, 1000),
        "without-6-7": first + upper + linear(9216, 1000),
        "without-3-4-6-7": first + conv(256, 256, 3) + linear(9216, 1000),
        "fc-half": first + upper + linear(9216, 2048) + linear(2048, 2048) + linear(2048, 1000),
        "fc-double": first + upper + linear(9216, 8192) + linear(8192, 8192) + linear(8192, 1000),
        "wide-3-5": first + conv(256, 512, 3) + conv(512, 1024, 3) + conv(1024, 512, 3)
        + linear(2 * 9216, 4096) + linear(4096, 4096) + linear(4096, 1000),
    }  # fmt: skip
    counts = zfkit.experiments.ablation_counts("zfnet224")
    assert counts.parameters[list(expected)].to_dict() == expected
    assert counts.parameters["full"] == 62_357_608
    assert (counts.convolutional + counts.connected == counts.parameters).all()
    # "they contain the majority of model parameters", says the paper of fc6 and fc7
    assert 1 - counts.parameters["without-6-7"] / counts.parameters["full"] == pytest.approx(0.792, abs=1e-3)
    assert counts.connected_share["full"] == pytest.approx(0.940, abs=1e-3)


def test_alexnet_differs_in_its_first_two_layers():
    counts = zfkit.experiments.ablation_counts("alexnet224")
    difference = conv(3, 96, 11) - conv(3, 96, 7)
    assert counts.parameters["full"] - counts.parameters["zfnet"] == difference
    assert zfkit.experiments.ablation_counts("zfnet224").parameters["alexnet"] == counts.parameters["full"]
    assert ablations("alexnet64")["zfnet"] == ARCHITECTURES["zfnet64"]
    assert ablations("zfnet64-narrow")["alexnet"] == ARCHITECTURES["alexnet64-narrow"]


LAYERS = {
    "full": "conv1 conv2 conv3 conv4 conv5 fc6 fc7 fc8",
    "without-3-4": "conv1 conv2 conv5 fc6 fc7 fc8",
    "without-7": "conv1 conv2 conv3 conv4 conv5 fc6 fc8",
    "without-6-7": "conv1 conv2 conv3 conv4 conv5 fc8",
    "without-3-4-6-7": "conv1 conv2 conv5 fc8",  # "only 4 layers"
}


@pytest.mark.parametrize("base", ["zfnet224", "alexnet224", "zfnet64", "alexnet64", "zfnet64-narrow", TINY])
def test_every_variant_is_a_network(base):
    variants = ablations(base)
    size = (ARCHITECTURES[base] if isinstance(base, str) else base).input_size
    assert set(variants) <= set(CHANGES)
    for name, architecture in variants.items():
        with torch.device("meta"):
            net = build(architecture)
            y = net(torch.empty(1, 3, size, size))
        assert y.shape == (1, architecture.classes)
        layers = [n for n, m in net.named_children() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        assert layers == LAYERS.get(name, LAYERS["full"]).split()


def test_widths_follow_the_papers_ratios():
    assert ablations("zfnet64")["wide-3-5"].widths == (96, 256, 512, 1024, 512)
    assert ablations("zfnet64-narrow")["wide-3-5"].widths == (24, 48, 85, 171, 96)
    assert [ablations("zfnet224")[v].hidden for v in ("fc-half", "full", "fc-double")] == [2048, 4096, 8192]
    both = ablations("zfnet64")["wide-3-5-fc-double"]
    assert (both.widths, both.hidden) == ((96, 256, 512, 1024, 512), 2048)
    assert ablations("zfnet64", classes=16)["without-7"].classes == 16


def test_the_papers_errors_are_beside_them():
    counts = zfkit.experiments.ablation_counts("zfnet64")
    assert counts.paper_alexnet.dropna().to_dict() == {
        "full": 18.1, "without-3-4": 22.1, "without-7": 18.4, "without-6-7": 22.4, "without-3-4-6-7": 50.1,
        "fc-half": 18.8, "fc-double": 18.1,
    }  # fmt: skip
    assert counts.paper_zfnet.dropna().to_dict() == {
        "full": 16.5, "fc-half": 17.6, "fc-double": 17.0, "wide-3-5": 16.0, "wide-3-5-fc-double": 16.9,
    }  # fmt: skip
    assert set(PAPER) < set(CHANGES)


def test_a_base_that_is_none_is_refused():
    with pytest.raises(ModelError, match=r"no architecture 'zfnet46'.*zfnet64"):
        ablations("zfnet46")
    with pytest.raises(ModelError, match="lacks conv3 already"):
        ablations(replace(TINY, without=("conv3",)))


# ----------------------------------------------------------------------------------------------- training


def colours(count, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 150, (count, 32, 32, 3)).astype(np.uint8)
    for i in range(count):
        pixels[i, :, :, i % 3] += 90

    def read(i):
        return Image.fromarray(pixels[i]), i % 3

    names = [f"{seed}-{i}" for i in range(count)]
    images = ImageSet(read, names, size=32, classes=("r", "g", "b"), source="colours")
    return images.in_memory(progress=False)


RECIPE = zfkit.Recipe(epochs=2, batch_size=8, init="he", inputs="std")


def test_it_trains_what_fit_trains(tmp_path):
    train, val = colours(24, 0), colours(12, 1)
    variants = ["full", "without-3-4-6-7"]
    found = ablate(
        TINY, train, val, variants, recipe=RECIPE, seeds=[0, 3], out=tmp_path / "runs", progress=False
    )
    assert len(found.runs) == 4
    assert found.budget == {
        "base": "custom", "images": "colours", "pictures": 24, "epochs": 2, "recipe": "he",
        "batch_size": 8, "dropout": 0.5,
    }  # fmt: skip
    for row in found.runs.itertuples():
        own = replace(RECIPE, random_seed=row.seed, snapshots=())
        model = zfkit.fit(ablations(TINY)[row.variant], train, val, own, progress=False).model()
        told, seen = zfkit.evaluate(model, val), zfkit.evaluate(model, train)
        assert (row.top1, row.top5, row.train_top1) == (told.top1, told.top5, seen.top1)
        assert row.loss == pytest.approx(told.loss)
        assert row.parameters == sum(p.numel() for p in model.net.parameters())
        assert (tmp_path / "runs" / f"{row.variant}-{row.seed}" / "model.safetensors").exists()
    again = ablate(
        TINY, train, val, variants, recipe=RECIPE, seeds=[0, 3], out=tmp_path / "runs", progress=False
    )
    pd.testing.assert_frame_equal(found.runs, again.runs)


def test_recipes_are_known_by_name():
    train, val = colours(6, 0), colours(6, 1)
    for recipe, name in (
        (replace(zfkit.training.RECIPES["paper"], epochs=1, random_seed=9), "paper"),
        (zfkit.Recipe(epochs=1, init="he", inputs="std", dropout=0.2, batch_size=3), "he"),
        (zfkit.Recipe(epochs=1, lr=0.02), "custom"),
    ):
        found = ablate(TINY, train, val, ["without-6-7"], recipe=recipe, progress=False)
        assert (found.budget["recipe"], found.budget["epochs"]) == (name, 1)


def test_what_cannot_be_trained_is_refused():
    train = colours(6, 0)
    for arguments, match in (
        ({"variants": ["without-5"]}, "no variant 'without-5'"),
        ({"variants": []}, "at least one variant"),
        ({"seeds": []}, "one seed"),
    ):
        with pytest.raises(ZfkitError, match=match):
            ablate(TINY, train, train, recipe=RECIPE, progress=False, **arguments)


# ----------------------------------------------------------------------------------------------- tables


def made(**changes):
    errors = {("full", 0): 20.0, ("full", 1): 24.0, ("without-7", 0): 23.0, ("without-7", 1): 25.0}
    rows = [
        {
            "base": "tiny", "images": "textures", "pictures": 100, "epochs": 2, "recipe": "he", "batch_size": 8,
            "dropout": 0.5, "variant": variant,
            "seed": seed, "parameters": 1000 if variant == "full" else 700, "top1": 100 - error, "top5": 100.0,
            "loss": error / 50, "train_top1": 90.0,
        }
        for (variant, seed), error in errors.items()
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**changes)


def test_the_table_pairs_runs_of_one_seed():
    table = Ablation(made(), "here").table()
    assert list(table.index) == ["full", "without-7"]
    assert table.error.tolist() == [22, 24]
    assert table.sd.tolist() == pytest.approx([8**0.5, 2**0.5])
    assert table.worse.tolist() == [0, 2]  # 3 and 1 for the two seeds
    assert math.isnan(table.worse_error["full"])
    assert table.worse_error["without-7"] == pytest.approx(2**0.5 / 2**0.5)
    assert table.train_error.tolist() == [10, 10]
    assert table.parameters.tolist() == [1000, 700]
    alone = Ablation(made().query("variant != 'full'"), "here").table()
    assert alone.worse.isna().all()


def test_what_was_saved_is_read_again(tmp_path):
    told = Ablation(made(), "here")
    path = told.save(tmp_path / "table.csv")
    again = read_ablation(path)
    pd.testing.assert_frame_equal(again.runs, told.runs)
    assert again.source == "table.csv"
    # as a sweep leaves it, with columns of its own and a run that failed
    swept = made(status=["finished"] * 3 + ["failed"], seconds=2.0, notebook="x.ipynb")
    swept.loc[3, ["top1", "parameters"]] = np.nan
    swept.to_parquet(tmp_path / "results.parquet")
    assert len(read_ablation(tmp_path).runs) == 3


def test_tables_that_are_none_are_refused(tmp_path):
    def written(frame, name="t.csv"):
        frame.to_csv(tmp_path / name, index=False)
        return tmp_path / name

    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "other.parquet").write_bytes(b"no parquet")
    for path, match in (
        (tmp_path / "nowhere", "there is no"),
        (tmp_path / "other.parquet", "no table of a sweep"),
        (tmp_path / "empty.csv", "no table of a sweep"),
        (written(made().drop(columns=["train_top1", "seed"])), "lacks the columns seed, train_top1"),
        (written(made(top1=np.nan), "nan.csv"), "no finished run"),
        (
            written(made(epochs=[2, 2, 3, 3]), "epochs.csv"),
            r"different epochs \(2, 3\), which cannot be compared",
        ),
    ):
        with pytest.raises(ZfkitError, match=match):
            read_ablation(path)


def test_the_grids_fit_the_notebook(tmp_path):
    for name in ("ablation", "ablation-tiny-imagenet"):
        grid = NOTEBOOKS / "grids" / f"{name}.yaml"
        plan = plan_sweep(NOTEBOOKS / "11_ablation_one_network.ipynb", grid, tmp_path)
        wanted = read_grid(grid)
        asked = {run.parameters["variant"] for run in plan.runs}
        assert asked == set(ablations(wanted["base"][0]))
        assert len(plan.runs) == len(asked) * len(wanted["seed"])


def test_the_table_that_comes_with_zfkit_is_the_grids():
    wanted = read_grid(NOTEBOOKS / "grids" / "ablation.yaml")
    found = read_ablation()
    runs = {(v, s) for v in wanted["variant"] for s in wanted["seed"]}
    assert {(r.variant, r.seed) for r in found.runs.itertuples()} == runs
    assert len(found.runs) == len(runs)
    assert (found.budget["base"], found.budget["epochs"]) == (wanted["base"][0], wanted["epochs"][0])
    assert set(BUDGET) == set(found.budget)
    counts = zfkit.experiments.ablation_counts(wanted["base"][0], classes=16).parameters
    assert all(counts[r.variant] == r.parameters for r in found.runs.itertuples())


def test_the_figure_shows_the_tables_numbers():
    from zfkit.figures.variants import ablation_figure

    figure = ablation_figure(Ablation(made(), "here"))
    here, paper = figure.axes
    names = [t.get_text() for t in here.get_yticklabels()]
    assert names == ["without-7", "full"]
    assert [bar.get_width() for bar in here.patches] == [24, 22]
    assert sorted(paper.lines[0].get_xdata().tolist()) == [18.1, 18.4]  # AlexNet's
    assert "zfnet" not in names
