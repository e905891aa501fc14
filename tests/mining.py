"""Networks and pictures whose activations are exact, with ties, and how two tables are compared.

Weights are small whole numbers and pixels few grey levels, so that sums do not depend on the order in which a library
adds them up. Workers of other processes import this file.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import torch
from PIL import Image
from torch import nn

import zfkit
from zfkit.images.imageset import ImageSet, Windows

WEIGHTS = torch.randint(-2, 3, (6, 3, 3, 3), generator=torch.Generator().manual_seed(1)).float()


def exact_model() -> zfkit.VisionModel:
    """Two convolutions of six maps, "0" and "3", for pictures of 16 px."""
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 1)
    )
    with torch.no_grad():
        net[0].weight.copy_(WEIGHTS)
        net[0].bias.zero_()
        net[3].weight.copy_(torch.eye(6).view(6, 6, 1, 1))
        net[3].bias.zero_()
    return zfkit.wrap_model(net, mean=0, scale=1, input_size=16, name="exact")


def conv_model(channels=2, size=8):
    """One 3x3 convolution, "0"."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1))
    return zfkit.wrap_model(net, mean=128, scale=1 / 64, input_size=size)


def pictures(count: int, windows: bool = False, before=lambda i: None) -> ImageSet:
    """Pictures of few colours; with windows, of photographs with 1 to 7 windows each that overlap in part.

    `before` is called before a picture is read.
    """
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 3, (count, 16, 16, 3), dtype=np.uint8) * 20

    def read(i):
        before(i)
        return Image.fromarray(pixels[i]), -1

    where = None
    if windows:
        photograph = np.repeat(np.arange(count), rng.integers(1, 8, count))[:count]
        left = rng.integers(0, 40, count)
        box = np.stack([left, np.zeros(count), left + 16, np.full(count, 16)], 1)
        where = Windows(torch.from_numpy(photograph), torch.from_numpy(box).float())
    names = [f"picture {i}" for i in range(count)]
    return ImageSet(read, names, size=16, windows=where, stamp=lambda: "few colours")


def assert_same(a: zfkit.TopK, b: zfkit.TopK) -> None:
    """Equal to the last bit, and to the type."""
    for field in dataclasses.fields(a):
        if field.name != "layers":
            assert getattr(a, field.name) == getattr(b, field.name), field.name
    assert list(a.layers) == list(b.layers)
    for layer, top in a.layers.items():
        for name, tensor in vars(top).items():
            other = getattr(b[layer], name)
            assert torch.equal(tensor, other) and tensor.dtype == other.dtype, f"{layer} {name}"


def run(*arguments: str) -> str:
    """What a Python process prints, with one thread; it has to end well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
