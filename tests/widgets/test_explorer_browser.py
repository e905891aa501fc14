"""The explorer in JupyterLab and on a Voila page, driven by keys and mouse in a real Chromium.

Whatever is done, what the page shows has to be what zfkit computes here for what the page says, pixel by pixel.
The way from projections to pixels (one symmetric scale around grey, tiles, gaps) is written once more below.

Screenshots go to the folder in ZFKIT_SCREENSHOTS, if that is set.
"""

from __future__ import annotations

import functools
import io
import os
import random
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import browser as b
import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

import zfkit

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(b.why_not()), reason=b.why_not() or "there is one"),
]
ROOT = Path(__file__).parents[2]
TILE, GAP = 92, 2  # px: a tile of the grids, the gap between two
START = {"layer": "conv4", "channel": 117}


# ------------------------------------------------------------------------------------------------- the truth


@dataclass(frozen=True)
class View:
    """What the page says it shows."""

    layer: str
    channel: int
    rank: int
    row: int
    col: int
    rule: str
    gain: float


def rgb_of(projection, gain=1.0):
    """(3, H, W) signed -> uint8 (H, W, 3): 0 is grey 128, full contrast at the 99.5th percentile of |values|."""
    values = projection.numpy().astype(np.float64)
    magnitude = np.abs(values)
    scale = np.quantile(magnitude, 0.995) or magnitude.max() or 1.0
    shown = 128 + 127 * np.clip(gain * values / scale, -1, 1)
    return np.rint(shown).astype(np.uint8).transpose(1, 2, 0)


def enlarged(rgb, height, width):
    """Every pixel as a rectangle."""
    rows = (np.arange(height) + 0.5) * rgb.shape[0] // height
    cols = (np.arange(width) + 0.5) * rgb.shape[1] // width
    return rgb[rows.astype(int)][:, cols.astype(int)]


def resampled(rgb, height, width):
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))


def tiles_in(grid, columns=3):
    """The tiles of a decoded grid (H, W, 3), row by row."""
    starts = range(0, columns * (TILE + GAP), TILE + GAP)
    return [grid[y : y + TILE, x : x + TILE] for y in starts for x in starts]


def same(shown, expected, tolerance=2):
    """Equal up to rounding, of float32 here and there and of the resampling."""
    return shown.shape == expected.shape and bool(
        (np.abs(shown.astype(int) - expected.astype(int)) <= tolerance).all()
    )


