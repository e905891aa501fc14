"""Pictures in: the bundled album, folders, Parquet, torchvision, and what is not a picture at all."""

import csv
import hashlib
import io
import json
import re
import shutil
import urllib.error
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zfkit import ImageSet, load_images, open_image
from zfkit.errors import ImageError, ZfkitError
from zfkit.images import album, imageset, sources
from zfkit.images.album import INSTALLED, SUBJECTS, Photograph, photographs
from zfkit.images.decode import decode
from zfkit.images.imageset import Windows

load = partial(load_images, size=16, progress=False)


def noise(height=16, width=16, channels=3, seed=0) -> np.ndarray:
    """Random uint8 picture (H, W, C), or (H, W) for one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(pixels: np.ndarray | Image.Image, format="PNG", **options) -> bytes:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def array(picture: torch.Tensor) -> np.ndarray:
    """(3, H, W) tensor -> (H, W, 3) integers that can be subtracted."""
    return picture.permute(1, 2, 0).numpy().astype(int)


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, axis=2)


@pytest.fixture
def streaming(monkeypatch):
    """No set is small enough to be kept in memory."""
    monkeypatch.setattr(imageset, "IN_MEMORY_BYTES", 0)


# ------------------------------------------------------------------------------------ the bundled album


@pytest.fixture(scope="module")
def windows():
    """The album, nothing of it decoded."""
    return album.photos("", 224)


def test_the_album_holds_windows_of_every_photograph_labelled_by_its_subject(windows, photos):
    assert 900 <= len(windows) <= 1200 and windows.classes == photos.classes == SUBJECTS
    names = [windows.name(i) for i in range(len(windows))]
    assert len(set(names)) == len(names)
    assert (windows.windows.photograph.diff() >= 0).all()
    # One is too small to be shown at this size.
    everything = [p.name for p in photographs()]
    shown = [everything[p] for p in windows.windows.photograph.unique()]
    assert shown == [name for name in everything if name != "text"] and len(shown) > 200
    assert [tuple(s) for s in windows.skipped] == [("text", "text: 448 x 172 px is too small")]
    # As the table beside the files has it.
    with (Path(album.__file__).parent / "photographs" / "sources.csv").open(encoding="utf-8") as table:
        subjects = {Path(row["file"]).stem: row["subject"] for row in csv.DictReader(table)}
    labels = windows.known_labels().tolist()
    told = {name.split(" (")[0]: label for name, label in zip(names, labels, strict=True)}
    named = {name: SUBJECTS[told[name]] if told[name] >= 0 else "" for name in subjects}
    assert named == subjects and set(subjects.values()) == {*SUBJECTS, ""}
    assert told["chelsea"] == SUBJECTS.index("animal") and told["brick"] == -1
    # The small set: each photograph once.
    assert photos.windows.photograph.tolist() == windows.windows.photograph.unique().tolist()
    assert photos.labels.tolist() == [told[photos.name(i).split(" (")[0]] for i in range(len(photos))]


def test_a_window_shows_what_its_name_says(windows, photos):
    """Windows cut anew out of the original file at the named place, scale and size; a few, to save time."""
    for images, i in [(windows, i) for i in range(5, len(windows), 41)] + [(photos, 40), (photos, 133)]:
        a_window_shows_what_its_name_says(images, i)


def a_window_shows_what_its_name_says(images, i):
    named = re.fullmatch(r"(\w+) \(scale ([\d.]+), left (\d+), top (\d+)\)", images.name(i))
    name, (scale, left, top) = named[1], map(float, named.groups()[1:])
    photograph = photographs()[images.windows.photograph[i]]
    original = Image.open(photograph.path).convert("RGB")
    box = images.windows.box[i].tolist()
    assert photograph.name == name and scale <= 1.25
    assert abs(box[0] - left) <= 0.51 and abs(box[1] - top) <= 0.51  # names are rounded to pixels
    for side in (box[2] - box[0], box[3] - box[1]):
        assert 224 / side == pytest.approx(scale, rel=0.02)
    assert box[2] <= original.width + 1e-3 and box[3] <= original.height + 1e-3
    box = (box[0], box[1], min(box[2], original.width), min(box[3], original.height))
    whole = original.resize((224, 224), Image.Resampling.BICUBIC, box=box)
    # Between its two passes Pillow clips what overshoots at sharp edges, and with a box not always in the same place:
    # so the same again, columns first.
    columns = (box[0], 0, box[2], original.height)
    narrow = original.resize((224, original.height), Image.Resampling.BICUBIC, box=columns)
    rows_last = narrow.resize((224, 224), Image.Resampling.BICUBIC, box=(0, box[1], 224, box[3]))
    errors = [np.abs(array(images[i][0]) - np.asarray(truth).astype(int)) for truth in (whole, rows_last)]
    error = min(errors, key=np.max)
    assert error.max() <= 3 and error.mean() < 0.05, images.name(i)  # of 255


def test_the_windows_of_a_photograph_cover_it(windows):
    for p in windows.windows.photograph.unique():
        with Image.open(photographs()[p].path) as opened:
            seen = np.zeros((opened.height, opened.width), bool)
        boxes = windows.windows.box[windows.windows.photograph == p].round().int()
        for left, top, right, bottom in boxes.tolist():
            seen[top:bottom, left:right] = True
        assert seen.all(), photographs()[p].name


def test_every_photograph_is_listed_with_its_licence():
    root = Path(__file__).parents[2]
    text = (root / "data" / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1 : 1 + len(INSTALLED)]
    assert [row.split(" | ")[0].lstrip("| ") for row in rows] == [p.name for p in INSTALLED]
    for photograph, row in zip(INSTALLED, rows, strict=True):
        kind, _, holder = photograph.licence.partition(" (")
        assert f"| {kind}" in row and holder.rstrip(")") in row
        assert f"`{Path(photograph.file).name}`" in row
    notice = (root / "NOTICE").read_text(encoding="utf-8")
    for photograph in photographs():
        assert re.match(r"public domain|CC0|CC BY [234]\.0 \(|no known copyright", photograph.licence)
        if photograph.licence.startswith("CC BY"):  # the author has to be named
            holder = photograph.licence.partition("(")[2].rstrip(")")
            assert photograph.name in notice and holder in notice and photograph.source in notice
    assert {p.name for p in photographs() if not p.licence.strip()} == set()


@pytest.fixture
def own_album(monkeypatch):
    """Makes the album one of these photographs."""
    return lambda *some: monkeypatch.setattr(album, "photographs", lambda: some)


def test_a_photograph_that_is_not_installed_is_listed_as_skipped(own_album):
    absent = Photograph("eiffel", "skimage", "data/eiffel.png", "CC0")
    own_album(absent, INSTALLED[1])
    images = load("photos", size=64)
    assert [s.name for s in images.skipped] == ["eiffel"] and "skimage" in images.skipped[0].reason
    assert images.name(0).startswith("chelsea")


def test_a_bundled_photograph_that_is_missing_or_changed_is_named(own_album, tmp_path, monkeypatch):
    monkeypatch.setattr(Photograph, "path", property(lambda self: next(tmp_path.glob(self.file), None)))
    content = encode(noise(40, 40))
    bee = Photograph("bee", "zfkit", "bee.png", "CC0", "animal", sha256=hashlib.sha256(content).hexdigest())
    own_album(bee)
    (tmp_path / "bee.png").write_bytes(content)
    assert load("photos-small", size=40)[0][1] == SUBJECTS.index("animal")
    (tmp_path / "bee.png").write_bytes(content[:-1] + b"?")
    with pytest.raises(ImageError, match=r"bee\.png is not as zfkit brought it: install zfkit again"):
        load("photos")
    (tmp_path / "bee.png").unlink()
    with pytest.raises(ImageError, match=r"photograph bee\.png is missing: install zfkit again"):
        load("photos-small")


def test_the_albums_pixels_are_kept_on_disk_and_damaged_ones_decoded_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("ZFKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(album, "KEPT", 0)
    decoded = load("photos-small", limit=3)
    (kept,) = tmp_path.rglob("*.safetensors")
    with monkeypatch.context() as patched:
        patched.setattr(album, "decode", None)
        undecoded = load("photos-small", limit=3)
    kept.write_bytes(kept.read_bytes()[:-1] + bytes([kept.read_bytes()[-1] ^ 1]))
    for again in (undecoded, load("photos-small", limit=3)):
        assert torch.equal(again.take([0, 1, 2]), decoded.take([0, 1, 2])) and again[1][1] == decoded[1][1]
        assert again.fingerprint() == decoded.fingerprint() and again.name(2) == decoded.name(2)


def test_a_package_without_the_photographs_says_so(monkeypatch):
    monkeypatch.setattr(album, "FOLDER", "images/nowhere")
    with pytest.raises(ImageError, match=r"missing \(images/nowhere/sources\.csv\): install zfkit"):
        photographs.__wrapped__()


def test_every_bundled_photograph_is_in_the_table_and_as_it_was():
    folder = Path(album.__file__).parent / "photographs"
    listed = {Path(p.file).name for p in photographs() if p.package == "zfkit"}
    assert listed == {p.name for p in folder.glob("*.webp")} and all(p.checked() for p in photographs())


boxes = st.tuples(st.integers(0, 2), *[st.integers(0, 12)] * 2, *[st.integers(1, 6)] * 2)


@given(st.lists(boxes, min_size=1, max_size=8), st.data())
def test_overlap_is_a_shared_pixel_of_one_photograph(drawn, data):
    windows = Windows(
        torch.tensor([p for p, *_ in drawn]),
        torch.tensor([(x, y, x + w, y + h) for _, x, y, w, h in drawn], dtype=torch.float32),
    )
    masks = np.zeros((len(drawn), 3, 20, 20), bool)
    for mask, (p, x, y, w, h) in zip(masks, drawn, strict=True):
        mask[p, y : y + h, x : x + w] = True
    index = data.draw(st.lists(st.integers(0, len(drawn) - 1), min_size=1, max_size=8))
    expected = [[bool((masks[i] & masks[j]).any()) for j in index] for i in index]
    assert windows.overlap(index).tolist() == expected


# ------------------------------------------------------------------------------- from files to uint8 RGB

RGB, L = noise(), noise(channels=1)
ALPHA, BELOW_HALF = noise(channels=1, seed=1), noise(channels=1, seed=2) // 2
WIDE = np.random.default_rng(3).integers(0, 65536, (16, 16)).astype(np.uint16)
WIDE[0, :4] = 0, 128, 129, 65535  # 257 steps of 16 bits make one of 8: 128 rounds down, 129 up


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return share * pixels + (1 - share) * 255


def palette(**options) -> Image.Image:
    picture = Image.frombytes("P", (16, 16), L.tobytes())
    picture.putpalette(noise(1, 256, seed=4).tobytes())
    picture.info.update(options)
    return picture


COLOURS = noise(1, 256, seed=4)[0].astype(int)[L]  # the palette's colour of every pixel
SEE_THROUGH = np.where(L[..., None] == L[0, 0], 255, COLOURS)
CMYK = noise(channels=4, seed=5)
# Pillow rounds (255 - ink)(255 - black) / 255; so does this, but half-way cases may differ by one.
INK = (255.0 - CMYK[..., :3]) * (255.0 - CMYK[..., 3:]) / 255
GREY_ALPHA = Image.frombytes("LA", (16, 16), np.dstack([L, ALPHA]).tobytes())
BITS = np.where(L > 127, 255, 0)
BIT_PICTURE = Image.fromarray(BITS.astype(np.uint8)).convert("1", dither=Image.Dither.NONE)

# file name -> how it is encoded, the RGB values it means, tolerance in levels of 255
FILES = {
    "rgb.png": (encode(RGB), RGB, 0),
    "rgb.bmp": (encode(RGB, "BMP"), RGB, 0),
    "rgb.tiff": (encode(RGB, "TIFF"), RGB, 0),
    "rgb.webp": (encode(RGB, "WEBP", lossless=True), RGB, 0),
    "UPPER.PNG": (encode(RGB), RGB, 0),
    "grey.png": (encode(L), grey(L), 0),
    "grey.gif": (encode(L, "GIF"), grey(L), 0),
    "alpha.png": (encode(np.dstack([RGB, ALPHA])), over_white(RGB, ALPHA), 1),
    "alpha.webp": (encode(np.dstack([RGB, ALPHA | 1]), "WEBP", lossless=True), over_white(RGB, ALPHA | 1), 1),
    "grey_alpha.png": (encode(GREY_ALPHA), over_white(grey(L), ALPHA), 1),
    "palette.png": (encode(palette()), COLOURS, 0),
    "palette.gif": (encode(palette(), "GIF"), COLOURS, 0),
    "palette_see_through.png": (encode(palette(), transparency=int(L[0, 0])), SEE_THROUGH, 0),
    "palette_see_through.gif": (encode(palette(), "GIF", transparency=int(L[0, 0])), SEE_THROUGH, 0),
    "cmyk.tif": (encode(Image.frombytes("CMYK", (16, 16), CMYK.tobytes()), "TIFF"), INK, 1),
    "16_bit.png": (encode(WIDE), grey(WIDE // 257 + (WIDE % 257 > 128)), 0),
    "16_bit.tif": (encode(WIDE, "TIFF"), grey(WIDE // 257 + (WIDE % 257 > 128)), 0),
    "1_bit.png": (encode(BIT_PICTURE), grey(BITS), 0),
    "1_bit.tif": (encode(BIT_PICTURE, "TIFF"), grey(BITS), 0),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_comes_out_as_uint8_rgb(name, tmp_path):
    encoded, expected, tolerance = FILES[name]
    (tmp_path / name).write_bytes(encoded)
    picture, label = load(f"folder:{tmp_path}")[0]
    assert picture.dtype == torch.uint8 and picture.shape == (3, 16, 16) and label == -1
    assert np.abs(array(picture) - expected).max() <= tolerance
    assert torch.equal(open_image(tmp_path / name, size=16), picture)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_keeps_its_colours(mode, tmp_path):
    """A smooth picture, which a JPEG of quality 95 keeps to a few levels."""
    ramp = np.linspace(40, 200, 16)
    smooth = np.dstack([np.tile(ramp, (16, 1)), np.tile(ramp[:, None], (1, 16)), np.full((16, 16), 90)])
    expected = smooth if mode != "L" else grey(smooth[..., 0])
    no_black = np.zeros((16, 16))
    stored = {"RGB": smooth, "L": smooth[..., 0], "CMYK": np.dstack([255 - smooth, no_black])}[mode]
    stored = Image.frombytes(mode, (16, 16), stored.astype(np.uint8).tobytes())
    (tmp_path / "a.jpg").write_bytes(encode(stored, "JPEG", quality=95, subsampling=0))
    assert np.abs(array(load(f"folder:{tmp_path}")[0][0]) - expected).max() <= 8


# What EXIF's orientation says of the stored rows and columns, undone: upright -> as the camera stored it.
STORED = {
    1: lambda u: u,  # row 0 is the top, column 0 the left side
    2: lambda u: u[:, ::-1],  # top, right
    3: lambda u: u[::-1, ::-1],  # bottom, right
    4: lambda u: u[::-1],  # bottom, left
    5: lambda u: u.swapaxes(0, 1),  # left, top
    6: lambda u: u[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda u: u[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda u: u[::-1].swapaxes(0, 1),  # left, bottom
}


@pytest.mark.parametrize("orientation", STORED)
def test_a_rotated_picture_comes_out_upright(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.kron(noise(2, 2, seed=6), np.ones((8, 8, 1), np.uint8))  # flat 8 x 8 blocks survive JPEG
    stored = np.ascontiguousarray(STORED[orientation](upright))
    (tmp_path / "a.png").write_bytes(encode(stored, exif=exif))
    (tmp_path / "b.jpg").write_bytes(encode(stored, "JPEG", exif=exif, quality=95, subsampling=0))
    images = load(f"folder:{tmp_path}")
    assert np.array_equal(array(images[0][0]), upright)
    assert np.abs(array(images[1][0]) - upright).max() <= 8


def test_the_first_frame_of_an_animation_is_shown(tmp_path):
    frames = [Image.fromarray(np.full((16, 16), v, np.uint8)) for v in (10, 200)]
    for name in ("a.gif", "b.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=r"\.(gif|tif): it has several pages or frames") as caught:
        images = load(f"folder:{tmp_path}")
    assert shades(images) == [10, 10] and len(caught) == 1


@pytest.mark.parametrize("values, why", [
    (np.full((16, 16), 70000, np.int32), "16 bits"), (np.full((16, 16), 0.5, np.float32), "floating-point"),
])  # fmt: skip
def test_pixels_without_a_known_range_are_refused(values, why, tmp_path):
    (tmp_path / "a.tif").write_bytes(encode(values, "TIFF"))
    with pytest.raises(ImageError, match=rf"a\.tif.*{why}.*convert it to 8 bits first"):
        open_image(tmp_path / "a.tif")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("zfkit.images.decode.MAX_PIXELS", 99)
    (tmp_path / "bomb.png").write_bytes(encode(noise(10, 10)))
    with pytest.raises(ImageError, match=r"bomb\.png: 10 x 10 px are more than 99; make it smaller"):
        open_image(tmp_path / "bomb.png")


SAMPLES = {
    f: encode(noise(12, 10), f) for f in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "TGA", "DDS", "PPM", "ICO")
}  # fmt: skip


@given(st.sampled_from(sorted(SAMPLES)), st.data())
@settings(max_examples=100)  # many small steps in many decoders
def test_a_damaged_file_is_a_picture_or_an_error_that_names_it(kind, data):
    damaged = bytearray(SAMPLES[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, min(len(damaged), 120) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, about the metadata
        try:
            assert decode(bytes(damaged), "holiday").mode == "RGB"
        except ImageError as error:
            assert str(error).startswith("holiday: ")


# -------------------------------------------------------------------------------- resizing and cropping


def halve(length: int) -> np.ndarray:
    """(length / 2, length) weights of an antialiased bilinear resize: a triangle two new pixels wide."""
    weights = np.zeros((length // 2, length))
    for to in range(length // 2):
        for source in range(length):
            weights[to, source] = max(0, 1 - abs((source + 0.5) - 2 * (to + 0.5)) / 2)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (24, 24)])
def test_the_smallest_side_is_resized_then_the_centre_is_cropped(shape, tmp_path):
    pixels = noise(*shape)
    (tmp_path / "a.png").write_bytes(encode(pixels))
    resized = np.einsum("ir,jc,rck->ijk", halve(shape[0]), halve(shape[1]), pixels.astype(float))
    top, left = (resized.shape[0] - 12) // 2, (resized.shape[1] - 12) // 2
    expected = resized[top : top + 12, left : left + 12]
    assert np.abs(array(open_image(tmp_path / "a.png", size=12)) - expected).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
def test_tiny_and_thin_pictures_are_enlarged_about_their_centre(shape, tmp_path):
    pixels = np.zeros((*shape, 3), np.uint8)
    rows = slice((shape[0] - 1) // 2, shape[0] // 2 + 1) if shape[0] > 2 else slice(None)
    columns = slice((shape[1] - 1) // 2, shape[1] // 2 + 1) if shape[1] > 3 else slice(None)
    pixels[rows, columns] = 10, 20, 30
    (tmp_path / "a.png").write_bytes(encode(pixels))
    assert np.array_equal(array(open_image(tmp_path / "a.png")), np.broadcast_to([10, 20, 30], (224, 224, 3)))


# ------------------------------------------------------------------------------------------------ folders


def folder_of(tmp_path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Write one random picture per name; returns what is in them."""
    pictures = {name: noise(seed=i) for i, name in enumerate(names)}
    for name, pixels in pictures.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encode(pixels))
    return pictures


