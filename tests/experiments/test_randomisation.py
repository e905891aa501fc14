"""Sanity checks of projections: literal formulas, closed forms, and `project` itself."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import image_set, noise, pooled_network
from torch import nn

import zfkit
from zfkit.errors import ImageError, LayerError, ZfkitError
from zfkit.experiments import randomisation
from zfkit.experiments.randomisation import CONDITIONS, MEASURES, photo_likeness, similarity
from zfkit.experiments.replacements import randomise, weight_layers
from zfkit.images.imageset import Windows

SIDE = 28  # px, of the pictures that `pooled_network` takes


def pictures(count, side=SIDE):
    return image_set(noise(count, side))


sanity_checks = partial(randomisation.sanity_checks, progress=False)


# ------------------------------------------------------------------------------------------------- measures


def literal_ssim(a, b, size=7):
    """Wang et al. 2004, eq. 13, over all whole windows, with unweighted sample moments; pictures (C, h, w) 0-255."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    total, count = 0.0, 0
    for x, y in zip(a.astype(float), b.astype(float), strict=True):
        for i in range(x.shape[0] - size + 1):
            for j in range(x.shape[1] - size + 1):
                p, q = (t[i : i + size, j : j + size].ravel() for t in (x, y))
                covariance = np.cov(p, q)
                mp, mq = p.mean(), q.mean()
                total += ((2 * mp * mq + c1) * (2 * covariance[0, 1] + c2)) / (
                    (mp**2 + mq**2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2)
                )
                count += 1
    return total / count


@pytest.mark.parametrize(("shape", "size"), [((3, 12, 15), 7), ((1, 9, 9), 7), ((3, 4, 4), 3)])
def test_likeness_is_the_literal_one(shape, size):
    """SSIM of the pictures as shown, and Spearman's correlation from its formula: 1 - 6 sum d^2 / (n (n^2 - 1))."""
    torch.manual_seed(sum(shape))
    a = torch.randn(shape)
    b = a + 0.7 * torch.randn(shape)
    shown = [zfkit.figures.signed_to_rgb(t[None])[0].numpy() for t in (a, b)]
    measures = similarity(a, b)
    assert measures["ssim"] == pytest.approx(literal_ssim(*shown, size=size), abs=1e-9)
    for name, x, y in (("spearman", a, b), ("absolute", a.abs(), b.abs())):
        d = x.flatten().argsort().argsort() - y.flatten().argsort().argsort()
        n = d.numel()
        assert measures[name] == pytest.approx(1 - 6 * int((d * d).sum()) / (n * (n * n - 1)), abs=1e-9)
    assert similarity(a, a) == pytest.approx(dict.fromkeys(MEASURES, 1.0))
    assert all(math.isnan(v) for v in similarity(a, torch.zeros_like(a)).values())


def test_photo_likeness_takes_out_what_is_slow():
    rng = np.random.default_rng(0)
    photo = torch.from_numpy(rng.integers(0, 256, (3, 20, 24), dtype=np.uint8))
    t = np.arange(-8, 9)  # four sigma each way, the nearest pixels beyond the border
    kernel = np.exp(-(t**2) / 8) / np.exp(-(t**2) / 8).sum()
    padded = np.pad(photo.numpy().astype(float), ((0, 0), (8, 8), (8, 8)), mode="edge")
    slow = np.apply_along_axis(np.convolve, 1, padded, kernel, "valid")
    slow = np.apply_along_axis(np.convolve, 2, slow, kernel, "valid")
    fine = photo.double() - torch.from_numpy(slow)
    projection = torch.randn(3, 20, 24, dtype=torch.float64)
    expected = stats.spearmanr(projection.flatten(), fine.flatten()).statistic
    assert photo_likeness(projection, photo) == pytest.approx(expected, abs=1e-9)
    assert photo_likeness(fine, photo) == pytest.approx(1)
    luma = torch.tensordot(torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64), fine, 1)[None]
    assert photo_likeness(luma, photo) == pytest.approx(1)  # of a one-channel network
    assert math.isnan(photo_likeness(projection, torch.full((3, 20, 24), 9, dtype=torch.uint8)))


