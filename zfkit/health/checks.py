"""Each check compares numbers with thresholds, and says what is beyond; `CHECKS` has them all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..frequency.aliasing import subsampling_layers
from ..frequency.control import random_control
from ..frequency.spectra import filter_spectra
from .layers import LARGEST, Layer, cosines
from .measure import Measurements
from .report import Finding, Severity, Thresholds


def _finding(
    fault: str, severity: Severity, layer: str, number: float, threshold: str, t: Thresholds, message: str,
    channels: Tensor | Sequence[int] = (),
) -> Finding:  # fmt: skip
    """A finding beyond the threshold of this name."""
    maps = tuple(int(c) for c in channels)
    source = Thresholds.source(threshold)
    return Finding(fault, severity, layer, float(number), getattr(t, threshold), message, maps, source)


def _maps(channels: Tensor, one: str, several: str, most: int = 6) -> tuple[str, str]:
    """ "map 3" or "maps 1, 2", the first few of them, and the verb that goes with it."""
    numbers = ", ".join(str(int(c)) for c in channels[:most]) + ", ..." * (len(channels) > most)
    return (f"map {numbers}", one) if len(channels) == 1 else (f"maps {numbers}", several)


def _check_finite(m: Measurements, t: Thresholds) -> Iterator[Finding]:
    broken = [layer for layer in m.layers.values() if not layer.finite]
    if not broken:
        return
    first = broken[0]
    filters = (~torch.isfinite(first.weight.flatten(1)).all(1)).nonzero()[:, 0]
    what = f"{len(filters)} filters hold" if len(filters) else "its activations become"
    after = f"; so do {len(broken) - 1} layers after it" if len(broken) > 1 else ""
    yield Finding(
        "not finite", "fault", first.name, float(len(filters)), 0.0, f"{what} NaN or infinity{after}.",
        tuple(filters.tolist()), "no training goes on from there",
    )  # fmt: skip


def _check_dead(m: Measurements, t: Thresholds) -> Iterator[Finding]:
    # 3 / n: of a map that is on in 0 of n pictures, the upper end of a 95 % interval (the rule of three)
    most = min(1, 3 / m.count)
    certain = f"on none of {m.count} pictures (so, with 95% confidence, on under {most:.1%} of all)"
    for layer in m.layers.values():
        if not layer.finite:
            continue
        dead, C = layer.dead.nonzero()[:, 0], len(layer.active)
        share = len(dead) / C
        if len(dead):
            severity: Severity = "fault" if share >= 0.5 else "warning" if share > t.dead else "note"
            how = "active" if layer.rectified else "anything but constant"
            maps, are = _maps(dead, "is", "are")
            message = f"{len(dead)} of {C} ({maps}) {are} {how} {certain}."
            yield _finding("dead maps", severity, layer.name, share, "dead", t, message, dead)
        rare = ((layer.active < t.rare_pictures) & ~layer.dead).nonzero()[:, 0]
        if len(rare) and layer.rectified:
            rare = rare[layer.active[rare].argsort()]
            maps, are = _maps(rare, "is", "are")
            few = f"{t.rare_pictures:.1%} of {m.count} pictures"
            message = f"{len(rare)} of {C} ({maps}) {are} active on fewer than {few}."
            severity = "warning" if len(rare) / C > t.rare else "note"
            yield _finding("rarely active", severity, layer.name, len(rare) / C, "rare", t, message, rare)


def _check_strength(m: Measurements, t: Thresholds) -> Iterator[Finding]:
    for layer in m.layers.values():
        if not torch.isfinite(layer.weight).all():
            continue
        size, rms, idle = layer.filter_max, layer.filter_rms, _weak(layer, t)
        weak = idle.nonzero()[:, 0]
        if len(weak):
            weak = weak[size[weak].argsort(stable=True)]
            number = float(size[weak[0]]) / float(size.max()) if size.any() else 0.0
            maps, have = _maps(weak, "has", "have")
            message = f"{len(weak)} of {len(size)} ({maps}) {have} under {t.weak:.0%} of the strongest."
            yield _finding("weak filters", "warning", layer.name, number, "weak", t, message, weak)
        typical = float(rms[~idle].median()) if not idle.all() else 0.0
        beyond = (rms > t.dominance * typical).nonzero()[:, 0]
        if typical and len(beyond):
            beyond = beyond[rms[beyond].argsort(descending=True)]
            maps, have = _maps(beyond, "has", "have")
            message = f"{maps.capitalize()} {have} an RMS of up to {float(rms.max()):.3g}; the median is {typical:.3g}."
            number = float(rms.max()) / typical
            fault = "one filter dominates"
            yield _finding(fault, "warning", layer.name, number, "dominance", t, message, beyond)


def _weak(layer: Layer, t: Thresholds) -> Tensor:
    """(C,) bool: filters that do next to nothing, beside the layer's strongest."""
    size = layer.filter_max
    return (size < t.weak * size.max()) | (size == 0)


