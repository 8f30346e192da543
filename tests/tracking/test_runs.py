"""A real store, in a folder of its own."""

import errno
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Dataset, LoggedModel, Run
from mlflow.exceptions import MlflowException

from stages.artifacts.provenance_json import Provenance
from stages.errors import UserError
from stages.tracking import outbox, runs
from stages.tracking.registry import log_model
from stages.tracking.store import connect, find_experiment
from stages.tracking.workspace import run_name, tracking_uri
from tests.project import clean_environment
from tests.tracking.fresh_store import fresh_store

DATASET = Path("data/dataset")


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder as far as tracking sees it."""
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    fresh_store(tmp_path)
    (tmp_path / DATASET).mkdir(parents=True)
    (tmp_path / DATASET / "metadata.json").write_text("{}")
    write_parameters(0.1)
    return tmp_path


def write_parameters(learning_rate: float) -> None:
    Path("params.yaml").write_text(f"train:\n  learning_rate: {learning_rate}\n  betas:\n  - 0.9\n  - 0.999\n")


def provenance(fingerprint: str = "a" * 16, **parameters: float) -> Provenance:
    return Provenance(
        fingerprint=fingerprint,
        dependencies={"data/dataset": "d" * 32, "data/vocabulary.json": "e" * 32},
        parameters={"evaluate": parameters},
    )


def all_runs() -> list[Run]:
    """All runs of the store, the newest first."""
    client = MlflowClient(tracking_uri())
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, order_by=["attributes.start_time DESC"]))


def evaluate(model: Provenance, batch_size: float = 1, accuracy: float = 0.5) -> None:
    metrics = {"split": "test", "next_token_accuracy": accuracy}
    inputs = provenance("b" * 15 + str(batch_size), batch_size=batch_size)
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/samples.csv").write_text('prompt,completion\n"a, b",c\n')
    runs.log_evaluation(model, runs.Evaluation(inputs, metrics, "A run.", [Path("metrics/samples.csv")]), DATASET)


def test_a_training_is_one_run_with_parameters_inputs_and_tags() -> None:
    with runs.start_training_run(provenance(), DATASET) as run:
        for step in range(2500):
            run.log_metrics({"train_loss": 1 / (step + 1)}, step)
    (found,) = all_runs()
    assert found.info.status == "FINISHED"
    assert found.data.params == {"train.learning_rate": "0.1", "train.betas": "[0.9, 0.999]"}
    assert found.data.tags["fingerprint"] == "a" * 16
    assert json.loads(found.data.tags["inputs.md5"])["data/vocabulary.json"] == "e" * 32
    assert found.inputs is not None
    assert found.inputs.dataset_inputs[0].dataset.digest == "d" * 32
    history = MlflowClient(tracking_uri()).get_metric_history(found.info.run_id, "train_loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / (step + 1)) for step in range(2500)]
    assert run_name("a" * 16) == found.info.run_name


def test_a_resumed_training_sends_no_step_twice_and_goes_on_counting_samples() -> None:
    resumed = None
    for _ in range(2):
        run = runs.start_training_run(provenance(), DATASET, resumed)
        assert isinstance(run, runs.TrainingRun)
        with run:
            for step in range(3):
                run.log_metrics({"train_loss": 1.0}, step)
                run.log_sample({"system/cpu_utilization_percentage": 50.0})
        resumed = run.id
    (found,) = all_runs()
    for name, steps in (("train_loss", 3), ("system/cpu_utilization_percentage", 6)):
        history = MlflowClient(tracking_uri()).get_metric_history(found.info.run_id, name)
        assert [point.step for point in history] == list(range(steps))


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_training_that_ends_early_says_how(error: type[BaseException], status: str) -> None:
    with pytest.raises(error), runs.start_training_run(provenance(), DATASET):
        raise error
    assert all_runs()[0].info.status == status


def test_an_evaluation_joins_the_newest_training_of_its_model() -> None:
    for _ in range(2):
        with runs.start_training_run(provenance(), DATASET):
            pass
    with runs.start_training_run(provenance("c" * 16), DATASET):
        pass
    evaluate(provenance())
    metrics = [run.data.metrics for run in all_runs()]
    assert metrics == [{}, {"next_token_accuracy": 0.5}, {}]


def test_an_evaluation_with_other_parameters_is_a_child_and_one_again_is_not() -> None:
    with runs.start_training_run(provenance(), DATASET):
        pass
    parent = all_runs()[0].info.run_id
    evaluate(provenance(), batch_size=1, accuracy=0.5)
    evaluate(provenance(), batch_size=1, accuracy=0.5)
    assert len(all_runs()) == 1
    evaluate(provenance(), batch_size=2, accuracy=0.7)
    child = all_runs()[0]
    assert child.data.tags["mlflow.parentRunId"] == parent
    assert child.data.metrics == {"next_token_accuracy": 0.7}
    assert child.data.params == {"evaluate.batch_size": "2"}
    assert child.info.status == "FINISHED"


def test_a_model_from_elsewhere_gets_a_run() -> None:
    evaluate(provenance())
    (found,) = all_runs()
    assert found.data.metrics == {"next_token_accuracy": 0.5}
    assert found.info.status == "FINISHED"


def test_a_queue_worker_writes_to_the_main_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = workspace / ".dvc/tmp/exps/standalone/tmpabc"
    (copy / ".dvc").mkdir(parents=True)
    (copy / DATASET).mkdir(parents=True)
    (copy / DATASET / "metadata.json").write_text("{}")
    (copy / "params.yaml").write_text("train: {}\n")
    (copy / "metrics").mkdir()
    (copy / "metrics/train.json").write_text("{}")
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(workspace))
    with runs.start_training_run(provenance(), DATASET) as run:
        run.log_files([Path("metrics/train.json")])
    assert (workspace / "mlflow.db").exists()
    assert list(workspace.glob("mlartifacts/**/metrics/train.json"))
    assert not (copy / "mlflow.db").exists()


def test_writers_that_start_together_share_a_new_store(workspace: Path) -> None:
    (workspace / "mlflow.db").unlink()

    def train(number: int) -> None:
        with runs.start_training_run(provenance(f"{number:016}"), DATASET) as run:
            run.log_metrics({"train_loss": 1.0}, 1)

    threads = [threading.Thread(target=train, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run.data.tags["fingerprint"] for run in all_runs()) == [f"{number:016}" for number in range(4)]
    assert {run.info.status for run in all_runs()} == {"FINISHED"}


def history(name: str = "next_token_accuracy") -> list[list[float]]:
    """The values that each run's curve of this name has, the newest run first."""
    client = MlflowClient(tracking_uri())
    return [[point.value for point in client.get_metric_history(run.info.run_id, name)] for run in all_runs()]


