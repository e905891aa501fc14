"""What all widgets are made of: worker, panel, pictures, picking a place; and names that hide ipywidgets'."""

from __future__ import annotations

import base64
import importlib
import io
import pkgutil
import threading
from dataclasses import dataclass
from pathlib import Path

import ipywidgets as W
import numpy as np
import pytest
import torch
import traitlets
from explored import opened, png
from PIL import Image

import zfkit
import zfkit.widgets
from zfkit.errors import LayerError, ZfkitError
from zfkit.widgets import Panel, Picker, Picture
from zfkit.widgets.controls import encode, row, slider
from zfkit.widgets.panel import guarded
from zfkit.widgets.worker import Worker


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.close()


# --------------------------------------------------------------------------------------------------- worker


def test_a_newer_request_ends_the_older_one(worker):
    seen, began, gate = [], threading.Event(), threading.Event()

    def job(name):
        def work(step):
            seen.append(f"{name} begins")
            began.set()
            gate.wait(5)
            step()
            seen.append(f"{name} shows")

        return work

    worker.submit("view", job("old"))
    assert began.wait(5)
    worker.submit("view", job("new"))
    gate.set()
    assert worker.wait(10)
    assert seen == ["old begins", "new begins", "new shows"]


def test_a_job_gives_way_to_a_more_urgent_one_and_is_begun_anew(worker):
    seen, began, gate = [], threading.Event(), threading.Event()

    def later(step):
        began.set()
        gate.wait(5)
        step()
        seen.append("later")

    worker.submit("later", later, Worker.LATER)
    assert began.wait(5)
    worker.submit("urgent", lambda step: seen.append("urgent"))
    gate.set()
    assert worker.wait(10, Worker.LATER)
    assert seen == ["urgent", "later"]


def test_it_goes_on_after_an_error_and_ends_when_closed():
    failures, seen = [], []
    worker = Worker(failed=lambda error, key: failures.append((str(error), key)))

    def bad(step):
        raise ValueError("broken")

    worker.submit("bad", bad)
    worker.submit("good", lambda step: seen.append(1))
    assert worker.wait(10)
    assert failures == [("broken", "bad")] and seen == [1]
    began = threading.Event()

    def endless(step):
        while True:
            began.set()
            step()

    worker.submit("endless", endless)
    assert began.wait(5)
    worker.close()
    assert not worker._thread.is_alive()
    worker.submit("late", lambda step: seen.append(2))  # after the end: nothing, and no error
    assert seen == [1]


def test_the_progress_bar_appears_for_what_takes_long():
    panel, shown = Panel("a title"), []
    panel.busy.layout.observe(lambda change: shown.append((change.new, panel._doing.value)), "visibility")

    def work(step):
        step(1, 4)  # at once: nothing
        step.started -= 1  # a second later
        step(3, 4)

    panel.worker.submit("slow", work, what="counting")
    assert panel.wait(10)
    panel.close()
    assert shown == [("visible", "counting"), ("hidden", "counting")] and panel._bar.value == 0.75


# --------------------------------------------------------------------------------------------------- panel


@dataclass(frozen=True)
class Number:
    value: int = 0


class Doubling(Panel):
    """The smallest widget."""

    def __init__(self):
        super().__init__("Twice")
        self.state, self.shown = Number(), []
        self.slider = slider("number", 0, 9, help="what is doubled")
        self.bind(value=self.slider)
        self.content.children = [self.slider]
        self.refresh()

    def settled(self, **changes):
        state = super().settled(**changes)
        if state.value == 7:
            raise LayerError("there is no number <7>")
        return state

    def arrange(self):
        self.slider.value = self.state.value

    def paint(self, state, step):
        step()
        self.shown.append(2 * state.value)


@pytest.fixture
def doubling():
    made = Doubling()
    yield made
    made.close()


def test_controls_change_the_state_and_the_state_the_controls(doubling):
    doubling.slider.value = 3
    assert doubling.wait() and doubling.state == Number(3) and doubling.shown[-1] == 6
    assert doubling.set(value=5) is doubling and doubling.slider.value == 5
    assert doubling.wait() and doubling.shown[-1] == 10
    with pytest.raises(ZfkitError, match="Did you mean 'value'"):
        doubling.set(valu=1)
    with pytest.raises(LayerError):
        doubling.set(value=7)
    assert doubling.state == Number(5)


