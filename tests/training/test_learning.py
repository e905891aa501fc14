"""The recipe against what the paper says, and a step of training against SGD written out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coloured import QUICK, coloured, train
from hypothesis import given
from hypothesis import strategies as st
from tiny import TINY, image_set
from torch import nn

import zfkit
from zfkit.nets.paper import ARCHITECTURES
from zfkit.training import Recipe, Trainer, TrainingPlan, clip_rms, dominance, generator, make_fabric
from zfkit.training.data import Resident, draw
from zfkit.training.network import ContrastNorm, Dropout, untrained


def test_the_defaults_are_the_papers_and_have_their_reasons():
    r = Recipe()
    assert (r.epochs, r.batch_size, r.lr, r.momentum, r.dropout, r.rms_clip) == (70, 128, 1e-2, 0.9, 0.5, 0.1)
    assert r.weight_decay == 5e-4  # Krizhevsky's: the paper does not say
    assert r.lr_factor == 0.1 and r.snapshots == (0, 1, 2, 5, 10, 20, 30, 40, 64)
    assert r.init == "paper" and r.inputs == "mean"
    table = Recipe.table()
    assert set(table.index) == set(Recipe.__dataclass_fields__)
    assert table["why"].str.len().min() > 10
    assert "unstated" in table.loc["weight_decay", "why"]


@pytest.mark.parametrize("setting, message", [
    ({"lr": -1}, "lr .*at least 0.*not -1"),
    ({"lr": None}, "lr .*not None"),
    ({"epochs": 0}, "epochs .*from 1 to 10000, not 0"),
    ({"epochs": 2.5}, "epochs must be a whole number"),
    ({"dropout": 1.5}, "dropout .*at most 0.99"),
    ({"progress": False}, "progress .*not False"),  # no bar, but a share
    ({"init": "papper"}, "Did you mean 'paper'"),
])  # fmt: skip
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(zfkit.errors.TrainingError, match=message):
        Recipe(**setting)


def test_weights_start_as_the_paper_says():
    architecture = replace(ARCHITECTURES["zfnet64"], input_size=32, hidden=512)
    for parameter in untrained(architecture, Recipe()).parameters():
        n = parameter.numel()
        if parameter.dim() == 1:
            assert not parameter.any()
        else:
            assert parameter.std().item() == pytest.approx(0.01, rel=5 / math.sqrt(n))
            assert abs(parameter.mean().item()) < 5 * 0.01 / math.sqrt(n)


def test_signals_fade_no_faster_in_the_narrow_network_than_in_the_wide_one():
    """What keeps var(W x) is n_in var(W), layer by layer: 0.01^2 times the paper's number of inputs."""
    pair = (untrained(ARCHITECTURES[name], Recipe()) for name in ("zfnet64", "zfnet64-narrow"))
    wide, narrow = (dict(net.named_children()) for net in pair)
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        gains = [net[name].weight.var().item() * net[name].weight[0].numel() for net in (wide, narrow)]
        assert gains[0] == pytest.approx(gains[1], rel=0.15), name


# -------------------------------------------------------------------------------------------------- steps


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.floats(0.01, 2), st.integers(0, 99))
def test_the_clip_is_the_literal_one(maps, inputs, kernel, limit, random_seed):
    torch.manual_seed(random_seed)
    conv, linear = nn.Conv2d(inputs, maps, kernel), nn.Linear(3, 2)
    with torch.no_grad():
        conv.weight *= 3
    before, other = conv.weight.detach().clone(), linear.weight.detach().clone()
    clip_rms(nn.Sequential(conv, linear), None)
    assert torch.equal(conv.weight, before)
    clip_rms(nn.Sequential(conv, linear), limit)
    for old, new in zip(before, conv.weight, strict=True):
        rms = math.sqrt(sum(v * v for v in old.flatten().tolist()) / old.numel())
        torch.testing.assert_close(new, old * (limit / rms) if rms > limit else old)
    assert torch.equal(linear.weight, other)


def test_dominance_is_largest_over_median():
    conv = nn.Conv2d(1, 5, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, 2, 3, 4, 30]).view(5, 1, 1, 1))
    assert dominance(nn.Sequential(conv)) == pytest.approx(10)


