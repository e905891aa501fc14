"""One notebook over a grid of parameters.

In reading order: what a notebook takes (`parameters`) and what a grid asks for (`grid`), both in `values` as JSON has
them; one run (`execute`) and what a notebook gives back (`records`); the page and the table (`gallery`); all runs of a
sweep (`runs`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .grid import SweepRun, expand, read_grid
    from .parameters import Parameter, read_parameters
    from .records import record, recorded
    from .runs import SweepPlan, find_workers, plan_sweep, run_sweep, sweep

__all__ = [
    "Parameter", "SweepPlan", "SweepRun", "expand", "find_workers", "plan_sweep", "read_grid", "read_parameters",
    "record", "recorded", "run_sweep", "sweep",
]  # fmt: skip

# Files are imported when something of theirs is asked for: workers, and papermill with `engine`, do without torch.
_NAMES = {
    "grid": "SweepRun expand read_grid",
    "parameters": "Parameter read_parameters",
    "records": "record recorded",
    "runs": "SweepPlan find_workers plan_sweep run_sweep sweep",
}


def __getattr__(name: str) -> Any:
    for file, names in _NAMES.items():
        if name in names.split():
            return getattr(import_module(f".{file}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
