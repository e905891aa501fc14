"""`receptive_field` against what really changes a unit, and against the numbers of the paper."""

import pytest
import torch
import torch.nn.functional as F
from boxes import assert_boxes_are_what_units_see
from hypothesis import given
from hypothesis import strategies as st
from tiny import image_set
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import zfkit
from zfkit.deconv.receptive_field import Box
from zfkit.errors import LayerError

# Receptive field and stride in pixels that follow from Fig. 3 of the paper, and from Krizhevsky's network.
ZFNET = {
    "conv1": (7, 2), "pool1": (11, 4), "conv2": (27, 8), "pool2": (43, 16), "conv3": (75, 16),
    "conv4": (107, 16), "conv5": (139, 16), "pool5": (171, 32),
}  # fmt: skip
ALEXNET = {
    "conv1": (11, 4), "pool1": (19, 8), "conv2": (51, 8), "pool2": (67, 16), "conv3": (99, 16),
    "conv4": (131, 16), "conv5": (163, 16), "pool5": (195, 32),
}  # fmt: skip


@pytest.mark.parametrize("name, numbers", [("zfnet224", ZFNET), ("alexnet224", ALEXNET)])
def test_sizes_and_strides_are_those_of_the_paper(name, numbers):
    model = zfkit.load_model(name, device="cpu")
    found = {layer: zfkit.receptive_field(model, layer) for layer in numbers}
    assert {layer: (field.size, field.stride) for layer, field in found.items()} == numbers
    # ReLU and contrast normalisation work on single positions.
    for layer, before in [("relu1", "conv1"), ("norm1", "pool1"), ("relu2", "conv2"), ("relu5", "conv5")]:
        assert zfkit.receptive_field(model, layer) == found[before]


def test_offsets_come_from_the_paddings():
    model = zfkit.load_model("zfnet224", device="cpu")
    # conv1 pads 1 px; conv3, conv4 and conv5 pad 1 position of 16 px each; pools and conv2 do not pad.
    offsets = {"conv1": -1, "pool1": -1, "conv2": -1, "pool2": -1, "conv3": -17, "conv4": -33, "conv5": -49}
    assert {layer: zfkit.receptive_field(model, layer).offset for layer in offsets} == offsets


def test_a_box_counts_pixels_and_may_stick_out():
    model = zfkit.load_model("zfnet224", device="cpu")
    assert zfkit.receptive_field(model, "conv1").box(0, 1) == Box(left=1, top=-1, right=8, bottom=6)
    left, top, right, bottom = zfkit.receptive_field(model, "conv5").box(row=12, col=0)
    assert (left, top) == (-49, 12 * 16 - 49)
    assert (right - left, bottom - top) == (139, 139)


# ------------------------------------------------------------------------------- what really changes a unit


@st.composite
def sliding_layers(draw):
    """One to three convolutions and pools with one channel, float64, small enough for an image of 16 px."""
    kernels, strides = st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(1, 3)
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        kernel, stride = draw(kernels), (draw(strides), draw(strides))
        dilation = draw(st.integers(1, 2))
        if draw(st.booleans()):
            padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
            layers.append(nn.Conv2d(1, 1, kernel, stride, padding, dilation, bias=False))
        else:
            padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
            layers.append(nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=draw(st.booleans())))
    layers.insert(0, nn.Conv2d(1, 1, 1, bias=False))  # wrap_model asks for a convolution
    return nn.Sequential(*layers).double()


@given(sliding_layers(), st.integers(15, 18), st.integers(15, 18))
def test_a_box_is_what_a_unit_sees(net, height, width):
    size = torch.zeros(1, 1, height, width, dtype=torch.float64)
    try:
        net(size)
    except RuntimeError:  # strides have left nothing for a later filter
        return
    assert_boxes_are_what_units_see(net, str(len(net) - 1), height, width)


def test_a_box_is_what_a_unit_sees_where_filters_differ_along_rows_and_columns():
    net = nn.Sequential(
        nn.Conv2d(1, 1, (3, 2), (2, 1), (1, 0), bias=False),
        nn.MaxPool2d((1, 3), (1, 2)),
        nn.Conv2d(1, 1, (2, 1), dilation=(2, 1), bias=False),
    ).double()
    assert assert_boxes_are_what_units_see(net, "2", 20, 24) > 20
    field = zfkit.receptive_field(zfkit.wrap_model(net, mean=0, scale=1, input_size=32), "2")
    # rows: 3, stride 2, then 2 of them 2 apart: 3 + 2 * 2; columns: 2, pooled by 3: 2 + 2
    assert (field.size, field.stride, field.offset) == (7, 2, -1)
    assert (field.columns.size, field.columns.stride, field.columns.low) == (4, 2, 0)


class Branches(nn.Module):
    """A wide and a narrow way over the image, added or put side by side."""

    def __init__(self, join):
        super().__init__()
        self.wide = nn.Conv2d(1, 1, 5, 2, 1, bias=False)
        self.narrow = nn.Conv2d(1, 1, 3, 2, 0, bias=False)
        self.last = nn.Conv2d(2 if join == "cat" else 1, 1, 3, bias=False)
        self.join = join

    def forward(self, x):
        a, b = self.wide(x), self.narrow(x)
        return self.last(torch.cat([a, b], 1) if self.join == "cat" else a + b)


@pytest.mark.parametrize("join", ["add", "cat"])
def test_branches_see_what_any_of_them_sees(join):
    assert assert_boxes_are_what_units_see(Branches(join).double(), "last", 21, 23) > 20


