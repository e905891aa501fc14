"""Training against what the paper says, a literal step of SGD, and runs that are really killed."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import zfkit
import zfkit.training.data as augmentation
from zfkit.images.imageset import ImageSet
from zfkit.images.parquet import RowNames, parquet
from zfkit.nets.paper import ARCHITECTURES, Architecture
from zfkit.training.data import Draws, Geometry, Resident, Streamed, augment, draw, ten_crops
from zfkit.training.evaluate import evaluate
from zfkit.training.fit import Trainer, _fabric, _Plan, _spread, clip_rms, dominance, fit
from zfkit.training.layers import ContrastNorm, Dropout
from zfkit.training.recipe import RECIPES, Recipe

TINY = Architecture(
    "zfnet", 32, conv1=(5, 2, 1), conv2=(3, 1, 1), widths=(4, 6, 6, 6, 4), hidden=8, classes=3
)
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (220, 220, 60))
QUICK = Recipe(epochs=3, batch_size=8, snapshots=(0, 1), init="he", inputs="std", flat_epochs=0)


def coloured(count: int, size: int = 32, classes: int = 3, seed: int = 0, memory: bool = True) -> ImageSet:
    """Noisy pictures whose class is their colour."""

    def read(i: int) -> tuple[Image.Image, int]:
        noise = np.random.default_rng((seed, i)).normal(0, 30, (size, size, 3))
        return Image.fromarray(
            (np.array(COLOURS[i % classes]) + noise).clip(0, 255).astype(np.uint8)
        ), i % classes

    names = [f"picture {seed} {i}" for i in range(count)]
    images = ImageSet(
        read, names, size=size, source="coloured", classes=["red", "green", "blue", "yellow"][:classes]
    )
    return images.in_memory(progress=False) if memory else images


@pytest.fixture(scope="module")
def data():
    return coloured(40), coloured(24, seed=1)


def weights_of(run: zfkit.Run) -> dict[str, torch.Tensor]:
    """Weights and momentum in full precision, from the state."""
    _, tensors, _ = run.resume()
    return tensors


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------------------- recipe


def test_the_defaults_are_the_papers():
    r = Recipe()
    assert (r.epochs, r.batch_size, r.lr, r.momentum, r.dropout, r.rms_clip) == (70, 128, 1e-2, 0.9, 0.5, 0.1)
    assert r.weight_decay == 5e-4  # Krizhevsky's: the paper does not say
    assert r.lr_factor == 0.1 and r.snapshots == (0, 1, 2, 5, 10, 20, 30, 40, 64)
    assert r.init == "paper" and r.inputs == "mean"


def test_every_setting_has_its_reason():
    table = Recipe.table()
    assert set(table.index) == set(Recipe.__dataclass_fields__)
    assert table["why"].str.len().min() > 10
    assert "unstated" in table.loc["weight_decay", "why"]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"lr": -1}, "lr must lie between 0"),
        ({"epochs": 0}, "epochs must lie between 1"),
        ({"dropout": 1.5}, "dropout must lie between"),
        ({"lr": None}, "lr must lie between"),
        ({"seed": -1}, "seed must lie between 0"),
        ({"init": "papper"}, "Did you mean 'paper'"),
        ({"inputs": "imagenet"}, "There are: "),
    ],
)
def test_impossible_settings_are_refused(setting, told):
    with pytest.raises(zfkit.errors.TrainingError, match=told):
        Recipe(**setting)


@pytest.mark.parametrize("name", ["zfnet64", "alexnet64"])
def test_weights_start_as_the_paper_says(name, data):
    plan = _Plan.make(replace(ARCHITECTURES[name], input_size=32), *data, Recipe(), None)
    for parameter in plan.network().parameters():
        if parameter.dim() == 1:
            assert not parameter.any()
        else:
            n = parameter.numel()
            assert parameter.std().item() == pytest.approx(0.01, rel=5 / math.sqrt(n))
            assert abs(parameter.mean().item()) < 5 * 0.01 / math.sqrt(n)


def test_signals_fade_no_faster_in_the_narrow_network_than_in_the_wide_one():
    """What keeps var(W x) is n_in var(W), layer by layer: 0.01^2 times the paper's number of inputs."""
    images = coloured(8, 64)
    wide, narrow = (
        dict(_Plan.make(name, images, images, Recipe(), None).network().named_children())
        for name in ("zfnet64", "zfnet64-narrow")
    )
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        gains = [net[name].weight.var().item() * net[name].weight[0].numel() for net in (wide, narrow)]
        assert gains[0] == pytest.approx(gains[1], rel=0.15), name


