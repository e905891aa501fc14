"""`filter_spectra`, its random control and `lattice` against closed forms and literal Fourier transforms."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zfkit
import zfkit.frequency.spectra as module
from zfkit import ZfkitError
from zfkit.errors import LayerError

DOUBLE = torch.float64


def random_weight(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def literal_power(weight, size, dilation=(1, 1)):
    """Sum over input channels of the squared DFT, one complex number at a time's worth of thinking."""
    C, c, kh, kw = weight.shape
    padded = np.zeros((C, c, size, size))
    padded[:, :, : dilation[0] * kh : dilation[0], : dilation[1] * kw : dilation[1]] = weight.numpy()
    return np.fft.fftshift((np.abs(np.fft.fft2(padded)) ** 2).sum(1), axes=(1, 2)) / size**2


def grating(side, cycles_down, cycles_right, phase=0.0, channels=1):
    """A filter (1, channels, side, side) that is one wave, with whole numbers of cycles over its side."""
    y, x = torch.meshgrid(*(torch.arange(side, dtype=DOUBLE),) * 2, indexing="ij")
    wave = torch.cos(2 * math.pi * (cycles_down * y + cycles_right * x) / side + phase)
    return wave.expand(1, channels, side, side)


# ------------------------------------------------------------------------------------------------ power spectra


