"""Sanity checks of projections: literal formulas, closed forms, and the weights compared before and after."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tiny import image_set, noise
from torch import nn

import zfkit
from zfkit.deconv.project import Deconvnet, forward
from zfkit.deconv.rules import Options
from zfkit.errors import ImageError, LayerError, ZfkitError
from zfkit.experiments import randomisation
from zfkit.experiments.randomisation import CONDITIONS, MEASURES, photo_likeness, similarity
from zfkit.experiments.replacements import no_switches, other_switches, randomise, weight_layers
from zfkit.images.imageset import Windows

SIDE = 28


def pictures(count, side=SIDE):
    return image_set(noise(count, side))


def sanity_checks(*arguments, **options):
    return randomisation.sanity_checks(*arguments, progress=False, **options)


def network(random_seed=0, channels=3):
    """Two poolings, three convolutions, a fully connected layer; receptive fields of 3, 9 and 15 px."""
    torch.manual_seed(random_seed)
    net = nn.Sequential(
        nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Conv2d(8, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 4),
    )  # fmt: skip
    return zfkit.wrap_model(net.double(), mean=127.5, scale=1 / 58, input_size=SIDE)


CONVS, ALL = ("0", "3", "6"), ("0", "3", "6", "9")


# ------------------------------------------------------------------------------------------- redrawn weights


def test_weight_layers_are_those_on_the_way_in_order():
    model = network()
    assert weight_layers(model, "9") == ALL
    assert weight_layers(model, "3") == ("0", "3")
    assert weight_layers(model, "7") == CONVS  # a ReLU: those below it


@pytest.mark.parametrize("draw", ["normal", "permutation"])
def test_named_layers_are_redrawn_and_nothing_else(draw):
    model = network()
    before, state = model.fingerprint(), model.net.state_dict()
    for depth in range(4):
        new = randomise(model, ALL[depth:], draw=draw, random_seed=3).net.state_dict()
        for layer in ALL:
            same = [torch.equal(state[f"{layer}.{n}"], new[f"{layer}.{n}"]) for n in ("weight", "bias")]
            assert same == [layer not in ALL[depth:]] * 2
    assert model.fingerprint() == before


def test_what_a_layer_gets_depends_on_seed_and_layer_only():
    model = network()
    alone, cascade = randomise(model, "3", random_seed=5), randomise(model, ALL, random_seed=5)
    assert torch.equal(alone.net[3].weight, cascade.net[3].weight)
    assert not torch.equal(alone.net[3].weight, randomise(model, "3", random_seed=6).net[3].weight)
    # equal shapes are not given equal numbers
    assert not torch.equal(cascade.net[3].weight.flatten()[:100], cascade.net[6].weight.flatten()[:100])


def test_how_weights_are_drawn():
    model = zfkit.wrap_model(
        nn.Sequential(nn.Conv2d(3, 50, 9), nn.ReLU()), mean=0, scale=1, input_size=9
    )  # fmt: skip
    with torch.no_grad():
        model.net[0].weight.mul_(7)
    old = model.net[0].weight.flatten()
    normal = randomise(model, "0").net[0]
    assert not normal.bias.any()
    z = normal.weight.flatten() / old.square().mean().sqrt()
    # n = 12150 standard normal numbers: mean, spread and fourth moment within five standard errors
    n = len(z)
    assert abs(z.mean()) < 5 / math.sqrt(n) and abs(z.std() - 1) < 5 / math.sqrt(2 * n)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n)
    shuffled = randomise(model, "0", draw="permutation").net[0]
    assert torch.equal(shuffled.weight.flatten().sort().values, old.sort().values)
    assert torch.equal(shuffled.bias.sort().values, model.net[0].bias.sort().values)
    assert not torch.equal(shuffled.bias, model.net[0].bias)


def test_a_factor_for_each_layer_changes_brightness_only():
    """So N(0, s^2) with the trained s and N(0, 0.01^2), the paper's start, give one picture."""
    images = pictures(1)
    trained = network()
    for rule in ("deconvnet", "guided", "gradient"):
        projections = []
        for factors in ((1, 1, 1), (0.01, 20, 0.3)):
            model = randomise(trained, CONVS, random_seed=1)
            with torch.no_grad():
                for layer, factor in zip(CONVS, factors, strict=True):
                    model.net[int(layer)].weight.mul_(factor)
            x = model.preprocess(images.take([0]))
            projections.append(zfkit.project(model, x, "6", 2, [[2, 3]], rule=rule))
        ratio = projections[1][projections[0] != 0] / projections[0][projections[0] != 0]
        assert len(ratio) > 50 and torch.allclose(ratio, ratio[0].expand_as(ratio)) and ratio[0] > 0


