"""What training shows the network: shuffled, shifted, mirrored pictures, the same for any device or process count.

All chance is drawn ahead, from the seed and the epoch alone (`draw`). So a run that was stopped goes on with
exactly the pictures it would have seen, and several processes share one batch without talking to each other.
Pictures that fit live on the device as uint8 and are cut there (`Resident`); others are read, decoded and cut by the
processes of a `DataLoader` (`Streamed`). Both are finished on the device by `shade`, and give the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import Size, in_px, pair, picture_size, square_side
from ..errors import ImageError, ZfkitError
from ..images.imageset import ImageSet

BLOCKS_MIXED = 16  # row groups of Parquet that are shuffled together: as many as `ImageSet` keeps


def generator(*parts: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A random generator that depends on these numbers only (seed, epoch, step ...)."""
    # How many there are goes in, too: numpy takes (1, 2) and (1, 2, 0) for the same seed.
    state = np.random.SeedSequence([*parts, len(parts)]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) % 2**63)


@dataclass(frozen=True)
class Geometry:
    """Which crops of a picture training takes.

    Attributes:
        size: side of the network's input, in pixels.
        picture: side of the pictures, in pixels.
        pad: pixels of mean colour around the picture, so that a crop may hang over.
        brightness: a crop is made brighter or darker by a factor of up to 1 +- this.
    """

    size: int
    picture: int
    pad: int = 0
    brightness: float = 0.0

    @property
    def positions(self) -> int:
        """Positions of a crop along one side."""
        return self.picture + 2 * self.pad - self.size + 1


def crops_of(size: int, picture: int) -> Geometry:
    """Crops inside larger pictures, as at the paper's 224 of 256; of equal ones, crops that hang over a little."""
    return Geometry(size, picture, round(6 * size / 64), 0.2) if picture == size else Geometry(size, picture)


@dataclass(frozen=True)
class Draws:
    """One epoch's chances, in the order in which pictures come: each (n,)."""

    index: Tensor  # place in the set
    top: Tensor  # the crop's first row and column, in pixels of the picture; negative where it hangs over
    left: Tensor
    mirror: Tensor  # bool
    brightness: Tensor  # factor

    def __getitem__(self, part: slice) -> Draws:
        return Draws(*(t[part] for t in vars(self).values()))

    def to(self, device: torch.device) -> Draws:
        """The same draws on a device."""
        return Draws(*(t.to(device, non_blocking=True) for t in vars(self).values()))


def draw(count: int, geometry: Geometry, random_seed: int, epoch: int, blocks: Tensor | None = None) -> Draws:
    """The order of an epoch over `count` pictures, and a random crop, mirror and brightness for each.

    Args:
        blocks: first places of pictures stored together. Then blocks are shuffled, and pictures within each
            16 of them, so that a disk is read in long runs and a data loader holds 16 blocks.
    """
    g = generator(random_seed, epoch)
    top, left = torch.randint(geometry.positions, (2, count), generator=g) - geometry.pad
    mirror = torch.rand(count, generator=g) < 0.5
    brightness = 1 + geometry.brightness * (2 * torch.rand(count, generator=g) - 1)
    if blocks is None:
        index = torch.randperm(count, generator=g)
    else:
        ends = torch.cat([blocks[1:], torch.tensor([count])])
        order = torch.randperm(len(blocks), generator=g)
        parts = []
        for group in order.split(BLOCKS_MIXED):
            places = torch.cat([torch.arange(int(blocks[b]), int(ends[b])) for b in group])
            parts.append(places[torch.randperm(len(places), generator=g)])
        index = torch.cat(parts)
    return Draws(index, top, left, mirror, brightness)


