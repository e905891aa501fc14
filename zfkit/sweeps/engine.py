"""papermill's own way in: ``papermill --engine zfkit`` leaves out what a notebook says of its default run.

papermill imports this, and so all that is imported here, whenever it is imported itself.
"""

from __future__ import annotations

from typing import Any

from papermill.engines import NBClientEngine

from .execute import leave_out_default_run


class SweepEngine(NBClientEngine):
    """papermill's usual engine, for notebooks whose text quotes the run with their own parameters."""

    @classmethod
    def execute_notebook(cls, nb: Any, kernel_name: str, **options: Any) -> Any:
        """Execute `nb`, of nbformat and with parameters put in. Returns it with its outputs."""
        leave_out_default_run(nb, nb.metadata.papermill.get("parameters", {}))
        return super().execute_notebook(nb, kernel_name, **options)
