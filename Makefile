PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test lint bundles docs

# Stream Shakespeare from the bundled model: no PyTorch is installed for this.
demo: $(BIN)/rnn-edge
	$(BIN)/rnn-edge generate shakespeare --prompt "ROMEO:" --max-tokens 300 --seed 7

test: $(VENV)/workstation
	$(BIN)/python -m pytest

lint: $(VENV)/workstation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tiny bundles that the device tests run on.
bundles: $(VENV)/workstation
	$(BIN)/python tests/data/make_bundles.py

docs: $(VENV)/workstation
	$(BIN)/python docs/make_cli.py

$(BIN)/rnn-edge:
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[cpu]'

$(VENV)/workstation: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[cpu,export,dev]'
	touch $@
