"""Every feature map of a network as a folder of files that any browser opens: `write_site`.

What the pages show stands in files of one layer each, which are loaded when they are asked for: numbers in `layer.js`,
pictures in sheets of 16 maps (`sheets`). The pages themselves are plain JavaScript in `templates/site`, copied as they
are. A layer's folder appears whole or not at all, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..batching import steps
from ..checks import in_px, one_of, pair, whole_number, writable_folder
from ..deconv.project import refusals
from ..deconv.receptive_field import Field, field_in
from ..deconv.rules import Options, Rule
from ..errors import ImageError, WriteError, ZfkitError, printable
from ..figures.natural import NOTE
from ..files import only_writer, private_prefix, sweep_away, write_whole
from ..health.maps import map_warnings
from ..images.album import photographs
from ..images.imageset import ImageSet, expect_rgb
from ..nets.activations import expect_room
from ..nets.model import VisionModel
from ..topk.bundled import reach_or_share, records
from ..topk.patches import sample_maps
from ..topk.profile import Profile, profile, sources
from ..topk.table import TopK
from ..version import __version__
from .page import Maps, asked_maps, file_names, forget_states, shipped_or_mined
from .sheets import CRISP, MAPS, LayerSheets, Thumbnails

FORMAT = 1
RULES: tuple[Rule, ...] = ("deconvnet", "guided", "gradient")
PROFILED = 200  # pictures in which every map is measured
PORTION = 256  # maps of a layer whose tiles are in memory at once: some 300 MB of them
NEAREST, INPUTS, LABELS, STRONGEST = 8, 8, 6, 8  # of each map that are listed; maps of a layer for a picture
BINS = 24  # of a map's histogram


def write_site(
    models: VisionModel | Sequence[VisionModel],
    images: ImageSet,
    out: str | Path,
    *,
    layers: Sequence[str] | None = None,
    maps: Maps = "all",
    k: int = 9,
    top: TopK | None = None,
    rules: Sequence[Rule] = RULES,
    pictures: int = PROFILED,
    random_seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write a page for every feature map of these networks, and pages that lead there; returns `out`/index.html.

    The site opens from the disk and from any web server of files, and asks nothing of another. Stopped for any
    reason, the same call goes on. Layers that cannot be projected get patches alone, and their pages say why.

    Args:
        models: one network, or two or more to be seen side by side.
        out: folder: empty, new, or one that an earlier call of the same networks, pictures and options began.
        layers: default: those of the table, or every convolutional layer; only for one network.
        maps: how many feature maps of each layer, drawn at random from those that are ever active, or "all", or which,
            as for `write_atlas`.
        k: pictures for each feature map.
        top: the table of `mine`, if it is at hand; only for one network.
        rules: of the projections, the first of which is shown first.
        pictures: so many, evenly spread, in which every map is measured, for histograms, selectivity and likeness.
        random_seed: of the draw of feature maps.

    Raises LayerError for unknown layers, ZfkitError for a folder that holds something else, WriteError for one that
    cannot be written, and ImageError for pictures that are gone since they were mined.
    """
    networks: list[Any] = list(models) if isinstance(models, list | tuple) else [models]
    expect_rgb(images, "a site shows")
    _check(networks, layers, top, k, rules, pictures)
    chosen = [asked_maps(model, layers, maps, top) for model in networks]
    for model, (asked, _) in zip(networks, chosen, strict=True):
        expect_room(model, images.size, asked)
    k = k if top is None else min(k, top.k)
    folder = writable_folder(out)
    refusal = ZfkitError(f"another process is writing to {str(folder)!r}: wait for it, or take another")
    with only_writer(folder, refusal):
        names = _names(networks)
        parts = [
            NetworkPart(model, images, folder / name, asked, top, k, rules, pictures)
            for name, model, (asked, _) in zip(names, networks, chosen, strict=True)
        ]
        key = {
            "networks": {n: m.fingerprint() for n, m in zip(names, networks, strict=True)},
            "k": k, "maps": {n: of for n, (_, of) in zip(names, chosen, strict=True)}, "rules": list(rules),
            "layers": {n: asked for n, (asked, _) in zip(names, chosen, strict=True)}, "seed": random_seed,
            "pictures": images.fingerprint(), "measured": pictures,
        }  # fmt: skip
        _begin(folder, key)
        albums = Thumbnails(folder / "pictures", images)
        fronts = []
        for part, (_, wanted) in zip(parts, chosen, strict=True):
            fronts.append(part.write(wanted, random_seed, progress))
            albums.write(part.top, part.channels, progress)
        _write_data(folder / "pictures" / "pictures.js", "pictures", albums.data())
        _write_data(folder / "site.js", "site", _front(names, networks, images, fronts, k))
        for file in resources.files("zfkit.atlas").joinpath("templates", "site").iterdir():
            text = file.read_text(encoding="utf-8")
            _write_text(folder / file.name, text)
    return folder / "index.html"


