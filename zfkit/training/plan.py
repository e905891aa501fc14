"""What is trained on what: everything that can be known, and can fail, before the first step."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..checks import in_px, one_of, square_side
from ..checksums import digest
from ..errors import TrainingError
from ..images.imageset import ImageSet
from ..nets.model import VisionModel, wrap_model
from ..nets.paper import ARCHITECTURES, Architecture
from ..nets.weights import Provenance
from ..nets.zoo import describe
from .data import Geometry, centre_crop, crops_of
from .recipe import Recipe
from .run import State

# Settings that may change when a run goes on, without making it another run.
MAY_CHANGE = {"epochs", "snapshots", "flat_epochs", "flat_steps"}


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """A network, a recipe and data that fit each other; made by `TrainingPlan.make`."""

    architecture: Architecture
    recipe: Recipe
    classes: tuple[str, ...]
    count: int  # training pictures
    geometry: Geometry
    blocks: Tensor | None  # first places of training pictures that are stored together
    mean: Tensor  # (3,) RGB 0-255
    scale: Tensor  # (3,)
    guessing: float  # loss of the best constant answer, nats: the entropy of the labels
    sample: Tensor  # (n, 3, S, S) uint8, a few training pictures
    data: str
    fingerprint: str
    labels: str  # digest of both sets' labels
    kept: Literal["resident", "streamed"]  # where the training pictures are meanwhile

    @classmethod
    def make(
        cls,
        architecture: str | Architecture,
        train: ImageSet,
        val: ImageSet,
        recipe: Recipe,
        data: str | None = None,
        kept: Literal["resident", "streamed"] = "resident",
    ) -> TrainingPlan:
        """Look at everything that can be known to fail before the first step; the arguments are those of `fit`."""
        if isinstance(architecture, str):
            name = one_of(architecture, "architecture", ARCHITECTURES, TrainingError)
            architecture = ARCHITECTURES[name]
        labels, held_out = _labels(train, "training"), _labels(val, "validation")
        classes, counts = _classes(train, val, labels, held_out)
        size = architecture.input_size
        for what, images in (("training", train), ("validation", val)):
            side = square_side(images.size, f"the {what} pictures are cropped to squares")
            if side < size or images.size != train.size:
                raise TrainingError(
                    f"the {what} pictures are {in_px(side)}: load both sets alike, with size={size}, or "
                    f"{size * 8 // 7} for random crops"
                )
        geometry = crops_of(size, side)
        if recipe.shift is not None:
            geometry = replace(geometry, pad=recipe.shift)
        if recipe.brightness is not None:
            geometry = replace(geometry, brightness=recipe.brightness)
        sample = train.take(spread(train, 2000))
        std = sample.double().std((0, 2, 3)).clamp_min(1e-3)
        share = counts / counts.sum()
        return cls(
            architecture=replace(architecture, classes=len(classes)),
            recipe=recipe,
            classes=classes,
            count=len(train),
            geometry=geometry,
            blocks=None if train.blocks is None else train.blocks[train.blocks < len(train)],
            mean=sample.double().mean((0, 2, 3)).float(),
            scale=(1 / std if recipe.inputs == "std" else torch.ones(3)).float(),
            guessing=float(-(share * share.log()).sum()),
            sample=centre_crop(sample[:64], size),
            data=data or f"{train.source}: {len(train):,} training pictures, {len(classes)} classes",
            fingerprint=f"{train.fingerprint()} {val.fingerprint()}",
            labels=digest([labels, held_out, *classes])[:16],
            kept=kept,
        )

    @property
    def batch(self) -> int:
        """Pictures in a batch, over all processes."""
        return min(self.recipe.batch_size, self.count)

    @property
    def steps(self) -> int:
        """Batches in an epoch; what does not fill the last one waits for another epoch's order."""
        return self.count // self.batch

    def wrap(self, net: nn.Module) -> VisionModel:
        """The network as a `VisionModel`."""
        size = self.architecture.input_size
        numbers: dict[str, Any] = {"mean": self.mean.tolist(), "scale": self.scale.tolist()}
        name = f"{self.architecture.family}{size}"
        return wrap_model(net, input_size=size, classes=self.classes, name=name, **numbers)

    def settings(self) -> dict[str, Any]:
        """What must be the same when a run goes on: part -> setting -> value, as JSON gives it back."""
        settings = {
            "architecture": describe(self.architecture),
            "recipe": {k: v for k, v in asdict(self.recipe).items() if k not in MAY_CHANGE},
            "data": {
                "fingerprint": self.fingerprint, "labels": self.labels, "kept": self.kept,
                "crops": asdict(self.geometry),
            },
        }  # fmt: skip
        read: dict[str, Any] = json.loads(json.dumps(settings))  # tuples become lists, as in the file
        return read

    def check_same(self, settings: dict[str, Any], state: State, folder: Path) -> None:
        """Raise TrainingError where the folder's run, of these settings and at this state, is another than this."""
        differences = []
        for part, now in self.settings().items():
            then = settings.get(part, {})
            changed = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
            differences += [f"{key} was {then.get(key)!r} and is now {now.get(key)!r}" for key in changed]
        if differences:
            raise TrainingError(
                f"{folder} holds another run: {'; '.join(differences[:3])}. Give the same settings, or another folder"
            )
        if state.epoch > self.recipe.epochs:
            beyond = f"beyond the {self.recipe.epochs} asked for"
            raise TrainingError(f"{folder} is at epoch {state.epoch} already, {beyond}")

    def provenance(self, state: State, fabric: Any) -> Provenance:
        """What a snapshot says of itself."""
        from ..version import __version__

        last = state.history[-1] if state.history else {}
        device = fabric.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {
            "architecture": describe(self.architecture), "input_size": self.architecture.input_size,
            "mean": [round(m, 4) for m in self.mean.tolist()], "scale": self.scale.tolist(),
            "classes": list(self.classes), "data": self.data,
            "top1": round(last["top1"], 1) if last else None, "top5": round(last["top5"], 1) if last else None,
            "epochs": state.epoch, "recipe": asdict(self.recipe), "crops": asdict(self.geometry),
            "history": state.history, "seconds": round(sum(row["seconds"] for row in state.history), 1),
            "device": f"{fabric.world_size} x {name}", "precision": fabric._precision.precision,
            "versions": {"zfkit": __version__, "torch": torch.__version__},
        }  # fmt: skip


