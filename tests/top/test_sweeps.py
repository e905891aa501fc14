"""Sweeps: what is refused before anything runs, what runs leave behind, and what survives a hard knock."""

from __future__ import annotations

import ast
import base64
import io
import itertools
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import browser
import joblib
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from parsed import Page
from PIL import Image

from zfkit.cli import main
from zfkit.errors import ZfkitError
from zfkit.sweeps import expand, plan_sweep, read_grid, read_parameters, record, recorded, runs, sweep
from zfkit.sweeps.execute import join_streams, with_parameters
from zfkit.sweeps.gallery import Outcome, results

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").rglob("*.ipynb"))
EXECUTE = [sys.executable, str(Path(__file__).parents[1] / "execute_notebooks.py")]
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
CELL = """\
model = "zfnet64"  # a name, or "torchvision:NAME"
rule = "deconvnet"  # one of: "deconvnet", "guided", or "gradient"
maps = 24  # 1, 2, ... or "all"
rank = 2  # range: 0 to 8
rate = 0.1  # range: 0 or more; per step
limit: int | None = None  # pictures
norm = True
layers = ["conv1"]  # names
anything = None"""


def notebook(*code, parameters=CELL, title="# What is it?"):
    """A notebook of a heading, a parameters cell and these code cells (Markdown where they begin with #)."""
    cell = new_code_cell(parameters, metadata={"tags": ["parameters"]}, id="p")
    cells = [new_markdown_cell(title, id="title"), cell]
    for i, text in enumerate(code):
        new = new_markdown_cell if text.startswith("#") else new_code_cell
        cells.append(new(text, id=f"cell{i}"))
    return new_notebook(cells=cells, metadata={"kernelspec": KERNEL})


def written(path, *code, **options):
    nbformat.write(notebook(*code, **options), path)
    return path


@pytest.fixture(scope="module")
def parameters():
    return read_parameters(notebook())


# ------------------------------------------------------------------------------------------ parameters


def test_the_cell_is_read_as_it_stands(parameters):
    assert [(p.name, p.default) for p in parameters.values()] == [
        ("model", "zfnet64"), ("rule", "deconvnet"), ("maps", 24), ("rank", 2), ("rate", 0.1), ("limit", None),
        ("norm", True), ("layers", ["conv1"]), ("anything", None),
    ]  # fmt: skip
    assert parameters["rule"].choices == ("deconvnet", "guided", "gradient")
    assert parameters["rank"].bounds == (0, 8)
    assert parameters["rate"].bounds == (0, math.inf)
    assert parameters["model"].choices is None, "quoted words are examples unless the comment says one of"


@pytest.mark.parametrize("name, value, got", [
    ("rule", "guided", "guided"), ("maps", "all", "all"), ("maps", np.int64(3), 3), ("rate", 1, 1.0),
    ("rate", torch.tensor(0.5), 0.5), ("limit", 10, 10), ("layers", ("conv2",), ["conv2"]),
    ("model", Path("a.safetensors"), "a.safetensors"),
    ("anything", {"deep": [1, None, "x"]}, {"deep": [1, None, "x"]}),
])  # fmt: skip
def test_values_that_fit_are_taken(parameters, name, value, got):
    (run,) = expand([{name: value}], parameters)
    assert run.given == {name: got}
    assert type(run.given[name]) is type(got)
    assert run.parameters == {n: p.default for n, p in parameters.items()} | {name: got}


