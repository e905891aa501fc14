"""The figure of a training's course shows its history."""

import matplotlib as mpl
import pandas as pd

from zfkit.figures import GREY, PALETTE, training_figure

mpl.use("Agg")


def history(factor):
    """Four epochs, the learning rate falling before the third."""
    table = pd.DataFrame({"epoch": [1, 2, 3, 4], "lr": [0.1, 0.1, 0.01, 0.01]})
    for i, name in enumerate(("loss", "val_loss", "top1", "dominance"), 1):
        table[name] = factor * i / table.epoch
    return table


def test_every_run_has_its_lines_in_its_colour():
    runs = {"a": history(1), "b": history(2)}
    axes = training_figure(runs).axes
    shown = (("loss", "val_loss"), ("top1",), ("dominance",))
    for panel, columns in zip(axes, shown, strict=True):
        curves = [line for line in panel.lines if line.get_color() != GREY]
        expected = [(runs[n], c, colour) for n, colour in zip(runs, PALETTE, strict=False) for c in columns]
        for line, (table, column, colour) in zip(curves, expected, strict=True):
            assert list(line.get_xdata()) == [1, 2, 3, 4] and list(line.get_ydata()) == list(table[column])
            assert line.get_color() == colour
        falls = [line.get_xdata()[0] for line in panel.lines if line.get_color() == GREY]
        assert falls == [2.5, 2.5]  # between the epochs, once for each run
    words = [[text.get_text() for text in panel.get_legend().get_texts()] for panel in axes[:2]]
    assert words == [["a: training", "a: validation", "b: training", "b: validation"], ["a", "b"]]


def test_one_run_needs_no_name():
    loss, accuracy, _ = training_figure(history(1)).axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation"]
    assert accuracy.get_legend() is None
    assert accuracy.get_ylabel() == "%" and loss.get_ylabel() == "nats"
