"""A drawn, labelled set of pictures whose frequency, orientation and phase are known: no files, no download.

Sixteen classes of texture in colour. Everything about picture i follows from (random seed, split, i) alone, so a
set is the same on every machine and whatever part of it is drawn first. Lengths are pixels and frequencies
cycles per pixel at every size: a larger picture shows more of a texture, not a magnified one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator, Philox, SeedSequence
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..checks import Size, one_of, square_side, whole_number
from ..checksums import digest
from ..errors import ImageError, unknown
from .imageset import ImageSet
from .letters import CELL, GRAIN, STROKES, alphabet
from .sources import image_source

Array = NDArray[np.floating[Any]]
Paint = Callable[[Array, Array], Array]  # x (1, W) and y (H, 1) in pixels -> (H, W) in 0..1, or (3, H, W)

# Cycles/pixel. 1/12 and 1/3 bound the band that the paper found AlexNet's first layer to lack, as
# `zfkit.frequency` measures it; below 1/24 a 64 px picture shows too few periods to tell the frequency.
LOW, MIDDLE, HIGH = (1 / 24, 1 / 12), (1 / 12, 1 / 3), (1 / 3, 0.45)
# Where the middle band is left out, frequencies keep this far away from it: the flanks of the band-stop filter.
STOP_FLANKS = (0.07, 0.36)

SPLITS = {"train": 8192, "val": 1024}  # pictures; multiples of the 16 classes
MARGIN = 16  # pixels drawn beyond the border where a filter follows, so that it does not see the border
SMALLEST = 16  # pixels; less does not show a period of the low band

# Unit vectors of RGB, at right angles to one another.
GREY = np.array([1, 1, 1], np.float32) / math.sqrt(3)
RED_GREEN = np.array([1, -1, 0], np.float32) / math.sqrt(2)
BLUE_YELLOW = np.array([-1, -1, 2], np.float32) / math.sqrt(6)


class Truth(NamedTuple):
    """What is known about a picture, nan where a texture has no such thing or more than one of it.

    Its waves are cos(2 pi frequency (x cos(orientation) + y sin(orientation)) + phase), x and y in pixels
    from the centre of the upper left pixel, y downwards; of a lattice's waves, one.
    """

    frequency: float = math.nan  # cycles/pixel, of the fundamental
    orientation: float = math.nan  # radians in [0, pi), of the wave vector: 0 is vertical stripes
    phase: float = math.nan  # radians in [0, 2 pi), of the brighter colour (of red, of blue)


class Texture(NamedTuple):
    """One texture before it is painted: two colours, and how much of the second goes where."""

    truth: Truth
    paint: Paint
    first: Array  # (3,) in 0..1
    second: Array


def _grating(rng: Generator, middle: bool, orientation: float) -> Texture:
    """Sinusoidal, in one of the three bands."""
    frequency, phase = _frequency(rng, middle), _phase(rng)
    # Brought into [0, pi), the orientation may reverse the wave.
    seen = phase if 0 <= orientation < math.pi else -phase % math.tau
    truth = Truth(frequency, orientation % math.pi, seen)
    # Of mostly different brightness: the two classes below are the ones that differ in hue alone.
    dark, bright = _along(rng, _direction(rng, 40), rng.uniform(0.35, 0.65))
    return Texture(
        truth, lambda x, y: 0.5 + 0.5 * np.cos(_wave(x, y, frequency, orientation, phase)), dark, bright
    )


def _stripes(rng: Generator, middle: bool, axis: Array) -> Texture:
    """Bars of two hues and equal brightness, of any orientation, in one of the three bands."""
    frequency, orientation, phase = _frequency(rng, middle), rng.uniform(0, math.pi), _phase(rng)
    turned = axis + 0.15 * rng.uniform(-1, 1, 3).astype(np.float32)  # hues vary by some 10 degrees
    return Texture(
        Truth(frequency, orientation, phase),
        lambda x, y: _bars(_wave(x, y, frequency, orientation, phase), frequency),
        *_along(rng, turned, rng.uniform(0.35, 0.5)),
    )


def _checks(rng: Generator, middle: bool, size: int) -> Texture:
    """Checkerboard within 20 degrees of upright. Its two fundamental waves run along the squares' diagonals."""
    frequency, orientation = _frequency(rng, middle, top=1 / 4), math.radians(rng.uniform(25, 65))
    first, second = _phase(rng), _phase(rng)
    side = frequency / math.sqrt(2)  # of the two waves, along the sides, whose product it is

    def paint(x: Array, y: Array) -> Array:
        across = np.cos(_wave(x, y, side, orientation + math.pi / 4, first)) / (math.tau * side)
        along = np.cos(_wave(x, y, side, orientation - math.pi / 4, second)) / (math.tau * side)
        return 0.5 + 2 * np.clip(across, -0.5, 0.5) * np.clip(along, -0.5, 0.5)

    return Texture(Truth(frequency, orientation), paint, *_two(rng))


