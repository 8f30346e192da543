"""Scores that are drawn, so that the truth about them is known."""

from typing import Any

import numpy as np

from stages.core.score_table import ScoreTable


def make_table(loss_sum: Any, tokens: Any, correct: Any, exact: Any, **texts: Any) -> ScoreTable:
    rows = len(loss_sum)
    prompts = texts.get("prompts", [f"prompt {row}" for row in range(rows)])
    expected = texts.get("expected", [f"answer {row % 3}" for row in range(rows)])
    right = [bool(value) for value in exact]
    return ScoreTable(
        split="test",
        files=texts.get("files", ["test.csv"] * rows),
        rows=np.arange(1, rows + 1),
        group_column=texts.get("group_column"),
        groups=texts.get("groups", [None] * rows),
        prompts=prompts,
        expected=expected,
        completions=[text if known else "something else" for text, known in zip(expected, right, strict=True)],
        exact=list(right),
        tokens=np.asarray(tokens),
        bytes=np.asarray(tokens) * 4,
        loss_sum=np.asarray(loss_sum, dtype=np.float64),
        correct=np.asarray(correct),
        completion_tokens=np.asarray(tokens),
        completion_correct=np.asarray(correct),
    )


class Truth:
    """Rows of known difficulty, and models that differ from each other by noise, or by ``gain`` nats a token."""

    def __init__(self, rows: int, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._tokens = self._random.integers(1, 20, rows)
        self._difficulty = self._random.gamma(1, 1, rows)

    def model(self, gain: float = 0.0, seed_deviation: float = 0.0) -> ScoreTable:
        """The scores of one training, whose seed moves all its rows together by ``seed_deviation``."""
        random, rows = self._random, len(self._tokens)
        shift = random.normal() * seed_deviation - gain
        loss = np.maximum(0, self._difficulty * (1 + 0.2 * random.standard_t(4, rows)) + shift)
        correct = random.binomial(self._tokens, np.exp(-loss / 2))
        exact = (loss < 0.7) ^ (random.random(rows) < 0.1)
        return make_table(loss * self._tokens, self._tokens, correct, exact)
