"""The explorer as a widget, without a browser: controls, what is shown when, bad pictures, and random use."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from explored import gif, opened, pictures, png, wrapped
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from PIL import Image

import zfkit
from zfkit.errors import ZfkitError
from zfkit.figures.pictures import to_picture
from zfkit.widgets import Explorer, ExplorerView, State, drawing, explore
from zfkit.widgets.state import ORDERS, TABS
from zfkit.widgets.worker import Worker


@pytest.fixture
def explorer(world):
    made = explore(*world, layer="conv2", save_to=None)
    yield made
    made.close()


@pytest.fixture
def at_once(monkeypatch):
    """Nothing waits for a browser or for somebody who rests; however slow the machine, two steps are page turning."""
    for name, seconds in (("PAINT", 0), ("REST", 0), ("TURNING", 1000)):
        monkeypatch.setattr(f"zfkit.widgets.explorer.{name}", seconds)


def upload(e: Explorer, content: bytes, name: str = "picture") -> None:
    """As the upload button's message would."""
    e._uploaded(type("change", (), {"new": ({"name": name, "content": memoryview(content)},)}))


def consistent(e: Explorer) -> None:
    """What is shown is what a fresh view computes for the state, and every control says the state."""
    assert e.wait(60)
    s, v, c, m = (
        e.state,
        ExplorerView(e.view.model, e.view.photos, e.view.top, e.view.others),
        e.controls,
        e.maps,
    )
    assert e.errors == []
    assert (c.layers.value, e.tabs.value, c.number.value) == (s.layer, s.tab, s.channel)
    assert (c.rule.value, c.gain.value, c.order.value, c.find.value) == (s.rule, s.gain, s.order, s.search)
    assert (e.compare.versus.value, m.ranks.value) == (s.versus, s.rank)
    channels = e.view.facts.order(s)
    assert c.map.max == max(len(channels) - 1, 0)
    if len(channels):
        assert channels[c.map.value] == s.channel
    for page, tab in zip((e.maps, e.own, e.compare), TABS, strict=True):
        assert (page.box.layout.display is None) == (tab == s.tab)
    if s.tab == "maps" and not len(channels):
        assert "among its strongest pictures" in m.projections.picture.said
    elif s.tab == "maps":
        grids, detail = v.grids(s), v.detail(s)
        assert m.projections.picture.said == grids.sentence
        if not grids.sentence:
            assert m.projections.picture.image.value == grids.projections
            assert m.patches.picture.image.value == grids.patches
            assert m.whole.image.value == detail.whole
            assert m.heat.picture.image.value == detail.heat
            assert (m.heat.place.row, m.heat.place.col) == detail.position
            assert (m.heat.row.value, m.heat.col.value) == detail.position
            assert f"map <b>{s.channel}</b>" in m.heading.value
    elif s.tab == "compare" and s.versus == "methods" and v.grids_sentence(s):
        assert "is dead" in e.compare.compared.said


# --------------------------------------------------------------------------------------------------- controls


def test_opens_where_it_was_asked_to(world):
    e = explore(*world, layer="conv2", channel=5, rank=2, gain=2.0)
    consistent(e)
    assert e.state == State("conv2", 5, 2, gain=2.0)
    e.close()


def test_controls_do_what_they_say(explorer):
    e = explorer
    e.controls.map.value = 4
    assert e.state.channel == 4
    e.controls.number.value = 6
    assert e.state.channel == 6 and e.controls.map.value == 6
    e.controls.layers.value = "conv1"
    assert e.state == State("conv1", 0)
    moves = e.controls.box.children[4].children
    next(w for w in moves if "zfkit-next" in w._dom_classes).click()
    assert e.state.channel == 1
    e.maps.projections.place.set_trait("row", 1)
    e.maps.projections.place.set_trait("col", 2)
    assert e.state.rank == 5 and e.maps.ranks.value == 5 and e.maps.patches.place.row == 1
    e.maps.heat.row.value = 3  # the slider, where the canvas cannot load
    assert e.state.position[0] == 3
    e.maps.maximum.click()
    assert e.state.position is None
    consistent(e)
    e.tabs.value = "compare"
    consistent(e)


