"""One run of a sweep: a notebook with its parameters put in, executed by papermill in a kernel of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from ..files import temporary_folder
from .parameters import read_parameters

DEFAULT_RUN = re.compile(r"<!-- default-run -->.*?<!-- /default-run -->\s*", re.S)  # see `sweep`
ATTEMPTS = 3  # at starting a kernel
START_SECONDS = 120  # that a kernel may take to start: many that start at once keep a machine busy
THREAD_LIMITS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")  # each reads NAME_NUM_THREADS
VERSIONS = ("torch", "torchvision", "numpy", "pandas", "scikit-image", "papermill", "ipykernel")
TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def execute(
    name: str, source: str, parameters: dict[str, Any], folder: str, timeout: float, threads: int
) -> tuple[str, str, dict[str, Any]]:
    """Execute a notebook -> name, the executed notebook as JSON, and what is known of the run.

    Whatever goes wrong is part of the result. Neither the environment nor the folder of this process is touched, so
    that several runs may share a process.

    Args:
        source: the notebook as JSON.
        folder: where its kernel runs, so that relative paths mean what they mean to the caller.
        timeout: of the whole run, in seconds.
    """
    import nbformat
    import papermill

    start, started = time.monotonic(), datetime.now(timezone.utc)
    with temporary_folder() as scratch:
        file = Path(scratch) / "run.ipynb"
        nbformat.write(with_parameters(nbformat.reads(source, as_version=4), parameters), file)
        for _ in range(ATTEMPTS):
            error = _attempt(file, folder, start + timeout, threads)
            notebook = join_streams(nbformat.read(file, as_version=4))
            code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
            begun = [i for i in code if notebook.cells[i].metadata.get("papermill", {}).get("start_time")]
            # Two kernels that start at once may pick the same port; then one of them never answers.
            if error is None or begun:
                break
    if isinstance(error, TimeoutError):
        error = TimeoutError(f"the run took longer than {timeout:g} s")
    in_cell = isinstance(error, papermill.PapermillExecutionError)  # where its traceback stands
    if in_cell and not any(c.metadata.get("papermill", {}).get("exception") for c in notebook.cells):
        # Only cells that are tagged "raises-exception" raised, so it ran to its end; papermill looks at no tags.
        error, notebook = None, papermill.execute.remove_error_markers(notebook)
    elif error is not None and not in_cell:
        kind, last = type(error).__name__, begun[-1] if begun else code[0]
        told = nbformat.v4.new_output("error", ename=kind, evalue=str(error), traceback=[f"{kind}: {error}"])
        notebook.cells[last].outputs.append(told)  # as a kernel reports it
    notebook.metadata.pop("papermill", None)  # paths of the temporary folder
    without = _add_pictures(notebook)
    facts = {
        "status": "finished" if error is None else "failed", "error": "" if error is None else error_of(notebook)[0],
        "started": started.isoformat(timespec="seconds"), "seconds": round(time.monotonic() - start, 2),
        "threads": threads, "versions": versions(), **({"charts": without} if without else {}),
    }  # fmt: skip
    return name, nbformat.writes(notebook), facts


def join_streams(notebook: Any) -> Any:
    """What each cell printed as one text of each stream, stdout first; of lines that were overwritten, the last state.

    nbclient can do this, too, in a time that grows with the square of a line's length.
    """
    for cell in notebook.cells:
        streams: dict[str, list[str]] = {}
        outputs: list[Any] = []
        for output in cell.get("outputs") or ():
            if output.output_type != "stream":
                outputs.append(output)
                continue
            if output.name not in streams:
                streams[output.name] = []
                outputs.append(output)
            streams[output.name].append(output.text)
        for i, output in enumerate(outputs):
            if output.output_type == "stream":
                lines = "".join(streams[output.name]).split("\n")
                # "10 %\r20 %\r" on a terminal is "20 %".
                output.text = "\n".join(line[line.rfind("\r", 0, -1) + 1 :] for line in lines)
                if i and output.name == "stdout" and outputs[i - 1].get("name") == "stderr":
                    outputs[i - 1 : i + 1] = outputs[i], outputs[i - 1]
        if outputs:
            cell.outputs = outputs
    return notebook


def with_parameters(notebook: Any, parameters: dict[str, Any]) -> Any:
    """A copy with papermill's cell of parameters, without earlier outputs, metadata and text that no longer holds."""
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    # Not by `execute_notebook`, which warns of every parameter whose annotation it cannot read, as `int | None`.
    notebook = load_notebook_node(notebook)
    leave_out_default_run(notebook, parameters)
    notebook = parameterize_notebook(notebook, parameters, kernel_name="python3", language="python")
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel}
    for cell in notebook.cells:
        if cell.cell_type == "code":  # one that a failing run does not reach must not look as if it had run
            cell.outputs, cell.execution_count = [], None
    return notebook


