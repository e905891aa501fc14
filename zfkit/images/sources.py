"""`load_images`: pictures by name. A source of pictures is one function under `@image_source`.

Here are the registry, folders and torchvision; `parquet`, `album` and `textures` register theirs.
"""

from __future__ import annotations

import inspect
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..checks import Size, expect, one_of, whole_number
from ..errors import ImageError, ZfkitError, printable, unknown
from ..files import cache_folder
from .caching import CachedReads
from .decode import OTHER_PICTURES, begins_as_picture, decode, one_line
from .given import Files, data_set
from .imageset import UNLABELLED, ImageSet, Names, Skipped, check_size
from .values import Range, Remarks, check_range

SNIFFED = 10_000  # files with other suffixes whose first bytes are looked at; each has to be opened

# What folders and data sets of torchvision call the two splits; the first that there is is taken.
SPLITS = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "test", "testing"),
}
# Names of folders, no classes.
PICTURES = ("images", "image", "imgs", "img", "jpegimages", "pictures", "photos")
BESIDE = ("annotations", "labels", "masks", "")  # what lies beside them

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

    The function is given the text after the colon and the keywords `size` (a side in pixels, or height and width),
    `split` ("val" or "train") and `root` (a folder or None), further ones of `load_images` where they are not None, and
    returns an `ImageSet`.

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
    size: Size | None = None,
    limit: int | None = None,
    root: str | Path | None = None,
    split: str = "val",
    value_range: Range | None = None,
    image: str | None = None,
    label: str | None = None,
    progress: bool = True,
) -> ImageSet:
    """Pictures by name: smallest side resized to `size`, centre crop, upright uint8 RGB.

    Args:
        source: ``"photos"`` (bundled: 1,090 windows of 220 photographs at two scales, labelled by subject),
            ``"photos-small"`` (each once, its centre square; both keep pixels in the cache), ``"textures"`` (drawn:
            16 labelled classes with their `truth`; ``"textures:no-middle"`` leaves out the band from 1/12 to
            1/3 cycles/pixel, ``"textures:seed=3"`` draws others, a comma joins the two),
            ``"folder:PATH"`` (sub-folders are classes), ``"parquet:PATH"`` (a file, folder or glob in the
            Hugging Face image layout), ``"torchvision:NAME"`` (``"torchvision:CIFAR10"``), or one of your own
            (`zfkit.images.image_source`).
        size: side in pixels, or (height, width); default 224, for textures 64.
        limit: only the first so many.
        root: where torchvision keeps its data; default in zfkit's cache (`zfkit cache` says where).
        split: ``"val"`` or ``"train"``, for textures, and for torchvision data sets and folders that are divided.
        value_range: which values of grey pictures of more than 8 bits become black and white, as ``(0, 4095)`` for 12
            bits in 16; default 0 to 65535, unless the file states another.
        image, label: columns of Parquet; default "image", "img" or "picture", and "label", "labels" or "fine_label".
        progress: show a bar while reading.

    Sets up to 1 GiB are decoded at once; pictures that cannot be read are warned about by name, left out,
    and listed in ``.skipped``. Larger sets are streamed, and leave such pictures out on the way.

    Raises ImageError for a source that does not exist or holds no picture.

    >>> photos = load_images("photos")
    >>> pixels, label = photos[3]          # uint8 (3, 224, 224), -1
    """
    size = None if size is None else check_size(size)
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
    options: dict[str, Any] = {"image": image, "label": label}
    options["value_range"] = None if value_range is None else check_range(value_range)
    options = {name: value for name, value in options.items() if value is not None}
    accepted = inspect.signature(SOURCES[kind].open).parameters
    if strange := [name for name in options if name not in accepted and "options" not in accepted]:
        raise ImageError(f"{strange[0]} says nothing about {source!r}; leave it out")
    try:
        images = SOURCES[kind].open(rest, size=size or SOURCES[kind].size, split=split, root=root, **options)
    except ZfkitError:
        raise
    except (ValueError, OSError, RuntimeError) as error:  # names that no file has: a NUL, too long, ~nobody
        raise ImageError(f"cannot read {printable(source)!r} ({one_line(error)}); check the path") from error
    expect(images, ImageSet, f"what the image source {kind!r} returns", "as its class's help describes it")
    images.source = source
    if limit is not None:
        images.first(limit)
    images = images.in_memory(progress) if images.fits_memory else images
    given = {"size": size, "limit": limit, "root": root and str(root)}
    given["split"] = None if split == "val" else split
    said = [f", {name}={value!r}" for name, value in (given | options).items() if value is not None]
    images.loaded = f"zfkit.load_images({json.dumps(source)}{''.join(said)})"
    return images


