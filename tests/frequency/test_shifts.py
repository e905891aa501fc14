"""Consistency under shifts: networks of which it is known how they move with their input."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from signals import classifier, grey, mean_of_channels, noise, wrap
from torch import nn

from zfkit import ZfkitError
from zfkit.frequency import gratings, shift_consistency
from zfkit.nets import BlurPool


def test_a_network_of_stride_1_moves_with_its_input():
    torch.manual_seed(0)
    model = wrap(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.MaxPool2d(3, 1), nn.Conv2d(4, 4, 3), size=24)
    found = shift_consistency(model, noise(4, 36), 6, layers=["0", "2", "3"])
    assert found.distance.abs().max() < 1e-12
    assert found.inside == (True, True, True) and found.spacing == (1, 1, 1)


def test_padding_is_left_out_where_units_are_inside():
    torch.manual_seed(0)
    model = wrap(nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(4, 4, 5, padding=2), size=24)
    assert shift_consistency(model, noise(4, 30), 6).distance.abs().max() < 1e-12


def literal_consistency(model, pictures, stride, shifts):
    """Root mean squares, one picture after the other; a single strided layer without padding; shifts right."""
    side = model.input_size
    top = (pictures.shape[2] - side) // 2
    starts = pictures.shape[3] - side - shifts + 1

    def maps(n, start):
        cut = pictures[n : n + 1, :, top : top + side, start : start + side]
        with torch.no_grad():
            return model.net(model.preprocess(cut))[0].numpy()

    distances = []
    for d in range(shifts + 1):
        total = 0
        for n in range(len(pictures)):
            for a in range(starts):
                before, now = maps(n, a), maps(n, a + d)
                k = math.floor(d / stride + 0.5)
                difference = before[:, :, k:] - now[:, :, : now.shape[2] - k]
                total += np.sqrt((difference**2).mean()) / starts
        distances.append(total)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0)).tolist()
    apart = 0
    for n, other in zip(order, order[-1:] + order[:-1], strict=True):
        left = pictures[:, :, :side, top : top + side]  # the first start, downwards
        with torch.no_grad():
            a, b = (model.net(model.preprocess(left[i : i + 1])).numpy() for i in (n, other))
        apart += np.sqrt(((a - b) ** 2).mean())
    return np.array(distances) / apart


@pytest.mark.parametrize("stride, margin", [(2, 5), (3, 7)])
def test_distances_equal_the_literal_ones(stride, margin):
    torch.manual_seed(0)
    model = wrap(nn.Conv2d(3, 2, 4, stride), size=19)
    pictures = noise(5, 19 + margin)
    found = shift_consistency(model, pictures, 5)
    assert np.allclose(found.distance[0, 1], literal_consistency(model, pictures, stride, 5), rtol=1e-10)


@pytest.mark.parametrize("taps, expected", [(0, 1.0), (3, math.sqrt(2 / 6)), (5, math.sqrt(14 / 70))])
def test_a_blur_is_as_consistent_as_predicted(taps, expected):
    """White noise, moved by 1 px at stride 2: what changes is 1 - r(1)/r(0), with r the autocorrelation of the taps.

    1-2-1: r = 6, 4 (of 16); 1-4-6-4-1: r = 70, 56 (of 256). Without a blur neighbours know nothing of each other.
    """
    model = wrap(mean_of_channels(), BlurPool(taps, 2) if taps else nn.MaxPool2d(1, 2), size=96)
    found = shift_consistency(model, noise(12, 104), 4, layers=["1"])
    assert found.distance[0].mean(0).tolist() == pytest.approx([0, expected, 0, expected, 0], abs=0.02)


@pytest.mark.parametrize("f, taps", [(0.1, 3), (0.2, 5), (0.3, 3)])
def test_a_blurred_grating_changes_within_the_bound_of_its_frequency_response(f, taps):
    """Moved by 1 px, a wave changes by 2 sin(pi f); a blur lets cos(pi f)^(taps - 1) of it through."""
    pictures = torch.cat([gratings(f, 0, size=72), grey(np.full((1, 72, 72), 127))])
    model = wrap(mean_of_channels(), BlurPool(taps, 2), size=64)
    found = shift_consistency(model, pictures, 2, layers=["0", "1"])
    passed = math.cos(math.pi * f) ** (taps - 1) * 127.5 / math.sqrt(2)
    # of the two pictures one changes, and both are as far from each other as the wave is high
    assert float(found.distance[1, 1, 1]) == pytest.approx(math.sin(math.pi * f), rel=0.06)
    with torch.no_grad():
        blurred = model.net(model.preprocess(pictures[:1, :, :64, :64]))[0, 0, 2:-2, 2:-2]
        moved = model.net(model.preprocess(pictures[:1, :, :64, 1:65]))[0, 0, 2:-2, 2:-2]
    change = float((blurred[:, 1:] - moved[:, :-1]).square().mean().sqrt())
    assert change == pytest.approx(2 * math.sin(math.pi * f) * passed, rel=0.06)
    assert float(found.distance[0, 1, 1]) < 1e-12  # before it is subsampled nothing changes at all


def test_on_a_trained_network_distance_swings_with_the_spacing_of_the_units(alexnet64, photos):
    pictures = photos.take([0, 1])[:, :, 56:168, 56:168]
    found = shift_consistency(alexnet64, pictures, 8, layers=["conv1", "conv3"], window=104)
    assert found.spacing == (4, 8) and all(found.inside)
    conv1, conv3 = found.distance.mean(1)
    assert conv1[[0, 4, 8]].max() < 1e-4 and conv3[[0, 8]].max() < 1e-4
    assert conv1[[2, 6]].min() > conv1[[1, 3, 5, 7]].max() > 0.05
    assert float(conv3.argmax()) == 4 and conv3[4] > 0.05
    assert found.agreement.isnan().all()


@pytest.mark.parametrize("circular", [False, True])
def test_class_agreement_is_counted_window_by_window(circular):
    model, shifts = classifier(), 3
    pictures = noise(8, 21, random_seed=3)
    found = shift_consistency(model, pictures, shifts, circular=circular)
    starts = [0] if circular else range(21 - 16 - shifts + 1)

    def probabilities(n, axis, start):
        if circular:
            cut = torch.roll(pictures[n, :, :16, :16], -start, 1 + axis)
        elif axis == 0:
            cut = pictures[n, :, start : start + 16, 2:18]
        else:
            cut = pictures[n, :, 2:18, start : start + 16]
        with torch.no_grad():
            return model.net(model.preprocess(cut)).softmax(1)[0]

    for axis in (0, 1):
        for d in range(shifts + 1):
            for n in range(8):
                pairs = [(probabilities(n, axis, a), probabilities(n, axis, a + d)) for a in starts]
                same_class = [float(p.argmax() == q.argmax()) for p, q in pairs]
                change = [abs(float(q[p.argmax()] - p.max())) for p, q in pairs]
                assert float(found.agreement[axis, d, n]) == pytest.approx(np.mean(same_class))
                assert float(found.probability[axis, d, n]) == pytest.approx(np.mean(change), abs=1e-6)
    assert found.layers == ("0", "3") and found.spacing == (2, 0) and found.circular == circular
    table = found.table()
    assert list(table.columns) == ["agreement", "agreement_low", "agreement_high", "probability", "0", "3"]
    assert table.index.tolist() == [0, 1, 2, 3]
    assert table["agreement"].tolist() == pytest.approx(found.agreement.mean((0, 2)).tolist())


def test_intervals_of_agreement_are_those_of_a_proportion():
    found = shift_consistency(classifier(), noise(6, 18), 1)
    p, n = 0.7, 400
    kept = (torch.arange(n) < p * n).double().expand(2, 2, n)
    low, high = replace(found, agreement=kept).interval()[1].tolist()
    width = 2 * 1.96 * math.sqrt(p * (1 - p) / n)
    assert low < p < high and high - low == pytest.approx(width, rel=0.1)


@pytest.mark.parametrize("count, size, options, message", [
    (3, 24, {"shifts": 0}, "shifts, in pixels, .*not 0"),
    (3, 24, {"window": 0}, "window, in pixels, .*not 0"),
    (3, 20, {}, "no room for windows of 16 px that shift by 8 px; take pictures of 24 px"),
    (3, 12, {"circular": True}, "no room for windows of 16 px; take pictures of 16 px"),
    (3, 24, {"layers": ["conv"]}, "there is no layer 'conv'"),
    (3, 24, {"layers": []}, "no layer was named"),
    (3, 40, {"layers": ["3"], "window": 20}, "mine cannot run to 3 on images of 20 x 20 px"),
    (1, 30, {}, "at least two are needed"),
])  # fmt: skip
def test_shifts_are_refused_in_a_sentence(count, size, options, message):
    with pytest.raises(ZfkitError, match=message):
        shift_consistency(classifier(), noise(count, size), **options)
