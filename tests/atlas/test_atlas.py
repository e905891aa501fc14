"""The atlas as files: pictures pixel by pixel against `project`, and the page in a parser and a browser."""

import base64
import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from browser import chromium, why_not
from parsed import Page
from PIL import Image
from tiny import random_pixels
from torch import nn

import zfkit
from zfkit.atlas import write_atlas
from zfkit.atlas.page import _replacing
from zfkit.figures.pictures import TILE
from zfkit.images.colour import signed_to_rgb

HOSTILE = '<script>alert("&amp;")</script><img src=http://example.org/x.png>\'"'


def image_set(count=7, size=20, names=None, classes=(), source="made up"):
    """Random pictures in memory."""
    labels = [i % len(classes) if classes else -1 for i in range(count)]
    return tiny.image_set(random_pixels(count, size, 5), labels, classes, source=source, names=names)


def small_model(name="small", provenance=None, first="conv1"):
    """Two convolutions with a pool between them, in double precision."""
    torch.manual_seed(2)
    net = nn.Sequential()
    net.add_module(first, nn.Conv2d(3, 6, 3, padding=1))
    net.add_module("relu1", nn.ReLU())
    net.add_module("pool1", nn.MaxPool2d(2))
    net.add_module("conv2", nn.Conv2d(6, 8, 3, padding=1))
    options = {"mean": 128, "scale": 1 / 64, "input_size": 20}
    return zfkit.wrap_model(net.double(), name=name, provenance=provenance, **options)


def written(folder, model=None, images=None, **options):
    return write_atlas(model or small_model(), images or image_set(), folder, progress=False, **options)


# --------------------------------------------------------------------------------------- pictures of layers


def places_of(tile, sheet):
    """Top left corners (y, x) at which `tile` lies in `sheet`, both (H, W, 3)."""
    (h, w), (H, W) = tile.shape[:2], sheet.shape[:2]
    y, x = np.nonzero((sheet[: H - h + 1, : W - w + 1] == tile[0, 0]).all(-1))
    for dy in range(0, h, 7):  # some pixels first, so that few places are left to compare in full
        for dx in range(0, w, 7):
            same = (sheet[y + dy, x + dx] == tile[dy, dx]).all(-1)
            y, x = y[same], x[same]
    return [(y, x) for y, x in zip(y, x, strict=True) if (sheet[y : y + h, x : x + w] == tile).all()]


