"""Labels by name: a network's numbers, whatever the order of a set's own classes."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import zfkit
from zfkit import ImageSet
from zfkit.errors import ImageError
from zfkit.experiments import ensemble
from zfkit.health.measure import measure
from zfkit.images import align_labels


def labelled(labels, classes, pixels=None) -> ImageSet:
    pixels = torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8) if pixels is None else pixels
    return ImageSet.of(pixels, labels=labels, classes=classes, progress=False)


names = st.lists(st.sampled_from(["cat", "dog", "eel", "fox", "great white shark"]), min_size=1, unique=True)


@given(names, names, st.data())
def test_labels_are_places_of_the_same_name(own, classes, data):
    labels = data.draw(st.lists(st.integers(-1, len(own) - 1), min_size=1, max_size=6))
    images = labelled(labels, [name.upper().replace(" ", "_") for name in own])
    if not set(own) & set(classes):
        with pytest.raises(ImageError, match="without a name in common"):
            align_labels(images, classes)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        aligned = align_labels(images, classes)
    assert bool(caught) == bool(set(own) - set(classes))
    expected = [classes.index(own[v]) if v >= 0 and own[v] in classes else -1 for v in labels]
    streamed = torch.cat([batch.label for batch in aligned.batches(4)])
    assert aligned.labels.tolist() == streamed.tolist() == aligned.known_labels().tolist() == expected
    assert aligned.classes == tuple(classes) and images.labels.tolist() == labels
    assert aligned.fingerprint() == images.fingerprint()


def test_sets_that_stay_as_they_are():
    for own, classes in (("", "ab"), ("ab", ""), ("ab", "ab"), ("ab", "012")):
        images = labelled([1, 0], own)
        assert align_labels(images, classes) is images


def test_a_name_that_stands_for_two_classes_is_neither():
    with pytest.warns(UserWarning, match="crane"):
        aligned = align_labels(labelled([0, 1], ("crane", "dog")), ("crane", "crane", "dog"))
    assert aligned.labels.tolist() == [-1, 2]


@pytest.fixture(scope="module")
def model():
    """A network that tells five classes apart by its random weights."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip
    with torch.no_grad():  # else one of them would be the answer to everything
        net[-1].bias -= net(1.2 * torch.randn(64, 3, 16, 16)).mean(0)
    classes = ["cat", "dog", "eel", "fox", "gnu"]
    return zfkit.wrap_model(net.eval(), mean=127.0, scale=1 / 60, input_size=16, classes=classes)


def test_accuracy_does_not_depend_on_the_order_of_a_sets_classes(model):
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (40, 3, 16, 16), generator=random).to(torch.uint8)
    own = ("gnu", "cat", "fox")  # three of the five, in another order
    labels = torch.randint(3, (40,), generator=random).tolist()
    with torch.no_grad():
        answers = [model.classes[i] for i in model.net(model.preprocess(pixels)).argmax(1).tolist()]
    top1 = 100 * sum(answer == own[i] for answer, i in zip(answers, labels, strict=True)) / 40
    images = labelled(labels, own, pixels)
    reference = labelled([model.classes.index(own[i]) for i in labels], model.classes, pixels)
    assert 0 < top1 < 100 and zfkit.evaluate(model, images).top1 == pytest.approx(top1)
    assert zfkit.evaluate(model, images) == zfkit.evaluate(model, reference)
    assert ensemble(model, images, progress=False).top1 == pytest.approx((top1,))
    measured = [measure(model, s, None, 40, 0, False) for s in (images, reference)]
    assert measured[0].labels is not None and torch.equal(measured[0].labels, measured[1].labels)


def test_pictures_of_other_classes(model):
    strangers = labelled([0, 1], ("unicorn", "dragon"), torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    for use in (zfkit.evaluate, ensemble):
        with pytest.raises(ImageError, match=r"unicorn, dragon.*cat, dog.*without a name in common"):
            use(model, strangers)
    report = zfkit.diagnose(model, strangers, progress=False)
    assert any("labels were not used" in remark for remark in report.remarks)


def test_transfer_matches_training_and_test_classes_by_name(model):
    random = np.random.default_rng(0)
    labels = np.arange(24) % 3
    shades = 40 + 80 * labels[:, None, None, None] + random.integers(-9, 9, (24, 3, 16, 16))
    pixels = torch.from_numpy(shades.astype(np.uint8))
    train = labelled(labels, ("dark", "grey", "light"), pixels)
    accuracies = []
    for classes in (("dark", "grey", "light"), ("light", "dark", "grey")):
        places = [classes.index(train.classes[i]) for i in labels]
        test = labelled(places, classes, pixels)
        options = {"layers": ["1"], "per_class": 4, "splits": 1, "progress": False}
        accuracies.append(zfkit.transfer(model, train, test, **options).table())
    assert accuracies[0].equals(accuracies[1])
