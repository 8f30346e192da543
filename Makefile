# One line a target; `make help` prints them.
# What a user gives is text: neither make nor the shell runs any of it. Recipes read it as "$$NAME", from the environment.
override VENV := $(or $(value VENV),.venv)
override PYTHON := $(or $(value PYTHON),python3)
override PORT := $(value PORT)
override PRESET := $(value PRESET)
override TEXT := $(value TEXT)
override CSV := $(value CSV)
override MINUTES := $(value MINUTES)
# Shells have a variable PROMPT of their own: only what is typed after `make` counts.
override PROMPT := $(if $(filter command,$(origin PROMPT)),$(value PROMPT))
override COMPLETION := $(if $(filter command,$(origin COMPLETION)),$(value COMPLETION))
override MODEL := $(value MODEL)
override NANOGPT := $(value NANOGPT)
override THREADS := $(value THREADS)
override UPGRADE := $(value UPGRADE)
override A := $(value A)
override B := $(value B)
override MARKDOWN := $(value MARKDOWN)
override SORT := $(value SORT)
export VENV PYTHON PORT PRESET TEXT CSV MINUTES PROMPT COMPLETION MODEL NANOGPT THREADS UPGRADE A B MARKDOWN SORT
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true
# Stages and hooks call `python`: that of the virtual environment.
IN_VENV = PATH="$$(CDPATH= cd -- "$$VENV/bin" && pwd):$$PATH"
THREADS_OPTION = $${THREADS:+"--threads=$$THREADS"}
PEER_OPTIONS = $${NANOGPT:+"--nanogpt=$$NANOGPT"} $(THREADS_OPTION)

.PHONY: help repro preset fit test slow ui serve compare verdict bench deps lock clean repository venv installed installed-dev

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

repro: repository installed ## Run the pipeline; CSV=data/mine.csv MINUTES=10 fits params.yaml to your data first; PRESET=toy|addition|characters|text|gpt2|finetune takes that preset first (TEXT=file for characters and gpt2).
	@[ -z "$$PRESET" ] || $(TAKE_PRESET)
	@[ -z "$$CSV" ] || $(FIT)
	@$(IN_VENV) dvc repro
	@$(IN_VENV) python -m stages.commands.summary

preset: installed ## Take PRESET (and TEXT) as params.yaml, and train nothing yet.
	@$(TAKE_PRESET)

fit: installed ## Fit params.yaml to CSV=data/mine.csv (MINUTES=10), with a forecast, and train nothing yet.
	@$(FIT)

FIT = $(IN_VENV) python -m presets.fit $${MINUTES:+"--minutes=$$MINUTES"} $${PROMPT:+"--prompt=$$PROMPT"} \
	$${COMPLETION:+"--completion=$$COMPLETION"} -- "$$CSV"

TAKE_PRESET = $(IN_VENV) python -m presets.use $${TEXT:+"--text=$$TEXT"} -- "$$PRESET"

test: installed-dev ## Lint, type-check and test.
	@$(IN_VENV) ruff check .
	@$(IN_VENV) ruff format --check .
	@$(IN_VENV) mypy
	@$(IN_VENV) pytest

slow: installed-dev ## Test with real servers, a cluster and many kills, for an hour; what needs a program that is missing is skipped.
	@$(IN_VENV) pytest -m slow -rs -n 1

ui: installed ## Compare runs in MLflow, on 127.0.0.1:5000 (PORT=5001 for another port).
	@$(IN_VENV) python -m stages.commands.ui $${PORT:+"--port=$$PORT"}

serve: installed ## Answer OpenAI's /v1/completions on 127.0.0.1:8000 (PORT=8001, MODEL=folder or runs:/ID).
	@$(IN_VENV) python -m stages.commands.serve $${PORT:+"--port=$$PORT"} $${MODEL:+-- "$$MODEL"}

compare: installed ## Compare experiments in the terminal, best first: figures, and the parameters in which they differ (SORT=loss).
	@$(IN_VENV) python -m stages.commands.compare $${SORT:+"--sort=$$SORT"}

