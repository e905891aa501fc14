"""Notebooks in a real browser: servers of this environment, pages that remember every error, pixels and latencies.

    with chromium() as browser, jupyter_lab(tmp_path, notebooks) as lab:
        page = open_lab(browser, lab, "00_explorer.ipynb")
        page.wait_for("[role=status]:has-text('map 1')")
        assert page.said == []

Used by tests and by benchmarks/bench_browser.py. Every server listens on 127.0.0.1 with a token of its own, keeps
its settings in a folder of its own, and is ended by its own process group.
"""

from __future__ import annotations

import base64
import ctypes
import io
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # a laptop on a train
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",  # its camera shows a green clock
]  # fmt: skip
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "zfkit" / "widgets" / "page"  # the template of the explorer's Voila page
PATIENCE = 60_000  # ms until a page that does not answer counts as broken; no measure of anything


def why_not() -> str:
    """Why no page can be opened here; empty where one can."""
    if not CHROMIUM:
        return "Chromium is not installed"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return ""


@contextmanager
def chromium() -> Iterator[Any]:
    """The Chromium of this machine, headless, that knows no host but this one."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


# ----------------------------------------------------------------------------------------------- the servers


@dataclass
class Server:
    """A running server: where it answers, and what it wrote."""

    url: str  # http://127.0.0.1:PORT
    token: str
    log: Path
    process: subprocess.Popen[bytes]

    def answers(self, path: str) -> str:
        """To a request without the token: the HTTP status, and where it is redirected to (not followed)."""

        class Stay(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *_: Any) -> None:
                return None

        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), Stay)
        try:
            with opener.open(self.url + path, timeout=20) as response:
                return str(response.status)
        except urllib.error.HTTPError as error:
            return f"{error.code} {error.headers.get('Location', '')}".strip()

    def listens_on(self) -> set[str]:
        """Addresses that other programs can reach the server's port at, from the kernel's own tables."""
        port, found = int(self.url.rsplit(":", 1)[1]), set()
        for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                address, state = line.split()[1], line.split()[3]
                host, number = address.split(":")
                if state == "0A" and int(number, 16) == port:
                    words = [bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8)]
                    found.add(socket.inet_ntop(family, b"".join(words)))
        return found


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def private(folder: Path, token: str) -> dict[str, str]:
    """The environment of a server that neither reads nor changes the user's Jupyter settings.

    token: the server's; "" leaves it to the server to have one.
    """
    settings = {
        "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
        "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
        "@jupyterlab/extensionmanager-extension/plugin": {"enabled": False},
    }
    for name, overrides in settings.items():
        file = folder / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(overrides))
    config = folder / "config" / "voila.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps({"Voila": {"token": token}} if token else {}))
    folders = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
    }  # fmt: skip
    for name in folders.values():
        (folder / name).mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name != "JUPYTER_TOKEN"}
    return {
        **kept,
        **{variable: str(folder / name) for variable, name in folders.items()},
        **({"JUPYTER_TOKEN": token} if token else {}),
        "PYTHONUNBUFFERED": "1",
    }


@contextmanager
def serving(
    command: Sequence[str | Path], folder: Path, port: int, cwd: Path | None = None, token: bool = True
) -> Iterator[Server]:
    """Run a Jupyter or Voila command until the block ends; its settings and log are in `folder`.

    Without `token` the server has whatever token it gives itself.
    """
    secret = secrets.token_hex(16) if token else ""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    environment = private(folder, secret)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    server = Server(f"http://127.0.0.1:{port}", secret, log, process)
    try:
        _wait_until_it_answers(server)
        yield server
    finally:
        for sign, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
            if process.poll() is None:
                os.killpg(process.pid, sign)
                try:
                    process.wait(seconds)
                except subprocess.TimeoutExpired:
                    continue


def _end_with_parent() -> None:
    """In the server: a test run that is killed leaves no server behind (Linux' PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _wait_until_it_answers(server: Server) -> None:
    give_up = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < give_up:
        if server.process.poll() is not None:
            break
        try:
            server.answers("/api/status")
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the server does not answer; it wrote\n{server.log.read_text(errors='replace')}")


def made(target: str, *options: str) -> str:
    """What `make app` or `make lab` runs, for the shell and with this Python."""
    dry = ["make", "--dry-run", "--always-make", "--no-print-directory", target]
    dry.append(f"{target.upper()}_ARGS={' '.join(['--no-browser', *options])}")
    printed = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (command,) = [part for part in printed.replace("\\\n", " ").splitlines() if "--no-browser" in part]
    return "exec env " + re.sub(r"\S*bin/python\b", shlex.quote(sys.executable), command, count=1)


def make_app(notebook: Path, *options: str) -> str:
    """What `make app` runs, but for the page that it shows."""
    return made("app", *options).replace("zfkit/widgets/page/app.ipynb", shlex.quote(str(notebook)))


@contextmanager
def jupyter_lab(folder: Path, notebooks: Path, front: str = "lab") -> Iterator[Server]:
    """JupyterLab (or, with "notebook", Notebook 7) over a folder of notebooks; `folder` takes settings and log."""
    port, as_root = free_port(), ["--allow-root"] if os.geteuid() == 0 else []  # as in a container
    command = [
        sys.executable, "-m", "jupyter", front, "--no-browser", "--expose-app-in-browser", f"--port={port}",
        "--ServerApp.port_retries=0", f"--ServerApp.root_dir={notebooks}", *as_root,
    ]  # fmt: skip
    with serving(command, folder, port, notebooks) as server:
        yield server


@contextmanager
def voila(folder: Path, notebook: Path, *options: str) -> Iterator[Server]:
    """A notebook as a page without code, as `make app` serves it; `folder` takes settings and log."""
    port = free_port()
    command = make_app(notebook, f"--port={port}", *options)
    with serving(["sh", "-c", command], folder, port, notebook.parents[1]) as server:
        yield server


# ------------------------------------------------------------------------------------------------- the pages

# In the page: when keys and buttons went down, when an element's content became what is waited for after that. It
# counts as there at the first task after the frame that shows it.
_STOPWATCH = """
(() => {
  const watch = window.__stopwatch = {down: null, came: null};
  watch.wait = (element, good) => {
    watch.came = new Promise(tell => {
      const observer = new MutationObserver(() => {
        if (!good(element)) return;
        observer.disconnect();
        requestAnimationFrame(() => {
          const painted = new MessageChannel();
          painted.port1.onmessage = () => tell(performance.now() - watch.down);
          painted.port2.postMessage(null);
        });
      });
      observer.observe(element, {childList: true, characterData: true, subtree: true});
    });
  };
  const start = event => { watch.down = event.timeStamp; };
  for (const kind of ['keydown', 'mousedown']) window.addEventListener(kind, start, true);
})();
"""


@dataclass
class Page:
    """A notebook's page, and all that went wrong on it."""

    tab: Any  # playwright's Page
    said: list[str] = field(default_factory=list)  # errors of page, console and kernel, in order
    asked: list[str] = field(default_factory=list)  # addresses outside this machine
    _control: set[str] = field(default_factory=set)  # comms of the widget manager itself

    def watch(self, kernel: bool = True) -> None:
        """Note every error from now on, of page, console, network and kernel.

        To see the kernel's, every message on the way to the page is copied: 20 ms for each new picture.
        """
        self.tab.set_default_timeout(PATIENCE / 3)
        self.tab.set_default_navigation_timeout(PATIENCE)
        self.tab.add_init_script(_STOPWATCH)
        self.tab.on("pageerror", lambda error: self.said.append(f"page: {error}"))
        self.tab.on("crash", lambda _: self.said.append("page: crashed"))
        self.tab.on("console", self._console)
        self.tab.on("request", self._request)
        if kernel:
            self.tab.on("websocket", self._websocket)

    def _websocket(self, websocket: Any) -> None:
        websocket.on("framereceived", self._received)
        websocket.on("framesent", self._sent)

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.said.append(f"console: {message.text} ({message.location.get('url', '')})")

    def _request(self, request: Any) -> None:
        if not re.match(r"(https?|wss?)://127\.0\.0\.1[:/]|data:|blob:", request.url):
            self.asked.append(request.url)

    def _sent(self, frame: str | bytes) -> None:
        kind, content = kernel_message(frame)
        if kind == "comm_open" and content.get("target_name") == "jupyter.widget.control":
            self._control.add(content["comm_id"])

    def _received(self, frame: str | bytes) -> None:
        kind, content = kernel_message(frame)
        if kind == "error":
            self.said.append("kernel: " + "\n".join(content.get("traceback", [])))
        elif kind == "stream" and content.get("name") == "stderr":
            # Before ipywidgets is imported, every kernel says this to the widget manager's first question.
            said = re.sub(r"No such comm target registered: jupyter\.widget\.control\n", "", content["text"])
            for comm in self._control:
                said = said.replace(f"No such comm: {comm}\n", "")
            if said:
                self.said.append(f"kernel: {said}")

    def wait_for(self, selector: str, patience: float = PATIENCE / 1000) -> Any:
        """The first visible element there, as soon as there is one; AssertionError at once if the kernel fails."""
        found = self.tab.locator(selector).first
        give_up = time.monotonic() + patience
        while not found.is_visible():
            failed = [said for said in self.said if said.startswith("kernel: ")]
            assert not failed, f"no {selector}: {failed}"
            assert time.monotonic() < give_up, f"no {selector}; errors so far: {self.said}"
            self.tab.wait_for_timeout(50)
        return found

    def until(self, look: Any, good: Any, complaint: str, patience: float = PATIENCE / 1000) -> Any:
        """Look again and again until it is good; AssertionError with the complaint if it never is."""
        give_up = time.monotonic() + patience
        while True:
            try:
                now = look()
                if good(now):
                    return now
            except Exception:  # the element is being replaced just now
                if time.monotonic() > give_up:
                    raise
                now = None
            assert time.monotonic() < give_up, f"{complaint}; last seen {now!r}; errors so far: {self.said}"
            self.tab.wait_for_timeout(30)

    def latency(
        self, selector: str, act: Any, good: str = "() => true", patience: float = 5.0
    ) -> float | None:
        """ms from the key or button of `act` to the frame after what is there has changed to something good.

        None if it did not. good: a function of the element, in JavaScript. Both ends are measured by the page's own
        clock, and the page itself waits: asking it again and again would keep a core busy that the answer has to share.
        """
        self.watch_out(selector, good)
        act()
        return self.came(patience)

    def watch_out(self, selector: str, good: str) -> None:
        """From now on, wait for an element there to become good."""
        element = self.tab.locator(selector).first.element_handle()
        element.evaluate(f"element => window.__stopwatch.wait(element, {good})")

    def came(self, patience: float = 5.0) -> float | None:
        """ms from the last key or button to the frame that was waited for; None where it did not come."""
        race = "patience => Promise.race([__stopwatch.came, new Promise(r => setTimeout(r, patience, null))])"
        taken = self.tab.evaluate(race, 1000 * patience)
        return None if taken is None else float(taken)

    def screenshot(self, file: Path, **options: Any) -> Path:
        """What the page looks like now, as PNG."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.tab.screenshot(path=str(file), **options)
        return file


def decoded(png: str) -> np.ndarray:
    """base64 PNG -> uint8 (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))


