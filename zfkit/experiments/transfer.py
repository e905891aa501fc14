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
import functools
import itertools
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batching import Portions, steps
from ..checks import layer_names, one_of, whole_number
from ..errors import LayerError, ZfkitError
from ..files import temporary_folder
from ..images.imageset import ImageSet
from ..nets.activations import activations
from ..nets.model import VisionModel, expect_model
from ..nets.paper import AlexNet, Architecture, ZFNet
from ..results import Result
from ..training.fit import fit
from ..training.recipe import Recipe
from .replacements import randomise, weight_layers
from .splits import Split, Task, divide
from .variants import answers

if TYPE_CHECKING:
    import pandas as pd

Classifier = Literal["svm", "softmax"]
Control = Literal["random weights", "pixels"]
TRAINED, RANDOM, PIXELS, SCRATCH = "trained", "random weights", "pixels", "from scratch"
STRENGTHS = (0.1, 1.0, 10.0)  # of the fit to the data, against the penalty on weights: C of scikit-learn
IN_MEMORY_BYTES = 2**29  # features beyond it lie in a temporary file


@dataclass(frozen=True)
class Transfer(Result, figure="transfer_figure"):
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
            numbers = ", ".join(map(str, tried))
            raise ZfkitError(f"{per_class} pictures per class were not tried; there are {numbers}")
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
        one_of(layer, "layer looked at", trained.layer.unique(), LayerError)
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
    random_seed: int = 0,
    controls: Sequence[Control] = ("random weights", "pixels"),
    scratch: Recipe | None = None,
    scratch_architecture: str | Architecture | None = None,
    scratch_splits: int | None = None,
    scratch_options: Mapping[str, Any] | None = None,
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
        random_seed: of the splits, and of the random weights.
        controls: what to compare with, of "random weights" and "pixels".
        scratch: also train a network on each split's pictures alone, by this recipe. Its learning rate follows the
            error on these pictures; no other is seen before the test.
        scratch_architecture: default: the model's own.
        scratch_splits: train from scratch on the first so many splits only, for it takes long; default: on all.
        scratch_options: `fit`'s device and precision: {"device": "cpu", "precision": "64-true"}, which takes several
            times as long, comes to the same on any processor.
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

    expect_model(model)
    one_of(classifier, "classifier", get_args(Classifier))
    for control in controls:
        one_of(control, "control", get_args(Control))
    for what, value in (("splits", splits), ("max_features", max_features), ("batch_size", batch_size)):
        whole_number(value, what)
    whole_number(random_seed, "random_seed", 0)
    if scratch_splits is not None:
        whole_number(scratch_splits, "scratch_splits", 1, splits)
    numbered = feature_layers(model)
    names = sorted(layer_names(layers, model.layers, numbered), key=model.layers.index)
    task = divide(train, test, per_class, splits, random_seed)
    architecture = _scratch_architecture(model, scratch_architecture) if scratch else None
    number = {name: numbered.index(name) + 1 if name in numbered else math.nan for name in names}
    number[PIXELS] = 0
    sources: list[tuple[str, VisionModel | None, list[str]]] = [(TRAINED, model, names)]
    if RANDOM in controls:
        drawn = randomise(model, weight_layers(model, names[-1]), random_seed=random_seed)
        sources.append((RANDOM, drawn, names))
    if PIXELS in controls:
        sources.append((PIXELS, None, [PIXELS]))
    own_splits = [s for s in task.splits if s.number < (splits if scratch_splits is None else scratch_splits)]
    rows: list[dict[str, Any]] = []
    shapes: dict[str, tuple[int, ...]] = {}
    averaged: dict[str, tuple[int, ...]] = {}
    fits = sum(len(wanted) for *_, wanted in sources) * len(task.splits) + len(own_splits) * bool(scratch)
    with steps(fits, "transfer", "fit", progress, shorter="fewer layers or splits take less") as done:
        for kind, source, wanted in sources:
            with _features(source, task, wanted, max_features, batch_size) as features:
                shapes |= features.shapes
                averaged |= {} if source is None else features.averaged
                for name, split in itertools.product(wanted, task.splits):
                    scores = _classify(features, name, task, split, classifier, random_seed + split.number)
                    rows.append({"features": kind, "layer": name, "number": number[name]} | scores)
                    done(1)
        if scratch is not None and architecture is not None:
            for split in own_splits:
                trains = functools.partial(fit, architecture, **(scratch_options or {}))
                scores = _from_scratch(trains, task, split, scratch, random_seed + split.number)
                rows.append({"features": SCRATCH, "layer": "its own classes", "number": math.nan} | scores)
                done(1)
    return Transfer(
        pd.DataFrame(rows), shapes, averaged, task.classes, len(task.splits[0].tested_on), classifier, model.name,
        train.source, "the rest of it" if test is None else test.source,
    )  # fmt: skip


