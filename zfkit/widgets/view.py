"""What the explorer shows, computed: from a `State` to encoded pictures and words.

Nothing here knows of widgets; `ExplorerView` is what tests and benchmarks talk to. What takes long has an `on_step`
callback, which may raise `Cancelled`; what was done before that is kept, and not done again.
"""

from __future__ import annotations

import copy
import html
import io
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import is_dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from cachetools import LRUCache
from PIL import Image
from torch import Tensor

from ..batching import OnStep
from ..checks import square_side
from ..deconv.project import Deconvnet, Tape, forward
from ..deconv.rules import Options, Rule
from ..deconv.windows import paste
from ..errors import LayerError, ZfkitError, unknown
from ..experiments.occlusion import probabilities
from ..figures.pictures import number, to_picture
from ..images.imageset import ImageSet, expect_rgb
from ..nets.activations import activations
from ..nets.model import VisionModel
from ..topk.patches import Patches, project_top
from ..topk.table import LayerTop, TopK
from . import drawing
from .controls import encode
from .drawing import GAP, GRID, LARGE
from .facts import SHOWN, Facts
from .own import Own, read_own
from .state import METHODS, RULES, State

PIECE = 3  # of a map's pictures are projected at once ahead of time: few enough that nobody waits long
KEPT = 384 * 2**20  # bytes of results that are kept for the quick way back
SMALL = 8  # px; a picture of your own must have that many along its smaller side
COMPARED = 132  # side of a tile in the comparison of methods, in px
COLUMNS = ("patch", *RULES, "shuffled weights")  # of the comparison of methods

Others = Mapping[str, VisionModel | Callable[[], VisionModel]]
Result = TypeVar("Result")


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
    words: str = ""
    scale: float = 0.0
    zoom: float = 0.0
    shape: tuple[int, int] = (1, 1)
    area: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    position: tuple[int, int] = (0, 0)
    sentence: str = ""


class Compared(NamedTuple):
    """The strongest maps of one model in a photograph; or a sentence where they would be."""

    title: str
    picture: bytes = b""
    captions: tuple[str, ...] = ()
    sentence: str = ""


