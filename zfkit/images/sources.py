"""`load_images`: pictures by name. A source of pictures is one function under `@image_source`.

Here are the registry, folders and torchvision; `parquet`, `album` and `textures` register theirs.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ..checks import expect, one_of, whole_number
from ..errors import ImageError, ZfkitError, printable, unknown
from . import imageset
from .decode import MAX_PIXELS, OTHER_PICTURES, begins_as_picture, decode, one_line, to_rgb
from .imageset import UNLABELLED, ImageSet, Names, Skipped

SNIFFED = 10_000  # files with other suffixes whose first bytes are looked at; each has to be opened

# From the text after the colon, and the keywords size, split and root, to the pictures.
Opener = Callable[..., ImageSet]


class Source(NamedTuple):
    """What `load_images` knows of a source."""

    open: Opener
    rest: str  # what has to follow the colon, "PATH", or empty
    size: int  # default side in pixels


SOURCES: dict[str, Source] = {}


def image_source(name: str, size: int = 224) -> Callable[[Opener], Opener]:
    """Register a function as a source of pictures, which `load_images` then finds by name.

    The function is given the text after the colon and the keywords `size` (pixels), `split` ("val" or "train") and
    `root` (a folder or None), and returns an `ImageSet`.

    Args:
        name: what stands before the colon, or "NAME:WHAT" where something has to follow it.
        size: side in pixels of the pictures where the caller names none.

    >>> @image_source("noise:COUNT")
    ... def noise(rest, size, **options):
    ...     def read(i):                     # -> (RGB picture, label or -1)
    ...         return Image.effect_noise((size, size), 50).convert("RGB"), -1
    ...     return ImageSet(read, [f"noise {i}" for i in range(int(rest))], size=size)
    >>> load_images("noise:20")
    """

    def register(open_source: Opener) -> Opener:
        kind, _, rest = name.partition(":")
        SOURCES[kind] = Source(open_source, rest, size)
        return open_source

    return register


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
            Hugging Face image layout), ``"torchvision:NAME"`` (``"torchvision:CIFAR10"``), or one of your own
            (`zfkit.images.image_source`).
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
    if size is not None:
        whole_number(size, "size, in pixels,", 1, math.isqrt(MAX_PIXELS), ImageError)
    if limit is not None:
        whole_number(limit, "limit, in pictures,", error=ImageError)
    source = str(source)  # a Path would be a mistake, and gets the hint below
    kind, _, rest = source.partition(":")
    if kind not in SOURCES:
        names = [f"{name}:{s.rest}" if s.rest else name for name, s in SOURCES.items()]
        # os.path.exists is False, where Path.exists may raise, for names that no file can have.
        hint = f" For a folder of pictures say 'folder:{source}'." if os.path.exists(source) else ""  # noqa: PTH110
        raise ImageError(f"{unknown('image source', source, names)}.{hint}")
    if SOURCES[kind].rest and not rest:
        raise ImageError(f"{source!r} lacks what comes after the colon: '{kind}:{SOURCES[kind].rest}'")
    try:
        images = SOURCES[kind].open(rest, size=size or SOURCES[kind].size, split=split, root=root)
    except ZfkitError:
        raise
    except (ValueError, OSError, RuntimeError) as error:  # names that no file has: a NUL, too long, ~nobody
        raise ImageError(
            f"{printable(source)!r} cannot be read ({one_line(error)}); check the path"
        ) from error
    expect(images, ImageSet, f"what the image source {kind!r} returns", "as its class's help describes it")
    images.source = source
    if limit is not None:
        images.first(limit)
    if len(images) * 3 * images.size**2 <= imageset.IN_MEMORY_BYTES:
        images = images.in_memory(progress)
    return images


# --------------------------------------------------------------------------------------------------- folders


@image_source("folder:PATH")
def folder(path: str, size: int, **_: Any) -> ImageSet:
    """Every picture below a folder, in the order of their paths; first-level sub-folders are classes.

    Links to folders are followed, but each folder is read once, so that links in a circle come to an end.
    """
    top = Path(path).expanduser()
    if not top.exists():
        raise ImageError(f"there is no folder {path!r}; check the path (it is looked up from {Path.cwd()})")
    if not top.is_dir():
        raise ImageError(f"{path!r} is a file, and a folder was expected: say 'folder:{top.parent}'")
    skipped: list[Skipped] = []

    def leave_out(name: str, why: str) -> None:
        skipped.append(Skipped(name, f"{printable(name)}: {why}"))

    suffixes = Image.registered_extensions()
    files, others = [], 0
    for name in _files_below(top, leave_out):
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a million Path objects are slow)
        if suffix in suffixes:
            files.append(name)
            continue
        others += 1
        if suffix in OTHER_PICTURES:
            leave_out(name, f"a {suffix} file, which Pillow does not read by itself; convert it")
        elif others <= SNIFFED and begins_as_picture(os.path.join(top, name)):  # noqa: PTH118
            leave_out(name, "a picture, to judge by its content, without the suffix of one; rename it")
    if not files:
        what = f"{others} files, none with the suffix of a picture" if others else "it is empty"
        what += f" ({skipped[0].reason})" if skipped else ""
        raise ImageError(f"no pictures in folder {path!r}: {what} (.jpg, .png, .webp, .tif, .bmp, ...)")
    for one in skipped:
        warnings.warn(f"skipped {one.reason}", stacklevel=3)
    files.sort(key=lambda f: f.replace(os.sep, "\0"))  # as lists of their parts compare, without making them
    names = Names(files)
    parents = [f.partition(os.sep)[0] if os.sep in f else None for f in files]
    classes = sorted({p for p in parents if p is not None})
    label_of = {name: i for i, name in enumerate(classes)}
    labels = np.array([UNLABELLED if p is None else label_of[p] for p in parents], dtype=np.int32)

    def read(i: int) -> tuple[Image.Image, int]:
        return decode(top / names[i], names[i]), int(labels[i])

    def stamp() -> str:
        some = range(0, len(names), -(-len(names) // 1000))
        return " ".join(str(_size_of(top / names[i])) for i in some)

    return ImageSet(
        read, names, size=size, classes=classes, read_labels=lambda: labels, skipped=skipped, stamp=stamp
    )


def _files_below(top: Path, leave_out: Callable[[str, str], None]) -> Iterator[str]:
    """Paths, relative to `top`, of all files below it; folders that are not read are left out by name."""

    def unreadable(error: OSError) -> None:
        name = os.path.relpath(error.filename, top)
        leave_out(name, f"a folder that may not be read ({error.strerror})")

    seen = {_identity(top)}
    for here, below, files in os.walk(top, onerror=unreadable, followlinks=True):
        inside = os.path.relpath(here, top)
        prefix = "" if inside == "." else inside + os.sep
        below.sort()
        for name in list(below):
            identity = _identity(os.path.join(here, name))  # noqa: PTH118
            if identity in seen:
                below.remove(name)
                leave_out(prefix + name, "a link to a folder that is read already; remove it")
            seen.add(identity)
        yield from (prefix + file for file in sorted(files))


def _identity(folder: str | Path) -> tuple[int, int] | str:
    """Key that is equal for two paths of one folder."""
    try:
        status = os.stat(folder)  # noqa: PTH116
    except OSError:
        return str(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def _size_of(file: Path) -> int:
    """In bytes; -1 where it cannot be found out."""
    try:
        return file.stat().st_size
    except (OSError, ValueError):
        return -1


# ----------------------------------------------------------------------------------------------- torchvision

# What data sets of torchvision call the two splits; the first that one accepts is taken.
SPLITS = {"train": ("train", "training", "trainval"), "val": ("val", "valid", "test", "testing")}


@image_source("torchvision:NAME")
def torchvision(name: str, size: int, split: str, root: str | Path | None) -> ImageSet:
    """A data set of torchvision by class name, downloaded on first use."""
    one_of(split, "split", SPLITS, ImageError)
    cache = Path(root).expanduser() if root else Path.home() / ".cache" / "zfkit" / "torchvision"
    dataset = _open_dataset(name, split, cache)
    # FakeData draws a picture by reseeding torch's global generator, which threads would do all at once.
    alone = threading.Lock() if name == "FakeData" else contextlib.nullcontext()

    def read(i: int) -> tuple[Image.Image, int]:
        try:
            with alone:
                picture, *rest = dataset[i]
            if isinstance(picture, Tensor | np.ndarray):
                picture = Image.fromarray(np.asarray(picture, dtype=np.uint8))
            label = rest[0] if rest and isinstance(rest[0], int) else UNLABELLED
            return to_rgb(picture), label
        except Exception as error:
            why = f"torchvision could not read it ({one_line(error)}); replace it in {cache}"
            raise ImageError(f"{name} {split} {i}: {why}") from None

    names = Names([f"{name} {split} {i}" for i in range(len(dataset))])
    classes = [str(c) for c in getattr(dataset, "classes", getattr(dataset, "categories", ()))]
    targets = getattr(dataset, "targets", None)  # most data sets of torchvision know their labels at once
    known = isinstance(targets, Sequence | Tensor | np.ndarray) and len(targets) == len(names)
    read_labels = (lambda: np.asarray(targets)) if known else None
    return ImageSet(read, names, size=size, classes=classes, read_labels=read_labels)


def _open_dataset(name: str, split: str, root: Path) -> Any:
    from torchvision import datasets

    kinds = [n for n in datasets.__all__ if isinstance(getattr(datasets, n), type)]
    if name not in kinds:
        raise ImageError(unknown("torchvision data set", name, kinds))
    dataset = getattr(datasets, name)
    accepted = inspect.signature(dataset).parameters
    common = {k: v for k, v in {"root": str(root), "download": True}.items() if k in accepted}
    options: list[dict[str, Any]] = [{}]
    if "train" in accepted:
        options = [{"train": split == "train"}]
    elif "split" in accepted:
        options = [{"split": s} for s in SPLITS[split]]
    refusals = []
    for option in options:
        try:
            return dataset(**common, **option)
        except ValueError as error:  # this data set calls its splits otherwise
            refusals.append(error)
        except Exception as error:
            raise ImageError(
                f"torchvision could not provide {name} ({type(error).__name__}: {error}); "
                f"check the connection, or put the data into {root}"
            ) from None
    raise ImageError(f"torchvision's {name} has no {split} split that zfkit recognises ({refusals[0]})")
