"""A grating under your fingers, and what a layer's stride makes of it.

`GratingView` computes the pictures and the words, without any widget; `GratingExplorer` puts sliders beside
them. `zfkit.widgets.explore_gratings` opens it.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import ipywidgets as W
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..deconv.receptive_field import receptive_field
from ..errors import LayerError, ZfkitError, unknown
from ..figures.frequency import FOLDED
from ..frequency.gratings import GratingResponse, fold, grating_response, gratings, wave
from ..nets.model import VisionModel
from .panel import Panel, Picker, Picture, Progress, Steps, choice, encode, guarded, row, slider, text

COLOURS = {
    "grey": (1.0, 1.0, 1.0),
    "red - green": (1.0, -1.0, 0.0),
    "blue - yellow": (-0.5, -0.5, 1.0),
}
REGION = 64  # side of what is shown of the grating, in its pixels
TILE = 176  # on the page, in px
GAP = 12
PLANE = (240, 180)  # of the map of responses, in px
PHASES = 32  # harmonics up to the 15th

_ORANGE = tuple(int(FOLDED[k : k + 2], 16) for k in (1, 3, 5))


@dataclass(frozen=True)
class GratingState:
    """What is shown: a grating (cycles/px, degrees, degrees of phase, a name of `COLOURS`), and whose answer."""

    model: str
    layer: str
    channel: int = 0
    frequency: float = 0.3
    orientation: float = 0.0
    phase: float = 0.0
    colour: str = "grey"


class GratingView:
    """The pictures for a `GratingState`; knows nothing of widgets.

    Args:
        models: one or several networks, each with a name of its own.

    Everything follows from one unit's answer to the drifting grating (`grating_response`): over the map it is
    the same answer at other phases.
    """

    def __init__(self, models: VisionModel | Sequence[VisionModel]) -> None:
        several = [models] if isinstance(models, VisionModel) else list(models)
        if not several:
            raise ZfkitError("there must be at least one network to look at")
        self.models = {m.name: m for m in several}
        if len(self.models) < len(several):
            raise ZfkitError("networks need names of their own: give them with wrap_model(..., name=...)")
        self._planes: dict[tuple[str, str, str], GratingResponse] = {}
        self._answer = lru_cache(maxsize=256)(self._measured)

    def layers(self, model: str) -> tuple[str, ...]:
        """Layers of this network that have feature maps and a convolution's name."""
        return self.models[model].conv_layers

    def checked(self, state: GratingState) -> GratingState:
        """The state itself, if there is such a thing. Raises LayerError or ZfkitError in a sentence otherwise."""
        if state.model not in self.models:
            raise ZfkitError(unknown("network", state.model, self.models))
        if state.colour not in COLOURS:
            raise ZfkitError(unknown("colour", state.colour, COLOURS))
        if not 0 < state.frequency <= 0.5:
            raise ZfkitError(f"frequencies go from above 0 to 0.5 cycles/px, not {state.frequency}")
        count = self.count(state)
        if not 0 <= state.channel < count:
            raise LayerError(f"{state.layer!r} has feature maps 0 to {count - 1}, not {state.channel}")
        return state

    def count(self, state: GratingState) -> int:
        """How many feature maps the layer has."""
        step = self.models[state.model].network.find(state.layer)
        if not isinstance(step.module, torch.nn.Conv2d):
            raise LayerError(unknown("convolution", state.layer, self.layers(state.model)))
        return int(step.module.out_channels)

    def axes(self, state: GratingState) -> tuple[Tensor, Tensor]:
        """Frequencies (c/px) and orientations (degrees) of the map of responses: fewer where units see more."""
        size = receptive_field(self.models[state.model], state.layer).size
        steps, turns = (40, 24) if size <= 16 else (20, 12) if size <= 40 else (12, 8)
        return torch.arange(1, steps + 1) / (2 * steps), torch.arange(turns) * (180 / turns)

    def plane_steps(self, state: GratingState) -> Generator[Progress, None, None]:
        """Measure the layer's responses over all frequencies and orientations, a frequency at a time; kept."""
        key = (state.model, state.layer, state.colour)
        if key in self._planes:
            return
        frequencies, orientations = self.axes(state)
        parts = []
        for i, f in enumerate(frequencies):
            parts.append(
                grating_response(
                    self.models[state.model], state.layer, frequencies=[float(f)], orientations=orientations, phases=8,
                    colour=COLOURS[state.colour],
                )
            )  # fmt: skip
            yield Progress(f"answers of {state.layer} to gratings", (i + 1) / len(frequencies))
        self._planes[key] = replace(
            parts[0], frequency=frequencies.double(), harmonics=torch.cat([p.harmonics for p in parts], 1)
        )

    def plane(self, state: GratingState) -> GratingResponse:
        """The layer's responses over all frequencies and orientations."""
        for _ in self.plane_steps(state):
            pass
        return self._planes[state.model, state.layer, state.colour]

    def _measured(
        self, model: str, layer: str, channel: int, frequency: float, orientation: float, colour: str
    ) -> GratingResponse:
        return grating_response(
            self.models[model], layer, [channel], frequencies=[frequency], orientations=[orientation], phases=PHASES,
            colour=COLOURS[colour],
        )  # fmt: skip

    def response(self, state: GratingState) -> GratingResponse:
        """The answer of the one feature map to the one grating."""
        return self._answer(
            state.model, state.layer, state.channel, state.frequency, state.orientation, state.colour
        )

    # -------------------------------------------------------------------------------------------- pictures

    def maps(self, state: GratingState) -> dict[str, Tensor]:
        """What the feature map would hold at every pixel of the region, (REGION, REGION) float64 each.

        before: the response at every pixel. seen: the wave that the map's samples, every `spacing` pixels, draw
        at the lowest frequencies they allow (`fold`). kept, folded: the parts of it at its own frequency and at
        wrong ones. All without the mean. At the places of the samples, before and seen agree.
        """
        found, c, (fx, fy) = self._turned(state)
        sx, sy = found.spacing[1], found.spacing[0]
        y, x = torch.arange(REGION, dtype=torch.float64)[:, None], torch.arange(REGION, dtype=torch.float64)

        def drawn(u: Tensor, v: Tensor, part: Tensor) -> Tensor:
            turns = torch.exp(2j * math.pi * (u[:, None, None] * x + v[:, None, None] * y))
            return (c[:, None, None] * part[:, None, None] * turns).real.sum(0)

        wrong = found.is_folded[0, 0]
        everything = torch.ones_like(wrong)
        ux, uy = fold(fx, sx), fold(fy, sy)
        return {
            "before": drawn(fx, fy, everything),
            "kept": drawn(ux, uy, ~wrong),
            "folded": drawn(ux, uy, wrong),
            "seen": drawn(ux, uy, everything),
        }

    def _turned(self, state: GratingState) -> tuple[GratingResponse, Tensor, tuple[Tensor, Tensor]]:
        """The answer, its harmonics at the state's phase (H,), and their frequencies along x and y (H,) in c/px."""
        found = self.response(state)
        h = torch.arange(1, found.harmonics.shape[-1])
        fx, fy = wave(state.frequency, state.orientation)
        return (
            found,
            found.harmonics[0, 0, 0, 1:] * torch.exp(1j * math.radians(state.phase) * h),
            (fx * h, fy * h),
        )

    def sheet(self, state: GratingState) -> Image.Image:
        """The grating, the response at every pixel, the samples, the wave they draw; below, a cut through them."""
        state = self.checked(state)
        found = self.response(state)
        maps = self.maps(state)
        plane = self.plane(state)
        scale = max(math.sqrt(2) * float(plane.before[state.channel].max()), 1e-12)
        spacing = found.spacing
        share = float(
            (maps["folded"] ** 2).mean() / ((maps["folded"] ** 2 + maps["kept"] ** 2).mean() + 1e-300)
        )
        sampled = maps["before"][:: spacing[0], :: spacing[1]]
        blocks = sampled.repeat_interleave(spacing[0], 0).repeat_interleave(spacing[1], 1)[:REGION, :REGION]
        picture = gratings(
            state.frequency, state.orientation, math.radians(state.phase), size=REGION, colour=COLOURS[state.colour]
        )[0].permute(1, 2, 0)  # fmt: skip
        tiles = [
            ("the grating", picture.numpy()),
            ("response at every pixel", _tinted(maps["before"] / scale, 0.0)),
            (f"read every {spacing[1]} px" if max(spacing) > 1 else "read at every pixel",
             _tinted(blocks / scale, share)),
            ("what the next layer sees", _tinted(maps["seen"] / scale, share)),
        ]  # fmt: skip
        width, top = 4 * TILE + 3 * GAP, 20
        sheet = Image.new("RGB", (width, top + TILE + GAP + 150), "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
        for i, (title, pixels) in enumerate(tiles):
            left = i * (TILE + GAP)
            colour = _ORANGE if i >= 2 and share > 0.5 else (40, 40, 40)
            draw.text((left, 2), title, fill=colour, font=font)
            tile = Image.fromarray(pixels)
            how = Image.Resampling.BICUBIC if i == 3 else Image.Resampling.NEAREST
            sheet.paste(tile.resize((TILE, TILE), how), (left, top))
        self._cut(sheet, (0, top + TILE + GAP, width, 150), scale, share, state)
        return sheet

    def _cut(
        self,
        sheet: Image.Image,
        area: tuple[int, int, int, int],
        scale: float,
        share: float,
        state: GratingState,
    ) -> None:
        """The response along the axis over which the grating changes faster: line, samples, and the wave they draw."""
        left, top, width, height = area
        fx, fy = (abs(float(v)) for v in wave(state.frequency, state.orientation))
        along_x = fx >= fy
        fine = 12  # points per pixel
        found, c, frequencies = self._turned(state)
        u, step = frequencies[0 if along_x else 1], found.spacing[1 if along_x else 0]
        place = torch.arange((REGION - 1) * fine + 1, dtype=torch.float64) / fine
        lines = [
            (c[:, None] * torch.exp(2j * math.pi * f[:, None] * place)).real.sum(0) / scale for f in (u, fold(u, step))
        ]  # fmt: skip
        big = 2  # drawn twice as large and brought down: smooth lines
        plot = Image.new("RGB", (width * big, height * big), "white")
        draw = ImageDraw.Draw(plot)
        title = 20 * big
        middle, half = title + (height * big - title) / 2, (height * big - title) / 2 - 8 * big

        def point(x: float, value: float) -> tuple[float, float]:
            return 6 * big + x / (REGION - 1) * (width - 12) * big, middle - max(-1.0, min(1.0, value)) * half

        draw.line([point(0, 0), point(REGION - 1, 0)], fill=(205, 205, 205), width=big)
        seen = _ORANGE if share > 0.5 else (0, 0, 0)
        for line, colour, thick in ((lines[0], (150, 150, 150), 1), (lines[1], seen, 2)):
            points = [point(float(x), float(v)) for x, v in zip(place, line, strict=True)]
            draw.line(points, fill=colour, width=thick * big)
        for x in range(0, REGION, step):
            px, py = point(x, float(lines[0][x * fine]))
            r = 3.5 * big
            draw.ellipse((px - r, py - r, px + r, py + r), fill=seen, outline="white", width=big)
        axis = "x" if along_x else "y"
        words = f"along {axis}: grey, the response at every pixel; dots, where it is read; thick, the wave they draw"
        draw.text((0, 2 * big), words, fill=(40, 40, 40), font=ImageFont.load_default(12 * big))
        sheet.paste(plot.resize((width, height), Image.Resampling.LANCZOS), (left, top))

    def plane_picture(self, state: GratingState) -> Image.Image:
        """Response of the feature map over frequency (to the right) and orientation (down), folded part in colour."""
        found = self.plane(state)
        kept, folded = found.in_place[state.channel], found.folded[state.channel]
        top = max(float(found.before[state.channel].max()), 1e-12)
        orange = torch.tensor(_ORANGE, dtype=torch.float64)
        kept, folded = (v.T[..., None] / top for v in (kept, folded))
        colours = 255 - kept * (255 - 26) - folded * (255 - orange)
        return Image.fromarray(colours.clamp(0, 255).to(torch.uint8).numpy()).resize(
            PLANE, Image.Resampling.NEAREST
        )

    # ----------------------------------------------------------------------------------------------- words

    def words(self, state: GratingState) -> str:
        """The same in numbers, in two or three sentences."""
        found = self.response(state)
        best = float(self.plane(state).before[state.channel].max())
        before, folded = float(found.before), float(found.folded)
        if best <= 0:
            return f"Map {state.channel} of {state.layer} answers to no grating at all."
        s = max(found.spacing)
        said = (
            f"The grating has {state.frequency:.3f} cycles per pixel (a period of {1 / state.frequency:.1f} px) at "
            f"{state.orientation:.0f} degrees. Map {state.channel} of {state.layer} answers with "
            f"{100 * before / best:.0f} % of its strongest response to a grating of this colour. "
        )
        if s == 1:
            return said + "It is read at every pixel: nothing can be folded."
        said += f"It is read every {s} px, which can hold up to {1 / (2 * s):.3f} cycles per pixel along each axis. "
        if before < 1e-6 * best:
            return said + "There is nothing to be seen of it."
        ax, ay = (float(v) for v in found.arrives)
        arrived = math.hypot(ax, ay)
        share = 100 * folded**2 / before**2
        if not bool(found.is_folded[0, 0, 0]):
            rest = (
                ""
                if share < 0.5
                else f" {share:.0f} % of the energy, harmonics of it, arrives at wrong frequencies."
            )
            return said + "It arrives as it is." + rest
        if arrived < 1e-6:
            return (
                said
                + "It arrives as no wave at all but as a constant, which depends on where the picture lies."
            )
        angle = math.degrees(math.atan2(ay, ax)) % 180
        return said + (
            f"It arrives at {arrived:.3f} cycles per pixel (a period of {1 / arrived:.1f} px, "
            f"{state.frequency / arrived:.1f} times as long) at {angle:.0f} degrees: {share:.0f} % of the energy is at "
            "wrong frequencies."
        )


def _tinted(values: Tensor, share: float) -> np.ndarray:
    """Values from -1 to 1 as uint8 (H, W, 3), black to white; to vermilion and its shade for what is folded."""
    v = values.clamp(-1, 1)[..., None]
    grey = 128 + 127 * v
    orange = torch.tensor(_ORANGE, dtype=torch.float64)
    dark = orange * 0.1
    warm = 128 + v.clamp(min=0) * (orange - 128) + (-v).clamp(min=0) * (dark - 128)
    return (
        ((1 - share) * grey + share * warm)
        .clamp(0, 255)
        .round()
        .to(torch.uint8)
        .expand(*values.shape, 3)
        .numpy()
    )


class GratingExplorer(Panel):
    """Sliders for a grating, and what becomes of it; `explore_gratings` opens it.

    `state` says what is shown (`GratingState`), `set` changes it from code, `wait` waits until it is shown, and
    `snapshot` is what is on the page as one picture.
    """

    def __init__(self, models: VisionModel | Sequence[VisionModel], **options: Any) -> None:
        super().__init__("What does a stride make of a grating?")
        self.add_class("zfkit-gratings")
        self.view = GratingView(models)
        first = next(iter(self.view.models))
        model = options.pop("model", first)
        layer = options.pop("layer", self.view.layers(model)[0] if model in self.view.models else "")
        self.state = self.view.checked(GratingState(model, layer, **options))
        self._setting = False
        self._build()
        self._arrange()
        self._request()

    def _build(self) -> None:
        names = list(self.view.models)
        self.network = choice("network", names, value=self.state.model, help="which network answers")
        self.layer = choice(
            "layer", self.view.layers(self.state.model), value=self.state.layer, help="which layer"
        )
        self.colour = choice(
            "colour", list(COLOURS), value=self.state.colour, help="what the grating varies in"
        )
        self.channel = slider("map", 0, 1, value=0, help="which feature map answers")
        self.frequency = slider(
            "c/px", 0.005, 0.5, value=self.state.frequency, step=0.005, readout_format=".3f",
            help="frequency of the grating, in cycles per pixel",
        )  # fmt: skip
        self.orientation = slider("degrees", 0, 179, value=0, help="direction of the grating, in degrees")
        self.phase = slider("phase", 0, 359, value=0, help="phase of the grating, in degrees")
        self.play = W.Play(min=0, max=359, step=15, interval=150, tooltip="let the grating drift")
        W.link((self.play, "value"), (self.phase, "value"))
        self.plane = Picker(
            "frequency (to the right) and orientation (down) of the grating", *PLANE, sliders=False
        )
        width = 4 * TILE + 3 * GAP
        self.picture = Picture("the grating, the response to it, its samples, and the wave they draw", width,
                               20 + TILE + GAP + 150)  # fmt: skip
        self.words = text("", "words")
        for control, name in (
            (self.network, "model"), (self.layer, "layer"), (self.colour, "colour"), (self.channel, "channel"),
            (self.frequency, "frequency"), (self.orientation, "orientation"), (self.phase, "phase"),
        ):  # fmt: skip
            control.add_class(f"zfkit-{name}")
            control.observe(lambda change, name=name: self._moved(name, change["new"]), "value")
        self.plane.on_pick(self._picked)
        legend = text(
            "<p class='zfkit-soft'>Above: this map's response to every grating. Dark is kept, orange arrives at a "
            "wrong frequency. To the right: frequency, 0 to 1/2; down: orientation, 0 to 180 degrees. Click one.</p>"
        )
        sliders = [
            self.network, self.layer, self.channel, self.colour, self.frequency, self.orientation, self.phase
        ]  # fmt: skip
        for control in sliders:
            control.style.description_width = "62px"
        wide = W.Layout(width="340px")
        controls = W.VBox([*sliders, self.play], layout=wide)
        if len(names) == 1:
            self.network.layout.display = "none"
        plane = W.VBox([self.plane, legend], layout=wide)
        self.words.layout.max_width = f"{width}px"
        self.content.children = [self.picture, self.words, row(controls, plane)]

    def set(self, **changes: Any) -> GratingExplorer:
        """Change what is shown: model, layer, channel, frequency, orientation, phase, colour."""
        try:
            state = self._settled(replace(self.state, **changes))
        except TypeError:
            wrong = next(k for k in changes if k not in GratingState.__dataclass_fields__)
            raise ZfkitError(unknown("setting", wrong, GratingState.__dataclass_fields__)) from None
        self.state = self.view.checked(state)
        self._arrange()
        self._request()
        return self

    def wait(self, timeout: float = 60.0) -> bool:
        """Until what is shown is what the state says; False if that took longer than `timeout` seconds."""
        return self.worker.wait(timeout)

    def snapshot(self) -> Image.Image:
        """What is on the page, as one picture; also for notebooks that are read without a kernel."""
        return self.view.sheet(self.state)

    def _settled(self, state: GratingState) -> GratingState:
        """Another network or layer may have fewer maps, or lack the layer."""
        other = state.model in self.view.models and state.model != self.state.model
        if other and state.layer not in self.view.layers(state.model):
            state = replace(state, layer=self.view.layers(state.model)[0])
        if (state.model, state.layer) != (
            self.state.model,
            self.state.layer,
        ) and state.model in self.view.models:
            state = replace(state, channel=min(state.channel, self.view.count(state) - 1))
        return state

    @guarded
    def _moved(self, name: str, value: Any) -> None:
        if not self._setting and value is not None:
            self.tell("")
            self.set(**{name: value})

    @guarded
    def _picked(self, at_row: int, at_col: int) -> None:
        frequencies, orientations = self.view.axes(self.state)
        self.set(frequency=float(frequencies[at_col]), orientation=float(orientations[at_row]))

    def _arrange(self) -> None:
        """Controls as the state says, without telling."""
        self._setting = True
        try:
            state = self.state
            self.network.value = state.model
            if tuple(self.layer.options) != self.view.layers(state.model):
                self.layer.options = self.view.layers(state.model)
            self.layer.value = state.layer
            self.channel.max = self.view.count(state) - 1
            self.channel.value = state.channel
            self.colour.value = state.colour
            self.frequency.value = state.frequency
            self.orientation.value = round(state.orientation) % 180
            self.phase.value = round(state.phase) % 360
            frequencies, orientations = self.view.axes(state)
            self.plane.grid(len(orientations), len(frequencies))
            nearest = [
                int((values.double() - value).abs().argmin())
                for values, value in ((orientations, state.orientation), (frequencies, state.frequency))
            ]
            self.plane.pick(*nearest)
        finally:
            self._setting = False

    def _request(self) -> None:
        self.worker.submit("pictures", self._show(self.state))

    def _show(self, state: GratingState) -> Steps:
        yield from self.view.plane_steps(state)
        sheet = encode(self.view.sheet(state))
        said = self.view.words(state)
        yield None  # a newer request ends this one here
        self.picture.show(sheet, said)
        self.words.value = f"<p role='status'>{said}</p>"
        self.plane.show(encode(self.view.plane_picture(state)))


def explore_gratings(models: VisionModel | Sequence[VisionModel], **options: Any) -> GratingExplorer:
    """A grating under your fingers: what a filter answers, and what the stride makes of the answer.

    Args:
        models: one or several networks.
        options: what to begin with: model (a name), layer, channel, frequency (cycles/px), orientation and phase
            (degrees), colour ("grey", "red - green", "blue - yellow").

    Raises LayerError or ZfkitError for a network, layer, map or colour that does not exist.

    >>> explore_gratings([load_model("alexnet64"), load_model("zfnet64")], frequency=0.3)
    """
    return GratingExplorer(models, **options)
