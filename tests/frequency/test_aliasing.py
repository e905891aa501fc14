"""Aliasing, gratings and shifts: signals whose fate under subsampling is known in closed form."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zfkit
import zfkit.frequency.aliasing as aliasing
from zfkit import ZfkitError
from zfkit.errors import LayerError
from zfkit.frequency.aliasing import measure_aliasing
from zfkit.frequency.gratings import fold, grating_response, gratings, wave
from zfkit.frequency.shifts import shift_consistency
from zfkit.nets import BlurPool

F64 = torch.float64


def wrap(*layers, size=32, mean=0.0, scale=1.0):
    return zfkit.wrap_model(nn.Sequential(*layers).double(), mean=mean, scale=scale, input_size=size)


def same(channels=3, outputs=1, stride=1):
    """A 1x1 convolution that hands on the mean of its channels."""
    conv = nn.Conv2d(channels, outputs, 1, stride, bias=False)
    nn.init.constant_(conv.weight, 1 / channels)
    return conv


def grey(pictures):
    """(N, H, W) as uint8 pictures."""
    return torch.as_tensor(pictures).round().clamp(0, 255).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)


def noise(n, size, seed=0):
    return torch.randint(0, 256, (n, 1, size, size), generator=torch.Generator().manual_seed(seed)).expand(
        -1, 3, -1, -1
    ).to(torch.uint8)  # fmt: skip


def checkerboard(size=64, low=20, high=220):
    y, x = np.indices((size, size))
    return grey(np.where((x + y) % 2, high, low)[None])


# ------------------------------------------------------------------------------------------------- gratings


def test_a_grating_is_its_formula_pixel_by_pixel():
    f, angle, phase, contrast, colour = 0.17, 33.0, 0.4, 0.8, (1.0, -0.5, 0.25)
    picture = gratings(f, angle, phase, size=(5, 7), contrast=contrast, colour=colour, dtype=F64)
    assert picture.shape == (1, 3, 5, 7)
    fx, fy = f * math.cos(math.radians(angle)), f * math.sin(math.radians(angle))
    for c in range(3):
        for y in range(5):
            for x in range(7):
                wanted = 127.5 * (
                    1 + contrast * colour[c] * math.cos(2 * math.pi * (fx * x + fy * y) + phase)
                )
                assert math.isclose(float(picture[0, c, y, x]), wanted, abs_tol=1e-9)


def test_zero_degrees_are_upright_stripes_and_ninety_level_ones():
    upright, level = gratings(0.2, [0, 90], size=8)
    assert (upright == upright[:, :1]).all() and not (upright == upright[:, :, :1]).all()
    assert torch.equal(level, upright.transpose(1, 2))


def test_lists_go_together_and_pixels_are_rounded():
    pictures = gratings([0.1, 0.2, 0.3], 45, [0, 1, 2], size=6)
    assert pictures.shape == (3, 3, 6, 6) and pictures.dtype == torch.uint8
    for i, f in enumerate([0.1, 0.2, 0.3]):
        exact = gratings(f, 45, i, size=6, dtype=F64)[0]
        assert (pictures[i].double() - exact).abs().max() <= 0.5
    assert pictures.amin() >= 0 and pictures.amax() <= 255


@pytest.mark.parametrize("options, message", [
    ({"contrast": 1.5}, "contrast goes from 0 to 1, not 1.5"),
    ({"colour": (1, 1)}, "colour must be three numbers from -1 to 1, for red, green and blue, not (1, 1)"),
    ({"colour": (2, 0, 0)}, "colour must be three numbers from -1 to 1"),
    ({"size": 0}, "size must be positive, in pixels, not 0"),
])  # fmt: skip
def test_gratings_that_are_no_pictures_are_refused(options, message):
    with pytest.raises(ZfkitError, match=re.escape(message)):
        gratings(0.1, **options)


# ------------------------------------------------------------------------------------------------- folding


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(-3, 3), st.integers(1, 8))
def test_a_folded_frequency_is_the_closed_form_and_cannot_be_told_from_the_first(f, stride):
    arrived = float(fold(f, stride))
    assert math.isclose(arrived, ((f + 1 / (2 * stride)) % (1 / stride)) - 1 / (2 * stride), abs_tol=1e-12)
    assert -1 / (2 * stride) - 1e-12 <= arrived <= 1 / (2 * stride) + 1e-12
    places = stride * np.arange(50)
    assert np.allclose(np.exp(2j * np.pi * f * places), np.exp(2j * np.pi * arrived * places), atol=1e-9)


@pytest.mark.parametrize("f, stride, arrives", [
    (0.1, 4, 0.1), (0.125, 4, -0.125), (0.2, 4, -0.05), (0.25, 4, 0.0), (0.4, 2, -0.1), (0.5, 2, 0.0), (-0.3, 2, 0.2),
])  # fmt: skip
def test_frequencies_worked_out_by_hand(f, stride, arrives):
    assert math.isclose(float(fold(f, stride)), arrives, abs_tol=1e-12)


# ------------------------------------------------------------------------------------- measured aliasing


def test_of_a_signal_below_the_limit_nothing_is_folded():
    pictures = gratings([0.02, 0.1, 0.2], [0, 30, 90], size=96)
    found = measure_aliasing(wrap(same(stride=2)), pictures, "0")
    assert found.layer_share < 2e-4  # rounding to whole grey levels is noise at all frequencies
    assert float(found.kept[0]) == pytest.approx(127.5**2 / 2, rel=0.02)


def test_of_a_checkerboard_at_stride_2_all_is_folded():
    found = measure_aliasing(wrap(same(stride=2)), checkerboard(), "0")
    assert found.layer_share == pytest.approx(1, abs=1e-12)
    assert float(found.folded[0]) == pytest.approx(
        100**2, rel=1e-6
    )  # it arrives as a constant: +-100 about its mean
    assert found.stride == (2, 2)


@pytest.mark.parametrize("stride, low, high", [(2, 0.125, 0.375), (4, 0.0625, 0.25), (3, 1 / 16, 3 / 16)])
def test_of_two_gratings_the_one_above_the_limit_is_folded(stride, low, high):
    a, b = 80, 40
    x = np.arange(192)
    row = 127.5 + a * np.cos(2 * np.pi * low * x) + b * np.cos(2 * np.pi * high * x + 1)
    # read at every place of the period, so that the energy of what arrives does not hang on where it is read
    pictures = grey(np.stack([np.tile(np.roll(row, s)[:, None], (1, 192)) for s in range(stride)]))
    found = measure_aliasing(wrap(same(stride=stride)), pictures, "0")
    assert found.layer_share == pytest.approx(b**2 / (a**2 + b**2), rel=1e-2)


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_of_white_noise_the_limits_square_is_kept(stride):
    found = measure_aliasing(wrap(same(stride=stride)), noise(24, 120), "0")
    assert found.layer_share == pytest.approx(1 - 1 / stride**2, abs=0.01)


def passed_by_blur(taps, stride, size=120):
    """Energy of white noise behind the blur, below and above the limit, over the frequencies of a map of this size."""
    f = np.fft.fftfreq(size)
    along = np.cos(np.pi * f) ** (2 * (taps - 1))  # |H|^2 along one axis
    everything, low = along.sum() ** 2, along[np.abs(f) <= 1 / (2 * stride)].sum() ** 2
    return low, everything - low


@pytest.mark.parametrize("taps, stride", [(3, 2), (5, 2), (5, 4)])
def test_behind_a_blur_what_is_folded_is_predicted_by_its_frequency_response(taps, stride):
    found = measure_aliasing(wrap(same(), BlurPool(taps, stride)), noise(24, 120), "1")
    low, high = passed_by_blur(taps, stride)
    assert found.layer_share == pytest.approx(high / (low + high), abs=0.006)
    assert found.layer_share < 0.7 * (1 - 1 / stride**2)


def literal_share(dense, stride):
    """Per map, with the Fourier transform written out, and its parts read at every s-th place."""
    h, w = dense.shape[1:]
    hann = [np.array([math.sin(math.pi * (i + 1) / (n + 1)) ** 2 for i in range(n)]) for n in (h, w)]
    window = hann[0][:, None] * hann[1]
    waves = [np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) for n in (h, w)]
    high = [np.array([min(k, n - k) * stride > n / 2 for k in range(n)]) for n in (h, w)]
    shares = []
    for m in dense:
        r = (m - (m * window).sum() / window.sum()) * window
        R = waves[0] @ r @ waves[1]
        parts = []
        for chosen in (~(high[0][:, None] | high[1]), high[0][:, None] | high[1]):
            part = (np.conj(waves[0]) @ (R * chosen) @ np.conj(waves[1])).real / (h * w)
            parts.append((part[::stride, ::stride] ** 2).sum())
        shares.append(parts[1] / sum(parts))
    return shares


@pytest.mark.parametrize("kind", ["strided", "grouped and dilated", "pool", "average"])
def test_shares_of_filters_equal_the_literal_ones(kind):
    torch.manual_seed(3)
    layers = {
        "strided": [nn.Conv2d(3, 4, 5, 3, 2)],
        "grouped and dilated": [nn.Conv2d(3, 6, 3, 2, 1, dilation=2, groups=3)],
        "pool": [nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, ceil_mode=True)],
        "average": [nn.Conv2d(3, 4, 3), nn.AvgPool2d(2, 2)],
    }[kind]
    model, pictures = wrap(*layers), noise(1, 37, seed=5)
    x = model.preprocess(pictures)[0].numpy()
    last = layers[-1]
    with torch.no_grad():
        before = model.net[:-1](torch.as_tensor(x)[None])[0].numpy()
    dense = np.stack(dense_maps(last, before))
    found = measure_aliasing(model, pictures, str(len(layers) - 1))
    expected = literal_share(dense, last.stride if isinstance(last.stride, int) else last.stride[0])
    assert np.allclose(found.share, expected, rtol=1e-9)
    table = found.table()
    assert table["channel"].tolist() == list(range(len(expected)))
    assert np.allclose(table["folded"] / (table["kept"] + table["folded"]), expected)


def dense_maps(module, x):
    """Every window of the layer at every place, one after the other."""
    k = module.kernel_size if isinstance(module.kernel_size, int) else module.kernel_size[0]
    p = module.padding if isinstance(module.padding, int) else module.padding[0]
    d = module.dilation[0] if isinstance(module, nn.Conv2d) else 1
    x = np.pad(x, ((0, 0), (p, p), (p, p)))
    side = x.shape[1] - d * (k - 1)
    outputs = module.out_channels if isinstance(module, nn.Conv2d) else len(x)
    y = np.zeros((outputs, side, side))
    for o, i, j in np.ndindex(y.shape):
        cut = x[:, i : i + d * (k - 1) + 1 : d, j : j + d * (k - 1) + 1 : d]
        if isinstance(module, nn.Conv2d):
            per = module.in_channels // module.groups
            first = o // (module.out_channels // module.groups) * per
            weight = module.weight[o].detach().numpy()
            y[o, i, j] = (weight * cut[first : first + per]).sum() + float(module.bias[o].detach())
        else:
            y[o, i, j] = cut[o].max() if isinstance(module, nn.MaxPool2d) else cut[o].mean()
    return y


@pytest.mark.parametrize("layer", ["conv1", "relu1", "pool1", "norm1", "pool2", "pool5"])
def test_run_with_stride_1_a_layer_gives_in_between_what_it_gave_before(layer):
    model = zfkit.load_model("zfnet64", device="cpu")
    x = model.preprocess(noise(2, 97))
    with torch.no_grad():
        names = list(model.layers)
        strided = model.net[: names.index(layer) + 1](x)
        dense = aliasing._Subsampler.of(model, layer).dense(model, x)[:, :, ::2, ::2]
    h, w = (min(a, b) for a, b in zip(strided.shape[2:], dense.shape[2:], strict=True))
    assert torch.allclose(
        dense[:, :, :h, :w], strided[:, :, :h, :w], rtol=1e-4, atol=1e-4 * strided.abs().max()
    )
    assert h >= strided.shape[2] - 1  # a ceil-mode pool's last window sticks out
    assert model.net.conv1.stride == (2, 2) and model.net.pool1.stride == 2  # as it was


def test_layers_that_subsample_are_listed_in_branching_networks_too():
    resnet = zfkit.load_model("torchvision:resnet18", weights=None, device="cpu")
    assert aliasing.subsampling_layers(resnet) == {
        "conv1": (2, 2), "maxpool": (2, 2), "layer2.0.conv1": (2, 2), "layer2.0.downsample.0": (2, 2),
        "layer3.0.conv1": (2, 2), "layer3.0.downsample.0": (2, 2), "layer4.0.conv1": (2, 2),
        "layer4.0.downsample.0": (2, 2),
    }  # fmt: skip
    found = measure_aliasing(resnet, noise(2, 64), "layer2.0.downsample.0")  # 1x1 with stride 2, over ReLUs
    assert found.share.shape == (128,) and 0.3 < found.layer_share < 0.9


def test_filters_that_do_not_answer_have_no_share():
    conv = nn.Conv2d(3, 2, 1, 2, bias=False)
    nn.init.constant_(conv.weight, 1.0)
    conv.weight.data[1] = 0
    found = measure_aliasing(wrap(conv), noise(2, 32), "0")
    assert found.share.isnan().tolist() == [False, True] and not math.isnan(found.layer_share)


def test_pictures_of_one_channel_networks_are_their_luma():
    conv = nn.Conv2d(1, 1, 1, 2, bias=False)
    nn.init.ones_(conv.weight)
    red_green = torch.stack([torch.full((48, 48), 100.0)] * 3)
    red_green[0, :, ::2] += 58.7
    red_green[1, :, ::2] -= 29.9  # 0.299 * 58.7 = 0.587 * 29.9: the luma is even
    assert measure_aliasing(wrap(conv), grey_of(red_green), "0").folded < 0.05
    assert measure_aliasing(wrap(conv), checkerboard(48), "0").layer_share == pytest.approx(1)


def grey_of(picture):
    return picture.round().to(torch.uint8)[None]


def test_the_interval_is_that_of_drawing_pictures_again():
    found = measure_aliasing(
        wrap(same(stride=2)), torch.cat([noise(40, 32), gratings([0.1] * 40, 0, size=32)]), "0"
    )
    low, high = found.interval()
    kept, folded = found.by_picture.T.numpy()
    draws = np.random.default_rng(1).integers(0, 80, (4000, 80))
    shares = folded[draws].sum(1) / (folded[draws].sum(1) + kept[draws].sum(1))
    assert low < found.layer_share < high
    assert (low, high) == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=0.01)
    assert found.interval() == (low, high)
    with pytest.raises(ZfkitError, match="level must lie between 0 and 1, not 95"):
        found.interval(95)


def test_batches_do_not_matter():
    model = zfkit.load_model("zfnet64", device="cpu")
    photos = zfkit.load_images("photos", size=96, limit=5)
    together = measure_aliasing(model, photos, "pool1")
    alone = [measure_aliasing(model, photos.take([i]), "pool1") for i in range(5)]
    assert torch.allclose(together.folded, torch.stack([a.folded for a in alone]).mean(0), rtol=1e-4)
    assert torch.allclose(together.by_picture, torch.cat([a.by_picture for a in alone]), rtol=1e-4)


@pytest.mark.parametrize("layer, pictures, message", [
    ("conv3", 64, "'conv3' does not subsample, so no frequency is lost there; layers of zfnet64 that do: conv1 (stride "
     "2), pool1 (stride 2), pool2 (stride 2), pool5 (stride 2)"),
    ("fc6", 64, "'fc6' does not subsample"),
    ("conv9", 64, "there is no layer 'conv9'"),
    ("pool5", 64, "pictures of 64 x 64 px leave 5 x 5 places at 'pool5' before it subsamples; take larger ones"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_in_a_sentence(layer, pictures, message):
    model = zfkit.load_model("zfnet64", device="cpu")
    with pytest.raises(ZfkitError, match=re.escape(message)):
        measure_aliasing(model, noise(1, pictures), layer)


def test_a_network_that_never_subsamples_says_so():
    with pytest.raises(LayerError, match="layers of mine that do: none"):
        measure_aliasing(wrap(nn.Conv2d(3, 2, 1)), noise(1, 32), "0")
    with pytest.raises(ZfkitError, match="no pictures"):
        measure_aliasing(wrap(same(stride=2)), noise(1, 32)[:0], "0")


# ------------------------------------------------------------------------------------------ drifting gratings


def test_a_linear_layers_answer_is_its_filters_fourier_transform():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 7, 2, 3)
    model = wrap(conv, mean=100.0, scale=0.02)
    colour, contrast = (1.0, -0.4, 0.3), 0.7
    found = grating_response(
        model, "0", frequencies=[0.05, 0.2, 0.45], orientations=[0, 20, 110], contrast=contrast, colour=colour
    )
    for i, f in enumerate([0.05, 0.2, 0.45]):
        for j, angle in enumerate([0, 20, 110]):
            fx, fy = f * math.cos(math.radians(angle)), f * math.sin(math.radians(angle))
            y, x = np.indices((7, 7))
            H = (conv.weight.detach().numpy() * np.exp(2j * np.pi * (fx * x + fy * y))).sum(
                (2, 3)
            ) @ np.array(colour)
            power = (0.02 * 127.5 * contrast * np.abs(H)) ** 2 / 2
            assert np.allclose(found.power[:, i, j, 0], power, rtol=1e-9, atol=1e-12)
            mean = conv.bias.detach() + 0.02 * (127.5 - 100) * conv.weight.detach().sum((1, 2, 3))
            assert torch.allclose(found.mean[:, i, j], mean)
    assert found.power[..., 1:].abs().max() < 1e-18
    assert torch.allclose(found.before**2, found.in_place**2 + found.folded**2)


def test_a_rectified_wave_has_the_harmonics_of_half_a_cosine():
    model = wrap(same(), nn.ReLU(), mean=127.5, scale=1 / 127.5)
    found = grating_response(model, "1", frequencies=[0.1], orientations=[0], phases=256)
    assert float(found.mean) == pytest.approx(1 / math.pi, rel=1e-3)
    amplitudes = (2 * found.power[0, 0, 0]).sqrt()
    assert amplitudes[:4].tolist() == pytest.approx(
        [1 / 2, 2 / (3 * math.pi), 0, 2 / (15 * math.pi)], rel=1e-3, abs=1e-9
    )
    assert (
        not found.is_folded[0, 0, :5].any() and found.is_folded[0, 0, 5:].all()
    )  # 0.1, 0.2 ... 0.5, then 0.6


@pytest.mark.parametrize("layer", ["conv1", "pool1", "conv2"])
def test_the_map_shows_over_space_what_the_unit_answers_over_phase(layer):
    """g(phase + 2 pi f s n), at any place n: what the whole method rests on, on a trained network."""
    model = zfkit.load_model("zfnet64", device="cpu")
    model.net.double()
    f, angle, phases = 0.21, 25.0, 9
    found = grating_response(model, layer, frequencies=[f], orientations=[angle], phases=phases)
    s = found.spacing[0]
    field = zfkit.receptive_field(model, layer)
    fx, fy = (float(v) for v in wave(f, angle))
    first = -(field.offset // field.stride)
    for row, column in [(first + 2, first + 1), (first + 4, first + 3)]:
        start = -2 * math.pi * s * (fx * (column - first) + fy * (row - first))
        pictures = gratings(
            f, angle, [start + 2 * math.pi * t / phases for t in range(phases)], size=96, dtype=F64
        )
        with torch.no_grad():
            maps = model.net[: list(model.layers).index(layer) + 1](aliasing._as_input(model, pictures))
        g = maps[:, :, row, column]
        assert torch.allclose(g.mean(0), found.mean[:, 0, 0], rtol=1e-8, atol=1e-8)
        assert torch.allclose(g.var(0, correction=0).sqrt(), found.before[:, 0, 0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("f", [0.05, 0.11, 0.2, 0.3, 0.42])
def test_behind_the_stride_the_grating_is_found_where_it_is_said_to_arrive(f):
    """The largest peak of the strided map's spectrum, with bins of 1/216 c/px, over the whole map."""
    model = zfkit.load_model("alexnet64", device="cpu")
    found = grating_response(model, "conv1", [10], frequencies=[f], orientations=[0])
    with torch.no_grad():
        r = model.net.conv1(aliasing._as_input(model, gratings(f, 0, size=224, dtype=F64)))[0, 10, 20]
    r = (r - r.mean())[1:-1]  # between the padded borders
    power = torch.fft.rfft(r * torch.hann_window(len(r))).abs() ** 2
    peak = float(torch.fft.rfftfreq(len(r))[power.argmax()]) / 4
    assert abs(peak - abs(float(found.arrives[0]))) <= 0.5 / (4 * len(r)) + 1e-6
    is_folded = f > 1 / 8
    assert bool(found.is_folded[0, 0, 0]) == is_folded
    assert float(found.share[0]) == pytest.approx(float(is_folded), abs=1e-9)


