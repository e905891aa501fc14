"""Labelled pictures divided into those that train a classifier and those that test it, several times at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..checks import whole_number
from ..errors import ImageError, ZfkitError
from ..images.imageset import ImageSet
from ..images.labels import align_labels

PER_CLASS = 30  # the paper's largest number for Caltech-101
TEST_PER_CLASS = 50  # where one set is divided: at most so many, as the paper does


@dataclass(frozen=True, eq=False)
class Split:
    """One draw of training pictures, so many of each class. Places count through `train`, and then through `test`."""

    number: int
    per_class: int
    trained_on: np.ndarray  # (classes * per_class,) places
    tested_on: np.ndarray


@dataclass(frozen=True, eq=False)
class Task:
    """Which pictures train and test the classifiers."""

    images: tuple[ImageSet, ...]
    labels: np.ndarray  # (N,) places in classes
    classes: tuple[str, ...]
    splits: tuple[Split, ...]

    @property
    def needed(self) -> np.ndarray:
        """(n,) places of all pictures that any split looks at, ascending."""
        return np.unique(np.concatenate([p for s in self.splits for p in (s.trained_on, s.tested_on)]))

    def take(self, places: np.ndarray) -> Tensor:
        """Pictures at ascending places, uint8 (n, 3, S, S)."""
        first = len(self.images[0])
        parts = [self.images[0].take(places[places < first].tolist())] if (places < first).any() else []
        if (places >= first).any():
            parts.append(self.images[1].take((places[places >= first] - first).tolist()))
        return torch.cat(parts)

    def scores(self, split: Split, predicted: np.ndarray, strength: float) -> dict[str, float]:
        """Mean over classes of the share that is right, and the share of all, in %."""
        labels = self.labels[split.tested_on]
        right = predicted == labels
        by_class = [right[labels == c].mean() for c in np.unique(labels)]
        return {
            "per_class": split.per_class, "split": split.number, "accuracy": 100 * float(np.mean(by_class)),
            "overall": 100 * float(right.mean()), "strength": strength,
        }  # fmt: skip


def divide(
    train: ImageSet,
    test: ImageSet | None,
    per_class: int | Sequence[int] | None,
    splits: int,
    random_seed: int,
) -> Task:
    """Draw the splits. Raises ImageError for everything that can be known to fail before a picture is read."""
    labels = _labels(train)
    known = np.unique(labels[labels >= 0])
    if len(known) < 2:
        raise ImageError(
            f"{train.source!r} has pictures of {len(known)} class: there have to be at least two to tell apart"
        )
    test_labels = np.empty(0, dtype=np.int64)
    if test is not None:
        test = align_labels(test, train.classes, repr(train.source))
        test_labels = _labels(test)
        _expect_same_classes(train, test, known, np.unique(test_labels[test_labels >= 0]))
    counts = {int(c): int((labels == c).sum()) for c in known}
    fewest = min(counts, key=counts.__getitem__)
    spare = 1 if test is None else 0  # at least one is left for the test
    wanted = _wanted(per_class, counts[fewest] - spare)
    if wanted[-1] + spare > counts[fewest]:
        raise ImageError(
            f"{wanted[-1]} training pictures per class{' and one to test on' if spare else ''} were asked for, and "
            f"{train.source!r} has {counts[fewest]} of {_named(train, np.array([fewest]))}: ask for fewer, or load more"
        )
    drawn = []
    for number in range(splits):
        random = np.random.default_rng([random_seed, number])
        orders = [random.permutation(np.flatnonzero(labels == c)) for c in known]
        if test is None:
            rest = [order[wanted[-1] :][:TEST_PER_CLASS] for order in orders]
            tested_on = np.sort(np.concatenate(rest))
        else:
            tested_on = len(labels) + np.flatnonzero(test_labels >= 0)
        for count in wanted:  # the smaller sets lie within the larger ones
            trained_on = np.concatenate([order[:count] for order in orders])
            drawn.append(Split(number, count, trained_on, tested_on))
    places = np.searchsorted(known, np.concatenate([labels, test_labels]).clip(min=known[0]))
    classes = tuple(train.classes[c] if train.classes else str(c) for c in known.tolist())
    return Task((train,) if test is None else (train, test), places, classes, tuple(drawn))


def _labels(images: ImageSet) -> np.ndarray:
    """(N,) labels, -1 where there is none. Raises ImageError where there are none at all."""
    if not len(images):
        raise ImageError(f"{images.source!r} holds no pictures")
    labels = images.known_labels()
    if labels is None:
        labels = torch.cat([batch.label for batch in images.batches(256)])
        if len(labels) < len(images):
            raise ImageError(
                f"{len(images) - len(labels)} pictures of {images.source!r} cannot be read: remove or replace them"
            )
    if not (labels >= 0).any():
        raise ImageError(
            f"{images.source!r} has no labels, which teach a classifier: take a labelled set ('textures', a folder "
            "with a sub-folder for each class, Parquet with a column 'label')"
        )
    return labels.numpy()


def _expect_same_classes(train: ImageSet, test: ImageSet, known: np.ndarray, tested: np.ndarray) -> None:
    """Raise ImageError where the two sets differ in size or classes."""
    if train.size != test.size:
        raise ImageError(f"training pictures are {train.size} px and test pictures {test.size}: load alike")
    strange, lacking = np.setdiff1d(tested, known), np.setdiff1d(known, tested)
    if len(strange):
        raise ImageError(
            f"{test.source!r} has pictures of {len(strange)} classes that {train.source!r} has none of "
            f"({_named(train, strange)}): both need the same"
        )
    if len(lacking):
        raise ImageError(
            f"{test.source!r} has no picture of {len(lacking)} of the {len(known)} classes ({_named(train, lacking)}): "
            "take more"
        )


def _named(images: ImageSet, labels: np.ndarray) -> str:
    """A few of these classes in words."""
    names = [images.classes[c] if c < len(images.classes) else str(c) for c in labels[:3].tolist()]
    return ", ".join(names) + (" ..." if len(labels) > 3 else "")


def _wanted(per_class: int | Sequence[int] | None, most: int) -> tuple[int, ...]:
    """Numbers of training pictures per class, ascending."""
    if per_class is None:
        return (max(1, min(PER_CLASS, most)),)
    numbers = [per_class] if isinstance(per_class, int) else list(per_class)
    if not numbers:
        raise ZfkitError(f"per_class must be a number of pictures or a list of such, not {per_class!r}")
    return tuple(sorted({whole_number(n, "per_class") for n in numbers}))
