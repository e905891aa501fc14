"""What `zfkit.diagnose` finds of faults planted on purpose, and what it takes for one: hits and false alarms.

.venv/bin/python benchmarks/faults.py [--images photos] [--networks zfnet64 alexnet64] [--seeds 3] [--limit 256]

Faults (tests/planted.py) are planted in the weights of the networks, and in trainings of narrow ones on `textures` (24
to 64 maps, 40 steps, seconds each). Swapped colours can only be seen on pictures like those of the training, which the
bundled photographs are not: give ``--images "parquet:PATH"`` of Tiny ImageNet's validation set for that row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from common import machine, table

import zfkit
from zfkit.health import Report
from zfkit.nets.paper import ARCHITECTURES

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from planted import PLANTS, TRAININGS, Planted, plant, train_badly

CHOOSING = ("zeroed filters", "one filter x20", "duplicated filters")  # others leave no choice: planted once


def row(
    network: str, name: str, tries: Iterable[tuple[Planted, Report]], before: Report | None = None
) -> list[str]:
    """Hits and false alarms of one fault in one network."""
    tries = list(tries)
    found = sum(planted.found_in(report) for planted, report in tries)
    false = [alarm for planted, report in tries for alarm in planted.false_alarms(report, before)]
    return [network, name, f"{found} of {len(tries)}", str(len(false)), ", ".join(sorted(set(false)))]


def main() -> None:
    """Plant, diagnose, count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", default="photos", help="as for zfkit.load_images")
    parser.add_argument("--networks", nargs="*", default=["zfnet64", "alexnet64"])
    parser.add_argument("--plants", nargs="*", choices=[*PLANTS, *TRAININGS], default=[*PLANTS, *TRAININGS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=256, help="pictures for each diagnosis")
    options = parser.parse_args()
    rows = []
    for name in options.networks:
        model = zfkit.load_model(name)
        images = zfkit.load_images(options.images, size=model.input_size, progress=False)
        before = zfkit.diagnose(model, images, limit=options.limit)
        alarms = sorted({f"{f.layer}: {f.fault}".removeprefix(": ") for f in before.alarms})
        rows.append([name, "none", "", str(len(before.alarms)), ", ".join(alarms)])
        for fault in [p for p in options.plants if p in PLANTS]:
            networks = [
                plant(model, fault, seed) for seed in range(options.seeds if fault in CHOOSING else 1)
            ]
            tries = [(p, zfkit.diagnose(p.model, images, limit=options.limit)) for p in networks]
            rows.append(row(name, fault, tries, before))
    textures = zfkit.load_images("textures", size=64, limit=1024, progress=False)
    for name in options.networks:
        narrow = replace(ARCHITECTURES[name], widths=(24, 48, 64, 64, 48), hidden=128)
        for fault in [p for p in options.plants if p in TRAININGS]:
            networks = [train_badly(narrow, textures, fault, seed=seed) for seed in range(options.seeds)]
            tries = [(p, zfkit.diagnose(p.model, textures, limit=options.limit)) for p in networks]
            rows.append(row(f"narrow {name}", fault, tries))
    print(machine())
    print(f"{options.limit} pictures of {options.images}; narrow networks on textures\n")
    table(["network", "planted", "found", "false alarms", "which"], rows)


if __name__ == "__main__":
    main()
