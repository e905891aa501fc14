"""What is seen and moved: sliders, buttons, words, pictures, and a place picked on a picture.

Pictures travel as one encoded file in one stock `ipywidgets.Image` (`Picture`). The only JavaScript is `Head`, a
widget's first line, and `Place`, a transparent canvas above a picture; `Picker` puts a picture below that.
"""

from __future__ import annotations

import html
import io
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import anywidget
import ipywidgets as W
import numpy as np
import traitlets as T
from PIL import Image
from torch import Tensor

_HERE = Path(__file__).parent

# ------------------------------------------------------------------------------------------------ controls

AnyWidget = TypeVar("AnyWidget", bound=W.Widget)


def styled(widget: AnyWidget, *names: str) -> AnyWidget:
    """The widget itself, with the classes ``zfkit-NAME`` of the style sheets."""
    for name in names:
        widget.add_class(f"zfkit-{name}")
    return widget


def slider(
    label: str, low: float, high: float, *, value: float | None = None, step: float = 1, help: str = "",
    **options: Any,
) -> Any:  # fmt: skip
    """A slider with a visible label; of whole numbers where low, high and step are, else of floats.

    `help`, a few words, is its tooltip, and the name of its handle for screen readers.
    """
    kind = W.IntSlider if all(isinstance(v, int) for v in (low, high, step)) else W.FloatSlider
    value = low if value is None else value
    options |= {"value": value, "step": step, "description": label, "tooltip": help or label}
    return styled(kind(min=low, max=high, **options), "slider")


def button(label: str, help: str, click: Callable[..., Any], name: str = "") -> W.Button:
    """A button; `help` is its tooltip and name for screen readers, `name` becomes its class ``zfkit-NAME``."""
    control = styled(W.Button(description=label, tooltip=help), "button", *filter(None, [name]))
    control.on_click(click)
    return control


def choice(label: str, options: Iterable[Any], *, value: Any = None, help: str = "") -> W.Dropdown:
    """A drop-down list with a visible label."""
    control = W.Dropdown(options=list(options), value=value, description=label, tooltip=help or label)
    return styled(control, "choice")


def turn(control: Any, by: int) -> None:
    """Move a slider by steps, or a list by entries, within its ends."""
    if isinstance(control, W.Dropdown):
        control.index = min(max((control.index or 0) + by, 0), max(len(control.options) - 1, 0))
    else:
        control.value = min(max(control.value + by * control.step, control.min), control.max)


def text(markup: str = "", name: str = "") -> W.HTML:
    """Words, as HTML that the caller has escaped; `name` becomes its class ``zfkit-NAME``."""
    return styled(W.HTML(markup), "text", *filter(None, [name]))


def row(*children: W.Widget, name: str = "") -> W.Box:
    """Children side by side, onto the next line where the page is narrow; `name` becomes class ``zfkit-NAME``."""
    return styled(W.Box(list(children)), "row", *filter(None, [name]))


def write(control: W.HTML, markup: str) -> None:
    """Set the words, if they are others: what has not changed is not sent to the browser again."""
    if control.value != markup:
        control.value = markup


class ByProgram(threading.local):
    """Does the program move controls in this thread just now? Then no user did.

    >>> with self.by_program():
    ...     self.shift.value = 3      # observers see self.by_program.now
    """

    now = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        before, self.now = self.now, True
        try:
            yield
        finally:
            self.now = before


# ------------------------------------------------------------------------------------------------ pictures


def encode(picture: Image.Image | np.ndarray | Tensor, kind: Literal["png", "jpeg", "webp"] = "png") -> bytes:
    """A picture as a file in memory, quickly: "png" is exact, "jpeg" (quality 90) smaller, for photographs, and "webp"
    (quality 80) smallest, for thumbnails.

    Takes a `PIL.Image`, uint8 (H, W, 3) or (H, W) as an array, or uint8 (3, H, W) as a tensor.
    """
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu().permute(1, 2, 0).contiguous().numpy()
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(np.ascontiguousarray(picture))
    buffer = io.BytesIO()
    if kind == "png":
        picture.save(buffer, "PNG", compress_level=1)  # twice as large as level 6, five times as fast
    elif kind == "webp":
        picture.convert("RGB").save(buffer, "WEBP", quality=80, method=2)
    else:
        picture.convert("RGB").save(buffer, "JPEG", quality=90, subsampling="4:4:4")  # for fine colours
    return buffer.getvalue()