def write_pictures(folder, each=2):
    """A folder of a few cuts out of every bundled photograph, one class for each."""
    album = zfkit.load_images("photos", progress=False)
    cuts = {}
    for i in range(len(album)):
        cuts.setdefault(album.name(i).split(" (")[0], []).append(i)
    for name, places in cuts.items():
        (folder / name).mkdir(parents=True)
        for i in places[:: -(-len(places) // each)]:
            rgb = album[i][0].permute(1, 2, 0).numpy()
            Image.fromarray(rgb).save(folder / name / f"{i}.png")
    return folder


class Truth:
    """What should be seen, from zfkit's arithmetic alone."""

    def __init__(self, folder):
        self.model = zfkit.load_model("zfnet64")
        self.folder = write_pictures(folder)
        self.photos = zfkit.load_images(f"folder:{folder}", progress=False)
        self.top = zfkit.mine(self.model, self.photos, progress=False)

    @functools.cache  # noqa: B019
    def grid(self, layer, channel, rule, gain):
        """The nine projections of a map, as tiles."""
        found = zfkit.project_top(self.model, self.photos, self.top, layer, [channel], rule=rule)
        tiles = []
        for projection in found.projection[0]:
            rgb = rgb_of(projection, gain)
            tiles.append((enlarged if 2 * len(rgb) <= TILE else resampled)(rgb, TILE, TILE))
        return tiles

    @functools.cache  # noqa: B019
    def lens(self, view, side):
        """The unit's window of its projection, as the magnifier shows it in a picture of that side."""
        image = int(self.top[view.layer].image[view.channel, view.rank])
        batch = self.model.preprocess(self.photos.take([image]))
        at = torch.tensor([[view.row, view.col]])
        pixels = zfkit.project(self.model, batch, view.layer, view.channel, at, rule=view.rule)[0]
        box = zfkit.receptive_field(self.model, view.layer).box(view.row, view.col)
        left, top = max(box[0], 0), max(box[1], 0)
        rgb = rgb_of(pixels[:, top : box[3], left : box[2]], view.gain)
        times = round(side * 0.52) / max(rgb.shape[:2])
        height, width = (round(n * times) for n in rgb.shape[:2])
        return (enlarged if times >= 3 else resampled)(rgb, height, width)

    def maximum(self, layer, channel, rank):
        """Row and column that `mine` found."""
        t = self.top[layer]
        return int(t.row[channel, rank]), int(t.col[channel, rank])

    def dead(self, layer, channel):
        return float(self.top[layer].max[channel]) <= 0


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return Truth(tmp_path_factory.mktemp("pictures"))


# ----------------------------------------------------------------------------------------------- the servers


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="no table of open ports here")
@pytest.mark.parametrize("target, argument", [("lab", "LAB_ARGS"), ("app", "APP_ARGS")])
def test_what_make_starts_is_for_this_machine_and_its_user_alone(tmp_path, target, argument):
    port = b.free_port()
    options = f"{argument}=--no-browser --port={port}"
    dry = ["make", "--dry-run", "--always-make", "--no-print-directory", target, options]
    printed = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = printed.replace("\\\n", " ").splitlines()
    command = next(line for line in commands if "--no-browser" in line)
    command = re.sub(r"\S*bin/python\b", shlex.quote(sys.executable), command, count=1)
    with b.serving(["sh", "-c", f"exec env {command}"], tmp_path, port, ROOT, token=False) as server:
        assert server.listens_on() == {"127.0.0.1"}
        for path in ("/api/kernels", {"lab": "/lab", "app": "/"}[target]):
            assert re.match(r"403|302 /login", server.answers(path)), server.answers(path)


# ------------------------------------------------------------------------------------------------- the pages

CELL = f"""
import zfkit
model = zfkit.load_model("zfnet64")
photos = zfkit.load_images("folder:PICTURES", progress=False)
top = zfkit.TopK.load("top.parquet")
explorer = zfkit.explore(model, photos, top, layer={START["layer"]!r}, channel={START["channel"]})
explorer
"""


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory, truth):
    """explorer.ipynb as somebody writes it; app.ipynb as `make app` shows it, with other parameters."""
    folder = tmp_path_factory.mktemp("notebooks")
    table = truth.top.save(folder / "top.parquet")
    b.write_notebook(folder / "explorer.ipynb", CELL.replace("PICTURES", str(truth.folder)))
    page = nbformat.read(ROOT / "zfkit" / "widgets" / "page" / "app.ipynb", as_version=4)
    parameters = next(cell for cell in page.cells if "parameters" in cell.metadata.get("tags", []))
    values = {"images": f"folder:{truth.folder}", "table": str(table), **START}
    parameters.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    nbformat.write(page, folder / "app.ipynb")
    return folder


@pytest.fixture(scope="module")
def chromium():
    with b.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    chosen = os.environ.get("ZFKIT_SCREENSHOTS")
    return Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")


