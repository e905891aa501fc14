"""The chart of a training's course shows its history."""

import pandas as pd

from zfkit.figures import PALETTE, training_figure


def history(factor):
    """Four epochs, the learning rate falling before the third."""
    table = pd.DataFrame({"epoch": [1, 2, 3, 4], "lr": [0.1, 0.1, 0.01, 0.01]})
    for i, name in enumerate(("loss", "val_loss", "top1", "dominance"), 1):
        table[name] = factor * i / table.epoch
    return table


def test_every_run_has_its_lines_in_its_colour_and_tells_the_learning_rate():
    runs = {"a": history(1), "b": history(2)}
    chart = training_figure(runs)
    for panel, columns in enumerate((("loss", "val_loss"), ("top1",), ("dominance",)), start=1):
        expected = [(n, c, colour) for n, colour in zip(runs, PALETTE, strict=False) for c in columns]
        for line, (name, column, colour) in zip(chart.select_traces(row=1, col=panel), expected, strict=True):
            assert list(line.x) == [1, 2, 3, 4] and list(line.y) == list(runs[name][column])
            assert line.line.color == colour and line.name == name
            assert list(line.customdata) == [0.1, 0.1, 0.01, 0.01] and "lr %{customdata" in line.hovertemplate
    falls = [shape.x0 for shape in chart.layout.shapes]
    assert falls == [2.5] * 6, "between the epochs, in each panel, for each run"
    shown = [trace.name for trace in chart.data if trace.showlegend]
    assert shown == ["a", "b"], "each once"
    dashed = {trace.line.dash for trace in chart.data if "validation" in trace.hovertemplate}
    assert dashed == {"dash"} and "dashed: validation" in chart.layout.annotations[0].text


def test_one_run_needs_no_name():
    chart = training_figure(history(1))
    assert [trace.name for trace in chart.data if trace.showlegend] == ["training", "validation"]
    titles = [words.text for words in chart.layout.annotations]
    assert titles[0] == "cross-entropy, nats" and titles[1].endswith("%")
