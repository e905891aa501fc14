# Everything runs from .venv/ in this folder; the first target that needs it sets it up.
#   make demo   the atlas of the bundled network on the bundled photographs
#   make lab    JupyterLab at notebook 00     make app        the explorer as a page without code
#   make test   lint, quick tests, notebooks  make test-all   slow tests and browsers as well
#   make lint   make format   make clean
#   make bench  all benchmarks                make notebooks  executes them all and keeps the outputs
#   make reference DATA=FOLDER                trains the bundled networks on Tiny ImageNet
# PYTHON=python3.12 chooses another interpreter; PIP_ARGS passes options to pip.

PYTHON   ?= python3
PIP_ARGS ?=
OUT      ?= demo
LAB_ARGS ?=
BIN      := .venv/bin
SOURCES  := zfkit tests benchmarks data notebooks
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb notebooks/grids/*.ipynb))
FIRST    := notebooks/01_what_do_the_layers_see.ipynb
LAB      := notebooks/00_explorer.ipynb
INSTALL  := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check $(PIP_ARGS)

# Packages are compiled at their first import and kept so, even where the environment, as many containers', forbids it:
# each of the tests' hundreds of processes would compile PyTorch anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo lab app test test-all lint format notebooks bench reference clean help
.DEFAULT_GOAL := help

help:
	@sed -n '2,8s/^# //p' Makefile

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
	$(BIN)/python -m jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS) $(LAB)

# The explorer as a page without code, at this machine alone; the address that opens carries a token.
# PAGE holds a template that asks no other machine for anything, and voila.py, which bounds how many kernels there are,
# their memory, and how long one is kept that nobody needs. APP_ARGS=--port=8899 and the like.
PAGE     := zfkit/widgets/page
# For a class, in a network of your own; a kernel that is made ready for the next page takes a seat, too:
#   make app APP_ARGS="--no-browser --Voila.ip=0.0.0.0 --Seats.seats=30"
APP_ARGS ?=
app: .venv/notebooks
	JUPYTER_PATH=$(abspath $(PAGE)) JUPYTER_CONFIG_PATH=$(abspath $(PAGE)) $(BIN)/python -m voila --template=zfkit --token \
	  --VoilaConfiguration.strip_sources=True $(APP_ARGS) $(PAGE)/app.ipynb

# One torch thread for each of the workers, which share the cores. Notebooks are executed so, too: sums over two
# threads round otherwise than over one, and a training multiplies the difference.
WORKERS  ?= 2
PYTEST   := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)
test: .venv/dev lint
	$(PYTEST) --dist loadfile -m "not slow and not browser" tests
	$(PYTEST) --dist loadfile --nbval --nbval-sanitize-with tests/nbval.cfg $(NOTEBOOKS)

test-all: test
	HYPOTHESIS_PROFILE=thorough $(PYTEST) --dist loadfile --no-loadscope-reorder -m "slow or browser" tests

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

# Trains the two bundled networks on Tiny ImageNet in Parquet: make reference DATA=folder [REFERENCE="--replace"]
reference: .venv/dev
	$(BIN)/python benchmarks/reference.py --data "$(or $(DATA),$(error say DATA=folder, with train-*.parquet and valid-*.parquet))" $(REFERENCE)

clean:
	rm -rf .venv demo site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