# -------------------------------------------------------------------------------------------- sanity_checks


@pytest.fixture(scope="module")
def checked():
    model, images = pooled_network(), pictures(12)
    return model, images, sanity_checks(model, images, ["3", "6"], units=3, draws=2, random_seed=7)


def test_pictures_are_those_of_project(checked):
    """Every condition that `project` can show by itself, from whole pictures, against what was cut out of crops."""
    model, images, result = checked
    top = zfkit.mine(model, images, ["3", "6"], inside=True, progress=False)
    for layer in ("3", "6"):
        field = zfkit.receptive_field(model, layer)
        below = weight_layers(model, layer)
        for rule in result.rules:
            part = result.pictures[(result.pictures.layer == layer) & (result.pictures.rule == rule)]
            for unit, row in part[part.condition == "trained"].set_index("unit").iterrows():
                assert row.image == top[layer].image[row.channel, 0]
                at = [[int(top[layer].row[row.channel, 0]), int(top[layer].col[row.channel, 0])]]
                box = field.box(*at[0])
                x = model.preprocess(images.take([row.image]))
                cut = (slice(None), slice(box.top, box.bottom), slice(box.left, box.right))
                assert torch.equal(result.photos[layer][unit], images[row.image][0][cut])
                cases = {("trained", ""): model}
                down = {n: randomise(model, below[i:], random_seed=7) for i, n in enumerate(below)}
                cases |= {("down to", n): changed for n, changed in down.items()}
                cases |= {("only", n): randomise(model, n, random_seed=7) for n in below}
                for (condition, weights), changed in cases.items():
                    expected = zfkit.project(changed, x, layer, row.channel, at, rule=rule)[0][cut]
                    shown = result.examples[layer, rule, condition, weights][unit]
                    assert torch.allclose(shown, expected, atol=1e-12)


def test_the_table_is_the_mean_over_units_of_similarity(checked):
    _, _, result = checked
    table = result.table("6")
    for rule in result.rules:
        trained = result.examples["6", rule, "trained", ""]
        for condition in ("other channel", "unrelated", "shuffled", "centre switches"):
            other = result.examples["6", rule, condition, ""]
            pairs = zip(trained.flatten(1), other.flatten(1), strict=True)
            values = [stats.spearmanr(a, b).statistic for a, b in pairs]
            row = table.loc[("6", rule, condition, "")]
            assert row.spearman == pytest.approx(np.nanmean(values))
            assert row.spearman_sd == pytest.approx(np.nanstd(values))
            assert row.units == np.isfinite(values).sum() or row.empty > 0
            assert result.mean("6", rule, condition) == row.spearman
        one = table.loc[("6", rule, "trained", "")]
        assert one.spearman == pytest.approx(1) and one.ssim == pytest.approx(1) and one.spearman_sd < 1e-12
    draws = result.pictures[(result.pictures.condition == "down to") & (result.pictures.weights == "0")]
    assert set(draws.draw) == {0, 1}
    assert set(result.pictures.condition) == set(CONDITIONS)
    assert result.untrained("6") == "0"


def test_the_control_is_another_channel_on_another_picture(checked):
    _, _, result = checked
    shuffled = result.examples["6", "gradient", "shuffled", ""]
    trained = result.examples["6", "gradient", "trained", ""]
    assert torch.equal(shuffled.flatten(1).sort().values, trained.flatten(1).sort().values)
    assert not torch.equal(shuffled, trained)
    for condition in ("other channel", "other picture", "unrelated"):
        other = result.examples["6", "gradient", condition, ""]
        assert not any(torch.equal(a, b) for a, b in zip(other, trained, strict=True))


def test_equal_seeds_give_equal_tables_and_the_network_is_left_alone():
    model, images = pooled_network(), pictures(8)
    before = model.fingerprint()
    options = {"layers": "6", "units": 3, "draws": 1, "rules": ("deconvnet",)}
    a, b, c = (sanity_checks(model, images, random_seed=s, **options) for s in (1, 1, 2))
    assert a.pictures.equals(b.pictures) and not a.pictures.equals(c.pictures)
    assert model.fingerprint() == before