def models() -> list[LoggedModel]:
    client = MlflowClient(tracking_uri())
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_logged_models(experiments))


def test_an_evaluation_that_is_repeated_adds_nothing_and_a_figure_that_differs_is_added() -> None:
    with runs.start_training_run(provenance(), DATASET):
        pass
    for _ in range(3):
        evaluate(provenance())
    assert history() == [[0.5]]
    assert len(models()) == 1
    evaluate(provenance(), accuracy=0.25)  # of another machine
    assert history() == [[0.5, 0.25]]
    assert all_runs()[0].data.metrics["next_token_accuracy"] == 0.25
    for _ in range(2):
        evaluate(provenance(), batch_size=2)
    assert len(all_runs()) == 2


def test_the_samples_are_a_table_that_mlflow_reads_once_however_often_they_are_sent() -> None:
    with runs.start_training_run(provenance(), DATASET) as run:
        pass
    for _ in range(2):
        evaluate(provenance())
    client = connect()
    table = client.load_table(find_experiment(client), "samples.json", [str(run.id)])
    assert table.to_dict("records") == [{"prompt": "a, b", "completion": "c"}]


def test_evaluations_at_once_add_each_figure_once() -> None:
    with runs.start_training_run(provenance(), DATASET):
        pass
    threads = [threading.Thread(target=evaluate, args=[provenance(), size]) for size in (1, 1, 1, 2, 2, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert history() == [[0.5], [0.5]]
    assert len(models()) == 1


class Broken:
    """MLflow's client, of which one call fails: before it has done anything, or after, so that its answer is lost."""

    def __init__(self, patch: pytest.MonkeyPatch, call: int, error: BaseException, *, afterwards: bool) -> None:
        self.left = call
        for name in (name for name in dir(MlflowClient) if not name.startswith("_")):
            function = getattr(MlflowClient, name)
            if callable(function):
                patch.setattr(MlflowClient, name, self._fails(function, error, afterwards))

    def _fails(self, function: Any, error: BaseException, afterwards: bool) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not afterwards:
                raise error
            now = self.left == 0
            answer = function(*arguments, **named)
            if now:
                raise error
            return answer

        return call


SERVER_ERROR = MlflowException("answer lost")


@pytest.mark.parametrize("error", [SERVER_ERROR, KeyboardInterrupt()], ids=["failure", "Ctrl-C"])
@pytest.mark.parametrize("afterwards", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("resumed", [False, True], ids=["new", "resumed"])
def test_a_start_that_breaks_at_any_request_leaves_no_run_running_and_none_double(
    resumed: bool, afterwards: bool, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = None
    if resumed:
        with pytest.raises(KeyboardInterrupt), runs.start_training_run(provenance(), DATASET) as run:
            run_id = run.id
            run.log_metrics({"train_loss": 1.0}, 1)
            raise KeyboardInterrupt
    for call in itertools.count(1):
        with pytest.MonkeyPatch.context() as patch:
            broken = Broken(patch, call, error, afterwards=afterwards)
            try:
                started = runs.start_training_run(provenance(), DATASET, run_id)
            except (UserError, KeyboardInterrupt):
                started = None
        if broken.left > 0:
            break
        if started is None:
            with runs.start_training_run(provenance(), DATASET, run_id) as again:
                assert run_id is None or again.id == run_id
        else:  # what broke can wait
            with started:
                pass
        assert "RUNNING" not in {found.info.status for found in all_runs()}, call
        assert not list((Path.cwd() / outbox.FOLDER).iterdir()), call
    assert call > 5
    assert isinstance(started, runs.TrainingRun)
    with started:
        pass
    if resumed:
        assert len(all_runs()) == 1
    assert len({found.data.tags["outbox"] for found in all_runs()}) == len(all_runs()), "of one outbox is one run"


@pytest.mark.parametrize("afterwards", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("known", [False, True], ids=["a model from elsewhere", "a model of a run"])
def test_an_evaluation_that_breaks_at_any_request_is_whole_when_it_is_repeated(known: bool, afterwards: bool) -> None:
    for call in itertools.count(1):
        model = provenance(f"{call:016}")
        if known:
            with runs.start_training_run(model, DATASET):
                pass
        with pytest.MonkeyPatch.context() as patch:
            broken = Broken(patch, call, SERVER_ERROR, afterwards=afterwards)
            with suppress(UserError):
                evaluate(model)
        evaluate(model)
        if broken.left > 0:
            break
    assert call > 5
    evaluated = [found for found in all_runs() if found.data.tags.get("fingerprint", "").startswith("0")]
    client = MlflowClient(tracking_uri())
    for found in evaluated:
        if "evaluation_fingerprint" in found.data.tags:
            points = client.get_metric_history(found.info.run_id, "next_token_accuracy")
            assert [point.value for point in points] == [0.5]
            assert [file.path for file in client.list_artifacts(found.info.run_id, "metrics")] == [
                "metrics/samples.csv"
            ]
    assert {found.info.status for found in evaluated} <= {"FINISHED", "FAILED"}
    assert len([model.source_run_id for model in models()]) == len({model.source_run_id for model in models()})


def left_behind(fingerprint: str = "a" * 16) -> runs.TrainingRun:
    """Leave what a killed process leaves: a run that is running, and an outbox that nobody holds."""
    run = runs.start_training_run(provenance(fingerprint), DATASET)
    assert isinstance(run, runs.TrainingRun)
    run._sender.close()
    run.log_metrics({"train_loss": 1.0}, 1)
    run._outbox.close()
    return run


def test_a_resumed_run_takes_its_outbox_over_under_whatever_address(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = left_behind()
    (workspace / "again.db").symlink_to("mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///again.db")
    with runs.start_training_run(provenance(), DATASET, run.id) as resumed:
        assert resumed.id == run.id
        resumed.log_metrics({"train_loss": 1.0}, 1)
        resumed.log_metrics({"train_loss": 1.0}, 2)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert runs.send_left_behind() == []
    (found,) = all_runs()
    assert found.info.status == "FINISHED"
    assert history("train_loss") == [[1.0, 1.0]]
    assert not list((workspace / outbox.FOLDER).iterdir())


def test_what_a_store_gets_under_another_address_is_sent_where_the_run_is(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind()
    (workspace / "again.db").symlink_to("mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///again.db")
    assert len(runs.send_left_behind()) == 1
    assert history("train_loss") == [[1.0]]


def test_an_outbox_ends_no_run_that_ended_later(workspace: Path) -> None:
    run = left_behind()
    client = connect()
    client.set_terminated(run.id, "FINISHED")
    (found,) = all_runs()
    runs.send_left_behind()
    assert all_runs()[0].info.status == "FINISHED"
    assert all_runs()[0].info.end_time == found.info.end_time
    assert history("train_loss") == [[1.0]]


def test_a_store_that_is_deleted_during_a_training_gets_the_run_again(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with runs.start_training_run(provenance(), DATASET) as run:
        (workspace / "mlflow.db").unlink()
        for step in range(3):
            run.log_metrics({"train_loss": 1.0}, step)
    assert "what it has not got is kept in" in capsys.readouterr().err
    fresh_store(workspace)
    # The next stage is another process.
    sent = subprocess.run(
        [sys.executable, "-m", "stages.commands.send_metrics"],
        env=clean_environment() | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert sent.stdout == f"MLflow run {run.name}: sent what was left, 3 points\n"
    with sqlite3.connect(workspace / "mlflow.db") as database:
        assert database.execute("select name, status from runs").fetchall() == [(run.name, "FINISHED")]
        assert database.execute("select count(*) from metrics").fetchall() == [(3,)]
        assert ("train.learning_rate", "0.1") in database.execute("select key, value from params").fetchall()
        assert ("fingerprint", "a" * 16) in database.execute("select key, value from tags").fetchall()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"[]",
        b"{",
        b'{"store": 3}',
        b'{"store": "s", "experiment_id": "1", "run_id": "../x"}',
        b'{"store": "s", "experiment_id": "1", "description": {"name": "a", "tags": {}, "dataset": {"name": "d"}}}',
    ],
)
def test_a_damaged_outbox_is_reported_once_and_blocks_nothing(
    content: bytes, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_behind()
    (state,) = (workspace / outbox.FOLDER).glob("*/outbox.json")
    state.write_bytes(content)
    place = workspace / outbox.DAMAGED / state.parent.name
    assert runs.send_left_behind() == []
    assert capsys.readouterr().err.count(f"{place}/: moved there, as its outbox.json is damaged") == 1
    assert (place / "points.jsonl").exists()
    with runs.start_training_run(provenance(), DATASET):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("obstacle", ["one of its name", "a file", "a pipe", "a folder", "a link to nothing"])
def test_a_damaged_outbox_blocks_nothing_whatever_is_in_its_way(
    obstacle: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_behind()
    (state,) = (workspace / outbox.FOLDER).glob("*/outbox.json")
    state.unlink()
    match obstacle:
        case "one of its name":
            state.write_text("{")
            (workspace / outbox.DAMAGED / state.parent.name / "files").mkdir(parents=True)
        case "a file":
            state.write_text("{")
            (workspace / outbox.DAMAGED).write_text("")
        case "a pipe":
            os.mkfifo(state)
        case "a folder":
            state.mkdir()
        case "a link to nothing":
            state.symlink_to("nothing")
    assert runs.send_left_behind() == []
    assert len(capsys.readouterr().err.splitlines()) == (obstacle != "a link to nothing")
    with runs.start_training_run(provenance(), DATASET):
        pass
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["points.jsonl", "sending.jsonl"])
@pytest.mark.parametrize("obstacle", ["a pipe", "a folder", "a link to nothing", "a link to a device"])
def test_what_is_in_the_place_of_points_blocks_neither_others_nor_the_run_itself(
    name: str, obstacle: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = left_behind()
    (state,) = (workspace / outbox.FOLDER).glob("*/outbox.json")
    place = state.with_name(name)
    place.unlink(missing_ok=True)
    match obstacle:
        case "a pipe":
            os.mkfifo(place)
        case "a folder":
            place.mkdir()
        case "a link to nothing":
            place.symlink_to("nothing/at/all")
        case "a link to a device":
            place.symlink_to("/dev/zero")
    with runs.start_training_run(provenance(), DATASET, run.id) as resumed:
        assert resumed.id == run.id
        resumed.log_metrics({"train_loss": 1.0}, 2)
    assert f"moved there, as its {name} is damaged" in capsys.readouterr().err
    assert runs.send_left_behind() == []
    assert history("train_loss") == [[1.0]]


@pytest.mark.parametrize("name", ["", "a b*", "../a", "/a", "a//b", "a\n", "a\0b", "x" * 5000, "\ud800"])
def test_a_point_whose_name_a_store_refuses_keeps_no_other_from_it(name: str, workspace: Path) -> None:
    left_behind()
    (points,) = (workspace / outbox.FOLDER).glob("*/points.jsonl")
    with points.open("a") as file:
        file.write(json.dumps([name, 1.0, 1, 2]) + "\n")
    assert "marked as killed" in runs.send_left_behind()[0]
    assert history("train_loss") == [[1.0]]
    assert all_runs()[0].data.metrics.keys() == {"train_loss"}


def test_a_link_among_kept_files_is_not_followed(workspace: Path) -> None:
    run = left_behind()
    (state,) = (workspace / outbox.FOLDER).glob("*/outbox.json")
    (workspace / "secret").write_text("of the user")
    state.with_name("files").mkdir()
    state.with_name("files").joinpath("link").symlink_to(workspace / "secret")
    runs.send_left_behind()
    assert MlflowClient(tracking_uri()).list_artifacts(run.id) == []


def test_points_that_are_none_are_passed_over(workspace: Path) -> None:
    left_behind()
    (points,) = (workspace / outbox.FOLDER).glob("*/points.jsonl")
    lines = ["null", "7", '{"a": 1}', "[1, 2, 3, 4]", '["x", "y", 1, 2]', '["x", true, 1, 2]', '["x", 1, 1.5, 2]']
    lines += [
        f'["x", 1, 1, {10**30}]',
        f'["x", {10**400}, 1, 1]',
        "[" * 100_000,
        "\0\0\0",
        "\ud800",
        '["train_loss", 2.0',
    ]
    with points.open("a", errors="surrogatepass") as file:
        file.write("\n".join(lines))
    points.write_bytes(points.read_bytes() + b"\xff\xfe")
    assert "marked as killed" in runs.send_left_behind()[0]
    assert history("train_loss") == [[1.0]]
    assert all_runs()[0].data.metrics.keys() == {"train_loss"}


def test_a_full_disk_under_the_outbox_loses_no_point(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "metrics").mkdir(exist_ok=True)
    (workspace / "metrics/train.json").write_text("{}")
    with runs.start_training_run(provenance(), DATASET) as run:
        assert isinstance(run, runs.TrainingRun)
        (run._outbox.folder / "points.jsonl").symlink_to("/dev/full")

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(outbox, "atomic_file", full)
        for step in range(400):
            run.log_metrics({"train_loss": 1.0}, step)
        run.log_files([Path("metrics/train.json")])
        (run._outbox.folder / "points.jsonl").unlink()
    assert capsys.readouterr().err.count("No space left on device: points wait in memory until MLflow takes them") == 1
    (found,) = all_runs()
    assert found.info.status == "FINISHED"
    assert history("train_loss") == [[1.0] * 400]
    assert [file.path for file in connect().list_artifacts(found.info.run_id, "metrics")] == ["metrics/train.json"]


def test_parameters_of_any_name_and_number_are_recorded(workspace: Path) -> None:
    with Path("params.yaml").open("a") as file:
        file.write("notes:\n  'à l''œuvre (1)!': x\n" + "".join(f"  key{number}: 1\n" for number in range(250)))
    with runs.start_training_run(provenance(), DATASET):
        pass
    (found,) = all_runs()
    assert found.data.params["notes.à l_œuvre _1__"] == "x"
    assert len(found.data.params) == 253


def test_where_somebody_else_was_first_with_the_dataset_it_is_taken() -> None:
    client = connect()
    experiment_id = find_experiment(client)
    failed: list[Exception] = []

    def log(run_id: str, digest: str, together: threading.Barrier) -> None:
        together.wait()
        try:
            runs._log_dataset(client, run_id, Dataset("dataset", digest, "local", "{}"))
        except MlflowException as error:
            failed.append(error)

    for turn in range(6):
        together = threading.Barrier(3)
        created = [client.create_run(experiment_id).info.run_id for _ in range(3)]
        threads = [threading.Thread(target=log, args=[run_id, str(turn), together]) for run_id in created]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []


def test_a_model_is_listed_with_its_name_parameters_and_linked_figures() -> None:
    for number, loss in enumerate((0.3, 0.1, 0.2)):
        model = provenance(f"{number:016}")
        with runs.start_training_run(model, DATASET) as run:
            for step in (10, 20):
                run.log_metrics({"validation_loss": loss * step}, step)
        for _ in range(2):
            evaluation = runs.Evaluation(provenance(f"{number:016x}"), {"split": "test", "loss": loss}, "", [])
            runs.log_evaluation(model, evaluation, DATASET)
    client = MlflowClient(tracking_uri())
    experiment_id = find_experiment(client)
    ranked = client.search_logged_models([experiment_id], order_by=[{"field_name": "metrics.loss", "ascending": True}])
    assert [model.name for model in ranked] == [f"train-{number:07}" for number in (0, 0, 0)]
    assert [model.params["train.learning_rate"] for model in ranked] == ["0.1"] * 3
    facts = [sorted((m.key, m.value, m.step, m.dataset_name) for m in model.metrics or []) for model in ranked]
    assert facts[0] == [
        ("loss", 0.1, 0, "dataset test"),
        ("validation_loss", 1.0, 10, "dataset validation"),
        ("validation_loss", 2.0, 20, "dataset validation"),
    ]
    assert [fact[0][1] for fact in facts] == [0.1, 0.2, 0.3]
    assert history("validation_loss") == [[2.0, 4.0], [1.0, 2.0], [3.0, 6.0]]
    assert callable(log_model)
