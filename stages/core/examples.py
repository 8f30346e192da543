"""The examples of one split: its windows, and their batches.

Shapes: B examples in a batch, T tokens.
"""

import numpy as np

from stages.core.windows import (
    DatasetParams,
    Int64s,
    Integers,
    RowSpans,
    WindowIndex,
    Windows,
    gather,
    row_index,
    row_windows,
    stream_index,
    stream_windows,
    target_positions,
)


class Examples:
    """Reads windows of a split, however it is packed."""

    def __init__(
        self, token_ids: Integers, spans: RowSpans, parameters: DatasetParams, context_length: int, eos_id: int
    ) -> None:
        """Take the split's tokens, which may be memory-mapped, and how they are cut and scored."""
        self.spans = spans
        self._token_ids = token_ids
        self._parameters = parameters
        self._context_length = context_length
        self._eos_id = eos_id

    def windows(self, offset: int = 0) -> Windows:
        """Return the windows that cover the split, each target scored once; ``offset`` moves the cut of a stream."""
        if self._parameters.packing == "rows":
            return row_windows(self.spans.row_offsets, self._context_length, self._parameters.stride)
        return stream_windows(len(self._token_ids), self._context_length, self._parameters.stride, offset)

    def index(self, offset: int = 0) -> WindowIndex:
        """Return the same windows by their numbers, without a list of them."""
        if self._parameters.packing == "rows":
            return row_index(self.spans.row_offsets, self._context_length, self._parameters.stride)
        return stream_index(len(self._token_ids), self._context_length, self._parameters.stride, offset)

    def full_range(self, offset: int) -> range:
        """Return the numbers of the windows for one pass of training: of a stream only those of full length."""
        inputs = len(self._token_ids) - 1 - offset
        if self._parameters.packing == "rows" or inputs < self._context_length:
            return range(len(self.index(offset)))
        first = 1 if offset else 0  # before the offset lies one short window
        return range(
            first, first + 1 + (inputs - self._context_length) // (self._parameters.stride or self._context_length)
        )

    def full_windows(self, offset: int) -> Windows:
        """Return the windows for one pass of training."""
        numbers = self.full_range(offset)
        return self.windows(offset).select(slice(numbers.start, numbers.stop))

    def largest_offset(self) -> int:
        """Return how far the cut of a stream can move: 0 for rows, and for a stream too short to lose a context."""
        inputs = len(self._token_ids) - 1
        moves = self._parameters.packing == "stream" and inputs >= 2 * self._context_length
        return self._context_length - 1 if moves else 0

    def examples_per_epoch(self) -> int:
        """Return the number of examples in one pass of training, the same for every offset."""
        return len(self.full_range(self.largest_offset()))

    def gather(self, windows: Windows) -> tuple[Int64s, Int64s]:
        """Read windows as input_ids and targets, [B, T], as long as the longest of them."""
        only_completions = self.spans if self._parameters.loss_on == "completion" else None
        return gather(self._token_ids, windows, _longest(windows), self._eos_id, only_completions)

    def target_positions(self, windows: Windows) -> Int64s:
        """Return where in the split each target of ``gather`` stands, [B, T]; of padding, where the window ends."""
        return target_positions(windows, _longest(windows))

    def token_ids(self, start: int, end: int) -> Integers:
        """Return the tokens of the split from ``start`` to ``end``."""
        return self._token_ids[start:end]

    def rows_with_completion(self) -> Int64s:
        """Return the numbers of the rows that have a completion."""
        return np.flatnonzero(self.spans.completion_starts < self.spans.row_offsets[1:])

    def prompt_and_rest(self, row: int) -> tuple[list[int], list[int]]:
        """Return a row's prompt as the model reads it, and what follows: its completion, or a text's second half."""
        start, completion, end = (
            int(edge)
            for edge in (
                self.spans.row_offsets[row],
                self.spans.completion_starts[row],
                self.spans.row_offsets[row + 1],
            )
        )
        cut = completion if completion < end else start + (end - start) // 2
        return self._token_ids[start:cut].tolist(), self._token_ids[cut:end].tolist()


def _longest(windows: Windows) -> int:
    return int((windows.ends - windows.starts).max())
