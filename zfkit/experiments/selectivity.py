"""Is layer 4 class-specific, and does layer 5 show objects in any pose? The paper's claims as numbers (section 4).

Of Fig. 2 the paper says that layer 4 is "more class-specific" and that layer 5 shows "entire objects with
significant pose variation". `selectivity` measures the first, `pose_variation` the second; both beside a control
that says what chance would give. Selective does not mean important (Morcos et al. 2018, arXiv 1803.06959).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..deconv.receptive_field import Interval, extents, field_in, fits_inside
from ..errors import ImageError, LayerError, ZfkitError
from ..health import Unit, units_of
from ..images.imageset import ImageSet
from ..nets.activations import activations
from ..nets.model import VisionModel
from ..topk.mine import mine
from ..topk.patches import sample_maps
from ..topk.table import TopK

if TYPE_CHECKING:
    import pandas as pd


# -------------------------------------------------------------------------------------------- selectivity


@dataclass(frozen=True)
class Selectivity:
    """How much each feature map tells classes apart; made by `selectivity`.

    Attributes:
        model, images: their names.
        kind: what the classes are: "class" (labels), or "photograph" (windows of one photograph are a class).
        classes: how many there are. pictures: how many were looked at.
        k: of the strongest pictures, whose classes' entropy is taken.
        maps: data frame, a row for each layer and channel: index, entropy (bits), and the same with labels
            shuffled, mean over the shuffles: index_shuffled, entropy_shuffled. NaN for maps that are never active.
    """

    model: str
    images: str
    kind: str
    classes: int
    pictures: int
    k: int
    maps: pd.DataFrame = field(repr=False)

    def table(self) -> pd.DataFrame:
        """Data frame by layer: median and quartiles over maps of index and entropy, medians of the controls.

        above: fraction of maps whose index is larger than that of 95% of the layer's maps with labels shuffled.
        entropy_most: that of k different classes, log2 k.
        """
        rows = {}
        for layer, part in self.maps.groupby("layer", sort=False):
            part = part.dropna()
            row = {"maps": float(len(part))}
            for name in ("index", "entropy"):
                low, middle, high = (float(part[name].quantile(q)) for q in (0.25, 0.5, 0.75))
                shuffled = float(part[f"{name}_shuffled"].median())
                row |= {name: middle, f"{name}_q25": low, f"{name}_q75": high, f"{name}_shuffled": shuffled}
            row["above"] = float((part["index"] > part["index_shuffled"].quantile(0.95)).mean())
            row["entropy_most"] = math.log2(min(self.k, self.classes))
            rows[layer] = row
        import pandas as pd

        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer").astype({"maps": int})


def selectivity(
    model: VisionModel,
    images: ImageSet,
    layers: str | Sequence[str] | None = None,
    *,
    k: int = 9,
    shuffles: int = 5,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Selectivity:
    """Class-selectivity index and entropy of the top k's classes, of every feature map.

    With mu_c the mean over pictures of class c of a map's activity (behind its ReLU, averaged over the map):

        index = (mu_max - mu_rest) / (mu_max + mu_rest)

    where mu_max is the largest mu_c and mu_rest the mean of the others (Morcos et al. 2018): 0 for a map that does
    not care, 1 for one that is active for one class only. Of few pictures a class the largest mean is large by
    chance, and more so for maps that are rarely active; so compare with the index for shuffled labels. Entropy is
    -sum p log2 p over the classes of the k pictures that excite the map most: 0 if all are of one class.

    Args:
        images: labelled; or windows of photographs, of which each is then a class of its own.
        layers: convolutions or fully connected layers with a ReLU; None for every convolution.
        k: pictures whose classes' entropy is taken.
        shuffles: how often labels are shuffled for the control.
        seed: of the shuffles.

    Raises ImageError for pictures without labels, LayerError for a layer without a ReLU.

    >>> zfkit.selectivity(model, images, ["conv1", "conv5"]).table()
    """
    import pandas as pd

    for what, value in (("k", k), ("shuffles", shuffles), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ZfkitError(f"{what} must be a whole number from 1 on, not {value!r}")
    units = _rectified(model, layers)
    labels, kind = _labels(images)
    counted = (labels >= 0).nonzero()[:, 0]
    numbers, compact = labels[counted].unique(return_inverse=True)
    K = len(numbers)
    if K < 2 or len(counted) <= K:
        raise ImageError(
            f"{images.source!r} has {len(counted)} labelled pictures of {K} classes; selectivity needs at least two "
            "classes, and more pictures than classes"
        )
    generator = torch.Generator().manual_seed(seed)
    # Row 0 are the labels, the others shuffles of them; -1 where there is none.
    versions = torch.full((1 + shuffles, len(images)), -1)
    versions[0, counted] = compact
    for s in range(1, shuffles + 1):
        versions[s, counted] = compact[torch.randperm(len(counted), generator=generator)]
    sums: dict[str, Tensor] = {}
    best: dict[str, tuple[Tensor, Tensor]] = {}
    seen = torch.zeros(1 + shuffles, K, dtype=torch.float64)
    told = f"selectivity of {model.name}"
    with tqdm(total=len(images), desc=told, unit="img", disable=not progress, leave=False) as bar:
        for batch in images.batches(batch_size):
            chosen = (labels[batch.indices] >= 0).nonzero()[:, 0]
            bar.update(len(batch.indices))
            if not len(chosen):
                continue
            now, places = versions[:, batch.indices[chosen]], batch.indices[chosen]
            for s in range(1 + shuffles):
                seen[s] += now[s].bincount(minlength=K)
            for step, output in activations(model, batch.pixels[chosen], [u.looked_at for u in units]):
                maps = output.flatten(2) if output.dim() > 2 else output[:, :, None]
                mean, peak = maps.mean(2, dtype=torch.float64).cpu(), maps.amax(2).cpu()  # (n, C)
                if step not in sums:
                    sums[step] = torch.zeros(1 + shuffles, K, mean.shape[1], dtype=torch.float64)
                    nothing = torch.full((0, mean.shape[1]), -1)
                    best[step] = nothing.to(peak), nothing.long()
                for s in range(1 + shuffles):
                    sums[step][s].index_add_(0, now[s], mean)
                peaks = torch.cat([best[step][0], peak])
                taken = torch.cat([best[step][1], places[:, None].expand_as(peak)])
                order = peaks.sort(dim=0, descending=True, stable=True).indices[:k]
                best[step] = peaks.gather(0, order), taken.gather(0, order)
    if not sums:
        raise ImageError(f"none of the labelled pictures of {images.source!r} can be read")
    parts = []
    for unit in units:
        index = selectivity_index(
            sums[unit.looked_at] / seen[:, :, None].clamp(min=1), seen > 0
        )  # (1 + S, C)
        entropy = torch.stack([_entropy(v[best[unit.looked_at][1]], K) for v in versions])
        idle = best[unit.looked_at][0][0] <= 0
        index[:, idle] = entropy[:, idle] = math.nan
        columns = {
            "index": index[0], "entropy": entropy[0],
            "index_shuffled": index[1:].mean(0), "entropy_shuffled": entropy[1:].mean(0),
        }  # fmt: skip
        where = {"layer": unit.layer, "channel": range(index.shape[1])}
        parts.append(pd.DataFrame(where | {name: v.numpy() for name, v in columns.items()}))
    frame = pd.concat(parts, ignore_index=True)
    return Selectivity(model.name, images.source, kind, K, int(seen[0].sum()), k, frame)


def selectivity_index(means: Tensor, there: Tensor | None = None) -> Tensor:
    """(mu_max - mu_rest) / (mu_max + mu_rest) over class means (..., K, C) -> (..., C); 0 where all are 0.

    Args:
        there: (..., K) bool, which classes have pictures; None for all.
    """
    there = torch.ones(means.shape[:-1], dtype=torch.bool) if there is None else there
    weight = there.to(means).unsqueeze(-1)
    largest = means.masked_fill(~there.unsqueeze(-1), -math.inf).amax(-2)
    rest = ((means * weight).sum(-2) - largest) / (weight.sum(-2) - 1)
    return ((largest - rest) / (largest + rest)).nan_to_num(0.0)


def _entropy(labels: Tensor, K: int) -> Tensor:
    """Bits, of the classes (k, C) of each map's pictures -> (C,) float64."""
    p = torch.stack([(labels == c).double().mean(0) for c in range(K)])
    return torch.special.entr(p).sum(0) / math.log(2)


