"""The explorer as a widget, without a browser: its answers to the page, what is sent when, bad pictures, random use."""

from __future__ import annotations

import base64
import io
import threading
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from explored import SIDE, gif, opened, pictures, png, wrapped
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from PIL import Image

import zfkit
from zfkit.errors import ZfkitError
from zfkit.figures.pictures import to_picture
from zfkit.nets.activations import activations
from zfkit.topk.patches import cut_top
from zfkit.widgets import Explorer, ExplorerView, State, compare, explore
from zfkit.widgets.state import ORDERS
from zfkit.widgets.worker import Worker


@pytest.fixture
def explorer(world):
    made = explore(*world, layer="conv2", save_to=None)
    yield made
    made.close()


@pytest.fixture
def at_once(monkeypatch):
    """Nothing waits for a browser or for somebody who rests; however slow the machine, two steps are page turning."""
    for name, seconds in (("PAINT", 0), ("SEEN", 0), ("STAY", 0), ("REST", 0), ("TURNING", 1000)):
        monkeypatch.setattr(f"zfkit.widgets.explorer.{name}", seconds)


def ask(e: Explorer, kind: str = "set", buffers: tuple[bytes, ...] = (), **content: object) -> None:
    """A request, as the page would send it."""
    asked = {"kind": kind, "n": 1, "view": "first"}
    message = {**asked, "changes": content} if kind == "set" else {**asked, **content}
    e.page._handle_custom_msg(message, [memoryview(b) for b in buffers])


def upload(e: Explorer, content: bytes, name: str = "picture") -> None:
    ask(e, "upload", (content,), name=name)


def sent(e: Explorer, kind: str) -> dict:
    """The last message of a kind, its pictures in place of the numbers of their buffers."""
    parcel = e.sent[kind]
    content = dict(parcel.content)
    for name, value in content.items():
        if isinstance(value, dict) and "buffer" in value:
            content[name] = {**value, "content": parcel.buffers[value["buffer"]]}
    return content


def consistent(e: Explorer) -> None:
    """What the page was sent last is what a fresh view computes for the state, and belongs to it."""
    assert e.wait(60)
    s, v = e.state, ExplorerView(e.view.model, e.view.photos, e.view.top, e.view.others)
    v.facts = e.view.facts
    assert e.errors == []
    assert e.page.state == {**asdict(s), "link": s.link}
    channels = v.facts.order(s)
    layer = sent(e, "layer")
    assert layer["layer"] == s.layer and layer["order"] == channels.tolist()
    if len(channels):
        assert s.channel in channels
    if s.tab == "maps" and not len(channels):
        assert "among its strongest pictures" in sent(e, "page")["sentence"]
    elif s.tab == "maps":
        grids, detail, page = v.grids(s), v.detail(s), sent(e, "page")
        assert (page["layer"], page["channel"], page["rule"]) == (s.layer, s.channel, s.rule)
        assert page["sentence"] == grids.sentence
        if not grids.sentence:
            assert page["projections"]["content"] == grids.projections.content
            assert page["patches"]["content"] == grids.patches.content
            assert page["values"] == grids.values
            shown = sent(e, "detail")
            assert shown["position"] == detail.position and shown["channel"] == s.channel
            assert shown["projection"]["content"] == detail.projection
            assert sent(e, "facts")["channel"] == sent(e, "control")["channel"] == s.channel
    elif s.tab == "compare" and s.versus == "methods":
        methods = sent(e, "methods")
        assert methods["channel"] == s.channel and methods["sentence"] == v.dead(s.layer, s.channel)


# --------------------------------------------------------------------------------------------------- requests


def test_opens_where_it_was_asked_to(world):
    e = explore(*world, layer="conv2", channel=5, rank=2, gain=2.0)
    consistent(e)
    by_link = explore(*world, link="?layer=conv2&map=5&tile=3&contrast=2")
    assert (
        by_link.state == e.state == State("conv2", 5, 2, gain=2.0)
        and e.link == "?layer=conv2&map=5&tile=3&contrast=2.0"
    )
    e.close(), by_link.close()


