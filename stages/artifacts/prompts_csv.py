"""The CSV of prompts and completions: read as a stream, so that a file may be larger than memory.

By the standard library's reader, not pandas': it tells a row with too few cells from one with empty cells, lets every
error name its row, and costs no import. Every cell is text as it stands: ``NA``, ``null`` and ``007`` are words.
"""

import csv
import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from stages.core.params_model import ParamsModel
from stages.core.split import SPLITS, Split, SplitParams, splits_of
from stages.errors import UserError

LOG = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20  # read at once, with what is left of the last line; a chunk is the rows of one block
_LONGEST = 1 << 26  # bytes of a line and characters of a cell: a file past it is no CSV, or has an open quote
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"
_SPLIT_NAMED: dict[str, Split] = {name: name for name in SPLITS}
_SPLIT_OF_FILE = re.compile(rf"(?:^|[^a-zA-Z0-9])({'|'.join(SPLITS)})$")


class DataParams(ParamsModel):
    """Where the text is."""

    csv: str
    """A CSV file, or a folder of CSV files whose names end with train, validation or test."""
    prompt_column: str
    """The column that holds the prompts."""
    completion_column: str | None
    """The column that holds the completions; null: the prompts are plain text and have none."""


@dataclass
class PromptChunk:
    """Some rows of one file."""

    path: Path
    rows: list[int] = field(default_factory=list)
    """Each row's number in its file; the first row below the header is 1."""
    prompts: list[str] = field(default_factory=list)
    """Each row's prompt; may be empty."""
    completions: list[str] = field(default_factory=list)
    """Each row's completion; empty where it has none."""
    splits: list[Split] = field(default_factory=list)
    """The split that each row belongs to."""

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, split: Split) -> "PromptChunk":
        """Give the rows of one split."""
        match self.splits.count(split):
            case 0:
                return PromptChunk(self.path)
            case count if count == len(self):
                return self
        chosen = [index for index, name in enumerate(self.splits) if name == split]
        return PromptChunk(
            self.path,
            [self.rows[index] for index in chosen],
            [self.prompts[index] for index in chosen],
            [self.completions[index] for index in chosen],
            [split] * len(chosen),
        )

    def texts(self) -> list[str]:
        """Give all texts: the first row's prompt and completion, the second row's, and so on."""
        return list(chain.from_iterable(zip(self.prompts, self.completions, strict=True)))

    def place(self, text_index: int) -> str:
        """Say in words where the text stands that ``texts`` gives at ``text_index``."""
        row, is_completion = divmod(text_index, 2)
        return f"{self.path}, row {self.rows[row]}, {'completion' if is_completion else 'prompt'}"


@dataclass(frozen=True)
class _Source:
    """One file, and what decides the split of its rows."""

    path: Path
    split: Split | SplitParams


def read_prompts(data: DataParams, split: SplitParams) -> Iterator[PromptChunk]:
    r"""Read every row, in chunks of a few megabytes; line ends within cells become ``\n``.

    Raises:
        UserError: a file is absent, or is not such a CSV (the message names the file, and the row and column), or no
            row is left to train on.
    """
    rows, training_rows = 0, 0
    for source in _sources(data, split):
        for chunk in _read_file(source, data):
            rows += len(chunk)
            training_rows += chunk.splits.count("train")
            yield chunk
    if training_rows == 0:
        cause = (
            f"split.validation ({split.validation}) and split.test ({split.test}) hold out all of them; lower these, "
            "or set another split.seed, or add rows"
            if split.column is None
            else f"column {split.column!r} (split.column) says train for none of them"
        )
        raise UserError(f"{data.csv}: no row to train on, of {rows:,}: {cause}")


