"""A class on one page server: ten browsers at once, on what `make app` starts; kernels, memory, and how they end.

    .venv/bin/python benchmarks/bench_class.py [PAGES]

Pages are opened one after another, each at a map of its own, every third with a picture that is uploaded. Then one
comes too many, half of them are closed, and the others vanish: connections break, or a browser stands still, as on a
laptop that was shut, which the server notices within 40 s. Kernels that nobody needs end after 40 s here (`make app`:
120 s). Memory is private, and with the share of what is common (PSS). Ends with an error where something is not so.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from bench_browser import SHOWN, b, kernels, wait_until_rested
from common import machine

from zfkit.widgets.controls import encode

IDLE, TICK = 40, 5  # s
TILES = "[...document.querySelectorAll('.zx-nine canvas, .zx-card canvas')].map(c => c.toDataURL()).join()"
wrong: list[str] = []


def check(true: bool, words: str) -> None:
    """A line that says whether it is so."""
    print(f"- {words}" if true else f"- NOT SO: {words}", flush=True)
    wrong.extend([] if true else [words])


def opened(browser: Any, server: Any, layer: str, channel: int, picture: bytes = b"") -> tuple[Any, str, str]:
    """A page at this map, seconds until its pictures were there, and its tiles, after the upload if any."""
    page, start = b.open_page(browser, kernel=False), time.monotonic()
    page.tab.goto(f"{server.url}/?token={server.token}&layer={layer}&map={channel}", wait_until="commit")
    page.wait_for(f"{SHOWN}:text-is('{layer} map {channel}')", 180)
    taken = time.monotonic() - start
    if picture:
        page.tab.locator(".zx [data-tab=image]").click()
        file = {"name": "mine.png", "mimeType": "image/png", "buffer": picture}
        page.tab.locator(".zx input[type=file]").set_input_files(file)
        page.wait_for(".zx .zx-card canvas")
        page.tab.wait_for_timeout(1000)
    return page, f"{taken:.1f}", page.tab.evaluate(TILES)


def drive(chromium: Any, server: Any, count: int, pictures: list[bytes]) -> None:
    """All that a class does."""
    root = psutil.Process(server.process.pid)

    def ids() -> set[int]:
        return {p.pid for p in kernels(server)[0]}

    def ended(old: set[int], left: int, what: str, most: float) -> None:
        start = time.monotonic()
        while len(ids() & old) > left and time.monotonic() < start + most:
            time.sleep(0.5)
        taken = time.monotonic() - start
        check(len(ids() & old) == left, f"{what}: their kernels ended within {taken:.0f} s")

    def state(when: str) -> None:
        memory = root.memory_full_info().uss / 2**20
        print(
            f"- server {when}: {len(root.children(True))} children, {root.num_fds()} files, {memory:.0f} MiB"
        )

    wait_until_rested(server)
    state("before")
    check(len(ids()) == 1, "one kernel is ready before anybody comes")
    known = set(psutil.Process().children(recursive=True))
    second = chromium.browser_type.launch(executable_path=b.CHROMIUM, args=b.FLAGS)
    laptop = set(psutil.Process().children(recursive=True)) - known
    pages, first, shown = list[Any](), list[str](), list[str]()
    for i, picture in enumerate(pictures):
        where = chromium if i < count // 2 else second
        page, taken, tiles = opened(where, server, f"conv{2 + i % 4}", 10 + 7 * i, picture)
        pages, first, shown = [*pages, page], [*first, taken], [*shown, tiles]
    print("- first pictures after", *first, "s")
    wait_until_rested(server)
    everyone, spent = kernels(server)
    time.sleep(10)
    print(f"- {len(everyone)} kernels take {kernels(server)[1] - spent:.1f} s of CPU in 10 s at rest")
    memory = np.array([(m.uss, m.pss) for m in (p.memory_full_info() for p in everyone)]) / 2**20
    for name, each in zip(("private", "PSS"), memory.T, strict=True):
        print(f"- {name}: {each.min():.0f} to {each.max():.0f} MiB each, {each.sum() / 1024:.2f} GiB all")
    check(len(everyone) == count, f"{count} pages have {count} kernels, and none more is made ready")
    own = [page.tab.evaluate(TILES) for page in pages] == shown and len(set(shown)) == count
    check(own, "each page shows its own pictures, as before the others came")
    late = b.open_page(chromium, kernel=False)
    status = late.tab.goto(f"{server.url}/?token={server.token}").status
    check(status == 503 and not late.asked, f"one more is told {late.tab.inner_text('body').strip()!r}")
    late.tab.context.close()
    old = ids()
    for page in pages[: count // 2]:
        page.tab.close(run_before_unload=True)
        page.tab.context.close()
    ended(old, count - count // 2, f"{count // 2} pages closed", 30)
    wait_until_rested(server)
    ready = ids() - old
    check(len(ready) == 1, "and one is ready for the next page")
    for page in pages[count // 2 : -2]:
        page.tab.route("**/voila/api/shutdown/**", lambda route: route.abort())
        page.tab.context.close()
    ended(old, 2, "pages whose connections broke", IDLE + 4 * TICK)
    laptop |= {child for process in laptop for child in process.children(recursive=True)}
    [process.suspend() for process in laptop]
    ended(old, 0, "two pages that stand still", 120)
    time.sleep(IDLE + 2 * TICK)
    check(ids() == ready, "the kernel that was made ready stays, though nobody comes")
    [process.resume() for process in laptop]
    second.close()
    time.sleep(2)
    state("after")
    page, taken, _ = opened(chromium, server, "conv4", 117)
    print(f"- who comes then has a first picture after {taken} s")
    page.tab.close(run_before_unload=True)
    ended(ready, 0, "and closes the page", 30)


def main(count: int) -> None:
    """Serve, drive, print."""
    if b.why_not():
        sys.exit(f"nothing measured: {b.why_not()}")
    print(machine())
    options = [f"--Seats.seats={count}", f"--Seats.cull_idle_timeout={IDLE}", f"--Seats.cull_interval={TICK}"]
    noise = np.random.default_rng(0).integers(0, 256, (count, 100, 100, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as name, b.chromium() as chromium:
        for variable in ("HOME", "TMPDIR", "ZFKIT_CACHE"):
            os.environ[variable] = str(Path(name, variable))
            Path(name, variable).mkdir()
        pictures = [encode(array) if i % 3 == 0 else b"" for i, array in enumerate(noise)]
        with b.voila(Path(name, "jupyter"), b.PAGE / "app.ipynb", *options) as server:
            drive(chromium, server, count, pictures)
            tree = psutil.Process(server.process.pid)
            tree = [tree, *tree.children(recursive=True)]
            held = [file.read_bytes() for file in Path(name).rglob("*") if file.is_file()]
        found = [content for content in held for p in pictures if p and p[1000:1100] in content]
        check(not found, f"no uploaded picture is in any of the {len(held)} files of server and kernels")
        left = [*psutil.wait_procs(tree, 10)[1], *Path(name, "TMPDIR").iterdir()]
        check(not left, f"the server ended, and left no process and no temporary file: {left}")
    sys.exit("\n".join(["", *wrong]) if wrong else 0)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
