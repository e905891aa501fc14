"""The strongest activations against a brute-force sort, and their windows against whole-picture projections."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import zfkit
import zfkit.topk.mine as topk
import zfkit.topk.patches as patches_module
from zfkit.images.imageset import ImageSet, Windows
from zfkit.topk.table import LayerTop, TopK

QUICK = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def image_set(pixels, windows=None, in_memory=True, read=None):
    """uint8 (N, 3, S, S) as an ImageSet."""

    def from_pixels(i):
        return Image.fromarray(pixels[i].permute(1, 2, 0).numpy()), -1

    names = [f"picture {i}" for i in range(len(pixels))]
    images = ImageSet(read or from_pixels, names, size=pixels.shape[-1], source="made up", windows=windows)
    return images.in_memory(progress=False) if in_memory else images


def random_pixels(n, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def coarse_(net, generator):
    """Give a network few distinct weights, all multiples of a half: sums are exact, and ties are many."""
    for p in net.parameters():
        p.data = torch.randint(-2, 3, p.shape, generator=generator).to(p.dtype) / 2
    return net


@st.composite
def coarse_models(draw, size):
    """conv, ReLU, max-pool, conv, ReLU, linear: small, with exact arithmetic."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    kernel, stride, pad = draw(st.sampled_from([(3, 1, 1), (3, 2, 1), (2, 2, 0), (1, 1, 0)]))
    a, b = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    body = [
        nn.Conv2d(3, a, kernel, stride, pad),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(a, b, 2),
        nn.ReLU(),
    ]
    flat = nn.Sequential(*body)(torch.zeros(1, 3, size, size)).numel()
    net = coarse_(nn.Sequential(*body, nn.Flatten(), nn.Linear(flat, 3)), generator)
    net = net.to(draw(st.sampled_from([torch.float32, torch.float64])))
    return zfkit.wrap_model(net, mean=128.0, scale=1 / 64, input_size=size)


@st.composite
def coarse_pixels(draw, size, most=9):
    """Pictures of few grey levels, some constant, some repeated."""
    n = draw(st.integers(1, most))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    levels = torch.tensor([0, 64, 128, 192], dtype=torch.uint8)
    pixels = levels[torch.randint(0, 4, (n, 3, size, size), generator=generator)]
    for i in range(n):
        kind = draw(st.sampled_from(["own", "constant", "repeated"]))
        if kind == "constant":
            pixels[i] = levels[draw(st.integers(0, 3))]
        elif kind == "repeated":
            pixels[i] = pixels[draw(st.integers(0, i))]
    return pixels


def strongest_of_each(model, pixels, layer, inside=False):
    """[map][picture] -> (value, row, col) of the first maximum, a loop over all activations of one picture.

    With `inside`, of the units whose receptive field lies in the picture.
    """
    field = zfkit.receptive_field(model, layer)
    found = []
    for picture in pixels:
        x = model.preprocess(picture)
        with torch.no_grad():
            for module in model.net[: int(layer) + 1]:
                x = module(x)
        maps = x[0].numpy() if x.dim() == 4 else x[0, :, None, None].numpy()
        found.append([])
        for m in maps:
            best = None
            for (row, col), value in np.ndenumerate(m):
                left, top, right, bottom = field.box(row, col)
                if inside and not (min(left, top) >= 0 and max(right, bottom) <= picture.shape[-1]):
                    continue
                if best is None or value > best[0]:
                    best = (float(value), row, col)
            found[-1].append(best)
    return [list(of_map) for of_map in zip(*found, strict=True)]


def brute_force(model, pixels, layer, k, inside=False):
    """[(channel, rank, value, image, row, col)] by sorting every picture's maximum."""
    rows = []
    for channel, of_map in enumerate(strongest_of_each(model, pixels, layer, inside)):
        order = sorted(range(len(of_map)), key=lambda i: (-of_map[i][0], i))
        for rank, i in enumerate(order[:k]):
            value, row, col = of_map[i]
            rows.append((channel, rank, value, i, row, col))
    return rows


def rows_of(top, layer):
    frame = top.table(layer)
    columns = ["channel", "rank", "value", "image", "row", "col"]
    return list(frame[columns].itertuples(index=False, name=None))


