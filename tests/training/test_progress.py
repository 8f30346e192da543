"""What a training prints where standard output is no terminal."""

import re
from typing import Any

import pytest

from stages.training.fit import TrainingResult, fit
from tests.training.conftest import examples, network, runtime_parameters, train_parameters

LINE = re.compile(r"step (\d+)/(\d+), epoch ([\d.]+)/([\d.]+): (.*), ([\d,]+) tokens/s, ([\d,]+) s left")


def train(**changed: Any) -> TrainingResult:
    parameters = train_parameters(**changed)
    return fit(network(), examples(), examples(7, seed=1), parameters, runtime_parameters(), lambda *_: None)


@pytest.mark.parametrize("changed", [
    {"validate_every": 4}, {"validate_every": 5}, {"validate_every": 1}, {},
    {"max_steps": 45, "validate_every": 7, "patience": 1, "learning_rate": 0.5, "schedule": "constant", "min_learning_rate": 0.0},
])  # fmt: skip
def test_a_line_has_the_losses_of_its_step_or_says_of_which(
    changed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    trained = train(**changed)
    lines = [line for line in map(LINE.fullmatch, capsys.readouterr().out.splitlines()) if line]
    steps = [int(line[1]) for line in lines]
    assert steps == sorted(set(steps))
    assert steps[-1] == trained.steps
    validated = dict(trained.curves.validation_loss)
    for line in lines:
        step = int(line[1])
        expected = [f"train_loss {dict(trained.curves.train_loss)[step]:.4f}"]
        newest = max((other for other in validated if other <= step), default=None)
        if newest is not None:
            of_another = "" if newest == step else f" at step {newest}"
            expected.append(f"validation_loss {validated[newest]:.4f}{of_another}")
        assert line[5] == ", ".join(expected)
        assert float(line[3]) == pytest.approx(step * 4 / 20, abs=0.06)
    assert trained.curves.validation_loss[-1][0] == trained.steps
