"""The strongest activations of every feature map: `mine`, and the table `TopK` that it makes.

`mine` looks at every picture once. What it keeps does not grow with their number: for each feature map its
k best pictures, with the place of the maximum, and three statistics. What that will take is told beforehand by
`estimate_mining`.

Past one machine
----------------
*Shares.* The pictures are cut into n consecutive shares, and share i is looked at by a process of its own: started
all together by ``torchrun`` (`mine` then merges by itself), or one by one by whatever starts jobs, with `mine_share`,
in a shell ``zfkit mine --share i/n``. Shares need nothing from each other: no ports, no order, no common start.
They need the same weights and the same list of pictures, which their fingerprints hold them to, and a folder that
whoever merges can read.

*Hosts.* Give each host as many shares as it has devices, and every host read access to the pictures; Parquet in
files of a few hundred MB lets a share read little beyond its own rows. Ten times as many shares as processes even
out hosts of different speed.

*Merging.* `TopK.merge` reads one state of each share, k candidates for each feature map: maps x (20 k + 20) bytes,
whatever the number of pictures. Its cost is proportional to n x maps x k and does not depend on the pictures.

*A worker dies.* Its share has a state of at most `checkpoint_every` pictures ago; the same command goes on from there,
on any host. Until then `TopK.merge` says which share lacks how many pictures. Under torchrun the other processes are
ended too, and the same torchrun command, with the same number of processes, goes on.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
from tqdm.auto import tqdm

from ..batching import Portions
from ..deconv.receptive_field import units_inside
from ..errors import ImageError, LayerError, WriteError, ZfkitError, unknown
from ..files import only_writer, write_whole
from ..images.imageset import Batch, ImageSet
from ..nets.activations import Precision, activations, default_batch_size
from ..nets.model import VisionModel
from .table import TopK, _Best, _of_layer, _read_state, _table, expect_both


def mine(
    model: VisionModel,
    images: ImageSet,
    layers: str | Sequence[str] | None = None,
    k: int = 9,
    *,
    per_photograph: int | None = None,
    inside: bool = False,
    batch_size: int | None = None,
    precision: Precision = "float32",
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10_000,
    progress: bool = True,
) -> TopK:
    """The k pictures that excite each feature map most, from one pass over the pictures.

    Args:
        layers: names, or None for every convolutional layer. The network is cut after the deepest.
        k: how many distinct pictures for each feature map.
        per_photograph: where pictures are windows of larger photographs, at most so many of a map's k come
            from one photograph, and of windows that overlap only the strongest counts; default k / 3,
            rounded up.
        inside: leave out units that look beyond the picture's border, where they see padding. They are many
            in deep layers, and the edge of a picture against its padding excites some of them strongly.
        batch_size: pictures at a time; default: what keeps the largest layer's activations under 64 MiB (1
            GiB on a GPU). Results do not depend on it, but for the last bit of a convolution that a library
            computes another way for another number of pictures.
        precision: "float32", or "bf16" for autocast to bfloat16: faster on a GPU, and close, not equal.
        checkpoint: file to keep the state in every `checkpoint_every` pictures. If it is there, mining goes on
            where it stopped, to the identical table. Delete it once the table is saved.
        progress: show a bar.

    Under ``torchrun``, with `torch.distributed` initialised, each process looks at its share of the pictures,
    and all return the identical table.

    An activation is the layer's own output (before the ReLU that follows). Ties go to the lower image, then
    row, then column. Raises LayerError for an unknown layer or pictures too small for it (with `inside`, for
    the receptive field), and ZfkitError where activations are not numbers or the checkpoint belongs to
    another run.

    >>> top = mine(model, photos)
    >>> top.table("conv5").head()
    """
    plan = _Plan.check(model, images, layers, k, per_photograph, inside, batch_size, precision)
    rank, world = _process()
    best = _look(plan, rank, world, checkpoint, checkpoint_every, progress and rank == 0)
    if world > 1:
        best = _together(best)
    return _table(best, k, model.name, images, images.fingerprint(), inside, model.fingerprint())


def mine_share(
    model: VisionModel,
    images: ImageSet,
    checkpoint: str | Path,
    share: int,
    of: int,
    layers: str | Sequence[str] | None = None,
    k: int = 9,
    *,
    per_photograph: int | None = None,
    inside: bool = False,
    batch_size: int | None = None,
    precision: Precision = "float32",
    checkpoint_every: int = 10_000,
    progress: bool = True,
) -> Path:
    """Look at one of `of` shares of the pictures (0 to of - 1), as one process of `mine` under torchrun does.

    The state is kept in CHECKPOINT.SHAREofOF, whose path is returned; call it again after a crash, and it goes on from
    there. When all shares are done, `TopK.merge` makes the table. Other arguments and errors as for `mine`.

    >>> states = [zfkit.topk.mine_share(model, images, "topk.part", i, 8) for i in range(8)]   # on eight machines
    >>> top = zfkit.TopK.merge(states, images)
    """
    if type(of) is not int or type(share) is not int or not 0 <= share < of:
        raise ZfkitError(
            f"share must be 0 to {of!r} - 1, and of a whole number from 1 on, not {share!r} of {of!r}"
        )
    plan = _Plan.check(model, images, layers, k, per_photograph, inside, batch_size, precision)
    _look(plan, share, of, checkpoint, checkpoint_every, progress, alone=False)
    return state_of(checkpoint, share, of)


def state_of(checkpoint: str | Path, share: int, of: int) -> Path:
    """Where `mine_share` keeps the state of a share."""
    checkpoint = Path(checkpoint)
    return checkpoint.with_name(f"{checkpoint.name}.{share}of{of}")


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is to be mined, checked."""

    model: VisionModel
    images: ImageSet
    layers: list[str]
    k: int
    per_photograph: int
    inside: bool
    batch_size: int
    precision: Precision

    @classmethod
    def check(
        cls,
        model: VisionModel,
        images: ImageSet,
        layers: str | Sequence[str] | None,
        k: int,
        per_photograph: int | None,
        inside: bool,
        batch_size: int | None,
        precision: Precision,
    ) -> _Plan:
        expect_both(model, images)
        names = (
            [layers] if isinstance(layers, str) else list(layers if layers is not None else model.conv_layers)
        )
        for name in names:
            model.network.find(name)
        if not names:
            raise LayerError(f"no layer was named to look at. There are: {', '.join(model.conv_layers)}")
        for what, value in (("k", k), ("per_photograph", per_photograph), ("batch_size", batch_size)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ZfkitError(f"{what} must be a whole number from 1 on, not {value!r}")
        if precision not in get_args(Precision):
            raise ZfkitError(unknown("precision", precision, get_args(Precision)))
        if not len(images):
            raise ImageError("there are no pictures to look at")
        if batch_size is None:
            batch_size = default_batch_size(model, images.size, names)
        return cls(model, images, names, k, per_photograph or -(-k // 3), inside, batch_size, precision)

    def share(self, i: int, n: int) -> tuple[int, int]:
        """First picture of the i-th of n shares, and the first that is not in it any more: whole batches."""
        batches = -(-len(self.images) // self.batch_size)
        start, stop = (min(len(self.images), self.batch_size * (batches * r // n)) for r in (i, i + 1))
        return start, stop

    def begin(self, start: int = 0) -> dict[str, _Best]:
        best = {
            name: _Best(name, self.k, self.per_photograph, self.images.windows, start) for name in self.layers
        }
        for name in self.layers:
            best[name].device = self.model.device
            if self.inside:
                best[name].inside = units_inside(self.model, name, self.images.size)
        return best


def _look(
    plan: _Plan,
    share: int,
    of: int,
    checkpoint: str | Path | None,
    checkpoint_every: int,
    progress: bool,
    alone: bool = True,
) -> dict[str, _Best]:
    """Look at one share, from the checkpoint on, if there is one. `alone`: one share of one keeps its plain name."""
    if not isinstance(checkpoint_every, int) or checkpoint_every < 1:
        raise ZfkitError(f"checkpoint_every must be a whole number from 1 on, not {checkpoint_every!r}")
    start, stop = plan.share(share, of)
    best = plan.begin(start)
    if checkpoint is None:
        return _pass(plan, best, start, start, stop, None, checkpoint_every, progress)
    file = Path(checkpoint) if alone and of == 1 else state_of(checkpoint, share, of)
    run: dict[str, Any] = {
        "weights": plan.model.fingerprint(),
        "fingerprint": plan.images.fingerprint(),
        "layers": plan.layers,
    }
    run |= {"k": plan.k, "per_photograph": plan.per_photograph, "inside": plan.inside}
    run |= {"precision": plan.precision, "batch_size": plan.batch_size, "from": start, "to": stop}
    saved = _Checkpoint(file, run, plan.model.name, plan.images.source)
    refusal = ZfkitError(
        f"another process is mining with the checkpoint {str(file)!r}: wait for it, or name another"
    )
    lock = file.with_name(f"{file.name}.lock")
    with _made(file.parent), only_writer(lock, refusal):
        done = saved.resume(best)
        best = _pass(plan, best, start, done, stop, saved, checkpoint_every, progress)
        with contextlib.suppress(OSError):
            lock.unlink()
    return best


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(folder, error) from None
    yield


def _pass(
    plan: _Plan,
    best: dict[str, _Best],
    start: int,
    done: int,
    stop: int,
    saved: _Checkpoint | None,
    checkpoint_every: int,
    progress: bool,
) -> dict[str, _Best]:
    """One pass over the pictures from `done` to `stop`; what it finds goes into `best`, or a copy of it."""
    size, portions = plan.batch_size, Portions(f"mining {plan.model.name}", plan.batch_size)
    with tqdm(
        total=stop - start, initial=done - start, desc=f"mining {plan.model.name}", unit="img",
        disable=not progress, leave=False,
    ) as bar:  # fmt: skip
        seen = done
        for batch in plan.images.batches(size, done, stop):
            best = _see(plan, best, batch, portions)
            bar.update(len(batch.indices))
            seen = min(stop, size * (int(batch.indices[-1]) // size + 1))
            if saved and seen - done >= checkpoint_every:
                saved.save(best, seen)
                done = seen
        if saved and (done < stop or not saved.path.exists()):  # the last pictures may be unreadable, or none
            saved.save(best, stop)
    return best


def _see(plan: _Plan, best: dict[str, _Best], batch: Batch, portions: Portions) -> dict[str, _Best]:
    """`best` and what is in this batch. Taken in on a copy, in case that memory runs out half-way."""
    for part in portions.of(len(batch.indices)):
        with portions.attempt():
            trial = {name: b.copy() for name, b in best.items()}
            for name, output in activations(plan.model, batch.pixels[part], plan.layers, plan.precision):
                trial[name].look(output, batch.indices[part])
            best = trial
    return best


@dataclass(frozen=True)
class Estimate:
    """What mining will take, before it starts.

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
        many = f" by {self.processes} processes" if self.processes > 1 else ""
        return (
            f"{self.pictures:,} pictures, {self.maps:,} feature maps: about {duration(self.seconds)}{many} "
            f"({self.timed / self.timed_seconds:,.0f} pictures/s, timed on {self.timed:,}); on disk up to "
            f"{size_of(self.table_bytes)} for the table and {size_of(self.processes * self.state_bytes)} for the state"
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
    plan = _Plan.check(model, images, layers, k, None, inside, batch_size, precision)
    if type(processes) is not int or processes < 1:
        raise ZfkitError(f"processes must be a whole number from 1 on, not {processes!r}")
    blank = torch.zeros(1, 3, images.size, images.size, dtype=torch.uint8)
    maps = sum(output.shape[1] for _, output in activations(model, blank, plan.layers))
    batches = min(9, max(1, len(images) // (20 * plan.batch_size)))
    best, portions = plan.begin(), Portions(f"timing {model.name}", plan.batch_size)
    started, timed, seconds = time.perf_counter(), 0, 0.0
    for n, batch in enumerate(images.batches(plan.batch_size, 0, batches * plan.batch_size)):
        best = _see(plan, best, batch, portions)
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


def duration(seconds: float) -> str:
    """In words: 7 s, 12 min, 2 h 05 min, 3 d 4 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def size_of(count: int) -> str:
    """Bytes in words: 12 kB, 3.4 MB."""
    return f"{max(1, round(count / 1e3))} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def _process() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _together(best: dict[str, _Best]) -> dict[str, _Best]:
    """What all processes found, in the order of their shares; the same in each of them."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, {name: b.state() for name, b in best.items()})
    merged = {}
    for name, b in best.items():
        parts = [b.like(state[name]) for state in everyone]
        merged[name] = parts[0]
        for part in parts[1:]:
            merged[name].join(part)
    return merged


class _Checkpoint:
    """The state of a mining run in a file, so that it can go on after being stopped at any moment."""

    def __init__(self, path: Path, run: dict[str, Any], model: str, images: str) -> None:
        self.path, self.run = path, run
        self.told = {"model": model, "images": images}  # may differ where weights and pictures are the same

    def resume(self, best: dict[str, _Best]) -> int:
        """Put back the state, if there is one; returns the picture to go on with.

        Raises ZfkitError for a file that is damaged, or that another run made.
        """
        if not self.path.exists():
            return int(self.run["from"])
        head, tensors = _read_state(self.path)
        other = [name for name, value in self.run.items() if head["run"].get(name) != value]
        if other:
            raise ZfkitError(
                f"{self.path} belongs to another run: {', '.join(other)} differ. Delete it to start again, or name "
                "another checkpoint"
            )
        for layer, b in best.items():
            b.load(_of_layer(tensors, layer))
        return int(head["next"])

    def save(self, best: dict[str, _Best], upto: int) -> None:
        """Replace the file, whole or not at all."""
        from safetensors.torch import save_file

        tensors = {
            f"{layer}|{n}": t.clone(memory_format=torch.contiguous_format)
            for layer, b in best.items()
            for n, t in b.state().items()
        }
        head = json.dumps({"run": self.run, "next": upto, **self.told})
        write_whole(self.path, lambda part: save_file(tensors, part, {"zfkit mining": head}))