def test_white_light_on_a_unit_that_filters_nothing_is_kept_within_the_limits_square():
    found = grating_response(
        wrap(same(stride=2)), "0", frequencies=(torch.arange(200) + 0.5) / 400, orientations=range(180)
    )
    # of the disc of radius 1/2, the square of side 1/2 is kept
    assert float(found.share) == pytest.approx(1 - 0.25 / (math.pi / 4), abs=2e-3)


def test_a_table_names_the_best_grating_of_every_filter():
    y, x = np.indices((16, 16))
    waves = [(0.125, 0.0), (0.0, 0.25), (0.25, 0.25)]
    conv = nn.Conv2d(3, 3, 16, 4, bias=False)
    for o, (fx, fy) in enumerate(waves):
        conv.weight.data[o] = torch.as_tensor(np.cos(2 * np.pi * (fx * x + fy * y)))
    found = grating_response(
        wrap(conv), "0", frequencies=[0.0625, 0.125, 0.25, 0.25 * 2**0.5], orientations=[0, 45, 90]
    )
    table = found.table()
    assert table["frequency"].tolist() == pytest.approx([0.125, 0.25, 0.25 * 2**0.5])
    assert table["orientation"].tolist() == [0, 90, 45]
    assert table["is_folded"].tolist() == [False, True, True]  # 1/8 is what stride 4 can just hold


