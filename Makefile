# make demo: see it work.  make test: run the tests.  Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo smoke test test-fast lint bench simulate clean

help:
	@echo "make demo   train a grid on scikit-learn's digits, draw it and judge two claims (no download of data)"
	@echo "make smoke  the same for every figure of the paper, the claims and a page of it all"
	@echo "make test   run the tests"
	@echo "make test-fast   those that train nothing"
	@echo "make lint   ruff and mypy"
	@echo "make bench  measure speed and memory"
	@echo "make simulate   what the claims' intervals cover and how soon they decide, on made-up runs"
	@echo "make clean  remove .venv and caches; outputs stay"

setup: .venv/ready

.venv/ready: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Say make PYTHON=python3.12")'
	@echo "setting up .venv (once; PyTorch is large)"
	@if command -v uv > /dev/null; then \
		uv venv --quiet --python $(PYTHON) .venv && uv pip install --quiet --python $(BIN)/python -r requirements.lock; \
	else \
		$(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock; \
	fi
	@touch $@

demo: setup
	$(BIN)/python src/train.py -m figure=fig02 scale=smoke seeds=5 hydra/launcher=local
	$(BIN)/python src/figures.py figure=fig02 scale=smoke seeds=5

smoke: setup
	$(BIN)/python src/train.py -m figure=all scale=smoke hydra/launcher=local
	$(BIN)/python src/figures.py scale=smoke

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not trains" tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python tests/benchmark.py

simulate: setup
	$(BIN)/python tests/claims/simulate.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
