"""Fig. 2 as a file: patches beside projections, one PNG per layer and one HTML page with all of them.

Also how zfkit turns signed projections into pictures (`signed_to_rgb`) and nine of them into one (`montage`).
"""

from __future__ import annotations

import base64
import html
import io
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..checks import whole_number
from ..deconv.receptive_field import fits_inside, receptive_field
from ..deconv.rules import Options
from ..errors import LayerError, ZfkitError, printable
from ..figures.pictures import GAP, TILE, number, pair_of_montages, wrap_words
from ..files import only_writer
from ..images.album import PHOTOGRAPHS
from ..images.imageset import ImageSet
from ..nets.model import VisionModel
from ..topk.mine import mine
from ..topk.patches import Patches, project_many, sample_maps
from ..topk.table import TopK


@dataclass(frozen=True)
class Atlas:
    """Where `write_atlas` put what: the page, a picture per layer, and the table behind them."""

    index: Path
    pictures: dict[str, Path]
    table: Path


def write_atlas(
    model: VisionModel,
    images: ImageSet,
    out: str | Path,
    *,
    layers: Sequence[str] | None = None,
    maps: int | Literal["all"] | Mapping[str, Sequence[int]] = 24,
    k: int = 9,
    top: TopK | None = None,
    options: Options = Options(),
    seed: int = 0,
    progress: bool = True,
) -> Atlas:
    """Write Fig. 2 for this network and these pictures: `out`/index.html, one PNG per layer, topk.parquet.

    Args:
        out: folder; made if need be. Files of the same name in it are replaced.
        layers: default: every convolutional layer.
        maps: how many feature maps of each layer, drawn at random by `seed` from those that are ever active;
            or "all"; or the channels themselves for each layer, as ``{"conv5": [17, 42]}``.
        k: pictures for each feature map.
        top: the table of `mine`, if it is at hand. Otherwise pictures are mined here, and units that look
            beyond a picture's border left out, where the pictures are large enough for that.
        options: how projections are made.

    Raises LayerError for unknown layers or channels, and ZfkitError where `out` cannot be written.
    """
    if isinstance(maps, Mapping) and layers is None:
        layers = list(maps)
    names = [layers] if isinstance(layers, str) else list(layers if layers is not None else model.conv_layers)
    if isinstance(maps, Mapping):
        if without := [name for name in names if name not in maps]:
            raise LayerError(
                f"maps says nothing of {', '.join(without)}; it has {', '.join(maps) or 'nothing'}"
            )
    elif maps != "all":
        whole_number(maps, "maps, unless 'all',")
    for name in names:
        model.network.find(name)
    folder = _folder(out)
    if top is None:
        top = mine(model, images, names, k, inside=fits_inside(model, names, images.size), progress=progress)
    chosen = (
        {name: maps[name] for name in names}
        if isinstance(maps, Mapping)
        else sample_maps(top, names, maps, seed)
    )
    found = project_many(model, images, top, chosen, k=min(k, top.k), options=options, progress=progress)
    pictures = {}
    page = _page(model, images, top, found)
    sheets = {name: draw_layer(found[name], top, _caption(model, images, top, found[name])) for name in names}
    refusal = ZfkitError(f"another process is writing to {str(out)!r}: wait for it, or choose another folder")
    part = folder / ".part"
    try:
        with only_writer(folder, refusal):  # or one's page could end up beside another's pictures
            try:  # all of it first, so that a full disk leaves the old atlas as it was
                shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
                part.mkdir()
                for name, file in _file_names(names).items():
                    sheets[name].save(part / file, "PNG")
                    pictures[name] = folder / file
                (part / "index.html").write_text(page, encoding="utf-8")
                top.save(part / "topk.parquet")
                for done in [*pictures.values(), folder / "index.html", folder / "topk.parquet"]:
                    (part / done.name).replace(done)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return Atlas(folder / "index.html", pictures, folder / "topk.parquet")
    except OSError as error:
        raise ZfkitError(
            f"cannot write to {str(out)!r} ({error.strerror or error}); make room or choose another folder"
        ) from error


