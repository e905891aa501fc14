"""Checksums: what was read is what was written, and what is at hand is what it was.

`digest` of anything; `sealed` and `read_sealed` for files of tensors, `write_kept` and `read_kept` for those in the
cache, `write_table` and `read_table` for tables.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .errors import ZfkitError, printable
from .files import limit_cache, write_whole

if TYPE_CHECKING:
    import pyarrow as pa

MOST_VALUES = 2**24  # of a column of a table, or bytes of its texts; held as Python's own, some 32 bytes each
CHECKSUM = "zfkit checksum"  # its key among the metadata of safetensors and Parquet files


def digest(parts: Iterable[str | bytes | Tensor]) -> str:
    """32 hex digits of texts, bytes and tensors (their bytes, type and shape); no two lists of parts look alike."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            kind = f"{part.dtype} {tuple(part.shape)}"
            content = _short(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        elif isinstance(part, str):
            kind, content = "text", part.encode("utf-8", "surrogateescape")
        else:
            kind, content = "bytes", part
        hashed.update(f"{kind} {len(content)}:".encode())
        hashed.update(content)
    return hashed.hexdigest()


_WORDS = 4096
_FACTORS = np.random.PCG64(0).random_raw(_WORDS) | 1  # odd: a word that changes changes the product


def _short(content: np.ndarray) -> bytes:
    """A few bytes that change with those of a long array, at the speed of memory, where a hash takes ten times as long.

    For each 4,096 words of 8 bytes their sum times odd factors, modulo 2^64. As the highest bits of two words may
    cancel, all is added up again with words that begin 4 bytes later. That tells what chance changes, not an enemy.
    """
    count = (len(content) - 4) // (8 * _WORDS)
    if count < 1:
        return content.tobytes()
    long = 8 * _WORDS * count
    words = (content[start : start + long].view(np.uint64).reshape(count, _WORDS) for start in (0, 4))
    sums = [np.einsum("rw,w->r", part, _FACTORS).tobytes() for part in words]
    return b"".join([*sums, content[long:].tobytes()])


def sealed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a safetensors file with a checksum of all that is in it, which `read_sealed` looks at."""
    texts = [text for item in sorted(metadata.items()) for text in item]
    parts = (part for name in sorted(tensors) for part in (name, tensors[name]))
    return {**metadata, CHECKSUM: digest(itertools.chain(texts, parts))}


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that was written with `sealed` metadata.

    Raises ZfkitError for any other file, and for one that has changed since, be it in a single bit.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        why = printable(" ".join(str(error).split()))
        raise ZfkitError(f"{printable(path.name)} cannot be read ({why})") from None
    checksum = metadata.pop(CHECKSUM, None)
    if checksum != sealed(tensors, metadata)[CHECKSUM]:
        raise _changed(path)
    return tensors, metadata


KEY = "key"  # its name among the metadata: what the content belongs to
MOST = 4 * 10**9  # bytes in zfkit's cache, from where on what was not used for the longest is deleted
EVERY = 50  # files, between two looks at how much there is
_written = itertools.count()

Content = Mapping[str, "Tensor | bytes"]


def read_kept(file: Path, key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and words that `write_kept` wrote under this key; None where there are none, or not as they were."""
    with suppress(ZfkitError, OSError):
        if file.is_file():
            tensors, words = read_sealed(file)
            if words.get(KEY) == key:
                return tensors, words
    return None


def write_kept(file: Path, key: str, content: Content, words: Mapping[str, str]) -> None:
    """Write tensors, bytes and words with their key; where there is no room or right to, nothing happens."""
    from safetensors.torch import save_file

    tensors = {
        name: torch.frombuffer(bytearray(value), dtype=torch.uint8) if isinstance(value, bytes) else value
        for name, value in content.items()
    }
    metadata = sealed(tensors, {**words, KEY: key})
    with suppress(OSError):
        write_whole(file, lambda part: save_file(tensors, part, metadata))
        if next(_written) % EVERY == 0:
            limit_cache(MOST)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as Parquet, whole or not at all, with a checksum of its content and metadata."""
    import pyarrow.parquet as pq

    metadata = {**(table.schema.metadata or {}), CHECKSUM.encode(): _of_table(table).encode()}
    write_whole(path, lambda part: pq.write_table(table.replace_schema_metadata(metadata), part))


def read_table(path: Path, unsealed: bool = False) -> pa.Table:
    """A table that `write_table` wrote; with `unsealed`, also one without a checksum.

    Raises ZfkitError for any other file, and for one that has changed since.
    """
    try:
        table = _read_small(path)
    except Exception as error:  # Arrow raises all sorts on damaged files
        why = (str(error).strip().rstrip(".").splitlines() or [type(error).__name__])[0]
        raise ZfkitError(f"{printable(path.name)} is no readable Parquet file ({printable(why)})") from None
    checksum = (table.schema.metadata or {}).get(CHECKSUM.encode())
    if checksum != _of_table(table).encode() and not (unsealed and checksum is None):
        raise _changed(path)
    return table


def _read_small(path: Path) -> pa.Table:
    """A table of at most MOST_VALUES in each column; ValueError for a larger one, before it is unpacked.

    Parquet packs what is repeated into a few bytes: its footer says how many values there are, and texts are read as
    places in a dictionary until their length is known. Opened once: another process may replace the file meanwhile.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sizes: Counter[str] = Counter()
    with pa.OSFile(str(path)) as opened:
        file = pq.ParquetFile(opened)
        leaves = [file.schema.column(i) for i in range(len(file.schema))]
        for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
            for i, leaf in enumerate(leaves):
                column = group.column(i)
                values = column.num_values * max(1, leaf.length)
                sizes[leaf.path] += max(values, column.total_uncompressed_size // 16)
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        schema = file.schema_arrow
        _expect_few(sizes)
        _expect_plain(schema)
        table = pq.ParquetFile(opened, read_dictionary=texts).read()
    for name, column in zip(table.column_names, table.columns, strict=True):
        for values in column.chunks:
            while pa.types.is_list(values.type):
                values = values.flatten()
            if pa.types.is_dictionary(values.type):
                sizes[name] += bytes_of(values)
    _expect_few(sizes)
    return table.cast(schema)


def _expect_plain(schema: pa.Schema) -> None:
    """Raise ValueError for columns that zfkit does not write, whose texts nobody would count."""
    import pyarrow as pa

    for field in schema:
        kind = field.type
        while pa.types.is_list(kind):
            kind = kind.value_type
        if pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType) or str(kind).endswith("_view"):
            raise ValueError(
                f"its column {field.name!r} holds {kind}, and only values and lists of them are read"
            )


def _expect_few(sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        if size > MOST_VALUES:
            raise ValueError(
                f"its column {name!r} unpacks to {size:,} values, and at most {MOST_VALUES:,} are read"
            )


def bytes_of(values: pa.Array) -> int:
    """Of all texts of an array, or strings of bytes, possibly places in a dictionary."""
    import pyarrow as pa
    import pyarrow.compute as pc

    places = isinstance(values, pa.DictionaryArray)
    lengths = pc.binary_length(values.dictionary).take(values.indices) if places else pc.binary_length(values)
    return int(pc.sum(lengths.cast(pa.int64())).as_py() or 0)


def _of_table(table: pa.Table) -> str:
    metadata = sorted(item for item in (table.schema.metadata or {}).items() if item[0] != CHECKSUM.encode())
    columns = ((name, repr(table[i].to_pylist())) for i, name in enumerate(table.column_names))
    return digest(itertools.chain(*metadata, *columns))


def _changed(path: Path) -> ZfkitError:
    return ZfkitError(
        f"{printable(path.name)} is not as zfkit wrote it: a disk, a copy or an editor has changed it"
    )
