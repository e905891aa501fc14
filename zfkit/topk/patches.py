"""What the deconvnet makes of the strongest activations, beside what was in the picture: `project_top`.

A unit depends on its receptive field only. So few units are projected from crops around them, and many from
the whole picture, which units and layers then share. Both give what the whole picture gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..batching import Portions
from ..deconv.project import Deconvnet, Tape, forward
from ..deconv.receptive_field import extents, field_in
from ..deconv.rules import Norm, Options, Rule, Seed
from ..deconv.windows import paste
from ..errors import LayerError, ZfkitError
from ..images.imageset import ImageSet
from ..nets.model import VisionModel
from .table import TopK


@dataclass(frozen=True)
class Patches:
    """The top k of C feature maps: what the deconvnet reconstructs, beside what was in the picture.

    Attributes:
        layer: its name.
        channels: (C,) int64, the feature maps.
        projection: (C, k, 3, S, S) float32, signed (one channel for one-channel networks); S is the side of
            the receptive field. 0 outside the picture. Of networks in double precision, float64.
        photo: (C, k, 3, S, S) uint8, the same window of the picture; mid-grey outside it.
        box: (C, k, 4) int64: left, top, right, bottom in pixels of the picture; it may stick out.
        image, row, col: (C, k) int64, where from; image -1 where there were fewer than k.
        value: (C, k) float32, the activations.
    """

    layer: str
    channels: Tensor
    projection: Tensor
    photo: Tensor
    box: Tensor
    image: Tensor
    row: Tensor
    col: Tensor
    value: Tensor

    def __repr__(self) -> str:
        C, k, _, *side = self.photo.shape
        return f"Patches({self.layer}: {C} maps x {k} pictures, windows of {side[0]} x {side[1]} px)"


GREY = 128  # outside the picture


class Tapes(Protocol):
    """Forward passes of single whole pictures that were kept, by place in the image set; a dict, say."""

    def get(self, image: int, /) -> Tape | None:
        """None where that picture's was not kept."""


def project_top(
    model: VisionModel,
    photos: ImageSet,
    top: TopK,
    layer: str,
    channels: Sequence[int] | Tensor | None = None,
    *,
    k: int | None = None,
    rule: Rule = "deconvnet",
    seed: Seed = "one",
    lrn: Norm = "skip",
    tapes: Tapes | None = None,
    progress: bool = False,
) -> Patches:
    """Projections and patches of feature maps' strongest activations, as in Fig. 2 of the paper.

    Args:
        top: from `mine`, of the same network and pictures.
        channels: feature maps; None for all.
        k: how many of each; None for as many as were mined.
        rule, seed, lrn: as for `project`.
        tapes: forward passes of single whole pictures that were kept (`Deconvnet.forward` under the same rule and
            lrn, to this layer or further), by place in `photos`; used if they hold all pictures of these units.

    Raises LayerError for an unknown layer or channel, and ZfkitError for a table of other pictures.
    """
    options = Options(rule, seed, lrn)
    found = project_many(
        model, photos, top, {layer: channels}, k=k, options=options, tapes=tapes, progress=progress
    )
    return found[layer]


def project_many(
    model: VisionModel,
    photos: ImageSet,
    top: TopK,
    wanted: Mapping[str, Sequence[int] | Tensor | None],
    *,
    k: int | None = None,
    options: Options = Options(),
    tapes: Tapes | None = None,
    progress: bool = False,
) -> dict[str, Patches]:
    """`project_top` for several layers at once, which then share the forward passes."""
    top.check(model, photos)
    k = top.k if k is None else k
    if not 1 <= k <= top.k:
        raise ZfkitError(f"k must be 1 to {top.k}, as many as were mined, not {k}")
    units, results = {}, {}
    for layer, channels in wanted.items():
        t = top[layer]
        C = len(t.value)
        chosen = torch.arange(C) if channels is None else torch.as_tensor(channels).cpu()
        whole = not (chosen.is_floating_point() or chosen.dtype == torch.bool) or not chosen.numel()
        if chosen.dim() != 1 or not whole or not ((chosen >= 0) & (chosen < C)).all():
            raise LayerError(
                f"channels must be a list of feature maps, 0 to {C - 1} of {layer!r}, not {channels!r}"
            )
        chosen = chosen.long()
        image, row, col, value = (getattr(t, n)[chosen, :k] for n in ("image", "row", "col", "value"))
        field = field_in(model, photos.size, layer)
        box = torch.stack(
            [
                col * field[1].stride + field[1].low,
                row * field[0].stride + field[0].low,
                col * field[1].stride + field[1].high + 1,
                row * field[0].stride + field[0].high + 1,
            ],
            -1,
        )
        side = (field[0].size, field[1].size)
        results[layer] = Patches(
            layer, chosen,
            projection=torch.zeros(
                len(chosen), k, len(model.mean), *side, dtype=torch.promote_types(model.dtype, torch.float32)
            ),
            photo=torch.full((len(chosen), k, 3, *side), GREY, dtype=torch.uint8),
            box=box, image=image, row=row, col=col, value=value,
        )  # fmt: skip
        there = (image >= 0).flatten()
        channel = chosen[:, None].expand_as(image).flatten()
        units[layer] = _Units(there.nonzero()[:, 0], image.flatten()[there], channel[there],
                              torch.stack([row.flatten()[there], col.flatten()[there]], 1))  # fmt: skip
    for layer, slots, pixels, photo in _windows(model, photos, units, options, tapes or {}, progress):
        projection = results[layer].projection
        projection.flatten(0, 1)[slots] = pixels.to(projection.dtype)
        results[layer].photo.flatten(0, 1)[slots] = photo
    return results


