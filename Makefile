# Every target sets up .venv by itself; a machine with python3 and make is enough.
# PYTHON=python3.12 make test   uses another interpreter for a new .venv.
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test   takes torch without the GPU libraries.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench faults

help:
	@echo 'make demo    build, train, append, train again on a small data set that comes with the project'
	@echo 'make test    run all tests'
	@echo 'make lint    check format, lint, types and import direction'
	@echo 'make bench   run the benchmarks and write benchmarks/results'
	@echo 'make faults  break builds and stores in every way there is a test for, and write benchmarks/results/faults.md'

demo: $(STAMP)
	$(BIN)/cachestore demo

test: $(STAMP)
	$(BIN)/python -m pytest -n auto

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(STAMP)
	for bench in benchmarks/bench_*.py; do $(BIN)/python -m benchmarks.$$(basename $$bench .py) || exit 1; done

faults: $(STAMP)
	rm -rf build/faults
	CACHESTORE_FAULTS_RECORD=$(CURDIR)/build/faults $(BIN)/python -m pytest -n auto --timeout 3600 -m 'long or not long' tests/faults
	$(BIN)/python -m benchmarks.faults build/faults

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cachestore needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.12" % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,dev]'
	@touch $@
