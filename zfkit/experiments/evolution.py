"""How features form during training: the paper's Fig. 4, and numbers for what it says of it (section 4).

"The lower layers of the model can be seen to converge within a few epochs. However, the upper layers only develop
after a considerable number of epochs (40-50)." `evolution` walks through the snapshots of a training: which picture
excites a feature map most after each of them, what the deconvnet makes of that, and how similar each layer is to
what it will be at the end. `convergence` turns the similarities into epochs, with their spread over maps and runs.

Linear CKA (Kornblith et al. 2019, arXiv 1905.00414, in its feature-space form), of activations X and Y of the same
pictures, one row a sample and one column a feature map, columns centred:

    CKA(X, Y) = |Y'X|^2 / (|X'X| |Y'Y|),   |.| the Frobenius norm.

Of one map it is the squared correlation of its activations then and at the end.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..batching import OnStep, steps
from ..checks import Size, channel_list, layer_names, one_of, pair, whole_number
from ..deconv.receptive_field import fits_inside
from ..deconv.rules import Options
from ..deconv.windows import paste
from ..errors import ImageError, LayerError, ModelError, ZfkitError
from ..images.imageset import ImageSet
from ..nets.activations import features
from ..nets.model import VisionModel, expect_model
from ..results import Result
from ..topk.mine import mine
from ..topk.patches import GREY, Patches, project_many, sample_maps
from ..topk.table import TopK
from .snapshots import Snapshots, Source, expect_same_network, load_snapshot, snapshots_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LayerEvolution:
    """One layer with C feature maps over E snapshots; M of its maps are shown.

    Attributes:
        value, image, row, col: (C, E), each map's strongest activation, the picture, and the unit's place in its map.
        similarity: (C, E) float64, squared correlation of each map's activations with those of the last snapshot;
            NaN for a map that says the same of everything at the end.
        cka: (E,) float64, linear CKA of the layer with itself at the last snapshot.
        distance: (E,) float64, |W_t - W_end| / |W_first - W_end| of its weights; NaN without weights.
        channels: (M,) int64, the maps that are shown.
        projection: (M, E, channels, S, S) float32, signed, of their strongest activations. S is the side of the
            receptive field; of a layer that sees more than the picture, that of the picture, which is then all there.
        photo: (M, E, 3, S, S) uint8, the same window of the picture; mid-grey outside it.
    """

    value: Tensor
    image: Tensor
    row: Tensor
    col: Tensor
    similarity: Tensor
    cka: Tensor
    distance: Tensor
    channels: Tensor
    projection: Tensor = field(repr=False)
    photo: Tensor = field(repr=False)

    @property
    def active(self) -> Tensor:
        """(C, E) bool: was some activation above 0?"""
        return self.value > 0

    @property
    def changed(self) -> Tensor:
        """(C, E) bool: is the strongest picture another than at the snapshot before? False at the first."""
        other = torch.zeros_like(self.image, dtype=torch.bool)
        other[:, 1:] = self.image[:, 1:] != self.image[:, :-1]
        return other

    @property
    def share_changed(self) -> Tensor:
        """(E,) float64: of the maps that are active now and were at the snapshot before, those that changed."""
        both = self.active[:, 1:] & self.active[:, :-1]
        share = (self.changed[:, 1:] & both).sum(0).double() / both.sum(0)
        return torch.cat([share.new_full((1,), math.nan), share])


@dataclass(frozen=True)
class Evolution(Result, figure="evolution_figure"):
    """The snapshots of one training, looked at with one set of pictures; made by `evolution`.

    Attributes:
        name: of the training. images: of the pictures, `count` of them.
        epochs: of the snapshots, ascending; everything is compared with the last.
        layers: `LayerEvolution` by name, in order of execution.
        compared: pictures from which the similarities come, with at most `places` units of each map in each.
        missing: what was asked for and is not there, a sentence each.
    """

    name: str
    images: str
    count: int
    epochs: tuple[int, ...]
    layers: dict[str, LayerEvolution]
    compared: int
    places: int
    missing: tuple[str, ...] = ()

    def __repr__(self) -> str:
        epochs = ", ".join(map(str, self.epochs))
        return f"Evolution({self.name!r} on {self.images!r}: epochs {epochs}; {', '.join(self.layers)})"

    def __getitem__(self, layer: str) -> LayerEvolution:
        if layer not in self.layers:
            raise LayerError(f"layer {layer!r} was not looked at; there are {', '.join(self.layers)}")
        return self.layers[layer]

    def table(self) -> pd.DataFrame:
        """Data frame by (layer, epoch): distance, cka, map (median over maps of their similarity), changed (share)."""
        import pandas as pd

        parts = []
        for name, layer in self.layers.items():
            columns = {"distance": layer.distance, "cka": layer.cka}
            columns |= {"map": layer.similarity.nanmedian(0).values, "changed": layer.share_changed}
            index = pd.MultiIndex.from_product([[name], self.epochs], names=["layer", "epoch"])
            parts.append(pd.DataFrame({k: v.numpy() for k, v in columns.items()}, index))
        return pd.concat(parts)

    def maps(self, layer: str) -> pd.DataFrame:
        """Data frame by (channel, epoch) of every map of a layer: value, image, row, col, changed, similarity."""
        import pandas as pd

        names = ("value", "image", "row", "col", "changed", "similarity")
        columns = {n: getattr(self[layer], n) for n in names}  # each (C, E)
        channels = range(len(columns["value"]))
        index = pd.MultiIndex.from_product([channels, self.epochs], names=["channel", "epoch"])
        return pd.DataFrame({n: values.flatten().numpy() for n, values in columns.items()}, index)


# ---------------------------------------------------------------------------------------------- similarity


def cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of two sets of activations (n, p) and (n, q) of the same n samples: 0 to 1.

    0 where x does not vary, NaN where y does not. Kornblith et al. 2019, eq. 5 and section 3: |Y'X|^2 / (|X'X| |Y'Y|)
    on centred columns, in float64; from the (n, n) Gram matrices, which give the same, where these are smaller.
    """
    x, y = (v.double() - v.double().mean(0) for v in (x, y))
    if max(x.shape[1], y.shape[1]) <= len(x):
        shared, own, other = (y.T @ x).square().sum(), (x.T @ x).norm(), (y.T @ y).norm()
    else:
        K, L = x @ x.T, y @ y.T
        shared, own, other = (K * L).sum(), K.norm(), L.norm()
    if not own > 0:
        return 0.0 if other > 0 else math.nan
    return float(shared / (own * other)) if other > 0 else math.nan


