"""One notebook over a grid of parameters, here or on a cluster: `sweep`.

Each run is the notebook with its parameters put in, executed in a kernel of its own. What comes back is
written by this process alone, whole or not at all; the parameters, the notebook's code and all that is known of
the run lie in its metadata. So a sweep needs no record besides its notebooks: the same command reads from them
which runs are done, and does the rest.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from tqdm.auto import tqdm

from ..cluster import connected
from ..errors import ZfkitError
from ..files import only_writer, write_whole
from .gallery import Figure, Outcome, results, write_gallery
from .parameters import TAG, Run, canonical, expand, read_grid, read_parameters
from .records import recorded

if TYPE_CHECKING:
    import pandas as pd

KEY = "zfkit"  # where in a notebook's metadata the provenance lies
ATTEMPTS = 3  # at starting a kernel
KEY_FIGURE = "key-figure"  # tag of cells whose pictures the gallery shows; without any, it shows all
LIBRARIES = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")  # each reads its number of threads from NAME_NUM_THREADS
MEMORY_PER_RUN = 2e9  # bytes; a kernel with torch and a network in it
PICTURES = {"image/png": (".png", b"\x89PNG\r\n\x1a\n"), "image/jpeg": (".jpg", b"\xff\xd8\xff")}
VERSIONS = ("torch", "torchvision", "numpy", "pandas", "scikit-image", "nbclient", "ipykernel")
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Plan:
    """A sweep that was checked, before anything runs.

    Attributes:
        notebook: its file.
        runs: all of them, in the grid's order.
        done: names of those that are there already, finished with this code and these parameters.
        out: folder of the results.
        others: notebooks of earlier sweeps in that folder that are none of these runs.
    """

    notebook: Path
    runs: list[Run]
    done: frozenset[str]
    out: Path
    others: int
    _cells: Any
    _digest: str

    @property
    def todo(self) -> list[Run]:
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
        progress: show a bar.

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
) -> Plan:
    """Check the notebook, the grid and what is in `out` already; nothing runs and nothing is written.

    Raises ZfkitError as `sweep` does.
    """
    path = Path(notebook).expanduser()
    cells = _read(path)
    parameters = read_parameters(cells, path.name)
    try:
        runs = expand(read_grid(grid) if isinstance(grid, str | Path) else grid, parameters, max_runs)
    except ZfkitError as error:
        raise ZfkitError(f"{error} (parameters of {path.name})") from None
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ZfkitError(f"{str(out)!r} is a file; give a folder to write to")
    digest = _digest(cells)
    found = {file.name: file for file in folder.glob("*.ipynb")} if folder.is_dir() else {}
    done = set()
    for run in runs:
        for name in (f"{run.name}.ipynb", f"{run.name}.failed.ipynb"):
            if file := found.pop(name, None):
                known = _known(file)
                if known is None:
                    raise ZfkitError(
                        f"{str(file)!r} is no notebook of a sweep, and would be overwritten: move it away"
                    )
                held = known.metadata[KEY]
                if held.get("status") == "finished" and held.get("key") == _key(run, digest) and not again:
                    done.add(run.name)
    others = sum(_known(file) is not None for file in found.values())
    return Plan(path, runs, frozenset(done), folder, others, cells, digest)


def run_sweep(
    plan: Plan,
    *,
    jobs: int | None = None,
    scheduler: str | None = None,
    timeout: float = 3600,
    threads: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Do what a plan leaves to do; arguments and result as of `sweep`."""
    import nbformat

    for name, value in (("jobs", jobs), ("threads", threads), ("timeout", timeout)):
        if value is not None and value < 1:
            raise ZfkitError(f"{name} must be at least 1, not {value}")
    outcomes: dict[str, Outcome] = {}
    todo = {run.name: run for run in plan.todo}
    with _only_writer(plan.out):
        for run in plan.runs:
            if run.name in plan.done:
                outcomes[run.name] = _outcome(run, _known(plan.out / f"{run.name}.ipynb"), plan.out)
        tasks = [
            (run.name, nbformat.writes(_with_parameters(plan._cells, run)), str(Path.cwd()), float(timeout))
            for run in todo.values()
        ]
        try:
            with tqdm(
                total=len(plan.runs), initial=len(plan.done), desc="sweep", unit="run", disable=not progress
            ) as bar:
                failed = 0
                for name, text, told in _all(tasks, jobs, scheduler, threads):
                    outcomes[name] = _keep(plan, todo[name], text, told)
                    failed += told["status"] == "failed"
                    bar.set_postfix_str(f"{failed} failed" if failed else "")
                    bar.update()
        finally:  # also after Ctrl-C: what is finished is gathered and can be looked at
            whole = [outcomes.get(run.name) or Outcome(run, "missing") for run in plan.runs]
            table = results(whole)
            title = _title(plan._cells) or plan.notebook.stem
            try:
                write_whole(plan.out / "results.parquet", lambda part: table.to_parquet(part, index=False))
                write_gallery(plan.out / "index.html", title, plan.notebook.name, whole)
            except OSError as error:
                raise _cannot_write(plan.out, error) from error
    return table


