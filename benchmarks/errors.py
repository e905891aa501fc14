"""How exact `zfkit.project` is: network by network, rule by rule, in double and in single precision.

.venv/bin/python benchmarks/errors.py [NETWORK ...] [--layers 10] [--side 224] [--device cpu]

The truth is autograd on the same network, with `torch.nn.functional.relu` replaced by a ReLU that goes back
by the rule. An error is the largest difference over the largest value of the truth's picture; what is
printed is the largest over layers spread evenly from the first to the classes, at the maximum of the
layer's most active map on one photograph.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import platform
from collections.abc import Iterator
from typing import Any, get_args
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zfkit
from zfkit.deconv.rules import Rule

NETWORKS = (
    "alexnet", "vgg11", "vgg16", "vgg16_bn", "squeezenet1_1", "googlenet", "resnet18", "resnet50", "densenet121",
    "mobilenet_v2",
)  # fmt: skip
RULES: tuple[Rule, ...] = get_args(Rule)


class RuledReLU(torch.autograd.Function):
    """ReLU, up to `limit`, with the backward pass of one of the rules."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rule, limit: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rule, ctx.limit = rule, limit
        return x.clamp(0, limit)

    @staticmethod
    def backward(ctx: Any, R: Tensor) -> tuple[Tensor, None, None]:
        if ctx.rule != "gradient":
            R = R.clamp(min=0)
        (x,) = ctx.saved_tensors
        return (R if ctx.rule == "deconvnet" else R * ((x > 0) & (x < ctx.limit))), None, None


@contextlib.contextmanager
def relus_of(rule: Rule) -> Iterator[None]:
    """Every ReLU and ReLU6 called in here, as a module or as a function, goes back by this rule."""

    def relu(x: Tensor, inplace: bool = False) -> Tensor:
        y: Tensor = RuledReLU.apply(x, rule, math.inf)
        return y

    def relu6(x: Tensor, low: float = 0, high: float = 6, inplace: bool = False) -> Tensor:
        y: Tensor = RuledReLU.apply(x, rule, high)
        return y

    with mock.patch.multiple(F, relu=relu, hardtanh=relu6):
        yield


def outputs_of(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What every layer gives; the second use of a module is called NAME_1."""
    outputs: dict[str, Tensor] = {}
    uses: dict[str, int] = {}
    hooks = []
    for name, module in net.named_modules():
        if not any(module.children()):

            def keep(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                number = uses[name] = uses.get(name, -1) + 1
                outputs[f"{name}_{number}" if number else name] = (
                    output.clone()
                )  # later steps may overwrite it

            hooks.append(module.register_forward_hook(keep))
    try:
        net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def load(name: str, side: int, device: str) -> tuple[zfkit.VisionModel, Tensor]:
    """The network, torchvision's with random weights, batch norms as if trained, and one photograph, in float64."""
    if name == "zfnet64":
        model = zfkit.load_model(name, device=device)
    else:
        model = zfkit.load_model(f"torchvision:{name}", weights=None, device=device)
    model.net.double()
    photos = model.preprocess(zfkit.load_images("photos", size=side, progress=False).take([0, 40, 80, 120]))
    torch.manual_seed(0)
    norms = [m for m in model.net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        if norms:
            model.net.train()(photos)
            model.net.eval()
        for norm in norms:
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean += 0.3 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt()
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)
    return model, photos[:1]


def spread(layers: tuple[str, ...], count: int) -> list[str]:
    """So many of the layers, evenly from the first to the last."""
    count = min(count, len(layers))
    return [layers[round(i * (len(layers) - 1) / max(1, count - 1))] for i in range(count)]


def errors(model: zfkit.VisionModel, x: Tensor, rule: Rule, layers: list[str]) -> dict[str, float]:
    """Of each layer, the largest difference from the truth, relative to its largest value."""
    # In the layout that zfkit computes in: the sums of the forward pass are then rounded alike, and no pool
    # of nearly equal values switches, no mask at nearly 0 flips.
    source = x.clone(memory_format=torch.channels_last).requires_grad_(True)
    with relus_of(rule):
        outputs = outputs_of(model.net, source * 1)
    found = {}
    for layer in layers:
        maps = outputs[layer]
        unit = [int(i) for i in torch.unravel_index(maps.detach().argmax(), maps.shape)]
        (truth,) = torch.autograd.grad(maps[tuple(unit)], source, retain_graph=True)
        position = [unit[2:]] if maps.dim() == 4 else None
        pixels = zfkit.project(model, x, layer, unit[1], position, rule=rule, lrn="gradient")
        largest = truth.abs().max()
        found[layer] = float((pixels - truth).abs().max() / largest) if largest else float(pixels.abs().max())
    return found


def main() -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="names of torchvision's")
    parser.add_argument("--layers", type=int, default=10, help="how many of each network")
    parser.add_argument("--side", type=int, default=224, help="of the photograph, in pixels")
    parser.add_argument("--device", default="cpu")
    told = parser.parse_args()
    print(
        f"{told.layers} layers of each network, one photograph of {told.side} px, random weights; "
        f"torch {torch.__version__} on {told.device} ({platform.machine()})\n"
    )
    print(
        "| network | " + " | ".join(f"{rule}, {p}" for p in ("float64", "float32") for rule in RULES) + " |"
    )
    print("|---|" + "---|" * 6)
    for name in told.networks:
        model, x = load(name, told.side, told.device)
        layers = spread(model.layers, told.layers)
        row = []
        for dtype in (torch.float64, torch.float32):
            model.net.to(dtype)
            row += [max(errors(model, x.to(dtype), rule, layers).values()) for rule in RULES]
        print(f"| {name} | " + " | ".join(f"{error:.0e}" for error in row) + " |", flush=True)


if __name__ == "__main__":
    main()
