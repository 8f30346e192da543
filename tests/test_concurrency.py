"""Several at once: two pipelines in one folder, four experiments into one store, a reader while it is written."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.project import clean_environment, clone
from tests.tracking.at_once import open_at_once

WRITER = """
import sys
from pathlib import Path
from stages.tracking import runs
from stages.artifacts.provenance_json import Provenance
provenance = Provenance(fingerprint=sys.argv[1] * 16, dependencies={"data/dataset": "d" * 32}, parameters={})
with runs.start_training_run(provenance, Path("data/dataset")) as run:
    for step in range(3000):
        run.log_metrics({"train_loss": 1.0}, step)
"""


@pytest.mark.parametrize(
    "address",
    [pytest.param("sqlite:///{}/shared/runs.db", marks=pytest.mark.slow), "sqlite:///../shared/runs.db"],
)
def test_workspaces_that_find_one_empty_database_at_once_make_its_tables_once(address: str, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    open_at_once(tmp_path, address.format(tmp_path))
    with sqlite3.connect(tmp_path / "shared/runs.db") as database:
        names = database.execute("select name from experiments where name = 'shared'").fetchall()
    assert names == [("shared",)]


@pytest.mark.slow
def test_four_writers_and_a_reader_share_a_new_store(tmp_path: Path) -> None:
    (tmp_path / "data/dataset").mkdir(parents=True)
    (tmp_path / "data/dataset/metadata.json").write_text("{}")
    (tmp_path / "params.yaml").write_text("train:\n  learning_rate: 0.1\n")
    environment = clean_environment() | {"PYTHONPATH": str(Path(__file__).parents[1])}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, name], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
        for name in "abcd"
    ]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "mlflow.db").exists():
            with sqlite3.connect(f"file:{tmp_path}/mlflow.db?mode=ro", uri=True, timeout=30) as database:
                reads += len(database.execute("select name from sqlite_master").fetchall()) > 0
        time.sleep(0.05)
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0], [writer.communicate()[1] for writer in writers]
    assert reads
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        runs = database.execute("select status, count(*) from runs group by status").fetchall()
        points = database.execute("select run_uuid, count(*) from metrics group by run_uuid").fetchall()
    assert runs == [("FINISHED", 4)]
    assert [count for _, count in points] == [3000] * 4
    assert not list((tmp_path / ".runs/unsent").iterdir())


def test_the_second_of_two_pipelines_in_one_folder_is_told_and_breaks_nothing(tmp_path: Path) -> None:
    project = clone(tmp_path / "project")
    first = subprocess.Popen(
        ["dvc", "repro"],
        cwd=project.folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert first.stdout is not None
    for line in first.stdout:
        if "Running stage 'build_vocabulary'" in line:
            break
    os.killpg(first.pid, signal.SIGSTOP)  # on a busy machine it could end before the second begins
    second = project.run("dvc", "repro", check=False)
    os.killpg(first.pid, signal.SIGCONT)
    first.communicate()
    assert first.returncode == 0
    assert second.returncode != 0
    assert "Unable to acquire lock" in second.stderr or "is busy" in second.stderr
    assert project.stages_run("repro") == []
