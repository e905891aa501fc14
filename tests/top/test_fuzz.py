"""Inputs at random: a picture, table, file of weights, command line ... is used, or refused with a ZfkitError.

Never another exception, never a wrong shape, never a wait without end. What is thrown is made in fuzzing.py;
benchmarks/fuzz.py throws many more and says how many.
"""

from __future__ import annotations

import random
import signal
import sys

import pytest
from fuzzing import BORDERS, TARGETS, mended, mutated
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zfkit import ZfkitError
from zfkit.batching import out_of_memory
from zfkit.errors import printable

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="alarms of Unix")
SECONDS = 30  # that one input may take


def too_long(*_):
    raise AssertionError(f"not done after {SECONDS} s")


@pytest.mark.parametrize("name", TARGETS)
def test_it_is_used_or_refused(name, tmp_path, monkeypatch):
    target = TARGETS[name](tmp_path)
    seen = {"ok": 0, "refused": 0}

    @given(st.randoms(use_true_random=False, note_method_calls=False))
    def throw(rng):
        drawn = target.draw(rng)
        before = signal.signal(signal.SIGALRM, too_long)
        signal.alarm(SECONDS)
        try:
            seen[target.outcome(drawn)] += 1
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    throw()
    assert seen["refused"] > sum(seen.values()) / 20  # so that something was tried


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_not_changed_is_used(name, tmp_path):
    """Otherwise a target that refuses everything would look well."""
    target = TARGETS[name](tmp_path)
    good = {
        "images": lambda: list(target.samples.values()),
        "parquet": lambda: target.samples,
        "checkpoints": lambda: [target.sample],
        "onnx": lambda: [target.sample],
        "tables": lambda: [(f.name, c) for f, c in target.samples.items()],
        "specs": lambda: [{"source": s, "size": 8, "limit": 1} for s in ("photos", "folder:pictures")],
        "cli": lambda: [
            "mine --model w.safetensors --images folder:pictures --size 32 --out t.parquet".split(),
            "sweep n.ipynb --grid g.yaml --dry-run".split(),
        ],
        "grids": lambda: [target.SAMPLES[0].encode(), target.SAMPLES[1].encode().replace(b", name: a", b"")],
    }[name]()
    assert [target.outcome(g) for g in good] == ["ok"] * len(good)


def test_a_fault_is_found(tmp_path, monkeypatch):
    """The net is tight: errors of another kind, wrong shapes and silence do not pass."""
    import fuzzing

    target = TARGETS["images"](tmp_path)
    (sample,) = [target.samples["PNG"]]
    for wrong, error in (
        (lambda *_: 1 / 0, ZeroDivisionError), (lambda *_: Image.new("L", (3, 3)), AssertionError),
    ):  # fmt: skip
        monkeypatch.setattr(fuzzing, "decode", wrong)
        with pytest.raises(error):
            target.outcome(sample)

    def silent(*_):
        raise ZfkitError(" ")

    monkeypatch.setattr(fuzzing, "decode", silent)
    with pytest.raises(AssertionError, match="says nothing"):
        target.outcome(sample)


def test_changes_change_something_and_sums_are_mended(tmp_path):
    target = TARGETS["images"](tmp_path)
    png = target.samples["PNG"]
    assert mended(png) == png
    changed = [mutated(random.Random(i), png) for i in range(200)]
    assert sum(c != png for c in changed) > 180 and len({len(c) for c in changed}) > 20
    wrong = png[:16] + b"\0\0\0\7" + png[20:]  # another width, with the old sum
    assert target.outcome(wrong) == "refused" and mended(wrong) != wrong
    assert 0 in BORDERS and 2**32 - 1 in BORDERS


@pytest.mark.parametrize("text, shown", [
    ("plain ünïcode \U0001f600", "plain ünïcode \U0001f600"), ("a\nb\tc", r"a\nb\tc"), ("\x1b[31m", r"\x1b[31m"),
    ("\udcff", r"\udcff"), ("‮gnp.exe", r"\u202egnp.exe"), ("", ""),
])  # fmt: skip
def test_text_for_terminals_and_pages_stays_on_its_line(text, shown):
    assert printable(text) == shown and shown.isprintable()
    shown.encode()


@pytest.mark.parametrize("error, so", [
    (MemoryError(), True), (RuntimeError("MPS backend out of memory (MPS allocated: 3 GB)"), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
    (RuntimeError("[...] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False), (ValueError("k"), False),
])  # fmt: skip
def test_memory_that_ran_out_is_recognised(error, so):
    assert out_of_memory(error) is so