def test_of_one_linear_layer_the_picture_is_the_filter_whatever_the_photo():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 9)).double()
    model = zfkit.wrap_model(net, mean=127.5, scale=1 / 58, input_size=16)
    result = sanity_checks(model, pictures(9, 16), units=12, draws=1, keep=12)
    channel = result.pictures[result.pictures.condition == "trained"].set_index(["rule", "unit"]).channel
    for rule in ("deconvnet", "guided", "gradient"):
        filters = net[0].weight.detach()[channel.loc[rule].tolist()]
        for condition in ("trained", "other picture"):
            assert torch.equal(result.examples["0", rule, condition, ""], filters)
        assert result.mean("0", rule, "other picture") == pytest.approx(1)
        # filters of random numbers: correlations of 243 pairs, a standard error of 1/sqrt(242) each
        assert abs(result.mean("0", rule, "down to", "0")) < 5 / math.sqrt(242 * 12)
        assert ("0", rule, "other switches", "") not in result.table().index  # there is no pooling


def test_of_fully_connected_layers_the_whole_picture_is_compared():
    model, images = pooled_network(), pictures(6)
    result = sanity_checks(model, images, "9", units=4, keep=4, draws=1, rules=("guided",))
    assert result.photos["9"].shape == (len(result.photos["9"]), 3, SIDE, SIDE)
    row = result.pictures[result.pictures.condition == "trained"].iloc[0]
    x = model.preprocess(images.take([row.image]))
    expected = zfkit.project(model, x, "9", row.channel, rule="guided")[0]
    assert torch.allclose(result.examples["9", "guided", "trained", ""][0], expected)
    assert result.untrained("9") == "0"


def test_one_channel_networks():
    result = sanity_checks(pooled_network(channels=1), pictures(6), "6", units=3, draws=1, draw="permutation")
    assert result.examples["6", "deconvnet", "trained", ""].shape[1:] == (1, 15, 15)
    assert result.table("6").loc[("6", "deconvnet", "trained", "")].photo_sd > 0


@pytest.mark.slow
def test_of_trained_networks(zfnet64, photos):
    model = zfnet64
    result = sanity_checks(model, photos, ["conv1", "conv2"], units=6, draws=1, keep=6)
    for rule in result.rules:  # nothing but a convolution lies before conv1: the picture plays no part
        assert result.mean("conv1", rule, "other picture") == pytest.approx(1)
        assert abs(result.mean("conv1", rule, "unrelated")) < 0.3
    # The gradient's picture is lost with the weights; the deconvnet's shows the photo.
    assert abs(result.mean("conv2", "gradient", "down to", "conv1")) < 0.15
    assert result.mean("conv2", "deconvnet", "trained", measure="photo") > 0.2


