"""Which layers does the network need? The paper's changes to it, each a network to train (section 5.1, Table 3).

The paper leaves layers out, or changes how many units they have, trains anew, and compares errors. `ablations` lists
these variants of any of the project's networks, `ablation_counts` counts their weights, and `ablate` trains them at
equal budget. Many runs are better spread: `notebooks/11_ablation_one_network.ipynb` trains one variant, a sweep over
its parameters is the table, and `read_ablation` reads it:

    zfkit sweep notebooks/11_ablation_one_network.ipynb --grid notebooks/grids/ablation.yaml --out runs/ablation
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from tqdm.auto import tqdm

from ..errors import ModelError, ZfkitError, unknown
from ..files import write_whole
from ..images.imageset import ImageSet
from ..nets.paper import ARCHITECTURES, Architecture, build
from ..training.evaluate import evaluate
from ..training.fit import fit
from ..training.recipe import RECIPES, Recipe

if TYPE_CHECKING:
    import pandas as pd

# Error in %, top-5 on ImageNet's validation set, as Table 3 has it: (AlexNet's variant, ZFNet's variant).
PAPER: dict[str, tuple[float | None, float | None]] = {
    "full": (18.1, 16.5),
    "without-3-4": (22.1, None),
    "without-7": (18.4, None),
    "without-6-7": (22.4, None),
    "without-3-4-6-7": (50.1, None),
    "fc-half": (18.8, 17.6),
    "fc-double": (18.1, 17.0),
    "wide-3-5": (None, 16.0),
    "wide-3-5-fc-double": (None, 16.9),
}
CHANGES = {
    "full": "nothing",
    "without-3-4": "conv3 and conv4 left out",
    "without-7": "fc7 left out",
    "without-6-7": "fc6 and fc7 left out",
    "without-3-4-6-7": "conv3, conv4, fc6 and fc7 left out",
    "fc-half": "half as many units in fc6 and fc7",
    "fc-double": "twice as many units in fc6 and fc7",
    "wide-3-5": "conv3 to conv5 with 512, 1024, 512 maps for 384, 384, 256",
    "wide-3-5-fc-double": "both of these",
    "zfnet": "first two layers as in ZFNet",
    "alexnet": "first two layers as in AlexNet",
}
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
        if base not in ARCHITECTURES:
            raise ModelError(unknown("architecture", base, ARCHITECTURES))
        base = ARCHITECTURES[base]
    if base.without:
        raise ModelError(
            f"the base lacks {', '.join(base.without)} already: begin with a network that has all layers"
        )
    base = replace(base, classes=base.classes if classes is None else classes)
    c1, c2, c3, c4, c5 = base.widths
    wide = (c1, c2, round(WIDER[0] * c3), round(WIDER[1] * c4), round(WIDER[2] * c5))
    middle, connected = ("conv3", "conv4"), ("fc6", "fc7")
    variants = {
        "full": base,
        "without-3-4": replace(base, without=middle),
        "without-7": replace(base, without=("fc7",)),
        "without-6-7": replace(base, without=connected),
        "without-3-4-6-7": replace(base, without=middle + connected),
        "fc-half": replace(base, hidden=max(1, base.hidden // 2)),
        "fc-double": replace(base, hidden=2 * base.hidden),
        "wide-3-5": replace(base, widths=wide),
        "wide-3-5-fc-double": replace(base, widths=wide, hidden=2 * base.hidden),
    }
    other = "zfnet" if base.family == "alexnet" else "alexnet"
    preset = ARCHITECTURES.get(f"{other}{base.input_size}")
    if preset is not None:
        variants[other] = replace(
            base, family=other, conv1=preset.conv1, conv2=preset.conv2, pool2=preset.pool2
        )
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
        alexnet, zfnet = PAPER.get(name, (None, None))
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
class Ablation:
    """Variants trained at equal budget, with one seed or several; made by `ablate` or `read_ablation`.

    Attributes:
        runs: data frame, a row for each run: what all share (base; images and pictures, the training set and its
            number; epochs; recipe, its name in `zfkit.training.RECIPES`; batch_size; dropout), variant, seed, and what was
            measured: parameters; top1, top5 (%) and loss (nats) on the validation pictures; train_top1 (%), on the
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
            lost = pd.Series(dtype=float)
            if "full" in by_seed:
                lost = (by_seed["full"] - by_seed[variant]).dropna()
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
        path = Path(path)
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
        if name not in known:
            raise ZfkitError(unknown("variant", name, known))
    if not chosen or not len(seeds):
        raise ZfkitError("at least one variant and one seed are needed, to have something to train")
    budget = {
        "base": base if isinstance(base, str) else "custom",
        "images": train.source, "pictures": len(train), "epochs": recipe.epochs, "recipe": _recipe_name(recipe),
        "batch_size": recipe.batch_size, "dropout": recipe.dropout,
    }  # fmt: skip
    rows = []
    runs = [(name, seed) for seed in seeds for name in chosen]
    for name, seed in tqdm(runs, desc="ablation", unit="run", disable=not progress, leave=False):
        folder = None if out is None else Path(out).expanduser() / f"{name}-{seed}"
        own = replace(recipe, random_seed=seed, snapshots=())
        run = fit(known[name], train, val, own, folder, device=device, progress=progress and len(runs) == 1)
        model = run.model()
        held_out, seen = evaluate(model, val), evaluate(model, train)
        rows.append(
            budget
            | {
                "variant": name, "seed": seed, "parameters": sum(p.numel() for p in model.net.parameters()),
                "top1": held_out.top1, "top5": held_out.top5, "loss": held_out.loss, "train_top1": seen.top1,
            }
        )  # fmt: skip
    return Ablation(pd.DataFrame(rows), "here")


