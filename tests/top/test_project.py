"""What holds the project together: layout, dependencies, imports, packaging."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# In reading order: a module imports only those above it.
ORDER = [
    "errors", "textures", "images", "graph", "checkpoints", "onnx_import", "models", "runs", "augmentation",
    "training_layers", "training", "receptive_field", "deconv", "topk", "patches", "atlas", "spectra", "aliasing",
    "health", "experiments", "plotting", "widgets", "sweeps", "doctor", "cli", "__init__", "__main__",
]  # fmt: skip
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def imports_of(module: Path) -> set[str]:
    """Modules of zfkit that a module, or any file of a sub-package, imports, at its top or inside functions."""
    found = set()
    for file in [module] if module.suffix else module.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == (1 if module.suffix else 2):
                found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found - {"__version__"}


def test_imports_go_one_way():
    files = {f.stem: f for f in (ROOT / "zfkit").glob("*.py")}
    files |= {f.parent.name: f.parent for f in (ROOT / "zfkit").glob("*/__init__.py")}
    assert set(files) == set(ORDER), "a new module needs its place in the reading order"
    for i, name in enumerate(ORDER):
        assert imports_of(files[name]) <= set(ORDER[:i]), f"{name} imports a module below it"


def test_importing_zfkit_brings_in_nothing_that_a_server_lacks():
    code = (
        "import sys, zfkit; heavy = {'matplotlib', 'pandas', 'IPython', 'ipywidgets', 'jupyter_core', 'pyarrow', "
        "'torchvision', 'onnx', 'skimage', 'sklearn', 'papermill', 'captum'}; print(sorted(heavy & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[]"


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
    for page in [ROOT / n for n in ("README.md", "data/README.md", "CHANGELOG.md", "CONTRIBUTING.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()) + re.findall(
            r'src="([^"]+)"', page.read_text()
        ):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_notebook_links_lead_somewhere():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(notebook.read_text())["cells"]:
            words = "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""
            for target in re.findall(r"\]\(([^)#]+)", words):
                if not target.startswith("http"):
                    assert (notebook.parent / target).exists(), f"{notebook.name} links to {target}"


def test_the_wheel_holds_weights_and_no_stray_files(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"zfkit/weights/zfnet64.safetensors", "zfkit/weights/alexnet64.safetensors"} <= names
    assert {
        "zfkit/experiments/data/ablation-textures.csv",
        "zfkit/experiments/data/first_layer.parquet",
    } <= names
    inside = {n.split("/")[0] for n in names}
    assert inside == {"zfkit", next(n for n in inside if n.endswith(".dist-info"))}

    # Installed somewhere else, it makes an atlas from an empty folder: weights, album and style came along.
    empty, elsewhere = tmp_path / "empty", tmp_path / "installed"
    empty.mkdir()
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        elsewhere,
        wheel,
    ]
    subprocess.run(pip, check=True, capture_output=True)
    code = (
        "import sys, zfkit; print(zfkit.__file__); from zfkit.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    options = [
        "atlas",
        "--images",
        "photos",
        "--limit",
        "12",
        "--maps",
        "2",
        "--layers",
        "conv1",
        "--out",
        "atlas",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *options],
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
    binder = re.findall(r"mybinder\.org/v2/gh/([^/]+/[^/]+)/HEAD\?labpath=([^)]+)", readme)
    colab = re.findall(r"colab\.research\.google\.com/github/([^/]+/[^/]+)/blob/main/([^)]+)", readme)
    assert len(binder) == len(colab) == 1
    for repository, notebook in binder + colab:
        assert repository == home and (ROOT / notebook).exists()
        cells = json.loads((ROOT / notebook).read_text())["cells"]
        assert any(f"git+https://github.com/{home}" in "".join(cell["source"]) for cell in cells)  # for Colab
