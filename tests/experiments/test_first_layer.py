"""Kernel, stride and blur apart: the networks, the numbers of one, and which factor moves what."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tiny import TINY
from torch import nn

import zfkit
from zfkit.errors import ModelError, ZfkitError
from zfkit.experiments.first_layer import (
    CELLS,
    MEASURES,
    FirstLayerRuns,
    factorial_effects,
    first_layer,
    load_first_layer_runs,
    measure_first_layer,
)
from zfkit.nets.paper import ARCHITECTURES

FACTORS = {"kernel": (11, 7), "stride": (4, 2)}


# ------------------------------------------------------------------------------------------- the networks


def test_two_of_the_cells_are_the_papers_networks():
    for suffix in ("64-narrow", "64", "224"):
        network = f"zfnet{suffix}"
        assert first_layer(7, 2, network=network) == ARCHITECTURES[network]
        assert first_layer(11, 4, network=network) == ARCHITECTURES[f"alexnet{suffix}"]


@pytest.mark.parametrize("network", ["zfnet64-narrow", "zfnet224"])
def test_everything_behind_is_equal(network):
    sides, above, strides = {}, {}, set()
    for kernel, stride, blur in CELLS:
        with torch.device("meta"):
            net = zfkit.nets.build(first_layer(kernel, stride, blur, network))
            x, side = torch.empty(1, 3, net.architecture.input_size, net.architecture.input_size), {}
            for name, layer in net.named_children():
                if not isinstance(layer, nn.LocalResponseNorm):
                    x = layer(x)
                side[name] = tuple(x.shape[1:])
        sides[kernel, stride, blur] = side
        behind = {n: p.shape for n, p in net.named_parameters() if n != "conv1.weight"}
        above[kernel, stride, blur] = behind
        if not blur:
            chain = [net.conv1, net.pool1, net.conv2, net.pool2]
            steps = [s if isinstance(s, int) else s[0] for s in (m.stride for m in chain)]
            strides.add(math.prod(steps))
    first = sides[7, 2, False]
    for cell, side in sides.items():
        assert above[cell] == above[7, 2, False]
        for name in ("conv3", "conv4", "conv5", "flatten", "fc6"):
            assert side[name] == first[name], (cell, name)
        mate = sides[18 - cell[0], cell[1], cell[2]]  # the other kernel
        assert side == mate
    assert strides == {8} if network.startswith("zfnet64") else strides == {16}


def test_both_kernels_look_at_the_same_places():
    centres = {}
    for kernel, stride in itertools.product((7, 11), (2, 4)):
        net = zfkit.nets.build(replace(first_layer(kernel, stride), classes=4))
        model = zfkit.wrap_model(net, mean=0.0, scale=1.0, input_size=64)
        field = zfkit.receptive_field(model, "conv1")
        assert (field.size, field.stride) == (kernel, stride)
        centres[kernel, stride] = field.offset + (kernel - 1) / 2
    assert centres[7, 2] == centres[11, 2] == 2
    assert centres[7, 4] == centres[11, 4] == 3


@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (11, 2), (7, 4), (11, 4)])
def test_all_start_alike(kernel, stride, tmp_path):
    """The recipe's start has a standard deviation of 0.01 in conv1, and in each later layer the same one."""
    train = zfkit.load_images("textures", split="train", limit=32, progress=False)
    recipe = zfkit.Recipe(epochs=1, batch_size=32, snapshots=(0,))
    run = zfkit.fit(first_layer(kernel, stride), train, train, recipe, tmp_path / "run", progress=False)
    state = run.model(0).net.state_dict()
    assert float(state["conv1.weight"].std()) == pytest.approx(0.01, rel=0.06)
    assert float(state["conv2.weight"].std()) == pytest.approx(0.02, rel=0.02)  # root of 96 over 24 inputs
    assert float(state["fc6.weight"].std()) == pytest.approx(0.01 * math.sqrt(256 / 48), rel=0.02)


@pytest.mark.parametrize("arguments, told", [
    ((7, 3), "stride must be 2 or 4, not 3"),
    ((8, 2), "kernel must be odd and at least 5 px with stride 2, not 8"),
    ((5, 4), "at least 7 px with stride 4, not 5"), (("7", 2), "not '7'"),
    ((7, 2, False, "alexnet64"), "zfnet64"),
])  # fmt: skip
def test_other_networks_are_refused(arguments, told):
    with pytest.raises(ModelError, match=told):
        first_layer(*arguments)