@given(
    shape=st.tuples(*(st.integers(1, n) for n in (4, 5, 7, 7))),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    extra=st.integers(0, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_power_is_the_squared_fourier_transform_of_the_filter_with_its_zeros(shape, dilation, extra, seed):
    reach = max(d * (k - 1) + 1 for d, k in zip(dilation, shape[2:], strict=True))
    size = max(reach, 2) + extra
    weight = random_weight(*shape, seed=seed)
    conv = nn.Conv2d(shape[1], shape[0], shape[2:], dilation=dilation)
    net = nn.Sequential(nn.Conv2d(1, shape[1], 1), conv).double()
    with torch.no_grad():
        conv.weight.copy_(weight)
    model = zfkit.wrap_model(net, mean=0.0, scale=1.0, input_size=24)
    spectra = zfkit.filter_spectra(model, "1", size=size)
    np.testing.assert_allclose(spectra.power, literal_power(weight, size, dilation), atol=1e-12)
    energy = weight.square().sum((1, 2, 3))
    torch.testing.assert_close(spectra.power.sum((1, 2)), energy)  # Parseval
    np.testing.assert_allclose(spectra.table().energy, energy)
    np.testing.assert_allclose(spectra.frequencies, np.fft.fftshift(np.fft.fftfreq(size)), atol=1e-12)


@given(
    side=st.integers(8, 24),
    down=st.integers(-12, 12),
    right=st.integers(-12, 12),
    phase=st.floats(0, 3),
    stride=st.integers(1, 4),
)
@settings(max_examples=50, deadline=None)
def test_a_pure_grating_is_found_where_it_was_put(side, down, right, phase, stride):
    """A whole number of cycles over the filter, and as many bins as taps: the spectrum is one pair of bins."""
    if (down, right) == (0, 0) or 2 * max(abs(down), abs(right)) >= side:
        return
    spectra = zfkit.filter_spectra(grating(side, down, right, phase), stride=stride, size=side)
    row = spectra.table().iloc[0]
    rho = math.hypot(down, right) / side
    assert row.centroid == pytest.approx(rho) and row.peak == pytest.approx(rho)
    assert row.bandwidth == pytest.approx(0, abs=1e-6) and row.selectivity == pytest.approx(1)
    turn = (row.orientation - math.degrees(math.atan2(down, right))) % 180
    assert min(turn, 180 - turn) < 1e-6
    band = "low" if rho < 1 / 12 - 1e-9 else "mid" if 1 / 12 + 1e-9 < rho < 1 / 3 - 1e-9 else "high"
    if min(abs(rho - 1 / 12), abs(rho - 1 / 3)) > 1e-9:
        assert row[["low", "mid", "high"]].sum() == pytest.approx(1) and row[band] == pytest.approx(1)
    if 2 * stride * max(abs(down), abs(right)) != side:
        assert row.aliasable == pytest.approx(float(2 * stride * max(abs(down), abs(right)) > side))
    assert spectra.summary()["entropy"] == pytest.approx(math.log(2) / math.log(side**2))


@pytest.mark.parametrize("frequency, degrees", [(0.2, 0), (0.15, 30), (0.25, 90), (0.2, 135)])
def test_a_gabor_filter_has_the_moments_of_its_gaussian(frequency, degrees):
    """Its spectrum is a Gaussian of standard deviation 1/(2 sqrt(2) pi sigma) around the wave's frequency."""
    sigma, angle = 6.0, math.radians(degrees)
    y, x = torch.meshgrid(*(torch.arange(-24, 25, dtype=DOUBLE),) * 2, indexing="ij")
    wave = torch.cos(2 * math.pi * frequency * (x * math.cos(angle) + y * math.sin(angle)))
    gabor = torch.exp(-(x**2 + y**2) / (2 * sigma**2)) * wave
    row = zfkit.filter_spectra(gabor[None, None], size=128).table().iloc[0]
    spread = 1 / (2 * math.sqrt(2) * math.pi * sigma)
    # Second order in spread / frequency: rho = f + d_along + d_across^2 / (2 f).
    assert row.centroid == pytest.approx(frequency + spread**2 / (2 * frequency), rel=2e-3)
    assert row.bandwidth == pytest.approx(spread, rel=0.02)
    assert row.peak == pytest.approx(frequency, abs=1 / 128)
    assert min((row.orientation - degrees) % 180, (degrees - row.orientation) % 180) < 0.2
    assert row.selectivity == pytest.approx(math.exp(-2 * (spread / frequency) ** 2), rel=0.02)


@given(seed=st.integers(0, 999), kernel=st.integers(2, 7), turns=st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_turning_a_filter_turns_its_orientation_and_nothing_else(seed, kernel, turns):
    weight = random_weight(2, 3, kernel, kernel, seed=seed)
    before = zfkit.filter_spectra(weight, stride=2).table()
    after = zfkit.filter_spectra(torch.rot90(weight, turns, (2, 3)), stride=2).table()
    turn = (after.orientation - before.orientation - 90 * turns) % 180
    assert np.minimum(turn, 180 - turn).max() < 1e-6
    rest = [name for name in before if name != "orientation"]
    np.testing.assert_allclose(after[rest], before[rest], atol=1e-9)


def test_a_flat_filter_is_low_and_a_chequerboard_is_all_beyond_the_new_nyquist():
    flat = zfkit.filter_spectra(torch.ones(1, 1, 24, 24, dtype=DOUBLE), stride=2).table().iloc[0]
    # In the square |u|, |v| < 1/12 lies one axis' share squared; the disc of the low band lies within it.
    f = np.linspace(-1 / 12, 1 / 12, 20001)
    one_axis = float(np.mean(24 * np.sinc(24 * f) ** 2) / 6)
    assert flat.low > 0.9 and flat.low == pytest.approx(one_axis**2, abs=0.03)
    assert flat.aliasable < 0.03 and flat.selectivity < 1e-9 and np.isnan(flat.orientation)
    board = grating(8, 4, 4)
    row = zfkit.filter_spectra(board, stride=2, size=8).table().iloc[0]
    assert row.aliasable == pytest.approx(1) and row.high == pytest.approx(1)
    assert row.peak == pytest.approx(math.sqrt(0.5))
    assert zfkit.filter_spectra(board, stride=1, size=8).table().iloc[0].aliasable == 0


def test_rows_and_columns_may_have_different_strides():
    level, upright = grating(8, 2, 0), grating(8, 0, 2)  # 1/4 cycle per pixel
    for stride, wanted in [((4, 1), (1, 0)), ((1, 4), (0, 1)), ((2, 2), (0, 0)), ((3, 3), (1, 1))]:
        found = [
            zfkit.filter_spectra(w, stride=stride, size=8).table().aliasable[0] for w in (level, upright)
        ]
        assert found == pytest.approx(wanted)


# ------------------------------------------------------------------------------------- what belongs to a layer


def test_a_single_tap_is_white():
    """Every number of a white filter is an area of the plane of frequencies."""
    weight = torch.zeros(2, 1, 5, 5, dtype=DOUBLE)
    weight[0, 0, 2, 2], weight[1, 0, 0, 4] = 3, -1
    spectra = zfkit.filter_spectra(weight, stride=4)
    torch.testing.assert_close(spectra.profile(), torch.ones(33, dtype=DOUBLE))
    torch.testing.assert_close(spectra.pooled, torch.full((64, 64), 1 / 4096, dtype=DOUBLE))
    summary = spectra.summary()
    assert summary["entropy"] == pytest.approx(1) and summary["mid_coverage"] == 1
    exact = spectra.exact_shares()
    np.testing.assert_allclose(exact.low, math.pi / 144)
    np.testing.assert_allclose(exact.mid, math.pi * (1 / 9 - 1 / 144))
    np.testing.assert_allclose(exact.high, 1 - math.pi / 9)
    np.testing.assert_allclose(exact.aliasable, 1 - 1 / 16)


@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)), stride=st.integers(1, 4), seed=st.integers(0, 99)
)
@settings(max_examples=15, deadline=None)
def test_exact_shares_are_what_ever_finer_bins_come_to(kernel, stride, seed):
    weight = random_weight(1, 2, *kernel, seed=seed)
    exact = zfkit.filter_spectra(weight, stride=stride).exact_shares().iloc[0]
    size = 840  # of which 1/3 and 1/12 are bins
    power = literal_power(weight, size)[0]
    f = np.fft.fftshift(np.fft.fftfreq(size))
    rho, largest = np.hypot(f[:, None], f), np.maximum(abs(f[:, None]), abs(f))
    low, below = ((power * ((rho < r) + 0.5 * (rho == r))).sum() / power.sum() for r in (1 / 12, 1 / 3))
    beyond = (power * (largest > 1 / (2 * stride) + 1e-9)).sum() / power.sum()
    bound = (power * (abs(largest - 1 / (2 * stride)) < 1e-9)).sum() / power.sum() if stride > 1 else 0
    np.testing.assert_allclose(exact, [low, below - low, 1 - below, beyond + bound / 2], atol=2e-3)


