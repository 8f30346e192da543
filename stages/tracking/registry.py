"""The model as MLflow keeps it to be served: from code, with its weights, its words and what it needs to run."""

from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow.pyfunc
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from stages.artifacts.provenance_json import MODEL_FOLDER
from stages.artifacts.vocabulary_json import VOCABULARY_FILE
from stages.tracking.logged_model import model_of_run
from stages.tracking.served_model import SIGNATURE
from stages.tracking.store import connect, exists_already, handled_store_errors, one_at_a_time

SERVED_MODEL = Path("stages/tracking/served_model.py")
# What it imports.
REQUIREMENTS = (
    "mlflow",
    "numpy",
    "pandas",
    "pydantic",
    "ruamel.yaml",
    "safetensors",
    "tiktoken",
    "tokenizers",
    "torch",
)


def log_model(run: Run, prompt: str, register_as: str | None, *, required: bool = True) -> None:
    """Keep data/model/ with the run that trained it, unless it is there; a name registers it as its next version.

    Args:
        run: the run.
        prompt: an example of what the model is asked.
        register_as: the name; None registers nothing.
        required: False goes on where the store cannot be used.

    Raises:
        UserError: the store cannot be used, and is required.
    """
    with handled_store_errors(required=required):
        client = connect()
        with one_at_a_time():
            logged = model_of_run(client, run)
        if logged.status != LoggedModelStatus.READY:
            _upload(client, run, logged, prompt)
        if register_as:
            with one_at_a_time():
                _register(client, register_as, run, logged.model_id)


def _upload(client: MlflowClient, run: Run, logged: LoggedModel, prompt: str) -> None:
    """Write the model's files to the run's store."""
    run_id = run.info.run_id
    with TemporaryDirectory() as folder:
        mlflow.pyfunc.save_model(
            folder,
            mlflow_model=Model(logged.artifact_location, run_id, model_id=logged.model_id, model_uuid=logged.model_id),
            python_model=str(SERVED_MODEL),
            artifacts={"model": str(MODEL_FOLDER), "vocabulary": str(VOCABULARY_FILE)},
            code_paths=[SERVED_MODEL.parts[0]],
            pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
            signature=SIGNATURE,
            input_example=pd.DataFrame({"prompt": [prompt]}),
        )
        client.log_model_artifacts(logged.model_id, folder)
    with one_at_a_time():
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        outputs = client.get_run(run_id).outputs
        if not (outputs and outputs.model_outputs):
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])


def _register(client: MlflowClient, name: str, run: Run, model_id: str) -> None:
    """Add a model to the registry as the next version of a name, unless it is there."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if not exists_already(error):
            raise
    versions = client.search_model_versions(f"run_id = '{run.info.run_id}'")
    if name not in {found.name for found in versions}:
        client.create_model_version(name, f"models:/{model_id}", run.info.run_id, model_id=model_id)
