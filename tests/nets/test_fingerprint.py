"""Whatever decides a network's answers changes its fingerprint, and is noticed after `wrap_model`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from mining import run
from tiny import image_set, noise
from torch import nn

import zfkit
from zfkit import ZfkitError
from zfkit.errors import ImageError, ModelError
from zfkit.nets.activations import activations

SIDE = 12
PICTURES = noise(6, SIDE)


def small(mean=100.0):
    """Two convolutions, "0" and "4", with a norm and an LRN between them."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.LocalResponseNorm(3, alpha=0.5),
        nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Dropout(0.5),
    )  # fmt: skip
    return zfkit.wrap_model(net.eval(), mean=mean, scale=1 / 50, input_size=SIDE, name="small")


def replaced(model, i, module):
    model.net[i] = module
    return model


def set_to(model, i, **settings):
    for name, value in settings.items():
        setattr(model.net[i], name, value)
    return model


def written(model, write):
    write(model.net[4].weight)
    return model


def hooked(model, factor):
    model.net[0].register_forward_hook(lambda module, inputs, output: output * factor)
    return model


class Twice(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def twice(model):
    other = Twice(3, 4, 3)
    other.load_state_dict(model.net[0].state_dict())
    return replaced(model, 0, other)


CHANGES = {
    "mean": lambda m: dataclasses.replace(m, mean=(101.0,) * 3),
    "scale": lambda m: dataclasses.replace(m, scale=(1 / 50, 1 / 50, 1 / 51)),
    "bgr": lambda m: dataclasses.replace(m, channels="bgr"),
    "dtype": lambda m: m.net.double() and m,
    ".data[...]": lambda m: written(m, lambda w: w.data[0, 0, 0].add_(1)),
    ".data.zero_()": lambda m: written(m, lambda w: w.data.zero_()),
    ".numpy()": lambda m: written(m, lambda w: w.detach().numpy().__setitem__((0, 0, 0, 0), 3)),
    "two signs": lambda m: written(m, lambda w: w.data.view(-1)[1::2].neg_()),
    "swapped": lambda m: written(m, lambda w: w.data.copy_(w.data.flip(0))),
    "running mean": lambda m: set_to(m, 1, running_mean=torch.full((4,), 0.5)),
    "layer replaced": lambda m: replaced(m, 4, nn.Conv2d(4, 5, 3)),
    "stride": lambda m: set_to(m, 4, stride=(2, 2)),
    "eps": lambda m: set_to(m, 1, eps=0.5),
    "alpha": lambda m: set_to(m, 3, alpha=2.0),
    "ReLU": lambda m: replaced(m, 2, nn.LeakyReLU(0.1)),
    "ReLU taken out": lambda m: replaced(m, 2, nn.Identity()),
    "hook": lambda m: hooked(m, 2.0),
    "own class": twice,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_answers_changes_table_and_fingerprint(change, tmp_path):
    """The truth is the network itself: after the change it answers otherwise, and what is mined is what it answers."""
    pytest.importorskip("ipywidgets")
    from zfkit.widgets.explorer import mined

    model, images = small(), image_set(PICTURES)
    before, top = model.fingerprint(), mined(model, images, tmp_path)
    assert model.fingerprint() == before == small().fingerprint()
    answers = [y.clone() for _, y in activations(model, PICTURES, ["4"])]
    model = CHANGES[change](model)
    with torch.no_grad():
        x = model.preprocess(PICTURES)
        expected = model.net[:5](x.flip(1) if change == "bgr" else x)
    (now,) = [y.clone() for _, y in activations(model, PICTURES, ["4"])]
    torch.testing.assert_close(now, expected)
    assert now.shape != answers[0].shape or not torch.equal(now.double(), answers[0].double())
    assert model.fingerprint() != before
    with pytest.raises(ZfkitError, match=r"'small' .* has changed since this table was mined: mine again"):
        top.check(model, images)
    again = mined(model, images, tmp_path)
    torch.testing.assert_close(again["4"].max, expected.float().amax((0, 2, 3)))
    again.check(model, images)


def test_hooks_that_differ_in_a_number_are_two_hooks():
    assert len({hooked(small(), factor).fingerprint() for factor in (2.0, 2.0, 3.0)}) == 2


def test_what_does_not_change_the_answers_leaves_the_fingerprint():
    model = small()
    before = model.fingerprint()
    model.net.train()
    set_to(model, 2, inplace=True)
    set_to(model, 6, p=0.9)
    model.net.requires_grad_(False)
    assert model.fingerprint() == before
    conv = model.fingerprint(["0"])
    written(model, lambda w: w.data.zero_())
    assert model.fingerprint(["0"]) == conv and model.fingerprint(["4"]) != small().fingerprint(["4"])


@pytest.mark.slow
def test_the_fingerprint_is_the_same_in_another_process():
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]; "
    )
    code += "from test_fingerprint import hooked, small; print(hooked(small(), 2.0).fingerprint())"
    assert run("-c", code).strip() == hooked(small(), 2.0).fingerprint()


