"""Averages of networks and crops: against averages by hand, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY

import zfkit
from zfkit.errors import ImageError, ModelError, ZfkitError
from zfkit.experiments.ensemble import averaged, ensemble
from zfkit.images.imageset import ImageSet
from zfkit.nets.paper import build

CLASSES = ("a", "b", "c", "d", "e")


def tiny_model(seed, classes=CLASSES, size=32, name="tiny", scale=1.0):
    torch.manual_seed(seed)
    net = build(replace(TINY, input_size=size, classes=len(classes) or 5)).double()
    for parameter in net.parameters():  # wide enough that answers differ
        torch.nn.init.normal_(parameter, 0, 0.15 if parameter.dim() > 1 else 0.1)
    return zfkit.wrap_model(net, mean=120.0, scale=scale / 200, input_size=size, classes=classes, name=name)


def pictures(count=23, size=32, classes=CLASSES, seed=0, labels=None):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    labels = rng.integers(0, 5, count) if labels is None else labels

    def read(i):
        return Image.fromarray(pixels[i]), int(labels[i])

    names = [f"p{i}" for i in range(count)]
    return ImageSet(read, names, size=size, classes=classes, source="noise").in_memory(progress=False)


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
    for combination, top1, top5, loss in zip(
        found.combinations, found.top1, found.top5, found.loss, strict=True
    ):
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


def test_one_network_is_what_evaluate_says():
    model, images = zfkit.load_model("zfnet64"), zfkit.load_images("textures", limit=12, progress=False)
    labelled = pictures(12, 64, (), labels=np.arange(12) % 7)
    for crops in (1, 10):
        found = ensemble([model], labelled, crops, progress=False)
        told = zfkit.evaluate(model, labelled, crops=crops)
        assert (found.top1[0], found.top5[0]) == (told.top1, told.top5)
        assert found.loss[0] == pytest.approx(told.loss, rel=1e-5)
    with pytest.raises(ImageError, match=r"16 classes.*networks 200"):
        ensemble([model], images, progress=False)


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


def test_a_network_averaged_with_itself_is_itself(three):
    found = ensemble([three[0], three[0]], pictures(), progress=False)
    assert found.top1[0] == found.top1[1] == found.top1[2]
    assert found.loss[2] == pytest.approx(found.loss[0])
    assert found.agreement.tolist() == [[100, 100], [100, 100]]


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
        (pictures(classes=("a", "b", "c", "d", "f")), "the same, in the same order"),
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


def test_the_figure_shows_the_tables_numbers(three):
    from zfkit.figures.variants import ensemble_figure

    found = [ensemble(three, pictures(), crops, progress=False) for crops in (1, 10)]
    errors, losses = ensemble_figure(found).axes
    means = [line for line in errors.lines if line.get_label() == "10 crops"]
    assert means[0].get_ydata().tolist() == found[1].by_size().top1_error.tolist()
    assert losses.lines[0].get_ydata().tolist() == found[0].table().loss.tolist()
