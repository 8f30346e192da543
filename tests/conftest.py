"""A clone of the project, as it stands in the working tree, with a real `dvc` in it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# Several test processes, each with a thread a core, get in each other's way. Read when torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

# A busy machine takes its time.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
# A shell that starts the tests in the background has SIGINT ignored, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
MINUTES_LONG = ("test_resume", "test_pipeline", "test_sweep_and_serving")
# What a developer's shell may hold would send a test's runs elsewhere.
FOREIGN = ("DVC_", "MLFLOW_", "PYTHONDONTWRITEBYTECODE", "GIT_")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take minutes, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: item.path.stem not in MINUTES_LONG)


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


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh clone in which nothing has run."""
    return clone(tmp_path / "project")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone whose pipeline has run and is committed, shared by a module's tests, which must put back what they edit."""
    project = clone(tmp_path_factory.mktemp("trained") / "project")
    project.run("dvc", "repro")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--allow-empty", "--message", "Run")
    return project