def test_without_a_place_it_opens_at_a_map_that_many_pictures_excite(world):
    e = explore(*world)
    top = world[2]
    assert e.state.layer == "conv1"  # of two layers three quarters of the way are the first
    assert float(top["conv1"].value[e.state.channel, 8]) == float(top["conv1"].value[:, 8].max())
    consistent(e)
    e.close()


def test_requests_do_what_they_say(explorer):
    expected = replace(explorer.state, position=None)
    moves = [{"channel": 4}, {"layer": "conv1", "channel": 0}, {"rank": 5}, {"position": (3, 2)}]
    for changes in (*moves, {"position": None}, {"tab": "compare"}):
        ask(explorer, **changes)
        assert explorer.state == (expected := replace(expected, **changes))
        consistent(explorer)


def test_every_request_is_answered_and_a_refused_one_changes_nothing(explorer, monkeypatch):
    answers = []
    monkeypatch.setattr(explorer.page, "send", lambda content, buffers=None: answers.append(content))
    before = explorer.state
    ask(explorer, channel=99)
    assert explorer.state == before
    assert [(a["n"], a["view"]) for a in answers if a["kind"] == "ack"] == [(1, "first")]
    assert any(a["kind"] == "said" and "there is no feature map 99" in a["words"] for a in answers)
    for nonsense in ("x", {"kind": "nothing"}, {"kind": "set"}, {"kind": "set", "changes": {"chanel": 1}},
                     {"kind": "peek", "channel": "x"}, {"kind": "sample", "place": 10**9}, None):  # fmt: skip
        explorer.page._handle_custom_msg(nonsense, [])
        assert explorer.state == before
    with pytest.raises(ZfkitError):
        explorer.set(channel=99)


def test_a_place_of_another_map_is_refused_in_words(explorer):
    # a click on the larger map of the layer before, on its way while it changed
    ask(explorer, position=[16, 2])
    assert explorer.state.position is None
    assert "maps of 'conv2' are 8 x 8" in sent(explorer, "said")["words"]
    explorer.errors.clear()
    consistent(explorer)


def test_a_page_that_opens_later_is_sent_all_that_is_shown(explorer, monkeypatch):
    assert explorer.wait()
    again = []
    monkeypatch.setattr(explorer.page, "send", lambda content, buffers=None: again.append((content, buffers)))
    ask(explorer, "ready")
    kinds = [content["kind"] for content, _ in again]
    assert {"layer", "page", "detail", "facts", "control"} <= set(kinds)
    page, buffers = next(pair for pair in again if pair[0]["kind"] == "page")
    assert buffers[page["patches"]["buffer"]] == explorer.view.grids(explorer.state).patches.content


def test_a_page_is_sent_nothing_but_the_view_of_its_address(explorer, monkeypatch):
    """Also where another was there before it, in a kernel that was made ready ahead."""
    assert explorer.wait()
    said = []
    monkeypatch.setattr(explorer.page, "send", lambda content, buffers=None: said.append(content))
    ask(explorer, "ready", query="token=x&layer=conv1&map=4&rule=guided&utm_source=mail")
    assert explorer.wait() and explorer.state == State("conv1", 4, rule="guided")
    shown = [c for c in said if "layer" in c and c["kind"] != "ahead"]
    assert {(c["layer"], c.get("channel", 4)) for c in shown} == {("conv1", 4)}
    ask(explorer, "ready", query="layer=conv1")  # a link leaves out map 0, and all else that is the default
    assert explorer.wait() and explorer.state == State("conv1", 0)
    ask(explorer, "ready", query="layer=conv7")
    assert "no layer 'conv7'" in sent(explorer, "said")["words"]
    assert {"said", "page", "layer"} <= {content["kind"] for content in said[-9:]}


def test_a_page_that_is_ready_is_sent_once(explorer, monkeypatch):
    explorer.view.grids(replace(explorer.state, channel=6))
    explorer.live = True
    assert explorer.wait()
    kinds = []
    monkeypatch.setattr(explorer.page, "send", lambda content, buffers=None: kinds.append(content["kind"]))
    ask(explorer, channel=6)
    assert explorer.wait()
    assert kinds.count("page") == 1 and kinds.count("detail") == 1