def _rectified(model: VisionModel, layers: str | Sequence[str] | None) -> list[Unit]:
    units = {u.layer: u for u in units_of(model.network)}
    wanted = [layers] if isinstance(layers, str) else list(model.conv_layers if layers is None else layers)
    if not wanted:
        raise LayerError(f"no layer was named; {model.name} has {', '.join(model.conv_layers)}")
    found = []
    for name in wanted:
        model.network.find(name)
        unit = units.get(name)
        if unit is not None and unit.rectified:
            found.append(unit)
        elif layers is not None:
            able = ", ".join(u.layer for u in units.values() if u.rectified)
            raise LayerError(
                f"{name!r} has no ReLU of its own behind it, so its activity can be negative and has no selectivity "
                f"index; layers that have one: {able or 'none'}"
            )
    if not found:
        raise LayerError(f"no convolution of {model.name} has a ReLU of its own behind it; name other layers")
    return found


def _labels(images: ImageSet) -> tuple[Tensor, str]:
    """(N,) labels, -1 where there is none, and what they are."""
    labels = images.known_labels()
    if labels is None and images.windows is None:
        labels = torch.tensor([images[i][1] for i in range(len(images))])
    if labels is not None and (labels >= 0).any():
        return labels, "class"
    if images.windows is not None:
        return images.windows.photograph, "photograph"
    raise ImageError(
        f"{images.source!r} has no labels, which selectivity is about: take a labelled set ('textures', a folder "
        "with a sub-folder for each class), or windows of photographs ('photos')"
    )


