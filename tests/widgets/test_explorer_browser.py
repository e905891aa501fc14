"""The explorer in JupyterLab and on a Voila page, driven by keys and mouse in a real Chromium.

Whatever is done, what the page shows has to be what zfkit computes here for what the page says, pixel by pixel. The way
from projections to pixels (one symmetric scale around grey) is written once more below.

Screenshots go to the folder in ZFKIT_SCREENSHOTS, if that is set.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import os
import random
import re
from pathlib import Path

import browser as b
import nbformat
import numpy as np
import psutil
import pytest
import torch
from explored import window
from PIL import Image

import zfkit
from zfkit.widgets import ExplorerView, State

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(b.why_not()), reason=b.why_not())]
START = {"layer": "conv4", "channel": 117}


# ------------------------------------------------------------------------------------------------- the truth


def rgb_of(projection, gain=1.0):
    """(3, H, W) signed -> uint8 (H, W, 3): 0 is grey 128, full contrast at the 99.5th percentile of |values|."""
    values = projection.numpy().astype(np.float64)
    magnitude = np.abs(values)
    scale = np.quantile(magnitude, 0.995) or magnitude.max() or 1.0
    shown = 128 + 127 * np.clip(gain * values / scale, -1, 1)
    return np.rint(shown).astype(np.uint8).transpose(1, 2, 0)


def same(shown, expected, tolerance=2):
    """Equal up to rounding, of float32 here and there."""
    return shown.shape == expected.shape and bool(
        (np.abs(shown.astype(int) - expected.astype(int)) <= tolerance).all()
    )


def write_pictures(folder, every=5):
    """A folder of a cut out of every fifth bundled photograph, and of the astronaut: one class for each."""
    album = zfkit.load_images("photos", progress=False)
    cuts = {album.name(i).split(" (")[0]: i for i in reversed(range(len(album)))}
    for name in sorted({*sorted(cuts)[::every], "astronaut"}):
        (folder / name).mkdir(parents=True)
        rgb = album[cuts[name]][0].permute(1, 2, 0).numpy()
        Image.fromarray(rgb).save(folder / name / f"{cuts[name]}.png")
    return folder


class Truth:
    """What should be seen, from zfkit's arithmetic alone."""

    def __init__(self, folder):
        self.model = zfkit.load_model("zfnet64")
        self.folder = write_pictures(folder)
        self.photos = zfkit.load_images(f"folder:{folder}", progress=False)
        self.top = zfkit.mine(self.model, self.photos, progress=False)

    @functools.cache  # noqa: B019
    def tiles(self, layer, channel, rule, gain):
        """The nine projections of a map, as they are shown."""
        all_of = self.model, self.photos, self.top, layer, [channel]
        found = zfkit.project_top(*all_of, rule=rule, progress=False)
        return [rgb_of(projection, gain) for projection in found.projection[0]]

    @functools.cache  # noqa: B019
    def unit(self, layer, channel, rank, place, rule, gain):
        """The unit's window of its projection on the whole picture; grey outside of it."""
        image = int(self.top[layer].image[channel, rank])
        return rgb_of(window(self.model, self.photos.take([image])[0], layer, channel, place, rule), gain)

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
@pytest.mark.parametrize("target", ["lab", "app"])
def test_what_make_starts_is_for_this_machine_and_its_user_alone(tmp_path, target):
    port = b.free_port()
    command = b.made(target, f"--port={port}")
    with b.serving(["sh", "-c", command], tmp_path, port, b.ROOT, token=False) as server:
        assert server.listens_on() == {"127.0.0.1"}
        for path in ("/api/kernels", {"lab": "/lab", "app": "/"}[target]):
            assert re.match(r"403|302 /login", server.answers(path)), server.answers(path)


# ------------------------------------------------------------------------------------------------- the pages

CELL = """
import zfkit
model = zfkit.load_model("zfnet64")
photos = zfkit.load_images("folder:PICTURES", progress=False)
explorer = zfkit.explore(model, photos, zfkit.TopK.load("top.parquet"), layer="conv4", channel=117)
explorer
"""


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory, truth):
    """explorer.ipynb as somebody writes it; app.ipynb as `make app` shows it, with other parameters."""
    folder = tmp_path_factory.mktemp("notebooks")
    table = truth.top.save(folder / "top.parquet")
    b.write_notebook(folder / "explorer.ipynb", CELL.replace("PICTURES", str(truth.folder)))
    page = nbformat.read(b.PAGE / "app.ipynb", as_version=4)
    parameters = next(cell for cell in page.cells if "parameters" in cell.metadata.get("tags", []))
    # A link goes before the layer.
    values = {"images": f"folder:{truth.folder}", "table": str(table), "layer": "conv2"}
    parameters.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    nbformat.write(page, folder / "app.ipynb")
    return folder


