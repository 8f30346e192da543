"""Where the main workspace and the MLflow store are, and which MLflow run each model came out of, without asking MLflow."""

import os
import re
from pathlib import Path

# A name for each fingerprint, for people: deleted without loss. What MLflow has yet to get lies beside them, in unsent/.
FOLDER = Path(".runs")


def project_root() -> Path:
    """Return the main workspace: DVC's queue works in temporary copies of it, which are deleted with what is in them."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def tracking_uri() -> str:
    """Return the store: MLFLOW_TRACKING_URI, or else an SQLite file in the main workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow.db'}"


def remember_run_name(fingerprint: str, name: str) -> None:
    """Keep the name of the newest run that trained the model with this fingerprint."""
    folder = project_root() / FOLDER
    folder.mkdir(exist_ok=True)
    (folder / fingerprint).write_text(name, encoding="utf-8")


def run_name(fingerprint: str) -> str | None:
    """Return the name of the newest run that trained this model here; None where there was none."""
    path = project_root() / FOLDER / fingerprint
    return path.read_text(encoding="utf-8") if path.exists() else None


def masked(text: str) -> str:
    """Hide what is secret in the addresses within a text."""
    text = re.sub(r"://[^/@\s]+@", "://***@", text)
    return re.sub(r"(?i)([?&][^=&\s]*(?:password|token|secret|key|sig|credential)[^=&\s]*)=[^&\s]+", r"\1=***", text)
