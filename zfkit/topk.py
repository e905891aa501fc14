"""The strongest activations of every feature map, and what the deconvnet makes of them: `mine`, `project_top`.

`mine` looks at every picture once. What it keeps does not grow with their number: for each feature map its
k best pictures, with the place of the maximum, and three statistics.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .checkpoints import write_whole
from .deconv import Deconvnet, Norm, Options, Rule, Seed, Tape, cannot_run, forward, paste
from .errors import ImageError, LayerError, ZfkitError
from .images import ImageSet, Windows
from .models import VisionModel
from .receptive_field import Extent, Interval, extents

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1  # of saved tables


@dataclass(frozen=True)
class LayerTop:
    """The strongest activations of one layer's C feature maps.

    Attributes:
        value: (C, k) float32, descending; -inf where there were fewer than k pictures.
        image: (C, k) int64, place in the image set, -1 where there is none.
        row, col: (C, k) int64, the unit's place in its map.
        max, mean: (C,) float32, over all pictures, of each picture's strongest activation.
        active: (C,) float32, fraction of pictures on which some unit of the map is above 0.
    """

    value: Tensor
    image: Tensor
    row: Tensor
    col: Tensor
    max: Tensor
    mean: Tensor
    active: Tensor


_FIELDS = tuple(LayerTop.__dataclass_fields__)


@dataclass(frozen=True)
class TopK:
    """For every feature map of every layer that was mined, the k pictures that excite it most.

    Attributes:
        layers: `LayerTop` by layer name.
        k: how many per feature map.
        model: name of the network.
        images: source of the pictures.
        fingerprint: of the image set, so that a table is not used with another one.
        count: number of pictures looked at.
        inside: were units left out that look beyond the picture's border?
    """

    layers: dict[str, LayerTop]
    k: int
    model: str
    images: str
    fingerprint: str
    count: int
    inside: bool = False

    def __repr__(self) -> str:
        maps = sum(len(t.value) for t in self.layers.values())
        return f"TopK({self.model!r} on {self.images!r}: top {self.k} of {self.count:,} for {maps:,} feature maps)"

    def __getitem__(self, layer: str) -> LayerTop:
        if layer not in self.layers:
            raise LayerError(f"layer {layer!r} was not mined; this table has {', '.join(self.layers)}")
        return self.layers[layer]

    def table(self, layer: str | None = None) -> pd.DataFrame:
        """Data frame: layer, channel, rank (0 is the strongest), value, image, row, col.

        One line for each feature map and rank, of one layer or of all; ranks for which there was no picture
        are left out. Raises LayerError for a layer that was not mined.
        """
        import pandas as pd

        parts = []
        for name in [layer] if layer is not None else self.layers:
            top = self[name]
            channel, rank = torch.nonzero(top.image >= 0, as_tuple=True)
            columns = {k: getattr(top, k)[channel, rank].numpy() for k in ("value", "image", "row", "col")}
            parts.append(
                pd.DataFrame({"layer": name, "channel": channel.numpy(), "rank": rank.numpy(), **columns})
            )
        return pd.concat(parts, ignore_index=True)

    def statistics(self, layer: str) -> pd.DataFrame:
        """Data frame by channel: max and mean of the pictures' strongest activations, fraction active."""
        import pandas as pd

        top = self[layer]
        columns = {name: getattr(top, name).numpy() for name in ("max", "mean", "active")}
        return pd.DataFrame(columns).rename_axis("channel")

    def save(self, path: str | Path) -> Path:
        """Write everything to a Parquet file, whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        head = {k: getattr(self, k) for k in ("k", "model", "images", "fingerprint", "count", "inside")} | {
            "format": FORMAT
        }
        rows: dict[str, list[Any]] = {}
        for layer, top in self.layers.items():
            C = len(top.value)
            rows.setdefault("layer", []).extend([layer] * C)
            rows.setdefault("channel", []).extend(range(C))
            for name in _FIELDS:
                rows.setdefault(name, []).extend(getattr(top, name).tolist())
        single = {
            "value": pa.list_(pa.float32()),
            "max": pa.float32(),
            "mean": pa.float32(),
            "active": pa.float32(),
        }
        whole = {"layer": pa.string(), "channel": pa.int64()}
        kinds = {name: single.get(name) or whole.get(name) or pa.list_(pa.int64()) for name in rows}
        table = pa.table({name: pa.array(values, kinds[name]) for name, values in rows.items()})
        table = table.replace_schema_metadata({"zfkit": json.dumps(head)})
        write_whole(Path(path), lambda part: pq.write_table(table, part))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> TopK:
        """Read a table that `save` wrote. Raises ZfkitError for any other file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            head = json.loads((table.schema.metadata or {}).get(b"zfkit", "{}"))
            if head.pop("format", None) != FORMAT:
                raise ValueError("its header does not say so")
            expected = cls.__dataclass_fields__.keys() - {"layers"}
            lacking = expected ^ head.keys() or {"layer", "channel", *_FIELDS} ^ set(table.column_names)
            if lacking:
                raise ValueError(f"{', '.join(sorted(lacking))} missing or unknown")
        except FileNotFoundError:
            raise ZfkitError(f"there is no file {str(path)!r}; check the path") from None
        except (pa.ArrowInvalid, OSError, AttributeError, ValueError) as error:
            reason = str(error).strip().rstrip(".").splitlines()[0]
            raise ZfkitError(
                f"{Path(path).name} is not a table that this version of TopK.save wrote ({reason}); mine again"
            ) from None
        columns = table.to_pydict()
        layers: dict[str, LayerTop] = {}
        for layer in dict.fromkeys(columns["layer"]):
            here = [i for i, name in enumerate(columns["layer"]) if name == layer]
            part = {name: [columns[name][i] for i in here] for name in _FIELDS}
            floats = {"value", "max", "mean", "active"}
            tensors = {
                n: torch.tensor(v, dtype=torch.float32 if n in floats else torch.long)
                for n, v in part.items()
            }
            layers[layer] = LayerTop(**tensors)
        return cls(layers=layers, **head)

    def check(self, model: VisionModel, images: ImageSet) -> None:
        """Raise ZfkitError where this table was made with other pictures or another network."""
        if images.fingerprint() != self.fingerprint:
            raise ZfkitError(
                f"this table was mined from {self.images!r} ({self.count} pictures), not from {images.source!r} "
                f"({len(images)}) as it is now: mine again"
            )
        if model.name != self.model:
            raise ZfkitError(f"this table was mined with {self.model!r}, not with {model.name!r}: mine again")