def test_pages_that_may_come_next_lie_in_the_browser(explorer, monkeypatch):
    """They are sent once, are those of a fresh view, and a page that knows none of them is sent its own whole."""
    said = []
    monkeypatch.setattr(explorer.page, "send", lambda content, buffers=None: said.append((content, buffers)))

    def pages_after(kind, **content):
        said.clear()
        ask(explorer, kind, **content)
        assert explorer.worker.wait(60, Worker.LATER) and explorer.errors == []
        return [(c["kind"], c["layer"], c["channel"], buffers) for c, buffers in said if c["kind"] in kinds]

    kinds = ("page", "ahead", "turn")
    start = explorer.state
    found = pages_after("ready")
    assert found[0][:3] == ("page", start.layer, start.channel)
    assert {f[:3] for f in found[1:]} == {("ahead", "conv2", 1), ("ahead", "conv2", 2), ("ahead", "conv1", 0)}
    fresh = ExplorerView(explorer.view.model, explorer.view.photos, explorer.view.top)
    for _, layer, channel, buffers in found:
        grids = fresh.grids(State(layer, channel))
        assert buffers == [grids.projections.content, grids.patches.content]
    found = pages_after("set", channel=1)
    assert found[0] == ("turn", "conv2", 1, None)
    assert {f[:3] for f in found[1:]} == {("ahead", "conv2", 3)}  # the others lie there
    found = pages_after("again")  # a browser that has let go of it
    assert found == [("page", "conv2", 1, explorer.sent["page"].buffers)]
    assert pages_after("ready")[0][:3] == ("page", "conv2", 1)
    assert pages_after("set", gain=2.0)[0][0] == "page"  # another contrast is another page
    consistent(explorer)


def test_what_one_view_asked_for_is_told_to_it_alone(explorer, monkeypatch):
    said = []
    monkeypatch.setattr(explorer.page, "send", lambda content, buffers=None: said.append(content))
    for kind, content in (("code", {}), ("save", {}), ("peek", {"channel": 3})):
        ask(explorer, kind, **content)
        assert explorer.wait()
    answers = {a["kind"]: a["view"] for a in said if a["kind"] in ("code", "saved", "peek")}
    assert answers == dict.fromkeys(("code", "saved", "peek"), "first")


def test_a_layer_that_somebody_left_is_not_drawn(explorer, at_once):
    explorer.go_live()
    assert explorer.worker.wait(60, Worker.LATER)
    free = threading.Event()
    explorer.worker.submit("busy", lambda step: free.wait(20))
    ask(explorer, layer="conv1", channel=0)
    ask(explorer, layer="conv2", channel=0)
    free.set()
    assert explorer.worker.wait(60, Worker.LATER)
    assert sent(explorer, "thumbnails")["layer"] == "conv2"


def test_below_the_pointer_on_the_wall_are_the_maps_patches(world, explorer, monkeypatch):
    seen = []
    monkeypatch.setattr(explorer.page, "send", lambda content, buffers=None: seen.append((content, buffers)))
    ask(explorer, "peek", channel=3)
    assert explorer.wait()
    content, buffers = next(pair for pair in seen if pair[0]["kind"] == "peek")
    sheet = opened(buffers[content["sheet"]["buffer"]])
    expected = cut_top(*world, "conv2", [3], progress=False)
    height, width = expected.photo.shape[-2:]
    second = sheet[:height, width : 2 * width]
    assert np.array_equal(second, expected.photo[0, 1].permute(1, 2, 0).int().numpy())


def test_the_map_of_maps_has_every_map_of_every_layer(world, explorer):
    model, photos, top = world
    ask(explorer, "points")
    assert explorer.wait()
    message = sent(explorer, "points")
    assert [part["layer"] for part in message["layers"]] == list(top.layers) and not message["recorded"]
    labels = np.array([photos[i][1] for i in range(len(photos))])
    for part in message["layers"]:
        table, layer = top[part["layer"]], part["layer"]
        pixels = torch.stack([photos[i][0] for i in range(len(photos))])
        assert not top.inside  # so all units count
        output = dict(activations(model, pixels, [layer]))[layer]
        maxima = output.flatten(2).amax(2).clamp(min=0).double()
        means = torch.stack([maxima[torch.from_numpy(labels == c)].mean(0) for c in np.unique(labels)])
        best = means.amax(0)
        others = (means.sum(0) - best) / (len(means) - 1)
        expected = torch.where(best + others > 0, (best - others) / (best + others), 0.0)
        assert part["selectivity"] == pytest.approx(expected.tolist(), abs=2e-4)
        assert part["reach"] == pytest.approx((table.max / table.max.max()).clamp(min=0).tolist(), abs=1e-4)


