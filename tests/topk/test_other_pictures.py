"""Pictures that are no squares, and pictures of other bands than red, green and blue: from the network to the page."""

import json

import numpy as np
import oracle
import pytest
import torch
from PIL import Image
from tiny import random_weights
from torch import nn

import zfkit
from zfkit import ImageSet
from zfkit.cli import main
from zfkit.errors import ImageError, ZfkitError
from zfkit.nets.activations import activations

H, W, BANDS = 14, 26, 5


def bands(count, channels, height=H, width=W):
    generator = torch.Generator().manual_seed(channels)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def net(channels=3, classes=4):
    """conv, pool, conv; its units see 6 x 6 px, every 2 px."""
    body = nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes)
    return random_weights(nn.Sequential(*body, *head).double())


def wrapped(channels=3, **options):
    mean = [100.0 + 5 * c for c in range(channels)]
    return zfkit.wrap_model(net(channels), mean=mean, scale=1 / 60, input_size=(H, W), **options)


# few are projected from crops around them, many from whole pictures
@pytest.mark.parametrize("channels", [1, 2, 3, BANDS])
@pytest.mark.parametrize("units", [1, 9])
def test_top_patches_are_what_autograd_and_the_pixels_say(channels, units):
    model, count = wrapped(channels, **({"show": (3, 2, 1)} if channels == BANDS else {})), 12
    pixels = bands(count, model.bands)
    images = ImageSet.of(pixels, progress=False)
    assert images.size == model.input_size == (H, W) and torch.equal(images.take(range(count)), pixels)
    x = model.preprocess(pixels)
    top = zfkit.mine(model, images, ["3"], k=units, inside=True, progress=False)
    patches = zfkit.project_top(model, images, top, "3")
    maps = next(y for _, y in activations(model, pixels, ["3"]))  # (N, 3, 5, 11)
    assert maps.shape[2:] == (5, 11)
    show = {1: [0, 1, 2], 2: [0, 1, 1], 3: [0, 1, 2], BANDS: [3, 2, 1]}[channels]
    for channel in range(3):
        strongest = maps[:, channel].flatten(1).amax(1)  # every unit lies inside: no padding
        assert patches.image[channel].tolist() == strongest.argsort(descending=True)[:units].tolist()
        for rank in range(units):
            n, row, col = (int(t[channel, rank]) for t in (patches.image, patches.row, patches.col))
            assert maps[n, channel, row, col] == maps[n, channel].max()
            left, upper = 2 * col, 2 * row
            window = (slice(None), slice(upper, upper + 6), slice(left, left + 6))
            assert torch.equal(patches.photo[channel, rank], pixels[n, show][window])
            back = oracle.projection(model.net, x[n : n + 1], "3", (channel, row, col), "deconvnet")[0]
            expected = back[[0] if channels == 1 else show][window]
            torch.testing.assert_close(patches.projection[channel, rank], expected, rtol=0, atol=1e-12)


def test_a_layer_that_sees_everything_sees_all_of_a_rectangle():
    model, pixels = wrapped(), bands(3, 3)
    field = zfkit.receptive_field(model, "6")
    assert field.box(0, 0) == (0, 0, W, H)
    images = ImageSet.of(pixels, progress=False)
    patches = zfkit.project_top(model, images, zfkit.mine(model, images, ["6"], k=1, progress=False), "6")
    assert patches.photo.shape[-2:] == (H, W)
    assert torch.equal(patches.photo[0, 0], pixels[int(patches.image[0, 0])])


@pytest.mark.parametrize("width, height", [(90, 40), (40, 90), (70, 70)])
def test_the_largest_part_of_that_shape_in_the_middle(width, height, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    ((pixels, _),) = zfkit.load_images(f"folder:{tmp_path}", size=(H, W), progress=False)
    wide = min(width, height * W / H)
    high = wide * H / W
    box = ((width - wide) / 2, (height - high) / 2, (width + wide) / 2, (height + high) / 2)
    expected = np.asarray(picture.resize((W, H), Image.Resampling.BILINEAR, box=box, reducing_gap=3))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)
    assert torch.equal(zfkit.open_image(tmp_path / "a.png", (H, W)), pixels)


