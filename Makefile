# Everything below needs only Python 3.11 or newer, make and (for packages without a wheel) gcc.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUNS ?= runs

.PHONY: help quickstart test test-slow lint results clean

help:
	@echo "make quickstart   new environment, install, embedded data, train, evaluate (minutes)"
	@echo "make test         new environment where there is none, lint, tests (20 minutes on two busy cores)"
	@echo "make test-slow    the tests that take minutes each"
	@echo "make results      writes the tables of docs/results/tables into RESULTS.md and docs/results"
	@echo "make lint         ruff, the layers that imports go down, types of the public door"

# The stamp file makes the install happen once; a change of setup.cfg repeats it.
$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("jaxmlic needs Python 3.11 or newer: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/jaxmlic data prepare scenes
	$(BIN)/jaxmlic train --config=configs/quickstart.py --workdir=$(RUNS)/quickstart
	$(BIN)/jaxmlic evaluate --workdir=$(RUNS)/quickstart

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=loadfile

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

results: $(VENV)/.installed
	$(BIN)/python benchmarks/results.py

clean:
	rm -rf $(VENV) build *.egg-info
