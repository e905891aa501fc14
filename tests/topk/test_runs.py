"""Mining that is stopped and goes on, in several processes, and on a cluster: the identical table."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mining import assert_same, exact_model, pictures, run
from PIL import Image

import zfkit
import zfkit.images.imageset
from zfkit import ZfkitError
from zfkit.cli import main
from zfkit.errors import ImageError
from zfkit.images.imageset import ImageSet

OPTIONS = {"k": 4, "batch_size": 7, "progress": False}


@pytest.fixture
def folder(tmp_path):
    """Sixty small pictures in a folder."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(60):
        drawn = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((64, 64))
        drawn.save(tmp_path / "pictures" / f"{i:02d}.png")
    return tmp_path / "pictures"


def mine_command(folder, out, *more) -> list[str]:
    given = f"--images folder:{folder} --size 64 --layers conv1 conv3 --batch-size 4 --device cpu --out {out}"
    return ["mine", *given.split(), *more]


# ------------------------------------------------------------------------------------------------- checkpoints


class Stopped(Exception):
    """As a power cut, but one that a test survives."""


@pytest.mark.parametrize("windows", [False, True], ids=["pictures", "windows"])
@pytest.mark.parametrize("after", [1, 2, 5, 9])
def test_a_stopped_run_goes_on_to_the_identical_table(windows, after, tmp_path, monkeypatch):
    model, images = exact_model(), pictures(75, windows)
    whole = zfkit.mine(model, images, **OPTIONS)
    file, original, first_of = tmp_path / "run.part", ImageSet.batches, []

    def batches(self, *args, stop_after=after):
        for n, batch in enumerate(original(self, *args)):
            if n == stop_after:
                raise Stopped
            first_of.append(int(batch.indices[0]))
            yield batch

    monkeypatch.setattr(ImageSet, "batches", batches)
    with pytest.raises(Stopped):
        zfkit.mine(model, images, checkpoint=file, checkpoint_every=14, **OPTIONS)
    first_of.clear()
    monkeypatch.setattr(ImageSet, "batches", lambda *args: batches(*args, stop_after=-1))
    assert_same(zfkit.mine(model, images, checkpoint=file, checkpoint_every=14, **OPTIONS), whole)
    assert first_of[0] == after // 2 * 14  # a state is kept every second batch of 7; nothing is done twice
    first_of.clear()
    assert_same(zfkit.mine(model, images, checkpoint=file, **OPTIONS), whole)
    assert first_of == []
    assert sorted(f.name for f in tmp_path.iterdir()) == [".run.part.lock", "run.part"]  # the lock stays


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path):
    model, images, file = exact_model(), pictures(20), tmp_path / "run.part"

    def mine(**changes):
        return zfkit.mine(model, images, **OPTIONS | {"checkpoint": file} | changes)

    mine()
    with pytest.raises(ZfkitError, match=r"run\.part belongs to another run: k differ\. Delete it"):
        mine(k=5, per_photograph=2)
    with torch.no_grad():
        model.net[0].weight[0, 0, 0, 0] += 1
    with pytest.raises(ZfkitError, match="another run: weights differ"):
        mine()
    content = bytearray(file.read_bytes())
    content[-5] ^= 1  # one bit of a number
    for damaged in (content, content[:-9], b"no such thing"):
        file.write_bytes(damaged)
        with pytest.raises(ZfkitError, match=r"is no checkpoint of mine .* delete it to start again"):
            mine()


def test_pictures_are_let_go_as_soon_as_they_were_seen(tmp_path, monkeypatch):
    """However many there are, no more than a few batches are held: the one at hand and two that are read ahead."""
    held, most = {"pictures": 0, "batches": 0}, {"pictures": 0, "batches": 0}

    def watch(what, tensor):
        held[what] += 1
        most[what] = max(most[what], held[what])
        weakref.finalize(tensor, let_go, what)
        return tensor

    def let_go(what):
        held[what] -= 1

    real, gather = zfkit.images.imageset.sized, ImageSet._gather

    def gathered(*args):
        batch = gather(*args)
        watch("batches", batch.pixels)
        return batch

    monkeypatch.setattr(zfkit.images.imageset, "sized", lambda *args: watch("pictures", real(*args)))
    monkeypatch.setattr(ImageSet, "_gather", gathered)
    sizes = []
    for count in (200, 1000):
        file = tmp_path / f"{count}.part"
        options = {"k": 2, "batch_size": 20, "checkpoint": file, "progress": False}
        zfkit.mine(exact_model(), pictures(count), **options)
        assert 20 <= most["pictures"] <= 4 * 20 and 1 <= most["batches"] <= 2
        sizes.append(file.stat().st_size)
    assert abs(sizes[0] - sizes[1]) < 64  # nor does the state grow


