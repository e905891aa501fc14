"""The site's files against `project`, autograd and counting by hand; its pages in a real browser."""

import http.server
import io
import json
import shutil
import threading
from functools import partial

import numpy as np
import pytest
import torch
from browser import chromium, why_not
from explored import CLASSES, pictures, small_net, wrapped
from PIL import Image
from signals import literal_power
from torch import nn

import zfkit
from zfkit.atlas import site as site_module
from zfkit.atlas.sheets import shrink
from zfkit.atlas.site import write_site
from zfkit.cli import main
from zfkit.errors import ImageError, WriteError, ZfkitError
from zfkit.figures import NaturalColours
from zfkit.images.colour import signed_to_rgb
from zfkit.images.imageset import ImageSet
from zfkit.topk.profile import label_of, sources

MODEL = "small"


def written(folder, model=None, images=None, **options):
    return write_site(model or wrapped(), images or pictures(), folder, progress=False, **options).parent


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A site of the small network, for tests that look and change nothing."""
    return written(tmp_path_factory.mktemp("site") / "site")


@pytest.fixture(scope="module")
def mined():
    """What it was made from."""
    model, images = wrapped(), pictures()
    inside = True
    return model, images, zfkit.mine(model, images, k=9, inside=inside, progress=False)


def data(file):
    """What a data file hands over."""
    text = file.read_text(encoding="utf-8")
    return json.loads(text[text.index(",") + 1 : text.rindex(")")])


def tiles(file, height, width):
    """A sheet as tiles: (rows, columns, height, width, 3)."""
    sheet = np.asarray(Image.open(file).convert("RGB"))
    rows, columns = sheet.shape[0] // height, sheet.shape[1] // width
    return sheet.reshape(rows, height, columns, width, 3).swapaxes(1, 2)


# ------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("rule", ["deconvnet", "guided", "gradient"])
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_small_tiles_are_the_projections_to_the_letter(made, mined, layer, rule):
    model, images, top = mined
    patches = zfkit.project_top(model, images, top, layer, rule=rule)
    height, width = patches.projection.shape[-2:]
    sheet = tiles(made / MODEL / layer / f"{rule}-0.webp", height, width)
    wanted = signed_to_rgb(patches.projection.float()).permute(0, 1, 3, 4, 2).numpy()
    there = patches.image >= 0
    assert (sheet[there] == wanted[there]).all()
    photos = tiles(made / MODEL / layer / "photo-0.webp", height, width)
    assert (photos == patches.photo.permute(0, 1, 3, 4, 2).numpy()).all()


def test_natural_colours_are_those_of_the_figures_room(made, mined):
    """Learnt from the three strongest of each map that is ever active, as there are fewer than 32."""
    model, images, top = mined
    live = (top["conv2"].max > 0).nonzero()[:, 0]
    learnt = NaturalColours.of(zfkit.project_top(model, images, top, "conv2", live, k=3))
    patches = learnt(zfkit.project_top(model, images, top, "conv2"))
    side = patches.photo.shape[-1]
    sheet = tiles(made / MODEL / "conv2" / "natural-0.webp", side, side)
    wanted = signed_to_rgb(patches.projection.float()).permute(0, 1, 3, 4, 2).numpy()
    assert (sheet == wanted).all()


def test_the_wall_has_each_maps_strongest(made, mined):
    model, images, top = mined
    patches = zfkit.project_top(model, images, top, "conv2", k=1)
    side = patches.photo.shape[-1]
    wall = tiles(made / MODEL / "conv2" / "wall-photo.webp", side, side)
    assert wall.shape[:2] == (3, 4)  # 10 maps, as square as can be
    first = wall.reshape(12, side, side, 3)[:10]
    assert (first == patches.photo[:, 0].permute(0, 2, 3, 1).numpy()).all()


def test_filters_of_the_first_layer_and_their_spectra_are_pictures(made, mined):
    """A filter as it is, and the amplitude of its literal Fourier transform, both on a scale of their own."""
    weight = mined[0].net.conv1.weight.detach()
    C, side = len(weight), weight.shape[-1]
    shown = tiles(made / MODEL / "conv1" / "wall-filter.webp", side, side).reshape(-1, side, side, 3)
    assert (shown[:C] == signed_to_rgb(weight.float()).permute(0, 2, 3, 1).numpy()).all()
    amplitude = np.sqrt(literal_power(weight.double(), 64))
    spectra = tiles(made / MODEL / "conv1" / "wall-spectrum.webp", 64, 64).reshape(-1, 64, 64, 3)[:C]
    wanted = 255 * amplitude / np.maximum(amplitude.max((1, 2), keepdims=True), 1e-30)  # one filter is 0
    assert np.abs(spectra - wanted[..., None]).max() < 1.01


def test_large_tiles_are_brought_to_size_without_aliasing():
    """A grating finer than the tiles can show becomes grey; one that they can show stays."""
    side, small = 192, 96
    x = torch.arange(side)
    for period, contrast in ((2.2, 0), (24, 1)):
        wave = 128 + 100 * torch.sin(2 * torch.pi * x / period)
        picture = wave.expand(1, 3, side, side).to(torch.uint8)
        tile = shrink(picture, (small, small)).float()[..., 8:-8]
        assert tile.std() == pytest.approx(contrast * 100 / 2**0.5, abs=4)


def test_sheets_of_many_maps_go_on_where_the_last_ended(tmp_path, monkeypatch):
    """40 maps: sheets of 16, 16 and 8, the same whether a portion holds 16, 32 or all of them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 40, 5), nn.ReLU()).double()
    model = zfkit.wrap_model(net, mean=120, scale=1 / 60, input_size=36, name="wide")
    written(tmp_path / "all", model, rules=["deconvnet"])
    monkeypatch.setattr(site_module, "PORTION", 32)
    written(tmp_path / "parts", model, rules=["deconvnet"])
    names = sorted(p.name for p in (tmp_path / "all" / "wide" / "0").glob("*.webp"))
    assert {"photo-0.webp", "photo-1.webp", "photo-2.webp"} < set(names) and "photo-3.webp" not in names
    for name in names:
        whole, part = ((tmp_path / kind / "wide" / "0" / name).read_bytes() for kind in ("all", "parts"))
        assert whole == part, name


