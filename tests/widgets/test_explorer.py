"""The explorer without a browser: its states, the pictures and words it computes, bad input, and random use."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from PIL import Image
from torch import nn

import zfkit
from zfkit.errors import LayerError, ZfkitError
from zfkit.images.imageset import ImageSet, Windows
from zfkit.widgets import Explorer, ExplorerView, State, drawing, explore
from zfkit.widgets.panel import Cache, Panel, Picker, Picture, Progress, Worker, encode, guarded
from zfkit.widgets.state import ORDERS
from zfkit.widgets.view import PIECE, Profile

SIDE = 36
CLASSES = ("cat", "dog", "teapot")


def small_net(dead: int | None = 2) -> nn.Sequential:
    """Two convolutions with a pool between them, in double precision; map `dead` of the first never answers."""
    torch.manual_seed(3)
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(3, 6, 5, stride=2, padding=1))
    net.add_module("relu1", nn.ReLU())
    net.add_module("pool1", nn.MaxPool2d(2))
    net.add_module("conv2", nn.Conv2d(6, 10, 3, padding=1))
    net.add_module("relu2", nn.ReLU())
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc", nn.Linear(10 * 8 * 8, 3))
    if dead is not None:
        with torch.no_grad():
            net.conv1.weight[dead] = 0
            net.conv1.bias[dead] = -1
    return net.double()


def pictures(labelled: bool = True, count: int = 14) -> ImageSet:
    """Smooth random pictures: two windows of each of 7 photographs, or labelled with three classes."""
    generator = np.random.default_rng(0)
    drawn = [
        Image.fromarray(generator.integers(0, 256, (9, 9, 3), np.uint8)).resize((SIDE, SIDE))
        for _ in range(count)
    ]
    if labelled:
        names = [f"folder/{CLASSES[i % 3]}/{i}.png" for i in range(count)]
        photos = ImageSet(lambda i: (drawn[i], i % 3), names, size=SIDE, source="drawn", classes=CLASSES)
    else:
        names = [f"photo{i // 2} (scale 1, left {i}, top 0)" for i in range(count)]
        box = torch.tensor([[40.0 * (i % 2), 0, 40.0 * (i % 2) + 36, 36] for i in range(count)])
        windows = Windows(torch.arange(count) // 2, box)
        photos = ImageSet(lambda i: (drawn[i], -1), names, size=SIDE, source="drawn", windows=windows)
    return photos.in_memory(progress=False)


def wrapped(net: nn.Module | None = None, classes: tuple[str, ...] | None = CLASSES) -> zfkit.VisionModel:
    net = small_net() if net is None else net
    return zfkit.wrap_model(net, mean=120.0, scale=1 / 60, input_size=SIDE, classes=classes, name="small")


@pytest.fixture(scope="module")
def world():
    model, photos = wrapped(), pictures()
    return model, photos, zfkit.mine(model, photos, progress=False)


@pytest.fixture
def explorer(world):
    made = explore(*world, layer="conv2", save_to=None)
    yield made
    made.close()


def opened(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)


def tile_of(encoded: bytes, rank: int, columns: int = 3) -> np.ndarray:
    step = drawing.TILE + drawing.GAP
    y, x = rank // columns * step, rank % columns * step
    return opened(encoded)[y : y + drawing.TILE, x : x + drawing.TILE]


# ------------------------------------------------------------------------------------------ the right picture


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
@pytest.mark.parametrize("rule", ["deconvnet", "guided", "gradient"])
def test_tiles_are_what_project_gives(world, layer, rule):
    """Each tile against zfkit.project on the whole picture, cut out and coloured by hand."""
    model, photos, top = world
    view = ExplorerView(model, photos, top)
    grids = view.grids(view.checked(State(layer=layer, channel=4, rule=rule, gain=2.0)))
    best, field = top[layer], zfkit.receptive_field(model, layer)
    for rank in (0, 5, 8):
        i, row, col = int(best.image[4, rank]), int(best.row[4, rank]), int(best.col[4, rank])
        whole = zfkit.project(model, model.preprocess(photos[i][0]), layer, 4, [(row, col)], rule=rule)[0]
        left, up, right, down = field.box(row, col)
        margin = field.size
        padded = torch.nn.functional.pad(whole, (margin,) * 4)
        window = padded[:, up + margin : down + margin, left + margin : right + margin]
        scale = np.quantile(window.abs().flatten().numpy(), 0.995) / 2.0
        assert grids.scales[rank] == pytest.approx(scale, rel=1e-4)
        shown = (
            np.round(128 + 127 * np.clip(window.numpy() / scale, -1, 1)).astype(np.uint8).transpose(1, 2, 0)
        )
        expected = np.asarray(
            Image.fromarray(shown).resize((drawing.TILE,) * 2, Image.Resampling.NEAREST)
        ).astype(int)
        assert np.abs(tile_of(grids.projections, rank) - expected).max() <= 1
        photo = np.pad(photos[i][0].numpy(), ((0, 0), (margin,) * 2, (margin,) * 2), constant_values=128)
        patch = photo[:, up + margin : down + margin, left + margin : right + margin].transpose(1, 2, 0)
        expected = np.asarray(
            Image.fromarray(patch).resize((drawing.TILE,) * 2, Image.Resampling.NEAREST)
        ).astype(int)
        assert np.abs(tile_of(grids.patches, rank) - expected).mean() < 6  # JPEG


def test_prepared_in_pieces_or_at_once_is_the_same(world):
    state = State(layer="conv2", channel=7)
    piecewise, at_once = ExplorerView(*world), ExplorerView(*world)
    pieces = list(piecewise.prepare(state))
    assert len(pieces) >= 2  # the pictures, in as many pieces as take long, and the drawing
    assert piecewise._grids.get(piecewise._grid_key(state)) == at_once.grids(state)


def test_a_unit_that_somebody_picked_is_projected(world):
    model, photos, _top = world
    view = ExplorerView(*world)
    state = view.checked(State(layer="conv2", channel=3, rank=1, position=(6, 2)))
    image, place = view.unit(state)
    assert place == (6, 2)
    whole = zfkit.project(model, model.preprocess(photos[image][0]), "conv2", 3, [(6, 2)])[0]
    left, up, right, down = (max(v, 0) for v in zfkit.receptive_field(model, "conv2").box(6, 2))
    inside = whole[:, up:down, left:right]
    detail = view.detail(state)
    assert detail.scale == pytest.approx(np.quantile(inside.abs().flatten().numpy(), 0.995), rel=1e-4)
    value = float(model.net[:4](model.preprocess(photos[image][0])).detach()[0, 3, 6, 2])
    assert f"activation {value:.3g}" in detail.told
    assert detail.shape == (8, 8)


def test_heat_map_lies_over_what_its_units_see():
    field = zfkit.receptive_field(wrapped(), "conv2")
    left, top, right, bottom = drawing.map_area(field, (8, 8), SIDE)
    for row in (0, 3, 7):  # the middle of a unit's cell is the middle of its box
        box = field.box(row, row)
        assert (top + (row + 0.5) / 8 * (bottom - top)) * SIDE == pytest.approx((box.top + box.bottom) / 2)
        assert (left + (row + 0.5) / 8 * (right - left)) * SIDE == pytest.approx((box.left + box.right) / 2)
    values = torch.zeros(8, 8)
    values[3, 5] = 2.0
    grey = Image.new("RGB", (SIDE, SIDE), (100, 100, 100))
    shown = np.asarray(drawing.heat(grey, values, (left, top, right, bottom), 360)).astype(int)
    bright = np.argwhere(np.ptp(shown, axis=2) > 30)
    box = field.box(3, 5)
    middle = np.array([(box.top + box.bottom) / 2, (box.left + box.right) / 2]) * 10
    assert np.abs(bright.mean(0) + 0.5 - middle).max() < 1
    assert len(bright) == pytest.approx((field.stride * 10) ** 2, rel=0.05)


def test_own_picture_shows_the_strongest_maps(world, tmp_path):
    model, photos, _top = world
    view = ExplorerView(*world)
    pixels = photos[3][0]
    file = tmp_path / "mine.png"
    drawing.to_picture(pixels).save(file)
    own = view.own(view.checked(State(layer="conv2")), str(file), "mine.png")
    maxima = model.net[:4](model.preprocess(pixels))[0].flatten(1).max(1).values
    assert list(own.channels) == [c for c in maxima.argsort(descending=True).tolist() if maxima[c] > 0][:9]
    likeliest = model.net(model.preprocess(pixels))[0].softmax(0)
    assert f"{CLASSES[int(likeliest.argmax())]} {float(likeliest.max()):.0%}" in own.probabilities
    c = own.channels[0]
    window = zfkit.project(model, model.preprocess(pixels), "conv2", c)[0]
    found = view.strongest(model, pixels, "conv2").patches.projection[0, 0]
    assert float(found.abs().sum()) == pytest.approx(float(window.abs().sum()))


def test_methods_side_by_side(world):
    view = ExplorerView(*world)
    steps = view.methods(view.checked(State(layer="conv2", channel=1)))
    with pytest.raises(StopIteration) as ended:
        while True:
            assert isinstance(next(steps), Progress)
    encoded, sentence = ended.value.value
    assert not sentence
    shown = opened(encoded)
    step = drawing.GAP + 132
    columns = [shown[:132, i * step : i * step + 132] for i in range(5)]
    for i in range(1, 5):
        for j in range(i):
            assert (columns[i] != columns[j]).mean() > 0.05  # five different pictures
    mixed, own = view.shuffled.net, view.model.net
    for a, b in zip(mixed.parameters(), own.parameters(), strict=True):
        assert torch.equal(
            a.flatten().sort().values, b.flatten().sort().values
        )  # the same weights, elsewhere
    assert not torch.equal(mixed.conv2.weight, own.conv2.weight)


def test_two_models_see_the_same_photograph(world):
    model, photos, top = world
    torch.manual_seed(9)
    other = zfkit.wrap_model(nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU()), mean=120.0, scale=1 / 60, input_size=SIDE,
                             name="other")  # fmt: skip
    view = ExplorerView(model, photos, top, {"other": lambda: other})
    state = view.checked(State(layer="conv2", channel=1, versus="other"))
    steps = view.models(state)
    with pytest.raises(StopIteration) as ended:
        while True:
            next(steps)
    (first, second) = ended.value.value
    assert first[0] == "small conv2" and second[0] == "other 0"
    image = int(top["conv2"].image[1, 0])
    maxima = other.net[0](other.preprocess(photos[image][0]))[0].flatten(1).max(1).values
    assert [c.split(" · ")[0] for c in second[2]] == [
        f"{c}" for c in maxima.argsort(descending=True) if maxima[c] > 0
    ]


@pytest.mark.parametrize(
    "source, shown",
    [
        ("folder:/home/me/pictures/cats", "folder cats"),
        ("folder:cats/", "folder cats"),
        ("parquet:/data/food/part-*.parquet", "parquet part-*.parquet"),
        ("photos", "photos"),
        ("textures:no-middle", "textures:no-middle"),
    ],
)
def test_the_title_names_a_folder_without_its_path(world, source, shown):
    model, photos, top = world
    same = ImageSet(lambda i: (photos[i], -1), ["0"], size=SIDE, source=source)
    assert ExplorerView(model, same, top).source == shown


# ------------------------------------------------------------------------------------------- orders and facts


def profiled(world) -> ExplorerView:
    view = ExplorerView(*world)
    for _ in view.profile_steps():
        pass
    return view


def test_profile_is_every_maps_maximum(world):
    model, photos, _top = world
    profile = profiled(world).profile
    outputs = model.net[:4](model.preprocess(photos.take(range(len(photos))))).flatten(2).max(2).values
    assert np.allclose(profile.values["conv2"], outputs.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert profile.kind == "class" and profile.label[4] == "dog"


def test_orders(world):
    model, _photos, top = world
    view = profiled(world)
    for _ in view.frequency_steps("conv1"):
        pass
    fresh = ExplorerView(*world)
    assert fresh.lacks(State("conv1", order="selectivity")) == "profile"
    assert fresh.lacks(State("conv1", order="mean frequency")) == "frequencies"
    assert fresh.order(State("conv1", order="selectivity")).tolist() == list(range(6))
    for order in ORDERS:
        assert sorted(view.order(State("conv1", order=order))) == list(range(6))
    strongest = [float(top["conv1"].max[c]) for c in view.order(State("conv1", order="max activation"))]
    assert strongest == sorted(strongest, reverse=True)
    assert view.order(State("conv1", order="dead first"))[0] == 2
    # The projection of a first layer's unit is its filter: the order is that of the filters' mean frequency.
    weights = model.net.conv1.weight.detach()
    power = torch.fft.fft2(weights, s=(64, 64)).abs().square().sum(1).numpy()
    u = np.fft.fftfreq(64)
    rho = np.hypot(u[:, None], u)
    with np.errstate(invalid="ignore"):
        centroid = (power * rho).sum((1, 2)) / power.sum((1, 2))
    found = view.order(State("conv1", order="mean frequency"))
    assert found.tolist() == np.argsort(np.nan_to_num(centroid, nan=9), kind="stable").tolist()
    # Selectivity, literally.
    values = profiled(world).profile.values["conv2"].clip(min=0)
    literal = []
    for c in range(values.shape[1]):
        means = sorted((values[k::3, c].mean() for k in range(3)), reverse=True)
        rest = (means[1] + means[2]) / 2
        literal.append((means[0] - rest) / (means[0] + rest) if means[0] + rest > 0 else 0)
    assert view.order(State("conv2", order="selectivity"))[0] == int(np.argmax(literal))


def test_search_finds_maps_by_class_and_by_photograph(world):
    model, _photos, top = world
    view = ExplorerView(*world)
    found = view.order(State("conv2", search=" DOG "))
    often = {c: sum(int(i) % 3 == 1 for i in top["conv2"].image[c]) for c in range(10)}
    assert [often[c] for c in found] == sorted((n for n in often.values() if n), reverse=True)
    assert view.order(State("conv2", search="zebra")).tolist() == []
    windows = pictures(labelled=False)
    mined = zfkit.mine(model, windows, progress=False)
    view = ExplorerView(model, windows, mined)
    hits = set(view.order(State("conv1", search="photo3")).tolist())
    assert hits == {c for c in range(6) if {6, 7} & set(mined["conv1"].image[c].tolist())}
    assert view.label(6) == "photo3"


def test_facts_tell_the_numbers(world):
    _model, photos, top = world
    view = profiled(world)
    facts = view.facts(State("conv1", 4))
    assert f"{float(top['conv1'].active[4]):.0%}" in facts
    assert "sees 5 × 5 px, the next unit 2 px further on" in facts
    assert "filter, 5 × 5" in facts and "spectrum" in facts
    assert "filter, 5" not in view.facts(State("conv2", 4))  # its filters are not pictures
    values = view.profile.values["conv1"][:, 4]
    used = [photos[i][1] for i in np.argsort(-values, kind="stable") if values[i] > 0]
    assert f"top {len(used)} by class" in facts
    counts = {CLASSES[k]: used.count(k) for k in set(used)}
    for name, n in counts.items():
        assert f"{name}: {n}" in facts
    near = view.nearest(State("conv2", 4))
    r = np.corrcoef(view.profile.values["conv2"].T)[4]
    r[4] = -2
    assert [c for c, _ in near] == np.argsort(-r)[:3].tolist()
    assert near[0][1] == pytest.approx(r.max())


def test_warnings_name_what_is_wrong():
    net = small_net(dead=2)
    with torch.no_grad():
        net.conv2.weight[5] = 3 * net.conv2.weight[1]
        net.conv2.weight[7] *= 1e-4
    model, photos = wrapped(net), pictures()
    view = ExplorerView(model, photos, zfkit.mine(model, photos, progress=False))
    assert "Dead: never above 0" in view.facts(State("conv1", 2))
    assert "Nearly a duplicate of map 1 " in view.facts(State("conv2", 5))
    assert "Weak filter" in view.facts(State("conv2", 7))
    assert "No health warning" in view.facts(State("conv2", 0))


def test_mean_frequency_of_gratings():
    x = torch.arange(64.0)
    gratings = torch.stack([torch.cos(2 * torch.pi * f * x).expand(3, 64, 64) for f in (4 / 64, 16 / 64)])
    assert drawing.mean_frequency(gratings).tolist() == pytest.approx([4 / 64, 16 / 64], abs=1e-4)
    assert drawing.mean_frequency(torch.zeros(1, 3, 8, 8)).isnan().all()


# --------------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "conv9"}, "there is no layer 'conv9'. Did you mean 'conv"),
        ({"layer": "conv1", "channel": 6}, "there is no feature map 6 in 'conv1': it has 6, 0 to 5"),
        ({"channel": -1}, "channel must be a whole number from 0 on, not -1"),
        ({"channel": 2.0}, "channel must be a whole number"),
        ({"rank": 9}, "there is no rank 9: 9 pictures are shown"),
        ({"layer": "conv2", "position": (8, 0)}, "maps of 'conv2' are 8 x 8"),
        ({"position": 3}, "position must be (row, column) or None, not 3"),
        ({"tab": "map"}, "there is no tab 'map'. Did you mean 'maps'?"),
        ({"rule": "lrp"}, "there is no rule 'lrp'"),
        ({"order": "size"}, "there is no order 'size'"),
        ({"gain": 0}, "gain must be a number from 0.25 to 8.0, not 0"),
        ({"versus": "vgg"}, "there is no model to compare with 'vgg'"),
        ({"chanel": 3}, "Did you mean 'channel'?"),
        ({"search": 3}, "search must be text"),
    ],
)
def test_states_that_do_not_exist_are_refused_in_words(world, changes, message):
    with pytest.raises(ZfkitError) as error:
        explore(*world, **changes)
    assert message in str(error.value)


def test_a_refused_change_changes_nothing(explorer):
    before = explorer.state
    with pytest.raises(ZfkitError):
        explorer.set(channel=99)
    assert explorer.state == before and explorer.map.value == before.channel


def test_table_of_other_pictures_is_refused(world):
    model, _, top = world
    with pytest.raises(ZfkitError, match="mine again"):
        explore(model, pictures(labelled=False), top)


def test_code_reproduces_the_view(world):
    _model, _photos, _top = world
    view = ExplorerView(*world)
    state = State(layer="conv2", channel=3, position=(1, 2), gain=2.0, order="max activation")
    code = view.code(state)
    assert len(code.splitlines()) == 3
    called = {}
    fake = type("zfkit", (), {
        "load_model": staticmethod(lambda name: called.update(model=name)),
        "load_images": staticmethod(lambda name, **o: called.update(photos=name, **o)),
        "mine": staticmethod(lambda *a, **o: called.update(mined=o)),
        "explore": staticmethod(lambda m, p, t, **o: called.update(state=State(**o))),
    })  # fmt: skip
    exec(code.replace("import zfkit\n", ""), {"zfkit": fake})
    assert called == {"model": "small", "photos": "drawn", "size": SIDE, "mined": {}, "state": state}


def test_a_list_from_papermill_is_a_position():
    assert State(position=[1, 2]).position == (1, 2)
    assert State(position=[1, 2]) == State(position=(1, 2))


# ------------------------------------------------------------------------------------------------ the widget


def consistent(e: Explorer) -> None:
    """What is shown is what a fresh view computes for the state, and every control says the state."""
    assert e.wait(60)
    s, v = e.state, ExplorerView(e.view.model, e.view.photos, e.view.top, e.view.others)
    assert e.errors == []
    assert (e.layers.value, e.tabs.value, e.number.value) == (s.layer, s.tab, s.channel)
    assert (e.rule.value, e.gain.value, e.order.value, e.find.value) == (s.rule, s.gain, s.order, s.search)
    assert (e.versus.value, e.ranks.value) == (s.versus, s.rank)
    v.profile, v.frequencies = e.view.profile, e.view.frequencies
    channels = v.order(s)
    assert e.map.max == max(len(channels) - 1, 0)
    if len(channels):
        assert channels[e.map.value] == s.channel
    for page, tab in zip(
        (e.maps_page, e.own_page, e.compare_page), ("maps", "image", "compare"), strict=True
    ):
        assert (page.layout.display is None) == (tab == s.tab)
    if s.tab == "maps" and not len(channels):
        assert "among its strongest pictures" in e.projections.picture.said
    elif s.tab == "maps":
        grids, detail = v.grids(s), v.detail(s)
        assert e.projections.picture.said == grids.sentence
        if not grids.sentence:
            assert e.projections.picture.image.value == grids.projections
            assert e.patches.picture.image.value == grids.patches
            assert e.whole.image.value == detail.whole
            assert e.heat.picture.image.value == detail.heat
            assert (e.heat.place.row, e.heat.place.col) == detail.position
            assert (e.heat.row.value, e.heat.col.value) == detail.position
    elif s.tab == "compare" and s.versus == "methods" and v.grids_sentence(s):
        assert "is dead" in e.compared.said


def test_opens_where_it_was_told(world):
    e = explore(*world, layer="conv2", channel=5, rank=2, gain=2.0)
    consistent(e)
    assert e.state == State("conv2", 5, 2, gain=2.0)
    e.close()


def test_controls_do_what_they_say(explorer):
    e = explorer
    e.map.value = 4
    assert e.state.channel == 4
    e.number.value = 6
    assert e.state.channel == 6 and e.map.value == 6
    e.layers.value = "conv1"
    assert e.state == State("conv1", 0)
    next_one = next(w for w in e.controls.children[4].children if "zfkit-next" in w._dom_classes)
    next_one.click()
    assert e.state.channel == 1
    e.projections.place.set_trait("row", 1)
    e.projections.place.set_trait("col", 2)
    assert e.state.rank == 5 and e.ranks.value == 5 and e.patches.place.row == 1
    e.heat.row.value = 3  # the slider, where the canvas cannot load
    assert e.state.position[0] == 3
    e.ranks.value = 0
    assert e.state.position is None
    consistent(e)
    e.tabs.value = "compare"
    consistent(e)


def test_a_click_on_the_map_of_the_layer_before_is_let_go(explorer):
    e = explorer
    e.set(layer="conv1", channel=4, tab="compare")  # nothing draws the map now
    e.set(layer="conv2")
    assert (e.heat.place.rows, e.heat.place.cols) == (8, 8)
    unit = e.view.unit(e.state)[1]
    e.heat.place.set_state({"row": 16, "col": 2})
    assert e.state.position is None and e.errors == []
    assert (e.heat.place.row, e.heat.place.col) == unit
    e.set(tab="maps")
    consistent(e)


def test_what_is_ready_is_shown_before_the_worker_is_free(explorer):
    e, free = explorer, threading.Event()
    ready = replace(e.state, channel=6)
    grids = e.view.grids(ready)
    e.live = True

    def busy():
        free.wait(20)
        yield None

    assert e.wait()
    e.worker.submit("busy", busy())
    e.map.value = 6  # as the slider's message would
    shown = e.projections.picture.image.value, e.patches.picture.image.value
    free.set()
    assert shown == (grids.projections, grids.patches)
    assert e.wait()
    assert "map <b>6</b>" in e.heading.value and e.number.value == 6
    consistent(e)


@pytest.mark.parametrize("order", ["index", "max activation"])
def test_while_pages_turn_the_next_ones_come_before_the_large_pictures(explorer, order):
    e = explorer
    e.ahead = False
    e.set(order=order, channel=int(e.view.order(replace(e.state, order=order))[4]))
    assert e.wait()
    done, steps = [], e.view.detail_steps
    e.view.detail_steps = lambda state: done.append("large") or steps(state)
    for by, places in ((1, (5, 6, 7)), (-1, (4, 3, 2))):
        expected = [e.view.grids(State("conv2", int(e._channels[p]))).captions for p in places]
        done.clear()
        e.view._grids = Cache(
            10**7, lambda grids: done.append(grids.captions) or 1
        )  # told of each that is kept
        e._step(by)
        assert e.wait()
        assert done[:4] == [*expected, "large"]
    consistent(e)


def test_a_late_picture_does_not_replace_a_newer_one(explorer):
    e = explorer
    late = e.state
    grids = e.view.grids(late)
    e.set(channel=7)
    assert e.wait()
    e._show_grids(late, grids)
    assert e.projections.picture.image.value == e.view.grids(e.state).projections


@pytest.fixture
def forward_passes(world):
    """Counts passes through the network's first layer."""
    ran = []
    first = next(m for m in world[0].net.modules() if isinstance(m, nn.Conv2d))
    hook = first.register_forward_hook(lambda *_: ran.append(1))
    yield ran
    hook.remove()


