"""Selectivity and pose variation: closed forms, literal versions, and sets made so that the answer is known."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import image_set
from tiny import random_pixels as pixels_of_side
from torch import nn

import zfkit
from zfkit.errors import ImageError, LayerError, ZfkitError
from zfkit.experiments.selectivity import _others, selectivity_index
from zfkit.images.imageset import Windows

SIDE = 14


def random_pixels(count, random_seed=0):
    return pixels_of_side(count, SIDE, random_seed)


selectivity = partial(zfkit.experiments.selectivity, progress=False)
pose_variation = partial(zfkit.experiments.pose_variation, progress=False)


def network(random_seed=0):
    torch.manual_seed(random_seed)
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3, 2), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4), nn.ReLU(),
        nn.Linear(4, 3),
    )  # fmt: skip
    return zfkit.wrap_model(net.double().eval(), mean=127.5, scale=1 / 58, input_size=SIDE)


# -------------------------------------------------------------------------------------------- selectivity


@pytest.mark.parametrize(
    ("means", "index"),
    [([3, 0, 0], 1), ([2, 2, 2], 0), ([3, 1, 1], 0.5), ([0, 0, 0], 0), ([1, 2, 3], (3 - 1.5) / (3 + 1.5))],
)
def test_index_in_closed_form(means, index):
    assert float(selectivity_index(torch.tensor(means).double()[:, None])) == pytest.approx(index)


@given(st.integers(2, 5), st.integers(8, 20), st.integers(1, 6), st.integers(1, 7), st.integers(0, 99))
def test_index_and_entropy_are_the_literal_ones(classes, count, k, batch, seed):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, count - classes)])
    labels[-1] = -1  # one without a label
    pixels, model = random_pixels(count, seed), network(seed)
    images = image_set(pixels, labels, [str(c) for c in range(classes)])
    result = selectivity(model, images, ["0", "2", "5"], k=k, shuffles=1, batch_size=batch).maps
    labels = labels[:-1].tolist()
    x = (torch.from_numpy(pixels[:-1]).permute(0, 3, 1, 2).double() - 127.5) / 58
    for layer, behind in (("0", 2), ("2", 4), ("5", 7)):
        with torch.no_grad():
            places = {"0": 36, "2": 16, "5": 1}[layer]
            maps = model.net[:behind](x).reshape(count - 1, -1, places)
        rows = result[result.layer == layer].reset_index()
        for c in range(maps.shape[1]):
            activity, peak = maps[:, c].mean(1).tolist(), maps[:, c].amax(1)
            if peak.max() <= 0:
                assert math.isnan(rows["index"][c])
                continue
            pairs = list(zip(activity, labels, strict=True))
            means = sorted(np.mean([a for a, b in pairs if b == n]) for n in set(labels))
            rest = np.mean(means[:-1])
            assert rows["index"][c] == pytest.approx((means[-1] - rest) / (means[-1] + rest), abs=1e-9)
            best = sorted(range(count - 1), key=lambda i: (-float(peak[i].float()), i))[:k]
            share = [n / len(best) for n in Counter(labels[i] for i in best).values()]
            assert rows["entropy"][c] == pytest.approx(-sum(p * math.log2(p) for p in share), abs=1e-9)


def by_colour(count=60):
    """Pictures that are red, green or blue with noise, their labels, and a network with a map for each colour."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    pixels = rng.integers(0, 60, (count, SIDE, SIDE, 3), dtype=np.uint8)
    for i, label in enumerate(labels):
        pixels[i, :, :, label] += np.uint8(150)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIDE**2, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.cat([torch.eye(3), torch.ones(1, 3) / 3]).view(4, 3, 1, 1))
        net[0].bias.copy_(torch.tensor([-70.0, -70, -70, 0]))
    model = zfkit.wrap_model(net, mean=0, scale=1, input_size=SIDE)
    return model, image_set(pixels, labels, ["red", "green", "blue"])


def test_maps_that_see_one_class_only_and_maps_that_see_all_alike():
    model, images = by_colour()
    result = selectivity(model, images)
    maps = result.maps
    assert result.kind == "class" and result.classes == 3 and result.pictures == 60
    assert maps["index"][:3].tolist() == [1, 1, 1] and maps["index"][3] < 0.05
    assert maps["entropy"][:3].tolist() == [0, 0, 0]
    assert (maps["index_shuffled"][:3] < 0.5).all() and (maps["entropy_shuffled"][:3] > 0.8).all()
    table = result.table()
    assert table.entropy_most["0"] == pytest.approx(math.log2(3)) and table.above["0"] >= 0.75


