"""Mining that is stopped and goes on, and mining in several processes: the identical table."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import zfkit
from zfkit.images.imageset import ImageSet, Windows

# A network whose numbers are exact in float32, so that nothing depends on how a library adds them up: small
# whole weights, pixels 0 to 255, and few of both, so that there are ties.
WEIGHTS = torch.randint(-2, 3, (6, 3, 3, 3), generator=torch.Generator().manual_seed(1)).float()


def exact_model() -> zfkit.VisionModel:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 1)
    )
    with torch.no_grad():
        net[0].weight.copy_(WEIGHTS)
        net[0].bias.zero_()
        net[3].weight.copy_(torch.eye(6).view(6, 6, 1, 1))
        net[3].bias.zero_()
    return zfkit.wrap_model(net, mean=0, scale=1, input_size=16, name="exact")


def pictures(count: int, windows: bool) -> ImageSet:
    """Pictures of few colours; with windows, of photographs with 1 to 7 windows each that overlap in part."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 3, (count, 16, 16, 3), dtype=np.uint8) * 20

    def read(i):
        return Image.fromarray(pixels[i]), -1

    where = None
    if windows:
        photograph = np.repeat(np.arange(count), rng.integers(1, 8, count))[:count]
        left = rng.integers(0, 40, count)
        box = np.stack([left, np.zeros(count), left + 16, np.full(count, 16)], 1)
        where = Windows(torch.from_numpy(photograph), torch.from_numpy(box).float())
    return ImageSet(read, [f"picture {i}" for i in range(count)], size=16, windows=where)


def assert_same(a: zfkit.TopK, b: zfkit.TopK) -> None:
    assert a.count == b.count
    for layer, top in a.layers.items():
        for name, tensor in vars(top).items():
            assert torch.equal(tensor, getattr(b.layers[layer], name)), f"{layer} {name}"


class Stopped(Exception):
    """As a power cut, but one that a test survives."""


@pytest.mark.parametrize("windows", [False, True], ids=["pictures", "windows"])
@pytest.mark.parametrize("after", [1, 2, 5, 9])
def test_a_stopped_run_goes_on_to_the_identical_table(windows, after, tmp_path, monkeypatch):
    model, images = exact_model(), pictures(75, windows)
    options = {"k": 4, "batch_size": 7, "progress": False}
    whole = zfkit.mine(model, images, **options)

    file = tmp_path / "run.part"
    looked, original = [], ImageSet.batches

    def batches(self, *args):
        for n, batch in enumerate(original(self, *args)):
            if n == after:
                raise Stopped
            looked.append(batch.indices)
            yield batch

    monkeypatch.setattr(ImageSet, "batches", batches)
    with pytest.raises(Stopped):
        zfkit.mine(model, images, checkpoint=file, checkpoint_every=14, **options)
    monkeypatch.setattr(ImageSet, "batches", original)
    first = after // 2 * 14  # a state is kept every second batch of 7
    seen = []
    monkeypatch.setattr(
        ImageSet, "batches", lambda self, *args: (seen.append(b.indices) or b for b in original(self, *args))
    )
    assert_same(zfkit.mine(model, images, checkpoint=file, checkpoint_every=14, **options), whole)
    assert int(seen[0][0]) == first  # what was done was not done again
    seen.clear()
    assert_same(zfkit.mine(model, images, checkpoint=file, **options), whole)
    assert seen == []


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    model, images, file = exact_model(), pictures(20, False), tmp_path / "run.part"
    zfkit.mine(model, images, k=3, batch_size=5, checkpoint=file, progress=False)
    with pytest.raises(zfkit.ZfkitError, match=r"run\.part belongs to another run: k differ\. Delete it"):
        zfkit.mine(model, images, k=4, per_photograph=1, batch_size=5, checkpoint=file, progress=False)
    with torch.no_grad():
        model.net[0].weight[0, 0, 0, 0] += 1
    with pytest.raises(zfkit.ZfkitError, match="another run: weights differ"):
        zfkit.mine(model, images, k=3, batch_size=5, checkpoint=file, progress=False)
    file.write_text("no such thing")
    with pytest.raises(zfkit.ZfkitError, match=r"is no checkpoint of mine .* delete it to start again"):
        zfkit.mine(model, images, k=3, batch_size=5, checkpoint=file, progress=False)


