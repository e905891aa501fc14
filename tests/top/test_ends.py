"""What was started ends: killed at any moment, a command leaves no process, and nothing that the next leaves lying."""

from __future__ import annotations

import http.client
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress

import browser as b
import nbformat
import numpy as np
import psutil
import pytest
from nbformat import v4
from PIL import Image

pytestmark = [
    pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="signals and processes of Unix"),
]  # fmt: skip
SECONDS = 600  # that a command may take; it takes some 5 where nobody else computes
KILLS = 20  # of each command that hit it while it ran, by each of these signals in turn
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
WHOLE = 6  # of them are processes from their start; the others begin where their imports are done
WRITING = 4  # of the others are killed when the first half-written file is seen

PICTURES = "--images folder:pictures --size 64"
COMMANDS = {
    "mine": f"mine {PICTURES} --layers conv1 conv2 --checkpoint-every 8 --out out/t.parquet",
    "atlas": f"atlas {PICTURES} --layers conv1 --maps 4 -k 2 --out out",
    "site": f"site {PICTURES} --layers conv1 --maps 4 -k 2 --rules deconvnet --out out",
    "train": f"train {PICTURES} --val folder:pictures --widths 4 4 4 4 4 --hidden 8 --workers 2 --batch-size 8 "
    "--epochs 2 --save-every 1 --out out",
    "sweep": "sweep work.ipynb --grid grid.yaml --jobs 2 --out out",
}  # fmt: skip
# The same bytes each time.
STEADY = {"mine": ".parquet", "atlas": "", "site": "", "train": "model.safetensors"}
FORKS = """
import os, runpy, sys
import joblib, torchvision, zfkit.atlas, zfkit.cli, zfkit.sweeps, zfkit.training, zfkit.topk
for line in sys.stdin:
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        os.setsid()
        sys.stdin = open(os.devnull)
        sys.argv = ["zfkit", *line.split()]
        print(os.getpid(), flush=True)
        for output in (1, 2):
            os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), output)
        runpy.run_module("zfkit", run_name="__main__", alter_sys=True)
"""


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
        v4.new_code_cell("import time; time.sleep(1)"),
    ]
    nbformat.write(v4.new_notebook(cells=cells), place / "work.ipynb")
    (place / "grid.yaml").write_text("x: [1, 2]")
    return place


