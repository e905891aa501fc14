"""What random filters would give: against moments of random directions, and all arrangements of a filter's taps."""

import itertools
import math

import numpy as np
import pytest
import torch
from signals import F64, bands, distances_from_0, filter_of_one_wave, literal_power, random_weight, wrap
from torch import nn

import zfkit
from zfkit import ZfkitError
from zfkit.frequency import compare_spectra, random_control
from zfkit.frequency.control import mean_power


def sphere_moments(weight_shape, mask):
    """Mean and variance of w'Kw / w'w for normal w, K the quadratic form of the power in a set of bins.

    A direction drawn from the sphere in n dimensions has E[x'Kx] = tr K / n and Var[x'Kx] =
    2 (n tr K^2 - (tr K)^2) / (n^2 (n + 2)).
    """
    _, c, kh, kw = weight_shape
    taps = torch.eye(kh * kw, dtype=F64).view(-1, kh, kw)
    waves = torch.fft.fftshift(torch.fft.fft2(taps, s=mask.shape), (1, 2)) / len(mask)
    K = (waves[:, mask] @ waves[:, mask].conj().T).real
    n, trace, square = c * len(K), c * float(K.trace()), c * float((K @ K).trace())
    return trace / n, 2 * (n * square - trace**2) / (n**2 * (n + 2))


def test_random_filters_have_the_mean_and_the_spread_of_random_directions():
    shape = (16, 3, 5, 5)
    control = random_control(zfkit.filter_spectra(random_weight(*shape), stride=2), draws=200, random_seed=1)
    rho, largest = (torch.from_numpy(t) for t in distances_from_0(64))
    for name, mask in bands(rho, largest, 2).items():
        mean, variance = sphere_moments(shape, mask)
        assert mean == pytest.approx(float(mask.double().mean()))  # the band's share of the plane
        assert control.expected[name] == pytest.approx(mean)
        drawn = control.drawn[name]
        assert abs(float(drawn.mean()) - mean) < 4 * math.sqrt(variance / 16 / 200), name
        assert float(drawn.std()) == pytest.approx(math.sqrt(variance / 16), rel=0.25), name
        low, high = control.interval(name)
        assert low < mean < high and high - low == pytest.approx(2 * 1.96 * math.sqrt(variance / 16), rel=0.3)
    assert control.expected["centroid"] == pytest.approx(float(rho.mean()))
    assert control.expected["luminance"] == pytest.approx(1 / 3)
    assert float(control.drawn["luminance"].mean()) == pytest.approx(1 / 3, abs=0.01)
    low, high = control.profile_interval()
    assert ((low < 1) & (high > 1)).double().mean() > 0.95
    assert float(control.profiles.mean()) == pytest.approx(1, abs=0.01)


def test_shuffled_taps_have_the_mean_of_all_arrangements():
    weight = random_weight(3, 2, 2, 2)
    flat = weight.flatten(2)
    orders = list(itertools.permutations(range(4)))
    wanted = np.mean([literal_power(flat[:, :, list(o)].view_as(weight), 16) for o in orders], 0)
    spectra = zfkit.filter_spectra(weight, size=16)
    np.testing.assert_allclose(mean_power(spectra, "shuffled"), wanted)
    control = random_control(spectra, kind="shuffled", draws=400)
    for name in ("low", "mid", "high", "centroid"):
        error = float(control.drawn[name].std()) / math.sqrt(400)
        assert abs(float(control.drawn[name].mean()) - control.expected[name]) < 4 * error


def test_shuffling_keeps_each_filters_weights_colours_and_sum():
    weight = random_weight(4, 3, 3, 3)
    control = random_control(zfkit.filter_spectra(weight), kind="shuffled", draws=3)
    share = zfkit.filter_spectra(weight).summary()["luminance"]
    assert control.interval("luminance") == pytest.approx((share, share))
    at_zero = float((weight.sum((2, 3)).square().sum(1) / weight.square().sum((1, 2, 3))).mean())
    np.testing.assert_allclose(control.profiles[:, 0], at_zero)


