"""Only zfkit's own files are deleted or replaced: what only looks like them, or is no file, stays as it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import nbformat
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from coloured import train
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

import zfkit
from zfkit.cli import main
from zfkit.errors import TrainingError, WriteError
from zfkit.files import private_prefix, sweep_away, temporary_folder, write_whole
from zfkit.sweeps.gallery import forget_figures

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and links of Unix")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


def command(name, pictures, out):
    line = [name, *"--size 64 -k 2 --layers conv1 --images".split(), f"folder:{pictures}", "--out", str(out)]
    return line + (["--maps", "2"] if name == "atlas" else [])


def dead_process():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_by(process):
    """What the names of another process's temporary files begin with."""
    return private_prefix().replace(f"-{os.getpid()}-", f"-{process}-")


LOOK_ALIKE = (
    "t.parquet.part-notes.txt", "t.parquet.part.0of2", "t.parquet.part.1of2", "t.parquet.party", ".part/mine.txt",
    ".t.parquet.a1b2c3d4.parquet", ".index.html.mine.html", ".mine.safetensors", "conv1.png.bak", ".zfkit-notes.txt",
    ".zfkit-mining-notes.txt", ".zfkit-mining-0123456789abcdef.txt",
    ".zfkit-0badcafe-1-a1b2c3d4.png", "figures/mine.png", ".sweep", "index.html.old",
)  # fmt: skip


def plant(folder):
    """Files of the user's that look like zfkit's; returns them with their content."""
    dead = left_by(dead_process())
    for name in (*LOOK_ALIKE, f"{dead}short", f"{dead}a1b2c3d4.png.txt", f"x{dead}a1b2c3d4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine, {name}")
    (folder / f"{dead}linkto00").symlink_to(folder / "figures")
    (folder / f"{left_by(os.getppid())}a1b2c3d4").write_text("of a process that lives")
    return {p: p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["mine", "atlas"])
def test_files_that_look_alike_stay_and_what_a_killed_process_left_goes(name, pictures, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    planted, dead = plant(folder), left_by(dead_process())
    (folder / f"{dead}abcd_123.parquet").write_text("half a table")
    (folder / f"{dead}abcd1234").mkdir()
    (folder / f"{dead}abcd1234" / "conv1.png").write_text("half an atlas")
    assert main(command(name, pictures, folder / "t.parquet" if name == "mine" else folder)) == 0
    assert {p: p.read_text() for p in planted} == planted
    assert not list(folder.glob(f"{dead}*"))
    table = folder / ("t.parquet" if name == "mine" else "topk.parquet")
    assert zfkit.TopK.load(table).count == 3 and not (folder / "t.parquet.part").exists()


def test_pictures_of_an_earlier_run_of_a_sweep_go_alone(tmp_path):
    folder = tmp_path / "figures" / "seed=1"
    folder.mkdir(parents=True)
    for name in ("1-1.png", "12-3.jpg", "1-1.png.bak", "notes.txt", "1.png"):
        (folder / name).touch()
    (folder / "2-1.png").mkdir()
    forget_figures("seed=1", tmp_path)
    forget_figures("seed=2", tmp_path)
    assert {p.name for p in folder.iterdir()} == {"1-1.png.bak", "notes.txt", "1.png", "2-1.png"}


def test_temporary_folders_of_killed_processes_go_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = f"import tempfile, zfkit.files as f, os; tempfile.tempdir = {str(tmp_path)!r}\n"
    code += "t = f.temporary_folder(); open(t.name + '/half', 'w').close(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    (left,) = tmp_path.iterdir()
    with temporary_folder() as one, temporary_folder() as two:
        assert not left.exists() and os.path.isdir(one) and os.path.isdir(two)  # noqa: PTH112
    assert list(tmp_path.iterdir()) == []


def no_file(kind, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        (path.parent / "elsewhere").write_text("mine")
        path.symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize("kind", ["named pipe", "link", "folder"])
@pytest.mark.parametrize("name, file", [
    ("mine", "t.parquet"), ("atlas", "index.html"), ("atlas", "conv1.png"), ("atlas", "topk.parquet"),
])  # fmt: skip
def test_what_is_no_file_is_not_replaced(name, file, kind, pictures, tmp_path, capsys):
    folder = tmp_path / "out"
    no_file(kind, folder / file)
    assert main(command(name, pictures, folder / file if name == "mine" else folder)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"(it is a {kind}, and only files are replaced)" in said and file in said
    assert (folder / file).is_fifo() or (folder / file).is_symlink() or (folder / file).is_dir()
    assert {p.name for p in folder.iterdir()} <= {file, "elsewhere"}


def user_file(path):
    """One that a user wrote, in the form that its name says."""
    if path.suffix == ".png":
        Image.new("RGB", (9, 9), "red").save(path)
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"mine": [1]}), path)
    else:
        path.write_text("{}" if path.suffix == ".ipynb" else "<!doctype html><title>on zfkit</title>" * 999)
    return path.read_bytes()


