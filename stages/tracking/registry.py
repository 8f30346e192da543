"""The model as MLflow keeps it to be served: from code, with its weights, its words and what it needs to run."""

from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow.pyfunc
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Run
from mlflow.models import Model

from stages.artifacts.provenance_json import MODEL_FOLDER
from stages.artifacts.vocabulary_json import VOCABULARY_FILE
from stages.tracking.run_tags import MODEL_NAME
from stages.tracking.served_model import SIGNATURE
from stages.tracking.store import one_at_a_time, store_errors
from stages.tracking.workspace import tracking_uri

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
    with store_errors(required=required):
        _log_model(run, prompt, register_as)


def _log_model(run: Run, prompt: str, register_as: str | None) -> None:
    # The registry asks for the logged model at the store of the process, by default one in the working folder.
    mlflow.set_tracking_uri(tracking_uri())
    client = MlflowClient(tracking_uri())
    kept = run.outputs.model_outputs if run.outputs else []
    model_id = kept[0].model_id if kept else _keep(client, run, prompt)
    if register_as:
        _register(client, register_as, run, model_id)


def _keep(client: MlflowClient, run: Run, prompt: str) -> str:
    """Write the model to the run's store and return its id."""
    run_id = run.info.run_id
    logged = client.create_logged_model(run.info.experiment_id, MODEL_NAME, run_id)
    with TemporaryDirectory() as folder:
        mlflow.pyfunc.save_model(
            folder,
            mlflow_model=Model(logged.artifact_location, run_id, model_id=logged.model_id, model_uuid=logged.model_id),
            python_model=str(SERVED_MODEL),
            artifacts={"model": str(MODEL_FOLDER), "vocabulary": str(VOCABULARY_FILE)},
            code_paths=[str(SERVED_MODEL.parents[1])],
            pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
            signature=SIGNATURE,
            input_example=pd.DataFrame({"prompt": [prompt]}),
        )
        client.log_model_artifacts(logged.model_id, folder)
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
    return logged.model_id


def _register(client: MlflowClient, name: str, run: Run, model_id: str) -> None:
    # Of two processes that register under a new name, one must come second.
    with one_at_a_time():
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        if not client.search_model_versions(f"name = '{name}' and run_id = '{run.info.run_id}'"):
            client.create_model_version(name, f"models:/{model_id}", run.info.run_id, model_id=model_id)
