"""What the numbers in a file stand for, and sound files that look damaged."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, PngImagePlugin, TiffImagePlugin

from zfkit import load_images, open_image
from zfkit.errors import ImageError
from zfkit.images import imageset
from zfkit.images.decode import decode

TWELVE = np.random.default_rng(0).integers(0, 4096, (16, 16)).astype(np.uint16)
TWELVE[0, :2] = 0, 4095


def greys(picture: torch.Tensor) -> np.ndarray:
    assert (picture == picture[0]).all()
    return picture[0].numpy()


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The range as 0..255, one number after the other."""
    cut = [min(max((float(v) - low) / (high - low), 0), 1) for v in values.flatten()]
    return np.array([round(255 * v) for v in cut]).reshape(values.shape)


def quietly(path, **options) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return open_image(path, 16, **options)


def test_twelve_bits_in_sixteen_are_said_once_and_shown_by_their_range(tmp_path):
    for name in ("a.tif", "b.png"):
        Image.fromarray(TWELVE // (1 + (name == "a.tif"))).save(tmp_path / name)
    with pytest.warns(UserWarning, match=r"0 to 4095 only.*12 bits, say value_range=\(0, 4095\)") as caught:
        load_images(f"folder:{tmp_path}", size=16, progress=False)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="0 to 2047 only"):
        open_image(tmp_path / "a.tif", 16)
    assert np.array_equal(greys(quietly(tmp_path / "b.png", value_range=(0, 4095))), scaled(TWELVE, 0, 4095))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ranged = load_images(f"folder:{tmp_path}", size=16, value_range=(100, 3000), progress=False)
        assert np.array_equal(greys(ranged[1][0]), scaled(TWELVE, 100, 3000))
        Image.fromarray(TWELVE * 16).save(tmp_path / "c.png")  # one bright picture: others are dark
        load_images(f"folder:{tmp_path}", size=16, progress=False)


SIGNED = (TWELVE.astype(np.int16) - 2048).astype(np.int16)
FLOATS = np.random.default_rng(1).normal(size=(16, 16)).astype(np.float32)


@pytest.mark.parametrize("values, word", [(SIGNED, "signed.*-2048 to 2047"), (FLOATS, "floating-point")])
def test_signed_and_floating_point_pixels_need_a_range(values, word, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", values)
    with pytest.raises(ImageError, match=rf"{word}.*value_range=\(low, high\)"):
        quietly(tmp_path / "a.tif")
    low, high = (-1000, 1000) if values is SIGNED else (-1.5, 2.0)
    shown = greys(quietly(tmp_path / "a.tif", value_range=(low, high)))
    assert np.array_equal(shown, scaled(values, low, high))


def test_a_range_that_the_file_states_is_taken(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[340], tags[341] = -1.5, 2.0  # SMinSampleValue, SMaxSampleValue
    tags.tagtype[340] = tags.tagtype[341] = 11  # float
    Image.fromarray(FLOATS).save(tmp_path / "float.tif", tiffinfo=tags)
    assert np.array_equal(greys(quietly(tmp_path / "float.tif")), scaled(FLOATS, -1.5, 2.0))
    for highest, expected in ((4095, 4095), (4000, 65535)):  # a depth of bits, and the extreme of one picture
        tifffile.imwrite(tmp_path / "a.tif", TWELVE, extratags=[(281, 3, 1, highest, True)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert np.array_equal(greys(open_image(tmp_path / "a.tif", 16)), scaled(TWELVE, 0, expected))


@pytest.mark.parametrize("value_range", [3, (1, 1), (2, 1), (0, float("nan")), "ab", (1, 2, 3)])
def test_a_range_is_two_numbers(value_range, tmp_path):
    Image.fromarray(TWELVE).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="value_range must be two numbers"):
        open_image(tmp_path / "a.png", value_range=value_range)


def png(values: np.ndarray) -> bytes:
    """A PNG of 16-bit colours (H, W, 3), which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks.items())


def test_colours_of_sixteen_bits(tmp_path):
    colours = np.random.default_rng(2).integers(0, 65536, (16, 16, 3))
    (tmp_path / "a.png").write_bytes(png(colours))
    (tmp_path / "b.png").write_bytes(png(colours // 16))
    assert np.array_equal(quietly(tmp_path / "a.png").permute(1, 2, 0), colours // 256)
    with pytest.warns(UserWarning, match=r"nearly black.*value_range=\(0, 4095\)"):
        open_image(tmp_path / "b.png", 16)
    with pytest.raises(ImageError, match="colours of 16 bits"):
        open_image(tmp_path / "b.png", 16, value_range=(0, 4095))


def test_a_streamed_set_is_spoken_of_at_its_end_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr(imageset, "IN_MEMORY_BYTES", 0)
    for i in range(4):
        Image.fromarray(TWELVE).save(tmp_path / f"{i}.png")
    images = load_images(f"folder:{tmp_path}", size=16, progress=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(images.batches(2, stop=2))
        assert not caught
        list(images.batches(2, start=2))
        list(images.batches(3))
    assert len(caught) == 1 and "12 bits" in str(caught[0].message)


def test_bands_that_are_not_shown_are_said_once(tmp_path):
    bands = np.random.default_rng(3).integers(0, 256, (16, 16, 5), dtype=np.uint8)
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, bands, photometric="rgb", extrasamples=["unspecified"] * 2)
    with pytest.warns(UserWarning, match="of its 5 bands RGB are taken") as caught:
        images = load_images(f"folder:{tmp_path}", size=16, progress=False)
    assert len(caught) == 1 and np.array_equal(images[0][0].permute(1, 2, 0), bands[..., :3])


@pytest.mark.parametrize("what", ["text", "profile"])
def test_a_png_with_a_large_text_or_profile_is_sound(what, tmp_path):
    pixels = np.random.default_rng(4).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    texts, stream = PngImagePlugin.PngInfo(), io.BytesIO()
    texts.add_text("prompt", "x" * 2_000_000, zip=True)
    extra = {"pnginfo": texts} if what == "text" else {"icc_profile": bytes(2_000_000)}
    Image.fromarray(pixels).save(stream, "PNG", **extra)
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    for file in (tmp_path / "a.png", stream.getvalue(), stream):
        assert np.array_equal(np.asarray(decode(file)), pixels)
    with pytest.raises(ImageError, match="damaged or truncated"):
        decode(stream.getvalue()[:-200])
