"""Capital letters and figures drawn with strokes, for the texture "glyphs"."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Strokes of the letters on a grid of 4 x 6 units: lines through points "xy", a comma lifts the pen.
STROKES = {
    "A": "06 20 46,14 34", "B": "06 00 30 41 42 33 03,33 44 45 36 06", "C": "41 30 10 01 05 16 36 45",
    "D": "00 06 26 44 42 20 00", "E": "40 00 06 46,03 33", "F": "40 00 06,03 33",
    "G": "41 30 10 01 05 16 36 45 43 23", "H": "00 06,40 46,03 43", "I": "20 26,10 30,16 36",
    "J": "40 45 36 16 05", "K": "00 06,40 03 46", "L": "00 06 46", "M": "06 00 23 40 46",
    "N": "06 00 46 40", "O": "10 30 41 45 36 16 05 01 10", "P": "06 00 30 41 42 33 03",
    "Q": "10 30 41 45 36 16 05 01 10,34 46", "R": "06 00 30 41 42 33 03,23 46",
    "S": "41 30 10 01 02 13 33 44 45 36 16 05", "T": "00 40,20 26", "U": "00 05 16 36 45 40",
    "V": "00 26 40", "W": "00 16 23 36 40", "X": "00 46,40 06", "Y": "00 23 40,23 26",
    "Z": "00 40 06 46", "2": "01 10 30 41 42 06 46", "3": "00 40 23 33 44 45 36 16 05", "4": "36 30 04 44",
    "5": "40 00 02 32 43 45 36 06", "7": "00 40 16",
}  # fmt: skip


CELL = (6, 9)  # units from letter to letter and from line to line
GRAIN = 8  # samples a unit


@lru_cache(maxsize=1)
def alphabet() -> NDArray[np.floating[Any]]:
    """(letters + 1, 9 * GRAIN, 6 * GRAIN): distance in units from each place of a cell to the nearest stroke."""
    y, x = (np.mgrid[: CELL[1] * GRAIN, : CELL[0] * GRAIN] + 0.5) / GRAIN
    x, y = x - (CELL[0] - 4) / 2, y - (CELL[1] - 6) / 2
    cells = [_distance(x, y, strokes) for strokes in STROKES.values()]
    return np.stack([*cells, np.full(x.shape, np.inf)]).astype(np.float32)


def _distance(x: NDArray[Any], y: NDArray[Any], strokes: str) -> NDArray[Any]:
    """Distance of each place (x, y) from the nearest stroke of a letter."""
    nearest = np.full(x.shape, np.inf)
    for line in strokes.split(","):
        points = [(int(p[0]), int(p[1])) for p in line.split()]
        for (ax, ay), (bx, by) in pairwise(points):
            dx, dy = bx - ax, by - ay
            along = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
            nearest = np.minimum(nearest, np.hypot(x - ax - along * dx, y - ay - along * dy))
    return nearest