def test_batch_normalisation_goes_with_its_layer():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4)
    )
    for norm in (net[1], net[4]):
        for t in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            t.copy_(torch.rand_like(t) + 0.5)
    model = zfkit.wrap_model(net, mean=0, scale=1, input_size=9)
    assert weight_layers(model, "3") == ("0", "3")
    new = randomise(model, "3").net
    assert torch.equal(new[1].weight, net[1].weight) and torch.equal(new[1].running_var, net[1].running_var)
    assert new[4].running_mean.tolist() == new[4].bias.tolist() == [0] * 4
    assert new[4].running_var.tolist() == new[4].weight.tolist() == [1] * 4
    shuffled = randomise(model, "0", draw="permutation", random_seed=1).net[1]
    rows = [
        torch.stack([n.weight, n.bias, n.running_mean, n.running_var], 1).tolist() for n in (net[1], shuffled)
    ]
    assert rows[0] != rows[1] and sorted(rows[0]) == sorted(rows[1])  # maps keep their four numbers together


# ------------------------------------------------------------------------------------------------- measures


def literal_ssim(a, b, size=7):
    """Wang et al. 2004, eq. 13, over all whole windows, with unweighted sample moments; pictures (C, h, w) 0-255."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    total, count = 0.0, 0
    for x, y in zip(a.astype(float), b.astype(float), strict=True):
        for i in range(x.shape[0] - size + 1):
            for j in range(x.shape[1] - size + 1):
                p, q = (t[i : i + size, j : j + size].ravel() for t in (x, y))
                covariance = np.cov(p, q)
                mp, mq = p.mean(), q.mean()
                total += ((2 * mp * mq + c1) * (2 * covariance[0, 1] + c2)) / (
                    (mp**2 + mq**2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2)
                )
                count += 1
    return total / count


@pytest.mark.parametrize(("shape", "size"), [((3, 12, 15), 7), ((1, 9, 9), 7), ((3, 4, 4), 3)])
def test_likeness_is_the_literal_one(shape, size):
    """SSIM of the pictures as shown, and Spearman's correlation from its formula: 1 - 6 sum d^2 / (n (n^2 - 1))."""
    torch.manual_seed(sum(shape))
    a = torch.randn(shape)
    b = a + 0.7 * torch.randn(shape)
    shown = [zfkit.figures.signed_to_rgb(t[None])[0].numpy() for t in (a, b)]
    measures = similarity(a, b)
    assert measures["ssim"] == pytest.approx(literal_ssim(*shown, size=size), abs=1e-9)
    for name, x, y in (("spearman", a, b), ("absolute", a.abs(), b.abs())):
        d = x.flatten().argsort().argsort() - y.flatten().argsort().argsort()
        n = d.numel()
        assert measures[name] == pytest.approx(1 - 6 * int((d * d).sum()) / (n * (n * n - 1)), abs=1e-9)
    assert similarity(a, a) == pytest.approx(dict.fromkeys(MEASURES, 1.0))


def test_brightness_does_not_count_and_empty_pictures_have_no_likeness():
    torch.manual_seed(0)
    a, b = torch.randn(3, 10, 10), torch.randn(3, 10, 10)
    assert similarity(a, 50 * b) == pytest.approx(similarity(a, b), abs=1e-5)
    opposite = similarity(a, -a)
    assert opposite["absolute"] == pytest.approx(1) and opposite["spearman"] == pytest.approx(-1)
    assert all(math.isnan(v) for v in similarity(a, torch.zeros_like(a)).values())


