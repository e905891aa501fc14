"""What every feature map answers to each of many pictures: `Profile`, and one pass over the pictures that makes it."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..deconv.receptive_field import units_inside
from ..images.imageset import ImageSet, as_set
from ..nets.activations import features
from ..nets.graph import Concat, Network, Step
from ..nets.model import VisionModel, expect_model


def activations(model: VisionModel, pictures: Any, layer: str, *, progress: bool = True) -> Tensor:
    """What a layer answers to pictures: (N, C, H, W), or (N, F) of a fully connected one, on the CPU.

    Args:
        pictures: a set, whatever `ImageSet.of` makes one of, or one picture: uint8 (3, H, W), an array (H, W, 3), a
            path. Paths are brought to the network's own size.

    Raises LayerError for a layer that is not there, or pictures that the network cannot take.

    >>> zfkit.activations(model, "cat.jpg", "conv3")[0, 17].max()
    """
    expect_model(model).network.find(layer)
    images = as_set(pictures, model.input_size, progress)
    whole = features(model, images, [layer], lambda layer, outputs, index: outputs, progress=progress)
    return whole[layer].contiguous()


TOP = 100  # pictures whose labels are counted


@dataclass(frozen=True)
class Profile:
    """Every map's strongest activation in each of n pictures.

    Attributes:
        values: (n, C) float32.
        image: (n,) places in the image set.
        label: (n,) class or photograph of each, "" where there is none.
        kind: what the labels are: "class", "photograph" or "".
        inputs: (C, C_in) float32, what each map of a convolution's input adds to the strongest of these activations;
            None for other layers, and where it was not asked for.
    """

    values: np.ndarray
    image: np.ndarray
    label: np.ndarray
    kind: str
    inputs: np.ndarray | None = None

    @functools.cached_property
    def selectivity(self) -> tuple[np.ndarray, np.ndarray]:
        """Per map: `selectivity_index` of class means of rectified maxima, and the class with the largest mean.

        Pictures without a label are left out; 0 and "" where there are none with one.
        """
        names = np.unique(self.label[self.label != ""])
        if not len(names):
            C = self.values.shape[1]
            return np.zeros(C), np.full(C, "")
        values = torch.from_numpy(self.values.clip(min=0)).double()
        means = torch.stack([values[self.label == name].mean(0) for name in names])  # (classes, C)
        return selectivity_index(means).numpy(), names[means.argmax(0).numpy()]

    @functools.cached_property
    def correlation(self) -> np.ndarray:
        """(C, C) of the maps' activations over the pictures; -1 with a map that never changes, -2 with itself."""
        centred = self.values.astype(np.float64)
        centred -= centred.mean(0)
        norm = np.sqrt((centred**2).sum(0))
        with np.errstate(invalid="ignore", divide="ignore"):
            r = np.nan_to_num(centred.T @ centred / (norm * norm[:, None]), nan=-1.0)
        np.fill_diagonal(r, -2)
        return r

    def nearest(self, channel: int, count: int = 3) -> list[tuple[int, float]]:
        """The maps whose activations over the pictures correlate most with this one's."""
        r = self.correlation[channel]
        best = np.argsort(-r, kind="stable")[:count]
        return [(int(c), float(r[c])) for c in best if r[c] > -1]

    def top_labels(self, channel: int, count: int = TOP) -> tuple[list[tuple[str, int]], int]:
        """Labels of the labelled pictures that excite a map most, the most frequent first, and how many pictures."""
        values = self.values[:, channel]
        best = np.argsort(-values, kind="stable")
        best = best[(values[best] > 0) & (self.label[best] != "")][:count]
        return Counter(self.label[best].tolist()).most_common(), len(best)


def selectivity_index(means: Tensor, there: Tensor | None = None) -> Tensor:
    """(mu_max - mu_rest) / (mu_max + mu_rest) over class means (..., K, C) -> (..., C); 0 where all are 0.

    As Morcos et al. 2018 have it: mu_max is the largest mean, mu_rest the mean of the others.

    Args:
        there: (..., K) bool, which classes have pictures; None for all.
    """
    there = torch.ones(means.shape[:-1], dtype=torch.bool) if there is None else there
    weight = there.to(means).unsqueeze(-1)
    largest = means.masked_fill(~there.unsqueeze(-1), -math.inf).amax(-2)
    rest = ((means * weight).sum(-2) - largest) / (weight.sum(-2) - 1)
    return ((largest - rest) / (largest + rest)).nan_to_num(0.0)


def label_of(photos: ImageSet, i: int) -> str:
    """Label of picture i, as `labels_of` has it; "" where the picture would have to be read for it."""
    to_read = photos.classes and photos.known_labels() is None
    return "" if to_read else str(labels_of(photos, [i])[0][0])


def labels_of(photos: ImageSet, index: Sequence[int]) -> tuple[np.ndarray, str]:
    """Labels of the pictures at these places, and what they are: "class", "photograph" or "".

    Classes where any picture of the set has one (of these, where labels have to be read), and "" for those that have
    none; else the photographs that they were cut from.
    """
    if count := len(photos.classes):
        known = photos.known_labels()
        numbers = [int(known[i]) if known is not None else photos[i][1] for i in index]
        labels = [str(photos.classes[n]) if 0 <= n < count else "" for n in numbers]
        if any(labels) or (known is not None and bool(((known >= 0) & (known < count)).any())):
            return np.array(labels), "class"
    if photos.windows is not None:
        return np.array([photos.name(i).split(" (")[0] for i in index]), "photograph"
    return np.full(len(index), ""), ""


