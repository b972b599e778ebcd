# Every command starts from here; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 3000
DATA ?= ../shared/data/fer2013
RECIPE ?= fer2013-resnet-3
SPLITS = --data $(DATA)/train.parquet --validation $(DATA)/validation.parquet
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
REGISTERED := .state/.registered

export BENTOML_HOME ?= $(CURDIR)/.state/bentoml
export BENTOML_DO_NOT_TRACK := True

.PHONY: help setup models serve demo test lint format bench bench-service bench-settings bench-scoring train lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## virtual environment with the pinned packages (about 6 GB, two minutes)

$(INSTALLED): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"Mien needs Python 3.11 to 3.13, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.12") if not (3, 11) <= v <= (3, 13) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -c 'import handlers.detection.kernels'
	@touch $@

models: $(REGISTERED) ## export and register the shipped models in the BentoML store

$(REGISTERED): $(INSTALLED) $(wildcard model_store/*.py model_store/networks/*.py model_store/bundles/*/*/manifest.json) model_store/bundles/defaults.json
	$(BIN)/python -m model_store register --all
	@touch $@

serve: models ## run the service; HOST=127.0.0.1 PORT=3000 (off loopback: MIEN_ALLOW_PUBLIC=true)
	MIEN_HOST=$(HOST) MIEN_PORT=$(PORT) $(BIN)/python -m service

demo: models ## analyse a real photograph through REST and score a folder to Parquet
	$(BIN)/python demo.py

test: setup ## all tests but the slow ones
	@tools/prometheus.sh || true
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

lint: setup ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup ## rewrite the source in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: models ## speed side by side with facenet-pytorch, five minutes: tables, and JSON in .state/bench
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.throughput

bench-service: models ## the service beside the bare pipeline, in both topologies, and under ten times its load
	$(BIN)/python -m benchmarks.service
	$(BIN)/python -m benchmarks.overload
	$(BIN)/python -m benchmarks.jobs

bench-settings: models ## what the settings of detection cost and gain, as a table and JSON
	$(BIN)/python -m benchmarks.detection_settings

bench-scoring: models ## bulk scoring beside two bare pipelines, and its memory over a million files
	$(BIN)/python -m benchmarks.scoring
	$(BIN)/python -m benchmarks.scoring --memory

train: setup ## train by RECIPE, the default model's unless given (33 epochs of 130 to 200 s on one core with bfloat16, longer without); DATA=../shared/data/fer2013
	$(BIN)/python -m training train --config training/configs/$(RECIPE).toml $(SPLITS) --out runs/$(RECIPE)

lock: setup ## resolve the pinned requirements again
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --override requirements/overrides.txt \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate --quiet -o requirements/dev.txt
	$(BIN)/uv pip compile pyproject.toml --extra serve --extra otlp --extra s3 --universal --python-version 3.11 --constraint requirements/dev.txt --override requirements/overrides.txt \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate --quiet -o requirements/serve.txt

clean: ## remove the environment and the model store
	rm -rf $(VENV) .state
