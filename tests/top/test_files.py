"""Files that are there whole, and as they were written: checksums, locks, and what a power cut leaves."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from coloured import QUICK, tensors_of, train
from mining import exact_model, pictures
from safetensors import safe_open
from safetensors.torch import save_file

import zfkit
from zfkit import TopK, ZfkitError
from zfkit.checksums import CHECKSUM, digest, sealed
from zfkit.errors import TrainingError
from zfkit.files import write_whole

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks and rights of Unix")

# ------------------------------------------------------------------------------------------------------- writing


def test_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    calls, file = [], tmp_path / "file.txt"
    fsync, replace = os.fsync, Path.replace

    def synced(handle):
        fsync(handle)
        where = Path(f"/proc/self/fd/{handle}").readlink()
        calls.append(("fsync", "folder" if where == tmp_path else where.read_text()))

    if not Path("/proc/self/fd").exists():
        pytest.skip("names of open files, which Linux tells")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", lambda a, b: calls.append(("rename", b.name)) or replace(a, b))
    write_whole(file, lambda part: part.write_text("all of it"))
    assert calls == [("fsync", "all of it"), ("rename", "file.txt"), ("fsync", "folder")]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_rights_are_those_of_any_new_file_and_the_umask_is_left_alone(umask, tmp_path, monkeypatch):
    """While another thread's files would get other rights, were it changed for a moment."""
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "umask", lambda mask: pytest.fail("the umask is every thread's"))
            write_whole(tmp_path / "a", lambda part: part.write_text("a"))
        (tmp_path / "b").write_text("b")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


