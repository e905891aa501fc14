"""Motions against PIL, slices and closed forms; distances against a loop with hooks."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import TINY
from torch import nn

import zfkit
from zfkit.errors import ImageError, LayerError, ModelError, ZfkitError
from zfkit.experiments.invariance import default_layers, default_values, margin, move, there_and_back
from zfkit.images.imageset import ImageSet, Windows
from zfkit.nets.paper import build


def noise(N, H, W=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (N, 3, H, W or H), generator=generator, dtype=torch.uint8)


def smooth(N, side, seed=0):
    """Pictures without fine detail, which resampling changes little."""
    waves = torch.nn.functional.interpolate(noise(N, 4, seed=seed).double(), side, mode="bicubic")
    return waves.clamp(0, 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    net = build(TINY).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(
                torch.randn(parameter.shape) / (parameter[0].numel() if parameter.dim() > 1 else 4) ** 0.5
            )
    return zfkit.wrap_model(net, mean=[100, 110, 120], scale=0.02, input_size=32, classes=list("abcde"))


def pixels_model(side, classes=2):
    """Layer "1" is the picture itself; the classes are its left and right half's mean brightness."""
    net = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.Identity(), nn.Flatten(), nn.Linear(3 * side * side, classes, bias=False)
    )
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3)[:, :, None, None])
        net[0].bias.zero_()
    return zfkit.wrap_model(net.double(), mean=0, scale=1, input_size=side)


# ------------------------------------------------------------------------------------------------- motions


@settings(max_examples=40, deadline=None)
@given(
    st.integers(4, 9),
    st.integers(0, 4),
    st.integers(-6, 6),
    st.sampled_from(["bilinear", "bicubic", "nearest"]),
)
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
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_quarter_turns_copy_pixels(side, interpolation):
    pictures = noise(2, side)
    for quarters in range(-5, 6):
        moved, beyond = move(pictures, "rotation", 90.0 * quarters, side, interpolation=interpolation)
        assert torch.equal(moved, torch.rot90(pictures, quarters, (2, 3)))
        assert beyond == 0


@pytest.mark.parametrize("side", [40, 41])
@pytest.mark.parametrize("angle", [10.0, 33.0, 120.0, 205.0, 350.0])
@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_rotation_equals_pillow(side, angle, name):
    picture = smooth(1, side)
    moved, _ = move(picture, "rotation", angle, side, interpolation=name, fill=(0, 0, 0))
    theirs = Image.fromarray(picture[0].permute(1, 2, 0).numpy()).rotate(
        angle, Image.Resampling[name.upper()]
    )
    ours, theirs = moved[0].permute(1, 2, 0).numpy().astype(int), np.asarray(theirs).astype(int)
    middle = np.hypot(*(np.indices((side, side)) - (side - 1) / 2)) < side / 2 - 2
    # Pillow's cubic has another constant and it truncates: 3 of 255 on smooth pictures
    assert np.abs(ours - theirs)[middle].max() <= 3


@pytest.mark.parametrize("scale", [1.3, 1.8])
def test_scale_equals_pillow(scale):
    side = 48
    picture = smooth(1, side, seed=2)
    moved, beyond = move(picture, "scale", scale, side, interpolation="bilinear")
    half = side / scale / 2
    box = (side / 2 - half, side / 2 - half, side / 2 + half, side / 2 + half)
    theirs = Image.fromarray(picture[0].permute(1, 2, 0).numpy()).resize(
        (side, side), Image.Resampling.BILINEAR, box=box
    )
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
        big = noise(1, side, seed=side)
        start = (side - 128) // 2
        for value in (-5, 0, 3):
            cut = big[:, :, start - 2 * value : start - 2 * value + 128, start : start + 128].double()
            means = cut.reshape(1, 3, 64, 2, 64, 2).mean((3, 5)).round()
            assert torch.equal(move(big, "shift", value, 64, oversample=2)[0], means.to(torch.uint8))


