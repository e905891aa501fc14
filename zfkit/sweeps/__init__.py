"""One notebook over a grid of parameters.

In reading order: what a notebook takes (`parameters`) and what a grid asks for (`grid`), both in `values` as JSON has
them; one run (`execute`) and what a notebook gives back (`records`); the page and the table (`gallery`); all runs of a
sweep (`runs`).
"""

from .grid import SweepRun, expand, read_grid
from .parameters import Parameter, read_parameters
from .records import record, recorded
from .runs import SweepPlan, find_workers, plan_sweep, run_sweep, sweep

__all__ = [
    "Parameter", "SweepPlan", "SweepRun", "expand", "find_workers", "plan_sweep", "read_grid", "read_parameters",
    "record", "recorded", "run_sweep", "sweep",
]  # fmt: skip
