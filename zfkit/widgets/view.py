"""What the explorer shows, computed: from a `State` to encoded pictures, numbers and words.

Nothing here knows of widgets; `ExplorerView` is what tests and benchmarks talk to. What takes long has an `on_step`
callback, which may raise `Cancelled`; what was done before that is kept, and not done again.
"""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from cachetools import LRUCache
from PIL import Image
from torch import Tensor

from ..batching import OnStep
from ..checks import square_side
from ..deconv.project import Deconvnet, Tape, forward, refusals
from ..deconv.receptive_field import window_in
from ..deconv.rules import Options, Rule
from ..deconv.windows import paste
from ..errors import LayerError, ZfkitError, unknown
from ..figures.natural import NOTE, NaturalColours
from ..figures.network import heat
from ..figures.pictures import number, square_columns, to_picture
from ..images.imageset import ImageSet, expect_rgb
from ..images.shrink import fitted, shrink
from ..nets.activations import activations
from ..nets.model import VisionModel
from ..topk.patches import Patches, cut_top, cut_windows, project_many, project_top
from ..topk.table import TopK
from . import drawing
from .controls import encode
from .facts import SHOWN, Facts
from .kept import as_bytes
from .results import Detail, Grids, Sheet, as_tiles, picture_of, read_grids, size_of, written
from .state import METHODS, State

PIECE = 3  # of a map's pictures are projected at once ahead of time: few enough that nobody waits long
KEPT = 128 * 2**20  # bytes of results that are kept in memory for the quick way back
TILE = 160  # px, longest side of a tile that is sent to the page
THUMB = 48  # px, of one on the wall and on the strip
FACE = 64  # px, of a whole picture that is shown small
PORTION = 32  # maps whose thumbnails are made at once
LEARNT = 24  # maps from whose projections a layer's natural colours are learnt
CONTROL = 3  # pictures that are projected with shuffled weights, too

Others = Mapping[str, VisionModel | Callable[[], VisionModel]]
Result = TypeVar("Result")