FORWARD_PIXELS = 16 * 224 * 224  # of pictures or crops in one forward pass


REVERSE_BYTES = 2**26  # for the windows of one reverse pass, roughly


@dataclass(frozen=True)
class _Units:
    """Units to project, and the slot of the result that each belongs to."""

    slot: Tensor  # (B,)
    image: Tensor  # (B,)
    channel: Tensor  # (B,)
    position: Tensor  # (B, 2)

    def __len__(self) -> int:
        return len(self.slot)

    def pick(self, index: Tensor) -> _Units:
        return _Units(self.slot[index], self.image[index], self.channel[index], self.position[index])


Projected = tuple[str, Tensor, Tensor, Tensor]  # layer, slots, projections, photo patches


def _windows(
    model: VisionModel,
    photos: ImageSet,
    units: Mapping[str, _Units],
    options: Options,
    tapes: Tapes,
    progress: bool,
) -> Iterator[Projected]:
    """Project all units; each layer by the cheapest way.

    A unit depends on its receptive field only. So few units are projected from crops around them, many from
    the whole picture, which its units share, with those of other layers; and without any forward pass where
    that was kept.
    """
    whole: dict[str, _Units] = {}
    crops: dict[str, tuple[_Units, Crop]] = {}
    kept: dict[str, tuple[_Units, list[Tape]]] = {}
    for layer, of_layer in units.items():
        if not len(of_layer):
            continue
        crop = Crop.plan(model, layer, photos.size)
        pictures = of_layer.image.unique().tolist()  # sorted
        if options.seed == "one" and len(at_hand := [t for i in pictures if (t := tapes.get(i))]) == len(
            pictures
        ):
            kept[layer] = of_layer, at_hand
        elif crop is not None and len(of_layer) * crop.size**2 < len(pictures) * photos.size**2:
            crops[layer] = of_layer, crop
        else:
            whole[layer] = of_layer
    total = sum(len(u) for u in units.values())
    with tqdm(total=total, desc="projecting", unit="unit", disable=not progress, leave=False) as bar:
        for part in _from_pictures(model, photos, whole, options):
            yield part
            bar.update(len(part[1]))
        for layer, (of_layer, crop) in crops.items():
            for part in _from_crops(model, photos, layer, of_layer, crop, options):
                yield part
                bar.update(len(part[1]))
        for layer, (of_layer, at_hand) in kept.items():
            for part in _from_tapes(model, photos, layer, of_layer, at_hand, options):
                yield part
                bar.update(len(part[1]))