def test_a_refused_change_changes_nothing(explorer):
    before = explorer.state
    with pytest.raises(ZfkitError):
        explorer.set(channel=99)
    assert explorer.state == before and explorer.controls.map.value == before.channel


def test_a_click_on_the_map_of_the_layer_before_is_let_go(explorer):
    e = explorer
    e.set(layer="conv1", channel=4, tab="compare")  # nothing draws the map now
    e.set(layer="conv2")
    heat = e.maps.heat.place
    assert (heat.rows, heat.cols) == (8, 8)
    heat.set_state({"row": 16, "col": 2})
    assert e.state.position is None and e.errors == []
    assert (heat.row, heat.col) == e.view.unit(e.state)[1]
    e.set(tab="maps")
    consistent(e)


def test_the_newest_position_wins(explorer):
    for channel in [1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 8]:
        explorer.controls.map.value = channel
    consistent(explorer)
    assert explorer.state.channel == 8


def test_hover_previews_and_gives_back(explorer):
    e = explorer
    assert e.wait()
    shown = e.maps.whole.image.value
    e.maps.projections.place.hover = [1, 0]
    assert e.wait() and e.state.rank == 0
    assert e.maps.whole.image.value == e.view.detail(State("conv2", 0, 3)).whole
    e.maps.projections.place.hover = [-1, -1]
    assert e.wait() and e.maps.whole.image.value == shown


def test_a_dead_map_says_so(world):
    e = explore(*world, layer="conv1", channel=2)
    assert "conv1 map 2 is dead: on none of the 14 pictures" in e.maps.projections.picture.said
    assert e.maps.photo.said and e.maps.whole.said
    e.set(channel=3)
    consistent(e)
    e.set(channel=2, tab="compare")
    consistent(e)
    e.close()


def test_search_without_result_says_so_and_goes_on(explorer):
    explorer.controls.find.value = "zebra"
    consistent(explorer)
    assert "No map of conv2 has “zebra”" in explorer.maps.projections.picture.said
    explorer.controls.find.value = ""
    consistent(explorer)


def test_number_of_a_map_that_the_search_left_out(world):
    model, photos = world[0], pictures(labelled=False)
    e = explore(model, photos, zfkit.mine(model, photos, k=2, progress=False), layer="conv2")
    e.controls.find.value = "photo1"
    left_out = sorted(set(range(10)) - set(e.view.facts.order(e.state).tolist()))
    e.controls.number.value = left_out[0]
    assert e.state.search == "" and e.state.channel == left_out[0]
    consistent(e)
    e.close()


def test_orders_arrive_when_they_are_measured(explorer):
    for order in ("selectivity", "mean frequency"):
        explorer.controls.order.value = order
        consistent(explorer)
        assert f"by {order}" in explorer.controls.of.value