class ExplorerView:
    """Computes all that the explorer shows, and keeps what may be asked for again.

    Args:
        model, photos, top: as for `project_top`.
        others: other models to compare with, by name: a model, or a function that loads it.

    Attributes:
        refusals: why a layer cannot be projected, for layers that can't: they have patches alone.
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
        self.refusals = refusals(model, self.layers, photos.size, Options())
        self.facts = Facts(model, photos, self.top, self.layers)
        self.shown = self.facts.shown
        self.others = dict(others or {})
        self._kept: LRUCache[Any, Any] = LRUCache(KEPT, getsizeof=size_of)
        self._loading = threading.Lock()  # of other models
        self._lock = threading.Lock()  # the worker's thread computes, the kernel's shows what is ready

    def keep(self, key: Any, make: Callable[[], Result]) -> Result:
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
        if (c := state.channel) >= C:
            raise LayerError(f"there is no feature map {c} in {layer!r}: it has {C}, 0 to {C - 1}")
        if (rank := state.rank) >= (n := self.shown):
            raise ZfkitError(f"there is no rank {rank}: {n} pictures are shown, 0 to {n - 1}")
        if state.position is not None and not (state.position[0] < H and state.position[1] < W):
            raise LayerError(f"position {state.position} is outside: maps of {layer!r} are {H} x {W}")
        if state.versus != METHODS and state.versus not in self.others:
            raise ZfkitError(unknown("model to compare with", state.versus, [METHODS, *self.others]))
        return replace(state, layer=layer)

    def worth_a_look(self) -> dict[str, Any]:
        """Where to open when nothing is asked for: in a late layer, the map with the strongest of last pictures."""
        layer = self.layers[3 * (len(self.layers) - 1) // 4]
        return {"layer": layer, "channel": int(self.top[layer].value[:, self.shown - 1].argmax())}

    @property
    def empty(self) -> str:
        """A sentence where there is nothing to explore; else ""."""
        if self.layers:
            return ""
        if not self.top.layers:
            return "This table is empty: no layer was mined. Make one with zfkit.mine(model, photos)."
        names = ", ".join(self.top.layers)
        return f"None of the table's layers ({names}) is in {self.model.name}: mine again."

    def dead(self, layer: str, channel: int) -> str:
        """What stands where the grids would be, for a map that nothing excites; else ""."""
        t, name = self.top[layer], f"{layer} map {channel}"
        if not bool((t.image[channel] >= 0).any()):
            return f"For {name} this table holds no picture. Mine again, with more of them."
        if float(t.max[channel]) > 0:
            return ""
        looked = " that see no border" if self.top.inside else ""
        return (
            f"{name} is dead: on none of the {self.top.count:,} pictures is any of its units{looked} above 0 (the "
            f"largest value is {number(t.max[channel])}), so there is nothing that excites it and nothing to project."
        )

    # ------------------------------------------------------------------------------------------ the grids

    def patches(
        self, layer: str, channel: int, rule: Rule, on_step: OnStep | None = None, at_once: int = SHOWN
    ) -> Patches:
        """Projections and patches of one map's strongest, so many pictures at once."""
        if layer in self.refusals:
            maps, k = [channel], self.shown
            return cut_top(self.model, self.photos, self.top, layer, maps, k=k, tile=TILE, progress=False)
        parts: list[Patches] = []
        start, tile = 0, None if self.facts.frame(layer, rule) else TILE  # what is cut comes as it is
        while start < self.shown:
            table = self.top.ranks(start, min(start + at_once, self.shown), [layer])

            def project(table: TopK = table) -> Patches:
                return project_top(
                    self.model, self.photos, table, layer, [channel], rule=rule, tile=tile, progress=False
                )

            # What is kept from there on may be more or fewer pictures than are asked for now.
            parts.append(self.keep(("patches", layer, channel, rule, start), project))
            start += parts[-1].image.shape[1]
            if on_step:
                on_step(start, self.shown)
        names = ("projection", "photo", "box", "image", "row", "col", "value")
        joined: dict[str, Any] = {n: torch.cat([getattr(p, n) for p in parts], 1) for n in names}
        return replace(parts[0], **joined)

    def natural(self, layer: str, rule: Rule, on_step: OnStep | None = None) -> NaturalColours:
        """The layer's natural colours, learnt from some of its maps."""

        def learn() -> NaturalColours:
            some, frame = {layer: self.facts.some_alive(layer, LEARNT)}, self.facts.frame(layer, rule)
            p = project_many(
                self.model, self.photos, self.top, some, k=min(3, self.shown), options=Options(rule),
                tile=None if frame else TILE, on_step=on_step,
            )  # fmt: skip
            return NaturalColours.of(as_tiles(p[layer], frame, TILE))

        return self.keep(("natural", layer, rule), learn)

    def coloured(self, projections: Tensor, state: State, on_step: OnStep | None = None) -> Tensor:
        """Projections (N, C, H, W) as they are shown: uint8 (N, 3, H, W), each on its own symmetric scale."""
        if state.colours == "natural":
            projections = self.natural(state.layer, state.rule, on_step).apply(projections)
        return drawing.coloured(projections, state.gain)

    def at_hand(self, state: State) -> Grids | None:
        """The state's grids, if they were made before: in memory, or kept on disk."""
        with self._lock:
            known = _grids_key(state) in self._kept or self.dead(state.layer, state.channel)
        if known:
            return self.grids(state)
        kept = self._kept_grids(state) if self.facts.knows_frame(state.layer, state.rule) else None
        return kept and self.keep(_grids_key(state), lambda: kept)

    def grids(self, state: State, on_step: OnStep | None = None, at_once: int = SHOWN) -> Grids:
        """The nine projections and nine patches of the state's map; `on_step` after so many at once."""
        if sentence := self.dead(state.layer, state.channel):
            return Grids(sentence=sentence)
        return self.keep(_grids_key(state), lambda: self._draw_grids(state, on_step, at_once))

    def _file_of_grids(self, state: State) -> str:
        frame = self.facts.frame(state.layer, state.rule)
        name = f"{state.channel}-{state.rule}-{state.colours}-{state.gain:g}"
        return f"{name}-{max(frame.size)}" if frame else name

    def _kept_grids(self, state: State) -> Grids | None:
        if kept := self.facts.kept.load(state.layer, self._file_of_grids(state)):
            with suppress(KeyError, ValueError, TypeError):
                return read_grids(*kept)
        return None

    def _draw_grids(self, state: State, on_step: OnStep | None, at_once: int) -> Grids:
        if kept := self._kept_grids(state):
            return kept
        frame, cut = self.facts.frame(state.layer, state.rule), ""
        if frame:
            whole = max(frame.size) * frame.factor
            cut = f"cut to {max(frame.size)} of {whole:.0f} px: {frame.factor:.1f} times larger"
        p = as_tiles(self.patches(state.layer, state.channel, state.rule, on_step, at_once), frame, TILE)
        columns, projections = square_columns(self.shown), None
        if len(p.projection[0]):
            projections = Sheet.of(self.coloured(p.projection[0], state, on_step), columns=columns)
        grids = Grids(
            projections, Sheet.of(p.photo[0], "jpeg", columns),
            tuple(self.facts.short(int(i)) if i >= 0 else "" for i in p.image[0]), tuple(p.value[0].tolist()),
            tuple((p.image[0] >= 0).tolist()), cut=cut,
        )  # fmt: skip
        self.facts.kept.save(state.layer, self._file_of_grids(state), *written(grids))
        return grids

    def peek(self, layer: str, channel: int) -> Sheet | None:
        """The nine patches of a map, small, without projections; None for a map that nothing excites."""
        if self.dead(layer, channel):
            return None
        k = self.shown
        p = cut_top(self.model, self.photos, self.top, layer, [channel], k=k, tile=THUMB, progress=False)
        return Sheet.of(p.photo[0], "jpeg", square_columns(self.shown))

    # -------------------------------------------------------------------------------------- a whole layer

    def thumbnails(self, layer: str, on_step: OnStep | None = None) -> tuple[Sheet, Sheet]:
        """The strongest projection and patch of every map of a layer, small; kept on disk."""
        return self.keep(("thumbnails", layer), lambda: self._thumbnails(layer, on_step))

    def kept_thumbnails(self, layer: str) -> tuple[Sheet, Sheet] | None:
        """Those of a layer that were kept on disk."""
        if kept := self.facts.kept.load(layer, "thumbnails"):
            with suppress(KeyError, ValueError, TypeError):
                size = [int(kept[1][n]) for n in Sheet._fields[1:]]
                first, second = (Sheet(as_bytes(kept[0][n]), *size) for n in ("projections", "patches"))
                return first, second
        return None

    def _thumbnails(self, layer: str, on_step: OnStep | None) -> tuple[Sheet, Sheet]:
        if kept := self.kept_thumbnails(layer):
            return kept
        C, parts = self.count(layer), []
        for start in range(0, C, PORTION):
            some = list(range(start, min(start + PORTION, C)))
            parts.append(self.keep(("thumbnails", layer, start), partial(self._some_thumbnails, layer, some)))
            if on_step:
                on_step(some[-1] + 1, C)
        first, second = (
            Sheet.of(torch.cat(tiles), "webp", square_columns(C)) for tiles in zip(*parts, strict=True)
        )
        words = {n: str(getattr(first, n)) for n in Sheet._fields[1:]}
        content = {"projections": first.content, "patches": second.content}
        self.facts.kept.save(layer, "thumbnails", content, words)
        return first, second

    def three(self, layer: str) -> Sheet | None:
        """Thumbnails of three maps that many pictures excite, which stand for the layer; None where none is alive."""

        def make() -> Sheet | None:
            t = self.top[layer]
            order = (t.active * (t.max > 0)).argsort(descending=True, stable=True)
            some = order[: 3 * max(len(order) // 6, 1) : max(len(order) // 6, 1)]
            some = some[t.max[some] > 0]
            if not len(some):
                return None
            if kept := self.kept_thumbnails(layer):
                return kept[0].some(some.tolist())
            tiles, _ = self._some_thumbnails(layer, some.tolist())
            return Sheet.of(tiles, "webp")

        return self.keep(("three", layer), make)

    def _some_thumbnails(self, layer: str, channels: list[int]) -> tuple[Tensor, Tensor]:
        if layer in self.refusals:
            p = cut_top(self.model, self.photos, self.top, layer, channels, k=1, tile=THUMB, progress=False)
            return p.photo[:, 0], p.photo[:, 0]
        frame = self.facts.frame(layer, "deconvnet")
        tile = None if frame else THUMB
        p = project_top(self.model, self.photos, self.top, layer, channels, k=1, tile=tile, progress=False)
        p = as_tiles(p, frame, THUMB)
        return drawing.coloured(p.projection[:, 0]), p.photo[:, 0]

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

        return deconvnet, self.keep(("forward", layer, image, rule), make)

    def detail(self, state: State, on_step: OnStep | None = None) -> Detail:
        """The state's unit: where it is, its map over the photograph, its patch and its projection."""
        layer, S = state.layer, self.side
        if self.dead(layer, state.channel):
            return Detail(sentence="Nothing to show: the map is never active.")
        image, (row, col) = self.unit(state)
        if image < 0:
            return Detail(sentence="This map has no picture of that rank.")
        pixels = self.photos.take([image])
        field, window, projection = self.facts.fields[layer], None, b""
        if layer in self.refusals:
            values = next(y for _, y in activations(self.model, pixels, [layer]))[0, state.channel].cpu()
        else:
            deconvnet, tape = self._forward(layer, image, state.rule, on_step)
            values = tape.outputs[layer][0, state.channel].cpu()
            place = None if values.dim() == 0 else torch.tensor([[row, col]])
            channel = torch.tensor([state.channel], device=self.model.device)
            back, window = deconvnet.reverse(tape, layer, torch.zeros_like(channel), channel, place)
        if on_step:
            on_step(1, 1)
        flat = values.dim() == 0  # units of fully connected layers have no places
        values = values.view(1, 1) if flat else values
        rows, columns = window_in(self.model, S, layer)  # all of the picture where the unit sees more
        corner = torch.tensor([[row * rows.stride + rows.low, col * columns.stride + columns.low]])
        whole = rows.size, columns.size
        size = fitted(*whole, TILE)
        patch = shrink(cut_windows(self.model.shown(pixels), torch.tensor([0]), corner, whole), size)
        if window is not None:
            seen = self.model.shown(paste(back, window.origin - corner.to(back.device), whole)).cpu()
            projection = encode(self.coloured(shrink(seen, size), state, on_step)[0])
        H, W = values.shape
        best, value = divmod(int(values.argmax()), W), float(values[row, col])
        words = f"Row {row}, column {col} of {H} × {W}: {number(value)}. "
        words += (
            "Silent: at or below 0, so the network passes nothing on from here."
            if value <= 0
            else "The map's maximum in this picture."
            if best == (row, col)
            else f"The map's maximum here is {number(values.max())}, at row {best[0]}, column {best[1]}."
        )
        photo = encode(to_picture(self.model.shown(pixels)[0]), "jpeg")
        return Detail(
            photo, encode(heat(values)), encode(patch[0], "jpeg"), projection,
            tuple(v / S for v in field.box(row, col)),
            (0.0, 0.0, 1.0, 1.0) if flat else drawing.map_area(field, (H, W), S),
            (H, W), (row, col), value, self.facts.about(image), words,
        )  # fmt: skip

    def other(self, name: str) -> VisionModel:
        """A model to compare with, loaded when it is first asked for."""
        with self._loading:
            model = self.others[name]
            if not isinstance(model, VisionModel):
                model = self.others[name] = model()
            return model

    def small(self, places: Sequence[int]) -> Sheet:
        """Whole pictures of the album, small and side by side."""
        pictures = self.model.shown(self.photos.take(places))
        tiles = shrink(pictures, fitted(pictures.shape[-2], pictures.shape[-1], FACE))
        return Sheet.of(tiles, "jpeg")

    # -------------------------------------------------------------------------------------------- control

    def shuffled(self) -> VisionModel:
        """The same network with each tensor of weights shuffled in itself: the control that learned nothing."""

        def shuffle() -> VisionModel:
            net = copy.deepcopy(self.model.net)
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in net.parameters():
                    flat = parameter.detach().flatten().cpu()
                    mixed = flat[torch.randperm(len(flat), generator=generator)]
                    parameter.data = mixed.view_as(parameter).to(parameter.device)
            return replace(self.model, net=net, classes=(), name=f"{self.model.name} shuffled", _traced=[])

        return self.keep("shuffled", shuffle)

    def by_shuffled(self, layer: str, channel: int, rule: Rule) -> Patches:
        """The same units, projected with shuffled weights."""
        model, tile = self.shuffled(), None if self.facts.frame(layer, rule) else TILE  # as in `patches`
        table = replace(self.top.ranks(0, min(CONTROL, self.shown), [layer]), model=model.name, weights="")

        def project() -> Patches:
            return project_top(
                model, self.photos, table, layer, [channel], rule=rule, tile=tile, progress=False
            )

        return self.keep(("shuffled", layer, channel, rule), project)

    def control(self, state: State, on_step: OnStep | None = None) -> tuple[Sheet | None, float]:
        """What shuffled weights give at the same units, and how alike it is: the mean cosine of both projections."""
        if self.dead(state.layer, state.channel) or state.layer in self.refusals:
            return None, 0.0
        own = self.patches(state.layer, state.channel, state.rule, on_step).projection[0, :CONTROL]
        other = self.by_shuffled(state.layer, state.channel, state.rule).projection[0]
        alike = float(F.cosine_similarity(own[: len(other)].flatten(1), other.flatten(1)).mean())
        small = drawing.coloured(shrink(other, fitted(other.shape[-2], other.shape[-1], THUMB)))
        return Sheet.of(small), alike

    # ---------------------------------------------------------------------------------------------- to keep

    def scale_line(self, state: State) -> str:
        """How to read the colours, in a sentence."""
        divided = f" / {state.gain:g}" if state.gain != 1 else ""
        cut = " (values beyond are cut off)" if state.gain > 1 else ""
        return (
            "Grey is 0. Each projection has its own symmetric scale: full colour at ± the 99.5th percentile of its "
            f"|values|{divided}{cut}.{self.facts.notes(state.layer)}"
            + (f" {NOTE}" if state.colours == "natural" else "")
        )

    def figure(self, state: State) -> Image.Image:
        """The view of one map as one picture with a caption: model, layer, map, pictures, scale."""
        title = f"{self.model.name} {state.layer}, map {state.channel}" if self.layers else "Nothing to show"
        if sentence := self.empty or self.dead(state.layer, state.channel):
            return drawing.with_caption([("", Image.new("RGB", (480, 4), "white"))], title, [sentence])
        grids, detail = self.grids(state), self.detail(state)
        columns = square_columns(self.shown)
        tile, side = (396 - 3 * (columns - 1)) // columns, 396
        assert grids.patches is not None
        blocks = [("what excites it", picture_of(grids.patches, tile))]
        if grids.projections:
            blocks.append((f"what it picks out · {state.rule}", picture_of(grids.projections, tile)))
        named = enumerate(zip(grids.names, grids.values, strict=True), 1)
        names = "; ".join(f"{i} {name} {number(value)}" for i, (name, value) in named if name)
        lines = [
            f"The strongest of {self.top.count:,} pictures ({self.facts.source}), with activations: {names}.",
            f"Units see {self.facts.sees(state.layer)}. "
            + (self.scale_line(state) if grids.projections else self.refusals[state.layer] + "."),
            *([f"Tiles are {grids.cut}."] if grids.cut else []),
        ]
        rows = [len(blocks)]
        if not detail.sentence:
            third = (2 * side - 14) // 3
            encoded = detail.photo, detail.heat, detail.projection or detail.patch
            photo, colours, last = (Image.open(io.BytesIO(picture)) for picture in encoded)
            box = self.facts.fields[state.layer].box(*detail.position)
            blocks += [
                ("photograph", drawing.with_box(photo, box, self.side, third)),
                ("where it fires", drawing.over(photo, colours, detail.area, third)),
                ("the unit in the frame", drawing.fitted(last, third)),
            ]
            lines.append(f"Below: {detail.name}. {detail.words}")
            rows.append(3)
        return drawing.with_caption(blocks, title, lines, rows)

    def code(self, state: State) -> str:
        """The lines that reproduce the view."""
        options = state.changes()
        options.setdefault("channel", state.channel)
        others = set(self.top.layers) != set(self.model.conv_layers)
        of_mine = [f"layers={list(self.top.layers)!r}"] * others + [f"k={self.top.k}"] * (self.top.k != 9)
        of_mine += ["inside=True"] * self.top.inside
        size = "" if self.photos.size == 224 else f", size={self.photos.size}"
        mine = ", ".join(["model, photos", *of_mine])
        explore = ", ".join(f"{n}={v!r}" for n, v in options.items())
        return (
            f"import zfkit\n"
            f"model, photos = zfkit.load_model({self.model.name!r}), "
            f"zfkit.load_images({self.photos.source!r}{size})\n"
            f"zfkit.explore(model, photos, zfkit.mine({mine}), {explore})"
        )


def _grids_key(state: State) -> tuple[Any, ...]:
    return "grids", state.layer, state.channel, state.rule, state.colours, state.gain
