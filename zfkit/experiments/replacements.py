"""Weights and switches that owe nothing to training, or to the picture; for `randomisation`.

How weights are redrawn (`randomise`): "normal" gives N(0, s^2), s the RMS that the layer's weights have, and biases
0. That is the paper's initialisation, N(0, 0.01^2) with biases 0, up to one factor for each layer: convolution, ReLU
and max-pooling pass such a factor on unchanged, so it makes a projection brighter or darker and nothing else (contrast
normalisation, which knows a scale, stays on the trained one). With all layers redrawn this is the untrained network.
"permutation" shuffles the trained weights of a layer among themselves, and its biases: the same numbers, in a
meaningless order.

Switches (`other_switches`, `no_switches`) are those of another picture, or of none: the middle of every pooling window,
or places drawn at random.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..checks import layer_names, one_of, pair, whole_number
from ..deconv.project import Tape
from ..deconv.rules import RULES, Options
from ..errors import LayerError
from ..nets.model import VisionModel, expect_model
from ..training.data import generator

Draw = Literal["normal", "permutation"]
Switches = Literal["centre", "random"]
HELD = 2**27  # bytes of copies, from where on Python is asked to let go of them
_copied = [0]


def weight_layers(model: VisionModel, layer: str) -> tuple[str, ...]:
    """The layers with weights that a unit of `layer` depends on, in order of execution; its own is the last.

    Raises LayerError for an unknown layer, and for one whose weights zfkit does not know how to redraw.
    """
    model.network.find(layer)
    names: dict[int, str] = {}
    for step in model.network.upto([layer]):
        module = step.module
        if module is None or isinstance(module, nn.BatchNorm2d) or not any(True for _ in module.parameters()):
            continue
        if not isinstance(module, nn.Conv2d | nn.Linear):
            raise LayerError(
                f"no rule says how to redraw the weights of {step.operation} (at {step.name!r}); those of Conv2d and "
                "Linear can be"
            )
        names.setdefault(id(module), step.name)  # a module that is used twice is one layer
    if not names:
        raise LayerError(f"there are no weights between the picture and {layer!r}; take a layer further up")
    return tuple(names.values())


def randomise(
    model: VisionModel, layers: str | Sequence[str], *, draw: Draw = "normal", random_seed: int = 0
) -> VisionModel:
    """A copy of the network with the weights of these layers redrawn; the model itself is left alone.

    Args:
        layers: convolutions or fully connected layers.
        draw: "normal", N(0, s^2) with the layer's own RMS s, and biases 0; or "permutation" of its weights and
            of its biases. A batch normalisation right behind the layer is reset (mean 0, variance 1, factor 1,
            offset 0), or its maps are permuted.
        random_seed: of the draw. What a layer gets depends on it and the layer only, not on what else is redrawn.

    Raises LayerError for a layer that is unknown or has no weights to redraw.

    >>> untrained = randomise(model, weight_layers(model, "conv5"))
    """
    one_of(draw, "draw", get_args(Draw))
    whole_number(random_seed, "random_seed", 0)
    network = expect_model(model).network
    able = [n for n, s in network.steps.items() if isinstance(s.module, nn.Conv2d | nn.Linear)]
    names = layer_names(layers, able, [])
    _copied[0] += sum(p.nbytes for p in model.net.parameters())
    if _copied[0] > HELD:
        gc.collect()  # those that nobody holds: their parts refer to one another. Half a second where much is held
        _copied[0] = 0
    net = copy.deepcopy(model.net)
    paths = {id(module): path for path, module in model.net.named_modules()}

    def copied(name: str) -> nn.Module:
        return net.get_submodule(paths[id(network.steps[name].module)])

    for name in names:
        numbers = generator(random_seed, model.network.leaves.index(name))
        _redraw(copied(name), draw, numbers)
        for step in network.steps.values():
            if isinstance(step.module, nn.BatchNorm2d) and step.inputs[0] == name:
                _redraw_norm(copied(step.name), draw, numbers)
    redrawn = names[0] if len(names) == 1 else f"{len(names)} layers"
    return replace(model, net=net, name=f"{model.name}, {redrawn} redrawn", _traced=[])


@torch.no_grad()
def _redraw(module: nn.Module, draw: Draw, numbers: torch.Generator) -> None:
    for parameter in module.parameters():
        if draw == "permutation":
            order = torch.randperm(parameter.numel(), generator=numbers).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
        elif parameter.dim() == 1:
            parameter.zero_()
        else:
            noise = torch.randn(parameter.shape, generator=numbers, dtype=torch.float64).to(parameter)
            parameter.copy_(noise * parameter.square().mean().sqrt())


@torch.no_grad()
def _redraw_norm(norm: nn.Module, draw: Draw, numbers: torch.Generator) -> None:
    assert isinstance(norm, nn.BatchNorm2d)
    if draw == "normal":
        norm.reset_parameters()
        return
    order = torch.randperm(norm.num_features, generator=numbers)  # one for all: a map keeps its four numbers
    for of_maps in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        if of_maps is not None:
            of_maps.copy_(of_maps[order.to(of_maps.device)])


# ---------------------------------------------------------------------------------------- other switches


def other_switches(model: VisionModel, tape: Tape, source: Tape) -> Tape:
    """`tape`, with the max-pooling switches of another one; masks of ReLUs stay."""
    return replace(tape, kept=tape.kept | {name: source.kept[name] for name in _max_pools(model, tape)})


def no_switches(
    model: VisionModel, tape: Tape, how: Switches = "centre", numbers: torch.Generator | None = None
) -> Tape:
    """`tape`, with max-pooling switches that no picture has chosen.

    "centre": every value goes back to the middle of its pooling window (of its part inside the map); "random":
    to a place of the window drawn for each channel and window alike.

    Raises LayerError for adaptive max-pooling, whose windows have no fixed form.
    """
    record = RULES[nn.MaxPool2d].record
    assert record is not None
    kept = dict(tape.kept)
    for name, module in _max_pools(model, tape).items():
        if not isinstance(module, nn.MaxPool2d):
            raise LayerError(f"{name!r} is {type(module).__name__}, whose windows have no fixed middle")
        shape = (len(tape.kept[name]), *tape.shapes[name])  # (N, C, h, w)
        sides = tape.shapes[model.network.steps[name].inputs[0]][1:]
        rows, columns = (_in_windows(module, axis, sides[axis], shape, how, numbers) for axis in (0, 1))
        places = rows * sides[1] + columns  # as max-pooling counts: along the rows of its input
        switches = record(module, places.new_empty(1, 1, *sides), places, Options())
        kept[name] = switches.to(tape.kept[name])
    return replace(tape, kept=kept)


def _max_pools(model: VisionModel, tape: Tape) -> dict[str, nn.Module]:
    modules = {name: model.network.steps[name].module for name in tape.kept}
    return {n: m for n, m in modules.items() if isinstance(m, nn.MaxPool2d | nn.AdaptiveMaxPool2d)}


def _in_windows(
    module: nn.MaxPool2d, axis: int, side: int, shape: tuple[int, ...], how: Switches,
    numbers: torch.Generator | None,
) -> Tensor:  # fmt: skip
    """A row (axis 0) or column (1) of the input for each pooled value (N, C, h, w), inside its window and the map."""
    kernel, stride, padding, dilation = (
        pair(v)[axis] for v in (module.kernel_size, module.stride, module.padding, module.dilation)
    )
    start = torch.arange(shape[2 + axis]) * stride - padding
    first = (-start).clamp(min=0).add(dilation - 1) // dilation  # the first tap at or after the border
    last = ((side - 1 - start) // dilation).clamp(max=kernel - 1)
    view = (1, 1, -1, 1) if axis == 0 else (1, 1, 1, -1)
    first, last, start = (t.view(view).expand(shape) for t in (first, last, start))
    if how == "centre":
        tap = (first + last) // 2
    else:
        tap = first + (torch.rand(shape, generator=numbers) * (last - first + 1)).long().clamp(max=kernel - 1)
    return start + tap * dilation
