"""Does the network know that an eye is an eye? Covering the same part in different pictures (section 4.3, Table 1).

For each picture i, eps_i = f(x_i) - f(x_i with the part covered): what the part did for the features of a layer.
If sign(eps_i) and sign(eps_j) agree between pictures, covering the part changes them in the same way, wherever
and however it appears: the network has, in this sense, a correspondence. `correspondence` measures the share of
features where the signs differ (their Hamming distance), as the paper does, with two controls:

- *random*: a part of the same size anywhere in the object, in each picture elsewhere; the paper's control.
- *same place*: likewise, but at the same place of the object in each picture. Eyes lie at similar places of
  similar pictures, and features have places, too. What tells an eye from this control is not its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..deconv.receptive_field import Box
from ..errors import ImageError, LayerError, ZfkitError, unknown
from ..images.album import PHOTOGRAPHS
from ..images.decode import decode, to_tensor
from ..nets.activations import cannot_run
from ..nets.model import VisionModel
from .occlusion import Colour, preprocessed_colour

if TYPE_CHECKING:
    import pandas as pd

RANDOM, SAME_PLACE = "random", "same place"
Boxes = (
    Tensor | Sequence[Sequence[float] | None]
)  # (N, 4): left, top, right, bottom in px; None where not visible


@dataclass(frozen=True)
class Correspondence:
    """Hamming distances of sign changes, for parts and controls, over pairs of N pictures.

    Attributes:
        layers: the layers looked at.
        parts: names of the parts, as given.
        pairs: by layer and part, (N, N) distances; NaN on the diagonal, where a part is not visible, and for
            pictures of one group.
        controls: by layer and "random" or "same place", (draws, N, N), likewise.
        expected: by layer and part (or control), the same for features in no order: 1 - sum over the three signs of
            how often they occur in picture i times in picture j.
        unchanged: by layer and part (or control), the mean share of features that covering leaves exactly as
            they were: both their signs are 0, and they agree for that reason alone.
        moved: by layer and part (or control), the mean length of eps over the length of the features.
        boxes: by part, (N, 4) left, top, right, bottom in pixels, NaN where it is not visible.
        groups: (N,) which pictures show the same thing; all different where none were given.
        model: the model's name.
    """

    layers: tuple[str, ...]
    parts: tuple[str, ...]
    pairs: dict[tuple[str, str], Tensor]
    controls: dict[tuple[str, str], Tensor]
    expected: dict[tuple[str, str], Tensor]
    unchanged: dict[tuple[str, str], float]
    moved: dict[tuple[str, str], float]
    boxes: dict[str, Tensor]
    groups: Tensor
    model: str

    def score(self, layer: str, part: str) -> float:
        """The paper's Delta: mean Hamming distance over pairs (and, for controls, over draws), 0 to 1."""
        return float(_mean(self._find(layer, part)))

    def relative(self, layer: str, part: str) -> float:
        """The score over what it would be if each picture's signs stood at features at random: 1 is no agreement.

        After a ReLU most features stay 0, and two pictures agree on them whatever was covered; the score is low
        then, for parts and controls alike. This number does not fall with the share of zeros.
        """
        self._find(layer, part)
        return self.score(layer, part) / float(_mean(self.expected[layer, part]).clamp(min=1e-12))

    def spread(self, layer: str, part: str) -> float:
        """Standard deviation over pairs, which is probably what the paper gives after its +-."""
        values = self._find(layer, part)
        values = values[~values.isnan()]
        return float(values.std()) if len(values) > 1 else math.nan

    def error(self, layer: str, part: str) -> float:
        """Standard error of the score, by leaving out one group of pictures after the other (jackknife).

        Pairs share pictures, and pictures of a group their object, so dividing the spread by the root of the
        number of pairs would promise too much. NaN where fewer than 3 groups show the part.
        """
        values = self._find(layer, part)
        kept = []
        for group in self.groups.unique().tolist():
            others = self.groups != group
            shows_it = not values[..., ~others, :].isnan().all()
            if shows_it:
                kept.append(_mean(values[..., others, :][..., others]))
        n = len(kept)
        if n < 3:
            return math.nan
        left_out = torch.stack(kept)
        return float(((n - 1) / n * (left_out - left_out.mean()).square().sum()).sqrt())

    def chance(self, layer: str, part: str, control: str = RANDOM, *, relative: bool = False) -> float:
        """Share of a control's draws whose score (or relative score) is as low as the part's or lower.

        0 means that the part is below all of them; that is the share to expect of a part that is nothing special
        in one of `draws` + 1 cases.
        """
        scores = torch.stack([_mean(draw) for draw in self._find(layer, control)])
        own = self.score(layer, part)
        if relative:
            scores = scores / torch.stack([_mean(draw) for draw in self.expected[layer, control]]).clamp(
                min=1e-12
            )
            own = self.relative(layer, part)
        return float((scores <= own).double().mean())

    def table(self) -> pd.DataFrame:
        """Data frame: layer, part, score, spread, error, below_random, below_same_place, relative, unchanged, moved.

        Parts, then controls. The two columns `below_...` are `chance`: the share of a control's draws that score
        as low as the part.
        """
        import pandas as pd

        rows = []
        for layer in self.layers:
            for part in (*self.parts, RANDOM, SAME_PLACE):
                named = part in self.parts
                rows.append(
                    {
                        "layer": layer,
                        "part": part,
                        "score": self.score(layer, part),
                        "spread": self.spread(layer, part),
                        "error": self.error(layer, part),
                        "below_random": self.chance(layer, part) if named else math.nan,
                        "below_same_place": self.chance(layer, part, SAME_PLACE) if named else math.nan,
                        "relative": self.relative(layer, part),
                        "unchanged": self.unchanged[layer, part],
                        "moved": self.moved[layer, part],
                    }
                )
        return pd.DataFrame(rows)

    def _find(self, layer: str, part: str) -> Tensor:
        if layer not in self.layers:
            raise LayerError(f"layer {layer!r} was not looked at; there are {', '.join(self.layers)}")
        if (layer, part) in self.pairs:
            return self.pairs[layer, part]
        if (layer, part) not in self.controls:
            raise ZfkitError(unknown("part", part, [*self.parts, RANDOM, SAME_PLACE]))
        return self.controls[layer, part]