def test_kept_switches_give_the_same_pictures_without_a_forward_pass(world, forward_passes):
    counted, kept = ExplorerView(*world), ExplorerView(*world)
    list(counted.profile_steps())
    list(kept.switch_steps("conv2", [3]))
    for view in (counted, kept):
        assert 0 < len(view._switches) == len(view._pictured) <= len(world[1])
        for layer, channel in (("conv1", 4), ("conv2", 3), ("conv2", 7)):
            state = State(layer, channel)
            forward_passes.clear()
            grids = view.grids(state)
            assert not forward_passes
            assert grids == ExplorerView(*world).grids(state) and forward_passes
    forward_passes.clear()
    list(kept.switch_steps("conv1", [0]))  # all are there
    assert not forward_passes


def test_the_large_pictures_of_what_was_counted_take_no_forward_pass(world, forward_passes):
    counted, fresh = ExplorerView(*world), ExplorerView(*world)
    list(counted.profile_steps())
    for layer, channel, rank in (("conv1", 4, 0), ("conv2", 3, 8), ("conv2", 7, 2)):
        for position in (None, (1, 2)):
            state = State(layer, channel, rank=rank, position=position)
            forward_passes.clear()
            detail = counted.detail(state)
            assert not forward_passes
            assert detail == fresh.detail(state)
    assert counted.detail(State("conv2", 3, rule="guided")) == fresh.detail(State("conv2", 3, rule="guided"))
    assert forward_passes  # switches are not all that other rules need


