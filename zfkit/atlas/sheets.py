"""The pictures of a site: a layer's tiles on sheets of 16 maps, its wall of thumbnails, and the pictures looked at."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..batching import steps
from ..checks import pair
from ..deconv.rules import Options, Rule
from ..errors import ImageError, printable
from ..figures.natural import NaturalColours
from ..figures.pictures import square_columns, to_picture
from ..files import write_whole
from ..frequency import mean_frequency, power_spectrum
from ..images.colour import signed_to_rgb
from ..images.imageset import ImageSet
from ..images.shrink import fitted, shrink
from ..nets.model import VisionModel
from ..topk.frame import Frame
from ..topk.patches import GREY, Projected, Units, cut_top, empty_patches, project_top, projected
from ..topk.profile import label_of
from ..topk.table import TopK
from .probes import likeness_note, tile_sides

TILE = 96  # px, of a tile's longer side
THUMB = 64  # px, of one on a layer's wall
FACE = 48  # px, of a picture in the list of all
CRISP = 48  # px: smaller tiles are kept to the letter, and shown with their pixels as squares
MAPS = 16  # on one sheet
FACES = 20  # pictures in each row and column of a sheet of the list
QUALITY = 75  # of WebP; with 80 a site is a tenth larger
LEARNT = 32  # maps from whose projections a layer's natural colours are learnt
SMALLEST = 9  # px, of tiles that have a spectrum worth the name
Item = TypeVar("Item")
Made = TypeVar("Made")


class LayerSheets:
    """The sheets of one layer, written a portion of its maps at a time.

    A sheet has a row for each of 16 maps, and in it the k tiles. `photo-0.webp` holds the patches of the first 16 maps,
    `deconvnet-0.webp` their projections; `wall-photo.webp` the strongest of each of all maps, row by row.

    Attributes:
        tile, thumb: height and width of a tile, and of one on the wall.
        boxes: (C, k, 4) left, top, right, bottom of what each unit sees, in pixels of the picture.
        frequency: (C,) mean frequency of the strongest projections, in cycles/px; NaN where there are none.
        notes: what is to be said beside the projections.
    """

    def __init__(
        self, model: VisionModel, images: ImageSet, top: TopK, layer: str, rules: Sequence[Rule], folder: Path
    ) -> None:
        self.model, self.images, self.top, self.layer = model, images, top, layer
        self.rules, self.folder = rules, folder
        none = empty_patches(model, images, top, layer, [0], tile=TILE)
        self.notes = none.notes if rules else ()
        self.tile = self.window = fitted(none.photo.shape[-2], none.photo.shape[-1], TILE)
        self.frame = Frame(self.window, 1.0)
        self.natural = self._learnt() if rules else None
        self.thumb = fitted(*self.tile, THUMB)
        self.walls: dict[str, list[Tensor]] = {kind: [] for kind in ("photo", *rules)}
        self.boxes, self.frequency = np.empty((0, top.k, 4), int), np.empty(0, np.float32)
        self._sheets = 0

    def _learnt(self) -> NaturalColours | None:
        """From some maps' projections by the first rule their natural colours, where they are large enough for it.

        And how large a part of their windows is to be shown, and what is to be said of them.
        """
        live = (self.top[self.layer].max > 0).nonzero()[:, 0]
        some = live[torch.linspace(0, len(live) - 1, min(LEARNT, len(live))).long()] if len(live) else live
        if not len(some):
            return None
        k, of, options = min(3, self.top.k), (self.model, self.images, self.top), Options(self.rules[0])
        side = tile_sides(*of, {self.layer: some.tolist()}, options).get(self.layer, TILE)
        patches = project_top(*of, self.layer, some, k=k, rule=self.rules[0], tile=side, progress=False)
        alike = likeness_note(*of, self.layer, patches.likeness(), some.tolist(), k, options)
        self.frame, self.window = Frame.of(patches), (patches.photo.shape[-2], patches.photo.shape[-1])
        patches = self.frame(patches)
        self.notes = (*patches.notes, *alike)
        self.tile = fitted(patches.photo.shape[-2], patches.photo.shape[-1], TILE)
        return NaturalColours.of(patches) if max(self.tile) >= SMALLEST else None

    def draw(self, channels: Sequence[int], done: Callable[[int], Any]) -> None:
        """The sheets of these maps; all but a layer's last portion fill theirs. The rules share their passes."""
        empty = empty_patches(self.model, self.images, self.top, self.layer, channels, tile=TILE)
        C, k = empty.image.shape
        self.boxes = np.concatenate([self.boxes, empty.box.numpy()])
        kinds = ["photo", *self.rules, *(["natural"] if self.natural else [])]
        self._tiles = {kind: torch.full((C * k, 3, *self.tile), GREY, dtype=torch.uint8) for kind in kinds}
        self._means, self._corner = torch.full((C, k), torch.nan), torch.zeros(C * k, 2, dtype=torch.long)
        units = {self.layer: Units.of(empty)} if self.rules else {}
        for part in projected(self.model, self.images, units, *map(Options, self.rules)):
            self._put(part)
            done(len(part.slot))
        if not self.rules:
            patches = cut_top(
                self.model, self.images, self.top, self.layer, channels, tile=TILE, progress=False
            )
            self._tiles["photo"] = shrink(patches.photo.flatten(0, 1), self.tile)
        for kind, tiles in self._tiles.items():
            self.walls.setdefault(kind, []).append(shrink(tiles[::k], self.thumb))
        for _ in on_all_cores(self._save, itertools.product(self._tiles, range(-(-C // MAPS)))):
            pass  # what cannot be written is raised here
        self.frequency = np.concatenate([self.frequency, self._means[:, :3].nanmean(1).numpy()])
        self._sheets += -(-C // MAPS)
        self._tiles = {}

    def _put(self, part: Projected) -> None:
        """Some units' projections, and their patches with the first rule, which says what part of both is shown."""
        if part.rule == self.rules[0] and self.frame.factor > 1:
            self._corner[part.slot] = self.frame.corners(shrink(part.projection, self.window))
        projection = self._framed(part.projection, part.slot)
        self._tiles[part.rule][part.slot] = shrink(signed_to_rgb(projection.float()), self.tile)
        if part.rule != self.rules[0]:
            return
        if self.natural is not None:
            small = shrink(projection, self.tile)
            self._tiles["natural"][part.slot] = signed_to_rgb(self.natural.apply(small).float())
        self._tiles["photo"][part.slot] = shrink(self._framed(part.photo, part.slot), self.tile)
        leading = part.slot % self._means.shape[1] < 3
        self._means.view(-1)[part.slot[leading]] = mean_frequency(part.projection[leading]).float()

    def _framed(self, windows: Tensor, slot: Tensor) -> Tensor:
        if self.frame.factor == 1:
            return windows
        return self.frame.cut(shrink(windows, self.window), self._corner[slot])

    def _save(self, kind_and_sheet: tuple[str, int]) -> None:
        """One sheet of the tiles (C * k, 3, h, w) of one kind."""
        kind, n = kind_and_sheet
        tiles = self._tiles[kind]
        maps = tiles.view(-1, self.boxes.shape[1], *tiles.shape[1:])[n * MAPS : (n + 1) * MAPS]
        sheet = maps.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)  # (3, maps * h, k * w)
        save(to_picture(sheet), self.folder / f"{kind}-{self._sheets + n}.webp", max(self.tile) <= CRISP)

    def finish(self, channels: Sequence[int]) -> None:
        """The walls of the whole layer, and the filters of a layer that looks at the picture itself."""
        if not channels:  # none is ever active
            return
        for kind, parts in self.walls.items():
            self._save_grid(kind, torch.cat(parts), max(self.thumb) <= CRISP)
        if self.has_filters:
            module = self.model.network.steps[self.layer].module
            assert isinstance(module, nn.Conv2d)
            weight = module.weight.detach().cpu().float()[list(channels)]
            self._save_grid("filter", signed_to_rgb(weight), True)
            power = power_spectrum(weight.double()).sqrt()
            grey = (255 * power / power.amax((1, 2), keepdim=True).clamp(min=1e-30)).to(torch.uint8)
            self._save_grid("spectrum", grey[:, None].expand(-1, 3, -1, -1), True)

    def _save_grid(self, kind: str, tiles: Tensor, lossless: bool) -> None:
        save(to_picture(grid(tiles)), self.folder / f"wall-{kind}.webp", lossless)

    @property
    def has_filters(self) -> bool:
        """Can the layer's weights be looked at as pictures?"""
        step = self.model.network.steps[self.layer]
        reads_picture = step.inputs[0] == self.model.network.input
        return isinstance(step.module, nn.Conv2d) and reads_picture and step.module.weight.shape[1] in (1, 3)


def grid(tiles: Tensor) -> Tensor:
    """uint8 (n, 3, h, w) -> (3, rows * h, columns * w), row by row, as square as can be; mid-grey behind the last."""
    columns = max(1, square_columns(len(tiles)))
    rows = -(-len(tiles) // columns)
    full = tiles.new_full((rows * columns, *tiles.shape[1:]), GREY)
    full[: len(tiles)] = tiles
    cells = full.view(rows, columns, *tiles.shape[1:])
    return cells.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def save(picture: Image.Image, file: Path, lossless: bool = False) -> None:
    """As WebP, whole or not at all."""
    method = 0 if lossless else 2  # lossless, 2 takes eleven times as long for files a tenth smaller
    write_whole(
        file, lambda part: picture.save(part, "WEBP", lossless=lossless, quality=QUALITY, method=method)
    )


def on_all_cores(work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """What `work` makes of each, in order: Pillow encodes in one thread, and lets others run meanwhile."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield from pool.map(work, items)


class Thumbnails:
    """The pictures that some map of a site likes: each as a file of its own, and all small on sheets."""

    def __init__(self, folder: Path, images: ImageSet) -> None:
        self.folder, self.images = folder, images
        self.places: list[int] = []

    def write(self, top: TopK, channels: Mapping[str, Sequence[int]], progress: bool) -> None:
        """Those among the strongest of these maps, as far as they are not there yet."""
        used = torch.cat([top[name].image[list(of)].flatten() for name, of in channels.items()]).unique()
        self.places = sorted({*self.places, *used[used >= 0].tolist()})
        with steps(len(self.places), "pictures", "img", progress) as done:
            for n, start in enumerate(range(0, len(self.places), FACES**2)):
                faces = []
                for face in on_all_cores(self._one, self.places[start : start + FACES**2]):
                    faces.append(face)
                    done(1)
                save(to_picture(grid(torch.cat(faces))), self.folder / f"faces-{n}.webp")

    def _one(self, i: int) -> Tensor:
        """Write picture i, if that is not done; returns it small, (1, 3, h, w)."""
        try:
            pixels, _ = self.images[i]
        except ImageError as error:
            raise ImageError(
                f"{printable(self.images.name(i))} of {self.images.source!r} cannot be read any more ({error}): "
                "mine again, in another folder"
            ) from error
        file = self.folder / f"{i}.webp"
        if not file.is_file():
            save(to_picture(pixels), file)
        return shrink(pixels[None], fitted(pixels.shape[-2], pixels.shape[-1], FACE))

    def data(self) -> dict[str, Any]:
        """Names and labels of the pictures, and how they lie on the sheets."""
        labels = [label_of(self.images, i) for i in self.places]
        face = fitted(*pair(self.images.size), FACE)
        return {
            "places": self.places,
            "names": [printable(self.images.name(i)) for i in self.places],
            "labels": [printable(label) for label in labels],
            "face": list(face),
            "sheet": FACES**2,
        }
