"""What the deconvnet makes of the strongest activations, beside what was in the picture: `project_top`.

For layers that cannot be projected, `cut_top` gives the latter alone.

A unit depends on its receptive field only. So few units are projected from crops around them, and many from
the whole picture, which units and layers then share. Both give what the whole picture gives.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from ..batching import OnStep, Portions, steps
from ..checks import Size, channel_list, layer_names, pair, whole_number
from ..deconv.project import Deconvnet, Tape, by_gradient, forward, way_back
from ..deconv.receptive_field import Box, extents, filters, window_in
from ..deconv.rules import Norm, Options, Rule, Seed
from ..deconv.windows import paste
from ..images.imageset import ImageSet
from ..images.shrink import fitted, shrink
from ..nets.activations import CPU_BYTES, batch_bytes
from ..nets.model import VisionModel
from ..results import Result
from .table import TopK

if TYPE_CHECKING:
    import pandas as pd

GREY = 128  # outside the picture
FORWARD_PIXELS = 16 * 224 * 224  # of pictures or crops in one forward pass
REVERSE_BYTES = 2**26  # for the windows of one reverse pass, roughly


@dataclass(frozen=True)
class Patches(Result, figure="patches_figure"):
    """The top k of C feature maps: what the deconvnet reconstructs, beside what was in the picture.

    Attributes:
        layer: its name.
        channels: (C,) int64, the feature maps.
        projection: (C, k, 3, S, S) float32, signed (one channel for one-channel networks); S is the side of
            the receptive field, at most that of the picture, or the `tile` that was asked for. 0 outside the picture.
            Of networks in double precision, float64. (C, 0, 3, S, S) where photographs alone were cut out. Of networks
            of other bands, the three that are shown.
        photo: (C, k, 3, S, S) uint8, the same window of the picture; mid-grey outside it.
        box: (C, k, 4) int64: left, top, right, bottom in pixels of the picture; it may stick out.
        image, row, col: (C, k) int64, where from; image -1 where there were fewer than k.
        value: (C, k) float32, the activations.
        notes: what to say of the projections beside them; a sentence where operations were passed by their gradient,
            or why there are none.
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
    notes: tuple[str, ...] = ()

    def table(self) -> pd.DataFrame:
        """Data frame, a row for each patch: layer, channel, rank, value, image, row, col, left, top, right, bottom."""
        import pandas as pd

        maps, rank = (self.image >= 0).nonzero(as_tuple=True)
        columns = {n: getattr(self, n)[maps, rank].numpy() for n in ("value", "image", "row", "col")}
        columns |= dict(zip(Box._fields, self.box[maps, rank].T.numpy(), strict=True))
        return pd.DataFrame({"layer": self.layer, "channel": self.channels[maps], "rank": rank, **columns})

    def likeness(self) -> Tensor:
        """(C,) float64, how alike a map's projections are: the mean cosine between any two of them.

        1 for equal ones, about 0 for unrelated ones; NaN where fewer than two are not empty.
        """
        each = []
        for of_map in self.projection:  # one by one, for the memory of doubles
            flat = of_map.double().flatten(1)
            norm = flat.norm(dim=1, keepdim=True)
            count = float((norm > 0).sum())
            total = float(torch.where(norm > 0, flat / norm, 0).sum(0).square().sum())
            each.append((total - count) / (count * (count - 1)) if count > 1 else math.nan)
        return torch.tensor(each, dtype=torch.float64)

    def __repr__(self) -> str:
        C, k, _, *side = self.photo.shape
        return f"Patches({self.layer}: {C} maps x {k} pictures, windows of {side[0]} x {side[1]} px)"


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
    tile: int | None = None,
    progress: bool = True,
) -> Patches:
    """Projections and patches of feature maps' strongest activations, as in Fig. 2 of the paper.

    Args:
        top: from `mine`, of the same network and pictures.
        channels: feature maps; None for all.
        k: how many of each; None for as many as were mined.
        rule, seed, lrn: as for `project`.
        tile: side in pixels that larger windows are brought to at once; enough to be looked at, and a fraction of the
            memory. None leaves them as they are.

    A window is the receptive field of a unit, and the whole picture where the receptive field is larger.

    Raises LayerError for an unknown layer or channel, and ZfkitError for a table of other pictures.
    """
    options, wanted = Options(rule, seed, lrn), {layer: channels}
    return project_many(model, photos, top, wanted, k=k, options=options, tile=tile, progress=progress)[layer]


