"""`filter_spectra` against closed forms and literal Fourier transforms."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from signals import F64, bands, distances_from_0, filter_of_one_wave, literal_power, random_weight, wrap
from tiny import image_set, random_pixels
from torch import nn

import zfkit
from zfkit import ZfkitError
from zfkit.errors import LayerError

# ------------------------------------------------------------------------------------------------ power spectra


@given(
    shape=st.tuples(*(st.integers(1, n) for n in (4, 5, 7, 7))),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    extra=st.integers(0, 9),
    random_seed=st.integers(0, 99),
)
def test_power_is_the_squared_fourier_transform_with_the_zeros(shape, dilation, extra, random_seed):
    size = max(2, *(d * (k - 1) + 1 for d, k in zip(dilation, shape[2:], strict=True))) + extra
    weight = random_weight(*shape, random_seed=random_seed)
    conv = nn.Conv2d(shape[1], shape[0], shape[2:], dilation=dilation)
    model = wrap(nn.Conv2d(3, shape[1], 1), conv, size=24)
    with torch.no_grad():
        conv.weight.copy_(weight)
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
def test_a_pure_grating_is_found_where_it_was_put(side, down, right, phase, stride):
    """A whole number of cycles over the filter, and as many bins as taps: the spectrum is one pair of bins."""
    largest = max(abs(down), abs(right))
    if not 0 < 2 * largest < side:
        return
    spectra = zfkit.filter_spectra(filter_of_one_wave(side, down, right, phase), stride=stride, size=side)
    row = spectra.table().iloc[0]
    rho = math.hypot(down, right) / side
    assert row.centroid == pytest.approx(rho) and row.peak == pytest.approx(rho)
    assert row.bandwidth == pytest.approx(0, abs=1e-6) and row.selectivity == pytest.approx(1)
    turn = (row.orientation - math.degrees(math.atan2(down, right))) % 180
    assert min(turn, 180 - turn) < 1e-6
    if min(abs(rho - 1 / 12), abs(rho - 1 / 3)) > 1e-9:
        band = "low" if rho < 1 / 12 else "mid" if rho < 1 / 3 else "high"
        assert row[["low", "mid", "high"]].sum() == pytest.approx(1) and row[band] == pytest.approx(1)
    if 2 * stride * largest != side:
        assert row.aliasable == pytest.approx(float(2 * stride * largest > side))
    assert spectra.summary()["entropy"] == pytest.approx(math.log(2) / math.log(side**2))


@pytest.mark.parametrize("frequency, degrees", [(0.15, 30), (0.2, 135)])
def test_a_gabor_filter_has_the_moments_of_its_gaussian(frequency, degrees):
    """Its spectrum is a Gaussian of standard deviation 1/(2 sqrt(2) pi sigma) around the wave's frequency."""
    sigma, angle = 6.0, math.radians(degrees)
    y, x = torch.meshgrid(*(torch.arange(-24, 25, dtype=F64),) * 2, indexing="ij")
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


@given(random_seed=st.integers(0, 999), kernel=st.integers(2, 7), turns=st.integers(1, 3))
def test_turning_a_filter_turns_its_orientation_and_nothing_else(random_seed, kernel, turns):
    weight = random_weight(2, 3, kernel, kernel, random_seed=random_seed)
    before = zfkit.filter_spectra(weight, stride=2).table()
    after = zfkit.filter_spectra(torch.rot90(weight, turns, (2, 3)), stride=2).table()
    turn = (after.orientation - before.orientation - 90 * turns) % 180
    assert np.minimum(turn, 180 - turn).max() < 1e-6
    rest = [name for name in before if name != "orientation"]
    np.testing.assert_allclose(after[rest], before[rest], atol=1e-9)


