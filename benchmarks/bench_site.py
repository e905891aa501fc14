"""A site of every feature map: how long it takes from a mined table, how large it is, and how much memory it needs.

    .venv/bin/python benchmarks/bench_site.py [--models zfnet64 torchvision:resnet18 ...] [--maps all 24] [--limit N]

Each site in a process of its own, on the bundled photographs; torchvision's networks have random weights. Memory is
the process's peak, the network and the pictures included. "Usable": from opening index.html from the disk until its
first page is drawn, the median of five in headless Chromium.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, resident, table

import zfkit
from zfkit.atlas.page import Maps
from zfkit.topk.bundled import shipped

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import browser as b  # type: ignore[import-not-found]

MODELS = ["zfnet64", "squeezenet1_1", "torchvision:resnet18"]


def usable(index: Path) -> float:
    """ms."""
    times = []
    with b.chromium() as opened:
        for _ in range(5):
            page = opened.new_context().new_page()
            page.goto(index.as_uri())
            page.wait_for_function("document.body.dataset.ready")
            times.append(page.evaluate("performance.now()"))
            page.context.close()
    return statistics.median(times)


def one(name: str, maps: str, limit: int | None) -> dict[str, float]:
    """Mine, if no table ships, then time the rest."""
    model = zfkit.load_model(name, weights="none" if ":" in name else "DEFAULT", device="cpu")
    photos = zfkit.load_images("photos", limit=limit, progress=False)
    layers = list(model.conv_layers)
    inside = zfkit.deconv.fits_inside(model, layers, photos.size)
    top = shipped(model, photos, layers, inside=inside)
    top = top or zfkit.mine(model, photos, inside=inside, progress=False)
    before = resident()
    with tempfile.TemporaryDirectory() as folder:
        chosen: Maps = "all" if maps == "all" else int(maps)
        start, used = time.perf_counter(), time.process_time()
        index = zfkit.write_site(model, photos, Path(folder) / "site", top=top, maps=chosen, progress=False)
        seconds, highest = time.perf_counter() - start, resident()
        used = time.process_time() - used
        site = index.parent
        files = [p for p in site.rglob("*") if p.is_file()]
        first = [p for p in site.iterdir() if p.is_file()]
        return {
            "maps": _maps(site),
            "pictures": len(photos),
            "site": seconds,
            "used": used,
            "MB": sum(p.stat().st_size for p in files) / 1e6,
            "first": sum(p.stat().st_size for p in first) / 1e6,
            "usable": usable(index),
            "before": before,
            "peak": highest,
        }


def _maps(site: Path) -> int:
    """Feature maps that have a page."""
    fronts = [json.loads(file.read_text()) for file in site.rglob("front.json")]
    return sum(len(layer["channels"]) for layer in fronts)


def main() -> None:
    """Run each, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--maps", nargs="+", default=["all"], help="of each layer: a number, or all")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.maps[0], args.limit)))
        return
    rows = []
    limit = ["--limit", str(args.limit)] if args.limit else []
    for name in args.models:
        for maps in args.maps:
            command = [sys.executable, __file__, "--one", name, "--maps", maps, *limit]
            r = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            whole = [f"{r[n]:,.0f}" for n in ("maps", "pictures", "site", "used", "MB")]
            rows.append(
                [name, *whole, f"{r['first']:.2f}", *(f"{r[n]:,.0f}" for n in ("usable", "before", "peak"))]
            )
    print(f"{machine()}\n")
    head = "network | maps | pictures | site, s | CPU, s | MB | first page, MB | usable, ms | MiB before | MiB at most"
    table(head.split(" | "), rows)


if __name__ == "__main__":
    main()
