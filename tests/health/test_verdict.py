"""The first line of a diagnosis names what was planted, in a small residual network with BatchNorm."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from coloured import coloured
from torch import nn

import zfkit

MEAN, SCALE = (120.0, 115.0, 100.0), (1 / 60,) * 3


class Residual(nn.Module):
    """Two blocks with BatchNorm, then the classes."""

    def __init__(self, classes):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.first, self.first_norm = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.second, self.second_norm = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.classes = nn.Linear(8, classes)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        x = F.relu(x + self.first_norm(self.first(x)))
        x = F.relu(x + self.second_norm(self.second(x)))
        return self.classes(x.mean((2, 3)))


def trained(lr=0.05, momentum=0.1, steps=60):
    """The network after some steps of SGD on pictures whose class is their colour; `momentum` is BatchNorm's."""
    torch.manual_seed(1)
    images = coloured(64, classes=4)
    model = zfkit.wrap_model(Residual(4), mean=MEAN, scale=SCALE, input_size=32, classes=images.classes)
    x, y = model.preprocess(images.take(range(64))), images.labels
    for module in model.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    with torch.no_grad():
        model.net.conv.bias += 5  # which BatchNorm takes out, if it knows of it
    optimiser = torch.optim.SGD(model.net.parameters(), lr, 0.9)
    model.net.train()
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model.net(x), y).backward()
        optimiser.step()
    model.net.eval()
    return model


@pytest.fixture(scope="module")
def good():
    return trained()


@pytest.fixture(scope="module")
def pictures():
    return coloured(48, classes=4, random_seed=7)


def first_line(model, images):
    report = zfkit.diagnose(model, images, progress=False)
    assert str(report).startswith(report.verdict[:60])
    return report.verdict


def test_nothing_is_said_of_a_network_that_works(good, pictures):
    assert zfkit.evaluate(good, pictures).top1 > 95
    assert first_line(good, pictures) == ""


def test_wrong_mean(good, pictures):
    assert "the mean is wrong" in first_line(replace(good, mean=(-200.0,) * 3), pictures)


@pytest.mark.parametrize("scale", [1 / 60 / 255, 1 / 1500])
def test_wrong_scale(good, pictures, scale):
    assert "the scale is wrong" in first_line(replace(good, scale=(scale,) * 3), pictures)


def test_colours_in_the_wrong_order(good, pictures):
    swapped = replace(good, channels="bgr", _traced=[])
    assert "Colours come in the wrong order" in first_line(swapped, pictures)


def test_statistics_of_batchnorm_that_were_never_updated(pictures):
    before = {name: t.clone() for name, t in trained(momentum=0.0).net.state_dict().items()}
    frozen = trained(momentum=0.0)
    assert zfkit.evaluate(frozen, pictures).top1 < 60
    said = first_line(frozen, pictures)
    assert said.startswith("BatchNorm's running statistics are not those of its inputs")
    after = frozen.net.state_dict()  # looking at it changes nothing
    assert all(torch.equal(after[name], t) for name, t in before.items())
    assert not any(module.training for module in frozen.net.modules())


def test_shuffled_labels(good, pictures):
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    labels = pictures.labels[order].tolist()
    shuffled = zfkit.ImageSet.of(
        pictures.take(range(len(pictures))), labels=labels, classes=pictures.classes, progress=False
    )
    assert first_line(good, shuffled).startswith("The labels do not belong to the pictures")


def test_a_learning_rate_that_is_too_high(pictures):
    model = trained(lr=300.0, steps=15)
    report = zfkit.diagnose(model, pictures, progress=False)
    assert report.verdict.startswith("Training diverged")
    kinds = {(f.severity, f.fault) for f in report.alarms}
    assert str(report).count("remedy: ") == len(kinds)  # one entry a kind, with the layers named
    for f in report.findings:
        assert f.layer in str(report)


def test_remedies_fit_a_network_with_batchnorm(pictures):
    net = copy.deepcopy(trained(steps=1).net)
    with torch.no_grad():
        net.classes.weight.zero_()
    model = zfkit.wrap_model(net, mean=MEAN, scale=SCALE, input_size=32, classes=pictures.classes)
    report = zfkit.diagnose(model, pictures, progress=False)
    (finding,) = report.find("input has no effect")
    assert "BatchNorm" in finding.remedy and "128" not in finding.remedy
    assert report.verdict.startswith("Nothing was learned")
