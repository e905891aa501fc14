"""The evolution widget, without a browser: its pictures and words against the numbers, and its controls."""

import re
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import image_set, network, random_pixels, write_snapshot

import zfkit
import zfkit.figures.evolution as plotting
from zfkit import ZfkitError
from zfkit.deconv.rules import Options
from zfkit.errors import LayerError
from zfkit.experiments.evolution import evolution
from zfkit.widgets import EvolutionExplorer
from zfkit.widgets import evolution as widget
from zfkit.widgets.evolution import EvolutionState, EvolutionView

EPOCHS = (0, 2, 5)


@pytest.fixture(scope="module")
def images():
    return image_set(random_pixels(24))


@pytest.fixture(scope="module")
def found(images):
    pairs, channels = [(epoch, network(epoch)) for epoch in EPOCHS], {"0": [2, 0], "3": [1, 4], "6": []}
    return evolution(pairs, images, [*channels], channels, compare=24, progress=False)


@pytest.fixture(scope="module")
def view(found, images):
    return EvolutionView(found, images)


@pytest.fixture
def explorer(found, images):
    shown = zfkit.widgets.explore_evolution(found, images, layer="3", channel=4, epoch=2)
    yield shown
    shown.close()


def pixel(picture, x, y):
    return tuple(np.asarray(picture)[y, x].tolist())


# ------------------------------------------------------------------------------------------------ the view


def test_the_sheet_shows_projection_and_photograph_of_the_epoch(view, found):
    state = EvolutionState("0", 2, 5)
    sheet = view.sheet(state)
    layer = found["0"]
    rgb = plotting.evolution_rgb(layer)[0, 2]  # 3 x 3 px: each becomes a block of 84
    for r, c in np.ndindex(3, 3):
        at = (c * 84 + 40, 20 + r * 84 + 40)
        assert pixel(sheet, *at) == tuple(rgb[:, r, c].tolist())
        at = (widget.LARGE + 14 + at[0], at[1])
        assert pixel(sheet, *at) == tuple(layer.photo[0, 2, :, r, c].tolist())


def test_the_strip_frames_the_epoch_and_marks_changes(view, found):
    orange = tuple(int(plotting.CHANGED[k : k + 2], 16) for k in (1, 3, 5))
    layer = found["3"]
    for channel in (1, 4):
        for e, epoch in enumerate(EPOCHS):
            sheet = view.sheet(EvolutionState("3", channel, epoch))
            top = 20 + widget.LARGE + 10
            for i in range(3):
                left = i * widget.STEP[0] + widget.GAP
                assert (pixel(sheet, left - 4, top + 60) == orange) == bool(layer.changed[channel, i])
                assert (pixel(sheet, left - 1, top + 60) == (20, 23, 28)) == (i == e)


def test_scales(view, found):
    shared, each = (view.pictures(EvolutionState("3", 1, 0, s))[0] for s in ("row", "picture"))
    active = found["3"].active[1]
    assert torch.equal(each[active], zfkit.figures.signed_to_rgb(found["3"].projection[0])[active])
    assert torch.equal(shared, plotting.evolution_rgb(found["3"])[0])


def test_the_words_say_the_numbers(view, found, images):
    layer = found["3"]
    said = view.words(EvolutionState("3", 4, 2))
    assert f"to {images.name(int(layer.image[4, 1]))}" in said
    assert ("another one" in said) == bool(layer.changed[4, 1])
    assert f"last snapshot is {float(layer.similarity[4, 1]):.2f}" in said
    assert f"(CKA) {float(layer.cka[1]):.2f}" in said
    assert f"{100 * float(layer.distance[1]):.0f} % are left" in said
    assert "This is the last snapshot" in view.words(EvolutionState("3", 4, 5))
    unnamed = EvolutionView(found).words(EvolutionState("3", 4, 2))
    assert f"to picture {int(layer.image[4, 1])}" in unnamed


