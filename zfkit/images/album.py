"""The bundled photographs, and those that installed packages bring along, cut into windows."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import PIL
import torch
from PIL import Image

from ..checks import Size, pair
from ..checksums import digest, read_kept, write_kept
from ..errors import ImageError, printable
from ..files import cache_folder
from ..version import __version__
from .caching import CachedReads
from .decode import decode
from .imageset import UNLABELLED, ImageSet, Skipped, Windows
from .sources import image_source

SUBJECTS = ("animal", "building", "energy", "fish", "household", "music", "sea", "tool")  # the album's labels


@dataclass(frozen=True)
class Photograph:
    """A photograph inside an installed package, with what is known of its licence.

    Attributes:
        subject: one of `SUBJECTS`, or "" where it shows none of them.
        source: the page that it comes from; "" for those that other packages bring along.
        sha256: of its file, for those that zfkit itself brings along; else "".
    """

    name: str
    package: str
    file: str
    licence: str
    subject: str = ""
    source: str = ""
    sha256: str = ""

    @property
    def path(self) -> Path | None:
        """Its file, or None where this version of the package does not bring it."""
        spec = importlib.util.find_spec(self.package)  # finds the package without running it
        folders = (spec.submodule_search_locations or ()) if spec else ()
        return next((p for p in (Path(f) / self.file for f in folders) if p.is_file()), None)

    def checked(self) -> Path | None:
        """Its file, as `path`. Raises ImageError where zfkit itself should bring it, and it is missing or changed."""
        path = self.path
        if self.sha256 and path is None:
            raise ImageError(f"the bundled photograph {self.file} is missing: {AGAIN}")
        if self.sha256 and path and hashlib.sha256(path.read_bytes()).hexdigest() != self.sha256:
            raise ImageError(f"the bundled photograph {self.file} is not as zfkit brought it: {AGAIN}")
        return path


AGAIN = "install zfkit again (pip install --force-reinstall --no-deps zfkit, or git checkout of that file)"
FOLDER = "images/photographs"  # in the package; the table in it names the files
_SKIMAGE, _SKLEARN = ("skimage", "data/"), ("sklearn", "datasets/images/")

# Natural colour photographs first, then scientific ones and textures. What their packages say: data/README.md.
INSTALLED = tuple(
    Photograph(name, package, folder + file, licence, subject)
    for name, (package, folder), file, licence, subject in (
        ("astronaut", _SKIMAGE, "astronaut.png", "public domain (NASA)", ""),
        ("chelsea", _SKIMAGE, "chelsea.png", "CC0 (Stefan van der Walt)", "animal"),
        ("coffee", _SKIMAGE, "coffee.png", "CC0 (Rachel Michetti)", "household"),
        ("rocket", _SKIMAGE, "rocket.jpg", "public domain (SpaceX)", ""),
        ("china", _SKLEARN, "china.jpg", "CC BY 2.0 (danielbuechele)", "building"),
        ("flower", _SKLEARN, "flower.jpg", "CC BY 2.0 (vultilion)", ""),
        ("hubble", _SKIMAGE, "hubble_deep_field.jpg", "public domain (NASA)", ""),
        ("retina", _SKIMAGE, "retina.jpg", "CC0", ""),
        ("tissue", _SKIMAGE, "ihc.png", "no known copyright restrictions", ""),
        ("camera", _SKIMAGE, "camera.png", "CC0 (Lav Varshney)", ""),
        ("brick", _SKIMAGE, "brick.png", "CC0", ""),
        ("gravel", _SKIMAGE, "gravel.png", "CC0", ""),
        ("grass", _SKIMAGE, "grass.png", "CC0", ""),
        ("cell", _SKIMAGE, "cell.png", "CC0", ""),
        ("coins", _SKIMAGE, "coins.png", "no known copyright restrictions", ""),
        ("clock", _SKIMAGE, "clock_motion.png", "public domain (Stefan van der Walt)", "household"),
        ("text", _SKIMAGE, "text.png", "public domain", ""),
    )
)

SCALES = (1.0, 2.0)  # smallest side of the photograph, in window sides
ENLARGED = 1.25  # at most; more would only show blur
KEPT = 2**24  # bytes of pixels from where on they are kept on disk


@cache
def photographs() -> tuple[Photograph, ...]:
    """All photographs of the album: those of installed packages, then those that zfkit brings along.

    Raises ImageError where the table of the latter is missing.
    """
    table = Path(__file__).parents[1] / FOLDER / "sources.csv"
    try:
        rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    except OSError as error:
        raise ImageError(f"the bundled photographs are missing ({FOLDER}/sources.csv): {AGAIN}") from error
    bundled = [
        Photograph(
            Path(row["file"]).stem, "zfkit", f"{FOLDER}/{row['file']}", f"{row['licence']} ({row['author']})",
            row["subject"], row["source"], row["sha256"],
        )
        for row in rows
    ]  # fmt: skip
    return (*INSTALLED, *bundled)


class Album(ImageSet):
    """Windows whose pixels are kept in zfkit's cache: decoding and resizing all takes longer than importing torch."""

    def in_memory(self, progress: bool = True) -> ImageSet:
        key = digest([self.fingerprint(), __version__, PIL.__version__])  # who cut them, decoded and resized
        file = cache_folder("photos") / f"{key}.safetensors"
        if self.bytes >= KEPT and (found := read_kept(file, key)):
            loaded = self._subset([*range(len(self))])
            loaded._pixels, loaded._labels = found[0]["pixels"], self.known_labels()
            return loaded
        loaded = super().in_memory(progress)
        if self.bytes >= KEPT and loaded._pixels is not None and len(loaded) == len(self):
            write_kept(file, key, {"pixels": loaded._pixels}, {})
        return loaded


