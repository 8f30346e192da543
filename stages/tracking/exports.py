"""A model out of MLflow to be exported, and the proof of its export into its run."""

from pathlib import Path

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from stages.errors import UserError
from stages.tracking.run_tags import FINGERPRINT_TAG
from stages.tracking.store import connect, find_experiment, handled_store_errors, store_errors
from stages.tracking.workspace import tracking_uri


def fetch_model(source: str, folder: Path) -> tuple[Path, Path]:
    """Copy a logged model into a folder; return its folder data/model and its vocabulary.

    Args:
        source: a run, as ID or runs:/ID, or a model, as models:/ID or models:/NAME/VERSION.
        folder: where to.

    Raises:
        UserError: the store cannot be used, or has no such model.
    """
    with store_errors("the command again"):
        client = connect()
        try:
            uri = source if source.startswith("models:/") else _model_uri(client, _run_of(source))
            place = mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=str(folder), tracking_uri=tracking_uri()
            )
        except (MlflowException, OSError) as error:
            raise UserError(f"{source}: no model there: {error}; `make ui` shows the runs that have one") from None
    artifacts = Path(place) / "artifacts"
    return artifacts / "model", artifacts / "vocabulary.json"


def logged_figures(model_folder: Path) -> dict[str, float]:
    """Return the figures of the newest evaluation of a model that ``fetch_model`` copied, as MLflow knows them.

    Raises:
        UserError: the store cannot be used.
    """
    with store_errors("the command again"):
        model_id = str(Model.load(model_folder.parents[1]).model_id)
        metrics = connect().get_logged_model(model_id).metrics or []
        return {metric.key: metric.value for metric in sorted(metrics, key=lambda metric: metric.timestamp)}


def _run_of(source: str) -> str:
    """Return the id in ID, runs:/ID or runs:/ID/model, as MLflow writes it.

    Raises:
        UserError: another part of the run is named.
    """
    run_id, _, name = source.removeprefix("runs:/").partition("/")
    if name.rstrip("/") not in ("", "model"):
        raise UserError(f"{source}: a run has one model, allowed: runs:/{run_id}")
    return run_id


def _model_uri(client: MlflowClient, run_id: str) -> str:
    """Return the address of the model that a run trained.

    Raises:
        UserError: it has none yet.
        MlflowException: there is no such run.
    """
    outputs = client.get_run(run_id).outputs
    if not outputs or not outputs.model_outputs:
        raise UserError(f"run {run_id}: no model there yet; its evaluation keeps it: `dvc repro`")
    return f"models:/{outputs.model_outputs[0].model_id}"


def log_proof(fingerprint: str, proof: Path, export: str, *, required: bool) -> None:
    """Keep the proof of an export with the newest run that trained the model, if there is one.

    Args:
        fingerprint: the training's.
        proof: the file.
        export: the kind of export, by which the file's folder in the run is named.
        required: False goes on where the store cannot be used.

    Raises:
        UserError: the store cannot be used, and is required.
    """
    with handled_store_errors(required=required):
        client = connect()
        found = client.search_runs(
            [find_experiment(client)],
            f"tags.{FINGERPRINT_TAG} = '{fingerprint}'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        if found:
            client.log_artifact(found[0].info.run_id, str(proof), f"exports/{export}")
