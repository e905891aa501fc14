"""`Trainer`: the paper's learning rule (section 3), and all that a run has to keep to go on from where it stopped."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import whole_number
from ..errors import TrainingError
from ..nets.activations import activations
from .data import Feed, draw, generator
from .evaluate import Accuracy
from .network import Dropout, untrained
from .plan import TrainingPlan
from .run import Run, State

SHORT = 1000  # steps of a whole training, in which the paper's start does not leave guessing


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


class Trainer:
    """Network, optimiser and place in the run; `step` is the paper's learning rule.

    Args:
        fabric: Lightning Fabric, which chose device, precision and processes (`make_fabric`).
    """

    def __init__(self, plan: TrainingPlan, fabric: Any, compile: bool | str = False) -> None:
        self.plan, self.recipe, self.fabric = plan, plan.recipe, fabric
        self.net = untrained(plan.architecture, plan.recipe)
        self.model = plan.wrap(self.net)
        self.drops = [m for m in self.net.modules() if isinstance(m, Dropout)]
        decays = {True: self.recipe.weight_decay, False: 0.0}  # of weights, of biases
        groups = [
            {"params": [p for p in self.net.parameters() if (p.dim() > 1) == weight], "weight_decay": decay}
            for weight, decay in decays.items()
        ]
        fused = fabric.device.type == "cuda"
        self._sgd = torch.optim.SGD(groups, self.recipe.lr, self.recipe.momentum, fused=fused)
        r, schedule = self.recipe, torch.optim.lr_scheduler.ReduceLROnPlateau
        self.plateau = schedule(self._sgd, "min", r.lr_factor, r.patience, r.progress, "abs")
        if compile:
            self.net.compile(mode=None if compile is True else compile)
        if fabric.device.type == "cuda":
            self.net.to(memory_format=torch.channels_last)
        self.wrapped, self.optimizer = fabric.setup(self.net, self._sgd)
        self.mean = plan.mean.to(fabric.device).view(3, 1, 1)
        self.scale = plan.scale.to(fabric.device).view(3, 1, 1)
        self.state = State()
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=fabric.device)
        self._started = time.perf_counter()

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return float(self._sgd.param_groups[0]["lr"])

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
        plan, state, seed = self.plan, self.state, self.recipe.random_seed
        epoch, n = state.epoch + 1, plan.batch
        rank, ranks = self.fabric.global_rank, self.fabric.world_size
        share = slice(rank * n // ranks, (rank + 1) * n // ranks)  # this process's part of each batch
        spans = [slice(s * n + share.start, s * n + share.stop) for s in range(state.step, plan.steps)]
        draws = draw(plan.count, plan.geometry, seed, epoch, plan.blocks)
        self.net.train()
        self._started = time.perf_counter()
        self.loss_sum.fill_(state.loss_sum)
        for pixels, labels in feed.batches(draws, spans):
            for i, drop in enumerate(self.drops):
                drop.draw(n, share, generator(seed, epoch, state.step, i, device=self.fabric.device))
            self.loss_sum += self.step(pixels, labels)
            state.step += 1
            yield
        self._count_seconds()

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.state.seconds += now - self._started
        self._started = now

    def pause(self) -> None:
        """Bring the state up to date in the middle of an epoch; all processes at the same step."""
        self.state.loss_sum = float(self.fabric.all_reduce(self.loss_sum))
        self._check_finite(self.state.loss_sum)
        self._count_seconds()

    def finish_epoch(self, accuracy: Accuracy) -> None:
        """Write the epoch's row of the history, lower lr where validation error has stopped to fall."""
        plan, state = self.plan, self.state
        loss = float(self.fabric.all_reduce(self.loss_sum)) / plan.steps
        self._check_finite(loss)
        self._check_finite(accuracy.loss)
        state.history.append(
            {
                "epoch": state.epoch + 1, "lr": self.lr, "loss": loss, "val_loss": accuracy.loss, "top1": accuracy.top1,
                "top5": accuracy.top5, "dominance": dominance(self.net), "seconds": state.seconds,
                "images_per_second": plan.steps * plan.batch / state.seconds,
            }
        )  # fmt: skip
        self.plateau.step(1 - accuracy.top1 / 100)
        state.epoch, state.step, state.loss_sum, state.seconds = state.epoch + 1, 0, 0.0, 0.0

    def tensors(self) -> dict[str, Tensor]:
        """Weights and momentum, by name; `state.plateau` is brought up to date with them."""
        self.state.plateau = {k: v for k, v in self.plateau.state_dict().items() if not callable(v)}
        kept: dict[str, Tensor] = {f"weight/{name}": p for name, p in self.net.named_parameters()}
        for name, p in self.net.named_parameters():
            buffer = self._sgd.state.get(p, {}).get("momentum_buffer")
            if buffer is not None:
                kept[f"momentum/{name}"] = buffer
        return kept

    def restore(self, run: Run) -> None:
        """Go on where the folder's last whole state stopped; nothing in a new folder."""
        kept = run.resume()
        if kept is None:
            return
        state, tensors, settings = kept
        self.plan.check_same(settings, state, run.folder)
        self._check_fits(state, tensors, run.folder)
        vars(self.state).update(vars(state))
        self.plateau.load_state_dict(state.plateau)
        if state.history:  # the schedule lowered lr after this row was written
            for group in self._sgd.param_groups:
                group["lr"] = self.plateau.get_last_lr()[0]
        with torch.no_grad():
            for name, p in self.net.named_parameters():
                p.copy_(tensors[f"weight/{name}"])
                if f"momentum/{name}" in tensors:
                    buffer = torch.empty_like(p).copy_(tensors[f"momentum/{name}"])
                    self._sgd.state[p]["momentum_buffer"] = buffer

    def _check_fits(self, state: State, tensors: dict[str, Tensor], folder: Path) -> None:
        """Raise TrainingError where a kept state has other parts than this network and schedule."""
        weights = {f"weight/{name}": p for name, p in self.net.named_parameters()}
        begun = self.recipe.momentum > 0 and (state.epoch, state.step) != (0, 0)
        momentum = {f"momentum/{name}": p for name, p in self.net.named_parameters() if begun}
        wanted = {name: f"{p.dtype} {tuple(p.shape)}" for name, p in (weights | momentum).items()}
        found = {name: f"{t.dtype} {tuple(t.shape)}" for name, t in tensors.items()}
        own = {k: v for k, v in self.plateau.state_dict().items() if not callable(v)}
        wanted |= {f"plateau/{name}": _kind(value) for name, value in own.items()}
        found |= {f"plateau/{name}": _kind(value) for name, value in state.plateau.items()}
        whole_number(state.step, f"the step in the state in {folder}", 0, self.plan.steps, TrainingError)
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise TrainingError(
                    f"the state in {folder} is not of this training: {name} is {found.get(name, 'not there')}, not "
                    f"{wanted.get(name, 'there')}; train into another folder"
                )

    def _check_finite(self, loss: float) -> None:
        """Raise TrainingError where the loss is not finite, or weights are beyond what a snapshot's 16 bits hold."""
        largest = max(float(p.detach().abs().amax()) for p in self.net.parameters())
        if math.isfinite(loss) and largest < 65504:
            return
        epoch = self.state.epoch
        raise TrainingError(
            f"the loss is {loss:.3g} in epoch {epoch + 1} and the largest weight {largest:.3g}, at lr {self.lr:g}: "
            "the weights ran away. Use a smaller lr"
            + ("" if self.recipe.rms_clip else " and rms_clip=0.1, which holds filters down")
            + f". What was there after epoch {epoch} is kept"
        )

    def check_that_it_moves(self) -> None:
        """Raise TrainingError with a diagnosis where the loss has stayed at that of guessing.

        Where the whole training is too short for the recipe's start, say so after two epochs, and at its end.
        """
        recipe, history = self.recipe, self.state.history[-self.recipe.flat_epochs :]
        short = recipe.epochs * self.plan.steps < SHORT and self.state.epoch == 2
        if (short or self.state.epoch == recipe.epochs > 1) and self._is_flat(self.state.history[-2:]):
            init, flag = ("", "") if recipe.init == "he" else ("init='he', inputs='std', ", "--recipe he ")
            warnings.warn(
                f"after {self.state.epoch} epochs the loss is still that of guessing, {self.plan.guessing:.2f}: "
                f"nothing is learned. {self.plan.count:,} pictures are {self.plan.steps} steps an epoch; for few "
                f"pictures take Recipe({init}batch_size=32), `zfkit train {flag}--batch-size 32`, or more epochs",
                stacklevel=3,
            )
        enough = recipe.flat_epochs and len(history) == recipe.flat_epochs
        if not enough or self.state.epoch * self.plan.steps < recipe.flat_steps:
            return
        guess = self.plan.guessing
        if self._is_flat(history):
            raise TrainingError(
                f"the loss has stayed at {guess:.2f}, that of guessing among {len(self.plan.classes)} classes "
                f"(ln {len(self.plan.classes)} where they are equally many), for {recipe.flat_epochs} epochs: "
                + self._why_flat()
            )

    def _is_flat(self, history: Sequence[dict[str, float]]) -> bool:
        guess = self.plan.guessing
        return all(abs(row["loss"] - guess) < 0.01 * guess for row in history)

    def _why_flat(self) -> str:
        spread = float(self.model.preprocess(self.plan.sample).std())
        if spread < 10 and self.recipe.init == "paper":
            return (
                f"inputs look std-scaled (standard deviation {spread:.2g}), and N(0, 0.01^2) lets them die out before "
                "the last layer. Use inputs='mean', the paper's +-128, or init='he'"
            )
        silent = self._silent_share()
        if silent > 0.99:
            return f"{silent:.0%} of the hidden units answer to no picture any more. Use a smaller lr than {self.lr:g}"
        if self.lr < 1e-4:
            return f"lr {self.lr:g} is too small to leave the start. Use 1e-2"
        return (
            "check that labels belong to their pictures; else the start may just be slow on few pictures: set "
            f"flat_steps above {self.state.epoch * self.plan.steps} to wait longer, or init='he'"
        )

    def _silent_share(self) -> float:
        """Share of the last hidden layer's units that no picture of the plan's sample excites."""
        self.net.eval()
        steps = self.model.network.steps
        hidden = [name for name in self.model.layers if isinstance(steps[name].module, nn.ReLU)]
        _, output = next(activations(self.model, self.plan.sample, hidden[-1:]))
        return float((output.transpose(0, 1).flatten(1) <= 0).all(1).float().mean())


def _kind(v: Any) -> str:
    """What sort of value the schedule keeps: a list of numbers, a number, a word."""
    if isinstance(v, list):
        return f"list of {', '.join(map(_kind, v))}"
    return "number" if isinstance(v, int | float) and not isinstance(v, bool) else type(v).__name__
