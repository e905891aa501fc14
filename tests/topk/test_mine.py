"""`mine` against a brute-force sort of all activations."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from mining import assert_same, conv_model, pictures
from tiny import image_set, noise
from torch import nn

import zfkit
from zfkit.errors import ImageError, LayerError, ZfkitError
from zfkit.images.imageset import ImageSet, Windows


@st.composite
def coarse_models(draw, size):
    """conv, ReLU, max-pool, conv, ReLU, linear: small; weights are halves, so that sums are exact, and ties many."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    kernel, stride, pad = draw(st.sampled_from([(3, 1, 1), (3, 2, 1), (2, 2, 0), (1, 1, 0)]))
    a, b = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    body = [nn.Conv2d(3, a, kernel, stride, pad), nn.ReLU(), nn.MaxPool2d(2, 1)]
    body += [nn.Conv2d(a, b, 2), nn.ReLU()]
    flat = nn.Sequential(*body)(torch.zeros(1, 3, size, size)).numel()
    net = nn.Sequential(*body, nn.Flatten(), nn.Linear(flat, 3))
    for p in net.parameters():
        p.data = torch.randint(-2, 3, p.shape, generator=generator).to(p.dtype) / 2
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
    of_pictures = []
    for picture in pixels:
        x = model.preprocess(picture)
        with torch.no_grad():
            for module in model.net[: int(layer) + 1]:
                x = module(x)
        maps = x[0].numpy() if x.dim() == 4 else x[0, :, None, None].numpy()
        of_pictures.append([])
        for m in maps:
            best = None
            for (row, col), value in np.ndenumerate(m):
                left, top, right, bottom = field.box(row, col)
                if inside and not (min(left, top) >= 0 and max(right, bottom) <= picture.shape[-1]):
                    continue
                if best is None or value > best[0]:
                    best = (float(value), row, col)
            of_pictures[-1].append(best)
    return [list(of_map) for of_map in zip(*of_pictures, strict=True)]


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
    columns = ["channel", "rank", "value", "image", "row", "col"]
    return list(top.table(layer)[columns].itertuples(index=False, name=None))


@given(data=st.data(), k=st.integers(1, 12), memory=st.booleans(), inside=st.booleans())
def test_mining_equals_a_sort_of_all_activations_whatever_the_batch_size(data, k, memory, inside):
    size = data.draw(st.integers(6, 8))
    model, pixels = data.draw(coarse_models(size)), data.draw(coarse_pixels(size))
    images, layers = image_set(pixels, memory=memory), ["0", "1", "3", "6"]
    assume(not inside or zfkit.receptive_field(model, "3").box(1, 1).right <= size)
    tables = [
        zfkit.mine(model, images, layers, k, inside=inside, batch_size=b, progress=False)
        for b in (1, 2, 7, None)
    ]
    for layer in layers:
        assert rows_of(tables[0], layer) == brute_force(model, pixels, layer, k, inside)
        values = np.array([[v for v, _, _ in m] for m in strongest_of_each(model, pixels, layer, inside)])
        statistics = tables[0].statistics(layer)
        np.testing.assert_array_equal(statistics["max"], values.max(1))
        np.testing.assert_allclose(statistics["mean"], values.mean(1), rtol=1e-6)
        np.testing.assert_allclose(statistics["active"], (values > 0).mean(1), rtol=1e-6)
    for table in tables[1:]:
        assert_same(tables[0], table)


