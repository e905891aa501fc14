"""The paper's training (section 3): the recipe, and the loop that follows it.

    run = zfkit.fit("zfnet64", train, val, zfkit.Recipe(epochs=50), out="runs/zfnet64")

Lightning Fabric chooses device, precision and processes; the loop itself is in `fit`, to be read. Everything
random depends on (seed, epoch, step) only, so a run that was stopped, even by ``kill -9``, goes on to the same
weights, bit for bit on a CPU; and processes share a batch as if there were one.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import TrainingError, unknown
from ..images.imageset import ImageSet
from ..nets.model import VisionModel, wrap_model
from ..nets.paper import ARCHITECTURES, Architecture, build
from ..nets.weights import Provenance
from ..nets.zoo import describe
from .data import Feed, Geometry, Resident, Streamed, centre_crop, draw, generator
from .evaluate import Accuracy, crops_of, evaluate
from .layers import ContrastNorm, Dropout
from .recipe import RECIPES, Recipe
from .run import Run, State


def fit(
    architecture: str | Architecture,
    train: ImageSet,
    val: ImageSet,
    recipe: Recipe = RECIPES["paper"],
    out: str | Path | None = None,
    *,
    device: str | None = None,
    precision: str | None = None,
    compile: bool = False,
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
        compile: let `torch.compile` make the step faster; worth its minute of compiling on a GPU.
        workers: processes that read sets too large for memory; default: one for each core, less one.
        save_every: also keep the state every so many steps; default: after each epoch only.
        data: what the provenance calls the data; default: their source and number.
        watch: called after each epoch, and before the first, with a `Watched`.
        progress: show a bar.

    Returns a `Run`; its history has, for each epoch: lr, loss (training, with augmentation and dropout), val_loss,
    top1 and top5 (%, of the centre crop), dominance (largest RMS of a first-layer filter over the median),
    seconds, images_per_second (training alone).

    Raises TrainingError for data, settings or a folder that cannot be used, before the first step where that can
    be known; and, with a diagnosis, when the loss is not finite or does not leave that of guessing.
    """
    if (
        workers is None
        and len(train)
        and train.labels is None
        and _bytes(train) <= _room(torch.device("cpu"))
    ):
        train = train.in_memory(progress)
    plan = _Plan.make(architecture, train, val, recipe, data)
    fabric = _fabric(device, precision)
    run = Run(out)
    first = fabric.global_rank == 0  # the one process that writes
    if recipe.batch_size % fabric.world_size:
        raise TrainingError(
            f"batch_size {recipe.batch_size} cannot be shared by {fabric.world_size} processes"
        )
    if first:
        run.prepare(plan.parameters(), len([e for e in recipe.snapshots if e <= recipe.epochs]) + 1)
    with run.locked() if first else contextlib.nullcontext():
        trainer = Trainer(plan, fabric, compile)
        trainer.restore(run)
        fabric.barrier()  # nobody writes before all have read
        feed = _feed(train, plan, fabric.device, workers)
        state = trainer.state

        def keep(snapshot: bool) -> None:
            if first and snapshot:
                run.snapshot(state.epoch, trainer.net, plan.provenance(state, fabric))
            if first and state.history:
                run.write_history(state.history)
            if first:
                run.save(state, trainer.tensors(), plan.told())

        def show() -> None:
            if watch is not None and first:
                trainer.net.eval()
                watch(Watched(trainer.model, state.epoch, recipe.epochs, tuple(state.history)))

        if state.epoch == state.step == 0:
            keep(snapshot=0 in recipe.snapshots)
        show()
        with _Bar(recipe, plan.steps, state, progress and first) as bar, _Interruption() as interruption:
            while state.epoch < recipe.epochs:
                for _ in trainer.epoch(feed):
                    bar.step(state, trainer.loss_sum)
                    stop = fabric.world_size == 1 and interruption.wanted
                    if stop or (save_every and state.step % save_every == 0):
                        trainer.pause()
                        keep(snapshot=False)
                    if stop:
                        raise KeyboardInterrupt(
                            f"stopped in epoch {state.epoch + 1}, after {state.step} of {plan.steps} steps. All is "
                            f"saved in {run.folder}: the same command goes on from there"
                        )
                trainer.finish_epoch(
                    evaluate(trainer.model, val, plan.geometry, forward=trainer.wrapped, fabric=fabric)
                )
                keep(snapshot=state.epoch in recipe.snapshots or state.epoch == recipe.epochs)
                bar.epoch(state)
                show()
                trainer.check_that_it_moves()
        if first:
            run.finish(trainer.net, plan.provenance(state, fabric))
    return run


