"""Intervals: how far a number would have come out differently by chance."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import number


def interval(values: Tensor, level: float = 0.95) -> Tensor:
    """Between the two rows of the result, (2, ...), lie `level` of the values (draws, ...): their quantiles."""
    level = number(level, "level", 0, 1)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=values.dtype)
    return torch.quantile(values, tails, dim=0)


def bootstrap_sums(values: Tensor, random_seed: int = 0, draws: int = 2000) -> Tensor:
    """Sums of (N, ...) over N rows drawn with replacement, (draws, ...) float64 (Efron 1979)."""
    generator = torch.Generator().manual_seed(random_seed)
    rows = torch.randint(len(values), (draws, len(values)), generator=generator)
    # How often each row was drawn, so that all sums are one product of matrices.
    counts = torch.zeros(rows.shape, dtype=torch.float64)
    counts.scatter_add_(1, rows, torch.ones_like(counts))
    return torch.tensordot(counts, values.double(), 1)
