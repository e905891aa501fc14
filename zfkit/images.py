"""Where pictures come from: bundled photographs, drawn textures, a folder, Parquet or torchvision.

Whatever the source, an `ImageSet` hands over upright uint8 RGB pictures of one size, (3, S, S), with
labels and names. Small sets are decoded once and kept in memory, larger ones are streamed.
"""

from __future__ import annotations

import contextlib
import glob as globbing
import hashlib
import importlib.util
import io
import json
import os
import stat
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

from . import textures
from .errors import ImageError, ZfkitError, printable, unknown

if TYPE_CHECKING:
    import pandas as pd

IN_MEMORY_BYTES = 2**30  # sets up to this size are decoded once and kept
MAX_PIXELS = 100_000_000  # a 300 MB picture; beyond that a file is taken for a decompression bomb
BLOCKS_KEPT = 16  # row groups of Parquet that are held while their pictures are read in mixed order
UNLABELLED = -1
# Suffixes of pictures that Pillow reads with a plugin at most: they are named, not passed over in silence.
OTHER_PICTURES = frozenset(
    {".svg", ".svgz", ".heic", ".heif", ".hif", ".avif", ".jxl", ".jxr", ".exr", ".hdr", ".xcf", ".ai", ".raw",
     ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"}
)  # fmt: skip
MOST_ROWS = 10**10  # in a Parquet file; a footer that tells of more is damaged
SNIFFED = 10_000  # files with other suffixes whose first bytes are looked at; each has to be opened


class Batch(NamedTuple):
    """Consecutive pictures of a set; unreadable ones are left out."""

    indices: Tensor  # (n,) int64, places in the set
    pixels: Tensor  # (n, 3, S, S) uint8
    label: Tensor  # (n,) int64, -1 where there is none


class Skipped(NamedTuple):
    """A file or row that could not be used, and why."""

    name: str
    reason: str


class Windows(NamedTuple):
    """Which photograph each picture of a set was cut from, and where."""

    photograph: Tensor  # (N,) int64, non-decreasing
    box: Tensor  # (N, 4) float: left, top, right, bottom in pixels of the photograph

    def overlap(self, index: Sequence[int] | Tensor) -> Tensor:
        """(n, n) bool: do these windows share pixels of one photograph? (True on the diagonal.)"""
        index = torch.as_tensor(index)
        box, photograph = self.box[index], self.photograph[index]
        low = torch.maximum(box[:, None, :2], box[None, :, :2])
        high = torch.minimum(box[:, None, 2:], box[None, :, 2:])
        return (low < high).all(-1) & (photograph[:, None] == photograph[None])


Reader = Callable[[int], tuple[Image.Image, int]]  # place in the set -> (picture, label)


class ImageSet:
    """Ordered pictures of one size: uint8 RGB (3, S, S), with labels and names.

    Attributes:
        source: the text `load_images` was called with.
        size: S, the side in pixels.
        classes: class names; a label is a place in them.
        windows: for sets cut out of larger photographs, where each picture comes from; else None.
        blocks: (B,) first places of the runs of pictures that are stored, and read, together (row groups of
            Parquet); None where any picture is as quickly read as the next.
        skipped: what could not be read so far, as (name, reason).
        truth: for drawn sets, a table of what is known about each picture; else None.
    """

    def __init__(
        self,
        read: Reader,
        names: Sequence[str],
        *,
        size: int,
        source: str = "custom",
        classes: Sequence[str] = (),
        windows: Windows | None = None,
        skipped: Sequence[Skipped] = (),
        blocks: Tensor | None = None,
        read_labels: Callable[[], Sequence[int] | np.ndarray] | None = None,
        truth: Callable[[int], tuple[Any, ...]] | None = None,
        stamp: Callable[[], str] | None = None,
    ) -> None:
        self.source, self.size, self.classes = source, size, tuple(classes)
        self.windows, self.blocks = windows, blocks
        self._read_labels = read_labels
        self.skipped = list(skipped)
        self._read = read
        self._truth = truth  # place -> a row of `truth`
        self._stamp = stamp  # what the fingerprint takes in beside the names
        self._names = names
        self._pixels: Tensor | None = None  # (N, 3, S, S) uint8 once in memory
        self._labels: Tensor | None = None  # (N,) int64
        self._labels_read: Tensor | None = None  # the same, of a set that streams
        self._fingerprint: str | None = None
        self._reported: set[int] = set()  # places of unreadable pictures that are in `skipped`

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        kept = "in memory" if self._pixels is not None else "streamed"
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return f"ImageSet({self.source!r}: {len(self)} pictures of {self.size} px, {kept}{classes})"

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """Picture i as uint8 (3, S, S) and its label, -1 where there is none.

        Raises IndexError outside the set and ImageError where the file cannot be decoded.
        """
        i = self._place(i)
        if self._pixels is not None and self._labels is not None:
            return self._pixels[i], int(self._labels[i])
        return self._decode(i)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        """All pictures with their labels, in order. Raises as indexing does."""
        return (self[i] for i in range(len(self)))

    def name(self, i: int) -> str:
        """File name, row, or photograph with scale and place, of picture i."""
        return self._names[self._place(i)]

    @property
    def labels(self) -> Tensor | None:
        """(N,) int64 labels of a set in memory, -1 where there is none; None while streaming."""
        return self._labels

    def known_labels(self) -> Tensor | None:
        """(N,) int64 labels without decoding a picture, also while streaming; None where the source cannot tell."""
        if self._labels is None and self._read_labels is not None:
            labels = torch.as_tensor(np.asarray(self._read_labels(), dtype=np.int64))
            self._labels_read = labels[: len(self)]
            self._read_labels = None
        return self._labels if self._labels is not None else self._labels_read

    @property
    def truth(self) -> pd.DataFrame | None:
        """What is known about each picture of a drawn set, by place; None for pictures that were taken.

        Columns: class; frequency in cycles/pixel; orientation in radians, that of the wave vector, 0 being
        vertical stripes; phase in radians. NaN where a picture has none or several, see `textures.Truth`.
        """
        if self._truth is None:
            return None
        import pandas as pd

        rows = [self._truth(i) for i in range(len(self))]
        return pd.DataFrame(rows, columns=["class", "frequency", "orientation", "phase"])

    def take(self, index: Sequence[int] | Tensor) -> Tensor:
        """Pictures at these places, uint8 (n, 3, S, S). Raises as indexing does."""
        places = [self._place(int(i)) for i in index]
        if self._pixels is not None:
            return self._pixels[places]
        return torch.stack([self._decode(i)[0] for i in places])

    def batches(self, batch_size: int = 64, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Pictures start..stop in order, `batch_size` at a time, decoded ahead by threads.

        An unreadable picture is left out, warned about by name, and listed in `skipped`.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        spans = Spans(start, stop, batch_size)
        if self._pixels is not None and self._labels is not None:
            for span in spans:
                part = slice(span.start, span.stop)
                yield Batch(torch.arange(span.start, span.stop), self._pixels[part], self._labels[part])
            return
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            ahead: list[list[Future[tuple[Tensor, int]]]] = []
            for b, span in enumerate(spans):
                while len(ahead) < 2 and b + len(ahead) < len(spans):
                    ahead.append([pool.submit(self._decode, i) for i in spans[b + len(ahead)]])
                batch = self._gather(span, ahead.pop(0))
                if len(batch.indices):
                    yield batch

    def _gather(self, span: range, futures: list[Future[tuple[Tensor, int]]]) -> Batch:
        index, pixels, labels = [], [], []
        for i, future in zip(span, futures, strict=True):
            try:
                picture, label = future.result()
            except ImageError as error:
                if i not in self._reported:
                    self._reported.add(i)
                    self.skipped.append(Skipped(self._names[i], str(error)))
                    warnings.warn(f"skipped {error}", stacklevel=3)
                continue
            index.append(i)
            pixels.append(picture)
            labels.append(label)
        side = (3, self.size, self.size)
        stacked = torch.stack(pixels) if pixels else torch.empty((0, *side), dtype=torch.uint8)
        return Batch(torch.tensor(index, dtype=torch.long), stacked, torch.tensor(labels, dtype=torch.long))

    def in_memory(self, progress: bool = True) -> ImageSet:
        """The same set decoded once and kept, without its unreadable pictures (they are in `skipped`)."""
        shown = tqdm(
            total=len(self), desc=f"reading {self.source}", unit="img", disable=not progress, leave=False
        )
        with shown:
            batches = []
            for batch in self.batches(256):
                batches.append(batch)
                shown.update(len(batch.indices))
        if not batches:
            first = self.skipped[0].reason if self.skipped else "the source is empty"
            raise ImageError(f"none of the {len(self)} pictures of {self.source!r} can be read: {first}")
        kept = torch.cat([b.indices for b in batches])
        windows = Windows(*(w[kept] for w in self.windows)) if self.windows else None
        places, truth = kept.tolist(), self._truth
        names = [self._names[i] for i in places]
        loaded = ImageSet(
            self._read,
            names,
            size=self.size,
            source=self.source,
            classes=self.classes,
            windows=windows,
            skipped=self.skipped,
            truth=truth and (lambda i: truth(places[i])),
            stamp=self._stamp,
        )
        loaded._pixels = torch.cat([b.pixels for b in batches])
        loaded._labels = torch.cat([b.label for b in batches])
        return loaded

    def fingerprint(self) -> str:
        """16 hex digits that change with the set's names, order or size, and with what is cheap to know of its content.

        Of Parquet that are the files' footers, which hold the sizes and extremes of what is stored; of a folder
        the sizes of up to 1,000 of its files. It is no hash of every pixel.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256(f"{self.size} {len(self)}".encode())
            for name in self._names:
                digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
            if self._stamp is not None:
                digest.update(self._stamp().encode())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def _place(self, i: int) -> int:
        if not -len(self) <= i < len(self):
            raise IndexError(f"picture {i} of {self.source!r} does not exist: it holds {len(self)}")
        return i % len(self)

    def _decode(self, i: int) -> tuple[Tensor, int]:
        picture, label = self._read(i)
        return to_tensor(square(picture, self.size)), label


# ---------------------------------------------------------------------------------------------- decoding


def decode(file: str | Path | IO[bytes] | bytes, name: str = "") -> Image.Image:
    """Any picture file as an upright RGB `PIL.Image`: EXIF turned, alpha over white, 16 bit scaled to 8.

    Of an animation or of several pages, the first. Raises ImageError, naming the file, for what cannot be decoded,
    for what is no ordinary file (a pipe would be waited for without end), and for PostScript (a program).
    """
    name = printable(name or (str(file) if isinstance(file, str | Path) else "picture"))
    if isinstance(file, str | Path):
        _check_is_file(file, name)
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ImageError(
                    f"{name}: {opened.width} x {opened.height} pixels are more than {MAX_PIXELS:,}; "
                    "make it smaller first"
                )
            if opened.format == "EPS":
                raise ImageError(
                    f"{name}: PostScript is a program that would have to be run; convert it to PNG first"
                )
            if opened.format in ("JPEG", "MPO") and not _has_end(opened.fp):
                raise ImageError(
                    f"{name}: damaged or truncated picture (no end marker: cut off or overwritten); replace it"
                )
            opened.load()
            return to_rgb(opened, name)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name}: {_what_it_is(file)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name}: its pixels are more than {MAX_PIXELS:,}; make it smaller first") from None
    except PermissionError:
        raise ImageError(f"{name}: may not be read (permission denied); change its permissions") from None
    except MemoryError:
        raise ImageError(f"{name}: decoding it takes more memory than there is; make it smaller") from None
    except Exception as error:  # Pillow's decoders raise all sorts on damaged files
        raise ImageError(
            f"{name}: damaged or truncated picture ({printable(_one_line(error))}); replace or remove it"
        ) from None


def _check_is_file(path: str | Path, name: str) -> None:
    """Raise ImageError for a path that is no file to read: opening a pipe, say, would wait for somebody to write."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (of a million files)
    except OSError as error:
        linked = os.path.islink(path)  # noqa: PTH114
        what = "a link that leads nowhere" if linked else "cannot be read"
        raise ImageError(f"{name}: {what} ({error.strerror}); mend or remove it") from None
    except ValueError as error:  # a NUL in the name
        raise ImageError(f"{name}: cannot be read ({error}); mend the name") from None
    kinds = {
        stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }  # fmt: skip
    if not stat.S_ISREG(mode):
        raise ImageError(f"{name}: {kinds.get(stat.S_IFMT(mode), 'something else')}, not a file; remove it")


def _has_end(file: Any) -> bool:
    """Does a JPEG end as it should, by its marker FF D9?

    The decoder takes whatever bytes follow for pixels, so that a file whose end was lost to zeros (as after a
    power cut) would come out grey below some line. Other data may follow the marker.
    """
    place = file.tell()
    try:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 64))
        if b"\xff\xd9" in file.read():
            return True
        file.seek(2)  # behind FF D8: segments, each FF, kind, length, until the scan
        while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] != 0xDA:
            file.seek(max(0, int.from_bytes(head[2:], "big") - 2), os.SEEK_CUR)
        before = b""
        while block := file.read(1 << 20):
            if b"\xff\xd9" in before + block:  # within a scan FF is followed by 00 or a restart marker
                return True
            before = block[-1:]
        return False
    finally:
        file.seek(place)