def test_channels_are_chosen_and_one_channel_networks_see_the_luma():
    conv = nn.Conv2d(1, 3, 1, bias=False)
    conv.weight.data[:, 0, 0, 0] = torch.tensor([1.0, 2.0, 3.0])
    model = wrap(conv)
    found = grating_response(model, "0", [2, 0], frequencies=[0.1], orientations=[0])
    assert found.before[:, 0, 0].tolist() == pytest.approx([3 * 127.5 / 2**0.5, 127.5 / 2**0.5])
    blue = grating_response(model, "0", [0], frequencies=[0.1], orientations=[0], colour=(0, 0, 1))
    assert float(blue.before) == pytest.approx(0.114 * 127.5 / 2**0.5)


@pytest.mark.parametrize("layer, options, message", [
    ("fc6", {}, "units of 'fc6' see the whole picture"),
    ("conv9", {}, "there is no layer 'conv9'"),
    ("conv1", {"channels": [96]}, "channels must be a list of feature maps, 0 to 95 of 'conv1', not [96]"),
    ("conv1", {"phases": 3}, "phases must be a whole number of at least 4, not 3"),
    ("conv1", {"frequencies": [-0.1]}, "frequencies (from 0 on, in cycles/px) and orientations (degrees)"),
    ("conv1", {"orientations": []}, "frequencies (from 0 on, in cycles/px) and orientations (degrees)"),
])  # fmt: skip
def test_gratings_are_refused_in_a_sentence(layer, options, message):
    model = zfkit.load_model("zfnet64", device="cpu")
    with pytest.raises(ZfkitError, match=re.escape(message)):
        grating_response(model, layer, **options)


