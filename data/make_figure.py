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
parts = []  # titles and maps; tiles differ in size from layer to layer, here all layers are equally wide
for sheet in sheets:
    for top_edge, bottom in ((0, 62), (92, sheet.height - 16)):
        part = sheet.crop((0, top_edge, sheet.width, bottom))
        parts.append(part.resize((1700, round(part.height * 1700 / part.width)), Image.Resampling.LANCZOS))
figure = Image.new("RGB", (1700, sum(part.height for part in parts)), "white")
y = 0
for part in parts:
    figure.paste(part, (0, y))
    y += part.height
figure.save(Path(__file__).with_name("figure.jpg"), quality=82, optimize=True)
print(figure.size)
