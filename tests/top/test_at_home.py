"""What somebody meets who brings a network, pictures and checkpoints of their own, on a machine of their own."""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from tiny import hooked, image_set, network, noise, random_pixels, tiny_model
from torch import nn

import zfkit
from zfkit import figures
from zfkit.cli import main
from zfkit.errors import LayerError
from zfkit.experiments.invariance import paper_layers
from zfkit.experiments.occlusion import last_block
from zfkit.files import cache_folder, cached
from zfkit.frequency import Aliasing
from zfkit.results import Result
from zfkit.topk.bundled import mined

ROOT = Path(zfkit.__file__).resolve().parents[1]

# ------------------------------------------------------------------------------------- branching networks


class Block(nn.Module):
    """A residual block whose shortcut is computed after its branch, as torchvision's are."""

    def __init__(self, width, out, stride):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, out, 3, stride, 1), nn.Conv2d(out, out, 3, 1, 1)
        self.shortcut, self.relu = nn.Conv2d(width, out, 1, stride), nn.ReLU()

    def forward(self, x):
        return self.relu(self.conv2(self.relu(self.conv1(x))) + self.shortcut(x))


def residual():
    torch.manual_seed(0)
    blocks = nn.Sequential(Block(3, 6, 1), Block(6, 8, 2))
    net = nn.Sequential(blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return zfkit.wrap_model(net, mean=128, scale=1 / 64, input_size=20, name="residual")


def test_the_default_layer_is_what_comes_out_of_the_last_block():
    model, pixels = residual(), noise(1, 20)
    assert model.conv_layers[-1] == "0.1.shortcut"  # the convolution that runs last
    layer = last_block(model)
    assert paper_layers(model)[1] == layer
    with torch.no_grad():
        truth = model.net[0](model.preprocess(pixels)).relu()  # the ReLU has been already: nothing changes
    result = zfkit.occlude(model, pixels[0], size=8, stride=8, progress=False)
    assert result.layer == layer
    assert result.whole_activity == pytest.approx(float(truth[0].sum((1, 2)).max()), rel=1e-5)


def test_in_a_chain_it_is_the_last_convolution():
    assert last_block(network(0)) == "3"
    assert last_block(zfkit.load_model("zfnet64-narrow", weights=None)) == "conv5"


# ------------------------------------------------------------------------------ snapshots of one's own loop


@pytest.mark.parametrize("suffix, wrapped", [(".pt", False), (".pth", True)])
def test_evolution_reads_checkpoints_of_torch(tmp_path, suffix, wrapped):
    """Of a loop that saves state dicts, or dictionaries with one: the same as from the networks themselves."""
    models = {epoch: network(epoch) for epoch in (0, 3, 10)}
    images = image_set(random_pixels(6))
    for epoch, model in models.items():
        state = model.net.state_dict()
        kept = {"model_state_dict": state, "epoch": epoch} if wrapped else state
        torch.save(kept, tmp_path / f"checkpoint_{epoch}{suffix}")
    options = {"maps": 2, "compare": 6, "progress": False}
    truth = zfkit.evolution(models, images, **options)
    read = zfkit.evolution(tmp_path, images, model=network(99), **options)
    assert read.epochs == truth.epochs == (0, 3, 10)
    for layer in truth.layers:
        assert torch.allclose(read.layers[layer].projection, truth.layers[layer].projection, atol=1e-6)
    said = r"does not say which network .* model=zfkit\.wrap_model.* pairs"
    with pytest.raises(zfkit.ZfkitError, match=said):
        zfkit.evolution(tmp_path, images, **options)


# ----------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A home without a cache, and no variable that says where one is."""
    monkeypatch.delenv("ZFKIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_where_the_cache_is(nowhere, monkeypatch):
    assert cache_folder() == nowhere / "home" / ".cache" / "zfkit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere / "xdg"))
    assert cache_folder() == nowhere / "xdg" / "zfkit"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its specification
    assert cache_folder() == nowhere / "home" / ".cache" / "zfkit"
    monkeypatch.setenv("ZFKIT_CACHE", "~/elsewhere")
    assert cache_folder() == nowhere / "home" / "elsewhere"


def test_zfkit_cache_shows_bounds_and_clears_what_is_zfkits_own(nowhere, monkeypatch, capsys):
    monkeypatch.setenv("ZFKIT_CACHE", str(nowhere / "shared"))
    (nowhere / "shared" / "photographs").mkdir(parents=True)
    (nowhere / "shared" / "photographs" / "holiday.jpg").write_bytes(b"mine")
    tables = []
    for seed in (0, 1):
        mined(network(seed), image_set(random_pixels(4)))
        tables += [path for path, _, _ in cached() if path not in tables]
    assert len(tables) == 2 and {path.suffix for path in tables} == {".parquet"}
    os.utime(tables[1], (1, 1))  # used long ago
    assert main(["cache"]) == 0
    printed = capsys.readouterr().out
    assert all(str(path) in printed for path in tables) and "holiday" not in printed
    assert main(["cache", "--limit", str(tables[0].stat().st_size / 1e6)]) == 0
    assert [path.exists() for path in tables] == [True, False]
    assert main(["cache", "--limit", "0"]) == 0
    assert not tables[0].exists() and (nowhere / "shared" / "photographs" / "holiday.jpg").exists()
    *_, total, left_alone = capsys.readouterr().out.splitlines()
    assert total.split()[:2] == ["0.0", "MB"] and left_alone.endswith(str(nowhere / "shared" / "photographs"))
    assert main(["cache", "--limit", "-3"]) == 2


# --------------------------------------------------------------------------------------- what is not there


@pytest.mark.parametrize("code, missing, extra", [
    ("zfkit.explore", "ipywidgets", "notebooks"),
    ("zfkit.sweep('a.ipynb', 'grid.yaml')", "papermill", "notebooks"),
    ("zfkit.fit('zfnet64-narrow', None, None)", "lightning", "train"),
    ("main(['train', '--images', 'folder:/nowhere', '--val', 'photos'])", "lightning", "train"),
    ("main(['sweep', 'a.ipynb', '--grid', 'grid.yaml'])", "papermill", "notebooks"),
])  # fmt: skip
def test_what_needs_an_extra_says_which_before_anything_else(code, missing, extra, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)  # as where it is not installed
    vars(zfkit).pop("explore", None)
    try:
        assert eval(code) == 2
        said = capsys.readouterr().err
    except zfkit.ZfkitError as error:
        said = str(error)
    assert f"needs {missing}: pip install 'zfkit[{extra}]'" in said


# -------------------------------------------------------------------------------------------------- citing


def test_zfkit_can_be_cited():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()  # what version 1.2 requires
    assert cited["version"] == zfkit.__version__
    readme = (ROOT / "README.md").read_text()
    assert f"version = {{{zfkit.__version__}}}" in readme and cited["repository-code"] in readme


def test_a_set_is_sampled_evenly_and_windows_start_in_the_middle():
    """`shift_consistency` with a limit is that of the pictures it takes; of many starts it takes the middle ones."""
    model, pixels = network(0), noise(9, 60)
    options = {"shifts": 2, "progress": False, "layers": ["0"], "random_seed": 3}
    sampled = zfkit.shift_consistency(model, pixels, limit=5, **options)
    chosen = zfkit.shift_consistency(model, pixels[[0, 2, 4, 6, 8]], **options)
    assert torch.equal(sampled.distance, chosen.distance) and torch.equal(sampled.agreement, chosen.agreement)
    # 60 px leave 39 starts; of the middle 16 the first is at 11, and the other axis lies in the middle anyway.
    cut = pixels[:, :, 11 : 11 + 20 + 2 + 15]
    whole = zfkit.shift_consistency(model, pixels, **options)
    rows = zfkit.shift_consistency(model, cut, **options)
    assert torch.allclose(whole.agreement[0], rows.agreement[0])
    table = whole.table()
    assert (table.agreement_low <= table.agreement).all() and (table.agreement <= table.agreement_high).all()


# --------------------------------------------------------------------------- a training that learns nothing


def test_a_training_on_few_pictures_says_within_two_epochs_that_it_learns_nothing(tmp_path, capsys):
    """With the paper's start, on 64 pictures of 16 classes; the network is called after its folder."""
    out = tmp_path / "first try"
    line = "train --limit 64 --epochs 3 --batch-size 32 --device cpu --out"
    command = [*line.split(), str(out)]
    with pytest.warns(UserWarning) as said:
        assert main(command) == 0
    first = next(str(w.message) for w in said if "guessing" in str(w.message))
    # ln 16:
    assert first.startswith("after 2 epochs the loss is still that of guessing, 2.77: nothing is learned")
    assert "64 pictures are 2 steps an epoch" in first and "--recipe he --batch-size 32" in first
    printed = capsys.readouterr().out
    assert "Nothing was learned" in printed and "zfkit atlas" not in printed
    assert zfkit.load_model(out / "model.safetensors").name == "first try"


# ---------------------------------------------------------------------------------- results to take along


def test_a_table_of_one_map_says_which_pictures_and_where():
    model = network(0)
    images = image_set(random_pixels(5), labels=[0, 1, 2, 1, 0], classes=["ant", "bee", "cat"])
    top = zfkit.mine(model, images, "3", k=2, progress=False)
    table = top.table("3", 4, images=images, model=model)
    assert len(table) == 2 and (table.channel == 4).all()
    for row in table.itertuples(index=False):
        _, label = images[row.image]
        assert row.name == images.name(row.image)
        assert row[table.columns.get_loc("class")] == images.classes[label]
        # By gradient: which pixels that unit sees.
        x = model.preprocess(images[row.image][0]).requires_grad_()
        model.net[:4](x)[0, 4, row.row, row.col].backward()
        rows, columns = (x.grad[0].abs().sum(0).sum(axis).nonzero() for axis in (1, 0))
        assert row.left <= columns.min() and columns.max() < row.right and row.right - row.left == 9
        assert row.top <= rows.min() and rows.max() < row.bottom
    assert list(top.table("3", 4).columns) == ["layer", "channel", "rank", "value", "image", "row", "col"]
    with pytest.raises(zfkit.ZfkitError, match="channel of '3'"):
        top.table("3", 5)
    with pytest.raises(zfkit.ZfkitError, match="mine again"):
        top.table("3", 4, images=image_set(random_pixels(6)))


def test_a_picture_is_a_tensor_an_array_or_a_path(tmp_path):
    model, pixels = network(0), random_pixels(1)[0]
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    options = {"size": 8, "stride": 8, "progress": False}
    file = tmp_path / "mine.png"
    given = torch.from_numpy(pixels).permute(2, 0, 1), pixels, file, str(file)
    truth, *others = (zfkit.occlude(model, image, **options) for image in given)
    for other in others:
        assert torch.equal(other.image, truth.image) and torch.equal(other.activity, truth.activity)
    with pytest.raises(zfkit.ZfkitError, match="expected one uint8 RGB picture"):
        zfkit.occlude(model, pixels.astype(float), **options)


@pytest.mark.parametrize("size, measure", [
    (20, lambda *of: zfkit.invariance(*of, values=[0, 2], progress=False)),
    (22, lambda *of: zfkit.shift_consistency(*of, shifts=2, layers=["0"], progress=False)),
    (20, lambda *of: zfkit.measure_aliasing(*of, "0", progress=False)),
    (20, lambda *of: zfkit.diagnose(*of, progress=False)),
], ids=["invariance", "shift_consistency", "measure_aliasing", "diagnose"])  # fmt: skip
def test_pictures_are_a_set_tensors_arrays_or_paths(size, measure, tmp_path):
    """Paths are brought to the size that it takes."""
    model, pixels = network(0), random_pixels(3, 22)
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, picture in zip(files, pixels, strict=True):
        Image.fromarray(picture).save(file)
    given = [image_set(pixels), torch.from_numpy(pixels).permute(0, 3, 1, 2), pixels]
    truth, *others = (measure(model, pictures).table() for pictures in given)
    for other in others:
        pd.testing.assert_frame_equal(other, truth)
    brought = zfkit.ImageSet.of(files, size=size, progress=False)
    pd.testing.assert_frame_equal(measure(model, files).table(), measure(model, brought).table())


def test_aliasing_of_one_picture_by_its_path(tmp_path):
    Image.fromarray(random_pixels(1, 22)[0]).save(file := tmp_path / "a.png")
    model = network(0)
    listed = zfkit.ImageSet.of([file], size=model.input_size, progress=False)
    layer = next(iter(zfkit.frequency.subsampling_layers(model)))
    found, truth = (zfkit.measure_aliasing(model, of, layer, progress=False) for of in (file, listed))
    pd.testing.assert_frame_equal(found.table(), truth.table())


def test_activations_are_what_a_hook_sees(tmp_path):
    model = tiny_model()
    arrays = random_pixels(3, model.input_size)
    pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    with hooked(model, ["conv1"]) as seen, torch.no_grad():
        model.net(model.preprocess(pixels))
    expected = seen["conv1"]
    for given in (image_set(arrays), pixels, arrays):
        torch.testing.assert_close(zfkit.activations(model, given, "conv1", progress=False), expected)
    Image.fromarray(arrays[1]).save(tmp_path / "a.png")
    for one in (pixels[1], arrays[1], tmp_path / "a.png", [str(tmp_path / "a.png")]):
        torch.testing.assert_close(zfkit.activations(model, one, "conv1", progress=False), expected[1:2])
    with pytest.raises(LayerError, match="conv9"):
        zfkit.activations(model, pixels, "conv9")


def test_a_heat_map_lies_over_what_units_see():
    """A convolution of 4 x 4 with stride 4 that adds up red: units answer where the picture is red, and there alone."""
    conv = torch.nn.Conv2d(3, 2, 4, 4, bias=False)
    conv.weight.data.zero_()[1, 0] = 1
    model = zfkit.wrap_model(torch.nn.Sequential(conv), mean=0, scale=1, input_size=32)
    picture = torch.zeros(3, 32, 32, dtype=torch.uint8)
    picture[0, 8:16, 20:28] = 255
    heat = np.asarray(figures.heat_map(model, picture, "0", 1, side=64)).astype(int)
    assert (heat[16:32, 40:56] > (200, 200, 100)).all()
    heat[13:35, 37:59] = 20  # and a little around it, where the grey picture was enlarged
    assert (heat == 20).all()
    nothing = np.asarray(figures.heat_map(model, picture, "0", 0, side=64)).astype(int)
    assert (np.ptp(nothing, axis=2) == 0).all()
    with pytest.raises(LayerError, match=r"channel of '0' must be .* 0 to 1"):
        figures.heat_map(model, picture, "0", 2)


def test_filters_of_a_first_layer_in_one_call():
    conv = torch.nn.Conv2d(3, 2, 3)
    conv.weight.data.zero_()[0, 0, 1, 2], conv.weight.data[1, 2] = 5.0, -0.1
    model = zfkit.wrap_model(nn.Sequential(conv, nn.Conv2d(2, 4, 3)), mean=0, scale=1, input_size=32)
    sheet = np.asarray(figures.filters(model)).astype(int)
    assert sheet.shape == (66, 2 * 66 + 6, 3)
    assert sheet[33, 55].tolist() == [255, 128, 128] and sheet[33, 10].tolist() == [128] * 3
    assert (sheet[:, 72:] == (128, 128, 1)).all() or (sheet[:, 72:] == (128, 128, 0)).all()
    with pytest.raises(LayerError, match="'1' has no filters that look at a picture: take '0'"):
        figures.filters(model, "1")


def test_a_result_is_a_few_lines_a_table_and_a_figure():
    kept, folded = torch.arange(1.0, 97, dtype=torch.float64), torch.arange(96.0, 0, -1, dtype=torch.float64)
    one = Aliasing("<b>", "conv1", (2, 2), kept, folded, torch.rand(5, 2).double(), kept / 200)
    assert repr(one) == "Aliasing(model='<b>', layer='conv1', stride=(2, 2))"
    shown = one._repr_html_()
    assert "&lt;b&gt;" in shown and "96 rows" in shown and shown.count("<tr") < 12
    assert "0.9897" in shown  # 96 / 97
    dots, bar, _ = one.plot().data  # what folds of each filter's 97, in %, and of all, half
    np.testing.assert_allclose(dots.y, 100 * np.arange(96, 0, -1) / 97)
    assert list(bar.y) == pytest.approx([50, 50])


def test_every_result_has_a_table_and_a_figure_and_is_said_in_few_words():
    """Also the next one: of the data that a function of these rooms returns, all but those named are results."""
    rooms = [zfkit.topk, zfkit.frequency, zfkit.training, zfkit.health, zfkit.experiments]
    functions = [inspect.unwrap(f) for room in rooms for f in vars(room).values() if inspect.isfunction(f)]
    returned = [f.__globals__.get(f.__annotations__.get("return")) for f in functions]
    kinds = {kind for kind in returned if dataclasses.is_dataclass(kind)}
    others = sorted(kind.__name__ for kind in kinds if not issubclass(kind, Result))
    inputs = ["Architecture", "Geometry", "PartPictures", "VisionModel"]
    assert others == sorted(["Accuracy", "Elsewhere", "Estimate", "FirstLayerRuns", *inputs])
    kinds = Result.__subclasses__()
    assert len(kinds) > 15 and inspect.isabstract(Result)
    for kind in kinds:
        first, *rest = inspect.signature(getattr(figures, kind._figure)).parameters.values()
        assert kind.__name__ in first.annotation and all(p.default is not p.empty for p in rest), kind
        assert not inspect.isabstract(kind), "it has a table"
        if kind.__repr__ is Result.__repr__:
            one = object.__new__(kind)
            vars(one).update({f.name: torch.rand(999) for f in dataclasses.fields(kind)}, model="net")
            assert repr(one) == f"{kind.__name__}(model='net')"
        else:
            assert kind.__repr__.__code__.co_filename == inspect.getfile(kind), "written there, no dataclass"


def test_patches_as_a_table_and_a_sheet():
    model, images = tiny_model(), image_set(random_pixels(6))
    top = zfkit.mine(model, images, "conv1", k=4, progress=False)
    patches = zfkit.project_top(model, images, top, "conv1", [2, 0], progress=False)
    with hooked(model, ["conv1"]) as seen, torch.no_grad():
        model.net(model.preprocess(images.take(range(6))))
    table, pictures = patches.table(), images.take(range(6))
    assert table.channel.tolist() == [2] * 4 + [0] * 4 and table["rank"].tolist() == [0, 1, 2, 3] * 2
    for channel, rows in table.groupby("channel"):
        maps = seen["conv1"][:, channel]
        best = maps.flatten(1).amax(1).topk(4)
        assert rows.image.tolist() == best.indices.tolist()
        there = maps[tuple(torch.from_numpy(rows[["image", "row", "col"]].to_numpy()).T)]
        assert rows.value.tolist() == pytest.approx(there.tolist(), rel=1e-6)
        assert rows.value.tolist() == pytest.approx(best.values.tolist(), rel=1e-6)
    for row, photo in zip(table.itertuples(), patches.photo.flatten(0, 1), strict=True):
        # The kernel of 7 at stride 2 with padding 1 begins at 2 x - 1; grey lies beyond the picture.
        assert (row.left, row.top) == (2 * row.col - 1, 2 * row.row - 1)
        padded = nn.functional.pad(pictures[row.image], [1] * 4, value=128)
        assert torch.equal(photo, padded[:, row.top + 1 : row.bottom + 1, row.left + 1 : row.right + 1])
    sheet, (left, right) = np.asarray(patches.plot()), figures.pair_of_montages(patches, 1)
    gap = sheet.shape[1] - 2 * (left.width + right.width + 2)
    at = left.width + right.width + 2 + gap
    assert (sheet[:, at : at + left.width] == np.asarray(left)).all()


def test_an_atlas_has_the_layers_of_the_table(tmp_path):
    model, images = residual(), image_set(random_pixels(6, 20))
    last = model.conv_layers[-1]
    top = zfkit.mine(model, images, last, k=2, progress=False)
    assert [*zfkit.write_atlas(model, images, tmp_path, top=top, maps=1, progress=False).pictures] == [last]
