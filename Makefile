# Everything runs from .venv/ in this folder; the first target that needs it sets it up.
#   make demo   the atlas of the bundled network on the bundled photographs
#   make test   all tests           make lab   JupyterLab at the first notebook
# PYTHON=python3.12 chooses another interpreter; PIP_ARGS passes options to pip.

PYTHON   ?= python3
PIP_ARGS ?=
OUT      ?= demo
LAB_ARGS ?=
BIN      := .venv/bin
SOURCES  := zfkit tests benchmarks data notebooks
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
FIRST    := notebooks/01_what_do_the_layers_see.ipynb
INSTALL  := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

.PHONY: demo lab test lint format notebooks bench clean help
.DEFAULT_GOAL := help

help:
	@sed -n '2,4s/^# //p' Makefile

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(f"zfkit needs Python 3.10 or newer, but {sys.executable} is {sys.version.split()[0]}: call make with PYTHON=python3.12, say" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv
	@touch $@

# A stamp per extra: a second `make demo` installs nothing, a changed pyproject.toml installs again.
.venv/notebooks: pyproject.toml | .venv/created
	@echo "Setting up .venv (PyTorch is large: this can take a few minutes) ..."
	$(INSTALL) -e '.[notebooks]'
	@touch $@

.venv/dev: pyproject.toml | .venv/created
	@echo "Setting up .venv with the test tools (PyTorch is large: this can take a few minutes) ..."
	$(INSTALL) -e '.[dev]'
	@touch $@ .venv/notebooks

demo: .venv/notebooks
	$(BIN)/python -m zfkit atlas --model zfnet64 --images photos --out $(OUT) --notebook $(FIRST)

# JupyterLab refuses to run as root, as in a container, unless it is told to. LAB_ARGS=--no-browser and the like.
lab: .venv/notebooks
	$(BIN)/python -m jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS) $(FIRST)

test: .venv/dev lint
	$(BIN)/python -m pytest tests
	$(BIN)/python -m pytest --nbval --nbval-sanitize-with tests/nbval.cfg $(NOTEBOOKS)

lint: .venv/dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: .venv/dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# Runs every notebook again at its default parameters and keeps the new outputs.
notebooks: .venv/dev
	$(BIN)/python tests/execute_notebooks.py $(NOTEBOOKS)

bench: .venv/dev
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv demo dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
