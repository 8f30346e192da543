"""What each entry imports, which is most of the time that a small pipeline takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLOW = {"dvc", "lightning", "matplotlib", "mlflow", "pandas", "scipy", "torch", "transformers"}
# With what MLflow and Lightning import themselves.
WITH_MLFLOW = {"mlflow", "pandas", "scipy"}
ALLOWED: dict[str, set[str]] = {
    "stages.build_vocabulary": set(),
    "stages.build_dataset": set(),
    "stages.train": {"torch", "lightning", "matplotlib", "transformers"} | WITH_MLFLOW,
    "stages.evaluate": {"torch", "matplotlib"} | WITH_MLFLOW,
    "stages.generate": {"torch"},
    "stages.commands.summary": set(),
}
WITHOUT_THE_PIPELINE = """
import sys
for name in ("dvc", "mlflow", "pandas", "tiktoken"):
    sys.modules[name] = None  # importing it fails
from tests.training.conftest import network, train
assert train(network(), max_steps=2).steps == 2
import benchmarks.training
"""


def run(program: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("entry", ALLOWED)
def test_an_entry_imports_what_it_needs(entry: str) -> None:
    printed = run(f"import json, sys, {entry}; print(json.dumps(list(sys.modules)))")
    assert {name.split(".")[0] for name in json.loads(printed)} & SLOW <= ALLOWED[entry]


@pytest.mark.parametrize(
    "entry", ["stages.train", "stages.evaluate", "stages.commands.send_metrics", "stages.commands.ui"]
)
def test_no_entry_lets_mlflow_tell_of_its_use(entry: str) -> None:
    asked = "from mlflow.telemetry.client import get_telemetry_client; print(get_telemetry_client())"
    # Not those variables by which MLflow knows a test, where it tells nothing anyway.
    assert run(f"import {entry}; {asked}", {"PATH": os.environ["PATH"]}) == "None\n"


def test_training_needs_neither_dvc_nor_mlflow() -> None:
    run(WITHOUT_THE_PIPELINE)
