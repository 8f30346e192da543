"""A search in MLflow: a parent run, under which the runs of its trials are gathered as they appear."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from stages.tracking.run_tags import EXPERIMENT_TAG
from stages.tracking.store import connect, find_experiment, store_errors

SEARCH_TAG = "search"
_REPEAT = "the same command, which goes on where it stopped"


class SearchRun:
    """The parent run of one search; opened again, it is the same."""

    @store_errors(_REPEAT)
    def __init__(self, name: str) -> None:
        """Find the run, or create it.

        Raises:
            UserError: the store cannot be used.
        """
        self._client: MlflowClient = connect()
        self._experiment = find_experiment(self._client)
        found = self._find(f"tags.{SEARCH_TAG} = '{name}'")
        run = found or self._client.create_run(self._experiment, run_name=name, tags={SEARCH_TAG: name})
        self.id: str = run.info.run_id
        self._client.update_run(self.id, "RUNNING")

    @store_errors(_REPEAT)
    def adopt(self, experiment: str) -> str | None:
        """Put the run of a DVC experiment under this one; return its id, None where it has not begun yet.

        Raises:
            UserError: the store cannot be used.
        """
        run = self._find(f"tags.`{EXPERIMENT_TAG}` = '{experiment}'")
        if run is None:
            return None
        if run.data.tags.get(MLFLOW_PARENT_RUN_ID) != self.id:
            self._client.set_tag(run.info.run_id, MLFLOW_PARENT_RUN_ID, self.id)
        return str(run.info.run_id)

    @store_errors(_REPEAT)
    def curve(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Return the points of a curve so far, as (step, value).

        Raises:
            UserError: the store cannot be used.
        """
        return [(point.step, point.value) for point in self._client.get_metric_history(run_id, metric)]

    @store_errors(_REPEAT)
    def end(self, metrics: Mapping[str, float], files: Sequence[Path], *, finished: bool) -> None:
        """Record what came out, and end the run.

        Raises:
            UserError: the store cannot be used.
        """
        for name, value in metrics.items():
            self._client.log_metric(self.id, name, value)
        for path in files:
            self._client.log_artifact(self.id, str(path))
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")

    def _find(self, which: str) -> Run | None:
        order = ["attributes.start_time DESC"]
        found = self._client.search_runs([self._experiment], which, order_by=order, max_results=1)
        return found[0] if found else None