def same(a, b):
    """Are two tables equal to the last bit?"""
    fields = LayerTop.__dataclass_fields__
    heads = [{**vars(t), "layers": list(t.layers)} for t in (a, b)]
    return heads[0] == heads[1] and all(
        torch.equal(getattr(a[layer], name), getattr(b[layer], name)) for layer in a.layers for name in fields
    )


# --------------------------------------------------------------------------------------------------- mine


@QUICK
@given(data=st.data(), k=st.integers(1, 12), in_memory=st.booleans(), inside=st.booleans())
def test_mining_equals_a_sort_of_all_activations_whatever_the_batch_size(data, k, in_memory, inside):
    size = data.draw(st.integers(6, 8))
    model, pixels = data.draw(coarse_models(size)), data.draw(coarse_pixels(size))
    images, layers = image_set(pixels, in_memory=in_memory), ["0", "1", "3", "6"]
    assume(not inside or zfkit.receptive_field(model, "3").box(1, 1).right <= size)
    tables = [
        zfkit.mine(model, images, layers, k, inside=inside, batch_size=b, progress=False)
        for b in (1, 2, 3, 7, len(pixels), None)
    ]
    for layer in layers:
        assert rows_of(tables[0], layer) == brute_force(model, pixels, layer, k, inside)
    assert all(same(tables[0], t) for t in tables[1:])


@QUICK
@given(data=st.data())
def test_statistics_are_those_of_every_pictures_maximum(data):
    size = data.draw(st.integers(6, 8))
    model, pixels = data.draw(coarse_models(size)), data.draw(coarse_pixels(size))
    top = zfkit.mine(model, image_set(pixels), ["0", "3"], k=2, batch_size=2, progress=False)
    for layer in ("0", "3"):
        of_maps = strongest_of_each(model, pixels, layer)
        values = np.array([[value for value, _, _ in of_map] for of_map in of_maps])
        statistics = top.statistics(layer)
        np.testing.assert_array_equal(statistics["max"], values.max(1))
        np.testing.assert_allclose(statistics["mean"], values.mean(1), rtol=1e-6)
        np.testing.assert_allclose(statistics["active"], (values > 0).mean(1), rtol=1e-6)


def test_ranks_without_a_picture_are_left_out_of_the_table():
    model = conv_model(channels=4)
    top = zfkit.mine(model, image_set(random_pixels(3, 8)), k=5, progress=False)
    frame = top.table()
    assert list(frame.columns) == ["layer", "channel", "rank", "value", "image", "row", "col"]
    assert len(frame) == 4 * 3 and frame["rank"].max() == 2 and (frame["image"] >= 0).all()
    assert (top["0"].image[:, 3:] == -1).all()
    assert (top["0"].value[:, 3:] == -torch.inf).all()


def test_all_convolutional_layers_are_mined_by_default():
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 5, 3))
    model = zfkit.wrap_model(net, mean=128, scale=1, input_size=8)
    top = zfkit.mine(model, image_set(random_pixels(3, 8)), k=2, progress=False)
    assert list(top.layers) == ["0", "2"]
    assert top["2"].value.shape == (5, 2)
    assert len(top.table()) == (2 + 5) * 2
    with pytest.raises(zfkit.errors.LayerError, match=r"'1' was not mined; this table has 0, 2"):
        top.table("1")


def test_pictures_that_cannot_be_read_are_passed_over():
    pixels = random_pixels(5, 8)

    def read(i):
        if i == 2:
            raise zfkit.errors.ImageError("picture 2: damaged")
        return Image.fromarray(pixels[i].permute(1, 2, 0).numpy()), -1

    model = conv_model()
    with pytest.warns(UserWarning, match="picture 2"):
        top = zfkit.mine(
            model, image_set(pixels, in_memory=False, read=read), k=5, batch_size=2, progress=False
        )
    readable = [i for i in range(5) if i != 2]
    expected = brute_force(model, pixels[readable], "0", 4)
    assert top.count == 4
    assert [(c, r, i) for c, r, _, i, _, _ in rows_of(top, "0")] == [
        (c, r, readable[i]) for c, r, _, i, _, _ in expected
    ]


# --------------------------------------------------------------------------- windows of larger photographs


