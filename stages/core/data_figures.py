"""What came in, at a glance: the figures of metrics/data.json, counted frame by frame.

Shapes: R rows.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.core.frames import Frame, file_rows, text_characters, text_column, text_sizes
from stages.core.rows import EncodedRows
from stages.core.split import SPLITS, Split
from stages.core.text_keys import TextKey, prompt_keys, row_keys
from stages.core.vocabulary import Vocabulary

RowKeys = npt.NDArray[np.int64]
"""[R, 2] of each row a key of its prompt, and one of all its text without case and white space."""

_KEYS_AT_ONCE = 1 << 20  # compared in memory
_PERCENTS = range(1, 101)


@dataclass(frozen=True)
class RowCounts:
    """Sums over rows of one split."""

    files: Counter[str] = field(default_factory=Counter)
    """File -> rows."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Tokens, <EOS> included -> rows of so many."""
    texts: int = 0
    """Prompts and completions that are not empty, and prompts that are: each is ended by <EOS>."""
    characters: int = 0
    unknown_tokens: int = 0
    empty_prompts: int = 0
    empty_completions: int = 0

    def __add__(self, other: "RowCounts") -> "RowCounts":
        return RowCounts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.lengths.total()

    @property
    def tokens(self) -> int:
        """All tokens, <EOS> included."""
        return sum(length * rows for length, rows in self.lengths.items())

    def longer_than(self, context_length: int) -> int:
        """Return how many rows do not fit in a context: the last token of a row is no input."""
        return sum(rows for length, rows in self.lengths.items() if length - 1 > context_length)

    def length_at(self, *percents: int) -> list[int]:
        """Return for each percentage the smallest length that so many rows do not exceed: nearest rank."""
        lengths = np.array(sorted(self.lengths), np.int64)
        ends = np.cumsum([self.lengths[length] for length in lengths.tolist()])
        ranks = -(-np.array(percents) * self.rows // 100)  # rounded up
        return [int(length) for length in lengths[np.searchsorted(ends, ranks)]]


class Copies(NamedTuple):
    """Rows of a split that stand elsewhere as well."""

    duplicate_prompts: int
    """Rows whose prompt an earlier row of the split has."""
    prompts_in: dict[Split, int]
    """Another split -> rows whose prompt it has as well."""
    near_copies_of_train: int
    """Rows that stand in the training rows, apart from case and white space."""


def count_rows(vocabulary: Vocabulary, frame: Frame, rows: EncodedRows) -> RowCounts:
    """Count ``rows``, which ``encode_rows`` made of ``frame``."""
    prompts, completions = text_column(frame, "prompt"), text_column(frame, "completion")
    lengths, counts = np.unique(rows.row_lengths, return_counts=True)
    empty_completions = int(np.count_nonzero(text_sizes(completions) == 0))
    unknown = np.count_nonzero(rows.token_ids == vocabulary.unknown_id) if vocabulary.unknown_id is not None else 0
    return RowCounts(
        files=Counter(file_rows(frame)),
        lengths=Counter(dict(zip(lengths.tolist(), counts.tolist(), strict=True))),
        texts=2 * len(prompts) - empty_completions,
        characters=text_characters(prompts) + text_characters(completions),
        unknown_tokens=int(unknown),
        empty_prompts=int(np.count_nonzero(text_sizes(prompts) == 0)),
        empty_completions=empty_completions,
    )


def copy_keys(frame: Frame, text_key: TextKey = hash, *, near_copies: bool) -> RowKeys:
    """Return what copies of a frame's rows are known by; the second key is 0 where near-copies do not matter."""
    prompts = prompt_keys(frame, text_key)
    return np.stack([prompts, row_keys(frame, text_key) if near_copies else np.zeros_like(prompts)], axis=1)


def count_copies(keys: Mapping[Split, Iterable[RowKeys]]) -> dict[Split, Copies]:
    """Compare the keys of each split, given in blocks, with one another; many are gone through in several passes."""
    rows = {split: sum(map(len, blocks)) for split, blocks in keys.items()}
    held_out = [split for split in SPLITS[1:] if rows[split]]
    parts = 1
    while sum(rows.values()) > parts * _KEYS_AT_ONCE:
        parts *= 2
    duplicates: Counter[Split] = Counter()
    shared: Counter[tuple[Split, Split]] = Counter()
    near: Counter[Split] = Counter()
    for part in range(parts):
        prompts = {split: _of_part(blocks, 0, part, parts) for split, blocks in keys.items()}
        for split, of_split in prompts.items():
            duplicates[split] += int(np.count_nonzero(of_split[1:] == of_split[:-1]))
            for other in SPLITS:
                if other != split:
                    shared[split, other] += _count_in(of_split, prompts[other])
        training = _of_part(keys["train"] if held_out else (), 1, part, parts)
        for split in held_out:
            near[split] += _count_in(_of_part(keys[split], 1, part, parts), training)
    return {
        split: Copies(
            duplicates[split], {other: shared[split, other] for other in SPLITS if other != split}, near[split]
        )
        for split in SPLITS
    }


def _of_part(blocks: Iterable[RowKeys], which: int, part: int, parts: int) -> npt.NDArray[np.int64]:
    """Return the keys with these last bits, sorted."""
    columns = (block[:, which] for block in blocks)  # one block in memory
    return np.sort(np.concatenate([keys[keys & (parts - 1) == part] for keys in columns] or [np.empty(0, np.int64)]))


def _count_in(keys: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> int:
    """Return how many sorted keys are among others, which are sorted too: np.isin would sort both again."""
    if len(keys) == 0 or len(others) == 0:
        return 0
    places = np.minimum(np.searchsorted(others, keys), len(others) - 1)
    return int(np.count_nonzero(others[places] == keys))


def data_figures(
    counts: Mapping[Split, RowCounts],
    copies: Mapping[Split, Copies],
    context_length: int,
    vocabulary: Vocabulary,
    *,
    with_completions: bool,
) -> dict[str, Any]:
    """Return the figures of metrics/data.json; a split without rows has none.

    Args:
        counts: the sums of each split.
        copies: what of it stands elsewhere.
        context_length: the model's.
        vocabulary: what the rows are encoded with.
        with_completions: whether the table has them.
    """
    figures: dict[str, Any] = {"context_length": context_length}
    for split in SPLITS:
        if counts[split].rows:
            others = [other for other in SPLITS if other != split and counts[other].rows]
            figures[split] = _split_figures(counts[split], copies[split], context_length)
            if vocabulary.unknown_id is not None:
                figures[split]["unknown_tokens"] = counts[split].unknown_tokens
            if with_completions:
                figures[split]["empty_completions"] = counts[split].empty_completions
            figures[split] |= {f"prompts_in_{other}": copies[split].prompts_in[other] for other in others}
            if split != "train":
                figures[split]["near_copies_of_train"] = copies[split].near_copies_of_train
    return figures


def rows_by_file(counts: Mapping[Split, RowCounts]) -> list[tuple[str, Split, int]]:
    """Return (file, split, rows) for each file and split that has rows; files by their names within their folder."""
    files = sorted({file for of_split in counts.values() for file in of_split.files})
    folder = os.path.commonpath([os.path.dirname(file) for file in files])  # noqa: PTH120 - of a name, no file is looked for
    names = {file: os.path.relpath(file, folder or ".").replace(os.sep, "/") for file in files}
    return [(names[file], split, rows) for file in files for split in SPLITS if (rows := counts[split].files[file])]


def _split_figures(counts: RowCounts, copies: Copies, context_length: int) -> dict[str, Any]:
    median, p95, p99 = counts.length_at(50, 95, 99)
    longer, text_tokens = counts.longer_than(context_length), counts.tokens - counts.texts
    return {
        "rows": counts.rows,
        "tokens": counts.tokens,
        "text_tokens": text_tokens,
        "tokens_per_row": {"median": median, "p95": p95, "p99": p99, "longest": max(counts.lengths)},
        "characters_per_token": round(counts.characters / text_tokens, 4) if text_tokens else 0.0,
        "longer_than_context": longer,
        "share_longer_than_context": round(longer / counts.rows, 6),
        "empty_prompts": counts.empty_prompts,
        "duplicate_prompts": copies.duplicate_prompts,
    }


def fitting_rows(counts: Mapping[Split, RowCounts]) -> list[tuple[Split, int, float]]:
    """Return (split, context_length, share of its rows that fit in it), at each hundredth of the rows."""
    table = []
    for split in SPLITS:
        if counts[split].rows:
            for length in dict.fromkeys(counts[split].length_at(*_PERCENTS)):
                fitting = 1 - counts[split].longer_than(length - 1) / counts[split].rows
                table.append((split, length - 1, round(fitting, 6)))
    return table
