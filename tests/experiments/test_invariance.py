"""Motions against PIL, slices and closed forms; distances against a loop with hooks."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import hooked, image_set, noise
from torch import nn

import zfkit
from zfkit.errors import ImageError, LayerError, ModelError, ZfkitError
from zfkit.experiments.invariance import default_values, margin, move, paper_layers, there_and_back
from zfkit.images.imageset import Windows

invariance = partial(zfkit.invariance, progress=False)


def smooth(N, side, random_seed=0):
    """Pictures without fine detail, which resampling changes little."""
    coarse = noise(N, 4, random_seed=random_seed).double()
    waves = torch.nn.functional.interpolate(coarse, side, mode="bicubic")
    return waves.clamp(0, 255).round().to(torch.uint8)


def pixels_model(side, classes=2):
    """Layer "1" is the picture itself; the classes are its left and right half's mean brightness."""
    linear = nn.Linear(3 * side * side, classes, bias=False)
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Identity(), nn.Flatten(), linear)
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3)[:, :, None, None])
        net[0].bias.zero_()
    return zfkit.wrap_model(net.double().eval(), mean=0, scale=1, input_size=side)


# ------------------------------------------------------------------------------------------------- motions


INTERPOLATIONS = ["bilinear", "bicubic", "nearest"]


@given(st.integers(4, 9), st.integers(0, 4), st.integers(-6, 6), st.sampled_from(INTERPOLATIONS))
def test_shifts_by_whole_pixels_copy_pixels(window, border, value, interpolation):
    side = window + 2 * border
    pictures = noise(2, side)
    moved, beyond = move(pictures, "shift", value, window, interpolation=interpolation, fill=(1, 2, 3))
    expected = torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None].repeat(2, 1, window, window)
    missing = 0
    for row in range(window):
        source = row + border - value
        if 0 <= source < side:
            expected[:, :, row] = pictures[:, :, source, border : border + window]
        else:
            missing += 1
    assert torch.equal(moved, expected)
    assert beyond == pytest.approx(missing / window)


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_quarter_turns_copy_pixels(side, interpolation):
    pictures = noise(2, side)
    for quarters in range(-5, 6):
        moved, beyond = move(pictures, "rotation", 90.0 * quarters, side, interpolation=interpolation)
        assert torch.equal(moved, torch.rot90(pictures, quarters, (2, 3)))
        assert beyond == 0


@pytest.mark.parametrize(("side", "angle"), [(40, 10.0), (41, 120.0), (40, 205.0), (41, 350.0)])
@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_rotation_equals_pillow(side, angle, name):
    picture = smooth(1, side)
    moved, _ = move(picture, "rotation", angle, side, interpolation=name, fill=(0, 0, 0))
    theirs = Image.fromarray(picture[0].permute(1, 2, 0).numpy())
    theirs = theirs.rotate(angle, Image.Resampling[name.upper()])
    ours, theirs = moved[0].permute(1, 2, 0).numpy().astype(int), np.asarray(theirs).astype(int)
    middle = np.hypot(*(np.indices((side, side)) - (side - 1) / 2)) < side / 2 - 2
    # Pillow's cubic has another constant and it truncates: 3 of 255 on smooth pictures
    assert np.abs(ours - theirs)[middle].max() <= 3


@pytest.mark.parametrize("scale", [1.3, 1.8])
def test_scale_equals_pillow(scale):
    side = 48
    picture = smooth(1, side, random_seed=2)
    moved, beyond = move(picture, "scale", scale, side, interpolation="bilinear")
    half = side / scale / 2
    box = (side / 2 - half, side / 2 - half, side / 2 + half, side / 2 + half)
    theirs = Image.fromarray(picture[0].permute(1, 2, 0).numpy())
    theirs = theirs.resize((side, side), Image.Resampling.BILINEAR, box=box)
    difference = np.abs(moved[0].permute(1, 2, 0).numpy().astype(int) - np.asarray(theirs).astype(int))
    assert difference[1:-1, 1:-1].max() <= 1
    assert beyond == 0


