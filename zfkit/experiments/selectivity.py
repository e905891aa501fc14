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

from ..batching import OnStep, Portions, steps
from ..checks import layer_names, whole_number
from ..deconv.receptive_field import Interval, extents, field_in, fits_inside
from ..errors import ImageError, LayerError, ZfkitError
from ..health import Unit, units_of
from ..images.imageset import ImageSet
from ..nets.activations import activations
from ..nets.model import VisionModel, expect_model
from ..results import Result
from ..topk.mine import mine
from ..topk.patches import sample_maps
from ..topk.profile import selectivity_index
from ..topk.running import RunningTop
from ..topk.table import TopK

if TYPE_CHECKING:
    import pandas as pd


# -------------------------------------------------------------------------------------------- selectivity


@dataclass(frozen=True)
class Selectivity(Result, figure="selectivity_figure"):
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
        import pandas as pd

        rows = {}
        for layer, maps in self.maps.dropna().groupby("layer", sort=False):
            row = {"maps": len(maps)}
            for name in ("index", "entropy"):
                low, middle, high = maps[name].quantile([0.25, 0.5, 0.75])
                row |= {name: middle, f"{name}_q25": low, f"{name}_q75": high}
                row |= {f"{name}_shuffled": maps[f"{name}_shuffled"].median()}
            row["above"] = (maps["index"] > maps["index_shuffled"].quantile(0.95)).mean()
            rows[layer] = row | {"entropy_most": math.log2(min(self.k, self.classes))}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")


def selectivity(
    model: VisionModel,
    images: ImageSet,
    layers: str | Sequence[str] | None = None,
    *,
    k: int = 9,
    shuffles: int = 5,
    batch_size: int = 64,
    random_seed: int = 0,
    progress: bool = True,
    on_step: OnStep | None = None,
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
        random_seed: of the shuffles.
        on_step: called after each batch with (done, total) pictures; it may raise `Cancelled`.

    Raises ImageError for pictures without labels, LayerError for a layer without a ReLU.

    >>> zfkit.selectivity(model, images, ["conv1", "conv5"]).table()
    """
    import pandas as pd

    expect_model(model)
    for what, value in (("k", k), ("shuffles", shuffles), ("batch_size", batch_size)):
        whole_number(value, what)
    units = _rectified(model, layers)
    labels, kind = _labels(images)
    labelled = (labels >= 0).nonzero()[:, 0]
    classes, numbered = labels[labelled].unique(return_inverse=True)
    K = len(classes)
    if K < 2 or len(labelled) <= K:
        raise ImageError(
            f"{images.source!r} has {len(labelled)} labelled pictures of {K} classes; selectivity needs at least two, "
            "and more pictures than classes"
        )
    # Row 0 are the classes, 0 to K - 1, the others shuffles of them; -1 where there is none.
    generator = torch.Generator().manual_seed(random_seed)
    versions = torch.full((1 + shuffles, len(images)), -1)
    versions[0, labelled] = numbered
    for version in versions[1:]:
        version[labelled] = numbered[torch.randperm(len(labelled), generator=generator)]

    # Running sums over classes and running maxima, so that sets of any size fit.
    pictures = torch.zeros(1 + shuffles, K, dtype=torch.float64)
    sums: dict[str, Tensor] = {}  # (1 + S, K, C)
    best: dict[str, RunningTop] = {}
    portions = Portions(f"selectivity of {model.name}", batch_size)
    with steps(len(images), f"selectivity of {model.name}", progress=progress, on_step=on_step) as done:
        for batch in images.batches(batch_size):
            chosen = (labels[batch.indices] >= 0).nonzero()[:, 0]
            for part in portions.of(len(chosen)):
                index = batch.indices[chosen[part]]
                with portions.attempt():
                    rows = {}
                    looked_at = [unit.looked_at for unit in units]
                    for name, y in activations(model, batch.pixels[chosen[part]], looked_at):
                        maps = y.flatten(2) if y.dim() > 2 else y[:, :, None]  # (n, C, positions)
                        rows[name] = maps.mean(2, dtype=torch.float64).cpu(), maps.amax(2).cpu()
                    for version, count in zip(versions[:, index], pictures, strict=True):
                        count += version.bincount(minlength=K)
                    for name, (mean, peak) in rows.items():
                        total = sums.setdefault(name, mean.new_zeros(1 + shuffles, K, mean.shape[1]))
                        for version, of_version in zip(versions[:, index], total, strict=True):
                            of_version.index_add_(0, version, mean)
                        whole = slice(0, None)
                        running = best.setdefault(name, RunningTop(name, k, 1, None, (whole, whole)))
                        running.add(peak, index)
            done(len(batch.indices))
    if not sums:
        raise ImageError(f"none of the labelled pictures of {images.source!r} can be read")
    frames = []
    for unit in units:
        top = best[unit.looked_at].result()
        places = top.image[:, : int(pictures[0].sum())].T  # (k, C), or fewer rows of fewer pictures
        means = sums[unit.looked_at] / pictures[:, :, None].clamp(min=1)
        indices = selectivity_index(means, pictures > 0)  # (1 + S, C)
        entropies = torch.stack([_entropy(version[places], K) for version in versions])
        indices[:, top.max <= 0] = entropies[:, top.max <= 0] = math.nan  # maps that are never active
        columns = {
            "index": indices[0], "entropy": entropies[0],
            "index_shuffled": indices[1:].mean(0), "entropy_shuffled": entropies[1:].mean(0),
        }  # fmt: skip
        where = {"layer": unit.layer, "channel": range(indices.shape[1])}
        frames.append(pd.DataFrame(where | {name: v.numpy() for name, v in columns.items()}))
    frame = pd.concat(frames, ignore_index=True)
    return Selectivity(model.name, images.source, kind, K, int(pictures[0].sum()), k, frame)


def _entropy(labels: Tensor, K: int) -> Tensor:
    """Bits, of the classes (k, C) of each map's pictures -> (C,) float64."""
    p = torch.stack([(labels == c).double().mean(0) for c in range(K)])
    return torch.special.entr(p).sum(0) / math.log(2)


def _rectified(model: VisionModel, layers: str | Sequence[str] | None) -> list[Unit]:
    """The layers that have a ReLU of their own; of the convolutions, where none is named, those that do."""
    units = {u.layer: u for u in units_of(model.network) if u.rectified}
    names = layer_names(layers, model.layers, [name for name in model.conv_layers if name in units])
    for name in names:
        if name not in units:
            raise LayerError(
                f"{name!r} has no ReLU of its own; layers that have one: {', '.join(units) or 'none'}"
            )
    return [units[name] for name in names]


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
        f"{images.source!r} has no labels, which selectivity is about: take a labelled set, or windows ('photos')"
    )


