"""Sizes are known before memory is taken: what a small file claims is refused by its number."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import threading
import warnings
import weakref
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mining import exact_model, pictures
from PIL import Image

import zfkit
from zfkit.atlas import page
from zfkit.checksums import read_table, write_table
from zfkit.cli import main
from zfkit.errors import ImageError, LayerError, ModelError, TrainingError, ZfkitError
from zfkit.images.imageset import ImageSet
from zfkit.nets.paper import ARCHITECTURES, build
from zfkit.nets.zoo import describe
from zfkit.sweeps import read_grid
from zfkit.training import TrainingPlan

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits and pipes of Unix")


@contextmanager
def little_memory(more=2**28):
    """No more than so many bytes beyond what this process has mapped."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def packed(path, rows, size, row_group_size, once=False):
    """Rows of zeros, which Parquet packs a thousandfold, or holds but once."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array([{"bytes": bytes(size), "path": ""}] * rows, kind)})
    options = {"row_group_size": row_group_size, "compression": "zstd", "use_dictionary": once}
    pq.write_table(table, path, **options)


@pytest.mark.parametrize("once, said", [
    (False, r"its row group 0 unpacks to 40 MB, and at most 10 MB are read"),
    (True, r"its pictures unpack to 40 MB, and at most 10 MB are read"),
])  # fmt: skip
def test_row_groups_that_unpack_to_much_are_refused_by_what_they_say(once, said, tmp_path, monkeypatch):
    monkeypatch.setattr("zfkit.images.parquet.MOST_UNPACKED", 10**7)
    packed(tmp_path / "bomb.parquet", rows=10, size=4 * 10**6, row_group_size=10, once=once)
    assert (tmp_path / "bomb.parquet").stat().st_size < 10**5
    with warnings.catch_warnings(), pytest.raises(ImageError, match=said):
        warnings.simplefilter("ignore")  # each row is named
        zfkit.load_images(f"parquet:{tmp_path}", size=8, progress=False)


def test_the_same_rows_in_smaller_groups_are_read(tmp_path):
    packed(tmp_path / "many.parquet", rows=4, size=10**6, row_group_size=1)
    with pytest.raises(ImageError, match=r"none of the 4 pictures .*nothing but zeros"):
        zfkit.load_images(f"parquet:{tmp_path}", size=8, progress=False)


@pytest.mark.parametrize("column, said", [
    (pa.array([[0] * 2_000_000] * 10, pa.list_(pa.int64())), r"'it.list.element' unpacks to 20,000,000 values"),
    (pa.array(["x" * 10**6] * 20), r"'it' unpacks to 20,0\d\d,\d\d\d values"),
    (pa.array([["x" * 10**6]] * 20, pa.list_(pa.large_string())), r"'it' unpacks to 20,000,000 values"),
    (pa.array([bytes(10**6)] * 20, pa.binary(10**6)), r"'it' unpacks to 20,000,000 values"),
])  # fmt: skip
def test_tables_that_unpack_to_much_are_refused_by_what_they_say(column, said, tmp_path):
    """As large as tests can make them; a thousand times as many values take the same few bytes."""
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({"it": column}), file, compression="zstd")
    assert file.stat().st_size < 3000
    said += ", and at most 16,777,216 are read"
    for read in (zfkit.TopK.load, read_table):
        with little_memory(2**26), pytest.raises(ZfkitError, match=said):
            read(file)


LONG, TEXT = "x" * 10**6, pa.string()


@pytest.mark.parametrize("values, kind", [
    ([LONG], pa.large_list(TEXT)), ([LONG] * 2, pa.list_(TEXT, 2)), ({"a": LONG}, pa.struct({"a": TEXT})),
    ([("a", LONG)], pa.map_(TEXT, TEXT)), ([[LONG]], pa.list_(pa.large_list(TEXT))),
    ([{"a": LONG}], pa.list_(pa.struct({"a": TEXT}))),
])  # fmt: skip
def test_columns_whose_texts_nobody_counts_are_refused(values, kind, tmp_path):
    pq.write_table(
        pa.table({"it": pa.array([values] * 20, kind)}), tmp_path / "t.parquet", compression="zstd"
    )
    with (
        little_memory(2**26),
        pytest.raises(ZfkitError, match=r"its column 'it' holds .*, and only values and"),
    ):
        read_table(tmp_path / "t.parquet")


def test_texts_of_a_table_are_as_they_were_written(tmp_path):
    texts = ["a", None, "ö" * 100, ""]
    table = pa.table({
        "plain": texts, "large": pa.array(texts, pa.large_string()), "list": [texts, [], None, ["b"]],
        "dictionary": pa.array(texts).dictionary_encode(), "bytes": [b"a", None, b"\0", b""],
    })  # fmt: skip
    write_table(tmp_path / "t.parquet", table)
    assert read_table(tmp_path / "t.parquet").equals(table)


def test_no_table_is_mined_that_could_not_be_read():
    model = zfkit.load_model("alexnet64", device="cpu")
    maps = sum(model.network.shapes[layer][0] for layer in model.layers)
    said = f"k = 10,000 pictures of each map are {maps * 10_000:,} places in all"
    with pytest.raises(ZfkitError, match=said):
        zfkit.mine(model, pictures(3), model.layers, k=10_000)


def test_a_label_beyond_all_pictures_makes_no_classes():
    one = ImageSet.of(torch.zeros(4, 3, 64, 64, dtype=torch.uint8), labels=[0, 1, 10**7, 0], progress=False)
    said = "a training label is 10,000,000, of 4 pictures without"
    with little_memory(), pytest.raises(TrainingError, match=said):
        TrainingPlan.make("zfnet64", one, one, zfkit.Recipe())


def test_a_file_that_claims_large_pictures_is_not_tried(tmp_path):
    shape = replace(ARCHITECTURES["zfnet64"], widths=(1, 1, 1, 1, 1), hidden=1, classes=2, input_size=4096)
    known, said = {"architecture": describe(shape)}, "pictures of 4,096 px go in, and at most 2,048 are tried"
    file = zfkit.save_weights(tmp_path / "w.safetensors", build(shape).state_dict(), known)
    with little_memory(), pytest.raises(ModelError, match=said):
        zfkit.load_model(file, device="cpu")


def test_a_constant_of_an_onnx_file_is_not_made_up_without_end(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    shape = numpy_helper.from_array(np.array([10**6, 10**6], np.int64), "shape")
    kinds = ("ConstantOfShape", ["shape"], ["w"]), ("Add", ["x", "w"], ["y"])
    nodes = [helper.make_node(*kind) for kind in kinds]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 8, 8]) for n in "xy")
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y], [shape])), tmp_path / "a.onnx")
    said = r"ConstantOfShape.*it would hold 1,000,000,000,000 values"
    with little_memory(), pytest.raises(ModelError, match=said):
        zfkit.nets.load_onnx(tmp_path / "a.onnx")


def test_maps_of_pictures_that_are_too_large_are_refused_by_their_size():
    model = exact_model()  # conv "0" with 6 maps and stride 2 at 16 px
    large = ImageSet(pictures(1)._read, ["a"], size=100_000)
    said = rf"of 100000 px .*'0' would take {4 * 6 * 50_000**2 / 1e9:.1f} GB"
    for call in (zfkit.mine, lambda m, i: zfkit.write_atlas(m, i, "never")):
        with little_memory(), pytest.raises(LayerError, match=said):
            call(model, large)


def test_so_does_the_command(tmp_path, capsys):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    line = ["mine", "--images", f"folder:{tmp_path}", "--size", "10000", "--out", str(tmp_path / "t.parquet")]
    assert main(line) == 2
    assert "pictures of 10000 px are too large for zfnet64" in capsys.readouterr().err


@pytest.mark.parametrize("k", [10**4 + 1, 10**20])
def test_so_many_pictures_of_each_map_are_not_kept(k):
    with pytest.raises(ZfkitError, match="k must be a whole number from 1 to 10000"):
        zfkit.mine(exact_model(), pictures(3), k=k)


@pytest.mark.parametrize(
    "kind, said", [("pipe", "a named pipe"), ("/dev/zero", "a device"), ("folder", "a folder")]
)
def test_grids_and_names_of_classes_are_files(kind, said, tmp_path):
    path = tmp_path / "it" if kind != "/dev/zero" else kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    for read in (read_grid, lambda p: zfkit.load_model("zfnet64", classes=p, device="cpu")):
        problems = []

        def attempt(read=read, problems=problems):
            with pytest.raises(ZfkitError, match=f"it is {said}, not a file"):
                read(path)
            problems.append("none")

        thread = threading.Thread(target=attempt, daemon=True)  # a pipe would wait for ever
        thread.start()
        thread.join(20)
        assert problems == ["none"]


def test_an_endless_list_of_names_is_refused(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"a\n" * 6_000_000)
    with pytest.raises(ModelError, match="larger than 10 MB, which is too much for the names of classes"):
        zfkit.load_model("zfnet64", classes=tmp_path / "names.txt", device="cpu")


# ------------------------------------------------------------------------------------- memory of an atlas

PEAK = """
import sys, torch, zfkit
torch.set_num_threads(1)
model = zfkit.load_model("torchvision:resnet50", weights=None, device="cpu")
photos = zfkit.load_images("photos", limit=24, progress=False)
getattr(zfkit, sys.argv[2])(model, photos, sys.argv[1], layers=list(model.conv_layers)[-3:], maps=3, progress=False)
# Not getrusage, whose peak is also that of the process that started this one.
print(next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in /proc")
@pytest.mark.parametrize("write", ["write_atlas", "write_site"])
def test_the_deepest_layers_of_resnet50_take_little_memory(write, tmp_path):
    """Their units see 400 px and more; a GB are torch, the network and the photographs."""
    command = [sys.executable, "-c", PEAK, str(tmp_path / "out"), write]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 2e9


@pytest.mark.parametrize("most, portions", [(0, 6), (2000, 4), (10**9, 1)])
def test_maps_of_an_atlas_are_projected_in_portions(most, portions, monkeypatch, tmp_path):
    """Layer "0" sees 3 px, and "3" 5: nine float and uint8 windows of a map take 1,215 and 3,375 bytes."""
    asked, project, earlier = [], page.project_many, []

    def counted(model, images, top, wanted, **options):
        gc.collect()
        held = [patches for patches in earlier if patches() is not None]
        assert len(held) <= 1  # the layer that was drawn last; no portion beside another one
        asked.append({name: list(maps) for name, maps in wanted.items()})
        patches = project(model, images, top, wanted, **options)
        earlier[:] = [weakref.ref(p.photo) for p in patches.values()]
        return patches

    monkeypatch.setattr(page, "project_many", counted)
    model, images = exact_model(), pictures(20)
    chosen = {"0": [0, 3, 5], "3": [1, 2, 4]}
    whole = zfkit.write_atlas(model, images, tmp_path / "whole", maps=chosen, progress=False)
    assert asked == [chosen]
    asked.clear()
    monkeypatch.setattr(page, "PATCH_BYTES", most)
    cut = zfkit.write_atlas(model, images, tmp_path / "cut", maps=chosen, progress=False)
    assert [pair for part in asked for n, maps in part.items() for pair in [(n, c) for c in maps]] == [
        (n, c) for n, maps in chosen.items() for c in maps
    ]
    assert len(asked) == portions
    for a, b in zip(whole.pictures.values(), cut.pictures.values(), strict=True):
        assert a.read_bytes() == b.read_bytes()
    assert whole.index.read_bytes() == cut.index.read_bytes()
