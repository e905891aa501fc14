"""A picture shifted, scaled and turned by sliders, and how far that moves its features: Fig. 5 under your fingers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from ipywidgets import Layout, VBox
from torch import Tensor

from ..batching import OnStep
from ..checks import number, one_of, whole_number
from ..experiments.invariance import (
    STILL,
    UNITS,
    Invariance,
    Motion,
    default_values,
    filled,
    invariance,
    move,
)
from ..experiments.occlusion import probabilities
from ..figures.pictures import to_picture
from ..images.imageset import ImageSet
from ..nets.model import VisionModel
from .controls import Picture, choice, encode, row, slider, styled, text
from .drawing import bars, class_bars, class_name, fitted
from .panel import Panel
from .worker import Job

SIDE = 288  # of the picture on the page, in px


@dataclass(frozen=True)
class InvarianceState:
    """What is shown: which picture, and one motion of it."""

    picture: int = 0
    motion: Motion = "shift"
    value: float = 0.0


class InvarianceExplorer(Panel):
    """Shift, scale and turn a picture by sliders, and see how far its features move.

    One motion at a time, as in the paper: moving one slider puts the others back. `measure(state)` gives the numbers
    without any widget.

    Args:
        images, index: at least two pictures, larger than the model's input where real pixels are to come in.
        options: as for `zfkit.invariance`: layers, targets, window, oversample, interpolation, fill.

    Raises as `zfkit.invariance` does.

    >>> explore_invariance(model, load_images("photos", size=200), [53, 125, 321], oversample=2)
    """

    state: InvarianceState

    def __init__(
        self,
        model: VisionModel,
        images: ImageSet | Tensor,
        index: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__("What does the network take no notice of?")
        self.model, self.options = model, options
        self.index = list(range(len(images))) if index is None else [int(i) for i in index]
        # The distances between different pictures, once, and the checks of everything that was passed.
        self.base = invariance(model, images, "shift", [0.0], index=self.index, progress=False, **options)
        self.pictures = images[self.index] if isinstance(images, Tensor) else images.take(self.index)
        self.state = InvarianceState()
        names = [images.name(i) for i in self.index] if isinstance(images, ImageSet) else self.index
        pictures = [(f"{i}: {name}", k) for k, (i, name) in enumerate(zip(self.index, names, strict=True))]
        self.choice = choice("picture", pictures, value=0, help="which picture is moved")
        self.choice.observe(lambda change: self.by_user(picture=change.new), "value")
        self.sliders = {motion: self._slider(motion) for motion in get_args(Motion)}
        self.picture = Picture("the moved picture, as the network sees it", SIDE, SIDE)
        self.distances, self.answers = text("", "distances"), text("", "answers")
        self.steer(across=self.sliders["shift"], along=self.choice)
        words = VBox(
            [row(self.distances, self.answers), *self.sliders.values(), self.words],
            layout=Layout(flex="1 1 300px"),
        )
        self.content.children = [self.choice, row(self.picture, words)]
        self.refresh()

    def _slider(self, motion: Motion) -> Any:
        """From the smallest to the largest default value; a picture is enlarged at most 1.8 times."""
        values, still = default_values(motion, self.base.window), STILL[motion]
        help = f"{motion}: {UNITS[motion]}"
        if motion == "scale":
            control = slider(motion, 1.0, 1.8, value=still, step=0.01, help=help)
        else:
            control = slider(motion, int(min(values)), int(max(values)), value=still, help=help)
        control.observe(lambda change: self.by_user(motion=motion, value=float(change.new)), "value")
        return styled(control, motion)

    def measure(self, state: InvarianceState, on_step: OnStep | None = None) -> Invariance:
        """Distances and probabilities of the one picture at the one value, as `zfkit.invariance` gives them."""
        pair = [state.picture, (state.picture + 1) % len(self.pictures)]  # one alone has no different picture
        options = self.options | {"targets": [int(self.base.target[i]) for i in pair]}
        pictures = self.pictures[pair]
        return invariance(
            self.model, pictures, state.motion, [state.value], progress=False, on_step=on_step, **options
        )

    def settled(self, **changes: Any) -> InvarianceState:
        """The state after these changes: picture (its number in `index`), motion, value."""
        state: InvarianceState = super().settled(**changes)
        whole_number(state.picture, "picture", 0, len(self.pictures) - 1)
        one_of(state.motion, "motion", STILL)
        number(state.value, "value")
        return state

    def arrange(self) -> None:
        """Controls to what the state says."""
        self.choice.value = self.state.picture
        for motion, control in self.sliders.items():
            control.value = self.state.value if motion == self.state.motion else STILL[motion]

    def paint(self, state: InvarianceState, step: Job) -> None:
        """The moved picture, how far its features move, and the likeliest classes."""
        measured = self.measure(state, step)
        options = {k: v for k, v in self.options.items() if k in ("oversample", "interpolation")}
        options["fill"] = filled(self.model, self.options.get("fill"))
        pictures = self.pictures[[state.picture]]
        moved = move(pictures, state.motion, state.value, self.base.window, **options)[0][0]
        probability = probabilities(self.model, self.model.logits(self.model.preprocess(moved)))[0].cpu()
        step()
        self.picture.show(encode(fitted(to_picture(moved), SIDE)))
        rows = []
        for layer in measured.layers:
            for name, values in ((layer, measured.distance), ("resampling", measured.control)):
                share = float(values[layer][0, 0]) / self.base.different[layer]
                rows.append((name, min(share, 1.0), f"{share:.2f}"))
        label = "; ".join(f"{name} {share}" for name, _, share in rows)
        self.distances.value = "<p>distance (1: another picture); what resampling alone does</p>" + bars(
            rows, label=f"distances: {label}"
        )
        target = int(measured.target[0])
        self.answers.value = f"<p>probabilities</p>{class_bars(self.model, probability, target=target)}"
        whole, now = float(self.base.whole_probability[state.picture]), float(measured.probability[0, 0])
        invented = float(measured.invented[0])
        self.caption(
            f"{state.motion} {state.value:g} ({UNITS[state.motion]}): "
            f"P({class_name(self.model, target)}) {whole:.2f} untransformed, {now:.2f} now"
            + (f"; {100 * invented:.0f} % of the picture is filled in" if invented else "")
            + "."
        )


explore_invariance = InvarianceExplorer
