"""Several networks, or several crops, asked together: the mean of their answers (section 5.1, Table 2).

The paper's best numbers are not of one network but of the average of five or six, and each of those averages ten
crops. `ensemble` measures what that brings: each network alone, every combination of them, and how often they agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import ImageError, ModelError, ZfkitError, unknown
from ..images.imageset import ImageSet
from ..nets.model import VisionModel
from ..training.data import Geometry, centre_crop, crops_of, ten_crops
from .occlusion import probabilities

if TYPE_CHECKING:
    import pandas as pd

Average = Literal["probabilities", "logarithms"]
MOST_COMBINED = 6  # networks of which every combination is measured: 63; of more, each alone and all together


@dataclass(frozen=True)
class Ensemble:
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
        images: labelled, with labels as the networks order their classes; at least as large as the largest input.
        crops: 1, the centre; or 10, the paper's: four corners and the centre, and their mirror images, whose answers
            are averaged first, as `zfkit.evaluate` does.
        average: of "probabilities", the arithmetic mean, what papers of the time did; or of their "logarithms", which
            is their geometric mean, brought to a sum of 1.
        batch_size: pictures at a time.

    With up to six networks every combination is measured, with more each alone and all together. Pictures are read
    once.

    Raises ModelError for no network or networks of different classes, ImageError for pictures that are too small, have
    no labels, or labels that are no class of the networks.

    >>> zfkit.experiments.ensemble([zfkit.load_model("zfnet64"), zfkit.load_model("alexnet64")], images, crops=10).table()
    """
    models = [models] if isinstance(models, VisionModel) else list(models)
    if not models:
        raise ModelError("there is no network to average: give at least one, as in [model, other]")
    if crops not in (1, 10) or isinstance(crops, bool):
        raise ZfkitError(f"crops must be 1 or 10, not {crops!r}")
    if average not in get_args(Average):
        raise ZfkitError(unknown("average", average, get_args(Average)))
    if type(batch_size) is not int or batch_size < 1:
        raise ZfkitError(f"batch_size must be a whole number from 1 on, not {batch_size!r}")
    names = _numbered([model.name for model in models])
    _same_classes(models, names, images)
    for model, name in zip(models, names, strict=True):
        if images.size < model.input_size:
            raise ImageError(
                f"{name} takes {model.input_size} px and the pictures of {images.source!r} are {images.size}: load "
                f"them with size={max(m.input_size for m in models)}"
            )
    M = len(models)
    sizes = range(1, M + 1) if M <= MOST_COMBINED else (1, M)
    combinations = [c for size in sizes for c in itertools.combinations(range(M), size)]
    sums = torch.zeros(len(combinations), 3, dtype=torch.float64)  # top-1, top-5, loss
    agree, wrong = torch.zeros(M, M, dtype=torch.float64), torch.zeros(M, M, dtype=torch.float64)
    count = 0
    with tqdm(total=len(images), desc="ensemble", unit="img", disable=not progress, leave=False) as bar:
        for batch in images.batches(batch_size):
            p = torch.stack([answers(model, batch.pixels, crops) for model in models])  # (M, n, classes)
            labels = batch.label
            if int(labels.min()) < 0 or int(labels.max()) >= p.shape[2]:
                raise ImageError(
                    f"{images.source!r} has labels from {int(labels.min())} to {int(labels.max())}, and the networks "
                    f"have {p.shape[2]} classes, 0 to {p.shape[2] - 1} (-1 is a picture without a label)"
                )
            for row, combination in enumerate(combinations):
                mean = averaged(p[list(combination)], average)
                hits = mean.topk(min(5, mean.shape[1])).indices == labels[:, None]
                loss = -mean.gather(1, labels[:, None]).clamp_min(1e-30).log().sum()
                sums[row] += torch.tensor([hits[:, 0].sum(), hits.sum(), loss])
            best = p.argmax(2)  # (M, n)
            missed = (best != labels).double()
            agree += (best[:, None] == best[None]).double().sum(2)
            wrong += missed @ missed.T
            count += len(labels)
            bar.update(len(labels))
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
    geometry: Geometry = crops_of(model.input_size, pixels.shape[-1])
    views = [centre_crop(pixels, geometry)] if crops == 1 else ten_crops(pixels, geometry)
    told = [probabilities(model, model.net(model.preprocess(view))).double().cpu() for view in views]
    return torch.stack(told).mean(0)


def averaged(p: Tensor, average: Average = "probabilities") -> Tensor:
    """Probabilities (M, n, classes) of M networks -> (n, classes), which sum to 1."""
    if average == "probabilities":
        return p.mean(0)
    return p.clamp_min(1e-30).log().mean(0).softmax(1)


def _numbered(names: Sequence[str]) -> list[str]:
    """Names, with a number behind those that occur more than once."""
    return [
        f"{name} ({list(names[: i + 1]).count(name)})" if list(names).count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def _same_classes(models: Sequence[VisionModel], names: Sequence[str], images: ImageSet) -> None:
    """Raise ModelError where the networks' classes differ, ImageError where the pictures' are others by name."""
    first = models[0]
    width = _outputs(first)
    for model, name in zip(models[1:], names[1:], strict=True):
        if _outputs(model) != width:
            raise ModelError(
                f"{names[0]} tells {width} classes apart and {name} {_outputs(model)}: only networks with the same "
                "classes can be averaged"
            )
        if first.classes and model.classes and first.classes != model.classes:
            i = next(i for i, (a, b) in enumerate(zip(first.classes, model.classes, strict=True)) if a != b)
            raise ModelError(
                f"class {i} is {first.classes[i]!r} for {names[0]} and {model.classes[i]!r} for {name}: only networks "
                "with the same classes in the same order can be averaged"
            )
    told = next((m.classes for m in models if m.classes), ())
    if told and images.classes and told != images.classes:
        raise ImageError(
            f"{images.source!r} has {len(images.classes)} classes ({', '.join(images.classes[:3])} ...) and the "
            f"networks {len(told)} ({', '.join(told[:3])} ...): accuracy needs the same, in the same order"
        )


def _outputs(model: VisionModel) -> int:
    """How many classes it tells apart."""
    if model.classes:
        return len(model.classes)
    blank = torch.zeros(1, 3, model.input_size, model.input_size, dtype=torch.uint8)
    return int(model.net(model.preprocess(blank)).shape[-1])
