"""Figure of a training's course."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .style import GREY, PALETTE, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def training_figure(histories: pd.DataFrame | Mapping[str, pd.DataFrame]) -> Figure:
    """Loss, validation accuracy and dominance over epochs, of one run or of several by name (`Run.history`).

    Dotted lines mark where the learning rate fell.
    """
    several = histories if isinstance(histories, Mapping) else {"": histories}
    figure, panels = new_figure(1, 3, size=(9, 2.8))
    loss, accuracy, largest = panels
    for (name, history), colour in zip(several.items(), PALETTE * len(several), strict=False):
        label = f"{name}: " if name else ""
        loss.plot(history.epoch, history.loss, color=colour, label=f"{label}training")
        loss.plot(history.epoch, history.val_loss, "--", color=colour, label=f"{label}validation")
        accuracy.plot(history.epoch, history.top1, color=colour, label=name or "top-1")
        largest.plot(history.epoch, history.dominance, color=colour, label=name or None)
        for axes in panels:
            for epoch in history.epoch[history.lr.diff() < 0]:
                axes.axvline(epoch - 0.5, color=GREY, linestyle=":", linewidth=1)
    loss.set(title="cross-entropy", xlabel="epoch", ylabel="nats", ylim=(0, None))
    accuracy.set(title="validation top-1", xlabel="epoch", ylabel="%", ylim=(0, 102))
    high = max(float(history.dominance.max()) for history in several.values())
    largest.set(
        title="dominance in conv1", xlabel="epoch", ylabel="largest / median RMS", ylim=(0, 1.1 * high)
    )
    for axes in panels:
        axes.xaxis.get_major_locator().set_params(integer=True)
    loss.legend(fontsize=8)
    if len(several) > 1:
        accuracy.legend(fontsize=8)
    return figure
