"""Pictures from anywhere as upright uint8 RGB.

Read `values` (what a file's numbers stand for), `decode` (one picture from bytes), `given` (pictures at hand),
`imageset` (many, with labels and names), `labels` (matched to a network's classes by name) and `sources`
(`load_images`, and how to add a source of your own). `parquet`, `album` (the bundled photographs) and `textures`
(drawn, with the truth about each) are sources. `colour` has what turns numbers into pictures and back.
"""

from __future__ import annotations

from . import parquet, textures  # which register their sources
from .album import Photograph, photographs
from .colour import luma, signed_to_rgb
from .decode import MAX_PIXELS, centre, open_image, to_rgb, to_tensor
from .imageset import UNLABELLED, Batch, ImageSet, Skipped, Windows
from .labels import align_labels
from .sources import image_source, load_images

__all__ = [
    "MAX_PIXELS", "UNLABELLED", "Batch", "ImageSet", "Photograph", "Skipped", "Windows", "align_labels", "centre",
    "image_source", "load_images", "luma", "open_image", "photographs", "signed_to_rgb", "to_rgb", "to_tensor",
]  # fmt: skip
