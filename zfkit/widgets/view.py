"""What the explorer shows, computed: from a `State` to encoded pictures, words and plots.

Nothing here knows of widgets; `ExplorerView` is what tests and benchmarks talk to. What takes long is a
generator that yields `Progress`, to be run piece by piece by a `Worker`.
"""

from __future__ import annotations

import copy
import functools
import html
import io
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..batching import result_of
from ..deconv.project import Deconvnet, Tape
from ..deconv.receptive_field import Field, field_in, fits_inside, units_inside
from ..deconv.rules import Options, Rule
from ..deconv.windows import paste as paste_windows
from ..errors import ImageError, LayerError, ZfkitError, unknown
from ..figures.pictures import number
from ..health import Thresholds
from ..images.decode import MAX_PIXELS, decode, square, to_tensor
from ..images.imageset import ImageSet
from ..nets.activations import activations
from ..nets.model import VisionModel, wrap_model
from ..nets.zoo import load_model
from ..topk.mine import mine
from ..topk.patches import Patches, project_top
from ..topk.table import LayerTop, TopK
from . import drawing
from .drawing import GRID, LARGE
from .panel import Cache, Progress, encode
from .state import METHODS, State

SHOWN = 9  # pictures of each map
PROFILED = 2000  # pictures at most in a `Profile`
TOP = 100  # pictures in a map's class histogram
PIECE = 3  # of a map's pictures are projected at once ahead of time: few enough that nobody waits long
SWITCHES = 256 * 2**20  # bytes; no more pictures' switches are kept
MAPS = 128 * 2**20  # bytes; no more feature maps are kept
SMALL = 8  # px; a picture of your own must have that many along its smaller side

Others = Mapping[str, VisionModel | Callable[[], VisionModel]]


class Grids(NamedTuple):
    """The nine projections and patches of a map, encoded; or a sentence where they would be."""

    projections: bytes = b""
    patches: bytes = b""
    captions: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    sentence: str = ""


class Detail(NamedTuple):
    """One of the nine, large: photograph with the unit's box, map over it, projection; and the unit."""

    photo: bytes = b""
    heat: bytes = b""
    whole: bytes = b""
    told: str = ""
    scale: float = 0.0
    zoom: float = 0.0
    shape: tuple[int, int] = (1, 1)
    area: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    position: tuple[int, int] = (0, 0)
    sentence: str = ""


class Strongest(NamedTuple):
    """The maps of a layer that one picture excites most, projected."""

    patches: Patches  # C = the maps, k = 1
    picture: Tensor  # uint8 (3, S, S)


class Own(NamedTuple):
    """A picture of your own as the network sees it."""

    picture: bytes = b""
    strongest: bytes = b""
    windows: bytes = b""
    captions: tuple[str, ...] = ()
    channels: tuple[int, ...] = ()
    note: str = ""
    probabilities: str = ""
    sentence: str = ""


