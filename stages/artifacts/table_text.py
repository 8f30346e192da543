"""Text tables (CSV, TSV, JSON Lines) as a stream of blocks, each read by Arrow, or record by record where that is not enough.

Arrow takes a block only if its bytes leave no doubt. Another block, and one that Arrow refuses, is read by Python's ``csv``
or ``json``, which takes what is allowed and names what is not, with its row, line and byte.
"""

import csv
import io
import json
import lzma
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.artifacts.table_columns import (
    Columns,
    Part,
    Rows,
    Wanted,
    checked_row,
    field_of,
    find_column,
    only_chunk,
    plain_text,
    sound_columns,
    to_columns,
)
from stages.errors import UserError

_BLOCK_BYTES = 1 << 20  # read at once; a frame is the rows of one block
_LONGEST = 1 << 26  # bytes of a line and characters of a cell: a file past it is no table, or has an open quote
UTF8_MARK = b"\xef\xbb\xbf"
_FOREIGN = {
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
    b"PAR1": "Parquet; let its name end in .parquet",
    b"PK\x03\x04": "a ZIP archive or a workbook; save the table in it as CSV",
    b"\x1f\x8b": "compressed by gzip; let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; let its name end in .zst",
    b"BZh": "compressed by bzip2; let its name end in .bz2",
    b"\xfd7zXZ": "compressed by xz; let its name end in .xz",
}

Record = TypeVar("Record")


@dataclass(frozen=True)
class _Place:
    """Where in a file a record begins."""

    path: Path
    row: int
    """0 is the header."""
    line: int
    """The first one is 1."""
    byte: int

    def error(self, fault: str) -> UserError:
        return UserError(f"{self.path}, {f'row {self.row}' if self.row else 'header'} (line {self.line}): {fault}")


