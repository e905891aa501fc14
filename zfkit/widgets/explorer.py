"""The explorer: every layer and feature map of a network at the end of a slider.

`explore` opens it. What it shows is computed by `view.ExplorerView` from one small value, `state.State`, and shown by
the parts of the page in `pages`. `Explorer` is what lies between: what a moved control changes in the state, and in
which order the worker computes what the state asks for.
"""

from __future__ import annotations

import html
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as W
import numpy as np
from PIL import Image

from ..batching import OnStep
from ..checks import as_path
from ..figures.pictures import to_picture
from ..files import write_whole
from ..images.imageset import ImageSet
from ..nets.model import VisionModel
from ..nets.zoo import load_model
from ..topk.bundled import mined
from ..topk.table import TopK, expect_both
from . import drawing
from .controls import encode, row, styled
from .drawing import LARGE
from .pages import ComparePage, Controls, MapsPage, OwnPage
from .panel import Panel, changed, guarded
from .state import METHODS, TABS, State
from .view import PIECE, ExplorerView, Grids, Others
from .worker import Job, Worker, pause

TURNING = (
    1.0  # s between two steps: somebody turns pages, and the next ones come before this one's large pictures
)
REST = 1.5  # s since the last step, before the layer is measured for the facts
PAINT = 0.12  # s left to server and browser after new grids, before the large pictures are computed
AHEAD = 2  # pages computed ahead, in the direction of travel
_CSS = (Path(__file__).parent / "explorer.css").read_text(encoding="utf-8")