def overlapping(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def greedy(values, photograph, box, k, per_photograph):
    """Places of the accepted windows, strongest first."""
    accepted = []
    for i in sorted(range(len(values)), key=lambda i: (-values[i], i)):
        rivals = [j for j in accepted if photograph[j] == photograph[i]]
        if len(rivals) < per_photograph and not any(overlapping(box[i], box[j]) for j in rivals):
            accepted.append(i)
    return accepted[:k]


@given(data=st.data(), k=st.integers(1, 9), per_photograph=st.one_of(st.none(), st.integers(1, 4)))
def test_of_windows_the_strongest_that_do_not_overlap_count(data, k, per_photograph):
    model, pixels = data.draw(coarse_models(6)), data.draw(coarse_pixels(6, most=14))
    n = len(pixels)
    photograph = sorted(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    corners = data.draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=n, max_size=n))
    box = [(x, y, x + 3, y + 3) for x, y in corners]
    windows = Windows(torch.tensor(photograph), torch.tensor(box, dtype=torch.float32))
    images = image_set(pixels, windows=windows, memory=data.draw(st.booleans()))
    tables = [
        zfkit.mine(model, images, ["3"], k, per_photograph=per_photograph, batch_size=b, progress=False)
        for b in (1, 2, 3, 7, n)
    ]
    expected = []
    for channel, of_map in enumerate(strongest_of_each(model, pixels, "3")):
        accepted = greedy([v for v, _, _ in of_map], photograph, box, k, per_photograph or -(-k // 3))
        expected += [
            (channel, rank, of_map[i][0], i, of_map[i][1], of_map[i][2]) for rank, i in enumerate(accepted)
        ]
    assert rows_of(tables[0], "3") == expected
    for table in tables[1:]:
        assert_same(tables[0], table)


def test_ranks_without_a_picture_are_left_out_of_the_table():
    top = zfkit.mine(conv_model(channels=4), image_set(noise(3, 8)), k=5, progress=False)
    frame = top.table()
    assert list(frame.columns) == ["layer", "channel", "rank", "value", "image", "row", "col"]
    assert len(frame) == 4 * 3 and frame["rank"].max() == 2 and (frame["image"] >= 0).all()
    assert (top["0"].image[:, 3:] == -1).all()
    assert (top["0"].value[:, 3:] == -torch.inf).all()


def test_all_convolutional_layers_are_mined_by_default():
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 5, 3))
    model = zfkit.wrap_model(net, mean=128, scale=1, input_size=8)
    top = zfkit.mine(model, image_set(noise(3, 8)), k=2, progress=False)
    assert list(top.layers) == ["0", "2"] and top["2"].value.shape == (5, 2)
    with pytest.raises(LayerError, match=r"'1' was not mined; this table has 0, 2"):
        top.table("1")


def test_pictures_that_cannot_be_read_are_passed_over():
    def damaged(i):
        if i == 2:
            raise ImageError("picture 2: damaged")

    model, images = conv_model(size=16), pictures(5, before=damaged)
    with pytest.warns(UserWarning, match="picture 2"):
        top = zfkit.mine(model, images, k=5, batch_size=2, progress=False)
    readable = [0, 1, 3, 4]
    expected = brute_force(model, pictures(5).take(readable), "0", 4)
    assert top.count == 4
    rows = [(c, rank, readable[i]) for c, rank, _, i, _, _ in expected]
    assert [(c, rank, i) for c, rank, _, i, _, _ in rows_of(top, "0")] == rows


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_activations_that_are_not_finite_name_the_layer_and_the_picture(batch_size):
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
    model = zfkit.wrap_model(net, mean=0, scale=1, input_size=8)
    net[2].weight.data[1, 0, 0, 0] = torch.nan
    with pytest.raises(
        ZfkitError,
        match=r"'2' gives .* not finite, first for picture 0 of the . at hand: its weight holds NaN",
    ):
        zfkit.mine(model, image_set(noise(4, 8)), batch_size=batch_size, progress=False)
    # Too large only where a picture is not black.
    net[0].weight.data.fill_(3e38)
    net[0].bias.data.zero_()
    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    pixels[2] = 200
    with pytest.raises(
        ZfkitError, match=f"'0' gives .* not finite, first for picture {2 % batch_size} of .* grow"
    ):
        zfkit.mine(model, image_set(pixels), ["0"], batch_size=batch_size, progress=False)