def read_text(path: Path, wanted: Wanted, delimiter: str | None, part: Part | None = None) -> Iterator[Rows]:
    """Yield the rows of a CSV, TSV or JSON Lines file, block by block.

    Args:
        path: the file.
        wanted: its columns to read.
        delimiter: what separates cells; None: a comma, in .tsv a tab.
        part: of a file that is not compressed, the bytes to read; rows are then numbered from the first one in it.

    Raises:
        UserError: the file is not such a table; the message names its first fault.
    """
    with open_text(path) as file:
        block = bytearray(_read(path, file, _BLOCK_BYTES + len(UTF8_MARK)))
        for mark, found in _FOREIGN.items():
            if block.startswith(mark):
                raise UserError(f"{path}, header (line 1): the file is {found}")
        place = _Place(path, row=0, line=1, byte=len(UTF8_MARK) if block.startswith(UTF8_MARK) else 0)
        del block[: place.byte]
        table = _JsonLines(wanted) if is_json_lines(path) else _Csv(wanted, delimiter_of(path, delimiter))
        size, limit, last = _BLOCK_BYTES, sys.maxsize, False
        while block or not last:
            before, (columns, place) = place, table.read(block, place, last=last)
            del block[: place.byte - before.byte]
            if before.row == 0 < place.row and part is not None:  # after the header
                limit, last, place = part.end, False, replace(place, byte=max(place.byte, part.begin))
                file.seek(place.byte)
                block.clear()
            if columns and len(columns["prompt"]):
                yield Rows(before.row, columns)
            columns = None  # its memory is free for what is read next
            if last and place == before:
                break
            if place == before and len(block) > _LONGEST:  # no record is as long: read on, it has an open quote
                last = True
            elif not last:
                # Where a record goes on after the block, more each time, so that it is looked through few times.
                size = max(_BLOCK_BYTES, len(block) // 4) if place == before else _BLOCK_BYTES
                more = _read(path, file, max(0, min(size, limit - place.byte - len(block))))
                block += more
                last = len(more) < size
    if place.row == 0:
        raise UserError(f"{path}: the file is empty; its first line must name the columns")


def is_json_lines(path: Path) -> bool:
    """Return whether a text table is JSON Lines, by its name."""
    return bool({".jsonl", ".ndjson"} & set(path.suffixes))


def is_compressed(path: Path) -> bool:
    """Return whether a text table is compressed, by its name."""
    return path.suffix in {".gz", ".bz2", ".zst", ".xz"}


def delimiter_of(path: Path, given: str | None) -> str:
    """Return what separates the cells of a text table: what is given, or by its name."""
    return given or ("\t" if ".tsv" in path.suffixes else ",")


def beside_quotes(delimiter: str) -> npt.NDArray[np.bool_]:
    """Return which bytes [256] may stand before an opening and after a closing quote."""
    return np.isin(np.arange(256), list(b'"\r\n' + delimiter.encode()))


def open_text(path: Path) -> BinaryIO:
    """Open a text table, decompressed as its name says."""
    if not is_compressed(path):
        return path.open("rb")
    if path.suffix == ".xz":  # Arrow does not know it
        return cast("BinaryIO", lzma.open(path))
    return io.BufferedReader(pa.input_stream(path, compression="detect"), _BLOCK_BYTES)


def _read(path: Path, file: BinaryIO, size: int) -> bytes:
    try:
        return file.read(size)
    except (EOFError, OSError, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{path}: cannot be decompressed ({error}): damaged, cut short, or of another format") from None


class _Lines(Iterator[str]):
    r"""The lines of a block, checked, with ``\n`` for ``\r\n``."""

    def __init__(self, block: bytes | bytearray, place: _Place) -> None:
        self._file = io.BytesIO(block)
        self.line, self.byte = place.line, place.byte

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        if len(line) >= _LONGEST:
            raise ValueError(f"a line of more than {_LONGEST:,} bytes; is this a table?")
        if b"\0" in line:
            raise ValueError(f"a NUL byte at byte {self.byte + line.index(0):,} of the file; remove it")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            found = f"byte 0x{line[error.start]:02x} at byte {self.byte + error.start:,} of the file"
            raise ValueError(f"not UTF-8: {found}; save the file as UTF-8") from None
        self.line, self.byte = self.line + 1, self.byte + len(line)
        return text.replace("\r\n", "\n")


class _TextTable(ABC):
    """How a text becomes records: fast where its bytes leave no doubt, else one after another."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted

    def read(self, block: bytearray, place: _Place, *, last: bool) -> tuple[Columns | None, _Place]:
        """Read the whole records with which a block begins; return their text, and the place after them."""
        if place.row == 0:
            return None, self.read_header(block, place, last=last)
        end = self.end_of_records(block, last=last)
        if end == 0:
            return None, place
        columns = self.parse(block, end) if 0 < end <= _LONGEST else None
        if columns is None:
            rows, after = self.read_records(block, place, self.cells, last=last)
            return to_columns(rows, self.wanted), after
        lines = len(_positions(block, b"\n", end))  # a fifth of bytes.count's time
        return columns, _Place(place.path, place.row + len(columns["prompt"]), place.line + lines, place.byte + end)

    def read_records(
        self, block: bytearray, place: _Place, take: Callable[[Any], Record], *, last: bool, most: int | None = None
    ) -> tuple[list[Record], _Place]:
        """Read record after record, at most so many; return what ``take`` makes of each, and the place after them."""
        lines = _Lines(block if last else block[: block.rfind(b"\n") + 1], place)
        records = self.records(lines)
        taken: list[Record] = []
        while most is None or len(taken) < most:
            try:
                record = next(records, ())
                if record == ():
                    break
                if record is not None:
                    taken.append(take(record))
            except csv.Error as error:
                if not last and "unexpected end" in str(error):
                    break
                raise place.error(_explain(error)) from None
            except (ValueError, RecursionError) as error:
                raise place.error("nested too deeply" if isinstance(error, RecursionError) else str(error)) from None
            place = replace(place, row=place.row + (record is not None), line=lines.line, byte=lines.byte)
        return taken, place

    @abstractmethod
    def read_header(self, block: bytearray, place: _Place, *, last: bool) -> _Place:
        """Find the columns; return where the rows begin, or ``place`` where the block ends before."""

    @abstractmethod
    def end_of_records(self, block: bytearray, *, last: bool) -> int:
        """Return how many bytes of a block are whole records; -1 where its bytes leave that open."""

    @abstractmethod
    def parse(self, block: bytearray, end: int) -> Columns | None:
        """Read the whole records before ``end`` by Arrow; None where it refuses them, or something may be at fault."""

    @abstractmethod
    def records(self, lines: _Lines) -> Iterator[Any]:
        """Yield the records of some lines, None for a blank line."""

    @abstractmethod
    def cells(self, record: Any) -> dict[str, str]:
        """Return the cells of a record that are read; raise ValueError where the record is at fault."""


class _Csv(_TextTable):
    def __init__(self, wanted: Wanted, delimiter: str) -> None:
        super().__init__(wanted)
        self._delimiter = delimiter
        self._beside_quotes = beside_quotes(delimiter)
        csv.field_size_limit(_LONGEST)

    def read_header(self, block: bytearray, place: _Place, *, last: bool) -> _Place:
        from pyarrow import csv as arrow  # noqa: PLC0415 - takes a while

        headers, after = self.read_records(block, place, list, last=last, most=1)
        if not headers:
            return place
        self._width = len(headers[0])
        self._indices = {role: find_column(place.path, headers[0], role, self.wanted) for role in self.wanted}
        self._read_options = arrow.ReadOptions(
            use_threads=False, block_size=2 * _LONGEST, column_names=[str(index) for index in range(self._width)]
        )
        names = [str(index) for index in sorted(set(self._indices.values()))]
        self._convert_options = arrow.ConvertOptions(
            check_utf8=False,
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=names,
            strings_can_be_null=False,
        )
        return after

    def end_of_records(self, block: bytearray, *, last: bool) -> int:
        quotes = _positions(block, b'"') if b'"' in block else np.empty(0, np.int64)
        if len(quotes) == 0:
            return len(block) if last else block.rfind(b"\n") + 1
        data = np.frombuffer(block, np.uint8)
        # What precedes the first byte, and follows the last one, is a line end.
        before, after = data[np.maximum(quotes[::2], 1) - 1], data[np.minimum(quotes[1::2], len(data) - 2) + 1]
        clear_before = self._beside_quotes[before] | (quotes[::2] == 0)
        clear_after = self._beside_quotes[after] | (quotes[1::2] == len(data) - 1)
        if not (clear_before.all() and clear_after.all()):
            return -1  # a quote within an unquoted cell, or text after a closing quote
        if last:
            return len(block) if len(quotes) % 2 == 0 else -1
        line_ends = _positions(block, b"\n")
        outside = line_ends[np.searchsorted(quotes, line_ends) % 2 == 0]
        return int(outside[-1]) + 1 if len(outside) else 0

    def parse(self, block: bytearray, end: int) -> Columns | None:
        from pyarrow import csv as arrow  # noqa: PLC0415 - takes a while

        if block.find(b"\r", 0, end) >= 0:
            block = block[:end].replace(b"\r\n", b"\n")
            end = len(block)
        # Arrow would take a carriage return for a line end, and skip a byte-order mark.
        if block.find(b"\r", 0, end) >= 0 or block.find(b"\0", 0, end) >= 0 or not _is_text(block, end):
            return None
        parse_options = arrow.ParseOptions(delimiter=self._delimiter, newlines_in_values=block.find(b'"', 0, end) >= 0)
        try:
            table = arrow.read_csv(_reader(block, end), self._read_options, parse_options, self._convert_options)
        except pa.ArrowInvalid:
            return None
        return sound_columns({role: only_chunk(table[str(index)]) for role, index in self._indices.items()})

    def records(self, lines: _Lines) -> Iterator[list[str] | None]:
        return (cells or None for cells in csv.reader(lines, delimiter=self._delimiter, strict=True))

    def cells(self, record: list[str]) -> dict[str, str]:
        if len(record) != self._width:
            raise ValueError(
                f"found {len(record)} cells where the header names {self._width} columns; "
                "a cell with a comma or a line end must stand in double quotes"
            )
        return checked_row({role: record[index] for role, index in self._indices.items()}, self.wanted)


class _JsonLines(_TextTable):
    def read_header(self, block: bytearray, place: _Place, *, last: bool) -> _Place:
        from pyarrow import json as arrow  # noqa: PLC0415 - takes a while

        first, _ = self.read_records(block, place, _paths, last=last, most=1)
        if not first:
            return place
        names = [".".join(path) for path in first[0]]
        self._paths = {role: first[0][find_column(place.path, names, role, self.wanted)] for role in self.wanted}
        self._parse_options = arrow.ParseOptions(
            explicit_schema=_schema(self._paths.values()), unexpected_field_behavior="ignore"
        )
        return replace(place, row=1)

    def end_of_records(self, block: bytearray, *, last: bool) -> int:
        return len(block) if last else block.rfind(b"\n") + 1

    def parse(self, block: bytearray, end: int) -> Columns | None:
        from pyarrow import json as arrow  # noqa: PLC0415 - takes a while

        options = arrow.ReadOptions(use_threads=False, block_size=end + 1)
        if not _is_text(block, end):
            return None
        try:
            table = arrow.read_json(_reader(block, end), options, self._parse_options)
        except (pa.ArrowInvalid, UnicodeDecodeError):
            return None
        if len(table) != block.count(b"\n", 0, end) + (block[end - 1] != ord("\n")):
            return None  # a line is blank, or holds no or several records
        return sound_columns(
            {role: plain_text(field_of(only_chunk(table[name]), inner)) for role, (name, *inner) in self._paths.items()}
        )

    def records(self, lines: _Lines) -> Iterator[Any]:
        for line in lines:
            try:
                # Numbers are taken as they are written.
                yield json.loads(line, parse_int=str, parse_float=str, parse_constant=_refuse) if line.strip() else None
            except json.JSONDecodeError as error:
                raise ValueError(f"not valid JSON: {error.msg} at character {error.colno}") from None

    def cells(self, record: Any) -> dict[str, str]:
        row = {}
        for role, path in self._paths.items():
            value = record
            for name in path:
                value = _object(value or {}).get(name)
            row[role] = _cell(value, self.wanted[role])
        return checked_row(row, self.wanted)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004 - of the user's, not of the program's
            f'expected an object a line, such as {{"prompt": "...", "completion": "..."}}, found {value!r:.40}'
        )
    return value


def _paths(record: Any, outer: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return where each value of a record stands: the names of the objects around it, and its own."""
    paths = []
    for name, value in _object(record).items():
        paths += _paths(value, (*outer, name)) if isinstance(value, dict) else [(*outer, name)]
    return paths


def _schema(paths: Iterable[Sequence[str]]) -> pa.Schema:
    """Return the schema of records with text at these paths."""
    inner: dict[str, list[Sequence[str]]] = {}
    for name, *rest in paths:
        inner.setdefault(name, []).append(rest)
    return pa.schema([(name, pa.struct(_schema(rests)) if rests[0] else pa.string()) for name, rests in inner.items()])


def _cell(value: Any, name: str) -> str:
    match value:
        case str():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"column {name!r}: {value[error.start]!r} is half of a character; remove it") from None
            return value.replace("\r\n", "\n")
        case None:
            return ""
        case bool():
            return str(value).lower()
    kind = "an object" if isinstance(value, dict) else "a list"
    raise ValueError(f"column {name!r}: found {kind}; allowed: text, numbers, true, false and null")


def _refuse(constant: str) -> None:
    raise ValueError(f"not valid JSON: {constant}")


def _positions(block: bytearray, byte: bytes, end: int | None = None) -> npt.NDArray[np.int64]:
    """Return where a byte stands in a block, before ``end``."""
    data = np.frombuffer(block, np.uint8)[:end]
    # In parts, as comparing takes as much memory again.
    begins = range(0, len(data), _BLOCK_BYTES)
    found = [begin + np.flatnonzero(data[begin : begin + _BLOCK_BYTES] == ord(byte)) for begin in begins]
    return found[0] if len(found) == 1 else np.concatenate(found)


def _reader(block: bytearray, end: int) -> pa.BufferReader:
    return pa.BufferReader(pa.py_buffer(block).slice(0, end))


def _is_text(block: bytearray, end: int) -> bool:
    """Return whether a block is UTF-8 before ``end``, without a byte-order mark at its beginning."""
    offsets = pa.py_buffer(np.array([0, end], np.int32))
    try:
        pa.StringArray.from_buffers(1, offsets, pa.py_buffer(block)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return not block.startswith(UTF8_MARK)


def _explain(error: csv.Error) -> str:
    """Return what the csv module means; its messages are few."""
    message = str(error)
    if "unexpected end" in message:
        return "a double quote is opened here and never closed"
    if "expected after" in message:
        return "text after a closing double quote; a double quote within a quoted cell is written twice"
    if "field larger" in message:
        return f"a cell of more than {_LONGEST:,} characters; is a double quote left open?"
    if "new-line character" in message:
        return "a carriage return that ends no line; put its cell in double quotes, or end lines with a line feed"
    return message
