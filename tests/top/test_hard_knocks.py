"""Hard knocks: what a folder from the wild, a full disk, too little memory or a second process do to zfkit.

Knocks with a place of their own: every format and orientation of pictures (test_images), checkpoints that are pickled,
cut, lying or of another network (test_checkpoints), runs that are killed (test_training, test_runs, test_sweeps), pages
with markup in names (test_atlas, test_sweeps), servers for this machine and its user alone (test_explorer_browser),
bytes that are changed at random (test_fuzz).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import warnings
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import image_set, network, random_pixels
from torch import nn

import zfkit
import zfkit.images.imageset
from zfkit import ImageSet, ZfkitError, load_images
from zfkit.deconv.project import Deconvnet
from zfkit.errors import ImageError, WriteError
from zfkit.files import only_writer
from zfkit.images.decode import decode

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, permissions and locks of Unix")

SIDE = 16
NOBODY = 65534
HOSTILE = "<script>alert(1)</script>"


@contextlib.contextmanager
def within(seconds: int):
    """Fail instead of hanging."""

    def stop(*_):
        raise AssertionError(f"it hangs: not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def as_nobody():
    """Root may read everything; for a while, be somebody else."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A temporary folder that everybody may look into, which pytest's are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)


# --------------------------------------------------------------------------------- one folder with everything

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
FLAT = np.full((SIDE, SIDE, 3), (200, 60, 30), np.uint8)  # which a JPEG keeps


def encode(pixels, format="PNG", **options) -> bytes:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and is 70 bytes long."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(b"\0" * 99)) + png_chunk(b"IEND", b"")
    )


def flipped(encoded: bytes, at: int) -> bytes:
    return encoded[:at] + bytes([encoded[at] ^ 1]) + encoded[at + 1 :]


JPEG = encode(RGB, "JPEG")
FLAT_JPEG = encode(FLAT, "JPEG", quality=95, subsampling=0)
TIFF = encode(RGB, "TIFF")
SECOND = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)]}  # frame or page, that is not shown

# name -> bytes, the pixels they mean, tolerance in levels of 255
GOOD = {
    "trailing data.jpg": (FLAT_JPEG + b"MotionPhoto_Data" + RNG.bytes(5000), FLAT, 3),
    "progressive.jpg": (encode(FLAT, "JPEG", quality=95, subsampling=0, progressive=True), FLAT, 3),
    "wrong suffix.jpg": (encode(RGB), RGB, 0),
    "animated.webp": (encode(RGB, "WEBP", lossless=True, **SECOND), RGB, 0),
    "pages.tif": (encode(RGB, "TIFF", **SECOND), RGB, 0),
    "fax.tif": (
        encode(Image.fromarray(GREY > 127), "TIFF", compression="group4"),
        np.where(GREY > 127, 255, 0)[..., None], 0,
    ),
    "text bomb.png": (  # 100 MB of text, packed: never unpacked
        encode(RGB)[:33] + png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))) + encode(RGB)[33:], RGB, 0,
    ),
    "icon.ico": (encode(RGB, "ICO", sizes=[(SIDE, SIDE)]), RGB, 0),
    "huge profile.png": (encode(RGB, icc_profile=bytes(1_000_000)), RGB, 0),
    "thin.png": (encode(np.full((100_000, 1, 3), (9, 99, 199), np.uint8)), np.full((1, 1, 3), (9, 99, 199)), 0),
    "name with \U0001f469‍\U0001f680 and\nnewline.png": (encode(RGB), RGB, 0),
    "name with \x1b[31mred.png": (encode(RGB), RGB, 0),
    f"{HOSTILE.replace('/', '∕')}.png": (encode(RGB), RGB, 0),
    "n" * 251 + ".png": (encode(RGB), RGB, 0),
    b"latin \xe9.png".decode("utf-8", "surrogateescape"): (encode(RGB), RGB, 0),
    "folder.jpg/inside.png": (encode(RGB), RGB, 0),
}  # fmt: skip
# name -> bytes, what the reason says
BAD = {
    "truncated.png": (encode(RGB)[:-200], "truncated"),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated.tif": (TIFF[:-300], "truncated"),
    "zero bytes.jpg": (b"", "the file is empty"),
    "only zeros.png": (bytes(4096), "nothing but zeros"),
    "end lost to zeros.jpg": (JPEG[:-9] + bytes(9), "no end marker"),
    "noise.png": (RNG.bytes(999), "not a picture"),
    "page.jpg": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "a web page, not a picture"),
    "drawing.png": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
    "drawing.svg": (b"<svg/>", r"a \.svg file, which Pillow does not read"),
    "phone.heic": (b"\0\0\0\x18ftypheic", r"a \.heic file, which Pillow does not read"),
    "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, not a picture that Pillow reads by itself"),
    "no suffix": (encode(RGB), "without the suffix of one; rename it"),
    "bomb.png": (png_header(50_000, 50_000), "make it smaller"),
    "wrong sum.png": (flipped(encode(RGB), 100), "damaged"),
    "float.tif": (encode(GREY.astype(np.float32), "TIFF"), "floating-point pixels have no known range"),
    "32 bits.tif": (encode(GREY.astype(np.int32) * 999, "TIFF"), "integers beyond 16 bits"),
    "script.eps": (encode(RGB, "EPS"), "PostScript is a program"),
    "film.mpg": (b"\0\0\1\xb3\x10\0\x10\x13" + bytes(99), "not a picture|cannot find loader|damaged"),
    "circle.tif": (TIFF[:4] + struct.pack("<I", 8) + struct.pack("<HI", 0, 8) + TIFF[14:], "not a picture|damaged"),
}  # fmt: skip


