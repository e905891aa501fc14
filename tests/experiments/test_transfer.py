"""Features for another task: splits, features and classifiers against literal versions, and what is refused."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC
from tiny import TINY, image_set
from torch import nn

import zfkit
from zfkit.errors import ImageError, LayerError, ZfkitError
from zfkit.experiments.splits import divide
from zfkit.experiments.transfer import coordinates, feature_layers, transfer
from zfkit.nets.paper import build

module = importlib.import_module("zfkit.experiments.transfer")  # its name is its function's, too
CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = build(TINY).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2 if parameter.dim() > 1 else 0.1)
    return zfkit.wrap_model(net.eval(), mean=120.0, scale=1 / 60, input_size=32, name="tiny")


def colours(per_class=8, random_seed=0, classes=CLASSES, size=32, labels=None, contrast=40, named=True):
    """Noise with a little more of one colour: easy to tell apart linearly, in pixels already."""
    labels = np.arange(per_class * len(classes)) % len(classes) if labels is None else np.asarray(labels)
    pixels = np.random.default_rng(random_seed).integers(0, 200, (len(labels), size, size, 3))
    for i, label in enumerate(labels):
        pixels[i, :, :, label % 3] += contrast
    names, source = classes if named else (), f"colours{random_seed}"
    return image_set(pixels.astype(np.uint8), labels, names, source=source)


# ------------------------------------------------------------------------------------------------- layers


def test_layers_end_where_the_next_begins(model):
    assert feature_layers(model) == ("norm1", "norm2", "relu3", "relu4", "pool5", "relu6", "relu7")
    for without, expected in (
        (("conv3", "conv4"), ("norm1", "norm2", "pool5", "relu6", "relu7")),
        (("fc6", "fc7"), ("norm1", "norm2", "relu3", "relu4", "pool5")),
    ):
        net = build(replace(TINY, without=without))
        short = zfkit.wrap_model(net, mean=120, scale=1, input_size=32)
        assert feature_layers(short) == expected
    one = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert feature_layers(zfkit.wrap_model(one, mean=0, scale=1, input_size=8)) == ("1",)


def test_features_are_the_layers_outputs_in_the_pictures_order(model):
    images, test = colours(), colours(4, random_seed=1)
    task = divide(images, test, 4, 2, 3)
    names = feature_layers(model)
    with module._features(model, task, names, 25_000, 5) as features:
        places = task.needed
        pixels = torch.stack([images[int(p)][0] if p < 24 else test[int(p) - 24][0] for p in places])
        x, expected = model.preprocess(pixels), {}
        with torch.no_grad():
            for name, layer in model.net.named_children():
                x = expected[name] = layer(x)
        for name in names:
            found = features.at(name, places)
            assert features.shapes[name] == tuple(expected[name].shape[1:])
            assert torch.allclose(found.double(), expected[name].flatten(1), atol=1e-5)
            assert torch.equal(features.at(name, places[[5, 2]]), found[[5, 2]])


def test_features_that_fit_nowhere_are_refused(model, monkeypatch):
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 100)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 50_000}))
    with pytest.raises(ZfkitError, match=r"of 36 pictures take 0.0 GB, and 0.0 GB are free.*per_class"):
        transfer(model, colours(), colours(4, random_seed=1), ["norm1", "pool5"], splits=1, progress=False)


def test_large_maps_are_averaged_and_large_features_lie_in_a_file(model, monkeypatch):
    images, test = colours(), colours(4, random_seed=1)
    whole = transfer(model, images, test, ["norm1", "relu7"], splits=1, controls=[], progress=False)
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 100)
    filed = transfer(model, images, test, ["norm1", "relu7"], splits=1, controls=[], progress=False)
    pd.testing.assert_frame_equal(whole.scores, filed.scores)
    assert whole.shapes == {"norm1": (4, 7, 7), "relu7": (8,)}
    assert whole.averaged == {}
    options = {"splits": 1, "controls": ["pixels"], "max_features": 40, "progress": False}
    small = transfer(model, images, test, ["norm1"], **options)
    assert small.shapes == {"norm1": (4, 3, 3), "pixels": (3, 3, 3)}
    assert small.averaged == {"norm1": (4, 7, 7)}
    maps = torch.arange(2 * 4 * 6 * 6.0).view(2, 4, 6, 6)
    by_hand = maps.reshape(2, 4, 3, 2, 3, 2).mean((3, 5))
    assert torch.allclose(module._average(maps, 36), by_hand)
    assert module._average(maps, 1).shape == (2, 4, 1, 1)  # a map is not left out


# ------------------------------------------------------------------------------------------------- splits


@given(st.integers(2, 6), st.integers(3, 9), st.integers(1, 3), st.integers(0, 5), st.data())
def test_splits_hold_what_they_should(classes, there, splits, seed, data):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), there))
    images = colours(labels=labels, classes=tuple("abcdef"[:classes]), size=4)
    test = colours(labels=np.arange(classes), classes=images.classes, size=4, random_seed=1)
    counts = data.draw(st.lists(st.integers(1, there), min_size=1, max_size=3))
    task = divide(images, test, counts, splits, seed)
    before = {}
    for split in task.splits:
        trained_on = set(split.trained_on)
        counted = Counter(task.labels[split.trained_on].tolist())
        assert counted == dict.fromkeys(range(classes), split.per_class)
        assert len(trained_on) == len(split.trained_on) == classes * split.per_class
        assert max(trained_on) < len(images) <= min(split.tested_on)
        assert len(split.tested_on) == len(test)
        assert before.get(split.number, set()) <= trained_on  # smaller sets lie within larger ones
        before[split.number] = trained_on
    again = divide(images, test, counts, splits, seed)
    for a, b in zip(task.splits, again.splits, strict=True):
        assert np.array_equal(a.trained_on, b.trained_on)


def test_one_set_is_divided_as_the_paper_divides_caltech():
    labels = [0] * 70 + [1] * 9
    images = colours(labels=labels, classes=("many", "few"), size=4)
    task = divide(images, None, 5, 3, 0)
    for split in task.splits:
        assert not set(split.trained_on) & set(split.tested_on)
        assert Counter(task.labels[split.tested_on].tolist()) == {0: 50, 1: 4}
    assert not np.array_equal(task.splits[0].trained_on, task.splits[1].trained_on)
    assert divide(images, None, None, 1, 0).splits[0].per_class == 8


def test_accuracy_is_the_mean_over_classes():
    task = divide(colours(labels=[0, 0] + [0] * 8 + [1] * 4, classes=("many", "few"), size=4), None, 2, 1, 0)
    (split,) = task.splits
    labels = task.labels[split.tested_on]
    assert Counter(labels.tolist()) == {0: 8, 1: 2}
    predicted = (
        np.where(labels == 1, [0, *[1] * 9], 0) if labels[0] else np.where(np.arange(10) == 9, 0, labels)
    )
    scores = task.scores(split, predicted, 1.0)
    assert (scores["accuracy"], scores["overall"]) == (75, 90)


# ------------------------------------------------------------------------------------------------- classifiers


@given(st.integers(2, 12), st.integers(1, 40), st.integers(1, 5), st.integers(0, 3), st.integers(0, 99))
def test_coordinates_have_the_inner_products_of_standardised_features(n, width, tests, constant, seed):
    """Against literal standardisation, with features that are constant, and with n below and above their number."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=random, dtype=torch.float64) * torch.logspace(-2, 2, width)
    x_test = torch.randn(tests, width, generator=random, dtype=torch.float64) * 3
    x[:, :constant] = 0.7
    mean, std = x.numpy().mean(0), x.numpy().std(0)
    varies = std > 1e-9
    count = max(1, varies.sum())
    z = (x.numpy() - mean)[:, varies] / std[varies] / math.sqrt(count)
    z_test = (x_test.numpy() - mean)[:, varies] / std[varies] / math.sqrt(count)
    found, place = coordinates(x)
    found_test = place(x_test)
    assert np.allclose(found @ found.T, z @ z.T, atol=1e-9)
    assert np.allclose(found_test @ found.T, z_test @ z.T, atol=1e-9)
    assert found.shape[1] <= max(width, n)


