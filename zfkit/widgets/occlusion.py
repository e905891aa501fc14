"""A grey square under your fingers, and what the network still says: Fig. 7 one place at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from ipywidgets import Layout, VBox
from torch import Tensor

from ..checks import whole_number
from ..errors import ImageError
from ..experiments.occluder import Occluder
from ..experiments.occlusion import (
    Colour,
    choose_target,
    last_block,
    preprocessed_colour,
    probabilities,
    shown_colour,
)
from ..figures.network import heat
from ..figures.pictures import to_picture
from ..nets.model import VisionModel, expect_model
from .controls import Picker, Picture, encode, row, slider, text
from .drawing import class_bars, class_name, fitted, over
from .panel import Panel
from .worker import Job

SIDE = 320  # of the picture on the page, in px


@dataclass(frozen=True)
class OcclusionState:
    """What is shown: the first row and column of the square, and its side, in pixels."""

    at_row: int
    col: int
    size: int


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
    """Drag a grey square over a picture, and see what the network still says.

    `state` says where the square is; `answer(row, col, size)` is what the network says to it, without any widget.

    Args:
        image: (3, H, W) uint8, of `model.input_size`.
        target: the correct class, by place or name; None for the model's own top class.
        layer: whose strongest map is watched.
        size, fill: of the square, in pixels and as RGB 0-255.

    Raises as `zfkit.occlude` does.

    >>> explore_occlusion(model, photos[105][0], "espresso")
    """

    state: OcclusionState

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
        super().__init__("Which part of the picture does the answer hang on?")
        expect_model(model)
        if not isinstance(image, Tensor) or image.dim() != 3:
            raise ImageError("expected one uint8 RGB picture (3, H, W), as photos[0][0] is")
        self.model, self.image = model, image
        self.layer = layer or last_block(model)
        model.network.find(self.layer)
        self.grey, self.colour = preprocessed_colour(model, fill), shown_colour(model, fill)
        self.occluder = Occluder.of(model, model.preprocess(image), self.layer)
        self.whole = probabilities(model, self.occluder.values[self.occluder.last])[0].cpu()
        self.target, self.target_from = choose_target(model, target, self.whole)
        sums = self.occluder.values[self.layer][0].clamp(min=0).flatten(1).sum(1)
        self.channel, self.sum = int(sums.argmax()), float(sums.max())
        H, W = image.shape[1:]
        size = self._checked_size(min(H, W) // 4 if size is None else size)
        self.state = OcclusionState((H - size) // 2, (W - size) // 2, size)
        self.size = slider("size", 1, min(H, W), value=size, help="side of the square, in pixels")
        self.bind(size=self.size)
        self.steer(along=self.size)
        self.picker = Picker("first row and column of the square", SIDE, SIDE * H // W)
        self.picker.on_pick(lambda at_row, col: self.by_user(at_row=at_row, col=col))
        self.before, self.after = text("", "before"), text("", "after")
        self.painted = Picture("where the squares so far took most from the class", SIDE, SIDE * H // W)
        self._seen: dict[
            int, dict[tuple[int, int], float]
        ] = {}  # by size and place: what is left of the class
        words = VBox([row(self.before, self.after), self.words, self.size], layout=Layout(flex="1 1 300px"))
        self.content.children = [row(self.picker, self.painted, words)]
        self.refresh()

    def _checked_size(self, size: int) -> int:
        return whole_number(size, "size of the square, in pixels,", 1, min(self.image.shape[1:]), ImageError)

    def answer(self, at_row: int, col: int, size: int) -> Answer:
        """The network's answer with a square of `size` px whose first pixel is (at_row, col)."""
        outputs = self.occluder.occluded(torch.tensor([[at_row, col]]), size, self.grey)
        activity = float(outputs[self.layer][0, self.channel].clamp(min=0).sum())
        probability = probabilities(self.model, outputs[self.occluder.last])[0].cpu()
        picture = self.image.clone()
        colour = torch.tensor(self.colour).round().to(torch.uint8)[:, None, None]
        picture[:, at_row : at_row + size, col : col + size] = colour
        return Answer(picture, probability, self.whole, activity / self.sum if self.sum else 0.0)

    def taken(self, size: int) -> Tensor:
        """(H, W) how much probability of the class squares of this size took, on average of those over each pixel."""
        lost, count = torch.zeros(2, *self.image.shape[1:])
        for (at_row, col), left in self._seen.get(size, {}).items():
            lost[at_row : at_row + size, col : col + size] += max(float(self.whole[self.target]) - left, 0.0)
            count[at_row : at_row + size, col : col + size] += 1
        return lost / count.clamp(min=1)

    def settled(self, **changes: Any) -> OcclusionState:
        """The state after these changes; a square that grows alone is moved back into the picture."""
        state: OcclusionState = super().settled(**changes)
        self._checked_size(state.size)
        H, W = self.image.shape[1:]
        if changes.keys() == {"size"}:
            at_row, col = min(state.at_row, H - state.size), min(state.col, W - state.size)
            return OcclusionState(at_row, col, state.size)
        whole_number(state.at_row, "the square's first row", 0, H - state.size, ImageError)
        whole_number(state.col, "the square's first column", 0, W - state.size, ImageError)
        return state

    def arrange(self) -> None:
        """Slider and mark to what the state says."""
        H, W = self.image.shape[1:]
        size = self.size.value = self.state.size
        # The canvas has a place for each first pixel; a frame of the square's extent is drawn around its middle.
        left, top = (size / 2 - 0.5) / W, (size / 2 - 0.5) / H
        self.picker.grid(H - size + 1, W - size + 1, (left, top, 1 - left, 1 - top))
        self.picker.place.extent = [size / H, size / W]
        self.picker.pick(self.state.at_row, self.state.col)

    def paint(self, state: OcclusionState, step: Job) -> None:
        """The picture with the square, the likeliest classes without and with it, and the numbers in words."""
        answer = self.answer(state.at_row, state.col, state.size)
        step()
        self.picker.show(encode(fitted(to_picture(answer.picture), SIDE)))
        left = float(answer.probability[self.target])
        self._seen.setdefault(state.size, {})[state.at_row, state.col] = left
        colours = heat(self.taken(state.size))
        self.painted.show(encode(over(to_picture(self.image), colours, (0, 0, 1, 1), SIDE)))
        for control, words, probability in (
            (self.before, "without the square", answer.whole),
            (self.after, "with it", answer.probability),
        ):
            bars = class_bars(self.model, probability, target=self.target)
            control.value = f"<p>{words}</p>{bars}"
        name = class_name(self.model, self.target)
        own = " (the network's own top class: there is no label)" if self.target_from == "model" else ""
        self.caption(
            f"P({name}){own} goes from {answer.whole[self.target]:.2f} to "
            f"{answer.probability[self.target]:.2f}; map {self.channel} of {self.layer}, the strongest "
            f"here, keeps {100 * answer.activity:.0f} % of its activity."
        )


explore_occlusion = OcclusionExplorer