# -------------------------------------------------------------------------------------------------- steps


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.floats(0.01, 2), st.integers(0, 99))
def test_the_clip_is_the_literal_one(maps, inputs, kernel, limit, seed):
    torch.manual_seed(seed)
    conv, linear = nn.Conv2d(inputs, maps, kernel), nn.Linear(3, 2)
    with torch.no_grad():
        conv.weight *= 3
    before, other = conv.weight.detach().clone(), linear.weight.detach().clone()
    clip_rms(nn.Sequential(conv, linear), limit)
    for old, new in zip(before, conv.weight, strict=True):
        rms = math.sqrt(sum(v * v for v in old.flatten().tolist()) / old.numel())
        torch.testing.assert_close(new, old * (limit / rms) if rms > limit else old)
    assert torch.equal(linear.weight, other)
    clip_rms(conv, None)


def test_dominance_is_largest_over_median():
    conv = nn.Conv2d(1, 5, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, 2, 3, 4, 30]).view(5, 1, 1, 1))
    assert dominance(nn.Sequential(conv)) == pytest.approx(10)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), st.integers(1, 7), st.sampled_from([0.5, 0.75]),
    st.floats(0.1, 3), st.integers(0, 99),
)  # fmt: skip
def test_contrast_norm_and_its_gradient_are_torchs(n, channels, side, size, beta, alpha, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, side, side, generator=g, dtype=torch.float64, requires_grad=True)
    up = torch.randn(n, channels, side, side, generator=g, dtype=torch.float64)
    ours, theirs = (kind(size, alpha, beta, 2.0).train() for kind in (ContrastNorm, nn.LocalResponseNorm))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-14)
    a, b = (torch.autograd.grad(layer(x), x, up)[0] for layer in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_step_is_sgd_with_momentum_and_decay_written_out(data):
    """v <- m v + (g + d w), w <- w - lr v, then the clip; dropout's mask as drawn; biases are not decayed."""
    recipe = replace(QUICK, dropout=0.5, rms_clip=0.3, lr=0.05, weight_decay=0.01)
    plan = _Plan.make(TINY, *data, recipe, None)
    trainer = Trainer(plan, _fabric("cpu", "64-true"))
    feed = Resident(data[0], plan.geometry, plan.mean, torch.device("cpu"))
    w = {name: p.detach().clone() for name, p in trainer.net.named_parameters()}
    v = {name: torch.zeros_like(p) for name, p in w.items()}
    draws = draw(len(data[0]), plan.geometry, recipe.seed, 1)
    batches = list(feed.batches(draws, [slice(s * 8, s * 8 + 8) for s in range(plan.steps)]))
    for s, _ in enumerate(trainer.epoch(feed)):
        pixels, labels = batches[s]
        leaves = {name: p.clone().requires_grad_() for name, p in w.items()}
        masks = {f"drop{n}": drop.mask for n, drop in zip((6, 7), trainer.drops, strict=True)}
        logits = literal_forward(plan, leaves, pixels, masks).float()  # Fabric hands out float32
        loss = F.cross_entropy(logits, labels)
        for (name, p), g in zip(leaves.items(), torch.autograd.grad(loss, leaves.values()), strict=True):
            decay = 0.01 if p.dim() > 1 else 0
            v[name] = 0.9 * v[name] + g + decay * w[name]
            w[name] = w[name] - 0.05 * v[name]
            if p.dim() == 4:
                for i in range(len(p)):
                    w[name][i] *= min(1, 0.3 / w[name][i].square().mean().sqrt().item())
        for name, p in trainer.net.named_parameters():
            torch.testing.assert_close(p.detach(), w[name], rtol=1e-9, atol=1e-12)
    assert s == plan.steps - 1 == 4


def literal_forward(plan, w, pixels, masks):
    """The tiny network in functional form."""
    x = (
        (pixels - plan.mean.view(3, 1, 1)) * plan.scale.view(3, 1, 1)
    ).double()  # pictures are prepared in float32
    pool = lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True)  # noqa: E731
    norm = lambda x: F.local_response_norm(x, 5, 5e-4, 0.75, 2.0)  # noqa: E731
    x = norm(pool(F.conv2d(x, w["conv1.weight"], w["conv1.bias"], 2, 1).relu()))
    x = norm(pool(F.conv2d(x, w["conv2.weight"], w["conv2.bias"], 1, 1).relu()))
    for n in (3, 4, 5):
        x = F.conv2d(x, w[f"conv{n}.weight"], w[f"conv{n}.bias"], padding=1).relu()
    x = pool(x).flatten(1)
    for n in (6, 7):
        x = F.linear(x, w[f"fc{n}.weight"], w[f"fc{n}.bias"]).relu() * masks[f"drop{n}"]
    return F.linear(x, w["fc8.weight"], w["fc8.bias"])


