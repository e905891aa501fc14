"""The parts of the explorer's page: controls on the left, and a page for each tab.

Each part makes its widgets and shows what it is given; none of them knows what is computed, or when. `Explorer` says
what happens when a control is moved.
"""

from __future__ import annotations

import html
from collections.abc import Callable

import ipywidgets as W
import numpy as np
from torch import nn

from ..figures.pictures import number
from . import drawing
from .controls import Picker, Picture, button, choice, row, slider, styled, text, write
from .drawing import GAP, GRID, LARGE
from .facts import Facts
from .own import Own
from .state import GAINS, METHODS, ORDERS, RULES, State
from .view import COLUMNS, COMPARED, Compared, Detail, ExplorerView, Grids

TILES = (0, 0, 1 + GAP / GRID, 1 + GAP / GRID)  # area of a grid's tiles, each with the gap behind it
SENTENCES = {
    "patch": "What the unit sees: the evidence. The rest is about this patch.",
    "deconvnet": "Zeiler & Fergus: rectifies what comes back. Reads like the patch's own edges.",
    "guided": "Springenberg et al.: keeps only what is positive both ways. The crispest; look for what it leaves out.",
    "gradient": "Simonyan et al.: what would change the activation most. Noisy, and faithful to the network.",
    "shuffled weights": "The control: deconvnet after shuffling every layer's weights. What it still shows comes from "
    "the picture, not from learning.",
}


def _figure(words: W.Widget, *pictures: W.Widget) -> W.VBox:
    return styled(W.VBox([words, *pictures]), "figure")


def _list(captions: tuple[str, ...]) -> str:
    return f"<ol>{''.join(f'<li>{html.escape(caption)}</li>' for caption in captions)}</ol>"


def _shrinks(picture: Picture, width: int) -> None:
    """Let a picture be `width` px wide where there is room, and narrower, in proportion, where there is not."""
    for part in (picture.layout, picture.image.layout):
        part.width, part.max_width, part.height = "100%", f"{width}px", "auto"


class Controls:
    """What is looked at: network, layer, map, order, search, rule and gain; and what to keep of it."""

    def __init__(
        self,
        view: ExplorerView,
        state: State,
        step: Callable[[int], None],
        draw: Callable[[], None],
        save: Callable[[], None],
    ) -> None:
        self.view = view
        names = [(f"{name}  {'×'.join(map(str, view.shapes[name]))}", name) for name in view.layers]
        self.strip = text("", "strip")
        self.layers = styled(W.ToggleButtons(options=names, value=state.layer if names else None), "layers")
        self.map = slider("map", 0, 1, help="feature map: place in the order", readout=False)
        self.number = styled(
            W.BoundedIntText(value=0, min=0, max=0, tooltip="feature map: number"), "number-box"
        )
        self.of = text("", "of")
        moves = row(
            button("‹", "previous map", lambda _: step(-1), "previous"),
            self.number,
            button("›", "next map", lambda _: step(1), "next"),
            button("random", "a map drawn at random", lambda _: draw(), "random"),
            name="moves",
        )
        self.order = choice("order", ORDERS, value=state.order, help="order of the maps on the slider")
        self.find = styled(
            W.Text(
                value=state.search, placeholder="class or photograph", description="find",
                continuous_update=False, tooltip="find maps by class or photograph",
            ),
            "find",
        )  # fmt: skip
        self.rule = choice("rule", RULES, value=state.rule, help="rule of the way back")
        self.gain = slider(
            "gain", *GAINS, value=state.gain, step=0.25, help="gain: contrast of projections", readout_format=".2f"
        )  # fmt: skip
        self.saved = text("", "saved")
        layout = W.Layout(width="100%", height="150px")
        self.code_area, self.code_copy = (
            W.Textarea(layout=layout, tooltip="code of this view"),
            text("", "copy"),
        )
        self.code = styled(W.VBox([self.code_area, self.code_copy], layout=W.Layout(display="none")), "code")
        keep = row(
            button("save picture", "save this view as a PNG with a caption", lambda _: save(), "save"),
            button("copy code", "the lines of code that open this view", self._toggle_code, "code-button"),
        )
        network = styled(W.Box([self.strip, self.layers]), "network")
        parts = [network, text(self._rest(), "rest"), styled(self.map, "map"), self.of, moves, self.order,
                 self.find, self.rule, self.gain, keep, self.saved, self.code]  # fmt: skip
        self.box = styled(W.VBox(parts), "controls")

    def arrange(self, state: State, channels: np.ndarray) -> None:
        """Every control as the state says; `channels` are those on the slider."""
        C, n, at = self.view.count(state.layer), len(channels), _place(channels, state.channel)
        self.layers.value = state.layer
        with self.map.hold_sync():
            self.map.max, self.map.value, self.map.disabled = max(n - 1, 0), at, n < 2
        with self.number.hold_sync():
            self.number.max, self.number.value = C - 1, state.channel
        words = f"{C} maps, 0 to {C - 1}"
        if state.search.strip():
            words = f"{n} of {C} maps found" + (f"; this is the {_th(at + 1)}" if n else "")
        elif self.view.facts.lacks(state):
            words += f"; {state.order} is measured …"
        elif state.order != "index":
            words += f"; this is the {_th(at + 1)} by {state.order}"
        write(self.of, f'<p class="zfkit-soft">{html.escape(words)}</p>')
        blocks = [(name, shape[0], (*shape, 1)[1]) for name, shape in self.view.shapes.items()]
        write(self.strip, drawing.strip(blocks, state.layer))
        self.order.value, self.rule.value, self.gain.value = state.order, state.rule, state.gain
        self.find.value, self.saved.value = state.search, ""
        self._state = state
        if self.code.layout.display != "none":
            self._fill_code()

    def _rest(self) -> str:
        """The fully connected layers behind those that were mined."""
        network = self.view.model.network
        rest = [(name, network.steps[name].module) for name in network.layers if name not in self.view.layers]
        wide = [f"{name} {module.out_features}" for name, module in rest if isinstance(module, nn.Linear)]
        return f'<p class="zfkit-soft">→ {" → ".join(html.escape(w) for w in wide)}</p>' if wide else ""

    def _toggle_code(self, _: object) -> None:
        hidden = self.code.layout.display == "none"
        self.code.layout.display = None if hidden else "none"
        if hidden:
            self._fill_code()

    def _fill_code(self) -> None:
        self.code_area.value = code = self.view.code(self._state)
        self.code_copy.value = (
            f'<button class="zfkit-copy-button" data-code="{html.escape(code)}" onclick="navigator.clipboard.writeText('
            "this.dataset.code).then(() => { this.textContent = 'copied'; }, () => { this.textContent = "
            "'select the lines above and press Ctrl+C'; })\">copy</button>"
        )