def squared_correlation(x: Tensor, y: Tensor) -> Tensor:
    """(p,) float64: of each column of x with the same column of y, both (n, p); linear CKA of one feature.

    0 where x does not vary, NaN where y does not.
    """
    x, y = (v.double() - v.double().mean(0) for v in (x, y))
    own, other = x.square().sum(0), y.square().sum(0)
    squared = torch.where(own > 0, (x * y).sum(0).square() / (own * other), 0.0)
    return squared.masked_fill(other == 0, math.nan)


def settled(epochs: Sequence[float], similarity: Tensor, level: float = 0.9) -> Tensor:
    """The epoch from which on similarity (..., E) stays at `level` of its last value or above -> (...).

    Between the last snapshot below it and the next, similarity is taken to rise in a straight line; a curve that is
    never below gives the first epoch. NaN where the last value is NaN or not above 0.
    """
    if not 0 < level <= 1:
        raise ZfkitError(f"level must lie above 0 and at most at 1, not be {level!r}")
    epoch = torch.as_tensor(epochs, dtype=torch.float64)
    s = similarity.double()
    threshold = level * s[..., -1:]
    order = torch.arange(s.shape[-1]).expand(s.shape)
    # The last snapshot below; -1 for none.
    below = torch.where(s < threshold, order, -1).amax(-1, keepdim=True)
    a, b = below.clamp(min=0), (below + 1).clamp(max=s.shape[-1] - 1)
    low, high = s.gather(-1, a), s.gather(-1, b)
    crossing = epoch[a] + (epoch[b] - epoch[a]) * ((threshold - low) / (high - low)).nan_to_num(0.0)
    crossing = torch.where(below < 0, epoch[0], crossing)
    return crossing.masked_fill(~(s[..., -1:] > 0), math.nan)[..., 0]


