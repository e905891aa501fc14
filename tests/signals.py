"""Pictures, filters and small networks whose fate under a Fourier transform or a stride is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

import zfkit

F64 = torch.float64


def random_weight(*shape, random_seed=0):
    """Filters of normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(random_seed), dtype=F64)


def filter_of_one_wave(side, cycles_down, cycles_right, phase=0.0):
    """A filter (1, 1, side, side) with whole numbers of cycles over its side."""
    y, x = torch.meshgrid(*(torch.arange(side, dtype=F64),) * 2, indexing="ij")
    return torch.cos(2 * math.pi * (cycles_down * y + cycles_right * x) / side + phase)[None, None]


def literal_power(weight, size, dilation=(1, 1)):
    """Sum over input channels of the squared DFT of filters, with the zeros of dilation: (C, size, size)."""
    C, c, kh, kw = weight.shape
    padded = np.zeros((C, c, size, size))
    padded[:, :, : dilation[0] * kh : dilation[0], : dilation[1] * kw : dilation[1]] = weight.numpy()
    return np.fft.fftshift((np.abs(np.fft.fft2(padded)) ** 2).sum(1), axes=(1, 2)) / size**2


def distances_from_0(size):
    """For every bin of the plane of frequencies: rho, and max(|u|, |v|), in cycles per pixel."""
    f = np.fft.fftshift(np.fft.fftfreq(size))
    return np.hypot(f[:, None], f), np.maximum(abs(f[:, None]), abs(f))


def bands(rho, largest, stride):
    """Bins of the plane in the three bands, and beyond what a stride keeps, as masks."""
    masks = {"low": rho < 1 / 12, "mid": (rho >= 1 / 12) & (rho <= 1 / 3), "high": rho > 1 / 3}
    return masks | {"aliasable": largest > 1 / (2 * stride)}


def wrap(*layers, size=32, mean=0.0, scale=1.0):
    """A network in float64."""
    return zfkit.wrap_model(nn.Sequential(*layers).double(), mean=mean, scale=scale, input_size=size)


def mean_of_channels(stride=1):
    """A 1x1 convolution that hands on the mean of three channels."""
    conv = nn.Conv2d(3, 1, 1, stride, bias=False)
    nn.init.constant_(conv.weight, 1 / 3)
    return conv


def classifier(size=16):
    """A convolution with stride 2 and a fully connected layer for 5 classes."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 5)]
    return zfkit.wrap_model(nn.Sequential(*layers), mean=127.5, scale=1 / 60, input_size=size)


def grey(values):
    """(N, H, W) as uint8 pictures."""
    return torch.as_tensor(values).round().clamp(0, 255).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)


def noise(count, size, random_seed=0):
    """Grey pictures of white noise."""
    g = torch.Generator().manual_seed(random_seed)
    return grey(torch.randint(0, 256, (count, size, size), generator=g))


def chequerboard(size=64):
    """One picture of 20 and 220 in turn."""
    y, x = np.indices((size, size))
    return grey(np.where((x + y) % 2, 220, 20)[None])
