"""Charts that can be hovered (plotly): one template, panels and traces, and how figures are shown in a notebook."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageColor

from ..errors import ZfkitError
from .style import GREY, GRID, PALETTE, RED, SOFT

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from ..topk.table import TopK

CHART = "application/vnd.plotly.v1+json"  # what JupyterLab, Notebook 7, VS Code and Colab draw
WIDTH = 900  # px of a chart as a picture, about that of a page on GitHub; on a page it takes what there is
CONFIG = {"displaylogo": False, "responsive": True}
LARGEST_PNG = 150_000  # bytes, from which a picture is shown as a JPEG

Where = tuple[int, int]  # row and column of a panel, from 1
Style = dict[str, Any]  # options of a trace


@cache
def template() -> Any:
    """The template "zfkit", which plotly knows by this name from now on."""
    import plotly.graph_objects as go
    import plotly.io as pio

    axis = {
        "gridcolor": GRID, "zeroline": False, "linecolor": GREY, "showline": True, "ticks": "outside",
        "ticklen": 4, "tickcolor": GREY, "title": {"standoff": 6, "font": {"size": 12}}, "automargin": True,
    }  # fmt: skip
    layout = {
        "colorway": PALETTE,
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 12, "color": "#222222"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": axis,
        "yaxis": axis,
        "title": {"x": 0.01, "y": 0.98, "yanchor": "top", "font": {"size": 14}},
        "margin": {"l": 60, "r": 20, "t": 60, "b": 90},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"color": "#222222"}, "namelength": -1},
    }
    pio.templates["zfkit"] = go.layout.Template(layout=layout)
    return pio.templates["zfkit"]


def new_chart(
    rows: int = 1,
    columns: int = 1,
    *,
    title: str = "",
    titles: Sequence[str] = (),
    height: int = 360,
    **options: Any,
) -> Figure:
    """An empty plotly `Figure` of so many panels in zfkit's template, `height` px; options go to `make_subplots`.

    `title` stands above all, `titles` above the panels, row by row.
    """
    from plotly.subplots import make_subplots

    options.setdefault("vertical_spacing", min(80 / height, 0.9 / rows))
    chart = make_subplots(rows, columns, subplot_titles=list(titles) or None, **options)
    lines = max((text.count("<br>") + 1 for text in titles), default=0)
    above = 14 + 16 * lines + (30 if title else 0)
    chart.update_layout(template=template(), height=height, title_text=title or None, margin_t=above)
    named = [axis for axis, text in zip(chart.select_xaxes(), titles, strict=False) if text]
    for words, axis in zip(chart.layout.annotations, named, strict=False):
        words.update(x=axis.domain[0], xanchor="left", align="left", font_size=12)
    return chart


def draw(
    chart: Figure,
    where: Where = (1, 1),
    name: str = "",
    kind: str = "scatter",
    told: str = "",
    **options: Any,
) -> None:
    """Add a trace to a panel; hovering it shows `told`, a template of plotly's, or nothing.

    In the legend each name stands once, and a click there hides all traces of that name.
    """
    first = bool(name) and all(trace.name != name for trace in chart.data)
    hover = {"hovertemplate": f"{told}<extra></extra>"} if told else {"hoverinfo": "skip"}
    legend = {} if kind == "image" else {"name": name, "legendgroup": name, "showlegend": first}
    chart.add_trace({"type": kind, **legend, **hover, **options}, row=where[0], col=where[1])


def band(chart: Figure, where: Where, x: Any, low: Any, high: Any, colour: str, name: str = "") -> None:
    """A pale band from `low` to `high`, hidden with the legend's `name`."""
    x, low, high = (np.asarray(values, dtype=float) for values in (x, low, high))
    chart.add_scatter(
        x=np.concatenate([x, x[::-1]]), y=np.concatenate([high, low[::-1]]), row=where[0], col=where[1],
        fill="toself", fillcolor=faded(colour, 0.2), line_width=0, mode="lines", hoverinfo="skip",
        showlegend=False, legendgroup=name,
    )  # fmt: skip