# ----------------------------------------------------------------------------------------- one run


def execute(
    name: str, text: str, folder: str, timeout: float, threads: int
) -> tuple[str, str, dict[str, Any]]:
    """Execute a notebook, given as JSON, in a kernel of its own -> name, the executed one, what is known of it.

    Whatever goes wrong is part of the result. Neither the environment nor the folder of this process is
    touched, so that several runs may share a process.
    """
    import nbformat

    notebook = nbformat.reads(text, as_version=4)
    start, started = time.monotonic(), datetime.now(timezone.utc)
    environment = os.environ | {f"{library}_NUM_THREADS": str(threads) for library in LIBRARIES}
    for _ in range(ATTEMPTS):
        stopped, error = _attempt(notebook, start + timeout, env=environment, cwd=folder)
        # Two kernels that start at once may pick the same port; then one of them never answers.
        if not isinstance(error, _NoKernel):
            break
    if isinstance(error, TimeoutError):
        error = TimeoutError(f"the run took longer than {timeout:g} s")
    if error is not None:
        kind = type(error).__name__.lstrip("_")
        trace = [f"{kind}: {error}"]
        notebook.cells[stopped].outputs.append(
            nbformat.v4.new_output("error", ename=kind, evalue=str(error), traceback=trace)
        )
    told = {
        "status": "finished" if stopped is None else "failed",
        "stopped_at": stopped,  # index of the cell with the traceback
        "error": "" if stopped is None else _error(notebook, stopped)[0],
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - start, 2),
        "threads": threads,
        "versions": versions(),
    }
    return name, nbformat.writes(notebook), told


class _NoKernel(Exception):
    """The kernel ended before the first cell."""


def _attempt(notebook: Any, deadline: float, **start: Any) -> tuple[int | None, Exception | None]:
    """Execute in place -> index of the code cell that stopped it, and the error where the cell does not hold it."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    begun: list[int] = []
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        # What is left for the whole run, rather than the same again for each cell.
        timeout_func=lambda cell: max(1, int(deadline - time.monotonic())),
        startup_timeout=120,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        on_cell_start=lambda cell, cell_index: begun.append(cell_index),
    )
    if not Path(start["cwd"]).is_dir():
        return code[0], FileNotFoundError(
            f"this worker has no folder {start['cwd']}; start workers where it exists, as on a shared file system"
        )
    with (
        tempfile.TemporaryFile() as said
    ):  # by the kernel's process, outside of cells: of interest if it dies
        try:
            _in_a_thread(client, stdout=said, stderr=said, **start)
            return None, None
        except CellExecutionError:
            error: Exception | None = None
        except CellTimeoutError:
            error = TimeoutError()
        except DeadKernelError:
            error = RuntimeError(f"the kernel died: out of memory, or a crash in compiled code{_last(said)}")
        except Exception as other:
            told = f"{type(other).__name__}: {other}{_last(said)}"
            error = other if begun else _NoKernel(told)
    return next((i for i in reversed(begun) if i in code), code[0]), error


def _last(said: IO[bytes]) -> str:
    """The last lines of what a kernel wrote, but for ipykernel's own."""
    said.seek(0)
    lines = said.read().decode(errors="replace").splitlines()
    told = [line for line in lines if line.strip() and "[IPKernelApp]" not in line][-5:]
    return f" (it said: {' / '.join(told)})" if told else ""


