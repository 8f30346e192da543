from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.windows import (
    IGNORE_INDEX,
    PASS_TOKENS,
    RowSpans,
    Windows,
    gather,
    pass_lengths,
    passes,
    row_index,
    row_windows,
    stream_index,
    stream_windows,
    target_positions,
)
from stages.errors import UserError

CONTEXT_AND_STRIDE = st.integers(1, 9).flatmap(lambda c: st.tuples(st.just(c), st.none() | st.integers(1, c)))


def offsets_of(lengths: list[int]) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(lengths, np.int64))])


def scored(windows: Windows, context_length: int, tokens: int, spans: RowSpans | None = None) -> Counter[int]:
    """Count how often ``gather`` scores each position, checking every value it gives on the way."""
    token_ids = np.arange(tokens, dtype=np.uint16)  # so that a token is its own position
    input_ids, targets = gather(token_ids, windows, context_length, 60_000, spans)
    positions = target_positions(windows, context_length)
    is_scored = targets != IGNORE_INDEX
    assert (targets[is_scored] == positions[is_scored]).all()
    assert (input_ids[is_scored] == positions[is_scored] - 1).all()
    inputs = np.arange(context_length) < (windows.ends - windows.starts)[:, None]
    assert ((input_ids == 60_000) == ~inputs).all()
    return Counter(targets[is_scored].tolist())


@given(st.lists(st.integers(0, 30)), CONTEXT_AND_STRIDE)
def test_rows_score_every_token_but_the_first_of_each_row_once(
    lengths: list[int], sizes: tuple[int, int | None]
) -> None:
    offsets = offsets_of(lengths)
    windows = row_windows(offsets, *sizes)
    firsts = set(offsets[:-1].tolist())
    tokens = sum(lengths)
    assert scored(windows, sizes[0], tokens) == Counter(p for p in range(tokens) if p not in firsts)
    rows = np.searchsorted(offsets, windows.starts, side="right")
    assert (np.searchsorted(offsets, windows.ends, side="right") == rows).all()


@given(st.integers(0, 60), CONTEXT_AND_STRIDE, st.data())
def test_stream_scores_every_token_but_the_first_once_wherever_it_is_cut(
    tokens: int, sizes: tuple[int, int | None], data: st.DataObject
) -> None:
    offset = data.draw(st.integers(0, sizes[0]))
    windows = stream_windows(tokens, *sizes, offset)
    assert scored(windows, sizes[0], tokens) == Counter(range(1, tokens))
    assert (windows.ends - windows.starts <= sizes[0]).all()


@given(
    lengths=st.lists(st.tuples(st.integers(1, 10), st.integers(0, 10)), min_size=1),
    sizes=CONTEXT_AND_STRIDE,
    stream=st.booleans(),
)
def test_only_completions_are_scored_when_asked_for(
    lengths: list[tuple[int, int]], sizes: tuple[int, int | None], *, stream: bool
) -> None:
    offsets = offsets_of([prompt + completion for prompt, completion in lengths])
    spans = RowSpans(offsets, offsets[:-1] + np.array([prompt for prompt, _ in lengths]))
    tokens = int(offsets[-1])
    windows = stream_windows(tokens, *sizes) if stream else row_windows(offsets, *sizes)
    expected = [p for row, (_, c) in enumerate(lengths) for p in range(offsets[row + 1] - c, offsets[row + 1])]
    assert scored(windows, sizes[0], tokens, spans) == Counter(expected)
    assert spans.is_completion(np.arange(tokens)).nonzero()[0].tolist() == expected


@given(st.lists(st.integers(0, 30), max_size=200), CONTEXT_AND_STRIDE, st.data())
def test_windows_by_number_are_those_of_the_list(
    lengths: list[int], sizes: tuple[int, int | None], data: st.DataObject
) -> None:
    offsets = offsets_of(lengths)
    cut = data.draw(st.integers(0, sizes[0]))
    for listed, index in (
        (row_windows(offsets, *sizes), row_index(offsets, *sizes)),
        (stream_windows(sum(lengths), *sizes, cut), stream_index(sum(lengths), *sizes, cut)),
    ):
        assert len(index) == len(listed)
        numbers = np.array(data.draw(st.permutations(range(len(listed)))), dtype=np.int64)
        for name, values in vars(index.at(numbers)).items():
            np.testing.assert_array_equal(values, vars(listed)[name][numbers])


def test_the_seeds_rows() -> None:
    token_ids = np.array([0, 1, 2, 4, 3, 4, 2, 1, 0, 4, 3, 4], dtype=np.uint8)
    windows = row_windows(np.array([0, 6, 12]), 6, None)
    input_ids, targets = gather(token_ids, windows, 5, 4)
    assert input_ids.tolist() == [[0, 1, 2, 4, 3], [2, 1, 0, 4, 3]]
    assert targets.tolist() == [[1, 2, 4, 3, 4], [1, 0, 4, 3, 4]]


def test_overlapping_windows_give_what_was_scored_before_as_context() -> None:
    windows = stream_windows(8, 4, 2)
    assert windows.starts.tolist() == [0, 2, 4]
    assert windows.ends.tolist() == [4, 6, 7]
    assert windows.scored_from.tolist() == [1, 5, 7]


def test_a_stride_that_skips_tokens_is_refused() -> None:
    with pytest.raises(UserError, match=r"dataset\.stride: found 7.*model\.context_length \(6\).*allowed: 1 to 6"):
        row_windows(np.array([0, 6]), 6, 7)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=200))
def test_no_row_is_cut_and_each_pass_saves_more_padding_than_it_costs(lengths: list[int]) -> None:
    rows = np.array(lengths)
    padded = pass_lengths(rows)
    assert (padded >= rows).all()
    assert set(padded.tolist()) <= set(lengths)
    found = list(passes(padded))
    assert sorted(row for which, _ in found for row in np.arange(len(rows))[which].tolist()) == list(range(len(rows)))
    assert all((padded[which] == length).all() for which, length in found)
    assert padded.sum() + PASS_TOKENS * (len(found) - 1) <= len(rows) * rows.max()


def test_rows_of_like_length_have_one_pass() -> None:
    padded = pass_lengths(np.array([90, 10, 12, 88, 11] * 10))
    assert padded.tolist() == [90, 12, 12, 90, 12] * 10
    assert pass_lengths(np.array([10, 12, 11] * 10)).tolist() == [12, 12, 12] * 10
    assert [which for which, _ in passes(np.full(3, 7))] == [slice(None)]  # and is not copied
