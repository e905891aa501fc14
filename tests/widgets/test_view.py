"""What the explorer computes, without any widget: pictures against `project`, facts and orders against numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from explored import CLASSES, SIDE, opened, pictures, small_net, wrapped
from PIL import Image
from torch import nn

import zfkit
from zfkit.batching import Cancelled
from zfkit.errors import ZfkitError
from zfkit.figures.pictures import to_picture
from zfkit.images.imageset import ImageSet
from zfkit.widgets import ExplorerView, State, drawing
from zfkit.widgets.facts import Profile
from zfkit.widgets.state import ORDERS
from zfkit.widgets.view import COMPARED, KEPT, PIECE, _bytes


@pytest.fixture
def view(world):
    return ExplorerView(*world)


def test_what_was_passed_by_its_gradient_is_said_beside_the_projections():
    net = small_net()
    net.relu1 = nn.Sigmoid()
    photos = pictures()
    for model, said in ((wrapped(net), True), (wrapped(), False)):
        view = ExplorerView(model, photos, zfkit.mine(model, photos, ["conv1", "conv2"], progress=False))
        assert ("Sigmoid is passed by the gradient" in view.scale_line(State("conv2"))) is said
        assert "gradient" not in view.scale_line(State("conv1"))


@pytest.fixture(scope="module")
def measured(world):
    """A view that has measured everything; read only."""
    view = ExplorerView(*world)
    for layer in view.layers:
        view.facts.measure(layer)
        view.facts.measure_frequency(layer)
    return view


def cancelled_after(calls):
    """An `on_step` that cancels at its n-th call."""
    seen = []

    def step(done, total):
        seen.append(done)
        if len(seen) == calls:
            raise Cancelled

    return step


# ------------------------------------------------------------------------------------------ the right picture


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
@pytest.mark.parametrize("rule", ["deconvnet", "guided", "gradient"])
def test_tiles_are_what_project_gives(world, view, layer, rule):
    """Each tile against zfkit.project on the whole picture, cut out and coloured by hand."""
    model, photos, top = world
    grids = view.grids(State(layer=layer, channel=4, rule=rule, gain=2.0))
    best, field = top[layer], zfkit.receptive_field(model, layer)
    margin, tile, step = field.size, drawing.TILE, drawing.TILE + drawing.GAP

    def enlarged(pixels):  # (3, H, W) uint8
        rgb = Image.fromarray(pixels.transpose(1, 2, 0)).resize((tile, tile), Image.Resampling.NEAREST)
        return np.asarray(rgb).astype(int)

    for rank in (0, 5, 8):
        i, row, col = int(best.image[4, rank]), int(best.row[4, rank]), int(best.col[4, rank])
        whole = zfkit.project(model, model.preprocess(photos[i][0]), layer, 4, [(row, col)], rule=rule)[0]
        left, up, right, down = (v + margin for v in field.box(row, col))
        window = nn.functional.pad(whole, (margin,) * 4)[:, up:down, left:right]
        scale = np.quantile(window.abs().flatten().numpy(), 0.995) / 2.0
        assert grids.scales[rank] == pytest.approx(scale, rel=1e-4)
        y, x = rank // 3 * step, rank % 3 * step
        projection, patch = (
            opened(g)[y : y + tile, x : x + tile] for g in (grids.projections, grids.patches)
        )
        shown = np.round(128 + 127 * np.clip(window.numpy() / scale, -1, 1)).astype(np.uint8)
        assert np.abs(projection - enlarged(shown)).max() <= 1
        photo = np.pad(photos[i][0].numpy(), ((0, 0), (margin,) * 2, (margin,) * 2), constant_values=128)
        assert np.abs(patch - enlarged(photo[:, up:down, left:right])).mean() < 6  # JPEG


def test_a_unit_that_somebody_picked_is_projected(world, view):
    model, photos, _ = world
    state = view.checked(State(layer="conv2", channel=3, rank=1, position=(6, 2)))
    image, place = view.unit(state)
    whole = zfkit.project(model, model.preprocess(photos[image][0]), "conv2", 3, [(6, 2)])[0]
    left, up, right, down = (max(v, 0) for v in zfkit.receptive_field(model, "conv2").box(6, 2))
    detail = view.detail(state)
    inside = whole[:, up:down, left:right].abs().flatten().numpy()
    assert place == (6, 2) and detail.shape == (8, 8)
    assert detail.scale == pytest.approx(np.quantile(inside, 0.995), rel=1e-4)
    value = float(model.net[:4](model.preprocess(photos[image][0])).detach()[0, 3, 6, 2])
    assert f"activation {value:.3g}" in detail.words


def test_heat_map_lies_over_what_its_units_see(view):
    field = view.facts.fields["conv2"]
    area = left, top, right, bottom = drawing.map_area(field, (8, 8), SIDE)
    for row in (0, 3, 7):  # the middle of a unit's cell is the middle of its box
        box = field.box(row, row)
        assert (top + (row + 0.5) / 8 * (bottom - top)) * SIDE == pytest.approx((box.top + box.bottom) / 2)
        assert (left + (row + 0.5) / 8 * (right - left)) * SIDE == pytest.approx((box.left + box.right) / 2)
    values = torch.zeros(8, 8)
    values[3, 5] = 2.0
    shown = np.asarray(drawing.heat(Image.new("RGB", (SIDE, SIDE), (100,) * 3), values, area, 360)).astype(
        int
    )
    bright, box = np.argwhere(np.ptp(shown, axis=2) > 30), field.box(3, 5)
    middle = np.array([(box.top + box.bottom) / 2, (box.left + box.right) / 2]) * 10
    assert np.abs(bright.mean(0) + 0.5 - middle).max() < 1
    assert len(bright) == pytest.approx((field.stride * 10) ** 2, rel=0.05)


def test_own_picture_shows_the_strongest_maps(world, view, tmp_path):
    model, photos, _ = world
    pixels = photos[3][0]
    to_picture(pixels).save(tmp_path / "mine.png")
    own = view.own(State(layer="conv2"), str(tmp_path / "mine.png"), "mine.png")
    maxima = model.net[:4](model.preprocess(pixels))[0].flatten(1).max(1).values
    assert list(own.channels) == [c for c in maxima.argsort(descending=True).tolist() if maxima[c] > 0][:9]
    likeliest = model.net(model.preprocess(pixels))[0].softmax(0).detach()
    assert f"{CLASSES[int(likeliest.argmax())]} {float(likeliest.max()):.0%}" in own.probabilities
    window = zfkit.project(model, model.preprocess(pixels), "conv2", own.channels[0])[0]
    found = view.strongest(model, pixels, "conv2").projection[0, 0]
    assert float(found.abs().sum()) == pytest.approx(float(window.abs().sum()))


def test_methods_side_by_side(view):
    encoded, sentence = view.methods(State(layer="conv2", channel=1))
    step = COMPARED + drawing.GAP
    columns = [opened(encoded)[:COMPARED, i * step : i * step + COMPARED] for i in range(5)]
    assert not sentence
    assert all((columns[i] != columns[j]).mean() > 0.05 for i in range(1, 5) for j in range(i))
    mixed, own = view.shuffled().net, view.model.net
    for a, b in zip(mixed.parameters(), own.parameters(), strict=True):  # the same weights, elsewhere
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)
    assert not torch.equal(mixed.conv2.weight, own.conv2.weight)


def test_two_models_see_the_same_photograph(world):
    model, photos, top = world
    torch.manual_seed(9)
    net = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU())
    other = zfkit.wrap_model(net, mean=120.0, scale=1 / 60, input_size=SIDE, name="other")
    view = ExplorerView(model, photos, top, {"other": lambda: other})
    first, second = view.models(State(layer="conv2", channel=1, versus="other"))
    assert first.title == "small conv2" and second.title == "other 0"
    picture = other.preprocess(photos[int(top["conv2"].image[1, 0])][0])
    maxima = net[0](picture)[0].flatten(1).max(1).values
    order = [c for c in maxima.argsort(descending=True).tolist() if maxima[c] > 0]
    assert [int(caption.split(" · ")[0]) for caption in second.captions] == order


@pytest.mark.parametrize(
    "source, words",
    [
        ("folder:/home/me/pictures/cats", "folder cats"),
        ("parquet:/data/food/part-*.parquet", "parquet part-*.parquet"),
        ("textures:no-middle", "textures:no-middle"),
    ],
)
def test_the_title_names_a_folder_without_its_path(world, source, words):
    model, photos, top = world
    same = ImageSet(lambda i: (photos[i], -1), ["0"], size=SIDE, source=source)
    assert ExplorerView(model, same, top).facts.source == words


# ---------------------------------------------------------------------------------- kept, and broken off


def test_what_was_projected_before_it_was_cancelled_is_not_projected_again(world, view, monkeypatch):
    projected, project = [], zfkit.widgets.view.project_top

    def counting(model, photos, top, *rest, **options):
        projected.append(top.k)
        return project(model, photos, top, *rest, **options)

    monkeypatch.setattr("zfkit.widgets.view.project_top", counting)
    state = State("conv2", 3)
    with pytest.raises(Cancelled):  # a newer page was asked for
        view.grids(state, cancelled_after(1), PIECE)
    assert projected == [PIECE] and not view.ready(state)
    grids = view.grids(state)
    assert projected == [PIECE, view.shown - PIECE] and view.ready(state)
    assert grids == ExplorerView(*world).grids(state)


def test_another_unit_of_a_picture_takes_no_second_forward_pass(world, view):
    passes = []
    hook = world[0].net.conv1.register_forward_hook(lambda *_: passes.append(1))
    assert world[0].network  # with a hook it is traced again, and so runs
    passes.clear()
    state = State("conv2", 3)
    view.detail(state)
    view.detail(replace(state, position=(1, 2)))
    hook.remove()
    assert len(passes) == 1
    assert view.detail(replace(state, position=(1, 2))) == ExplorerView(*world).detail(
        replace(state, position=(1, 2))
    )


def test_what_is_kept_stays_within_its_bytes(view):
    grids = view.grids(State("conv2", 1))
    assert len(grids.projections) < _bytes(grids) < len(grids.projections) + len(grids.patches) + 3000
    assert 0 < view._kept.currsize <= view._kept.maxsize == KEPT
    huge = view._keep("huge", lambda: b"x" * (KEPT + 1))  # not kept, but given
    assert len(huge) > KEPT and "huge" not in view._kept


def test_measuring_goes_on_where_it_was_cancelled(world, measured):
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

    facts = ExplorerView(model, Watched(), top).facts
    with pytest.raises(Cancelled):
        facts.measure("conv2", cancelled_after(5))
    facts.measure("conv2")
    assert looked == list(range(len(photos)))
    assert np.array_equal(facts.profiles["conv2"].values, measured.facts.profiles["conv2"].values)


# ------------------------------------------------------------------------------------------- orders and facts


def test_profile_is_every_maps_maximum(world, measured):
    model, photos, _ = world
    outputs = model.net[:4](model.preprocess(photos.take(range(len(photos))))).flatten(2).max(2).values
    profile = measured.facts.profiles["conv2"]
    assert np.allclose(profile.values, outputs.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert profile.kind == "class" and profile.label[4] == "dog"


def test_orders(world, view, measured):
    model, _, top = world
    facts = measured.facts
    for order in ("selectivity", "mean frequency"):
        assert view.facts.lacks(State("conv1", order=order)) and not facts.lacks(State("conv1", order=order))
        assert view.facts.order(State("conv1", order=order)).tolist() == list(range(6))
    for order in ORDERS:
        assert sorted(facts.order(State("conv1", order=order))) == list(range(6))
    strongest = [float(top["conv1"].max[c]) for c in facts.order(State("conv1", order="max activation"))]
    assert strongest == sorted(strongest, reverse=True)
    assert facts.order(State("conv1", order="dead first"))[0] == 2
    # The projection of a first layer's unit is its filter: the order is that of the filters' mean frequency.
    power = torch.fft.fft2(model.net.conv1.weight.detach(), s=(64, 64)).abs().square().sum(1).numpy()
    u = np.fft.fftfreq(64)
    with np.errstate(invalid="ignore"):
        centroid = (power * np.hypot(u[:, None], u)).sum((1, 2)) / power.sum((1, 2))
    found = facts.order(State("conv1", order="mean frequency"))
    assert found.tolist() == np.argsort(np.nan_to_num(centroid, nan=9), kind="stable").tolist()


def test_profile_correlations_and_selectivity_of_known_maps():
    values = np.array([[1, 2, 0, 5.0], [2, 4, 0, 4], [3, 6, 0, 3], [4, 8, 0, 1]])
    profile = Profile(values, np.arange(4), np.array(["a", "a", "b", "b"]), "class")
    assert profile.nearest(0, 1) == [(1, pytest.approx(1.0))]
    selectivity, names = profile.selectivity
    assert selectivity.tolist() == pytest.approx([(3.5 - 1.5) / 5, (7 - 3) / 10, 0, (4.5 - 2) / 6.5])
    assert names.tolist()[:2] == ["b", "b"] and names[3] == "a"
    assert profile.top_labels(3, 3) == ([("a", 2), ("b", 1)], 3)


def test_search_finds_maps_by_class_and_by_photograph(world, view):
    model, _, top = world
    found = view.facts.order(State("conv2", search=" DOG "))
    often = {c: sum(int(i) % 3 == 1 for i in top["conv2"].image[c]) for c in range(10)}
    assert [often[c] for c in found] == sorted((n for n in often.values() if n), reverse=True)
    assert view.facts.order(State("conv2", search="zebra")).tolist() == []
    windows = pictures(labelled=False)
    mined = zfkit.mine(model, windows, progress=False)
    facts = ExplorerView(model, windows, mined).facts
    hits = set(facts.order(State("conv1", search="photo3")).tolist())
    assert hits == {c for c in range(6) if {6, 7} & set(mined["conv1"].image[c].tolist())}
    assert facts.label(6) == "photo3"


def test_facts_say_the_numbers(world, measured):
    _, photos, top = world
    facts = measured.facts
    said = facts.html(State("conv1", 4))
    assert f"{float(top['conv1'].active[4]):.0%}" in said
    assert "sees 5 × 5 px, the next unit 2 px further on" in said
    assert "filter, 5 × 5" in said and "spectrum" in said
    assert "filter, 5" not in facts.html(State("conv2", 4))  # its filters are not pictures
    values = facts.profiles["conv1"].values[:, 4]
    used = [photos[i][1] for i in np.argsort(-values, kind="stable") if values[i] > 0]
    assert f"top {len(used)} by class" in said
    assert all(f"{CLASSES[k]}: {used.count(k)}" in said for k in set(used))
    r = np.corrcoef(facts.profiles["conv2"].values.T)[4]
    r[4] = -2
    near = facts.nearest(State("conv2", 4))
    assert [c for c, _ in near] == np.argsort(-r)[:3].tolist() and near[0][1] == pytest.approx(r.max())


def test_pictures_without_labels_have_no_histogram(world):
    photos = pictures(labelled=False, windows=False)
    facts = ExplorerView(world[0], photos, zfkit.mine(world[0], photos, progress=False)).facts
    facts.measure("conv2")
    assert "these pictures have no labels" in facts.html(State("conv2", 1))


def test_warnings_name_what_is_wrong():
    net = small_net()
    with torch.no_grad():
        net.conv2.weight[5] = 3 * net.conv2.weight[1]
        net.conv2.weight[7] *= 1e-4
    model, photos = wrapped(net), pictures()
    facts = ExplorerView(model, photos, zfkit.mine(model, photos, progress=False)).facts
    assert "Dead: never above 0" in facts.html(State("conv1", 2))
    assert "Nearly a duplicate of map 1 " in facts.html(State("conv2", 5))
    assert "Weak filter" in facts.html(State("conv2", 7))
    assert "No health warning" in facts.html(State("conv2", 0))


# --------------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "conv9"}, "Did you mean 'conv"),
        ({"layer": "conv1", "channel": 6}, "it has 6, 0 to 5"),
        ({"channel": 2.0}, "channel must be a whole number"),
        ({"rank": 9}, "there is no rank 9"),
        ({"layer": "conv2", "position": (8, 0)}, "maps of 'conv2' are 8 x 8"),
        ({"position": 3}, "position must be (row, column)"),
        ({"tab": "map"}, "Did you mean 'maps'?"),
        ({"gain": 0}, "gain must be"),
        ({"versus": "vgg"}, "model to compare with 'vgg'"),
        ({"chanel": 3}, "Did you mean 'channel'?"),
        ({"search": 3}, "search must be text"),
    ],
)
def test_states_that_do_not_exist_are_refused_in_words(world, changes, message):
    with pytest.raises(ZfkitError) as error:
        zfkit.explore(*world, **changes)
    assert message in str(error.value)


def test_table_of_other_pictures_is_refused(world):
    with pytest.raises(ZfkitError, match="mine again"):
        zfkit.explore(world[0], pictures(labelled=False), world[2])


def test_a_list_from_papermill_is_a_position():
    assert State(position=[1, 2]) == State(position=(1, 2))


def test_code_reproduces_the_view(view):
    state = State(layer="conv2", channel=3, position=(1, 2), gain=2.0, order="max activation")
    called = {}
    fake = type("zfkit", (), {
        "load_model": staticmethod(lambda name: called.update(model=name)),
        "load_images": staticmethod(lambda name, **o: called.update(photos=name, **o)),
        "mine": staticmethod(lambda *a, **o: called.update(mined=o)),
        "explore": staticmethod(lambda m, p, t, **o: called.update(state=State(**o))),
    })  # fmt: skip
    exec(view.code(state).replace("import zfkit\n", ""), {"zfkit": fake})
    assert called == {"model": "small", "photos": "drawn", "size": SIDE, "mined": {}, "state": state}