class ExplorerView:
    """Computes all that the explorer shows, and keeps what may be asked for again.

    Args:
        model, photos, top: as for `project_top`.
        others: other models for the third tab, by name: a model, or a function that loads it.
    """

    def __init__(self, model: VisionModel, photos: ImageSet, top: TopK, others: Others | None = None) -> None:
        self.side = square_side(photos.size, "the explorer shows square pictures")
        expect_rgb(photos, "the explorer shows")
        # `explore` has held the table to the network; that need not be done again at each step of a slider.
        self.model, self.photos, self.top = model, photos, replace(top, weights="")
        self.layers = tuple(name for name in top.layers if name in model.layers)
        self.shapes: dict[str, tuple[int, ...]] = {}  # of each layer's output for the pictures at hand
        if self.layers:
            outputs = activations(model, model.blank(photos.size), self.layers)
            self.shapes = {n: tuple(y.shape[1:]) for n, y in outputs}
        self.facts = Facts(model, photos, self.top, self.layers)
        self.shown = self.facts.shown
        self.others = dict(others or {})
        self._kept: LRUCache[Any, Any] = LRUCache(KEPT, getsizeof=_bytes)
        self._lock = threading.Lock()  # the worker's thread computes, the kernel's shows what is ready

    def _keep(self, key: Any, make: Callable[[], Result]) -> Result:
        """What was made under this key before; else it is made now and kept, while there is room."""
        with self._lock:
            if key in self._kept:
                return self._kept[key]
        made = make()
        with self._lock, suppress(ValueError):  # too large to be kept
            self._kept[key] = made
        return made

    # --------------------------------------------------------------------------------------------- states

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
        C, (H, W) = self.count(layer), (*self.shapes[layer][1:], 1, 1)[:2]
        if state.channel >= C:
            raise LayerError(
                f"there is no feature map {state.channel} in {layer!r}: it has {C}, 0 to {C - 1}"
            )
        if state.rank >= self.shown:
            raise ZfkitError(
                f"there is no rank {state.rank}: {self.shown} pictures are shown, 0 to {self.shown - 1}"
            )
        if state.position is not None and not (state.position[0] < H and state.position[1] < W):
            raise LayerError(f"position {state.position} is outside: maps of {layer!r} are {H} x {W}")
        if state.versus != METHODS and state.versus not in self.others:
            raise ZfkitError(unknown("model to compare with", state.versus, [METHODS, *self.others]))
        return replace(state, layer=layer)

    @property
    def empty(self) -> str:
        """A sentence where there is nothing to explore; else ""."""
        if self.layers:
            return ""
        if not self.top.layers:
            return "This table is empty: no layer was mined. Make one with zfkit.mine(model, photos)."
        names = ", ".join(self.top.layers)
        return f"None of the table's layers ({names}) is in {self.model.name}: mine again."

    # ------------------------------------------------------------------------------------------ the grids

    def patches(
        self, layer: str, channel: int, rule: Rule, on_step: OnStep | None = None, at_once: int = SHOWN
    ) -> Patches:
        """Projections and patches of one map's strongest, so many pictures at once."""
        parts: list[Patches] = []
        start = 0
        while start < self.shown:
            table = self.top.ranks(start, min(start + at_once, self.shown), [layer])

            def project(table: TopK = table) -> Patches:
                return project_top(self.model, self.photos, table, layer, [channel], rule=rule)

            # What is kept from there on may be more or fewer pictures than are asked for now.
            parts.append(self._keep(("patches", layer, channel, rule, start), project))
            start += parts[-1].image.shape[1]
            if on_step:
                on_step(start, self.shown)
        names = ("projection", "photo", "box", "image", "row", "col", "value")
        joined: dict[str, Any] = {n: torch.cat([getattr(p, n) for p in parts], 1) for n in names}
        return replace(parts[0], **joined)

    def ready(self, state: State) -> bool:
        """Are the state's grids at hand, so that showing them takes no computing?"""
        with self._lock:
            return _grids_key(state) in self._kept or bool(self.grids_sentence(state))

    def grids_sentence(self, state: State) -> str:
        """What stands where the grids would be, for a map that nothing excites; else ""."""
        t, name = self.top[state.layer], f"{state.layer} map {state.channel}"
        if not bool((t.image[state.channel] >= 0).any()):
            return f"For {name} this table holds no picture. Mine again, with more of them."
        if float(t.max[state.channel]) > 0:
            return ""
        looked = " that see no border" if self.top.inside else ""
        return (
            f"{name} is dead: on none of the {self.top.count:,} pictures is any of its units{looked} above 0 (the "
            f"largest value is {number(t.max[state.channel])}), so there is nothing that excites it and nothing to "
            "project."
        )

    def grids(self, state: State, on_step: OnStep | None = None, at_once: int = SHOWN) -> Grids:
        """The nine projections and nine patches of the state's map, encoded; `on_step` after so many at once."""
        sentence = self.grids_sentence(state)
        if sentence:
            return Grids(sentence=sentence)
        return self._keep(_grids_key(state), lambda: self._draw_grids(state, on_step, at_once))

    def _draw_grids(self, state: State, on_step: OnStep | None, at_once: int) -> Grids:
        p = self.patches(state.layer, state.channel, state.rule, on_step, at_once)
        there = (p.image[0] >= 0).tolist()
        scale = drawing.scales(p.projection[0], state.gain)
        columns = int(np.ceil(np.sqrt(self.shown)))
        tile = (GRID + GAP) // columns - GAP
        projections = drawing.grid(drawing.coloured(p.projection[0], scale=scale), there, columns, tile)
        photos = drawing.grid(p.photo[0], there, columns, tile)
        captions = tuple(
            f"{self.facts.short(int(i))} {number(v)}" if ok else "no picture"
            for i, v, ok in zip(p.image[0], p.value[0], there, strict=True)
        )
        return Grids(encode(projections), encode(photos, "jpeg"), captions, tuple(scale.tolist()))

    # ----------------------------------------------------------------------------------------- one of nine

    def unit(self, state: State) -> tuple[int, tuple[int, int]]:
        """Picture and (row, col) of the unit that the state shows large."""
        t, at = self.top[state.layer], (state.channel, state.rank)
        return int(t.image[at]), state.position or (int(t.row[at]), int(t.col[at]))

    def _forward(self, layer: str, image: int, rule: Rule, on_step: OnStep | None) -> tuple[Deconvnet, Tape]:
        """The forward pass of one whole picture, with what the way back needs of it."""
        deconvnet = Deconvnet(self.model.network, [layer], Options(rule))

        def make() -> Tape:
            batch = self.model.preprocess(self.photos.take([image]))
            return forward(self.model, deconvnet, batch, on_step=on_step)

        return deconvnet, self._keep(("forward", layer, image, rule), make)

    def detail(self, state: State, on_step: OnStep | None = None) -> Detail:
        """The state's unit: where it is, its map over the photograph, its projection on the whole picture."""
        if self.grids_sentence(state):
            return Detail(sentence="Nothing to show: the map is never active.")
        image, (row, col) = self.unit(state)
        if image < 0:
            return Detail(sentence="This map has no picture of that rank.")
        layer, S, device = state.layer, self.side, self.model.device
        deconvnet, tape = self._forward(layer, image, state.rule, on_step)
        values = tape.outputs[layer][0, state.channel].cpu()
        flat = values.dim() == 0  # units of fully connected layers have no places
        values = values.view(1, 1) if flat else values
        place = None if flat else torch.tensor([[row, col]])
        channel = torch.tensor([state.channel], device=device)
        pixels, window = deconvnet.reverse(tape, layer, torch.zeros_like(channel), channel, place)
        if on_step:
            on_step(1, 1)
        projection = paste(pixels, window.origin, (S, S))[0].cpu()
        field, photo = self.facts.fields[layer], to_picture(self.photos.take([image])[0])
        box = field.box(row, col)
        whole, scale, zoom = drawing.whole_projection(projection, box, state.gain)
        H, W = values.shape
        area = (0.0, 0.0, 1.0, 1.0) if flat else drawing.map_area(field, (H, W), S)
        best = divmod(int(values.argmax()), W)
        words = (
            f"{self.facts.about(image)}. Unit at row {row}, column {col} of {H} × {W}: activation "
            f"{number(values[row, col])}; the map's maximum here is {number(values.max())}, at row {best[0]}, "
            f"column {best[1]}."
        )
        photo_with_box, heat = drawing.with_box(photo, box, S), drawing.heat(photo, values, area)
        return Detail(
            encode(photo_with_box, "jpeg"), encode(heat), encode(whole), words, scale, zoom, (H, W), area, (row, col)
        )  # fmt: skip

    # -------------------------------------------------------------------------------------- your own image

    def strongest(self, model: VisionModel, picture: Tensor, layer: str, count: int = SHOWN) -> Patches:
        """The `count` maps of a layer that a picture, uint8 (3, S, S), excites most, projected; k = 1.

        Raises LayerError where none is above 0.
        """
        with torch.no_grad():
            output = next(y for _, y in activations(model, picture[None], [layer]))[0].float().cpu()
        value, place = output.flatten(1).max(1)
        width = output.shape[2] if output.dim() == 3 else 1
        best = value.argsort(descending=True, stable=True)[:count]
        best = best[value[best] > 0]
        if not len(best):
            raise LayerError(
                f"no map of {layer} is above 0 anywhere in this picture, so there is nothing to project."
            )
        alone = ImageSet(lambda _: (to_picture(picture), -1), ["own"], size=picture.shape[-1], source="own")
        row, col = (place // width)[:, None], (place % width)[:, None]
        table = LayerTop(value[:, None], torch.zeros_like(row), row, col, value, value, (value > 0).float())
        top = TopK(
            {layer: table}, 1, model.name, "own", alone.fingerprint(), 1, False, model.fingerprint([layer])
        )
        return project_top(model, alone, top, layer, best)

    def own(self, state: State, content: bytes | str, name: str) -> Own:
        """What the state's layer sees in a picture of your own, and what the network calls it.

        Never raises for the picture's sake: `sentence` says what is wrong.
        """
        try:
            picture, small, note = read_own(content, name, self.side, self.model.input_size)
        except ZfkitError as error:
            return Own(sentence=str(error))
        own = Own(
            encode(drawing.fitted(to_picture(picture), LARGE), "jpeg"),
            note=note,
            probabilities=self._probabilities(small),
        )
        try:
            p = self.strongest(self.model, picture, state.layer)
        except ZfkitError as error:
            return own._replace(sentence=str(error))
        largest = self.top[state.layer].max
        return own._replace(
            strongest=encode(drawing.grid(drawing.coloured(p.projection[:, 0], state.gain))),
            windows=encode(drawing.grid(p.photo[:, 0]), "jpeg"),
            captions=tuple(
                f"map {int(c)}: {number(v)}, {float(v) / max(float(largest[c]), 1e-9):.0%}"
                for c, v in zip(p.channels, p.value[:, 0], strict=True)
            ),
            channels=tuple(p.channels.tolist()),
        )

    def _probabilities(self, small: Tensor) -> str:
        """The five likeliest classes as HTML, or a sentence."""
        if not self.model.classes:
            name = html.escape(self.model.name)
            return f"<p>{name} has no class names, so there are no probabilities to show.</p>"
        output = self.model.logits(self.model.preprocess(small)).float().cpu()
        return drawing.class_bars(
            self.model, probabilities(self.model, output)[0], "{:.0%}", width=220, split=118
        )

    # -------------------------------------------------------------------------------------------- compare

    def shuffled(self) -> VisionModel:
        """The same network with each tensor of weights shuffled in itself: the control that learned nothing."""
        net = copy.deepcopy(self.model.net)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in net.parameters():
                flat = parameter.detach().flatten().cpu()
                mixed = flat[torch.randperm(len(flat), generator=generator)]
                parameter.data = mixed.view_as(parameter).to(parameter.device)
        name = f"{self.model.name} shuffled"
        return replace(self.model, net=net, classes=(), name=name, _traced=[])

    def methods(self, state: State, on_step: OnStep | None = None) -> tuple[bytes, str]:
        """The same units by every method (`COLUMNS`), for the three strongest pictures: encoded, and a sentence
        if there are none."""
        sentence = self.grids_sentence(state)
        if sentence:
            return b"", sentence
        table = self.top.ranks(0, min(3, self.shown), [state.layer])

        def project(name: str) -> Patches:
            model, of = self.model, table
            if name not in RULES:
                model = self._keep("shuffled", self.shuffled)
                of = replace(table, model=model.name, weights="")
            rule: Rule = name if name in RULES else "deconvnet"  # type: ignore[assignment]
            return project_top(model, self.photos, of, state.layer, [state.channel], rule=rule)

        columns = []
        for i, name in enumerate(COLUMNS[1:]):
            key = ("methods", state.layer, state.channel, name)
            columns.append(self._keep(key, lambda name=name: project(name)))  # type: ignore[misc]
            if on_step:
                on_step(i + 1, len(COLUMNS) - 1)
        pictures = [columns[0].photo[0], *(drawing.coloured(p.projection[0], state.gain) for p in columns)]
        tiles = torch.stack(pictures, 1).flatten(0, 1)  # one row per picture, one column per method
        return encode(drawing.grid(tiles, columns=len(COLUMNS), tile=COMPARED)), ""

    def other(self, name: str) -> VisionModel:
        """A model to compare with, loaded when it is first asked for."""
        model = self.others[name]
        if not isinstance(model, VisionModel):
            model = self.others[name] = model()
        return model

    def layer_of(self, model: VisionModel, layer: str) -> str:
        """The layer of another model that stands beside this one: of the same name, else of the same number."""
        if layer in model.layers:
            return layer
        own, convs = self.model.conv_layers, model.conv_layers
        return convs[min(own.index(layer) if layer in own else len(convs), len(convs) - 1)]

    def models(self, state: State, on_step: OnStep | None = None) -> list[Compared]:
        """The strongest maps of two models in the same photograph."""
        image = max(self.unit(state)[0], 0)
        picture = self.photos.take([image])[0]
        compared = []
        for i, name in enumerate((self.model.name, state.versus)):
            model = self.other(name) if i else self.model
            layer = self.layer_of(model, state.layer)
            title, key = f"{name} {layer}", ("models", i, name, layer, image)
            try:
                p = self._keep(key, lambda m=model, n=layer: self.strongest(m, picture, n))  # type: ignore[misc]
            except ZfkitError as error:
                compared.append(Compared(title, sentence=str(error)))
            else:
                grid = drawing.grid(drawing.coloured(p.projection[:, 0], state.gain))
                pairs = zip(p.channels, p.value[:, 0], strict=True)
                captions = tuple(f"{int(c)} · {number(v)}" for c, v in pairs)
                compared.append(Compared(title, encode(grid), captions))
            if on_step:
                on_step(i + 1, 2)
        return compared

    # ---------------------------------------------------------------------------------------------- to keep

    def scale_line(self, state: State) -> str:
        """How to read the colours, in a sentence."""
        divided, gain = "", ""
        if state.gain != 1:
            divided, gain = f" / {state.gain:g}", f" (gain {state.gain:g})"
        if state.gain > 1:
            gain = f" (gain {state.gain:g}: values beyond are cut off)"
        return (
            "Grey is 0. Each projection has its own symmetric scale: full colour at ± the 99.5th percentile of its "
            f"|values|{divided}{gain}.{self.facts.notes(state.layer)}"
        )

    def figure(self, state: State) -> Image.Image:
        """The view as one picture with a caption: model, layer, map, pictures, scale."""
        title = f"{self.model.name} {state.layer}, map {state.channel}" if self.layers else "Nothing to show"
        sentence = self.empty or self.grids_sentence(state)
        if sentence:
            return drawing.with_caption([("", Image.new("RGB", (480, 4), "white"))], title, [sentence])
        grids, detail, field = self.grids(state), self.detail(state), self.facts.fields[state.layer]
        blocks = [
            (f"{state.rule}: the {self.shown} strongest", grids.projections),
            ("what the units see", grids.patches),
        ]
        names = "; ".join(f"{i + 1} {caption}" for i, caption in enumerate(grids.captions))
        sees = (
            f"A unit sees {field.size} px, stride {field.stride} px."
            if field.stride
            else "A unit sees it all."
        )
        lines = [
            f"The strongest of {self.top.count:,} pictures ({self.facts.source}), with activations: {names}.",
            f"{sees} {self.scale_line(state)}",
        ]
        if not detail.sentence:
            words = ("photograph", "the map over it", "projection")
            blocks += zip(words, (detail.photo, detail.heat, detail.whole), strict=True)
            lines.append(f"Below: {detail.words} Its scale: ±{number(detail.scale)}.")
        opened = [(words, Image.open(io.BytesIO(encoded)).convert("RGB")) for words, encoded in blocks]
        third = (2 * GRID - 14) // 3  # three small pictures are as wide as the two grids above
        opened[2:] = [(words, picture.resize((third, third))) for words, picture in opened[2:]]
        return drawing.with_caption(opened, title, lines, [2, 3][: 1 + (not detail.sentence)])

    def code(self, state: State, model: str = "", photos: str = "") -> str:
        """The lines that reproduce the view."""
        options = state.changes()
        options.setdefault("channel", state.channel)
        of_mine = []
        if set(self.top.layers) != set(self.model.conv_layers):
            of_mine.append(f"layers={list(self.top.layers)!r}")
        of_mine += [f"k={self.top.k}"] * (self.top.k != 9) + ["inside=True"] * self.top.inside
        size = "" if self.photos.size == 224 else f", size={self.photos.size}"
        mine, explore = (
            ", ".join(parts)
            for parts in (["model, photos", *of_mine], [f"{n}={v!r}" for n, v in options.items()])
        )
        return (
            f"import zfkit\n"
            f"model, photos = zfkit.load_model({model or self.model.name!r}), "
            f"zfkit.load_images({photos or self.photos.source!r}{size})\n"
            f"zfkit.explore(model, photos, zfkit.mine({mine}), {explore})"
        )


def _grids_key(state: State) -> tuple[Any, ...]:
    return "grids", state.layer, state.channel, state.rule, state.gain


def _bytes(kept: Any) -> int:
    """How much memory a result holds, roughly."""
    if isinstance(kept, Tensor):
        return kept.numel() * kept.element_size()
    if isinstance(kept, bytes):
        return len(kept)
    if isinstance(kept, VisionModel):
        return sum(map(_bytes, kept.net.parameters()))
    if is_dataclass(kept):
        kept = vars(kept)
    parts = kept.values() if isinstance(kept, dict) else kept if isinstance(kept, tuple) else ()
    return 100 + sum(map(_bytes, parts))
