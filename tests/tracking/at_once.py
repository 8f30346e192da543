"""Workspaces that open one store in the same moment."""

import subprocess
import sys
import time
from pathlib import Path

from tests.project import ROOT, clean_environment

OPENER = """
import time
from pathlib import Path
from stages.tracking.store import check_store
Path("ready").touch()
while not Path("../go").exists():
    time.sleep(0.01)
check_store()
"""


def open_at_once(place: Path, address: str) -> None:
    """Let three workspaces, folders of ``place``, open the store; all must succeed. Their experiment is called shared."""
    environment = clean_environment() | {
        "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": address, "MLFLOW_EXPERIMENT_NAME": "shared",
    }  # fmt: skip
    folders = [place / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    openers = [
        subprocess.Popen([sys.executable, "-c", OPENER], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
        for folder in folders
    ]
    while not all((folder / "ready").exists() for folder in folders):
        assert [opener.poll() for opener in openers] == [None] * 3
        time.sleep(0.05)
    (place / "go").touch()
    errors = [opener.communicate()[1] for opener in openers]
    assert [opener.returncode for opener in openers] == [0] * 3, errors
