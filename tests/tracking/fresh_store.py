"""A new MLflow store in a second: its tables are made once for all tests of a process."""

import shutil
import tempfile
from functools import cache
from pathlib import Path

from mlflow import MlflowClient


@cache
def _template() -> Path:
    database = Path(tempfile.mkdtemp(prefix="store-")) / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


def fresh_store(folder: Path, name: str = "mlflow.db") -> str:
    """Put a store without runs into a folder, and return its address."""
    shutil.copy2(_template(), folder / name)
    return f"sqlite:///{folder / name}"