def correspondence(
    model: VisionModel,
    pictures: Tensor,
    parts: Mapping[str, Boxes],
    *,
    objects: Boxes | None = None,
    groups: Sequence[int] | Tensor | None = None,
    layers: Sequence[str] | None = None,
    draws: int = 20,
    fill: Colour = None,
    tolerance: float = 1e-5,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> Correspondence:
    """Cover the same part in each picture, and compare the signs of what that changes (Zeiler & Fergus, Table 1).

    Args:
        pictures: (N, 3, H, W) uint8, at least 2.
        parts: by name, each picture's box (left, top, right, bottom) in pixels, right and bottom exclusive; None
            (or NaN) where the part is not to be seen.
        objects: each picture's box of the whole object, in which the controls lie; default the whole picture.
        groups: numbers that tell which pictures show the same thing, such as windows of one photograph; pairs
            within a group are left out, since they agree for reasons of their own.
        layers: default the last convolutional layer and the last hidden one, each after its ReLU: the paper's 5
            and 7. After a ReLU many features stay 0, and sign(0) = 0 is a third value; this is how distances as
            low as the paper's come about. It does not say.
        draws: of each control. Each draw takes the size of a named part, in turn.
        fill: RGB 0-255 of what covers, or one number; default the model's mean.
        tolerance: changes up to this share of a layer's largest feature are rounding, and count as 0.
        seed: of the controls' places.
        batch_size: pictures at a time.

    Raises ImageError for pictures of another kind, fewer than 2, or boxes that are empty or not within their
    picture; ZfkitError for anything else that does not fit together; LayerError for an unknown layer.

    >>> faces = part_pictures("faces")
    >>> found = correspondence(model, faces.pictures, faces.parts, objects=faces.objects, groups=faces.groups)
    >>> found.table()
    """
    if not isinstance(pictures, Tensor):
        raise ImageError(f"expected uint8 RGB pictures (N, 3, H, W), got {type(pictures).__name__}")
    if pictures.dtype != torch.uint8 or pictures.dim() != 4 or pictures.shape[1] != 3:
        raise ImageError(
            f"expected uint8 RGB pictures (N, 3, H, W), got {pictures.dtype} {tuple(pictures.shape)}"
        )
    N, _, H, W = pictures.shape
    if N < 2:
        raise ImageError(f"at least 2 pictures are needed to compare; there are {N}")
    for what, value in (("draws", draws), ("batch_size", batch_size)):
        if type(value) is not int or value < 1:
            raise ZfkitError(f"{what} must be a whole number of at least 1, not {value!r}")
    if not 0 <= tolerance < 1:
        raise ZfkitError(f"tolerance must be a share from 0 to below 1, not {tolerance!r}")
    if not isinstance(parts, Mapping) or not parts:
        raise ZfkitError(f"parts must be a dictionary of at least one name with its boxes, not {parts!r}")
    for name in parts:
        if name in (RANDOM, SAME_PLACE):
            raise ZfkitError(f"{name!r} is the name of a control; call the part something else")
    names = tuple(default_layers(model) if layers is None else layers)
    if not names:
        raise LayerError(f"no layer was named to look at. There are: {', '.join(model.layers)}")
    for layer in names:
        model.network.find(layer)
    boxes = {name: _boxes(name, told, N, H, W) for name, told in parts.items()}
    whole = torch.tensor([[0.0, 0.0, W, H]]).expand(N, 4)
    around = whole if objects is None else _boxes("object", objects, N, H, W)
    if around.isnan().any():
        raise ImageError("every picture needs a box of its object: the controls lie in it")
    compared = _pairs(groups, N)
    visible = {name: compared & ~(b[:, 0].isnan()[:, None] | b[:, 0].isnan()) for name, b in boxes.items()}
    for name, allowed in visible.items():
        if not allowed.any():
            raise ImageError(
                f"part {name!r} is not to be seen in two pictures of different groups: nothing to compare"
            )

    generator = torch.Generator().manual_seed(seed)
    colour = preprocessed_colour(model, fill)
    x = model.preprocess(pictures)
    still = _features(model, x, names, batch_size)
    zero = {layer: tolerance * float(still[layer].abs().max()) for layer in names}
    length = {layer: still[layer].norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny) for layer in names}

    def distances(covered: Tensor, allowed: Tensor) -> dict[str, _Found]:
        """What covering these boxes (N, 4) does, by layer."""
        seen = ~covered[:, 0].isnan()
        masked = x.clone()
        for i in seen.nonzero()[:, 0].tolist():
            left, top, right, bottom = covered[i].long().tolist()
            masked[i, :, top:bottom, left:right] = colour
        features = _features(model, masked, names, batch_size)
        results = {}
        for layer in names:
            eps = still[layer] - features[layer]
            sign = torch.where(eps.abs() <= zero[layer], torch.zeros_like(eps), eps.sign())
            unequal, expected = _hamming(sign)
            unequal[~allowed], expected[~allowed] = math.nan, math.nan
            quiet = (sign[seen] == 0).double().mean()
            results[layer] = _Found(unequal, expected, quiet, (eps.norm(dim=1) / length[layer])[seen].mean())
        return results

    pairs, controls, expected, unchanged, moved = {}, {}, {}, {}, {}
    named = list(boxes)
    total = len(named) + 2 * draws
    with tqdm(total=total, desc="covering parts", unit="part", disable=not progress, leave=False) as bar:
        for name in named:
            for layer, found in distances(boxes[name], visible[name]).items():
                pairs[layer, name], expected[layer, name] = found.unequal, found.expected
                unchanged[layer, name], moved[layer, name] = float(found.unchanged), float(found.moved)
            bar.update(1)
        for control in (RANDOM, SAME_PLACE):
            drawn = []
            for d in range(draws):
                sizes = boxes[named[d % len(named)]]
                covered = _draw(sizes, around, H, W, control == SAME_PLACE, generator)
                drawn.append(distances(covered, compared))
                bar.update(1)
            for layer in names:
                of = [result[layer] for result in drawn]
                controls[layer, control] = torch.stack([f.unequal for f in of])
                expected[layer, control] = torch.stack([f.expected for f in of])
                unchanged[layer, control] = float(torch.stack([f.unchanged for f in of]).mean())
                moved[layer, control] = float(torch.stack([f.moved for f in of]).mean())
    return Correspondence(
        names,
        tuple(named),
        pairs,
        controls,
        expected,
        unchanged,
        moved,
        boxes,
        torch.arange(N) if groups is None else torch.as_tensor(groups),
        model.name,
    )


