"""Variants of Table 3 and averages of Table 2: closed forms, `fit`, averages by hand, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import TINY, image_set, random_pixels

import zfkit
from zfkit.errors import ImageError, ModelError, ZfkitError
from zfkit.experiments.variants import (
    BUDGET,
    CHANGES,
    Ablation,
    ablate,
    ablation_counts,
    ablations,
    averaged,
    ensemble,
    read_ablation,
)
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
    counts = ablation_counts("zfnet224")
    assert counts.parameters[list(expected)].to_dict() == expected
    assert counts.parameters["full"] == 62_357_608
    assert (counts.convolutional + counts.connected == counts.parameters).all()
    # "they contain the majority of model parameters", says the paper of fc6 and fc7
    assert 1 - counts.parameters["without-6-7"] / counts.parameters["full"] == pytest.approx(0.792, abs=1e-3)
    assert counts.connected_share["full"] == pytest.approx(0.940, abs=1e-3)


def test_alexnet_differs_in_its_first_two_layers():
    counts = ablation_counts("alexnet224")
    difference = conv(3, 96, 11) - conv(3, 96, 7)
    assert counts.parameters["full"] - counts.parameters["zfnet"] == difference
    assert ablation_counts("zfnet224").parameters["alexnet"] == counts.parameters["full"]
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
    counts = ablation_counts("zfnet64")
    assert counts.paper_alexnet.dropna().to_dict() == {
        "full": 18.1, "without-3-4": 22.1, "without-7": 18.4, "without-6-7": 22.4, "without-3-4-6-7": 50.1,
        "fc-half": 18.8, "fc-double": 18.1,
    }  # fmt: skip
    assert counts.paper_zfnet.dropna().to_dict() == {
        "full": 16.5, "fc-half": 17.6, "fc-double": 17.0, "wide-3-5": 16.0, "wide-3-5-fc-double": 16.9,
    }  # fmt: skip


def test_a_base_that_is_none_is_refused():
    with pytest.raises(ModelError, match=r"no architecture 'zfnet46'.*zfnet64"):
        ablations("zfnet46")
    with pytest.raises(ModelError, match="lacks conv3 already"):
        ablations(replace(TINY, without=("conv3",)))


# ----------------------------------------------------------------------------------------------- training


def colours(count, random_seed):
    """Noise with a little more of one colour."""
    pixels = random_pixels(count, 32, random_seed) // 2
    for i in range(count):
        pixels[i, :, :, i % 3] += 90
    return image_set(pixels, np.arange(count) % 3, ("r", "g", "b"), source="colours")


RECIPE = zfkit.Recipe(epochs=2, batch_size=8, init="he", inputs="std")


def test_it_trains_what_fit_trains(tmp_path):
    train, val = colours(24, 0), colours(12, 1)
    variants = ["without-3-4-6-7"]
    options = {"recipe": RECIPE, "seeds": [0, 3], "out": tmp_path / "runs", "progress": False}
    found = ablate(TINY, train, val, variants, **options)
    assert len(found.runs) == 2
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
    again = ablate(TINY, train, val, variants, **options)
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
        (written(made(epochs=[2, 2, 3, 3]), "epochs.csv"), r"different epochs \(2, 3\), which cannot"),
    ):
        with pytest.raises(ZfkitError, match=match):
            read_ablation(path)


def test_the_grids_fit_the_notebook(tmp_path):
    for name in ("ablation", "ablation-tiny-imagenet"):
        grid = NOTEBOOKS / "grids" / f"{name}.yaml"
        plan = plan_sweep(NOTEBOOKS / "grids" / "ablation.ipynb", grid, tmp_path)
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
    counts = ablation_counts(wanted["base"][0], classes=16).parameters
    assert all(counts[r.variant] == r.parameters for r in found.runs.itertuples())


# ----------------------------------------------------------------------------------------------- averages

CLASSES = ("a", "b", "c", "d", "e")


def tiny_model(seed, classes=CLASSES, size=32, name="tiny", scale=1.0):
    torch.manual_seed(seed)
    net = build(replace(TINY, input_size=size, classes=len(classes) or 5)).double()
    for parameter in net.parameters():  # wide enough that answers differ
        torch.nn.init.normal_(parameter, 0, 0.15 if parameter.dim() > 1 else 0.1)
    about = {"input_size": size, "classes": classes, "name": name}
    return zfkit.wrap_model(net.eval(), mean=120.0, scale=scale / 200, **about)


def pictures(count=23, size=32, classes=CLASSES, labels=None):
    labels = np.random.default_rng(0).integers(0, 5, count) if labels is None else labels
    return image_set(random_pixels(count, size), labels, classes, source="noise")


@pytest.fixture(scope="module")
def three():
    return [tiny_model(s, name=f"net{s}") for s in range(3)]


def by_hand(models, images, crops):
    """Probabilities (M, N, 5), one picture and one crop at a time."""
    told = []
    for model in models:
        rows = []
        for i in range(len(images)):
            picture = images[i][0].numpy().astype(float)
            side, first = model.input_size, (images.size - model.input_size) // 2
            if crops == 1:
                views = [picture[:, first : first + side, first : first + side]]
            else:
                pad = round(6 * side / 64) if images.size == side else 0
                wide = np.pad(picture, ((0, 0), (pad, pad), (pad, pad)), mode="edge")
                end = wide.shape[-1] - side
                at = [(0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2)]
                views = [wide[:, r : r + side, c : c + side] for r, c in at]
                views += [v[:, :, ::-1] for v in views]
            answers = []
            for view in views:
                x = torch.tensor((view - model.mean[0]) * model.scale[0])[None]
                with torch.no_grad():
                    e = np.exp(model.net(x)[0].numpy())
                answers.append(e / e.sum())
            rows.append(np.mean(answers, 0))
        told.append(rows)
    return np.array(told)


@pytest.mark.parametrize("crops", [1, 10])
@pytest.mark.parametrize("size", [32, 36])
def test_it_is_the_average_taken_by_hand(three, crops, size):
    images = pictures(size=size)
    found = ensemble(three, images, crops, batch_size=7, progress=False)
    p = by_hand(three, images, crops)
    labels = images.labels.numpy()
    assert found.combinations == ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
    rows = zip(found.combinations, found.top1, found.top5, found.loss, strict=True)
    for combination, top1, top5, loss in rows:
        mean = p[list(combination)].mean(0)
        assert top1 == pytest.approx(100 * np.mean(mean.argmax(1) == labels))
        assert top5 == 100  # of five classes
        assert loss == pytest.approx(-np.mean(np.log(mean[np.arange(len(labels)), labels])))
    best = p.argmax(2)
    for i in range(3):
        for j in range(3):
            assert found.agreement[i, j] == pytest.approx(100 * np.mean(best[i] == best[j]))
            both = (best[i] != labels) & (best[j] != labels)
            assert found.both_wrong[i, j] == pytest.approx(100 * np.mean(both))
    assert found.count == 23
    assert found.crops == crops


def test_one_network_is_what_evaluate_says(three):
    for crops in (1, 10):
        found = ensemble(three[:1], pictures(), crops, progress=False)
        told = zfkit.evaluate(three[0], pictures(), crops=crops)
        assert (found.top1[0], found.top5[0]) == (told.top1, told.top5)
        assert found.loss[0] == pytest.approx(told.loss, rel=1e-5)


def test_the_mean_of_logarithms_is_the_geometric_mean(three):
    images = pictures()
    found = ensemble(three, images, average="logarithms", progress=False)
    p = by_hand(three, images, 1)
    mean = np.exp(np.log(p).mean(0))
    mean /= mean.sum(1, keepdims=True)
    labels = images.labels.numpy()
    assert found.loss[-1] == pytest.approx(-np.mean(np.log(mean[np.arange(23), labels])))
    assert averaged(torch.tensor(p), "logarithms").sum(1) == pytest.approx(np.ones(23))


def test_averages_of_one_kind_have_the_loss_they_must_have(three):
    """Jensen: the loss of the mean is at most the mean of the losses, for each picture and so on average."""
    found = ensemble(three, pictures(), progress=False)
    by_size = found.by_size()
    assert list(by_size.index) == [1, 2, 3]
    assert list(by_size.combinations) == [3, 3, 1]
    assert by_size.loss.is_monotonic_decreasing
    table = found.table()
    assert list(table.index[:3]) == ["net0", "net1", "net2"]
    assert table.loc["net0 + net1 + net2", "top1_error"] == pytest.approx(100 - found.top1[-1])
    assert by_size.loc[1, "top1_error"] == pytest.approx(100 - np.mean(found.top1[:3]))


def test_of_many_networks_each_alone_and_all_together():
    models = [tiny_model(s) for s in range(7)]
    found = ensemble(models, pictures(5), progress=False)
    assert found.combinations == (*((i,) for i in range(7)), tuple(range(7)))
    assert found.models[:2] == ("tiny (1)", "tiny (2)")


def test_networks_may_take_different_sizes(three):
    images = pictures(size=40)
    larger = tiny_model(5, size=40, scale=0.5)
    found = ensemble([three[0], larger], images, progress=False)
    mean = by_hand([three[0], larger], images, 1).mean(0)
    assert found.top1[-1] == pytest.approx(100 * np.mean(mean.argmax(1) == images.labels.numpy()))


def test_bad_input_is_refused(three):
    images = pictures()
    other = tiny_model(9, ("a", "b", "x", "d", "e"), name="other")
    fewer = tiny_model(9, ("a", "b", "c"), name="fewer")
    for models, match in (
        ([], "no network"),
        ([three[0], other], "class 2 is 'c' for net0 and 'x' for other"),
        ([three[0], fewer], "net0 tells 5 classes apart and fewer 3"),
        ([three[0], tiny_model(1, (), name="unnamed"), fewer], "5 classes apart and fewer 3"),
    ):
        with pytest.raises(ModelError, match=match):
            ensemble(models, images, progress=False)
    for refused, match in (
        (pictures(labels=[-1] * 23), "labels from -1 to -1.*5 classes"),
        (pictures(classes=(), labels=[7] * 23), "labels from 7 to 7"),
        (pictures(size=16), "net0 takes 32 px.*are 16.*size=32"),
        (pictures(classes=("v", "w", "x", "y", "z")), "v, w, x.*a, b, c.*without a name in common"),
    ):
        with pytest.raises(ImageError, match=match):
            ensemble(three, refused, progress=False)
    for options, match in (
        ({"crops": 5}, "crops must be 1 or 10, not 5"),
        ({"crops": True}, "crops must be 1 or 10"),
        ({"average": "median"}, "no average 'median'"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ZfkitError, match=match):
            ensemble(three, images, progress=False, **options)


def test_ten_crops_of_an_unnamed_network_are_finite():
    """A network without class names counts its own outputs."""
    found = ensemble([tiny_model(1, (), name="unnamed")], pictures(classes=()), 10, progress=False)
    assert all(math.isfinite(v) for v in found.loss)
