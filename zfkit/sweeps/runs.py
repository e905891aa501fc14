"""One notebook over a grid of parameters, here or on a cluster: `sweep`.

Each run is the notebook with its parameters put in, executed in a kernel of its own. What comes back is
written by this process alone, whole or not at all; the parameters, the notebook's code and all that is known of
the run lie in its metadata. So a sweep needs no record besides its notebooks: the same command reads from them
which runs are done, and does the rest.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..batching import steps
from ..checks import as_path, expect_extra, number, whole_number, writable_folder
from ..checksums import write_table
from ..cluster import connected
from ..errors import WriteError, ZfkitError
from ..files import expect_own, only_writer, write_whole
from ..parent import end_with
from .execute import execute
from .gallery import KEY, Outcome, forget_figures, outcome_of, results, write_gallery
from .grid import SweepRun, expand, read_grid
from .parameters import TAG, read_parameters
from .values import canonical

if TYPE_CHECKING:
    import pandas as pd

Task = tuple[str, str, dict[str, Any], str, float]  # arguments of `execute`, but for the threads
MEMORY_PER_RUN = 2e9  # bytes; a kernel with torch and a network in it


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that was checked, before anything runs.

    Attributes:
        notebook: its file.
        runs: all of them, in the grid's order.
        done: names of those that are there already, finished with this code and these parameters.
        out: folder of the results.
        others: notebooks of earlier sweeps in that folder that are none of these runs.
        source: the notebook, as nbformat reads it.
        code: digest of its code.
    """

    notebook: Path
    runs: list[SweepRun]
    done: frozenset[str]
    out: Path
    others: int
    source: Any = field(repr=False)
    code: str

    @property
    def todo(self) -> list[SweepRun]:
        """Runs that are missing, failed, or belong to other parameters or an older notebook."""
        return [run for run in self.runs if run.name not in self.done]


def sweep(
    notebook: str | Path,
    grid: Any,
    out: str | Path = "runs",
    *,
    jobs: int | None = None,
    scheduler: str | None = None,
    timeout: float = 3600,
    threads: int | None = None,
    again: bool = False,
    max_runs: int = 1000,
    progress: bool = True,
) -> pd.DataFrame:
    """Run one notebook with each set of parameters of a grid; calling it again does what is missing.

    Args:
        notebook: an .ipynb with a cell tagged "parameters".
        grid: a YAML file, a mapping of names to lists of values (every combination), or a list of mappings.
        out: folder for one executed notebook a run, index.html and results.parquet.
        jobs: how many at a time (default: what cores and memory allow); of no meaning with a scheduler.
        scheduler: address of a Dask scheduler, as "tcp://10.0.0.1:8786"; one notebook for each thread of its workers.
        timeout: the longest that one run may take, in seconds.
        threads: for each run (default: the cores divided by the runs at a time).
        again: run also what is done.
        max_runs: refuse a larger grid.

    Text between ``<!-- default-run -->`` and ``<!-- /default-run -->`` is left out with other parameters than its own.
    Relative paths among the parameters are seen from the current folder, also by the workers of a cluster.

    Returns the table of results.parquet, one row a run: run, its parameters, what the notebook recorded
    (`zfkit.record`), status ("finished", "failed" or "missing"), error, seconds, notebook. A run that fails
    stays in `out` with its traceback as NAME.failed.ipynb, and the others go on.

    Raises ZfkitError, before anything runs, for parameters that the notebook does not take, and where `out`
    cannot be written or the scheduler not be reached.
    """
    plan = plan_sweep(notebook, grid, out, again=again, max_runs=max_runs)
    return run_sweep(
        plan, jobs=jobs, scheduler=scheduler, timeout=timeout, threads=threads, progress=progress
    )


