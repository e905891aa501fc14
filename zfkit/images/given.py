"""Pictures that somebody has at hand, as tensors, arrays, paths or data sets: what `ImageSet.of` reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..checks import Size, uint8_rgb
from ..checksums import digest
from ..errors import ImageError, printable
from .caching import CachedReads
from .decode import decode, one_line, open_image, to_rgb
from .values import UNLABELLED, Range, Remarks

# What columns of Parquet files and items of data sets are called.
IMAGE_NAMES = ("image", "img", "picture")
LABEL_NAMES = ("label", "labels", "fine_label")
MOST_BANDS = 64


class Given(NamedTuple):
    """How to read pictures, and what is known of them before."""

    read: Callable[[int], tuple[Image.Image | Tensor, int]]
    names: list[str]
    remarks: Remarks
    size: Size | None = None  # in pixels, where they are all alike
    bands: int = 3
    classes: Sequence[str] = ()
    read_labels: Callable[[], np.ndarray] | None = None
    stamp: Callable[[], str] | None = None


def given(pictures: Any, name: str, value_range: Range | None) -> Given:
    """Tensors (N, C, H, W), arrays (N, H, W, C), lists of paths, and data sets. Raises ImageError for anything else."""
    if isinstance(pictures, np.ndarray) and pictures.ndim == 4 and pictures.dtype == np.uint8:
        pictures = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    if isinstance(pictures, Tensor):
        return _tensor(pictures.detach().cpu(), name)
    if not hasattr(pictures, "__len__") or not hasattr(pictures, "__getitem__"):
        pictures = list(pictures) if hasattr(pictures, "__iter__") else [pictures]
    if isinstance(pictures, str) or not len(pictures):
        raise ImageError(f"pictures must be a tensor, an array, paths or a data set, not {pictures!r:.80}")
    if isinstance(pictures, list | tuple) and all(isinstance(p, str | Path) for p in pictures):
        return _paths(pictures, value_range)
    return data_set(pictures, name, value_range, CachedReads(pictures.__getitem__, 1))


def _tensor(pixels: Tensor, name: str) -> Given:
    """Pictures (N, C, H, W) uint8; of one band, grey ones."""
    if pixels.dtype != torch.uint8 or pixels.dim() != 4 or not 1 <= pixels.shape[1] <= MOST_BANDS:
        raise ImageError(
            f"expected uint8 pictures (N, 3, H, W), or with up to {MOST_BANDS} bands, with values 0-255, got "
            f"{str(pixels.dtype).removeprefix('torch.')} {tuple(pixels.shape)}"
        )
    pixels = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
    _, bands, height, width = pixels.shape

    def read(i: int) -> tuple[Image.Image | Tensor, int]:
        rgb = pixels[i].permute(1, 2, 0).contiguous().numpy()
        return Image.fromarray(rgb) if bands == 3 else pixels[i], UNLABELLED

    names = [f"{name} {i}" for i in range(len(pixels))]
    size = height if height == width else (height, width)
    return Given(read, names, Remarks(), size, bands, stamp=lambda: digest([pixels]))


def _paths(paths: Sequence[str | Path], value_range: Range | None) -> Given:
    names, remarks = [str(p) for p in paths], Remarks()
    files = Files(names)

    def read(i: int) -> tuple[Image.Image, int]:
        picture = decode(files.path(i), names[i], value_range, remarks)
        files.check(i)
        return picture, UNLABELLED

    return Given(read, names, remarks, stamp=files.stamp)


def data_set(
    items: Any, name: str, value_range: Range | None, fetch: Callable[[int], Any] | None = None
) -> Given:
    """A data set of torch or Hugging Face. `fetch` gets an item where threads must not do so all at once."""
    remarks = Remarks()
    fetch = fetch or items.__getitem__

    def read(i: int) -> tuple[Image.Image, int]:
        try:
            picture, label = _parts(fetch(i))
            return _picture(picture, value_range, remarks, f"{name} {i}"), label
        except Exception as error:
            raise ImageError(f"{name} {i}: {one_line(error)}; mend or leave it out") from None

    targets = getattr(items, "targets", None)  # most data sets of torchvision know their labels at once
    known = isinstance(targets, Sequence | Tensor | np.ndarray) and len(targets) == len(items)
    classes = [str(c) for c in getattr(items, "classes", getattr(items, "categories", ()))]
    for column in LABEL_NAMES if not classes else ():  # as Hugging Face's `datasets` has them
        classes = classes or list(getattr((getattr(items, "features", None) or {}).get(column), "names", ()))
    names = [f"{name} {i}" for i in range(len(items))]
    return Given(
        read, names, remarks, classes=classes, read_labels=(lambda: np.asarray(targets)) if known else None,
        stamp=_stamp(items),
    )  # fmt: skip


def _stamp(items: Any) -> Callable[[], str] | None:
    """What tells a data set from others: Hugging Face's own fingerprint, torchvision's pixels or files; or nothing."""
    if isinstance(own := getattr(items, "_fingerprint", None), str):
        return lambda: own
    if any(getattr(items, n, None) is not None for n in ("transform", "target_transform", "transforms")):
        return None  # which cannot be looked into
    if isinstance(pixels := getattr(items, "data", None), Tensor | np.ndarray) and len(pixels) == len(items):
        return lambda: digest([torch.as_tensor(pixels)])
    for listed in ("samples", "_samples", "_images", "_image_files"):
        held = getattr(items, listed, None)
        held = held if isinstance(held, list | tuple) else ()
        paths = [p[0] if isinstance(p, tuple) else p for p in held]
        if len(paths) == len(items) and all(isinstance(p, str | Path) for p in paths):
            return Files([str(p) for p in paths]).stamp
    return None


def _parts(item: Any) -> tuple[Any, int]:
    """Picture and label of a data set's item."""
    if isinstance(item, Mapping):
        picture = next((item[n] for n in IMAGE_NAMES if n in item), None)
        label = next((item[n] for n in LABEL_NAMES if n in item), None)
    else:
        picture, label, *_ = (*item, None) if isinstance(item, list | tuple) else (item, None)
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    whole = isinstance(label, int | np.integer) and not isinstance(label, bool)
    return picture, int(label) if whole else UNLABELLED  # type: ignore[arg-type]


