"""Energy that lands on wrong frequencies: signals whose fate under subsampling is known in closed form."""

import math

import numpy as np
import pytest
import torch
from signals import chequerboard, grey, mean_of_channels, noise, wrap
from tiny import TINY, image_set
from torch import nn

import zfkit
from zfkit import ZfkitError
from zfkit.frequency.aliasing import _Subsampler, measure_aliasing, subsampling_layers
from zfkit.frequency.gratings import gratings
from zfkit.nets import BlurPool, build


def test_of_a_signal_below_the_limit_nothing_is_folded():
    pictures = gratings([0.02, 0.1, 0.2], [0, 30, 90], size=96)
    found = measure_aliasing(wrap(mean_of_channels(stride=2)), pictures, "0")
    assert found.layer_share < 2e-4  # rounding to whole grey levels is noise at all frequencies
    assert float(found.kept[0]) == pytest.approx(127.5**2 / 2, rel=0.02)


def test_of_a_chequerboard_at_stride_2_all_is_folded():
    found = measure_aliasing(wrap(mean_of_channels(stride=2)), chequerboard(), "0")
    assert found.layer_share == pytest.approx(1, abs=1e-12)
    assert float(found.folded[0]) == pytest.approx(100**2, rel=1e-6)  # it arrives as a constant
    assert found.stride == (2, 2)


@pytest.mark.parametrize("stride, low, high", [(2, 0.125, 0.375), (4, 0.0625, 0.25), (3, 1 / 16, 3 / 16)])
def test_of_two_gratings_the_one_above_the_limit_is_folded(stride, low, high):
    a, b = 80, 40
    x = np.arange(192)
    row = 127.5 + a * np.cos(2 * np.pi * low * x) + b * np.cos(2 * np.pi * high * x + 1)
    # read at every place of the period, so that the energy of what arrives does not hang on where it is read
    pictures = grey(np.stack([np.tile(np.roll(row, s)[:, None], (1, 192)) for s in range(stride)]))
    found = measure_aliasing(wrap(mean_of_channels(stride=stride)), pictures, "0")
    assert found.layer_share == pytest.approx(b**2 / (a**2 + b**2), rel=1e-2)


@pytest.mark.parametrize("taps, stride", [(1, 2), (1, 3), (1, 4), (3, 2), (5, 2), (5, 4)])
def test_of_white_noise_what_is_folded_is_what_the_blur_lets_through_above_the_limit(taps, stride):
    """Of 1 tap, no blur: 1 - 1 / stride^2."""
    f = np.fft.fftfreq(120)
    along = np.cos(np.pi * f) ** (2 * (taps - 1))  # |H|^2 along one axis
    kept = along[np.abs(f) <= 1 / (2 * stride)].sum() ** 2 / along.sum() ** 2
    strided = [mean_of_channels(stride)] if taps == 1 else [mean_of_channels(), BlurPool(taps, stride)]
    found = measure_aliasing(wrap(*strided), noise(24, 120), str(len(strided) - 1))
    assert found.layer_share == pytest.approx(1 - kept, abs=0.01)


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
    model, pictures = wrap(*layers), noise(1, 37, random_seed=5)
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


def test_run_with_stride_1_a_layer_gives_in_between_what_it_gave_before():
    model = zfkit.wrap_model(build(TINY), mean=0, scale=0.01, input_size=32)
    x = model.preprocess(noise(2, 97))
    for layer in ["conv1", "relu1", "pool1", "norm1", "pool2", "pool5"]:
        with torch.no_grad():
            strided = model.net[: model.layers.index(layer) + 1](x)
            dense = _Subsampler.of(model, layer).dense(model, x)[:, :, ::2, ::2]
        h, w = (min(a, b) for a, b in zip(strided.shape[2:], dense.shape[2:], strict=True))
        torch.testing.assert_close(dense[:, :, :h, :w], strided[:, :, :h, :w])
        assert h >= strided.shape[2] - 1  # a ceil-mode pool's last window sticks out
    assert model.net.conv1.stride == (2, 2) and model.net.pool1.stride == 2  # as it was


def test_layers_that_subsample_are_listed_in_branching_networks_too():
    resnet = zfkit.load_model("torchvision:resnet18", weights=None, device="cpu")
    assert subsampling_layers(resnet) == {
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
    red_green = torch.full((1, 3, 48, 48), 100.0)
    red_green[:, 0, :, ::2] += 58.7
    red_green[:, 1, :, ::2] -= 29.9  # 0.299 * 58.7 = 0.587 * 29.9: the luma is even
    assert measure_aliasing(wrap(conv), red_green.round().to(torch.uint8), "0").folded < 0.05
    assert measure_aliasing(wrap(conv), chequerboard(48), "0").layer_share == pytest.approx(1)


def test_the_interval_is_that_of_drawing_pictures_again():
    pictures = torch.cat([noise(40, 32), gratings([0.1] * 40, 0, size=32)])
    found = measure_aliasing(wrap(mean_of_channels(stride=2)), pictures, "0")
    low, high = found.interval()
    kept, folded = found.by_picture.T.numpy()
    draws = np.random.default_rng(1).integers(0, 80, (4000, 80))
    shares = folded[draws].sum(1) / (folded[draws].sum(1) + kept[draws].sum(1))
    assert low < found.layer_share < high
    assert (low, high) == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=0.01)
    assert found.interval() == (low, high)


def test_batches_do_not_matter(monkeypatch):
    """The first batch does not fit into memory, and is taken again in halves."""
    torch.manual_seed(0)
    model, pictures = wrap(nn.Conv2d(3, 4, 3, 2)), noise(65, 48)
    alone = [measure_aliasing(model, pictures[i : i + 1], "0") for i in range(65)]
    run, calls = _Subsampler.dense, []

    def short_of_memory(self, model, x):
        calls.append(len(x))
        if len(calls) == 2:
            raise MemoryError
        return run(self, model, x)

    monkeypatch.setattr(_Subsampler, "dense", short_of_memory)
    with pytest.warns(UserWarning, match="out of memory"):
        together = measure_aliasing(model, image_set(pictures.permute(0, 2, 3, 1).numpy()), "0")
    torch.testing.assert_close(together.folded, torch.stack([a.folded for a in alone]).mean(0))
    torch.testing.assert_close(together.by_picture, torch.cat([a.by_picture for a in alone]))


@pytest.mark.parametrize("layer, pictures, message", [
    ("conv3", noise(1, 64), "'conv3' does not subsample.*layers of tiny that do: conv1 .stride 2., pool1"),
    ("fc6", noise(1, 64), "'fc6' does not subsample"),
    ("conv9", noise(1, 64), "there is no layer 'conv9'"),
    ("pool5", noise(1, 64), "pictures of 64 x 64 px leave 5 x 5 places at 'pool5' before it subsamples"),
    ("conv1", noise(1, 64)[:0], "the 0 pictures .* empty"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_in_a_sentence(layer, pictures, message):
    model = zfkit.wrap_model(build(TINY), mean=0, scale=0.01, input_size=32, name="tiny")
    with pytest.raises(ZfkitError, match=message):
        measure_aliasing(model, pictures, layer)
    with pytest.raises(ZfkitError, match="that do: none"):
        measure_aliasing(wrap(nn.Conv2d(3, 2, 1)), noise(1, 32), "0")
    with pytest.raises(ZfkitError, match=r"level .*not 95"):
        measure_aliasing(wrap(mean_of_channels(2)), noise(1, 32), "0").interval(95)