def test_mid_coverage_counts_the_bins_that_some_filter_is_tuned_to():
    side = 24
    f = np.fft.fftshift(np.fft.fftfreq(side))
    rho = np.hypot(f[:, None], f)
    waves = [
        (i, j) for i, j in itertools.product(range(-11, 12), repeat=2) if 2.01 <= math.hypot(i, j) <= 7.99
    ]
    middle = ((rho >= 1 / 12) & (rho <= 1 / 3)).sum()
    for chosen in (waves[:1], waves[:9], waves):
        bank = torch.cat([grating(side, *wave) for wave in chosen])
        bins = {wave for i, j in chosen for wave in ((i, j), (-i, -j))}
        found = zfkit.filter_spectra(bank, size=side).summary()["mid_coverage"]
        assert found == pytest.approx(len(bins) / middle)


def test_luminance_and_colour_add_up_to_the_whole():
    weight = random_weight(6, 3, 5, 5)
    spectra = zfkit.filter_spectra(weight, stride=2)
    grey, colours = spectra.part_of("luminance"), spectra.part_of("opponent")
    torch.testing.assert_close(grey.power + colours.power, spectra.power)
    share = grey.power.sum((1, 2)) / spectra.power.sum((1, 2))
    np.testing.assert_allclose(spectra.table().luminance, share)
    # What a filter answers to grey pictures is the convolution with the sum over its colours.
    np.testing.assert_allclose(grey.power, literal_power(weight.sum(1, keepdim=True), 64) / 3)
    np.testing.assert_allclose(grey.table().luminance, 1)
    np.testing.assert_allclose(colours.table().luminance, 0, atol=1e-12)
    assert spectra.part_of("all") is spectra


def test_dead_filters_are_left_out_of_the_layer():
    weight = random_weight(5, 3, 3, 3)
    alone = zfkit.filter_spectra(weight[:4])
    weight[4] = 0
    spectra = zfkit.filter_spectra(weight)
    table = spectra.table()
    assert table.drop(columns="energy").iloc[4].isna().all() and table.energy[4] == 0
    assert spectra.summary() == pytest.approx(alone.summary())
    torch.testing.assert_close(spectra.pooled, alone.pooled)


def test_each_filter_counts_the_same_in_the_pooled_spectrum():
    weight = random_weight(3, 3, 5, 5)
    factors = torch.tensor([1.0, 100, 0.01], dtype=DOUBLE).view(3, 1, 1, 1)
    torch.testing.assert_close(
        zfkit.filter_spectra(weight * factors).pooled, zfkit.filter_spectra(weight).pooled
    )


def test_the_profile_is_the_mean_over_rings():
    spectra = zfkit.filter_spectra(random_weight(4, 3, 5, 5), size=32)
    f = np.fft.fftshift(np.fft.fftfreq(32)) * 32
    ring = np.round(np.hypot(f[:, None], f))
    pooled = np.mean([p / p.sum() for p in spectra.power.numpy()], 0)
    wanted = [pooled[ring == r].mean() * 32**2 for r in range(17)]
    np.testing.assert_allclose(spectra.profile(), wanted)
    np.testing.assert_allclose(spectra.radii, np.arange(17) / 32)


# ------------------------------------------------------------------------------------------------- the control


def sphere_moments(weight_shape, mask):
    """Mean and variance of w'Kw / w'w for normal w, K the quadratic form of the power in a set of bins.

    A direction drawn from the sphere in n dimensions has E[x'Kx] = tr K / n and Var[x'Kx] =
    2 (n tr K^2 - (tr K)^2) / (n^2 (n + 2)).
    """
    _, c, kh, kw = weight_shape
    taps = torch.eye(kh * kw, dtype=DOUBLE).view(-1, kh, kw)
    waves = torch.fft.fftshift(torch.fft.fft2(taps, s=mask.shape), (1, 2)) / len(mask)
    K = (waves[:, mask] @ waves[:, mask].conj().T).real
    n, trace, square = c * len(K), c * float(K.trace()), c * float((K @ K).trace())
    return trace / n, 2 * (n * square - trace**2) / (n**2 * (n + 2))


