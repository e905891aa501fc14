"""Projections that fill a small part of their windows: where they were planted, and how alike they were made."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import DEEP, deep_network, image_set, network, random_pixels

import zfkit
from zfkit.atlas.probes import tile_sides
from zfkit.deconv import Options
from zfkit.topk import Patches
from zfkit.topk.frame import Frame

ROWS, COLUMNS = DEEP  # of the window, where its units' weights are


def planted(sizes, window=60):
    """A map's patches whose k-th projection is noise in a rectangle (height, width) of its own, at (4 + k, 9)."""
    numbers, k = torch.Generator().manual_seed(0), len(sizes)
    projection = torch.zeros(1, k, 3, window, window)
    for i, (h, w) in enumerate(sizes):
        projection[0, i, :, 4 + i : 4 + i + h, 9 : 9 + w] = 1 + torch.rand(3, h, w, generator=numbers)
    photo = torch.randint(0, 256, projection.shape, dtype=torch.uint8, generator=numbers)
    box = torch.tensor([-5, 7, 2 * window - 5, 2 * window + 7]).expand(1, k, 4)  # tiles of half their size
    none = torch.zeros(1, k, dtype=torch.int64)
    return Patches("conv5", torch.tensor([3]), projection, photo, box, none, none, none, none.float())


def test_a_frame_is_the_box_of_the_energy():
    patches = planted([(20, 16)] * 9 + [(0, 0)])  # and one of which nothing came back
    cut = (frame := Frame.of(patches))(patches)
    assert (frame.size, frame.factor) == ((20, 20), 3.0)
    for i in range(9):
        rows, columns = slice(4 + i, 24 + i), slice(7, 27)  # 16 columns from 9 on, in the middle of 20
        assert torch.equal(cut.projection[0, i], patches.projection[0, i, :, rows, columns])
        assert torch.equal(cut.photo[0, i], patches.photo[0, i, :, rows, columns])
        assert cut.box[0, i].tolist() == [-5 + 14, 7 + 8 + 2 * i, -5 + 54, 7 + 48 + 2 * i]
    assert torch.equal(cut.photo[0, 9], patches.photo[0, 9, :, 20:40, 20:40]), "its middle"
    assert cut.notes == (
        "Tiles are cut to 40 px around where each projection is, of windows of 120 px: 3.0 times larger.",
    )


FEW_LARGE = [(50, 9)] + [(20, 9)] * 19
CASES = [([(38, 9)] * 9, 60), ([(0, 0)], 60), ([(3, 2)], 16), (FEW_LARGE, 20)]


@pytest.mark.parametrize("sizes, side", CASES)
def test_what_is_cut(sizes, side):
    """Not by less than 1.6 times, nor without any energy, nor to less than 16 px; one in twenty may stick out."""
    patches = planted(sizes)
    assert Frame.of(patches).size == (side, side)
    assert side < 60 or Frame.of(patches)(patches) is patches


def test_likeness_is_the_mean_cosine_of_pairs():
    numbers = torch.Generator().manual_seed(0)
    one, noise = torch.randn(1, 3, 40, 40, generator=numbers), torch.randn(9, 3, 40, 40, generator=numbers)
    factors = torch.arange(1, 10).view(9, 1, 1, 1)
    maps = [one * factors, noise, one * (-1) ** factors, torch.zeros_like(noise), noise * (factors < 2)]
    patches = planted([(1, 1)])
    equal, unrelated, opposed, *unknown = replace(patches, projection=torch.stack(maps)).likeness().tolist()
    assert equal == pytest.approx(1)
    assert abs(unrelated) < 0.02
    assert opposed == pytest.approx((36 - 2 * 20) / 36)  # of 36 pairs 20 are one of each sign
    assert np.isnan(unknown).all()


@pytest.fixture(scope="module")
def deep():
    return deep_network(), image_set(random_pixels(4, 110))


def shows(sheet, tile):
    """Does the tile lie somewhere in the sheet, both (H, W, 3)? Row by row."""
    starts = range(len(sheet) - len(tile) + 1)
    return any(all(t.tobytes() in r.tobytes() for t, r in zip(tile, sheet[y:], strict=False)) for y in starts)


def test_a_plot_shows_the_part_and_says_so(monkeypatch):
    patches, said = planted([(20, 16)] * 9), []
    monkeypatch.setattr(zfkit.figures.pictures, "wrap_words", lambda text, *_: [said.append(text) or text])
    plot = patches.plot()
    for i in range(9):
        part = patches.photo[0, i, :, 4 + i : 24 + i, 7:27].permute(1, 2, 0).numpy()
        assert shows(np.asarray(plot), part.repeat(5, 0).repeat(5, 1))  # tiles of 100 px, and bars of 4
    (words,) = said
    assert "cut to 40 px around where each projection is, of windows of 120 px: 3.0 times larger." in words
    assert words.endswith(f"are alike by {float(patches.likeness()):.2f} (mean cosine).")
    assert (np.asarray(plot)[: plot.height - (3 * 104 + 4)] < 255).any(), "they stand above"
    assert planted([(38, 9)] * 9).plot().size == (6 * 120 + 10, 3 * 124 + 4) and len(said) == 1, (
        "nothing is cut"
    )


def test_layer_atlas_and_site_show_the_part_and_say_so(deep, tmp_path):
    model, images = deep
    top = zfkit.mine(model, images, ["2"], k=4, progress=False)
    told = []  # while it looks for what is worth to be cut, no map is done, but it is not silent
    tile_sides(model, images, top, {"2": [0, 2]}, Options(), lambda *note: told.append(note))
    assert told[-1] == (0, "sizes 2/2")
    atlas = zfkit.write_atlas(model, images, tmp_path, top=top, k=4, progress=False)
    alone = zfkit.draw_layer(zfkit.project_top(model, images, top, "2"), top)
    site = zfkit.write_site(model, images, tmp_path / "site", top=top, k=4, pictures=4, progress=False).parent
    of_site = np.asarray(Image.open(site / model.name / "2" / "photo-0.webp").convert("RGB"))
    for unit in top.table("2").itertuples():
        left, above = unit.col + COLUMNS.start, unit.row + ROWS.start
        patch = images[unit.image][0][:, above : above + 24, left : left + 24].permute(1, 2, 0).numpy()
        assert shows(of_site, patch)
        for sheet in (Image.open(atlas.pictures["2"]), alone):
            assert shows(np.asarray(sheet), patch.repeat(4, 0).repeat(4, 1))  # tiles of 96 px
    page, front = atlas.index.read_text(), (site / "site.js").read_text()
    assert "Tiles are cut to 24 px around where each" in front and "with untrained weights by 1.00" in front
    assert "Tiles are cut to 24 px around where each projection is, of windows of 101 px: 4.2 times" in page
    assert (
        "The projections of a map are alike by 1.00 (mean cosine), with untrained weights by 1.00: "
        "they carry hardly anything of the pictures; the patches do." in page
    )


def test_of_a_first_layer_and_behind_a_pool_the_number_alone_is_said(tmp_path):
    images = image_set(random_pixels(7))
    page = zfkit.write_atlas(network(0), images, tmp_path, progress=False).index.read_text()
    assert page.count("are alike by") == 2 and "are alike by 1.00 (mean cosine)." in page
    assert "untrained weights" not in page and "Tiles are cut" not in page
