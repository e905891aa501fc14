"""An animation, for talks and pages: somebody looks around in the site of zfnet64.

    .venv/bin/python data/make_animation.py [--out data/site.webp]

Needs playwright and Chromium. A site of 48 maps of each layer is made in a temporary folder and opened there.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

import zfkit

SIZE = 1100, 720
SCALE = 0.75  # of the frames
LARGEST = 3 * 10**6  # bytes

# What is done before each frame, and how long it stays, in ms.
Step = tuple[str, str, int]
STEPS: list[Step] = [
    ("open", "#/", 1800),
    ("hover", ".maps-chart circle >> nth=150", 1500),
    ("click", ".network li:nth-child(5) a", 1800),
    ("select", "selectivity", 1600),
    ("show", "deconvnet", 1800),
    ("click", ".wall li:nth-child(2) a", 2600),
    ("press", "3", 1600),
    ("press", "6", 1600),
    ("check", "input[type=radio] >> nth=1", 2000),
    ("press", "Tab", 1),
    ("press", "ArrowRight", 2000),
    ("press", "ArrowRight", 2600),
]


def do(page: Page, action: str, what: str) -> None:
    """One step."""
    if action == "open":
        page.evaluate("hash => { location.hash = hash; }", what)
    elif action == "hover":
        page.locator(what).hover()
    elif action == "click":
        page.click(what)
    elif action == "select":
        page.select_option("select", what)
    elif action == "show":
        page.check(f"label:has-text('{what}') input")
    elif action == "check":
        page.check(what)
    else:
        page.keyboard.press(what)
    page.wait_for_timeout(700)  # for the sheets to be decoded


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
            do(page, action, what)
            frame = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            small = round(SIZE[0] * SCALE), round(SIZE[1] * SCALE)
            frames.append(frame.resize(small, Image.Resampling.LANCZOS))
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