@pytest.mark.slow
def test_the_command_killed_at_any_moment_goes_on_to_the_identical_file(folder, tmp_path):
    assert main(mine_command(folder, tmp_path / "whole.parquet")) == 0
    command = mine_command(folder, tmp_path / "killed.parquet", "--checkpoint-every", "4")
    part = tmp_path / "killed.parquet.part"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "zfkit", *command], env=environment, stderr=subprocess.DEVNULL
    )
    while not part.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
    assert not (tmp_path / "killed.parquet").exists()
    assert main(command) == 0
    assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not part.exists()


# ---------------------------------------------------------------------------------------------------- torchrun

WORKER = """
import sys; sys.path.insert(0, {tests!r})
import torch, torch.distributed as dist, zfkit
from mining import exact_model, pictures
dist.init_process_group("gloo")
torch.set_num_threads(1)
for windows in (False, True):
    for count in (1, 9, 40, 75):
        top = zfkit.mine(exact_model(), pictures(count, windows), k=4, batch_size=7, progress=False)
        top.save({out!r} + f"/{{count}}-{{windows}}-{{dist.get_rank()}}.parquet")
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_give_the_identical_table(processes, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parents[1]), out=str(tmp_path)))
    run("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", str(script))
    for windows in (False, True):
        for count in (1, 9, 40, 75):
            one = zfkit.mine(exact_model(), pictures(count, windows), **OPTIONS)
            for rank in range(processes):
                assert_same(zfkit.TopK.load(tmp_path / f"{count}-{windows}-{rank}.parquet"), one)


DIFFERENT = """
import sys; sys.path.insert(0, {tests!r})
import torch, torch.distributed as dist, zfkit
from coloured import coloured, train
from mining import exact_model
dist.init_process_group("gloo")
torch.set_num_threads(1)
rank = dist.get_rank()
model, other = exact_model(), exact_model()
other.net[0].weight.data[0, 0, 0, 0] += rank
mine, differs = (zfkit.load_images("folder:" + f, size=16, progress=False) for f in (sys.argv[1], sys.argv[1 + rank]))
for work in (
    lambda: zfkit.mine(model, differs, progress=False),
    lambda: zfkit.mine(other, mine, progress=False),
    lambda: zfkit.mine(model, mine, k=3 + rank, progress=False),
    lambda: train(None, data=(coloured(40, random_seed=rank), coloured(24))),
):
    try:
        work()
        print("worked")
    except zfkit.ZfkitError as error:
        print(f"{{rank}}: {{error}}", flush=True)
print(f"{{len(zfkit.mine(model, mine, progress=False).layers)}} layers", flush=True)
dist.barrier()  # or one that ends first can take the other's connection with it
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_that_differ_are_told_before_they_work(folder, tmp_path):
    """Other pictures under the same names, another weight, another argument, other training data."""
    other = tmp_path / "other"
    other.mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        (other / file.name).write_bytes((folder / f"{(i + 1) % 60:02d}.png").read_bytes())
    script = tmp_path / "different.py"
    script.write_text(DIFFERENT.format(tests=str(Path(__file__).parents[1])))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    printed = run(*torchrun, str(folder), str(other))  # lines of the two may have run into one another
    for what in ("pictures", "network", "arguments", "data"):
        told = re.findall(f"([01]): process 1 has other {what} than process 0: start all", printed)
        assert sorted(told) == ["0", "1"], printed
    assert printed.count("2 layers") == 2 and "worked" not in printed