def test_another_batch_size_gives_the_same_places_and_values_to_a_millionth(zfnet64, photos64):
    """And the same number of pictures at a time, every bit."""
    images = photos64[:101]
    tables = [zfkit.mine(zfnet64, images, "conv3", batch_size=n, progress=False) for n in (64, 64, 101, 7)]
    assert_same(tables[0], tables[1])
    expected = tables[0]["conv3"]
    most = expected.max.max()
    for other in tables[2:]:
        top = other["conv3"]
        for name in ("image", "row", "col"):
            assert torch.equal(getattr(top, name), getattr(expected, name))
        for name in ("value", "max", "mean"):
            torch.testing.assert_close(getattr(top, name), getattr(expected, name), rtol=0, atol=1e-6 * most)


def test_bfloat16_is_close_and_float32_is_the_default(zfnet64, photos64):
    images = image_set(photos64.take(range(8)))
    exact = zfkit.mine(zfnet64, images, "conv3", progress=False)["conv3"]
    rough = zfkit.mine(zfnet64, images, "conv3", precision="bf16", progress=False)["conv3"]
    error = (rough.max - exact.max).abs() / exact.max.abs().max()
    assert 0 < float(error.max()) < 0.05  # 8 bits of mantissa through three convolutions


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("options, message", [
    ({"layers": ["0", "conv9"]}, "no layer 'conv9'.*0"), ({"layers": []}, "no layer was named"),
    ({"k": 0}, "k must be a whole number"), ({"per_photograph": 0}, "per_photograph must be a whole number"),
    ({"batch_size": 0}, "batch_size must be a whole number"),
    ({"checkpoint_every": 0}, "checkpoint_every must be a whole number"),
    ({"precision": "fp16"}, "no precision 'fp16'"),
    ({"scheduler": "tcp://127.0.0.1:1", "checkpoint": "t.part"}, "with a scheduler, leave out the checkpoint"),
    ({"model": nn.Conv2d(3, 1, 1)}, "got Conv2d: wrap it first"),
    ({"images": [1, 2]}, r"the pictures must be ImageSet.*not list \[1, 2\]"),
    ({"images": ImageSet(lambda i: None, [], size=8)}, "no pictures"),
])  # fmt: skip
def test_mining_refuses_what_it_cannot_do(options, message):
    given = {"model": conv_model(), "images": image_set(noise(3, 8)), "progress": False}
    with pytest.raises(ZfkitError, match=message):
        zfkit.mine(**given | options)


def test_mining_pictures_of_which_none_can_be_read_says_why():
    def truncated(i):
        raise ImageError(f"picture {i}: truncated")

    images = pictures(2, before=truncated)
    with pytest.warns(UserWarning), pytest.raises(ImageError, match=r"none of the 2 pictures.*0: truncated"):
        zfkit.mine(conv_model(), images, progress=False)


def test_pictures_smaller_than_the_receptive_field_have_no_units_inside():
    net = nn.Sequential(nn.Conv2d(3, 2, 5, padding=2), nn.ReLU(), nn.Conv2d(2, 2, 5, padding=2))
    model = zfkit.wrap_model(net, mean=0, scale=1, input_size=8)
    with pytest.raises(LayerError, match=r"'2' see 9 px, so in pictures of 8 px none.*leave out inside"):
        zfkit.mine(model, image_set(noise(3, 8)), inside=True, progress=False)
    top = zfkit.mine(model, image_set(noise(3, 9)), "2", k=3, inside=True, progress=False)
    assert (top["2"].row == 4).all() and (top["2"].col == 4).all()  # the only one that sees just the picture


@pytest.mark.parametrize("batch_size", [None, 2])
def test_pictures_too_small_for_the_layer_are_refused(batch_size):
    net = nn.Sequential(nn.Conv2d(3, 2, 5), nn.ReLU(), nn.Conv2d(2, 2, 5))
    model = zfkit.wrap_model(net, mean=0, scale=1, input_size=16)
    with pytest.raises(LayerError, match="cannot run to 2 on images of 8 x 8 px; it was made for 16 px"):
        zfkit.mine(model, image_set(noise(3, 8)), ["2"], batch_size=batch_size, progress=False)