def test_a_table_of_other_weights_is_refused():
    model, images = exact_model(), pictures(5, False)
    top = zfkit.mine(model, images, progress=False)
    top.check(model, images)
    with torch.no_grad():
        model.net[3].bias[2] = 0.5
    with pytest.raises(
        zfkit.ZfkitError, match="the weights of 'exact' have changed since this table was mined"
    ):
        top.check(model, images)


WORKER = """
import sys; sys.path.insert(0, {tests!r})
import torch, torch.distributed as dist, zfkit
from test_mining_runs import exact_model, pictures
dist.init_process_group("gloo")
torch.set_num_threads(1)
for windows in (False, True):
    for count in (1, 9, 40, 75):
        top = zfkit.mine(exact_model(), pictures(count, windows), k=4, batch_size=7, progress=False)
        top.save({out!r} + f"/{{count}}-{{windows}}-{{dist.get_rank()}}.parquet")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_give_the_identical_table(processes, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parents[1]), out=str(tmp_path)))
    run(["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", str(script)])
    for windows in (False, True):
        for count in (1, 9, 40, 75):
            one = zfkit.mine(exact_model(), pictures(count, windows), k=4, batch_size=7, progress=False)
            for rank in range(processes):
                assert_same(zfkit.TopK.load(tmp_path / f"{count}-{windows}-{rank}.parquet"), one)


def run(arguments: list[str]) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    """Sixty small pictures in a folder."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((64, 64)).save(
            tmp_path / "pictures" / f"{i:02d}.png"
        )
    return tmp_path / "pictures"


def mine_command(folder, out) -> list[str]:
    given = [
        "--images",
        f"folder:{folder}",
        "--size",
        "64",
        "--layers",
        "conv1",
        "conv3",
        "--batch-size",
        "4",
    ]
    return ["-m", "zfkit", "mine", *given, "--out", str(out)]


def test_the_command_under_torchrun_gives_the_table_of_one_process(folder, tmp_path):
    run(mine_command(folder, tmp_path / "one.parquet"))
    told = run(
        [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            *mine_command(folder, tmp_path / "two.parquet"),
        ]
    )
    assert told.count("two.parquet") == 1  # one process speaks
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert sorted(p.name for p in tmp_path.glob("*.part*")) == []


def test_the_command_killed_at_any_moment_goes_on_to_the_identical_file(folder, tmp_path):
    run(mine_command(folder, tmp_path / "whole.parquet"))
    command = [*mine_command(folder, tmp_path / "killed.parquet"), "--checkpoint-every", "4"]
    part = tmp_path / "killed.parquet.part"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command], env=environment, stderr=subprocess.DEVNULL)
    while not part.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    assert not (tmp_path / "killed.parquet").exists()
    run(command)
    assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not part.exists()


def test_bfloat16_is_close_and_float32_is_the_default():
    model, images = (
        zfkit.load_model("zfnet64", device="cpu"),
        zfkit.load_images("photos", limit=40, size=64, progress=False),
    )
    exact = zfkit.mine(model, images, "conv3", progress=False)["conv3"]
    rough = zfkit.mine(model, images, "conv3", precision="bf16", progress=False)["conv3"]
    error = (rough.max - exact.max).abs() / exact.max.abs().max()
    assert 0 < float(error.max()) < 0.05  # 8 bits of mantissa through three convolutions
    with pytest.raises(zfkit.ZfkitError, match=r"there is no precision 'fp16'.* There are: bf16, float32"):
        zfkit.mine(model, images, "conv3", precision="fp16", progress=False)
