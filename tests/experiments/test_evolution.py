"""Evolution: CKA against its definition, strongest activations against a loop, known answers, bad snapshots."""

from __future__ import annotations

import math
import re
import shutil

import numpy as np
import pytest
import torch
from literal import deconvnet, gram_cka, layers_of
from PIL import Image
from tiny import SIDE, TINY, image_set, network, random_pixels, write_snapshot
from torch import nn

import zfkit
from zfkit import ZfkitError
from zfkit.batching import Cancelled
from zfkit.errors import LayerError
from zfkit.experiments.evolution import LayerEvolution, convergence, evolution
from zfkit.experiments.snapshots import bundled_runs, snapshots_of
from zfkit.images.imageset import ImageSet
from zfkit.nets.weights import load_weights, save_weights
from zfkit.nets.zoo import describe


@pytest.fixture(scope="module")
def images():
    return image_set(random_pixels(24))


@pytest.fixture(scope="module")
def several():
    return [(epoch, network(epoch)) for epoch in (0, 2, 5)]


@pytest.fixture(scope="module")
def found(several, images):
    return evolution(several, images, ["0", "3", "6"], maps=3, compare=24, places=4, progress=False)


@pytest.fixture
def folder(tmp_path):
    """Snapshots of epochs 0, 1, 3 of an untrained network, as `fit` leaves them."""
    for epoch in (0, 1, 3):
        write_snapshot(tmp_path / "snapshots" / f"epoch_{epoch:04d}.safetensors", epoch)
    return tmp_path


@pytest.fixture(scope="module")
def small():
    return image_set(random_pixels(12, 32, 1))


# ------------------------------------------------------------------------------------- known similarities


def test_similarity_of_a_filter_that_turns_is_the_squared_cosine():
    """Over pictures whose three colours are uncorrelated, w.x and v.x correlate like the vectors themselves."""
    signs = np.array(np.meshgrid(*[[0, 255]] * 3)).reshape(3, -1).T.astype(np.uint8)  # 8 colours
    images = image_set(np.broadcast_to(signs[:, None, None], (8, 6, 6, 3)).copy())
    pairs = []
    for epoch, angle in ((0, 90), (4, 60), (6, 30), (10, 0)):
        conv = nn.Conv2d(3, 1, 1, bias=False).double()
        a = math.radians(angle)
        conv.weight.data = torch.tensor([math.cos(a), math.sin(a), 0.0], dtype=torch.float64).view(1, 3, 1, 1)
        net = nn.Sequential(conv)
        pairs.append((epoch, zfkit.wrap_model(net, mean=127.5, scale=1, input_size=6)))
    run = evolution(pairs, images, progress=False)
    expected = [0, 0.25, 0.75, 1]
    assert run["0"].similarity[0].tolist() == pytest.approx(expected, abs=1e-12)
    assert run["0"].cka.tolist() == pytest.approx(expected, abs=1e-12)
    chord = [2 * math.sin(math.radians(angle) / 2) for angle in (90, 60, 30, 0)]
    assert run["0"].distance.tolist() == pytest.approx([c / chord[0] for c in chord])
    assert convergence(run).cka["0"] == pytest.approx(6 + 4 * 0.6)


# ------------------------------------------------------------------------- strongest activations, projected


def outputs(model, images, layer):
    """What a layer makes of each picture, one by one, (N, C, H, W), without zfkit's graph."""
    net = model.net[: int(layer) + 1]
    with torch.no_grad():
        maps = torch.cat([net((images[i][0].double()[None] - 127.5) / 64) for i in range(len(images))])
    return maps if maps.dim() == 4 else maps[:, :, None, None]