def plan_sweep(
    notebook: str | Path, grid: Any, out: str | Path = "runs", *, again: bool = False, max_runs: int = 1000
) -> SweepPlan:
    """Check the notebook, the grid and what is in `out` already; nothing runs and nothing is written.

    Raises ZfkitError as `sweep` does.
    """
    expect_extra("notebooks", "a sweep", "papermill", "nbformat", "yaml", "joblib")
    path = as_path(notebook)
    source = read_notebook(path)
    parameters = read_parameters(source, path.name)
    try:
        runs = expand(read_grid(grid) if isinstance(grid, str | Path) else grid, parameters, max_runs)
    except ZfkitError as error:
        raise ZfkitError(f"{error} (parameters of {path.name})") from None
    folder = as_path(out)
    if folder.exists() and not folder.is_dir():
        raise ZfkitError(f"{str(out)!r} is a file; give a folder to write to")
    expect_own(folder / "index.html", folder / "results.parquet")
    code = _code_digest(source)
    files = {file.name: file for file in folder.glob("*.ipynb")} if folder.is_dir() else {}
    done = set()
    for run in runs:
        for name in (f"{run.name}.ipynb", f"{run.name}.failed.ipynb"):
            if file := files.pop(name, None):
                executed = _read_executed(file)
                if executed is None or file.samefile(path):
                    raise ZfkitError(
                        f"{str(file)!r} is no notebook that this sweep left, and would be overwritten: move it away"
                    )
                held = executed.metadata[KEY]
                if held["status"] == "finished" and held["key"] == _key(run, code) and not again:
                    done.add(run.name)
    others = sum(_read_executed(file) is not None for file in files.values())
    return SweepPlan(path, runs, frozenset(done), folder, others, source, code)


