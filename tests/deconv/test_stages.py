"""What flows there and back, operation by operation, against the literal deconvnet; and Fig. 1 that shows it."""

from __future__ import annotations

import literal
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import noise, random_pixels, tiny_model
from torch import nn

import zfkit
from zfkit import figures
from zfkit.deconv import stages
from zfkit.errors import ImageError, LayerError


def by_hand(model, picture, layer, channel):
    """Each operation's output, and what comes back to it, by name; the picture's first."""
    modules = [(name, m) for name, m in model.net.named_children()]
    modules = modules[: [name for name, _ in modules].index(layer) + 1]
    steps = literal.layers_of([m for _, m in modules])
    there, remembered = [model.preprocess(picture[None])[0].numpy()], []
    for step in steps:
        output, memory = step.forward(there[-1])
        there.append(output)
        remembered.append(memory)
    R = np.zeros_like(there[-1])
    row, column = np.unravel_index(there[-1][channel].argmax(), R.shape[1:])
    R[channel, row, column] = 1
    back = [R]
    for step, memory in zip(reversed(steps), reversed(remembered), strict=True):
        back.append(step.back(back[-1], memory))
    names = ["input", *(name for name, _ in modules)]
    return dict(zip(names, zip(there, reversed(back), strict=True), strict=True))


@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv4"])
def test_what_flows_there_and_back_is_that_of_the_literal_deconvnet(layer):
    model, picture = tiny_model(), noise(1, 32)[0]
    wanted = by_hand(model, picture, layer, 2)
    found = {stage.step: stage for stage in stages(model, picture, layer, 2)}
    assert list(found) == list(wanted)
    for name, (there, back) in wanted.items():
        assert found[name].there.numpy() == pytest.approx(there, abs=1e-12), name
        assert found[name].back.numpy() == pytest.approx(back, abs=1e-12), name


def test_branches_are_added_before_they_are_shown():
    """y = conv(x) + 2 conv(x): to the convolution comes three times what comes to the sum."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            y = self.conv(x)
            return self.last(y + 2 * y)

    model = zfkit.wrap_model(Net().double(), mean=0, scale=1, input_size=8)
    found = {stage.step: stage for stage in stages(model, noise(1, 8)[0], "last", 1)}
    assert torch.allclose(found["conv"].back, 3 * found["add"].back) and found["add"].back.any()


def holds(sheet, part):
    """Is this picture somewhere on the sheet, pixel by pixel? Looked for by the row that varies most."""
    sheet, part = np.asarray(sheet), np.asarray(part)
    h, w = part.shape[:2]
    k = int(part.std((1, 2)).argmax())
    rows = range(k, len(sheet) - h + k + 1)
    places = [(y - k, sheet[y].tobytes().find(part[k].tobytes()) // 3) for y in rows]
    return any(x >= 0 and (sheet[y : y + h, x : x + w] == part).all() for y, x in places)


def test_figure_1_has_the_maps_to_which_most_comes_back():
    model, picture = tiny_model(), noise(1, 32)[0]
    sheet = figures.there_and_back(model, picture, "conv3", 4)
    for name, (there, back) in by_hand(model, picture, "conv3", 4).items():
        if name == "input":
            sides = figures.signed_to_rgb(torch.tensor(back)[None]), picture[None]
            assert all(holds(sheet, figures.montage(side, 1, 192)) for side in sides)
            continue
        coming = np.maximum(back, 0).sum((1, 2))
        maps = [int(c) for c in np.argsort(-coming, kind="stable")[:4] if coming[c] > 0] or [0]
        for side in (there, back):
            tiles = figures.montage(figures.signed_to_rgb(torch.tensor(side[maps])[:, None]), len(maps))
            assert holds(sheet, tiles), name


def test_what_cannot_be_shown_is_said():
    model, picture = tiny_model(), noise(1, 32)[0]
    wrong = ("conv9", 0, "conv9"), ("conv3", 99, "0 to 5"), ("fc6", 0, "gives no maps")
    for layer, channel, words in wrong:
        with pytest.raises(LayerError, match=words):
            stages(model, picture, layer, channel)
    with pytest.raises(ImageError, match="one uint8 RGB picture"):
        stages(model, picture[None], "conv3", 0)


def test_a_picture_may_be_an_array_a_path_or_of_other_bands(tmp_path):
    model, rows = tiny_model(), random_pixels(1, 32)[0]
    Image.fromarray(rows).save(tmp_path / "it.png")
    there = [
        stages(model, it, "conv2", 1)[0].there
        for it in (torch.tensor(rows).permute(2, 0, 1), rows, tmp_path / "it.png")
    ]
    assert torch.equal(there[0], there[1]) and torch.equal(there[0], there[2])
    fig1 = [figures.there_and_back(model, it, "conv2", 1) for it in (rows, str(tmp_path / "it.png"))]
    assert fig1[0].tobytes() == fig1[1].tobytes()

    model = zfkit.wrap_model(nn.Sequential(nn.Conv2d(5, 2, 3)), mean=3, scale=2, input_size=8, show=(4, 2, 0))
    picture = torch.arange(5 * 81, dtype=torch.uint8).view(5, 9, 9)
    assert torch.equal(stages(model, picture, "0", 1)[0].there, 2 * (picture.float() - 3))
    fig1 = figures.there_and_back(model, picture, "0", 1)
    assert holds(fig1, figures.montage(picture[None, [4, 2, 0]], 1, 192))
