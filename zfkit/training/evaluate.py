"""Top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..batching import Portions
from ..errors import TrainingError, ZfkitError
from ..images.imageset import ImageSet
from ..images.labels import align_labels
from ..nets.graph import evaluation_mode
from ..nets.model import VisionModel, expect_model
from .data import Geometry, expect_room, views


@dataclass(frozen=True)
class Accuracy:
    """Of a network on labelled pictures."""

    top1: float  # % of pictures whose class is the most probable
    top5: float  # % of pictures whose class is among the five most probable
    loss: float  # mean cross-entropy, nats
    count: int


def scores(p: Tensor, labels: Tensor) -> Tensor:
    """(3,) of probabilities (n, classes): right, among the five most probable, summed cross-entropy in nats."""
    hits = p.topk(min(5, p.shape[1])).indices == labels[:, None]
    loss = -p.gather(1, labels[:, None]).clamp_min(1e-30).log().sum()
    return torch.stack([hits[:, 0].sum(), hits.sum(), loss])


def expect_classes(labels: Tensor, classes: int, images: ImageSet, error: type[ZfkitError]) -> None:
    """Raise where a label is none of a network's classes."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        known = f"the network has {classes} classes, 0 to {classes - 1}"
        raise error(f"{images.source!r} has labels from {low} to {high} (-1: none), and {known}")


@torch.inference_mode()
def evaluate(
    model: VisionModel,
    images: ImageSet,
    geometry: Geometry | None = None,
    *,
    crops: Literal[1, 10] = 1,
    batch_size: int = 250,
    forward: Callable[[Tensor], Tensor] | None = None,
    fabric: Any = None,
) -> Accuracy:
    """Accuracy on labelled pictures: of the centre crop, or of the mean over the paper's ten crops.

    Args:
        images: pictures at least as large as the network's input; classes are matched by name where both have names.
        geometry: how the ten crops lie; default: in the picture's corners, and, where pictures are as large as
            the input, hanging over by 6 of 64 pixels, as in training.
        crops: 1 or 10; with 10 the class probabilities are averaged.
        forward, fabric: during training, the wrapped network and the processes that share the work.

    Raises TrainingError where labels are missing or no class of the network, ImageError where no class is.
    """
    expect_model(model)
    images = align_labels(images, model.classes)
    if crops not in (1, 10):
        raise TrainingError(f"crops must be 1 or 10, not {crops!r}")
    expect_room("the network", model.input_size, images, TrainingError)
    forward = forward or model.logits
    ranks, rank = (fabric.world_size, fabric.global_rank) if fabric else (1, 0)
    sums = torch.zeros(4, dtype=torch.float64, device=model.device)  # top1, top5, loss, count
    start, stop = rank * len(images) // ranks, (rank + 1) * len(images) // ranks
    portions = Portions("evaluating", batch_size)
    with evaluation_mode(model.net):
        for batch in images.batches(batch_size, start, stop):
            labels = batch.label.to(model.device)
            parts = []
            for part in portions.of(len(labels)):
                with portions.attempt():
                    pixels = batch.pixels[part]
                    shown = views(pixels, model.input_size, crops, geometry)
                    answers = torch.stack([forward(model.preprocess(v)).float() for v in shown])
                    if answers.dim() != 3:
                        given = tuple(answers.shape[2:]) or "one number"
                        raise TrainingError(
                            f"{model.name} gives {given} for a picture; one number per class was expected"
                        )
                    parts.append(answers.softmax(2).mean(0))
            p = torch.cat(parts)  # (n, classes)
            expect_classes(labels, p.shape[1], images, TrainingError)
            sums[:3] += scores(p, labels)
            sums[3] += len(p)
    if fabric:
        sums = fabric.all_reduce(sums, reduce_op="sum")
    top1, top5, loss_sum, count = sums.tolist()
    if not count:
        raise TrainingError(f"{images.source!r} holds no picture that can be read")
    return Accuracy(100 * top1 / count, 100 * top5 / count, loss_sum / count, int(count))
