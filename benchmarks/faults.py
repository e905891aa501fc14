"""What `zfkit.diagnose` finds of faults planted on purpose, and what it takes for one: hits and false alarms.

.venv/bin/python benchmarks/faults.py [--images photos] [--networks zfnet64 alexnet64] [--seeds 3] [--limit 256]

Faults are planted in the weights of the networks, and in trainings of narrow ones on `textures` (24 to 64 maps,
40 steps, seconds each). Swapped colours can only be seen on pictures like those of the training, which the bundled
photographs are not: give ``--images "parquet:PATH"`` of Tiny ImageNet's validation set for that row.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from common import machine, table

import zfkit
from zfkit.experiments.faults import PLANTS, find_faults
from zfkit.nets.paper import ARCHITECTURES


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", default="photos", help="as for zfkit.load_images")
    parser.add_argument("--networks", nargs="*", default=["zfnet64", "alexnet64"])
    parser.add_argument("--plants", nargs="*", choices=list(PLANTS), help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=256, help="pictures for each diagnosis")
    options = parser.parse_args()
    networks = []
    for name in options.networks:
        model = zfkit.load_model(name)
        networks.append((model, zfkit.load_images(options.images, size=model.input_size, progress=False)))
    textures = zfkit.load_images("textures", size=64, limit=1024, progress=False)
    widths = (24, 48, 64, 64, 48)
    narrow = [
        (replace(ARCHITECTURES[name], widths=widths, hidden=128), textures)
        for name in ("zfnet64", "alexnet64")
    ]
    found = find_faults(
        networks,
        options.plants,
        seeds=range(options.seeds),
        narrow=narrow,
        limit=options.limit,
        progress=True,
    )
    print(machine())
    print(f"{options.limit} pictures of {options.images}; narrow networks on textures\n")
    rows = [
        [r.network, r.fault, f"{r.found} of {r.planted}" if r.planted else "", str(r.false_alarms), r.which]
        for r in found.itertuples()
    ]
    table(["network", "planted", "found", "false alarms", "which"], rows)


if __name__ == "__main__":
    main()
