"""A real MLflow server that is away, dies, hangs and comes back; processes that are killed. Nothing is lost, nothing waits."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from stages.artifacts.provenance_json import Provenance
from stages.errors import UserError
from stages.tracking import outbox, runs
from stages.tracking.runs import Evaluation, TrainingRun
from stages.tracking.workspace import tracking_uri
from tests.project import clean_environment
from tests.tracking.fresh_store import fresh_store

DATASET = Path("data/dataset")
PROVENANCE = Provenance(fingerprint="a" * 16, dependencies={"data/dataset": "d" * 32}, parameters={})
EVALUATION = Evaluation(PROVENANCE, {"split": "test"}, description="", paths=[])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Server:
    """`mlflow server`, which can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        folder = self._folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port), "--host", "127.0.0.1",
             "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/artifacts"],
            env=clean_environment()
            | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_ALLOWED_HOST_ADDRESSED_ARTIFACT_SCHEMES": "http"},
            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        pytest.fail("mlflow server does not start")

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    fresh_store(tmp_path)
    (tmp_path / DATASET).mkdir(parents=True)
    (tmp_path / DATASET / "metadata.json").write_text("{}")
    (tmp_path / "params.yaml").write_text("train:\n  learning_rate: 0.1\n")
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/train.json").write_text("{}")
    return tmp_path


def begin(run_id: str | None = None) -> TrainingRun:
    run = runs.start_training_run(PROVENANCE, DATASET, run_id)
    assert isinstance(run, TrainingRun)
    return run


def stored(run_id: str | None) -> tuple[Run, list[int]]:
    """Return a run, and the steps of its curve."""
    assert run_id is not None
    client = MlflowClient(tracking_uri())
    return client.get_run(run_id), [point.step for point in client.get_metric_history(run_id, "train_loss")]


def unsent(workspace: Path) -> list[str]:
    """Return the runs whose outbox is there."""
    states = (workspace / outbox.FOLDER).glob("*/outbox.json")
    return [str(json.loads(path.read_text())["run_id"]) for path in states]


def test_a_server_that_is_away_is_told_within_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{port}")
    began = time.monotonic()
    with pytest.raises(UserError) as raised:
        begin()
    assert time.monotonic() - began < 10
    assert f"MLflow at http://***@127.0.0.1:{port} cannot be reached: Connection refused" in str(raised.value)
    assert "unset MLFLOW_TRACKING_URI" in str(raised.value)
    assert "runtime.tracking: optional" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_a_server_that_never_answers_is_told_within_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listener.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(UserError, match="timed out"):
            begin()
        assert time.monotonic() - began < 10


def test_a_host_with_no_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.invalid:5000")
    with pytest.raises(UserError, match=r"MLflow at http://mlflow\.invalid:5000"):
        begin()


def test_optional_tracking_goes_on_without_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    with runs.start_training_run(PROVENANCE, DATASET, required=False) as run:
        run.log_metrics({"train_loss": 1.0}, 1)
        run.log_files([Path("metrics/train.json")])
    assert run.id is None
    runs.log_evaluation(PROVENANCE, EVALUATION, DATASET, required=False)
    assert capsys.readouterr().err.count("cannot be reached: Connection refused; going on without it") == 2


def test_a_server_that_dies_stalls_no_step_and_gets_everything_later(
    server: Server, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    slowest = 0.0
    with begin() as run:
        for step in range(1500):
            if step == 700:
                server.stop()
            began = time.monotonic()
            run.log_metrics({"train_loss": 1 / (step + 1)}, step)
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.0005)
        run.log_files([Path("metrics/train.json")])
        (workspace / "metrics/train.json").write_text("of a later run")
    assert slowest < 0.25
    assert (
        f"MLflow at {server.uri} cannot be reached: Connection refused; what it has not got is kept in"
        in capsys.readouterr().err
    )
    assert unsent(workspace) == [run.id]
    with pytest.raises(UserError, match="cannot be reached"):
        runs.send_left_behind()
    server.start()
    assert "sent what was left" in runs.send_left_behind()[0]
    assert unsent(workspace) == []
    found, steps = stored(run.id)
    assert sorted(set(steps)) == list(range(1500))
    assert found.info.status == "FINISHED"
    assert run.id is not None
    path = MlflowClient(server.uri).download_artifacts(run.id, "metrics/train.json", str(workspace))
    assert Path(path).read_text() == "{}"


class StopsTheServer(list[Path]):
    """Files to send, of which the first one finds the server gone."""

    def __init__(self, server: Server) -> None:
        super().__init__([Path("metrics/train.json")])
        self._server = server

    def __iter__(self) -> Iterator[Path]:
        self._server.stop()
        return super().__iter__()


