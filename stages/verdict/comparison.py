"""Whether one model is better than another on the same rows: paired bootstrap over rows, and what another seed changes.

A figure is a ratio of sums over rows. Rows are drawn with replacement, the same for both models (Efron & Tibshirani 1993,
chapter 8), so that what makes a row hard for both cancels. Several trainings of one kind, with other seeds, add the variance
between them. Shapes: R rows, U units that are drawn (rows, or groups of rows), K runs, N draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.special import ndtri, stdtrit

from stages.core.score_table import RATIOS, Float64s, Ratio, ScoreTable, column

DRAWS = 10_000
MOST_UNITS = 1_000
"""More rows than that are drawn in groups of about equal size, put together at random: the variance stays the same."""
FEWEST_ROWS = 20
CONFIDENCE = 0.95
"""With which all intervals of one comparison hold together (Bonferroni)."""
POWER = 0.8
_DRAWS_AT_ONCE = 500
_SEED = 0

Word = Literal["better", "worse", "can't tell"]


@dataclass(frozen=True)
class Difference:
    """One figure of two models, or of two groups of models: the mean over their runs."""

    name: str
    a: float
    b: float
    low: float
    """The interval of b - a."""
    high: float
    detectable: float
    """How large a true difference is found in 80% of such comparisons."""
    seed_deviation: float | None
    """How far another seed moves the figure of one run: its standard deviation; None where that is not known."""
    word: Word
    """What b is, compared with a."""

    @property
    def difference(self) -> float:
        """Return b - a."""
        return self.b - self.a


def compare(a: Sequence[ScoreTable], b: Sequence[ScoreTable], *, same_tokens: bool) -> list[Difference]:
    """Compare two groups of runs on the same rows.

    Args:
        a: the scores of K runs that differ in their seed alone.
        b: of other runs, on the same rows in the same order.
        same_tokens: whether all rows have the same tokens: figures of a token compare only then.
    """
    names = [
        name
        for name, ratio in RATIOS.items()
        if (same_tokens or not ratio.needs_same_tokens) and _counts_something(ratio, [*a, *b])
    ]
    weights = _row_weights(len(a[0]))
    return [_compare_ratio(name, a, b, weights, 1 - (1 - CONFIDENCE) / len(RATIOS)) for name in names]


@lru_cache(maxsize=1)
def _row_weights(rows: int) -> "RowWeights":
    """Return the draws; those of the last number of rows are kept, for the next of many comparisons."""
    return RowWeights(rows)


class RowWeights:
    """How often each unit is in each draw: the same for every figure and every model."""

    def __init__(self, rows: int) -> None:
        random = np.random.default_rng(_SEED)
        self.units = min(rows, MOST_UNITS)
        self._unit_of_row = random.permutation(rows) % self.units  # [R]
        draws = [self._draw(random, min(_DRAWS_AT_ONCE, DRAWS - start)) for start in range(0, DRAWS, _DRAWS_AT_ONCE)]
        self._weights = np.concatenate(draws)  # [N, U]

    def _draw(self, random: np.random.Generator, draws: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        units = random.integers(self.units, size=(draws, self.units))
        flat = (units + self.units * np.arange(draws)[:, None]).ravel()
        counts = np.bincount(flat, minlength=draws * self.units).reshape(draws, self.units)
        return counts.astype(np.float32)

    def draw_sums(self, values: Float64s) -> Float64s:
        """Return the sum of a column of rows [R] in each draw, [N]."""
        by_unit = np.bincount(self._unit_of_row, weights=values, minlength=self.units)
        # float32 holds seven digits: what all units have in common is added exactly.
        mean = by_unit.mean()
        return np.asarray((self._weights @ (by_unit - mean).astype(np.float32)).astype(np.float64) + self.units * mean)


def _compare_ratio(
    name: str, a: Sequence[ScoreTable], b: Sequence[ScoreTable], weights: RowWeights, confidence: float
) -> Difference:
    ratio = RATIOS[name]
    figures_a, drawn_a = _figures(ratio, a, weights)
    figures_b, drawn_b = _figures(ratio, b, weights)
    difference = figures_b.mean() - figures_a.mean()
    rows = len(a[0])
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn_b - drawn_a, [tail, 1 - tail])
    # The bootstrap's interval is too narrow for few rows: expanded as Hesterberg (2015) does.
    expansion = stdtrit(max(weights.units - 1, 1), tail) / ndtri(tail) * np.sqrt(rows / max(rows - 1, 1))
    of_seeds = _seed_interval(figures_a, figures_b, tail)
    low = difference - np.hypot((difference - low) * expansion, of_seeds)
    high = difference + np.hypot((high - difference) * expansion, of_seeds)
    return Difference(
        name,
        float(figures_a.mean()),
        float(figures_b.mean()),
        float(low),
        float(high),
        float((high - low) / 2 * (1 + ndtri(POWER) / -ndtri(tail))),
        _seed_deviation(figures_a, figures_b),
        _word(low, high, rows, lower_is_better=ratio.lower_is_better),
    )


def _figures(ratio: Ratio, tables: Sequence[ScoreTable], weights: RowWeights) -> tuple[Float64s, Float64s]:
    """Return the figure of each run [K], and their mean in each draw [N]."""
    numerators = [column(table, ratio.numerator) for table in tables]
    denominators = [column(table, ratio.denominator) for table in tables]
    figures = np.array([n.sum() / d.sum() for n, d in zip(numerators, denominators, strict=True)])
    drawn = np.zeros(DRAWS)
    for numerator, denominator in zip(numerators, denominators, strict=True):
        sums = weights.draw_sums(denominator)
        drawn += np.divide(weights.draw_sums(numerator), sums, out=np.zeros(DRAWS), where=sums > 0)
    return ratio.scale * figures, ratio.scale * drawn / len(tables)


def _seed_interval(a: Float64s, b: Float64s, tail: float) -> float:
    """Return half the interval of the difference of two groups' means that their seeds alone give; 0 for single runs.

    Args:
        a: [K] the figure of each run.
        b: as ``a``.
        tail: the probability on each side of the interval.
    """
    freedom = len(a) + len(b) - 2
    deviation = _seed_deviation(a, b)
    if deviation is None:
        return 0.0
    return float(-stdtrit(freedom, tail) * deviation * np.sqrt(1 / len(a) + 1 / len(b)))


def _seed_deviation(a: Float64s, b: Float64s) -> float | None:
    """Return the standard deviation between runs of one group, pooled over both; None where neither has two runs."""
    freedom = len(a) + len(b) - 2
    if freedom == 0:
        return None
    squares = ((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()
    return float(np.sqrt(squares / freedom))


def _word(low: float, high: float, rows: int, *, lower_is_better: bool) -> Word:
    if rows < FEWEST_ROWS or low <= 0 <= high:
        return "can't tell"
    return "better" if (high < 0) == lower_is_better else "worse"


def _counts_something(ratio: Ratio, tables: Sequence[ScoreTable]) -> bool:
    return all(column(table, ratio.denominator).any() for table in tables)