def run_sweep(
    plan: SweepPlan,
    *,
    jobs: int | None = None,
    scheduler: str | None = None,
    timeout: float = 3600,
    threads: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Do what a plan leaves to do; arguments and result as of `sweep`."""
    import nbformat
    import pyarrow as pa

    jobs = None if jobs is None else whole_number(jobs, "jobs")
    threads = None if threads is None else whole_number(threads, "threads, of each run,")
    timeout = number(timeout, "timeout, in seconds,", low=1)
    todo = {run.name: run for run in plan.todo}
    outcomes: dict[str, Outcome] = {}
    refusal = ZfkitError(f"another sweep is writing to {str(plan.out)!r}: wait for it, or give another --out")
    with only_writer(writable_folder(plan.out) / ".sweep.lock", refusal):
        for run in plan.runs:
            if run.name in plan.done:
                outcomes[run.name] = outcome_of(run, _read_executed(plan.out / f"{run.name}.ipynb"), plan.out)
        source, folder = nbformat.writes(plan.source), str(Path.cwd())
        tasks = [(name, source, run.parameters, folder, timeout) for name, run in todo.items()]
        try:
            with steps(len(tasks), "sweep", "run", progress, shorter="a smaller grid takes less") as done:
                for name, text, facts in _executed(tasks, jobs, scheduler, threads):
                    outcomes[name] = _keep(plan, todo[name], text, facts)
                    done(1)
        finally:  # also after Ctrl-C: what is finished is gathered and can be looked at
            in_order = [outcomes.get(run.name) or Outcome(run, "missing") for run in plan.runs]
            table = results(in_order)
            write_table(plan.out / "results.parquet", pa.Table.from_pandas(table, preserve_index=False))
            title = _title(plan.source) or plan.notebook.stem
            write_gallery(plan.out / "index.html", title, plan.notebook.name, in_order)
    return table


# ------------------------------------------------------------------------------------------- several at a time


def _executed(
    tasks: Sequence[Task], jobs: int | None, scheduler: str | None, threads: int | None
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Results of `execute` in the order in which runs end."""
    import joblib

    if not tasks:
        return
    if scheduler is None:
        cores = joblib.cpu_count()
        jobs = min(jobs or _default_jobs(cores), len(tasks))
        each = threads or max(1, cores // jobs)
        parallel = joblib.Parallel(
            jobs, batch_size=1, return_as="generator_unordered", initializer=end_with, initargs=(os.getpid(),)
        )
        yield from parallel(joblib.delayed(execute)(*task, each) for task in tasks)
        return
    with connected(scheduler) as client, joblib.parallel_config(backend="dask", client=client):
        slots = _slots(client)
        parallel = joblib.Parallel(batch_size=1, pre_dispatch="all", return_as="generator_unordered")
        try:
            yield from parallel(joblib.delayed(_execute_on_worker)(task, threads, slots) for task in tasks)
        except Exception as error:
            raise ZfkitError(
                f"the cluster gave up ({type(error).__name__}: {error}); the same command goes on with the rest"
            ) from error


def _execute_on_worker(
    task: Task, threads: int | None, slots: Mapping[str, int]
) -> tuple[str, str, dict[str, Any]]:
    """The workers of one machine share its cores."""
    import joblib
    from distributed import get_worker

    worker = get_worker()
    at_a_time = max(slots.get(_host(worker.address), 0), worker.state.nthreads)
    return execute(*task, threads or max(1, joblib.cpu_count() // at_a_time))


def find_workers(address: str) -> dict[str, int]:
    """How many runs each machine of a Dask scheduler takes at a time. Raises ZfkitError as `run_sweep` does."""
    with connected(address) as client:
        return _slots(client)


def _slots(client: Any) -> dict[str, int]:
    """Threads of all workers, by machine."""
    slots: Counter[str] = Counter()
    for worker, count in client.nthreads().items():
        slots[_host(worker)] += count
    return dict(slots)


def _host(address: str) -> str:
    return address.rpartition("://")[2].rpartition(":")[0]


def _default_jobs(cores: int) -> int:
    """As many runs as there are cores, where memory allows."""
    try:
        import psutil
    except ImportError:
        return cores
    return max(1, min(cores, int(psutil.virtual_memory().available / MEMORY_PER_RUN)))


# ------------------------------------------------------------------------------------------- notebooks in files


def read_notebook(path: Path) -> Any:
    """As nbformat has it. Raises ZfkitError for what is no Python notebook."""
    import nbformat

    if not path.is_file():
        raise ZfkitError(f"there is no notebook {str(path)!r}; check the path")
    try:
        notebook = nbformat.read(path, as_version=4)
        language = notebook.metadata.get("kernelspec", {}).get("language", "python")
    except OSError as error:
        raise ZfkitError(f"cannot read {path.name}: {error.strerror or error}") from None
    except Exception as error:  # nbformat lets out whatever a strange file brings about
        raise ZfkitError(
            f"{path.name} is no Jupyter notebook ({str(error).partition(chr(10))[0][:100]}); does JupyterLab open it?"
        ) from None
    if language != "python":
        raise ZfkitError(f"{path.name} is a notebook in {language}; zfkit runs Python")
    return notebook


def _read_executed(file: Path) -> Any:
    """A notebook that a sweep wrote, or None."""
    import nbformat

    try:  # without nbformat's validation, which takes ten times as long
        notebook = nbformat.v4.reads_json(file.read_text(encoding="utf-8"))
        held = notebook.metadata[KEY]
        return notebook if {"key", "status"} <= set(held) and notebook.cells is not None else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _code_digest(notebook: Any) -> str:
    """Changes with the code; prose, outputs and the parameters' defaults have no part in it."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    given = {TAG, "injected-parameters"}
    code = [cell.source for cell in cells if not given & set(cell.metadata.get("tags") or ())]
    return hashlib.sha256(canonical(code).encode()).hexdigest()[:16]


def _key(run: SweepRun, code: str) -> str:
    """What a finished run has to agree in to count as this one."""
    return hashlib.sha256(canonical([run.parameters, code]).encode()).hexdigest()[:16]


def _keep(plan: SweepPlan, run: SweepRun, text: str, facts: dict[str, Any]) -> Outcome:
    """Write an executed notebook with its provenance, and its pictures."""
    import nbformat

    notebook = nbformat.reads(text, as_version=4)
    notebook.metadata[KEY] = {
        "key": _key(run, plan.code), "run": run.name, "notebook": plan.notebook.name, "code": plan.code,
        "parameters": run.parameters, "given": sorted(run.given), "seed": run.parameters.get("seed"), **facts,
    }  # fmt: skip
    finished, failed = plan.out / f"{run.name}.ipynb", plan.out / f"{run.name}.failed.ipynb"
    file, stale = (finished, failed) if facts["status"] == "finished" else (failed, finished)
    forget_figures(run.name, plan.out)
    write_whole(file, lambda part: nbformat.write(notebook, part))
    try:
        stale.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(stale, error) from error
    return outcome_of(run, notebook, plan.out)


def _title(notebook: Any) -> str:
    """A notebook's first heading."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (heading := re.search(r"^#\s+(.+)$", cell.source, re.M)):
            return heading[1].strip()
    return ""
