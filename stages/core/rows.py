"""Rows of text to token_ids: ``prompt <EOS> completion <EOS>``, or ``prompt <EOS>`` without a completion.

Shapes: R rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.core.vocabulary import TokenIds, Vocabulary
from stages.core.windows import DatasetParams


@dataclass(frozen=True)
class EncodedRows:
    """R rows as token_ids."""

    token_ids: TokenIds
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


def encode_rows(vocabulary: Vocabulary, texts: Sequence[str]) -> EncodedRows:
    """Encode the first row's prompt and completion, the second row's, and so on; an empty completion is none.

    Raises:
        UnusableTextError: the vocabulary cannot encode a text; its index is that in ``texts``.
    """
    token_ids, lengths = vocabulary.encode_batch(texts)
    without_text = 2 * np.flatnonzero(lengths[1::2] == 1) + 1
    absent = [index for index in without_text.tolist() if not texts[index]]  # white space has no words, but is there
    if absent:
        token_ids = np.delete(token_ids, np.cumsum(lengths)[absent] - 1)
        lengths[absent] = 0
    return EncodedRows(token_ids, row_lengths=lengths[::2] + lengths[1::2], prompt_lengths=lengths[::2])


def count_scored(  # noqa: D417
    vocabulary: Vocabulary,
    texts: Sequence[str],
    rows: EncodedRows,
    parameters: DatasetParams,
    *,
    begins_split: bool,
) -> Scored:
    """Count the targets that carry loss in ``rows``, which ``encode_rows`` made of ``texts``.

    Args:
        begins_split: no row of their split came before these; the first token of a stream is no target.
    """
    if parameters.loss_on == "completion":
        return Scored(int((rows.row_lengths - rows.prompt_lengths).sum()), _utf8_bytes(texts[1::2]))
    # What no input precedes is no target: the first token of each row, or of the stream.
    first_rows = (
        len(rows.row_lengths) if parameters.packing == "rows" else min(int(begins_split), len(rows.row_lengths))
    )
    offsets = np.cumsum(rows.row_lengths) - rows.row_lengths
    first_ids = rows.token_ids[offsets[:first_rows]]
    first_bytes = vocabulary.first_token_bytes(texts[: 2 * first_rows : 2], first_ids)
    return Scored(len(rows.token_ids) - first_rows, _utf8_bytes(texts) - first_bytes)


def _utf8_bytes(texts: Sequence[str]) -> int:
    return len("".join(texts).encode())
