"""Scores are found by the names that people use: in a real repository with experiments and runs."""

import os
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from stages.artifacts.scores_parquet import SCORES_FILE, write_scores
from stages.core.score_table import ScoreTable
from stages.errors import UserError
from stages.tracking.store import find_experiment
from stages.verdict.sources import cached_scores, find_runs
from tests.project import ROOT, Project
from tests.verdict.tables import Truth

DVC = """
stages:
  evaluate:
    cmd: python -c "import shutil; shutil.copy('scores/${model}.parquet', 'data/scores.parquet')"
    deps:
    - scores/${model}.parquet
    outs:
    - data/scores.parquet
"""
GAINS = {"plain": 0.0, "same": 0.0, "good-1": 0.6, "good-2": 0.6}
EXPERIMENTS = list(GAINS)[1:]


@pytest.fixture(scope="module")
def tables() -> dict[str, ScoreTable]:
    truth = Truth(200, 0)
    return {name: truth.model(gain=gain) for name, gain in GAINS.items()}


@pytest.fixture(scope="module")
def project(tables: dict[str, ScoreTable], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A repository whose main has the scores of `plain`, and an experiment for each of the others."""
    made = Project(tmp_path_factory.mktemp("verdict") / "project")
    for name, table in tables.items():
        write_scores(made.folder / f"scores/{name}.parquet", table)
    (made.folder / "dvc.yaml").write_text(DVC)
    (made.folder / "params.yaml").write_text("model: plain\n")
    (made.folder / "data").mkdir()
    made.run("git", "init", "--quiet", "--initial-branch=main")
    made.run("git", "config", "user.name", "Test")
    made.run("git", "config", "user.email", "test@example.com")
    made.run("dvc", "init", "--quiet")
    made.run("dvc", "repro", "--quiet")
    made.run("git", "add", "--all")
    made.run("git", "commit", "--quiet", "--message", "Plain")
    for name in EXPERIMENTS:
        made.run("dvc", "exp", "run", "--quiet", "--name", name, "-S", f"model={name}")
    made.run("git", "checkout", "--quiet", "params.yaml")
    made.run("dvc", "checkout", "--quiet", "--force")
    return made


@pytest.fixture
def inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project.folder)
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_TRACKING", "MLFLOW_EXP"))]:
        monkeypatch.delenv(name)
    return project.folder


def first_loss(name: str) -> list[float]:
    return [float(table.loss_sum[0]) for table in find_runs(name).tables]


def test_a_commit_an_experiment_and_the_workspace_are_found(inside: Path, tables: dict[str, ScoreTable]) -> None:
    assert first_loss("main") == [tables["plain"].loss_sum[0]]
    assert first_loss("good-1") == [tables["good-1"].loss_sum[0]]
    assert first_loss("HEAD") == first_loss("main")
    write_scores(SCORES_FILE, tables["good-2"])
    assert first_loss("workspace") == [tables["good-2"].loss_sum[0]]


def test_a_pattern_and_a_list_are_groups(inside: Path, tables: dict[str, ScoreTable]) -> None:
    both = [tables[name].loss_sum[0] for name in ("good-1", "good-2")]
    assert first_loss("good-*") == both
    assert first_loss("good-1, good-2") == both


def test_a_run_of_mlflow_is_found_by_its_name_and_its_id(inside: Path, tables: dict[str, ScoreTable]) -> None:
    client = MlflowClient(f"sqlite:///{inside / 'mlflow.db'}")
    run = client.create_run(find_experiment(client), run_name="train it's d_model=3")
    named = client.create_run(find_experiment(client), run_name="train-1234567 model.d_model=3")
    write_scores(inside / "elsewhere/data/scores.parquet", tables["same"])
    for each in (run, named):
        client.log_artifact(each.info.run_id, str(inside / "elsewhere/data/scores.parquet"), "data")
    assert first_loss(run.info.run_id) == [tables["same"].loss_sum[0]]
    assert first_loss("train-1234567 model.d_model=3") == [tables["same"].loss_sum[0]]


def test_scores_that_cannot_be_read_keep_no_table_of_experiments_from_being_made(
    inside: Path, tables: dict[str, ScoreTable]
) -> None:
    kept = SCORES_FILE.read_bytes()
    try:
        SCORES_FILE.unlink()
        SCORES_FILE.write_bytes(b"of an earlier version")
        assert set(cached_scores(["workspace", "main"])) == {"main"}
    finally:
        SCORES_FILE.write_bytes(kept)


@pytest.mark.parametrize(("name", "message"), [
    ("nothing", "'nothing': found neither a commit, a DVC experiment nor an MLflow run of this name"),
    ("it's", "found neither a commit"),
    ("bad-*", "no experiment is called like 'bad-*'; there are: good-1, good-2, same"),
    ("0" * 32, "found neither a commit"),
    (" ,", "name what to compare"),
])  # fmt: skip
def test_a_name_of_nothing_says_where_to_look(inside: Path, name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        find_runs(name)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_command_says_it_in_the_terminal_in_markdown_and_as_a_page(project: Project) -> None:
    def verdict(*arguments: str) -> str:
        command = (sys.executable, "-m", "stages.commands.verdict", *arguments)
        return project.run(*command, environment={"PYTHONPATH": str(ROOT)}).stdout

    assert verdict("main", "good-1").startswith("good-1 is better than main\n")
    assert "<h1>good-1 is better than main</h1>" in (project.folder / "metrics/verdict.html").read_text()
    assert verdict("main", "same", "--markdown").startswith("### can't tell same from main\n")
    groups = verdict("main,same", "good-*")
    assert groups.startswith("good-* is better than main,same")
    assert "2 runs of A, 2 of B. Another seed alone moves a run by" in groups


def test_scores_that_are_gone_are_named_with_the_fix(project: Project) -> None:
    cache = project.folder / ".dvc/cache"
    cache.rename(project.folder / "moved")
    try:
        done = project.run(
            sys.executable, "-m", "stages.commands.verdict", "main", "good-1",
            check=False, environment={"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    finally:
        (project.folder / "moved").rename(cache)
    assert done.returncode == 1
    assert done.stderr.startswith("error: main: data/scores.parquet is not there (")
    assert "dvc pull" in done.stderr