@pytest.mark.parametrize("grid, word", [
    ({"modle": ["x"]}, "there is no parameter 'modle'. Did you mean 'model'?"),
    ({"maps": ["many"]}, "takes a whole number, not 'many' (text); the notebook says: \"1, 2, ..."),
    ({"maps": [True]}, "takes a whole number, not True"),
    ({"rule": ["deconv"]}, "takes one of 'deconvnet', 'guided', 'gradient', not 'deconv'"),
    ({"rank": [9]}, "takes 0 to 8, not 9"), ({"rate": [-0.1]}, "takes 0 or more, not -0.1"),
    ({"rate": [math.nan]}, "not JSON compliant"), ({"rate": ["1e-3"]}, "write it with a point, as 0.001"),
    ({"model": [False]}, "put the text in quotes"),
    ({"layers": ["conv1", "conv2"]}, "a list is written as [[...]]"),
    ({"limit": ["ten"]}, "takes a whole number or None, not 'ten'"), ({"maps": [2**70]}, "64 bits"),
    ({"anything": [object()]}, "object is no number"), ({"anything": ["\ud800"]}, "surrogates not allowed"),
    ({"anything": [[[0] * 200] * 200]}, "more than 10,000 parts"),
    ({}, "the grid is empty"), ([], "an empty list"), ("model", "not 'model' (text)"),
    ([3], "run 1 of the grid is 3"), ({"maps": []}, "no value for maps"),
    ({"rate": [1, 1.0]}, "rate = 1.0 twice"),
    ([{"maps": 1}, {"maps": 2}, {"maps": 1}], "runs 1 and 3 of the grid are the same: maps = 1"),
    ([{}, {"maps": 24}], "runs 1 and 2 of the grid are the same: maps = 24"),
    ({"maps": range(1, 40), "rank": range(8), "rate": [i / 9 for i in range(9)]}, "2,808 runs (39 maps x 8 rank"),
    ({"maps": range(1, 10**12)}, "values for maps; at most 1,000"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(parameters, grid, word):
    with pytest.raises(ZfkitError, match=re.escape(word)):
        expand(grid, parameters)


@pytest.mark.parametrize("cell, word", [
    ("x = 2 * 3", "gives x no literal"), ("import os", "only assignments NAME = LITERAL go there"),
    ("x, y = 1, 2", "only assignments"), ("x = 1\nx = 2", "assigns x a second time"),
    ("x = ", "no valid Python"), ("x = 1\0", "no valid Python"), ("", "is empty"),
    ("x = 9  # range: 0 to 8", "its own default does not fit"), ("x = 1e999", "not JSON compliant"),
    ("x = b'bytes'", "bytes is no number"),
])  # fmt: skip
def test_a_parameters_cell_holds_literals_and_nothing_else(cell, word):
    with pytest.raises(ZfkitError, match=re.escape(word)):
        read_parameters(notebook(parameters=cell), "it.ipynb")


def test_comments_and_text_may_hold_what_looks_like_code():
    """Where papermill's own reader gives up: a second =, a # in text, a union, a value over several lines."""
    cell = 'a = 1  # side = 3\nb = "#fff"  # a colour\nc: str | None = None  # any\nd = [\n    1,\n]  # list'
    found = read_parameters(notebook(parameters=cell))
    assert [(p.default, p.comment) for p in found.values()] == [
        (1, "side = 3"), ("#fff", "a colour"), (None, "any"), ([1], "list"),
    ]  # fmt: skip


def test_a_notebook_has_one_parameters_cell():
    with pytest.raises(ZfkitError, match=r"it\.ipynb has no cells tagged 'parameters'"):
        read_parameters(new_notebook(cells=[new_code_cell("x = 1")]), "it.ipynb")
    two = notebook()
    two.cells.append(two.cells[1])
    with pytest.raises(ZfkitError, match="has 2 cells tagged"):
        read_parameters(two)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_has_parameters_with_comments_and_stays_small(path, caplog):
    papermill, shipped = pytest.importorskip("papermill"), nbformat.read(path, as_version=4)
    nbformat.validate(shipped)
    found = read_parameters(shipped, path.name)  # one tagged cell, literals only, defaults that fit
    assert [p.name for p in found.values() if not p.comment] == [], "unit and allowed values, in a comment"
    assert [*papermill.inspect_notebook(str(path))] == [*found] and "Unable to parse" not in caplog.text
    assert path.stat().st_size < 3 * 2**20
    assert "widgets" not in shipped.metadata, "GitHub refuses some notebooks with widget state"


# ------------------------------------------------------------------------------------------ grids


def test_a_mapping_is_every_combination_in_order(parameters):
    runs = expand({"rank": [0, 1, 2], "rule": ["guided", "gradient"], "maps": 5}, parameters)
    combinations = itertools.product([0, 1, 2], ["guided", "gradient"])
    assert [run.given for run in runs] == [{"rank": a, "rule": b, "maps": 5} for a, b in combinations]
    assert runs[1].name == "rule=gradient,maps=5,rank=0", "readable, in the notebook's order"


def test_yaml_is_read_as_both_kinds_of_grid(tmp_path, parameters):
    file = tmp_path / "grid.yaml"
    file.write_text("model: [zfnet64, 'torchvision:vgg11']\nrate: [1, 0.5]\n")
    assert len(expand(read_grid(file), parameters)) == 4
    file.write_text("- &base {model: zfnet64, maps: 3}\n- {<<: *base, maps: 4}\n")
    assert [r.given["maps"] for r in expand(read_grid(file), parameters)] == [3, 4]
    file.write_text('{"maps": [1, "all"]}')  # JSON is YAML
    assert [r.given["maps"] for r in expand(read_grid(file), parameters)] == [1, "all"]


@pytest.mark.parametrize("text, word", [
    ("maps: [1\nrank: 2", "grid.yaml, line 2"), ("maps: 1\nmaps: 2", "line 1: maps is there twice"),
    ("maps: !!python/object/apply:os.system ['touch hacked']", "could not determine a constructor"),
    ("[" * 5000, "grid.yaml"), ("maps: 2024-13-45", "month must be in 1..12"),
    ("maps: " + "9" * 5000, "grid.yaml"), ("? [a, b]\n: 1", "unhashable"),
    ("a: 1\n---\nb: 2", "found another document"), ("x" * 1_100_000, "larger than 1 MB"),
    ("\x00", "special characters are not allowed"), (b"\xff\xfe\xfa\x89PNG", "grid.yaml"),
    (None, "cannot read the grid"),
])  # fmt: skip
def test_bad_yaml_is_refused_with_its_line(tmp_path, monkeypatch, text, word):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "grid.yaml"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ZfkitError, match=re.escape(word)):
        read_grid(file)
    assert not Path("hacked").exists()


def test_aliases_that_unfold_without_end_do_not(tmp_path, parameters):
    """Nine levels of nine aliases each would be 10^9 words; a list may also hold itself."""
    levels = ["l0: &l0 [lol]", *(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 10))]
    for text in ("\n".join([*levels, "anything: [*l9]"]), "anything: [&a [*a]]"):
        (tmp_path / "grid.yaml").write_text(text)
        grid = read_grid(tmp_path / "grid.yaml")
        with pytest.raises(ZfkitError, match=r"10,000 parts|Circular"):
            expand({"anything": grid["anything"]}, parameters)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\"\\\n'{", max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(st.lists(PLAIN, min_size=1, max_size=6))
def test_values_reach_the_notebook_unchanged_under_safe_names_of_their_own(values):
    """The injected cell is nothing but assignments of these very values, whatever quotes and newlines they hold."""
    unique = {json.dumps(v, sort_keys=True): v for v in values}
    found = read_parameters(notebook(parameters="anything = None"))
    runs = expand([{"anything": v} for v in unique.values()], found)
    for run, value in zip(runs, unique.values(), strict=True):
        cell = with_parameters(notebook(parameters="anything = None"), run.parameters).cells[2]
        (statement,) = ast.parse(cell.source).body
        assert ast.literal_eval(statement.value) == value
        assert re.fullmatch(r"[A-Za-z0-9_=,.+-]{1,120}", run.name)
        assert not run.name.endswith(".")
    assert len({run.name.casefold() for run in runs}) == len(runs)


def test_names_differ_where_file_systems_fold_case_or_types_look_alike():
    found = read_parameters(notebook(parameters="anything = None"))
    values = ("a", "A", 1, "1", True, 1.0, None, "None", "../x", "..\\x", "")
    names = [run.name for run in expand([{"anything": v} for v in values], found)]
    assert len({n.casefold() for n in names}) == len(names)
    assert not any("/" in n or "\\" in n or ".." in n for n in names)


# ------------------------------------------------------------------------------------------ records


def test_records_of_a_notebook_are_read_and_others_are_not():
    mime = "application/vnd.zfkit.record+json"
    pairs = [
        ("x", 1), ("x", 2), ("y", {"float": "nan"}), ("z", [1, {"float": "-inf"}]), ("w", {"float": "1;2"}),
    ]  # fmt: skip
    outputs = [
        new_output("display_data", {mime: {}}, metadata={"zfkit": {"record": n, "value": v}})
        for n, v in pairs
    ]
    outputs += [
        new_output("display_data", {mime: {}}),
        new_output("display_data", {mime: {}}, metadata={"zfkit": "odd"}),
        new_output("display_data", {"text/plain": "x"}, metadata={"zfkit": {"record": "q", "value": 1}}),
    ]
    values = recorded(new_notebook(cells=[new_code_cell("", outputs=outputs), new_markdown_cell("")]))
    assert math.isnan(values.pop("y"))
    assert values == {"x": 2, "z": [1, -math.inf], "w": None}


@pytest.mark.parametrize("name, value, word", [
    *(("it", v, "cannot record 'it'") for v in ({"a": 1}, [[1]], np.zeros((2, 2)), 2**64, 1j)),
    *((n, 1, "a record needs a name") for n in (" ", "two\nlines", 3, "x" * 201)),
])  # fmt: skip
def test_what_cannot_be_recorded_is_refused(name, value, word):
    with pytest.raises(ZfkitError, match=word):
        record(name, value)


# ------------------------------------------------------------------------------------------ runs


def png(width):
    """A picture so many pixels wide, as base64."""
    file = io.BytesIO()
    Image.new("RGB", (width, 1), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


# Records without importing torch, as zfkit.record does it: kernels start in a second, not in three.
RECORD = """\
import os
import pickle
from IPython.display import display
def record(name, value):
    told = {"zfkit": {"record": name, "value": value}}
    display({"application/vnd.zfkit.record+json": {}}, metadata=told, raw=True)"""
WORK = """\
open("ran.txt", "a").write(f"{x}\\n")
mended = os.path.exists("mended")
record("square", x * x); record("threads", int(os.environ["OMP_NUM_THREADS"])); record("word", "<i>" + word)
if x == 3 and not mended: 1 / 0
if x == 4 and not mended:
    import time
    time.sleep(1)  # until what was recorded is on its way
    os._exit(9)"""
PICTURE = f"""\
pictures = {[png(i) for i in range(1, 6)]!r}
display({{"image/png": pictures[x], "text/html": "<script>alert(3)</script>"}}, raw=True)
display({{"image/png": "bm8gcGljdHVyZQ=="}}, raw=True)"""
ALIKE = 'display({"image/png": pictures[4]}, raw=True)'
X = 'x = 0  # 0, 1, ...\nword = "<script>alert(1)</script>"  # any\nseed = 7  # any'
SHOWN = [RECORD, WORK, "## Its <b>shape</b>", PICTURE, "## Always this", ALIKE]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of four runs, one after the other: one of them fails, and one ends its own kernel."""
    home = tmp_path_factory.mktemp("sweep")
    path = written(home / "it.ipynb", *SHOWN, parameters=X)
    before = Path.cwd()
    os.chdir(home)  # runs see relative paths from here
    try:
        table = sweep(path, {"x": [1, 2, 3, 4]}, "runs", jobs=1, progress=False)
        yield home, table
    finally:
        os.chdir(before)


def test_a_run_that_fails_does_not_stop_the_others(swept):
    _, table = swept
    assert table["status"].tolist() == ["finished", "finished", "failed", "failed"]
    assert table["square"].tolist() == [1, 4, 9, 16], "what they recorded before they stopped is kept"
    assert table["error"][2] == "ZeroDivisionError: division by zero"
    assert "kernel died" in table["error"][3]
    assert set(table["threads"]) == {joblib.cpu_count()}, "one at a time has all cores"


def test_the_table_in_the_file_is_the_table_returned(swept):
    home, table = swept
    read = pd.read_parquet(home / "runs" / "results.parquet")
    pd.testing.assert_frame_equal(read, table)
    assert list(read) == [
        "run", "x", "word", "seed", "square", "threads", "word_recorded", "status", "error", "seconds", "notebook",
    ]  # fmt: skip
    assert read["x"].tolist() == [1, 2, 3, 4]


def test_every_run_is_a_notebook_with_its_provenance_and_nothing_else_is_left(swept):
    home, table = swept
    names = ["x=1.ipynb", "x=2.ipynb", "x=3.failed.ipynb", "x=4.failed.ipynb"]
    assert table["notebook"].tolist() == names
    left = {p.name for p in (home / "runs").iterdir()}
    assert left == {*names, "index.html", "results.parquet", "figures", ".sweep.lock"}
    for file, x in zip(table["notebook"], table["x"], strict=True):
        run = nbformat.read(home / "runs" / file, as_version=4)
        nbformat.validate(run)
        held = run.metadata["zfkit"]
        assert held["parameters"] == {"x": x, "word": "<script>alert(1)</script>", "seed": 7}
        assert (held["given"], held["seed"], held["notebook"]) == (["x"], 7, "it.ipynb")
        assert {"zfkit", "python", "platform", "torch", "numpy"} <= set(held["versions"])
        assert re.match(r"20\d\d-\d\d-\d\dT", held["started"])
        assert held["seconds"] > 0
        assert str(Path.home()) not in json.dumps(run.metadata)
    failed = nbformat.read(home / "runs" / "x=3.failed.ipynb", as_version=4)
    (stopped,) = [c for c in failed.cells if any(o.output_type == "error" for o in c.get("outputs", ()))]
    assert stopped.source == WORK


def test_the_page_shows_all_runs_and_escapes_everything(swept):
    home, _ = swept
    text = (home / "runs" / "index.html").read_text()
    page = Page(text)
    assert len(page.scripts) == 1
    assert "alert" not in page.scripts[0]
    assert not {"i", "iframe", "object"} & {tag for tag, _ in page.elements}
    shared, recorded_ones = 1, 4
    assert page.text.count("<script>alert(1)</script>") == shared + recorded_ones
    assert "ZeroDivisionError" in page.text
    assert "Its <b>shape</b>" in page.text
    assert not re.search(r"https?://", text)
    refers = [a[n] for _, a in page.elements for n in a if n in ("src", "href")]
    files = [unquote(r) for r in refers if not r.startswith(("#", "data:"))]
    pictures = [f for f in files if f.startswith("figures/")]
    assert pictures[::2] == pictures[1::2], "each links to what it shows"
    assert pictures[::2] == ["figures/x=1/4-1.png", "figures/x=2/4-1.png", "figures/x=1/5-1.png"]
    assert "the same in all 2 runs" in page.text
    assert all((home / "runs" / f).is_file() for f in files)


@pytest.mark.browser
@pytest.mark.skipif(bool(browser.why_not()), reason=browser.why_not())
def test_the_page_works_in_a_browser_without_a_connection(swept):
    home, _ = swept
    said, asked = [], []
    with browser.chromium() as chromium:
        page = chromium.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append("alert"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((home / "runs" / "index.html").as_uri())
        assert page.eval_on_selector_all("figure img", "all => all.map(i => i.naturalWidth)") == [2, 3, 5]
        page.click("th:nth-child(3) button")
        page.click("th:nth-child(3) button")  # the largest square first
        order = page.eval_on_selector_all("tbody tr", "rows => rows.map(r => r.dataset.run)")
        assert order == ["x=4", "x=3", "x=2", "x=1"]
        page.select_option("select", label="2")
        assert page.locator("tbody tr:visible").count() == 1
        assert page.locator("figure:visible").count() == 2
        assert "1 of 4 runs" in page.inner_text("nav")
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_what_changed_is_noticed(swept):
    """New code, or a new default, makes runs stale; new prose does not."""
    home, _ = swept

    def todo(*code, parameters=X, grid=None, **more):
        path = written(home / "it.ipynb", *code, parameters=parameters, **more)
        return [run.name for run in plan_sweep(path, grid or {"x": [1, 2]}, home / "runs").todo]

    try:
        assert todo(*SHOWN) == []
        assert todo(*SHOWN, title="# Other words") == []
        assert todo(*SHOWN, grid={"x": [1, 5]}) == ["x=5"]
        assert todo(*SHOWN, parameters=X.replace("seed = 7", "seed = 8")) == ["x=1", "x=2"]
        assert todo(RECORD, WORK + "\n") == ["x=1", "x=2"]
        assert todo(*SHOWN, grid=[{"x": 1, "seed": 7}]) == ["x=1,seed=7"], "another name is another file"
    finally:
        written(home / "it.ipynb", *SHOWN, parameters=X)


@pytest.mark.slow
def test_the_same_command_does_what_is_missing_and_nothing_else(swept, capsys):
    home, _ = swept
    kept = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (home / "runs").glob("x=?.ipynb")}
    assert len(kept) == 2
    (home / "grid.yaml").write_text("x: [1, 2, 3, 4]")
    (home / "mended").touch()
    (home / "ran.txt").unlink()
    assert main(["sweep", "it.ipynb", "--grid", "grid.yaml", "--out", "runs", "--jobs", "2"]) == 0
    assert "4 runs of it.ipynb: 2 done before, 2 to do" in capsys.readouterr().out
    assert sorted((home / "ran.txt").read_text().split()) == ["3", "4"]
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in kept} == kept
    assert sorted(p.name for p in (home / "runs").glob("*.ipynb")) == [f"x={i}.ipynb" for i in (1, 2, 3, 4)]
    table = pd.read_parquet(home / "runs" / "results.parquet")
    assert table["status"].eq("finished").all()
    assert set(table["threads"][2:]) == {max(1, joblib.cpu_count() // 2)}, "two at a time share the cores"
    assert "failed" not in Page((home / "runs" / "index.html").read_text()).text


@pytest.mark.slow
def test_a_run_that_hangs_is_stopped_and_says_so(tmp_path):
    path = written(tmp_path / "it.ipynb", "import time", "time.sleep(900)", parameters="x = 1")
    start = time.monotonic()
    table = sweep(path, {"x": [1]}, tmp_path / "runs", timeout=1, progress=False)
    assert table["error"].tolist() == ["TimeoutError: the run took longer than 1 s"]
    assert time.monotonic() - start < 300
    last = nbformat.read(tmp_path / "runs" / "x=1.failed.ipynb", as_version=4).cells[-1]
    assert last.outputs[-1].ename == "TimeoutError"


@pytest.mark.slow
def test_a_cell_that_is_meant_to_raise_stops_nothing(tmp_path):
    path = written(tmp_path / "it.ipynb", "1 / 0", RECORD, "record('square', x * x)", parameters="x = 3")
    meant = nbformat.read(path, as_version=4)
    meant.cells[2].metadata["tags"] = ["raises-exception"]
    nbformat.write(meant, path)
    table = sweep(path, {"x": [3]}, tmp_path / "runs", progress=False)
    assert (table["status"][0], table["square"][0]) == ("finished", 9)


@pytest.mark.parametrize("x, said", [(3, True), (4, False)])
def test_what_is_said_of_the_default_run_is_left_out_of_others(x, said):
    part = "<!-- default-run -->\n\nIt is 9.\n\n<!-- /default-run -->"
    source = notebook(f"# Always.\n\n{part}\n\nAs ever.", "#", "x", parameters="x = 3")
    source.cells[3].source = part
    texts = [cell.source for cell in with_parameters(source, {"x": x}).cells]
    assert (part in texts) == said and (f"# Always.\n\n{part}\n\nAs ever." in texts) == said
    assert ("# Always.\n\nAs ever." in texts) != said and texts[-1] == "x"


@pytest.mark.slow
@pytest.mark.parametrize("x", [3, 4])
def test_papermill_leaves_it_out_with_the_engine(tmp_path, x):
    """The engine is found by its name, as by `papermill --engine zfkit`; a new process has no torch after it."""
    part = "<!-- default-run -->\n\nIt is 9.\n\n<!-- /default-run -->"
    source = notebook(f"# Always.\n\n{part}", "print(x * x)", parameters="x = 3")
    nbformat.write(source, tmp_path / "in.ipynb")
    job = "import sys, papermill as p; p.execute_notebook('in.ipynb', 'out.ipynb', {'x': int(sys.argv[1])}, "
    job += "engine_name='zfkit', progress_bar=False); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", job, str(x)], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    texts = [cell.source for cell in executed if cell.cell_type == "markdown"]
    assert ("# Always." in texts, f"# Always.\n\n{part}" in texts) == (x != 3, x == 3)
    assert [output.text for cell in executed for output in cell.get("outputs", ())] == [f"{x * x}\n"]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def stream(text, name="stdout"):
    return nbformat.v4.new_output("stream", text=text, name=name)


@pytest.mark.parametrize("printed, kept", [
    ([("a\n", "stdout"), ("b\n", "stdout")], [("a\nb\n", "stdout")]),
    ([("w\n", "stderr"), ("a\n", "stdout"), ("x\n", "stderr")], [("a\n", "stdout"), ("w\nx\n", "stderr")]),
    ([("10 %\r", "stderr"), ("20 %\r", "stderr"), ("done\n", "stderr")], [("done\n", "stderr")]),
    ([("line\r\n10 %\r20 %\r\n", "stdout")], [("line\r\n20 %\r\n", "stdout")]),
    ([("", "stdout")], [("", "stdout")]), ([], []),
])  # fmt: skip
def test_streams_of_a_cell_are_joined_as_a_terminal_shows_them(printed, kept):
    cell = nbformat.v4.new_code_cell(outputs=[stream(*p) for p in printed])
    text = nbformat.v4.new_markdown_cell("prose")
    (joined, _) = join_streams(nbformat.v4.new_notebook(cells=[cell, text])).cells
    assert [(o.text, o.name) for o in joined.outputs] == kept


def test_a_line_of_a_million_letters_takes_no_longer_than_many_short_ones():
    """Where a search begins anew at every letter of a line, this would take hours."""
    cell = nbformat.v4.new_code_cell(outputs=[stream("x" * 1_000_000 + "\r" + "y" * 1_000_000)])
    (joined,) = join_streams(nbformat.v4.new_notebook(cells=[cell])).cells
    assert joined.outputs[0].text == "y" * 1_000_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_leaves_finished_runs_whole_and_no_kernel_behind(tmp_path):
    work = "import os, time\nopen(f'{x}.pid', 'w').write(str(os.getpid()))\ntime.sleep(0 if x == 1 else 900)"
    path = written(tmp_path / "it.ipynb", work, parameters="x = 1")
    (tmp_path / "grid.yaml").write_text("x: [1, 2, 3]")
    command = [sys.executable, "-m", "zfkit", "sweep", str(path), "--grid", "grid.yaml", "--jobs", "2"]
    going = subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job starts with it ignored
    )  # fmt: skip
    try:
        wanted = [tmp_path / "runs" / "x=1.ipynb", tmp_path / "2.pid", tmp_path / "3.pid"]
        for _ in range(1200):
            if all(p.exists() for p in wanted) and (tmp_path / "3.pid").read_text():
                break
            time.sleep(0.1)
        os.killpg(going.pid, signal.SIGINT)  # as the terminal does it: to all of them at once
        _, said = going.communicate(timeout=120)
    finally:
        if going.poll() is None:
            os.killpg(going.pid, signal.SIGKILL)
    assert going.returncode == 130, said
    assert f"zfkit sweep: interrupted; again: zfkit sweep {path} --grid grid.yaml --jobs 2" in said
    assert "Traceback" not in said
    nbformat.validate(nbformat.read(tmp_path / "runs" / "x=1.ipynb", as_version=4))
    left = {p.name for p in (tmp_path / "runs").iterdir()}
    assert left == {"x=1.ipynb", "index.html", "results.parquet", ".sweep.lock"}
    table = pd.read_parquet(tmp_path / "runs" / "results.parquet")
    assert table["status"].tolist() == ["finished", "missing", "missing"]
    pids = [int((tmp_path / f"{i}.pid").read_text()) for i in (2, 3)]
    for _ in range(100):
        if not any(map(alive, pids)):
            break
        time.sleep(0.1)
    assert [pid for pid in pids if alive(pid)] == []
    assert [r.name for r in plan_sweep(path, {"x": [1, 2, 3]}, tmp_path / "runs").todo] == ["x=2", "x=3"]


# ------------------------------------------------------------------------------------------ a cluster


@pytest.mark.slow
def test_on_a_cluster_of_two_workers_as_here_even_if_one_dies(tmp_path, monkeypatch, capsys):
    """Two worker processes share the runs. The run of x = 3 kills its worker the first time; it is run again."""
    distributed = pytest.importorskip("distributed")
    work = """\
import signal, time
record("worker", os.getppid())
time.sleep(1)
if x == 3 and not os.path.exists("killed"):
    open("killed", "w").close()
    os.kill(os.getppid(), signal.SIGKILL)
record("square", x * x)"""
    path = written(tmp_path / "it.ipynb", RECORD, work, parameters="x = 0")
    (tmp_path / "grid.yaml").write_text("x: [0, 1]")
    monkeypatch.chdir(tmp_path)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        address = cluster.scheduler_address
        assert main(["sweep", "it.ipynb", "--grid", "grid.yaml", "--dry-run", "--scheduler", address]) == 0
        assert "answers: 2 at a time on 1 machines" in capsys.readouterr().out
        assert not Path("runs").exists(), "a dry run writes nothing"
        table = sweep(path, {"x": [0, 1, 2, 3]}, "runs", scheduler=address, progress=False)
    assert table["status"].eq("finished").all(), table["error"].tolist()
    assert table["square"].tolist() == [0, 1, 4, 9]
    assert table["worker"].nunique() >= 2
    assert (tmp_path / "killed").exists()


# ------------------------------------------------------------------------------------------ hard knocks


@pytest.mark.parametrize("arguments, word", [
    (["none.ipynb"], "there is no notebook 'none.ipynb'"),
    (["list.ipynb"], "list.ipynb is no Jupyter notebook"),
    (["julia.ipynb"], "julia.ipynb is a notebook in julia"),
    (["it.ipynb", "--grid", "none.yaml"], "cannot read the grid 'none.yaml'"),
    (["it.ipynb", "--out", "grid.yaml"], "'grid.yaml' is a file"),
    (["it.ipynb", "--out", "grid.yaml/below"], "cannot write"),
    (["it.ipynb", "--max-runs", "1"], "2 values for x; at most 1 are run"),
    (["it.ipynb", "--jobs", "0"], "jobs must be a whole number from 1 on, not 0"),
    (["it.ipynb", "--timeout", "0"], "timeout, in seconds, must be a finite number, at least 1"),
    (["it.ipynb", "--out", "mine"], "x=1.ipynb' is no notebook that this sweep left, and would"),
    (["typo.ipynb"], "Did you mean 'ex'? There are: ex (parameters of typo.ipynb)"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, word):
    monkeypatch.chdir(tmp_path)
    written(Path("it.ipynb"), parameters="x = 0")
    written(Path("typo.ipynb"), parameters="ex = 0")
    julia = notebook(parameters="x = 0")
    julia.metadata["kernelspec"] = {"name": "julia", "display_name": "Julia", "language": "julia"}
    nbformat.write(julia, "julia.ipynb")
    Path("list.ipynb").write_text("[1, 2]")
    Path("grid.yaml").write_text("x: [1, 2]")
    Path("mine").mkdir()
    written(Path("mine/x=1.ipynb"))
    if "--grid" not in arguments:
        arguments = [*arguments, "--grid", "grid.yaml"]
    assert main(["sweep", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("zfkit sweep: ")
    assert word in error


def test_a_dry_run_lists_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(Path("it.ipynb"), parameters='x = "a"')
    Path("grid.yaml").write_text("x: [b, c]")
    assert main(["sweep", "it.ipynb", "--grid", "grid.yaml", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 runs of it.ipynb: 0 done before, 2 to do", "  to do  x=b", "  to do  x=c",
    ]  # fmt: skip
    assert not Path("runs").exists()


def test_two_sweeps_do_not_write_to_one_folder(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    path = written(tmp_path / "it.ipynb", parameters="x = 0")
    (tmp_path / "runs").mkdir()
    with (tmp_path / "runs" / ".sweep.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ZfkitError, match="another sweep is writing to"):
            sweep(path, {"x": [1]}, tmp_path / "runs", progress=False)


def test_results_of_mixed_kinds_fit_one_table(tmp_path):
    """Columns that no single type of Parquet holds become text; numbers stay numbers, lists of numbers lists."""
    found = read_parameters(notebook(parameters='maps = 1  # or "all"\nrun = None'))
    runs = expand([{"maps": 1}, {"maps": "all"}, {"maps": 3, "run": 2.5}], found)
    records = [
        {"a": 1, "b": 1, "c": [1, 2], "d": True, "e": "x", "status": 1},
        {"a": 2.5, "b": None, "c": [0.5], "d": None, "e": 1, "status": 2},
        {"a": math.inf, "c": None, "status": 3},
    ]
    table = results([Outcome(r, "finished", records=held) for r, held in zip(runs, records, strict=True)])
    table.to_parquet(tmp_path / "t.parquet")
    read = pd.read_parquet(tmp_path / "t.parquet")
    assert read["maps"].tolist() == ["1", "all", "3"]
    assert read["a"].tolist() == [1, 2.5, math.inf]
    assert read["b"].isna().tolist() == [False, True, True]
    assert [None if v is None else list(v) for v in read["c"]] == [[1, 2], [0.5], None]
    assert read["d"].tolist()[0] is True
    assert read["e"].tolist()[:2] == ["x", "1"]
    assert read["status_recorded"].tolist() == [1, 2, 3]
    assert read["run_parameter"].dropna().tolist() == [2.5]


# ------------------------------------------------------------------------------------------ make notebooks


@pytest.mark.slow
def test_executing_notebooks_twice_changes_no_byte(tmp_path):
    """Output in bursts, carriage returns, a picture, a record, which shows nothing: what changes is not kept."""
    bursts = "import sys, time\nfor i in range(4):\n    print(i, flush=True); time.sleep(0.3)\nprint('a\\rb')"
    keep = "import zfkit\nzfkit.record('x', x)"
    path = written(tmp_path / "it.ipynb", bursts, keep, PICTURE, parameters="x = 1  # any")
    versions = []
    for _ in range(2):
        subprocess.run([*EXECUTE, str(path)], check=True, capture_output=True)
        versions.append(path.read_bytes())
    assert versions[0] == versions[1]
    cells = nbformat.read(path, as_version=4).cells
    assert len(cells[2].outputs) == 1
    (output,) = cells[3].outputs
    assert {k: v for k, v in output.data.items() if "zfkit" not in k} == {"text/html": ""}
    assert recorded(nbformat.read(path, as_version=4)) == {"x": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["it.ipynb"]


def test_a_worker_watches_its_parent_before_it_imports_torch():
    # As it reaches a worker: pickled. Unpickling imports the module that it stands in, and what that imports.
    code = f"import pickle, sys; pickle.loads({pickle.dumps(runs.end_with)!r}); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