@pytest.fixture(scope="module", params=["lab", "voila"])
def opened(request, tmp_path_factory, chromium, notebooks, truth):
    """The explorer's page, which stays open from test to test."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in ("lab", "notebook"):
        with b.jupyter_lab(folder, notebooks, request.param) as server:
            page = b.open_lab(chromium, server, "explorer.ipynb", front=request.param, height=1100)
            yield Explorer(request.param, page, truth)
            page.tab.context.close()
    else:
        with b.voila(folder, notebooks / "app.ipynb") as server:
            page = b.open_voila(chromium, server, height=1100)
            yield Explorer(request.param, page, truth)
            page.tab.context.close()


# What Notebook 7 says of its own: about its settings' schemas, and, where Voila loads its extension, about that.
OTHERS = (
    "Cannot read properties of undefined (reading 'schema')",
    "The getter for the shared module is not a function",
)


@pytest.fixture
def explorer(opened, request, shots):
    """The same, at its first view before the test, and free of errors after it."""
    opened.page.wait_for(f"{ROOT_BOX} .zfkit-layers button")
    opened.reset()
    yield opened
    opened.page.tab.wait_for_timeout(50)  # what was said just now arrives
    name = re.sub(r"\W+", "_", request.node.name).strip("_")
    opened.page.screenshot(shots / f"{name}.png")
    said, opened.page.said[:] = [s for s in opened.page.said if not any(o in s for o in OTHERS)], []
    assert said == []
    assert opened.page.asked == []


ROOT_BOX = ".zfkit-explorer"
PROJECTIONS, PATCHES, PHOTO, HEAT, WHOLE = (
    f"{ROOT_BOX} .zfkit-{name} img" for name in ("projections", "patches", "photo", "heat", "whole")
)

_VIEW = """
() => {
  const root = document.querySelector('.zfkit-explorer');
  const one = selector => root.querySelector(selector);
  const handle = selector => one(selector + ' .noUi-handle').getAttribute('aria-valuenow');
  const [row, col] = [...root.querySelectorAll('.zfkit-heat .noUi-handle')].map(e => e.getAttribute('aria-valuenow'));
  const rule = one('.zfkit-rule select');
  const ranks = [...root.querySelectorAll('.zfkit-ranks button')];
  return {
    layer: one('.zfkit-layers button.mod-active').innerText.trim().split(' ')[0],
    channel: one('.zfkit-number-box input').value,
    rank: ranks.findIndex(e => e.classList.contains('mod-active') || e.getAttribute('aria-pressed') === 'true'),
    row, col,
    rule: rule.options[rule.selectedIndex].text,
    gain: one('.zfkit-gain .widget-readout').innerText,
  };
}
"""


class Explorer:
    """Hands and eyes on the explorer's page."""

    def __init__(self, kind, page, truth):
        self.kind, self.page, self.tab, self.truth = kind, page, page.tab, truth

    # -- hands

    def find(self, selector):
        return self.tab.locator(f"{ROOT_BOX} {selector}")

    def reset(self):
        """Back to the first view, by mouse."""
        self.tab_named("Maps")
        self.search("")
        self.find(".zfkit-order select").select_option(label="index")
        self.choose_rule("deconvnet")
        self.choose_layer(START["layer"])
        self.settle(layer=START["layer"])
        for channel in (0, START["channel"]):  # another map forgets the position
            self.page.until(
                lambda channel=channel: (
                    self.type_number(channel),
                    self.tab.wait_for_timeout(200),
                    self.view(),
                )[-1],
                lambda view, channel=channel: view.channel == channel,
                f"map {channel} cannot be chosen",
                20,
            )
        self.find(".zfkit-ranks button").first.click()
        self.tab.mouse.move(2, 2)  # nothing is below the pointer
        self.settle(**START, rank=0, gain=1.0)

    def tab_named(self, name):
        self.find(f".zfkit-tabs button:has-text('{name}')").click()

    def choose_layer(self, name):
        self.find(f".zfkit-layers button:has-text('{name}')").click()

    def choose_rule(self, name):
        self.find(".zfkit-rule select").select_option(label=name)

    def type_number(self, number):
        box = self.find(".zfkit-number-box input")
        box.fill(str(number))
        box.press("Enter")

    def search(self, words):
        box = self.find(".zfkit-find input")
        box.fill(words)
        box.press("Enter")

    def press_on_map(self, *keys):
        self.find(".zfkit-map .noUi-handle").focus()
        for key in keys:
            self.tab.keyboard.press(key)

    # -- eyes

    def view(self):
        said = self.tab.evaluate(_VIEW)
        whole = {name: int(float(said[name])) for name in ("channel", "rank", "row", "col")}
        gain = float(re.sub(r"[^0-9.]", "", said["gain"]))
        return View(said["layer"], **whole, rule=said["rule"], gain=gain)

    def sentence(self, name):
        """The sentence in a picture's place, "" where there is a picture."""
        said = self.find(f".zfkit-{name} .zfkit-message p")
        return said.first.inner_text() if said.count() and said.first.is_visible() else ""

    def wrong(self, view):
        """What of the page contradicts what it says it shows; "" if nothing does."""
        if self.truth.dead(view.layer, view.channel):
            return "" if "dead" in self.sentence("projections") else f"no word on a dead map: {view}"
        if self.sentence("projections"):
            return f"{self.sentence('projections')!r} in place of {view}"
        expected = self.truth.grid(view.layer, view.channel, view.rule, view.gain)
        for i, (tile, truth) in enumerate(
            zip(tiles_in(self.page.picture(PROJECTIONS)), expected, strict=True)
        ):
            if not same(tile, truth):
                return f"projection {i + 1} is not that of {view}"
        whole = self.page.picture(WHOLE)
        if not contains(whole, self.truth.lens(view, len(whole))):
            return f"the large projection is not that of {view}"
        return ""

    def unit_at(self, layer, down, across):
        """Row and column of the unit whose field's middle is nearest to a place, fractions of the photograph."""
        field, S = zfkit.receptive_field(self.truth.model, layer), self.truth.photos.size
        middles = [sum(field.box(i, i)[0::2]) / 2 for i in range(S)]
        return tuple(int(np.abs(np.array(middles) - part * S).argmin()) for part in (down, across))

    def cut_off(self):
        """Words that do not fit into their element, of all that can be seen."""
        return self.tab.evaluate(
            """() => [...document.querySelectorAll('.zfkit-explorer *')].filter(e => {
              if (!e.offsetParent || e.tagName === 'SELECT' || ![...e.childNodes].some(n => n.nodeType === 3 &&
                  n.textContent.trim())) return false;
              const cut = getComputedStyle(e).overflowX !== 'visible' && e.scrollWidth > e.clientWidth + 1;
              const range = document.createRange();
              range.selectNodeContents(e);
              const words = range.getBoundingClientRect();
              const root = document.querySelector('.zfkit-explorer').getBoundingClientRect();
              let hidden = words.right > root.right + 1;
              for (let box = e.parentElement; box && box.closest('.zfkit-explorer'); box = box.parentElement)
                if (getComputedStyle(box).overflowX === 'hidden' && words.right > box.getBoundingClientRect().right + 1)
                  hidden = true;
              return cut || hidden;
            }).map(e => e.innerText)"""
        )

    def settle(self, unlike=None, **wanted):
        """The view, once the page says what was wanted and shows what it says.

        `unlike` is a view that has to be gone before.
        """

        def look():
            view = self.view()
            if view == unlike:
                return view, "nothing has changed"
            differs = {k: getattr(view, k) for k, v in wanted.items() if getattr(view, k) != v}
            return view, f"{differs} instead of {wanted}" if differs else self.wrong(view)

        return self.page.until(look, lambda seen: not seen[1], "the page is not consistent", 20)[0]


