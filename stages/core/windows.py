"""Cut token_ids into the windows that a model trains on and is scored on.

A window reads ``token_ids[start:end]`` and predicts ``token_ids[start + 1:end + 1]``. Windows may overlap, to give
every target more context; the targets that an earlier window has scored are then context only, so that each target is
scored exactly once.

Shapes: B windows in a batch, T tokens, R rows, W windows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic

from stages.core.params_model import ParamsModel
from stages.errors import UserError

IGNORE_INDEX = -100
"""The target of a place that is not scored."""

PASS_TOKENS = 256
"""Padding whose computation takes about as long as one more pass through a small network on a CPU."""

Integers = npt.NDArray[np.integer[Any]]
Int64s = npt.NDArray[np.int64]


class ContextParams(ParamsModel, extra="ignore"):
    """What the preparation of the data reads of the section ``model`` of params.yaml."""

    context_length: int = pydantic.Field(ge=2, le=2**20)
    """The most tokens the model reads at once."""


class DatasetParams(ParamsModel):
    """How token_ids become windows, and which targets carry loss."""

    packing: Literal["rows", "stream"]
    """rows: a window never leaves its row; stream: the rows are laid end to end and windows cross them."""
    loss_on: Literal["all", "completion"]
    """all: every target carries loss; completion: only the targets in a completion do."""
    stride: int | None = pydantic.Field(ge=1)
    """Tokens from one window's start to the next one's; null: the context length, so that windows do not overlap."""


@dataclass(frozen=True)
class Windows:
    """W windows, as absolute positions in token_ids, in the order of the text."""

    starts: Int64s
    """[W] the first input."""
    ends: Int64s
    """[W] one past the last input, which is the last target."""
    scored_from: Int64s
    """[W] the first target that no earlier window has scored."""

    def __len__(self) -> int:
        return len(self.starts)

    def select(self, which: Int64s | npt.NDArray[np.bool_] | slice) -> "Windows":
        """Return the windows at these indices, in their order, or where a mask is true."""
        return Windows(self.starts[which], self.ends[which], self.scored_from[which])


@dataclass(frozen=True)
class RowSpans:
    """Where the rows and their completions lie in token_ids."""

    row_offsets: Integers
    """[R + 1] row r is token_ids[row_offsets[r]:row_offsets[r + 1]]."""
    completion_starts: Integers
    """[R] the first token of row r's completion; row_offsets[r + 1] where it has none."""

    def row_of(self, positions: Integers) -> Int64s:
        """Return the row of each position in token_ids, whatever the shape."""
        return np.searchsorted(self.row_offsets, positions, side="right") - 1

    def is_completion(self, positions: Integers) -> npt.NDArray[np.bool_]:
        """Return for each position in token_ids, whatever the shape, whether it belongs to a completion."""
        return np.asarray(positions >= self.completion_starts[self.row_of(positions)])


class WindowIndex:
    """The windows of a text by their numbers: any of them, without a list of all.

    For 64 spans it keeps one number. A span is what no window leaves: a row, or a piece of a stream.
    """

    _SPANS = 64
    _SPANS_AT_ONCE = 1 << 20

    def __init__(self, edges: Integers, targets_only: int, context_length: int, stride: int | None) -> None:
        """Count the windows.

        Args:
            edges: [S + 1], may be memory-mapped; the inputs of span s are edges[s] to edges[s + 1] - targets_only.
            targets_only: tokens at the end of a span that are no inputs.
            context_length: the most inputs of a window.
            stride: tokens from one window's start to the next one's; None: ``context_length``.
        """
        self._edges, self._targets_only = edges, targets_only
        self._context_length, self._stride = context_length, _checked_stride(context_length, stride)
        counts = [np.zeros(1, dtype=np.int64)]
        for first in range(0, len(edges) - 1, self._SPANS_AT_ONCE):
            some = np.asarray(edges[first : first + self._SPANS_AT_ONCE + 1], dtype=np.int64)
            windows = _window_counts(np.diff(some) - targets_only, context_length, self._stride)
            counts.append(np.add.reduceat(windows, np.arange(0, len(windows), self._SPANS)))
        self._before = np.cumsum(np.concatenate(counts))  # the windows before each 64 spans, and all

    def __len__(self) -> int:
        return int(self._before[-1])

    def at(self, numbers: Int64s) -> Windows:
        """Return the windows with these numbers, [B], in their order; 0 is the first of the text."""
        block = np.searchsorted(self._before, numbers, side="right") - 1
        spans = block[:, None] * self._SPANS + np.arange(self._SPANS + 1)
        edges = np.asarray(self._edges[np.minimum(spans, len(self._edges) - 1)], dtype=np.int64)  # [B, 65]
        counts = _window_counts(np.diff(edges) - self._targets_only, self._context_length, self._stride)
        within = numbers - self._before[block]
        until = np.cumsum(counts, axis=1)
        span = (until <= within[:, None]).sum(axis=1)
        rows = np.arange(len(numbers))
        nth = within - until[rows, span] + counts[rows, span]
        ends = edges[rows, span + 1] - self._targets_only
        return _nth_windows(edges[rows, span], ends, nth, self._context_length, self._stride)