def _recipe_name(recipe: Recipe) -> str:
    """Its name in `zfkit.training.RECIPES`, whatever else the budget or a run tells of it; "custom" if it differs further."""
    told = ("epochs", "batch_size", "dropout", "random_seed", "snapshots")
    for name, known in RECIPES.items():
        if replace(recipe, **{field: getattr(known, field) for field in told}) == known:
            return name
    return "custom"


def read_ablation(source: str | Path | None = None) -> Ablation:
    """What a sweep of `11_ablation_one_network.ipynb` found.

    Args:
        source: the sweep's folder, its results.parquet, or a .csv that `Ablation.save` wrote. Default: the results
            that come with zfkit, of `zfnet64-narrow` on `textures`, by ``notebooks/grids/ablation.yaml``.

    Raises ZfkitError where there is no such table, no run in it is finished, or its runs had different budgets.

    >>> zfkit.experiments.read_ablation().table()
    """
    import pandas as pd

    if source is None:
        source = Path(str(importlib.resources.files("zfkit.experiments"))) / "data" / "ablation-textures.csv"
    path = Path(source).expanduser()
    path = path / "results.parquet" if path.is_dir() else path
    try:
        runs = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except FileNotFoundError:
        raise ZfkitError(
            f"there is no {str(path)!r}: give the folder that `zfkit sweep --out` wrote to"
        ) from None
    except (OSError, ValueError) as error:
        raise ZfkitError(f"{path.name} is no table of a sweep ({' '.join(str(error).split())})") from None
    columns = [*BUDGET, "variant", "seed", *MEASURED]
    lacking = [name for name in columns if name not in runs]
    if lacking:
        raise ZfkitError(
            f"{path.name} lacks the columns {', '.join(lacking)}: it is no sweep of 11_ablation_one_network.ipynb, "
            "or none of its runs finished"
        )
    if "status" in runs:
        runs = runs[runs.status == "finished"]
    runs = runs[columns].dropna(subset=["top1"]).reset_index(drop=True)
    if not len(runs):
        raise ZfkitError(f"{path.name} holds no finished run: the same sweep again does what is missing")
    for name in BUDGET:
        values = runs[name].unique()
        if len(values) > 1:
            raise ZfkitError(
                f"{path.name} has runs with different {name} ({', '.join(map(str, values))}), which cannot be "
                "compared: sweep each to a folder of its own"
            )
    return Ablation(runs, path.name)
