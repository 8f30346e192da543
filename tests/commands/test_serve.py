"""The completions API over a model of random weights, in this process and as a real server."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stages.commands.serve import application, listen
from stages.core.language_model import MOST_TOKENS
from stages.errors import UserError
from tests.core.test_language_model import MODEL, write
from tests.project import ROOT, clean_environment


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(application(MODEL, "letters"), base_url="http://127.0.0.1", raise_server_exceptions=False)


def ask(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/completions", json=body)


def events(answer: Any) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_completion_is_that_of_the_model(client: TestClient) -> None:
    answer = ask(client, model="letters", prompt="abc", temperature=0, max_tokens=5).json()
    assert answer["object"] == "text_completion"
    assert answer["model"] == "letters"
    (choice,) = answer["choices"]
    assert choice["text"] == MODEL.complete(["abc"], max_new_tokens=5)[0]
    assert choice["finish_reason"] == ("length" if len(choice["text"]) == 5 else "stop")
    usage = answer["usage"]
    assert usage["prompt_tokens"] == 4  # with <EOS>
    assert usage["total_tokens"] == 4 + usage["completion_tokens"]


def test_prompts_and_their_choices_are_in_order(client: TestClient) -> None:
    answer = ask(client, prompt=["abc", "de"], n=3, seed=5, temperature=3.0, max_tokens=4).json()
    expected = [
        MODEL.complete([prompt], seed=seed, temperature=3.0, max_new_tokens=4)[0]
        for prompt in ("abc", "de")
        for seed in (5, 6, 7)
    ]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))


@pytest.mark.parametrize("prompt", ["abc", ["abc", "de"]])
def test_a_stream_is_the_completion_in_pieces(client: TestClient, prompt: Any) -> None:
    options = {"prompt": prompt, "n": 2, "seed": 1, "temperature": 2.0}
    whole = ask(client, **options).json()["choices"]
    answer = ask(client, **options, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    texts, ends = [""] * len(whole), {}
    for event in events(answer):
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
        if choice["finish_reason"]:
            ends[choice["index"]] = choice["finish_reason"]
    assert texts == [choice["text"] for choice in whole]
    assert ends == {choice["index"]: choice["finish_reason"] for choice in whole}


def test_without_a_seed_each_answer_is_drawn_anew(client: TestClient) -> None:
    assert len({ask(client, prompt="abc", temperature=5.0).json()["choices"][0]["text"] for _ in range(8)}) > 1


def test_the_model_is_listed(client: TestClient) -> None:
    (listed,) = client.get("/v1/models").json()["data"]
    assert (listed["id"], listed["object"]) == ("letters", "model")


@pytest.mark.parametrize(("body", "status", "named"), [
    ({"prompt": "xyz"}, 400, "prompt 1: the character 'x'"),
    ({"prompt": ["a", "x"]}, 400, "prompt 2: the character 'x'"),
    ({"prompt": []}, 400, "prompt"),
    ({"prompt": [1, 2]}, 400, "prompt"),
    ({}, 400, "prompt: Field required"),
    ({"prompt": "a", "temperature": -1}, 400, "temperature: found -1.0"),
    ({"prompt": "a", "top_p": 0}, 400, "top_p: found 0.0"),
    ({"prompt": "a", "max_tokens": MOST_TOKENS + 1}, 400, "max_tokens: found 1025"),
    ({"prompt": "a", "max_tokens": 10**30}, 400, "max_tokens"),
    ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
    ({"prompt": "a", "n": 1000}, 400, "n: "),
    ({"prompt": "a", "logit_bias": {"1": 5}}, 400, "logit_bias: Extra inputs"),
    ({"prompt": "a", "model": "gpt-4"}, 404, "found 'gpt-4', allowed: 'letters'"),
])  # fmt: skip
def test_a_mistake_is_answered_in_openai_s_form(
    client: TestClient, body: dict[str, Any], status: int, named: str
) -> None:
    answer = ask(client, **body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert named in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == ("model_not_found" if status == 404 else None)
    assert error["param"] in {None, *body} | {"prompt"}


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/completions", 405), ("POST", "/v1/chat/completions", 404)]
)
def test_another_address_is_answered_in_openai_s_form(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert f"found {method} {path}, allowed: POST /v1/completions" in answer.json()["error"]["message"]


def test_a_body_of_another_type_is_named_as_curl_sends_it(client: TestClient) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for content, headers in (('{"prompt": "a"}', form), ("{", {"Content-Type": "application/json"})):
        answer = client.post("/v1/completions", content=content, headers=headers)
        assert "Content-Type: application/json" in answer.json()["error"]["message"]


def test_what_changes_nothing_is_taken_and_all_else_refused(client: TestClient) -> None:
    """As clients such as LangChain send it unasked."""
    options = {"prompt": "abc", "temperature": 0}
    expected = ask(client, **options).json()["choices"]
    unasked = {
        "best_of": 1,
        "echo": False,
        "frequency_penalty": 0.0,
        "logit_bias": None,
        "logprobs": None,
        "presence_penalty": 0,
        "stop": None,
    }
    assert ask(client, **options, **unasked).json()["choices"] == expected
    for key, value in {"best_of": 2, "echo": True, "logprobs": 0, "presence_penalty": 0.5}.items():
        assert ask(client, **options, **{key: value}).json()["error"]["param"] == key


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_text_ends_before_the_first_of_its_stops(client: TestClient, length: int, *, streamed: bool) -> None:
    options = {"prompt": "abc", "temperature": 5.0, "max_tokens": 30}
    for seed in range(10):
        whole = ask(client, **options, seed=seed).json()["choices"][0]["text"]
        stops = [whole[5 : 5 + length] or "a", "never"]
        answer = ask(client, **options, seed=seed, stop=stops, stream=streamed)
        choices = [event["choices"][0] for event in events(answer)] if streamed else answer.json()["choices"]
        assert "".join(choice["text"] for choice in choices) == whole.split(stops[0])[0]
        if stops[0] in whole:
            assert choices[-1]["finish_reason"] == "stop"
    assert ask(client, **options, stop=["a"] * 5).json()["error"]["param"] == "stop"


def test_what_cannot_be_read_and_other_sites_are_refused(client: TestClient) -> None:
    json_type = {"Content-Type": "application/json"}
    for content in ("[" * 100_000, "{", "9" * 5000, b'{"prompt": "\xff"}', '{"prompt": "\\ud800"}', "", "null"):
        assert client.post("/v1/completions", content=content, headers=json_type).status_code == 400
    assert client.post("/v1/completions", content=" " * (2**24 + 1), headers=json_type).status_code == 413
    assert client.get("/v1/models", headers={"Host": "example.com"}).status_code == 400


def test_a_taken_port_is_named_with_another() -> None:
    with listen(0) as taken:
        assert taken.getsockname()[0] == "127.0.0.1"
        with pytest.raises(UserError, match=rf"port {taken.getsockname()[1]} cannot be used"):
            listen(taken.getsockname()[1])


@pytest.mark.slow
def test_a_real_server_answers_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    write(tmp_path / "data/model", tmp_path / "data/vocabulary.json")
    server = subprocess.Popen(
        [sys.executable, "-m", "stages.commands.serve", "--port", "0"],
        cwd=tmp_path, env=clean_environment() | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    address = server.stdout.readline().split()[3].rstrip(".")
    request = urllib.request.Request(
        address, json.dumps({"prompt": "abc", "temperature": 0, "stream": True}).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request) as answer:
        pieces = [json.loads(line[6:])["choices"][0]["text"] for line in answer if line.startswith(b"data: {")]
    assert "".join(pieces) == MODEL.complete(["abc"], max_new_tokens=16)[0]
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 0
