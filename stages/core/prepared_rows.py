"""What build_dataset makes of rows, frame by frame: token ids, counts, and what copies are known by."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from stages.core.data_figures import RowCounts, RowKeys, copy_keys, count_rows
from stages.core.frames import Frame, UnusableTextError, place, rows_of
from stages.core.rows import EncodedRows, Scored, count_scored, encode_rows
from stages.core.split import SPLITS, Split
from stages.core.text_keys import TextKey
from stages.core.vocabulary import Vocabulary
from stages.core.windows import DatasetParams
from stages.errors import UserError


class PreparedRows(NamedTuple):
    """Successive rows of one split."""

    encoded: EncodedRows
    scored: Scored
    """The targets that carry loss, if rows of the split come before these."""
    scored_as_first: Scored
    """The same if these are the first ones of the split."""
    counts: RowCounts
    keys: RowKeys


def prepare_rows(
    vocabulary: Vocabulary, parameters: DatasetParams, text_key: TextKey, frames: Iterable[Frame], *, near_copies: bool
) -> Iterator[dict[Split, PreparedRows]]:
    """Yield for each frame what is made of its rows, by their split; a split without rows is absent.

    Args:
        vocabulary: encodes them.
        parameters: which targets carry loss.
        text_key: by which copies are known.
        frames: the rows.
        near_copies: whether copies in another case, or with other white space, matter.

    Raises:
        UserError: the vocabulary cannot encode a text; the message names its place.
    """
    for frame in frames:
        by_split = {split: rows_of(frame, split) for split in SPLITS}
        yield {
            split: _prepare(vocabulary, parameters, text_key, rows, near_copies=near_copies)
            for split, rows in by_split.items()
            if len(rows)
        }


def _prepare(
    vocabulary: Vocabulary, parameters: DatasetParams, text_key: TextKey, rows: Frame, *, near_copies: bool
) -> PreparedRows:
    try:
        encoded = encode_rows(vocabulary, rows)
    except UnusableTextError as error:
        raise UserError(f"{place(rows, error.row, error.column)}: {error}") from None
    scored, as_first = (
        count_scored(vocabulary, rows, encoded, parameters, begins_split=begins) for begins in (False, True)
    )
    keys = copy_keys(rows, text_key, near_copies=near_copies)
    return PreparedRows(encoded, scored, as_first, count_rows(vocabulary, rows, encoded), keys)