def row_index(row_offsets: Integers, context_length: int, stride: int | None) -> WindowIndex:
    """Return the windows of ``row_windows``, by their numbers."""
    return WindowIndex(row_offsets, 1, context_length, stride)


def stream_index(tokens: int, context_length: int, stride: int | None, offset: int = 0) -> WindowIndex:
    """Return the windows of ``stream_windows``, by their numbers."""
    return WindowIndex(_stream_edges(tokens, context_length, offset), 0, context_length, stride)


def row_windows(row_offsets: Integers, context_length: int, stride: int | None) -> Windows:
    """Cut every row by itself, into windows of at most ``context_length`` inputs.

    Args:
        row_offsets: [R + 1] row r is token_ids[row_offsets[r]:row_offsets[r + 1]].
        context_length: the most inputs of a window.
        stride: tokens from one window's start to the next one's; None: ``context_length``.

    Raises:
        UserError: the stride would leave tokens unseen.
    """
    stride = _checked_stride(context_length, stride)
    offsets = np.asarray(row_offsets, dtype=np.int64)
    # A row of n tokens has n - 1 inputs: its last token is a target only.
    return _cut(offsets[:-1], offsets[1:] - 1, context_length, stride)


def stream_windows(tokens: int, context_length: int, stride: int | None, offset: int = 0) -> Windows:
    """Cut ``tokens`` tokens, laid end to end, into windows of at most ``context_length`` inputs.

    Args:
        tokens: how many tokens there are.
        context_length: the most inputs of a window.
        stride: tokens from one window's start to the next one's; None: ``context_length``.
        offset: where the second window starts; the first one then has ``offset`` inputs. Training draws another offset
            for each pass, so that a token does not always meet the same context. At most ``context_length``.

    Raises:
        UserError: the stride would leave tokens unseen.
    """
    stride = _checked_stride(context_length, stride)
    edges = _stream_edges(tokens, context_length, offset)
    return _cut(edges[:-1], edges[1:], context_length, stride)


def target_positions(windows: Windows, length: int) -> Int64s:
    """Return the positions [B, length] in token_ids of the targets that ``gather`` returns.

    Past the end of a shorter window they repeat its last target: use them where targets differ from IGNORE_INDEX.
    """
    positions = windows.starts[:, None] + np.arange(1, length + 1)
    return np.asarray(np.minimum(positions, windows.ends[:, None]))


