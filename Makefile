# Everything below needs only Python 3.11 or newer, make and (for packages without a wheel) gcc.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUNS ?= runs

.PHONY: help quickstart test test-slow test-extras test-lowest lowest lint results docs dist wheel-test clean

help:
	@echo "make quickstart   new environment, install, embedded data, train, evaluate (minutes)"
	@echo "make test         new environment where there is none, lint, tests (half an hour on two busy cores)"
	@echo "make test-slow    the tests that take minutes each"
	@echo "make test-extras  the tests beside PyTorch, timm and Hugging Face, and those in Chromium (installs gigabytes)"
	@echo "make results      writes the tables of docs/results/tables into RESULTS.md and docs/results"
	@echo "make test-lowest  the tests on the lowest versions that setup.cfg allows, in an environment of its own"
	@echo "make lowest       finds these versions anew: constraints/lowest.txt"
	@echo "make dist         wheel and source archive, in dist/"
	@echo "make wheel-test   the wheel, in an environment and a folder of its own"
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

# `make test` skips these: PyTorch, timm, transformers and playwright are extras. Chromium comes from the system.
$(VENV)/.installed-extras: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test,torch,browser]'
	touch $@

test-extras: $(VENV)/.installed-extras
	$(BIN)/python -m pytest -n auto --maxprocesses=2 --dist=loadfile tests/models tests/evaluation/grad_cam_test.py \
		tests/reports/page_browser_test.py tests/serve/service_browser_test.py

# Python 3.11. The newest setuptools builds the source archives among the pinned packages.
$(VENV)-lowest/.installed: constraints/lowest.txt setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("the lowest versions are those of Python 3.11: make PYTHON=python3.11 ...") if sys.version_info[:2] != (3, 11) else None'
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-lowest/bin/python -m pip install --quiet --editable '.[test]' --constraint constraints/lowest.txt
	touch $@

test-lowest: $(VENV)-lowest/.installed
	$(VENV)-lowest/bin/python -m pytest -n auto --maxprocesses=4 --dist=loadfile

lowest: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --python-version 3.11 --resolution lowest-direct \
		--extra test --output-file constraints/lowest.txt setup.cfg

dist: $(VENV)/.installed
	rm -rf dist build
	$(BIN)/python -m build --outdir dist

wheel-test: dist
	PYTHON=$(PYTHON) tests/empty_folder.sh dist/*.whl

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
	rm -rf $(VENV) $(VENV)-lowest build dist docs/_build docs/repository *.egg-info
