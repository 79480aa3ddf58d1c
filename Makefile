# make demo: see it work.  make test: run the tests.  Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo smoke test test-fast test-cluster test-ray attack lint bench simulate reproduce reproduce-update reference summary report clean

help:
	@echo "make demo   train a grid on scikit-learn's digits, draw it and judge two claims (no download of data)"
	@echo "make smoke  the same for every figure of the paper, the claims and a page of it all"
	@echo "make test   run all but the longest tests"
	@echo "make test-fast   those that train nothing"
	@echo "make test-cluster   the long ones, and those with several machines: a real Slurm where Debian's packages can be had"
	@echo "make test-ray   those on two nodes of Ray, which it adds to .venv"
	@echo "make attack  kill grids, damage files and give wrong commands, at random: nothing is lost or taken for sound"
	@echo "make lint   ruff, mypy and zizmor"
	@echo "make bench  measure speed and memory"
	@echo "make reproduce   train again what is committed as numbers, and compare; AGAINST=REV: with another commit's code"
	@echo "make reproduce-update   show old and new of these numbers, and write the new ones"
	@echo "make reference   draw outputs/reference anew from the runs of the pool;  make summary: the demo's verdicts"
	@echo "make report  upload the demo's runs to Weights & Biases, and build a report of them there; needs a login"
	@echo "make simulate   what the claims' intervals cover and how soon they decide, on made-up runs"
	@echo "make clean  remove .venv and caches; outputs stay"

PIP := $(if $(shell command -v uv),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install --disable-pip-version-check)
PIP += --quiet --require-hashes

setup: .venv/ready

.venv/ready: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Say make PYTHON=python3.12")'
	@echo "setting up .venv (once; PyTorch is large)"
	@if command -v uv > /dev/null; then uv venv --quiet --python $(PYTHON) .venv; else $(PYTHON) -m venv .venv; fi
	@$(PIP) -r requirements.lock
	@touch $@

demo: setup
	$(BIN)/python src/train.py -m figure=fig02 scale=smoke seeds=5 hydra/launcher=local
	$(BIN)/python src/figures.py figure=fig02 scale=smoke seeds=5

smoke: setup
	$(BIN)/python src/train.py -m figure=all scale=smoke hydra/launcher=local
	$(BIN)/python src/figures.py scale=smoke

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not trains and not cluster and not long" tests

test-cluster: setup
	$(BIN)/python -m pytest -rs -m "cluster or long" tests --ignore tests/cluster/test_ray.py

test-ray: setup
	@if $(PIP) --no-deps -r tests/cluster/requirements.lock; \
	then $(BIN)/python -m pytest -rs -m cluster tests/cluster/test_ray.py; \
	else echo "Ray cannot be had: not tried"; fi

TIMES ?= 1
attack: setup
	PYTHONPATH=src $(BIN)/python tests/attack --times $(TIMES)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/zizmor --offline --quiet .github/workflows

bench: setup
	$(BIN)/python tests/benchmark.py

reproduce: setup
	$(BIN)/python tests/reproduce.py $(if $(AGAINST),--against $(AGAINST))

reproduce-update: setup
	$(BIN)/python tests/reproduce.py --update

summary: setup
	@$(BIN)/python src/figures.py figure=fig02 scale=smoke seeds=5 --markdown outputs/figures/verdicts.md > /dev/null
	@cat outputs/figures/verdicts.md

report: setup
	@$(BIN)/python src/publish.py figure=fig02 scale=smoke seeds=5
	@$(BIN)/python src/report.py figure=fig02 scale=smoke seeds=5 --source store

# Figures with verdicts on real images; needs the data, to know them.
REFERENCE := fig01 fig02 fig04 fig06
reference: setup
	$(BIN)/python src/runs.py import outputs/reference/pool/runs.jsonl.gz store=outputs/reference-runs
	for figure in $(REFERENCE); do \
		$(BIN)/python src/figures.py figure=$$figure scale=reduced store=outputs/reference-runs --out outputs/reference/$$figure-reduced > /dev/null || exit 1; \
	done
	$(BIN)/python src/figures.py scale=reduced store=outputs/reference-runs --out outputs/figures/reference > /dev/null
	cp outputs/figures/reference/claims.json outputs/reference/claims.json
	cp outputs/figures/reference/fig16-reduced.png outputs/reference/
	PYTHONPATH=src $(BIN)/python tests/test_readme.py

simulate: setup
	$(BIN)/python tests/claims/simulate.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
