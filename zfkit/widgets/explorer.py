"""The explorer: every layer and feature map of a network at the end of a slider.

`explore` opens it. What it shows is computed by `view.ExplorerView` from one small value, `state.State`; the
class here only puts controls around it and sends requests to the worker of its `Panel`.
"""

from __future__ import annotations

import html
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as W
import numpy as np
from PIL import Image
from torch import nn

from ..errors import ZfkitError, unknown
from ..figures.pictures import number
from ..files import write_whole
from ..images.imageset import ImageSet
from ..nets.model import VisionModel
from ..topk.table import TopK, expect_both
from . import drawing
from .drawing import GAP, GRID, LARGE
from .panel import (
    Panel,
    Picker,
    Picture,
    Progress,
    Steps,
    Worker,
    button,
    choice,
    encode,
    guarded,
    row,
    slider,
    text,
)
from .state import GAINS, METHODS, ORDERS, TABS, State
from .view import COMPARED, ExplorerView, Grids, bundled_others, mined

TURNING = (
    1.0  # s between two steps: somebody turns pages, and the next page comes before this one's large pictures
)
REST = 1.5  # s since the last step, before what may be asked for some time is computed, too
PAINT = 0.12  # s left to server and browser after new grids, before the large pictures are computed
AHEAD = 4  # neighbouring maps computed ahead of all else, on either side
_CSS = (Path(__file__).parent / "explorer.css").read_text(encoding="utf-8")

SENTENCES = {
    "patch": "What the unit sees: the evidence. The rest is about this patch.",
    "deconvnet": "Zeiler & Fergus: rectifies what comes back. Reads like the patch's own edges.",
    "guided": "Springenberg et al.: keeps only what is positive both ways. The crispest; look for what it leaves out.",
    "gradient": "Simonyan et al.: what would change the activation most. Noisy, and faithful to the network.",
    "shuffled weights": "The control: deconvnet after shuffling every layer's weights. What it still shows comes from "
    "the picture, not from learning.",
}