def test_photo_likeness_takes_out_what_is_slow():
    rng = np.random.default_rng(0)
    photo = torch.from_numpy(rng.integers(0, 256, (3, 20, 24), dtype=np.uint8))
    t = np.arange(-8, 9)  # four sigma each way, the nearest pixels beyond the border
    kernel = np.exp(-(t**2) / 8) / np.exp(-(t**2) / 8).sum()
    padded = np.pad(photo.numpy().astype(float), ((0, 0), (8, 8), (8, 8)), mode="edge")
    slow = np.apply_along_axis(np.convolve, 1, padded, kernel, "valid")
    slow = np.apply_along_axis(np.convolve, 2, slow, kernel, "valid")
    fine = photo.double() - torch.from_numpy(slow)
    projection = torch.randn(3, 20, 24, dtype=torch.float64)
    expected = stats.spearmanr(projection.flatten(), fine.flatten()).statistic
    assert photo_likeness(projection, photo) == pytest.approx(expected, abs=1e-9)
    assert photo_likeness(fine, photo) == pytest.approx(1)
    luma = torch.tensordot(torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64), fine, 1)[None]
    assert photo_likeness(luma, photo) == pytest.approx(1)  # of a one-channel network
    assert math.isnan(photo_likeness(projection, torch.full((3, 20, 24), 9, dtype=torch.uint8)))


# ------------------------------------------------------------------------------------------------ switches


def tape_of(model, images, layer, rule="deconvnet"):
    deconvnet = Deconvnet(model.network, [layer], Options(rule))
    return deconvnet, forward(model, deconvnet, model.preprocess(images))


def unpooled(R, places, shape):
    """Each value of R (C, h, w) at its place (row, column) of an empty map, meeting values added."""
    out = np.zeros((len(R), *shape))
    for c, i, j in np.ndindex(*R.shape):
        row, col = places[c][i][j]
        out[c, row, col] += R[c, i, j]
    return out


def literal_projection(model, places, unit, shapes):
    """The deconvnet of `network`'s layer 6, with pooling places given for each pool; whole maps, float64."""
    channel, row, col = unit
    w = {layer: model.net[int(layer)].weight.detach() for layer in CONVS}
    R = torch.zeros(1, 8, *shapes["6"][1:], dtype=torch.float64)
    R[0, channel, row, col] = 1
    R = nn.functional.conv_transpose2d(R, w["6"])
    R = torch.from_numpy(unpooled(R[0].numpy(), places["5"], shapes["4"][1:]))[None].clamp(min=0)
    R = nn.functional.conv_transpose2d(R, w["3"], padding=1)
    R = torch.from_numpy(unpooled(R[0].numpy(), places["2"], shapes["1"][1:]))[None].clamp(min=0)
    return nn.functional.conv_transpose2d(R, w["0"])


