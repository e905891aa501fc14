"""Networks of one's own: weights in files, functions in files, timm's, and the shapes that networks come in."""

import sys
from collections import namedtuple
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from tiny import noise, random_weights
from torch import nn

import zfkit
from zfkit.errors import ModelError
from zfkit.nets.paper import ARCHITECTURES, build

MEAN, SCALE = [123.7, 116.3, 103.5], 0.017
HOW = {"mean": MEAN, "scale": SCALE, "input_size": 16}
Named = namedtuple("Named", "out aux")


def small() -> nn.Sequential:
    """With batch normalisation whose statistics matter."""
    net = random_weights(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
        )
    )  # fmt: skip
    net[1].running_mean.copy_(torch.arange(4.0))
    return net


MODULE = """
from torch import nn
from beside import WIDTH

CLASSES = 3

def make_net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, WIDTH, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES),
    )

def broken():
    raise KeyError("no configuration")
"""


@pytest.fixture
def module(tmp_path):
    """`small`, made by a function in a file that imports another."""
    (tmp_path / "beside.py").write_text("WIDTH = 5")
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path / "mine.py"


# ----------------------------------------------------------------------------------- weights out of files


def written(how, state, folder):
    """The weights as somebody's training leaves them."""
    path = folder / f"weights.{how.partition(' ')[0]}"
    if how == "safetensors":
        safetensors.torch.save_file(state, path)
        return path
    prefix = {"pt of DataParallel": "module.", "pth of Lightning": "model.net."}.get(how, "")
    state = {prefix + name: tensor for name, tensor in state.items()}
    key = {"ckpt with its epoch": "state_dict", "pth of a script": "model"}.get(how)
    torch.save({key: state, "epoch": 7} if key else state, path)
    return path


FILES = [
    "safetensors", "pt", "bin", "pt of DataParallel", "pth of Lightning", "ckpt with its epoch", "pth of a script"
]  # fmt: skip


@pytest.mark.parametrize("how", FILES)
def test_weights_come_from_any_kind_of_file(how, module, tmp_path):
    net = small()
    path = written(how, net.state_dict(), tmp_path)
    model = zfkit.load_model(f"{module}:make_net", weights=path, classes=list("abc"), device="cpu", **HOW)
    x = model.preprocess(noise(2, 16))
    assert torch.equal(model.logits(x), net.eval()(x))
    assert (model.name, model.classes) == ("mine", tuple("abc")) and not model.net.training
    assert path.name in model.provenance["data"]


@pytest.mark.parametrize("name, make", [
    ("torchvision:squeezenet1_1", lambda: torchvision.models.squeezenet1_1(num_classes=7)),
    ("zfnet64-narrow", lambda: build(replace(ARCHITECTURES["zfnet64-narrow"], classes=7))),
])  # fmt: skip
def test_the_file_says_how_many_classes_there_are(name, make, tmp_path):
    net, names = make(), tmp_path / "names.txt"
    torch.save(net.state_dict(), tmp_path / "a.pt")
    names.write_text("\n".join("abcdefg") + "\n")
    model = zfkit.load_model(name, weights=tmp_path / "a.pt", classes=names, input_size=64, device="cpu")
    assert model.classes == tuple("abcdefg")
    assert all(torch.equal(t, net.state_dict()[k]) for k, t in model.net.state_dict().items())