def test_doubling_by_hand():
    """A row 0 100 200 100, twice as large about its centre: 75 of 0..100 ..., from the pixels' centres."""
    row = torch.tensor([0, 100, 200, 100], dtype=torch.uint8)
    picture = row.repeat(1, 3, 4, 1)
    moved, _ = move(picture, "scale", 2.0, 4, interpolation="bilinear")
    assert moved[0, 0, 1].tolist() == [75, 125, 175, 175]  # read at 0.75, 1.25, 1.75, 2.25


def test_real_pixels_come_in_where_there_are_some():
    window = 30
    for motion in ("shift", "scale", "rotation"):
        values = default_values(motion, window)
        for border, complete in ((margin(motion, window), True), (margin(motion, window) - 1, False)):
            if border < 0:
                continue
            shares = [move(noise(1, window + 2 * border), motion, v, window)[1] for v in values]
            assert (max(shares) == 0) == complete
    edge, _ = move(noise(1, 8), "shift", 3, 8, fill="edge")
    assert torch.equal(edge[0, :, :3], noise(1, 8)[0, :, :1].expand(-1, 3, -1))
    mirrored, _ = move(noise(1, 8), "shift", 3, 8, fill="reflect")
    assert torch.equal(mirrored[0, :, :3], noise(1, 8)[0, :, :3].flip(1))


def test_oversampled_pictures_are_means_of_squares():
    pictures = noise(2, 32)
    for motion, value in (("shift", 0.0), ("rotation", 90.0), ("scale", 1.0)):
        moved, _ = move(pictures, motion, value, 12, oversample=2)
        big, _ = move(pictures, motion, value, 24)
        means = big.double().reshape(2, 3, 12, 2, 12, 2).mean((3, 5)).round()
        assert torch.equal(moved, means.to(torch.uint8))
    half, _ = move(pictures, "shift", 1.5, 12, oversample=2)  # 3 pixels of the picture
    expected = pictures[:, :, 1:25, 4:28].double().reshape(2, 3, 12, 2, 12, 2).mean((3, 5)).round()
    assert torch.equal(half, expected.to(torch.uint8))
    for side in (188, 200):  # sizes whose coordinates are no binary fractions
        big = noise(1, side, random_seed=side)
        start = (side - 128) // 2
        for value in (-5, 0, 3):
            cut = big[:, :, start - 2 * value : start - 2 * value + 128, start : start + 128].double()
            means = cut.reshape(1, 3, 64, 2, 64, 2).mean((3, 5)).round()
            assert torch.equal(move(big, "shift", value, 64, oversample=2)[0], means.to(torch.uint8))


def test_there_and_back_is_in_place():
    pictures = smooth(2, 60, random_seed=5)
    still, _ = move(pictures, "shift", 0, 40)
    for motion, value in (("shift", 0.5), ("shift", -7.25), ("scale", 1.8), ("rotation", 33.0)):
        back = there_and_back(pictures, motion, value, 40)
        assert (back.int() - still.int()).abs().max() <= 6  # smooth pictures hardly change
        there, _ = move(pictures, motion, value, 40)
        if abs(value) > 0.6:
            assert (there.int() - still.int()).abs().max() > 20
    for motion, value in (("shift", 5.0), ("rotation", 270.0)):
        assert torch.equal(there_and_back(pictures, motion, value, 40), still)
    sharp = noise(2, 60)
    blurred = there_and_back(sharp, "shift", 0.5, 40, interpolation="bilinear")
    rows = sharp.double()[:, :, 9:51, 10:50]  # twice (a + b) / 2 is (a + 2 b + c) / 4
    expected = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
    assert (blurred - expected).abs().max() <= 0.5


def test_the_papers_ranges():
    assert default_values("shift", 224)[0] == -60 and default_values("shift", 224)[-1] == 60
    assert 0.0 in default_values("shift", 224) and len(default_values("shift", 224)) <= 17
    assert default_values("shift", 64)[-1] == 17
    assert default_values("scale", 64)[0] == 1 and default_values("scale", 64)[-1] == 1.8
    assert default_values("rotation", 64)[0] == 0 and default_values("rotation", 64)[-1] == 350
    for window in range(1, 40):
        values = default_values("shift", window)
        assert values == sorted(set(values)) and all(v == int(v) for v in values)


