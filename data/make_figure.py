"""Draws figure.jpg: four feature maps of each layer, chosen by hand.

.venv/bin/python data/make_figure.py
"""

from pathlib import Path

from PIL import Image

import zfkit

CHOSEN = {
    "conv1": [3, 17, 56, 70],
    "conv2": [140, 105, 178, 112],
    "conv3": [118, 35, 21, 178],
    "conv4": [146, 112, 167, 226],
    "conv5": [42, 55, 5, 208],
}

model = zfkit.load_model("zfnet64")
photos = zfkit.load_images("photos")
top = zfkit.mine(model, photos, inside=True)
sheets = []
for layer, channels in CHOSEN.items():
    patches = zfkit.project_top(model, photos, top, layer, channels)
    sheets.append(zfkit.draw_layer(patches, top, (f"Layer {layer[-1]}", "")))
width = max(sheet.width for sheet in sheets)
figure = Image.new("RGB", (width, sum(sheet.height - 38 for sheet in sheets)), "white")
y = 0
for sheet in sheets:
    title = sheet.crop((0, 0, sheet.width, 62))
    maps = sheet.crop((0, 92, sheet.width, sheet.height - 16))
    figure.paste(title, (0, y))
    figure.paste(maps, (0, y + 62))
    y += sheet.height - 38
figure = figure.resize((1700, round(figure.height * 1700 / figure.width)), Image.Resampling.LANCZOS)
figure.save(Path(__file__).with_name("figure.jpg"), quality=82, optimize=True)
print(figure.size)