def test_wrong_weights_are_named(module, tmp_path):
    state = small().state_dict()
    files = {
        "gone": None, "a sentence": "hello", "no tensors": {"epoch": 3}, "whole network": small(),
        "other": {"features.0.weight": torch.ones(2, 3, 3, 3)}, "wider": {**state, "3.weight": torch.ones(6, 4, 3, 3)},
        "broken": {**state, "7.bias": torch.full((3,), torch.nan)},
    }  # fmt: skip
    messages = {
        "gone": "there is no file", "a sentence": "damaged", "no tensors": "no weights by name but .* epoch",
        "whole network": r"more than weights.*torch\.save\(net\.state_dict\(\)",
        "other": r"first 0\.bias: expected \(4,\), found none; the file begins with features\.0\.weight",
        "wider": r"1 tensors differ, first 3\.weight: expected \(5, 4, 3, 3\), found \(6, 4, 3, 3\)",
        "broken": r"7\.bias hold NaN",
    }  # fmt: skip
    for what, content in files.items():
        path = tmp_path / f"{what}.pt"
        if isinstance(content, str):
            path.write_text(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(ModelError, match=messages[what]):
            zfkit.load_model(f"{module}:make_net", weights=path, device="cpu", **HOW)


# ------------------------------------------------------------------------------------ functions out of files


@pytest.mark.parametrize("function, changes, message", [
    ("make_net", {"mean": None}, r"does not say how pictures go in: give mean="),
    ("make_nets", {}, r"no function 'make_nets'\. Did you mean 'make_net'"),
    ("broken", {}, "mine.py stops with KeyError: 'no configuration'"),
    ("CLASSES", {}, "expected a torch.nn.Module, got int"),
    ("make_net", {"classes": "gone.txt"}, "cannot read the names of classes 'gone.txt': No such file"),
    ("make_net", {"classes": list("ab")}, "2 class names for a network with 3 outputs"),
])  # fmt: skip
def test_a_module_that_makes_no_network_is_refused(function, changes, message, module):
    paths = list(sys.path)
    with pytest.raises(ModelError, match=message):
        zfkit.load_model(f"{module}:{function}", device="cpu", **{**HOW, **changes})
    assert sys.path == paths


def test_timm_brings_its_normalisation(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    net = timm.create_model("test_resnet", num_classes=4)
    torch.save(net.state_dict(), tmp_path / "a.pt")
    model = zfkit.load_model("timm:test_resnet", weights=tmp_path / "a.pt", device="cpu")
    expects = net.pretrained_cfg
    assert model.input_size == expects["input_size"][-1] and model.logits(
        torch.zeros(1, 3, 64, 64)
    ).shape == (1, 4)
    image = noise(1, 8)
    expected = torchvision.transforms.functional.normalize(image / 255, expects["mean"], expects["std"])
    assert torch.allclose(model.preprocess(image), expected, atol=1e-5)
    for weights, message in (
        (None, "no timm model 'test_resnt'"),
        ("a9", "no set of weights of test_resnet"),
    ):
        name = "timm:test_resnt" if weights is None else "timm:test_resnet"
        with pytest.raises(ModelError, match=message):
            zfkit.load_model(name, weights=weights)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"pip install 'zfkit\[timm\]'"):
        zfkit.load_model("timm:test_resnet")


# ---------------------------------------------------------------------------------- what networks take and give


def test_a_network_that_takes_blue_first_gives_what_its_twin_gives():
    rgb, bgr = small().double(), small().double()
    bgr[0].weight.data = bgr[0].weight.data.flip(1)
    ours = zfkit.wrap_model(rgb, **HOW)
    theirs = zfkit.wrap_model(bgr, **{**HOW, "mean": MEAN[::-1]}, channels="bgr")
    images = noise(2, 16)
    x = ours.preprocess(images)
    assert torch.equal(theirs.preprocess(images), x)
    assert torch.allclose(ours.logits(x), theirs.logits(x)) and theirs.mean == ours.mean
    for rule in ("deconvnet", "gradient"):
        a, b = (zfkit.project(m, x, "3", 1, rule=rule) for m in (ours, theirs))
        assert torch.allclose(a, b) and b.any()
    assert zfkit.receptive_field(theirs, "3") == zfkit.receptive_field(ours, "3")
    assert torch.equal(*(zfkit.filter_spectra(m, "0").weight for m in (ours, theirs)))
    a, b = (zfkit.occlude(m, images[0], layer="3", size=5, stride=4) for m in (ours, theirs))
    assert torch.allclose(a.probability, b.probability) and torch.allclose(a.activity, b.activity)


class Several(nn.Module):
    """Two outputs, held together in different ways."""

    def __init__(self, kind):
        super().__init__()
        self.side, self.main, self.kind = nn.Conv2d(3, 2, 3), small(), kind

    def forward(self, x):
        out, aux = self.main(x), self.side(x)
        return {"dict": lambda: {"out": out, "aux": aux}, "tuple": lambda: (out, aux),
                "Named": lambda: Named(out, aux)}[self.kind]()  # fmt: skip


@pytest.mark.parametrize("kind, key", [("dict", "out"), ("tuple", 0), ("Named", "out")])
def test_one_of_several_outputs_is_looked_at(kind, key):
    net = Several(kind).double().eval()
    with pytest.raises(
        ModelError, match=rf"returns a {kind} with {key!r}, .*wrap_model\(\.\.\., output={key!r}\)"
    ):
        zfkit.wrap_model(net, **HOW)
    with pytest.raises(ModelError, match="not 'logits'"):
        zfkit.wrap_model(net, **HOW, output="logits")
    model = zfkit.wrap_model(net, **HOW, output=key, classes=list("abc"))
    x = model.preprocess(noise(2, 16))
    assert model.network.output == "main.7" and torch.equal(model.logits(x), net.main(x))
    seen = zfkit.occlude(model, noise(1, 16)[0], size=6, stride=5)
    assert seen.whole_probability == pytest.approx(
        float(net.main(model.preprocess(seen.image)).detach().softmax(1).max())
    )


def test_a_head_defined_before_its_stem_and_networks_for_grey_pictures():
    class HeadFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.stem = nn.Conv2d(8, 2, 1), nn.Conv2d(1, 8, 3)

        def forward(self, x):
            return self.head(F.relu(self.stem(x))).mean((2, 3))

    assert len(zfkit.wrap_model(HeadFirst(), mean=0, scale=1, input_size=8).mean) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make, message", [
    (nn.DataParallel, r"DataParallel .* wrap net\.module instead"),
    (torch.compile, r"wrap net\._orig_mod instead"),
    (torch.jit.script, "a scripted network cannot be traced"),
    (lambda net: net.state_dict(), "got OrderedDict: build the network"),
])  # fmt: skip
def test_a_network_inside_another_is_pointed_at(make, message):
    with pytest.raises(ModelError, match=message):
        zfkit.wrap_model(make(small()), **HOW)


@pytest.mark.filterwarnings("ignore")
def test_quantised_linear_layers_are_left_in_peace():
    def fingerprint(net):
        net = torch.ao.quantization.quantize_dynamic(net.eval(), {nn.Linear})
        model = zfkit.wrap_model(net, **HOW)
        x = model.preprocess(noise(1, 16))
        assert torch.equal(model.logits(x), net(x)) and zfkit.project(model, x, "3", 1).any()
        return model.fingerprint()

    other = small()
    other[7].weight.data[0, 0] += 0.5
    assert fingerprint(small()) == fingerprint(small()) != fingerprint(other)