# ---------------------------------------------------------------------------------------------- distances


def test_features_distances_and_probabilities_equal_a_loop_with_hooks(tiny):
    pictures, angles = noise(3, 40, random_seed=1), [0.0, 25.0, 180.0]
    layers = ["relu1", "conv3", "fc7", "relu7"]
    result = invariance(tiny, pictures, "rotation", angles, layers=layers, batch_size=2)

    def look(picture):
        with hooked(tiny, ["conv1", "conv3", "fc7"]) as y, torch.no_grad():  # ReLUs work in place
            p = tiny.net(tiny.preprocess(picture)).softmax(1)[0]
        features = {"conv3": y["conv3"], "fc7": y["fc7"]}
        features |= {"relu1": y["conv1"].relu(), "relu7": y["fc7"].relu()}
        return {name: v.flatten() for name, v in features.items()}, p

    stills = [look(picture[:, 4:36, 4:36]) for picture in pictures]
    for i, (still, p) in enumerate(stills):
        assert result.target[i] == p.argmax() and result.target_from[i] == "model"
        assert abs(result.whole_probability[i] - p.max()) < 1e-6
        for t, angle in enumerate(angles):
            options = {"motion": "rotation", "value": angle, "window": 32, "fill": (100, 110, 120)}
            moved, back = move(pictures[[i]], **options)[0], there_and_back(pictures[[i]], **options)
            for shown, distance, probability in (
                (moved, result.distance, result.probability), (back, result.control, result.control_probability)
            ):  # fmt: skip
                features, q = look(shown)
                for layer in layers:
                    expected = float((features[layer] - still[layer]).norm())
                    assert float(distance[layer][i, t]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
                assert abs(probability[i, t] - q[result.target[i]]) < 1e-6
            assert result.correct[i, t] == (look(moved)[1].argmax() == result.target[i])
    for layer in layers:
        pairs = [(stills[i][0][layer] - stills[j][0][layer]).norm() for i, j in ((0, 1), (0, 2), (1, 2))]
        assert result.different[layer] == pytest.approx(float(sum(pairs)) / 3, rel=1e-6)
        torch.testing.assert_close(result.normalised(layer), result.distance[layer] / result.different[layer])
    assert result.distance["relu1"][:, 0].eq(0).all()


def test_a_ramp_moves_linearly_and_a_jump_does_not():
    """Known answer: a picture whose brightness rises by 2 a row; shifted by v, all pixels differ by 2 v."""
    side, window = 64, 32
    ramp = (2 * torch.arange(side)).to(torch.uint8)[:, None].expand(3, side, side)
    pictures = torch.stack([ramp, 128 + 0 * ramp])
    values = [-8.0, -4.0, -1.0, 0.0, 2.0, 8.0]
    result = invariance(pixels_model(window), pictures, "shift", values, layers=["1"], window=window)
    expected = torch.tensor([abs(v) for v in values]) * 2 * (3 * window * window) ** 0.5
    torch.testing.assert_close(result.distance["1"][0], expected)
    assert result.distance["1"][1].eq(0).all() and result.control["1"].eq(0).all()
    assert result.linearity("1") == pytest.approx(1.0)
    with_jump = invariance(pixels_model(window), noise(2, side), "shift", values, layers=["1"], window=window)
    assert with_jump.linearity("1") < 0


def test_symmetric_pictures_have_peaks_and_round_ones_do_not():
    side = 65
    y, x = np.mgrid[:side, :side] - side // 2
    square = (np.maximum(abs(x), abs(y)) < 18) * 255
    bar = ((abs(x) < 20) & (abs(y) < 8)) * 255
    disc = 255 * np.clip(20 - np.hypot(x, y), 0, 1)
    pictures = torch.stack(
        [torch.from_numpy(np.round(p).astype(np.uint8)).expand(3, -1, -1) for p in (square, bar, disc)]
    )
    result = invariance(pixels_model(side), pictures, "rotation", layers=["1"], interpolation="bilinear")
    four, two = result.symmetry("1"), result.symmetry("1", 2)
    assert result.distance["1"][0, [9, 18, 27]].eq(0).all()  # a square after quarter turns
    assert result.distance["1"][1, 18] == 0 and result.distance["1"][1, 9] > 0
    assert four[0] > 0.3 and two[1] > 0.5 and four[2] < 0.1 and abs(two[2]) < 0.02
    table = result.table()
    assert len(table) == 3 * 36
    line = table[(table.picture == 1) & (table.value == 90)].iloc[0]
    assert line.distance == pytest.approx(float(result.distance["1"][1, 9]))
    assert line.normalised == pytest.approx(line.distance / result.different["1"])
    with pytest.raises(ZfkitError, match="symmetry of order 4 needs angles 45 to 315"):
        invariance(pixels_model(side), pictures, "rotation", [0, 90, 180], layers=["1"]).symmetry("1")
    with pytest.raises(ZfkitError, match="symmetry is of rotations, and this is a shift"):
        invariance(pixels_model(side), pictures, "shift", [0], layers=["1"]).symmetry("1")


def test_windows_of_one_photograph_that_overlap_are_not_different_pictures(tiny):
    pictures = noise(4, 32)
    windows = Windows(
        torch.tensor([0, 0, 0, 1]),
        torch.tensor([[0, 0, 9, 9], [5, 5, 9, 9], [20, 20, 30, 30], [0, 0, 9, 9.0]]),
    )
    shown = image_set(pictures, windows=windows)
    result = invariance(tiny, shown, values=[0], layers=["conv1"])
    features = tiny.net[:1](tiny.preprocess(pictures)).flatten(1).detach()
    pairs = [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    expected = sum(float((features[i] - features[j]).norm()) for i, j in pairs) / 5
    assert result.different["conv1"] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ImageError, match="overlapping windows of one photograph"):
        invariance(tiny, shown, values=[0], index=[0, 1])


def test_classes_from_names_labels_or_the_model(tiny):
    pictures = noise(3, 32)
    labelled = image_set(pictures, range(3), ["e", "zebra", "b"])
    result = invariance(tiny, labelled, values=[0])
    own = tiny.net(tiny.preprocess(pictures)).argmax(1)
    assert result.target.tolist() == [4, int(own[1]), 1]
    assert result.target_from == ("label", "model", "label")
    named = invariance(tiny, labelled, values=[0], targets=["c", 0, None])
    assert named.target.tolist() == [2, 0, int(own[2])]
    assert named.target_from == ("named", "named", "model")
    part = invariance(tiny, labelled, values=[0], index=[2, 0])
    assert part.target.tolist() == [1, 4] and part.picture.tolist() == [2, 0]


def test_the_papers_layers_in_other_networks(tiny):
    assert paper_layers(tiny) == ("relu1", "relu5", "relu7")
    head = nn.Flatten(), nn.Dropout(), nn.Linear(64, 2)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), *head)
    assert paper_layers(zfkit.wrap_model(plain, mean=0, scale=1, input_size=8)) == ("0", "1", "1")


