"""Where `make ui` says to look."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from stages.commands import ui
from stages.errors import Stopped, UserError
from stages.tracking.workspace import tracking_uri
from tests.project import clean_environment
from tests.tracking.fresh_store import fresh_store


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    fresh_store(tmp_path)


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


SERVER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    raise RuntimeError("a traceback")
"""
COMMAND = """
import os, sys
from stages import command_line
from stages.commands.ui import serve
command_line.run(lambda: serve([sys.executable, "-c", SERVER], os.environ))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_ctrl_c_ends_the_server_and_what_it_started_without_a_traceback(number: signal.Signals, code: int) -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND.replace("SERVER", repr(SERVER))],
        env=clean_environment() | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert command.stdout is not None
    child = psutil.Process(int(command.stdout.readline()))
    os.killpg(command.pid, number)  # as a terminal does
    _, errors = command.communicate(timeout=60)
    assert command.returncode == code
    assert "Traceback" not in errors
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_server_that_fails_gives_its_code() -> None:
    with pytest.raises(Stopped) as raised:
        ui.serve([sys.executable, "-c", "raise SystemExit(3)"], os.environ)
    assert raised.value.code == 3