def kernel_message(frame: str | bytes) -> tuple[str, dict[str, Any]]:
    """Type and content of a message on the kernel's websocket; ("", {}) for anything else.

    Binary frames are of v1.kernel.websocket.jupyter.org: the number of offsets, the offsets (uint64, little
    endian), then channel, header, parent header, metadata, content and buffers.
    """
    try:
        if isinstance(frame, str):
            message = json.loads(frame)
            return message["header"]["msg_type"], message["content"]
        count = int.from_bytes(frame[:8], "little")
        offsets = [int.from_bytes(frame[8 * i : 8 * i + 8], "little") for i in range(1, count + 1)]
        parts = [frame[a:b] for a, b in pairwise(offsets)]
        return json.loads(parts[1])["msg_type"], json.loads(parts[4])
    except (ValueError, KeyError, IndexError, TypeError):
        return "", {}


def open_page(browser: Any, width: int = 1280, height: int = 900, kernel: bool = True) -> Page:
    """An empty page that notes errors, in a context of its own; without `kernel`, not the kernel's."""
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
    page = Page(context.new_page())
    page.watch(kernel)
    return page


def open_lab(browser: Any, server: Server, notebook: str, front: str = "lab", **options: int) -> Page:
    """A notebook in JupyterLab (or, with "notebook", in Notebook 7), all cells run."""
    page = open_page(browser, **options)
    where = {"lab": "lab/tree", "notebook": "notebooks"}[front]
    page.tab.goto(f"{server.url}/{where}/{notebook}?token={server.token}&reset")
    page.tab.wait_for_function(
        "window.jupyterapp && jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel",
        timeout=PATIENCE,
    )
    page.tab.evaluate("jupyterapp.restored.then(() => jupyterapp.commands.execute('notebook:run-all-cells'))")
    return page


def open_voila(browser: Any, server: Server, **options: int) -> Page:
    """A notebook's Voila page."""
    page = open_page(browser, **options)
    page.tab.goto(f"{server.url}/?token={server.token}")
    return page


def write_notebook(file: Path, *cells: str) -> Path:
    """A notebook of these code cells, without outputs."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, file)
    return file
