"""The runs in MLflow: one for each training, which the evaluation of its model joins.

A run is found again by its model's fingerprint, never by an id in a file: an id in a DVC output would change at every run.
"""

import csv
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, LoggedModel, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from stages.artifacts.provenance_json import Provenance
from stages.errors import UserError
from stages.parameters import read_all
from stages.tracking.logged_model import model_of_run
from stages.tracking.outbox import BATCH, REQUEST_SECONDS, DatasetDescription, Outbox, Point, RunDescription, Sender
from stages.tracking.run_tags import (
    FINGERPRINT_TAG,
    LONGEST_NAME,
    LONGEST_TAG,
    fitted,
    name_run,
    run_parameters,
    run_tags,
    way_back,
)
from stages.tracking.store import (
    connect,
    failure,
    find_experiment,
    handled_store_errors,
    one_at_a_time,
    store_errors,
    within,
)
from stages.tracking.workspace import remember_run_name, store_id

EVALUATION_TAG = "evaluation_fingerprint"
OUTBOX_TAG = "outbox"
VALIDATION = "validation_loss"
SAMPLES = "samples.csv"  # prompts and completions

PARAMETERS_AT_ONCE = 100  # the most that MLflow takes in a request
TRIES = 3


class TrainingRun:
    """A running MLflow run. What cannot be sent is kept, and sent at the next start."""

    def __init__(self, client: MlflowClient, run: Run, outbox: Outbox) -> None:
        self.id: str = run.info.run_id
        self.name: str = run.info.run_name
        self._client = client
        self._outbox = outbox
        # A resumed training logs steps again that were sent already.
        self._sent = {name: _last_step(client, run.info.run_id, name) for name in run.data.metrics}
        self._sender = Sender(outbox, lambda points: _send_points(client, run.info.run_id, points))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Send what is left and end the run: finished, failed, or killed by a signal."""
        self._outbox.keep_end("FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED")
        try:
            self._sender.close()
            _send(self._client, self._outbox, self.id)
        except Exception as failed:  # noqa: BLE001 - nothing is lost
            lost = (
                f"; {self._outbox.in_memory:,} points are lost, as the disk is full" if self._outbox.in_memory else ""
            )
            print(
                f"{failure(failed)}; what it has not got is kept in {self._outbox.folder}/; the next `dvc repro` that "
                f"runs a stage sends it, or `python -m stages.commands.send_metrics`{lost}",
                file=sys.stderr,
            )
            self._outbox.close()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Take one point of each curve; returns at once."""
        now = _now()
        new = {name: value for name, value in metrics.items() if step > self._sent.get(name, -1)}
        if new:
            self._sender.put([Point(name, value, now, step) for name, value in new.items()])

    def log_sample(self, metrics: Mapping[str, float]) -> None:
        """Take the next point of curves whose steps only count the points; returns at once."""
        now = _now()
        for name in metrics:
            self._sent[name] = self._sent.get(name, -1) + 1
        self._sender.put([Point(name, value, now, self._sent[name]) for name, value in metrics.items()])

    def log_files(self, paths: Iterable[Path]) -> None:
        """Keep files with the run, in the folders in which they are."""
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
    with handled_store_errors(required=required):
        client = connect()
        experiment_id = find_experiment(client)
        with ExitStack() as taken:  # where the start fails, another process may take what was taken
            # Before others are sent: what an earlier process of this run left is not left behind.
            earlier = Outbox.of_run(run_id) if run_id is not None else None
            if earlier is not None:
                taken.callback(earlier.close)
            _report_left_behind(client, experiment_id)
            resumed = _resume(client, experiment_id, run_id, earlier) if run_id is not None else None
            run, outbox = resumed or _create_training_run(client, experiment_id, provenance, dataset_path)
            taken.callback(outbox.close)
            started = TrainingRun(client, run, outbox)
            taken.pop_all()
            return started
    return UnrecordedRun()


