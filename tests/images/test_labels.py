"""Labels by name: a network's numbers, whatever the order of a set's own classes."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zfkit
from zfkit import ImageSet
from zfkit.errors import ImageError
from zfkit.experiments import ensemble
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
    for own, classes in (
        ((), ("a", "b")),
        (("a", "b"), ()),
        (("a", "b"), ("a", "b")),
        (("a", "b"), ("0", "1", "2")),
    ):
        images = labelled([1, 0], own)
        assert align_labels(images, classes) is images


def test_a_name_that_stands_for_two_classes_is_neither():
    with pytest.warns(UserWarning, match="crane"):
        aligned = align_labels(labelled([0, 1], ("crane", "dog")), ("crane", "crane", "dog"))
    assert aligned.labels.tolist() == [-1, 2]


def test_accuracy_does_not_depend_on_the_order_of_a_sets_classes(zfnet64, photos64):
    """Pictures under the name of the class that the network gives them, and every fourth under another."""
    pixels = photos64.take(range(0, 48, 2))
    with torch.no_grad():
        answer = zfnet64.net(zfnet64.preprocess(pixels)).argmax(1)
    answer[::4] = answer[1]
    used = sorted({zfnet64.classes[i] for i in answer.tolist()}, reverse=True)
    images = labelled([used.index(zfnet64.classes[i]) for i in answer.tolist()], used, pixels)
    reference = labelled(answer, zfnet64.classes, pixels)
    assert zfkit.evaluate(zfnet64, images) == zfkit.evaluate(zfnet64, reference)
    assert zfkit.evaluate(zfnet64, images).top1 >= 75
    one, two = (ensemble(zfnet64, s, progress=False).top1 for s in (images, reference))
    assert one == two == (zfkit.evaluate(zfnet64, images).top1,)
    reports = [zfkit.diagnose(zfnet64, s, progress=False) for s in (images, reference)]
    assert reports[0].table().equals(reports[1].table())


def test_pictures_of_other_classes(zfnet64):
    strangers = labelled([0, 1], ("unicorn", "dragon"), torch.randint(256, (2, 3, 64, 64)).to(torch.uint8))
    for measure in (zfkit.evaluate, ensemble):
        with pytest.raises(ImageError, match=r"unicorn, dragon.*goldfish.*without a name in common"):
            measure(zfnet64, strangers)
    report = zfkit.diagnose(zfnet64, strangers, progress=False)
    assert any("labels were not used" in remark for remark in report.remarks)


def test_transfer_matches_training_and_test_classes_by_name(zfnet64):
    random = np.random.default_rng(0)
    labels = np.arange(24) % 3
    shades = 40 + 80 * labels[:, None, None, None] + random.integers(-9, 9, (24, 3, 64, 64))
    pixels = torch.from_numpy(shades.astype(np.uint8))
    train = labelled(labels, ("dark", "grey", "light"), pixels)
    accuracies = []
    for classes in (("dark", "grey", "light"), ("light", "dark", "grey")):
        places = [classes.index(train.classes[i]) for i in labels]
        test = labelled(places, classes, pixels)
        accuracies.append(
            zfkit.transfer(
                zfnet64, train, test, layers=["conv1"], per_class=4, splits=1, progress=False
            ).table()
        )
    assert accuracies[0].equals(accuracies[1])
