"""What explains most of the findings: a sentence to read first.

A cause is tried where that can be done. The network is asked again with its pictures normalised otherwise, with colours
in another order, or with the statistics of the batch in its BatchNorms; what makes the right classes far more likely
than they were is what is wrong. Where none of that helps, the layers' numbers say whether training ran away or never
began.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batching import Portions
from ..nets.graph import evaluation_mode
from ..nets.model import VisionModel
from ..nets.trace import chosen
from .measure import Measurements, log_probabilities
from .report import Finding

TRIED = 96  # pictures that each cause is tried on
GOOD = 0.6  # a network whose loss is under this share of that of guessing is taken to work
# With a remedy: loss as a share of guessing, at most, and so many more of the classes right.
RESCUED, MORE = 0.8, 0.1

# How pictures of 0-255 are normalised in common: mean and scale, red first.
HABITS = {
    "0 to 1": ((0.0,) * 3, (1 / 255,) * 3),
    "-1 to 1": ((127.5,) * 3, (1 / 127.5,) * 3),
    "0 to 255": ((0.0,) * 3, (1.0,) * 3),
    "ImageNet's mean and deviation": ((123.675, 116.28, 103.53), (1 / 58.395, 1 / 57.12, 1 / 57.375)),
    "ImageNet's mean alone": ((123.68, 116.78, 103.94), (1.0,) * 3),
}


def verdict(m: Measurements, findings: Sequence[Finding]) -> str:
    """The cause that explains most, in a sentence; "" where nothing is wrong, or nothing explains it."""
    alarms = [f for f in findings if f.severity != "note"]
    faults = {f.fault for f in alarms}
    if "not finite" in faults:
        return "Training diverged: there are weights or activations that are no numbers. Lower the learning rate."
    loss, guess = _loss(m)
    works = loss is not None and loss < GOOD * guess
    if (not works or "colour order" in faults) and (cause := _tried(m)):
        return cause
    upset = "exploding activations" in faults and bool({"dead maps", "one class for most"} & faults)
    if not works and (upset or _ran_away(m)):
        return (
            "Training diverged: weights or activations are far beyond what any start gives, and the network says next "
            "to nothing about its pictures. Lower the learning rate (a tenth), and start again."
        )
    if not works and faults & {"input has no effect", "no learning signal", "filters all alike"}:
        return "Nothing was learned: what the network says does not depend on its pictures. See the first finding."
    if loss is not None and not works and loss > 0.95 * guess:
        return (
            f"The labels do not belong to the pictures: the network's loss on them is {loss:.2f}, that of guessing "
            f"{guess:.2f}, and neither another normalisation nor another order of colours mends that. Were they "
            "shuffled, here or in training, or are the classes in another order?"
        )
    if "dead maps" in {f.fault for f in alarms if f.severity == "fault"}:
        return "Half of a layer is dead: the learning rate was too high once. Lower it, and start again."
    return ""


def _loss(m: Measurements) -> tuple[float | None, float]:
    """Mean cross-entropy on these pictures, where they are labelled, and that of guessing; nats."""
    if m.labels is None or m.logits is None:
        return None, math.nan
    right = m.logits.log_softmax(1).gather(1, m.labels[:, None])
    return -float(right.mean()), math.log(m.logits.shape[1])


def _tried(m: Measurements) -> str:
    """What makes the network right about its pictures, and changes least of those that do; "" where nothing does."""
    if m.labels is None or m.logits is None or m.count < 8:
        return ""
    labels, pixels = m.labels[:TRIED], m.images.take(m.places[:TRIED])
    guess, before = math.log(m.logits.shape[1]), _right(m.logits[:TRIED], labels)
    rescued = {}
    for what, logits in _remedies(m.model, pixels):
        share = _right(logits, labels)
        if F.cross_entropy(logits, labels) < RESCUED * guess and share > before + MORE:
            rescued[what] = share
    if not rescued:
        return ""
    best = max(rescued.values())
    # What changes most, such as the statistics of the batch, undoes other causes, too.
    cause = next(what for what in (*ORDER, *rescued) if rescued.get(what, 0.0) > best - MORE / 2)
    by = f"with {cause} the network is right about {rescued[cause]:.0%} of the pictures, without about {before:.0%}"
    if cause == BATCH:
        return (
            f"BatchNorm's running statistics are not those of its inputs: {by}. They were frozen, or not updated in "
            "training: run some batches in training mode before the network is used."
        )
    if cause == BGR:
        return f"Colours come in the wrong order: {by}. Wrap the network with channels='bgr', or turn its input round."
    wrong = {OWN_MEAN: "the mean is", OWN_SCALE: "the scale is"}.get(cause, "mean and scale are")
    return f"Pictures are normalised otherwise than in training, {wrong} wrong: {by}."


def _right(logits: Tensor, labels: Tensor) -> float:
    """Share of the pictures whose class is the most probable."""
    return float((logits.argmax(1) == labels).double().mean())


BATCH, BGR = "the batch's statistics in BatchNorm", "blue first (BGR)"
OWN_MEAN, OWN_SCALE = "the pictures' own mean", "the pictures' own standard deviation"
OWN_BOTH = "the pictures' own mean and standard deviation"
ORDER = (BGR, OWN_MEAN, OWN_SCALE, OWN_BOTH, BATCH)  # from what changes least


def _habits(model: VisionModel, pixels: Tensor) -> Iterator[tuple[str, VisionModel]]:
    """The network with its pictures normalised in the ways that are common, and by these pictures' own numbers."""
    C = len(model.mean)
    spread = 1 / pixels.double().std((0, 2, 3)).clamp_min(1)
    own = tuple(pixels.double().mean((0, 2, 3)).tolist())
    ways = HABITS | {
        OWN_MEAN: (own, model.scale * (3 // C)),
        OWN_SCALE: (model.mean * (3 // C), tuple(spread.tolist())),
        OWN_BOTH: (own, tuple(spread.tolist())),
    }
    for what, (mean, scale) in ways.items():
        yield what, replace(model, mean=tuple(mean[:C]), scale=tuple(scale[:C]))


@torch.inference_mode()
def _remedies(model: VisionModel, pixels: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What is tried, and what the network then says of these pictures, (N, K) float64."""

    def answers(model: VisionModel, pixels: Tensor) -> Tensor:
        parts = []
        portions = Portions(f"trying remedies on {model.name}", 32)
        for part in portions.of(len(pixels)):
            with portions.attempt():
                parts.append(log_probabilities(model.forward(model.preprocess(pixels[part]))))
        return torch.cat(parts).double().cpu()

    for what, other in _habits(model, pixels) if len(model.mean) in (1, 3) else ():
        yield what, answers(other, pixels)
    if len(model.mean) == 3:
        yield BGR, answers(model, pixels.flip(1))
    norms = [n for n in model.net.modules() if isinstance(n, nn.BatchNorm2d) and n.running_mean is not None]
    if norms:
        kept = [(n.training, {name: t.clone() for name, t in n.named_buffers()}) for n in norms]
        x = model.preprocess(pixels)
        try:
            with evaluation_mode(model.net):
                for norm in norms:
                    norm.training = True
                outputs = model.net(x.flip(1) if model.channels == "bgr" else x)
        finally:
            for norm, (mode, buffers) in zip(norms, kept, strict=True):
                norm.training = mode
                for name, t in buffers.items():
                    getattr(norm, name).copy_(t)
        yield BATCH, log_probabilities(chosen(outputs, model.output)).double().cpu()


def _ran_away(m: Measurements) -> bool:
    """Are weights far larger than any start gives them, or activations than the input?"""
    for layer in m.layers.values():
        inputs = layer.weight[0].numel()
        if layer.finite and float(layer.weight.double().square().mean().sqrt()) > 20 / math.sqrt(inputs):
            return True
    norms = [n for n in m.model.net.modules() if isinstance(n, nn.BatchNorm2d) and n.running_var is not None]
    return any(float(n.running_var.max()) > 1e8 for n in norms if n.running_var is not None)
