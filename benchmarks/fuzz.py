"""Throw random inputs at everything that reads what others wrote, and count: used, refused, failed.

    .venv/bin/python benchmarks/fuzz.py [--seconds 60] [--targets images parquet ...] [--seed 0]

Targets and what is thrown: tests/fuzzing.py. Each target runs in a process of its own with at most 8 GiB of address
space beyond what it begins with; the number of the input at hand is in a file, so that a process that crashes or hangs
is told with its input as well. An input is made again by its number: --targets NAME --seed NUMBER --seconds 0.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from common import machine, table

TESTS = Path(__file__).resolve().parents[1] / "tests"
LONGEST = 60  # seconds that one input may take
SLOW = 5  # seconds from which it is told


def worker(name: str, seconds: float, seed: int, folder: Path) -> None:
    """Throw until the time is over; what happened goes to standard output as JSON."""
    sys.path.insert(0, str(TESTS))
    import torch
    from fuzzing import TARGETS  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    target = TARGETS[name](folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 8 * 2**30, resource.RLIM_INFINITY))

    def too_long(*_: object) -> None:
        raise TimeoutError(f"not done after {LONGEST} s")

    signal.signal(signal.SIGALRM, too_long)
    counts: collections.Counter[str] = collections.Counter()
    failures: dict[str, list[object]] = {}
    slowest = (0.0, 0)
    number, end = seed, time.monotonic() + seconds
    while number == seed or time.monotonic() < end:
        (folder / "now").write_text(str(number))
        given = target.draw(random.Random(number))
        began = time.monotonic()
        signal.alarm(LONGEST)
        try:
            counts[target.outcome(given)] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            counts["failed"] += 1
            where = [
                f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)
            ][-3:]
            kind = f"{type(error).__name__} at {where[-1]}"
            failures.setdefault(kind, [number, str(error)[:200], where])
        finally:
            signal.alarm(0)
        slowest = max(slowest, (time.monotonic() - began, number))
        number += 1
    print(json.dumps({"counts": counts, "failures": failures, "slowest": slowest}))


def main() -> None:
    """One process for each target, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--targets", nargs="+", default=[
        "images", "parquet", "checkpoints", "onnx", "tables", "specs", "cli", "grids",
    ])  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.targets[0], args.seconds, args.seed, args.worker)
        return
    rows, failed = [], 0
    for name in args.targets:
        with tempfile.TemporaryDirectory() as temporary:
            command = [
                sys.executable,
                __file__,
                "--worker",
                temporary,
                "--targets",
                name,
                "--seed",
                str(args.seed),
            ]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            started = time.monotonic()
            done = subprocess.Popen(
                [*command, "--seconds", str(args.seconds)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, env=environment,
            )  # fmt: skip
            try:
                said = done.communicate(timeout=args.seconds + 3 * LONGEST)[0]
            except subprocess.TimeoutExpired:
                done.kill()
                done.wait()
                said = ""
            took = time.monotonic() - started
            if done.returncode:
                at = (Path(temporary) / "now").read_text()
                print(f"{name}: the process ended with {done.returncode} at input {at}")
                failed += 1
                continue
        found = json.loads(said.splitlines()[-1])
        counts = found["counts"]
        for kind, (number, error, where) in found["failures"].items():
            print(f"{name}: input {number}: {kind}: {error} ({' < '.join(reversed(where))})")
        failed += len(found["failures"])
        slow = (
            f"{found['slowest'][0]:.1f} s (input {found['slowest'][1]})"
            if found["slowest"][0] > SLOW
            else "-"
        )
        total = sum(counts.values())
        rows.append([name, f"{total:,}", f"{counts.get('ok', 0):,}", f"{counts.get('refused', 0):,}",
                     str(counts.get("failed", 0)), f"{took:.0f}", slow])  # fmt: skip
    print(f"\n{machine()}; seed {args.seed}\n")
    table(["target", "inputs", "used", "refused", "failed", "seconds", "slower than 5 s"], rows)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