def default_layers(model: VisionModel) -> tuple[str, ...]:
    """The last convolutional layer and the last hidden one, each after its ReLU where it has one: layers 5 and 7."""
    from .invariance import default_layers as first_and_last

    layers = model.layers
    after = layers.index(model.conv_layers[-1]) + 1
    steps = model.network.steps
    follows = after < len(layers) and isinstance(steps[layers[after]].module, torch.nn.ReLU)
    chosen = [layers[after] if follows else layers[after - 1], first_and_last(model)[1]]
    return tuple(dict.fromkeys(chosen))


# ------------------------------------------------------------------------------------------ bundled pictures

_FACES: dict[
    str, dict[str, Box]
] = {  # px of the photograph, measured by eye; right and left are the sitter's
    "astronaut": {
        "object": Box(170, 45, 285, 185),
        "right eye": Box(190, 92, 214, 109),
        "left eye": Box(236, 94, 260, 111),
        "nose": Box(210, 108, 235, 132),
    },
    "chelsea": {
        "object": Box(125, 78, 352, 268),
        "right eye": Box(131, 82, 213, 151),
        "left eye": Box(293, 105, 350, 167),
        "nose": Box(235, 217, 298, 264),
    },
    "camera": {  # in profile
        "object": Box(165, 60, 262, 190),
        "right eye": Box(219, 138, 241, 152),
        "nose": Box(237, 153, 257, 174),
    },
}
_COINS = (  # px of the photograph
    (22, 34, 67, 74), (81, 39, 120, 74), (132, 28, 179, 74), (192, 29, 240, 73), (255, 34, 297, 72),
    (25, 104, 67, 145), (84, 107, 122, 145), (134, 110, 174, 145), (186, 105, 227, 145), (245, 95, 296, 144),
    (317, 105, 356, 145), (26, 177, 63, 217), (80, 175, 124, 217), (135, 179, 174, 217), (189, 170, 237, 217),
    (251, 172, 297, 217), (93, 244, 136, 287), (144, 236, 201, 288), (220, 240, 269, 288), (276, 239, 327, 289),
)  # fmt: skip


