"""Read a file that was kept with a run."""

from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from stages.tracking.store import connect, find_experiment, store_errors


@store_errors("the command again")
def read_run_file(run: str, path: Path) -> bytes | None:
    """Return a file of a run; None where there is no such run, or it has no such file.

    Args:
        run: its id or its name; of several with one name the newest.
        path: of the file, as it lay in the workspace.

    Raises:
        UserError: the store cannot be used.
    """
    client = connect()
    run_id = _find_run_id(client, run)
    if run_id is None or path.name not in {
        Path(each.path).name for each in client.list_artifacts(run_id, str(path.parent))
    }:
        return None
    with TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, path.as_posix(), folder)).read_bytes()


def _find_run_id(client: MlflowClient, run: str) -> str | None:
    try:
        return str(client.get_run(run).info.run_id)
    except MlflowException:
        pass  # no id: perhaps a name
    if "'" in run:
        return None
    found = client.search_runs(
        [find_experiment(client)],
        f"attributes.run_name = '{run}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return str(found[0].info.run_id) if found else None
