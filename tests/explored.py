"""A small network and pictures that the explorer's tests look at, and pictures as files in memory."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import nn

import zfkit
from zfkit.images.imageset import ImageSet, Windows
from zfkit.widgets.controls import encode

SIDE = 36
CLASSES = ("cat", "dog", "teapot")


def small_net() -> nn.Sequential:
    """Two convolutions with a pool between them, in double precision; map 2 of the first never answers."""
    torch.manual_seed(3)
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(3, 6, 5, stride=2, padding=1))
    net.add_module("relu1", nn.ReLU())
    net.add_module("pool1", nn.MaxPool2d(2))
    net.add_module("conv2", nn.Conv2d(6, 10, 3, padding=1))
    net.add_module("relu2", nn.ReLU())
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc", nn.Linear(10 * 8 * 8, 3))
    with torch.no_grad():
        net.conv1.weight[2], net.conv1.bias[2] = 0, -1
    return net.double()


def pictures(labelled: bool = True, count: int = 14, windows: bool = True) -> ImageSet:
    """Smooth random pictures: labelled with three classes, or two windows of each of 7 photographs."""
    generator = np.random.default_rng(0)
    drawn = [
        Image.fromarray(generator.integers(0, 256, (9, 9, 3), np.uint8)).resize((SIDE, SIDE))
        for _ in range(count)
    ]
    if labelled:
        names = [f"folder/{CLASSES[i % 3]}/{i}.png" for i in range(count)]
        photos = ImageSet(lambda i: (drawn[i], i % 3), names, size=SIDE, source="drawn", classes=CLASSES)
    else:
        names = [f"photo{i // 2} (scale 1, left {i}, top 0)" for i in range(count)]
        box = torch.tensor([[40.0 * (i % 2), 0, 40.0 * (i % 2) + 36, 36] for i in range(count)])
        cut = Windows(torch.arange(count) // 2, box) if windows else None
        photos = ImageSet(lambda i: (drawn[i], -1), names, size=SIDE, source="drawn", windows=cut)
    return photos.in_memory(progress=False)


def wrapped(net: nn.Module | None = None, classes: tuple[str, ...] | None = CLASSES) -> zfkit.VisionModel:
    """The small network, or another, with its preprocessing."""
    net = small_net() if net is None else net
    return zfkit.wrap_model(net, mean=120.0, scale=1 / 60, input_size=SIDE, classes=classes, name="small")


def window(model, pixels, layer, channel, place, rule="deconvnet"):
    """A unit's projection on the whole picture, cut to what the unit sees; 0 outside of the picture."""
    whole = zfkit.project(model, model.preprocess(pixels), layer, channel, [place], rule=rule)[0]
    field = zfkit.receptive_field(model, layer)
    left, top, right, bottom = (v + field.size for v in field.box(*place))
    return nn.functional.pad(whole, (field.size,) * 4)[:, top:bottom, left:right]


def opened(encoded: bytes) -> np.ndarray:
    """The pixels of a picture in memory, (H, W, 3) int."""
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)


def png(size: tuple[int, int]) -> bytes:
    """A plain picture."""
    return encode(Image.new("RGB", size, "teal"))


def gif(frames: int) -> bytes:
    """An animation that begins with (0, 90, 10)."""
    buffer = io.BytesIO()
    pages = [Image.new("RGB", (40, 30), (40 * i, 90, 10)) for i in range(frames)]
    pages[0].save(buffer, "GIF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()
