"""What are the layers good for elsewhere? A linear classifier on each layer's features (section 5, Tables 4-7).

The network stays as it is; its features of another data set's pictures go to a linear classifier. `transfer`
measures accuracy against the layer and against the number of pictures per class, over several random splits, beside
controls that say what of it training has brought:

    random weights   the same network with its weights drawn anew
    pixels           the pictures themselves, given to the same classifier
    from scratch     the paper's own comparison: a network trained on the split's few pictures and nothing else

What the paper leaves open, and what is done here. *Layer n* is where the next layer begins: behind its ReLU and, where
it has them, pooling and contrast normalisation. *Features* are all outputs of a layer, side by side; maps with more
than `max_features` numbers are averaged down to fewer places. Each feature is brought to mean 0 and variance 1 over
the training split, and all are divided by the root of their number, so that layers of all sizes meet the classifier at
one scale. *Regularisation* is chosen by cross-validation within the training split. The test is looked at once.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import ImageError, LayerError, ZfkitError, unknown
from ..images.imageset import ImageSet
from ..nets.activations import cannot_run
from ..nets.model import VisionModel
from ..nets.paper import AlexNet, Architecture, ZFNet
from ..training.fit import fit
from ..training.recipe import Recipe
from .replacements import randomise, weight_layers

if TYPE_CHECKING:
    import pandas as pd

Classifier = Literal["svm", "softmax"]
Control = Literal["random weights", "pixels"]
TRAINED, RANDOM, PIXELS, SCRATCH = "trained", "random weights", "pixels", "from scratch"
STRENGTHS = (0.1, 1.0, 10.0)  # of the fit to the data, against the penalty on weights: C of scikit-learn
PER_CLASS = 30  # the paper's largest number for Caltech-101
TEST_PER_CLASS = 50  # where one set is divided: at most so many, as the paper does
IN_MEMORY_BYTES = 2**29  # features beyond it lie in a temporary file


@dataclass(frozen=True)
class Transfer:
    """Accuracy of linear classifiers on features; made by `transfer`.

    Attributes:
        scores: data frame, a row for each classifier: features ("trained", "random weights", "pixels", "from
            scratch"), layer, number (the paper's 1 to 7, where the layer is one of `feature_layers`; 0 for pixels),
            per_class (training pictures), split, accuracy (mean over classes of the share that is right, %), overall
            (share of all pictures, %), strength (the C that was chosen; missing from scratch).
        shapes: layer -> (C, H, W) or (F,), what is given to the classifier, after averaging where there was any.
        averaged: layer -> its own shape, for those that were averaged down.
        classes: names of the data's classes.
        tested: number of test pictures (of a split, where one set is divided).
        classifier: "svm" or "softmax".
        model, train, test: what was used.
    """

    scores: pd.DataFrame = field(repr=False)
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    averaged: dict[str, tuple[int, ...]] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    tested: int
    classifier: Classifier
    model: str
    train: str
    test: str

    @property
    def chance(self) -> float:
        """Accuracy of guessing, in %: mean over classes, whatever their sizes."""
        return 100 / len(self.classes)

    def table(self) -> pd.DataFrame:
        """Data frame by features, layer and per_class, over splits: accuracy, sd, overall, overall_sd (%), splits."""
        keys = ["features", "layer", "number", "per_class"]
        grouped = self.scores.groupby(keys, sort=False, dropna=False)
        table = grouped.agg(
            accuracy=("accuracy", "mean"), sd=("accuracy", "std"), overall=("overall", "mean"),
            overall_sd=("overall", "std"), splits=("split", "count"),
        )  # fmt: skip
        return table.reset_index("number").sort_index(level="per_class", sort_remaining=False, kind="stable")

    def by_layer(self, per_class: int | None = None) -> pd.DataFrame:
        """The paper's Table 7: mean accuracy (%) with a row for each layer and a column for each kind of features.

        Args:
            per_class: training pictures per class; default: the most there are.

        Raises ZfkitError for a number that was not tried.
        """
        tried = sorted(self.scores.per_class.unique())
        wanted = tried[-1] if per_class is None else per_class
        if wanted not in tried:
            raise ZfkitError(
                f"{per_class} pictures per class were not tried; there are {', '.join(map(str, tried))}"
            )
        part = self.scores[(self.scores.per_class == wanted) & self.scores.features.isin([TRAINED, RANDOM])]
        means = part.pivot_table(index="layer", columns="features", values="accuracy", sort=False)
        return means.rename_axis(columns=None)

    def by_count(self, layer: str | None = None) -> pd.DataFrame:
        """The paper's Tables 4 and 5: mean accuracy (%) by number of pictures, a column for each kind of features.

        Args:
            layer: default: the one that is best on average over all numbers of pictures, for the trained network.

        Raises LayerError for a layer that was not looked at.
        """
        trained = self.scores[self.scores.features == TRAINED]
        layer = trained.groupby("layer", sort=False).accuracy.mean().idxmax() if layer is None else layer
        if layer not in set(trained.layer):
            raise LayerError(unknown("layer looked at", layer, trained.layer.unique()))
        kept = self.scores[(self.scores.layer == layer) | self.scores.features.isin([PIXELS, SCRATCH])]
        means = kept.pivot_table(index="per_class", columns="features", values="accuracy", sort=False)
        return means.sort_index().rename_axis(columns=None)


def transfer(
    model: VisionModel,
    train: ImageSet,
    test: ImageSet | None = None,
    layers: Sequence[str] | None = None,
    *,
    classifier: Classifier = "svm",
    per_class: int | Sequence[int] | None = None,
    splits: int = 5,
    seed: int = 0,
    controls: Sequence[Control] = ("random weights", "pixels"),
    scratch: Recipe | None = None,
    scratch_architecture: str | Architecture | None = None,
    scratch_splits: int | None = None,
    max_features: int = 25_000,
    batch_size: int = 64,
    progress: bool = True,
) -> Transfer:
    """A linear classifier on each layer's features of another data set (Zeiler & Fergus, Tables 4 to 7).

    Args:
        train, test: labelled pictures of one size and the same classes, of the model's `input_size` if layers are
            fully connected. Without `test`, each split divides `train` as the paper does with Caltech's: so many for
            training, and of the rest at most 50 of each class for testing.
        layers: default: where each layer ends (`feature_layers`), the paper's 1 to 7.
        classifier: "svm", scikit-learn's LinearSVC, one class against the others; or "softmax", its
            LogisticRegression.
        per_class: training pictures per class, one number or several; the smaller sets lie within the larger ones.
            Default: the paper's 30, or as many as every class has (with one to test on where `train` is divided).
        splits: how often training pictures are drawn anew.
        seed: of the splits, and of the random weights.
        controls: what to compare with, of "random weights" and "pixels".
        scratch: also train a network on each split's pictures alone, by this recipe. Its learning rate follows the
            error on these pictures; no other is seen before the test.
        scratch_architecture: default: the model's own.
        scratch_splits: train from scratch on the first so many splits only, for it takes long; default: on all.
        max_features: maps with more numbers are averaged to as many places a side as stay below it.
        batch_size: pictures at a time through the network.

    Each network sees each picture once, for all layers. Features beyond 512 MiB lie in a temporary file. With fewer
    training pictures than features the classifier is given the coordinates of the pictures in the space that the
    training pictures span: it finds the same weights there, since a penalised linear classifier never leaves it.

    Raises ImageError for pictures without labels, fewer than two classes, fewer pictures than asked, or classes that
    differ between `train` and `test`; LayerError for an unknown layer; ZfkitError for other arguments.

    >>> zfkit.transfer(model, train, test, per_class=[5, 30]).by_layer()
    """
    import pandas as pd

    if classifier not in get_args(Classifier):
        raise ZfkitError(unknown("classifier", classifier, get_args(Classifier)))
    for control in controls:
        if control not in get_args(Control):
            raise ZfkitError(unknown("control", control, get_args(Control)))
    for what, value in (("splits", splits), ("max_features", max_features), ("batch_size", batch_size)):
        if type(value) is not int or value < 1:
            raise ZfkitError(f"{what} must be a whole number from 1 on, not {value!r}")
    once = splits if scratch_splits is None else scratch_splits
    if type(once) is not int or not 1 <= once <= splits:
        raise ZfkitError(f"scratch_splits must be a whole number from 1 to {splits}, not {scratch_splits!r}")
    if type(seed) is not int or seed < 0:
        raise ZfkitError(f"seed must be a whole number from 0 on, not {seed!r}")
    numbered = feature_layers(model)
    names = list(numbered if layers is None else [layers] if isinstance(layers, str) else layers)
    for name in names:
        model.network.find(name)
    if not names:
        raise LayerError(f"no layer was named to take features of; there are {', '.join(numbered)}")
    task = _Task.make(train, test, per_class, splits, seed)
    architecture = _scratch_architecture(model, scratch_architecture) if scratch else None

    place = {name: i for i, name in enumerate(model.layers)}
    number = {name: numbered.index(name) + 1 if name in numbered else math.nan for name in names}
    ordered = sorted(names, key=lambda name: place[name])
    sources: list[tuple[str, VisionModel | None, list[str]]] = [(TRAINED, model, ordered)]
    if RANDOM in controls:
        drawn = randomise(model, weight_layers(model, ordered[-1]), random_seed=seed)
        sources.append((RANDOM, drawn, ordered))
    if PIXELS in controls:
        sources.append((PIXELS, None, [PIXELS]))
    rows: list[dict[str, Any]] = []
    shapes: dict[str, tuple[int, ...]] = {}
    averaged: dict[str, tuple[int, ...]] = {}
    fits = sum(len(wanted) for _, _, wanted in sources) * len(task.counts) * splits
    fits += len(task.counts) * once if scratch else 0
    with tqdm(total=fits, desc="transfer", unit="fit", disable=not progress, leave=False) as bar:
        for kind, source, wanted in sources:
            with _features(source, task, wanted, max_features, batch_size, averaged) as features:
                for name in wanted:
                    shapes[name] = features.shapes[name]
                    for split, count, trained_on, tested_on in task.splits():
                        told = _classify(
                            features, name, task, trained_on, tested_on, classifier, seed + split
                        )
                        rows.append(
                            {"features": kind, "layer": name, "number": 0 if kind == PIXELS else number[name],
                             "per_class": count, "split": split, **told}
                        )  # fmt: skip
                        bar.update()
        if scratch is not None and architecture is not None:
            for split, count, trained_on, tested_on in task.splits():
                if split >= once:
                    break
                told = _from_scratch(architecture, task, trained_on, tested_on, scratch, seed + split)
                rows.append(
                    {"features": SCRATCH, "layer": "its own classes", "number": math.nan, "per_class": count,
                     "split": split, **told}
                )  # fmt: skip
                bar.update()
    return Transfer(
        pd.DataFrame(rows), shapes, averaged, task.classes, len(task.tests[0]), classifier, model.name,
        train.source, "the rest of it" if test is None else test.source,
    )  # fmt: skip


def feature_layers(model: VisionModel) -> tuple[str, ...]:
    """Where each layer with weights ends: its last step before the next one, the classes' own left out.

    For the paper's networks these are norm1, norm2, relu3, relu4, pool5, relu6 and relu7, its layers 1 to 7. What does
    not change a feature (dropout at rest, a flattening) does not count. In a branching network, name the layers.
    """
    steps = [step for step in model.network.steps.values() if step.name in model.layers]
    idle = nn.Dropout | nn.Dropout2d | nn.Flatten | nn.Identity
    weighted = [i for i, step in enumerate(steps) if isinstance(step.module, nn.Conv2d | nn.Linear)]
    ends = []
    for first, following in itertools.pairwise(weighted):
        active = [step.name for step in steps[first:following] if not isinstance(step.module, idle)]
        ends.append(active[-1])
    return tuple(ends or (steps[-1].name,))


# ------------------------------------------------------------------------------------------ pictures and splits


@dataclass(frozen=True, eq=False)
class _Task:
    """Which pictures train and test the classifiers. Places count through `train`, and then through `test`."""

    images: tuple[ImageSet, ...]
    labels: np.ndarray  # (N,) places in classes
    classes: tuple[str, ...]
    counts: tuple[int, ...]  # training pictures per class
    pools: list[np.ndarray]  # for each split (classes, most): training pictures, in the order they are taken
    tests: list[np.ndarray]  # for each split its test pictures

    @classmethod
    def make(
        cls,
        train: ImageSet,
        test: ImageSet | None,
        per_class: int | Sequence[int] | None,
        splits: int,
        seed: int,
    ) -> _Task:
        """Look at everything that can be known to fail before a picture is read."""
        if test is not None and train.size != test.size:
            raise ImageError(
                f"training pictures are {train.size} px and test pictures {test.size}: load both alike"
            )
        if test is not None and train.classes and test.classes and train.classes != test.classes:
            raise ImageError(
                f"{train.source!r} has {len(train.classes)} classes ({', '.join(train.classes[:3])} ...) and "
                f"{test.source!r} {len(test.classes)} ({', '.join(test.classes[:3])} ...): training and test need the "
                "same, in the same order"
            )
        mine = _labels(train)
        known = np.unique(mine[mine >= 0])
        if len(known) < 2:
            raise ImageError(
                f"{train.source!r} has pictures of {len(known)} class: there have to be at least two to tell apart"
            )
        others = np.empty(0, dtype=np.int64) if test is None else _labels(test)
        strange = np.setdiff1d(others[others >= 0], known)
        if len(strange):
            raise ImageError(
                f"{test.source if test is not None else ''!r} has pictures of {len(strange)} classes that "
                f"{train.source!r} has none of ({_named(train, strange)}): training and test need the same classes"
            )
        lacking = np.setdiff1d(known, others) if test is not None else strange
        if len(lacking):
            raise ImageError(
                f"{test.source if test is not None else ''!r} has no picture of {len(lacking)} of the {len(known)} "
                f"classes ({_named(train, lacking)}), so the mean over classes is not known: take more test pictures"
            )
        there = {int(c): int((mine == c).sum()) for c in known}
        fewest = min(there, key=there.__getitem__)
        spare = 0 if test is not None else 1  # at least one is left for the test
        counts = _counts(per_class, there[fewest] - spare)
        if max(counts) + spare > there[fewest]:
            wanted = f"{max(counts)} training pictures per class"
            raise ImageError(
                f"{wanted}{' and one to test on' if spare else ''} were asked for, and {train.source!r} has "
                f"{there[fewest]} of {_named(train, np.array([fewest]))}: ask for fewer, or load more"
            )
        pools, tests = [], []
        for split in range(splits):
            random = np.random.default_rng([seed, split])
            orders = {c: random.permutation(np.flatnonzero(mine == c)) for c in known}
            pools.append(np.stack([orders[c][: max(counts)] for c in known]))
            if test is None:
                rest = [order[max(counts) :][:TEST_PER_CLASS] for order in orders.values()]
                tests.append(np.sort(np.concatenate(rest)))
            else:
                tests.append(len(mine) + np.flatnonzero(others >= 0))
        labels = np.searchsorted(known, np.concatenate([mine, others]).clip(min=known[0]))
        classes = tuple(train.classes[c] if train.classes else str(c) for c in known.tolist())
        images = (train,) if test is None else (train, test)
        return cls(images, labels, classes, counts, pools, tests)

    def splits(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Split, pictures per class, places of training and test pictures."""
        for split, (pool, tested) in enumerate(zip(self.pools, self.tests, strict=True)):
            for count in self.counts:
                yield split, count, pool[:, :count].flatten(), tested

    @property
    def needed(self) -> np.ndarray:
        """(n,) places of all pictures that any split looks at, ascending."""
        return np.unique(np.concatenate([p.flatten() for p in self.pools] + self.tests))

    def take(self, places: np.ndarray) -> Tensor:
        """Pictures at ascending places, uint8 (n, 3, S, S)."""
        first = len(self.images[0])
        parts = [self.images[0].take(places[places < first].tolist())] if (places < first).any() else []
        if (places >= first).any():
            parts.append(self.images[1].take((places[places >= first] - first).tolist()))
        return torch.cat(parts)


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
            f"{images.source!r} has no labels, and a classifier is taught by them: take a labelled set ('textures', a "
            "folder with a sub-folder for each class, Parquet with a column 'label')"
        )
    return labels.numpy()


