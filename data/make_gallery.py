"""Cuts the pictures of README.md's gallery out of figure.jpg and the executed notebooks, into data/gallery/.

.venv/bin/python data/make_gallery.py
"""

import base64
import io
import json
from pathlib import Path

from PIL import Image, ImageOps

HERE = Path(__file__).parent
SIZE = (540, 380)  # px; README shows half of it
# Which notebooks, a phrase of the cell that shows the picture, and what is cut out: left, top, right, bottom, 0 to 1.
CHOSEN = {
    "01": ("figure.jpg", "", (0, 0.404, 0.495, 1)),
    "02": ("02_*.ipynb", '("deconvnet", "guided", "gradient")', (0, 0.22, 0.5, 1)),
    "04": ("04b_*.ipynb", "figures.animated(", (0, 0, 1, 1)),
    "05": ("05_*.ipynb", "figures.animated(", (0, 0, 1, 1)),
    "07": ("07_*.ipynb", "sanity_sheet(", (0.03, 0.1, 0.5, 0.69)),
    "08": ("08_*.ipynb", "occlusion_figure(found", (0, 0.045, 0.87, 0.46)),
}


def picture(pattern: str, phrase: str) -> Image.Image:
    """The first picture under the first cell whose code has this phrase."""
    for path in sorted((HERE.parent / "notebooks").glob(pattern)):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code" and phrase in "".join(cell["source"]):
                for output in cell["outputs"]:
                    for kind in ("image/png", "image/jpeg"):
                        if kind in output.get("data", {}):
                            return Image.open(io.BytesIO(base64.b64decode(output["data"][kind])))
    raise SystemExit(f"no notebook {pattern} has a picture under a cell with {phrase!r}")


(HERE / "gallery").mkdir(exist_ok=True)
for name, (pattern, phrase, (left, top, right, bottom)) in CHOSEN.items():
    whole = (picture(pattern, phrase) if phrase else Image.open(HERE / pattern)).convert("RGB")
    W, H = whole.size
    cut = whole.crop((round(left * W), round(top * H), round(right * W), round(bottom * H)))
    thumbnail = ImageOps.pad(cut, SIZE, Image.Resampling.LANCZOS, color="white")
    thumbnail.save(HERE / "gallery" / f"{name}.jpg", quality=85, optimize=True)