def test_a_flat_filter_is_low_and_a_chequerboard_is_all_beyond_the_new_nyquist():
    flat = zfkit.filter_spectra(torch.ones(1, 1, 24, 24, dtype=F64), stride=2).table().iloc[0]
    # In the square |u|, |v| < 1/12 lies one axis' share squared; the disc of the low band lies within it.
    f = np.linspace(-1 / 12, 1 / 12, 20001)
    one_axis = float(np.mean(24 * np.sinc(24 * f) ** 2) / 6)
    assert flat.low > 0.9 and flat.low == pytest.approx(one_axis**2, abs=0.03)
    assert flat.aliasable < 0.03 and flat.selectivity < 1e-9 and np.isnan(flat.orientation)
    row = zfkit.filter_spectra(filter_of_one_wave(8, 4, 4), stride=2, size=8).table().iloc[0]
    assert row.aliasable == pytest.approx(1) and row.high == pytest.approx(1)
    assert row.peak == pytest.approx(math.sqrt(0.5))


def test_rows_and_columns_may_have_different_strides():
    level, upright = filter_of_one_wave(8, 2, 0), filter_of_one_wave(8, 0, 2)  # 1/4 cycle per pixel
    for stride, wanted in [((4, 1), (1, 0)), ((1, 4), (0, 1)), ((2, 2), (0, 0)), ((3, 3), (1, 1))]:
        spectra = [zfkit.filter_spectra(w, stride=stride, size=8) for w in (level, upright)]
        aliasable = [s.table().aliasable[0] for s in spectra]
        assert aliasable == pytest.approx(wanted)


def test_mean_frequency_of_pictures():
    waves = zfkit.frequency.gratings([4 / 64, 16 / 64], size=64, dtype=F64) - 127.5
    assert zfkit.frequency.mean_frequency(waves).tolist() == pytest.approx([4 / 64, 16 / 64], abs=1e-4)
    assert zfkit.frequency.mean_frequency(torch.zeros(1, 3, 8, 8)).isnan().all()
    assert zfkit.frequency.mean_frequency(torch.zeros(0, 3, 9, 9)).shape == (0,)


# ------------------------------------------------------------------------------------- what belongs to a layer


def test_a_single_tap_is_white():
    """Every number of a white filter is an area of the plane of frequencies."""
    weight = torch.zeros(2, 1, 5, 5, dtype=F64)
    weight[0, 0, 2, 2], weight[1, 0, 0, 4] = 3, -1
    spectra = zfkit.filter_spectra(weight, stride=4)
    torch.testing.assert_close(spectra.profile(), torch.ones(33, dtype=F64))
    torch.testing.assert_close(spectra.pooled, torch.full((64, 64), 1 / 4096, dtype=F64))
    summary = spectra.summary()
    assert summary["entropy"] == pytest.approx(1) and summary["mid_coverage"] == 1
    areas = [math.pi / 144, math.pi * (1 / 9 - 1 / 144), 1 - math.pi / 9, 1 - 1 / 16]
    np.testing.assert_allclose(spectra.exact_shares(), [areas, areas])


@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 4),
    random_seed=st.integers(0, 99),
)
def test_exact_shares_are_what_ever_finer_bins_come_to(kernel, stride, random_seed):
    weight = random_weight(1, 2, *kernel, random_seed=random_seed)
    exact = zfkit.filter_spectra(weight, stride=stride).exact_shares().iloc[0]
    size = 480  # of which 1/3 and 1/12 are bins
    power = literal_power(weight, size)[0]
    power /= power.sum()
    rho, largest = distances_from_0(size)
    low, below = ((power * ((rho < r) + 0.5 * (rho == r))).sum() for r in (1 / 12, 1 / 3))
    beyond = (power * (largest > 1 / (2 * stride) + 1e-9)).sum()
    bound = (power * (abs(largest - 1 / (2 * stride)) < 1e-9)).sum() if stride > 1 else 0
    np.testing.assert_allclose(exact, [low, below - low, 1 - below, beyond + bound / 2], atol=3e-3)


