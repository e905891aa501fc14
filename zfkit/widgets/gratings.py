"""A grating under your fingers, and what a layer's stride makes of it.

`GratingView` computes the pictures and the words, without any widget; `GratingExplorer` puts sliders beside
them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import ipywidgets as W
import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from ..batching import OnStep
from ..checks import number, one_of, whole_number
from ..deconv.receptive_field import receptive_field
from ..errors import LayerError, ZfkitError, unknown
from ..figures.style import FOLDED, kept_and_folded
from ..frequency.gratings import GratingResponse, fold, grating_response, gratings, wave
from ..nets.model import VisionModel, expect_model
from .controls import Picker, Picture, choice, encode, row, slider, text
from .panel import Panel, changed
from .worker import Job

COLOURS = {"grey": (1.0, 1.0, 1.0), "red - green": (1.0, -1.0, 0.0), "blue - yellow": (-0.5, -0.5, 1.0)}
REGION = 64  # side of what is shown of the grating, in its pixels
TILE, GAP, HEAD, CUT = 176, 12, 20, 150  # px on the page: pictures, between them, words above, the cut below
WIDTH, HEIGHT = 4 * TILE + 3 * GAP, HEAD + TILE + GAP + CUT
PLANE = (240, 180)  # of the map of responses, in px
PHASES = 32  # harmonics up to the 15th

_INK = (40, 40, 40)
_ORANGE = ImageColor.getrgb(FOLDED)[:3]


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
        several: list[Any] = list(models) if isinstance(models, list | tuple) else [models]
        for model in several:
            expect_model(model)
        if not several:
            raise ZfkitError("there must be at least one network to look at")
        self.models = {m.name: m for m in several}
        if len(self.models) < len(several):
            raise ZfkitError("networks need names of their own: give them with wrap_model(..., name=...)")
        # Responses by network, layer and colour: whole planes, and a frequency each of those that were cancelled.
        self._planes: dict[tuple[str, str, str], GratingResponse] = {}
        self._parts: dict[tuple[str, str, str], list[GratingResponse]] = {}
        self._lock = threading.Lock()
        self._answer = lru_cache(maxsize=256)(self._measured)

    def layers(self, model: str) -> tuple[str, ...]:
        """Layers of this network that have feature maps and a convolution's name."""
        return self.models[model].conv_layers

    def checked(self, state: GratingState) -> GratingState:
        """The state itself. Raises LayerError or ZfkitError for a network, layer, map, colour or wave that is none."""
        one_of(state.model, "network", self.models)
        one_of(state.colour, "colour", COLOURS)
        number(state.frequency, "frequency, in cycles/px,", 1e-6, 0.5)
        number(state.orientation, "orientation, in degrees,")
        number(state.phase, "phase, in degrees,")
        whole_number(state.channel, f"feature map of {state.layer!r}", 0, self.count(state) - 1, LayerError)
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

    def plane(self, state: GratingState, on_step: OnStep | None = None) -> GratingResponse:
        """The layer's responses over all frequencies and orientations, a frequency at a time; kept."""
        key = (state.model, state.layer, state.colour)
        with self._lock:  # the worker may be measuring the same
            if key not in self._planes:
                frequencies, orientations = self.axes(state)
                parts = self._parts.setdefault(key, [])
                while len(parts) < len(frequencies):
                    parts.append(
                        grating_response(
                            self.models[state.model], state.layer, frequencies=[float(frequencies[len(parts)])],
                            orientations=orientations, phases=8, colour=COLOURS[state.colour],
                        )
                    )  # fmt: skip
                    if on_step:
                        on_step(len(parts), len(frequencies))
                harmonics = torch.cat([part.harmonics for part in self._parts.pop(key)], 1)
                self._planes[key] = replace(parts[0], frequency=frequencies.double(), harmonics=harmonics)
            return self._planes[key]

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
        answer, c, (fx, fy) = self._turned(state)
        sx, sy = answer.spacing[1], answer.spacing[0]
        y, x = torch.arange(REGION, dtype=torch.float64)[:, None], torch.arange(REGION, dtype=torch.float64)

        def drawn(u: Tensor, v: Tensor, part: Tensor) -> Tensor:
            turns = torch.exp(2j * math.pi * (u[:, None, None] * x + v[:, None, None] * y))
            return (c[:, None, None] * part[:, None, None] * turns).real.sum(0)

        wrong = answer.is_folded[0, 0]
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
        answer = self.response(state)
        h = torch.arange(1, answer.harmonics.shape[-1])
        fx, fy = wave(state.frequency, state.orientation)
        harmonics = answer.harmonics[0, 0, 0, 1:] * torch.exp(1j * math.radians(state.phase) * h)
        return answer, harmonics, (fx * h, fy * h)

    def sheet(self, state: GratingState) -> Image.Image:
        """The grating, the response at every pixel, the samples, the wave they draw; below, a cut through them."""
        state = self.checked(state)
        answer = self.response(state)
        maps = self.maps(state)
        plane = self.plane(state)
        scale = max(math.sqrt(2) * float(plane.before[state.channel].max()), 1e-12)
        spacing = answer.spacing
        folded, kept = (float((maps[part] ** 2).mean()) for part in ("folded", "kept"))
        share = folded / (folded + kept + 1e-300)
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
        sheet = Image.new("RGB", (WIDTH, HEIGHT), "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
        for i, (title, pixels) in enumerate(tiles):
            left = i * (TILE + GAP)
            draw.text((left, 2), title, fill=_ORANGE if i >= 2 and share > 0.5 else _INK, font=font)
            how = Image.Resampling.BICUBIC if i == 3 else Image.Resampling.NEAREST
            sheet.paste(Image.fromarray(pixels).resize((TILE, TILE), how), (left, HEAD))
        sheet.paste(self._cut(scale, share, state), (0, HEAD + TILE + GAP))
        return sheet

    def _cut(self, scale: float, share: float, state: GratingState) -> Image.Image:
        """The response along the axis over which the grating changes faster: line, samples, and the wave they draw."""
        fx, fy = (abs(float(v)) for v in wave(state.frequency, state.orientation))
        axis = 0 if fx >= fy else 1
        answer, c, frequencies = self._turned(state)
        f, step = frequencies[axis], answer.spacing[1 - axis]
        fine = 12  # points per pixel
        x = torch.arange((REGION - 1) * fine + 1, dtype=torch.float64) / fine
        response, seen = (
            (c[:, None] * torch.exp(2j * math.pi * v[:, None] * x)).real.sum(0) / scale
            for v in (f, fold(f, step))
        )
        big = 2  # drawn twice as large and brought down: smooth lines
        plot = Image.new("RGB", (WIDTH * big, CUT * big), "white")
        draw, head = ImageDraw.Draw(plot), HEAD * big
        middle, half = head + (CUT * big - head) / 2, (CUT * big - head) / 2 - 8 * big

        def point(x: float, value: float) -> tuple[float, float]:
            return 6 * big + x / (REGION - 1) * (WIDTH - 12) * big, middle - max(-1.0, min(1.0, value)) * half

        colour = _ORANGE if share > 0.5 else (0, 0, 0)
        draw.line([point(0, 0), point(REGION - 1, 0)], fill=(205, 205, 205), width=big)
        for line, fill, thick in ((response, (150, 150, 150), 1), (seen, colour, 2)):
            points = [point(float(at), float(v)) for at, v in zip(x, line, strict=True)]
            draw.line(points, fill=fill, width=thick * big)
        for at in range(0, REGION, step):
            px, py = point(at, float(response[at * fine]))
            r = 3.5 * big
            draw.ellipse((px - r, py - r, px + r, py + r), fill=colour, outline="white", width=big)
        reading = "grey, the response at every pixel; dots, where it is read; thick, the wave they draw"
        words = f"along {'xy'[axis]}: {reading}"
        draw.text((0, 2 * big), words, fill=_INK, font=ImageFont.load_default(12 * big))
        return plot.resize((WIDTH, CUT), Image.Resampling.LANCZOS)

    def plane_picture(self, state: GratingState) -> Image.Image:
        """Response of the feature map over frequency (to the right) and orientation (down), folded part in colour."""
        answer = self.plane(state)
        top = max(float(answer.before[state.channel].max()), 1e-12)
        rgb = kept_and_folded(answer.in_place[state.channel].T / top, answer.folded[state.channel].T / top)
        picture = Image.fromarray((255 * rgb).to(torch.uint8).numpy())
        return picture.resize(PLANE, Image.Resampling.NEAREST)

    # ----------------------------------------------------------------------------------------------- words

    def words(self, state: GratingState) -> str:
        """The same in numbers, in two or three sentences."""
        answer = self.response(state)
        best = float(self.plane(state).before[state.channel].max())
        before, folded = float(answer.before), float(answer.folded)
        if best <= 0:
            return f"Map {state.channel} of {state.layer} answers to no grating at all."
        s = max(answer.spacing)
        words = (
            f"The grating has {state.frequency:.3f} cycles per pixel (a period of {1 / state.frequency:.1f} px) at "
            f"{state.orientation:.0f} degrees. Map {state.channel} of {state.layer} answers with "
            f"{100 * before / best:.0f} % of its strongest response to a grating of this colour. "
        )
        if s == 1:
            return words + "It is read at every pixel: nothing can be folded."
        words += f"It is read every {s} px, which can hold up to {1 / (2 * s):.3f} cycles per pixel along each axis. "
        if before < 1e-6 * best:
            return words + "There is nothing to be seen of it."
        ax, ay = (float(v) for v in answer.arrives)
        arrived, share = math.hypot(ax, ay), 100 * folded**2 / before**2
        if not bool(answer.is_folded[0, 0, 0]):
            rest = f" {share:.0f} % of the energy, harmonics of it, arrives at wrong frequencies."
            return words + "It arrives as it is." + (rest if share >= 0.5 else "")
        if arrived < 1e-6:
            return words + "It arrives as no wave at all but as a constant, which depends on where it lies."
        return words + (
            f"It arrives at {arrived:.3f} cycles per pixel (a period of {1 / arrived:.1f} px, "
            f"{state.frequency / arrived:.1f} times as long) at {math.degrees(math.atan2(ay, ax)) % 180:.0f} degrees: "
            f"{share:.0f} % of the energy is at wrong frequencies."
        )


def _tinted(values: Tensor, share: float) -> np.ndarray:
    """Values from -1 to 1 as uint8 (H, W, 3), black to white; to vermilion and its shade for what is folded."""
    v = values.clamp(-1, 1)[..., None]
    orange = torch.tensor(_ORANGE, dtype=torch.float64)
    warm = 128 + v.clamp(min=0) * (orange - 128) + (-v).clamp(min=0) * (0.1 * orange - 128)
    rgb = (1 - share) * (128 + 127 * v) + share * warm
    return rgb.clamp(0, 255).round().to(torch.uint8).expand(*values.shape, 3).numpy()


class GratingExplorer(Panel):
    """A grating under your fingers: what a filter answers, and what the stride makes of the answer.

    Args:
        models: one or several networks.
        options: what to begin with: model (a name), layer, channel, frequency (cycles/px), orientation and phase
            (degrees), colour ("grey", "red - green", "blue - yellow").

    Raises LayerError or ZfkitError for a network, layer, map or colour that does not exist.

    >>> explore_gratings([load_model("alexnet64"), load_model("zfnet64")], frequency=0.3)
    """

    state: GratingState

    def __init__(self, models: VisionModel | Sequence[VisionModel], **options: Any) -> None:
        super().__init__("What does a stride make of a grating?")
        self.view = GratingView(models)
        model = options.pop("model", next(iter(self.view.models)))
        layer = options.pop("layer", self.view.layers(model)[0] if model in self.view.models else "")
        self.state = self.view.checked(changed(GratingState(model, layer), **options))
        self._build()
        self.refresh()

    def _build(self) -> None:
        s, names = self.state, list(self.view.models)
        self.network = choice("network", names, value=s.model, help="which network answers")
        self.layer = choice("layer", self.view.layers(s.model), value=s.layer, help="which layer")
        self.colour = choice("colour", COLOURS, value=s.colour, help="what the grating varies in")
        self.channel = slider("map", 0, 1, help="which feature map answers")
        self.frequency = slider(
            "c/px", 0.005, 0.5, value=s.frequency, step=0.005, readout_format=".3f",
            help="frequency of the grating, in cycles per pixel",
        )  # fmt: skip
        self.orientation = slider("degrees", 0, 179, help="direction of the grating, in degrees")
        self.phase = slider("phase", 0, 359, help="phase of the grating, in degrees")
        self.play = W.Play(min=0, max=359, step=15, interval=150, tooltip="let the grating drift")
        W.link((self.play, "value"), (self.phase, "value"))
        label = "frequency (to the right) and orientation (down) of the grating"
        self.plane = Picker(label, *PLANE, sliders=False)
        self.plane.on_pick(self._picked)
        label = "the grating, the response to it, its samples, and the wave they draw"
        self.picture = Picture(label, WIDTH, HEIGHT)
        self.bind(
            model=self.network, layer=self.layer, channel=self.channel, colour=self.colour,
            frequency=self.frequency, orientation=self.orientation, phase=self.phase,
        )  # fmt: skip
        waves = [self.frequency, self.orientation, self.phase]
        controls = [self.network, self.layer, self.channel, self.colour, *waves]
        for control in controls:
            control.style.description_width = "62px"
        if len(names) == 1:
            self.network.layout.display = "none"
        legend = text(
            "<p class='zfkit-soft'>Above: this map's response to every grating. Dark is kept, orange arrives at a "
            "wrong frequency. To the right: frequency, 0 to 1/2; down: orientation, 0 to 180 degrees. Click one.</p>"
        )
        below = ([*controls, self.play], [self.plane, legend])
        columns = [W.VBox(children, layout=W.Layout(width="340px")) for children in below]
        self.steer(across=self.channel, along=self.layer)
        self.content.children = [self.picture, self.words, row(*columns)]

    def snapshot(self) -> Image.Image:
        """What is on the page, as one picture; also for notebooks that are read without a kernel."""
        return self.view.sheet(self.state)

    def settled(self, **changes: Any) -> GratingState:
        """The state after these changes; another network or layer may lack the layer, or have fewer maps."""
        state: GratingState = super().settled(**changes)
        one_of(state.model, "network", self.view.models)
        layers = self.view.layers(state.model)
        if state.model != self.state.model and state.layer not in layers:
            state = replace(state, layer=layers[0])
        if (state.model, state.layer) != (self.state.model, self.state.layer):
            state = replace(state, channel=min(state.channel, self.view.count(state) - 1))
        return self.view.checked(state)

    def _picked(self, at_row: int, at_col: int) -> None:
        frequencies, orientations = self.view.axes(self.state)
        self.by_user(frequency=float(frequencies[at_col]), orientation=float(orientations[at_row]))

    def arrange(self) -> None:
        """Controls as the state says."""
        state = self.state
        if tuple(self.layer.options) != self.view.layers(state.model):
            self.layer.options = self.view.layers(state.model)
        self.channel.max = self.view.count(state) - 1
        self.network.value, self.layer.value, self.channel.value = state.model, state.layer, state.channel
        self.colour.value, self.frequency.value = state.colour, state.frequency
        self.orientation.value, self.phase.value = round(state.orientation) % 180, round(state.phase) % 360
        frequencies, orientations = self.view.axes(state)
        self.plane.grid(len(orientations), len(frequencies))
        nearest = (
            int((values.double() - value).abs().argmin())
            for values, value in ((orientations, state.orientation), (frequencies, state.frequency))
        )
        self.plane.pick(*nearest)

    def paint(self, state: GratingState, step: Job) -> None:
        """The grating and what becomes of it, the same in words, and the map of responses."""
        self.view.plane(state, step)
        sheet, words = encode(self.view.sheet(state)), self.view.words(state)
        step()
        self.picture.show(sheet, words)
        self.caption(words)
        self.plane.show(encode(self.view.plane_picture(state)))


explore_gratings = GratingExplorer