def as_tile(picture):
    """uint8 (3, S, S) as it should appear: pixels repeated so that they fit a tile."""
    factor = -(-TILE // picture.shape[-1])
    assert factor >= 2
    return picture.permute(1, 2, 0).numpy().repeat(factor, 0).repeat(factor, 1)


def cut_out(picture, box, outside):
    left, top, right, bottom = box
    padded = F.pad(picture, (50,) * 4, value=outside)
    return padded[:, top + 50 : bottom + 50, left + 50 : right + 50]


def test_each_layers_png_shows_the_projections_beside_the_patches(tmp_path):
    model, images = small_model(), image_set()
    top = zfkit.mine(model, images, k=4, progress=False)
    atlas = written(tmp_path, model, images, top=top, k=4, maps={"conv1": [1], "conv2": [3, 5]})
    assert list(atlas.pictures) == ["conv1", "conv2"]
    for layer, channels in (("conv1", [1]), ("conv2", [3, 5])):
        with Image.open(atlas.pictures[layer]) as opened:
            assert opened.format == "PNG" and opened.mode == "RGB"
            sheet = np.asarray(opened)
        field, found = zfkit.receptive_field(model, layer), []
        for channel in channels:
            rows = top.table(layer)
            rows = rows[rows["channel"] == channel]
            corners = []
            for unit in rows.itertuples():
                picture = images[unit.image][0]
                batch, position = model.preprocess(picture), [[unit.row, unit.col]]
                pixels = zfkit.project(model, batch, layer, channel, position)[0]
                box = field.box(unit.row, unit.col)
                projection = places_of(as_tile(signed_to_rgb(cut_out(pixels, box, 0))), sheet)
                patch = places_of(as_tile(cut_out(picture, box, 128)), sheet)
                assert projection and patch
                # On one line, the patch as far to the right of the projection for all ranks.
                corners.append([(b[1] - a[1]) for a in projection for b in patch if a[0] == b[0]])
                found += patch
            assert set.intersection(*map(set, corners))
        # Channels and ranks come in reading order: four to a map, in two rows.
        first = found[:4]
        assert first[0][0] == first[1][0] < first[2][0] == first[3][0]
        assert first[0][1] == first[2][1] < first[1][1] == first[3][1]


def test_all_maps_or_chosen_ones_or_so_many_are_shown(tmp_path):
    pages = {
        name: written(tmp_path / name, maps=maps, k=2).index.read_text()
        for name, maps in (("all", "all"), ("few", {"conv2": [3, 5]}), ("two", 2), ("many", 99))
    }
    maps = {name: re.findall(r"<b>map (\d+)</b>", page) for name, page in pages.items()}
    assert maps["all"] == [*map(str, range(6)), *map(str, range(8))]
    assert maps["few"] == ["3", "5"]
    assert len(maps["two"]) == 4 and maps["two"][:2] == sorted(set(maps["two"][:2]))
    assert maps["many"] == maps["all"]  # all are active here
    assert [f.name for f in sorted((tmp_path / "few").iterdir())] == [
        "conv2.png", "index.html", "topk.parquet",
    ]  # fmt: skip


def test_a_layer_name_alone_will_do(tmp_path):
    assert list(written(tmp_path, layers="conv2", maps=1).pictures) == ["conv2"]


def test_a_layer_without_active_maps_is_said_to_have_none(tmp_path):
    model = small_model()
    model.net.conv2.weight.data.zero_()
    model.net.conv2.bias.data.fill_(-1)
    atlas = written(tmp_path, model, k=2)
    page = atlas.index.read_text()
    assert "8 maps are never active" in page and page.count("<b>map") == 6
    with Image.open(atlas.pictures["conv2"]) as opened:
        opened.load()


def test_units_that_see_the_whole_picture_have_no_neighbour(tmp_path):
    model = zfkit.wrap_model(
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 18 * 18, 4)),
        mean=128, scale=1 / 64, input_size=20,
    )  # fmt: skip
    page = written(tmp_path, model, layers=["2"], maps="all", k=2).index.read_text()
    assert "each unit sees the whole picture" in page and "0 px further" not in page


# ------------------------------------------------------------------------------------------------- the page