@store_errors("`python -m stages.commands.send_metrics`")
def send_left_behind() -> list[str]:
    """Send what earlier runs could not, end the runs of killed processes, and return what was done, in words.

    Raises:
        UserError: the store cannot be used, or refuses something.
    """
    client = connect()
    done, refused = _send_left_behind(client, find_experiment(client))
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
    """Add an evaluation to the run that trained the model. What the run has already is not sent again.

    Where that run has been evaluated with other parameters, a child run takes the new figures; where the store does not
    know the run (the model came from another machine), it is created.

    Returns:
        the run that trained the model; None where there is no store and none is required.

    Raises:
        UserError: the store cannot be used, and is required.
    """
    with handled_store_errors(required=required):
        client = connect()
        experiment_id = find_experiment(client)
        _report_left_behind(client, experiment_id)
        with one_at_a_time():  # of several evaluations at once the first one sends, and the others see that it did
            run = _newest_run(client, experiment_id, {FINGERPRINT_TAG: model.fingerprint})
            if run is None:
                run, _ = _create_training_run(client, experiment_id, model, dataset_path, ended=True)
            target = _run_of_evaluation(client, experiment_id, run, evaluation.provenance)
            logged = model_of_run(client, run)
            _log_figures(client, target, logged, evaluation, dataset_path)
            note = f"{evaluation.description}\n\n{way_back(run, logged.model_id)}"
            client.set_tag(target.info.run_id, MLFLOW_RUN_NOTE, fitted(note, LONGEST_TAG))
        for path in evaluation.paths:
            client.log_artifact(target.info.run_id, str(path), str(path.parent))
            if path.name == SAMPLES:
                _log_table(client, target.info.run_id, path)
        return run
    return None


def _run_of_evaluation(client: MlflowClient, experiment_id: str, run: Run, evaluation: Provenance) -> Run:
    """Return the run that takes the figures: the training's own, or a child where it has those of other parameters."""
    fingerprint = evaluation.fingerprint
    if run.data.tags.get(EVALUATION_TAG, fingerprint) == fingerprint:
        return run
    tags = {MLFLOW_PARENT_RUN_ID: run.info.run_id, EVALUATION_TAG: fingerprint}
    child = _newest_run(client, experiment_id, tags)
    if child is None:
        description = RunDescription(
            name=fitted(f"{run.info.run_name} evaluation {fingerprint[:7]}", LONGEST_NAME),
            tags=tags,
            parameters={item.key: item.value for item in run_parameters(evaluation.parameters)},
        )
        child, _ = _create_run(client, experiment_id, description, ended=True)
    return child


def _log_figures(
    client: MlflowClient, run: Run, logged: LoggedModel, evaluation: Evaluation, dataset_path: Path
) -> None:
    """Add the figures to a run and to its model; the same figure has the same time, so that a store keeps it once."""
    split = str(evaluation.metrics["split"])
    digest = evaluation.provenance.dependencies.get(str(dataset_path))
    of_model = {"model_id": logged.model_id, "dataset_name": f"{dataset_path.name} {split}", "dataset_digest": digest}
    has_run, has_model = run.data.metrics, {metric.key: metric.value for metric in logged.metrics or []}
    metrics = [
        Metric(name, value, run.info.start_time if has_run.get(name, value) == value else _now(), 0, **of_model)
        for name, value in evaluation.metrics.items()
        if isinstance(value, int | float) and not has_run.get(name) == has_model.get(name) == value
    ]
    tags = {EVALUATION_TAG: evaluation.provenance.fingerprint, "evaluation_split": split}
    client.log_batch(run.info.run_id, metrics=metrics, tags=[RunTag(name, value) for name, value in tags.items()])
    if VALIDATION in has_run and VALIDATION not in has_model:
        of_model["dataset_name"] = f"{dataset_path.name} validation"
        curve = client.get_metric_history(run.info.run_id, VALIDATION)
        points = [Metric(point.key, point.value, point.timestamp, point.step, **of_model) for point in curve]
        for first in range(0, len(points), BATCH):
            client.log_batch(run.info.run_id, metrics=points[first : first + BATCH])


def _log_table(client: MlflowClient, run_id: str, path: Path) -> None:
    """Show a CSV as a table that MLflow's pages put beside that of another run; MLflow's own function would add to it."""
    with path.open(encoding="utf-8", newline="") as file:
        columns, *rows = csv.reader(file)
    name = f"{path.stem}.json"
    client.log_dict(run_id, {"columns": columns, "data": rows}, name)
    client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([{"path": name, "type": "table"}]))


