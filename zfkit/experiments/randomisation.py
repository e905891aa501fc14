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

`replacements` says how weights are redrawn, and which other switches there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn

from ..batching import OnStep, Portions, steps
from ..checks import layer_names, one_of, whole_number
from ..deconv.project import Deconvnet, forward
from ..deconv.receptive_field import field_in, units_inside
from ..deconv.rules import Norm, Options, Rule
from ..deconv.windows import paste
from ..errors import ImageError, LayerError, ZfkitError
from ..images.colour import luma, signed_to_rgb
from ..images.imageset import ImageSet
from ..nets.model import VisionModel, expect_model
from ..results import Result
from ..topk.mine import mine
from ..topk.patches import FORWARD_PIXELS, REVERSE_BYTES, Crop, cut_windows
from ..topk.table import LayerTop, TopK
from ..training.data import generator
from .replacements import Draw, Switches, no_switches, other_switches, randomise, weight_layers

if TYPE_CHECKING:
    import pandas as pd

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


# ------------------------------------------------------------------------------------------------- measures


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's: the correlation of ranks, over all values. NaN where one of them is constant."""
    from scipy.stats import rankdata

    # Not `spearmanr`: it would work out a p-value, too, which takes longer than all else.
    x, y = (torch.from_numpy(rankdata(t.flatten().cpu())) for t in (a, b))
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x.norm() * y.norm()))


def similarity(a: Tensor, b: Tensor) -> dict[str, float]:
    """How alike two projections (C, h, w) are: spearman, absolute, ssim, as `MEASURES` says; 1 for equal ones.

    SSIM (Wang et al. 2004; windows of 7 px, fewer in smaller pictures) is that of the 8-bit pictures which a reader
    sees, each on its own scale (`signed_to_rgb`). NaN where one of the two is empty: nothing came back to the pixels.
    """
    from skimage.metrics import structural_similarity

    if not (a.any() and b.any()):
        return dict.fromkeys(MEASURES, math.nan)
    window = min(7, *a.shape[1:])
    window -= 1 - window % 2  # it has a middle
    ssim = math.nan
    if window >= 3:
        pictures = [signed_to_rgb(t[None])[0].numpy() for t in (a, b)]
        ssim = float(structural_similarity(*pictures, win_size=window, channel_axis=0))
    ranks = rank_correlation(a, b), rank_correlation(a.abs(), b.abs())
    return dict(zip(MEASURES, (*ranks, ssim), strict=True))


SLOW = 2.0  # px, sigma of the Gaussian that is taken from the photo


def photo_likeness(projection: Tensor, photo: Tensor) -> float:
    """Is it the photo again? Rank correlation of a projection (C, h, w) with what the photo has of fine detail.

    That is the photo, uint8 (3, h, w), minus itself blurred by a Gaussian of 2 px: a picture that owes nothing to any
    network. For a one-channel network, of the photo's luma. NaN where one of them is constant.
    """
    from skimage.filters import gaussian

    x = photo.double()
    if len(projection) == 1:
        x = luma(x)
    return rank_correlation(projection, x - torch.from_numpy(gaussian(x.numpy(), SLOW, channel_axis=0)))


# -------------------------------------------------------------------------------------------- sanity_checks


