# One line a target; `make help` prints them.
VENV ?= .venv
PYTHON ?= python3
PRESET ?=
TEXT ?=
NANOGPT ?=
THREADS ?=
PORT ?= 5000
BIN := $(VENV)/bin
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help repro test bench ui compare lock clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

repro: $(VENV)/installed ## Run the pipeline; PRESET=toy|addition|characters|gpt2 takes that preset (TEXT=file for characters and gpt2).
ifneq ($(PRESET),)
	@$(BIN)/python -m presets.use $(PRESET) $(if $(TEXT),--text '$(TEXT)')
endif
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/dvc repro
	@$(BIN)/python -m stages.commands.summary

test: $(VENV)/installed-dev ## Lint, type-check and test.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pytest

ui: $(VENV)/installed ## Compare runs in MLflow, on 127.0.0.1:5000 (PORT=5001 for another port).
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m stages.commands.ui --port $(PORT)

compare: $(VENV)/installed ## Compare all experiments in the terminal: figures, and the parameters in which they differ.
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/dvc exp show --only-changed \
		--drop '.*/.*|Executor|steps|epochs|parameters|best_step|perplexity|bits_per_byte|completion_token_accuracy'

bench: $(VENV)/installed-dev ## Measure speed beside other projects, into docs/performance.md (NANOGPT=path, THREADS=1).
	$(BIN)/python -m benchmarks.training $(BENCH)
	$(BIN)/python -m benchmarks.attention $(THREADS_OPTION)
	$(BIN)/python -m benchmarks.loss $(THREADS_OPTION)
	$(BIN)/python -m benchmarks.generation $(BENCH)
	$(BIN)/python -m benchmarks.overhead $(THREADS_OPTION) --rounds 24
	$(BIN)/python -m benchmarks.preparation
	$(BIN)/python -m benchmarks.byte_pairs
	$(BIN)/python -m benchmarks.startup

THREADS_OPTION = $(if $(THREADS),--threads $(THREADS))
BENCH = $(if $(NANOGPT),--nanogpt '$(NANOGPT)') $(THREADS_OPTION)

lock: $(VENV)/installed-dev ## Pin the newest allowed version of every dependency (for maintainers).
	$(BIN)/pip install --quiet uv
	$(LOCK) pyproject.toml --output-file requirements.lock
	$(LOCK) --extra dev --constraint requirements.lock pyproject.toml --output-file requirements-dev.lock

# What torch needs for a GPU is pinned by torch itself: listed here, a CPU-only torch would pull it as well.
LOCK = $(BIN)/uv pip compile --upgrade --universal --no-annotate --custom-compile-command 'make lock' --python-version 3.11 \
	$(foreach package,triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc \
	nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse \
	nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx,--no-emit-package $(package))

clean: ## Remove the virtual environment (data, models and runs stay).
	rm -rf $(VENV)

# The stamps say which lock is installed, so that a second call installs nothing.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.lock | $(VENV)/bin/python
	@echo 'Installing requirements.lock into $(VENV): some minutes, once.'
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

$(VENV)/installed-dev: requirements-dev.lock | $(VENV)/installed
	@echo 'Installing requirements-dev.lock into $(VENV).'
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@touch $@
