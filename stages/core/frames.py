"""Frames of rows: pandas frames with Arrow strings, or the Arrow tables that these wrap, which are quicker to have.

A frame has the columns prompt, completion (empty where there is none), split, file and row, which say where a row stands, and
group where rows are grouped.
What takes a frame takes any part of one, so that another engine can run it on partitions.

Shapes: R rows.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.core.split import SPLITS, Split, SplitParams, splits_of
from stages.errors import UserError

Frame = Any
"""``pandas.DataFrame`` or ``pyarrow.Table``; importing pandas here would double the time in which a stage starts."""


_FIRST_OF_CHARACTER = -0x40  # as a signed byte: 0x80 to 0xBF continue a character


class UnusableTextError(UserError):
    """A text that a vocabulary cannot be built from, or that it cannot encode."""

    def __init__(self, message: str, row: int = 0, column: str = "prompt") -> None:
        """Keep which text it is: its row in the frame, and its column."""
        super().__init__(message)
        self.row = row
        self.column = column


def place(frame: Frame, row: int, column: str) -> str:
    """Return in words where a cell of a frame stands; ``row`` counts the frame's rows from 0."""
    file, number = (_array(frame, name)[row].as_py() for name in ("file", "row"))
    return f"{file}, row {number}, {column}"


def text_column(frame: Frame, name: str) -> pa.StringArray:
    """Return a column of text as one Arrow array; it shares its memory with the frame."""
    column = _array(frame, name)
    if column.type != pa.string():
        column = column.cast(pa.string())
    return column.fill_null("") if column.null_count else column


def _array(frame: Frame, name: str) -> pa.Array:
    column = frame[name]
    if not isinstance(column, pa.Array | pa.ChunkedArray):
        column = pa.array(column, from_pandas=True)
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies even one chunk


def text_offsets(texts: pa.StringArray) -> npt.NDArray[np.int32]:
    """Return where each text begins in ``texts.buffers()[2]``, and where the last one ends, [R + 1]."""
    return np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]


def text_sizes(texts: pa.StringArray) -> npt.NDArray[np.int32]:
    """Return the UTF-8 bytes of each text, [R]."""
    return np.diff(text_offsets(texts))


def text_data(texts: pa.StringArray) -> memoryview:
    """Return the UTF-8 bytes of all texts, laid end to end."""
    offsets, data = text_offsets(texts), texts.buffers()[2]
    return memoryview(data or b"")[offsets[0] : offsets[-1]]


def joined_texts(frame: Frame, end: str) -> memoryview:
    """Return in UTF-8 the first row's prompt and completion, the second row's, and so on, each ended by ``end``.

    A row without a completion has its prompt only.
    """
    from pyarrow import compute  # noqa: PLC0415 - takes a while

    prompts, completions = text_column(frame, "prompt"), text_column(frame, "completion")
    absent = text_sizes(completions) == 0
    if absent.any():
        completions = compute.if_else(pa.array(~absent), completions, None)
    return text_data(compute.binary_join_element_wise(prompts, completions, "", end, null_handling="skip"))


def text_characters(texts: pa.StringArray) -> int:
    """Return the code points of all texts: every byte that does not continue one."""
    return int(np.count_nonzero(np.frombuffer(text_data(texts), np.int8) >= _FIRST_OF_CHARACTER))


def file_rows(frame: Frame) -> dict[str, int]:
    """Return how many rows come from each file."""
    column = _array(frame, "file")
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    counts = np.bincount(encoded.indices.to_numpy(), minlength=len(encoded.dictionary)).tolist()
    return {file: rows for file, rows in zip(encoded.dictionary.to_pylist(), counts, strict=True) if rows}


def split_codes(frame: Frame) -> npt.NDArray[np.int8]:
    """Return the split of each row, [R], as its place in ``SPLITS``."""
    column = _array(frame, "split")
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    codes = np.array([SPLITS.index(name) for name in encoded.dictionary.to_pylist()], np.int8)
    return np.asarray(codes[encoded.indices.to_numpy()])


def drawn_splits(frame: Frame, parameters: SplitParams) -> npt.NDArray[np.int8]:
    """Draw the split of each row by ``splits_of``, [R]."""
    prompts = text_column(frame, "prompt")
    if parameters.validation + parameters.test == 0:
        return np.full(len(prompts), SPLITS.index("train"), np.int8)
    texts = prompts.cast(pa.binary()).to_pylist()
    for row in np.flatnonzero(text_sizes(prompts) == 0).tolist():
        texts[row] = text_column(frame, "completion")[row].as_py().encode()
    return splits_of(texts, parameters)


def rows_of(frame: Frame, split: Split) -> Frame:
    """Return the rows of one split."""
    chosen = split_codes(frame) == SPLITS.index(split)
    if chosen.all():
        return frame
    return frame.filter(pa.array(chosen)) if isinstance(frame, pa.Table) else frame[chosen]


def find_unusable_text(frame: Frame, use: Callable[[str], object]) -> None:
    """Call ``use`` with one text after another; raise its UnusableTextError with the place of the text."""
    columns = {name: text_column(frame, name) for name in ("prompt", "completion")}
    for row in range(len(frame)):
        for name, texts in columns.items():
            try:
                use(texts[row].as_py())
            except UnusableTextError as error:
                raise UnusableTextError(str(error), row, name) from None
