"""Networks compared: with layers left out or widened (section 5.1, Table 3), and averaged (Table 2).

*Which layers does the network need?* The paper leaves layers out, or changes how many units they have, trains anew, and
compares errors. `ablations` lists these variants of any of the project's networks, `ablation_counts` counts their
weights, and `ablate` trains them at equal budget. Many runs are better spread:
`notebooks/grids/ablation.ipynb` trains one variant, a sweep over its parameters is the table, and
`read_ablation` reads it:

    zfkit sweep notebooks/grids/ablation.ipynb --grid notebooks/grids/ablation.yaml --out runs/ablation

*What does averaging bring?* The paper's best numbers are not of one network but of the average of five or six, and
each of those averages ten crops. `ensemble` measures each network alone, every combination of them, and how often they
agree.
"""

from __future__ import annotations

import importlib.resources
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from ..batching import steps
from ..checks import as_path, one_of, pair, whole_number
from ..errors import ImageError, ModelError, ZfkitError
from ..files import write_whole
from ..images.imageset import ImageSet
from ..images.labels import align_labels
from ..nets.model import VisionModel, expect_model
from ..nets.paper import ARCHITECTURES, Architecture, build
from ..results import Result
from ..training.data import expect_room, views
from ..training.evaluate import evaluate, expect_classes, scores
from ..training.fit import fit
from ..training.recipe import RECIPES, Recipe
from .occlusion import probabilities
from .results import sweep_results

if TYPE_CHECKING:
    import pandas as pd

# What is changed; and error in %, top-5 on ImageNet's validation set, as Table 3 has it: AlexNet's variant, ZFNet's.
_TABLE_3: dict[str, tuple[str, float | None, float | None]] = {
    "full": ("nothing", 18.1, 16.5),
    "without-3-4": ("conv3 and conv4 left out", 22.1, None),
    "without-7": ("fc7 left out", 18.4, None),
    "without-6-7": ("fc6 and fc7 left out", 22.4, None),
    "without-3-4-6-7": ("conv3, conv4, fc6 and fc7 left out", 50.1, None),
    "fc-half": ("half as many units in fc6 and fc7", 18.8, 17.6),
    "fc-double": ("twice as many units in fc6 and fc7", 18.1, 17.0),
    "wide-3-5": ("conv3 to conv5 with 512, 1024, 512 maps for 384, 384, 256", None, 16.0),
    "wide-3-5-fc-double": ("both of these", None, 16.9),
    "zfnet": ("first two layers as in ZFNet", None, None),
    "alexnet": ("first two layers as in AlexNet", None, None),
}
CHANGES = {name: change for name, (change, *_) in _TABLE_3.items()}
PAPER = {name: (alexnet, zfnet) for name, (_, alexnet, zfnet) in _TABLE_3.items()}
WIDER = (512 / 384, 1024 / 384, 512 / 256)  # of conv3, conv4, conv5
# What runs must share to be compared.
BUDGET = ("base", "images", "pictures", "epochs", "recipe", "batch_size", "dropout")
MEASURED = ("parameters", "top1", "top5", "loss", "train_top1")


