"""Pictures in Parquet files, as the Hugging Face Hub lays them out: image struct<bytes, path>, label int."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..checks import Size
from ..checksums import bytes_of, digest
from ..errors import ImageError, printable, unknown
from .caching import CachedReads
from .decode import decode, one_line
from .given import IMAGE_NAMES, LABEL_NAMES, Files
from .imageset import UNLABELLED, ImageSet
from .sources import image_source
from .values import Range, Remarks

BLOCKS_KEPT = 16  # row groups that are held while their pictures are read in mixed order
MOST_UNPACKED = 2**29  # bytes of a row group's pictures: a few copies of it are held while it is read
MOST_ROWS = 10**10  # in a file; a footer that gives more is damaged


class _File(NamedTuple):
    """What a Parquet file's footer says."""

    path: Path
    groups: list[int]  # rows of each row group
    image: str  # names of its columns
    label: str | None
    classes: list[str]  # names, as Hugging Face's `datasets` leaves them in the schema, or none
    stamp: str  # digest of the footer
    unpacked: list[int]  # bytes of each row group's pictures


@image_source("parquet:PATH")
def parquet(
    path: str,
    size: Size,
    *,
    image: str | None = None,
    label: str | None = None,
    value_range: Range | None = None,
    **_: Any,
) -> ImageSet:
    """Rows of a Parquet file, of all files in a folder, or of a glob; read a row group at a time.

    `image` and `label` name the columns; default the first that there is of those usual at Hugging Face.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = Path(path).expanduser()
    found = place.glob("*.parquet") if place.is_dir() else map(Path, glob.glob(str(place)))
    files = [_inspect(file, image, label) for file in sorted(found)]
    if not files:
        raise ImageError(f"no Parquet file at {path!r}; check the path or glob (looked up from {Path.cwd()})")
    common = os.path.commonpath([file.path.parent for file in files])
    names = RowNames([str(f.path.relative_to(common)) for f in files], [sum(f.groups) for f in files])
    groups = [(file, g) for file in files for g in range(len(file.groups))]
    ends = np.cumsum([rows for file in files for rows in file.groups], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), ends])[: len(groups)]  # first row of each group
    on_disk = Files([str(file.path) for file in files])
    on_disk.stamp()
    places = {file.path: i for i, file in enumerate(files)}

    def read_group(g: int) -> tuple[list[bytes | None], list[int]] | str:
        """Pictures and labels of a row group, or why it cannot be read."""
        file, inside = groups[g]
        columns = [file.image, *([file.label] if file.label else [])]
        try:  # opened each time: a file handle does not survive in the processes of a data loader
            # As a dictionary: a picture that is stored once, and meant a million times, is held once.
            with pq.ParquetFile(file.path, read_dictionary=[f"{file.image}.bytes"]) as opened:
                table = opened.read_row_group(inside, columns=columns, use_threads=False)
            on_disk.check(places[file.path])
            pictures = table[file.image].combine_chunks().field("bytes")
            if (size := bytes_of(pictures)) > MOST_UNPACKED:
                most = f"at most {MOST_UNPACKED / 1e6:,.0f} MB are read"
                return f"its pictures unpack to {size / 1e6:,.0f} MB, and {most}"
            data = pictures.to_pylist()
            if not file.label:
                return data, [UNLABELLED] * len(data)
            return data, table[file.label].cast(pa.int64()).fill_null(UNLABELLED).to_pylist()
        except Exception as error:  # Arrow raises all sorts on damaged files
            return one_line(error)

    remarks = Remarks()
    largest = max((size for file in files for size in file.unpacked), default=1)
    cached_group = CachedReads(read_group, min(BLOCKS_KEPT, max(1, 2 * MOST_UNPACKED // max(1, largest))))

    def read(i: int) -> tuple[Image.Image, int]:
        g = int(np.searchsorted(starts, i, side="right")) - 1
        content = cached_group(g)
        if isinstance(content, str):
            raise ImageError(f"{printable(names[i])}: damaged Parquet row group ({content}); replace it")
        data, labels = content
        row = i - int(starts[g])
        if row >= len(data) or not data[row]:
            raise ImageError(f"{printable(names[i])}: the row holds no picture bytes; remove it")
        return decode(data[row] or b"", names[i], value_range, remarks), labels[row]

    def read_labels() -> np.ndarray:
        return np.concatenate([_labels(file) for file in files])

    return ImageSet(
        read, names, size=size, classes=next((f.classes for f in files if f.classes), []),
        blocks=torch.from_numpy(starts), read_labels=read_labels,
        stamp=lambda: digest([on_disk.stamp(), *(f.stamp for f in files)]), remarks=remarks,
    )  # fmt: skip


class RowNames(Sequence[str]):
    """Names of rows, "file row 17", made up when asked for: a few bytes for each file, none for its rows."""

    def __init__(self, files: Sequence[str], rows: Sequence[int]) -> None:
        self._files = list(files)
        self._ends = np.cumsum(rows, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, i: int | slice) -> Any:
        if isinstance(i, slice):
            if i.start in (None, 0) and i.step in (None, 1):  # the first so many
                rows = np.diff(np.minimum(self._ends, i.indices(len(self))[1]), prepend=0)
                return RowNames(self._files, rows.tolist())
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        f = int(np.searchsorted(self._ends, i, side="right"))
        return f"{self._files[f]} row {i - (int(self._ends[f - 1]) if f else 0)}"


def _inspect(path: Path, image: str | None, label: str | None) -> _File:
    """Read a file's footer. Raises ImageError where it is damaged, or its columns hold something else."""
    import pyarrow.parquet as pq

    name = printable(path.name)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ImageError(f"{name}: a pipe, socket or device, not a Parquet file")
    try:
        with pq.ParquetFile(path) as file:
            schema, footer = file.schema_arrow, file.metadata
            groups = [footer.row_group(g).num_rows for g in range(footer.num_row_groups)]
            stamp = _stamp(path)
            unpacked = [_unpacked(footer.row_group(g)) for g in range(footer.num_row_groups)]
    except Exception as error:  # Arrow raises all sorts on damaged files
        raise ImageError(f"{name}: not a readable Parquet file ({one_line(error)}); replace it") from None
    image, label = _column(schema, image, IMAGE_NAMES, name), _column(schema, label, LABEL_NAMES, name)
    _check_columns(schema, image, label, name)
    assert image is not None
    if min(groups, default=0) < 0 or sum(groups) != footer.num_rows or sum(groups) > MOST_ROWS:
        raise ImageError(
            f"{name}: not a readable Parquet file (its footer gives {footer.num_rows:,} rows, its {len(groups)} row "
            f"groups {sum(groups):,}); replace it"
        )
    try:
        classes = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
        classes = [str(n) for n in classes]
    except (KeyError, TypeError, ValueError):  # written by something else
        classes = []
    if (largest := max(unpacked, default=0)) > MOST_UNPACKED:
        raise ImageError(
            f"{name}: its row group {unpacked.index(largest)} unpacks to {largest / 1e6:,.0f} MB, and at most "
            f"{MOST_UNPACKED / 1e6:,.0f} MB are read at once: write it anew in smaller ones (row_group_size=1000, say)"
        )
    return _File(path, groups, image, label, classes, stamp, unpacked)