class Explorer(Panel):
    """The explorer as a widget; `explore` makes it.

    Attributes:
        state: what is shown, a `State`; change it with `set`.
        view: what computes it, an `ExplorerView`.
        errors: what went wrong so far, as `Failure`.
    """

    def __init__(
        self,
        view: ExplorerView,
        state: State | None = None,
        *,
        save_to: str | Path | None = ".",
        ahead: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__("", _CSS)
        self.ahead = ahead
        self.view, self.save_to = view, None if save_to is None else Path(save_to)
        self.state = view.checked(state or State())
        self._random = random.Random(seed)
        self._lock = threading.RLock()  # events come in one thread, the worker's results in another
        self._moving = 0  # > 0 while the program moves the controls, by whoever holds the lock
        self._preview: int | None = None  # rank below the pointer
        self._upload: tuple[str, bytes] | None = None  # name and bytes of a picture that was uploaded
        self._channels = np.arange(0)  # on the slider, in order
        self._moved = 0.0  # when the state changed last
        self._turning = False  # did the last two steps follow each other closely?
        self._facing = 1  # direction of the last step, so that neighbours on that side come first
        self.add_class("zfkit-explorer")
        self._build()
        if view.empty:
            for picture in (self.projections, self.patches, self.photo, self.heat, self.whole):
                picture.say(view.empty)
            self.controls.layout.display = "none"
            return
        self._show_everything()
        self.watch(self.projections.place, self.patches.place, self.heat.place)

    def __repr__(self) -> str:
        s = self.state
        return f"Explorer({self.view.model.name!r}: {s.layer or 'nothing mined'}, map {s.channel})"

    # ----------------------------------------------------------------------------------------- from outside

    def set(self, **changes: Any) -> Explorer:
        """Change the state: ``explorer.set(layer="conv5", channel=3)``. Returns the explorer.

        A new layer, map or rank forgets the position, unless one is given. Raises ZfkitError, and changes
        nothing, for what does not exist.
        """
        known = [f.name for f in fields(State)]
        for name in changes:
            if name not in known:
                raise ZfkitError(unknown("field of the explorer's state", name, known))
        if not self.view.empty:
            self._go(self._changed(**changes))
        return self

    def wait(self, timeout: float = 60.0) -> bool:
        """Until all that the state asks for is shown; False if that took longer than `timeout` seconds."""
        return self.worker.wait(timeout)

    def snapshot(self) -> Image.Image:
        """What is shown as one static picture with a caption, for pages without a kernel."""
        return self.view.figure(self.state)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget, and a static picture for where no widget can be: GitHub, nbconvert, papermill."""
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if isinstance(data, dict) and "application/vnd.jupyter.widget-view+json" in data:
            import base64

            data["image/jpeg"] = base64.b64encode(encode(self.snapshot(), "jpeg")).decode()
            data["text/plain"] = repr(self)
        return bundle

    # ------------------------------------------------------------------------------------------- the layout

    def _build(self) -> None:
        v, s = self.view, self.state
        source = f'<span title="{html.escape(v.photos.source)}">{html.escape(v.source)}</span>'
        self.title.value = f"<h2>{html.escape(v.model.name)} · {len(v.photos):,} pictures ({source})</h2>"
        self.tabs = W.ToggleButtons(options=[(words, name) for name, words in TABS.items()], value=s.tab)
        self.tabs.add_class("zfkit-tabs")
        self.tabs.observe(lambda change: self._user(tab=change.new), "value")

        self._build_controls()
        self._build_maps()
        self._build_own()
        self._build_compare()
        self.stage = W.Box([self.maps_page, self.own_page, self.compare_page])
        self.stage.add_class("zfkit-stage")
        body = W.Box([self.controls, self.stage])
        body.add_class("zfkit-body")
        head = row(self.title, self.tabs, name="head")
        self.children = [self.style, head, self.notice, body, self.busy]

    def _build_controls(self) -> None:
        v, s = self.view, self.state
        self.strip = text("", "strip")
        names = [(f"{name}  {self._shape(name)}", name) for name in v.layers]
        self.layers = W.ToggleButtons(options=names, value=s.layer if v.layers else None)
        self.layers.add_class("zfkit-layers")
        self.layers.observe(lambda change: self._user(layer=change.new, channel=0), "value")
        network = W.Box([self.strip, self.layers])
        network.add_class("zfkit-network")
        self.rest = text(self._rest(), "rest")

        self.map = slider("map", 0, 1, help="feature map: place in the order", readout=False)
        self.map.add_class("zfkit-map")
        self.map.observe(self._from_slider, "value")
        self.number = W.BoundedIntText(value=0, min=0, max=0, tooltip="feature map: number")
        self.number.add_class("zfkit-number-box")
        self.number.observe(self._from_number, "value")
        self.of = text("", "of")
        moves = row(
            button("‹", "previous map", lambda _: self._step(-1), "previous"),
            self.number,
            button("›", "next map", lambda _: self._step(1), "next"),
            button("random", "a map drawn at random", lambda _: self._draw(), "random"),
            name="moves",
        )
        self.order = choice("order", ORDERS, value=s.order, help="order of the maps on the slider")
        self.order.add_class("zfkit-order")
        self.order.observe(lambda change: self._user(order=change.new), "value")
        self.find = W.Text(
            value=s.search, placeholder="class or photograph", description="find", continuous_update=False,
            tooltip="find maps by class or photograph",
        )  # fmt: skip
        self.find.add_class("zfkit-find")
        self.find.observe(lambda change: self._user(search=change.new), "value")
        self.rule = choice(
            "rule", ("deconvnet", "guided", "gradient"), value=s.rule, help="rule of the way back"
        )
        self.rule.add_class("zfkit-rule")
        self.rule.observe(lambda change: self._user(rule=change.new), "value")
        self.gain = slider("gain", GAINS[0], GAINS[1], value=s.gain, step=0.25, help="gain: contrast of projections",
                           readout_format=".2f")  # fmt: skip
        self.gain.add_class("zfkit-gain")
        self.gain.observe(lambda change: self._user(gain=round(float(change.new), 2)), "value")
        self.saved = text("", "saved")
        self.code_area = W.Textarea(
            layout=W.Layout(width="100%", height="150px"), tooltip="code of this view"
        )
        self.code_copy = text("", "copy")
        self.code = W.VBox([self.code_area, self.code_copy], layout=W.Layout(display="none"))
        self.code.add_class("zfkit-code")
        keep = row(
            button("save picture", "save this view as a PNG with a caption", self._save, "save"),
            button("copy code", "the lines of code that open this view", self._show_code, "code-button"),
        )
        self.controls = W.VBox(
            [network, self.rest, self.map, self.of, moves, self.order, self.find, self.rule, self.gain, keep,
             self.saved, self.code]
        )  # fmt: skip
        self.controls.add_class("zfkit-controls")

    def _build_maps(self) -> None:
        self.heading = text("", "heading")
        columns = int(np.ceil(np.sqrt(self.view.shown)))
        lines = -(-self.view.shown // columns)
        self.projections = Picker(
            "projections of the strongest activations", GRID, GRID, sliders=False, hover=True
        )
        self.patches = Picker(
            "patches of the pictures that excite the map most", GRID, GRID, sliders=False, hover=True
        )
        for picker, name in ((self.projections, "projections"), (self.patches, "patches")):
            picker.add_class(f"zfkit-{name}")
            picker.grid(lines, columns, (0, 0, 1 + GAP / GRID, 1 + GAP / GRID))
            picker.on_pick(self._pick_rank)
            picker.place.observe(self._hover, "hover")
        self.what = text("", "what")
        self.ranks = W.ToggleButtons(
            options=[(str(i + 1), i) for i in range(self.view.shown)], value=self.state.rank
        )
        self.ranks.add_class("zfkit-ranks")
        self.ranks.observe(lambda change: self._user(rank=change.new), "value")
        grids = row(
            _figure(self.what, self.projections),
            _figure(text("<b>patches</b> · what those units see", "what"), self.patches),
            name="grids",
        )
        self.photo = Picture("photograph with the unit's receptive field", LARGE, LARGE)
        self.photo.add_class("zfkit-photo")
        self.heat = Picker("place on the feature map", LARGE, LARGE)
        self.heat.add_class("zfkit-heat")
        self.heat.on_pick(self._pick_place)
        self.whole = Picture("projection on the whole picture", LARGE, LARGE)
        self.whole.add_class("zfkit-whole")
        self.told = text("", "told")
        self.lens = text("", "lens")
        self.maximum = button(
            "back to the maximum", "project the unit that was found again", self._back, "maximum"
        )
        large = row(
            _figure(text("<b>photograph</b> · what it sees", "what"), self.photo),
            _figure(text("<b>map</b> · click to move", "what"), self.heat),
            _figure(self.lens, self.whole, self.maximum),
            name="large",
        )
        self.scale = text("", "scale")
        middle = W.VBox([self.heading, grids, self.ranks, self.scale, large, self.told])
        middle.add_class("zfkit-middle")
        self.facts = text("", "facts")
        self.near_words = text("<h4>Maps that respond most alike</h4>")
        self.near = [button("", "", partial(self._to_near, i), "near") for i in range(3)]
        self.near_box = W.VBox([self.near_words, row(*self.near, name="nearest")])
        right = W.VBox([self.facts, self.near_box])
        right.add_class("zfkit-right")
        self.maps_page = W.Box([middle, right])
        self.maps_page.add_class("zfkit-page")

    def _build_own(self) -> None:
        self.upload = W.FileUpload(accept="image/*", multiple=False, description="choose a picture",
                                   tooltip="upload a picture of your own")  # fmt: skip
        self.upload.add_class("zfkit-upload")
        self.upload.add_class("zfkit-button")
        self.upload.observe(self._uploaded, "value")
        self.path = W.Text(value=self.state.image, placeholder="or its path, then Enter", continuous_update=False,
                           tooltip="path of a picture of your own")  # fmt: skip
        self.path.add_class("zfkit-path")
        self.path.observe(self._from_path, "value")
        self.own_picture = Picture("your own picture", LARGE, LARGE)
        self.own_picture.add_class("zfkit-own")
        self.own_note = text("", "note")
        self.own_probabilities = text("", "probabilities")
        self.own_strongest = Picker("maps that your picture excites most", GRID, GRID, sliders=False)
        self.own_strongest.add_class("zfkit-strongest")
        self.own_windows = Picture("what those units see of your picture", GRID, GRID)
        self.own_windows.add_class("zfkit-windows")
        self.own_strongest.grid(3, 3, (0, 0, 1 + GAP / GRID, 1 + GAP / GRID))
        self.own_strongest.on_pick(self._pick_own)
        self.own_what = text("", "what")
        self.own_captions = text("", "captions")
        self._own_channels: tuple[int, ...] = ()
        called = W.VBox([text("<h4>What the network calls it</h4>"), self.own_probabilities])
        left = W.Box([W.VBox([self.own_picture, self.own_note]), called])
        left.add_class("zfkit-own-left")
        grids = row(
            _figure(self.own_what, self.own_strongest),
            _figure(text("<b>your picture</b> · what those units see", "what"), self.own_windows),
            name="grids",
        )
        seen = W.VBox([grids, self.own_captions])
        seen.add_class("zfkit-own-seen")
        body = row(left, seen, name="own-body")
        self.own_page = W.VBox([row(self.upload, self.path, name="own-choose"), body])
        self.own_page.add_class("zfkit-own-page")

    def _build_compare(self) -> None:
        names = [("methods", METHODS), *((f"with {name}", name) for name in self.view.others)]
        self.versus = choice("compare", names, value=self.state.versus, help="what to compare")
        self.versus.add_class("zfkit-versus")
        self.versus.observe(lambda change: self._user(versus=change.new), "value")
        self.compare_words = text("", "heading")
        columns = len(ExplorerView.COLUMNS)
        lines = min(3, self.view.shown)
        self.compared = Picture("the same units by every method", columns * (COMPARED + GAP) - GAP,
                                lines * (COMPARED + GAP) - GAP)  # fmt: skip
        self.compared.add_class("zfkit-compared")
        told = "".join(
            f"<div><b>{name}</b><p>{html.escape(SENTENCES[name])}</p></div>" for name in ExplorerView.COLUMNS
        )
        _shrinks(self.compared, columns * (COMPARED + GAP) - GAP)
        style = (
            f"grid-template-columns: repeat({columns}, minmax(0, 1fr)); gap: {GAP}px; "
            f"max-width: {self.compared.layout.max_width}"
        )
        self.compare_methods = W.VBox(
            [text(f'<div class="zfkit-columns" style="{style}">{told}</div>'), self.compared]
        )
        self.compare_methods.add_class("zfkit-compare-methods")
        self.pair = [Picture(f"strongest maps of model {i + 1}", GRID, GRID) for i in (0, 1)]
        for i, picture in enumerate(self.pair):
            picture.add_class(f"zfkit-model-{i + 1}")
            _shrinks(picture, GRID)
        self.pair_words = [text("", "what") for _ in self.pair]
        self.pair_captions = [text("", "captions") for _ in self.pair]
        self.compare_photo = Picture("photograph that both models see", LARGE, LARGE)
        both = zip(self.pair_words, self.pair, self.pair_captions, strict=True)
        models = W.Box([_figure(*each) for each in both])
        models.add_class("zfkit-models")
        read = (
            "<p>Each grid holds the nine maps of a layer that this photograph excites most. Below it, tile by tile: "
            "map\u00a0·\u00a0activation.</p><p>Maps of two networks share nothing but the photograph; compare what "
            "they pick, not their numbers.</p>"
        )
        self.compare_models = W.VBox([row(self.compare_photo, text(read, "read"), name="shared"), models])
        self.compare_models.add_class("zfkit-compare-models")
        self.compare_scale = text("", "scale")
        self.compare_page = W.VBox(
            [self.versus, self.compare_words, self.compare_methods, self.compare_models, self.compare_scale]
        )
        self.compare_page.add_class("zfkit-compare-page")

    def _shape(self, layer: str) -> str:
        return "×".join(str(n) for n in self.view.shapes[layer])

    def _rest(self) -> str:
        network = self.view.model.network
        rest = [(name, network.steps[name].module) for name in network.layers if name not in self.view.layers]
        wide = [f"{name} {module.out_features}" for name, module in rest if isinstance(module, nn.Linear)]
        return f'<p class="zfkit-soft">→ {" → ".join(html.escape(w) for w in wide)}</p>' if wide else ""

    # ------------------------------------------------------------------------------------- states and events

    @contextmanager
    def _program(self) -> Iterator[None]:
        """Controls moved in here were not moved by somebody."""
        with self._lock:
            self._moving += 1
            try:
                yield
            finally:
                self._moving -= 1

    @property
    def _quiet(self) -> bool:
        """Is it the program that moved a control?"""
        with self._lock:  # while the other thread moves them, wait
            return self._moving > 0

    def _changed(self, **changes: Any) -> State:
        if {"layer", "channel", "rank"} & changes.keys() and "position" not in changes:
            changes["position"] = None
        if "layer" in changes and "channel" not in changes:
            channel = self.state.channel
            if changes["layer"] in self.view.layers and channel >= self.view.count(changes["layer"]):
                changes["channel"] = 0
        return self.view.checked(replace(self.state, **changes))

    @guarded
    def _user(self, **changes: Any) -> None:
        """Somebody moved a control."""
        if self._quiet or self.view.empty:
            return
        self.go_live()
        self.tell("")
        with self._lock:
            try:
                self._go(self._changed(**changes))
            except Exception:
                self._sync_controls()  # back to what is shown
                raise

    def _go(self, state: State) -> None:
        with self._lock:
            before, self.state = self.state, state
            if state == before:
                return
            self._settle(state, before)

    def _settle(self, state: State, before: State) -> None:
        self._turning = time.monotonic() < self._moved + TURNING
        if state.channel != before.channel:
            self._facing = 1 if self._place(state.channel) > self._place(before.channel) else -1
        self._preview = None
        self.worker.cancel("hover")
        if state.image != before.image:
            self._upload = None
        at_once = self.live and state.tab == "maps" and not state.search and self.view.ready(state)
        if at_once:
            self._show_grids(state, self.view.grids(state))
        turned = replace(before, channel=state.channel, position=state.position) == state
        if not (at_once and turned):  # on another page of the slider, later: it would hold up the pictures
            self._sync_controls()
        self._request()

    def _request(self) -> None:
        """Ask the worker for what the state shows; what it asked before is given up."""
        self.worker.submit("view", self._draw_view(self.state))
        lacks = self.view.lacks(self.state)
        if lacks == "profile":
            self.worker.submit("profile", self._profile(), Worker.SOON)
        elif lacks == "frequencies":
            self.worker.submit("frequencies", self._frequencies(self.state.layer), Worker.SOON)
        if self.live:
            self._look_ahead()

    def _show_everything(self) -> None:
        """All of the first view, at once."""
        self._sync_controls()
        steps = [self._draw_view(self.state)]
        lacks = self.view.lacks(self.state)
        if lacks == "profile":
            steps.insert(0, self._profile())
        elif lacks == "frequencies":
            steps.insert(0, self._frequencies(self.state.layer))
        for each in steps:
            try:
                for _ in each:
                    pass
            except Exception as error:
                self.fail(error, "first view")

    def on_live(self) -> None:
        """Begin to compute ahead."""
        if not self.view.empty:
            self._look_ahead()

    # ------------------------------------------------------------------------------------- what is asked for

    def _draw_view(self, state: State) -> Steps:
        """The picture that was asked for first, then the rest, in the order in which eyes get there."""
        if state.tab == "maps":
            yield from self._draw_maps(state)
        elif state.tab == "image":
            yield from self._draw_own(state)
        else:
            yield from self._draw_compare(state)

    def _draw_maps(self, state: State) -> Steps:
        v = self.view
        if not len(v.order(state)):
            for picture in (self.projections, self.patches, self.photo, self.heat, self.whole):
                picture.say(f"No map of {state.layer} has “{state.search}” among its strongest pictures. Try another "
                            "name, or empty the box.")  # fmt: skip
            return
        grids = v.grids(state)
        yield None
        self._show_grids(state, grids)
        if self.live:
            yield from _pause(time.monotonic() + PAINT)
        self._sync_controls()
        self._show_words(state, grids)
        yield None
        if self._turning:
            for channel in self._next(state):
                yield from v.prepare(replace(state, channel=channel))
        detail = yield from v.detail_steps(state)
        yield None
        self._show_detail(state, detail)
        yield None
        facts, near = v.facts(state), v.nearest(state)
        yield None
        self._show_facts(facts, near)

    def _show_grids(self, state: State, grids: Grids) -> None:
        """Both grids, unless the state has moved on."""
        with self._lock:
            if _grids_of(state) != _grids_of(self.state):
                return
            name = f"{self.view.model.name} {state.layer} map {state.channel}"
            if grids.sentence:
                self.projections.say(grids.sentence)
                self.patches.say("No picture excites it.")
            else:
                self.projections.show(
                    grids.projections, f"projections of the strongest activations of {name}"
                )
                self.patches.show(grids.patches, f"patches that excite {name} most")

    def _show_words(self, state: State, grids: Grids) -> None:
        """What is written around the grids."""
        words = f"<b>{html.escape(state.layer)}</b> · map <b>{state.channel}</b>"
        if self.heading.value != words:
            self.heading.value = words
        rule = f"<b>projections</b> · {state.rule}"
        if self.what.value != rule:
            self.what.value = rule
        with self._program(), self.ranks.hold_sync():
            captions = grids.captions or tuple("—" for _ in range(self.view.shown))
            self.ranks.options = [(f"{i + 1}  {caption}", i) for i, caption in enumerate(captions)]
            self.ranks.value = self.state.rank  # which may have moved on, to another page even
        own = f" This one: ±{number(grids.scales[state.rank])}." if grids.scales else ""
        self.scale.value = f"<p>{html.escape(self.view.scale_line(state) + own)}</p>"

    def _show_detail(self, state: State, detail: Any) -> None:
        pictures = (self.photo, self.heat, self.whole)
        if detail.sentence:
            for picture in pictures:
                picture.say(detail.sentence)
            self.told.value, self.lens.value = "", "<b>projection</b>"
            return
        self.photo.show(detail.photo)
        self.heat.grid(detail.shape[0], detail.shape[1], detail.area)
        self.heat.pick(*detail.position)
        self.heat.show(detail.heat)
        self.whole.show(detail.whole)
        lens = f" · lens {detail.zoom:.1f}×" if detail.zoom else ""
        self.lens.value = f"<b>projection</b>{lens}"
        self.told.value = f"<p>{html.escape(detail.told)} Full colour at ±{number(detail.scale)}.</p>"
        self.maximum.layout.visibility = "visible" if state.position is not None else "hidden"

    def _show_facts(self, facts: str, near: list[tuple[int, float]]) -> None:
        if self.facts.value != facts:
            self.facts.value = facts
        self.near_box.layout.display = None if near else "none"
        for control, (channel, r) in zip(self.near, near, strict=False):
            control.description = f"{channel} ({r:.2f})"
            control.tooltip = f"to map {channel}; correlation over the pictures {r:.2f}"

    def _draw_own(self, state: State) -> Steps:
        content: tuple[str, bytes | str] | None = self._upload
        if content is None and state.image:
            content = Path(state.image).name, state.image
        self.own_what.value = f"<b>{html.escape(state.layer)}</b> · the maps it excites most"
        if content is None:
            words = "Choose a picture, or give its path: here you will see which maps of the layer it excites most."
            self.own_picture.say("No picture yet.")
            self.own_strongest.say(words)
            self.own_windows.say("And here, what those units see of it.")
            self.own_note.value = self.own_captions.value = ""
            self.own_probabilities.value = '<p class="zfkit-soft">Its classes come here.</p>'
            self._own_channels = ()
            return
        yield Progress("reading your picture", 0.3, slow=True)
        own = self.view.own(state, content[1], content[0])
        yield None
        self._own_channels = own.channels
        self.own_note.value = f'<p class="zfkit-soft">{html.escape(own.note)}</p>'
        self.own_probabilities.value = own.probabilities
        if own.picture:
            self.own_picture.show(own.picture, f"your picture {content[0]}")
        else:
            self.own_picture.say(own.sentence)
        if own.strongest:
            self.own_strongest.show(own.strongest)
            self.own_windows.show(own.windows)
        else:
            self.own_strongest.say(own.sentence)
            self.own_windows.say("Nothing to show.")
        items = "".join(f"<li>{html.escape(c)}</li>" for c in own.captions)
        self.own_captions.value = (
            f'<ol>{items}</ol><p class="zfkit-soft">Activation, and how much that is of the strongest in '
            f"{html.escape(self.view.source)}. Click a tile to go to its map. "
            f"{html.escape(self.view.scale_line(state))}</p>"
            if items
            else ""
        )

    def _draw_compare(self, state: State) -> Steps:
        v = self.view
        methods = state.versus == METHODS
        self.compare_methods.layout.display = None if methods else "none"
        self.compare_models.layout.display = "none" if methods else None
        self.compare_scale.value = f"<p>{html.escape(v.scale_line(state))}</p>"
        unit = f"<b>{html.escape(state.layer)}</b> · map <b>{state.channel}</b>"
        if methods:
            self.compare_words.value = f"{unit}: one row for each of its three strongest pictures"
            shown, sentence = yield from v.methods(state)
            yield None
            if sentence:
                self.compared.say(sentence)
            else:
                self.compared.show(shown)
            return
        image = max(v.unit(state)[0], 0)
        self.compare_words.value = (
            f"<b>{html.escape(v.about(image))}</b> as {html.escape(v.model.name)} and "
            f"{html.escape(state.versus)} see it"
        )
        self.compare_photo.show(
            encode(drawing.fitted(drawing.to_picture(v.photos.take([image])[0]), LARGE), "jpeg")
        )
        yield Progress(
            f"loading {state.versus}", 0.1, slow=not isinstance(v.others[state.versus], VisionModel)
        )
        both = yield from v.models(state)
        yield None
        for (title, shown, captions, sentence), words, picture, names in zip(
            both, self.pair_words, self.pair, self.pair_captions, strict=True
        ):
            words.value = f"<b>{html.escape(title)}</b>"
            if shown:
                picture.show(shown, f"strongest maps of {title}")
            else:
                picture.say(sentence)
            items = "".join(f"<li>{html.escape(c)}</li>" for c in captions)
            names.value = f"<ol>{items}</ol>"

    def _hover(self, change: Any) -> None:
        """The picture below the pointer large, as long as the pointer is there."""
        place = change.owner
        at = place.hover[0] * place.cols + place.hover[1]
        rank = None if min(place.hover) < 0 else min(at, self.view.shown - 1)
        if rank == self._preview or self.state.tab != "maps":
            return
        self._preview = rank
        shown = (
            self.state if rank in (None, self.state.rank) else replace(self.state, rank=rank, position=None)
        )
        self.worker.submit("hover", self._draw_detail(shown))

    def _draw_detail(self, state: State) -> Steps:
        yield None
        detail = yield from self.view.detail_steps(state)
        yield None
        self._show_detail(state, detail)

    # --------------------------------------------------------------------------------------- ahead and later

    def _look_ahead(self) -> None:
        self._moved = time.monotonic()
        self.worker.submit("ahead", self._ahead(self.state), Worker.IDLE)
        if self.view.profile is None and not self.worker.has("profile"):
            self.worker.submit("profile", self._profile(rest=True), Worker.LATER)
        if self.ahead:
            self.worker.submit("all", self._all_ahead(self.state), Worker.LATER)

    def _ahead(self, state: State) -> Steps:
        """Neighbours on the slider, those on the way first; the first of every other layer; and all pictures' switches,
        from which projections are made in half the time."""
        if state.tab != "maps":
            return
        if self._turning:  # the next two pages have been seen to
            yield from self._calm(TURNING)
        for channel in self._around(state)[: 2 * AHEAD]:
            yield from self.view.prepare(replace(state, channel=channel))
        for layer in self.view.layers:
            if layer != state.layer:
                yield from self.view.prepare(replace(state, layer=layer, channel=0))
        if self.ahead and state.rule == "deconvnet":
            yield from self._calm(REST)
            yield from self.view.switch_steps(state.layer, [state.channel, *self._around(state)])

    def _all_ahead(self, state: State) -> Steps:
        """All maps, those of the layer first, as long as there is room for them."""
        if state.tab != "maps" or state.gain != 1:  # with another gain all would have to be drawn again
            return
        yield from self._calm(REST)
        maps = {state.layer: self._around(state)}
        maps |= {n: list(range(self.view.count(n))) for n in self.view.layers if n not in maps}
        for layer, channels in maps.items():
            for channel in channels:
                if self.view.full:
                    return
                yield from self.view.prepare(replace(state, layer=layer, channel=channel))

    def _calm(self, seconds: float) -> Steps:
        """Until nobody has turned a page for so long: before that, the processor is theirs."""
        while (until := self._moved + seconds) > time.monotonic():
            yield from _pause(until)

    def _next(self, state: State) -> list[int]:
        """The next two maps on the slider, in the direction of travel."""
        at = self._place(state.channel) + self._facing
        places = (at, at + self._facing)
        return [int(self._channels[p]) for p in places if 0 <= p < len(self._channels)]

    def _around(self, state: State) -> list[int]:
        """The other maps on the slider, the nearest first; of two as near, the one in the direction of travel."""
        at = self._place(state.channel)
        places = [p for p in range(len(self._channels)) if p != at]
        places.sort(key=lambda p: (abs(p - at), -self._facing * (p - at)))
        return [int(self._channels[p]) for p in places]

    def _profile(self, rest: bool = False) -> Steps:
        for progress in self.view.profile_steps():
            yield progress
            if rest:
                yield from self._calm(REST)
        self._sync_controls()
        self.worker.submit("facts", self._draw_facts())

    def _frequencies(self, layer: str) -> Steps:
        yield from self.view.frequency_steps(layer)
        self._sync_controls()

    def _draw_facts(self) -> Steps:
        state = self.state
        if state.tab == "maps":
            yield None
            self._show_facts(self.view.facts(state), self.view.nearest(state))

    # ---------------------------------------------------------------------------------------------- controls

    def _place(self, channel: int) -> int:
        found = np.flatnonzero(self._channels == channel)
        return int(found[0]) if len(found) else 0

    def _sync_controls(self) -> None:
        """Every control to what the state says."""
        s, v = self.state, self.view
        with self._program():
            self._channels = v.order(s)
            C, n = v.count(s.layer), len(self._channels)
            if n and s.channel not in self._channels:
                s = self.state = replace(s, channel=int(self._channels[0]), position=None)
            self.layers.value, self.tabs.value = s.layer, s.tab
            place = self._place(s.channel)
            with self.map.hold_sync():
                self.map.max = max(n - 1, 0)
                self.map.value = place
                self.map.disabled = n < 2
            with self.number.hold_sync():
                self.number.max = C - 1
                self.number.value = s.channel
            words = f"{C} maps, 0 to {C - 1}"
            if s.search.strip():
                words = f"{n} of {C} maps found" + (f"; this is the {_th(place + 1)}" if n else "")
            elif v.lacks(s):
                words += f"; {s.order} is being counted …"
            elif s.order != "index":
                words += f"; this is the {_th(place + 1)} by {s.order}"
            words = f'<p class="zfkit-soft">{html.escape(words)}</p>'
            if self.of.value != words:
                self.of.value = words
            lit = drawing.strip(self._blocks, s.layer)
            if self.strip.value != lit:
                self.strip.value = lit
            self.order.value, self.rule.value, self.gain.value = s.order, s.rule, s.gain
            self.find.value, self.path.value, self.versus.value = s.search, s.image, s.versus
            pages = (self.maps_page, self.own_page, self.compare_page)
            for page, tab in zip(pages, TABS, strict=True):
                page.layout.display = None if tab == s.tab else "none"
            if self.ranks.value != s.rank:
                self.ranks.value = s.rank
            columns = self.projections.place.cols
            for picker in (self.projections, self.patches):
                picker.pick(*divmod(s.rank, columns))
            self._mark_unit()
            self.saved.value = ""
            if self.code.layout.display != "none":
                self._fill_code()

    @property
    def _blocks(self) -> list[tuple[str, int, int]]:
        shapes = self.view.shapes
        return [(n, s[0], s[1] if len(s) > 1 else 1) for n, s in shapes.items()]

    def _from_slider(self, change: Any) -> None:
        if not self._quiet and change.new < len(self._channels):
            self._user(channel=int(self._channels[change.new]))

    def _from_number(self, change: Any) -> None:
        if self._quiet:
            return
        changes: dict[str, Any] = {"channel": change.new}
        if change.new not in self._channels:
            changes["search"] = ""  # a map that the search left out
        self._user(**changes)

    def _step(self, by: int) -> None:
        if len(self._channels):
            place = min(max(self._place(self.state.channel) + by, 0), len(self._channels) - 1)
            self._user(channel=int(self._channels[place]))

    def _draw(self) -> None:
        if len(self._channels):
            self._user(channel=int(self._random.choice(self._channels.tolist())))

    def _pick_rank(self, r: int, c: int) -> None:
        self._user(rank=min(r * self.projections.place.cols + c, self.view.shown - 1))

    def _pick_place(self, r: int, c: int) -> None:
        shape = self.view.shapes[self.state.layer][1:]
        if len(shape) == 2 and r < shape[0] and c < shape[1]:
            self._user(position=(r, c))
        else:  # a click on the larger map of the layer before, on its way while the layer changed
            self._mark_unit()

    def _mark_unit(self) -> None:
        """The mark on the heat map to the state's unit, on a grid of the state's layer."""
        v, s = self.view, self.state
        shape = v.shapes[s.layer][1:]
        if len(shape) == 2:
            self.heat.grid(shape[0], shape[1], drawing.map_area(v.fields[s.layer], shape, v.photos.size))
            image, place = v.unit(s)
            self.heat.pick(*(place if image >= 0 else (-1, -1)))

    def _back(self, _: Any) -> None:
        self._user(position=None)

    def _to_near(self, i: int, _: Any = None) -> None:
        near = self.view.nearest(self.state)
        if i < len(near):
            self._user(channel=near[i][0], search="")

    def _pick_own(self, r: int, c: int) -> None:
        at = 3 * r + c
        self.own_strongest.pick(-1, -1)
        if at < len(self._own_channels):
            self._user(channel=self._own_channels[at], tab="maps", search="")

    @guarded
    def _uploaded(self, change: Any) -> None:
        if self._quiet or not change.new:
            return
        file = change.new[0]
        self.tell("")
        self._upload = (str(file["name"]), bytes(file["content"]))
        with self._program():
            self.upload.value = ()  # so that the same file can be chosen again
            self.path.value = ""
            self.state = replace(self.state, image="", tab="image")
        self._sync_controls()
        self._request()

    @guarded
    def _from_path(self, change: Any) -> None:
        if self._quiet:
            return
        self._upload = None
        if change.new == self.state.image:
            self._request()
        else:
            self._user(image=change.new)

    # ---------------------------------------------------------------------------------------------- to keep

    @guarded
    def _save(self, _: Any) -> None:
        s = self.state
        self.tell("")
        encoded = encode(self.snapshot())
        name = f"{self.view.model.name}-{s.layer}-{s.channel}.png".replace("/", "_").replace(":", "_")
        where = ""
        if self.save_to is not None:
            try:
                self.save_to.mkdir(parents=True, exist_ok=True)
                write_whole(self.save_to / name, lambda part: part.write_bytes(encoded))
                where = f"Saved as {html.escape(str(self.save_to / name))}; "
            except OSError as error:
                where = f"Not saved here ({html.escape(error.strerror or str(error))}); "
        link = f'<a download="{html.escape(name)}" href="{drawing.data_url(encoded)}">download it</a>'
        self.saved.value = f'<p role="status">{where}{link}</p>'

    def _show_code(self, _: Any) -> None:
        hidden = self.code.layout.display == "none"
        self.code.layout.display = None if hidden else "none"
        if hidden:
            self._fill_code()

    def _fill_code(self) -> None:
        code = self.view.code(self.state)
        self.code_area.value = code
        quoted = html.escape(code, quote=True)
        self.code_copy.value = (
            f'<button class="zfkit-copy-button" data-code="{quoted}" onclick="navigator.clipboard.writeText('
            "this.dataset.code).then(() => { this.textContent = 'copied'; }, () => { this.textContent = "
            "'select the lines above and press Ctrl+C'; })\">copy</button>"
        )


def _grids_of(state: State) -> tuple[Any, ...]:
    """What of a state its grids depend on."""
    return state.tab, state.layer, state.channel, state.rule, state.gain


def _pause(until: float) -> Steps:
    """Nothing, up to a time of `time.monotonic`, for anybody who comes meanwhile."""
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.01))
        yield None


def _th(n: int) -> str:
    """1st, 2nd, 3rd, 4th ..."""
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def _shrinks(picture: Picture, width: int) -> None:
    """Let a picture be `width` px wide where there is room, and narrower, in proportion, where there is not."""
    for part in (picture.layout, picture.image.layout):
        part.width, part.max_width, part.height = "100%", f"{width}px", "auto"


def _figure(words: W.Widget, *pictures: W.Widget) -> W.VBox:
    box = W.VBox([words, *pictures])
    box.add_class("zfkit-figure")
    return box


def explore(
    model: VisionModel,
    photos: ImageSet,
    top: TopK | None = None,
    *,
    others: Mapping[str, VisionModel | Callable[[], VisionModel]] | None = None,
    save_to: str | Path | None = ".",
    ahead: bool = True,
    **state: Any,
) -> Explorer:
    """Every layer and feature map at the end of a slider, in a notebook.

    Args:
        model, photos, top: a network, pictures, and what `mine` made of them; None mines them now (`mined`).
        others: models to compare with, by name; a model, or a function that loads it. Default: the bundled ones.
        save_to: folder for "save picture"; None for a link to download it and no file.
        ahead: compute the pictures of all maps while nothing else is to be done (about three minutes for the bundled
            network; with pooling switches and all else that is kept at most 0.8 GiB); False: those of the
            neighbouring maps alone.
        state: any field of `State`: where to open, as ``layer="conv4", channel=117``.

    Raises ZfkitError for a table of other pictures or another network, and for a state that does not exist.

    >>> explore(model, photos, top, layer="conv4", channel=117)
    """
    expect_both(model, photos)
    if top is None:
        top = mined(model, photos)
    if top.layers:
        top.check(model, photos)
    known = [f.name for f in fields(State)]
    for name in state:
        if name not in known:
            raise ZfkitError(unknown("field of the explorer's state", name, known))
    view = ExplorerView(model, photos, top, bundled_others(model) if others is None else others)
    return Explorer(view, State(**state), save_to=save_to, ahead=ahead)
