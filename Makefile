# The only commands a newcomer needs: `make demo` and `make test`. A developer's loop: `make check`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test check unit format clean
.DEFAULT_GOAL := demo

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed  ## the whole line on embedded data
	$(BIN)/cxr-ray demo

test: unit $(VENV)/.installed-dev  ## every test: those without Ray one process a core, then integration and e2e (one local Ray at a time)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto tests/golden tests/recipes
	$(BIN)/python -m pytest tests/integration tests/e2e

unit: $(VENV)/.installed-dev  ## the tests that take seconds; one process a core, one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto tests/unit

check: $(VENV)/.installed-dev  ## style, types, imports one way, every configuration valid
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_layers.py tests/unit/test_config.py
	$(BIN)/cxr-ray validate

format: $(VENV)/.installed-dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## the environment and caches; never your data or runs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
