"""Open the MLflow store, and say what goes wrong with it in a line that a user can act on."""

import logging
import os
import re
import socket
import ssl
import sys
import textwrap
import threading
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import mlflow
import sqlalchemy
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES

from stages.errors import UserError
from stages.tracking.workspace import (
    masked,
    project_root,
    registry_uri,
    take_paths_from_main_workspace,
    tracking_uri,
)

# MLflow reads these when it is used.
# With the default of seven retries, of two minutes each, an absent server is noticed after minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# Where a run ended it would print the server's address with the password that is in it.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

LOG = logging.getLogger(__name__)

Answer = TypeVar("Answer")

# The pages that MLflow shows first: those of models in training.
EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}

REPEAT = "`dvc repro`, which repeats this stage alone; or set runtime.tracking: optional in params.yaml"

_SECONDS_TO_ANSWER = 8.0  # in all, however slowly the answer drips in
_TABLES_LOCK = 6_105_330_185  # any number that no other program on the database has
_LONGEST_ANSWER = 500  # characters: a proxy may answer with a whole page


@contextmanager
def store_errors(then: str = REPEAT) -> Iterator[None]:
    """Raise what goes wrong with the store as an error that a user can put right.

    Args:
        then: what to type when it is put right.

    Raises:
        UserError: the store failed.
        OSError: a file of this workspace cannot be written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        LOG.info("where the error arose\n%s", masked(traceback.format_exc()))
        if _is_of_this_workspace(error):
            raise
        absent = _reason_of_absence(error) is not None
        remedy = "start it, or unset MLFLOW_TRACKING_URI to record in mlflow.db" if absent else "put that right"
        raise UserError(f"{failure(error)}; {remedy}, then type {then}") from None


@contextmanager
def reported_store_errors() -> Iterator[None]:
    """Print what goes wrong with the store, and go on after the block."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - of many libraries: a store may keep its artifacts anywhere
        LOG.info("where the error arose\n%s", masked(traceback.format_exc()))
        reason = str(error) if isinstance(error, UserError) else failure(error)
        print(f"{reason}; going on without it, as runtime.tracking is optional", file=sys.stderr)


def handled_store_errors(*, required: bool) -> AbstractContextManager[None]:
    """Return what handles the store's errors: raise them where the store is required, else print them."""
    return store_errors() if required else reported_store_errors()


def failure(error: Exception) -> str:
    """Return why the server cannot be reached, or else what it or the library in between said."""
    where = f"MLflow at {masked(tracking_uri())}"
    reason = _reason_of_absence(error)
    if reason is not None:
        return f"{where} cannot be reached: {reason}"
    kind = "" if isinstance(error, MlflowException) else f"{type(error).__name__}: "
    answer = str(error).partition("[SQL: ")[0]  # what a database was asked says nothing to a user
    return f"{where}: {kind}{textwrap.shorten(masked(answer), _LONGEST_ANSWER)}"


def _reason_of_absence(error: Exception) -> str | None:
    """Return why the connection to the server failed; None where something else failed."""
    if not isinstance(error, MlflowException | OSError):
        return None  # of a library that keeps artifacts elsewhere
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConnectionError | TimeoutError | socket.gaierror):
        cause = cause.__context__ or cause.__cause__  # urllib3 names as cause an error of its own that was never raised
    return None if cause is None else cause.strerror or str(cause)


