"""A teacher's server: what `make app` starts, with several browsers at once, over a tiny page."""

from __future__ import annotations

import contextlib
import io
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import browser as b
import nbformat
import numpy as np
import psutil
import pytest
from PIL import Image

from zfkit.errors import ImageError
from zfkit.widgets.own import read_own

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(b.why_not()), reason=b.why_not()),
    pytest.mark.skipif(sys.platform != "linux", reason="files and limits are looked at in /proc"),
]
SEATS = 3
CELLS = (
    "import os, resource, time, ipywidgets as W; time.sleep(1)",
    """state, upload, said = W.Text(), W.FileUpload(accept='image/*'), W.HTML()
def say(_):
    held, most = sum(len(file.content) for file in upload.value), resource.getrlimit(resource.RLIMIT_DATA)[0]
    said.value = f"<b class='said zx' data-drawn>{os.getpid()} {state.value or '-'} {held} {most}</b>"
state.observe(say, "value"), upload.observe(say, "value"), say(None)
W.VBox([state, upload, said])""",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A tiny notebook as `make app` serves the explorer."""
    folder = tmp_path_factory.mktemp("class")
    for name in ("page", "home", "tmp"):
        (folder / name).mkdir()
    app = nbformat.read(b.PAGE / "app.ipynb", as_version=4).cells[0].source
    notebook = b.write_notebook(folder / "page" / "tiny.ipynb", app, *CELLS)
    b.write_notebook(folder / "other.ipynb", "'other'")
    for place in ("page/notes.txt", "page/photo.png", "outside.png"):
        (folder / place).write_text("not for everybody")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder / "home"))
        patch.setenv("TMPDIR", str(folder / "tmp"))
        with b.voila(folder / "jupyter", notebook, f"--Seats.seats={SEATS}") as running:
            running.folder, running.notebook = folder, notebook
            yield running


def kernels(server):
    """Process numbers of the server's kernels."""
    found = set()
    for child in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            found |= {child.pid} if "ipykernel_launcher" in " ".join(child.cmdline()) else set()
    return found


def until(server, good, seconds=40):
    """The kernels, once they are as they should be."""
    end = time.monotonic() + seconds
    while not good(now := kernels(server)) and time.monotonic() < end:
        time.sleep(0.2)
    assert good(now), now
    return now


def opened(chromium, server):
    """A page with its figure, until what it stands for is there; and its kernel."""
    until(server, lambda now: len(now) == 1)  # the one that is made ready; pages of before are gone
    page = b.open_page(chromium)
    page.tab.add_init_script(  # seen before the kernel's first answer, however soon that comes
        """new MutationObserver(() => {
            const figure = document.getElementById('zfkit-opening');
            if (figure) window.began ??= getComputedStyle(figure).display;
        }).observe(document, {childList: true, subtree: true})"""
    )
    page.tab.goto(f"{server.url}/?token={server.token}")
    page.wait_for("b.said")
    figure = page.tab.locator("#zfkit-opening img")
    assert figure.evaluate("async image => (await image.decode(), image.naturalWidth)") > 800
    assert page.tab.evaluate("began") == "block" and not figure.is_visible()
    return page, int(said(page)[0])


def said(page):
    """Process, name, bytes of the upload and limit of memory, as the page says."""
    return page.tab.inner_text("b.said").split()


def test_three_at_once_share_nothing_and_no_picture_reaches_the_disk(server):
    """And a fourth is told that all seats are taken, until one of them is free."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 200, 200, 3), dtype=np.uint8)
    pictures = []
    for array in noise:
        Image.fromarray(array).save(file := io.BytesIO(), "PNG")
        pictures.append(file.getvalue())
    address = f"{server.url}/?token={server.token}"
    with b.chromium() as chromium:
        pages = [b.open_page(chromium) for _ in range(SEATS)]
        for page in pages:  # all are asked for before the first is there
            page.tab.goto(address, wait_until="commit")
        for i, page in enumerate(pages):
            page.wait_for("b.said")
            page.tab.fill("input[type=text]", f"student{i}")
            page.tab.keyboard.press("Enter")
            with page.tab.expect_file_chooser() as chooser:
                page.tab.click("button.widget-upload")
            chooser.value.set_files({"name": "a.png", "mimeType": "image/png", "buffer": pictures[i]})
        for i, page in enumerate(pages):
            expected = [f"student{i}", str(len(pictures[i])), str(6 * 10**9)]
            page.until(lambda page=page: said(page)[1:], lambda now, e=expected: now == e, "another's state")
        assert len({said(page)[0] for page in pages}) == SEATS
        held = [file.read_bytes() for file in server.folder.rglob("*") if file.is_file()]
        for picture in pictures:
            assert not any(picture[1000:1100] in content for content in held)
        for page in pages:
            opened = [str(f.readlink()) for f in Path(f"/proc/{said(page)[0]}/fd").iterdir() if f.exists()]
            assert not [name for name in opened if name.endswith((".png", "(deleted)"))]
        fourth = b.open_page(chromium)
        assert fourth.tab.goto(address).status == 503
        assert "All seats are taken: try again later" in fourth.tab.inner_text("body")
        assert fourth.asked == []
        pages[0].tab.close(run_before_unload=True)
        fourth.until(lambda: fourth.tab.goto(address).status, (200).__eq__, "no seat")
        assert not [words for page in pages for words in page.said if words.startswith("kernel")]
        run_code(server, pages[1])
        fourth.wait_for("b.said")
        for page in (*pages[1:], fourth):
            page.tab.close(run_before_unload=True)
        until(server, lambda now: len(now) == 1)  # a browser that went with them might not have told it


def test_a_page_that_closes_or_is_loaded_anew_ends_its_kernel(server):
    with b.chromium() as chromium:
        page, first = opened(chromium, server)
        page.tab.reload()
        page.wait_for("b.said")
        second = int(said(page)[0])
        assert second in until(server, lambda now: first not in now)
        page.tab.close(run_before_unload=True)
        until(server, lambda now: second not in now)


def test_the_kernel_of_a_page_that_vanished_ends_and_the_one_made_ready_stays(server, tmp_path):
    quick = "--Seats.cull_idle_timeout=8", "--Seats.cull_interval=2"
    with b.chromium() as chromium, b.voila(tmp_path, server.notebook, *quick) as server:
        page, kernel = opened(chromium, server)
        (ready,) = until(server, lambda now: len(now) == 2 and kernel in now) - {kernel}
        page.tab.wait_for_timeout(12_000)
        assert kernels(server) == {ready, kernel}  # a page that is open keeps its kernel, however still it is
        page.tab.route("**/voila/api/shutdown/**", lambda route: route.abort())
        page.tab.context.close()
        assert until(server, lambda now: kernel not in now) == {ready}
        assert opened(chromium, server)[1] == ready


def run_code(server, page):
    """Whoever has a page still cannot run code in its kernel: it answers to widgets alone.

    What is asked after it on the same socket is answered, and a kernel takes one after the other.
    """
    mark = server.folder / "it ran"
    answers = page.tab.evaluate(
        """async ([token, code]) => {
        const kernel = JSON.parse(document.querySelector('#jupyter-config-data').textContent).kernelId;
        const server = location.origin.replace('http', 'ws');
        const socket = new WebSocket(`${server}/api/kernels/${kernel}/channels?token=${token}`);
        await new Promise((opened, failed) => { socket.onopen = opened; socket.onerror = failed; });
        const answers = [];
        const answered = new Promise(done => socket.onmessage = ({data}) => {
            const {channel, header, parent_header} = JSON.parse(data);
            if (channel === 'shell' && parent_header.session === 'b') answers.push(header.msg_type);
            if (answers.includes('kernel_info_reply')) done();
        });
        const ask = (msg_type, content) => socket.send(JSON.stringify({
            header: {msg_id: msg_type, msg_type, username: '', session: 'b', version: '5.3'},
            parent_header: {}, metadata: {}, channel: 'shell', buffers: [], content}));
        ask('execute_request', {code, silent: false, store_history: false, user_expressions: {}, allow_stdin: false});
        ask('kernel_info_request', {});
        await Promise.race([answered, new Promise(late => setTimeout(late, 20000))]);
        return answers;
        }""",
        [server.token, f"open({str(mark)!r}, 'w').close()"],
    )
    assert answers == ["kernel_info_reply"] and not mark.exists()


def status(server, path, token):
    """Of a request for exactly this path; an error, or to be asked for the token, gives away nothing."""
    address = server.url + path + (f"{'&' if '?' in path else '?'}token={server.token}" if token else "")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=20) as response:
            return 401 if "/login" in response.url else response.status
    except urllib.error.HTTPError as error:
        return error.code


ELSEWHERE = (
    "%2e%2e/outside.png", "..%2foutside.png", "/etc/passwd", "%2fetc%2fpasswd", "outside.png", "photo.png",
)  # fmt: skip


@pytest.mark.parametrize("path", [
    "/", "/tree", "/voila/render/tiny.ipynb", "/voila/render/%2e%2e/other.ipynb", "/other.ipynb", "/api/status",
    "/api/kernels", "/api/kernels/0123456789abcdef", "/api/sessions", "/api/contents", "/api/contents/page",
    "/voila/api/shutdown/0123456789abcdef", "/files/page/notes.txt", "/nbextensions/a.js", "/voila/files/notes.txt",
    "/voila/templates/zfkit/static/%2e%2e/index.html.j2", "/voila/static/%2e%2e/app.py",
    *(f"/voila/files/{path}" for path in ELSEWHERE),
])  # fmt: skip
def test_without_the_token_there_is_nothing(path, server):
    assert status(server, path, token=False) >= 400


@pytest.mark.parametrize("path", [*ELSEWHERE, "notes.txt", "tiny.ipynb", "page/photo.png", "page/tiny.ipynb"])
@pytest.mark.parametrize(
    "place", ["/voila/files/", "/files/", "/voila/static/", "/voila/templates/zfkit/static/"]
)
def test_nor_files_with_it(place, path, server):
    assert status(server, place + path, token=True) >= 400


def test_nor_other_notebooks_and_a_list_of_kernels(server):
    notebooks = ("voila/render/../other.ipynb", "voila/render/other.ipynb")
    for path in (*notebooks, "api/kernels", "api/sessions", "api/contents"):
        assert status(server, f"/{path}", token=True) >= 400


def test_a_page_reads_no_path(tmp_path, monkeypatch):
    """Though the kernel could: whoever looks at the page does not own the disk."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    file = str(tmp_path / "a.png")
    assert read_own(file, "a.png", 32, 32)
    monkeypatch.setenv("VOILA_BASE_URL", "/")  # as Voila has it in its kernels
    with pytest.raises(ImageError, match="A page reads no paths; choose the file instead"):
        read_own(file, "a.png", 32, 32)
