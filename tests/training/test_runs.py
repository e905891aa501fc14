"""What a run leaves, and how it goes on after it was stopped, damaged or killed."""

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from coloured import QUICK, coloured, identical, tensors_of, train, train_longer
from PIL import Image
from tiny import TINY, image_set

import zfkit
from zfkit.errors import TrainingError, WriteError
from zfkit.files import private_prefix
from zfkit.images.parquet import RowNames, parquet
from zfkit.training import TrainingPlan


def test_a_run_leaves_snapshots_history_and_provenance(tmp_path):
    run = train(tmp_path / "run", replace(QUICK, lr=0.02))
    assert list(run.snapshots) == [0, 1, 3]  # those asked for, and the last
    assert run.history.epoch.tolist() == [1, 2, 3]
    trained = zfkit.load_model(tmp_path / "run" / "model.safetensors")
    assert trained.classes == ("red", "green", "blue") and trained.provenance["epochs"] == 3
    assert trained.provenance["top1"] == round(run.history.top1.iloc[-1], 1)
    assert trained.provenance["recipe"]["lr"] == 0.02 and len(trained.provenance["history"]) == 3
    # the same numbers out of the file as at the end of training, but for half precision
    accuracy = zfkit.evaluate(trained, coloured(24, random_seed=1))
    assert accuracy.loss == pytest.approx(run.history.val_loss.iloc[-1], rel=0.02)
    start = run.model(epoch=0)
    assert start.provenance["epoch"] == 0 and start.provenance["top1"] is None
    with pytest.raises(TrainingError, match=r"epoch 2 was not kept; there are: 0, 1, 3"):
        run.model(epoch=2)


def test_the_same_command_goes_on_to_the_same_weights(tmp_path):
    recipe = replace(QUICK, epochs=4, dropout=0.5)
    whole = train(tmp_path / "whole", recipe)
    train(tmp_path / "parts", replace(recipe, epochs=2))
    parts = train(tmp_path / "parts", recipe)
    assert identical(whole, parts)
    columns = ["epoch", "lr", "loss", "val_loss", "top1", "top5", "dominance"]
    assert whole.history[columns].equals(parts.history[columns])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(number, tmp_path):
    recipe = replace(QUICK, dropout=0.5)

    def interrupt(watched):
        if watched.epoch == 1:
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt, match=r"in epoch 2, after 1 of 5 steps.*goes on from there"):
        train(tmp_path / "run", recipe, watch=interrupt)
    epochs = []
    run = train(tmp_path / "run", recipe, watch=lambda watched: epochs.append(watched.epoch))
    assert epochs == [1, 2, 3]  # it did not begin again
    assert identical(run, train(tmp_path / "undisturbed", recipe))


def test_a_damaged_state_falls_back_to_the_one_before(tmp_path):
    recipe = replace(QUICK, epochs=4)
    whole = train(tmp_path / "whole", recipe)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    state = tmp_path / "run" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:200])
    assert identical(train(tmp_path / "run", recipe), whole)
    for name in ("state.safetensors", "state.previous.safetensors"):
        (tmp_path / "run" / name).write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"no state in .* can be read"):
        train(tmp_path / "run", recipe)


def test_another_run_is_not_overwritten(tmp_path):
    folder, pictures = tmp_path / "run", coloured(40)
    train(folder)
    relabelled = pictures.with_labels(pictures.classes, [1, 0, 2])
    for options, message in [
        ({"recipe": replace(QUICK, lr=0.5)}, "lr was 0.01 and is now 0.5"),
        ({"recipe": replace(QUICK, epochs=2)}, "at epoch 3 already, beyond the 2"),
        ({"architecture": replace(TINY, hidden=9)}, "hidden was 8 and is now 9"),
        ({"data": (coloured(41), coloured(24, random_seed=1))}, "fingerprint was"),
        ({"data": (coloured(40, random_seed=2), coloured(24, random_seed=1))}, "fingerprint was"),
        ({"data": (relabelled, coloured(24, random_seed=1))}, "labels was"),
        ({"workers": 0}, "kept was 'resident' and is now 'streamed'"),
    ]:
        with pytest.raises(TrainingError, match=message):
            train(folder, **options)


