# Every target sets up what it needs; the first one takes a minute or two for the packages.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
HOME_FOLDER ?= .
PORT ?= 5000

.PHONY: help contract-table figures demo test test-slow lowest bench life-simulation real-splits drift-halves before-labels screenshots crash-sweep outage-sweep long-life check lint format server clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

$(VENV)/.runtime: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.development: tests/requirements.txt requirements-dask.txt $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

demo: $(VENV)/.runtime ## set everything up and watch a degraded model being replaced, in demo/
	@$(BIN)/python tests/tools/demo.py

test: $(VENV)/.development ## set everything up and run the tests, the slow ones left out
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-slow: $(VENV)/.development ## the long proofs only, every table whole: crashes, outages, error rates (half an hour)
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow

life-simulation: $(VENV)/.development ## whole lives of production under each policy of the gate; the result goes to docs/gate.md (half an hour)
	$(BIN)/python tests/tools/life_simulation.py --lives 1000 --report docs/gate.md

real-splits: $(VENV)/.development ## the gate's verdicts on real models; the result goes to docs/real_splits.md
	$(BIN)/python tests/tools/real_splits.py --report docs/real_splits.md

drift-halves: $(VENV)/.development ## how often chance looks like a change of the data; the result goes to docs/drift_halves.md
	$(BIN)/python tests/tools/drift_halves.py --report docs/drift_halves.md

before-labels: $(VENV)/.development ## every figure of what is told before labels come; the result goes to docs/before_labels_figures.md (half an hour)
	$(BIN)/python tests/tools/before_labels.py --errors-allowed 2 --report docs/before_labels_figures.md

lowest: $(VENV)/.development ## a few tests with the lowest versions that the requirements allow, and with other Pythons at hand
	$(BIN)/python tests/tools/lowest.py

bench: $(VENV)/.development ## time and memory as ratios measured side by side; the result goes to docs/benchmarks.md
	$(BIN)/python tests/tools/bench/benchmark.py --report docs/benchmarks.md

crash-sweep: $(VENV)/.development ## kill every command at every write; the result goes to docs/crash_sweep.md (an hour)
	$(BIN)/python tests/tools/crash_sweep.py --random 10 --report docs/crash_sweep.md

outage-sweep: $(VENV)/.development ## fail every request of a cycle in five ways; the result goes to docs/outage_sweep.md (two hours)
	$(BIN)/python tests/tools/outage_sweep.py --lasting-step 5 --report docs/outage_sweep.md

long-life: $(VENV)/.development ## a year of nights in one home, with people and deaths; the result goes to docs/long_life.md (an hour)
	$(BIN)/python tests/tools/long_life.py --report docs/long_life.md

contract-table: $(VENV)/.development ## the table of docs/own_model.md, from the contract in the code
	$(BIN)/python tests/tools/contract_table.py

figures: ## lines, functions and imports of the house, file by file
	@$(PYTHON) tests/tools/house.py

lint: $(VENV)/.development ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test ## style, types and tests

format: $(VENV)/.development ## put the code into the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

screenshots: $(VENV)/.development ## pictures of the demo in a browser; they go to docs/screenshots/ (after make demo)
	$(BIN)/python tests/tools/screenshots.py

server: $(VENV)/.runtime ## MLflow's pages on mlflow_server/'s own files, for this machine only (HOME_FOLDER=demo for the demo)
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow server \
		--backend-store-uri sqlite:///$(abspath $(HOME_FOLDER))/mlflow_server/backend_db/mlflow.db \
		--artifacts-destination $(abspath $(HOME_FOLDER))/mlflow_server/artifacts \
		--host 127.0.0.1 --port $(PORT) --workers 1

clean: ## remove the virtual environment, the demo and the caches
	rm -rf $(VENV) demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
