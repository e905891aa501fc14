"""The plane of frequencies: its bins, and power spectra over it.

Frequencies are cycles per pixel *of the layer's own input*, from -1/2 to 1/2: u along the rows'
index (down), v along the columns' (to the right), rho = sqrt(u^2 + v^2). The direction of a wave is that of
(v, u), in degrees from 0 to 180, turning from right to down: 0 for upright stripes, 90 for level ones.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

SIZE = 64  # bins along each side of a spectrum
LOW, HIGH = 1 / 12, 1 / 3  # bounds of the bands, cycles per pixel: periods of 12 px and of 3 px


class Plane:
    """The plane of frequencies, (size, size) bins: where they lie, and what spectra are averaged with."""

    def __init__(self, size: int, stride: tuple[int, int]) -> None:
        v = frequency_bins(size)
        u = v[:, None]
        self.rho = torch.sqrt(u.square() + v.square())
        self.mid = (self.rho >= LOW) & (self.rho <= HIGH)
        squared = self.rho.square().clamp(min=torch.finfo(torch.float64).tiny)
        weights = {
            "rho": self.rho,
            "rho^2": self.rho.square(),
            "beyond 0": self.rho > 0,
            "cos": (v.square() - u.square()) / squared,  # of twice the direction
            # At |u| or |v| = 1/2 the waves (u, v) and (u, -v) are one and the same.
            "sin": torch.where((u.abs() < 0.5) & (v.abs() < 0.5), 2 * u * v / squared, 0.0),
            "low": self.rho < LOW,
            "mid": self.mid,
            "high": self.rho > HIGH,
            "aliasable": (u.abs() > 1 / (2 * stride[0])) | (v.abs() > 1 / (2 * stride[1])),
        }
        self._names = list(weights)
        self._weights = torch.stack([w.double().flatten() for w in weights.values()], 1)  # (size^2, 9)

    def means(self, shares: Tensor) -> dict[str, Tensor]:
        """Means (C,) of what is asked of frequencies over spectra (C, size, size) that each sum to 1."""
        return dict(zip(self._names, (shares.flatten(1) @ self._weights).T, strict=True))

    def profile(self, pooled: Tensor) -> Tensor:
        """Mean over rings of one bin's width, times the number of bins."""
        size = len(pooled)
        ring = (self.rho * size).round().long().flatten()
        total, bins = torch.bincount(ring, pooled.flatten()), torch.bincount(ring)
        return (total / bins * size**2)[: size // 2 + 1]


plane = functools.lru_cache(8)(Plane)  # random layers by the hundred have one and the same


def frequency_bins(size: int) -> Tensor:
    """(size,) float64 cycles per pixel, ascending from -1/2: the rows and columns of spectra."""
    return (torch.arange(size, dtype=torch.float64) - size // 2) / size


def power_spectrum(pictures: Tensor, size: int = SIZE) -> Tensor:
    """Power (..., size, size) of pictures or filters (..., C, h, w), summed over channels; 0 in the middle."""
    if not pictures.numel():  # MKL has no transform of nothing
        return pictures.new_zeros(*pictures.shape[:-3], size, size)
    power = torch.fft.fft2(pictures, s=(size, size)).abs().square().sum(-3)
    return torch.fft.fftshift(power, dim=(-2, -1))


def mean_frequency(pictures: Tensor) -> Tensor:
    """Centroid sum(rho P) / sum(P) of power spectra, cycles/px: (N, C, H, W) -> (N,); NaN for nothing."""
    size = max(SIZE, *pictures.shape[-2:])
    power = power_spectrum(pictures.float(), size)
    return (power * plane(size, (1, 1)).rho).sum((-2, -1)) / power.sum((-2, -1))


def hann(height: int, width: int, like: Tensor) -> Tensor:
    """Hann window (H, W), above 0 up to the edge: spectra under it do not see that a picture ends."""
    rows, columns = (
        torch.hann_window(n + 2, periodic=False, dtype=like.dtype, device=like.device)[1:-1]
        for n in (height, width)
    )
    return rows[:, None] * columns


def autocorrelation(weight: Tensor) -> Tensor:
    """(C, 2 kh - 1, 2 kw - 1): sum over input channels and taps of w(t) w(t + d), displacement 0 in the middle."""
    C, c, kh, kw = weight.shape
    sides = 2 * kh - 1, 2 * kw - 1  # so that displacements do not wrap around
    r = weight.new_empty(C, *sides)
    for part in torch.arange(C).split(max(1, 2**22 // (c * sides[0] * sides[1]))):  # bounded memory
        r[part] = torch.fft.irfft2(torch.fft.rfft2(weight[part], s=sides).abs().square().sum(1), s=sides)
    return torch.fft.fftshift(r, (1, 2))


def power_of_autocorrelation(r: Tensor, dilation: tuple[int, int], size: int) -> Tensor:
    """Power spectra (C, size, size) of what has the autocorrelation (C, 2 kh - 1, 2 kw - 1)."""
    for axis in (1, 2):  # displacement d goes to position d modulo size
        reach = r.shape[axis] // 2
        index = dilation[axis - 1] * torch.arange(-reach, reach + 1) % size
        shape = list(r.shape)
        shape[axis] = size
        r = r.new_zeros(shape).index_add(axis, index, r)
    power = torch.fft.fft2(r).real.clamp(min=0) / size**2
    return torch.fft.fftshift(power, (1, 2))
