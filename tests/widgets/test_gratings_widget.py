"""The gratings widget: its pictures against the network itself, and its controls."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import zfkit
from zfkit import ZfkitError
from zfkit.batching import Cancelled
from zfkit.widgets import GratingExplorer
from zfkit.widgets.gratings import GratingState, GratingView


def tiny(stride=4, name="tiny"):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 5, stride, 2), nn.ReLU(), nn.Conv2d(3, 2, 3))
    return zfkit.wrap_model(net.double(), mean=127.5, scale=1 / 127.5, input_size=64, name=name)


@pytest.fixture(scope="module")
def view():
    return GratingView([tiny(), tiny(2, "finer")])


@pytest.mark.parametrize("layer", ["0", "2"])
@pytest.mark.parametrize("frequency, orientation", [(0.06, 10.0), (0.2, 75.0), (0.3, 130.0)])
def test_samples_are_what_the_network_answers(view, layer, frequency, orientation):
    """The feature map of a large picture of the grating, from the unit at which phase 0 was measured on."""
    state = GratingState("tiny", layer, 1, frequency, orientation, phase=40)
    maps, model = view.maps(state), view.models["tiny"]
    first = -(zfkit.receptive_field(model, layer).offset // 4)
    fx, fy = (float(v) for v in zfkit.frequency.wave(frequency, orientation))
    # so that unit first + 2 is at the picture's phase
    start = math.radians(40) - 2 * math.pi * 4 * (fx + fy) * 2
    picture = zfkit.frequency.gratings(frequency, orientation, start, size=110, dtype=torch.float64)
    with torch.no_grad():
        answers = model.net[: int(layer) + 1](model.normalise(picture))[0, 1]
    answers = answers[first + 2 :, first + 2 :][:16, :16] - float(view.response(state).mean)
    found = maps["before"][::4, ::4]
    # behind a ReLU, the harmonics from the sixteenth on are left out
    assert torch.allclose(found, answers, atol=1e-9 if layer == "0" else 0.03 * float(answers.abs().max()))
    assert torch.allclose(maps["seen"][::4, ::4], found)
    assert torch.allclose(maps["kept"] + maps["folded"], maps["seen"])


def test_above_the_limit_all_of_a_linear_filters_answer_is_in_the_folded_part(view):
    above = view.maps(GratingState("tiny", "0", 0, 0.2))
    assert above["kept"].abs().max() < 1e-12 < above["folded"].abs().max()
    below = view.maps(GratingState("tiny", "0", 0, 0.1))
    assert below["folded"].abs().max() < 1e-12
    assert torch.allclose(below["seen"], below["before"])


def test_the_wave_that_is_seen_has_the_folded_frequency(view):
    row = view.maps(GratingState("tiny", "0", 0, frequency=13 / 64))["seen"][0].numpy()
    assert np.abs(np.fft.rfft(row)).argmax() == 3  # 13/64 folds to 13/64 - 1/4 = -3/64


@pytest.mark.parametrize("state, parts", [
    (GratingState("tiny", "0", 0, 0.2), ["0.200 cycles per pixel (a period of 5.0 px) at 0 degrees", "read every 4 px",
     "up to 0.125 cycles", "arrives at 0.050 cycles per pixel (a period of 20.0 px, 4.0 times as long)",
     "100 % of the energy"]),
    (GratingState("tiny", "0", 0, 0.1), ["It arrives as it is."]),
    (GratingState("tiny", "0", 0, 0.25), ["as no wave at all but as a constant"]),
    (GratingState("finer", "0", 0, 0.4), ["read every 2 px", "arrives at 0.100 cycles per pixel", "4.0 times as long"]),
])  # fmt: skip
def test_the_words_say_the_numbers(view, state, parts):
    said = view.words(state)
    assert all(part in said for part in parts), said


def test_of_layers_that_read_every_pixel_the_words_say_that_nothing_is_folded():
    view = GratingView(tiny(1))
    assert "nothing can be folded" in view.words(GratingState("tiny", "0"))


def test_colour_filters_answer_to_their_colours():
    conv = nn.Conv2d(3, 1, 1, bias=False)
    conv.weight.data = torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1)
    view = GratingView(zfkit.wrap_model(nn.Sequential(conv), mean=0, scale=1, input_size=32, name="red"))
    grey, red = (view.response(GratingState("red", "0", colour=c)) for c in ("grey", "red - green"))
    assert float(grey.before) < 1e-4
    assert float(red.before) == pytest.approx(2 * 127.5 / 2**0.5)


@pytest.fixture
def explorer():
    shown = zfkit.widgets.explore_gratings([tiny(), tiny(2, "finer")], frequency=0.2, channel=2)
    yield shown
    shown.close()


def test_moving_a_slider_changes_what_is_shown(explorer):
    assert isinstance(explorer, GratingExplorer) and explorer.wait()
    before = explorer.picture.image.value
    explorer.frequency.value = 0.1
    assert explorer.wait() and explorer.state.frequency == 0.1
    assert explorer.picture.image.value != before
    assert "0.100 cycles per pixel" in explorer.words.value and explorer.picture.label in explorer.words.value
    moves = {"orientation": 45, "phase": 90, "channel": 1, "colour": "red - green", "layer": "2"}
    for name, value in moves.items():
        getattr(explorer, name).value = value
        assert explorer.wait() and getattr(explorer.state, name) == value
    assert not explorer.errors


def test_a_grating_is_picked_on_the_map_of_responses(explorer):
    explorer.wait()
    frequencies, orientations = explorer.view.axes(explorer.state)
    explorer.plane.place.row, explorer.plane.place.col = 3, 7
    assert explorer.wait()
    assert explorer.state.frequency == pytest.approx(float(frequencies[7]))
    assert explorer.state.orientation == pytest.approx(float(orientations[3]))
    assert explorer.frequency.value == pytest.approx(float(frequencies[7]), abs=0.003)


def test_the_map_of_responses_shows_what_is_kept_in_grey_and_what_is_folded_in_colour(view):
    state = GratingState("tiny", "0", 0)
    pixels = np.asarray(view.plane_picture(state)).astype(int)
    found = view.plane(state)
    for f, o in [(3, 0), (30, 5)]:
        h, w = pixels.shape[:2]
        y, x = int((o + 0.5) * h / len(found.orientation)), int((f + 0.5) * w / len(found.frequency))
        r, g, b = pixels[y, x]
        folded = bool(found.is_folded[f, o, 0])
        assert folded == (f == 30) and (r > b + 2) == folded and (folded or r == g == b)


def test_another_network_keeps_what_it_can(explorer):
    explorer.set(model="finer")
    assert explorer.wait() and explorer.state.channel == 2 and "read every 2 px" in explorer.words.value
    explorer.set(layer="2")
    assert explorer.state.channel == 1  # it has two maps
    assert explorer.snapshot().size[0] == int(explorer.picture.image.width)


@pytest.mark.parametrize("changes, message", [
    ({"model": "vgg"}, "there is no network 'vgg'"),
    ({"layer": "9"}, "there is no layer '9'"),
    ({"layer": "1"}, "there is no convolution '1'"),
    ({"channel": 3}, "from 0 to 2, not 3"),
    ({"colour": "mauve"}, "there is no colour 'mauve'"),
    ({"frequency": 0.7}, "at most 0.5, not 0.7"),
    ({"speed": 3}, "there is no setting 'speed'"),
])  # fmt: skip
def test_what_does_not_exist_is_refused_and_nothing_changes(explorer, changes, message):
    state = explorer.state
    with pytest.raises(ZfkitError, match=re.escape(message)):
        explorer.set(**changes)
    assert explorer.state == state


def test_measuring_goes_on_where_it_was_cancelled(monkeypatch):
    measured, respond = [], zfkit.widgets.gratings.grating_response

    def counting(*args, **options):
        measured.append(options["frequencies"])
        return respond(*args, **options)

    def cancel(done, total):
        if done == 3 and total == 40:
            raise Cancelled

    monkeypatch.setattr("zfkit.widgets.gratings.grating_response", counting)
    view, state = GratingView(tiny()), GratingState("tiny", "0")
    with pytest.raises(Cancelled):
        view.plane(state, cancel)
    plane = view.plane(state)
    assert len(measured) == 40
    whole = respond(tiny(), "0", frequencies=plane.frequency, orientations=plane.orientation, phases=8)
    assert torch.allclose(plane.harmonics, whole.harmonics)


def test_networks_need_names_of_their_own():
    with pytest.raises(ZfkitError, match="names of their own"):
        GratingView([tiny(), tiny()])
    with pytest.raises(ZfkitError, match="at least one"):
        GratingView([])
