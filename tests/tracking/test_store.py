"""What is said of a store that fails, and how soon."""

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from stages.errors import UserError
from stages.tracking import store
from stages.tracking.store import (
    check_store,
    connect,
    find_experiment,
    keep_view,
    reported_store_errors,
    store_errors,
)
from tests.tracking.fresh_store import fresh_store


@pytest.fixture(autouse=True)
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@host:5000")


def message(fails: Callable[[], object]) -> str:
    with pytest.raises(UserError) as raised, store_errors():
        fails()
    return str(raised.value)


def refuse(error: Exception, cause: BaseException | None = None) -> Callable[[], object]:
    def fails() -> object:
        raise error from cause

    return fails


def test_only_a_connection_that_fails_is_saidas_a_server_that_cannot_be_reached() -> None:
    reset = requests.ConnectionError("Connection aborted")
    reset.__cause__ = ConnectionResetError(104, "Connection reset by peer")
    assert message(refuse(MlflowException("API request failed"), reset)) == (
        "MLflow at http://***@host:5000 cannot be reached: Connection reset by peer; start it, or unset "
        "MLFLOW_TRACKING_URI to record in mlflow.db, then type `dvc repro`, which repeats this stage alone; or set "
        "runtime.tracking: optional in params.yaml"
    )
    # Of the place of the artifacts, which is another server.
    assert "MLflow at http://***@host:5000: RuntimeError: no endpoint; put" in message(
        refuse(RuntimeError("no endpoint"), ConnectionRefusedError(111, "Connection refused"))
    )


def test_an_interruption_hides_no_cause() -> None:
    refused = ConnectionRefusedError(111, "Connection refused")
    refused.__context__ = KeyboardInterrupt()  # it ended the training, whose last points could then not be sent
    assert "cannot be reached: Connection refused" in message(refuse(MlflowException("API request failed"), refused))


def test_a_page_for_an_answer_is_saidin_a_line_without_secrets() -> None:
    page = "403 for http://me:hunter2@host:5000/x: <html>\n" + "<p>you may not</p>\n" * 100
    said = message(refuse(requests.HTTPError(page)))
    assert said.startswith(
        "MLflow at http://***@host:5000: HTTPError: 403 for http://***@host:5000/x: <html> <p>you may"
    )
    assert "\n" not in said
    assert len(said) < 800


def test_a_mistake_of_the_users_passes() -> None:
    assert message(refuse(UserError("params.yaml: no"))) == "params.yaml: no"


@pytest.mark.parametrize(
    ("uri", "found"), [("http://127.0.0.1:port", "InvalidURL: .*'port'"), ("nonsense://x", "unsupported URI")]
)
def test_an_address_that_is_none_is_told(uri: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=found):
        check_store()