def _rows_and_columns(draws: Draws, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """(n, S) each: the picture's rows and columns that a crop shows, mirrored where it is."""
    side = torch.arange(geometry.size, device=draws.top.device)
    columns = torch.where(draws.mirror[:, None], side.flip(0), side)
    return draws.top[:, None] + side, draws.left[:, None] + columns


def crop(pictures: Tensor, draws: Draws, geometry: Geometry) -> Tensor:
    """Crops (n, S, S, 3) of uint8 pictures (n, H, W, 3), mirrored where drawn; anything where they hang over."""
    n, height, width, _ = pictures.shape
    rows, columns = _rows_and_columns(draws, geometry)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    # One index into all pixels is several times as quick as three.
    pixel = (torch.arange(n, device=rows.device)[:, None] * height + rows) * width  # (n, S)
    return pictures.reshape(-1, 3)[pixel[:, :, None] + columns[:, None, :]]


def shade(crops: Tensor, draws: Draws, geometry: Geometry, mean: Tensor) -> Tensor:
    """Crops (n, S, S, 3) as float (n, 3, S, S), 0-255: brightened as drawn, `mean` (3,) where they hang over."""
    x = crops.float()
    if geometry.brightness:
        x = (x * draws.brightness[:, None, None, None]).clamp_(0, 255)
    if geometry.pad:
        rows, columns = ((t >= 0) & (t < geometry.picture) for t in _rows_and_columns(draws, geometry))
        x = torch.where((rows[:, :, None] & columns[:, None, :])[..., None], x, mean)
    # As it lies in memory that is channels-last, which convolutions on a GPU prefer.
    return x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


class Resident:
    """A set in memory, copied to the device as uint8 (N, H, W, 3), as a feed of batches."""

    def __init__(self, images: ImageSet, geometry: Geometry, mean: Tensor, device: torch.device) -> None:
        self.geometry, self.mean, self.device = geometry, mean.to(device), device
        whole = images.take(torch.arange(len(images)))  # (N, 3, H, W)
        self._pictures = torch.empty((len(whole), *whole.shape[2:], 3), dtype=torch.uint8, device=device)
        for start in range(0, len(whole), 4096):  # in parts: a permuted copy of the whole is not needed
            part = slice(start, start + 4096)
            self._pictures[part] = whole[part].to(device).permute(0, 2, 3, 1)
        labels = images.known_labels()
        assert labels is not None
        self._labels = labels.to(device)

    def batches(self, draws: Draws, spans: list[slice]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each span of the epoch's draws its (n, 3, S, S) floats, 0-255, and (n,) labels, on the device."""
        draws = draws.to(self.device)
        for span in spans:
            mine = draws[span]
            crops = crop(self._pictures[mine.index], mine, self.geometry)
            yield shade(crops, mine, self.geometry, self.mean), self._labels[mine.index]


class Streamed:
    """A set that is read while training, by `workers` processes, as a feed of the same batches."""

    def __init__(
        self, images: ImageSet, geometry: Geometry, mean: Tensor, device: torch.device, workers: int
    ) -> None:
        self.images, self.geometry, self.mean, self.device = images, geometry, mean.to(device), device
        self.workers = workers

    def batches(self, draws: Draws, spans: list[slice]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each span of the epoch's draws its (n, 3, S, S) floats, 0-255, and (n,) labels, on the device."""
        from torch.utils.data import DataLoader

        dataset: Any = _Crops(self.images, draws, self.geometry.size)
        # Ranges, not lists: of a million places those are large.
        batches: Any = [range(s.start, s.stop) for s in spans]
        # Readers are closures over open sources: a forked process has them, a spawned one would not.
        ahead: dict[str, Any] = {"pin_memory": self.device.type == "cuda"}
        ahead |= {"multiprocessing_context": "fork", "prefetch_factor": 4} if self.workers else {}
        loader: Any = DataLoader(dataset, batch_sampler=batches, num_workers=self.workers, **ahead)
        draws = draws.to(self.device)
        for span, (pictures, labels) in zip(spans, loader, strict=True):
            pictures, labels = (t.to(self.device, non_blocking=True) for t in (pictures, labels))
            crops = pictures.permute(0, 2, 3, 1)
            yield shade(crops, draws[span], self.geometry, self.mean), labels


Feed = Resident | Streamed


class _Crops:
    """Picture by picture, as a data loader wants them: place in the epoch -> (3, S, S) uint8, label."""

    def __init__(self, images: ImageSet, draws: Draws, size: int) -> None:
        self.images, self.draws, self.size = images, draws, size

    def __len__(self) -> int:
        return len(self.draws.index)

    def __getitem__(self, n: int) -> tuple[Tensor, int]:
        from torchvision.transforms.v2 import functional as transform

        pixels, label = self._readable(int(self.draws.index[n]))
        top, left = int(self.draws.top[n]), int(self.draws.left[n])
        pixels = transform.crop(pixels, top, left, self.size, self.size)  # 0 where it hangs over, for now
        return (transform.horizontal_flip(pixels) if self.draws.mirror[n] else pixels).contiguous(), label

    def _readable(self, i: int) -> tuple[Tensor, int]:
        """Picture i, or the next one that can be read: a damaged file among a million does not end a run."""
        for j in range(i, i + 100):
            try:
                return self.images[j % len(self.images)]
            except ImageError as error:
                warnings.warn(f"{error}; the next picture takes its place", stacklevel=2)
        raise ImageError(f"a hundred pictures from place {i} on cannot be read; check {self.images.source!r}")


def ten_crops(pictures: Tensor, geometry: Geometry) -> Iterator[Tensor]:
    """The paper's ten crops of uint8 (n, 3, H, W): four corners and the centre, and their mirror images.

    Pictures as large as the input are first extended by `geometry.pad` pixels of their border, as in training.
    """
    if geometry.pad:
        padding = [geometry.pad] * 4
        pictures = torch.nn.functional.pad(pictures.float(), padding, mode="replicate").to(torch.uint8)
    size = geometry.size
    last = pictures.shape[-1] - size
    for top, left in ((0, 0), (0, last), (last, 0), (last, last), (last // 2, last // 2)):
        view = pictures[:, :, top : top + size, left : left + size]
        yield view
        yield view.flip(3)


def centre_crop(pictures: Tensor, size: Size) -> Tensor:
    """The middle of uint8 (n, C, H, W), of this size."""
    for axis, n in zip((2, 3), pair(size), strict=True):
        pictures = pictures.narrow(axis, (pictures.shape[axis] - n) // 2, n)
    return pictures


def views(pictures: Tensor, size: Size, crops: int = 1, geometry: Geometry | None = None) -> Iterable[Tensor]:
    """What a network of this input size is shown of uint8 (n, C, H, W): the centre crop, or each of the ten crops."""
    if crops == 1:
        return [centre_crop(pictures, size)]
    why = "ten crops are squares of squares"
    picture = square_side(picture_size(list(pictures.shape[-2:]), "pictures"), why)
    return ten_crops(pictures, geometry or crops_of(square_side(size, why), picture))


def expect_room(
    model: str, size: Size, images: ImageSet, error: type[ZfkitError], other: Size | None = None
) -> None:
    """Raise where pictures are smaller than a network's input; `other` is the size to load them with instead."""
    if any(n > side for n, side in zip(pair(size), pair(images.size), strict=True)):
        asked = f"size={other or size}" + " or more" * (other is None)
        raise error(
            f"{model} takes {in_px(size)} and the pictures of {images.source!r} are {in_px(images.size)}: load them "
            f"with {asked}"
        )