def test_mid_coverage_counts_the_bins_that_some_filter_is_tuned_to():
    side = 24
    rho, _ = distances_from_0(side)
    middle = ((rho >= 1 / 12) & (rho <= 1 / 3)).sum()
    every = itertools.product(range(-11, 12), repeat=2)
    waves = [(i, j) for i, j in every if 2.01 <= math.hypot(i, j) <= 7.99]
    for chosen in (waves[:1], waves[:9], waves):
        bank = torch.cat([filter_of_one_wave(side, *wave) for wave in chosen])
        bins = {wave for i, j in chosen for wave in ((i, j), (-i, -j))}
        coverage = zfkit.filter_spectra(bank, size=side).summary()["mid_coverage"]
        assert coverage == pytest.approx(len(bins) / middle)


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


def test_each_filter_counts_the_same_in_the_pooled_spectrum_and_dead_ones_not_at_all():
    weight = random_weight(5, 3, 3, 3)
    weight[4] = 0
    factors = torch.tensor([1.0, 100, 0.01, 3, 1], dtype=F64).view(5, 1, 1, 1)
    spectra, alone = zfkit.filter_spectra(weight * factors), zfkit.filter_spectra(weight[:4])
    table = spectra.table()
    assert table.drop(columns="energy").iloc[4].isna().all() and table.energy[4] == 0
    assert spectra.summary() == pytest.approx(alone.summary())
    torch.testing.assert_close(spectra.pooled, alone.pooled)


def test_the_profile_is_the_mean_over_rings():
    spectra = zfkit.filter_spectra(random_weight(4, 3, 5, 5), size=32)
    ring = np.round(32 * distances_from_0(32)[0])
    pooled = np.mean([p / p.sum() for p in spectra.power.numpy()], 0)
    wanted = [pooled[ring == r].mean() * 32**2 for r in range(17)]
    np.testing.assert_allclose(spectra.profile(), wanted)
    np.testing.assert_allclose(spectra.radii, np.arange(17) / 32)


# ------------------------------------------------------------------------------------------------- networks


def test_the_first_layers_of_the_bundled_pair(zfnet64, alexnet64):
    """Shares of energy as measured when the networks were trained, and literally on a grid of 64 bins."""
    wanted = {
        alexnet64: {"low": 0.25, "mid": 0.48, "aliasable": 0.54},
        zfnet64: {"low": 0.14, "mid": 0.56, "aliasable": 0.38},
    }
    rho, largest = distances_from_0(64)
    for model, shares in wanted.items():
        summary = zfkit.filter_spectra(model).summary()
        assert {k: round(summary[k], 2) for k in shares} == shares
        P = literal_power(model.net.conv1.weight.detach().double(), 64)
        P /= P.sum((1, 2), keepdims=True)
        masks = bands(rho, largest, model.net.conv1.stride[0])
        literal = {k: P[:, m].sum(1).mean() for k, m in masks.items()}
        literal["centroid"] = (P * rho).sum((1, 2)).mean()
        literal["mid_coverage"] = (P.max((1, 2), keepdims=True) / 2 <= P).any(0)[masks["mid"]].mean()
        assert {k: summary[k] for k in literal} == pytest.approx(literal)


def test_deeper_layers_count_in_their_own_pixels(zfnet64, alexnet64):
    pair = alexnet64, zfnet64
    strides = [[zfkit.filter_spectra(m, n).input_stride for n in m.conv_layers[:3]] for m in pair]
    assert strides == [[1, 8, 8], [1, 4, 8]]
    deeper = zfkit.filter_spectra(zfnet64, "conv2")
    weight = zfnet64.net.conv2.weight[:3].detach().double()
    np.testing.assert_allclose(deeper.power[:3], literal_power(weight, 64))
    table = deeper.table()
    assert deeper.sees == "maps" and table.luminance.isna().all() and (table.aliasable == 0).all()


def test_the_table_joins_what_was_mined(zfnet64):
    table = zfkit.frequency.spectral_table(zfnet64, ["conv1", "conv2"])
    assert table.index.names == ["layer", "channel"] and len(table) == 96 + 256
    assert table.loc["conv1"].equals(zfkit.filter_spectra(zfnet64, "conv1").table())
    top = zfkit.mine(zfnet64, image_set(random_pixels(4, 64)), ["conv1"], k=2, progress=False)
    strongest = top.table("conv1")
    joined = strongest.join(table, on=["layer", "channel"])
    assert len(joined) == len(strongest) >= 96
    assert (joined.centroid.to_numpy() == table.loc["conv1"].centroid[joined.channel].to_numpy()).all()