_BLANK = encode(Image.new("RGBA", (1, 1)))  # what is not there yet is transparent


class Picture(W.Box):
    """One encoded picture in one `ipywidgets.Image`, or a sentence where it would be.

    Args:
        label: what it shows, in words, for screen readers (the image's alternative text).
        width, height: on the page, in px.
    """

    def __init__(self, label: str, width: int, height: int) -> None:
        size = {"width": f"{width}px", "height": f"{height}px"}
        self.image = styled(W.Image(value=_BLANK, width=str(width), height=str(height)), "image")
        self.image.layout = W.Layout(flex="0 0 auto", **size)
        self.message = styled(W.HTML(layout=W.Layout(display="none")), "message")
        super().__init__([self.image, self.message], layout=W.Layout(overflow="hidden", **size))
        styled(self, "picture")
        self.said = ""  # the sentence that stands where the picture would be
        self.label = self.image.alt = label

    def show(self, encoded: bytes, label: str | None = None) -> None:
        """Show an encoded picture (`encode`), and take away any sentence."""
        if label is not None and label != self.label:
            self.label = self.image.alt = label
        if self.image.value != encoded:
            self.image.value = encoded
        if self.said:
            self.said = ""
            self.message.layout.display, self.image.layout.display = "none", None

    def say(self, sentence: str) -> None:
        """A sentence where the picture would be."""
        if sentence != self.said:
            self.said = sentence
            self.message.value = f'<p role="status">{html.escape(sentence)}</p>'
            self.image.layout.display, self.message.layout.display = "none", None


def pictures_in(widget: W.Widget) -> Image.Image | None:
    """The pictures inside a widget as one, beside or below each other as its boxes have them; None for none."""
    if isinstance(widget, Picture):
        shown = not widget.said and widget.image.value != _BLANK
        return Image.open(io.BytesIO(widget.image.value)).convert("RGB") if shown else None
    inside = [p for child in getattr(widget, "children", ()) if (p := pictures_in(child))]
    return joined(inside, across=not isinstance(widget, W.VBox)) if inside else None


def joined(pictures: Sequence[Image.Image], *, across: bool = False, gap: int = 12) -> Image.Image:
    """Pictures of any size below or beside each other, on white."""
    widths, heights = zip(*(p.size for p in pictures), strict=True)
    between = gap * (len(pictures) - 1)
    size = (sum(widths) + between, max(heights)) if across else (max(widths), sum(heights) + between)
    whole, place = Image.new("RGB", size, "white"), 0
    for picture in pictures:
        whole.paste(picture, (place, 0) if across else (0, place))
        place += (picture.width if across else picture.height) + gap
    return whole


class Head(anywidget.AnyWidget):
    """The first line of a widget: title, "save picture" and "?"; it gives every control a name for screen readers.

    Messages to Python have a `kind`: "save", or "key" for an arrow key that no control took.

    Attributes:
        moves: what keys do, by their names.
        taken: the keys that it takes; others are the page's.
    """

    _esm = _HERE / "head.js"
    taken = T.List(["?"]).tag(sync=True)
    title = T.Unicode().tag(sync=True)
    moves = T.Dict().tag(sync=True)


