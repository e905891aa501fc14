"""What the explorer shows beside the network's own maps: a picture of yours, other methods, another network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..batching import OnStep
from ..deconv.rules import Rule
from ..errors import LayerError, ZfkitError
from ..experiments.occlusion import probabilities
from ..figures.pictures import number, to_picture
from ..images.imageset import ImageSet
from ..images.shrink import fitted
from ..nets.activations import activations
from ..nets.model import VisionModel
from ..nets.zoo import load_model
from ..topk.patches import Patches, cut_top, project_top
from ..topk.table import LayerTop, TopK
from . import drawing
from .controls import encode
from .drawing import class_name
from .own import read_own
from .results import Sheet, as_tiles, picture_of
from .state import METHODS, RULES, State
from .view import CONTROL, TILE, ExplorerView, Others

COLUMNS = ("patch", *RULES, "shuffled weights")  # of the comparison of methods
LIKELIEST = 5  # classes
PREVIEW = 320  # px, longest side of your picture on the page
SAMPLES = 6  # pictures of the album to try the second tab with


class Own(NamedTuple):
    """A picture of your own as the network sees it; or a sentence that says what is wrong.

    Attributes:
        picture: the whole of it, small; width and height.
        classes: the likeliest, with probabilities; none for a network without class names.
        channels, values, shares: the maps that it excites most, how much, and how much of the strongest in the album
            that is.
        patches, projections, usual: of these maps: what they see of it, what they pick out, and the patch of the album
            that excites each most.
        seen: the square that the network sees, uint8 (3, S, S).
    """

    picture: bytes = b""
    size: tuple[int, int] = (1, 1)
    note: str = ""
    classes: tuple[tuple[str, float], ...] = ()
    channels: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    patches: Sheet | None = None
    projections: Sheet | None = None
    usual: Sheet | None = None
    seen: Tensor | None = None
    sentence: str = ""


class Compared(NamedTuple):
    """The strongest maps of one model in a photograph; or a sentence where they would be."""

    title: str
    patches: Sheet | None = None
    projections: Sheet | None = None
    captions: tuple[tuple[int, float], ...] = ()
    sentence: str = ""


def strongest(
    model: VisionModel, picture: Tensor, layer: str, count: int = 9, projected: bool = True
) -> Patches:
    """The `count` maps of a layer that a picture, uint8 (3, S, S), excites most; k = 1.

    Raises LayerError where none is above 0.
    """
    with torch.no_grad():
        output = next(y for _, y in activations(model, picture[None], [layer]))[0].float().cpu()
    value, place = output.flatten(1).max(1) if output.dim() > 1 else (output, torch.zeros(len(output)).long())
    width = output.shape[2] if output.dim() == 3 else 1
    best = value.argsort(descending=True, stable=True)[:count]
    best = best[value[best] > 0]
    if not len(best):
        raise LayerError(f"no map of {layer} is above 0 in this picture, so there is nothing to project.")
    alone = ImageSet(lambda _: (to_picture(picture), -1), ["own"], size=picture.shape[-1], source="own")
    row, col = (place // width)[:, None], (place % width)[:, None]
    table = LayerTop(value[:, None], torch.zeros_like(row), row, col, value, value, (value > 0).float())
    top = TopK(
        {layer: table}, 1, model.name, "own", alone.fingerprint(), 1, False, model.fingerprint([layer])
    )
    cut = project_top if projected else cut_top
    return cut(model, alone, top, layer, best, tile=TILE, progress=False)


def own(view: ExplorerView, state: State, content: bytes | str, name: str, at: float = 0.5) -> Own:
    """What the state's layer sees in a picture of your own, and what the network calls it.

    Never raises for the picture's sake: `sentence` says what is wrong.
    """
    model, layer = view.model, state.layer
    try:
        picture, small, whole, note = read_own(content, name, view.side, model.input_size, at)
    except ZfkitError as error:
        return Own(sentence=str(error))
    height, width = fitted(whole.height, whole.width, PREVIEW)
    shown = Own(
        encode(whole.resize((width, height), Image.Resampling.LANCZOS), "jpeg"), (width, height), note,
        _likeliest(model, small), seen=picture,
    )  # fmt: skip
    try:
        p = strongest(model, picture, layer, view.shown, layer not in view.refusals)
    except ZfkitError as error:
        return shown._replace(sentence=str(error))
    usual = cut_top(model, view.photos, view.top, layer, p.channels, k=1, tile=TILE, progress=False)
    largest = view.top[layer].max.clamp(min=1e-9)
    coloured = drawing.coloured(p.projection[:, 0], state.gain) if p.projection.shape[1] else None
    return shown._replace(
        channels=tuple(p.channels.tolist()), values=tuple(p.value[:, 0].tolist()),
        shares=tuple((p.value[:, 0] / largest[p.channels]).tolist()), patches=Sheet.of(p.photo[:, 0], "jpeg"),
        projections=None if coloured is None else Sheet.of(coloured), usual=Sheet.of(usual.photo[:, 0], "jpeg"),
    )  # fmt: skip


def bundled(model: VisionModel) -> Others:
    """The bundled networks other than this one, loaded when they are first asked for."""
    return {n: partial(load_model, n) for n in ("zfnet64", "alexnet64", "squeezenet1_1") if n != model.name}


class YourPicture:
    """What the second tab is about: a picture that was given, by its bytes or its path, and the square of it.

    Attributes:
        at: where along its longer side the square lies: 0 at the beginning, 1 at the end.
    """

    def __init__(self, view: ExplorerView) -> None:
        self.view, self.at = view, 0.5
        self._given: tuple[str, bytes] | None = None

    def take(self, name: str = "", content: bytes | None = None) -> None:
        """Another picture; without content, the one at the state's path, if it has one."""
        self._given, self.at = None if content is None else (name, content), 0.5

    def own(self, state: State) -> Own | None:
        """What is seen of it; None while there is none."""
        given = self._given or ((Path(state.image).name, state.image) if state.image else None)
        if given is None:
            return None
        key = ("own", state.layer, state.gain, given[0], hash(given[1]), self.at)
        return self.view.keep(key, lambda: own(self.view, state, given[1], given[0], self.at))

    def samples(self) -> tuple[list[int], list[str], Sheet]:
        """Some pictures of the album to try it with: places, names and the pictures, small."""
        photos = self.view.photos
        places = sorted({i * len(photos) // SAMPLES for i in range(SAMPLES)})
        return places, [self.view.facts.short(i) for i in places], self.view.small(places)


def _likeliest(model: VisionModel, small: Tensor) -> tuple[tuple[str, float], ...]:
    if not model.classes:
        return ()
    output = model.logits(model.preprocess(small)).float().cpu()
    share = probabilities(model, output)[0]
    return tuple(
        (class_name(model, i), float(share[i]))
        for i in share.argsort(descending=True, stable=True)[:LIKELIEST].tolist()
    )


def methods(view: ExplorerView, state: State, on_step: OnStep | None = None) -> tuple[Sheet | None, str]:
    """The same units by every method (`COLUMNS`), a row for each of the three strongest pictures; or a sentence."""
    layer, channel = state.layer, state.channel
    sentence = view.dead(layer, channel) or view.refusals.get(layer, "")
    if sentence:
        return None, sentence
    count = min(CONTROL, view.shown)
    columns: list[Tensor] = []
    for i, name in enumerate(RULES):
        rule: Rule = name
        p = as_tiles(view.patches(layer, channel, rule, on_step), None, TILE)
        if not columns:
            columns.append(p.photo[0, :count])
        columns.append(drawing.coloured(p.projection[0, :count], state.gain))
        if on_step:
            on_step(i + 1, len(COLUMNS) - 1)
    control = as_tiles(view.by_shuffled(layer, channel, "deconvnet"), None, TILE)
    columns.append(drawing.coloured(control.projection[0], state.gain))
    tiles = torch.stack(columns, 1).flatten(0, 1)
    return Sheet.of(tiles, columns=len(COLUMNS)), ""


def layer_beside(model: VisionModel, layer: str, other: VisionModel) -> str:
    """The layer of another model that stands beside this one: of the same name, else of the same number."""
    if layer in other.layers:
        return layer
    own, convs = model.conv_layers, other.conv_layers
    return convs[min(own.index(layer) if layer in own else len(convs), len(convs) - 1)]


def models(view: ExplorerView, state: State, on_step: OnStep | None = None) -> Sequence[Compared]:
    """The strongest maps of two models in the same photograph."""
    picture = view.photos.take([max(view.unit(state)[0], 0)])[0]
    compared = []
    for i, name in enumerate((view.model.name, state.versus)):
        model = view.other(name) if i else view.model
        layer = layer_beside(view.model, state.layer, model)
        try:
            p = strongest(model, picture, layer)
        except ZfkitError as error:
            compared.append(Compared(f"{name} {layer}", sentence=str(error)))
        else:
            shown = Sheet.of(drawing.coloured(p.projection[:, 0], state.gain))
            captions = tuple(zip(p.channels.tolist(), p.value[:, 0].tolist(), strict=True))
            compared.append(Compared(f"{name} {layer}", Sheet.of(p.photo[:, 0], "jpeg"), shown, captions))
        if on_step:
            on_step(i + 1, 2)
    return compared


def own_figure(view: ExplorerView, state: State, own: Own | None) -> Image.Image:
    """The second tab as one picture with a caption."""
    title = f"{view.model.name} {state.layer}: the maps that your picture excites most"
    if own is None or own.sentence or own.patches is None:
        words = own.sentence if own else "No picture has been chosen yet."
        return drawing.with_caption([("", Image.new("RGB", (480, 4), "white"))], title, [words])
    sheets = {"your picture": own.patches, "what they pick out": own.projections, "usually like": own.usual}
    blocks = [(words, picture_of(sheet, 72)) for words, sheet in sheets.items() if sheet]
    maps = "; ".join(
        f"map {c}: {number(v)}, {share:.0%} of its strongest here"
        for c, v, share in zip(own.channels, own.values, own.shares, strict=True)
    )
    likely = ", ".join(f"{name} {share:.0%}" for name, share in own.classes)
    lines = [f"From left to right: {maps}.", own.note, f"The network calls it: {likely}." if likely else ""]
    return drawing.with_caption(blocks, title, [line for line in lines if line], [1] * len(blocks))


def figure(view: ExplorerView, state: State) -> Image.Image:
    """The third tab as one picture with a caption."""
    if state.versus == METHODS:
        title = f"{view.model.name} {state.layer}, map {state.channel}: methods"
        sheet, sentence = methods(view, state)
        picture = picture_of(sheet, 132) if sheet else Image.new("RGB", (480, 4), "white")
        lines = [sentence or f"From left to right: {', '.join(COLUMNS)}. {view.scale_line(state)}"]
        return drawing.with_caption([("", picture)], title, lines, [1])
    blocks, lines = [], [f"The maps that {view.facts.about(max(view.unit(state)[0], 0))} excites most."]
    for each in models(view, state):
        if each.patches and each.projections:
            blocks += [(each.title, picture_of(each.patches, 72)), ("", picture_of(each.projections, 72))]
        lines.append(f"{each.title}: {each.sentence or ', '.join(f'map {c}' for c, _ in each.captions)}.")
    return drawing.with_caption(blocks, f"{view.model.name} and {state.versus}", lines, [1] * len(blocks))
