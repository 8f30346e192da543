"""The MLflow store: how it is opened, and how what goes wrong with it is told."""

import hashlib
import logging
import os
import re
import socket
import ssl
import sys
import textwrap
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from stages.errors import UserError
from stages.tracking.workspace import masked, project_root, tracking_uri

# MLflow reads these when it is used.
# With the default of seven retries, of two minutes each, an absent server is noticed after minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# Where a run ended it would print the server's address with the password that is in it.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

LOG = logging.getLogger(__name__)

# The pages that MLflow shows first: those of models in training.
EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}

REPEAT = "`dvc repro`, which repeats this stage alone; or set runtime.tracking: optional in params.yaml"

_SECONDS_TO_ANSWER = 5
_LONGEST_ANSWER = 500  # characters: a proxy may answer with a whole page


@contextmanager
def store_errors(then: str = REPEAT, *, required: bool = True) -> Iterator[None]:
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
            print(f"{failure(error)}; going on without it, as runtime.tracking is optional", file=sys.stderr)
            return
        absent = _reason_of_absence(error) is not None
        remedy = "start it, or unset MLFLOW_TRACKING_URI to record in mlflow.db" if absent else "put that right"
        raise UserError(f"{failure(error)}; {remedy}, then type {then}") from None


def failure(error: Exception) -> str:
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
        cause = cause.__context__ or cause.__cause__  # urllib3 names as cause an error of its own that was never raised
    return None if cause is None else cause.strerror or str(cause)


def one_at_a_time() -> FileLock:
    """Keep processes of this workspace apart where MLflow breaks: two that create one SQLite store, or one dataset."""
    return FileLock(project_root() / "mlflow.db.lock")


@store_errors()
def check_store() -> None:
    """See that the store can be used, before work is done that it is to record.

    Raises:
        UserError: it cannot.
    """
    connect()


@store_errors("`make ui`")
def keep_view(key: str, view: str) -> str:
    """Keep a view of MLflow's list of runs with the project's experiment, whose id is returned.

    Raises:
        UserError: the store cannot be used.
    """
    client = connect()
    experiment_id = find_experiment(client)
    client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{key}", view)
    return experiment_id


def find_experiment(client: MlflowClient) -> str:
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


def connect() -> MlflowClient:
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


def store_hash() -> str:
    """Return what tells this store from others, and gives no secret away."""
    return hashlib.sha256(tracking_uri().encode()).hexdigest()[:16]