def test_many_snapshots_go_onto_several_lines(images):
    pairs = [(epoch, network(epoch % 3)) for epoch in range(14)]
    run = evolution(pairs, images, "0", [1], compare=8, progress=False)
    few = EvolutionView(evolution(pairs[:12], images, "0", [1], compare=8, progress=False))
    many = EvolutionView(run)
    sizes = [v.sheet(v.first()).size for v in (few, many)]
    assert sizes[0][0] == sizes[1][0] and sizes[0][1] < sizes[1][1]


def test_only_maps_that_were_projected_can_be_looked_at(found):
    view = EvolutionView(found)
    assert view.layers == ("0", "3")  # of "6" no map was projected
    assert view.first() == EvolutionState("0", 2, 5)
    with pytest.raises(LayerError, match="no feature maps were projected"):
        EvolutionView(evolution([(1, network(1))], image_set(random_pixels(4)), "0", [], progress=False))


# -------------------------------------------------------------------------------------------- the controls


def test_moving_the_epoch_changes_what_is_shown(explorer):
    assert isinstance(explorer, EvolutionExplorer) and explorer.wait()
    assert explorer.state == EvolutionState("3", 4, 2) and explorer.epoch.value == 1
    before = explorer.picture.image.value
    explorer.epoch.value = 2
    assert explorer.wait() and explorer.state.epoch == 5
    assert explorer.picture.image.value != before
    assert "epoch 5, snapshot 3 of 3" in explorer.which.value
    assert explorer.view.words(explorer.state) == explorer.picture.image.alt
    assert "After epoch 5" in explorer.words.value and "role='status'" in explorer.words.value
    assert not explorer.errors


def test_play_moves_the_slider_and_the_slider_play(explorer):
    explorer.play.value = 0
    assert explorer.wait() and explorer.state.epoch == 0 and explorer.epoch.value == 0
    explorer.epoch.value = 2
    assert explorer.play.value == 2 and explorer.play.max == explorer.epoch.max == 2
    assert explorer.play.tooltip and explorer.epoch.tooltip


def test_a_snapshot_is_picked_on_the_strip(explorer):
    explorer.wait()
    assert (explorer.strip.place.rows, explorer.strip.place.cols) == (1, 3)
    assert explorer.strip.place.col == 1 and explorer.strip.place.label
    explorer.strip.place.col = 2
    assert explorer.wait() and explorer.state.epoch == 5 and explorer.epoch.value == 2
    explorer.set(epoch=0)
    assert explorer.strip.place.col == 0 and not explorer.errors


def test_another_layer_begins_with_its_first_map_and_keeps_the_epoch(explorer):
    explorer.layer.value = "0"
    assert explorer.wait() and explorer.state == EvolutionState("0", 2, 2)
    assert explorer.channel.options == (2, 0) and explorer.channel.value == 2
    explorer.channel.value = 0
    explorer.scale.value = "picture"
    assert explorer.wait() and explorer.state == EvolutionState("0", 0, 2, "picture")
    assert np.array_equal(np.asarray(explorer.snapshot()), np.asarray(explorer.view.sheet(explorer.state)))
    assert isinstance(explorer.snapshot(), Image.Image) and not explorer.errors


@pytest.mark.parametrize("changes, message", [
    ({"layer": "6"}, "there is no layer '6'"),
    ({"channel": 3}, "map 3 of '3' was not projected; there are: 1, 4"),
    ({"epoch": 3}, "there is no snapshot of epoch 3; there are: 0, 2, 5"),
    ({"scale": "colum"}, "there is no scale 'colum'"),
    ({"speed": 3}, "there is no setting 'speed'"),
])  # fmt: skip
def test_what_does_not_exist_is_refused_and_nothing_changes(explorer, changes, message):
    state = explorer.state
    with pytest.raises(ZfkitError, match=re.escape(message)):
        explorer.set(**changes)
    assert explorer.state == state
    with pytest.raises(ZfkitError):
        zfkit.widgets.explore_evolution(explorer.found, **({"speed": 1} if "speed" in changes else changes))


# ------------------------------------------------------------------------------------- from a folder at once


