"""Feature maps forming under your fingers: one map of one layer, and a slider over the snapshots of a training.

`EvolutionView` makes the pictures and the words, without any widget; `EvolutionExplorer` puts controls beside them.
`zfkit.widgets.explore_evolution` opens it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import ipywidgets as W
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import LayerError, ZfkitError, unknown
from ..experiments.evolution import Evolution, LayerEvolution, evolution
from ..experiments.snapshots import Source
from ..figures.evolution import CHANGED, evolution_rgb
from ..figures.pictures import number
from ..images.imageset import ImageSet
from .drawing import fitted, to_picture
from .panel import Panel, Picker, Picture, Progress, Steps, choice, encode, guarded, row, slider, text

LARGE = 252  # side of the projection and of the photograph, in px
STRIP = 62  # of one snapshot in the film strip, in px
GAP, HEAD = 6, 20
STEP = STRIP + GAP + 3, 2 * STRIP + 24  # from one snapshot to the next, along and down
LARGE_SIZE = 2 * LARGE + 14, LARGE + HEAD
PER_ROW = 12  # snapshots in a line of the strip
SCALES = {"one for all epochs": "row", "each its own": "picture"}
_INK = "#14171c"


@dataclass(frozen=True)
class EvolutionState:
    """What is shown: a map of a layer, after an epoch. scale: "row", one for all epochs, or "picture", each its own."""

    layer: str
    channel: int
    epoch: int
    scale: str = "row"


class EvolutionView:
    """The pictures for an `EvolutionState`; knows nothing of widgets.

    Args:
        found: what `zfkit.evolution` returned; the maps that it projected can be looked at.
        images: the pictures, for their names; may be left out.
    """

    def __init__(self, found: Evolution, images: ImageSet | None = None) -> None:
        self.found, self.images = found, images
        self.layers = tuple(name for name, layer in found.layers.items() if len(layer.channels))
        if not self.layers:
            raise LayerError("no feature maps were projected; leave channels to chance, or name some")
        self._coloured: dict[tuple[str, str], Tensor] = {}

    def first(self, **options: Any) -> EvolutionState:
        """The state to begin with: first layer, its first map, the last epoch, but for `options`."""
        names = [f.name for f in fields(EvolutionState)]
        for name in options:
            if name not in names:
                raise ZfkitError(unknown("setting", name, names))
        layer = options.pop("layer", self.layers[0])
        channel = options.pop("channel", self.channels(layer)[0])
        return self.checked(
            EvolutionState(layer, channel, options.pop("epoch", self.found.epochs[-1]), **options)
        )

    def channels(self, layer: str) -> list[int]:
        """The maps of a layer that can be looked at."""
        if layer not in self.layers:
            raise LayerError(unknown("layer", layer, self.layers))
        return [int(c) for c in self.found[layer].channels]

    def checked(self, state: EvolutionState) -> EvolutionState:
        """The state itself, if there is such a thing. Raises LayerError or ZfkitError in a sentence otherwise."""
        if state.channel not in self.channels(state.layer):
            told = ", ".join(map(str, self.channels(state.layer)))
            raise LayerError(f"map {state.channel!r} of {state.layer!r} was not projected; there are: {told}")
        if state.epoch not in self.found.epochs:
            told = ", ".join(map(str, self.found.epochs))
            raise ZfkitError(f"there is no snapshot of epoch {state.epoch!r}; there are: {told}")
        if state.scale not in SCALES.values():
            raise ZfkitError(unknown("scale", state.scale, SCALES.values()))
        return state

    def _at(self, state: EvolutionState) -> tuple[LayerEvolution, int, int]:
        """The layer, and the place of the map and of the epoch in its tensors."""
        place = self.channels(state.layer).index(state.channel)
        return self.found[state.layer], place, self.found.epochs.index(state.epoch)

    def pictures(self, state: EvolutionState) -> tuple[Tensor, Tensor]:
        """Projections, coloured, and photographs of the map at all snapshots, uint8 (E, 3, S, S) each."""
        layer, m, _ = self._at(state)
        key = state.layer, state.scale
        if key not in self._coloured:
            self._coloured[key] = evolution_rgb(layer, state.scale)  # type: ignore[arg-type]
        return self._coloured[key][m], layer.photo[m]

    def large(self, state: EvolutionState) -> Image.Image:
        """Projection and photograph after the epoch."""
        _, _, e = self._at(self.checked(state))
        sheet = Image.new("RGB", LARGE_SIZE, "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
        heads = (f"{state.layer} map {state.channel}, epoch {state.epoch}: projection", "the picture there")
        for i, (words, shown) in enumerate(zip(heads, self.pictures(state), strict=True)):
            draw.text((i * (LARGE + 14), 2), words, _INK, font)
            sheet.paste(fitted(to_picture(shown[e]), LARGE), (i * (LARGE + 14), HEAD))
        return sheet

    @property
    def grid(self) -> tuple[int, int]:
        """Lines and columns of the film strip."""
        E = len(self.found.epochs)
        return -(-E // PER_ROW), min(E, PER_ROW)

    def strip(self, state: EvolutionState) -> Image.Image:
        """All snapshots, projection above photograph, a bar where the picture changed, the epoch's framed."""
        layer, _, e = self._at(self.checked(state))
        lines, columns = self.grid
        sheet = Image.new("RGB", (columns * STEP[0], lines * STEP[1]), "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
        changed, pictures = layer.changed[state.channel], self.pictures(state)
        for i, epoch in enumerate(self.found.epochs):
            left, top = i % columns * STEP[0] + GAP, i // columns * STEP[1]
            draw.text((left + STRIP / 2, top), str(epoch), _INK if i == e else "#7a808c", font, anchor="ma")
            for k, shown in enumerate(pictures):
                sheet.paste(fitted(to_picture(shown[i]), STRIP), (left, top + 16 + k * (STRIP + 1)))
            if changed[i]:
                draw.rectangle((left - 5, top + 16, left - 3, top + 16 + 2 * STRIP), fill=CHANGED)
            if i == e:
                frame = (left - 2, top + 14, left + STRIP + 1, top + 18 + 2 * STRIP)
                draw.rectangle(frame, outline=_INK, width=2)
        return sheet

    def sheet(self, state: EvolutionState) -> Image.Image:
        """`large` above `strip`: what is on the page, as one picture."""
        parts = self.large(state), self.strip(state)
        whole = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts) + 10), "white")
        whole.paste(parts[0], (0, 0))
        whole.paste(parts[1], (0, parts[0].height + 10))
        return whole

    def words(self, state: EvolutionState) -> str:
        """The same in numbers, in two or three sentences."""
        layer, _, e = self._at(self.checked(state))
        c, last = state.channel, e == len(self.found.epochs) - 1
        said = f"After epoch {state.epoch}, map {c} of {state.layer} "
        if not bool(layer.active[c, e]):
            said += "is active on no picture. "
        else:
            image = int(layer.image[c, e])
            name = f"picture {image}" if self.images is None else self.images.name(image)
            said += f"answers most, with {number(layer.value[c, e])}, to {name}"
            said += ", another one than at the snapshot before. " if bool(layer.changed[c, e]) else ". "
        if len(self.found.epochs) == 1:
            return said + "There is one snapshot, so nothing to compare it with."
        if last:
            return said + "This is the last snapshot, with which the others are compared."
        similarity, cka, distance = (
            float(layer.similarity[c, e]),
            float(layer.cka[e]),
            float(layer.distance[e]),
        )
        if not math.isnan(similarity):
            said += f"Its similarity to the last snapshot is {similarity:.2f}, "
        said += f"that of the whole layer (CKA) {cka:.2f}"
        if not math.isnan(distance):
            said += f"; of the way from first to last weights {100 * distance:.0f} % are left"
        return said + "."


