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

import copy
import importlib.resources
import math
import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..deconv.receptive_field import fits_inside
from ..deconv.rules import Options
from ..errors import ImageError, LayerError, ModelError, ZfkitError
from ..images.imageset import ImageSet
from ..nets.activations import activations
from ..nets.model import VisionModel
from ..nets.weights import read_provenance
from ..nets.zoo import load_model
from ..topk.mine import mine
from ..topk.patches import Patches, project_many, sample_maps
from ..topk.table import TopK
from ..training.run import Run

if TYPE_CHECKING:
    import pandas as pd

Source = Run | str | Path | Mapping[int, VisionModel] | Sequence[tuple[int, VisionModel]]


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
class Evolution:
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
        told = ", ".join(map(str, self.epochs))
        return f"Evolution({self.name!r} on {self.images!r}: epochs {told}; {', '.join(self.layers)})"

    def __getitem__(self, layer: str) -> LayerEvolution:
        if layer not in self.layers:
            raise LayerError(f"layer {layer!r} was not looked at; there are {', '.join(self.layers)}")
        return self.layers[layer]

    def table(self) -> pd.DataFrame:
        """Data frame by (layer, epoch): distance, cka, map (median over maps of their similarity), changed (share)."""
        import pandas as pd

        parts = []
        for name, layer in self.layers.items():
            columns = {
                "distance": layer.distance, "cka": layer.cka, "map": layer.similarity.nanmedian(0).values,
                "changed": layer.share_changed,
            }  # fmt: skip
            index = pd.MultiIndex.from_product([[name], self.epochs], names=["layer", "epoch"])
            parts.append(pd.DataFrame({k: v.numpy() for k, v in columns.items()}, index))
        return pd.concat(parts)

    def maps(self, layer: str) -> pd.DataFrame:
        """Data frame by (channel, epoch) of every map of a layer: value, image, row, col, changed, similarity."""
        import pandas as pd

        found = self[layer]
        names = ("value", "image", "row", "col", "changed", "similarity")
        index = pd.MultiIndex.from_product([range(len(found.value)), self.epochs], names=["channel", "epoch"])
        return pd.DataFrame({n: getattr(found, n).flatten().numpy() for n in names}, index)


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
    found = torch.where(own > 0, (x * y).sum(0).square() / (own * other), 0.0)
    return found.masked_fill(other == 0, math.nan)


def settled(epochs: Sequence[float], similarity: Tensor, level: float = 0.9) -> Tensor:
    """The epoch from which on similarity (..., E) stays at `level` of its last value or above -> (...).

    Between the last snapshot below it and the next, similarity is taken to rise in a straight line; a curve that is
    never below gives the first epoch. NaN where the last value is NaN or not above 0.
    """
    if not 0 < level <= 1:
        raise ZfkitError(f"level must lie above 0 and at most at 1, not be {level!r}")
    at = torch.as_tensor(epochs, dtype=torch.float64)
    s = similarity.double()
    threshold = level * s[..., -1:]
    place = torch.arange(s.shape[-1]).expand(s.shape)
    last = torch.where(s < threshold, place, -1).amax(-1, keepdim=True)  # the last one below; -1 for none
    a, b = last.clamp(min=0), (last + 1).clamp(max=s.shape[-1] - 1)
    low, high = s.gather(-1, a), s.gather(-1, b)
    found = at[a] + (at[b] - at[a]) * ((threshold - low) / (high - low)).nan_to_num(0.0)
    found = torch.where(last < 0, at[0], found)
    return found.masked_fill(~(s[..., -1:] > 0), math.nan)[..., 0]


