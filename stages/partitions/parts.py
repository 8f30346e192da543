"""Cut a table into parts that are read by themselves: files, row groups of Parquet, bytes of a text table between two rows.

In CSV a line end may stand within quotes, and whether a byte does depends on all quotes before it: on whether their number is
even. So each range of bytes is looked through for both cases, all ranges at once, and then one case after the other is chosen.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.artifacts.prompts_table import Source
from stages.artifacts.table_columns import Part
from stages.artifacts.table_text import UTF8_MARK, beside_quotes, delimiter_of, is_compressed, is_json_lines

PART_BYTES = 1 << 24
"""Of a part, about: many workers have something to do, and what is made of a part fits into memory many times."""


class SourcePart(NamedTuple):
    """What one task reads."""

    source: Source
    part: Part | None
    """None: the whole file."""


class RangeFacts(NamedTuple):
    """What one pass finds in some bytes of a CSV file: for the case that they begin outside of quotes, and inside."""

    odd: bool
    """Whether their number of quotes is odd."""
    clear: tuple[bool, bool]
    """Whether every quote opens or closes a cell, or is one of two within a cell."""
    first_row: tuple[int | None, int | None]
    """The byte after the first line end outside of quotes."""


Range = tuple[Path, int, int, str]
"""What ``scan_range`` takes."""
Scan = Callable[[list[Range]], Iterable[RangeFacts]]
"""Calls ``scan_range`` with each of several ranges, at once if it can."""


def find_parts(sources: Sequence[Source], delimiter: str | None, scan: Scan) -> Iterator[SourcePart]:
    """Yield the parts of all files, in the order of their rows.

    Args:
        sources: the files.
        delimiter: what separates cells; None: by the file's name.
        scan: looks through ranges of bytes.
    """
    for source in sources:
        for part in _parts_of(source.path, delimiter, scan):
            yield SourcePart(source, part)


def _parts_of(path: Path, delimiter: str | None, scan: Scan) -> Sequence[Part | None]:
    size = path.stat().st_size
    if path.suffix == ".parquet":
        return _row_groups(path)
    if size <= PART_BYTES or is_compressed(path):
        return [None]
    edges = [*range(0, size, PART_BYTES), size]
    if is_json_lines(path):
        rows: Iterable[int] | None = _line_begins(path, edges[1:-1])
    else:
        mark = delimiter_of(path, delimiter)
        rows = _row_begins(list(scan([(path, begin, end, mark) for begin, end in pairwise(edges)])))
    if rows is None:
        return [None]
    begins = sorted({0, *rows} - {size})
    return [Part(begin, end) for begin, end in pairwise([*begins, size])]


def _row_groups(path: Path) -> list[Part | None]:
    """Return successive row groups of about ``PART_BYTES``."""
    from pyarrow import ArrowInvalid, parquet  # noqa: PLC0415 - takes a while

    try:
        with parquet.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups)]
    except ArrowInvalid:
        return [None]  # who reads it says what is wrong
    ends = np.cumsum(sizes) // PART_BYTES
    begins = [0, *(np.flatnonzero(np.diff(ends)) + 1).tolist(), len(sizes)]
    return [Part(begin, end) for begin, end in pairwise(begins) if end > begin] or [None]


def _line_begins(path: Path, edges: Iterable[int]) -> Iterator[int]:
    """Yield where the first line after each of these bytes begins."""
    with path.open("rb") as file:
        for edge in edges:
            file.seek(edge)
            file.readline()
            yield file.tell()


def _row_begins(ranges: Sequence[RangeFacts]) -> list[int] | None:
    """Return where the first row of each range but the first begins; None where quotes leave open what is a row."""
    inside, begins = False, []
    for found in ranges:
        if not found.clear[inside]:
            return None
        begins.append(found.first_row[inside])
        inside ^= found.odd
    return None if inside else [begin for begin in begins[1:] if begin is not None]


def scan_range(path: Path, begin: int, end: int, delimiter: str) -> RangeFacts:
    """Look through the bytes of a CSV file from ``begin`` to ``end``."""
    with path.open("rb") as file:
        start = len(UTF8_MARK) if file.read(len(UTF8_MARK)) == UTF8_MARK else 0  # of the text
        begin = max(begin, start)
        file.seek(max(begin - 1, start))
        block = file.read(end + 1 - file.tell())
    # What a quote is depends on its neighbours, of which the first and the last one are in other ranges, or line ends.
    block = b"\n" * (begin == start) + block
    block += b"\n" * (end + 2 - begin - len(block))
    data = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(data[1:-1] == ord('"')) + 1
    line_ends = np.flatnonzero(data[1:-1] == ord("\n")) + 1
    odd_before = np.searchsorted(quotes, line_ends) % 2
    beside = beside_quotes(delimiter)
    clear, first_row = [], []
    for inside in (0, 1):
        opening, closing = quotes[inside::2], quotes[1 - inside :: 2]
        clear.append(bool(beside[data[opening - 1]].all() and beside[data[closing + 1]].all()))
        outside = line_ends[odd_before == inside]
        first_row.append(begin + int(outside[0]) if len(outside) else None)
    return RangeFacts(len(quotes) % 2 == 1, (clear[0], clear[1]), (first_row[0], first_row[1]))