def contains(picture, lens):
    """Is the lens in one of the picture's corners, 3 px from its edges?"""
    height, width = lens.shape[:2]
    return any(
        same(picture[y : y + height, x : x + width], lens)
        for y in (3, picture.shape[0] - height - 3)
        for x in (3, picture.shape[1] - width - 3)
    )


# -------------------------------------------------------------------------------------------------- it opens


def test_opens_as_asked_with_every_label_whole(explorer):
    view = explorer.settle(**START, rank=0, rule="deconvnet", gain=1.0)
    assert (view.row, view.col) == explorer.truth.maximum("conv4", 117, 0)
    assert explorer.cut_off() == []
    title = explorer.find(".zfkit-title").first
    assert (
        f"(folder {explorer.truth.folder.name})" in title.inner_text()
    )  # the rest of the path is its tooltip
    assert title.locator(f"[title='folder:{explorer.truth.folder}']").count() == 1


def test_every_control_is_reached_by_tab_and_shows_its_focus(explorer):
    explorer.find(".zfkit-tabs button").first.focus()
    for key in ("Tab", "Shift+Tab"):  # a button that a script focuses has no ring
        explorer.tab.keyboard.press(key)
    seen = []
    for _ in range(60):
        now = explorer.tab.evaluate(
            """() => {
              const e = document.activeElement, style = getComputedStyle(e);
              return {
                inside: !!e.closest('.zfkit-explorer'),
                name: e.getAttribute('aria-label') || e.innerText.trim() || e.title || '',
                what: e.tagName.toLowerCase() + '.' + e.className + ' in ' + e.parentElement.className,
                ring: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
              };
            }"""
        )
        if not now["inside"]:
            break
        seen.append(now)
        explorer.tab.keyboard.press("Tab")
    assert [one["what"] for one in seen if not one["name"]] == []
    assert [one["what"] for one in seen if not one["ring"]] == []
    named = " | ".join(one["name"] for one in seen)
    for control in ("Maps", "conv1", "conv5", "place in the order", "number", "order", "find", "rule", "gain",
                    "projections", "patches", "place on the feature map", "row", "column"):  # fmt: skip
        assert control in named, f"{control} is not among {named}"


