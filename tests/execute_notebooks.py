"""Run notebooks at their default parameters and keep the outputs: ``python execute_notebooks.py NOTEBOOK ...``.

They run with one torch thread, as `make test` compares them: on two, sums round otherwise than on one. What changes
from run to run (times, widget state) is taken out, so that running twice changes nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from zfkit.figures.charts import add_pictures

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"
LARGEST = 3 * 2**20  # bytes, as GitHub still shows a notebook


def execute(path: Path) -> None:
    """Execute one notebook in its own folder and write it back, whole or not at all."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,  # into how many pieces a kernel's output falls is chance
    )
    client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})
    if why := add_pictures(notebook):
        print(f"{path.name}: its charts have no PNG beside them. {why}")
    notebook.metadata = METADATA
    for number, cell in enumerate(notebook.cells):
        cell.metadata.pop("execution", None)
        for i, output in enumerate(cell.get("outputs", [])):
            # ids are drawn anew in each run; no state is kept under them
            if WIDGET in output.get("data", {}):
                output.data[WIDGET]["model_id"] = f"{number:016x}{i:016x}"
    part = path.with_suffix(".part")
    nbformat.write(notebook, part)
    size = part.stat().st_size
    if size >= LARGEST:
        raise SystemExit(f"{part} has {size / 2**20:.1f} MiB, 3 is the most: make its pictures smaller")
    part.replace(path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"executing {name} ...", flush=True)
        execute(Path(name))
