"""The animation that README begins with: somebody looks around in the site of zfnet64.

    .venv/bin/python data/make_animation.py [--out data/site.webp]

Needs playwright and Chromium. A site of 48 maps of each layer is made in a temporary folder and opened there; before a
click, a ring marks its place.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw
from playwright.sync_api import Page, sync_playwright

import zfkit

SIZE = 1100, 800
SCALE = 0.75  # of the frames
LARGEST = 3 * 10**6  # bytes

RING = 16, "#D55E00"  # radius in px and colour, of what marks the place that is clicked next
AIM = 800  # ms, that the ring is seen

# What is done before each frame, to which element or with which key, and how long the frame stays, in ms.
Step = tuple[str, str, int]
STEPS: list[Step] = [
    ("open", "#/", 2000),
    ("hover", ".maps-chart circle[data-map='conv5 204']", 1800),
    ("click", ".network li:nth-child(5) a", 1800),
    ("select", ".controls select", 1600),
    ("click", "label:has-text('deconvnet')", 2000),
    ("click", ".wall a[href*='/conv5/204']", 2800),
    ("press", "4", 1600),
    ("click", "label:has-text('guided')", 2000),
    ("blur", "", 1),
    ("press", "ArrowRight", 2400),
    ("click", ".links a >> nth=0", 2400),
    ("click", ".whole figcaption a", 3000),
]


def middle(page: Page, what: str) -> tuple[float, float]:
    """Of an element, brought in sight."""
    element = page.locator(what).first
    element.evaluate("e => e.scrollIntoView({block: 'center'})")  # not behind the heading, which stays on top
    box = element.bounding_box()
    assert box is not None, what
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def do(page: Page, action: str, what: str) -> None:
    """One step."""
    if action == "open":
        page.evaluate("hash => { location.hash = hash; }", what)
    elif action == "press":
        page.keyboard.press(what)
    elif action == "blur":  # arrow keys would choose among radio buttons
        page.evaluate("document.activeElement.blur()")
    elif action == "hover":
        page.locator(what).first.hover()
    elif action == "select":
        page.select_option(what, "selectivity")
    else:
        page.locator(what).first.click()
    page.wait_for_timeout(700)  # for the sheets to be decoded


def shot(page: Page, ring: tuple[float, float] | None = None) -> Image.Image:
    """What is on the screen, smaller; with a ring around a place."""
    frame = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    if ring is not None:
        (x, y), r = ring, RING[0]
        ImageDraw.Draw(frame).ellipse((x - r, y - r, x + r, y + r), outline=RING[1], width=5)
    return frame.resize((round(SIZE[0] * SCALE), round(SIZE[1] * SCALE)), Image.Resampling.LANCZOS)


def main() -> None:
    """Make the site, walk through it, write the frames."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("site.webp"))
    out = parser.parse_args().out
    model, photos = zfkit.load_model("zfnet64"), zfkit.load_images("photos")
    frames, times = [], []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        index = zfkit.write_site(model, photos, Path(folder) / "site", maps=48)
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]}, color_scheme="light")
        page.goto(index.as_uri())
        page.wait_for_function("document.body.dataset.ready")
        for action, what, milliseconds in STEPS:
            if action in ("hover", "click", "select"):
                frames.append(shot(page, middle(page, what)))
                times.append(AIM)
            do(page, action, what)
            frames.append(shot(page))
            times.append(milliseconds)
        browser.close()
    frames[0].save(
        out, "WEBP", save_all=True, append_images=frames[1:], duration=times, loop=0, quality=78, method=6
    )
    size = out.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{out} has {size:,} bytes, {LARGEST:,} are the most: take a smaller SCALE")
    print(f"{out}: {len(frames)} frames, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