def _named(images: ImageSet, labels: np.ndarray) -> str:
    """A few of these classes in words."""
    shown = [images.classes[c] if c < len(images.classes) else str(c) for c in labels[:3].tolist()]
    return ", ".join(shown) + (" ..." if len(labels) > 3 else "")


def _counts(per_class: int | Sequence[int] | None, most: int) -> tuple[int, ...]:
    if per_class is None:
        return (max(1, min(PER_CLASS, most)),)
    told = [per_class] if isinstance(per_class, int) else list(per_class)
    if not told or any(type(n) is not int or n < 1 for n in told):
        raise ZfkitError(
            f"per_class must be a number of pictures from 1 on, or a list of such, not {per_class!r}"
        )
    return tuple(sorted(set(told)))


# ------------------------------------------------------------------------------------------------- features


class _Features:
    """Features of the pictures that a task needs: by layer, rows in the order of their places."""

    def __init__(
        self, rows: np.ndarray, shapes: dict[str, tuple[int, ...]], folder: Path, bytes_: int
    ) -> None:
        self._row = {int(p): i for i, p in enumerate(rows)}
        self.shapes = shapes
        self._values: dict[str, np.ndarray] = {}
        for i, (name, shape) in enumerate(shapes.items()):
            size = (len(rows), math.prod(shape))
            if bytes_ > IN_MEMORY_BYTES:
                self._values[name] = np.memmap(folder / f"{i}", np.float32, "w+", shape=size)
            else:
                self._values[name] = np.empty(size, np.float32)

    def write(self, name: str, start: int, features: Tensor) -> None:
        """(n, ...) features of consecutive rows."""
        self._values[name][start : start + len(features)] = features.flatten(1).float().cpu().numpy()

    def at(self, name: str, places: np.ndarray) -> Tensor:
        """(n, F) float32 features of the pictures at these places."""
        return torch.from_numpy(self._values[name][[self._row[int(p)] for p in places]])


