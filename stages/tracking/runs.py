"""The runs in MLflow: one for each training, which the evaluation of its model joins.

A run is found again by its model's fingerprint, never by an id in a file: an id in a DVC output would change at every run.
"""

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from stages.artifacts.provenance_json import Provenance
from stages.errors import UserError
from stages.parameters import read_all
from stages.tracking.outbox import Outbox, Point, Sender
from stages.tracking.run_tags import FINGERPRINT_TAG, name_run, run_parameters, run_tags, way_back
from stages.tracking.store import connect, failure, find_experiment, one_at_a_time, store_errors, store_hash
from stages.tracking.workspace import remember_run_name

EVALUATION_TAG = "evaluation_fingerprint"
OUTBOX_TAG = "outbox"


class TrainingRun:
    """A running MLflow run. What cannot be sent is kept, and sent at the next start."""

    def __init__(self, client: MlflowClient, run: Run, outbox: Outbox) -> None:
        self.id: str = run.info.run_id
        self.name: str = run.info.run_name
        self._client = client
        self._outbox = outbox
        self._sender = Sender(outbox, lambda points: _send_points(client, run.info.run_id, points))
        # A resumed training comes by steps that it has sent already.
        self._sent = {name: _last_step(client, run.info.run_id, name) for name in run.data.metrics}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Send what is left and end the run: finished, failed, or killed by a signal."""
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        self._outbox.keep_end(status)
        self._sender.close()
        try:
            _send(self._client, self._outbox, self.id)
        except Exception as failed:  # noqa: BLE001 - nothing is lost
            self._outbox.close()
            print(
                f"{failure(failed)}; what it has not got is kept in {self._outbox.folder}/; the next `dvc repro` that "
                "runs a stage sends it, or `python -m stages.commands.send_metrics`",
                file=sys.stderr,
            )

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Take one point of each curve; returns at once."""
        now = int(time.time() * 1000)
        new = {name: value for name, value in metrics.items() if step > self._sent.get(name, -1)}
        if new:
            self._sender.put([Point(name, value, now, step) for name, value in new.items()])

    def log_sample(self, metrics: Mapping[str, float]) -> None:
        """Take the next point of curves whose steps only count the points; returns at once."""
        now = int(time.time() * 1000)
        for name in metrics:
            self._sent[name] = self._sent.get(name, -1) + 1
        self._sender.put([Point(name, value, now, self._sent[name]) for name, value in metrics.items()])

    def log_files(self, paths: Iterable[Path]) -> None:
        """Keep files with the run, in the folders in which they lie."""
        for path in paths:
            self._outbox.keep_file(path)


