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
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..batching import OnStep, steps
from ..checks import layer_names, number, one_of, uint8_rgb, whole_number
from ..errors import ImageError, LayerError, ZfkitError
from ..images.imageset import ImageSet
from ..nets.activations import features
from ..nets.model import VisionModel, expect_model
from ..results import Result
from .invariance import paper_layers
from .occlusion import Colour, preprocessed_colour

if TYPE_CHECKING:
    import pandas as pd

CONTROLS = RANDOM, SAME_PLACE = "random", "same place"
Boxes = Tensor | Sequence[Sequence[float] | None]  # (N, 4): left, top, right, bottom in px, None if hidden


@dataclass(frozen=True)
class Correspondence(Result, figure="correspondence_figure"):
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
        control_boxes: by control, (draws, N, 4), where its boxes lay.
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
    control_boxes: dict[str, Tensor]
    groups: Tensor
    model: str

    def score(self, layer: str, part: str) -> float:
        """The paper's Delta: mean Hamming distance over pairs (and, for controls, over draws), 0 to 1."""
        return float(self._distances(layer, part).nanmean())

    def relative(self, layer: str, part: str) -> float:
        """The score over what it would be if each picture's signs stood at features at random: 1 is no agreement.

        After a ReLU most features stay 0, and two pictures agree on them whatever was covered; the score is low
        then, for parts and controls alike. This number does not fall with the share of zeros.
        """
        return self.score(layer, part) / float(self.expected[layer, part].nanmean().clamp(min=1e-12))

    def spread(self, layer: str, part: str) -> float:
        """Standard deviation over pairs, which is probably what the paper gives after its +-."""
        distances = self._distances(layer, part)
        distances = distances[~distances.isnan()]
        return float(distances.std()) if len(distances) > 1 else math.nan

    def error(self, layer: str, part: str) -> float:
        """Standard error of the score, by leaving out one group of pictures after the other (jackknife).

        Pairs share pictures, and pictures of a group their object, so dividing the spread by the root of the
        number of pairs would promise too much. NaN where fewer than 3 groups show the part.
        """
        distances = self._distances(layer, part)
        means = []
        for group in self.groups.unique():
            others = self.groups != group
            if not distances[..., ~others, :].isnan().all():  # the group shows the part
                means.append(distances[..., others, :][..., others].nanmean())
        n = len(means)
        if n < 3:
            return math.nan
        left_out = torch.stack(means)
        return float(((n - 1) / n * (left_out - left_out.mean()).square().sum()).sqrt())

    def chance(self, layer: str, part: str, control: str = RANDOM, *, relative: bool = False) -> float:
        """Share of a control's draws whose score (or relative score) is as low as the part's or lower.

        0 means that the part is below all of them; that is the share to expect of a part that is nothing special
        in one of `draws` + 1 cases.
        """
        scores = self._distances(layer, control).flatten(1).nanmean(1)
        if not relative:
            return float((scores <= self.score(layer, part)).double().mean())
        scores = scores / self.expected[layer, control].flatten(1).nanmean(1).clamp(min=1e-12)
        return float((scores <= self.relative(layer, part)).double().mean())

    def table(self) -> pd.DataFrame:
        """Data frame: layer, part, score, spread, error, below_random, below_same_place, relative, unchanged, moved.

        Parts, then controls. The two columns `below_...` are `chance`: the share of a control's draws that score
        as low as the part.
        """
        import pandas as pd

        rows = []
        for layer in self.layers:
            for part in (*self.parts, *CONTROLS):
                below = [self.chance(layer, part, c) if part in self.parts else math.nan for c in CONTROLS]
                rows.append(
                    {
                        "layer": layer, "part": part, "score": self.score(layer, part),
                        "spread": self.spread(layer, part), "error": self.error(layer, part),
                        "below_random": below[0], "below_same_place": below[1],
                        "relative": self.relative(layer, part), "unchanged": self.unchanged[layer, part],
                        "moved": self.moved[layer, part],
                    }
                )  # fmt: skip
        return pd.DataFrame(rows)

    def _distances(self, layer: str, part: str) -> Tensor:
        """(N, N) of a part, (draws, N, N) of a control."""
        one_of(layer, "layer among those looked at", self.layers, LayerError)
        one_of(part, "part", [*self.parts, *CONTROLS])
        return (self.controls if part in CONTROLS else self.pairs)[layer, part]


