"""The network before training: the recipe's initial weights, and two of its layers as training wants them.

`Dropout` is given its mask, so that chance does not depend on the number of processes. `ContrastNorm` is
`nn.LocalResponseNorm` with its gradient written out: torch's goes through a three-dimensional average pool and
takes a quarter of a training step on a CPU. In evaluation both are torch's own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nets.paper import ARCHITECTURES, Architecture, build
from .recipe import Recipe


def untrained(architecture: Architecture, recipe: Recipe) -> nn.Module:
    """The network with the recipe's initial weights, its dropout, and the layers of this file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.random_seed)
        net = build(architecture)
        width = 0
        for name, module in list(net.named_children()):
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, 0, _initial_std(architecture, recipe, name, module))
            if isinstance(module, nn.Linear):
                width = module.out_features
            if isinstance(module, nn.Dropout):
                setattr(net, name, Dropout(recipe.dropout, width))
            if isinstance(module, nn.LocalResponseNorm):
                setattr(net, name, ContrastNorm(module.size, module.alpha, module.beta, module.k))
    return net


def _initial_std(
    architecture: Architecture, recipe: Recipe, name: str, module: nn.Conv2d | nn.Linear
) -> float:
    """Standard deviation that the weights of a layer start with; see `Recipe.init`."""
    inputs = module.weight[0].numel()
    if recipe.init == "he":
        return math.sqrt(2 / inputs)
    paper = ARCHITECTURES.get(f"{architecture.family}{architecture.input_size}", architecture)
    with torch.device("meta"):
        wide = dict(build(paper).named_children()).get(name)
    if not isinstance(wide, nn.Conv2d | nn.Linear):
        return 0.01
    return 0.01 * math.sqrt(max(1.0, wide.weight[0].numel() / inputs))


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


class _Normalise(torch.autograd.Function):
    """y = x s^-beta, s = k + a box(x^2).  dL/dx = g s^-beta - 2 a beta x box'(g y / s), g = dL/dy.

    box' is the adjoint of the box sum: the box reversed, which for an odd size is the same.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, a: float, beta: float, k: float) -> Tensor:
        s = _box(x.square(), size, size // 2).mul_(a).add_(k)
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
        shared = _box(g * x * factor / s, size, size - 1 - size // 2)
        return g * factor - (2 * a * beta) * x * shared, None, None, None, None


def _box(t: Tensor, size: int, before: int) -> Tensor:
    """Sum over `size` neighbouring maps of (N, C, H, W), `before` of them lower; past the ends there is nothing."""
    padded = F.pad(t, (0, 0, 0, 0, before, size - 1 - before))
    total = padded.narrow(1, 0, t.shape[1]).clone()
    for i in range(1, size):
        total += padded.narrow(1, i, t.shape[1])
    return total