def test_sub_folders_are_classes_and_paths_give_the_order(tmp_path):
    names = ["dogs/z.png", "cats/b.png", "loose.png", "cats/10/deep.png", "cats/a.png", "a.png"]
    written = folder_of(tmp_path, names)
    (tmp_path / "cats" / "notes.txt").write_text("not a picture")
    images = load(f"folder:{tmp_path}")
    assert images.classes == ("cats", "dogs")
    names = [images.name(i) for i in range(len(images))]
    assert names == ["a.png", "cats/10/deep.png", "cats/a.png", "cats/b.png", "dogs/z.png", "loose.png"]
    assert [images[i][1] for i in range(6)] == images.labels.tolist() == [-1, 0, 0, 0, 1, -1]
    for i, name in enumerate(names):
        assert np.array_equal(array(images[i][0]), written[name])
    assert torch.equal(images.take([3, 0, -1]), torch.stack([images[3][0], images[0][0], images[5][0]]))


def test_order_does_not_depend_on_which_file_was_written_first(tmp_path):
    names = [f"{c}/{n}.png" for c in "ba" for n in (9, 10, 1)]
    folder_of(tmp_path / "one", names)
    for name in names[::-1]:
        (tmp_path / "two" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "one" / name, tmp_path / "two" / name)
    one, two = load(f"folder:{tmp_path / 'one'}"), load(f"folder:{tmp_path / 'two'}")
    assert [one.name(i) for i in range(6)] == [two.name(i) for i in range(6)] == sorted(names)
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint() != load(f"folder:{tmp_path / 'one'}", limit=5).fingerprint()


