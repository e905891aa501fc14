"""Windows of the strongest activations against projections of whole pictures, cut to the receptive field."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from mining import conv_model
from PIL import Image
from tiny import image_set, noise
from torch import nn

import zfkit
import zfkit.topk.patches as patches_module
from zfkit.deconv import Options
from zfkit.topk import Crop, LayerTop, TopK, cut_top, project_many, sample_maps


def table_of(model, images, units):
    """A TopK made by hand: {layer: [(image, row, col) of channel 0, of channel 1, ...]}, or lists of k."""
    layers, k = {}, 1
    for layer, of_layer in units.items():
        places = torch.tensor(of_layer).view(len(of_layer), -1, 3)
        C, k = places.shape[:2]
        image, row, col = places.unbind(-1)
        # Value, maximum and so on take no part in projections.
        layers[layer] = LayerTop(torch.rand(C, k), image, row, col, *torch.rand(3, C))
    return TopK(layers, k, model.name, images.source, images.fingerprint(), len(images))


def cut_out(picture, box, outside):
    """What lies at `box` of one picture (C, H, W), `outside` beyond its borders."""
    left, top, right, bottom = box
    margin = max(0, -left, -top, right - picture.shape[2], bottom - picture.shape[1])
    padded = F.pad(picture, (margin,) * 4, value=outside)
    return padded[:, top + margin : bottom + margin, left + margin : right + margin]


def assert_windows_equal_whole_pictures(model, images, top, layer, patches=None, **options):
    """Each projection against `project` of its unit on the full picture, cut to the receptive field.

    A receptive field that is larger than the picture is shown as the whole picture.
    """
    if patches is None:
        patches = zfkit.project_top(model, images, top, layer, **options)
    field = zfkit.receptive_field(model, layer)
    for c in range(len(patches.channels)):
        for rank in range(patches.image.shape[1]):
            image, row, col = (int(t[c, rank]) for t in (patches.image, patches.row, patches.col))
            picture = images[image][0]
            x = model.preprocess(picture)
            full = zfkit.project(model, x, layer, int(patches.channels[c]), [[row, col]], **options)[0]
            whole = field.size > images.size
            box = (0, 0, images.size, images.size) if whole else field.box(row, col)
            error = (patches.projection[c, rank] - cut_out(full, box, 0)).abs().max()
            assert error <= 1e-10 * full.abs().max(), (layer, c, image, row, col)
            assert tuple(patches.box[c, rank].tolist()) == tuple(box)
            assert torch.equal(patches.photo[c, rank], cut_out(picture, box, 128))
    return patches


@st.composite
def nets(draw):
    """Random float64 nets of two convolutions and a pool, and a picture size for them."""
    torch.manual_seed(draw(st.integers(0, 2**20)))
    colours = draw(st.sampled_from([3, 1]))
    kernel = st.integers(1, 4)
    k1, k2, kp = draw(kernel), draw(kernel), draw(st.integers(2, 3))
    s1, s2, sp = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    p1, p2, pp = draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.integers(0, kp // 2))
    net = nn.Sequential(
        nn.Conv2d(colours, 3, k1, s1, p1), nn.ReLU(),
        nn.MaxPool2d(kp, sp, pp, ceil_mode=draw(st.booleans())),
        nn.Conv2d(3, 2, k2, s2, p2, dilation=draw(st.integers(1, 2))),
    ).double()  # fmt: skip
    size = draw(st.integers(6, 30))
    try:
        side = net(torch.zeros(1, colours, size, size, dtype=torch.double)).shape[-1]
    except RuntimeError:
        assume(False)
    return zfkit.wrap_model(net, mean=120, scale=1 / 64, input_size=size), size, side


@given(data=st.data(), few=st.booleans())
def test_windows_of_random_nets_are_as_in_the_whole_picture(data, few):
    model, size, side = data.draw(nets())
    n = data.draw(st.integers(1, 3))
    images = image_set(noise(n, size, random_seed=data.draw(st.integers(0, 99))))
    place = st.integers(0, side - 1)
    unit = st.tuples(st.integers(0, n - 1), place, place)
    k = 1 if few else 4
    units = data.draw(st.lists(st.lists(unit, min_size=k, max_size=k), min_size=2, max_size=2))
    assert_windows_equal_whole_pictures(model, images, table_of(model, images, {"3": units}), "3")


@given(data=st.data())
def test_a_crop_holds_what_the_unit_sees_and_keeps_the_grid(data):
    model, size, side = data.draw(nets())
    crop = Crop.plan(model, "3", size)
    row, col = data.draw(st.integers(0, side - 1)), data.draw(st.integers(0, side - 1))
    (corner,) = crop.corners(torch.tensor([[row, col]])).tolist()
    field = zfkit.receptive_field(model, "3")
    left, top, right, bottom = field.box(row, col)
    assert crop.stride == field.stride
    for start, length, low, high in zip(corner, crop.size, (top, left), (bottom, right), strict=True):
        assert start % crop.stride == 0
        assert start >= 0 and start + length <= size
        assert start <= max(low, 0) and min(high, size) <= start + length
        # What sticks out of the picture has to stick out of the crop, too: padding is not pixels.
        assert start == 0 or low >= 0
        assert start + length == size or high <= size


# ----------------------------------------------------------------------------------------- a small network


def by_pillow(windows, side):
    """Windows (..., h, w), float32 or uint8, brought to `side` by Pillow's own filter, one plane at a time."""
    planes = windows.flatten(0, -3).numpy()
    small = [np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC)) for p in planes]
    return torch.from_numpy(np.stack(small)).view(*windows.shape[:-2], side, side)