def feature_layers(model: VisionModel) -> tuple[str, ...]:
    """Where each layer with weights ends: its last step before the next one, the classes' own left out.

    For the paper's networks these are norm1, norm2, relu3, relu4, pool5, relu6 and relu7, its layers 1 to 7. What does
    not change a feature (dropout at rest, a flattening) does not count. In a branching network, name the layers.
    """
    steps = [step for step in expect_model(model).network.steps.values() if step.name in model.layers]
    idle = nn.Dropout | nn.Dropout2d | nn.Flatten | nn.Identity
    weighted = [i for i, step in enumerate(steps) if isinstance(step.module, nn.Conv2d | nn.Linear)]
    ends = []
    for first, following in itertools.pairwise(weighted):
        active = [step.name for step in steps[first:following] if not isinstance(step.module, idle)]
        ends.append(active[-1])
    return tuple(ends or (steps[-1].name,))


# ------------------------------------------------------------------------------------------------- features


class _Features:
    """Features of the pictures that a task needs: by layer, rows in the order of their places.

    Attributes:
        shapes: layer -> its shape, after averaging. averaged: layer -> its own, where there was any.
    """

    def __init__(
        self, places: np.ndarray, one: Mapping[str, Tensor], max_features: int, folder: Path
    ) -> None:
        self.max_features, self._places = max_features, places
        own = {name: tuple(y.shape[1:]) for name, y in one.items()}
        self.shapes = {name: tuple(_average(y, max_features).shape[1:]) for name, y in one.items()}
        self.averaged = {name: shape for name, shape in own.items() if shape != self.shapes[name]}
        size = 4 * len(places) * sum(math.prod(shape) for shape in self.shapes.values())
        free = shutil.disk_usage(folder).free
        if size > max(IN_MEMORY_BYTES, 0.9 * free):
            raise ZfkitError(
                f"features of {len(places):,} pictures take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in "
                f"{folder.parent}: lower per_class, splits or max_features, or name fewer layers"
            )
        self.values: dict[str, np.ndarray] = {}
        for i, (name, shape) in enumerate(self.shapes.items()):
            rows = (len(places), math.prod(shape))
            if size > IN_MEMORY_BYTES:
                self.values[name] = np.memmap(folder / f"{i}", np.float32, "w+", shape=rows)
            else:
                self.values[name] = np.empty(rows, np.float32)

    def write(self, name: str, rows: slice, outputs: Tensor) -> None:
        """Outputs (n, C, H, W) or (n, F) of consecutive pictures."""
        self.values[name][rows] = _average(outputs, self.max_features).flatten(1).float().cpu().numpy()

    def at(self, name: str, places: np.ndarray) -> Tensor:
        """(n, F) float32 features of the pictures at these places."""
        return torch.from_numpy(self.values[name][np.searchsorted(self._places, places)])


@contextlib.contextmanager
def _features(
    model: VisionModel | None, task: Task, names: Sequence[str], max_features: int, batch_size: int
) -> Iterator[_Features]:
    """All layers of all needed pictures in one pass; pixels where there is no model."""
    places = task.needed

    def outputs(rows: slice) -> Iterator[tuple[str, Tensor]]:
        pixels = task.take(places[rows])
        return iter([(PIXELS, pixels.float())]) if model is None else activations(model, pixels, names)

    with temporary_folder() as folder:
        one = dict(outputs(slice(1)))
        features = _Features(places, one, max_features, Path(folder))
        portions = Portions("features", batch_size)
        for rows in portions.of(len(places)):
            with portions.attempt():
                for name, y in outputs(rows):
                    features.write(name, rows, y)
        yield features
        features.values.clear()  # a mapped file cannot be deleted everywhere


