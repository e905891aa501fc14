"""Occlusion against a loop that covers one square at a time and runs the whole network, and against Captum."""

import re

import pytest
import torch
from captum.attr import Occlusion as CaptumOcclusion
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY
from torch import nn

import zfkit
from zfkit.errors import ImageError, LayerError, ModelError, ZfkitError
from zfkit.experiments import occlusion
from zfkit.nets.paper import build


def wrap(net, size, **options):
    options = {"mean": [100.0, 110.0, 120.0], "scale": 0.02} | options
    return zfkit.wrap_model(net.double(), input_size=size, **options)


def random_weights(net, seed=0):
    """Weights large enough that every layer, bias and norm matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return net


def picture(H, W=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, H, W or H), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def tiny():
    return wrap(random_weights(build(TINY)), 32, classes=list("abcde"))


@pytest.fixture(scope="module")
def zfnet64():
    return zfkit.load_model("zfnet64", device="cpu")


@pytest.fixture(scope="module")
def rocket():
    return zfkit.load_images("photos", size=64, progress=False)[177][0]


def literally(model, image, layer, size, stride, colour):
    """Every square by itself: the picture with the square painted in, through the whole network, hooks for the layer.

    Yields (row, column, the layer's maps (C, h, w), outputs (classes,)).
    """
    caught = {}
    module = model.net.get_submodule(layer)
    handle = module.register_forward_hook(lambda m, i, o: caught.update(maps=o.clone()))
    H, W = image.shape[1:]
    try:
        top = 0
        while True:
            left = 0
            while True:
                x = model.preprocess(image)
                x[0, :, top : top + size, left : left + size] = colour
                with torch.no_grad():
                    outputs = model.net(x)
                yield top, left, caught["maps"][0], outputs[0]
                if left + size >= W:
                    break
                left += stride
            if top + size >= H:
                break
            top += stride
    finally:
        handle.remove()


def assert_equals_loop(model, image, layer, size, stride, tolerance=1e-10, fill=None, **options):
    found = zfkit.occlude(
        model, image, layer=layer, size=size, stride=stride, fill=fill, progress=False, **options
    )
    mean, scale = torch.tensor(model.mean).double(), torch.tensor(model.scale).double()
    colour = torch.zeros(3) if fill is None else (torch.as_tensor(fill).double() - mean) * scale
    colour = colour.to(model.dtype)[:, None, None]
    seen = set()
    for top, left, maps, outputs in literally(model, image, layer, size, stride, colour):
        r, q = found.top.tolist().index(top), found.left.tolist().index(left)
        seen.add((r, q))
        activity = maps[found.channel].clamp(min=0).sum()
        assert abs(found.activity[r, q] - activity) <= tolerance * (1 + found.whole_activity)
        assert abs(found.probability[r, q] - outputs.softmax(0)[found.target]) <= tolerance
        assert found.best[r, q] == outputs.argmax()
    assert len(seen) == found.activity.numel() == found.probability.numel()
    return found


# ------------------------------------------------------------------------------------------ the naive loop


@pytest.mark.parametrize("layer", ["conv1", "pool1", "norm1", "conv2", "conv5", "relu5"])
@pytest.mark.parametrize(("size", "stride"), [(8, 3), (5, 5), (32, 1)])
def test_equals_a_loop_over_squares(tiny, layer, size, stride):
    assert_equals_loop(tiny, picture(32), layer, size, stride)


def test_colour_of_the_square_and_batches(tiny):
    image = picture(32, seed=1)
    results = [
        assert_equals_loop(tiny, image, "conv3", 7, 4, fill=fill, batch_size=batch)
        for fill, batch in ((0, 1), ([255, 10, 20.5], 3), (128, 1000))
    ]
    assert not torch.equal(results[0].activity, results[1].activity)


@st.composite
def chains(draw):
    """Networks of convolutions, pools and pointwise layers, with a head for classes; and a picture's size."""
    layers, channels = [], 3
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "conv", "pool", "avg", "relu", "norm", "batch", "drop"]))
        k, s, d = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
        if kind == "conv":
            out = 4
            groups = draw(st.sampled_from([1, channels])) if channels == 4 else 1
            padding = draw(st.integers(0, 3))
            layers.append(nn.Conv2d(channels, out, k, s, padding, d, groups=groups, bias=draw(st.booleans())))
            channels = out
        elif kind == "pool":
            layers.append(nn.MaxPool2d(k, s, draw(st.integers(0, k // 2)), d, ceil_mode=draw(st.booleans())))
        elif kind == "avg":
            layers.append(nn.AvgPool2d(k, s, draw(st.integers(0, k // 2)), ceil_mode=draw(st.booleans())))
        elif kind == "relu":
            layers.append(nn.ReLU(inplace=draw(st.booleans())))
        elif kind == "norm":
            layers.append(nn.LocalResponseNorm(3, alpha=0.5, k=1.0))
        elif kind == "batch":
            layers.append(nn.BatchNorm2d(channels))
        else:
            layers.append(nn.Dropout())
    layers.append(nn.Conv2d(channels, 4, 1))
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    H, W = draw(st.integers(9, 20)), draw(st.integers(9, 20))
    size = draw(st.integers(1, min(H, W)))
    return net, H, W, size, draw(st.integers(max(1, size // 3), size)), draw(st.integers(0, 5))


@settings(max_examples=60, deadline=None)
@given(chains())
def test_any_chain_equals_the_loop(case):
    net, H, W, size, stride, seed = case
    if not any(isinstance(m, nn.Conv2d) for m in net):
        return
    net = random_weights(net, seed).eval()
    try:
        with torch.no_grad():
            net.double()(torch.zeros(1, 3, H, W).double())
    except RuntimeError:
        return  # smaller than a filter
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(len(module.running_mean)))
            module.running_var.copy_(1 + torch.rand(len(module.running_var)))
    layer = str(max(i for i, m in enumerate(net) if isinstance(m, nn.Conv2d)))
    try:
        model = wrap(net, 20)
    except ModelError:
        return  # too small for 20 px, though not for H x W
    assert_equals_loop(model, picture(H, W, seed), layer, size, stride)


class Branches(nn.Module):
    """A residual block and two branches joined: where patches of different layers meet."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.wide, self.narrow = nn.Conv2d(6, 3, 5, padding=2), nn.Conv2d(6, 3, 1)
        self.last, self.head = nn.Conv2d(6, 5, 3, padding=1), nn.Linear(5, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        y = self.second(x)
        y += x
        y = torch.relu(y)
        y = torch.cat([self.wide(y), self.narrow(y)], 1)
        return self.head(self.last(y).mean((2, 3)))


def test_a_network_that_branches_equals_the_loop():
    model = wrap(random_weights(Branches()), 24)
    assert_equals_loop(model, picture(24), "last", 5, 4)
    assert_equals_loop(model, picture(24), "second", 5, 4)


def test_patches_are_used_and_do_not_depend_on_when_they_are_pasted(tiny, monkeypatch):
    image = picture(32)
    cut = []
    inner = occlusion.Occluder._slide

    def counted(self, step, patch):
        moved = inner(self, step, patch)
        cut.append((step.name, moved is not None))
        return moved

    monkeypatch.setattr(occlusion.Occluder, "_slide", counted)
    results = []
    for worth_it in (0.0, 0.7, 2.0):
        monkeypatch.setattr(occlusion, "WORTH_IT", worth_it)
        cut.clear()
        results.append(zfkit.occlude(tiny, image, size=6, stride=2, progress=False))
        carried = {name for name, used in cut if used}
        everywhere = {"conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5"}
        assert carried == {0.0: set(), 0.7: {"conv1", "pool1"}, 2.0: everywhere}[worth_it]
    for other in results[1:]:
        torch.testing.assert_close(results[0].probability, other.probability, rtol=0, atol=1e-12)
        torch.testing.assert_close(results[0].activity, other.activity, rtol=1e-12, atol=0)


def test_the_bundled_network_equals_the_loop(zfnet64, rocket):
    found = assert_equals_loop(zfnet64, rocket, "conv5", 20, 11, tolerance=2e-5)
    assert found.classes[found.target] == "projectile"
    assert found.target_from == "model"


# ------------------------------------------------------------------------------------------------- Captum


@pytest.mark.parametrize(("size", "stride"), [(8, 4), (7, 3), (10, 10)])
def test_drop_per_pixel_equals_captum(tiny, size, stride):
    image = picture(32, seed=3)
    found = zfkit.occlude(tiny, image, 2, size=size, stride=stride, progress=False)

    def probability(x):
        return tiny.net(x).softmax(1)

    x = tiny.preprocess(image)
    with torch.no_grad():
        theirs = CaptumOcclusion(probability).attribute(
            x, (3, size, size), (3, stride, stride), baselines=0, target=2
        )
        layer = tiny.net[: tiny.layers.index("conv5") + 1]
        activity = CaptumOcclusion(lambda x: layer(x)[:, found.channel].clamp(min=0).sum((1, 2))).attribute(
            x, (3, size, size), (3, stride, stride), baselines=0
        )
    for channel in range(3):
        ours = found.drop_per_pixel().float()  # Captum adds up in single precision
        torch.testing.assert_close(ours, theirs[0, channel], rtol=0, atol=1e-6)
        ours = found.drop_per_pixel("activity").float()
        torch.testing.assert_close(ours, activity[0, channel], rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------- what the result says


def test_a_network_that_looks_at_one_corner_is_found_out():
    """Known answer: class 0 is the brightness of the top left 6 x 6 pixels, and nothing else matters."""
    net = nn.Sequential(nn.Conv2d(3, 2, 6, 6), nn.Flatten(), nn.Linear(2 * 16, 2, bias=False))
    with torch.no_grad():
        net[0].weight.zero_(), net[0].bias.zero_(), net[2].weight.zero_()
        net[0].weight[0] = 1 / 108
        net[2].weight[0, 0] = 4.0  # position (0, 0) of map 0
    model = wrap(net, 24, mean=0, scale=1 / 255)
    white = torch.full((3, 24, 24), 255, dtype=torch.uint8)
    found = zfkit.occlude(model, white, layer="0", size=6, stride=2, progress=False)
    assert (found.target, found.channel) == (0, 0)
    covered = (6 - found.top).clamp(min=0)[:, None] * (6 - found.left).clamp(min=0)  # of the 36 pixels
    expected = torch.sigmoid(4 * (1 - covered.double() / 36))
    torch.testing.assert_close(found.probability, expected)
    # one position's activity is the mean brightness of 36 pixels, so the sum over 16 of them falls by the same
    torch.testing.assert_close(found.activity, torch.full_like(found.activity, 16 - 1.0))
    assert found.within((0, 0, 6, 6)).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_covered_is_the_share_under_the_square(tiny):
    image = picture(32)
    found = zfkit.occlude(tiny, image, size=9, stride=5, progress=False)
    numbers = torch.rand(32, 32, dtype=torch.float64)
    share = found.covered(numbers)
    for r, top in enumerate(found.top.tolist()):
        for q, left in enumerate(found.left.tolist()):
            here = numbers[top : top + 9, left : left + 9].sum() / numbers.sum()
            assert abs(share[r, q] - here) < 1e-12
    assert int(found.top[-1]) + 9 > 32  # the last one is cut off


def test_strongest_map_position_and_projection(tiny):
    image = picture(32, seed=4)
    x = tiny.preprocess(image)
    maps = tiny.net[: tiny.layers.index("conv4") + 1](x)[0].clamp(min=0).detach()
    for strongest, score in (("sum", maps.sum((1, 2))), ("max", maps.amax((1, 2)))):
        found = zfkit.occlude(tiny, image, layer="conv4", strongest=strongest, stride=8, progress=False)
        assert found.channel == int(score.argmax())
        assert found.whole_activity == pytest.approx(float(maps[found.channel].sum()))
        assert float(maps[found.channel][found.position]) == float(maps[found.channel].max())
        assert torch.equal(found.projection, zfkit.project(tiny, x, "conv4", found.channel)[0])
    assert zfkit.occlude(tiny, image, channel=1, stride=8, progress=False).channel == 1


def test_targets_by_place_name_label_and_default(tiny):
    image = picture(32)
    options = {"stride": 8, "progress": False}
    own = zfkit.occlude(tiny, image, **options)
    assert own.target_from == "model" and own.target == own.whole_best
    assert zfkit.occlude(tiny, image, -1, **options).target == own.target  # what unlabelled pictures carry
    named = zfkit.occlude(tiny, image, "d", **options)
    assert (named.target, named.target_from, named.class_name()) == (3, "named", "d")
    assert named.whole_probability == pytest.approx(
        float(tiny.net(tiny.preprocess(image)).softmax(1)[0, 3].detach())
    )
    assert zfkit.occlude(tiny, image, 3, **options).probability.equal(named.probability)


def test_networks_that_end_in_a_softmax_give_the_same_probabilities(tiny):
    image = picture(32)
    plain = zfkit.occlude(tiny, image, stride=8, progress=False)
    for ending in (nn.Softmax(1), nn.LogSoftmax(1)):
        model = wrap(nn.Sequential(*tiny.net, ending), 32)
        layer = model.conv_layers[-1]
        found = zfkit.occlude(model, image, layer=layer, stride=8, progress=False)
        torch.testing.assert_close(found.probability, plain.probability)


def test_cut_at_the_layer_takes_any_size_and_runs_nothing_after_it(tiny):
    image = picture(47, 60)
    with pytest.raises(LayerError, match=r"cannot run to fc8 on images of 60 x 47 px.*classify=False"):
        zfkit.occlude(tiny, image, progress=False)
    found = zfkit.occlude(tiny, image, layer="conv3", stride=10, classify=False, progress=False)
    assert found.probability is None and found.best is None and found.target is None
    maps = tiny.net[: tiny.layers.index("conv3") + 1](tiny.preprocess(image))[0, found.channel].detach()
    assert found.whole_activity == pytest.approx(float(maps.clamp(min=0).sum()))
    with pytest.raises(LayerError, match="classify=True"):
        found.drop_per_pixel()
    assert found.drop_per_pixel("activity").shape == (47, 60)


def test_one_channel_networks(tiny):
    net = random_weights(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 3)))
    model = wrap(net, 12, mean=100, scale=0.1)
    image = picture(12)
    black = image.clone()
    black[:, :4, 8:] = torch.tensor([30, 60, 90], dtype=torch.uint8)[:, None, None]
    found = zfkit.occlude(model, image, 1, size=4, stride=4, fill=[30, 60, 90], progress=False)
    expected = model.net(model.preprocess(black)).softmax(1)[0, 1]
    torch.testing.assert_close(found.probability[0, 2], expected.detach())


def test_the_users_network_and_image_stay_as_they_are(tiny):
    image, state = picture(32), {k: v.clone() for k, v in tiny.net.state_dict().items()}
    before = image.clone()
    zfkit.occlude(tiny, image, stride=8, progress=False)
    assert torch.equal(image, before)
    assert all(torch.equal(v, state[k]) for k, v in tiny.net.state_dict().items())
    assert not any(m._forward_hooks for m in tiny.net.modules())


# ----------------------------------------------------------------------------------------------- elsewhere


def test_elsewhere_takes_other_photographs_each_once(zfnet64):
    photos = zfkit.load_images("photos", size=64, progress=False)
    top = zfkit.mine(zfnet64, photos, "conv5", k=20, per_photograph=2, progress=False)
    photograph = photos.windows.photograph
    for i in (105, 177):
        found = zfkit.occlude(zfnet64, photos[i][0], stride=16, progress=False)
        others = zfkit.experiments.project_elsewhere(zfnet64, photos, found, top=top, progress=False)
        from_ = [int(photograph[j]) for j in [i, *others.image.tolist()]]
        assert len(set(from_)) == 4
        # no picture of another photograph is stronger than those shown: by brute force
        x = zfnet64.preprocess(photos.take(range(len(photos))))
        conv5 = zfnet64.net[: zfnet64.layers.index("conv5") + 1]
        with torch.no_grad():
            strength = torch.cat([conv5(part)[:, found.channel].amax((1, 2)) for part in x.split(128)])
        best = {}
        for j, value in enumerate(strength.tolist()):
            p = int(photograph[j])
            best[p] = max(best.get(p, -1e9), value)
        del best[int(photograph[i])]
        expected = sorted(best.values(), reverse=True)[:3]
        assert others.value.tolist() == pytest.approx(expected, rel=1e-4)
        assert others.projection.shape == (3, 3, 64, 64) and others.photo.dtype == torch.uint8
    with pytest.raises(ZfkitError, match="mine with a larger k"):
        zfkit.experiments.project_elsewhere(zfnet64, photos, found, k=12, top=top)


# ----------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"size": 33}, ImageError, "a square of 33 px does not fit into a picture of 32 x 32 px"),
        ({"size": 0}, ZfkitError, "size must be a whole number of at least 1, not 0"),
        ({"size": 6.5}, ZfkitError, "size must be a whole number of at least 1, not 6.5"),
        ({"stride": -1}, ZfkitError, "stride must be a whole number"),
        ({"size": 4, "stride": 5}, ZfkitError, "a stride of 5 px skips pixels between squares of 4 px"),
        ({"target": 5}, ZfkitError, "class 5 does not exist: mine has 5, 0 to 4"),
        ({"target": -2}, ZfkitError, "class -2 does not exist"),
        ({"target": True}, ZfkitError, "class True does not exist"),
        ({"target": "z"}, ZfkitError, "there is no class 'z'"),
        ({"layer": "conv9"}, LayerError, "there is no layer 'conv9'. Did you mean 'conv5'|'conv"),
        ({"layer": "fc6"}, LayerError, "'fc6' has no feature maps"),
        ({"channel": 4}, LayerError, "channel 4 does not exist: 'conv5' has 4, 0 to 3"),
        ({"strongest": "mean"}, ZfkitError, "there is no way to choose the strongest map 'mean'"),
        ({"fill": 256}, ImageError, "fill must be one number or three"),
        ({"fill": [1, 2]}, ImageError, "fill must be one number or three"),
        ({"fill": "grey"}, ImageError, "fill must be one number or three"),
        ({"batch_size": 0}, ZfkitError, "batch_size must be a whole number"),
    ],
)
def test_bad_input_is_told(tiny, options, kind, message):
    with pytest.raises(kind, match=re.escape(message) if "|" not in message else message):
        zfkit.occlude(tiny, picture(32), progress=False, **options)


def test_pictures_of_another_kind_are_told(tiny):
    for wrong in (picture(32)[None], picture(32).float(), picture(32)[:1], "photo.jpg"):
        with pytest.raises(ImageError, match=r"expected one uint8 RGB picture \(3, H, W\)"):
            zfkit.occlude(tiny, wrong, progress=False)


def test_networks_without_one_number_per_class_are_told():
    model = wrap(nn.Sequential(nn.Conv2d(3, 4, 3)), 12)
    with pytest.raises(ModelError, match=r"gives \(4, 10, 10\) for a picture, and one number per class"):
        zfkit.occlude(model, picture(12), progress=False)
    assert zfkit.occlude(model, picture(12), classify=False, progress=False).activity.shape == (10, 10)


# ------------------------------------------------------------------------------------------ widget and figure


def test_the_widget_says_what_the_map_says(tiny):
    image = picture(32)
    widget = zfkit.widgets.explore_occlusion(tiny, image, "b", size=8)
    try:
        found = zfkit.occlude(tiny, image, "b", size=8, stride=4, progress=False)
        for r, q in ((0, 0), (3, 5), (6, 1)):
            at = int(found.top[r]), int(found.left[q])
            answer = widget.answer(*at, 8)
            assert float(answer.probability[1]) == pytest.approx(float(found.probability[r, q]), rel=1e-9)
            assert answer.activity == pytest.approx(float(found.activity[r, q]) / found.whole_activity)
            painted = image.clone()
            painted[:, at[0] : at[0] + 8, at[1] : at[1] + 8] = torch.tensor([100, 110, 120])[:, None, None]
            assert torch.equal(answer.picture, painted)
        # the canvas, as a browser would move it: its places are first pixels of the square
        place = widget.picker.place
        assert (place.rows, place.cols) == (25, 25) and place.extent == [0.25, 0.25]
        middle = [place.area[0] + (c + 0.5) * (place.area[2] - place.area[0]) / 25 for c in (0, 24)]
        assert middle == pytest.approx([4 / 32, 28 / 32])  # of the first and the last square
        place.row = 12
        place.col = 20
        assert widget.wait() and widget.place == (12, 20)
        p = widget.answer(12, 20, 8).probability[1]
        assert f"P(b) goes from {found.whole_probability:.2f} to {p:.2f}" in widget.words.value
        widget.size.value = 30  # as large as that, it has to move
        assert widget.wait() and widget.place == (2, 2) and (place.rows, place.cols) == (3, 3)
        with pytest.raises(ZfkitError, match="at row 5, column 2 is not within 32 x 32 px"):
            widget.set(5)
        assert widget.errors == []
    finally:
        widget.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 40}, "does not fit"), ({"target": "z"}, "no class 'z'"), ({"layer": "x"}, "no layer")],
)
def test_the_widget_refuses_what_the_function_refuses(tiny, options, message):
    with pytest.raises(ZfkitError, match=message):
        zfkit.widgets.explore_occlusion(tiny, picture(32), **options)
    with pytest.raises(ImageError, match="one uint8 RGB picture"):
        zfkit.widgets.explore_occlusion(tiny, picture(32)[None])


def test_the_figure_shows_each_place_at_its_squares_centre(tiny):
    from matplotlib import pyplot as plt

    from zfkit.figures.experiments import occlusion_figure

    found = zfkit.occlude(tiny, picture(32), size=8, stride=4, progress=False)
    figure = occlusion_figure(found)
    by_title = {axes.get_title(loc="left")[:3]: axes for axes in figure.axes}
    shown = by_title["(b)"].images[-1]
    assert torch.equal(torch.as_tensor(shown.get_array().data), found.activity.float())
    assert shown.get_extent() == [2, 30, 30, 2]  # centres at 4, 8 ... 28, cells of 4
    assert torch.equal(
        torch.as_tensor(by_title["(d)"].images[-1].get_array().data), found.probability.float()
    )
    legend = [t.get_text() for t in by_title["(e)"].get_legend().get_texts()]
    assert sum(int(t.rsplit(", ", 1)[1]) for t in legend) == found.best.numel()
    plt.close(figure)