@pytest.fixture
def wild(open_folder, monkeypatch):
    """All of them in one folder; returns it and what is bad there, by name."""
    top = open_folder / "pictures"
    top.mkdir()
    for name, content in [(n, c[0]) for n, c in GOOD.items()] + [(n, c[0]) for n, c in BAD.items()]:
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_bytes(content)
    bad = {name: reason for name, (_, reason) in BAD.items()}
    (top / "notes.txt").write_text("not a picture, and not taken for one")
    (top / "nowhere.jpg").symlink_to("gone.jpg")
    bad["nowhere.jpg"] = r"a link that leads nowhere \(No such file"
    (top / "to itself.jpg").symlink_to("to itself.jpg")
    bad["to itself.jpg"] = "a link that leads nowhere .*symbolic links"
    (top / "device.png").symlink_to("/dev/zero")
    bad["device.png"] = "a device, not a file"
    os.mkfifo(top / "pipe.jpg")
    bad["pipe.jpg"] = "a named pipe, not a file"
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(top)
        listener.bind("socket.png")  # by its short name: addresses end at 108 bytes
        bad["socket.png"] = "a socket, not a file"
    (top / "folder.jpg" / "up").symlink_to("..")
    bad["folder.jpg/up"] = "a link to a folder that is read already"
    (top / "unreadable.png").write_bytes(encode(RGB))
    (top / "unreadable.png").chmod(0)
    bad["unreadable.png"] = r"may not be read \(permission denied\)"
    (top / "locked").mkdir()
    (top / "locked" / "a.png").write_bytes(encode(RGB))
    (top / "locked").chmod(0)
    bad["locked"] = "a folder that may not be read"
    (open_folder / "elsewhere").mkdir()
    (open_folder / "elsewhere" / "z.png").write_bytes(encode(RGB))
    (top / "linked").symlink_to(open_folder / "elsewhere")
    return top, bad


EXPECTED = {name: (pixels, tolerance) for name, (_, pixels, tolerance) in GOOD.items()} | {
    "linked/z.png": (RGB, 0)
}