# -------------------------------------------------------------------------------------------------- numbers


def test_what_a_map_is_made_of_is_autograd_times_activation(mined):
    """Of the strongest unit of each map: sum over positions of x * dy/dx, for each map x that it reads."""
    model, images, _ = mined
    profile = zfkit.topk.profile.profile(model, images, ["conv2"], index=torch.arange(len(images)))["conv2"]
    with torch.no_grad():
        x = model.net[:3](model.preprocess(images.take(torch.arange(len(images)))))
    x = x.requires_grad_()
    y = model.net.conv2(x)
    for c in range(y.shape[1]):
        place = int(y[:, c].argmax())
        (gradient,) = torch.autograd.grad(y[:, c].flatten()[place], x, retain_graph=True)
        wanted = (gradient * x).sum((0, 2, 3)).detach().numpy()
        assert profile.inputs[c] == pytest.approx(wanted, rel=1e-9)
        assert profile.inputs[c].sum() + float(model.net.conv2.bias[c].detach()) == pytest.approx(
            float(y[:, c].detach().max())
        )


def test_grouped_and_strided_convolutions_add_up():
    torch.manual_seed(1)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), conv).double()
    model = zfkit.wrap_model(net, mean=120, scale=1 / 60, input_size=36)
    images = pictures()
    profile = zfkit.topk.profile.profile(model, images, ["2"], index=torch.arange(len(images)))["2"]
    with torch.no_grad():
        strongest = net(model.preprocess(images.take(torch.arange(len(images))))).amax((0, 2, 3))
    sums = torch.tensor(profile.inputs).sum(1) + conv.bias
    assert torch.allclose(sums, strongest)
    assert (profile.inputs[:3, 2:] == 0).all() and (profile.inputs[3:, :2] == 0).all()  # the other group's