def _sources(data: DataParams, split: SplitParams) -> list[_Source]:
    path = Path(data.csv)
    if not path.is_absolute() and Path(os.path.normpath(path)).parts[:1] == (os.pardir,):
        raise UserError(
            f"data.csv: {data.csv} lies outside of the project, where DVC cannot follow it; "
            "copy it to data/, or give an absolute path"
        )
    if path.is_dir():
        return _sources_in_folder(path, split)
    if not path.exists():
        beside = sorted(str(file) for file in path.parent.glob("*.csv"))
        there = f"; CSV files there: {', '.join(beside)}" if beside else ""
        raise UserError(f"{path}: not found{there}; set data.csv, e.g. with -S data.csv=data/my_prompts.csv")
    return [_Source(path, split)]


def _sources_in_folder(folder: Path, split: SplitParams) -> list[_Source]:
    files: dict[Split, list[Path]] = {name: [] for name in SPLITS}
    for path in sorted(folder.glob("*.csv")):
        said = _SPLIT_OF_FILE.search(path.stem)
        if said is None:
            raise UserError(
                f"{path}: the name does not say which split this is; in a folder, names end with {', '.join(SPLITS)}, "
                "such as train.csv or my_test.csv; rename it, or give one file as data.csv"
            )
        files[next(name for name in SPLITS if name == said[1])].append(path)
    if not files["train"]:
        raise UserError(f"{folder}: no training file; one must be called train.csv, or end so, such as my_train.csv")
    if split.column is not None:
        return [_Source(path, split) for paths in files.values() for path in paths]
    from_training_rows = split.model_copy(update={name: 0.0 for name in ("validation", "test") if files[name]})
    held_out = [_Source(path, name) for name in SPLITS if name != "train" for path in files[name]]
    return [_Source(path, from_training_rows) for path in files["train"]] + held_out


def _read_file(source: _Source, data: DataParams) -> Iterator[PromptChunk]:
    columns, rows = None, 0
    LOG.info("reading %s", source.path)
    with source.path.open("rb") as file:
        for records in _read_records(source.path, file):
            columns = columns or _columns(source, data, records.take_header())
            if len(records.cells):
                rows += len(records.cells)
                yield _chunk(records, columns, source.split)
    if columns is None:
        raise UserError(f"{source.path}: the file is empty; its first line must name the columns")
    if rows == 0:
        raise UserError(f"{source.path}: no rows below the header; add at least one")


@dataclass(frozen=True)
class _Columns:
    """Where in a record the cells stand that are read."""

    header: list[str]
    prompt: int
    completion: int | None
    split: int | None


def _columns(source: _Source, data: DataParams, header: list[str]) -> _Columns:
    split_column = source.split.column if isinstance(source.split, SplitParams) else None
    prompt, completion, split = (
        None if name is None else _column(source.path, header, name, key)
        for name, key in (
            (data.prompt_column, "data.prompt_column"),
            (data.completion_column, "data.completion_column"),
            (split_column, "split.column"),
        )
    )
    return _Columns(header, prompt or 0, completion, split)


def _column(path: Path, header: list[str], name: str, key: str) -> int:
    """Find a column by its name."""
    match header.count(name):
        case 1:
            return header.index(name)
        case 0:
            used = [words for mark, words in _OTHER_DELIMITERS.items() if len(header) == 1 and mark in header[0]]
            if used:
                raise UserError(f"{path}: the columns are separated by {used[0]}; save the file with commas")
            example = next((other for other in header if other), name)
            raise UserError(
                f"{path}: no column {name!r} ({key}); found: {', '.join(map(repr, header))}; "
                f"name the right one, e.g. with -S {key}={example}"
            )
        case times:
            raise UserError(
                f"{path}: the column {name!r} ({key}) stands {times} times in the header; rename all but one"
            )