def _from_pictures(
    model: VisionModel, photos: ImageSet, units: Mapping[str, _Units], options: Options
) -> Iterator[Projected]:
    if not units:
        return
    deconvnet = Deconvnet(model.network, list(units), options)
    used = torch.cat([u.image for u in units.values()]).unique()  # sorted
    portions = Portions(f"projecting {model.name}", max(1, FORWARD_PIXELS // photos.size**2))
    for part in portions.of(len(used)):
        with portions.attempt():  # what was handed over before memory ran out is then handed over again
            batch = used[part]
            pixels = photos.take(batch)
            tape = forward(model, deconvnet, model.preprocess(pixels), outputs=options.seed == "activation")
            for layer, of_layer in units.items():
                here = of_layer.pick(torch.isin(of_layer.image, batch).nonzero()[:, 0])
                local = torch.searchsorted(batch, here.image)
                yield from _reverse(model, deconvnet, tape, layer, here, local, here.position, pixels)


def _from_tapes(
    model: VisionModel, photos: ImageSet, layer: str, units: _Units, tapes: list[Tape], options: Options
) -> Iterator[Projected]:
    deconvnet = Deconvnet(model.network, [layer], options)
    pictures, local = units.image.unique(return_inverse=True)
    yield from _reverse(
        model, deconvnet, Tape.together(tapes), layer, units, local, units.position, photos.take(pictures)
    )


def _from_crops(
    model: VisionModel, photos: ImageSet, layer: str, units: _Units, crop: Crop, options: Options
) -> Iterator[Projected]:
    deconvnet = Deconvnet(model.network, [layer], options)
    order = units.image.argsort(stable=True)
    portions = Portions(f"projecting {model.name}", max(1, FORWARD_PIXELS // crop.size**2))
    for part in portions.of(len(order)):
        with portions.attempt():
            here = units.pick(order[part])
            pictures, local = here.image.unique(return_inverse=True)
            pixels = photos.take(pictures)
            corner = crop.corners(here.position)  # (B, 2)
            cut = torch.stack(
                [
                    pixels[i, :, top : top + crop.size, left : left + crop.size]
                    for i, (top, left) in zip(local.tolist(), corner.tolist(), strict=True)
                ]
            )
            tape = forward(model, deconvnet, model.preprocess(cut), outputs=options.seed == "activation")
            position = here.position - corner // crop.stride
            yield from _reverse(model, deconvnet, tape, layer, here, torch.arange(len(here)), position, cut)


def _reverse(
    model: VisionModel,
    deconvnet: Deconvnet,
    tape: Tape,
    layer: str,
    units: _Units,
    image: Tensor,
    position: Tensor,
    pixels: Tensor,
) -> Iterator[Projected]:
    """Units of one tape, so many at a time as memory allows: their receptive fields, and the photo there."""
    if not len(units):
        return
    rows, columns = field_in(model, pixels.shape[-1], layer)
    flat = len(tape.shapes[layer]) == 1
    device = model.device
    size = max(1, REVERSE_BYTES // deconvnet.unit_bytes(layer, tape))
    portions = Portions(f"projecting {layer} of {model.name}", size, "units", inner=True)
    for part in portions.of(len(units)):
        with portions.attempt():
            place = position[part]
            R, window = deconvnet.reverse(
                tape, layer, image[part].to(device), units.channel[part].to(device), None if flat else place
            )
            origin = torch.stack(
                [place[:, 0] * rows.stride + rows.low, place[:, 1] * columns.stride + columns.low], 1
            )
            field = (rows.size, columns.size)
            offset = window.origin - origin.to(device)
            if window.size != field or offset.any():  # it was the whole picture
                R = paste(R, offset, field)
            yield layer, units.slot[part], R.cpu(), _cut_photo(pixels, image[part], origin, field)


def _cut_photo(pixels: Tensor, image: Tensor, origin: Tensor, size: tuple[int, int]) -> Tensor:
    """Windows of uint8 pictures (N, 3, H, W), mid-grey outside -> (B, 3, h, w)."""
    h, w = size
    patches = pixels.new_full((len(image), 3, h, w), GREY)
    H, W = pixels.shape[2:]
    for patch, i, (top, left) in zip(patches, image.tolist(), origin.tolist(), strict=True):
        t, b = max(top, 0), min(top + h, H)
        lft, r = max(left, 0), min(left + w, W)
        if t < b and lft < r:  # a unit that sees nothing but padding sees no picture
            patch[:, t - top : b - top, lft - left : r - left] = pixels[i, :, t:b, lft:r]
    return patches


@dataclass(frozen=True)
class Crop:
    """Squares of a picture that hold a unit's receptive field and change nothing about it.

    Their corners are multiples of the layer's stride, so that every map before it keeps its grid; where the
    receptive field meets the picture's border, so does the crop.
    """

    size: int
    stride: int
    low: tuple[int, int]  # of the receptive field of unit (0, 0)
    picture: int

    @classmethod
    def plan(cls, model: VisionModel, layer: str, picture: int) -> Crop | None:
        """The crop for a layer; None where units see everything, or strides of rows and columns differ."""
        extent = extents(model.network, layer).get(model.network.input)
        if extent is None or extent[0].stride != extent[1].stride:
            return None
        stride = extent[0].stride
        need = max(i.size for i in extent) + stride - 1
        size = picture - max(0, picture - need) // stride * stride  # so that the last corner is one, too
        return cls(size, stride, (extent[0].low, extent[1].low), picture)

    def corners(self, position: Tensor) -> Tensor:
        """Top and left (B, 2) of the crops for units at these positions (B, 2)."""
        start = position * self.stride + torch.tensor(self.low)
        return (start // self.stride * self.stride).clamp(0, self.picture - self.size)


def _check_maps(maps: int | str | Mapping[str, Sequence[int]], layers: Sequence[str]) -> None:
    if isinstance(maps, Mapping):
        without = [name for name in layers if name not in maps]
        if without:
            raise LayerError(
                f"maps says nothing of {', '.join(without)}; it has {', '.join(maps) or 'nothing'}"
            )
    elif maps != "all" and (isinstance(maps, bool) or not isinstance(maps, int) or maps < 1):
        raise ZfkitError(f"maps must be a number of feature maps from 1 on, or 'all', not {maps!r}")


def sample_maps(
    top: TopK, layers: Sequence[str] | None = None, maps: int | Literal["all"] = 24, seed: int = 0
) -> dict[str, list[int]]:
    """Channels by layer: so many of each, drawn at random from those that were ever active; ascending."""
    _check_maps(maps, [])
    generator = torch.Generator().manual_seed(seed)
    chosen = {}
    for layer in layers if layers is not None else top.layers:
        live = torch.nonzero(top[layer].max > 0)[:, 0]
        if maps == "all":
            chosen[layer] = list(range(len(top[layer].max)))
        else:
            order = torch.randperm(len(live), generator=generator)
            chosen[layer] = sorted(live[order[:maps]].tolist())
    return chosen
