# make demo and make test set up everything they need; both are quick the second time.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ECOSYSTEM := $(VENV)/ecosystem
# A file of tests stays in one process, and with it what its tests share.
PYTEST := $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo reproduce test ecosystem test-ecosystem check lint types docs format lock clean

# IRIS_FF with fewer runs and steps: both methods, the baseline, the comparison and the page.
demo: $(READY)
	$(BIN)/isoloss reproduce IRIS_FF --quick --out results/demo

# IRIS_FF as in the paper.
reproduce: $(READY)
	$(BIN)/isoloss reproduce IRIS_FF --out results

test: $(READY)
	$(PYTEST)

# Walks of models of torchvision, timm, transformers and others. Their packages lie in a folder beside
# those of the environment, where nothing but these tests sees them.
test-ecosystem: ecosystem
	PYTHONPATH=$(ECOSYSTEM) $(BIN)/pytest -q tests/ecosystem

ecosystem: $(ECOSYSTEM)/.ready

$(ECOSYSTEM)/.ready: $(READY) requirements-ecosystem.lock
	rm -rf $(ECOSYSTEM)
	$(PIP) --require-hashes --no-deps --target $(ECOSYSTEM) --requirement requirements-ecosystem.lock
	@touch $@

# Lint, types and the quick tests, before a commit.
check: lint types
	$(PYTEST) -q -m "not slow"

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

# Writes both lock files anew from the ranges in pyproject.toml: every version with its hashes, for
# Python 3.11 and newer, without torch and what only its CUDA build needs; the second holds what the
# ecosystem adds to the first.
SHELL := bash
COMPILE = $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-header
WITHOUT := torch|triton|(nvidia|cuda)-.*

lock: $(READY)
	set -o pipefail; $(COMPILE) --extra dev 2>/dev/null \
	  | awk -F== 'BEGIN { print "# Every version that make demo and make test install beside torch; written by make lock." } \
	         /^[a-z]/ { keep = $$1 !~ /^($(WITHOUT))$$/ } keep' > requirements.lock.new
	mv requirements.lock.new requirements.lock
	set -o pipefail; $(COMPILE) --extra ecosystem --constraint requirements.lock --constraint <(echo $(TORCH)) 2>/dev/null \
	  | awk -F== 'BEGIN { print "# What make test-ecosystem installs beside requirements.lock; written by make lock." } \
	         NR == FNR { have[$$0]; next } \
	         /^[a-z]/ { keep = !($$0 in have) && $$1 !~ /^($(WITHOUT))$$/ } keep' requirements.lock - \
	  > requirements-ecosystem.lock.new
	mv requirements-ecosystem.lock.new requirements-ecosystem.lock

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
