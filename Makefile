# make demo and make test set up everything they need; both are quick the second time.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo reproduce test check lint types docs format lock clean

# IRIS_FF with fewer runs and steps: both methods, the baseline, the comparison and the page.
demo: $(READY)
	$(BIN)/isoloss reproduce IRIS_FF --quick --out results/demo

# IRIS_FF as in the paper.
reproduce: $(READY)
	$(BIN)/isoloss reproduce IRIS_FF --out results

test: $(READY)
	$(BIN)/pytest

# Lint, types and the quick tests, before a commit.
check: lint types
	$(BIN)/pytest -q -m "not slow"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

types: $(READY)
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

# The site, into site/; a broken link or reference is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch comes first and without a hash, since it has another build for each kind of machine.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "isoloss needs Python 3.11 or newer, this is %d.%d; give one as in: make PYTHON=python3.12 demo" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --require-hashes --no-deps --requirement requirements.lock
	$(PIP) --no-build-isolation --no-deps --editable .
	@touch $(READY)

# Writes requirements.lock anew from the ranges in pyproject.toml: every version with its hashes, for
# Python 3.11 and newer, without torch and what only its CUDA build needs.
SHELL := bash

lock: $(READY)
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --no-header 2>/dev/null \
	  | awk 'BEGIN { print "\# Every version that make demo and make test install beside torch; written by make lock." } \
	         /^[a-z]/ { keep = !/^(torch|triton|nvidia-|cuda-)/ } keep' > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