def project_many(
    model: VisionModel,
    photos: ImageSet,
    top: TopK,
    wanted: Mapping[str, Sequence[int] | Tensor | None],
    *,
    k: int | None = None,
    options: Options = Options(),
    tile: int | Mapping[str, int] | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
    on_step: OnStep | None = None,
) -> dict[str, Patches]:
    """`project_top` for several layers at once, which then share the forward passes.

    `tile` may differ by layer; `device` is where projections and photographs are put, and those that stay on the
    network's GPU are not copied.
    """
    top.check(model, photos)
    tiles = tile if isinstance(tile, Mapping) else dict.fromkeys(wanted, tile)
    patches = {
        name: empty_patches(model, photos, top, name, channels, k, tiles[name], device=device)
        for name, channels in wanted.items()
    }
    units = {name: Units.of(empty) for name, empty in patches.items()}
    count, shorter = sum(map(len, units.values())), "fewer maps or layers take less"
    with steps(count, "projecting", "unit", progress, on_step, shorter) as done:
        for part in projected(model, photos, units, options):
            projection, photo = patches[part.layer].projection, patches[part.layer].photo
            shown, seen = part.projection.to(projection), part.photo.to(photo.device)
            size = (photo.shape[-2], photo.shape[-1])
            projection.flatten(0, 1)[part.slot] = shrink(shown, size)
            photo.flatten(0, 1)[part.slot] = shrink(seen, size)
            done(len(part.slot))
    return patches


def cut_top(
    model: VisionModel,
    photos: ImageSet,
    top: TopK,
    layer: str,
    channels: Sequence[int] | Tensor | None = None,
    *,
    k: int | None = None,
    tile: int | None = None,
    progress: bool = True,
) -> Patches:
    """`project_top` without projections: what was in the pictures, of any network."""
    top.check(model, photos)
    patches = empty_patches(model, photos, top, layer, channels, k, tile, projected=False)
    units = Units.of(patches)
    origin = patches.box.flatten(0, 1)[:, [1, 0]]
    rows, columns = window_in(model, photos.size, layer)
    size = (patches.photo.shape[-2], patches.photo.shape[-1])
    with steps(len(units), "cutting out", "patch", progress, shorter="fewer maps take less") as done:
        for part in torch.arange(len(units)).split(_pictures_at_once(model, photos.size)):
            here = units.pick(part)
            pictures, local = here.image.unique(return_inverse=True)
            shown = model.shown(photos.take(pictures))
            windows = cut_windows(shown, local, origin[here.slot], (rows.size, columns.size))
            patches.photo.flatten(0, 1)[here.slot] = shrink(windows, size)
            done(len(part))
    return patches


def empty_patches(
    model: VisionModel,
    photos: ImageSet,
    top: TopK,
    layer: str,
    channels: Sequence[int] | Tensor | None,
    k: int | None = None,
    tile: int | None = None,
    projected: bool = True,
    device: str | torch.device = "cpu",
) -> Patches:
    """The patches of one layer before anything is projected or cut out."""
    channels = channel_list(channels, len(top[layer].value), layer)
    k = top.k if k is None else whole_number(k, "k", 1, top.k)
    image, row, col, value = (getattr(top[layer], n)[channels, :k] for n in ("image", "row", "col", "value"))
    rows, columns = window_in(model, photos.size, layer)
    left, top_edge = col * columns.stride + columns.low, row * rows.stride + rows.low
    C, side = len(channels), (rows.size, columns.size)
    if tile is not None:
        side = fitted(*side, whole_number(tile, "tile, in pixels,"))
    dtype = torch.promote_types(model.dtype, torch.float32)
    return Patches(
        layer, channels,
        projection=torch.zeros(
            C, k if projected else 0, 1 if len(model.mean) == 1 else 3, *side, dtype=dtype, device=device
        ),
        photo=torch.full((C, k, 3, *side), GREY, dtype=torch.uint8, device=device),
        box=torch.stack([left, top_edge, left + columns.size, top_edge + rows.size], -1),
        image=image, row=row, col=col, value=value, notes=notes_on(model, layer, projected),
    )  # fmt: skip


