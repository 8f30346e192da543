"""What an evaluation found of each row, as columns, and the figures as ratios of their sums.

Shapes: R rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stages.core.evaluation import Completion, RowScores
    from stages.core.examples import Examples
    from stages.core.vocabulary import Vocabulary
    from stages.core.windows import DatasetParams, Int64s

Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RowPlaces:
    """Where the rows of a split are in the data, in the order of the dataset."""

    files: list[str]
    """[R] the file of each row, as named in the folder that all files share."""
    rows: Int64s
    """[R] the row's number in its file, from 1."""
    group_column: str | None
    """The column that groups the rows; None where none does."""
    groups: list[str | None]
    """[R] what it holds."""


@dataclass(frozen=True)
class ScoreTable:
    """One split, row by row."""

    split: str
    files: list[str]
    """[R] the file of each row, as named in the folder that all files share."""
    rows: Int64s
    """[R] the row's number in its file, from 1."""
    group_column: str | None
    """The column of the data that groups the rows; None where none does."""
    groups: list[str | None]
    """[R] what it holds."""
    prompts: list[str]
    """[R] as the vocabulary writes them: what it does not know is <UNK>."""
    expected: list[str]
    """[R] what follows the prompt in the data; empty where nothing does."""
    completions: list[str | None]
    """[R] what the model generated; None where it generated nothing."""
    exact: list[bool | None]
    """[R] whether that is what was expected; None where the row has no completion."""
    tokens: Int64s
    """[R] scored targets."""
    bytes: Int64s
    """[R] UTF-8 bytes of the text that they stand for, as the vocabulary writes it."""
    loss_sum: Float64s
    """[R] their summed loss in nats."""
    correct: Int64s
    """[R] how many of them were the most likely token."""
    completion_tokens: Int64s
    """[R] how many of them belong to the completion."""
    completion_correct: Int64s
    """[R] how many of those were the most likely token."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Ratio:
    """A figure as a ratio of sums over rows."""

    numerator: str
    denominator: str
    scale: float = 1.0
    lower_is_better: bool = False
    needs_same_tokens: bool = True
    """Whether it compares only models with one vocabulary."""


RATIOS = {
    "loss": Ratio("loss_sum", "tokens", lower_is_better=True),
    "bits_per_byte": Ratio("loss_sum", "bytes", scale=1 / math.log(2), lower_is_better=True, needs_same_tokens=False),
    "next_token_accuracy": Ratio("correct", "tokens"),
    "completion_token_accuracy": Ratio("completion_correct", "completion_tokens"),
    "completion_exact_match": Ratio("exact", "completed", needs_same_tokens=False),
}
"""By their names in metrics/evaluate.json."""


def column(table: ScoreTable, name: str) -> Float64s:
    """Return a column of numbers, [R]; of ``exact`` 1 for true, and ``completed`` is 1 where it is known."""
    match name:
        case "exact":
            return np.array([value is True for value in table.exact], dtype=np.float64)
        case "completed":
            return np.array([value is not None for value in table.exact], dtype=np.float64)
    return np.asarray(getattr(table, name), dtype=np.float64)


def ratio(table: ScoreTable, name: str) -> float | None:
    """Return a figure of RATIOS; None where it counts nothing."""
    of = RATIOS[name]
    denominator = math.fsum(column(table, of.denominator))
    return of.scale * math.fsum(column(table, of.numerator)) / denominator if denominator else None


def build_score_table(
    split: str,
    places: RowPlaces,
    examples: Examples,
    parameters: DatasetParams,
    vocabulary: Vocabulary,
    scores: RowScores,
    completions: Sequence[Completion],
) -> ScoreTable:
    """Return the rows of a split with their texts, scores and completions.

    Args:
        split: its name.
        places: where its rows are in the data.
        examples: of the split.
        parameters: how it was packed and scored.
        vocabulary: that of its tokens.
        scores: of its rows.
        completions: of some or all of its rows.
    """
    offsets, starts = examples.spans.row_offsets, examples.spans.completion_starts
    edges = np.stack([offsets[:-1], starts, offsets[1:]], axis=1).ravel()  # [3 R]: prompt, completion, end
    token_ids = examples.token_ids(0, int(offsets[-1]))
    parts = [token_ids[start:end].tolist() for start, end in pairwise(edges.tolist())]
    texts = vocabulary.tokenizer.decode_batch(parts, skip_special_tokens=True)
    prompts, expected = texts[::3], texts[1::3]  # between the two of a row and the next row's lies nothing
    by_row = {completion.row: completion for completion in completions}
    has_completion = (starts < offsets[1:]).tolist()
    found = [by_row.get(row) for row in range(len(prompts))]
    return ScoreTable(
        split=split,
        files=places.files,
        rows=places.rows,
        group_column=places.group_column,
        groups=places.groups,
        prompts=prompts,
        expected=expected,
        completions=[None if one is None else vocabulary.decode(one.generated) for one in found],
        exact=[
            one.exact if one is not None and known else None for one, known in zip(found, has_completion, strict=True)
        ],
        tokens=scores.tokens,
        bytes=_scored_bytes(vocabulary, parameters, prompts, expected, [part[:1] for part in parts[::3]]),
        loss_sum=scores.loss_sum,
        correct=scores.correct,
        completion_tokens=scores.completion_tokens,
        completion_correct=scores.completion_correct,
    )


def _scored_bytes(
    vocabulary: Vocabulary,
    parameters: DatasetParams,
    prompts: list[str],
    expected: list[str],
    first_ids: list[list[int]],
) -> Int64s:
    completion = np.array([len(text.encode()) for text in expected], dtype=np.int64)
    if parameters.loss_on == "completion":
        return completion
    whole = completion + np.array([len(text.encode()) for text in prompts], dtype=np.int64)
    # What no input precedes is no target: the first token of each row, or of the stream.
    firsts = len(prompts) if parameters.packing == "rows" else 1
    for row in range(firsts):
        whole[row] -= vocabulary.first_token_bytes(pa.array(prompts[row : row + 1]), np.array(first_ids[row]))
    return whole