def test_a_folder_is_looked_through_first(tmp_path):
    for epoch in (0, 1, 3):
        write_snapshot(tmp_path / f"epoch_{epoch}.safetensors", epoch)
    images = image_set(random_pixels(12, 32, 1))
    options = {"layers": ["conv2"], "maps": 2, "epochs": [0, 3, 9]}
    explorer = zfkit.widgets.explore_evolution(tmp_path, images, **options, epoch=0)
    try:
        assert explorer.wait() and not explorer.errors
        expected = evolution(tmp_path, images, ["conv2"], maps=2, epochs=[0, 3], progress=False)
        assert torch.equal(explorer.found["conv2"].projection, expected["conv2"].projection)
        assert explorer.state == EvolutionState("conv2", int(expected["conv2"].channels[0]), 0)
        assert "epoch 9 was not kept" in explorer.notice.value
        assert not explorer.epoch.disabled and explorer.picture.said == ""
        assert int(explorer.strip.picture.image.width) == explorer.view.strip(explorer.state).width
    finally:
        explorer.close()


def test_what_was_looked_through_is_kept_for_these_snapshots_pictures_and_options(tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(widget, "evolution", lambda *a, **o: (looks.append(o), evolution(*a, **o))[1])
    folder, images = tmp_path / "mine", image_set(random_pixels(12, 32, 1))
    folder.mkdir()
    for epoch in (0, 3):
        write_snapshot(folder / f"epoch_{epoch}.safetensors", epoch)

    def found(images=images, **options):
        options = {"layers": ["conv2"], "maps": 2, **options}
        explorer = zfkit.widgets.explore_evolution(folder, images, **options)
        assert explorer.wait() and not explorer.errors
        explorer.close()
        return explorer.found

    first, again = found(epochs=[0, 3, 9]), found(epochs=[0, 3, 9])
    assert len(looks) == 1
    for name, value in vars(first).items():
        assert name == "layers" or value == getattr(again, name), name
    for name, value in vars(first["conv2"]).items():
        assert torch.equal(value.nan_to_num(-1), getattr(again["conv2"], name).nan_to_num(-1)), name
    others = [{"maps": 1}, {"options": Options("guided")}, {"images": image_set(random_pixels(12, 32, 2))}]
    unknown = {"channels": {"conv2": torch.tensor([1])}}  # no plain value, and so never kept
    for count, other in enumerate([*others, unknown, unknown], 2):
        assert found(**other) and len(looks) == count
    for file in (tmp_path / "cache").rglob("evolution.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert found(maps=1) and len(looks) == 7
    write_snapshot(folder / "epoch_0.safetensors", 7)
    assert found(maps=1) and len(looks) == 8


def test_what_is_wrong_with_the_folder_is_told_in_place(tmp_path, images):
    explorer = zfkit.widgets.explore_evolution(tmp_path, images)
    try:
        assert explorer.wait()
        assert "holds no snapshots" in explorer.picture.said
        assert "holds no snapshots" in explorer.notice.value and len(explorer.errors) == 1
        assert explorer.epoch.disabled
        with pytest.raises(ZfkitError, match="not looked through yet"):
            explorer.snapshot()
        with pytest.raises(ZfkitError, match="not looked through yet"):
            explorer.set(epoch=1)
    finally:
        explorer.close()


def test_nothing_waits_for_a_long_look(tmp_path, images, monkeypatch):
    """The widget is there at once; closing it ends the look between two snapshots."""
    looked, may_go_on = [], threading.Event()

    def slow(*_, on_step, **__):
        for i in range(1000):
            may_go_on.wait()
            looked.append(i)
            on_step(i, 1000)

    monkeypatch.setattr(widget, "evolution", slow)
    explorer = zfkit.widgets.explore_evolution(tmp_path, images)
    assert "Looking through" in explorer.picture.said and not looked
    threading.Timer(0.05, may_go_on.set).start()
    explorer.close()
    assert len(looked) < 1000


def test_pictures_are_needed_for_snapshots(found, tmp_path):
    with pytest.raises(ZfkitError, match="the explorer needs pictures"):
        zfkit.widgets.explore_evolution(tmp_path)
    with pytest.raises(ZfkitError, match=r"maps is a setting of zfkit.evolution"):
        zfkit.widgets.explore_evolution(found, maps=3)
