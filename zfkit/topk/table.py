"""`TopK`: for every feature map, the pictures that excite it most; kept in a file, and merged from parts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..checks import as_path, expect, whole_number
from ..checksums import read_table, write_table
from ..deconv.receptive_field import Box, receptive_field
from ..errors import ImageError, LayerError, ZfkitError
from ..images.imageset import ImageSet
from ..nets.model import VisionModel, expect_model
from ..results import Result

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

FORMAT = 2  # of saved tables


@dataclass(frozen=True)
class LayerTop:
    """The strongest activations of one layer's C feature maps.

    Attributes:
        value: (C, k) float32, descending; -inf where there were fewer than k pictures.
        image: (C, k) int64, place in the image set, -1 where there is none.
        row, col: (C, k) int64, the unit's place in its map.
        max, mean: (C,) float32, over all pictures, of each picture's strongest activation.
        active: (C,) float32, fraction of pictures on which some unit of the map is above 0.
    """

    value: Tensor
    image: Tensor
    row: Tensor
    col: Tensor
    max: Tensor
    mean: Tensor
    active: Tensor


RANKED = ("value", "image", "row", "col")  # (C, k)
STATISTICS = ("max", "mean", "active")  # (C,)
WHOLE = ("image", "row", "col")  # int64; the others are float32


@dataclass(frozen=True)
class TopK(Result, figure="top_figure"):
    """For every feature map of every layer that was mined, the k pictures that excite it most.

    Attributes:
        layers: `LayerTop` by layer name.
        k: how many per feature map.
        model: name of the network.
        images: source of the pictures.
        fingerprint: of the image set, so that a table is not used with another one.
        count: number of pictures looked at.
        inside: were units left out that look beyond the picture's border?
        weights: fingerprint of the network as far as these layers, so that a table is not used with another.
        total: number of pictures in the set, also of those that could not be read; 0 where it is not known.
        maps: height and width of the maps, by layer that was mined.
    """

    layers: dict[str, LayerTop]
    k: int
    model: str
    images: str
    fingerprint: str
    count: int
    inside: bool = False
    weights: str = ""
    total: int = 0
    maps: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __repr__(self) -> str:
        maps = sum(len(t.value) for t in self.layers.values())
        return f"TopK({self.model!r} on {self.images!r}: top {self.k} of {self.count:,} for {maps:,} feature maps)"

    def __getitem__(self, layer: str) -> LayerTop:
        if layer not in self.layers:
            raise LayerError(f"layer {layer!r} was not mined; this table has {', '.join(self.layers)}")
        return self.layers[layer]

    def table(
        self,
        layer: str | None = None,
        channel: int | None = None,
        *,
        images: ImageSet | None = None,
        model: VisionModel | None = None,
    ) -> pd.DataFrame:
        """Data frame: layer, channel, rank (0 is the strongest), value, image, row, col.

        One line for each feature map and rank, of one layer or of all, of one map or of all; ranks for which there was
        no picture are left out. With the pictures that were mined, also name and class of each; with the network, left,
        top, right and bottom of what the unit sees, in pixels. Raises LayerError for a layer that was not mined, and
        ZfkitError for other pictures.
        """
        import pandas as pd

        if images is not None:
            self._check_pictures(images)

        parts = []
        for name in [layer] if layer is not None else self.layers:
            top = self[name]
            maps, rank = torch.nonzero(top.image >= 0, as_tuple=True)
            columns = {n: getattr(top, n)[maps, rank].numpy() for n in RANKED}
            parts.append(
                pd.DataFrame({"layer": name, "channel": maps.numpy(), "rank": rank.numpy(), **columns})
            )
        table = pd.concat(parts, ignore_index=True)
        if channel is not None:
            for name in table.layer.unique():
                whole_number(channel, f"channel of {name!r}", 0, len(self[name].max) - 1, LayerError)
            table = table[table.channel == channel].reset_index(drop=True)
        if images is not None:
            labels = images.known_labels()
            known = dict(enumerate(images.classes)) if labels is not None else {}
            table["name"] = [images.name(i) for i in table.image]
            table["class"] = [known.get(int(labels[i])) if labels is not None else None for i in table.image]
        if model is not None:
            fields = {name: receptive_field(model, name) for name in table.layer.unique()}
            units = zip(table.layer, table.row, table.col, strict=True)
            boxes = [fields[name].box(int(row), int(col)) for name, row, col in units]
            table[["left", "top", "right", "bottom"]] = pd.DataFrame(
                boxes, columns=Box._fields, index=table.index
            )
        return table

    def statistics(self, layer: str) -> pd.DataFrame:
        """Data frame by channel: max and mean of the pictures' strongest activations, fraction active."""
        import pandas as pd

        top = self[layer]
        return pd.DataFrame({n: getattr(top, n).numpy() for n in STATISTICS}).rename_axis("channel")

    def ranks(self, start: int, stop: int, layers: Sequence[str] | None = None) -> TopK:
        """The table of the ranks from `start` up to `stop` alone, of all layers or of some."""

        def cut(top: LayerTop) -> LayerTop:
            return replace(top, **{n: getattr(top, n)[:, start:stop] for n in RANKED})

        names = [*self.layers] if layers is None else layers
        return replace(self, layers={n: cut(self[n]) for n in names}, k=min(stop, self.k) - start)

    def save(self, path: str | Path) -> Path:
        """Write everything to a Parquet file, whole or not at all, with a checksum: one row for each feature map."""
        import pyarrow as pa

        columns: dict[str, Any] = {
            "layer": pa.array([n for n, top in self.layers.items() for _ in top.max], pa.string()),
            "channel": pa.array([c for top in self.layers.values() for c in range(len(top.max))], pa.int64()),
        }
        for name in (*RANKED, *STATISTICS):
            kind = pa.int64() if name in WHOLE else pa.float32()
            rows = [row for top in self.layers.values() for row in getattr(top, name).tolist()]
            columns[name] = pa.array(rows, pa.list_(kind) if name in RANKED else kind)
        head = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "layers"}
        table = pa.table(columns).replace_schema_metadata({"zfkit": json.dumps(head | {"format": FORMAT})})
        file = as_path(path)
        write_table(file, table)
        return file

    @classmethod
    def load(cls, path: str | Path) -> TopK:
        """Read a table that `save` wrote. Raises ZfkitError for any other file, and for one that was changed since."""
        file = as_path(path)
        if not file.is_file():
            raise ZfkitError(f"there is no file {str(path)!r}; check the path")
        try:
            table = read_table(file)
            head = _checked_head(json.loads((table.schema.metadata or {}).get(b"zfkit", "{}")))
            names, layers = table["layer"].to_pylist(), {}
            for layer, rows in itertools.groupby(range(len(names)), names.__getitem__):
                if layer in layers:
                    raise ValueError(f"layer {layer!r} is not whole")
                places = [*rows]
                layers[layer] = _checked_layer(layer, table.slice(places[0], len(places)), head)
            return cls(layers=layers, **head)
        except Exception as error:  # whatever the columns hold
            reason = (str(error).strip().rstrip(".").splitlines() or [type(error).__name__])[0]
            raise ZfkitError(
                f"{file.name} is not a table that this version of TopK.save wrote ({reason}); mine again"
            ) from None

    @classmethod
    def merge(cls, tables: Sequence[TopK], images: ImageSet) -> TopK:
        """The table of all pictures, from tables of parts of them, in any order; identical to that of one `mine`.

        `mine` ends with it, whether it looked at the pictures alone, in several processes or on a cluster.

        Args:
            tables: with places in the whole set, of parts that share neither a picture nor a photograph.
            images: all pictures.

        Raises ZfkitError for tables of different runs or of other pictures, and ImageError where none of the
        pictures could be read.
        """
        # of a part without readable pictures nothing is known
        seen = [table for table in tables if table.count]
        if not seen:
            reason = f": {images.skipped[0].reason}" if images.skipped else ""
            raise ImageError(f"none of the {len(images)} pictures of {images.source!r} can be read{reason}")
        first = seen[0]
        for other in seen:
            differ = [n for n in ("k", "inside", "weights") if getattr(other, n) != getattr(first, n)]
            differ += ["layers"] * ([*other.layers] != [*first.layers])
            if differ:
                raise ZfkitError(f"tables are of different runs: {', '.join(differ)} differ; mine them alike")
            other._check_pictures(images)
        counts = [table.count for table in seen]
        if (count := sum(counts)) > len(images):
            raise ZfkitError(
                f"the tables are of {count:,} pictures together, but there are {len(images):,}: their parts overlap"
            )
        layers = {n: _merged([table[n] for table in seen], counts, first.k) for n in first.layers}
        return replace(first, layers=layers, images=images.source, count=count)

    def check(self, model: VisionModel, images: ImageSet) -> None:
        """Raise ZfkitError where this table was made with other pictures or another network."""
        expect_both(model, images)
        self._check_pictures(images)
        if model.name != self.model:
            raise ZfkitError(f"this table was mined with {self.model!r}, not with {model.name!r}: mine again")
        if self.weights and model.fingerprint(self.maps or self.layers) != self.weights:
            raise ZfkitError(
                f"{model.name!r} (weights, operations, mean or scale) has changed since this table was mined: mine "
                "again"
            )

    def _check_pictures(self, images: ImageSet) -> None:
        if images.fingerprint() != self.fingerprint:
            raise ZfkitError(
                f"this table was mined from {self.images!r} ({self.count} pictures), not from {images.source!r} "
                f"({len(images)}) as it is now: mine again"
            )


