"""Small networks, pictures and snapshots that several test files look into."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from PIL import Image
from torch import nn

import zfkit
from zfkit.checksums import digest
from zfkit.images.imageset import ImageSet
from zfkit.nets.paper import Architecture, build
from zfkit.nets.weights import save_weights
from zfkit.nets.zoo import describe

TINY = Architecture("zfnet", 32, (7, 2, 1), (5, 1, 2), widths=(4, 5, 6, 6, 4), hidden=8, classes=5)
SIDE = 20  # px, of the pictures that `network` takes


def random_pixels(count, side=SIDE, random_seed=0):
    """uint8 (count, side, side, 3)."""
    return np.random.default_rng(random_seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def image_set(pixels, labels=None, classes=(), memory=True, source="made", windows=None, names=None):
    """uint8 pictures (N, S, S, 3), or a tensor (N, 3, S, S), as an `ImageSet`; without labels each has -1."""
    pixels = pixels.permute(0, 2, 3, 1).numpy() if isinstance(pixels, torch.Tensor) else pixels
    labels = [-1] * len(pixels) if labels is None else [int(label) for label in labels]
    names = names or [f"picture {i}" for i in range(len(pixels))]
    size = pixels.shape[1]
    images = ImageSet(
        lambda i: (Image.fromarray(pixels[i]), labels[i]), names, size=size, classes=classes, source=source,
        windows=windows, stamp=lambda: digest([torch.from_numpy(pixels)]),
    )  # fmt: skip
    return images.in_memory(progress=False) if memory else images


def network(random_seed):
    """conv, pool, conv, fully connected: the last convolution sees 14 px, so less than a picture."""
    torch.manual_seed(random_seed)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(45, 6),
    )  # fmt: skip
    return zfkit.wrap_model(net.double().eval(), mean=127.5, scale=1 / 64, input_size=SIDE)


def noise(count, height, width=None, random_seed=0):
    """uint8 (count, 3, height, width)."""
    generator = torch.Generator().manual_seed(random_seed)
    return torch.randint(0, 256, (count, 3, height, width or height), generator=generator, dtype=torch.uint8)


def random_weights(net, random_seed=0):
    """Weights large enough that every layer, bias and norm matters."""
    generator = torch.Generator().manual_seed(random_seed)
    with torch.no_grad():
        for parameter in net.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return net


def tiny_model(random_seed=0):
    """`TINY` with random weights in double precision."""
    net = random_weights(build(TINY), random_seed).double().eval()
    return zfkit.wrap_model(net, mean=[100, 110, 120], scale=0.02, input_size=32, classes=list("abcde"))


@contextlib.contextmanager
def hooked(model, layers):
    """What modules of these names put out at their latest forward pass, by name: copies, taken by hooks."""
    outputs = {}
    handles = [
        model.net.get_submodule(n).register_forward_hook(lambda m, i, o, n=n: outputs.update({n: o.clone()}))
        for n in layers
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def pooled_network(random_seed=0, channels=3):
    """Two poolings, three convolutions, a fully connected layer; receptive fields of 3, 9 and 15 px."""
    torch.manual_seed(random_seed)
    net = nn.Sequential(
        nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Conv2d(8, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 4),
    )  # fmt: skip
    return zfkit.wrap_model(net.double().eval(), mean=127.5, scale=1 / 58, input_size=28)


def write_snapshot(path, epoch, architecture=TINY):
    """An untrained network as `fit` leaves its snapshots, another one for each epoch."""
    torch.manual_seed(epoch)
    net = build(architecture)
    for p in net.parameters():
        p.data += 0.05 * torch.randn_like(p)
    provenance = {"architecture": describe(architecture), "mean": [127.0] * 3, "epoch": epoch}
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_weights(path, net.state_dict(), provenance)


DEEP = slice(40, 64), slice(30, 54)  # rows and columns of a window of 101 px


def deep_network():
    """Units of layer "2" that see 101 px, with weights in `DEEP` of them, and nothing that a picture could choose."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 101, bias=False))
    with torch.no_grad():
        planted = torch.zeros_like(net[2].weight)
        planted[(..., *DEEP)] = net[2].weight[(..., *DEEP)]
        net[2].weight.copy_(planted)
    return zfkit.wrap_model(net.eval(), mean=128, scale=1 / 64, input_size=110, name="deep")
