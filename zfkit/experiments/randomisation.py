"""Can you trust the picture? The same unit, with one thing changed at a time (Adebayo et al. 2018, Nie et al. 2018).

A projection is made out of three things: the *picture* (its max-pooling switches and, under other rules than the
deconvnet's, which ReLUs it opened), the *weights*, and the *channel* that one starts from. `sanity_checks` replaces
them one by one, and measures how much the projection still looks like what it was:

    weights     redrawn from the unit's own layer down (a cascade), or in one layer alone
    switches    of another picture, or of none: the middle of every pooling window, or places drawn at random
    channel     another one, at the same place of the same picture
    picture     another one of the channel's strongest

A number means nothing without what chance would give, so two controls come with it: projections of *unrelated* units,
and the projection's own pixels shuffled.

How weights are redrawn (`randomise`): "normal" gives N(0, s^2), s the RMS that the layer's weights have, and biases
0. That is the paper's initialisation, N(0, 0.01^2) with biases 0, up to one factor for each layer: convolution, ReLU
and max-pooling pass such a factor on unchanged, so it makes a projection brighter or darker and nothing else (contrast
normalisation, which knows a scale, stays on the trained one). With all layers redrawn this is the untrained network.
"permutation" shuffles the trained weights of a layer among themselves, and its biases: the same numbers, in a
meaningless order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..deconv.project import Deconvnet, Tape, forward
from ..deconv.receptive_field import field_in, units_inside
from ..deconv.rules import RULES, Norm, Options, Rule
from ..deconv.windows import paste
from ..errors import ImageError, LayerError, ZfkitError, unknown
from ..figures.pictures import signed_to_rgb
from ..images.imageset import ImageSet
from ..nets.graph import pair
from ..nets.model import VisionModel
from ..topk.mine import mine
from ..topk.patches import FORWARD_PIXELS, REVERSE_BYTES, Crop
from ..topk.table import TopK
from ..training.data import generator

if TYPE_CHECKING:
    import pandas as pd

Draw = Literal["normal", "permutation"]
Switches = Literal["centre", "random"]

# What is changed, in the order of tables and figures; "down to" and "only" name a layer besides.
CONDITIONS = {
    "trained": "nothing: the projection that all others are compared with",
    "other channel": "the channel, at the same place of the same picture",
    "other picture": "the picture: another one of the channel's strongest, at its own place",
    "other switches": "the switches: those of an unrelated picture at the same place",
    "centre switches": "the switches: the middle of every pooling window",
    "random switches": "the switches: a place of every pooling window, drawn at random",
    "down to": "the weights of all layers from the unit's own down to this one",
    "only": "the weights of this layer alone",
    "unrelated": "channel, place and picture: a unit of another channel on its own strongest picture",
    "shuffled": "the order of the projection's own pixels",
}
MEASURES = {
    "spearman": "rank correlation of values",
    "absolute": "rank correlation of |values|",
    "ssim": "SSIM of the pictures as shown",
}


# ------------------------------------------------------------------------------------------- redrawn weights


def weight_layers(model: VisionModel, layer: str) -> tuple[str, ...]:
    """The layers with weights that a unit of `layer` depends on, in order of execution; its own is the last.

    Raises LayerError for an unknown layer, and for one whose weights zfkit does not know how to redraw.
    """
    model.network.find(layer)
    names: dict[int, str] = {}
    for step in model.network.upto([layer]):
        module = step.module
        if module is None or isinstance(module, nn.BatchNorm2d) or not any(True for _ in module.parameters()):
            continue
        if not isinstance(module, nn.Conv2d | nn.Linear):
            raise LayerError(
                f"no rule says how to redraw the weights of {step.operation} (at {step.name!r}); there are rules for "
                "Conv2d and Linear, with BatchNorm2d"
            )
        names.setdefault(id(module), step.name)  # a module that is used twice is one layer
    if not names:
        raise LayerError(f"there are no weights between the picture and {layer!r}; take a layer further up")
    return tuple(names.values())


def randomise(
    model: VisionModel, layers: str | Sequence[str], *, draw: Draw = "normal", seed: int = 0
) -> VisionModel:
    """A copy of the network with the weights of these layers redrawn; the model itself is left alone.

    Args:
        layers: convolutions or fully connected layers.
        draw: "normal", N(0, s^2) with the layer's own RMS s, and biases 0; or "permutation" of its weights and
            of its biases. A batch normalisation right behind the layer is reset (mean 0, variance 1, factor 1,
            offset 0), or its maps are permuted.
        seed: of the draw. What a layer gets depends on seed and layer only, not on what else is redrawn.

    Raises LayerError for a layer that is unknown or has no weights to redraw.

    >>> untrained = randomise(model, weight_layers(model, "conv5"))
    """
    if draw not in get_args(Draw):
        raise ZfkitError(unknown("draw", draw, get_args(Draw)))
    _whole(seed=(seed, 0))
    names = [layers] if isinstance(layers, str) else list(layers)
    modules = {name: model.network.find(name).module for name in names}
    for name, module in modules.items():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            able = [n for n, s in model.network.steps.items() if isinstance(s.module, nn.Conv2d | nn.Linear)]
            raise LayerError(f"{name!r} has no weights to redraw; layers that have: {', '.join(able)}")
    paths = {id(module): path for path, module in model.net.named_modules()}
    behind: dict[str, list[str]] = {
        name: [
            paths[id(s.module)]
            for s in model.network.steps.values()
            if isinstance(s.module, nn.BatchNorm2d) and s.inputs[0] == name
        ]
        for name in names
    }
    net = copy.deepcopy(model.net)
    with torch.no_grad():
        for name, module in modules.items():
            numbers = generator(seed, model.layers.index(name))
            _redraw(net.get_submodule(paths[id(module)]), draw, numbers)
            for path in behind[name]:
                _reset_norm(net.get_submodule(path), draw, numbers)
    told = names[0] if len(names) == 1 else f"{len(names)} layers"
    return replace(model, net=net, name=f"{model.name}, {told} redrawn", _traced={}, _hashed={})


def _redraw(module: nn.Module, draw: Draw, numbers: torch.Generator) -> None:
    for parameter in module.parameters():
        if draw == "permutation":
            order = torch.randperm(parameter.numel(), generator=numbers).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
        elif parameter.dim() == 1:
            parameter.zero_()
        else:
            noise = torch.randn(parameter.shape, generator=numbers, dtype=torch.float64).to(parameter)
            parameter.copy_(noise * parameter.square().mean().sqrt())


def _reset_norm(norm: nn.Module, draw: Draw, numbers: torch.Generator) -> None:
    assert isinstance(norm, nn.BatchNorm2d)
    if draw == "normal":
        norm.reset_parameters()
        return
    order = torch.randperm(norm.num_features, generator=numbers)
    for of_maps in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        if of_maps is not None:
            of_maps.copy_(of_maps[order.to(of_maps.device)])


# ---------------------------------------------------------------------------------------- other switches


def other_switches(model: VisionModel, tape: Tape, source: Tape) -> Tape:
    """`tape`, with the max-pooling switches of another one; masks of ReLUs stay."""
    return replace(tape, kept=tape.kept | {name: source.kept[name] for name in _max_pools(model, tape)})


def no_switches(
    model: VisionModel, tape: Tape, how: Switches = "centre", numbers: torch.Generator | None = None
) -> Tape:
    """`tape`, with max-pooling switches that no picture has chosen.

    "centre": every value goes back to the middle of its pooling window (of its part inside the map); "random":
    to a place of the window drawn for each channel and window alike.

    Raises LayerError for adaptive max-pooling, whose windows have no fixed form.
    """
    kept = dict(tape.kept)
    for name, module in _max_pools(model, tape).items():
        if not isinstance(module, nn.MaxPool2d):
            raise LayerError(f"{name!r} is {type(module).__name__}, whose windows have no fixed middle")
        source = tape.shapes[model.network.steps[name].inputs[0]]
        N, shape = len(tape.kept[name]), tape.shapes[name]
        chosen = [_in_windows(module, axis, source[1 + axis], (N, *shape), how, numbers) for axis in (0, 1)]
        place = chosen[0] * source[2] + chosen[1]  # as max-pooling counts: along the rows of its input
        record = RULES[nn.MaxPool2d].record
        assert record is not None
        kept[name] = record(module, place.new_empty(1, 1, *source[1:]), place, Options()).to(tape.kept[name])
    return replace(tape, kept=kept)


def _max_pools(model: VisionModel, tape: Tape) -> dict[str, nn.Module]:
    steps = model.network.steps
    found = {name: steps[name].module for name in tape.kept}
    return {n: m for n, m in found.items() if isinstance(m, nn.MaxPool2d | nn.AdaptiveMaxPool2d)}


def _in_windows(
    module: nn.MaxPool2d, axis: int, side: int, shape: tuple[int, ...], how: Switches,
    numbers: torch.Generator | None,
) -> Tensor:  # fmt: skip
    """A row (axis 0) or column (1) of the input for each pooled value (N, C, h, w), inside its window and the map."""
    kernel, stride, padding, dilation = (
        pair(v)[axis] for v in (module.kernel_size, module.stride, module.padding, module.dilation)
    )
    start = torch.arange(shape[2 + axis]) * stride - padding
    first = (-start).clamp(min=0).add(dilation - 1) // dilation  # the first tap at or after the border
    last = ((side - 1 - start) // dilation).clamp(max=kernel - 1)
    view = (1, 1, -1, 1) if axis == 0 else (1, 1, 1, -1)
    first, last, start = (t.view(view).expand(shape) for t in (first, last, start))
    if how == "centre":
        tap = (first + last) // 2
    else:
        tap = first + (torch.rand(shape, generator=numbers) * (last - first + 1)).long().clamp(max=kernel - 1)
    return start + tap * dilation


# ------------------------------------------------------------------------------------------------- measures


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1 of a flat tensor, ties get their mean rank -> (n,) float64."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count - 1) / 2).double()[place]


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's: the correlation of ranks, over all values. NaN where one of them is constant."""
    x, y = (ranks(t.flatten()) for t in (a, b))
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x.norm() * y.norm()))


