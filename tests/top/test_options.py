"""Every option of every command with odd values: it does its work or is refused in a sentence, and never ends raw."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import warnings

import nbformat
import numpy as np
import pytest
import torch
from nbformat import v4
from PIL import Image
from tiny import TINY

import zfkit
from zfkit.cli import _parser, main
from zfkit.nets.paper import build
from zfkit.nets.zoo import describe

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="alarms of Unix")
LINES = 200
SECONDS = 60  # that a line may take; most take less than one

BASE = {
    "mine": "--model w.safetensors --images folder:pictures --size 32",
    "atlas": "--model w.safetensors --images folder:pictures --size 32 --maps 1 -k 1",
    "site": "--model w.safetensors --images folder:pictures --size 32 --maps 1 -k 1",
    "train": "--images folder:pictures --val folder:pictures --size 64 --widths 2 2 2 2 2 --hidden 4 --epochs 1",
    "sweep": "n.ipynb --grid g.yaml --dry-run",
}
ODD = [
    *(
        "99999999999999999999 99999999999999999999999 -1 0 1 2 0.5 -0.5 1e400 nan inf -inf 1e-300 16-true bf16-true "
        "64-true x none None all é 0x10 1_000 10000 1000000 /dev/null /dev/zero ~nobody-at-all/x ~ . .. / pipe "
        "pictures w.safetensors g.yaml cpu cuda cuda:99 meta cuda:x mps torchvision: timm: photos:x folder: "
        "textures:seed=99999999999999999999 textures:seed=-1 parquet:pipe parquet:/dev/zero folder:/dev/null conv1 "
        "torchvision:lsun conv9 guided tcp://127.0.0.1:1 torchvision:FakeData w.safetensors:x n.ipynb:f"
    ).split(),
    "", " ", "\x1b[31m", "a\nb", "x" * 300, "\udcff", "a\0b",
]  # fmt: skip
SLOW = {"--compile", "--notebook", "--scheduler", "--version", "--help", "-h"}  # minutes, or another process
# What is asked for is done, however long that takes.
WORK = {"--size": 500, "--epochs": 3, "--timeout": 10**9, "--max-runs": 10**9}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a tiny network, a few pictures, a notebook and a grid."""
    torch.manual_seed(0)
    zfkit.save_weights(tmp_path / "w.safetensors", build(TINY).state_dict(), {"architecture": describe(TINY)})
    for i in range(8):
        (tmp_path / "pictures" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png")
    cell = v4.new_code_cell("x = 1  # 0, 1, ...", metadata={"tags": ["parameters"]})
    nbformat.write(v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    (tmp_path / "g.yaml").write_text("x: [1, 2]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def commands():
    """command -> its options, as argparse knows them."""
    (chosen,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {
        name: [a for a in parser._actions if a.option_strings and not SLOW & set(a.option_strings)]
        for name, parser in chosen.choices.items()
    }


def drawn(rng, name, options):
    """A command line with one to three options more, most of them with odd values."""
    line = [name, *BASE.get(name, "").split()]
    for option in rng.sample(options, min(len(options), rng.randrange(1, 4))):
        flag = option.option_strings[-1]
        if option.nargs == 0:
            line.append(flag)
            continue
        count = option.nargs if isinstance(option.nargs, int) else rng.choice((1, 1, 1, 2))
        values = [rng.choice(ODD) for _ in range(count)]
        if flag in WORK and values[0].isdecimal() and int(values[0]) > WORK[flag]:
            continue
        line += [f"{flag}={values[0]}"] if count == 1 else [flag, *values]
    return line


def too_long(*_):
    raise AssertionError(f"not done after {SECONDS} s")


def outcome(line, capsys):
    """The exit code; raises for anything that is not an end in a sentence."""
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(line)
    except SystemExit as stopped:
        code = stopped.code
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    said = capsys.readouterr().err
    assert code in (0, 1, 2) and "Traceback" not in said
    if code:
        last = said.strip().splitlines()[-1]
        assert last.startswith("zfkit") and "Error" not in last.split(":")[1], last
    return code


KNOWN = (  # that once ended raw, hung or were taken without a word
    "mine -k 99999999999999999999", "atlas --seed 99999999999999999999999", "atlas --seed -1", "train --workers -1",
    "train --precision 16-true", "train --save-every -1", "train --save-every 0",
    "sweep --timeout nan", "sweep --grid pipe", "sweep --grid /dev/zero", "mine --out pipe",
    "mine --out /dev/null", "mine --classes pipe", "train --out /dev/null", "train --seed 99999999999999999999",
)  # fmt: skip


@pytest.mark.parametrize("line", KNOWN)
def test_what_once_ended_raw_is_refused(line, place, capsys):
    name, *more = line.split()
    base = BASE[name].replace("--dry-run", "")
    assert outcome([name, *base.split(), *more], capsys) == 2


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_two_hundred_lines_of_odd_options(part, place, capsys):
    rng, seen = random.Random(part), {0: 0, 1: 0, 2: 0}
    known = {name: options for name, options in commands().items() if name in BASE}
    for _ in range(LINES // 8):
        name = rng.choice(list(known))
        line = drawn(rng, name, known[name])
        try:
            seen[outcome(line, capsys)] += 1
        except BaseException as error:
            raise AssertionError(f"{line!r:.2000} ended with {type(error).__name__}: {error}") from error
    assert seen[2] > LINES / 80


def test_every_option_is_among_those_that_are_tried():
    known = commands()
    assert set(BASE) - {"site"} <= set(known)
    assert sum(map(len, known.values())) > 60