def profile(
    model: VisionModel,
    photos: ImageSet,
    layers: Sequence[str],
    *,
    index: Tensor,
    inside: bool = False,
    progress: bool = False,
) -> dict[str, Profile]:
    """Profiles of these layers over the pictures at the places `index` (n,), by one forward pass of each.

    Args:
        inside: leave out units that look beyond the picture's border.

    Raises LayerError where `inside` leaves no unit, ImageError for a picture that cannot be read.
    """
    units = {name: units_inside(model, name, photos.size) if inside else None for name in layers}
    reads = {name: step.inputs[0] for name in layers if (step := _mixing(model.network, name))}
    added = {name: _Inputs(model.network.steps[name].module) for name in reads}
    seen: dict[str, Tensor] = {}  # what convolutions read, of the batch that is looked at

    def strongest(name: str, output: Tensor, places: Tensor) -> Tensor | None:
        if name in reads.values():
            seen[name] = output
        if name not in units:
            return None
        span = units[name] if output.dim() == 4 else None
        maps = output if span is None else output[:, :, span[0], span[1]]
        if name in reads:
            corner = (span[0].start, span[1].start) if span is not None else (0, 0)
            added[name].look(seen[reads[name]], maps, corner)
        return maps.flatten(2).amax(2) if maps.dim() > 2 else maps

    order = [name for name in model.network.steps if name in units or name in reads.values()]
    rows = features(model, photos, order, strongest, index=index, what="measuring", progress=progress)
    labels, kind = labels_of(photos, index.tolist())
    return {
        name: Profile(
            rows[name].float().numpy(), index.numpy(), labels, kind,
            added[name].sums.cpu().numpy() if name in added else None,
        )
        for name in layers
    }  # fmt: skip


# ------------------------------------------------------------------------------ what a map's input adds to it


def _mixing(network: Network, layer: str) -> Step | None:
    """The layer's step, if it is a convolution padded with zeros that reads other maps, not the picture."""
    step = network.steps[layer]
    conv = step.module
    if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    return None if step.inputs[0] == network.input else step


class _Inputs:
    """Sums w * x over the window of each map's strongest unit so far, one for each map x that it reads.

    Attributes:
        sums: (C, C_in), whose rows with the biases are the activations `best` (C,).
    """

    def __init__(self, conv: nn.Module | None) -> None:
        assert isinstance(conv, nn.Conv2d)
        self.conv = conv
        self.best = conv.weight.new_full((conv.out_channels,), -torch.inf)
        self.sums = conv.weight.new_zeros(conv.out_channels, conv.in_channels)

    @torch.no_grad()
    def look(self, x: Tensor, y: Tensor, corner: tuple[int, int]) -> None:
        """Take in a batch: what the convolution read (n, C_in, H, W), and its output (n, C, h, w) from `corner` on."""
        conv, groups = self.conv, self.conv.groups
        best, place = y.flatten(2).max(2)
        best, picture = best.max(0)
        better = (best > self.best).nonzero()[:, 0].tolist()
        self.best = torch.maximum(self.best, best)
        (top, left), (down, across), (kh, kw) = map(int, conv.padding), conv.dilation, conv.kernel_size
        x = nn.functional.pad(x, (left, left, top, top))
        for c in better:
            n = int(picture[c])
            row, col = divmod(int(place[n, c]), y.shape[3])
            row, col = (row + corner[0]) * conv.stride[0], (col + corner[1]) * conv.stride[1]
            window = x[
                n, :, row : row + down * (kh - 1) + 1 : down, col : col + across * (kw - 1) + 1 : across
            ]
            size = conv.in_channels // groups
            first = c // (conv.out_channels // groups) * size
            self.sums[c] = 0
            self.sums[c, first : first + size] = (conv.weight[c] * window[first : first + size]).sum((1, 2))


# What gives as many maps as it reads, each made of the map of its own number (contrast normalisation: mainly).
_MAP_BY_MAP = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.BatchNorm2d, nn.LocalResponseNorm, nn.MaxPool2d,
    nn.AvgPool2d, nn.Identity, nn.Dropout, nn.Dropout2d,
)  # fmt: skip


def sources(network: Network, layer: str, layers: Collection[str]) -> list[tuple[str, int] | None]:
    """For each map that a convolution reads: which of `layers`, and which of its maps, it was made from.

    None where several maps were added or mixed on the way, or where none of `layers` stands before.
    """

    def behind(name: str) -> list[tuple[str, int] | None]:
        step, count = network.steps[name], network.shapes[name][0]
        if name in layers:
            return [(name, c) for c in range(count)]
        if isinstance(step.module, Concat):
            return [source for part in step.maps for source in behind(part)]
        if (isinstance(step.module, _MAP_BY_MAP) or step.block) and len(step.maps) == 1:
            return behind(step.maps[0])
        return [None] * count

    return behind(network.steps[layer].inputs[0])
