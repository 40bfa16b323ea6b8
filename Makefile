# Two commands do everything on a fresh machine: `make match` answers a traceback, `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
FILE ?= entries/pytorch/linear-dtype-mismatch/samples/recreated-rank1-lora-eval.txt
BIN := $(VENV)/bin

.PHONY: match test lint types check schemas clean

match: $(VENV)/.installed
	@$(BIN)/kb match $(FILE)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy --strict -p kb

check: $(VENV)/.installed-dev
	$(BIN)/kb check --root entries --clean tests/data/clean

schemas: $(VENV)/.installed-dev
	KB_UPDATE_SCHEMAS=1 $(BIN)/python -m pytest -q tests/test_schema.py

$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . >&2
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' >&2
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV)
