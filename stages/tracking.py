"""MLflow: one run for each training, which the evaluation of its model joins. The only module that imports mlflow.

A run is found again by its model's fingerprint, never by an id in a file: an id in a DVC output would change at every run.
"""

import json
import logging
import os
import queue
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# With the default of seven retries an absent server is noticed after minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from stages.parameters import read_all
from stages.provenance import Provenance
from stages.run_names import project_root, remember_run_name

# What it says of creating its tables is no news to a user.
logging.getLogger("mlflow").setLevel(logging.WARNING)

FINGERPRINT_TAG = "fingerprint"
EVALUATION_TAG = "evaluation_fingerprint"


def tracking_uri() -> str:
    """Return the store: MLFLOW_TRACKING_URI, or else an SQLite file in the main workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow.db'}"


class TrainingRun:
    """A running MLflow run. Metrics are sent by a thread of their own, many at a time, so that no step waits for them."""

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self.id: str = run.info.run_id
        self.name: str = run.info.run_name
        self._client = client
        self._run_id: str = run.info.run_id
        self._points: queue.SimpleQueue[Metric | None] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self._sender = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._sender.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Send what is left and end the run: finished, failed, or killed by Ctrl-C."""
        self._points.put(None)
        self._sender.join()
        status = "FINISHED" if kind is None else "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        self._client.set_terminated(self._run_id, status)
        if self._failure is not None and error is None:
            raise self._failure

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Take one point of each curve; returns at once."""
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            self._points.put(Metric(name, value, now, step))

    def log_files(self, paths: Iterable[Path]) -> None:
        """Keep files with the run, in the folders in which they lie."""
        _log_files(self._client, self._run_id, paths)

    def _send(self) -> None:
        more = True
        while more:
            points = [self._points.get()]
            while len(points) < 1000 and not self._points.empty():
                points.append(self._points.get())
            more = None not in points
            try:
                self._client.log_batch(self._run_id, metrics=[point for point in points if point is not None])
            except Exception as error:  # noqa: BLE001 - told when the run ends: training goes on
                self._failure = error


def start_training_run(provenance: Provenance, dataset_path: Path) -> TrainingRun:
    """Create the run of a training, with its parameters, inputs and the tags that lead back to it."""
    client, experiment_id = _open_store()
    return TrainingRun(client, _create_run(client, experiment_id, provenance, dataset_path))


def log_evaluation(
    model: Provenance, evaluation: Provenance, dataset_path: Path, metrics: Mapping[str, Any], paths: Iterable[Path]
) -> None:
    """Add an evaluation to the run that trained the model.

    Where that run has been evaluated with other parameters, a child run takes the new figures; where the store does not
    know the run (the model came from another machine), it is created.
    """
    client, experiment_id = _open_store()
    found = client.search_runs(
        [experiment_id],
        f"tags.{FINGERPRINT_TAG} = '{model.fingerprint}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    run = found[0] if found else _create_run(client, experiment_id, model, dataset_path)
    run_id = run.info.run_id
    if run.data.tags.get(EVALUATION_TAG, evaluation.fingerprint) != evaluation.fingerprint:
        child = client.create_run(
            experiment_id,
            run_name=f"{run.info.run_name} evaluation {evaluation.fingerprint[:7]}",
            tags={MLFLOW_PARENT_RUN_ID: run_id},
        )
        run_id = child.info.run_id
        client.log_batch(run_id, params=_parameters(evaluation.parameters))
    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, now, 0) for name, value in metrics.items() if isinstance(value, int | float)],
        tags=[RunTag(EVALUATION_TAG, evaluation.fingerprint), RunTag("evaluation_split", str(metrics["split"]))],
    )
    _log_files(client, run_id, paths)
    if run_id != run.info.run_id or not found:
        client.set_terminated(run_id)


def _one_at_a_time() -> FileLock:
    """Keep processes of this workspace apart where MLflow breaks: two that create one SQLite store, or one dataset."""
    return FileLock(project_root() / "mlflow.db.lock")


def _open_store() -> tuple[MlflowClient, str]:
    """Connect to the store and find the experiment, creating both where they are new."""
    root = project_root()
    uri = tracking_uri()
    with _one_at_a_time():
        client = MlflowClient(uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or root.name
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            return client, experiment.experiment_id
        # A server keeps artifacts where it was told to; beside an SQLite file they would go to the working folder.
        location = (root / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
        return client, client.create_experiment(name, artifact_location=location)


def _create_run(client: MlflowClient, experiment_id: str, provenance: Provenance, dataset_path: Path) -> Run:
    parameters = _parameters(read_all())
    run = client.create_run(
        experiment_id,
        run_name=_name(client, experiment_id, provenance, parameters),
        tags=_tags(provenance),
    )
    client.log_batch(run.info.run_id, params=parameters)
    digest = provenance.dependencies[str(dataset_path)]
    source = json.dumps({"uri": str(dataset_path)})
    profile = (dataset_path / "metadata.json").read_text(encoding="utf-8")
    dataset = Dataset(dataset_path.name, digest, source_type="local", source=source, profile=profile)
    with _one_at_a_time():
        client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    remember_run_name(provenance.fingerprint, run.info.run_name)
    return run


def _name(client: MlflowClient, experiment_id: str, provenance: Provenance, parameters: list[Param]) -> str:
    """Name a run by DVC's experiment and by the parameters that differ from those of the run before."""
    name = os.environ.get("DVC_EXP_NAME") or f"train-{provenance.fingerprint[:7]}"
    before = client.search_runs([experiment_id], order_by=["attributes.start_time DESC"], max_results=1)
    if not before:
        return name
    old = before[0].data.params
    changed = [f"{item.key}={item.value}" for item in parameters if old.get(item.key) != item.value]
    tracked = [change for change in changed if not change.startswith("runtime.")]
    more = f" and {len(tracked) - 3} more" if len(tracked) > 3 else ""
    return " ".join([name, *tracked[:3]]) + more


def _tags(provenance: Provenance) -> dict[str, str]:
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or _git("rev-parse", "HEAD")
    tags = {
        FINGERPRINT_TAG: provenance.fingerprint,
        "dvc.experiment": os.environ.get("DVC_EXP_NAME", ""),
        "git.commit": commit,
        "mlflow.source.git.commit": commit,
        "git.changed_files": _git("diff", "--name-only", "HEAD").replace("\n", ", "),
        "mlflow.source.name": "dvc repro",
    }
    tags |= {f"md5.{path}": digest for path, digest in provenance.dependencies.items()}
    return {name: value for name, value in tags.items() if value}


def _git(*arguments: str) -> str:
    """Ask git about the workspace; empty where it is no git repository or git is not installed."""
    try:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return ""
    return answer.stdout.strip()


def _parameters(values: Mapping[str, Any]) -> list[Param]:
    return [Param(name, str(value)) for name, value in _flatten(values)]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _log_files(client: MlflowClient, run_id: str, paths: Iterable[Path]) -> None:
    for path in paths:
        client.log_artifact(run_id, str(path), str(path.parent))
