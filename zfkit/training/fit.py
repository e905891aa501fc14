"""The paper's training (section 3): the loop that follows a recipe.

    run = zfkit.fit("zfnet64", train, val, zfkit.Recipe(epochs=50), out="runs/zfnet64")

Lightning Fabric chooses device, precision and processes; the loop itself is in `fit`, to be read. Everything
random depends on (seed, epoch, step) only, so a run that was stopped, even by ``kill -9``, goes on to the same
weights, bit for bit on a CPU; and processes share a batch as if there were one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..batching import steps
from ..checks import expect_extra, one_of, whole_number
from ..cluster import expect_same
from ..errors import TrainingError
from ..images.imageset import ImageSet
from ..nets.model import VisionModel
from ..nets.paper import Architecture
from .data import Feed, Resident, Streamed
from .evaluate import evaluate
from .plan import TrainingPlan
from .recipe import RECIPES, Recipe
from .run import Run
from .trainer import Trainer


class Watched(NamedTuple):
    """What `fit` shows to `watch` after each epoch."""

    model: VisionModel  # as it is now; it goes on changing
    epoch: int
    epochs: int
    history: tuple[dict[str, float], ...]


def fit(
    architecture: str | Architecture,
    train: ImageSet,
    val: ImageSet,
    recipe: Recipe = RECIPES["paper"],
    out: str | Path | None = None,
    *,
    device: str | None = None,
    precision: str | None = None,
    compile: bool | str = False,
    workers: int | None = None,
    save_every: int | None = None,
    data: str | None = None,
    watch: Callable[[Watched], object] | None = None,
    progress: bool = True,
) -> Run:
    """Train a network by the recipe and keep snapshots, history and provenance in a folder.

    Args:
        architecture: ``"zfnet64"``, ``"alexnet64"``, ``"zfnet224"``, ``"alexnet224"``, or an `Architecture`; the
            number of classes is the data's.
        train, val: labelled pictures, at least as large as the network's input. For the paper's 224 px give
            pictures of 256 (``load_images(..., size=256)``): training takes random crops and mirror images.
        out: folder of the run. If it holds an unfinished one with the same settings, this goes on from there.
            Default: a temporary folder, kept as long as the returned `Run`.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``; default: the best at hand. Under torchrun or ``fabric run``,
            one device for each process.
        precision: as Fabric names it, ``"32-true"``, ``"bf16-mixed"``; default: bf16 where a GPU has it.
        compile: let `torch.compile` make the step faster, in one of its modes if that is named ("reduce-overhead":
            CUDA graphs); worth its minute of compiling on a GPU.
        workers: processes that read sets too large for memory; default: one for each core, less one.
        save_every: also keep the state every so many steps; default: after each epoch only.
        data: what the provenance calls the data; default: their source and number.
        watch: called after each epoch, and before the first, with a `Watched`.

    Returns a `Run`; its history has, for each epoch: lr, loss (training, with augmentation and dropout), val_loss,
    top1 and top5 (%, of the centre crop), dominance (largest RMS of a first-layer filter over the median),
    seconds, images_per_second (training alone).

    Raises TrainingError for data and settings that cannot be used, WriteError for a folder that cannot be written or
    a disk too full, before the first step where that can be known; and TrainingError with a diagnosis when the loss is
    not finite or does not leave that of guessing.
    """
    expect_extra("train", "training", "lightning")
    if workers is not None:
        whole_number(workers, "workers", 0, 1024, TrainingError)
    cpu = torch.device("cpu")
    if workers is None and len(train) and train.labels is None and train.bytes <= _room(cpu):
        train = train.in_memory(progress)
    if save_every is not None:
        whole_number(save_every, "save_every, in steps,", error=TrainingError)
    fabric = make_fabric(device, precision)
    fits = workers is None and train.labels is not None and train.bytes <= _room(fabric.device)
    plan = TrainingPlan.make(architecture, train, val, recipe, data, "resident" if fits else "streamed")
    expect_same({part: json.dumps(value) for part, value in plan.settings().items()})
    run = Run(out)
    first = fabric.global_rank == 0  # the one process that writes
    if recipe.batch_size % fabric.world_size:
        raise TrainingError(f"{fabric.world_size} processes cannot share a batch_size of {recipe.batch_size}")
    if first:
        run.prepare(plan.architecture, len([e for e in recipe.snapshots if e <= recipe.epochs]) + 1)
    with run.locked() if first else contextlib.nullcontext():
        trainer = Trainer(plan, fabric, compile)
        trainer.restore(run)
        fabric.barrier()  # nobody writes before all have read
        place = plan.geometry, plan.mean, fabric.device
        feed: Feed
        if plan.kept == "resident":
            feed = Resident(train, *place)
        else:
            workers = max(1, (os.cpu_count() or 2) - 1) if workers is None else workers
            feed = Streamed(train, *place, workers if hasattr(os, "fork") else 0)
        state = trainer.state

        def keep(snapshot: bool) -> None:
            if first and snapshot:
                run.snapshot(state.epoch, trainer.net, plan.provenance(state, fabric))
            if first and state.history:
                run.write_history(state.history)
            if first:
                run.save(state, trainer.tensors(), plan.settings())

        def show() -> None:
            if watch is not None and first:
                trainer.net.eval()
                watch(Watched(trainer.model, state.epoch, recipe.epochs, tuple(state.history)))

        if state.epoch == state.step == 0:
            keep(snapshot=False)  # the state first: a folder with results and no state is not written to
            keep(snapshot=0 in recipe.snapshots)
        show()
        total, begun = recipe.epochs * plan.steps, state.epoch * plan.steps + state.step
        shown, shorter = progress and first, "fewer epochs or pictures take less"
        bar = steps(total, "training", "step", shown, shorter=shorter, begun=begun)
        with bar as done, _interruption() as interrupted:
            while state.epoch < recipe.epochs:
                for _ in trainer.epoch(feed):
                    read = shown and state.step % 20 == 0  # reading the loss makes a GPU wait
                    done(1, _described(trainer, float(trainer.loss_sum) / state.step) if read else "")
                    stop = fabric.world_size == 1 and interrupted.is_set()
                    if stop or (save_every and state.step % save_every == 0):
                        trainer.pause()
                        keep(snapshot=False)
                    if stop:
                        raise KeyboardInterrupt(
                            f"stopped in epoch {state.epoch + 1}, after {state.step} of {plan.steps} steps. All is "
                            f"saved in {run.folder}, and the same goes on from there"
                        )
                accuracy = evaluate(trainer.model, val, plan.geometry, forward=trainer.wrapped, fabric=fabric)
                trainer.finish_epoch(accuracy)
                keep(snapshot=state.epoch in recipe.snapshots or state.epoch == recipe.epochs)
                done(0, _described(trainer, state.history[-1]["loss"]))
                show()
                trainer.check_that_it_moves()
        if first:
            run.finish(trainer.net, plan.provenance(state, fabric))
    fabric.barrier()  # nobody goes on, or ends, before all is written
    return run


def make_fabric(device: str | None = None, precision: str | None = None) -> Any:
    """Lightning Fabric on this device, or on as many as torchrun or ``fabric run`` started processes.

    Raises TrainingError for a device or precision that there is not.
    """
    expect_extra("train", "training", "lightning")
    from lightning.fabric import Fabric

    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    kind, _, index = (device or "auto").partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    one_of(kind, "device", ("cpu", "cuda", "mps"), TrainingError)
    # Weights are kept in single precision: updates of 1e-2 times a gradient get lost in less.
    if precision is not None:
        one_of(precision, "precision", ("32-true", "64-true", "bf16-mixed", "16-mixed"), TrainingError)
    if kind == "cuda" and not torch.cuda.is_available():
        raise TrainingError("there is no CUDA device here: leave device out, or say 'cpu'")
    if precision is None:
        precision = "bf16-mixed" if kind == "cuda" and torch.cuda.is_bf16_supported() else "32-true"
    devices: Any = local if world > 1 else [int(index)] if index else 1
    options = {"strategy": "ddp", "num_nodes": world // local} if world > 1 else {}
    try:
        fabric = Fabric(accelerator=kind, devices=devices, precision=precision, **options)
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        reason = f"device {device!r} with precision {precision!r}: {error}"
        raise TrainingError(f"Fabric cannot use {reason}") from None
    if world > 1:  # Fabric sees to NCCL's groups alone
        atexit.register(_leave_group)
    return fabric


def _leave_group() -> None:
    """While Python still runs: threads of gloo that outlive it abort the process, and torchrun then ends the others."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _room(device: torch.device) -> int:
    """Bytes that a data set may take: four tenths of a GPU's free memory, a fifth of the machine's."""
    if device.type == "cuda":
        return int(0.4 * torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 5
    except (ValueError, OSError, AttributeError):  # not on Windows
        return 2**31


@contextlib.contextmanager
def _interruption() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that they wait for the step's end; a second one does not wait."""
    interrupted = threading.Event()

    def hear(number: int, frame: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # others may not listen to signals
        before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _described(trainer: Trainer, loss: float) -> str:
    """Epoch, loss and the last accuracy, to stand beside the bar."""
    state, epochs = trainer.state, trainer.recipe.epochs
    last = state.history[-1] if state.history else None
    accuracy = f", validation {last['top1']:.1f}% / {last['top5']:.1f}%" if last else ""
    return f"epoch {min(state.epoch + 1, epochs)}/{epochs}, loss {loss:.3f}{accuracy}"
