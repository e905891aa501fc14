"""The command line: what it writes, what it says, and how it refuses."""

from __future__ import annotations

import json
import re
import signal
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

import zfkit
from zfkit import __main__, cli
from zfkit.cli import main


@pytest.fixture
def pictures(tmp_path):
    """A folder of five coloured noise pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_atlas_writes_the_page_a_picture_per_layer_and_the_table(pictures, tmp_path, capsys):
    out = tmp_path / "atlas"
    options = ["--out", str(out), "--size", "64", "--maps", "2", "-k", "4", "--layers", "conv1", "conv3"]
    assert main(["atlas", "--images", f"folder:{pictures}", *options]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["conv1.png", "conv3.png", "index.html", "topk.parquet"]
    printed = capsys.readouterr().out
    assert all(str(out / n) in printed for n in ["index.html", "conv1.png", "conv3.png", "topk.parquet"])
    table = zfkit.TopK.load(out / "topk.parquet").table("conv3")
    assert table.groupby("channel").size().eq(4).all()
    assert main(["atlas", "--images", f"folder:{pictures}", *options, "--patches-only"]) == 0
    assert "deconvnet" not in (out / "index.html").read_text()


def test_mine_writes_the_table_that_python_gets(pictures, tmp_path):
    file = tmp_path / "top.parquet"
    options = ["--size", "64", "--layers", "conv2", "-k", "3", "--out", str(file)]
    assert main(["mine", "--images", f"folder:{pictures}", *options]) == 0
    images = zfkit.load_images(f"folder:{pictures}", size=64, progress=False)
    top = zfkit.mine(zfkit.load_model("zfnet64"), images, "conv2", 3, progress=False)
    assert zfkit.TopK.load(file).table().equals(top.table())


def test_models_lists_the_bundled_pair_with_its_accuracy(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("zfnet64") and "46.3" in line for line in lines)
    assert any(line.startswith("alexnet64") and "38.0" in line for line in lines)


@pytest.mark.parametrize("arguments, said", [
    (["--model", "zfnet65"], "there is no model 'zfnet65'. Did you mean 'zfnet64'?"),
    (["--images", "phots"], "there is no image source 'phots'. Did you mean 'photos'?"),
    (["--images", "folder:not/there"], "there is no folder 'not/there'"),
    (["--layers", "conv9"], "there is no layer 'conv9'. Did you mean 'conv"),
    (["--rule", "deconv"], "there is no rule 'deconv'. Did you mean 'deconvnet'?"),
    (["--notebook", "none.ipynb"], "there is no notebook 'none.ipynb'"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(arguments, said, tmp_path, capsys):
    assert main(["atlas", "--limit", "2", "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]  # progress bars may stand above it
    assert error.startswith("zfkit atlas: ")
    assert said in error


def test_a_notebook_that_makes_no_atlas_is_refused_before_it_runs(tmp_path, capsys):
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": "model = 1", "outputs": [],
            "execution_count": None, "id": "a"}  # fmt: skip
    notebook = tmp_path / "other.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook.write_text(json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    assert main(["atlas", "--notebook", str(notebook), "--out", str(tmp_path / "out")]) == 2
    assert "other.ipynb has no parameter images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "maps, which", [(["3,5"], {"conv1": [3, 5], "conv3": [3, 5]}), (["conv3:7"], {"conv3": [7]})]
)
def test_maps_can_be_named(pictures, tmp_path, maps, which):
    options = ["--out", str(tmp_path / "atlas"), *"--size 64 --limit 4 --patches-only --maps".split(), *maps]
    layers = ["--layers", "conv1", "conv3"] if len(which) == 2 else []
    assert main(["atlas", "--images", f"folder:{pictures}", *options, *layers]) == 0
    page = (tmp_path / "atlas" / "index.html").read_text()
    cards = [(layer, int(channel)) for layer, channel in re.findall(r' of (\w+) map (\d+)"', page)]
    assert cards == [(layer, channel) for layer, channels in which.items() for channel in channels]


@pytest.mark.parametrize(
    "maps", [["many"], ["0"], ["3,x"], ["conv1:"], ["conv1:2", "3"], ["conv1:2", "conv1:3"], ["2", "all"]]
)
def test_maps_that_are_none(maps, capsys):
    assert main(["atlas", "--maps", *maps]) == 2
    assert f"--maps {' '.join(maps)} is neither a number, 'all'" in capsys.readouterr().err


COMMANDS = ("atlas", "mine", "train", "sweep", "doctor", "models")


def test_alone_it_says_what_there_is(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n    {command} " in printed for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"zfkit {command}" in capsys.readouterr().out.split("example", 1)[1]


def test_a_warning_is_one_line(monkeypatch):
    for of, name in ((signal, "signal"), (sys, "unraisablehook"), (warnings, "formatwarning")):
        monkeypatch.setattr(of, name, getattr(of, name) if of is warnings else lambda *_: None)
    monkeypatch.setattr(cli, "main", lambda: 0)
    with pytest.raises(SystemExit):
        __main__.main()
    assert warnings.formatwarning("no projections", UserWarning, "cli.py", 7) == "zfkit: no projections\n"
