"""What an atlas asks some of a layer's projections before it draws: how finely to keep windows, what to say of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ..deconv.receptive_field import window_in
from ..deconv.rules import Options
from ..errors import LayerError
from ..experiments.replacements import randomise, weight_layers
from ..figures.pictures import TILE
from ..images.imageset import ImageSet
from ..nets.model import VisionModel
from ..topk.frame import Frame, likeness_words
from ..topk.patches import Units, empty_patches, project_many, projected
from ..topk.table import TopK

PROBED = 6  # maps that say how finely a layer's windows have to be kept
ALIKE = 0.9  # mean cosine from which untrained weights are asked
SLACK = 0.05  # by which those may be more alike
FEW = 3  # maps that are projected with these


def tile_sides(
    model: VisionModel,
    images: ImageSet,
    top: TopK,
    channels: Mapping[str, Sequence[int]],
    options: Options,
    done: Callable[..., None] = lambda *_: None,
) -> dict[str, int]:
    """Side in px that layers' larger windows are brought to at once: of a tile, or more where they will be cut.

    The strongest unit of a few maps says which. Layers with windows of less than a tile are left out.
    """
    large = [n for n in channels if max(i.size for i in window_in(model, images.size, n)) > TILE]
    wide = {n: channels[n][:: -(-len(channels[n]) // PROBED)] for n in large if channels[n]}
    probes = project_many(
        model, images, top, wide, k=1, options=options, tile=TILE,
        on_step=lambda count, total: done(0, f"sizes {count}/{total}"),
    )  # fmt: skip
    return {name: math.ceil(TILE * Frame.of(p).factor) for name, p in probes.items()}


def likeness_note(
    model: VisionModel,
    images: ImageSet,
    top: TopK,
    layer: str,
    likeness: Tensor,
    maps: Sequence[int],
    k: int,
    options: Options,
) -> tuple[str, ...]:
    """`likeness_words` as a note, or none; of nearly equal projections, whether they are so with untrained weights."""
    words, alike = likeness_words(likeness), float(likeness.nanmean())
    if alike >= ALIKE and (chance := _untrained(model, images, top, layer, maps, k, options)) is not None:
        words += f", with untrained weights by {chance:.2f}"
        if alike > chance - SLACK:
            words += ": they carry hardly anything of the pictures; the patches do"
    return (words + ".",) if words else ()


def _untrained(
    model: VisionModel, images: ImageSet, top: TopK, layer: str, maps: Sequence[int], k: int, options: Options
) -> float | None:
    """Mean likeness for the same units once all weights are redrawn; None where no rule says how.

    None, too, for a first layer: its projections are its filters, and have to be alike.
    """
    try:
        weights = weight_layers(model, layer)
    except LayerError:
        weights = ()
    if len(weights) < 2:
        return None
    of = empty_patches(model, images, top, layer, maps[:FEW], k)
    for part in projected(randomise(model, weights), images, {layer: Units.of(of)}, options):
        of.projection.flatten(0, 1)[part.slot] = part.projection.to(of.projection)
    return float(of.likeness().nanmean())
