"""MLflow: one run for each training, which the evaluation of its model joins. Only served_model.py and model_registry.py import mlflow beside it.

A run is found again by its model's fingerprint, never by an id in a file: an id in a DVC output would change at every run.
"""

import hashlib
import json
import logging
import os
import re
import socket
import ssl
import subprocess
import sys
import textwrap
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# With the default of seven retries, of two minutes each, an absent server is noticed after minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from stages.errors import UserError
from stages.outbox import Outbox, Point, Sender
from stages.parameters import read_all
from stages.provenance import Provenance
from stages.run_names import masked, project_root, remember_run_name, tracking_uri

LOG = logging.getLogger(__name__)

FINGERPRINT_TAG = "fingerprint"
EVALUATION_TAG = "evaluation_fingerprint"
EXPERIMENT_TAG = "dvc.experiment"
COMMIT_TAG = "git.commit"
CHANGED_TAG = "git.changed_files"
INPUTS_TAG = "inputs.md5"
OUTBOX_TAG = "outbox"
MODEL_NAME = "model"

# The pages that MLflow shows first: those of models in training.
EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}

# A running pipeline changes these itself.
WRITTEN_BY_DVC = ("dvc.lock", "metrics/")

REPEAT = "`dvc repro`, which repeats this stage alone; or set runtime.tracking: optional in params.yaml"

_SECONDS_TO_ANSWER = 5
_LONGEST_ANSWER = 500  # characters: a proxy may answer with a whole page


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
                f"{_failure(failed)}; what it has not got is kept in {self._outbox.folder}/; the next `dvc repro` that "
                "runs a stage sends it, or `python -m stages.send_metrics`",
                file=sys.stderr,
            )

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Take one point of each curve; returns at once."""
        now = int(time.time() * 1000)
        new = {name: value for name, value in metrics.items() if step > self._sent.get(name, -1)}
        if new:
            self._sender.put([Point(name, value, now, step) for name, value in new.items()])

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

    def log_files(self, paths: Iterable[Path]) -> None:
        """Do nothing."""


@contextmanager
def told(then: str = REPEAT, *, required: bool = True) -> Iterator[None]:
    """Tell what goes wrong with the store as an error that a user can put right.

    Args:
        then: what to type when it is put right.
        required: False tells it, and goes on behind the block.

    Raises:
        UserError: the store failed, and is required.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - of many libraries: a store may keep its artifacts anywhere
        LOG.info("where the error arose\n%s", masked(traceback.format_exc()))
        if not required:
            print(f"{_failure(error)}; going on without it, as runtime.tracking is optional", file=sys.stderr)
            return
        absent = _reason_of_absence(error) is not None
        remedy = "start it, or unset MLFLOW_TRACKING_URI to record in mlflow.db" if absent else "put that right"
        raise UserError(f"{_failure(error)}; {remedy}, then type {then}") from None


def _failure(error: Exception) -> str:
    """Say why the server cannot be reached, or else what it said, or the library that was to talk to it."""
    shown = f"MLflow at {masked(tracking_uri())}"
    reason = _reason_of_absence(error)
    if reason is not None:
        return f"{shown} cannot be reached: {reason}"
    kind = "" if isinstance(error, MlflowException) else f"{type(error).__name__}: "
    return f"{shown}: {kind}{textwrap.shorten(masked(str(error)), _LONGEST_ANSWER)}"


def _reason_of_absence(error: Exception) -> str | None:
    """Return why the connection to the server failed; None where it was something else that failed."""
    if not isinstance(error, MlflowException | OSError):
        return None  # of a library that keeps artifacts elsewhere
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConnectionError | TimeoutError | socket.gaierror):
        cause = cause.__cause__ or cause.__context__
    return None if cause is None else cause.strerror or str(cause)


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
    with told(required=required):
        client, experiment_id = _open_store()
        if run_id is not None:
            try:
                client.update_run(run_id, status="RUNNING")
            except MlflowException:
                pass  # deleted, or in another store
            else:
                outbox = Outbox.open(_store())
                outbox.run_id = run_id
                return TrainingRun(client, client.get_run(run_id), outbox)
        return TrainingRun(client, *_create_run(client, experiment_id, provenance, dataset_path))
    return UnrecordedRun()