def _file_names(layers: Sequence[str]) -> dict[str, str]:
    """A file name for each layer's picture: of letters, digits, "_", "." and "-", and no two alike.

    File systems may fold case, and take no more than 255 bytes.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for layer in layers:
        plain = re.sub(r"[^A-Za-z0-9_.-]", "_", layer)[:200]
        plain = "_" + plain if plain.startswith(".") else plain
        name, n = plain, 1
        while name.lower() in taken:
            n += 1
            name = f"{plain}-{n}"
        taken.add(name.lower())
        names[layer] = f"{name}.png"
    return names


def _folder(out: str | Path) -> Path:
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # better now than after all the work
            pass
    except OSError as error:
        raise ZfkitError(f"cannot write to {str(out)!r} ({error.strerror}); choose another folder") from None
    return folder


def _caption(model: VisionModel, images: ImageSet, top: TopK, patches: Patches) -> tuple[str, str]:
    """Title and the line below it."""
    C, k = patches.value.shape
    total = len(top[patches.layer].value)
    field = receptive_field(model, patches.layer)
    return (
        f"{model.name}  {patches.layer}",
        f"{C} of {total} feature maps · the top {k} of {top.count:,} pictures ({images.source}) · left what the "
        f"deconvnet reconstructs, each on its own symmetric scale around grey = 0; right the picture · "
        + (
            f"receptive field {patches.projection.shape[-1]} px, stride {field.stride} px"
            if field.stride
            else "each unit sees the whole picture"
        ),
    )


def draw_layer(
    patches: Patches, top: TopK, caption: tuple[str, str] | None = None, columns: int = 4, tile: int = TILE
) -> Image.Image:
    """One layer's feature maps as a sheet: 3x3 projections beside 3x3 patches, map number and maximum above.

    Args:
        caption: title and the line below it; default: layer, and how many of how many.
        tile: side of one patch in px.
    """
    margin, between, head = 28, 26, 24
    blocks = [pair_of_montages(patches, i, tile) for i in range(len(patches.channels))]
    width, height = blocks[0][0].size if blocks else (tile, tile)
    block_width = 2 * width + 6
    columns = max(1, min(columns, len(blocks)))
    rows = -(-len(blocks) // columns)
    title, line = caption or (patches.layer, f"{len(blocks)} of {len(top[patches.layer].value)} feature maps")
    sheet_width = max(2 * margin + columns * (block_width + between) - between, 900)
    small, middle, large = (ImageFont.load_default(size) for size in (15, 17, 30))
    lines = wrap_words(line, middle, sheet_width - 2 * margin)
    top_of_grid = margin + 40 + 24 * len(lines) + 14
    sheet = Image.new(
        "RGB", (sheet_width, top_of_grid + rows * (height + head + between) - between + margin), "white"
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin - 8), title, "#111111", large)
    for i, text in enumerate(lines):
        draw.text((margin, margin + 36 + 24 * i), text, "#555555", middle)
    for i, (projections, photos) in enumerate(blocks):
        x = margin + i % columns * (block_width + between)
        y = top_of_grid + i // columns * (height + head + between)
        channel = int(patches.channels[i])
        draw.text((x, y), f"map {channel}", "#111111", middle)
        told = f"max {number(top[patches.layer].max[channel])}"
        draw.text((x + block_width, y + 1), told, "#777777", small, anchor="ra")
        sheet.paste(projections, (x, y + head))
        sheet.paste(photos, (x + width + 6, y + head))
    return sheet


_STYLE = """
:root { color-scheme: light dark; --ink: #16181d; --soft: #5b6270; --line: #d9dce3; --paper: #fff; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaf0; --soft: #9aa2b1; --line: #333842; --paper: #14161a; --card: #1c1f25; } }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  overflow-wrap: anywhere; }
header, section, footer { max-width: 1760px; margin: 0 auto; padding: 1rem 1.5rem; }
section { scroll-margin-top: 2.6rem; }
h1 { font-size: 1.7rem; margin: .6rem 0 .2rem; } h2 { font-size: 1.35rem; margin: 1rem 0 .2rem; }
p { max-width: 75ch; margin: .4rem 0; } .soft { color: var(--soft); }
nav { position: sticky; top: 0; background: var(--paper); border-bottom: 1px solid var(--line); z-index: 1;
  max-height: 30vh; overflow-y: auto; }
nav ul { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; list-style: none; margin: 0 auto; padding: .6rem 1.5rem;
  max-width: 1760px; }
a { color: inherit; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, min(100%, max(330px, var(--pair) + 2rem))); gap: 1rem;
  margin-top: 1rem; align-items: start; }
figure { margin: 0; padding: .7rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; margin-bottom: .3rem;
  font-size: .9rem; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, max-content)); gap: .5rem; font-size: .8rem; }