# ------------------------------------------------------------------------------------------------- shifts


def test_a_network_of_stride_1_moves_with_its_input():
    torch.manual_seed(0)
    model = wrap(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.MaxPool2d(3, 1), nn.Conv2d(4, 4, 3), size=24)
    found = shift_consistency(model, noise(4, 36), 6, layers=["0", "2", "3"])
    assert found.distance.abs().max() < 1e-12
    assert found.inside == (True, True, True) and found.spacing == (1, 1, 1)


@pytest.mark.parametrize("padding", [0, 2])
def test_padding_is_left_out_where_units_are_inside(padding):
    torch.manual_seed(0)
    model = wrap(nn.Conv2d(3, 4, 5, padding=padding), nn.Conv2d(4, 4, 5, padding=padding), size=24)
    assert shift_consistency(model, noise(4, 30), 6).distance.abs().max() < 1e-12


def literal_consistency(model, pictures, stride, shifts):
    """Root mean squares, one picture after the other; a single strided layer without padding; shifts right."""
    side = model.input_size
    top = (pictures.shape[2] - side) // 2
    starts = pictures.shape[3] - side - shifts + 1

    def maps(n, start):
        cut = pictures[n : n + 1, :, top : top + side, start : start + side]
        with torch.no_grad():
            return model.net(model.preprocess(cut))[0].numpy()

    distances = []
    for d in range(shifts + 1):
        total = 0
        for n in range(len(pictures)):
            for a in range(starts):
                before, now = maps(n, a), maps(n, a + d)
                k = math.floor(d / stride + 0.5)
                difference = before[:, :, k:] - now[:, :, : now.shape[2] - k]
                total += np.sqrt((difference**2).mean()) / starts
        distances.append(total)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0)).tolist()
    apart = 0
    for n, other in zip(order, order[-1:] + order[:-1], strict=True):
        left = pictures[:, :, :side, top : top + side]  # the first start, downwards
        with torch.no_grad():
            a, b = (model.net(model.preprocess(left[i : i + 1])).numpy() for i in (n, other))
        apart += np.sqrt(((a - b) ** 2).mean())
    return np.array(distances) / apart


