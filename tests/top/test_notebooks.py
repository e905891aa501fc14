"""Notebooks are short, plain, and show something without a kernel: the rules of CONTRIBUTING, "Add a notebook"."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import zfkit
from zfkit.sweeps import read_parameters
from zfkit.sweeps.execute import DEFAULT_RUN
from zfkit.sweeps.records import recorded

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
WORDS, CELLS, LINES, SENTENCE, CLOSING = 1_200, 20, 15, 30, 120
MORE_CELLS = {"02_deconvnet_by_hand": 40}  # of toys
ALWAYS_SO = {"04-10": "0.65", "04b-06": "0.05 0.20 0.30", "c04": "0.18", "c13-1": "0.09"}  # no findings
DECIMALS = r"(?<![\d.])\d+\.\d\d+(?!\.?\d)"
FOLDED = re.compile(r"<details>.*?</details>", re.S)
WIDGET = "application/vnd.jupyter.widget-view+json"


def as_read(markdown: str) -> str:
    """What is read of Markdown: without code blocks, formulas, tags and the targets of links."""
    for pattern in (r"```.*?```", r"^(?: {4}.*\n?)+", r"\$\$.*?\$\$", r"\$[^$\n]+\$", r"<[^>]+>"):
        markdown = re.sub(pattern, " ", markdown, flags=re.S | re.M if pattern.startswith("^") else re.S)
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown)


def word_count(text: str) -> int:
    return sum(any(c.isalnum() for c in word) for word in text.split())


def sentences(markdown: str) -> list[str]:
    """Sentences of running text; headings, items of lists and rows of tables stand alone, rows are left out."""
    text = re.sub(r"^\s*(?:[-*]|\d+\.|>) ", "\n\n", as_read(markdown), flags=re.M)
    blocks = re.split(r"\n\s*\n|^#.*$|^\|.*$", text, flags=re.M)
    # A full stop ends a sentence where a space and no small letter follow: "Fig. 4" and "e.g. so" go on.
    ends = r"(?<=[.?!])[\"*_)]*\s+(?=[^a-z\d\s])"
    return [" ".join(s.split()) for block in blocks for s in re.split(ends, block) if s.strip()]


def broken_rules(notebook: nbformat.NotebookNode, cells: int = CELLS) -> list[str]:
    """A sentence for each rule that the notebook does not keep to."""
    found = []
    words = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    code = [c for c in notebook.cells if c.cell_type == "code"]

    def at_most(limit: int, number: int, what: str) -> None:
        if number > limit:
            found.append(f"{number} {what}, at most {limit}")

    at_most(WORDS, word_count(as_read("\n".join(words))), "words")
    at_most(cells, len(notebook.cells), "cells")
    for cell in code:
        at_most(LINES, len(cell.source.splitlines()), f"lines in cell {cell.id}")
    for sentence in (s for text in words for s in sentences(text)):
        at_most(SENTENCE, word_count(sentence), f"words in {sentence[:50]!r}")
    at_most(CLOSING, word_count(as_read(FOLDED.sub("", words[-1]))), "unfolded words in the last cell")
    first = words[0].partition("\n")[0]
    if not (first.startswith("# ") and first.endswith("?")):
        found.append(f"the title {first!r} is no question")
    found += [
        f"the first cell lacks {w!r}" for w in ("Previous", "Next", "Reading", "running") if w not in words[0]
    ]
    exercises = "\n".join(words).partition("\n## Exercises")[2]
    if len(re.findall(r"^\d\. ", FOLDED.sub("", exercises), re.M)) < 3 or not FOLDED.search(exercises):
        found.append("no three exercises with folded answers")
    if not re.search(r"\bpredict\b", "\n".join(words), re.I):
        found.append("nothing to predict")
    measured = set(re.findall(DECIMALS, printed_by(notebook)))
    for cell in (c for c in notebook.cells if c.cell_type == "markdown"):
        text = FOLDED.sub("", DEFAULT_RUN.sub("", cell.source))
        said = measured.intersection(re.findall(DECIMALS, as_read(text)))
        if said - set(ALWAYS_SO.get(cell.id, "").split()):
            found.append(f"cell {cell.id} has {sorted(said)} of this run, which is not marked as the default")
    for cell in code:
        for output in cell.outputs:
            if output.output_type == "stream" and re.search(r"\b(True|False)\b", output.text):
                found.append(f"cell {cell.id} prints {output.text!r}, and no number")
            data = output.get("data", {})
            if WIDGET in data and not any(kind.startswith("image/") for kind in data):
                found.append(f"the widget of cell {cell.id} leaves no picture")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_short_and_plain(path):
    assert broken_rules(nbformat.read(path, as_version=4), MORE_CELLS.get(path.stem, CELLS)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_weights_are_a_parameter_and_all_parameters_are_used(path):
    notebook = nbformat.read(path, as_version=4)
    cells = (c for c in notebook.cells if "outputs" in c and c.metadata.get("tags") != ["parameters"])
    code = "\n".join(c.source for c in cells)
    names = read_parameters(notebook, path.name)
    assert "weights" in names and re.search(r"weights=weights|weights\.split", code), "handed on"
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []
    assert re.search(r"if .*\bweights\b.*:\n    print\(\"The text speaks of", code), "with others"


def test_words_and_sentences_are_those_that_are_read():
    text = (
        "# A title?\n\nOne two, e.g. three $x + y$ [four](five six.md). `Six` 7 eight!\n\n"
        "- nine\n- ten: Fig. 4 ends.\n\n| a | b |\n"
    )
    assert sentences(text) == ["One two, e.g. three four.", "`Six` 7 eight!", "nine", "ten: Fig. 4 ends."]
    assert word_count(as_read("<b>one</b> - $two$ [three](four.md)\n\n    code()\n")) == 2


def test_each_rule_is_noticed():
    cells = [
        nbformat.v4.new_markdown_cell("# No question\n\n" + "word " * 31 + "."),
        nbformat.v4.new_markdown_cell("<!-- default-run -->\n\nIt is 0.56.\n\n<!-- /default-run -->"),
        nbformat.v4.new_code_cell("\n".join(["x = 1"] * 16)),
        nbformat.v4.new_markdown_cell("Words. " * 118 + "It is 0.56."),
    ]
    cells[2].outputs = [
        nbformat.v4.new_output("stream", text="more than chance: True, 0.56"),
        nbformat.v4.new_output("display_data", {WIDGET: {}, "text/plain": "Explorer"}),
    ]
    broken = " / ".join(broken_rules(nbformat.v4.new_notebook(cells=cells), cells=3))
    for rule in (
        "31 words in", "16 lines", "4 cells", "121 unfolded", "no question", "lacks 'Previous'", "no three exercises",
        "nothing to predict", "prints", "leaves no picture", "has ['0.56'] of this run",
    ):  # fmt: skip
        assert rule in broken
    cells[3].source = "Words. " * 1201
    assert "words, at most 1200" in " / ".join(broken_rules(nbformat.v4.new_notebook(cells=cells)))


ERROR, PLAIN = "{}: top-1 error, %", "{} networks, 1 crops: top-1 error, %"
LIKENESS = "{}, {} colours: likeness to the photo"
# Notebook, what README says in its row, and the records in it: each, or one of each layer; "-" turns the sign.
RECORDED = [
    ("01", ", ".join(["{:.2f}"] * 5) + " from layer 1", "conv{}: likeness of patches"),
    ("03", "in `zfnet64` {} of 96 filters", "zfnet64: filters at the clip"),
    ("04", "{:.2f} of the energy in the middle band", "alexnet64 conv1: mid"),
    ("04", "{:.2f} of the band covered", "alexnet64 conv1: mid_coverage"),
    ("04", "`zfnet64` {:.2f} and {:.2f};", "zfnet64 conv1: mid", "zfnet64 conv1: mid_coverage"),
    ("04b", "{:.0%} of the first layer's energy", "alexnet64 conv1: share folded"),
    ("04b", "{:.0%} of what layer 2", "alexnet64 reconstructions: above 1/3 cycle per pixel"),
    ("04b", "{:.0%} and {:.0%} ", *("zfnet64 " + of for of in (
        "conv1: share folded", "reconstructions: above 1/3 cycle per pixel"))),
    ("04c", "the stride takes {:.2f} ", "-folded_pictures: stride"),
    ("04c", "the kernel adds {:.2f} ", "mid_coverage: kernel"),
    ("04c", "| kernel {:.2f} ±", "agreement: kernel"),
    ("04c", "and stride {:.2f} ±", "agreement: stride"),
    ("05", "at epochs " + ", ".join(["{:.0f}"] * 5), "conv{}: settled at epoch"),
    ("05", "15: " + ", ".join(["{:.0f}"] * 5), "conv{}: settled at epoch, cut off"),
    ("07", "likeness of {:.2f}", "deconvnet shares picture, all weights but the channel's"),
    ("07", "floor: {:.2f}", "deconvnet shares nothing (unrelated units)"),
    ("07", "{:.2f}, becomes {:.2f} |", *(LIKENESS.format("trained", c) for c in ("plain", "natural"))),
    ("07", "{:.2f} becomes {:.2f} |", *(LIKENESS.format("untrained", c) for c in ("plain", "natural"))),
    ("08", "{:.2f} ± 0.04 of it is left", "left on the object"),
    ("08", "nearly as much: {:.2f} ± 0.03 less", "object minus mirrored"),
    ("08", "correlation {:.2f} ± 0.09", "correlation: own projection"),
    ("08", "other maps' projections: {:.2f} ± 0.07", "other maps'"),
    ("09", "1 px moves layer 1 by {:.2f}", "shift 1: low layer moves by"),
    ("09", "shift {:.0%}, scale {:.0%}", "shift: same top class", "scale: same top class"),
    ("10", "answer's eyes {:.2f} and {:.2f}", *(f"classifier.3 {e} eye: relative" for e in ("right", "left"))),
    ("11", "{:.1f} becomes {:.1f}% wrong", ERROR.format("full"), ERROR.format("without-3-4-6-7")),
    ("11", "textures {:.0f}, {:.0f}, {:.0f}% wrong", *(PLAIN.format(count) for count in (1, 2, 3))),
    ("11b", "from {:.0f}% in the first block", "features.2: % right"),
    ("11b", "{:.2f} in its first block, {:.2f} in its last", "features.2: selectivity", "features.12: selectivity"),
]  # fmt: skip


def printed_by(notebook):
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.mark.parametrize("entry", RECORDED, ids=lambda entry: f"{entry[0]}: {entry[1]}")
def test_claims_are_the_numbers_that_notebooks_recorded(entry):
    number, claim, *names = entry
    notebook = nbformat.read(next(FOLDER.glob(f"{number}_*.ipynb")), as_version=4)
    records, printed = recorded(notebook), printed_by(notebook)
    names = [name.format(layer) for name in names for layer in range(1, 6 if "{}" in name else 2)]
    said = claim.format(*(-records[n[1:]] if n[0] == "-" else records[n] for n in names)).replace("%", " %")
    rows = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [row for row in rows if number in row.rstrip(" |").rpartition("| ")[2].split(", ")]
    assert any(said in row for row in rows)
    assert all(with_error in printed for with_error in re.findall(r"[\d.]+ ± [\d.]+", said))


VGG = {"model": "torchvision:vgg11", "weights": "none"}
NET = {"model": "torchvision:resnet18", "weights": "none"}
PAIR = {"weights": "none", "pair": ["squeezenet1_1", "torchvision:vgg11"]}
RUNS = {
    "00_explorer": {"model": "squeezenet1_1"},
    "01_what_do_the_layers_see": VGG | {"maps": 2},
    "04_which_frequencies": PAIR | {"draws": 2},
    "04b_what_a_stride_folds": PAIR | {"pictures": 2, "windows": 2, "searched": 9, "maps": 4},
    "07_can_you_trust_the_picture": NET | {"units": 2, "layers": "layer1.1.conv2,layer2.1.conv2"},
    "08_occlusion": NET | {"picture": 0, "target": "", "step": 0.25},
    "09_invariance": {"model": "squeezenet1_1", "many": 2, "turn": 90, "zoom": 0.4},
    "10_correspondence": VGG | {"images": "animals", "draws": 1},
    "11b_transfer": NET | {"each": 3, "per_class": [1, 2], "splits": 1, "scratch_epochs": 0},
    "A_the_lattice": PAIR | {"searched": 9, "maps": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_notebooks_run_with_other_networks_and_a_folder_of_pictures(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ZFKIT_CACHE", str(tmp_path / "cache"))
    for i in range(10):
        blocks = np.random.default_rng(i).integers(0, 256, (30, 30, 3), dtype=np.uint8)
        (folder := tmp_path / "mine" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(blocks).resize((260, 260)).save(folder / f"{i}.png")
    source = FOLDER / f"{name}.ipynb"
    takes = read_parameters(nbformat.read(source, as_version=4))
    mine = {"images": f"folder:{tmp_path / 'mine'}"} if "images" in takes else {}
    run = zfkit.sweep(source, [mine | RUNS[name]], tmp_path / "runs", threads=1, progress=False).iloc[0]
    assert run.status == "finished", run.error
    done = nbformat.read(tmp_path / "runs" / run.notebook, as_version=4)
    assert "The text speaks of" in printed_by(done), "or its numbers would be taken for this network's"
    assert not any("default-run" in cell.source for cell in done.cells if cell.cell_type == "markdown")
    kept = pd.read_parquet(tmp_path / "runs" / "results.parquet").iloc[0]
    assert (records := recorded(done)) and {*records} <= {*kept.index}
    said = re.findall(r"(\S+): patches of one map (\S+), of different maps (\S+)", printed_by(done))
    assert len(said) == (5 if name.startswith("01") else 0)  # a line for each layer
    for layer, *numbers in said:
        row = kept[[f"{layer}: likeness of patches", f"{layer}: of different maps"]]
        assert [f"{value:.2f}" for value in row] == numbers
