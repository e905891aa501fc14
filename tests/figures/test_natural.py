"""Projections in the colours and the spectrum of photographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

import zfkit
from zfkit.atlas import draw_layer
from zfkit.figures import NaturalColours
from zfkit.topk.patches import Patches

S = 32


def patches(projection, photo):
    """One map's patches (k, 3, S, S) of a layer."""
    k = len(photo)
    zeros = torch.zeros(1, k, dtype=torch.int64)
    box = torch.tensor([0, 0, S, S]).expand(1, k, 4)
    where = zeros, zeros, zeros, torch.ones(1, k)
    return Patches("conv1", torch.tensor([0]), projection[None], photo[None], box, *where)


@pytest.fixture(scope="module")
def found():
    """Photographs of grey blobs with a little colour, and neon grain with a grid: far from 1/f and from grey."""
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.normal(size=(60, 1, S, S)), (0, 0, 3, 3), mode="wrap")
    tint = ndimage.gaussian_filter(rng.normal(size=(60, 3, S, S)), (0, 0, 3, 3), mode="wrap")
    photo = torch.as_tensor(128 + 300 * blobs + 50 * tint).clamp(0, 255).to(torch.uint8)
    mix = torch.tensor([[1.0, -0.9, 0.2], [-0.8, 1.0, 0.1], [0.1, 0.2, 1.5]])
    grain = torch.einsum("ij,njhw->nihw", mix, torch.as_tensor(rng.normal(size=(60, 3, S, S))).float())
    grain[..., ::4, :] *= 3
    return patches(grain, photo)


def spectrum(pictures):
    """Cross-spectra, by numpy and ring by ring: (rings, 3, 3)."""
    x = pictures.double().numpy()
    window = np.hanning(S + 2)[1:-1]
    f = np.fft.fft2((x - x.mean((0, 2, 3), keepdims=True)) * window[:, None] * window)
    v = np.fft.fftfreq(S)
    ring = np.round(np.hypot(v[:, None], v) / np.sqrt(0.5) * (S // 2)).astype(int)
    return np.array([
        [[(f[:, i] * f[:, j].conj()).real[:, ring == r].mean() for j in range(3)] for i in range(3)]
        for r in range(1, S // 2 - 1)
    ])  # fmt: skip


def test_what_is_shown_has_the_photographs_colours_and_spectrum(found):
    shown = NaturalColours.of(found)(found)
    before, after, photo = (spectrum(p[0]) for p in (found.projection, shown.projection, found.photo))
    distance = [np.abs(x - photo).max((1, 2)) / np.abs(photo).max((1, 2)) for x in (before, after)]
    assert np.median(distance[0]) > 0.9 and np.median(distance[1]) < 0.15
    correlation = np.corrcoef(shown.projection[0].transpose(0, 1).flatten(1))
    assert correlation[0, 1] > 0.7 > -0.7 > np.corrcoef(found.projection[0].transpose(0, 1).flatten(1))[0, 1]
    assert "untrained" in shown.notes[0]


def test_it_is_linear_and_odd_and_leaves_the_patches(found):
    natural = NaturalColours.of(found)
    shown = natural(found)
    twice = natural(patches(-2 * found.projection[0], found.photo[0]))
    torch.testing.assert_close(twice.projection, -2 * shown.projection)
    assert shown.projection.shape == found.projection.shape and shown.projection.dtype == torch.float32
    assert torch.equal(shown.photo, found.photo)
    assert not natural(patches(0 * found.projection[0], found.photo[0])).projection.any()


def test_a_layer_is_drawn_in_natural_colours_on_request(zfnet64, photos64, mined):
    patches = zfkit.project_top(zfnet64, photos64, mined, "conv2", [3, 5])
    signed, natural = (np.asarray(draw_layer(patches, mined, colours=c)) for c in ("signed", "natural"))
    assert np.array_equal(signed, np.asarray(draw_layer(patches, mined))), "off by default"
    assert signed.shape == natural.shape and (signed != natural).any()
    expected = draw_layer(NaturalColours.of(patches)(patches), mined)
    assert np.array_equal(natural, np.asarray(expected))
    with pytest.raises(zfkit.ZfkitError, match="there is no colours 'neon'"):
        draw_layer(patches, mined, colours="neon")