@pytest.mark.parametrize("stride, margin", [(2, 5), (3, 7)])
def test_distances_equal_the_literal_ones(stride, margin):
    torch.manual_seed(0)
    model = wrap(nn.Conv2d(3, 2, 4, stride), size=19)
    pictures = noise(5, 19 + margin)
    found = shift_consistency(model, pictures, 5)
    assert np.allclose(found.distance[0, 1], literal_consistency(model, pictures, stride, 5), rtol=1e-10)


@pytest.mark.parametrize("taps, expected", [(0, 1.0), (3, math.sqrt(2 / 6)), (5, math.sqrt(14 / 70))])
def test_a_blur_is_as_consistent_as_predicted(taps, expected):
    """White noise, moved by 1 px at stride 2: what changes is 1 - r(1)/r(0), with r the autocorrelation of the taps.

    1-2-1: r = 6, 4 (of 16); 1-4-6-4-1: r = 70, 56 (of 256). Without a blur neighbours know nothing of each other.
    """
    model = wrap(same(), BlurPool(taps, 2) if taps else nn.MaxPool2d(1, 2), size=96)
    found = shift_consistency(model, noise(12, 104), 4, layers=["1"])
    assert found.distance[0].mean(0).tolist() == pytest.approx([0, expected, 0, expected, 0], abs=0.02)


