"""`load_images`: folders, Parquet files, torchvision data sets, photographs and textures."""

from __future__ import annotations

import contextlib
import glob as globbing
import hashlib
import json
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ImageError, ZfkitError, printable, unknown
from . import textures
from .album import _photos
from .decode import MAX_PIXELS, OTHER_PICTURES, SNIFFED, _begins_as_picture, _one_line, decode, to_rgb
from .imageset import BLOCKS_KEPT, IN_MEMORY_BYTES, UNLABELLED, ImageSet, Skipped, Windows

MOST_ROWS = 10**10  # in a Parquet file; a footer that tells of more is damaged


def load_images(
    source: str = "photos",
    *,
    size: int | None = None,
    limit: int | None = None,
    root: str | Path | None = None,
    split: str = "val",
    progress: bool = True,
) -> ImageSet:
    """Pictures by name: smallest side resized to `size`, centre crop, upright uint8 RGB.

    Args:
        source: ``"photos"`` (bundled: windows of 17 photographs at several scales), ``"textures"`` (drawn:
            16 labelled classes with their `truth`; ``"textures:no-middle"`` leaves out the band from 1/12 to
            1/3 cycles/pixel, ``"textures:seed=3"`` draws others, a comma joins the two),
            ``"folder:PATH"`` (sub-folders are classes), ``"parquet:PATH"`` (a file, folder or glob in the
            Hugging Face image layout) or ``"torchvision:NAME"`` (``"torchvision:CIFAR10"``).
        size: side in pixels; default 224, for textures 64.
        limit: only the first so many.
        root: where torchvision keeps its data; default ``~/.cache/zfkit``.
        split: ``"val"`` or ``"train"``, for textures and for torchvision data sets that are divided.
        progress: show a bar while reading.

    Sets up to 1 GiB are decoded at once; pictures that cannot be read are warned about by name, left out,
    and listed in ``.skipped``. Larger sets are streamed, and leave such pictures out on the way.

    Raises ImageError for a source that does not exist or holds no picture.

    >>> photos = load_images("photos")
    >>> pixels, label = photos[3]          # uint8 (3, 224, 224), -1
    """
    if size is not None and (type(size) is not int or size < 1):
        raise ImageError(f"size must be at least 1 pixel, not {size!r}")
    if size is not None and size**2 > MAX_PIXELS:
        raise ImageError(f"size must be at most {int(MAX_PIXELS**0.5):,} pixels, not {size:,}")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ImageError(f"limit must be at least 1 picture or None, not {limit!r}")
    source = str(source)  # a Path would be a mistake, and gets the hint below
    kind, _, rest = source.partition(":")
    size = size or (64 if kind == "textures" else 224)
    openers: dict[str, Callable[[], ImageSet]] = {
        "photos": lambda: _photos(size),
        "textures": lambda: _textures(rest, size, split),
        "folder": lambda: _folder(rest, size),
        "parquet": lambda: _parquet(rest, size),
        "torchvision": lambda: _torchvision(rest, size, root, split),
    }
    if kind not in openers:
        names = ["photos", "textures", "folder:PATH", "parquet:PATH", "torchvision:NAME"]
        hint = f" For a folder of pictures say 'folder:{source}'." if os.path.exists(source) else ""  # noqa: PTH110 (False also for names that no file can have)
        raise ImageError(unknown("image source", source, names) + "." + hint)
    if kind not in ("photos", "textures") and not rest:
        raise ImageError(f"{source!r} lacks what comes after the colon, as in 'folder:my/pictures'")
    try:
        images = openers[kind]()
    except ZfkitError:
        raise
    except (ValueError, OSError, RuntimeError) as error:  # names that no file has: a NUL, too long, ~nobody
        raise ImageError(
            f"{printable(source)!r} cannot be read ({_one_line(error)}); check the path"
        ) from error
    for skipped in images.skipped if kind == "folder" else ():
        warnings.warn(f"skipped {skipped.reason}", stacklevel=2)
    images.source = source
    if limit is not None and limit < len(images):
        images._names = images._names[:limit]
        if images.windows:
            images.windows = Windows(*(w[:limit] for w in images.windows))
    if len(images) * 3 * size * size <= IN_MEMORY_BYTES:
        images = images.in_memory(progress)
    return images