def test_shuffles_follow_the_seed_and_do_not_touch_torchs_own():
    model, images = by_colour()
    state = torch.random.get_rng_state()
    first, same, other = (selectivity(model, images, random_seed=s).maps for s in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.equals(same) and not first.equals(other)
    assert first["index"].equals(other["index"])


def test_windows_of_photographs_are_classes_where_there_are_no_labels():
    model, images = by_colour()
    labels = images.labels
    pixels = images.take(range(60))
    windows = image_set(pixels, windows=Windows(labels + 7, torch.zeros(60, 4)))
    photographs, classes = selectivity(model, windows), selectivity(model, images)
    assert (photographs.kind, photographs.classes) == ("photograph", 3)
    assert photographs.maps.equals(classes.maps)


@pytest.mark.parametrize(
    ("labels", "options", "kind", "message"),
    [
        (None, {}, ImageError, "'made' has no labels, which selectivity is about"),
        ([0, 0, 0, 0], {}, ImageError, "4 labelled pictures of 1 classes; selectivity needs at least two"),
        ([0, 1, 0, 1], {"layers": ["7"]}, LayerError, "'7' has no ReLU of its own.*that have one: 0, 2, 5"),
        ([0, 1, 0, 1], {"layers": "conv1"}, LayerError, "there is no layer 'conv1'"),
        ([0, 1, 0, 1], {"shuffles": 0}, ZfkitError, "shuffles must be a whole number from 1 on"),
    ],
)
def test_what_selectivity_refuses(labels, options, kind, message):
    with pytest.raises(kind, match=message):
        selectivity(network(), image_set(random_pixels(4), labels, ["a", "b"]), **options)


# ----------------------------------------------------------------------------------------- pose variation


def test_distances_are_those_of_the_windows_that_project_top_shows():
    """In pixels, of units that see no padding: the mean distance between photo patches, as the network takes them."""
    model, images = network(1), image_set(random_pixels(30))
    top = zfkit.mine(model, images, ["0", "2"], k=4, inside=True, progress=False)
    result = pose_variation(model, images, ["0", "2"], top=top, k=4, maps=5).maps
    for layer in ("0", "2"):
        patches = zfkit.project_top(model, images, top, layer)
        rows = result[(result.layer == layer) & (result.seen_by == "pixels")]
        assert len(rows) >= 3
        for row in rows.itertuples():
            photo = patches.photo[row.channel].double() / 58
            pairs = [float((a - b).norm()) for a, b in combinations(photo, 2)]
            assert row.distance == pytest.approx(np.mean(pairs), rel=1e-5)
        assert rows.ratio.to_numpy() == pytest.approx((rows.distance / rows.control.mean()).to_numpy())


def test_distances_in_lower_layers_are_those_of_the_maps_within_the_receptive_field():
    model, images = network(1), image_set(random_pixels(30))
    top = zfkit.mine(model, images, ["2"], k=4, progress=False)
    result = pose_variation(model, images, ["2"], top=top, k=4, maps=6).maps
    with torch.no_grad():
        first = model.net[:2](model.preprocess(images.take(range(30))))
        second = model.net[:4](model.preprocess(images.take(range(30))))
    for row in result[result.seen_by != "pixels"].itertuples():
        blocks = []
        where = (getattr(top["2"], n)[row.channel].tolist() for n in ("image", "row", "col"))
        for i, r, c in zip(*where, strict=True):
            blocks.append(first[i, :, r : r + 3, c : c + 3] if row.seen_by == "0" else second[i, :, r, c])
        pairs = [float((a - b).norm()) for a, b in combinations(blocks, 2)]
        assert row.distance == pytest.approx(np.mean(pairs), rel=1e-5)
    assert set(result.seen_by) == {"pixels", "0", "2"}


def test_copies_of_one_window_do_not_vary_and_others_do():
    """Each of four shapes at random places: a map that looks for one has nine equal windows."""
    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    pixels = np.full((60, SIDE, SIDE, 3), 128, dtype=np.uint8)
    for i in range(60):
        y, x = rng.integers(0, SIDE - 4, 2)
        pixels[i, y : y + 5, x : x + 5] = shapes[i % 4]
    net = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with torch.no_grad():
        template = torch.from_numpy(shapes).permute(0, 3, 1, 2).float() - 128
        net[0].weight.copy_(template / template.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
        net[0].bias.zero_()
    model = zfkit.wrap_model(net, mean=128, scale=1, input_size=SIDE)
    result = pose_variation(model, image_set(pixels), ["0"])
    table = result.table()
    assert table.ratio["0", "pixels"] == 0 and table.ratio["0", "0"] == pytest.approx(0, abs=1e-6)
    assert table.alike["0", "pixels"] == 1


def test_control_mixes_maps_and_pictures():
    """k units of the control come from k maps and k pictures wherever there are as many."""
    image = torch.arange(12 * 4).reshape(12, 4) % 31
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        units = _others(image, i, generator)
        assert len(set((units // 4).tolist())) == 4 and len(set(image.flatten()[units].tolist())) == 4
        assert i in (units // 4).tolist()


def test_what_pose_variation_refuses():
    model, images = network(), image_set(random_pixels(12))
    with pytest.raises(LayerError, match=r"there is no layer '5'.*0, 2"):
        pose_variation(model, images, "5")
    with pytest.raises(ZfkitError, match="k must be a whole number from 2 on, not 1"):
        pose_variation(model, images, k=1)
    with pytest.raises(ZfkitError, match="fewer than two maps of '0' have 13 pictures of their own"):
        pose_variation(model, images, "0", k=13)
    top = zfkit.mine(model, images, ["0"], k=2, progress=False)
    with pytest.raises(ZfkitError, match="has the top 2 of each map, fewer than k=9"):
        pose_variation(model, images, "0", top=top)


def test_figures_show_what_the_tables_hold():
    from zfkit.figures.experiments import pose_variation_figure, selectivity_figure

    model, images = by_colour()
    result = selectivity(model, images)
    median = next(t for t in selectivity_figure(result).data if t.name.startswith("median map"))
    table = result.table()
    assert list(median.y) == table["index"].tolist()
    assert median.customdata[:, 1].tolist() == table["index_q75"].tolist()
    pose = pose_variation(network(1), image_set(random_pixels(30)), k=4)
    chart = pose_variation_figure(pose)
    assert [t.name for t in chart.data] == ["top 4 of 0", "top 4 of 2"]
    assert chart.layout.xaxis.categoryarray == ("pixels", "0", "2")
    assert list(chart.data[1].error_y.array) == pose.table().loc["2"].sd.tolist()
