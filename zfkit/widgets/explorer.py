"""The explorer: every layer and feature map of a network at the end of a slider.

`explore` opens it. What it shows is computed by `view.ExplorerView` and by `compare` from one small value,
`state.State`, and drawn by the page, `explorer.js`. `Explorer` is what lies between: what a request of the page changes
in the state, and in which order the worker computes what the state asks for.

Messages to the page have a `kind` and say which map they belong to, so that it never shows a caption beside pictures of
another: "page" (nine patches and projections), "detail" (one of them), "facts", "control", "layer" (order of the maps),
"strip", "thumbnails", "points", "own", "samples", "methods", "models", "peek", "saved", "code", "said", "progress" ...
A page that may come next is sent as "ahead" and shown as soon as somebody goes there; "turn" names one that lies there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..batching import OnStep, give_back
from ..checks import as_path
from ..figures.pictures import to_picture
from ..images.imageset import ImageSet
from ..nets.model import VisionModel
from ..topk.bundled import mined
from ..topk.table import TopK, expect_both
from . import compare
from .controls import encode
from .messages import NAMED, Page, Pages, Parcel, about, facts_of, of, page_of
from .panel import Panel, changed, guarded
from .results import Grids, Sheet
from .state import METHODS, State
from .view import PIECE, ExplorerView
from .worker import Job, Worker, pause

TURNING = 1.0  # s between two steps: somebody turns pages, and the next ones come before this one's details
NEAR = 8  # maps in such a step, at most: a key that is held skips some
REST = 1.5  # s since the last step, before the layer is measured for the facts
BESIDE = 4  # layers on either side whose first map is computed then, for who goes there
PAINT, SEEN = 0.1, 0.03  # s left to server and browser after new grids, and after those that lay ready
STAY = 0.3  # s between the last of a page and those that are computed ahead, while nobody turns them
AHEAD = 2  # pages computed ahead, in the direction of travel
SAYS = 0.1  # s between two movements of the progress bar


class Explorer(Panel):
    """The explorer as a widget; `explore` makes it.

    Attributes:
        state: what is shown, a `State`; change it with `set`.
        view: what computes it, an `ExplorerView`.
        sent: the last message of each kind to the page: content and pictures.
        errors: what went wrong so far, as `Failure`.
    """

    state: State

    def __init__(
        self, view: ExplorerView, state: State, *, save_to: str | Path | None = ".", ahead: bool = True
    ) -> None:
        super().__init__()
        self.view, self.ahead, self.mine = view, ahead, compare.YourPicture(view)
        self.save_to = None if save_to is None else as_path(save_to)
        self.state = view.checked(state)
        self.sent: dict[str, Parcel] = {}
        self._lock = threading.RLock()  # requests come in one thread, the worker's results in another
        self._channels = np.arange(0)  # on the strip, in order
        self._moved = 0.0  # when the state changed last
        self._turning = False  # did the last two steps follow each other closely?
        self._facing = 1  # direction of the last step
        self.live = False  # has a page shown it?
        self._said = 0.0  # when the progress bar was moved last
        self.page = Page(about=about(view))
        self.pages = Pages(self.page)
        self.page.on_msg(self._received)
        self.add_class("zfkit-explorer")
        if self.page.about["alone"]:
            self.add_class("zfkit-alone")
        self.children = [self.style, self.page]
        self.arrange()
        if not view.empty:
            try:  # all of the first view, at once
                self.paint(self.state, lambda done, total: None)
                give_back()
            except Exception as error:
                self.fail(error, "first view")

    def __repr__(self) -> str:
        s = self.state
        return f"Explorer({self.view.model.name!r}: {s.layer or 'nothing mined'}, map {s.channel})"

    @property
    def link(self) -> str:
        """The end of an address that opens this view: "?layer=conv4&map=7"."""
        return self.state.link

    # --------------------------------------------------------------------------------------------- to the page

    def post(self, parcel: Parcel, keep: bool = True) -> None:
        """Send a message to the page; the last of each kind is kept for pages that open later."""
        with self._lock:
            if keep:
                self.sent[parcel.content["kind"]] = parcel
            self.pages.send(parcel)

    def tell(self, sentence: str) -> None:
        """A sentence above the pictures; "" takes it away."""
        if sentence or ((before := self.sent.get("said")) and before.content["words"]):
            self.post(Parcel("said", words=sentence))

    def show_progress(self, what: str, done: float) -> None:
        """Move the bar; "" takes it away."""
        now, before = time.monotonic(), self.sent.get("progress")
        if not what and not (before and before.content["what"]):
            return
        if not what or now > self._said + SAYS:
            self._said = now
            self.post(Parcel("progress", what=what, done=done))

    def file_name(self) -> str:
        s = self.state
        place = f"{s.layer}-{s.channel}" if s.tab == "maps" else f"{s.tab}-{s.layer}"
        return f"{self.view.model.name}-{place}"

    def figure(self) -> Image.Image:
        return self.snapshot()  # which has its caption

    def snapshot(self) -> Image.Image:
        """What is shown as one static picture with a caption, for pages without a kernel."""
        s = self.state
        if self.view.empty or s.tab == "maps":
            return self.view.figure(s)
        if s.tab == "image":
            return compare.own_figure(self.view, s, self.mine.own(s))
        return compare.figure(self.view, s)

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
            now, by = time.monotonic(), 1
            if state.layer == before.layer:
                by = self._place(state.channel) - self._place(before.channel)
            self._turning, self._moved = abs(by) <= NEAR and now < self._moved + TURNING, now
            self._facing = (by > 0) - (by < 0) or self._facing
            if state.image != before.image:
                self.mine.take()
            if self.live and state.tab == "maps" and not state.search and (grids := self.view.at_hand(state)):
                self._show_grids(state, grids)
            self.arrange()
            self._request()
        return self

    def _place(self, channel: int) -> int:
        """Where in the order a map is; 0 where it is not."""
        return int(np.argmax(self._channels == channel)) if len(self._channels) else 0

    def arrange(self) -> None:
        """Tell the page the state, and the order of the maps where that has changed."""
        with self._lock:
            if self.view.empty:
                return
            s = self.state
            self._channels = self.view.facts.order(s)
            if len(self._channels) and s.channel not in self._channels:
                self.state = s = replace(s, channel=int(self._channels[0]), position=None)
            self.page.state = {**asdict(s), "link": s.link}
            words, C = "", self.view.count(s.layer)
            if s.search.strip():
                words = f"{len(self._channels)} of {C} maps have “{s.search}” among their strongest pictures"
            elif self.view.facts.lacks(s):
                words = f"{s.order} is measured …"
            elif s.order == "your picture" and self.view.facts.picture is None:
                words = "there is no picture of yours yet: the maps stand by number"
            order, (heights, dead) = self._channels.tolist(), self.view.facts.heights(s)
            parcel = Parcel("layer", layer=s.layer, order=order, words=words, bars=heights, dead=dead)
            if not (before := self.sent.get("layer")) or before.content != parcel.content:
                self.post(parcel)

    # ----------------------------------------------------------------------- what is computed, in which order

    def _request(self) -> None:
        """Ask the worker for what the state shows; what it asked before is given up."""
        state = self.state
        what = {"maps": "projecting", "image": "your picture", "compare": "comparing"}[state.tab]
        if state.wall:
            what = f"drawing {self.view.count(state.layer)} maps"
        elif state.tab == "maps" and self.view.facts.lacks(state):
            what = f"measuring {state.order}"
        self.worker.submit("view", lambda job: self.paint(state, job), what=what)
        if not self.live:
            return
        if "strip" not in self.sent:
            self.worker.submit("strip", self._send_strip, Worker.SOON, "drawing layers")
        self.worker.submit("layer", lambda job: self._measure(state, job), Worker.LATER)

    def go_live(self) -> None:
        """Somebody is looking: begin to compute ahead."""
        if not self.live and not self.view.empty:
            self.live = True
            self._request()

    def paint(self, state: State, step: OnStep) -> None:
        """All that the state shows: what was asked for first, then the rest, as eyes get there."""
        paint = {"maps": self._paint_maps, "image": self._paint_own, "compare": self._paint_compare}
        paint[state.tab](state, step)

    def _paint_maps(self, state: State, step: OnStep) -> None:
        v, facts = self.view, self.view.facts
        if not len(facts.order(state)):
            said = f"No map of {state.layer} has “{state.search}” among its strongest pictures. Try another name, or "
            self.post(Parcel("page", **of(state), sentence=f"{said}empty the box.", nothing=True))
            return
        if state.wall:
            self._send_thumbnails(state.layer, step)
        grids = v.grids(state, step)
        step(1, 1)
        self._show_grids(state, grids)
        if self.live:
            pause(step, PAINT if self.pages.new else SEEN)
        if self._turning:
            self._look_ahead(state, step)
        words = v.detail(state, step)._asdict()
        step(1, 1)
        pictures = {name: words.pop(name) for name in ("photo", "heat", "patch", "projection")}
        parcel = Parcel("detail", **of(state), rank=state.rank, asked=state.position, **words)
        self.post(parcel.add(**pictures))
        self.post(facts_of(v, state))
        sheet, alike = v.control(state, step)
        step(1, 1)
        self.post(Parcel("control", **of(state), alike=round(alike, 2)).add(sheet=sheet))
        if facts.lacks(state):
            facts.measure_order(state, step)
            step(1, 1)
            self.arrange()
        if self._thumbnails_of() != state.layer and (kept := self.view.kept_thumbnails(state.layer)):
            self._post_thumbnails(state.layer, *kept)
        if self.live:
            pause(step, STAY)
            self._look_ahead(state, step)

    def _look_ahead(self, state: State, step: OnStep) -> None:
        """The next two pages in the direction of travel; while nobody turns them, the one before, too."""
        at = self._place(state.channel)
        places = [at + n * self._facing for n in range(1, AHEAD + 1)]
        if not self._turning:
            places.insert(1, at - self._facing)
        for place in places:
            if self.ahead and 0 <= place < len(self._channels):
                self._make_ahead(replace(state, channel=int(self._channels[place])), step)

    def _measure(self, state: State, step: Job) -> None:
        """Once nobody has moved for a while: the layers around, thumbnails, and the maps over many pictures."""
        pause(step, REST)
        at, plain = self.view.layers.index(state.layer), state.colours == "signed"  # others take long
        for layer in self.view.layers[max(at - BESIDE, 0) : at + BESIDE + 1]:
            if self.ahead and plain and state.tab == "maps":
                self._make_ahead(replace(state, layer=layer, channel=0, rank=0, position=None), step)
        self._send_thumbnails(state.layer, step)
        if state.layer not in self.view.facts.profiles:
            self.view.facts.measure(state.layer, step)
            step()
            if self.state.layer == state.layer and self.state.tab == "maps":
                self.post(facts_of(self.view, self.state))

    def _show_grids(self, state: State, grids: Grids) -> None:
        """Both grids, unless the state has moved on."""
        with self._lock:
            if all(getattr(state, name) == getattr(self.state, name) for name in ("tab", *NAMED)):
                parcel = page_of(self.view, state, grids)
                if not parcel.is_as(self.sent.get("page")):
                    self.post(parcel)

    def _make_ahead(self, state: State, step: OnStep) -> None:
        """A page that may come next: computed, and sent to lie ready."""
        parcel = page_of(self.view, state, self.view.grids(state, step, PIECE))
        with self._lock:
            self.pages.send(parcel, ahead=True)

    def _thumbnails_of(self) -> str:
        return self.sent["thumbnails"].content["layer"] if "thumbnails" in self.sent else ""

    def _send_thumbnails(self, layer: str, step: OnStep) -> None:
        if self._thumbnails_of() != layer:
            sheets = self.view.thumbnails(layer, step)
            step(1, 1)
            self._post_thumbnails(layer, *sheets)

    def _post_thumbnails(self, layer: str, projections: Sheet, patches: Sheet) -> None:
        self.post(Parcel("thumbnails", layer=layer).add(projections=projections, patches=patches))

    def _send_strip(self, step: Job) -> None:
        """Three thumbnails of each layer."""
        parcel = Parcel("strip")
        for i, layer in enumerate(self.view.layers):  # by number: a layer may be called anything
            parcel.add(**{str(i): self.view.three(layer)})
            step(i + 1, len(self.view.layers))
        self.post(parcel)

    # ---------------------------------------------------------------------------- your picture, and comparisons

    def _paint_own(self, state: State, step: OnStep) -> None:
        if "samples" not in self.sent:
            places, names, sheet = self.mine.samples()
            self.post(Parcel("samples", places=places, names=names).add(sheet=sheet))
        self.show_progress("reading your picture", 0.3)
        own, facts = self.mine.own(state), self.view.facts
        step(1, 1)
        facts.look_at(own.seen if own else None)
        if own is None:
            return
        words = own._replace(seen=None)._asdict()
        pictures = {n: words.pop(n) for n in ("picture", "patches", "projections", "usual")}
        words["caption"] = f"Activation, and how much that is of the strongest in {facts.source}."
        self.post(Parcel("own", layer=state.layer, at=self.mine.at, **words).add(**pictures))
        facts.measure_order(state, step)
        self.arrange()

    def _paint_compare(self, state: State, step: OnStep) -> None:
        v = self.view
        if state.versus == METHODS:
            sheet, sentence = compare.methods(v, state, step)
            step(1, 1)
            parcel = Parcel("methods", **of(state), sentence=sentence, scale=v.scale_line(state))
            self.post(parcel.add(sheet=sheet))
            return
        if not isinstance(v.others[state.versus], VisionModel):
            self.show_progress(f"loading {state.versus}", 0.1)
        compared = compare.models(v, state, step)
        step(1, 1)
        image = max(v.unit(state)[0], 0)
        parcel = Parcel(
            "models", **of(state), versus=state.versus, name=v.facts.about(image),
            models=[{"title": c.title, "captions": c.captions, "sentence": c.sentence} for c in compared],
        ).add(photo=encode(to_picture(v.model.shown(v.photos.take([image]))[0]), "jpeg"))  # fmt: skip
        for i, c in enumerate(compared):
            parcel.add(**{f"patches{i}": c.patches, f"projections{i}": c.projections})
        self.post(parcel)

    # -------------------------------------------------------------------------------- what the page asks for

    def _received(self, _: Any, content: Any, buffers: list[Any]) -> None:
        """A request of the page; every one is answered, so that it knows a kernel that is gone."""
        asked = {
            "ready": self._ready, "set": self._set, "peek": self._peek, "upload": self._uploaded,
            "sample": self._sample, "square": self._move_square, "save": self._save, "code": self._code,
            "points": self._points, "again": self._again,
        }  # fmt: skip
        if not isinstance(content, dict) or content.get("kind") not in asked:
            return
        asked[content["kind"]](content, buffers)
        self.page.send({"kind": "ack", "n": content.get("n", 0), "view": content.get("view")})

    @guarded
    def _ready(self, content: Mapping[str, Any], buffers: list[Any]) -> None:
        """A page has opened, at the view of its address: all that was sent of that before goes there, too."""
        self._go_to(State.link_in(content.get("query", "")))
        with self._lock:  # nothing newer may come before what it replaces
            shown = of(self.state)
            self.pages.there.clear()  # nothing lies in that one yet
            for kind, parcel in self.sent.items():
                if kind != "progress" and all(parcel.content.get(n, v) == v for n, v in shown.items()):
                    self.pages.send(parcel)
        self.go_live()

    @guarded
    def _go_to(self, link: str) -> None:
        """The view of an address, which may come when the kernel is at another; a link leaves out what is default."""
        if found := State.of_link(link):
            self.set(**{**vars(State()), **found})

    @guarded
    def _set(self, content: Mapping[str, Any], buffers: list[Any]) -> None:
        if self.view.empty:
            return
        self.go_live()
        self.tell("")
        self.set(**content["changes"])

    @guarded
    def _again(self, content: Mapping[str, Any], buffers: list[Any]) -> None:
        with self._lock:  # the page that it was to turn to does not lie there
            self.pages.there.clear()
            self.post(self.sent["page"])

    @guarded
    def _points(self, content: Mapping[str, Any], buffers: list[Any]) -> None:
        """The map of maps, once all layers are measured."""

        def send(job: Job) -> None:
            self.post(Parcel("points", **self.view.facts.points(job)))

        self.worker.submit("points", send, Worker.SOON, "measuring")

    @guarded
    def _peek(self, content: Mapping[str, Any], buffers: list[Any]) -> None:
        """The nine patches of a map below the pointer."""
        layer, channel = content.get("layer", self.state.layer), int(content["channel"])
        if layer in self.view.layers and 0 <= channel < self.view.count(layer):

            def look(step: Job) -> None:
                sheet = self.view.peek(layer, channel)
                step()
                parcel = Parcel("peek", layer=layer, channel=channel, view=content.get("view"))
                self.post(parcel.add(sheet=sheet), keep=False)

            self.worker.submit("peek", look)

    @guarded
    def _uploaded(self, content: Mapping[str, Any], buffers: list[Any]) -> None:
        self._take(str(content["name"]), bytes(buffers[0]))

    @guarded
    def _sample(self, content: Mapping[str, Any], buffers: list[Any]) -> None:
        i = int(content["place"])
        picture = to_picture(self.view.model.shown(self.view.photos.take([i]))[0])
        self._take(self.view.photos.name(i), encode(picture))

    def _take(self, name: str, content: bytes) -> None:
        self.tell("")
        with self._lock:
            self.mine.take(name, content)
            self.state = replace(self.state, image="", tab="image")
            self.arrange()
            self._request()

    @guarded
    def _move_square(self, content: Mapping[str, Any], buffers: list[Any]) -> None:
        self.mine.at = min(max(float(content["at"]), 0.0), 1.0)
        self._request()

    @guarded
    def _code(self, content: Mapping[str, Any], buffers: list[Any]) -> None:
        self.post(Parcel("code", words=self.view.code(self.state), view=content.get("view")), keep=False)

    @guarded
    def _save(self, content: Mapping[str, Any], buffers: list[Any]) -> None:
        def save(step: Job) -> None:
            name, words, encoded = self.keep_figure()
            parcel = Parcel("saved", name=name, words=words, view=content.get("view"))
            self.post(parcel.add(picture=encoded), keep=False)

        self.worker.submit("save", save, what="saving")


def explore(
    model: VisionModel, photos: ImageSet, top: TopK | None = None, *,
    others: Mapping[str, VisionModel | Callable[[], VisionModel]] | None = None,
    save_to: str | Path | None = ".", ahead: bool = True, link: str = "", **state: Any,
) -> Explorer:  # fmt: skip
    """Every layer and feature map at the end of a slider, in a notebook.

    Args:
        model, photos, top: a network, pictures, and what `mine` made of them; None mines them now (`mined`).
        others: models to compare with, by name; a model, or a function that loads it. Default: the bundled ones.
        save_to: folder for "save picture"; None for a link to download it and no file (nor of all maps at once).
        ahead: compute where the next step may lead while nothing else is to be done: maps beside this one, and the
            first of the layers around. They lie ready in the browser; 128 MiB in memory, and zfkit's cache, keep more.
        link: where to open, as the end of an address ("?layer=conv4&map=117"), which `Explorer.link` gives.
        state: any field of `State`: where to open, as ``layer="conv4", channel=117``; goes before the link. Without a
            layer or map it opens at one of a late layer that many pictures excite strongly.

    Raises ZfkitError for a table of other pictures or another network, and for a state that does not exist.

    >>> explore(model, photos, top, layer="conv4", channel=117)
    """
    expect_both(model, photos)
    first = changed(State(), **{**State.of_link(link), **state})
    if top is None:
        top = mined(model, photos)
    if top.layers:
        top.check(model, photos)
    view = ExplorerView(model, photos, top, compare.bundled(model) if others is None else others)
    if not (first.layer or first.channel or first.search or view.empty):
        first = replace(first, **view.worth_a_look())
    return Explorer(view, first, save_to=save_to, ahead=ahead)
