"""What holds the project together: layout, dependencies, imports, packaging."""

from __future__ import annotations

import ast
import json
import os
import pydoc
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# In reading order: a room, or a file beside the rooms, imports only those above it.
ORDER = [
    "version", "parent", "errors", "checks", "files", "checksums", "results", "batching", "cluster", "images", "nets",
    "deconv", "topk", "frequency", "training", "health", "experiments", "figures", "atlas", "widgets", "sweeps",
    "doctor", "arguments", "cli", "__init__", "__main__",
]  # fmt: skip
LONGEST = 500  # lines of a file of zfkit
MOST = {
    "zfkit": 31_201,
    "tests": 27_029,
}  # lines of Python: lowered as they get thinner, raised for new abilities only
HEAVY = {
    "torch", "torchvision", "matplotlib", "plotly", "kaleido", "pandas", "IPython", "ipywidgets", "jupyter_core",
    "pyarrow", "onnx", "scipy", "skimage", "sklearn", "papermill", "captum", "lightning", "distributed",
}  # fmt: skip
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "kaleido": "python-kaleido"}
FILES = sorted((ROOT / "zfkit").rglob("*.py"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def nodes_that_run(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, at the top and inside functions, but for what only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if not is_type_checking(node):
            yield node
            yield from nodes_that_run(node)


def imports_of(file: Path) -> set[str]:
    """What a file of zfkit imports of zfkit, as "room", "room.file" or "room.name"."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]  # ("zfkit",) or ("zfkit", room)
    imported = set()
    for node in nodes_that_run(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            imported |= {f"{module}.{alias.name}" for alias in node.names}
    inside = {name.removeprefix("zfkit.") for name in imported if name.startswith("zfkit.")}
    return {name for name in inside if name != "__version__"}


def room_of(file: Path) -> str:
    return file.relative_to(ROOT / "zfkit").parts[0].removesuffix(".py")


def test_imports_go_one_way_between_rooms():
    assert {room_of(file) for file in FILES} == set(ORDER), "a new room needs its place in the reading order"
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in FILES
        for name in imports_of(file)
        if (room := name.partition(".")[0]) != room_of(file)
        and room not in ORDER[: ORDER.index(room_of(file))]
    ]
    assert wrong == []


@pytest.mark.parametrize("room", sorted({room_of(f) for f in FILES if f.parent.name != "zfkit"}))
def test_no_cycle_within_a_room(room):
    files = {file.stem: file for file in FILES if room_of(file) == room}
    graph = {}
    for stem, file in files.items():
        names = {name.split(".")[1] for name in imports_of(file) if name.startswith(f"{room}.")}
        # What is no file is a name that the room's __init__ offers.
        graph[stem] = {name if name in files else "__init__" for name in names} - {stem}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_files_and_folders_stay_small():
    lines = {file.relative_to(ROOT): len(file.read_text().splitlines()) for file in FILES}
    assert {str(file): n for file, n in lines.items() if n > LONGEST} == {}
    tests = sum(len(file.read_text().splitlines()) for file in (ROOT / "tests").rglob("*.py"))
    total = {"zfkit": sum(lines.values()), "tests": tests}
    assert {folder: n for folder, n in total.items() if n > MOST[folder]} == {}


def test_the_top_level_is_some_36_names_and_help_fits_a_screen():
    import zfkit

    names = {name for name in dir(zfkit) if not name.startswith("_")}
    names -= {"annotations", "Any", "TYPE_CHECKING"}
    offered = [name for name in sorted(names) if not isinstance(getattr(zfkit, name), ModuleType)]
    assert 30 <= len(offered) <= 40
    assert [name for name in offered if name not in zfkit.__doc__] == [], "help(zfkit) groups them"
    assert len(pydoc.plain(pydoc.render_doc(zfkit)).strip().splitlines()) <= 60


WORK = """
import zfkit
model = zfkit.load_model("zfnet64")
photos = zfkit.load_images("photos-small", size=64, limit=2, progress=False)
top = zfkit.mine(model, photos, ["conv1"], k=1, progress=False)
zfkit.project_top(model, photos, top, "conv1", [0], progress=False)
zfkit.TopK.load(zfkit.topk.bundled.DATA / "zfnet64-photos.parquet"), zfkit.topk.bundled.records(model)
"""


@pytest.mark.parametrize("work, heavy", [
    ("import zfkit", HEAVY),
    (WORK, (HEAVY | {"torch._dynamo", "sympy"}) - {"torch", "pyarrow"}),  # seconds each
], ids=["import", "work"])  # fmt: skip
def test_nothing_heavy_is_imported_before_it_is_used(work, heavy):
    code = f"import sys\n{work}\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_everything_above_widgets_does_without_jupyter():
    """A GPU server has no Jupyter and no matplotlib: there the rooms are imported all the same."""
    rooms = ", ".join(f"zfkit.{room}" for room in ORDER[: ORDER.index("widgets")] if room != "figures")
    lacking = {"matplotlib", "plotly", "IPython", "ipywidgets", "jupyter_client", "papermill", "anywidget"}
    code = f"import sys; sys.modules.update(dict.fromkeys({lacking})); import {rooms}"
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_conda_environment_has_the_same_dependencies():
    dependencies = (ROOT / "environment.yml").read_text().split("dependencies:")[1]
    listed = re.findall(r"^  - ([a-z0-9-]+)(>=[0-9.]+)?$", dependencies, re.M)
    conda = dict(listed)
    project = PYPROJECT["project"]
    wanted = {"python": project["requires-python"], "pip": ""}
    for requirement in project["dependencies"] + project["optional-dependencies"]["notebooks"]:
        name, lowest = re.fullmatch(r"([a-z0-9-]+)(>=[0-9.]+)", requirement).groups()
        wanted[CONDA_NAMES.get(name, name)] = lowest
    assert conda == wanted


def test_every_dependency_has_a_reason():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    requirements = [line for line in lines if re.match(r'    "[a-z0-9-]+>=', line)]
    assert len(requirements) > 20
    assert [line for line in requirements if "  # " not in line] == []


def test_readme_links_lead_somewhere():
    folders = ("data", "notebooks", "zfkit", "benchmarks")
    for page in [*ROOT.glob("*.md"), *(ROOT / folder / "README.md" for folder in folders)]:
        for target in re.findall(r'(?:\]\(|src=")([^)#"]+)', page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_counts_the_claims_as_the_table_marks_them():
    marks = re.findall(r"^\| (.) \| ", (ROOT / "notebooks" / "README.md").read_text(), re.M)
    counts = [len(marks), *(marks.count(mark) for mark in "●◐○?")]
    assert sum(counts[1:]) == counts[0]
    quoted = re.search(
        r"(\d+) claims (\d+) hold, (\d+) partly, (\d+) do(?:es)? not, and of (\d+)",
        (ROOT / "README.md").read_text(),
    )
    assert [int(number) for number in quoted.groups()] == counts


def test_notebook_links_lead_somewhere():
    for notebook in (ROOT / "notebooks").rglob("*.ipynb"):
        for cell in json.loads(notebook.read_text())["cells"]:
            words = "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""
            for target in re.findall(r"\]\(([^)#]+)", words):
                if not target.startswith("http"):
                    assert (notebook.parent / target).exists(), f"{notebook.name} links to {target}"


@pytest.mark.slow
def test_the_wheel_holds_weights_and_no_stray_files(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"zfkit/weights/{n}.safetensors" for n in ("zfnet64", "alexnet64", "squeezenet1_1")} <= names
    assert {"zfkit/images/photographs/sources.csv", "zfkit/images/photographs/panda.webp"} <= names
    assert {"zfkit/topk/data/records.parquet"} <= names and any(n.endswith("licenses/NOTICE") for n in names)
    assert {
        "zfkit/experiments/data/ablation-textures.csv",
        "zfkit/experiments/data/first_layer.parquet",
    } <= names
    pages = "atlas/templates/base.html", "sweeps/templates/sweep.html", "health/templates/report.html"
    assert {f"zfkit/{page}" for page in pages} <= names
    inside = {n.split("/")[0] for n in names}
    assert inside == {"zfkit", next(n for n in inside if n.endswith(".dist-info"))}

    # Installed somewhere else, it makes an atlas from an empty folder: weights, album and style came along.
    empty, elsewhere = tmp_path / "empty", tmp_path / "installed"
    empty.mkdir()
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(elsewhere), str(wheel)]
    pip = [sys.executable, "-m", "pip", *install]
    subprocess.run(pip, check=True, capture_output=True)
    run = "import sys, zfkit; print(zfkit.__file__); from zfkit.cli import main; sys.exit(main(sys.argv[1:]))"
    options = "atlas --images photos --limit 12 --maps 2 --layers conv1 --out atlas".split()
    done = subprocess.run(
        [sys.executable, "-c", run, *options],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(elsewhere)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(elsewhere))
    assert "conv1" in (empty / "atlas" / "index.html").read_text()


def test_badges_open_notebooks_that_are_there_in_the_one_repository():
    home = PYPROJECT["project"]["urls"]["Homepage"].removeprefix("https://github.com/")
    readme = (ROOT / "README.md").read_text()
    assert f"git clone https://github.com/{home} " in readme
    pages = "https://{}.github.io/{}/".format(*home.split("/"))  # which .github/workflows/pages.yml publishes
    assert re.search(r"\]\(([^)]+)\)", readme)[1] == pages, "the first link"
    binder = re.findall(r"mybinder\.org/v2/gh/([^/]+/[^/]+)/HEAD\?labpath=([^)]+)", readme)
    colab = re.findall(r"colab\.research\.google\.com/github/([^/]+/[^/]+)/blob/main/([^)]+)", readme)
    assert len(binder) == len(colab) == 1
    for repository, notebook in binder + colab:
        assert repository == home and (ROOT / notebook).exists()
        cells = json.loads((ROOT / notebook).read_text())["cells"]
        assert any(f"git+https://github.com/{home}" in "".join(cell["source"]) for cell in cells)  # for Colab
