"""What mining takes, known beforehand."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from mining import exact_model, pictures

import zfkit
import zfkit.cli
import zfkit.topk.estimate
from zfkit import ZfkitError
from zfkit.atlas import page
from zfkit.cli import main
from zfkit.topk import MiningPlan, estimate_mining


class Clock:
    """Stands still, but for what is added to it."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_the_estimate_is_pictures_times_the_time_of_one(monkeypatch):
    """On a clock that moves by a quarter of a second with every picture that the network sees."""
    clock, add = Clock(), MiningPlan.add

    def slow(plan, tops, batch, portions):
        warming_up = int(batch.indices[0]) == 0
        clock.now += 0.25 * len(batch.indices) * (40 if warming_up else 1)
        return add(plan, tops, batch, portions)

    monkeypatch.setattr(zfkit.topk.estimate, "time", clock)
    monkeypatch.setattr(MiningPlan, "add", slow)
    model, images = exact_model(), pictures(1000)
    estimate = estimate_mining(model, images, k=4, batch_size=5)
    assert (estimate.pictures, estimate.maps) == (1000, 12)
    assert estimate.seconds == pytest.approx(1000 * 0.25)
    assert estimate.timed % 5 == 0 and 5 <= estimate.timed <= 50  # whole batches, not more than a twentieth
    assert estimate.timed_seconds == pytest.approx(estimate.timed * 0.25)
    assert estimate.timed_seconds <= 2 + 5 * 0.25  # and not longer than 2 seconds and a batch
    assert estimate_mining(model, images, k=4, batch_size=5, processes=8).seconds == pytest.approx(250 / 8)
    few = estimate_mining(model, pictures(7), k=4, batch_size=5)  # nothing to warm up with
    assert few.timed == 5 and few.seconds == pytest.approx(7 * 0.25 * 40)


