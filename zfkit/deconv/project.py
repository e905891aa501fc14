"""The deconvnet: from one unit back to the pixels that excite it (Zeiler & Fergus, section 2.1, Fig. 1).

Set every activation of the layer to zero but one; then undo the operations one after the other, down to an image with
positive and negative values. Everything is the transpose of what went forward, except for three things: ReLUs rectify
what comes back, max-pooling puts each value where its maximum came from (the *switches* of the forward pass), and
contrast normalisation is left out. `rules` says so for each kind of operation, in a few lines each.

Here are the two passes: `Deconvnet.forward` keeps what the rules need, on a `Tape`; `Deconvnet.reverse` goes back, for
many units at once and without an autograd graph. `WholeMaps` makes it go back over whole maps, which defines the
result; `windows.Windows` over the units' receptive fields alone, which gives the same sooner. `project` is what users
call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batching import OnStep, out_of_memory
from ..checks import Size, pair, whole_numbers
from ..errors import LayerError
from ..nets import graph
from ..nets.activations import cannot_run
from ..nets.graph import Network, Step
from ..nets.model import VisionModel, expect_model
from .generic import generic_rule, no_way_back
from .receptive_field import Extent, extents
from .rules import Context, Inputs, Norm, OperationRule, Options, Rule, Seed, rule_of
from .windows import Shapes, Trim, Window, Windows, paste, uncrop

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Tape:
    """What the reverse path needs to know of one forward pass over N images."""

    shapes: Shapes  # of every step's output, without N
    kept: dict[str, Any]  # what a step's rule recorded: switches, masks ...
    outputs: dict[str, Tensor]  # of the layers asked, (N, C, H, W) or (N, F); none if it was made without
    dtype: torch.dtype
    trimmed: bool = False  # are all of these the windows of one unit of each image?


class WholeMaps:
    """Carries whole maps back: slow, and the definition of what `Windows` has to give."""

    def __init__(self, shapes: Shapes, position: Tensor | None) -> None:
        self.shapes, self.position = shapes, position

    def seed(self, layer: str, channel: Tensor, value: Tensor) -> Tensor:
        """(B, C, H, W) or (B, F): 0 but for each unit, which gets its value (B,)."""
        R = value.new_zeros(len(channel), *self.shapes[layer])
        unit = (torch.arange(len(channel)), channel.cpu())
        R[unit if self.position is None else (*unit, *self.position.T)] = value
        return R

    def window(self, name: str) -> Window | None:
        """None: the map is whole."""
        return None

    def fit(self, R: Tensor, step: Step, name: str) -> Tensor:
        """What a rule returned, without what reached into the padding."""
        return uncrop(R, step, self.shapes[name][1:])


class Deconvnet:
    """Forward passes that keep switches, and reverse passes for many units of them.

    Attributes:
        network: a traced network.
        layers: the units' layers; the forward pass ends after the last of them.
        rules: by layer, of every operation on the way from it to the image, by its step's name.

    Raises LayerError for an unknown layer, and for a registered rule that leaves out some of an operation's inputs.
    """

    def __init__(self, network: Network, layers: Sequence[str], options: Options = Options()) -> None:
        self.network, self.layers, self.options = network, tuple(layers), options
        self._extents: dict[str, dict[str, Extent | None]] = {}
        self.rules: dict[str, dict[str, OperationRule]] = {}
        for layer in layers:
            network.find(layer)
            self._extents[layer] = extents(network, layer)
            self.rules[layer] = {step.name: self._rule(step, layer) for step in network.way_to(layer)}

    def _rule(self, step: Step, layer: str) -> OperationRule:
        """The operation's own rule, or its transpose or gradient. Raises LayerError for one that leaves inputs out."""
        rule, operation, reads = rule_of(step), step.operation, len(step.maps)
        several = [name for name in step.maps if name not in self.network.shapes]
        by_batch = isinstance(step.module, graph.BatchStatistics) or _normalises_by_batch(step.module)
        if several or (by_batch and not (rule and rule.treatment == "registered")):
            why = (
                "it reads several tensors at once"
                if several
                else "it normalises by the batch that it is given"
            )
            raise no_way_back(step, why)
        if isinstance(step.module, nn.Softmax | nn.LogSoftmax) and step.name != self._end(layer):
            rule = None  # it is left out only at the end, where a class is shown by its logit
        smaller = any(self.network.shapes[name] != self.network.shapes.get(step.name) for name in step.maps)
        if isinstance(step.module, graph.Add) and smaller:
            rule = None  # a smaller map is added at many places: autograd sums what comes back from them
        if isinstance(step.module, graph.Concat) and len(step.inputs) > reads:
            rule = None  # beside a constant
        covers = rule is not None and (rule.inputs is None or rule.inputs >= reads)
        if rule is not None and not covers and rule.treatment == "registered":
            raise LayerError(
                f"the rule for {operation!r} sends something back to {rule.inputs} of the {reads} maps that it reads "
                f"at {step.name!r} ({', '.join(step.maps)}), on the way from {layer!r} to the image. Register one that "
                f"returns a tensor for each: zfkit.register_rule({step.typed}, inputs={reads})"
            )
        return rule if rule is not None and covers else generic_rule(step)

    def _end(self, layer: str) -> str:
        """The layer itself, or, of a block, the step that it ends with."""
        step = self.network.steps[layer]
        return self._end(step.inputs[0]) if step.block else layer

    def _recording(self, step: Step) -> OperationRule | None:
        """The rule of this step, if it records something in the forward pass."""
        rules = [rules[step.name] for rules in self.rules.values() if step.name in rules]
        return next((r for r in rules if (r.record or r.keeps_inputs) and r.when(self.options)), None)

    def forward(
        self, x: Tensor, outputs: bool = True, on_step: OnStep | None = None, position: Tensor | None = None
    ) -> Tape:
        """Run images (N, C, H, W) as far as the layers need, keeping what the reverse path asks for.

        Without `outputs` the pass ends after the last step of which anything is kept: for the deconvnet, the
        last max-pooling. That serves units whose position is known and whose seed is 1.

        Of one layer alone, `position` (N, 2) of one unit in each image spares what these do not depend on.

        `on_step` is called after each operation with (done, total); it may raise `Cancelled`.
        """
        try:
            trim = None
            if position is not None:
                (layer,), shapes = self.layers, self._forward(x, set(), False, None).shapes
                trim = Trim(self._extents[layer], shapes, self.network.upto([layer]), position, x.device)
                trim.whole.add(self.network.input)
                trim = trim if trim.possible else None
            needed = set(self.network.steps)
            if not outputs:
                recording = {s.name for s in self.network.upto(self.layers) if self._recording(s)}
                needed = {s.name for s in self.network.upto(recording)}
            return self._forward(x, needed, outputs, on_step, trim)
        except RuntimeError as error:  # an operation takes no empty batch, or not a part of its input
            if out_of_memory(error) or (outputs and trim is None):
                raise
        return self._forward(x, set(self.network.steps), True, on_step)

    @torch.no_grad()
    @graph.full_float32()
    def _forward(
        self, x: Tensor, needed: set[str], outputs: bool, on_step: OnStep | None, trim: Trim | None = None
    ) -> Tape:
        """Steps that are not `needed` run on no image at all, for the shapes of what they give."""
        kept: dict[str, Any] = {}
        read: dict[str, Tensor] = {}  # by registered rules' operations, which may work in place
        maxima_from: dict[str, Tensor] = {}  # where the maxima of max-pooling came from

        def run(step: Step, inputs: tuple[Any, ...]) -> Any:
            if step.name not in needed:
                given = zip(step.inputs, inputs, strict=True)
                return step.run(*(v[:0] if n in step.maps and isinstance(v, Tensor) else v for n, v in given))
            rule = self._recording(step)
            if rule is not None and rule.keeps_inputs:
                kept[step.name] = Inputs.of(step, inputs)  # before it runs, perhaps in place
            if rule is not None and rule.treatment == "registered":
                read[step.name] = inputs[step.inputs.index(step.maps[0])].clone()
            if rule is not None and rule.treatment == "switches":
                y, maxima_from[step.name] = _max_pool_with_places(step.module, inputs[0])
                return y
            return step.run(*inputs)

        def trimmed(step: Step, inputs: tuple[Any, ...]) -> Any:
            if trim is None or step.name not in needed:
                return x[:0] if trim else run(step, inputs)
            alone[step.name] = trim.alone(step, inputs)
            return trim.clear(step.name, run(*alone[step.name]))

        alone: dict[str, tuple[Step, tuple[Any, ...]]] = {}  # steps and their inputs, as they ran
        total = len(self.network.upto(self.layers))
        shapes: Shapes = {}
        layers: dict[str, Tensor] = {}
        for done, (step, inputs, y) in enumerate(self.network.walk(x, self.layers, trimmed)):
            if on_step is not None:
                on_step(done + 1, total)
            if not isinstance(y, Tensor):
                continue
            shapes[step.name] = tuple(y.shape[1:])
            step, inputs = alone.pop(step.name, (step, inputs))
            rule = self._recording(step)
            if rule is not None and rule.record is not None:
                first = read.pop(step.name, inputs[step.inputs.index(step.maps[0])])
                kept[step.name] = rule.record(step.module, first, maxima_from.pop(step.name, y), self.options)
            if outputs and step.name in self.layers:
                layers[step.name] = y.clone()  # a ReLU may follow in place
        return Tape(shapes if trim is None else trim.shapes, kept, layers, x.dtype, trim is not None)

    def own(self, tape: Tape) -> Tape:
        """Of a tape whose forward pass kept more, for another rule, what this one keeps."""
        kept = {name: of for name, of in tape.kept.items() if self._recording(self.network.steps[name])}
        return replace(tape, kept=kept)

    @torch.no_grad()
    @graph.full_float32()
    def reverse(
        self,
        tape: Tape,
        layer: str,
        image: Tensor,
        channel: Tensor,
        position: Tensor | None,
        *,
        whole_maps: bool = False,
        look: Callable[[str, Tensor], None] | None = None,
    ) -> tuple[Tensor, Window]:
        """Carry units back to the pixels.

        Args:
            image: (B,) which image of the tape each unit belongs to.
            channel: (B,) feature map.
            position: (B, 2) row and column; None in layers that have none.
            whole_maps: carry whole maps back rather than windows: the same result, later.
            look: called with each step's name and all that comes back to its output; keep a copy, not the tensor.

        Returns (B, C, h, w), signed, 0 outside the image, and where in the image these windows lie.
        """
        maps: WholeMaps | Windows = WholeMaps(tape.shapes, position)
        if position is not None and not whole_maps:
            maps = Windows(
                self._extents[layer], tape.shapes, self.network.upto([layer]), position, image.device
            )
        closed: list[str] = []  # operations through which nothing went back
        coming = {layer: maps.seed(layer, channel, self._value(tape, layer, image, channel, position))}
        for step in reversed(self.network.way_to(layer)):
            if step.name not in coming:
                continue  # nothing comes back to it: what reads it has no gradient
            R, rule = coming.pop(step.name), self.rules[layer][step.name]
            if look is not None:
                look(step.name, R)
            shapes = tuple(tape.shapes[name] for name in step.maps)
            kept, window = tape.kept.get(step.name), maps.window(step.name)
            context = Context(step, self.options, kept, shapes, image, window, tape.trimmed)
            parts = rule.reverse(R, step.module, context)
            parts = [parts] if isinstance(parts, Tensor) else list(parts)
            if len(parts) != len(step.maps):
                raise LayerError(
                    f"the rule for {step.operation!r} returned {len(parts)} tensors at {step.name!r}, which reads "
                    f"{len(step.maps)} maps ({', '.join(step.maps)}): one for each is expected"
                )
            if all(part is None for part in parts):
                closed.append(f"{step.operation!r} (at {step.name!r})")
            for i, (name, part) in enumerate(zip(step.maps, parts, strict=True)):
                if part is None:
                    continue
                if any(part is other for other in parts[:i]):
                    part = part.clone()  # each branch may overwrite its own
                part = maps.fit(part, step, name)
                # Where branches part on the way forward, what comes back on each adds up.
                coming[name] = coming[name].add_(part) if name in coming else part
        if self.network.input not in coming:
            raise LayerError(
                f"nothing comes back from {layer!r} to the image: there is no way back through {', '.join(closed)}, "
                "which has no gradient. Give it one with zfkit.register_rule"
            )
        pixels = coming[self.network.input]
        if (window := maps.window(self.network.input)) is None:
            origin = torch.zeros(len(image), 2, dtype=torch.long, device=image.device)
            window = Window(origin, (pixels.shape[2], pixels.shape[3]))
        return pixels, window

    def _value(
        self, tape: Tape, layer: str, image: Tensor, channel: Tensor, position: Tensor | None
    ) -> Tensor:
        """(B,) what is put at the units."""
        if self.options.seed == "one":
            return torch.ones(len(image), dtype=tape.dtype, device=image.device)
        outputs, unit = tape.outputs[layer], (image, channel)
        if position is None:
            return outputs[unit]
        place = position % torch.tensor(outputs.shape[2:])  # in what may be the unit alone
        return outputs[(*unit, *place.to(image.device).T)]

    def unit_bytes(self, layer: str, tape: Tape) -> int:
        """Memory that one unit of `layer` needs on the way back, roughly: four copies of its largest window."""
        first = torch.zeros(1, 2, dtype=torch.long)
        maps = Windows(self._extents[layer], tape.shapes, self.network.upto([layer]), first, first.device)
        sizes = (
            tape.shapes[name][0] * maps.size(name)[0] * maps.size(name)[1]
            for name in self._extents[layer]
            if len(tape.shapes.get(name, ())) == 3
        )
        return 4 * tape.dtype.itemsize * max(sizes, default=1)