def test_the_strongest_activations_are_those_of_a_loop(found, several, images):
    assert found.epochs == (0, 2, 5) and found.count == found.compared == 24
    for e, (_, model) in enumerate(several):
        for name, layer in found.layers.items():
            maps = outputs(model, images, name)
            for c in range(maps.shape[1]):
                best = max((float(maps[i, c, r, k]), -i, -r, -k) for i, r, k in np.ndindex(*maps[:, c].shape))
                told = (layer.value, layer.image, layer.row, layer.col)
                value, image, row, col = (t[c, e].item() for t in told)
                assert value == pytest.approx(best[0], rel=1e-6)
                assert (image, row, col) == tuple(-v for v in best[1:])


def test_projections_and_patches_are_those_of_the_literal_deconvnet(found, several, images):
    for e, (_, model) in enumerate(several):
        for name, low, stride in (("0", 0, 2), ("3", 0, 4)):
            layer = found[name]
            S = layer.projection.shape[-1]
            assert {"0": 3, "3": 9}[name] == S
            for m, c in enumerate(layer.channels.tolist()):
                i, r, k = (int(t[c, e]) for t in (layer.image, layer.row, layer.col))
                x = (images[i][0].double().numpy() - 127.5) / 64
                whole = deconvnet(layers_of(model.net[: int(name) + 1]), x, (c, r, k))
                top, left = r * stride + low, k * stride + low
                window = np.s_[:, top : top + S, left : left + S]
                assert np.allclose(layer.projection[m, e], whole[window], atol=1e-12)
                window = images[i][0][:, top : top + S, left : left + S]
                assert torch.equal(layer.photo[m, e], window)


def test_of_units_that_see_more_than_the_picture_the_whole_picture_is_shown(small, folder):
    run = evolution(folder, small, ["conv5"], [0, 2], progress=False)
    layer = run["conv5"]
    assert layer.projection.shape == (2, 3, 3, 32, 32)  # 83 px, of pictures of 32
    for e, epoch in enumerate(run.epochs):
        model = zfkit.Run(folder).model(epoch)
        for m, c in enumerate((0, 2)):
            i, place = int(layer.image[c, e]), [int(layer.row[c, e]), int(layer.col[c, e])]
            x = model.preprocess(small[i][0])
            whole = zfkit.project(model, x, "conv5", c, torch.tensor([place]))[0]
            assert torch.allclose(layer.projection[m, e], whole, atol=1e-6 * float(whole.abs().max()))
            assert torch.equal(layer.photo[m, e], small[i][0])


def test_cka_is_over_pictures_and_places(found, several, images):
    """Of a fully connected layer each picture is a sample; of maps that are the same everywhere, places add none."""
    last = outputs(several[-1][1], images, "6")[:, :, 0, 0].numpy()
    for e, (_, model) in enumerate(several):
        now = outputs(model, images, "6")[:, :, 0, 0].numpy()
        assert float(found["6"].cka[e]) == pytest.approx(gram_cka(now, last), rel=1e-8)
    flat = image_set(np.repeat(np.repeat(random_pixels(15, 1, 4), SIDE, 1), SIDE, 2))
    run = evolution(several, flat, ["3"], compare=99, places=3, progress=False)
    last = outputs(several[-1][1], flat, "3")[:, :, 0, 0].numpy()
    for e, (_, model) in enumerate(several):
        now = outputs(model, flat, "3")[:, :, 0, 0].numpy()
        assert float(run["3"].cka[e]) == pytest.approx(gram_cka(now, last), rel=1e-8)


def test_distance_is_relative_to_the_first(found, several):
    weights = [m.net[3].weight.detach().numpy() for _, m in several]
    norms = [float(np.sqrt(((w - weights[-1]) ** 2).sum())) for w in weights]
    assert found["3"].distance.tolist() == pytest.approx([n / norms[0] for n in norms])
    assert found["3"].distance[-1] == 0 and found["3"].cka[-1] == pytest.approx(1)