# --------------------------------------------------------------------------------------- the numbers of one


def tiny_model(blur: int = 0):
    torch.manual_seed(0)
    net = zfkit.nets.build(replace(TINY, blur=blur, classes=16))
    for parameter in net.parameters():  # the paper's start is too faint to leave anything at the end
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0, math.sqrt(2 / parameter[0].numel()))
    return zfkit.wrap_model(net.double().eval(), mean=127.5, scale=1 / 64, input_size=32)


@pytest.fixture(scope="module")
def pictures():
    """16 labelled pictures as the network takes them, and 12 that leave room for a shift by 4 px."""
    return [zfkit.load_images("textures", size=s, limit=n, progress=False) for s, n in ((32, 16), (36, 12))]


@pytest.mark.parametrize("blur", [0, 3])
def test_numbers_against_a_literal_reading(blur, pictures):
    model, (images, larger) = tiny_model(blur), pictures
    with torch.no_grad():
        model.net.conv1.weight[1] *= 1e-4  # weak
        model.net.conv1.bias[2] = -1e9  # dead
    found = measure_first_layer(model, images, larger, shifts=4)

    assert found["weak"] == found["dead"] == 1 / 4
    # shares of energy, from a Fourier transform of each filter
    f = torch.fft.fftfreq(64, dtype=torch.float64)
    power = torch.fft.fft2(model.net.conv1.weight.detach(), s=(64, 64)).abs().square().sum(1)
    share = power / power.sum((1, 2), keepdim=True)
    radius = torch.sqrt(f[:, None] ** 2 + f**2)
    middle = (radius >= 1 / 12) & (radius <= 1 / 3)
    beyond = (f.abs()[:, None] > 1 / 4) | (f.abs() > 1 / 4)
    assert found["mid"] == pytest.approx(float(share[:, middle].sum(1).mean()))
    assert found["aliasable"] == pytest.approx(float(share[:, beyond].sum(1).mean()))

    # answers under shifts, from windows cut out one by one
    @torch.no_grad()
    def answers(top, left):
        windows = larger.take(range(12))[:, :, top : top + 32, left : left + 32]
        x = model.preprocess(windows)
        hidden = model.net[: list(dict(model.net.named_children())).index("relu7") + 1](x)
        return model.net(x).argmax(1), hidden

    moved = [[answers(d, 2) for d in range(5)], [answers(2, d) for d in range(5)]]
    kept = torch.tensor([[(m[d][0] == m[0][0]).double().mean() for d in range(1, 5)] for m in moved])
    assert found["agreement"] == pytest.approx(float(kept.mean()))
    assert found["agreement_1"] == pytest.approx(float(kept[:, 0].mean()))
    rms = [[(m[d][1] - m[0][1]).square().mean(1).sqrt().mean() for d in range(1, 5)] for m in moved]
    # the distance to another picture is drawn: it is the same number for both directions and all shifts
    moves = zfkit.shift_consistency(model, larger, 4, layers=["relu7"]).distance[0, :, 1:]
    assert found["distance_last"] == pytest.approx(float(moves.mean()))
    assert (moves / torch.tensor(rms)).std() < 1e-9
    right = (model.net(model.preprocess(images.take(range(16)))).argmax(1) == images.labels).double()
    assert found["top1"] == pytest.approx(100 * float(right.mean()))
    assert 0 < found["folded_gratings"] < 1 and 0 < found["folded_pictures"] < 1


def test_without_larger_pictures_shifts_are_left_out(pictures):
    found = measure_first_layer(tiny_model(), pictures[0])
    assert math.isnan(found["agreement"]) and math.isnan(found["distance_first"])
    assert not math.isnan(found["mid"]) and set(MEASURES) <= set(found)