def test_an_error_in_the_worker_is_shown_and_recorded(explorer, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(explorer.view, "grids", broken)
    explorer.controls.map.value = 3
    assert explorer.wait()
    assert "RuntimeError: a bug" in explorer.notice.value and explorer.notice.layout.display is None
    assert isinstance(explorer.errors[-1].error, RuntimeError) and "broken" in explorer.errors[-1].trace
    monkeypatch.undo()
    explorer.errors.clear()
    explorer.controls.map.value = 4
    consistent(explorer)
    assert explorer.notice.layout.display == "none"


# ---------------------------------------------------------------------------------------- what is shown when


def test_what_is_ready_is_shown_before_the_worker_is_free(explorer):
    e, free = explorer, threading.Event()
    grids = e.view.grids(replace(e.state, channel=6))
    e.live = True
    assert e.wait()
    e.worker.submit("busy", lambda step: free.wait(20))
    e.controls.map.value = 6  # as the slider's message would
    shown = e.maps.projections.picture.image.value, e.maps.patches.picture.image.value
    free.set()
    assert shown == (grids.projections, grids.patches)
    consistent(e)
    assert e.controls.number.value == 6


def test_a_late_picture_replaces_no_newer_one_and_moves_no_control(explorer):
    e = explorer
    late, grids = e.state, e.view.grids(e.state)  # the thread was held up just before it showed them
    e.set(channel=7)
    assert e.wait()
    e._show_grids(late, grids)
    assert e.maps.projections.picture.image.value == e.view.grids(e.state).projections
    late, grids = e.state, e.view.grids(e.state)
    e.set(rank=4, tab="compare")
    assert e.wait()
    e._show_grids(late, grids)
    assert e.maps.ranks.value == 4
    consistent(e)


@pytest.mark.parametrize("order", ["index", "max activation"])
def test_while_pages_turn_the_next_ones_come_before_the_large_pictures(explorer, at_once, monkeypatch, order):
    e = explorer
    e.set(order=order, channel=int(e.view.facts.order(replace(e.state, order=order))[4]))
    assert e.wait()
    done, grids, detail = [], e.view.grids, e.view.detail
    monkeypatch.setattr(e.view, "grids", lambda s, *rest: done.append(s.channel) or grids(s, *rest))
    monkeypatch.setattr(e.view, "detail", lambda s, step=None: done.append("large") or detail(s, step))
    for by, places in ((1, (5, 6, 7)), (-1, (4, 3, 2))):
        done.clear()
        e._step(by)
        assert e.wait()
        expected = [*(int(e._channels[p]) for p in places), "large"]
        assert [
            d for d in dict.fromkeys(done) if d in expected
        ] == expected  # the page before may be done again
    consistent(e)


def test_nothing_is_computed_ahead_until_somebody_looks(world, at_once):
    e = explore(*world, layer="conv2", channel=3)

    def ready():
        return [c for c in range(10) if e.view.ready(State("conv2", c))]

    assert ready() == [3] and not e.view.facts.profiles
    e.maps.heat.place._handle_custom_msg({"kind": "ready"}, [])
    assert e.worker.wait(60, Worker.LATER)
    assert ready() == [3, 4, 5] and set(e.view.facts.profiles) == {
        "conv2"
    }  # the next two, and the facts of the layer
    assert "Its maximum in each picture" in e.maps.facts.value
    near = e.view.facts.nearest(e.state)[0][0]
    e.maps.near[0].click()
    assert e.state.channel == near
    consistent(e)
    e.close()
    alone = explore(*world, layer="conv2", channel=3, ahead=False)
    alone.go_live()
    assert alone.worker.wait(60, Worker.LATER) and not alone.view.ready(State("conv2", 4))
    alone.close()


def test_measuring_waits_until_nobody_turns_pages(explorer, monkeypatch):
    monkeypatch.setattr("zfkit.widgets.explorer.REST", 0.2)
    explorer.go_live()
    for channel in range(4):
        explorer.controls.map.value = channel
        assert explorer.wait()
        time.sleep(0.05)
        assert not explorer.view.facts.profiles
    assert explorer.worker.wait(60, Worker.LATER) and explorer.view.facts.profiles


# ---------------------------------------------------------------------------------------------- what is kept


def test_static_picture_stands_beside_the_widget(explorer):
    bundle = explorer._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in data
    shown = Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"])))
    assert shown.size == explorer.snapshot().size and shown.width > 500
    snapshot = np.asarray(explorer.snapshot()).astype(int)
    x, y = 22, 22 + 34 + 20
    grid = opened(explorer.maps.projections.picture.image.value)
    assert (snapshot[y : y + drawing.GRID, x : x + drawing.GRID] == grid).all()


def test_save_writes_a_png_and_a_link(world, tmp_path):
    e = explore(*world, layer="conv2", channel=3, save_to=tmp_path / "new")
    e._save()
    assert Image.open(tmp_path / "new" / "small-conv2-3.png").format == "PNG"
    assert 'download="small-conv2-3.png"' in e.controls.saved.value
    (tmp_path / "file").write_text("in the way")
    e.save_to = tmp_path / "file"
    e._save()
    assert "Not saved here" in e.controls.saved.value and "download" in e.controls.saved.value
    e.close()


def test_app_notebook_and_its_template_are_in_place():
    root = Path(zfkit.__file__).resolve().parents[1]
    app = json.loads((root / "zfkit" / "widgets" / "page" / "app.ipynb").read_text())
    assert "zfkit.explore(" in "".join(app["cells"][-1]["source"])
    target = (root / "Makefile").read_text().split("\napp:")[1].split("\n\n")[0]
    assert "--Voila.ip=127.0.0.1" in target and "--token" in target and "--template=zfkit" in target


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"this is no picture", "not a picture in a format that Pillow reads"),
        (b"", "the file is empty"),
        (png((20, 20))[:60], "damaged or truncated"),
        (png((1, 1)), "1 × 1 pixels, too few to see anything"),
        (png((20_000, 6_000)), "20,000 × 6,000 pixels; more than 100,000,000 would fill the memory"),
        (png((20_000, 20_000)), "so many pixels that it would fill the memory"),
    ],
    ids=["text", "empty", "cut", "1x1", "120 megapixels", "20,000 px"],
)
def test_bad_pictures_get_a_sentence_where_the_picture_would_be(explorer, content, message):
    upload(explorer, content, "bad.png")
    assert explorer.wait()
    assert message in explorer.own.strongest.picture.said and message in explorer.own.picture.said
    assert explorer.errors == [] and explorer.state.tab == "image"
    explorer.set(tab="maps", channel=4)
    consistent(explorer)