def convergence(runs: Evolution | Sequence[Evolution], level: float = 0.9) -> pd.DataFrame:
    """When did each layer reach 90 % of its final similarity? With the spread over its maps and over runs.

    The final similarity, to itself, is 1; so this is the epoch from which on similarity to the last snapshot stays at
    `level` or above, interpolated (`settled`). By construction every layer gets there by the last snapshot, also
    one that never settles: compare layers, and runs that were stopped at other epochs, not one number alone.

    Args:
        runs: one, or several that differ in their seed only.

    Returns a data frame by layer: cka (epoch by the layer's CKA, mean over runs), cka_low, cka_high (of the runs);
    map, map_q25, map_q75 (median and quartiles over all maps of all runs, by each map's similarity); rise (as cka, but
    of the way from the first snapshot's CKA to 1, since some layers begin similar); start (CKA at the first snapshot,
    mean), maps (how many of them have a similarity), runs.

    Raises ZfkitError for a run with a single snapshot, or runs of other layers or epochs.

    >>> zfkit.experiments.convergence([zfkit.evolution(run, images) for run in runs])["cka"]
    """
    import pandas as pd

    runs = [runs] if isinstance(runs, Evolution) else list(runs)
    if not runs:
        raise ZfkitError("no run was given; pass what zfkit.evolution returned")
    epochs, layers = runs[0].epochs, list(runs[0].layers)
    for run in runs:
        if len(run.epochs) < 2:
            raise ZfkitError(
                f"{run.name!r} has one snapshot, of epoch {run.epochs[0]}, and nothing to compare it with: keep several"
            )
        if list(run.layers) != layers or run.epochs != epochs:
            raise ZfkitError(
                f"{run.name!r} and {runs[0].name!r} have other layers or epochs: call zfkit.evolution alike"
            )
    rows = {}
    for layer in layers:
        curves = torch.stack([run[layer].cka for run in runs])  # (runs, E)
        first = curves[:, :1]
        epoch, rise = (settled(epochs, c, level) for c in (curves, (curves - first) / (1 - first)))
        maps = torch.cat([settled(epochs, run[layer].similarity, level) for run in runs])
        low, middle, high = maps.nanquantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
        rows[layer] = {
            "cka": float(epoch.nanmean()), "cka_low": float(epoch.min()), "cka_high": float(epoch.max()),
            "map": middle, "map_q25": low, "map_q75": high,
            "rise": float(rise.nanmean()), "start": float(first.nanmean()),
            "maps": int((~maps.isnan()).sum()), "runs": len(runs),
        }  # fmt: skip
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")
    return table.astype({"maps": int, "runs": int})


# ---------------------------------------------------------------------------------------------- evolution


def evolution(
    snapshots: Source,
    images: ImageSet,
    layers: str | Sequence[str] | None = None,
    channels: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    *,
    epochs: Sequence[int] | None = None,
    maps: int = 6,
    compare: int = 512,
    places: int = 16,
    options: Options = Options(),
    inside: bool | None = None,
    batch_size: int | None = None,
    model: VisionModel | None = None,
    name: str | None = None,
    random_seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
    on_step: OnStep | None = None,
) -> Evolution:
    """What each feature map answers to most after each epoch, projected (Fig. 4), and how far it is from its end.

    Args:
        snapshots: a `Run` or its folder, any folder of .safetensors, .pt or .pth snapshots of one training (of a loop
            of your own, with `model`), or pairs (epoch, VisionModel). One network at a time is in memory.
        images: pictures to find the strongest activations in, with or without labels. The paper takes all of the
            training set; memory does not grow with their number.
        layers: names, also of fully connected layers; None for every convolution.
        channels: maps to project; of several layers, a mapping by layer. None: `maps` of each layer, drawn at random
            from those that are active at the end, as in the paper.
        epochs: which snapshots; None for all. Those that are not there are listed in `missing`.
        compare: pictures for the similarities, evenly spread over the set.
        places: units of each map for them, at most, in each of these pictures: drawn at random, at the same places
            in every epoch. Each picture and place is a sample, each map a feature; activations are those of the
            layer itself, before the ReLU behind it.
        options: of the projections.
        inside: leave out units that look beyond the picture's border; None: where every layer has others.
        model: for files that do not say which network they belong to: the network whose weights they are.
        name: of the training, for captions; None: that of its folder, or of the first network.
        random_seed: of maps and places.
        device: default: the GPU if there is one.
        on_step: called after each snapshot with (done, total), the last epoch first; it may raise `Cancelled`.

    A snapshot that cannot be read (cut short, say) is left out with a warning, and listed in `missing`; if it is the
    last, everything is compared with the last that can be read. With one snapshot there is a grid of one column, and
    distances and similarities to itself.

    Raises ZfkitError where there is no snapshot, or one of another shape; LayerError for an unknown layer or map.

    >>> growth = zfkit.evolution("runs/mine", zfkit.load_images("textures", size=64))
    >>> zfkit.figures.evolution_figure(growth)
    >>> zfkit.experiments.convergence(growth)
    """
    if model is not None:
        expect_model(model)
    for what, count in (("maps", maps), ("compare", compare), ("places", places)):
        whole_number(count, what)
    if not len(images):
        raise ImageError("there are no pictures to look at")
    found_name, kept = snapshots_of(snapshots)
    kept, missing = _chosen(kept, epochs)
    samples = _Samples(images, compare, places, random_seed)
    looks: dict[int, dict[str, LayerEvolution]] = {}
    last: _Last | None = None
    shorter = "fewer snapshots (epochs=), maps or pictures take less"
    with steps(len(kept), "evolution", "epoch", progress, on_step, shorter) as done:
        for epoch in sorted(kept, reverse=True):  # the last first: all others are compared with it
            try:
                now = load_snapshot(epoch, kept[epoch], model, device)
            except ModelError as error:
                missing.append(f"epoch {epoch} is left out: {error}")
                warnings.warn(missing[-1], stacklevel=2)
                done(1)
                continue
            if last is not None:
                expect_same_network(epoch, now.net.state_dict(), last.shapes, f"that of epoch {max(looks)}")
            wanted = layer_names(layers, now.layers, now.conv_layers)
            names = [n for n in now.layers if n in wanted]  # in order of execution
            inside = fits_inside(now, names, images.size) if inside is None else inside
            top = mine(now, images, names, 1, inside=inside, batch_size=batch_size, progress=False)
            activations, weights = samples.take(now, names), _weights(now, names)
            if last is None:
                shapes = {key: t.to("meta") for key, t in now.net.state_dict().items()}
                last = _Last(shapes, activations, weights, _maps_shown(top, channels, maps, random_seed))
            looks[epoch] = _look(now, images, top, activations, weights, last, options)
            done(1)
    if not looks:
        raise ModelError(
            f"none of the snapshots of {found_name!r} can be read: {missing[-1]}. For files that zfkit did not "
            "write, say whose weights they are: model=zfkit.wrap_model(net, ...)"
        )
    read = sorted(looks)
    together = {layer: _joined([looks[epoch][layer] for epoch in read]) for layer in looks[read[0]]}
    return Evolution(
        found_name if name is None else name, images.source, top.count, tuple(read), together,
        len(samples.index), places, tuple(missing),
    )  # fmt: skip


