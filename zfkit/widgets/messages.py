"""What goes to the explorer's page: `about`, which it has to know once, and messages with their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets as T
from torch import nn

from ..frequency import power_spectrum
from . import compare, drawing
from .controls import encode
from .own import on_a_page
from .results import Grids, Sheet
from .state import COLOURS, METHODS, ORDERS, RULES, TABS, State
from .view import ExplorerView

SENTENCES = {
    "patch": "What the unit sees: the evidence. The rest is about this patch.",
    "deconvnet": "Zeiler & Fergus: rectifies what comes back. Reads like the patch's own edges.",
    "guided": "Springenberg et al.: keeps only what is positive both ways. The crispest; look for what it leaves out.",
    "gradient": "Simonyan et al.: what would change the activation most. Noisy, and faithful to the network.",
    "shuffled weights": "The control: deconvnet after shuffling every layer's weights. What it still shows comes from "
    "the picture, not from learning.",
}
NAMED = ("layer", "channel", "rule", "colours", "gain")  # what decides a page
_HERE = Path(__file__).parent


class Page(anywidget.AnyWidget):
    """The page in the browser: `about` says once what there is, `state` what is chosen; all else comes in messages."""

    _esm = _HERE / "explorer.js"
    _css = _HERE / "explorer.css"
    about = T.Dict().tag(sync=True)
    state = T.Dict().tag(sync=True)


class Parcel:
    """A message with its pictures: each stands in the content as the number of a buffer, and how it is cut apart."""

    def __init__(self, kind: str, **content: Any) -> None:
        self.content: dict[str, Any] = {"kind": kind, **content}
        self.buffers: list[bytes] = []

    def add(self, **pictures: Sheet | bytes | None) -> Parcel:
        """Put sheets or single pictures into it, by name; what is not there is None."""
        for name, picture in pictures.items():
            sheet = Sheet(picture, 1, 0, 0) if isinstance(picture, bytes) and picture else picture or None
            packed = None
            if isinstance(sheet, Sheet):
                packed = {"buffer": len(self.buffers), **sheet._asdict()}
                self.buffers.append(packed.pop("content"))
            self.content[name] = packed
        return self

    def is_as(self, other: Parcel | None) -> bool:
        """Does it say and show the same?"""
        return other is not None and (self.content, self.buffers) == (other.content, other.buffers)


class Pages:
    """Sends messages, and knows which pages lie in the browser: those shown last, and those that may come next.

    So a step is seen before the kernel hears of it, and a page that lies there is not sent again: "turn" names it.

    Attributes:
        there: pages by the map they belong to, the last one last. The browser keeps some more of them.
        new: did the pictures of what is shown go there only when they were to be shown?
    """

    MOST = 20

    def __init__(self, page: Page) -> None:
        self.page, self.there, self.new = page, dict[tuple[Any, ...], Parcel](), True

    def send(self, parcel: Parcel, ahead: bool = False) -> None:
        """A message; a page only to lie there, if it is `ahead`."""
        content, buffers = parcel.content, parcel.buffers
        if content["kind"] != "page":
            self.page.send(content, buffers)
            return
        words = {name: content[name] for name in NAMED}
        known = parcel.is_as(self.there.pop(tuple(words.values()), None))
        self.new = self.new if ahead else not known
        if not known:
            self.page.send({**content, "kind": "ahead"} if ahead else content, buffers)
        elif not ahead:
            self.page.send({"kind": "turn", **words})
        if not content.get("nothing"):  # which is a sentence of the search, not of a map
            self.there[tuple(words.values())] = parcel
        for name in list(self.there)[: -self.MOST]:
            del self.there[name]


def page_of(v: ExplorerView, state: State, grids: Grids) -> Parcel:
    """The nine patches and projections of a map."""
    words = grids._asdict()
    pictures = {name: words.pop(name) for name in ("projections", "patches")}
    words["scale"], words["refused"] = v.scale_line(state), v.refusals.get(state.layer, "")
    return Parcel("page", **of(state), **words).add(**pictures)


def facts_of(v: ExplorerView, state: State) -> Parcel:
    """What is known of a map in numbers, with the pictures along its histogram, and its filter in the first layer."""
    facts, layer, c = v.facts, state.layer, state.channel
    pictures: dict[str, Sheet | bytes | None] = {}
    if layer in facts.profiles:
        pictures["faces"] = v.small(facts.faces(layer, c))
    if (weights := facts.filter(layer, c)) is not None:
        pictures["filter"] = encode(drawing.coloured(v.model.shown(weights[None]))[0])
        pictures["spectrum"] = encode(drawing.grey(power_spectrum(weights.double())))
    return Parcel("facts", **of(state), **facts.of_map(layer, c)).add(**pictures)


def about(v: ExplorerView) -> dict[str, Any]:
    """What the page has to know once."""
    network = v.model.network
    rest = [(name, network.steps[name].module) for name in network.layers if name not in v.layers]
    layers = [
        {
            "name": name, "maps": v.count(name), "sees": v.facts.sees(name), "shape": v.shapes[name][1:],
            "refused": v.refusals.get(name, ""),
        }
        for name in v.layers
    ]  # fmt: skip
    return {
        "model": v.model.name, "count": len(v.photos), "source": v.facts.source, "where": v.photos.source,
        "layers": layers, "tabs": TABS, "rules": RULES, "colours": COLOURS, "orders": ORDERS, "shown": v.shown,
        "rest": [f"{name} {m.out_features}" for name, m in rest if isinstance(m, nn.Linear)],
        "versus": [METHODS, *v.others], "columns": compare.COLUMNS, "sentences": SENTENCES, "empty": v.empty,
        "alone": on_a_page(),
    }  # fmt: skip


def of(state: State) -> dict[str, Any]:
    """What tells the page which view a message belongs to."""
    return {name: getattr(state, name) for name in (*NAMED, "tab")}