@pytest.mark.slow
def test_the_command_under_torchrun_gives_the_table_of_one_process(folder, tmp_path):
    assert main(mine_command(folder, tmp_path / "one.parquet")) == 0
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "zfkit"]
    printed = run(*torchrun, *mine_command(folder, tmp_path / "two.parquet"))
    assert printed.count("two.parquet") == 1  # one process speaks
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert not [p for p in tmp_path.glob("*.part*") if p.suffix != ".lock"]


# ---------------------------------------------------------------------------------------------------- a cluster


def cluster(workers, **options):
    distributed = pytest.importorskip("distributed")
    return distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, dashboard_address=None, **options
    )


@pytest.mark.parametrize("source", ["photos", "textures", "folder", "parquet"])
def test_image_sets_that_stream_travel_to_other_processes(source, folder, tmp_path, monkeypatch):
    cloudpickle = pytest.importorskip("cloudpickle")
    if source == "parquet":
        rows = [{"bytes": f.read_bytes(), "path": None} for f in sorted(folder.iterdir())]
        pq.write_table(pa.table({"image": rows}), tmp_path / "p.parquet")
    path = {"folder": f"folder:{folder}", "parquet": f"parquet:{tmp_path / 'p.parquet'}"}.get(source, source)
    monkeypatch.setattr(zfkit.images.imageset, "IN_MEMORY_BYTES", 0)
    images = zfkit.load_images(path, size=32, limit=20, progress=False)
    first = images[0][0]  # something was read, and is kept, before it travels
    there = pickle.loads(cloudpickle.dumps(images))
    assert torch.equal(there[0][0], first) and torch.equal(there[7][0], images[7][0])
    assert there.fingerprint() == images.fingerprint()


def test_what_cannot_travel_is_said():
    lock = threading.Lock()
    images = pictures(9, before=lambda i: lock.locked())
    with (
        cluster(1, processes=False) as local,
        pytest.raises(ZfkitError, match=r"'custom' or 'exact' cannot be sent to another process: .*lock"),
    ):
        zfkit.mine(exact_model(), images, scheduler=local.scheduler_address, **OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_on_a_cluster_one_of_whose_workers_is_killed_while_it_works(workers, tmp_path):
    """Reading picture 40 kills its worker the first time; with one worker, nothing of the cluster is left."""
    killed = tmp_path / "killed"

    def kill_once(i):
        if i == 40 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    with cluster(workers, host="127.0.0.1") as local:
        for windows in (False, True):
            killed.unlink(missing_ok=True)
            images = pictures(75, windows, before=kill_once)
            top = zfkit.mine(exact_model(), images, scheduler=local.scheduler_address, **OPTIONS)
            assert killed.exists()
            assert_same(top, zfkit.mine(exact_model(), images, **OPTIONS))


@pytest.mark.slow
def test_the_command_on_a_cluster_gives_the_table_of_one_process(folder, tmp_path, capsys):
    """The bundled network travels to the workers."""
    assert main(mine_command(folder, tmp_path / "one.parquet")) == 0
    with cluster(2, host="127.0.0.1") as local:
        scheduler = ("--scheduler", local.scheduler_address)
        assert main(mine_command(folder, tmp_path / "two.parquet", *scheduler)) == 0
    assert "by 2 processes" in capsys.readouterr().out
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


@pytest.mark.slow
def test_pictures_that_workers_cannot_read_are_named_here():
    def damaged(i):
        if i in (3, 50) or (i >= 60 and all_of_a_part):
            raise ImageError(f"picture {i}: damaged")

    distributed = pytest.importorskip("distributed")
    images, all_of_a_part = pictures(75, before=damaged), False
    with cluster(1, processes=False) as local, distributed.Client(local) as client:
        with pytest.warns(UserWarning, match="skipped 2 pictures, the first: picture"):
            top = zfkit.mine(exact_model(), images, scheduler=client, **OPTIONS)
        assert sorted(s.name for s in images.skipped) == ["picture 3", "picture 50"] and top.count == 73
        all_of_a_part = True
        with pytest.raises(ZfkitError, match=r"none of the pictures 63 to 74 \(.*under the same paths"):
            zfkit.mine(exact_model(), images, scheduler=client, **OPTIONS)
        assert client.status == "running"  # it is the caller's