def _report_left_behind(client: MlflowClient, experiment_id: str) -> None:
    """Send what was left behind, and print what was done."""
    done, refused = _send_left_behind(client, experiment_id)
    for line in [*done, *refused]:
        print(line, file=sys.stderr)


def _send_left_behind(client: MlflowClient, experiment_id: str) -> tuple[list[str], list[str]]:
    """Send what earlier runs could not, and return what was done and what the store refused, in words."""
    done, refused = [], []
    for outbox in Outbox.left_behind():
        try:
            run = _run_of(client, experiment_id, outbox)
            if run is not None:
                killed = outbox.end()[0] == "KILLED"
                points = _send(client, outbox, run.info.run_id)
                what = (
                    "marked as killed, as its process is gone" if killed else f"sent what was left, {points:,} points"
                )
                done.append(f"MLflow run {run.info.run_name}: {what}")
        except Exception as error:  # noqa: BLE001 - of many libraries: a store may keep its artifacts anywhere
            refused.append(
                f"{failure(error)}; what it has not got of run {outbox.run_id} stays in {outbox.folder}/: the next "
                "`dvc repro` that runs a stage tries again; delete that folder to give it up"
            )
        finally:
            outbox.close()
    return done, refused


def _run_of(client: MlflowClient, experiment_id: str, outbox: Outbox) -> Run | None:
    """Return the run of an outbox, created again where this store has lost it; None where there is nothing to send."""
    meant_for_this_store = outbox.store == store_id()
    if outbox.run_id is None:  # its process was killed, or its server failed, while the run was created
        found = _find_runs(client, outbox.experiment_id, {OUTBOX_TAG: outbox.id}) if meant_for_this_store else []
        if meant_for_this_store and not found:
            outbox.remove()
        return found[0] if found else None
    run = _find_run(client, outbox.run_id)
    if run is None:
        return _create_described_run(client, experiment_id, outbox) if meant_for_this_store else None
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:  # a person deleted it
        outbox.remove()
        return None
    return run


