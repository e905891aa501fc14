"""Every chart function's chart in a real browser: drawn, telling numbers, asking nobody for anything."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from browser import chromium, open_page, why_not
from signals import classifier, mean_of_channels, noise, random_weight, wrap
from tiny import image_set, network, random_pixels
from torch import nn

import zfkit
from zfkit import figures
from zfkit.experiments import (
    bundled_runs,
    correspondence,
    ensemble,
    factorial_effects,
    invariance,
    load_first_layer_runs,
    pose_variation,
    read_ablation,
    sanity_checks,
    selectivity,
    transfer,
)
from zfkit.experiments.evolution import evolution
from zfkit.experiments.first_layer import MEASURES
from zfkit.frequency import grating_response, measure_aliasing, random_control, shift_consistency

# In the page: how much a chart drew, and where on the page the first point lies that should tell something.
LOOK = """
(name) => {
  const chart = document.querySelector(`#${name} .js-plotly-plot`);
  chart.scrollIntoView();
  const {left, top} = chart.getBoundingClientRect();
  for (const trace of chart._fullData) {
    if (!trace.hovertemplate || !['scatter', 'bar'].includes(trace.type)) continue;
    const {xaxis, yaxis} = chart._fullLayout._plots[trace.xaxis + trace.yaxis];
    const points = chart.calcdata[trace.index], middle = Math.floor(points.length / 2);
    for (const point of [points[middle], ...points]) {  // within its bar, or on the dot
      const x = xaxis.c2p(trace.orientation === 'h' ? point.x / 2 : point.x);
      const y = yaxis.c2p(trace.type === 'bar' && trace.orientation === 'v' ? point.y / 2 : point.y);
      if (isFinite(x) && isFinite(y))
        return [chart.querySelectorAll('.trace, .point').length, left + xaxis._offset + x, top + yaxis._offset + y];
    }
  }
}
"""


def results():
    """Charts by the name of the function that made them, from small networks or what ships with zfkit."""
    quiet = {"progress": False}
    pixels, labels = random_pixels(30), np.arange(30) % 3
    model, images = network(0), image_set(pixels, labels, ("r", "g", "b"))
    wide = zfkit.wrap_model(network(0).net, mean=120, scale=1 / 60, input_size=model.input_size, name="wide")
    runs, spectra = load_first_layer_runs(), zfkit.filter_spectra(random_weight(3, 3, 5, 5))
    pairs = [(e, network(e)) for e in (0, 2, 5)]
    grown = evolution(pairs, images, ["0", "3"], maps=1, compare=24, places=4, **quiet)
    checks = sanity_checks(model, images, ["3"], units=2, draws=1, keep=1, **quiet)
    boxes = torch.tensor([[4.0, 4, 9, 9]]).expand(4, 4)
    folding = wrap(nn.Conv2d(3, 4, 3, 2))
    found = selectivity(model, images, k=2, shuffles=1, **quiet)
    top = zfkit.mine(model, images, k=2, **quiet)
    table = pd.DataFrame({"right": [6.0, 60.0]}, index=["a", "b"])
    design = runs.table[(runs.table.images == "textures") & ~runs.table.blur]
    effects = factorial_effects(design, {"kernel": (11, 7), "stride": (4, 2)}, list(MEASURES))
    return {
        "ablation_figure": [read_ablation()],
        "aliasing_figure": [[measure_aliasing(folding, noise(3, 48), "0")]],
        "convergence_figure": [grown],
        "correspondence_figure": [
            correspondence(model, images.take([0, 1, 2, 3]), {"eye": boxes}, layers=["0"], draws=2, **quiet)
        ],
        "effects_figure": [{"": effects}],
        "ensemble_figure": [ensemble([model, wide], images, **quiet)],
        "first_layer_figure": [runs.table],
        "gratings_figure": [
            [grating_response(wrap(mean_of_channels(stride=2)), "0", frequencies=[0.1, 0.3])]
        ],
        "invariance_figure": [
            [invariance(model, images, "shift", [-1, 0, 1], layers=["0", "3"], window=18, **quiet)]
        ],
        "map_of_maps": [model, top, found],
        "network": [model],
        "photo_likeness_figure": [checks],
        "pose_variation_figure": [pose_variation(model, images, k=3, **quiet)],
        "profiles_figure": [{"untrained": [spectra]}],
        "radial_spectra": [random_control(spectra, draws=4)],
        "sanity_figure": [checks, "3"],
        "sanity_layers_figure": [checks],
        "selectivity_figure": [found],
        "shift_figure": [[shift_consistency(classifier(), noise(4, 22), 4)]],
        "steps_figure": [table],
        "top_figure": [top],
        "training_figure": [bundled_runs()[0].history],
        "transfer_figure": [transfer(model, images, images, ["0"], per_class=[2], splits=2, **quiet)],
    }


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_every_chart_is_drawn_and_tells_its_numbers_offline(tmp_path):
    charts = {name: getattr(figures, name)(*given) for name, given in results().items()}
    docs = {n: getattr(figures, n).__doc__ or "" for n in dir(figures)}
    offered = {n for n, doc in docs.items() if ": a chart" in doc.partition("\n")[0]}
    assert offered <= set(charts), "each function whose docstring says that it gives a chart"
    parts = [
        f'<div id="{name}">{chart.to_html(full_html=False, include_plotlyjs=i == 0)}</div>'
        for i, (name, chart) in enumerate(charts.items())
    ]
    page_file = tmp_path / "charts.html"
    page_file.write_text(f"<!doctype html><meta charset=utf-8>{''.join(parts)}")
    with chromium() as browser:
        page = open_page(browser, kernel=False)
        page.tab.goto(page_file.as_uri())
        page.tab.wait_for_timeout(1000)
        for name in charts:
            found = page.tab.evaluate(LOOK, name)
            assert found and found[0] > 0, f"{name} drew nothing"
            _, x, y = found
            page.tab.mouse.move(x - 1, y)
            page.tab.mouse.move(x, y)
            words = page.wait_for(f"#{name} .hoverlayer .hovertext").text_content()
            assert len(words) > 5 and "%{" not in words and "undefined" not in words, f"{name}: {words}"
        assert [url for url in page.asked if not url.startswith("file:")] == [] and page.said == []
