"""Operations without a rule of their own: exact against autograd, or refused; what was done is said."""

from __future__ import annotations

import importlib
import operator
import re

import oracle
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from tiny import image_set
from torch import nn

import zfkit
from zfkit.errors import LayerError

F64 = torch.float64


class Around(nn.Module):
    """Convolution, ReLU, what is being tested, convolution: the last one's units look through all of it."""

    def __init__(self, operation, channels=4):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(channels, 3, 3, padding=1)
        self.other, self.gate = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.spread = nn.Parameter(torch.zeros(1, 4, 12, 12))
        self.operation = operation

    def forward(self, x):
        y = F.relu(self.first(x))
        return self.last(
            self.operation(self, y) if not isinstance(self.operation, nn.Module) else self.operation(y)
        )


def operation(function, channels=4):
    return function, channels


class Product(nn.Module):
    def forward(self, a, b):
        return a * b


def heads_beside_the_pictures(n, y):
    """Attention as it is often written: (N heads, channels, places)."""
    B, C, H, W = y.shape
    q, k, v = (t.reshape(B * 2, C // 2, H * W) for t in (n.other(y), n.gate(y), y))
    together, channels, places = q.shape  # sizes of what is no map of one picture
    q = q.reshape(together * channels, places).reshape(together, channels, places)
    weights = torch.softmax(q.transpose(1, 2) @ k, -1)
    return (v @ weights.transpose(1, 2)).reshape(B, C, H, W)


# Linear: padding, upsampling, shuffles, slices, sums with signs, normalisations with fixed statistics.
LINEAR = {
    "transposed convolution": operation(nn.ConvTranspose2d(4, 5, 3, 2, 1, 1), 5),
    "transposed convolution to a size": operation(nn.ConvTranspose2d(4, 4, 2, 2)),
    "upsample nearest": operation(nn.Upsample(scale_factor=2)),
    "upsample bilinear": operation(nn.Upsample(scale_factor=2, mode="bilinear")),
    "interpolate to a size": operation(lambda n, y: F.interpolate(y, size=(9, 11), mode="bilinear")),
    "zero padding": operation(nn.ZeroPad2d((1, 2, 0, 3))),
    "reflection padding": operation(nn.ReflectionPad2d(2)),
    "pad": operation(lambda n, y: F.pad(y, (2, 1, 0, 1))),
    "pad, cropping": operation(lambda n, y: F.pad(y, (-1, -2, 0, -1))),
    "pixel shuffle": operation(nn.PixelShuffle(2), 1),
    "pixel unshuffle": operation(nn.PixelUnshuffle(2), 16),
    "channel shuffle": operation(nn.ChannelShuffle(2)),
    "channel shuffle by views": operation(
        lambda n, y: y.view(y.size(0), 2, 2, y.size(2), y.size(3)).transpose(1, 2).reshape(y.shape)
    ),
    "synchronised batch norm": operation(nn.SyncBatchNorm(4)),
    "frozen batch norm": operation(torchvision.ops.FrozenBatchNorm2d(4)),
    "batch norm by a function": operation(
        lambda n, y: F.batch_norm(y, torch.arange(4.0, dtype=F64), torch.arange(1, 5.0, dtype=F64))
    ),
    "channels swapped": operation(lambda n, y: y[:, [2, 1, 0, 3]]),
    "flip": operation(lambda n, y: y.flip(3)),
    "difference": operation(lambda n, y: n.other(y) - y),
    "negative": operation(lambda n, y: 1 - y),
    "chunks": operation(lambda n, y: torch.cat(y.chunk(2, 1)[::-1], 1)),
    "split along rows": operation(lambda n, y: y.split(5, 2)[0]),
    "a smaller map added": operation(lambda n, y: y + F.adaptive_avg_pool2d(y, 1)),
    "convolution by a function": operation(lambda n, y: F.conv2d(y, n.other.weight * 2, padding=1)),
    "rolled along rows": operation(lambda n, y: torch.roll(y, 1, 2)),
    "rolled along columns by a keyword": operation(lambda n, y: y.roll(shifts=1, dims=3)),
    "flipped along channels and rows": operation(lambda n, y: y.flip(1, 2)),
    "rolled along channels": operation(lambda n, y: y.roll(2, 1)),
    "a mean that a parameter spreads out": operation(lambda n, y: y.mean((2, 3), keepdim=True) + n.spread),
    "cropped to another map": operation(lambda n, y: F.pad(y, (0, 2, 0, 2))[:, :, : y.size(2), : y.size(3)]),
    "times a picture of weights": operation(lambda n, y: y * n.spread),
    "beside a constant": operation(lambda n, y: torch.cat([y, n.spread.expand(y.size(0), 4, 12, 12)], 1), 8),
    "interpolate with aligned corners": operation(
        lambda n, y: F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
    ),
    "mean over channels": operation(lambda n, y: y.mean(1, keepdim=True), 1),
    "convolution with stride and dilation": operation(nn.Conv2d(4, 4, 3, 2, 2, dilation=2)),
    "depthwise convolution": operation(nn.Conv2d(4, 4, 3, padding=1, groups=4)),
    "convolution with circular padding": operation(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
    "average pooling": operation(nn.AvgPool2d(3, 2, 1)),
    "adaptive average pooling": operation(nn.AdaptiveAvgPool2d(5)),
    "batch norm": operation(nn.BatchNorm2d(4)),
    "columns repeated": operation(lambda n, y: y.repeat_interleave(2, 3)),
    "rows left out": operation(lambda n, y: y.narrow(2, 1, 7)),
    "unfolded and folded": operation(lambda n, y: F.fold(F.unfold(y, 3, padding=1), (12, 12), 3, padding=1)),
    "dropout": operation(nn.Dropout(0.5)),
    "permuted and linear": operation(
        lambda n, y: F.linear(y.permute(0, 2, 3, 1), n.other.weight[:, :, 0, 0]).permute(0, 3, 1, 2)
    ),
}
LIKE_RELU = {  # each behind a convolution, so that it sees both signs
    name: operation(nn.Sequential(nn.Conv2d(4, 4, 1), module))
    for name, module in {
        "LeakyReLU": nn.LeakyReLU(0.1), "PReLU": nn.PReLU(), "ELU": nn.ELU(), "SELU": nn.SELU(), "GELU": nn.GELU(),
        "SiLU": nn.SiLU(inplace=True), "Mish": nn.Mish(), "Hardswish": nn.Hardswish(inplace=True),
        "Softplus": nn.Softplus(),
    }.items()
}  # fmt: skip
# Passed by their gradient, on every input.
GRADIENT = {
    "sigmoid": operation(nn.Sigmoid()),
    "product of two branches": operation(lambda n, y: torch.tanh(n.other(y)) * n.gate(y)),
    "squeeze and excitation": operation(lambda n, y: y * torch.sigmoid(n.gate(y.mean((2, 3), keepdim=True)))),
    "product with itself": operation(lambda n, y: y * y),
    "quotient": operation(lambda n, y: y / (1 + y.abs())),
    "group norm": operation(nn.GroupNorm(2, 4)),
    "instance norm": operation(nn.InstanceNorm2d(4)),
    "layer norm": operation(lambda n, y: F.layer_norm(y.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2)),
    "softmax": operation(nn.Softmax(1)),
    "maximum of two": operation(lambda n, y: torch.maximum(y, n.other(y))),
    "maximum along channels": operation(lambda n, y: torch.max(n.other(y), 1, keepdim=True)[0] * y),
    "a gate from a filter as large as the map": operation(
        lambda n, y: n.other(y) * F.conv2d(y, n.spread.expand(4, 4, 12, 12))
    ),
    "positive part by a mask of numbers": operation(lambda n, y: n.other(y) * (n.other(y) > 0).double()),
    "a mask that has no gradient": operation(lambda n, y: n.other(y) * (y > 0.1)),
    "clamp in place": operation(lambda n, y: n.other(y).clamp_(-0.2, 0.3)),
    "gated linear unit": operation(lambda n, y: F.glu(torch.cat([n.other(y), n.gate(y)], 1), 1)),
    "vectors of length 1": operation(lambda n, y: F.normalize(n.other(y), dim=1)),
    "one of two by a mask": operation(lambda n, y: torch.where(y > 0.2, n.other(y), n.gate(y))),
    "a mean by weights that are computed": operation(
        lambda n, y: torch.lerp(n.other(y), n.gate(y), torch.sigmoid(y))
    ),
    "running sum of channels": operation(lambda n, y: y.cumsum(1)),
    "matrices of channels": operation(
        lambda n, y: torch.einsum("nchw,ndhw->ncd", y, n.other(y))[..., None, None].mean(2) * y
    ),
    "moved by a field that is computed": operation(
        lambda n, y: F.grid_sample(y, torch.tanh(n.other(y)[:, :2]).permute(0, 2, 3, 1), align_corners=False)
    ),
    "reshaped by the sizes of weights and maps": operation(
        lambda n, y: torch.softmax(n.other(y).reshape(-1, n.other.weight.shape[0], 144), 1).reshape(y.shape)
    ),
    # Between the two ends of these the first axis is not the pictures'.
    "stacked and summed": operation(lambda n, y: torch.stack([n.other(y), n.gate(y)]).prod(0)),
    "heads beside the pictures": operation(heads_beside_the_pictures),
    "pictures after places": operation(
        lambda n, y: torch.softmax(y.flatten(2).permute(2, 0, 1), 0).permute(1, 2, 0).unflatten(2, (12, 12))
    ),
}
POOLS = {
    "max-pooling": operation(nn.MaxPool2d(3, 2, 1)),
    "adaptive max-pooling": operation(nn.AdaptiveMaxPool2d(5)),
}


def wrapped(net, size=12):
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0.1, 0.5)
    return zfkit.wrap_model(net.double().eval(), mean=0.0, scale=1.0, input_size=size)


def assert_exact(net, layer="last", rules=("deconvnet", "guided", "gradient"), size=12):
    model = wrapped(net, size)
    x = torch.randn(2, 3, size, size, dtype=F64, generator=torch.Generator().manual_seed(1))
    shape = model.network.shapes[layer]
    something = False
    for unit in [(0, 0, 0), (shape[0] - 1, shape[1] // 2, shape[2] - 1)]:
        for rule in rules:
            expected = oracle.projection(net, x, layer, unit, rule)
            something |= bool(expected.any())
            pixels = zfkit.project(model, x, layer, unit[0], unit[1:], rule=rule)
            torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
    assert something
    return model


@pytest.mark.parametrize("name", LINEAR)
def test_the_transpose_of_a_linear_operation(name):
    model = assert_exact(Around(*LINEAR[name]))
    assert not (zfkit.way_back(model, "last").treatment == "gradient").any()


@pytest.mark.parametrize(
    "name", ["rolled along rows", "flipped along channels and rows", "cropped to another map"]
)
def test_what_moves_rows_or_columns_is_not_taken_for_an_operation_on_channels(name):
    field = zfkit.receptive_field(wrapped(Around(*LINEAR[name])), "last")
    assert field.measured or field.stride == 0


def test_a_gate_as_large_as_the_map_sees_the_whole_picture():
    model = wrapped(Around(*GRADIENT["a gate from a filter as large as the map"]))
    assert zfkit.receptive_field(model, "last").stride == 0


@pytest.mark.parametrize("name", LIKE_RELU)
def test_an_activation_like_relu_is_rectified(name):
    model = assert_exact(Around(*LIKE_RELU[name]))
    assert (zfkit.way_back(model, "last").treatment == "rectified").sum() == 2


@pytest.mark.parametrize("name", GRADIENT)
def test_any_other_operation_is_passed_by_its_gradient_and_that_is_said(name):
    model = assert_exact(Around(*GRADIENT[name]))
    assert (zfkit.way_back(model, "last").treatment == "gradient").any()
    assert zfkit.deconv.by_gradient(model, "last")


@pytest.mark.parametrize("batch_first, need_weights", [(True, True), (True, False), (False, True)])
def test_multihead_attention_goes_back_on_query_key_and_value(batch_first, need_weights):
    class Attention(Around):
        def __init__(self):
            super().__init__(None)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)

        def forward(self, x):
            y = F.relu(self.first(x))
            tokens = [t.flatten(2) for t in (y, self.other(y), self.gate(y))]
            tokens = [t.transpose(1, 2) if batch_first else t.permute(2, 0, 1) for t in tokens]
            mixed = self.attention(*tokens, need_weights=need_weights)[0]
            mixed = mixed.transpose(1, 2) if batch_first else mixed.permute(1, 2, 0)
            return self.last(mixed.unflatten(2, (12, 12)))

    model = assert_exact(Attention())
    assert "MultiheadAttention" in zfkit.deconv.by_gradient(model, "last")
    assert zfkit.receptive_field(model, "last").stride == 0  # it looks everywhere


@pytest.mark.parametrize("before, after", [(False, True), (True, False), (True, True)])
def test_what_a_hook_of_the_user_s_changes_goes_back(before, after):
    net = Around(nn.GELU())
    net.operation = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4))
    seen = []
    # it only looks
    net.operation[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    if before:
        net.operation[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] * inputs[0],))
    if after:
        net.operation[2].register_forward_hook(lambda module, inputs, output: 3 * output.flip(2))
    treated = zfkit.way_back(assert_exact(net), "last").set_index("step").treatment
    assert seen and treated["operation.1"] == "rectified"
    assert (treated["operation.0"] == "gradient") is before and (
        treated["operation.2"] == "gradient"
    ) is after


