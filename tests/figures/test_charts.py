"""Charts: what a notebook keeps of them, the pictures beside them, and what is common to all."""

from __future__ import annotations

import base64
import io
import json
import re

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
from browser import chromium, open_page, why_not
from PIL import Image

from zfkit.errors import ZfkitError
from zfkit.figures import add_pictures, charts, new_chart, new_figure

mpl.use("Agg")
needs_chromium = pytest.mark.skipif(bool(why_not()), reason=why_not())


def chart():
    two = new_chart(1, 2, titles=["first", "second"], height=300)
    told = "told %{customdata} at %{x}<extra></extra>"
    data = {"x": [0, 1, 2], "y": [1.5, 0.5, 1], "customdata": ["a", "b", "c"]}
    charts.draw(two, (1, 1), "line", hovertemplate=told, **data)
    charts.draw(two, (1, 2), "line", x=[0, 1], y=np.array([1.0, 2.0]), line_color="#D55E00")
    return two


def test_a_name_stands_in_the_legend_once_and_is_hidden_everywhere():
    first, second = chart().data
    assert (first.showlegend, second.showlegend) == (True, False)
    assert first.legendgroup == second.legendgroup == "line"
    assert [words.x for words in chart().layout.annotations] == [0, chart().layout.xaxis2.domain[0]]


def test_an_output_holds_chart_and_words_and_no_page():
    kept = charts.bundle(chart())
    assert set(kept) == {charts.CHART, "text/plain"}
    assert kept["text/plain"] == "chart of 2 traces: first; second"
    data = json.loads(json.dumps(kept[charts.CHART]))
    assert data["data"][0]["y"] == [1.5, 0.5, 1] and data["layout"]["height"] == 300
    assert "http" not in json.dumps(kept), "nothing is asked from elsewhere"


def test_small_pictures_lose_nothing_and_large_ones_keep_their_colours():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
    kept = charts.bundle(small)
    shown = Image.open(io.BytesIO(base64.b64decode(kept["image/png"])))
    assert np.array_equal(np.asarray(shown), np.asarray(small))
    assert kept["text/plain"] == "picture of 40 x 40 px"
    smooth = np.kron(rng.integers(0, 256, (300, 300, 3)), np.ones((2, 2, 1)))  # colours that 4:2:0 would mix
    kind, data = charts.encoded(Image.fromarray(smooth.astype(np.uint8)))
    assert kind == "image/jpeg"
    assert [layer[1:3] for layer in Image.open(io.BytesIO(data)).layer] == [(1, 1)] * 3, "4:4:4"


def test_a_plate_becomes_a_png_and_is_closed():
    figure, axes = new_figure(size=(2, 1))
    axes.plot([0, 1])
    kept = charts.bundle(figure)
    assert Image.open(io.BytesIO(base64.b64decode(kept["image/png"]))).size == (200, 100)
    assert not mpl.pyplot.fignum_exists(figure.number)
    with pytest.raises(ZfkitError, match="expected a chart, a plate or a picture"):
        charts.bundle([])


def executed():
    """A notebook with a chart among its outputs."""
    output = nbformat.v4.new_output("display_data", data=charts.bundle(chart()))
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("show(chart)", outputs=[output])])


def test_without_kaleido_charts_stay_alone(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "kaleido", None)
    notebook = executed()
    assert "pip install kaleido" in add_pictures(notebook)
    assert set(notebook.cells[0].outputs[0].data) == {charts.CHART, "text/plain"}
    assert add_pictures(nbformat.v4.new_notebook()) == "", "where there are no charts none is missing"


@pytest.mark.browser
@needs_chromium
def test_a_png_stands_beside_every_chart():
    pytest.importorskip("kaleido")
    notebook = executed()
    assert add_pictures(notebook) == ""
    data = notebook.cells[0].outputs[0].data
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    assert picture.size == (1800, 600)
    colours = np.asarray(picture).reshape(-1, 3)
    assert (np.abs(colours.astype(int) - (0xD5, 0x5E, 0)).max(1) < 8).sum() > 500, "the line is drawn"
    nbformat.validate(notebook)


@pytest.mark.browser
@needs_chromium
def test_a_chart_is_drawn_and_tells_its_numbers_without_a_connection(tmp_path):
    page_file = tmp_path / "chart.html"
    page_file.write_text(chart().to_html())
    with chromium() as browser:
        page = open_page(browser, kernel=False)
        page.tab.goto(page_file.as_uri())
        page.wait_for(".scatterlayer .trace")
        page.tab.wait_for_timeout(300)
        assert len(page.tab.query_selector_all(".scatterlayer .trace")) == 2
        page.tab.evaluate(
            "Plotly.Fx.hover(document.querySelector('.js-plotly-plot'), [{curveNumber: 0, pointNumber: 1}])"
        )
        assert re.sub(r"\s", " ", page.wait_for(".hoverlayer .hovertext").text_content()) == "told b at 1"
        outside = [url for url in page.asked if not url.startswith("file:")]
        assert outside == [] and page.said == []


def test_curves_stand_under_their_names_with_their_limits():
    series = {"a": (np.arange(3), np.array([1.0, 10, 100])), "b": (["x", "y"], [2, 3])}
    options = {"labels": ("epoch", "loss"), "limits": {"guessing": 2.5}, "log": True}
    chart = charts.curves(series, ["red", "blue"], **options)
    assert [(t.name, list(t.x), list(t.y), t.line.color) for t in chart.data] == [
        ("a", [0, 1, 2], [1, 10, 100], "red"), ("b", ["x", "y"], [2, 3], "blue"),
    ]  # fmt: skip
    assert chart.layout.xaxis.title.text == "epoch" and chart.layout.yaxis.type == "log"
    (line,) = chart.layout.shapes
    (words,) = chart.layout.annotations
    assert line.y0 == line.y1 == 2.5 and words.text == "guessing"
    assert words.bgcolor.startswith("rgba(255, 255, 255, 0."), "curves do not run over the words"
