"""Sign changes against loops with hooks, and sets whose answer is known."""

import itertools
import math
import re
from functools import partial

import pytest
import torch
from tiny import hooked, noise
from torch import nn

import zfkit
from zfkit.errors import ImageError, LayerError, ZfkitError
from zfkit.experiments import part_pictures
from zfkit.experiments.correspondence import RANDOM, SAME_PLACE

correspondence = partial(zfkit.correspondence, progress=False)


BOXES = {
    "eye": [[2, 3, 9, 8], [20, 4, 27, 9], [5, 20, 12, 25], [1, 1, 8, 6]],
    "ear": [[20, 20, 30, 31], None, [0, 0, 10, 11], [22, 10, 32, 21]],
}


def literal_distances(model, pictures, boxes, layer, colour, tolerance=1e-5):
    """By the formula: eps, signs and their Hamming distance, one feature after the other."""

    def look(x):
        with hooked(model, [layer]) as outputs, torch.no_grad():
            model.net(x)
        return outputs[layer].flatten().tolist()

    stills = [look(model.preprocess(p)) for p in pictures]
    rounding = tolerance * max(abs(v) for still in stills for v in still)
    signs = {}
    for i, box in enumerate(boxes):
        if box is not None:
            x = model.preprocess(pictures[i])
            x[0, :, box[1] : box[3], box[0] : box[2]] = colour
            eps = [a - b for a, b in zip(stills[i], look(x), strict=True)]
            signs[i] = [0 if abs(e) <= rounding else math.copysign(1, e) for e in eps]
    distances = {
        (i, j): sum(a != b for a, b in zip(signs[i], signs[j], strict=True)) / len(signs[i])
        for i, j in itertools.permutations(signs, 2)
    }
    zeros = [s.count(0) / len(s) for s in signs.values()]
    return distances, sum(zeros) / len(zeros)


@pytest.mark.parametrize("fill", [None, 200])
def test_equals_the_formula_feature_by_feature(tiny, fill):
    pictures, layers = noise(4, 32), ["relu1", "pool5", "relu7"]
    result = correspondence(tiny, pictures, BOXES, layers=layers, draws=2, fill=fill, batch_size=3)
    mean = torch.tensor([100.0, 110.0, 120.0]).double()
    colour = torch.zeros(3, 1, 1) if fill is None else ((fill - mean) * 0.02)[:, None, None]
    for layer in layers:
        for part, boxes in BOXES.items():
            expected, zeros = literal_distances(tiny, pictures, boxes, layer, colour)
            for i, j in itertools.product(range(4), repeat=2):
                value = float(result.pairs[layer, part][i, j])
                assert value == pytest.approx(expected.get((i, j), math.nan), abs=1e-6, nan_ok=True)
            assert result.score(layer, part) == pytest.approx(sum(expected.values()) / len(expected))
            assert result.unchanged[layer, part] == pytest.approx(zeros)
            spread = torch.tensor(list(expected.values()), dtype=torch.float64).std()
            assert result.spread(layer, part) == pytest.approx(float(spread), rel=1e-6)


def test_standard_error_leaves_out_one_group_after_the_other(tiny):
    """The jackknife: of single pictures where there are no groups."""
    for groups in (None, [0, 0, 1, 2, 2, 2]):
        boxes = {"eye": [[i, 2 * i, i + 9, 2 * i + 8] for i in range(6)]}
        result = correspondence(tiny, noise(6, 32), boxes, groups=groups, layers=["relu5"], draws=1)
        values, of = result.pairs["relu5", "eye"], groups or list(range(6))
        assert all(values[i, j].isnan() == (of[i] == of[j]) for i, j in itertools.product(range(6), repeat=2))
        means = []
        for out in sorted(set(of)):
            across = [p for p in itertools.permutations(range(6), 2) if of[p[0]] != of[p[1]]]
            kept = [float(values[i, j]) for i, j in across if out not in (of[i], of[j])]
            means.append(sum(kept) / len(kept))
        n, middle = len(means), sum(means) / len(means)
        expected = ((n - 1) / n * sum((m - middle) ** 2 for m in means)) ** 0.5
        assert result.error("relu5", "eye") == pytest.approx(expected)
    two = correspondence(tiny, noise(6, 32), boxes, groups=[0, 0, 0, 1, 1, 1], layers=["relu5"], draws=1)
    assert math.isnan(two.error("relu5", "eye"))  # two things have no spread to judge by


# --------------------------------------------------------------------------------- sets with a known answer