def convergence(found: Evolution | Sequence[Evolution], level: float = 0.9) -> pd.DataFrame:
    """When did each layer reach 90 % of its final similarity? With the spread over its maps and over runs.

    The final similarity, to itself, is 1; so this is the epoch from which on similarity to the last snapshot stays at
    `level` or above, interpolated (`settled`). By construction every layer gets there by the last snapshot, also
    one that never settles: compare layers, and runs that were stopped at other epochs, not one number alone.

    Args:
        found: of one run, or of several that differ in their seed only.

    Returns a data frame by layer: cka (epoch by the layer's CKA, mean over runs), cka_low, cka_high (of the runs);
    map, map_q25, map_q75 (median and quartiles over all maps of all runs, by each map's similarity); rise (as cka, but
    of the way from the first snapshot's CKA to 1, since some layers begin similar); start (CKA at the first snapshot,
    mean), maps (how many of them have a similarity), runs.

    Raises ZfkitError for a run with a single snapshot, or runs of other layers or epochs.

    >>> zfkit.experiments.convergence([zfkit.evolution(run, images) for run in runs])["cka"]
    """
    import pandas as pd

    runs = [found] if isinstance(found, Evolution) else list(found)
    if not runs:
        raise ZfkitError("no run was given; pass what zfkit.evolution returned")
    for run in runs:
        if len(run.epochs) < 2:
            raise ZfkitError(
                f"{run.name!r} has one snapshot, of epoch {run.epochs[0]}, and nothing to compare it with: train with "
                "more of Recipe.snapshots, or take a folder that holds several"
            )
        if list(run.layers) != list(runs[0].layers) or run.epochs != runs[0].epochs:
            raise ZfkitError(
                f"{run.name!r} and {runs[0].name!r} were looked at in other layers or epochs: call zfkit.evolution "
                "with the same for each run"
            )
    rows = {}
    for name in runs[0].layers:
        curves = torch.stack([run[name].cka for run in runs])
        epoch = settled(runs[0].epochs, curves, level)
        first = curves[:, :1]
        rise = settled(runs[0].epochs, (curves - first) / (1 - first), level)
        maps = torch.cat([settled(run.epochs, run[name].similarity, level) for run in runs])
        maps = maps[~maps.isnan()]
        low, middle, high = (
            maps.quantile(torch.tensor([0.25, 0.5, 0.75]).double()) if len(maps) else [math.nan] * 3
        )
        rows[name] = {
            "cka": float(epoch.nanmean()), "cka_low": float(epoch.min()), "cka_high": float(epoch.max()),
            "map": float(middle), "map_q25": float(low), "map_q75": float(high),
            "rise": float(rise.nanmean()), "start": float(first.nanmean()),
            "maps": len(maps), "runs": len(runs),
        }  # fmt: skip
    return (
        pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer").astype({"maps": int, "runs": int})
    )


# ----------------------------------------------------------------------------------------------- snapshots


def bundled_runs() -> list[Run]:
    """Trainings that come with zfkit, with snapshots and history: one small ZFNet on `textures`, several seeds.

    Made by benchmarks/snapshots.py, which says how they were made small and what that costs.
    """
    folder = Path(str(importlib.resources.files("zfkit"))) / "weights" / "evolution"
    return [Run(path) for path in sorted(folder.glob("seed*"))]


def snapshots_of(source: Source) -> tuple[str, dict[int, Path | VisionModel]]:
    """Name of a training, and its snapshots by epoch, ascending, without reading them.

    Args:
        source: a `Run` or its folder; any folder of .safetensors files; or networks by epoch. The epoch of a file is
            the last number in its name, or else what its provenance says.

    Raises ZfkitError for a folder without snapshots, with files whose epoch cannot be known, or with two of one epoch.
    """
    if isinstance(source, Run | str | Path):
        folder = source.folder if isinstance(source, Run) else Path(source).expanduser()
        kept = Run(folder).snapshots
        return folder.resolve().name, dict(kept) if kept else _files(folder)
    pairs = list(source.items()) if isinstance(source, Mapping) else list(source)
    found: dict[int, Path | VisionModel] = {}
    for pair in pairs:
        whole = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[1], VisionModel)
        if not whole or isinstance(pair[0], bool) or not isinstance(pair[0], int):
            raise ZfkitError(
                f"snapshots must be a folder, a Run, or pairs (epoch, VisionModel), not {pair!r}"
            )
        if pair[0] in found:
            raise ZfkitError(f"there are two snapshots of epoch {pair[0]}: leave one out")
        found[pair[0]] = pair[1]
    if not found:
        raise ZfkitError("there are no snapshots to look at: the list is empty")
    return next(m.name for m in found.values() if isinstance(m, VisionModel)), dict(sorted(found.items()))