@dataclass(frozen=True)
class SanityChecks(Result, figure="sanity_layers_figure"):
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

        if layer is not None:
            one_of(layer, "layer among those looked at", self.layers, LayerError)
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
        one_of(layer, "layer among those looked at", self.layers, LayerError)
        cascade = self.pictures[(self.pictures.layer == layer) & (self.pictures.condition == "down to")]
        return str(cascade.weights.iloc[-1])


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
    random_seed: int = 0,
    progress: bool = True,
    on_step: OnStep | None = None,
) -> SanityChecks:
    """Project units again with one thing changed (`CONDITIONS`), and compare (`MEASURES`).

    Each unit is a feature map's strongest, on the picture that excites it most, as in Fig. 2 of the paper; in the
    network with other weights it is the same place of the same map. Compared is the receptive field of the unit, which
    has to lie within the picture; units of fully connected layers see, and are compared over, the whole picture.

    Args:
        images: at least 2, larger than the layers' receptive fields; of `model.input_size` for fully connected layers.
        layers: convolutions or fully connected layers; None for every convolution.
        top: what `mine` found with these layers and `inside=True`; else it is mined here.
        units: of each layer, of different maps, drawn at random by `random_seed` from those ever active; at least 2.
        rules, lrn: as for `project`.
        draw: how weights are redrawn, see `randomise`. draws: how often, each time for all units.
        keep: of so many units the projections themselves are kept, for figures.
        random_seed: of the units, what they are compared with, and the weights.
        on_step: called after each of the changes with (done, total); it may raise `Cancelled`.

    Raises LayerError for layers without weights or channels to compare, or larger receptive fields than the pictures;
    ImageError for fewer than 2 pictures.

    >>> checks = zfkit.sanity_checks(model, photos, ["conv3", "conv5"])
    >>> checks.table("conv5").loc[("conv5", "deconvnet")]
    """
    import pandas as pd

    expect_model(model)
    for what, count, least in (("units", units, 2), ("draws", draws, 1), ("keep", keep, 0)):
        whole_number(count, what, least)
    whole_number(random_seed, "random_seed", 0)
    one_of(draw, "draw", get_args(Draw))
    if isinstance(rules, str) or not rules:
        raise ZfkitError(f"rules must be a list of {', '.join(get_args(Rule))}, not {rules!r}")
    options = {rule: Options(rule, lrn=lrn) for rule in rules}
    network = model.network
    able = [n for n in model.layers if isinstance(network.steps[n].module, nn.Conv2d | nn.Linear)]
    names = layer_names(layers, able, model.conv_layers)
    if len(images) < 2:
        raise ImageError(f"{images.source!r} has {len(images)} picture; to compare, give 2 or more")
    for name in names:
        if name in model.conv_layers:
            units_inside(model, name, images.size)  # or say that pictures are too small
    if top is None:
        top = mine(model, images, names, inside=True, progress=progress)
    top.check(model, images)
    if top.k < 2 or not top.inside:
        raise ZfkitError("the table must hold at least 2 pictures a map, mined with inside=True: mine again")

    rows: list[pd.DataFrame] = []
    examples: dict[tuple[str, str, str, str], Tensor] = {}
    photos = {}
    total = sum(len(rules) * (6 + draws * (2 * len(weight_layers(model, n)) - 1)) for n in names)
    what, shorter = f"sanity checks of {model.name}", "fewer units, layers or draws take less"
    with steps(total, what, "change", progress, on_step, shorter) as done:
        for name in names:
            case = _Case.draw(model, images, top[name], name, units, random_seed)
            trained = {rule: case.own.project(model, o) for rule, o in options.items()}
            photo = case.own.photo(model)
            photos[name] = photo[:keep]
            changed = _changed(model, case, options, trained, draw, draws, random_seed)
            for rule, condition, weights, number, pixels in changed:
                if number == 0:
                    examples[name, rule, condition, weights] = pixels[:keep].clone()
                of_units = zip(trained[rule], pixels, photo, strict=True)
                measures = [similarity(a, b) | {"photo": photo_likeness(b, p)} for a, b, p in of_units]
                where = {
                    "layer": name, "unit": range(len(pixels)), "channel": case.own.channel.tolist(),
                    "image": case.own.image.tolist(), "rule": rule, "condition": condition,
                    "weights": weights, "draw": number,
                }  # fmt: skip
                rows.append(pd.concat([pd.DataFrame(where), pd.DataFrame(measures)], axis=1))
                done(1)
    named = model.name, images.source, draw, draws, tuple(names), tuple(rules)
    return SanityChecks(*named, pd.concat(rows, ignore_index=True), examples, photos)