# ----------------------------------------------------------------------------------------- pose variation


@dataclass(frozen=True)
class PoseVariation:
    """How different a feature map's strongest k look from each other; made by `pose_variation`.

    Attributes:
        model, images: their names.
        k: pictures for each map.
        maps: data frame, a row for each layer, channel and seen_by ("pixels", or the layer in which the k are
            compared): distance (mean over pairs of the k, Euclidean), control (the same, of k units of different
            maps of the layer), ratio (distance / mean control of the layer).
    """

    model: str
    images: str
    k: int
    maps: pd.DataFrame = field(repr=False)

    def table(self) -> pd.DataFrame:
        """Data frame by (layer, seen_by): ratio and sd over maps, control's sd, maps, alike.

        A ratio of 1: the k are as different as k of different maps. alike: fraction of maps whose k are closer to
        each other than those of 95% of the control's.
        """
        import pandas as pd

        rows = []
        for (layer, seen_by), part in self.maps.groupby(["layer", "seen_by"], sort=False):
            mean = float(part["control"].mean())
            rows.append(
                {
                    "layer": layer, "seen_by": seen_by, "ratio": float(part["ratio"].mean()),
                    "sd": float(part["ratio"].std()), "control_sd": float((part["control"] / mean).std()),
                    "maps": len(part), "alike": float((part["distance"] < part["control"].quantile(0.05)).mean()),
                }
            )  # fmt: skip
        return pd.DataFrame(rows).set_index(["layer", "seen_by"])


PIXELS = "pixels"
PLACES = (
    16  # a side, at most, at which a block of a lower layer's maps is compared; of pixels, four times that
)