def ablations(base: str | Architecture = "zfnet64", classes: int | None = None) -> dict[str, Architecture]:
    """The variants of Table 3, by name: what `zfkit.nets.build` and `zfkit.fit` take.

    Layers are left out, or have so many times as many units as the paper's variant has of the paper's network:
    2048 and 8192 units of 4096 are half and twice; 512, 1024, 512 maps of 384, 384, 256 are 4/3, 8/3 and 2 times.
    The last entry is the other network of the paper at the same width, as a reference. (The paper leaves layers out
    of AlexNet, and changes widths of both; here every change is made to the base, whichever it is.)

    Args:
        base: a name such as ``"zfnet64"`` or ``"zfnet64-narrow"``, or an `Architecture`.
        classes: how many the network tells apart; default: the base's. (`zfkit.fit` sets it to the data's.)

    Raises ModelError for a base that does not exist, or one without all of the layers that are to be left out.

    >>> run = zfkit.fit(zfkit.experiments.ablations("zfnet64-narrow")["without-3-4"], train, val)
    """
    if isinstance(base, str):
        base = ARCHITECTURES[one_of(base, "architecture", ARCHITECTURES, ModelError)]
    if base.without:
        raise ModelError(f"the base lacks {', '.join(base.without)} already: begin with all layers")
    base = replace(base, classes=base.classes if classes is None else classes)
    c1, c2, c3, c4, c5 = base.widths
    wide = (c1, c2, round(WIDER[0] * c3), round(WIDER[1] * c4), round(WIDER[2] * c5))
    middle, connected, double = ("conv3", "conv4"), ("fc6", "fc7"), 2 * base.hidden
    variants = {
        "full": base,
        "without-3-4": replace(base, without=middle),
        "without-7": replace(base, without=("fc7",)),
        "without-6-7": replace(base, without=connected),
        "without-3-4-6-7": replace(base, without=middle + connected),
        "fc-half": replace(base, hidden=max(1, base.hidden // 2)),
        "fc-double": replace(base, hidden=double),
        "wide-3-5": replace(base, widths=wide),
        "wide-3-5-fc-double": replace(base, widths=wide, hidden=double),
    }
    other = "zfnet" if base.family == "alexnet" else "alexnet"
    preset = ARCHITECTURES.get(f"{other}{base.input_size}")
    if preset is not None:
        layers = {name: getattr(preset, name) for name in ("conv1", "conv2", "pool2")}
        variants[other] = replace(base, family=other, **layers)
    return variants


def ablation_counts(base: str | Architecture = "zfnet64", classes: int | None = None) -> pd.DataFrame:
    """How many weights and biases each variant has, and where.

    Columns, by variant: change, convolutional and connected (numbers), parameters (their sum), connected_share (of
    them, 0 to 1), of_full (parameters over the base's), and the paper's errors, paper_alexnet and paper_zfnet: top-5 in
    % on ImageNet, missing where it gives none. Arguments and errors as of `ablations`.

    >>> zfkit.experiments.ablation_counts("zfnet224").loc["full", "parameters"]
    62357608
    """
    import pandas as pd

    rows = []
    for name, architecture in ablations(base, classes).items():
        with torch.device("meta"):
            modules = list(build(architecture).modules())
        kinds = {
            what: sum(p.numel() for m in modules if isinstance(m, kind) for p in m.parameters())
            for what, kind in (("convolutional", nn.Conv2d), ("connected", nn.Linear))
        }
        alexnet, zfnet = PAPER[name]
        rows.append(
            {
                "variant": name, "change": CHANGES[name], **kinds, "parameters": sum(kinds.values()),
                "paper_alexnet": alexnet, "paper_zfnet": zfnet,
            }
        )  # fmt: skip
    table = pd.DataFrame(rows).set_index("variant")
    table.insert(4, "connected_share", table.connected / table.parameters)
    table.insert(5, "of_full", table.parameters / table.parameters["full"])
    return table.astype({"paper_alexnet": float, "paper_zfnet": float})


@dataclass(frozen=True)
class Ablation(Result, figure="ablation_figure"):
    """Variants trained at equal budget, with one seed or several; made by `ablate` or `read_ablation`.

    Attributes:
        runs: data frame, a row for each run: what all share (base; images and pictures, the training set and its
            number; epochs; recipe, its name in `zfkit.training.RECIPES`; batch_size; dropout), variant, seed, and what
            was measured: parameters; top1, top5 (%) and loss (nats) on the validation pictures; train_top1 (%), on the
            training pictures without augmentation or dropout.
        source: what it was read from, or "here".
    """

    runs: pd.DataFrame = field(repr=False)
    source: str

    @property
    def budget(self) -> dict[str, object]:
        """What all runs share."""
        return self.runs[list(BUDGET)].astype(object).iloc[0].to_dict()

    def table(self) -> pd.DataFrame:
        """Table 3 of these runs, by variant.

        Columns: parameters; runs; error and sd (top-1 on validation pictures, %, mean and standard deviation over
        seeds); worse (mean difference to "full" of the same seed, percentage points) and worse_error (its standard
        error; missing for fewer than two seeds in common); train_error (%).
        """
        import pandas as pd

        by_seed = self.runs.pivot_table(index="seed", columns="variant", values="top1", sort=False)
        rows = {}
        for variant, part in self.runs.groupby("variant", sort=False):
            full = by_seed.get("full", pd.Series(dtype=float))
            lost = (full - by_seed[variant]).dropna()
            rows[variant] = {
                "parameters": part.parameters.iloc[0], "runs": len(part),
                "error": 100 - part.top1.mean(), "sd": part.top1.std(),
                "worse": lost.mean() if len(lost) else math.nan,
                "worse_error": lost.std() / math.sqrt(len(lost)) if len(lost) > 1 and variant != "full" else math.nan,
                "train_error": 100 - part.train_top1.mean(),
            }  # fmt: skip
        order = [name for name in CHANGES if name in rows] + [name for name in rows if name not in CHANGES]
        table = pd.DataFrame.from_dict({name: rows[name] for name in order}, orient="index")
        return table.rename_axis("variant").astype({"parameters": int, "runs": int})

    def save(self, path: str | Path) -> Path:
        """Write the runs as a text table (.csv), numbers to a hundredth of a percent."""
        rounded = self.runs.round({"top1": 2, "top5": 2, "train_top1": 2, "loss": 4})
        path = as_path(path)
        write_whole(path, lambda part: rounded.to_csv(part, index=False, lineterminator="\n"))
        return path


def ablate(
    base: str | Architecture,
    train: ImageSet,
    val: ImageSet,
    variants: Sequence[str] | None = None,
    *,
    recipe: Recipe = RECIPES["paper"],
    seeds: Sequence[int] = (0,),
    out: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Ablation:
    """Train variants of a network one after the other at equal budget, and compare their errors (Table 3).

    Args:
        base: as for `ablations`.
        train, val: labelled pictures, as for `zfkit.fit`.
        variants: names out of `ablations`; default: all.
        recipe: the same for all; its seed is replaced by each of `seeds`.
        out: folder that keeps each run as VARIANT-SEED, to go on from after a stop; default: nothing is kept.

    Equal budget means the same pictures, epochs and rule for the learning rate. What a variant would reach with
    the settings that suit it best is another question, in the paper as here.

    Raises ZfkitError for an unknown variant or no seed, and as `ablations` and `zfkit.fit` do.

    >>> zfkit.experiments.ablate("zfnet64-narrow", train, val, ["full", "without-3-4"], seeds=[0, 1]).table()
    """
    import pandas as pd

    known = ablations(base)
    chosen = list(known if variants is None else [variants] if isinstance(variants, str) else variants)
    for name in chosen:
        one_of(name, "variant", known)
    if not chosen or not len(seeds):
        raise ZfkitError("at least one variant and one seed are needed, to have something to train")
    budget = {
        "base": base if isinstance(base, str) else "custom",
        "images": train.source, "pictures": len(train), "epochs": recipe.epochs, "recipe": _recipe_name(recipe),
        "batch_size": recipe.batch_size, "dropout": recipe.dropout,
    }  # fmt: skip
    rows = []
    runs = [(name, seed) for seed in seeds for name in chosen]
    with steps(len(runs), "ablation", "run", progress, shorter="fewer seeds or epochs take less") as done:
        for name, seed in runs:
            folder = None if out is None else as_path(out) / f"{name}-{seed}"
            own = replace(recipe, random_seed=seed, snapshots=())
            bar = progress and len(runs) == 1
            run = fit(known[name], train, val, own, folder, device=device, progress=bar)
            model = run.model()
            held_out, seen = evaluate(model, val), evaluate(model, train)
            measured = {
                "parameters": sum(p.numel() for p in model.net.parameters()), "top1": held_out.top1,
                "top5": held_out.top5, "loss": held_out.loss, "train_top1": seen.top1,
            }  # fmt: skip
            rows.append(budget | {"variant": name, "seed": seed} | measured)
            done(1)
    return Ablation(pd.DataFrame(rows), "here")


def _recipe_name(recipe: Recipe) -> str:
    """Its name in `zfkit.training.RECIPES`, whatever the budget says besides; "custom" if it differs further."""
    in_budget = ("epochs", "batch_size", "dropout", "random_seed", "snapshots")
    for name, known in RECIPES.items():
        if replace(recipe, **{field: getattr(known, field) for field in in_budget}) == known:
            return name
    return "custom"


def read_ablation(source: str | Path | None = None) -> Ablation:
    """What a sweep of `grids/ablation.ipynb` found.

    Args:
        source: the sweep's folder, its results.parquet, or a .csv that `Ablation.save` wrote. Default: the results
            that come with zfkit, of `zfnet64-narrow` on `textures`, by ``notebooks/grids/ablation.yaml``.

    Raises ZfkitError where there is no such table, no run in it is finished, or its runs had different budgets.

    >>> zfkit.experiments.read_ablation().table()
    """
    if source is None:
        source = Path(str(importlib.resources.files("zfkit.experiments"))) / "data" / "ablation-textures.csv"
    path = as_path(source)
    columns = [*BUDGET, "variant", "seed", *MEASURED]
    runs = sweep_results(path, columns, "grids/ablation.ipynb")[columns]
    runs = runs.dropna(subset=["top1"]).reset_index(drop=True)
    for name in BUDGET:
        values = runs[name].unique()
        if len(values) > 1:
            raise ZfkitError(
                f"{path.name} has runs with different {name} ({', '.join(map(str, values))}), which cannot be "
                "compared: sweep each to a folder of its own"
            )
    return Ablation(runs, "results.parquet" if path.is_dir() else path.name)


# ---------------------------------------------------------------------------------------------- averages

Average = Literal["probabilities", "logarithms"]
MOST_COMBINED = 6  # networks of which every combination is measured: 63; of more, each alone and all together


@dataclass(frozen=True)
class Ensemble(Result, figure="ensemble_figure"):
    """Errors of networks alone and averaged; made by `ensemble`.

    Attributes:
        models: names of the M networks, numbered where two have the same.
        combinations: which of them were averaged, as places in `models`: each alone first, all together last.
        top1, top5: for each combination, % of pictures whose class is the most probable, among the five most probable.
        loss: for each combination, mean cross-entropy, nats.
        agreement: (M, M), % of pictures that two networks give the same most probable class.
        both_wrong: (M, M), % of pictures that both get wrong; on the diagonal each network's own top-1 error.
        count: pictures.
        crops: of each picture, 1 or 10.
        average: of "probabilities", or of their "logarithms".
        images: what they were.
    """

    models: tuple[str, ...]
    combinations: tuple[tuple[int, ...], ...]
    top1: tuple[float, ...]
    top5: tuple[float, ...]
    loss: tuple[float, ...]
    agreement: Tensor = field(repr=False)
    both_wrong: Tensor = field(repr=False)
    count: int
    crops: int
    average: Average
    images: str

    def table(self) -> pd.DataFrame:
        """Table 2: a row for each combination with top-1 and top-5 error in %, and loss; index: their names."""
        import pandas as pd

        rows = [
            {"networks": len(c), "top1_error": 100 - a, "top5_error": 100 - b, "loss": e}
            for c, a, b, e in zip(self.combinations, self.top1, self.top5, self.loss, strict=True)
        ]
        names = [" + ".join(self.models[i] for i in c) for c in self.combinations]
        return pd.DataFrame(rows, index=pd.Index(names, name="averaged"))

    def by_size(self) -> pd.DataFrame:
        """Means over all combinations of so many networks: networks, combinations, top1_error, top5_error, loss."""
        table = self.table()
        means = table.groupby("networks").mean()
        means.insert(0, "combinations", table.groupby("networks").size())
        return means


@torch.inference_mode()
def ensemble(
    models: Sequence[VisionModel],
    images: ImageSet,
    crops: Literal[1, 10] = 1,
    *,
    average: Average = "probabilities",
    batch_size: int = 100,
    progress: bool = True,
) -> Ensemble:
    """Accuracy of several networks alone and averaged (Zeiler & Fergus, Table 2).

    Args:
        models: networks with the same classes in the same order. Their inputs may differ in size and preprocessing.
        images: labelled, at least as large as the largest input; classes are matched by name where both have names.
        crops: 1, the centre; or 10, the paper's: four corners and the centre, and their mirror images, whose answers
            are averaged first, as `zfkit.evaluate` does.
        average: of "probabilities", the arithmetic mean, what papers of the time did; or of their "logarithms", which
            is their geometric mean, brought to a sum of 1.

    With up to six networks every combination is measured, with more each alone and all together. Pictures are read
    once.

    Raises ModelError for no network or networks of different classes, ImageError for pictures that are too small, have
    no labels, or labels that are no class of the networks.

    >>> both = [zfkit.load_model("zfnet64"), zfkit.load_model("alexnet64")]
    >>> zfkit.experiments.ensemble(both, images, crops=10).table()
    """
    models = list(models) if isinstance(models, list | tuple) else [models]  # type: ignore[list-item]
    if not models:
        raise ModelError("there is no network to average: give at least one, as in [model, other]")
    if crops not in (1, 10) or isinstance(crops, bool):
        raise ZfkitError(f"crops must be 1 or 10, not {crops!r}")
    one_of(average, "average", get_args(Average))
    whole_number(batch_size, "batch_size")
    names = _numbered([expect_model(model).name for model in models])
    classes = _expect_same_classes(models, names, images)
    named = next((model.classes for model in models if model.classes), ())
    images = align_labels(images, named, "the networks")
    M = len(models)
    sizes = range(1, M + 1) if M <= MOST_COMBINED else (1, M)
    combinations = [c for size in sizes for c in itertools.combinations(range(M), size)]
    sums = torch.zeros(len(combinations), 3, dtype=torch.float64)  # top-1, top-5, loss
    agree, wrong = torch.zeros(2, M, M, dtype=torch.float64)
    count = 0
    with steps(len(images), "ensemble", progress=progress) as done:
        for batch in images.batches(batch_size):
            labels = batch.label
            expect_classes(labels, classes, images, ImageError)
            p = torch.stack([answers(model, batch.pixels, crops) for model in models])  # (M, n, classes)
            for row, combination in enumerate(combinations):
                sums[row] += scores(averaged(p[list(combination)], average), labels)
            best = p.argmax(2)  # (M, n)
            missed = (best != labels).double()
            agree += (best[:, None] == best[None]).double().sum(2)
            wrong += missed @ missed.T
            count += len(labels)
            done(len(labels))
    if not count:
        raise ImageError(f"{images.source!r} holds no picture that can be read")
    top1, top5, loss_sum = sums.T.tolist()
    return Ensemble(
        models=tuple(names), combinations=tuple(combinations), top1=tuple(100 * v / count for v in top1),
        top5=tuple(100 * v / count for v in top5), loss=tuple(v / count for v in loss_sum),
        agreement=100 * agree / count, both_wrong=100 * wrong / count, count=count, crops=crops, average=average,
        images=images.source,
    )  # fmt: skip


def answers(model: VisionModel, pixels: Tensor, crops: int = 1) -> Tensor:
    """Probabilities (n, classes) of uint8 pictures (n, 3, S, S): of the centre crop, or the mean over the ten crops."""
    shown = views(pixels, model.input_size, crops)
    return torch.stack(
        [probabilities(model, model.logits(model.preprocess(view))).double().cpu() for view in shown]
    ).mean(0)


def averaged(p: Tensor, average: Average = "probabilities") -> Tensor:
    """Probabilities (M, n, classes) of M networks -> (n, classes), which sum to 1."""
    if average == "probabilities":
        return p.mean(0)
    return p.clamp_min(1e-30).log().mean(0).softmax(1)


def _numbered(names: list[str]) -> list[str]:
    """Names, with a number behind those that occur more than once."""
    places = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [f"{n} ({i})" if names.count(n) > 1 else n for n, i in zip(names, places, strict=True)]


def _expect_same_classes(models: Sequence[VisionModel], names: Sequence[str], images: ImageSet) -> int:
    """How many classes there are.

    Raises ImageError where pictures are too small, ModelError where the networks' classes differ.
    """
    largest = max((model.input_size for model in models), key=pair)
    counts = []
    for model, name in zip(models, names, strict=True):
        expect_room(name, model.input_size, images, ImageError, largest)
        counts.append(len(model.classes) or answers(model, model.blank(images.size)).shape[1])
        if counts[-1] != counts[0]:
            raise ModelError(
                f"{names[0]} tells {counts[0]} classes apart and {name} {counts[-1]}: give networks with the same"
            )
    known = [(model.classes, name) for model, name in zip(models, names, strict=True) if model.classes]
    for classes, name in known:
        for i, (a, b) in enumerate(zip(known[0][0], classes, strict=True)):
            if a != b:
                raise ModelError(
                    f"class {i} is {a!r} for {known[0][1]} and {b!r} for {name}: give networks with the "
                    "same, in one order"
                )
    return counts[0]