def _check_duplicates(m: Measurements, t: Thresholds) -> Iterator[Finding]:
    for layer in m.layers.values():
        C = len(layer.weight)
        if not torch.isfinite(layer.weight).all() or C < 2 or C > LARGEST:
            continue
        weak = _weak(layer, t)
        cosine = torch.zeros(C, C) if layer.grouped else cosines(layer.weight)
        cosine[weak] = cosine[:, weak] = 0
        response = torch.zeros(C, C) if layer.correlation is None else layer.correlation.clone()
        idle = weak | layer.dead if layer.finite else weak
        response[idle] = response[:, idle] = 0
        alike = torch.triu(cosine > t.cosine, 1)
        i, j = (alike | torch.triu(response > t.correlation, 1)).nonzero(as_tuple=True)
        if not len(i):
            continue
        copies = len(j.unique())  # each has an earlier twin, and could be left out
        share = copies / (C - 1)
        if share >= t.alike and alike.any(0).sum() / (C - 1) >= t.alike:
            message = f"{copies} of {C} filters are copies of others (cosine above {t.cosine})."
            yield _finding("filters all alike", "fault", layer.name, share, "alike", t, message, j.unique())
            continue
        by_weight = bool(alike.any())
        strength = (cosine if by_weight else response)[i, j]
        order = strength.argsort(descending=True)
        pairs = torch.stack([i, j], 1)[order].tolist()
        first = ", ".join(f"{a} and {b}" for a, b in pairs[:4]) + (", ..." if len(pairs) > 4 else "")
        what = "filters" if by_weight else "maps' activations"
        message = f"{copies} of {C} are copies of others ({what} {first})."
        channels = list(dict.fromkeys(itertools.chain(*pairs)))
        threshold = "cosine" if by_weight else "correlation"
        severity: Severity = "warning" if by_weight or copies / C > t.dead else "note"
        number = float(strength.max())
        yield _finding("duplicates", severity, layer.name, number, threshold, t, message, channels)


SMALLEST_KERNEL = 5  # px: below, filters are too small to hold one band, and leak into all


