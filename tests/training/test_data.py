"""What the network is shown, pixel by pixel, and accuracy, picture by picture."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from coloured import coloured
from hypothesis import given
from hypothesis import strategies as st
from tiny import TINY, image_set, random_pixels
from torch import nn

import zfkit
from zfkit.training import Geometry, evaluate, generator, ten_crops
from zfkit.training.data import BLOCKS_MIXED, Resident, Streamed, crop, draw, shade
from zfkit.training.plan import spread


@given(st.integers(4, 9), st.integers(0, 3), st.integers(0, 3), st.floats(0, 0.5), st.integers(0, 99))
def test_crops_are_the_literal_ones(size, larger, pad, brightness, random_seed):
    side = size + larger
    geometry = Geometry(size, side, pad, brightness)
    pictures = torch.from_numpy(random_pixels(3, side, random_seed))
    mean = torch.tensor([100.5, 110.25, 90.0])
    draws = draw(3, geometry, random_seed, 1)
    crops = shade(crop(pictures, draws, geometry), draws, geometry, mean)
    for n, r, c in np.ndindex(3, size, size):
        row = int(draws.top[n]) + r
        column = int(draws.left[n]) + (size - 1 - c if draws.mirror[n] else c)
        expected = mean
        if 0 <= row < side and 0 <= column < side:
            expected = (pictures[n, row, column].float() * draws.brightness[n]).clamp(0, 255)
        torch.testing.assert_close(crops[n, :, r, c], expected)


@pytest.mark.parametrize("geometry", [Geometry(32, 40), Geometry(40, 40, 3, 0.2)])
def test_streamed_and_resident_pictures_are_the_same(geometry):
    images, mean, cpu = coloured(12, 40), torch.tensor([100.0, 110.0, 90.0]), torch.device("cpu")
    draws, spans = draw(12, geometry, 5, 1), [slice(0, 5), slice(5, 10)]
    resident = Resident(images, geometry, mean, cpu).batches(draws, spans)
    streamed = Streamed(images, geometry, mean, cpu, workers=0).batches(draws, spans)
    for (x, labels), (y, others) in zip(resident, streamed, strict=True):
        assert x.shape == (5, 3, geometry.size, geometry.size)
        assert torch.equal(x, y) and torch.equal(labels, others)


def test_an_epochs_chances_depend_on_seed_and_epoch_only():
    geometry = Geometry(8, 8, 2, 0.2)
    a, b = draw(50, geometry, 1, 2), draw(50, geometry, 1, 2)
    assert all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))
    assert sorted(a.index.tolist()) == list(range(50))
    assert not torch.equal(a.index, draw(50, geometry, 1, 3).index)
    assert not torch.equal(a.index, draw(50, geometry, 2, 2).index)
    assert a.top.min() == -2 and a.top.max() == 2 and a.brightness.min() >= 0.8 and a.brightness.max() <= 1.2
    assert 10 < a.mirror.sum() < 40


def test_generators_of_different_numbers_differ():
    """numpy fills short seeds up with zeros: (1, 2) and (1, 2, 0) must not draw the same."""
    numbers = ((1, 2), (1, 2, 0), (1, 2, 0, 0), (2, 1), (1, 2, 3), (1, 2, 4, 0))
    assert len({torch.rand(1, generator=generator(*n)).item() for n in numbers}) == 6


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(0, 9))
def test_blocks_are_mixed_but_few_at_a_time(sizes, random_seed):
    """Every picture comes once, and 16 blocks are finished before the next is begun."""
    starts = torch.tensor([0, *np.cumsum(sizes)[:-1]])
    index = draw(sum(sizes), Geometry(4, 4), random_seed, 1, starts).index
    assert sorted(index.tolist()) == list(range(sum(sizes)))
    block = torch.searchsorted(starts, index, right=True) - 1
    unfinished: dict[int, int] = {}
    for b in block.tolist():
        unfinished[b] = unfinished.get(b, sizes[b]) - 1
        if not unfinished[b]:
            del unfinished[b]
        assert len(unfinished) <= BLOCKS_MIXED


def test_the_mean_is_taken_from_few_blocks_all_over_the_set():
    images = coloured(39)
    assert spread(images, 10).tolist() == [0, 4, 8, 13, 17, 21, 25, 30, 34, 38]
    images.blocks = torch.arange(0, 40, 2)  # the last one is cut short
    places = spread(images, 32)
    assert len({p // 2 for p in places.tolist()}) == 16  # of 20 blocks
    assert places.min() == 0 and places.max() == 38 and len(places) == 31


def test_ten_crops_are_corners_centre_and_their_mirrors():
    picture = torch.arange(3 * 6 * 6).view(1, 3, 6, 6).to(torch.uint8)
    crops = list(ten_crops(picture, Geometry(4, 6)))
    assert len(crops) == 10
    for n, (top, left) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]):
        assert torch.equal(crops[2 * n], picture[:, :, top : top + 4, left : left + 4])
        assert torch.equal(crops[2 * n + 1], crops[2 * n].flip(3))


@pytest.mark.parametrize("crops", [1, 10])
def test_accuracy_is_the_literal_one(crops):
    torch.manual_seed(0)
    net = zfkit.nets.build(replace(TINY, classes=7)).eval()
    for p in net.parameters():
        nn.init.normal_(p, 0, 0.3)
    model = zfkit.wrap_model(net, mean=110, scale=0.02, input_size=32)
    images = image_set(random_pixels(23, 36), [i % 7 for i in range(23)])
    top1 = top5 = loss = 0.0
    for pixels, label in images:
        corners = [(2, 2)] if crops == 1 else [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
        views = [pixels[:, a : a + 32, b : b + 32] for a, b in corners]
        views += [v.flip(2) for v in views] if crops == 10 else []
        p = torch.stack([net((v[None].float() - 110) * 0.02).softmax(1)[0] for v in views]).mean(0)
        ranked = sorted(range(7), key=lambda c: -p[c].item())
        top1, top5 = top1 + (ranked[0] == label), top5 + (label in ranked[:5])
        loss -= p[label].log().item()
    accuracy = evaluate(model, images, crops=crops, batch_size=5)
    assert (accuracy.top1, accuracy.top5) == pytest.approx((100 * top1 / 23, 100 * top5 / 23))
    assert accuracy.loss == pytest.approx(loss / 23, rel=1e-4) and accuracy.count == 23


@pytest.mark.parametrize("pixels, label, options, message", [
    (36, 0, {"crops": 5}, "crops must be 1 or 10, not 5"),
    (20, 0, {}, "takes 32 px and the pictures of .made. are 20 px.*size=32"),
    (36, -1, {}, "labels from -1 to -1 .*network has 5 classes"),
    (36, 5, {}, "labels from 5 to 5 .*network has 5 classes"),
])  # fmt: skip
def test_what_has_no_accuracy_is_refused(pixels, label, options, message):
    model = zfkit.wrap_model(zfkit.nets.build(TINY), mean=110, scale=0.02, input_size=32)
    with pytest.raises(zfkit.errors.TrainingError, match=message):
        evaluate(model, image_set(random_pixels(2, pixels), [label] * 2), **options)