def _textures(spec: str, size: int, split: str) -> ImageSet:
    """A split of the drawn textures; the classes follow one another in turn."""
    options = textures.Options.parse(spec)
    seed, middle, classes = options.seed, options.middle, textures.CLASSES
    textures.truth(0, split, size=size)  # says at once that a split or size will not do

    def read(i: int) -> tuple[Image.Image, int]:
        picture, label, _ = textures.draw(i, split, size=size, seed=seed, middle=middle)
        return Image.fromarray(picture), label

    def truth(i: int) -> tuple[Any, ...]:
        return (
            classes[i % len(classes)],
            *textures.truth(i, split, size=size, seed=seed, middle=middle),
        )

    count = textures.SPLITS[split]
    labels = np.arange(count) % len(classes)
    names = [f"{options} {split} {i}: {classes[i % len(classes)]}" for i in range(count)]
    return ImageSet(read, names, size=size, classes=classes, read_labels=lambda: labels, truth=truth)


class Names(Sequence[str]):
    """Names as one run of bytes: 1.28 million paths take some 60 MB, and processes that fork share them."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._ends = np.cumsum([len(e) for e in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int | slice) -> Any:
        if isinstance(i, slice):
            return Names([self[j] for j in range(*i.indices(len(self)))])
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        start = int(self._ends[i - 1]) if i else 0
        return self._bytes[start : int(self._ends[i])].decode("utf-8", "surrogateescape")


class RowNames(Sequence[str]):
    """Names of rows, "file row 17", made up when asked for: a few bytes for each file, none for its rows."""

    def __init__(self, files: Sequence[str], rows: Sequence[int]) -> None:
        self._files = list(files)
        self._ends = np.cumsum(rows, dtype=np.int64)
        self._count = int(self._ends[-1]) if len(self._files) else 0

    def __len__(self) -> int:
        return self._count

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


def _folder(path: str, size: int) -> ImageSet:
    """Every picture below a folder, in the order of their paths; first-level sub-folders are classes.

    Links to folders are followed, but each folder is read once, so that links in a circle come to an end.
    """
    top = Path(path).expanduser()
    if not top.exists():
        raise ImageError(f"there is no folder {path!r}; check the path (it is looked up from {Path.cwd()})")
    if not top.is_dir():
        raise ImageError(f"{path!r} is a file, and a folder was expected: say 'folder:{top.parent}'")
    suffixes = Image.registered_extensions()
    files, others = [], 0
    skipped: list[Skipped] = []

    def left_out(name: str, why: str) -> None:
        skipped.append(Skipped(name, f"{printable(name)}: {why}"))

    def unreadable(error: OSError) -> None:
        left_out(os.path.relpath(error.filename, top), f"a folder that may not be read ({error.strerror})")

    seen = {_identity(top)}
    for folder, below, here in os.walk(top, onerror=unreadable, followlinks=True):
        inside = os.path.relpath(folder, top)
        prefix = "" if inside == "." else inside + os.sep
        below.sort()
        for name in list(below):
            identity = _identity(os.path.join(folder, name))  # noqa: PTH118
            if identity in seen:
                below.remove(name)
                left_out(prefix + name, "a link to a folder that is read already; remove it")
            seen.add(identity)
        for file in sorted(here):
            suffix = os.path.splitext(file)[1].lower()  # noqa: PTH122 (a million Path objects are slow)
            if suffix in suffixes:
                files.append(prefix + file)
                continue
            others += 1
            if suffix in OTHER_PICTURES:
                left_out(prefix + file, f"a {suffix} file, which Pillow does not read by itself; convert it")
            elif others <= SNIFFED and _begins_as_picture(os.path.join(folder, file)):  # noqa: PTH118
                left_out(
                    prefix + file, "a picture, to judge by its content, without the suffix of one; rename it"
                )
    if not files:
        found = f"{others} files, none with the suffix of a picture" if others else "it is empty"
        found += f" ({skipped[0].reason})" if skipped else ""
        raise ImageError(f"no pictures in folder {path!r}: {found} (.jpg, .png, .webp, .tif, .bmp, ...)")
    files.sort(key=lambda f: f.replace(os.sep, "\0"))  # as lists of their parts compare, without making them
    first = [f.partition(os.sep)[0] if os.sep in f else None for f in files]
    classes = sorted({f for f in first if f is not None})
    place = {name: i for i, name in enumerate(classes)}
    labels = np.array([UNLABELLED if f is None else place[f] for f in first], dtype=np.int32)
    names = Names(files)

    def read(i: int) -> tuple[Image.Image, int]:
        return decode(top / names[i], names[i]), int(labels[i])

    def stamp() -> str:
        return " ".join(str(_bytes_of(top / names[i])) for i in range(0, len(names), -(-len(names) // 1000)))

    return ImageSet(
        read, names, size=size, classes=classes, read_labels=lambda: labels, skipped=skipped, stamp=stamp
    )


def _identity(folder: str | Path) -> tuple[int, int] | str:
    """What two names of one folder have in common."""
    try:
        told = os.stat(folder)  # noqa: PTH116
    except OSError:
        return str(folder)
    return (told.st_dev, told.st_ino) if told.st_ino else os.path.realpath(folder)


def _bytes_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except (OSError, ValueError):
        return -1


def _parquet(path: str, size: int) -> ImageSet:
    """Rows of Parquet files in the Hugging Face image layout: image struct<bytes, path>, label int."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = Path(path).expanduser()
    files = (
        sorted(place.glob("*.parquet"))
        if place.is_dir()
        else [Path(f) for f in sorted(globbing.glob(str(place)))]
    )
    if not files:
        raise ImageError(f"no Parquet file at {path!r}; check the path or glob (looked up from {Path.cwd()})")
    common = Path(os.path.commonpath([f.parent for f in files]))
    spans: list[tuple[int, int, int]] = []  # file, row group, first place
    rows_of: list[int] = []  # rows of each file
    labelled: list[bool] = []
    classes: list[str] = []
    stamps: list[str] = []
    count = 0
    for f, file in enumerate(files):
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise ImageError(f"{printable(file.name)}: a pipe, socket or device, not a Parquet file")
        try:
            parquet = pq.ParquetFile(file)
            schema = parquet.schema_arrow
        except Exception as error:  # Arrow raises all sorts on damaged files
            raise ImageError(
                f"{printable(file.name)}: not a readable Parquet file ({_one_line(error)}); replace it"
            ) from None
        column = schema.field("image").type if schema.names.count("image") == 1 else None
        if column is None or not pa.types.is_struct(column) or column.get_field_index("bytes") < 0:
            raise ImageError(
                f"{printable(file.name)}: no column 'image' of struct<bytes, path>, as Hugging Face lays images out; "
                f"its columns are: {printable(', '.join(schema.names))}"
            )
        content = column.field("bytes").type
        if not (
            pa.types.is_binary(content) or pa.types.is_large_binary(content)
        ):  # text would be taken for a path
            raise ImageError(
                f"{printable(file.name)}: its 'bytes' are {content}, and binary was expected, as Hugging Face lays "
                "images out; convert them"
            )
        label = schema.field("label").type if schema.names.count("label") == 1 else pa.null()
        if not (pa.types.is_integer(label) or pa.types.is_boolean(label) or pa.types.is_null(label)):
            raise ImageError(
                f"{printable(file.name)}: its column 'label' is {label}, and integers were expected, places in a list "
                "of class names; convert or drop it"
            )
        classes = classes or _class_names(schema.metadata or {})
        labelled.append(schema.names.count("label") == 1)
        inside = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        if min(inside, default=0) < 0 or sum(inside) != parquet.metadata.num_rows or sum(inside) > MOST_ROWS:
            raise ImageError(
                f"{printable(file.name)}: not a readable Parquet file (its footer tells of "
                f"{parquet.metadata.num_rows:,} rows, its {len(inside)} row groups of {sum(inside):,}); replace it"
            )
        rows_of.append(sum(inside))
        for group, rows in enumerate(inside):
            spans.append((f, group, count))
            count += rows
        stamps.append(_footer(file))
        parquet.close()
    names = RowNames([str(file.relative_to(common)) for file in files], rows_of)
    starts = np.array([s[2] for s in spans], dtype=np.int64)
    groups: OrderedDict[int, tuple[list[bytes | None], list[int]] | str] = (
        OrderedDict()
    )  # str: why it cannot be read
    lock = threading.Lock()

    def read_labels() -> np.ndarray:
        parts = []
        for file, has, rows in zip(files, labelled, rows_of, strict=True):
            if not has:
                parts.append(np.full(rows, UNLABELLED, dtype=np.int64))
                continue
            try:
                column = pq.read_table(file, columns=["label"])["label"]
                parts.append(column.cast(pa.int64()).fill_null(UNLABELLED).to_numpy())
            except Exception as error:
                raise ImageError(
                    f"{printable(file.name)}: its labels cannot be read ({_one_line(error)}); replace the file"
                ) from None
        return np.concatenate(parts)

    def read(i: int) -> tuple[Image.Image, int]:
        g = int(np.searchsorted(starts, i, side="right")) - 1
        file, group, start = spans[g]
        with lock:
            if g not in groups:
                groups[g] = read_group(file, group)
                while len(groups) > BLOCKS_KEPT:
                    groups.popitem(last=False)
            groups.move_to_end(g)
            found = groups[g]
        if isinstance(found, str):
            raise ImageError(f"{printable(names[i])}: damaged Parquet row group ({found}); replace the file")
        data, labels = found
        if i - start >= len(data) or not data[i - start]:
            raise ImageError(f"{printable(names[i])}: the row holds no picture bytes; remove it")
        return decode(data[i - start] or b"", names[i]), labels[i - start]

    def read_group(file: int, group: int) -> tuple[list[bytes | None], list[int]] | str:
        columns = ["image", "label"] if labelled[file] else ["image"]
        try:  # opened each time: a file handle does not survive in the processes of a data loader
            with pq.ParquetFile(files[file]) as opened:
                table = opened.read_row_group(group, columns=columns, use_threads=False)
            data = table["image"].combine_chunks().field("bytes").to_pylist()
            if not labelled[file]:
                return data, [UNLABELLED] * len(data)
            return data, table["label"].cast(pa.int64()).fill_null(UNLABELLED).to_pylist()
        except Exception as error:  # Arrow raises all sorts on damaged files
            return _one_line(error)

    return ImageSet(
        read, names, size=size, classes=classes, blocks=torch.from_numpy(starts), read_labels=read_labels,
        stamp=lambda: " ".join(stamps),
    )  # fmt: skip


