"""Other pictures have another fingerprint, whatever they are called; the same ones have the same."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mining import conv_model
from PIL import Image
from tiny import random_pixels

import zfkit
import zfkit.images.imageset
from zfkit import ImageSet, ZfkitError, load_images

SIDE = 8
PIXELS = random_pixels(4, SIDE)  # (4, 8, 8, 3)


@pytest.fixture(params=[False, True], ids=["in memory", "streamed"])
def streamed(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(zfkit.images.imageset, "IN_MEMORY_BYTES", 0)
    return request.param


def write_folder(folder, pixels):
    """As .bmp, whose size depends on the picture's alone."""
    folder.mkdir(exist_ok=True)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i:04d}.bmp")
    return f"folder:{folder}"


def write_parquet(folder, pixels):
    folder.mkdir(exist_ok=True)
    write_folder(folder / "bmp", pixels)
    rows = [{"bytes": file.read_bytes(), "path": None} for file in sorted((folder / "bmp").iterdir())]
    options = {"compression": "none", "write_statistics": False}
    pq.write_table(pa.table({"image": rows}), folder / "p.parquet", **options)
    return f"parquet:{folder / 'p.parquet'}"


load = partial(load_images, size=SIDE, progress=False)


@pytest.mark.parametrize("write", [write_folder, write_parquet])
@pytest.mark.parametrize("change", ["swapped", "replaced"])
def test_pictures_that_change_under_their_names_and_sizes(write, change, streamed, tmp_path):
    source = write(tmp_path / "a", PIXELS)
    sizes = {p: p.stat().st_size for p in tmp_path.rglob("*.*") if p.is_file()}
    images = load(source)
    before = images.fingerprint()
    assert before == load(source).fingerprint() and images.lasting
    top = zfkit.mine(conv_model(), images, progress=False)
    other = PIXELS[[1, 0, 2, 3]] if change == "swapped" else np.concatenate([255 - PIXELS[:1], PIXELS[1:]])
    write(tmp_path / "a", other)
    assert {p: p.stat().st_size for p in sizes} == sizes
    now = load(source)
    assert now.fingerprint() != before
    assert [now.name(i) for i in range(4)] == [images.name(i) for i in range(4)]
    with pytest.raises(ZfkitError, match=r"this table was mined from .* as it is now: mine again"):
        top.check(conv_model(), now)
    if streamed and write is write_folder:  # what was opened before is not read as if nothing had happened
        with pytest.raises(ZfkitError, match=r"changed since .*opened; load the set again"):
            images[0]
    else:  # kept, as is a row group
        assert torch.equal(images[0][0], torch.from_numpy(PIXELS[0]).permute(2, 0, 1))


def test_every_one_of_2001_files_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(zfkit.images.imageset, "IN_MEMORY_BYTES", 0)
    source = write_folder(tmp_path / "many", np.zeros((2001, 2, 2, 3), np.uint8))
    before, seen = load(source).fingerprint(), set()
    for i in (0, 1, 999, 1501, 2000):
        file = tmp_path / "many" / f"{i:04d}.bmp"
        os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1))
        seen.add(load(source).fingerprint())
    assert len(seen | {before}) == 6


def test_windows_cut_elsewhere_are_other_pictures():
    photos = load_images("photos", size=32, limit=20, progress=False)
    moved = photos[:20]
    moved.windows = photos.windows._replace(box=photos.windows.box + 1)
    assert photos[:20].fingerprint() == photos.fingerprint() != moved.fingerprint()


# ------------------------------------------------------------------------------------------------ sets of one's own


def own(pixels, memory=False, **options):
    names = [f"picture {i}" for i in range(len(pixels))]
    images = ImageSet(lambda i: (Image.fromarray(pixels[i]), -1), names, size=SIDE, source="own", **options)
    return images.in_memory(progress=False) if memory else images


class Own(ImageSet):
    """With a way of its own to read."""

    def __init__(self, pixels):
        names = ["a", "b", "c", "d"]
        super().__init__(lambda i: (Image.fromarray(pixels[i]), -1), names, size=SIDE, source="own")


@pytest.mark.parametrize("make", [own, Own])
def test_an_own_set_that_streams_is_like_no_other_and_not_kept(make, tmp_path):
    pytest.importorskip("ipywidgets")
    from zfkit.widgets.explorer import mined

    images, other, model = make(PIXELS), make(255 - PIXELS), conv_model()
    assert not images.lasting and images.fingerprint() == images.fingerprint() != other.fingerprint()
    with pytest.warns(UserWarning, match="nothing tells the pictures of 'own' from others.*not kept.*stamp="):
        top = mined(model, images, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    top.check(model, images)
    with pytest.raises(ZfkitError, match="mine again"):
        top.check(model, other)
    with pytest.raises(ZfkitError, match=r"no checkpoint can be gone on with: say what changes.*stamp="):
        zfkit.mine(model, images, checkpoint=tmp_path / "t.part", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_own_set_in_memory_or_with_a_stamp_is_known_again(tmp_path):
    for options in ({"memory": True}, {"stamp": lambda: "version 3"}):
        assert own(PIXELS, **options).lasting
        assert own(PIXELS, **options).fingerprint() == own(PIXELS, **options).fingerprint()
    assert own(PIXELS, memory=True).fingerprint() != own(255 - PIXELS, memory=True).fingerprint()
    assert own(PIXELS, stamp=lambda: "3").fingerprint() != own(PIXELS, stamp=lambda: "4").fingerprint()


class DataSet(list):
    """As torchvision's data sets are: pixels in `data`, or paths in `samples`, and perhaps a transform."""


def test_what_data_sets_say_of_their_pictures_is_used(monkeypatch, tmp_path):
    monkeypatch.setattr(zfkit.images.imageset, "IN_MEMORY_BYTES", 0)

    def of(pixels, **attributes):
        items = DataSet((Image.fromarray(p), 0) for p in pixels)
        vars(items).update(attributes)
        return ImageSet.of(items, size=SIDE)

    write_folder(tmp_path, PIXELS)
    paths = [(str(p), 0) for p in sorted(tmp_path.iterdir())]
    for known, changed in (
        ({"data": PIXELS}, {"data": 255 - PIXELS}), ({"_fingerprint": "1"}, {"_fingerprint": "2"}),
        ({"samples": paths}, {"samples": paths[::-1]}),
    ):  # fmt: skip
        assert of(PIXELS, **known).lasting
        assert of(PIXELS, **known).fingerprint() == of(PIXELS, **known).fingerprint()
        assert of(PIXELS, **known).fingerprint() != of(PIXELS, **changed).fingerprint()
    assert not of(PIXELS).lasting and not of(PIXELS, data=PIXELS, transform=print).lasting


def test_words_after_photos_are_refused():
    with pytest.raises(zfkit.errors.ImageError, match="'photos:x' says more than 'photos'"):
        load_images("photos:x")
