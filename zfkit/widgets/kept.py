"""What widgets have computed and keep on disk for the next time: thumbnails, profiles, projected pages, evolutions.

Everything is keyed by the bytes of weights and pictures and by the way back, and has a checksum: what does not fit, or
is damaged, is made again. The folder is a part of zfkit's cache, of which `zfkit cache` says how large it is, and which
it clears. Profiles and thumbnails of bundled networks on the bundled photographs ship (`benchmarks/bundled.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..checksums import Content, digest, read_kept, write_kept
from ..deconv.project import Deconvnet
from ..errors import ZfkitError
from ..files import cache_folder
from ..images.imageset import ImageSet
from ..nets.model import VisionModel
from ..topk.table import TopK

FORMAT = "2"  # with another rule or another layout of what is kept, another number
DATA = Path(__file__).parent / "data"


class Kept:
    """Results for one network, album and table, by layer and name.

    Nothing where the album has no lasting name, nor behind rules of your own (`register_rule`), of which nothing tells
    one from another.
    """

    def __init__(self, model: VisionModel, photos: ImageSet, top: TopK) -> None:
        self.model, self.photos, self.top = model, photos, top
        self._keys: dict[str, str] = {}

    def key(self, layer: str) -> str:
        """Of the weights that lead to the layer, the pictures, the table's places, and the way back; "" for nothing."""
        try:
            rules = Deconvnet(self.model.network, [layer]).rules[layer]
        except ZfkitError:  # it has patches alone
            rules = {}
        treated = [f"{name} {rule.treatment}" for name, rule in rules.items()]
        if not self.photos.lasting or any(rule.treatment == "registered" for rule in rules.values()):
            return ""
        if layer not in self._keys:
            t = self.top[layer]
            parts = (FORMAT, self.model.fingerprint([layer]), self.photos.fingerprint(), str(self.top.inside))
            self._keys[layer] = digest([layer, *parts, t.image, t.row, t.col])
        return digest([self._keys[layer], *treated])

    def load(self, layer: str, name: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Tensors and words that were saved under this name; None where there are none, or not as they were."""
        key = self.key(layer)
        shipped = DATA / f"{self.model.name}-{self.photos.source}" / f"{layer}-{name}"
        for file in (shipped, cache_folder("explorer") / key / name) if key else ():
            if found := read_kept(file.with_name(f"{file.name}.safetensors"), key):
                return found
        return None

    def save(self, layer: str, name: str, content: Content, words: Mapping[str, str] | None = None) -> None:
        """Keep tensors (encoded pictures as bytes) and words; where there is no room or right to, nothing happens."""
        if key := self.key(layer):
            write_kept(cache_folder("explorer") / key / f"{name}.safetensors", key, content, words or {})


def as_bytes(tensor: Tensor) -> bytes:
    """An encoded picture that was kept."""
    return tensor.numpy().tobytes()