def test_random_filters_have_the_mean_and_the_spread_of_random_directions():
    shape = (16, 3, 5, 5)
    spectra = zfkit.filter_spectra(random_weight(*shape), stride=2)
    control = zfkit.frequency.random_control(spectra, draws=200, seed=1)
    f = torch.fft.fftshift(torch.fft.fftfreq(64, dtype=DOUBLE))
    rho = torch.hypot(f[:, None].expand(64, 64), f.expand(64, 64))
    largest = torch.maximum(f[:, None].abs(), f.abs())
    masks = {
        "low": rho < 1 / 12,
        "mid": (rho >= 1 / 12) & (rho <= 1 / 3),
        "high": rho > 1 / 3,
        "aliasable": largest > 1 / 4,
    }
    for name, mask in masks.items():
        mean, variance = sphere_moments(shape, mask)
        assert mean == pytest.approx(float(mask.double().mean()))  # the band's share of the plane
        assert control.expected[name] == pytest.approx(mean)
        found = control.drawn[name]
        assert abs(float(found.mean()) - mean) < 4 * math.sqrt(variance / 16 / 200), name
        assert float(found.std()) == pytest.approx(math.sqrt(variance / 16), rel=0.25), name
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
    np.testing.assert_allclose(module._expected_control(spectra, "shuffled").power, wanted)
    control = zfkit.frequency.random_control(spectra, kind="shuffled", draws=400)
    for name in ("low", "mid", "high", "centroid"):
        error = float(control.drawn[name].std()) / math.sqrt(400)
        assert abs(float(control.drawn[name].mean()) - control.expected[name]) < 4 * error


def test_shuffling_keeps_each_filters_weights_colours_and_sum():
    weight = random_weight(4, 3, 3, 3)
    control = zfkit.frequency.random_control(zfkit.filter_spectra(weight), kind="shuffled", draws=3)
    share = zfkit.filter_spectra(weight).summary()["luminance"]
    assert control.interval("luminance") == pytest.approx((share, share))
    at_zero = float((weight.sum((2, 3)).square().sum(1) / weight.square().sum((1, 2, 3))).mean())
    np.testing.assert_allclose(control.profiles[:, 0], at_zero)


def test_a_control_depends_on_its_seed_and_on_nothing_else():
    spectra = zfkit.filter_spectra(random_weight(4, 3, 3, 3))
    torch.manual_seed(5)
    first = zfkit.frequency.random_control(spectra, draws=3, seed=7)
    torch.manual_seed(6)
    again, other = (zfkit.frequency.random_control(spectra, draws=3, seed=s) for s in (7, 8))
    assert torch.equal(first.drawn["mid"], again.drawn["mid"])
    assert not torch.equal(first.drawn["mid"], other.drawn["mid"])


def test_the_controls_of_parts_are_of_the_same_part():
    spectra = zfkit.filter_spectra(random_weight(8, 3, 5, 5))
    for part, luminance in (("luminance", 1), ("opponent", 0)):
        control = zfkit.frequency.random_control(spectra.part_of(part), draws=50)
        assert control.expected["luminance"] == luminance
        np.testing.assert_allclose(control.drawn["luminance"], luminance, atol=1e-12)
        assert control.expected["mid"] == pytest.approx(float(control.drawn["mid"].mean()), abs=0.01)


def test_what_is_told_apart_from_chance():
    upright = torch.cat([grating(11, 0, n, phase) for n in (1, 2, 3) for phase in (0.0, 1.0)])
    table = zfkit.frequency.random_control(zfkit.filter_spectra(upright), draws=40).table()
    assert table.outside[["mid", "high", "selectivity", "entropy"]].all()
    noise = zfkit.frequency.random_control(
        zfkit.filter_spectra(random_weight(32, 3, 7, 7, seed=3)), level=0.998
    ).table()
    assert not noise.outside.any()


# --------------------------------------------------------------------------------------------- the bundled pair


@pytest.fixture(scope="module")
def pair():
    return {name: zfkit.load_model(name, device="cpu") for name in ("alexnet64", "zfnet64")}


def test_the_first_layers_of_the_bundled_pair(pair):
    """Shares of energy as measured when the networks were trained, and literally on a grid of 64 bins."""
    wanted = {
        "alexnet64": {"low": 0.25, "mid": 0.48, "aliasable": 0.54},
        "zfnet64": {"low": 0.14, "mid": 0.56, "aliasable": 0.38},
    }
    f = np.fft.fftshift(np.fft.fftfreq(64))
    rho, largest = np.hypot(f[:, None], f), np.maximum(abs(f[:, None]), abs(f))
    for name, model in pair.items():
        summary = zfkit.filter_spectra(model).summary()
        assert {k: round(summary[k], 2) for k in wanted[name]} == wanted[name]
        P = literal_power(model.net.conv1.weight.double(), 64)
        P /= P.sum((1, 2), keepdims=True)
        masks = {
            "low": rho < 1 / 12,
            "mid": (rho >= 1 / 12) & (rho <= 1 / 3),
            "high": rho > 1 / 3,
            "aliasable": largest > 1 / (2 * model.net.conv1.stride[0]),
        }
        literal = {k: P[:, m].sum(1).mean() for k, m in masks.items()} | {
            "centroid": (P * rho).sum((1, 2)).mean()
        }
        assert {k: summary[k] for k in literal} == pytest.approx(literal)
        half = P.max((1, 2), keepdims=True) / 2
        coverage = (half <= P).any(0)[masks["mid"]].mean()
        assert summary["mid_coverage"] == pytest.approx(coverage)


