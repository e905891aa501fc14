"""Drifting gratings: their formula, where they arrive behind a stride, and what layers answer to them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from signals import F64, mean_of_channels, wrap
from tiny import TINY
from torch import nn

import zfkit
from zfkit import ZfkitError
from zfkit.frequency import fold, grating_response, gratings, wave
from zfkit.nets import build


def test_a_grating_is_its_formula_pixel_by_pixel():
    f, angle, phase, contrast, colour = 0.17, 33.0, 0.4, 0.8, (1.0, -0.5, 0.25)
    picture = gratings(f, angle, phase, size=(5, 7), contrast=contrast, colour=colour, dtype=F64)
    assert picture.shape == (1, 3, 5, 7)
    fx, fy = f * math.cos(math.radians(angle)), f * math.sin(math.radians(angle))
    for c in range(3):
        for y in range(5):
            for x in range(7):
                wanted = 127.5 * (1 + contrast * colour[c] * math.cos(math.tau * (fx * x + fy * y) + phase))
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
    ({"contrast": 1.5}, "contrast .*not 1.5"),
    ({"colour": (1, 1)}, r"colour must be three numbers from -1 to 1.*not \(1, 1\)"),
    ({"colour": (2, 0, 0)}, "colour must be three numbers from -1 to 1"),
    ({"size": 0}, "size, in pixels, .*not 0"),
])  # fmt: skip
def test_gratings_that_are_no_pictures_are_refused(options, message):
    with pytest.raises(ZfkitError, match=message):
        gratings(0.1, **options)


@given(st.floats(-3, 3), st.integers(1, 8))
def test_a_folded_frequency_is_the_closed_form_and_cannot_be_told_from_the_first(f, stride):
    arrived = float(fold(f, stride))
    assert math.isclose(arrived, ((f + 1 / (2 * stride)) % (1 / stride)) - 1 / (2 * stride), abs_tol=1e-12)
    assert -1 / (2 * stride) - 1e-12 <= arrived <= 1 / (2 * stride) + 1e-12
    places = stride * np.arange(50)
    assert np.allclose(np.exp(2j * np.pi * f * places), np.exp(2j * np.pi * arrived * places), atol=1e-9)


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
            H = (conv.weight.detach().numpy() * np.exp(2j * np.pi * (fx * x + fy * y))).sum((2, 3))
            H = H @ np.array(colour)
            power = (0.02 * 127.5 * contrast * np.abs(H)) ** 2 / 2
            assert np.allclose(found.power[:, i, j, 0], power, rtol=1e-9, atol=1e-12)
            mean = conv.bias.detach() + 0.02 * (127.5 - 100) * conv.weight.detach().sum((1, 2, 3))
            assert torch.allclose(found.mean[:, i, j], mean)
    assert found.power[..., 1:].abs().max() < 1e-18
    assert torch.allclose(found.before**2, found.in_place**2 + found.folded**2)


def test_a_rectified_wave_has_the_harmonics_of_half_a_cosine():
    model = wrap(mean_of_channels(), nn.ReLU(), mean=127.5, scale=1 / 127.5)
    found = grating_response(model, "1", frequencies=[0.1], orientations=[0], phases=256)
    assert float(found.mean) == pytest.approx(1 / math.pi, rel=1e-3)
    amplitudes = (2 * found.power[0, 0, 0]).sqrt()
    expected = [1 / 2, 2 / (3 * math.pi), 0, 2 / (15 * math.pi)]
    assert amplitudes[:4].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert found.is_folded[0, 0].tolist() == [False] * 5 + [True] * (found.is_folded.shape[2] - 5)


@pytest.mark.parametrize("layer", ["conv1", "pool1", "conv2"])
def test_the_map_shows_over_space_what_the_unit_answers_over_phase(layer):
    """g(phase + 2 pi f s n), at any place n: what the whole method rests on."""
    torch.manual_seed(0)
    model = zfkit.wrap_model(build(TINY).double(), mean=127.5, scale=0.01, input_size=32)
    f, angle, phases = 0.21, 25.0, 9
    found = grating_response(model, layer, frequencies=[f], orientations=[angle], phases=phases)
    s = found.spacing[0]
    field = zfkit.receptive_field(model, layer)
    fx, fy = (float(v) for v in wave(f, angle))
    first = -(field.offset // field.stride)
    for row, column in [(first + 2, first + 1), (first + 4, first + 3)]:
        start = -2 * math.pi * s * (fx * (column - first) + fy * (row - first))
        phase = [start + 2 * math.pi * t / phases for t in range(phases)]
        pictures = gratings(f, angle, phase, size=96, dtype=F64)
        with torch.no_grad():
            maps = model.net[: model.layers.index(layer) + 1](model.normalise(pictures))
        g = maps[:, :, row, column]
        assert torch.allclose(g.mean(0), found.mean[:, 0, 0], rtol=1e-8, atol=1e-8)
        assert torch.allclose(g.var(0, correction=0).sqrt(), found.before[:, 0, 0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("f", [0.05, 0.2, 0.42])
def test_behind_the_stride_the_grating_is_found_where_it_is_said_to_arrive(f, alexnet64):
    """The largest peak of the strided map's spectrum, with bins of 1/216 c/px, over the whole map."""
    model = alexnet64
    found = grating_response(model, "conv1", [10], frequencies=[f], orientations=[0])
    with torch.no_grad():
        r = model.net.conv1(model.normalise(gratings(f, 0, size=224, dtype=F64)))[0, 10, 20]
    r = (r - r.mean())[1:-1]  # between the padded borders
    power = torch.fft.rfft(r * torch.hann_window(len(r))).abs() ** 2
    peak = float(torch.fft.rfftfreq(len(r))[power.argmax()]) / 4
    assert abs(peak - abs(float(found.arrives[0]))) <= 0.5 / (4 * len(r)) + 1e-6
    is_folded = f > 1 / 8
    assert bool(found.is_folded[0, 0, 0]) == is_folded
    assert float(found.share[0]) == pytest.approx(float(is_folded), abs=1e-9)


