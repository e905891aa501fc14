"""What all of zfkit's widgets are made of.

`Panel` is the box a widget lives in: style, errors in place, a progress bar and a background worker.
`Picture` shows one encoded picture, or a sentence where it would be. `Picker` is a picture on which a place is
picked by click, arrow keys, or two sliders that do the same. Pictures travel as one encoded file in one stock
`ipywidgets.Image`; the only JavaScript is `Place`, a transparent canvas above a picture.

How a widget is put together:

>>> class Shifts(Panel):
...     def __init__(self, model, photo):
...         super().__init__("How far does a shift reach?")
...         self.shift = slider("shift, px", -30, 30, value=0, help="how far the picture is moved, in pixels")
...         self.shift.observe(self.move, "value")
...         self.picture = Picture("the shifted picture and its projection", 460, 230)
...         self.content.children = [self.shift, self.picture]
...
...     @guarded
...     def move(self, change):
...         self.worker.submit("picture", self.draw(change.new))  # replaces a request that is under way
...
...     def draw(self, shift):
...         shown = encode(picture_of(shift))  # the slow part
...         yield  # a newer request ends this one here
...         self.picture.show(shown)
"""

from __future__ import annotations

import atexit
import functools
import html
import io
import threading
import time
import traceback
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import anywidget
import ipywidgets as W
import numpy as np
import traitlets as T
from PIL import Image
from torch import Tensor

from ..errors import ZfkitError

__all__ = [
    "Cache", "Failure", "Panel", "Picker", "Picture", "Place", "Progress", "Worker", "button", "choice", "encode",
    "guarded", "row", "slider", "text",
]  # fmt: skip

_HERE = Path(__file__).parent
_STYLE = (_HERE / "style.css").read_text(encoding="utf-8")

# ----------------------------------------------------------------------------------------------- pictures