def versions() -> dict[str, str]:
    """What a result may depend on: Python, the platform, and the libraries that compute."""
    from .. import __version__

    found = {"zfkit": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _in_a_thread(client: Any, **start: Any) -> None:
    """`client.execute`, away from the main thread, where nbclient would take Ctrl-C for the kernel's end only."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.execute, **start)
        try:
            future.result()
        except KeyboardInterrupt:
            process = getattr(getattr(client.km, "provisioner", None), "process", None)
            if process is not None:
                process.kill()
            raise


def _error(notebook: Any, cell: int) -> tuple[str, str]:
    """One line, and the traceback without colours, of the error that stopped a notebook at this cell."""
    for output in reversed(notebook.cells[cell].get("outputs") or ()):
        if output.output_type == "error":
            line = COLOURS.sub("", f"{output.ename}: {output.evalue}").strip().partition("\n")[0]
            return line, COLOURS.sub("", "\n".join(output.traceback or [line]))
    return "stopped without an error", ""


# ----------------------------------------------------------------------------------------- all of them


def _all(
    tasks: Sequence[tuple[str, str, str, float]], jobs: int | None, scheduler: str | None, threads: int | None
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Results of `execute` in the order in which runs end."""
    import joblib

    if not tasks:
        return
    work = joblib.delayed(execute)
    if scheduler is None:
        cores = joblib.cpu_count()
        jobs = min(jobs or _default_jobs(cores), len(tasks))
        each = threads or max(1, cores // jobs)
        parallel = joblib.Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")
        yield from parallel(work(*task, each) for task in tasks)
        return
    with _cluster(scheduler) as (client, hosts):
        # The workers of one machine share its cores.
        work = joblib.delayed(_execute_on_worker)
        with joblib.parallel_config(backend="dask", client=client):
            parallel = joblib.Parallel(batch_size=1, pre_dispatch="all", return_as="generator_unordered")
            try:
                yield from parallel(work(task, threads, hosts) for task in tasks)
            except Exception as error:
                raise ZfkitError(
                    f"the cluster gave up ({type(error).__name__}: {error}); what finished is kept, and the same "
                    "command goes on with the rest"
                ) from error


def _execute_on_worker(
    task: tuple[str, str, str, float], threads: int | None, hosts: Mapping[str, int]
) -> tuple[str, str, dict[str, Any]]:
    import joblib
    from distributed import get_worker

    worker = get_worker()
    slots = max(hosts.get(_host(worker.address), 0), worker.state.nthreads)
    return execute(*task, threads or max(1, joblib.cpu_count() // slots))


def find_workers(address: str) -> dict[str, int]:
    """How many runs each machine of a Dask scheduler takes at a time. Raises ZfkitError as `run_sweep` does."""
    with _cluster(address) as (_, hosts):
        return hosts


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[tuple[Any, dict[str, int]]]:
    """A client of the scheduler, and how many runs each machine takes at a time."""
    with connected(address) as client:
        hosts: Counter[str] = Counter()
        for worker, count in client.nthreads().items():
            hosts[_host(worker)] += count
        yield client, dict(hosts)


def _host(address: str) -> str:
    return address.rpartition("://")[2].rpartition(":")[0]


def _default_jobs(cores: int) -> int:
    """As many runs as there are cores, where memory allows."""
    try:
        import psutil
    except ImportError:
        return cores
    return max(1, min(cores, int(psutil.virtual_memory().available / MEMORY_PER_RUN)))


# ----------------------------------------------------------------------------------------- notebooks in files


def _read(path: Path) -> Any:
    import nbformat

    if not path.is_file():
        raise ZfkitError(f"there is no notebook {str(path)!r}; check the path")
    try:
        notebook = nbformat.read(path, as_version=4)
        language = notebook.metadata.get("kernelspec", {}).get("language", "python")
        if language != "python":
            raise ZfkitError(f"{path.name} is a notebook in {language}; zfkit runs Python")
        return notebook
    except ZfkitError:
        raise
    except OSError as error:
        raise ZfkitError(f"cannot read {path.name}: {error.strerror or error}") from None
    except Exception as error:  # nbformat lets out whatever a strange file brings about
        raise ZfkitError(
            f"{path.name} is no Jupyter notebook ({str(error).partition(chr(10))[0][:100]}); does JupyterLab open it?"
        ) from None


def _known(file: Path) -> Any:
    """A notebook that a sweep wrote, or None."""
    import nbformat

    try:  # without nbformat's validation, which takes ten times as long
        notebook = nbformat.v4.reads_json(file.read_text(encoding="utf-8"))
        held = notebook.metadata[KEY]
        return notebook if {"key", "status"} <= set(held) and notebook.cells is not None else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _digest(notebook: Any) -> str:
    """Changes with the code; prose, outputs and the parameters' defaults have no part in it."""
    code = [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code"
        and not {TAG, "injected-parameters"} & set(cell.metadata.get("tags") or ())
    ]
    return hashlib.sha256(canonical(code).encode()).hexdigest()[:16]


def _key(run: Run, digest: str) -> str:
    """What a finished run has to agree in to count as this one."""
    return hashlib.sha256(canonical([run.parameters, digest]).encode()).hexdigest()[:16]


def _with_parameters(notebook: Any, run: Run) -> Any:
    """A copy without outputs, with the cell that papermill would put in after the parameters cell."""
    import nbformat
    from papermill.translators import translate_parameters

    cells = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags") or ()
        if "injected-parameters" in tags:
            continue
        cell = copy.deepcopy(cell)
        cells.append(cell)
        if cell.cell_type == "code":  # what a failing run does not reach must not look as if it had
            cell.outputs, cell.execution_count = [], None
            if TAG in tags:
                code = translate_parameters("python3", "python", run.parameters, "Parameters")
                told = {"tags": ["injected-parameters"]}
                cells.append(nbformat.v4.new_code_cell(code.strip(), id="injected-parameters", metadata=told))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def _keep(plan: Plan, run: Run, text: str, told: dict[str, Any]) -> Outcome:
    """Write an executed notebook with its provenance, and its pictures."""
    import nbformat

    notebook = nbformat.reads(text, as_version=4)
    notebook.metadata[KEY] = {
        "key": _key(run, plan._digest),
        "run": run.name,
        "notebook": plan.notebook.name,
        "code": plan._digest,
        "parameters": run.parameters,
        "given": sorted(run.given),
        "seed": run.parameters.get("seed"),
        **told,
    }
    whole, failed = plan.out / f"{run.name}.ipynb", plan.out / f"{run.name}.failed.ipynb"
    file, stale = (whole, failed) if told["status"] == "finished" else (failed, whole)
    try:
        shutil.rmtree(plan.out / "figures" / run.name, ignore_errors=True)
        write_whole(file, lambda part: nbformat.write(notebook, part))
        stale.unlink(missing_ok=True)
        return _outcome(run, notebook, plan.out)
    except OSError as error:
        raise _cannot_write(plan.out, error) from error


def _outcome(run: Run, notebook: Any, out: Path) -> Outcome:
    """What the gallery and the table need of an executed notebook; its pictures as files."""
    held = notebook.metadata[KEY]
    status: Literal["finished", "failed"] = "finished" if held["status"] == "finished" else "failed"
    at = held.get("stopped_at")
    stopped = isinstance(at, int) and 0 <= at < len(notebook.cells)
    return Outcome(
        run=run,
        status=status,
        file=f"{run.name}.ipynb" if status == "finished" else f"{run.name}.failed.ipynb",
        error=str(held.get("error", "")),
        traceback=_error(notebook, at)[1] if stopped else "",
        seconds=float(held.get("seconds", 0)),
        started=str(held.get("started", "")),
        threads=int(held.get("threads", 0)),
        versions={str(k): str(v) for k, v in held.get("versions", {}).items()},
        records=recorded(notebook),
        figures=tuple(_figures(notebook, run.name, out)),
    )


def _figures(notebook: Any, name: str, out: Path) -> Iterator[Figure]:
    """The pictures among a notebook's outputs, under the heading they stand below, each in a file."""
    tagged = any(KEY_FIGURE in (cell.metadata.get("tags") or ()) for cell in notebook.cells)
    heading, code, seen = "", 0, Counter[str]()
    for cell in notebook.cells:
        tags = cell.metadata.get("tags") or ()
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#{1,6}\s+(.+?)\s*#*$", cell.source, re.M)
            heading = headings[-1] if headings else heading
        if cell.cell_type != "code" or "injected-parameters" in tags:
            continue
        code += 1
        if tagged and KEY_FIGURE not in tags:
            continue
        for i, output in enumerate(o for o in cell.outputs if "data" in o):
            for mime, (suffix, magic) in PICTURES.items():
                if mime in output.data:
                    picture = _decode(output.data[mime], magic)
                    if picture:
                        seen[heading] += 1
                        file = Path("figures", name, f"{code}-{i + 1}{suffix}")
                        if not (out / file).is_file():
                            write_whole(out / file, lambda part, picture=picture: part.write_bytes(picture))  # type: ignore[misc]
                        title = heading or "Figures"
                        title += f" ({seen[heading]})" if seen[heading] > 1 else ""
                        digest = hashlib.sha256(picture).hexdigest()
                        yield Figure((code, i + 1), title, file.as_posix(), digest)
                    break


def _decode(text: str | list[str], magic: bytes) -> bytes:
    """A picture out of its base64 form; nothing where it is no picture of that kind."""
    try:
        picture = base64.b64decode("".join(text))
    except ValueError:
        return b""
    return picture if picture.startswith(magic) else b""


def _title(notebook: Any) -> str:
    """A notebook's first heading."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := re.search(r"^#\s+(.+)$", cell.source, re.M)):
            return found[1].strip()
    return ""


@contextlib.contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """The folder, made where there is none, for this process alone."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):  # better now than after the first run
            pass
    except OSError as error:
        raise _cannot_write(out, error) from None
    refusal = ZfkitError(f"another sweep is writing to {str(out)!r}: wait for it, or give another --out")
    with only_writer(out / ".sweep.lock", refusal):
        yield


def _cannot_write(out: Path, error: OSError) -> ZfkitError:
    return ZfkitError(
        f"cannot write to {str(out)!r} ({error.strerror or error}); make room or choose another folder"
    )