def test_windows_are_compared_with_those_of_another_photograph():
    windows = Windows(torch.arange(12) // 4, torch.zeros(12, 4))
    images = image_set(noise(12, SIDE), windows=windows)
    top = zfkit.mine(pooled_network(), image_set(noise(12, SIDE)), ["6"], inside=True, progress=False)["6"]
    for random_seed in range(4):
        case = randomisation._Case.draw(pooled_network(), images, top, "6", 6, random_seed)
        photograph = windows.photograph
        for other in (case.other_picture, case.unrelated_picture, case.unrelated):
            assert (photograph[other.image] != photograph[case.own.image]).all()
        assert (case.unrelated.channel != case.own.channel).all()


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("images, options, kind, message", [
    (4, {"layers": "conv5"}, LayerError, "there is no layer 'conv5'"),
    (4, {"layers": "1"}, LayerError, "there is no layer '1'"),
    (4, {"layers": []}, LayerError, "no layer was named"),
    (4, {"rules": "guided"}, ZfkitError, "rules must be a list of deconvnet, guided, gradient"),
    (4, {"rules": ("smooth",)}, ZfkitError, "there is no rule 'smooth'"),
    (4, {"units": 1}, ZfkitError, "units"), (4, {"draw": "zeros"}, ZfkitError, "there is no draw 'zeros'"),
    (1, {}, ImageError, "has 1 picture; to compare, give 2 or more"),
])  # fmt: skip
def test_bad_input_is_refused(images, options, kind, message):
    with pytest.raises(kind, match=message):
        sanity_checks(pooled_network(), pictures(images), **{"layers": "6"} | options)


def test_pictures_that_cannot_be_compared():
    with pytest.raises(LayerError, match="units of '6' see 15 px, so in pictures of 14 px none looks at"):
        sanity_checks(pooled_network(), pictures(4, 14), "6")
    top = zfkit.mine(pooled_network(), pictures(4), ["6"], k=1, inside=True, progress=False)
    with pytest.raises(ZfkitError, match="at least 2 pictures a map, mined with inside=True"):
        sanity_checks(pooled_network(), pictures(4), "6", top=top)
    dead = pooled_network()
    with torch.no_grad():
        dead.net[6].bias.fill_(-1e6)
    with pytest.raises(LayerError, match="0 of 8 maps of '6' are active on two of the pictures"):
        sanity_checks(dead, pictures(4), "6")


def test_asking_for_what_was_not_measured(checked):
    _, _, result = checked
    with pytest.raises(LayerError, match=r"looked at '0'.*3, 6"):
        result.table("0")
    with pytest.raises(ZfkitError, match="nothing was measured for 'guided', 'down to', '9'"):
        result.mean("6", "guided", "down to", "9")


# --------------------------------------------------------------------------------------------------- figures


def test_figures_show_what_the_table_holds(checked):
    from zfkit.figures.randomisation import (
        photo_likeness_figure,
        sanity_figure,
        sanity_layers_figure,
        sanity_sheet,
    )

    _, _, result = checked
    table = result.table("6")
    chart = sanity_figure(result, "6")
    (guided,) = chart.select_traces({"name": "guided"}, row=1, col=3)
    at = list(guided.customdata).index("6 to 0 redrawn (untrained)")
    row = table.loc[("6", "guided", "down to", "0")]
    assert guided.x[at] == pytest.approx(row.ssim) and guided.error_x.array[at] == pytest.approx(row.ssim_sd)
    (other,) = sanity_layers_figure(result).select_traces({"name": "other channel"}, row=1, col=3)
    assert list(other.y) == [result.mean(layer, "gradient", "other channel") for layer in ("3", "6")]
    assert list(other.customdata) == ["3", "6"]
    (bars,) = photo_likeness_figure(result).select_traces({"name": "trained"}, row=1, col=1)
    assert bars.y[0] == pytest.approx(result.mean("3", "deconvnet", "trained", measure="photo"))
    sheet = sanity_sheet(result, "6", unit=1)
    assert len(sheet.axes) == 3 * 6
    shown = sheet.axes[6 + 1].images[0].get_array()  # second rule, first change: the trained network's
    trained = zfkit.figures.signed_to_rgb(result.examples["6", "guided", "trained", ""][1])
    assert np.array_equal(shown, trained.permute(1, 2, 0).numpy())
    with pytest.raises(ZfkitError, match="unit, of those kept"):
        sanity_sheet(result, "6", unit=4)


def test_units_in_portions_give_the_same_table(monkeypatch):
    options = {"layers": "6", "units": 5, "draws": 1, "keep": 5, "rules": ("guided",)}
    whole = sanity_checks(pooled_network(), pictures(8), **options)
    monkeypatch.setattr(randomisation, "FORWARD_PIXELS", 2 * SIDE**2)
    monkeypatch.setattr(randomisation, "REVERSE_BYTES", 1)
    parts = sanity_checks(pooled_network(), pictures(8), **options)
    for key, projections in whole.examples.items():
        if key[2] != "random switches":  # whose random numbers come in the order of the portions
            assert torch.allclose(projections, parts.examples[key], atol=1e-12), key