@dataclass(frozen=True)
class PartPictures:
    """Pictures with named parts, ready for `correspondence`.

    Attributes:
        pictures: (N, 3, S, S) uint8.
        parts: by name, (N, 4) boxes in pixels, NaN where the part is not to be seen.
        objects: (N, 4) boxes of the objects.
        groups: (N,) int64, which object each picture shows.
        names: of the pictures.
    """

    pictures: Tensor
    parts: dict[str, Tensor]
    objects: Tensor
    groups: Tensor
    names: tuple[str, ...]


def part_pictures(kind: str = "faces", *, size: int = 64, views: int = 5, seed: int = 0) -> PartPictures:
    """Bundled photographs with parts marked by eye, each object in several views.

    Args:
        kind: "faces" (a woman, a cat, a man in profile: right eye, left eye, nose) or "coins" (20 ancient coins:
            left rim, right rim, top rim, centre).
        size: side of the pictures in pixels.
        views: of each object, which then takes another place and another size (half to four fifths of the
            picture's side).
        seed: of the views.

    Raises ZfkitError for another kind, and ImageError where this version of scikit-image lacks the photographs.
    """
    if kind not in ("faces", "coins"):
        raise ZfkitError(unknown("kind of pictures with parts", kind, ["faces", "coins"]))
    for what, value in (("size", size), ("views", views)):
        if type(value) is not int or value < 1:
            raise ZfkitError(f"{what} must be a whole number of at least 1, not {value!r}")
    if kind == "faces":
        plans = [(name, name, known) for name, known in _FACES.items()]
        names: tuple[str, ...] = ("right eye", "left eye", "nose")
    else:
        plans = [("coins", f"coin {i + 1}", _coin(Box(*box))) for i, box in enumerate(_COINS)]
        names = ("left rim", "right rim", "top rim", "centre")
    generator = torch.Generator().manual_seed(seed)
    opened: dict[str, Image.Image] = {}
    pictures, objects, groups, called = [], [], [], []
    parts: dict[str, list[list[float]]] = {name: [] for name in names}
    for group, (photograph, name, known) in enumerate(plans):
        if photograph not in opened:
            opened[photograph] = _photograph(photograph)
        photo, whole = opened[photograph], known["object"]
        for view in range(views):
            share, right, down = torch.rand(3, generator=generator).tolist()
            longest = max(whole.right - whole.left, whole.bottom - whole.top)
            side = min(longest / (0.5 + 0.3 * share), *photo.size)
            left = _between(whole.left, whole.right, side, photo.width, right)
            top = _between(whole.top, whole.bottom, side, photo.height, down)
            cut = photo.resize(
                (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
            )
            pictures.append(to_tensor(cut))
            objects.append(_inside(whole, left, top, size / side, size))
            for part in names:
                box = _inside(known[part], left, top, size / side, size) if part in known else [math.nan] * 4
                parts[part].append(box)
            groups.append(group)
            called.append(f"{name}, view {view + 1}")
    return PartPictures(
        torch.stack(pictures), {name: torch.tensor(b) for name, b in parts.items()}, torch.tensor(objects),
        torch.tensor(groups), tuple(called),
    )  # fmt: skip


def _coin(box: Box) -> dict[str, Box]:
    """Parts of a coin: boxes of 0.36 of its diameter, on its rim and in its middle."""
    width, height = box.right - box.left, box.bottom - box.top

    def around(across: float, down: float) -> Box:
        x, y, half = box.left + across * width, box.top + down * height, 0.18 * max(width, height)
        return Box(round(x - half), round(y - half), round(x + half), round(y + half))

    reach = round(0.08 * max(width, height))  # as far as the boxes on the rim stick out
    return {
        "object": Box(box.left - reach, box.top - reach, box.right + reach, box.bottom + reach),
        "left rim": around(0.1, 0.5),
        "right rim": around(0.9, 0.5),
        "top rim": around(0.5, 0.1),
        "centre": around(0.5, 0.5),
    }


def _photograph(name: str) -> Image.Image:
    path = next(p.path for p in PHOTOGRAPHS if p.name == name)
    if path is None:
        raise ImageError(
            f"the photograph {name!r} is not in the installed scikit-image: pip install -U scikit-image"
        )
    return decode(path, name)


def _between(low: float, high: float, side: float, length: int, share: float) -> float:
    """Where a window of `side` begins so that it holds low..high, if it can, and lies within 0..length."""
    first, last = max(0.0, min(high - side, low)), min(length - side, max(low, high - side))
    return min(max(first + share * (last - first), 0.0), length - side)


def _inside(box: Box, left: float, top: float, scale: float, size: int) -> list[float]:
    """A box of the photograph in whole pixels of a view, cut off at its border."""
    x = [min(max(round((v - left) * scale), 0), size) for v in (box.left, box.right)]
    y = [min(max(round((v - top) * scale), 0), size) for v in (box.top, box.bottom)]
    return [float(x[0]), float(y[0]), float(x[1]), float(y[1])]


# ---------------------------------------------------------------------------------------------- bookkeeping


def _boxes(name: str, told: Boxes, N: int, H: int, W: int) -> Tensor:
    """Boxes as (N, 4) float64 of whole pixels, NaN where there is none. Raises ImageError where they do not fit."""
    if not isinstance(told, Tensor):
        try:
            told = torch.tensor([[math.nan] * 4 if b is None else [float(v) for v in b] for b in told])
        except (TypeError, ValueError):
            raise ImageError(
                f"boxes of {name!r} must be (left, top, right, bottom) for each picture, or None, not {told!r}"
            ) from None
    boxes = told.double().round()
    if boxes.shape != (N, 4):
        raise ImageError(
            f"{N} pictures need {N} boxes of {name!r}, (left, top, right, bottom); got {tuple(boxes.shape)}"
        )
    for i, box in enumerate(boxes):
        if box.isnan().all():
            continue
        left, top, right, bottom = box.tolist()
        if not (0 <= left < right <= W and 0 <= top < bottom <= H):
            raise ImageError(
                f"picture {i}: the box of {name!r} ({left:g}, {top:g}, {right:g}, {bottom:g}) is empty or not within "
                f"the picture of {W} x {H} px; expected is left < right <= {W}, top < bottom <= {H}"
            )
    return boxes


def _pairs(groups: Sequence[int] | Tensor | None, N: int) -> Tensor:
    """(N, N) bool: pairs of different pictures of different groups."""
    if groups is None:
        return ~torch.eye(N, dtype=torch.bool)
    numbers = torch.as_tensor(groups)
    if numbers.shape != (N,):
        raise ZfkitError(
            f"groups must be one number for each of the {N} pictures, not {tuple(numbers.shape)}"
        )
    different = numbers[:, None] != numbers
    if not different.any():
        raise ZfkitError(
            "all pictures are of one group: pairs within a group are left out, so nothing is left"
        )
    return different


def _draw(sizes: Tensor, around: Tensor, H: int, W: int, same: bool, generator: torch.Generator) -> Tensor:
    """A control's boxes (N, 4): of these sizes, where they are known, else of their mean share of the object."""
    N = len(sizes)
    extent = around[:, 2:] - around[:, :2]  # (N, 2) width, height
    size = sizes[:, 2:] - sizes[:, :2]
    share = (size / extent).nanmean(0)
    size = torch.where(size.isnan(), (share * extent).round().clamp(min=1), size)
    place = torch.rand(1 if same else N, 2, generator=generator, dtype=torch.float64).expand(N, 2)
    corner = (around[:, :2] + place * (extent - size).clamp(min=0)).round()
    limit = torch.tensor([W, H], dtype=torch.float64)
    corner = corner.minimum(limit - size).clamp(min=0)
    return torch.cat([corner, (corner + size).minimum(limit)], 1)


class _Found(NamedTuple):
    unequal: Tensor  # (N, N)
    expected: Tensor  # (N, N)
    unchanged: Tensor  # ()
    moved: Tensor  # ()


@torch.inference_mode()
def _features(model: VisionModel, x: Tensor, layers: Sequence[str], batch_size: int) -> dict[str, Tensor]:
    """Features (N, F) of preprocessed pictures (N, C, H, W), each layer's in a row."""
    found: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for part in x.split(batch_size):
        try:
            for step, _, y in model.network.walk(part.clone(memory_format=torch.channels_last), layers):
                if step.name in found:
                    found[step.name].append(y.flatten(1).clone())
        except RuntimeError as error:
            raise cannot_run(model, layers, x, error) from error
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def _hamming(sign: Tensor) -> tuple[Tensor, Tensor]:
    """(N, N) float64: share of F dimensions where signs (N, F) of -1, 0, 1 differ, and what chance would give.

    With one-hot codes of the three values, the dot product counts the dimensions that agree.
    """
    codes = torch.stack([sign == v for v in (-1, 0, 1)], 1).to(torch.float32)  # (N, 3, F)
    share = codes.mean(2).double().cpu()
    flat = codes.flatten(1)
    return 1 - (flat @ flat.T).double().cpu() / sign.shape[1], 1 - share @ share.T


def _mean(values: Tensor) -> Tensor:
    return values[~values.isnan()].mean()
