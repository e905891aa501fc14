"""What ships with the bundled networks: tables of the strongest activations, and what each map can reach.

`benchmarks/bundled.py` makes both.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..checks import as_path
from ..checksums import digest
from ..deconv.receptive_field import fits_inside
from ..errors import ZfkitError
from ..files import cache_folder
from ..images.imageset import ImageSet
from ..nets.activations import activations
from ..nets.model import VisionModel, expect_model
from .mine import mine
from .table import TopK, expect_both

DATA = Path(__file__).parent / "data"
QUANTILE = 0.999  # of a map's maximum over pictures: its record
LITTLE = 0.25  # of its record: with less, nothing in the pictures is what a map is for


def mined(
    model: VisionModel, photos: ImageSet, folder: str | Path | None = None, layers: list[str] | None = None
) -> TopK:
    """The table of `mine` for these: the one that ships, one that `folder` kept, or else made now and kept there.

    The folder is by default one in zfkit's cache (`zfkit cache` says where); the layers are all convolutions. Units
    that look beyond a picture's border are left out where pictures are large enough for these layers. A table is used
    only where its fingerprints are right, and a forward pass of one of its pictures gives the same numbers.
    """
    expect_both(model, photos)
    layers = layers or [*model.conv_layers]
    inside = fits_inside(model, layers, photos.size)
    asked = digest([model.fingerprint(layers), *layers])[:16]
    name = f"{asked}-{photos.fingerprint()}-{'inside' if inside else 'all'}.parquet"
    file = (cache_folder("top") if folder is None else as_path(folder)) / name
    if top := shipped(model, photos, layers, inside=inside) or _usable(file, model, photos, layers, inside):
        return top
    top = mine(model, photos, layers, inside=inside)
    if not photos.lasting:
        warnings.warn(
            f"nothing tells the pictures of {photos.source!r} from others, so their table is not kept for the next "
            "time; say what changes with them: ImageSet(..., stamp=lambda: 'version 3')",
            stacklevel=3,
        )
        return top
    with suppress(OSError):  # nowhere to keep it; it is mined again next time
        file.parent.mkdir(parents=True, exist_ok=True)
        top.save(file)
    return top


def shipped(
    model: VisionModel, photos: ImageSet, layers: Sequence[str], k: int = 9, *, inside: bool
) -> TopK | None:
    """What `mine` would make of these layers, from the table that ships; None where none does, or it does not fit."""
    files = {path.stem: path for path in DATA.glob("*.parquet")}  # names may be anything, also no file's
    file = files.get(f"{model.name}-{photos.source}")
    top = None if file is None else _usable(file, model, photos, model.conv_layers, inside)
    if top is None or k > top.k or not set(layers) <= set(top.layers):
        return None
    return top.ranks(0, k, layers)


def _usable(
    file: Path, model: VisionModel, photos: ImageSet, layers: Sequence[str], inside: bool
) -> TopK | None:
    """The table in this file, if it is of this network, these pictures and layers."""
    with suppress(ZfkitError):  # there is none, it is of another version, or damaged
        table = TopK.load(file)
        table.check(model, photos)
        if table.inside == inside and [*table.layers] == [*layers] and _agrees(table, model, photos):
            return table
    return None


def _agrees(table: TopK, model: VisionModel, photos: ImageSet) -> bool:
    """Are the table's values those of a forward pass, for the picture that excites its first map most?"""
    i = int(next(iter(table.layers.values())).image[0, 0])
    for layer, output in activations(model, photos.take([i]), list(table.layers)):
        top = table[layer]
        channel, rank = (top.image == i).nonzero(as_tuple=True)
        found = output[0].cpu().float()[channel, top.row[channel, rank], top.col[channel, rank]]
        if not torch.allclose(found, top.value[channel, rank], rtol=1e-2, atol=1e-3 * float(top.max.max())):
            return False
    return True


def records(model: VisionModel) -> dict[str, Tensor]:
    """What each map of a bundled network can reach: by layer, (C,), from pictures like those that it was trained on.

    The 99.9 % quantile of the map's maximum over Tiny ImageNet's 10,000 validation pictures at 64 px, for
    squeezenet1_1 over 1,000 ImageNet photographs at 227 px. Empty for any other network, or with other weights.
    """
    return _records().get(expect_model(model).fingerprint(), {})


def reach(model: VisionModel, top: TopK, layer: str) -> Tensor | None:
    """(C,) largest activation in a table as a share of the map's record, or None for a network without records.

    NaN for a map that nothing among the pictures of the records excites, either.
    """
    record = records(model).get(layer)
    if record is None:
        return None
    return torch.where(record > 0, top[layer].max.clamp(min=0) / record, torch.nan)


def reach_or_share(model: VisionModel, top: TopK, layer: str) -> Tensor:
    """(C,) as `reach`; of a network without records, as a share of the layer's strongest map."""
    strongest = top[layer].max.clamp(min=0)
    share = reach(model, top, layer)
    return strongest / strongest.max().clamp(min=1e-30) if share is None else share


def reached(share: float) -> str:
    """A map's share of its record in words; "" where that is not known."""
    if share != share:
        return ""
    words = f"{share:.0%} of what it reaches on its network's own kind of pictures"
    return words if share >= LITTLE else f"nothing here is what it is for: only {words}"


@cache
def _records() -> dict[str, dict[str, Tensor]]:
    import pyarrow.parquet as pq

    found: dict[str, dict[str, Tensor]] = {}
    for row in pq.ParquetFile(DATA / "records.parquet").read().to_pylist():  # one for each layer
        found.setdefault(row["weights"], {})[row["layer"]] = torch.tensor(row["record"])
    return found
