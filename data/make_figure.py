"""Draws data/figure.jpg: of each layer of zfnet64 the four maps that the photographs excite most.

As a share of what each map can reach (`zfkit.topk.reach`), of the maps whose nine pictures are of nine photographs.

.venv/bin/python data/make_figure.py
"""

from pathlib import Path

from PIL import Image

import zfkit

model = zfkit.load_model("zfnet64")
photos = zfkit.load_images("photos")
top = zfkit.topk.mined(model, photos)
sheets = []
for layer in model.conv_layers:
    origin = photos.windows.photograph[top[layer].image].sort(1).values
    distinct = (origin.diff(dim=1) > 0).all(1)
    share = zfkit.topk.reach(model, top, layer).nan_to_num() * distinct
    channels = share.argsort(descending=True)[:4].tolist()
    print(layer, {c: f"{share[c]:.0%}" for c in channels})
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
