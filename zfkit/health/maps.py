"""Warnings about single feature maps, as far as a table of the strongest activations and the weights tell."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from ..nets.model import VisionModel
from ..topk.table import TopK
from .report import DEFAULTS, FAULTS


class MapWarning(NamedTuple):
    """What is wrong with one feature map, and what mends it."""

    sentence: str
    remedy: str


def map_warnings(model: VisionModel, top: TopK, layer: str) -> list[list[MapWarning]]:
    """For each of the layer's maps, the warnings about it; limits and remedies are `diagnose`'s."""
    table, module = top[layer], model.network.steps[layer].module
    warnings: list[list[MapWarning]] = [[] for _ in table.max]

    def warn(channel: int, fault: str, sentence: str) -> None:
        warnings[channel].append(MapWarning(sentence, FAULTS[fault].remedy))

    for c, (strongest, active) in enumerate(zip(table.max.tolist(), table.active.tolist(), strict=True)):
        if strongest <= 0:
            warn(c, "dead maps", "Dead: never above 0 on these pictures.")
        elif active < DEFAULTS.rare_pictures:
            warn(c, "rarely active", f"Rarely active: above 0 on {active:.1%} of the pictures.")
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return warnings
    flat = module.weight.detach().cpu().float().flatten(1)
    largest, unit = flat.abs().amax(1), flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-30)
    for c in (largest < DEFAULTS.weak * largest.max()).nonzero()[:, 0].tolist():
        sentence = f"Weak filter: its largest weight is under {DEFAULTS.weak:.0%} of the layer's largest."
        warn(c, "weak filters", sentence)
    if len(flat) > 1:
        cosine = unit @ unit.T
        cosine.fill_diagonal_(-1)
        closest, twin = cosine.max(1)
        for c in (closest > DEFAULTS.cosine).nonzero()[:, 0].tolist():
            sentence = f"Nearly a duplicate of map {int(twin[c])} (cosine {float(closest[c]):.2f})."
            warn(c, "duplicates", sentence)
    return warnings