@pytest.mark.parametrize("classifier", ["svm", "softmax"])
def test_the_reduced_classifier_answers_as_the_whole_one(classifier):
    """The same scikit-learn classifier on all 300 standardised features of 24 pictures, the long way."""
    random = np.random.default_rng(0)
    y, y_test = np.arange(24) % 3, np.arange(60) % 3
    middle = random.normal(size=(3, 300))
    x = random.normal(size=(24, 300)) * 2 + middle[y] * 0.5 + 4
    x_test = random.normal(size=(60, 300)) * 2 + middle[y_test] * 0.5 + 4
    z, place = coordinates(torch.tensor(x))
    z_test = place(torch.tensor(x_test))
    assert z.shape[1] < 24
    standard = (x - x.mean(0)) / x.std(0) / math.sqrt(300)
    standard_test = (x_test - x.mean(0)) / x.std(0) / math.sqrt(300)
    kind = LinearSVC(random_state=0) if classifier == "svm" else LogisticRegression()
    for strength in (0.1, 10.0):
        kind.set_params(C=strength, tol=1e-8, max_iter=100_000)
        reduced, whole = clone(kind).fit(z, y), clone(kind).fit(standard, y)
        answers = reduced.decision_function(z_test), whole.decision_function(standard_test)
        assert np.allclose(*answers, atol=1e-3)
        assert 0.4 < (reduced.predict(z_test) == y_test).mean() < 1  # neither trivial nor guessed