class Place(anywidget.AnyWidget):
    """A transparent canvas above a picture, on which a place or a box is picked by click, drag or arrow keys.

    Use `Picker`, which puts it above a picture and adds sliders that do the same where it cannot load.

    Attributes:
        rows, cols: the grid of places.
        row, col: the one that is picked; -1 for none.
        area: left, top, right, bottom of the grid, as fractions of the picture.
        extent: (height, width) of the frame drawn around a place, as fractions of the picture; (0, 0) for the
            grid's own cell.
        mode: "place", or "box" for a box that is dragged open (arrow keys move it, with Shift resize it).
        box: left, top, right, bottom, as fractions of the picture.
        label: what is picked, in words, for screen readers.
    """

    _esm = _HERE / "place.js"
    rows = T.Int(1).tag(sync=True)
    cols = T.Int(1).tag(sync=True)
    row = T.Int(-1).tag(sync=True)
    col = T.Int(-1).tag(sync=True)
    area = T.List(T.Float(), default_value=[0.0, 0.0, 1.0, 1.0]).tag(sync=True)
    extent = T.List(T.Float(), default_value=[0.0, 0.0]).tag(sync=True)
    mode = T.Enum(["place", "box"], "place").tag(sync=True)
    box = T.List(T.Float(), default_value=[0.0, 0.0, 0.0, 0.0]).tag(sync=True)
    label = T.Unicode("place").tag(sync=True)


class Picker(W.VBox):
    """A picture on which a place is picked: by click, drag, arrow keys, or two sliders (row, column).

    `place` is the canvas (`Place`), `picture` what lies below it (`Picture`). `on_pick(callback)` is called with
    (row, col) when the user picks a place; `pick(row, col)` moves the mark from code, and calls nothing.

    Args:
        label: what is picked, in words.
        width, height: of the picture on the page, in px.
        sliders: with the two sliders below it.
    """

    def __init__(self, label: str, width: int, height: int, *, sliders: bool = True) -> None:
        self.picture, self.place = Picture(label, width, height), Place(label=label)
        stack = W.Box([self.picture, self.place], layout=W.Layout(width=f"{width}px", height=f"{height}px"))
        self.row = slider("row", 0, 0, help=f"{label}: row")
        self.col = slider("column", 0, 0, help=f"{label}: column")
        super().__init__([styled(stack, "stack"), *([self.row, self.col] if sliders else [])])
        styled(self, "picker")
        self._callbacks: list[Callable[[int, int], None]] = []
        self.by_program = ByProgram()
        self.place.observe(lambda _: self._picked(self.place.row, self.place.col), ["row", "col"])
        for control in (self.row, self.col):
            control.observe(lambda _: self._picked(self.row.value, self.col.value), "value")

    def show(self, encoded: bytes, label: str | None = None) -> None:
        """Show an encoded picture below the canvas."""
        self.picture.show(encoded, label)
        self.place.layout.display = None

    def say(self, sentence: str) -> None:
        """A sentence where the picture would be."""
        self.picture.say(sentence)
        self.place.layout.display = "none"

    def grid(self, rows: int, cols: int, area: Sequence[float] = (0, 0, 1, 1)) -> None:
        """Set the grid of places; `area` is left, top, right, bottom as fractions of the picture."""
        with self.by_program():
            with self.place.hold_sync():
                self.place.rows, self.place.cols = max(rows, 1), max(cols, 1)
                self.place.area = [float(v) for v in area]
            self.row.max, self.col.max = max(rows - 1, 0), max(cols - 1, 0)

    def pick(self, row: int, col: int) -> None:
        """Move the mark; no callback is called. (-1, -1) takes it away."""
        with self.by_program():
            with self.place.hold_sync():
                self.place.row, self.place.col = row, col
            for control, value in ((self.row, row), (self.col, col)):
                control.value = min(max(value, control.min), control.max)

    def on_pick(self, callback: Callable[[int, int], None]) -> None:
        """Call `callback(row, col)` whenever the user picks a place."""
        self._callbacks.append(callback)

    def _picked(self, row: int, col: int) -> None:
        if not self.by_program.now and min(row, col) >= 0:
            self.pick(row, col)
            for callback in self._callbacks:
                callback(row, col)
