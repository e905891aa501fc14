"""All numbers that a diagnosis rests on: from the weights, and from what pictures do to the network.

Most come from one pass over the pictures (`layers.Statistics`, a layer each); how a step of SGD would change the
weights, what blank pictures give and in which order the colours come need a few small passes more.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batching import out_of_memory, steps
from ..checks import Size, in_px
from ..errors import ImageError, ZfkitError
from ..frequency.aliasing import measure_aliasing, subsampling_layers
from ..images.imageset import ImageSet
from ..images.labels import align_labels
from ..nets.activations import cannot_run
from ..nets.model import VisionModel
from ..topk.bundled import records
from .layers import LARGEST, Layer, Moments, Statistics, cosines, units_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Measurements:
    """All numbers that the checks read."""

    model: VisionModel
    images: ImageSet
    places: list[int]  # of the pictures looked at, in the image set
    layers: dict[str, Layer]  # those that run on pictures of this size, in order
    input_signal: float  # spread of the network's input over pictures, RMS over pixels and channels
    logits: Tensor | None  # (N, K) float64, log-probabilities up to a constant
    labels: Tensor | None = None  # (N,) int64, where they are the network's classes
    learning: dict[str, float] = field(default_factory=dict)  # relative change by one step of SGD, by layer
    blank: dict[str, float] = field(default_factory=dict)  # largest probability, by colour
    # Standard errors by which another order of colours is preferred, by order.
    colour: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)  # what could not be looked at or decided, and why

    @property
    def count(self) -> int:
        """Pictures looked at."""
        return len(self.places)


# Pictures for what needs several passes: learning signal and aliasing (half of them), colour order.
SAMPLE = 128
LEARNING_RATE = 0.01  # the paper's


def measure(
    model: VisionModel, images: ImageSet, limit: int | None, batch_size: int, random_seed: int, progress: bool
) -> Measurements:
    """Everything that `diagnose` reads: from the weights, one pass over pictures, and a few small ones."""
    other_classes = ""
    try:
        images = align_labels(images, model.classes)
    except ImageError as error:  # such pictures say as much of units and weights
        other_classes = f"labels were not used: {error}"
    places, pixels, labels, remarks = _pictures(images, limit, random_seed)
    remarks += [other_classes] if other_classes else []
    units, runs = units_of(model.network), _what_runs(model, images.size)
    left_out = [u.layer for u in units if u.layer not in runs]
    if len(left_out) == len(units):
        raise cannot_run(model, left_out[:1], model.blank(images.size), RuntimeError("no layer runs on them"))
    if left_out:
        remarks.append(
            f"{', '.join(left_out)} cannot run on pictures of {in_px(images.size)} and were not looked at, nor what "
            f"the network says: take pictures of {in_px(model.input_size)}"
        )
    watched = {u.layer: Statistics(u) for u in units if u.layer in runs}
    entering, outputs = Moments(), []
    with steps(len(places), f"diagnosing {model.name}", progress=progress) as done:
        for batch in torch.arange(len(places)).split(batch_size):
            x = model.preprocess(pixels[batch])
            entering.add(x)
            output = _watch(model, x, watched, torch.tensor(places)[batch], whole=not left_out)
            # Numbers (N, K), at least two for each picture, rather than one, or maps.
            if not left_out and output.dim() > 1 and output.shape[1] == output[0].numel() > 1:
                outputs.append(log_probabilities(output).double().cpu())
            done(len(batch))
    m = Measurements(
        model, images, places, {name: w.finish() for name, w in watched.items()}, entering.signal,
        torch.cat(outputs) if outputs else None, remarks=remarks,
    )  # fmt: skip
    if not left_out and not outputs:
        remarks.append(
            f"the network gives no classes but {tuple(output.shape[1:]) or 'one number'} for each picture: the "
            "learning signal, blank pictures and the order of colours were not looked at"
        )
    layers = list(m.layers.values())
    layers[0].first = layers[0].weight.dim() == 4
    if layers[0].first and model.channels == "bgr":  # shown as pictures, red first
        layers[0].weight = layers[0].weight.flip(1)
    layers[-1].last = bool(outputs) and not layers[-1].rectified
    subsampling = subsampling_layers(model)
    for layer in layers:
        if layer.finite and layer.signal and subsampling.get(layer.name):
            with contextlib.suppress(ZfkitError):  # maps too small to tell one frequency from another
                aliasing = measure_aliasing(model, pixels[: SAMPLE // 2], layer.name, progress=False)
                layer.folded, layer.folded_energy = aliasing.share.nan_to_num(0), aliasing.layer_share
    if m.logits is not None and torch.isfinite(m.logits).all():
        m.labels = _fitting(m, labels)
        m.blank = _blank(m)
        m.learning = _learning(m, pixels[: SAMPLE // 2], random_seed, batch_size)
        m.colour = _colour(m, pixels, batch_size)
    return m


def _pictures(
    images: ImageSet, limit: int | None, random_seed: int
) -> tuple[list[int], Tensor, Tensor, list[str]]:
    """Places in the set, drawn at random and in random order; pictures uint8 (n, 3, S, S), labels (n,), remarks.

    Labelled sets come sorted or with a period, so that every k-th picture would be of few classes.
    """
    count = min(len(images), limit or len(images))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(random_seed))[:count]
    places, pixels, labels, remarks = [], [], [], []
    for i in order.tolist():
        try:
            picture, label = images[i]
        except ImageError as error:
            remarks.append(f"left out: {error}")
            continue
        places.append(i)
        pixels.append(picture)
        labels.append(label)
    if not places:
        reason = f": {remarks[0]}" if remarks else ""
        raise ImageError(f"none of the {len(images)} pictures of {images.source!r} can be read{reason}")
    return places, torch.stack(pixels), torch.tensor(labels), remarks


@torch.inference_mode()
def _what_runs(model: VisionModel, size: Size) -> set[str]:
    """Names of the steps that run on pictures of this size."""
    x = model.preprocess(model.blank(size))
    reached = set()
    try:
        for step, _, _ in model.network.walk(x, list(model.network.steps)):
            reached.add(step.name)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
    return reached


@torch.inference_mode()
def _watch(
    model: VisionModel, x: Tensor, watched: dict[str, Statistics], places: Tensor, whole: bool
) -> Tensor:
    """One batch through the network, each layer's output added to its statistics; returns the network's output."""
    looked_at = {w.unit.looked_at: w for w in watched.values()}
    result = x
    steps = list(model.network.steps) if whole else [*watched, *looked_at]
    for step, _, output in model.network.walk(x, steps):
        if step.name in watched:
            watched[step.name].add_output(output)
        if step.name in looked_at:
            looked_at[step.name].add_activations(output, places)
        if step.name == model.network.output:
            result = output.clone()  # a ReLU may follow in place
    return result


def log_probabilities(output: Tensor) -> Tensor:
    """Logits (N, K); of networks that end in a softmax, its logarithm, which is the same up to a constant."""
    flat = output.flatten(1)
    if flat.shape[1] > 1 and bool((flat >= 0).all()) and bool(((flat.sum(1) - 1).abs() < 1e-3).all()):
        return flat.clamp(min=torch.finfo(flat.dtype).tiny).log()
    return flat


def _fitting(m: Measurements, labels: Tensor) -> Tensor | None:
    """(N,) labels of the pictures, where they are the network's classes."""
    assert m.logits is not None
    classes, own, K = m.images.classes, m.model.classes, m.logits.shape[1]
    fit = tuple(own) == tuple(classes) if own and classes else len(classes or own) == K
    return labels if fit and ((labels >= 0) & (labels < K)).all() else None