def test_there_and_back_is_in_place():
    pictures = smooth(2, 60, seed=5)
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
    pictures = noise(3, 40, seed=1)
    layers = ["relu1", "conv3", "fc7", "relu7"]
    found = zfkit.invariance(
        tiny, pictures, "rotation", [0.0, 25.0, 180.0], layers=layers, batch_size=2, progress=False
    )
    caught = {}
    handles = [
        tiny.net.get_submodule(n).register_forward_hook(lambda m, i, o, n=n: caught.__setitem__(n, o.clone()))
        for n in ("conv1", "conv3", "fc7")
    ]

    def look(picture):
        with torch.no_grad():
            p = tiny.net(tiny.preprocess(picture)).softmax(1)[0]
        features = {n: v.flatten() for n, v in caught.items()}
        return {
            "relu1": features["conv1"].relu(), "conv3": features["conv3"], "fc7": features["fc7"],
            "relu7": features["fc7"].relu(),
        }, p  # fmt: skip

    stills = [look(pictures[i, :, 4:36, 4:36]) for i in range(3)]
    for i in range(3):
        still, p = stills[i]
        assert found.target[i] == p.argmax() and found.target_from[i] == "model"
        assert abs(found.whole_probability[i] - p.max()) < 1e-6
        for t, angle in enumerate([0.0, 25.0, 180.0]):
            moved = move(pictures[i : i + 1], "rotation", angle, 32, fill=(100, 110, 120))[0]
            back = there_and_back(pictures[i : i + 1], "rotation", angle, 32, fill=(100, 110, 120))
            for picture, distance, probability in (
                (moved, found.distance, found.probability), (back, found.control, found.control_probability)
            ):  # fmt: skip
                features, q = look(picture)
                for layer in layers:
                    expected = float((features[layer] - still[layer]).norm())
                    assert float(distance[layer][i, t]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
                assert abs(probability[i, t] - q[found.target[i]]) < 1e-6
            assert found.correct[i, t] == (look(moved)[1].argmax() == found.target[i])
    for layer in layers:
        pairs = [
            float((stills[i][0][layer] - stills[j][0][layer]).norm()) for i, j in ((0, 1), (0, 2), (1, 2))
        ]
        assert found.different[layer] == pytest.approx(sum(pairs) / 3, rel=1e-6)
        torch.testing.assert_close(found.normalised(layer), found.distance[layer] / (sum(pairs) / 3))
    for handle in handles:
        handle.remove()
    assert found.distance["relu1"][:, 0].eq(0).all()


def test_a_ramp_moves_linearly_and_a_jump_does_not():
    """Known answer: a picture whose brightness rises by 2 a row; shifted by v, all pixels differ by 2 v."""
    side, window = 64, 32
    ramp = (2 * torch.arange(side)).to(torch.uint8)[:, None].expand(3, side, side)
    pictures = torch.stack([ramp, 128 + 0 * ramp])
    values = [-8.0, -4.0, -1.0, 0.0, 2.0, 8.0]
    found = zfkit.invariance(
        pixels_model(window), pictures, "shift", values, layers=["1"], window=window, progress=False
    )
    expected = torch.tensor([abs(v) for v in values]) * 2 * (3 * window * window) ** 0.5
    torch.testing.assert_close(found.distance["1"][0], expected)
    assert found.distance["1"][1].eq(0).all() and found.control["1"].eq(0).all()
    assert found.linearity("1") == pytest.approx(1.0)
    with_jump = zfkit.invariance(
        pixels_model(window), noise(2, side), "shift", values, layers=["1"], window=window, progress=False
    )
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
    found = zfkit.invariance(
        pixels_model(side), pictures, "rotation", layers=["1"], interpolation="bilinear", progress=False
    )
    four, two = found.symmetry("1"), found.symmetry("1", 2)
    assert found.distance["1"][0, [9, 18, 27]].eq(0).all()  # a square after quarter turns
    assert found.distance["1"][1, 18] == 0 and found.distance["1"][1, 9] > 0
    assert four[0] > 0.3 and two[1] > 0.5 and four[2] < 0.1 and abs(two[2]) < 0.02
    table = found.table()
    assert len(table) == 3 * 36
    line = table[(table.picture == 1) & (table.value == 90)].iloc[0]
    assert line.distance == pytest.approx(float(found.distance["1"][1, 9]))
    assert line.normalised == pytest.approx(line.distance / found.different["1"])
    with pytest.raises(ZfkitError, match="symmetry of order 4 needs angles from 45 to 315"):
        zfkit.invariance(
            pixels_model(side), pictures, "rotation", [0, 90, 180], layers=["1"], progress=False
        ).symmetry("1")
    with pytest.raises(ZfkitError, match="symmetry is of rotations, and this is a shift"):
        zfkit.invariance(pixels_model(side), pictures, "shift", [0], layers=["1"], progress=False).symmetry(
            "1"
        )


def test_windows_of_one_photograph_that_overlap_are_not_different_pictures(tiny):
    pictures = noise(4, 32)
    windows = Windows(
        torch.tensor([0, 0, 0, 1]),
        torch.tensor([[0, 0, 9, 9], [5, 5, 9, 9], [20, 20, 30, 30], [0, 0, 9, 9.0]]),
    )
    shown = ImageSet(
        lambda i: (Image.fromarray(pictures[i].permute(1, 2, 0).numpy()), -1),
        list("wxyz"),
        size=32,
        windows=windows,
    )
    found = zfkit.invariance(tiny, shown, values=[0], layers=["conv1"], progress=False)
    features = tiny.net[:1](tiny.preprocess(pictures)).flatten(1).detach()
    pairs = [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    expected = sum(float((features[i] - features[j]).norm()) for i, j in pairs) / 5
    assert found.different["conv1"] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ImageError, match="overlapping windows of one photograph"):
        zfkit.invariance(tiny, shown, values=[0], index=[0, 1], progress=False)


def test_classes_from_names_labels_or_the_model(tiny):
    pictures = noise(3, 32)
    labelled = ImageSet(
        lambda i: (Image.fromarray(pictures[i].permute(1, 2, 0).numpy()), i),
        list("xyz"),
        size=32,
        classes=["e", "zebra", "b"],
    )
    found = zfkit.invariance(tiny, labelled, values=[0], progress=False)
    own = tiny.net(tiny.preprocess(pictures)).argmax(1)
    assert found.target.tolist() == [4, int(own[1]), 1]
    assert found.target_from == ("label", "model", "label")
    named = zfkit.invariance(tiny, labelled, values=[0], targets=["c", 0, None], progress=False)
    assert named.target.tolist() == [2, 0, int(own[2])]
    assert named.target_from == ("named", "named", "model")
    part = zfkit.invariance(tiny, labelled, values=[0], index=[2, 0], progress=False)
    assert part.target.tolist() == [1, 4] and part.picture.tolist() == [2, 0]


def test_default_layers_are_the_papers_one_and_seven(tiny):
    assert default_layers(tiny) == ("relu1", "relu7")
    plain = zfkit.wrap_model(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Dropout(), nn.Linear(64, 2)),
        mean=0, scale=1, input_size=8,
    )  # fmt: skip
    assert default_layers(plain) == ("0", "1")