def _picture(value: Any, value_range: Range | None, remarks: Remarks, name: str) -> Image.Image:
    """What a data set calls a picture, as RGB."""
    if isinstance(value, str | Path):
        return decode(value, name, value_range, remarks)
    if isinstance(value, Tensor):
        value = (value.permute(1, 2, 0) if value.dim() == 3 else value).numpy()
    if not isinstance(value, Image.Image | np.ndarray):
        raise ImageError(f"a picture was expected, not {type(value).__name__}")
    if isinstance(value, np.ndarray):
        if value.ndim == 3 and value.dtype.kind == "f":
            levels = np.rint(value * 255)
            if not (np.abs(value * 255 - levels) < 1e-3).all() or levels.min() < 0 or levels.max() > 255:
                raise ImageError(
                    f"its pixels are floats from {value.min():.3g} to {value.max():.3g}: take Normalize out of the "
                    "transforms, zfkit does that"
                )
            value = levels.astype(np.uint8)
        value = Image.fromarray(value[..., 0] if value.ndim == 3 and value.shape[2] == 1 else value)
    return to_rgb(value, value_range, remarks, name)


class Files:
    """Files of pictures, held to the size and time of change that they had when they were first looked at.

    Args:
        names: paths, which `folder`, if given, is put before.
    """

    def __init__(self, names: Sequence[str], folder: Path | None = None) -> None:
        self.names, self.folder = names, folder
        self._seen: np.ndarray | None = None  # (N, 2) int64 once looked at: 16 bytes a file

    def path(self, i: int) -> Path:
        """Of file i. In a folder a name that begins with ~ is a name like any other."""
        return Path(self.names[i]).expanduser() if self.folder is None else self.folder / self.names[i]

    def stamp(self) -> str:
        """Size and time of change, in ns, of every file; of one that cannot be found -1. The text is a digest."""
        if self._seen is None:
            states = [self._state(i) for i in range(len(self.names))]
            self._seen = np.array(states, dtype=np.int64).reshape(-1, 2)
        return digest([self._seen.tobytes()])

    def check(self, i: int) -> None:
        """Raise ImageError where file i has changed since."""
        if self._seen is not None and self._state(i) != tuple(self._seen[i].tolist()):
            raise ImageError(f"{printable(self.names[i])}: changed since it was opened; load the set again")

    def _state(self, i: int) -> tuple[int, int]:
        try:
            state = self.path(i).stat()
        except (OSError, ValueError, RuntimeError):
            return -1, -1
        return state.st_size, state.st_mtime_ns


def one_picture(value: Tensor | np.ndarray | str | Path, size: Size, bands: int = 3) -> Tensor:
    """A picture as uint8 (3, H, W): a tensor of that kind, an array (H, W, 3), or a path, which is brought to `size`.

    A tensor may have so many `bands` instead of three. Raises ImageError for anything else.
    """
    if isinstance(value, str | Path):
        return open_image(value, size)
    if isinstance(value, np.ndarray) and value.ndim == 3 and value.dtype == np.uint8 and value.shape[2] == 3:
        value = torch.from_numpy(np.ascontiguousarray(value)).permute(2, 0, 1)
    if isinstance(value, Tensor) and value.dtype == torch.uint8 and value.shape[:-2] == (bands,):
        return value
    return uint8_rgb(value, axes=3)