def test_switches_of_the_maps_at_hand_come_first_and_only_while_there_is_room(world):
    view = ExplorerView(*world)
    mine = view.top["conv2"].image[3, : view.shown].tolist()
    steps = view.switch_steps("conv2", [3])
    while len(view._switches) < len(mine):
        next(steps)
    assert set(view._switches._kept) == set(mine)
    narrow = ExplorerView(*world)
    narrow._switches.limit = int(2.5 * view._switches.bytes / len(mine))
    list(narrow.switch_steps("conv2", [3]))
    assert list(narrow._switches._kept) == mine[:2]


def test_what_was_prepared_in_part_is_not_computed_again(world, monkeypatch):
    view, fresh = ExplorerView(*world), ExplorerView(*world)
    projected = []
    whole = view._project
    monkeypatch.setattr(view, "_project", lambda t, *rest: projected.append(t.k) or whole(t, *rest))
    state = State("conv2", 3)
    steps = view.prepare(state)
    next(steps)
    steps.close()  # a newer page was asked for
    assert projected == [PIECE] and not view.ready(state)
    assert view.grids(state) == fresh.grids(state)
    assert projected == [PIECE, view.shown - PIECE]
    assert view._begun.bytes == 0


def test_farther_maps_wait_while_pages_turn(world):
    e = explore(*world, layer="conv2")
    try:
        e._turning, e._moved = True, time.monotonic()
        steps = e._ahead(e.state)
        for _ in range(5):
            next(steps)
        assert len(e.view._grids) == 1  # of the first view
        list(steps)  # once nobody has turned one for a while
        assert len(e.view._grids) > 8 and len(e.view._switches) == len(e.view._pictured)
    finally:
        e.close()