def _check_spectrum(m: Measurements, t: Thresholds) -> Iterator[Finding]:
    layer = next(iter(m.layers.values()))
    if not layer.first or not torch.isfinite(layer.weight).all() or not layer.weight.any():
        return
    if min(layer.weight.shape[2:]) < SMALLEST_KERNEL:
        kh, kw = layer.weight.shape[2:]
        m.remarks.append(f"frequencies of {layer.name}: filters of {kh}x{kw} px leak into every band")
        return
    spectra = filter_spectra(m.model, layer.name)
    table, summary = spectra.table(), spectra.summary()
    low, high = (torch.tensor(table[band].to_numpy()) for band in ("low", "high"))
    extreme = torch.maximum(low, high).nan_to_num(0)
    channels = (extreme > t.band_share).nonzero()[:, 0]
    share = len(channels) / len(extreme)
    if share > t.extreme:
        message = (
            f"{len(channels)} of {len(extreme)} filters have over {t.band_share:.0%} of their energy below 1/12 "
            f"({int((low > t.band_share).sum())}) or above 1/3 cycles/px ({int((high > t.band_share).sum())})."
        )
        worst = channels[extreme[channels].argsort(descending=True)]
        yield _finding("extreme frequencies", "warning", layer.name, share, "extreme", t, message, worst)
    covered = summary["mid_coverage"]
    if covered < t.mid_coverage and summary["mid"] < t.mid_share:
        worst = extreme.argsort(descending=True)[: max(1, len(channels))]
        message = (
            f"Some filter is tuned to {covered:.0%} of the band from 1/12 to 1/3 cycles/px. Energy lies "
            f"{summary['low']:.0%} below, {summary['mid']:.0%} in it and {summary['high']:.0%} above."
        )
        fault = "middle band missing"
        yield _finding(fault, "warning", layer.name, covered, "mid_coverage", t, message, worst)
    noise = random_control(spectra, draws=20).interval("selectivity")[1]
    if summary["selectivity"] <= noise:
        selective = summary["selectivity"]
        message = f"Orientation selectivity is {selective:.3f}; random filters reach {noise:.3f}."
        yield Finding(
            "filters look like noise", "note", layer.name, selective, float(noise), message,
            source="97.5% of random layers of this size have less",
        )  # fmt: skip


def _check_aliasing(m: Measurements, t: Thresholds) -> Iterator[Finding]:
    for layer in m.layers.values():
        if layer.folded is None or not layer.folded_energy > t.aliasing:
            continue
        filters = float(filter_spectra(m.model, layer.name).exact_shares()["aliasable"].mean())
        if filters <= t.aliasable:
            continue  # the pictures are to blame
        stride = max(subsampling_layers(m.model)[layer.name])
        worst = layer.folded.argsort(descending=True)
        worst = worst[layer.folded[worst] > 0.5]
        message = (
            f"Stride {stride} folds {layer.folded_energy:.0%} of the energy on these pictures, and could fold "
            f"{filters:.0%} of what the filters pass; {len(worst)} of {len(layer.folded)} maps have more of it above "
            "the stride's limit than below."
        )
        white = 1 - 1 / math.prod(subsampling_layers(m.model)[layer.name])
        severity: Severity = "warning"
        if filters > 0.97 * white:  # they have not learned to prefer any frequency, or, 1x1, cannot
            severity, message = "note", message + f" White filters would pass {white:.0%}."
        yield _finding("aliasing", severity, layer.name, layer.folded_energy, "aliasing", t, message, worst)


def _check_scale(m: Measurements, t: Thresholds) -> Iterator[Finding]:
    large = [
        (layer, layer.signal / m.input_signal)
        for layer in m.layers.values()
        if m.input_signal and layer.signal > t.exploding * (1 if layer.last else m.input_signal)
    ]
    if large:
        layer, times = large[0]
        message = f"Pictures move its output by {layer.signal:.3g} "
        if layer.last:
            message += "nats: every class is certain or impossible."
        else:
            more = f"; {len(large) - 1} layers after it, too" if len(large) > 1 else ""
            message += f"(RMS), {times:.3g} times as far as the input{more}."
        yield _finding("exploding activations", "fault", layer.name, times, "exploding", t, message)
    for layer in m.layers.values():
        if layer.saturated > t.saturated:
            message = f"{layer.saturated:.0%} of its activations are within 1% of an end of their range."
            yield _finding("saturated", "warning", layer.name, layer.saturated, "saturated", t, message)


