"""From key press to changed pixels: the explorer in JupyterLab and on a Voila page, in a real Chromium.

    .venv/bin/python benchmarks/bench_browser.py [--steps 40] [--front lab voila] [--pause 300] [--warm 10]

For every convolutional layer of zfnet64 on the bundled photographs: the arrow key on the map slider, until the frame
that shows the new grid of projections. "page turning" waits `--pause` ms between two keys, so that neighbours may have
been computed ahead; "far jumps" types a map's number and Enter. `--warm` leaves the page alone for so many seconds
first. Both ends are read from the page's own clock: the time stamp of the key's event, and the first task after the
frame that shows the new picture.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, table

import zfkit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import browser as b  # type: ignore[import-not-found]

GRID = ".zfkit-explorer .zfkit-projections img"
CELL = """
import zfkit
model = zfkit.load_model("zfnet64")
photos = zfkit.load_images("photos", progress=False)
zfkit.explore(model, photos, zfkit.TopK.load("top.parquet"))
"""


def measure(page: Any, act: Callable[[], None], pause: float) -> float | None:
    """One latency in ms, once the page has been left alone for `pause` ms."""
    page.tab.wait_for_timeout(pause)
    latency: float | None = page.latency(GRID, act)
    return latency


def row(front: str, layer: str, way: str, taken: list[float | None]) -> list[str]:
    """A line of the table."""
    known = [t for t in taken if t is not None]
    p50, p95 = np.percentile(known, [50, 95]) if known else (np.nan, np.nan)
    return [
        front,
        layer,
        way,
        f"{len(known)}",
        f"{p50:.0f}",
        f"{p95:.0f}",
        f"{max(known, default=np.nan):.0f}",
    ]


def drive(
    page: Any,
    front: str,
    layers: tuple[str, ...],
    maps: dict[str, int],
    steps: int,
    pause: float,
    warm: float,
) -> list[list[str]]:
    """All layers in one front end."""
    rows, draw = [], random.Random(0)
    page.wait_for(GRID)
    find = lambda selector: page.tab.locator(f".zfkit-explorer {selector}")  # noqa: E731
    page.tab.wait_for_timeout(max(1000 * warm, 20 * pause))
    for layer in layers:
        find(f".zfkit-layers button:has-text('{layer}')").click()
        page.tab.wait_for_timeout(10 * pause)
        handle = find(".zfkit-map .noUi-handle")
        handle.focus()
        taken = [measure(page, lambda: page.tab.keyboard.press("ArrowRight"), pause) for _ in range(steps)]
        rows.append(row(front, layer, "page turning", taken))
        box = find(".zfkit-number-box input")
        taken = []
        for channel in draw.sample(range(steps + 10, maps[layer]), min(steps, maps[layer] - steps - 10)):
            box.fill(str(channel))
            taken.append(measure(page, lambda: page.tab.keyboard.press("Enter"), pause))
        rows.append(row(front, layer, "far jumps", taken))
    return rows


def main() -> None:
    """Open, time, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40, help="keys for each layer and way")
    parser.add_argument("--pause", type=float, default=300, help="ms between two keys")
    parser.add_argument("--warm", type=float, default=10, help="s that the page is left alone for at first")
    parser.add_argument("--front", nargs="+", default=["lab", "voila"], choices=["lab", "voila"])
    parser.add_argument("--layers", nargs="+", help="default: all convolutional layers")
    options = parser.parse_args()
    if b.why_not():
        print(f"nothing measured: {b.why_not()}")
        return
    model = zfkit.load_model("zfnet64")
    photos = zfkit.load_images("photos", progress=False)
    top = zfkit.mine(model, photos, inside=True, progress=False)
    layers = tuple(options.layers or model.conv_layers)
    maps = {layer: len(top[layer].value) for layer in layers}
    rows = []
    with tempfile.TemporaryDirectory() as name, b.chromium() as browser:
        folder = Path(name)
        notebooks = folder / "notebooks"
        notebooks.mkdir()
        top.save(notebooks / "top.parquet")
        b.write_notebook(notebooks / "explorer.ipynb", CELL)
        for front in options.front:
            if front == "lab":
                with b.jupyter_lab(folder / front, notebooks) as server:
                    page = b.open_lab(browser, server, "explorer.ipynb", height=1100, kernel=False)
                    rows += drive(
                        page, "JupyterLab", layers, maps, options.steps, options.pause, options.warm
                    )
            else:
                with b.voila(folder / front, notebooks / "explorer.ipynb") as server:
                    page = b.open_voila(browser, server, height=1100, kernel=False)
                    rows += drive(page, "Voila", layers, maps, options.steps, options.pause, options.warm)
    print(
        f"{machine()}\nms from key press to the frame with the new projections, {len(photos)} photographs, "
        f"{options.warm:g} s after opening\n"
    )
    table(["front end", "layer", "way", "n", "p50", "p95", "max"], rows)


if __name__ == "__main__":
    main()
