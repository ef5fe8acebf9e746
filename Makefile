# Two commands do everything: `make demo` and `make test`. Both set up what they need and are quick when run again.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.servewright-installed
BENCH_STAMP := $(VENV)/.servewright-bench-installed
LOCUST := $(VENV)/locust

# Recorded answers and real configs lie outside the project; the tests that need them say so where they are absent.
ifneq ($(wildcard ../shared/conformance),)
export SERVEWRIGHT_CONFORMANCE ?= $(abspath ../shared/conformance)
endif
ifneq ($(wildcard ../shared/surfaces),)
export SERVEWRIGHT_SURFACES ?= $(abspath ../shared/surfaces)
endif
ifneq ($(wildcard ../shared/corpus),)
export SERVEWRIGHT_CORPUS ?= $(abspath ../shared/corpus)
endif
ifneq ($(wildcard ../shared/article-configs),)
export SERVEWRIGHT_ARTICLE_CONFIGS ?= $(abspath ../shared/article-configs)
endif

.PHONY: help demo test unit lint types wheel-test integration conformance bench clean setup

help:
	@echo "make demo         train on handwritten digits, serve them on both servers, compare"
	@echo "make test         everything that CI checks: lint, types, the fast tests on the built wheel, real servers"
	@echo "make unit         the fast tests alone"
	@echo "make integration  the tests against real servers alone"
	@echo "make conformance  the embedded TF Serving against recorded answers of a real one"
	@echo "make bench        the benchmarks; ratios in one run"
	@echo "make clean        remove the virtual environment and every cache"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "== setting up $(VENV) (the first time takes some minutes: TensorFlow and PyTorch come along)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=python3.x"; exit 3; }
	@$(PYTHON) -m venv $(VENV) || { echo "venv failed; on Debian: apt-get install python3-venv"; exit 3; }
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/servewright demo

# The fast tests run once, on the built wheel: what users get is what is tested.
test: $(STAMP) lint types wheel-test integration
	@echo "== all passed"

lint: $(STAMP)
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@echo "== mypy --strict"
	@$(BIN)/mypy
	@echo "== pyright"
	@$(BIN)/pyright --warnings
	@echo "== handlers for Python 3.9, which TorchServe's images have"
	@$(BIN)/pyright --warnings --pythonversion 3.9 handlers
	@$(BIN)/vermin --quiet --no-tips --violations --target=3.9- handlers

unit: $(STAMP)
	@echo "== tests"
	@$(BIN)/pytest tests -q -n 2

wheel-test: $(STAMP)
	@echo "== the built wheel"
	@$(BIN)/python integration/wheel.py

integration: $(STAMP)
	@echo "== real servers"
	@$(BIN)/pytest integration -q --timeout=600 --durations=25

conformance: $(STAMP)
	@$(BIN)/python -m integration.conformance

# Locust patches Python's own modules, and brings a plug-in that has pytest do so too: it stays out of our environment.
$(BENCH_STAMP): $(STAMP)
	@echo "== setting up what the benchmarks compare with"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	@$(PYTHON) -m venv $(LOCUST)
	@$(LOCUST)/bin/python -m pip install --quiet 'locust>=2.40'
	@touch $@

bench: $(BENCH_STAMP)
	@PATH="$$PATH:$(abspath $(LOCUST))/bin" $(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache build dist