def test_counting_goes_on_where_it_was_left(world):
    model, photos, top = world
    looked = []

    class Watched:
        def __getattr__(self, name):
            return getattr(photos, name)

        def __len__(self):
            return len(photos)

        def __getitem__(self, i):
            looked.append(i)
            return photos[i]

    left, whole = ExplorerView(model, Watched(), top), ExplorerView(model, photos, top)
    steps = left.profile_steps()
    for _ in range(17):
        next(steps)
    steps.close()
    list(left.profile_steps())
    list(whole.profile_steps())
    assert len(photos) <= len(looked) <= len(photos) + 1  # the one it was interrupted at, again
    assert np.array_equal(left.profile.image, whole.profile.image)
    for layer in left.layers:
        assert np.array_equal(left.profile.values[layer], whole.profile.values[layer])


def test_a_picture_that_comes_late_moves_no_control(explorer):
    e = explorer
    late = e.state  # its pictures were ready, and the thread was held up just before it showed them
    grids = e.view.grids(late)
    e.set(rank=4, tab="compare")
    assert e.wait()
    e._show_grids(late, grids)
    assert e.ranks.value == 4
    consistent(e)


def test_hover_previews_and_gives_back(explorer):
    e = explorer
    assert e.wait()
    shown = e.whole.image.value
    e.projections.place.hover = [1, 0]
    assert e.wait()
    assert (
        e.whole.image.value
        == ExplorerView(e.view.model, e.view.photos, e.view.top).detail(State("conv2", 0, 3)).whole
    )
    assert e.state.rank == 0
    e.projections.place.hover = [-1, -1]
    assert e.wait()
    assert e.whole.image.value == shown


