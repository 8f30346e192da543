"""A sweep of four trainings by two workers, each registered; one of the models is served and asked over HTTP."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from tests.project import Project, clean_environment

SECONDS_TO_START = 120
SECONDS_TO_SWEEP = 1200
LEARNING_RATES = ("0.3", "0.05")


@pytest.fixture(scope="module")
def swept(trained: Project) -> Iterator[Project]:
    """The trained clone after a sweep, each of whose models is a version of `answers` in the registry."""
    rates = ",".join(LEARNING_RATES)
    trained.run(
        "dvc", "exp", "run", "--queue", "-S", f"train.learning_rate={rates}", "-S", "evaluate.register_as=answers"
    )
    trained.run("dvc", "queue", "start", "--jobs", "2")
    try:
        for _ in range(SECONDS_TO_SWEEP // 2):
            status = trained.run("dvc", "queue", "status").stdout
            if "Queued" not in status and "Running" not in status:
                break
            time.sleep(2)
        assert status.count("Success") == len(LEARNING_RATES), status
        yield trained
    finally:
        trained.run("dvc", "queue", "stop", "--kill")


@pytest.fixture(scope="module")
def store(swept: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{swept.folder / 'mlflow.db'}")


@pytest.fixture(scope="module")
def runs(store: MlflowClient) -> dict[str, Run]:
    """The sweep's runs, by their learning rate."""
    found = store.search_runs(["1"], "params.`evaluate.register_as` = 'answers'")
    return {run.data.params["train.learning_rate"]: run for run in found}


@pytest.fixture(scope="module")
def version(store: MlflowClient, runs: dict[str, Run]) -> ModelVersion:
    """What the registry holds of a training that learnt both completions."""
    (found,) = store.search_model_versions(f"run_id = '{runs['0.05'].info.run_id}'")
    return found