Changed = tuple[Rule, str, str, int, Tensor]  # rule, condition, layer of the weights, draw, projections


def _changed(
    model: VisionModel, case: _Case, options: dict[Rule, Options], trained: dict[Rule, Tensor], draw: Draw,
    draws: int, random_seed: int,
) -> Iterator[Changed]:  # fmt: skip
    """All projections of a layer's units, in the order of `CONDITIONS`."""
    own, numbers = case.own, generator(random_seed)
    pools = nn.MaxPool2d | nn.AdaptiveMaxPool2d
    pooled = any(isinstance(step.module, pools) for step in model.network.upto([own.layer]))
    for rule, o in options.items():
        yield rule, "trained", "", 0, trained[rule]
        yield rule, "other channel", "", 0, case.other_channel.project(model, o)
        yield rule, "other picture", "", 0, case.other_picture.project(model, o)
        if pooled:
            yield rule, "other switches", "", 0, own.project(model, o, case.unrelated_picture)
            for how in get_args(Switches):
                yield rule, f"{how} switches", "", 0, own.project(model, o, how, numbers)
    below = weight_layers(model, own.layer)
    for number in range(draws):
        for condition in ("down to", "only"):
            for i in reversed(range(len(below))):
                names = below[i:] if condition == "down to" else below[i]
                redrawn = randomise(model, names, draw=draw, random_seed=random_seed + number)
                for rule, o in options.items():
                    yield rule, condition, below[i], number, own.project(redrawn, o)
    for rule, o in options.items():
        yield rule, "unrelated", "", 0, case.unrelated.project(model, o)
        flat = trained[rule].flatten(2)
        order = torch.randperm(flat.shape[2], generator=numbers)
        yield rule, "shuffled", "", 0, flat[:, :, order].view_as(trained[rule])


