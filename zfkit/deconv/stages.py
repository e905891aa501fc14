"""One photograph's maps on the way to a unit, and what comes back to each of them from it (Fig. 1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checks import channel_list
from ..errors import LayerError
from ..images.given import one_picture
from ..nets.activations import activations
from ..nets.model import VisionModel, expect_model
from .project import Deconvnet, forward, strongest


@dataclass(frozen=True)
class Stage:
    """What one operation gave on the way forward, and what comes back to it.

    Attributes:
        step, operation, treatment: as in a row of `way_back`; "input" and "" for the picture itself.
        there: (C, H, W) its output, of the picture as it is preprocessed.
        back: (C, H, W) what the deconvnet brings back to this output: at the layer 1 at the unit and 0 elsewhere, at
            the picture the projection.
    """

    step: str
    operation: str
    treatment: str
    there: Tensor
    back: Tensor


def stages(
    model: VisionModel, picture: Tensor | np.ndarray | str | Path, layer: str, channel: int
) -> list[Stage]:
    """The picture, and every operation from it to a layer, for the strongest unit of one of its maps.

    Args:
        picture: uint8 (3, H, W), or of the network's other bands, an array (H, W, 3), or a path, which is brought to
            the network's size.
        layer: one that gives maps.

    Raises LayerError for an unknown layer or channel, and for a layer without maps; ImageError for what is no picture.
    """
    pixels = one_picture(picture, expect_model(model).input_size, len(model.mean))[None]
    deconvnet = Deconvnet(model.network, [layer])
    x = model.preprocess(pixels)
    tape = forward(model, deconvnet, x)
    output = tape.outputs[layer]
    if output.dim() != 4:
        raise LayerError(
            f"{layer!r} gives no maps, but {tuple(output.shape[1:])}: choose a layer of feature maps"
        )
    unit = channel_list([channel], output.shape[1], layer).to(output.device)
    coming: dict[str, Tensor] = {}
    first = torch.zeros_like(unit)
    back, _ = deconvnet.reverse(
        tape, layer, first, unit, strongest(output[0, unit]), whole_maps=True,
        look=lambda name, R: coming.update({name: R[0].clone()}),
    )  # fmt: skip
    way = [step for step in model.network.way_to(layer) if not step.block and step.name in coming]
    there = {name: y[0].clone() for name, y in activations(model, pixels, [step.name for step in way])}
    rules = deconvnet.rules[layer]
    return [Stage("input", "", "", x[0], back[0])] + [
        Stage(s.name, s.operation, rules[s.name].treatment, there[s.name], coming[s.name]) for s in way
    ]
