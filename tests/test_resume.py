"""Real `dvc repro` processes, killed; `python -m benchmarks.kills` does it at random moments, many times."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.kills import digests, end, slow_toy, start, statuses
from tests.conftest import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return slow_toy(tmp_path / "project")


def start_until(project: Project, said: str) -> "subprocess.Popen[bytes]":
    """Start `dvc repro`, and return when it has said something."""
    log = project.folder.parent / "log"
    log.write_bytes(b"")
    process = start(project, log)
    while said not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    return process


def log(project: Project) -> str:
    return (project.folder.parent / "log").read_text()


def test_killed_again_and_again_it_ends_with_the_same_bytes_in_one_run(project: Project, tmp_path: Path) -> None:
    whole = slow_toy(tmp_path / "whole")
    whole.run("dvc", "repro")

    first = start_until(project, "step 120/")
    os.killpg(first.pid, signal.SIGSTOP)  # so that it is still there when the second one comes
    holder = next((project.folder / ".checkpoints").glob("*/pid")).read_text()
    second = project.run("python", "-m", "stages.train", check=False)
    assert second.returncode == 1
    assert f"process {holder} is training with the same inputs" in second.stderr
    end(first, "group", signal.SIGKILL)
    assert statuses(project) == {"RUNNING": 1}

    process = start_until(project, "step 360/")
    end(process, "group", signal.SIGTERM)
    assert process.returncode != 0
    assert "stopped by SIGTERM at step" in log(project)
    assert "Traceback" not in log(project)
    assert statuses(project) == {"KILLED": 1}

    end(start_until(project, "step 600/"), "dvc", signal.SIGKILL)
    assert "stopped because the `dvc repro` that started it is gone" in log(project)

    process = start_until(project, "Running stage 'evaluate'")
    assert "resumed at step" in log(project)
    end(process, "group", signal.SIGKILL)
    project.run("dvc", "repro")
    assert digests(project) == digests(whole)
    assert statuses(project) == {"FINISHED": 1}
    for workspace in (project, whole):
        assert not list((workspace.folder / ".checkpoints").iterdir())