@pytest.mark.parametrize("f", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("taps", [3, 5])
def test_a_blurred_grating_changes_within_the_bound_of_its_frequency_response(f, taps):
    """Moved by 1 px, a wave changes by 2 sin(pi f); a blur lets cos(pi f)^(taps - 1) of it through."""
    pictures = torch.cat([gratings(f, 0, size=72), grey(np.full((1, 72, 72), 127))])
    model = wrap(same(), BlurPool(taps, 2), size=64)
    found = shift_consistency(model, pictures, 2, layers=["0", "1"])
    passed = math.cos(math.pi * f) ** (taps - 1) * 127.5 / math.sqrt(2)
    # of the two pictures one changes, and both are as far from each other as the wave is high
    assert float(found.distance[1, 1, 1]) == pytest.approx(math.sin(math.pi * f), rel=0.06)
    with torch.no_grad():
        blurred = model.net(model.preprocess(pictures[:1, :, :64, :64]))[0, 0, 2:-2, 2:-2]
        moved = model.net(model.preprocess(pictures[:1, :, :64, 1:65]))[0, 0, 2:-2, 2:-2]
    change = float((blurred[:, 1:] - moved[:, :-1]).square().mean().sqrt())
    assert change == pytest.approx(2 * math.sin(math.pi * f) * passed, rel=0.06)
    assert float(found.distance[0, 1, 1]) < 1e-12  # before it is subsampled nothing changes at all


def test_on_a_trained_network_distance_swings_with_the_spacing_of_the_units():
    model = zfkit.load_model("alexnet64", device="cpu")
    photos = zfkit.load_images("photos", size=112, limit=2)
    found = shift_consistency(model, photos, 8, layers=["conv1", "conv3"], window=104)
    assert found.spacing == (4, 8) and all(found.inside)
    conv1, conv3 = found.distance.mean(1)
    assert conv1[[0, 4, 8]].max() < 1e-4 and conv3[[0, 8]].max() < 1e-4
    assert conv1[[2, 6]].min() > conv1[[1, 3, 5, 7]].max() > 0.05
    assert float(conv3.argmax()) == 4 and conv3[4] > 0.05
    assert found.agreement.isnan().all()


def classifier(size=16):
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 5)]
    return zfkit.wrap_model(nn.Sequential(*layers), mean=127.5, scale=1 / 60, input_size=size)