def test_a_dead_map_says_so(world):
    e = explore(*world, layer="conv1", channel=2)
    assert "conv1 map 2 is dead: on none of the 14 pictures" in sent(e, "page")["sentence"]
    assert sent(e, "detail")["sentence"] and sent(e, "layer")["dead"] == [2]
    e.set(channel=3)
    consistent(e)
    e.set(channel=2, tab="compare")
    consistent(e)
    e.close()


def test_search_without_result_says_so_and_goes_on(explorer):
    for search in ("zebra", ""):
        ask(explorer, search=search)
        consistent(explorer)
        assert ("No map of conv2 has “zebra”" in sent(explorer, "page")["sentence"]) == bool(search)


def test_orders_arrive_when_they_are_measured(explorer):
    for order in ("selectivity", "mean frequency"):
        ask(explorer, order=order)
        consistent(explorer)
        assert not explorer.view.facts.lacks(explorer.state)
    ask(explorer, order="your picture")  # which is not there
    consistent(explorer)
    assert "no picture of yours" in sent(explorer, "layer")["words"]


def test_maps_in_the_order_of_your_picture(world, explorer):
    upload(explorer, png((40, 40)))
    assert explorer.wait()
    ask(explorer, tab="maps", order="your picture")
    consistent(explorer)
    model = world[0]
    small = torch.tensor(np.asarray(Image.open(io.BytesIO(png((SIDE, SIDE))))).copy()).permute(2, 0, 1)
    for layer, steps in (("conv2", 4), ("conv1", 1)):  # in every layer, not in that of the tab alone
        ask(explorer, layer=layer, channel=0)
        consistent(explorer)
        answers = model.net[:steps](model.preprocess(small))[0].flatten(1).amax(1).detach()
        assert sent(explorer, "layer")["order"] == answers.argsort(descending=True, stable=True).tolist()
        expected = (answers.clamp(min=0) / answers.max()).sqrt()
        assert sent(explorer, "layer")["bars"] == pytest.approx(expected.tolist(), abs=1e-3)


def test_the_wall_has_every_map(world, explorer):
    ask(explorer, wall=True)
    assert explorer.wait()
    thumbnails = sent(explorer, "thumbnails")
    assert thumbnails["layer"] == "conv2"
    assert thumbnails["projections"]["content"] == ExplorerView(*world).thumbnails("conv2")[0].content