# ----------------------------------------------------------------------------------------- layers and maps


def test_layers_by_mouse_and_by_keyboard(explorer):
    for layer in ("conv1", "conv5"):
        explorer.choose_layer(layer)
        explorer.settle(layer=layer)
    explorer.find(".zfkit-layers button:has-text('conv2')").focus()
    explorer.tab.keyboard.press("Enter")
    explorer.settle(layer="conv2")
    explorer.tab.keyboard.press("Tab")
    explorer.tab.keyboard.press("Space")
    explorer.settle(layer="conv3")


def test_maps_by_keyboard(explorer):
    explorer.press_on_map("ArrowRight")
    explorer.settle(channel=118)
    explorer.press_on_map("ArrowLeft", "ArrowLeft")
    explorer.settle(channel=116)
    explorer.press_on_map("Home")
    explorer.settle(channel=0)
    explorer.press_on_map("End")
    explorer.settle(channel=383)
    explorer.type_number(200)
    explorer.settle(channel=200)
    explorer.find(".zfkit-next").press("Enter")
    explorer.settle(channel=201)


@pytest.mark.parametrize("opened", ["notebook"], indirect=True)
def test_notebook_7_shows_the_same(explorer):
    explorer.press_on_map("ArrowRight")
    explorer.settle(channel=118)
    explorer.choose_layer("conv2")
    explorer.settle(layer="conv2", channel=0)
    explorer.find(".zfkit-ranks button").nth(4).click()
    explorer.settle(layer="conv2", rank=4)
    explorer.find(".zfkit-heat canvas").click(position={"x": 60, "y": 100})
    explorer.page.until(
        explorer.view, lambda view: (view.row, view.col) != (None, None), "no place was picked"
    )
    explorer.settle(layer="conv2", rank=4)
    explorer.tab_named("Compare")
    compared = f"{ROOT_BOX} .zfkit-compared img"
    explorer.page.wait_for(compared)
    explorer.page.until(
        lambda: explorer.page.picture(compared), lambda now: now.shape[0] > 3 * 60, "nothing to compare", 30
    )
    explorer.tab_named("Maps")
    explorer.settle(layer="conv2", rank=4)


def test_maps_by_mouse(explorer):
    explorer.find(".zfkit-next").click()
    explorer.settle(channel=118)
    explorer.find(".zfkit-previous").click()
    explorer.find(".zfkit-previous").click()
    explorer.settle(channel=116)
    box = explorer.find(".zfkit-map .noUi-target").bounding_box()
    x, y = box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2
    before = explorer.view()
    explorer.tab.mouse.click(x, y)
    view = explorer.settle(unlike=before)
    assert 240 < view.channel < 300
    handle = explorer.find(".zfkit-map .noUi-handle").bounding_box()
    explorer.tab.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    explorer.tab.mouse.down()
    for i in range(12):  # a drag: many positions in between, of which only the last one counts
        explorer.tab.mouse.move(x - 5 * i, y)
    explorer.tab.mouse.up()
    explorer.tab.wait_for_timeout(300)
    now = explorer.settle(unlike=view)
    assert now.channel < view.channel - 60
    explorer.find(".zfkit-random").click()
    explorer.settle(unlike=now)


def test_a_key_held_down_ends_where_it_says(explorer):
    explorer.press_on_map(*["ArrowRight"] * 25)
    explorer.settle(channel=START["channel"] + 25)
    explorer.press_on_map(*["ArrowLeft"] * 25)
    explorer.settle(channel=START["channel"])


def test_rules_and_gain(explorer):
    for rule in ("guided", "gradient"):
        explorer.choose_rule(rule)
        explorer.settle(rule=rule)
    explorer.find(".zfkit-gain .noUi-handle").focus()
    explorer.tab.keyboard.press("ArrowRight")
    explorer.settle(gain=1.25)
    explorer.tab.keyboard.press("ArrowRight")
    explorer.settle(gain=1.5)
    assert "1.5" in explorer.find(".zfkit-scale").first.inner_text()
    explorer.tab.keyboard.press("ArrowLeft")
    explorer.tab.keyboard.press("ArrowLeft")
    explorer.settle(gain=1.0)


# ------------------------------------------------------------------------------------- ranks and positions