def test_the_bundled_network_is_less_moved_in_its_high_layer(zfnet64, photos64):
    """The paper's claim in its weakest form: of a shift by 2 px, layer 7 keeps more than layer 1 does."""
    small = photos64.take(range(0, len(photos64), 60)).double()
    pictures = nn.functional.interpolate(small, 80, mode="bicubic").clamp(0, 255).to(torch.uint8)
    result = invariance(zfnet64, pictures, "shift", [2.0])
    assert result.invented.eq(0).all()
    assert result.normalised("relu7").mean() < 0.7 * result.normalised("relu1").mean()


# ----------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("options, kind, message", [
    ({"motion": "flip"}, ZfkitError, "there is no motion 'flip'"),
    ({"interpolation": "cubic"}, ZfkitError, "Did you mean 'bicubic'?"),
    ({"window": 41}, ImageError, "pictures of 40 x 40 px are smaller than the window of 41 px"),
    ({"oversample": 2}, ImageError, "smaller than the window of 64 px"),
    ({"oversample": 0}, ZfkitError, "oversample"),
    ({"values": [float("nan")]}, ZfkitError, "values must be a list of finite numbers"),
    ({"values": 3}, ZfkitError, "values must be a list of finite numbers"),
    ({"motion": "scale", "values": [0.5]}, ZfkitError, "scale 0.5 would shrink the picture"),
    ({"index": [1]}, ImageError, "at least 2 pictures are needed"),
    ({"index": [0, 3]}, ImageError, "index must name different pictures, 0 to 2"),
    ({"index": [0, 0]}, ImageError, "index must name different pictures"),
    ({"layers": ["conv9"]}, LayerError, "there is no layer 'conv9'"),
    ({"layers": []}, LayerError, "no layer was named"),
    ({"targets": [0]}, ZfkitError, "targets must name a class for each of 3 pictures"),
    ({"targets": [0, 1, "z"]}, ZfkitError, "there is no class 'z'"),
    ({"fill": "grey"}, ImageError, "there is no fill 'grey'"), ({"fill": -1}, ImageError, "fill"),
])  # fmt: skip
def test_bad_input_is_refused(tiny, options, kind, message):
    with pytest.raises(kind, match=message.replace("?", r"\?")):
        invariance(tiny, noise(3, 40), **options)


