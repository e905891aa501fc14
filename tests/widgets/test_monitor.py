"""The training monitor: what it shows is what the network is at that moment."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import zfkit
from zfkit.figures.pictures import GAP
from zfkit.images.imageset import ImageSet
from zfkit.nets.paper import Architecture
from zfkit.widgets import Monitor

TINY = Architecture(
    "zfnet", 32, conv1=(5, 2, 1), conv2=(3, 1, 1), widths=(4, 6, 6, 6, 4), hidden=8, classes=2
)
QUICK = zfkit.Recipe(epochs=2, batch_size=8, snapshots=(), init="he", inputs="std", flat_epochs=0)


@pytest.fixture(scope="module")
def images():
    def read(i):
        noise = np.random.default_rng(i).normal(0, 30, (32, 32, 3))
        colour = np.array([(200, 60, 60), (60, 60, 200)][i % 2])
        return Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)), i % 2

    names = [str(i) for i in range(16)]
    return ImageSet(read, names, size=32, classes=["red", "blue"]).in_memory(False)


def shown(picture):
    return np.asarray(Image.open(io.BytesIO(picture.image.value)).convert("RGB")).astype(int)


def test_it_shows_the_filters_and_the_projections_as_they_are(images):
    monitor = Monitor(images, {"conv2": [0]})
    seen = []

    def watch(now):
        monitor(now)
        weight = now.model.net.conv1.weight.detach().clone()
        top = zfkit.mine(now.model, images, ["conv2"], k=1, progress=False)
        patch = zfkit.project_top(now.model, images, top, "conv2", [0])
        seen.append((weight, patch.projection[0, 0], shown(monitor.filters), shown(monitor.projections)))

    run = zfkit.fit(TINY, images, images, QUICK, watch=watch, progress=False, device="cpu")
    assert monitor.errors == [] and len(seen) == 3  # before training, and after each epoch
    for words in ("Epoch 2 of 2", f"{run.history.top1.iloc[-1]:.1f} %"):
        assert words in monitor.words.value
    for weight, projection, filters, projections in seen:
        # Grey 128 + 127 times the share of the largest |weight|, upper left pixel of the first and last filter.
        grey = (128 + 127 * weight / weight.abs().max()).round()
        assert np.abs(filters[2, 2] - grey[0, :, 0, 0].numpy()).max() <= 1
        # One map: its projection above its patch. The strongest value of the projection is in full colour.
        channel, row, column = np.unravel_index(int(projection.abs().argmax()), projection.shape)
        # px on the sheet, enlarged by a whole factor
        side = projection.shape[1] * (64 // projection.shape[1])
        page = 320 / (2 * side + GAP) * side / projection.shape[1]  # px on the page for one of the projection
        found = projections[int((row + 0.5) * page), int((column + 0.5) * page), channel]
        assert found == (255 if projection[channel, row, column] > 0 else 1)
    assert (seen[0][2] != seen[-1][2]).any()  # they changed with the training
    assert shown(monitor.curves).std() > 10  # a drawing, not an empty page


def test_an_error_while_drawing_is_told_and_training_goes_on(images):
    monitor = Monitor(images, {"conv9": [0]})
    run = zfkit.fit(TINY, images, images, QUICK, watch=monitor, progress=False, device="cpu")
    assert list(run.history.epoch) == [1, 2]
    assert "there is no" in monitor.errors[0].message and "conv9" in monitor.notice.value


def test_maps_without_pictures_are_refused():
    with pytest.raises(zfkit.ZfkitError, match="the monitor needs pictures"):
        Monitor(maps={"conv1": [0]})


def test_words_before_the_first_epoch(images):
    monitor = Monitor()
    untrained = zfkit.wrap_model(zfkit.nets.build(TINY), mean=0, scale=1, input_size=32)
    monitor(zfkit.training.Watched(untrained, 0, 5, ()))
    assert "5 epochs to go" in monitor.words.value
