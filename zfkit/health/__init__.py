"""What is wrong with a network, and what to do about it: `diagnose`.

Zeiler & Fergus looked at AlexNet's features, saw one filter dominate, frequencies missing and layers alias, and
mended each (sections 3 and 4.1). `diagnose` looks for these faults, and for the others that anybody meets who
trains a network, in three steps to be read below: `measure` takes numbers from the weights and from one pass
over some pictures; each check compares them with `Thresholds`; what is beyond becomes a `Finding`, which says
how to mend it. `FAULTS` lists all that is looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batching import Portions
from ..errors import LayerError, ZfkitError
from ..images.imageset import ImageSet
from ..nets.model import VisionModel
from .checks import CHECKS
from .measure import Layer, Measurements, Unit, layer_table, measure, units_of
from .report import DEFAULTS, FAULTS, Fault, Finding, Report, Severity, Thresholds

__all__ = [
    "DEFAULTS",
    "FAULTS", "Fault", "Finding", "Report", "Severity", "Thresholds", "Unit", "diagnose", "units_of",
]  # fmt: skip


def diagnose(
    model: VisionModel,
    images: ImageSet,
    *,
    limit: int | None = 512,
    thresholds: Thresholds = DEFAULTS,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Look for everything in `FAULTS`, and say what to do about what was found.

    Args:
        images: pictures like those that the network was made for; labels are used where they are the network's
            classes. Fully connected layers can be looked at only where the pictures have the network's own side.
        limit: at most so many of them, spread evenly over the set; None for all. A map that is never active on n
            pictures may still be on up to 3 / n of them (95% confidence).
        thresholds: where a number becomes a finding.
        batch_size: pictures at a time.
        seed: of the labels that are drawn for the learning signal where the pictures bring none.
        progress: show a bar.

    Raises LayerError for pictures that no layer can take, and ImageError where none can be read.

    >>> report = zfkit.diagnose(model, photos)
    >>> print(report)
    >>> report.table(), report.layers
    >>> zfkit.plotting.report_figure(report)
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ZfkitError(
            f"limit must be a whole number of pictures from 1 on, or None for all, not {limit!r}"
        )
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ZfkitError(f"batch_size must be a whole number from 1 on, not {batch_size!r}")
    if not isinstance(thresholds, Thresholds):
        raise ZfkitError(f"thresholds must be Thresholds(...), not {thresholds!r}")
    portions = Portions(f"diagnosing {model.name}", batch_size)
    for _ in portions.of(batch_size):  # once, or from the beginning with half as many pictures at a time
        with portions.attempt():
            m = measure(model, images, limit, portions.size, seed, progress)
            break
    found = [finding for check in CHECKS for finding in check(m, thresholds)]
    order = {layer: i for i, layer in enumerate(["", *m.layers])}
    found.sort(key=lambda f: (("fault", "warning", "note").index(f.severity), order[f.layer]))
    found = _with_pictures(m, found)
    return Report(
        model.name,
        images.source,
        m.count,
        images.size,
        tuple(found),
        layer_table(m),
        tuple(m.remarks),
        thresholds,
    )


SHOWN = 8  # maps of a finding that are pictured
TILE = 64  # px


def _with_pictures(m: Measurements, findings: Sequence[Finding]) -> list[Finding]:
    """The findings, with pictures of the maps concerned."""
    done = []
    for f in findings:
        layer = m.layers.get(f.layer)
        pictures = None
        if f.fault == "colour order":
            order = ["RGB".index(c) for c in max(m.colour, key=m.colour.__getitem__)]
            given = m.images.take(m.places[: SHOWN // 2])
            pictures = torch.stack([given, given[:, order]], 1).flatten(0, 1)
        elif layer is not None and f.channels and torch.isfinite(layer.weight).all():
            channels = torch.tensor(f.channels[:SHOWN])
            if layer.first and layer.weight.shape[1] in (1, 3):
                pictures = _filters(layer.weight, channels)
            elif layer.finite and layer.weight.dim() == 4:
                pictures = _lit(m, layer, channels)
        done.append(f if pictures is None else replace(f, pictures=_tiles(pictures)))
    return done


def _filters(weight: Tensor, channels: Tensor) -> Tensor:
    """Filters as pictures around mid-grey, uint8 (n, 3, k, k), all on the layer's one scale."""
    scale = weight.abs().flatten(1).amax(1).quantile(0.95).clamp(min=1e-30)
    shown = 128 + 127 * (weight[channels] / scale).clamp(-1, 1)
    return shown.round().to(torch.uint8).expand(-1, 3, -1, -1)


def _lit(m: Measurements, layer: Layer, channels: Tensor) -> Tensor:
    """For each map the picture that excites it most, uint8 (n, 3, S, S), dark where the map is not active."""
    places = [m.places[int(layer.best[c])] for c in channels]
    pixels = m.images.take(places)
    try:
        with torch.inference_mode():
            for step, _, output in m.model.network.walk(m.model.preprocess(pixels), [layer.name]):
                if step.name == layer.name:
                    maps = output[torch.arange(len(channels)), channels].float().cpu()
    except (RuntimeError, LayerError):
        return pixels
    light = maps.clamp(min=0) / maps.flatten(1).amax(1).clamp(min=1e-30)[:, None, None]
    light = F.interpolate(light[:, None], size=pixels.shape[2:], mode="bilinear", align_corners=False)
    return (pixels * (0.2 + 0.8 * light)).round().clamp(0, 255).to(torch.uint8)


def _tiles(pictures: Tensor) -> Tensor:
    """uint8 (n, 3, h, w) as (n, 3, TILE, TILE)."""
    mode = {"mode": "nearest"} if pictures.shape[-1] < TILE else {"mode": "bilinear", "antialias": True}
    return F.interpolate(pictures.float(), size=(TILE, TILE), **mode).round().clamp(0, 255).to(torch.uint8)
