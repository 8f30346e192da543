"""A real PostgreSQL, which refuses what SQLite takes, and several workspaces that share it."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy
from mlflow import MlflowClient

from stages.artifacts.provenance_json import Provenance
from stages.errors import UserError
from stages.tracking import run_tags, runs
from stages.tracking.store import check_store
from tests.project import clean_environment
from tests.tracking.at_once import open_at_once

pytestmark = pytest.mark.slow

DATASET = Path("data/dataset")
ROOT = Path(__file__).parents[2]

WORKSPACE = """
import sys, time
from pathlib import Path
from tests.tracking.test_postgresql import evaluate
Path(sys.argv[1]).touch()
while not Path("../go").exists():
    time.sleep(0.01)
evaluate(sys.argv[1], "shared name")
"""


def binaries() -> Path | None:
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return debian[-1] if debian else Path(found).resolve().parent if found else None


def as_user() -> list[str]:
    """PostgreSQL refuses to run as root; Debian's package adds a user for it."""
    return ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a new database, on a port of its own."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = Path("/tmp") / f"postgresql-{os.getpid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    (folder / "password").write_text("hunter2")
    initdb = [str(programs / "initdb"), "-D", str(data), "-U", "me", "-A", "scram-sha-256", "--no-sync"]
    subprocess.run([*as_user(), *initdb, f"--pwfile={folder}/password"], check=True, capture_output=True, cwd="/tmp")
    server = subprocess.Popen(
        [
            *as_user(),
            str(programs / "postgres"),
            "-D",
            str(data),
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-k",
            str(folder),
        ],
        cwd="/tmp",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"postgresql+psycopg://me:hunter2@127.0.0.1:{port}/postgres"
    try:
        for _ in range(600):
            with suppress(sqlalchemy.exc.OperationalError):
                sqlalchemy.create_engine(address).connect().close()
                break
            time.sleep(0.1)
        MlflowClient(address).search_experiments()  # makes the tables
        yield address
    finally:
        server.terminate()
        server.wait()
        subprocess.run([*as_user(), "rm", "-rf", str(data)], check=True)
        shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def workspace(postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgresql)
    fill(tmp_path)
    return tmp_path


def fill(folder: Path) -> None:
    (folder / DATASET).mkdir(parents=True)
    (folder / DATASET / "metadata.json").write_text("{}")
    (folder / "params.yaml").write_text("train:\n  learning_rate: 0.1\n")


def provenance(fingerprint: str) -> Provenance:
    return Provenance(fingerprint=fingerprint, dependencies={str(DATASET): "d" * 32}, parameters={})


def evaluate(fingerprint: str, name: str | None = None) -> str:
    """Train and evaluate as far as MLflow sees it, and register the model under a name; return the run's id."""
    model = provenance(fingerprint)
    with runs.start_training_run(model, DATASET) as run:
        run.log_metrics({"train_loss": 1.0}, 1)
    evaluation = runs.Evaluation(provenance("e" * 16), {"split": "test", "loss": 0.5}, "n\0ul " * 2000, [])
    trained = runs.log_evaluation(model, evaluation, DATASET)
    assert trained is not None
    if name is not None:
        from stages.tracking.logged_model import model_of_run  # noqa: PLC0415
        from stages.tracking.registry import _register  # noqa: PLC0415
        from stages.tracking.store import connect  # noqa: PLC0415

        _register(connect(), name, trained, model_of_run(connect(), trained).model_id)
    return str(trained.info.run_id)


def test_names_tags_and_parameters_of_any_length_are_taken(
    workspace: Path, postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "a name " * 100)
    changed = [f"stages/module_{number}.py" for number in range(400)]
    monkeypatch.setattr(run_tags, "changed_files", lambda _: changed)
    with (workspace / "params.yaml").open("a") as file:
        file.write(f"notes:\n  long: {'x' * 7000}\n  'à (l''œuvre)': \"a\\0b\"\n  {'k' * 300}: 1\n")
    run = MlflowClient(postgresql).get_run(evaluate("a" * 16))
    assert run.info.status == "FINISHED"
    assert len(run.info.run_name) == run_tags.LONGEST_NAME
    assert len(run.data.params) == 4
    assert run.data.params["notes.à _l_œuvre_"] == "a�b"
    assert len(run.data.tags["mlflow.note.content"]) == run_tags.LONGEST_TAG
    assert run.data.metrics == {"train_loss": 1.0, "loss": 0.5}
    monkeypatch.setenv("DVC_EXP_NAME", "")
    tags = MlflowClient(postgresql).get_run(evaluate("b" * 16)).data.tags
    assert tags["git.changed_files"].endswith(" more")


def test_a_refusal_is_reported_without_sql_or_password(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "x" * 400)
    with pytest.raises(UserError, match=r"value too long for type character varying\(256\)") as raised:
        check_store()
    assert "INSERT" not in str(raised.value)
    assert "hunter2" not in str(raised.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(os.environ["MLFLOW_TRACKING_URI"]).replace("hunter2", "wrong-pass"))
    began = time.monotonic()
    with pytest.raises(UserError, match="password authentication failed") as raised:
        check_store()
    assert time.monotonic() - began < 10
    assert "wrong-pass" not in str(raised.value)


def test_workspaces_that_find_an_empty_database_at_once_make_its_tables_once(workspace: Path, postgresql: str) -> None:
    with sqlalchemy.create_engine(postgresql, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sqlalchemy.text("create database empty"))
    address = f"{postgresql.removesuffix('/postgres')}/empty"
    open_at_once(workspace, address)
    assert [each.name for each in MlflowClient(address).search_experiments()] == ["shared", "Default"]


def test_workspaces_that_begin_at_once_share_experiment_dataset_and_registered_name(
    workspace: Path, postgresql: str
) -> None:
    environment = clean_environment() | {"MLFLOW_TRACKING_URI": postgresql, "PYTHONPATH": str(ROOT)}
    processes = []
    for number in range(3):
        folder = workspace / f"{number}" / "project"
        fill(folder)
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKSPACE.replace("../go", "../../go"), f"{number:016}"],
                cwd=folder,
                env=environment | {"MLFLOW_EXPERIMENT_NAME": "project"},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    while len(list(workspace.glob("*/project/0*"))) < len(processes):
        assert all(process.poll() is None for process in processes), [process.communicate()[1] for process in processes]
        time.sleep(0.01)
    (workspace / "go").touch()
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, errors
    client = MlflowClient(postgresql)
    experiment = client.get_experiment_by_name("project")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in found] == ["FINISHED"] * 3
    assert all(run.inputs is not None and len(run.inputs.dataset_inputs) == 1 for run in found)
    versions = client.search_model_versions("name = 'shared name'")
    assert sorted(int(version.version) for version in versions) == [1, 2, 3]
