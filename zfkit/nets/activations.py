"""What layers answer to pictures: `activations` of one batch, `features` of many pictures, reduced.

Every measurement in zfkit that looks at activations is one of the two: so memory that runs out, pictures that a
network cannot take, progress and cancelling are dealt with in one place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..batching import OnStep, Portions, out_of_memory, steps
from ..checks import Size, in_px, one_of, pair
from ..errors import ImageError, LayerError, ZfkitError
from ..images.imageset import ImageSet
from .graph import Step, full_float32
from .model import VisionModel, expect_model

Precision = Literal["float32", "bf16"]

# From a layer's name, its outputs (n, C, H, W) or (n, F) and the places (n,) of these pictures in the set, to rows
# (n, ...), or None where the callee keeps what it needs itself.
Reduce = Callable[[str, Tensor, Tensor], Tensor | None]

# From preprocessed pictures (n, C, H, W) and their places (n,) in the set to what the network is shown instead.
Change = Callable[[Tensor, Tensor], Tensor]

MAP_BYTES = 2**32  # of one picture's output of any step
GPU_BYTES, CPU_BYTES = 2**30, 2**26  # of the largest output in one batch


@torch.inference_mode()
def activations(
    model: VisionModel,
    pixels: Tensor,
    layers: Sequence[str],
    precision: Precision = "float32",
    change: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Outputs of these layers for uint8 pictures (N, 3, H, W), in order of execution.

    `change` takes the preprocessed pictures and returns what the network is shown: covered in part, say.

    Look at each output before asking for the next: a ReLU that follows may overwrite it.

    Raises LayerError for pictures that the network cannot take as far as that, and ModelError for outputs that are not
    finite.
    """
    one_of(precision, "precision", ("float32", "bf16"))
    x = model.preprocess(pixels)
    x = (x if change is None else change(x)).contiguous(memory_format=torch.channels_last)
    network = model.network
    try:
        for step, _, output in network.walk(x, layers, _in_bfloat16 if precision == "bf16" else None):
            if step.name in layers:
                network.expect_finite(x, step.name, output)
                yield step.name, output
    except RuntimeError as error:
        raise cannot_run(model, layers, x, error) from error


def flat(layer: str, output: Tensor, index: Tensor) -> Tensor:
    """Every activation, (n, F): the plainest `reduce` of `features`."""
    return output.flatten(1)


def features(
    model: VisionModel,
    images: ImageSet | Tensor,
    layers: Sequence[str],
    reduce: Reduce = flat,
    *,
    index: Tensor | Sequence[int] | None = None,
    change: Change | None = None,
    batch_size: int | None = None,
    what: str = "features",
    progress: bool = False,
    on_step: OnStep | None = None,
) -> dict[str, Tensor]:
    """These layers' activations over these pictures, reduced: layer -> rows (N, ...) on the CPU.

    Args:
        images: an `ImageSet`, or uint8 pictures (N, 3, H, W).
        reduce: makes rows of one layer's outputs of a batch; its default keeps every activation. A batch that
            memory does not hold is run again in halves, so `reduce` must not count anything twice if it is called
            again with pictures that it has seen.
        index: places of the pictures to look at; None for all.
        change: what to do to the preprocessed pictures before the network sees them.
        batch_size: None for as many as keep the largest output under 64 MiB, or 1 GiB on a GPU.
        what: is being done, for the progress bar and warnings.
        on_step: called after each batch with (done, total); it may raise `Cancelled`.

    Raises LayerError for pictures that the network cannot take, ImageError where there are none.
    """
    expect_model(model)
    chosen = torch.arange(len(images)) if index is None else torch.as_tensor(index)
    if not len(chosen):
        raise ImageError(f"{what}: there are no pictures to look at")
    rows: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    size = images.size if isinstance(images, ImageSet) else (images.shape[-2], images.shape[-1])
    portions = Portions(f"{what} of {model.name}", batch_size or default_batch_size(model, size, layers))
    with steps(len(chosen), what, "img", progress, on_step) as done:
        for part in portions.of(len(chosen)):
            with portions.attempt(), full_float32():
                here = chosen[part]
                pixels = images.take(here) if isinstance(images, ImageSet) else images[here]
                found: dict[str, Tensor] = {}
                changed = None if change is None else lambda x, here=here: change(x, here)
                for name, output in activations(model, pixels, layers, change=changed):
                    reduced = reduce(name, output, here)
                    if reduced is not None:
                        # A copy also where it is on the CPU already: the next step may overwrite a view.
                        found[name] = reduced.to("cpu", copy=True)
                for name, values in found.items():
                    rows[name].append(values)
                done(len(here))
    return {name: torch.cat(parts) for name, parts in rows.items() if parts}


def expect_room(model: VisionModel, size: Size, layers: Sequence[str]) -> None:
    """Raise LayerError where one picture's maps would take more than MAP_BYTES on the way to these layers.

    They grow with the picture's area, so this is known before any memory is taken.
    """
    height, width = pair(size)
    area = height * width / math.prod(pair(model.input_size))
    for name in _maps_before(model, layers):
        needed = 4 * math.prod(model.network.shapes[name]) * area
        if needed > MAP_BYTES:
            raise LayerError(
                f"pictures of {in_px(size)} are too large for {model.name}: the maps of {name!r} would "
                f"take {needed / 1e9:.1f} GB for each alone; take smaller ones (size=, --size)"
            )


def _maps_before(model: VisionModel, layers: Sequence[str]) -> list[str]:
    """The steps on the way to these layers, and they themselves, whose outputs are maps (C, H, W)."""
    names = dict.fromkeys(step.name for layer in layers for step in model.network.way_to(layer))
    return [name for name in names if len(model.network.shapes.get(name, ())) == 3]


@torch.inference_mode()
def default_batch_size(model: VisionModel, size: Size, layers: Sequence[str], most: int = 256) -> int:
    """So many pictures that the largest output on the way to these layers stays under 64 MiB, 1 GiB on a GPU."""
    expect_room(expect_model(model), size, layers)
    names, x = {*layers, *_maps_before(model, layers)}, model.preprocess(model.blank(size))
    try:
        outputs = (y for step, _, y in model.network.walk(x, layers) if step.name in names)
        largest = max(y.numel() * y.element_size() for y in outputs)
    except RuntimeError as error:
        raise cannot_run(model, layers, x, error) from error
    return max(1, min(most, batch_bytes(model.device) // largest))


def batch_bytes(device: torch.device) -> int:
    """Memory that the largest maps of one pass may take: so little on a CPU that caches hold some of it."""
    return GPU_BYTES if device.type == "cuda" else CPU_BYTES


def cannot_run(model: VisionModel, layers: Sequence[str], batch: Tensor, error: RuntimeError) -> Exception:
    """What to raise when a network fails on these images: their size is wrong, unless memory ran out."""
    if isinstance(error, ZfkitError) or out_of_memory(error):
        return error
    return LayerError(
        f"{model.name} cannot run to {', '.join(layers)} on images of {in_px((batch.shape[2], batch.shape[3]))}; "
        f"it was made for {in_px(model.input_size)} ({str(error).splitlines()[0]})"
    )


def _in_bfloat16(step: Step, inputs: tuple[Any, ...]) -> Any:
    device = next((x.device.type for x in inputs if isinstance(x, Tensor)), "cpu")
    with torch.autocast(device, torch.bfloat16):
        return step.run(*inputs)
