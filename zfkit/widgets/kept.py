"""What the explorer has computed and keeps on disk for the next time: thumbnails, profiles, projected pages.

Everything is keyed by the bytes of weights and pictures, and has a checksum: what does not fit, or is damaged, is made
again. The folder is a part of zfkit's cache, of which `zfkit cache` says how large it is, and which it clears.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..checksums import digest, read_sealed, sealed
from ..errors import ZfkitError
from ..files import cache_folder, limit_cache, write_whole
from ..images.imageset import ImageSet
from ..nets.model import VisionModel
from ..topk.table import TopK

FORMAT = "1"
MOST = 4 * 10**9  # bytes in zfkit's cache, from where on what was not used for the longest is deleted
EVERY = 50  # files, between two looks at how much there is

Content = Mapping[str, "Tensor | bytes"]


class Kept:
    """Results for one network, album and table, by layer and name; nothing where the album has no lasting name."""

    def __init__(self, model: VisionModel, photos: ImageSet, top: TopK) -> None:
        self.model, self.photos, self.top = model, photos, top
        self._folders: dict[str, Path] = {}
        self._written = 0

    def _folder(self, layer: str) -> Path:
        """One for each layer: with the weights that lead to it, the pictures, and the table's places in its name."""
        if layer not in self._folders:
            t = self.top[layer]
            parts = (FORMAT, self.model.fingerprint([layer]), self.photos.fingerprint(), str(self.top.inside))
            key = digest([layer, *parts, t.image, t.row, t.col])
            self._folders[layer] = cache_folder("explorer") / key
        return self._folders[layer]

    def load(self, layer: str, name: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Tensors and words that were saved under this name; None where there are none, or not as they were."""
        if not self.photos.lasting:
            return None
        file = self._folder(layer) / f"{name}.safetensors"
        with suppress(ZfkitError, OSError):
            if file.is_file():
                return read_sealed(file)
        return None

    def save(self, layer: str, name: str, content: Content, words: Mapping[str, str] | None = None) -> None:
        """Keep tensors (encoded pictures as bytes) and words; where there is no room or right to, nothing happens."""
        if not self.photos.lasting:
            return
        tensors = {
            key: torch.frombuffer(bytearray(value), dtype=torch.uint8) if isinstance(value, bytes) else value
            for key, value in content.items()
        }
        metadata = sealed(tensors, words or {})
        with suppress(OSError):
            write_whole(
                self._folder(layer) / f"{name}.safetensors", lambda part: save_file(tensors, part, metadata)
            )
            if self._written % EVERY == 0:
                limit_cache(MOST)
            self._written += 1


def as_bytes(tensor: Tensor) -> bytes:
    """An encoded picture that was kept."""
    return tensor.numpy().tobytes()
