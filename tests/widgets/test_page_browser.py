"""Kernels of the page without code: one for each page that is open, none for pages that were closed."""

import re
import sys
import time
from pathlib import Path

import browser as b
import pytest

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(b.why_not()), reason=b.why_not()),
    pytest.mark.skipif(sys.platform != "linux", reason="kernels are counted in /proc"),
]
ROOT = Path(__file__).resolve().parents[2]


def kernels(server):
    """Process numbers of the server's kernels."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
            command = (stat.parent / "cmdline").read_text()
        except OSError:
            continue  # it ended meanwhile
        if parent == server.process.pid and "ipykernel_launcher" in command:
            found.append(int(stat.parent.name))
    return sorted(found)


def until(server, count, seconds=40):
    end = time.monotonic() + seconds
    while len(now := kernels(server)) != count and time.monotonic() < end:
        time.sleep(0.2)
    assert len(now) == count
    return now


@pytest.fixture(scope="module")
def chromium():
    with b.chromium() as opened:
        yield opened


@pytest.fixture
def page_of(tmp_path):
    """A tiny notebook, served as `make app` serves the explorer; numbers of seconds made small."""
    notebook = b.write_notebook(tmp_path / "tiny.ipynb", "import ipywidgets; ipywidgets.HTML('<b>here</b>')")
    options = re.findall(r"--MappingKernelManager\S+", (ROOT / "Makefile").read_text())
    assert len(options) == 2
    return notebook, [re.sub(r"=\d+", "=8", option) for option in options]


def opened(browser, server):
    page = b.open_voila(browser, server)
    page.tab.wait_for_selector("b:has-text('here')", timeout=b.PATIENCE)
    return page


def test_a_page_that_closes_or_is_loaded_anew_ends_its_kernel(tmp_path, page_of, chromium):
    with b.voila(tmp_path / "server", page_of[0]) as server:
        page = opened(chromium, server)
        (first,) = until(server, 1)
        page.tab.reload()
        page.tab.wait_for_selector("b:has-text('here')", timeout=b.PATIENCE)
        (second,) = until(server, 1)
        assert first != second
        page.tab.close(run_before_unload=True)
        until(server, 0)


def test_the_kernel_of_a_page_that_vanished_ends_too(tmp_path, page_of, chromium):
    with b.voila(tmp_path / "server", page_of[0], *page_of[1]) as server:
        page = opened(chromium, server)
        until(server, 1)
        page.tab.wait_for_timeout(12_000)
        assert len(kernels(server)) == 1  # a page that is open keeps its kernel, however still it is
        page.tab.route("**/voila/api/shutdown/**", lambda route: route.abort())
        page.tab.context.close()
        until(server, 0)