@dataclass
class _Records:
    """Successive records of a file; blank lines are none."""

    path: Path
    first_row: int
    """Which record of the file the first one is: 0 is the header."""
    cells: list[list[str]]
    find_lines: Callable[[], list[int]]
    """Gives the line of the file with which each record begins; the first is 1."""

    def take_header(self) -> list[str]:
        """Give the first record, and leave the others."""
        self.first_row += 1
        return self.cells.pop(0)

    def place(self, index: int) -> str:
        """Say in words where the record ``index`` stands."""
        # Counted from the end, as the header may have been taken.
        return _place(self.path, self.first_row + index, self.find_lines()[index - len(self.cells)])


def _place(path: Path, row: int, line: int) -> str:
    return f"{path}, {f'row {row}' if row else 'header'} (line {line})"


def _read_records(path: Path, file: BinaryIO) -> Iterator[_Records]:
    """Read the records of one block of lines after another: each at once, or row by row from where that fails."""
    csv.field_size_limit(_LONGEST)
    row, line, offset = 0, 1, _skip_mark(path, file)
    while block := _read_lines(file, _BLOCK_BYTES):
        while (read := _read_block(path, block, row, line)) is None:
            # A cell that holds a line end may go on after the block.
            open_quote = block.count(b'"') % 2 == 1 and len(block) <= _LONGEST
            more = _read_lines(file, len(block)) if open_quote else b""
            if not more:
                yield from _read_row_by_row(path, _Blocks(file, block, offset), row, line)
                return
            block += more
        records, lines = read
        if records.cells:
            yield records
        row, line, offset = records.first_row + len(records.cells), line + lines, offset + len(block)


def _skip_mark(path: Path, file: BinaryIO) -> int:
    """Go to the first character, and give its offset in the file."""
    start = file.read(len(_UTF8_MARK))
    if start.startswith(_UTF16_MARKS):
        raise UserError(f"{_place(path, 0, 1)}: the file is UTF-16; save it as UTF-8")
    return file.seek(len(_UTF8_MARK) if start == _UTF8_MARK else 0)


def _read_lines(file: BinaryIO, size: int) -> bytes:
    return file.read(size) + file.readline(_LONGEST)


def _read_block(path: Path, block: bytes, row: int, line: int) -> tuple[_Records, int] | None:
    """Read whole records and count their lines; None where something is at fault, or a quote is open at the end."""
    if len(block) > _LONGEST or b"\0" in block:
        return None
    try:
        reader = csv.reader(_lines_of(block.decode()), strict=True)
        return _Records(path, row, list(filter(None, reader)), partial(_line_numbers, block, line)), reader.line_num
    except (csv.Error, UnicodeDecodeError):
        return None


def _line_numbers(block: bytes, line: int) -> list[int]:
    """Give the line of the file with which each record begins, of a block that begins with ``line``."""
    reader, numbers, begins = csv.reader(_lines_of(block.decode()), strict=True), [], line
    for cells in reader:
        if cells:
            numbers.append(begins)
        begins = line + reader.line_num
    return numbers


def _read_row_by_row(path: Path, blocks: "_Blocks", row: int, line: int) -> Iterator[_Records]:
    """Read the rest of a file, or up to what is at fault, which is named."""
    reader = csv.reader(chain.from_iterable(blocks), strict=True)
    block, before = 0, line - 1
    numbers: list[int] = []
    records = _Records(path, row, [], partial(list, numbers))
    try:
        for cells in reader:
            if blocks.count != block:
                if records.cells:
                    yield records
                block, numbers = blocks.count, []
                records = _Records(path, records.first_row + len(records.cells), [], partial(list, numbers))
            if cells:
                records.cells.append(cells)
                numbers.append(line)
            line = before + reader.line_num + 1
    except csv.Error as error:
        if records.cells:
            yield records  # where an earlier record may be wrong as well
        at_fault = _place(path, records.first_row + len(records.cells), line)
        raise UserError(f"{at_fault}: {_explain(error)}") from None
    if records.cells:
        yield records