def test_a_server_that_dies_under_an_evaluation_is_told_and_gets_it_all_when_it_is_repeated(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with begin() as run:
        pass
    interrupted = Evaluation(PROVENANCE, {"split": "test", "loss": 1.0}, description="", paths=StopsTheServer(server))
    with pytest.raises(UserError, match=r"MLflow at http://127\.0\.0\.1:.* cannot be reached: .*type `dvc repro`"):
        runs.log_evaluation(PROVENANCE, interrupted, DATASET)
    server.start()
    runs.log_evaluation(PROVENANCE, replace(interrupted, paths=[Path("metrics/train.json")]), DATASET)
    found, _ = stored(run.id)
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"loss": 1.0}
    assert [file.path for file in MlflowClient(server.uri).list_artifacts(found.info.run_id, "metrics")] == [
        "metrics/train.json"
    ]


class Artifacts(ThreadingHTTPServer):
    """A store of artifacts that refuses them, or takes them."""

    def __init__(self) -> None:
        self.answer = HTTPStatus.FORBIDDEN
        self.taken: list[str] = []
        super().__init__(("127.0.0.1", 0), ArtifactRequest)


class ArtifactRequest(BaseHTTPRequestHandler):
    """A file to take."""

    server: Artifacts

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.answer == HTTPStatus.OK:
            self.server.taken.append(self.path)
        self.send_response(self.server.answer)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def artifacts() -> Iterator[Artifacts]:
    with Artifacts() as artifacts:
        threading.Thread(target=artifacts.serve_forever).start()
        yield artifacts
        artifacts.shutdown()


@pytest.mark.parametrize(
    ("location", "cause"),
    [
        ("s3://bucket/path", "ModuleNotFoundError: .*boto3"),
        ("http://127.0.0.1:{port}/files", "HTTPError: 403 Client Error"),
        ("http://127.0.0.1:{port}/broken", "too many 500 error responses"),
    ],
)
def test_a_store_that_refuses_files_is_told_as_it_is_and_nothing_is_lost(
    location: str,
    cause: str,
    server: Server,
    artifacts: Artifacts,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", location)
    monkeypatch.setitem(sys.modules, "boto3", None)
    if location.endswith("broken"):
        artifacts.answer = HTTPStatus.INTERNAL_SERVER_ERROR
    client = MlflowClient(server.uri)
    client.create_experiment(location, location.format(port=artifacts.server_port))
    evaluation = replace(EVALUATION, metrics={"split": "test", "loss": 1.0}, paths=[Path("metrics/train.json")])

    with begin() as run:
        run.log_metrics({"train_loss": 1.0}, 1)
        run.log_files([Path("metrics/train.json")])
    assert re.search(rf"MLflow at {server.uri}: .*{cause}.*; what it has not got is kept in", capsys.readouterr().err)
    with pytest.raises(UserError, match=rf"{cause}.*; what it has not got of run {run.id} stays in"):
        runs.send_left_behind()
    with pytest.raises(UserError, match=rf"{cause}.*; put that right, then type `dvc repro`"):
        runs.log_evaluation(PROVENANCE, evaluation, DATASET)
    capsys.readouterr()
    assert runs.log_evaluation(PROVENANCE, evaluation, DATASET, required=False) is None
    assert re.search(rf"{cause}.*; going on without it, as runtime.tracking is optional", capsys.readouterr().err)
    found, steps = stored(run.id)
    assert steps == [1]
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"train_loss": 1.0, "loss": 1.0}

    if location.startswith("http"):
        artifacts.answer = HTTPStatus.OK
        assert "sent what was left" in runs.send_left_behind()[0]
        assert [path.rpartition("/artifacts/")[2] for path in artifacts.taken] == ["metrics/train.json"]
        assert unsent(workspace) == []