class Explorer(Panel):
    """The explorer as a widget; `explore` makes it.

    Attributes:
        state: what is shown, a `State`; change it with `set`.
        view: what computes it, an `ExplorerView`.
        controls, maps, own, compare: the parts of the page.
        errors: what went wrong so far, as `Failure`.
    """

    state: State

    def __init__(
        self,
        view: ExplorerView,
        state: State | None = None,
        *,
        save_to: str | Path | None = ".",
        ahead: bool = True,
        random_seed: int | None = None,
    ) -> None:
        super().__init__("", _CSS)
        self.view, self.ahead = view, ahead
        self.save_to = None if save_to is None else as_path(save_to)
        self.state = view.checked(state or State())
        self._random = random.Random(random_seed)
        self._lock = threading.RLock()  # events come in one thread, the worker's results in another
        self._preview: int | None = None  # rank below the pointer
        self._upload: tuple[str, bytes] | None = None  # name and bytes of a picture that was uploaded
        self._channels = np.arange(0)  # on the slider, in order
        self._moved = 0.0  # when the state changed last
        self._turning = False  # did the last two steps follow each other closely?
        self._facing = 1  # direction of the last step
        self._build()
        if view.empty:
            self.maps.say(view.empty)
            self.controls.box.layout.display = "none"
            return
        self.arrange()
        try:  # all of the first view, at once
            self.paint(self.state, lambda done, total: None)
        except Exception as error:
            self.fail(error, "first view")
        self.watch(self.maps.projections.place, self.maps.patches.place, self.maps.heat.place)

    def _build(self) -> None:
        v, s = self.view, self.state
        self.add_class("zfkit-explorer")
        source = f'<span title="{html.escape(v.photos.source)}">{html.escape(v.facts.source)}</span>'
        self.title.value = f"<h2>{html.escape(v.model.name)} · {len(v.photos):,} pictures ({source})</h2>"
        tabs = [(words, name) for name, words in TABS.items()]
        self.tabs = styled(W.ToggleButtons(options=tabs, value=s.tab), "tabs")
        self.controls = c = Controls(v, s, self._step, self._draw, self._save)
        self.maps, self.own, self.compare = m, own, compare = (
            MapsPage(v, s), OwnPage(s), ComparePage(v, s),
        )  # fmt: skip
        stage = styled(W.Box([m.box, own.box, compare.box]), "stage")
        body = styled(W.Box([c.box, stage]), "body")
        self.children = [self.style, row(self.title, self.tabs, name="head"), self.notice, body, self.busy]

        self.bind(tab=self.tabs, order=c.order, search=c.find, rule=c.rule, gain=c.gain, rank=m.ranks,
                  versus=compare.versus)  # fmt: skip
        c.layers.observe(lambda change: self.by_user(layer=change.new, channel=0), "value")
        c.map.observe(self._from_slider, "value")
        c.number.observe(self._from_number, "value")
        for picker in (m.projections, m.patches):
            picker.on_pick(self._pick_rank)
            picker.place.observe(self._hover, "hover")
        m.heat.on_pick(self._pick_place)
        m.maximum.on_click(lambda _: self.by_user(position=None))
        for i, control in enumerate(m.near):
            control.on_click(partial(self._to_near, i))
        own.upload.observe(self._uploaded, "value")
        own.path.observe(self._from_path, "value")
        own.strongest.on_pick(self._pick_own)

    def __repr__(self) -> str:
        s = self.state
        return f"Explorer({self.view.model.name!r}: {s.layer or 'nothing mined'}, map {s.channel})"

    def snapshot(self) -> Image.Image:
        """What is shown as one static picture with a caption, for pages without a kernel."""
        return self.view.figure(self.state)

    # ----------------------------------------------------------------------------------------------- states

    def settled(self, **changes: Any) -> State:
        """The state after these changes: a new layer, map or rank forgets the position, unless one is given."""
        if {"layer", "channel", "rank"} & changes.keys():
            changes.setdefault("position", None)
        state = changed(self.state, **changes)
        if "channel" not in changes and state.layer in self.view.layers:
            fits = state.channel < self.view.count(state.layer)
            state = replace(state, channel=state.channel if fits else 0)
        return self.view.checked(state)

    def set(self, **changes: Any) -> Explorer:
        """Change the state: ``explorer.set(layer="conv5", channel=3)``. Returns the explorer.

        A new layer, map or rank forgets the position, unless one is given. Raises ZfkitError, and changes nothing,
        for what does not exist.
        """
        with self._lock:
            before, state = self.state, self.settled(**changes)
            if self.view.empty or state == before:
                return self
            self.state = state
            now = time.monotonic()
            self._turning, self._moved = now < self._moved + TURNING, now
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
            if not (
                at_once and turned
            ):  # on another page of the slider, later: it would hold up the pictures
                self.arrange()
            self._request()
        return self

    @guarded
    def by_user(self, **changes: Any) -> None:
        """What the user changed by a control."""
        if self.by_program.now or self.view.empty:
            return
        self.go_live()
        self.tell("")
        try:
            self.set(**changes)
        except Exception:
            self.arrange()  # back to what is shown
            raise

    def _place(self, channel: int) -> int:
        """Where on the slider a map is; 0 where it is not."""
        return int(np.argmax(self._channels == channel)) if len(self._channels) else 0

    def arrange(self) -> None:
        """Every control to what the state says."""
        with self._lock, self.by_program():
            self._channels = self.view.facts.order(self.state)
            if len(self._channels) and self.state.channel not in self._channels:
                self.state = replace(self.state, channel=int(self._channels[0]), position=None)
            s = self.state
            self.controls.arrange(s, self._channels)
            self.maps.arrange(s)
            self.tabs.value, self.own.path.value, self.compare.versus.value = s.tab, s.image, s.versus
            for box, tab in zip((self.maps.box, self.own.box, self.compare.box), TABS, strict=True):
                box.layout.display = None if tab == s.tab else "none"

    # ----------------------------------------------------------------------- what is computed, in which order

    def _request(self) -> None:
        """Ask the worker for what the state shows; what it asked before is given up."""
        state = self.state
        what = {"maps": "projecting", "image": "your picture", "compare": "comparing"}[state.tab]
        if state.tab == "maps" and self.view.facts.lacks(state):
            what = f"measuring {state.order}"
        self.worker.submit("view", lambda job: self.paint(state, job), what=what)
        if self.live and state.tab == "maps" and state.layer not in self.view.facts.profiles:
            self.worker.submit("facts", lambda job: self._measure(state, job), Worker.LATER)

    def on_live(self) -> None:
        """Begin to compute ahead."""
        if not self.view.empty:
            self._request()

    def paint(self, state: State, step: OnStep) -> None:
        """All that the state shows: what was asked for first, then the rest, as eyes get there."""
        {"maps": self._paint_maps, "image": self._paint_own, "compare": self._paint_compare}[state.tab](
            state, step
        )

    def _paint_maps(self, state: State, step: OnStep) -> None:
        v, facts = self.view, self.view.facts
        if not len(facts.order(state)):
            self.maps.say(
                f"No map of {state.layer} has “{state.search}” among its strongest pictures. Try another name, or "
                "empty the box."
            )
            return
        grids = v.grids(state, step)
        step(1, 1)
        self._show_grids(state, grids)
        if self.live:
            pause(step, PAINT)
        self.arrange()
        with self.by_program():
            self.maps.show_words(state, grids, self.state.rank)
        if self._turning:
            self._look_ahead(state, step)
        detail = v.detail(state, step)
        step(1, 1)
        self.maps.show_detail(state, detail)
        self.maps.show_facts(state, facts)
        if facts.lacks(state):
            facts.measure_order(state, step)
            step(1, 1)
            self.arrange()
            self.maps.show_facts(state, facts)
        if self.live:
            self._look_ahead(state, step)

    def _look_ahead(self, state: State, step: OnStep) -> None:
        """The next two pages in the direction of travel."""
        at = self._place(state.channel)
        for place in range(at + self._facing, at + (AHEAD + 1) * self._facing, self._facing):
            if self.ahead and 0 <= place < len(self._channels):
                self.view.grids(replace(state, channel=int(self._channels[place])), step, PIECE)

    def _measure(self, state: State, step: Job) -> None:
        """The layer's maps over all pictures, for the facts beside the map, once nobody has moved for a while."""
        pause(step, REST)
        self.view.facts.measure(state.layer, step)
        step()
        self.maps.show_facts(self.state, self.view.facts)

    def _show_grids(self, state: State, grids: Grids) -> None:
        """Both grids, unless the state has moved on."""
        with self._lock:
            names = ("tab", "layer", "channel", "rule", "gain")
            if all(getattr(state, name) == getattr(self.state, name) for name in names):
                self.maps.show_grids(state, grids)

    def _paint_own(self, state: State, step: OnStep) -> None:
        self.own.what.value = f"<b>{html.escape(state.layer)}</b> · the maps it excites most"
        content: tuple[str, bytes | str] | None = self._upload
        if content is None and state.image:
            content = Path(state.image).name, state.image
        if content is None:
            self.own.invite()
            return
        self.show_progress("reading your picture", 0.3)
        own = self.view.own(state, content[1], content[0])
        step(1, 1)
        self.own.show(own, content[0], self.view.facts.source, self.view.scale_line(state))

    def _paint_compare(self, state: State, step: OnStep) -> None:
        v, page, methods = self.view, self.compare, state.versus == METHODS
        image = max(v.unit(state)[0], 0)
        names = f"{html.escape(v.model.name)} and {html.escape(state.versus)}"
        words = f"<b>{html.escape(v.facts.about(image))}</b> as {names} see it"
        if methods:
            unit = f"<b>{html.escape(state.layer)}</b> · map <b>{state.channel}</b>"
            words = f"{unit}: one row for each of its three strongest pictures"
        page.begin(words, v.scale_line(state), methods)
        if methods:
            encoded, sentence = v.methods(state, step)
            step(1, 1)
            page.show_methods(encoded, sentence)
            return
        photo = to_picture(v.photos.take([image])[0])
        page.photo.show(encode(drawing.fitted(photo, LARGE), "jpeg"))
        if not isinstance(v.others[state.versus], VisionModel):
            self.show_progress(f"loading {state.versus}", 0.1)
        compared = v.models(state, step)
        step(1, 1)
        page.show_models(compared)

    # -------------------------------------------------------------------------------------- what users move

    def _from_slider(self, change: Any) -> None:
        if not self.by_program.now and change.new < len(self._channels):
            self.by_user(channel=int(self._channels[change.new]))

    def _from_number(self, change: Any) -> None:
        left_out = change.new not in self._channels  # by the search
        self.by_user(channel=change.new, **({"search": ""} if left_out else {}))

    def _step(self, by: int) -> None:
        if len(self._channels):
            place = min(max(self._place(self.state.channel) + by, 0), len(self._channels) - 1)
            self.by_user(channel=int(self._channels[place]))

    def _draw(self) -> None:
        if len(self._channels):
            self.by_user(channel=int(self._random.choice(self._channels.tolist())))

    def _pick_rank(self, r: int, c: int) -> None:
        self.by_user(rank=min(r * self.maps.columns + c, self.view.shown - 1))

    def _pick_place(self, r: int, c: int) -> None:
        shape = self.view.shapes[self.state.layer][1:]
        if len(shape) == 2 and r < shape[0] and c < shape[1]:
            self.by_user(position=(r, c))
        else:  # a click on the larger map of the layer before, on its way while the layer changed
            self.maps.arrange(self.state)

    def _to_near(self, i: int, _: Any = None) -> None:
        near = self.view.facts.nearest(self.state)
        if i < len(near):
            self.by_user(channel=near[i][0], search="")

    def _pick_own(self, r: int, c: int) -> None:
        self.own.strongest.pick(-1, -1)
        if 3 * r + c < len(self.own.channels):
            self.by_user(channel=self.own.channels[3 * r + c], tab="maps", search="")

    def _hover(self, change: Any) -> None:
        """The picture below the pointer large, as long as the pointer is there."""
        place, state = change.owner, self.state
        rank = min(place.hover[0] * place.cols + place.hover[1], self.view.shown - 1)
        preview = None if min(place.hover) < 0 else rank
        if preview == self._preview or state.tab != "maps":
            return
        self._preview = preview
        if preview not in (None, state.rank):
            state = replace(state, rank=rank, position=None)

        def paint(step: Job) -> None:
            detail = self.view.detail(state, step)
            step()
            self.maps.show_detail(state, detail)

        self.worker.submit("hover", paint)

    @guarded
    def _uploaded(self, change: Any) -> None:
        if self.by_program.now or not change.new:
            return
        file = change.new[0]
        self.tell("")
        with self._lock:
            self._upload = (str(file["name"]), bytes(file["content"]))
            with self.by_program():
                self.own.upload.value = ()  # so that the same file can be chosen again
            self.state = replace(self.state, image="", tab="image")
            self.arrange()
            self._request()

    @guarded
    def _from_path(self, change: Any) -> None:
        if self.by_program.now:
            return
        self._upload = None
        if change.new == self.state.image:
            self._request()
        else:
            self.by_user(image=change.new)

    @guarded
    def _save(self) -> None:
        s = self.state
        self.tell("")
        encoded = encode(self.snapshot())
        name = f"{self.view.model.name}-{s.layer}-{s.channel}.png".replace("/", "_").replace(":", "_")
        where = ""
        if self.save_to is not None:
            try:
                write_whole(self.save_to / name, lambda part: part.write_bytes(encoded))
                where = f"Saved as {html.escape(str(self.save_to / name))}; "
            except OSError as error:
                where = f"Not saved here ({html.escape(error.strerror or str(error))}); "
        link = f'<a download="{html.escape(name)}" href="{drawing.data_url(encoded)}">download it</a>'
        self.controls.saved.value = f'<p role="status">{where}{link}</p>'


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
        ahead: compute the next two maps in the direction of travel while nothing else is to be done. What was computed
            is kept, up to 384 MiB.
        state: any field of `State`: where to open, as ``layer="conv4", channel=117``.

    Raises ZfkitError for a table of other pictures or another network, and for a state that does not exist.

    >>> explore(model, photos, top, layer="conv4", channel=117)
    """
    expect_both(model, photos)
    if top is None:
        top = mined(model, photos)
    if top.layers:
        top.check(model, photos)
    first = changed(State(), **state)
    view = ExplorerView(model, photos, top, bundled_others(model) if others is None else others)
    return Explorer(view, first, save_to=save_to, ahead=ahead)


def bundled_others(model: VisionModel) -> Others:
    """The bundled networks other than this one, loaded when they are first asked for."""
    return {n: (lambda n=n: load_model(n)) for n in ("zfnet64", "alexnet64") if n != model.name}  # type: ignore[misc]