def test_deeper_layers_count_in_their_own_pixels(pair):
    strides = {
        name: [zfkit.filter_spectra(m, n).input_stride for n in m.conv_layers[:3]] for name, m in pair.items()
    }
    assert strides == {"alexnet64": [1, 8, 8], "zfnet64": [1, 4, 8]}
    deeper = zfkit.filter_spectra(pair["zfnet64"], "conv2")
    weight = pair["zfnet64"].net.conv2.weight[:3].double()
    np.testing.assert_allclose(deeper.power[:3], literal_power(weight, 64))
    assert (
        deeper.sees == "maps"
        and deeper.table().luminance.isna().all()
        and (deeper.table().aliasable == 0).all()
    )
    assert np.isnan(zfkit.frequency.random_control(deeper, draws=2).table().expected["luminance"])
    with pytest.raises(
        LayerError, match=r"zfnet64 conv2 does not take a picture in RGB \(a filter has 96 input"
    ):
        deeper.part_of("luminance")


def test_the_table_joins_what_was_mined(pair):
    model = pair["zfnet64"]
    spectra = zfkit.filter_spectra(model, "conv1")
    table = zfkit.frequency.spectral_table(model, ["conv1", "conv2"])
    assert table.index.names == ["layer", "channel"] and len(table) == 96 + 256
    assert table.loc["conv1"].equals(spectra.table())
    images = zfkit.load_images("photos", size=64, limit=6, progress=False)
    top = zfkit.mine(model, images, ["conv1"], k=2, progress=False)
    joined = top.table("conv1").join(table, on=["layer", "channel"])
    assert len(joined) == len(top.table("conv1")) >= 96
    assert (joined.centroid.to_numpy() == table.loc["conv1"].centroid[joined.channel].to_numpy()).all()
    statistics = top.statistics("conv1").join(spectra.table())
    assert statistics.notna().all(axis=None) and list(statistics.index) == list(range(96))


def test_several_networks_in_one_table():
    table = zfkit.frequency.compare_spectra(
        ["zfnet64", "torchvision:resnet18"], draws=40, seed=0, weights=None
    )
    assert table.index.names == ["model", "measure"]
    value = table["value"].unstack("model")
    assert round(value["zfnet64 conv1"].mid, 2) == 0.56
    untrained = table.loc["torchvision:resnet18 conv1"]  # 64 filters 3x7x7, stride 2
    assert untrained.expected.mid == pytest.approx(0.328, abs=1e-3)  # of 64x64 bins
    width = untrained.high - untrained.low
    assert ((untrained.value - untrained.expected).abs() <= width).all()  # twice the interval's half
    assert table.loc["zfnet64 conv1"].outside[["low", "mid", "high", "aliasable", "entropy"]].all()


# ------------------------------------------------------------------------------------------ unusual convolutions


def wrapped(*layers, channels=3):
    torch.manual_seed(0)
    mean = 0.0 if channels == 1 else [0.0] * channels
    return zfkit.wrap_model(nn.Sequential(*layers).double(), mean=mean, scale=1.0, input_size=32)


def test_filters_of_one_pixel_are_white_whatever_they_hold():
    spectra = zfkit.filter_spectra(wrapped(nn.Conv2d(3, 5, 1)))
    table = spectra.table()
    np.testing.assert_allclose(table[["low", "mid"]], [[89 / 4096, 1344 / 4096]] * 5)
    assert (
        (table.selectivity < 1e-9).all() and table.orientation.isna().all() and (table.aliasable == 0).all()
    )
    assert table.luminance.between(0, 1).all()  # the one thing such a filter can choose
    control = zfkit.frequency.random_control(spectra, draws=5)
    assert control.interval("mid") == pytest.approx((1344 / 4096,) * 2)
    assert not control.table().outside.drop("luminance").any()
    assert zfkit.frequency.random_control(spectra, kind="shuffled", draws=5).expected["mid"] == pytest.approx(
        1344 / 4096
    )


def test_networks_for_grey_pictures_have_no_colours():
    spectra = zfkit.filter_spectra(wrapped(nn.Conv2d(1, 4, 5, stride=2), channels=1))
    assert spectra.sees == "grey" and (spectra.table().luminance == 1).all()
    assert zfkit.frequency.random_control(spectra, draws=2).expected["luminance"] == 1
    with pytest.raises(LayerError, match="a filter has 1 input channels"):
        spectra.part_of("opponent")