def test_hidden_folders_and_files_are_left_out_with_one_notice(tmp_path):
    hidden = [".ipynb_checkpoints/1.png", "__MACOSX/cats/._a.png", "cats/@eaDir/a.png", "cats/._a.png"]
    folder_of(tmp_path, ["cats/a.png", "dogs/b.png", *hidden])
    (tmp_path / ".DS_Store").write_bytes(b"no picture, and not spoken of")
    with pytest.warns(UserWarning, match=r"^skipped \.ipynb_checkpoints: hidden.* and 3 more") as caught:
        images = load(f"folder:{tmp_path}")
    assert len(caught) == len(images.skipped) == 1 and images.classes == ("cats", "dogs")
    assert [images.name(i) for i in range(len(images))] == ["cats/a.png", "dogs/b.png"]


@pytest.mark.parametrize("names, split, classes, read, notice", [
    (["train/a/1.png", "test/a/2.png", "test/b/3.png"], "val", ("a", "b"), ["a/2.png", "b/3.png"], "'test' is read"),
    (["train/a/1.png", "val/a/2.png"], "train", ("a",), ["a/1.png"], "say split='val'"),
    (["train2017/1.png", "val2017/2.png", "annotations/x.json"], "val", (), ["2.png"], "'val2017' is read"),
    (["images/1.png", "images/2.png", "labels.csv"], "val", (), ["1.png", "2.png"], r"labels\.csv not read: ImageSet"),
    (["images/a/1.png", "images/b/2.png"], "val", ("a", "b"), ["a/1.png", "b/2.png"], "not taken for a class"),
    (["train/1.png", "bus/2.png", "val/3.png"], "val", ("bus", "train", "val"), None, None),  # vehicles
    (["train/1.png", "bus/2.png"], "val", ("bus", "train"), None, None),
])  # fmt: skip
def test_what_folders_within_are_no_classes(names, split, classes, read, notice, tmp_path):
    folder_of(tmp_path, names)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = load(f"folder:{tmp_path}", split=split)
    assert [bool(re.search(notice or "", str(w.message))) for w in caught] == [True] * bool(notice)
    assert images.classes == classes
    assert [images.name(i) for i in range(len(images))] == (read or sorted(names))