def test_scores_are_those_of_the_steps_by_hand(model):
    images, test = colours(contrast=8), colours(10, random_seed=1, contrast=8)
    found = transfer(model, images, test, ["relu3"], per_class=[3, 6], splits=2, controls=[], progress=False)
    task = divide(images, test, [3, 6], 2, 0)

    def features(places):
        pictures = [images[int(p)][0] if p < 24 else test[int(p) - 24][0] for p in places]
        x = model.preprocess(torch.stack(pictures))
        with torch.no_grad():
            for step, _, y in model.network.walk(x, ["relu3"]):
                if step.name == "relu3":
                    return y.flatten(1).float().double().numpy()

    for row, split in zip(found.scores.itertuples(), task.splits, strict=True):
        x, x_test = features(split.trained_on), np.concatenate([features([p]) for p in split.tested_on])
        keep = x.std(0) > 1e-6 * abs(x).max(0)
        mean, std = x.mean(0)[keep], x.std(0)[keep] * math.sqrt(keep.sum())
        classifier = LinearSVC(C=row.strength, random_state=0, max_iter=100_000)
        classifier.fit((x[:, keep] - mean) / std, task.labels[split.trained_on])
        told = classifier.predict((x_test[:, keep] - mean) / std)
        right = told == test.labels.numpy()
        assert (row.split, row.per_class) == (split.number, split.per_class)
        assert row.overall == pytest.approx(100 * right.mean())
        assert row.accuracy == pytest.approx(100 * np.mean([right[c::3].mean() for c in range(3)]))


def test_the_test_pictures_change_nothing_but_the_score(model, monkeypatch):
    """No leak: with other test pictures and labels, the same classifiers with the same C are trained."""
    seen = []
    real = module.fitted

    def watched(points, y, *more):
        trained = real(points, y, *more)
        seen.append((points.tobytes(), y.tobytes(), trained.C, trained.coef_.tobytes()))
        return trained

    monkeypatch.setattr(module, "fitted", watched)
    images = colours(contrast=6)
    for test in (colours(3, 1), colours(5, 2, contrast=0)):
        transfer(model, images, test, ["relu3"], splits=2, controls=["pixels"], progress=False)
    assert len(seen) == 8 and seen[:4] == seen[4:]