def test_the_bundled_network_is_less_moved_in_its_high_layer():
    """The paper's claim in its weakest form: of a shift by 2 px, layer 7 keeps more than layer 1 does."""
    model = zfkit.load_model("zfnet64", device="cpu")
    photos = zfkit.load_images("photos", size=100, progress=False)
    found = zfkit.invariance(model, photos, "shift", [2.0], index=range(0, len(photos), 60), progress=False)
    assert found.invented.eq(0).all()
    assert found.normalised("relu7").mean() < 0.7 * found.normalised("relu1").mean()


# ----------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"motion": "flip"}, ZfkitError, "there is no motion 'flip'"),
        (
            {"interpolation": "cubic"},
            ZfkitError,
            "there is no interpolation 'cubic'. Did you mean 'bicubic'?",
        ),
        ({"window": 0}, ZfkitError, "window must be a whole number of pixels, not 0"),
        ({"window": 41}, ImageError, "pictures of 40 x 40 px are smaller than the window of 41 px"),
        ({"oversample": 2}, ImageError, "pictures of 40 x 40 px are smaller than the window of 64 px"),
        ({"oversample": 0}, ZfkitError, "oversample must be a whole number of at least 1"),
        ({"values": []}, ZfkitError, "values must be a list of finite numbers (px down), not []"),
        ({"values": [float("nan")]}, ZfkitError, "values must be a list of finite numbers"),
        ({"values": 3}, ZfkitError, "values must be a list of finite numbers (px down), not 3"),
        ({"motion": "scale", "values": [0.5]}, ZfkitError, "scale 0.5 would shrink the picture"),
        ({"index": [1]}, ImageError, "at least 2 pictures are needed"),
        ({"index": [0, 3]}, ImageError, "index must name different pictures, 0 to 2, not [0, 3]"),
        ({"index": [0, 0]}, ImageError, "index must name different pictures"),
        ({"layers": ["conv9"]}, LayerError, "there is no layer 'conv9'"),
        ({"layers": []}, LayerError, "no layer was named"),
        ({"targets": [0]}, ZfkitError, "targets must name one class for each of the 3 pictures"),
        ({"targets": [0, 1, 5]}, ZfkitError, "class 5 does not exist"),
        ({"targets": [0, 1, "z"]}, ZfkitError, "there is no class 'z'"),
        ({"fill": "grey"}, ImageError, "there is no fill 'grey'"),
        ({"fill": -1}, ImageError, "fill must be one number or three (RGB) within 0-255"),
        ({"batch_size": 0}, ZfkitError, "batch_size must be a whole number"),
    ],
)
def test_bad_input_is_told(tiny, options, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        zfkit.invariance(tiny, noise(3, 40), progress=False, **options)


def test_pictures_and_networks_of_another_kind_are_told(tiny):
    with pytest.raises(ImageError, match="expected uint8 RGB pictures"):
        zfkit.invariance(tiny, noise(3, 40).float(), progress=False)
    with pytest.raises(LayerError, match="cannot run to relu1, relu7, fc8 on images of 40 x 40 px"):
        zfkit.invariance(tiny, noise(3, 40), window=40, progress=False)
    blind = zfkit.wrap_model(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), mean=0, scale=1, input_size=8)
    with pytest.raises(ModelError, match="one number per class was expected"):
        zfkit.invariance(blind, noise(3, 8), progress=False)
    with pytest.raises(LayerError, match="layer 'conv2' was not looked at; there are relu1, relu7"):
        zfkit.invariance(tiny, noise(2, 32), values=[0], progress=False).normalised("conv2")


