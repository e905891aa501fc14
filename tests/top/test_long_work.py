"""Long work says how long it will take, and what was done before it was stopped is kept."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path

import pytest
from mining import assert_same, exact_model, pictures

import zfkit
from zfkit import batching
from zfkit.atlas import page
from zfkit.batching import steps
from zfkit.topk import MiningPlan


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(batching.time, "monotonic", clock)
    return clock


def test_what_takes_over_two_minutes_says_so_once_and_how_to_shorten_it(clock, capsys):
    with steps(3100, "shifting", shorter="fewer shifts take less", begun=100) as done:
        clock.now += 99
        done(0)  # it prepares, which is no part of what is estimated
        for seconds in (30, 1.5, 1.5, 1.5, 1.5):  # the first compiles
            clock.now += seconds
            done(1, "loss 1.386")
    shown = capsys.readouterr().err
    assert "loss 1.386" in shown
    said = [line for line in shown.replace("\r", "\n").splitlines() if "about" in line]
    # Known after 3 s and 2 pictures more: 1.5 s for each of the 2,997 that are left of 3,000.
    assert said == ["shifting: about 1:14:56 more; fewer shifts take less"]


def test_every_long_function_says_what_would_make_it_shorter():
    """There is one bar; and what counts something else than pictures says more than that fewer of those take less."""
    texts = {file.stem: file.read_text() for file in Path(zfkit.__file__).parent.rglob("*.py")}
    nodes = [n for text in texts.values() for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)]
    calls = [call for call in nodes if ast.unparse(call.func) == "steps"]
    others = [call for call in calls if 2 < len(call.args) < 6 and call.args[2].value != "img"]
    assert [ast.unparse(c) for c in others if "shorter" not in [k.arg for k in c.keywords]] == []
    assert (
        len(calls) > 18
        and len(others) > 5
        and [n for n, text in texts.items() if "tqdm" in text] == ["batching"]
    )


def test_memory_is_handed_back_on_the_way(clock, monkeypatch):
    """At most every 5 s, for it takes a while."""
    given = []
    monkeypatch.setattr(batching, "give_back", lambda: given.append(clock.now))
    with steps(99, "mining", progress=False) as done:
        for _ in range(9):
            clock.now += 2
            done()
    assert given == [6, 12, 18]


@pytest.mark.parametrize("total, progress", [(81, True), (3000, False)])
def test_what_takes_less_or_is_to_be_silent_says_nothing(clock, capsys, total, progress):
    with steps(total, "shifting", progress=progress) as done:
        for _ in range(4):
            clock.now += 1.5
            done(1)
    assert "about" not in capsys.readouterr().err


def test_a_state_is_kept_every_half_minute(tmp_path, clock):
    """However few pictures were looked at: here seven take 20 s."""
    file, kept = tmp_path / "state", []

    def read(i):
        clock.now += 20 / 7
        kept.append(file.exists())

    zfkit.mine(exact_model(), pictures(70, before=read), batch_size=7, checkpoint=file, progress=False)
    first = kept.index(True)
    # After two batches, 40 s, at most two of them being read ahead.
    assert 14 <= first <= 28


def test_ctrl_c_keeps_what_was_looked_at(tmp_path):
    model, options = exact_model(), {"k": 4, "batch_size": 7, "progress": False}
    file, read = tmp_path / "state", []
    whole = zfkit.mine(model, pictures(70), **options)

    def until(i):
        if i == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"stopped after 35 of 70 pictures\. All is kept in .*state"):
        zfkit.mine(model, pictures(70, before=until), checkpoint=file, **options)
    assert_same(zfkit.mine(model, pictures(70, before=read.append), checkpoint=file, **options), whole)
    assert min(read) == 35


def test_an_interruption_between_two_batches_counts_none_twice(tmp_path, monkeypatch):
    """Wherever it falls: here right after a batch was added, before anything else is done."""
    model, images = exact_model(), pictures(70)
    options = {"k": 4, "batch_size": 7, "progress": False}
    whole, add = zfkit.mine(model, images, **options), MiningPlan.next_batch

    def interrupted(plan, part, batch):
        if int(batch.indices[0]) == 21:
            raise KeyboardInterrupt
        return add(plan, part, batch)

    monkeypatch.setattr(MiningPlan, "next_batch", interrupted)
    with pytest.raises(KeyboardInterrupt, match="after 21 of 70"):
        zfkit.mine(model, images, checkpoint=tmp_path / "state", **options)
    monkeypatch.undo()
    assert_same(zfkit.mine(model, images, checkpoint=tmp_path / "state", **options), whole)


def test_an_atlas_that_was_stopped_goes_on_where_it_was(tmp_path):
    model, read = exact_model(), []
    options = {"layers": ["0"], "maps": 2, "k": 2, "progress": False}

    def until(i):
        if i == 600:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="the same again goes on"):
        zfkit.write_atlas(model, pictures(700, before=until), tmp_path / "stopped", **options)
    zfkit.write_atlas(model, pictures(700, before=read.append), tmp_path / "stopped", **options)
    zfkit.write_atlas(model, pictures(700), tmp_path / "at once", **options)
    assert min(read[:188]) >= 256  # the first batches were not looked at again
    files = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("stopped", "at once")]
    assert files[0] == files[1] == ["0.png", "index.html", "topk.parquet"]
    pages = [(tmp_path / name / "0.png").read_bytes() for name in ("stopped", "at once")]
    assert pages[0] == pages[1]


def test_the_bar_of_an_atlas_moves_while_maps_are_projected(monkeypatch, tmp_path):
    moved, seen, project = [], [], page.project_many

    def watched(*given, **options):
        patches = project(*given, **options)
        seen.append((sum(map(len, given[3].values())), sum(moved)))  # maps of this portion, and of all so far
        return patches

    monkeypatch.setattr(page, "steps", lambda *given, **options: contextlib.nullcontext(moved.append))
    monkeypatch.setattr(page, "project_many", watched)
    monkeypatch.setattr(page, "PATCH_BYTES", 2000)
    zfkit.write_atlas(
        exact_model(), pictures(20), tmp_path, maps={"0": [0, 3, 5], "3": [1, 2, 4]}, progress=False
    )
    assert [so_far for _, so_far in seen] == [sum(n for n, _ in seen[: i + 1]) for i in range(len(seen))]
    assert sum(moved) == 6 and len(seen) > 1