def _mesh(rng: Generator, middle: bool, size: int) -> Texture:
    """Thin lines in two directions, 55 to 90 degrees apart."""
    frequency, orientation = _frequency(rng, middle, top=1 / 6), rng.uniform(0, math.pi)
    other, width = orientation + math.radians(rng.uniform(55, 90)), rng.uniform(0.12, 0.22)
    first, second = _phase(rng), _phase(rng)

    def paint(x: Array, y: Array) -> Array:
        lines = [
            _near_line(_wave(x, y, frequency, o, p), frequency, max(1.2, width / frequency))
            for o, p in ((orientation, first), (other, second))
        ]
        return np.maximum(*lines)

    return Texture(Truth(frequency, orientation), paint, *_two(rng))


def _dots(rng: Generator, middle: bool, size: int) -> Texture:
    """Round dots on a hexagonal lattice, whose three fundamental waves lie 60 degrees apart."""
    frequency, orientation = _frequency(rng, middle, top=1 / 5), rng.uniform(0, math.pi)
    first, second = _phase(rng), _phase(rng)
    radius = rng.uniform(0.2, 0.29) * 2 / math.sqrt(3) / frequency  # in units of the spacing: 0.5 would touch

    def paint(x: Array, y: Array) -> Array:
        a = _wave(x, y, frequency, orientation, first)
        b = _wave(x, y, frequency, orientation + math.pi / 3, second)
        # Near a lattice point, where the three waves peak together, their sum falls as 3 - 3/4 (2 pi f r)^2.
        below = 3 - (np.cos(a) + np.cos(b) + np.cos(b - a))
        return np.clip(0.5 + radius - np.sqrt(np.maximum(below, 0) * (4 / 3)) / (math.tau * frequency), 0, 1)

    return Texture(Truth(frequency, orientation), paint, *_two(rng))


def _rings(rng: Generator, middle: bool, size: int) -> Texture:
    """Concentric rings about a point in the middle half of the picture; all orientations at once."""
    frequency, phase, (cx, cy) = _frequency(rng, middle), _phase(rng), _centre(rng, size)
    return Texture(
        Truth(frequency),
        lambda x, y: _bars(math.tau * frequency * np.hypot(x - cx, y - cy) + phase, frequency),
        *_two(rng),
    )


def _star(rng: Generator, middle: bool, size: int) -> Texture:
    """Five to twelve spokes from a point in the middle half of the picture; frequency falls outwards."""
    spokes, phase, (cx, cy) = int(rng.integers(5, 13)), _phase(rng), _centre(rng, size)

    def paint(x: Array, y: Array) -> Array:
        dx, dy = x - cx, y - cy
        wave = np.cos(spokes * np.arctan2(dy, dx) + phase)
        return np.clip(0.5 + wave * np.hypot(dx, dy) / spokes, 0, 1)

    return Texture(Truth(), paint, *_two(rng))


