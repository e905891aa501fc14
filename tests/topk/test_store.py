"""Mining real data: told beforehand what it takes, in shares for any machine, with tables that know their origin.

Killed runs that go on and torchrun's processes are in test_mining_runs; a million pictures in
benchmarks/bench_million.py.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_mining_runs import assert_same, exact_model, mine_command, pictures

import zfkit
import zfkit.images.imageset
import zfkit.topk
from zfkit import TopK, ZfkitError, load_images
from zfkit.cli import main
from zfkit.images.imageset import ImageSet
from zfkit.topk import estimate_mining, mine_share
from zfkit.topk.mine import duration, size_of, state_of

OPTIONS = {"k": 4, "batch_size": 7, "progress": False}


def shares_of(model, images, folder: Path, of: int, **options) -> list[Path]:
    return [mine_share(model, images, folder / "t.part", i, of, **(OPTIONS | options)) for i in range(of)]


# ------------------------------------------------------------------------------------------------------ shares


@pytest.mark.parametrize("windows", [False, True], ids=["pictures", "windows"])
@pytest.mark.parametrize("inside", [False, True], ids=["all", "inside"])
@pytest.mark.parametrize("of", [1, 2, 3, 5, 11, 30])
def test_merged_shares_are_the_table_of_one_run(of, windows, inside, tmp_path):
    """Also where a photograph's windows lie in two shares, and where shares are empty: 11 batches, 30 shares."""
    model, images = exact_model(), pictures(75, windows)
    whole = zfkit.mine(model, images, inside=inside, **OPTIONS)
    states = shares_of(model, images, tmp_path, of, inside=inside)
    assert [s.name for s in states] == [f"t.part.{i}of{of}" for i in range(of)]
    merged = TopK.merge(np.random.default_rng(of).permutation(states).tolist(), images)  # in any order
    assert_same(merged, whole)
    assert {n: getattr(merged, n) for n in ("k", "model", "images", "fingerprint", "inside", "weights")} == {
        n: getattr(whole, n) for n in ("k", "model", "images", "fingerprint", "inside", "weights")
    }
    merged.check(model, images)


def test_unreadable_pictures_at_the_end_of_shares_count_as_seen(tmp_path):
    whole = pictures(40, False)
    broken = {*range(5, 10), *range(17, 23), 39}

    def read(i):
        if i in broken:
            raise zfkit.errors.ImageError(f"picture {i}: broken")
        return whole._read(i)

    images = ImageSet(read, [f"picture {i}" for i in range(40)], size=16)
    model = exact_model()
    with pytest.warns(UserWarning, match="skipped picture"):
        states = shares_of(model, images, tmp_path, 4, batch_size=5)
        one = zfkit.mine(model, images, k=4, batch_size=5, progress=False)
    merged = TopK.merge(states, images)
    assert_same(merged, one)
    assert merged.count == 40 - len(broken)


def test_a_share_that_stopped_is_named_and_goes_on(tmp_path, monkeypatch):
    model, images = exact_model(), pictures(75, False)
    whole = zfkit.mine(model, images, **OPTIONS)
    first = shares_of(model, images, tmp_path, 2)[0]
    state_of(tmp_path / "t.part", 1, 2).unlink()
    original, looked = ImageSet.batches, []

    def batches(self, *args):
        for n, batch in enumerate(original(self, *args)):
            if n == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(ImageSet, "batches", batches)
    with pytest.raises(KeyboardInterrupt):
        mine_share(model, images, tmp_path / "t.part", 1, 2, checkpoint_every=14, **OPTIONS)
    states = [first, state_of(tmp_path / "t.part", 1, 2)]
    with pytest.raises(
        ZfkitError, match=r"t\.part\.1of2 is not finished: 14 of 40 pictures; run its share again"
    ):
        TopK.merge(states, images)
    monkeypatch.setattr(
        ImageSet,
        "batches",
        lambda self, *args: (looked.append(b.indices) or b for b in original(self, *args)),
    )
    mine_share(model, images, tmp_path / "t.part", 1, 2, checkpoint_every=14, **OPTIONS)
    assert int(looked[0][0]) == 35 + 14  # nothing twice
    assert_same(TopK.merge(states, images), whole)