def test_dropout_masks_are_shared_between_processes():
    def drawn(share: slice) -> torch.Tensor:
        drop = Dropout(0.5, 6)
        drop.draw(8, share, augmentation.generator(1, 2, 3))
        return drop.mask

    whole = drawn(slice(0, 8))
    assert torch.equal(whole, torch.cat([drawn(slice(0, 4)), drawn(slice(4, 8))]))
    assert set(whole.unique().tolist()) == {0.0, 2.0}  # kept units carry what the others would have


def test_the_learning_rate_falls_where_validation_stops_to_improve():
    """No picture can be told from another: top-1 never moves, so lr falls after patience + 1 epochs, and so on."""
    grey = ImageSet(lambda i: (Image.new("RGB", (32, 32), "grey"), i % 2), [str(i) for i in range(16)], size=32,
                    classes=["a", "b"]).in_memory(False)  # fmt: skip
    recipe = replace(QUICK, epochs=9, patience=2, inputs="mean", brightness=0.0)
    lr = fit(TINY, grey, grey, recipe, progress=False, device="cpu").history["lr"]
    # The first epoch is the best there is; 2, 3 and 4 are not better, so 5 runs at a tenth, and again.
    np.testing.assert_allclose(lr, [1e-2] * 4 + [1e-3] * 3 + [1e-4] * 2, rtol=1e-6)


def test_the_input_scale_is_what_makes_the_papers_start_work():
    """N(0, .01^2) at +-128 starts; with the same inputs divided by their std the loss stays at ln 2."""
    images, val = coloured(64, 64, 2), coloured(16, 64, 2, seed=1)
    recipe = Recipe(epochs=12, batch_size=16, snapshots=(), flat_epochs=0)
    loss = {}
    for inputs in ("mean", "std"):
        run = fit("zfnet64-narrow", images, val, replace(recipe, inputs=inputs), progress=False, device="cpu")
        loss[inputs] = run.history.loss.iloc[-1]
    assert loss["std"] == pytest.approx(math.log(2), abs=0.01)
    assert loss["mean"] < 0.45


# --------------------------------------------------------------------------------------------- pictures in


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 9), st.integers(0, 3), st.integers(0, 3), st.floats(0, 0.5), st.integers(0, 99))
def test_crops_are_the_literal_ones(size, larger, pad, brightness, seed):
    geometry = Geometry(size, size + larger, pad, brightness)
    g = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (3, size + larger, size + larger, 3), generator=g, dtype=torch.uint8)
    mean = torch.tensor([100.5, 110.25, 90.0])
    draws = draw(3, geometry, seed, 1)
    found = augment(pictures, draws, geometry, mean)
    for n in range(3):
        for r in range(size):
            for c in range(size):
                row = int(draws.top[n]) + r
                column = int(draws.left[n]) + (size - 1 - c if draws.mirror[n] else c)
                if 0 <= row < size + larger and 0 <= column < size + larger:
                    value = pictures[n, row, column].float() * draws.brightness[n] if brightness else pictures[
                        n, row, column].float()  # fmt: skip
                    expected = value.clamp(0, 255)
                else:
                    expected = mean
                torch.testing.assert_close(found[n, :, r, c], expected)