@dataclass(frozen=True)
class _Units:
    """U units of a layer, each on a picture of its own."""

    layer: str
    image: Tensor  # (U,) the pictures' places in the set
    channel: Tensor  # (U,)
    position: Tensor  # (U, 2) in the maps of the crops; not used in fully connected layers
    pixels: Tensor  # (U, 3, s, s) uint8: crops that hold the receptive fields, or whole pictures

    @classmethod
    def on(
        cls,
        model: VisionModel,
        images: ImageSet,
        layer: str,
        image: Tensor,
        channel: Tensor,
        position: Tensor,
    ) -> _Units:
        """At these positions (U, 2) in the maps of the whole pictures."""
        pixels, crop = images.take(image), Crop.plan(model, layer, images.size)
        if crop is not None and layer in model.conv_layers:
            pixels, position = crop.cut(pixels, torch.arange(len(image)), position)
        return cls(layer, image, channel, position, pixels)

    def field(self, model: VisionModel) -> tuple[Tensor, tuple[int, int]]:
        """First row and column of their receptive fields in the crops, (U, 2), and the fields' size."""
        rows, columns = field_in(model, (self.pixels.shape[-2], self.pixels.shape[-1]), self.layer)
        low, stride = torch.tensor([rows.low, columns.low]), torch.tensor([rows.stride, columns.stride])
        return self.position * stride + low, (rows.size, columns.size)

    def photo(self, model: VisionModel) -> Tensor:
        """What they see, uint8 (U, 3, h, w)."""
        origin, size = self.field(model)
        return cut_windows(self.pixels, torch.arange(len(self.pixels)), origin, size)

    def project(
        self, model: VisionModel, options: Options, switches: _Units | Switches | None = None,
        numbers: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """Projections by this network, cut to the receptive fields -> (U, C, h, w) on the CPU.

        With the max-pooling switches of other units' pictures, or ones that no picture has chosen.
        """
        deconvnet = Deconvnet(model.network, [self.layer], options)
        has_positions = self.layer in model.conv_layers
        origin, size = self.field(model)
        projections: list[Tensor] = []
        at_once = max(1, FORWARD_PIXELS // self.pixels[0, 0].numel())
        portions = Portions(f"projecting {self.layer} of {model.name}", at_once, "units")
        for part in portions.of(len(self.pixels)):
            with portions.attempt():
                tape = forward(model, deconvnet, model.preprocess(self.pixels[part]))
                if isinstance(switches, _Units):
                    other = forward(model, deconvnet, model.preprocess(switches.pixels[part]))
                    tape = other_switches(model, tape, other)
                elif switches is not None:
                    tape = no_switches(model, tape, switches, numbers)
                of_part = []
                few = max(1, REVERSE_BYTES // deconvnet.unit_bytes(self.layer, tape))
                for local in torch.arange(part.stop - part.start).split(few):
                    here = local + part.start
                    R, window = deconvnet.reverse(
                        tape, self.layer, local.to(model.device), self.channel[here].to(model.device),
                        self.position[here] if has_positions else None,
                    )  # fmt: skip
                    of_part.append(paste(R.cpu(), window.origin.cpu() - origin[here], size))
                projections += of_part
        return torch.cat(projections)


@dataclass(frozen=True)
class _Case:
    """Units of a layer, each of its own map where it is strongest, with what they are compared with."""

    own: _Units
    other_channel: _Units  # at the same place of the same picture
    other_picture: _Units  # another of the channel's strongest, at its own place
    unrelated_picture: _Units  # a picture from anywhere, at the same place
    unrelated: _Units  # the other channel on one of its strongest pictures, another than the unit's

    @classmethod
    def draw(
        cls, model: VisionModel, images: ImageSet, top: LayerTop, layer: str, units: int, random_seed: int
    ) -> _Case:
        numbers = generator(random_seed)
        there = top.image >= 0
        able = ((top.max > 0) & (there.sum(1) >= 2)).nonzero()[:, 0]
        if len(able) < 2:
            raise LayerError(
                f"{len(able)} of {len(there)} maps of {layer!r} are active on two of the pictures, and two are needed: "
                "take more pictures, or another layer"
            )
        photograph = torch.arange(len(images)) if images.windows is None else images.windows.photograph

        def one_of(candidates: Tensor) -> Tensor:
            return candidates[torch.randint(len(candidates), (), generator=numbers)]

        def another(candidates: Tensor, *avoid: Tensor) -> Tensor:
            """One of these pictures, of another photograph than those to avoid if there is one."""
            for count in range(len(avoid), 0, -1):
                used = photograph[torch.stack(avoid[:count])]
                others = candidates[~torch.isin(photograph[candidates], used)]
                if len(others):
                    return one_of(others)
            return one_of(candidates[candidates != avoid[0]])

        def another_rank(channel: Tensor, picture: Tensor) -> int:
            """The rank, among a map's strongest, of a picture other than this one."""
            own = top.image[channel][there[channel]]
            return int((own == another(own, picture)).nonzero()[0])

        channel = able[torch.randperm(len(able), generator=numbers)[:units]]
        image = top.image[channel, 0]
        other, rank, rank_of_other, unrelated = (torch.empty_like(channel) for _ in range(4))
        for u, (c, i) in enumerate(zip(channel, image, strict=True)):
            other[u] = one_of(able[able != c])
            rank[u], rank_of_other[u] = another_rank(c, i), another_rank(other[u], i)
            unrelated[u] = another(torch.arange(len(images)), i, top.image[c, rank[u]])
        row_col = torch.stack([top.row, top.col], -1)  # (C, k, 2)
        place = row_col[channel, 0]
        cases = (
            (image, channel, place),
            (image, other, place),
            (top.image[channel, rank], channel, row_col[channel, rank]),
            (unrelated, channel, place),
            (top.image[other, rank_of_other], other, row_col[other, rank_of_other]),
        )
        return cls(*(_Units.on(model, images, layer, *case) for case in cases))