def test_filters_beyond_the_limit_fold_all_and_filters_below_it_nothing(pictures):
    """A chequerboard passes only what stride 2 folds; a mean over 7x7 pixels next to nothing of that."""
    model, (images, _) = tiny_model(), pictures
    y, x = torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij")
    smooth = torch.outer(*[torch.hann_window(9)[1:-1]] * 2)
    board = torch.where((x + y) % 2 == 0, 1.0, -1.0) * smooth
    smooth = torch.outer(torch.hann_window(9)[1:-1], torch.hann_window(9)[1:-1])
    share = {}
    for name, tile in (("board", board), ("smooth", smooth)):
        with torch.no_grad():
            model.net.conv1.weight.copy_(tile.expand(4, 3, 7, 7))
            model.net.conv1.bias.fill_(1e6)  # the ReLU cuts nothing off, so nothing new arises
        share[name] = measure_first_layer(model, images)
    assert share["board"]["aliasable"] > 0.98 and share["board"]["folded_gratings"] > 0.95
    assert share["smooth"]["aliasable"] < 0.02 and share["smooth"]["folded_gratings"] < 0.05


def test_a_blur_takes_folding_away(pictures):
    plain, blurred = (measure_first_layer(tiny_model(blur), pictures[0]) for blur in (0, 3))
    assert blurred["aliasable"] == pytest.approx(plain["aliasable"])  # the same filters, the same grid
    assert blurred["folded_gratings"] < plain["folded_gratings"]
    assert blurred["folded_pictures"] < plain["folded_pictures"]


def test_a_layer_that_subsamples_nothing_is_refused(pictures):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 16))
    model = zfkit.wrap_model(net, mean=0.0, scale=1.0, input_size=32)
    with pytest.raises(ModelError, match="stride 1 and no blur"):
        measure_first_layer(model, pictures[0])


# -------------------------------------------------------------------------------- which factor moves what


