"""The pages of MLflow open under training."""

import os
import subprocess
import sys

import pytest
from flask import Response

from stages.commands.ui import PLUGIN, PROJECT
from stages.tracking.pages import choose_training


def test_mlflow_finds_the_server_by_its_entry_point() -> None:
    """In a process of its own, with the path that `make ui` gives it."""
    code = (
        "from importlib.metadata import entry_points; (one,) = entry_points(group='mlflow.app', name='pipeline'); "
        "print(one.load().__name__)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PLUGIN), str(PROJECT)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "create_app\n"


def test_the_page_chooses_before_its_own_script_runs() -> None:
    page = b'<html><head><script defer="defer" src="main.js"></script></head></html>'
    answer = choose_training(Response(page, mimetype="text/html", headers={"ETag": "of the file"}))
    before, after = answer.get_data().split(b"main.js")
    assert b'localStorage.setItem("mlflow.workflowType_v1"' in before
    assert answer.headers["Content-Length"] == str(len(answer.get_data()))
    assert "ETag" not in answer.headers
    assert after.endswith(b"</html>")


@pytest.mark.parametrize(("status", "kind"), [(200, "application/json"), (404, "text/html")])
def test_other_answers_stay_as_they_are(status: int, kind: str) -> None:
    answer = choose_training(Response(b"<head>", status=status, mimetype=kind))
    assert answer.get_data() == b"<head>"
