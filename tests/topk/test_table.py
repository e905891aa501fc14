"""Tables: parts merged into the table of one run, saved and read, and used with what they were made of alone."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mining import assert_same, conv_model, exact_model, pictures
from PIL import Image
from tiny import image_set, noise
from torch import nn

import zfkit
from zfkit import TopK, ZfkitError, load_images
from zfkit.errors import ImageError
from zfkit.topk import MiningPlan, mine_part

# ------------------------------------------------------------------------------------------------------- merging


def tables_of(model, images, n, inside=False, k=4, batch_size=7):
    plan = MiningPlan.checked(model, images, None, k, None, inside, batch_size, "float32")
    return [mine_part(plan, part) for part in plan.parts(n)]


@pytest.mark.parametrize("windows", [False, True], ids=["pictures", "windows"])
@pytest.mark.parametrize("inside", [False, True], ids=["all", "inside"])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 11, 30])
def test_merged_parts_are_the_table_of_one_run(n, windows, inside):
    """Also where a photograph's windows lie across the cut, and where parts are empty: 11 batches, 30 parts."""
    model, images = exact_model(), pictures(75, windows)
    whole = zfkit.mine(model, images, k=4, inside=inside, batch_size=7, progress=False)
    tables = tables_of(model, images, n, inside)
    merged = TopK.merge([tables[i] for i in np.random.default_rng(n).permutation(n)], images)  # in any order
    assert_same(merged, whole)
    merged.check(model, images)


def test_a_mean_between_two_numbers_is_rounded_alike_in_any_order():
    """1 + 2^-24 lies in the middle of two float32 numbers, of which 1 is even."""
    tables = tables_of(exact_model(), images := pictures(75), 5)
    shares = np.random.default_rng(0).permuted([0, 1, 7, 27, 40])
    for table, share in zip(tables, shares, strict=True):
        for top in table.layers.values():
            top.mean[:] = float(share) * (1 + 2.0**-24) / table.count
    for seed in range(20):
        merged = TopK.merge([tables[i] for i in np.random.default_rng(seed).permutation(5)], images)
        assert all((top.mean == 1).all() for top in merged.layers.values())


@pytest.mark.parametrize("windows", [False, True])
def test_parts_hold_every_picture_once_and_no_photograph_twice(windows):
    images = pictures(75, windows)
    plan = MiningPlan.checked(exact_model(), images, None, 4, None, False, 7, "float32")
    for n in (1, 4, 30):
        parts = plan.parts(n)
        assert [i for part in parts for i in part] == list(range(75))
        if windows:
            photographs = [{int(images.windows.photograph[i]) for i in part} for part in parts]
            assert sum(map(len, photographs)) == len(set().union(*photographs))


def test_unreadable_pictures_at_the_end_of_parts_count_as_seen():
    broken = {*range(5, 10), *range(17, 23), 39}

    def check(i):
        if i in broken:
            raise ImageError(f"picture {i}: broken")

    model, images = exact_model(), pictures(40, before=check)
    with pytest.warns(UserWarning, match="skipped picture"):
        merged = TopK.merge(tables_of(model, images, 8, batch_size=5), images)
        assert_same(merged, zfkit.mine(model, images, k=4, batch_size=5, progress=False))
    assert merged.count == 40 - len(broken)


def test_tables_that_do_not_belong_together_are_refused():
    model, images = exact_model(), pictures(75)
    tables = tables_of(model, images, 3)
    changed = exact_model()
    with torch.no_grad():
        changed.net[0].weight[0] += 1
    for others, images_now, message in (
        ([tables[0], *tables_of(model, images, 3, k=5)[1:]], images, "of different runs: k differ"),
        ([*tables[:2], tables_of(changed, images, 3)[2]], images, "different runs: weights differ"),
        (tables, pictures(76), "mined from .*, not from .* as it is now: mine again"),
        ([*tables, tables[1]], images, "their parts overlap"),
        ([], images, "none of the 75 pictures"),
    ):
        with pytest.raises(ZfkitError, match=message):
            TopK.merge(others, images_now)


# ------------------------------------------------------------------------------------------------- save and load


def test_a_saved_table_comes_back_as_it_was(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(80, 3))
    model = zfkit.wrap_model(net, mean=128, scale=1 / 64, input_size=8, name="Größe 🦔")
    images = image_set(noise(3, 8))
    top = zfkit.mine(model, images, ["2", "0", "4"], k=5, progress=False)  # k > 3: some ranks are empty
    path = top.save(tmp_path / "below" / "top.parquet")
    assert [f.name for f in (tmp_path / "below").iterdir()] == ["top.parquet"]
    loaded = TopK.load(path)
    assert_same(top, loaded)
    loaded.check(model, images)


def saved_with(path, top, **changes):
    """The table's file with other entries in its header; an entry of None is taken out."""
    table = pq.read_table(top.save(path))
    head = json.loads(table.schema.metadata[b"zfkit"]) | changes
    head = {name: value for name, value in head.items() if value is not None}
    pq.write_table(table.replace_schema_metadata({"zfkit": json.dumps(head)}), path)