def notes_on(model: VisionModel, layer: str, projected: bool = True) -> tuple[str, ...]:
    """What has to be said beside patches of this layer."""
    notes = []
    if operations := by_gradient(model, layer) if projected else ():
        are = "is" if len(operations) == 1 else "are"
        named = ", ".join(operations)
        notes.append(
            f"On the way back {named} {are} passed by the gradient: the literature has no rule for that."
        )
    if model.bands != 3:
        red, green, blue = model.show
        notes.append(f"Bands {red}, {green} and {blue} of {model.bands} are shown as red, green and blue.")
    return tuple(notes)


@dataclass(frozen=True)
class Units:
    """B units of a layer to project, and the slot of its C * k patches that each belongs to."""

    slot: Tensor  # (B,)
    image: Tensor  # (B,)
    channel: Tensor  # (B,)
    position: Tensor  # (B, 2) row, column

    @classmethod
    def of(cls, patches: Patches) -> Units:
        """One for each patch that there is a picture for."""
        slot = (patches.image >= 0).flatten().nonzero()[:, 0]
        channel = patches.channels[:, None].expand_as(patches.image)
        image, channel, row, col = (
            t.flatten()[slot] for t in (patches.image, channel, patches.row, patches.col)
        )
        return cls(slot, image, channel, torch.stack([row, col], 1))

    def __len__(self) -> int:
        return len(self.slot)

    def pick(self, index: Tensor) -> Units:
        """Some of them."""
        return Units(self.slot[index], self.image[index], self.channel[index], self.position[index])


class Projected(NamedTuple):
    """Some units of a layer, projected."""

    layer: str
    slot: Tensor  # (B,)
    projection: Tensor  # (B, C, h, w)
    photo: Tensor  # (B, 3, h, w) uint8
    rule: Rule


def projected(
    model: VisionModel, photos: ImageSet, units: Mapping[str, Units], *options: Options
) -> Iterator[Projected]:
    """Project all units; each layer by the cheapest way.

    Few units are projected from crops around them, many from the whole picture, which its units share, with those of
    other layers. Several options, which differ in their rules alone, share the forward passes.
    """
    if len(options) > 1 and any(_has_registered_rules(model, layer) for layer in units):
        for one in options:  # what such a rule records may depend on it
            yield from projected(model, photos, units, one)
        return
    whole: dict[str, Units] = {}
    for layer, of_layer in units.items():
        if not len(of_layer):
            continue
        crop = Crop.plan(model, layer, photos.size)
        all_pixels = len(of_layer.image.unique()) * math.prod(pair(photos.size))
        if crop is not None and len(of_layer) * math.prod(crop.size) < all_pixels:
            yield from _from_crops(model, photos, layer, of_layer, crop, options)
        else:
            whole[layer] = of_layer
    if whole:
        yield from _from_pictures(model, photos, whole, options)


def _has_registered_rules(model: VisionModel, layer: str) -> bool:
    return bool((way_back(model, layer).treatment == "registered").any())


def _passes(
    model: VisionModel, ways: Sequence[Deconvnet], pixels: Tensor, position: Tensor | None = None
) -> Iterator[tuple[Deconvnet, Tape]]:
    """For each way what it needs of one forward pass of these uint8 pictures; `position`: of one unit in each.

    The pass is that of a rule other than "deconvnet", if there is one: beside the switches it keeps masks of ReLUs.
    """
    most = max(ways, key=lambda way: way.options.rule != "deconvnet")
    outputs = most.options.seed == "activation"
    tape = forward(model, most, model.preprocess(pixels), outputs, position=position)
    return ((way, tape if way is most else way.own(tape)) for way in ways)