def encode(picture: Image.Image | np.ndarray | Tensor, kind: Literal["png", "jpeg"] = "png") -> bytes:
    """A picture as a file in memory, quickly: "png" is exact, "jpeg" (quality 90) smaller, for photographs.

    Takes a `PIL.Image`, uint8 (H, W, 3) or (H, W) as an array, or uint8 (3, H, W) as a tensor.
    """
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu().permute(1, 2, 0).contiguous().numpy()
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(np.ascontiguousarray(picture))
    buffer = io.BytesIO()
    if kind == "png":
        picture.save(buffer, "PNG", compress_level=1)  # twice as large as level 6, five times as fast
    else:
        picture.convert("RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


_BLANK = encode(Image.new("RGBA", (1, 1)))  # what is not there yet is transparent


class Picture(W.Box):
    """One encoded picture in one `ipywidgets.Image`, or a sentence where it would be.

    Args:
        label: what it shows, in words, for screen readers (the image's alternative text).
        width, height: on the page, in px.
    """

    def __init__(self, label: str, width: int, height: int, **options: Any) -> None:
        self.image = W.Image(value=_BLANK, format="png", width=str(width), height=str(height))
        self.image.add_class("zfkit-image")
        self.image.layout = W.Layout(width=f"{width}px", height=f"{height}px", flex="0 0 auto")
        self.message = W.HTML(layout=W.Layout(display="none"))
        self.message.add_class("zfkit-message")
        super().__init__([self.image, self.message], **options)
        self.add_class("zfkit-picture")
        self.layout.width, self.layout.height = f"{width}px", f"{height}px"
        self.layout.overflow = "hidden"
        self.said = ""
        self.label = label
        self.image.alt = label

    def show(self, encoded: bytes, label: str | None = None) -> None:
        """Show an encoded picture (`encode`), and take away any sentence."""
        if label is not None and label != self.image.alt:
            self.image.alt = self.label = label
        if self.image.value != encoded:
            self.image.value = encoded
        if self.said:
            self.said = ""
            self.message.layout.display = "none"
            self.image.layout.display = None

    def say(self, sentence: str) -> None:
        """A sentence where the picture would be."""
        if sentence == self.said:
            return
        self.said = sentence
        self.message.value = f'<p role="status">{html.escape(sentence)}</p>'
        self.image.layout.display = "none"
        self.message.layout.display = None


# ------------------------------------------------------------------------------------------ picking a place


class Place(anywidget.AnyWidget):
    """A transparent canvas above a picture, on which a place or a box is picked by click, drag or arrow keys.

    Use `Picker`, which puts it above a picture and adds sliders that do the same where it cannot load. Once
    shown, it also gives every control of its `Panel` a name for screen readers.

    Attributes:
        rows, cols: the grid of places.
        row, col: the one that is picked; -1 for none.
        hover: (row, col) below the pointer, (-1, -1) when it is elsewhere; only with `watch_hover`.
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
    hover = T.List(T.Int(), default_value=[-1, -1]).tag(sync=True)
    watch_hover = T.Bool(False).tag(sync=True)
    area = T.List(T.Float(), default_value=[0.0, 0.0, 1.0, 1.0]).tag(sync=True)
    extent = T.List(T.Float(), default_value=[0.0, 0.0]).tag(sync=True)
    mode = T.Enum(["place", "box"], "place").tag(sync=True)
    box = T.List(T.Float(), default_value=[0.0, 0.0, 0.0, 0.0]).tag(sync=True)
    label = T.Unicode("place").tag(sync=True)


class Picker(W.VBox):
    """A picture on which a place is picked: by click, drag, arrow keys, or two sliders (row, column).

    Args:
        label: what is picked, in words.
        width, height: of the picture on the page, in px.
        sliders: with the two sliders below it.
        hover: report the place below the pointer in `place.hover`.

    `place` is the canvas (`Place`), `picture` what lies below it (`Picture`); `picker.show(encoded)` and
    `picker.say(sentence)` are the picture's. Call `on_pick(callback)` to be told of a place that somebody
    picked, and `pick(row, col)` to move the mark without telling.
    """

    def __init__(
        self,
        label: str,
        width: int,
        height: int,
        *,
        sliders: bool = True,
        hover: bool = False,
        **options: Any,
    ) -> None:
        self.picture = Picture(label, width, height)
        self.place = Place(label=label, watch_hover=hover)
        stack = W.Box([self.picture, self.place], layout=W.Layout(width=f"{width}px", height=f"{height}px"))
        stack.add_class("zfkit-stack")
        self.row = slider("row", 0, 0, help=f"{label}: row")
        self.col = slider("column", 0, 0, help=f"{label}: column")
        children: list[W.Widget] = [stack]
        if sliders:
            children += [self.row, self.col]
        super().__init__(children, **options)
        self.add_class("zfkit-picker")
        self._told: list[Callable[[int, int], None]] = []
        self._moving = (
            threading.local()
        )  # in the thread that moves the controls itself: nobody picked anything
        self.place.observe(self._from_place, ["row", "col"])
        self.row.observe(self._from_sliders, "value")
        self.col.observe(self._from_sliders, "value")

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
        self._moving.now = True
        try:
            with self.place.hold_sync():
                self.place.rows, self.place.cols = max(rows, 1), max(cols, 1)
                self.place.area = [float(v) for v in area]
            for control, count in ((self.row, rows), (self.col, cols)):
                control.max = max(count - 1, 0)
        finally:
            self._moving.now = False

    def pick(self, row: int, col: int) -> None:
        """Move the mark; nobody is told. (-1, -1) takes it away."""
        self._moving.now = True
        try:
            with self.place.hold_sync():
                self.place.row, self.place.col = row, col
            for control, value in ((self.row, row), (self.col, col)):
                control.value = min(max(value, control.min), control.max)
        finally:
            self._moving.now = False

    def on_pick(self, callback: Callable[[int, int], None]) -> None:
        """Call `callback(row, col)` whenever somebody picks a place."""
        self._told.append(callback)

    def _from_place(self, change: Any) -> None:
        if getattr(self._moving, "now", False) or min(self.place.row, self.place.col) < 0:
            return
        self._tell(self.place.row, self.place.col)

    def _from_sliders(self, change: Any) -> None:
        if not getattr(self._moving, "now", False):
            self._tell(self.row.value, self.col.value)

    def _tell(self, row: int, col: int) -> None:
        self.pick(row, col)
        for callback in self._told:
            callback(row, col)


# ------------------------------------------------------------------------------------------------ controls


def slider(
    label: str, low: float, high: float, *, value: float | None = None, step: float = 1, help: str = "",
    readout: bool = True, readout_format: str | None = None, on_release: bool = False,
) -> Any:  # fmt: skip
    """A slider with a visible label; of whole numbers where low, high and step are, else of floats.

    Args:
        help: what it does, in a few words: the tooltip, and the name of its handle for screen readers.
        on_release: tell of a new value when the handle is let go, not while it moves.
    """
    whole = all(isinstance(v, int) for v in (low, high, step))
    kind = W.IntSlider if whole else W.FloatSlider
    options = {"readout_format": readout_format} if readout_format else {}
    control = kind(
        value=low if value is None else value, min=low, max=high, step=step, description=label,
        readout=readout, continuous_update=not on_release, tooltip=help or label, **options,
    )  # fmt: skip
    control.add_class("zfkit-slider")
    return control


def button(label: str, help: str, click: Callable[..., Any], name: str = "") -> W.Button:
    """A button; `help` is its tooltip and name for screen readers, `name` becomes its class ``zfkit-NAME``."""
    control = W.Button(description=label, tooltip=help)
    control.add_class("zfkit-button")
    if name:
        control.add_class(f"zfkit-{name}")
    control.on_click(click)
    return control


def choice(label: str, options: Iterable[Any], *, value: Any = None, help: str = "") -> W.Dropdown:
    """A drop-down list with a visible label."""
    options = list(options)
    control = W.Dropdown(
        options=options, value=value if value is not None else None, description=label, tooltip=help or label
    )
    control.add_class("zfkit-choice")
    return control


def text(markup: str = "", name: str = "") -> W.HTML:
    """Words, as HTML that the caller has escaped; `name` becomes its class ``zfkit-NAME``."""
    control = W.HTML(markup)
    control.add_class("zfkit-text")
    if name:
        control.add_class(f"zfkit-{name}")
    return control


def row(*children: W.Widget, name: str = "") -> W.Box:
    """Children side by side, onto the next line where the page is narrow; `name` becomes class ``zfkit-NAME``."""
    box = W.Box(list(children))
    box.add_class("zfkit-row")
    if name:
        box.add_class(f"zfkit-{name}")
    return box


# ------------------------------------------------------------------------------------------------- errors


@dataclass(frozen=True)
class Failure:
    """An error that a widget met, shown and went on from."""

    where: str
    message: str
    error: BaseException
    trace: str


Method = TypeVar("Method", bound=Callable[..., Any])


def guarded(method: Method) -> Method:
    """A method of a `Panel`, as a callback: what it raises is shown in place, in words, and recorded.

    Otherwise an error inside a callback is seen nowhere: notebooks drop it.
    """

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **options: Any) -> Any:
        try:
            return method(self, *args, **options)
        except Exception as error:
            self.fail(error, method.__name__)
            return None

    return wrapped  # type: ignore[return-value]


# ------------------------------------------------------------------------------------------------- worker


class Progress(NamedTuple):
    """How far a job is: what it does, which fraction is done, and whether the next piece alone takes long."""

    doing: str
    done: float
    slow: bool = False


Steps = Generator[Progress | None, None, None]


@dataclass(eq=False)
class _Job:
    key: Hashable
    steps: Steps
    urgency: int
    number: int
    started: float = 0.0
    spent: float = 0.0


class Worker:
    """One thread that computes for a widget, the most urgent first, so that nothing blocks.

    A job is a generator, run from one ``yield`` to the next. Where a more urgent job has come, that goes
    first; where a newer job has the same key, the older one ends at its next ``yield``. So compute, ``yield``,
    then show: what is shown is then never older than what was asked. ``yield Progress("mining", 0.3)`` moves
    the progress bar, which appears for what takes longer than half a second.

    Args:
        failed: called with (error, key) when a job raises.
        progress: called with (`Progress`, seconds so far) at each of these yields, with (None, 0) at the end.
    """

    NOW, SOON, IDLE, LATER = 0, 1, 2, 3

    def __init__(
        self,
        failed: Callable[[Exception, Hashable], None] | None = None,
        progress: Callable[[Progress | None, float], None] | None = None,
    ) -> None:
        self.failed, self.progress = failed, progress
        self._jobs: dict[Hashable, _Job] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._count = 0
        self._closed = False

    def submit(self, key: Hashable, steps: Steps, urgency: int = NOW) -> None:
        """Ask for a job; one with the same key is given up. Returns at once."""
        with self._changed:
            if self._closed:
                return
            self._count += 1
            self._jobs[key] = _Job(key, steps, urgency, self._count)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="zfkit widget", daemon=True)
                self._thread.start()
                _WORKERS.add(self)
            self._changed.notify_all()

    def cancel(self, key: Hashable) -> None:
        """Give a job up, if it is there."""
        with self._changed:
            self._jobs.pop(key, None)
            self._changed.notify_all()

    def has(self, key: Hashable) -> bool:
        """Is such a job waiting or running?"""
        with self._changed:
            return key in self._jobs

    def wait(self, timeout: float | None = 60.0, urgency: int = SOON) -> bool:
        """Until no job of this urgency or a higher one is left; False if that took longer than `timeout` s."""

        def done() -> bool:
            return not any(job.urgency <= urgency for job in self._jobs.values())

        with self._changed:
            return self._changed.wait_for(done, timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Drop all jobs and end the thread."""
        with self._changed:
            self._closed = True
            self._jobs.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return
                job = min(self._jobs.values(), key=lambda j: (j.urgency, j.number))
            start = time.perf_counter()
            said: Progress | None = None
            ended = False
            try:
                said = next(job.steps)
            except StopIteration:
                ended = True
            except Exception as error:
                ended = True
                if self.failed:
                    self.failed(error, job.key)
            job.spent += time.perf_counter() - start
            if self.progress and job.urgency < self.IDLE:
                self.progress(None if ended else said, job.spent)
            with self._changed:
                current = self._jobs.get(job.key) is job
                if ended and current:
                    del self._jobs[job.key]
                self._changed.notify_all()
            if not ended and not current:
                job.steps.close()
                if self.progress and job.urgency < self.IDLE:
                    self.progress(None, 0.0)


_WORKERS: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _close_workers() -> None:
    for worker in list(_WORKERS):  # a thread inside torch while Python ends would crash it
        worker.close()


class Cache:
    """The last results that fit into so many bytes, for the quick way back; used by one thread or several.

    Args:
        limit: of what is kept, in bytes; `size` says how large a result is.
    """

    def __init__(self, limit: int, size: Callable[[Any], int] = len) -> None:
        self.limit, self.size = limit, size
        self.bytes = 0
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any | None:
        """What was kept under this key, or None."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Hashable, value: Any) -> Any:
        """Keep it, dropping what was unused longest; returns it."""
        with self._lock:
            if key in self._kept:
                self.bytes -= self.size(self._kept.pop(key))
            self._kept[key] = value
            self.bytes += self.size(value)
            while self.bytes > self.limit and len(self._kept) > 1:
                self.bytes -= self.size(self._kept.popitem(last=False)[1])
        return value

    def __len__(self) -> int:
        return len(self._kept)


# ------------------------------------------------------------------------------------------------- panel

SHOW_PROGRESS_AFTER = 0.5  # seconds


class Panel(W.VBox):
    """The box that a widget lives in: title, content, errors in place, a progress bar, a worker.

    Args:
        title: in words; "" for none.
        style: CSS of this widget alone; its selectors begin with ``.zfkit``.

    Put what is to be seen into `content.children`. Callbacks are methods with `@guarded`: what they raise is
    shown above the content, in words, and recorded in `errors`, and the widget lives on. Slow things go to
    `worker`. `live` turns True when a front end has shown the widget; leave what is only worth while for
    somebody who looks (computing ahead) until `on_live`.
    """

    def __init__(self, title: str = "", style: str = "") -> None:
        self.errors: list[Failure] = []
        self.live = False
        self.style = W.HTML(f"<style>{_STYLE}{style}</style>")
        self.style.add_class("zfkit-style")
        self.title = text(f"<h2>{html.escape(title)}</h2>" if title else "", "title")
        self.notice = text("", "notice")
        self.notice.layout.display = "none"
        self._bar = W.FloatProgress(min=0, max=1, layout=W.Layout(width="160px", height="10px"))
        self._doing = W.Label("")
        self.busy = W.HBox([self._bar, self._doing])
        self.busy.add_class("zfkit-busy")
        self.busy.layout.visibility = "hidden"
        self.content = W.VBox()
        self.content.add_class("zfkit-content")
        super().__init__([self.style, self.title, self.notice, self.content, self.busy])
        self.add_class("zfkit")
        self.worker = Worker(self._job_failed, self._job_progress)

    def fail(self, error: BaseException, where: str = "") -> None:
        """Show an error in words above the content, and record it."""
        if isinstance(error, ZfkitError):
            sentence = str(error)
        else:
            sentence = (
                f"Something went wrong inside zfkit ({type(error).__name__}: {error}). The widget goes on; "
                "the whole story is in its .errors[-1].trace"
            )
        trace = "".join(traceback.format_exception(error))
        self.errors.append(Failure(where, sentence, error, trace))
        self.tell(sentence)

    def tell(self, sentence: str) -> None:
        """A sentence above the content; "" takes it away."""
        shown = f'<p role="alert">{html.escape(sentence)}</p>' if sentence else ""
        if self.notice.value != shown:
            self.notice.value = shown
            self.notice.layout.display = None if sentence else "none"

    def watch(self, *places: Place) -> None:
        """Learn from these canvases that a front end has shown the widget."""
        for place in places:
            place.on_msg(self._message)

    def on_live(self) -> None:
        """Called once, when a front end has shown the widget."""

    def _message(self, place: Any, content: Any, buffers: Any) -> None:
        if isinstance(content, dict) and content.get("kind") == "ready":
            self.go_live()

    @guarded
    def go_live(self) -> None:
        """Somebody is looking: begin with what is worth while only then."""
        if not self.live:
            self.live = True
            self.on_live()

    def _job_failed(self, error: Exception, key: Hashable) -> None:
        self.fail(error, str(key))

    def _job_progress(self, progress: Progress | None, seconds: float) -> None:
        if progress is None:
            if self.busy.layout.visibility != "hidden":
                self.busy.layout.visibility = "hidden"
            return
        if seconds < SHOW_PROGRESS_AFTER and not progress.slow:
            return
        self._bar.value = min(max(progress.done, 0.0), 1.0)
        self._doing.value = progress.doing
        self.busy.layout.visibility = "visible"

    def close(self) -> None:
        """End the worker and take the widget away."""
        self.worker.close()
        super().close()
