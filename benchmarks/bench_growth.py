"""How time and memory grow with the number of pictures, of feature maps, and with the pictures' side.

    .venv/bin/python benchmarks/bench_growth.py

zfnet64 on noise pictures. Each line is a process of its own; memory is its peak above what it held when the
network and the pictures were loaded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from common import machine, resident, table
from PIL import Image

import zfkit
from zfkit.images.imageset import ImageSet
from zfkit.topk.patches import project_many

CASES = (
    [(n, 64, 224) for n in (100, 300, 1000)]
    + [(100, m, 224) for m in (256, 1376)]
    + [(100, 64, s) for s in (64, 448)]
)
DEEP = [("resnet50", 3), ("resnet50", 24), ("densenet121", 24)]


def one(count: int, maps: int, side: int) -> dict[str, float]:
    """Mine all layers, then project the top 9 of so many maps spread over them."""
    model = zfkit.load_model("zfnet64", device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (16, side, side, 3), dtype=np.uint8)
    pictures = ImageSet(
        lambda i: (Image.fromarray(pixels[i % 16] ^ (i % 251)), -1), [str(i) for i in range(count)], size=side
    )
    before = resident()
    start = time.perf_counter()
    top = zfkit.mine(model, pictures, progress=False)
    mined, memory = time.perf_counter() - start, resident() - before
    share = {layer: range(maps * len(top[layer].value) // 1376) for layer in model.conv_layers}
    start = time.perf_counter()
    found = project_many(model, pictures, top, share)
    projected = time.perf_counter() - start
    result = sum(p.projection.nbytes + p.photo.nbytes for p in found.values()) / 2**20
    return {
        "mine": mined,
        "mine memory": memory,
        "project": projected,
        "project memory": resident() - before,
        "result": result,
    }


def of_deep_layers(name: str, maps: int) -> dict[str, float]:
    """An atlas of so many maps of a network's last three convolutions, whose units see more than the picture."""
    model = zfkit.load_model(f"torchvision:{name}", weights=None, device="cpu")
    photos = zfkit.load_images("photos", limit=40, progress=False)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        zfkit.write_atlas(
            model, photos, folder, layers=list(model.conv_layers)[-3:], maps=maps, progress=False
        )
    return {"seconds": time.perf_counter() - start, "peak": resident()}


def main() -> None:
    """Run the cases, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    case = parser.parse_args().case
    if case:
        values = json.loads(case)
        print(json.dumps(of_deep_layers(*values) if isinstance(values[0], str) else one(*values)))
        return
    rows = []
    for count, maps, side in CASES:
        r = in_a_process([count, maps, side])
        inputs = [str(count), str(maps), str(side)]
        mining = [f"{r['mine']:.1f}", f"{r['mine memory']:.0f}"]
        rows.append(
            [*inputs, *mining, f"{r['project']:.1f}", f"{r['project memory']:.0f}", f"{r['result']:.0f}"]
        )
    print(f"{machine()}\n")
    table(
        [
            "pictures",
            "maps",
            "side, px",
            "mine, s",
            "peak, MiB",
            "project, s",
            "peak, MiB",
            "of which result",
        ],
        rows,
    )
    rows = []
    for name, maps in DEEP:
        r = in_a_process([name, maps])
        rows.append([name, str(maps), f"{r['seconds']:.1f}", f"{r['peak']:.0f}"])
    print()
    table(["network, last three convolutions", "maps", "write_atlas, s", "peak of the process, MiB"], rows)


def in_a_process(case: list[Any]) -> Any:
    """What a case measures."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