class EvolutionExplorer(Panel):
    """Pick a layer and a map, move or play through the epochs; `explore_evolution` opens it.

    `state` says what is shown (`EvolutionState`), `set` changes it from code, `wait` waits until it is shown,
    `snapshot` is what is on the page as one picture, and `found` the `Evolution`, once there is one.
    """

    def __init__(
        self, source: Evolution | Source, images: ImageSet | None = None, *,
        layer: str | None = None, channel: int | None = None, epoch: int | None = None, scale: str = "row",
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__("How does a feature form?")
        self.add_class("zfkit-evolution")
        self._wanted = {
            k: v for k, v in (("layer", layer), ("channel", channel), ("epoch", epoch)) if v is not None
        } | {"scale": scale}
        self._setting = False
        self.view: EvolutionView | None = None
        self._state: EvolutionState | None = None
        self._build()
        if isinstance(source, Evolution):
            if options:
                raise ZfkitError(
                    f"{next(iter(options))} is a setting of zfkit.evolution, and this evolution is there already"
                )
            self._open(source, images)
        else:
            if images is None:
                raise ZfkitError(
                    "to look for the strongest activations, the explorer needs pictures: images=..."
                )
            self.picture.say("Looking through the snapshots; the pictures will stand here.")
            self.worker.submit("evolution", self._look(source, images, options))

    @property
    def found(self) -> Evolution:
        """What is looked at. Raises ZfkitError before it is computed."""
        if self.view is None:
            raise ZfkitError("the snapshots are not looked through yet: call .wait() first")
        return self.view.found

    @property
    def state(self) -> EvolutionState:
        """What is shown. Raises ZfkitError before it is computed."""
        if self._state is None:
            raise ZfkitError("the snapshots are not looked through yet: call .wait() first")
        return self._state

    def _build(self) -> None:
        self.layer = choice("layer", [], help="which layer")
        self.channel = choice("map", [], help="which feature map")
        self.scale = choice("scale", SCALES.items(), value="row", help="of the projections' colours")
        self.epoch = slider(
            "epoch", 0, 0, value=0, readout=False, help="after which epoch: number of the snapshot"
        )
        self.told = text("", "epoch-told")
        self.play = W.Play(
            min=0, max=0, step=1, interval=700, tooltip="play through the epochs", show_repeat=True
        )
        W.link((self.play, "value"), (self.epoch, "value"))
        for control, name in ((self.layer, "layer"), (self.channel, "channel"), (self.scale, "scale")):
            control.add_class(f"zfkit-{name}")
            control.observe(lambda change, name=name: self._moved(name, change["new"]), "value")
        self.epoch.add_class("zfkit-epoch")
        self.epoch.observe(self._stepped, "value")
        self.picture = Picture("a map's strongest activation after an epoch", *LARGE_SIZE)
        self.words = text("", "words")
        self.words.layout.max_width = "860px"
        self.controls = row(
            W.VBox([self.layer, self.channel, self.scale], layout=W.Layout(width="260px")),
            W.VBox([self.epoch, self.told, self.play], layout=W.Layout(width="340px")),
        )
        self.legend = text(
            "<p class='zfkit-soft'>Grey is 0. Above: every snapshot, the chosen one framed; click one. An orange bar: "
            "another picture excites the map most than at the snapshot before.</p>"
        )
        self._enable(False)
        self.content.children = [self.controls, self.picture, self.words]

    def _enable(self, on: bool) -> None:
        for control in (self.layer, self.channel, self.scale, self.epoch, self.play):
            control.disabled = not on

    def _look(self, source: Source, images: ImageSet, options: Mapping[str, Any]) -> Steps:
        yield Progress("looking at the snapshots", 0.0, slow=True)
        try:
            found = evolution(source, images, **options, progress=False)
            self._open(found, images)
        except ZfkitError as error:
            self.picture.say(str(error))  # in place of the picture that there will not be
            raise

    def _open(self, found: Evolution, images: ImageSet | None) -> None:
        view = EvolutionView(found, images)
        state = view.first(**self._wanted)
        self.view, self._state = view, state
        self.tell(" ".join(f"Missing: {told}." for told in found.missing))
        self.strip = Picker("snapshots of the training", *view.strip(state).size, sliders=False)
        self.strip.grid(*view.grid)
        self.strip.on_pick(self._picked)
        self.watch(self.strip.place)
        self.content.children = [self.controls, self.picture, self.words, self.strip, self.legend]
        self._arrange()
        self._enable(True)
        self._request()

    def set(self, **changes: Any) -> EvolutionExplorer:
        """Change what is shown: layer, channel, epoch, scale. Another layer begins with its first map."""
        state, view = self.state, self.view
        assert view is not None
        names = [f.name for f in fields(EvolutionState)]
        for name in changes:
            if name not in names:
                raise ZfkitError(unknown("setting", name, names))
        if changes.get("layer", state.layer) != state.layer and "channel" not in changes:
            changes["channel"] = view.channels(changes["layer"])[0]
        self._state = view.checked(replace(state, **changes))
        self._arrange()
        self._request()
        return self

    def wait(self, timeout: float = 60.0) -> bool:
        """Until what is shown is what the state says; False if that took longer than `timeout` seconds."""
        return self.worker.wait(timeout)

    def snapshot(self) -> Image.Image:
        """What is on the page, as one picture; also for notebooks that are read without a kernel."""
        self.found  # noqa: B018  (raises where there is none yet)
        assert self.view is not None
        return self.view.sheet(self.state)

    @guarded
    def _moved(self, name: str, value: Any) -> None:
        if not self._setting and value is not None:
            self.tell("")
            self.set(**{name: value})

    @guarded
    def _picked(self, line: int, column: int) -> None:
        place = line * self.strip.place.cols + column
        if place < len(self.found.epochs):  # the last line may not be full
            self.tell("")
            self.set(epoch=self.found.epochs[place])
        else:
            self._arrange()

    @guarded
    def _stepped(self, change: Any) -> None:
        if not self._setting and self.view is not None:
            self.tell("")
            self.set(epoch=self.found.epochs[change["new"]])

    def _arrange(self) -> None:
        """Controls as the state says, without telling."""
        view, state = self.view, self.state
        assert view is not None
        self._setting = True
        try:
            for control, options, value in (
                (self.layer, view.layers, state.layer),
                (self.channel, tuple(view.channels(state.layer)), state.channel),
            ):
                if tuple(control.options) != tuple(options):
                    control.options = options
                control.value = value
            self.scale.value = state.scale
            place, most = view.found.epochs.index(state.epoch), len(view.found.epochs) - 1
            self.epoch.max = self.play.max = most
            self.epoch.value = place
            self.strip.pick(*divmod(place, view.grid[1]))
            self.told.value = (
                f"<p class='zfkit-number'>epoch {state.epoch}, snapshot {place + 1} of {most + 1}</p>"
            )
        finally:
            self._setting = False

    def _request(self) -> None:
        self.worker.submit("picture", self._show(self.state))

    def _show(self, state: EvolutionState) -> Steps:
        assert self.view is not None
        large, strip = encode(self.view.large(state)), encode(self.view.strip(state))
        said = self.view.words(state)
        yield None  # a newer request ends this one here
        self.picture.show(large, said)
        self.strip.show(strip)
        self.words.value = f"<p role='status'>{html.escape(said)}</p>"


def explore_evolution(
    source: Evolution | Source, images: ImageSet | None = None, **options: Any
) -> EvolutionExplorer:
    """An epoch slider and a Play button over the snapshots of a training.

    Args:
        source: what `zfkit.evolution` returned, which opens at once; or a `Run`, a folder of snapshots, or pairs
            (epoch, VisionModel), which are looked through first, with a progress bar.
        images: the pictures; needed for snapshots, and for an `Evolution` only to name them.
        options: what to begin with: layer, channel, epoch, scale ("row", one for all epochs, or "picture"). For
            snapshots also those of `zfkit.evolution`: channels, maps, epochs, ...

    Raises LayerError or ZfkitError for a layer, map or epoch that does not exist. What is wrong with snapshots that
    are still to be looked through is told in place of the pictures, and kept in `errors`.

    >>> zfkit.widgets.explore_evolution("runs/mine", zfkit.load_images("textures", size=64), maps=12)
    """
    return EvolutionExplorer(source, images, **options)
