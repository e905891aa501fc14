"""`Panel`, the box that a widget lives in: style, errors in place, a progress bar, a state and a background worker.

How a widget is put together, of `controls` and this:

>>> class Shifts(Panel):
...     def __init__(self, model, photo):
...         super().__init__("How far does a shift reach?")
...         self.state = ShiftState()                      # a frozen dataclass
...         self.shift = slider("shift, px", -30, 30, value=0, help="how far the picture is moved, in pixels")
...         self.bind(shift=self.shift)                    # moved by the user, it calls self.set(shift=...)
...         self.steer(across=self.shift)                  # so do the arrow keys
...         self.picture = Picture("the shifted picture and its projection", 460, 230)
...         self.content.children = [self.shift, self.picture, self.words]
...         self.refresh()
...
...     def arrange(self):                                 # the controls, as the state says
...         self.shift.value = self.state.shift
...
...     def paint(self, state, step):                      # in the worker's thread
...         encoded = encode(picture_of(state.shift))      # the slow part; pass it on_step=step if it takes that
...         step()                                         # a newer request ends this one here
...         self.picture.show(encoded)
...         self.caption("what is seen, in a sentence")    # which is saved with the picture, too
"""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import ipywidgets as W
from PIL import Image

from ..checks import one_of
from ..errors import ZfkitError
from ..files import write_whole
from .controls import ByProgram, Head, encode, pictures_in, styled, text, turn, write
from .drawing import with_caption
from .own import on_a_page
from .worker import Job, Worker

_STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


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


AnyState = TypeVar("AnyState")
AnyPanel = TypeVar("AnyPanel", bound="Panel")


def changed(state: AnyState, **changes: Any) -> AnyState:
    """A frozen dataclass with these fields changed. Raises ZfkitError for one that it does not have."""
    for name in changes:
        one_of(name, "setting", [f.name for f in fields(state)])  # type: ignore[arg-type]
    return replace(state, **changes)  # type: ignore[type-var]