@contextlib.contextmanager
def _features(
    model: VisionModel | None,
    task: _Task,
    names: Sequence[str],
    max_features: int,
    batch_size: int,
    averaged: dict[str, tuple[int, ...]],
) -> Iterator[_Features]:
    """All layers of all needed pictures in one pass; pixels where there is no model."""
    places = task.needed

    def look(part: np.ndarray) -> Iterator[tuple[str, Tensor]]:
        pixels = task.take(part)
        if model is None:
            yield PIXELS, _average(pixels.float(), max_features)
            return
        x = model.preprocess(pixels).contiguous(memory_format=torch.channels_last)
        try:
            for step, _, y in model.network.walk(x, names):
                if step.name in names:
                    if y.dim() > 2 and math.prod(y.shape[1:]) > max_features:
                        averaged[step.name] = tuple(y.shape[1:])
                    yield step.name, _average(y, max_features)
        except RuntimeError as error:
            raise cannot_run(model, names, x, error) from error

    with torch.inference_mode(), tempfile.TemporaryDirectory(prefix="zfkit-features-") as folder:
        first = {name: tuple(y.shape[1:]) for name, y in look(places[:1])}
        bytes_ = 4 * len(places) * sum(math.prod(shape) for shape in first.values())
        free = shutil.disk_usage(folder).free
        if bytes_ > max(IN_MEMORY_BYTES, 0.9 * free):
            raise ZfkitError(
                f"features of {len(places):,} pictures take {bytes_ / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in "
                f"{tempfile.gettempdir()}: ask for fewer pictures (per_class, splits, a limit on the test), name fewer "
                "layers, or lower max_features"
            )
        features = _Features(places, first, Path(folder), bytes_)
        for start in range(0, len(places), batch_size):
            for name, y in look(places[start : start + batch_size]):
                features.write(name, start, y)
        yield features
        features._values.clear()  # a mapped file cannot be deleted everywhere


