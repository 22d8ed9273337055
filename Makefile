# What the README's commands call. Each target installs what it needs into .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo app test test-all quality bench clean

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no scripts/train.py configs/demo.yaml

app: $(VENV)/installed
	$(BIN)/python scripts/app.py runs/demo

test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-all: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not soak"

bench: $(VENV)/installed
	mkdir -p runs/bench
	set -e; for name in training_step frozen_features evaluation_memory scaling input_pipeline \
	  prediction onnx_latency unused_parameters; do \
	  $(BIN)/python benchmarks/$$name.py --out runs/bench/$$name.md; done

quality: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build *.egg-info