def test_modules_made_in_forward_are_what_they_call():
    class Made(Around):
        def forward(self, x):
            y = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))(self.first(x))
            return self.last(nn.Upsample(scale_factor=2)(y))

    model = assert_exact(Made(None))
    assert model.conv_layers == ("first", "last")


def test_a_module_with_control_flow_is_one_operation():
    class Padded(nn.Conv2d):
        """As TensorFlow pads: by what the size of the picture asks for."""

        def forward(self, x):
            if x.shape[-1] % 2 == 0:
                x = F.pad(x, (0, 1, 0, 1))
            return F.conv2d(x, self.weight, self.bias, 2, 0)

    net = Around(nn.ReLU())
    net.operation = nn.Sequential(nn.ReLU(), Padded(4, 4, 3, 2), nn.ReLU())
    model = assert_exact(net)
    assert "operation.1" in model.conv_layers
    assert zfkit.way_back(model, "last").set_index("step").treatment["operation.1"] == "gradient"
    assert zfkit.receptive_field(model, "last").measured  # its padding is not what its attributes say


def test_an_activation_within_a_module_of_torch_s_is_rectified():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0].flatten(2).transpose(1, 2),))
    layer.register_forward_hook(lambda module, inputs, y: y.transpose(1, 2).unflatten(2, (12, 12)))
    assert_exact(Around(layer))