def _from_crops(
    model: VisionModel, photos: ImageSet, layer: str, units: Units, crop: Crop, options: Sequence[Options]
) -> Iterator[Projected]:
    ways = [Deconvnet(model.network, [layer], one) for one in options]
    order = units.image.argsort(stable=True)
    portions = Portions(f"projecting {model.name}", _pictures_at_once(model, crop.size))
    for part in portions.of(len(order)):
        with portions.attempt():
            here = units.pick(order[part])
            pictures, local = here.image.unique(return_inverse=True)
            pixels, position = crop.cut(photos.take(pictures), local, here.position)
            for way in _passes(model, ways, pixels, position):
                yield from project_units(model, *way, layer, here, torch.arange(len(here)), position, pixels)


def _pictures_at_once(model: VisionModel, size: Size) -> int:
    return max(1, _times(model) * FORWARD_PIXELS // math.prod(pair(size)))


def _times(model: VisionModel) -> int:
    """How many times more a GPU does at once: it has the memory, and stands idle with less."""
    return batch_bytes(model.device) // CPU_BYTES


def _from_pictures(
    model: VisionModel, photos: ImageSet, units: Mapping[str, Units], options: Sequence[Options]
) -> Iterator[Projected]:
    ways = [Deconvnet(model.network, list(units), one) for one in options]
    pictures = torch.cat([u.image for u in units.values()]).unique()  # sorted
    portions = Portions(f"projecting {model.name}", _pictures_at_once(model, photos.size))
    for part in portions.of(len(pictures)):
        with portions.attempt():  # what was handed over before memory ran out is then handed over again
            batch = pictures[part]
            pixels = photos.take(batch)
            for way in _passes(model, ways, pixels):
                for layer, of_layer in units.items():
                    here = of_layer.pick(torch.isin(of_layer.image, batch).nonzero()[:, 0])
                    local = torch.searchsorted(batch, here.image)
                    yield from project_units(model, *way, layer, here, local, here.position, pixels)


def project_units(
    model: VisionModel,
    deconvnet: Deconvnet,
    tape: Tape,
    layer: str,
    units: Units,
    image: Tensor,
    position: Tensor,
    pixels: Tensor,
) -> Iterator[Projected]:
    """Units of one tape, so many at a time as memory allows: their receptive fields, and the photo there.

    Args:
        image: (B,) of the tape and of `pixels` (N, 3, H, W) that each unit belongs to.
        position: (B, 2) of the units in the maps of the tape.
    """
    if not len(units):
        return
    rows, columns = window_in(model, (pixels.shape[-2], pixels.shape[-1]), layer)
    field = (rows.size, columns.size)
    origins = position * torch.tensor([rows.stride, columns.stride]) + torch.tensor([rows.low, columns.low])
    has_positions = len(tape.shapes[layer]) > 1
    size = max(1, _times(model) * REVERSE_BYTES // deconvnet.unit_bytes(layer, tape))
    portions = Portions(f"projecting {layer} of {model.name}", size, "units", inner=True)
    for part in portions.of(len(units)):
        with portions.attempt():
            on_device = image[part].to(model.device), units.channel[part].to(model.device)
            R, window = deconvnet.reverse(tape, layer, *on_device, position[part] if has_positions else None)
            offset = window.origin - origins[part].to(model.device)
            if window.size != field or offset.any():  # it was the whole picture
                R = paste(R, offset, field)
            photo = cut_windows(model.shown(pixels), image[part], origins[part], field)
            yield Projected(layer, units.slot[part], model.shown(R), photo, deconvnet.options.rule)


def cut_windows(pictures: Tensor, image: Tensor, origin: Tensor, size: tuple[int, int]) -> Tensor:
    """Windows of uint8 pictures (N, C, H, W), mid-grey outside -> (B, C, h, w).

    Args:
        image: (B,) which picture each is cut from.
        origin: (B, 2) row and column of its first pixel, possibly outside.
        size: h, w.
    """
    (h, w), (H, W) = size, pictures.shape[2:]
    windows = pictures.new_full((len(image), pictures.shape[1], h, w), GREY)
    for window, i, (top, left) in zip(windows, image.tolist(), origin.tolist(), strict=True):
        # The part of the window that lies in the picture.
        first_row, last_row = max(top, 0), min(top + h, H)
        first, last = max(left, 0), min(left + w, W)
        if first_row < last_row and first < last:  # a unit that sees nothing but padding sees no picture
            inside = pictures[i, :, first_row:last_row, first:last]
            window[:, first_row - top : last_row - top, first - left : last - left] = inside
    return windows


@dataclass(frozen=True)
class Crop:
    """Parts of a picture that hold a unit's receptive field and change nothing about it.

    Their corners are multiples of the layer's stride, so that every map before it keeps its grid; where the
    receptive field meets the picture's border, so does the crop.
    """

    size: tuple[int, int]
    stride: int
    low: tuple[int, int]  # of the receptive field of unit (0, 0)
    picture: tuple[int, int]

    @classmethod
    def plan(cls, model: VisionModel, layer: str, picture: Size) -> Crop | None:
        """The crop for a layer; None where units see everything, or strides of rows and columns differ."""
        extent = extents(model.network, layer).get(model.network.input)
        if (
            extent is None
            or extent[0].stride != extent[1].stride
            or extent[0].stride != int(extent[0].stride)
        ):
            return None  # where there are more units than pixels, the stride is a fraction
        if any(f.stride != int(f.stride) for s in model.network.way_to(layer) for f in filters(s) or ()):
            return None  # behind an upsampling, maps before it have a coarser grid than the layer
        stride, (height, width) = extent[0].stride, pair(picture)
        rows, columns = (  # so that the last corner is one, too
            side - max(0, side - (i.size + stride - 1)) // stride * stride
            for side, i in zip((height, width), extent, strict=True)
        )
        return cls((rows, columns), stride, (extent[0].low, extent[1].low), (height, width))

    def corners(self, position: Tensor) -> Tensor:
        """Top and left (B, 2) of the crops for units at these positions (B, 2)."""
        start = position * self.stride + torch.tensor(self.low)
        last = torch.tensor(self.picture) - torch.tensor(self.size)
        return torch.minimum((start // self.stride * self.stride).clamp(min=0), last)

    def cut(self, pixels: Tensor, image: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Crops (B, 3, h, w) around units of pictures (N, 3, H, W), and the units' positions (B, 2) in them."""
        corner = self.corners(position)
        return cut_windows(pixels, image, corner, self.size), position - corner // self.stride


def sample_maps(
    top: TopK,
    layers: Sequence[str] | None = None,
    maps: int | Literal["all"] = 24,
    random_seed: int = 0,
) -> dict[str, list[int]]:
    """Channels by layer, ascending: "all", or so many of each, drawn at random from those that were ever active.

    A layer's draw does not depend on the other layers, and more maps are those of fewer and others.

    Raises LayerError for layers that were not mined.
    """
    if maps != "all":
        whole_number(maps, "maps, unless 'all',")
    random_seed = whole_number(random_seed, "random_seed", 0, 2**63 - 1)
    channels = {}
    for layer in layer_names(layers, list(top.layers), list(top.layers)):
        if maps == "all":
            channels[layer] = list(range(len(top[layer].max)))
        else:
            live = torch.nonzero(top[layer].max > 0)[:, 0]
            seed = random_seed + zlib.crc32(layer.encode())
            order = torch.randperm(len(live), generator=torch.Generator().manual_seed(seed))
            channels[layer] = sorted(live[order[:maps]].tolist())
    return channels