def _files(folder: Path) -> dict[int, Path | VisionModel]:
    """Snapshots of any folder, by epoch."""
    if not folder.is_dir():
        raise ZfkitError(f"there is no folder {str(folder)!r}; check the path")
    inner = folder / "snapshots"
    # Names that begin with a dot are files that are being written.
    files = sorted(inner.glob("[!.]*.safetensors")) or sorted(folder.glob("[!.]*.safetensors"))
    if not files:
        raise ZfkitError(
            f"{str(folder)!r} holds no snapshots (*.safetensors): give the folder that a training wrote to, as "
            "zfkit.fit(..., out=FOLDER)"
        )
    found: dict[int, Path | VisionModel] = {}
    for file in files:
        numbers = re.findall(r"\d+", file.stem)
        epoch = int(numbers[-1]) if numbers else _told_epoch(file)
        if epoch in found:
            raise ZfkitError(
                f"{file.name} and {getattr(found[epoch], 'name', '')} in {str(folder)!r} are both of epoch {epoch}: "
                "keep one training in a folder, with the epoch as the last number in each name"
            )
        found[epoch] = file
    return dict(sorted(found.items()))


def _told_epoch(file: Path) -> int:
    try:
        return int(read_provenance(file)["epoch"])
    except (ModelError, KeyError, TypeError, ValueError):
        raise ZfkitError(
            f"the epoch of {file.name} cannot be known: put it into the name, as in epoch_0010.safetensors"
        ) from None


def _loaded(snapshot: Path | VisionModel, base: VisionModel | None, device: Any) -> VisionModel:
    """The network of a snapshot; `base` says which it is where the file does not."""
    if isinstance(snapshot, VisionModel):
        return snapshot
    if base is None:
        return load_model(snapshot, device=device)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(snapshot)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{snapshot.name} is damaged ({error}); copy it again") from None
    net = copy.deepcopy(base.net)
    expected = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in tensors.items()}
    if found != expected:
        raise _Misfit(_difference(found, expected))
    net.load_state_dict(tensors)
    # A traced network and a fingerprint belong to the weights they were made from: not to be shared.
    return replace(base, net=net.eval(), name=snapshot.stem, _traced={}, _hashed={})


