"""Fig. 2 as a folder: one HTML page with every layer's patches beside their projections, and one PNG per layer."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import math
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..batching import OnStep, steps
from ..checks import Size, channel_list, layer_names, one_of, whole_number, writable_folder
from ..deconv.project import refusals
from ..deconv.receptive_field import Field, fits_inside, receptive_field, window_in
from ..deconv.rules import Options
from ..errors import LayerError, WriteError, ZfkitError, printable
from ..figures.natural import Colours, NaturalColours
from ..figures.pictures import CRISP, GAP, TILE, Pair, number, pair_of_montages, square_columns
from ..files import expect_own, only_writer, private_prefix
from ..images.album import Photograph, photographs
from ..images.imageset import ImageSet
from ..nets.activations import expect_room
from ..nets.model import VisionModel, expect_model
from ..topk.bundled import LITTLE, reach, reached, shipped
from ..topk.estimate import estimate_mining
from ..topk.frame import Frame
from ..topk.mine import mine
from ..topk.patches import Patches, cut_top, project_many, sample_maps
from ..topk.table import RANKED, LayerTop, TopK
from .html import templates
from .probes import likeness_note, tile_sides
from .sheet import draw_maps

PATCH_BYTES = 2**28  # of patches that are held at once
TIMED = 12  # layers of which `estimate_atlas` projects a map

# How many feature maps of each layer, all, or which: of every layer, or by layer.
Maps = int | Literal["all"] | Sequence[int] | Mapping[str, Sequence[int]]


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
    maps: Maps = 24,
    k: int = 9,
    top: TopK | None = None,
    options: Options = Options(),
    random_seed: int = 0,
    patches_only: bool = False,
    colours: Colours = "signed",
    progress: bool = True,
) -> Atlas:
    """Write Fig. 2 for this network and these pictures: `out`/index.html, one PNG per layer, topk.parquet.

    Whether layers can be projected is tried before pictures are mined. Those that cannot get patches alone, with a
    warning, and the page says why. What is mined is kept from time to time, and saved before anything is projected;
    stopped, the same again goes on from there. Where projections fill a small part of their windows, tiles are cut to
    that, as in `draw_layer`; and it is said how alike the projections of a map are.

    Args:
        out: folder; made if need be. An earlier atlas in it is replaced; files of others are not.
        layers: default: those of the table, or every convolutional layer.
        maps: how many feature maps of each layer, drawn at random from those that are ever active;
            or "all"; or the channels themselves, ``[17, 42]`` of every layer or ``{"conv5": [17, 42]}``.
        k: pictures for each feature map.
        top: the table of `mine`, if it is at hand. Otherwise pictures are mined here, and units that look
            beyond a picture's border left out, where the pictures are large enough for that.
        options: how projections are made.
        random_seed: of the draw of feature maps.
        patches_only: show what was in the pictures, without projections.
        colours: "natural" brings projections to the colours and the spectrum of photographs, for looking, and says so:
            `zfkit.figures.NaturalColours` has the formula.

    Raises LayerError for unknown layers or channels, and ZfkitError where `out` cannot be written, or holds
    files of these names that zfkit did not write.
    """
    one_of(colours, "colours", get_args(Colours))
    names, maps = asked_maps(model, layers, maps, top)
    expect_room(model, images.size, names)
    alone = _patches_alone(model, names, images.size, options, patches_only)
    folder = writable_folder(out)
    files = file_names(names)
    expect_own(
        *(folder / file for file in (*files.values(), "index.html", "topk.parquet", "topk.mined.parquet"))
    )
    refusal = ZfkitError(f"another process is writing to {str(folder)!r}: wait for it, or take another")
    with contextlib.ExitStack() as stack:
        # Before the work, and to its end: or one's page could end up beside another's pictures.
        stack.enter_context(only_writer(folder, refusal))
        if top is None:
            top = shipped_or_mined(model, images, names, k, folder, progress)
            # Not as topk.parquet, beside an older page's pictures.
            stack.enter_context(_kept(top, folder / "topk.mined.parquet"))
        channels = maps if isinstance(maps, Mapping) else sample_maps(top, names, maps, random_seed)
        k = min(k, top.k)
        with _replacing(folder) as part:
            sections, own = [], PngInfo()
            own.add_text("Software", "zfkit")
            chosen = {name: [int(c) for c in channels[name]] for name in names}
            count, shorter = sum(map(len, chosen.values())), "fewer maps or layers take less"
            done = stack.enter_context(steps(count, "drawing", "map", progress, shorter=shorter))
            for patches, pairs in _layers(model, images, top, chosen, k, alone, options, colours, done):
                name, field = patches.layer, receptive_field(model, patches.layer)
                caption = _caption(model, images, top, patches, len(pairs), field)
                draw_maps(pairs, chosen[name], top[name].max, caption).save(
                    part / files[name], "PNG", pnginfo=own
                )
                sections.append(_layer(model, images, top, patches, chosen[name], pairs, field))
            page = _page(model, images, top, sections)
            (part / "index.html").write_text(page, encoding="utf-8")
            top.save(part / "topk.parquet")
        forget_states(folder)
    pictures = {name: folder / file for name, file in files.items()}
    return Atlas(folder / "index.html", pictures, folder / "topk.parquet")


def estimate_atlas(
    model: VisionModel,
    images: ImageSet,
    *,
    layers: Sequence[str] | None = None,
    maps: Maps = 24,
    k: int = 9,
    options: Options = Options(),
    patches_only: bool = False,
) -> str:
    """What `write_atlas` will take, in two lines: mining, from a few timed batches, and projecting, at most.

    One map of each layer is projected, of twelve layers evenly spread where there are more, from the first pictures
    unless a table ships. Many maps share pictures, and their passes, and take less.
    """
    names, maps = asked_maps(model, layers, maps)
    counts = {name: model.network.shapes[name][0] for name in names}
    inside, most = fits_inside(model, names, images.size), min(k, len(images))
    alone = names if patches_only else refusals(model, names, images.size, options)
    if top := shipped(model, images, names, k, inside=inside):
        mining = f"{len(images):,} pictures, {sum(counts.values()):,} feature maps: their table ships, none is mined"
    else:
        mining = str(estimate_mining(model, images, names, k, inside=inside))
        images = images[: 2 * k]
        top = mine(model, images, names, most, inside=inside, progress=False)
    projected = [name for name in names if name not in alone]
    if not projected:
        return f"{mining}\npatches alone, without projections"
    timed = sorted({round(place) for place in np.linspace(0, len(projected) - 1, TIMED)})
    each = []  # seconds for a map of k units
    for name in (projected[place] for place in timed):
        units = (top[name].image >= 0).sum(1)
        started = time.perf_counter()
        project_many(model, images, top, {name: [int(units.argmax())]}, options=options, tile=TILE)
        each.append((time.perf_counter() - started) * most / max(int(units.max()), 1))
    asked = [len(maps[n]) if isinstance(maps, Mapping) else counts[n] for n in projected]
    asked = [min(maps, n) for n in asked] if isinstance(maps, int) else asked
    seconds = math.ceil(round(float(np.interp(range(len(asked)), timed, each) @ asked), 6))
    return f"{mining}\nprojecting {sum(asked):,} of their maps: at most about {timedelta(seconds=seconds)}"


def asked_maps(
    model: VisionModel, layers: Sequence[str] | None, maps: Maps, top: TopK | None = None
) -> tuple[list[str], int | Literal["all"] | dict[str, list[int]]]:
    """Layers by name, and how many of their maps, "all", or which by layer. Raises LayerError for what is not there."""
    expect_model(model)
    asked = list(maps) if isinstance(maps, Mapping) and layers is None else layers
    mined = model.conv_layers if top is None else [name for name in model.layers if name in top.layers]
    names = layer_names(asked, model.layers, mined)
    if isinstance(maps, Sequence) and not isinstance(maps, str):
        maps = dict.fromkeys(names, maps)
    if isinstance(maps, Mapping):
        if without := [name for name in names if name not in maps]:
            raise LayerError(
                f"maps says nothing of {', '.join(without)}; it has {', '.join(maps) or 'nothing'}"
            )
        shapes = model.network.shapes
        return names, {name: channel_list(maps[name], shapes[name][0], name).tolist() for name in names}
    if maps != "all":
        whole_number(maps, "maps, unless 'all',")
    return names, maps


def _patches_alone(
    model: VisionModel, layers: Sequence[str], size: Size, options: Options, all_of_them: bool
) -> dict[str, str]:
    """Layers to be shown without projections, and a sentence for each that says why."""
    if all_of_them:
        return dict.fromkeys(layers, "Patches alone, without projections, as was asked.")
    if reasons := refusals(model, layers, size, options):
        why = next(iter(reasons.values()))  # mostly the same for all
        warnings.warn(f"no projections of {', '.join(reasons)}, patches alone: {why}", stacklevel=3)
    return {layer: f"Patches alone, without projections: {why}." for layer, why in reasons.items()}


STATE = ".zfkit-mining-"  # begins the name of the state of a mining that was stopped
STATE_FILE = re.compile(rf"({re.escape(STATE)}[0-9a-f]{{16}})(\.lock)?")


def shipped_or_mined(
    model: VisionModel, images: ImageSet, layers: Sequence[str], k: int, folder: Path, progress: bool
) -> TopK:
    """The table that ships, or one that is mined here; stopped, it goes on from a state in `folder`. Others' go."""
    inside, state = fits_inside(model, layers, images.size), None
    if images.lasting:
        parts = (model.fingerprint(), images.fingerprint(), *layers, str(k), str(inside))
        state = folder / f"{STATE}{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"
        forget_states(folder, but=state.name)
    top = shipped(model, images, layers, k, inside=inside)
    return top or mine(model, images, layers, k, inside=inside, checkpoint=state, progress=progress)


