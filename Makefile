# Everything below needs only Python 3.11 or newer, make and (for packages without a wheel) gcc.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUNS ?= runs

.PHONY: help quickstart test test-slow lint results docs clean

help:
	@echo "make quickstart   new environment, install, embedded data, train, evaluate (minutes)"
	@echo "make test         new environment where there is none, lint, tests (20 minutes on two busy cores)"
	@echo "make test-slow    the tests that take minutes each"
	@echo "make results      writes the tables of docs/results/tables into RESULTS.md and docs/results"
	@echo "make docs         the site of docs/ into docs/_build/html, warnings are errors; runs its notebook (minutes)"
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

# In the same environment: the API's pages import the package, the notebook runs it.
$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html

clean:
	rm -rf $(VENV) build docs/_build docs/repository *.egg-info