class _Misfit(ZfkitError):
    """Weights of another shape."""


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The first tensor whose shape differs, in words."""
    name = min(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
    return (
        f"{name} is {found.get(name, 'not there')} in it and {expected.get(name, 'not there')} in the others"
    )


def _shapes(model: VisionModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in model.net.state_dict().items()}


# ---------------------------------------------------------------------------------------------- evolution


class Stage(NamedTuple):
    """How far `evolving` is: what it does, and which fraction is done."""

    doing: str
    done: float


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
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Evolution:
    """What each feature map answers to most after each epoch, projected (Fig. 4), and how far it is from its end.

    Args:
        snapshots: a `Run` or its folder, any folder of .safetensors snapshots of one training, or pairs
            (epoch, VisionModel). One network at a time is in memory.
        images: pictures to find the strongest activations in, with or without labels. The paper takes all of the
            training set; memory does not grow with their number.
        layers: names, also of fully connected layers; None for every convolution.
        channels: maps to project; of several layers, a mapping by layer. None: `maps` of each layer, drawn at random
            by `seed` from those that are active at the end, as in the paper.
        epochs: which snapshots; None for all. Those that are not there are told in `missing`.
        compare: pictures for the similarities, evenly spread over the set.
        places: units of each map for them, at most, in each of these pictures: drawn at random by `seed`, at the same
            places in every epoch. Each picture and place is a sample, each map a feature; activations are those of
            the layer itself, before the ReLU behind it.
        options: of the projections.
        inside: leave out units that look beyond the picture's border; None: where every layer has others.
        model: for files that do not say which network they belong to: the network whose weights they are.
        name: of the training, for captions; None: that of its folder, or of the first network.
        seed: of maps and places.
        device: default: the GPU if there is one.
        progress: show a bar.

    A snapshot that cannot be read (cut short, say) is left out, warned about, and told in `missing`; if it is the
    last, everything is compared with the last that can be read. With one snapshot there is a grid of one column, and
    distances and similarities to itself.

    Raises ZfkitError where there is no snapshot, or one of another shape; LayerError for an unknown layer or map.

    >>> found = zfkit.evolution("runs/mine", zfkit.load_images("textures", size=64))
    >>> plotting.evolution_figure(found)
    >>> zfkit.experiments.convergence(found)
    """
    steps = evolving(
        snapshots, images, layers, channels, epochs=epochs, maps=maps, compare=compare, places=places, options=options,
        inside=inside, batch_size=batch_size, model=model, name=name, seed=seed, device=device,
    )  # fmt: skip
    with tqdm(total=100, desc="evolution", unit="%", disable=not progress, leave=False) as bar:
        while True:
            try:
                stage = next(steps)
            except StopIteration as end:
                bar.update(100 - bar.n)
                found: Evolution = end.value
                return found
            bar.set_postfix_str(stage.doing)
            bar.update(int(100 * stage.done) - bar.n)


def evolving(
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
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Generator[Stage, None, Evolution]:
    """`evolution`, a snapshot at a time: yields before each, and returns the result."""
    for what, number in (("maps", maps), ("compare", compare), ("places", places)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ZfkitError(f"{what} must be a whole number from 1 on, not {number!r}")
    if not len(images):
        raise ImageError("there are no pictures to look at")
    own, kept = snapshots_of(snapshots)
    name = own if name is None else name
    kept, missing = _chosen(kept, epochs)
    last: VisionModel | None = None
    while kept and last is None:  # the last that can be read: all others are compared with it
        epoch = max(kept)
        yield Stage(f"epoch {epoch}", 0.0)
        last = _read(epoch, kept, model, device, missing)
    if last is None:
        raise ModelError(f"none of the snapshots of {name!r} can be read: {missing[-1]}")
    names = [layers] if isinstance(layers, str) else list(last.conv_layers if layers is None else layers)
    if not names:
        raise LayerError(f"no layer was named to look at. There are: {', '.join(last.conv_layers)}")
    for layer in names:
        last.network.find(layer)
    names = [n for n in last.layers if n in names]  # in order of execution, each once
    looker = _Looker(images, names, options, inside, batch_size, compare, places, seed)
    top, last_samples = looker.look(last)
    shown = _maps_shown(top, names, channels, maps, seed)
    expected, end_weights = _shapes(last), _weights(last, names)
    columns: dict[int, dict[str, _Column]] = {}
    columns[max(kept)] = looker.columns(
        last, top, last_samples, last_samples, shown, end_weights, end_weights
    )
    total = len(kept)
    for done, epoch in enumerate(sorted(kept)[:-1], 1):
        yield Stage(f"epoch {epoch}", done / total)
        now = _read(epoch, kept, model, device, missing)
        if now is None:
            continue
        if _shapes(now) != expected:
            raise ZfkitError(
                f"the snapshot of epoch {epoch} is of another network than that of epoch {max(kept)}: "
                f"{_difference(_shapes(now), expected)}. Give the snapshots of one training"
            )
        top, samples = looker.look(now)
        columns[epoch] = looker.columns(
            now, top, samples, last_samples, shown, _weights(now, names), end_weights
        )
    read = tuple(sorted(columns))
    together = {layer: _joined([columns[e][layer] for e in read], shown[layer]) for layer in names}
    return Evolution(
        name, images.source, top.count, read, together, len(looker.compared), places, tuple(missing)
    )


def _chosen(
    kept: Mapping[int, Path | VisionModel], epochs: Sequence[int] | None
) -> tuple[dict[int, Path | VisionModel], list[str]]:
    """The snapshots that were asked for, and what of it is not there."""
    if epochs is None:
        return dict(kept), []
    wanted = sorted(set(epochs))
    lacking = [e for e in wanted if e not in kept]
    told = ", ".join(map(str, kept))
    if len(lacking) == len(wanted):
        raise ZfkitError(f"none of the epochs {wanted} was kept; there are: {told}")
    missing = [f"epoch {', '.join(map(str, lacking))} was not kept (there are: {told})"] if lacking else []
    return {e: kept[e] for e in wanted if e in kept}, missing


def _read(
    epoch: int, kept: dict[int, Path | VisionModel], base: VisionModel | None, device: Any, missing: list[str]
) -> VisionModel | None:
    """A snapshot's network; None, with a word in `missing`, for one that cannot be read, which leaves `kept`."""
    try:
        return _loaded(kept[epoch], base, device)
    except _Misfit as misfit:
        raise ZfkitError(
            f"the snapshot of epoch {epoch} is of another network than the model that was given: {misfit}"
        ) from None
    except ModelError as error:
        if "does not say which network" in str(error):
            raise ZfkitError(
                f"{error}. Or say it here: zfkit.evolution(..., model=zfkit.wrap_model(net, ...))"
            ) from None
        told = f"epoch {epoch} is left out: {error}"
        warnings.warn(told, stacklevel=2)
        missing.append(told)
        del kept[epoch]
        return None


