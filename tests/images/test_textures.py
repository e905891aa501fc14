"""The drawn set: what it says of its waves holds in the Fourier transform, and a picture depends on its place."""

import hashlib
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zfkit import load_images
from zfkit.errors import ImageError
from zfkit.images.textures import CLASSES, HIGH, LOW, MIDDLE, SPLITS, draw, truth

WAVES = ["vertical grating", "horizontal grating", "diagonal grating", "red-green stripes"]
WAVES += ["blue-yellow stripes"]
LATTICES = ["checks", "mesh", "dots"]
PERIODIC = [*WAVES, *LATTICES, "rings", "bricks", "zigzag"]


def load(source="textures", **options):
    return load_images(source, progress=False, **options)


def a_picture_of(classes) -> st.SearchStrategy[int]:
    """Places of the training split that hold one of these classes."""
    rounds = st.integers(0, SPLITS["train"] // len(CLASSES) - 1)
    return st.builds(lambda n, c: n * len(CLASSES) + CLASSES.index(c), rounds, st.sampled_from(classes))


def varying(picture: np.ndarray) -> np.ndarray:
    """(S, S): the picture along the colour direction in which it varies most, brighter (redder, bluer) up."""
    pixels = picture.reshape(-1, 3).astype(float)
    pixels -= pixels.mean(0)
    axis = np.linalg.svd(pixels, full_matrices=False)[2][0]
    if abs(axis.sum()) > 0.5:
        axis *= np.sign(axis.sum())
    else:  # equally bright: red against green, blue against yellow
        axis *= np.sign(axis[np.argmax(np.abs(axis * [1, 0, 1]))])
    return (pixels @ axis).reshape(picture.shape[:2])


def response(signal: np.ndarray, fx: np.ndarray, fy: np.ndarray) -> np.ndarray:
    """(len(fy), len(fx)): sum of signal * window * exp(-2 pi i (fx x + fy y)), frequencies in cycles/pixel."""
    place = np.arange(len(signal))
    window = np.hanning(len(signal) + 2)[1:-1]
    rows = window * np.exp(-2j * np.pi * np.multiply.outer(fy, place))
    columns = window * np.exp(-2j * np.pi * np.multiply.outer(fx, place))
    return rows @ signal @ columns.T


def everywhere(signal: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """|response| (steps, steps) on a grid over all frequencies but the lowest, and its fx and fy."""
    f = np.arange(steps) / steps - 0.5
    fx, fy = np.meshgrid(f, f)
    return np.abs(response(signal, f, f)) * (np.hypot(fx, fy) > 1.2 / len(signal)), fx, fy


def spectrum(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Power (S, S) over all channels under a Hann window, and the radius of each frequency in c/px."""
    side = len(picture)
    window = np.hanning(side + 2)[1:-1]
    centred = picture - picture.mean((0, 1))
    power = np.abs(np.fft.fft2(centred * np.outer(window, window)[..., None], axes=(0, 1))) ** 2
    f = np.fft.fftfreq(side)
    return power.sum(2), np.hypot(f[:, None], f[None])


# ------------------------------------------------------------------------------------------------- the truth


@given(a_picture_of(WAVES))
def test_a_waves_spectrum_peaks_where_the_truth_says_with_its_phase(index):
    picture, _, known = draw(index)
    found, fx, fy = everywhere(varying(picture), 128)
    best = np.unravel_index(np.argmax(found), found.shape)
    x, y = known.frequency * math.cos(known.orientation), known.frequency * math.sin(known.orientation)
    off = min(math.hypot(fx[best] - s * x, fy[best] - s * y) for s in (1, -1))
    assert off <= 1 / 128, (CLASSES[index % 16], known, fx[best], fy[best])
    measured = np.angle(response(varying(picture), np.array([x]), np.array([y])))[0, 0]
    assert abs(math.remainder(measured - known.phase, math.tau)) < 0.2


@given(a_picture_of([*LATTICES, "bricks"]))
def test_a_lattice_has_a_peak_where_the_truth_says(index):
    """Among the places around it, at least a sixth of the strongest anywhere."""
    picture, _, known = draw(index, size=96)
    signal = varying(picture)
    x, y = known.frequency * math.cos(known.orientation), known.frequency * math.sin(known.orientation)
    steps = np.arange(-12, 13) / 96 / 8  # 1.5 cycles/picture each way
    around = np.abs(response(signal, x + steps, y + steps))
    best = np.unravel_index(np.argmax(around), around.shape)
    assert math.hypot(steps[best[0]], steps[best[1]]) <= 0.5 / 96
    assert around[best] > everywhere(signal, 96)[0].max() / 6


@given(a_picture_of(["rings", "zigzag"]))
def test_bent_bars_have_their_power_at_the_truths_frequency(index):
    picture, _, known = draw(index, size=96)
    power, radius = spectrum(picture)
    # Chevrons repeat along their length, which splits their wave into lines up to half a period's width away.
    width = 1.5 / 96 if CLASSES[index % len(CLASSES)] == "rings" else 0.5 / 16
    within = [power[np.abs(radius - f) < 2 / 96].sum() for f in np.arange(4, 48) / 96]
    assert abs((np.argmax(within) + 4) / 96 - known.frequency) < width
    assert math.isnan(known.orientation) and math.isnan(known.phase)


@given(st.integers(0, SPLITS["val"] - 1), st.sampled_from([True, False]))
def test_the_truth_is_the_drawn_pictures_and_in_range(index, middle):
    known = truth(index, "val", middle=middle)
    assert repr(known) == repr(draw(index, "val", middle=middle)[2])
    name = CLASSES[index % len(CLASSES)]
    assert math.isnan(known.frequency) == (name not in PERIODIC)
    assert math.isnan(known.orientation) == (name not in [*WAVES, *LATTICES, "bricks"])
    assert math.isnan(known.phase) == (name not in WAVES)
    if name in PERIODIC:
        assert LOW[0] <= known.frequency <= HIGH[1] or (name == "bricks" and known.frequency >= 1 / 18)
        assert middle or known.frequency <= 0.07 or known.frequency >= 0.36
    assert math.isnan(known.orientation) or 0 <= known.orientation < math.pi
    assert math.isnan(known.phase) or 0 <= known.phase < math.tau


def test_gratings_lie_as_their_class_says_in_all_three_bands():
    limits = {"vertical grating": (0, 15), "horizontal grating": (75, 90), "diagonal grating": (30, 60)}
    known = [(CLASSES[i % len(CLASSES)], *truth(i)) for i in range(2048)]
    table = pd.DataFrame(known, columns=["class", "frequency", "orientation", "phase"])
    for name, (least, most) in limits.items():
        rows = table[table["class"] == name]
        steep = np.degrees(rows["orientation"].to_numpy())
        steep = np.minimum(steep, 180 - steep)  # from the horizontal, whichever way it leans
        assert steep.min() >= least and steep.max() <= most
        bands = [rows["frequency"].between(*band).mean() for band in (LOW, MIDDLE, HIGH)]
        assert min(bands) > 0.2 and sum(bands) == pytest.approx(1)
    leaning = table[table["class"] == "diagonal grating"]["orientation"]
    assert 0.3 < (leaning < math.pi / 2).mean() < 0.7


# ------------------------------------------------------------------------------------- without the middle band


def shares(source: str) -> np.ndarray:
    """(N,) part of each picture's power, its mean left out, that lies from 1/12 to 1/3 c/px."""
    parts = []
    for picture, _ in load(source, limit=160):
        power, radius = spectrum(picture.permute(1, 2, 0).numpy().astype(float))
        parts.append(power[(radius > MIDDLE[0]) & (radius < MIDDLE[1])].sum() / power[radius > 0].sum())
    return np.array(parts)


def test_without_the_middle_band_next_to_no_power_is_left_in_it():
    with_it, without = shares("textures"), shares("textures:no-middle")
    assert with_it.mean() > 0.3
    assert without.mean() < 0.02 and without.max() < 0.2  # the window spreads some over the edge


def test_outside_the_middle_band_a_picture_stays_as_it_was():
    """Where the texture has no fundamental to move: low frequencies agree with the whole picture's."""
    compared = 0
    for index in range(8 * len(CLASSES)):
        if CLASSES[index % len(CLASSES)] not in ("star", "corner", "blobs"):
            continue
        whole, label, _ = draw(index)
        rest, same, _ = draw(index, middle=False)
        assert label == same
        (_, radius), keep = spectrum(whole), []
        window = np.outer(np.hanning(64), np.hanning(64))
        for picture in (whole, rest):
            f = np.fft.fft2((picture.mean(2) - picture.mean()) * window)
            keep.append(f[(radius > 0) & (radius < 0.06)])
        assert abs(np.vdot(*keep)) / np.linalg.norm(keep[0]) / np.linalg.norm(keep[1]) > 0.98
        compared += 1
    assert compared == 24


# ------------------------------------------------------------------------- the same pictures, whoever asks when


def test_a_picture_depends_on_seed_split_and_place_alone():
    first = load(limit=160)
    assert len(first) == 160 and first.size == 64
    longer = load(limit=320)
    assert torch.equal(longer.take(range(160)), first.take(range(160)))
    for i in (0, 17, 159):
        assert np.array_equal(draw(i, "val")[0], first[i][0].permute(1, 2, 0).numpy())


@pytest.mark.slow
def test_another_process_draws_the_same_pictures():
    code = (
        "import hashlib; from zfkit.images.textures import draw; "
        "print(hashlib.sha256(b''.join(draw(i, 'val')[0].tobytes() for i in reversed(range(48)))).hexdigest())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = hashlib.sha256(b"".join(draw(i, "val")[0].tobytes() for i in reversed(range(48))))
    assert result.stdout.strip() == here.hexdigest()


def test_splits_and_seeds_share_no_picture():
    sets = [load(split="train", limit=128), load(split="val", limit=128), load("textures:seed=1", limit=128)]
    pictures = {p.numpy().tobytes() for images in sets for p, _ in images}
    assert len(pictures) == 3 * 128
    assert len({images.fingerprint() for images in sets}) == 3
    assert load("textures:no-middle", limit=128).fingerprint() != sets[1].fingerprint()


def test_labels_are_balanced_and_name_what_is_drawn():
    for split, count in SPLITS.items():
        assert count % len(CLASSES) == 0
        for limit in (len(CLASSES), 5 * len(CLASSES)):
            images = load(split=split, limit=limit)
            assert images.classes == CLASSES and len(set(CLASSES)) == 16
            assert torch.bincount(images.labels).eq(limit // len(CLASSES)).all()
            assert images.known_labels().tolist() == images.labels.tolist()
            names = [CLASSES[label] for label in images.labels]
            assert images.truth["class"].tolist() == names
            assert [images.name(i).split(": ")[1] for i in range(limit)] == names


def test_the_truth_follows_the_pictures_of_a_set():
    table = load("textures:no-middle,seed=3", split="train", limit=40).truth
    assert list(table.columns) == ["class", "frequency", "orientation", "phase"] and len(table) == 40
    for i in (0, 5, 39):
        assert repr(tuple(table.iloc[i, 1:])) == repr(tuple(truth(i, "train", random_seed=3, middle=False)))
    assert load_images("photos", limit=2, progress=False).truth is None
    streamed = load(limit=16)
    streamed._pixels = None
    assert streamed.truth.equals(load(limit=16).truth)
    assert streamed.in_memory(progress=False).truth.equals(streamed.truth)


# -------------------------------------------------------------------------------------------- sizes and options


@given(a_picture_of(CLASSES), st.integers(16, 150), st.booleans())
def test_any_size_from_16_px_is_drawn_with_contrast(index, size, middle):
    picture, label, known = draw(index, size=size, middle=middle)
    assert picture.shape == (size, size, 3) and picture.dtype == np.uint8 and picture.flags.c_contiguous
    assert label == index % len(CLASSES)
    assert repr(known) == repr(draw(index, middle=middle)[2])  # cycles a pixel, whatever the size


def test_pictures_vary_and_are_rarely_cut_off():
    for source in ("textures", "textures:no-middle"):
        pixels = load(source, limit=160).take(range(160)).float()
        spread = pixels.std((2, 3)).mean(1)
        assert spread.min() > 4 and 20 < spread.mean() < 70
        assert ((pixels == 0) | (pixels == 255)).float().mean() < 0.02


def test_textures_are_64_px_and_everything_else_224_unless_told():
    assert load(limit=1).size == 64
    assert load("textures", limit=1, size=32)[0][0].shape == (3, 32, 32)
    assert load_images("photos", limit=1, progress=False).size == 224


def test_options_in_any_spelling_mean_the_same():
    plain = load("textures:no-middle,seed=3", limit=16)
    other = load("textures: seed = 3 , no-middle", limit=16)
    assert plain.fingerprint() == other.fingerprint()
    assert torch.equal(plain.take(range(16)), other.take(range(16)))
    assert load("textures:seed=0", limit=16).fingerprint() == load(limit=16).fingerprint()


@pytest.mark.parametrize("source, options, message", [
    ("textures:no-midle", {}, r"no option of 'textures' 'no-midle'\. Did you mean 'no-middle'\?.*seed=NUMBER"),
    ("textures:seed=-1", {}, "must be a whole number from 0, as in seed=3, not '-1'"),
    ("textures", {"split": "test"}, "no split of 'textures' 'test'"),
    ("textures", {"size": 8}, r"at least 16 px .* size is 8"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_refused_in_words(source, options, message):
    with pytest.raises(ImageError, match=message):
        load(source, **options)


def test_pictures_and_seeds_are_counted_from_0():
    for index, random_seed in ((-1, 0), (0, -1), (0, 1.5)):
        with pytest.raises(ImageError, match="must be a whole number from 0"):
            draw(index, random_seed=random_seed)
