"""Feature maps forming under your fingers: one map of one layer, and a slider over the snapshots of a training.

`EvolutionView` makes the pictures and the words, without any widget; `EvolutionExplorer` puts controls beside them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import chain
from typing import Any

import ipywidgets as W
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..batching import OnStep
from ..checks import one_of
from ..checksums import digest, read_kept, write_kept
from ..deconv.rules import RULES, Options
from ..errors import LayerError, ZfkitError
from ..experiments.evolution import Evolution, LayerEvolution, evolution
from ..experiments.snapshots import Source, snapshots_of
from ..figures.evolution import CHANGED, evolution_rgb
from ..figures.pictures import number, to_picture
from ..files import cache_folder
from ..images.imageset import ImageSet
from ..nets.model import VisionModel
from .controls import Picker, Picture, choice, encode, joined, row, slider, text
from .drawing import fitted
from .kept import FORMAT
from .panel import Panel, changed
from .worker import Job

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
        layer = options.get("layer", self.layers[0])
        state = EvolutionState(layer, self.channels(layer)[0], self.found.epochs[-1])
        return self.checked(changed(state, **options))

    def channels(self, layer: str) -> list[int]:
        """The maps of a layer that can be looked at."""
        one_of(layer, "layer", self.layers, LayerError)
        return [int(c) for c in self.found[layer].channels]

    def checked(self, state: EvolutionState) -> EvolutionState:
        """The state itself. Raises LayerError or ZfkitError for a map, epoch or scale that is not there."""
        channels, epochs = (", ".join(map(str, n)) for n in (self.channels(state.layer), self.found.epochs))
        if state.channel not in self.channels(state.layer):
            raise LayerError(
                f"map {state.channel} of {state.layer!r} was not projected; there are: {channels}"
            )
        if state.epoch not in self.found.epochs:
            raise ZfkitError(f"there is no snapshot of epoch {state.epoch!r}; there are: {epochs}")
        one_of(state.scale, "scale", SCALES.values())
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
        return joined([self.large(state), self.strip(state)], gap=10)

    def words(self, state: EvolutionState) -> str:
        """The same in numbers, in two or three sentences."""
        layer, _, e = self._at(self.checked(state))
        words = f"After epoch {state.epoch}, map {state.channel} of {state.layer} "
        unit = state.channel, e
        if not bool(layer.active[unit]):
            words += "is active on no picture. "
        else:
            image = int(layer.image[unit])
            name = f"picture {image}" if self.images is None else self.images.name(image)
            words += f"answers most, with {number(layer.value[unit])}, to {name}"
            words += ", another one than at the snapshot before. " if bool(layer.changed[unit]) else ". "
        if len(self.found.epochs) == 1:
            return words + "There is one snapshot, so nothing to compare it with."
        if e == len(self.found.epochs) - 1:
            return words + "This is the last snapshot, with which the others are compared."
        similarity, distance = float(layer.similarity[unit]), float(layer.distance[e])
        if not math.isnan(similarity):
            words += f"Its similarity to the last snapshot is {similarity:.2f}, "
        words += f"that of the whole layer (CKA) {float(layer.cka[e]):.2f}"
        if not math.isnan(distance):
            words += f"; of the way from first to last weights {100 * distance:.0f} % are left"
        return words + "."


class EvolutionExplorer(Panel):
    """An epoch slider and a Play button over the snapshots of a training.

    `found` is the `Evolution`, once there is one.

    Args:
        source: what `zfkit.evolution` returned, which opens at once; or a `Run`, a folder of snapshots, or pairs
            (epoch, VisionModel), which are looked through first, with a progress bar; what was found is kept for
            the next time.
        images: the pictures; needed for snapshots, and for an `Evolution` only to name them.
        options: what to begin with: layer, channel, epoch, scale ("row", one for all epochs, or "picture"). For
            snapshots also those of `zfkit.evolution`: channels, maps, epochs, ...

    Raises LayerError or ZfkitError for a layer, map or epoch that does not exist. What is wrong with snapshots that
    are still to be looked through is told in place of the pictures, and kept in `errors`.

    >>> zfkit.widgets.explore_evolution("runs/mine", zfkit.load_images("textures", size=64), maps=12)
    """

    def __init__(
        self, source: Evolution | Source, images: ImageSet | None = None, *,
        layer: str | None = None, channel: int | None = None, epoch: int | None = None, scale: str = "row",
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__("How does a feature form?")
        first = {"layer": layer, "channel": channel, "epoch": epoch, "scale": scale}
        self._first = {name: value for name, value in first.items() if value is not None}
        self._view: EvolutionView | None = None
        self._build()
        if isinstance(source, Evolution):
            if options:
                name = next(iter(options))
                raise ZfkitError(f"{name} is a setting of zfkit.evolution, whose result this is already")
            self._open(source, images)
        elif images is None:
            raise ZfkitError("to look for the strongest activations, the explorer needs pictures: images=...")
        else:
            self.picture.say("Looking through the snapshots; the pictures will stand here.")
            look = lambda step: self._look(source, images, options, step)  # noqa: E731
            self.worker.submit("evolution", look, what="looking through the snapshots")

    @property
    def view(self) -> EvolutionView:
        """What computes the pictures. Raises ZfkitError before the snapshots are looked through."""
        if self._view is None:
            raise ZfkitError("the snapshots are not looked through yet: call .wait() first")
        return self._view

    @property
    def found(self) -> Evolution:
        """What is looked at. Raises ZfkitError before it is computed."""
        return self.view.found

    def _build(self) -> None:
        self.layer = choice("layer", [], help="which layer")
        self.channel = choice("map", [], help="which feature map")
        self.scale = choice("scale", SCALES.items(), value="row", help="of the projections' colours")
        self.epoch = slider("epoch", 0, 0, readout=False, help="after which epoch: number of the snapshot")
        self.which = text("", "epoch-told")
        self.play = W.Play(
            min=0, max=0, step=1, interval=700, tooltip="play through the epochs", show_repeat=True
        )
        W.link((self.play, "value"), (self.epoch, "value"))
        self.bind(layer=self.layer, channel=self.channel, scale=self.scale)
        self.epoch.observe(lambda change: self._pick(change.new), "value")
        self.picture = Picture("a map's strongest activation after an epoch", *LARGE_SIZE)
        self.steer(across=self.epoch, along=self.channel)
        self.controls = row(
            W.VBox([self.layer, self.channel, self.scale], layout=W.Layout(width="260px")),
            W.VBox([self.epoch, self.which, self.play], layout=W.Layout(width="340px")),
        )
        self._enable(False)
        self.content.children = [self.controls, self.picture, self.words]

    def _enable(self, on: bool) -> None:
        for control in (self.layer, self.channel, self.scale, self.epoch, self.play):
            control.disabled = not on

    def _look(self, source: Source, images: ImageSet, options: dict[str, Any], step: Job) -> None:
        self.show_progress("looking through the snapshots", 0.0)
        try:
            self._open(looked_at(source, images, options, step), images)
        except ZfkitError as error:
            self.picture.say(str(error))  # in place of the picture that there will not be
            raise

    def _open(self, found: Evolution, images: ImageSet | None) -> None:
        view = EvolutionView(found, images)
        self.state, self._view = view.first(**self._first), view
        self.tell(" ".join(f"Missing: {sentence}." for sentence in found.missing))
        self.strip = Picker("snapshots of the training", *view.strip(self.state).size, sliders=False)
        self.strip.grid(*view.grid)
        self.strip.on_pick(lambda line, column: self._pick(line * view.grid[1] + column))
        legend = text(
            "<p class='zfkit-soft'>Grey is 0. Above: every snapshot, the chosen one framed; click one. An orange bar: "
            "another picture excites the map most than at the snapshot before.</p>"
        )
        self.content.children = [self.controls, self.picture, self.words, self.strip, legend]
        self._enable(True)
        self.refresh()

    def snapshot(self) -> Image.Image:
        """What is on the page, as one picture; also for notebooks that are read without a kernel."""
        return self.view.sheet(self.state)

    def settled(self, **changes: Any) -> EvolutionState:
        """The state after these changes; another layer begins with its first map."""
        layer = changes.get("layer", self.view.checked(self.state).layer)
        if layer != self.state.layer:
            changes.setdefault("channel", self.view.channels(layer)[0])
        return self.view.checked(super().settled(**changes))

    def _pick(self, at: int) -> None:
        """The user chose a snapshot."""
        if self._view and at < len(self.found.epochs):
            self.by_user(epoch=self.found.epochs[at])
        elif self._view:  # the last line of the strip may not be full
            self.refresh()

    def arrange(self) -> None:
        """Controls as the state says."""
        view, state = self.view, self.state
        for control, options, value in (
            (self.layer, view.layers, state.layer),
            (self.channel, tuple(view.channels(state.layer)), state.channel),
        ):
            if tuple(control.options) != options:
                control.options = options
            control.value = value
        self.scale.value = state.scale
        place, count = view.found.epochs.index(state.epoch), len(view.found.epochs)
        self.epoch.max = self.play.max = count - 1
        self.epoch.value = place
        self.strip.pick(*divmod(place, view.grid[1]))
        words = f"epoch {state.epoch}, snapshot {place + 1} of {count}"
        self.which.value = f"<p class='zfkit-number'>{words}</p>"

    def paint(self, state: EvolutionState, step: Job) -> None:
        """Projection and photograph, the strip of all snapshots, and the same in words."""
        large, strip = encode(self.view.large(state)), encode(self.view.strip(state))
        words = self.view.words(state)
        step()
        self.picture.show(large, words)
        self.strip.show(strip)
        self.caption(words)


def looked_at(source: Source, images: ImageSet, options: dict[str, Any], on_step: OnStep) -> Evolution:
    """`zfkit.evolution`, or what it gave for these snapshots, pictures and options before, from zfkit's cache."""
    key = ""
    with suppress(TypeError, OSError, ZfkitError):  # options that are no plain values; what cannot be read
        name, snapshots = snapshots_of(source)
        chosen = json.dumps([FORMAT, name, {**options, "options": asdict(options.get("options", Options()))}])
        files = (
            s.fingerprint() if isinstance(s, VisionModel) else s.read_bytes() for s in snapshots.values()
        )
        if images.lasting and not any(rule.treatment == "registered" for rule in RULES.values()):
            key = digest(chain([chosen, json.dumps([*snapshots]), images.fingerprint()], files))
    file = cache_folder("explorer") / key / "evolution.safetensors"
    if key and (found := read_kept(file, key)):
        with suppress(KeyError, ValueError, TypeError):
            return _unpacked(*found)
    made = evolution(source, images, **options, progress=False, on_step=on_step)
    if key:
        layers = enumerate(made.layers.values())
        tensors = {f"{i} {n}": tensor.contiguous() for i, of in layers for n, tensor in vars(of).items()}
        write_kept(file, key, tensors, {"found": json.dumps({**vars(made), "layers": [*made.layers]})})
    return made


def _unpacked(tensors: Mapping[str, Tensor], words: Mapping[str, str]) -> Evolution:
    plain, names = json.loads(words["found"]), [of.name for of in fields(LayerEvolution)]
    layers = {
        layer: LayerEvolution(**{name: tensors[f"{i} {name}"] for name in names})
        for i, layer in enumerate(plain["layers"])
    }
    lists = {name: tuple(plain[name]) for name in ("epochs", "missing")}
    return Evolution(**{**plain, **lists, "layers": layers})


explore_evolution = EvolutionExplorer