def test_what_a_callback_raises_is_shown_and_recorded(doubling):
    doubling.slider.value = 7
    assert "there is no number &lt;7&gt;" in doubling.notice.value and doubling.errors[0].where == "by_user"
    doubling.slider.value = 2
    assert doubling.notice.value == "" and doubling.state == Number(2)

    class Broken(Doubling):
        @guarded
        def press(self):
            raise RuntimeError("a bug")

    broken = Broken()
    assert broken.press() is None
    assert "RuntimeError: a bug" in broken.notice.value and "in press" in broken.errors[0].trace
    broken.close()


# ------------------------------------------------------------------------------------- pictures and places


def test_picture_shows_or_says():
    picture = Picture("a <picture>", 10, 10)
    picture.say("no <b>picture</b>")
    assert "&lt;b&gt;" in picture.message.value and picture.image.layout.display == "none"
    picture.show(png((4, 4)))
    assert picture.said == "" and picture.message.layout.display == "none"
    assert picture.image.layout.display is None and picture.image.alt == "a <picture>"


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_encode_takes_arrays_tensors_and_pictures(kind):
    pixels = np.full((6, 8, 3), (200, 30, 90), np.uint8)
    for given in (pixels, torch.from_numpy(pixels).permute(2, 0, 1), Image.fromarray(pixels)):
        assert np.abs(opened(encode(given, kind)) - pixels).max() <= (0 if kind == "png" else 6)
    assert opened(encode(pixels[..., 0], kind)).shape == (6, 8, 3)


def test_picker_calls_back_once_and_only_for_the_user():
    picked = []
    picker = Picker("place", 20, 20)
    picker.on_pick(lambda r, c: picked.append((r, c)))
    picker.grid(5, 7)
    picker.pick(2, 3)
    assert picked == []
    assert (picker.row.value, picker.col.value, picker.row.max, picker.col.max) == (2, 3, 4, 6)
    picker.place.set_state({"row": 4, "col": 6})
    assert picked[-1] == (4, 6) and picker.col.value == 6
    picked.clear()
    picker.row.value = 1
    assert picked == [(1, 6)] and picker.place.row == 1


def test_arrow_keys_move_what_is_steered_within_its_ends(doubling):
    choices = W.Dropdown(options=["a", "b"], description="letter")
    doubling.steer(across=doubling.slider, along=choices)
    assert doubling.head.moves == {"← →": "number", "↓ ↑": "letter"}
    assert set(doubling.head.taken) == {"?", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"}
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "x"):
        doubling.head._handle_custom_msg({"kind": "key", "key": key}, [])
    assert doubling.wait() and doubling.state == Number(1) and choices.value == "a"
    for key in ("ArrowLeft", "ArrowLeft", "ArrowUp", "ArrowUp"):
        doubling.head._handle_custom_msg({"kind": "key", "key": key}, [])
    assert doubling.wait() and doubling.state == Number(0) and choices.value == "b" and not doubling.errors


def test_what_is_shown_is_stale_until_it_is_painted(doubling, monkeypatch):
    assert doubling.wait() and "zfkit-stale" not in doubling.content._dom_classes
    gate = threading.Event()
    monkeypatch.setattr(doubling, "paint", lambda state, step: gate.wait(5))
    doubling.slider.value = 4
    assert "zfkit-stale" in doubling.content._dom_classes
    gate.set()
    assert doubling.wait() and "zfkit-stale" not in doubling.content._dom_classes


