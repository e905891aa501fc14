"""Sweeps: what running notebooks side by side gains, and what a sweep of many runs costs besides its runs.

    python benchmarks/bench_sweeps.py [--runs 6]

Each of the light runs multiplies matrices for about half a second. The many runs are one executed notebook under a
thousand names, as a finished sweep leaves them, so that only reading and writing is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from distributed import LocalCluster
from nbformat.v4 import new_code_cell, new_notebook

from zfkit.sweeps import plan_sweep, run_sweep, sweep

WORK = """\
import numpy as np
a = np.random.default_rng(x).standard_normal((700, 700))
for _ in range(30):
    a = a @ a / np.linalg.norm(a)"""
MANY = 1000


def light(folder: Path) -> Path:
    """A notebook of half a second."""
    cells = [new_code_cell("x = 0  # seed", metadata={"tags": ["parameters"]}), new_code_cell(WORK)]
    path = folder / "light.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def side_by_side(runs: int, folder: Path) -> None:
    path, grid = light(folder), {"x": list(range(runs))}
    cores = os.cpu_count() or 1
    for jobs in (1, cores):
        out = folder / f"jobs{jobs}"
        took = seconds(lambda out=out, jobs=jobs: sweep(path, grid, out, jobs=jobs, progress=False))  # type: ignore[misc]
        print(f"{runs} runs, {jobs} at a time here:               {took:6.1f} s")
    with LocalCluster(n_workers=cores, threads_per_worker=1, dashboard_address=None) as cluster:
        took = seconds(
            lambda: sweep(path, grid, folder / "dask", scheduler=cluster.scheduler_address, progress=False)
        )
        print(f"{runs} runs on a Dask cluster of {cores} workers here: {took:6.1f} s")


def many(folder: Path) -> None:
    path, grid, out = light(folder), {"x": list(range(MANY))}, folder / "many"
    first = plan_sweep(path, {"x": [0]}, out)
    run_sweep(first, progress=False)
    text = (out / "x=0.ipynb").read_text()
    for run in plan_sweep(path, grid, out).todo:
        done = json.loads(text)
        done["metadata"]["zfkit"] |= {"run": run.name, "parameters": run.parameters, "key": _key(first, run)}
        (out / f"{run.name}.ipynb").write_text(json.dumps(done))
    plan = plan_sweep(path, grid, out)
    assert not plan.todo
    print(
        f"planning with {MANY} runs done:                {seconds(lambda: plan_sweep(path, grid, out)):6.2f} s"
    )
    print(
        f"table and page of {MANY} runs:                 {seconds(lambda: run_sweep(plan, progress=False)):6.2f} s"
    )


def _key(plan: Any, run: Any) -> str:
    from zfkit.sweeps import runs

    return runs._key(run, plan.code)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=6, help="light runs (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        side_by_side(args.runs, Path(temporary))
        many(Path(temporary))