def test_an_error_in_the_worker_is_shown_and_recorded(explorer, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(explorer.view, "grids", broken)
    ask(explorer, channel=3)
    assert explorer.wait()
    assert "RuntimeError: a bug" in sent(explorer, "said")["words"]
    assert isinstance(explorer.errors[-1].error, RuntimeError) and "broken" in explorer.errors[-1].trace
    monkeypatch.undo()
    explorer.errors.clear()
    ask(explorer, channel=4)
    consistent(explorer)
    assert sent(explorer, "said")["words"] == ""


# ---------------------------------------------------------------------------------------- what is shown when


def test_what_is_ready_is_sent_before_the_worker_is_free(explorer):
    e, free = explorer, threading.Event()
    grids = e.view.grids(replace(e.state, channel=6))
    e.live = True
    assert e.wait()
    e.worker.submit("busy", lambda step: free.wait(20))
    ask(e, channel=6)
    page = sent(e, "page")
    shown = page["channel"], page["projections"]["content"], page["patches"]["content"]
    free.set()
    assert shown == (6, grids.projections.content, grids.patches.content)
    consistent(e)


def test_a_late_picture_replaces_no_newer_one(explorer):
    e = explorer
    late, grids = e.state, e.view.grids(e.state)  # the thread was held up just before it sent them
    e.set(channel=7)
    assert e.wait()
    e._show_grids(late, grids)
    assert sent(e, "page")["channel"] == 7
    consistent(e)


@pytest.mark.parametrize("order", ["index", "max activation"])
def test_while_pages_turn_the_next_ones_come_before_the_details(explorer, at_once, monkeypatch, order):
    e = explorer
    channels = e.view.facts.order(replace(e.state, order=order)).tolist()
    e.set(order=order, channel=channels[4])
    assert e.wait()
    done, grids, detail = [], e.view.grids, e.view.detail
    monkeypatch.setattr(e.view, "grids", lambda s, *rest: done.append(s.channel) or grids(s, *rest))
    monkeypatch.setattr(e.view, "detail", lambda s, step=None: done.append("large") or detail(s, step))
    e.live = True
    for by, places in ((1, (5, 6, 7)), (-1, (4, 3, 2))):
        done.clear()
        ask(e, channel=channels[places[0]])
        assert e.wait()
        expected = [*(channels[p] for p in places), "large"]
        assert [d for d in dict.fromkeys(done) if d in expected] == expected, by
    consistent(e)


def test_nothing_is_computed_ahead_until_somebody_looks(world, at_once):
    e = explore(*world, layer="conv2", channel=3)

    def ready():
        return [c for c in range(10) if e.view.at_hand(State("conv2", c))]

    assert ready() == [3] and not e.view.facts.profiles and "thumbnails" not in e.sent
    ask(e, "ready")
    assert e.worker.wait(60, Worker.LATER)
    assert ready() == [0, 2, 3, 4, 5] and e.view.at_hand(State("conv1", 0))  # where the next step may lead
    assert set(e.view.facts.profiles) == {"conv1", "conv2"}
    assert sent(e, "facts")["histogram"]["measured"] == 14 and sent(e, "thumbnails")["layer"] == "conv2"
    assert sent(e, "strip")["0"]["columns"] == 3
    consistent(e)
    e.close()
    alone = explore(*world, layer="conv2", channel=8, ahead=False)
    alone.go_live()
    assert alone.worker.wait(60, Worker.LATER) and not alone.view.at_hand(State("conv2", 9))
    alone.close()


def test_a_network_of_one_channel_is_explored_like_any(at_once):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 5, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3)
    ).double()
    model = zfkit.wrap_model(net, mean=[120.0], scale=1 / 60, input_size=SIDE, name="grey")
    photos = pictures()
    e = explore(
        model,
        photos,
        zfkit.mine(model, photos, progress=False),
        others={},
        save_to=None,
        layer="2",
        channel=1,
    )
    e.go_live()
    for changes in (
        {"wall": True},
        {"wall": False, "order": "mean frequency"},
        {"colours": "natural"},
        {"tab": "compare"},
    ):
        ask(e, **changes)
        assert e.wait()
    ask(e, "sample", place=0)
    assert e.worker.wait(60, Worker.LATER) and e.errors == [] and len(sent(e, "own")["channels"]) == 5
    tile = opened(e.view.grids(State("2", 1)).projections.content)
    assert (
        (tile[..., 0] == tile[..., 1]).all() and (tile[..., 0] == tile[..., 2]).all() and tile.std() > 5
    )  # grey
    e.close()


def test_a_layer_is_entered_forwards(explorer, at_once):
    explorer.go_live()
    elsewhere = {"layer": "conv1", "channel": 0}
    for steps in ({"channel": 5}, {"channel": 3}, elsewhere, {"colours": "natural"}):  # backwards at first
        ask(explorer, **steps)
        assert explorer.worker.wait(60, Worker.LATER)
    assert all(explorer.view.at_hand(State("conv1", channel)) for channel in (0, 1, 2))
    assert not explorer.view.at_hand(State("conv2", 0, colours="natural"))  # which a layer learns at length