def _is_of_this_workspace(error: Exception) -> bool:
    """Return whether a file of the project could not be written, as on a full disk."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str):
        return False
    return Path(error.filename).is_relative_to(project_root())


def one_at_a_time() -> FileLock:
    """Return a lock that keeps processes apart where MLflow breaks: two that create one SQLite store, from any workspace.

    Raises:
        OSError: its file cannot be created.
    """
    uri = tracking_uri()
    database = Path((uri.startswith("sqlite") and sqlalchemy.make_url(uri).database) or "mlflow.db")
    file = project_root() / f"{database}.lock"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()  # where that fails, as in /proc, the lock would try without end
    return FileLock(file, is_singleton=True)  # who has it may ask again


def exists_already(error: MlflowException) -> bool:
    """Return whether somebody else was first to create what has one name on a server."""
    return bool(error.error_code == "RESOURCE_ALREADY_EXISTS")


@store_errors()
def check_store() -> None:
    """Check that the store can be used, before work is done that it is to record.

    Raises:
        UserError: it cannot.
    """
    find_experiment(connect())


@store_errors("`make ui`")
def keep_view(key: str, view: str) -> str:
    """Keep a view of MLflow's list of runs with the project's experiment, and return the experiment's id.

    Raises:
        UserError: the store cannot be used.
    """
    client = connect()
    experiment_id = find_experiment(client)
    client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{key}", view)
    return experiment_id


def find_experiment(client: MlflowClient) -> str:
    """Return the id of the project's experiment, and create it where there is none.

    Raises:
        UserError: it is deleted.
    """
    name = _experiment_name()
    with one_at_a_time():
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            # A server keeps files where it was set up to; a database without one would keep them in the working folder.
            location = (project_root() / "mlartifacts").as_uri() if _is_database(tracking_uri()) else None
            try:
                return client.create_experiment(name, location, EXPERIMENT_KIND)
            except MlflowException as error:
                experiment = client.get_experiment_by_name(name)
                if experiment is None or not exists_already(error):
                    raise
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        message = (
            f"MLflow at {masked(tracking_uri())}: the experiment '{name}' is deleted: restore it with `mlflow experiments "
            f"restore --experiment-id {experiment.experiment_id}`, with MLFLOW_TRACKING_URI set to that address, or name "
            "another one in MLFLOW_EXPERIMENT_NAME"
        )
        raise UserError(message)
    return experiment.experiment_id


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or project_root().name


def connect() -> MlflowClient:
    """Open the store; a server that does not answer raises within ten seconds.

    Raises:
        UserError: the address cannot be read.
    """
    uri = tracking_uri()
    LOG.info("MLflow at %s", masked(uri))
    if not LOG.isEnabledFor(logging.INFO):
        # What it says of creating its tables is no news to a user.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        # It logs the traceback of an error that it raises as well.
        logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)
    _check_address("MLFLOW_TRACKING_URI", uri)
    _check_address("MLFLOW_REGISTRY_URI", registry_uri())
    take_paths_from_main_workspace()
    # What MLflow asks for itself, as for a model's requirements, it asks for here.
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(registry_uri())
    # MLflow's own answer to an absent server or database comes after minutes.
    if uri.startswith(("http://", "https://")):
        return within(_SECONDS_TO_ANSWER, lambda: _connect_to_server(uri))
    with one_at_a_time(), _one_at_a_time_on_server(uri):
        return MlflowClient(uri, registry_uri())


@contextmanager
def _one_at_a_time_on_server(uri: str) -> Iterator[None]:
    """Ask whether a database can be opened, and keep all workspaces apart that may find it empty on a server, and make its tables."""
    if not _is_database(uri):
        yield
        return
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with within(_SECONDS_TO_ANSWER, engine.connect) as connection:
        if engine.dialect.name == "postgresql":  # which ends the lock with the connection
            connection.execute(sqlalchemy.text(f"select pg_advisory_lock({_TABLES_LOCK})"))
        yield


def within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """Return what ``call`` returns.

    Raises:
        TimeoutError: it takes longer; it goes on in a thread that ends with the process.
    """
    answer: Future[Answer] = Future()

    def wait() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is read
            answer.set_exception(error)

    threading.Thread(target=wait, name="waits for MLflow", daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        if answer.done():
            raise
        raise TimeoutError(f"timed out: no answer within {seconds:.0f} seconds") from None


def _connect_to_server(uri: str) -> MlflowClient:
    """Ask whether the server is there, and whether its API answers."""
    address = re.sub(r"://[^/?#]*@", "://", uri).rstrip("/")
    try:
        urllib.request.urlopen(f"{address}/health", timeout=_SECONDS_TO_ANSWER).read()  # noqa: S310 - http alone
    except urllib.error.URLError as error:
        # Where someone is there, MLflow itself says what is wrong.
        if not isinstance(error, urllib.error.HTTPError) and not isinstance(error.reason, ssl.SSLError):
            raise
    client = MlflowClient(uri, registry_uri())
    client.get_experiment_by_name(_experiment_name())
    return client


def _check_address(variable: str, uri: str) -> None:
    """Refuse an address of which a part would be read as another one.

    Raises:
        UserError: a password would be read as the host, and so be shown; a database would end with the process.
    """
    if uri.startswith("sqlite") and re.match(r"sqlite(\+\w+)?:(//)?(/?$|/:memory:|/file:|/?\?)", uri):
        found = "a database in memory, which ends with the process" if "/file:" not in uri else "a path within a path"
        raise UserError(f"{variable}: {uri}: {found}; name a file as in sqlite:///runs.db")
    authority = re.split("[/?#]", uri.partition("://")[2], maxsplit=1)[0]
    cut_short = re.search(r":(?!\d*$)[^]]*$", authority) is not None and "@" not in authority and "@" in uri
    if cut_short or (_is_database(uri) and authority.count("@") > 1):
        raise UserError(
            f"{variable}: {masked(uri)}: write @ / ? # in a name or password as %40 %2F %3F %23, or give a "
            "server's in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )


def _is_database(uri: str) -> bool:
    return uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES
