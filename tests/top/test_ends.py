"""What was started ends: killed at random, a command leaves no process, and nothing that the next leaves lying."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import psutil
import pytest
from nbformat import v4
from PIL import Image

pytestmark = [
    pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="signals and processes of Unix"),
]  # fmt: skip
SECONDS = 600  # that a command may take; it takes some 10 where nobody else computes

COMMANDS = {
    "mine": "mine --images folder:pictures --size 64 --layers conv1 conv2 --checkpoint-every 8 --out out/t.parquet",
    "atlas": "atlas --images folder:pictures --size 64 --layers conv1 --maps 4 -k 2 --out out",
    "train": "train --images folder:pictures --val folder:pictures --size 64 --widths 4 4 4 4 4 --hidden 8 --workers 2 "
    "--batch-size 8 --epochs 2 --save-every 1 --out out",
    "sweep": "sweep work.ipynb --grid grid.yaml --jobs 2 --out out",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the commands need, and folders of its own for temporary files and kernels."""
    place = tmp_path_factory.mktemp("place")
    for name in ("pictures/a", "pictures/b", "tmp", "runtime"):
        (place / name).mkdir(parents=True)
    for i in range(24):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / "pictures" / "ab"[i % 2] / f"{i}.png")
    cells = [
        v4.new_code_cell("x = 0", metadata={"tags": ["parameters"]}),
        v4.new_code_cell("import time; time.sleep(2)"),
    ]
    nbformat.write(v4.new_notebook(cells=cells), place / "work.ipynb")
    (place / "grid.yaml").write_text("x: [1, 2, 3]")
    return place


def start(place, command):
    own = {"TMPDIR": place / "tmp", "JUPYTER_RUNTIME_DIR": place / "runtime", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "zfkit", *COMMANDS[command].split()], cwd=place, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **{k: str(v) for k, v in own.items()}},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job starts with it ignored
    )  # fmt: skip


def descendants(process):
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def still_running(processes):
    """Those that have not ended after 15 seconds."""
    return [p for p in psutil.wait_procs(processes, timeout=15)[1] if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_it_leaves_nothing_behind(command, place):
    """Three times each by SIGKILL, SIGTERM, and SIGINT, which speaks in one line; then the command does its work."""
    begun = time.monotonic()
    whole = start(place, command)
    said, _ = whole.communicate(timeout=SECONDS)
    assert whole.returncode == 0, said
    takes = time.monotonic() - begun
    rng = random.Random(command)
    for number in 3 * [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]:
        subprocess.run(["rm", "-rf", str(place / "out")], check=True)
        process = start(place, command)
        parent = psutil.Process(process.pid)  # now, as it may be done before it is killed
        seen, until = {}, time.monotonic() + rng.uniform(1, takes)
        while time.monotonic() < until and process.poll() is None:
            seen.update((p.pid, p) for p in descendants(parent))
            time.sleep(0.05)
        seen.update((p.pid, p) for p in descendants(parent))
        process.send_signal(number)
        said, _ = process.communicate(timeout=SECONDS)
        assert still_running(list(seen.values())) == [], (number, said)
        assert "Traceback" not in said, said
        if number == signal.SIGINT:
            assert process.returncode in (0, 130), said  # it may have been done
            last = said.strip().splitlines()[-1]
            assert process.returncode == 0 or f"again: zfkit {COMMANDS[command]}" in last, said
    last = start(place, command)
    said, _ = last.communicate(timeout=SECONDS)
    assert last.returncode == 0, said
    assert not list((place / "out").rglob(".zfkit-*"))
    if command == "sweep":  # which uses the system's folder of temporary files
        assert not list((place / "tmp").glob(".zfkit-*")) and not list((place / "runtime").iterdir())