def design(levels, seeds, value):
    """One row for each cell and seed; value(cell, seed) is y."""
    rows = [
        {**dict(zip(levels, cell, strict=True)), "seed": seed, "y": value(cell, seed)}
        for cell in itertools.product(*levels.values())
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def test_worked_example_of_a_two_by_two():
    """By hand: cells 1 3 | 5 11 with seeds -1 and +1, one of the eight numbers off by 2."""
    y = {(11, 4): [0, 2], (11, 2): [2, 4], (7, 4): [4, 6], (7, 2): [10, 14]}
    found = factorial_effects(design(FACTORS, 2, lambda c, s: y[c][s]), FACTORS, ["y"]).loc["y"]
    means = {cell: sum(v) / 2 for cell, v in y.items()}  # 1, 3, 5, 12
    assert found.effect["kernel"] == (means[7, 4] + means[7, 2] - means[11, 4] - means[11, 2]) / 2 == 6.5
    assert found.effect["stride"] == (3 + 12 - 1 - 5) / 2
    assert found.effect["kernel x stride"] == ((12 - 5) - (3 - 1)) / 2
    # differences of seeds are 2 2 2 4: their variance is 1, and that of one run half of it
    assert found.se["kernel"] == pytest.approx(2 * math.sqrt(0.5 / 8))
    reach = stats.t.ppf(0.975, 3) * found.se["kernel"]
    assert found.high["kernel"] - found.effect["kernel"] == pytest.approx(reach)


@given(st.integers(1, 3), st.integers(2, 4), st.integers(0, 2**31))
def test_against_least_squares(k, seeds, seed):
    """The same numbers from a linear model with a column for each effect and each seed."""
    rng = np.random.default_rng(seed)
    levels = {f"f{i}": (0, 1) for i in range(k)}
    y = {(c, s): rng.normal() for c in itertools.product(*levels.values()) for s in range(seeds)}
    table = design(levels, seeds, lambda c, s: y[c, s]).sample(frac=1, random_state=seed % 1000)
    found = factorial_effects(table, levels, ["y"]).loc["y"]

    x = 2 * table[list(levels)].to_numpy() - 1
    names = [c for size in range(1, k + 1) for c in itertools.combinations(range(k), size)]
    columns = [x[:, list(c)].prod(1) / 2 for c in names] + [table.seed == s for s in range(seeds)]
    X = np.stack(columns, 1).astype(float)
    beta, (left,), *_ = np.linalg.lstsq(X, table.y.to_numpy(), rcond=None)
    freedom = len(table) - X.shape[1]
    se = np.sqrt(left / freedom * np.diag(np.linalg.inv(X.T @ X)))
    np.testing.assert_allclose(found.effect, beta[: len(names)], atol=1e-12)
    np.testing.assert_allclose(found.se, se[: len(names)], rtol=1e-9)
    np.testing.assert_allclose(found.p, 2 * stats.t.sf(abs(beta / se)[: len(names)], freedom), rtol=1e-7)


def test_one_factor_is_the_paired_t_test():
    y = {"a": [1.0, 2.5, 2.0], "b": [3.0, 3.5, 5.0]}
    table = design({"data": ("a", "b")}, 3, lambda c, s: y[c[0]][s])
    found = factorial_effects(table, {"data": ("a", "b")}, ["y"]).loc[("y", "data")]
    known = stats.ttest_rel(y["b"], y["a"])
    assert found.p == pytest.approx(known.pvalue)
    low, high = known.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_a_number_that_never_moves_is_not_moved():
    for value in (0.25, 1 / 3, 0.0):  # 1/3 leaves rounding errors
        table = design(FACTORS, 3, lambda c, s, value=value: value + 0.1 * s)
        found = factorial_effects(table, FACTORS, ["y"])
        assert not found.moves.any() and (found.p == 1).all() and (found.effect == 0).all()


def test_a_nan_is_told():
    table = design(FACTORS, 2, lambda c, s: math.nan if s and c == (7, 2) else 1.0)
    found = factorial_effects(table, FACTORS, ["y"])
    assert found.effect.isna().all() and not found.moves.any()


@pytest.mark.parametrize("change, told", [
    (lambda t: t.drop(0), "kernel 11, stride 4, seed 0: 0 runs"),
    (lambda t: pd.concat([t, t[:1]]), "kernel 11, stride 4, seed 0: 2 runs"),
    (lambda t: t[t.seed == 0], "one seed only"), (lambda t: t.rename(columns={"y": "z"}), "no column 'y'"),
])  # fmt: skip
def test_tables_that_are_no_design_are_refused(change, told):
    with pytest.raises(ZfkitError, match=told):
        factorial_effects(change(design(FACTORS, 3, lambda c, s: 1.0)), FACTORS, ["y"])


# --------------------------------------------------------------------------------------------- all the runs


def test_the_runs_that_come_along():
    runs = load_first_layer_runs()
    plain = runs.table[runs.table.images == "textures"]
    counts = plain.groupby(["kernel", "stride", "blur"]).seed.agg(["nunique", "count"])
    assert len(counts) >= 6 and (counts == 3).all(axis=None)
    assert set(runs.table.images) == {"textures", "textures:no-middle"}
    for weight, row in zip(runs.weights, runs.table.to_dict("records"), strict=True):
        assert weight.shape == (24, 3, row["kernel"], row["kernel"])
        # what the table says of the filters is what the filters that come with it give
        again = zfkit.filter_spectra(weight, stride=row["stride"]).summary()
        for measure in ("mid", "mid_coverage", "aliasable"):
            assert again[measure] == pytest.approx(row[measure], abs=0.01)
    assert (runs.table.top1 > 2 * 100 / 16).all()  # they have learned something
    shares = [m for m in MEASURES if m not in ("top1", "distance_first", "distance_last")]
    assert runs.table[shares].stack().between(0, 1).all()


def test_saved_and_loaded_again(tmp_path):
    runs = load_first_layer_runs()
    again = load_first_layer_runs(runs.save(tmp_path / "kept"))
    pd.testing.assert_frame_equal(again.table, runs.table)
    assert all(torch.equal(a, b) for a, b in zip(again.weights, runs.weights, strict=True))
    assert isinstance(again, FirstLayerRuns) and again.told == runs.told


def test_spectra_are_picked_by_what_runs_have():
    runs = load_first_layer_runs()
    found = runs.spectra(kernel=11, stride=4, blur=False, images="textures")
    assert len(found) == 3 and all(s.stride == (4, 4) and s.weight.shape[-1] == 11 for s in found)
    with pytest.raises(ZfkitError, match="no run has kernel 9"):
        runs.spectra(kernel=9)
    with pytest.raises(ZfkitError, match="kernel"):
        runs.spectra(kernle=7)


def test_folders_without_such_runs_are_refused(tmp_path):
    with pytest.raises(ZfkitError, match=r"there is no .*results.parquet"):
        load_first_layer_runs(tmp_path)
    pd.DataFrame({"run": ["a"], "status": ["finished"]}).to_parquet(tmp_path / "results.parquet")
    with pytest.raises(ZfkitError, match=r"lacks the columns kernel, .* it is no sweep of kernel_or_stride"):
        load_first_layer_runs(tmp_path)


def swept(folder, rows):
    """A folder as `zfkit sweep` leaves it, with networks that hold a first layer alone."""
    table = []
    for i, row in enumerate(rows):
        weight = torch.full((2, 3, row["kernel"], row["kernel"]), float(i + 1))
        net = folder / "networks" / str(i)
        provenance = {"data": "drawn", "epochs": 3}
        zfkit.save_weights(net / "model.safetensors", {"conv1.weight": weight}, provenance)
        numbers = dict.fromkeys((*MEASURES, "mid_start", "mid_coverage_start"), 0.1 * i)
        table.append({"run": str(i), **row, **numbers, "folder": str(net), "status": "finished", "error": ""})
    table[-1]["status"] = "failed"
    pd.DataFrame(table).to_parquet(folder / "results.parquet")


def test_a_sweep_is_read(tmp_path):
    cell = {"kernel": 7, "stride": 2, "blur": False, "images": "textures"}
    swept(tmp_path, [{**cell, "seed": s} for s in range(3)])
    runs = load_first_layer_runs(tmp_path)
    assert runs.table.seed.tolist() == [0, 1] and "folder" not in runs.table and "status" not in runs.table
    assert [float(w[0, 0, 0, 0]) for w in runs.weights] == [1, 2]
    assert runs.told["data"] == "drawn"


def test_a_sweep_whose_networks_are_gone_says_so(tmp_path):
    cell = {"kernel": 7, "stride": 2, "blur": False, "images": "textures"}
    swept(tmp_path, [{**cell, "seed": s} for s in range(2)])
    (tmp_path / "networks" / "0" / "model.safetensors").unlink()
    with pytest.raises(ZfkitError, match="there is no file"):
        load_first_layer_runs(tmp_path)
    table = pd.read_parquet(tmp_path / "results.parquet").assign(folder="")
    table.to_parquet(tmp_path / "results.parquet")
    with pytest.raises(ZfkitError, match="keep"):
        load_first_layer_runs(tmp_path)
    table.assign(status="missing").to_parquet(tmp_path / "results.parquet")
    with pytest.raises(ZfkitError, match="no finished run"):
        load_first_layer_runs(tmp_path)


def test_summary_is_mean_and_standard_deviation():
    table = design({"kernel": (7,), "stride": (4, 2)}, 3, lambda c, s: 0.5 + 0.1 * s + c[1])
    table = table.rename(columns={"y": "mid"})
    runs = FirstLayerRuns(table.assign(blur=False, top1=50.0), (), {})
    found = runs.summary(["mid", "top1"])
    assert found.loc[MEASURES["mid"]].to_dict() == {"7x7 / 2": "2.60 ± 0.10", "7x7 / 4": "4.60 ± 0.10"}
    assert found.loc[MEASURES["top1"], "7x7 / 2"] == "50.0"
    assert list(runs.summary(["mid"], stride=2)) == ["7x7 / 2"]
    with pytest.raises(ZfkitError, match="strid"):
        runs.summary(strid=2)


def test_the_grid_is_the_design():
    """Kernel x stride x blur x seed, and the middle band left out, all with one recipe."""
    from pathlib import Path

    from zfkit.sweeps import plan_sweep

    folder = Path(__file__).resolve().parents[2] / "notebooks"
    grid = folder / "grids" / "kernel_or_stride.ipynb"
    plan = plan_sweep(grid, grid.with_suffix(".yaml"), "nowhere")
    factors = ("kernel", "stride", "blur", "images", "seed")
    cells = {tuple(r.parameters[n] for n in factors) for r in plan.runs}
    wanted = {(*cell, "textures", seed) for cell in CELLS for seed in range(3)}
    assert cells == wanted | {(7, 2, False, "textures:no-middle", seed) for seed in range(3)}
    rest = {tuple(r.parameters[n] for n in ("epochs", "limit", "batch_size", "dropout")) for r in plan.runs}
    assert len(rest) == 1 and len(plan.runs) == 27
