"""The photographs that installed packages bring along, cut into windows."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..errors import ImageError
from .caching import CachedReads
from .decode import decode
from .imageset import UNLABELLED, ImageSet, Skipped, Windows
from .sources import image_source


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
        folders = (spec.submodule_search_locations or ()) if spec else ()
        return next((p for p in (Path(f) / self.file for f in folders) if p.is_file()), None)


_SKIMAGE, _SKLEARN = ("skimage", "data/"), ("sklearn", "datasets/images/")

# Natural colour photographs first, then scientific ones and textures. What their packages say: data/README.md.
PHOTOGRAPHS = tuple(
    Photograph(name, package, folder + file, licence)
    for name, (package, folder), file, licence in (
        ("astronaut", _SKIMAGE, "astronaut.png", "public domain (NASA)"),
        ("chelsea", _SKIMAGE, "chelsea.png", "CC0 (Stefan van der Walt)"),
        ("coffee", _SKIMAGE, "coffee.png", "CC0 (Rachel Michetti)"),
        ("rocket", _SKIMAGE, "rocket.jpg", "public domain (SpaceX)"),
        ("china", _SKLEARN, "china.jpg", "CC BY 2.0 (danielbuechele)"),
        ("flower", _SKLEARN, "flower.jpg", "CC BY 2.0 (vultilion)"),
        ("hubble", _SKIMAGE, "hubble_deep_field.jpg", "public domain (NASA)"),
        ("retina", _SKIMAGE, "retina.jpg", "CC0"),
        ("tissue", _SKIMAGE, "ihc.png", "no known copyright restrictions"),
        ("camera", _SKIMAGE, "camera.png", "CC0 (Lav Varshney)"),
        ("brick", _SKIMAGE, "brick.png", "CC0"),
        ("gravel", _SKIMAGE, "gravel.png", "CC0"),
        ("grass", _SKIMAGE, "grass.png", "CC0"),
        ("cell", _SKIMAGE, "cell.png", "CC0"),
        ("coins", _SKIMAGE, "coins.png", "no known copyright restrictions"),
        ("clock", _SKIMAGE, "clock_motion.png", "public domain (Stefan van der Walt)"),
        ("text", _SKIMAGE, "text.png", "public domain"),
    )
)

SCALES = (1.0, 1.4, 2.0, 2.8)  # smallest side of the photograph, in window sides


@image_source("photos")
def photos(rest: str, size: int, **_: Any) -> ImageSet:
    """Windows of size x size px over the bundled photographs at several scales, half a window apart."""
    cuts: list[tuple[Photograph, tuple[int, int], tuple[int, int]]] = []  # photograph, scaled size, corner
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
                    cuts.append((photo, scaled, (left, top)))
                    photograph.append(p)
                    box = (left / wide, top / high, (left + size) / wide, (top + size) / high)
                    boxes.append(box)
                    names.append(f"{photo.name} (scale {factor:.2f}, left {box[0]:.0f}, top {box[1]:.0f})")
    if not cuts:
        raise ImageError("no bundled photograph found: pip install scikit-image scikit-learn")

    def scaled_whole(photo: Photograph, scaled: tuple[int, int]) -> Image.Image:
        return decode(photo.path or "", photo.name).resize(scaled, Image.Resampling.BICUBIC)

    whole = CachedReads(scaled_whole, 2 * len(SCALES))

    def read(i: int) -> tuple[Image.Image, int]:
        photo, scaled, (left, top) = cuts[i]
        resized = whole(photo, scaled)  # once for all its windows
        return resized.crop((left, top, left + size, top + size)), UNLABELLED

    windows = Windows(torch.tensor(photograph), torch.tensor(boxes, dtype=torch.float32))
    return ImageSet(read, names, size=size, windows=windows, skipped=missing)


def _starts(length: int, size: int) -> list[int]:
    """Where windows of `size` begin along `length`: evenly, at most half a window apart, ends included."""
    steps = -(-(length - size) // (size // 2 or 1))
    return [round(i * (length - size) / steps) for i in range(steps + 1)] if steps else [0]