def test_regularisation_is_chosen_within_the_training_pictures():
    """One feature tells the classes, many are noise: a weak fit is better, and cross-validation finds it."""
    random = np.random.default_rng(1)
    y = np.arange(60) % 2
    z = random.normal(size=(60, 200)) / 10
    z[:, 0] += y - 0.5
    assert module.fitted(z[:2], y[:2], "svm", 0).C == 1.0  # one of a class: nothing to validate on
    right = dict.fromkeys(module.STRENGTHS, 0)
    for kept, out in StratifiedKFold(3, shuffle=True, random_state=0).split(z, y):
        for strength in module.STRENGTHS:
            trained = LinearSVC(C=strength, random_state=0, max_iter=5000).fit(z[kept], y[kept])
            right[strength] += int((trained.predict(z[out]) == y[out]).sum())
    chosen = module.fitted(z, y, "svm", 0).C
    assert chosen == min(s for s, count in right.items() if count == max(right.values()))


# ------------------------------------------------------------------------------------------------- the whole


def test_classes_that_anyone_can_tell_apart_are_told_apart(model):
    test = colours(10, random_seed=1)
    found = transfer(model, colours(), test, ["norm1", "pool5"], splits=2, progress=False)
    table = found.table()
    assert found.chance == pytest.approx(100 / 3)
    assert (table.loc["pixels"].accuracy == 100).all()
    assert set(table.index.get_level_values("features")) == {"trained", "random weights", "pixels"}
    assert (table.splits == 2).all()
    by_layer = found.by_layer()
    assert list(by_layer.index) == ["norm1", "pool5"]
    assert by_layer.loc["norm1", "trained"] > 80
    means = found.scores[(found.scores.features == "trained") & (found.scores.layer == "pool5")].accuracy
    assert by_layer.loc["pool5", "trained"] == pytest.approx(means.mean())
    spread = table.loc[("trained", "pool5", 8), "sd"]
    assert spread == pytest.approx(means.std()) if means.std() else spread == 0


def test_shuffled_labels_are_at_chance(model):
    random = np.random.default_rng(0)
    images = colours(labels=random.permutation(np.arange(60) % 3), contrast=0)
    test = colours(labels=random.permutation(np.arange(150) % 3), contrast=0, random_seed=1)
    found = transfer(model, images, test, ["relu3"], splits=3, progress=False)
    assert (found.scores.accuracy - 100 / 3).abs().max() < 17  # 3 standard errors and more of 150 pictures


def test_random_weights_are_other_weights_and_the_model_stays(model):
    before = model.fingerprint()
    options = {"layers": ["relu3"], "splits": 1, "progress": False}
    images, test = colours(contrast=5), colours(20, random_seed=1, contrast=5)
    found = transfer(model, images, test, **options)
    other = transfer(model, images, test, random_seed=1, **options)
    assert model.fingerprint() == before
    accuracy = found.scores.set_index("features").accuracy
    assert accuracy["trained"] != accuracy["random weights"]
    assert list(found.scores.accuracy) == list(transfer(model, images, test, **options).scores.accuracy)
    assert list(found.scores.accuracy) != list(other.scores.accuracy)


