"""A search leaves experiments, runs under one parent, and the workspace as it was."""

import json
import sys

import pytest

from tests.project import Project


@pytest.mark.slow
def test_trials_are_experiments_and_runs_under_one_parent(trained: Project) -> None:
    """Two trials; then, by the same command, a third; the workspace stays as it is."""
    search = (
        sys.executable,
        "-m",
        "stages.commands.search",
        "--metric",
        "loss",
        "-S",
        "train.learning_rate=log(0.01,0.5)",
    )
    said = trained.run(*search, "--trials", "2").stdout
    assert "search: 2 complete; best: search-" in said
    said = trained.run(*search, "--trials", "3").stdout
    assert "search: 3 complete" in said
    assert trained.run("git", "status", "--short").stdout == ""
    listed = trained.run("dvc", "exp", "list", "--name-only").stdout.split()
    assert {"search-0", "search-1", "search-2"} <= set(listed)
    program = (
        "import json, mlflow; found = mlflow.search_runs(search_all_experiments=True, output_format='list'); "
        "print(json.dumps([[run.data.tags.get('search'), run.info.run_id, run.data.tags.get('mlflow.parentRunId'), "
        "run.data.tags.get('dvc.experiment')] for run in found]))"
    )
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{trained.folder / 'mlflow.db'}"}
    runs = json.loads(trained.run(sys.executable, "-c", program, environment=store).stdout)
    (parent,) = [run_id for name, run_id, _, _ in runs if name == "search"]
    children = {experiment for _, _, of, experiment in runs if of == parent}
    assert {"search-0", "search-1", "search-2"} <= children
    best = said.split("dvc exp apply ")[1].split()[0]
    trained.run("dvc", "exp", "apply", best)
    assert trained.run("git", "status", "--short").stdout != ""
