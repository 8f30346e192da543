"""A clone of the project, as it stands in the working tree, with a real `dvc` in it: for tests, benchmarks and pictures."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What a developer's shell may hold would send a test's runs elsewhere.
FOREIGN = ("DVC_", "MLFLOW_", "PYTHONDONTWRITEBYTECODE", "GIT_")


def clean_environment() -> dict[str, str]:
    """Return the environment of a new user's shell, with this Python first in PATH."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["DVC_NO_ANALYTICS"] = "true"
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    return environment


class Project:
    """A temporary clone, and commands run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(
        self, *command: str, check: bool = True, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, with its output kept."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=clean_environment() | dict(environment or {}),
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def stages_run(self, *command: str, **environment: str) -> list[str]:
        """Run a dvc command and return the stages that it ran, in order."""
        output = self.run("dvc", *command, environment=environment).stdout
        return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")]

    def replace(self, path: str, old: str, new: str) -> None:
        """Edit a file; what is replaced must be there."""
        file = self.folder / path
        text = file.read_text(encoding="utf-8")
        assert old in text, f"{path} does not hold {old!r}"
        file.write_text(text.replace(old, new, 1), encoding="utf-8")


def clone(folder: Path) -> Project:
    """Copy every file that git tracks or would track, into a git repository of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    project = Project(folder)
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.run("git", "config", "user.name", "Test")
    project.run("git", "config", "user.email", "test@example.com")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "Clone")
    return project