def _chosen(snapshots: Snapshots, epochs: Sequence[int] | None) -> tuple[Snapshots, list[str]]:
    """The snapshots that were asked for, and a sentence on what of it is not there."""
    if epochs is None:
        return snapshots, []
    wanted, kept = sorted(set(epochs)), ", ".join(map(str, snapshots))
    lacking = [e for e in wanted if e not in snapshots]
    if len(lacking) == len(wanted):
        raise ZfkitError(f"none of the epochs {wanted} was kept; there are: {kept}")
    missing = [f"epoch {', '.join(map(str, lacking))} was not kept (there are: {kept})"] if lacking else []
    return {e: snapshots[e] for e in wanted if e in snapshots}, missing


def _maps_shown(
    top: TopK, channels: Sequence[int] | Mapping[str, Sequence[int]] | None, maps: int, random_seed: int
) -> dict[str, Tensor]:
    """Which maps of each layer are projected."""
    layers = list(top.layers)
    if channels is None:
        drawn = sample_maps(top, layers, maps, random_seed)
        return {layer: torch.tensor(numbers, dtype=torch.long) for layer, numbers in drawn.items()}
    if not isinstance(channels, Mapping):
        if len(layers) > 1:
            raise LayerError(
                f"channels of {len(layers)} layers must be given by layer, as {{{layers[0]!r}: [0, 1]}}, not as a list"
            )
        channels = {layers[0]: channels}
    for layer in channels:
        one_of(layer, "layer looked at", layers, LayerError)
    return {n: channel_list(channels.get(n, ()), len(top[n].value), n) for n in layers}


def _weights(model: VisionModel, layers: Sequence[str]) -> dict[str, Tensor | None]:
    """Each layer's own weights, without its biases, on the CPU; None where it has none."""
    weights = {layer: getattr(model.network.find(layer).module, "weight", None) for layer in layers}
    return {n: w.detach().double().cpu() if isinstance(w, nn.Parameter) else None for n, w in weights.items()}