def _maps_shown(
    top: TopK,
    layers: Sequence[str],
    channels: Sequence[int] | Mapping[str, Sequence[int]] | None,
    maps: int,
    seed: int,
) -> dict[str, Tensor]:
    """Which maps of each layer are projected."""
    if channels is None:
        return {n: torch.tensor(c, dtype=torch.long) for n, c in sample_maps(top, layers, maps, seed).items()}
    if not isinstance(channels, Mapping):
        if len(layers) > 1:
            raise LayerError(
                f"channels of {len(layers)} layers must be given by layer, as {{{layers[0]!r}: [0, 1]}}, not as a list"
            )
        channels = {layers[0]: channels}
    found = {}
    for layer in layers:
        C = len(top[layer].value)
        chosen = torch.as_tensor(list(channels.get(layer, ())))
        whole = not (chosen.is_floating_point() or chosen.dtype == torch.bool) or not chosen.numel()
        if chosen.dim() != 1 or not whole or not ((chosen >= 0) & (chosen < C)).all():
            raise LayerError(
                f"channels must be feature maps, 0 to {C - 1} of {layer!r}, not {channels[layer]!r}"
            )
        found[layer] = chosen.long()
    unknown = [n for n in channels if n not in found]
    if unknown:
        raise LayerError(
            f"channels names {unknown[0]!r}, which is not one of the layers: {', '.join(layers)}"
        )
    return found


def _weights(model: VisionModel, layers: Sequence[str]) -> dict[str, Tensor | None]:
    """Each layer's own weights, without its biases, on the CPU; None where it has none."""
    found: dict[str, Tensor | None] = {}
    for layer in layers:
        weight = getattr(model.network.find(layer).module, "weight", None)
        found[layer] = weight.detach().double().cpu() if isinstance(weight, nn.Parameter) else None
    return found


@dataclass(frozen=True)
class _Column:
    """One layer at one snapshot."""

    value: Tensor  # (C,), and so are the next three
    image: Tensor
    row: Tensor
    col: Tensor
    similarity: Tensor  # (C,)
    cka: float
    moved: Tensor | None  # weights minus those at the end
    projection: Tensor  # (M, channels, S, S)
    photo: Tensor  # (M, 3, S, S)


def _joined(columns: Sequence[_Column], channels: Tensor) -> LayerEvolution:
    def along(name: str, dim: int = 1) -> Tensor:
        return torch.stack([getattr(c, name) for c in columns], dim)

    moved = [c.moved.norm() if c.moved is not None else torch.tensor(math.nan) for c in columns]
    whole = torch.stack(moved).double()
    distance = whole / whole[0] if len(columns) > 1 else whole * math.nan
    return LayerEvolution(
        value=along("value"), image=along("image"), row=along("row"), col=along("col"),
        similarity=along("similarity"),
        cka=torch.tensor([c.cka for c in columns], dtype=torch.float64), distance=distance, channels=channels,
        projection=along("projection"), photo=along("photo"),
    )  # fmt: skip