# --------------------------------------------------------------------------------------------------- folders


@image_source("folder:PATH")
def folder(path: str, size: Size, split: str, value_range: Range | None = None, **_: Any) -> ImageSet:
    """Every picture below a folder, in the order of their paths; first-level sub-folders are classes.

    Hidden folders and files are left out. Of a folder divided into train and val (or test) the split is read; the
    folder "images" is none of the classes, what lies in it is read. Both are said.

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

    top = _root_of_classes(top, split)
    files, others = _pictures_below(top, leave_out)
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
    remarks, on_disk = Remarks(), Files(names, top)

    def read(i: int) -> tuple[Image.Image, int]:
        picture = decode(top / names[i], names[i], value_range, remarks)
        on_disk.check(i)
        return picture, int(labels[i])

    return ImageSet(
        read, names, size=size, classes=classes, read_labels=lambda: labels, skipped=skipped,
        stamp=on_disk.stamp, remarks=remarks,
    )  # fmt: skip


def _pictures_below(top: Path, leave_out: Callable[[str, str], None]) -> tuple[list[str], int]:
    """Paths, relative to `top`, of all files with the suffix of a picture; and how many others there are."""
    suffixes = Image.registered_extensions()
    files, others = [], 0
    hidden: list[str] = []
    for name in _files_below(top, leave_out, hidden):
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a million Path objects are slow)
        if suffix in suffixes:
            files.append(name)
            continue
        others += 1
        if suffix in OTHER_PICTURES:
            leave_out(name, f"a {suffix} file, which Pillow does not read by itself; convert it")
        elif others <= SNIFFED and begins_as_picture(os.path.join(top, name)):  # noqa: PTH118
            leave_out(name, "a picture, to judge by its content, without the suffix of one; rename it")
    if hidden:
        more = f" and {len(hidden) - 1} more" if len(hidden) > 1 else ""
        leave_out(hidden[0], f"hidden, or made by a system for itself{more}; rename what is to be read")
    return files, others


def _is_hidden(name: str) -> bool:
    """What editors, macOS and network drives leave in folders, and nobody sees."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN")


def _root_of_classes(top: Path, split: str) -> Path:
    """The folder whose sub-folders are classes: `top`, or one in it where its sub-folders are splits, or "images"."""
    try:
        inside = sorted(p for p in top.iterdir() if not _is_hidden(p.name))
        below = [p.name for p in inside if p.is_dir()]
    except OSError:  # said later, by name
        return top
    # "train2017" and "val2017" are COCO's.
    kinds = {name: name.casefold().rstrip("0123456789") for name in below}
    chosen = {s: next((n for w in words for n in below if kinds[n] == w), "") for s, words in SPLITS.items()}
    strange = set(kinds.values()) - set(BESIDE)  # what could be classes
    where = printable(str(top))
    if chosen["train"] and chosen["val"] and strange <= {w for words in SPLITS.values() for w in words}:
        one = chosen[one_of(split, "split", SPLITS, ImageError)]
        other = "train" if split == "val" else "val"
        why = f"{where} is divided: {one!r} is read; say split={other!r} for {chosen[other]!r}"
    elif strange and strange <= set(PICTURES):
        one = next(name for name in below if kinds[name] in PICTURES)
        why = f"{one!r} in {where} is not taken for a class; folders in it are"
        if tables := [p.name for p in inside if p.suffix in (".csv", ".json", ".txt")]:
            unread = printable(", ".join(tables))
            why += f", and {unread} not read: ImageSet.of(paths, labels=...) takes labels"
    else:
        return top
    warnings.warn(why, stacklevel=4)
    return _root_of_classes(top / one, split)