class _Samples:
    """Where activations are compared: some pictures, and places in each, the same at every snapshot."""

    def __init__(self, images: ImageSet, compare: int, places: int, random_seed: int) -> None:
        count = min(compare, len(images))
        self.images = images
        self.index = (torch.arange(count) * len(images)) // count
        # Fractions of a map's height and width: so the places are alike in every layer.
        generator = torch.Generator().manual_seed(random_seed)
        self.fractions = torch.rand(count, places, 2, generator=generator, dtype=torch.float64)

    def take(self, model: VisionModel, layers: Sequence[str]) -> dict[str, Tensor]:
        """Activations (pictures * places, C) of each layer; after `mine`, which skips what cannot be read."""
        if self.images.skipped:
            lost = {skipped.name for skipped in self.images.skipped}
            readable = torch.tensor([self.images.name(i) not in lost for i in self.index.tolist()])
            self.index, self.fractions = self.index[readable], self.fractions[readable]

        def at_places(layer: str, output: Tensor, index: Tensor) -> Tensor:
            return sampled(output, self.fractions[torch.searchsorted(self.index, index)])

        options: dict[str, Any] = {"batch_size": 64, "what": "evolution"}
        return features(model, self.images, layers, at_places, index=self.index, **options)


def sampled(output: Tensor, fractions: Tensor) -> Tensor:
    """Activations (n, C, H, W) at `fractions` (n, places, 2) of height and width -> (n * places, C); (n, C) stay."""
    if output.dim() == 2:
        return output
    n, _, H, W = output.shape
    row, col = ((fractions[..., i] * side).long() for i, side in enumerate((H, W)))
    maps = output.cpu().permute(0, 2, 3, 1)  # (n, H, W, C)
    return maps[torch.arange(n)[:, None], row, col].flatten(0, 1)


@dataclass(frozen=True)
class _Last:
    """What of the last snapshot the others are compared with."""

    shapes: Mapping[str, Tensor]  # of all of its tensors, without their numbers
    activations: Mapping[str, Tensor]  # (n, C) of each layer
    weights: Mapping[str, Tensor | None]
    channels: Mapping[str, Tensor]  # that are projected


def _look(
    model: VisionModel,
    images: ImageSet,
    top: TopK,
    activations: Mapping[str, Tensor],
    weights: Mapping[str, Tensor | None],
    last: _Last,
    options: Options,
) -> dict[str, LayerEvolution]:
    """One snapshot of each layer, E = 1; `distance` is not yet relative to the first."""
    wanted = {layer: channels for layer, channels in last.channels.items() if len(channels)}
    patches = project_many(model, images, top, wanted, k=1, options=options)
    looks = {}
    for layer, x in activations.items():
        t, y, weight, end = top[layer], last.activations[layer], weights[layer], last.weights[layer]
        projection, photo = torch.empty(0, 1), torch.empty(0, 1, dtype=torch.uint8)
        if layer in patches:
            projection, photo = framed(patches[layer], images.size)
        moved = math.nan if weight is None or end is None else float((weight - end).norm())
        looks[layer] = LayerEvolution(
            value=t.value, image=t.image, row=t.row, col=t.col, similarity=squared_correlation(x, y)[:, None],
            cka=torch.tensor([cka(x, y)], dtype=torch.float64), distance=torch.tensor([moved], dtype=torch.float64),
            channels=last.channels[layer], projection=projection, photo=photo,
        )  # fmt: skip
    return looks


def framed(patches: Patches, picture: Size) -> tuple[Tensor, Tensor]:
    """Projections (M, 1, C, S, S) and photographs; of units that see more than the picture, the whole picture.

    Cut to the picture along each axis on its own, so that a window is never larger than what there is to see.
    """
    (height, width), (H, W) = patches.projection.shape[-2:], pair(picture)
    left, top = patches.box[:, 0, 0], patches.box[:, 0, 1]
    origin = torch.stack([top * (height > H), left * (width > W)], 1)  # (M, 2) of the window in the picture
    size = (min(height, H), min(width, W))
    projection = paste(patches.projection[:, 0], origin, size)
    photo = paste(patches.photo[:, 0].int() - GREY, origin, size) + GREY  # grey where a unit does not see
    return projection[:, None], photo[:, None].to(torch.uint8)


def _joined(looks: Sequence[LayerEvolution]) -> LayerEvolution:
    """Snapshots of one layer, side by side."""

    def along(name: str, axis: int = 1) -> Tensor:
        return torch.cat([getattr(look, name) for look in looks], axis)

    moved = along("distance", 0)
    return LayerEvolution(
        value=along("value"), image=along("image"), row=along("row"), col=along("col"),
        similarity=along("similarity"), cka=along("cka", 0),
        distance=moved / moved[0] if len(looks) > 1 else moved * math.nan,
        channels=looks[0].channels, projection=along("projection"), photo=along("photo"),
    )  # fmt: skip