def test_a_long_thin_picture_and_an_animation_are_taken_and_explained(explorer):
    for name, content, note in (
        ("long.png", png((20_000, 40)), "20,000 × 40 px; its middle square is used"),
        ("moving.gif", gif(4), "an animation of 4 frames, of which the first is shown"),
    ):
        upload(explorer, content, name)
        assert explorer.wait()
        assert note in explorer.own.note.value
        assert explorer.own.picture.said == "" and explorer.errors == []
    first = opened(explorer.own.picture.image.value).mean((0, 1))
    assert np.abs(first - [0, 90, 10]).max() < 6  # the first frame


def test_a_path_that_leads_nowhere(explorer, tmp_path):
    explorer.set(tab="image")
    for path in (tmp_path / "none.png", tmp_path):  # no file, and a folder
        explorer.own.path.value = str(path)
        assert explorer.wait()
        assert "There is no file" in explorer.own.strongest.picture.said and explorer.errors == []


def test_a_model_without_classes(world, tmp_path):
    model, photos = wrapped(classes=None), world[1]
    e = explore(model, photos, zfkit.mine(model, photos, progress=False), tab="image")
    to_picture(photos[0][0]).save(tmp_path / "a.png")
    e.set(image=str(tmp_path / "a.png"))
    assert e.wait()
    assert "small has no class names" in e.own.probabilities.value and not e.own.strongest.picture.said
    e.own.strongest.place.set_state({"row": 0, "col": 1})  # a tile leads to its map
    assert e.state.tab == "maps" and e.state.channel == e.own.channels[1]
    e.close()


@pytest.mark.parametrize("layers", [{}, {"gone": None}], ids=["empty", "of layers that are not there"])
def test_an_empty_table(world, layers):
    model, photos, top = world
    e = explore(model, photos, replace(top, layers=dict.fromkeys(layers, top["conv1"])))
    assert "mine" in e.maps.projections.picture.said and "mine" in e.maps.heat.picture.said
    e.set(channel=3)
    e.tabs.value = "compare"
    assert e.errors == [] and e.snapshot().width > 100
    e.close()


def test_fewer_pictures_than_nine(world):
    model, photos, _ = world
    few = pictures(count=4)
    e = explore(model, few, zfkit.mine(model, few, progress=False), layer="conv2", rank=5)
    assert "no picture of that rank" in e.maps.whole.said
    assert "no picture" in {rank: words for words, rank in e.maps.ranks.options}[5]
    e.set(rank=0)
    consistent(e)
    e.close()
    e = explore(model, photos, zfkit.mine(model, photos, k=1, progress=False), layer="conv2")
    consistent(e)
    e.close()


