"""A picture shifted, scaled and turned by sliders, and how far that moves its features: Fig. 5 under your fingers.

`zfkit.widgets.explore_invariance` opens it.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ipywidgets import Layout, VBox
from torch import Tensor

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
from ..images.imageset import ImageSet
from ..nets.model import VisionModel
from .drawing import bars, fitted, to_picture
from .panel import Panel, Picture, Progress, Steps, choice, encode, guarded, row, slider, text

SIDE = 288  # of the picture on the page, in px
CLASSES = 5
_DISTANCE = "<p>distance (1: another picture), of resampling alone</p>"
_STYLE = """
.zfkit-invariance .zfkit-bar { fill: var(--zf-accent); }
.zfkit-invariance svg text { fill: var(--zf-ink); }
"""


@dataclass(frozen=True)
class InvarianceState:
    """What is shown: which picture, and one motion of it."""

    picture: int = 0
    motion: Motion = "shift"
    value: float = 0.0


class InvarianceExplorer(Panel):
    """A slider for each motion; `zfkit.widgets.explore_invariance` opens it.

    One motion at a time, as in the paper: moving one slider puts the others back. `state` says what is shown,
    `set(picture=, motion=, value=)` changes it from code, `wait` waits until it is shown, `measure(state)` gives
    the numbers without any widget.
    """

    def __init__(
        self,
        model: VisionModel,
        images: ImageSet | Tensor,
        index: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__("What does the network take no notice of?", _STYLE)
        self.add_class("zfkit-invariance")
        self.model = model
        count = len(images)
        self.index = list(range(count)) if index is None else [int(i) for i in index]
        self.options = options
        # The distances between different pictures, once, and the checks of everything that was passed.
        self.base = invariance(model, images, "shift", [0.0], index=self.index, progress=False, **options)
        self.pictures = images[self.index] if isinstance(images, Tensor) else images.take(self.index)
        self.state = InvarianceState()
        self._setting = False
        window = self.base.window
        self.sliders = {}
        for motion, step in (("shift", 1), ("scale", 0.01), ("rotation", 1)):
            values = default_values(motion, window)  # type: ignore[arg-type]
            self.sliders[motion] = slider(
                motion, 1.0 if motion == "scale" else int(min(values)),
                1.8 if motion == "scale" else int(max(values)), value=STILL[motion], step=step,
                help=f"{motion}: {UNITS[motion]}",
            )  # fmt: skip
            self.sliders[motion].add_class(f"zfkit-{motion}")
            self.sliders[motion].observe(lambda change, m=motion: self._moved(m, change["new"]), "value")
        names = [images.name(i) for i in self.index] if isinstance(images, ImageSet) else self.index
        shown = [
            (f"{place}: {name}", k) for k, (place, name) in enumerate(zip(self.index, names, strict=True))
        ]
        self.choice = choice("picture", shown, value=0, help="which picture is moved")
        self.choice.observe(self._chosen, "value")
        self.picture = Picture("the moved picture, as the network sees it", SIDE, SIDE)
        self.distances, self.answers, self.words = (text("", n) for n in ("distances", "answers", "words"))
        words = VBox(
            [row(self.distances, self.answers), *self.sliders.values(), self.words],
            layout=Layout(flex="1 1 300px"),
        )
        self.content.children = [self.choice, row(self.picture, words)]
        self._request()

    def measure(self, state: InvarianceState) -> Invariance:
        """Distances and probabilities of the one picture at the one value, as `zfkit.invariance` gives them."""
        pair = [state.picture, (state.picture + 1) % len(self.pictures)]  # one alone has no different picture
        options = self.options | {"targets": [int(self.base.target[i]) for i in pair]}
        return invariance(
            self.model, self.pictures[pair], state.motion, [state.value], progress=False, **options
        )

    def set(self, **changes: Any) -> InvarianceExplorer:
        """Change the picture (its number in `index`), the motion and its value."""
        self.state = InvarianceState(**(self.state.__dict__ | changes))
        self._setting = True
        try:
            self.choice.value = self.state.picture
            for motion, control in self.sliders.items():
                control.value = self.state.value if motion == self.state.motion else STILL[motion]
        finally:
            self._setting = False
        self._request()
        return self

    def wait(self, timeout: float = 60.0) -> bool:
        """Until what is shown is what the state says; False if that took longer than `timeout` s."""
        return self.worker.wait(timeout)

    @guarded
    def _moved(self, motion: Motion, value: float) -> None:
        if not self._setting:
            self.tell("")
            self.set(motion=motion, value=float(value))

    @guarded
    def _chosen(self, change: Any) -> None:
        if not self._setting and change["new"] is not None:
            self.tell("")
            self.set(picture=change["new"])

    def _request(self) -> None:
        self.worker.submit("picture", self._show(self.state))

    def _show(self, state: InvarianceState) -> Steps:
        yield Progress("looking", 0.2)
        found = self.measure(state)
        moved = self._moved_picture(state)
        with torch.inference_mode():
            told = probabilities(self.model, self.model.net(self.model.preprocess(moved)))[0].cpu()
        yield None  # a newer request ends this one here
        self.picture.show(encode(fitted(to_picture(moved), SIDE)))
        rows = []
        for layer in found.layers:
            for name, values in ((layer, found.distance), ("resampling", found.control)):
                share = float(values[layer][0, 0]) / self.base.different[layer]
                rows.append((name, min(share, 1.0), f"{share:.2f}"))
        self.distances.value = "<p>distance (1: another picture); what resampling alone does</p>" + bars(
            rows, label="distances"
        )
        target = int(found.target[0])
        first = told.argsort(descending=True, stable=True)[:CLASSES].tolist()
        first = first if target in first else [*first[: CLASSES - 1], target]
        shown = [(self.name(i), float(told[i]), f"{told[i]:.2f}") for i in first]
        self.answers.value = "<p>probabilities</p>" + bars(shown, label="probabilities of the classes")
        whole, now = float(self.base.whole_probability[state.picture]), float(found.probability[0, 0])
        invented = float(found.invented[0])
        self.words.value = (
            f"<p role='status'>{state.motion} {state.value:g} ({UNITS[state.motion]}): "
            f"P({html.escape(self.name(target))}) {whole:.2f} untransformed, {now:.2f} now"
            + (f"; {100 * invented:.0f} % of the picture is filled in" if invented else "")
            + ".</p>"
        )

    def _moved_picture(self, state: InvarianceState) -> Tensor:
        options = {k: v for k, v in self.options.items() if k in ("oversample", "interpolation")}
        fill = filled(self.model, self.options.get("fill"))
        pictures = self.pictures[[state.picture]]
        return move(pictures, state.motion, state.value, self.base.window, fill=fill, **options)[0][0]

    def name(self, index: int) -> str:
        """Name of a class."""
        return self.model.classes[index] if self.model.classes else f"class {index}"


def explore_invariance(
    model: VisionModel, images: ImageSet | Tensor, index: Sequence[int] | None = None, **options: Any
) -> InvarianceExplorer:
    """Shift, scale and turn a picture by sliders, and see how far its features move.

    Args:
        images, index: at least two pictures, larger than the model's input where real pixels are to come in.
        options: as for `zfkit.invariance`: layers, targets, window, oversample, interpolation, fill.

    Raises as `zfkit.invariance` does.

    >>> explore_invariance(model, load_images("photos", size=200), [53, 125, 321], oversample=2)
    """
    return InvarianceExplorer(model, images, index, **options)
