"""A real store, in a folder of its own."""

import json
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from stages.artifacts.provenance_json import Provenance
from stages.tracking import runs
from stages.tracking.workspace import run_name, tracking_uri

DATASET = Path("data/dataset")


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder as far as tracking sees it."""
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
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
    runs.log_evaluation(model, runs.Evaluation(inputs, metrics, "A run.", []), DATASET)


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


def test_a_run_is_named_by_what_differs_from_the_training_before(monkeypatch: pytest.MonkeyPatch) -> None:
    with runs.start_training_run(provenance(), DATASET) as first:
        pass
    evaluate(provenance())
    evaluate(provenance(), batch_size=2)
    write_parameters(0.05)
    monkeypatch.setenv("DVC_EXP_NAME", "crude-poet")
    with runs.start_training_run(provenance("c" * 16), DATASET) as second:
        pass
    assert first.name == "train-aaaaaaa"
    assert second.name == "crude-poet train.learning_rate=0.05"


def test_a_queue_worker_writes_to_the_main_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = workspace / "copy"
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


def test_writers_that_start_together_share_a_new_store() -> None:
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