def _find_run(client: MlflowClient, run_id: str) -> Run | None:
    """Return a run; None where the store does not have it."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _resume(client: MlflowClient, experiment_id: str, run_id: str, earlier: Outbox | None) -> tuple[Run, Outbox] | None:
    """Go on with a run and with what an earlier process of it could not send; None where a person deleted the run."""
    run = _find_run(client, run_id)
    if run is None and earlier is not None and earlier.store == store_id():
        run = _create_described_run(client, experiment_id, earlier)
    if run is None or run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        if earlier is not None:
            earlier.close()  # to its own store
        return None
    description = RunDescription(name=run.info.run_name, tags=run.data.tags, parameters=run.data.params)
    outbox = earlier or Outbox.open(store_id(), run.info.experiment_id, description)
    try:
        outbox.belongs_to(run.info.run_id, store_id(), run.info.experiment_id)
        outbox.forget_end()
        outbox.send_all_points(lambda points: _send_points(client, run.info.run_id, points))
        client.update_run(run.info.run_id, status="RUNNING")
        return client.get_run(run.info.run_id), outbox
    except BaseException:
        outbox.close()
        raise


def _send(client: MlflowClient, outbox: Outbox, run_id: str) -> int:
    """Send all that an outbox holds, end its run and delete it; return the number of points."""
    points = within(
        REQUEST_SECONDS, lambda: outbox.send_all_points(lambda points: _send_points(client, run_id, points))
    )
    within(REQUEST_SECONDS, lambda: _end(client, outbox, run_id))  # before the files, which a store may refuse
    for path, place in outbox.files():
        client.log_artifact(run_id, str(path), str(place.parent))
    outbox.remove()
    return points


def _end(client: MlflowClient, outbox: Outbox, run_id: str) -> None:
    """End the run of an outbox, unless it ended later, and delete the runs that a repeated request created beside it."""
    status, milliseconds = outbox.end()
    info = client.get_run(run_id).info
    if info.status == "RUNNING" or info.end_time is None or info.end_time < milliseconds:
        client.set_terminated(run_id, status, milliseconds)
    _delete_duplicates(client, outbox, run_id)


def _delete_duplicates(client: MlflowClient, outbox: Outbox, run_id: str) -> None:
    """Delete the empty runs of an outbox: MLflow asks again for a run where the answer to its first request was lost."""
    for run in _find_runs(client, outbox.experiment_id, {OUTBOX_TAG: outbox.id}):
        if run.info.run_id != run_id:
            client.delete_run(run.info.run_id)


def _send_points(client: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    client.log_batch(run_id, metrics=[Metric(*point) for point in points])


def _last_step(client: MlflowClient, run_id: str, name: str) -> int:
    return max((point.step for point in client.get_metric_history(run_id, name)), default=-1)


def _create_training_run(
    client: MlflowClient, experiment_id: str, provenance: Provenance, dataset_path: Path, *, ended: bool = False
) -> tuple[Run, Outbox]:
    """Create the run of a training, with what leads back to it; one that has ended is only added to."""
    values = read_all()
    description = RunDescription(
        name=name_run(provenance, values),
        tags=run_tags(provenance),
        parameters={item.key: item.value for item in run_parameters(values)},
        dataset=DatasetDescription(
            name=dataset_path.name,
            digest=provenance.dependencies[str(dataset_path)],
            source_type="local",
            source=json.dumps({"uri": str(dataset_path)}),
            profile=(dataset_path / "metadata.json").read_text(encoding="utf-8"),
        ),
    )
    run, outbox = _create_run(client, experiment_id, description, ended=ended)
    remember_run_name(provenance.fingerprint, description.name)
    return run, outbox


def _create_run(
    client: MlflowClient, experiment_id: str, description: RunDescription, *, ended: bool
) -> tuple[Run, Outbox]:
    """Create a run whose tag names an outbox that is there before it: however early its process is killed, it is ended."""
    outbox = Outbox.open(store_id(), experiment_id, description)
    if ended:
        outbox.keep_end("FINISHED")
    run = _create_described_run(client, experiment_id, outbox)
    if ended:
        with closing(outbox):
            _send(client, outbox, run.info.run_id)
    return run, outbox


def _create_described_run(client: MlflowClient, experiment_id: str, outbox: Outbox) -> Run:
    """Create the run that an outbox describes; where that fails half-way it ends as failed, now or at the next start."""
    description = outbox.description
    tags = {**description.tags, OUTBOX_TAG: outbox.id}
    try:
        run = client.create_run(experiment_id, run_name=description.name, tags=tags)
        outbox.belongs_to(run.info.run_id, store_id(), experiment_id)
        _delete_duplicates(client, outbox, run.info.run_id)
        parameters = [Param(name, value) for name, value in description.parameters.items()]
        for first in range(0, len(parameters), PARAMETERS_AT_ONCE):
            client.log_batch(run.info.run_id, params=parameters[first : first + PARAMETERS_AT_ONCE])
        if description.dataset is not None:
            _log_dataset(client, run.info.run_id, Dataset(**description.dataset.model_dump()))
    except BaseException:
        outbox.keep_end("FAILED")
        with suppress(Exception):
            for run in _find_runs(client, experiment_id, {OUTBOX_TAG: outbox.id}):
                client.set_terminated(run.info.run_id, "FAILED")
            outbox.remove()
        outbox.close()
        raise
    return run


def _log_dataset(client: MlflowClient, run_id: str, dataset: Dataset) -> None:
    """Add the dataset of a training; where somebody else was first to bring it to this store, it is found there."""
    for tries_left in reversed(range(TRIES)):
        try:
            client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        except MlflowException as error:
            if not tries_left or "unique" not in str(error).lower():
                raise
        else:
            return


def _newest_run(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> Run | None:
    """Return the run with these tags that began last."""
    found = _find_runs(client, experiment_id, tags)
    return found[0] if found else None


def _find_runs(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> list[Run]:
    """Return the runs with these tags, those that began last first."""
    which = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    return list(client.search_runs([experiment_id], which, order_by=["attributes.start_time DESC"], max_results=100))


def _now() -> int:
    return int(time.time() * 1000)