# ----------------------------------------------------------------------------------------- pose variation


@dataclass(frozen=True)
class PoseVariation(Result, figure="pose_variation_figure"):
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
        groups = self.maps.groupby(["layer", "seen_by"], sort=False)
        table = groups["ratio"].agg(ratio="mean", sd="std")
        table["control_sd"] = groups["control"].std() / groups["control"].mean()
        table["maps"] = groups.size()
        near = self.maps.distance < groups["control"].transform(lambda control: control.quantile(0.05))
        table["alike"] = near.groupby([self.maps.layer, self.maps.seen_by], sort=False).mean()
        return table


PIXELS = "pixels"
# A side, at most, at which a block of a lower layer's maps is compared; of pixels, four times that.
PLACES = 16


def pose_variation(
    model: VisionModel,
    images: ImageSet,
    layers: str | Sequence[str] | None = None,
    *,
    top: TopK | None = None,
    k: int = 9,
    maps: int = 24,
    random_seed: int = 0,
    progress: bool = True,
    on_step: OnStep | None = None,
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
        maps: of each layer, drawn at random by `random_seed` from those ever active.
        on_step: called after each layer with (done, total); it may raise `Cancelled`.

    Raises LayerError for layers that are no convolutions, ZfkitError for too few pictures.

    >>> zfkit.experiments.pose_variation(model, images, ["conv1", "conv5"]).table()["ratio"].unstack()
    """
    import pandas as pd

    whole_number(k, "k", 2)
    whole_number(maps, "maps", 2)
    names = layer_names(layers, expect_model(model).conv_layers, model.conv_layers)
    if top is None:
        top = mine(model, images, names, k, inside=fits_inside(model, names, images.size), progress=progress)
    top.check(model, images)
    if top.k < k:
        raise ZfkitError(f"the table has the top {top.k} of each map, fewer than k={k}: mine with k={k}")
    sampled = sample_maps(top, names, maps, random_seed)
    generator = torch.Generator().manual_seed(random_seed)
    frames = []
    shorter = "fewer layers or maps take less"
    with steps(len(names), f"pose variation of {model.name}", "layer", progress, on_step, shorter) as done:
        for layer in names:
            table = top[layer]
            channels = [c for c in sampled[layer] if int(table.image[c, k - 1]) >= 0]
            if len(channels) < 2:
                raise ZfkitError(
                    f"fewer than two maps of {layer!r} have {k} pictures of their own: take more, or a smaller k"
                )
            image, row, col = (getattr(table, n)[channels, :k] for n in ("image", "row", "col"))  # (M, k)
            others = torch.stack([_others(image, i, generator) for i in range(len(channels))])  # (M, k)
            position = torch.stack([row.flatten(), col.flatten()], 1)
            for seen_by, blocks in _blocks(model, images, layer, image.flatten(), position).items():
                distance = _mean_distance(blocks.unflatten(0, image.shape))
                control = _mean_distance(blocks[others])
                columns = {
                    "layer": layer, "channel": channels, "seen_by": seen_by, "distance": distance.numpy(),
                    "control": control.numpy(), "ratio": (distance / control.mean()).numpy(),
                }  # fmt: skip
                frames.append(pd.DataFrame(columns))
            done(1)
    return PoseVariation(model.name, images.source, k, pd.concat(frames, ignore_index=True))


def _others(image: Tensor, i: int, generator: torch.Generator) -> Tensor:
    """Places in image.flatten() of k units of maps, and on pictures, that differ as far as they can be had.

    The i-th row takes its own map only for its first, so that as many units take part as there are.
    """
    M, k = image.shape
    pictures = image.flatten().tolist()
    order = torch.randperm(M * k, generator=generator).tolist()
    order = [i * k + int(torch.randint(k, (), generator=generator)), *order]
    picked: list[int] = []
    for strict in (True, False):  # with fewer maps than k, or few pictures, they repeat
        for u in order:
            clash = any(u // k == p // k or pictures[u] == pictures[p] for p in picked)
            if len(picked) < k and u not in picked and not (strict and clash):
                picked.append(u)
    return torch.tensor(picked)


def _mean_distance(blocks: Tensor) -> Tensor:
    """Mean over pairs of the Euclidean distance within each row of (M, k, F) -> (M,) float64."""
    i, j = torch.triu_indices(blocks.shape[1], blocks.shape[1], 1)
    # One map at a time: all pairs of all maps would be k times the memory.
    return torch.stack([(b[i] - b[j]).double().norm(dim=1).mean() for b in blocks])


@torch.inference_mode()
def _blocks(
    model: VisionModel, images: ImageSet, layer: str, image: Tensor, position: Tensor
) -> dict[str, Tensor]:
    """What B units of `layer` see: in pixels (as the network takes them), and in each convolution up to it.

    Args:
        image: (B,), position: (B, 2) row and column of each unit.

    -> {"pixels" or layer: (B, F) float32}; 0 outside the picture. Large blocks at every s-th place only.
    """
    network = model.network
    reach = extents(network, layer)
    needed = {step.name for step in network.upto([layer])}
    # The maps of a layer are compared behind its ReLU, by the step at which they are looked at.
    seen_by = {
        u.looked_at: u.layer
        for u in units_of(network)
        if u.layer in model.conv_layers and u.layer in needed and reach.get(u.layer) is not None
    }
    blocks: dict[str, list[Tensor]] = {}
    order = image.argsort(stable=True)
    for part in order.split(32):
        pictures, local = image[part].unique(return_inverse=True)
        pixels = images.take(pictures)
        field = field_in(model, images.size, layer)
        cut = _cut(model.preprocess(pixels), local, position[part], field, 4 * PLACES)
        blocks.setdefault(PIXELS, []).append(cut)
        for step, y in activations(model, pixels, list(seen_by)):
            span = reach[seen_by[step]]
            assert span is not None
            blocks.setdefault(seen_by[step], []).append(_cut(y, local, position[part], span, PLACES))
    back = order.argsort()
    return {name: torch.cat(parts)[back] for name, parts in blocks.items()}


def _cut(maps: Tensor, image: Tensor, position: Tensor, span: tuple[Interval, Interval], most: int) -> Tensor:
    """The block that each unit depends on, out of maps (n, C, H, W) -> (B, C * places), 0 outside."""
    rows, columns = (  # (B, places)
        position[:, axis, None] * i.stride + torch.arange(i.low, i.high + 1, -(-i.size // most))
        for axis, i in enumerate(span)
    )
    H, W = maps.shape[2:]
    inside = ((rows >= 0) & (rows < H))[:, :, None] & ((columns >= 0) & (columns < W))[:, None]
    rows, columns = rows.clamp(0, H - 1), columns.clamp(0, W - 1)
    blocks = maps.cpu()[image[:, None, None], :, rows[:, :, None], columns[:, None]]  # (B, h, w, C)
    return (blocks * inside[..., None]).flatten(1).float()
