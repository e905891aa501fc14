"""`mine`: the strongest activations of every feature map, from one pass over the pictures.

The pictures are one list, which can be cut into consecutive parts: one here, one for each process under ``torchrun``,
many on a Dask cluster. `mine_part` looks at one of them, and `TopK.merge` makes their tables one. What is kept does
not grow with the number of pictures (see `RunningTop`), so the parts' tables are small wherever they come from.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import pickle
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from ..batching import Portions, steps
from ..checks import as_path, layer_names, one_of, whole_number, writable_folder
from ..checksums import MOST_VALUES, read_sealed, sealed
from ..cluster import connected, expect_same, gather_bytes
from ..deconv.receptive_field import units_inside
from ..errors import ImageError, ZfkitError
from ..files import only_writer, write_whole
from ..images.imageset import Batch, ImageSet, Skipped
from ..nets.activations import Precision, activations, default_batch_size, expect_room
from ..nets.graph import full_float32
from ..nets.model import VisionModel
from .running import RunningTop
from .table import LayerTop, TopK, expect_both

if TYPE_CHECKING:
    from distributed import Client

MOST_K = 10_000  # of each feature map: 20 bytes each are kept on the way
PARTS_PER_THREAD = 8  # of a cluster: several even out machines of different speed, and little is done twice
STATE_SECONDS = 30  # from one state to the next, at most


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
    scheduler: str | Client | None = None,
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
            GiB on a GPU). With the same number the table is the same, bit for bit. With another, a library may add up a
            convolution in another order: values agree to a millionth of the layer's largest, and pictures and places
            are the same, unless two activations are equal to within that.
        precision: "float32", or "bf16" for autocast to bfloat16: faster on a GPU, and close, not equal.
        checkpoint: file to keep the state in every `checkpoint_every` pictures and every 30 s, and when it is
            interrupted. If it is there, mining goes on where it stopped, to the identical table. Delete it once the
            table is saved, and the lock that stays beside it, `.NAME.lock`.
        scheduler: of a Dask cluster, as "tcp://10.0.0.1:8786", or a `distributed.Client`: its workers look at
            the pictures, which they read under the same paths as this process. The part of a worker that dies is
            done again by another, so there is no checkpoint.
        progress: show a bar.

    Under ``torchrun``, with `torch.distributed` initialised, each process looks at its part of the pictures,
    and all return the identical table.

    An activation is the layer's own output (before the ReLU that follows). Ties go to the lower image, then
    row, then column. Raises LayerError for an unknown layer or pictures too small for it (with `inside`, for
    the receptive field), and ZfkitError where activations are not numbers, the checkpoint belongs to another
    run, or the cluster cannot be used.

    >>> top = mine(model, photos)
    >>> top.table("conv5").head()
    """
    plan = MiningPlan.checked(model, images, layers, k, per_photograph, inside, batch_size, precision)
    whole_number(checkpoint_every, "checkpoint_every")
    together = dist.is_available() and dist.is_initialized()
    if scheduler is not None:
        if checkpoint is not None or together:
            raise ZfkitError("with a scheduler, leave out the checkpoint and torchrun: Dask does their work")
        return TopK.merge(_mine_on_cluster(plan, scheduler, progress), images)
    expect_same(
        {"network": plan.weights, "pictures": plan.pictures, "arguments": json.dumps(plan.settings())}
    )
    rank, processes = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    part = plan.parts(processes)[rank]
    state = None if checkpoint is None else state_file(as_path(checkpoint))
    table = mine_part(plan, part, state, checkpoint_every, progress and rank == 0)
    return TopK.merge(_gathered(table) if together else [table], images)


