"""Every widget in JupyterLab: there without an error of kernel, page or console, with pictures, controls with names."""

import browser as b
import pytest

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
    panels = {name for name in widgets.__all__ if issubclass_of(getattr(widgets, name), widgets.Panel)}
    assert panels - {"Panel"} == set(CELLS)
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
        assert page.said == [] and page.asked == []


def issubclass_of(kind, of):
    return isinstance(kind, type) and issubclass(kind, of)
