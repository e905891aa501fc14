"""Every widget in JupyterLab: there without an error of kernel, page or console, with pictures, controls with names."""

import browser as b
import numpy as np
import pytest
from PIL import Image

import zfkit
from zfkit import widgets

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(b.why_not()), reason=b.why_not())]
SETUP = """
import zfkit
from zfkit import widgets as w
model = zfkit.load_model("zfnet64")
photos = zfkit.load_images("photos-small", size=64, limit=6, progress=False)
top = zfkit.mine(model, photos, ["conv1", "conv2"], k=3, progress=False)
pixels = photos.take(range(4))
"""
CELLS = {  # a cell for each widget, and how many pictures it shows at least
    "Explorer": ("zfkit.explore(model, photos, top, others={})", 6),
    "OcclusionExplorer": ("w.explore_occlusion(model, pixels[0])", 2),
    "GratingExplorer": ("w.explore_gratings(model, channel=3)", 2),
    "EvolutionExplorer": (
        "w.explore_evolution([(e, model) for e in (0, 1)], photos, channels={'conv2': [3]}, places=2, compare=4)",
        2,
    ),
    "InvarianceExplorer": ("w.explore_invariance(model, photos, [0, 1], layers=['conv2'])", 1),
    "PartsExplorer": ("w.explore_parts(model, pixels, ['left', 'right'])", 2),
    "Monitor": ("w.Monitor()", 0),
}
SEEN = """
root => [...root.querySelectorAll('img, canvas')].filter(
  e => e.getClientRects().length && (e.naturalWidth || e.width) > 1).length
"""
NAMELESS = """
root => [...root.querySelectorAll('button, select, input')].filter(e => e.getClientRects().length && !(
  e.getAttribute('aria-label') || e.title || e.innerText.trim() || e.closest('label') || e.labels?.length
  || e.getAttribute('aria-labelledby'))).map(e => e.outerHTML.slice(0, 100))
"""


def test_every_widget_runs_in_jupyterlab(tmp_path):
    kinds = [kind for name in widgets.__all__ if isinstance(kind := getattr(widgets, name), type)]
    assert {k.__name__ for k in kinds if issubclass(k, widgets.Panel)} - {"Panel"} == set(CELLS)
    b.write_notebook(tmp_path / "all.ipynb", SETUP, *(cell for cell, _ in CELLS.values()))
    with b.chromium() as browser, b.jupyter_lab(tmp_path / "server", tmp_path) as server:
        page = b.open_lab(browser, server, "all.ipynb", width=1280, height=1000)
        roots = page.tab.locator(".zfkit")
        page.until(roots.count, len(CELLS).__eq__, "not every widget is there", patience=180)
        for i, (name, (_, pictures)) in enumerate(CELLS.items()):
            root = roots.nth(i)
            root.scroll_into_view_if_needed()
            page.until(lambda r=root: r.evaluate(SEEN), pictures.__le__, f"{name} lacks pictures")
            assert root.evaluate(NAMELESS) == [], name
            assert root.locator("[role=alert]:visible, .zfkit-notice:visible").all_inner_texts() == [], name
        keys_move_and_save_downloads(page, roots.nth([*CELLS].index("GratingExplorer")))
        assert page.said == [] and page.asked == []


def keys_move_and_save_downloads(page, root):
    """Arrow keys move the map (asked for: 3) and leave the notebook alone, but not with Shift; "?" explains them."""
    readout = root.locator(".widget-slider", has_text="map").locator(".widget-readout")
    root.locator(".zfkit-head h2").click()
    for key, expected in (
        ("ArrowRight", "4"),
        ("Shift+ArrowRight", "4"),
        ("ArrowRight", "5"),
        ("ArrowLeft", "4"),
    ):
        page.tab.keyboard.press(key)
        page.until(readout.inner_text, expected.__eq__, f"after {key} it is another map")
    page.tab.keyboard.press("?")
    page.until(root.locator("dialog:visible").count, (1).__eq__, "no dialog")
    page.tab.keyboard.press("Escape")
    root.locator("button:has-text('save picture')").click()
    with page.tab.expect_download() as download:
        root.locator("a[download]").click()
    widget = widgets.explore_gratings(zfkit.load_model("zfnet64"), channel=4)
    shown, saved = (np.asarray(picture) for picture in (widget.snapshot(), Image.open(download.value.path())))
    beside, above = (saved.shape[1] - shown.shape[1]) // 2, saved.shape[0] - shown.shape[0]
    lines = [saved[y : y + len(shown), beside:-beside] for y in range(above)]  # the words are above and below
    assert any(np.array_equal(line, shown) for line in lines)
