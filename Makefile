# Every target sets up what it needs: `make demo` and `make test` work from a bare clone with CPython 3.11 to 3.13.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_VENV := .venv-bench
BENCH_READY := $(BENCH_VENV)/.ready

.PHONY: help demo test suite test-real bench bench-theory bench-likelihood lint format docs clean

help:
	@echo "make demo       theory, a lambda sweep on the built-in model and pairs, comparison, answers judged, report (under 5 minutes)"
	@echo "make test       lint, types and the whole suite"
	@echo "make test-real  the tests on a real pretrained model (DPOTOOL_REAL_MODEL) and real pairs"
	@echo "make bench      time gradient products, scoring and training against their rivals, into docs/performance.md;"
	@echo "                in parts: make bench-theory (about 30 minutes), make bench-likelihood (about 15)"
	@echo "make docs       write docs/cli.md and the table of docs/losses.md again"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(INSTALL) --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install $(INSTALL) --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY)
	$(BIN)/dpotool theory-gap --split train --limit 200 --output runs/demo/start
	$(BIN)/dpotool sweep --lambdas 0.5,0.75,0.9,0.95,1.0 --output runs/demo
	$(BIN)/dpotool generate runs/demo --limit 200
	$(BIN)/dpotool judge runs/demo
	$(BIN)/dpotool report runs/demo -o runs/demo/report.html

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint suite

suite: $(READY)
	$(BIN)/python -m pytest -q -m "not real and not gpu" $(ARGS)

test-real: $(READY)
	$(BIN)/python -m pytest -q -m real $(ARGS)

bench: bench-theory bench-likelihood

# The real model as a second one, where DPOTOOL_REAL_MODEL names its folder. Nothing else should run meanwhile.
bench-theory: $(READY)
	THP_MEM_ALLOC_ENABLE=1 $(BIN)/python benchmarks/theory.py --write \
		--model random-17M $(if $(DPOTOOL_REAL_MODEL),--model $(DPOTOOL_REAL_MODEL)) $(ARGS)

# ARGS=--missing goes on where an interrupted run stopped.
bench-likelihood: $(BENCH_READY)
	$(BENCH_VENV)/bin/python benchmarks/likelihood.py --write \
		$(if $(DPOTOOL_REAL_MODEL),--model $(DPOTOOL_REAL_MODEL)) $(ARGS)

# The rivals live apart, so that dpotool's own environment stays as it is pinned.
$(BENCH_READY): pyproject.toml constraints.txt benchmarks/constraints.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -c benchmarks/constraints.txt -e . trl lm-eval
	@touch $@

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python -m dpotool.cli.reference > docs/cli.md
	$(BIN)/python -m dpotool.losses.page docs/losses.md

clean:
	rm -rf $(VENV) $(BENCH_VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
