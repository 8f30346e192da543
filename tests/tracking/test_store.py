"""How what goes wrong with the store is told."""

import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from stages.errors import UserError
from stages.tracking.store import check_store, store_errors


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


def test_only_a_connection_that_fails_is_told_as_a_server_that_cannot_be_reached() -> None:
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


def test_a_page_for_an_answer_is_told_in_a_line_without_secrets() -> None:
    page = "403 for http://me:hunter2@host:5000/x: <html>\n" + "<p>you may not</p>\n" * 100
    told_ = message(refuse(requests.HTTPError(page)))
    assert told_.startswith(
        "MLflow at http://***@host:5000: HTTPError: 403 for http://***@host:5000/x: <html> <p>you may"
    )
    assert "\n" not in told_
    assert len(told_) < 800


def test_a_mistake_of_the_users_passes() -> None:
    assert message(refuse(UserError("params.yaml: no"))) == "params.yaml: no"


@pytest.mark.parametrize(
    ("uri", "found"), [("http://127.0.0.1:port", "InvalidURL: .*'port'"), ("nonsense://x", "unsupported URI")]
)
def test_an_address_that_is_none_is_told(uri: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=found):
        check_store()


def test_a_server_that_dies_in_the_midst_of_an_answer_is_told_as_away(monkeypatch: pytest.MonkeyPatch) -> None:
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
