"""Text tables (CSV, TSV, JSON Lines) as a stream of blocks, each read by Arrow, or record by record where that is not enough.

Arrow takes a block only if its bytes leave no doubt. Another block, and one that Arrow refuses, is read by Python's ``csv``
or ``json``, which takes what is allowed and names what is not, with its row, line and byte.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
import pyarrow as pa

from stages.artifacts.table_columns import (
    Columns,
    Rows,
    Wanted,
    checked_row,
    find_column,
    is_sound,
    plain_text,
    to_columns,
    with_completions,
)
from stages.errors import UserError

_BLOCK_BYTES = 1 << 20  # read at once; a frame is the rows of one block
_LONGEST = 1 << 26  # bytes of a line and characters of a cell: a file past it is no table, or has an open quote
_UTF8_MARK = b"\xef\xbb\xbf"
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


def read_text(path: Path, wanted: Wanted, delimiter: str | None) -> Iterator[Rows]:
    """Yield the rows of a CSV, TSV or JSON Lines file, block by block.

    Raises:
        UserError: the file is not such a table; the message names its first fault.
    """
    with open_text(path) as file:
        size = max(_BLOCK_BYTES, 16)
        block = _read(path, file, size)
        for mark, found in _FOREIGN.items():
            if block.startswith(mark):
                raise UserError(f"{path}, header (line 1): the file is {found}")
        place = _Place(path, row=0, line=1, byte=len(_UTF8_MARK) if block.startswith(_UTF8_MARK) else 0)
        last, block = len(block) < size, block[place.byte :]
        is_json = bool({".jsonl", ".ndjson"} & set(path.suffixes))
        table = _JsonLines(wanted) if is_json else _Csv(wanted, delimiter or ("\t" if ".tsv" in path.suffixes else ","))
        while block or not last:
            columns, after = table.read(block, place, last=last)
            if columns and len(columns["prompt"]):
                yield Rows(place.row, columns)
            if last and after == place:
                break
            # Where a record goes on after the block, as much again.
            size = _BLOCK_BYTES if after != place else min(len(block) or _BLOCK_BYTES, _LONGEST)
            block = block[after.byte - place.byte :]
            columns = None  # its memory is free for what is read next
            if not last:
                more = _read(path, file, size)
                block, last = block + more, len(more) < size
            place = after
    if place.row == 0:
        raise UserError(f"{path}: the file is empty; its first line must name the columns")


def open_text(path: Path) -> BinaryIO:
    """Open a text table, decompressed as its name says."""
    match path.suffix:
        case ".gz":
            return cast("BinaryIO", gzip.open(path))
        case ".bz2":
            return cast("BinaryIO", bz2.open(path))
        case ".xz":
            return cast("BinaryIO", lzma.open(path))
        case ".zst":
            return io.BufferedReader(pa.input_stream(path, compression="zstd"), _BLOCK_BYTES)
    return path.open("rb")


def _read(path: Path, file: BinaryIO, size: int) -> bytes:
    try:
        return file.read(size)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{path}: cannot be decompressed ({error}): damaged, cut short, or of another format") from None


class _Lines(Iterator[str]):
    r"""The lines of a block, checked, with ``\n`` for ``\r\n``."""

    def __init__(self, block: bytes, place: _Place) -> None:
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

    def read(self, block: bytes, place: _Place, *, last: bool) -> tuple[Columns | None, _Place]:
        """Read the whole records with which a block begins; return their text, and the place after them."""
        if place.row == 0:
            return None, self.read_header(block, place, last=last)
        end = self.end_of_records(block, last=last)
        if end == 0 and len(block) <= _LONGEST:
            return None, place
        columns = self.parse(block[:end]) if 0 < end <= _LONGEST else None
        if columns is None:
            rows, after = self.read_records(block, place, self.cells, last=last or len(block) > _LONGEST)
            return to_columns(rows, self.wanted), after
        lines = int(np.count_nonzero(np.frombuffer(block, np.uint8, end) == ord("\n")))  # a fifth of bytes.count's time
        return columns, _Place(place.path, place.row + len(columns["prompt"]), place.line + lines, place.byte + end)

    def read_records(
        self, block: bytes, place: _Place, take: Callable[[Any], Record], *, last: bool, most: int | None = None
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
    def read_header(self, block: bytes, place: _Place, *, last: bool) -> _Place:
        """Find the columns; return where the rows begin, or ``place`` where the block ends before."""

    @abstractmethod
    def end_of_records(self, block: bytes, *, last: bool) -> int:
        """Return how many bytes of a block are whole records; -1 where its bytes leave that open."""

    @abstractmethod
    def parse(self, block: bytes) -> Columns | None:
        """Read whole records by Arrow; None where it refuses them, or something may be at fault."""

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
        self._beside_quotes = np.isin(np.arange(256), list(b'"\r\n' + delimiter.encode()))
        csv.field_size_limit(_LONGEST)

    def read_header(self, block: bytes, place: _Place, *, last: bool) -> _Place:
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

    def end_of_records(self, block: bytes, *, last: bool) -> int:
        quotes = np.flatnonzero(np.frombuffer(block, np.uint8) == ord('"')) if b'"' in block else np.empty(0, np.int64)
        if len(quotes) == 0:
            return len(block) if last else block.rfind(b"\n") + 1
        padded = np.frombuffer(block + b"\n\n", np.uint8)  # what precedes the first byte, index -1, is a line end too
        before, after = padded[quotes[::2] - 1], padded[quotes[1::2] + 1]
        if not (self._beside_quotes[before].all() and self._beside_quotes[after].all()):
            return -1  # a quote within an unquoted cell, or text after a closing quote
        if last:
            return len(block) if len(quotes) % 2 == 0 else -1
        line_ends = np.flatnonzero(padded[:-2] == ord("\n"))
        outside = line_ends[np.searchsorted(quotes, line_ends) % 2 == 0]
        return int(outside[-1]) + 1 if len(outside) else 0

    def parse(self, block: bytes) -> Columns | None:
        from pyarrow import csv as arrow  # noqa: PLC0415 - takes a while

        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n")
        # Arrow would take a carriage return for a line end, and skip a byte-order mark.
        if b"\r" in block or b"\0" in block or block.startswith(_UTF8_MARK) or not _is_utf8(block):
            return None
        parse_options = arrow.ParseOptions(delimiter=self._delimiter, newlines_in_values=b'"' in block)
        try:
            table = arrow.read_csv(pa.BufferReader(block), self._read_options, parse_options, self._convert_options)
        except pa.ArrowInvalid:
            return None
        columns = {role: table[str(index)].combine_chunks() for role, index in self._indices.items()}
        columns = with_completions(columns, len(table))
        return columns if is_sound(columns) else None

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
    def read_header(self, block: bytes, place: _Place, *, last: bool) -> _Place:
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

    def end_of_records(self, block: bytes, *, last: bool) -> int:
        return len(block) if last else block.rfind(b"\n") + 1

    def parse(self, block: bytes) -> Columns | None:
        from pyarrow import json as arrow  # noqa: PLC0415 - takes a while

        options = arrow.ReadOptions(use_threads=False, block_size=len(block) + 1)
        if block.startswith(_UTF8_MARK) or not _is_utf8(block):
            return None
        try:
            table = arrow.read_json(pa.BufferReader(block), options, self._parse_options)
        except (pa.ArrowInvalid, UnicodeDecodeError):
            return None
        if len(table) != block.count(b"\n") + (not block.endswith(b"\n")):
            return None  # a line is blank, or holds no or several records
        columns = {}
        for role, (name, *inner) in self._paths.items():
            column = table[name].combine_chunks()
            for field in inner:
                column = column.flatten()[column.type.get_field_index(field)]
            columns[role] = plain_text(column)
        columns = with_completions(columns, len(table))
        return columns if is_sound(columns) else None

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


def _is_utf8(block: bytes) -> bool:
    offsets = pa.py_buffer(np.array([0, len(block)], np.int32))
    try:
        pa.StringArray.from_buffers(1, offsets, pa.py_buffer(block)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


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
