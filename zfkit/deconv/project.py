"""The deconvnet: from one unit back to the pixels that excite it (Zeiler & Fergus, section 2.1, Fig. 1).

Set every activation of the layer to zero but one; then undo the layers one after the other: put each value
back where max-pooling took it from (the *switches* of the forward pass), rectify, and filter with the
transposed filters, down to an image with positive and negative values. `project` does it.

One short function per kind of operation says what it does on the way back, under "The rules" below. The
rest is bookkeeping: a unit depends on a window of every map before it, so only these windows are carried
back, for many units at once, and no autograd graph is built.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batching import out_of_memory, result_of
from ..errors import LayerError
from ..nets import graph
from ..nets.activations import cannot_run
from ..nets.graph import Network, Step
from ..nets.model import VisionModel
from .receptive_field import Extent, extents
from .rules import Context, Norm, Options, Record, Rule, Seed, _entry, identity
from .windows import Window, _Plan, paste


@dataclass(frozen=True)
class Tape:
    """What the reverse path needs to know of one forward pass over N images."""

    shapes: dict[str, tuple[int, ...]]  # of every step's output, without N
    kept: dict[str, Any]  # what a step's rule recorded: switches, masks ...
    outputs: dict[str, Tensor]  # of the layers asked, (N, C, H, W) or (N, F); none if it was made without
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Memory that it holds."""
        held = [t for t in (*self.kept.values(), *self.outputs.values()) if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in held)

    @classmethod
    def together(cls, tapes: Sequence[Tape]) -> Tape:
        """Tapes of single images, of one size, as the tape of all of them; without outputs."""
        first = tapes[0].kept
        kept = {n: torch.cat([t.kept[n] for t in tapes]) for n in first if first[n] is not None}
        return cls(tapes[0].shapes, kept, {}, tapes[0].dtype)


