"""What the explorer computes, without any widget: pictures against `project`, facts and orders against numpy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from explored import CLASSES, SIDE, opened, pictures, small_net, window, wrapped
from PIL import Image
from tiny import DEEP, deep_network, image_set, random_pixels
from torch import nn

import zfkit
from zfkit.batching import Cancelled
from zfkit.deconv.receptive_field import units_inside
from zfkit.errors import ZfkitError
from zfkit.figures.network import heat
from zfkit.figures.pictures import to_picture
from zfkit.images.imageset import ImageSet
from zfkit.nets.activations import activations
from zfkit.topk import mined
from zfkit.topk.profile import Profile
from zfkit.widgets import ExplorerView, State, compare, drawing
from zfkit.widgets.controls import encode
from zfkit.widgets.results import size_of
from zfkit.widgets.state import ORDERS
from zfkit.widgets.view import KEPT, PIECE, THUMB


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


def tile_of(sheet, i):
    """Pixels of one tile, (h, w, 3) int."""
    row, col = divmod(i, sheet.columns)
    return opened(sheet.content)[row * sheet.height :, col * sheet.width :][: sheet.height, : sheet.width]


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
    margin = field.size
    assert grids.values == pytest.approx(best.value[4].tolist()) and all(grids.there)
    for rank in (0, 5, 8):
        i, row, col = int(best.image[4, rank]), int(best.row[4, rank]), int(best.col[4, rank])
        left, up, right, down = (v + margin for v in field.box(row, col))
        seen = window(model, photos[i][0], layer, 4, (row, col), rule).numpy()
        shown = np.round(128 + 127 * np.clip(2 * seen / np.quantile(np.abs(seen), 0.995), -1, 1)).astype(int)
        assert np.abs(tile_of(grids.projections, rank) - shown.transpose(1, 2, 0)).max() <= 1
        photo = np.pad(photos[i][0].numpy(), ((0, 0), (margin,) * 2, (margin,) * 2), constant_values=128)
        cut = photo[:, up:down, left:right].transpose(1, 2, 0).astype(int)
        assert np.array_equal(tile_of(grids.patches, rank), cut)  # so small that it is kept to the letter


def test_thumbnails_are_the_strongest_projections_of_all_maps(world, view):
    model, photos, top = world
    projections, patches = view.thumbnails("conv1")
    assert (projections.height, projections.width, projections.columns) == (5, 5, 3)
    expected = zfkit.project_top(model, photos, top, "conv1", k=1, progress=False)
    shown = drawing.coloured(expected.projection[:, 0]).permute(0, 2, 3, 1).int().numpy()
    for c in range(6):
        assert np.array_equal(tile_of(projections, c), shown[c])
        assert np.array_equal(tile_of(patches, c), expected.photo[c, 0].permute(1, 2, 0).int().numpy())
    assert max(view.thumbnails("conv2")[1][2:]) <= THUMB


def test_natural_colours_are_those_of_the_figures(world, view):
    model, photos, top = world
    state = State("conv2", 3, colours="natural")
    live = (top["conv2"].max > 0).nonzero()[:, 0]
    patches = zfkit.project_top(model, photos, top, "conv2", live, k=3, progress=False)
    learnt = zfkit.figures.natural.NaturalColours.of(patches)
    own = zfkit.project_top(model, photos, top, "conv2", [3], progress=False).projection[0]
    expected = drawing.coloured(learnt.apply(own))[4].permute(1, 2, 0).int().numpy()
    assert np.abs(tile_of(view.grids(state).projections, 4) - expected).max() <= 1
    assert "untrained network's projections gain" in view.scale_line(state)


@pytest.mark.parametrize("rule", ["deconvnet", "gradient"])
def test_the_control_is_what_shuffled_weights_give_at_the_same_units(world, view, rule):
    model, photos, top = world
    sheet, alike = view.control(State("conv2", 3, rule=rule))
    shuffled = view.shuffled()
    for a, b in zip(shuffled.net.parameters(), model.net.parameters(), strict=True):  # the same, elsewhere
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)
    assert not torch.equal(shuffled.net.conv2.weight, model.net.conv2.weight)
    cosines, t = [], top["conv2"]
    for rank in range(3):
        i, *unit = (int(places[3, rank]) for places in (t.image, t.row, t.col))
        own, other = (
            zfkit.project(m, m.preprocess(photos[i][0]), "conv2", 3, [unit], rule=rule)[0].flatten()
            for m in (model, shuffled)
        )
        cosines.append(float(own @ other / (own.norm() * other.norm())))
    assert sheet.columns == 3 and alike == pytest.approx(np.mean(cosines), abs=1e-6)


def test_a_network_that_cannot_be_projected_has_patches_alone():
    net = nn.Sequential(nn.Conv2d(3, 4, 5), Rounded(), nn.Conv2d(4, 4, 3), nn.ReLU()).double()
    model, photos = wrapped(net, classes=None), pictures()
    top = zfkit.mine(model, photos, ["0", "2"], k=4, progress=False)
    view = ExplorerView(model, photos, top)
    assert set(view.refusals) == {"2"}
    grids = view.grids(State("2", 1))
    assert grids.projections is None and grids.patches is not None
    detail = view.detail(State("2", 1))
    assert detail.patch and not detail.projection
    assert detail.value == pytest.approx(float(top["2"].value[1, 0]))
    assert view.control(State("2", 1)) == (None, 0.0)
    assert "which has no gradient" in compare.methods(view, State("2", 1))[1]
    assert view.figure(State("2", 1)).width > 300


class Rounded(nn.Module):
    """An operation without a gradient."""

    def forward(self, x):
        return torch.ops.aten.bitwise_not(x > 0).to(x)


def test_a_unit_that_somebody_picked_is_projected(world, view):
    model, photos, _ = world
    state = view.checked(State(layer="conv2", channel=3, rank=1, position=(6, 2)))
    image, place = view.unit(state)
    whole = zfkit.project(model, model.preprocess(photos[image][0]), "conv2", 3, [(6, 2)])[0]
    left, up, right, down = (max(v, 0) for v in zfkit.receptive_field(model, "conv2").box(6, 2))
    detail = view.detail(state)
    assert place == (6, 2) == detail.position and detail.shape == (8, 8)
    field = zfkit.receptive_field(model, "conv2")
    shown, box = opened(detail.projection), field.box(6, 2)
    inside = shown[up - box.top : down - box.top, left - box.left : right - box.left]
    scale = np.quantile(window(model, photos[image][0], "conv2", 3, (6, 2)).abs().numpy(), 0.995)
    expected = np.round(128 + 127 * np.clip(whole[:, up:down, left:right].numpy() / scale, -1, 1))
    assert np.abs(inside - expected.transpose(1, 2, 0)).max() <= 1
    assert detail.box == pytest.approx([v / SIDE for v in box])
    value = float(model.net[:4](model.preprocess(photos[image][0])).detach()[0, 3, 6, 2])
    assert detail.value == pytest.approx(value) and f"Row 6, column 2 of 8 × 8: {value:.3g}" in detail.words


def test_of_a_unit_that_sees_more_than_the_picture_the_picture_is_shown(world):
    torch.manual_seed(4)
    layers = nn.Conv2d(3, 4, 21, stride=4, padding=10), nn.ReLU(), nn.Conv2d(4, 4, 5, padding=2)
    net = nn.Sequential(*layers).double()
    model, photos = wrapped(net, classes=None), world[1]
    assert zfkit.receptive_field(model, "2").size > SIDE
    view = ExplorerView(model, photos, zfkit.mine(model, photos, ["2"], progress=False))
    detail = view.detail(State("2", 1))
    image, place = view.unit(State("2", 1))
    whole = zfkit.project(model, model.preprocess(photos[image][0]), "2", 1, [place])[0]
    expected = drawing.coloured(whole[None])[0].permute(1, 2, 0).int().numpy()
    assert np.abs(opened(detail.projection) - expected).max() <= 1
    assert np.abs(tile_of(view.grids(State("2", 1)).projections, 0) - expected).max() <= 1


def test_a_silent_place_says_so(world, view):
    _, photos, top = world
    picture = photos.take([int(top["conv2"].image[3, 0])])
    maps = world[0].net[:4](world[0].preprocess(picture))[0, 3].detach()
    row, col = divmod(int(maps.argmin()), 8)
    assert float(maps[row, col]) <= 0
    assert "Silent" in view.detail(State("conv2", 3, position=(row, col))).words
    assert "Silent" not in view.detail(State("conv2", 3)).words


def test_heat_map_lies_over_what_its_units_see(view):
    field = view.facts.fields["conv2"]
    area = left, top, right, bottom = drawing.map_area(field, (8, 8), SIDE)
    for row in (0, 3, 7):  # the middle of a unit's cell is the middle of its box
        box = field.box(row, row)
        assert (top + (row + 0.5) / 8 * (bottom - top)) * SIDE == pytest.approx((box.top + box.bottom) / 2)
        assert (left + (row + 0.5) / 8 * (right - left)) * SIDE == pytest.approx((box.left + box.right) / 2)
    values = torch.zeros(8, 8)
    values[3, 5] = 2.0
    shown = drawing.over(Image.new("RGB", (SIDE, SIDE), (100,) * 3), heat(values), area, 360)
    shown = np.asarray(shown).astype(int)
    bright, box = np.argwhere(np.ptp(shown, axis=2) > 30), field.box(3, 5)
    middle = np.array([(box.top + box.bottom) / 2, (box.left + box.right) / 2]) * 10
    assert np.abs(bright.mean(0) + 0.5 - middle).max() < 1
    assert len(bright) == pytest.approx((field.stride * 10) ** 2, rel=0.05)


def test_own_picture_shows_the_strongest_maps(world, view, tmp_path):
    model, photos, top = world
    pixels = photos[3][0]
    to_picture(pixels).save(tmp_path / "mine.png")
    own = compare.own(view, State(layer="conv2"), str(tmp_path / "mine.png"), "mine.png")
    maxima = model.net[:4](model.preprocess(pixels))[0].flatten(1).max(1).values.detach()
    assert list(own.channels) == [c for c in maxima.argsort(descending=True).tolist() if maxima[c] > 0][:9]
    assert torch.equal(own.seen, pixels)
    assert own.shares == pytest.approx([float(maxima[c] / top["conv2"].max[c]) for c in own.channels])
    likeliest = model.net(model.preprocess(pixels))[0].softmax(0).detach()
    assert own.classes[0][0] == CLASSES[int(likeliest.argmax())]
    assert own.classes[0][1] == pytest.approx(float(likeliest.max()), abs=1e-6)
    window = zfkit.project(model, model.preprocess(pixels), "conv2", own.channels[0])[0]
    found = compare.strongest(model, pixels, "conv2").projection[0, 0]
    assert float(found.abs().sum()) == pytest.approx(float(window.abs().sum()))
    usual = zfkit.project_top(model, photos, top, "conv2", [own.channels[1]], k=1, progress=False).photo[0, 0]
    assert np.array_equal(tile_of(own.usual, 1), usual.permute(1, 2, 0).int().numpy())


def test_methods_side_by_side(world, view):
    model, photos, top = world
    sheet, sentence = compare.methods(view, State(layer="conv2", channel=1))
    assert not sentence and sheet.columns == 5
    for row in range(3):
        t = top["conv2"]
        i, place = int(t.image[1, row]), (int(t.row[1, row]), int(t.col[1, row]))
        for column, (net, rule) in enumerate(
            [(model, "deconvnet"), (model, "guided"), (model, "gradient"), (view.shuffled(), "deconvnet")], 1
        ):
            expected = drawing.coloured(window(net, photos[i][0], "conv2", 1, place, rule)[None])[0]
            expected = expected.permute(1, 2, 0).int().numpy()
            assert np.abs(tile_of(sheet, 5 * row + column) - expected).max() <= 1
    tiles = [tile_of(sheet, i) for i in range(1, 5)]
    assert all((a != b).mean() > 0.05 for n, a in enumerate(tiles) for b in tiles[:n])


def test_two_models_see_the_same_photograph(world):
    model, photos, top = world
    torch.manual_seed(9)
    net = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU())
    other = zfkit.wrap_model(net, mean=120.0, scale=1 / 60, input_size=SIDE, name="other")
    view = ExplorerView(model, photos, top, {"other": lambda: other})
    first, second = compare.models(view, State(layer="conv2", channel=1, versus="other"))
    assert first.title == "small conv2" and second.title == "other 0"
    picture = other.preprocess(photos[int(top["conv2"].image[1, 0])][0])
    maxima = net[0](picture)[0].flatten(1).max(1).values
    order = [c for c in maxima.argsort(descending=True).tolist() if maxima[c] > 0]
    assert [c for c, _ in second.captions] == order


@pytest.mark.parametrize("source, words", [
    ("folder:/home/me/pictures/cats", "folder cats"), ("textures:no-middle", "textures:no-middle"),
    ("parquet:/data/food/part-*.parquet", "parquet part-*.parquet"),
])  # fmt: skip
def test_the_title_names_a_folder_without_its_path(world, source, words):
    model, photos, top = world
    same = ImageSet(lambda i: (photos[i], -1), ["0"], size=SIDE, source=source)
    assert ExplorerView(model, same, top).facts.source == words


# ---------------------------------------------------------------------------------- kept, and broken off


def test_what_ships_of_bundled_networks_is_what_they_answer():
    photos = zfkit.load_images("photos", progress=False)
    for model in map(zfkit.load_model, ("zfnet64", "alexnet64", "squeezenet1_1")):
        view = ExplorerView(model, photos, mined(model, photos))
        assert all(view.facts._read_profile(layer) and view.kept_thumbnails(layer) for layer in view.layers)
        image = int(view.facts.profiles[view.layers[0]].image[7])
        for layer, output in activations(model, photos.take([image]), view.layers):
            inside = units_inside(model, layer, 224) if view.top.inside else (slice(None), slice(None))
            expected = output[0][:, inside[0], inside[1]].flatten(1).amax(1).numpy()
            given = view.facts.profiles[layer].values[7]  # in half precision
            assert np.allclose(given, expected, rtol=2e-3, atol=1e-3 * np.abs(expected).max()), layer
        tiles = opened(view.three(view.layers[-1]).content)  # three of the thumbnails, beside each other
        assert tiles.shape == (THUMB, 3 * THUMB, 3) and tiles.std() > 5


def test_what_was_projected_before_it_was_cancelled_is_not_projected_again(world, view, monkeypatch):
    projected, project = [], zfkit.widgets.view.project_top

    def counting(model, photos, top, *rest, **options):
        projected.append(top.k)
        return project(model, photos, top, *rest, **options)

    monkeypatch.setattr("zfkit.widgets.view.project_top", counting)
    state = State("conv2", 3)
    with pytest.raises(Cancelled):  # a newer page was asked for
        view.grids(state, cancelled_after(1), PIECE)
    assert projected == [PIECE] and not view.at_hand(state)
    grids = view.grids(state)
    assert projected == [PIECE, view.shown - PIECE] and view.at_hand(state)
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
    other = replace(state, position=(1, 2))
    assert view.detail(other) == ExplorerView(*world).detail(other)


def test_what_is_kept_stays_within_its_bytes(view):
    grids = view.grids(State("conv2", 1))
    pictures = len(grids.projections.content) + len(grids.patches.content)
    assert pictures < size_of(grids) < pictures + 6000
    assert 0 < view._kept.currsize <= view._kept.maxsize == KEPT
    huge = view.keep("huge", lambda: b"x" * (KEPT + 1))  # not kept, but given
    assert len(huge) > KEPT and "huge" not in view._kept


def test_measuring_goes_on_where_it_was_cancelled(world, measured):
    model, photos, top = world
    looked = []

    class Watched:
        def __getattr__(self, name):
            return getattr(photos, name)

        def __len__(self):
            return len(photos)

        def take(self, index):
            looked.extend(index)
            return photos.take(index)

    facts = ExplorerView(model, Watched(), top).facts
    with pytest.raises(Cancelled):
        facts.measure("conv2", cancelled_after(5))
    facts.measure("conv2")
    assert looked == list(range(len(photos)))
    for layer in ("conv1", "conv2"):  # one pass gives both
        assert np.array_equal(facts.profiles[layer].values, measured.facts.profiles[layer].values)


def test_nothing_is_kept_behind_a_rule_of_ones_own(world, monkeypatch):
    kept = ExplorerView(*world).facts.kept
    before = kept.key("conv2")
    with monkeypatch.context() as patched:
        patched.setitem(zfkit.deconv.RULES, nn.ReLU, None)  # what is registered now is gone afterwards
        zfkit.register_rule(nn.ReLU)(lambda R, module, context: 0 * R)
        assert kept.key("conv2") == "" != kept.key("conv1")  # whose way has no ReLU
        kept.save("conv2", "page", {"a": torch.ones(2)})
        assert kept.load("conv2", "page") is None
        tiles = ExplorerView(*world).grids(State("conv2", 3)).projections
        assert len(np.unique(opened(tiles.content))) == 1  # all grey: nothing comes back
    assert kept.key("conv2") == before != ""


def test_what_was_kept_on_disk_is_used_and_what_is_damaged_is_made_again(world, monkeypatch):
    state, first = State("conv2", 3), ExplorerView(*world)
    first.facts.measure("conv2")
    made = first.grids(state), first.thumbnails("conv2"), first.facts.profiles["conv2"].values
    computed = []
    for name in ("project_top", "project_many"):
        function = getattr(zfkit.widgets.view, name)
        monkeypatch.setattr(
            f"zfkit.widgets.view.{name}", lambda *a, f=function, **o: computed.append(1) or f(*a, **o)
        )

    def again():
        view = ExplorerView(*world)
        view.facts.measure("conv2")
        return view.grids(state), view.thumbnails("conv2"), view.facts.profiles["conv2"].values

    for given, kept in zip(again(), made, strict=True):
        assert np.array_equal(given, kept) if isinstance(kept, np.ndarray) else given == kept
    assert ExplorerView(*world).at_hand(state) == made[0] and computed == []
    files = sorted(zfkit.files.cache_folder("explorer").rglob("*.safetensors"))
    assert len(files) == 4  # a profile of each layer, thumbnails, and one page
    for file in files:
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    assert ExplorerView(*world).at_hand(state) is None
    for given, kept in zip(again(), made, strict=True):
        assert np.array_equal(given, kept) if isinstance(kept, np.ndarray) else given == kept
    assert computed
    other = wrapped()
    with torch.no_grad():
        other.net.conv2.weight[3] *= 1.5
    top = zfkit.mine(other, world[1], progress=False)
    assert ExplorerView(other, world[1], top).grids(state) != made[0]


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
    model, photos, top = world
    facts = measured.facts
    known = facts.of_map("conv1", 4)
    assert f"{float(top['conv1'].active[4]):.0%}" in known["words"] and "Units see 5 px" in known["words"]
    assert torch.equal(facts.filter("conv1", 4), model.net.conv1.weight[4].detach().float())
    assert facts.filter("conv2", 4) is None  # its filters are not pictures
    values = facts.profiles["conv1"].values[:, 4]
    used = [photos[i][1] for i in np.argsort(-values, kind="stable") if values[i] > 0]
    assert known["labels"]["of"] == len(used) and known["labels"]["kind"] == "class"
    assert dict(known["labels"]["rows"]) == {CLASSES[k]: used.count(k) for k in set(used)}
    histogram = known["histogram"]
    assert sum(histogram["counts"]) == len(values)
    assert histogram["active"] == pytest.approx((values > 0).mean())
    faces = [value for value, _ in histogram["faces"]]
    assert (faces[0], faces[-1]) == (pytest.approx(values.min()), pytest.approx(values.max()))
    assert faces == sorted(faces) and [values[i] for i in facts.faces("conv1", 4)] == pytest.approx(faces)
    r = np.corrcoef(facts.profiles["conv2"].values.T)[4]
    r[4] = -2
    near = facts.of_map("conv2", 4)["near"]
    assert [c for c, _ in near] == np.argsort(-r)[:3].tolist() and near[0][1] == round(float(r.max()), 2)


def test_pictures_without_labels_have_no_classes(world):
    photos = pictures(labelled=False, windows=False)
    facts = ExplorerView(world[0], photos, zfkit.mine(world[0], photos, progress=False)).facts
    facts.measure("conv2")
    assert "labels" not in facts.of_map("conv2", 1) and "histogram" in facts.of_map("conv2", 1)


def test_warnings_name_what_is_wrong_and_what_mends_it():
    net = small_net()
    with torch.no_grad():
        net.conv2.weight[5] = 3 * net.conv2.weight[1]
        net.conv2.weight[7] *= 1e-4
    model, photos = wrapped(net), pictures()
    facts = ExplorerView(model, photos, zfkit.mine(model, photos, progress=False)).facts
    for layer, channel, words in (
        ("conv1", 2, "Dead: never above 0"), ("conv2", 5, "Nearly a duplicate of map 1 "), ("conv2", 7, "Weak filter"),
    ):  # fmt: skip
        (what, remedy), *_ = facts.of_map(layer, channel)["warnings"]
        assert words in what and remedy
    assert facts.of_map("conv2", 0)["warnings"] == []


# --------------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize("changes, message", [
    ({"layer": "conv9"}, "Did you mean 'conv"), ({"layer": "conv1", "channel": 6}, "it has 6, 0 to 5"),
    ({"channel": 2.0}, "channel must be a whole number"), ({"rank": 9}, "there is no rank 9"),
    ({"layer": "conv2", "position": (8, 0)}, "maps of 'conv2' are 8 x 8"), ({"gain": 0}, "gain must be"),
    ({"position": 3}, "position must be (row, column)"), ({"tab": "map"}, "Did you mean 'maps'?"),
    ({"versus": "vgg"}, "model to compare with 'vgg'"), ({"chanel": 3}, "Did you mean 'channel'?"),
    ({"search": 3}, "search must be text"), ({"wall": 1}, "wall must be True or False"),
    ({"colours": "neon"}, "colours"), ({"link": "?layer=conv1&mapp=2"}, "Did you mean 'map'?"),
    ({"link": "?map=two"}, "which is no number"),
])  # fmt: skip
def test_states_that_do_not_exist_are_refused_in_words(world, changes, message):
    with pytest.raises(ZfkitError) as error:
        zfkit.explore(*world, **changes)
    assert message in str(error.value)


def test_table_of_other_pictures_is_refused(world):
    with pytest.raises(ZfkitError, match="mine again"):
        zfkit.explore(world[0], pictures(labelled=False), world[2])


def test_the_square_of_a_wide_picture_is_where_it_was_put():
    wide = Image.new("RGB", (90, 30), "black")
    wide.paste((250, 250, 250), (60, 0, 90, 30))
    for at, bright in ((0.0, 0), (1.0, 250)):
        pixels, _, _, _ = compare.read_own(encode(wide), "wide.png", SIDE, (SIDE, SIDE), at)
        assert float(pixels.float().mean()) == pytest.approx(bright, abs=1)


@pytest.mark.parametrize("state", [
    State(), State("conv2", 3, 4, [1, 2], gain=2.0, search="a & b", wall=True, show="points"),  # a list of papermill's
    State("layer1.0/x", 1, tab="compare", rule="guided", colours="natural", order="dead first", versus="alexnet64"),
])  # fmt: skip
def test_a_link_gives_the_state_back(state):
    assert replace(state, position=[1, 2]) == replace(
        state, position=(1, 2)
    )  # papermill and pages have lists alone
    assert State(**State.of_link(state.link)) == state
    query = f"token=abc&{state.link[1:]}&utm_source=mail"  # as a server has it, and a newsletter
    assert State(**State.of_link(State.link_in(query))) == state


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


def test_of_large_windows_the_part_is_shown_that_projections_fill(monkeypatch):
    model, photos = deep_network(), image_set(random_pixels(4, 110))
    top = zfkit.mine(model, photos, ["2"], k=4, progress=False)
    state, whole = State("2", 1), zfkit.project_top(model, photos, top, "2", [1], progress=False)
    for again in (False, True):
        view = ExplorerView(model, photos, top)
        if again:  # what was found of the layer is kept
            monkeypatch.setattr("zfkit.widgets.facts.project_many", None)
        else:
            assert compare.methods(view, state)[0].height == 101
        assert view.facts.frame("2", "deconvnet").size == (24, 24)
        grids = view.grids(state)
        assert grids.cut == "cut to 24 of 101 px: 4.2 times larger"
        for sheet, expected in (
            (grids.patches, whole.photo[0][(..., *DEEP)]),
            (grids.projections, drawing.coloured(whole.projection[0][(..., *DEEP)])),
        ):
            assert (sheet.height, sheet.width, sheet.columns) == (24, 24, 2)
            tiles = opened(sheet.content).reshape(2, 24, 2, 24, 3).swapaxes(1, 2).reshape(4, 24, 24, 3)
            assert np.array_equal(tiles, expected.permute(0, 2, 3, 1).numpy())
    assert opened(view.detail(state).patch).shape == (101, 101, 3)  # one of them is on its photograph, whole
    assert view.thumbnails("2")[0].height == 24 and view.control(state)[1] != 0


@pytest.mark.slow
def test_the_page_opens_with_a_figure_of_where_it_opens(zfnet64):
    photos = zfkit.load_images("photos", progress=False)
    view = ExplorerView(zfnet64, photos, mined(zfnet64, photos))
    figure = view.figure(view.checked(State(**view.worth_a_look())))
    page = Path(zfkit.widgets.__file__).parent / "page" / "voila" / "templates" / "zfkit"
    with Image.open(page / "static" / "opening.jpg") as shipped:
        assert shipped.size == figure.size
        assert np.abs(np.asarray(shipped).astype(int) - np.asarray(figure)).mean() < 2