@pytest.mark.parametrize("circular", [False, True])
def test_class_agreement_is_counted_window_by_window(circular):
    model, shifts = classifier(), 3
    pictures = noise(8, 21, seed=3)
    found = shift_consistency(model, pictures, shifts, circular=circular)
    starts = [0] if circular else range(21 - 16 - shifts + 1)

    def probabilities(n, axis, start):
        if circular:
            cut = torch.roll(pictures[n, :, :16, :16], -start, 1 + axis)
        elif axis == 0:
            cut = pictures[n, :, start : start + 16, 2:18]
        else:
            cut = pictures[n, :, 2:18, start : start + 16]
        with torch.no_grad():
            return model.net(model.preprocess(cut)).softmax(1)[0]

    for axis in (0, 1):
        for d in range(shifts + 1):
            for n in range(8):
                pairs = [(probabilities(n, axis, a), probabilities(n, axis, a + d)) for a in starts]
                same_class = [float(p.argmax() == q.argmax()) for p, q in pairs]
                change = [abs(float(q[p.argmax()] - p.max())) for p, q in pairs]
                assert float(found.agreement[axis, d, n]) == pytest.approx(np.mean(same_class))
                assert float(found.probability[axis, d, n]) == pytest.approx(np.mean(change), abs=1e-6)
    assert found.layers == ("0", "3") and found.spacing == (2, 0) and found.circular == circular
    table = found.table()
    assert list(table.columns) == ["agreement", "probability", "0", "3"] and table.index.tolist() == [
        0,
        1,
        2,
        3,
    ]
    assert table["agreement"].tolist() == pytest.approx(found.agreement.mean((0, 2)).tolist())