def test_measuring_waits_until_nobody_turns_pages(explorer, monkeypatch):
    monkeypatch.setattr("zfkit.widgets.explorer.REST", 0.3)
    explorer.go_live()
    for channel in range(4):
        ask(explorer, channel=channel)
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
    patches, side = explorer.view.grids(explorer.state).patches, 130
    sheet = Image.open(io.BytesIO(patches.content)).convert("RGB")
    middle = sheet.crop((patches.width, patches.height, 2 * patches.width, 2 * patches.height))
    expected = np.asarray(middle.resize((side, side), Image.Resampling.NEAREST)).astype(int)
    x, y = 22 + side + 3, 22 + 34 + 20 + side + 3  # beside and below the first one
    assert np.array_equal(snapshot[y : y + side, x : x + side], expected)


def test_save_writes_the_tab_that_is_shown(world, tmp_path):
    e = explore(*world, layer="conv2", channel=3, save_to=tmp_path / "new")
    said, post = [], e.post
    e.post = lambda parcel, keep=True: (said.append(parcel.content), post(parcel, keep))
    for tab in ("maps", "compare"):
        ask(e, tab=tab)
        ask(e, "save")
        assert e.wait()
    maps, methods = (Image.open(tmp_path / "new" / f"small-{n}.png") for n in ("conv2-3", "compare-conv2"))
    assert np.array_equal(np.asarray(maps), np.asarray(e.view.figure(replace(e.state, tab="maps"))))
    assert np.array_equal(np.asarray(methods), np.asarray(compare.figure(e.view, e.state)))
    (tmp_path / "file").write_text("in the way")
    e.save_to = tmp_path / "file"
    ask(e, "save")
    assert e.wait()
    assert [s["words"].split(" ")[0] for s in said if s["kind"] == "saved"] == ["Saved", "Saved", "Not"]
    e.close()


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("content, message", [
    (b"this is no picture", "not a picture in a format that Pillow reads"), (b"", "the file is empty"),
    (png((20, 20))[:60], "damaged or truncated"), (png((1, 1)), "1 × 1 pixels, too few to see anything"),
    (png((20_000, 6_000)), "20,000 × 6,000 pixels; more than 100,000,000 would fill the memory"),
    (png((20_000, 20_000)), "so many pixels that it would fill the memory"),
], ids=["text", "empty", "cut", "1x1", "120 megapixels", "20,000 px"])  # fmt: skip
def test_bad_pictures_get_a_sentence_where_the_picture_would_be(explorer, content, message):
    upload(explorer, content, "bad.png")
    assert explorer.wait()
    own = sent(explorer, "own")
    assert message in own["sentence"] and own["picture"] is None
    assert explorer.errors == [] and explorer.state.tab == "image"
    explorer.set(tab="maps", channel=4)
    consistent(explorer)


def test_a_long_thin_picture_and_an_animation_are_taken_and_explained(explorer):
    for name, content, note in (
        ("long.png", png((20_000, 40)), "20,000 × 40 px; the square in the frame is used"),
        ("moving.gif", gif(4), "an animation of 4 frames, of which the first is shown"),
    ):
        upload(explorer, content, name)
        assert explorer.wait()
        own = sent(explorer, "own")
        assert note in own["note"] and own["picture"] and explorer.errors == []
    first = opened(own["picture"]["content"]).mean((0, 1))
    assert np.abs(first - [0, 90, 10]).max() < 6  # the first frame


def test_the_square_moves(explorer):
    wide = Image.new("RGB", (90, 30), "black")
    wide.paste((250, 250, 250), (60, 0, 90, 30))
    upload(explorer, compare.encode(wide), "wide.png")
    assert explorer.wait()
    for at, bright in ((0.0, 0), (1.0, 250)):
        ask(explorer, "square", at=at)
        assert explorer.wait()
        assert sent(explorer, "own")["at"] == at and sent(explorer, "own")["size"] == (90, 30)
        assert float(explorer.view.facts.picture.float().mean()) == pytest.approx(bright, abs=1)


def test_a_sample_of_the_album(world, explorer):
    explorer.set(tab="image")
    assert explorer.wait()
    place = sent(explorer, "samples")["places"][2]
    ask(explorer, "sample", place=place)
    assert explorer.wait()
    shown = compare.strongest(world[0], world[1][place][0], "conv2")
    assert list(sent(explorer, "own")["channels"]) == shown.channels.tolist()