@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), st.integers(1, 7), st.sampled_from([0.5, 0.75]),
    st.floats(0.1, 3), st.integers(0, 99),
)  # fmt: skip
def test_contrast_norm_and_its_gradient_are_torchs(n, channels, side, size, beta, alpha, random_seed):
    g = torch.Generator().manual_seed(random_seed)
    x = torch.randn(n, channels, side, side, generator=g, dtype=torch.float64, requires_grad=True)
    up = torch.randn(n, channels, side, side, generator=g, dtype=torch.float64)
    ours, theirs = (kind(size, alpha, beta, 2.0).train() for kind in (ContrastNorm, nn.LocalResponseNorm))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-14)
    a, b = (torch.autograd.grad(layer(x), x, up)[0] for layer in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_step_is_sgd_with_momentum_and_decay_written_out():
    """v <- m v + (g + d w), w <- w - lr v, then the clip; dropout's mask as drawn; biases are not decayed."""
    recipe = replace(QUICK, dropout=0.5, rms_clip=0.3, lr=0.05, weight_decay=0.01)
    images = coloured(40)
    plan = TrainingPlan.make(TINY, images, images, recipe)
    trainer = Trainer(plan, make_fabric("cpu", "64-true"))
    feed = Resident(images, plan.geometry, plan.mean, torch.device("cpu"))
    w = {name: p.detach().clone() for name, p in trainer.net.named_parameters()}
    v = {name: torch.zeros_like(p) for name, p in w.items()}
    draws = draw(40, plan.geometry, recipe.random_seed, 1)
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
    x = (pixels - plan.mean.view(3, 1, 1)) * plan.scale.view(3, 1, 1)  # in float32
    pool = lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True)  # noqa: E731
    norm = lambda x: F.local_response_norm(x, 5, 5e-4, 0.75, 2.0)  # noqa: E731
    x = norm(pool(F.conv2d(x.double(), w["conv1.weight"], w["conv1.bias"], 2, 1).relu()))
    x = norm(pool(F.conv2d(x, w["conv2.weight"], w["conv2.bias"], 1, 2).relu()))
    for n in (3, 4, 5):
        x = F.conv2d(x, w[f"conv{n}.weight"], w[f"conv{n}.bias"], padding=1).relu()
    x = pool(x).flatten(1)
    for n in (6, 7):
        x = F.linear(x, w[f"fc{n}.weight"], w[f"fc{n}.bias"]).relu() * masks[f"drop{n}"]
    return F.linear(x, w["fc8.weight"], w["fc8.bias"])


def test_dropout_masks_are_shared_between_processes():
    def drawn(share):
        drop = Dropout(0.5, 6)
        drop.draw(8, share, generator(1, 2, 3))
        return drop.mask

    whole = drawn(slice(0, 8))
    assert torch.equal(whole, torch.cat([drawn(slice(0, 4)), drawn(slice(4, 8))]))
    assert set(whole.unique().tolist()) == {0.0, 2.0}  # kept units carry what the others would have


# ----------------------------------------------------------------------------------------------- whole runs


def test_the_learning_rate_falls_where_validation_stops_to_improve():
    """No picture can be told from another: top-1 never moves, so lr falls after patience + 1 epochs, and so on."""
    grey = image_set(np.full((16, 32, 32, 3), 128, np.uint8), [0, 1] * 8, ["a", "b"])
    recipe = replace(QUICK, epochs=9, patience=2, inputs="mean", brightness=0.0)
    lr = train(data=(grey, grey), recipe=recipe).history["lr"]
    # The first epoch is the best there is; 2, 3 and 4 are not better, so 5 runs at a tenth, and again.
    np.testing.assert_allclose(lr, [1e-2] * 4 + [1e-3] * 3 + [1e-4] * 2, rtol=1e-6)


@pytest.mark.slow
def test_the_input_scale_is_what_makes_the_papers_start_work():
    """N(0, .01^2) at +-128 starts; with the same inputs divided by their std the loss stays at ln 2."""
    data = coloured(64, 64, 2), coloured(16, 64, 2, random_seed=1)
    recipe = Recipe(epochs=12, batch_size=16, snapshots=(), flat_epochs=0)
    loss = {}
    for inputs in ("mean", "std"):
        run = train(None, replace(recipe, inputs=inputs), data, "zfnet64-narrow")
        loss[inputs] = run.history.loss.iloc[-1]
    assert loss["std"] == pytest.approx(math.log(2), abs=0.01)
    assert loss["mean"] < 0.45


def test_weights_that_run_away_stop_training_and_keep_what_was_there(tmp_path):
    with pytest.raises(zfkit.errors.TrainingError, match=r"in epoch 1 .* at lr 1000: .*Use a smaller lr"):
        train(tmp_path / "run", replace(QUICK, lr=1000.0))
    _, tensors, _ = zfkit.Run(tmp_path / "run").resume()
    assert all(t.isfinite().all() for t in tensors.values())


@pytest.mark.parametrize("changes, message", [
    ({"inputs": "std", "init": "paper"}, r"inputs look std-scaled \(standard deviation 1\)"),
    ({"lr": 1e-6, "init": "paper", "inputs": "mean"}, "lr 1e-06 is too small"),
])  # fmt: skip
def test_a_flat_loss_is_diagnosed_in_words(changes, message):
    recipe = replace(QUICK, epochs=5, flat_epochs=3, flat_steps=10, **changes)
    with pytest.raises(zfkit.errors.TrainingError, match=message) as raised:
        train(recipe=recipe)
    assert "stayed at 1.10, that of guessing among 3 classes (ln 3" in str(raised.value)
