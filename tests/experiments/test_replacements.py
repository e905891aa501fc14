"""Redrawn weights and other switches: compared before and after, with a literal deconvnet, and in closed form."""

import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import noise, pooled_network
from torch import nn

import zfkit
from zfkit.deconv.project import Deconvnet, forward
from zfkit.deconv.rules import Options
from zfkit.errors import LayerError, ZfkitError
from zfkit.experiments import replacements
from zfkit.experiments.replacements import no_switches, other_switches, randomise, weight_layers

SIDE = 28  # px, of the pictures that `pooled_network` takes
CONVS, ALL = ("0", "3", "6"), ("0", "3", "6", "9")  # its layers with weights


# ------------------------------------------------------------------------------------------- redrawn weights


def test_weight_layers_are_those_on_the_way_in_order():
    model = pooled_network()
    assert weight_layers(model, "9") == ALL
    assert weight_layers(model, "3") == ("0", "3")
    assert weight_layers(model, "7") == CONVS  # a ReLU: those below it


@pytest.mark.parametrize("draw", ["normal", "permutation"])
def test_named_layers_are_redrawn_and_nothing_else(draw):
    model = pooled_network()
    before, state = model.fingerprint(), model.net.state_dict()
    for depth in range(4):
        new = randomise(model, ALL[depth:], draw=draw, random_seed=3).net.state_dict()
        for layer in ALL:
            same = [torch.equal(state[f"{layer}.{n}"], new[f"{layer}.{n}"]) for n in ("weight", "bias")]
            assert same == [layer not in ALL[depth:]] * 2
    assert model.fingerprint() == before


def test_what_a_layer_gets_depends_on_seed_and_layer_only():
    model = pooled_network()
    alone, cascade = randomise(model, "3", random_seed=5), randomise(model, ALL, random_seed=5)
    assert torch.equal(alone.net[3].weight, cascade.net[3].weight)
    assert not torch.equal(alone.net[3].weight, randomise(model, "3", random_seed=6).net[3].weight)
    # equal shapes are not given equal numbers
    assert not torch.equal(cascade.net[3].weight.flatten()[:100], cascade.net[6].weight.flatten()[:100])


def test_how_weights_are_drawn():
    net = nn.Sequential(nn.Conv2d(3, 50, 9), nn.ReLU())
    model = zfkit.wrap_model(net, mean=0, scale=1, input_size=9)
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
    trained = pooled_network()
    for rule in ("deconvnet", "guided", "gradient"):
        projections = []
        for factors in ((1, 1, 1), (0.01, 20, 0.3)):
            model = randomise(trained, CONVS, random_seed=1)
            with torch.no_grad():
                for layer, factor in zip(CONVS, factors, strict=True):
                    model.net[int(layer)].weight.mul_(factor)
            x = model.preprocess(noise(1, SIDE))
            projections.append(zfkit.project(model, x, "6", 2, [[2, 3]], rule=rule))
        ratio = projections[1][projections[0] != 0] / projections[0][projections[0] != 0]
        assert len(ratio) > 50 and torch.allclose(ratio, ratio[0].expand_as(ratio)) and ratio[0] > 0


def test_batch_normalisation_goes_with_its_layer():
    torch.manual_seed(0)
    first = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU()
    net = nn.Sequential(*first, nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4))
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
    numbers = [(n.weight, n.bias, n.running_mean, n.running_var) for n in (net[1], shuffled)]
    rows = [torch.stack(four, 1).tolist() for four in numbers]
    assert rows[0] != rows[1] and sorted(rows[0]) == sorted(rows[1])  # maps keep their four numbers together


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
    model = pooled_network()
    deconvnet, tape = tape_of(model, noise(1, SIDE), "6")
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
        channel, at = torch.tensor(unit[:1]), torch.tensor([unit[1:]])
        R, window = deconvnet.reverse(fixed, "6", torch.tensor([0]), channel, at)
        expected = literal_projection(model, places, unit, tape.shapes)
        result = zfkit.deconv.paste(R, window.origin, (SIDE, SIDE))
        assert torch.allclose(result, expected, atol=1e-12) and expected.any()
    again = tape_of(model, noise(1, SIDE), "6")[1]
    assert torch.equal(tape.kept["2"], again.kept["2"])  # the tape itself is kept


def test_copies_that_nobody_holds_do_not_pile_up(monkeypatch):
    """Those of large networks are 100 MB each, and Python's own collection comes after many of them."""
    model, nets = pooled_network(), []
    monkeypatch.setattr(replacements, "HELD", 0)  # these are small
    for _ in range(5):
        untrained = randomise(model, "0")
        untrained.net.itself = [untrained.net]  # as a traced network refers to itself
        nets.append(weakref.ref(untrained.net))
    assert sum(net() is not None for net in nets) <= 2


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
    _, tape = tape_of(model, noise(2, side), "2")
    for how in ("random", "centre"):
        new = no_switches(model, tape, how, torch.Generator().manual_seed(seed)).kept["1"]
        assert new.shape == tape.kept["1"].shape and new.dtype == tape.kept["1"].dtype
        assert new.dtype == torch.uint8  # 16 x row + column, for windows as small as these
        row, col = new.int() >> 4, new.int() & 15
        for offset, size in ((row, new.shape[2]), (col.transpose(2, 3), new.shape[3])):
            start = torch.arange(size)[:, None] * stride - padding
            assert offset.min() >= 0 and offset.max() <= dilation * (kernel - 1)
            assert (offset % dilation == 0).all()
            assert (start + offset >= 0).all() and (start + offset < side).all()
    seeds = [torch.Generator().manual_seed(s) for s in (1, 1, 2)]
    again = [no_switches(model, tape, "random", g).kept["1"] for g in seeds]
    assert torch.equal(again[0], again[1]) and not torch.equal(again[0], again[2])


def test_with_the_switches_of_another_picture_the_deconvnet_shows_that_picture():
    """All that it takes from a picture are the switches."""
    model, one, another = pooled_network(), *noise(2, SIDE)
    deconvnet, own = tape_of(model, one[None], "6")
    other = tape_of(model, another[None], "6")[1]
    swapped = other_switches(model, own, other)
    at = torch.tensor([[3, 1]])
    R, window = deconvnet.reverse(swapped, "6", torch.tensor([0]), torch.tensor([4]), at)
    expected = zfkit.project(model, model.preprocess(another[None]), "6", 4, at)
    assert torch.equal(zfkit.deconv.paste(R, window.origin, (SIDE, SIDE)), expected)
    guided = tape_of(model, one[None], "6", "guided")[1]
    changed = other_switches(model, guided, tape_of(model, another[None], "6", "guided")[1])
    same = {name for name in guided.kept if torch.equal(guided.kept[name], changed.kept[name])}
    assert same == {"1", "4", "7"} & guided.kept.keys()  # the ReLUs' masks stay


def test_what_cannot_be_redrawn():
    model = pooled_network()
    for layers, message in (("conv9", "no layer 'conv9'"), ("1", "'1'.*0, 3, 6, 9"), ([], "no layer")):
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
    _, tape = tape_of(adaptive, noise(1, 12), "3")
    with pytest.raises(LayerError, match="'2' is AdaptiveMaxPool2d, whose windows have no fixed middle"):
        no_switches(adaptive, tape)