@torch.inference_mode()
def _run(m: Measurements, x: Tensor) -> Tensor:
    """What the network gives, as log-probabilities up to a constant, (N, K) float64."""
    # Not `logits`, which raises where these are not finite: here that is a finding.
    return torch.cat([log_probabilities(m.model.forward(part)).double().cpu() for part in x.split(64)])


def _blank(m: Measurements) -> dict[str, float]:
    """Largest probability of a class on pictures of one colour; NaN where the network gives no numbers."""
    blank = m.model.blank(m.images.size)
    x = {name: m.model.preprocess(blank + v) for name, v in (("black", 0), ("grey", 128), ("white", 255))}
    x["the mean colour"] = torch.zeros_like(x["grey"])
    return {name: float(_run(m, one).softmax(1).amax()) for name, one in x.items()}


def _learning(m: Measurements, pixels: Tensor, random_seed: int, batch_size: int) -> dict[str, float]:
    """lr |gradient| / |weight| of each layer, for these pictures: what a first step of SGD would change."""
    assert m.logits is not None
    generator = torch.Generator().manual_seed(random_seed)
    drawn = torch.randint(m.logits.shape[1], (len(pixels),), generator=generator)
    labels = drawn if m.labels is None else m.labels[: len(pixels)]
    weights = {n: p.detach().clone().requires_grad_() for n, p in m.model.net.named_parameters()}
    for part in torch.arange(len(pixels)).split(batch_size):
        with torch.enable_grad():  # gradients add up in the copies
            output = m.model.forward(m.model.preprocess(pixels[part]), weights)
            right = labels[part].to(output.device)
            loss = F.cross_entropy(log_probabilities(output), right, reduction="sum") / len(pixels)
            loss.backward()
    learning = {}
    for layer in m.layers:
        weight = weights.get(f"{layer}.weight")
        if weight is not None:
            size = float(weight.detach().double().norm())
            change = 0.0 if weight.grad is None else LEARNING_RATE * float(weight.grad.double().norm())
            learning[layer] = change / size if size else 0.0
    return learning


