"""A search goes on where it was stopped."""

import subprocess
import sys
from typing import Any

import optuna
import pytest

from stages.errors import UserError
from stages.search.study import open_study
from tests.search.made_trials import add_trial

FLOAT = optuna.distributions.FloatDistribution


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
    add_trial(study, 1.0, 0.1)
    with pytest.raises(UserError, match="was begun for loss"):
        open_study("search", "validation_loss")
    assert open_study("other", "completion_exact_match").direction == optuna.study.StudyDirection.MAXIMIZE