def test_save_keeps_what_is_seen_with_its_words(doubling, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(doubling.head, "send", lambda content, buffers=(): said.append((content, buffers)))
    doubling.save_to = tmp_path
    doubling.head._handle_custom_msg({"kind": "save"}, [])
    assert doubling.wait() and "nothing to be saved yet" in doubling.notice.value
    picture = Picture("red", 600, 40)
    picture.show(encode(Image.new("RGB", (600, 40), "red")))
    doubling.content.children = [picture]
    doubling.caption("twice 3 is <6>")
    doubling.head._handle_custom_msg({"kind": "save"}, [])
    assert doubling.wait() and "&lt;6&gt;" in doubling.words.value
    ((content, (png,)),) = said
    file = tmp_path / "doubling-0.png"
    assert content == {"kind": "saved", "name": file.name, "words": f"Saved as {file}"}
    assert file.read_bytes() == png
    saved = opened(png)
    red = (saved == (255, 0, 0)).all(-1)
    assert red.sum() == 600 * 40 and saved.shape[0] > 40 + 60  # and title and caption around it
    rows = np.flatnonzero(red.any(1))
    assert (saved[: rows[0]] < 128).any() and (saved[rows[-1] + 1 :] < 128).any()


# ------------------------------------------------------------------------------------------------ all of them

MEANT = {"close", "_repr_mimebundle_", "_esm"}  # ipywidgets' own, extended on purpose
OF_EVERY_CLASS = set(vars(type("Empty", (traitlets.HasTraits,), {})))  # that traitlets writes into it


def widget_classes():
    for module in pkgutil.iter_modules(zfkit.widgets.__path__):
        for value in vars(importlib.import_module(f"zfkit.widgets.{module.name}")).values():
            is_class = isinstance(value, type) and issubclass(value, traitlets.HasTraits)
            if is_class and value.__module__.startswith("zfkit."):
                yield value


def test_no_name_of_a_widget_hides_one_of_ipywidgets(world):
    """A method called `_compare`, say, would stand in for the one by which ipywidgets compares values."""
    classes = set(widget_classes())
    assert {"Explorer", "PartsExplorer", "Picker", "Place"} <= {c.__name__ for c in classes}
    for cls in classes:
        own, theirs = set(), set()
        for base in cls.__mro__:
            (own if base.__module__.startswith("zfkit.") else theirs).update(vars(base))
        hidden = {name for name in own & theirs if not name.startswith("__")}
        assert hidden <= MEANT | OF_EVERY_CLASS, cls
    for made in (zfkit.explore(*world, save_to=None), Picker("place", 9, 9), Picture("picture", 9, 9)):
        assert not {n for n in vars(made).keys() - vars(W.VBox()).keys() if hasattr(W.VBox, n)}
        made.close()


def test_the_canvas_asks_no_other_machine():
    folder = Path(zfkit.__file__).parent / "widgets"
    for file in [*folder.glob("*.js"), *folder.glob("*.css"), *folder.glob("page/**/*.[hj][2t]*")]:
        source = file.read_text()
        assert "import " not in source.split("{%")[0] or file.suffix == ".j2"
        source = source.replace("http://www.w3.org/2000/svg", "")  # a name, which nobody asks for
        assert not any(word in source for word in ("http://", "https://", "@import", "url("))


def test_a_widget_leaves_its_pictures_in_the_notebook():
    """As its boxes have them: two beside each other, a third below; what shows a sentence is left out."""
    panel = Panel("Pictures")
    assert panel.snapshot() is None and "image/jpeg" not in panel._repr_mimebundle_()
    sizes = {"red": (8, 8), "lime": (6, 4), "blue": (20, 2), "black": (9, 9)}
    shown = [(Picker if c == "lime" else Picture)(c, *size) for c, size in sizes.items()]
    for picture, (colour, size) in zip(shown, sizes.items(), strict=True):
        picture.show(encode(Image.new("RGB", size, colour)))
    shown[3].say("Not yet.")
    panel.content.children = [row(*shown[:2]), *shown[2:]]
    picture = panel.snapshot()
    assert picture.size == (8 + 12 + 6, 8 + 12 + 2)
    colours = [picture.getpixel(place) for place in [(7, 7), (20, 3), (19, 21), (10, 0), (20, 4)]]
    white = (255, 255, 255)
    assert colours == [(255, 0, 0), (0, 255, 0), (0, 0, 255), white, white]
    static = base64.b64decode(panel._repr_mimebundle_()["image/jpeg"])
    assert Image.open(io.BytesIO(static)).size == picture.size
