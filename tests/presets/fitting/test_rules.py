"""Each rule's values at and around its edges, and what must hold for any data, speed and budget."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presets.fitting import rules
from presets.fitting.rules import Candidate, predicted_loss
from presets.fitting.texts import Lengths


def lengths(median: int = 20, p99: int = 61, longest: int = 70, completion_tokens: int = 100) -> Lengths:
    return Lengths(100, 2000, median, p99, longest, 10, completion_tokens)


@pytest.mark.parametrize(("rows", "share"), [(2, 0.0), (19, 0.0), (20, 0.1), (10_000, 0.1), (1_000_000, 0.001)])
def test_a_test_split_where_rows_allow_it(rows: int, share: float) -> None:
    assert rules.choose_held_out(rows, comes_split=False).value == share
    assert rules.choose_held_out(rows, comes_split=True).value == 0.0


def test_context_from_the_lengths() -> None:
    assert rules.choose_context(lengths(), "rows", 10).value == 69
    long = rules.choose_context(lengths(longest=5000), "rows", 10)
    assert (long.value, long.reason) == (64, "p99 of rows is 61 tokens (the longest: 5,000)")
    assert rules.choose_context(lengths(p99=3000, longest=5000), "rows", 10).value == rules.MOST_CONTEXT
    assert rules.choose_context(lengths(1, 1, 2), "rows", 10).value == 2
    assert [rules.choose_context(lengths(), "stream", minutes).value for minutes in (2, 10, 30)] == [64, 128, 256]


def test_packing_and_loss() -> None:
    assert rules.choose_packing(lengths(), plain=False).value == "rows"
    assert rules.choose_packing(lengths(), plain=True).value == "rows"
    assert rules.choose_packing(lengths(median=100), plain=True).value == "stream"
    assert rules.choose_loss_on("bpe", lengths(), plain=False).value == "all"
    assert rules.choose_loss_on("character", lengths(), plain=False).value == "completion"
    assert rules.choose_loss_on("character", lengths(), plain=True).value == "all"


positive = st.floats(1e3, 1e12)


@given(parameters=positive, tokens=positive, unique=positive, factor=st.floats(1.01, 100))
def test_more_tokens_more_parameters_and_more_text_never_harm(
    parameters: float, tokens: float, unique: float, factor: float
) -> None:
    loss = predicted_loss(parameters, tokens, unique)
    assert math.isfinite(loss)
    assert predicted_loss(parameters, tokens * factor, unique) <= loss
    assert predicted_loss(parameters * factor, tokens, unique) <= loss * (1 + 1e-9)
    assert predicted_loss(parameters, tokens, unique * factor) <= loss * (1 + 1e-9)


def test_repeated_tokens_are_worth_what_the_paper_says() -> None:
    """Muennighoff et al. 2023: up to 4 passes hardly differ from new text; at 40 nothing is gained any more."""
    unique = 1e9
    few, fresh = predicted_loss(1e8, 4 * unique, unique), predicted_loss(1e8, 4 * unique, 4 * unique)
    assert few / fresh < 1.03
    assert predicted_loss(1e8, 100 * unique, unique) / predicted_loss(1e8, 60 * unique, unique) > 0.995


def test_more_time_takes_a_larger_model() -> None:
    """As for Chinchilla, about 20 tokens a parameter where nothing repeats."""
    candidates = [Candidate(2, size, size**2 * 24, 1e9 / (size**2 * 24)) for size in (64, 128, 256, 512, 1024)]
    budgets = (2e3, 3e4, 4e5, 6e6)
    chosen = [rules.choose_shape(candidates, seconds, 1e15).value for seconds in budgets]
    assert [candidate.d_model for candidate in chosen] == sorted({candidate.d_model for candidate in chosen})
    for candidate, seconds in zip(chosen, budgets, strict=True):
        assert 5 < candidate.tokens_per_second * seconds / candidate.parameters < 80


@given(tokens=positive, each=st.floats(1, 1000), examples=st.integers(1, 10**7))
def test_a_batch_fits_into_the_data(tokens: float, each: float, examples: int) -> None:
    batch = rules.choose_batch(tokens, each, examples).value
    assert 1 <= batch <= max(1, examples // 16)
    assert math.log2(batch).is_integer()


def test_regularisation_comes_with_repeats() -> None:
    assert [rules.choose_dropout(passes, "bpe").value for passes in (1, 4, 10, 40)] == [0.0, 0.0, 0.1, 0.2]
    assert rules.choose_dropout(40, "character").value == 0.0
    assert rules.choose_weight_decay(40).value > rules.choose_weight_decay(1).value
    assert rules.choose_patience(40, validates=False).value is None
    assert rules.choose_patience(2, validates=True).value is None
    assert rules.choose_patience(40, validates=True).value


def test_more_steps_have_a_lower_learning_rate() -> None:
    rates = [rules.choose_learning_rate(steps).value for steps in (0, 10, 400, 1000, 2000, 10_000, 10**6)]
    assert rates == [0.004, 0.004, 0.004, 0.003, 0.002, 0.0008, 0.00008]