def _classes(
    train: ImageSet, val: ImageSet, labels: Tensor, held_out: Tensor
) -> tuple[tuple[str, ...], Tensor]:
    """Names of the classes, and how many training pictures each has. Raises TrainingError where they do not fit."""
    if not train.classes and int(labels.max()) >= len(labels):
        raise TrainingError(
            f"a training label is {int(labels.max()):,}, of {len(labels):,} pictures without names of classes: number "
            "labels from 0 on, each with pictures"
        )
    classes = train.classes or tuple(str(c) for c in range(int(labels.max()) + 1))
    if val.classes and val.classes != classes and train.classes:
        raise TrainingError("training and validation must have the same classes, in the same order")
    for what, largest in (("training", int(labels.max())), ("validation", int(held_out.max()))):
        if largest >= len(classes):
            raise TrainingError(f"a {what} label is {largest}, and classes go from 0 to {len(classes) - 1}")
    counts = torch.bincount(labels, minlength=len(classes))
    empty = [classes[c] for c in (counts == 0).nonzero().flatten().tolist()]
    if empty:
        raise TrainingError(
            f"{len(empty)} of {len(classes)} classes have no training picture ({', '.join(empty[:5])}"
            f"{' ...' * (len(empty) > 5)}): give them some, or leave the classes out"
        )
    if len(classes) < 2:
        raise TrainingError("there is one class only: nothing to tell apart")
    return classes, counts


def _labels(images: ImageSet, what: str) -> Tensor:
    """(N,) labels, all there. Raises TrainingError with the number that is missing."""
    if not len(images):
        raise TrainingError(f"{images.source!r} holds no pictures to use for {what}")
    labels = images.known_labels()
    if labels is None:
        labels = torch.cat([batch.label for batch in images.batches(256)])
    missing = int((labels < 0).sum())
    if missing:
        raise TrainingError(
            f"{missing:,} of {len(labels):,} {what} pictures of {images.source!r} have no label: a folder's are its "
            "sub-folders, Parquet's its column 'label'"
        )
    return labels


def spread(images: ImageSet, count: int) -> Tensor:
    """Places of about `count` pictures over the whole set, few of its blocks: a block is read whole."""
    if images.blocks is None:
        return torch.linspace(0, len(images) - 1, min(len(images), count)).round().long().unique()
    chosen = torch.linspace(0, len(images.blocks) - 1, min(len(images.blocks), 16)).round().long()
    run = torch.arange(-(-count // len(chosen)))
    places = (images.blocks[chosen][:, None] + run).flatten()
    return places[places < len(images)].unique()