class _Looker:
    """What is the same at every snapshot: pictures, layers, the places where activations are compared."""

    def __init__(
        self,
        images: ImageSet,
        layers: Sequence[str],
        options: Options,
        inside: bool | None,
        batch_size: int | None,
        compare: int,
        places: int,
        seed: int,
    ) -> None:
        self.images, self.layers, self.options = images, layers, options
        self.inside, self.batch_size = inside, batch_size
        count = min(compare, len(images))
        self.compared = (torch.arange(count) * len(images)) // count
        # Fractions of a map's height and width: so the places are alike in every layer.
        generator = torch.Generator().manual_seed(seed)
        self.places = torch.rand(count, places, 2, generator=generator, dtype=torch.float64)

    def look(self, model: VisionModel) -> tuple[TopK, dict[str, Tensor]]:
        """The strongest activations, and the samples (n, C) that are compared, of each layer."""
        if self.inside is None:
            self.inside = fits_inside(model, self.layers, self.images.size)
        top = mine(
            model, self.images, self.layers, 1, inside=self.inside, batch_size=self.batch_size, progress=False
        )
        if self.images.skipped:  # mine left out what cannot be read
            lost = {skipped.name for skipped in self.images.skipped}
            kept = torch.tensor([self.images.name(i) not in lost for i in self.compared.tolist()])
            self.compared, self.places = self.compared[kept], self.places[kept]
        samples: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        for part in torch.arange(len(self.compared)).split(64):
            pixels, fractions = self.images.take(self.compared[part]), self.places[part]
            for layer, output in activations(model, pixels, self.layers):
                samples[layer].append(sampled(output, fractions).cpu())
        return top, {layer: torch.cat(parts) for layer, parts in samples.items()}

    def columns(
        self,
        model: VisionModel,
        top: TopK,
        samples: Mapping[str, Tensor],
        last_samples: Mapping[str, Tensor],
        shown: Mapping[str, Tensor],
        weights: Mapping[str, Tensor | None],
        last_weights: Mapping[str, Tensor | None],
    ) -> dict[str, _Column]:
        """Everything about one snapshot."""
        wanted = {layer: chosen for layer, chosen in shown.items() if len(chosen)}
        patches = project_many(model, self.images, top, wanted, k=1, options=self.options)
        found = {}
        for layer in self.layers:
            t, weight, end = top[layer], weights[layer], last_weights[layer]
            projection, photo = torch.empty(0), torch.empty(0, dtype=torch.uint8)
            if layer in patches:
                projection, photo = framed(patches[layer], self.images.size)
            found[layer] = _Column(
                t.value[:, 0], t.image[:, 0], t.row[:, 0], t.col[:, 0],
                squared_correlation(samples[layer], last_samples[layer]), cka(samples[layer], last_samples[layer]),
                None if weight is None or end is None else weight - end, projection, photo,
            )  # fmt: skip
        return found


def sampled(output: Tensor, fractions: Tensor) -> Tensor:
    """Activations (n, C, H, W) at `fractions` (n, places, 2) of height and width -> (n * places, C); (n, C) stay."""
    if output.dim() == 2:
        return output
    n, _, H, W = output.shape
    row, col = ((fractions[..., i] * side).long() for i, side in enumerate((H, W)))
    maps = output.cpu().permute(0, 2, 3, 1)  # (n, H, W, C)
    return maps[torch.arange(n)[:, None], row, col].flatten(0, 1)


def framed(patches: Patches, side: int) -> tuple[Tensor, Tensor]:
    """Strongest projections (M, C, S, S) and photographs; of units that see more than the picture, the whole picture.

    Cut to the picture along each axis on its own, so that a window is never larger than what there is to see.
    """
    projection, photo = patches.projection[:, 0], patches.photo[:, 0]
    for axis in (2, 3):
        size = projection.shape[axis]
        if size <= side:
            continue
        start = -patches.box[:, 0, 3 - axis]  # of the picture, in the window; box is left, top, ...
        place = start[:, None] + torch.arange(side)  # (M, side)
        there = (place >= 0) & (place < size)
        place = place.clamp(0, size - 1)
        shape = (-1, 1, side, 1) if axis == 2 else (-1, 1, 1, side)
        projection, photo = (
            torch.gather(
                t, axis, place.view(shape).expand(*(side if d == axis else n for d, n in enumerate(t.shape)))
            )
            for t in (projection, photo)
        )
        projection = projection * there.view(shape)
        photo = torch.where(there.view(shape), photo, GREY)
    return projection, photo


GREY = 128  # of a picture's part that a unit does not see