def check_pictures(names, pixels):
    assert sorted(names) == sorted(EXPECTED)
    for name, picture in zip(names, pixels, strict=True):
        expected, tolerance = EXPECTED[name]
        error = np.abs(picture.permute(1, 2, 0).numpy().astype(float) - expected)
        assert error.max() <= tolerance, name


@pytest.mark.parametrize("way", ["in memory", "streamed", "mined"])
def test_a_folder_from_the_wild(wild, way, monkeypatch):
    """All that is good is used and right, all that is bad is named with its reason, and nothing else happens."""
    top, bad = wild
    if way != "in memory":
        monkeypatch.setattr(zfkit.images.imageset, "IN_MEMORY_BYTES", 0)
    with within(60), as_nobody(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = load_images(f"folder:{top}", size=SIDE, progress=False)
        if way == "in memory":
            check_pictures([images.name(i) for i in range(len(images))], images.take(range(len(images))))
        elif way == "streamed":
            batches = list(images.batches(7))
            index = torch.cat([b.indices for b in batches]).tolist()
            check_pictures([images.name(i) for i in index], torch.cat([b.pixels for b in batches]))
        else:
            table = zfkit.mine(tiny_model(), images, k=len(EXPECTED), progress=False).table("conv1")
            used = {images.name(i) for i in table["image"]}
            assert used == set(EXPECTED)
    assert images.classes == ("folder.jpg", "linked")
    assert sorted(s.name for s in images.skipped) == sorted(bad)
    for name, reason in images.skipped:
        assert re.search(bad[name], reason), (name, reason)
        assert reason.isprintable(), name  # one line, nothing that a terminal would obey
    messages = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    assert sorted(m for m in messages if m.startswith("skipped ")) == sorted(
        f"skipped {s.reason}" for s in images.skipped
    )


def test_names_from_the_wild_reach_page_and_fingerprint(wild):
    top, _ = wild
    with warnings.catch_warnings(), as_nobody():
        warnings.simplefilter("ignore")
        images = load_images(f"folder:{top}", size=SIDE, progress=False)
    assert len(images.fingerprint()) == 16
    out = top.parent / "atlas"
    zfkit.write_atlas(tiny_model(), images, out, layers=["conv1"], maps=2, k=len(images), progress=False)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert r"latin \udce9.png" in page and r"and\nnewline.png" in page


@pytest.mark.parametrize("names", [["a.jpg"], ["a.jpg", "b/c.svg"]])
def test_a_folder_with_nothing_to_use_says_why(names, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    with (
        within(20), warnings.catch_warnings(), pytest.raises(ImageError, match=r"none of the 1.*read: .*(svg|pipe)"),
    ):  # fmt: skip
        warnings.simplefilter("ignore")
        load_images(f"folder:{tmp_path}", progress=False)


def test_a_cut_or_zeroed_jpeg_is_refused_wherever_it_is_cut():
    """Every place: what is lost is noticed, also where the decoder itself would take zeros for pixels."""
    whole = np.asarray(decode(JPEG))
    for at in range(2, len(JPEG)):
        for tail in (b"", bytes(len(JPEG) - at), b"\xff" * (len(JPEG) - at)):
            with contextlib.suppress(ImageError):
                assert np.array_equal(np.asarray(decode(JPEG[:at] + tail)), whole), at


def test_a_changed_bit_of_a_png_is_refused_or_changes_nothing():
    encoded = encode(RGB)
    for at in range(8, len(encoded)):
        with contextlib.suppress(ImageError):
            assert np.array_equal(np.asarray(decode(flipped(encoded, at))), RGB), at


# ------------------------------------------------------------------------------- Parquet that is not what it says

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet(path: Path, rows, labels=None, kind=STRUCT) -> str:
    table = {"image": pa.array(rows, kind)} | ({"label": labels} if labels is not None else {})
    pq.write_table(pa.table(table), path)
    return f"parquet:{path}"


def test_text_in_place_of_bytes_is_not_taken_for_a_path(tmp_path):
    """Otherwise a table from a stranger could name any file of this machine."""
    (tmp_path / "secret.png").write_bytes(encode(RGB))
    rows = [{"bytes": str(tmp_path / "secret.png"), "path": None}]
    kind = pa.struct([("bytes", pa.string()), ("path", pa.string())])
    source = parquet(tmp_path / "t.parquet", rows, kind=kind)
    with pytest.raises(ImageError, match=r"t\.parquet: its 'bytes' are string, and binary was expected"):
        load_images(source, progress=False)


def test_paths_in_a_table_lead_nowhere(tmp_path):
    """The layout has a path beside the bytes; nothing is read from there, and nothing written."""
    rows = [{"bytes": encode(RGB), "path": p} for p in ("../../evil.png", "/etc/passwd", HOSTILE)]
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    images = load_images(parquet(inside / "t.parquet", rows), size=SIDE, progress=False)
    zfkit.write_atlas(tiny_model(), images, inside / "atlas", layers=["conv1"], maps=1, k=2, progress=False)
    assert [images.name(i) for i in range(3)] == [f"t.parquet row {i}" for i in range(3)]
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    atlas = [f"a/b/atlas/{n}" for n in ("conv1.png", "index.html", "topk.parquet")]
    assert written == [*atlas, "a/b/t.parquet"]


@pytest.mark.parametrize("labels, expected", [
    (pa.array([0, None, 2], pa.uint8()), [0, -1, 2]), (pa.array([True, False, None]), [1, 0, -1]),
    (pa.nulls(3), [-1, -1, -1]), (pa.array([2**40, 0, 1], pa.uint64()), [2**40, 0, 1]),
])  # fmt: skip
def test_labels_of_any_width_with_gaps(labels, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(zfkit.images.imageset, "IN_MEMORY_BYTES", 0)
    source = parquet(tmp_path / "t.parquet", [{"bytes": encode(RGB), "path": None}] * 3, labels)
    images = load_images(source, size=SIDE, progress=False)
    assert images.known_labels().tolist() == expected == [label for _, label in images]


def test_labels_beyond_64_bits_are_refused(tmp_path):
    source = parquet(
        tmp_path / "t.parquet", [{"bytes": encode(RGB), "path": None}], pa.array([2**64 - 1], pa.uint64())
    )
    with warnings.catch_warnings(), pytest.raises(ImageError, match=r"none of the 1.*18446744073709551615"):
        warnings.simplefilter("ignore")
        load_images(source, progress=False)


def test_a_pipe_named_as_a_table_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "t.parquet")
    with (
        within(20),
        pytest.raises(ImageError, match=r"t\.parquet: a pipe, socket or device, not a Parquet file"),
    ):
        load_images(f"parquet:{tmp_path}", progress=False)
    with within(20), pytest.raises(ZfkitError, match="there is no file"):
        zfkit.TopK.load(tmp_path / "t.parquet")


# ---------------------------------------------------------------------------------------------- out of memory


def tiny_model(name: str = "tiny", layers=("conv1", "conv2")) -> zfkit.VisionModel:
    torch.manual_seed(0)
    modules = OrderedDict([
        (layers[0], nn.Conv2d(3, 4, 3, padding=1)), ("relu1", nn.ReLU()), ("pool1", nn.MaxPool2d(2)),
        (layers[1], nn.Conv2d(4, 5, 3, padding=1)), ("relu2", nn.ReLU()), ("flatten", nn.Flatten()),
        ("fc", nn.Linear(5 * 64, 3)),
    ])  # fmt: skip
    return zfkit.wrap_model(
        nn.Sequential(modules), mean=120, scale=1 / 60, input_size=SIDE, name=name, classes=["a", "b", "c"]
    )


def drawn(count: int = 23) -> ImageSet:
    return image_set(random_pixels(count, SIDE), [i % 3 for i in range(count)], ("a", "b", "c"))


@pytest.fixture
def holds(monkeypatch):
    """Sets how many pictures the second convolution's memory holds, so that half of the work is done by then."""
    real = nn.Conv2d.forward

    def set_limit(count: int) -> None:
        def forward(self, x):
            if len(x) > count and self.in_channels == 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return real(self, x)

        monkeypatch.setattr(nn.Conv2d, "forward", forward)

    return set_limit


def tables(top: zfkit.TopK) -> list[torch.Tensor]:
    return [tensor for layer in top.layers.values() for tensor in vars(layer).values()]


@pytest.mark.parametrize("limit, sizes", [(1, [16, 8, 4, 2, 1]), (16, [16])])
def test_mining_halves_its_batch_and_says_so(holds, limit, sizes):
    model, images = tiny_model(), drawn()
    whole = zfkit.mine(model, images, k=4, batch_size=16, progress=False)
    holds(limit)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        halved = zfkit.mine(model, images, k=4, batch_size=16, progress=False)
    expected = [
        f"mining tiny: out of memory with {a} pictures at a time; going on with {b}"
        for a, b in itertools.pairwise(sizes)
    ]  # said once, not for every batch
    assert [str(w.message) for w in caught] == expected
    assert halved.count == whole.count == 23
    for a, b in zip(tables(halved), tables(whole), strict=True):  # half-done batches leave no trace
        assert torch.equal(a, b) or torch.allclose(a, b, rtol=1e-6)


def test_memory_that_does_not_hold_one_picture_is_an_error_with_a_remedy(holds):
    model, images = tiny_model(), drawn()
    holds(0)
    with (
        warnings.catch_warnings(),
        pytest.raises(
            ZfkitError, match="memory ran out with one of the pictures at a time; take smaller pictures"
        ),
    ):
        warnings.simplefilter("ignore")
        zfkit.mine(model, images, batch_size=4, progress=False)


@pytest.mark.parametrize("crops", [True, False])
def test_projecting_halves_its_pictures_and_says_so(holds, crops, monkeypatch):
    model, images = tiny_model(), drawn()
    outputs = {"seed": "activation"}  # with it the pass goes as far as the second convolution
    top = zfkit.mine(model, images, k=3, progress=False)
    if not crops:
        monkeypatch.setattr(zfkit.topk.patches.Crop, "plan", classmethod(lambda *_: None))
    whole = zfkit.project_top(model, images, top, "conv2", **outputs)
    holds(3)
    with pytest.warns(UserWarning, match=r"projecting tiny: out of memory with \d+ pictures .*") as said:
        halved = zfkit.project_top(model, images, top, "conv2", **outputs)
    assert str(said[-1].message).endswith(("going on with 3", "going on with 2", "going on with 1"))
    for name in ("projection", "photo", "box"):
        assert torch.allclose(getattr(halved, name).float(), getattr(whole, name).float(), atol=1e-6)


def test_a_reverse_pass_that_does_not_fit_is_halved(monkeypatch):
    model, images = tiny_model(), drawn()
    top = zfkit.mine(model, images, k=3, progress=False)
    whole = zfkit.project_top(model, images, top, "conv2")
    real = Deconvnet.reverse

    def reverse(self, tape, layer, image, *rest, **options):
        if len(image) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, tape, layer, image, *rest, **options)

    monkeypatch.setattr(Deconvnet, "reverse", reverse)
    with pytest.warns(UserWarning, match=r"projecting conv2 of tiny: out of memory with \d+ units at a time"):
        halved = zfkit.project_top(model, images, top, "conv2")
    assert torch.allclose(halved.projection, whole.projection, atol=1e-6)


def test_diagnosing_and_evaluating_halve_their_batches_and_say_so(holds):
    model, images = tiny_model(), drawn()
    report, accuracy = zfkit.diagnose(model, images, progress=False), zfkit.evaluate(model, images)
    holds(12)
    with pytest.warns(
        UserWarning, match="evaluating: out of memory with 23 pictures at a time; going on with 11"
    ):
        halved = zfkit.evaluate(model, images)
    assert halved.top1 == accuracy.top1 and halved.loss == pytest.approx(accuracy.loss, rel=1e-5)
    with pytest.warns(UserWarning, match=r"diagnosing tiny: out of memory with \d+ pictures .*") as said:
        again = zfkit.diagnose(model, images, progress=False)
    assert str(said[0].message).endswith("with 64 pictures at a time; going on with 32")
    assert [str(f) for f in again.findings] == [str(f) for f in report.findings]


REAL = """
    import resource, sys, warnings
    import torch, zfkit
    from torch import nn
    from zfkit.images import ImageSet
    from PIL import Image
    torch.set_num_threads(1)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
    model = zfkit.wrap_model(net, mean=0, scale=1 / 255, input_size=128, name="m")
    images = ImageSet(lambda i: (Image.new("RGB", (128, 128), (i, 2 * i, 3 * i)), -1), list("abcdefgh" * 8), size=128)
    images = images.in_memory(progress=False)
    few = zfkit.mine(model, images, k=2, batch_size=2, progress=False)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20, -1))   # 64 pictures' maps take 64 MiB a layer
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        many = zfkit.mine(model, images, k=2, batch_size=64, progress=False)
    print(caught[0].message)
    print(torch.allclose(few["2"].value, many["2"].value, rtol=1e-5))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
def test_memory_that_really_runs_out():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(REAL)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-1500:]
    said, same = done.stdout.splitlines()
    assert said == "mining m: out of memory with 64 pictures at a time; going on with 32" and same == "True"


# ------------------------------------------------------------------------------- disks that are full or read-only


@contextlib.contextmanager
def full_disk(folder: Path):
    """A disk of 64 KiB at `folder`, with 20 KiB left."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs", str(folder)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can make a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def short_files(folder: Path):
    """No file may grow beyond 6,000 bytes."""
    folder.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, before[1]))
    try:
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def wide_model() -> zfkit.VisionModel:
    """Of many maps, so that tables and weights are larger than the disk."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3000, 1))
    return zfkit.wrap_model(net, mean=0, scale=1, input_size=SIDE, name="wide")


def write_table(folder):
    zfkit.mine(wide_model(), drawn(9), progress=False).save(folder / "file.parquet")


def write_state(folder):
    zfkit.mine(
        wide_model(),
        drawn(9),
        checkpoint=folder / "file.part",
        batch_size=3,
        checkpoint_every=3,
        progress=False,
    )


def write_weights(folder):
    zfkit.save_weights(folder / "file.safetensors", {"w": torch.randn(40_000)}, {"data": "noise"})


def write_atlas(folder):
    zfkit.write_atlas(tiny_model(), drawn(9), folder, maps="all", k=9, progress=False)


OLD = b"an old one, Software\0zfkit"  # as in zfkit's own pictures: others are not replaced


@pytest.mark.parametrize("disk", [full_disk, short_files])
@pytest.mark.parametrize("write, old", [
    (write_table, "file.parquet"), (write_state, "file.part"), (write_weights, "file.safetensors"),
    (write_atlas, "conv1.png"),
])  # fmt: skip
def test_a_disk_that_fills_up_leaves_what_was_there(write, old, disk, tmp_path):
    with disk(tmp_path / "disk") as folder:
        if write is not write_state:  # mining would go on from there, and refuse this
            (folder / old).write_bytes(OLD)
        with pytest.raises(ZfkitError, match=r"cannot write .*(No space left|File too large).*") as caught:
            write(folder)
        assert str(caught.value).isprintable() and "ake room" in str(caught.value)
        left = {p.name for p in folder.iterdir()} - {".file.part.lock"}
        if write is write_atlas:  # what was mined is kept, if there was room for that
            left = {name for name in left if not name.startswith((".zfkit-mining-", "topk.mined.parquet"))}
        assert left == ({old} if write is not write_state else set())  # nothing half
        if write is not write_state:
            assert (folder / old).read_bytes() == OLD


@pytest.mark.parametrize("write", [write_table, write_state, write_weights, write_atlas])
def test_a_folder_that_may_not_be_written_to(write, open_folder):
    (open_folder / "folder").mkdir(mode=0o555)
    with as_nobody(), pytest.raises(ZfkitError, match=r"cannot write .*Permission denied.*choose another"):
        write(open_folder / "folder")
    assert list((open_folder / "folder").iterdir()) == []


def test_the_command_says_so_before_it_starts(open_folder, capsys):
    from zfkit.cli import main

    (open_folder / "folder").mkdir(mode=0o555)
    zfkit.load_model()  # what torch imports on the way may lie where only root may read
    with as_nobody():
        code = main(["mine", "--limit", "2", "--size", "64", "--out", str(open_folder / "folder/t.parquet")])
    printed = capsys.readouterr()
    assert code == 2 and "pictures/s" not in printed.out  # nothing was timed, nothing mined
    assert "zfkit mine: cannot write" in printed.err and "Permission denied" in printed.err


def test_a_write_error_is_an_os_error_with_its_number(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError) as caught:
        zfkit.save_weights(tmp_path / "file" / "w.safetensors", {"w": torch.ones(1)}, {})
    assert isinstance(caught.value, WriteError) and caught.value.errno in (17, 20)


# ---------------------------------------------------------------------------------- two processes, one output

WRITER = """
    import sys, torch, zfkit
    from zfkit.topk import LayerTop, TopK
    number, path = int(sys.argv[1]), sys.argv[2]
    C, k = 200, 9
    whole = torch.full((C, k), number)
    layer = LayerTop(whole.float(), whole, whole, whole, *torch.full((2, C), float(number)), torch.ones(C))
    top = TopK({"a": layer}, k, "m", "i", "f", 9)
    print("ready", flush=True)
    for _ in range(60):
        top.save(path)