# ----------------------------------------------------------------------------------------------- processes

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def script(save_every=2):
    """A process that trains into its first argument, and pauses for its second after each epoch, in seconds."""
    return f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch
torch.set_num_threads(1)
from coloured import train_longer
train_longer(sys.argv[1], save_every={save_every},
             watch=lambda w: (print("epoch", w.epoch, flush=True), time.sleep(float(sys.argv[2]))))
"""


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_weights(tmp_path):
    """And while it lives, a second process is kept out of its folder."""
    folder = tmp_path / "run"
    random.seed(0)
    for pause in (3, 0.05):
        command = [sys.executable, "-c", script(), str(folder), str(pause)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ONE_THREAD)
        while "epoch" not in process.stdout.readline():
            pass
        if pause > 1:
            its_prefix = private_prefix().replace(f"-{os.getpid()}-", f"-{process.pid}-")
            half_written = folder / f"{its_prefix}a1b2c3d4.safetensors"  # what it may be writing just now
            half_written.touch()
            with pytest.raises(TrainingError, match="another process is training into"):
                train_longer(folder, save_every=2)
            assert half_written.exists()
        time.sleep(random.uniform(0, 0.25))  # in the middle of whatever it does
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert identical(train_longer(folder, save_every=2), train_longer(tmp_path / "undisturbed"))
    assert not list(folder.glob("**/.zfkit-*"))  # nothing half written is left


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    """Same global batch, same chances, dropout on: the weights differ by rounding only. Each leaves the group."""
    # What is registered first is called last. Each says it in one write: the two share an output.
    last = "import atexit, torch.distributed as d; atexit.register(lambda: print(f'left {not d.is_initialized()}'))"
    (tmp_path / "job.py").write_text(last + script(save_every=None))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    command = [*launch, str(tmp_path / "job.py"), str(tmp_path / "two"), "0"]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("left True") == 2
    one, two = train_longer(tmp_path / "one"), zfkit.Run(tmp_path / "two")
    a, b = tensors_of(one), tensors_of(two)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(one.history.loss, two.history.loss, rtol=1e-4)
    np.testing.assert_allclose(one.history.val_loss, two.history.val_loss, rtol=1e-3)


# ------------------------------------------------------------------------------------------------- streaming


def write_shards(folder, count, files, rows):
    """Parquet shards as Hugging Face writes ImageNet: encoded pictures, labels, row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = coloured(count, 40)
    for f in range(files):
        encoded, labels = [], []
        for i in range(f * count // files, (f + 1) * count // files):
            buffer = io.BytesIO()
            Image.fromarray(images[i][0].permute(1, 2, 0).numpy()).save(buffer, "PNG")
            encoded.append({"bytes": buffer.getvalue(), "path": f"{i}.png"})
            labels.append(images[i][1])
        table = pa.table({"image": encoded, "label": labels})
        pq.write_table(table, folder / f"train-{f:05d}.parquet", row_group_size=rows)
    return str(folder / "train-*.parquet")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_shards_stream_to_the_weights_of_the_same_pictures_in_memory(workers, tmp_path):
    glob = write_shards(tmp_path, 48, 3, 4)
    images, streamed = zfkit.load_images(f"parquet:{glob}", size=40, progress=False), parquet(glob, 40)
    assert streamed.labels is None and streamed.known_labels().tolist() == [i % 3 for i in range(48)]
    val = coloured(24, 40, random_seed=1)
    val.classes = ()
    recipe = replace(QUICK, epochs=2)
    in_blocks = train(tmp_path / "blocks", recipe, (streamed, val), workers=workers)
    memory = train(tmp_path / "memory", recipe, (images, val))
    assert images.labels is not None and not identical(in_blocks, memory)  # another order: blocks
    assert TrainingPlan.make(TINY, streamed, val, recipe).blocks.tolist() == list(range(0, 48, 4))
    streamed.blocks = None
    assert identical(train(tmp_path / "unordered", recipe, (streamed, val), workers=workers), memory)


def test_names_of_a_million_rows_take_no_room():
    names = RowNames([f"train-{f:05d}.parquet" for f in range(300)], [4271] * 300)
    assert len(names) == 1_281_300
    assert names[0] == "train-00000.parquet row 0" and names[4271] == "train-00001.parquet row 0"
    assert names[-1] == "train-00299.parquet row 4270"
    assert len(names[:5000]) == 5000 and names[:5000][4999] == names[4999]
    assert names._ends.nbytes < 3000  # eight bytes a file


# -------------------------------------------------------------------------------------------- bad input


def labelled(labels, classes=(), size=32):
    """Eight pictures with these labels in turn."""
    labels = [labels[i % len(labels)] for i in range(8)]
    return image_set(np.zeros((8, size, size, 3), np.uint8), labels, classes, source="mine")


@pytest.mark.parametrize(("train_set", "val_set", "message"), [
    (labelled([-1]), labelled([0, 1]), "8 of 8 training pictures of 'mine' have no label"),
    (labelled([0, 1]), labelled([0, -1]), "4 of 8 validation pictures"),
    (labelled([0, 2], ("a", "b", "c")), labelled([0]), r"1 of 3 classes have no training picture \(b\)"),
    (labelled([0, 3], ("a", "b")), labelled([0]), "a training label is 3, and classes go from 0 to 1"),
    (labelled([0, 1]), labelled([5]), "a validation label is 5"),
    (labelled([0]), labelled([0]), "one class only"),
    (labelled([0, 1], size=16), labelled([0, 1], size=16), "the training pictures are 16 px: .*size=32"),
    (labelled([0, 1], size=40), labelled([0, 1]), "the validation pictures are 32 px: load both sets alike"),
    (labelled([0, 1], ("a", "b")), labelled([0, 1], ("b", "a")), "the same classes, in the same order"),
])  # fmt: skip
def test_data_that_cannot_be_trained_on_are_refused_at_once(train_set, val_set, message, tmp_path):
    with pytest.raises(TrainingError, match=message):
        train(tmp_path / "run", data=(train_set, val_set))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot write"):
        train(tmp_path / "file" / "run")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(WriteError, match=r"MB needed, 0 MB free"):
        train(tmp_path / "run")


def test_names_that_do_not_exist():
    for options, message in [
        ({"architecture": "zfnet46"}, r"there is no architecture 'zfnet46'\. Did you mean 'zfnet64'"),
        ({"device": "tpu9"}, "there is no device 'tpu9'"),
        ({"save_every": -1}, "save_every, in steps, must be a whole number from 1 on, not -1"),
    ]:
        with pytest.raises(TrainingError, match=message):
            train(**options)


@pytest.mark.slow
def test_the_command_trains_and_says_where_things_are(tmp_path, capsys):
    from zfkit.cli import main

    out = tmp_path / "r"
    command = "train --images textures --limit 64 --epochs 1 --batch-size 32 --device cpu --seed 3"
    small = ["--widths", "2", "3", "3", "3", "2", "--hidden", "4", "--out", str(out)]
    code = main([*command.split(), *small])
    printed = capsys.readouterr().out
    assert code == 0 and "top-1 / top-5" in printed and "mean of ten crops" in printed
    model = zfkit.load_model(out / "model.safetensors")
    assert model.net.conv1.weight.shape == (2, 3, 7, 7) and len(model.classes) == 16
    assert model.provenance["recipe"]["random_seed"] == 3
    assert main(["train", "--images", f"folder:{tmp_path}", "--device", "cpu"]) == 2
    assert "--val" in capsys.readouterr().err