@pytest.fixture(scope="module")
def server(swept: Project, version: ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that runs the registered model, started elsewhere than in the project."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = clean_environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{swept.folder / 'mlflow.db'}"}
    command = [
        "mlflow",
        "models",
        "serve",
        "-m",
        f"models:/answers/{version.version}",
        "--env-manager",
        "local",
        "--port",
        str(port),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name(command[0]), *command[1:], "--workers", "1"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(4 * SECONDS_TO_START):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/ping").close()
                break
            except OSError:
                time.sleep(0.25)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def ask(server: str, prompts: list[Any], **params: Any) -> tuple[int, Any]:
    """Return the status and the answer."""
    body = {"dataframe_records": [{"prompt": prompt} for prompt in prompts], "params": params}
    request = urllib.request.Request(
        f"{server}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_completions_come_in_batches(server: str) -> None:
    status, answer = ask(server, ["what is CNN", "CNN is what"] * 20)
    assert status == 200
    assert answer == {"predictions": [{"completion": "Great"}] * 40}


def test_generation_parameters_are_taken(server: str) -> None:
    hot = {"temperature": 1000.0, "max_tokens": 5}
    answers = {json.dumps(ask(server, ["what is CNN"], seed=seed, **hot)) for seed in range(5)}
    assert len(answers) > 1
    assert ask(server, ["what is CNN"], seed=3, **hot) == ask(server, ["what is CNN"], seed=3, **hot)
    assert ask(server, ["what is CNN"], top_k=1, temperature=9.0)[1]["predictions"][0]["completion"] == "Great"


@pytest.mark.parametrize(("prompts", "params", "said"), [
    (["what is CNN", "what is RNN"], {}, "prompt 2: the word 'RNN' (word 3) is not in the vocabulary"),
    (["what is CNN"], {"temperature": -1.0}, "temperature: found -1.0"),
    (["what is CNN"], {"top_p": 2.0}, "top_p: found 2.0"),
    (["what is CNN"], {"max_tokens": -3}, "max_tokens: found -3"),
    (["what is CNN"], {"max_tokens": "many"}, "max_tokens"),
    (["what is CNN"], {"max_tokens": 10**9}, "max_tokens: found 1000000000, allowed: 1 to 1,024"),
    ([7], {}, "prompt"),
    (["what is CNN"] * 1025, {}, "1,025 prompts"),
])  # fmt: skip
def test_a_bad_request_is_told_what_is_wrong(
    server: str, prompts: list[Any], params: dict[str, Any], said: str
) -> None:
    status, answer = ask(server, prompts, **params)
    assert 400 <= status < 500
    assert said in answer["message"]


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"inputs": ' + b"9" * 5000 + b"}", b"{", b""])
def test_a_malformed_request_is_the_client_s_mistake(server: str, body: bytes) -> None:
    request = urllib.request.Request(f"{server}/invocations", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(request)
    assert answer.value.code == 400


def test_abandoned_requests_stop_nobody(server: str) -> None:
    """45 clients that ask for as much as is allowed and hang up."""
    body = {"inputs": ["what is CNN"] * 1024, "params": {"max_tokens": 1024, "temperature": 100.0}}
    content = json.dumps(body).encode()
    head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    host, port = server.removeprefix("http://").split(":")
    for _ in range(45):
        with socket.create_connection((host, int(port))) as client:
            client.sendall(head.encode() + content)
    start = time.monotonic()
    assert ask(server, ["what is CNN"])[0] == 200
    assert time.monotonic() - start < 30


def test_a_sweep_leaves_finished_runs_each_evaluated(store: MlflowClient, runs: dict[str, Run]) -> None:
    assert set(runs) == set(LEARNING_RATES)
    assert len(store.search_runs(["1"])) == 1 + len(LEARNING_RATES)  # and the first training
    assert len({run.info.run_name for run in runs.values()}) == len(LEARNING_RATES)
    for run in runs.values():
        assert run.info.status == "FINISHED"
        assert run.info.run_name.startswith(run.data.tags["dvc.experiment"])
        assert {"train_loss", "loss", "next_token_accuracy", "completion_exact_match"} <= set(run.data.metrics)
        assert "Results on 2 train rows" in run.data.tags["mlflow.note.content"]
        pictures = {file.path for file in store.list_artifacts(run.info.run_id, "metrics/pictures/curves")}
        assert "metrics/pictures/curves/confusions.png" in pictures


def test_each_model_is_a_version_kept_with_its_run_without_a_pickle(
    store: MlflowClient, runs: dict[str, Run], swept: Project
) -> None:
    versions = store.search_model_versions("name = 'answers'")
    assert {found.run_id for found in versions} == {run.info.run_id for run in runs.values()}
    assert all(run.outputs and run.outputs.model_outputs for run in runs.values())
    files = [path.name for path in (swept.folder / "mlartifacts/models").rglob("*") if path.is_file()]
    assert files.count("model.safetensors") == 1 + len(LEARNING_RATES)
    assert not [name for name in files if name.endswith((".pkl", ".pickle"))]


def test_the_example_notebook_gives_what_it_shows(trained: Project) -> None:
    import nbformat  # noqa: PLC0415 - with their programs for kernels, only here
    from nbclient import NotebookClient  # noqa: PLC0415

    notebook = nbformat.read(trained.folder / "examples/ask.ipynb", as_version=4)
    shown = [outputs_of(cell) for cell in notebook.cells if cell.cell_type == "code"]
    executed = NotebookClient(  # in its own folder, as Jupyter does
        notebook, timeout=SECONDS_TO_START, resources={"metadata": {"path": str(trained.folder / "examples")}}
    ).execute(env=clean_environment())
    assert [outputs_of(cell) for cell in executed.cells if cell.cell_type == "code"] == shown
    assert shown[0] == ["['Great', 'Great']"]


def outputs_of(cell: Any) -> list[str]:
    """Return the texts that a notebook shows below a cell."""
    return [output["text"] if "text" in output else output["data"]["text/plain"] for output in cell.outputs]


def test_load_opens_the_models_of_the_store(swept: Project, version: ModelVersion) -> None:
    program = (
        "import sys; from stages.load import load\n"
        "for source in sys.argv[1:]: print(load(source).complete(['what is CNN', 'CNN is what']))"
    )
    run = f"runs:/{version.run_id}"
    sources = (run, f"{run}/model", f"models:/answers/{version.version}", str(version.source))
    printed = swept.run(sys.executable, "-c", program, *sources).stdout
    assert printed.splitlines() == ["['Great', 'Great']"] * 4
    refused = swept.run(sys.executable, "-c", program, f"{run}/checkpoint", check=False)
    assert "a run has one model" in refused.stderr


def test_the_card_of_a_run_s_export_has_its_figures(swept: Project, store: MlflowClient, version: ModelVersion) -> None:
    run = store.get_run(str(version.run_id))
    swept.run(
        sys.executable,
        "-m",
        "stages.commands.export",
        "onnx",
        "exports/of a run",
        "--no-check",
        "--run",
        run.info.run_id,
    )
    card = (swept.folder / "exports/of a run/README.md").read_text()
    assert f"| loss | {run.data.metrics['loss']} |" in card