def _bricks(rng: Generator, middle: bool, size: int) -> Texture:
    """Courses of bricks, each half a brick further, within 12 degrees of level. The truth is the courses'."""
    frequency, tilt = _frequency(rng, middle, bottom=1 / 18, top=1 / 7), math.radians(rng.uniform(-12, 12))
    first, second, length = _phase(rng), _phase(rng), rng.uniform(1.8, 2.6)
    joint, tint = rng.uniform(0.12, 0.2) / frequency, rng.uniform(0.6, 1, (16, 16)).astype(np.float32)

    def paint(x: Array, y: Array) -> Array:
        height, width = 1 / frequency, length / frequency
        v = _wave(x, y, frequency, math.pi / 2 + tilt, first) / math.tau
        course = np.floor(v)
        u = _wave(x, y, 1 / width, tilt, second) / math.tau + 0.5 * (course % 2)
        column = np.floor(u)
        from_joint = np.minimum(_to_edge(v - course) * height, _to_edge(u - column) * width)
        brick = tint[course.astype(int) % 16, column.astype(int) % 16]
        return brick * np.clip(0.5 + from_joint - max(joint, 1.2) / 2, 0, 1)

    return Texture(Truth(frequency, (math.pi / 2 + tilt) % math.pi), paint, *_two(rng))


def _zigzag(rng: Generator, middle: bool, size: int) -> Texture:
    """Bars bent into chevrons that run within 20 degrees of level: one frequency, two orientations."""
    frequency, phase = _frequency(rng, middle, bottom=1 / 18, top=1 / 5), _phase(rng)
    axis = math.radians(rng.uniform(-20, 20))
    slope, period, start = rng.uniform(0.7, 1.2), rng.uniform(16, 28), rng.random()

    def paint(x: Array, y: Array) -> Array:
        u = _wave(x, y, 1 / period, axis, math.tau * start) / math.tau
        bent = slope * period * _to_edge(u - np.floor(u))
        return _bars(
            _wave(x, y, frequency / math.hypot(1, slope), axis + math.pi / 2, phase)
            + math.tau * frequency / math.hypot(1, slope) * bent,
            frequency,
        )

    return Texture(Truth(frequency), paint, *_two(rng))


def _glyphs(rng: Generator, middle: bool, size: int) -> Texture:
    """Lines of capital letters and figures, 8 to 16 px high, within 20 degrees of level."""
    unit, tilt, weight = rng.uniform(8, 16) / 6, math.radians(rng.uniform(-20, 20)), rng.uniform(1, 1.5)
    left, top = (rng.uniform(0, math.tau * 64 * GRAIN * cell) for cell in CELL)
    text = rng.integers(0, len(STROKES), (64, 64))
    text[rng.random((64, 64)) < 0.12] = len(STROKES)  # the space

    def paint(x: Array, y: Array) -> Array:
        # Samples of `alphabet` from the start of the text; whole numbers, so that every one falls in a cell.
        u = np.floor(_wave(x, y, GRAIN / unit, tilt, left) / math.tau).astype(int)
        v = np.floor(_wave(x, y, GRAIN / unit, math.pi / 2 + tilt, top) / math.tau).astype(int)
        column, inside_x = np.divmod(u, CELL[0] * GRAIN)
        row, inside_y = np.divmod(v, CELL[1] * GRAIN)
        distance = alphabet()[text[row % 64, column % 64], inside_y, inside_x]
        return np.clip(0.5 + (weight / 2 - distance) * unit, 0, 1)

    return Texture(Truth(), paint, *_two(rng))


def _corner(rng: Generator, middle: bool, size: int) -> Texture:
    """One wedge of 50 to 120 degrees, its tip in the middle half of the picture."""
    (cx, cy), axis, half = _centre(rng, size), _phase(rng), math.radians(rng.uniform(25, 60))

    def paint(x: Array, y: Array) -> Array:
        dx, dy = x - cx, y - cy
        sides = [
            dx * math.cos(axis + s * (math.pi / 2 - half)) + dy * math.sin(axis + s * (math.pi / 2 - half))
            for s in (-1, 1)
        ]
        return np.clip(0.5 + np.minimum(*sides), 0, 1)

    return Texture(Truth(), paint, *_two(rng))


