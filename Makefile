# Everything happens in .venv; `make search` and `make test` set it up first and are quick when nothing changed.
PYTHON ?= python3
BIN := .venv/bin
SPACE ?= lr_regimes

.PHONY: search test test-lower-bounds install lint tensorboard

search: .venv/installed
	$(BIN)/python -m tune.search --space $(SPACE) $(ARGS)

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# The same tests with the lowest release of each dependency, in .venv-lower.
test-lower-bounds:
	PYTHON=$(PYTHON) .ci/lower-bounds $(ARGS)

install: .venv/installed

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tensorboard: .venv/installed
	$(BIN)/tensorboard --logdir runs

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