def test_states_that_do_not_belong_together_are_refused(tmp_path):
    model, images = exact_model(), pictures(75, False)
    states = shares_of(model, images, tmp_path, 3)

    def refused(states, message, images=images):
        with pytest.raises(ZfkitError, match=message) as caught:
            TopK.merge(states, images)
        assert str(caught.value).isprintable()

    refused([], "there are no states to merge")
    refused(
        states[:2], r"pictures 49 to 74 are in no share of .*t\.part\.0of3.*name one state for each share"
    )
    refused(states[1:], r"pictures 0 to 20 are in no share")
    refused([states[0], states[2]], r"pictures 21 to 48 are in no share")
    refused([*states, states[1]], r"pictures 21 to 48 are in two shares")
    refused([*states[:2], tmp_path / "gone"], "there is no checkpoint .*gone.*mine that share")
    (tmp_path / "other").mkdir()
    other = shares_of(model, images, tmp_path / "other", 3, k=5)
    refused([*states[:2], other[2]], r"belong to different runs: k.* differ; mine them alike")
    with torch.no_grad():
        changed = exact_model()
        changed.net[0].weight[0] += 1
    (tmp_path / "changed").mkdir()
    refused(
        [*states[:2], shares_of(changed, images, tmp_path / "changed", 3)[2]],
        "different runs: weights differ",
    )
    refused(states, r"0of3 was mined from .*, not from .* as it is now: mine again", pictures(76, False))
    states[1].write_bytes(states[1].read_bytes()[:-9])
    refused(states, r"t\.part\.1of3 is no checkpoint of mine .*delete it to start again")


@pytest.mark.parametrize("share, of", [(-1, 2), (2, 2), (0, 0), (0, -1), (0.0, 2), (True, 2), ("0", 2)])
def test_shares_that_do_not_exist(share, of, tmp_path):
    with pytest.raises(ZfkitError, match=r"share must be 0 to .* - 1, and of a whole number from 1 on"):
        mine_share(exact_model(), pictures(9, False), tmp_path / "t", share, of)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(tmp_path):
    """Sixty small pictures in a folder."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(60):
        drawn = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((64, 64))
        drawn.save(tmp_path / "pictures" / f"{i:02d}.png")
    return tmp_path / "pictures"


def test_the_rehearsal_three_jobs_one_is_killed(folder, tmp_path, capsys):
    """Each share is a job of its own; SIGKILL ends one; its command again, then --merge: the same file."""

    def command(out, *more) -> list[str]:
        return [*mine_command(folder, tmp_path / out)[2:], "--checkpoint-every", "4", *more]

    assert main(command("one.parquet")) == 0
    victim = subprocess.Popen(
        [sys.executable, "-m", "zfkit", *command("shared.parquet", "--share", "1/3")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = state_of(tmp_path / "shared.parquet.part", 1, 3)
    while not state.exists() and victim.poll() is None:
        time.sleep(0.001)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL, "it was done before it could be killed"
    capsys.readouterr()
    for i in (2, 0):
        assert main(command("shared.parquet", "--share", f"{i}/3")) == 0
        told = capsys.readouterr().out
        assert f"share {i} of 3 is done" in told and "--merge 3" in told
    assert main(command("shared.parquet", "--merge", "3")) == 2
    assert "shared.parquet.part.1of3 is not finished" in capsys.readouterr().err
    assert not (tmp_path / "shared.parquet").exists()
    assert main(command("shared.parquet", "--share", "1/3")) == 0
    assert main(command("shared.parquet", "--merge", "3")) == 0
    assert (tmp_path / "shared.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.parquet", "pictures", "shared.parquet"]


@pytest.mark.parametrize("given, said", [
    (["--share", "3/3"], "'3/3' is no share such as 0/8"), (["--share", "1"], "'1' is no share"),
    (["--share", "-1/3"], "no share|expected one argument"),
    (["--merge", "0"], "--merge must be how many shares there are"),
    (["--merge", "2"], "there is no checkpoint .*t.parquet.part.0of2"),
    (["--share", "0/2", "--merge", "2"], "give one of them"),
    (["--checkpoint-every", "0"], "checkpoint_every must be a whole number from 1 on, not 0"),
    (["--out", "."], "--out names no file"),
])  # fmt: skip
def test_commands_that_make_no_sense(given, said, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(
            main(["mine", "--images", f"folder:{folder}", "--size", "64", "--limit", "2", "--layers", "conv1", "--out",
                  "t.parquet", *given])
        )  # fmt: skip
    assert stopped.value.code == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "t.parquet").exists()


# -------------------------------------------------------------------------------------------------- the estimate


class Clock:
    """Moves on by so many seconds for every picture that is decoded."""

    def __init__(self, each: float) -> None:
        self.now, self.each = 100.0, each

    def perf_counter(self) -> float:
        return self.now


def test_the_estimate_is_pictures_times_the_time_of_one(monkeypatch):
    """On a clock that moves by a quarter of a second with every picture that the network sees."""
    clock = Clock(0.25)
    monkeypatch.setattr(zfkit.topk, "time", clock)
    see = zfkit.topk._see

    def slow(plan, best, batch, portions):
        clock.now += (
            clock.each * len(batch.indices) * (1 if int(batch.indices[0]) else 40)
        )  # the first warms up
        return see(plan, best, batch, portions)

    monkeypatch.setattr(zfkit.topk, "_see", slow)
    model, images = exact_model(), pictures(1000, False)
    told = estimate_mining(model, images, k=4, batch_size=5)
    assert (told.pictures, told.maps) == (1000, 12)
    assert told.seconds == pytest.approx(1000 * 0.25) and told.timed_seconds == pytest.approx(
        told.timed * 0.25
    )
    assert told.timed % 5 == 0 and 5 <= told.timed <= 50  # whole batches, not more than a twentieth
    assert told.timed_seconds <= 2 + 5 * 0.25  # and not longer than 2 seconds and a batch
    assert estimate_mining(model, images, k=4, batch_size=5, processes=8).seconds == pytest.approx(250 / 8)
    few = estimate_mining(model, pictures(7, False), k=4, batch_size=5)  # nothing to warm up with
    assert few.timed == 5 and few.seconds == pytest.approx(7 * 0.25 * 40)


@pytest.mark.parametrize("k", [1, 9, 30])
def test_the_disk_is_maps_times_what_each_takes(k, tmp_path):
    """Value 4 bytes, image, row, column 8 each; three statistics, a channel; states have one place for both."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2000, 3), torch.nn.ReLU(), torch.nn.Conv2d(2000, 500, 1))
    model = zfkit.wrap_model(net, mean=0, scale=1, input_size=16, name="wide")
    images = pictures(40, False)
    told = estimate_mining(model, images, k=k)
    assert told.maps == 2500
    assert told.table_bytes == 2500 * (k * (4 + 8 + 8 + 8) + 3 * 4 + 8)
    assert told.state_bytes == 2500 * (k * (4 + 8 + 8) + 4 + 8 + 8)
    checkpoint = tmp_path / "t.part"
    table = zfkit.mine(model, images, k=k, checkpoint=checkpoint, progress=False).save(tmp_path / "t.parquet")
    assert checkpoint.stat().st_size == pytest.approx(told.state_bytes, abs=4000)  # a header
    assert table.stat().st_size <= told.table_bytes + 20_000  # Parquet packs what repeats


