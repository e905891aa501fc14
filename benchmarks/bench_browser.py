"""From key press to changed pixels: the explorer in JupyterLab and on a Voila page, in a real Chromium.

    .venv/bin/python benchmarks/bench_browser.py [--steps 40] [--front lab voila] [--pause 300] [--warm 10]

For every convolutional layer of zfnet64 on the bundled photographs: the arrow key on the strip of maps, until the
frame that shows the new map's projections ("page turning", `--pause` ms between two keys, so that neighbours may have
been computed ahead), and the key r, which draws a map ("far jump"), with nothing kept on disk; and a click on each
layer until its map is there ("layer"). Then a second page, of a new kernel, which finds what the first has kept: some
of the same maps again by a click on the strip ("kept"), and the key a, until the frame with the layer's maps
("wall"). `--warm` leaves a page alone for so many seconds first. Both ends are read from the page's own clock: the
time stamp of the key's event, and the first task after the frame that shows what was asked for. The kernels' memory
and CPU time stand below, with what the first picture took; Voila has a kernel ready for it, as with `make app`. There
three pages are open at once as well, on each of which a key is pressed at the same time, and ten one after the other.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
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
DRAWN = "wall => wall.querySelector('canvas')"
CELL = """
import zfkit
model = zfkit.load_model("zfnet64")
photos = zfkit.load_images("photos", progress=False)
zfkit.explore(model, photos, zfkit.TopK.load("top.parquet"))
"""


def shows(layer: str, channel: int | str = "") -> str:
    """Does the page say that this map is drawn, or any of this layer? In JavaScript."""
    said = f"{layer} map {channel}"
    return f"e => e.textContent{' === ' if channel != '' else '.startsWith'}({said!r})"


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


class Driver:
    """A page that is driven, and the rows of its table."""

    def __init__(self, page: Any, front: str, pause: float) -> None:
        self.page, self.front, self.pause, self.rows = page, front, pause, list[list[str]]()
        page.wait_for(".zx .zx-tile canvas[role=img]")

    def find(self, selector: str) -> Any:
        return self.page.tab.locator(f".zx {selector}")

    def at(self) -> int:
        """The map that is chosen."""
        return int(self.find(".zx-count b").inner_text())

    def press(self, key: str) -> Callable[[], None]:
        return partial(self.page.tab.keyboard.press, key)

    def go_to(self, layer: str) -> None:
        """Open a layer, and leave it alone for some time."""
        if self.find(f"[data-layer={layer}]").get_attribute("aria-pressed") != "true":
            self.timed(self.find(f"[data-layer={layer}]").click, shows(layer))
        self.page.tab.wait_for_timeout(10 * self.pause)
        self.find(".zx-bars").focus()

    def timed(self, act: Callable[[], None], good: str, shown: str = SHOWN) -> float | None:
        """ms from key press to the frame that shows it, once the page has been left alone for some time."""
        self.page.tab.wait_for_timeout(self.pause)
        taken: float | None = self.page.latency(shown, act, good)
        return taken

    def note(self, layer: str, way: str, taken: list[float | None]) -> None:
        self.rows.append(row(self.front, layer, way, taken))

    def nothing_kept(self, layers: tuple[str, ...], steps: int) -> dict[str, list[int]]:
        """Layers, pages and far jumps with nothing on disk; gives the maps that were jumped to."""
        self.note(
            "all", "layer", [self.timed(self.find(f"[data-layer={n}]").click, shows(n)) for n in layers]
        )
        jumped: dict[str, list[int]] = {}
        for layer in layers:
            self.go_to(layer)
            turned = []
            for _ in range(steps):
                turned.append(self.timed(self.press("ArrowRight"), shows(layer, self.at() + 1)))
            self.note(layer, "page turning", turned)
            jumps, jumped[layer] = list[float | None](), []
            for _ in range(steps):
                jumps.append(self.timed(self.press("r"), shows(layer)))
                jumped[layer].append(self.at())
            self.note(layer, "far jump", jumps)
        return jumped

    def kept(self, jumped: dict[str, list[int]]) -> None:
        """The same maps by a click on the strip, and all maps of each layer, in a new kernel."""
        clicks = [self.timed(self.find(f"[data-layer={n}]").click, shows(n)) for n in jumped]
        self.note("all", "layer, kept", clicks)
        for layer, channels in jumped.items():
            self.go_to(layer)
            some = [c for i, c in enumerate(channels) if c not in channels[:i]][: len(channels) // 2]
            self.note(layer, "kept", [self.timed(partial(self.click_on, c), shows(layer, c)) for c in some])
            self.note(layer, "wall", [self.timed(self.press("a"), DRAWN, WALL)])
            self.press("a")()

    def click_on(self, channel: int) -> None:
        """Choose a map by a click on the strip."""
        bars = self.find(".zx-bars")
        count, box = int(bars.get_attribute("aria-valuemax")) + 1, bars.bounding_box()
        x = box["x"] + box["width"] * (channel + 0.5) / count
        self.page.tab.mouse.click(x, box["y"] + box["height"] / 2)


def drive(
    browser: Any,
    front: str,
    folder: Path,
    notebooks: Path,
    layers: tuple[str, ...],
    options: argparse.Namespace,
) -> tuple[list[list[str]], str]:
    """Both pages in one front end: the rows of the table, and what the kernels took."""
    if front == "lab":
        server_of, name = b.jupyter_lab(folder, notebooks), "JupyterLab"
    else:
        server_of, name = b.voila(folder, notebooks / "explorer.ipynb"), "Voila"
    with server_of as server:

        def opened(notebook: str) -> tuple[Driver, str]:
            if front == "voila":
                wait_until_rested(server)
            before, start = kernels(server)[1], time.monotonic()
            if front == "lab":
                page = b.open_lab(browser, server, notebook, height=1100, kernel=False)
            else:
                page = b.open_voila(browser, server, height=1100, kernel=False)
            driver = Driver(page, name, options.pause)
            taken, spent = time.monotonic() - start, kernels(server)[1] - before
            page.tab.wait_for_timeout(1000 * options.warm)
            return driver, f"first picture after {taken:.1f} s and {spent:.1f} s of the kernels' CPU"

        first, opening = opened("explorer.ipynb")
        jumped = first.nothing_kept(layers, options.steps)
        costs = f"{name}, {opening}; {cost(server)}"
        first.page.tab.close()
        second, opening = opened("again.ipynb")
        second.kept(jumped)
        costs += f"\n{name} again, with what is kept, {opening}; {cost(server)}"
        second.page.tab.close(run_before_unload=True)
        if front == "voila":
            second.rows += three_at_once([opened("")[0] for _ in range(3)], options.steps)
            for _ in range(10):
                opened("")[0].page.tab.close(run_before_unload=True)
            wait_until_rested(server)
            costs += f"\nafter ten pages one after the other {len(kernels(server)[0])} kernel, the one that is ready"
    return first.rows + second.rows, costs


def three_at_once(drivers: list[Driver], steps: int) -> list[list[str]]:
    """A key on each of three pages before the first has answered; then they close."""
    taken = list[float | None]()
    for driver in drivers:
        driver.go_to("conv4")
    for _ in range(steps):
        drivers[0].page.tab.wait_for_timeout(drivers[0].pause)
        for driver in drivers:
            driver.page.watch_out(SHOWN, shows("conv4", driver.at() + 1))
        for driver in drivers:
            driver.press("ArrowRight")()
        taken += [driver.page.came() for driver in drivers]
    for driver in drivers:
        driver.page.tab.close(run_before_unload=True)
    return [row("Voila, three pages at once", "conv4", "page turning", taken)]


def kernels(server: Any) -> tuple[list[psutil.Process], float]:
    """The server's kernels, and the CPU time that they have taken."""
    running, spent = list[psutil.Process](), 0.0
    for child in psutil.Process(server.process.pid).children(recursive=True):
        with suppress(psutil.Error):  # it ends just now
            if "ipykernel_launcher" in " ".join(child.cmdline()):
                running, spent = [*running, child], spent + sum(child.cpu_times()[:2])
    return running, spent