def test_changed_counts_maps_that_are_active_before_and_after():
    image = torch.tensor([[1, 1, 2], [3, 4, 4], [5, 6, 7]])
    value = torch.tensor([[1.0, 1, 1], [1, 1, 1], [1, 0, 1]])
    nothing = torch.zeros(3, 3, dtype=torch.long)
    layer = LayerEvolution(
        value, image, nothing, nothing, value.double(), value[0].double(), value[0].double(), torch.tensor([0]),
        torch.zeros(1, 3, 3, 2, 2), torch.zeros(1, 3, 3, 2, 2, dtype=torch.uint8),
    )  # fmt: skip
    assert layer.changed.tolist() == [[False, False, True], [False, True, False], [False, True, True]]
    assert layer.share_changed.tolist() == pytest.approx([math.nan, 0.5, 0.5], nan_ok=True)


def test_tables_hold_the_same_numbers(found):
    table = found.table()
    assert table.loc[("3", 2), "cka"] == float(found["3"].cka[1])
    assert table.loc[("3", 5), "changed"] == float(found["3"].share_changed[2])
    assert table.loc[("6", 0), "map"] == float(found["6"].similarity[:, 0].nanmedian())
    maps = found.maps("3")
    assert maps.loc[(4, 5), "image"] == int(found["3"].image[4, 2]) and len(maps) == 15
    with pytest.raises(LayerError, match="layer '1' was not looked at; there are 0, 3, 6"):
        found.maps("1")


def test_maps_are_drawn_by_seed_and_named_by_layer(several, images):
    def shown(**options):
        run = evolution(several, images, progress=False, **options)
        return {n: layer.channels.tolist() for n, layer in run.layers.items()}

    assert shown(maps=2, random_seed=1) == shown(maps=2, random_seed=1)
    assert len({str(shown(maps=2, random_seed=s)) for s in range(5)}) > 1
    assert shown(channels={"3": [4, 1]}) == {"0": [], "3": [4, 1]}
    assert shown(layers="3", channels=[2]) == {"3": [2]}


def test_neither_batches_nor_a_set_in_memory_change_anything(found, several):
    streamed = image_set(random_pixels(24), memory=False)
    options = {"maps": 3, "compare": 24, "places": 4, "batch_size": 5, "progress": False}
    other = evolution(several, streamed, ["0", "3", "6"], **options)
    for name, layer in found.layers.items():
        assert torch.equal(layer.image, other[name].image)
        assert torch.allclose(layer.cka, other[name].cka)
        assert torch.allclose(layer.projection, other[name].projection)


def test_results_do_not_grow_with_the_pictures(several):
    sets = (image_set(random_pixels(n)) for n in (10, 60))
    few, many = (evolution(several, s, maps=2, compare=8, progress=False) for s in sets)
    assert few.compared == many.compared == 8 and many.count == 60
    for a, b in zip(few.layers.values(), many.layers.values(), strict=True):
        assert all(vars(a)[name].shape == vars(b)[name].shape for name in vars(a))


def test_a_damaged_picture_is_left_out_everywhere(several):
    pixels = random_pixels(12)

    def read(i):
        if i == 3:
            raise zfkit.errors.ImageError("picture 3: damaged")
        return Image.fromarray(pixels[i]), -1

    images = ImageSet(read, [f"picture {i}" for i in range(12)], size=SIDE)
    with pytest.warns(UserWarning, match="picture 3"):
        run = evolution(several, images, compare=12, progress=False)
    assert run.count == run.compared == 11
    assert not any((layer.image == 3).any() for layer in run.layers.values())


# ----------------------------------------------------------------------------------------- where snapshots are