def test_a_control_depends_on_its_seed_and_on_nothing_else():
    spectra = zfkit.filter_spectra(random_weight(4, 3, 3, 3))
    torch.manual_seed(5)
    first = random_control(spectra, draws=3, random_seed=7)
    torch.manual_seed(6)
    again, other = (random_control(spectra, draws=3, random_seed=s) for s in (7, 8))
    assert torch.equal(first.drawn["mid"], again.drawn["mid"])
    assert not torch.equal(first.drawn["mid"], other.drawn["mid"])


def test_the_controls_of_parts_are_of_the_same_part():
    spectra = zfkit.filter_spectra(random_weight(8, 3, 5, 5))
    for part, luminance in (("luminance", 1), ("opponent", 0)):
        control = random_control(spectra.part_of(part), draws=50)
        assert control.expected["luminance"] == luminance
        np.testing.assert_allclose(control.drawn["luminance"], luminance, atol=1e-12)
        assert control.expected["mid"] == pytest.approx(float(control.drawn["mid"].mean()), abs=0.01)


def test_what_is_told_apart_from_chance():
    upright = torch.cat([filter_of_one_wave(11, 0, n, phase) for n in (1, 2, 3) for phase in (0.0, 1.0)])
    table = random_control(zfkit.filter_spectra(upright), draws=40).table()
    assert table.outside[["mid", "high", "selectivity", "entropy"]].all()
    noise = zfkit.filter_spectra(random_weight(32, 3, 7, 7, random_seed=3))
    assert not random_control(noise, level=0.998).table().outside.any()


def test_filters_without_a_choice_are_within_their_control():
    """1x1 filters are white, random ones too; one-channel networks have no colours, later layers neither."""
    one_pixel = zfkit.filter_spectra(wrap(nn.Conv2d(3, 5, 1)))
    control = random_control(one_pixel, draws=5)
    assert control.interval("mid") == pytest.approx((1344 / 4096,) * 2)
    assert not control.table().outside.drop("luminance").any()
    shuffled = random_control(one_pixel, kind="shuffled", draws=5)
    assert shuffled.expected["mid"] == pytest.approx(1344 / 4096)
    grey = zfkit.filter_spectra(wrap(nn.Conv2d(1, 4, 5, stride=2)))
    assert random_control(grey, draws=2).expected["luminance"] == 1
    maps = zfkit.filter_spectra(random_weight(2, 7, 3, 3))
    assert np.isnan(random_control(maps, draws=2).expected["luminance"])


def test_several_networks_in_one_table(zfnet64):
    torch.manual_seed(0)
    untrained = zfkit.load_model("torchvision:resnet18", weights=None, device="cpu")
    table = compare_spectra([zfnet64, untrained], draws=40)
    assert table.index.names == ["model", "measure"]
    assert round(table["value"].unstack("model")["zfnet64 conv1"].mid, 2) == 0.56
    random = table.loc["torchvision:resnet18 conv1"]  # 64 filters 3x7x7, stride 2
    assert random.expected.mid == pytest.approx(0.328, abs=1e-3)  # of 64x64 bins
    width = random.high - random.low
    assert ((random.value - random.expected).abs() <= width).all()  # twice the interval's half
    assert table.loc["zfnet64 conv1"].outside[["low", "mid", "high", "aliasable", "entropy"]].all()


def test_bad_input_is_named():
    spectra = zfkit.filter_spectra(random_weight(2, 3, 3, 3))
    for call, message in [
        (lambda: random_control(spectra, kind="uniform"), "there is no kind of control 'uniform'"),
        (lambda: random_control(spectra, draws=1), "draws .*not 1"),
        (lambda: random_control(spectra, level=95), "level .*not 95"),
        (lambda: random_control(spectra, draws=2).interval("middle"), "there is no measure 'middle'"),
        (lambda: compare_spectra([]), "no model to compare"),
        (lambda: compare_spectra([spectra, spectra], draws=2), "two of the models are called 'weights'"),
    ]:
        with pytest.raises(ZfkitError, match=message):
            call()
