# Two commands to know: `make demo` trains a private model and writes a report; `make test` runs the tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-all axe sarif lint format clean

demo: $(STAMP)
	@$(BIN)/python examples/demo.py

# One process for each core, each with whole files of tests, and one thread in each process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-all: $(STAMP)
	$(PYTEST)

# The accessibility checks of the report's page need this script, and Chromium; without them they are skipped.
axe: build/axe/axe.min.js

build/axe/axe.min.js:
	mkdir -p build/axe
	cd build/axe && npm pack --silent axe-core@4.14.1 && tar -xzf axe-core-4.14.1.tgz --strip-components=1 package/axe.min.js
	rm build/axe/axe-core-4.14.1.tgz

# The standard's JSON Schema, to check the findings that `privads report RUN --format sarif` writes; skipped without it.
sarif: build/sarif/sarif-2.1.0-rtm.5.json

build/sarif/sarif-2.1.0-rtm.5.json:
	mkdir -p build/sarif
	cd build/sarif && npm pack --silent @microsoft/jest-sarif@1.0.0-beta.0
	cd build/sarif && tar -xzf microsoft-jest-sarif-1.0.0-beta.0.tgz --strip-components=3 package/lib/schemas
	rm build/sarif/microsoft-jest-sarif-1.0.0-beta.0.tgz

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first and by its pinned version: the newest build would bring gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing privads into $(VENV): about a minute, once."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info runs .pytest_cache .mypy_cache .ruff_cache