def expect_both(model: object, images: object) -> None:
    """Raise ZfkitError for what is no network with its preprocessing, or no set of pictures."""
    expect_model(model)
    expect(images, ImageSet, "the pictures", "as zfkit.load_images and ImageSet.of make it")


def _merged(parts: Sequence[LayerTop], counts: Sequence[int], k: int) -> LayerTop:
    """One layer's table from those of parts, which hold so many pictures each."""
    ranked = {n: torch.cat([getattr(part, n) for part in parts], 1) for n in RANKED}  # (C, n * k)
    by_image = ranked["image"].argsort(1)
    # Sorted by value, and of equal values, by picture: the second sort is stable.
    by_value = ranked["value"].gather(1, by_image).sort(dim=1, descending=True, stable=True).indices
    order = by_image.gather(1, by_value)[:, :k]

    def mean(name: str) -> Tensor:
        # By the sums of parts, exact up to 48 bits: else the order decided on a mean just between two float32 numbers.
        parted = np.stack([getattr(part, name).double().numpy() for part in parts], 1) * np.array(counts)
        mantissa, exponent = np.frexp(parted)
        sums = np.ldexp(np.round(mantissa * 2**48), exponent - 48)
        return torch.from_numpy(sums.sum(1) / sum(counts)).float()

    return LayerTop(
        **{n: t.gather(1, order) for n, t in ranked.items()},
        max=torch.stack([part.max for part in parts]).amax(0),
        mean=mean("mean"),
        active=mean("active"),
    )