def similarity(a: Tensor, b: Tensor) -> dict[str, float]:
    """How alike two projections (C, h, w) are: spearman, absolute, ssim, as `MEASURES` says; 1 for equal ones.

    SSIM (Wang et al. 2004; windows of 7 px, fewer in smaller pictures) is that of the 8-bit pictures which a reader
    sees, each on its own scale (`signed_to_rgb`). NaN where one of the two is empty: nothing came back to the pixels.
    """
    from skimage.metrics import structural_similarity

    if not (a.any() and b.any()):
        return dict.fromkeys(MEASURES, float("nan"))
    shown = [signed_to_rgb(t[None])[0].numpy() for t in (a, b)]
    window = min(7, *a.shape[1:])
    ssim = 1.0
    if window >= 3:
        ssim = float(structural_similarity(*shown, win_size=window - 1 + window % 2, channel_axis=0))
    return {
        "spearman": rank_correlation(a, b), "absolute": rank_correlation(a.abs(), b.abs()),
        "ssim": ssim if window >= 3 else float("nan"),
    }  # fmt: skip


SLOW = 2.0  # px, sigma of the Gaussian that is taken from the photo


def photo_likeness(projection: Tensor, photo: Tensor) -> float:
    """Is it the photo again? Rank correlation of a projection (C, h, w) with what the photo has of fine detail.

    That is the photo, uint8 (3, h, w), minus itself blurred by a Gaussian of 2 px: a picture that owes nothing to any
    network. For a one-channel network, of the photo's luma. NaN where one of them is constant.
    """
    from skimage.filters import gaussian

    x = photo.double()
    if len(projection) == 1:
        x = torch.tensordot(x.new_tensor([0.299, 0.587, 0.114]), x, 1)[None]
    return rank_correlation(projection, x - torch.from_numpy(gaussian(x.numpy(), SLOW, channel_axis=0)))