def gather(
    token_ids: Integers,
    windows: Windows,
    length: int,
    eos_id: int,
    only_completions: RowSpans | None = None,
) -> tuple[Int64s, Int64s]:
    """Read windows as one batch, with one index operation.

    Args:
        token_ids: [tokens] all tokens; may be memory-mapped.
        windows: B of those that ``row_windows`` or ``stream_windows`` gave for them.
        length: the inputs of each row of the batch; at least as many as the longest of these windows has.
        eos_id: pads the inputs on the right.
        only_completions: where the completions lie, if only they carry loss.

    Returns:
        input_ids [B, length] and targets [B, length], which are IGNORE_INDEX where they carry no loss.
    """
    starts, ends = windows.starts[:, None], windows.ends[:, None]
    positions = starts + np.arange(length + 1)  # [B, length + 1]: the inputs and one more, since targets are one ahead
    taken = token_ids[np.minimum(positions, ends)].astype(np.int64)
    input_ids = np.where(positions[:, :-1] < ends, taken[:, :-1], eos_id)
    scored = (positions[:, 1:] <= ends) & (positions[:, 1:] >= windows.scored_from[:, None])
    if only_completions is not None:
        scored &= only_completions.is_completion(np.minimum(positions[:, 1:], ends))
    return input_ids, np.where(scored, taken[:, 1:], IGNORE_INDEX)


def pass_lengths(lengths: Int64s) -> Int64s:
    """Return to how many tokens each row of a batch is padded, [B], where rows of like length have a pass of their own.

    Args:
        lengths: [B] the inputs of each row.

    Shorter rows have a pass of their own where that saves enough padding.
    """
    order = np.argsort(-lengths, kind="stable")
    padded = np.empty_like(lengths)
    padded[order] = _padded(lengths[order])
    return padded


def passes(padded: Int64s) -> Iterator[tuple[Int64s | slice, int]]:
    """Yield the rows of each pass, and their length, from what ``pass_lengths`` returned or some rows of it."""
    lengths = np.unique(padded).tolist()
    for length in lengths:
        yield np.flatnonzero(padded == length) if len(lengths) > 1 else slice(None), length


def _padded(falling: Int64s) -> Int64s:
    saved = np.arange(len(falling), 0, -1) * (falling[0] - falling)  # by a cut before each row
    cut = int(saved.argmax())
    if saved[cut] < PASS_TOKENS:
        return np.full_like(falling, falling[0])
    return np.concatenate([_padded(falling[:cut]), _padded(falling[cut:])])


def _checked_stride(context_length: int, stride: int | None) -> int:
    if stride is not None and stride > context_length:
        raise UserError(
            f"dataset.stride: found {stride}, which is more than model.context_length ({context_length}), so that "
            f"tokens would be skipped; allowed: 1 to {context_length}, or null for windows that do not overlap"
        )
    return context_length if stride is None else stride


def _cut(span_starts: Int64s, span_ends: Int64s, context_length: int, stride: int) -> Windows:
    """Cut each span of inputs, [start, end), into windows; a span without inputs gives none."""
    counts = _window_counts(span_ends - span_starts, context_length, stride)
    spans = np.repeat(np.arange(len(counts)), counts)  # [W] the span of each window
    first_windows = np.cumsum(counts) - counts
    nth = np.arange(len(spans)) - first_windows[spans]  # [W] 0 for the first window of a span
    return _nth_windows(span_starts[spans], span_ends[spans], nth, context_length, stride)


def _stream_edges(tokens: int, context_length: int, offset: int) -> Int64s:
    """Return where the inputs of the two spans of a stream begin and end, [3]: before and after ``offset``."""
    if not 0 <= offset <= context_length:
        raise ValueError(f"offset {offset} is not within 0 and the context length {context_length}")
    return np.array([0, min(offset, max(tokens - 1, 0)), max(tokens - 1, 0)], dtype=np.int64)


def _window_counts(inputs: Int64s, context_length: int, stride: int) -> Int64s:
    """Return the windows of spans with so many inputs, whatever the shape."""
    further = -((context_length - inputs) // stride)  # after the first: ceil((inputs - context_length) / stride)
    return np.where(inputs > 0, 1 + np.maximum(further, 0), 0)


def _nth_windows(span_starts: Int64s, span_ends: Int64s, nth: Int64s, context_length: int, stride: int) -> Windows:
    """Return a window of each span, [W], the nth, from 0."""
    starts = span_starts + nth * stride
    ends = np.minimum(starts + context_length, span_ends)
    # Only the last window of a span is short, so the window before ends context_length after its start.
    scored_from = starts + 1 + np.where(nth > 0, context_length - stride, 0)
    return Windows(starts, ends, scored_from)
