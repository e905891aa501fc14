"""`features`: the layers' own outputs, whatever runs in place after them."""

from __future__ import annotations

import gc
import weakref

import torch
from tiny import image_set, random_pixels
from torch import nn

import zfkit
from zfkit.nets.activations import features


def test_rows_are_what_a_layer_gave_before_a_relu_overwrote_it():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 5),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(4 * 16 * 16, 6),
        nn.ReLU(),
        nn.Linear(6, 5),
    ).double()
    model = zfkit.wrap_model(net, mean=128, scale=1 / 64, input_size=20)
    pictures = image_set(random_pixels(7, 20))
    found = features(model, pictures, ["0", "3", "5"], batch_size=3)
    with torch.no_grad():
        conv = net[0](model.preprocess(pictures.take(range(7))))
        linear = net[3](conv.clamp(min=0).flatten(1))
    assert (conv < 0).any() and (linear < 0).any()
    torch.testing.assert_close(found["0"], conv.flatten(1))
    torch.testing.assert_close(found["3"], linear)
    torch.testing.assert_close(found["5"], net[5](linear.clamp(min=0)).detach())


class Residual(nn.Module):
    """x + conv(x), its additions by operators, functions and methods, some of them part of others."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(5))

    def forward(self, x):
        for i, conv in enumerate(self.convs):
            y = conv(x)
            a, b = torch.cat([x, y], 1).chunk(2, 1)
            x = [x + y, torch.add(x, y), x.add(y), a - b, y][i]
        return x.mean((2, 3))


def test_no_map_outlives_its_last_use():
    """Not even until Python looks for cycles: deep networks would hold all their maps at once."""
    model = zfkit.wrap_model(Residual(), mean=128, scale=1 / 64, input_size=8)
    x = model.preprocess(image_set(random_pixels(2, 8)).take([0, 1]))
    gc.collect()
    gc.disable()
    try:
        steps, kept, alive = [], [], []
        with torch.no_grad():  # or the graph would keep what each convolution was given
            for step, _, output in model.network.walk(x, [model.conv_layers[-1]]):
                steps.append(step)
                kept.append(weakref.ref(output))
                del output, _
                alive.append({s.name for s, ref in zip(steps, kept, strict=True) if ref() is not None})
        for i, names in enumerate(alive):
            needed = {steps[i].name} | {name for step in steps[i:] for name in step.inputs}
            whole = {s.inputs[0] for s in steps if s.target == "chunk" and s.name in needed}  # of its halves
            assert names <= needed | whole | {steps[0].name}  # x is held here
        assert len(steps) > 12
        assert not [ref for ref in kept[1:] if ref() is not None]
    finally:
        gc.enable()
