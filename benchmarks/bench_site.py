"""A site of every feature map: how long it takes from a mined table, how large it is, and how much memory it needs.

    .venv/bin/python benchmarks/bench_site.py [--models zfnet64 squeezenet1_1 torchvision:resnet18] [--limit N]

Each network in a process of its own, on the bundled photographs; torchvision's networks have random weights. Memory
is the process's peak, the network and the pictures included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, table

import zfkit

MODELS = ["zfnet64", "squeezenet1_1", "torchvision:resnet18"]


def one(name: str, limit: int | None) -> dict[str, float]:
    """Mine, then time the rest."""
    model = zfkit.load_model(name, weights="none" if ":" in name else "DEFAULT", device="cpu")
    photos = zfkit.load_images("photos", limit=limit, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "site" / model.name
        inside = zfkit.deconv.fits_inside(model, model.conv_layers, photos.size)
        start = time.perf_counter()
        top = zfkit.mine(model, photos, inside=inside, progress=False)
        mined = time.perf_counter() - start
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        zfkit.write_site(model, photos, Path(folder) / "site", top=top, progress=False)
        files = [p for p in (Path(folder) / "site").rglob("*") if p.is_file()]
        first = [p for p in (Path(folder) / "site").iterdir() if p.is_file()]
        assert part.is_dir()
        return {
            "maps": sum(len(layer.max) for layer in top.layers.values()),
            "pictures": len(photos),
            "mine": mined,
            "site": time.perf_counter() - start,
            "MB": sum(p.stat().st_size for p in files) / 1e6,
            "first": sum(p.stat().st_size for p in first) / 1e6,
            "before": before / 1024,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def main() -> None:
    """Run each, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.limit)))
        return
    rows = []
    for name in args.models:
        command = [
            sys.executable,
            __file__,
            "--one",
            name,
            *(["--limit", str(args.limit)] if args.limit else []),
        ]
        r = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        numbers = [f"{r[n]:.0f}" for n in ("maps", "pictures", "mine", "site", "MB")]
        rows.append([name, *numbers, f"{r['first']:.2f}", f"{r['before']:.0f}", f"{r['peak']:.0f}"])
    print(f"{machine()}\n")
    head = "network | maps | pictures | mine, s | site, s | MB | first page, MB | peak after mining, MiB | peak, MiB"
    table(head.split(" | "), rows)


if __name__ == "__main__":
    main()