class _Blocks:
    """The lines of a file from a block that has been read, in blocks; each is an iterable of whole lines."""

    def __init__(self, file: BinaryIO, block: bytes, offset: int) -> None:
        self.count = 0
        """How many blocks have been given."""
        self._file = file
        self._block = block
        self._offset = offset

    def __iter__(self) -> Iterator[Iterable[str]]:
        while self._block:
            self.count += 1
            yield _decode(self._block, self._offset)
            self._offset += len(self._block)
            self._block = _read_lines(self._file, _BLOCK_BYTES)


def _decode(block: bytes, offset: int) -> Iterable[str]:
    r"""Give the lines of a block, with ``\n`` for ``\r\n``; ``offset`` is where in the file it begins."""
    if len(block) > _LONGEST or b"\0" in block:
        return _checked_lines(block, offset)
    try:
        text = block.decode()
    except UnicodeDecodeError:
        return _checked_lines(block, offset)
    return _lines_of(text)


def _lines_of(text: str) -> io.StringIO:
    return io.StringIO(text.replace("\r\n", "\n") if "\r" in text else text, newline="\n")  # looking is the quicker


def _checked_lines(block: bytes, offset: int) -> Iterator[str]:
    """Do the same line by line, so that the lines before the wrong one are read."""
    for line in io.BytesIO(block):
        if len(line) >= _LONGEST:
            raise csv.Error(f"a line of more than {_LONGEST:,} bytes; is this a CSV file?")
        if b"\0" in line:
            raise csv.Error(f"a NUL byte at byte {offset + line.index(0):,} of the file; remove it")
        try:
            yield line.decode().replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise csv.Error(
                f"not UTF-8: byte 0x{line[error.start]:02x} at byte {offset + error.start:,} of the file; "
                "save the file as UTF-8"
            ) from None
        offset += len(line)


def _chunk(records: _Records, columns: _Columns, split: Split | SplitParams) -> PromptChunk:
    """Take the prompts, completions and splits from records."""
    if not _are_sound(records.cells, columns):
        index = next(index for index, cells in enumerate(records.cells) if not _are_sound([cells], columns))
        raise UserError(f"{records.place(index)}: {_fault(records.cells[index], columns)}")
    prompts = [cells[columns.prompt] for cells in records.cells]
    completion = columns.completion
    completions = [""] * len(prompts) if completion is None else [cells[completion] for cells in records.cells]
    splits: list[Split]
    if not isinstance(split, SplitParams):
        splits = [split] * len(prompts)
    elif columns.split is None:
        splits = splits_of([prompt or other for prompt, other in zip(prompts, completions, strict=True)], split)
    else:
        splits = [_SPLIT_NAMED[cells[columns.split]] for cells in records.cells]
    rows = list(range(records.first_row, records.first_row + len(prompts)))
    return PromptChunk(records.path, rows, prompts, completions, splits)


def _are_sound(records: list[list[str]], columns: _Columns) -> bool:
    """Tell whether no record is at fault, without a step of Python's for each."""
    if set(map(len, records)) != {len(columns.header)}:
        return False
    if columns.split is not None and not {cells[columns.split] for cells in records} <= set(SPLITS):
        return False
    without_prompt = [cells for cells in records if not cells[columns.prompt]]
    return all(columns.completion is not None and cells[columns.completion] for cells in without_prompt)


def _fault(cells: list[str], columns: _Columns) -> str:
    if len(cells) != len(columns.header):
        return (
            f"found {len(cells)} cells where the header names {len(columns.header)} columns; "
            "a cell with a comma or a line end must stand in double quotes"
        )
    if columns.split is not None and cells[columns.split] not in SPLITS:
        return (
            f"column {columns.header[columns.split]!r} (split.column): found {cells[columns.split]!r}; "
            f"allowed: {', '.join(SPLITS)}"
        )
    return "neither a prompt nor a completion; fill the row or delete it"


def _explain(error: csv.Error) -> str:
    """Say what the csv module means; its messages are few."""
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