def test_pictures_and_networks_of_another_kind_are_refused(tiny):
    with pytest.raises(ImageError, match=r"expected uint8 pictures .*got float32"):
        invariance(tiny, noise(3, 40).float())
    with pytest.raises(LayerError, match="cannot run to relu1, relu7, fc8 on images of 40 x 40 px"):
        invariance(tiny, noise(3, 40), window=40)
    blind = zfkit.wrap_model(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), mean=0, scale=1, input_size=8)
    with pytest.raises(ModelError, match="one number per class was expected"):
        invariance(blind, noise(3, 8))
    with pytest.raises(LayerError, match=r"those looked at 'conv2'.*relu1, relu7"):
        invariance(tiny, noise(2, 32), values=[0]).normalised("conv2")


# ------------------------------------------------------------------------------------------ widget and figure


def test_the_widget_says_what_the_function_says(tiny):
    pictures = noise(4, 40, random_seed=3)
    widget = zfkit.widgets.explore_invariance(tiny, pictures, index=[2, 0, 3])
    try:
        assert widget.wait()
        result = invariance(tiny, pictures, "rotation", [40.0], index=[2, 0, 3])
        widget.choice.value = 1
        widget.sliders["shift"].value = 5
        widget.sliders["rotation"].value = 40  # puts the shift back
        assert widget.wait()
        assert widget.sliders["shift"].value == 0 and widget.state.motion == "rotation"
        measured = widget.measure(widget.state)
        for layer in result.layers:
            assert float(measured.distance[layer][0, 0]) == pytest.approx(float(result.distance[layer][1, 0]))
            shown = float(result.normalised(layer)[1, 0])
            assert f">{shown:.2f}<" in widget.distances.value
        name = result.classes[int(result.target[1])]
        whole, now = result.whole_probability[1], result.probability[1, 0]
        told = f"P({name}) {whole:.2f} untransformed, {now:.2f} now"
        assert told in widget.words.value
        widget.set(motion="shift", value=17.0)
        assert widget.wait() and "% of the picture is filled in" in widget.words.value
        assert widget.errors == []
    finally:
        widget.close()
    with pytest.raises(ImageError, match="at least 2 pictures"):
        zfkit.widgets.explore_invariance(tiny, pictures, index=[0])


def test_the_chart_draws_the_curves(tiny):
    from zfkit.figures import invariance_figure

    result = invariance(tiny, noise(3, 40), "scale", [1, 1.5])
    chart = invariance_figure([result], examples=[2], names=["third"])
    lines = {t.name: t for t in chart.select_traces(row=1, col=2) if t.name}
    assert list(lines["third"].x) == [1, 1.5]
    expected = result.normalised("relu7")
    np.testing.assert_allclose(lines["third"].y, expected[2])
    np.testing.assert_allclose(lines["mean of 3"].y, expected.mean(0))
    np.testing.assert_allclose(lines["resampling alone"].y, result.normalised("relu7", control=True).mean(0))
    assert "third" in lines["third"].hovertemplate and "scale, times: %{x" in lines["third"].hovertemplate
    high = [chart.get_subplot(1, column).yaxis.range for column in (1, 2)]
    assert high[0] == high[1], "layers share one scale"
