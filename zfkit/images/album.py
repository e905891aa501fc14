"""The photographs that installed packages bring along."""

from __future__ import annotations

import importlib.util
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..errors import ImageError
from .decode import decode
from .imageset import UNLABELLED, ImageSet, Skipped, Windows


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


def _starts(length: int, size: int) -> list[int]:
    """Where windows of `size` begin along `length`: evenly, at most half a window apart, ends included."""
    steps = -(-(length - size) // (size // 2 or 1))
    return [round(i * (length - size) / steps) for i in range(steps + 1)] if steps else [0]
