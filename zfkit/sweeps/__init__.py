"""One notebook over a grid of parameters.

In reading order: what a notebook takes and what a grid asks for (`parameters`), what a notebook gives back (`records`),
the page and the table (`gallery`), and the runs themselves (`runs`).
"""

from .parameters import Parameter, Run, expand, read_grid, read_parameters
from .records import record, recorded
from .runs import Plan, find_workers, plan_sweep, run_sweep, sweep

__all__ = [
    "Parameter",
    "Plan",
    "Run",
    "expand",
    "find_workers",
    "plan_sweep",
    "read_grid",
    "read_parameters",
    "record",
    "recorded",
    "run_sweep",
    "sweep",
]