def _blobs(rng: Generator, middle: bool, size: int) -> Texture:
    """Smooth patches without direction: random bumps of 3 to 6 px (standard deviation), cut off at a level."""
    sigma, sharp = rng.uniform(3, 6), rng.uniform(1, 3)

    def paint(x: Array, y: Array) -> Array:
        beyond = MARGIN + 2 * sigma
        count = math.ceil((size + 2 * beyond) ** 2 / (2.5 * sigma) ** 2)
        cx = rng.random((count, 1), np.float32) * (size + 2 * beyond) - beyond
        cy = rng.random((1, count), np.float32) * (size + 2 * beyond) - beyond
        sign = np.where(rng.random((1, count)) < 0.5, -1, 1).astype(np.float32)
        along_y = sign * np.exp(-(((y - cy) / sigma) ** 2) / 2)  # (H, count)
        along_x = np.exp(-(((x - cx) / sigma) ** 2) / 2)  # (count, W)
        return np.clip(0.5 + sharp * (along_y @ along_x), 0, 1)

    return Texture(Truth(), paint, *_two(rng))


def _colour_noise(rng: Generator, middle: bool, size: int) -> Texture:
    """A mosaic of random colours, in squares of 1 to 3 px."""
    cell, contrast, shift = int(rng.integers(1, 4)), rng.uniform(0.5, 0.95), rng.integers(0, 3, 2)
    mean = rng.uniform(0.42, 0.58, 3).astype(np.float32)

    def paint(x: Array, y: Array) -> Array:
        mosaic = rng.random((3, *[(size + 2 * MARGIN + 2) // cell + 1] * 2), np.float32)
        places = (y[:, 0], shift[0]), (x[0], shift[1])
        row, column = ((a.astype(int) + MARGIN + s) // cell for a, s in places)
        return (mean[:, None, None] + contrast * (mosaic - 0.5))[:, row][:, :, column]

    return Texture(Truth(), paint, mean, mean)


# (random numbers, is the middle band to be drawn, side in pixels) -> one texture of the class. Gratings lie within 15
# degrees of where their name says.
Maker = Callable[[Generator, bool, int], Texture]
MAKERS: dict[str, Maker] = {
    "vertical grating": lambda rng, middle, _: _grating(rng, middle, math.radians(rng.uniform(-15, 15))),
    "horizontal grating": lambda rng, middle, _: _grating(rng, middle, math.radians(rng.uniform(75, 105))),
    "diagonal grating": lambda rng, middle, _: _grating(
        rng, middle, math.copysign(1, rng.random() - 0.5) * math.radians(rng.uniform(30, 60))
    ),
    "red-green stripes": lambda rng, middle, _: _stripes(rng, middle, RED_GREEN),
    "blue-yellow stripes": lambda rng, middle, _: _stripes(rng, middle, BLUE_YELLOW),
    "checks": _checks, "mesh": _mesh, "dots": _dots, "rings": _rings, "star": _star, "bricks": _bricks,
    "zigzag": _zigzag, "glyphs": _glyphs, "corner": _corner, "blobs": _blobs, "colour noise": _colour_noise,
}  # fmt: skip
CLASSES = tuple(MAKERS)


def draw(
    index: int, split: str = "train", *, size: int = 64, random_seed: int = 0, middle: bool = True
) -> tuple[NDArray[np.uint8], int, Truth]:
    """Picture `index` of a split as uint8 RGB (size, size, 3), its label (a place in CLASSES), its truth.

    Classes follow one another in turn, so the first n * 16 pictures hold n of each. Over the texture come a
    gradient of light and pixel noise of 1-3% standard deviation.

    ``middle=False`` leaves out the band 1/12 to 1/3 cycles/pixel, in two steps. Fundamentals are drawn from
    below 0.07 and above 0.36 only. Then whatever edges, letters, mosaics and noise still have in the band is
    filtered out of the whole picture: nothing passes from 1/12 to 1/3, everything below 0.07 and above 0.36,
    along half a cosine between. Classes, colours and places of picture `index` stay as they were; only its
    contrast is lowered where the rest would leave 0..255.

    Raises ImageError for a split, size or index that does not exist.
    """
    label, rng, texture = _texture(index, split, size, random_seed, middle)
    pad = 0 if middle else MARGIN
    span = np.arange(-pad, size + pad, dtype=np.float32)
    x, y = span[None, :], span[:, None]
    pattern = texture.paint(x, y)
    if pattern.ndim == 2:
        first, second = texture.first[:, None, None], texture.second[:, None, None]
        pattern = first + pattern * (second - first)
    slope, towards, sigma = rng.uniform(0, 0.2), rng.uniform(0, math.tau), rng.uniform(0.01, 0.03)
    light = 1 + slope * ((x / size - 0.5) * math.cos(towards) + (y / size - 0.5) * math.sin(towards))
    picture = pattern * light + sigma * rng.standard_normal(pattern.shape, np.float32)
    if not middle:
        picture = _without_middle(picture)[:, pad:-pad, pad:-pad]
    picture = np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(picture.transpose(1, 2, 0)), label, texture.truth


def truth(
    index: int, split: str = "train", *, size: int = 64, random_seed: int = 0, middle: bool = True
) -> Truth:
    """The truth about picture `index` without drawing it. Raises as `draw` does."""
    return _texture(index, split, size, random_seed, middle)[2].truth


def _texture(
    index: int, split: str, size: int, random_seed: int, middle: bool
) -> tuple[int, Generator, Texture]:
    one_of(split, "split of 'textures'", SPLITS, ImageError)
    if size < SMALLEST:
        raise ImageError(f"'textures' need at least {SMALLEST} px to show a period, and size is {size}")
    whole_number(index, "index of a texture", 0, error=ImageError)
    whole_number(random_seed, "random_seed of 'textures'", 0, error=ImageError)
    label = index % len(CLASSES)
    rng = Generator(Philox(SeedSequence([random_seed, list(SPLITS).index(split), index])))
    return label, rng, MAKERS[CLASSES[label]](rng, middle, size)


@image_source("textures", size=64)
def textures(rest: str, size: Size, split: str, **_: Any) -> ImageSet:
    """A split of the drawn textures, as in ``"textures:no-middle,seed=3"``; the classes follow one another in turn."""
    side = square_side(size, "textures are drawn as squares")
    middle, random_seed = _options(rest)
    options: dict[str, Any] = {"random_seed": random_seed, "middle": middle}
    truth(0, split, size=side)  # says at once that a split or size will not do

    def read(i: int) -> tuple[Image.Image, int]:
        picture, label, _ = draw(i, split, size=side, **options)
        return Image.fromarray(picture), label

    def row(i: int) -> dict[str, Any]:
        return {"class": CLASSES[i % len(CLASSES)], **truth(i, split, size=side, **options)._asdict()}

    spelt = ",".join(["no-middle"] * (not middle) + [f"seed={random_seed}"] * (random_seed > 0))
    set_name = f"textures:{spelt}" if spelt else "textures"  # one spelling, whatever the caller's
    labels = np.arange(SPLITS[split]) % len(CLASSES)
    names = [f"{set_name} {split} {i}: {CLASSES[label]}" for i, label in enumerate(labels)]

    def stamp() -> str:  # one of each class
        return digest(torch.from_numpy(draw(i, split, size=side, **options)[0]) for i in range(len(CLASSES)))

    known: dict[str, Any] = {"read_labels": lambda: labels, "truth": row, "stamp": stamp}
    return ImageSet(read, names, size=side, classes=CLASSES, **known)


def _options(text: str) -> tuple[bool, int]:
    """Is the middle band drawn, and the random seed, from "no-middle,seed=3"."""
    middle, random_seed = True, 0
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, value = (p.strip() for p in part.partition("="))
        if part == "no-middle":
            middle = False
        elif name != "seed":
            raise ImageError(unknown("option of 'textures'", part, ["no-middle", "seed=NUMBER"]))
        elif not value.isdecimal():
            raise ImageError(f"seed of 'textures' must be a whole number from 0, as in seed=3, not {value!r}")
        else:
            random_seed = int(value)
    return middle, random_seed


def _without_middle(picture: Array) -> Array:
    """(3, S, S) without the middle band, contracted about mid-grey where that is needed to stay in 0..1."""
    side = picture.shape[-1]
    spectrum = torch.fft.rfft2(torch.from_numpy(picture)) * _stop(side)  # several times as quick as NumPy's
    rest: Array = torch.fft.irfft2(spectrum, s=(side, side)).numpy() - 0.5
    return 0.5 + rest * min(1.0, 0.5 / float(np.abs(rest).max()))


@lru_cache(maxsize=4)
def _stop(side: int) -> Tensor:
    """Transfer function (side, side // 2 + 1) of the band-stop filter of `draw`."""
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    below = (radius - STOP_FLANKS[0]) / (MIDDLE[0] - STOP_FLANKS[0])
    above = (STOP_FLANKS[1] - radius) / (STOP_FLANKS[1] - MIDDLE[1])
    stopped = np.clip(np.minimum(below, above), 0, 1)
    return torch.from_numpy(0.5 + 0.5 * np.cos(np.pi * stopped)).float()


def _frequency(rng: Generator, middle: bool, bottom: float = LOW[0], top: float = HIGH[1]) -> float:
    """From bottom to top: a band, each as likely as the others, and a frequency in it, even in octaves."""
    bands = [LOW, MIDDLE, HIGH] if middle else [(LOW[0], STOP_FLANKS[0]), (STOP_FLANKS[1], HIGH[1])]
    bands = [(max(low, bottom), min(high, top)) for low, high in bands if low < top and high > bottom]
    low, high = bands[int(rng.random() * len(bands))]
    return low * (high / low) ** rng.random()


def _phase(rng: Generator) -> float:
    return rng.uniform(0, math.tau)


def _centre(rng: Generator, size: int) -> tuple[float, float]:
    """x, y of a point in the middle half of the picture, in pixels."""
    return rng.uniform(0.25, 0.75) * size, rng.uniform(0.25, 0.75) * size


def _wave(x: Array, y: Array, frequency: float, orientation: float, phase: float) -> Array:
    """Phase (H, W) of a plane wave, in radians."""
    k = math.tau * frequency
    return (k * math.cos(orientation) * x + phase) + k * math.sin(orientation) * y


def _bars(wave: Array, frequency: float) -> Array:
    """Square wave with edges one pixel wide; above 1/pi c/px, where they would meet, a sinusoid."""
    return np.clip(0.5 + np.cos(wave) * max(0.5, 1 / (math.tau * frequency)), 0, 1)


def _near_line(wave: Array, frequency: float, width: float) -> Array:
    """1 within lines of this width in pixels where the wave's phase is a multiple of 2 pi, else 0."""
    periods = wave / math.tau
    distance = np.abs(periods - np.rint(periods)) / frequency
    return np.clip(0.5 + width / 2 - distance, 0, 1)


def _to_edge(fraction: Array) -> Array:
    """Distance from a place in the unit interval to its nearer end."""
    return np.minimum(fraction, 1 - fraction)


def _two(rng: Generator) -> tuple[Array, Array]:
    """Two colours in either order, that differ in brightness, hue or both."""
    dark, bright = _along(rng, _direction(rng, 75), rng.uniform(0.35, 0.65))
    return (dark, bright) if rng.random() < 0.5 else (bright, dark)


def _direction(rng: Generator, most: float) -> Array:
    """Unit vector (3,) in RGB, up to `most` degrees from the direction of grey, to any hue."""
    turn, hue = math.radians(rng.uniform(0, most)), _phase(rng)
    chroma = math.cos(hue) * RED_GREEN + math.sin(hue) * BLUE_YELLOW
    return math.cos(turn) * GREY + math.sin(turn) * chroma


def _along(rng: Generator, axis: Array, contrast: float) -> tuple[Array, Array]:
    """Two colours as far as `contrast` on either side of a random one, or nearer where 0..1 ends."""
    mean = rng.uniform(0.38, 0.62, 3).astype(np.float32)
    room = float((np.minimum(mean, 1 - mean) / np.maximum(np.abs(axis), 1e-6)).min())
    reach = min(contrast, 0.95 * room)
    return mean - reach * axis, mean + reach * axis