def leave_out_default_run(notebook: Any, parameters: dict[str, Any]) -> None:
    """Take out, where parameters differ from the notebook's own, what it says of the run with those alone."""
    if any(parameters.get(n, own.default) != own.default for n, own in read_parameters(notebook).items()):
        for cell in (c for c in notebook.cells if c.cell_type == "markdown"):
            cell.source = DEFAULT_RUN.sub("", cell.source).rstrip()
        notebook.cells = [c for c in notebook.cells if c.source or c.cell_type == "code"]


def _add_pictures(notebook: Any) -> str:
    """Pictures of its charts, for the sweep's page; why there are none, or ""."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    if not any("plotly" in kind for output in outputs for kind in output.get("data", ())):
        return ""
    from ..figures.charts import add_pictures  # takes seconds to import, torch among it

    return add_pictures(notebook)


def _attempt(file: Path, folder: str, deadline: float, threads: int) -> Exception | None:
    """Execute a notebook in place; the error that stopped it, if any."""
    from jupyter_client.manager import AsyncKernelManager

    if not Path(folder).is_dir():
        return FileNotFoundError(f"this worker has no folder {folder}; start workers where it exists")
    # Its file, which lets others connect, goes with the folder, also where this process is killed.
    kernel = AsyncKernelManager(kernel_name="python3", connection_file=str(file.with_name("kernel.json")))
    # Away from the main thread, where nbclient would take Ctrl-C for the end of this one kernel.
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(_execute_with, kernel, file, folder, deadline, threads)
        try:
            return future.result()
        except KeyboardInterrupt:
            process = getattr(kernel.provisioner, "process", None)
            if process is not None:
                process.kill()  # else the thread would go on to the notebook's end
            raise


def _execute_with(kernel: Any, file: Path, folder: str, deadline: float, threads: int) -> Exception | None:
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    limits = {f"{library}_NUM_THREADS": str(threads) for library in THREAD_LIMITS}
    log = file.with_suffix(".log")  # what the kernel's process writes outside of cells: of use if it dies
    try:
        with log.open("wb") as stream:
            start = kernel.start_kernel(env=os.environ | limits, cwd=folder, stdout=stream, stderr=stream)
            asyncio.run(_wait(start))
        papermill.execute_notebook(
            str(file), str(file), kernel_name="python3", language="python", km=kernel, progress_bar=False,
            start_timeout=START_SECONDS,
            # What is left for the whole run, rather than the same again for each cell.
            timeout_func=lambda cell: max(1, int(deadline - time.monotonic())),
            record_timing=False,
            store_widget_state=False,  # megabytes, and GitHub refuses some notebooks that have it
        )  # fmt: skip
        return None
    except CellTimeoutError:
        return TimeoutError()
    except DeadKernelError:
        return RuntimeError(f"the kernel died: out of memory, or a crash in compiled code{_last_lines(log)}")
    except papermill.PapermillExecutionError as error:
        return error
    except Exception as error:
        return RuntimeError(f"{type(error).__name__}: {error}{_last_lines(log)}")
    finally:
        with contextlib.suppress(Exception):  # it may be dead already
            asyncio.run(_wait(kernel.shutdown_kernel(now=True)))


async def _wait(awaitable: Any) -> None:
    await awaitable


def _last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    lines = [line for line in lines if line.strip() and "[IPKernelApp]" not in line][-5:]
    return f" (it said: {' / '.join(lines)})" if lines else ""


def error_of(notebook: Any) -> tuple[str, str]:
    """One line, and the traceback without colours, of the last error in a notebook."""
    for cell in reversed(notebook.cells):
        for output in reversed(cell.get("outputs") or ()):
            if output.output_type == "error":
                line = TERMINAL_COLOURS.sub("", f"{output.ename}: {output.evalue}").strip().partition("\n")[0]
                return line, TERMINAL_COLOURS.sub("", "\n".join(output.traceback or [line]))
    return "stopped without an error", ""


def versions() -> dict[str, str]:
    """What a result may depend on: Python, the platform, and the libraries that compute."""
    from ..version import __version__

    known = {"zfkit": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            known[name] = metadata.version(name)
    return known