def test_the_newest_position_wins(explorer):
    for channel in [1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 8]:
        explorer.map.value = channel
    consistent(explorer)
    assert explorer.state.channel == 8


def test_a_dead_map_says_so(world):
    e = explore(*world, layer="conv1", channel=2)
    assert "conv1 map 2 is dead: on none of the 14 pictures" in e.projections.picture.said
    assert e.photo.said and e.whole.said
    e.set(channel=3)
    consistent(e)
    e.set(channel=2, tab="compare")
    consistent(e)
    e.close()


def test_search_without_result_says_so_and_goes_on(explorer):
    explorer.find.value = "zebra"
    consistent(explorer)
    assert "No map of conv2 has “zebra”" in explorer.projections.picture.said
    explorer.find.value = ""
    consistent(explorer)


def test_number_of_a_map_that_the_search_left_out(world):
    model, _, _ = world
    photos = pictures(labelled=False)
    e = explore(model, photos, zfkit.mine(model, photos, k=2, progress=False), layer="conv2")
    e.find.value = "photo1"
    left_out = sorted(set(range(10)) - set(e.view.order(e.state).tolist()))
    e.number.value = left_out[0]
    assert e.state.search == "" and e.state.channel == left_out[0]
    consistent(e)
    e.close()


def test_orders_arrive_when_they_are_counted(explorer):
    explorer.order.value = "selectivity"
    assert explorer.wait()
    consistent(explorer)
    assert explorer.view.profile is not None
    explorer.order.value = "mean frequency"
    consistent(explorer)
    assert "conv2" in explorer.view.frequencies
    assert "by mean frequency" in explorer.of.value


