"""Tensors to pictures, pictures to sheets, and the colours and axes that figures share."""

import io
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from zfkit.figures.pictures import animated, montage, number, tile_sheet, to_picture, wrap_words
from zfkit.figures.style import MODEL_COLOURS, PALETTE, model_colours, picture_row
from zfkit.images.colour import full_scale, signed_to_rgb


def test_the_scale_is_the_values_percentile_picture_by_picture():
    signed = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    signed[1] *= 1000  # a picture of its own scale
    rgb = signed_to_rgb(signed)
    for picture, shown in zip(signed.double().numpy(), rgb.numpy(), strict=True):
        scale = np.percentile(np.abs(picture), 99.5)
        expected = 128 + 127 * np.clip(picture / scale, -1, 1)
        assert np.abs(shown - expected).max() <= 0.501


def test_a_given_scale_compares_pictures():
    signed = torch.tensor([0.5, 1.0, 2.0, 4.0, -2.0, -4.0]).view(6, 1, 1, 1).expand(6, 3, 1, 1)
    assert signed_to_rgb(signed, scale=2.0)[:, 0, 0, 0].tolist() == [160, 192, 255, 255, 1, 1]
    assert signed_to_rgb(signed, scale=torch.tensor(4.0))[:, 0, 0, 0].tolist() == [144, 160, 192, 255, 64, 1]


@pytest.mark.parametrize("shape, axes", [((1,), 1), ((9, 200), 1), ((4, 3, 7, 7), 3), ((2, 5, 3, 20, 21), 4)])
def test_the_scale_is_that_of_torchs_quantile(shape, axes):
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    scale = full_scale(values, axes)
    assert scale.shape == (*shape[:-axes], *[1] * axes)
    expected = torch.quantile(values.abs().flatten(-axes), 0.995, dim=-1)
    torch.testing.assert_close(scale.flatten(), expected.flatten())


def test_a_few_values_in_an_empty_picture_are_shown_and_none_are_grey():
    signed = torch.zeros(3, 50, 50)
    signed[0, 3, 4], signed[1, 3, 4] = 1e-6, -1e-6
    assert signed_to_rgb(signed)[:, 3, 4].tolist() == [255, 1, 128]
    assert (signed_to_rgb(torch.zeros(3, 5, 5)) == 128).all()


def test_one_channel_becomes_three():
    signed = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    rgb = signed_to_rgb(signed)
    assert rgb.shape == (5, 3, 4, 4) and (rgb[:, :1] == rgb).all()


# -------------------------------------------------------------------------------------- pictures into sheets


def test_a_picture_is_the_tensors_pixels():
    pixels = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8)
    assert (np.asarray(to_picture(pixels)) == pixels.permute(1, 2, 0).numpy()).all()


def test_a_sheet_leaves_empty_places():
    red, blue = (Image.new("RGB", (3, 2), colour) for colour in ("red", "blue"))
    sheet = np.asarray(tile_sheet([red, None, blue], 2, (3, 2), gap=1, background="black"))
    expected = np.zeros((5, 7, 3), np.uint8)
    expected[:2, :3], expected[3:, :3] = (255, 0, 0), (0, 0, 255)
    assert (sheet == expected).all()


def test_a_montage_enlarges_by_whole_factors_and_keeps_the_order():
    pictures = torch.randint(0, 256, (5, 3, 7, 7), dtype=torch.uint8)
    sheet = np.asarray(montage(pictures, columns=3, tile=30))  # 7 px five times
    assert sheet.shape == (2 * 35 + 2, 3 * 35 + 4, 3)
    for i, picture in enumerate(pictures.permute(0, 2, 3, 1).numpy()):
        row, column = divmod(i, 3)
        tile = sheet[row * 37 : row * 37 + 35, column * 37 : column * 37 + 35]
        assert (tile == picture.repeat(5, 0).repeat(5, 1)).all()
    assert (sheet[35:37] == 255).all() and (sheet[:, 35:37] == 255).all()  # gaps
    assert (sheet[37:, 74:] == 255).all()  # no sixth picture