def test_from_scratch_learns_from_the_few_alone(model):
    recipe = zfkit.Recipe(epochs=12, batch_size=4, init="he", inputs="std", dropout=0)
    wider = replace(TINY, widths=(12, 12, 12, 12, 12), hidden=16, without=("conv3", "conv4", "fc7"))
    images, test = colours(4, contrast=55), colours(6, random_seed=1, contrast=55)
    options = {"splits": 2, "scratch_splits": 1, "controls": [], "progress": False}
    exact = {"device": "cpu", "precision": "64-true"}
    own_way = {"scratch": recipe, "scratch_architecture": wider, "scratch_options": exact}
    found = transfer(model, images, test, ["pool5"], **own_way, **options)
    assert found.table().splits.tolist() == [2, 1]
    scratch = found.scores[found.scores.features == "from scratch"].iloc[0]
    few = images  # all four of each class are drawn
    by_hand = zfkit.fit(wider, few, few, replace(recipe, snapshots=()), progress=False, **exact)
    assert scratch.overall > 60
    assert "from scratch" in found.by_count().columns
    assert "from scratch" not in found.by_layer().columns
    # the same pictures in the same order of places, the same seed: the same network
    told = zfkit.evaluate(by_hand.model(), test)
    assert scratch.overall == pytest.approx(told.top1)
    own = zfkit.wrap_model(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), mean=0, scale=1, input_size=32)
    with pytest.raises(ZfkitError, match="scratch_architecture='zfnet64'"):
        transfer(own, images, test, scratch=recipe, **options)


def test_sets_without_class_names_and_with_gaps_in_their_labels(model):
    images = colours(labels=[2, 5, 2, 5, 2, 5], named=False)
    test = colours(labels=[5, 2, -1], named=False, random_seed=1)
    found = transfer(model, images, test, ["pool5"], splits=1, progress=False)
    assert found.classes == ("2", "5")
    assert found.tested == 2
    assert found.chance == 50


# ------------------------------------------------------------------------------------------------- refusals


def test_bad_data_is_refused(model):
    images, test = colours(), colours(4, random_seed=1)
    options = {"layers": ["relu3"], "progress": False}
    for arguments, match in (
        ((colours(labels=[-1] * 6), test), "has no labels"),
        ((images, colours(labels=[-1] * 6)), "has no labels"),
        ((colours(labels=[0] * 6), test), "pictures of 1 class.*at least two"),
        ((images, colours(4, size=16)), "32 px and test pictures 16"),
        ((images, colours(classes=("x", "y", "z"))), "x, y, z.*red, green, blue.*without a name in common"),
        ((colours(labels=[0, 1] * 3), test), "pictures of 1 classes that 'colours0' has none of .blue."),
        ((images, colours(labels=[0, 1])), "no picture of 1 of the 3 classes .blue."),
    ):
        with pytest.raises(ImageError, match=match):
            transfer(model, *arguments, **options)
    with pytest.raises(ImageError, match=r"9 training pictures per class were asked for.*has 8 of red"):
        transfer(model, images, test, per_class=9, **options)
    with pytest.raises(ImageError, match=r"8 training pictures per class and one to test on were asked"):
        transfer(model, images, per_class=[2, 8], **options)


def test_bad_arguments_are_refused(model):
    images, test = colours(), colours(4, random_seed=1)
    with pytest.raises(LayerError, match=r"'conv9'.*conv"):
        transfer(model, images, test, ["conv9"], progress=False)
    with pytest.raises(LayerError, match=r"no layer was named.*norm1"):
        transfer(model, images, test, [], progress=False)
    with pytest.raises(LayerError, match="tiny"):
        transfer(model, colours(size=64), colours(4, random_seed=1, size=64), ["relu6"], progress=False)
    for options, match in (
        ({"classifier": "forest"}, "no classifier 'forest'"),
        ({"controls": ["noise"]}, "no control 'noise'"),
        ({"splits": 0}, "splits must be"),
        ({"max_features": 0}, "max_features must be"),
        ({"random_seed": -1}, "random_seed must be"),
        ({"scratch_splits": 6}, "scratch_splits must be a whole number from 1 to 5, not 6"),
        ({"per_class": 0}, "per_class must be"),
        ({"per_class": []}, "per_class must be"),
        ({"per_class": [2.5]}, "per_class must be"),
    ):
        with pytest.raises(ZfkitError, match=match):
            transfer(model, images, test, ["relu3"], progress=False, **options)
    found = transfer(model, images, test, ["relu3"], per_class=4, splits=1, controls=[], progress=False)
    other = transfer(model, images, test, ["relu6", "conv3"], splits=1, controls=[], progress=False)
    assert list(other.by_layer().index) == ["conv3", "relu6"]  # in the network's order; conv3 has no number
    assert list(other.table().index.get_level_values("layer")) == ["conv3", "relu6"]
    with pytest.raises(ZfkitError, match="5 pictures per class were not tried; there are 4"):
        found.by_layer(5)
    with pytest.raises(LayerError, match="no layer looked at 'relu9'"):
        found.by_count("relu9")