@image_source("photos")
def photos(rest: str, size: Size, **_: Any) -> ImageSet:
    """Windows of this size over the photographs at two scales, at most a window apart; labels are subjects."""
    _expect_nothing_more("photos", rest)
    return _windows(size, SCALES, _starts)


@image_source("photos-small")
def photos_small(rest: str, size: Size, **_: Any) -> ImageSet:
    """The middle of each photograph: pictures that have nothing to do with each other."""
    _expect_nothing_more("photos-small", rest)
    return _windows(size, SCALES[:1], lambda length, size: [round((length - size) / 2)])


def _expect_nothing_more(source: str, rest: str) -> None:
    if rest:
        raise ImageError(f"'{source}:{printable(rest)}' says more than '{source}'; yours are 'folder:PATH'")


def _windows(size: Size, scales: tuple[float, ...], starts: Callable[[int, int], list[int]]) -> ImageSet:
    H, W = pair(size)
    cuts: list[tuple[Photograph, tuple[int, int], tuple[int, int]]] = []  # photograph, scaled size, corner
    names: list[str] = []
    photograph: list[int] = []
    boxes: list[tuple[float, float, float, float]] = []
    missing = []
    for p, photo in enumerate(photographs()):
        path = photo.checked()
        if path is None:
            missing.append(Skipped(photo.name, f"{photo.name}: not in the installed {photo.package}"))
            continue
        with Image.open(path) as opened:
            width, height = opened.size
        if max(H / height, W / width) > ENLARGED:
            missing.append(Skipped(photo.name, f"{photo.name}: {width} x {height} px is too small"))
            continue
        for scale in scales:
            factor = max(scale * H / height, scale * W / width)
            if factor > ENLARGED:
                break
            scaled = (max(W, round(width * factor)), max(H, round(height * factor)))
            wide, high = scaled[0] / width, scaled[1] / height  # the factor, but for rounding to whole pixels
            for top in starts(scaled[1], H):
                for left in starts(scaled[0], W):
                    cuts.append((photo, scaled, (left, top)))
                    photograph.append(p)
                    box = (left / wide, top / high, (left + W) / wide, (top + H) / high)
                    boxes.append(box)
                    names.append(f"{photo.name} (scale {factor:.2f}, left {box[0]:.0f}, top {box[1]:.0f})")
    if not cuts:
        raise ImageError(f"no bundled photograph is large enough for windows of {size} px: take smaller ones")
    labels = [SUBJECTS.index(photo.subject) if photo.subject else UNLABELLED for photo, _, _ in cuts]
    original = CachedReads(lambda photo: decode(photo.path or "", photo.name), 2)  # one scale after the other

    def scaled_whole(photo: Photograph, scaled: tuple[int, int]) -> Image.Image:
        return original(photo).resize(scaled, Image.Resampling.BICUBIC)

    whole = CachedReads(scaled_whole, 2 * len(scales))

    def read(i: int) -> tuple[Image.Image, int]:
        photo, scaled, (left, top) = cuts[i]
        resized = whole(photo, scaled)  # once for all its windows
        return resized.crop((left, top, left + W, top + H)), labels[i]

    def stamp() -> str:
        return digest(photo.path.read_bytes() for photo in photographs() if photo.path)

    windows = Windows(torch.tensor(photograph), torch.tensor(boxes, dtype=torch.float32))
    return Album(
        read, names, size=size, classes=SUBJECTS, windows=windows, skipped=missing, read_labels=lambda: labels,
        stamp=stamp,
    )  # fmt: skip


def _starts(length: int, size: int) -> list[int]:
    """Where windows of `size` begin along `length`: evenly, at most a window apart, ends included."""
    steps = -(-(length - size) // size)
    return [round(i * (length - size) / steps) for i in range(steps + 1)] if steps else [0]