ENTER = """
    import os, sys, time
    from zfkit.files import only_writer
    from pathlib import Path
    lock, log, until = Path(sys.argv[1]), sys.argv[2], time.monotonic() + float(sys.argv[3])
    print("ready", flush=True)
    sys.stdin.readline()
    with open(log, "a", buffering=1) as entries:
        while time.monotonic() < until:
            try:
                with only_writer(lock, RuntimeError("held")):
                    start = time.monotonic_ns()
                    time.sleep(0.0002)
                    entries.write(f"{start} {time.monotonic_ns()}\\n")
            except RuntimeError:
                time.sleep(0.0001)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [8])
def test_entries_of_four_processes_never_overlap(seconds, tmp_path):
    log = tmp_path / "entries"
    command = [sys.executable, "-c", textwrap.dedent(ENTER), tmp_path / ".lock", log, str(seconds + 60)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    with contextlib.suppress(subprocess.TimeoutExpired):
        processes[0].wait(timeout=seconds)
    for process in processes:
        process.kill()
        process.communicate()
    entries = sorted(tuple(map(int, s.split())) for s in log.read_text().splitlines() if s.count(" "))
    assert len(entries) > 100
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(entries))
    assert (tmp_path / ".lock").exists()


def test_the_lock_of_a_checkpoint_stays_the_same_file(tmp_path):
    """One who waits for a lock that is removed gets one that nobody else sees."""
    model, images, part = exact_model(), pictures(9), tmp_path / "t.part"
    inodes = set()
    for _ in range(2):
        zfkit.mine(model, images, checkpoint=part, progress=False)
        inodes.add((tmp_path / ".t.part.lock").stat().st_ino)
        part.unlink()
    assert len(inodes) == 1
    with (tmp_path / ".t.part.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ZfkitError, match="another process is mining"):
            zfkit.mine(model, images, checkpoint=part, progress=False)


# ------------------------------------------------------------------------------------------------------ checksums


def test_digests_tell_apart_what_may_be_confused():
    """Also long tensors, of which the sums of words are hashed, with changes that cancel in one sum."""
    long = torch.zeros(40_000, dtype=torch.int64)
    two = long.clone()
    two[[3, 5]] = torch.iinfo(torch.int64).min  # the highest bits of two words of one row
    parts = [
        ["ab", "c"], ["a", "bc"], [b"ab", "c"], [torch.zeros(2)], [torch.zeros(2).double()], [torch.zeros(1, 2)],
        [torch.zeros(2, dtype=torch.int32)], [long], [two], [two.roll(1)], [two.roll(4096)], [long[:-1]],
        [torch.cat([long[:-1], torch.ones(1, dtype=torch.int64)])],
    ]  # fmt: skip
    assert len({digest(part) for part in parts}) == len(parts)
    assert digest([two]) == digest([two.clone()])


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def flips(file: Path, count: int, random_seed: int = 0):
    """Write the file with one bit changed, at `count` places; the file is put back in the end."""
    content, rng = file.read_bytes(), random.Random(random_seed)
    for _ in range(count):
        file.write_bytes(flip(content, rng.randrange(8 * len(content))))
        yield
    file.write_bytes(content)


FLIPS = int(os.environ.get("ZFKIT_FLIPS", "60"))  # for each kind of file


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(folder, QUICK)
    return folder


def test_no_flipped_bit_of_a_training_state_resumes_to_other_weights(trained, tmp_path):
    """It is found, and the state before it taken, or it changed nothing that is read."""
    run = zfkit.Run(shutil.copytree(trained, tmp_path / "run"))
    state, previous = run.folder / "state.safetensors", run.folder / "state.previous.safetensors"
    whole, before = tensors_of(run), None
    kept = state.read_bytes()
    state.write_bytes(previous.read_bytes())
    before, at = tensors_of(run), run.resume()[0]
    state.write_bytes(kept)
    found = Counter()
    for _ in flips(state, FLIPS):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            now, tensors, _ = run.resume()
        fell_back = now.epoch == at.epoch
        found[fell_back] += 1
        assert fell_back == any(f"going on from {previous.name}" in str(w.message) for w in said)
        expected = before if fell_back else whole
        assert tensors.keys() == expected.keys() and all(
            torch.equal(tensors[k], expected[k]) for k in expected
        )
    assert found[True] > 0.9 * FLIPS
    previous.unlink()
    for _ in flips(state, FLIPS, random_seed=1):
        try:
            tensors = tensors_of(run)
        except TrainingError as error:
            assert "state.safetensors" in str(error) and str(error).isprintable()
        else:
            assert all(torch.equal(tensors[k], whole[k]) for k in whole)


def read_history(folder):
    return zfkit.Run(folder).history.to_dict("list")


def read_weights(folder):
    return zfkit.load_model(folder / "model.safetensors", device="cpu").net.state_dict()


def read_table(folder):
    return TopK.load(folder / "top.parquet")["0"].value.tolist()


def read_mining(folder):
    top = zfkit.mine(exact_model(), pictures(9), checkpoint=folder / "t.part", progress=False)
    return top["0"].value.tolist()


@pytest.mark.parametrize("name, read", [
    ("history.parquet", read_history), ("model.safetensors", read_weights), ("top.parquet", read_table),
    ("t.part", read_mining),
])  # fmt: skip
def test_no_flipped_bit_is_read_as_if_it_were_right(name, read, trained, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    top = zfkit.mine(exact_model(), pictures(9), checkpoint=folder / "t.part", progress=False)
    top.save(folder / "top.parquet")
    whole, found = read(folder), 0
    for _ in flips(folder / name, FLIPS):
        try:
            now = read(folder)
        except ZfkitError as error:
            assert name in str(error) and str(error).isprintable()
            found += 1
        else:
            same = now.items() if isinstance(now, dict) else ()
            assert all(
                torch.equal(v, whole[k]) if isinstance(v, torch.Tensor) else v == whole[k] for k, v in same
            )
            assert isinstance(now, dict) or now == whole
    assert found > 0.5 * FLIPS


# ------------------------------------------------------------------------------------------------- edited states


def edited(where, value):
    """Another value, or none, at a place in what a state says."""

    def edit(head, tensors):
        *path, last = where
        place = head
        for key in path:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value

    return edit


def tensor(name, change):
    def edit(head, tensors):
        tensors[name] = change(tensors[name])
        if tensors[name] is None:
            del tensors[name]

    return edit


FIRST = ("state", "history", 0)
WEIGHT, MOMENTUM = "weight/conv1.weight", "momentum/conv1.weight"
EDITS = [
    *(edited(("state", name), value) for name in ("epoch", "step") for value in (None, -1, "3", 1.5, True, [])),
    *(edited(("state", name), value) for name in ("loss_sum", "seconds") for value in (None, "3", [], {})),
    edited(("state", "epoch"), 10**12), edited(("state", "step"), 10**12), edited(("state", "step"), 6),
    edited(("state", "more"), 3), edited(("state",), None), edited(("state",), []), edited(("state",), 3),
    *(edited(("state", "history"), value) for value in (None, [], {}, "x", 3, [1, 2, 3], [{}, {}, {}])),
    *(edited((*FIRST, "loss"), value) for value in (None, "x", [])), edited(FIRST, []),
    *(edited(("state", "plateau"), value) for value in (None, {}, [], 3, "x")),
    *(edited(("state", "plateau", "_last_lr"), value) for value in (None, [], [1.0], ["x", "y"], 0.1)),
    edited(("state", "plateau", "best"), "x"), edited(("state", "plateau", "more"), 1),
    *(edited(("plan",), value) for value in (None, [], 3, {"recipe": 3}, {})),
    edited(("plan", "recipe", "lr"), 0.5), edited(("plan", "data", "kept"), "streamed"),
    *(tensor(name, lambda t: None) for name in (WEIGHT, MOMENTUM)),
    *(tensor(name, lambda t: t[:1].clone()) for name in (WEIGHT, MOMENTUM)),
    *(tensor(name, lambda t: t.double()) for name in (WEIGHT, MOMENTUM)),
    lambda head, tensors: tensors.update(more=torch.zeros(2)), lambda head, tensors: tensors.clear(),
]  # fmt: skip


def test_edited_states_are_refused_in_a_sentence(trained, tmp_path):
    """With a checksum that fits: what is left is that their parts are as a training keeps them."""
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    (folder / "state.previous.safetensors").unlink()
    state = folder / "state.safetensors"
    with safe_open(state, "pt") as file:
        metadata = {k: v for k, v in file.metadata().items() if k != CHECKSUM}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    (key,) = metadata
    for i, edit in enumerate(EDITS):
        head, changed = json.loads(metadata[key]), dict(tensors)
        edit(head, changed)
        save_file(changed, state, sealed(changed, {key: json.dumps(head)}))
        with pytest.raises(TrainingError) as caught:
            train(folder, QUICK)
            pytest.fail(f"edit {i} was not noticed")
        assert str(folder) in str(caught.value) and str(caught.value).isprintable(), i
        assert "Traceback" not in str(caught.value) and len(str(caught.value)) < 500
    assert len(EDITS) > 46