def pooled_model(maps=400, side=24, random_seed=0):
    """Features are sums over all places of linear filters: what a part does to them is its own, wherever it lies."""
    torch.manual_seed(random_seed)
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(maps, 2)
    net = nn.Sequential(nn.Conv2d(3, maps, 1, bias=False), *pooled)
    return zfkit.wrap_model(net.double().eval(), mean=128, scale=1 / 58, input_size=side)


def test_the_same_part_at_other_places_agrees_and_random_parts_do_not():
    """Known answer: eps is the part's own, so equal parts have distance 0; unrelated ones differ in half the signs."""
    pictures = noise(6, 24)
    part = noise(1, 5, random_seed=9)[0]
    places = [(0, 0), (19, 3), (7, 11), (2, 18), (13, 13), (5, 2)]
    for picture, (left, top) in zip(pictures, places, strict=True):
        picture[:, top : top + 5, left : left + 5] = part
    boxes = torch.tensor([[x, y, x + 5, y + 5] for x, y in places])
    result = correspondence(pooled_model(), pictures, {"part": boxes}, layers=["2"], draws=30)
    assert result.score("2", "part") == 0 and result.relative("2", "part") == 0
    assert result.chance("2", "part") == 0 and result.chance("2", "part", SAME_PLACE) == 0
    # two random vectors a, b of 3 numbers: signs of a.w and b.w differ in angle / pi of all w, half on average
    for control in (RANDOM, SAME_PLACE):
        assert result.score("2", control) == pytest.approx(0.5, abs=0.06)
        assert result.relative("2", control) == pytest.approx(1.0, abs=0.12)


def pixels_model(side):
    """Its features, in layer "2", are the pixels' brightness."""
    net = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(side**2, 2))
    with torch.no_grad():
        net[0].weight.fill_(1 / 3)
    return zfkit.wrap_model(net.double().eval(), mean=0, scale=1 / 255, input_size=side)


def test_features_that_only_know_places_agree_at_the_same_place_alone():
    """Known answer: covering white at one place agrees there, whatever the part is."""
    model = pixels_model(20)
    white = torch.full((5, 3, 20, 20), 255, dtype=torch.uint8)
    boxes = torch.tensor([[4 * i, 0, 4 * i + 4, 4] for i in range(5)])  # nowhere the same
    result = correspondence(model, white, {"part": boxes}, layers=["2"], draws=12)
    assert result.score("2", "part") == pytest.approx(2 * 16 / 400)  # 16 pixels here, 16 there
    assert result.unchanged["2", "part"] == pytest.approx(1 - 16 / 400)
    assert result.moved["2", "part"] == pytest.approx((16 / 400) ** 0.5)
    p = 16 / 400
    assert result.relative("2", "part") == pytest.approx(2 * p / (1 - p**2 - (1 - p) ** 2))
    assert result.score("2", SAME_PLACE) == 0
    assert 0 < result.score("2", RANDOM) <= 2 * 16 / 400
    assert result.chance("2", "part", SAME_PLACE) == 1


def test_controls_lie_in_the_object_and_have_the_parts_sizes():
    """Covered pixels are read off a network whose features are the pixels."""
    model = pixels_model(30)
    white = torch.full((3, 3, 30, 30), 255, dtype=torch.uint8)
    objects = torch.tensor([[0, 0, 12, 14], [10, 12, 22, 26], [18, 16, 30, 30]])
    parts = {"wide": objects[:, [0, 1, 0, 1]] + torch.tensor([0, 0, 6, 2])}
    result = correspondence(model, white, parts, objects=objects, layers=["2"], draws=40, random_seed=3)
    # Objects 0 and 2 do not meet, so their controls never do: 2 x 12 pixels differ. Always 6 x 2 are covered.
    for control in (RANDOM, SAME_PLACE):
        values = result.controls["2", control]
        assert values.shape == (40, 3, 3)
        assert (values[:, 0, 2] * 900).round().eq(24).all()
        assert result.unchanged["2", control] == pytest.approx(1 - 12 / 900)
    again = correspondence(model, white, parts, objects=objects, layers=["2"], draws=40, random_seed=3)
    assert torch.allclose(again.controls["2", RANDOM], result.controls["2", RANDOM], equal_nan=True)


def test_table_has_parts_then_controls(tiny):
    result = correspondence(tiny, noise(4, 32), BOXES, draws=4)
    assert result.layers == ("relu5", "relu7")
    table = result.table()
    assert table.part.tolist() == ["eye", "ear", RANDOM, SAME_PLACE] * 2
    line = table[(table.layer == "relu7") & (table.part == "ear")].iloc[0]
    assert line.score == result.score("relu7", "ear") and line.error == result.error("relu7", "ear")
    scores = [float(d[~d.isnan()].mean()) for d in result.controls["relu7", RANDOM]]
    assert line.below_random == sum(s <= line.score for s in scores) / 4
    assert math.isnan(table[table.part == RANDOM].below_random.iloc[0])