def test_a_server_that_comes_back_in_time_leaves_nothing_to_do(
    server: Server, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("://", "://me:hunter2@"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with begin() as run:
        server.stop()
        for step in range(100):
            run.log_metrics({"train_loss": 1.0}, step)
            time.sleep(0.005)
        server.start()
        run.log_metrics({"train_loss": 1.0}, 100)
    assert unsent(workspace) == []
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "hunter2" not in printed.err
    found, steps = stored(run.id)
    assert sorted(steps) == list(range(101))
    assert found.info.status == "FINISHED"


KILLED = """
import os, signal, sys
from tests.test_outages import begin
with begin() as run:
    for step in range(10):
        run.log_metrics({"train_loss": 1.0}, step)
    print(run.id, flush=True)
    ENDING
"""


def run_killed(ending: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", KILLED.replace("ENDING", ending)],
        env=clean_environment() | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    return done.stdout.split()[0]


def test_points_of_many_steps_go_in_one_request(workspace: Path) -> None:
    requests: list[object] = []
    box = outbox.Outbox.open("store", "1", outbox.RunDescription(name="a", tags={}))
    points = [outbox.Point("train_loss", 1.0, 0, step) for step in range(outbox.BATCH + 1)]
    for point in points:
        box.keep([point])
    assert box.send_all_points(requests.append) == len(points)
    assert requests == [points[: outbox.BATCH], points[outbox.BATCH :]]


def test_a_folder_that_is_deleted_under_a_training_costs_what_was_in_it_and_no_more(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outbox, "GATHER_SECONDS", 0.01)
    with begin() as run:
        run.log_metrics({"train_loss": 1.0}, 1)
        while stored(run.id)[1] != [1]:
            time.sleep(0.01)
        shutil.rmtree(workspace / ".runs", ignore_errors=True)
        run.log_metrics({"train_loss": 1.0}, 2)
        assert runs.send_left_behind() == [], "its process lives"
        assert unsent(workspace) == [run.id]
        shutil.rmtree(workspace / ".runs", ignore_errors=True)
        while not unsent(workspace):
            time.sleep(0.01)  # the sender makes it again
        run.log_metrics({"train_loss": 1.0}, 3)
        run.log_files([Path("metrics/train.json")])
    found, steps = stored(run.id)
    assert {1, 3} <= set(steps)
    assert found.info.status == "FINISHED"
    assert [file.path for file in MlflowClient(tracking_uri()).list_artifacts(found.info.run_id, "metrics")] == [
        "metrics/train.json"
    ]
    assert capsys.readouterr().err == ""
    assert unsent(workspace) == []


def abandoned() -> str:
    """Leave behind what a killed process leaves: a run that is running, and an outbox that nobody holds."""
    run = begin()
    assert run.id is not None
    run._sender.close()
    run._outbox.close()
    return run.id


def test_the_run_of_a_killed_process_is_marked_and_gone_on_with(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = run_killed("os.kill(os.getpid(), signal.SIGKILL)")
    assert stored(run_id)[0].info.status == "RUNNING"
    with begin(run_id) as run:
        assert run.id == run_id
        assert stored(run_id)[0].info.status == "RUNNING"
        for step in range(7, 12):
            run.log_metrics({"train_loss": 1.0}, step)
    assert capsys.readouterr().err == "", "its outbox is gone on with as well"
    found, steps = stored(run_id)
    assert sorted(steps) == list(range(12))
    assert found.info.status == "FINISHED"


def test_the_next_start_of_anything_marks_the_run_of_a_killed_process(workspace: Path) -> None:
    run_id = abandoned()
    assert unsent(workspace) == [run_id]
    runs.log_evaluation(PROVENANCE, EVALUATION, DATASET)
    assert stored(run_id)[0].info.status == "KILLED"
    assert unsent(workspace) == []


def test_a_live_process_is_left_alone(workspace: Path) -> None:
    with begin() as run:
        runs.send_left_behind()
        assert stored(run.id)[0].info.status == "RUNNING"
        assert unsent(workspace) == [run.id]


def test_what_is_meant_for_another_store_waits_for_it(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = abandoned()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace}/other.db")
    assert runs.send_left_behind() == []
    assert unsent(workspace) == [run_id]


def test_a_run_that_a_person_deleted_is_forgotten(workspace: Path) -> None:
    MlflowClient(tracking_uri()).delete_run(abandoned())
    assert runs.send_left_behind() == []
    assert not list((workspace / outbox.FOLDER).iterdir())


@pytest.mark.parametrize("created", [False, True])
def test_a_process_killed_while_it_creates_its_run_leaves_none_running(workspace: Path, created: bool) -> None:
    die = "lambda *arguments, **keywords: os.kill(os.getpid(), signal.SIGKILL)"
    patch = f"Outbox.belongs_to = {die}" if created else f"MlflowClient.create_run = {die}"
    code = f"import os, signal\nfrom tests.test_outages import MlflowClient, begin\nfrom stages.tracking.outbox import Outbox\n{patch}\nbegin()"
    environment = clean_environment() | {"PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -signal.SIGKILL
    client = MlflowClient(tracking_uri())
    (experiment,) = (found.experiment_id for found in client.search_experiments() if found.name != "Default")
    before = [run.info.status for run in client.search_runs([experiment])]
    assert before == (["RUNNING"] if created else [])
    assert len(runs.send_left_behind()) == len(before)
    assert [run.info.status for run in client.search_runs([experiment])] == (["KILLED"] if created else [])
    assert not list((workspace / outbox.FOLDER).iterdir())


def test_the_line_that_a_power_cut_tore_is_passed_over(workspace: Path) -> None:
    with begin() as run:
        pass
    assert run.id is not None
    box = outbox.Outbox.open("store", "1", outbox.RunDescription(name="a", tags={}))
    box.keep([outbox.Point("train_loss", 1.0, 1, step) for step in range(3)])
    with (box.folder / "points.jsonl").open("a") as file:
        file.write('["train_loss", 1.')
    taken: list[Any] = []
    assert box.send_points(taken.extend) == 3
    assert [point.step for point in taken] == [0, 1, 2]