def _average(maps: Tensor, most: int) -> Tensor:
    """Maps (N, C, H, W) averaged to the most places a side that give no more than `most` numbers, one at least."""
    if maps.dim() != 4 or maps[0].numel() <= most:
        return maps
    H, W = maps.shape[2:]
    side = max(1, math.isqrt(most // maps.shape[1]))
    return F.adaptive_avg_pool2d(maps, (min(side, H), min(side, W)))


# ------------------------------------------------------------------------------------------------ classifiers


def _classify(
    features: _Features, name: str, task: Task, split: Split, classifier: Classifier, random_seed: int
) -> dict[str, float]:
    """Train on a layer's features of some pictures, choose C on them, and score on others."""
    points, place = coordinates(features.at(name, split.trained_on))
    trained = fitted(points, task.labels[split.trained_on], classifier, random_seed)
    parts = np.array_split(split.tested_on, -(-len(split.tested_on) // 512))  # a bounded copy
    predicted = [trained.predict(place(features.at(name, part))) for part in parts]
    return task.scores(split, np.concatenate(predicted), trained.C)


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


def fitted(points: np.ndarray, y: np.ndarray, classifier: Classifier, random_seed: int) -> Any:
    """A classifier of points (n, F), its C the best in three-fold cross-validation; of equals, the weakest."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.svm import LinearSVC

    linear = LinearSVC(max_iter=5000) if classifier == "svm" else LogisticRegression(max_iter=1000)
    linear.set_params(random_state=random_seed)
    folds = min(3, int(np.bincount(y).min()))
    if folds < 2:  # one picture of a class cannot be both learned and tested
        return linear.set_params(C=STRENGTHS[-2]).fit(points, y)

    def right(trained: Any, z: np.ndarray, labels: np.ndarray) -> int:
        # Whole numbers: their means are equal where they are.
        return int((trained.predict(z) == labels).sum())

    search = GridSearchCV(
        linear, {"C": STRENGTHS}, scoring=right, refit=False,
        cv=StratifiedKFold(folds, shuffle=True, random_state=random_seed),
    )  # fmt: skip
    with warnings.catch_warnings():
        # What does not get to its end is scored all the same.
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(points, y)
    return linear.set_params(**search.best_params_).fit(points, y)


# ------------------------------------------------------------------------------------------------ from scratch


def _scratch_architecture(model: VisionModel, named: str | Architecture | None) -> str | Architecture:
    if named is not None:
        return named
    if isinstance(model.net, ZFNet | AlexNet):
        return model.net.architecture
    raise ZfkitError(
        f"{model.name} is none of zfkit's own networks: say scratch_architecture='zfnet64', for instance"
    )


def _from_scratch(
    trains: Callable[..., Any], task: Task, split: Split, recipe: Recipe, random_seed: int
) -> dict[str, float]:
    """Train on these pictures alone, score on the test's."""
    few = _subset(task, np.sort(split.trained_on))
    own = replace(recipe, random_seed=random_seed, snapshots=())
    trained = trains(few, few, own, progress=False).model()
    parts = np.array_split(split.tested_on, -(-len(split.tested_on) // 250))
    with torch.inference_mode():
        predicted = [answers(trained, task.take(part)).argmax(1).numpy() for part in parts]
    return task.scores(split, np.concatenate(predicted), math.nan)


def _subset(task: Task, places: np.ndarray) -> ImageSet:
    """Some of the training pictures as a set of their own, in memory."""
    from PIL import Image

    pixels, labels = task.take(places), task.labels[places]

    def read(i: int) -> tuple[Any, int]:
        return Image.fromarray(pixels[i].permute(1, 2, 0).numpy()), int(labels[i])

    names = [task.images[0].name(int(p)) for p in places]
    few = ImageSet(read, names, size=pixels.shape[-1], source=task.images[0].source, classes=task.classes)
    return few.in_memory(progress=False)
