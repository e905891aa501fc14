"""Chart of a training's course."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .charts import draw, mark, new_chart
from .style import PALETTE

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure as Chart


def training_figure(histories: pd.DataFrame | Mapping[str, pd.DataFrame]) -> Chart:
    """Loss, validation accuracy and dominance over epochs, of one run or of several by name (`Run.history`): a chart.

    Validation is dashed; dotted lines mark where the learning rate fell.
    """
    several = histories if isinstance(histories, Mapping) else {"": histories}
    titles = ("cross-entropy, nats", "validation top-1, %", "conv1's largest / median RMS")
    dashed = "" if "" in several else " (dashed: validation)"
    chart = new_chart(1, 3, titles=(titles[0] + dashed, *titles[1:]), height=320)
    panels = [("loss", 1, "training"), ("val_loss", 1, "validation"), ("top1", 2, "validation")]
    panels.append(("dominance", 3, "training"))
    for (name, history), colour in zip(several.items(), PALETTE * len(several), strict=False):
        for column, panel, of in panels:
            label = name or of
            told = f"{name} {of}, epoch %{{x}}<br>{titles[panel - 1]}: %{{y:.3f}}<br>lr %{{customdata:g}}"
            line = {"color": colour, "dash": "dash" if of == "validation" else "solid"}
            data = {"x": history.epoch, "y": history[column], "customdata": history.lr, "told": told}
            draw(chart, (1, panel), label, mode="lines", line=line, **data)
        for panel in (1, 2, 3):
            for epoch in history.epoch[history.lr.diff() < 0]:
                mark(chart, (1, panel), x=float(epoch) - 0.5, dash="dot")
    chart.update_xaxes(title_text="epoch").update_yaxes(rangemode="tozero")
    return chart.update_yaxes(range=[0, 102], row=1, col=2)