class Deconvnet:
    """Forward passes that keep switches, and reverse passes for many units of them.

    Args:
        network: a traced network.
        layers: the units' layers; the forward pass ends after the last of them.

    Raises LayerError for an unknown layer, and for an operation on the way that no rule covers.
    """

    def __init__(self, network: Network, layers: Sequence[str], options: Options = Options()) -> None:
        self.network, self.layers, self.options = network, tuple(layers), options
        self._extents: dict[str, dict[str, Extent | None]] = {}
        for layer in layers:
            network.find(layer)
            self._extents[layer] = extents(network, layer)
            self._check_rules(layer)

    def _check_rules(self, layer: str) -> None:
        reached = {layer}
        for step in reversed(self.network.upto([layer])):
            if step.name not in reached or not step.inputs:
                continue
            entry = _entry(step)
            inner_softmax = isinstance(step.module, nn.Softmax | nn.LogSoftmax) and step.name != layer
            if entry is None or (inner_softmax and entry.reverse is identity):
                raise LayerError(
                    f"no rule says what {step.operation!r} (at {step.name!r}, on the way from {layer!r} to the "
                    f"image) does on the way back. Give it one with zfkit.register_rule({step.operation})"
                )
            reached.update(
                step.inputs if isinstance(step.module, graph.Add | graph.Concat) else step.inputs[:1]
            )

    def _record(self, step: Step) -> Record | None:
        """What records something of this step in the forward pass."""
        entry = _entry(step) if step.inputs else None
        return entry.record if entry and entry.record and entry.when(self.options) else None

    def forward(self, x: Tensor, outputs: bool = True) -> Tape:
        """Run images (N, C, H, W) as far as the layers need, keeping what the reverse path asks for.

        Without `outputs` the pass ends after the last step of which anything is kept: for the deconvnet, the
        last max-pooling. That serves units whose position is known and whose seed is 1.
        """
        if not outputs:
            try:
                return result_of(self.running(x, outputs=False))
            except RuntimeError as error:  # an operation that does not take an empty batch
                if out_of_memory(error):
                    raise
        return result_of(self.running(x))

    @torch.no_grad()
    def running(self, x: Tensor, outputs: bool = True) -> Generator[None, None, Tape]:
        """`forward`, one operation at a time: for who has to answer to others meanwhile."""
        pooled_from: dict[str, Tensor] = {}

        def evaluate(step: Step, inputs: tuple[Any, ...]) -> Any:
            module = step.module
            if isinstance(module, nn.MaxPool2d):
                y, pooled_from[step.name] = F.max_pool2d(
                    inputs[0], module.kernel_size, module.stride, module.padding, module.dilation,
                    module.ceil_mode, return_indices=True,
                )  # fmt: skip
                return y
            if isinstance(module, nn.AdaptiveMaxPool2d):
                y, pooled_from[step.name] = F.adaptive_max_pool2d(
                    inputs[0], module.output_size, return_indices=True
                )  # type: ignore[call-overload]
                return y
            return step.run(*inputs)

        def shapes_only(step: Step, inputs: tuple[Any, ...]) -> Any:
            """On no image at all."""
            given = zip(step.inputs, inputs, strict=True)
            return step.run(*(v[:0] if isinstance(v, Tensor) and n in images else v for n, v in given))

        steps = self.network.steps
        order = [step.name for step in self.network.upto(self.layers)]
        images = {name for name in order if steps[name].inputs or name == self.network.input}
        recording = {name for name in order if self._record(steps[name])}
        needed = set(order)
        if not outputs:
            needed = {step.name for step in self.network.upto(recording)}

        def run(step: Step, inputs: tuple[Any, ...]) -> Any:
            return (evaluate if step.name in needed else shapes_only)(step, inputs)

        shapes, kept, found = {}, {}, {}
        for step, inputs, y in self.network.walk(x, self.layers, run):
            yield
            if not isinstance(y, Tensor):
                continue
            self._check_sum(step, inputs, y)
            shapes[step.name] = tuple(y.shape[1:])
            record = self._record(step)
            if record:
                kept[step.name] = record(step.module, inputs[0], pooled_from.pop(step.name, y), self.options)
            if outputs and step.name in self.layers:
                found[step.name] = y.clone()  # a ReLU may follow in place
        return Tape(shapes, kept, found, x.dtype)

    def _check_sum(self, step: Step, inputs: tuple[Any, ...], y: Tensor) -> None:
        """Raise LayerError for a sum of maps of different shapes: what goes back to the smaller is not R."""
        steps = self.network.steps
        terms = [  # without parameters, to which nothing goes back
            x
            for x, name in zip(inputs, step.inputs, strict=True)
            if steps[name].inputs or name == self.network.input
        ]
        if isinstance(step.module, graph.Add) and any(x[: len(y)].shape != y.shape for x in terms):
            found = " and ".join(str(tuple(x.shape[1:])) for x in terms)
            raise LayerError(
                f"{step.name!r} adds maps of different shapes, {found}: no rule says what that does on the way back"
            )

    @torch.no_grad()
    def reverse(
        self, tape: Tape, layer: str, image: Tensor, channel: Tensor, position: Tensor | None
    ) -> tuple[Tensor, Window]:
        """Carry units back to the pixels.

        Args:
            image: (B,) which image of the tape each unit belongs to.
            channel: (B,) feature map.
            position: (B, 2) row and column; None in layers that have none.

        Returns (B, C, h, w), signed, 0 outside the image, and where in the image these windows lie.
        """
        plan = _Plan(self._extents[layer], tape.shapes, self.network.upto([layer]), position, image.device)
        if self.options.seed == "activation":
            units = (image, channel) if position is None else (image, channel, *position.to(image.device).T)
            seed = tape.outputs[layer][units]
        else:
            seed = torch.ones(len(image), dtype=tape.dtype, device=image.device)
        R = plan.seed(layer, channel, seed, tape.shapes[layer][0])
        coming: dict[str, Tensor] = {layer: R}
        for step in reversed(self.network.upto([layer])):
            if step.name == self.network.input or step.name not in coming:
                continue
            entry, R = _entry(step), coming.pop(step.name)
            if entry is None or not step.inputs:
                continue
            tensors = [name for name in step.inputs if name in tape.shapes]
            context = Context(
                step, self.options, tape.kept.get(step.name), tuple(tape.shapes[name] for name in tensors),
                image, plan.window(step.name),
            )  # fmt: skip
            back = entry.reverse(R, step.module, context)
            for name, part in zip(tensors, [back] if isinstance(back, Tensor) else back, strict=False):
                part = plan.fit(part, step, name)
                coming[name] = coming[name].add_(part) if name in coming else part
        source = self.network.input
        window = plan.window(source)
        assert window is not None
        return coming[source], window

    def unit_bytes(self, layer: str, tape: Tape) -> int:
        """Memory that one unit of `layer` needs on the way back, roughly: four copies of its largest window."""
        anywhere = torch.zeros(1, 2, dtype=torch.long)
        steps = self.network.upto([layer])
        plan = _Plan(self._extents[layer], tape.shapes, steps, anywhere, anywhere.device)
        sizes = (
            tape.shapes[name][0] * plan.size(name)[0] * plan.size(name)[1]
            for name in self._extents[layer]
            if len(tape.shapes.get(name, ())) == 3
        )
        return 4 * tape.dtype.itemsize * max(sizes, default=1)