def _average(maps: Tensor, most: int) -> Tensor:
    """Maps (N, C, H, W) averaged to the most places a side that give no more than `most` numbers, one at least."""
    if maps.dim() != 4 or maps[0].numel() <= most:
        return maps
    H, W = maps.shape[2:]
    side = max(1, math.isqrt(most // maps.shape[1]))
    return F.adaptive_avg_pool2d(maps, (min(side, H), min(side, W)))


# ------------------------------------------------------------------------------------------------ classifiers


def _classify(
    features: _Features,
    name: str,
    task: _Task,
    trained_on: np.ndarray,
    tested_on: np.ndarray,
    classifier: Classifier,
    seed: int,
) -> dict[str, float]:
    """Train on a layer's features of some pictures, choose C on them, and score on others."""
    y, y_test = task.labels[trained_on], task.labels[tested_on]
    points, place = coordinates(features.at(name, trained_on))
    strength = _choose(points, y, classifier, seed)
    trained = _linear(classifier, strength, seed).fit(points, y)
    parts = np.array_split(tested_on, -(-len(tested_on) // 512))  # a bounded copy
    told = np.concatenate([trained.predict(place(features.at(name, part))) for part in parts])
    return _scores(told == y_test, y_test) | {"strength": strength}


def coordinates(x: Tensor) -> tuple[np.ndarray, Callable[[Tensor], np.ndarray]]:
    """Standardised features of n pictures, or the same points in the space that they span if that is smaller.

    Mean and variance are those of `x` (n, F); features that are constant there become 0. All are divided by the root of
    the number of those that are not. Where n < F, the n x n inner products of these points are kept instead, exactly:
    with Q and L their eigenvectors and eigenvalues, the pictures lie at Q L^(1/2), and another picture, whose inner
    products with them are k, at k Q L^(-1/2).

    Returns the points, (n, F) or (n, r), and a function that places other pictures' features (m, F) among them.
    """
    x = x.double()
    mean, std = x.mean(0), x.std(0, unbiased=False)
    varies = std > 1e-6 * x.abs().amax(0)  # of single-precision numbers, less is rounding
    weight = torch.where(varies, 1 / std.clamp_min(1e-30), 0.0) / math.sqrt(max(1, int(varies.sum())))
    z = (x - mean) * weight
    if len(z) >= z.shape[1]:
        return z.numpy(), lambda other: ((other.double() - mean) * weight).numpy()
    if not varies.any():  # nothing to tell pictures apart by; classifiers want a feature all the same
        return np.zeros((len(z), 1)), lambda other: np.zeros((len(other), 1))
    values, vectors = torch.linalg.eigh(z @ z.T)
    kept = values > 1e-10 * values[-1].clamp_min(1e-30)
    root, vectors = values[kept].sqrt(), vectors[:, kept]
    outwards = (vectors / root).T @ (z * weight)  # (r, F)
    return (vectors * root).numpy(), lambda other: ((other.double() - mean) @ outwards.T).numpy()


def _linear(classifier: Classifier, strength: float, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    if classifier == "softmax":
        return LogisticRegression(C=strength, max_iter=1000)
    return LinearSVC(C=strength, random_state=seed, max_iter=5000)


def _choose(z: np.ndarray, y: np.ndarray, classifier: Classifier, seed: int) -> float:
    """The C that does best in three-fold cross-validation of the training pictures; of equals, the weakest."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold

    folds = min(3, int(np.bincount(y).min()))
    if folds < 2:  # one picture of a class cannot be both learned and tested
        return STRENGTHS[-2]
    right = dict.fromkeys(STRENGTHS, 0)
    with warnings.catch_warnings():
        # What does not get to its end is scored all the same.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for kept, out in StratifiedKFold(folds, shuffle=True, random_state=seed).split(z, y):
            for strength in STRENGTHS:
                told = _linear(classifier, strength, seed).fit(z[kept], y[kept]).predict(z[out])
                right[strength] += int((told == y[out]).sum())
    return max(STRENGTHS, key=right.__getitem__)


def _scores(right: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean over classes of the share that is right, and the share of all, in %."""
    by_class = [right[labels == c].mean() for c in np.unique(labels)]
    return {"accuracy": 100 * float(np.mean(by_class)), "overall": 100 * float(right.mean())}


# ------------------------------------------------------------------------------------------------ from scratch


def _scratch_architecture(model: VisionModel, named: str | Architecture | None) -> str | Architecture:
    if named is not None:
        return named
    if isinstance(model.net, ZFNet | AlexNet):
        return model.net.architecture
    raise ZfkitError(
        f"{model.name} is none of zfkit's own networks, so say what is to be trained from scratch: "
        "scratch_architecture='zfnet64', for instance"
    )


def _from_scratch(
    architecture: str | Architecture,
    task: _Task,
    trained_on: np.ndarray,
    tested_on: np.ndarray,
    recipe: Recipe,
    seed: int,
) -> dict[str, float]:
    """Train on these pictures alone, score on the test's."""
    few = _subset(task, np.sort(trained_on))
    run = fit(architecture, few, few, replace(recipe, random_seed=seed, snapshots=()), progress=False)
    trained = run.model()
    told = []
    with torch.inference_mode():
        for part in np.array_split(tested_on, -(-len(tested_on) // 250)):
            pixels = _middle(task.take(part), trained.input_size)
            told.append(trained.net(trained.preprocess(pixels)).argmax(1).cpu().numpy())
    labels = task.labels[tested_on]
    return _scores(np.concatenate(told) == labels, labels) | {"strength": math.nan}


def _middle(pixels: Tensor, size: int) -> Tensor:
    first = (pixels.shape[-1] - size) // 2
    return pixels[:, :, first : first + size, first : first + size]


def _subset(task: _Task, places: np.ndarray) -> ImageSet:
    """Some of the training pictures as a set of their own, in memory."""
    from PIL import Image

    pixels, labels = task.take(places), task.labels[places]

    def read(i: int) -> tuple[Any, int]:
        return Image.fromarray(pixels[i].permute(1, 2, 0).numpy()), int(labels[i])

    names = [task.images[0].name(int(p)) for p in places]
    few = ImageSet(read, names, size=pixels.shape[-1], source=task.images[0].source, classes=task.classes)
    return few.in_memory(progress=False)