def test_an_error_in_a_callback_is_shown_and_recorded(explorer, monkeypatch):
    def broken(state):
        raise RuntimeError("a bug")

    monkeypatch.setattr(explorer.view, "grids", broken)
    explorer.map.value = 3
    assert explorer.wait()
    assert "RuntimeError: a bug" in explorer.notice.value and explorer.notice.layout.display is None
    assert isinstance(explorer.errors[-1].error, RuntimeError) and "broken" in explorer.errors[-1].trace
    monkeypatch.undo()
    explorer.errors.clear()
    explorer.map.value = 4
    consistent(explorer)
    assert explorer.notice.layout.display == "none"


def test_nothing_is_computed_ahead_until_somebody_looks(world):
    e = explore(*world, layer="conv2")
    time.sleep(0.05)
    assert len(e.view._grids) == 1 and e.view.profile is None
    e._message(e.heat.place, {"kind": "ready"}, [])
    assert e.worker.wait(60, Worker.LATER)
    assert len(e.view._grids) >= 5 and e.view.profile is not None
    consistent(e)
    e.close()


def test_all_maps_are_computed_ahead_where_there_is_time_and_room(world):
    e = explore(*world, layer="conv2")
    e.go_live()
    assert e.worker.wait(60, Worker.LATER)
    alive = [
        (n, c)
        for n in e.view.layers
        for c in range(e.view.count(n))
        if not e.view.grids_sentence(State(n, c))
    ]
    assert len(alive) == 15 and len(e.view._grids) == len(alive)  # 6 + 10 maps, one of them dead
    fresh = ExplorerView(*world)
    for layer, channel in alive:  # each is what it would have been, asked for alone
        state = State(layer, channel)
        assert e.view._grids.get(e.view._grid_key(state)) == fresh.grids(state)
    e.close()

    neighbours = explore(*world, layer="conv2", ahead=False)
    neighbours.go_live()
    assert neighbours.worker.wait(60, Worker.LATER)
    assert (
        len(neighbours.view._grids) == 1 + 8 + 1
    )  # four on either side of the slider's end, the other layer's first
    neighbours.close()

    narrow = explore(*world, layer="conv2")
    narrow.view._grids.limit = 4 * narrow.view._grids.bytes
    narrow.go_live()
    assert narrow.worker.wait(60, Worker.LATER)
    assert narrow.view.full and narrow.view._grids.bytes <= narrow.view._grids.limit
    narrow.close()


def test_static_picture_stands_beside_the_widget(explorer):
    bundle = explorer._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in data
    import base64

    shown = Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"])))
    assert shown.size == explorer.snapshot().size and shown.width > 500
    snapshot = np.asarray(explorer.snapshot()).astype(int)
    grid = opened(explorer.projections.picture.image.value)
    x, y = 22, 22 + 34 + 20
    assert (snapshot[y : y + drawing.GRID, x : x + drawing.GRID] == grid).all()


def test_save_writes_a_png_and_a_link(world, tmp_path):
    e = explore(*world, layer="conv2", channel=3, save_to=tmp_path / "new")
    e._save(None)
    assert Image.open(tmp_path / "new" / "small-conv2-3.png").format == "PNG"
    assert 'download="small-conv2-3.png"' in e.saved.value
    (tmp_path / "file").write_text("in the way")
    e.save_to = tmp_path / "file"
    e._save(None)
    assert "Not saved here" in e.saved.value and "download" in e.saved.value
    e.close()


# -------------------------------------------------------------------------------------------------- bad input


def png(size: tuple[int, int], colour: str = "teal") -> bytes:
    return encode(Image.new("RGB", size, colour))