def _colour(m: Measurements, pixels: Tensor, batch_size: int) -> dict[str, float]:
    """By how many standard errors the network prefers its pictures with colours in another order, by order.

    What it prefers: the order in which the logit of the right class, or, without labels, the largest one, stands out
    more from the mean of all. Orders are compared on `SAMPLE` pictures, and the one that leads is judged on all.
    Windows of one photograph count as one picture: they are not independent.
    """
    if len(m.model.mean) != 3 or m.logits is None or m.logits.shape[1] < 2:
        return {}
    grey = (pixels == pixels[:, :1]).flatten(1).all(1)
    colourful = (~grey).nonzero()[:, 0]
    source = torch.arange(m.count)
    if m.images.windows:
        source = m.images.windows.photograph[torch.tensor(m.places)]
    if len(source[colourful[:SAMPLE]].unique()) < 8:
        m.remarks.append("order of colours: fewer than 8 independent pictures in colour")
        return {}

    def evidence(logits: Tensor, chosen: Tensor) -> Tensor:
        if m.labels is None:
            return logits.amax(1) - logits.mean(1)
        return logits.gather(1, m.labels[chosen, None])[:, 0] - logits.mean(1)

    def preference(order: tuple[int, ...], chosen: Tensor) -> float:
        assert m.logits is not None
        parts = chosen.split(batch_size)
        other = [_run(m, m.model.preprocess(pixels[part][:, list(order)])) for part in parts]
        gain = evidence(torch.cat(other), chosen) - evidence(m.logits[chosen], chosen)
        each = torch.stack([gain[source[chosen] == g].mean() for g in source[chosen].unique()])
        error = float(each.std()) / math.sqrt(len(each))
        return float(each.mean()) / error if error > 0 else 0.0

    orders = [order for order in itertools.permutations(range(3)) if order != (0, 1, 2)]
    errors = {order: preference(order, colourful[:SAMPLE]) for order in orders}
    leads = max(errors, key=errors.__getitem__)
    if errors[leads] > 2:
        errors[leads] = preference(leads, colourful)
    if max(abs(t) for t in errors.values()) < 2:
        m.remarks.append(
            "whether colours come in the right order: the network answers all six alike on these pictures; take "
            "some like those that it was trained with, best with labels"
        )
    return {"".join("RGB"[c] for c in order): t for order, t in errors.items()}


def layer_table(m: Measurements) -> pd.DataFrame:
    """Data frame by layer of all that was measured.

    maps; dead and rare: how many (rare: active on under 1% of pictures); weakest: ||w||_inf of the weakest filter
    over the strongest's; dominance: largest RMS over the median; cosine: largest of two filters; rms and signal of
    the output (signal: spread over pictures); dependence: signal / rms; reach: median over maps of their largest
    activation as a share of their record (`zfkit.topk.records`), NaN for networks without; learning: change by one
    step of SGD; folded: share of energy that the stride folds, NaN for stride 1.
    """
    import pandas as pd

    rows, known = [], records(m.model)
    for layer in m.layers.values():
        record = known.get(layer.name)
        reach = math.nan
        if record is not None and layer.finite:
            reach = float((layer.peak / record)[record > 0].median())
        largest, median = float(layer.filter_max.max()), float(layer.filter_rms.median())
        C = len(layer.weight)
        compared = 1 < C <= LARGEST and not layer.grouped and bool(torch.isfinite(layer.weight).all())
        rows.append(
            {
                "layer": layer.name, "maps": C, "dead": int(layer.dead.sum()),
                "rare": int(((layer.active < 0.01) & ~layer.dead).sum()),
                "weakest": float(layer.filter_max.min()) / largest if largest else 0.0,
                "dominance": float(layer.filter_rms.max()) / median if median else math.nan,
                "cosine": float(cosines(layer.weight).max()) if compared else math.nan,
                "rms": layer.rms, "signal": layer.signal, "dependence": layer.dependence, "reach": reach,
                "learning": m.learning.get(layer.name, math.nan), "folded": layer.folded_energy,
            }
        )  # fmt: skip
    return pd.DataFrame(rows).set_index("layer")