def _check(
    networks: Sequence[VisionModel],
    layers: Sequence[str] | None,
    top: TopK | None,
    k: int,
    rules: Sequence[str],
    pictures: int,
) -> None:
    if not networks:
        raise ZfkitError("write_site needs a network, as zfkit.load_model gives it")
    if (layers is not None or top is not None) and len(networks) > 1:
        raise ZfkitError(
            "layers and top can be given for one network only: leave them out, or write two sites"
        )
    whole_number(k, "k")
    whole_number(pictures, "pictures")
    if not rules or isinstance(rules, str):
        raise ZfkitError(f"rules must be some of {', '.join(RULES)}, in a list, not {rules!r}")
    for rule in rules:
        one_of(rule, "rule", RULES)


def _names(networks: Sequence[VisionModel]) -> list[str]:
    """A folder for each network, which is its name in links, too."""
    reserved = {"pictures", "index", "site"}
    files = file_names([m.name if m.name not in reserved else f"{m.name}_" for m in networks], suffix="")
    if len(files) == len(networks):
        return list(files.values())
    return [f"{i}_{files[m.name]}" for i, m in enumerate(networks, 1)]  # two of one name: trained twice, say


def _begin(folder: Path, key: dict[str, Any]) -> None:
    """Make sure that the folder is empty, or a site of the same networks, pictures and options."""
    file = folder / "made.json"
    wanted = {"zfkit site": FORMAT, **json.loads(json.dumps(key))}
    if file.is_file():
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        if found == wanted:
            return
        differ = ", ".join(n for n, v in wanted.items() if not isinstance(found, dict) or found.get(n) != v)
        raise ZfkitError(
            f"{printable(str(folder))!r} holds another site (other: {differ}): choose another folder, or delete it"
        )
    if others := sorted(p.name for p in folder.iterdir()):
        raise ZfkitError(
            f"{printable(str(folder))!r} holds something else ({printable(', '.join(others[:3]))}): choose an empty "
            "or a new folder"
        )
    _write_text(file, json.dumps(wanted, indent=1))


