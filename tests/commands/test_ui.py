"""Where `make ui` says to look."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from stages.commands import ui
from stages.errors import UserError
from stages.tracking.workspace import tracking_uri


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def test_the_addresses_open_a_view_that_the_store_keeps_also_before_the_first_run(tmp_path: Path) -> None:
    assert ui.pages("https://mlflow.example.com").splitlines() == [
        "  runs    https://mlflow.example.com/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=pipeline",
        "  curves  https://mlflow.example.com/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=pipeline&compareRunsMode=CHART",
    ]
    experiment = MlflowClient(tracking_uri()).get_experiment("1")
    assert experiment.name == tmp_path.name
    view = json.loads(experiment.tags["mlflow.sharedViewState.pipeline"])
    assert json.loads(view["state"])["selectedColumns"] == list(ui.COLUMNS)
    assert len(experiment.tags["mlflow.sharedViewState.pipeline"]) < 5000, "the most that MLflow takes"


def test_a_server_that_is_away_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr("sys.argv", ["ui"])
    with pytest.raises(UserError, match="cannot be reached"):
        ui.main()
    assert capsys.readouterr().out == ""
