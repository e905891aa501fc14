"""How a layer's projections fill their windows, and how alike they are: `Frame`, `likeness_words`, `shown_part`.

Deep units of ResNets see hundreds of pixels, of which their projections fill a few; and where no max-pooling chooses
another way for every picture, those of one map are all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .patches import Patches, cut_windows

HELD = 0.995  # of a projection's energy, between two rows as between two columns: 99 % or more in both
NEARLY_ALL = 0.9  # of the projections
WORTH = 1.6  # times larger tiles; layers of zfnet64, alexnet64 and squeezenet1_1 would gain less
LEAST = 16  # px: smaller frames are not cut


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
        corner = self.corners(patches.projection.flatten(0, 1))
        photo, projection = (self.cut(p.flatten(0, 1), corner) for p in (patches.photo, patches.projection))
        box = patches.box.flatten(0, 1)
        sees = (box[0, 2:] - box[0, :2]).flip(0)  # px of the picture: height, width
        start, side = ((t * sees / windows).round().long().flip(-1) for t in (corner, size))
        box = torch.cat([box[:, :2] + start, box[:, :2] + start + side], 1)
        note = f"Tiles are cut to {int(side.max())} px around where each projection is, of windows of "
        note += f"{int(sees.max())} px: {self.factor:.1f} times larger."
        photo, projection, box = (t.unflatten(0, (C, k)) for t in (photo, projection, box))
        return replace(patches, photo=photo, projection=projection, box=box, notes=(*patches.notes, note))

    def corners(self, projection: Tensor) -> Tensor:
        """(B, 2) first row and column of what is shown of windows with these projections (B, C, h, w)."""
        size, middle = torch.tensor(self.size), _extents(projection).sum(-1)
        return ((middle - size) // 2).clamp(min=0).minimum(torch.tensor(projection.shape[-2:]) - size)

    def cut(self, windows: Tensor, corner: Tensor) -> Tensor:
        """(B, C, h, w), from these corners on."""
        return cut_windows(windows, torch.arange(len(windows)), corner, self.size)


def _extents(projection: Tensor) -> Tensor:
    """(B, 2, 2) rows and columns of projections (B, C, h, w): the first, and that behind the last, with the energy.

    Of an empty one the first is behind the last, and their middle that of the window.
    """
    energies, least = (part.double().square().sum(1) for part in projection.split(32)), (1 - HELD) / 2
    extents = []
    for parts in zip(*((energy.sum(2), energy.sum(1)) for energy in energies), strict=True):
        sums = torch.cat(parts).cumsum(1)
        first, last = (sums <= least * sums[:, -1:]).sum(1), (sums < (1 - least) * sums[:, -1:]).sum(1)
        extents.append(torch.stack([first, last + 1], 1))
    return torch.stack(extents, 1).cpu()


def likeness_words(likeness: Tensor) -> str:
    """How alike the projections of a map are, from that of each map; "" where no map has two."""
    mean = float(likeness.nanmean())
    return "" if math.isnan(mean) else f"The projections of a map are alike by {mean:.2f} (mean cosine)"


def shown_part(patches: Patches) -> tuple[Patches, str]:
    """Patches as figures show them, cut by their `Frame`, and what to say of that; "" for whole windows."""
    cut = Frame.of(patches)(patches)
    said = list(cut.notes[len(patches.notes) :])
    if said and (alike := likeness_words(patches.likeness())):
        said.append(f"{alike}.")
    return cut, " ".join(said)
