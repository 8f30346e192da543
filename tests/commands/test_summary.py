from pathlib import Path
from typing import Any

import pytest

from stages.artifacts.metrics_json import write_json
from stages.artifacts.provenance_json import MODEL_FOLDER, PROVENANCE_FILE
from stages.commands.summary import made
from stages.tracking.workspace import remember_run_name

METRICS: dict[str, Any] = {"split": "test", "rows": 2000, "loss": 0.5}


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with the provenance of a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    provenance = {"fingerprint": "f", "dependencies": {}, "parameters": {}}
    write_json(MODEL_FOLDER / PROVENANCE_FILE, provenance)


def test_a_model_without_a_run_is_not_said_to_come_from_elsewhere() -> None:
    """As after a training without its server, where tracking is optional."""
    assert dict(made(METRICS, {}))["MLflow run"] == "none recorded here"
    remember_run_name("f", "train-f")
    assert dict(made(METRICS, {}))["MLflow run"] == "train-f"


def test_figures_stand_beside_their_change() -> None:
    lines = dict(made(METRICS, METRICS | {"loss": 0.75}))
    assert lines["scored on"] == "2,000 test rows"
    assert lines["loss, nats per token"] == "0.5000        -0.2500 since the last commit"
