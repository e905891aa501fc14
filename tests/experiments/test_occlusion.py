"""Occlusion against a loop that covers one square at a time and runs the whole network, and against Captum."""

from functools import partial

import pytest
import torch
from captum.attr import Occlusion as CaptumOcclusion
from hypothesis import given
from hypothesis import strategies as st
from tiny import hooked, image_set, noise, random_weights
from torch import nn

import zfkit
from zfkit.errors import ImageError, LayerError, ModelError, ZfkitError
from zfkit.experiments import occluder
from zfkit.images.imageset import Windows


def wrap(net, size, **options):
    options = {"mean": [100.0, 110.0, 120.0], "scale": 0.02} | options
    return zfkit.wrap_model(net.double().eval(), input_size=size, **options)


def picture(H, W=None, random_seed=0):
    return noise(1, H, W, random_seed)[0]


occlude = partial(zfkit.occlude, progress=False)


def starts(length, size, stride):
    """First pixels of squares along a side, up to the first that reaches the end."""
    at = [0]
    while at[-1] + size < length:
        at.append(at[-1] + stride)
    return at


def assert_equals_loop(model, image, layer, size, stride, tolerance=1e-10, fill=None, **options):
    """Every square by itself: the picture with the square painted in, through the whole network."""
    result = occlude(model, image, layer=layer, size=size, stride=stride, fill=fill, **options)
    mean, scale = (torch.tensor(v, dtype=torch.float64) for v in (model.mean, model.scale))
    colour = torch.zeros(3) if fill is None else (torch.as_tensor(fill).double() - mean) * scale
    H, W = image.shape[1:]
    assert (result.top.tolist(), result.left.tolist()) == (starts(H, size, stride), starts(W, size, stride))
    with hooked(model, [layer]) as maps, torch.no_grad():
        for r, top in enumerate(result.top):
            for q, left in enumerate(result.left):
                x = model.preprocess(image)
                x[0, :, top : top + size, left : left + size] = colour.to(x)[:, None, None]
                outputs = model.net(x)[0]
                activity = maps[layer][0, result.channel].clamp(min=0).sum()
                assert abs(result.activity[r, q] - activity) <= tolerance * (1 + result.whole_activity)
                assert abs(result.probability[r, q] - outputs.softmax(0)[result.target]) <= tolerance
                assert result.best[r, q] == outputs.argmax()
    return result


# ------------------------------------------------------------------------------------------ the naive loop


@pytest.mark.parametrize(
    ("layer", "size", "stride"),
    [("conv1", 8, 5), ("norm1", 9, 7), ("conv2", 5, 5), ("conv5", 8, 6), ("relu5", 32, 1)],
)
def test_equals_a_loop_over_squares(tiny, layer, size, stride):
    assert_equals_loop(tiny, picture(32), layer, size, stride)