def test_a_server_that_dies_in_the_midst_of_an_answer_is_saidas_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def reset(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # so that closing resets it
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        server = threading.Thread(target=reset, args=(listener,))
        server.start()
        said = message(lambda: MlflowClient(uri).get_run("0" * 32))
        server.join()
    assert f"MLflow at {uri} cannot be reached: Connection reset by peer; start it" in said


class Drips(ThreadingHTTPServer):
    """A server of which some addresses answer at once, and the others with a byte a second."""

    def __init__(self, healthy: bool) -> None:
        self.healthy = healthy
        super().__init__(("127.0.0.1", 0), DrippingAnswer)


class DrippingAnswer(BaseHTTPRequestHandler):
    server: Drips

    def do_GET(self) -> None:
        if self.server.healthy and self.path == "/health":
            self.send_response(HTTPStatus.OK)
            self.end_headers()
            return
        with suppress(OSError):
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b" " * 100:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(1)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("healthy", [False, True])
def test_an_answer_that_drips_in_is_an_absent_server_within_ten_seconds(
    healthy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if healthy:  # the time that users wait is tried once
        monkeypatch.setattr(store, "_SECONDS_TO_ANSWER", 1.0)
    with Drips(healthy) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        began = time.monotonic()
        with pytest.raises(UserError, match=r"cannot be reached: timed out: no answer within \d seconds; start it"):
            check_store()
        assert time.monotonic() - began < 10
        server.shutdown()


@pytest.mark.parametrize("silent", [False, True])
def test_a_database_that_is_away_or_silent_is_reported_within_ten_seconds(
    silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if not silent:
            listener.close()
        monkeypatch.setattr(store, "_SECONDS_TO_ANSWER", 1.0)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+psycopg://me:hunter2@127.0.0.1:{port}/runs")
        began = time.monotonic()
        with pytest.raises(UserError, match="timed out" if silent else "Connection refused") as raised:
            check_store()
        assert time.monotonic() - began < 10
        assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("obstacle", ["a folder", "a pipe", "a link to itself", "a text"])
def test_a_file_that_is_no_database_is_reported_within_ten_seconds(
    obstacle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow itself tries for two minutes to open what cannot be opened."""
    place = tmp_path / "runs.db"
    match obstacle:
        case "a folder":
            place.mkdir()
        case "a pipe":
            os.mkfifo(place)
        case "a link to itself":
            place.symlink_to("runs.db")
        case "a text":
            place.write_text("no database")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"runs\.db: (Operational|Database)Error: .*; put that right, then type"):
        check_store()
    assert time.monotonic() - began < 10


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_a_folder_that_takes_no_files_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock beside the database would be tried without end."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/self/runs.db")
    with pytest.raises(UserError, match=r"/proc/self/runs\.db: FileNotFoundError: .*; put that right, then type"):
        check_store()


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
@pytest.mark.parametrize(
    "address",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite+pysqlite://",
        "sqlite:///:memory:",
        "sqlite:///?cache=shared",
        "sqlite:///file:runs.db?uri=true",
    ],
)
def test_a_database_that_would_end_with_the_process_or_with_a_copy_is_refused(
    address: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, address)
    with pytest.raises(UserError, match=rf"{variable}: .*: a .*; name a file as in sqlite:///runs.db"):
        check_store()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "address",
    ["http://me:p/ss@host:5000", "http://me:p?s@host", "http://me:p#s@host", "postgresql://me:a@bc@host/db"],
)
def test_a_password_that_would_be_read_as_a_host_is_refused_and_not_shown(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UserError, match=r"write @ / \? # in a name or password as %40") as raised:
        check_store()
    assert not set(str(raised.value).split()) & {"p/ss", "a@bc"}
    assert "***@host" in str(raised.value)


def test_a_deleted_experiment_is_named_with_the_way_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    fresh_store(tmp_path)
    client = connect()
    experiment_id = find_experiment(client)
    client.delete_experiment(experiment_id)
    for use in (check_store, lambda: keep_view("x", "{}")):
        with pytest.raises(UserError) as raised:
            use()
        assert f"the experiment '{tmp_path.name}' is deleted" in str(raised.value)
        assert f"mlflow experiments restore --experiment-id {experiment_id}" in str(raised.value)
        assert "MLFLOW_EXPERIMENT_NAME" in str(raised.value)
    client.restore_experiment(experiment_id)
    check_store()


def test_where_somebody_else_was_first_with_the_experiment_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    fresh_store(tmp_path)
    client = connect()
    created: list[str] = []

    def create_second(name: str, *arguments: Any) -> str:
        created.append(create(name, *arguments))  # by another workspace, after this one looked
        return create(name, *arguments)

    create = client.create_experiment
    monkeypatch.setattr(client, "create_experiment", create_second)
    assert find_experiment(client) == created[0]


def test_a_file_of_the_project_that_cannot_be_written_is_no_fault_of_the_store(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / ".runs/unsent/x/points.jsonl"))
    with pytest.raises(OSError, match="No space left"), store_errors():
        raise error


def test_an_error_of_an_optional_store_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with reported_store_errors():
        raise UserError("experiment deleted")
    assert capsys.readouterr().err == "experiment deleted; going on without it, as runtime.tracking is optional\n"