def spawn(place, *line, **options):
    own = {"TMPDIR": place / "tmp", "JUPYTER_RUNTIME_DIR": place / "runtime", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, cwd=place, text=True, start_new_session=True, env={**os.environ, **{k: str(v) for k, v in own.items()}},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job ignores it
        **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def forks(place):
    """A process that has imported everything, and does each command of its input in a fork of itself."""
    process = spawn(place, sys.executable, "-c", FORKS, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        yield process
        process.stdin.close()


class Victim:
    """A command that runs, in a process of its own or a fork, and the processes that were seen below it."""

    def __init__(self, place, command, forks=None):
        shutil.rmtree(place / "said", ignore_errors=True)
        self.said, self.forks = place / "said", forks
        self.said.write_text("")
        if forks:
            print(COMMANDS[command], file=forks.stdin, flush=True)
            self.process = psutil.Process(int(forks.stdout.readline()))
        else:
            with self.said.open("w") as said:
                line = [sys.executable, "-m", "zfkit", *COMMANDS[command].split()]
                self.started = spawn(place, *line, stdout=said, stderr=said)
            self.process = psutil.Process(self.started.pid)
        self.begun, self.seen = time.monotonic(), {}

    def runs(self):
        with suppress(psutil.NoSuchProcess):
            return self.process.status() != psutil.STATUS_ZOMBIE
        return False

    def look(self):
        with suppress(psutil.NoSuchProcess):
            self.seen.update((p.pid, p) for p in self.process.children(recursive=True))

    def end(self):
        """Its exit code, what it said, and how long it took."""
        code = int(self.forks.stdout.readline()) if self.forks else self.started.wait(SECONDS)
        return code, self.said.read_text(), time.monotonic() - self.begun


def still_running(processes):
    """Those that have not ended after 15 seconds."""
    return [p for p in psutil.wait_procs(processes, timeout=15)[1] if p.status() != psutil.STATUS_ZOMBIE]


def made(place):
    """What lies in its folder, by name; of weights the tensors alone, since beside them stands how long it took."""
    found = {str(p.relative_to(place)): p.read_bytes() for p in (place / "out").rglob("*") if p.is_file()}
    for name in [name for name in found if name.endswith("model.safetensors")]:
        found[name] = found[name][8 + int.from_bytes(found[name][:8], "little") :]
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_any_moment_it_leaves_nothing_behind(command, place, forks):
    """As it starts, works and writes; SIGINT speaks in one line; then the command does its work, to the same bytes."""
    takes = {}
    for through in (None, forks):
        shutil.rmtree(place / "out", ignore_errors=True)
        code, said, takes[through] = Victim(place, command, through).end()
        assert code == 0, said
    whole = made(place)
    rng, killed, missed = random.Random(command), 0, 0
    while killed < KILLS:
        assert missed < KILLS, "it is done before it can be killed"
        number, through = SIGNALS[killed % 3], forks if killed >= WHOLE else None
        place_in_time = (killed % WHOLE if through is None else killed - WHOLE) + rng.random()
        at = place_in_time / (KILLS - WHOLE if through else WHOLE) * takes[through]
        writing = killed >= KILLS - WRITING and not missed
        shutil.rmtree(place / "out", ignore_errors=True)
        victim = Victim(place, command, through)
        until = victim.begun + (SECONDS if writing else max(at, 0.05 if through else 1))
        while time.monotonic() < until and victim.runs():
            if not writing:
                victim.look()
            elif next((place / "out").rglob(".zfkit-*"), None):
                break
            time.sleep(0.002 if writing else 0.05)
        victim.look()
        hit = victim.runs()
        with suppress(psutil.NoSuchProcess):
            victim.process.send_signal(number)
        code, said, took = victim.end()
        assert still_running(list(victim.seen.values())) == [], (number, said)
        assert "Traceback" not in said, said
        if number == signal.SIGINT:
            assert code in (0, 130), said  # it may have been done
            assert code == 0 or f"again: zfkit {COMMANDS[command]}" in said.strip().splitlines()[-1], said
        killed, missed = killed + hit, missed + (not hit)
        if not hit:
            takes[through] = min(takes[through], took) * 0.9
    code, said, _ = Victim(place, command, forks).end()
    assert code == 0, said
    again = made(place)
    assert again.keys() == whole.keys()
    steady = [name for name in whole if command in STEADY and STEADY[command] in name]
    assert [name for name in steady if again[name] != whole[name]] == []
    if command == "sweep":  # whose files say how long it took; it uses the system's folder of temporary files
        assert not list((place / "tmp").glob(".zfkit-*")) and not list((place / "runtime").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="a server of Linux")
def test_a_page_server_killed_at_any_moment_takes_its_kernels_along(place):
    """While it starts, while a page is made, and while one is open."""
    b.write_notebook(place / "page.ipynb", "import ipywidgets\nipywidgets.Text()")
    environment, takes, kernels = b.private(place / "jupyter", "secret"), 15.0, 0
    rng = random.Random(0)
    for kill in range(-1, KILLS):  # the first tells how long it takes
        port = b.free_port()
        command = b.make_app(place / "page.ipynb", f"--port={port}")
        with (place / "said").open("w") as said:
            server = subprocess.Popen(
                ["sh", "-c", command], cwd=place, env=environment, start_new_session=True, stdout=said, stderr=said,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )  # fmt: skip
        shown = threading.Event()
        visitor = threading.Thread(
            target=visit, args=(server, f"http://127.0.0.1:{port}/?token=secret", shown)
        )
        visitor.start()
        begun, seen, process = time.monotonic(), {}, psutil.Process(server.pid)
        until = begun + (max(0.5, takes * 1.2 * (kill + rng.random()) / KILLS) if kill >= 0 else SECONDS)
        while time.monotonic() < until and (kill >= 0 or not shown.is_set()):
            assert server.poll() is None, (place / "said").read_text()
            seen.update((p.pid, p) for p in process.children(recursive=True))
            time.sleep(0.05)
        if kill < 0:
            takes = time.monotonic() - begun
            assert seen, "a page has a kernel"
        kernels += bool(seen)
        server.send_signal(SIGNALS[kill % 3])
        server.wait(SECONDS)
        visitor.join(SECONDS)
        assert still_running(list(seen.values())) == [], SIGNALS[kill % 3]
    assert kernels > 1


def visit(server, address, shown):
    """Ask for the page until it is there, or its server is gone."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while server.poll() is None and not shown.is_set():
        with suppress(OSError, http.client.HTTPException), opener.open(address, timeout=60) as page:
            if b"jupyter-config-data" in page.read():
                shown.set()
        time.sleep(0.1)