class Panel(W.VBox):
    """The box that a widget lives in: title, content, errors in place, a progress bar, a worker.

    Put what is to be seen into `content.children`, and what is shown into `state`, a frozen dataclass. A widget says
    in `settled` which states there are, in `arrange` how its controls look in one, and in `paint` what is shown in it;
    `set`, `wait` and `bind` work with these. Callbacks are methods with `@guarded`: what they raise is shown above
    the content, in words, and recorded in `errors`, and the widget lives on. What is shown is dimmed until it belongs
    to the state.

    Args:
        title: in words; "" for none.
    """

    state: Any

    def __init__(self, title: str = "") -> None:
        self.errors: list[Failure] = []
        self.by_program = ByProgram()
        self.style = styled(W.HTML(f"<style>{_STYLE}</style>"), "style")
        self.head = Head(title=title)
        self.head.on_msg(self._asked)
        self.words, self.said = text("", "words"), ""
        self.save_to = None if on_a_page() else Path()
        self._steered: dict[str, tuple[W.Widget, int]] = {}
        self.notice = text("", "notice")
        self.notice.layout.display = "none"
        self._bar = W.FloatProgress(min=0, max=1, layout=W.Layout(width="160px", height="10px"))
        self._doing = W.Label("")
        self.busy = styled(W.HBox([self._bar, self._doing]), "busy")
        self.busy.layout.visibility = "hidden"
        self.content = styled(W.VBox(), "content")
        super().__init__([self.style, self.head, self.notice, self.content, self.busy])
        self.add_class("zfkit")
        self.worker = Worker(lambda error, key: self.fail(error, str(key)), self.show_progress)

    def __repr__(self) -> str:
        return f"{type(self).__name__}, a widget of zfkit that moves where there is a kernel"

    # What a widget says of itself.

    def settled(self, **changes: Any) -> Any:
        """The state after these changes. Raises ZfkitError for one that does not exist."""
        return changed(self.state, **changes)

    def arrange(self) -> None:
        """Set every control as the state says."""

    def paint(self, state: Any, step: Job) -> None:
        """Compute what this state shows, then call `step()`, then show it; in the worker's thread."""

    def snapshot(self) -> Image.Image | None:
        """What is on the page as one picture, for pages without a kernel; None while there is nothing to see."""
        return pictures_in(self.content)

    # What follows from that.

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget, and its snapshot for where no widget can be: GitHub, nbconvert, papermill."""
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if isinstance(data, dict) and "application/vnd.jupyter.widget-view+json" in data:
            data["text/plain"] = repr(self)
            with contextlib.suppress(ZfkitError):  # nothing to see yet
                if picture := self.snapshot():
                    data["image/jpeg"] = base64.b64encode(encode(picture, "jpeg")).decode()
        return bundle

    def set(self: AnyPanel, **changes: Any) -> AnyPanel:
        """Change fields of `state`. Raises ZfkitError, and changes nothing, for what does not exist."""
        self.state = self.settled(**changes)
        self.refresh()
        return self

    def refresh(self) -> None:
        """Controls and pictures to what the state says; the pictures once they are computed."""
        with self.by_program():
            self.arrange()
        state = self.state
        self.content.add_class("zfkit-stale")  # what is seen belongs to another until it is painted

        def show(step: Job) -> None:
            self.paint(state, step)
            if self.state is state:  # and not another asked for meanwhile
                self.content.remove_class("zfkit-stale")

        self.worker.submit("paint", show)

    def wait(self, timeout: float = 60.0) -> bool:
        """Until what is shown is what the state says; False if that took longer than `timeout` seconds."""
        return self.worker.wait(timeout)

    def bind(self, **controls: W.Widget) -> None:
        """Controls by field of the state: moved by the user, they change it. They get the class ``zfkit-FIELD``."""
        for name, control in controls.items():
            styled(control, name).observe(
                lambda change, name=name: self.by_user(**{name: change.new}), "value"
            )

    @guarded
    def by_user(self, **changes: Any) -> None:
        """What the user changed by a control; what the program or an emptied list did is passed over."""
        if not self.by_program.now and None not in changes.values():
            self.tell("")
            self.set(**changes)

    def fail(self, error: BaseException, where: str = "") -> None:
        """Show an error in words above the content, and record it."""
        sentence = str(error) if isinstance(error, ZfkitError) else (
            f"Something went wrong inside zfkit ({type(error).__name__}: {error}). The widget goes on; the whole story "
            "is in its .errors[-1].trace"
        )  # fmt: skip
        trace = "".join(traceback.format_exception(error))
        self.errors.append(Failure(where, sentence, error, trace))
        self.tell(sentence)

    def tell(self, sentence: str) -> None:
        """A sentence above the content; "" takes it away."""
        write(self.notice, f'<p role="alert">{html.escape(sentence)}</p>' if sentence else "")
        self.notice.layout.display = None if sentence else "none"

    def show_progress(self, what: str, done: float) -> None:
        """Move the bar below the content; "" takes it away."""
        if what:
            self._bar.value, self._doing.value = min(max(done, 0.0), 1.0), what
        self.busy.layout.visibility = "visible" if what else "hidden"

    def caption(self, words: str) -> None:
        """The sentence that goes with what is shown, and with what is saved of it."""
        self.said = words
        write(self.words, f"<p role='status'>{html.escape(words)}</p>")

    def steer(self, across: W.Widget | None = None, along: W.Widget | None = None) -> None:
        """Which control the arrow keys move: left and right the one, up and down the other."""
        for control, keys, shown in ((across, ("Left", "Right"), "← →"), (along, ("Down", "Up"), "↓ ↑")):
            if control is not None:
                self._steered |= {f"Arrow{key}": (control, by) for key, by in zip(keys, (-1, 1), strict=True)}
                self.head.moves = {**self.head.moves, shown: control.description}
        self.head.taken = ["?", *self._steered]

    @guarded
    def _asked(self, _: Any, content: Any, buffers: Any) -> None:
        """A request of the first line."""

        def send(step: Job) -> None:
            name, words, encoded = self.keep_figure()
            self.head.send({"kind": "saved", "name": name, "words": words}, [encoded])

        if content["kind"] == "save":
            self.worker.submit("save", send, what="saving")
        elif content["kind"] == "key" and content["key"] in self._steered:
            turn(*self._steered[content["key"]])

    def figure(self) -> Image.Image:
        """What is on the page as one picture with title and words, as it is saved."""
        if (picture := self.snapshot()) is None:
            raise ZfkitError("there is nothing to be saved yet")
        return with_caption([("", picture)], self.head.title, [self.said])

    def file_name(self) -> str:
        """Of what is saved, without its ending."""
        state = getattr(self, "state", None)
        kind = type(self).__name__.removesuffix("Explorer").lower()
        return "-".join([kind, *map(str, vars(state).values() if state else ())])

    def keep_figure(self) -> tuple[str, str, bytes]:
        """Save the figure, where there is a folder for it: name, what became of it in words, and the PNG."""
        encoded, words = encode(self.figure()), ""
        name = re.sub(r"[^\w.+-]", "_", self.file_name()) + ".png"
        if self.save_to is not None:
            try:
                write_whole(self.save_to / name, lambda part: part.write_bytes(encoded))
                words = f"Saved as {self.save_to / name}"
            except OSError as error:
                words = f"Not saved there ({error.strerror or error})"
        return name, words, encoded

    def close(self) -> None:
        """End the worker and take the widget away."""
        self.worker.close()
        super().close()
