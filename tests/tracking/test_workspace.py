"""Where runs go, whatever way an address or a folder is given, and what is hidden of it."""

import os
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from sqlalchemy.engine import make_url

from stages.tracking.store import connect, find_experiment
from stages.tracking.workspace import (
    masked,
    project_root,
    registry_uri,
    remember_run_name,
    run_name,
    store_id,
    take_paths_from_main_workspace,
    tracking_uri,
)


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(params=["", "sub/folder"], ids=["a project of its own", "a folder of a larger project"])
def copy(request: pytest.FixtureRequest, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's folder in the temporary copy in which `dvc exp run --temp` works, which is deleted afterwards."""
    root = workspace / ".dvc/tmp/exps/tmpabc"
    (root / ".dvc").mkdir(parents=True)
    copy = root / str(request.param)
    copy.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(workspace))
    folder = workspace / str(request.param)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_a_copy_belongs_to_the_folder_that_it_is_a_copy_of(copy: Path) -> None:
    assert project_root() == copy


@pytest.mark.parametrize("variable", [{}, {"DVC_ROOT": "."}, {"DVC_ROOT": "/somewhere/else"}])
def test_stages_and_commands_of_a_folder_agree_wherever_dvc_has_its_own(
    variable: dict[str, str], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / ".dvc").mkdir()
    (workspace / "sub").mkdir()
    for name, value in variable.items():
        monkeypatch.setenv(name, str(workspace / value))
    monkeypatch.chdir(workspace / "sub")
    assert project_root() == workspace / "sub"


