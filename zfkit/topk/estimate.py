"""What mining will take, known before it starts: `estimate_mining`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import ceil

from ..batching import Portions
from ..checks import whole_number
from ..errors import ImageError
from ..images.imageset import ImageSet
from ..nets.activations import Precision, activations
from ..nets.model import VisionModel
from .mine import MiningPlan


@dataclass(frozen=True)
class Estimate:
    """What mining will take.

    Attributes:
        pictures: in the set; of them `timed` were looked at, in `timed_seconds`.
        maps: feature maps of all layers.
        seconds: for all pictures, by all processes together.
        table_bytes: of the table, at most: maps x (28 k + 20), before compression.
        state_bytes: of the state of one process that is kept on the way: maps x (20 k + 20).
    """

    pictures: int
    maps: int
    timed: int
    timed_seconds: float
    processes: int
    seconds: float
    table_bytes: int
    state_bytes: int

    def __str__(self) -> str:
        by = f" by {self.processes} processes" if self.processes > 1 else ""
        time = timedelta(seconds=ceil(self.seconds))
        table, state = self.table_bytes / 1e6, self.processes * self.state_bytes / 1e6
        return (
            f"{self.pictures:,} pictures, {self.maps:,} feature maps: about {time}{by} "
            f"({self.timed / self.timed_seconds:,.0f} pictures/s, timed on {self.timed:,}); on disk up to "
            f"{table:.2f} MB for the table and {state:.2f} MB for the state"
        )


def estimate_mining(
    model: VisionModel,
    images: ImageSet,
    layers: str | Sequence[str] | None = None,
    k: int = 9,
    *,
    inside: bool = False,
    batch_size: int | None = None,
    precision: Precision = "float32",
    processes: int = 1,
) -> Estimate:
    """How long `mine` will take with these arguments, and how much disk, from a few timed batches.

    A first batch warms up; those after it are timed, at most 8 batches or 2 seconds of them and no more than a
    twentieth of the set, reading included. Of a set with few pictures the first batch itself is timed.

    >>> print(zfkit.topk.estimate_mining(model, images))
    """
    plan = MiningPlan.checked(model, images, layers, k, None, inside, batch_size, precision)
    whole_number(processes, "processes")
    outputs = activations(model, model.blank(images.size), plan.layers)
    maps = sum(output.shape[1] for _, output in outputs)
    batches = min(9, max(1, len(images) // (20 * plan.batch_size)))
    tops, portions = plan.begin(), Portions(f"timing {model.name}", plan.batch_size)
    started, timed, seconds = time.perf_counter(), 0, 0.0
    for n, batch in enumerate(images.batches(plan.batch_size, 0, batches * plan.batch_size)):
        tops = plan.add(tops, batch, portions)
        now = time.perf_counter()
        if n == 0 and batches > 1:
            started = now
            continue
        timed, seconds = timed + len(batch.indices), now - started
        if seconds > 2:
            break
    if not timed:
        reason = f": {images.skipped[0].reason}" if images.skipped else ""
        raise ImageError(f"none of the first pictures of {images.source!r} can be read{reason}")
    seconds = max(seconds, 1e-9)
    return Estimate(
        len(images), maps, timed, seconds, processes, seconds / timed * len(images) / processes,
        table_bytes=maps * (28 * k + 20), state_bytes=maps * (20 * k + 20),
    )  # fmt: skip