def mark(
    chart: Figure, where: Where, text: str = "", colour: str = GREY, dash: str = "dash", **at: float
) -> None:
    """A line through a whole panel at `x=` or `y=`, with words of its own."""
    add = chart.add_vline if "x" in at else chart.add_hline
    font, behind = {"size": 11, "color": SOFT}, "rgba(255, 255, 255, 0.7)"  # lines may pass there
    words = {"annotation_text": text, "annotation_font": font, "annotation_bgcolor": behind} if text else {}
    line = {"color": colour, "width": 1.3, "dash": dash}
    add(**at, row=where[0], col=where[1], line=line, exclude_empty_subplots=False, **words)


def curves(
    series: Mapping[str, tuple[Any, Any]],
    colours: Sequence[str] = PALETTE,
    *,
    title: str = "",
    labels: tuple[str, str] = ("", ""),
    limits: Mapping[str, float] = MappingProxyType({}),
    log: bool = False,
) -> Figure:
    """Lines of x and y by name, in one panel with these axis `labels`; hovering tells y.

    limits: y at which a dashed red line stands, by the words beside it. log: of the y axis.
    """
    chart = new_chart(title=title, height=340)
    for (name, (x, y)), colour in zip(series.items(), colours, strict=False):
        draw(chart, (1, 1), name, x=list(x), y=list(y), line_color=colour, told="%{y:.3g}")
    for words, y in limits.items():
        mark(chart, (1, 1), words, RED, y=y)
    chart.update_xaxes(title_text=labels[0])
    chart.update_yaxes(title_text=labels[1], type="log" if log else "linear", exponentformat="power")
    return chart


def top_figure(top: TopK) -> Figure:
    """How strongly the maps of each layer that was mined answer at most, from the strongest to the weakest: a chart."""
    chart = new_chart(title=f"{top.model} on {top.images}", height=340)
    for (layer, found), colour in zip(top.layers.items(), shades(len(top.layers)), strict=True):
        strongest, maps = found.max.sort(descending=True)
        x = [100 * (i + 0.5) / len(maps) for i in range(len(maps))]
        told = f"{layer}, map %{{customdata}}: %{{y:.3g}}"
        y, customdata = strongest.tolist(), maps.tolist()
        draw(chart, (1, 1), layer, line_color=colour, told=told, x=x, y=y, customdata=customdata)
    chart.update_xaxes(title_text="maps, strongest first, % of the layer")
    chart.update_yaxes(title_text="strongest activation", exponentformat="power")
    return chart


def note(chart: Figure, where: Where, x: Any, y: Any, text: str, colour: str = SOFT, **options: Any) -> None:
    """Words at a place of a panel, to the right of it by default: a line's name at its end."""
    plain = {"showarrow": False, "xanchor": "left", "xshift": 5, "font": {"size": 11, "color": colour}}
    chart.add_annotation(x=x, y=y, text=text, row=where[0], col=where[1], **plain | options)


def faded(colour: str, opacity: float) -> str:
    """A colour, "#RRGGBB" or "rgb(...)", that lets so much through."""
    red, green, blue = ImageColor.getrgb(colour)[:3]
    return f"rgba({red}, {green}, {blue}, {opacity:g})"


def shades(count: int) -> list[str]:
    """Colours from the first layer to the last, light to dark, that colour-blind readers can put in order."""
    from plotly.colors import sample_colorscale

    return sample_colorscale("Viridis", [0.85 * (1 - i / max(count - 1, 1)) for i in range(count)])


# ---------------------------------------------------------------------------------------------- in a notebook


