"""`ImageSet.of`: pictures at hand as a set; parts of sets."""

from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from zfkit import ImageSet, load_images
from zfkit.errors import ImageError
from zfkit.images import imageset

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8))
LABELS = [2, 0, 1, 1, 2]


of = partial(ImageSet.of, progress=False)


class Items(torch.utils.data.Dataset):
    """A data set whose items are made of pixels (3, H, W) and a label."""

    classes = ("cat", "dog", "eel")

    def __init__(self, item, pixels=PIXELS):
        self.item, self.pixels = item, pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        return self.item(self.pixels[i], LABELS[i])


def picture(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


ITEMS = {
    "pair": lambda x, label: (picture(x), label),
    "tensors": lambda x, label: (x, torch.tensor(label)),
    "dictionary": lambda x, label: {"img": x.permute(1, 2, 0).numpy(), "fine_label": np.int64(label)},
    "ToTensor": lambda x, label: [torchvision.transforms.functional.to_tensor(picture(x)), label, "more"],
}


@pytest.mark.parametrize("kind", [*ITEMS, "tensor", "array", "paths"])
def test_one_set_out_of_every_kind(kind, tmp_path):
    if kind in ITEMS:
        images = of(Items(ITEMS[kind]), size=16)
        assert images.classes == ("cat", "dog", "eel") and images.labels.tolist() == LABELS
    else:
        for i, pixels in enumerate(PIXELS):
            picture(pixels).save(tmp_path / f"{i}.png")
        array, paths = PIXELS.permute(0, 2, 3, 1).numpy(), sorted(tmp_path.glob("*"))
        pictures = {"tensor": PIXELS, "array": array, "paths": paths}
        size = 16 if kind == "paths" else None
        images = of(pictures[kind], size=size, labels=LABELS, classes=["x", "y", "z"])
        assert images.classes == ("x", "y", "z") and images.labels.tolist() == LABELS
        assert of(pictures[kind], size=16).labels.tolist() == [-1] * 5
    assert torch.equal(images.take(range(5)), PIXELS) and images.size == 16
    assert of(images) is images


def test_other_pixels_are_another_set():
    other = PIXELS.clone()
    other[4, 2, 15, 15] ^= 1
    assert of(PIXELS).fingerprint() == of(PIXELS.clone()).fingerprint() != of(other).fingerprint()


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("pictures, word", [
    (PIXELS.float(), "expected uint8 pictures"), (PIXELS[0], "expected uint8 pictures"), ([], "must be a tensor"),
    ("photos", "must be a tensor"), (3, "picture was expected, not int"),
    (Items(lambda x, label: ((x / 255 - 0.5) / 0.2, label)), "floats from.*take Normalize"),
    (Items(lambda x, label: {"pixels": x}), "picture was expected, not NoneType"),
])  # fmt: skip
def test_what_is_no_set_of_pictures(pictures, word):
    with pytest.raises(ImageError, match=word):
        of(pictures)


def test_labels_are_one_for_each_picture():
    for labels in ([0, 1], ["cat"] * 5, [0.5] * 5):
        with pytest.raises(ImageError, match="labels must be 5 whole numbers"):
            of(PIXELS, labels=labels)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_slice_is_the_set_of_its_pictures(in_memory, photos64, monkeypatch):
    monkeypatch.setattr(imageset, "IN_MEMORY_BYTES", 2**30 if in_memory else 0)
    part = of(PIXELS, labels=LABELS)[4:0:-2]
    assert torch.equal(part.take(range(2)), PIXELS[[4, 2]]) and [part[i][1] for i in range(2)] == [2, 1]
    assert part.known_labels().tolist() == [2, 1] and part.name(1) == "mine 2"
    windows = photos64[3:5]
    assert torch.equal(windows.windows.box, photos64.windows.box[3:5]) and windows.name(0) == photos64.name(3)
    drawn = load_images("textures", limit=20, progress=False)
    assert drawn[5:7].truth.equals(drawn.truth[5:7].reset_index(drop=True))