def correspondence(
    model: VisionModel,
    pictures: Tensor | ImageSet,
    parts: Mapping[str, Boxes],
    *,
    objects: Boxes | None = None,
    groups: Sequence[int] | Tensor | None = None,
    layers: str | Sequence[str] | None = None,
    draws: int = 20,
    fill: Colour = None,
    tolerance: float = 1e-5,
    random_seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
    on_step: OnStep | None = None,
) -> Correspondence:
    """Cover the same part in each picture, and compare the signs of what that changes (Zeiler & Fergus, Table 1).

    Args:
        pictures: (N, 3, H, W) uint8, or a set, at least 2.
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
        random_seed: of the controls' places.
        on_step: called after each part and draw with (done, total); it may raise `Cancelled`.

    Raises ImageError for pictures of another kind, fewer than 2, or boxes that are empty or not within their
    picture; ZfkitError for anything else that does not fit together; LayerError for an unknown layer.

    >>> faces = part_pictures("faces")
    >>> result = correspondence(model, faces.pictures, faces.parts, objects=faces.objects, groups=faces.groups)
    >>> result.table()
    """
    expect_model(model)
    pictures = pictures.take(range(len(pictures))) if isinstance(pictures, ImageSet) else pictures
    N, _, H, W = uint8_rgb(pictures).shape
    if N < 2:
        raise ImageError(f"at least 2 pictures are needed to compare; there are {N}")
    whole_number(draws, "draws")
    whole_number(batch_size, "batch_size")
    number(tolerance, "tolerance, a share of the largest feature,", 0, 1)
    if not isinstance(parts, Mapping) or not parts:
        raise ZfkitError(f"parts must be a dictionary of at least one name with its boxes, not {parts!r:.80}")
    for name in CONTROLS:
        if name in parts:
            raise ZfkitError(f"{name!r} is the name of a control; call the part something else")
    layers = layer_names(layers, model.layers, paper_layers(model)[1:])
    boxes = {name: _boxes(name, given, N, H, W) for name, given in parts.items()}
    objects = [[0.0, 0.0, W, H]] * N if objects is None else objects
    around = _boxes("object", objects, N, H, W)
    if around.isnan().any():
        raise ImageError("every picture needs a box of its object: the controls lie in it")
    compared = _pairs(groups, N)
    allowed = dict.fromkeys(CONTROLS, compared)
    for name, of_part in boxes.items():
        visible = ~of_part[:, 0].isnan()
        allowed[name] = compared & visible & visible[:, None]
        if not allowed[name].any():
            raise ImageError(f"part {name!r} is not to be seen in two pictures of different groups")

    # What to cover, boxes (N, 4): each part once, and so many draws of each control.
    covers = {name: [of_part] for name, of_part in boxes.items()}
    generator = torch.Generator().manual_seed(random_seed)
    sizes = list(boxes.values())
    for control in CONTROLS:
        covers[control] = [
            _draw(sizes[d % len(sizes)], around, H, W, control == SAME_PLACE, generator) for d in range(draws)
        ]
    colour = preprocessed_colour(model, fill)

    def look(covered: Tensor) -> dict[str, Tensor]:
        """Features (N, F) of each layer with these boxes covered, where there are any."""

        def change(x: Tensor, index: Tensor) -> Tensor:
            for picture, box in zip(x, covered[index], strict=True):
                if not box.isnan().any():
                    left, top, right, bottom = box.long().tolist()
                    picture[:, top:bottom, left:right] = colour
            return x

        return features(model, pictures, layers, change=change, batch_size=batch_size, what="covering parts")

    still = look(torch.full((N, 4), math.nan))
    changes: dict[tuple[str, str], list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {}
    shorter = "fewer parts or draws take less"
    with steps(len(parts) + 2 * draws, "covering parts", "part", progress, on_step, shorter) as done:
        for name, draws_of_it in covers.items():
            for covered in draws_of_it:
                for layer, after in look(covered).items():
                    part = _changes(still[layer], after, ~covered[:, 0].isnan(), allowed[name], tolerance)
                    changes.setdefault((layer, name), []).append(part)
                done(1)
    pairs, controls, expected, unchanged, moved = {}, {}, {}, {}, {}
    for key, cases in changes.items():
        unequal, by_chance, quiet, length = (torch.stack(v) for v in zip(*cases, strict=True))
        if key[1] in CONTROLS:
            controls[key], expected[key] = unequal, by_chance
        else:
            pairs[key], expected[key] = unequal[0], by_chance[0]
        unchanged[key], moved[key] = float(quiet.mean()), float(length.mean())
    return Correspondence(
        layers=tuple(layers), parts=tuple(boxes), pairs=pairs, controls=controls, expected=expected,
        unchanged=unchanged, moved=moved, boxes=boxes,
        control_boxes={control: torch.stack(covers[control]) for control in CONTROLS},
        groups=torch.arange(N) if groups is None else torch.as_tensor(groups), model=model.name,
    )  # fmt: skip


def _changes(
    before: Tensor, after: Tensor, covered: Tensor, allowed: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What covering did to features (N, F) of a layer.

    Returns the share of features whose signs differ, (N, N) float64, and what chance would give, both NaN for pairs
    that are not `allowed`; the share of changes that are 0, and mean length, over the pictures that were `covered`.
    """
    eps = before - after
    sign = torch.where(eps.abs() <= tolerance * before.abs().max(), 0, eps.sign())
    # With one-hot codes of the three signs, the dot product counts the features that agree.
    codes = torch.stack([sign == s for s in (-1, 0, 1)], 1).float()  # (N, 3, F)
    share = codes.mean(2).double()
    agree = (codes.flatten(1) @ codes.flatten(1).T).double() / sign.shape[1]
    unequal, by_chance = (1 - m.masked_fill(~allowed, math.nan) for m in (agree, share @ share.T))
    length = eps.norm(dim=1) / before.norm(dim=1).clamp(min=torch.finfo(before.dtype).tiny)
    return unequal, by_chance, (sign[covered] == 0).double().mean(), length[covered].mean()


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


def _boxes(name: str, boxes: Boxes, N: int, H: int, W: int) -> Tensor:
    """Boxes as (N, 4) float64 of whole pixels, NaN where there is none. Raises ImageError where they do not fit."""
    if not isinstance(boxes, Tensor):
        try:
            boxes = torch.tensor([[math.nan] * 4 if b is None else [float(v) for v in b] for b in boxes])
        except (TypeError, ValueError):
            boxes = torch.empty(0)
    if boxes.shape != (N, 4):
        raise ImageError(
            f"{N} pictures need {N} boxes of {name!r}, (left, top, right, bottom) or None; got {tuple(boxes.shape)}"
        )
    boxes = boxes.double().round()
    left, top, right, bottom = boxes.T
    fits = (left >= 0) & (left < right) & (right <= W) & (top >= 0) & (top < bottom) & (bottom <= H)
    wrong = (~fits & ~boxes.isnan().all(1)).nonzero()
    if len(wrong):
        i = int(wrong[0])
        raise ImageError(
            f"picture {i}: the box of {name!r} ({', '.join(f'{v:g}' for v in boxes[i])}) is empty or not within the "
            f"picture of {W} x {H} px"
        )
    return boxes


def _pairs(groups: Sequence[int] | Tensor | None, N: int) -> Tensor:
    """(N, N) bool: pairs of different pictures of different groups."""
    numbers = torch.arange(N) if groups is None else torch.as_tensor(groups)
    if numbers.shape != (N,):
        raise ZfkitError(f"groups must be one number for each of {N} pictures, not {tuple(numbers.shape)}")
    different = numbers[:, None] != numbers
    if not different.any():
        raise ZfkitError("all pictures are of one group, and pairs within a group are left out: give others")
    return different