def wait_until_rested(server: Any) -> None:
    """Until the kernels have nothing to do: the one for the next page is ready."""
    before = -1.0
    while (now := kernels(server)[1]) > before + 0.1:
        before = now
        time.sleep(4)


def cost(server: Any) -> str:
    """Memory and CPU time of the server's kernels, and what they take in 10 s, from 10 s after the last action on."""
    time.sleep(10)
    running, spent = kernels(server)
    time.sleep(10)
    rest = kernels(server)[1] - spent
    memory = sum(p.memory_info().rss for p in running) / 1e9
    return (
        f"{len(running)} kernels: {memory:.2f} GB, {spent:.0f} s of CPU so far, {rest:.2f} s in 10 s at rest"
    )


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
    rows: list[list[str]] = []
    costs: list[str] = []
    with tempfile.TemporaryDirectory() as name, b.chromium() as browser:
        for front in options.front:
            folder, notebooks = Path(name, front), Path(name, front, "notebooks")
            os.environ["ZFKIT_CACHE"] = str(folder / "cache")  # nothing is kept at first
            notebooks.mkdir(parents=True)
            top.save(notebooks / "top.parquet")
            for notebook in ("explorer.ipynb", "again.ipynb"):
                b.write_notebook(notebooks / notebook, CELL)
            made, taken = drive(browser, front, folder / "server", notebooks, layers, options)
            rows, costs = rows + made, [*costs, taken]
    print(
        f"{machine()}\nms from key press to the frame with the new projections, {len(photos)} photographs, "
        f"{options.warm:g} s after opening\n"
    )
    table(["front end", "layer", "way", "n", "p50", "p95", "max"], rows)
    print("\n".join(["", *costs]))


if __name__ == "__main__":
    main()