def test_white_light_on_a_unit_that_filters_nothing_is_kept_within_the_limits_square():
    every = {"frequencies": (torch.arange(200) + 0.5) / 400, "orientations": range(180), "phases": 4}
    found = grating_response(wrap(mean_of_channels(2)), "0", **every)
    # of the disc of radius 1/2, the square of side 1/2 is kept
    assert float(found.share) == pytest.approx(1 - 0.25 / (math.pi / 4), abs=2e-3)


def test_a_table_names_the_best_grating_of_every_filter():
    y, x = np.indices((16, 16))
    waves = [(0.125, 0.0), (0.0, 0.25), (0.25, 0.25)]
    conv = nn.Conv2d(3, 3, 16, 4, bias=False)
    for o, (fx, fy) in enumerate(waves):
        conv.weight.data[o] = torch.as_tensor(np.cos(2 * np.pi * (fx * x + fy * y)))
    shown = {"frequencies": [0.0625, 0.125, 0.25, 0.25 * 2**0.5], "orientations": [0, 45, 90]}
    found = grating_response(wrap(conv), "0", **shown)
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
    ("conv1", {"channels": [4]}, r"channels .* 0 to 3 of 'conv1', not \[4\]"),
    ("conv1", {"phases": 3}, "phases .*not 3"),
    ("conv1", {"frequencies": [-0.1]}, "frequencies .from 0 on, in cycles/px. and orientations"),
    ("conv1", {"orientations": []}, "frequencies .from 0 on, in cycles/px. and orientations"),
])  # fmt: skip
def test_questions_without_an_answer_are_refused(layer, options, message):
    model = zfkit.wrap_model(build(TINY), mean=0, scale=0.01, input_size=32)
    with pytest.raises(ZfkitError, match=message):
        grating_response(model, layer, **options)


@pytest.mark.parametrize("f, stride, arrives", [
    (0.1, 4, 0.1), (0.125, 4, -0.125), (0.2, 4, -0.05), (0.25, 4, 0.0), (0.4, 2, -0.1), (0.5, 2, 0.0), (-0.3, 2, 0.2),
])  # fmt: skip
def test_frequencies_worked_out_by_hand(f, stride, arrives):
    assert math.isclose(float(fold(f, stride)), arrives, abs_tol=1e-12)
