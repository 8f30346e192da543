"""The model of a run, as MLflow's list of models knows it: its name, its parameters, and the figures linked to it."""

import re

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run


def model_of_run(client: MlflowClient, run: Run) -> LoggedModel:
    """Return the model that a run trained, as the store knows it; its files may still be missing.

    One that an evaluation left unfinished is found again: a run has one model.
    """
    kept = run.outputs.model_outputs if run.outputs else []
    if kept:
        return client.get_logged_model(kept[0].model_id)
    experiment_id, run_id = run.info.experiment_id, run.info.run_id
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    if found:
        return found[0]
    # What its run is called, without what differs from the baseline: the parameters say that.
    name = re.sub("[/:.%\"']", "-", run.info.run_name.split()[0])
    return client.create_logged_model(experiment_id, name, run_id, params=run.data.params)