def _unpacked(group: Any) -> int:
    """Bytes of a row group's largest column, as its footer states them."""
    return max((group.column(c).total_uncompressed_size for c in range(group.num_columns)), default=0)


def _column(schema: Any, asked: str | None, usual: Sequence[str], name: str) -> str | None:
    """The column asked for, or the first of the usual names that there is once; None where there is none."""
    if asked is not None and schema.names.count(asked) != 1:
        raise ImageError(f"{name}: {unknown('column', asked, schema.names)}")
    return asked or next((column for column in usual if schema.names.count(column) == 1), None)


def _check_columns(schema: Any, image_column: str | None, label_column: str | None, name: str) -> None:
    import pyarrow.types as kinds

    image = schema.field(image_column).type if image_column else None
    if image is None or not kinds.is_struct(image) or image.get_field_index("bytes") < 0:
        raise ImageError(
            f"{name}: no column {image_column or 'image'!r} of struct<bytes, path>, as Hugging Face lays images out "
            f"(say which with image=...); its columns are: {printable(', '.join(schema.names))}"
        )
    content = image.field("bytes").type
    if not (kinds.is_binary(content) or kinds.is_large_binary(content)):  # text would be taken for a path
        raise ImageError(
            f"{name}: its 'bytes' are {content}, and binary was expected, as Hugging Face lays images out; convert them"
        )
    label = schema.field(label_column).type if label_column else None
    if label is not None and not (kinds.is_integer(label) or kinds.is_boolean(label) or kinds.is_null(label)):
        raise ImageError(
            f"{name}: its column {label_column!r} is {label}, and integers were expected: convert or drop it, or "
            "name another with label=..."
        )


def _stamp(path: Path) -> str:
    """Digest of a file's footer: where every column of every row group lies, how large, from what to what."""
    with path.open("rb") as opened:
        opened.seek(-8, os.SEEK_END)
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(-8 - length, os.SEEK_END)
        return hashlib.sha256(opened.read(length)).hexdigest()[:16]


def _labels(file: _File) -> np.ndarray:
    """(rows,) int64, without reading a picture."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.label:
        return np.full(sum(file.groups), UNLABELLED, dtype=np.int64)
    try:
        column = pq.read_table(file.path, columns=[file.label])[file.label]
        labels: np.ndarray = column.cast(pa.int64()).fill_null(UNLABELLED).to_numpy()
        return labels
    except Exception as error:
        why = f"its labels cannot be read ({one_line(error)}); replace the file"
        raise ImageError(f"{printable(file.path.name)}: {why}") from None