def test_the_command_says_it_before_it_starts_and_stops_there_if_asked(folder, tmp_path, capsys):
    given = [
        "mine",
        "--images",
        f"folder:{folder}",
        "--size",
        "64",
        "--layers",
        "conv1",
        "--out",
        str(tmp_path / "t.parquet"),
    ]
    assert main([*given, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("60 pictures, 96 feature maps: about ") and " pictures/s, timed on " in told
    assert (
        f"on disk up to {size_of(96 * (28 * 9 + 20))} for the table and {size_of(96 * 200)} for the state"
        in told
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pictures"]
    assert main(given) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("60 pictures, 96 feature maps") and told[1].startswith("TopK(")


def test_a_disk_too_full_is_known_before_anything_is_mined(folder, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=30_000))
    monkeypatch.setattr(zfkit.cli, "mine", lambda *_, **__: pytest.fail("it mined"))
    given = [
        "mine",
        "--images",
        f"folder:{folder}",
        "--size",
        "64",
        "--layers",
        "conv1",
        "--out",
        str(tmp_path / "t.parquet"),
    ]
    assert main(given) == 2
    assert "0 MB needed, 0 MB free" in capsys.readouterr().err


@pytest.mark.parametrize("seconds, told", [
    (0.01, "1 s"), (7.4, "7 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"), (7500, "2 h 05 min"),
    (2 * 86400, "2 d 0 h"), (100 * 3600, "4 d 4 h"),
])  # fmt: skip
def test_times_in_words(seconds, told):
    assert duration(seconds) == told


@pytest.mark.parametrize("count, told", [(1, "1 kB"), (26_112, "26 kB"), (3_400_000, "3.4 MB")])
def test_sizes_in_words(count, told):
    assert size_of(count) == told


def test_estimates_that_cannot_be_made():
    model, images = exact_model(), pictures(9, False)
    with pytest.raises(ZfkitError, match="processes must be a whole number from 1 on, not 0"):
        estimate_mining(model, images, processes=0)
    with pytest.raises(ZfkitError, match="no layer 'conv9'"):
        estimate_mining(model, images, "conv9")


# ------------------------------------------------------------------------------------------------------- memory


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

    real, gather = zfkit.images.imageset.to_tensor, ImageSet._gather

    def gathered(*args):
        batch = gather(*args)
        watch("batches", batch.pixels)
        return batch

    monkeypatch.setattr(zfkit.images.imageset, "to_tensor", lambda picture: watch("pictures", real(picture)))
    monkeypatch.setattr(ImageSet, "_gather", gathered)
    for count in (500, 3000):
        images = ImageSet(
            lambda i: (Image.new("RGB", (16, 16), (i % 256, 0, 0)), -1),
            [str(i) for i in range(count)],
            size=16,
        )
        zfkit.mine(
            exact_model(), images, k=2, batch_size=20, checkpoint=tmp_path / f"{count}.part", progress=False
        )
        assert 20 <= most["pictures"] <= 4 * 20 and 1 <= most["batches"] <= 2
    sizes = [(tmp_path / f"{count}.part").stat().st_size for count in (500, 3000)]
    assert abs(sizes[0] - sizes[1]) < 64  # nor does the state grow


# ------------------------------------------------------------------------------------------ where a table is from


def parquet(path: Path, seed: int) -> ImageSet:
    """Ten pictures in a file: the same names whatever the seed."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(10):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(stream, "PNG")
        rows.append({"bytes": stream.getvalue(), "path": None})
    pq.write_table(pa.table({"image": rows}), path)
    return load_images(f"parquet:{path}", size=16, progress=False)


def test_a_table_of_other_pictures_under_the_same_names_is_refused(tmp_path):
    """val.parquet of two data sets, with as many rows; and a file that was replaced."""
    model = exact_model()
    images = parquet(tmp_path / "val.parquet", 1)
    top = zfkit.mine(model, images, k=3, progress=False)
    top.check(model, load_images(f"parquet:{tmp_path / 'val.parquet'}", size=16, progress=False))
    others = parquet(tmp_path / "val.parquet", 2)
    assert [images.name(i) for i in range(10)] == [others.name(i) for i in range(10)]
    with pytest.raises(
        ZfkitError, match=r"mined from 'parquet:.*val\.parquet' \(10 pictures\), not from .*mine again"
    ):
        zfkit.project_top(model, others, top, "0")


def test_a_table_of_replaced_files_is_refused(tmp_path):
    model, rng = exact_model(), np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    images = load_images(f"folder:{tmp_path}", size=16, progress=False)
    top = zfkit.mine(model, images, k=2, progress=False)
    Image.new("RGB", (16, 16)).save(tmp_path / "3.png")
    with pytest.raises(ZfkitError, match="as it is now: mine again"):
        top.check(model, load_images(f"folder:{tmp_path}", size=16, progress=False))


def test_a_copy_of_the_pictures_elsewhere_is_the_same_set(tmp_path):
    """The shares of one run may read from disks of their own."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        parquet(tmp_path / name / "val.parquet", 1)
    prints = {
        load_images(f"parquet:{tmp_path / n}", size=16, progress=False).fingerprint()
        for n in ("here", "there")
    }
    assert len(prints) == 1


@pytest.mark.parametrize("what, change, message", [
    ("pictures", {"fingerprint": "0" * 16}, r"mined from .* \(9 pictures\), not from .*: mine again"),
    ("weights", {"weights": "0" * 16}, "the weights of 'exact' have changed since this table was mined: mine again"),
    ("network", {"model": "another"}, "mined with 'another', not with 'exact': mine again"),
])  # fmt: skip
def test_a_saved_table_is_refused_wherever_it_is_used(what, change, message, tmp_path):
    """Model hash and fingerprint of the data travel in the file."""
    pytest.importorskip("ipywidgets")
    model, images = exact_model(), pictures(9, False)
    top = zfkit.mine(model, images, k=2, progress=False)
    file = dataclasses.replace(top, **change).save(tmp_path / "t.parquet")
    loaded = TopK.load(file)
    for use in (
        lambda: loaded.check(model, images),
        lambda: zfkit.project_top(model, images, loaded, "0"),
        lambda: zfkit.write_atlas(model, images, tmp_path / "atlas", top=loaded, progress=False),
        lambda: zfkit.explore(model, images, loaded),
    ):
        with pytest.raises(ZfkitError, match=message):
            use()


def test_a_table_of_another_version_is_refused(tmp_path, monkeypatch):
    file = zfkit.mine(exact_model(), pictures(9, False), k=2, progress=False).save(tmp_path / "t.parquet")
    monkeypatch.setattr(zfkit.topk, "FORMAT", zfkit.topk.FORMAT + 1)
    with pytest.raises(
        ZfkitError, match=r"t\.parquet is not a table that this version of TopK\.save wrote .*mine again"
    ):
        TopK.load(file)