ACTIVATIONS = {
    "module": nn.ReLU(), "in place": nn.ReLU(inplace=True), "method in place": lambda y: y.relu_(),
    "six": nn.ReLU6(), "named argument": lambda y: F.relu(input=y), "GELU": nn.GELU(),
    "SiLU in place": nn.SiLU(inplace=True), "LeakyReLU": nn.LeakyReLU(0.1), "Threshold": nn.Threshold(0.2, 0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_within_a_module_with_control_flow_are_rectified(name):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.again = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
            self.activation, self.takes_what_is_returned = ACTIVATIONS[name], True

        def forward(self, x):
            y = self.conv(x)
            z = self.activation(y)
            if z.mean() > -1e9 and self.takes_what_is_returned:
                y = z
            return self.again(F.max_pool2d(y, 2))

    net = Around(Branching())
    model = assert_exact(net)
    assert zfkit.deconv.by_gradient(model, "last") == ["Branching"]
    if "in place" in name:
        x = torch.randn(1, 3, 12, 12, dtype=F64, generator=torch.Generator().manual_seed(1))
        expected = zfkit.project(model, x, "last", 1, (3, 3))
        net.operation.takes_what_is_returned = False
        torch.testing.assert_close(zfkit.project(model, x, "last", 1, (3, 3)), expected, rtol=0, atol=0)


def test_a_rule_gets_maps_in_the_order_of_arguments_however_they_are_named(own_rules):
    @zfkit.register_rule(torch.sub, inputs=2)
    def difference(R, module, context):
        return [R, -2 * R]  # recognisable

    class Scaled(nn.Module):
        def forward(self, plain, twice):
            return plain + twice

    zfkit.register_rule(Scaled, inputs=2)(lambda R, module, context: [R, 2 * R])
    x = torch.randn(1, 3, 12, 12, dtype=F64)
    ways = [
        lambda n, y: torch.sub(n.other(y), n.gate(y)), lambda n, y: torch.sub(other=n.gate(y), input=n.other(y)),
        lambda n, y: n.scaled(n.other(y), n.gate(y)), lambda n, y: n.scaled(twice=n.gate(y), plain=n.other(y)),
    ]  # fmt: skip
    found = []
    for way in ways:
        net = Around(way)
        net.scaled = Scaled()
        found.append(zfkit.project(wrapped(net), x, "last", 1, (5, 6)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(found[2], found[3], rtol=0, atol=0)
    assert found[0].any() and not torch.equal(found[0], found[2])


def test_more_units_than_pictures_go_back_through_numbers_of_pictures():
    """Several units of one picture: what was computed from the number of pictures is not that of units."""
    model = wrapped(Around(*GRADIENT["heads beside the pictures"]))
    x = torch.randn(2, 3, 12, 12, dtype=F64, generator=torch.Generator().manual_seed(1))
    deconvnet = zfkit.deconv.Deconvnet(model.network, ["last"])
    image, channel = torch.tensor([1, 0, 1]), torch.tensor([0, 2, 1])
    position = torch.tensor([[3, 4], [0, 0], [11, 2]])
    pixels, _ = deconvnet.reverse(deconvnet.forward(x.clone()), "last", image, channel, position)
    for i, n in enumerate(image.tolist()):
        unit = (int(channel[i]), *position[i].tolist())
        expected = oracle.projection(model.net, x[n : n + 1], "last", unit, "deconvnet")[0]
        torch.testing.assert_close(pixels[i], expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def test_attention_between_places():
    class Attention(Around):
        def forward(self, x):
            y = self.first(x).flatten(2)  # (N, C, places)
            weights = torch.softmax(y.transpose(1, 2) @ y, -1)
            return self.last((y @ weights).unflatten(2, (12, 12)))

    assert_exact(Attention(None))


def test_whole_maps_that_lie_channels_last_in_memory():
    """Of one image: there torch's batch norm once went back wrongly."""
    net = Around(
        lambda n, y: F.batch_norm(n.other(y), torch.zeros(4, dtype=F64), torch.arange(1, 5.0, dtype=F64))
    )
    model = wrapped(net, 40)
    x = torch.randn(1, 3, 40, 40, dtype=F64, generator=torch.Generator().manual_seed(1))
    deconvnet = zfkit.deconv.Deconvnet(model.network, ["last"])
    tape = deconvnet.forward(x.to(memory_format=torch.channels_last))
    unit = torch.tensor([0]), torch.tensor([1]), torch.tensor([[20, 21]])
    expected = oracle.projection(net, x, "last", (1, 20, 21), "deconvnet")
    pixels, _ = deconvnet.reverse(tape, "last", *unit, whole_maps=True)
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def test_the_decoder_of_a_u_net():
    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
            self.up, self.out = nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            y = F.relu(self.down(x))
            return self.out(torch.cat([y, self.up(F.relu(self.deep(F.max_pool2d(y, 2))))], 1))

    model = assert_exact(UNet(), "out", size=16)
    field = zfkit.receptive_field(model, "out")
    assert (field.stride, field.size) == (1, 9)  # 8 px through the pooled branch, either of two phases: 9


OPERATIONS = {**LINEAR, **LIKE_RELU, **GRADIENT, **POOLS}
# What networks are drawn from: operations that keep four maps, each of another kind. 60 of them.
DRAWN = """
transposed convolution to a size, upsample nearest, upsample bilinear, interpolate to a size, zero padding,
reflection padding, pad, channel shuffle, channel shuffle by views, synchronised batch norm, frozen batch norm,
batch norm by a function, channels swapped, flip, difference, negative, chunks, split along rows, a smaller map added,
convolution by a function, rolled along rows, rolled along channels, convolution with stride and dilation,
depthwise convolution, convolution with circular padding, average pooling, adaptive average pooling, batch norm,
columns repeated, rows left out, dropout, permuted and linear, LeakyReLU, PReLU, ELU, SELU, GELU, SiLU, Mish,
Hardswish, Softplus, sigmoid, product of two branches, squeeze and excitation, product with itself, quotient,
group norm, instance norm, layer norm, softmax, maximum of two, maximum along channels, gated linear unit,
vectors of length 1, one of two by a mask, running sum of channels, matrices of channels,
moved by a field that is computed, heads beside the pictures, max-pooling
"""
DRAWN = [name.strip() for name in DRAWN.split(",")]


def test_networks_are_drawn_from_sixty_operations():
    assert len(set(DRAWN)) == len(DRAWN) == 60
    assert all(OPERATIONS[name][1] == 4 for name in DRAWN)


class Several(nn.Module):
    """Operations one after the other, some of them beside a shortcut."""

    def __init__(self, names):
        super().__init__()
        self.names = names
        self.blocks = nn.ModuleList(Around(OPERATIONS[name][0]) for name in names)
        self.between = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in names)

    def forward(self, x):
        for block, between in zip(self.blocks, self.between, strict=True):
            y = block(x)
            x = between(y)
        return x


def test_what_is_part_of_an_operation_is_found_in_one_walk(monkeypatch):
    """Behind 40 shortcuts, along which 2^40 ways lead; the graph has its nodes in order."""
    graph, looked, trace = torch.fx.Graph(), [], importlib.import_module("zfkit.nets.trace")
    x = y = graph.placeholder("x")
    for _ in range(40):
        y = graph.call_function(operator.add, (y, graph.call_function(F.relu, (y,))))

    def inside(node):
        looked.append(node)
        assert len(looked) <= 2 * 81, "no node is looked at twice"
        return node is not x

    monkeypatch.setattr(trace, "_is_inside", inside)
    assert trace._inside(y) == list(graph.nodes)[1:] and trace._sources(y) == [x]


@given(st.lists(st.sampled_from(DRAWN), min_size=2, max_size=3))
def test_networks_of_random_operations_equal_autograd(names):
    net = Several(names)
    assert_exact(net, f"between.{len(names) - 1}", ("deconvnet", "gradient"))


def test_windows_equal_whole_maps():
    net = Around(nn.GELU())
    net.operation = nn.Sequential(nn.GELU(), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(4), nn.AvgPool2d(2, 1))
    model = wrapped(net, 30)
    x = torch.randn(3, 3, 30, 30, dtype=F64, generator=torch.Generator().manual_seed(1))
    image, channel = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0])
    position = torch.tensor([[0, 0], [7, 7], [13, 13], [0, 13]])
    for rule in ("deconvnet", "guided", "gradient"):
        deconvnet = zfkit.deconv.Deconvnet(model.network, ["last"], zfkit.deconv.Options(rule))
        tape = deconvnet.forward(x.clone())
        pixels, window = deconvnet.reverse(tape, "last", image, channel, position)
        whole, _ = deconvnet.reverse(tape, "last", image, channel, position, whole_maps=True)
        assert window.size < (30, 30)
        pasted = zfkit.deconv.paste(pixels, window.origin, (30, 30))
        torch.testing.assert_close(pasted, whole, rtol=0, atol=1e-12)


def test_a_registered_rule_that_leaves_out_an_input_is_refused(own_rules):
    zfkit.register_rule(torch.mul)(lambda R, module, context: R)
    model = wrapped(Around(lambda n, y: torch.mul(n.other(y), n.gate(y))))
    with pytest.raises(LayerError, match=r"1 of the 2 maps.*other, gate.*inputs=2"):
        zfkit.project(model, torch.zeros(1, 3, 12, 12, dtype=F64), "last", 0)


@pytest.mark.parametrize("call", [torch.mul, operator.mul, lambda a, b: a.mul(b), Product()])
def test_what_the_message_says_to_type_can_be_typed(call, own_rules):
    net = Around(lambda n, y: n.call(n.other(y), n.gate(y)))
    net.call = call
    target = Product if isinstance(call, nn.Module) else "mul" if call.__name__ == "<lambda>" else call
    zfkit.register_rule(target)(lambda R, module, context: R)
    with pytest.raises(LayerError, match="inputs=2") as error:
        zfkit.deconv.Deconvnet(wrapped(net).network, ["last"])
    typed = re.search(r"zfkit\.register_rule\((.*), inputs=2\)", str(error.value))[1]
    own = typed.removeprefix(f"{__name__}.")  # somebody's class, by the module that it stands in
    assert eval(own, {"torch": torch, "operator": operator, "Product": Product}) == target


def test_what_has_no_gradient_is_refused_by_name():
    model = wrapped(Around(lambda n, y: (y > 0.1).double()))
    with pytest.raises(LayerError, match="gradient"):
        zfkit.project(model, torch.ones(1, 3, 12, 12, dtype=F64), "last", 0, (5, 5))


def test_way_back_names_every_operation_in_order():
    table = zfkit.way_back(zfkit.load_model("zfnet64"), "conv2")
    assert table.step.tolist() == ["conv2", "norm1", "pool1", "relu1", "conv1"]
    assert table.treatment.tolist() == ["transpose", "left out", "switches", "rectified", "transpose"]


def test_units_behind_an_upsampling_are_projected_as_in_the_whole_picture():
    """Crops that kept to the layer's stride alone would shift the grid of the pooling before it."""
    up_and_down = nn.ReLU(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
    model = wrapped(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *up_and_down, nn.Conv2d(4, 3, 3)), 32)
    generator = torch.Generator().manual_seed(0)
    photos = image_set(torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=generator))
    top = zfkit.mine(model, photos, ["4"], k=3, inside=True, progress=False)
    patches = zfkit.project_top(model, photos, top, "4")
    for c, rank in [(0, 0), (1, 1), (2, 2)]:
        x = model.preprocess(photos.take([int(patches.image[c, rank])]))
        unit = int(patches.row[c, rank]), int(patches.col[c, rank])
        whole = zfkit.project(model, x, "4", c, unit)[0]
        left, top_, right, bottom = patches.box[c, rank].tolist()
        expected = whole[:, top_:bottom, left:right]
        torch.testing.assert_close(patches.projection[c, rank], expected, rtol=0, atol=1e-12)
        assert whole.any()


@pytest.mark.parametrize("repeated", [True, False])
def test_a_rule_may_return_one_tensor_twice_and_has_to_return_one_for_each_input(own_rules, repeated):
    class Sum(nn.Module):
        def forward(self, a, b):
            return a + b

    class Net(Around):
        def __init__(self):
            super().__init__(None)
            self.sum = Sum()

        def forward(self, x):
            y = F.relu(self.first(x))
            return self.last(self.sum(F.relu(self.other(y)), self.gate(y)))

    zfkit.register_rule(Sum, inputs=2)(lambda R, module, context: [R, R] if repeated else [R])
    if repeated:
        assert_exact(Net(), rules=("deconvnet", "gradient"))
    else:
        with pytest.raises(LayerError, match="returned 1 tensors at 'sum', which reads 2 maps"):
            zfkit.project(wrapped(Net()), torch.zeros(1, 3, 12, 12, dtype=F64), "last", 0)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_rule_records_what_went_in_also_where_the_operation_works_in_place(own_rules, inplace):
    def slope(module, x, y, options):
        s = torch.sigmoid(x)
        return s * (1 + x * (1 - s))

    zfkit.register_rule(nn.SiLU, record=slope)(lambda R, module, context: R * context.cut(context.kept))
    zfkit.register_rule(nn.ReLU, record=lambda module, x, y, options: x > 0)(
        lambda R, module, context: R * context.cut(context.kept)
    )
    between = nn.SiLU(inplace), nn.Conv2d(4, 4, 3), nn.ReLU(inplace)
    assert_exact(nn.Sequential(nn.Conv2d(3, 4, 3), *between, nn.Conv2d(4, 3, 1)), "4", ("gradient",))


def test_a_softmax_in_the_middle_is_no_end_whichever_layers_are_asked_together():
    model = wrapped(Around(nn.Softmax(1)))
    x = torch.randn(1, 3, 12, 12, dtype=F64, generator=torch.Generator().manual_seed(0))
    alone = zfkit.project(model, x, "last", 1, (5, 6), rule="gradient")
    for layers in (["last", "operation"], ["operation", "last"]):
        deconvnet = zfkit.deconv.Deconvnet(model.network, layers, zfkit.deconv.Options("gradient"))
        unit = torch.tensor([0]), torch.tensor([1]), torch.tensor([[5, 6]])
        pixels, window = deconvnet.reverse(deconvnet.forward(x.clone()), "last", *unit)
        torch.testing.assert_close(zfkit.deconv.paste(pixels, window.origin, (12, 12)), alone)


@pytest.mark.parametrize(
    "operation, word",
    [
        (nn.BatchNorm2d(4, track_running_stats=False), "batch"),
        (lambda n, y: F.batch_norm(y, None, None, training=True), "batch"),
    ],
)
def test_what_depends_on_the_batch_is_refused(operation, word):
    model = wrapped(Around(operation))
    with pytest.raises(LayerError, match=word):
        zfkit.project(model, torch.zeros(2, 3, 12, 12, dtype=F64), "last", 0, (5, 5))


def test_tokens_are_no_units():
    model = wrapped(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Linear(100, 5)))
    with pytest.raises(LayerError, match=r"'1' gives tensors of shape \(4, 100\)"):
        zfkit.project(model, torch.zeros(1, 3, 12, 12, dtype=F64), "1", 0)


def test_what_relu6_caps_goes_back_by_the_deconvnet_alone():
    """Inputs -1, 3, 6.5 and 9 through ReLU6: its gradient is 0, 1, 0, 0, and the deconvnet looks at no input."""
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU6(), nn.Conv2d(3, 1, 1)).double()
    for conv in (net[0], net[2]):
        conv.weight.data, conv.bias.data = torch.zeros_like(conv.weight), torch.zeros_like(conv.bias)
        conv.weight.data[range(len(conv.weight)), range(len(conv.weight))] = 1
    x = torch.tensor([-1.0, 3, 6.5, 9], dtype=F64).expand(1, 3, 1, 4).contiguous()
    model = zfkit.wrap_model(net, mean=0, scale=1, input_size=4, name="capped")
    for rule, back in (("gradient", [0, 1, 0, 0]), ("guided", [0, 1, 0, 0]), ("deconvnet", [1, 1, 1, 1])):
        found = [float(zfkit.project(model, x, "2", 0, (0, i), rule=rule)[0, 0, 0, i]) for i in range(4)]
        assert found == back, rule