def test_a_run_its_folder_and_any_folder_are_the_same(folder, small, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for epoch, path in zfkit.Run(folder).snapshots.items():
        shutil.copyfile(path, other / f"zf64-step{epoch}.safetensors")
    runs = [evolution(s, small, ["conv1"], progress=False) for s in (zfkit.Run(folder), str(folder), other)]
    assert [run.name for run in runs] == [folder.name, folder.name, "other"]
    for run in runs:
        assert run.epochs == (0, 1, 3) and not run.missing
        assert torch.equal(run["conv1"].cka, runs[0]["conv1"].cka)


def test_the_epoch_comes_from_the_name_or_the_provenance(tmp_path):
    write_snapshot(tmp_path / "last.safetensors", 9)
    write_snapshot(tmp_path / "v2_e03.safetensors", 1)
    (tmp_path / ".epoch_0004.safetensors.x1.safetensors").touch()  # being written
    assert list(snapshots_of(tmp_path)[1]) == [3, 9]
    load = load_weights(tmp_path / "last.safetensors")
    save_weights(tmp_path / "best.safetensors", load[0], {"architecture": describe(TINY)})
    with pytest.raises(ZfkitError, match=r"epoch of best.safetensors cannot be known.*epoch_0010"):
        snapshots_of(tmp_path)


def test_files_of_a_network_that_zfkit_did_not_train(tmp_path, images):
    from safetensors.torch import save_file

    for epoch in (1, 4):
        save_file(network(epoch).net.state_dict(), tmp_path / f"ckpt-{epoch}.safetensors")
    refused = pytest.raises(ZfkitError, match=r"does not say which network.*model=zfkit.wrap_model")
    with pytest.warns(UserWarning, match="epoch 4 is left out"), refused:
        evolution(tmp_path, images, progress=False)
    base = network(99)
    run = evolution(tmp_path, images, model=base, maps=2, progress=False)
    same = evolution([(e, network(e)) for e in (1, 4)], images, maps=2, progress=False)
    assert torch.equal(run["3"].image, same["3"].image) and torch.equal(run["3"].cka, same["3"].cka)
    wrong = nn.Sequential(nn.Conv2d(3, 2, 3))
    base = zfkit.wrap_model(wrong, mean=0, scale=1, input_size=SIDE)
    with pytest.raises(ZfkitError, match=r"another network than the model that was given: 0.bias is \(4,\)"):
        evolution(tmp_path, images, model=base, progress=False)


# ------------------------------------------------------------------------------------------------ bad input


def test_an_empty_folder_and_a_wrong_path_are_told(tmp_path, small):
    with pytest.raises(ZfkitError, match=r"holds no snapshots \(\*.safetensors, .*\*.pth\).*zfkit.fit"):
        evolution(tmp_path, small)
    with pytest.raises(ZfkitError, match="there is no folder"):
        evolution(tmp_path / "nowhere", small)
    with pytest.raises(ZfkitError, match="the list is empty"):
        evolution([], small)
    with pytest.raises(ZfkitError, match=r"pairs \(epoch, VisionModel\), not 'ab'"):
        evolution(["ab"], small)


def test_two_of_one_epoch_are_refused(folder, several, small):
    shutil.copyfile(folder / "snapshots" / "epoch_0001.safetensors", folder / "again_1.safetensors")
    shutil.copyfile(folder / "snapshots" / "epoch_0001.safetensors", folder / "epoch_001.safetensors")
    shutil.rmtree(folder / "snapshots")
    with pytest.raises(ZfkitError, match="both of epoch 1: keep one training in a folder"):
        evolution(folder, small)
    with pytest.raises(ZfkitError, match="two snapshots of epoch 5"):
        evolution([*several, (5, several[0][1])], small)


def test_snapshots_of_other_shapes_are_refused(folder, small):
    from dataclasses import replace

    wide = replace(TINY, widths=(4, 5, 7, 6, 4))
    write_snapshot(folder / "snapshots" / "epoch_0001.safetensors", 1, wide)
    with pytest.raises(ZfkitError, match=r"epoch 1 is of another network.*epoch 3: conv3.bias is \(7,\)"):
        evolution(folder, small, progress=False)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("epoch, left", [(1, (0, 3)), (3, (0, 1))])
def test_a_truncated_snapshot_is_left_out_and_told(folder, small, epoch, left):
    cut(folder / "snapshots" / f"epoch_{epoch:04d}.safetensors")
    with pytest.warns(UserWarning, match=f"epoch {epoch} is left out: epoch_000{epoch}.safetensors"):
        run = evolution(folder, small, ["conv2"], maps=2, progress=False)
    assert run.epochs == left and len(run.missing) == 1
    assert run["conv2"].cka[-1] == pytest.approx(1)  # compared with the last that can be read


def test_nothing_but_truncated_snapshots(folder, small):
    for path in (folder / "snapshots").iterdir():
        cut(path)
    refused = pytest.raises(zfkit.errors.ModelError, match=r"none of the snapshots of .* can be read")
    with pytest.warns(UserWarning, match="epoch 0 is left out"), refused:
        evolution(folder, small, progress=False)


def test_missing_epochs_are_listed(folder, small):
    run = evolution(folder, small, ["conv1", "conv2"], maps=2, epochs=[1, 2, 3, 64], progress=False)
    assert run.epochs == (1, 3)
    assert run.missing == ("epoch 2, 64 was not kept (there are: 0, 1, 3)",)
    with pytest.raises(ZfkitError, match=r"none of the epochs \[7\] was kept; there are: 0, 1, 3"):
        evolution(folder, small, epochs=[7])


def test_one_snapshot_is_compared_with_itself(folder, small):
    run = evolution(folder, small, ["conv1", "conv2"], maps=2, epochs=[3], progress=False)
    assert run.epochs == (3,) and run["conv1"].projection.shape[:2] == (2, 1)
    assert run.table()["changed"].isna().all() and run.table()["distance"].isna().all()
    with pytest.raises(ZfkitError, match="has one snapshot, of epoch 3"):
        convergence(run)


def test_it_can_be_followed_and_cancelled(several, images):
    told = []
    evolution(several, images, ["0"], progress=False, on_step=lambda *step: told.append(step))
    assert told == [(1, 3), (2, 3), (3, 3)]

    def cancel(done, total):
        raise Cancelled

    with pytest.raises(Cancelled):
        evolution(several, images, ["0"], progress=False, on_step=cancel)


@pytest.mark.parametrize("options, message", [
    ({"layers": ["convolution"]}, "there is no layer 'convolution'"), ({"layers": []}, "no layer was named"),
    ({"channels": [0]}, "channels of 5 layers must be given by layer"),
    ({"layers": "conv1", "channels": [4]}, "feature maps, 0 to 3 of 'conv1'"),
    ({"layers": "conv1", "channels": {"conv2": [1]}}, "no layer looked at 'conv2'"),
    ({"compare": 2.5}, "compare must be a whole number"),
])  # fmt: skip
def test_what_does_not_exist_is_refused(folder, small, options, message):
    with pytest.raises(ZfkitError, match=re.escape(message)):
        evolution(folder, small, progress=False, **options)


# ----------------------------------------------------------------------------------------------- the bundled


def test_the_bundled_runs_are_whole_and_small():
    runs = bundled_runs()
    assert len(runs) == 3
    size = sum(f.stat().st_size for run in runs for f in run.folder.rglob("*") if f.is_file())
    assert size < 4 * 2**20
    for run in runs:
        assert list(run.snapshots) == list(runs[0].snapshots)
        assert {0, 1, 2, 5, 10, 20} <= set(run.snapshots)  # Fig. 4's, as far as they go
        assert run.history.lr.nunique() == 1 and len(run.history) == max(run.snapshots)
    val = zfkit.load_images("textures", size=64, split="val", limit=256, progress=False)
    model = runs[0].model()
    measured = zfkit.evaluate(model, val).top1
    assert measured == pytest.approx(model.provenance["top1"], abs=0.5)
    assert measured > 55  # of 16 classes


def test_a_training_is_named_after_its_folder_or_as_asked(folder, small):
    names = [
        evolution(folder, small, ["conv1"], maps=1, name=name, progress=False).name for name in (None, "mine")
    ]
    assert names == [folder.name, "mine"]