def test_a_montage_brings_large_pictures_to_the_tile():
    assert montage(torch.zeros(4, 3, 60, 60, dtype=torch.uint8), columns=2, tile=40).size == (82, 82)
    assert montage(torch.zeros(1, 3, 60, 120, dtype=torch.uint8), columns=1, tile=40).size == (40, 20)


@pytest.mark.parametrize("side, shown", [(11, 99), (51, 102), (64, 128), (65, 96), (200, 96)])
def test_one_rule_says_how_large_pictures_are_shown(side, shown):
    """Fields of layers 1 and 2 of both bundled networks stay squares of one filter, and no tile is below 96 px."""
    pictures = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    sheet = np.asarray(montage(pictures, columns=1))
    assert sheet.shape == (shown, shown, 3)
    if side <= 64:
        factor = shown // side
        assert (sheet[::factor, ::factor] == pictures[0].permute(1, 2, 0).numpy()).all()


def test_a_bar_under_each_tile_is_as_long_as_its_activation():
    bars = torch.tensor([1.0, 0.5, 0.0, torch.nan])
    white = torch.full((4, 3, 10, 10), 255, dtype=torch.uint8)
    sheet = np.asarray(montage(white, 4, tile=10, gap=0, bars=bars))
    dark = (sheet[10:] < 255).all(2).any(0).reshape(4, 10)
    assert dark.sum(1).tolist() == [10, 5, 0, 0] and (sheet[:10] == 255).all()


# -------------------------------------------------------------------------------------- words, numbers, colours


@pytest.mark.parametrize("value, text", [(0.12345, "0.123"), (12.34, "12.3"), (1234.5, "1234"), (0, "0")])
def test_numbers_have_three_digits(value, text):
    assert number(value) == number(torch.tensor(value)) == text


def test_words_are_wrapped_where_they_do_not_fit():
    font = ImageFont.load_default(14)
    text = "a few words and one_that_is_much_too_long_for_any_line end"
    lines = wrap_words(text, font, 100)
    assert " ".join(lines) == text
    assert all(font.getlength(line) <= 100 or " " not in line for line in lines)
    longer = [f"{a} {b.split()[0]}" for a, b in pairwise(lines)]
    assert all(font.getlength(line) > 100 for line in longer)  # no line could have taken another word


def test_each_network_keeps_its_colour():
    names = ["mine", "alexnet64", "yours", "mine", "zfnet64"]
    colours = dict(zip(names, model_colours(names), strict=True))
    assert model_colours(names)[0] == model_colours(names)[3]
    assert len(set(colours.values())) == 4 and set(colours.values()) <= set(PALETTE)
    assert {name: colours[name] for name in MODEL_COLOURS} == MODEL_COLOURS


def test_an_animation_holds_every_frame_and_shows_the_first_where_it_cannot_move():
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "lime", "blue", "red")]
    frames[1].putpixel((2, 3), (255, 255, 255))
    file = Image.open(io.BytesIO(animated(frames, milliseconds=40)))
    assert file.format == "PNG" and file.n_frames == 4 and file.info["loop"] == 0
    for i, frame in enumerate(frames):
        file.seek(i)
        assert file.info["duration"] == 40
        np.testing.assert_array_equal(file.convert("RGB"), frame)
    # Without seeking, as a page that cannot animate reads it.
    still = Image.open(io.BytesIO(animated(frames)))
    np.testing.assert_array_equal(still.convert("RGB"), frames[0])


def test_pictures_in_a_row_stand_under_their_names_unchanged():
    pictures = {n: torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8) for n in ("a", "b")}
    figure = picture_row(pictures, "two")
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    for axes, picture in zip(figure.axes, pictures.values(), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), picture.permute(1, 2, 0))
    plt.close(figure)


def test_zero_is_grey_and_signs_are_symmetric():
    generator = torch.Generator().manual_seed(0)
    signed = torch.randn(4, 3, 8, 8, generator=generator)
    signed[:, :, 0, 0] = 0
    rgb = signed_to_rgb(signed).int()
    assert rgb.shape == (4, 3, 8, 8)
    assert (rgb[:, :, 0, 0] == 128).all()
    # 128 + x and 128 - x, up to rounding
    assert ((signed_to_rgb(-signed).int() + rgb - 256).abs() <= 1).all()
    assert (signed_to_rgb(torch.zeros(3, 5, 5)) == 128).all()