class UnrecordedRun:
    """Takes the place of a run where there is no MLflow server and `runtime.tracking` is optional."""

    id: str | None = None
    name = "none: not recorded"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def log_sample(self, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def log_files(self, paths: Iterable[Path]) -> None:
        """Do nothing."""


def start_training_run(
    provenance: Provenance, dataset_path: Path, run_id: str | None = None, *, required: bool = True
) -> TrainingRun | UnrecordedRun:
    """Create the run of a training, with its parameters, inputs and the tags that lead back to it.

    Args:
        provenance: what the training's result is made from.
        dataset_path: the dataset's folder.
        run_id: the run of the training that this one resumes, which it goes on with if the store still has it.
        required: False goes on without a run where the store cannot be used.

    Raises:
        UserError: the store cannot be used, and is required.
    """
    with store_errors(required=required):
        client, experiment_id = _open_store()
        if run_id is not None:
            try:
                client.update_run(run_id, status="RUNNING")
            except MlflowException:
                pass  # deleted, or in another store
            else:
                outbox = Outbox.open(store_hash())
                outbox.run_id = run_id
                return TrainingRun(client, client.get_run(run_id), outbox)
        return TrainingRun(client, *_create_run(client, experiment_id, provenance, dataset_path))
    return UnrecordedRun()


@store_errors("`python -m stages.commands.send_metrics`")
def send_left_behind() -> list[str]:
    """Send what earlier runs could not, end the runs of killed processes, and return what was done, in words.

    Raises:
        UserError: the store cannot be used, or refuses something.
    """
    done, refused = _send_left_behind(connect())
    if refused:
        raise UserError("\n".join([*refused, *done]))
    return done


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation adds to a run."""

    provenance: Provenance
    metrics: Mapping[str, Any]
    description: str
    """For people, in Markdown."""
    paths: Sequence[Path]
    """Files to keep with the run."""


def log_evaluation(
    model: Provenance, evaluation: Evaluation, dataset_path: Path, *, required: bool = True
) -> Run | None:
    """Add an evaluation to the run that trained the model.

    Where that run has been evaluated with other parameters, a child run takes the new figures; where the store does not
    know the run (the model came from another machine), it is created.

    Returns:
        the run that trained the model; None where there is no store and none is required.

    Raises:
        UserError: the store cannot be used, and is required.
    """
    with store_errors(required=required):
        client, experiment_id = _open_store()
        run, outbox = _newest_run(client, experiment_id, f"tags.{FINGERPRINT_TAG} = '{model.fingerprint}'"), None
        if run is None:
            run, outbox = _create_run(client, experiment_id, model, dataset_path)
        run_id = run.info.run_id
        fingerprint = evaluation.provenance.fingerprint
        if run.data.tags.get(EVALUATION_TAG, fingerprint) != fingerprint:
            child, outbox = _create_run_with_outbox(
                client,
                experiment_id,
                f"{run.info.run_name} evaluation {fingerprint[:7]}",
                {MLFLOW_PARENT_RUN_ID: run_id},
            )
            run_id = child.info.run_id
            client.log_batch(run_id, params=run_parameters(evaluation.provenance.parameters))
        now = int(time.time() * 1000)
        tags = {
            EVALUATION_TAG: fingerprint,
            "evaluation_split": str(evaluation.metrics["split"]),
            MLFLOW_RUN_NOTE: f"{evaluation.description}\n\n{way_back(run)}",
        }
        client.log_batch(
            run_id,
            metrics=[
                Metric(name, value, now, 0)
                for name, value in evaluation.metrics.items()
                if isinstance(value, int | float)
            ],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        for path in evaluation.paths:
            client.log_artifact(run_id, str(path), str(path.parent))
        if outbox is not None:
            client.set_terminated(run_id)
            outbox.remove()
        return run
    return None


def _open_store() -> tuple[MlflowClient, str]:
    """Connect to the store and find the experiment, creating both where they are new; send what was left behind."""
    client = connect()
    experiment_id = find_experiment(client)
    done, refused = _send_left_behind(client)
    for line in [*done, *refused]:
        print(line, file=sys.stderr)
    return client, experiment_id


def _send_left_behind(client: MlflowClient) -> tuple[list[str], list[str]]:
    """Send what earlier runs could not, and return what was done and what the store refused, in words."""
    done, refused = [], []
    for outbox in Outbox.left_behind(store_hash()):
        try:
            run = _find_run(client, outbox)
            if run is None:
                outbox.remove()
                continue
            killed = outbox.end()[0] == "KILLED"
            points = _send(client, outbox, run.info.run_id)
        except Exception as error:  # noqa: BLE001 - of many libraries: a store may keep its artifacts anywhere
            refused.append(
                f"{failure(error)}; what it has not got of run {outbox.run_id} stays in {outbox.folder}/: the next "
                "`dvc repro` that runs a stage tries again; delete that folder to give it up"
            )
        else:
            what = "marked as killed, as its process is gone" if killed else f"sent what was left, {points:,} points"
            done.append(f"MLflow run {run.info.run_name}: {what}")
    return done, refused


def _find_run(client: MlflowClient, outbox: Outbox) -> Run | None:
    """Find the run of an outbox; None where a person deleted it, or its process was killed before it was created."""
    if outbox.run_id is None:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return next(iter(client.search_runs(experiments, f"tags.{OUTBOX_TAG} = '{outbox.id}'")), None)
    try:
        run = client.get_run(outbox.run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def _send(client: MlflowClient, outbox: Outbox, run_id: str) -> int:
    """Send all that an outbox holds, end its run and delete it; return the number of points."""
    points = outbox.send_all_points(lambda points: _send_points(client, run_id, points))
    status, milliseconds = outbox.end()
    client.set_terminated(run_id, status, milliseconds)  # before the files, which a store may refuse
    for path, place in outbox.files():
        client.log_artifact(run_id, str(path), str(place.parent))
    outbox.remove()
    return points


def _send_points(client: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    client.log_batch(run_id, metrics=[Metric(*point) for point in points])


def _last_step(client: MlflowClient, run_id: str, name: str) -> int:
    return max((point.step for point in client.get_metric_history(run_id, name)), default=-1)


def _create_run(
    client: MlflowClient, experiment_id: str, provenance: Provenance, dataset_path: Path
) -> tuple[Run, Outbox]:
    parameters = run_parameters(read_all())
    # A run without this tag is an evaluation, which has not all parameters.
    before = _newest_run(client, experiment_id, f"tags.{FINGERPRINT_TAG} LIKE '%'")
    name = name_run(provenance, parameters, before)
    run, outbox = _create_run_with_outbox(client, experiment_id, name, run_tags(provenance))
    client.log_batch(run.info.run_id, params=parameters)
    digest = provenance.dependencies[str(dataset_path)]
    source = json.dumps({"uri": str(dataset_path)})
    profile = (dataset_path / "metadata.json").read_text(encoding="utf-8")
    dataset = Dataset(dataset_path.name, digest, source_type="local", source=source, profile=profile)
    with one_at_a_time():
        client.log_inputs(run.info.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    remember_run_name(provenance.fingerprint, run.info.run_name)
    return run, outbox


def _create_run_with_outbox(
    client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str]
) -> tuple[Run, Outbox]:
    """Create a run whose tag names an outbox that is there before it: however early its process is killed, it is ended."""
    outbox = Outbox.open(store_hash())
    run = client.create_run(experiment_id, run_name=name, tags={**tags, OUTBOX_TAG: outbox.id})
    outbox.run_id = run.info.run_id
    return run, outbox


def _newest_run(client: MlflowClient, experiment_id: str, which: str) -> Run | None:
    """Find the run that began last, of those that a search finds."""
    found = client.search_runs([experiment_id], which, order_by=["attributes.start_time DESC"], max_results=1)
    return found[0] if found else None