def _gathered(table: TopK) -> list[TopK]:
    """The tables of all processes, carried as safetensors."""
    from safetensors.torch import load, save

    head = {f.name: getattr(table, f.name) for f in fields(TopK)} | {"layers": [*table.layers]}
    tensors = {f"{name}|{n}": t.clone() for name, top in table.layers.items() for n, t in vars(top).items()}
    tensors["head"] = torch.frombuffer(bytearray(json.dumps(head).encode()), dtype=torch.uint8)
    tables = []
    for held in map(load, gather_bytes(save(tensors))):
        head = json.loads(held["head"].numpy().tobytes())
        columns = {f.name for f in fields(LayerTop)}
        layers = {name: LayerTop(**{n: held[f"{name}|{n}"] for n in columns}) for name in head["layers"]}
        maps = {name: tuple(size) for name, size in head["maps"].items()}
        tables.append(TopK(**head | {"layers": layers, "maps": maps}))
    return tables


def state_file(checkpoint: Path) -> Path:
    """Where this process keeps its state: under ``torchrun`` each has a file of its own."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return checkpoint
    return checkpoint.with_name(f"{checkpoint.name}.{dist.get_rank()}of{dist.get_world_size()}")


@dataclass(frozen=True, eq=False)
class MiningPlan:
    """What is to be mined: the arguments of `mine`, checked."""

    model: VisionModel
    images: ImageSet
    layers: list[str]
    k: int
    per_photograph: int
    inside: bool
    batch_size: int
    precision: Precision
    weights: str  # fingerprint of the network
    pictures: str  # fingerprint of the pictures

    @classmethod
    def checked(
        cls,
        model: VisionModel,
        images: ImageSet,
        layers: str | Sequence[str] | None,
        k: int,
        per_photograph: int | None,
        inside: bool,
        batch_size: int | None,
        precision: Precision,
    ) -> MiningPlan:
        """Check the arguments and fill in defaults; raises as `mine` does."""
        expect_both(model, images)
        names = layer_names(layers, model.layers, model.conv_layers)
        whole_number(k, "k", 1, MOST_K)
        if (places := k * sum(sum(model.network.shapes.get(n, ())[:1]) for n in names)) > MOST_VALUES:
            raise ZfkitError(
                f"k = {k:,} pictures of each map are {places:,} places in all, and a table holds {MOST_VALUES:,}: ask "
                "for fewer, or for some layers alone"
            )
        one_of(precision, "precision", get_args(Precision))
        if not len(images):
            raise ImageError("there are no pictures to look at")
        if per_photograph is None:
            per_photograph = -(-k // 3)
        expect_room(model, images.size, names)
        if batch_size is None:
            batch_size = default_batch_size(model, images.size, names)
        whole_number(per_photograph, "per_photograph")
        whole_number(batch_size, "batch_size")
        return cls(
            model, images, names, k, per_photograph, inside, batch_size, precision, model.fingerprint(names),
            images.fingerprint(),
        )  # fmt: skip

    def parts(self, n: int) -> list[range]:
        """The pictures in n consecutive parts of whole batches; with few batches, some are empty.

        No photograph is cut in two, because which of its windows count is decided among all of them.
        """
        count, size = len(self.images), self.batch_size
        cuts = [min(count, size * (-(-count // size) * i // n)) for i in range(n + 1)]
        if self.images.windows is not None:
            photograph = self.images.windows.photograph  # in ascending order
            cuts = [c if c == count else int(torch.searchsorted(photograph, photograph[c])) for c in cuts]
        return [range(start, stop) for start, stop in itertools.pairwise(cuts)]

    def begin(self) -> dict[str, RunningTop]:
        """What is filled while the pictures go by, by layer."""
        everywhere = slice(0, None), slice(0, None)
        tops = {}
        for name in self.layers:
            inside = units_inside(self.model, name, self.images.size) if self.inside else everywhere
            tops[name] = RunningTop(name, self.k, self.per_photograph, self.images.windows, inside)
        return tops

    def add(self, tops: dict[str, RunningTop], batch: Batch, portions: Portions) -> dict[str, RunningTop]:
        """`tops` with one batch more. Added to copies, in case that memory runs out half-way."""
        for part in portions.of(len(batch.indices)):
            with portions.attempt(), full_float32():
                trial = {name: top.copy() for name, top in tops.items()}
                for name, output in activations(self.model, batch.pixels[part], self.layers, self.precision):
                    trial[name].add(output, batch.indices[part])
                tops = trial
        return tops

    def next_batch(self, part: range, batch: Batch) -> int:
        """Where the batch after this one begins: unreadable pictures are left out of batches, also at their ends."""
        batches = (int(batch.indices[-1]) - part.start) // self.batch_size + 1
        return min(part.stop, part.start + self.batch_size * batches)

    def table(self, tops: dict[str, RunningTop]) -> TopK:
        """The table of a part; without layers where none of its pictures could be read."""
        count = next(iter(tops.values())).count
        layers = {name: top.result() for name, top in tops.items()} if count else {}
        return TopK(
            layers, self.k, self.model.name, self.images.source, self.pictures, count, self.inside, self.weights,
            len(self.images), {name: top.size for name, top in tops.items() if count},
        )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """What has to be the same for a checkpoint to be gone on with, and in all processes."""
        names = ("layers", "k", "per_photograph", "inside", "precision", "batch_size")
        own = {name: getattr(self, name) for name in names}
        return own | {"weights": self.weights, "fingerprint": self.pictures}


def mine_part(
    plan: MiningPlan,
    part: range,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10_000,
    progress: bool = False,
) -> TopK:
    """One pass over a part of the pictures, from the checkpoint on, if there is one: a table for `TopK.merge`."""
    with contextlib.ExitStack() as stack:
        state = (
            None if checkpoint is None else stack.enter_context(_Checkpoint.locked(checkpoint, plan, part))
        )
        tops, start = plan.begin(), part.start
        if state:
            start = state.resume(tops)
        saved, saved_at, what = start, time.monotonic(), f"mining {plan.model.name}"
        portions = Portions(what, plan.batch_size)
        done = stack.enter_context(steps(part.stop - start, what, progress=progress))
        at = tops, start  # replaced at once, so that an interruption finds both alike
        try:
            for batch in plan.images.batches(plan.batch_size, start, part.stop):
                at = plan.add(at[0], batch, portions), plan.next_batch(part, batch)
                done(len(batch.indices))
                due = at[1] - saved >= checkpoint_every or time.monotonic() - saved_at >= STATE_SECONDS
                if state and due:
                    state.save(*at)
                    saved, saved_at = at[1], time.monotonic()
        except KeyboardInterrupt:
            if not state:
                raise
            state.save(*at)
            raise KeyboardInterrupt(
                f"stopped after {at[1] - part.start:,} of {len(part):,} pictures. All is kept in {state.path}: the "
                "same again goes on from there"
            ) from None
        if state and (saved < part.stop or not state.path.exists()):
            state.save(at[0], part.stop)
        return plan.table(at[0])


class _Checkpoint:
    """The state of a mining run in a file, so that it can go on after being stopped at any moment."""

    def __init__(self, path: Path, plan: MiningPlan, part: range) -> None:
        self.path, self.part, self.device = path, part, plan.model.device
        self.run = plan.settings() | {"part": [part.start, part.stop]}

    @classmethod
    @contextlib.contextmanager
    def locked(cls, path: str | Path, plan: MiningPlan, part: range) -> Iterator[_Checkpoint]:
        """A checkpoint that no other process writes to. Raises ZfkitError where one does.

        The file with the lock stays: were it removed, a process that waits for it would hold a lock that nobody sees.
        """
        if not plan.images.lasting:
            raise ZfkitError(
                f"nothing tells the pictures of {plan.images.source!r} from others, so no checkpoint can be gone on "
                "with: say what changes with them, ImageSet(..., stamp=lambda: 'version 3'), or leave it out"
            )
        path = as_path(path)
        lock = writable_folder(path.parent) / f".{path.name.lstrip('.')}.lock"
        refusal = f"another process is mining with the checkpoint {str(path)!r}: wait for it, or name another"
        with only_writer(lock, ZfkitError(refusal)):
            yield cls(path, plan, part)

    def resume(self, tops: dict[str, RunningTop]) -> int:
        """Put back the state, if there is one; returns the picture to go on with.

        Raises ZfkitError for a file that is damaged, or that another run made.
        """
        if not self.path.exists():
            return self.part.start
        head, tensors = self._read()
        other = [name for name, value in self.run.items() if head["run"].get(name) != value]
        if other:
            raise ZfkitError(
                f"{self.path} belongs to another run: {', '.join(other)} differ. Delete it to start again, or name "
                "another checkpoint"
            )
        for layer, top in tops.items():
            mark = f"{layer}|"
            state = {n.removeprefix(mark): t for n, t in tensors.items() if n.startswith(mark)}
            top.restore(state, self.device)
        return int(head["next"])

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        try:
            tensors, metadata = read_sealed(self.path)
            return json.loads(metadata["zfkit mining"]), tensors
        except (KeyError, ValueError) as error:
            raise ZfkitError(
                f"{self.path} is no checkpoint of mine ({error}); delete it to start again"
            ) from None

    def save(self, tops: dict[str, RunningTop], upto: int) -> None:
        """Replace the file, whole or not at all."""
        from safetensors.torch import save_file

        # A copy of each: safetensors refuses tensors that share memory.
        tensors = {f"{layer}|{n}": t.clone() for layer, top in tops.items() for n, t in top.state().items()}
        metadata = sealed(tensors, {"zfkit mining": json.dumps({"run": self.run, "next": upto})})
        write_whole(self.path, lambda part: save_file(tensors, part, metadata))


def _mine_on_cluster(plan: MiningPlan, scheduler: str | Client, progress: bool) -> list[TopK]:
    """Tables of consecutive parts, each made by one task on a Dask cluster."""
    with connected(scheduler) as client:
        import cloudpickle  # comes with Dask; takes an image set's inner functions, too
        from distributed import as_completed

        parts = [part for part in plan.parts(PARTS_PER_THREAD * sum(client.nthreads().values())) if part]
        device = plan.model.device.type
        if device != "cpu":  # the network travels on its own, and goes to the worker's GPU there
            plan = replace(plan, model=copy.deepcopy(plan.model).to("cpu"))
        try:
            pickled = cloudpickle.dumps(plan)
        except Exception as error:  # whatever a network or an image source of the user's holds
            raise ZfkitError(
                f"{plan.images.source!r} or {plan.model.name!r} cannot be sent to another process: {error}"
            ) from error
        # Made on a worker by a task, which Dask runs again where that worker dies; data sent there would be lost.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")  # the network, once
            shared = client.submit(pickle.loads, pickled, pure=False)
        futures = client.map(_mine_on_worker, parts, plan=shared, device=device, pure=False)
        tables, skipped = [], []
        try:
            what = f"mining {plan.model.name}"
            with client.as_current(), steps(len(plan.images), what, progress=progress) as done:
                for _, (part, table, unreadable) in as_completed(futures, with_results=True):
                    tables.append(table)
                    skipped += unreadable
                    done(len(part))
        except ZfkitError:
            raise
        except Exception as error:  # Dask passes on whatever a worker raised, and gives up in ways of its own
            raise ZfkitError(f"the cluster gave up ({type(error).__name__}: {error}); start again") from error
        finally:
            client.cancel(futures)
    new = [s for s in dict.fromkeys(skipped) if s not in plan.images.skipped]
    plan.images.skipped.extend(new)
    if new:
        warnings.warn(f"skipped {len(new)} pictures, the first: {new[0].name}: {new[0].reason}", stacklevel=3)
    return tables


def _mine_on_worker(part: range, plan: MiningPlan, device: str) -> tuple[range, TopK, list[Skipped]]:
    plan.model.to(device)
    table = mine_part(plan, part)
    if not table.count:
        raise ZfkitError(
            f"a worker can read none of the pictures {part.start:,} to {part.stop - 1:,} "
            f"({plan.images.skipped[-1].reason}); every worker has to find them under the same paths"
        )
    return part, table, list(plan.images.skipped)