# -------------------------------------------------------------------------------------------- sanity_checks


@dataclass(frozen=True)
class SanityChecks:
    """How much of projections survives when one thing is changed; made by `sanity_checks`.

    Attributes:
        model, images: their names.
        draw: how weights were redrawn. draws: how often.
        layers, rules: that were looked at.
        pictures: data frame, a row for each projection: layer, unit (0, 1, ...), channel, image, rule, condition (a
            key of `CONDITIONS`), weights (the layer of "down to" and "only", else ""), draw, the `MEASURES`
            against the trained network's projection of the unit, and photo (`photo_likeness` to what the unit sees).
        examples: by (layer, rule, condition, weights), the first units' projections (n, C, h, w), of the first draw.
        photos: by layer, what these units saw, uint8 (n, 3, h, w).
    """

    model: str
    images: str
    draw: Draw
    draws: int
    layers: tuple[str, ...]
    rules: tuple[Rule, ...]
    pictures: pd.DataFrame = field(repr=False)
    examples: dict[tuple[str, str, str, str], Tensor] = field(repr=False)
    photos: dict[str, Tensor] = field(repr=False)

    def table(self, layer: str | None = None) -> pd.DataFrame:
        """Data frame by (layer, rule, condition, weights): mean and sd over units of each measure and of photo.

        A unit's draws are averaged first. empty: share of projections in which nothing came back (left out of the
        means). Raises LayerError for a layer that was not looked at.
        """
        import pandas as pd

        if layer is not None and layer not in self.layers:
            raise LayerError(f"layer {layer!r} was not looked at; there are {', '.join(self.layers)}")
        part = self.pictures if layer is None else self.pictures[self.pictures.layer == layer]
        keys, measures = ["layer", "rule", "condition", "weights"], [*MEASURES, "photo"]
        units = part.groupby([*keys, "unit"], sort=False)[measures].mean()
        over = units.groupby(level=keys, sort=False)
        columns: dict[str, pd.Series[float]] = {}
        for name in measures:
            columns |= {name: over[name].mean(), f"{name}_sd": over[name].std(ddof=0)}
        columns["empty"] = part.groupby(keys, sort=False)["spearman"].apply(lambda v: v.isna().mean())
        columns["units"] = over.size()
        return pd.DataFrame(columns)

    def mean(
        self, layer: str, rule: Rule, condition: str, weights: str = "", measure: str = "spearman"
    ) -> float:
        """One number of `table`. Raises ZfkitError where there is none of that name."""
        table = self.table(layer)
        if (layer, rule, condition, weights) not in table.index or measure not in table.columns:
            asked = ", ".join(map(repr, (rule, condition, weights, measure)))
            raise ZfkitError(
                f"nothing was measured for {asked} in {layer!r}; rules are {', '.join(self.rules)}, conditions "
                f"{', '.join(CONDITIONS)}, measures {', '.join([*MEASURES, 'photo'])}"
            )
        return float(table.loc[(layer, rule, condition, weights), measure])

    def untrained(self, layer: str) -> str:
        """The layer at which a cascade has redrawn every weight that a unit of `layer` depends on."""
        part = self.pictures[(self.pictures.layer == layer) & (self.pictures.condition == "down to")]
        if not len(part):
            raise LayerError(f"layer {layer!r} was not looked at; there are {', '.join(self.layers)}")
        return str(part.weights.iloc[-1])