def show(figure: Any) -> None:
    """Display a chart, a plate (matplotlib) or a picture (`PIL.Image`), as functions of this room return them.

    A chart is kept in the notebook as data, which Jupyter, VS Code and Colab draw without a connection; `make
    notebooks` adds a PNG for pages that run no JavaScript (`add_pictures`).
    """
    from IPython.display import display

    display(bundle(figure), raw=True)


def bundle(figure: Any) -> dict[str, Any]:
    """A figure's forms by MIME type, as an output of a notebook holds them."""
    if hasattr(figure, "to_plotly_json"):
        chart = json.loads(figure.to_json()) | {"config": CONFIG}
        title = figure.layout.title.text or "; ".join(a.text for a in figure.layout.annotations[:3])
        words = title.replace("<br>", " ") or "without a title"
        return {CHART: chart, "text/plain": f"chart of {len(figure.data)} traces: {words}"}
    if isinstance(figure, Image.Image):
        kind, data = encoded(figure)
        size = f"{figure.width} x {figure.height} px"
        return {kind: base64.b64encode(data).decode(), "text/plain": f"picture of {size}"}
    if hasattr(figure, "savefig"):
        import matplotlib.pyplot as plt

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor="white")
        plt.close(figure)
        return {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": "plate"}
    raise ZfkitError(f"expected a chart, a plate or a picture of zfkit.figures, not {type(figure).__name__}")


def encoded(picture: Image.Image) -> tuple[str, bytes]:
    """MIME type and bytes of a picture: PNG, which loses nothing, or, where that is large, JPEG with all its colours.

    JPEG halves the resolution of colours by default (4:2:0), which smears the fine colours of projections.
    """
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    if buffer.tell() <= LARGEST_PNG:
        return "image/png", buffer.getvalue()
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=92, subsampling="4:4:4")
    return "image/jpeg", buffer.getvalue()


def add_pictures(notebook: Any) -> str:
    """Put a PNG beside each chart among an executed notebook's outputs, for GitHub, nbconvert and print.

    notebook: of nbformat; it is changed. Returns why there are none where kaleido or a Chromium is missing, else "".
    """
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ()) if CHART in o.get("data", {})]
    if not outputs:
        return ""
    try:
        pngs = to_png([output.data[CHART] for output in outputs])
    except ZfkitError as error:
        return str(error)
    for output, png in zip(outputs, pngs, strict=True):
        output.data["image/png"] = base64.b64encode(png).decode()
    return ""


def to_png(charts: Sequence[Any], width: int = WIDTH, scale: float = 2) -> list[bytes]:
    """Charts (plotly figures, or the same as dictionaries) as PNG of `scale` x `width` px, drawn by one Chromium.

    Raises ZfkitError where kaleido is not installed or finds no Chromium.
    """
    try:
        from choreographer.browsers import ChromeNotFoundError
        from kaleido import Kaleido, PageGenerator
    except ImportError as error:
        raise ZfkitError("charts become pictures with kaleido: pip install kaleido") from error

    async def drawn() -> list[bytes]:
        pngs = []
        page = PageGenerator(mathjax=False)  # which is on a CDN
        async with Kaleido(n=1, page_generator=page) as browser:
            for chart in charts:
                whole = chart if isinstance(chart, dict) else json.loads(chart.to_json())
                size = {"width": width, "height": whole["layout"].get("height", 360), "scale": scale}
                plain = {name: whole[name] for name in ("data", "layout")}
                pngs.append(await browser.calc_fig(plain, opts={"format": "png", **size}))
        return pngs

    try:
        with ThreadPoolExecutor(1) as thread:  # a notebook's own thread has a running loop already
            pngs = thread.submit(asyncio.run, drawn()).result()
    except ChromeNotFoundError as error:
        raise ZfkitError("charts become pictures with a Chromium: install chromium or chrome") from error
    return [_with_few_colours(png) for png in pngs]


def _with_few_colours(png: bytes) -> bytes:
    """A chart has few colours: with 256 its file is a third as large, and looks the same."""
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