@pytest.fixture
def broken_folder(tmp_path):
    """Good pictures with one of each kind of broken file between them."""
    written = folder_of(tmp_path, ["cats/a.png", "cats/d.png", "dogs/b.png", "dogs/e.png", "dogs/f.png"])
    photo = encode(noise(64, 64), "JPEG")
    broken = {
        "cats/b.jpg": photo[: len(photo) // 2],
        "cats/c.jpg": b"",
        "dogs/a.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "dogs/d.png": noise(10, 10, seed=9).tobytes(),
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path, written, sorted(broken)


def skipped_names(caught) -> list[str]:
    return [str(w.message).removeprefix("skipped ").split(":")[0] for w in caught]


def check_against(written, images, index, pixels, labels):
    names = [images.name(i) for i in index]
    assert names == sorted(written) and labels.tolist() == [0, 0, 1, 1, 1]
    for name, picture in zip(names, pixels, strict=True):
        assert np.array_equal(array(picture), written[name])


def test_broken_files_are_skipped_by_name_and_the_rest_is_used(broken_folder):
    folder, written, broken = broken_folder
    with pytest.warns(UserWarning, match="skipped") as caught:
        images = load(f"folder:{folder}")
    assert skipped_names(caught) == broken == [s.name for s in images.skipped]
    reasons = dict(images.skipped)
    assert "truncated" in reasons["cats/b.jpg"] and "not a picture" in reasons["dogs/a.jpg"]
    everything = range(len(images))
    check_against(written, images, everything, images.take(everything), images.labels)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_streaming_gives_the_same_pictures_whatever_the_batch_size(broken_folder, batch_size, streaming):
    folder, written, broken = broken_folder
    images = load(f"folder:{folder}")
    assert len(images) == 9 and images.labels is None  # nothing decoded yet, so nothing known to be broken
    with pytest.warns(UserWarning, match="skipped") as caught:
        batches = list(images.batches(batch_size))
    assert skipped_names(caught) == broken == [s.name for s in images.skipped]
    assert all(0 < len(b.indices) <= batch_size for b in batches)
    assert all(len(b.indices) == len(b.pixels) == len(b.label) for b in batches)
    index = torch.cat([b.indices for b in batches]).tolist()
    pixels, labels = (torch.cat([getattr(b, name) for b in batches]) for name in ("pixels", "label"))
    check_against(written, images, index, pixels, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # each file is reported once, not once a pass
        again = torch.cat([b.indices for b in images.batches(batch_size)]).tolist()
    assert again == index and len(images.skipped) == 4
    assert np.array_equal(array(images[index[2]][0]), written["dogs/b.png"])
    with pytest.raises(ImageError, match=r"cats/c\.jpg"):
        images[2]


@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_may_cover_a_part(in_memory, tmp_path, monkeypatch):
    written = folder_of(tmp_path, [f"{n}.png" for n in range(8)])
    monkeypatch.setattr(imageset, "IN_MEMORY_BYTES", 2**30 if in_memory else 0)
    batches = list(load(f"folder:{tmp_path}").batches(2, start=1, stop=6))
    assert [b.indices.tolist() for b in batches] == [[1, 2], [3, 4], [5]]
    for batch in batches:
        for i, picture in zip(batch.indices.tolist(), batch.pixels, strict=True):
            assert np.array_equal(array(picture), written[f"{i}.png"])


def test_a_folder_of_broken_pictures_only_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    refused = pytest.raises(ImageError, match=r"none of the 1.*a\.png")
    with pytest.warns(UserWarning, match=r"a\.png"), refused:
        load(f"folder:{tmp_path}")


# ------------------------------------------------------------------------------------------------ Parquet

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_rows(path: Path, rows: list, labels=None, classes=None, group=1000) -> None:
    """Rows of encoded pictures in the Hugging Face image layout, `group` rows to a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [r if r is None else {"bytes": r, "path": None} for r in rows]
    table = pa.table({"image": pa.array(cells, IMAGE)})
    if labels is not None:
        table = table.append_column("label", pa.array(labels))
    if classes is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group)


def shade(value: int) -> bytes:
    return encode(np.full((16, 16, 3), value, np.uint8))


def shades(images: ImageSet) -> list[int]:
    """The one value that fills each picture."""
    assert all((images[i][0] == images[i][0][0, 0, 0]).all() for i in range(len(images)))
    return [int(images[i][0][0, 0, 0]) for i in range(len(images))]


@pytest.fixture
def parquet_folder(tmp_path):
    """12 + 3 + 9 rows in three files of several row groups: row i has shade i and label i % 3."""
    files = {"a-0.parquet": range(12), "a-1.parquet": range(12, 15), "b.parquet": range(15, 24)}
    for name, rows in files.items():
        shown, classes = [shade(i) for i in rows], ["cat", "dog", "eel"]
        write_rows(tmp_path / name, shown, [i % 3 for i in rows], classes, group=2)
    return tmp_path


@pytest.mark.parametrize("pattern, rows", [("a-0.parquet", range(12)), ("", range(24)), ("a-*", range(15))])
@pytest.mark.parametrize("in_memory", [True, False])
def test_parquet_as_a_file_a_folder_or_a_glob(pattern, rows, in_memory, parquet_folder, monkeypatch):
    monkeypatch.setattr(imageset, "IN_MEMORY_BYTES", 2**30 if in_memory else 0)
    images = load(f"parquet:{parquet_folder / pattern}")
    assert len(images) == len(rows) and images.classes == ("cat", "dog", "eel")
    assert shades(images) == list(rows)
    assert [images[i][1] for i in range(len(rows))] == [i % 3 for i in rows]
    assert images.name(11) == "a-0.parquet row 11"
    if len(rows) > 12:
        assert images.name(14) == "a-1.parquet row 2"
    for size in (1, 5, 100):  # batches cross row groups and files
        assert torch.cat([b.pixels[:, 0, 0, 0] for b in images.batches(size)]).tolist() == list(rows)
    backwards = range(len(rows) - 1, -1, -1)  # through more row groups than are kept
    assert images.take(backwards)[:, 0, 0, 0].tolist() == list(rows)[::-1]


def test_parquet_without_labels_and_with_missing_ones(tmp_path):
    write_rows(tmp_path / "none.parquet", [shade(1), shade(2)])
    write_rows(tmp_path / "some.parquet", [shade(1), shade(2)], [4, None])
    none, some = load(f"parquet:{tmp_path / 'none.parquet'}"), load(f"parquet:{tmp_path / 'some.parquet'}")
    assert none.labels.tolist() == [-1, -1] and none.classes == ()
    assert some.labels.tolist() == [4, -1]


def test_columns_of_other_names(tmp_path):
    features = {"fine_label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    pictures = pa.array([{"bytes": shade(7), "path": None}], IMAGE)
    table = pa.table({"img": pictures, "scan": pictures, "fine_label": [1], "year": [1998]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "a.parquet")
    source = f"parquet:{tmp_path / 'a.parquet'}"
    usual, own = load(source), load(source, image="scan", label="year")
    assert usual.labels.tolist() == usual.known_labels().tolist() == [1] and usual.classes == ("cat", "dog")
    assert own.labels.tolist() == [1998] and own.classes == () and shades(own) == [7]
    with pytest.raises(ImageError, match=r"no column 'photo'.*There are: .*scan"):
        load(source, image="photo")
    with pytest.raises(ImageError, match="label says nothing about 'torchvision:FakeData'"):
        load("torchvision:FakeData", label="year")


def test_broken_rows_are_skipped_by_file_and_row(tmp_path):
    rows = [shade(0), None, shade(2), b"", b"no picture", shade(5), shade(6)[:60]]
    for folder in ("x", "y"):  # files of the same name are told apart
        write_rows(tmp_path / folder / "t.parquet", rows, list(range(7)), group=3)
    with pytest.warns(UserWarning, match="skipped") as caught:
        images = load(f"parquet:{tmp_path / '*' / 't.parquet'}")
    assert shades(images) == images.labels.tolist() == [0, 2, 5] * 2
    assert [images.name(i) for i in (1, 4)] == ["x/t.parquet row 2", "y/t.parquet row 2"]
    expected = [f"{folder}/t.parquet row {row}" for folder in "xy" for row in (1, 3, 4, 6)]
    assert skipped_names(caught) == expected == [s.name for s in images.skipped]


def test_a_damaged_row_group_costs_its_own_rows_only(tmp_path):
    path = tmp_path / "t.parquet"
    write_rows(path, [shade(i) for i in range(6)], group=3)
    content = bytearray(path.read_bytes())
    content[8:60] = b"\xff" * 52  # the first row group lies right behind the four magic bytes
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged Parquet") as caught:
        images = load(f"parquet:{path}")
    assert skipped_names(caught) == [f"t.parquet row {row}" for row in range(3)]
    assert shades(images) == [3, 4, 5]
    assert all("\n" not in s.reason for s in images.skipped)


@pytest.mark.parametrize("name, table, message", [
    ("a.parquet", {"img": [1], "text": ["a"]}, r"no column 'img' of struct.*are: img, text"),
    ("a.parquet", {"image": [b"bytes"]}, "no column 'image' of struct<bytes, path>"),
    ("a.parquet", {"image": [{"bytes": "text", "path": None}]}, "its 'bytes' are string, and binary was expected"),
    ("a.parquet", {"image": [{"bytes": b"", "path": None}], "label": ["cat"]},
     "'label' is string, and integers were expected.*convert or drop it"),
    ("a.parquet", b"image,label\n1,2\n", "not a readable Parquet file.*replace it$"),
    ("a.parquet", b"", "not a readable Parquet file.*replace it$"),
    ("missing", None, "no Parquet file at .*check the path or glob"),
    ("*.pq", None, "no Parquet file at .*check the path or glob"),
    ("a.parquet", {"image": pa.array([], IMAGE)}, "the source is empty"),
])  # fmt: skip
def test_parquet_that_cannot_be_used(name, table, message, tmp_path):
    if isinstance(table, bytes):
        (tmp_path / name).write_bytes(table)
    elif table:
        pq.write_table(pa.table(table), tmp_path / name)
    with pytest.raises(ImageError, match=message):
        load(f"parquet:{tmp_path / name}")


# -------------------------------------------------------------------------------------------- torchvision


def test_a_torchvision_data_set_passes_through():
    state = torch.get_rng_state()
    images = load("torchvision:FakeData", size=224, limit=40)
    # FakeData reseeds torch's generator for every picture, so that reading ahead could mix pictures up.
    assert torch.equal(torch.get_rng_state(), state)
    truth = torchvision.datasets.FakeData()
    assert len(images) == 40
    for i in range(40):
        picture, label = truth[i]
        assert np.array_equal(array(images[i][0]), np.asarray(picture)) and images[i][1] == label
        assert images.name(i) == f"FakeData val {i}"


def test_a_failed_download_is_one_clear_line(monkeypatch, tmp_path):
    class Offline(torch.utils.data.Dataset):
        def __init__(self, root, train=True, download=False):
            assert download and not train
            raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Offline)
    expected = f"CIFAR10.*Name or service not known.*check the connection.*{re.escape(str(tmp_path))}"
    with pytest.raises(ImageError, match=expected):
        load("torchvision:CIFAR10", root=tmp_path)


def test_splits_classes_labels_and_unreadable_files_of_a_data_set(monkeypatch, tmp_path):
    class Birds(torch.utils.data.Dataset):
        classes = ("owl", "wren", "kite")

        def __init__(self, root, split="train", download=False):
            if split not in ("train", "test"):
                raise ValueError(f"Unknown split {split}")
            self.first = 0 if split == "train" else 100

        def __len__(self):
            return 3

        def __getitem__(self, i):
            if i == 1:
                raise OSError("image file is truncated")
            return Image.new("L", (16, 16), self.first + i), i

    monkeypatch.setattr(torchvision.datasets, "SVHN", Birds)
    for split, first in (("train", 0), ("val", 100)):  # torchvision calls what validates "val" or "test"
        with pytest.warns(UserWarning, match=f"SVHN {split} 1: .*image file is truncated"):
            images = load("torchvision:SVHN", root=tmp_path, split=split)
        assert images.classes == ("owl", "wren", "kite")
        assert shades(images) == [first, first + 2] and images.labels.tolist() == [0, 2]
        assert [images.name(i) for i in (0, 1)] == [f"SVHN {split} 0", f"SVHN {split} 2"]
    with pytest.raises(ImageError, match="no split 'dev'"):
        load("torchvision:SVHN", root=tmp_path, split="dev")


# ------------------------------------------------------------------------------------------ limits, errors


def test_limit_keeps_the_first_pictures_of_any_source(photos, parquet_folder, tmp_path):
    folder_of(tmp_path / "folder", [f"{n}.png" for n in range(5)])
    for source in (f"folder:{tmp_path / 'folder'}", f"parquet:{parquet_folder}"):
        everything, some = load(source), load(source, limit=3)
        assert len(some) == 3 and torch.equal(some.take(range(3)), everything.take(range(3)))
        assert [some.name(i) for i in range(3)] == [everything.name(i) for i in range(3)]
        assert len(load(source, limit=1000)) == len(everything)
    some = load("photos-small", size=224, limit=7)
    assert len(some) == 7 and torch.equal(some.take(range(7)), photos.take(range(7)))
    assert torch.equal(some.windows.box, photos.windows.box[:7]) and len(some.windows.photograph) == 7
    assert torch.equal(some.labels, photos.labels[:7])
    assert len(load("torchvision:FakeData", limit=2)) == 2


def test_limit_holds_while_streaming(tmp_path, streaming):
    folder_of(tmp_path, [f"{n}.png" for n in range(5)])
    images = load(f"folder:{tmp_path}", limit=3)
    assert [b.indices.tolist() for b in images.batches(2)] == [[0, 1], [2]]
    with pytest.raises(IndexError):
        images[3]


@pytest.mark.parametrize("source, message", [
    ("photo", r"no image source 'photo'\. Did you mean 'photos'\?"),
    ("foldr:pictures", r"Did you mean 'folder:PATH'\?"),
    ("{}", "say 'folder:{}'"),  # a folder alone
    ("folder:", "'folder:' lacks what comes after the colon"),
    ("folder:{}/gone", r"there is no folder .*gone.*check the path"),
    ("folder:{}/empty", "it is empty"),
    ("folder:{}", r"1 files, none with the suffix of a picture \(\.jpg, \.png"),
    ("folder:{}/notes.txt", "is a file, and a folder was expected: say 'folder:{}'"),
    ("torchvision:CIFAR1O", r"no torchvision data set 'CIFAR1O'.*Did you mean 'CIFAR10'\?"),
])  # fmt: skip
def test_a_source_that_does_not_exist_is_named(source, message, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ImageError, match=message.format(re.escape(str(tmp_path)))):
        load(source.format(tmp_path))


@pytest.mark.parametrize("options, word", [
    ({"size": 0}, "size"), ({"size": 16.0}, "size"), ({"size": 10**6}, "size"), ({"limit": 0}, "limit"),
    ({"limit": True}, "limit"),
])  # fmt: skip
def test_sizes_and_limits_that_make_no_pictures(options, word):
    with pytest.raises(ImageError, match=f"{word}, in p.* must be a whole number from 1"):
        load_images("photos", **options)


def test_a_source_of_ones_own_is_one_decorated_function(monkeypatch):
    monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))

    @sources.image_source("grey:LEVELS", size=8)
    def grey_levels(rest, size, **options):
        levels = [int(level) for level in rest.split(",")]
        read = lambda i: (Image.new("RGB", (9, 9), (levels[i],) * 3), i)  # noqa: E731
        return ImageSet(read, [f"level {v}" for v in levels], size=size)

    images = load_images("grey:10,20,30", limit=2, progress=False)
    assert shades(images) == [10, 20] and images.size == 8 and images.labels.tolist() == [0, 1]
    assert images.source == "grey:10,20,30" and images.name(1) == "level 20"
    with pytest.raises(ImageError, match=r"cannot read.*invalid literal"):
        load("grey:dark")
    with pytest.raises(ImageError, match=r"no image source 'gray:1'.*Did you mean 'grey:LEVELS'"):
        load("gray:1")
    sources.image_source("nothing")(lambda rest, **options: None)
    with pytest.raises(ZfkitError, match="'nothing' returns must be ImageSet"):
        load("nothing")


def test_an_index_outside_the_set_says_how_many_there_are(tmp_path):
    folder_of(tmp_path, ["a.png", "b.png"])
    images = load(f"folder:{tmp_path}")
    assert torch.equal(images[-1][0], images[1][0]) and images.name(-2) == "a.png"
    for use in (images.__getitem__, images.name, lambda i: images.take([0, i])):
        for i in (2, -3):
            with pytest.raises(IndexError, match=f"picture {i} of .* does not exist: it holds 2"):
                use(i)


def test_a_missing_picture_of_your_own(tmp_path):
    with pytest.raises(ImageError, match=r"there is no file .*me\.jpg.*check the path"):
        open_image(tmp_path / "me.jpg")