def sanity_checks(
    model: VisionModel,
    images: ImageSet,
    layers: str | Sequence[str] | None = None,
    *,
    top: TopK | None = None,
    units: int = 16,
    rules: Sequence[Rule] = ("deconvnet", "guided", "gradient"),
    lrn: Norm = "skip",
    draw: Draw = "normal",
    draws: int = 2,
    keep: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> SanityChecks:
    """Project units again with one thing changed (`CONDITIONS`), and compare (`MEASURES`).

    Each unit is a feature map's strongest, on the picture that excites it most, as in Fig. 2 of the paper; in the
    network with other weights it is the same place of the same map. Compared is the receptive field of the unit, which
    has to lie within the picture; units of fully connected layers see, and are compared over, the whole picture.

    Args:
        images: at least 2, larger than the layers' receptive fields; of `model.input_size` for fully connected layers.
        layers: convolutions or fully connected layers; None for every convolution.
        top: what `mine` found with these layers and `inside=True`; else it is mined here.
        units: of each layer, of different maps, drawn at random by `seed` from those ever active; at least 2.
        rules, lrn: as for `project`.
        draw: how weights are redrawn, see `randomise`. draws: how often, each time for all units.
        keep: of so many units the projections themselves are kept, for figures.
        seed: of the units, what they are compared with, and the weights.

    Raises LayerError for layers without weights or channels to compare, or larger receptive fields than the pictures;
    ImageError for fewer than 2 pictures.

    >>> found = zfkit.sanity_checks(model, photos, ["conv3", "conv5"])
    >>> found.table("conv5").loc[("conv5", "deconvnet")]
    """
    import pandas as pd

    _whole(units=(units, 2), draws=(draws, 1), keep=(keep, 0), seed=(seed, 0))
    if draw not in get_args(Draw):
        raise ZfkitError(unknown("draw", draw, get_args(Draw)))
    if isinstance(rules, str) or not rules:
        raise ZfkitError(
            f"rules must be some of {', '.join(get_args(Rule))}, as ('deconvnet',), not {rules!r}"
        )
    options = {rule: Options(rule, lrn=lrn) for rule in rules}
    names = [layers] if isinstance(layers, str) else list(model.conv_layers if layers is None else layers)
    if not names:
        raise LayerError(f"no layer was named; {model.name} has {', '.join(model.conv_layers)}")
    if len(images) < 2:
        raise ImageError(
            f"{images.source!r} has {len(images)} picture; to compare with another, give at least 2"
        )
    for name in names:
        module = model.network.find(name).module
        if not isinstance(module, nn.Conv2d | nn.Linear):
            raise LayerError(
                f"{name!r} has no weights of its own: take a convolution or a fully connected layer"
            )
        if isinstance(module, nn.Conv2d):
            units_inside(model, name, images.size)  # or say that pictures are too small
    if top is None:
        top = mine(model, images, names, inside=True, progress=progress)
    top.check(model, images)
    if top.k < 2 or not top.inside:
        raise ZfkitError(
            "the table has to hold at least 2 pictures a map, mined with inside=True: mine again"
        )

    rows: list[pd.DataFrame] = []
    examples: dict[tuple[str, str, str, str], Tensor] = {}
    photos = {}
    steps = sum(len(rules) * (6 + draws * (2 * len(weight_layers(model, n)) - 1)) for n in names)
    with tqdm(total=steps, desc=f"sanity checks of {model.name}", disable=not progress, leave=False) as bar:
        for name in names:
            case = _Case.draw(model, images, top, name, units, seed)
            photos[name] = case.photo[:keep]
            trained = {rule: case.project(model, o) for rule, o in options.items()}
            for rule, condition, weights, number, pixels in _changed(
                case, options, trained, draw, draws, seed
            ):
                bar.update()
                if number == 0:
                    examples[name, rule, condition, weights] = pixels[:keep].clone()
                compared = [
                    similarity(a, b) | {"photo": photo_likeness(b, p)}
                    for a, b, p in zip(trained[rule], pixels, case.photo, strict=True)
                ]
                where = {
                    "layer": name, "unit": range(len(pixels)), "channel": case.channel.tolist(),
                    "image": case.image.tolist(), "rule": rule, "condition": condition, "weights": weights,
                    "draw": number,
                }  # fmt: skip
                rows.append(pd.concat([pd.DataFrame(where), pd.DataFrame(compared)], axis=1))
    frame = pd.concat(rows, ignore_index=True)
    return SanityChecks(
        model.name, images.source, draw, draws, tuple(names), tuple(rules), frame, examples, photos
    )


Changed = tuple[Rule, str, str, int, Tensor]  # rule, condition, layer of the weights, draw, projections


def _changed(
    case: _Case, options: dict[Rule, Options], trained: dict[Rule, Tensor], draw: Draw, draws: int, seed: int
) -> Iterator[Changed]:
    """All projections of a layer's units, in the order of `CONDITIONS`."""
    model, numbers = case.model, generator(seed)
    for rule, o in options.items():
        yield rule, "trained", "", 0, trained[rule]
        yield rule, "other channel", "", 0, case.project(model, o, channel=case.other_channel)
        yield rule, "other picture", "", 0, case.project(model, o, at=case.elsewhere)
        if case.pooled:
            # Each of these functions is defined here and used at once.
            def swapped(tape: Tape, part: Tensor, o: Options = o) -> Tape:
                return other_switches(model, tape, case.tape(model, o, case.unrelated, part))

            yield rule, "other switches", "", 0, case.project(model, o, alter=swapped)
            for how in get_args(Switches):

                def fixed(tape: Tape, part: Tensor, how: Switches = how) -> Tape:
                    return no_switches(model, tape, how, numbers)

                yield rule, f"{how} switches", "", 0, case.project(model, o, alter=fixed)
    below = weight_layers(model, case.layer)
    for number in range(draws):
        for i in reversed(range(len(below))):
            cascade = randomise(model, below[i:], draw=draw, seed=seed + number)
            for rule, o in options.items():
                yield rule, "down to", below[i], number, case.project(cascade, o)
        for i in reversed(range(len(below))):
            one = randomise(model, below[i], draw=draw, seed=seed + number)
            for rule, o in options.items():
                yield rule, "only", below[i], number, case.project(one, o)
    for rule, o in options.items():
        yield rule, "unrelated", "", 0, case.project(model, o, channel=case.other_channel, at=case.other_unit)
        flat = trained[rule].flatten(2)
        order = torch.randperm(flat.shape[2], generator=numbers)
        yield rule, "shuffled", "", 0, flat[:, :, order].view_as(trained[rule])


@dataclass(frozen=True)
class _Look:
    """What units see, and where they are in it."""

    pixels: Tensor  # (U, 3, s, s) uint8: crops that hold the receptive fields, or whole pictures
    position: Tensor | None  # (U, 2) in the maps of these crops


@dataclass(frozen=True)
class _Case:
    """U units of a layer, each of its own map, with what they are compared with."""

    model: VisionModel
    layer: str
    channel: Tensor  # (U,)
    other_channel: Tensor  # (U,)
    image: Tensor  # (U,) where the unit is strongest
    photo: Tensor  # (U, 3, h, w) uint8, its receptive field there
    here: _Look
    elsewhere: _Look  # another of the channel's strongest pictures, at its own place
    unrelated: _Look  # a picture from anywhere, at the same place
    other_unit: _Look  # the strongest of the other channel, on a picture of its own
    pooled: bool  # is there max-pooling on the way?

    @classmethod
    def draw(
        cls, model: VisionModel, images: ImageSet, top: TopK, layer: str, units: int, seed: int
    ) -> _Case:
        found, numbers = top[layer], generator(seed)
        there = found.image >= 0
        able = ((found.max > 0) & (there.sum(1) >= 2)).nonzero()[:, 0].tolist()
        if len(able) < 2:
            raise LayerError(
                f"{len(able)} of {len(there)} maps of {layer!r} are active on two of the pictures; at least two are "
                "needed to compare: take more pictures, or another layer"
            )
        group = torch.arange(len(images)) if images.windows is None else images.windows.photograph

        def pick(candidates: Tensor, *avoid: Tensor) -> Tensor:
            """One of them, of another photograph than these if there is one."""
            for better in range(len(avoid), 0, -1):
                strict = candidates[~torch.isin(group[candidates], group[torch.stack(avoid[:better])])]
                if len(strict):
                    return strict[torch.randint(len(strict), (), generator=numbers)]
            plain = candidates[candidates != avoid[0]]
            return plain[torch.randint(len(plain), (), generator=numbers)]

        order = torch.randperm(len(able), generator=numbers)[:units]
        channel = torch.tensor(able)[order]
        image = found.image[channel, 0]
        other_channel, again, foreign, unrelated = (torch.empty_like(channel) for _ in range(4))
        for u, (c, i) in enumerate(zip(channel.tolist(), image, strict=True)):
            rest = torch.tensor([a for a in able if a != c])
            other = other_channel[u] = rest[torch.randint(len(rest), (), generator=numbers)]
            for of, rank in ((c, again), (int(other), foreign)):  # the rank of another picture of theirs
                own = found.image[of][there[of]]
                rank[u] = int((own == pick(own, i)).nonzero()[0])
            unrelated[u] = pick(torch.arange(len(images)), i, found.image[c, again[u]])
        crop = Crop.plan(model, layer, images.size)
        has_rows = isinstance(model.network.find(layer).module, nn.Conv2d)

        def place(c: Tensor, k: Tensor) -> Tensor:
            return torch.stack([found.row[c, k], found.col[c, k]], 1)

        def look(pictures: Tensor, at: Tensor) -> _Look:
            pixels = images.take(pictures)
            if not has_rows:
                return _Look(pixels, None)
            if crop is None:
                return _Look(pixels, at)
            corner = crop.corners(at)
            s = crop.size
            cut = [p[:, t : t + s, x : x + s] for p, (t, x) in zip(pixels, corner.tolist(), strict=True)]
            return _Look(torch.stack(cut), at - corner // crop.stride)

        at = place(channel, torch.zeros_like(channel))
        here = look(image, at)
        case = cls(
            model, layer, channel, other_channel, image, here.pixels, here,
            look(found.image[channel, again], place(channel, again)), look(unrelated, at),
            look(found.image[other_channel, foreign], place(other_channel, foreign)),
            any(isinstance(s.module, nn.MaxPool2d | nn.AdaptiveMaxPool2d) for s in model.network.upto([layer])),
        )  # fmt: skip
        origin, size = case._window(here)
        return replace(case, photo=paste(here.pixels, -origin, size) if has_rows else here.pixels)

    def _window(self, at: _Look) -> tuple[Tensor, tuple[int, int]]:
        """Where the receptive fields lie in the crops, (U, 2) and their size."""
        side = at.pixels.shape[-1]
        rows, columns = field_in(self.model, side, self.layer)
        if at.position is None:
            return torch.zeros(len(at.pixels), 2, dtype=torch.long), (side, side)
        strides = torch.tensor([rows.stride, columns.stride])
        return at.position * strides + torch.tensor([rows.low, columns.low]), (rows.size, columns.size)

    def tape(self, model: VisionModel, options: Options, at: _Look, part: Tensor) -> Tape:
        """The forward pass that projections of some of the units start from."""
        deconvnet = Deconvnet(model.network, [self.layer], options)
        return forward(model, deconvnet, model.preprocess(at.pixels[part]))

    def project(
        self,
        model: VisionModel,
        options: Options,
        *,
        channel: Tensor | None = None,
        at: _Look | None = None,
        alter: Callable[[Tape, Tensor], Tape] | None = None,
    ) -> Tensor:
        """Projections of the units by this network, cut to their receptive fields -> (U, C, h, w) on the CPU."""
        at = at or self.here
        channel = self.channel if channel is None else channel
        deconvnet = Deconvnet(model.network, [self.layer], options)
        origin, size = self._window(at)
        pixels = []
        for part in torch.arange(len(channel)).split(max(1, FORWARD_PIXELS // at.pixels.shape[-1] ** 2)):
            tape = self.tape(model, options, at, part)
            if alter is not None:
                tape = alter(tape, part)
            few = max(1, REVERSE_BYTES // deconvnet.unit_bytes(self.layer, tape))
            for units in torch.arange(len(part)).split(few):
                which = part[units]
                R, window = deconvnet.reverse(
                    tape, self.layer, units.to(model.device), channel[which].to(model.device),
                    None if at.position is None else at.position[which],
                )  # fmt: skip
                pixels.append(paste(R.cpu(), window.origin.cpu() - origin[which], size))
        return torch.cat(pixels)


def _whole(**numbers: tuple[object, int]) -> None:
    """Raise ZfkitError for what is no whole number from the least on."""
    for name, (value, least) in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ZfkitError(f"{name} must be a whole number from {least} on, not {value!r}")
