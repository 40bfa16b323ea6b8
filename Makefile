# Two commands do everything on a fresh machine: `make match` answers a traceback, `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
PYODIDE_VERSION ?= 314.0.7
FILE ?= entries/pytorch/linear-dtype-mismatch/samples/recreated-rank1-lora-eval.txt
BIN := $(VENV)/bin

.PHONY: match test bench batch load browser fuzz lint types check schemas clean

match: $(VENV)/.installed
	@$(BIN)/kb match $(FILE)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q

bench: $(VENV)/.installed-bench
	$(BIN)/python -m pytest -q benchmarks
	$(BIN)/python -m benchmarks.compare

# kb batch on the engine of its extra, which takes 300 MB; `make test` tests it with plain processes.
batch: $(VENV)/.installed-batch
	$(BIN)/python -m pytest -q fleet
	$(BIN)/python -m benchmarks.batch --kill

load: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.load

# Pages in a real browser; wants Chromium and npm on the machine.
browser: $(VENV)/.installed-browser $(VENV)/pyodide/package/pyodide.mjs
	PYODIDE=$(VENV)/pyodide/package $(BIN)/python -m pytest -q browser

$(VENV)/pyodide/package/pyodide.mjs:
	@mkdir -p $(VENV)/pyodide
	@cd $(VENV)/pyodide && npm pack --silent pyodide@$(PYODIDE_VERSION) && tar xzf pyodide-*.tgz

# The HTTP interface against requests made from its own description.
fuzz: $(VENV)/.installed-fuzz
	$(BIN)/python -c "from kb import api; from kb.web.app import create_app; import json; print(json.dumps(create_app(api.default()).openapi()))" > $(VENV)/openapi.json
	$(BIN)/kb serve --port 8329 & server=$$!; sleep 5; \
	$(BIN)/st run $(VENV)/openapi.json --url http://127.0.0.1:8329 --max-examples 100; code=$$?; kill $$server; exit $$code

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/zizmor --quiet --offline .github action.yml

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

# `.installed-dev`, `-bench`, `-browser`, `-fuzz`: the package with that extra.
$(VENV)/.installed-%: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]' >&2
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-batch: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,batch]' >&2
	@touch $@ $(VENV)/.installed $(VENV)/.installed-dev

clean:
	rm -rf $(VENV)