def test_ranks_by_tile_button_and_key(explorer):
    t = explorer.truth
    explorer.find(".zfkit-ranks button").nth(4).click()
    view = explorer.settle(rank=4)
    assert (view.row, view.col) == t.maximum("conv4", 117, 4)
    grid = explorer.find(".zfkit-patches canvas")
    grid.click(position={"x": 2.5 * TILE, "y": 1.5 * TILE})
    explorer.settle(rank=5)
    explorer.tab.keyboard.press("ArrowDown")
    view = explorer.settle(rank=8)
    assert (view.row, view.col) == t.maximum("conv4", 117, 8)
    explorer.tab.mouse.move(2, 2)  # nothing is below the pointer any more
    explorer.settle(rank=8)


def test_hover_previews_and_goes_back(explorer):
    before = explorer.page.picture(PHOTO)
    explorer.find(".zfkit-projections canvas").hover(position={"x": 1.5 * TILE, "y": 1.5 * TILE})
    explorer.page.picture_once_changed(PHOTO, before)
    explorer.tab.mouse.move(2, 2)
    explorer.page.until(
        lambda: explorer.page.picture(PHOTO), lambda now: bool((now == before).all()), "the preview stays", 20
    )
    explorer.settle(rank=0)


def test_positions_on_the_map_by_click_key_and_slider(explorer):
    t, layer, channel = explorer.truth, "conv5", 133
    explorer.choose_layer(layer)
    explorer.settle(layer=layer)
    explorer.type_number(channel)
    view = explorer.settle(layer=layer, channel=channel)
    assert (view.row, view.col) == t.maximum(layer, channel, 0)
    canvas = explorer.find(".zfkit-heat canvas")
    side = canvas.bounding_box()["width"]
    row, col = explorer.unit_at(layer, 0.6, 0.4)
    canvas.click(position={"x": 0.4 * side, "y": 0.6 * side})
    explorer.settle(layer=layer, row=row, col=col)
    for key, (down, across) in {"ArrowDown": (1, 0), "ArrowLeft": (0, -1), "ArrowUp": (-1, 0)}.items():
        explorer.tab.keyboard.press(key)
        row, col = row + down, col + across
        explorer.settle(row=row, col=col)
    sliders = explorer.find(".zfkit-heat .noUi-handle")
    sliders.nth(0).focus()
    explorer.tab.keyboard.press("ArrowRight")
    explorer.settle(row=row + 1, col=col)
    sliders.nth(1).focus()
    explorer.tab.keyboard.press("Home")
    explorer.settle(row=row + 1, col=0)
    explorer.find(".zfkit-maximum").click()
    row, col = t.maximum(layer, channel, 0)
    explorer.settle(row=row, col=col)


# ---------------------------------------------------------------------------------------------- own pictures


