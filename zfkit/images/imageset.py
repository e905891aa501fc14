"""`ImageSet`: pictures from anywhere as upright uint8 RGB of one size, (3, H, W), with labels and names.

Small sets are decoded once and kept in memory, larger ones are streamed.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import secrets
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..batching import steps
from ..checks import Size, in_px, pair, picture_size, whole_numbers
from ..checksums import digest
from ..errors import ImageError
from .decode import MAX_PIXELS, sized
from .given import given, one_picture
from .values import UNLABELLED as UNLABELLED
from .values import Range, Remarks, check_range

if TYPE_CHECKING:
    import pandas as pd

IN_MEMORY_BYTES = 2**30  # sets up to this size are decoded once and kept


class Batch(NamedTuple):
    """Consecutive pictures of a set; unreadable ones are left out."""

    indices: Tensor  # (n,) int64, places in the set
    pixels: Tensor  # (n, 3, H, W) uint8
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


def check_size(size: Any) -> Size:
    """A side in pixels, or height and width. Raises ImageError for what is none."""
    return picture_size(size, "size", math.isqrt(MAX_PIXELS), ImageError)


def expect_rgb(images: ImageSet, what: str) -> None:
    """Raise ImageError for pictures of other bands, of which `what` says who cannot use them."""
    if images.bands != 3:
        raise ImageError(f"{what} RGB pictures, and those of {images.source!r} have {images.bands} bands")


# Place in the set -> (picture, label); pictures of other than 3 bands as uint8 (C, H, W).
Reader = Callable[[int], tuple[Image.Image | Tensor, int]]


class ImageSet:
    """Ordered pictures of one size: uint8 RGB (3, H, W), or of other bands (C, H, W), with labels and names.

    Attributes:
        source: the text `load_images` was called with. loaded: that call; "" for any other set, and for parts of one.
        size: the side in pixels, or (height, width) of pictures that are no squares.
        bands: C, 3 but for tensors and arrays of others.
        classes: class names; a label is a place in them.
        windows: for sets cut out of larger photographs, where each picture comes from; else None.
        blocks: (B,) first places of the runs of pictures that are stored, and read, together (row groups of
            Parquet); None where any picture is as quickly read as the next.
        skipped: what could not be read so far, as (name, reason).
        truth: for drawn sets, a table of what is known about each picture; else None.

    Args:
        read: gives the picture at a place in the set, and its label; called by several threads at once. Raises
            ImageError for a picture that cannot be read.
        names: what to call each picture.
        read_labels: gives all labels at once without decoding a picture, where the source can.
        truth: gives a row of the table of that name, from column to value.
        stamp: gives a text that changes with the pictures (a version, a digest): what the fingerprint takes in while
            they are streamed. Without one, tables and states are of this object alone, and none is kept on disk.
        remarks: what is said of the pictures once, when their end is reached.
    """

    def __init__(
        self,
        read: Reader,
        names: Sequence[str],
        *,
        size: Size,
        bands: int = 3,
        source: str = "custom",
        classes: Sequence[str] = (),
        windows: Windows | None = None,
        skipped: Sequence[Skipped] = (),
        blocks: Tensor | None = None,
        read_labels: Callable[[], Sequence[int] | np.ndarray] | None = None,
        truth: Callable[[int], Mapping[str, Any]] | None = None,
        stamp: Callable[[], str] | None = None,
        remarks: Remarks | None = None,
    ) -> None:
        self.source, self.size, self.bands, self.classes = source, size, bands, tuple(classes)
        self.loaded = ""
        self.windows, self.blocks = windows, blocks
        self.skipped = list(skipped)
        self._read, self._names = read, names
        self._read_labels, self._truth, self._stamp = read_labels, truth, stamp
        self._remarks = remarks or Remarks()
        self._pixels: Tensor | None = None  # (N, C, H, W) uint8 once in memory
        self._labels: Tensor | None = None  # (N,) int64 once known
        self._fingerprint: str | None = None
        self._token = secrets.token_hex(16)  # which no other set has
        self._reported: set[int] = set()  # places of unreadable pictures that are in `skipped`

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        kept = "in memory" if self._pixels is not None else "streamed"
        classes = f", {len(self.classes)} classes" if self.classes else ""
        bands = "" if self.bands == 3 else f" and {self.bands} bands"
        pictures = f"{len(self)} pictures of {in_px(self.size)}{bands}"
        return f"ImageSet({self.source!r}: {pictures}, {kept}{classes})"

    @staticmethod
    def of(
        pictures: Any,
        *,
        size: Size | None = None,
        labels: Sequence[int] | Tensor | np.ndarray | None = None,
        classes: Sequence[str] = (),
        name: str = "mine",
        value_range: Range | None = None,
        progress: bool = True,
    ) -> ImageSet:
        """Pictures that you have at hand, as a set; like `load_images`, small sets are kept in memory.

        Args:
            pictures: uint8, a tensor (N, 3, H, W) or an array (N, H, W, 3), of RGB or up to 64 other bands (one is
                grey); a list of paths; or a data set of torch or Hugging Face, whose items are a picture, (picture,
                label, ...), or a dictionary with "image" and "label". A picture there is of PIL, uint8, or floats as
                torchvision's `ToTensor` makes them. An ImageSet is returned as it is.
            size: side in pixels of the centre squares, or height and width; default as tensors and arrays are,
                else 224.
            labels: one for each picture, places in `classes`, -1 for none; default those of the data set.
            classes: names; default those of the data set.
            name: what to call the set in captions and files.
            value_range: as for `load_images`.

        Raises ImageError for anything else.

        >>> ImageSet.of(pixels, labels=[0, 2, 1], classes=["cat", "dog", "eel"])
        >>> ImageSet.of(sorted(Path("holiday").glob("*.jpg")), size=224)
        >>> ImageSet.of(torchvision.datasets.Flowers102("data", split="test"))
        """
        if isinstance(pictures, ImageSet):
            return pictures
        size = None if size is None else check_size(size)
        source = given(pictures, name, value_range and check_range(value_range))
        read, read_labels = source.read, source.read_labels
        if labels is not None:
            own = whole_numbers(labels)
            if own is None or own.shape != (len(source.names),):
                raise ImageError(f"labels must be {len(source.names)} whole numbers, one for each picture")
            read, read_labels = (lambda i: (source.read(i)[0], int(own[i]))), own.numpy
        images = ImageSet(
            read, Names(source.names), size=size or source.size or 224, bands=source.bands, source=name,
            classes=classes or source.classes, read_labels=read_labels, stamp=source.stamp, remarks=source.remarks,
        )  # fmt: skip
        return images.in_memory(progress) if images.fits_memory else images

    @property
    def fits_memory(self) -> bool:
        """Is it small enough to be decoded once and kept?"""
        return self.bytes <= IN_MEMORY_BYTES

    @property
    def bytes(self) -> int:
        """Of all its pictures, decoded."""
        return len(self) * self.bands * math.prod(pair(self.size))

    @overload
    def __getitem__(self, i: int) -> tuple[Tensor, int]: ...

    @overload
    def __getitem__(self, i: slice) -> ImageSet: ...

    def __getitem__(self, i: int | slice) -> tuple[Tensor, int] | ImageSet:
        """Picture i as uint8 (3, H, W) and its label, -1 where there is none; of a slice, the set of these pictures.

        Raises IndexError outside the set and ImageError where the file cannot be decoded.
        """
        if isinstance(i, slice):
            return self._subset(list(range(*i.indices(len(self)))))
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
        return self._labels if self._pixels is not None else None

    def known_labels(self) -> Tensor | None:
        """(N,) int64 labels without decoding a picture, also while streaming; None where the source cannot tell."""
        if self._labels is None and self._read_labels is not None:
            labels = torch.as_tensor(np.asarray(self._read_labels(), dtype=np.int64))
            self._labels = labels[: len(self)]
        return self._labels

    @property
    def truth(self) -> pd.DataFrame | None:
        """What is known about each picture of a drawn set, by place; None for pictures that were taken.

        Columns: class; frequency in cycles/pixel; orientation in radians, that of the wave vector, 0 being
        vertical stripes; phase in radians. NaN where a picture has none or several, see `textures.Truth`.
        """
        if self._truth is None:
            return None
        import pandas as pd

        return pd.DataFrame([self._truth(i) for i in range(len(self))])

    def take(self, index: Sequence[int] | Tensor) -> Tensor:
        """Pictures at these places, uint8 (n, 3, H, W). Raises as indexing does."""
        places = [self._place(int(i)) for i in index]
        if self._pixels is not None:
            return self._pixels[places]
        return torch.stack([self._decode(i)[0] for i in places])

    def first(self, count: int) -> None:
        """Keep the first so many pictures of a set that is not in memory yet."""
        self._names, self.loaded = self._names[:count], ""
        if self.windows is not None:
            self.windows = Windows(*(w[:count] for w in self.windows))

    def batches(self, batch_size: int = 64, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Pictures start..stop in order, `batch_size` at a time, decoded ahead by threads.

        An unreadable picture is left out, warned about by name, and listed in `skipped`.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        if self._pixels is not None and self._labels is not None:
            for first in range(start, stop, batch_size):
                part = slice(first, min(first + batch_size, stop))
                yield Batch(torch.arange(part.start, part.stop), self._pixels[part], self._labels[part])
            return
        starts = range(start, stop, batch_size)
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            ahead: deque[dict[int, Future[tuple[Tensor, int]]]] = deque()  # the batch at hand and the next
            for b in range(len(starts)):
                for first in starts[b + len(ahead) : b + 2]:
                    places = range(first, min(first + batch_size, stop))
                    ahead.append({i: pool.submit(self._decode, i) for i in places})
                batch = self._gather(ahead.popleft())
                if len(batch.indices):
                    yield batch
        if stop == len(self):
            self._remarks.say()

    def in_memory(self, progress: bool = True) -> ImageSet:
        """The same set decoded once and kept, without its unreadable pictures (they are in `skipped`)."""
        batches = []
        with steps(len(self), f"reading {self.source}", progress=progress) as done:
            for batch in self.batches(256):
                batches.append(batch)
                done(len(batch.indices))
        if not batches:
            first = self.skipped[0].reason if self.skipped else "the source is empty"
            raise ImageError(f"none of the {len(self)} pictures of {self.source!r} can be read: {first}")
        loaded = self._subset(torch.cat([b.indices for b in batches]).tolist())
        loaded._pixels = torch.cat([b.pixels for b in batches])
        loaded._labels = torch.cat([b.label for b in batches])
        return loaded

    def to(self, device: str | torch.device) -> ImageSet:
        """The same set in the memory of a device, as uint8, so that a GPU does not wait for its pictures."""
        moved = copy.copy(self if self._pixels is not None else self.in_memory(progress=False))
        assert moved._pixels is not None
        moved._pixels = moved._pixels.to(device)
        return moved

    def _subset(self, places: list[int]) -> ImageSet:
        """The pictures at these places, in this order."""
        read, read_labels, truth = self._read, self._read_labels, self._truth
        part = ImageSet(
            lambda i: read(places[i]), [self._names[i] for i in places], size=self.size, bands=self.bands,
            source=self.source, classes=self.classes, skipped=self.skipped,
            windows=Windows(*(w[places] for w in self.windows)) if self.windows else None,
            read_labels=read_labels and (lambda: np.asarray(read_labels())[places]),
            truth=truth and (lambda i: truth(places[i])), stamp=self._stamp, remarks=self._remarks,
        )  # fmt: skip
        if self._pixels is not None and self._labels is not None:
            part._pixels, part._labels = self._pixels[places], self._labels[places]
        return part

    def with_labels(self, classes: Sequence[str], places: Sequence[int]) -> ImageSet:
        """The same pictures with other classes: `places` says where each of the old ones stands, -1 for nowhere."""
        table = [*places, UNLABELLED]
        read, read_labels = self._read, self._read_labels

        def renamed(label: int) -> int:
            return table[min(label, len(places)) if label >= 0 else -1]

        def read_renamed(i: int) -> tuple[Image.Image | Tensor, int]:
            picture, label = read(i)
            return picture, renamed(label)

        other = copy.copy(self)
        other.classes, other._read = tuple(classes), read_renamed
        other._read_labels = read_labels and (lambda: [renamed(int(v)) for v in read_labels()])
        if self._labels is not None:
            other._labels = torch.tensor([renamed(v) for v in self._labels.tolist()], dtype=torch.long)
        return other

    @property
    def lasting(self) -> bool:
        """Is the fingerprint the same in another process? Not that of an own set that streams without `stamp`."""
        return self._pixels is not None or self._stamp is not None

    def fingerprint(self) -> str:
        """16 hex digits that change with the set's size, names, order and pictures.

        In memory, with every pixel. Of streamed sets, with what tells files apart without reading them: of a folder
        the size and time of change (in ns) of each file, of Parquet also the footers; a picture that is changed
        afterwards is refused when it is read. Of a set of your own, with its `stamp`; without one, nothing is known of
        its pictures, and the fingerprint is that of this very object.
        """
        if self._fingerprint is None:
            known: list[str | Tensor] = [f"{self.size} {len(self)}", *(self.windows or ())]
            if self._pixels is not None:
                known.append(self._pixels)
            else:
                known.append(self._token if self._stamp is None else self._stamp())
            self._fingerprint = digest(itertools.chain(known, self._names))[:16]
        return self._fingerprint

    def _gather(self, decoding: Mapping[int, Future[tuple[Tensor, int]]]) -> Batch:
        """Those of these pictures that can be read."""
        index, pixels, labels = [], [], []
        for i, future in decoding.items():
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
        none = torch.empty(0, self.bands, *pair(self.size), dtype=torch.uint8)
        stacked = torch.stack(pixels) if pixels else none
        return Batch(torch.tensor(index, dtype=torch.long), stacked, torch.tensor(labels, dtype=torch.long))

    def _place(self, i: int) -> int:
        if not -len(self) <= i < len(self):
            raise IndexError(f"picture {i} of {self.source!r} does not exist: it holds {len(self)}")
        return i % len(self)

    def _decode(self, i: int) -> tuple[Tensor, int]:
        picture, label = self._read(i)
        return sized(picture, self.size), label


def as_set(pictures: Any, size: Size, progress: bool = False) -> ImageSet:
    """A set as it is, what `ImageSet.of` makes one of, or one picture (`one_picture`); paths are brought to `size`."""
    if isinstance(pictures, str | Path) or getattr(pictures, "ndim", 4) == 3:
        pictures = one_picture(pictures, size)[None]
    of_paths = isinstance(pictures, list | tuple) and all(isinstance(p, str | Path) for p in pictures)
    return ImageSet.of(pictures, size=size if of_paths else None, progress=progress)