@told("`python -m stages.send_metrics`")
def send_left_behind() -> list[str]:
    """Send what earlier runs could not, end the runs of killed processes, and return what was done, in words.

    Raises:
        UserError: the store cannot be used, or refuses something.
    """
    done, refused = _send_left_behind(_connect())
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
    with told(required=required):
        client, experiment_id = _open_store()
        found = client.search_runs(
            [experiment_id],
            f"tags.{FINGERPRINT_TAG} = '{model.fingerprint}'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        outbox = None
        if found:
            run = found[0]
        else:
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
            client.log_batch(run_id, params=_parameters(evaluation.provenance.parameters))
        now = int(time.time() * 1000)
        tags = {
            EVALUATION_TAG: fingerprint,
            "evaluation_split": str(evaluation.metrics["split"]),
            MLFLOW_RUN_NOTE: f"{evaluation.description}\n\n{_leading_back(run)}",
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


def one_at_a_time() -> FileLock:
    """Keep processes of this workspace apart where MLflow breaks: two that create one SQLite store, or one dataset."""
    return FileLock(project_root() / "mlflow.db.lock")


@told()
def check_store() -> None:
    """See that the store can be used, before work is done that it is to record.

    Raises:
        UserError: it cannot.
    """
    _connect()


@told("`make ui`")
def keep_view(key: str, view: str) -> str:
    """Keep a view of MLflow's list of runs with the project's experiment, whose id is returned.

    Raises:
        UserError: the store cannot be used.
    """
    client = _connect()
    experiment_id = _experiment_id(client)
    client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{key}", view)
    return experiment_id


def _open_store() -> tuple[MlflowClient, str]:
    """Connect to the store and find the experiment, creating both where they are new; send what was left behind."""
    client = _connect()
    experiment_id = _experiment_id(client)
    done, refused = _send_left_behind(client)
    for line in [*done, *refused]:
        print(line, file=sys.stderr)
    return client, experiment_id


def _experiment_id(client: MlflowClient) -> str:
    """Find the project's experiment, or create it."""
    root = project_root()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or root.name
    with one_at_a_time():
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            return experiment.experiment_id
        # A server keeps artifacts where it was told to; beside an SQLite file they would go to the working folder.
        location = (root / "mlartifacts").as_uri() if tracking_uri().startswith("sqlite") else None
        return client.create_experiment(name, location, EXPERIMENT_KIND)


def _connect() -> MlflowClient:
    """Open the store; a server that does not answer raises within seconds."""
    uri = tracking_uri()
    LOG.info("MLflow at %s", masked(uri))
    if not LOG.isEnabledFor(logging.INFO):
        # What it says of creating its tables is no news to a user.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
    if uri.startswith(("http://", "https://")):
        # MLflow's own answer to an absent server comes late.
        address = re.sub(r"://[^/@]+@", "://", uri).rstrip("/")
        try:
            urllib.request.urlopen(f"{address}/health", timeout=_SECONDS_TO_ANSWER).close()  # noqa: S310 - http alone
        except urllib.error.URLError as error:
            # Where someone is there, MLflow itself says what is wrong.
            if not isinstance(error, urllib.error.HTTPError) and not isinstance(error.reason, ssl.SSLError):
                raise
    with one_at_a_time():
        return MlflowClient(uri)


def _send_left_behind(client: MlflowClient) -> tuple[list[str], list[str]]:
    """Send what earlier runs could not, and return what was done and what the store refused, in words."""
    done, refused = [], []
    for outbox in Outbox.left_behind(_store()):
        try:
            run = _find_run(client, outbox)
            if run is None:
                outbox.remove()
                continue
            killed = outbox.end()[0] == "KILLED"
            points = _send(client, outbox, run.info.run_id)
        except Exception as error:  # noqa: BLE001 - of many libraries: a store may keep its artifacts anywhere
            refused.append(
                f"{_failure(error)}; what it has not got of run {outbox.run_id} stays in {outbox.folder}/: the next "
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


def _store() -> str:
    """Return what tells this store from others, and gives no secret away."""
    return hashlib.sha256(tracking_uri().encode()).hexdigest()[:16]


def _create_run(
    client: MlflowClient, experiment_id: str, provenance: Provenance, dataset_path: Path
) -> tuple[Run, Outbox]:
    parameters = _parameters(read_all())
    name = _name(client, experiment_id, provenance, parameters)
    run, outbox = _create_run_with_outbox(client, experiment_id, name, _tags(provenance))
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
    outbox = Outbox.open(_store())
    run = client.create_run(experiment_id, run_name=name, tags={**tags, OUTBOX_TAG: outbox.id})
    outbox.run_id = run.info.run_id
    return run, outbox


def _name(client: MlflowClient, experiment_id: str, provenance: Provenance, parameters: list[Param]) -> str:
    """Name a run by DVC's experiment and by what differs from the training before: parameters, else data and code."""
    name = os.environ.get("DVC_EXP_NAME") or f"train-{provenance.fingerprint[:7]}"
    # A run without this tag is an evaluation, which has not all parameters.
    before = client.search_runs(
        [experiment_id], f"tags.{FINGERPRINT_TAG} LIKE '%'", order_by=["attributes.start_time DESC"], max_results=1
    )
    if not before:
        return name
    old, tags = before[0].data.params, before[0].data.tags
    tracked = [item for item in parameters if not item.key.startswith("runtime.")]
    inputs = json.loads(tags.get(INPUTS_TAG, "{}"))
    changed = [f"{item.key}={item.value}" for item in tracked if old.get(item.key) != item.value] or [
        f"other {Path(path).name}" for path, digest in provenance.dependencies.items() if inputs.get(path) != digest
    ]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return " ".join([name, *changed[:3]]) + more


def _tags(provenance: Provenance) -> dict[str, str]:
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or _git("rev-parse", "HEAD")
    experiment = os.environ.get("DVC_EXP_NAME", "")
    changed = [name for name in _git("diff", "--name-only", "HEAD").splitlines() if not name.startswith(WRITTEN_BY_DVC)]
    tags = {
        FINGERPRINT_TAG: provenance.fingerprint,
        EXPERIMENT_TAG: experiment,
        COMMIT_TAG: commit,
        CHANGED_TAG: "" if experiment else ", ".join(changed),  # an experiment's commit holds its changes
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": "dvc exp run" if experiment else "dvc repro",
        INPUTS_TAG: json.dumps(provenance.dependencies),
    }
    return {name: value for name, value in tags.items() if value}


def _leading_back(run: Run) -> str:
    """Write the commands that bring a run's code, parameters and model back, as Markdown."""
    tags = run.data.tags
    commands = []
    if COMMIT_TAG in tags:
        commands.append(f"git checkout {tags[COMMIT_TAG]}")
    if EXPERIMENT_TAG in tags:
        commands.append(f"dvc exp apply {tags[EXPERIMENT_TAG]}")
    elif CHANGED_TAG not in tags:
        commands.append("dvc repro")
    commands.append(f"mlflow models serve -m runs:/{run.info.run_id}/{MODEL_NAME} --env-manager local --port 5001")
    files = tags.get(CHANGED_TAG, "").split(", ")
    more = f" and {len(files) - 3} more files" if len(files) > 3 else ""
    changed = f"\nNot in that commit: changes of {', '.join(files[:3])}{more}.\n" if CHANGED_TAG in tags else ""
    return "### Back to this run\n\n" + "\n".join(f"    {command}" for command in commands) + "\n" + changed


def _git(*arguments: str) -> str:
    """Ask git about the workspace; empty where it is no git repository or git is not installed."""
    try:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return ""
    return answer.stdout.strip()


def _parameters(values: Mapping[str, Any]) -> list[Param]:
    return [Param(name, _as_yaml(value)) for name, value in _flatten(values)]


def _as_yaml(value: Any) -> str:
    """Write a value as params.yaml has it: null and true, not Python's None and True."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
