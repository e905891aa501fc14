"""What the explorer computes for one step of its slider, without a browser: p50 and p95 by layer.

    .venv/bin/python benchmarks/bench_explorer.py [--maps 20] [--model zfnet64]

*cold*: a map that was not asked for before, both grids ready to be sent. *ahead*: a neighbour that was computed while
nothing else was to be done. *large*: photograph, map and projection of one unit. *elsewhere*: another unit of the same
picture, as after a click on the map. Layers take turns, map by map. bench_browser.py adds the way to the screen.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from common import machine, table

import zfkit
from zfkit.topk import mined
from zfkit.widgets import ExplorerView, State


def timed(call: Callable[[], object]) -> float:
    """Milliseconds that a call takes."""
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maps", type=int, default=20)
    parser.add_argument("--model", default="zfnet64")
    args = parser.parse_args()
    os.environ["ZFKIT_CACHE"] = tempfile.mkdtemp()  # nothing is kept from another time
    model = zfkit.load_model(args.model)
    photos = zfkit.load_images("photos", progress=False)
    view = ExplorerView(model, photos, mined(model, photos))
    generator = np.random.default_rng(0)
    kinds = ("cold", "ahead", "large", "elsewhere", "facts")
    spent: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in kinds} for name in view.layers}
    drawn = {name: generator.permutation(view.count(name))[: args.maps + 1].tolist() for name in view.layers}
    for i in range(args.maps + 1):
        for name in view.layers:
            if i >= len(drawn[name]):
                continue
            state = State(name, int(drawn[name][i]))
            if view.dead(name, state.channel):
                continue
            row, col = (n // 2 for n in view.shapes[name][1:])
            elsewhere = replace(state, position=(row, col))
            times = {
                "cold": timed(partial(view.grids, state)),
                "ahead": timed(partial(view.grids, state)),
                "large": timed(partial(view.detail, state)),
                "elsewhere": timed(partial(view.detail, elsewhere)),
                "facts": timed(partial(view.facts.of_map, name, state.channel)),
            }
            if i:  # the first of each layer warms up
                for kind, ms in times.items():
                    spent[name][kind].append(ms)
    rows = []
    for name, by_kind in spent.items():
        cells = [f"{np.median(by_kind[k]):.0f} / {np.quantile(by_kind[k], 0.95):.0f}" for k in kinds]
        rows.append([name, *cells])
    print(f"{machine()}; {args.maps} maps of each layer; ms, p50 / p95\n")
    table(["layer", *kinds], rows)


if __name__ == "__main__":
    main()