# ------------------------------------------------------------------------------------------ bundled pictures


@pytest.mark.parametrize(("kind", "objects"), [("faces", 3), ("animals", 11), ("coins", 20)])
def test_bundled_parts_lie_in_their_objects(kind, objects):
    result = part_pictures(kind, size=64, views=3)
    N = 3 * objects
    assert result.pictures.shape == (N, 3, 64, 64)
    assert result.groups.tolist() == sorted(list(range(objects)) * 3)
    assert len(result.names) == N
    for name, boxes in result.parts.items():
        seen = ~boxes[:, 0].isnan()
        assert seen.sum() >= 2 * objects
        centre = (boxes[:, :2] + boxes[:, 2:])[seen] / 2
        assert (centre > result.objects[seen, :2]).all() and (centre < result.objects[seen, 2:]).all(), name
        assert (boxes[seen] >= 0).all() and (boxes[seen] <= 64).all()
    again = part_pictures(kind, size=64, views=3)
    assert torch.equal(result.pictures, again.pictures)


def test_bundled_boxes_show_what_they_are_called():
    """Measured on the photographs: pupils are darker than what surrounds them, the cat's nose is redder."""
    result = part_pictures("faces", size=224, views=2)
    light = result.pictures.double().mean(1)

    def mean(picture, box, grow=0):
        left, top, right, bottom = (int(v) for v in box)
        return picture[..., top - grow : bottom + grow, left - grow : right + grow]

    for i, name in enumerate(result.names):
        for part in ("right eye", "left eye"):
            box = result.parts[part][i]
            if box.isnan().any() or name.startswith("camera"):
                continue
            inner = mean(light[i], box)
            h, w = inner.shape
            middle = inner[h // 4 : -(h // 4), w // 4 : -(w // 4)]
            assert middle.min() < mean(light[i], box, 4).mean() - 40, (name, part)
        if name.startswith("chelsea"):
            nose = mean(result.pictures[i].double(), result.parts["nose"][i]).mean((1, 2))
            face = mean(result.pictures[i].double(), result.objects[i]).mean((1, 2))
            assert nose[0] / nose[2] > 1.15 * face[0] / face[2]


# ----------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"parts": [[0, 0, 1, 1]]}, ZfkitError, "parts must be a dictionary"),
        ({"parts": {"random": [[0, 0, 1, 1]] * 3}}, ZfkitError, "'random' is the name of a control"),
        ({"parts": {"eye": [[0, 0, 1]] * 3}}, ImageError, "3 pictures need 3 boxes of 'eye'"),
        ({"parts": {"eye": "abc"}}, ImageError, "3 pictures need 3 boxes of 'eye'"),
        (
            {"parts": {"eye": [[0, 0, 4, 4], [30, 2, 33, 5], [0, 0, 4, 4]]}},
            ImageError,
            "picture 1: the box of 'eye' (30, 2, 33, 5) is empty or not within the picture of 32 x 32 px",
        ),
        ({"parts": {"eye": [[0, 0, 4, 4], None, None]}}, ImageError, "part 'eye' is not to be seen in two"),
        ({"objects": [[0, 0, 9, 9], None, [0, 0, 9, 9]]}, ImageError, "every picture needs a box of its object"),
        ({"groups": [0, 1]}, ZfkitError, "groups must be one number for each of 3 pictures"),
        ({"groups": [4, 4, 4]}, ZfkitError, "all pictures are of one group"),
        ({"layers": ["relu9"]}, LayerError, "there is no layer 'relu9'"),
        ({"draws": 0}, ZfkitError, "draws"),
        ({"tolerance": -1}, ZfkitError, "tolerance"),
        ({"fill": 300}, ImageError, "fill"),
        ({"pictures": noise(1, 32)}, ImageError, "at least 2 pictures are needed to compare; there are 1"),
        ({"pictures": noise(3, 32).float()}, ImageError, "expected uint8 RGB pictures (N, 3, H, W)"),
        ({"pictures": noise(3, 40)}, LayerError, "cannot run to relu5, relu7 on images of 40 x 40 px"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(tiny, options, kind, message):
    options = {"pictures": noise(3, 32), "parts": {"eye": [[0, 0, 4, 4]] * 3}, "draws": 1} | options
    with pytest.raises(kind, match=re.escape(message)):
        correspondence(tiny, **options)


def test_what_was_not_measured_is_refused(tiny):
    result = correspondence(tiny, noise(4, 32), BOXES, draws=1)
    with pytest.raises(LayerError, match="looked at 'conv1'"):
        result.score("conv1", "eye")
    with pytest.raises(ZfkitError, match=r"there is no part 'ey'\. Did you mean 'eye'\?"):
        result.score("relu5", "ey")
    with pytest.raises(ZfkitError, match="there is no kind of pictures with parts 'dogs'"):
        part_pictures("dogs")


# ------------------------------------------------------------------------------------------ widget and figure


def test_boxes_drawn_by_hand_are_compared(tiny):
    pictures = noise(3, 32)
    widget = zfkit.widgets.explore_parts(tiny, pictures, ["eye", "ear"], draws=2)
    try:
        assert widget.parts == {"eye": [None] * 3, "ear": [None] * 3}
        for i in range(3):  # as a browser would: the canvas tells fractions of the picture
            widget.picture.value = i
            widget.picker.place.box = [i / 32, 0.25, (i + 8) / 32, 0.5]
        assert widget.parts["eye"] == [(i, 8, i + 8, 16) for i in range(3)]
        assert widget.parts["ear"] == [None] * 3
        widget.go.click()
        assert widget.wait()
        expected = correspondence(tiny, pictures, {"eye": widget.parts["eye"]}, draws=2)
        assert widget.found.score("relu5", "eye") == expected.score("relu5", "eye")
        assert f"{expected.score('relu5', 'eye'):.3f}" in widget.result.value
        widget.choose("eye", 1)
        assert widget.picker.place.box == [1 / 32, 0.25, 9 / 32, 0.5]
        widget.clear.click()
        assert widget.parts["eye"][1] is None and widget.picker.place.box == [0.0] * 4
        widget.next.click()
        assert widget.picture.value == 2
        assert widget.errors == []
        widget.draw("eye", 0, None)
        widget.compare()  # one box is left
        assert widget.wait() and "not to be seen in two pictures" in widget.errors[-1].message
        with pytest.raises(ImageError, match="is empty or not within 32 x 32 px"):
            widget.draw("eye", 0, (30, 0, 40, 5))
        with pytest.raises(ZfkitError, match="there is no part 'nose'"):
            widget.draw("nose", 0, (0, 0, 4, 5))
    finally:
        widget.close()


def test_the_widget_takes_boxes_to_begin_with(tiny):
    pictures = noise(4, 32)
    boxes = torch.tensor([[float("nan")] * 4 if b is None else [float(v) for v in b] for b in BOXES["ear"]])
    widget = zfkit.widgets.explore_parts(tiny, pictures, {"ear": boxes}, groups=[4, 4, 5, 6])
    assert "picture 0 is of group 4" in widget.words.value
    assert widget.parts == {"ear": [tuple(b) if b else None for b in BOXES["ear"]]}
    widget.compare()
    assert widget.wait() and not widget.errors
    widget.close()
    empty = zfkit.widgets.explore_parts(tiny, pictures, ["ear"]).compare()
    assert empty.wait() and "no box has been drawn yet" in empty.errors[-1].message
    empty.close()
    with pytest.raises(ZfkitError, match="parts must be different names"):
        zfkit.widgets.explore_parts(tiny, pictures, ["ear", "ear"])
    with pytest.raises(ImageError, match="expected at least 2 uint8 RGB pictures"):
        zfkit.widgets.explore_parts(tiny, pictures[:1], ["ear"])


def test_the_figure_draws_scores_and_draws(tiny):
    from matplotlib import pyplot as plt

    from zfkit.figures.experiments import correspondence_figure, parts_figure

    pictures = noise(4, 32)
    result = correspondence(tiny, pictures, BOXES, draws=3)
    chart = correspondence_figure(result)
    assert [words.text for words in chart.layout.annotations][1] == "mine relu7"
    shown = list(chart.select_traces(row=1, col=2))
    assert list(dict.fromkeys(y for t in shown for y in t.y)) == ["eye", "ear", RANDOM, SAME_PLACE]
    (draws,) = (t for t in shown if t.y[0] == RANDOM and len(t.x) == 3)
    scores = [float(d[~d.isnan()].mean()) for d in result.controls["relu7", RANDOM]]
    assert list(draws.x) == pytest.approx(scores)
    left, top, right, bottom = result.control_boxes[RANDOM][0, 0].tolist()
    assert draws.customdata[0].startswith(f"{left:.0f}, {top:.0f}; ")
    assert f"({right - left:.0f} x {bottom - top:.0f} px" in draws.customdata[0]
    figure = parts_figure(pictures, result.boxes)
    counted = [len(axes.patches) for axes in figure.axes[:4]]
    assert counted == [2, 1, 2, 2]  # the ear is not to be seen in the second
    plt.close(figure)
