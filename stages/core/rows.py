"""Rows of text to token ids: ``prompt <EOS> completion <EOS>``, or ``prompt <EOS>`` without a completion.

Shapes: R rows.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.core.frames import Frame, UnusableTextError, find_unusable_text, joined_texts, text_column, text_sizes
from stages.core.vocabulary import Vocabulary
from stages.core.windows import DatasetParams, Integers


@dataclass(frozen=True)
class EncodedRows:
    """R rows as token_ids."""

    token_ids: Integers
    """[tokens] of all rows, laid end to end."""
    row_lengths: npt.NDArray[np.int64]
    """[R] the tokens of each row."""
    prompt_lengths: npt.NDArray[np.int64]
    """[R] how many of them precede the completion: all of them where a row has none."""


@dataclass(frozen=True)
class Scored:
    """The targets that carry loss."""

    tokens: int
    """How many there are."""
    bytes: int
    """The UTF-8 bytes of the text that they stand for: white space between words counts, <EOS> does not."""

    def __add__(self, other: "Scored") -> "Scored":
        return Scored(self.tokens + other.tokens, self.bytes + other.bytes)


def encode_rows(vocabulary: Vocabulary, frame: Frame) -> EncodedRows:
    """Encode each row's prompt and completion; an empty completion is none, one of white space has no words, but is there.

    Raises:
        UnusableTextError: the vocabulary cannot encode a text; it names the text's row in the frame, and its column.
    """
    try:
        token_ids = vocabulary.encode_texts(joined_texts(frame, vocabulary.end))
    except UnusableTextError:
        find_unusable_text(frame, vocabulary.encode)
        raise
    ends = np.flatnonzero(token_ids == vocabulary.eos_id) + 1  # of each text
    answered = text_sizes(text_column(frame, "completion")) > 0
    last_texts = np.cumsum(1 + answered) - 1  # [R]
    row_lengths = np.diff(ends[last_texts], prepend=0)
    completion_lengths = np.where(answered, ends[last_texts] - ends[last_texts - answered], 0)
    return EncodedRows(token_ids, row_lengths, row_lengths - completion_lengths)


def count_scored(  # noqa: D417
    vocabulary: Vocabulary, frame: Frame, rows: EncodedRows, parameters: DatasetParams, *, begins_split: bool
) -> Scored:
    """Count the targets that carry loss in ``rows``, which ``encode_rows`` made of ``frame``.

    Args:
        begins_split: no row of their split came before these; the first token of a stream is no target.
    """
    prompts, completions = text_column(frame, "prompt"), text_column(frame, "completion")
    completion_bytes = int(text_sizes(completions).sum())
    if parameters.loss_on == "completion":
        return Scored(int((rows.row_lengths - rows.prompt_lengths).sum()), completion_bytes)
    # What no input precedes is no target: the first token of each row, or of the stream.
    count = len(rows.row_lengths)
    first_rows = count if parameters.packing == "rows" else min(int(begins_split), count)
    offsets = np.cumsum(rows.row_lengths) - rows.row_lengths
    first_bytes = vocabulary.first_token_bytes(prompts[:first_rows], rows.token_ids[offsets[:first_rows]])
    text_bytes = int(text_sizes(prompts).sum()) + completion_bytes
    return Scored(len(rows.token_ids) - first_rows, text_bytes - first_bytes)
