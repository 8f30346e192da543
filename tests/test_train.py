"""What the training says before it begins."""

import pytest
from lightning.pytorch.utilities import rank_zero_only

from stages.errors import UserError
from stages.train import refuse_lone_rank, without_validation
from tests.training.conftest import runtime_parameters, train_parameters


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


def test_a_lone_process_that_is_not_the_first_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a job's shell has SLURM_PROCID=1: it would train, write nothing, and end well."""
    refuse_lone_rank(runtime_parameters())
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    refuse_lone_rank(runtime_parameters(devices=2))
    refuse_lone_rank(runtime_parameters(num_nodes=2))
    with pytest.raises(UserError, match=r"says that this is not the first process .* one device"):
        refuse_lone_rank(runtime_parameters())
