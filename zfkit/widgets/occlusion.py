"""A grey square under your fingers, and what the network still says: Fig. 7 one place at a time.

`zfkit.widgets.explore_occlusion` opens it.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import torch
from ipywidgets import Layout, VBox
from torch import Tensor

from ..errors import ImageError, ZfkitError
from ..experiments.occlusion import (
    Colour,
    Occluder,
    choose_target,
    preprocessed_colour,
    probabilities,
    shown_colour,
)
from ..nets.model import VisionModel
from .drawing import bars, fitted, to_picture
from .panel import Panel, Picker, Steps, encode, guarded, row, slider, text

SIDE = 320  # of the picture on the page, in px
CLASSES = 5  # shown before and after
_STYLE = """
.zfkit-occlusion .zfkit-bar { fill: var(--zf-accent); }
.zfkit-occlusion svg text { fill: var(--zf-ink); }
"""


@dataclass(frozen=True)
class Answer:
    """What the network makes of one place of the square.

    Attributes:
        picture: (3, H, W) uint8 with the square in it.
        probability: (classes,) with the square; `whole` without.
        activity: of the watched map, summed, as a share of what it is without the square.
    """

    picture: Tensor
    probability: Tensor
    whole: Tensor
    activity: float


class OcclusionExplorer(Panel):
    """Drag a square over a picture; `zfkit.widgets.explore_occlusion` opens it.

    `place` is the square's first row and column, `answer(row, col, size)` what the network says to it, without
    any widget; `set(row=, col=, size=)` moves it from code, `wait` waits until that is shown.
    """

    def __init__(
        self,
        model: VisionModel,
        image: Tensor,
        target: int | str | None = None,
        *,
        layer: str | None = None,
        size: int | None = None,
        fill: Colour = None,
    ) -> None:
        super().__init__("Which part of the picture does the answer hang on?", _STYLE)
        self.add_class("zfkit-occlusion")
        if not isinstance(image, Tensor) or image.dim() != 3:
            raise ImageError("expected one uint8 RGB picture (3, H, W), as photos[0][0] is")
        self.model, self.image = model, image
        self.layer = layer or model.conv_layers[-1]
        model.network.find(self.layer)
        self.grey, self.colour = preprocessed_colour(model, fill), shown_colour(model, fill)
        self.occluder = Occluder.of(model, model.preprocess(image), self.layer)
        self.whole = probabilities(model, self.occluder.values[self.occluder.last])[0].cpu()
        self.target, self.target_from = choose_target(model, target, self.whole)
        sums = self.occluder.values[self.layer][0].clamp(min=0).flatten(1).sum(1)
        self.channel, self.sum = int(sums.argmax()), float(sums.max())
        H, W = image.shape[1:]
        size = min(H, W) // 4 if size is None else size
        if type(size) is not int or not 1 <= size <= min(H, W):
            raise ImageError(f"a square of {size!r} px does not fit into a picture of {W} x {H} px")
        self.place = (H - size) // 2, (W - size) // 2
        self._setting = False
        self.size = slider("size", 1, min(H, W), value=size, help="side of the square, in pixels")
        self.size.observe(self._resized, "value")
        self.picker = Picker("first row and column of the square", SIDE, SIDE * H // W)
        self.picker.on_pick(self._picked)
        self.words, self.before, self.after = (text("", name) for name in ("words", "before", "after"))
        words = VBox([row(self.before, self.after), self.words, self.size], layout=Layout(flex="1 1 300px"))
        self.content.children = [row(self.picker, words)]
        self._arrange()

    def answer(self, at_row: int, col: int, size: int) -> Answer:
        """The network's answer with a square of `size` px whose first pixel is (at_row, col)."""
        outputs = self.occluder.occluded(torch.tensor([[at_row, col]]), size, self.grey)
        activity = float(outputs[self.layer][0, self.channel].clamp(min=0).sum())
        probability = probabilities(self.model, outputs[self.occluder.last])[0].cpu()
        picture = self.image.clone()
        colour = torch.tensor(self.colour).round().to(torch.uint8)[:, None, None]
        picture[:, at_row : at_row + size, col : col + size] = colour
        return Answer(picture, probability, self.whole, activity / self.sum if self.sum else 0.0)

    def set(
        self, at_row: int | None = None, col: int | None = None, size: int | None = None
    ) -> OcclusionExplorer:
        """Move the square; what is left out stays. Raises ZfkitError for a place outside the picture."""
        H, W = self.image.shape[1:]
        size = self.size.value if size is None else size
        at_row, col = (
            old if new is None else new for new, old in zip((at_row, col), self.place, strict=True)
        )
        if not (1 <= size <= min(H, W) and 0 <= at_row <= H - size and 0 <= col <= W - size):
            raise ZfkitError(
                f"a square of {size} px at row {at_row}, column {col} is not within {W} x {H} px"
            )
        self.place = at_row, col
        self._setting = True
        self.size.value = size
        self._setting = False
        self._arrange()
        return self

    def wait(self, timeout: float = 60.0) -> bool:
        """Until what is shown is the place that was asked for; False if that took longer than `timeout` s."""
        return self.worker.wait(timeout)

    @guarded
    def _picked(self, at_row: int, col: int) -> None:
        self.tell("")
        self.set(at_row, col)

    @guarded
    def _resized(self, change: Any) -> None:
        if not self._setting:
            H, W = self.image.shape[1:]
            self.set(
                min(self.place[0], H - change["new"]), min(self.place[1], W - change["new"]), change["new"]
            )

    def _arrange(self) -> None:
        H, W = self.image.shape[1:]
        size = self.size.value
        # The canvas has a place for each first pixel; a frame of the square's extent is drawn around its middle.
        area = (size / 2 - 0.5) / W, (size / 2 - 0.5) / H
        self.picker.grid(H - size + 1, W - size + 1, (area[0], area[1], 1 - area[0], 1 - area[1]))
        self.picker.place.extent = [size / H, size / W]
        self.picker.pick(*self.place)
        self.worker.submit("answer", self._show(*self.place, size))

    def _show(self, at_row: int, col: int, size: int) -> Steps:
        found = self.answer(at_row, col, size)
        yield None  # a newer place ends this one here
        self.picker.show(encode(fitted(to_picture(found.picture), SIDE)))
        self.before.value = "<p>without the square</p>" + self._bars(found.whole, found.whole)
        self.after.value = "<p>with it</p>" + self._bars(found.probability, found.whole)
        name = html.escape(self.name(self.target))
        own = " (the network's own top class: there is no label)" if self.target_from == "model" else ""
        self.words.value = (
            f"<p role='status'>P({name}){own} goes from {found.whole[self.target]:.2f} to "
            f"{found.probability[self.target]:.2f}; map {self.channel} of {html.escape(self.layer)}, the strongest "
            f"here, keeps {100 * found.activity:.0f} % of its activity.</p>"
        )

    def name(self, index: int) -> str:
        """Name of a class."""
        return self.model.classes[index] if self.model.classes else f"class {index}"

    def _bars(self, shown: Tensor, whole: Tensor) -> str:
        first = shown.argsort(descending=True, stable=True)[:CLASSES].tolist()
        if self.target not in first:
            first = [*first[: CLASSES - 1], self.target]
        rows = [(self.name(i), float(shown[i]), f"{shown[i]:.2f}") for i in first]
        return bars(rows, label="probabilities of the classes")


def explore_occlusion(
    model: VisionModel, image: Tensor, target: int | str | None = None, **options: Any
) -> OcclusionExplorer:
    """Drag a grey square over a picture, and see what the network still says.

    Args:
        image: (3, H, W) uint8, of `model.input_size`.
        target: the correct class, by place or name; None for the model's own top class.
        options: layer (whose strongest map is watched), size of the square in pixels, fill (RGB 0-255).

    Raises as `zfkit.occlude` does.

    >>> explore_occlusion(model, photos[105][0], "espresso")
    """
    return OcclusionExplorer(model, image, target, **options)
