"""Networks themselves: to scale (Fig. 3), there and back again (Fig. 1), and all their feature maps as points."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ..checks import layer_names, pair, whole_number
from ..deconv.receptive_field import Interval, receptive_field
from ..deconv.stages import Stage, stages
from ..errors import LayerError
from ..images.colour import signed_to_rgb
from ..images.given import one_picture
from ..nets.model import VisionModel, expect_model
from ..topk.bundled import reach, reach_or_share
from ..topk.profile import activations
from .charts import Style, draw, faded, new_chart, shades
from .pictures import TILE, montage, to_picture
from .style import BLUE, GREEN, GREY, ORANGE, SOFT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from plotly.graph_objects import Figure as Chart

    from ..experiments.selectivity import Selectivity
    from ..topk.table import TopK

SLANT = 0.35  # of a box's depth, as it is seen
SHOWN = 4  # maps of each operation, there and back
EDGE, MIDDLE, STEP = 20, 160, 46  # px: around the sheet, between the two halves, between two rows


def network(model: VisionModel, layers: Sequence[str] | None = None) -> Chart:
    """The network to scale, as the paper's Fig. 3: a chart.

    From left to right the picture (grey) and what layers give, convolutional ones in blue and fully connected ones in
    orange. A box is as high and as deep as a map has rows and columns (all on one scale), and as wide as there are maps
    (on another). A map of one unit is a line.

    Args:
        layers: default: every layer that has weights.
    """
    expect_model(model)
    weighted = [
        name for name in model.layers
        if isinstance(model.network.steps[name].module, nn.Conv2d | nn.Linear)
    ]  # fmt: skip
    names = layer_names(layers, model.layers, weighted)
    shapes: list[tuple[int, ...]] = [(model.bands, *pair(model.input_size))]
    shapes += [(*model.network.shapes[name], 1, 1)[:3] for name in names]
    colours = [GREY, *(ORANGE if shape[1:] == (1, 1) else BLUE for shape in shapes[1:])]
    told = ["the picture", *(_told(model, name) for name in names)]
    most, tall = max(shape[0] for shape in shapes), max(max(shape[1:]) for shape in shapes)
    chart = new_chart(title=f"{model.name}, to scale", height=400)
    left, many = 0.0, len(names) > 12  # names alone then, upright
    for name, (maps, high, deep), colour, words in zip(["input", *names], shapes, colours, told, strict=True):
        wide, slant = tall * maps / most, SLANT * deep
        right, bottom, top = left + wide, -high / 2, high / 2
        x = [left, right, right, left, left]
        over = [left, right, right + slant, left + slant, left]
        beside = [right, right + slant, right + slant, right, right]
        faces = (  # front, top, and the right side
            (x, [bottom, bottom, top, top, bottom], 0.75),
            (over, [top, top, top + slant, top + slant, top], 0.35),
            (beside, [bottom, bottom + slant, top + slant, top, bottom], 0.55),
        )
        for x, y, opacity in faces:
            style: Style = {"fillcolor": faded(colour, opacity), "line": {"color": colour, "width": 1}}
            draw(chart, x=x, y=y, mode="lines", fill="toself", **style)
        what = f"{name}<br>{words}<br>{maps} map{'s' * (maps > 1)} of {high} x {deep}"
        dot = {"color": colour, "size": 14, "opacity": 0.01}
        draw(chart, x=[left + wide / 2], y=[0], mode="markers", marker=dot, told=what)
        size = f"<br>{maps} @ {high}x{deep}" if (high, deep) != (1, 1) else f"<br>{maps}"
        place = {"showarrow": False, "yshift": -8, "yanchor": "top", "font_size": 10, "textangle": -90 * many}
        chart.add_annotation(x=left + wide / 2, y=-tall / 2, text=name + size * (not many), **place)
        left = right + slant + 0.15 * tall
    below = 20 + 6 * max(map(len, names)) if many else 50  # px
    chart.update_xaxes(visible=False).update_yaxes(visible=False, range=[-0.5 * tall, 0.9 * tall])
    return chart.update_layout(showlegend=False, margin={"l": 10, "r": 10, "b": below})


def _told(model: VisionModel, name: str) -> str:
    """What a layer does, and what its units see, for hovering."""
    module, field = model.network.steps[name].module, receptive_field(model, name)
    weights = sum(p.numel() for p in module.parameters()) if module is not None else 0
    sees = f"each unit sees {field.size} px, its neighbour {field.stride} px on"
    what, sees = type(module).__name__, sees if field.stride else "sees the whole picture"
    if isinstance(module, nn.Conv2d):
        (height, width), stride = pair(module.kernel_size), max(pair(module.stride))
        what = f"{height}x{width} filters, stride {stride}"
    return f"{what}, {weights:,} weights<br>{sees}"


def filters(model: VisionModel, layer: str | None = None, columns: int = 12) -> Image.Image:
    """A first layer's filters as a grid, each on its own symmetric scale around grey = 0, in their order: a picture.

    Raises LayerError for filters that do not look at a picture.
    """
    name = expect_model(model).conv_layers[0] if layer is None else layer
    found = expect_model(model).network.find(name).layer
    weight = getattr(found, "weight", torch.empty(0)).detach().float()  # (C, c, kh, kw)
    if weight.dim() != 4 or weight.shape[1] != len(model.mean):
        raise LayerError(f"{name!r} has no filters that look at a picture: take {model.conv_layers[0]!r}")
    rgb = signed_to_rgb(model.shown(weight), weight.abs().amax((1, 2, 3), keepdim=True))
    side = max(weight.shape[2:])
    return montage(rgb, min(columns, len(rgb)), side * max(1, 66 // side), gap=6)


def heat_map(
    model: VisionModel, picture: Tensor | np.ndarray | str | Path, layer: str, channel: int, side: int = 360
) -> Image.Image:
    """Where a feature map answers, over the greyed picture: nothing at 0 and below, bright yellow at its maximum.

    Each unit is drawn at the middle of what it sees. The picture is uint8 (3, H, W), an array (H, W, 3), or a path,
    which is brought to the network's size; `side` is the longer one of what is returned, in pixels.
    """
    pixels = one_picture(picture, expect_model(model).input_size)
    maps = activations(model, pixels, layer, progress=False)[0]
    whole_number(channel, f"channel of {layer!r}", 0, len(maps) - 1, LayerError)
    if maps.dim() != 3:
        raise LayerError(f"units of {layer!r} have no place in the picture; take a layer with maps")
    factor = side / max(pixels.shape[1:])
    height, width = (round(n * factor) for n in pixels.shape[1:])

    def edges(axis: Interval, count: int, whole: int) -> tuple[int, int]:
        if not axis.stride:  # it sees everything
            return 0, whole
        start = (axis.low + axis.high + 1 - axis.stride) / 2
        return round(start * factor), round((start + count * axis.stride) * factor)

    field = receptive_field(model, layer)
    top, bottom = edges(field.rows, maps.shape[1], height)
    left, right = edges(field.columns, maps.shape[2], width)
    grey = to_picture(pixels).resize((width, height)).convert("L")
    grey = grey.point(lambda v: v * 0.55 + 20).convert("RGB")
    colours = heat(maps[channel])
    shown = colours.resize((max(right - left, 1), max(bottom - top, 1)), Image.Resampling.NEAREST)
    grey.paste(shown.convert("RGB"), (left, top), shown.getchannel("A"))
    return grey


def heat(values: Tensor) -> Image.Image:
    """A feature map (h, w) as colours with an alpha channel, to lie over a picture."""
    share = (values.float().clamp(min=0) / values.max().clamp(min=torch.finfo(torch.float32).tiny)).numpy()
    colours = np.array([[70, 20, 110], [200, 50, 80], [250, 150, 40], [255, 245, 170]])
    channels = [np.interp(share, [0, 0.35, 0.7, 1], of) for of in colours.T]
    alpha = 255 * np.clip(share * 1.6, 0, 0.9)
    return Image.fromarray(np.stack([*channels, alpha], -1).round().astype(np.uint8), "RGBA")


def there_and_back(
    model: VisionModel, picture: Tensor | np.ndarray | str | Path, layer: str, channel: int
) -> Image.Image:
    """The convnet beside its deconvnet, as the paper's Fig. 1, with one photograph's own maps: a picture.

    Right, from below: the photograph, and what each operation makes of it. Left, from above: the strongest unit of the
    map alone, and what comes back from it, down to the pixels. Each row shows the four maps to which most comes back,
    the same on both sides; each tile has its own symmetric scale around grey = 0. Steps without maps are left out.

    Args:
        picture: uint8 (3, H, W), as photos[0][0], an array (H, W, 3), or a path, which is brought to the network's
            size; best not much larger than what a unit of the layer sees.

    Raises LayerError for a layer or map that is not there, ImageError for what is no picture.
    """
    picture = one_picture(picture, expect_model(model).input_size, len(model.mean))
    shown = [stage for stage in reversed(stages(model, picture, layer, channel)) if stage.there.dim() == 3]
    rows: list[tuple[Stage, list[int], Image.Image, Image.Image]] = []
    for stage in shown[:-1]:
        maps = [channel] if stage.step == layer else _most(stage.back)
        back, there = (montage(signed_to_rgb(of[maps, None]), len(maps)) for of in (stage.back, stage.there))
        rows.append((stage, maps, back, there))
    pixels = signed_to_rgb(model.shown(shown[-1].back[None])), model.shown(picture[None])
    back, there = (montage(of, 1, 2 * TILE) for of in pixels)
    rows.append((shown[-1], [], back, there))

    half = max(image.width for *_, image in rows)
    size = 2 * (half + EDGE) + MIDDLE, STEP + sum(image.height + STEP for *_, image in rows)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    left, middle, right = EDGE + half // 2, size[0] // 2, size[0] - EDGE - half // 2
    for x, title in ((left, "deconvnet"), (right, f"convnet ({model.name})")):
        draw.text((x, 8), title, "black", ImageFont.load_default(19), "ma")
    y = STEP
    for stage, maps, back, there in rows:
        sheet.paste(back, (left - back.width // 2, y))
        sheet.paste(there, (right - there.width // 2, y))
        name = f"{'maps' if len(maps) > 1 else 'map'} {', '.join(map(str, maps))}" if maps else "pixels"
        words = f"{stage.step}\n{stage.there.shape[1]} x {stage.there.shape[2]}\n{name}"
        draw.text((middle, y + back.height // 2), words, "black", font, "mm", align="center")
        y += back.height + STEP
        if stage is shown[-1]:
            break
        _arrow(draw, left, y - STEP + 6, y - 6, GREEN)
        _arrow(draw, right, y - 6, y - STEP + 6, BLUE)
        draw.text((left + 14, y - STEP // 2), BACK[stage.treatment], SOFT, font, "lm")
        draw.text((right + 14, y - STEP // 2), stage.operation, SOFT, font, "lm")
        if stage.treatment == "switches":
            draw.text((middle, y - STEP // 2), "<  switches  <", GREEN, font, "mm")
    return sheet


BACK = {
    "transpose": "filtered, transposed", "rectified": "rectified", "switches": "unpooled", "left out": "left as it is",
    "gradient": "by its gradient", "registered": "by a registered rule",
}  # fmt: skip


def _most(back: Tensor) -> list[int]:
    """Of (C, H, W), the maps to which most comes back that is positive, which rectifying leaves."""
    coming = back.clamp(min=0).sum((1, 2))
    first = coming.argsort(descending=True, stable=True)[:SHOWN]
    return first[: max(1, int((coming > 0).sum()))].tolist()


def _arrow(draw: ImageDraw.ImageDraw, x: int, start: int, end: int, colour: str) -> None:
    head = end - 7 if end > start else end + 7
    draw.line([(x, start), (x, head)], colour, 3)
    draw.polygon([(x - 6, head), (x + 6, head), (x, end)], colour)


def map_of_maps(model: VisionModel, top: TopK, selectivity: Selectivity) -> Chart:
    """All feature maps of a network as points, from `mine` and `selectivity`: a chart.

    To the right: how far the map is reached by these pictures, its strongest activation as a share of the map's record
    (`zfkit.topk.bundled.reach`) or, of a network without records, of the layer's strongest map. Up: its
    class-selectivity index. Light to dark: layers. A point is the larger the more of the pictures activate the map. A
    click on a layer in the legend hides it, a double click shows it alone.

    Raises LayerError where the two have no layer in common.
    """
    index = dict(iter(selectivity.maps.groupby("layer", sort=False)))
    layers = [layer for layer in top.layers if layer in index]
    if not layers:
        raise LayerError(f"nothing to draw: {', '.join(top.layers)} were mined, {', '.join(index)} measured")
    of = "record" if reach(model, top, layers[0]) is not None else "layer's strongest"
    title = f"{model.name}: {selectivity.images}, {selectivity.pictures:,} pictures of {selectivity.classes} classes"
    chart = new_chart(title=title, height=520)
    for layer, colour in zip(layers, shades(len(layers)), strict=True):
        part = index[layer]
        channels = torch.tensor(part.channel.tolist())
        maxima = top[layer].max.clamp(min=0)
        share = reach_or_share(model, top, layer)[channels]
        active = top[layer].active[channels]
        strongest = top[layer].image[channels, 0]
        columns = (channels, active, maxima[channels], strongest)
        rows = zip(*(t.tolist() for t in columns), strict=True)
        draw(
            chart, name=layer, x=share.numpy(), y=part["index"].to_numpy(), mode="markers",
            marker={"color": colour, "size": (3 + 8 * active.double()).numpy(), "opacity": 0.6},
            customdata=[[c, f"{a:.1%}", f"{m:.3g}", i] for c, a, m, i in rows],
            told=f"{layer}, map %{{customdata[0]}}<br>%{{x:.0%}} of its {of}, selectivity %{{y:.2f}}<br>active on "
            "%{customdata[1]} of the pictures<br>strongest %{customdata[2]}, on picture %{customdata[3]}",
        )  # fmt: skip
    reached = f"strongest activation, share of the {of}"
    chart.update_xaxes(title_text=reached, tickformat=".0%", rangemode="tozero")
    selective = "class-selectivity index, 0: all alike, 1: one class only"
    return chart.update_yaxes(title_text=selective, range=[0, 1.02])