def test_grouped_filters_see_their_own_channels_only():
    model = wrapped(nn.Conv2d(3, 6, 3, groups=3, stride=2), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2))
    first, second = (zfkit.filter_spectra(model, n) for n in ("0", "2"))
    assert first.weight.shape == (6, 1, 3, 3) and first.sees == "maps" and first.stride == (2, 2)
    assert second.weight.shape == (4, 3, 3, 3) and second.sees == "maps" and second.input_stride == 2
    np.testing.assert_allclose(second.power, literal_power(model.net[2].weight.detach(), 64))


def test_the_first_convolution_behind_other_layers_still_sees_the_picture():
    net = wrapped(nn.BatchNorm2d(3), nn.AvgPool2d(2), nn.Conv2d(3, 4, 3))
    spectra = zfkit.filter_spectra(net)
    assert (spectra.layer, spectra.sees, spectra.input_stride) == ("2", "colour", 2)


def test_units_that_see_everything_have_no_stride():
    net = wrapped(nn.AdaptiveAvgPool2d(4), nn.Conv2d(3, 4, 3))
    assert zfkit.filter_spectra(net).input_stride is None


# --------------------------------------------------------------------------------------------------- bad input


def test_layers_without_filters_are_refused_by_name(pair):
    model = pair["zfnet64"]
    with pytest.raises(LayerError, match=r"'fc6' is Linear, which has no filters; take one of conv1, conv2"):
        zfkit.filter_spectra(model, "fc6")
    with pytest.raises(LayerError, match=r"there is no layer 'conv9'. Did you mean 'conv"):
        zfkit.filter_spectra(model, "conv9")
    with pytest.raises(LayerError, match="no layer was named"):
        zfkit.frequency.spectral_table(model, [])


@pytest.mark.parametrize(
    "weight, options, message",
    [
        (
            torch.ones(3, 5, 5),
            {},
            r"expected weights \(C_out, C_in, kh, kw\) as floats, got float32 \(3, 5, 5\)",
        ),
        (torch.ones(1, 1, 2, 2, dtype=torch.int64), {}, r"as floats, got int64"),
        (torch.zeros(2, 3, 5, 5), {}, "all filters of the weights are zero"),
        (torch.full((2, 3, 5, 5), torch.nan), {}, "the weights are not all finite"),
        (torch.ones(2, 3, 5, 5), {"size": 4}, "at least the filters' 5 px, not 4"),
        (torch.ones(2, 3, 5, 5), {"stride": 0}, "stride must be a whole number of pixels from 1 on.*not 0"),
        (torch.ones(2, 3, 5, 5), {"layer": "conv1"}, "bare weights have no layer 'conv1'"),
    ],
)
def test_bad_weights_are_named(weight, options, message):
    with pytest.raises(ZfkitError, match=message):
        zfkit.filter_spectra(weight, **options)


def test_bad_numbers_of_the_control_are_named():
    spectra = zfkit.filter_spectra(random_weight(2, 3, 3, 3))
    for options, message in [
        ({"kind": "uniform"}, "there is no kind of control 'uniform'"),
        ({"draws": 1}, "draws must be a whole number from 2 on, not 1"),
        ({"level": 95}, "level must lie between 0 and 1"),
    ]:
        with pytest.raises(ZfkitError, match=message):
            zfkit.frequency.random_control(spectra, **options)
    with pytest.raises(ZfkitError, match="there is no measure 'middle'"):
        zfkit.frequency.random_control(spectra, draws=2).interval("middle")
    with pytest.raises(ZfkitError, match="there is no part 'red'"):
        spectra.part_of("red")
    with pytest.raises(ZfkitError, match="this is the luminance part already"):
        spectra.part_of("luminance").part_of("opponent")
    with pytest.raises(ZfkitError, match="no model to compare"):
        zfkit.frequency.compare_spectra([])
    with pytest.raises(ZfkitError, match="two of the models are called 'weights'"):
        zfkit.frequency.compare_spectra([spectra, spectra], draws=2)


# ---------------------------------------------------------------------------------------------------- lattices