@pytest.fixture(scope="module", autouse=True)
def kept(tmp_path_factory):
    """What the explorer keeps on disk, for all servers of this file."""
    before = os.environ.get("ZFKIT_CACHE")
    os.environ["ZFKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("ZFKIT_CACHE")
    if before is not None:
        os.environ["ZFKIT_CACHE"] = before


@pytest.fixture(autouse=True)
def nothing_kept():
    """In the place of the other tests' fixture: here what is kept is the server's."""


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    chosen = os.environ.get("ZFKIT_SCREENSHOTS")
    return Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")


@pytest.fixture(scope="module", params=["lab", "voila"])
def opened(request, tmp_path_factory, chromium, notebooks, truth):
    """The explorer's page, which stays open from test to test."""
    folder = tmp_path_factory.mktemp(request.param)
    front, size = request.param, {"width": 1400, "height": 1100}
    if front in ("lab", "notebook"):
        with b.jupyter_lab(folder, notebooks, front) as server:
            page = b.open_lab(chromium, server, "explorer.ipynb", front, **size)
            yield Explorer(front, page, truth, server)
            page.tab.context.close()
    else:
        with b.voila(folder, notebooks / "app.ipynb") as server:
            page = b.open_page(chromium, 1280, 900)
            page.tab.goto(f"{server.url}/?token={server.token}&layer=conv4&map=117")
            yield Explorer(front, page, truth, server)
            page.tab.context.close()


# What Notebook 7 says of its own: about its settings' schemas, and, where Voila loads its extension, about that.
OTHERS = (
    "Cannot read properties of undefined (reading 'schema')",
    "The getter for the shared module is not a function",
)


@pytest.fixture
def explorer(opened, request, shots):
    """The same, at its first view before the test, and free of errors after it."""
    opened.page.wait_for(".zx .zx-tabs")
    opened.reset()
    yield opened
    opened.tab.wait_for_timeout(50)  # what was said just now arrives
    name = re.sub(r"\W+", "_", request.node.name).strip("_")
    opened.page.screenshot(shots / f"{name}.png")
    said, opened.page.said[:] = [s for s in opened.page.said if not any(o in s for o in OTHERS)], []
    assert said == []
    assert opened.page.asked == []


_VIEW = """
() => {
  const root = document.querySelector('.zx');
  const one = selector => root.querySelector(selector);
  const pressed = elements => [...elements].findIndex(e => e.getAttribute('aria-pressed') === 'true');
  return {
    layer: one('.zx-layers [aria-pressed=true]').dataset.layer,
    channel: Number(one('.zx-count b').innerText),
    rank: pressed(one('.zx-three .zx-nine').children),
    tab: one('.zx-tabs [aria-selected=true]').dataset.tab,
    rule: one('[data-field=rule]').value, gain: Number(one('[data-field=gain]').value),
    stale: root.querySelectorAll('.zx-three.zx-stale, .zx-three .zx-stale').length,
    sentence: one('.zx-sentence').innerText,
    place: (one('.zx-fires').getAttribute('aria-label') || '').match(/\\d+/g)?.map(Number) || [],
  };
}
"""
_PIXELS = "canvas => canvas.toDataURL('image/png').split(',')[1]"


class Explorer:
    """Hands and eyes on the explorer's page."""

    def __init__(self, kind, page, truth, server):
        self.kind, self.page, self.tab, self.truth, self.server = kind, page, page.tab, truth, server
        self.size = page.tab.viewport_size

    # -- hands

    def find(self, selector):
        return self.tab.locator(f".zx {selector}")

    def press(self, *keys):
        """Keys, while the film strip has the focus."""
        self.find(".zx-bars").focus()
        for key in keys:
            self.tab.keyboard.press(key)

    def choose(self, field, value):
        self.find(f"[data-field={field}]").select_option(str(value))

    def layer(self, name):
        self.find(f"[data-layer={name}]").click()

    def to(self, channel, layer=None):
        """To a map, by keys."""
        if layer:
            self.layer(layer)
            self.until(layer=layer)
        self.press("Home", *["PageDown"] * (channel // 10), *["ArrowRight"] * (channel % 10))
        return self.settle(channel=channel)

    def reset(self):
        """Back to the first view, by mouse."""
        self.tab.set_viewport_size(self.size)
        self.tab.mouse.move(2, 2)
        self.find("[data-tab=maps]").click()
        if self.find(".zx-all").get_attribute("aria-pressed") == "true":
            self.find(".zx-all").click()
        self.find("[type=search]").fill("")
        self.find("[type=search]").blur()
        for field, value in (("order", "index"), ("rule", "deconvnet"), ("colours", "signed"), ("gain", 1)):
            self.choose(field, value)
        if self.view()["layer"] != "conv4":
            self.layer("conv4")
        self.until(layer="conv4")
        read = self.find(".zx-bars").get_attribute
        self.page.until(  # keys go by the order that is shown: all maps, by number
            lambda: [int(read(name)) for name in ("aria-valuemax", "aria-valuenow")],
            lambda now: now == [383, self.view()["channel"]],
            "another order",
        )
        if self.view()["channel"] != 117:
            self.to(117)
        self.find(".zx-three .zx-nine .zx-tile").first.click()
        if self.find("button:has-text('back to the maximum')").is_visible():
            self.find("button:has-text('back to the maximum')").click()
        self.settle(**START, rank=0, rule="deconvnet", gain=1)

    # -- eyes

    def view(self):
        return self.tab.evaluate(_VIEW)

    def until(self, **wanted):
        """The view, once it says so and nothing on the page belongs to another one."""
        return self.page.until(
            self.view,
            lambda v: all(v[name] == value for name, value in wanted.items()) and not v["stale"],
            f"never {wanted}",
        )

    def pixels(self, selector, i=0):
        return b.decoded(self.find(selector).nth(i).evaluate(_PIXELS))

    def settle(self, **wanted):
        """The view, once it says so; and then all pixels have to be the truth's."""
        view = self.until(**wanted)
        if self.truth.dead(view["layer"], view["channel"]):
            assert "is dead" in view["sentence"]
            return view
        tiles = self.truth.tiles(view["layer"], view["channel"], view["rule"], view["gain"])
        for i, expected in enumerate(tiles):
            assert same(self.pixels(".zx-three .zx-nine >> nth=1 >> canvas", i), expected), f"{i} of {view}"
        names = ("layer", "channel", "rank", "place", "rule", "gain")
        unit = self.truth.unit(*(tuple(view[n]) if n == "place" else view[n] for n in names))
        assert same(self.pixels(".zx-four > :nth-child(4) canvas"), unit), view
        return view


# -------------------------------------------------------------------------------------------- what is there


def test_opens_as_asked(explorer):
    view = explorer.settle(**START, rank=0, rule="deconvnet", gain=1)
    assert tuple(view["place"]) == explorer.truth.maximum("conv4", 117, 0)
    title = explorer.find("h2 span")
    # the rest of the path is its tooltip
    assert f"(folder {explorer.truth.folder.name})" in title.inner_text()
    assert title.get_attribute("title") == f"folder:{explorer.truth.folder}"


def test_every_picture_has_a_text_and_the_new_map_is_said(explorer):
    explorer.press("ArrowRight")
    explorer.settle(channel=118)
    assert explorer.find("[role=status].zx-unseen").inner_text() == "conv4 map 118"
    silent = explorer.find("canvas:not([aria-hidden]):not([role])").evaluate_all(
        """all => all.filter(c => c.getClientRects().length
             && !c.closest('button[aria-label], button[title], .zx-fires')).length"""
    )
    assert silent == 0
    label = explorer.find(".zx-tile canvas").first.get_attribute("aria-label")
    assert label.startswith("patch of conv4 map 118, 1: ")


def test_every_control_is_reached_by_tab_and_shows_its_focus(explorer):
    explorer.find(".zx-tabs [aria-selected=true]").focus()
    for key in ("Tab", "Shift+Tab"):  # a button that a script focuses has no ring
        explorer.tab.keyboard.press(key)
    seen = []
    for _ in range(80):
        now = explorer.tab.evaluate(
            """() => {
              const e = document.activeElement, style = getComputedStyle(e);
              return {
                inside: !!e.closest('.zx'),
                name: e.getAttribute('aria-label') || e.innerText.trim() || e.title
                  || e.closest('label')?.innerText || '',
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
    for control in ("Maps", "conv1", "conv5", "feature map", "sort", "find maps", "random", "all 384", "rule",
                    "colours", "contrast", "where the map fires"):  # fmt: skip
        assert control in named, f"{control} is not among {named}"


def test_nothing_is_cut_off_from_phones_to_projectors(explorer, shots):
    if explorer.kind != "voila":
        pytest.skip("JupyterLab has a width of its own")
    for width, height in ((360, 740), (590, 800), (830, 900), (1024, 768), (1280, 800), (1920, 1080)):
        explorer.tab.set_viewport_size({"width": width, "height": height})
        explorer.tab.wait_for_timeout(300)
        explorer.page.screenshot(shots / f"explorer_{width}.png")
        controls = "button, select, input:not(.zx-unseen), canvas[role=img], [role=slider]"
        outside = explorer.find(controls).evaluate_all(
            """all => all.filter(e => {
              const box = e.getBoundingClientRect();
              const scrolls = e.closest('.zx-layers, .zx-shelf');
              return box.width && !scrolls && (box.left < -0.5 || box.right > innerWidth + 0.5);
            }).map(e => e.outerHTML.slice(0, 80))"""
        )
        assert outside == [], width
        over = explorer.find(".zx-three > section *").evaluate_all(
            """all => all.filter(e => e.getBoundingClientRect().right
                 > e.closest('section').getBoundingClientRect().right + 1).map(e => e.outerHTML.slice(0, 80))"""
        )
        assert over == [], width  # nothing reaches into the part beside it
        cut = explorer.find("h2, h3, p, button, summary, label, .zx-hint, .zx-count").evaluate_all(
            """all => all.filter(e => getComputedStyle(e).overflow === 'hidden' && e.scrollWidth > e.clientWidth + 1
                 && e.getClientRects().length && !e.closest('[title], .zx-unseen')
               ).map(e => e.outerHTML.slice(0, 80))"""
        )
        assert cut == [], width  # what is cut off tells all of it in its title
        assert explorer.tab.evaluate("document.documentElement.scrollWidth") <= width
        small = explorer.find("*").evaluate_all(
            """all => all.filter(e => e.getClientRects().length && parseFloat(getComputedStyle(e).fontSize) < 14)
                 .map(e => e.outerHTML.slice(0, 80))"""
        )
        assert small == [], width
        for layer in ("conv1", "conv4") * (width > 1000):  # filters stand beside facts in the first alone
            explorer.layer(layer)
            explorer.settle(layer=layer)
            explorer.page.wait_for(".zx-control canvas")
            bottom = explorer.tab.evaluate("document.querySelector('.zfkit').getBoundingClientRect().bottom")
            assert bottom <= height, f"{layer} has to be scrolled at {width} x {height}"


def test_no_serious_finding_of_axe(explorer):
    from axe_playwright_python.sync_playwright import Axe

    for scheme in ("dark", "light"):
        explorer.tab.emulate_media(color_scheme=scheme)
        for tab in ("image", "compare", "maps", "wall"):
            if tab == "wall":
                explorer.press("a")
                explorer.page.wait_for(".zx-wall canvas")
            else:
                explorer.find(f"[data-tab={tab}]").click()
                explorer.until(tab=tab)
            found = Axe().run(explorer.tab, context=".zx").response["violations"]
            serious = [v for v in found if v["impact"] in ("serious", "critical")]
            assert [(v["id"], v["nodes"][0]["html"][:120]) for v in serious] == [], f"{tab}, {scheme}"
        explorer.press("a")


# ----------------------------------------------------------------------------------------- layers and maps


def test_layers_by_mouse_and_by_keys(explorer):
    for layer in ("conv1", "conv5"):
        explorer.layer(layer)
        explorer.settle(layer=layer, channel=0)
    explorer.press("ArrowDown")
    explorer.settle(layer="conv4")
    explorer.press("ArrowUp")
    explorer.settle(layer="conv5")


def test_maps_by_keys(explorer):
    explorer.press("ArrowRight")
    explorer.settle(channel=118)
    explorer.press("ArrowLeft", "ArrowLeft")
    explorer.settle(channel=116)
    explorer.press("Home")
    explorer.settle(channel=0)
    for layer, last in (("conv4", 383), ("conv1", 95)):
        explorer.layer(layer)
        explorer.until(layer=layer)
        explorer.press("End")
        explorer.settle(channel=last)
    explorer.press("PageUp")
    explorer.settle(channel=85)
    explorer.press("r")
    assert explorer.page.until(explorer.view, lambda v: v["channel"] != 85, "no other map was drawn")
    explorer.settle(layer="conv1")


def test_the_next_map_is_there_before_the_kernel_hears_of_it(explorer):
    """What a step leads to lies in the browser: while the kernel stands still, the page turns all the same."""
    children = psutil.Process(explorer.server.process.pid).children(recursive=True)
    kernels = [p for p in children if "ipykernel_launcher" in " ".join(p.cmdline())]
    before = -1.0
    while (
        used := sum(sum(p.cpu_times()[:2]) for p in kernels)
    ) > before + 0.1:  # they draw what may come next
        before = used
        explorer.tab.wait_for_timeout(3000)
    where = {"ArrowRight": ("conv4", 118), "ArrowLeft": ("conv4", 117), "ArrowUp": ("conv5", 0)}
    for kernel in kernels:
        kernel.suspend()
    try:
        for key, (layer, channel) in where.items():
            explorer.press(key)
            said = explorer.find("[role=status].zx-unseen").inner_text
            explorer.page.until(said, f"{layer} map {channel}".__eq__, "nothing came")
            for i, expected in enumerate(explorer.truth.tiles(layer, channel, "deconvnet", 1)):
                assert same(explorer.pixels(".zx-three .zx-nine >> nth=1 >> canvas", i), expected), (key, i)
            assert not explorer.find(".zx-three.zx-stale").count()
            one = explorer.find(".zx-three > :last-child.zx-stale").count()
            assert bool(one) == (channel != 117)  # what the kernel has not sent yet
    finally:
        for kernel in kernels:
            kernel.resume()
    explorer.settle(layer="conv5", channel=0)


@pytest.mark.parametrize("opened", ["notebook"], indirect=True)
def test_notebook_7_shows_the_same(explorer):
    explorer.press("ArrowRight")
    explorer.settle(channel=118)
    explorer.find("[data-tab=compare]").click()
    explorer.page.wait_for(".zx-methods canvas")


def test_maps_by_mouse(explorer):
    box = explorer.find(".zx-bars").bounding_box()
    middle = box["y"] + box["height"] / 2
    explorer.tab.mouse.click(box["x"] + box["width"] * 200.5 / 384, middle)
    explorer.settle(channel=200)
    explorer.tab.mouse.move(box["x"] + box["width"] * 200.5 / 384, middle)
    explorer.tab.mouse.down()
    for place in range(201, 260, 4):
        explorer.tab.mouse.move(box["x"] + box["width"] * (place + 0.5) / 384, middle)
    explorer.tab.mouse.up()
    explorer.settle(channel=257)
    explorer.find(".zx-shelf button").first.click()
    assert explorer.page.until(explorer.view, lambda v: v["channel"] < 257, "the strip leads nowhere")
    explorer.settle()


def test_keys_work_after_a_click_that_falls_on_no_control(explorer):
    for channel, place in enumerate(("h2", ".zx-known h3", ".zx-shelf button"), 118):
        explorer.page.wait_for(f".zx {place}").click()
        explorer.tab.wait_for_timeout(100)
        if place == ".zx-shelf button":  # which takes itself away
            channel = explorer.until()["channel"] + 1
        explorer.tab.keyboard.press("ArrowRight")
        explorer.settle(channel=channel)


def test_a_key_held_down_ends_where_it_says(explorer):
    explorer.press(*["ArrowRight"] * 25)
    explorer.settle(channel=142)


def test_rules_contrast_and_colours(explorer):
    for rule in ("guided", "gradient", "deconvnet"):
        explorer.choose("rule", rule)
        explorer.settle(rule=rule)
    for gain in (4, 1.5):
        explorer.choose("gain", gain)
        explorer.settle(gain=gain)
    explorer.choose("gain", 1)
    explorer.settle(gain=1)
    shown = functools.partial(explorer.pixels, ".zx-three .zx-nine >> nth=1 >> canvas")
    plain = shown()
    explorer.choose("colours", "natural")
    shown = explorer.page.until(shown, lambda now: bool((now != plain).any()), "no other colours")
    assert np.ptp(shown.astype(int).mean((0, 1))) < 40  # grey on average, as before


def test_tiles_by_click_and_key(explorer):
    for rank in (4, 8):
        explorer.find(".zx-three .zx-nine >> nth=1 >> .zx-tile").nth(rank).click()
        view = explorer.settle(rank=rank)
        assert tuple(view["place"]) == explorer.truth.maximum("conv4", 117, rank)
    explorer.press("3")
    explorer.settle(rank=2)


def test_space_lays_projections_over_patches(explorer):
    place = ".zx-three .zx-nine >> nth={} >> canvas"
    patch, projection = (explorer.pixels(place.format(n), 1).astype(float) for n in (0, 1))
    explorer.press(" ")
    blended = explorer.pixels(place.format(0), 1)
    assert np.abs(blended - (0.4 * patch + 0.6 * projection)).max() <= 2
    explorer.press(" ")
    assert np.array_equal(explorer.pixels(place.format(0), 1), patch)


def test_places_on_the_map_by_click_and_key(explorer):
    view = explorer.view()
    row, col = view["place"]
    explorer.find(".zx-fires").focus()
    explorer.tab.keyboard.press("ArrowDown")
    explorer.settle(place=[row + 1, col])
    box = explorer.find(".zx-fires").bounding_box()
    explorer.tab.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.3)
    moved = explorer.page.until(
        explorer.view, lambda v: not v["stale"] and v["place"] != [row + 1, col], "a click leads nowhere"
    )
    explorer.settle()
    field = zfkit.receptive_field(explorer.truth.model, "conv4").box(*moved["place"])
    middle = (field.left + field.right) / 2 / 224, (field.top + field.bottom) / 2 / 224
    assert middle == pytest.approx((0.5, 0.3), abs=0.6 * 8 / 224)  # half a unit
    image = int(explorer.truth.top["conv4"].image[117, 0])
    pixels = explorer.truth.photos[image][0]
    maps = dict(zfkit.nets.activations.activations(explorer.truth.model, pixels, ["conv4"]))["conv4"]
    silent = float(maps[0, 117][tuple(moved["place"])]) <= 0
    assert explorer.find(".zx-silent").count() == int(silent)
    explorer.find("button:has-text('back to the maximum')").click()
    explorer.settle(place=[row, col])


def test_all_maps_at_once(explorer):
    said = {"3": "picture 3, ", " ": "projections over patches", "a": "all maps of conv4"}
    for key, words in said.items():
        explorer.press(key)
        explorer.page.until(
            explorer.find(".zx-aside").inner_text, lambda now, w=words: now.startswith(w), words
        )
    explorer.press(" ")  # patches alone again
    explorer.page.wait_for(".zx-wall canvas")
    maps = explorer.find(".zx-wall [data-map]")
    assert maps.count() == 384
    maps.nth(10).hover()
    explorer.page.wait_for(".zx-peek b:text-is('map 10')")
    assert explorer.find(".zx-peek canvas").count() == 9
    explorer.find("[type=search]").fill("astronaut")
    explorer.find("[type=search]").press("Enter")
    explorer.page.until(maps.count, lambda now: 0 < now < 384, "the wall is not searched")
    explorer.find("[type=search]").fill("")
    explorer.find("[type=search]").press("Enter")
    explorer.page.until(maps.count, (384).__eq__, "maps are missing")
    explorer.choose("order", "max activation")
    best = explorer.truth.top["conv4"].max.argsort(descending=True, stable=True)[:3].tolist()
    first = "all => all.slice(0, 3).map(e => Number(e.dataset.map))"
    explorer.page.until(lambda: maps.evaluate_all(first), lambda now: now == best, "not sorted")
    maps.first.click()
    explorer.settle(channel=best[0])
    explorer.find("[type=search]").fill("astronaut")
    explorer.tab.keyboard.press("Enter")
    places = [i for i in range(len(explorer.truth.photos)) if "astronaut" in explorer.truth.photos.name(i)]
    found = int(torch.isin(explorer.truth.top["conv4"].image, torch.tensor(places)).any(1).sum())
    count = explorer.find(".zx-count small").inner_text
    explorer.page.until(count, lambda words: f"of {found} found" in words, "not found")


def test_the_map_of_maps_leads_to_every_map(explorer):
    explorer.find("button:has-text('map of maps')").click()
    explorer.page.wait_for(".zx-points circle")
    best = explorer.truth.top["conv5"].max.argsort(descending=True)[3].item()
    assert explorer.find(".zx-points .zx-here").get_attribute("data-map") == "conv4 117"
    near = explorer.find(f"circle[data-map='conv5 {best}']")
    at = [float(near.get_attribute(name)) for name in ("cx", "cy")]
    near.dispatch_event("pointerenter")
    explorer.page.wait_for(f".zx-peek b:text-is('conv5 map {best}')")
    assert explorer.find(".zx-peek canvas").count() == 9 and min(at) > 0
    explorer.find("button:has-text('save picture')").click()
    with explorer.tab.expect_download() as download:
        explorer.page.wait_for(".zx .zx-notice a[download]").click()
    saved = np.asarray(Image.open(download.value.path()).convert("RGB"))
    assert download.value.suggested_filename == "zfnet64-map-of-maps.png"
    ink = [int(v) for v in re.findall(r"\d+", near.evaluate("e => getComputedStyle(e).fill"))[:3]]
    x, y = (2 * round(v + d) for v, d in zip(at, (20, 50), strict=True))  # twice as large, beside a margin
    assert (np.abs(saved[y - 12 : y + 13, x - 12 : x + 13].astype(int) - ink).max(-1) < 60).any()
    if explorer.kind == "voila":
        explorer.page.until(lambda: explorer.tab.url, lambda url: "all=1&show=points" in url, "no link")
    explorer.find(".zx-points button:has-text('conv1')").click()
    assert explorer.find("circle[data-map^='conv1 ']").count() == 0
    near.dispatch_event("click")
    explorer.settle(layer="conv5", channel=best)


# ------------------------------------------------------------------------------ your picture, and comparisons


def test_a_picture_of_your_own(explorer, tmp_path):
    explorer.find("[data-tab=image]").click()
    explorer.page.wait_for(".zx-samples canvas")
    truth, i = explorer.truth, 20
    pixels = truth.photos[i][0]
    file = tmp_path / "mine.png"
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file)
    explorer.find("input[type=file]").set_input_files(str(file))
    output = dict(zfkit.nets.activations.activations(truth.model, pixels, ["conv4"]))["conv4"][0].detach()
    strongest = output.flatten(1).amax(1).argsort(descending=True, stable=True)[:9].tolist()
    words = [f"map {c}" for c in strongest]
    explorer.page.until(explorer.find(".zx-card b").all_inner_texts, words.__eq__, "not the strongest maps")
    for i, channel in enumerate(strongest):
        place = divmod(int(output[channel].argmax()), output.shape[2])
        expected = rgb_of(window(truth.model, pixels, "conv4", channel, place))
        assert same(explorer.pixels(f".zx-card >> nth={i} >> canvas", 1), expected), channel
    explorer.find(".zx-card").nth(2).click()
    explorer.settle(tab="maps", channel=strongest[2])
    explorer.choose("order", "your picture")
    explorer.page.until(
        lambda: (explorer.press("Home"), explorer.tab.wait_for_timeout(100), explorer.view()["channel"])[-1],
        lambda channel: channel == strongest[0],
        "the maps are not in the order of the picture",
    )
    explorer.settle(channel=strongest[0])


def test_a_picture_is_dropped_or_pasted(explorer):
    explorer.find("[data-tab=image]").click()
    explorer.page.wait_for(".zx-samples canvas")
    Image.fromarray(explorer.truth.photos[20][0].permute(1, 2, 0).numpy()).save(file := io.BytesIO(), "PNG")
    for kind, name, place in (
        ("drop", "dropped.png", ".zx-own"),
        ("paste", "pasted.png", ".zx-samples button"),
    ):
        explorer.find(place).first.focus()
        explorer.find(place).first.evaluate(
            """(element, [kind, name, encoded]) => {
              const carried = new DataTransfer();
              const content = Uint8Array.from(atob(encoded), c => c.charCodeAt(0));
              carried.items.add(new File([content], name, {type: "image/png"}));
              const [Kind, field] = kind === "drop" ? [DragEvent, "dataTransfer"] : [ClipboardEvent, "clipboardData"];
              element.dispatchEvent(new Kind(kind, {bubbles: true, [field]: carried}));
            }""",
            [kind, name, base64.b64encode(file.getvalue()).decode()],
        )
        explorer.page.wait_for(f".zx-own .zx-soft:has-text('{name}')")
    explorer.page.wait_for(".zx-card canvas")


def test_a_picture_from_the_camera_and_its_square(explorer):
    explorer.find("[data-tab=image]").click()
    explorer.page.wait_for(".zx-samples canvas")
    explorer.tab.evaluate("""() => {
        const get = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        window.tracks = [];
        navigator.mediaDevices.getUserMedia = async wanted => {
            const stream = await get(wanted);
            tracks.push(...stream.getTracks());
            return stream;
        };
    }""")
    running = "tracks.filter(track => track.readyState === 'live').length"
    explorer.find("button:text-is('camera')").click()
    explorer.page.wait_for(".zx-camera video")
    explorer.page.until(
        lambda: explorer.tab.evaluate("document.querySelector('.zx-camera video').videoWidth"),
        (0).__lt__,
        "dark",
    )
    explorer.find("button:text-is('take it')").click()
    explorer.page.wait_for(".zx-own .zx-soft:has-text('camera.png')")
    assert explorer.tab.evaluate(running) == 0
    square = explorer.find(".zx-square")  # the picture is wider than high: it is moved along it
    before, at = explorer.pixels(".zx-card canvas", 1), int(square.get_attribute("aria-valuenow"))
    square.press("ArrowRight")
    explorer.page.until(lambda: int(square.get_attribute("aria-valuenow")), (at + 10).__eq__, "not moved")
    explorer.page.until(
        lambda: np.array_equal(explorer.pixels(".zx-card canvas", 1), before), (False).__eq__, "as before"
    )
    explorer.find("button:text-is('camera')").click()
    explorer.find("[data-tab=maps]").click()  # at once, perhaps before the camera runs
    explorer.page.until(
        lambda: explorer.tab.evaluate(f"[tracks.length, {running}]"), [2, 0].__eq__, "it runs on"
    )


def test_what_is_no_picture_gets_a_sentence(explorer, tmp_path):
    explorer.find("[data-tab=image]").click()
    explorer.page.wait_for(".zx-samples canvas")
    (tmp_path / "bad.png").write_bytes(b"this is no picture")
    explorer.find("input[type=file]").set_input_files(str(tmp_path / "bad.png"))
    explorer.page.wait_for(".zx-cards .zx-sentence:has-text('not a picture in a format')")
    explorer.find(".zx-samples button").nth(1).click()
    explorer.page.wait_for(".zx-card canvas")


def test_methods_side_by_side(explorer):
    explorer.find("[data-tab=compare]").click()
    explorer.page.wait_for(".zx-methods canvas")
    for column, rule in enumerate(("deconvnet", "guided", "gradient"), 1):
        tiles = explorer.truth.tiles("conv4", 117, rule, 1.0)
        for row in range(3):
            assert same(explorer.pixels(".zx-methods canvas", 5 * row + column), tiles[row])


def test_two_models_side_by_side(explorer):
    explorer.find("[data-tab=compare]").click()
    explorer.choose("versus", "alexnet64")
    explorer.page.wait_for(".zx-pairs canvas")
    assert explorer.find(".zx-pairs h3").all_inner_texts() == ["zfnet64 conv4", "alexnet64 conv4"]
    explorer.choose("versus", "methods")
    explorer.page.wait_for(".zx-methods canvas")


# -------------------------------------------------------------------------------------------- to take along


def test_the_code_that_is_copied_makes_this_view(explorer):
    explorer.tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    explorer.find(".zx-more summary").click()
    explorer.find("button:has-text('copy code')").click()
    explorer.page.wait_for(".zx-notice :text('The code is copied')")
    copied = explorer.tab.evaluate("navigator.clipboard.readText()")
    view = ExplorerView(explorer.truth.model, explorer.truth.photos, explorer.truth.top)
    assert copied.startswith(view.code(State(**START)).removesuffix(")"))  # then what the wall shows next
    explorer.find(".zx-more summary").press("Escape")
    assert explorer.find(".zx-more").get_attribute("open") is None


def test_saving_a_picture(explorer, notebooks):
    before = sorted(notebooks.iterdir())
    explorer.find("button:has-text('save picture')").click()
    link = explorer.page.wait_for(".zx .zx-notice a[download]")
    with explorer.tab.expect_download() as download:
        link.click()
    saved = Image.open(download.value.path())
    assert download.value.suggested_filename == "zfnet64-conv4-117.png"
    view = ExplorerView(explorer.truth.model, explorer.truth.photos, explorer.truth.top)
    expected = np.asarray(view.figure(State(**START)).convert("RGB"))
    assert same(np.asarray(saved.convert("RGB")), expected) and saved.width > 800
    if explorer.kind == "voila":
        assert sorted(notebooks.iterdir()) == before  # on somebody's server nothing is written
    else:
        assert (notebooks / "zfnet64-conv4-117.png").read_bytes() == Path(download.value.path()).read_bytes()
        assert "Saved as zfnet64-conv4-117.png" in explorer.find(".zx-notice").inner_text()


def test_a_link_opens_the_same_view(explorer):
    if explorer.kind != "voila":
        pytest.skip("only a page of its own has an address")
    explorer.press("ArrowRight")
    explorer.settle(channel=118)
    explorer.choose("rule", "guided")
    explorer.press("3")
    explorer.settle(rule="guided", rank=2)
    address = explorer.tab.url
    assert State(**State.of_link(address.partition("?")[2])) == State("conv4", 118, 2, rule="guided")
    assert explorer.tab.title() == "conv4 118 · zfnet64 · zfkit"
    explorer.tab.reload()
    explorer.page.wait_for(".zx .zx-tile canvas[role=img]")
    explorer.settle(channel=118, rule="guided", rank=2)


@pytest.mark.parametrize("seed", [1])
def test_fifty_random_actions_leave_a_consistent_view(explorer, seed):
    from playwright.sync_api import TimeoutError

    draw = random.Random(seed)

    def where(selector, act):
        with contextlib.suppress(TimeoutError):  # hidden since, by what was done before
            if explorer.find(selector).first.is_visible():
                act(explorer.find(selector).first)

    def pick(field, *values):
        where(f"[data-field={field}]", lambda one: one.select_option(draw.choice(values), timeout=999))

    keys = ["ArrowRight", "ArrowLeft", "PageDown", "Home", "End", "r", "5", "a", " "]
    words = ["astronaut", "xyz", "12", ""]
    place = lambda: {"x": 40, "y": draw.choice([30, 60])}  # noqa: E731
    actions = [
        lambda: explorer.press(draw.choice(keys)),
        lambda: where(".zx-fires", lambda part: part.click(position=place(), timeout=999)),
        lambda: where("[type=search]", lambda box: box.fill(draw.choice(words), timeout=999)),
        lambda: where("[type=search]", lambda box: box.press("Enter", timeout=999)),
        lambda: where("button:has-text('save picture')", lambda button: button.click(timeout=999)),
        lambda: explorer.layer(draw.choice(["conv1", "conv3", "conv5"])),
        lambda: pick("order", "index", "max activation", "dead first"),
        lambda: pick("rule", "deconvnet", "guided"),
        lambda: pick("gain", "1", "2"),
        lambda: explorer.find(f"[data-tab={draw.choice(['maps', 'image', 'compare'])}]").click(),
    ]
    for _ in range(5):
        for _ in range(10):
            draw.choice(actions)()
            explorer.tab.wait_for_timeout(draw.choice([0, 0, 30, 200]))
        explorer.find("[data-tab=maps]").click()
        explorer.find("[type=search]").fill("")
        explorer.find("[type=search]").press("Enter")
        if explorer.find(".zx-all").get_attribute("aria-pressed") == "true":
            explorer.find(".zx-all").click()
        explorer.settle(tab="maps")
        assert explorer.find(".zx-notice [role=alert]").count() == 0


def test_two_views_of_one_explorer_keep_in_step(explorer, chromium, notebooks):
    if explorer.kind != "lab":
        pytest.skip("a Voila page shows it once")
    cell = CELL.replace("PICTURES", str(explorer.truth.folder))
    b.write_notebook(notebooks / "twice.ipynb", cell, "explorer")
    page = b.open_lab(chromium, explorer.server, "twice.ipynb", width=1400, height=2600)
    page.until(page.tab.locator(".zx .zx-tile canvas[role=img]").count, (36).__eq__, "not both")
    first, second = (page.tab.locator(".zx").nth(i) for i in (0, 1))
    for one, key, said in ((first, "ArrowRight", "conv4 map 118"), (second, "Home", "conv4 map 0")):
        one.locator(".zx-bars").press(key)
        for view in (first, second):
            page.until(lambda v=view: v.locator("[role=status].zx-unseen").inner_text(), said.__eq__, said)
    second.locator("button:has-text('save picture')").click()
    page.until(second.locator("a[download]").count, (1).__eq__, "nothing saved")
    assert first.locator("a[download]").count() == 0 and page.said == []
    page.tab.context.close()


def test_a_kernel_that_is_gone_is_said_in_a_sentence(explorer):
    if explorer.kind != "lab":
        pytest.skip("a Voila page has its own kernel, which ends with it")
    explorer.tab.evaluate("jupyterapp.shell.currentWidget.sessionContext.session.kernel.shutdown()")
    explorer.tab.wait_for_timeout(500)
    explorer.press("ArrowRight")
    explorer.page.wait_for(".zx .zx-notice :text('The kernel')")
    explorer.page.said.clear()