def pose_variation(
    model: VisionModel,
    images: ImageSet,
    layers: str | Sequence[str] | None = None,
    *,
    top: TopK | None = None,
    k: int = 9,
    maps: int = 24,
    seed: int = 0,
    progress: bool = True,
) -> PoseVariation:
    """How far apart a map's top k are: in pixels, in the layers below, and in its own.

    The k units that excite a map most, each on another picture, see k windows of k pictures. Their mean distance
    over pairs is taken in pixels, and in what each layer up to the map's own makes of the window (behind its
    ReLU). Windows of large receptive fields differ more than small ones, so each distance is divided by that
    of k units of *different* maps of the same layer, on different pictures. If layer 5 shows objects in any pose,
    its k are as different as others in pixels (ratio near 1), and less so the higher the layer that compares.

    Args:
        layers: convolutions; None for all.
        top: what `mine` found, with these layers and at least k pictures; else it is mined here.
        maps: of each layer, drawn at random by `seed` from those ever active.

    Raises LayerError for layers that are no convolutions, ZfkitError for too few pictures.

    >>> zfkit.experiments.pose_variation(model, images, ["conv1", "conv5"]).table()["ratio"].unstack()
    """
    import pandas as pd

    for what, value, least in (("k", k, 2), ("maps", maps, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ZfkitError(f"{what} must be a whole number from {least} on, not {value!r}")
    names = [layers] if isinstance(layers, str) else list(model.conv_layers if layers is None else layers)
    for name in names:
        model.network.find(name)
        if name not in model.conv_layers:
            raise LayerError(f"{name!r} is no convolution; take one of {', '.join(model.conv_layers)}")
    if top is None:
        top = mine(model, images, names, k, inside=fits_inside(model, names, images.size), progress=progress)
    top.check(model, images)
    if top.k < k:
        raise ZfkitError(f"the table has the top {top.k} of each map, fewer than k={k}: mine with k={k}")
    chosen = sample_maps(top, names, maps, seed)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for layer in tqdm(names, desc=f"pose variation of {model.name}", disable=not progress, leave=False):
        found = top[layer]
        channels = [c for c in chosen[layer] if int(found.image[c, k - 1]) >= 0]
        if len(channels) < 2:
            raise ZfkitError(
                f"fewer than two maps of {layer!r} have {k} pictures of their own in {images.source!r}: take more "
                "pictures, or a smaller k"
            )
        image, row, col = (getattr(found, n)[channels, :k] for n in ("image", "row", "col"))  # (M, k)
        others = torch.stack([_others(image, i, generator) for i in range(len(channels))])  # (M, k)
        for seen_by, blocks in _blocks(model, images, layer, image, row, col).items():
            distance = _mean_distance(blocks.unflatten(0, image.shape))
            control = _mean_distance(blocks[others])
            columns = {
                "layer": layer, "channel": channels, "seen_by": seen_by, "distance": distance.numpy(),
                "control": control.numpy(), "ratio": (distance / control.mean()).numpy(),
            }  # fmt: skip
            parts.append(pd.DataFrame(columns))
    return PoseVariation(model.name, images.source, k, pd.concat(parts, ignore_index=True))


def _others(image: Tensor, i: int, generator: torch.Generator) -> Tensor:
    """Places in image.flatten() of k units of maps, and on pictures, that differ as far as they can be had.

    The i-th row takes its own map only for its first, so that as many units take part as there are.
    """
    M, k = image.shape
    order = torch.randperm(M * k, generator=generator).tolist()
    order = [i * k + int(torch.randint(k, (), generator=generator)), *order]
    picked: list[int] = []
    for strict in (True, False):  # with fewer maps than k, or few pictures, they repeat
        for u in order:
            if len(picked) == k:
                return torch.tensor(picked)
            maps, pictures = {p // k for p in picked}, {int(image.flatten()[p]) for p in picked}
            clash = u // k in maps or int(image.flatten()[u]) in pictures
            if u not in picked and not (strict and clash):
                picked.append(u)
    return torch.tensor(picked)


def _mean_distance(blocks: Tensor) -> Tensor:
    """Mean over pairs of the Euclidean distance within each row of (M, k, F) -> (M,) float64."""
    k = blocks.shape[1]
    i, j = torch.triu_indices(k, k, 1)
    # One map at a time: all pairs of all maps would be k times the memory.
    return torch.stack([(b[i] - b[j]).double().norm(dim=1).mean() for b in blocks])


@torch.inference_mode()
def _blocks(
    model: VisionModel, images: ImageSet, layer: str, image: Tensor, row: Tensor, col: Tensor
) -> dict[str, Tensor]:
    """What each unit of `layer` sees: in pixels (as the network takes them), and in each convolution up to it.

    -> {"pixels" or layer: (M * k, F) float32}; 0 outside the picture. Large blocks at every s-th place only.
    """
    network = model.network
    reach = extents(network, layer)
    units = {u.looked_at: u.layer for u in units_of(network) if u.layer in model.conv_layers}
    needed = {s.name for s in network.upto([layer])}
    watched = {step: name for step, name in units.items() if name in needed and reach.get(name) is not None}
    flat_image, place = image.flatten(), torch.stack([row.flatten(), col.flatten()], 1)
    out: dict[str, list[Tensor]] = {}
    order = flat_image.argsort(stable=True)
    for part in order.split(32):
        pictures, local = flat_image[part].unique(return_inverse=True)
        x = model.preprocess(images.take(pictures))
        field = field_in(model, images.size, layer)
        out.setdefault(PIXELS, []).append(_cut(x, local, place[part], field, 4 * PLACES))
        for step, _, output in network.walk(x, list(watched)):
            if step.name in watched:
                span = reach[watched[step.name]]
                assert span is not None
                out.setdefault(watched[step.name], []).append(_cut(output, local, place[part], span, PLACES))
    back = order.argsort()
    return {name: torch.cat(blocks)[back] for name, blocks in out.items()}


def _cut(maps: Tensor, local: Tensor, place: Tensor, span: tuple[Interval, Interval], most: int) -> Tensor:
    """The block that each unit depends on, out of maps (n, C, H, W) -> (B, C * places), 0 outside."""
    index = []
    for axis, interval in enumerate(span):
        every = -(-interval.size // most)
        offsets = torch.arange(interval.low, interval.high + 1, every)
        index.append(place[:, axis, None] * interval.stride + offsets)  # (B, places)
    H, W = maps.shape[2:]
    rows, columns = index
    inside = ((rows >= 0) & (rows < H))[:, :, None] & ((columns >= 0) & (columns < W))[:, None]
    maps = maps.cpu()
    blocks = maps[local[:, None, None], :, rows.clamp(0, H - 1)[:, :, None], columns.clamp(0, W - 1)[:, None]]
    return (blocks * inside[..., None]).flatten(1).float()