def project(
    model: VisionModel,
    batch: Tensor,
    layer: str,
    channel: int | Tensor | Sequence[int],
    position: Tensor | Sequence[Sequence[int]] | None = None,
    *,
    rule: Rule = "deconvnet",
    seed: Seed = "one",
    lrn: Norm = "skip",
) -> Tensor:
    """What excites one unit of each image, in pixels (Zeiler & Fergus, section 2.1).

    Args:
        batch: preprocessed images (N, C, H, W), as `model.preprocess` returns them.
        layer: dotted name, one of `model.layers`.
        channel: feature map (or output of a fully connected layer), one for all or (N,).
        position: (N, 2) row and column of the unit; None for each image's maximum of that map.
        rule: "deconvnet", "guided" (Springenberg 2014) or "gradient" (Simonyan 2013).
        seed: put 1 at the unit ("one"), or its "activation", for the paper's brightness.
        lrn: contrast normalisation is left out on the way back ("skip", as in the paper), or differentiated
            ("gradient").

    Returns (N, C, H, W): positive and negative values around 0; 0 wherever the unit does not look.

    Raises LayerError for an unknown layer, a channel or position out of range, images too small to reach
    the layer, or an operation on the way for which there is no rule.

    >>> x = model.preprocess(photos.take([0, 1]))
    >>> pixels = project(model, x, "conv5", channel=17)
    """
    deconvnet = Deconvnet(model.network, [layer], Options(rule, seed, lrn))
    tape = forward(model, deconvnet, batch)
    output = tape.outputs[layer]
    N, channels = output.shape[:2]
    chosen = _channels(channel, N, channels, layer, output.device)
    if output.dim() == 4:
        if position is None:
            places = _strongest(output[torch.arange(N, device=output.device), chosen])
        else:
            places = _positions(position, N, tuple(output.shape[2:]), layer)
    elif position is not None:
        raise LayerError(f"units of {layer!r} have no position: leave out position")
    else:
        places = None
    image = torch.arange(N, device=output.device)
    pixels, window = deconvnet.reverse(tape, layer, image, chosen, places)
    if window.size == tuple(batch.shape[2:]) and not window.origin.any():
        return pixels
    return paste(pixels, window.origin, batch.shape[2:])


def forward(model: VisionModel, deconvnet: Deconvnet, batch: Tensor, outputs: bool = True) -> Tape:
    """`deconvnet.forward`, with errors in the user's terms."""
    channels, dtype = len(model.mean), str(model.dtype).removeprefix("torch.")
    expected = f"expected preprocessed images, {dtype} (N, {channels}, H, W), as model.preprocess(images) returns them"
    if not isinstance(batch, Tensor):
        raise LayerError(f"{expected}, got {type(batch).__name__}")
    if batch.dim() != 4 or batch.dtype != model.dtype or batch.shape[1] != channels or not len(batch):
        raise LayerError(f"{expected}, got {str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}")
    try:
        # A copy: the network's first operation may work in place.
        return deconvnet.forward(batch.clone(memory_format=torch.channels_last), outputs)
    except RuntimeError as error:
        raise cannot_run(model, deconvnet.layers, batch, error) from error


def _channels(
    channel: int | Tensor | Sequence[int], N: int, count: int, layer: str, device: torch.device
) -> Tensor:
    chosen = _whole_numbers(channel)
    if chosen is None or chosen.shape not in ((), (N,)):
        raise LayerError(
            f"channel must be one whole number, or one for each of the {N} images, not {channel!r}"
        )
    chosen = chosen.to(device).expand(N)
    if N and not (int(chosen.min()) >= 0 and int(chosen.max()) < count):
        raise LayerError(f"channel {channel} is out of range: {layer!r} has {count}, 0 to {count - 1}")
    return chosen


def _positions(
    position: Tensor | Sequence[Sequence[int]], N: int, size: tuple[int, ...], layer: str
) -> Tensor:
    places = _whole_numbers(position)
    if places is not None and places.shape == (2,):
        places = places.expand(N, 2)
    if places is None or places.shape != (N, 2):
        raise LayerError(
            f"position must be (row, column) whole numbers for each of the {N} images, not {position!r}"
        )
    if N and not ((places >= 0).all() and (places < torch.tensor(size)).all()):
        raise LayerError(
            f"position {places.tolist()} is out of range: maps of {layer!r} are {size[0]} x {size[1]} here"
        )
    return places


def _whole_numbers(value: Any) -> Tensor | None:
    """As int64 on the CPU; None for anything else than whole numbers."""
    try:
        numbers = torch.as_tensor(value).cpu()
    except (TypeError, ValueError, RuntimeError):
        return None
    return None if numbers.is_floating_point() or numbers.is_complex() else numbers.long()


def _strongest(maps: Tensor) -> Tensor:
    """(N, 2) row and column of the maximum of each map (N, H, W); of equals, the first along the rows."""
    W = maps.shape[2]
    flat = maps.flatten(1)
    place = (flat == flat.amax(1, keepdim=True)).int().argmax(1).cpu()
    return torch.stack([place // W, place % W], 1)
