"""What ships with the bundled networks: what each map can reach, and tables that are checked before they are used."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from mining import exact_model, pictures
from tiny import image_set, random_pixels, tiny_model

import zfkit
from zfkit.topk import bundled, mined, reach, reached, records


@pytest.mark.parametrize("name", ["zfnet64", "alexnet64", "squeezenet"])
def test_every_map_of_a_bundled_network_has_a_record(name, request):
    model = request.getfixturevalue(name)
    found = records(model)
    assert tuple(found) == model.conv_layers
    for layer, record in found.items():
        assert len(record) == model.network.steps[layer].layer.out_channels and record.isfinite().all()
        assert (record > 0).float().mean() > 0.9


def test_records_are_what_pictures_like_those_of_the_training_reach(zfnet64, photos64):
    """220 other photographs come near the 99.9 % quantile of 10,000, as 220 of them would: mostly half to all of it."""
    top = zfkit.mine(zfnet64, photos64, ["conv1", "conv3"], k=1, progress=False)
    for layer in ("conv1", "conv3"):
        share = reach(zfnet64, top, layer)
        assert 0.4 < float(share.nanmedian()) < 1.2


def test_other_weights_have_no_records(zfnet64):
    other = copy.deepcopy(zfnet64)
    with torch.no_grad():
        other.net.conv3.bias[0] += 1
    assert records(other) == {} == records(exact_model())


def test_a_share_of_the_record(monkeypatch):
    model, images = exact_model(), pictures(9)
    top = zfkit.mine(model, images, ["0"], k=1, progress=False)
    record = 2 * top["0"].max.clamp(min=1)
    record[:2] = torch.tensor([-3.0, 10 * float(top["0"].max[1])])
    monkeypatch.setattr(bundled, "_records", lambda: {model.fingerprint(): {"0": record}})
    share = reach(model, top, "0")
    expected = [top["0"].max[c].clamp(min=0) / record[c] for c in range(2, 6)]
    assert share[0].isnan() and share[2:].tolist() == pytest.approx([float(e) for e in expected])
    assert reach(model, replace(top), "0") is not None and reach(model, top, "3") is None
    assert reached(float("nan")) == "" and reached(0.31).startswith("31% of what it reaches on")
    assert reached(float(share[1])).startswith("nothing here is what it is for: only 10% of what it reaches")


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A model, pictures, and a table of them that ships; mining is counted in the list."""
    model, images, calls = exact_model(), pictures(30, windows=True), []
    images.source = "photos"
    monkeypatch.setattr(bundled, "DATA", tmp_path / "data")
    (tmp_path / "data").mkdir()
    inside = zfkit.deconv.fits_inside(model, list(model.conv_layers), images.size)
    table = zfkit.mine(model, images, inside=inside, progress=False)
    table.save(tmp_path / "data" / "exact-photos.parquet")
    monkeypatch.setattr(
        bundled, "mine", lambda *a, **o: calls.append(o) or zfkit.mine(*a, **o, progress=False)
    )
    return model, images, table, calls, tmp_path


def same(one, other):
    return all(torch.equal(one[layer].value, other[layer].value) for layer in other.layers)


def test_layers_that_fit_are_mined_inside_pictures_though_others_see_more(tmp_path):
    model = tiny_model()
    images = image_set(random_pixels(2, model.input_size))
    # Each made and then read; the last rests on all, and none takes another's place.
    for layers, inside in [(None, False), ([model.conv_layers[-1]], False), (["conv1"], True)] * 2:
        top = mined(model, images, tmp_path, layers)
        assert top.inside == inside and [*top.layers] == (layers or [*model.conv_layers])
    assert len([*tmp_path.iterdir()]) == 3


def test_the_table_that_ships_is_used_and_nothing_mined(shipped):
    model, images, table, calls, folder = shipped
    assert same(mined(model, images, folder / "cache"), table) and calls == []
    assert not (folder / "cache").exists()


@pytest.mark.parametrize("write", [zfkit.write_atlas, zfkit.write_site])
def test_atlas_and_site_begin_with_it(shipped, monkeypatch, write):
    """With the layers and the ranks that were asked for."""
    model, images, _, _, folder = shipped
    monkeypatch.setattr(bundled, "_records", dict)
    truth = zfkit.mine(model, images, ["3"], 4, inside=True, progress=False)
    monkeypatch.setattr(zfkit.atlas.page, "mine", lambda *a, **o: pytest.fail("mined"))
    write(model, images, folder / "out", layers=["3"], maps=2, k=4, progress=False)
    (saved,) = (folder / "out").rglob("topk.parquet")
    found = zfkit.TopK.load(saved)
    assert list(found.layers) == ["3"] and found.k == 4
    assert all(
        torch.equal(getattr(found["3"], n), getattr(truth["3"], n)) for n in ("value", "image", "row", "col")
    )


@pytest.mark.parametrize("what", ["weights", "pictures", "values", "damaged", "border"])
def test_a_table_that_does_not_fit_is_mined_again_and_kept(shipped, what):
    model, images, table, calls, folder = shipped
    file = folder / "data" / "exact-photos.parquet"
    if what == "weights":
        with torch.no_grad():
            model.net[3].bias += 1
    elif what == "pictures":
        images = images[1:]
        images.source = "photos"
    elif what == "damaged":
        file.write_bytes(file.read_bytes()[:-100])
    elif what == "border":
        replace(table, inside=not table.inside).save(file)
    else:  # right fingerprints and wrong numbers
        first = table["0"]
        wrong = {"0": replace(first, value=first.value + 20, max=first.max + 20), "3": table["3"]}
        replace(table, layers=wrong).save(file)
    truth = zfkit.mine(model, images, inside=table.inside, progress=False)
    for _ in range(2):  # the second time from what was kept
        assert same(mined(model, images, folder / "cache"), truth)
    assert len(calls) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zfnet64", "alexnet64", "squeezenet"])
def test_the_tables_on_the_album_are_up_to_date(name, request):
    """Made anew by `benchmarks/bundled.py` where network, photographs or how they are cut change."""
    model, images = request.getfixturevalue(name), zfkit.load_images("photos", progress=False)
    table = zfkit.TopK.load(bundled.DATA / f"{model.name}-photos.parquet")
    table.check(model, images)
    assert table.inside and table.k == 9 and table.count == len(images)
    assert bundled._agrees(table, model, images)