def _files_below(top: Path, leave_out: Callable[[str, str], None], hidden: list[str]) -> Iterator[str]:
    """Paths, relative to `top`, of all files below it; folders that are not read are left out by name.

    Hidden folders and files are added to `hidden`, unless they are no pictures.
    """

    def unreadable(error: OSError) -> None:
        name = os.path.relpath(error.filename, top)
        leave_out(name, f"a folder that may not be read ({error.strerror})")

    seen = {_identity(top)}
    for here, below, files in os.walk(top, onerror=unreadable, followlinks=True):
        inside = os.path.relpath(here, top)
        prefix = "" if inside == "." else inside + os.sep
        below.sort()
        for name in filter(_is_hidden, list(below)):
            below.remove(name)
            hidden.append(prefix + name)
        for name in list(below):
            identity = _identity(os.path.join(here, name))  # noqa: PTH118
            if identity in seen:
                below.remove(name)
                leave_out(prefix + name, "a link to a folder that is read already; remove it")
            seen.add(identity)
        for file in sorted(files):
            if not _is_hidden(file):
                yield prefix + file
            elif os.path.splitext(file)[1].lower() in Image.registered_extensions():  # noqa: PTH122
                hidden.append(prefix + file)


def _identity(folder: str | Path) -> tuple[int, int] | str:
    """Key that is equal for two paths of one folder."""
    try:
        status = os.stat(folder)  # noqa: PTH116
    except OSError:
        return str(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


# ----------------------------------------------------------------------------------------------- torchvision


# Those whose code was read: none unpickles what lies in its folder, but for CIFAR, which looks at the md5 before.
DATA_SETS = (
    "Caltech101", "Caltech256", "CelebA", "CIFAR10", "CIFAR100", "CLEVRClassification", "Country211", "DTD", "EMNIST",
    "EuroSAT", "FakeData", "FashionMNIST", "FER2013", "FGVCAircraft", "Flowers102", "Food101", "GTSRB", "ImageNet",
    "Imagenette", "INaturalist", "KMNIST", "LFWPeople", "MNIST", "Omniglot", "OxfordIIITPet", "PCAM", "Places365",
    "QMNIST", "RenderedSST2", "SBU", "SEMEION", "STL10", "StanfordCars", "SUN397", "SVHN", "USPS",
)  # fmt: skip


@image_source("torchvision:NAME")
def torchvision(
    name: str, size: Size, split: str, root: str | Path | None, value_range: Range | None = None
) -> ImageSet:
    """A data set of torchvision by class name, downloaded on first use."""
    one_of(split, "split", SPLITS, ImageError)
    cache = Path(root).expanduser() if root else cache_folder("torchvision")
    dataset = _open_dataset(name, split, cache)
    # FakeData draws a picture by reseeding torch's global generator, which threads would do all at once.
    alone = CachedReads(dataset.__getitem__, 1) if name == "FakeData" else None
    source = data_set(dataset, f"{name} {split}", value_range, alone)
    return ImageSet(
        source.read, Names(source.names), size=size, classes=source.classes, read_labels=source.read_labels,
        stamp=source.stamp or (lambda: f"{name} {split}"), remarks=source.remarks,
    )  # fmt: skip


def _open_dataset(name: str, split: str, root: Path) -> Any:
    from torchvision import datasets

    if name not in DATA_SETS and name in datasets.__all__:
        raise ImageError(
            f"torchvision's {name} is not read: it has no pictures with classes, or runs what lies in a folder. "
            f"There are: {', '.join(DATA_SETS)}"
        )
    dataset = getattr(datasets, one_of(name, "torchvision data set", DATA_SETS, ImageError))
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