def test_inputs_are_traced_to_the_layer_that_made_them():
    """Through ReLU and pooling by number, through a concatenation by its offset, not through a sum."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
            self.c, self.d = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 3, 1)
            self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)

        def forward(self, x):
            y = self.c(self.pool(self.relu(torch.cat([self.a(x), self.b(x)], 1))))
            return self.d(y + y * 2)

    model = zfkit.wrap_model(Net(), mean=0, scale=1, input_size=8)
    layers = ["a", "b", "c", "d"]
    assert sources(model.network, "c", layers) == [("a", 0), ("a", 1), *(("b", i) for i in range(4))]
    assert sources(model.network, "d", layers) == [None] * 3


def test_numbers_of_a_map_are_those_of_all_pictures(made, mined):
    model, images, _ = mined
    said = data(made / MODEL / "conv2" / "layer.js")
    with torch.no_grad():
        maps = model.net[:4](model.preprocess(images.take(torch.arange(len(images)))))
    inside = maps[:, :, 2:7, 2:7]  # unit n sees pixels 4 n - 5 to 4 n + 9 of 36
    strongest = inside.amax((2, 3)).numpy()
    assert said["max"] == pytest.approx(strongest.max(0), rel=1e-3)
    assert said["measured"] == len(images)
    labels = np.arange(len(images)) % 3
    for c in range(10):
        assert sum(said["histogram"][c]["counts"]) == len(images)
        values = strongest[:, c].clip(min=0)
        means = np.array([values[labels == k].mean() for k in range(3)])
        best, rest = means.max(), (means.sum() - means.max()) / 2
        assert said["selectivity"][c] == pytest.approx((best - rest) / (best + rest), rel=1e-3)
        assert said["favourite"][c] == CLASSES[means.argmax()]
        r = np.corrcoef(strongest.T)[c]
        near, value = said["nearest"][c][0]
        r[c] = -2
        assert near == r.argmax() and value == pytest.approx(r.max(), abs=1e-3)
    boxes = np.array(said["box"])
    assert (boxes[:, :, 2] - boxes[:, :, 0] == 15).all()  # 5 + 2 * (2 - 1) + 4 * (3 - 1)


def test_a_pictures_page_lists_the_maps_nearest_to_their_strongest(made, mined):
    model, images, _ = mined
    strongest = data(made / MODEL / "conv2" / "pictures.js")["strongest"]
    with torch.no_grad():
        maps = model.net[:4](model.preprocess(images.take(torch.arange(len(images)))))[:, :, 2:7, 2:7]
    share = maps.amax((2, 3)) / maps.amax((0, 2, 3))
    for i in range(len(images)):
        listed = strongest[str(i)]
        first = torch.sort(share[i], descending=True)
        assert [c for c, _ in listed] == first.indices[:8].tolist()
        assert [v for _, v in listed] == pytest.approx(first.values[:8].tolist(), abs=1e-3)


def test_a_map_that_is_never_active_says_so_with_a_remedy(made):
    (sentence, remedy), *_ = data(made / MODEL / "conv1" / "layer.js")["warnings"][2]
    assert "never above 0" in sentence and "lr" in remedy


# --------------------------------------------------------------------------- stopped, resumed, refused, hostile


def test_a_stopped_site_goes_on_and_ends_in_the_same_bytes(tmp_path, made, monkeypatch):
    finish = site_module.LayerSheets.finish
    kept = {}

    def stop(self, channels):
        if self.layer == "conv2":
            raise KeyboardInterrupt
        finish(self, channels)

    monkeypatch.setattr(site_module.LayerSheets, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "site")
    monkeypatch.undo()
    part = tmp_path / "site" / MODEL
    assert sorted(p.name for p in part.iterdir()) == ["conv1", "topk.parquet"]  # whole, or not at all
    kept = {p: p.stat().st_mtime_ns for p in part.rglob("*") if p.is_file()}
    folder = written(tmp_path / "site")
    assert all(p.stat().st_mtime_ns == then for p, then in kept.items())
    files = {p.relative_to(made) for p in made.rglob("*") if p.is_file()}
    assert files == {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    different = [f for f in files if (made / f).read_bytes() != (folder / f).read_bytes()]
    assert [str(f) for f in different if f.suffix != ".parquet"] == []


def test_a_full_disk_leaves_no_half_layer(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(WriteError, match="No space left"):
        written(tmp_path / "site")
    assert [p.name for p in (tmp_path / "site" / MODEL).iterdir()] == ["topk.parquet"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rules": ["guided"]}, "holds another site .other: rules"),
        ({"maps": 2}, "holds another site .other: maps"),
        ({"images": pictures(labelled=False)}, "holds another site .other: pictures"),
        ({"model": wrapped(nn.Sequential(*small_net()))}, "holds another site .other: networks"),
    ],
)
def test_a_folder_with_another_site_is_left_alone(tmp_path, made, options, words):
    shutil.copytree(made, tmp_path / "site")
    before = {p: p.read_bytes() for p in (tmp_path / "site").rglob("*") if p.is_file()}
    with pytest.raises(ZfkitError, match=words):
        written(tmp_path / "site", **options)
    assert before == {p: p.read_bytes() for p in (tmp_path / "site").rglob("*") if p.is_file()}


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ZfkitError, match=r"something else .thesis\.tex"):
        written(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_pictures_that_vanished_are_named(tmp_path, monkeypatch):
    images = pictures()
    folder = written(tmp_path / "site", images=images)
    shutil.rmtree(folder / "pictures")

    def gone(self, i):
        raise ImageError("no such file")

    monkeypatch.setattr(ImageSet, "__getitem__", gone)
    with pytest.raises(ImageError, match=r"folder/cat/0\.png of 'drawn' cannot be read any more"):
        written(tmp_path / "site", images=images)


def test_layers_that_cannot_be_projected_have_patches_and_a_reason(tmp_path):
    class Sorted(nn.Module):
        def forward(self, x):
            return x.sort(1).values.detach()

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Sorted(), nn.Conv2d(4, 5, 3)).double()
    model = zfkit.wrap_model(net, mean=120, scale=1 / 60, input_size=36, name="odd")
    folder = written(tmp_path / "site", model)
    first, second = data(folder / "site.js")["models"][0]["layers"]
    assert first["rules"] == ["deconvnet", "guided", "gradient"] and second["rules"] == []
    assert "Patches alone, without projections" in second["notes"][0]
    assert not list((folder / "odd" / "2").glob("deconvnet*"))


def test_some_maps_only_link_to_each_other(tmp_path):
    folder = written(tmp_path / "site", maps=4)
    shown = {n: data(folder / MODEL / n / "layer.js")["channels"] for n in ("conv1", "conv2")}
    said = data(folder / MODEL / "conv2" / "layer.js")
    assert [len(c) for c in shown.values()] == [4, 4]
    assert {c for near in said["nearest"] for c, _ in near} <= set(shown["conv2"])
    assert {layer for row in said["inputs"] for layer, _, _ in row} == {"conv1"}


def test_the_command_writes_networks_side_by_side(tmp_path, capsys):
    common = ["--images", "textures", "--size", "32", "--limit", "3", "-k", "2", "--rules", "guided"]
    models = ["--model", "zfnet64", "--model", "alexnet64"]
    out = tmp_path / "site"
    assert main(["site", *models, *common, "--maps", "5,7", "--out", str(out)]) == 0
    assert str(out / "index.html") in capsys.readouterr().out
    said = data(out / "site.js")
    assert [m["name"] for m in said["models"]] == ["zfnet64", "alexnet64"] and said["k"] == 2
    assert all(layer["channels"] == [5, 7] for m in said["models"] for layer in m["layers"])
    assert all(layer["rules"] == ["guided"] for m in said["models"] for layer in m["layers"])


def test_a_layer_without_active_maps_has_a_page_that_says_so(tmp_path):
    net = small_net()
    with torch.no_grad():
        net.conv2.bias.fill_(-1e6)
    folder = written(tmp_path / "site", wrapped(net), maps=4)
    first, second = data(folder / "site.js")["models"][0]["layers"]
    assert len(first["channels"]) == 4
    assert (second["channels"], second["dead"], second["count"]) == ([], 10, 10)


def test_fewer_ranks_than_a_table_has(tmp_path, mined):
    """Sheets, numbers and pages have the k that was asked for; the table is kept as it is."""
    model, images, top = mined
    folder = written(tmp_path / "site", model, images, top=top, k=4, rules=["deconvnet"])
    side = 15
    sheet = tiles(folder / MODEL / "conv2" / "photo-0.webp", side, side)
    wanted = zfkit.project_top(model, images, top, "conv2", k=4, progress=False).photo
    assert (sheet == wanted.permute(0, 1, 3, 4, 2).numpy()).all()
    said = data(folder / MODEL / "conv2" / "layer.js")
    assert {len(row) for name in ("image", "value", "box") for row in said[name]} == {4}
    assert data(folder / "site.js")["k"] == 4
    assert zfkit.TopK.load(folder / MODEL / "topk.parquet").k == 9


@pytest.mark.parametrize("rules", [[], "deconvnet", ["deconvnet", "bogus"]])
def test_rules_are_looked_at_before_anything_is_written(tmp_path, rules):
    with pytest.raises(ZfkitError, match="rule"):
        written(tmp_path / "site", rules=rules)
    assert not (tmp_path / "site").exists()


def test_maps_may_be_numbers_of_any_kind(tmp_path):
    maps = {"conv1": [np.int64(1), np.int64(4)], "conv2": torch.tensor([7])}
    folder = written(tmp_path / "site", maps=maps, rules=["guided"])
    layers = data(folder / "site.js")["models"][0]["layers"]
    assert [layer["channels"] for layer in layers] == [[1, 4], [7]]
    assert written(tmp_path / "site", maps={"conv1": [1, 4], "conv2": [7]}, rules=["guided"]) == folder


def partly_labelled(memory=True):
    """Windows of photographs of which every other one has a class; its labels are known without decoding."""
    images = pictures(labelled=False)
    labels = [(-1, 0, -1, 1)[i % 4] for i in range(len(images))]
    partly = ImageSet(
        lambda i: (Image.fromarray(images[i][0].permute(1, 2, 0).numpy()), labels[i]),
        [images.name(i) for i in range(len(images))], size=images.size, classes=("cat", "dog"), windows=images.windows,
        read_labels=lambda: labels, stamp=lambda: "same",
    )  # fmt: skip
    return (partly.in_memory(progress=False) if memory else partly), np.array(labels)


@pytest.mark.parametrize("memory", [True, False])
def test_pictures_without_a_class_are_no_class_of_their_own(memory):
    """Selectivity and counts are over the labelled pictures alone, streamed or in memory."""
    images, labels = partly_labelled(memory)
    index = torch.arange(len(images))
    assert [label_of(images, i) for i in index] == ["" if i < 0 else ("cat", "dog")[i] for i in labels]
    measured = zfkit.topk.profile.profile(wrapped(), images, ["conv2"], index=index)["conv2"]
    assert measured.kind == "class" and set(measured.label) == {"", "cat", "dog"}
    share, favourite = measured.selectivity
    for c in range(10):
        values = measured.values[:, c].clip(min=0)
        means = np.array([values[labels == k].mean() for k in range(2)])
        assert share[c] == pytest.approx(abs(means[0] - means[1]) / means.sum(), abs=1e-6)
        assert favourite[c] == ("cat", "dog")[means.argmax()]
        counts, n = measured.top_labels(c)
        positive = (measured.values[:, c] > 0) & (labels >= 0)
        assert n == positive.sum() and sum(often for _, often in counts) == n


def test_the_lines_of_python_load_these_pictures_or_leave_the_place_open(tmp_path):
    """What the page prints is run; parts of a set and sets of one's own are loaded by no such call."""
    for split in ("train", "val"):
        (tmp_path / "my'set" / split / "a").mkdir(parents=True)
        grey = np.arange(50 * 60, dtype=np.uint16).reshape(50, 60) + 9 * (split == "train")
        Image.fromarray(grey).save(tmp_path / "my'set" / split / "a" / "x.png")
    load = partial(zfkit.load_images, progress=False)
    given = load(f"folder:{tmp_path}/my'set", size=(40, 44), split="train", value_range=(0, 4000))
    for i, images in enumerate((given, load("textures:seed=3", size=40, limit=3, split="train"))):
        line = data(written(tmp_path / f"{i}", images=images, maps=1) / "site.js")["load"]
        assert eval(line, {"zfkit": zfkit}).fingerprint() == images.fingerprint()
    images = load("textures", size=40, limit=3)
    assert data(written(tmp_path / "part", images=images[1:], maps=1) / "site.js")["load"] == ""
    assert pictures().loaded == ""


