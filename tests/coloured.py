"""Pictures that a tiny network learns in seconds, and a quick recipe for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from tiny import TINY

import zfkit
from zfkit.images.imageset import ImageSet

COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (220, 220, 60))
QUICK = zfkit.Recipe(epochs=3, batch_size=8, snapshots=(0, 1), init="he", inputs="std", flat_epochs=0)


def coloured(count, size=32, classes=3, random_seed=0):
    """Noisy pictures whose class is their colour."""

    def read(i):
        noise = np.random.default_rng((random_seed, i)).normal(0, 30, (size, size, 3))
        pixels = (np.array(COLOURS[i % classes]) + noise).clip(0, 255).astype(np.uint8)
        return Image.fromarray(pixels), i % classes

    names = [f"picture {random_seed} {i}" for i in range(count)]
    colours = ["red", "green", "blue", "yellow"][:classes]
    return ImageSet(read, names, size=size, source="coloured", classes=colours).in_memory(progress=False)


def train(out=None, recipe=QUICK, data=None, architecture=TINY, **options):
    """`fit` of the tiny network on coloured pictures, on the CPU."""
    data = data or (coloured(40), coloured(24, random_seed=1))
    return zfkit.fit(architecture, *data, recipe, out, progress=False, **{"device": "cpu"} | options)


def train_longer(out, **options):
    """The same for six epochs with dropout, for processes that are killed meanwhile, or share the work."""
    data = coloured(64), coloured(24, random_seed=1)
    return train(out, replace(QUICK, epochs=6, dropout=0.5), data, **options)


def tensors_of(run):
    """Weights and momentum in full precision, from the state that a run left."""
    _, tensors, _ = run.resume()
    return tensors


def identical(a, b):
    """Have two runs the same weights and momentum, bit for bit?"""
    a, b = tensors_of(a), tensors_of(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
