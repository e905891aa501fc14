"""How a layer's projections fill their windows, and how alike they are: `Frame`, `likeness_words`.

Deep units of ResNets see hundreds of pixels, of which their projections fill a few; and where no max-pooling chooses
another way for every picture, those of one map are all the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..deconv.receptive_field import window_in
from ..deconv.rules import Options
from ..errors import LayerError
from ..experiments.replacements import randomise, weight_layers
from ..figures.pictures import TILE
from ..images.imageset import ImageSet
from ..nets.model import VisionModel
from ..topk.patches import Patches, Units, cut_windows, empty_patches, project_many, projected
from ..topk.table import TopK

HELD = 0.995  # of a projection's energy, between two rows as between two columns: 99 % or more in both
NEARLY_ALL = 0.9  # of the projections
WORTH = 1.6  # times larger tiles; layers of zfnet64, alexnet64 and squeezenet1_1 would gain less
LEAST = 16  # px: smaller frames are not cut
PROBED = 6  # maps that say how finely a layer's windows have to be kept
ALIKE = 0.9  # mean cosine from which untrained weights are asked
SLACK = 0.05  # by which those may be more alike
FEW = 3  # maps that are projected with these


@dataclass(frozen=True)
class Frame:
    """The part of a layer's windows that is shown: as large for all, in each around where its projection is.

    The smallest square that holds 99 % of the energy (sum of squares) of nine projections in ten; the whole windows
    where that would make tiles less than 1.6 times larger.

    Attributes:
        size: height and width in px of the projections that it was made of.
        factor: how many times larger tiles get, 1.0 for whole windows.
    """

    size: tuple[int, int]
    factor: float

    @classmethod
    def of(cls, patches: Patches) -> Frame:
        height, width = patches.photo.shape[-2:]
        extent = _extents(patches.projection.flatten(0, 1))
        sides = (extent[..., 1] - extent[..., 0]).amax(1).double()
        if bool((sides > 0).any()):
            side = max(LEAST, math.ceil(float(sides[sides > 0].quantile(NEARLY_ALL))))
            if max(height, width) >= WORTH * side:
                return cls((min(side, height), min(side, width)), max(height, width) / side)
        return cls((height, width), 1.0)

    def __call__(self, patches: Patches) -> Patches:
        """The same patches, cut, with a note that says so."""
        if self.factor == 1:
            return patches
        C, k = patches.image.shape
        windows, size = torch.tensor(patches.photo.shape[-2:]), torch.tensor(self.size)
        middle = _extents(patches.projection.flatten(0, 1)).sum(-1)
        corner = ((middle - size) // 2).clamp(min=0).minimum(windows - size)
        both = (p.flatten(0, 1) for p in (patches.photo, patches.projection))
        photo, projection = (cut_windows(p, torch.arange(C * k), corner, self.size) for p in both)
        box = patches.box.flatten(0, 1)
        sees = (box[0, 2:] - box[0, :2]).flip(0)  # px of the picture: height, width
        start, side = ((t * sees / windows).round().long().flip(-1) for t in (corner, size))
        box = torch.cat([box[:, :2] + start, box[:, :2] + start + side], 1)
        note = f"Tiles are cut to {int(side.max())} px around where each projection is, of windows of "
        note += f"{int(sees.max())} px: {self.factor:.1f} times larger."
        photo, projection, box = (t.unflatten(0, (C, k)) for t in (photo, projection, box))
        return replace(patches, photo=photo, projection=projection, box=box, notes=(*patches.notes, note))


def _extents(projection: Tensor) -> Tensor:
    """(B, 2, 2) rows and columns of projections (B, C, h, w): the first, and that behind the last, with the energy.

    Of an empty one the first is behind the last, and their middle that of the window.
    """
    energy, least = projection.double().square().sum(1), (1 - HELD) / 2
    extents = []
    for axis in (2, 1):
        sums = energy.sum(axis).cumsum(1)
        first, last = (sums <= least * sums[:, -1:]).sum(1), (sums < (1 - least) * sums[:, -1:]).sum(1)
        extents.append(torch.stack([first, last + 1], 1))
    return torch.stack(extents, 1).cpu()


def tile_sides(
    model: VisionModel, images: ImageSet, top: TopK, channels: Mapping[str, Sequence[int]], options: Options
) -> dict[str, int]:
    """Side in px that layers' larger windows are brought to at once: of a tile, or more where they will be cut.

    The strongest unit of a few maps says which. Layers with windows of less than a tile are left out.
    """
    large = [n for n in channels if max(i.size for i in window_in(model, images.size, n)) > TILE]
    wide = {n: channels[n][:: -(-len(channels[n]) // PROBED)] for n in large if channels[n]}
    probes = project_many(model, images, top, wide, k=1, options=options, tile=TILE)
    return {name: math.ceil(TILE * Frame.of(p).factor) for name, p in probes.items()}


def likeness_words(likeness: Tensor) -> str:
    """How alike the projections of a map are, from that of each map; "" where no map has two."""
    mean = float(likeness.nanmean())
    return "" if math.isnan(mean) else f"The projections of a map are alike by {mean:.2f} (mean cosine)"


def likeness_note(
    model: VisionModel, images: ImageSet, top: TopK, layer: str, likeness: Tensor, maps: Sequence[int],
    k: int, options: Options,
) -> tuple[str, ...]:  # fmt: skip
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
