"""From key press to changed pixels: the explorer in JupyterLab and on a Voila page, in a real Chromium.

    .venv/bin/python benchmarks/bench_browser.py [--steps 40] [--front lab voila] [--pause 300] [--warm 10]

For every convolutional layer of zfnet64 on the bundled photographs: a click on the layer ("layer"), then the arrow key
on the strip of maps, until the frame that shows the new projections ("page turning", `--pause` ms between two keys, so
that neighbours may have been computed ahead); the key r, which draws a map ("far jump"), with nothing kept on disk;
some of these maps again, which are kept then ("kept"); and the key a, until the frame with all maps ("wall").
`--warm` leaves the page alone for so many seconds first. Both ends are read from the page's own clock: the time stamp
of the key's event, and the first task after the frame that shows it. The kernel's memory and CPU time stand below.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import machine, table

import zfkit
from zfkit.topk import mined

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import browser as b  # type: ignore[import-not-found]

SHOWN = ".zx [role=status].zx-unseen"  # which says the map once its pictures are drawn
WALL = ".zx-wall"
CELL = """
import zfkit
model = zfkit.load_model("zfnet64")
photos = zfkit.load_images("photos", progress=False)
zfkit.explore(model, photos, zfkit.TopK.load("top.parquet"))
"""


def measure(page: Any, act: Callable[[], None], pause: float, shown: str = SHOWN) -> float | None:
    """One latency in ms, once the page has been left alone for `pause` ms."""
    page.tab.wait_for_timeout(pause)
    latency: float | None = page.latency(shown, act)
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
    page: Any, front: str, layers: tuple[str, ...], steps: int, pause: float, warm: float
) -> list[list[str]]:
    """All layers in one front end."""
    rows: list[list[str]] = []
    page.wait_for(".zx .zx-tile canvas[role=img]")

    def find(selector: str) -> Any:
        return page.tab.locator(f".zx {selector}")

    def press(key: str) -> None:
        page.tab.keyboard.press(key)

    page.tab.wait_for_timeout(max(1000 * warm, 20 * pause))

    def note(layer: str, way: str, taken: list[float | None]) -> None:
        rows.append(row(front, layer, way, taken))

    clicks = [
        measure(page, find(f"[data-layer={layer}]").click, 3 * pause) for layer in layers for _ in range(2)
    ]
    note("all", "layer", clicks)
    for layer in layers:
        find(f"[data-layer={layer}]").click()
        page.tab.wait_for_timeout(10 * pause)
        find(".zx-bars").focus()
        note(layer, "page turning", [measure(page, lambda: press("ArrowRight"), pause) for _ in range(steps)])
        jumps: list[float | None] = []
        channels = []
        for _ in range(steps):
            jumps.append(measure(page, lambda: press("r"), pause))
            channels.append(int(find(".zx-count b").inner_text()))
        note(layer, "far jump", jumps)
        some = channels[:: max(len(channels) // 10, 1)]
        again = [measure(page, partial(jump, page, channel), pause) for channel in some]
        note(layer, "kept", again)
        note(layer, "wall", [measure(page, lambda: press("a"), 4000, WALL)])
        press("a")
    return rows


def jump(page: Any, channel: int) -> None:
    """To a map by a click on the strip."""
    bars = page.tab.locator(".zx-bars")
    count, box = int(bars.get_attribute("aria-valuemax")) + 1, bars.bounding_box()
    page.tab.mouse.click(box["x"] + box["width"] * (channel + 0.5) / count, box["y"] + box["height"] / 2)


def cost(server: Any) -> str:
    """Memory and CPU time of the server's kernels, and the CPU time that they take in 10 s at rest."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    kernels = [p for p in children if "ipykernel_launcher" in " ".join(p.cmdline())]
    spent = sum(sum(p.cpu_times()[:2]) for p in kernels)
    time.sleep(10)
    rest = sum(sum(p.cpu_times()[:2]) for p in kernels) - spent
    memory = sum(p.memory_info().rss for p in kernels)
    return f"{len(kernels)} kernel: {memory / 1e9:.2f} GB, {spent:.0f} s of CPU so far, {rest:.1f} s in 10 s at rest"


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
    top = mined(model, photos)
    layers = tuple(options.layers or model.conv_layers)
    rows, costs = [], []
    with tempfile.TemporaryDirectory() as name, b.chromium() as browser:
        folder = Path(name)
        os.environ["ZFKIT_CACHE"] = str(folder / "cache")  # nothing is kept at first
        notebooks = folder / "notebooks"
        notebooks.mkdir()
        top.save(notebooks / "top.parquet")
        b.write_notebook(notebooks / "explorer.ipynb", CELL)
        for front in options.front:
            if front == "lab":
                with b.jupyter_lab(folder / front, notebooks) as server:
                    page = b.open_lab(browser, server, "explorer.ipynb", height=1100, kernel=False)
                    rows += drive(page, "JupyterLab", layers, options.steps, options.pause, options.warm)
                    costs.append(f"JupyterLab, {cost(server)}")
            else:
                with b.voila(folder / front, notebooks / "explorer.ipynb") as server:
                    page = b.open_voila(browser, server, height=1100, kernel=False)
                    rows += drive(page, "Voila", layers, options.steps, options.pause, options.warm)
                    costs.append(f"Voila, {cost(server)}")
    print(
        f"{machine()}\nms from key press to the frame with the new projections, {len(photos)} photographs, "
        f"{options.warm:g} s after opening\n"
    )
    table(["front end", "layer", "way", "n", "p50", "p95", "max"], rows)
    print("\n".join(["", *costs]))


if __name__ == "__main__":
    main()
