"""Variants of the paper's networks: blur before every subsampling, layers left out, other widths."""

import json
import math
import re
from dataclasses import replace

import literal
import numpy as np
import pytest
import torch
from boxes import assert_boxes_are_what_units_see
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_close
from torch import nn

import zfkit
from zfkit.errors import ModelError
from zfkit.nets import Architecture, BlurPool, build
from zfkit.nets.paper import ARCHITECTURES
from zfkit.nets.zoo import describe

F64 = torch.float64
TAPS = {3: [1 / 4, 2 / 4, 1 / 4], 5: [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]}
TINY = Architecture("zfnet", 32, (7, 2, 1), (5, 1, 2), widths=(4, 5, 6, 7, 8), hidden=9, classes=3)
# As the full networks are, but with few maps: stride 2 and 2, and stride 4 and 1 with a pool that does not stride.
SMALL = {
    "zfnet": Architecture("zfnet", 64, (7, 2, 1), (5, 2, 0), widths=(3, 4, 5, 4, 3), hidden=5, classes=4),
    "alexnet": Architecture("alexnet", 64, (11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 4, 5, 4, 3), 5, 4),
}


def lively(architecture, seed=0):
    """Untrained, in float64, with weights and biases that keep signals alive through all layers."""
    torch.manual_seed(seed)
    net = build(architecture).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, 1.5 / math.sqrt(p[0].numel()) if p.dim() > 1 else 0.3)
    return net


def wrap(net, size=64):
    return zfkit.wrap_model(net, mean=0.0, scale=1 / 64, input_size=size)


def sides(net, height, width):
    """Rows and columns of every layer's output."""
    first = next(net.parameters())
    x, found = torch.empty(1, 3, height, width, dtype=first.dtype, device=first.device), {}
    for name, module in net.named_children():
        if name == "flatten":
            break
        x = module(x)
        found[name] = tuple(x.shape[2:])
    return found


# ---------------------------------------------------------------------------------------------- the blur layer


class LiteralBlur:
    """Each map by itself: the sum of taps[a] taps[b] times the place (stride i - padding + a, ...), 0 outside."""

    def __init__(self, module):
        self.taps, self.stride = TAPS[module.kernel_size], module.stride
        self.padding, self.ceil_mode = module.padding, module.ceil_mode

    def side(self, n):
        steps = (n + 2 * self.padding - len(self.taps)) / self.stride
        return (math.ceil(steps) if self.ceil_mode else math.floor(steps)) + 1

    def places(self, i, j, shape):
        for a, u in enumerate(self.taps):
            for b, v in enumerate(self.taps):
                row, column = self.stride * i - self.padding + a, self.stride * j - self.padding + b
                if 0 <= row < shape[1] and 0 <= column < shape[2]:
                    yield u * v, row, column

    def forward(self, x):
        y = np.zeros((len(x), self.side(x.shape[1]), self.side(x.shape[2])))
        for i, j in np.ndindex(y.shape[1:]):
            for share, row, column in self.places(i, j, x.shape):
                y[:, i, j] += share * x[:, row, column]
        return y, x.shape

    def back(self, R, shape):
        back = np.zeros(shape)
        for i, j in np.ndindex(R.shape[1:]):
            for share, row, column in self.places(i, j, shape):
                back[:, row, column] += share * R[:, i, j]
        return back


