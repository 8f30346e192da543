"""A search tries what it was told, and refuses what would fail in every trial."""

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import UserError
from stages.parameters import read_all
from stages.search.space import check_space, parse_space
from tests.project import ROOT

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
        check_space(
            parse_space(settings), name, metric, TOY | {"data": TOY["data"] | {"csv": str(ROOT / "data/prompts.csv")}}
        )
