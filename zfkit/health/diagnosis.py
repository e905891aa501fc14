"""`diagnose`: measure, check, and put pictures beside what was found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batching import Portions
from ..checks import expect, whole_number
from ..errors import LayerError
from ..images.colour import signed_to_rgb
from ..images.imageset import as_set
from ..nets.activations import activations
from ..nets.model import VisionModel, expect_model
from .checks import CHECKS
from .layers import Layer
from .measure import Measurements, layer_table, measure
from .report import DEFAULTS, Finding, Report, Thresholds
from .verdict import verdict


def diagnose(
    model: VisionModel,
    images: Any,
    *,
    limit: int | None = 512,
    thresholds: Thresholds = DEFAULTS,
    batch_size: int = 64,
    random_seed: int = 0,
    progress: bool = True,
) -> Report:
    """Look for everything in `FAULTS`, and say what to do about what was found.

    Args:
        images: pictures like those that the network was made for, a set or what `ImageSet.of` makes one of; labels
            are used where they are the network's classes. Fully connected layers can be looked at only where the
            pictures have the network's own side.
        limit: at most so many of them, drawn at random; None for all. A map that is never active on n
            pictures may still be on up to 3 / n of them (95% confidence).
        thresholds: where a number becomes a finding.
        random_seed: of the pictures that are chosen, and of the labels that are drawn for the learning signal where
            the pictures bring none.

    Raises LayerError for pictures that no layer can take, and ImageError where none can be read.

    >>> report = zfkit.diagnose(model, photos)
    >>> print(report)
    >>> report.table(), report.layers
    >>> zfkit.figures.report_figure(report)
    """
    images = as_set(images, expect_model(model).input_size, progress)
    if limit is not None:
        whole_number(limit, "limit, a number of pictures or None for all,")
    whole_number(batch_size, "batch_size")
    expect(thresholds, Thresholds, "thresholds", "as Thresholds(dominance=5)")
    portions = Portions(f"diagnosing {model.name}", batch_size)
    for _ in portions.of(batch_size):  # once, or from the beginning with half as many pictures at a time
        with portions.attempt():
            m = measure(model, images, limit, portions.size, random_seed, progress)
            break
    findings = [_with_pictures(m, finding) for check in CHECKS for finding in check(m, thresholds)]
    if any(isinstance(module, nn.BatchNorm2d) for module in model.net.modules()):
        lost = ("input has no effect", "no learning signal")
        findings = [replace(f, advice=WITH_NORMS) if f.fault in lost else f for f in findings]
    place = {layer: i for i, layer in enumerate(["", *m.layers])}
    findings.sort(key=lambda f: (("fault", "warning", "note").index(f.severity), place[f.layer]))
    return Report(
        model.name, images.source, m.count, images.size, tuple(findings), layer_table(m), tuple(m.remarks), thresholds,
        verdict(m, findings),
    )  # fmt: skip


WITH_NORMS = (
    "train it, if it is untrained; else check that pictures are normalised as in training, and that the running "
    "statistics of BatchNorm were updated"
)
SHOWN = 8  # maps of a finding that are pictured
TILE = 64  # px


def _with_pictures(m: Measurements, finding: Finding) -> Finding:
    """The finding with pictures of the maps concerned, where there are any to show."""
    layer = m.layers.get(finding.layer)
    if finding.fault == "colour order":
        order = ["RGB".index(c) for c in max(m.colour, key=m.colour.__getitem__)]
        given = m.images.take(m.places[: SHOWN // 2])
        pictures = torch.stack([given, given[:, order]], 1).flatten(0, 1)
    elif layer is None or not finding.channels or not torch.isfinite(layer.weight).all():
        return finding
    else:
        channels = torch.tensor(finding.channels[:SHOWN])
        if layer.first and layer.weight.shape[1] in (1, 3):
            # All of a layer's filters are shown on one scale.
            scale = layer.filter_max.quantile(0.95).clamp(min=1e-30)
            pictures = signed_to_rgb(layer.weight[channels], scale)
        elif layer.finite and layer.weight.dim() == 4:
            pictures = _lit(m, layer, channels)
        else:
            return finding
    mode = {"mode": "nearest"} if pictures.shape[-1] < TILE else {"mode": "bilinear", "antialias": True}
    tiles = F.interpolate(pictures.float(), size=(TILE, TILE), **mode).round().clamp(0, 255)
    return replace(finding, pictures=tiles.to(torch.uint8))


def _lit(m: Measurements, layer: Layer, channels: Tensor) -> Tensor:
    """For each map the picture that excites it most, uint8 (n, 3, S, S), dark where the map is not active."""
    pixels = m.images.take(layer.best[channels])
    try:
        with torch.inference_mode():
            _, output = next(activations(m.model, pixels, [layer.name]))  # (n, C, H, W)
    except (RuntimeError, LayerError):
        return pixels
    maps = output[torch.arange(len(channels)), channels].float().cpu()
    light = maps.clamp(min=0) / maps.flatten(1).amax(1).clamp(min=1e-30)[:, None, None]
    light = F.interpolate(light[:, None], size=pixels.shape[2:], mode="bilinear", align_corners=False)
    return (pixels * (0.2 + 0.8 * light)).round().clamp(0, 255).to(torch.uint8)
