"""Boxes around parts, drawn by hand, and whether the network knows that the parts correspond: Table 1 of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ipywidgets import Layout, VBox
from PIL import ImageDraw
from torch import Tensor

from ..checks import one_of, whole_number
from ..errors import ImageError, ZfkitError
from ..experiments.correspondence import Correspondence, correspondence
from ..figures.experiments import PART_COLOURS
from ..figures.pictures import to_picture
from ..nets.model import VisionModel, expect_model
from .controls import Picker, button, choice, encode, row, text
from .drawing import fitted
from .panel import Panel, guarded
from .worker import Job

SIDE = 384  # of the picture on the page, in px


class PartsExplorer(Panel):
    """Draw boxes around the same parts in several pictures, and see whether they correspond for the network.

    `parts` are the boxes so far, `found` is the last result. From code: `draw(part, picture, box)`,
    `choose(part, picture)`, `compare()`.

    Args:
        pictures: (N, 3, H, W) uint8, at least 2, of `model.input_size`.
        parts: names to draw boxes for, or boxes to begin with, as `zfkit.correspondence` takes them.
        options: as for `zfkit.correspondence`: objects, groups, layers, draws, fill, random_seed.

    >>> explore_parts(model, pictures, ["beak", "eye"]).parts
    """

    def __init__(
        self,
        model: VisionModel,
        pictures: Tensor,
        parts: Sequence[str] | Mapping[str, Any] = ("left eye", "right eye", "nose"),
        **options: Any,
    ) -> None:
        super().__init__("Draw a box around the same part in every picture")
        expect_model(model)
        if not isinstance(pictures, Tensor) or pictures.dim() != 4 or len(pictures) < 2:
            raise ImageError("expected at least 2 uint8 RGB pictures (N, 3, H, W)")
        names = list(parts)
        if not names or len(set(names)) < len(names) or isinstance(parts, str):
            raise ZfkitError(f"parts must be different names, at least one, not {parts!r}")
        self.model, self.pictures, self.options = model, pictures, options
        self.found: Correspondence | None = None
        N = len(pictures)
        self.parts: dict[str, list[tuple[int, int, int, int] | None]] = {name: [None] * N for name in names}
        if isinstance(parts, Mapping):
            for name, boxes in parts.items():
                for i, box in enumerate(boxes):
                    known = box is not None and all(v == v for v in map(float, box))
                    self.parts[name][i] = self._checked(box) if known else None
        H, W = pictures.shape[2:]
        self.part = choice("part", names, value=names[0], help="which part the box is drawn around")
        self.picture = choice("picture", list(range(N)), value=0, help="which picture")
        self.picker = Picker("box around the part", SIDE, SIDE * H // W, sliders=False)
        self.picker.place.mode = "box"
        self.picker.place.observe(self._drawn, "box")
        for control in (self.part, self.picture):
            control.observe(self._chosen, "value")
        self.next = button("next picture", "the same part in the next picture", self._next, "next")
        self.clear = button("no such part here", "take this box away", self._clear, "clear")
        help = "cover the parts and compare the signs of the changes"
        self.go = button("compare", help, self._go, "compare")
        self.result = text("", "result")
        self.steer(across=self.picture, along=self.part)
        hint = text(
            "<p class='zfkit-soft'>Drag a box open with the mouse. By keyboard: arrow keys move it, with Shift they "
            "resize it.</p>"
        )
        controls = VBox(
            [self.part, self.picture, row(self.next, self.clear, self.go), self.words, hint],
            layout=Layout(flex="1 1 300px"),
        )
        self.content.children = [row(self.picker, controls), self.result]
        self.arrange()

    def draw(self, part: str, picture: int, box: Sequence[float] | None) -> PartsExplorer:
        """Set a box (left, top, right, bottom, in pixels), or None. Raises ImageError outside the picture."""
        self._check(part, picture)
        self.parts[part][picture] = None if box is None else self._checked(box)
        self.arrange()
        return self

    def choose(self, part: str, picture: int) -> PartsExplorer:
        """Show this picture, to draw around this part."""
        self._check(part, picture)
        with self.by_program():
            self.part.value, self.picture.value = part, picture
        self.arrange()
        return self

    def compare(self) -> PartsExplorer:
        """Compare what has been drawn so far: `found`, and the table on the page."""
        self.worker.submit("compare", self._measure, what="covering parts")
        return self

    def _check(self, part: str, picture: int) -> None:
        one_of(part, "part", self.parts)
        whole_number(picture, "picture", 0, len(self.pictures) - 1)

    def _checked(self, box: Sequence[float]) -> tuple[int, int, int, int]:
        H, W = self.pictures.shape[2:]
        left, top, right, bottom = (round(float(v)) for v in box)
        if not (0 <= left < right <= W and 0 <= top < bottom <= H):
            raise ImageError(f"the box {left, top, right, bottom} is empty or not within {W} x {H} px")
        return left, top, right, bottom

    @guarded
    def _chosen(self, change: Any) -> None:
        if not self.by_program.now:
            self.arrange()

    @guarded
    def _drawn(self, change: Any) -> None:
        H, W = self.pictures.shape[2:]
        left, top, right, bottom = (round(v * side) for v, side in zip(change.new, (W, H, W, H), strict=True))
        if not self.by_program.now and left < right and top < bottom:
            self.tell("")
            self.parts[self.part.value][self.picture.value] = left, top, right, bottom
            self._count()

    @guarded
    def _next(self, _: Any) -> None:
        self.choose(self.part.value, (self.picture.value + 1) % len(self.pictures))

    @guarded
    def _clear(self, _: Any) -> None:
        self.draw(self.part.value, self.picture.value, None)

    @guarded
    def _go(self, _: Any) -> None:
        self.tell("")
        self.compare()

    def arrange(self) -> None:
        """The picture, with the other parts' boxes, and the box that is being drawn."""
        i, part = self.picture.value, self.part.value
        H, W = self.pictures.shape[2:]
        picture = fitted(to_picture(self.pictures[i]), SIDE).copy()
        canvas = ImageDraw.Draw(picture)
        for (name, boxes), colour in zip(self.parts.items(), PART_COLOURS, strict=False):
            box = boxes[i]
            if name != part and box is not None:
                canvas.rectangle([v * SIDE / W for v in box], outline=colour, width=2)
        self.picker.show(encode(picture))
        own = self.parts[part][i] or (0, 0, 0, 0)
        with self.by_program():
            self.picker.place.box = [v / side for v, side in zip(own, (W, H, W, H), strict=True)]
        self._count()

    def _count(self) -> None:
        counts = [f"{name}: {sum(b is not None for b in boxes)}" for name, boxes in self.parts.items()]
        words = f"boxes in {len(self.pictures)} pictures: {', '.join(counts)}"
        if (groups := self.options.get("groups")) is not None:
            i = self.picture.value
            words += f"; picture {i} is of group {int(groups[i])}, within which none are compared"
        self.caption(words)

    def _measure(self, step: Job) -> None:
        drawn = {name: boxes for name, boxes in self.parts.items() if any(b is not None for b in boxes)}
        if not drawn:
            raise ZfkitError("no box has been drawn yet: draw one around a part in at least two pictures")
        options = {"progress": False} | self.options
        found = correspondence(self.model, self.pictures, drawn, on_step=step, **options)
        step()
        self.found = found
        columns = ["layer", "part", "score", "below_random", "below_same_place", "relative"]
        table = found.table()[columns].round(3)
        head = {"below_random": "draws of random as low", "below_same_place": "draws of same place as low"}
        self.result.value = (
            "<p>Mean share of features whose sign of change differs between two pictures; lower is more "
            "correspondence.</p>" + table.rename(columns=head).to_html(index=False, na_rep="", border=0)
        )


explore_parts = PartsExplorer
