"""What the explorer's pages are made of: sheets of tiles, a map's grids, one unit; and how they are kept on disk."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..figures.pictures import tile_sheet, to_picture
from ..images.shrink import fitted as fitted_size
from ..images.shrink import shrink
from ..nets.model import VisionModel
from ..topk.frame import Frame
from ..topk.patches import Patches
from .controls import encode
from .drawing import fitted
from .kept import as_bytes

FEW = 32  # px


class Sheet(NamedTuple):
    """Tiles of one size, edge to edge, as one encoded picture."""

    content: bytes
    columns: int
    height: int
    width: int

    @classmethod
    def of(cls, tiles: Tensor, kind: Literal["png", "jpeg", "webp"] = "png", columns: int = 0) -> Sheet:
        """uint8 tiles (n, 3, height, width), row by row in so many columns; 0 for all in one row.

        Those of a few pixels are kept to the letter: JPEG and WebP would mix neighbours in their blocks.
        """
        n, _, height, width = tiles.shape
        kind = "png" if max(height, width) <= FEW else kind
        drawn = tile_sheet([to_picture(t) for t in tiles], columns or n, (width, height), gap=0)
        return cls(encode(drawn, kind), columns or n, height, width)

    def some(self, numbers: list[int]) -> Sheet:
        """These tiles alone, in one row."""
        sheet = np.asarray(Image.open(io.BytesIO(self.content)).convert("RGB"))
        rows = sheet.reshape(-1, self.height, self.columns, self.width, 3).transpose(0, 2, 4, 1, 3)
        return Sheet.of(torch.from_numpy(rows.reshape(-1, 3, self.height, self.width)[numbers]), "webp")


class Grids(NamedTuple):
    """The nine projections and patches of a map, and which part of their windows; or a sentence where they would be."""

    projections: Sheet | None = None
    patches: Sheet | None = None
    names: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    there: tuple[bool, ...] = ()
    sentence: str = ""
    cut: str = ""


class Detail(NamedTuple):
    """One unit: photograph with what it sees, its map over it, patch and projection; or a sentence.

    Attributes:
        box, area: what the unit sees, and where the map lies: left, top, right, bottom as fractions of the photograph.
        shape, position: of the map, and the unit's row and column in it.
        value: its activation.
        words: all that in a sentence.
    """

    photo: bytes = b""
    heat: bytes = b""
    patch: bytes = b""
    projection: bytes = b""
    box: tuple[float, ...] = (0.0, 0.0, 1.0, 1.0)
    area: tuple[float, ...] = (0.0, 0.0, 1.0, 1.0)
    shape: tuple[int, int] = (1, 1)
    position: tuple[int, int] = (0, 0)
    value: float = 0.0
    name: str = ""
    words: str = ""
    sentence: str = ""


def as_tiles(patches: Patches, frame: Frame | None, side: int) -> Patches:
    """Patches on tiles of at most so many px: whole, or what the frame leaves of them."""
    p = frame(patches) if frame else patches
    size = fitted_size(p.photo.shape[-2], p.photo.shape[-1], side)
    if size == tuple(p.photo.shape[-2:]):
        return p
    both = (shrink(t.flatten(0, 1), size).unflatten(0, t.shape[:2]) for t in (p.photo, p.projection))
    photo, projection = both
    return replace(p, photo=photo, projection=projection)


def picture_of(sheet: Sheet, tile: int, gap: int = 3) -> Image.Image:
    """A sheet as one picture to be kept, with tiles of so many px and white between them."""
    picture = Image.open(io.BytesIO(sheet.content)).convert("RGB")
    width, height = sheet.width, sheet.height
    tiles = [
        fitted(picture.crop((x, y, x + width, y + height)), tile)
        for y in range(0, picture.height, height)
        for x in range(0, picture.width, width)
    ]
    return tile_sheet(tiles, sheet.columns, (tile, tile), gap)


def written(grids: Grids) -> tuple[dict[str, bytes | Tensor], dict[str, str]]:
    """Grids as `Kept.save` takes them."""
    assert grids.patches is not None
    content: dict[str, bytes | Tensor] = {"patches": grids.patches.content}
    if grids.projections:
        content["projections"] = grids.projections.content
    words = {"names": grids.names, "values": grids.values, "there": grids.there, "cut": grids.cut}
    words["size"] = grids.patches[1:]
    return content, {name: json.dumps(value) for name, value in words.items()}


def read_grids(tensors: Mapping[str, Tensor], words: Mapping[str, str]) -> Grids:
    names, values, there, size = (tuple(json.loads(words[n])) for n in ("names", "values", "there", "size"))
    cut = str(json.loads(words.get("cut", '""')))
    projections, patches = (
        Sheet(as_bytes(tensors[n]), *size) if n in tensors else None for n in ("projections", "patches")
    )
    return Grids(projections, patches, names, values, there, cut=cut)


def size_of(kept: Any) -> int:
    """How much memory a result holds, roughly."""
    if isinstance(kept, Tensor):
        return kept.numel() * kept.element_size()
    if isinstance(kept, np.ndarray):
        return kept.nbytes
    if isinstance(kept, bytes):
        return len(kept)
    if isinstance(kept, VisionModel):
        return sum(map(size_of, kept.net.parameters()))
    if is_dataclass(kept):
        kept = vars(kept)
    parts = kept.values() if isinstance(kept, dict) else kept if isinstance(kept, tuple) else ()
    return 100 + sum(map(size_of, parts))