def _check_signal(m: Measurements, t: Thresholds) -> Iterator[Finding]:
    if not m.input_signal:
        return  # one picture, or all alike: nothing can depend on it
    stuck = [layer for layer in m.layers.values() if layer.finite and layer.dependence < t.dependence]
    last = list(m.layers.values())[-1]
    if stuck:
        first = stuck[0]
        message = f"Its output varies by {first.dependence:.2%} of its size from picture to picture"
        message += f"; so it is in {len(stuck) - 1} layers after it." if len(stuck) > 1 else "."
        yield _finding("input has no effect", "fault", first.name, first.dependence, "dependence", t, message)
    elif last.last and last.finite and last.signal < t.logits:
        path = ", ".join(f"{layer.name} {layer.signal:.1g}" for layer in m.layers.values())
        path = f"On the way (input {m.input_signal:.1g}): {path}."
        message = f"Pictures move the classes by {last.signal:.1g} nats. {path}"
        yield _finding("input has no effect", "fault", last.name, last.signal, "logits", t, message)


def _check_learning(m: Measurements, t: Thresholds) -> Iterator[Finding]:
    if not m.learning:
        return
    layer = min(m.learning, key=m.learning.__getitem__)
    change = m.learning[layer]
    if change < t.learning:
        weights = float(m.layers[layer].weight.square().mean().sqrt())
        message = (
            f"One step changes {layer} by {change:.1g} of its size. The input's spread is {m.input_signal:.2g}, the "
            f"weights' RMS {weights:.2g}."
        )
        yield _finding("no learning signal", "fault", layer, change, "learning", t, message)


def _check_predictions(m: Measurements, t: Thresholds) -> Iterator[Finding]:
    if m.logits is None or m.logits.shape[1] < 2 or not torch.isfinite(m.logits).all():
        return
    N, K = m.logits.shape
    counts = m.logits.argmax(1).bincount(minlength=K)
    most = int(counts.argmax())
    share = int(counts[most]) / N
    expected = float((m.labels == most).double().mean()) if m.labels is not None else 1 / K
    excess = (share - expected) / (1 - expected) if expected < 1 else 0.0
    if excess > t.one_class and N > 1:
        name = repr(m.model.classes[most]) if m.model.classes else f"number {most}"
        right = "is right for" if m.labels is not None else "would be fair for"
        message = f"{share:.0%} of {N} pictures get class {name}, which {right} {expected:.1%}."
        severity: Severity = "fault" if excess > 0.95 else "warning"
        yield _finding("one class for most", severity, "", excess, "one_class", t, message, ())


def _check_blank(m: Measurements, t: Thresholds) -> Iterator[Finding]:
    broken = [name for name, p in m.blank.items() if not math.isfinite(p)]
    if broken:
        yield Finding(
            "not finite", "fault", "", math.nan, 0.0, f"A picture that is all {broken[0]} gives no finite numbers.",
            source="a division by the picture's own spread does that",
        )  # fmt: skip
        return
    if m.blank and (p := max(m.blank.values())) > t.blank:
        colour = max(m.blank, key=m.blank.__getitem__)
        message = f"A picture that is all {colour} gets a class with probability {p:.2f}."
        yield _finding("sure of blank pictures", "note", "", p, "blank", t, message)


def _check_colour(m: Measurements, t: Thresholds) -> Iterator[Finding]:
    if m.colour and (preference := max(m.colour.values())) > t.colour:
        order = max(m.colour, key=m.colour.__getitem__)
        what = "the right classes stand out more" if m.labels is not None else "its classes stand out more"
        message = f"With colours as {order} instead of RGB, {what}, by {preference:.1f} standard errors."
        yield _finding("colour order", "fault", "", preference, "colour", t, message)


CHECKS = (
    _check_finite, _check_dead, _check_strength, _check_duplicates, _check_spectrum, _check_aliasing, _check_scale,
    _check_signal, _check_learning, _check_predictions, _check_blank, _check_colour,
)  # fmt: skip