def test_the_disk_is_maps_times_what_each_takes(tmp_path):
    """Value 4 bytes, image, row, column 8 each; three statistics, a channel; states have one place for both."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2000, 3), torch.nn.ReLU(), torch.nn.Conv2d(2000, 500, 1))
    model = zfkit.wrap_model(net, mean=0, scale=1, input_size=16, name="wide")
    images, k = pictures(40), 30
    estimate = estimate_mining(model, images, k=k)
    assert estimate.maps == 2500
    assert estimate.table_bytes == 2500 * (k * (4 + 8 + 8 + 8) + 3 * 4 + 8)
    assert estimate.state_bytes == 2500 * (k * (4 + 8 + 8) + 4 + 8 + 8)
    checkpoint = tmp_path / "t.part"
    table = zfkit.mine(model, images, k=k, checkpoint=checkpoint, progress=False).save(tmp_path / "t.parquet")
    assert checkpoint.stat().st_size == pytest.approx(estimate.state_bytes, abs=4000)  # a header
    assert table.stat().st_size <= estimate.table_bytes + 20_000  # Parquet packs what repeats


GIVEN = "mine --images textures --size 64 --limit 20 --layers conv1 --device cpu".split()


def test_the_command_says_it_before_it_starts_and_stops_there_if_asked(tmp_path, capsys):
    given = [*GIVEN, "--out", str(tmp_path / "t.parquet")]
    assert main([*given, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("20 pictures, 96 feature maps: about ") and " pictures/s, timed on " in printed
    sizes = f"{96 * (28 * 9 + 20) / 1e6:.2f} MB for the table and {96 * 200 / 1e6:.2f} MB for the state"
    assert f"on disk up to {sizes}" in printed
    assert list(tmp_path.iterdir()) == []
    assert main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("20 pictures, 96 feature maps") and lines[1].startswith("TopK(")


def test_a_disk_too_full_is_known_before_anything_is_mined(tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=30_000))
    monkeypatch.setattr(zfkit.cli, "mine", lambda *_, **__: pytest.fail("it mined"))
    assert main([*GIVEN, "--out", str(tmp_path / "t.parquet")]) == 2
    assert "0 MB needed, 0 MB free" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, message",
    [
        (["--checkpoint-every", "0"], "checkpoint_every must be a whole number from 1 on, not 0"),
        (["--out", "."], "--out names no file"),
    ],
)
def test_commands_that_make_no_sense(given, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*GIVEN, *given]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_estimates_that_cannot_be_made():
    with pytest.raises(ZfkitError, match="processes must be a whole number from 1 on, not 0"):
        estimate_mining(exact_model(), pictures(9), processes=0)


def test_of_a_deep_network_twelve_layers_are_projected_and_those_between_follow(monkeypatch):
    """On a clock by which a map of the layer at place i takes i seconds: 0 + 1 + ... + 29, twice."""
    clock, timed = Clock(), []
    net = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 1) for _ in range(30)))
    model = zfkit.wrap_model(net, mean=0, scale=1, input_size=8, name="deep")

    def slow(model, images, top, wanted, **options):
        timed.extend(map(int, wanted))
        clock.now += timed[-1]

    monkeypatch.setattr(page, "time", clock)
    monkeypatch.setattr(page, "project_many", slow)
    said = page.estimate_atlas(model, pictures(20), maps=2, k=2).splitlines()[1]
    assert said == "projecting 60 of their maps: at most about 0:14:30" and len(timed) == 12


def test_that_of_an_atlas_covers_projecting(monkeypatch, tmp_path, capsys):
    """On a clock that moves by 3 s with every map that is projected: 6 and 6 maps, of which 5 and 5 are asked for."""
    clock, project = Clock(), page.project_many

    def slow(model, images, top, wanted, **options):
        clock.now += 3 * sum(map(len, wanted.values()))
        return project(model, images, top, wanted, **options)

    monkeypatch.setattr(page, "time", clock)
    monkeypatch.setattr(page, "project_many", slow)
    model, images = exact_model(), pictures(60)
    for maps, count in ((5, 10), ("all", 12), ({"0": [1], "3": [2, 4]}, 3)):
        said = page.estimate_atlas(model, images, maps=maps, k=4).splitlines()
        assert said[0].startswith("60 pictures, 12 feature maps: about 0:00:0")
        assert said[1] == f"projecting {count} of their maps: at most about 0:00:{3 * count:02}"
    line = "atlas --images photos-small --limit 4 --size 64 --layers conv1 --dry-run --out".split()
    assert main([*line, str(tmp_path / "never")]) == 0
    assert "projecting 24 of their maps: at most about 0:01:12" in capsys.readouterr().out
    assert main([*line, str(tmp_path / "never"), "--patches-only"]) == 0
    assert capsys.readouterr().out.endswith("\npatches alone, without projections\n")
    assert not (tmp_path / "never").exists()


def test_that_of_an_atlas_counts_what_will_be_done_and_no_more(monkeypatch):
    """On a clock that moves by 2 s with every unit: what is refused takes none, missing units are paid for."""
    clock, project, model, images = Clock(), page.project_many, exact_model(), pictures(60)

    def slow(model, images, top, wanted, **options):
        places = torch.cat([top[layer].image[channels] for layer, channels in wanted.items()])
        clock.now += 2 * int((places >= 0).sum())
        return project(model, images, top, wanted, **options)

    monkeypatch.setattr(page, "time", clock)
    monkeypatch.setattr(page, "project_many", slow)
    monkeypatch.setattr(page, "refusals", lambda *_: {"3": "it has no gradient"})
    said = "projecting 5 of their maps: at most about 0:00:40"  # 5 maps of "0", 4 units each
    assert page.estimate_atlas(model, images, maps=5, k=4).splitlines()[1] == said

    top = zfkit.mine(model, images, model.conv_layers, k=4, progress=False)
    for name in model.conv_layers:
        top[name].image[:, 1:] = -1  # of all four units one is left
    with monkeypatch.context() as few:
        few.setattr(page, "mine", lambda *_, **__: top)
        few.setattr(page, "project_many", lambda *a, **_: setattr(clock, "now", clock.now + 2))
        assert page.estimate_atlas(model, images, maps=5, k=4).splitlines()[1] == said

    monkeypatch.setattr(page, "shipped", lambda *_, **__: zfkit.mine(model, images, k=4, progress=False))
    for name in ("mine", "estimate_mining"):
        monkeypatch.setattr(page, name, lambda *_, **__: pytest.fail("write_atlas would not mine"))
    ships = "60 pictures, 12 feature maps: their table ships, none is mined"
    assert page.estimate_atlas(model, images, maps=5, k=4).splitlines() == [ships, said]


def test_a_table_is_drawn_layer_by_layer():
    top = zfkit.mine(exact_model(), pictures(9), progress=False)
    drawn = {line.name: list(line.y) for line in top.plot().data}
    assert drawn == {layer: sorted(found.max.tolist(), reverse=True) for layer, found in top.layers.items()}
    assert "12 feature maps" in top._repr_html_() and "108 rows" in top._repr_html_()