class Trainer:
    """Network, optimiser and place in the run; `step` is the paper's learning rule."""

    def __init__(self, plan: _Plan, fabric: Any, compile: bool = False) -> None:
        self.plan, self.recipe, self.fabric = plan, plan.recipe, fabric
        self.net = plan.network()
        self.model = plan.wrap(self.net)
        self.drops = [m for m in self.net.modules() if isinstance(m, Dropout)]
        groups = [
            {
                "params": [p for p in self.net.parameters() if p.dim() > 1],
                "weight_decay": plan.recipe.weight_decay,
            },
            {"params": [p for p in self.net.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.SGD(
            groups, self.recipe.lr, self.recipe.momentum, fused=fabric.device.type == "cuda"
        )
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, "min", self.recipe.lr_factor, self.recipe.patience, self.recipe.progress, "abs"
        )
        if compile:
            self.net.compile()
        if fabric.device.type == "cuda":
            self.net.to(memory_format=torch.channels_last)
        self.wrapped, self.optimizer = fabric.setup(self.net, optimizer)
        self.mean = plan.mean.to(fabric.device).view(3, 1, 1)
        self.scale = plan.scale.to(fabric.device).view(3, 1, 1)
        self.state = State()
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=fabric.device)
        self._started = time.perf_counter()

    def step(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """One step of SGD with momentum on (n, 3, S, S) pixels, 0-255, and (n,) labels; returns the loss."""
        loss = F.cross_entropy(self.wrapped((pixels - self.mean) * self.scale), labels)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.optimizer.step()
        clip_rms(self.net, self.recipe.rms_clip)
        return loss.detach()

    def epoch(self, feed: Feed) -> Iterator[None]:
        """The rest of an epoch, from `state.step` on; yields after each step."""
        plan, state = self.plan, self.state
        epoch, n = state.epoch + 1, plan.batch
        rank, ranks = self.fabric.global_rank, self.fabric.world_size
        share = slice(rank * n // ranks, (rank + 1) * n // ranks)  # this process's part of each batch
        spans = [slice(s * n + share.start, s * n + share.stop) for s in range(state.step, plan.steps)]
        draws = draw(plan.count, plan.geometry, self.recipe.seed, epoch, plan.blocks)
        self.net.train()
        self._started = time.perf_counter()
        self.loss_sum.fill_(state.loss_sum)
        for pixels, labels in feed.batches(draws, spans):
            for i, drop in enumerate(self.drops):
                drop.draw(
                    n, share, generator(self.recipe.seed, epoch, state.step, i, device=self.fabric.device)
                )
            self.loss_sum += self.step(pixels, labels)
            state.step += 1
            yield

    def pause(self) -> None:
        """Bring the state up to date in the middle of an epoch; all processes at the same step."""
        self.state.loss_sum = float(self.fabric.all_reduce(self.loss_sum))
        self._check_finite(self.state.loss_sum)
        self.state.seconds += time.perf_counter() - self._started
        self._started = time.perf_counter()

    def finish_epoch(self, accuracy: Accuracy) -> None:
        """Write the epoch's row of the history, lower lr where validation error has stopped to fall."""
        plan, state = self.plan, self.state
        seconds = accuracy.started - self._started + state.seconds
        loss = float(self.fabric.all_reduce(self.loss_sum)) / plan.steps
        self._check_finite(loss)
        self._check_finite(accuracy.loss)
        state.history.append(
            {
                "epoch": state.epoch + 1, "lr": self.plateau.optimizer.param_groups[0]["lr"], "loss": loss,
                "val_loss": accuracy.loss, "top1": accuracy.top1, "top5": accuracy.top5,
                "dominance": dominance(self.net), "seconds": seconds,
                "images_per_second": plan.steps * plan.batch / seconds,
            }
        )  # fmt: skip
        self.plateau.step(1 - accuracy.top1 / 100)
        state.epoch, state.step, state.loss_sum, state.seconds = state.epoch + 1, 0, 0.0, 0.0

    def tensors(self) -> dict[str, Tensor]:
        """Weights and momentum, by name; `state.plateau` is brought up to date with them."""
        self.state.plateau = {k: v for k, v in self.plateau.state_dict().items() if not callable(v)}
        kept: dict[str, Tensor] = {f"weight/{name}": p for name, p in self.net.named_parameters()}
        for name, p in self.net.named_parameters():
            buffer = self.plateau.optimizer.state.get(p, {}).get("momentum_buffer")
            if buffer is not None:
                kept[f"momentum/{name}"] = buffer
        return kept

    def restore(self, run: Run) -> None:
        """Go on where the folder's last whole state stopped; nothing in a new folder."""
        found = run.resume()
        if found is None:
            return
        state, tensors, told = found
        self.plan.check_same(told, state, run)
        self.state.__dict__.update(vars(state))
        self.plateau.load_state_dict(state.plateau)
        if state.history:  # the schedule lowered lr after this row was written
            for group in self.plateau.optimizer.param_groups:
                group["lr"] = self.plateau.get_last_lr()[0]
        with torch.no_grad():
            for name, p in self.net.named_parameters():
                p.copy_(tensors[f"weight/{name}"])
                if f"momentum/{name}" in tensors:
                    buffer = torch.empty_like(p).copy_(tensors[f"momentum/{name}"])
                    self.plateau.optimizer.state[p]["momentum_buffer"] = buffer

    def _check_finite(self, loss: float) -> None:
        """Raise TrainingError where the loss is not finite, or weights are beyond what a snapshot's 16 bits hold."""
        largest = max(float(p.detach().abs().amax()) for p in self.net.parameters())
        if math.isfinite(loss) and largest < 65504:
            return
        state, lr = self.state, self.plateau.optimizer.param_groups[0]["lr"]
        raise TrainingError(
            f"the loss is {loss:.3g} in epoch {state.epoch + 1} and the largest weight {largest:.3g}, at lr {lr:g}: "
            "the weights ran away. Use a smaller lr"
            + ("" if self.recipe.rms_clip else " and rms_clip=0.1, which holds filters down")
            + f". What was there after epoch {state.epoch} is kept"
        )

    def check_that_it_moves(self) -> None:
        """Raise TrainingError with a diagnosis where the loss has stayed at that of guessing."""
        recipe, history = self.recipe, self.state.history[-self.recipe.flat_epochs :]
        enough = recipe.flat_epochs and len(history) == recipe.flat_epochs
        if not enough or self.state.epoch * self.plan.steps < recipe.flat_steps:
            return
        guess = self.plan.guessing
        if all(abs(row["loss"] - guess) < 0.01 * guess for row in history):
            raise TrainingError(
                f"the loss has stayed at {guess:.2f}, that of guessing among {len(self.plan.classes)} classes "
                f"(ln {len(self.plan.classes)} where they are equally many), for {recipe.flat_epochs} epochs: "
                + self._why_flat()
            )

    def _why_flat(self) -> str:
        from ..images.imageset import ImageSet  # noqa: F401

        spread = float(
            ((self.plan.sample.float() - self.plan.mean.view(3, 1, 1)) * self.plan.scale.view(3, 1, 1)).std()
        )
        silent = _silent_share(self.model, self.plan.sample)
        lr = self.plateau.optimizer.param_groups[0]["lr"]
        if spread < 10 and self.recipe.init == "paper":
            return (
                f"inputs look std-scaled (standard deviation {spread:.2g}), and N(0, 0.01^2) lets them die out before "
                "the last layer. Use inputs='mean', the paper's +-128, or init='he'"
            )
        if silent > 0.99:
            return f"{silent:.0%} of the hidden units answer to no picture any more. Use a smaller lr than {lr:g}"
        if lr < 1e-4:
            return f"lr {lr:g} is too small to leave the start. Use 1e-2"
        return (
            "check that labels belong to their pictures; else the start may just be slow on few pictures: set "
            f"flat_steps above {self.state.epoch * self.plan.steps} to wait longer, or init='he'"
        )


class Watched(NamedTuple):
    """What `fit` shows to `watch` after each epoch."""

    model: VisionModel  # as it is now; it goes on changing
    epoch: int
    epochs: int
    history: tuple[dict[str, float], ...]


@torch.no_grad()
def clip_rms(net: nn.Module, limit: float | None) -> None:
    """Scale every convolution filter (C_in, k, k) whose RMS exceeds `limit` back to it, in place (section 3)."""
    if limit is None:
        return
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            rms = module.weight.square().mean((1, 2, 3), keepdim=True).sqrt()
            module.weight.mul_((limit / rms).clamp(max=1))


@torch.no_grad()
def dominance(net: nn.Module) -> float:
    """Largest RMS of a first-layer filter over the median: what Fig. 6a shows by eye. 1 where all are equal."""
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    rms = first.weight.float().square().mean((1, 2, 3)).sqrt()
    return float(rms.max() / rms.median())


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is trained on what; everything that must be the same when a run goes on."""

    architecture: Architecture
    recipe: Recipe
    classes: tuple[str, ...]
    count: int  # training pictures
    geometry: Geometry
    blocks: Tensor | None
    mean: Tensor  # (3,) RGB 0-255
    scale: Tensor  # (3,)
    guessing: float  # loss of the best constant answer, nats: the entropy of the labels
    sample: Tensor  # (n, 3, S, S) uint8, a few training pictures
    data: str
    fingerprint: str

    @classmethod
    def make(
        cls,
        architecture: str | Architecture,
        train: ImageSet,
        val: ImageSet,
        recipe: Recipe,
        data: str | None,
    ) -> _Plan:
        """Look at everything that can be known to fail before the first step."""
        if isinstance(architecture, str):
            if architecture not in ARCHITECTURES:
                raise TrainingError(unknown("architecture", architecture, ARCHITECTURES))
            architecture = ARCHITECTURES[architecture]
        labels = _labels(train, "training")
        held_out = _labels(val, "validation")
        classes = train.classes or tuple(str(c) for c in range(int(labels.max()) + 1))
        if val.classes and train.classes and val.classes != train.classes:
            raise TrainingError(
                f"training has {len(train.classes)} classes ({', '.join(train.classes[:3])} ...) and validation "
                f"{len(val.classes)} ({', '.join(val.classes[:3])} ...): they must be the same, in the same order"
            )
        for what, found in (("training", labels), ("validation", held_out)):
            if int(found.max()) >= len(classes):
                raise TrainingError(
                    f"a {what} label is {int(found.max())}, and there are {len(classes)} classes: 0 to "
                    f"{len(classes) - 1}"
                )
        counts = torch.bincount(labels, minlength=len(classes))
        empty = [classes[c] for c in (counts == 0).nonzero().flatten().tolist()]
        if empty:
            raise TrainingError(
                f"{len(empty)} of {len(classes)} classes have no training picture ({', '.join(empty[:5])}"
                f"{' ...' if len(empty) > 5 else ''}): give them some, leave the classes out, or raise the limit"
            )
        if len(classes) < 2:
            raise TrainingError("there is one class only: nothing to tell apart")
        size = architecture.input_size
        for what, images in (("training", train), ("validation", val)):
            if images.size < size:
                raise TrainingError(
                    f"the {what} pictures are {images.size} px and the network takes {size}: load them with "
                    f"size={size}, or {size * 8 // 7} to leave room for random crops"
                )
        if train.size != val.size:
            raise TrainingError(
                f"training pictures are {train.size} px and validation {val.size}: load both alike"
            )
        crops = crops_of(size, train.size)
        crops = replace(crops, pad=crops.pad if recipe.shift is None else recipe.shift)
        crops = replace(
            crops, brightness=crops.brightness if recipe.brightness is None else recipe.brightness
        )
        sample = train.take(_spread(train, 2000))
        mean = sample.double().mean((0, 2, 3))
        std = sample.double().std((0, 2, 3)).clamp_min(1e-3)
        share = counts / counts.sum()
        return cls(
            architecture=replace(architecture, classes=len(classes)),
            recipe=recipe,
            classes=classes,
            count=len(train),
            geometry=crops,
            blocks=None if train.blocks is None else train.blocks[train.blocks < len(train)],
            mean=mean.float(),
            scale=(1 / std if recipe.inputs == "std" else torch.ones(3)).float(),
            guessing=float(-(share * share.log()).sum()),
            sample=centre_crop(sample[:64], Geometry(size, train.size)),
            data=data or f"{train.source}: {len(train):,} training pictures, {len(classes)} classes",
            fingerprint=f"{train.fingerprint()} {val.fingerprint()}",
        )

    @property
    def batch(self) -> int:
        """Pictures in a batch, over all processes."""
        return min(self.recipe.batch_size, self.count)

    @property
    def steps(self) -> int:
        """Batches in an epoch; what does not fill the last one waits for another epoch's order."""
        return self.count // self.batch

    def network(self) -> nn.Module:
        """The untrained network, with the layers of `training_layers`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            net = build(self.architecture)
            width = 0
            for name, module in list(net.named_children()):
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.init.normal_(module.weight, 0, self._std(name, module))
                if isinstance(module, nn.Linear):
                    width = module.out_features
                if isinstance(module, nn.Dropout):
                    setattr(net, name, Dropout(self.recipe.dropout, width))
                if isinstance(module, nn.LocalResponseNorm):
                    setattr(net, name, ContrastNorm(module.size, module.alpha, module.beta, module.k))
        return net

    def _std(self, name: str, module: nn.Conv2d | nn.Linear) -> float:
        """Standard deviation that the weights of a layer start with."""
        inputs = module.weight[0].numel()
        if self.recipe.init == "he":
            return math.sqrt(2 / inputs)
        preset = ARCHITECTURES.get(
            f"{self.architecture.family}{self.architecture.input_size}", self.architecture
        )
        with torch.device("meta"):
            wide = dict(build(preset).named_children()).get(name)
        if not isinstance(wide, nn.Conv2d | nn.Linear):
            return 0.01
        return 0.01 * math.sqrt(max(1.0, wide.weight[0].numel() / inputs))

    def parameters(self) -> int:
        """Number of weights and biases."""
        with torch.device("meta"):
            return sum(p.numel() for p in build(self.architecture).parameters())

    def wrap(self, net: nn.Module) -> VisionModel:
        """The network as a `VisionModel`."""
        return wrap_model(
            net,
            mean=self.mean.tolist(),
            scale=self.scale.tolist(),
            input_size=self.architecture.input_size,
            classes=self.classes,
            name=f"{self.architecture.family}{self.architecture.input_size}",
        )

    def told(self) -> dict[str, Any]:
        """What the state remembers, to go on with nothing else."""
        recipe = {k: v for k, v in asdict(self.recipe).items() if k not in _MAY_CHANGE}
        return {
            "architecture": describe(self.architecture),
            "recipe": recipe,
            "data": {"fingerprint": self.fingerprint, "crops": asdict(self.geometry)},
        }

    def check_same(self, told: dict[str, Any], state: State, run: Run) -> None:
        """Raise TrainingError where the folder's run is another one than this."""
        import json

        mine = json.loads(json.dumps(self.told()))  # tuples become lists, as in the file
        differences = [
            f"{key} was {then.get(key)!r} and is now {now.get(key)!r}"
            for part in ("architecture", "recipe", "data")
            for then, now in [(told.get(part, {}), mine[part])]
            for key in sorted(then.keys() | now.keys())
            if then.get(key) != now.get(key)
        ]
        if differences:
            raise TrainingError(
                f"{run.folder} holds another run: {'; '.join(differences[:3])}. Say the same settings to go on with "
                "it, or another folder"
            )
        if state.epoch > self.recipe.epochs:
            raise TrainingError(
                f"{run.folder} is at epoch {state.epoch} already, beyond the {self.recipe.epochs} asked for"
            )

    def provenance(self, state: State, fabric: Any) -> Provenance:
        """What a snapshot says of itself."""
        from .. import __version__

        last = state.history[-1] if state.history else {}
        device = (
            torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else fabric.device.type
        )
        return {
            "architecture": describe(self.architecture), "input_size": self.architecture.input_size,
            "mean": [round(m, 4) for m in self.mean.tolist()], "scale": self.scale.tolist(),
            "classes": list(self.classes), "data": self.data,
            "top1": round(last["top1"], 1) if last else None, "top5": round(last["top5"], 1) if last else None,
            "epochs": state.epoch, "recipe": asdict(self.recipe), "crops": asdict(self.geometry),
            "history": state.history, "seconds": round(sum(row["seconds"] for row in state.history), 1),
            "device": f"{fabric.world_size} x {device}", "precision": fabric._precision.precision,
            "versions": {"zfkit": __version__, "torch": torch.__version__},
        }  # fmt: skip


def _spread(images: ImageSet, count: int) -> Tensor:
    """Places of about `count` pictures over the whole set, few of its blocks: a block is read whole."""
    if images.blocks is None:
        return torch.linspace(0, len(images) - 1, min(len(images), count)).round().long().unique()
    chosen = torch.linspace(0, len(images.blocks) - 1, min(len(images.blocks), 16)).round().long()
    run = torch.arange(-(-count // len(chosen)))
    places = (images.blocks[chosen][:, None] + run).flatten()
    return places[places < len(images)].unique()


_MAY_CHANGE = {"epochs", "snapshots", "flat_epochs", "flat_steps"}  # without making it another run


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
            f"{missing:,} of {len(labels):,} {what} pictures of {images.source!r} have no label. A folder's labels "
            "are its sub-folders, Parquet's are its column 'label'; 'textures' has some to try with"
        )
    return labels


def _fabric(device: str | None, precision: str | None) -> Any:
    """Lightning Fabric on this device, or on as many as torchrun or ``fabric run`` started processes."""
    try:
        from lightning.fabric import Fabric
    except ImportError:
        raise TrainingError("training needs Lightning Fabric: pip install 'zfkit[train]'") from None
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    kind, _, index = (device or "auto").partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind not in ("cpu", "cuda", "mps"):
        raise TrainingError(unknown("device", device, ("cpu", "cuda", "cuda:1", "mps")))
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
        raise TrainingError(
            f"Fabric cannot use device {device!r} with precision {precision!r}: {error}"
        ) from None
    return fabric


def _feed(train: ImageSet, plan: _Plan, device: torch.device, workers: int | None) -> Feed:
    """The set on the device where it fits, else a stream."""
    if workers is None and train.labels is not None and _bytes(train) <= _room(device):
        return Resident(train, plan.geometry, plan.mean, device)
    workers = max(1, (os.cpu_count() or 2) - 1) if workers is None else workers
    return Streamed(train, plan.geometry, plan.mean, device, workers if hasattr(os, "fork") else 0)


def _bytes(images: ImageSet) -> int:
    """Of its pictures in memory."""
    return len(images) * 3 * images.size**2


def _room(device: torch.device) -> int:
    """Bytes that a data set may take: four tenths of a GPU's free memory, a fifth of the machine's."""
    if device.type == "cuda":
        return int(0.4 * torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 5
    except (ValueError, OSError, AttributeError):  # not on Windows
        return 2**31


@torch.inference_mode()
def _silent_share(model: VisionModel, pictures: Tensor) -> float:
    """Share of the last hidden layer's units that none of these pictures excites."""
    was_training = model.net.training
    model.net.eval()
    x, hidden = model.preprocess(pictures), None
    for module in model.net.children():
        x = module(x)
        hidden = x if isinstance(module, nn.ReLU) else hidden
    model.net.train(was_training)
    return 0.0 if hidden is None else float((hidden.transpose(0, 1).flatten(1) <= 0).all(1).float().mean())


class _Interruption:
    """Ctrl-C and SIGTERM wait for the step's end; a second one does not wait."""

    def __init__(self) -> None:
        self.wanted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._heard)
        return self

    def _heard(self, number: int, frame: Any) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Bar:
    """tqdm over all steps of a run, with the loss so far and the last accuracy beside it."""

    def __init__(self, recipe: Recipe, steps: int, state: State, shown: bool) -> None:
        from tqdm.auto import tqdm

        done = state.epoch * steps + state.step
        self._bar = tqdm(total=recipe.epochs * steps, initial=done, unit="step", disable=not shown)
        self._epochs, self._accuracy = recipe.epochs, ""

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def step(self, state: State, loss_sum: Tensor) -> None:
        self._bar.update(1)
        if state.step % 20 == 0 and not self._bar.disable:  # reading the loss makes a GPU wait
            self._bar.set_description(f"epoch {state.epoch + 1}/{self._epochs}", refresh=False)
            self._bar.set_postfix_str(
                f"loss {float(loss_sum) / state.step:.3f}{self._accuracy}", refresh=False
            )

    def epoch(self, state: State) -> None:
        row = state.history[-1]
        self._accuracy = f", validation {row['top1']:.1f}% / {row['top5']:.1f}%"
        self._bar.set_postfix_str(f"loss {row['loss']:.3f}{self._accuracy}")
