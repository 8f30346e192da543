"""MLflow's server with the guard that a served model puts there, asked in process."""

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fastapi
import mlflow
import pandas as pd
import pytest
import torch
from fastapi import FastAPI
from mlflow.metrics import exact_match
from mlflow.models import Model
from mlflow.pyfunc import scoring_server
from starlette.testclient import TestClient

from stages.artifacts.model_weights import write_model
from stages.artifacts.provenance_json import Provenance, md5
from stages.artifacts.vocabulary_json import VOCABULARY_FILE, write_vocabulary
from stages.core.language_model import MOST_TOKENS
from stages.core.saved_model import SavedModel
from stages.core.vocabulary import VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
from stages.tracking.registry import SERVED_MODEL
from stages.tracking.scoring_server import LARGEST_BODY
from stages.tracking.served_model import SIGNATURE
from tests.frames import frame_of_texts
from tests.tracking.fresh_store import fresh_store
from tests.training.conftest import network

ROOT = Path(__file__).parents[2]
JSON = {"Content-Type": "application/json"}
PROMPT: dict[str, Any] = {"dataframe_records": [{"prompt": "abc"}]}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model of random weights in a folder, as it is logged."""
    folder = tmp_path_factory.mktemp("served")
    patch = pytest.MonkeyPatch()
    patch.setitem(sys.modules, "mlflow.pyfunc.scoring_server.app", ModuleType("app"))
    patch.setattr(fastapi, "FastAPI", FastAPI)
    parameters = VocabularyParams.model_validate({"tokenizer": "character", "size": 300, "unknown_token": False})
    vocabulary = build_vocabulary(parameters, [frame_of_texts(["abcdefghij"])])
    write_vocabulary(vocabulary, folder / "vocabulary.json")
    torch.manual_seed(0)
    model = network(context_length=16, vocabulary_size=vocabulary.size, output_bias=True, tie_embeddings=False)
    with torch.no_grad():
        model.output.bias[vocabulary.eos_id] = -1000.0  # a completion ends only at its longest
    dependencies = {str(VOCABULARY_FILE): md5(folder / "vocabulary.json")}
    write_model(folder / "model", SavedModel(model, prompts_end_with_eos=True), Provenance(
        fingerprint="0" * 16, dependencies=dependencies, parameters={}
    ))  # fmt: skip
    mlflow.pyfunc.save_model(
        folder / "served",
        mlflow_model=Model(),
        python_model=str(ROOT / SERVED_MODEL),
        artifacts={"model": str(folder / "model"), "vocabulary": str(folder / "vocabulary.json")},
        pip_requirements=[],
        signature=SIGNATURE,
    )
    yield folder / "served"
    patch.undo()


@pytest.fixture(scope="module")
def application(served: Path) -> FastAPI:
    """MLflow's application around the model, which it loads as `mlflow models serve` does."""
    made: FastAPI = scoring_server.init(mlflow.pyfunc.load_model(str(served)))
    return made


@pytest.fixture(scope="module")
def client(application: FastAPI) -> TestClient:
    return TestClient(application, raise_server_exceptions=False)


def refuse_network(host: str, *_: object, **__: object) -> None:
    raise AssertionError(f"the network was asked for {host}")


def ask(client: TestClient, **params: Any) -> Any:
    return client.post("/invocations", content=json.dumps(PROMPT | {"params": params}), headers=JSON)


def test_completions_are_as_long_as_asked_for(client: TestClient) -> None:
    for asked, given in ((0, 16), (5, 5), (40, 40), (MOST_TOKENS, MOST_TOKENS), (None, 16)):
        answer = ask(client, max_tokens=asked)
        assert answer.status_code == 200
        assert len(answer.json()["predictions"][0]["completion"]) == given


@pytest.mark.parametrize("tokens", [MOST_TOKENS + 1, 10**9, 10**30, -1])
def test_more_tokens_than_stated_are_refused(client: TestClient, tokens: int) -> None:
    answer = ask(client, max_tokens=tokens, temperature=0.8)
    assert answer.status_code == 400
    assert "max_tokens" in answer.json()["message"]


DEEP = 100_000