def test_switches_at_the_centre_are_the_literal_ones():
    model, images = network(), pictures(1)
    deconvnet, tape = tape_of(model, images.take([0]), "6")
    fixed = no_switches(model, tape, "centre")
    places = {}
    for pool, kernel, source in (("2", 3, "1"), ("5", 2, "4")):
        C, h, w = tape.shapes[pool]
        side = tape.shapes[source][1]

        def middle(i, kernel=kernel, side=side):  # of the taps that lie in the map; stride is 2 for both
            taps = [2 * i + t for t in range(kernel) if 2 * i + t < side]
            return taps[(len(taps) - 1) // 2]

        places[pool] = [[[(middle(i), middle(j)) for j in range(w)] for i in range(h)] for _ in range(C)]
    for unit in ((0, 0, 0), (3, 2, 1), (7, 4, 4)):
        R, window = deconvnet.reverse(
            fixed, "6", torch.tensor([0]), torch.tensor(unit[:1]), torch.tensor([unit[1:]])
        )
        expected = literal_projection(model, places, unit, tape.shapes)
        result = zfkit.deconv.paste(R, window.origin, (SIDE, SIDE))
        assert torch.allclose(result, expected, atol=1e-12) and expected.any()
    assert torch.equal(
        tape.kept["2"], tape_of(model, images.take([0]), "6")[1].kept["2"]
    )  # the tape itself is kept


@given(
    kernel=st.integers(2, 4), stride=st.integers(1, 3), padding=st.integers(0, 2), dilation=st.integers(1, 2),
    side=st.integers(9, 13), ceil=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_random_switches_lie_in_their_windows(kernel, stride, padding, dilation, side, ceil, seed):
    padding = min(padding, kernel // 2)
    torch.manual_seed(0)
    pool = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
    model = zfkit.wrap_model(
        nn.Sequential(nn.Conv2d(3, 4, 1), pool, nn.Conv2d(4, 4, 1)), mean=0, scale=1, input_size=side
    )
    _, tape = tape_of(model, pictures(2, side).take([0, 1]), "2")
    for how in ("random", "centre"):
        new = no_switches(model, tape, how, torch.Generator().manual_seed(seed)).kept["1"]
        assert new.shape == tape.kept["1"].shape and new.dtype == tape.kept["1"].dtype
        assert new.dtype == torch.uint8  # 16 x row + column, for windows as small as these
        row, col = new.int() >> 4, new.int() & 15
        for offset, size in ((row, new.shape[2]), (col.transpose(2, 3), new.shape[3])):
            start = torch.arange(size)[:, None] * stride - padding
            assert (
                (offset % dilation == 0).all()
                and (offset >= 0).all()
                and (offset <= dilation * (kernel - 1)).all()
            )
            assert (start + offset >= 0).all() and (start + offset < side).all()
    again = [
        no_switches(model, tape, "random", torch.Generator().manual_seed(s)).kept["1"] for s in (1, 1, 2)
    ]
    assert torch.equal(again[0], again[1]) and not torch.equal(again[0], again[2])


def test_with_the_switches_of_another_picture_the_deconvnet_shows_that_picture():
    """All that it takes from a picture are the switches."""
    model, images = network(), pictures(2)
    deconvnet, own = tape_of(model, images.take([0]), "6")
    other = tape_of(model, images.take([1]), "6")[1]
    swapped = other_switches(model, own, other)
    at = torch.tensor([[3, 1]])
    R, window = deconvnet.reverse(swapped, "6", torch.tensor([0]), torch.tensor([4]), at)
    expected = zfkit.project(model, model.preprocess(images.take([1])), "6", 4, at)
    assert torch.equal(zfkit.deconv.paste(R, window.origin, (SIDE, SIDE)), expected)
    guided = tape_of(model, images.take([0]), "6", "guided")[1]
    changed = other_switches(model, guided, tape_of(model, images.take([1]), "6", "guided")[1])
    same = {name for name in guided.kept if torch.equal(guided.kept[name], changed.kept[name])}
    assert same == {"1", "4", "7"} & guided.kept.keys()  # the ReLUs' masks stay


# -------------------------------------------------------------------------------------------- sanity_checks


@pytest.fixture(scope="module")
def checked():
    model, images = network(), pictures(12)
    return model, images, sanity_checks(model, images, ["3", "6"], units=3, draws=2, random_seed=7)


def test_pictures_are_those_of_project(checked):
    """Every condition that `project` can show by itself, from whole pictures, against what was cut out of crops."""
    model, images, result = checked
    top = zfkit.mine(model, images, ["3", "6"], inside=True, progress=False)
    for layer in ("3", "6"):
        field = zfkit.receptive_field(model, layer)
        below = weight_layers(model, layer)
        for rule in result.rules:
            part = result.pictures[(result.pictures.layer == layer) & (result.pictures.rule == rule)]
            for unit, row in part[part.condition == "trained"].set_index("unit").iterrows():
                assert row.image == top[layer].image[row.channel, 0]
                at = [[int(top[layer].row[row.channel, 0]), int(top[layer].col[row.channel, 0])]]
                box = field.box(*at[0])
                x = model.preprocess(images.take([row.image]))
                cut = (slice(None), slice(box.top, box.bottom), slice(box.left, box.right))
                assert torch.equal(result.photos[layer][unit], images[row.image][0][cut])
                cases = {("trained", ""): model}
                cases |= {
                    ("down to", n): randomise(model, below[i:], random_seed=7) for i, n in enumerate(below)
                }
                cases |= {("only", n): randomise(model, n, random_seed=7) for n in below}
                for (condition, weights), changed in cases.items():
                    expected = zfkit.project(changed, x, layer, row.channel, at, rule=rule)[0][cut]
                    assert torch.allclose(
                        result.examples[layer, rule, condition, weights][unit], expected, atol=1e-12
                    )


def test_the_table_is_the_mean_over_units_of_similarity(checked):
    _, _, result = checked
    table = result.table("6")
    for rule in result.rules:
        trained = result.examples["6", rule, "trained", ""]
        for condition in ("other channel", "unrelated", "shuffled", "centre switches"):
            other = result.examples["6", rule, condition, ""]
            values = [
                stats.spearmanr(a.flatten(), b.flatten()).statistic
                for a, b in zip(trained, other, strict=True)
            ]
            row = table.loc[("6", rule, condition, "")]
            assert row.spearman == pytest.approx(np.nanmean(values))
            assert row.spearman_sd == pytest.approx(np.nanstd(values))
            assert row.units == np.isfinite(values).sum() or row.empty > 0
            assert result.mean("6", rule, condition) == row.spearman
        one = table.loc[("6", rule, "trained", "")]
        assert one.spearman == pytest.approx(1) and one.ssim == pytest.approx(1) and one.spearman_sd < 1e-12
    draws = result.pictures[(result.pictures.condition == "down to") & (result.pictures.weights == "0")]
    assert set(draws.draw) == {0, 1}
    assert set(result.pictures.condition) == set(CONDITIONS)
    assert result.untrained("6") == "0"


def test_the_control_is_another_channel_on_another_picture(checked):
    _, _, result = checked
    shuffled = result.examples["6", "gradient", "shuffled", ""]
    trained = result.examples["6", "gradient", "trained", ""]
    assert torch.equal(shuffled.flatten(1).sort().values, trained.flatten(1).sort().values)
    assert not torch.equal(shuffled, trained)
    for condition in ("other channel", "other picture", "unrelated"):
        assert not any(
            torch.equal(a, b)
            for a, b in zip(result.examples["6", "gradient", condition, ""], trained, strict=True)
        )


def test_equal_seeds_give_equal_tables_and_the_network_is_left_alone():
    model, images = network(), pictures(8)
    before = model.fingerprint()
    options = {"layers": "6", "units": 3, "draws": 1, "rules": ("deconvnet",)}
    a, b, c = (sanity_checks(model, images, random_seed=s, **options) for s in (1, 1, 2))
    assert a.pictures.equals(b.pictures) and not a.pictures.equals(c.pictures)
    assert model.fingerprint() == before


def test_of_one_linear_layer_the_picture_is_the_filter_whatever_the_photo():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 9)).double()
    model = zfkit.wrap_model(net, mean=127.5, scale=1 / 58, input_size=16)
    result = sanity_checks(model, pictures(9, 16), units=12, draws=1, keep=12)
    channel = result.pictures[result.pictures.condition == "trained"].set_index(["rule", "unit"]).channel
    for rule in ("deconvnet", "guided", "gradient"):
        filters = net[0].weight.detach()[channel.loc[rule].tolist()]
        for condition in ("trained", "other picture"):
            assert torch.equal(result.examples["0", rule, condition, ""], filters)
        assert result.mean("0", rule, "other picture") == pytest.approx(1)
        # filters of random numbers: correlations of 243 pairs, a standard error of 1/sqrt(242) each
        assert abs(result.mean("0", rule, "down to", "0")) < 5 / math.sqrt(242 * 12)
        assert ("0", rule, "other switches", "") not in result.table().index  # there is no pooling


def test_of_fully_connected_layers_the_whole_picture_is_compared():
    model, images = network(), pictures(6)
    result = sanity_checks(model, images, "9", units=4, keep=4, draws=1, rules=("guided",))
    assert result.photos["9"].shape == (len(result.photos["9"]), 3, SIDE, SIDE)
    row = result.pictures[result.pictures.condition == "trained"].iloc[0]
    x = model.preprocess(images.take([row.image]))
    assert torch.allclose(
        result.examples["9", "guided", "trained", ""][0],
        zfkit.project(model, x, "9", row.channel, rule="guided")[0],
    )
    assert result.untrained("9") == "0"


def test_one_channel_networks():
    result = sanity_checks(network(channels=1), pictures(6), "6", units=3, draws=1, draw="permutation")
    assert result.examples["6", "deconvnet", "trained", ""].shape[1:] == (1, 15, 15)
    assert result.table("6").loc[("6", "deconvnet", "trained", "")].photo_sd > 0


@pytest.mark.slow
def test_of_trained_networks(zfnet64, photos):
    model = zfnet64
    result = sanity_checks(model, photos, ["conv1", "conv2"], units=6, draws=1, keep=6)
    for rule in result.rules:  # nothing but a convolution lies before conv1: the picture plays no part
        assert result.mean("conv1", rule, "other picture") == pytest.approx(1)
        assert abs(result.mean("conv1", rule, "unrelated")) < 0.3
    # The gradient's picture is lost with the weights; the deconvnet's shows the photo.
    assert abs(result.mean("conv2", "gradient", "down to", "conv1")) < 0.15
    assert result.mean("conv2", "deconvnet", "trained", measure="photo") > 0.2


def test_windows_are_compared_with_those_of_another_photograph():
    windows = Windows(torch.arange(12) // 4, torch.zeros(12, 4))
    images = image_set(noise(12, SIDE), windows=windows)
    top = zfkit.mine(network(), image_set(noise(12, SIDE)), ["6"], inside=True, progress=False)["6"]
    for random_seed in range(4):
        case = randomisation._Case.draw(network(), images, top, "6", 6, random_seed)
        photograph = windows.photograph
        for other in (case.other_picture, case.unrelated_picture, case.unrelated):
            assert (photograph[other.image] != photograph[case.own.image]).all()
        assert (case.unrelated.channel != case.own.channel).all()


# -------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_redrawn():
    model = network()
    for layers, message in (
        ("conv9", "no layer 'conv9'"),
        ("1", "no layer '1'.*0, 3, 6, 9"),
        ([], "no layer"),
    ):
        with pytest.raises(LayerError, match=message):
            randomise(model, layers)
    with pytest.raises(ZfkitError, match="there is no draw 'uniform'"):
        randomise(model, "0", draw="uniform")
    with pytest.raises(ZfkitError, match="random_seed must be a whole number"):
        randomise(model, "0", random_seed=-1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(), nn.AdaptiveMaxPool2d(3), nn.Conv2d(4, 4, 2))
    odd = zfkit.wrap_model(net, mean=0, scale=1, input_size=12)
    with pytest.raises(LayerError, match="how to redraw the weights of PReLU"):
        weight_layers(odd, "3")
    net[1] = nn.ReLU()
    adaptive = zfkit.wrap_model(net, mean=0, scale=1, input_size=12)
    _, tape = tape_of(adaptive, pictures(1, 12).take([0]), "3")
    with pytest.raises(LayerError, match="'2' is AdaptiveMaxPool2d, whose windows have no fixed middle"):
        no_switches(adaptive, tape)


@pytest.mark.parametrize(
    ("images", "options", "kind", "message"),
    [
        (4, {"layers": "conv5"}, LayerError, "there is no layer 'conv5'"),
        (4, {"layers": "1"}, LayerError, "there is no layer '1'"),
        (4, {"layers": []}, LayerError, "no layer was named"),
        (4, {"rules": "guided"}, ZfkitError, "rules must be a list of deconvnet, guided, gradient"),
        (4, {"rules": ("smooth",)}, ZfkitError, "there is no rule 'smooth'"),
        (4, {"units": 1}, ZfkitError, "units"),
        (4, {"draw": "zeros"}, ZfkitError, "there is no draw 'zeros'"),
        (1, {}, ImageError, "has 1 picture; to compare with another, give 2 or more"),
    ],
)
def test_bad_input_is_refused(images, options, kind, message):
    with pytest.raises(kind, match=message):
        sanity_checks(network(), pictures(images), **{"layers": "6"} | options)


def test_pictures_that_cannot_be_compared():
    with pytest.raises(LayerError, match="units of '6' see 15 px, so in pictures of 14 px none looks at"):
        sanity_checks(network(), pictures(4, 14), "6")
    top = zfkit.mine(network(), pictures(4), ["6"], k=1, inside=True, progress=False)
    with pytest.raises(ZfkitError, match="at least 2 pictures a map, mined with inside=True"):
        sanity_checks(network(), pictures(4), "6", top=top)
    dead = network()
    with torch.no_grad():
        dead.net[6].bias.fill_(-1e6)
    with pytest.raises(LayerError, match="0 of 8 maps of '6' are active on two of the pictures"):
        sanity_checks(dead, pictures(4), "6")


def test_asking_for_what_was_not_measured(checked):
    _, _, result = checked
    with pytest.raises(LayerError, match=r"looked at '0'.*3, 6"):
        result.table("0")
    with pytest.raises(ZfkitError, match="nothing was measured for 'guided', 'down to', '9'"):
        result.mean("6", "guided", "down to", "9")


# --------------------------------------------------------------------------------------------------- figures


def test_figures_show_what_the_table_holds(checked):
    from zfkit.figures.randomisation import (
        photo_likeness_figure,
        sanity_figure,
        sanity_layers_figure,
        sanity_sheet,
    )

    _, _, result = checked
    table = result.table("6")
    figure = sanity_figure(result, "6")
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    at = labels.index("6 to 0 redrawn (untrained)")
    guided = figure.axes[2].containers[result.rules.index("guided")].lines[0].get_xdata()
    assert guided[at] == pytest.approx(table.loc[("6", "guided", "down to", "0")].ssim)
    across = sanity_layers_figure(result)
    other = across.axes[2].containers[0].lines[0].get_ydata()
    assert list(other) == [result.mean(layer, "gradient", "other channel") for layer in ("3", "6")]
    bars = photo_likeness_figure(result).axes[0].containers
    heights = [bar.get_height() for c in bars if hasattr(c, "patches") for bar in c.patches]
    assert heights[0] == pytest.approx(result.mean("3", "deconvnet", "trained", measure="photo"))
    sheet = sanity_sheet(result, "6", unit=1)
    assert len(sheet.axes) == 3 * 6
    shown = sheet.axes[6 + 1].images[0].get_array()  # second rule, first change: the trained network's
    trained = zfkit.figures.signed_to_rgb(result.examples["6", "guided", "trained", ""][1])
    assert np.array_equal(shown, trained.permute(1, 2, 0).numpy())
    with pytest.raises(ZfkitError, match="unit, of those kept"):
        sanity_sheet(result, "6", unit=4)


def test_units_in_portions_give_the_same_table(monkeypatch):
    options = {"layers": "6", "units": 5, "draws": 1, "keep": 5, "rules": ("guided",)}
    whole = sanity_checks(network(), pictures(8), **options)
    monkeypatch.setattr(randomisation, "FORWARD_PIXELS", 2 * SIDE**2)
    monkeypatch.setattr(randomisation, "REVERSE_BYTES", 1)
    parts = sanity_checks(network(), pictures(8), **options)
    for key, projections in whole.examples.items():
        if key[2] != "random switches":  # whose random numbers come in the order of the portions
            assert torch.allclose(projections, parts.examples[key], atol=1e-12), key
