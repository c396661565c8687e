# Two commands do everything on a fresh machine with Python 3.11+ and make:
#   make leaderboard   sets up, runs configs/quickstart.yaml, shows the leaderboard and says where its picture is
#   make test          sets up and runs the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: leaderboard test test-all lint results verify clean

leaderboard: $(STAMP)
	$(BIN)/unlearnbench run configs/quickstart.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" $(PYTEST)

test-all: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST)

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# Refreshes the committed records and tables of the quickstart; what the store has is not computed again.
results: $(STAMP)
	rm -rf results/quickstart
	$(BIN)/unlearnbench run configs/quickstart.yaml --out results/quickstart
	$(BIN)/python benchmarks/readme.py

# Runs one trial of each committed suite again and compares it with its record.
verify: $(STAMP)
	$(BIN)/python benchmarks/verify.py results

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

# torch first and by itself, so that what comes after it finds it and takes no other build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(STAMP)