def overlapping(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def greedy(values, photograph, box, k, share):
    """Places of the accepted windows, strongest first."""
    accepted = []
    for i in sorted(range(len(values)), key=lambda i: (-values[i], i)):
        rivals = [j for j in accepted if photograph[j] == photograph[i]]
        if len(rivals) < share and not any(overlapping(box[i], box[j]) for j in rivals):
            accepted.append(i)
    return accepted[:k]


@QUICK
@given(data=st.data(), k=st.integers(1, 9), share=st.one_of(st.none(), st.integers(1, 4)))
def test_of_windows_the_strongest_that_do_not_overlap_count(data, k, share):
    model, pixels = data.draw(coarse_models(6)), data.draw(coarse_pixels(6, most=14))
    n = len(pixels)
    photograph = sorted(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    corners = data.draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=n, max_size=n))
    box = [(x, y, x + 3, y + 3) for x, y in corners]
    windows = Windows(torch.tensor(photograph), torch.tensor(box, dtype=torch.float32))
    images = image_set(pixels, windows, in_memory=data.draw(st.booleans()))
    tables = [
        zfkit.mine(model, images, ["3"], k, per_photograph=share, batch_size=b, progress=False)
        for b in (1, 2, 3, 7, n)
    ]
    expected = []
    for channel, of_map in enumerate(strongest_of_each(model, pixels, "3")):
        accepted = greedy([v for v, _, _ in of_map], photograph, box, k, share or -(-k // 3))
        expected += [
            (channel, rank, of_map[i][0], i, of_map[i][1], of_map[i][2]) for rank, i in enumerate(accepted)
        ]
    assert rows_of(tables[0], "3") == expected
    assert all(same(tables[0], t) for t in tables[1:])


def test_the_album_gives_no_map_more_than_three_windows_of_a_photograph_nor_two_of_one_spot():
    album = zfkit.load_images("photos", size=64, progress=False)
    top = zfkit.mine(zfkit.load_model("zfnet64", device="cpu"), album, ["conv2"], k=9, progress=False)
    photograph, box = album.windows.photograph.tolist(), album.windows.box.tolist()
    assert len(set(photograph)) >= 6  # or the share would leave places empty
    for images in top["conv2"].image.tolist():
        assert len(set(images)) == 9 and min(images) >= 0
        for n, i in enumerate(images):
            same_photograph = [j for j in images if photograph[j] == photograph[i]]
            assert len(same_photograph) <= 3
            assert not any(overlapping(box[i], box[j]) for j in images[:n] if photograph[i] == photograph[j])


# ------------------------------------------------------------------------------------------------ bad input


def conv_model(channels=2, size=8):
    """One 3x3 convolution, layer "0"."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1))
    return zfkit.wrap_model(net, mean=128, scale=1 / 64, input_size=size)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_activations_that_are_not_finite_name_the_layer_and_the_picture(batch_size):
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
    model = zfkit.wrap_model(net, mean=0, scale=1, input_size=8)
    images = image_set(random_pixels(4, 8))
    net[2].weight.data[1, 0, 0, 0] = torch.nan
    with pytest.raises(zfkit.ZfkitError, match="'2' on picture 0 are not finite: check the weights"):
        zfkit.mine(model, images, batch_size=batch_size, progress=False)
    # Too large only where a picture is not black.
    net[0].weight.data.fill_(3e38)
    net[0].bias.data.zero_()
    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    pixels[2] = 200
    with pytest.raises(zfkit.ZfkitError, match="'0' on picture 2 are not finite"):
        zfkit.mine(model, image_set(pixels), ["0"], batch_size=batch_size, progress=False)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layers": "conv9"}, r"no layer 'conv9'.*0"),
        ({"layers": ["0", "conv9"]}, r"no layer 'conv9'"),
        ({"layers": []}, r"no layer was named.*There are: 0"),
        ({"k": 0}, r"k must be a whole number from 1 on, not 0"),
        ({"k": 2.5}, r"k must be a whole number from 1 on, not 2.5"),
        ({"per_photograph": 0}, r"per_photograph must be a whole number from 1 on, not 0"),
        ({"batch_size": 0}, r"batch_size must be a whole number from 1 on, not 0"),
    ],
)
def test_mining_refuses_what_it_cannot_do(options, message):
    with pytest.raises(zfkit.ZfkitError, match=message):
        zfkit.mine(conv_model(), image_set(random_pixels(3, 8)), **options, progress=False)


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        (None, [1, 2], r"the pictures must be ImageSet, as zfkit.load_images makes it.*not list \[1, 2\]"),
        ("zfnet64", None, r"the model must be VisionModel, as zfkit.load_model.*not str 'zfnet64'"),
        (nn.Conv2d(3, 1, 1), None, r"zfkit.wrap_model makes it; not Conv2d"),
    ],
)
def test_what_is_no_model_or_no_pictures_is_said(model, images, message):
    model = conv_model() if model is None else model
    images = image_set(random_pixels(3, 8)) if images is None else images
    with pytest.raises(zfkit.ZfkitError, match=message):
        zfkit.mine(model, images, progress=False)
    with pytest.raises(zfkit.ZfkitError, match=message):
        zfkit.mine(conv_model(), image_set(random_pixels(3, 8)), progress=False).check(model, images)


def test_mining_nothing_is_refused():
    empty = ImageSet(lambda i: None, [], size=8)
    with pytest.raises(zfkit.errors.ImageError, match="no pictures"):
        zfkit.mine(conv_model(), empty, progress=False)


def test_mining_pictures_of_which_none_can_be_read_says_why():
    def read(i):
        raise zfkit.errors.ImageError(f"picture {i}: truncated")

    images = ImageSet(read, ["picture 0", "picture 1"], size=8)
    with (
        pytest.warns(UserWarning),
        pytest.raises(zfkit.errors.ImageError, match=r"none of the 2 pictures.*picture 0: truncated"),
    ):
        zfkit.mine(conv_model(), images, progress=False)


def test_pictures_smaller_than_the_receptive_field_have_no_units_inside():
    net = nn.Sequential(nn.Conv2d(3, 2, 5, padding=2), nn.ReLU(), nn.Conv2d(2, 2, 5, padding=2))
    model = zfkit.wrap_model(net, mean=0, scale=1, input_size=8)
    with pytest.raises(
        zfkit.errors.LayerError, match=r"'2' see 9 px, so in pictures of 8 px none.*leave out inside"
    ):
        zfkit.mine(model, image_set(random_pixels(3, 8)), inside=True, progress=False)
    top = zfkit.mine(model, image_set(random_pixels(3, 9)), "2", k=3, inside=True, progress=False)
    assert (top["2"].row == 4).all() and (top["2"].col == 4).all()  # the only one that sees just the picture


@pytest.mark.parametrize("batch_size", [None, 2])
def test_pictures_too_small_for_the_layer_are_refused(batch_size):
    net = nn.Sequential(nn.Conv2d(3, 2, 5), nn.ReLU(), nn.Conv2d(2, 2, 5))
    model = zfkit.wrap_model(net, mean=0, scale=1, input_size=16)
    with pytest.raises(
        zfkit.errors.LayerError, match="cannot run to 2 on images of 8 x 8 px; it was made for 16 px"
    ):
        zfkit.mine(model, image_set(random_pixels(3, 8)), ["2"], batch_size=batch_size, progress=False)


# -------------------------------------------------------------------------------------------- save and load


def test_a_saved_table_comes_back_as_it_was(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(80, 3))
    model = zfkit.wrap_model(net, mean=128, scale=1 / 64, input_size=8, name="Größe 🦔")
    images = image_set(random_pixels(3, 8))
    top = zfkit.mine(model, images, ["2", "0", "4"], k=5, progress=False)  # k > 3: some ranks are empty
    path = top.save(tmp_path / "below" / "top.parquet")
    loaded = TopK.load(path)
    assert same(top, loaded)
    for layer in top.layers:
        for name in LayerTop.__dataclass_fields__:
            assert getattr(top[layer], name).dtype == getattr(loaded[layer], name).dtype
    assert path.parent == tmp_path / "below"
    assert [f.name for f in path.parent.iterdir()] == ["top.parquet"]
    loaded.check(model, images)


def saved_with(path, top, **changes):
    """The table's file with other entries in its header; an entry of None is taken out."""
    import json

    table = pq.read_table(top.save(path))
    head = json.loads(table.schema.metadata[b"zfkit"]) | changes
    head = {name: value for name, value in head.items() if value is not None}
    pq.write_table(table.replace_schema_metadata({"zfkit": json.dumps(head)}), path)


def test_files_that_are_no_table_are_refused_in_a_sentence(tmp_path):
    top = zfkit.mine(conv_model(), image_set(random_pixels(3, 8)), k=2, progress=False)
    foreign, text, cut, newer, bare, short = (
        tmp_path / f"{name}.parquet" for name in ("foreign", "text", "cut", "newer", "bare", "short")
    )
    pq.write_table(pa.table({"image": [1, 2]}), foreign)
    text.write_text("layer,channel\nconv1,3\n")
    cut.write_bytes(top.save(tmp_path / "top.parquet").read_bytes()[:-100])
    saved_with(newer, top, format=99)
    saved_with(bare, top, count=None)
    table = pq.read_table(top.save(short))
    pq.write_table(table.drop_columns(["row"]), short)
    for file in (foreign, text, cut, newer, bare, short):
        with pytest.raises(zfkit.ZfkitError) as caught:
            TopK.load(file)
        message = str(caught.value)
        assert message.startswith(f"{file.name} is not a table that this version of TopK.save wrote")
        assert "mine again" in message
        assert "NoneType" not in message and "\n" not in message
    with pytest.raises(zfkit.ZfkitError, match=r"there is no file '.*gone.parquet'; check the path"):
        TopK.load(tmp_path / "gone.parquet")


def test_a_table_is_not_used_with_other_pictures_or_another_network():
    model, images = conv_model(), image_set(random_pixels(4, 8))
    top = zfkit.mine(model, images, k=2, progress=False)
    top.check(model, images)
    fewer = image_set(random_pixels(3, 8))
    with pytest.raises(
        zfkit.ZfkitError, match=r"mined from 'made up' \(4 pictures\), not .*\(3\).*mine again"
    ):
        top.check(model, fewer)
    with pytest.raises(zfkit.ZfkitError, match="mine again"):
        zfkit.project_top(model, fewer, top, "0")
    other = dataclasses.replace(model, name="other")
    with pytest.raises(zfkit.ZfkitError, match="mined with 'mine', not with 'other': mine again"):
        zfkit.project_top(other, images, top, "0")


# -------------------------------------------------------------------------------------------- project_top


def table_of(model, images, units):
    """A TopK made by hand: {layer: [(image, row, col) of channel 0, of channel 1, ...]}, or lists of k."""
    layers, k = {}, 1
    for layer, of_layer in units.items():
        places = torch.tensor(of_layer).view(len(of_layer), -1, 3)
        C, k = places.shape[:2]
        image, row, col = places.unbind(-1)
        # Value, maximum and so on take no part in projections.
        layers[layer] = LayerTop(torch.rand(C, k), image, row, col, *torch.rand(3, C))
    return TopK(layers, k, model.name, images.source, images.fingerprint(), len(images))


def cut_out(picture, box, outside):
    """What lies at `box` of one picture (C, H, W), `outside` beyond its borders."""
    left, top, right, bottom = box
    margin = max(0, -left, -top, right - picture.shape[2], bottom - picture.shape[1])
    padded = F.pad(picture, (margin,) * 4, value=outside)
    return padded[:, top + margin : bottom + margin, left + margin : right + margin]


def assert_windows_equal_whole_pictures(model, images, top, layer, patches=None, **options):
    """Each projection against `project` of its unit on the full picture, cut to the receptive field."""
    if patches is None:
        patches = zfkit.project_top(model, images, top, layer, **options)
    field = zfkit.receptive_field(model, layer)
    for c in range(len(patches.channels)):
        for rank in range(patches.image.shape[1]):
            image, row, col = (int(t[c, rank]) for t in (patches.image, patches.row, patches.col))
            picture = images[image][0]
            x = model.preprocess(picture)
            full = zfkit.project(model, x, layer, int(patches.channels[c]), [[row, col]], **options)[0]
            box = field.box(row, col)
            expected = cut_out(full, box, 0)
            error = (patches.projection[c, rank] - expected).abs().max()
            assert error <= 1e-10 * full.abs().max(), (layer, c, image, row, col)
            assert tuple(patches.box[c, rank].tolist()) == tuple(box)
            assert torch.equal(patches.photo[c, rank], cut_out(picture, box, 128))
    return patches


@pytest.fixture
def ways(monkeypatch):
    """Which of the two ways of projecting were taken: {"crops", "pictures"}."""
    taken = set()

    def spied(name, way):
        inner = getattr(patches_module, name)

        def outer(model, photos, what, *rest):
            if what:
                taken.add(way)
            return inner(model, photos, what, *rest)

        monkeypatch.setattr(patches_module, name, outer)

    spied("_from_crops", "crops")
    spied("_from_pictures", "pictures")
    return taken


@pytest.fixture(scope="module")
def zfnet64():
    """The bundled network in double precision."""
    model = zfkit.load_model("zfnet64", device="cpu")
    model.net.double()
    return model


CONV_LAYERS = ["conv1", "conv2", "conv3", "conv4", "conv5"]


def map_side(model, layer, size):
    found = dict(topk.activations(model, torch.zeros(1, 3, size, size, dtype=torch.uint8), [layer]))
    return found[layer].shape[-1]


@pytest.mark.parametrize("size", [97, 64])
@pytest.mark.parametrize("layer", CONV_LAYERS)
def test_units_at_corners_borders_and_inside_are_as_in_the_whole_picture(zfnet64, ways, layer, size):
    images = image_set(random_pixels(1, size))
    end = map_side(zfnet64, layer, size) - 1
    places = [(0, 0), (0, end), (end, 0), (end, end), (0, end // 2), (end // 2, end), (end // 2, end // 3)]
    top = table_of(zfnet64, images, {layer: [(0, row, col) for row, col in places]})
    assert_windows_equal_whole_pictures(zfnet64, images, top, layer)


@pytest.mark.parametrize("layer, size", [("conv1", 65), ("conv2", 97), ("conv3", 131), ("conv5", 181)])
def test_few_units_are_projected_from_crops_as_in_the_whole_picture(zfnet64, ways, layer, size):
    images = image_set(random_pixels(3, size))
    end = map_side(zfnet64, layer, size) - 1
    units = [(0, end, end), (1, end // 2, 0), (2, end // 2, end // 3)]  # one for each picture
    top = table_of(zfnet64, images, {layer: units})
    assert_windows_equal_whole_pictures(zfnet64, images, top, layer)
    assert ways == {"crops"}


def test_many_units_are_projected_from_whole_pictures(zfnet64, ways):
    images = image_set(random_pixels(2, 66))
    top = table_of(zfnet64, images, {"conv3": [[(i, i, 3), (1, 4, i)] for i in (0, 1, 1, 0)]})
    assert_windows_equal_whole_pictures(zfnet64, images, top, "conv3")
    assert ways == {"pictures"}


def test_layers_projected_together_are_as_one_by_one(zfnet64, ways):
    images = image_set(random_pixels(3, 70))
    # conv1 sees little of a picture and is cut out; the others need all of it.
    top = table_of(
        zfnet64, images,
        {layer: [[(0, 1, 2), (2, 3, 3)], [(1, 0, 4), (0, 4, 1)]] for layer in ("conv1", "conv3", "conv5")},
    )  # fmt: skip
    wanted = {"conv5": [1], "conv1": None, "conv3": [1, 0]}
    together = patches_module.project_many(zfnet64, images, top, wanted)
    assert ways == {"crops", "pictures"}
    assert list(together) == ["conv5", "conv1", "conv3"]
    for layer, patches in together.items():
        assert_windows_equal_whole_pictures(zfnet64, images, top, layer, patches)
    assert together["conv3"].channels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "options", [{"rule": "guided"}, {"rule": "gradient", "lrn": "gradient"}, {"seed": "activation"}]
)
def test_options_reach_the_projection(zfnet64, options):
    images = image_set(random_pixels(2, 71))
    top = table_of(zfnet64, images, {"conv2": [(0, 0, 9), (1, 14, 3)]})
    assert_windows_equal_whole_pictures(zfnet64, images, top, "conv2", **options)


@pytest.mark.parametrize("cuts", ["one by one", "many at once"])
def test_the_size_of_a_batch_changes_nothing(zfnet64, monkeypatch, cuts):
    monkeypatch.setattr(patches_module, "FORWARD_PIXELS", 1 if cuts == "one by one" else 2**40)
    monkeypatch.setattr(patches_module, "REVERSE_BYTES", 1 if cuts == "one by one" else 2**40)
    images = image_set(random_pixels(3, 68), in_memory=False)
    top = table_of(zfnet64, images, {"conv1": [(2, 0, 5), (0, 9, 9)], "conv2": [(1, 3, 0), (0, 7, 7)]})
    for layer in ("conv1", "conv2"):
        assert_windows_equal_whole_pictures(zfnet64, images, top, layer)


@st.composite
def nets(draw):
    """Random float64 nets of two convolutions and a pool, and a picture size for them."""
    torch.manual_seed(draw(st.integers(0, 2**20)))
    colours = draw(st.sampled_from([3, 1]))
    kernel = st.integers(1, 4)
    k1, k2, kp = draw(kernel), draw(kernel), draw(st.integers(2, 3))
    s1, s2, sp = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    p1, p2, pp = draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.integers(0, kp // 2))
    net = nn.Sequential(
        nn.Conv2d(colours, 3, k1, s1, p1), nn.ReLU(),
        nn.MaxPool2d(kp, sp, pp, ceil_mode=draw(st.booleans())),
        nn.Conv2d(3, 2, k2, s2, p2, dilation=draw(st.integers(1, 2))),
    ).double()  # fmt: skip
    size = draw(st.integers(6, 30))
    try:
        side = net(torch.zeros(1, colours, size, size, dtype=torch.double)).shape[-1]
    except RuntimeError:
        assume(False)
    return zfkit.wrap_model(net, mean=120, scale=1 / 64, input_size=size), size, side


@settings(QUICK, max_examples=60)
@given(data=st.data(), few=st.booleans())
def test_windows_of_random_nets_are_as_in_the_whole_picture(data, few):
    model, size, side = data.draw(nets())
    n = data.draw(st.integers(1, 3))
    images = image_set(random_pixels(n, size, seed=data.draw(st.integers(0, 99))))
    place = st.integers(0, side - 1)
    unit = st.tuples(st.integers(0, n - 1), place, place)
    k = 1 if few else 4
    units = data.draw(st.lists(st.lists(unit, min_size=k, max_size=k), min_size=2, max_size=2))
    top = table_of(model, images, {"3": units})
    assert_windows_equal_whole_pictures(model, images, top, "3")


@pytest.mark.parametrize("layer, size", [("conv3", 51), ("conv4", 67), ("conv5", 83)])
def test_a_picture_just_as_large_as_the_receptive_field(zfnet64, layer, size):
    assert zfkit.receptive_field(zfnet64, layer).size == size
    images = image_set(random_pixels(1, size))
    end = map_side(zfnet64, layer, size) - 1
    top = table_of(zfnet64, images, {layer: [(0, 0, 0), (0, end // 2, end // 2), (0, 2, end)]})
    assert_windows_equal_whole_pictures(zfnet64, images, top, layer)


def test_a_crop_just_as_large_as_the_receptive_field_at_the_border(ways):
    model, images = conv_model(), image_set(random_pixels(2, 8))
    model.net.double()
    top = table_of(model, images, {"0": [(0, 0, 0), (1, 7, 3)]})
    assert_windows_equal_whole_pictures(model, images, top, "0")
    assert ways == {"crops"}


@pytest.mark.parametrize("layer", ["fc6", "fc8"])
def test_units_of_fully_connected_layers_see_the_whole_picture(zfnet64, layer):
    images = image_set(random_pixels(3, 64))
    top = table_of(zfnet64, images, {layer: [[(2, 0, 0), (0, 0, 0)], [(1, 0, 0), (2, 0, 0)]]})
    patches = zfkit.project_top(zfnet64, images, top, layer)
    assert patches.projection.shape == (2, 2, 3, 64, 64)
    for c in range(2):
        for rank in range(2):
            image = int(patches.image[c, rank])
            expected = zfkit.project(zfnet64, zfnet64.preprocess(images[image][0]), layer, c)[0]
            error = (patches.projection[c, rank] - expected).abs().max()
            assert error <= 1e-10 * expected.abs().max()
            assert torch.equal(patches.photo[c, rank], images[image][0])
            assert patches.box[c, rank].tolist() == [0, 0, 64, 64]


def test_what_was_mined_is_what_is_projected():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1))
    model = zfkit.wrap_model(net.double(), mean=128, scale=1 / 64, input_size=18)
    images = image_set(random_pixels(6, 18))
    top = zfkit.mine(model, images, k=4, progress=False)
    patches = zfkit.project_top(model, images, top, "3", channels=[3, 1], k=2)
    assert_windows_equal_whole_pictures(model, images, top, "3", patches)
    for name in ("value", "image", "row", "col"):
        assert torch.equal(getattr(patches, name), getattr(top["3"], name)[[3, 1], :2])


def test_ranks_without_a_picture_stay_empty():
    model, images = conv_model(channels=3), image_set(random_pixels(2, 8))
    top = zfkit.mine(model, images, k=4, progress=False)
    patches = zfkit.project_top(model, images, top, "0")
    assert (patches.image[:, :2] >= 0).all() and (patches.image[:, 2:] == -1).all()
    assert patches.projection[:, :2].flatten(2).any(-1).all()
    assert not patches.projection[:, 2:].any()
    assert (patches.photo[:, 2:] == 128).all()


def test_no_channels_give_no_patches():
    model = conv_model()
    for in_memory in (True, False):
        images = image_set(random_pixels(2, 8), in_memory=in_memory)
        top = zfkit.mine(model, images, k=2, progress=False)
        assert zfkit.project_top(model, images, top, "0", channels=[]).projection.shape == (0, 2, 3, 3, 3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layer": "conv7"}, "'conv7' was not mined; this table has 0"),
        ({"channels": [0, 2]}, r"channels must be .* 0 to 1 of '0', not \[0, 2\]"),
        ({"channels": [-1]}, r"channels must be .* 0 to 1 of '0', not \[-1\]"),
        ({"channels": [0.5]}, r"channels must be .* 0 to 1 of '0', not \[0.5\]"),
        ({"channels": 1}, r"channels must be a list .* 0 to 1 of '0', not 1"),
        ({"k": 3}, "k must be 1 to 2, as many as were mined, not 3"),
        ({"k": 0}, "k must be 1 to 2, as many as were mined, not 0"),
        ({"rule": "deconv"}, "no rule 'deconv'. Did you mean 'deconvnet'"),
    ],
)
def test_projecting_refuses_what_it_cannot_do(options, message):
    model, images = conv_model(), image_set(random_pixels(2, 8))
    top = zfkit.mine(model, images, k=2, progress=False)
    with pytest.raises(zfkit.ZfkitError, match=message):
        zfkit.project_top(model, images, top, **{"layer": "0", **options})


# -------------------------------------------------------------------------------------------------- crops


@settings(QUICK, max_examples=100)
@given(data=st.data())
def test_a_crop_holds_what_the_unit_sees_and_keeps_the_grid(data):
    model, size, side = data.draw(nets())
    crop = patches_module.Crop.plan(model, "3", size)
    row, col = data.draw(st.integers(0, side - 1)), data.draw(st.integers(0, side - 1))
    (corner,) = crop.corners(torch.tensor([[row, col]])).tolist()
    field = zfkit.receptive_field(model, "3")
    left, top, right, bottom = field.box(row, col)
    assert crop.stride == field.stride
    for start, low, high in zip(corner, (top, left), (bottom, right), strict=True):
        assert start % crop.stride == 0
        assert start >= 0 and start + crop.size <= size
        assert start <= max(low, 0) and min(high, size) <= start + crop.size
        # What sticks out of the picture has to stick out of the crop, too: padding is not pixels.
        assert start == 0 or low >= 0
        assert start + crop.size == size or high <= size


def test_there_is_no_crop_where_a_unit_sees_everything_or_strides_differ():
    assert patches_module.Crop.plan(zfkit.load_model("zfnet64", device="cpu"), "fc6", 64) is None
    net = nn.Sequential(nn.Conv2d(3, 2, 3, stride=(1, 2)))
    model = zfkit.wrap_model(net.double(), mean=128, scale=1 / 64, input_size=12)
    assert patches_module.Crop.plan(model, "0", 12) is None
    images = image_set(random_pixels(1, 12))
    top = table_of(model, images, {"0": [(0, 9, 0), (0, 2, 4)]})
    assert_windows_equal_whole_pictures(model, images, top, "0")