class Mixed(nn.Module):
    """The sum of two ways over the image with different strides: unit for unit they drift apart."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Conv2d(1, 1, 4, padding=1, bias=False)
        self.coarse = nn.Conv2d(1, 1, 2, stride=2, bias=False)
        self.spread = nn.MaxPool2d(2, 1, 1)
        self.last = nn.Conv2d(1, 1, 1, bias=False)

    def forward(self, x):
        return self.last(self.fine(x)[:, :, :9, :9] + self.spread(self.coarse(x)))


def test_where_branches_drift_apart_the_field_is_the_whole_image():
    field = zfkit.receptive_field(zfkit.wrap_model(Mixed(), mean=0.0, scale=1.0, input_size=16), "last")
    assert field.box(0, 0) == field.box(8, 8) == Box(0, 0, 16, 16)


# ------------------------------------------------------------------------- fields that are the whole image


@pytest.mark.parametrize("layer", ["fc6", "relu7", "fc8"])
def test_connected_layers_see_the_whole_image(layer):
    field = zfkit.receptive_field(zfkit.load_model("zfnet64", device="cpu"), layer)
    assert (field.size, field.stride, field.offset) == (64, 0, 0)
    assert field.box(0, 0) == Box(0, 0, 64, 64)


def test_averages_over_the_whole_map_see_the_whole_image():
    net = nn.Sequential(nn.Conv2d(1, 1, 3), nn.AdaptiveAvgPool2d(1))
    model = zfkit.wrap_model(net, mean=0.0, scale=1.0, input_size=20)
    assert zfkit.receptive_field(model, "1").box(0, 0) == Box(0, 0, 20, 20)


def test_an_unknown_layer_is_named_and_the_nearest_offered():
    model = zfkit.load_model("zfnet64", device="cpu")
    with pytest.raises(LayerError, match=r"no layer 'convl'\. Did you mean 'conv"):
        zfkit.receptive_field(model, "convl")


# ------------------------------------------------------------------- operations around the convolutions


def around(*operations, channels=4):
    layers = [nn.Conv2d(3, 4, 3, padding=1), *operations, nn.Conv2d(channels, 2, 3, padding=1)]
    return zfkit.wrap_model(nn.Sequential(*layers).double(), mean=0.0, scale=1.0, input_size=24)


class Swap(nn.Module):
    def forward(self, x):
        return F.silu(x[:, [2, 1, 0, 3]].flip(1)) * 2 - 1


KNOWN = {  # size, stride, offset worked out by hand
    "LeakyReLU": ([nn.LeakyReLU(0.1)], 4, (5, 1, -2)),
    "channels swapped, SiLU, affine": ([Swap()], 4, (5, 1, -2)),
    "frozen norm": ([FrozenBatchNorm2d(4)], 4, (5, 1, -2)),
    "zero padding": ([nn.ZeroPad2d((3, 0, 3, 0))], 4, (5, 1, -5)),
    "pixel unshuffle": ([nn.PixelUnshuffle(2)], 16, (8, 2, -3)),
    "channel shuffle": ([nn.ChannelShuffle(2)], 4, (5, 1, -2)),
    "pool and upsample": ([nn.MaxPool2d(2), nn.Upsample(scale_factor=2)], 4, (7, 1, -3)),
    "pool and transposed convolution": ([nn.MaxPool2d(2), nn.ConvTranspose2d(4, 4, 2, 2)], 4, (7, 1, -3)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_extents_of_what_stands_between_convolutions(name):
    operations, channels, expected = KNOWN[name]
    model = around(*operations, channels=channels)
    last = model.layers[-1]
    field = zfkit.receptive_field(model, last)
    assert (field.size, field.stride, field.offset) == expected and not field.measured
    # Every pixel with an influence lies in the box, and for some unit the outermost ones have one.
    x = torch.randn(
        1, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    y = model.net(x)
    tight = False
    for row, col in [(5, 5), (6, 7), (7, 6)]:
        pixels = (
            torch.autograd.grad(y[0, :, row, col].sum(), x, retain_graph=True)[0][0].abs().sum(0).nonzero()
        )
        (top, left), (bottom, right) = pixels.min(0).values.tolist(), (pixels.max(0).values + 1).tolist()
        box = field.box(row, col)
        assert box.left <= left and box.top <= top and box.right >= right and box.bottom >= bottom
        tight |= box.left == left or box.right == right
    assert tight


class ChannelsLast(nn.Module):
    """LayerNorm over the channels, as in ConvNeXt: axes wander, which the extents do not follow."""

    def forward(self, x):
        return F.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2)


def test_an_unknown_extent_is_measured_and_that_is_said():
    field = zfkit.receptive_field(around(ChannelsLast(), nn.MaxPool2d(2, 2)), "3")
    assert field.measured and (field.size, field.stride, field.offset) == (8, 2, -3)


class Ranks(nn.Module):
    def forward(self, x):
        return x.argsort(2).to(x.dtype)


def test_the_field_behind_an_operation_without_gradient_is_the_whole_picture():
    assert zfkit.receptive_field(around(Ranks()), "2").stride == 0  # noise cannot measure it


def test_what_sees_the_whole_picture_is_named_where_units_inside_are_asked_for():
    model = around(nn.GroupNorm(2, 4))
    assert zfkit.receptive_field(model, "2").stride == 0
    pictures = image_set(torch.randint(256, (4, 3, 24, 24), dtype=torch.uint8))
    with pytest.raises(LayerError, match=r"'2' see the whole picture, through 'GroupNorm' at '1'.*inside"):
        zfkit.mine(model, pictures, ["2"], k=2, inside=True, progress=False)