def test_a_path_that_leads_nowhere(explorer, tmp_path):
    for path in (tmp_path / "none.png", tmp_path):  # no file, and a folder
        ask(explorer, tab="image", image=str(path))
        assert explorer.wait()
        assert "There is no file" in sent(explorer, "own")["sentence"] and explorer.errors == []


def test_a_model_without_classes(world, tmp_path):
    model, photos = wrapped(classes=None), world[1]
    e = explore(model, photos, zfkit.mine(model, photos, progress=False), tab="image")
    to_picture(photos[0][0]).save(tmp_path / "a.png")
    e.set(image=str(tmp_path / "a.png"))
    assert e.wait()
    own = sent(e, "own")
    assert own["classes"] == () and own["channels"] and not own["sentence"]
    e.close()


@pytest.mark.parametrize("layers", [{}, {"gone": None}], ids=["empty", "of layers that are not there"])
def test_an_empty_table(world, layers):
    model, photos, top = world
    e = explore(model, photos, replace(top, layers=dict.fromkeys(layers, top["conv1"])))
    assert "mine" in e.page.about["empty"].lower()
    e.set(channel=3)
    ask(e, tab="compare")
    assert e.errors == [] and e.snapshot().width > 100
    e.close()


def test_fewer_pictures_than_nine(world):
    model, photos, _ = world
    few = pictures(count=4)
    e = explore(model, few, zfkit.mine(model, few, progress=False), layer="conv2", rank=5)
    assert "no picture of that rank" in sent(e, "detail")["sentence"]
    assert sent(e, "page")["there"][3:6] == (True, False, False)
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
    assert "Units see the whole picture" in e.view.facts.of_map("fc", 1)["words"]
    upload(e, png((40, 40)))
    assert e.wait() and e.errors == []
    e.close()


# ------------------------------------------------------------------------------------------------ random use


class Monkey(RuleBasedStateMachine):
    """Random requests in a row leave a page that is consistent."""

    @initialize()
    def open(self):
        if not hasattr(Monkey, "world"):
            model, photos = wrapped(), pictures()
            Monkey.world = model, photos, zfkit.mine(model, photos, progress=False)
        self.explorer = explore(*Monkey.world, others={"same": Monkey.world[0]}, save_to=None)

    @rule(channel=st.integers(0, 5))
    def turn(self, channel):
        ask(self.explorer, channel=channel)

    @rule(layer=st.sampled_from(["conv1", "conv2"]))
    def change_layer(self, layer):
        ask(self.explorer, layer=layer, channel=0)

    @rule(rank=st.integers(0, 8))
    def click_a_tile(self, rank):
        ask(self.explorer, rank=rank)

    @rule(r=st.integers(0, 7), c=st.integers(0, 7))
    def click_the_map(self, r, c):
        ask(self.explorer, position=[r, c])

    @rule(data=st.data())
    def change(self, data):
        choices = {
            "rule": ["deconvnet", "guided", "gradient"], "gain": [0.25, 1.0, 3.0, 8.0], "order": list(ORDERS),
            "search": ["", "dog", "zebra", "Teapot"], "tab": ["maps", "image", "compare"], "wall": [True, False],
            "versus": ["methods", "same"], "colours": ["signed", "natural"],
        }  # fmt: skip
        name = data.draw(st.sampled_from([*choices]))
        ask(self.explorer, **{name: data.draw(st.sampled_from(choices[name]))})

    @rule(content=st.sampled_from([png((30, 50)), png((1, 1)), b"no", gif(3)]))
    def upload(self, content):
        upload(self.explorer, content)

    @rule(at=st.floats(0, 1))
    def move_the_square(self, at):
        ask(self.explorer, "square", at=at)

    @rule(kind=st.sampled_from(["ready", "code", "again"]))
    def other(self, kind):
        ask(self.explorer, kind)

    @invariant()
    def nothing_failed(self):
        if hasattr(self, "explorer"):
            assert self.explorer.errors == []

    def teardown(self):
        if hasattr(self, "explorer"):
            consistent(self.explorer)
            self.explorer.close()


TestMonkey = Monkey.TestCase
TestMonkey.settings = settings(max_examples=8, stateful_step_count=40)