@pytest.mark.parametrize(
    ("given_", "meant"),
    [
        ("sqlite:///runs.db", "sqlite:///{root}/runs.db"),
        ("sqlite:///./deep/../runs.db", "sqlite:///{root}/runs.db"),
        ("sqlite:///runs.db?timeout=20", "sqlite:///{root}/runs.db?timeout=20"),
        ("sqlite+pysqlite:///runs.db", "sqlite+pysqlite:///{root}/runs.db"),
        ("sqlite:////abs/runs.db", "sqlite:////abs/runs.db"),
        ("sqlite:///~/runs.db", f"sqlite:///{Path.home()}/runs.db"),
        ("~/runs", f"file://{Path.home()}/runs"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("runs", "file://{root}/runs"),
        ("./runs/here", "file://{root}/runs/here"),
        ("file:runs", "file://{root}/runs"),
        ("file:./runs", "file://{root}/runs"),
        ("file:///abs/runs", "file:///abs/runs"),
        ("/abs/runs", "file:///abs/runs"),
        ("http://host:5000/", "http://host:5000/"),
        ("postgresql://me:p@host/db", "postgresql://me:p@host/db"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
        ("", "sqlite:///{root}/mlflow.db"),
    ],
)
def test_a_relative_address_is_meant_from_the_main_workspace(
    given_: str, meant: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given_)
    assert tracking_uri() == meant.format(root=copy)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    if given_:
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", given_)
        assert registry_uri() == meant.format(root=copy)


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_SERVER_CERT_PATH", "AWS_SHARED_CREDENTIALS_FILE", "PGPASSFILE"])
@pytest.mark.parametrize(("given_", "meant"), [("ca.pem", "{root}/ca.pem"), ("/etc/ca.pem", "/etc/ca.pem"), ("", "")])
def test_a_relative_path_of_the_environment_is_meant_from_the_main_workspace(
    name: str, given_: str, meant: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, given_)
    take_paths_from_main_workspace()
    assert os.environ[name] == meant.format(root=copy)


def test_the_registry_is_the_store_where_no_other_is_named() -> None:
    assert registry_uri() == tracking_uri()


@pytest.mark.parametrize(("name", "address"), [
    ("a%41b", None), ("what?", "sqlite:///mlflow.db"), ("nr#1", None), ("two words", None),
    ("a&b=c", "sqlite:///mlflow.db"), ("käse+wein@home:1", None), ("100%", "sqlite:///mlflow.db"),
])  # fmt: skip
def test_whatever_the_folder_is_called_all_stays_in_it(
    name: str, address: str | None, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workspace / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    if address is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert make_url(tracking_uri()).database == str(folder / "mlflow.db")
    client = connect()
    run = client.create_run(find_experiment(client))
    (folder / "figures.txt").write_text("1")
    client.log_artifact(run.info.run_id, "figures.txt")
    (copy,) = (path for path in workspace.rglob("figures.txt") if path.parent != folder)
    assert copy.is_relative_to(folder / "mlartifacts")
    assert (folder / "mlflow.db").exists()
    assert list(workspace.iterdir()) == [folder], "nothing beside it"


def test_a_store_in_a_database_keeps_files_where_a_copy_is_not_deleted(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite+pysqlite:///runs.db")
    client = connect()
    experiment = client.get_experiment(find_experiment(client))
    assert experiment.artifact_location == (copy / "mlartifacts").as_uri()
    assert isinstance(client, MlflowClient)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://me:old@host:5000", "http://me:new@host:5000/", True),
        ("http://me:p@ss/w@host:5000", "http://HOST:5000", True),
        ("http://localhost:5000", "http://127.0.0.1:5000", True),
        ("http://[::1]:5000", "http://127.0.0.1:5000", True),
        ("https://host", "https://host:443/", True),
        ("https://host/?token=1", "https://host/?token=2", True),
        ("postgresql://me:a@host/db", "postgresql+psycopg2://you:b@host:5432/db", True),
        ("sqlite:///mlflow.db", "", True),
        ("http://host:5000", "http://host:5001", False),
        ("http://host/a", "http://host/b", False),
        ("postgresql://me@host/a", "postgresql://me@host/b", False),
        ("sqlite:///a.db", "sqlite:///b.db", False),
    ],
)
def test_a_store_is_known_by_its_place_whatever_the_password(
    one: str, other: str, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = []
    for address in (one, other):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        hashes.append(store_id())
    assert (hashes[0] == hashes[1]) is same


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:hunter2@host:5000/x", "http://***@host:5000/x"),
        ("failed: postgresql://me:p%40ss@host/db", "failed: postgresql://***@host/db"),
        ("http://me:p@ss@host:5000/x", "http://***@host:5000/x"),
        ("http://me:p/ss@host:5000/x", "http://***@host:5000/x"),
        ("http://me:p ss@host:5000/x", "http://***@host:5000/x"),
        ("http://me:p?a#b@host:5000/x", "http://***@host:5000/x"),
        ("http://me:a://b@host:5000/x", "http://***@host:5000/x"),
        ("http://token@host:5000/x", "http://***@host:5000/x"),
        ("tried http://me:a@one/x and http://me:b@two/y", "tried http://***@one/x and http://***@two/y"),
        ("https://host/?api_key=abc&x=1", "https://host/?api_key=***&x=***"),
        ("https://host/a?se=2026&sig=abc%2B", "https://host/a?se=***&sig=***"),
        ("https://host/a?code=abc#access_token=def", "https://host/a?code=***#access_token=***"),
        ("mysql://host/db?passwd=a;ssl_key=b", "mysql://host/db?passwd=***;ssl_key=***"),
        ("exceeded with url: /api?session=abc (Caused by x)", "exceeded with url: /api?session=*** (Caused by x)"),
        (
            "tried http://host:5000/?abc and https://host/a?abc&x=1 twice",
            "tried http://host:5000/?*** and https://host/a?***&x=*** twice",
        ),
        ("see http://127.0.0.1:5000/#/experiments/1", "see http://127.0.0.1:5000/#/experiments/1"),
        ("sqlite:////home/me/mlflow.db", "sqlite:////home/me/mlflow.db"),
        ("MLflow at http://host:5000/x cannot be reached", "MLflow at http://host:5000/x cannot be reached"),
    ],
)
def test_secrets_in_addresses_are_hidden(text: str, shown: str) -> None:
    assert masked(text) == shown


SHOWN = "could not connect to postgresql://***@host/db?password=***&x=***: refused for joe@example.com"


@given(
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=8).filter(
        lambda text: "***" not in text and text not in SHOWN
    )
)
def test_no_password_is_shown_in_an_address_or_what_is_said_of_it(password: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:{password}@host/db?password={quote(password)}&x=1")
        for text in (tracking_uri(), f"could not connect to {tracking_uri()}: refused for joe@example.com"):
            assert password not in masked(text)
            assert "host/db" in masked(text)


@pytest.mark.parametrize(
    "address", ["http://host/?s3cret", "http://host/#s3cret", "http://host/?a=1&s3cret", "http://host/?s3cret#x"]
)
def test_a_token_without_a_name_is_hidden_in_the_address_of_the_store(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert "s3cret" not in masked(f"MLflow at {address} is away")


def test_the_password_of_the_environment_is_hidden_where_a_server_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2hunter2")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "eyJabcdefg")
    assert masked("wrong: hunter2hunter2, Bearer eyJabcdefg") == "wrong: ***, Bearer ***"


def test_a_run_name_that_a_power_cut_tore_costs_no_command(workspace: Path) -> None:
    remember_run_name("a" * 16, "crude-poet")
    assert run_name("a" * 16) == "crude-poet"
    (workspace / ".runs" / ("a" * 16)).write_bytes(b"")
    assert run_name("a" * 16) is None
    (workspace / ".runs" / ("a" * 16)).write_bytes(b"\xff\x00")
    assert run_name("a" * 16) is not None
    assert [path.name for path in (workspace / ".runs").iterdir()] == ["a" * 16]
    (workspace / ".runs" / ("a" * 16)).unlink()
    os.mkfifo(workspace / ".runs" / ("a" * 16))
    assert run_name("a" * 16) is None