verdict: installed ## Say whether B is better than A, and where: A=main B=wider (commits, experiments, MLflow runs; B: the workspace).
	@$(IN_VENV) python -m stages.commands.verdict $${MARKDOWN:+--markdown} -- "$${A:-main}" "$${B:-workspace}"

bench: installed-dev ## Measure speed beside other projects, into docs/performance.md (NANOGPT=path, THREADS=1).
	@$(IN_VENV) python -m benchmarks.training $(PEER_OPTIONS)
	@$(IN_VENV) python -m benchmarks.attention $(THREADS_OPTION)
	@$(IN_VENV) python -m benchmarks.loss $(THREADS_OPTION)
	@$(IN_VENV) python -m benchmarks.generation $(PEER_OPTIONS)
	@$(IN_VENV) python -m benchmarks.overhead $(THREADS_OPTION) --rounds 24
	@$(IN_VENV) python -m benchmarks.preparation
	@$(IN_VENV) python -m benchmarks.byte_pairs
	@$(IN_VENV) python -m benchmarks.startup
	@$(IN_VENV) python -m benchmarks.verdict $(THREADS_OPTION)

deps: installed-dev ## Write into dvc.yaml which source files each stage imports (the pre-commit hook does it too).
	@$(IN_VENV) python -m tests.code_deps

lock: installed-dev ## Lock what pyproject.toml asks for, at the versions locked now (UPGRADE=yes: at the newest allowed).
	@$(IN_VENV) python -m pip install --quiet --disable-pip-version-check uv
	@$(LOCK) --output-file requirements.lock pyproject.toml
	@$(LOCK) --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml
	@{ echo '# Which build of torch fits the machine is for its user to say, so that no hash is here; written by `make lock`.'; \
		sed -n 's/^ *"\(torch==[^"]*\)",$$/\1/p' pyproject.toml; } > requirements-torch.lock

# One version of torch has many builds (CUDA, CPU, ROCm), each with hashes and packages of its own: its build is the user's choice.
UNLOCKED := torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc \
	nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse \
	nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx
LOCK = $(IN_VENV) uv pip compile --quiet --universal --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
	--custom-compile-command 'make lock' --python-version 3.11 $${UPGRADE:+--upgrade} \
	$(foreach package,$(UNLOCKED),--no-emit-package $(package))

clean: ## Remove the virtual environment (data, models and runs stay).
	@[ ! -e "$$VENV" ] || [ -e "$$VENV/pyvenv.cfg" ] || { echo "error: $$VENV: no virtual environment, kept" >&2; exit 1; }
	@rm -rf -- "$$VENV"

repository:
	@git rev-parse --git-dir >/dev/null 2>&1 || $(call fail,this folder is no git repository$(comma) which DVC needs (a ZIP has \
		none); type: git init --quiet && git add . && git commit --quiet --message Start)
	@[ ! -L data ] || $(call fail,data is a symbolic link$(comma) which DVC refuses; make it a folder$(comma) and give data.csv in \
		params.yaml the full path of a file elsewhere)

venv:
	@[ -e "$$VENV/bin/python" ] || "$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || $(call fail,Python 3.11 \
		to 3.13 is needed; for example: make PYTHON=python3.12)
	@[ -e "$$VENV/bin/python" ] || "$$PYTHON" -m venv -- "$$VENV"

# A stamp says which lock is installed, so that a second call installs nothing. `--no-deps`: the lock names every package, each
# with its hashes. torch comes last and without them; what it needs is there by then, and a torch that was there first is kept.
installed: venv
	@$(call install,requirements.lock,installed)

installed-dev: installed
	@$(call install,requirements-dev.lock,installed-dev)

install = [ "$$VENV/$2" -nt $1 ] || { echo "Installing $1 into $$VENV: some minutes, once." && \
	$(PIP) --require-hashes --no-deps -r $1 && $(PIP) -r requirements-torch.lock && touch -- "$$VENV/$2"; }
PIP = "$$VENV/bin/python" -m pip install --quiet --disable-pip-version-check
comma := ,
fail = { echo 'error: $1' >&2; exit 1; }