def _checked_head(head: dict[str, Any]) -> dict[str, Any]:
    """What a file's header says of the table, without the format. Raises ValueError where it cannot be."""
    if head.pop("format", None) != FORMAT:
        raise ValueError("its header does not say so")
    expected = {f.name for f in fields(TopK)} - {"layers"}
    if expected != head.keys():
        raise ValueError(f"{', '.join(sorted(expected ^ head.keys()))} missing or unknown")
    kinds = {"k": int, "count": int, "inside": bool, "total": int, "maps": dict}
    wrong = [n for n, v in head.items() if type(v) is not kinds.get(n, str)]
    if wrong or head["k"] < 1 or head["count"] < 1 or 0 < head["total"] < head["count"]:
        raise ValueError(f"{', '.join(wrong) or 'k, count or total'} cannot be so")
    head["maps"] = {layer: (int(height), int(width)) for layer, (height, width) in head["maps"].items()}
    return head


def _checked_layer(layer: str, part: pa.Table, head: dict[str, Any]) -> LayerTop:
    """One layer out of its rows in a file. Raises ValueError where it is not whole or cannot be so."""
    C, k = len(part), head["k"]

    def numbers(name: str) -> np.ndarray:
        values = part[name].combine_chunks()
        if name in RANKED:
            if values.null_count or not (np.from_dlpack(values.value_lengths()) == k).all():
                raise ValueError(f"layer {layer!r} is not whole")
            values = values.flatten()
        if values.null_count or str(values.type) != ("float" if name not in (*WHOLE, "channel") else "int64"):
            raise ValueError(f"layer {layer!r} is not whole")
        # Arrow's own `to_numpy` would import pandas.
        return np.from_dlpack(values).reshape((C, k) if name in RANKED else C)

    if not np.array_equal(numbers("channel"), np.arange(C)):
        raise ValueError(f"layer {layer!r} is not whole")
    top = LayerTop(**{n: torch.tensor(numbers(n)) for n in (*RANKED, *STATISTICS)})
    height, width = head["maps"].get(layer, (0, 0))
    for name, low, end in (("image", -1, head["total"]), ("row", 0, height), ("col", 0, width)):
        values = getattr(top, name)
        if C and (int(values.min()) < low or (end and int(values.max()) >= end)):
            raise ValueError(f"layer {layer!r} has values of {name!r} that cannot be")
    none = top.value == -torch.inf
    falls = (top.value[:, 1:] <= top.value[:, :-1]).all() and torch.equal(none, top.image == -1)
    finite = (top.value.isfinite() | none).all() and top.max.isfinite().all() and top.mean.isfinite().all()
    if not (falls and finite and ((top.active >= 0) & (top.active <= 1)).all()):
        raise ValueError(f"layer {layer!r} has activations that cannot be")
    return top