def test_an_epochs_chances_depend_on_seed_and_epoch_only():
    geometry = Geometry(8, 8, 2, 0.2)
    a, b = draw(50, geometry, 1, 2), draw(50, geometry, 1, 2)
    assert all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))
    assert sorted(a.index.tolist()) == list(range(50))
    assert not torch.equal(a.index, draw(50, geometry, 1, 3).index)
    assert not torch.equal(a.index, draw(50, geometry, 2, 2).index)
    assert a.top.min() == -2 and a.top.max() == 2 and a.brightness.min() >= 0.8 and a.brightness.max() <= 1.2
    assert 10 < a.mirror.sum() < 40


def test_generators_of_different_numbers_differ():
    """numpy fills short seeds up with zeros: (1, 2) and (1, 2, 0) must not draw the same."""
    drawn = {
        torch.rand(1, generator=augmentation.generator(*n)).item()
        for n in ((1, 2), (1, 2, 0), (1, 2, 0, 0), (2, 1), (1, 2, 3), (1, 2, 4, 0))
    }
    assert len(drawn) == 6


def test_the_mean_is_taken_from_few_blocks_all_over_the_set():
    images = coloured(40)
    assert _spread(images, 10).tolist() == [0, 4, 9, 13, 17, 22, 26, 30, 35, 39]
    images.blocks = torch.arange(0, 40, 2)
    images._names = images._names[:39]  # the last block is cut short
    places = _spread(images, 32)
    assert len({p // 2 for p in places.tolist()}) == 16  # of 20 blocks
    assert places.min() == 0 and places.max() == 38 and len(places) == 31


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(0, 9))
def test_blocks_are_mixed_but_few_at_a_time(sizes, seed):
    """Every picture comes once, and 16 blocks are finished before the next is begun."""
    starts = torch.tensor([0, *np.cumsum(sizes)[:-1]])
    index = draw(sum(sizes), Geometry(4, 4), seed, 1, starts).index
    assert sorted(index.tolist()) == list(range(sum(sizes)))
    block = torch.searchsorted(starts, index, right=True) - 1
    unfinished: dict[int, int] = {}
    for b in block.tolist():
        unfinished[b] = unfinished.get(b, sizes[b]) - 1
        if not unfinished[b]:
            del unfinished[b]
        assert len(unfinished) <= augmentation.BLOCKS_MIXED


def test_streamed_and_resident_pictures_are_the_same():
    images = coloured(12, 40)
    mean = torch.tensor([100.0, 110.0, 90.0])
    for geometry in (Geometry(32, 40), Geometry(40, 40, 3, 0.2)):
        draws = draw(12, geometry, 5, 1)
        spans = [slice(0, 5), slice(5, 10)]
        cpu = torch.device("cpu")
        here = Resident(images, geometry, mean, cpu).batches(draws, spans)
        streamed = Streamed(images, geometry, mean, cpu, workers=0).batches(draws, spans)
        for (x, labels), (y, others) in zip(here, streamed, strict=True):
            assert x.shape == (5, 3, geometry.size, geometry.size) and torch.equal(labels, others)
            assert (x - y).abs().max() <= 1  # a stream rounds to whole levels of 0-255


def test_ten_crops_are_corners_centre_and_their_mirrors():
    picture = torch.arange(3 * 6 * 6).view(1, 3, 6, 6).to(torch.uint8)
    crops = list(ten_crops(picture, Geometry(4, 6)))
    assert len(crops) == 10
    for n, (top, left) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]):
        assert torch.equal(crops[2 * n], picture[:, :, top : top + 4, left : left + 4])
        assert torch.equal(crops[2 * n + 1], crops[2 * n].flip(3))