def noise(count, side, seed=0):
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.mark.parametrize("period", [2, 3, 4, 8])
@pytest.mark.parametrize("depth", [0.1, 0.4])
def test_the_depth_of_a_grid_is_the_root_of_its_peak(period, depth):
    """Noise whose variance is 1 + depth cos(2 pi x / period): power (depth / 2)^2, at period 2 depth^2."""
    side = 8 * period + 3
    x = torch.arange(side, dtype=DOUBLE)
    pictures = (
        noise(4000 if side < 40 else 1500, side) * (1 + depth * torch.cos(2 * math.pi * x / period)).sqrt()
    )
    found = zfkit.frequency.lattice(pictures, period)
    strongest = found.table().iloc[0]
    assert (strongest.u, abs(strongest.v)) == (0, pytest.approx(1 / period))
    told = math.sqrt(strongest.power) * (1 if period == 2 else 2)
    assert told == pytest.approx(depth, rel=0.15)
    assert found.ratio > 3 * found.interval()[1]
    # The same grid, looked for with another period, is not there.
    other = {2: 3, 3: 2, 4: 3, 8: 5}[period]
    assert (
        zfkit.frequency.lattice(pictures, other).ratio
        < 2 * zfkit.frequency.lattice(pictures, other).interval()[1]
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("of", ["energy", "pixels"])
def test_noise_has_no_grid(seed, of):
    found = zfkit.frequency.lattice(noise(200, 40, seed), 4, of=of)
    low, high = found.interval(1.0)
    assert low / 2 < found.ratio < 2 * high


def test_filling_with_zeros_repeats_the_spectrum():
    """Smooth noise on every s-th pixel: power at k/s is that at 0; a smooth filter after it lowers the copies."""
    s, side = 4, 64
    coarse = noise(64, side // s + 8, seed=1)
    coarse = nn.functional.avg_pool2d(coarse, 9, 1)  # (64, 1, 16, 16), low frequencies
    filled = torch.zeros(64, 1, side, side, dtype=DOUBLE)
    filled[:, :, ::s, ::s] = coarse
    sharp = zfkit.frequency.lattice(filled, s, of="pixels")
    assert sharp.ratio > 1.5 * sharp.interval()[1]
    assert zfkit.frequency.lattice(filled, s).ratio > 10 * zfkit.frequency.lattice(filled, s).interval()[1]
    smooth = nn.functional.avg_pool2d(filled, s, 1)  # zeros of its spectrum at every k/s
    assert zfkit.frequency.lattice(smooth, s, of="pixels").ratio < 0.1 * sharp.ratio


def test_a_chequerboard_is_in_the_pixels_and_not_in_their_squares():
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    pictures = noise(300, 32) + 0.5 * (-1.0) ** (x + y)
    pixels, energy = (zfkit.frequency.lattice(pictures, 2, of=of) for of in ("pixels", "energy"))
    assert tuple(pixels.table().iloc[0][["u", "v"]].abs()) == (0.5, 0.5)
    assert pixels.ratio > 10 * pixels.interval()[1]
    assert energy.ratio < 3 * energy.interval()[1]


def test_a_lattices_points_are_all_multiples_one_of_each_pair():
    found = zfkit.frequency.lattice(noise(3, 33), 4)
    points = {(float(u) % 1, float(v) % 1) for u, v in found.points}
    every = {(k / 4, m / 4) for k in range(4) for m in range(4)} - {(0.0, 0.0)}
    assert points | {(-u % 1, -v % 1) for u, v in points} == every
    assert len(points) == len(found.points) == 9  # 3 are their own opposites, 12 make 6 pairs
    assert tuple(zfkit.frequency.lattice(noise(3, 33), (2, 4)).stride) == (2, 4)


def test_neighbours_lie_along_the_axis_or_on_the_diagonals():
    found = zfkit.frequency.lattice(noise(5, 32), 4)
    size, middle = len(found.power), len(found.power) // 2
    reach = round(found.reach * size)
    assert reach / size == 2 / 32
    for (u, v), peak, beside in zip(found.points, found.peak, found.neighbours, strict=True):
        row, column = (round(float(f) * size) + middle for f in (u, v))
        steps = (
            itertools.product((-1, 1), repeat=2) if u and v else [(bool(u), bool(v)), (-bool(u), -bool(v))]
        )
        at = [found.power[(row + reach * i) % size, (column + reach * j) % size] for i, j in steps]
        assert peak == found.power[row % size, column % size]
        assert float(beside) == pytest.approx(float(sum(at)) / len(at))


def test_contrast_does_not_count_and_empty_pictures_neither():
    pictures = noise(20, 20)
    scaled = torch.cat(
        [pictures * torch.rand(20, 1, 1, 1, dtype=DOUBLE) + 7, torch.full((5, 1, 20, 20), 3.0)]
    )
    a, b = zfkit.frequency.lattice(pictures, 2), zfkit.frequency.lattice(scaled, 2)
    torch.testing.assert_close(a.power, b.power)
    assert b.count == 20
    assert zfkit.frequency.lattice(pictures[0, 0], 2).count == 1
    torch.testing.assert_close(zfkit.frequency.lattice(pictures.view(4, 5, 1, 20, 20), 2).power, a.power)


@pytest.mark.parametrize(
    "pictures, stride, message",
    [
        (torch.ones(2, 3, 32, 32), 1, "a stride of 1 leaves no lattice"),
        (torch.ones(2, 3, 32, 32), 0, "stride must be a whole number"),
        (torch.ones(2, 3, 32, 32), 2, "every picture is of one colour throughout"),
        (torch.rand(2, 3, 15, 32), 4, "pictures of 15x32 px are too small.*at least 16 px"),
        (torch.full((1, 1, 16, 16), torch.inf), 2, "some pixels are not finite"),
        (torch.rand(5), 2, r"expected Patches, or pixels .* got \(5,\)"),
        ("photos", 2, "got str"),
    ],
)
def test_pictures_that_cannot_hold_a_lattice(pictures, stride, message):
    with pytest.raises(ZfkitError, match=message):
        zfkit.frequency.lattice(pictures, stride)
    with pytest.raises(ZfkitError, match="there is no kind of spectrum 'power'"):
        zfkit.frequency.lattice(torch.rand(16, 16), 2, of="power")


# ----------------------------------------------------------------------------------------------------- figures


@pytest.fixture
def plotting():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    import zfkit.figures.experiments as plotting

    yield plotting
    plt.close("all")


def test_a_sheet_of_filters_is_sorted_and_symmetric_about_grey(plotting):
    """Flat filters of one colour each, and one of stripes: its tile comes last, and 0 is grey 128."""
    weight = torch.ones(4, 3, 2, 2, dtype=DOUBLE) * torch.tensor([0.5, -3.0, 1.0, 2.0], dtype=DOUBLE).view(
        4, 1, 1, 1
    )
    weight[2, :, :, 1] *= -1
    weight[3, 0] = 0
    axes = plotting.filter_sheet(zfkit.filter_spectra(weight), columns=2).axes[0]
    sheet = np.asarray(axes.images[0].get_array())
    tile, step = 66, 72
    colours = [sheet[y : y + tile, x : x + tile].reshape(-1, 3) for y in (0, step) for x in (0, step)]
    assert [set(map(tuple, c.tolist())) for c in colours] == [
        {(255, 255, 255)}, {(1, 1, 1)}, {(128, 255, 255)}, {(255, 255, 255), (1, 1, 1)},
    ]  # fmt: skip
    table = zfkit.filter_spectra(weight).table()
    firsts = [float(label.get_text()) for label in axes.get_yticklabels()]
    np.testing.assert_allclose(firsts, table.centroid.sort_values().iloc[::2], atol=0.006)
    with pytest.raises(LayerError, match="do not look at a picture"):
        plotting.filter_sheet(zfkit.filter_spectra(random_weight(2, 5, 3, 3)))
    with pytest.raises(ZfkitError, match=r"there is no column 'centre'\. Did you mean 'centroid'"):
        plotting.filter_sheet(zfkit.filter_spectra(weight), order="centre")


def test_radial_spectra_show_profiles_over_the_controls_band(plotting):
    spectra = [zfkit.filter_spectra(random_weight(3, 3, k, k, seed=k), stride=k // 2) for k in (3, 5)]
    controls = [zfkit.frequency.random_control(s, draws=5) for s in spectra]
    axes = plotting.radial_spectra(controls).axes[0]
    curves = [line for line in axes.lines if len(line.get_xdata()) == 33]
    for control, curve, band in zip(controls, curves, axes.collections, strict=True):
        np.testing.assert_allclose(curve.get_ydata(), control.spectra.profile())
        corners = band.get_paths()[0].vertices[:, 1]
        low, high = control.profile_interval()
        np.testing.assert_allclose([corners.min(), corners.max()], [low.min(), high.max()])
    triangles = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "^"]
    assert triangles == [0.25]  # stride 1 folds nothing


def test_maps_of_spectra_share_one_scale(plotting):
    spectra = [zfkit.filter_spectra(random_weight(3, 3, k, k, seed=k), stride=2) for k in (2, 3, 4, 5, 6)]
    figure = plotting.spectrum_maps(spectra)
    shown = [axes.images[0] for axes in figure.axes if axes.images and axes.get_title(loc="left")]
    assert len(shown) == 5 and len({(i.norm.vmin, i.norm.vmax) for i in shown}) == 1
    np.testing.assert_allclose(shown[2].get_array(), spectra[2].pooled * 4096)
    left, right, bottom, top = shown[0].get_extent()
    assert (left + 0.5 / 64, top + 0.5 / 64) == (-0.5, -0.5) and (right + 0.5 / 64, bottom + 0.5 / 64) == (
        0.5,
        0.5,
    )


def test_the_cut_through_a_lattice_runs_from_0_to_the_nyquist_frequency(plotting):
    pictures = noise(50, 32) * (1 + 0.5 * torch.cos(math.pi * torch.arange(32) / 2)).sqrt()
    found, control = (
        zfkit.frequency.lattice(pictures, 4, name="grid"),
        zfkit.frequency.lattice(noise(50, 32, 1), 4, name="noise"),
    )
    axes = plotting.lattice_figure(found, [control]).axes
    curves = {line.get_label(): line for line in axes[2].lines}
    right = curves["to the right"]
    assert right.get_xdata()[0] == 0 and right.get_xdata()[-1] == 0.5
    at = dict(zip(np.round(right.get_xdata(), 6), right.get_ydata(), strict=True))
    assert at[0] == pytest.approx(1)
    peak = found.table().iloc[0]
    assert (peak.u, abs(peak.v)) == (0, 0.25) and at[0.25] == pytest.approx(peak.power)
    assert curves["noise"].get_ydata()[0] == pytest.approx(1)
