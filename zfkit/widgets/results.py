"""What the explorer's pages are made of: sheets of tiles, a map's grids, one unit; and how they are kept on disk."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ..figures.pictures import tile_sheet
from ..nets.model import VisionModel
from .drawing import fitted
from .kept import as_bytes


class Sheet(NamedTuple):
    """Tiles of one size, edge to edge, as one encoded picture."""

    content: bytes
    columns: int
    height: int
    width: int


class Grids(NamedTuple):
    """The nine projections and patches of a map; or a sentence where they would be."""

    projections: Sheet | None = None
    patches: Sheet | None = None
    names: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    there: tuple[bool, ...] = ()
    sentence: str = ""


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
    words = {"names": grids.names, "values": grids.values, "there": grids.there, "size": grids.patches[1:]}
    return content, {name: json.dumps(value) for name, value in words.items()}


def read_grids(tensors: Mapping[str, Tensor], words: Mapping[str, str]) -> Grids:
    names, values, there, size = (tuple(json.loads(words[n])) for n in ("names", "values", "there", "size"))
    projections, patches = (
        Sheet(as_bytes(tensors[n]), *size) if n in tensors else None for n in ("projections", "patches")
    )
    return Grids(projections, patches, names, values, there)


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