PARAMETERS = "\n".join(f"{name} = None" for name in ("model", "weights", "images", "maps", "seed", "out"))


@pytest.mark.parametrize("name, file", [
    ("atlas", "index.html"), ("atlas", "conv1.png"), ("atlas", "topk.parquet"), ("atlas", "topk.mined.parquet"),
    ("site", "index.html"), ("sweep", "index.html"), ("sweep", "results.parquet"), ("notebook", "nb.ipynb"),
])  # fmt: skip
def test_what_the_user_wrote_is_not_replaced(name, file, pictures, tmp_path, capsys):
    notebook = new_notebook(cells=[new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})])
    (tmp_path / "nb.ipynb").write_text(nbformat.writes(notebook))
    (tmp_path / "grid.yaml").write_text("maps: [1, 2]")
    folder = tmp_path / "out"
    folder.mkdir()
    held = user_file(folder / file)
    nb, grid = str(tmp_path / "nb.ipynb"), str(tmp_path / "grid.yaml")
    line = {
        "sweep": ["sweep", nb, "--grid", grid, "--out", str(folder)],
        "notebook": ["atlas", "--notebook", nb, "--out", str(folder)],
    }.get(name) or command(name, pictures, folder)
    assert main(line) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    there = (
        "zfkit did not write the one that is there, or an earlier version did: move it|holds something else"
    )
    assert file in said and re.search(there, said)
    assert [(p.name, p.read_bytes()) for p in folder.iterdir()] == [(file, held)]


def test_nor_a_notebook_by_what_it_leaves_in_its_own_folder(tmp_path, capsys, monkeypatch):
    """Also one that papermill executed before, whose mark is zfkit's; by `zfkit sweep`, the run of an earlier sweep."""
    pytest.importorskip("papermill")
    monkeypatch.setattr("papermill.execute_notebook", lambda *_, **__: pytest.fail("it is executed"))
    notebook = new_notebook(cells=[new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})])
    notebook.metadata["papermill"] = {}
    notebook.metadata["zfkit"] = {"status": "failed", "key": "", "parameters": {}}
    (tmp_path / "maps=1.ipynb").write_text(held := nbformat.writes(notebook))
    (tmp_path / "grid.yaml").write_text("maps: [1]")
    nb, grid, out = str(tmp_path / "maps=1.ipynb"), str(tmp_path / "grid.yaml"), str(tmp_path)
    assert main(["atlas", "--notebook", nb, "--out", out]) == 2
    assert "maps=1.ipynb itself lies in" in capsys.readouterr().err
    assert main(["sweep", nb, "--grid", grid, "--out", out]) == 2
    assert "is no notebook that this sweep left, and would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "maps=1.ipynb").read_text() == held


def test_an_earlier_atlas_is_replaced(pictures, tmp_path):
    """Another seed draws other maps: none of its pictures is the earlier atlas's, and nothing is added."""
    sheets = []
    for seed in (0, 1):
        assert main([*command("atlas", pictures, tmp_path / "out"), f"--seed={seed}"]) == 0
        sheets.append({file.name: file.read_bytes() for file in (tmp_path / "out").rglob("*.png")})
    before, after = sheets
    assert before.keys() == after.keys() and not [name for name in before if before[name] == after[name]]


def test_nor_a_device_nor_by_any_writer(tmp_path):
    with pytest.raises(WriteError, match=r"cannot write '/dev/null' .it is a device"):
        zfkit.save_weights("/dev/null", {}, {})
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    with pytest.raises(WriteError, match="it is a link"):
        write_whole(link, lambda part: part.write_text("new"))
    assert [p.name for p in tmp_path.iterdir()] == ["link"]


def test_a_run_without_a_state_is_not_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_text("a week of work")
    with pytest.raises(
        TrainingError, match=r"holds model\.safetensors of a training, and no state .*move them away"
    ):
        train(tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").read_text() == "a week of work"


@pytest.mark.parametrize("line, made", [
    (["mine", "--out=~/t.parquet"], "t.parquet"), (["atlas", "--out=~/atlas", "--maps=1"], "atlas/index.html"),
])  # fmt: skip
def test_home_is_the_home_folder(line, made, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(pictures)
    assert main([*line, "--images", "folder:~/pictures", "--size", "64", "-k", "1", "--layers", "conv1"]) == 0
    assert (tmp_path / made).is_file() and not list(pictures.glob("*~*"))


@pytest.mark.parametrize("flag", ["--out=~nobody-at-all/x", "--out=a\0b"])
@pytest.mark.parametrize("name", ["mine", "atlas", "train", "sweep"])
def test_a_name_that_no_file_can_have(name, flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, flag])
    said = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and "--out: a path cannot be" in said and said.isprintable()


def test_sweeping_what_is_not_there_says_nothing(tmp_path):
    sweep_away(tmp_path / "gone")