def test_bands_are_resized_each_as_a_grey_picture_is():
    pixels = bands(2, BANDS, 40, 90)
    images = ImageSet.of(pixels, size=(H, W), progress=False)
    greys = ImageSet.of(pixels[:, 4:], size=(H, W), progress=False)  # one band is grey
    assert images.bands == BANDS and greys.bands == 3
    for channel in range(3):
        assert torch.equal(greys.take([0, 1])[:, channel], images.take([0, 1])[:, 4])
    array = ImageSet.of(pixels.permute(0, 2, 3, 1).numpy(), size=(H, W), progress=False)
    assert torch.equal(array.take([0, 1]), images.take([0, 1]))


def test_windows_of_the_bundled_photographs_may_be_rectangles():
    photos = zfkit.load_images("photos", size=(66, 200), limit=40, progress=False)
    assert photos[3][0].shape == (3, 66, 200)
    left, top, right, bottom = photos.windows.box.T
    torch.testing.assert_close(
        (right - left) / (bottom - top), torch.full((40,), 200 / 66), rtol=0.02, atol=0
    )


def test_an_atlas_of_bands_says_which_are_shown(tmp_path):
    model, images = wrapped(BANDS, show=(3, 2, 1)), ImageSet.of(bands(4, BANDS), progress=False)
    for alone in (False, True):
        written = zfkit.write_atlas(
            model, images, tmp_path, layers=["3"], maps=1, k=2, patches_only=alone, progress=False
        )
        assert "Bands 3, 2 and 1 of 5 are shown" in written.index.read_text()


def test_accuracy_and_diagnosis_of_bands_and_rectangles():
    model, pixels = wrapped(BANDS), bands(9, BANDS)
    answers = model.logits(model.preprocess(pixels)).argmax(1)
    larger = torch.nn.functional.pad(pixels, (3, 3, 2, 2))  # the middle is what it is shown
    images = ImageSet.of(larger, labels=answers, classes=list("abcd"), progress=False)
    assert zfkit.evaluate(model, images).top1 == 100
    assert zfkit.diagnose(model, ImageSet.of(pixels, progress=False), progress=False).side == (H, W)
    with pytest.raises(ImageError, match="ten crops are squares of squares, and 18 x 32 px is no square"):
        zfkit.evaluate(model, images, crops=10)
    with pytest.raises(ZfkitError, match="takes 14 x 26 px and the pictures of 'mine' are 14 x 25 px: load"):
        zfkit.evaluate(
            model, ImageSet.of(pixels[..., 1:], labels=answers, classes=list("abcd"), progress=False)
        )


def test_pictures_of_other_bands_than_the_network_s_are_refused():
    rgb, five = (ImageSet.of(bands(2, n), progress=False) for n in (3, BANDS))
    with pytest.raises(
        ImageError, match=r"pictures of 5 bands \(N, 5, H, W\).*got uint8 \(\d+, 3, 14, 26\).*ImageSet"
    ):
        zfkit.mine(wrapped(BANDS), rgb, progress=False)
    with pytest.raises(ImageError, match=r"RGB pictures \(N, 3, H, W\).*got uint8 \(\d+, 5, 14, 26\)"):
        zfkit.mine(wrapped(), five, progress=False)
    with pytest.raises(ImageError, match="up to 64 bands"):
        ImageSet.of(bands(2, 65))


def refusals():
    model, images = (
        wrapped(),
        ImageSet.of(bands(4, 3, 40, 60), labels=[0, 1, 0, 1], classes=["a", "b"], progress=False),
    )
    square = zfkit.wrap_model(net(BANDS), mean=100, scale=1 / 60, input_size=H)
    five = ImageSet.of(bands(2, BANDS, H, H), progress=False)
    return {
        "textures": lambda: zfkit.load_images("textures", size=(H, W)),
        "training": lambda: zfkit.fit("zfnet64-narrow", images, images, progress=False),
        "motion": lambda: zfkit.invariance(model, images, progress=False),
        "shifts": lambda: zfkit.shift_consistency(model, images, 2),
        "parts": lambda: zfkit.experiments.part_pictures(size=(H, W)),
        "explorer": lambda: zfkit.explore(model, images, zfkit.mine(model, images, k=1, progress=False)),
        "explorer of bands": lambda: zfkit.explore(square, five, zfkit.mine(square, five, progress=False)),
    }  # fmt: skip


