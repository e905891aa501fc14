"""What the numbers in a file stand for, and what is said once about all pictures of a set."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError

Range = tuple[float, float]  # the values that become black and white

UNLABELLED = -1  # the label of a picture without one
WHOLE = (0.0, 65535.0)  # of unsigned 16 bits
DARK = 65536 // 8  # values that all stay below are of fewer bits, and would come out nearly black


def check_range(value_range: Any) -> Range:
    """The two numbers. Raises ImageError for anything else."""
    try:
        low, high = (float(v) for v in value_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ImageError(
            f"value_range must be two numbers, which become black and white, as (0, 4095), not {value_range!r:.80}"
        )
    return low, high


def stated_range(picture: Image.Image) -> Range | None:
    """What the tags of a TIFF say of its values' range (SMinSampleValue and SMaxSampleValue, or the older pair)."""
    tags: Any = getattr(picture, "tag_v2", {})
    for low, high in ((340, 341), (280, 281)):
        if high in tags:
            ends = [np.atleast_1d(np.asarray(tags.get(tag, 0), dtype=float))[0] for tag in (low, high)]
            # Of unsigned numbers the tags may tell of this one picture's extremes; a depth of bits is another matter.
            whole_bits = ends[0] == 0 and math.log2(max(ends[1], 0) + 1).is_integer()
            if ends[0] < ends[1] and (not picture.mode.startswith("I;16") or whole_bits):
                return float(ends[0]), float(ends[1])
    return None


def eight_bits(values: np.ndarray, value_range: Range | None, remarks: Remarks, name: str) -> Image.Image:
    """Values (H, W) of more than 8 bits as a grey picture: the range becomes 0..255, what lies beyond is cut off.

    Without a range, whole numbers are taken for 0..65535. Raises ImageError where they cannot be.
    """
    if value_range is None:
        low, high = values.min(), values.max()
        if values.dtype.kind == "f" or low < 0 or high > WHOLE[1]:
            floats = values.dtype.kind == "f"
            kind = "floating-point pixels" if floats else "integers beyond 16 bits, or signed,"
            raise ImageError(
                f"{kind} have no known range (these: {low:g} to {high:g}): convert it to 8 bits first, or say "
                "value_range=(low, high)"
            )
        remarks.sixteen_bits(int(low), int(high), name)
    low, high = value_range or WHOLE
    precise = values.astype(np.float32 if values.dtype.itemsize == 2 else np.float64)
    scaled = (np.nan_to_num(precise, nan=low) - low) * (255 / (high - low))
    return Image.fromarray(np.rint(scaled.clip(0, 255)).astype(np.uint8))


class Remarks:
    """What is worth saying of a set of pictures, gathered while threads read them, and said once.

    One dark picture among others is a dark picture; where all of them stay below an eighth of the range, they are of
    fewer bits. Adding to sets and dictionaries is atomic, so that no lock is needed, and image sets can be pickled.
    """

    def __init__(self) -> None:
        self._lows: set[int] = set()
        self._highs: set[int] = set()
        self._first: dict[str, str] = {}  # remark -> the first picture that it is true of; "" for 16 bits
        self._said: set[str] = set()

    def sixteen_bits(self, low: int, high: int, name: str) -> None:
        """A picture of unsigned 16 bits with values from low to high."""
        self._lows.add(low)
        self._highs.add(high)
        self._first.setdefault("", name)

    def note(self, remark: str, name: str) -> None:
        """Something else about a picture, in words that are the same for all such pictures."""
        self._first.setdefault(remark, name)

    def say(self, stacklevel: int = 3) -> None:
        """Warn of what was gathered and not said yet."""
        high = max(self._highs, default=0)
        for remark, name in list(self._first.items()):
            if remark in self._said or (not remark and not 0 < high < DARK):
                continue
            self._said.add(remark)
            text = remark or (
                f"16-bit values of {min(self._lows)} to {high} only, out of 65535, which come out nearly black: if "
                f"they are of {high.bit_length()} bits, say value_range=(0, {2 ** high.bit_length() - 1})"
            )
            warnings.warn(f"{name}: {text} (said once)", stacklevel=stacklevel)
