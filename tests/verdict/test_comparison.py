"""The statistics, where the truth is known."""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from stages.verdict import comparison
from stages.verdict.comparison import Difference, RowWeights, compare
from tests.verdict.tables import Truth, make_table

COMPARISONS = 200


def words(differences: list[Difference]) -> set[str]:
    return {each.word for each in differences}


@pytest.fixture(autouse=True)
def _fresh_draws() -> Iterator[None]:
    """What one test draws, the next does not use."""
    yield
    comparison._row_weights.cache_clear()


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the draws, as hundreds of comparisons are made."""
    monkeypatch.setattr(comparison, "DRAWS", 2_000)
    comparison._row_weights.cache_clear()


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("rows", [20, 60])
def test_two_models_that_are_equally_good_are_told_apart_in_at_most_one_of_twenty_comparisons(rows: int) -> None:
    """Counted over all figures together: one word that is wrong makes a comparison wrong."""
    wrong = 0
    for seed in range(COMPARISONS):
        truth = Truth(rows, seed)
        wrong += words(compare([truth.model()], [truth.model()], same_tokens=True)) != {"can't tell"}
    assert wrong <= 0.05 * COMPARISONS


@pytest.mark.usefixtures("few_draws")
def test_trainings_that_differ_in_their_seed_alone_are_not_told_apart() -> None:
    """Though each pair of them differs by far more than its rows' noise."""
    wrong = single = 0
    for seed in range(COMPARISONS):
        truth = Truth(40, seed)
        a, b = ([truth.model(seed_deviation=0.5) for _ in range(3)] for _ in range(2))
        wrong += words(compare(a, b, same_tokens=True)) != {"can't tell"}
        single += words(compare(a[:1], b[:1], same_tokens=True)) != {"can't tell"}
    assert wrong <= 0.05 * COMPARISONS
    assert single > 0.3 * COMPARISONS  # what one training each would have said


@pytest.mark.usefixtures("few_draws")
def test_a_true_difference_of_the_size_that_is_named_is_found_in_four_of_five_cases() -> None:
    truth = Truth(200, 0)
    (loss, *_) = compare([truth.model()], [truth.model()], same_tokens=True)
    found = 0
    for seed in range(100):
        of_seed = Truth(200, seed)
        (named, *_) = compare([of_seed.model()], [of_seed.model(gain=loss.detectable)], same_tokens=True)
        found += named.word == "better"
    assert 65 <= found <= 95


def test_the_same_model_gives_no_difference() -> None:
    table = Truth(100, 0).model()
    for difference in compare([table], [table], same_tokens=True):
        assert (difference.difference, difference.low, difference.high) == (0, 0, 0)
        assert difference.word == "can't tell"


def test_better_and_worse_are_each_others_mirror() -> None:
    truth = Truth(300, 1)
    a, b = truth.model(), truth.model(gain=0.3)
    there, back = compare([a], [b], same_tokens=True), compare([b], [a], same_tokens=True)
    assert {each.name: each.word for each in there}["loss"] == "better"
    for one, other in zip(there, back, strict=True):
        assert (one.a, one.b) == (other.b, other.a)
        assert {"better": "worse", "worse": "better"}.get(one.word, one.word) == other.word
        assert one.low == pytest.approx(-other.high, rel=1e-5, abs=1e-9)


def test_the_interval_is_that_of_the_mean_of_paired_differences() -> None:
    """With one token a row the loss is a mean, whose interval is known: Student's."""
    random = np.random.default_rng(0)
    rows = 400
    ones, zeros = np.ones(rows, dtype=np.int64), np.zeros(rows, dtype=np.int64)
    losses = random.normal(3, 1, rows)
    changes = random.normal(0.02, 0.2, rows)
    a, b = (make_table(values, ones, zeros, zeros) for values in (losses, losses + changes))
    (loss, *_) = compare([a], [b], same_tokens=True)
    half = 2.5899 * changes.std(ddof=1) / np.sqrt(rows)  # t of 399 degrees of freedom at 1 - 0.05 / 10
    assert loss.difference == pytest.approx(changes.mean())
    assert loss.low == pytest.approx(changes.mean() - half, abs=0.04 * half)
    assert loss.high == pytest.approx(changes.mean() + half, abs=0.04 * half)


def test_rows_that_are_drawn_in_groups_vary_as_much_as_single_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = Truth(800, 3)
    a, b = truth.model(), truth.model()
    (single, *_) = compare([a], [b], same_tokens=True)
    monkeypatch.setattr(comparison, "MOST_UNITS", 200)
    comparison._row_weights.cache_clear()
    (grouped, *_) = compare([a], [b], same_tokens=True)
    assert (grouped.high - grouped.low) == pytest.approx(single.high - single.low, rel=0.15)


def test_every_draw_has_as_many_rows_as_there_are() -> None:
    weights = RowWeights(37)
    assert weights.draw_sums(np.ones(37)) == pytest.approx(np.full(comparison.DRAWS, 37.0))


def test_other_tokens_are_compared_by_bytes_and_answers_alone() -> None:
    truth = Truth(50, 0)
    differences = compare([truth.model()], [truth.model()], same_tokens=False)
    assert [each.name for each in differences] == ["bits_per_byte", "completion_exact_match"]


def test_plain_text_has_no_completions_to_compare() -> None:
    table = Truth(50, 0).model()
    plain = replace(table, exact=[None] * 50, completion_tokens=np.zeros(50, dtype=np.int64))
    assert [each.name for each in compare([plain], [plain], same_tokens=True)] == [
        "loss",
        "bits_per_byte",
        "next_token_accuracy",
    ]


def test_few_rows_tell_nothing() -> None:
    truth = Truth(8, 0)
    assert words(compare([truth.model()], [truth.model(gain=3.0)], same_tokens=True)) == {"can't tell"}


def test_a_hundred_thousand_rows_take_less_than_two_seconds_of_a_processor() -> None:
    truth = Truth(100_000, 0)
    a, b = truth.model(), truth.model()
    began = time.process_time()
    compare([a], [b], same_tokens=True)
    assert time.process_time() - began < 2