def gif(frames: int) -> bytes:
    buffer = io.BytesIO()
    pages = [Image.new("RGB", (40, 30), (40 * i, 90, 10)) for i in range(frames)]
    pages[0].save(buffer, "GIF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()


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
    explorer._uploaded(type("change", (), {"new": ({"name": "bad.png", "content": memoryview(content)},)}))
    assert explorer.wait()
    assert message in explorer.own_strongest.picture.said and message in explorer.own_picture.said
    assert explorer.errors == [] and explorer.state.tab == "image"
    explorer.set(tab="maps", channel=4)
    consistent(explorer)


def test_a_long_thin_picture_and_an_animation_are_taken_and_explained(explorer):
    for name, content, told in (
        ("long.png", png((20_000, 40)), "20,000 × 40 px; its middle square is used"),
        ("moving.gif", gif(4), "an animation of 4 frames, of which the first is shown"),
    ):
        explorer._uploaded(type("change", (), {"new": ({"name": name, "content": content},)}))
        assert explorer.wait()
        assert told in explorer.own_note.value
        assert explorer.own_picture.said == "" and explorer.errors == []
    first = opened(explorer.own_picture.image.value).mean((0, 1))
    assert np.abs(first - [0, 90, 10]).max() < 6  # the first frame


def test_a_path_that_leads_nowhere(explorer, tmp_path):
    explorer.set(tab="image")
    explorer.path.value = str(tmp_path / "none.png")
    assert explorer.wait()
    assert "There is no file" in explorer.own_strongest.picture.said
    explorer.path.value = str(tmp_path)  # a folder
    assert explorer.wait()
    assert "There is no file" in explorer.own_strongest.picture.said and explorer.errors == []


def test_a_model_without_classes(world, tmp_path):
    _, photos, _ = world
    model = wrapped(classes=None)
    e = explore(model, photos, zfkit.mine(model, photos, progress=False), tab="image")
    drawing.to_picture(photos[0][0]).save(tmp_path / "a.png")
    e.set(image=str(tmp_path / "a.png"))
    assert e.wait()
    assert "small has no class names" in e.own_probabilities.value and not e.own_strongest.picture.said
    e.close()


@pytest.mark.parametrize("layers", [{}, {"gone": None}], ids=["empty", "of layers that are not there"])
def test_an_empty_table(world, layers):
    from dataclasses import replace

    model, photos, top = world
    table = replace(top, layers=dict.fromkeys(layers, top["conv1"]))
    e = explore(model, photos, table)
    assert "mine" in e.projections.picture.said and "mine" in e.heat.picture.said
    e.set(channel=3)
    e.tabs.value = "compare"
    assert e.errors == [] and e.snapshot().width > 100
    e.close()


def test_fewer_pictures_than_nine(world):
    model, photos, _ = world
    few = pictures(count=4)
    e = explore(model, few, zfkit.mine(model, few, progress=False), layer="conv2", rank=5)
    assert "no picture of that rank" in e.whole.said
    assert "no picture" in {v: k for k, v in e.ranks.options}[5]
    e.set(rank=0)
    consistent(e)
    one = zfkit.mine(model, photos, k=1, progress=False)
    e.close()
    e = explore(model, photos, one, layer="conv2")
    consistent(e)
    e.close()


def test_pictures_without_labels_have_no_histogram(world):
    model, _, _ = world
    generator = np.random.default_rng(1)
    drawn = [Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)) for _ in range(10)]
    photos = ImageSet(lambda i: (drawn[i], -1), [f"{i}.png" for i in range(10)], size=SIDE).in_memory(
        progress=False
    )
    view = profiled((model, photos, zfkit.mine(model, photos, progress=False)))
    assert "these pictures have no labels" in view.facts(State("conv2", 1))


def test_fully_connected_layers(world):
    model, photos, _ = world
    e = explore(
        model, photos, zfkit.mine(model, photos, ["conv2", "fc"], progress=False), layer="fc", channel=1
    )
    consistent(e)
    assert "sees the whole picture" in e.facts.value
    e.close()


# ------------------------------------------------------------------------------------------------ random use


class Monkey(RuleBasedStateMachine):
    """Random actions in a row leave a view that is consistent."""

    @initialize()
    def open(self):
        if not hasattr(Monkey, "world"):
            model, photos = wrapped(), pictures()
            Monkey.world = model, photos, zfkit.mine(model, photos, progress=False)
            Monkey.file = None
        self.explorer = explore(*Monkey.world, others={"same": Monkey.world[0]}, save_to=None)

    @rule(place=st.integers(0, 9))
    def slide(self, place):
        e = self.explorer
        e.map.value = min(place, e.map.max)

    @rule(channel=st.integers(0, 12))
    def type_a_number(self, channel):
        self.explorer.number.value = channel

    @rule(layer=st.sampled_from(["conv1", "conv2"]))
    def change_layer(self, layer):
        self.explorer.layers.value = layer

    @rule(r=st.integers(0, 2), c=st.integers(0, 2))
    def click_a_tile(self, r, c):
        with self.explorer.patches.place.hold_trait_notifications():
            self.explorer.patches.place.row, self.explorer.patches.place.col = r, c

    @rule(r=st.integers(0, 17), c=st.integers(0, 17))
    def click_the_map(self, r, c):
        place = self.explorer.heat.place
        with place.hold_trait_notifications():
            place.row, place.col = min(r, place.rows - 1), min(c, place.cols - 1)

    @rule(r=st.integers(-1, 2), c=st.integers(0, 2))
    def hover(self, r, c):
        self.explorer.projections.place.hover = [r, c if r >= 0 else -1]

    @rule(rule=st.sampled_from(["deconvnet", "guided", "gradient"]))
    def change_rule(self, rule):
        self.explorer.rule.value = rule

    @rule(gain=st.sampled_from([0.25, 1.0, 3.0, 8.0]))
    def change_gain(self, gain):
        self.explorer.gain.value = gain

    @rule(order=st.sampled_from(ORDERS))
    def change_order(self, order):
        self.explorer.order.value = order

    @rule(words=st.sampled_from(["", "dog", "zebra", "Teapot"]))
    def search(self, words):
        self.explorer.find.value = words

    @rule(tab=st.sampled_from(["maps", "image", "compare"]))
    def change_tab(self, tab):
        self.explorer.tabs.value = tab

    @rule(versus=st.sampled_from(["methods", "same"]))
    def change_comparison(self, versus):
        self.explorer.versus.value = versus

    @rule(content=st.sampled_from([png((30, 50)), png((1, 1)), b"no", gif(3)]))
    def upload(self, content):
        self.explorer._uploaded(type("change", (), {"new": ({"name": "x", "content": content},)}))

    @rule(by=st.sampled_from([-1, 1]))
    def step(self, by):
        self.explorer._step(by)

    @rule()
    def random(self):
        self.explorer._draw()

    @rule()
    def back(self):
        self.explorer._back(None)

    @invariant()
    def nothing_failed(self):
        if hasattr(self, "explorer"):
            assert self.explorer.errors == []

    def teardown(self):
        if hasattr(self, "explorer"):
            self.explorer.projections.place.hover = [-1, -1]
            consistent(self.explorer)
            self.explorer.close()


