"""Diagnosis: every number against a literal version of it, planted faults, healthy networks, bad input."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from planted import PLANTS, TRAININGS, plant, train_badly
from tiny import image_set, random_pixels
from torch import nn

import zfkit
from zfkit.health import FAULTS, Thresholds, diagnose, units_of
from zfkit.health.layers import Moments, Pairs, cosines
from zfkit.health.measure import measure
from zfkit.images.imageset import ImageSet
from zfkit.nets.paper import ARCHITECTURES, build


def pictures(count=24, size=16, classes=(), labels=None, random_seed=0):
    """Random pictures in colour."""
    return image_set(random_pixels(count, size, random_seed), labels, classes)


def network(seed=0, width=6, classes=4):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, width, 5, 2), nn.ReLU(), nn.Conv2d(width, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, classes),
    )  # fmt: skip
    for module in net:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.normal_(module.bias, 0, 0.1)
    return net.double()


def wrapped(net, **options):
    return zfkit.wrap_model(net, **{"mean": 127.5, "scale": 1 / 58, "input_size": 16} | options)


def measured(model, images, limit=None):
    return measure(model, images, limit, 7, 0, False)


# ------------------------------------------------------------------------------- numbers against literal ones


@given(
    st.integers(2, 9), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 4),
    st.sampled_from([0, 1e4]), st.integers(0, 99),
)  # fmt: skip
def test_spread_over_pictures_is_the_standard_deviation_unit_by_unit(count, shape, batch, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64) + offset
    moments = Moments()
    for part in x.split(batch):
        moments.add(part)
    assert moments.signal == pytest.approx(float(x.numpy().std(0).__pow__(2).mean() ** 0.5), rel=1e-6)
    assert moments.rms == pytest.approx(float(np.sqrt((x.numpy() ** 2).mean())), rel=1e-9)


@given(st.integers(2, 5), st.integers(2, 6), st.integers(1, 5), st.integers(0, 99))
def test_correlation_is_numpys(count, maps, places, seed):
    x = torch.randn(count, maps, places, generator=torch.Generator().manual_seed(seed)) + 3
    pairs = Pairs()
    for part in x.split(2):
        pairs.add(part)
    truth = np.corrcoef(x.transpose(0, 1).flatten(1).double().numpy())
    np.fill_diagonal(truth, 0)
    np.testing.assert_allclose(pairs.correlation().numpy(), truth, atol=1e-4)


def test_cosines_are_those_of_the_flattened_filters():
    weight = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    weight[2] = -2 * weight[0]
    weight[3] = 0
    found = cosines(weight)
    for i in range(5):
        for j in range(5):
            a, b = weight[i].flatten(), weight[j].flatten()
            truth = 0.0 if i == j or 3 in (i, j) else float(a @ b / a.norm() / b.norm())
            assert float(found[i, j]) == pytest.approx(truth, abs=1e-6)


def test_activity_signal_and_learning_of_a_small_network_are_what_torch_gives():
    net, images = network(), pictures(classes=list("abcd"), labels=[i % 4 for i in range(24)])
    m = measured(wrapped(net, classes=list("abcd")), images)
    x = (images.take(m.places).double() - 127.5) / 58
    outputs, y = [], x
    for module in net:
        y = module(y)
        outputs.append(y)
    assert list(m.layers) == ["0", "2", "6", "8"]
    for i in (0, 2, 6):
        name, z, relu = str(i), outputs[i], outputs[i + 1]
        layer, maps = m.layers[name], relu.reshape(24, relu.shape[1], -1)
        assert layer.rectified
        active = (maps.amax(2) > 0).double().mean(0)
        np.testing.assert_allclose(layer.active.numpy(), active.numpy(), atol=1e-6)
        np.testing.assert_allclose(layer.peak.numpy(), maps.amax((0, 2)).detach().numpy(), rtol=1e-5)
        spread = float(z.detach().numpy().std(0).__pow__(2).mean() ** 0.5)
        assert layer.signal == pytest.approx(spread, rel=1e-6)
        row = [m.places.index(i) for i in layer.best.tolist()]
        peaks = maps.amax(2)[row, torch.arange(maps.shape[1])]
        np.testing.assert_allclose(peaks.detach().numpy(), layer.peak.numpy(), rtol=1e-5)
    assert not m.layers["8"].rectified and m.layers["8"].last and m.layers["0"].first
    np.testing.assert_allclose(m.logits.numpy(), y.detach().numpy(), atol=1e-9)
    labels = torch.tensor([images[i][1] for i in m.places])
    assert torch.equal(m.labels, labels)
    net.requires_grad_(True)
    F.cross_entropy(net(x), labels).backward()
    for name in m.learning:
        weight = net[int(name)].weight
        change = 0.01 * float(weight.grad.norm()) / float(weight.detach().norm())
        assert m.learning[name] == pytest.approx(change, rel=1e-6)


def test_diagnosis_leaves_the_network_as_it_was():
    net = network().requires_grad_(False)
    before = {n: p.clone() for n, p in net.named_parameters()}
    state = torch.random.get_rng_state()
    report = diagnose(wrapped(net), pictures(), progress=False)
    assert torch.equal(state, torch.random.get_rng_state())
    for n, p in net.named_parameters():
        assert torch.equal(before[n], p) and not p.requires_grad and p.grad is None
    again = diagnose(wrapped(net), pictures(), progress=False, batch_size=5)
    first, second = ([(f.fault, f.layer, f.channels) for f in r.findings] for r in (report, again))
    assert first == second


# ------------------------------------------------------------------------------------------- one fault at a time


def alarms(net, images=None, **options):
    """(fault, layer) -> channels of the alarms."""
    report = diagnose(wrapped(net, **options), images or pictures(), progress=False)
    return {(f.fault, f.layer): f.channels for f in report.alarms}


def test_dead_weak_dominant_and_duplicate_maps_are_named():
    net = network(width=20)
    with torch.no_grad():
        net[0].bias[[3, 5, 7, 8, 11, 12]] = -1e3  # never active, though their filters are as they were
        net[0].weight[9] *= 1e-3
        net[2].weight[1] *= 20
        net[6].weight[4] = net[6].weight[2]
        net[6].bias[4] = net[6].bias[2]
    found = alarms(net)
    assert found["dead maps", "0"] == (3, 5, 7, 8, 11, 12)
    assert found["weak filters", "0"] == (9,)
    assert found["one filter dominates", "2"] == (1,)
    assert set(found["duplicates", "6"]) == {2, 4}
    assert ("weak filters", "2") not in found and ("dead maps", "2") not in found


def test_the_same_features_from_different_filters_are_duplicates_too():
    """Two filters that differ where the input is always 0: their weights disagree, their activations do not."""
    net = network(width=6)
    with torch.no_grad():
        net[0].weight[0] = 0
        net[0].bias[0] = -1.0  # map 0 is dead: what reads it is never used
        net[2].weight[3] = net[2].weight[1]
        net[2].bias[3] = net[2].bias[1]
        net[2].weight[3, 0] = 50.0
    report = diagnose(wrapped(net), pictures(), progress=False)
    (finding,) = report.find("duplicates", "2")
    assert set(finding.channels) == {1, 3} and "activations" in finding.told


def test_equal_filters_are_called_alike_not_duplicates():
    net = network()
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(0.01 if p.dim() > 1 else 0)
    found = alarms(net)
    assert {layer for fault, layer in found if fault == "filters all alike"} == {"0", "2", "6", "8"}
    assert not any(fault == "duplicates" for fault, _ in found)


def test_where_the_input_is_lost_is_the_layer_named():
    net = network()
    with torch.no_grad():
        net[2].bias.fill_(-80)
    report = diagnose(wrapped(net), pictures(), progress=False)
    assert next(f.layer for f in report.find("dead maps") if f.severity == "fault") == "2"
    assert report.find("input has no effect")[0].layer == "6"  # the first whose output does not vary
    assert report.find("one class for most")[0].number == 1.0


@pytest.mark.slow
def test_paper_initialisation_learns_from_the_papers_inputs_and_not_from_divided_ones(photos64):
    for scale, stuck in ((1.0, False), (1 / 58, True)):
        torch.manual_seed(0)
        model = wrapped(build(ARCHITECTURES["zfnet64"]), scale=scale, input_size=64)
        report = diagnose(model, photos64, limit=16, progress=False)
        assert bool(report.find("no learning signal")) is stuck
        assert report.find("input has no effect")  # neither has learned anything yet
        assert report.find("filters look like noise")


def test_numbers_that_are_not_finite_are_found_and_do_not_stop_the_rest():
    net = network()
    with torch.no_grad():
        net[2].weight[1, 0, 0, 0] = math.nan
        net[0].weight[2] = 0
        net[0].bias[2] = 0
    found = alarms(net)
    assert found["not finite", "2"] == (1,)
    assert found["weak filters", "0"] == (2,)


class Standardised(nn.Module):
    """Divides each picture by its own spread, which blank pictures have none of."""

    def __init__(self):
        super().__init__()
        self.rest = network()

    def forward(self, x):
        return self.rest(x / x.std((1, 2, 3), keepdim=True))


def test_a_network_that_cannot_take_blank_pictures_is_told():
    model = zfkit.VisionModel(Standardised().eval(), (127.5,) * 3, (1 / 58,) * 3, 16)
    report = diagnose(model, pictures(), progress=False)
    (finding,) = report.find("not finite", "")
    assert "A picture that is all" in finding.told and finding.severity == "fault"


def colour_network(order=(0, 1, 2)):
    """Says which of red, green and blue is most of a picture."""
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3)[list(order)].view(3, 3, 1, 1) * 8)
        net[0].bias.fill_(20)
    return net


@pytest.mark.parametrize("labelled", [True, False])
def test_colours_in_the_wrong_order_are_found_and_in_the_right_one_not(labelled):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    pixels = rng.integers(0, 90, (60, 8, 8, 3), dtype=np.uint8)
    for i, label in enumerate(labels):
        pixels[i, :, :, label] += np.uint8(60)
    if labelled:
        read = lambda i: (Image.fromarray(pixels[i]), int(labels[i]))  # noqa: E731
    else:  # its classes stand out on red and green, and blue is what it has not seen
        pixels[:, :, :, 2] = 60
        read = lambda i: (Image.fromarray(pixels[i]), -1)  # noqa: E731
    images = ImageSet(read, [str(i) for i in range(60)], size=8, classes=["r", "g", "b"] if labelled else ())
    options = {"mean": 60.0, "input_size": 8, "classes": ["r", "g", "b"]}
    right = colour_network()
    swapped = colour_network((2, 1, 0))
    if not labelled:
        with torch.no_grad():
            right[0].weight[2] = swapped[0].weight[2] = 0
    assert not diagnose(wrapped(right, **options), images, progress=False).find("colour order")
    report = diagnose(wrapped(swapped, **options), images, progress=False)
    (finding,) = report.find("colour order")
    assert ("BGR" in finding.told or not labelled) and finding.pictures.shape[0] == 8


def test_grey_pictures_cannot_tell_the_order_of_colours():
    grey = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 1), dtype=np.uint8).repeat(3, 3)
    images = ImageSet(lambda i: (Image.fromarray(grey[i]), -1), [str(i) for i in range(12)], size=16)
    report = diagnose(wrapped(network()), images, progress=False)
    assert any("fewer than 8 independent pictures in colour" in r for r in report.remarks)


def test_saturated_and_exploding_layers():
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.ReLU()
    net = nn.Sequential(*first, nn.Flatten(), nn.Linear(1152, 3))
    with torch.no_grad():
        net[0].weight *= 30
        net[2].weight *= 1e5
    found = alarms(net)
    assert ("saturated", "0") in found and ("exploding activations", "0") not in found
    assert ("exploding activations", "2") in found


def test_batch_norm_between_layer_and_relu_is_looked_through():
    model = zfkit.load_model("torchvision:resnet18", weights=None)
    units = {u.layer: u for u in units_of(model.network)}
    assert units["conv1"].looked_at == "relu" and units["conv1"].rectified
    assert not units["layer1.0.conv2"].rectified  # a sum comes before its ReLU
    assert units["fc"].looked_at == "fc" and not units["fc"].rectified


# --------------------------------------------------------------------------------------- planted, and healthy


def test_zfnet64_raises_no_alarm(zfnet64, photos64):
    report = diagnose(zfnet64, photos64, limit=32, progress=False)
    assert report.healthy and not report.alarms, str(report)
    assert "no alarm" in str(report)


def test_alexnet64_has_what_the_paper_saw(alexnet64, photos64):
    report = diagnose(alexnet64, photos64, limit=32, progress=False)
    found = {(f.fault, f.layer) for f in report.alarms}
    assert found == {("middle band missing", "conv1"), ("aliasing", "conv1")}
    for finding in report.alarms:
        assert "section 4.1" in finding.paper and "stride" in finding.remedy
        assert finding.pictures.shape[1:] == (3, 64, 64)


@pytest.mark.parametrize("name", [
    pytest.param(n, marks=() if n == "stride 4" else pytest.mark.slow) for n in PLANTS if n != "swapped RGB"
])  # fmt: skip
def test_what_is_planted_in_zfnet64_is_found_and_nothing_else(name, zfnet64, photos64):
    """Swapped colours show on pictures like those of the training only, which these are not."""
    planted = plant(zfnet64, name, seed=1)
    report = diagnose(planted.model, photos64, limit=48, progress=False)
    assert planted.found_in(report), str(report)
    assert planted.false_alarms(report) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_what_a_bad_training_leaves_is_found(name):
    textures = zfkit.load_images("textures", size=64, limit=128, progress=False)
    architecture = replace(ARCHITECTURES["zfnet64"], widths=(24, 48, 64, 64, 48), hidden=128)
    planted = train_badly(architecture, textures, name)
    report = diagnose(planted.model, textures, limit=64, progress=False)
    assert planted.found_in(report), str(report)
    assert planted.false_alarms(report) == []


# ----------------------------------------------------------------------------------------- report and bad input


def test_report_is_told_three_ways_and_escapes_names():
    net = network()
    with torch.no_grad():
        net[0].weight[1] *= 50
    report = diagnose(wrapped(net, name="<b>mine</b>"), pictures(), progress=False)
    assert report.find("one filter dominates", "0")
    assert "&lt;b&gt;mine&lt;/b&gt;" in report._repr_html_() and "<b>mine" not in report._repr_html_()
    page = report._repr_html_()
    shown = [f.pictures[:8] for f in report.findings if f.pictures is not None]
    assert page.count("data:image/png") == sum(map(len, shown))
    assert "↑ 3</span>" in page and page.index("warning</span>") < page.index("note</span>")
    for f in report.alarms:  # the arrow points to where the alarms are
        assert (f.number <= f.threshold) if f.limit.startswith("↓") else (f.number >= f.threshold)
    table = report.table()
    assert len(table) == len(report.findings)
    row = table[table.fault == "one filter dominates"].iloc[0]
    assert row.remedy == FAULTS["one filter dominates"].remedy and row.layer == "0" and row.channels == (1,)
    assert row.source == Thresholds.source("dominance") and row.number > row.threshold == 3
    assert str(report).count("remedy: ") == len(report.alarms)
    assert list(report.layers.index) == ["0", "2", "6", "8"]
    order = [("fault", "warning", "note").index(s) for s in table.severity]
    assert order == sorted(order)
    with pytest.raises(zfkit.ZfkitError, match="diagnose looks for: not finite, dead maps"):
        report.find("dead map")


def test_report_of_a_healthy_network_has_a_table_too():
    limits = {"logits": 0, "learning": 0, "one_class": 2, "dependence": 0, "blank": 2, "colour": 1e9}
    thresholds = Thresholds(dominance=99, **limits)
    report = diagnose(wrapped(network(3, width=24)), pictures(), thresholds=thresholds, progress=False)
    assert {"severity", "fault", "remedy"} <= set(report.table().columns)


def test_every_threshold_has_a_reason():
    table = Thresholds.table()
    assert (table.why.str.len() > 10).all() and "dominance" in table.index
    assert table.default["dominance"] == 3


def test_figure_has_a_panel_of_pictures_for_each_finding_with_maps():
    net = network()
    with torch.no_grad():
        net[0].weight[1] *= 50
    report = diagnose(wrapped(net), pictures(), progress=False)
    from zfkit.figures.health import report_figure

    figure = report_figure(report)
    drawn = report.findings[:8]
    assert len(figure.axes) == 4 + len(drawn) + sum(f.pictures is not None for f in drawn)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == list(report.layers.index)
    titles = ["idle maps", "strongest filter", "spread over pictures", "change by one step"]
    assert [axes.get_title() for axes in figure.axes[:4]] == titles


@pytest.mark.parametrize("options, message", [
    ({"limit": 0}, "limit.* must be a whole number.* not 0"),
    ({"batch_size": 0}, "batch_size must be a whole number"),
    ({"thresholds": {"dead": 1}}, "thresholds must be Thresholds"),
])  # fmt: skip
def test_bad_arguments(options, message):
    with pytest.raises(zfkit.ZfkitError, match=message):
        diagnose(wrapped(network()), pictures(), progress=False, **options)


def test_thresholds_are_numbers():
    with pytest.raises(zfkit.ZfkitError, match=r"threshold dead must be .*'high'"):
        Thresholds(dead="high")


def test_pictures_larger_than_the_networks_leave_out_what_cannot_run(zfnet64):
    report = diagnose(zfnet64, pictures(4, 96), progress=False)
    assert "fc8" not in report.layers.index and "conv5" in report.layers.index
    assert any("fc6" in r and "take pictures of 64 px" in r for r in report.remarks)


def test_pictures_too_small_for_any_layer_are_refused(zfnet64):
    with pytest.raises(zfkit.errors.LayerError, match="cannot run to conv1 on images of 4 x 4 px"):
        diagnose(zfnet64, pictures(4, 4), progress=False)


def test_one_picture_and_unlabelled_pictures_are_enough_to_begin_with():
    report = diagnose(wrapped(network()), pictures(1), progress=False)
    assert report.count == 1 and not report.find("input has no effect")


def test_unreadable_pictures_are_left_out_and_named():
    def read(i):
        if i == 2:
            raise zfkit.errors.ImageError("broken.png: damaged")
        return Image.fromarray(np.full((16, 16, 3), 10 * i, np.uint8)), -1

    images = ImageSet(read, [str(i) for i in range(5)], size=16)
    report = diagnose(wrapped(network()), images, progress=False)
    assert report.count == 4 and "left out: broken.png: damaged" in report.remarks
    with pytest.raises(zfkit.errors.ImageError, match="none of the 1 pictures"):
        diagnose(wrapped(network()), ImageSet(lambda i: read(2), ["a"], size=16), progress=False)


def test_networks_in_grey_and_without_fully_connected_layers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.Conv2d(6, 4, 3))
    report = diagnose(wrapped(net), pictures(), progress=False)
    assert list(report.layers.index) == ["0", "2"] and not report.find("colour order")
