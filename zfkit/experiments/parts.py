"""Bundled photographs with named parts, for `correspondence`: three faces, eleven animals' heads, twenty coins.

The boxes were measured by eye, in pixels of the photographs; right and left are the sitter's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..checks import one_of, whole_number
from ..deconv.receptive_field import Box
from ..errors import ImageError
from ..images.album import photographs
from ..images.decode import decode, to_tensor

Boxes = dict[str, Box | None]  # by part, and of the whole "object"; None where a part is not to be seen


def _face(*boxes: tuple[int, int, int, int] | None) -> Boxes:
    return dict(zip(("object", "right eye", "left eye", "nose"), (b and Box(*b) for b in boxes), strict=True))


_FACES = {
    "astronaut": _face((170, 45, 285, 185), (190, 92, 214, 109), (236, 94, 260, 111), (210, 108, 235, 132)),
    "chelsea": _face((125, 78, 352, 268), (131, 82, 213, 151), (293, 105, 350, 167), (235, 217, 298, 264)),
    "camera": _face((165, 60, 262, 190), (219, 138, 241, 152), None, (237, 153, 257, 174)),  # in profile
}
_ANIMALS = {
    "chelsea": _FACES["chelsea"],
    "red_panda": _face((569, 49, 1295, 882), (748, 533, 811, 604), (945, 506, 1026, 586), (775, 676, 891, 801)),
    "koala": _face((307, 241, 612, 440), (364, 301, 385, 323), (452, 333, 477, 351), (378, 294, 438, 365)),
    "kitten": _face((653, 213, 1267, 780), (840, 540, 933, 620), (1033, 533, 1127, 613), (947, 673, 1027, 720)),
    "lemur": _face((397, 203, 555, 322), (440, 263, 460, 282), (493, 267, 512, 285), (467, 295, 492, 312)),
    "gibbon": _face((958, 423, 1197, 660), (1049, 545, 1080, 574), (1106, 545, 1138, 574), (1075, 581, 1111, 610)),
    "dog": _face((758, 25, 909, 260), (800, 150, 826, 168), (855, 148, 878, 168), (823, 200, 862, 226)),
    "pika": _face((1028, 127, 1319, 403), (1067, 233, 1092, 269), (1205, 233, 1234, 269), (1117, 318, 1159, 354)),
    "owl": _face((548, 140, 755, 295), (578, 215, 598, 238), (622, 215, 665, 245), (595, 255, 615, 288)),
    "cat": _face((250, 110, 432, 347), (310, 277, 352, 308), (365, 220, 398, 259), (372, 290, 404, 311)),
    "sheep": _face((460, 86, 650, 246), (504, 131, 521, 151), (587, 124, 608, 145), (537, 197, 577, 230)),
}  # fmt: skip
_COINS = (
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


def part_pictures(
    kind: str = "faces", *, size: int = 64, views: int = 5, random_seed: int = 0
) -> PartPictures:
    """Bundled photographs with parts marked by eye, each object in several views.

    Args:
        kind: "faces" (a woman, a cat, a man in profile: right eye, left eye, nose), "animals" (the heads of eleven,
            likewise; of the owl the beak) or "coins" (20 ancient coins: left rim, right rim, top rim, centre).
        size: side of the pictures in pixels.
        views: of each object, which then takes another place and another size (half to four fifths of the
            picture's side).
        random_seed: of the views.

    Raises ZfkitError for another kind, and ImageError where this version of scikit-image lacks the photographs.
    """
    one_of(kind, "kind of pictures with parts", ["faces", "animals", "coins"])
    whole_number(size, "size, in pixels,")
    whole_number(views, "views")
    if kind in ("faces", "animals"):
        faces = _FACES if kind == "faces" else _ANIMALS
        marked = [(_photograph(name), name, boxes) for name, boxes in faces.items()]
    else:
        coins = _photograph("coins")
        marked = [(coins, f"coin {i}", _coin(Box(*box))) for i, box in enumerate(_COINS, 1)]
    generator = torch.Generator().manual_seed(random_seed)
    pictures, groups, names = [], [], []
    boxes: dict[str, list[list[float]]] = {name: [] for name in marked[0][2]}
    for group, (photo, name, marks) in enumerate(marked):
        for view in range(1, views + 1):
            left, top, side = _view(marks["object"], photo, torch.rand(3, generator=generator).tolist())
            window = (left, top, left + side, top + side)
            pictures.append(to_tensor(photo.resize((size, size), Image.Resampling.BILINEAR, box=window)))
            for part, box in marks.items():
                inside = [math.nan] * 4 if box is None else _inside(box, left, top, size / side, size)
                boxes[part].append(inside)
            groups.append(group)
            names.append(f"{name}, view {view}")
    parts = {name: torch.tensor(b) for name, b in boxes.items()}
    objects = parts.pop("object")
    return PartPictures(torch.stack(pictures), parts, objects, torch.tensor(groups), tuple(names))


def _photograph(name: str) -> Image.Image:
    path = next(p.checked() for p in photographs() if p.name == name)
    if path is None:
        raise ImageError(f"scikit-image lacks the photograph {name!r}: pip install -U scikit-image")
    return decode(path, name)


def _coin(box: Box) -> Boxes:
    """Parts of a coin: boxes of 0.36 of its diameter, on its rim and in its middle."""
    width, height = box.right - box.left, box.bottom - box.top
    diameter = max(width, height)

    def around(across: float, down: float) -> Box:
        x, y, half = box.left + across * width, box.top + down * height, 0.18 * diameter
        return Box(round(x - half), round(y - half), round(x + half), round(y + half))

    reach = round(0.08 * diameter)  # as far as the boxes on the rim stick out
    places = {"left rim": (0.1, 0.5), "right rim": (0.9, 0.5), "top rim": (0.5, 0.1), "centre": (0.5, 0.5)}
    whole = Box(box.left - reach, box.top - reach, box.right + reach, box.bottom + reach)
    return {"object": whole, **{name: around(*place) for name, place in places.items()}}


def _view(whole: Box | None, photo: Image.Image, shares: list[float]) -> tuple[float, float, float]:
    """Left, top and side of a square window of the photograph around an object, for three shares from 0 to 1."""
    assert whole is not None
    bigness, right, down = shares
    side = min(max(whole.right - whole.left, whole.bottom - whole.top) / (0.5 + 0.3 * bigness), *photo.size)
    left = _start(whole.left, whole.right, side, photo.width, right)
    return left, _start(whole.top, whole.bottom, side, photo.height, down), side


def _start(low: float, high: float, side: float, length: int, share: float) -> float:
    """Where a window of `side` begins so that it holds low..high, if it can, and lies within 0..length."""
    first, last = max(0.0, min(high - side, low)), min(length - side, max(low, high - side))
    return min(max(first + share * (last - first), 0.0), length - side)


def _inside(box: Box, left: float, top: float, scale: float, size: int) -> list[float]:
    """A box of the photograph in whole pixels of a view, cut off at its border."""
    x = [min(max(round((v - left) * scale), 0), size) for v in (box.left, box.right)]
    y = [min(max(round((v - top) * scale), 0), size) for v in (box.top, box.bottom)]
    return [float(x[0]), float(y[0]), float(x[1]), float(y[1])]