TestMonkey = Monkey.TestCase
TestMonkey.settings = settings(
    max_examples=12, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


# ------------------------------------------------------------------------------------- what widgets are made of


def test_worker_newer_request_ends_the_older_one():
    worker, seen, gate = Worker(), [], threading.Event()

    def steps(name):
        seen.append(f"{name} begins")
        gate.wait(5)
        yield
        seen.append(f"{name} shows")

    worker.submit("view", steps("old"))
    while not seen:
        time.sleep(0.001)
    worker.submit("view", steps("new"))
    gate.set()
    assert worker.wait(10)
    assert seen == ["old begins", "new begins", "new shows"]
    worker.close()


def test_worker_urgent_jobs_overtake_idle_ones():
    worker, seen, gate = Worker(), [], threading.Event()

    def idle():
        for i in range(3):
            gate.wait(5)
            seen.append(f"idle {i}")
            yield

    def urgent():
        seen.append("urgent")
        yield

    worker.submit("idle", idle(), Worker.IDLE)
    worker.submit("urgent", urgent())
    gate.set()
    assert worker.wait(10, Worker.LATER)
    assert seen.index("urgent") <= 1 and seen[-1] == "idle 2"
    worker.close()


def test_worker_goes_on_after_an_error():
    failures, seen = [], []
    worker = Worker(failed=lambda error, key: failures.append((str(error), key)))

    def bad():
        yield
        raise ValueError("broken")

    def good():
        seen.append(1)
        yield

    worker.submit("bad", bad())
    worker.submit("good", good())
    assert worker.wait(10)
    assert failures == [("broken", "bad")] and seen == [1]
    worker.close()
    worker.submit("late", good())  # after the end: nothing, and no error
    assert seen == [1]


def test_progress_bar_appears_only_for_what_is_slow():
    panel = Panel("a title")
    panel._job_progress(Progress("quick", 0.5), 0.1)
    assert panel.busy.layout.visibility == "hidden"
    panel._job_progress(Progress("slow", 0.5), 0.6)
    assert panel.busy.layout.visibility == "visible" and panel._bar.value == 0.5
    panel._job_progress(None, 0.0)
    assert panel.busy.layout.visibility == "hidden"
    panel.close()


def test_cache_keeps_within_its_bytes():
    cache = Cache(10)
    for i in range(5):
        cache.put(i, b"xxx")
        cache.get(0)
    assert cache.bytes <= 10 and cache.get(0) and cache.get(4) and cache.get(1) is None
    cache.put(4, b"x")
    assert cache.bytes == sum(len(v) for v in cache._kept.values())
    cache.put("huge", b"x" * 50)
    assert cache.get("huge") and len(cache) == 1


def test_guarded_shows_the_sentence_of_zfkits_own_errors():
    class Broken(Panel):
        @guarded
        def press(self):
            raise LayerError("there is no layer <7>")

    panel = Broken()
    assert panel.press() is None
    assert "there is no layer &lt;7&gt;" in panel.notice.value and panel.errors[0].where == "press"
    panel.close()


def test_picture_shows_or_says():
    picture = Picture("a <picture>", 10, 10)
    picture.say("no <b>picture</b>")
    assert "&lt;b&gt;" in picture.message.value and picture.image.layout.display == "none"
    picture.show(png((4, 4)))
    assert (
        picture.said == ""
        and picture.message.layout.display == "none"
        and picture.image.layout.display is None
    )


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_encode_takes_arrays_tensors_and_pictures(kind):
    pixels = np.full((6, 8, 3), (200, 30, 90), np.uint8)
    for given in (pixels, torch.from_numpy(pixels).permute(2, 0, 1), Image.fromarray(pixels)):
        assert np.abs(opened(encode(given, kind)) - pixels).max() <= (0 if kind == "png" else 6)
    assert opened(encode(pixels[..., 0], kind)).shape == (6, 8, 3)


def test_picker_tells_once_and_only_of_somebody():
    told = []
    picker = Picker("place", 20, 20)
    picker.on_pick(lambda r, c: told.append((r, c)))
    picker.grid(5, 7)
    picker.pick(2, 3)
    assert told == [] and (picker.row.value, picker.col.value, picker.row.max, picker.col.max) == (2, 3, 4, 6)
    picker.place.set_state({"row": 4, "col": 6})
    assert told[-1] == (4, 6) and picker.col.value == 6
    told.clear()
    picker.row.value = 1
    assert told == [(1, 6)] and picker.place.row == 1


def test_the_canvas_asks_no_other_machine():
    folder = Path(zfkit.__file__).parent / "widgets"
    for file in [*folder.glob("*.js"), *folder.glob("*.css"), *folder.glob("page/**/*.j2")]:
        told = file.read_text()
        assert "import " not in told.split("{%")[0] or file.suffix == ".j2"
        assert (
            "http://" not in told and "https://" not in told and "@import" not in told and "url(" not in told
        )


def test_importing_zfkit_leaves_ipywidgets_alone():
    code = (
        "import sys, zfkit; zfkit.explore; print('ipywidgets' in sys.modules, 'zfkit.widgets' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["False", "False"]


def test_profile_correlations_and_selectivity_of_known_maps():
    values = np.array([[1, 2, 0, 5.0], [2, 4, 0, 4], [3, 6, 0, 3], [4, 8, 0, 1]])
    profile = Profile({"x": values}, np.arange(4), np.array(["a", "a", "b", "b"]), "class")
    assert profile.nearest("x", 0, 1) == [(1, pytest.approx(1.0))]
    selectivity, names = profile.selectivity("x")
    assert selectivity.tolist() == pytest.approx([(3.5 - 1.5) / 5, (7 - 3) / 10, 0, (4.5 - 2) / 6.5])
    assert names.tolist()[:2] == ["b", "b"] and names[3] == "a"
    assert profile.top_labels("x", 3, 3) == ([("a", 2), ("b", 1)], 3)


def test_app_notebook_and_its_template_are_in_place():
    root = Path(zfkit.__file__).resolve().parents[1]
    app = json.loads((root / "zfkit" / "widgets" / "page" / "app.ipynb").read_text())
    assert "zfkit.explore(" in "".join(app["cells"][-1]["source"])
    target = (root / "Makefile").read_text().split("\napp:")[1].split("\n\n")[0]
    assert "--Voila.ip=127.0.0.1" in target and "--token" in target and "--template=zfkit" in target