# ------------------------------------------------------------------------------------------------- data sets


def drawing(path, colour, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(abs(hash(path.name)) % 2**32).integers(0, 60, (size[1], size[0], 3))
    Image.fromarray((noise + np.array(colour)).astype(np.uint8)).save(path)


RED, GREEN = (150, 20, 20), (20, 150, 20)


def test_caltech101_by_name_from_its_folders(tmp_path):
    """torchvision's layout, faked small."""
    top = tmp_path / "caltech101" / "101_ObjectCategories"
    for name, colour in (("accordion", RED), ("airplanes", GREEN), ("BACKGROUND_Google", (9, 9, 9))):
        for i in range(1, 7):
            drawing(top / name / f"image_{i:04d}.jpg", colour)
    (tmp_path / "caltech101" / "Annotations").mkdir()
    images = zfkit.load_images("torchvision:Caltech101", root=tmp_path, size=32, progress=False)
    assert images.classes == ("accordion", "airplanes")
    assert Counter(images.labels.tolist()) == {0: 6, 1: 6}


def test_oxford_pets_by_name_in_its_two_splits(tmp_path):
    top = tmp_path / "oxford-iiit-pet"
    for split, count in (("trainval", 4), ("test", 2)):
        lines = []
        for label, (name, colour) in enumerate((("Abyssinian", RED), ("beagle", GREEN)), 1):
            for i in range(count):
                drawing(top / "images" / f"{name}_{split}{i}.jpg", colour)
                lines.append(f"{name}_{split}{i} {label} {label} 1")
        (top / "annotations").mkdir(exist_ok=True)
        (top / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    options = {"root": tmp_path, "size": 32, "progress": False}
    train = zfkit.load_images("torchvision:OxfordIIITPet", split="train", **options)
    test = zfkit.load_images("torchvision:OxfordIIITPet", split="val", **options)
    assert (len(train), len(test)) == (8, 4) and train.classes == test.classes
    assert [Counter(images.labels.tolist()) for images in (train, test)] == [{0: 4, 1: 4}, {0: 2, 1: 2}]


def test_cifar10_by_name_in_its_two_splits(tmp_path, monkeypatch):
    import pickle

    from torchvision import datasets

    top = tmp_path / "cifar-10-batches-py"
    top.mkdir()
    rng = np.random.default_rng(0)

    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        data = rng.integers(0, 256, (20, 3 * 32 * 32), dtype=np.uint8)
        (top / name).write_bytes(pickle.dumps({"data": data, "labels": (np.arange(20) % 10).tolist()}))
    (top / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{i}" for i in range(10)]}))
    # What is faked has other checksums than what would be downloaded.
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a: True)
    options = {"root": tmp_path, "size": 32, "progress": False}
    train = zfkit.load_images("torchvision:CIFAR10", split="train", **options)
    test = zfkit.load_images("torchvision:CIFAR10", split="val", **options)
    assert (len(train), len(test)) == (100, 20)
    assert test.classes == tuple(f"class{i}" for i in range(10)) and test.labels[:3].tolist() == [0, 1, 2]
    assert torch.equal(
        test[19][0].flatten(), torch.from_numpy(data[19])
    )  # of the last file, that of the test