@pytest.mark.parametrize("crops", [1, 10])
def test_accuracy_is_the_literal_one(crops):
    torch.manual_seed(0)
    classes = [str(c) for c in range(7)]
    net = zfkit.nets.build(replace(TINY, classes=7)).eval()
    for p in net.parameters():
        nn.init.normal_(p, 0, 0.3)
    model = zfkit.wrap_model(net, mean=110, scale=0.02, input_size=32, classes=classes)
    images = ImageSet(
        lambda i: (Image.fromarray(np.random.default_rng(i).integers(0, 256, (36, 36, 3), np.uint8)), i % 7),
        [str(i) for i in range(23)], size=36, classes=classes,
    ).in_memory(False)  # fmt: skip
    top1 = top5 = loss = 0.0
    for i in range(23):
        pixels, label = images[i]
        views = [pixels[:, 2:34, 2:34]]
        if crops == 10:
            corners = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
            views = [pixels[:, a : a + 32, b : b + 32] for a, b in corners]
            views += [v.flip(2) for v in views]
        p = torch.stack([net((v[None].float() - 110) * 0.02).softmax(1)[0] for v in views]).mean(0)
        ranked = sorted(range(7), key=lambda c: -p[c].item())
        top1, top5, loss = (
            top1 + (ranked[0] == label),
            top5 + (label in ranked[:5]),
            loss - p[label].log().item(),
        )
    found = evaluate(model, images, crops=crops, batch_size=5)
    assert (found.top1, found.top5, found.count) == (
        pytest.approx(100 * top1 / 23),
        pytest.approx(100 * top5 / 23),
        23,
    )
    assert found.loss == pytest.approx(loss / 23, rel=1e-4)


# ------------------------------------------------------------------------------------------- never lose a run


def test_a_run_leaves_snapshots_history_and_provenance(tmp_path, data):
    run = fit(TINY, *data, replace(QUICK, lr=0.02), tmp_path / "run", progress=False, device="cpu")
    assert list(run.snapshots) == [0, 1, 3]  # those asked for, and the last
    assert run.history.epoch.tolist() == [1, 2, 3]
    trained = zfkit.load_model(tmp_path / "run" / "model.safetensors")
    assert trained.classes == ("red", "green", "blue") and trained.provenance["epochs"] == 3
    assert trained.provenance["top1"] == round(run.history.top1.iloc[-1], 1)
    assert trained.provenance["recipe"]["lr"] == 0.02 and len(trained.provenance["history"]) == 3
    # the same numbers out of the file as at the end of training, but for half precision
    assert evaluate(trained, data[1]).loss == pytest.approx(run.history.val_loss.iloc[-1], rel=0.02)
    start = run.model(epoch=0)
    assert start.provenance["epoch"] == 0 and start.provenance["top1"] is None
    with pytest.raises(zfkit.errors.TrainingError, match=r"epoch 2 was not kept; there are: 0, 1, 3"):
        run.model(epoch=2)


def test_the_same_command_goes_on_to_the_same_weights(tmp_path, data):
    whole = fit(TINY, *data, replace(QUICK, epochs=4), tmp_path / "whole", progress=False, device="cpu")
    fit(TINY, *data, replace(QUICK, epochs=2), tmp_path / "parts", progress=False, device="cpu")
    parts = fit(TINY, *data, replace(QUICK, epochs=4), tmp_path / "parts", progress=False, device="cpu")
    assert same(weights_of(whole), weights_of(parts))
    columns = ["epoch", "lr", "loss", "val_loss", "top1", "top5", "dominance"]
    assert whole.history[columns].equals(parts.history[columns])


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_training import *
recipe = replace(QUICK, epochs=6, dropout=0.5)
print("ready", flush=True)
fit(TINY, coloured(64), coloured(24, seed=1), recipe, sys.argv[1], save_every=2, progress=False, device="cpu",
    watch=lambda w: (print("epoch", w.epoch, flush=True), time.sleep(float(sys.argv[2]))))