@given(st.data())
def test_the_blur_is_its_formula(data):
    number = st.integers
    taps, stride = data.draw(st.sampled_from([3, 5])), data.draw(number(1, 4))
    blur = BlurPool(
        taps, stride, data.draw(st.sampled_from([None, *range(taps // 2 + 1)])), data.draw(st.booleans())
    )
    x = torch.randn(1, 2, data.draw(number(taps, 11)), data.draw(number(taps, 11)), dtype=F64)
    expected = np.stack([LiteralBlur(blur).forward(image.numpy())[0] for image in x])
    assert_close(blur(x), expected, 1e-13)
    assert_close(blur(x.contiguous(memory_format=torch.channels_last)), expected, 1e-13)


@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize("frequency", [0, 1 / 16, 1 / 4, 1 / 2])
def test_it_passes_cosine_to_the_power_of_taps_minus_one(taps, frequency):
    wave = torch.cos(2 * math.pi * frequency * torch.arange(64, dtype=F64)).expand(1, 1, 64, 64)
    passed = BlurPool(taps, 1)(wave)[0, 0, 4:-4, 4:-4]
    assert_close(passed + 1, math.cos(math.pi * frequency) ** (taps - 1) * wave[0, 0, 4:-4, 4:-4] + 1, 1e-12)


def test_it_is_not_trained_and_not_stored():
    blur = BlurPool(5)
    assert list(blur.parameters()) == [] and blur.state_dict() == {}
    assert blur.kernel.sum() == 1 and blur.to(F64).kernel.dtype == F64


def test_other_taps_are_refused():
    with pytest.raises(ModelError, match="a blur has 3 or 5 taps, not 4"):
        BlurPool(4)


# ----------------------------------------------------------------------------------------- networks with blur

BLURRED = [("zfnet64", 3), ("alexnet64", 5), ("zfnet224", 5), ("alexnet224", 3)]
SUBSAMPLED = {  # what has a stride in the paper's networks; alexnet64's pool2 has none
    "zfnet64": ["conv1", "pool1", "pool2", "pool5"], "alexnet64": ["conv1", "pool1", "pool5"],
    "zfnet224": ["conv1", "pool1", "conv2", "pool2", "pool5"], "alexnet224": ["conv1", "pool1", "pool2", "pool5"],
}  # fmt: skip


def on_meta(architecture):
    with torch.device("meta"):
        return build(architecture).eval()


@pytest.mark.parametrize("name, blur", BLURRED)
def test_every_subsampling_has_its_blur_and_maps_keep_their_sides(name, blur):
    plain, blurred = on_meta(ARCHITECTURES[name]), on_meta(replace(ARCHITECTURES[name], blur=blur))
    expected = [n.replace("conv", "blur").replace("pool", "blurpool") for n in SUBSAMPLED[name]]
    modules = dict(blurred.named_children())
    assert [n for n, m in modules.items() if isinstance(m, BlurPool)] == expected
    for n, module in modules.items():
        stride = getattr(module, "stride", 1)
        strides = stride if isinstance(stride, tuple) else (stride, stride)
        asked = dict(plain.named_children())[n.replace("blurpool", "pool").replace("blur", "conv")]
        if isinstance(module, BlurPool):
            assert module.kernel_size == blur and strides in (asked.stride, (asked.stride,) * 2)
        else:
            assert strides == (1, 1)
    order = list(modules)
    for n in SUBSAMPLED[name]:  # convolution, ReLU, blur; maximum, blur
        after = [f"relu{n[-1]}", f"blur{n[-1]}"] if n.startswith("conv") else [f"blurpool{n[-1]}"]
        assert order[order.index(n) + 1 :][: len(after)] == after
    size = ARCHITECTURES[name].input_size
    assert_sides_agree(plain, blurred, size, size)
    # 62,357,608 of zfnet224, with and without: blurs have none
    assert sum(p.numel() for p in blurred.parameters()) == sum(p.numel() for p in plain.parameters())


def assert_sides_agree(plain, blurred, height, width):
    without, with_blur = sides(plain, height, width), sides(blurred, height, width)
    for layer, side in without.items():
        kind, n = layer[:-1], layer[-1]
        if kind in ("conv", "relu") and f"blur{n}" in with_blur:
            layer = f"blur{n}"
        elif kind == "pool" and f"blurpool{n}" in with_blur:
            layer = f"blurpool{n}"
        assert with_blur[layer] == side, layer


@given(
    st.sampled_from(list(SMALL.values())), st.sampled_from([3, 5]), st.integers(64, 140), st.integers(64, 140),
    st.sampled_from([(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 3, 0), (4, 2, 2), (5, 3, 1), (5, 2, 0)]),
)  # fmt: skip
def test_maps_keep_their_sides_for_pictures_of_any_size(architecture, blur, height, width, pool2):
    architecture = replace(architecture, pool2=pool2, input_size=96)
    assert_sides_agree(on_meta(architecture), on_meta(replace(architecture, blur=blur)), height, width)


@pytest.mark.parametrize("name, blur", BLURRED)
def test_units_stay_where_they_were(name, blur):
    """Receptive fields grow by the blur, evenly on both sides."""
    plain, blurred = (
        zfkit.wrap_model(build(replace(ARCHITECTURES[name], hidden=1, classes=1, blur=b)), mean=0, scale=1,
                         input_size=ARCHITECTURES[name].input_size)
        for b in (0, blur)
    )  # fmt: skip
    for layer in ("norm1", "norm2", "conv2", "conv3", "conv5"):
        if layer in ("conv2",) and name == "zfnet224":
            continue  # there it has lost its stride to blur2
        a, b = zfkit.receptive_field(plain, layer), zfkit.receptive_field(blurred, layer)
        assert b.stride == a.stride and b.size > a.size
        assert b.offset + b.size / 2 == a.offset + a.size / 2
    # conv1 with 7 or 11 taps; a blur of its stride-1 map adds taps - 1 px, that of the pool as many strides of conv1
    field = zfkit.receptive_field(blurred, "norm1")
    kernel, stride, _ = ARCHITECTURES[name].conv1
    assert field.size == kernel + (blur - 1) + stride * (2 + blur - 1)


@pytest.mark.parametrize("blur", [3, 5])
def test_pool_and_blur_are_the_blurred_maxima_read_where_the_pool_has_its_windows(blur):
    """Even and odd sides: the pool's last window may stick out, and is blurred as the others are."""
    net = lively(replace(TINY, blur=blur))
    for side in (9, 10):
        x = torch.rand(1, 1, side, side, dtype=F64)
        maximum = {
            (i, j): x[0, 0, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].max()
            for i in range(side)
            for j in range(side)
        }
        reach = range(-(blur // 2), blur // 2 + 1)
        expected = [
            [
                sum(
                    TAPS[blur][a + blur // 2] * TAPS[blur][b + blur // 2] * maximum.get((i + a, j + b), 0)
                    for a in reach
                    for b in reach
                )
                for j in range(1, side, 2)  # centres of the windows 0-2, 2-4, ...
            ]
            for i in range(1, side, 2)
        ]
        assert_close(net.blurpool1(net.pool1(x))[0, 0], torch.tensor(expected), 1e-12)


@pytest.mark.parametrize("family", SMALL)
def test_weights_of_a_network_fit_the_same_with_blur(family):
    plain, blurred = lively(SMALL[family]), build(replace(SMALL[family], blur=3))
    blurred.load_state_dict(plain.state_dict(), strict=True)
    torch.manual_seed(7)
    a = build(SMALL[family])
    torch.manual_seed(7)
    b = build(replace(SMALL[family], blur=5))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_blurs_are_layers_but_there_is_nothing_to_mine_in_them():
    model = wrap(lively(replace(SMALL["zfnet"], blur=3)))
    assert model.layers[:6] == ("conv1", "relu1", "blur1", "pool1", "blurpool1", "norm1")
    assert model.conv_layers == ("conv1", "conv2", "conv3", "conv4", "conv5")


def test_fingerprints_tell_blurs_apart():
    nets = [lively(replace(SMALL["zfnet"], blur=blur)) for blur in (0, 3, 5)]
    assert len({wrap(net).fingerprint() for net in nets}) == 3


# ------------------------------------------------------------------- receptive fields, projections, cut-outs


@pytest.mark.parametrize("family, blur, layer", [
    ("zfnet", 3, "conv2"), ("alexnet", 5, "blurpool1"),
])  # fmt: skip
def test_a_box_is_what_a_unit_behind_blurs_sees(family, blur, layer):
    a = SMALL[family]
    a = replace(a, blur=blur, conv1=(3, *a.conv1[1:]), conv2=(3, 1, 1), widths=(1, 1, 1, 1, 1))
    whole = build(a)
    whole.conv1 = nn.Conv2d(1, 1, 3, 1, a.conv1[2])
    stop = list(dict(whole.named_children())).index(layer)
    net = whole[: stop + 1].double()
    for name, module in list(net.named_children()):
        if isinstance(module, nn.Conv2d):
            module.bias = None
        elif isinstance(module, nn.LocalResponseNorm):
            setattr(net, name, nn.Identity())
    assert assert_boxes_are_what_units_see(net, layer, 42, 44) > 0


@pytest.mark.parametrize("family, blur", [("zfnet", 3), ("alexnet", 5)])
def test_projections_equal_the_literal_deconvnet(family, blur):
    small = {"zfnet": ((5, 2, 1), (3, 2, 1)), "alexnet": ((5, 4, 2), (3, 1, 1))}[family]
    net = lively(replace(SMALL[family], conv1=small[0], conv2=small[1], input_size=33, blur=blur), seed=4)
    model, x = wrap(net, 33), torch.randn(2, 3, 33, 33, dtype=F64, generator=torch.Generator().manual_seed(1))
    names = list(dict(net.named_children()))
    chain = [
        LiteralBlur(m) if isinstance(m, BlurPool) else literal.layers_of([m])[0]
        for m in net[: names.index("fc6") + 1]
    ]
    for layer in ("blur1", "blurpool1", "fc6"):
        layers = chain[: names.index(layer) + 1]
        shape = sides(net, 33, 33).get(layer)
        units = [(2,), (1,)] if shape is None else [(2, 0, shape[1] - 1), (1, shape[0] // 2, shape[1] // 3)]
        places = None if shape is None else [u[1:] for u in units]
        found = zfkit.project(model, x, layer, [u[0] for u in units], places)
        for image, unit, pixels in zip(x, units, found, strict=True):
            expected = literal.deconvnet(layers, image.numpy(), unit)
            assert np.abs(expected).max() > 0
            assert_close(pixels, expected)


@pytest.mark.parametrize("rule", ["gradient", "guided"])
def test_the_other_rules_equal_autograd(rule):
    net = lively(replace(SMALL["zfnet"], blur=3))
    x = torch.randn(2, 3, 70, 66, dtype=F64, generator=torch.Generator().manual_seed(1))

    def guide(module, R_in, R_out):
        return (R_in[0].clamp(min=0),)

    hooks = [m.register_full_backward_hook(guide) for m in net if isinstance(m, nn.ReLU) and rule == "guided"]
    source = x.clone().requires_grad_(True)
    upto = net[: list(dict(net.named_children())).index("conv5") + 1]
    (expected,) = torch.autograd.grad(upto(source)[[0, 1], [2, 1], [0, 1], [1, 0]].sum(), source)
    for hook in hooks:
        hook.remove()
    found = zfkit.project(wrap(net), x, "conv5", [2, 1], [(0, 1), (1, 0)], rule=rule, lrn="gradient")
    assert_close(found, expected)


def test_mined_units_are_projected_from_crops_as_from_whole_pictures():
    model = wrap(lively(replace(SMALL["alexnet"], blur=3)))
    photos = zfkit.load_images("photos", size=96, limit=3)
    top = zfkit.mine(model, photos, k=1)
    assert tuple(top.layers) == model.conv_layers
    for layer in ("conv1", "conv2"):
        patches = zfkit.project_top(model, photos, top, layer)
        for c in range(len(patches.channels)):
            image, row, col = (int(t[c, 0]) for t in (patches.image, patches.row, patches.col))
            x = model.preprocess(photos[image][0])
            with torch.no_grad():
                maps = model.net[: list(dict(model.net.named_children())).index(layer) + 1](x)
            assert math.isclose(float(patches.value[c, 0]), float(maps[0, c].max()), rel_tol=1e-6)
            whole = zfkit.project(model, x, layer, c, (row, col))[0]
            left, top_, right, bottom = (int(v) for v in patches.box[c, 0])
            expected = torch.zeros_like(patches.projection[c, 0])
            t, lft, b, r = max(0, top_), max(0, left), min(96, bottom), min(96, right)
            expected[:, t - top_ : b - top_, lft - left : r - left] = whole[:, t:b, lft:r]
            assert_close(patches.projection[c, 0], expected)


# -------------------------------------------------------------------------------------- layers left out

ABLATIONS = [("conv3", "conv4"), ("fc7",), ("fc6", "fc7"), ("conv3", "conv4", "fc6", "fc7")]  # Table 3


def counted_by_hand(a, last_side):
    """Weights and biases, layer by layer, from the widths that stand."""
    kept = [n for n in (1, 2, 3, 4, 5) if f"conv{n}" not in a.without]
    kernel = {1: a.conv1[0], 2: a.conv2[0], 3: 3, 4: 3, 5: 3}
    count, inputs = 0, 3
    for n in kept:
        outputs = a.widths[n - 1]
        count += outputs * (inputs * kernel[n] ** 2 + 1)
        inputs = outputs
    inputs *= last_side**2
    for n in (6, 7):
        if f"fc{n}" not in a.without:
            count += a.hidden * (inputs + 1)
            inputs = a.hidden
    return count + a.classes * (inputs + 1)


@pytest.mark.parametrize("name", ["zfnet224", "alexnet224", "zfnet64", "alexnet64"])
def test_parameters_of_networks_and_variants_are_counted_by_hand(name):
    for changes in (
        {}, *({"without": layers} for layers in ABLATIONS), {"hidden": 2048},
        {"widths": (96, 256, 512, 1024, 512)}, {"blur": 3, "without": ("conv4", "fc6")},
    ):  # fmt: skip
        a = replace(ARCHITECTURES[name], **changes)
        last = 6 if a.input_size == 224 else 3
        assert sum(p.numel() for p in on_meta(a).parameters()) == counted_by_hand(a, last), changes


def test_parameters_of_the_papers_variants():
    """Numbers worked out on paper for 224 px and 1000 classes: 9216 inputs to the first connected layer."""
    conv = [14_208, 614_656, 885_120, 1_327_488, 884_992]  # 96(3*49+1) 256(96*25+1) 384(256*9+1) ...
    fc6, fc7, fc8 = 37_752_832, 16_781_312, 4_097_000
    whole = sum(conv) + fc6 + fc7 + fc8
    assert whole == 62_357_608
    expected = {
        (): whole,
        ("conv3", "conv4"): whole - sum(conv[2:]) + 256 * (256 * 9 + 1),
        ("fc7",): whole - fc7,
        ("fc6", "fc7"): sum(conv) + 9_217_000,
        ("conv3", "conv4", "fc6", "fc7"): sum(conv[:2]) + 590_080 + 9_217_000,
    }
    for layers, count in expected.items():
        a = replace(ARCHITECTURES["zfnet224"], without=layers)
        assert sum(p.numel() for p in on_meta(a).parameters()) == count, layers


@pytest.mark.parametrize("layers", ABLATIONS)
def test_what_is_left_out_goes_with_its_relu_and_dropout(layers):
    whole = [n for n, _ in on_meta(SMALL["zfnet"]).named_children()]
    numbers = {name[-1] for name in layers}
    net = lively(replace(SMALL["zfnet"], without=layers))
    assert [n for n, _ in net.named_children()] == [n for n in whole if n[-1] not in numbers]
    x = torch.randn(2, 3, 64, 64, dtype=F64)
    y = x
    for module in net.children():
        y = module(y)
    assert torch.equal(net(x), y) and y.shape == (2, 4)
    model = wrap(net)
    assert zfkit.project(model, x, "fc8", 1).abs().max() > 0


# ------------------------------------------------------------------------------------------ files and errors

VARIANTS = [{"blur": 3}, {"blur": 5, "without": ("fc6",)}, {"without": ("conv3", "conv4", "fc6", "fc7")}]


@pytest.mark.parametrize("changes", VARIANTS)
def test_variants_come_back_from_their_files(changes, tmp_path):
    a = replace(TINY, **changes)
    torch.manual_seed(0)
    net = build(a).eval()
    provenance = {"architecture": describe(a), "classes": ["cat", "dog", "eel"]}
    path = zfkit.save_weights(tmp_path / "net.safetensors", net.state_dict(), provenance, torch.float32)
    tensors, told = zfkit.nets.load_weights(path)
    assert set(tensors) == {n for n, _ in net.named_parameters()}
    assert told["architecture"] == json.loads(json.dumps(describe(a)))
    model = zfkit.load_model(path, device="cpu")
    assert model.net.architecture == a
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.net(x), net(x))


def test_files_from_before_there_were_variants_are_read(tmp_path):
    torch.manual_seed(0)
    net = build(TINY)
    told = {k: v for k, v in describe(TINY).items() if k not in ("blur", "without")}
    path = zfkit.save_weights(tmp_path / "old.safetensors", net.state_dict(), {"architecture": told})
    assert zfkit.load_model(path, device="cpu").net.architecture == TINY
    bundled = zfkit.load_model("zfnet64", device="cpu").net.architecture
    assert (bundled.blur, bundled.without) == (0, ())


@pytest.mark.parametrize("changes, message", [
    ({"family": "vgg"}, "there is no family 'vgg'"),
    ({"blur": 4}, "blur must be 0 (none), 3 (1-2-1) or 5 (1-4-6-4-1) taps, not 4"),
    ({"blur": True}, "taps, not True"),
    ({"without": ("conv6",)}, "there is no layer that can be left out 'conv6'. Did you mean 'conv4'"),
    ({"without": "fc7"}, "without must be a tuple of layers, such as ('fc7',), not 'fc7'"),
    ({"widths": (4, 5, 6)}, "widths must be five numbers, of conv1 to conv5, not (4, 5, 6)"),
    ({"widths": (4, 5, 6, 0, 8)}, "width of conv4 must be a whole number"),
    ({"hidden": 9.5}, "hidden must be a whole number"),
    ({"conv1": (7, 0, 1)}, "conv1 must be (kernel, stride, padding) in whole numbers, not (7, 0, 1)"),
    ({"conv2": 5}, "conv2 must be (kernel, stride, padding) in whole numbers, not 5"),
    ({"pool2": (3, 2, 2)}, "pool2 can be padded by half its kernel, 1, at most, not 2"),
    ({"pool2": (2, 3, 0), "blur": 3}, "pool2=(2, 3, 0) leaves gaps between its windows or pads them away"),
    ({"input_size": 4}, "nothing is left of the maps at conv1: its filter is larger than the 4 px it is given"),
    ({"input_size": 9, "blur": 5}, "nothing is left of the maps at"),
])  # fmt: skip
def test_what_makes_no_network_is_refused_in_a_sentence(changes, message):
    with pytest.raises(ModelError, match=re.escape(message)) as error:
        build(replace(TINY, **changes))
    assert "\n" not in str(error.value)