def forget_states(folder: Path, but: str = "") -> None:
    """Delete the states of stopped minings, by their exact names; and the locks on them."""
    for path in folder.iterdir():
        match = STATE_FILE.fullmatch(path.name)
        if match and match[1] != but and not path.is_symlink() and path.is_file():
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _kept(top: TopK, file: Path) -> Iterator[None]:
    """Save the table at once; an error afterwards says where it is. In the end it is in the atlas."""
    top.save(file)
    try:
        yield
        file.unlink(missing_ok=True)
    except (ZfkitError, RuntimeError, MemoryError, KeyboardInterrupt) as error:
        hint = f"the mined table is kept, for write_atlas(top=TopK.load(path)): {printable(str(file))}"
        error.args = (f"{str(error) or 'interrupted'}; {hint}",)
        raise


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` whose files take their places at the end: a full disk leaves the old atlas as it was."""
    part: Path | None = None
    try:
        part = Path(tempfile.mkdtemp(prefix=private_prefix(), dir=folder))
        yield part
        names = sorted((file.name for file in part.iterdir()), key=lambda name: (name == "index.html", name))
        try:
            _take_places(part, folder, names)
        except KeyboardInterrupt:
            _take_places(part, folder, names)
            raise
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(folder, error) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _take_places(part: Path, folder: Path, names: Sequence[str]) -> None:
    """Let files replace those of the same names: the old ones go first, so that a kill leaves no mixture of the two."""
    left = [name for name in names if (part / name).exists()]
    if left == list(names):
        for name in reversed(names):
            (folder / name).unlink(missing_ok=True)
    for name in left:
        (part / name).replace(folder / name)


def _layers(
    model: VisionModel,
    images: ImageSet,
    top: TopK,
    channels: Mapping[str, list[int]],
    k: int,
    alone: Mapping[str, str],
    options: Options,
    colours: Colours,
    done: Callable[..., None],
) -> Iterator[tuple[Patches, list[Pair]]]:
    """Layer by layer patches, of the last of its feature maps at least, and the grids of all.

    Windows are brought at once to what tiles need of them, and so many maps are projected together as memory is meant
    for; layers among them share their passes.
    """
    pairs: dict[str, list[Pair]] = {name: [] for name in channels}
    natural: dict[str, NaturalColours] = {}  # of a layer's first portion, for all of it
    frames: dict[str, Frame] = {}  # likewise
    likeness: dict[str, list[Tensor]] = {name: [] for name in channels}
    both = {name: maps for name, maps in channels.items() if name not in alone}
    tiles = dict.fromkeys(channels, TILE) | tile_sides(model, images, top, both, options, done)
    for portion in _portions(model, images.size, channels, k, tiles):
        projected = {name: maps for name, maps in portion.items() if name not in alone}
        patches = project_many(
            model, images, top, projected, k=k, options=options, tile=tiles,
            on_step=_in_maps(sum(map(len, projected.values())), done),
        )  # fmt: skip
        for name, maps in portion.items():
            if name in alone:
                cut = cut_top(model, images, top, name, maps, k=k, tile=TILE, progress=False)
                patches[name] = replace(cut, notes=(alone[name], *cut.notes))
                done(len(maps))
            elif maps:
                likeness[name].append(patches[name].likeness())
                frames[name] = frames.get(name) or Frame.of(patches[name])
                patches[name] = frames[name](patches[name])
                if colours == "natural":
                    natural[name] = natural.get(name) or NaturalColours.of(patches[name])
                    patches[name] = natural[name](patches[name])
            pairs[name] += [pair_of_montages(patches[name], i) for i in range(len(maps))]
            if len(pairs[name]) == len(channels[name]):
                if likeness[name]:
                    alike = torch.cat(likeness[name])
                    note = likeness_note(model, images, top, name, alike, channels[name], k, options)
                    patches[name] = replace(patches[name], notes=(*patches[name].notes, *note))
                yield patches[name], pairs.pop(name)
        del patches  # or two portions would be held at a time


def _in_maps(maps: int, done: Callable[[int], None]) -> OnStep:
    """For `project_many`, which counts units: tells `done` of so many maps as they make."""
    told = 0

    def on_step(count: int, total: int) -> None:
        nonlocal told
        if more := maps * count // total - told:
            told += more
            done(more)

    return on_step


def _portions(
    model: VisionModel, size: Size, channels: Mapping[str, list[int]], k: int, tiles: Mapping[str, int]
) -> Iterator[dict[str, list[int]]]:
    """The feature maps in portions whose patches, float and uint8, take some PATCH_BYTES."""
    portion: dict[str, list[int]] = {}
    held = 0
    for name, maps in channels.items():
        window = min(tiles[name], max(i.size for i in window_in(model, size, name)))
        portion[name] = []  # also where no map is shown
        for channel in maps:
            if held > PATCH_BYTES:
                yield portion
                portion, held = {name: []}, 0
            portion[name].append(channel)
            held += k * window**2 * 15
    yield portion


def file_names(layers: Sequence[str], suffix: str = ".png") -> dict[str, str]:
    """A file name for each layer: of letters, digits, "_", "." and "-", and no two alike.

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
        names[layer] = name + suffix
    return names


def _caption(
    model: VisionModel, images: ImageSet, top: TopK, patches: Patches, C: int, field: Field
) -> tuple[str, str]:
    """Title of a layer's picture, and the line below it."""
    sees = f"receptive field {field.size} px, stride {field.stride} px"
    sees += ", more than the picture, which is shown whole" * field.exceeds(images.size)
    what = (
        "left what the deconvnet reconstructs, each on its own symmetric scale around grey = 0; right the picture"
        if patches.projection.shape[1]
        else "what of the picture each unit sees"
    )
    return (
        f"{model.name}  {patches.layer}",
        f"{C} of {len(top[patches.layer].value)} feature maps · the top {patches.value.shape[1]} of {top.count:,} "
        f"pictures ({images.source}) · {what} · {sees if field.stride else 'each unit sees the whole picture'}"
        + "".join(f" · {note}" for note in patches.notes),
    )


def _page(model: VisionModel, images: ImageSet, top: TopK, layers: Sequence[dict[str, Any]]) -> str:
    """The whole atlas as one self-contained HTML file."""
    page, shown = templates().get_template("atlas.html"), _credits(images, layers)
    k, projected = layers[0]["k"], any(layer["projected"] for layer in layers)
    return page.render(
        model=model, images=images, top=top, k=k, projected=projected, layers=layers, credits=shown
    )


def _credits(images: ImageSet, layers: Sequence[dict[str, Any]]) -> list[Photograph]:
    """The bundled photographs that are shown."""
    if images.windows is None or not images.source.startswith("photos"):
        return []
    shown = sorted({i for layer in layers for i in layer["images"]})
    return [photographs()[i] for i in images.windows.photograph[shown].unique().tolist()]


def _layer(
    model: VisionModel,
    images: ImageSet,
    top: TopK,
    patches: Patches,
    channels: Sequence[int],
    pairs: Sequence[Pair],
    field: Field,
) -> dict[str, Any]:
    """What the page says of a layer, and its feature maps."""
    k, layer = patches.value.shape[1], top[patches.layer]
    columns, projected = square_columns(k), bool(pairs) and pairs[0][0] is not None
    crisp = patches.photo.shape[-1] <= CRISP  # enlarged, so that its pixels have to stay sharp
    shown, share = layer.image[list(channels), :k].flatten(), reach(model, top, patches.layer)
    words = {c: "" if share is None else reached(float(share[c])) for c in channels}
    return {
        "name": patches.layer, "k": k, "projected": projected, "images": shown[shown >= 0].tolist(),
        "count": len(layer.value), "dead": int((layer.max <= 0).sum()),
        "cold": 0 if share is None else int(((share > 0) & (share < LITTLE)).sum()),
        "size": field.size, "stride": field.stride, "whole": field.exceeds(images.size), "notes": patches.notes,
        "crisp": crisp, "rows": -(-k // columns), "columns": columns,
        "pair": sum(grid.width + GAP for grid in (pairs[0] if pairs else ()) if grid),
        "cards": [
            _card(images, layer, c, k, pair, crisp) | {"reached": words[c]}
            for c, pair in zip(channels, pairs, strict=True)
        ],
    }  # fmt: skip


def _card(images: ImageSet, layer: LayerTop, channel: int, k: int, pair: Pair, crisp: bool) -> dict[str, Any]:
    """One feature map: its numbers, its two grids, and a sentence for each patch."""
    units = zip(*(getattr(layer, n)[channel, :k].tolist() for n in RANKED), strict=True)
    grids = [("deconvnet", "projections", pair[0]), ("picture", "patches", pair[1])]
    return {
        "channel": channel,
        "max": number(layer.max[channel]),
        "active": f"{float(layer.active[channel]):.0%}",
        "grids": [(head, what, _data_url(g, crisp), g.width, g.height) for head, what, g in grids if g],
        "names": [
            f"{_picture_name(images, image)}: {number(value)} at row {row}, column {col}"
            for value, image, row, col in units
            if image >= 0  # fewer than k were mined
        ],
    }


def _picture_name(images: ImageSet, i: int) -> str:
    """A picture's name, and its class where it has one."""
    label = int(images.labels[i]) if images.labels is not None else -1
    name = printable(images.name(i))
    return f"{name} ({printable(images.classes[label])})" if 0 <= label < len(images.classes) else name


def _data_url(picture: Image.Image, lossless: bool) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=lossless, quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
