"""What the training says before it begins."""

import pytest

from stages.train import without_validation
from tests.training.conftest import train_parameters


@pytest.mark.parametrize(("changed", "effects"), [
    ({}, []),
    ({"keep": "best"}, ["train.keep: best needs validation rows, and there are none: the last weights are kept"]),
    ({"patience": 3}, ["train.patience: 3 needs validation rows, and there are none: nothing stops early"]),
    ({"keep": "best", "patience": 1, "validate_every": 2}, ["train.keep", "train.patience", "train.validate_every"]),
])  # fmt: skip
def test_parameters_that_need_validation_rows_are_named_where_there_are_none(
    changed: dict[str, object], effects: list[str]
) -> None:
    lines = without_validation(train_parameters(**changed))
    assert len(lines) == len(effects)
    assert all(effect in line for effect, line in zip(effects, lines, strict=True))
