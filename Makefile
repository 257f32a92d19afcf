# Two commands: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHARED := $(abspath $(CURDIR)/../shared)

# real data and golden files beside the checkout, where there are any
ifneq ($(wildcard $(SHARED)/data),)
export SACCADE_DATA ?= $(SHARED)/data
endif
ifneq ($(wildcard $(SHARED)/golden),)
export SACCADE_GOLDEN ?= $(SHARED)/golden
endif

.PHONY: demo test lint types tests docs clean

demo: $(VENV)/installed
	$(BIN)/saccade train digits

test: lint types tests

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

# a process a core, each on one thread
tests: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --cov --cov-report=term

docs: $(VENV)/installed
	$(BIN)/python docs/generate.py

# made once; again only when the files that say what to install have changed
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "saccade needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