def to_upload(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return {
        "name": f"picture.{kind.lower()}",
        "mimeType": f"image/{kind.lower()}",
        "buffer": buffer.getvalue(),
    }


def upload(explorer, file):
    with explorer.tab.expect_file_chooser() as asked:
        explorer.find(".zfkit-upload").click()
    asked.value.set_files(file)


def test_a_picture_of_your_own(explorer):
    """A layer's strongest maps in it, projected; the same as zfkit's on that picture."""
    t = explorer.truth
    rgb = t.photos[5][0]
    explorer.tab_named("Your own image")
    upload(explorer, to_upload(Image.fromarray(rgb.permute(1, 2, 0).numpy())))
    strongest = f"{ROOT_BOX} .zfkit-strongest img"
    explorer.page.wait_for(strongest)
    with torch.no_grad():
        values = t.model.net[: t.model.layers.index("conv4") + 1](t.model.preprocess(rgb[None]))[0]
    best = values.flatten(1).amax(1).argsort(descending=True)[:9].tolist()
    explorer.page.until(
        lambda: explorer.find(".zfkit-captions").first.inner_text(),
        lambda said: f"map {best[0]}:" in said,
        "no captions",
        20,
    )
    field = zfkit.receptive_field(t.model, "conv4")
    for channel, tile in zip(best, tiles_in(explorer.page.picture(strongest)), strict=True):
        row, col = divmod(int(values[channel].argmax()), values.shape[2])
        pixels = zfkit.project(
            t.model, t.model.preprocess(rgb[None]), "conv4", channel, torch.tensor([[row, col]])
        )[0]
        left, top, right, bottom = field.box(row, col)
        window = torch.zeros(3, field.size, field.size)
        inside = pixels[:, max(top, 0) : bottom, max(left, 0) : right]
        y, x = max(-top, 0), max(-left, 0)
        window[:, y : y + inside.shape[1], x : x + inside.shape[2]] = inside
        assert same(tile, resampled(rgb_of(window), TILE, TILE)), f"map {channel}"
    own = explorer.page.picture(f"{ROOT_BOX} .zfkit-own img").astype(int)
    expected = resampled(rgb.permute(1, 2, 0).numpy(), *own.shape[:2]).astype(int)
    assert np.abs(own - expected).mean() < 6  # a JPEG
    if explorer.kind == "lab":  # narrow: grids below the picture, so probabilities have room beside it
        beside, picture = (
            explorer.find(f".zfkit-{n}").first.bounding_box() for n in ("probabilities", "own")
        )
        assert (
            beside["x"] >= picture["x"] + picture["width"] and beside["y"] < picture["y"] + picture["height"]
        )
    likely = explorer.find(".zfkit-probabilities svg").first.get_attribute("aria-label")
    assert re.search(r"\d+%", likely)
    # A click on a tile goes to its map.
    explorer.find(".zfkit-strongest canvas").click(position={"x": 1.5 * TILE, "y": 0.5 * TILE})
    explorer.settle(layer="conv4", channel=best[1])


def test_what_is_no_picture_gets_a_sentence(explorer):
    explorer.tab_named("Your own image")
    upload(explorer, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"not a picture at all"})
    explorer.page.until(
        lambda: explorer.sentence("strongest"), lambda said: "notes.txt" in said, "no sentence", 25
    )
    explorer.tab_named("Maps")
    explorer.settle(**START)


# ------------------------------------------------------------------------------------------- compare, keep


def test_methods_side_by_side(explorer):
    """Patch, deconvnet, guided, gradient, shuffled: one row for each of the three strongest pictures."""
    t = explorer.truth
    explorer.tab_named("Compare")
    explorer.find(".zfkit-versus select").select_option(label="methods")
    compared = f"{ROOT_BOX} .zfkit-compared img"
    explorer.page.wait_for(compared)

    def look():
        return explorer.page.picture(compared)

    shown = explorer.page.until(look, lambda now: now.shape[0] > 3 * 60, "nothing to compare", 30)
    side = (shown.shape[0] - 2 * GAP) // 3
    assert shown.shape[1] == 5 * side + 4 * GAP
    for column, rule in enumerate(("deconvnet", "guided", "gradient"), 1):
        found = zfkit.project_top(t.model, t.photos, t.top, "conv4", [117], rule=rule)
        for line in range(3):
            y, x = line * (side + GAP), column * (side + GAP)
            rgb = rgb_of(found.projection[0, line])
            expected = (enlarged if 2 * len(rgb) <= side else resampled)(rgb, side, side)
            assert same(shown[y : y + side, x : x + side], expected), f"{rule}, picture {line + 1}"
    shuffled = shown[:, 4 * (side + GAP) :].astype(int)
    learned = shown[:, side + GAP : 2 * side + GAP].astype(int)
    assert np.abs(shuffled[:, :side] - learned).mean() > 5
    assert explorer.cut_off() == []


def test_two_models_side_by_side(explorer):
    explorer.tab_named("Compare")
    explorer.find(".zfkit-versus select").select_option(label="with alexnet64")
    explorer.page.until(
        lambda: explorer.find(".zfkit-compare-page").inner_text(),
        lambda said: (
            "zfnet64 conv4" in said
            and "alexnet64 conv4" in said
            and len(re.findall(r"\b\d+ · \d", said)) == 18  # map · activation
        ),
        "no second model",
        40,
    )
    explorer.page.wait_for(f"{ROOT_BOX} .zfkit-model-2 img")
    photo, first, second = (
        explorer.find(f".zfkit-compare-models {name}").first.bounding_box()
        for name in (".zfkit-shared img", ".zfkit-model-1 img", ".zfkit-model-2 img")
    )
    assert photo["y"] + photo["height"] <= first["y"]
    assert first["y"] == second["y"] and first["x"] + first["width"] <= second["x"]
    assert abs(first["width"] - first["height"]) < 1
    assert explorer.cut_off() == []