# ------------------------------------------------------------------------------------------- in a real browser

HOSTILE = ["<script>alert(1)</script>.png", "a\"b'c.png", "שלום.png", "😀 & co.png"]
HOSTILE += ["</script><img src=x onerror=alert(1)>"]


def hostile_pictures():
    images = pictures(labelled=False, windows=False)
    return ImageSet(
        lambda i: (Image.fromarray(images[i][0].permute(1, 2, 0).numpy()), i % 5),
        [HOSTILE[i % 5] for i in range(len(images))], size=images.size, source='<b>"drawn"</b>',
        classes=[f"<i>{name}" for name in HOSTILE],
    ).in_memory(progress=False)  # fmt: skip


class Page:
    """A page, and all that went wrong in it."""

    def __init__(self, browser, address, width=1280, height=900, scheme="light"):
        self.wrong, self.requests = [], []
        self.address = address
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", lambda request: self.wrong.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, route):
        self.page.goto(self.address + route)
        self.arrive(route)

    def arrive(self, route):
        self.page.wait_for_function("route => document.body.dataset.ready === route", arg=route)

    def heading(self):
        return self.page.inner_text("h1")

    def walls(self):
        return self.page.eval_on_selector_all(
            ".wall li a > span:last-child", "all => all.map(s => +s.textContent)"
        )

    def done(self):
        outside = [url for url in self.requests if not url.startswith(self.address.rsplit("/", 1)[0])]
        assert self.wrong == [] and outside == []
        self.page.context.close()


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(params=["file", "http"])
def address(request, made):
    """The site from the disk, and from a plain web server of files."""
    if request.param == "file":
        yield (made / "index.html").as_uri()
        return

    files = partial(http.server.SimpleHTTPRequestHandler, directory=str(made))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()