@pytest.mark.parametrize("body", [
    "[" * DEEP, '{"dataframe_records":' + "[" * DEEP + "]" * DEEP + "}", '{"a":' * DEEP, "9" * 5000,
    '{"dataframe_records": [' + "9" * 5000 + "]}", '{"inputs": {"prompt": ' + "-" + "1" * 5000 + "}}",
    "", "null", "7", "[]", "{", '{"dataframe_records": NaN}', '{"dataframe_records": 7}', '{"dataframe_records": [7]}',
    '{"dataframe_records": [{"prompt": null}]}', '{"dataframe_records": [{"prompt": {"a": 1}}]}',
    '{"dataframe_records": [{"prompt": "\\ud800"}]}', '{"dataframe_split": {}}', '{"instances": [[1], [1, 2]]}',
    '{"dataframe_records": [{"text": "abc"}]}', '{"inputs": null}', '{"inputs": ["a"], "instances": ["a"]}', '{"messages": 7}', b'{"inputs": ["\xff"]}',
    '{"inputs": ["abc"], "params": 7}', '{"inputs": ["abc"], "params": {"temperature": NaN}}',
    '{"inputs": ["abc"], "params": {"top_p": NaN}}', '{"inputs": ["abc"], "params": {"max_tokens": true}}',
    '{"inputs": ["abc"], "params": {"seed": 1.5}}', '{"inputs": ["abc"], "params": {"top_k": [1]}}',
], ids=lambda body: repr(body[:40]))  # fmt: skip
def test_a_malformed_request_is_the_client_s_mistake(client: TestClient, body: str | bytes) -> None:
    answer = client.post("/invocations", content=body, headers=JSON)
    assert answer.status_code == 400, answer.text
    assert answer.json()["message"]


def test_a_request_without_a_content_type_and_one_too_large(client: TestClient) -> None:
    answer = client.post("/invocations", content=json.dumps(PROMPT))
    assert answer.status_code == 400
    assert "no Content-Type" in answer.json()["message"]
    assert client.post("/invocations", content=b" " * (LARGEST_BODY + 1), headers=JSON).status_code == 413


def test_computing_stops_when_the_client_goes(application: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """45 requests for as much as is allowed, abandoned: the next one is answered at once, and all threads end."""
    threads_before = threading.active_count()

    async def abandon() -> float:
        body = json.dumps({"inputs": ["abc"] * 1024, "params": {"max_tokens": MOST_TOKENS}}).encode()
        gone = asyncio.Event()
        abandoned = [asyncio.create_task(_request(application, body, gone)) for _ in range(45)]
        await asyncio.sleep(1)
        gone.set()
        start = time.monotonic()
        answer = await _request(application, json.dumps({"inputs": ["abc"]}).encode(), asyncio.Event())
        seconds = time.monotonic() - start
        assert answer[0]["status"] == 200
        await asyncio.gather(*abandoned)
        return seconds

    assert asyncio.run(abandon()) < 20
    assert threading.active_count() <= threads_before + 1


async def _request(application: FastAPI, body: bytes, gone: asyncio.Event) -> list[Any]:
    scope = {
        "type": "http", "method": "POST", "path": "/invocations", "raw_path": b"/invocations", "query_string": b"",
        "root_path": "", "scheme": "http", "http_version": "1.1", "asgi": {"version": "3.0"},
        "headers": [(b"content-type", b"application/json")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    unread: list[dict[str, Any]] = [
        {"type": "http.request", "body": body[:100], "more_body": True},
        {"type": "http.request", "body": body[100:]},
    ]
    answer: list[Any] = []

    async def receive() -> dict[str, Any]:
        if unread:
            return unread.pop(0)
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        answer.append(message)

    await application(scope, receive, send)
    return answer


def test_a_list_of_texts_is_answered_as_a_request_is(client: TestClient, served: Path) -> None:
    texts = ["abc", "d", "efgh"]
    body = {"dataframe_records": [{"prompt": text} for text in texts]}
    asked = client.post("/invocations", content=json.dumps(body), headers=JSON).json()["predictions"]
    assert len({answer["completion"] for answer in asked}) > 1
    model = mlflow.pyfunc.load_model(str(served))
    assert list(model.predict(texts)) == asked
    inputs = client.post("/invocations", content=json.dumps({"inputs": texts}), headers=JSON).json()
    assert inputs == {"predictions": asked}
    assert list(model.predict(pd.DataFrame({"prompt": texts}))) == asked


@pytest.mark.filterwarnings("ignore")  # of MLflow's own
def test_mlflow_evaluates_the_model_offline(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", refuse_network)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(fresh_store(tmp_path))
    (right, _) = mlflow.pyfunc.load_model(str(served)).predict(["abc", "d"])
    rows = pd.DataFrame({"prompt": ["abc", "d"], "expected": [right["completion"], "not this"]})
    with mlflow.start_run():
        result = mlflow.models.evaluate(
            str(served), rows, targets="expected", predictions="completion", extra_metrics=[exact_match()]
        )
    assert result.metrics["exact_match/v1"] == 0.5