class MapsPage:
    """A map's nine projections and patches, one of them large, and what is known of the map."""

    def __init__(self, view: ExplorerView, state: State) -> None:
        self.view = view
        self.heading, self.what = text("", "heading"), text("", "what")
        self.projections, self.patches = (
            Picker(label, GRID, GRID, sliders=False, hover=True)
            for label in (
                "projections of the strongest activations",
                "patches of the pictures that excite the map most",
            )
        )
        self.columns = int(np.ceil(np.sqrt(view.shown)))
        for picker, name in ((self.projections, "projections"), (self.patches, "patches")):
            styled(picker, name).grid(-(-view.shown // self.columns), self.columns, TILES)
        self.ranks = styled(
            W.ToggleButtons(options=[(str(i + 1), i) for i in range(view.shown)], value=state.rank), "ranks"
        )
        self.scale, self.words, self.lens = text("", "scale"), text("", "told"), text("", "lens")
        self.photo = styled(Picture("photograph with the unit's receptive field", LARGE, LARGE), "photo")
        self.heat = styled(Picker("place on the feature map", LARGE, LARGE), "heat")
        self.whole = styled(Picture("projection on the whole picture", LARGE, LARGE), "whole")
        self.maximum = styled(
            W.Button(description="back to the maximum", tooltip="project the unit that was found again"),
            "button", "maximum",
        )  # fmt: skip
        self.facts = text("", "facts")
        self.near = [styled(W.Button(), "button", "near") for _ in range(3)]
        alike = text("<h4>Maps that respond most alike</h4>")
        self.near_box = W.VBox([alike, row(*self.near, name="nearest")])
        grids = row(
            _figure(self.what, self.projections),
            _figure(text("<b>patches</b> · what those units see", "what"), self.patches),
            name="grids",
        )
        large = row(
            _figure(text("<b>photograph</b> · what it sees", "what"), self.photo),
            _figure(text("<b>map</b> · click to move", "what"), self.heat),
            _figure(self.lens, self.whole, self.maximum),
            name="large",
        )
        middle = W.VBox([self.heading, grids, self.ranks, self.scale, large, self.words])
        right = W.VBox([self.facts, self.near_box])
        self.box = styled(W.Box([styled(middle, "middle"), styled(right, "right")]), "page")

    def say(self, sentence: str) -> None:
        """A sentence in place of all pictures."""
        for picture in (self.projections, self.patches, self.photo, self.heat, self.whole):
            picture.say(sentence)

    def arrange(self, state: State) -> None:
        """Marks on grids and map as the state says."""
        self.ranks.value = state.rank
        for picker in (self.projections, self.patches):
            picker.pick(*divmod(state.rank, self.columns))
        shape = self.view.shapes[state.layer][1:]
        if len(shape) == 2:
            field = self.view.facts.fields[state.layer]
            self.heat.grid(shape[0], shape[1], drawing.map_area(field, shape, self.view.side))
            image, place = self.view.unit(state)
            self.heat.pick(*(place if image >= 0 else (-1, -1)))

    def show_grids(self, state: State, grids: Grids) -> None:
        """Both grids, or the sentence in their place."""
        name = f"{self.view.model.name} {state.layer} map {state.channel}"
        if grids.sentence:
            self.projections.say(grids.sentence)
            self.patches.say("No picture excites it.")
        else:
            self.projections.show(grids.projections, f"projections of the strongest activations of {name}")
            self.patches.show(grids.patches, f"patches that excite {name} most")

    def show_words(self, state: State, grids: Grids, rank: int) -> None:
        """What is written around the grids; `rank` is the one to light, where the state has moved on."""
        write(self.heading, f"<b>{html.escape(state.layer)}</b> · map <b>{state.channel}</b>")
        write(self.what, f"<b>projections</b> · {state.rule}")
        with self.ranks.hold_sync():
            captions = grids.captions or ("—",) * self.view.shown
            self.ranks.options = [(f"{i + 1}  {caption}", i) for i, caption in enumerate(captions)]
            self.ranks.value = rank
        own = f" This one: ±{number(grids.scales[state.rank])}." if grids.scales else ""
        write(self.scale, f"<p>{html.escape(self.view.scale_line(state) + own)}</p>")

    def show_detail(self, state: State, detail: Detail) -> None:
        """One of the nine, large."""
        if detail.sentence:
            for picture in (self.photo, self.heat, self.whole):
                picture.say(detail.sentence)
            self.words.value, self.lens.value = "", "<b>projection</b>"
            return
        self.photo.show(detail.photo)
        self.heat.grid(*detail.shape, detail.area)
        self.heat.pick(*detail.position)
        self.heat.show(detail.heat)
        self.whole.show(detail.whole)
        self.lens.value = "<b>projection</b>" + (f" · lens {detail.zoom:.1f}×" if detail.zoom else "")
        self.words.value = f"<p>{html.escape(detail.words)} Full colour at ±{number(detail.scale)}.</p>"
        self.maximum.layout.visibility = "visible" if state.position is not None else "hidden"

    def show_facts(self, state: State, facts: Facts) -> None:
        """What is known of the map, and the maps that respond most alike."""
        write(self.facts, facts.html(state))
        near = facts.nearest(state)
        self.near_box.layout.display = None if near else "none"
        for control, (channel, r) in zip(self.near, near, strict=False):
            control.description = f"{channel} ({r:.2f})"
            control.tooltip = f"to map {channel}; correlation over the pictures {r:.2f}"


class OwnPage:
    """A picture of your own: what the network calls it, and the maps of the layer that it excites most."""

    def __init__(self, state: State) -> None:
        self.upload = styled(
            W.FileUpload(
                accept="image/*", multiple=False, description="choose a picture",
                tooltip="upload a picture of your own",
            ),
            "upload", "button",
        )  # fmt: skip
        self.path = styled(
            W.Text(
                value=state.image, placeholder="or its path, then Enter", continuous_update=False,
                tooltip="path of a picture of your own",
            ),
            "path",
        )  # fmt: skip
        self.picture = styled(Picture("your own picture", LARGE, LARGE), "own")
        self.note, self.probabilities = text("", "note"), text("", "probabilities")
        self.strongest = styled(
            Picker("maps that your picture excites most", GRID, GRID, sliders=False), "strongest"
        )
        self.strongest.grid(3, 3, TILES)
        self.windows = styled(Picture("what those units see of your picture", GRID, GRID), "windows")
        self.what, self.captions = text("", "what"), text("", "captions")
        self.channels: tuple[int, ...] = ()  # of the tiles
        called = W.VBox([text("<h4>What the network calls it</h4>"), self.probabilities])
        left = styled(W.Box([W.VBox([self.picture, self.note]), called]), "own-left")
        grids = row(
            _figure(self.what, self.strongest),
            _figure(text("<b>your picture</b> · what those units see", "what"), self.windows),
            name="grids",
        )
        seen = styled(W.VBox([grids, self.captions]), "own-seen")
        choose = row(self.upload, self.path, name="own-choose")
        self.box = styled(W.VBox([choose, row(left, seen, name="own-body")]), "own-page")

    def invite(self) -> None:
        """Before there is a picture."""
        self.channels = ()
        self.picture.say("No picture yet.")
        self.strongest.say(
            "Choose a picture, or give its path: here you will see which maps of the layer it excites most."
        )
        self.windows.say("And here, what those units see of it.")
        self.note.value = self.captions.value = ""
        self.probabilities.value = '<p class="zfkit-soft">Its classes come here.</p>'

    def show(self, own: Own, name: str, source: str, scale_line: str) -> None:
        """What was found, or the sentence that says what is wrong; `source` is of the mined pictures."""
        self.channels = own.channels
        self.note.value = f'<p class="zfkit-soft">{html.escape(own.note)}</p>'
        self.probabilities.value = own.probabilities
        self.captions.value = ""
        if own.picture:
            self.picture.show(own.picture, f"your picture {name}")
        else:
            self.picture.say(own.sentence)
        if own.sentence:
            self.strongest.say(own.sentence)
            self.windows.say("Nothing to show.")
            return
        self.strongest.show(own.strongest)
        self.windows.show(own.windows)
        self.captions.value = (
            f'{_list(own.captions)}<p class="zfkit-soft">Activation, and how much that is of the strongest in '
            f"{html.escape(source)}. Click a tile to go to its map. {html.escape(scale_line)}</p>"
        )


class ComparePage:
    """The same units by every method, or the strongest maps of two models in one photograph."""

    def __init__(self, view: ExplorerView, state: State) -> None:
        names = [("methods", METHODS), *((f"with {name}", name) for name in view.others)]
        self.versus = choice("compare", names, value=state.versus, help="what to compare")
        self.words, self.scale = text("", "heading"), text("", "scale")
        width, height = (n * (COMPARED + GAP) - GAP for n in (len(COLUMNS), min(3, view.shown)))
        self.compared = styled(Picture("the same units by every method", width, height), "compared")
        _shrinks(self.compared, width)
        heads = "".join(f"<div><b>{name}</b><p>{html.escape(SENTENCES[name])}</p></div>" for name in COLUMNS)
        style = f"grid-template-columns: repeat({len(COLUMNS)}, minmax(0, 1fr)); gap: {GAP}px; max-width: {width}px"
        head = text(f'<div class="zfkit-columns" style="{style}">{heads}</div>')
        self.methods = styled(W.VBox([head, self.compared]), "compare-methods")
        self.photo = Picture("photograph that both models see", LARGE, LARGE)
        self.pair = [
            styled(Picture(f"strongest maps of model {i}", GRID, GRID), f"model-{i}") for i in (1, 2)
        ]
        self.titles = [text("", "what") for _ in self.pair]
        self.captions = [text("", "captions") for _ in self.pair]
        for picture in self.pair:
            _shrinks(picture, GRID)
        both = zip(self.titles, self.pair, self.captions, strict=True)
        read = (
            "<p>Each grid holds the nine maps of a layer that this photograph excites most. Below it, tile by tile: "
            "map\u00a0·\u00a0activation.</p><p>Maps of two networks share nothing but the photograph; compare what "
            "they pick, not their numbers.</p>"
        )
        shared = row(self.photo, text(read, "read"), name="shared")
        models = styled(W.Box([_figure(*each) for each in both]), "models")
        self.models = styled(W.VBox([shared, models]), "compare-models")
        self.box = styled(
            W.VBox([self.versus, self.words, self.methods, self.models, self.scale]), "compare-page"
        )

    def begin(self, words: str, scale_line: str, methods: bool) -> None:
        """Words and frames of a comparison, before it is computed."""
        self.words.value, self.scale.value = words, f"<p>{html.escape(scale_line)}</p>"
        self.methods.layout.display = None if methods else "none"
        self.models.layout.display = "none" if methods else None

    def show_methods(self, encoded: bytes, sentence: str) -> None:
        """The grid of methods, or a sentence."""
        if sentence:
            self.compared.say(sentence)
        else:
            self.compared.show(encoded)

    def show_models(self, compared: list[Compared]) -> None:
        """Two models' grids, or sentences."""
        for each, title, picture, captions in zip(
            compared, self.titles, self.pair, self.captions, strict=True
        ):
            title.value, captions.value = f"<b>{html.escape(each.title)}</b>", _list(each.captions)
            if each.sentence:
                picture.say(each.sentence)
            else:
                picture.show(each.picture, f"strongest maps of {each.title}")


def _place(channels: np.ndarray, channel: int) -> int:
    """Where on the slider a map is; 0 where it is not."""
    at = np.flatnonzero(channels == channel)
    return int(at[0]) if len(at) else 0


def _th(n: int) -> str:
    """1st, 2nd, 3rd, 4th ..."""
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"
