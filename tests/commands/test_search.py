"""A search tries what it was told, goes on where it was stopped, and says how sure it is of its best."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.commands.search import FOLDER, check, describe, draw, open_study, parse_space
from stages.errors import UserError
from stages.parameters import read_all
from tests.project import ROOT, Project

TOY = read_all(ROOT / "presets/toy.yaml")
FLOAT = optuna.distributions.FloatDistribution


@given(low=st.floats(1e-9, 1e6), factor=st.floats(1.001, 1e3))
def test_ranges_are_what_was_typed(low: float, factor: float) -> None:
    high = low * factor
    typed = [
        f"train.learning_rate=log({low!r},{high!r})",
        f"model.dropout=float({-high!r}, {low!r})",
        "model.norm=layer",
    ]
    space = parse_space(typed)
    assert space.ranges == {"train.learning_rate": FLOAT(low, high, log=True), "model.dropout": FLOAT(-high, low)}
    assert space.fixed == {"model.norm": "layer"}


def test_whole_numbers_and_choices() -> None:
    space = parse_space(["model.n_layers=int(2,6)", "model.norm=choice(layer, rms)", "model.d_ff=choice(null,64,1e2)"])
    assert space.ranges["model.n_layers"] == optuna.distributions.IntDistribution(2, 6)
    assert space.ranges["model.norm"].choices == ("layer", "rms")  # type: ignore[attr-defined]
    assert space.ranges["model.d_ff"].choices == (None, 64, 100.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ([], "no parameter has a range"),
        (["model.d_model=64"], "no parameter has a range"),
        (["learning_rate=log(1,2)"], "expected section.key=value"),
        (["train.learning_rate=log(0,1)"], "two numbers above 0, the smaller one first"),
        (["train.learning_rate=log(2,1)"], "the smaller one first"),
        (["train.learning_rate=float(nan,1)"], "the smaller one first"),
        (["train.learning_rate=log(1)"], r"expected two numbers, as in log\(1,8\)"),
        (["model.n_layers=int(1.5,3)"], "expected two whole numbers"),
        (["model.n_layers=int(1,3)", "model.n_layers=2"], "is given twice"),
    ],
)
def test_mistakes_in_ranges(settings: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        parse_space(settings)


@pytest.mark.parametrize(
    ("settings", "name", "metric", "complaint"),
    [
        (["model.width=int(1,2)"], "search", "loss", "model.width=|model.width: params.yaml has no such key"),
        (["model.d_model=int(1,2)"], "../x", "loss", "--name ../x: allowed"),
        (["model.d_model=int(1,2)"], "x", "validation_loss", "add -S split.validation=0.1"),
    ],
)
def test_what_would_fail_in_every_trial_is_refused(settings: list[str], name: str, metric: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        check(
            parse_space(settings), name, metric, TOY | {"data": TOY["data"] | {"csv": str(ROOT / "data/prompts.csv")}}
        )


def add(study: optuna.Study, value: float, rate: float) -> None:
    number = len(study.trials)
    study.add_trial(
        optuna.trial.create_trial(
            params={"train.learning_rate": rate},
            distributions={"train.learning_rate": FLOAT(0.001, 1, log=True)},
            value=value,
            user_attrs={"experiment": f"search-{number}"},
        )
    )


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> optuna.Study:
    monkeypatch.chdir(tmp_path)
    FOLDER.mkdir()
    return open_study("search", "loss")


def test_a_killed_trial_is_tried_again_and_no_other_twice(study: optuna.Study) -> None:
    ranges: dict[str, Any] = {"train.learning_rate": FLOAT(0.001, 1, log=True)}
    killed = study.ask(ranges)
    killed.set_user_attr("process", 2**22 + 1)  # more than Linux gives
    again = open_study("search", "loss")
    assert [trial.state.name for trial in again.trials] == ["FAIL", "WAITING"]
    first, second = again.ask(ranges), again.ask(ranges)
    assert first.params == killed.params
    assert second.params != killed.params


def test_a_trial_of_another_terminal_is_left_alone(study: optuna.Study) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        study.ask().set_user_attr("process", other.pid)
        assert [trial.state.name for trial in open_study("search", "loss").trials] == ["RUNNING"]


def test_another_metric_needs_another_name(study: optuna.Study) -> None:
    add(study, 1.0, 0.1)
    with pytest.raises(UserError, match="was begun for loss"):
        open_study("search", "validation_loss")
    assert open_study("other", "completion_exact_match").direction == optuna.study.StudyDirection.MAXIMIZE


def test_the_best_is_named_with_its_noise(study: optuna.Study) -> None:
    assert "no trial is complete" in describe(study, "search", "loss", None, None)
    for value, rate in ((1.0, 0.1), (0.51, 0.2), (0.5, 0.3), (2.0, 0.9)):
        add(study, value, rate)
    said = describe(study, "search", "loss", 0.02, None)
    assert "4 complete; best: search-2 with loss 0.5000" in said
    assert "WARNING: the second, search-1, is 0.0100 worse, and another seed changes the best by 0.0200" in said
    assert said.endswith("take the best: dvc exp apply search-2")
    assert "WARNING" not in describe(study, "search", "loss", 0.005, None)
    assert "not known" in describe(study, "search", "loss", None, None)


def test_a_picture_of_what_mattered(study: optuna.Study) -> None:
    path = Path("what mattered.png")
    assert draw(study, path) is None
    for number in range(6):
        add(study, math.sin(number), 0.01 * 2**number)
    assert draw(study, path) == path
    assert path.read_bytes().startswith(b"\x89PNG")


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
