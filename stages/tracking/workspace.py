"""Where the main workspace and the MLflow store are, and which MLflow run each model came out of, without asking MLflow."""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from stages.artifacts.atomic import atomic_file

# The name of each model's run, by fingerprint, for people: nothing is lost where it is deleted. Beside them, in unsent/, is
# what MLflow has yet to get.
FOLDER = Path(".runs")

# DVC runs an experiment of its queue, or of `dvc exp run --temp`, in a copy under this folder, and deletes the copy.
_COPIES = Path(".dvc/tmp/exps")
_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_ADDRESS_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
# Paths that MLflow, and the libraries that reach its server, database or files, read from the environment.
_PATH_VARIABLES = (
    "MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "GOOGLE_APPLICATION_CREDENTIALS", "PGPASSFILE", "PGSERVICEFILE", "PGSSLROOTCERT",
)  # fmt: skip
_DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_THIS_MACHINE = ("localhost", "::1")


def project_root() -> Path:
    """Return the project's folder in the main workspace, also from within one of DVC's temporary copies of it."""
    here = Path.cwd()
    main = Path(os.environ.get("DVC_ROOT", here)).resolve()
    if not here.is_relative_to(main / _COPIES):
        return here
    copy = next(folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir())
    return main / here.relative_to(copy)


def tracking_uri() -> str:
    """Return the address of the store: MLFLOW_TRACKING_URI, or else an SQLite file in the main workspace."""
    return _absolute(os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")


def registry_uri() -> str:
    """Return the address of the registry of models: MLFLOW_REGISTRY_URI, or else the store's."""
    address = os.environ.get("MLFLOW_REGISTRY_URI")
    return _absolute(address) if address else tracking_uri()


def take_paths_from_main_workspace() -> None:
    """Make the paths of the environment absolute: in one of DVC's temporary copies a relative one would lead to nothing."""
    for name in _PATH_VARIABLES:
        if path := os.environ.get(name):
            os.environ[name] = _from_main_workspace(path)


def _from_main_workspace(path: str) -> str:
    return os.path.normpath(project_root() / os.path.expanduser(path))  # noqa: PTH111 - pathlib's fails where nobody has the name


def _absolute(address: str) -> str:
    """Return an address whose path is taken from the main workspace where it is relative."""
    sqlite = re.fullmatch(r"(sqlite(?:\+\w+)?):///(?!/|:memory:|file:)([^?]+)(.*)", address)
    if sqlite:
        dialect, path, query = sqlite.groups()
        folder, name = os.path.split(_from_main_workspace(path))
        encoded = folder.replace("%", "%25").replace("?", "%3F")  # SQLAlchemy decodes it
        if encoded != folder and dialect == "sqlite":
            dialect = "sqlite+pysqlite"  # under the short name MLflow would create a folder of the encoded name
        return f"{dialect}:///{encoded}/{name}{query}"
    if "://" not in address and not address.startswith(("databricks", "uc")):
        return Path(_from_main_workspace(address.removeprefix("file:"))).as_uri()
    return address


def store_id() -> str:
    """Return a hash of the store's place: the same for another user, password or spelling of the same place."""
    address = tracking_uri()
    dialect, _, place = address.partition("://")
    scheme = dialect.partition("+")[0]
    if scheme != "sqlite":
        parts = urlsplit("//" + place.rpartition("@")[2])
        host = "127.0.0.1" if parts.hostname in _THIS_MACHINE else parts.hostname
        port = re.search(r":(\d+)$", parts.netloc)
        number = int(port[1]) if port else _DEFAULT_PORTS.get(scheme)
        place = f"{host}:{number}{parts.path.rstrip('/')}"
    return hashlib.sha256(f"{scheme}://{place}".encode()).hexdigest()[:16]


def remember_run_name(fingerprint: str, name: str) -> None:
    """Keep the name of the newest run that trained the model with this fingerprint."""
    with suppress(OSError), atomic_file(project_root() / FOLDER / fingerprint) as file:  # it is for people alone
        file.write(name.encode())


def run_name(fingerprint: str) -> str | None:
    """Return the name of the newest run that trained this model here; None where there was none."""
    path = project_root() / FOLDER / fingerprint
    return path.read_text(encoding="utf-8", errors="replace") or None if path.is_file() else None


def masked(text: str) -> str:
    """Hide what may be secret in a text: all before the last @ of an address, and every value of a query."""
    for address in filter(None, (os.environ.get(name) for name in _ADDRESS_VARIABLES)):
        text = text.replace(_absolute(address), _masked_address(_absolute(address)))
        text = text.replace(address, _masked_address(address))
    for secret in filter(None, (os.environ.get(name) for name in _SECRET_VARIABLES)):
        text = text.replace(secret, "***")
    # A password may hold anything. So an address ends where the next one begins, or the line.
    parts = re.split(r"(?<=[\s'\"(<,])(?=[A-Za-z][\w+.-]*://)", text)
    text = "".join(re.sub(r"://(?!\*\*\*@)[^\n]*@", "://***@", part) for part in parts)
    text = re.sub(r"(://[^\s?#]*\?)[^=&;#\s'\"]+(?=[&;#\s'\"]|$)", r"\1***", text)  # a token without a name
    return re.sub(r"([?&;#][^=&;#?\s]+)=[^&;#\s]+", r"\1=***", text)


def _masked_address(address: str) -> str:
    """Hide what may be secret in an address, which may hold spaces."""
    scheme, separator, place = address.partition("://")
    secret, at, place = place.rpartition("@")
    place = re.sub(r"([?&;#][^=&;#?]+)=[^&;#]+", r"\1=***", place)
    place = re.sub(r"([?&;#])[^=&;#?]+(?=[&;#]|$)", r"\1***", place)
    return scheme + separator + ("***" if secret else "") + at + place