# ------------------------------------------------------------------------------------------ widget and figure


def test_the_widget_says_what_the_function_says(tiny):
    pictures = noise(4, 40, seed=3)
    widget = zfkit.widgets.explore_invariance(tiny, pictures, index=[2, 0, 3])
    try:
        assert widget.wait()
        found = zfkit.invariance(tiny, pictures, "rotation", [40.0], index=[2, 0, 3], progress=False)
        widget.choice.value = 1
        widget.sliders["shift"].value = 5
        widget.sliders["rotation"].value = 40  # puts the shift back
        assert widget.wait()
        assert widget.sliders["shift"].value == 0 and widget.state.motion == "rotation"
        measured = widget.measure(widget.state)
        for layer in found.layers:
            assert float(measured.distance[layer][0, 0]) == pytest.approx(float(found.distance[layer][1, 0]))
            shown = float(found.normalised(layer)[1, 0])
            assert f">{shown:.2f}<" in widget.distances.value
        name = found.classes[int(found.target[1])]
        told = f"P({name}) {found.whole_probability[1]:.2f} untransformed, {found.probability[1, 0]:.2f} now"
        assert told in widget.words.value
        widget.set(motion="shift", value=17.0)
        assert widget.wait() and "% of the picture is filled in" in widget.words.value
        assert widget.errors == []
    finally:
        widget.close()
    with pytest.raises(ImageError, match="at least 2 pictures"):
        zfkit.widgets.explore_invariance(tiny, pictures, index=[0])


def test_the_figure_draws_the_curves(tiny):
    from matplotlib import pyplot as plt

    from zfkit.figures.experiments import invariance_figure

    found = zfkit.invariance(tiny, noise(3, 40), "scale", [1, 1.5], progress=False)
    figure = invariance_figure([found], examples=[2], names=["third"])
    lines = figure.axes[1].get_lines()
    torch.testing.assert_close(
        torch.as_tensor(np.asarray(lines[0].get_ydata())), found.normalised("relu7")[2], check_dtype=False
    )
    torch.testing.assert_close(
        torch.as_tensor(np.asarray(lines[-1].get_ydata())),
        found.normalised("relu7").mean(0),
        check_dtype=False,
    )
    plt.close(figure)