class NetworkPart:
    """One network's folder: a table, and a folder for each layer.

    Attributes:
        top: the mined table.
        channels: by layer, the maps that have a page.
    """

    def __init__(
        self,
        model: VisionModel,
        images: ImageSet,
        folder: Path,
        layers: Sequence[str],
        top: TopK | None,
        k: int,
        rules: Sequence[Rule],
        pictures: int,
    ) -> None:
        self.model, self.images, self.folder, self.rules = model, images, folder, rules
        self.layers = list(layers)
        self.folders = file_names(self.layers, suffix="")
        self.reasons = refusals(model, self.layers, images.size, Options(rules[0]))
        self.k, self.pictures, self._given = k, pictures, top
        self.top: TopK
        self.channels: dict[str, list[int]] = {}

    def write(
        self, maps: int | Literal["all"] | Mapping[str, Sequence[int]], random_seed: int, progress: bool
    ) -> list[dict[str, Any]]:
        """Write what is missing; returns what the front page says of each layer."""
        self.top = self._mined(progress)
        drawn = maps if isinstance(maps, Mapping) else sample_maps(self.top, self.layers, maps, random_seed)
        self.channels = {name: sorted(int(c) for c in drawn[name]) for name in self.layers}
        missing = [name for name in self.layers if not (self._folder(name) / "front.json").is_file()]
        if missing:
            sweep_away(self.folder)  # what a call that was killed left
            profiles = profile(
                self.model, self.images, missing, index=self._readable(), inside=self.top.inside, progress=progress
            )  # fmt: skip
            units = sum(len(self.channels[name]) for name in missing) * self.top.k * len(self.rules)
            what, shorter = f"drawing {self.model.name}", "fewer maps or layers take less"
            with steps(units, what, "tile", progress, shorter=shorter) as done:
                for name in missing:
                    self._write_layer(name, profiles[name], done)
        return [json.loads((self._folder(n) / "front.json").read_text(encoding="utf-8")) for n in self.layers]

    def _folder(self, layer: str) -> Path:
        return self.folder / self.folders[layer]

    def _mined(self, progress: bool) -> TopK:
        file = self.folder / "topk.parquet"
        top = TopK.load(file) if file.is_file() else self._given
        if top is None:
            folder = writable_folder(self.folder)
            top = shipped_or_mined(self.model, self.images, self.layers, self.k, folder, progress)
        top.check(self.model, self.images)
        if not file.is_file():
            top.save(file)
            forget_states(self.folder)
        return top.ranks(0, self.k)

    def _readable(self) -> torch.Tensor:
        """Places of at most `pictures` pictures, evenly spread, of those that can be read."""
        n = min(len(self.images), self.pictures)
        places = [i * len(self.images) // n for i in range(n)]
        good = []
        for i in places:
            with contextlib.suppress(ImageError):
                self.images[i]
                good.append(i)
        if not good:
            raise ImageError(f"none of the pictures of {self.images.source!r} can be read")
        return torch.tensor(good)

    def _write_layer(self, layer: str, measured: Profile, done: Callable[[int], Any]) -> None:
        """A layer's folder, made beside its place and moved there when it is whole."""
        # Not `tempfile.mkdtemp`, whose folders nobody else may read, a web server say.
        part, channels = self.folder / f"{private_prefix()}{secrets.token_hex(4)}", self.channels[layer]
        rules = [] if layer in self.reasons else self.rules
        try:
            part.mkdir(parents=True)
            sheets = LayerSheets(self.model, self.images, self.top, layer, rules, part)
            for start in range(0, max(1, len(channels)), PORTION):
                sheets.draw(channels[start : start + PORTION], done)
            sheets.finish(channels)
            data = self._layer_data(layer, measured, sheets.boxes, sheets.frequency)
            name = f"{self.folder.name}/{self.folders[layer]}"
            _write_data(part / "layer.js", name, data)
            pictures = {"strongest": self._strongest(layer, measured), "measured": measured.image.tolist()}
            _write_data(part / "pictures.js", f"{name}/pictures", pictures)
            _write_text(part / "front.json", json.dumps(self._layer_front(layer, data, sheets)))
            part.replace(self._folder(layer))
        except OSError as error:
            raise error if isinstance(error, WriteError) else WriteError(self.folder, error) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _layer_front(self, layer: str, data: Mapping[str, Any], sheets: LayerSheets) -> dict[str, Any]:
        """What the front page says of a layer, and where its maps lie in the map of maps."""
        rows, columns = field_in(self.model, self.images.size, layer)
        field = Field(rows, columns)
        table = self.top[layer]
        why = self.reasons.get(layer, "")
        return {
            "name": layer, "folder": self.folders[layer], "shape": list(self.model.network.shapes[layer]),
            "count": len(table.max), "dead": int((table.max <= 0).sum()), "inside": self.top.inside,
            "field": field.size, "stride": field.stride, "rules": list(sheets.rules),
            "notes": [f"Patches alone, without projections: {why}."] * bool(why) + list(sheets.notes),
            "tile": list(sheets.tile), "thumb": list(sheets.thumb), "filters": sheets.has_filters,
            "natural": sheets.natural is not None,
            **{name: data[name] for name in ("channels", "reach", "selectivity", "frequency")},
        }  # fmt: skip

    def _layer_data(
        self, layer: str, measured: Profile, boxes: np.ndarray, frequency: np.ndarray
    ) -> dict[str, Any]:
        """Everything that the pages of a layer's maps say in words and numbers; a list with a place for each map."""
        table, channels = self.top[layer], self.channels[layer]
        share, name = measured.selectivity
        ranked = {n: getattr(table, n)[channels].tolist() for n in ("image", "row", "col")}
        values = np.where(table.image[channels].numpy() < 0, 0, table.value[channels].numpy())
        warnings = map_warnings(self.model, self.top, layer)
        labels = [measured.top_labels(c) for c in channels] if measured.kind else []
        return {
            "channels": channels,
            **{n: _short(getattr(table, n)[channels].numpy()) for n in ("max", "active")},
            **ranked,
            "value": [_short(row) for row in values],
            "box": boxes.tolist(),
            "reach": _short(reach_or_share(self.model, self.top, layer)[channels].numpy()),
            "recorded": bool(records(self.model)),
            "frequency": _short(frequency),
            "measured": len(measured.image),
            "kind": measured.kind,
            "selectivity": _short(share[channels]) if measured.kind else [],
            "favourite": name[channels].tolist() if measured.kind else [],
            "labels": [{"of": n, "first": counts[:LABELS], "kinds": len(counts)} for counts, n in labels],
            "histogram": [_histogram(measured.values[:, c]) for c in channels],
            "nearest": [self._nearest(measured, layer, c) for c in channels],
            "inputs": self._inputs(layer, measured),
            "warnings": [[list(w) for w in warnings[c]] for c in channels],
        }

    def _nearest(self, measured: Profile, layer: str, channel: int) -> list[tuple[int, float]]:
        shown = set(self.channels[layer])
        near = measured.nearest(channel, NEAREST if len(shown) == len(self.top[layer].max) else 10 * NEAREST)
        return [(c, round(r, 3)) for c, r in near if c in shown][:NEAREST]

    def _inputs(self, layer: str, measured: Profile) -> list[list[tuple[str, int, float]]]:
        """For each map, the maps of layers before that add most to its strongest activation, and how much."""
        if measured.inputs is None:
            return [[] for _ in self.channels[layer]]
        behind = sources(self.model.network, layer, self.channels)
        listed = []
        for c in self.channels[layer]:
            added = measured.inputs[c]
            first = np.argsort(-np.abs(added), kind="stable")[:INPUTS]
            known = [(behind[j], float(added[j])) for j in first if behind[j] is not None and added[j] != 0]
            listed.append([(s[0], s[1], float(f"{a:.4g}")) for s, a in known if s is not None])
        return listed

    def _strongest(self, layer: str, measured: Profile) -> dict[int, list[tuple[int, float]]]:
        """For each picture, the maps that it brings nearest to their strongest activation, and how near (0 to 1)."""
        table, shown = self.top[layer], np.array(self.channels[layer], dtype=int)
        most = table.max.clamp(min=1e-30).numpy()
        near: dict[int, dict[int, float]] = {}
        for i, row in zip(measured.image.tolist(), measured.values / most, strict=True):
            best = shown[np.argsort(-row[shown], kind="stable")[:STRONGEST]]
            near[i] = {int(c): float(row[c]) for c in best if row[c] > 0}
        for c in shown.tolist():
            for i, value in zip(table.image[c].tolist(), table.value[c].tolist(), strict=True):
                if i >= 0 and value > 0:
                    near.setdefault(i, {})[c] = value / float(most[c])
        return {
            i: [(c, round(v, 3)) for c, v in sorted(of.items(), key=lambda item: (-item[1], item[0]))[:STRONGEST]]
            for i, of in near.items()
        }  # fmt: skip


def _front(
    names: Sequence[str],
    networks: Sequence[VisionModel],
    images: ImageSet,
    fronts: Sequence[list[dict[str, Any]]],
    k: int,
) -> dict[str, Any]:
    """What the first page says."""
    return {
        "version": __version__, "made": datetime.date.today().isoformat(),
        "k": k, "crisp": CRISP, "maps": MAPS, "natural": NOTE, "images": images.source, "load": images.loaded,
        "count": len(images), "size": in_px(images.size), "shape": pair(images.size),
        "credits": [f"{p.name}: {p.licence}" for p in photographs()] if images.source.startswith("photos") else [],
        "models": [
            {
                "folder": name, "name": model.name,
                "data": str(model.provenance.get("data", "")),
                "top1": str(model.provenance.get("top1", "")),
                "recorded": bool(records(model)),
                # Of others the name does not say which weights they have.
                "load": f'zfkit.load_model("{model.name}")' if records(model) else "",
                "layers": part,
            }
            for name, model, part in zip(names, networks, fronts, strict=True)
        ],
    }  # fmt: skip


def _short(values: np.ndarray) -> list[float | None]:
    """Four significant digits; None for what is no finite number."""
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in values.tolist()]


def _histogram(values: np.ndarray) -> dict[str, Any]:
    """A map's maxima over the pictures, in bins of equal width."""
    counts, edges = np.histogram(values, BINS)
    return {"counts": counts.tolist(), "low": float(f"{edges[0]:.4g}"), "high": float(f"{edges[-1]:.4g}")}


def _write_data(file: Path, name: str, data: Mapping[str, Any]) -> None:
    """JSON in a call: a browser that opens pages from the disk loads scripts, but no JSON."""
    _write_text(file, f"zfkit.take({json.dumps(name)}, {json.dumps(data, separators=(',', ':'))});\n")


def _write_text(file: Path, text: str) -> None:
    write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))