# --------------------------------------------------------------------------------------------------- mine


def mine(
    model: VisionModel,
    images: ImageSet,
    layers: str | Sequence[str] | None = None,
    k: int = 9,
    *,
    per_photograph: int | None = None,
    inside: bool = False,
    batch_size: int | None = None,
    progress: bool = True,
) -> TopK:
    """The k pictures that excite each feature map most, from one pass over the pictures.

    Args:
        layers: names, or None for every convolutional layer. The network is cut after the deepest.
        k: how many distinct pictures for each feature map.
        per_photograph: where pictures are windows of larger photographs, at most so many of a map's k come
            from one photograph, and of windows that overlap only the strongest counts; default k / 3,
            rounded up.
        inside: leave out units that look beyond the picture's border, where they see padding. They are many
            in deep layers, and the edge of a picture against its padding excites some of them strongly.
        batch_size: pictures at a time; default: what keeps the largest layer's activations under 64 MiB (1
            GiB on a GPU). Results do not depend on it.
        progress: show a bar.

    An activation is the layer's own output (before the ReLU that follows). Ties go to the lower image, then
    row, then column. Raises LayerError for an unknown layer or pictures too small for it (with `inside`, for
    the receptive field), and ZfkitError where activations are not numbers.

    >>> top = mine(model, photos)
    >>> top.table("conv5").head()
    """
    names = [layers] if isinstance(layers, str) else list(layers if layers is not None else model.conv_layers)
    for name in names:
        model.network.find(name)
    if not names:
        raise LayerError(f"no layer was named to look at. There are: {', '.join(model.conv_layers)}")
    for what, value in (("k", k), ("per_photograph", per_photograph), ("batch_size", batch_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ZfkitError(f"{what} must be a whole number from 1 on, not {value!r}")
    if not len(images):
        raise ImageError("there are no pictures to look at")
    if batch_size is None:
        batch_size = _batch_size(model, images, names)
    best = {name: _Best(name, k, per_photograph or -(-k // 3), images.windows) for name in names}
    if inside:
        for name in names:
            best[name].inside = units_inside(model, name, images.size)
    with tqdm(
        total=len(images), desc=f"mining {model.name}", unit="img", disable=not progress, leave=False
    ) as bar:
        for batch in images.batches(batch_size):
            for name, output in activations(model, batch.pixels, names):
                best[name].look(output, batch.indices)
            bar.update(len(batch.indices))
    if not best[names[0]].count:
        reason = f": {images.skipped[0].reason}" if images.skipped else ""
        raise ImageError(f"none of the {len(images)} pictures of {images.source!r} can be read{reason}")
    found = {name: best[name].finish() for name in names}
    return TopK(found, k, model.name, images.source, images.fingerprint(), best[names[0]].count, inside)


@torch.inference_mode()
def activations(model: VisionModel, pixels: Tensor, layers: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Outputs of these layers for uint8 pictures (N, 3, H, W); each is to be looked at before the next.

    Raises LayerError for pictures that the network cannot take as far as that.
    """
    x = model.preprocess(pixels).contiguous(memory_format=torch.channels_last)
    try:
        for step, _, output in model.network.walk(x, layers):
            if step.name in layers:
                yield step.name, output
    except RuntimeError as error:
        raise cannot_run(model, layers, x, error) from error


def _batch_size(model: VisionModel, images: ImageSet, layers: Sequence[str]) -> int:
    """So many pictures that the largest of these layers' outputs stays under 64 MiB, 1 GiB on a GPU."""
    blank = torch.zeros(1, 3, images.size, images.size, dtype=torch.uint8)
    largest = max(output.numel() * output.element_size() for _, output in activations(model, blank, layers))
    budget = 2**30 if model.device.type == "cuda" else 2**26
    return max(1, min(256, budget // largest))


def units_inside(model: VisionModel, layer: str, side: int) -> tuple[slice, slice]:
    """Rows and columns of the units whose receptive field lies within pictures of this side.

    Raises LayerError where there is none.
    """
    spans = []
    for i in _field(model, side, layer):
        first = -(i.low // i.stride) if i.stride else 0  # the first n with n * stride + low >= 0
        last = (side - 1 - i.high) // i.stride if i.stride else 0
        if last < first:
            raise LayerError(
                f"units of {layer!r} see {i.size} px, so in pictures of {side} px none looks at the picture alone: "
                "take larger pictures, or leave out inside"
            )
        spans.append(slice(first, last + 1))
    return spans[0], spans[1]


class _Best:
    """The k best pictures of each map of one layer so far."""

    def __init__(self, layer: str, k: int, per_photograph: int, windows: Windows | None) -> None:
        self.layer, self.k, self.per_photograph, self.windows = layer, k, per_photograph, windows
        self.count = 0
        self.inside = slice(0, None), slice(0, None)  # the rows and columns that count
        self.width = 1  # of the part of the maps that counts, to tell row and column from a place
        self.value: Tensor  # (C, k) descending
        self.image: Tensor  # (C, k)
        self.place: Tensor  # (C, k) row * width + column
        self.max: Tensor  # (C,)
        self.sum: Tensor  # (C,) float64
        self.active: Tensor  # (C,) pictures
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []  # windows of the photograph being looked at

    def look(self, output: Tensor, index: Tensor) -> None:
        """Take in a batch: output (N, C, H, W) or (N, F), and the pictures' places in the set."""
        if output.dim() == 2:
            output = output[:, :, None, None]
        if output.dim() != 4:
            raise LayerError(
                f"{self.layer!r} has outputs of shape {tuple(output.shape)}, so it has no feature maps"
            )
        output = output[:, :, self.inside[0], self.inside[1]]
        strongest = output.amax((2, 3)).float()  # (N, C)
        if not torch.isfinite(strongest).all():
            first = int(index[(~torch.isfinite(strongest)).any(1).cpu()][0])
            raise ZfkitError(
                f"activations of {self.layer!r} on picture {first} are not finite: check the weights"
            )
        if not self.count:
            self._start(output)
        self.count += len(index)
        self.max = torch.maximum(self.max, strongest.amax(0))
        self.sum += strongest.sum(0, dtype=torch.float64)
        self.active += (strongest > 0).sum(0)
        # Where the maximum is matters only to pictures that can still get in.
        candidate = strongest > self.value[:, -1]
        place = torch.zeros_like(strongest, dtype=torch.long)
        n, c = torch.nonzero(candidate, as_tuple=True)
        place[n, c] = _first_maximum(output, strongest, n, c)
        strongest = strongest.masked_fill(~candidate, -torch.inf)
        index = index.to(output.device)
        if self.windows is None:
            self._merge(strongest, index[:, None].expand_as(strongest), place)
        else:
            for group in _runs(self.windows.photograph[index.cpu()]):
                if self.pending and self._photograph(self.pending[0][1]) != self._photograph(index[group]):
                    self._finish_photograph()
                self.pending.append((strongest[group], index[group], place[group]))

    def finish(self) -> LayerTop:
        """The result."""
        self._finish_photograph()
        image = self.image.masked_fill(self.value == -torch.inf, -1)
        return LayerTop(
            value=self.value.cpu(),
            image=image.cpu(),
            row=(self.place // self.width).cpu() + self.inside[0].start,
            col=(self.place % self.width).cpu() + self.inside[1].start,
            max=self.max.cpu(),
            mean=(self.sum / self.count).float().cpu(),
            active=(self.active / self.count).float().cpu(),
        )

    def _start(self, output: Tensor) -> None:
        C, self.width = output.shape[1], output.shape[3]
        device = output.device
        self.value = torch.full((C, self.k), -torch.inf, device=device)
        self.image = torch.full((C, self.k), -1, device=device)
        self.place = torch.zeros((C, self.k), dtype=torch.long, device=device)
        self.max = torch.full((C,), -torch.inf, device=device)
        self.sum = torch.zeros(C, dtype=torch.float64, device=device)
        self.active = torch.zeros(C, dtype=torch.long, device=device)

    def _merge(self, value: Tensor, image: Tensor, place: Tensor) -> None:
        """Candidates (n, C), in the order of their pictures, into the k best; of equals the earlier stays."""
        changed = torch.nonzero((value > self.value[:, -1]).any(0))[:, 0]
        if not len(changed):
            return
        parts = [
            torch.cat([old[changed], new[:, changed].T], 1)
            for old, new in ((self.value, value), (self.image, image), (self.place, place))
        ]
        order = parts[0].sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        self.value[changed], self.image[changed], self.place[changed] = (p.gather(1, order) for p in parts)

    def _photograph(self, index: Tensor) -> int:
        assert self.windows is not None
        return int(self.windows.photograph[int(index[0])])

    def _finish_photograph(self) -> None:
        """Of the photograph's windows keep, for each map, the strongest that do not overlap."""
        if not self.pending or self.windows is None:
            return
        value, index, place = (torch.cat(parts) for parts in zip(*self.pending, strict=True))
        self.pending = []
        overlap = self.windows.overlap(index.cpu()).to(value.device)
        chosen = []
        for _ in range(min(self.per_photograph, len(value))):
            pick = value.argmax(0, keepdim=True)  # the first of equals
            chosen.append([t.gather(0, pick) for t in (value, index[:, None].expand_as(value), place)])
            value = value.masked_fill(overlap[pick[0]].T, -torch.inf)
        self._merge(*(torch.cat(parts) for parts in zip(*chosen, strict=True)))


def _first_maximum(output: Tensor, strongest: Tensor, n: Tensor, c: Tensor) -> Tensor:
    """Place (row * width + column) of the maximum of maps output[n, c]; of equals, the first."""
    places = []
    for part in torch.arange(len(n), device=n.device).split(4096):  # a bounded copy
        maps = output[n[part], c[part]].flatten(1)
        places.append((maps == maps.amax(1, keepdim=True)).int().argmax(1))
    return torch.cat(places) if places else n


def _runs(values: Tensor) -> list[slice]:
    """Slices over which a tensor is constant."""
    ends = (torch.nonzero(values[1:] != values[:-1])[:, 0] + 1).tolist()
    return [slice(a, b) for a, b in zip([0, *ends], [*ends, len(values)], strict=True) if b > a]


# -------------------------------------------------------------------------------------------- project_top


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


GREY = 128  # outside the picture


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
    progress: bool = False,
) -> Patches:
    """Projections and patches of feature maps' strongest activations, as in Fig. 2 of the paper.

    Args:
        top: from `mine`, of the same network and pictures.
        channels: feature maps; None for all.
        k: how many of each; None for as many as were mined.
        rule, seed, lrn: as for `project`.

    Raises LayerError for an unknown layer or channel, and ZfkitError for a table of other pictures.
    """
    found = project_many(
        model, photos, top, {layer: channels}, k=k, options=Options(rule, seed, lrn), progress=progress
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
        field = _field(model, photos.size, layer)
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
    for layer, slots, pixels, photo in _windows(model, photos, units, options, progress):
        projection = results[layer].projection
        projection.flatten(0, 1)[slots] = pixels.to(projection.dtype)
        results[layer].photo.flatten(0, 1)[slots] = photo
    return results


FORWARD_PIXELS = 16 * 224 * 224  # of pictures or crops in one forward pass
REVERSE_BYTES = 2**28  # for the windows of one reverse pass, roughly


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
    model: VisionModel, photos: ImageSet, units: Mapping[str, _Units], options: Options, progress: bool
) -> Iterator[Projected]:
    """Project all units; each layer by the cheaper of two ways.

    A unit depends on its receptive field only. So few units are projected from crops around them, many from
    the whole picture, which its units share, with those of other layers.
    """
    whole: dict[str, _Units] = {}
    crops: dict[str, tuple[_Units, _Crop]] = {}
    for layer, of_layer in units.items():
        if not len(of_layer):
            continue
        crop = _Crop.plan(model, layer, photos.size)
        pictures = len(of_layer.image.unique())
        if crop is not None and len(of_layer) * crop.size**2 < pictures * photos.size**2:
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


def _from_pictures(
    model: VisionModel, photos: ImageSet, units: Mapping[str, _Units], options: Options
) -> Iterator[Projected]:
    if not units:
        return
    deconvnet = Deconvnet(model.network, list(units), options)
    used = torch.cat([u.image for u in units.values()]).unique()  # sorted
    for batch in used.split(max(1, FORWARD_PIXELS // photos.size**2)):
        pixels = photos.take(batch)
        tape = forward(model, deconvnet, model.preprocess(pixels))
        for layer, of_layer in units.items():
            here = of_layer.pick(torch.isin(of_layer.image, batch).nonzero()[:, 0])
            local = torch.searchsorted(batch, here.image)
            yield from _reverse(model, deconvnet, tape, layer, here, local, here.position, pixels)


def _from_crops(
    model: VisionModel, photos: ImageSet, layer: str, units: _Units, crop: _Crop, options: Options
) -> Iterator[Projected]:
    deconvnet = Deconvnet(model.network, [layer], options)
    order = units.image.argsort(stable=True)
    for part in order.split(max(1, FORWARD_PIXELS // crop.size**2)):
        here = units.pick(part)
        pictures, local = here.image.unique(return_inverse=True)
        pixels = photos.take(pictures)
        corner = crop.corners(here.position)  # (B, 2)
        cut = torch.stack(
            [
                pixels[i, :, top : top + crop.size, left : left + crop.size]
                for i, (top, left) in zip(local.tolist(), corner.tolist(), strict=True)
            ]
        )
        tape = forward(model, deconvnet, model.preprocess(cut))
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
    rows, columns = _field(model, pixels.shape[-1], layer)
    flat = tape.outputs[layer].dim() == 2
    device = model.device
    for part in torch.arange(len(units)).split(max(1, REVERSE_BYTES // deconvnet.unit_bytes(layer, tape))):
        place = position[part]
        R, window = deconvnet.reverse(
            tape, layer, image[part].to(device), units.channel[part].to(device), None if flat else place
        )
        origin = torch.stack(
            [place[:, 0] * rows.stride + rows.low, place[:, 1] * columns.stride + columns.low], 1
        )
        size = (rows.size, columns.size)
        offset = window.origin - origin.to(device)
        if window.size != size or offset.any():  # it was the whole picture
            R = paste(R, offset, size)
        yield layer, units.slot[part], R.cpu(), _cut_photo(pixels, image[part], origin, size)


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


def _field(model: VisionModel, side: int, layer: str) -> Extent:
    """Receptive field of a layer's units in pictures of this side; those of fully connected layers see all."""
    extent = extents(model.network, layer).get(model.network.input)
    return extent if extent is not None else (Interval(0, 0, side - 1), Interval(0, 0, side - 1))


@dataclass(frozen=True)
class _Crop:
    """Squares of a picture that hold a unit's receptive field and change nothing about it.

    Their corners are multiples of the layer's stride, so that every map before it keeps its grid; where the
    receptive field meets the picture's border, so does the crop.
    """

    size: int
    stride: int
    low: tuple[int, int]  # of the receptive field of unit (0, 0)
    picture: int

    @classmethod
    def plan(cls, model: VisionModel, layer: str, picture: int) -> _Crop | None:
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