"""


@pytest.mark.slow
def test_two_processes_that_save_one_table_leave_one_whole_table(tmp_path):
    path = tmp_path / "t.parquet"
    command = [sys.executable, "-c", textwrap.dedent(WRITER)]
    writers = [
        subprocess.Popen(
            [*command, str(n), str(path)], stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        for n in (1, 2)
    ]
    seen = 0
    while any(w.poll() is None for w in writers):
        if path.exists():
            (value,) = zfkit.TopK.load(path)["a"].value.unique().tolist()  # never half of each
            assert value in (1, 2)
            seen += 1
    assert [w.wait() for w in writers] == [0, 0] and seen > 10
    for w in writers:
        w.stdout.close()
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_a_table_that_is_replaced_while_it_is_read_is_the_one_that_was_opened(tmp_path, monkeypatch):
    model = network(0)
    first, second = (
        zfkit.mine(model, image_set(random_pixels(3, random_seed=seed)), ["3"], k=1, progress=False)
        for seed in (1, 2)
    )
    path, parquet_file = first.save(tmp_path / "t.parquet"), pq.ParquetFile

    def replaced_behind(*args, **options):
        file = parquet_file(*args, **options)
        second.save(path)
        return file

    monkeypatch.setattr(pq, "ParquetFile", replaced_behind)
    assert zfkit.TopK.load(path).table().equals(first.table())
    monkeypatch.undo()
    assert zfkit.TopK.load(path).table().equals(second.table()) and not first.table().equals(second.table())


HOLD = """
    import fcntl, os, sys
    folder = os.path.isdir(sys.argv[1])
    lock = os.open(sys.argv[1], os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held_elsewhere(path: Path):
    """Another process writes there."""
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        yield
        holder.stdin.close()


@pytest.mark.slow
def test_a_second_process_does_not_write_to_the_same_atlas_or_checkpoint(tmp_path):
    model, images = tiny_model(), drawn(9)
    atlas, part = tmp_path / "atlas", tmp_path / "t.part"
    write_atlas(atlas)
    before = {p.name: p.read_bytes() for p in atlas.iterdir()}
    with (
        held_elsewhere(atlas),
        pytest.raises(ZfkitError, match=r"another process is writing to .*atlas.*wait for it"),
    ):
        write_atlas(atlas)
    with (
        held_elsewhere(tmp_path / ".t.part.lock"),
        pytest.raises(ZfkitError, match=r"another process is mining .*t\.part"),
    ):
        zfkit.mine(model, images, checkpoint=part, progress=False)
    assert {p.name: p.read_bytes() for p in atlas.iterdir()} == before
    write_atlas(atlas)  # the lock went with its process
    zfkit.mine(model, images, checkpoint=part, progress=False)


def test_a_lock_is_given_back_when_its_holder_fails(tmp_path):
    for place in (tmp_path, tmp_path / "lock"):
        with pytest.raises(KeyError), only_writer(place, RuntimeError("held")):
            with pytest.raises(RuntimeError, match="held"), only_writer(place, RuntimeError("held")):
                pass
            raise KeyError
        with only_writer(place, RuntimeError("held")):
            pass


# ------------------------------------------------------------------------------------------- names that mean harm


def test_names_of_layers_neither_leave_the_folder_nor_meet(tmp_path):
    """Names as a network from elsewhere may have them."""
    out = tmp_path / "a" / "atlas"
    for first, second in ((r"..\..\x", "/etc/x"), ("a/b", "a_b"), ("Conv", "conv"), ("x" * 300, "x" * 301)):
        first = first.replace(".", "․")  # torch allows no full stop in a module's name
        shutil.rmtree(out, ignore_errors=True)
        atlas = zfkit.write_atlas(
            tiny_model(layers=(first, second)), drawn(9), out, maps=1, k=1, progress=False
        )
        files = list(atlas.pictures.values())
        assert len({f.name.lower() for f in files}) == 2
        assert all(f.parent == out and f.is_file() for f in files)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def texts(widget, seen=None) -> list[str]:
    """Every text of a widget and of all that is inside."""
    seen = set() if seen is None else seen
    if id(widget) in seen:
        return []
    seen.add(id(widget))
    found = [v for k in getattr(widget, "keys", []) if isinstance(v := getattr(widget, k, None), str)]
    for child in getattr(widget, "children", ()):
        found += texts(child, seen)
    return found


def test_names_and_classes_add_no_markup_to_widgets_and_reports():
    pytest.importorskip("ipywidgets")
    classes = tuple(f"{HOSTILE} {c}" for c in "abc")
    names, pixels = [f"{HOSTILE} {i}" for i in range(12)], random_pixels(12, SIDE)
    images = ImageSet(
        lambda i: (Image.fromarray(pixels[i]), i % 3), names, size=SIDE, source=HOSTILE, classes=classes
    ).in_memory(progress=False)
    model = zfkit.wrap_model(
        tiny_model().net, mean=120, scale=1 / 60, input_size=SIDE, name=HOSTILE, classes=classes
    )
    top = zfkit.mine(model, images, progress=False)
    widgets = [zfkit.explore(model, images, top), zfkit.widgets.explore_occlusion(model, images[0][0], layer="conv2"),
               zfkit.widgets.explore_invariance(model, images)]  # fmt: skip
    shown = [t for w in widgets for t in texts(w)]
    for widget in widgets:
        widget.close()
    shown.append(zfkit.diagnose(model, images, progress=False)._repr_html_())
    markup = [t for t in shown if "<" in t and t != HOSTILE]
    assert any("&lt;script&gt;" in t for t in markup)  # it is shown, as text
    hostile = [m for m in markup if HOSTILE in m and any(tag in m for tag in ("<p", "<b", "<span"))]
    assert hostile == []