def _footer(file: Path) -> str:
    """Digest of a Parquet file's footer: where every column of every row group lies, how large, from what to what."""
    with file.open("rb") as opened:
        opened.seek(-8, os.SEEK_END)
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(-8 - length, os.SEEK_END)
        return hashlib.sha256(opened.read(length)).hexdigest()[:16]


def _class_names(metadata: dict[bytes, bytes]) -> list[str]:
    """Class names that Hugging Face's `datasets` leaves in a Parquet schema, or none."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return [str(n) for n in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def _torchvision(name: str, size: int, root: str | Path | None, split: str) -> ImageSet:
    """A data set of torchvision by class name, downloaded on first use."""
    import inspect

    from torchvision import datasets

    if split not in ("val", "train"):
        raise ImageError(f"split must be 'val' or 'train', not {split!r}")
    known = [n for n in datasets.__all__ if isinstance(getattr(datasets, n), type)]
    if name not in known:
        raise ImageError(unknown("torchvision data set", name, known))
    accepted = inspect.signature(getattr(datasets, name)).parameters
    folder = Path(root).expanduser() if root else Path.home() / ".cache" / "zfkit" / "torchvision"
    options: list[dict[str, Any]] = [{}]
    if "train" in accepted:
        options = [{"train": split == "train"}]
    elif "split" in accepted:
        wanted = (
            ["train", "training", "trainval"] if split == "train" else ["val", "valid", "test", "testing"]
        )
        options = [{"split": s} for s in wanted]
    for option in options:
        if "root" in accepted:
            option["root"] = str(folder)
        if "download" in accepted:
            option["download"] = True
    failure: Exception | None = None
    for option in options:
        try:
            dataset = getattr(datasets, name)(**option)
            break
        except ValueError as error:  # this data set calls its splits otherwise
            failure = failure or error
        except Exception as error:
            raise ImageError(
                f"torchvision could not provide {name} ({type(error).__name__}: {error}); "
                f"check the connection, or put the data into {folder}"
            ) from None
    else:
        raise ImageError(f"torchvision's {name} has no {split} split that zfkit recognises ({failure})")

    # FakeData draws a picture by reseeding torch's global generator, which threads would do all at once.
    alone = threading.Lock() if name == "FakeData" else contextlib.nullcontext()

    def read(i: int) -> tuple[Image.Image, int]:
        try:
            with alone:
                sample = dataset[i]
        except Exception as error:
            raise ImageError(
                f"{name} {split} {i}: torchvision could not read it ({_one_line(error)}); replace it in {folder}"
            ) from None
        picture, label = sample[0], sample[1] if len(sample) > 1 else UNLABELLED
        if isinstance(picture, Tensor | np.ndarray):
            picture = Image.fromarray(np.asarray(picture, dtype=np.uint8))
        return to_rgb(picture, f"{name} {split} {i}"), label if isinstance(label, int) else UNLABELLED

    names = Names([f"{name} {split} {i}" for i in range(len(dataset))])
    classes = [str(c) for c in getattr(dataset, "classes", getattr(dataset, "categories", ()))]
    targets = getattr(dataset, "targets", None)  # most data sets of torchvision know their labels at once
    told = isinstance(targets, Sequence | Tensor | np.ndarray) and len(targets) == len(names)
    return ImageSet(
        read, names, size=size, classes=classes, read_labels=(lambda: np.asarray(targets)) if told else None
    )