def test_colour_of_the_square_and_batches(tiny):
    image = picture(32, random_seed=1)
    results = [
        assert_equals_loop(tiny, image, "conv3", 7, 6, fill=fill, batch_size=batch)
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
            groups = draw(st.sampled_from([1, channels])) if channels == 4 else 1
            padding, bias = draw(st.integers(0, 3)), draw(st.booleans())
            layers.append(nn.Conv2d(channels, 4, k, s, padding, d, groups=groups, bias=bias))
            channels = 4
        elif kind == "pool":
            layers.append(nn.MaxPool2d(k, s, draw(st.integers(0, k // 2)), d, ceil_mode=draw(st.booleans())))
        elif kind == "avg":
            layers.append(nn.AvgPool2d(k, s, draw(st.integers(0, k // 2)), ceil_mode=draw(st.booleans())))
        elif kind == "batch":
            layers.append(nn.BatchNorm2d(channels))
        else:
            inplace = draw(st.booleans())
            other = {"relu": nn.ReLU(inplace), "norm": nn.LocalResponseNorm(3, 0.5), "drop": nn.Dropout()}
            layers.append(other[kind])
    head = nn.Conv2d(channels, 4, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    net = nn.Sequential(*layers, *head)
    H, W = draw(st.integers(9, 18)), draw(st.integers(9, 18))
    size = draw(st.integers(1, min(H, W)))
    return net, H, W, size, draw(st.integers(max(1, size // 2), size)), draw(st.integers(0, 5))


@given(chains())
def test_any_chain_equals_the_loop(case):
    net, H, W, size, stride, random_seed = case
    net = random_weights(net, random_seed).eval()
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(len(module.running_mean)))
            module.running_var.copy_(1 + torch.rand(len(module.running_var)))
    try:
        model = wrap(net, min(H, W))
    except ModelError:
        return  # the picture is smaller than a filter
    assert_equals_loop(model, picture(H, W, random_seed), model.conv_layers[-1], max(size, 3), max(stride, 3))


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
    assert_equals_loop(model, picture(24), "second", 5, 5)


class Shuffled(nn.Module):
    """Operations that leave rows and columns alone but not the maps' size or axes; and training mode."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        x = self.norm(self.first(x))
        x = x.view(x.shape[0], 2, 3, x.shape[2], x.shape[3]).transpose(1, 2).flatten(1, 2)
        x = nn.functional.pad(x, (0, 2, 0, 1))
        return self.head(self.last(x).mean((2, 3)))


def test_shuffles_paddings_and_a_network_in_training_equal_the_loop():
    model = wrap(random_weights(Shuffled()), 20)
    result = assert_equals_loop(model, picture(20), "last", 5, 4)
    model.net.train()
    again = occlude(model, picture(20), layer="last", size=5, stride=4)
    assert torch.equal(again.probability, result.probability) and model.net.training


def test_patches_are_carried_and_it_does_not_matter_when_they_are_pasted(tiny, monkeypatch):
    carried, slide = set(), occluder.Occluder._slide

    def noting(self, step, patch):
        moved = slide(self, step, patch)
        carried.update({step.name} if moved else ())
        return moved

    monkeypatch.setattr(occluder.Occluder, "_slide", noting)
    results = {}
    everywhere = {"conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5"}
    for worth_it, expected in ((0.0, set()), (0.7, {"conv1", "pool1"}), (2.0, everywhere)):
        monkeypatch.setattr(occluder, "WORTH_IT", worth_it)
        carried.clear()
        results[worth_it] = occlude(tiny, picture(32), size=6, stride=4)
        assert carried == expected
    for worth_it in (0.7, 2.0):
        for name in ("probability", "activity"):
            ours, pasted = getattr(results[worth_it], name), getattr(results[0.0], name)
            torch.testing.assert_close(ours, pasted, rtol=1e-12, atol=1e-12)


def test_the_bundled_network_equals_the_loop(zfnet64, photos64):
    result = assert_equals_loop(zfnet64, photos64[3][0], "conv5", 20, 15, tolerance=2e-5)
    assert result.class_name() == "projectile"  # a rocket
    assert result.target_from == "model"


# ------------------------------------------------------------------------------------------------- Captum


@pytest.mark.parametrize(("size", "stride"), [(8, 4), (7, 5)])
def test_drop_per_pixel_equals_captum(tiny, size, stride):
    image = picture(32, random_seed=3)
    result = occlude(tiny, image, 2, size=size, stride=stride)
    conv5 = tiny.net[: tiny.layers.index("conv5") + 1]
    numbers = {
        "probability": lambda x: tiny.net(x).softmax(1)[:, 2],
        "activity": lambda x: conv5(x)[:, result.channel].clamp(min=0).sum((1, 2)),
    }
    window, strides = (3, size, size), (3, stride, stride)
    for name, number in numbers.items():
        with torch.no_grad():
            captum = CaptumOcclusion(number).attribute(tiny.preprocess(image), window, strides, baselines=0)
        ours = result.drop_per_pixel(name).float()  # Captum adds up in single precision
        torch.testing.assert_close(ours.expand(3, -1, -1), captum[0], rtol=1e-5, atol=1e-6)


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
    result = occlude(model, white, layer="0", size=6, stride=2)
    assert (result.target, result.channel) == (0, 0)
    covered = (6 - result.top).clamp(min=0)[:, None] * (6 - result.left).clamp(min=0)  # of the 36 pixels
    torch.testing.assert_close(result.probability, torch.sigmoid(4 * (1 - covered.double() / 36)))
    # one position's activity is the mean brightness of 36 pixels, so the sum over 16 of them falls by the same
    torch.testing.assert_close(result.activity, torch.full_like(result.activity, 16 - 1.0))
    assert result.within((0, 0, 6, 6)).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_covered_is_the_share_under_the_square(tiny):
    result = occlude(tiny, picture(32), size=9, stride=5)
    assert int(result.top[-1]) + 9 > 32  # the last one is cut off
    numbers = torch.rand(32, 32, dtype=torch.float64)
    under = [[numbers[t : t + 9, left : left + 9].sum() for left in result.left] for t in result.top]
    torch.testing.assert_close(result.covered(numbers), torch.tensor(under) / numbers.sum())


def test_strongest_map_position_and_projection(tiny):
    image = picture(32, random_seed=4)
    x = tiny.preprocess(image)
    maps = tiny.net[: tiny.layers.index("conv4") + 1](x)[0].clamp(min=0).detach()
    for strongest, score in (("sum", maps.sum((1, 2))), ("max", maps.amax((1, 2)))):
        result = occlude(tiny, image, layer="conv4", strongest=strongest, stride=8)
        assert result.channel == int(score.argmax())
        assert result.whole_activity == pytest.approx(float(maps[result.channel].sum()))
        assert float(maps[result.channel][result.position]) == float(maps[result.channel].max())
        assert torch.equal(result.projection, zfkit.project(tiny, x, "conv4", result.channel)[0])
    assert occlude(tiny, image, channel=1, stride=8).channel == 1


def test_targets_by_place_name_label_and_default(tiny):
    image = picture(32)
    own = occlude(tiny, image, stride=8)
    assert own.target_from == "model" and own.target == own.whole_best
    assert occlude(tiny, image, -1, stride=8).target == own.target  # what unlabelled pictures carry
    named = occlude(tiny, image, "d", stride=8)
    assert (named.target, named.target_from, named.class_name()) == (3, "named", "d")
    whole = tiny.net(tiny.preprocess(image)).softmax(1)[0, 3]
    assert named.whole_probability == pytest.approx(float(whole.detach()))
    assert occlude(tiny, image, 3, stride=8).probability.equal(named.probability)


def test_networks_that_end_in_a_softmax_give_the_same_probabilities(tiny):
    plain = occlude(tiny, picture(32), stride=8)
    for ending in (nn.Softmax(1), nn.LogSoftmax(1)):
        model = wrap(nn.Sequential(*tiny.net, ending), 32)
        result = occlude(model, picture(32), layer=model.conv_layers[-1], stride=8)
        torch.testing.assert_close(result.probability, plain.probability)


def test_cut_at_the_layer_takes_any_size_and_runs_nothing_after_it(tiny):
    image = picture(47, 60)
    with pytest.raises(LayerError, match=r"cannot run to fc8 on images of 47 x 60 px.*classify=False"):
        occlude(tiny, image)
    result = occlude(tiny, image, layer="conv3", stride=10, classify=False)
    assert result.probability is None and result.best is None and result.target is None
    maps = tiny.net[: tiny.layers.index("conv3") + 1](tiny.preprocess(image))[0, result.channel].detach()
    assert result.whole_activity == pytest.approx(float(maps.clamp(min=0).sum()))
    with pytest.raises(LayerError, match="classify=True"):
        result.drop_per_pixel()
    assert result.drop_per_pixel("activity").shape == (47, 60)


def test_one_channel_networks_see_the_squares_luma():
    net = random_weights(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 3)))
    model, image = wrap(net, 12, mean=100, scale=0.1), picture(12)
    covered = image.clone()
    covered[:, :4, 8:] = torch.tensor([30, 60, 90], dtype=torch.uint8)[:, None, None]
    result = occlude(model, image, 1, size=4, stride=4, fill=[30, 60, 90])
    expected = model.net(model.preprocess(covered)).softmax(1)[0, 1]
    torch.testing.assert_close(result.probability[0, 2], expected.detach())


def test_the_users_network_and_image_stay_as_they_are(tiny):
    image, before = picture(32), tiny.fingerprint()
    occlude(tiny, image, stride=8)
    assert torch.equal(image, picture(32)) and tiny.fingerprint() == before
    assert not any(m._forward_hooks for m in tiny.net.modules())


def test_a_callback_counts_places_and_may_cancel(tiny):
    counts = []
    options = {"size": 8, "stride": 8, "batch_size": 5}
    occlude(tiny, picture(32), on_step=lambda *count: counts.append(count), **options)
    assert counts == [(5, 16), (10, 16), (15, 16), (16, 16)]

    def cancel(done, total):
        raise zfkit.batching.Cancelled

    with pytest.raises(zfkit.batching.Cancelled):
        occlude(tiny, picture(32), on_step=cancel, **options)


# ----------------------------------------------------------------------------------------------- elsewhere


def test_elsewhere_takes_other_photographs_each_once(tiny):
    """By brute force: no picture of another photograph is stronger than those shown."""
    pictures, photograph = noise(36, 32), torch.arange(36) // 3
    apart = torch.arange(36)[:, None] * 40.0 + torch.tensor([0, 0, 32, 32])
    images = image_set(pictures, windows=Windows(photograph, apart))
    top = zfkit.mine(tiny, images, "conv5", k=20, per_photograph=2, progress=False)
    conv5 = tiny.net[: tiny.layers.index("conv5") + 1](tiny.preprocess(pictures)).detach()
    for i in (7, 30):
        result = occlude(tiny, pictures[i], stride=8)
        others = zfkit.experiments.project_elsewhere(tiny, images, result, top=top)
        strength = conv5[:, result.channel].amax((1, 2)).view(12, 3).amax(1)  # of each photograph
        strength[i // 3] = -torch.inf
        assert others.value.tolist() == pytest.approx(strength.topk(3).values.tolist(), rel=1e-5)
        assert photograph[others.image].tolist() == strength.topk(3).indices.tolist()
        assert torch.equal(others.photo, pictures[others.image]) and others.projection.shape == (3, 3, 32, 32)
    with pytest.raises(ZfkitError, match="mine with a larger k"):
        zfkit.experiments.project_elsewhere(tiny, images, result, k=12, top=top)


# ----------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("options, kind, message", [
    ({"size": 33}, ImageError, "a square in a picture of 32 x 32 px, must be"),
    ({"size": 6.5}, ZfkitError, "size"), ({"size": 4, "stride": 5}, ZfkitError, "stride, which skips pixels"),
    ({"target": 5}, ZfkitError, "a class of mine must be a whole number from 0 to 4"),
    ({"target": True}, ZfkitError, "a class of mine"), ({"target": "z"}, ZfkitError, "there is no class 'z'"),
    ({"layer": "conv9"}, LayerError, "there is no layer 'conv9'"),
    ({"layer": "fc6"}, LayerError, "'fc6' has no feature maps"),
    ({"channel": 4}, LayerError, "channel of 'conv5' must be a whole number from 0 to 3"),
    ({"strongest": "mean"}, ZfkitError, "there is no way to choose the strongest map 'mean'"),
    ({"fill": [1, 2]}, ImageError, "fill"), ({"batch_size": 0}, ZfkitError, "batch_size"),
])  # fmt: skip
def test_bad_input_is_refused(tiny, options, kind, message):
    with pytest.raises(kind, match=message):
        occlude(tiny, picture(32), **options)


def test_pictures_and_networks_of_another_kind_are_refused(tiny):
    for wrong in (picture(32)[None], picture(32).float(), picture(32)[:1]):
        with pytest.raises(ImageError, match=r"expected one uint8 RGB picture \(3, H, W\)"):
            occlude(tiny, wrong)
    with pytest.raises(ImageError, match=r"there is no file 'photo\.jpg'"):
        occlude(tiny, "photo.jpg")
    model = wrap(nn.Sequential(nn.Conv2d(3, 4, 3)), 12)
    with pytest.raises(ModelError, match=r"gives \(4, 10, 10\) for a picture, and one number per class"):
        occlude(model, picture(12))
    assert occlude(model, picture(12), classify=False).activity.shape == (10, 10)


# ------------------------------------------------------------------------------------------ widget and figure


def test_the_widget_says_what_the_map_says(tiny):
    image = picture(32)
    widget = zfkit.widgets.explore_occlusion(tiny, image, "b", size=8)
    try:
        result = occlude(tiny, image, "b", size=8, stride=4)
        for r, q in ((0, 0), (3, 5), (6, 1)):
            top, left = int(result.top[r]), int(result.left[q])
            answer = widget.answer(top, left, 8)
            assert float(answer.probability[1]) == pytest.approx(float(result.probability[r, q]), rel=1e-9)
            assert answer.activity == pytest.approx(float(result.activity[r, q]) / result.whole_activity)
            painted = image.clone()
            painted[:, top : top + 8, left : left + 8] = torch.tensor([100, 110, 120])[:, None, None]
            assert torch.equal(answer.picture, painted)
        # the canvas, as a browser would move it: its places are first pixels of the square
        place = widget.picker.place
        assert (place.rows, place.cols) == (25, 25) and place.extent == [0.25, 0.25]
        middle = [place.area[0] + (c + 0.5) * (place.area[2] - place.area[0]) / 25 for c in (0, 24)]
        assert middle == pytest.approx([4 / 32, 28 / 32])  # of the first and the last square
        place.row = 12
        place.col = 20
        assert widget.wait() and (widget.state.at_row, widget.state.col) == (12, 20)
        p = widget.answer(12, 20, 8).probability[1]
        assert f"P(b) goes from {result.whole_probability:.2f} to {p:.2f}" in widget.words.value
        assert widget.wait()
        visited = {(12, 12), (12, 20)}  # it began in the middle
        for at in ((0, 0), (2, 3), (4, 4)):
            widget.set(at_row=at[0], col=at[1])
            assert widget.wait()
            visited.add(at)
        lost = {
            at: max(float(result.whole_probability - widget.answer(*at, 8).probability[1]), 0)
            for at in visited
        }
        for y, x in ((0, 0), (3, 4), (5, 5), (15, 21), (31, 31)):
            over = [lost[r, q] for r, q in visited if r <= y < r + 8 and q <= x < q + 8]
            assert float(widget.taken(8)[y, x]) == pytest.approx(sum(over) / max(len(over), 1), abs=1e-6)
        widget.size.value = 30  # as large as that, it has to move
        assert widget.wait() and (widget.state.at_row, widget.state.col) == (2, 2)
        assert (place.rows, place.cols) == (3, 3)
        with pytest.raises(ZfkitError, match="first row must be a whole number from 0 to 2"):
            widget.set(at_row=5)
        assert widget.errors == []
    finally:
        widget.close()
    for refused in ({"size": 40}, {"target": "z"}, {"layer": "x"}):
        with pytest.raises(ZfkitError):
            zfkit.widgets.explore_occlusion(tiny, image, **refused)


def test_the_figure_shows_each_place_at_its_squares_centre(tiny):
    from matplotlib import pyplot as plt

    from zfkit.figures import occlusion_figure

    result = occlude(tiny, picture(32), size=8, stride=4)
    figure = occlusion_figure(result)
    by_title = {axes.get_title(loc="left")[:3]: axes for axes in figure.axes}
    heat = by_title["(b)"].images[-1]
    assert torch.equal(torch.as_tensor(heat.get_array().data), result.activity.float())
    assert heat.get_extent() == [2, 30, 30, 2]  # centres at 4, 8 ... 28, cells of 4
    shown = torch.as_tensor(by_title["(d)"].images[-1].get_array().data)
    assert torch.equal(shown, result.probability.float())
    legend = [t.get_text() for t in by_title["(e)"].get_legend().get_texts()]
    assert sum(int(t.rsplit(", ", 1)[1]) for t in legend) == result.best.numel()
    plt.close(figure)