in_browser = [pytest.mark.browser, pytest.mark.skipif(bool(why_not()), reason=why_not())]


@pytest.fixture
def page(browser, address):
    opened = Page(browser, address)
    yield opened
    opened.done()


class TestPages:
    pytestmark = in_browser

    def test_from_the_front_to_a_map_and_back(self, page, made):
        page.open("#/")
        assert page.heading() == "What do the layers of small see?"
        said = data(made / MODEL / "conv1" / "layer.js")
        active = sum(v > 0 for v in said["reach"]) + 10
        assert page.page.locator(".maps-chart circle").count() == active  # the dead map has no dot
        page.page.locator(".maps-chart circle").first.hover()
        assert page.page.locator(".preview .tile").count() == 2
        page.page.click(".network a[href='#/conv2']")
        page.arrive("#/conv2")
        assert page.walls() == list(range(10))
        page.page.click(".wall a[href='#/conv2/7']")
        page.arrive("#/conv2/7")
        assert page.heading() == "conv2 map 7"
        page.page.go_back()
        page.arrive("#/conv2")
        assert page.heading() == "conv2"

    def test_a_link_to_a_map_shows_its_nine_and_their_names(self, page, made):
        said, album = data(made / MODEL / "conv2" / "layer.js"), data(made / "pictures" / "pictures.js")
        page.open("#/conv2/3?tile=4")
        titles = page.page.eval_on_selector_all(".nine button", "all => all.map(b => b.title)")
        names = [album["names"][album["places"].index(i)] for i in said["image"][3]]
        assert [t.rsplit(":", 1)[0] for t in titles[:9]] == names and len(titles) == 18
        assert page.page.get_attribute(".whole image", "href") == f"pictures/{said['image'][3][3]}.webp"
        box = said["box"][3][3]
        rect = page.page.eval_on_selector(
            ".field", "r => ['x', 'y', 'width', 'height'].map(n => +r.getAttribute(n))"
        )
        assert rect == [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    def test_sorting_and_searching_the_wall(self, page, made):
        said, album = data(made / MODEL / "conv2" / "layer.js"), data(made / "pictures" / "pictures.js")
        page.open("#/conv2")
        for order, key in (
            ("reach", lambda c: -said["max"][c]), ("selectivity", lambda c: -said["selectivity"][c]),
            ("frequency", lambda c: said["frequency"][c]),
            ("dead", lambda c: said["active"][c] + 1e-6 * said["reach"][c]),
        ):  # fmt: skip
            page.page.select_option("select", order)
            page.arrive(f"#/conv2?sort={order}")
            assert page.walls() == sorted(range(10), key=lambda c: (key(c), c))
        for kind in ("guided", "photo"):
            page.page.check(f"text={'patches' if kind == 'photo' else kind}")
            page.arrive(f"#/conv2?sort=dead&show={kind}")
            tile = page.page.eval_on_selector(".wall .tile", "t => t.style.backgroundImage")
            assert f"wall-{kind}.webp" in tile
        page.open("#/conv2/0")
        page.open("#/conv2")
        page.page.select_option("select", "like")
        page.arrive("#/conv2?sort=like&like=0")
        near = [c for c, _ in said["nearest"][0]]
        assert page.walls()[: 1 + len(near)] == [0, *near]
        page.page.fill("input[type=search]", "Teapot/2")
        wanted = {i for i, n in zip(album["places"], album["names"], strict=True) if "teapot/2" in n}
        hits = [c for c in range(10) if wanted & set(said["image"][c])]
        assert sorted(page.walls()) == hits and 0 < len(hits) < 10

    def test_keys(self, page):
        page.open("#/conv2/0")
        page.page.keyboard.press("ArrowLeft")
        page.arrive("#/conv2/9")  # round the end
        page.page.keyboard.press("ArrowRight")
        page.arrive("#/conv2/0")
        page.page.keyboard.press("3")
        page.arrive("#/conv2/0?tile=3")
        pressed = page.page.eval_on_selector_all(".nine button", "all => all.map(b => b.ariaPressed)")
        assert [n for n, p in enumerate(pressed) if p == "true"] == [2, 11]
        page.page.keyboard.press("Escape")
        page.arrive("#/conv2")
        page.page.keyboard.press("Tab")
        assert page.page.evaluate("document.activeElement.textContent") == "Skip to the content"

    def test_the_rule_is_kept_from_map_to_map(self, page):
        page.open("#/conv2/0")
        page.page.check("input[type=radio] >> nth=1")
        page.arrive("#/conv2/0?rule=guided")
        style = "t => t.style.backgroundImage"
        assert "guided-0.webp" in page.page.eval_on_selector(".nine .tile", style)
        page.page.keyboard.press("Tab")  # leave the radio, whose arrows choose a rule
        page.page.keyboard.press("ArrowRight")
        page.arrive("#/conv2/1?rule=guided")
        assert "guided-0.webp" in page.page.eval_on_selector(".nine .tile", style)
        page.page.check("text=deconvnet")
        page.page.check("text=natural colours")
        page.arrive("#/conv2/1?rule=deconvnet&colours=natural")
        assert "natural-0.webp" in page.page.eval_on_selector(".nine .tile", style)
        assert "For looking" in page.page.inner_text("main")

    def test_a_pictures_page_leads_to_maps(self, page):
        page.open("#/pictures")
        page.page.click(".wall a >> nth=2")
        page.page.wait_for_selector("img.large")
        assert page.page.evaluate("document.querySelector('img.large').decode().then(() => true)")
        href = page.page.get_attribute(".links a >> nth=0", "href")
        page.page.click(".links a >> nth=0")
        page.arrive(href)
        assert page.heading().startswith("conv1 map")

    def test_the_lines_of_python_make_what_the_page_shows(self, browser, tmp_path, zfnet64):
        images = zfkit.load_images("textures", size=40, limit=4, progress=False)
        options = {"maps": {"conv1": [5]}, "k": 2, "rules": ["guided", "deconvnet"]}
        folder = written(tmp_path / "site", zfnet64, images, **options)
        page = Page(browser, (folder / "index.html").as_uri())
        page.open("#/conv1/5?rule=deconvnet")
        names = {}
        exec(page.page.inner_text("pre"), names)
        page.done()
        found = names["patches"]
        assert found.image.tolist() == data(folder / "zfnet64" / "conv1" / "layer.js")["image"]
        shown = tiles(folder / "zfnet64" / "conv1" / "deconvnet-0.webp", 7, 7)
        assert (shown[0] == signed_to_rgb(found.projection[0]).permute(0, 2, 3, 1).numpy()).all()

    def test_the_policy_lets_no_request_out(self, browser, made):
        page = Page(browser, (made / "index.html").as_uri())
        page.open("#/")
        refused = """() => new Promise((done) => {
            document.addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective));
            new Image().src = 'https://example.org/seen.png'; })"""
        assert page.page.evaluate(refused) == "img-src"
        page.page.context.close()

    def test_a_picture_in_which_not_every_map_was_measured_says_so(self, browser, tmp_path):
        """Of two that were, the page has a list for each layer; of others, the maps that have it among their nine."""
        folder = written(tmp_path / "site", pictures=2, maps=3)
        of = data(folder / MODEL / "conv2" / "pictures.js")
        assert len(of["measured"]) == 2
        page = Page(browser, (folder / "index.html").as_uri())
        for i in data(folder / "pictures" / "pictures.js")["places"]:
            page.open(f"#/pictures/{i}")
            said = page.page.inner_text("main")
            assert ("measured in 2 pictures, and this is none of them" in said) == (i not in of["measured"])
            assert "No map is above 0" not in said or i in of["measured"]
        page.done()

    def test_an_address_that_leads_nowhere_says_so(self, page):
        for route in ("#/conv9", "#/conv2/99", "#/pictures/99", "#/conv2/100%"):
            page.open(route)
            assert page.heading() == "There is no such page here"

    def test_what_is_painted_is_the_projection(self, page, mined):
        """The tile on the screen, at its own size, pixel by pixel."""
        model, images, top = mined
        patches = zfkit.project_top(model, images, top, "conv2", [4])
        side = patches.projection.shape[-1]
        page.open("#/conv2/4")
        script = f"""t => {{ t.style.width = '{side}px'; t.style.position = 'fixed'; t.style.inset = '0 auto auto 0';
            t.style.zIndex = 9; }}"""
        page.page.eval_on_selector(".nine .tile", script)
        shot = page.page.screenshot(clip={"x": 0, "y": 0, "width": side, "height": side})
        seen = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)
        wanted = signed_to_rgb(patches.projection[0, 0].float()).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(seen - wanted).max() <= 1

    @pytest.mark.parametrize("width", [360, 768, 1920, 3840])
    def test_nothing_sticks_out(self, browser, made, width):
        page = Page(browser, (made / "index.html").as_uri(), width)
        for route in ("#/", "#/conv2", "#/conv2/3", "#/pictures", "#/pictures/0"):
            page.open(route)
            assert page.page.evaluate("document.documentElement.scrollWidth") <= width, route
        page.done()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_nothing_serious_is_found_by_axe(self, browser, made, scheme):
        axe = pytest.importorskip("axe_playwright_python.sync_playwright")
        page = Page(browser, (made / "index.html").as_uri(), scheme=scheme)
        for route in ("#/", "#/conv2", "#/conv2/3", "#/conv1/2", "#/pictures", "#/pictures/0"):
            page.open(route)
            found = axe.Axe().run(page.page, options={"preload": False}).response["violations"]
            serious = [
                f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")
            ]
            assert serious == [], route
        page.done()

    def test_names_are_text_and_nothing_else(self, browser, tmp_path):
        net = small_net()
        model = zfkit.wrap_model(
            net, mean=120, scale=1 / 60, input_size=36, name='<img src=x onerror="alert(1)">'
        )
        folder = written(tmp_path / "site", model, hostile_pictures())
        page = Page(browser, (folder / "index.html").as_uri())
        for route in ("#/", "#/conv2", "#/conv2/3", "#/pictures", "#/pictures/1"):
            page.open(route)
            assert page.page.locator("main script, main b, main i, main img[src=x]").count() == 0
            assert "<" in page.page.inner_text("body")  # shown as it is
        page.done()

    def test_two_networks_side_by_side(self, browser, tmp_path):
        other = small_net()
        with torch.no_grad():
            other.conv2.weight.neg_()
        models = [wrapped(), zfkit.wrap_model(other, mean=120, scale=1 / 60, input_size=36, name="other")]
        folder = written(tmp_path / "site", models)
        page = Page(browser, (folder / "index.html").as_uri())
        page.open("#/small/conv2/3")
        page.page.click("text=side by side")
        page.arrive("#/small/conv2/3~/other/conv2")
        page.page.click("article:nth-of-type(2) .wall a >> nth=5")
        page.arrive("#/small/conv2/3~/other/conv2/5")
        heads = page.page.eval_on_selector_all("h1", "all => all.map(h => h.innerText)")
        assert heads == ["conv2 map 3", "conv2 map 5"]
        said = data(folder / "other" / "conv2" / "layer.js")
        shown = page.page.get_attribute("article:nth-of-type(2) .whole image", "href")
        assert shown == f"pictures/{said['image'][5][0]}.webp"
        page.done()

    def test_a_missing_file_is_said(self, browser, made, tmp_path):
        shutil.copytree(made, tmp_path / "site")
        (tmp_path / "site" / MODEL / "conv2" / "layer.js").unlink()
        page = Page(browser, (tmp_path / "site" / "index.html").as_uri())
        page.open("#/conv2")
        assert "layer.js is missing" in page.page.inner_text("[role=alert]")
        page.page.context.close()
