# make demo and make test set up everything they need; both are quick the second time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types docs format lock clean

demo: $(READY)
	$(BIN)/isoloss reproduce IRIS_FF --out results

test: $(READY)
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

# The site, into site/; a broken link or reference is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "isoloss needs Python 3.11 or newer, this is %d.%d; give one as in: make PYTHON=python3.12 demo" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $(READY)

# Writes requirements.lock anew from the ranges in pyproject.toml, torch and its CPU or CUDA build aside.
TORCH := torch==2.13.0
lock:
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet $(TORCH) hatchling editables
	$(VENV)-lock/bin/pip install --quiet --no-build-isolation --editable '.[dev]'
	echo "# Every version that make demo and make test install; written by make lock." > requirements.lock
	echo "$(TORCH)" >> requirements.lock
	$(VENV)-lock/bin/pip freeze --exclude-editable | grep -vE '^(torch|nvidia-|triton|cuda-)' >> requirements.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