def test_files_that_are_no_table_are_refused_in_a_sentence(tmp_path):
    top = zfkit.mine(conv_model(), image_set(noise(3, 8)), k=2, progress=False)
    files = foreign, text, cut, newer, bare, zero, short = [
        tmp_path / f"{name}.parquet" for name in ("foreign", "text", "cut", "newer", "bare", "zero", "short")
    ]
    pq.write_table(pa.table({"image": [1, 2]}), foreign)
    text.write_text("layer,channel\nconv1,3\n")
    cut.write_bytes(top.save(tmp_path / "top.parquet").read_bytes()[:-100])
    saved_with(newer, top, format=99)
    saved_with(bare, top, count=None)
    saved_with(zero, top, k=1)
    pq.write_table(pq.read_table(top.save(short)).drop_columns(["row"]), short)
    for file in files:
        with pytest.raises(ZfkitError, match=f"^{file.name} is not a table .*mine again") as caught:
            TopK.load(file)
        assert "NoneType" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ZfkitError, match=r"there is no file '.*gone.parquet'; check the path"):
        TopK.load(tmp_path / "gone.parquet")


@pytest.mark.parametrize("name, value, said", [
    ("image", 3, "values of 'image'"), ("image", -2, "values of 'image'"), ("image", -1, "activations"),
    ("row", 8, "values of 'row'"), ("row", -1, "values of 'row'"), ("col", 2**40, "values of 'col'"),
    ("value", torch.nan, "activations"), ("value", torch.inf, "activations"), ("value", [0.1, 0.2], "activations"),
    ("max", torch.nan, "activations"), ("mean", -torch.inf, "activations"), ("active", 1.1, "activations"),
])  # fmt: skip
def test_what_cannot_be_in_a_table_is_refused_by_name(name, value, said, tmp_path):
    """Of 3 pictures and maps of 8 x 8: in a file whose checksum fits."""
    top = zfkit.mine(conv_model(), image_set(noise(3, 8)), k=2, progress=False)
    column = getattr(top["0"], name).clone()
    column[1] = torch.tensor(value)
    changed = {"0": dataclasses.replace(top["0"], **{name: column})}
    file = dataclasses.replace(top, layers=changed).save(tmp_path / "t.parquet")
    with pytest.raises(ZfkitError, match=rf"t\.parquet is not a table .*layer '0' has {said} that cannot be"):
        TopK.load(file)


# -------------------------------------------------------------------------------------- what a table belongs to


@pytest.mark.parametrize("change, message", [
    ({"fingerprint": "0" * 16}, r"mined from .* \(9 pictures\), not from .*: mine again"),
    ({"weights": "0" * 16}, r"'exact' \(weights, .*\) has changed since this table was mined: mine again"),
    ({"model": "another"}, "mined with 'another', not with 'exact': mine again"),
])  # fmt: skip
def test_a_saved_table_is_refused_wherever_it_is_used(change, message, tmp_path):
    """Fingerprints of weights and pictures travel in the file."""
    pytest.importorskip("ipywidgets")
    model, images = exact_model(), pictures(9)
    top = zfkit.mine(model, images, k=2, progress=False)
    loaded = TopK.load(dataclasses.replace(top, **change).save(tmp_path / "t.parquet"))
    for use in (
        lambda: loaded.check(model, images),
        lambda: zfkit.project_top(model, images, loaded, "0"),
        lambda: zfkit.write_atlas(model, images, tmp_path / "atlas", top=loaded, progress=False),
        lambda: zfkit.explore(model, images, loaded),
    ):
        with pytest.raises(ZfkitError, match=message):
            use()


def test_a_network_whose_weights_were_changed_is_another():
    model, images = exact_model(), pictures(5)
    top = zfkit.mine(model, images, progress=False)
    top.check(model, images)
    with torch.no_grad():
        model.net[3].bias[2] = 0.5
    with pytest.raises(ZfkitError, match=r"'exact' .* has changed since"):
        top.check(model, images)


def test_some_of_a_tables_layers_belong_to_the_same_network():
    model, images = exact_model(), pictures(5)
    top = zfkit.mine(model, images, progress=False)
    dataclasses.replace(top, layers={"0": top["0"]}).check(model, images)


def write_pictures(folder, seed):
    """Five files of the same names whatever the seed, but not of the same length."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(5):
        Image.fromarray(rng.integers(0, 16**seed, (16, 16, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def write_parquet(folder, seed):
    rows = [
        {"bytes": f.read_bytes(), "path": None}
        for f in sorted(write_pictures(folder / "png", seed).iterdir())
    ]
    pq.write_table(pa.table({"image": rows}), folder / "val.parquet")
    return folder / "val.parquet"


@pytest.mark.parametrize("kind, write", [("folder", write_pictures), ("parquet", write_parquet)])
def test_a_table_of_other_pictures_under_the_same_names_is_refused(kind, write, tmp_path):
    """Files that were replaced are other pictures; a copy elsewhere, as on another host, is not."""
    model = exact_model()

    def load(seed, where="here"):
        return load_images(f"{kind}:{write(tmp_path / where, seed)}", size=16, progress=False)

    images = load(1)
    top = zfkit.mine(model, images, k=3, progress=False)
    top.check(model, load(1, "there"))
    others = load(2)
    assert [images.name(i) for i in range(5)] == [others.name(i) for i in range(5)]
    with pytest.raises(ZfkitError, match=r"mined from .*\(5 pictures\), not from .*mine again"):
        zfkit.project_top(model, others, top, "0")
