"""`lattice`: grids of known depth, zeros between the places of a map, a chequerboard, and noise without any."""

import itertools
import math

import pytest
import torch
from signals import F64
from torch import nn

from zfkit import ZfkitError
from zfkit.frequency import lattice


def noise(count, side, random_seed=0):
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(random_seed), dtype=F64)


@pytest.mark.parametrize("period, depth", [(2, 0.1), (3, 0.4), (4, 0.1), (8, 0.4)])
def test_the_depth_of_a_grid_is_the_root_of_its_peak(period, depth):
    """Noise whose variance is 1 + depth cos(2 pi x / period): power (depth / 2)^2, at period 2 depth^2."""
    side = 8 * period + 3
    x = torch.arange(side, dtype=F64)
    pictures = noise(4000 if side < 40 else 1500, side)
    pictures *= (1 + depth * torch.cos(2 * math.pi * x / period)).sqrt()
    grid = lattice(pictures, period)
    strongest = grid.table().iloc[0]
    assert (strongest.u, abs(strongest.v)) == (0, pytest.approx(1 / period))
    assert math.sqrt(strongest.power) * (1 if period == 2 else 2) == pytest.approx(depth, rel=0.15)
    assert grid.ratio > 3 * grid.interval()[1]
    # The same grid, looked for with another period, is not there.
    other = lattice(pictures, {2: 3, 3: 2, 4: 3, 8: 5}[period])
    assert other.ratio < 2 * other.interval()[1]


@pytest.mark.parametrize("of", ["energy", "pixels"])
def test_noise_has_no_grid(of):
    for random_seed in range(2):
        found = lattice(noise(200, 40, random_seed), 4, of=of)
        low, high = found.interval(1.0)
        assert low / 2 < found.ratio < 2 * high


def test_filling_with_zeros_repeats_the_spectrum():
    """Smooth noise on every s-th pixel: power at k/s is that at 0; a smooth filter after it lowers the copies."""
    s, side = 4, 64
    coarse = nn.functional.avg_pool2d(noise(64, side // s + 8, 1), 9, 1)  # (64, 1, 16, 16), low frequencies
    filled = torch.zeros(64, 1, side, side, dtype=F64)
    filled[:, :, ::s, ::s] = coarse
    sharp, energy = lattice(filled, s, of="pixels"), lattice(filled, s)
    assert sharp.ratio > 1.5 * sharp.interval()[1]
    assert energy.ratio > 10 * energy.interval()[1]
    smooth = nn.functional.avg_pool2d(filled, s, 1)  # zeros of its spectrum at every k/s
    assert lattice(smooth, s, of="pixels").ratio < 0.1 * sharp.ratio


def test_a_chequerboard_is_in_the_pixels_and_not_in_their_squares():
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    pictures = noise(300, 32) + 0.5 * (-1.0) ** (x + y)
    pixels, energy = (lattice(pictures, 2, of=of) for of in ("pixels", "energy"))
    assert tuple(pixels.table().iloc[0][["u", "v"]].abs()) == (0.5, 0.5)
    assert pixels.ratio > 10 * pixels.interval()[1]
    assert energy.ratio < 3 * energy.interval()[1]


def test_a_lattices_points_are_all_multiples_one_of_each_pair():
    found = lattice(noise(3, 33), 4)
    points = {(float(u) % 1, float(v) % 1) for u, v in found.points}
    every = {(k / 4, m / 4) for k in range(4) for m in range(4)} - {(0.0, 0.0)}
    assert points | {(-u % 1, -v % 1) for u, v in points} == every
    assert len(points) == len(found.points) == 9  # 3 are their own opposites, 12 make 6 pairs
    assert tuple(lattice(noise(3, 33), (2, 4)).stride) == (2, 4)


def test_neighbours_lie_along_the_axis_or_on_the_diagonals():
    found = lattice(noise(5, 32), 4)
    size, middle = len(found.power), len(found.power) // 2
    reach = round(found.reach * size)
    assert reach / size == 2 / 32
    for (u, v), peak, beside in zip(found.points, found.peak, found.neighbours, strict=True):
        row, column = (round(float(f) * size) + middle for f in (u, v))
        along = [(bool(u), bool(v)), (-bool(u), -bool(v))]
        steps = list(itertools.product((-1, 1), repeat=2)) if u and v else along
        at = [found.power[(row + reach * i) % size, (column + reach * j) % size] for i, j in steps]
        assert peak == found.power[row % size, column % size]
        assert float(beside) == pytest.approx(float(sum(at)) / len(at))


def test_contrast_does_not_count_and_empty_pictures_neither():
    pictures = noise(20, 20)
    scaled = pictures * torch.rand(20, 1, 1, 1, dtype=F64) + 7
    a, b = lattice(pictures, 2), lattice(torch.cat([scaled, torch.full((5, 1, 20, 20), 3.0)]), 2)
    torch.testing.assert_close(a.power, b.power)
    assert b.count == 20
    assert lattice(pictures[0, 0], 2).count == 1
    torch.testing.assert_close(lattice(pictures.view(4, 5, 1, 20, 20), 2).power, a.power)


@pytest.mark.parametrize("pictures, stride, options, message", [
    (torch.ones(2, 3, 32, 32), 1, {}, "a stride of 1 leaves no lattice"),
    (torch.ones(2, 3, 32, 32), 0, {}, "stride.*not 0"),
    (torch.ones(2, 3, 32, 32), 2, {}, "every picture is of one colour throughout"),
    (torch.rand(2, 3, 15, 32), 4, {}, "pictures of 15x32 px are too small.*at least 16 px"),
    (torch.full((1, 1, 16, 16), torch.inf), 2, {}, "some pixels are not finite"),
    (torch.rand(5), 2, {}, r"expected Patches, or pixels .* got \(5,\)"),
    ("photos", 2, {}, "got str"),
    (torch.rand(16, 16), 2, {"of": "power"}, "there is no kind of spectrum 'power'"),
])  # fmt: skip
def test_pictures_that_cannot_hold_a_lattice(pictures, stride, options, message):
    with pytest.raises(ZfkitError, match=message):
        lattice(pictures, stride, **options)