def test_a_change_after_which_the_network_cannot_be_followed_is_refused():
    class Chance(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    model = replaced(small(), 2, Chance())
    for use in (lambda: model.fingerprint(), lambda: zfkit.mine(model, image_set(PICTURES), progress=False)):
        with pytest.raises(ModelError, match="does not give what its traced operations give"):
            use()


# ----------------------------------------------------------------------------------------------- what is no number


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_name_the_first_layer(value):
    model, images = small(), image_set(PICTURES)
    labelled = zfkit.ImageSet.of(PICTURES, labels=[0] * 6, progress=False)
    model.net[0].weight.data[1, 0, 0, 0] = value
    for use in (
        lambda: zfkit.mine(model, images, progress=False),
        lambda: zfkit.project(model, model.preprocess(PICTURES), "4", 2),
        lambda: zfkit.project(model, model.preprocess(PICTURES), "4", 2, [[3, 3]] * 6, seed="activation"),
        lambda: model.logits(model.preprocess(PICTURES)),
        lambda: zfkit.evaluate(zfkit.wrap_model(
            nn.Sequential(model.net, nn.Flatten(), nn.Linear(320, 2)), mean=0, scale=1, input_size=SIDE
        ), labelled),
    ):  # fmt: skip
        with pytest.raises(
            ModelError, match=r"'(0\.)?0' gives .*not finite, first for picture 0 .*its weight holds"
        ):
            use()


def test_a_picture_that_is_not_finite_is_named():
    model = small()
    x = model.preprocess(PICTURES)
    x[3, 0, 5, 5] = torch.nan
    for use in (lambda: zfkit.project(model, x, "4", 2), lambda: model.logits(x)):
        with pytest.raises(ImageError, match="picture 3 of the 6 at hand holds values that are not finite"):
            use()


@pytest.mark.parametrize("kind", [torch.complex64, torch.bool, torch.int8])
def test_weights_that_are_no_real_numbers_are_refused(kind, tmp_path):
    name = str(kind).removeprefix("torch.")
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    state = {name: torch.ones_like(t).to(kind) for name, t in net.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    (tmp_path / "own.py").write_text(
        "from torch import nn\nmake = lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())"
    )
    with pytest.raises(ModelError, match=rf"w\.pt: 0\.weight holds {name}, and float32 was expected"):
        zfkit.load_model(
            f"{tmp_path / 'own.py'}:make", weights=tmp_path / "w.pt", mean=0, scale=1, input_size=8
        )
    net[0].weight = nn.Parameter(state["0.weight"], requires_grad=False)
    with pytest.raises(ModelError, match=rf"Sequential's 0\.weight is {name}: .* real"):
        zfkit.wrap_model(net, mean=0, scale=1, input_size=8)