@pytest.mark.parametrize("layers, channels, layer, seen", [
    ([nn.Conv2d(1, 4, 5, stride=2)], 1, "0", ("grey", 1)),
    ([nn.Conv2d(3, 6, 3, groups=3, stride=2)], 3, "0", ("maps", 1)),  # each sees one of the colours
    ([nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2)], 3, "2", ("maps", 2)),
    ([nn.BatchNorm2d(3), nn.AvgPool2d(2), nn.Conv2d(3, 4, 3)], 3, "2", ("colour", 2)),
    ([nn.AdaptiveAvgPool2d(4), nn.Conv2d(3, 4, 3)], 3, "1", ("colour", None)),  # sees the whole picture
])  # fmt: skip
def test_what_a_convolution_sees_and_how_far_apart(layers, channels, layer, seen):
    model = wrap(*layers, mean=0.0 if channels == 1 else [0.0] * 3)
    spectra = zfkit.filter_spectra(model, layer)
    assert (spectra.sees, spectra.input_stride) == seen
    np.testing.assert_allclose(spectra.power, literal_power(layers[-1].weight.detach(), 64), atol=1e-12)
    luminance = spectra.table().luminance
    assert (luminance == 1).all() if seen[0] == "grey" else luminance.isna().all() == (seen[0] == "maps")


# --------------------------------------------------------------------------------------------------- bad input

FILTERS = torch.ones(2, 3, 5, 5)


@pytest.mark.parametrize("weight, options, error, message", [
    (torch.ones(3, 5, 5), {}, ZfkitError, r"expected weights .* got float32 \(3, 5, 5\)"),
    (torch.ones(1, 1, 2, 2, dtype=torch.int64), {}, ZfkitError, "as floats, got int64"),
    (torch.zeros(2, 3, 5, 5), {}, LayerError, "zero"),
    (torch.full((2, 3, 5, 5), torch.nan), {}, LayerError, "not all finite"),
    (FILTERS, {"size": 4}, ZfkitError, "size.*of 5 px.*not 4"),
    (FILTERS, {"stride": 0}, ZfkitError, "stride.*not 0"),
    (FILTERS, {"stride": ()}, ZfkitError, r"stride.*not \(\)"),
    (FILTERS, {"layer": "conv1"}, ZfkitError, "no layer 'conv1'"),
    ("zfnet64", {"layer": "fc6"}, LayerError, "'fc6' is Linear, which has no filters; take one of conv1, conv2"),
    ("zfnet64", {"layer": "conv9"}, LayerError, "there is no layer 'conv9'. Did you mean 'conv"),
])  # fmt: skip
def test_what_has_no_spectra_is_refused(weight, options, error, message):
    with pytest.raises(error, match=message):
        zfkit.filter_spectra(weight, **options)


def test_parts_and_layers_that_do_not_exist(zfnet64):
    spectra = zfkit.filter_spectra(FILTERS)
    with pytest.raises(ZfkitError, match="there is no part 'red'"):
        spectra.part_of("red")
    with pytest.raises(ZfkitError, match="luminance part already"):
        spectra.part_of("luminance").part_of("opponent")
    with pytest.raises(LayerError, match=r"zfnet64 conv2 does not take a picture in RGB"):
        zfkit.filter_spectra(zfnet64, "conv2").part_of("luminance")
    with pytest.raises(LayerError, match="no layer was named"):
        zfkit.frequency.spectral_table(zfnet64, [])


def test_filters_of_one_pixel_are_white_whatever_they_hold():
    table = zfkit.filter_spectra(wrap(nn.Conv2d(3, 5, 1))).table()
    np.testing.assert_allclose(table[["low", "mid"]], [[89 / 4096, 1344 / 4096]] * 5)
    assert (table.selectivity < 1e-9).all() and table.orientation.isna().all()
    assert (table.aliasable == 0).all()
    assert table.luminance.between(0, 1).all()  # the one thing such a filter can choose
