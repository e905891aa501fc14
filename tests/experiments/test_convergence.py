"""When features settle: CKA against its definition, epochs of known sequences, spread over maps and runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from literal import gram_cka

from zfkit import ZfkitError
from zfkit.experiments.evolution import (
    Evolution,
    LayerEvolution,
    cka,
    convergence,
    settled,
    squared_correlation,
)

# ---------------------------------------------------------------------------------------------- similarity


shapes = st.tuples(st.integers(3, 12), st.integers(1, 15), st.integers(1, 15), st.integers(0, 999))


def draw(n, p, seed):
    return torch.randn(n, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(shapes)
def test_cka_is_normalised_hsic_of_gram_matrices(shape):
    n, p, q, seed = shape
    x, y = draw(n, p, seed) + 3, draw(n, q, seed + 1) - 7
    assert cka(x, y) == pytest.approx(gram_cka(x.numpy(), y.numpy()), rel=1e-8)


def test_one_feature_is_the_squared_correlation():
    x, y = draw(30, 4, 0), draw(30, 4, 1) + 0.5 * draw(30, 4, 0)
    by_column = squared_correlation(x, y)
    for c in range(4):
        expected = np.corrcoef(x[:, c], y[:, c])[0, 1] ** 2
        assert float(by_column[c]) == pytest.approx(expected)
        assert cka(x[:, c : c + 1], y[:, c : c + 1]) == pytest.approx(expected)


def test_what_never_varies_has_no_similarity():
    x, flat = draw(9, 2, 0), torch.ones(9, 2)
    assert cka(flat, x) == 0 and math.isnan(cka(x, flat))
    assert squared_correlation(flat, x).tolist() == [0, 0]
    assert squared_correlation(x, flat).isnan().all()


# --------------------------------------------------------------------------------------- when it settled


@pytest.mark.parametrize(
    "similarity, expected",
    [
        ([0.0, 0.5, 0.8, 1.0], 7.5),  # half-way from .8 at epoch 5 to 1 at 10
        ([0.2, 0.9, 0.95, 1.0], 1.0),  # .9 at epoch 1 itself
        ([0.0, 0.99, 0.7, 1.0], 5 + 5 * 2 / 3),  # it was there before, and left again
        ([0.95, 0.95, 0.99, 1.0], 0.0),  # never below
        ([0.0, 0.0, 0.0, 1.0], 9.5),
        ([0.0, 0.2, 0.3, 0.4], 5 + 5 * 0.6),  # of the last value, whatever that is
        ([0.1, 0.2, 0.3, math.nan], math.nan),
    ],
)
def test_the_epoch_of_a_known_sequence(similarity, expected):
    given = torch.tensor([similarity, similarity], dtype=torch.float64)
    assert settled([0, 1, 5, 10], given, 0.9).tolist() == pytest.approx([expected] * 2, nan_ok=True, abs=1e-6)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=8),
    st.lists(st.integers(1, 9), min_size=9, max_size=9),
    st.floats(0.05, 0.99),
)
def test_the_epoch_is_the_last_crossing_of_the_straight_lines(before, gaps, level):
    values = np.array([*before, 1.0])
    epochs = np.cumsum(gaps[: len(values)])
    fine = np.linspace(epochs[0], epochs[-1], 20_001)
    below = fine[np.interp(fine, epochs, values) < level]
    expected = below[-1] if len(below) else epochs[0]
    step = (epochs[-1] - epochs[0]) / 20_000
    epoch = float(settled(epochs.tolist(), torch.from_numpy(values), level))
    assert expected - 1e-9 <= epoch <= expected + step + 1e-9


def test_a_level_outside_is_refused():
    with pytest.raises(ZfkitError, match=r"above 0 and at most at 1, not be 1\.5"):
        settled([0, 1], torch.tensor([0.0, 1.0]), 1.5)


def made(curves, similarity, epochs=(0, 10, 20), name="made"):
    """An evolution with these CKA by layer, and similarities (C, E) of its maps."""
    layers = {}
    for layer, curve in curves.items():
        s = torch.tensor(similarity[layer], dtype=torch.float64)
        C, E = s.shape
        whole = torch.zeros(C, E, dtype=torch.long)
        layers[layer] = LayerEvolution(
            whole + 1.0, whole, whole, whole, s, torch.tensor(curve).double(), torch.linspace(1, 0, E).double(),
            torch.tensor([0]), torch.zeros(1, E, 3, 4, 4), torch.zeros(1, E, 3, 4, 4, dtype=torch.uint8),
        )  # fmt: skip
    return Evolution(name, "made", 9, tuple(epochs), layers, 9, 1)


def test_convergence_with_spread_over_maps_and_runs():
    maps = {"low": [[0, 1, 1], [0.9, 1, 1], [0, 0.8, 1]], "high": [[0, 0, 1], [math.nan] * 3, [0, 0.8, 1]]}
    first = made({"low": [0.0, 1.0, 1.0], "high": [0.5, 0.8, 1.0]}, maps)
    second = made({"low": [0.8, 1.0, 1.0], "high": [0.0, 0.0, 1.0]}, maps)
    table = convergence([first, second])
    assert table.cka.tolist() == pytest.approx([(9 + 5) / 2, (15 + 19) / 2])
    assert table.cka_low.tolist() == pytest.approx([5, 15])
    assert table.cka_high.tolist() == pytest.approx([9, 19])
    # rise: "low" goes 0 to 1, and .8 to 1; "high" .5 to 1 with .6 of the way at epoch 10, and 0 to 1
    assert table.rise.tolist() == pytest.approx([9, (10 + 10 * 0.75 + 19) / 2])
    assert table.start.tolist() == pytest.approx([0.4, 0.25])
    # each map once for each run: 9, 0, 15 of the first layer, 19 and 15 of the second
    assert table["map"].tolist() == pytest.approx([9, 17])
    assert (table.map_q25 <= table["map"]).all() and (table["map"] <= table.map_q75).all()
    assert table.maps.tolist() == [6, 4] and table.runs.tolist() == [2, 2]
    assert convergence(first).cka.tolist() == pytest.approx([9, 15])


def test_runs_that_do_not_compare_are_refused():
    maps = {"low": [[0, 1, 1]]}
    with pytest.raises(ZfkitError, match=r"other layers or epochs"):
        convergence([made({"low": [0, 1, 1]}, maps), made({"low": [0, 1, 1]}, maps, epochs=(0, 5, 20))])
    with pytest.raises(ZfkitError, match="no run was given"):
        convergence([])
    with pytest.raises(ZfkitError, match="one snapshot, of epoch 7, and nothing to compare it with"):
        convergence(made({"low": [1.0]}, {"low": [[1.0]]}, epochs=(7,)))