def test_saving_a_picture(explorer, notebooks):
    """The PNG holds the grid of the page, pixel by pixel; the file on disk is the one to download."""
    explorer.find(".zfkit-save").click()
    link = explorer.find(".zfkit-saved a[download]")
    with explorer.tab.expect_download() as waiting:
        link.click()
    saved = Path(waiting.value.path()).read_bytes()
    name = waiting.value.suggested_filename
    assert name == "zfnet64-conv4-117.png"
    if explorer.kind == "lab":
        assert (notebooks / name).read_bytes() == saved
        (notebooks / name).unlink()  # both pages are opened in this folder
    else:
        assert not (notebooks / name).exists()  # whoever looks at a page cannot write to its server
    sheet = np.asarray(Image.open(io.BytesIO(saved)).convert("RGB"))
    grid = explorer.page.picture(PROJECTIONS)
    height, width = grid.shape[:2]
    places = np.argwhere((sheet[: sheet.shape[0] - height, : sheet.shape[1] - width] == grid[0, 0]).all(-1))
    assert any((sheet[y : y + height, x : x + width] == grid).all() for y, x in places)


# -------------------------------------------------------------------------------------------------- a monkey


@pytest.mark.parametrize("seed", [1])
def test_fifty_random_actions_leave_a_consistent_view(explorer, seed):
    """No waiting in between; every ten actions, what is shown has to be what is said."""
    draw = random.Random(seed)
    keys = ["ArrowRight", "ArrowLeft", "PageUp", "PageDown", "Home", "End"]
    find, tab = explorer.find, explorer.tab

    def click_on(selector):
        canvas = find(selector)
        box = canvas.bounding_box()
        canvas.click(
            position={"x": draw.uniform(1, box["width"] - 2), "y": draw.uniform(1, box["height"] - 2)}
        )

    def elsewhere():
        explorer.tab_named(draw.choice(["Your own image", "Compare"]))
        tab.wait_for_timeout(draw.uniform(0, 200))
        explorer.tab_named("Maps")

    def maximum():
        if find(".zfkit-maximum").is_visible():
            find(".zfkit-maximum").dispatch_event("click")

    actions = {
        lambda: explorer.press_on_map(*draw.choices(keys, k=draw.randint(1, 6))): 8,
        lambda: explorer.choose_layer(f"conv{draw.randint(1, 5)}"): 4,
        lambda: explorer.type_number(draw.choice([0, 3, 64, 200, 9999, -1])): 3,
        lambda: find(draw.choice([".zfkit-next", ".zfkit-previous", ".zfkit-random"])).click(): 4,
        lambda: find(".zfkit-ranks button").nth(draw.randrange(9)).click(): 3,
        lambda: click_on(draw.choice([".zfkit-projections canvas", ".zfkit-patches canvas"])): 3,
        lambda: click_on(".zfkit-heat canvas"): 4,
        lambda: find(".zfkit-heat canvas").press(draw.choice(["ArrowUp", "ArrowLeft", "ArrowRight"])): 3,
        lambda: find(".zfkit-heat .noUi-handle").nth(draw.randrange(2)).press(draw.choice(keys)): 2,
        lambda: explorer.choose_rule(draw.choice(["deconvnet", "guided", "gradient"])): 2,
        lambda: find(".zfkit-gain .noUi-handle").press(draw.choice(keys)): 2,
        lambda: find(".zfkit-order select").select_option(index=draw.randrange(5)): 2,
        lambda: explorer.search(draw.choice(["chelsea", "brick", "nothing like that", ""])): 2,
        lambda: find(".zfkit-code-button").click(): 1,
        elsewhere: 2,
        maximum: 1,
    }
    for step in range(1, 51):
        draw.choices(list(actions), list(actions.values()))[0]()
        tab.wait_for_timeout(draw.choice([0, 0, 30, 150]))
        if step % 10 == 0:
            tab.mouse.move(2, 2)
            tab.wait_for_timeout(300)  # what was asked last is on its way
            explorer.settle()
    notice = find(".zfkit-notice p")
    assert not (notice.count() and notice.first.is_visible()), notice.first.inner_text()
    if find(".zfkit-code textarea").is_visible():
        find(".zfkit-code-button").click()
    find(".zfkit-gain .noUi-handle").press("Home")
    for _ in range(3):  # back to gain 1
        find(".zfkit-gain .noUi-handle").press("ArrowRight")
        tab.wait_for_timeout(100)