def _normalises_by_batch(module: Any) -> bool:
    """In evaluation mode, too: without running statistics."""
    norms = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
    return isinstance(module, norms) and module.running_var is None


def _max_pool_with_places(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima, and the place in the input, counted along its rows, that each came from."""
    if isinstance(module, nn.AdaptiveMaxPool2d):
        return F.adaptive_max_pool2d(x, module.output_size, return_indices=True)  # type: ignore[call-overload]
    size = module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
    return F.max_pool2d(x, *size, return_indices=True)


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

    Returns (N, C, H, W): positive and negative values around 0; 0 wherever the unit does not look. On a GPU, too,
    float32 is computed in float32: TF32 is off meanwhile.

    Raises LayerError for an unknown layer, a channel or position out of range, images too small to reach
    the layer, or an operation on the way for which there is no rule.

    >>> x = model.preprocess(photos.take([0, 1]))
    >>> pixels = project(model, x, "conv5", channel=17)
    """
    expect_model(model)
    deconvnet = Deconvnet(model.network, [layer], Options(rule, seed, lrn))
    tape = forward(model, deconvnet, batch)
    output = tape.outputs[layer]
    if output.dim() not in (2, 4):
        raise LayerError(
            f"{layer!r} gives tensors of shape {tuple(output.shape[1:])}: neither feature maps nor a row of units"
        )
    N, channels = output.shape[:2]
    chosen = _channels(channel, N, channels, layer, output.device)
    if output.dim() == 4 and position is not None:
        places = _positions(position, N, tuple(output.shape[2:]), layer)
    elif output.dim() == 4:
        places = strongest(output[torch.arange(N, device=output.device), chosen])
    elif position is None:
        places = None
    else:
        raise LayerError(f"units of {layer!r} have no position: leave out position")
    image = torch.arange(N, device=output.device)
    pixels, window = deconvnet.reverse(tape, layer, image, chosen, places)
    if window.size == tuple(batch.shape[2:]) and not window.origin.any():
        return pixels
    return paste(pixels, window.origin, batch.shape[2:])


def way_back(model: VisionModel, layer: str) -> pd.DataFrame:
    """How the deconvnet treats each operation on the way from a layer back to the image, a row each.

    Columns: step, operation, and treatment: "transpose" of a linear operation; "rectified", as a ReLU; by the
    "switches" of max-pooling; "left out" (contrast normalisation, unless ``lrn="gradient"``); "registered", by
    `register_rule`; "gradient", of an operation about which the literature says nothing: products and gates,
    normalisations over the picture, attention. Within modules with control flow activations are rectified all the same.

    >>> way_back(model, "layer4").treatment.value_counts()
    """
    import pandas as pd

    expect_model(model)
    deconvnet = Deconvnet(model.network, [layer])
    steps = reversed(model.network.way_to(layer))
    rows = [(s.name, s.operation, deconvnet.rules[layer][s.name].treatment) for s in steps if not s.block]
    return pd.DataFrame(rows, columns=["step", "operation", "treatment"])


def by_gradient(model: VisionModel, layer: str) -> list[str]:
    """Names of the operations on the way back that are passed by their gradient, for captions; mostly none."""
    rules, steps = Deconvnet(model.network, [layer]).rules[layer], reversed(model.network.way_to(layer))
    named = (s.operation for s in steps if not s.block and rules[s.name].treatment == "gradient")
    return list(dict.fromkeys(named))


def refusals(
    model: VisionModel, layers: Sequence[str], size: Size, options: Options = Options()
) -> dict[str, str]:
    """Which of these layers cannot be projected, and why: one unit of each is tried, on a blank picture of this size.

    That an operation has no gradient shows only when something comes back to it. Raises LayerError where the network
    cannot run on pictures of this size.
    """
    reasons: dict[str, str] = {}
    for layer in layers:
        try:
            Deconvnet(expect_model(model).network, [layer], options)
        except LayerError as error:
            reasons[layer] = str(error)
    rest = [layer for layer in layers if layer not in reasons]
    if not rest:
        return reasons
    deconvnet = Deconvnet(model.network, rest, options)
    blank = torch.zeros(1, len(model.mean), *pair(size), dtype=model.dtype, device=model.device)
    tape = forward(model, deconvnet, blank, outputs=options.seed == "activation")
    first = torch.zeros(1, dtype=torch.long, device=model.device)
    for layer in rest:
        position = torch.zeros(1, 2, dtype=torch.long) if len(tape.shapes[layer]) > 1 else None
        try:
            deconvnet.reverse(tape, layer, first, first, position)
        except LayerError as error:
            reasons[layer] = str(error)
    return reasons


def forward(
    model: VisionModel,
    deconvnet: Deconvnet,
    batch: Tensor,
    outputs: bool = True,
    on_step: OnStep | None = None,
    position: Tensor | None = None,
) -> Tape:
    """`deconvnet.forward`, with errors in the user's terms; also for outputs that are not finite."""
    channels, dtype = len(model.mean), str(model.dtype).removeprefix("torch.")
    expected = f"expected preprocessed images, {dtype} (N, {channels}, H, W), as model.preprocess(images) returns them"
    if not isinstance(batch, Tensor):
        raise LayerError(f"{expected}, got {type(batch).__name__}")
    if batch.dim() != 4 or batch.dtype != model.dtype or batch.shape[1] != channels or not len(batch):
        raise LayerError(f"{expected}, got {str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}")
    try:
        # A copy: the network's first operation may work in place.
        tape = deconvnet.forward(batch.clone(memory_format=torch.channels_last), outputs, on_step, position)
    except RuntimeError as error:
        raise cannot_run(model, deconvnet.layers, batch, error) from error
    for layer, output in tape.outputs.items():
        deconvnet.network.expect_finite(batch, layer, output)
    return tape


def _channels(
    channel: int | Tensor | Sequence[int], N: int, count: int, layer: str, device: torch.device
) -> Tensor:
    chosen = whole_numbers(channel)
    if chosen is None or chosen.shape not in ((), (N,)):
        raise LayerError(
            f"channel must be one whole number, or one for each of the {N} images, not {channel!r}"
        )
    if not ((chosen >= 0) & (chosen < count)).all():
        raise LayerError(f"channel {channel} is out of range: {layer!r} has {count}, 0 to {count - 1}")
    return chosen.to(device).expand(N)


def _positions(
    position: Tensor | Sequence[Sequence[int]], N: int, size: tuple[int, ...], layer: str
) -> Tensor:
    places = whole_numbers(position)
    if places is not None and places.shape == (2,):
        places = places.expand(N, 2)
    if places is None or places.shape != (N, 2):
        raise LayerError(
            f"position must be (row, column) whole numbers for each of the {N} images, not {position!r}"
        )
    if not ((places >= 0) & (places < torch.tensor(size))).all():
        raise LayerError(
            f"position {places.tolist()} is out of range: maps of {layer!r} are {size[0]} x {size[1]} here"
        )
    return places


def strongest(maps: Tensor) -> Tensor:
    """(N, 2) row and column of the maximum of each map (N, H, W); of equals, the first along the rows."""
    W = maps.shape[2]
    flat = maps.flatten(1)
    place = (flat == flat.amax(1, keepdim=True)).int().argmax(1).cpu()
    return torch.stack([place // W, place % W], 1)