def _what_it_is(file: str | Path | IO[bytes] | bytes) -> str:
    """Why these bytes are no picture, and what to do."""
    if isinstance(file, bytes):
        head = file[:1024]
    elif isinstance(file, str | Path):
        with contextlib.suppress(OSError), open(file, "rb") as opened:  # noqa: PTH123
            head = opened.read(1024)
    else:
        file.seek(0)
        head = file.read(1024)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "the file is empty; replace or remove it"
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page, not a picture; download the picture itself"
    if text.startswith((b"<?xml", b"<svg")) and b"<svg" in text:
        return "an SVG drawing, not a picture of pixels; convert it to PNG"
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis"):
        return (
            "HEIC, not a picture that Pillow reads by itself; convert it, or install and register pillow-heif"
        )
    if not head.strip(b"\0"):
        return "nothing but zeros, not a picture; restore or remove it"
    return "not a picture in a format that Pillow reads; remove or convert it"


_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")


def _begins_as_picture(path: str) -> bool:
    """Are the first bytes those of a JPEG, PNG, GIF, TIFF or WebP?"""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            return False
        with open(path, "rb") as file:  # noqa: PTH123
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def to_rgb(picture: Image.Image, name: str = "picture") -> Image.Image:
    """Upright 8-bit RGB, as `decode` describes. Raises ImageError for pictures without a known range."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(
                f"{name}: integers beyond 16 bits have no known range; convert it to 8 bits first"
            )
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ImageError(f"{name}: floating-point pixels have no known range; convert it to 8 bits first")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


def square(picture: Image.Image, size: int) -> Image.Image:
    """Centre square of the picture, resized to size x size px (bilinear, antialiased)."""
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    if picture.size == (size, size):
        return picture
    return picture.resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side), reducing_gap=3
    )


def to_tensor(picture: Image.Image) -> Tensor:
    """RGB picture -> uint8 (3, H, W)."""
    return torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def open_image(path: str | Path, size: int = 224) -> Tensor:
    """One picture of your own as uint8 (3, size, size): smallest side resized, centre crop.

    Raises ImageError where the file is missing or cannot be decoded.
    """
    if not os.path.lexists(path):
        raise ImageError(f"there is no file {str(path)!r}; check the path")
    return to_tensor(square(decode(path), size))


# ----------------------------------------------------------------------------------------------- sources


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


@dataclass(frozen=True)
class Photograph:
    """A photograph inside an installed package, with what its package says of its licence."""

    name: str
    package: str
    file: str
    licence: str

    @property
    def path(self) -> Path | None:
        """Its file, or None where this version of the package does not bring it."""
        spec = importlib.util.find_spec(self.package)  # finds the package without running it
        for folder in spec.submodule_search_locations or () if spec else ():
            if (Path(folder) / self.file).is_file():
                return Path(folder) / self.file
        return None


SKIMAGE, SKLEARN = ("skimage", "data/"), ("sklearn", "datasets/images/")
# Natural colour photographs first, then scientific ones and textures. What their packages say: data/README.md.
PHOTOGRAPHS = tuple(
    Photograph(name, package, folder + file, licence)
    for name, (package, folder), file, licence in (
        ("astronaut", SKIMAGE, "astronaut.png", "public domain (NASA)"),
        ("chelsea", SKIMAGE, "chelsea.png", "CC0 (Stefan van der Walt)"),
        ("coffee", SKIMAGE, "coffee.png", "CC0 (Rachel Michetti)"),
        ("rocket", SKIMAGE, "rocket.jpg", "public domain (SpaceX)"),
        ("china", SKLEARN, "china.jpg", "CC BY 2.0 (danielbuechele)"),
        ("flower", SKLEARN, "flower.jpg", "CC BY 2.0 (vultilion)"),
        ("hubble", SKIMAGE, "hubble_deep_field.jpg", "public domain (NASA)"),
        ("retina", SKIMAGE, "retina.jpg", "CC0"),
        ("tissue", SKIMAGE, "ihc.png", "no known copyright restrictions"),
        ("camera", SKIMAGE, "camera.png", "CC0 (Lav Varshney)"),
        ("brick", SKIMAGE, "brick.png", "CC0"),
        ("gravel", SKIMAGE, "gravel.png", "CC0"),
        ("grass", SKIMAGE, "grass.png", "CC0"),
        ("cell", SKIMAGE, "cell.png", "CC0"),
        ("coins", SKIMAGE, "coins.png", "no known copyright restrictions"),
        ("clock", SKIMAGE, "clock_motion.png", "public domain (Stefan van der Walt)"),
        ("text", SKIMAGE, "text.png", "public domain"),
    )
)
SCALES = (1.0, 1.4, 2.0, 2.8)  # smallest side of the photograph, in window sides


def _photos(size: int) -> ImageSet:
    """Windows of size x size px over the bundled photographs at several scales, half a window apart."""
    plans: list[tuple[Photograph, tuple[int, int], tuple[int, int]]] = []  # photograph, scaled size, corner
    names: list[str] = []
    photograph: list[int] = []
    boxes: list[tuple[float, float, float, float]] = []
    missing = []
    for p, photo in enumerate(PHOTOGRAPHS):
        if photo.path is None:
            missing.append(Skipped(photo.name, f"{photo.name}: not in the installed {photo.package}"))
            continue
        with Image.open(photo.path) as opened:
            width, height = opened.size
        for scale in SCALES:
            factor = scale * size / min(width, height)
            if factor > 1.15 and scale > 1:  # enlarging further would only show blur
                break
            scaled = (max(size, round(width * factor)), max(size, round(height * factor)))
            wide, high = scaled[0] / width, scaled[1] / height  # the factor, but for rounding to whole pixels
            for top in _starts(scaled[1], size):
                for left in _starts(scaled[0], size):
                    plans.append((photo, scaled, (left, top)))
                    photograph.append(p)
                    box = (left / wide, top / high, (left + size) / wide, (top + size) / high)
                    boxes.append(box)
                    names.append(f"{photo.name} (scale {factor:.2f}, left {box[0]:.0f}, top {box[1]:.0f})")
    if not plans:
        raise ImageError("no bundled photograph found: pip install scikit-image scikit-learn")
    cache: dict[tuple[str, tuple[int, int]], Image.Image] = {}
    lock = threading.Lock()

    def read(i: int) -> tuple[Image.Image, int]:
        photo, scaled, (left, top) = plans[i]
        with lock:  # each photograph is decoded and scaled once, not once a window
            if (photo.name, scaled) not in cache:
                if len(cache) > 2 * len(SCALES):
                    cache.clear()
                whole = decode(photo.path or "", photo.name)
                cache[photo.name, scaled] = whole.resize(scaled, Image.Resampling.BICUBIC)
            resized = cache[photo.name, scaled]
        return resized.crop((left, top, left + size, top + size)), UNLABELLED

    windows = Windows(torch.tensor(photograph), torch.tensor(boxes, dtype=torch.float32))
    return ImageSet(read, names, size=size, windows=windows, skipped=missing)


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


def _starts(length: int, size: int) -> list[int]:
    """Where windows of `size` begin along `length`: evenly, at most half a window apart, ends included."""
    steps = -(-(length - size) // (size // 2 or 1))
    return [round(i * (length - size) / steps) for i in range(steps + 1)] if steps else [0]


class Spans(Sequence[range]):
    """Consecutive runs of places from `start` to `stop`, `size` long: made when asked for, however many there are."""

    def __init__(self, start: int, stop: int, size: int) -> None:
        self._places = range(start, stop)
        self._size = size

    def __len__(self) -> int:
        return -(-len(self._places) // self._size)

    def __getitem__(self, b: Any) -> Any:
        if not 0 <= b < len(self):
            raise IndexError(b)
        return self._places[b * self._size : (b + 1) * self._size]


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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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