def test_fully_connected_layers(world):
    model, photos, _ = world
    top = zfkit.mine(model, photos, ["conv2", "fc"], progress=False)
    e = explore(model, photos, top, layer="fc", channel=1)
    consistent(e)
    e.view.facts.measure("fc")
    assert "sees the whole picture" in e.maps.facts.value
    e.close()


# ------------------------------------------------------------------------------------------------ random use


class Monkey(RuleBasedStateMachine):
    """Random actions in a row leave a view that is consistent."""

    @initialize()
    def open(self):
        if not hasattr(Monkey, "world"):
            model, photos = wrapped(), pictures()
            Monkey.world = model, photos, zfkit.mine(model, photos, progress=False)
        self.explorer = explore(*Monkey.world, others={"same": Monkey.world[0]}, save_to=None)

    @rule(place=st.integers(0, 9))
    def slide(self, place):
        e = self.explorer
        e.controls.map.value = min(place, e.controls.map.max)

    @rule(channel=st.integers(0, 12))
    def type_a_number(self, channel):
        self.explorer.controls.number.value = channel

    @rule(layer=st.sampled_from(["conv1", "conv2"]))
    def change_layer(self, layer):
        self.explorer.controls.layers.value = layer

    @rule(r=st.integers(0, 2), c=st.integers(0, 2))
    def click_a_tile(self, r, c):
        with self.explorer.maps.patches.place.hold_trait_notifications():
            self.explorer.maps.patches.place.row, self.explorer.maps.patches.place.col = r, c

    @rule(r=st.integers(0, 17), c=st.integers(0, 17))
    def click_the_map(self, r, c):
        place = self.explorer.maps.heat.place
        with place.hold_trait_notifications():
            place.row, place.col = min(r, place.rows - 1), min(c, place.cols - 1)

    @rule(r=st.integers(-1, 2), c=st.integers(0, 2))
    def hover(self, r, c):
        self.explorer.maps.projections.place.hover = [r, c if r >= 0 else -1]

    @rule(rule=st.sampled_from(["deconvnet", "guided", "gradient"]))
    def change_rule(self, rule):
        self.explorer.controls.rule.value = rule

    @rule(gain=st.sampled_from([0.25, 1.0, 3.0, 8.0]))
    def change_gain(self, gain):
        self.explorer.controls.gain.value = gain

    @rule(order=st.sampled_from(ORDERS))
    def change_order(self, order):
        self.explorer.controls.order.value = order

    @rule(words=st.sampled_from(["", "dog", "zebra", "Teapot"]))
    def search(self, words):
        self.explorer.controls.find.value = words

    @rule(tab=st.sampled_from(["maps", "image", "compare"]))
    def change_tab(self, tab):
        self.explorer.tabs.value = tab

    @rule(versus=st.sampled_from(["methods", "same"]))
    def change_comparison(self, versus):
        self.explorer.compare.versus.value = versus

    @rule(content=st.sampled_from([png((30, 50)), png((1, 1)), b"no", gif(3)]))
    def upload(self, content):
        upload(self.explorer, content)

    @rule(by=st.sampled_from([-1, 1]))
    def step(self, by):
        self.explorer._step(by)

    @rule()
    def random(self):
        self.explorer._draw()

    @rule()
    def back(self):
        self.explorer.maps.maximum.click()

    @invariant()
    def nothing_failed(self):
        if hasattr(self, "explorer"):
            assert self.explorer.errors == []

    def teardown(self):
        if hasattr(self, "explorer"):
            self.explorer.maps.projections.place.hover = [-1, -1]
            consistent(self.explorer)
            self.explorer.close()


TestMonkey = Monkey.TestCase
TestMonkey.settings = settings(max_examples=8, stateful_step_count=40)