@dataclass(frozen=True)
class Profile:
    """Every map's strongest activation in each of n pictures.

    Attributes:
        values: by layer, (n, C) float32.
        image: (n,) places in the image set.
        label: (n,) class or photograph of each, "" where there is none.
        kind: what the labels are: "class", "photograph" or "".
    """

    values: dict[str, np.ndarray]
    image: np.ndarray
    label: np.ndarray
    kind: str

    def selectivity(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """Per map: (mu_max - mu_rest) / (mu_max + mu_rest) of class means of rectified maxima (Morcos et al.
        2018), and the class with the largest mean; 0 where a map is never active."""
        values = self.values[layer].clip(min=0)
        names = np.unique(self.label)
        means = np.stack([values[self.label == name].mean(0) for name in names])  # (classes, C)
        largest = means.max(0)
        rest = (means.sum(0) - largest) / max(len(names) - 1, 1)
        total = largest + rest
        return np.divide(largest - rest, total, out=np.zeros_like(total), where=total > 0), names[
            means.argmax(0)
        ]

    def nearest(self, layer: str, channel: int, count: int = 3) -> list[tuple[int, float]]:
        """The maps whose activations over the pictures correlate most with this one's."""
        values = self.values[layer].astype(np.float64)
        centred = values - values.mean(0)
        norm = np.sqrt((centred**2).sum(0))
        with np.errstate(invalid="ignore", divide="ignore"):
            r = np.nan_to_num(centred.T @ centred[:, channel] / (norm * norm[channel]), nan=-1.0)
        r[channel] = -2
        best = np.argsort(-r, kind="stable")[:count]
        return [(int(c), float(r[c])) for c in best if r[c] > -1]

    def top_labels(self, layer: str, channel: int, count: int = TOP) -> tuple[list[tuple[str, int]], int]:
        """Labels of the pictures that excite a map most, the most frequent first, and how many pictures."""
        values = self.values[layer][:, channel]
        best = np.argsort(-values, kind="stable")[:count]
        best = best[values[best] > 0]
        return Counter(self.label[best].tolist()).most_common(), len(best)


@dataclass
class _Counted:
    """A `Profile` on its way."""

    values: dict[str, list[np.ndarray]]
    used: list[int]
    labels: list[str]
    upto: int = 0  # pictures looked at


class ExplorerView:
    """Computes all that the explorer shows, and keeps what may be asked for again.

    Args:
        model, photos, top: as for `project_top`.
        others: other models for the third tab, by name: a model, or a function that loads it.
    """

    def __init__(self, model: VisionModel, photos: ImageSet, top: TopK, others: Others | None = None) -> None:
        self.model, self.photos, self.top = model, photos, top
        self.layers = tuple(name for name in top.layers if name in model.layers)
        self.fields: dict[str, Field] = {name: self._field(name) for name in self.layers}
        self.shapes = self._shapes()
        self.others = dict(others or {})
        self.profile: Profile | None = None
        self.frequencies: dict[str, np.ndarray] = {}
        self._patches = Cache(96 * 2**20, _patches_bytes)
        self._begun = Cache(32 * 2**20, lambda parts: sum(map(_patches_bytes, parts)))
        self._grids = Cache(192 * 2**20, lambda g: len(g.projections) + len(g.patches) + 200)
        self._tapes = Cache(96 * 2**20, lambda tape: tape.bytes)
        self._switches = Cache(SWITCHES, lambda tape: tape.bytes)  # of whole pictures, for the deconvnet
        self._maps = Cache(MAPS, lambda y: y.numel() * y.element_size())  # on those of the pictures they show
        self._counted: _Counted | None = None
        self._kept = Cache(48, lambda _: 1)
        self._shuffled: VisionModel | None = None

    # --------------------------------------------------------------------------------------------- states

    def _field(self, layer: str) -> Field:
        rows, columns = field_in(self.model, self.photos.size, layer)
        return Field(rows, columns)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each layer's output for the pictures at hand."""
        if not self.layers:
            return {}
        blank = torch.zeros(1, 3, self.photos.size, self.photos.size, dtype=torch.uint8)
        with torch.no_grad():
            return {n: tuple(y.shape[1:]) for n, y in activations(self.model, blank, self.layers)}

    def count(self, layer: str) -> int:
        """Number of feature maps."""
        return len(self.top[layer].value)

    def checked(self, state: State) -> State:
        """The state with its layer filled in. Raises LayerError for what this network does not have."""
        if not self.layers:
            return state
        layer = state.layer or self.layers[0]
        if layer not in self.layers:
            raise LayerError(unknown("layer", layer, self.layers) + " (those that were mined)")
        C = self.count(layer)
        if state.channel >= C:
            raise LayerError(
                f"there is no feature map {state.channel} in {layer!r}: it has {C}, 0 to {C - 1}"
            )
        if state.rank >= self.shown:
            raise ZfkitError(
                f"there is no rank {state.rank}: {self.shown} pictures are shown, 0 to {self.shown - 1}"
            )
        shape = self.shapes[layer][1:]
        if state.position is not None and len(shape) == 2:
            row, col = state.position
            if row >= shape[0] or col >= shape[1]:
                raise LayerError(
                    f"position {state.position} is outside: maps of {layer!r} are {shape[0]} x {shape[1]}"
                )
        if state.versus != METHODS and state.versus not in self.others:
            raise ZfkitError(unknown("model to compare with", state.versus, [METHODS, *self.others]))
        return replace(state, layer=layer)

    @property
    def shown(self) -> int:
        """Pictures of each map: 9, or fewer where fewer were mined."""
        return max(1, min(SHOWN, self.top.k))

    @property
    def empty(self) -> str:
        """A sentence where there is nothing to explore; else ""."""
        if self.layers:
            return ""
        if not self.top.layers:
            return "This table is empty: no layer was mined. Make one with zfkit.mine(model, photos)."
        return (
            f"None of the table's layers ({', '.join(self.top.layers)}) is in {self.model.name}: mine again."
        )

    def order(self, state: State) -> np.ndarray:
        """Channels in the state's order, as on the slider; found by its search, if it has one.

        Orders that are not known yet ("selectivity" needs `profile`, "mean frequency" `frequencies`) give
        the index; `lacks` says what is missing. A search without result gives no channel.
        """
        layer = state.layer
        t = self.top[layer]
        C = self.count(layer)
        if state.search.strip():
            hits = self._hits(layer, state.search)
            channels = np.flatnonzero(hits)
            return channels[np.argsort(-hits[channels], kind="stable")]
        key: np.ndarray | None = None
        if state.order == "max activation":
            key = -t.max.numpy()
        elif state.order == "dead first":
            key = t.active.numpy() + 1e-6 * t.max.numpy() / max(float(t.max.max()), 1e-9)
        elif state.order == "selectivity" and self.profile is not None and layer in self.profile.values:
            key = -self._selectivity(layer)[0]
        elif state.order == "mean frequency" and layer in self.frequencies:
            key = np.nan_to_num(self.frequencies[layer], nan=np.inf)
        return np.arange(C) if key is None else np.argsort(key, kind="stable")

    def _selectivity(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        assert self.profile is not None
        key = ("selectivity", layer, id(self.profile))
        return self._kept.get(key) or self._kept.put(key, self.profile.selectivity(layer))

    def lacks(self, state: State) -> str:
        """What `order` has to wait for: "profile", "frequencies", or ""."""
        if state.search.strip():
            return ""
        if state.order == "selectivity" and self.profile is None:
            return "profile"
        if state.order == "mean frequency" and state.layer not in self.frequencies:
            return "frequencies"
        return ""

    def _hits(self, layer: str, search: str) -> np.ndarray:
        """How many of each map's strongest pictures have a name or class with this in it; (C,)."""
        wanted = search.strip().lower()
        image = self.top[layer].image.numpy()
        known = {int(i): wanted in self.about(int(i)).lower() for i in np.unique(image) if i >= 0}
        return np.vectorize(lambda i: known.get(int(i), False), otypes=[int])(image).sum(1)

    # ---------------------------------------------------------------------------------------------- names

    def label(self, i: int) -> str:
        """Class of picture i, or the photograph it was cut from; "" where neither is known."""
        labels, classes = self.photos.labels, self.photos.classes
        if labels is not None and classes and 0 <= int(labels[i]) < len(classes):
            return str(classes[int(labels[i])])
        return self.photos.name(i).split(" (")[0] if self.photos.windows is not None else ""

    @property
    def source(self) -> str:
        """Where the pictures come from, in a few letters: of a path only what it ends with."""
        kind, colon, rest = self.photos.source.partition(":")
        paths = kind in ("folder", "parquet") and colon
        return f"{kind} {Path(rest).expanduser().absolute().name or rest}" if paths else self.photos.source

    def short(self, i: int) -> str:
        """A few letters for picture i."""
        name = self.photos.name(i)
        name = name.split(" (")[0] if self.photos.windows is not None else Path(name).name
        if self.photos.windows is None and self.label(i):
            name = self.label(i)
        return name if len(name) <= 18 else name[:17] + "…"

    def about(self, i: int) -> str:
        """Name of picture i, and its class where it has one."""
        name, label = self.photos.name(i), self.label(i)
        return f"{name} ({label})" if label and label not in name else name

    # ------------------------------------------------------------------------------------------ the grids

    def table(self, layer: str) -> TopK:
        """The table of one layer, at most nine pictures deep."""
        k = self.shown
        return self._part(self.top, layer, 0, k)

    @staticmethod
    def _part(top: TopK, layer: str, start: int, stop: int) -> TopK:
        t = top[layer]
        places = {n: getattr(t, n)[:, start:stop] for n in ("value", "image", "row", "col")}
        return replace(top, layers={layer: replace(t, **places)}, k=stop - start)

    def patches(self, layer: str, channel: int, rule: Rule) -> Patches:
        """Projections and patches of one map's strongest, kept."""
        return result_of(self._patches_steps(layer, channel, rule, self.shown))

    def _patches_steps(
        self, layer: str, channel: int, rule: Rule, at_once: int
    ) -> Generator[None, None, Patches]:
        """`patches`, so many pictures at once; what was made before it was broken off is not made again."""
        key = (layer, channel, rule)
        found: Patches | None = self._patches.get(key)
        if found is not None:
            return found
        parts: tuple[Patches, ...] = self._begun.get(key) or ()
        while (start := sum(p.image.shape[1] for p in parts)) < self.shown:
            table = self._part(self.top, layer, start, min(start + at_once, self.shown))
            parts = (*parts, self._project(table, layer, channel, rule))
            self._begun.put(key, parts)
            yield
        names = ("projection", "photo", "box", "image", "row", "col", "value")
        joined: dict[str, Any] = {n: torch.cat([getattr(p, n) for p in parts], 1) for n in names}
        self._begun.put(key, ())
        return self._patches.put(key, replace(parts[0], **joined))

    def _project(self, table: TopK, layer: str, channel: int, rule: Rule) -> Patches:
        tapes = self._switches if rule == "deconvnet" else None
        return project_top(self.model, self.photos, table, layer, [channel], rule=rule, tapes=tapes)

    def ready(self, state: State) -> bool:
        """Are the state's grids at hand, so that showing them takes no computing?"""
        return self._grids.get(self._grid_key(state)) is not None or bool(self.grids_sentence(state))

    def prepare(self, state: State) -> Generator[None, None, None]:
        """The grids of a state ahead of time, in pieces so short that nobody waits for one to end."""
        if self.ready(state):
            return
        yield from self._patches_steps(state.layer, state.channel, state.rule, PIECE)
        self.grids(state)
        yield

    @property
    def full(self) -> bool:
        """Whether more grids computed ahead would push out others."""
        return self._grids.bytes > 0.9 * self._grids.limit

    @staticmethod
    def _grid_key(state: State) -> tuple[Any, ...]:
        return (state.layer, state.channel, state.rule, state.gain)

    def grids_sentence(self, state: State) -> str:
        """What stands where the grids would be, for a map that nothing excites; else ""."""
        t = self.top[state.layer]
        if not bool((t.image[state.channel] >= 0).any()):
            return f"For {state.layer} map {state.channel} this table holds no picture. Mine again, with more of them."
        if float(t.max[state.channel]) <= 0:
            looked = " that see no border" if self.top.inside else ""
            return (
                f"{state.layer} map {state.channel} is dead: on none of the {self.top.count:,} pictures is any of its "
                f"units{looked} above 0 (the largest value is {number(t.max[state.channel])}), so there is nothing "
                "that excites it and nothing to project."
            )
        return ""

    def grids(self, state: State) -> Grids:
        """The nine projections and nine patches of the state's map, encoded."""
        key = self._grid_key(state)
        found: Grids | None = self._grids.get(key)
        if found is not None:
            return found
        sentence = self.grids_sentence(state)
        if sentence:
            return Grids(sentence=sentence)
        p = self.patches(state.layer, state.channel, state.rule)
        there = (p.image[0] >= 0).tolist()
        scale = drawing.scales(p.projection[0], state.gain)
        columns = int(np.ceil(np.sqrt(self.shown)))
        tile = (GRID + drawing.GAP) // columns - drawing.GAP
        projections = drawing.grid(drawing.coloured(p.projection[0], scale=scale), there, columns, tile)
        photos = drawing.grid(p.photo[0], there, columns, tile)
        captions = tuple(
            f"{self.short(int(i))} {number(v)}" if ok else "no picture"
            for i, v, ok in zip(p.image[0], p.value[0], there, strict=True)
        )
        found = Grids(encode(projections), encode(photos, "jpeg"), captions, tuple(scale.tolist()))
        return self._grids.put(key, found)

    # ------------------------------------------------------------------------------------------ one of nine

    def _pass(
        self, layer: str, image: int, channel: int, rule: Rule
    ) -> Generator[None, None, tuple[Deconvnet, Tape, Tensor]]:
        """What a unit of that picture is projected from, and its map: (H, W), or (1, 1) where maps have no places."""
        deconvnet = self._deconvnet(layer, rule)
        switches = self._switches.get(image) if rule == "deconvnet" else None
        y: Tensor | None = self._maps.get((layer, channel, image))
        if switches is not None and y is not None:
            return deconvnet, switches, y
        key = (layer, image, rule)
        tape: Tape | None = self._tapes.get(key)
        if tape is None:
            tape = yield from self._running(deconvnet, self.photos.take([image]))
            self._tapes.put(key, tape)
        output = tape.outputs[layer][0, channel]
        return deconvnet, tape, (output if output.dim() == 2 else output.view(1, 1)).cpu()

    def _deconvnet(self, layer: str, rule: Rule) -> Deconvnet:
        key = ("deconvnet", layer, rule)
        found: Deconvnet | None = self._kept.get(key)
        return found or self._kept.put(key, Deconvnet(self.model.network, [layer], Options(rule)))

    def _running(
        self, deconvnet: Deconvnet, pixels: Tensor, outputs: bool = True
    ) -> Generator[None, None, Tape]:
        """One picture's forward pass, in pieces of one operation each."""
        batch = self.model.preprocess(pixels).clone(memory_format=torch.channels_last)
        return (yield from deconvnet.running(batch, outputs))

    def unit(self, state: State) -> tuple[int, tuple[int, int]]:
        """Picture and (row, col) of the unit that the state shows large."""
        t, at = self.top[state.layer], (state.channel, state.rank)
        return int(t.image[at]), state.position or (int(t.row[at]), int(t.col[at]))

    def detail(self, state: State) -> Detail:
        """The state's unit: where it is, its map over the photograph, its projection on the whole picture."""
        return result_of(self.detail_steps(state))

    def detail_steps(self, state: State) -> Generator[None, None, Detail]:
        """`detail`, in pieces."""
        sentence = self.grids_sentence(state)
        if sentence:
            return Detail(sentence="Nothing to show: the map is never active.")
        image, (row, col) = self.unit(state)
        if image < 0:
            return Detail(sentence="This map has no picture of that rank.")
        layer, S = state.layer, self.photos.size
        deconvnet, tape, values = yield from self._pass(layer, image, state.channel, state.rule)
        photo = drawing.to_picture(self.photos.take([image])[0])
        device = self.model.device
        one = torch.tensor([state.channel], device=device)
        flat = len(self.shapes[layer]) == 1
        place = None if flat else torch.tensor([[row, col]])
        pixels, window = deconvnet.reverse(tape, layer, torch.zeros_like(one), one, place)
        yield
        projection = paste_windows(pixels, window.origin, (S, S))[0].cpu()
        field = self.fields[layer]
        box = field.box(row, col)
        whole, scale, zoom = drawing.whole_projection(projection, box, state.gain)
        shape = (values.shape[0], values.shape[1])
        area = (0.0, 0.0, 1.0, 1.0) if flat else drawing.map_area(field, shape, S)
        best = divmod(int(values.argmax()), values.shape[1])
        told = (
            f"{self.about(image)}. Unit at row {row}, column {col} of {shape[0]} × {shape[1]}: activation "
            f"{number(values[row, col])}; the map's maximum here is {number(values.max())}, at row {best[0]}, "
            f"column {best[1]}."
        )
        return Detail(
            encode(drawing.with_box(photo, box, S), "jpeg"), encode(drawing.heat(photo, values, area)),
            encode(whole), told, scale, zoom, shape, area, (row, col),
        )  # fmt: skip

    # ---------------------------------------------------------------------------------------------- facts

    def facts(self, state: State) -> str:
        """What is known of the state's map, as HTML: words and small plots."""
        layer, c = state.layer, state.channel
        t, field, e = self.top[layer], self.fields[layer], html.escape
        parts = [self._warnings(state)]
        sees = (
            f"sees {field.size} × {field.size} px, the next unit {field.stride} px further on"
            if field.stride
            else "sees the whole picture"
        )
        parts.append(f"<p>A unit of {e(layer)} {sees}.</p>")
        labels = Counter(self.label(int(i)) for i in t.image[c, : self.shown] if i >= 0)
        name, often = labels.most_common(1)[0] if labels else ("", 0)
        mostly = (
            f" {often} of the {self.shown} strongest show <b>{e(name)}</b>."
            if name and often > 1 and float(t.max[c]) > 0
            else ""
        )
        parts.append(
            f"<p>Strongest activation <b>{number(t.max[c])}</b>; the mean over {self.top.count:,} pictures of the "
            f"strongest in each is {number(t.mean[c])}. Above 0 on <b>{float(t.active[c]):.0%}</b> of them.{mostly}</p>"
        )
        parts.append(self._filter(layer, c))
        profile = self.profile
        if profile is None or layer not in profile.values:
            parts.append(
                '<p class="zfkit-soft">More is being counted, while nothing else is to be done …</p>'
            )
            return "".join(parts)
        values = profile.values[layer][:, c]
        ninth = float(t.value[c, self.shown - 1])
        parts.append("<h4>Its maximum in each picture</h4>")
        parts.append(
            drawing.histogram(values, ninth, f"Histogram of the map's maximum over {len(values)} pictures; "
                              f"from {number(values.min())} to {number(values.max())}")
        )  # fmt: skip
        if profile.kind:
            counted, n = profile.top_labels(layer, c)
            kind = {"class": "classes", "photograph": "photographs"}[profile.kind]
            if n:
                selectivity, names = self._selectivity(layer)
                rows = [(name, often / counted[0][1], str(often)) for name, often in counted[:5]]
                parts.append(f"<h4>Its top {n} by {profile.kind}</h4>")
                parts.append(
                    drawing.bars(rows, label="; ".join(f"{name}: {often}" for name, often in counted[:5]))
                )
                more = f" of {len(counted)} {kind}" if len(counted) > 5 else ""
                parts.append(
                    f'<p class="zfkit-soft">{"The first five" + more + ". " if more else ""}Selectivity '
                    f"{selectivity[c]:.2f} for {e(str(names[c]))} (0 none, 1 that {profile.kind} alone).</p>"
                )
        else:
            parts.append('<p class="zfkit-soft">No class histogram: these pictures have no labels.</p>')
        return "".join(parts)

    def nearest(self, state: State) -> list[tuple[int, float]]:
        """Maps that respond most alike over the pictures, with the correlation; none until that is counted."""
        if self.profile is None or state.layer not in self.profile.values:
            return []
        return self.profile.nearest(state.layer, state.channel)

    def _weights(self, layer: str) -> Tensor | None:
        module = self.model.network.steps[layer].module
        return module.weight.detach().cpu().float() if isinstance(module, nn.Conv2d | nn.Linear) else None

    def _filter(self, layer: str, channel: int) -> str:
        """Filter and spectrum, for layers that look at the picture itself."""
        weights = self._weights(layer)
        steps = self.model.network.steps
        first = steps[layer].inputs[:1] == (self.model.network.input,) or list(steps[layer].inputs[:1]) == [
            self.model.network.input
        ]
        if weights is None or not first or weights.dim() != 4:
            return ""
        w = weights[channel]
        pictures = (
            drawing.fitted(drawing.to_picture(drawing.coloured(w[None])[0]), 96),
            drawing.fitted(drawing.grey(drawing.spectrum(w)), 96),
        )
        images = "".join(
            f'<figure><img alt="{what}" width="96" height="96" src="{drawing.data_url(encode(p))}">'
            f"<figcaption>{told}</figcaption></figure>"
            for what, told, p in zip(
                ("filter", "spectrum of the filter"),
                (f"filter, {w.shape[1]} × {w.shape[2]}", "spectrum, ±½ c/px"),
                pictures,
                strict=True,
            )
        )
        rho = float(drawing.mean_frequency(w[None])[0])
        return f'<div class="zfkit-pair">{images}</div><p class="zfkit-soft">Mean frequency {rho:.2f} cycles/px.</p>'

    def _warnings(self, state: State) -> str:
        """What is wrong with the map, in words, as far as the table and the weights tell."""
        layer, c = state.layer, state.channel
        t, limits = self.top[layer], Thresholds()  # those of `diagnose`
        told = []
        if float(t.max[c]) <= 0:
            told.append("Dead: never above 0 on these pictures.")
        elif float(t.active[c]) < limits.rare_pictures:
            told.append(f"Rarely active: above 0 on {float(t.active[c]):.1%} of the pictures.")
        weights = self._weights(layer)
        if weights is not None:
            flat = weights.flatten(1)
            largest = flat.abs().amax(1)
            if float(largest[c]) < limits.weak * float(largest.max()):
                told.append(
                    f"Weak filter: its largest weight is under {limits.weak:.0%} of the layer's largest."
                )
            norm = flat.norm(dim=1).clamp(min=1e-30)
            cosine = (flat @ flat[c]) / (norm * norm[c])
            cosine[c] = -1
            twin = int(cosine.argmax())
            if float(cosine[twin]) > limits.cosine:
                told.append(f"Nearly a duplicate of map {twin} (cosine {float(cosine[twin]):.2f}).")
        items = "".join(f"<li>{html.escape(s)}</li>" for s in told)
        return f'<ul class="zfkit-warnings" aria-label="health warnings">{items}</ul>' if items else (
            '<p class="zfkit-healthy">No health warning.</p>'
        )  # fmt: skip

    # ---------------------------------------------------------------------- what takes a while, in pieces

    def profile_steps(self) -> Generator[Progress | None, None, None]:
        """Fill in `profile`: one forward pass over the pictures, at most 2,000, evenly spread."""
        if self.profile is not None or not self.layers:
            return
        done = self._counted = self._counted or _Counted({name: [] for name in self.layers}, [], [])
        n = min(len(self.photos), PROFILED)
        classes = self.photos.classes
        inside = {}
        if self.top.inside:
            inside = {name: units_inside(self.model, name, self.photos.size) for name in self.layers}
        for count in range(done.upto, n):
            i = count * len(self.photos) // n
            try:
                pixels, label = self.photos[i]
            except ImageError:
                done.upto = count + 1
                continue
            outputs = yield from self._outputs(i, pixels)
            for name, output in outputs.items():
                if output.dim() == 4 and name in inside:
                    output = output[:, :, inside[name][0], inside[name][1]]
                strongest = output.flatten(2).amax(2) if output.dim() == 4 else output
                done.values[name].append(strongest[0].float().cpu().numpy())
            done.used.append(i)
            done.labels.append(str(classes[label]) if 0 <= label < len(classes) else self.label(i))
            done.upto = count + 1
            yield Progress("counting activations", (count + 1) / n)
        if not done.used:
            raise ImageError(f"none of the pictures of {self.photos.source!r} can be read")
        kind = "" if not any(done.labels) else "class" if classes else "photograph"
        values = {k: np.stack(v) for k, v in done.values.items()}
        self.profile = Profile(values, np.array(done.used), np.array(done.labels), kind)
        self._counted = None

    def _outputs(self, i: int, pixels: Tensor) -> Generator[None, None, dict[str, Tensor]]:
        """All layers' maps of picture i; on the way its switches and the maps that show it are kept."""
        try:
            deconvnet = Deconvnet(self.model.network, self.layers)
        except LayerError:  # an operation without a way back: all of it can be seen but projections
            with torch.no_grad():
                return {n: y.clone() for n, y in activations(self.model, pixels[None], self.layers)}
        tape = yield from self._running(deconvnet, pixels[None])
        self._keep_switches(i, tape)
        for layer, channel in self._pictured.get(i, ()):
            y = tape.outputs[layer][0, channel]
            if y.dim() == 2 and self._maps.bytes + y.numel() * y.element_size() <= self._maps.limit:
                self._maps.put((layer, channel, i), y.cpu().clone(memory_format=torch.contiguous_format))
        return tape.outputs

    def _keep_switches(self, i: int, tape: Tape) -> None:
        """Those of picture i, if some map shows it and there is room."""
        switches = replace(tape, outputs={})
        if i in self._pictured and self._switches.bytes + switches.bytes <= self._switches.limit:
            self._switches.put(i, switches)

    def switch_steps(self, layer: str, channels: Sequence[int]) -> Generator[None, None, None]:
        """Keep the switches of all pictures that maps show, those of these maps of a layer first.

        From kept switches the deconvnet projects without a forward pass.
        """
        try:
            deconvnet = Deconvnet(self.model.network, self.layers)
        except LayerError:
            return
        first = (
            self.top[layer].image[torch.tensor(channels, dtype=torch.long), : self.shown].flatten().tolist()
        )
        for i in dict.fromkeys([*first, *self._pictured]):
            if i < 0 or self._switches.get(i) is not None:
                continue
            try:
                tape = yield from self._running(deconvnet, self.photos.take([i]), outputs=False)
            except RuntimeError:  # an operation that takes no empty batch: `profile_steps` keeps them
                return
            if self._switches.bytes + tape.bytes > self._switches.limit:
                return
            self._keep_switches(i, tape)
            yield

    @functools.cached_property
    def _pictured(self) -> dict[int, list[tuple[str, int]]]:
        """Pictures that grids show, and the maps (layer, channel) that show each."""
        found: dict[int, list[tuple[str, int]]] = {}
        for layer in self.layers:
            for channel, images in enumerate(self.top[layer].image[:, : self.shown].tolist()):
                for i in images:
                    found.setdefault(i, []).append((layer, channel))
        found.pop(-1, None)
        return found

    def frequency_steps(self, layer: str) -> Generator[Progress, None, None]:
        """Fill in `frequencies[layer]`: the mean frequency of each map's three strongest projections."""
        if layer in self.frequencies:
            return
        C, k = self.count(layer), min(3, self.shown)
        table = self._part(self.top, layer, 0, k)
        found = np.full(C, np.nan)
        for start in range(0, C, 8):
            chosen = list(range(start, min(start + 8, C)))
            p = project_top(self.model, self.photos, table, layer, chosen)
            each = drawing.mean_frequency(p.projection.flatten(0, 1)).view(len(chosen), k)
            found[chosen] = each.nanmean(1).numpy()
            yield Progress(f"mean frequency of {layer}", min(1.0, (start + 8) / C))
        self.frequencies[layer] = found

    # -------------------------------------------------------------------------------------- your own image

    def strongest(self, model: VisionModel, picture: Tensor, layer: str, count: int = SHOWN) -> Strongest:
        """The `count` maps of a layer that a picture, uint8 (3, S, S), excites most, projected."""
        with torch.no_grad():
            output = next(y for _, y in activations(model, picture[None], [layer]))[0].float().cpu()
        maps = output.flatten(1)
        value, place = maps.max(1)
        width = output.shape[2] if output.dim() == 3 else 1
        row, col = (place // width)[:, None], (place % width)[:, None]
        alone = ImageSet(
            lambda i: (drawing.to_picture(picture), -1),
            ["your picture"],
            size=picture.shape[-1],
            source="own",
        )
        zero = torch.zeros_like(row)
        own = LayerTop(value[:, None], zero, row, col, value, value, (value > 0).float())
        top = TopK({layer: own}, 1, model.name, "own", alone.fingerprint(), 1, False, model.fingerprint())
        best = value.argsort(descending=True, stable=True)[:count]
        best = best[value[best] > 0]
        if not len(best):
            raise LayerError(
                f"no map of {layer} is above 0 anywhere in this picture, so there is nothing to project."
            )
        return Strongest(project_top(model, alone, top, layer, best), picture)

    def read_own(self, content: bytes | str, name: str) -> tuple[Tensor, Tensor, str]:
        """A picture of your own, from its bytes or path: uint8 at the photographs' size and at the network's,
        and a sentence on what was done to it. Raises ImageError in words."""
        if isinstance(content, str):
            path = Path(content).expanduser()
            if not path.is_file():
                raise ImageError(
                    f"There is no file {content!r}; check the path (it is looked up from {Path.cwd()})."
                )
            try:
                content = path.read_bytes()
            except OSError as error:
                raise ImageError(f"{path.name} cannot be read ({error.strerror}).") from None
        size, frames = _look(content, name)
        if size and size[0] * size[1] > MAX_PIXELS:
            raise ImageError(
                f"{name} has {size[0]:,} × {size[1]:,} pixels; more than {MAX_PIXELS:,} would fill the memory. "
                "Make it smaller first."
            )
        if size and min(size) < SMALL:
            raise ImageError(
                f"{name} has {size[0]} × {size[1]} pixels, too few to see anything: every patch would be a plain "
                f"colour. Take a picture of at least {SMALL} × {SMALL}."
            )
        whole = decode(content, name)
        told = f"{name}: {whole.width:,} × {whole.height:,} px"
        if frames > 1:
            told += f"; an animation of {frames} frames, of which the first is shown"
        if whole.width != whole.height:
            told += "; its middle square is used"
        shown = to_tensor(square(whole, self.photos.size))
        small = to_tensor(square(whole, self.model.input_size))
        return shown, small, told + "."

    def own(self, state: State, content: bytes | str, name: str) -> Own:
        """What the state's layer sees in a picture of your own, and what the network calls it.

        Never raises for the picture's sake: `sentence` says what is wrong.
        """
        try:
            picture, small, note = self.read_own(content, name)
        except ZfkitError as error:
            return Own(sentence=str(error))
        photo = encode(drawing.fitted(drawing.to_picture(picture), LARGE), "jpeg")
        probabilities = self._probabilities(small)
        try:
            found = self.strongest(self.model, picture, state.layer).patches
        except ZfkitError as error:
            return Own(photo, note=note, probabilities=probabilities, sentence=str(error))
        projections, windows = found.projection[:, 0], found.photo[:, 0]
        there = [True] * len(projections)
        t = self.top[state.layer]
        captions = tuple(
            f"map {int(c)}: {number(v)}, {float(v) / max(float(t.max[c]), 1e-9):.0%}"
            for c, v in zip(found.channels, found.value[:, 0], strict=True)
        )
        return Own(
            photo,
            encode(drawing.grid(drawing.coloured(projections, state.gain), there)),
            encode(drawing.grid(windows, there), "jpeg"),
            captions,
            tuple(found.channels.tolist()),
            note,
            probabilities,
        )

    def _probabilities(self, small: Tensor) -> str:
        """The five likeliest classes as HTML, or a sentence."""
        classes = self.model.classes
        if not classes:
            return f"<p>{html.escape(self.model.name)} has no class names, so there are no probabilities to show.</p>"
        with torch.no_grad():
            output = self.model.net(self.model.preprocess(small))[0].float().cpu()
        already = bool((output >= 0).all()) and abs(float(output.sum()) - 1) < 1e-3
        share, place = (output if already else output.softmax(0)).topk(min(5, len(classes)))
        names = [str(classes[int(i)]) for i in place]
        rows = [(name, float(p), f"{float(p):.0%}") for name, p in zip(names, share, strict=True)]
        label = "; ".join(f"{name} {told}" for name, _, told in rows)
        return drawing.bars(rows, width=220, label=label, split=118)

    # -------------------------------------------------------------------------------------------- compare

    @property
    def shuffled(self) -> VisionModel:
        """The same network with each tensor of weights shuffled in itself: the control that learned nothing."""
        if self._shuffled is None:
            net = copy.deepcopy(self.model.net)
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in net.parameters():
                    flat = parameter.detach().flatten().cpu()
                    mixed = flat[torch.randperm(len(flat), generator=generator)]
                    parameter.data = mixed.view_as(parameter).to(parameter.device)
            m = self.model
            self._shuffled = wrap_model(
                net, mean=m.mean, scale=m.scale, input_size=m.input_size, name=f"{m.name} shuffled"
            )
        return self._shuffled

    COLUMNS = ("patch", "deconvnet", "guided", "gradient", "shuffled weights")

    def methods(self, state: State) -> Generator[Progress, None, tuple[bytes, str]]:
        """The same units by every method, for the three strongest pictures: encoded, and a sentence if none."""
        sentence = self.grids_sentence(state)
        if sentence:
            return b"", sentence
        key = ("methods", state.layer, state.channel)
        columns: list[Tensor] | None = self._kept.get(key)
        if columns is None:
            k = min(3, self.shown)
            table = self._part(self.top, state.layer, 0, k)
            rules: tuple[Rule, ...] = ("deconvnet", "guided", "gradient")
            columns = []
            for i, rule in enumerate(rules):
                p = project_top(self.model, self.photos, table, state.layer, [state.channel], rule=rule)
                columns = [*(columns or [p.photo[0]]), p.projection[0]]
                yield Progress("comparing methods", (i + 1) / 5)
            model = self.shuffled
            yield Progress("comparing methods", 0.8)
            table = replace(table, model=model.name, weights="")
            p = project_top(model, self.photos, table, state.layer, [state.channel])
            columns.append(p.projection[0])
            self._kept.put(key, columns)
        rows = [columns[0], *(drawing.coloured(c, state.gain) for c in columns[1:])]
        cells = torch.stack(rows, 1).flatten(0, 1)  # one row per picture, one column per method
        return encode(drawing.grid(cells, [True] * len(cells), len(rows), COMPARED)), ""

    def other(self, name: str) -> VisionModel:
        """A model to compare with, loaded when it is first asked for."""
        found = self.others[name]
        if not isinstance(found, VisionModel):
            found = self.others[name] = found()
        return found

    def layer_of(self, model: VisionModel, layer: str) -> str:
        """The layer of another model that stands beside this one: of the same name, else of the same number."""
        if layer in model.layers:
            return layer
        convs = model.conv_layers
        at = self.model.conv_layers.index(layer) if layer in self.model.conv_layers else len(convs) - 1
        return convs[min(at, len(convs) - 1)]

    def models(
        self, state: State
    ) -> Generator[Progress, None, list[tuple[str, bytes, tuple[str, ...], str]]]:
        """The strongest maps of two models in the same photograph: (title, encoded, captions, sentence) each."""
        image = max(self.unit(state)[0], 0)
        picture = self.photos.take([image])[0]
        found = []
        for i, name in enumerate((self.model.name, state.versus)):
            model = self.model if i == 0 else self.other(name)
            layer = state.layer if i == 0 else self.layer_of(model, state.layer)
            key = ("models", i, name, layer, image)
            try:
                strongest = self._kept.get(key) or self._kept.put(key, self.strongest(model, picture, layer))
                p = strongest.patches
                shown = drawing.coloured(p.projection[:, 0], state.gain)
                captions = tuple(
                    f"{int(c)} · {number(v)}" for c, v in zip(p.channels, p.value[:, 0], strict=True)
                )
                found.append(
                    (f"{name} {layer}", encode(drawing.grid(shown, [True] * len(shown))), captions, "")
                )
            except ZfkitError as error:
                found.append((f"{name} {layer}", b"", (), str(error)))
            yield Progress("comparing models", (i + 1) / 2)
        return found

    # ---------------------------------------------------------------------------------------------- figure

    def scale_line(self, state: State) -> str:
        """How to read the colours, in a sentence."""
        gain = "" if state.gain == 1 else f" (gain {state.gain:g}: values beyond are cut off)" if state.gain > 1 else (
            f" (gain {state.gain:g})"
        )  # fmt: skip
        return (
            "Grey is 0. Each projection has its own symmetric scale: full colour at ± the 99.5th percentile of its "
            f"|values|{'' if state.gain == 1 else f' / {state.gain:g}'}{gain}."
        )

    def figure(self, state: State) -> Image.Image:
        """The view as one picture with a caption: model, layer, map, pictures, scale."""
        if not self.layers:
            return drawing.with_caption(
                [("", Image.new("RGB", (480, 4), "white"))], "Nothing to show", [self.empty]
            )
        grids = self.grids(state)
        title = f"{self.model.name} {state.layer}, map {state.channel}"
        if grids.sentence:
            return drawing.with_caption([("", Image.new("RGB", (480, 4), "white"))], title, [grids.sentence])
        detail = self.detail(state)
        blocks = [
            (f"{state.rule}: the {self.shown} strongest", _opened(grids.projections)),
            ("what the units see", _opened(grids.patches)),
        ]
        small = [
            ("photograph", _opened(detail.photo)),
            ("the map over it", _opened(detail.heat)),
            ("projection", _opened(detail.whole)),
        ] if not detail.sentence else []  # fmt: skip
        names = "; ".join(f"{i + 1} {caption}" for i, caption in enumerate(grids.captions))
        field = self.fields[state.layer]
        lines = [
            f"The strongest of {self.top.count:,} pictures ({self.source}), with activations: {names}.",
            f"A unit sees {field.size} px, stride {field.stride} px. "
            if field.stride
            else "A unit sees it all. ",
            self.scale_line(state),
        ]
        lines[1:] = [lines[1] + lines[2]]
        if small:
            lines.append(f"Below: {detail.told} Its scale: ±{number(detail.scale)}.")
        return _stacked(title, blocks, small, lines)

    def code(self, state: State, model: str = "", photos: str = "") -> str:
        """The lines that reproduce the view."""
        changes = state.changes()
        changes.setdefault("channel", state.channel)
        options = "".join(f", {name}={value!r}" for name, value in changes.items())
        size = "" if self.photos.size == 224 else f", size={self.photos.size}"
        mined = (
            f", layers={list(self.top.layers)!r}"
            if set(self.top.layers) != set(self.model.conv_layers)
            else ""
        )
        mined += f", k={self.top.k}" if self.top.k != 9 else ""
        mined += ", inside=True" if self.top.inside else ""
        return (
            f"import zfkit\n"
            f"model, photos = zfkit.load_model({model or self.model.name!r}), "
            f"zfkit.load_images({photos or self.photos.source!r}{size})\n"
            f"zfkit.explore(model, photos, zfkit.mine(model, photos{mined}){options})"
        )


COMPARED = 132  # side of a tile in the comparison of methods, in px


def _stacked(
    title: str,
    grids: list[tuple[str, Image.Image]],
    small: list[tuple[str, Image.Image]],
    lines: Sequence[str],
) -> Image.Image:
    """Two grids above three pictures, with a caption."""
    blocks: list[tuple[str, Image.Image]] = [*grids]
    if small:
        side = small[0][1].width
        third = (2 * GRID + 14 - 2 * 14) // 3
        blocks += [(words, p if side <= third else p.resize((third, third))) for words, p in small]
    return drawing.with_caption(blocks, title, lines, [2, 3] if small else [2])


def _opened(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def _look(content: bytes, name: str) -> tuple[tuple[int, int] | None, int]:
    """Size and number of frames, from a picture's header; (None, 1) where Pillow cannot tell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a sentence says it better
            opened = Image.open(io.BytesIO(content))
        with opened:
            return opened.size, int(getattr(opened, "n_frames", 1))
    except Image.DecompressionBombError:
        raise ImageError(
            f"{name} has so many pixels that it would fill the memory; bring it below {MAX_PIXELS:,} first."
        ) from None
    except Exception:
        return None, 1


def _patches_bytes(p: Patches) -> int:
    return p.projection.numel() * p.projection.element_size() + p.photo.numel()


def bundled_others(model: VisionModel) -> Others:
    """The bundled networks other than this one, loaded when they are first asked for."""
    return {n: (lambda n=n: load_model(n)) for n in ("zfnet64", "alexnet64") if n != model.name}  # type: ignore[misc]


def mined(model: VisionModel, photos: ImageSet, folder: str | Path = "~/.cache/zfkit/top") -> TopK:
    """The table of `mine` for these, from `folder` if it was made before, else made now and kept there.

    Units that look beyond a picture's border are left out where pictures are large enough for that.
    """
    inside = fits_inside(model, list(model.conv_layers), photos.size)
    name = f"{model.fingerprint()}-{photos.fingerprint()}-{'inside' if inside else 'all'}.parquet"
    file = Path(folder).expanduser() / name
    if file.is_file():
        try:
            kept = TopK.load(file)
            kept.check(model, photos)
            return kept
        except ZfkitError:  # of another version, or damaged: it is made again
            pass
    top = mine(model, photos, inside=inside)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        top.save(file)
    except OSError:  # nowhere to keep it; it is mined again next time
        pass
    return top
