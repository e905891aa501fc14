"""Two layers of the paper's networks as training wants them; in evaluation they are torch's own.

`Dropout` is told its mask, so that chance does not depend on the number of processes. `ContrastNorm` is
`nn.LocalResponseNorm` with its gradient written out: torch's goes through a three-dimensional average pool and
takes a quarter of a training step on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Dropout whose mask is drawn outside: for the whole batch, from a generator, whatever the process count."""

    def __init__(self, p: float, width: int) -> None:
        super().__init__(p)
        self.width = width
        self.mask = torch.ones(1)  # no buffer: DDP would hand every process the first one's

    def draw(self, batch: int, share: slice, chance: torch.Generator) -> None:
        """Draw the next mask: (batch, width), of which this process takes the rows `share`."""
        keep = torch.empty(batch, self.width, device=chance.device).bernoulli_(1 - self.p, generator=chance)
        self.mask = keep[share] / (1 - self.p)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width) -> (n, width); in evaluation x itself."""
        return x * self.mask if self.training and self.p else x


class ContrastNorm(nn.LocalResponseNorm):
    """Normalisation across maps, y = x (k + alpha / n * sum of x^2 over n neighbouring maps)^-beta."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if not self.training:
            return super().forward(x)
        y: Tensor = _Normalise.apply(x, self.size, self.alpha / self.size, self.beta, self.k)
        return y


def _neighbours(t: Tensor, size: int, before: int) -> Tensor:
    """Sum over `size` neighbouring maps of (N, C, H, W), `before` of them lower; past the ends there is nothing."""
    padded = F.pad(t, (0, 0, 0, 0, before, size - 1 - before))
    total = padded.narrow(1, 0, t.shape[1]).clone()
    for i in range(1, size):
        total += padded.narrow(1, i, t.shape[1])
    return total


class _Normalise(torch.autograd.Function):
    """y = x s^-beta, s = k + a box(x^2).  dL/dx = g s^-beta - 2 a beta x box'(g y / s), g = dL/dy.

    box' is the adjoint of the box sum: the box reversed, which for an odd size is the same.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, a: float, beta: float, k: float) -> Tensor:
        s = _neighbours(x.square(), size, size // 2).mul_(a).add_(k)
        if beta == 0.75:  # two square roots cost a fifth of a power
            root = s.rsqrt()
            factor = root * root.sqrt()
        else:
            factor = s.pow(-beta)
        ctx.save_for_backward(x, s, factor)
        ctx.numbers = size, a, beta
        return x * factor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        x, s, factor = ctx.saved_tensors
        size, a, beta = ctx.numbers
        shared = _neighbours(g * x * factor / s, size, size - 1 - size // 2)
        return g * factor - (2 * a * beta) * x * shared, None, None, None, None