def test_intervals_of_agreement_are_those_of_a_proportion():
    found = shift_consistency(classifier(), noise(6, 18), 1)
    p, n = 0.7, 400
    kept = (torch.arange(n) < p * n).double().expand(2, 2, n)
    low, high = replace(found, agreement=kept).interval()[1].tolist()
    width = 2 * 1.96 * math.sqrt(p * (1 - p) / n)
    assert low < p < high and high - low == pytest.approx(width, rel=0.1)


@pytest.mark.parametrize("size, options, message", [
    (24, {"shifts": 0}, "shifts must be a whole number of pixels, at least 1, not 0"),
    (20, {}, "pictures of 20 x 20 px have no room for windows of 16 px that shift by 8 px; take pictures of 24 px, as "
     "load_images(..., size=24) gives them"),
    (12, {"circular": True}, "pictures of 12 x 12 px have no room for windows of 16 px; take pictures of 16 px"),
    (24, {"layers": ["conv"]}, "there is no layer 'conv'"),
    (24, {"layers": []}, "layers must name at least one layer"),
    (40, {"layers": ["3"], "window": 20}, "mine cannot run to 3 on windows of 20 px"),
])  # fmt: skip
def test_shifts_are_refused_in_a_sentence(size, options, message):
    with pytest.raises(ZfkitError, match=re.escape(message)):
        shift_consistency(classifier(), noise(3, size), **options)


def test_one_picture_alone_has_nothing_to_be_compared_with():
    with pytest.raises(ZfkitError, match="at least two are needed"):
        shift_consistency(classifier(), noise(1, 30))


# ------------------------------------------------------------------------------------------------- figures


@pytest.fixture(scope="module")
def plotting():
    import matplotlib

    matplotlib.use("agg")
    import zfkit.figures.experiments as plotting

    yield plotting
    matplotlib.pyplot.close("all")


def test_the_figure_of_shifts_draws_agreement_and_distances_and_marks_whole_units(plotting):
    found = shift_consistency(classifier(), noise(4, 22), 4)
    agreement, conv, fc = plotting.shift_figure([found]).axes[:3]
    assert np.allclose(agreement.lines[0].get_ydata(), 100 * found.consistency())
    assert np.allclose(conv.lines[0].get_ydata(), found.distance[0].mean(0))
    assert list(conv.lines[1].get_xdata()) == [0, 2, 4]  # stride 2
    assert fc.get_title(loc="left") == "3, in place" or fc.get_title() == "3, in place"
    with pytest.raises(LayerError, match="no layer with distances 'conv1'"):
        plotting.shift_figure([found], ["conv1"])


def test_the_figure_of_aliasing_has_a_dot_for_every_filter_and_a_bar_for_the_layer(plotting):
    torch.manual_seed(0)
    found = measure_aliasing(wrap(nn.Conv2d(3, 7, 3, 2)), noise(3, 48), "0")
    axes = plotting.aliasing_figure([found]).axes[0]
    assert sorted(axes.collections[0].get_offsets()[:, 1]) == pytest.approx(sorted(100 * found.share.numpy()))
    assert axes.lines[0].get_ydata() == pytest.approx([100 * found.layer_share] * 2)


def test_the_figure_of_gratings_is_coloured_where_answers_are_folded(plotting):
    found = grating_response(
        wrap(same(stride=2)), "0", frequencies=[0.1, 0.2, 0.3, 0.4], orientations=[0, 90]
    )
    before, after, arrives = plotting.gratings_figure([found]).axes[:3]
    plain, coloured = (np.asarray(axes.images[0].get_array()) for axes in (before, after))
    assert np.ptp(plain, axis=2).max() < 1e-6  # grey
    assert (np.ptp(coloured, axis=2) > 0.1).tolist() == [[False, False, True, True]] * 2
    assert sum(bar.get_height() for bar in arrives.patches) == pytest.approx(100)
    with pytest.raises(ZfkitError, match="feature map 5 of '0' did not answer"):
        plotting.gratings_figure([found], channel=5)
