PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/quickstart
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart fast test tests laws ruff lint types install assets clean

# Files that need no model: a new test file of these rooms is taken by its name.
FAST := $(wildcard tests/unit/test_particles_*.py tests/unit/test_exact_*.py tests/unit/test_stats_*.py tests/laws/test_*.py)
FAST += tests/unit/test_lm_steps.py tests/unit/test_codec.py

quickstart: $(VENV)/.installed
	$(BIN)/python recipes/quickstart --out $(OUT)

fast: ruff
	$(BIN)/python -m pytest -n 2 --dist worksteal $(FAST)

# Types are checked beside the tests: their last minute leaves a core idle.
test: ruff assets
	$(MAKE) --jobs 2 types tests

tests: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The long checks of laws and coverage that `make test` leaves out.
laws: assets
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

ruff: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint: ruff types

types: $(VENV)/.installed
	$(BIN)/mypy

install: $(VENV)/.installed assets

# Real tokenizers, for the tests alone; what is there already is kept.
assets: $(VENV)/.installed
	$(BIN)/python tests/assets.py

# torch first, at the tested version: an open range would pull whatever build is newest.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("rmtools needs Python 3.11 or newer; name one with PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf runs build dist *.egg-info