@pytest.mark.parametrize("name", refusals())
def test_what_needs_squares_says_so(name):
    with pytest.raises(ZfkitError, match="bands" if "bands" in name else "no square|whole number"):
        refusals()[name]()


MODULE = """
import zfkit
from torch import nn

def make_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2))

def make_model():
    how = {"mean": [3, 2, 1], "scale": 1 / 60, "input_size": (14, 26), "channels": "bgr"}
    return zfkit.wrap_model(make_net(), classes=["a", "b", "c"], name="roads", **how)
"""


def test_a_function_may_return_a_wrapped_network(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    model = zfkit.load_model(f"{tmp_path}/mine.py:make_model", device="cpu")
    assert (model.name, model.input_size, model.classes) == ("roads", (14, 26), ("a", "b", "c"))
    assert (model.mean, model.channels, model.provenance) == ((1, 2, 3), "bgr", {})
    again = zfkit.load_model(f"{tmp_path}/mine.py:make_model", scale=2, input_size=[20, 30], device="cpu")
    assert (again.mean, again.scale, again.input_size) == ((1, 2, 3), (2, 2, 2), (20, 30))


def test_a_rectangle_in_a_shell(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MODULE)
    for i, pixels in enumerate(bands(3, 3, 30, 40)):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    how = [*"--mean 120 --scale 0.02 --input-size 14x26 --model".split(), f"{tmp_path}/mine.py:make_net"]
    table = tmp_path / "top.parquet"
    assert main(["mine", *how, "--images", f"folder:{tmp_path}", "--size", "14x26", "--out", str(table)]) == 0
    images = zfkit.load_images(f"folder:{tmp_path}", size=(14, 26), progress=False)
    model = zfkit.load_model(f"{tmp_path}/mine.py:make_net", mean=120, scale=0.02, input_size=(14, 26))
    expected = torch.cat([y for _, y in activations(model, images.take(range(3)), ["2"])]).flatten(2).amax(2)
    found = zfkit.TopK.load(table)["2"].value
    torch.testing.assert_close(found[:, 0], expected.amax(0).cpu())
    with pytest.raises(SystemExit):
        main(["mine", "--size", "14by26"])
    assert "'14by26' is neither a side in pixels nor HEIGHTxWIDTH" in capsys.readouterr().err


def test_one_s_own_network_goes_through_a_notebook(tmp_path, capsys, monkeypatch):
    """What the shell was told reaches the parameters; a notebook that lacks them is refused."""
    papermill = pytest.importorskip("papermill")
    given = {}
    monkeypatch.setattr(papermill, "execute_notebook", lambda *args, **_: given.update(args[2]))
    monkeypatch.setattr("zfkit.cli._say_where", lambda *_: None)
    monkeypatch.setattr("zfkit.cli.TopK.load", lambda _: None)
    lines = [f"{name} = ''" for name in ("model", "weights", "images", "out")]
    lines += ["maps = 1", "seed = 0", "mean: float | None = None"]
    for more, code in (["input_size: int | list | None = None"], 0), ([], 2):
        source = "\n".join([*lines, *more])
        cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source, "outputs": [],
                "execution_count": None, "id": "a"}  # fmt: skip
        (tmp_path / "n.ipynb").write_text(
            json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
        )
        command = ["atlas", "--notebook", str(tmp_path / "n.ipynb"), "--out", str(tmp_path / "out")]
        assert main([*command, "--mean", "120", "--input-size", "14x26"]) == code
    assert (given["mean"], given["input_size"]) == (120.0, [14, 26]) and "scale" not in given
    assert "the notebook does not take input_size" in capsys.readouterr().err