print("done", flush=True)
"""


def start(folder: Path, pause: float = 0.0, **options) -> subprocess.Popen:
    code = SCRIPT.format(tests=str(Path(__file__).parents[1]))
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(folder), str(pause)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **options
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    out, told = start(folder).communicate(timeout=300)
    assert "done" in out, told
    return weights_of(zfkit.Run(folder))


def test_killed_again_and_again_it_ends_with_the_same_weights(tmp_path, undisturbed):
    kills = 0
    for seed in range(3):
        process = start(tmp_path / "run", pause=0.05)
        seen = process.stdout.readline()
        while "epoch" not in seen and seen:
            seen = process.stdout.readline()
        time.sleep(float(np.random.default_rng(seed).uniform(0, 0.25)))  # in the middle of whatever it does
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    process = start(tmp_path / "run")
    out, told = process.communicate(timeout=300)
    assert "done" in out, told
    assert kills >= 2
    assert same(weights_of(zfkit.Run(tmp_path / "run")), undisturbed)
    assert not list((tmp_path / "run").glob(".*.safetensors"))  # nothing half written is left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(number, tmp_path, undisturbed):
    process = start(tmp_path / "run", pause=0.1)
    while "epoch 1" not in process.stdout.readline():
        pass
    process.send_signal(number)
    out, told = process.communicate(timeout=300)
    assert "done" not in out and "the same command goes on from there" in told
    out, told = start(tmp_path / "run").communicate(timeout=300)
    assert "epoch 0\n" not in out and "done" in out, told  # it did not begin again
    assert same(weights_of(zfkit.Run(tmp_path / "run")), undisturbed)


def test_a_damaged_state_falls_back_to_the_one_before(tmp_path, data):
    recipe = replace(QUICK, epochs=4)
    whole = weights_of(fit(TINY, *data, recipe, tmp_path / "run", progress=False, device="cpu"))
    state = tmp_path / "run" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:200])
    again = fit(TINY, *data, recipe, tmp_path / "run", progress=False, device="cpu")
    assert same(weights_of(again), whole)
    for name in ("state.safetensors", "state.previous.safetensors"):
        (tmp_path / "run" / name).write_bytes(b"nothing")
    with pytest.raises(zfkit.errors.TrainingError, match=r"no state in .* can be read"):
        fit(TINY, *data, recipe, tmp_path / "run", progress=False, device="cpu")


def test_another_run_is_not_overwritten(tmp_path, data):
    fit(TINY, *data, QUICK, tmp_path / "run", progress=False, device="cpu")
    for other, told in [
        (replace(QUICK, lr=0.5), "lr was 0.01 and is now 0.5"),
        (replace(QUICK, epochs=2), "at epoch 3 already, beyond the 2"),
    ]:
        with pytest.raises(zfkit.errors.TrainingError, match=told):
            fit(TINY, *data, other, tmp_path / "run", progress=False, device="cpu")
    with pytest.raises(zfkit.errors.TrainingError, match="hidden was 8 and is now 9"):
        fit(replace(TINY, hidden=9), *data, QUICK, tmp_path / "run", progress=False, device="cpu")
    with pytest.raises(zfkit.errors.TrainingError, match="fingerprint was"):
        fit(TINY, coloured(41), data[1], QUICK, tmp_path / "run", progress=False, device="cpu")


def test_a_second_process_is_kept_out(tmp_path, data):
    first = start(tmp_path / "run", pause=3)
    while "epoch 0" not in first.stdout.readline():
        pass
    writing = (
        tmp_path / "run" / ".state.safetensors.a1b2.safetensors"
    )  # what the first may be writing just now
    writing.touch()
    with pytest.raises(zfkit.errors.TrainingError, match="another process is training into"):
        fit(TINY, *data, QUICK, tmp_path / "run", progress=False, device="cpu")
    assert writing.exists()
    first.kill()
    first.communicate()


def test_weights_that_run_away_stop_training_and_keep_what_was_there(tmp_path, data):
    with pytest.raises(
        zfkit.errors.TrainingError,
        match=r"in epoch 1 and .* at lr 1000: the weights ran away. Use a smaller lr",
    ):
        fit(TINY, *data, replace(QUICK, lr=1000.0), tmp_path / "run", progress=False, device="cpu")
    kept = weights_of(zfkit.Run(tmp_path / "run"))
    assert all(t.isfinite().all() for t in kept.values())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"inputs": "std", "init": "paper"}, r"inputs look std-scaled \(standard deviation 1\)"),
        ({"lr": 1e-6, "init": "paper", "inputs": "mean"}, "lr 1e-06 is too small"),
    ],
)
def test_a_flat_loss_is_diagnosed_in_words(changes, told, data):
    recipe = replace(QUICK, epochs=5, flat_epochs=3, flat_steps=10, **changes)
    with pytest.raises(zfkit.errors.TrainingError, match=told) as raised:
        fit(TINY, *data, recipe, progress=False, device="cpu")
    assert "stayed at 1.10, that of guessing among 3 classes (ln 3" in str(raised.value)


# ----------------------------------------------------------------------------------------- many processes


def test_two_processes_train_as_one_does(tmp_path):
    """Same global batch, same chances, dropout on: the weights differ by rounding only."""
    code = SCRIPT.format(tests=str(Path(__file__).parents[1])).replace("save_every=2, ", "")
    script = tmp_path / "job.py"
    script.write_text(code)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    for command, name in (([sys.executable], "one"), (launch, "two")):
        told = subprocess.run([*command, str(script), str(tmp_path / name), "0"], env=env, capture_output=True,
                              text=True, timeout=300)  # fmt: skip
        assert told.returncode == 0, told.stderr[-2000:]
    one, two = (zfkit.Run(tmp_path / name) for name in ("one", "two"))
    a, b = weights_of(one), weights_of(two)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(one.history.loss, two.history.loss, rtol=1e-4)
    np.testing.assert_allclose(one.history.val_loss, two.history.val_loss, rtol=1e-3)


def shards(folder: Path, count: int, files: int, rows: int) -> str:
    """Parquet shards as Hugging Face writes ImageNet: encoded pictures, labels, row groups."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    images = coloured(count, 40)
    for f in range(files):
        part = range(f * count // files, (f + 1) * count // files)
        encoded = []
        for i in part:
            buffer = io.BytesIO()
            Image.fromarray(images[i][0].permute(1, 2, 0).numpy()).save(buffer, "PNG")
            encoded.append({"bytes": buffer.getvalue(), "path": f"{i}.png"})
        table = pa.table({"image": encoded, "label": [images[i][1] for i in part]})
        pq.write_table(table, folder / f"train-{f:05d}.parquet", row_group_size=rows)
    return f"parquet:{folder}/train-*.parquet"


def test_shards_stream_to_the_weights_of_the_same_pictures_in_memory(tmp_path):
    images = zfkit.load_images(shards(tmp_path, 48, 3, 4), size=40, progress=False)
    streamed = parquet(f"{tmp_path}/train-*.parquet", 40)
    assert streamed.labels is None and streamed.known_labels().tolist() == [i % 3 for i in range(48)]
    val = coloured(24, 40, seed=1)
    val.classes = ()
    recipe = replace(QUICK, epochs=2)
    kept = {}
    for workers in (0, 2):
        run = fit(
            TINY,
            streamed,
            val,
            recipe,
            tmp_path / str(workers),
            workers=workers,
            progress=False,
            device="cpu",
        )
        kept[workers] = weights_of(run)
    assert same(kept[0], kept[2])  # whatever the number of readers
    memory = fit(TINY, images, val, recipe, tmp_path / "memory", progress=False, device="cpu")
    assert images.labels is not None and not same(kept[0], weights_of(memory))  # another order: blocks
    streamed.blocks = None
    run = fit(TINY, streamed, val, recipe, tmp_path / "unordered", workers=2, progress=False, device="cpu")
    assert same(weights_of(run), weights_of(memory))
    streamed.blocks = torch.arange(0, 48, 4)
    plan = _Plan.make(TINY, streamed, val, recipe, None)
    assert plan.blocks.tolist() == list(range(0, 48, 4))


def test_names_of_a_million_rows_take_no_room():
    names = RowNames([f"train-{f:05d}.parquet" for f in range(300)], [4271] * 300)
    assert len(names) == 1_281_300
    assert names[0] == "train-00000.parquet row 0" and names[4271] == "train-00001.parquet row 0"
    assert names[-1] == "train-00299.parquet row 4270"
    assert len(names[:5000]) == 5000 and names[:5000][4999] == names[4999]
    assert names._ends.nbytes < 3000  # eight bytes a file


# -------------------------------------------------------------------------------------------- bad input


def labelled(count: int, labels: list[int], classes: tuple[str, ...] = (), size: int = 32) -> ImageSet:
    read = lambda i: (Image.new("RGB", (size, size), COLOURS[i % 3]), labels[i % len(labels)])  # noqa: E731
    return ImageSet(
        read, [str(i) for i in range(count)], size=size, source="mine", classes=classes
    ).in_memory(False)


@pytest.mark.parametrize(
    ("train", "val", "told"),
    [
        (labelled(8, [-1]), labelled(8, [0, 1]), "8 of 8 training pictures of 'mine' have no label"),
        (labelled(8, [0, 1]), labelled(8, [0, -1]), "4 of 8 validation pictures"),
        (labelled(8, [0, 2], ("a", "b", "c")), labelled(8, [0]), r"1 of 3 classes have no training picture \(b\)"),
        (labelled(8, [0, 3], ("a", "b")), labelled(8, [0]), "a training label is 3, and there are 2 classes: 0 to 1"),
        (labelled(8, [0, 1]), labelled(8, [5]), "a validation label is 5"),
        (labelled(8, [0]), labelled(8, [0]), "one class only"),
        (labelled(8, [0, 1], size=16), labelled(8, [0, 1], size=16), "are 16 px and the network takes 32.*size=32"),
        (labelled(8, [0, 1], size=40), labelled(8, [0, 1]), "training pictures are 40 px and validation 32"),
        (labelled(8, [0, 1], ("a", "b")), labelled(8, [0, 1], ("b", "a")), "must be the same, in the same order"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_trained_on_are_refused_before_the_first_step(train, val, told, tmp_path):
    with pytest.raises(zfkit.errors.TrainingError, match=told):
        fit(TINY, train, val, QUICK, tmp_path / "run", progress=False, device="cpu")
    assert not (tmp_path / "run").exists()


def test_no_pictures_at_all(data):
    nothing = ImageSet(lambda i: None, [], size=32, source="mine")
    with pytest.raises(zfkit.errors.TrainingError, match="'mine' holds no pictures to use for training"):
        fit(TINY, nothing, data[1], QUICK, progress=False)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, data):
    (tmp_path / "file").write_text("")
    with pytest.raises(zfkit.errors.TrainingError, match=r"cannot write into .*: give a folder"):
        fit(TINY, *data, QUICK, tmp_path / "file" / "run", progress=False, device="cpu")


def test_a_full_disk_is_known_before(tmp_path, data, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(
        zfkit.errors.TrainingError, match=r"needs up to .* MB .* 0 MB are free: make room, or keep fewer"
    ):
        fit(TINY, *data, QUICK, tmp_path / "run", progress=False, device="cpu")


def test_names_that_do_not_exist(data):
    with pytest.raises(
        zfkit.errors.TrainingError, match=r"there is no architecture 'zfnet46'\. Did you mean 'zfnet64'"
    ):
        fit("zfnet46", *data, QUICK, progress=False)
    with pytest.raises(zfkit.errors.TrainingError, match="there is no device 'tpu9'"):
        fit(TINY, *data, QUICK, progress=False, device="tpu9")
    assert set(RECIPES) == {"paper", "he"}


def test_the_command_trains_and_says_where_things_are(tmp_path, capsys):
    from zfkit.cli import main

    options = [
        "--images",
        "textures",
        "--limit",
        "64",
        "--epochs",
        "1",
        "--batch-size",
        "32",
        "--device",
        "cpu",
    ]
    code = main(
        [
            "train",
            *options,
            "--widths",
            "2",
            "3",
            "3",
            "3",
            "2",
            "--hidden",
            "4",
            "--out",
            str(tmp_path / "r"),
        ]
    )
    told = capsys.readouterr().out
    assert code == 0 and "top-1 / top-5" in told and "mean of ten crops" in told
    model = zfkit.load_model(tmp_path / "r" / "model.safetensors")
    assert model.net.conv1.weight.shape == (2, 3, 7, 7) and len(model.classes) == 16
    assert main(["train", "--images", f"folder:{tmp_path}", "--device", "cpu"]) == 2
    assert "--val" in capsys.readouterr().err


def test_draws_can_be_cut():
    draws = draw(10, Geometry(4, 4), 0, 1)
    assert isinstance(draws[2:5], Draws) and torch.equal(draws[2:5].index, draws.index[2:5])