def test_the_page_is_one_file_with_every_layer_and_picture(tmp_path):
    model, images = small_model(), image_set()
    page = Page(written(tmp_path, model, images, maps=2).index.read_text(encoding="utf-8"))
    assert [s["id"] for s in page.all("section")] == ["conv1", "conv2"]
    assert [a["href"] for a in page.all("a")] == ["#conv1", "#conv2"]
    assert len(page.all("img")) == 2 * 2 * 2  # layers, maps, projections and patches
    for image in page.all("img"):
        head, data = image["src"].split(",", 1)
        assert head == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as decoded:
            decoded.load()
            assert decoded.size == (int(image["width"]), int(image["height"]))
        assert re.fullmatch(r"(projections|patches) of conv[12] map \d", image["alt"])
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed")
        for name in ("src", "srcset", "href", "data", "poster"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#")), (tag, name, value[:40])
    style = "".join(re.findall(r"<style>(.*?)</style>", (tmp_path / "index.html").read_text(), re.S))
    assert style and "url(" not in style and "@import" not in style


def test_every_patch_is_named(tmp_path):
    model, images = small_model(), image_set(classes=("cat", "dog"))
    top = zfkit.mine(model, images, k=4, progress=False)
    atlas = written(tmp_path, model, images, top=top, k=4, maps={"conv2": [6]})
    page = Page(atlas.index.read_text(encoding="utf-8"))
    rows = top.table("conv2")
    for unit in rows[rows["channel"] == 6].itertuples():
        named = f"picture {unit.image} ({('cat', 'dog')[unit.image % 2]})"
        place = f"at row {unit.row}, column {unit.col}"
        assert sum(named in item["title"] and place in item["title"] for item in page.all("li") if item) == 2
        assert named in page.text


def test_names_cannot_add_markup(tmp_path):
    images = image_set(names=[f"{HOSTILE} {i}" for i in range(7)], classes=(HOSTILE, "dog"), source=HOSTILE)
    layer = "<script>x</script>"
    model = small_model(HOSTILE, {"data": HOSTILE, "top1": HOSTILE}, first=layer)
    page = Page(written(tmp_path, model, images, maps=2, k=3).index.read_text(encoding="utf-8"))
    assert not page.all("script")
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert {name for _, attributes in page.elements for name in attributes} <= {
        "alt", "aria-hidden", "aria-label", "charset", "class", "content", "decoding", "height", "href", "id",
        "lang", "name", "rel", "src", "style", "title", "width",
    }  # fmt: skip
    # It is shown, as text: the network's name, source, data and accuracy, and in every list of pictures.
    text = " ".join(page.text.split())
    said = f"What do the layers of {HOSTILE} see", f"({HOSTILE})", f"{HOSTILE}, {HOSTILE} % top-1", layer
    assert [words for words in said if words not in text] == []
    assert text.count(f"({HOSTILE}): ") + text.count("(dog): ") == 2 * 2 * 3


def test_missing_ranks_leave_the_others_where_they_are(tmp_path):
    page = Page(written(tmp_path, images=image_set(count=2), k=9, maps={"conv1": [0]}).index.read_text())
    overlays = [o["style"] for o in page.all("ol") if o.get("aria-hidden")]
    assert overlays == ["grid-template: repeat(3, 1fr) / repeat(3, 1fr)"] * 2
    assert sum("title" in item for item in page.all("li")) == 2 * 2


# ------------------------------------------------------------------------------ what cannot be projected


class Hard(nn.Module):
    """Two convolutions, and a threshold without gradient between them."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)

    def forward(self, x):
        return self.conv2(F.max_pool2d((self.conv1(x) > 0.1).double(), 2))


def hard_model():
    torch.manual_seed(2)
    return zfkit.wrap_model(Hard().double(), name="hard", mean=128, scale=1 / 64, input_size=20)


def test_a_layer_that_cannot_be_projected_shows_its_patches(tmp_path):
    model, images = hard_model(), image_set()
    top = zfkit.mine(model, images, k=4, progress=False)
    with pytest.warns(UserWarning, match=r"no projections of conv2, .*'gt'"):
        atlas = written(tmp_path, model, images, top=top, k=4, maps={"conv1": [1], "conv2": [3]})
    page = Page(atlas.index.read_text())
    pictures = {image["alt"] for image in page.all("img")}
    assert pictures == {"projections of conv1 map 1", "patches of conv1 map 1", "patches of conv2 map 3"}
    assert page.text.count("no way back through 'gt'") == 1
    with Image.open(atlas.pictures["conv2"]) as opened:
        sheet = np.asarray(opened)
    field = zfkit.receptive_field(model, "conv2")
    assert field.size < 20 and not field.measured  # the threshold moves nothing
    for unit in top.table("conv2").query("channel == 3").itertuples():
        patch = cut_out(images[unit.image][0], field.box(unit.row, unit.col), 128)
        assert len(places_of(as_tile(patch), sheet)) == 1


def test_patches_alone_are_those_of_the_whole_atlas(tmp_path):
    model, images = small_model(), image_set(count=5)
    top = zfkit.mine(model, images, k=7, progress=False)  # more than there are pictures
    whole = zfkit.project_top(model, images, top, "conv2")
    alone = zfkit.topk.cut_top(model, images, top, "conv2")
    assert (alone.photo == whole.photo).all() and (alone.box == whole.box).all()
    words = "8 of 8 feature maps; the pictures that excite each most"  # no word of projections
    assert zfkit.draw_layer(alone, top) == zfkit.draw_layer(alone, top, ("small conv2", words))
    assert zfkit.draw_layer(whole, top) != zfkit.draw_layer(whole, top, ("small conv2", words))
    page = Page(written(tmp_path, model, images, top=top, maps=2, patches_only=True).index.read_text())
    assert [image["alt"].split()[0] for image in page.all("img")] == ["patches"] * 4
    assert "as was asked" in page.text and "deconvnet" not in page.text


def test_layers_are_tried_before_anything_is_mined(tmp_path, monkeypatch):
    def stop(*args, **options):
        raise zfkit.ZfkitError("mined")

    monkeypatch.setattr(zfkit.atlas.page, "mine", stop)
    with pytest.warns(UserWarning, match="no projections of conv2"), pytest.raises(zfkit.ZfkitError):
        written(tmp_path, hard_model())
    small = zfkit.wrap_model(
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 18 * 18, 4)),
        mean=128, scale=1 / 64, input_size=20,
    )  # fmt: skip
    with pytest.raises(zfkit.ZfkitError, match="cannot run to 2 on images of 24 x 24 px"):
        written(tmp_path, small, image_set(size=24), layers=["2"])
    with pytest.raises(zfkit.ZfkitError, match="channels"):
        written(tmp_path, maps={"conv2": [8]})


@pytest.mark.parametrize("error", [zfkit.ZfkitError, RuntimeError, KeyboardInterrupt])
def test_the_table_is_kept_when_projecting_fails(tmp_path, monkeypatch, error):
    def fail(*args, **options):
        raise error("the GPU is gone")

    monkeypatch.setattr(zfkit.atlas.page, "project_many", fail)
    model, images = small_model(), image_set()
    with pytest.raises(error, match=r"the GPU is gone; .*kept.*topk\.mined\.parquet"):
        written(tmp_path, model, images)
    monkeypatch.undo()
    top = zfkit.TopK.load(tmp_path / "topk.mined.parquet")
    written(tmp_path, model, images, top=top)  # goes on from there


def test_a_kill_while_files_take_their_places_never_mixes_old_and_new(tmp_path, monkeypatch):
    """Killed before each removal and renaming: what is in the folder is all old, or all new."""
    names = ["conv1.png", "conv2.png", "index.html", "topk.parquet"]

    class Killed(BaseException):
        """As SIGKILL."""

    for kill_at in range(2 * len(names) + 1):
        out, done = tmp_path / str(kill_at), []
        out.mkdir()
        for name in (*names, "user.txt"):
            (out / name).write_text("old")

        def counted(real, done=done, kill_at=kill_at):
            def call(*paths, **options):
                done.append(paths)
                if len(done) > kill_at:
                    raise Killed
                return real(*paths, **options)

            return call

        with monkeypatch.context() as patched, contextlib.suppress(Killed), _replacing(out) as part:
            for name in names:
                (part / name).write_text("new")
            patched.setattr(Path, "replace", counted(Path.replace))
            patched.setattr(Path, "unlink", counted(Path.unlink))
        left = {name: (out / name).read_text() for name in names if (out / name).exists()}
        assert len(set(left.values())) <= 1
        assert "index.html" not in left or len(left) == len(names)  # no page without what belongs to it
        assert (out / "user.txt").read_text() == "old"
    assert set(left.values()) == {"new"} and len(done) == kill_at  # the last was not killed


# ------------------------------------------------------------------------------------------------- writing


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    model, images = small_model(), image_set()
    contents = []
    for name in ("a", "b"):
        written(tmp_path / name, model, images, maps=3)
        contents.append({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == ["conv1.png", "conv2.png", "index.html", "topk.parquet"]


@pytest.mark.parametrize("fails", ["picture", "page"])
def test_a_full_disk_leaves_the_old_files(tmp_path, monkeypatch, fails):
    written(tmp_path, maps=1)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}

    def half(file):
        Path(file).write_bytes(b"half a")
        raise OSError(28, "No space left on device")

    save = Image.Image.save

    def save_half(picture, file, *args, **options):
        in_memory = isinstance(file, io.BytesIO)  # as the page's pictures are: no disk to be full
        return save(picture, file, *args, **options) if in_memory else half(file)

    if fails == "picture":
        monkeypatch.setattr(Image.Image, "save", save_half)
    else:
        monkeypatch.setattr(Path, "write_text", lambda file, *args, **options: half(file))
    with pytest.raises(zfkit.ZfkitError, match=r"No space left on device.*choose another"):
        written(tmp_path, maps=2)
    # What was mined is kept, for the same again; no temporary file is left.
    kept = (".zfkit-mining-", "topk.mined.parquet")
    after = {f.name: f.read_bytes() for f in tmp_path.iterdir() if not f.name.startswith(kept)}
    assert sorted(after) == sorted(before)
    assert after["index.html"] == before["index.html"]
    if fails == "picture":
        assert after == before


def test_a_folder_that_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(zfkit.atlas.page, "mine", lambda *a, **k: pytest.fail("mined first"))
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(zfkit.ZfkitError, match="choose another") as caught:
            written(out)
        assert str(out) in str(caught.value)


@pytest.mark.parametrize("options, words", [
    ({"maps": "some"}, "maps.* 'some'"), ({"maps": {"conv2": [8]}}, "channels .* 0 to 7 of 'conv2'"),
    ({"maps": {"conv9": [8]}}, "no layer 'conv9'"),
    ({"maps": {"conv2": [1]}, "layers": ["conv1"]}, "nothing of conv1"),
    ({"layers": []}, "no layer was named"), ({"k": 0}, "k must be a whole number"),
])  # fmt: skip
def test_what_cannot_be_shown_is_refused(tmp_path, options, words):
    with pytest.raises(zfkit.ZfkitError, match=words):
        written(tmp_path / "out", **options)
    assert not (tmp_path / "out" / "index.html").exists()


# ------------------------------------------------------------------------------------------------ a browser


@pytest.mark.browser
@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_the_page_in_a_browser(tmp_path):
    names = [f"a_very_long_name_without_any_space_{'x' * 120}_{i}.jpg" for i in range(7)]
    atlas = written(tmp_path, images=image_set(names=names), maps=4)
    with chromium() as browser:
        for width in (1280, 400):
            page = browser.new_page(viewport={"width": width, "height": 900})
            messages, requests = [], []
            page.on("console", lambda message, messages=messages: messages.append(message.text))
            page.on("pageerror", lambda error, messages=messages: messages.append(str(error)))
            page.on("request", lambda request, requests=requests: requests.append(request.url))
            page.goto(atlas.index.as_uri())
            page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            page.evaluate("Promise.all([...document.images].map(i => i.decode()))")
            widths = page.evaluate("[...document.images].map(i => i.naturalWidth)")
            assert len(widths) == 2 * 4 * 2 and min(widths) > 0
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            # The heading that a link leads to is not under the bar.
            page.click("nav a[href='#conv2']")
            bar = page.evaluate("document.querySelector('nav').getBoundingClientRect().bottom")
            heading = page.evaluate("document.querySelector('#conv2 h2').getBoundingClientRect().top")
            assert heading >= bar - 1
            assert messages == []
            assert [url for url in requests if not url.startswith("data:")] == [atlas.index.as_uri()]
