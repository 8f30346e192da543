"""How all tests run, and clones that several of them share."""

import os
import signal
from pathlib import Path

# Several test processes, each with a thread a core, get in each other's way. Read when torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

from tests.project import Project, clone

# A busy machine takes its time.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
# A shell that starts the tests in the background has SIGINT ignored, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

MINUTES_LONG = ("test_resume", "test_pipeline", "test_sweep_and_serving")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take minutes, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: item.path.stem not in MINUTES_LONG)


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