.grid { position: relative; } .grid img { display: block; max-width: 100%; height: auto; }
.grid ol { position: absolute; inset: 0; display: grid; margin: 0; padding: 0; list-style: none; }
@media (min-width: 640px) { .crisp img { image-rendering: pixelated; } }
details { margin-top: .4rem; font-size: .9rem; } details ol { margin: .3rem 0 0; padding-left: 1.8rem; }
"""


def _page(model: VisionModel, images: ImageSet, top: TopK, found: Mapping[str, Patches]) -> str:
    """The whole atlas as one self-contained HTML file."""
    e = html.escape
    accuracy = e(str(model.provenance.get("top1") or ""))
    trained = str(model.provenance.get("data", "data unknown to zfkit"))
    within = " Units that look beyond a picture's border are left out." if top.inside else ""
    links = "".join(f'<li><a href="#{e(layer)}">{e(layer)}</a></li>' for layer in found)
    sections = "".join(_section(model, images, top, patches) for patches in found.values())
    credits = "; ".join(f"{p.name}: {p.licence}" for p in PHOTOGRAPHS) if images.source == "photos" else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Atlas of {e(model.name)}</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>
<header><h1>What do the layers of {e(model.name)} see?</h1>
<p>For each feature map, the {next(iter(found.values())).value.shape[1]} pictures that excite it most, out of
{top.count:,} ({e(images.source)}).{within} On the right of each pair the part of the picture that the unit sees; on the
left what the deconvnet reconstructs from that one activation, down to pixels.</p>
<p class="soft">Network: {e(trained)}{f", {accuracy} % top-1 on validation" if accuracy else ""}. Projections are
signed; grey is 0, and each is stretched to its own symmetric scale, so brightness does not compare between them.
Hover over a patch to see which picture it is from, or read the list below each map.</p></header>
<nav aria-label="Layers"><ul>{links}</ul></nav>
{sections}
<footer class="soft"><h2>How far to trust these pictures</h2>
<p>The patch is evidence: this picture did excite the map most, of those it was shown. The projection tells which
edges and colours of the patch reach the unit through the switches of max-pooling. Part of its likeness comes from
the picture rather than from what the network learned (Nie et al. 2018, Adebayo et al. 2018), so read the two side
by side, and compare with an untrained network before believing a detail.</p>
<p>Method: Zeiler &amp; Fergus, <i>Visualizing and Understanding Convolutional Networks</i>, arXiv 1311.2901,
section 2.1 and Fig. 2.</p>{f"<p>Photographs: {e(credits)}.</p>" if credits else ""}</footer>
</body></html>
"""


def _section(model: VisionModel, images: ImageSet, top: TopK, patches: Patches) -> str:
    e = html.escape
    t = top[patches.layer]
    field = receptive_field(model, patches.layer)
    dead = int((t.max <= 0).sum())
    told = (
        f"{len(patches.channels)} of {len(t.value)} feature maps; each unit sees "
        + (
            f"{patches.projection.shape[-1]} px of the picture, its neighbour {field.stride} px further on. "
            if field.stride
            else "the whole picture. "
        )
        + (
            f"{dead} {'map is' if dead == 1 else 'maps are'} never active on these pictures."
            if dead
            else "Every map is active on some picture."
        )
    )
    pair = 2 * int(np.ceil(np.sqrt(patches.value.shape[1]))) * (TILE + GAP)
    cards = "".join(_card(images, top, patches, i) for i in range(len(patches.channels)))
    return (
        f'<section id="{e(patches.layer)}"><h2>{e(patches.layer)}</h2><p class="soft">{told}</p>'
        f'<div class="maps" style="--pair: {pair}px">{cards}</div></section>\n'
    )


def _card(images: ImageSet, top: TopK, patches: Patches, i: int) -> str:
    e = html.escape
    channel = int(patches.channels[i])
    t = top[patches.layer]
    crisp = patches.projection.shape[-1] <= TILE // 2
    k = patches.value.shape[1]
    columns = int(np.ceil(np.sqrt(k)))
    shape = f"grid-template: repeat({-(-k // columns)}, 1fr) / repeat({columns}, 1fr)"
    names = [
        f"{_told(images, int(image))}: {number(value)} at row {int(row)}, column {int(col)}"
        for image, row, col, value in zip(
            patches.image[i], patches.row[i], patches.col[i], patches.value[i], strict=True
        )
        if image >= 0
    ]
    spots = "".join(f'<li title="{e(name)}"></li>' for name in names)
    listed = "".join(f"<li>{e(name)}</li>" for name in names)
    grids = "".join(
        f'<div><span class="soft">{head}</span>'
        f'<div class="grid{" crisp" if crisp else ""}"><img decoding="async" src="{_data_url(picture, crisp)}" '
        f'width="{picture.width}" height="{picture.height}" alt="{e(what)} of {e(patches.layer)} map {channel}">'
        f'<ol aria-hidden="true" style="{shape}">{spots}</ol></div></div>'
        for head, what, picture in zip(
            ("deconvnet", "picture"), ("projections", "patches"), pair_of_montages(patches, i), strict=True
        )
    )
    return (
        f"<figure><figcaption><b>map {channel}</b><span class='soft'>max {number(t.max[channel])} · active on "
        f"{float(t.active[channel]):.0%} of pictures</span></figcaption><div class='pair'>{grids}</div>"
        f"<details class='soft'><summary>which pictures</summary><ol>{listed}</ol></details></figure>"
    )


def _told(images: ImageSet, i: int) -> str:
    """A picture's name, and its class where it has one."""
    label = int(images.labels[i]) if images.labels is not None else -1
    name = printable(images.name(i))
    return f"{name} ({printable(images.classes[label])})" if 0 <= label < len(images.classes) else name


def _data_url(picture: Image.Image, lossless: bool) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=lossless, quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