@pytest.mark.parametrize("layer, tile, side", [("0", 5, 3), ("3", 5, 5), ("3", 10, 10), ("5", 7, 7)])
def test_tiles_are_the_windows_made_smaller(model, layer, tile, side):
    """Layer "0" sees 3 px, which are left as they are, "3" more than 10, and "5" all 18."""
    images = image_set(noise(3, 18))
    top = zfkit.mine(model, images, layer, k=3, progress=False)
    large, small = (zfkit.project_top(model, images, top, layer, tile=t) for t in (None, tile))
    assert small.projection.shape == (*large.projection.shape[:3], side, side)
    assert torch.equal(small.box, large.box) and torch.equal(small.value, large.value)
    scale = large.projection.abs().max()
    assert (small.projection - by_pillow(large.projection.float(), side)).abs().max() < 1e-5 * scale
    assert small.photo.dtype == torch.uint8
    assert (small.photo.int() - by_pillow(large.photo, side).int()).abs().max() <= 1
    assert torch.equal(cut_top(model, images, top, layer, tile=tile).photo, small.photo)


@pytest.fixture(scope="module")
def model():
    """Layer "0" sees 3 px, "3" 11 px, and "5" everything; in double precision."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1), nn.Flatten(),
        nn.Linear(5 * 16, 3),
    )  # fmt: skip
    return zfkit.wrap_model(net.double(), mean=128, scale=1 / 64, input_size=18)


@pytest.fixture
def ways(monkeypatch):
    """Which ways of projecting were taken: {"crops", "pictures"}."""
    taken = set()

    def spied(way):
        inner = getattr(patches_module, f"_from_{way}")

        def outer(*given):
            taken.add(way)
            return inner(*given)

        monkeypatch.setattr(patches_module, f"_from_{way}", outer)

    for way in ("crops", "pictures"):
        spied(way)
    return taken


def test_few_units_are_projected_from_crops_many_from_whole_pictures(model, ways):
    images = image_set(noise(3, 64))
    few = table_of(model, images, {"3": [(0, 15, 15), (1, 7, 0), (2, 7, 5)]})
    assert_windows_equal_whole_pictures(model, images, few, "3")
    assert ways == {"crops"}
    ways.clear()
    many = table_of(model, images, {"3": [[(0, i, j) for j in range(0, 16, 2)] for i in range(5)]})
    assert_windows_equal_whole_pictures(model, images, many, "3")
    assert ways == {"pictures"}


def test_layers_projected_together_are_as_one_by_one(model, ways):
    images = image_set(noise(3, 18))
    # "0" sees little of a picture and is cut out; "3" needs all of it.
    units = {"0": [[(0, 1, 2), (2, 3, 3)], [(1, 0, 4), (0, 4, 1)]], "3": [[(0, 1, 2), (2, 3, 3)]] * 4}
    top = table_of(model, images, units)
    together = project_many(model, images, top, {"3": [1, 0], "0": None})
    assert ways == {"crops", "pictures"} and list(together) == ["3", "0"]
    assert together["3"].channels.tolist() == [1, 0]
    for layer, patches in together.items():
        assert_windows_equal_whole_pictures(model, images, top, layer, patches)


@pytest.mark.parametrize(
    "options", [{"rule": "guided"}, {"rule": "gradient", "lrn": "gradient"}, {"seed": "activation"}]
)
def test_options_reach_the_projection(model, options):
    images = image_set(noise(2, 18))
    top = table_of(model, images, {"3": [(0, 0, 3), (1, 2, 3)]})
    assert_windows_equal_whole_pictures(model, images, top, "3", **options)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_rules_share_a_forward_pass_and_nothing_else(own_rules, activation):
    """Also where what a registered rule records depends on the rule; held to `project`, which knows one alone."""

    @zfkit.register_rule(
        nn.SiLU, record=lambda module, x, y, options: x > {"guided": 0.5}.get(options.rule, 0)
    )
    def silu(R, module, context):
        return R * context.cut(context.kept)

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), activation(), nn.MaxPool2d(3, 2), nn.Conv2d(4, 5, 3, padding=1)
    )
    model = zfkit.wrap_model(net.double(), mean=120, scale=1 / 60, input_size=8)
    images = image_set(noise(3, 8))
    image, channel, place = map(torch.tensor, ([2, 0, 1], [4, 0, 1], [[1, 1], [0, 2], [2, 0]]))
    units = patches_module.Units(torch.arange(3), image, channel, place)
    found = {}
    rules = "deconvnet", "guided", "gradient"
    for part in patches_module.projected(model, images, {"3": units}, *map(Options, rules)):
        found.setdefault(part.rule, torch.zeros(3, 3, 8, 8).double())[part.slot] = part.projection
    for rule in rules:
        x = model.preprocess(images.take(image))
        assert torch.allclose(found[rule], zfkit.project(model, x, "3", channel, place, rule=rule))
    assert not torch.equal(found["guided"], found["gradient"])


@pytest.mark.parametrize("at_once", [1, 2**40])
def test_the_size_of_a_batch_changes_nothing(model, monkeypatch, at_once):
    monkeypatch.setattr(patches_module, "FORWARD_PIXELS", at_once)
    monkeypatch.setattr(patches_module, "REVERSE_BYTES", at_once)
    images = image_set(noise(3, 33), memory=False)
    units = {"0": [(2, 0, 5), (0, 9, 9)], "3": [[(1, 3, 0)] * 4, [(0, 7, 7)] * 4]}
    for layer in units:
        top = table_of(model, images, {layer: units[layer]})
        assert_windows_equal_whole_pictures(model, images, top, layer)


def test_a_picture_just_as_large_as_the_receptive_field(model):
    size = zfkit.receptive_field(model, "3").size
    images = image_set(noise(1, size))
    top = table_of(model, images, {"3": [(0, 0, 0), (0, 1, 1), (0, 2, 0)]})
    assert_windows_equal_whole_pictures(model, images, top, "3")


def test_there_is_no_crop_where_a_unit_sees_everything_or_strides_differ(model):
    assert Crop.plan(model, "5", 18) is None
    net = nn.Sequential(nn.Conv2d(3, 2, 3, stride=(1, 2)))
    uneven = zfkit.wrap_model(net.double(), mean=128, scale=1 / 64, input_size=12)
    assert Crop.plan(uneven, "0", 12) is None
    images = image_set(noise(1, 12))
    top = table_of(uneven, images, {"0": [(0, 9, 0), (0, 2, 4)]})
    assert_windows_equal_whole_pictures(uneven, images, top, "0")


def test_units_of_fully_connected_layers_see_the_whole_picture(model):
    images = image_set(noise(3, 18))
    top = table_of(model, images, {"5": [[(2, 0, 0), (0, 0, 0)], [(1, 0, 0), (2, 0, 0)]]})
    patches = zfkit.project_top(model, images, top, "5")
    assert patches.projection.shape == (2, 2, 3, 18, 18)
    for c in range(2):
        for rank in range(2):
            image = int(patches.image[c, rank])
            expected = zfkit.project(model, model.preprocess(images[image][0]), "5", c)[0]
            assert (patches.projection[c, rank] - expected).abs().max() <= 1e-10 * expected.abs().max()
            assert torch.equal(patches.photo[c, rank], images[image][0])
            assert patches.box[c, rank].tolist() == [0, 0, 18, 18]


def test_what_was_mined_is_what_is_projected(model):
    images = image_set(noise(6, 18))
    top = zfkit.mine(model, images, k=4, progress=False)
    patches = zfkit.project_top(model, images, top, "3", channels=[3, 1], k=2)
    assert_windows_equal_whole_pictures(model, images, top, "3", patches)
    for name in ("value", "image", "row", "col"):
        assert torch.equal(getattr(patches, name), getattr(top["3"], name)[[3, 1], :2])


@pytest.mark.parametrize("layer", ["conv1", "conv3", "conv5"])
def test_units_at_corners_borders_and_inside_of_the_bundled_network(zfnet64, layer):
    model = copy.deepcopy(zfnet64)
    model.net.double()
    images = image_set(noise(1, 64))
    end = model.net[: list(model.layers).index(layer) + 1](model.preprocess(images[0][0])).shape[-1] - 1
    places = [(0, 0), (0, end), (end, 0), (end, end), (0, end // 2), (end // 2, end // 3)]
    top = table_of(model, images, {layer: [(0, row, col) for row, col in places]})
    assert_windows_equal_whole_pictures(model, images, top, layer)


# ----------------------------------------------------------------------------------------------- few, and none


def test_ranks_without_a_picture_stay_empty():
    model, images = conv_model(channels=3), image_set(noise(2, 8))
    top = zfkit.mine(model, images, k=4, progress=False)
    patches = zfkit.project_top(model, images, top, "0")
    assert (patches.image[:, :2] >= 0).all() and (patches.image[:, 2:] == -1).all()
    assert patches.projection[:, :2].flatten(2).any(-1).all()
    assert not patches.projection[:, 2:].any()
    assert (patches.photo[:, 2:] == 128).all()
    assert zfkit.project_top(model, images, top, "0", channels=[]).projection.shape == (0, 4, 3, 3, 3)


@pytest.mark.parametrize("options, message", [
    ({"layer": "conv7"}, "'conv7' was not mined; this table has 0"),
    ({"channels": [0, 2]}, r"channels must be .* 0 to 1 of '0', not \[0, 2\]"),
    ({"channels": [0.5]}, r"channels must be .* 0 to 1 of '0', not \[0.5\]"),
    ({"k": 3}, "k must be a whole number from 1 to 2, not 3"),
    ({"rule": "deconv"}, "no rule 'deconv'. Did you mean 'deconvnet'"),
])  # fmt: skip
def test_projecting_refuses_what_it_cannot_do(options, message):
    model, images = conv_model(), image_set(noise(2, 8))
    top = zfkit.mine(model, images, k=2, progress=False)
    with pytest.raises(zfkit.ZfkitError, match=message):
        zfkit.project_top(model, images, top, **{"layer": "0", **options})


# ------------------------------------------------------------------------------------------------ drawing maps


def test_maps_are_drawn_from_those_that_were_ever_active():
    alive = torch.arange(20) % 2 == 0
    zero = torch.zeros(20, 1, dtype=torch.long)
    layer = LayerTop(torch.ones(20, 1), zero, zero, zero, alive.float(), alive.float(), alive.float())
    top = TopK({"a": layer, "b": layer}, 1, "m", "i", "f", 3)
    drawn = sample_maps(top, maps=4, random_seed=1)
    assert list(drawn) == ["a", "b"] and drawn["a"] != drawn["b"]
    for channels in drawn.values():
        assert len(set(channels)) == 4 and channels == sorted(channels) and not any(c % 2 for c in channels)
    assert sample_maps(top, maps=4, random_seed=1) == drawn != sample_maps(top, maps=4, random_seed=2)
    # The other layers change nothing, and more maps are those of fewer and others.
    for maps in (2, 4, 7):
        alone = {name: sample_maps(top, [name], maps, random_seed=1)[name] for name in "ab"}
        assert alone == sample_maps(top, ["b", "a"], maps, random_seed=1)
        assert set(alone["a"]) <= set(sample_maps(top, maps=maps + 1, random_seed=1)["a"])
    assert len(sample_maps(top, ["a"], maps=99)["a"]) == 10
    assert sample_maps(top, ["a"], maps="all") == {"a": list(range(20))}
    with pytest.raises(zfkit.ZfkitError, match="must be a whole number from 1 on, not 0"):
        sample_maps(top, maps=0)


def test_what_was_passed_by_its_gradient_is_said_beside_the_projections(model):
    images = image_set(noise(2, 18))
    assert zfkit.project_top(model, images, zfkit.mine(model, images, progress=False), "3").notes == ()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 2, 3)).double()
    gated = zfkit.wrap_model(net, mean=128, scale=1 / 64, input_size=18)
    (note,) = zfkit.project_top(gated, images, zfkit.mine(gated, images, progress=False), "2").notes
    assert "Sigmoid" in note and "gradient" in note
