"""The CSV of prompts and completions: read as a stream, so that a file may be larger than memory.

By the standard library's reader, not pandas': it tells a row with too few cells from one with empty cells, reads no
further than the row at hand, so that every error can name its row, and costs no import. Every cell is text as it
stands: ``NA``, ``null`` and ``007`` are words.
"""

import csv
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from stages.core.parameter_model import ParameterModel
from stages.core.split import SPLITS, Split, SplitParameters, split_of
from stages.errors import UserError

LOG = logging.getLogger(__name__)

_CHUNK_CHARACTERS = 2_000_000  # a chunk ends with the row that reaches them
_CHUNK_ROWS = 50_000
_LONGEST = 1 << 26  # bytes of a line and characters of a cell: a file past it is no CSV, or has an open quote
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"
_SPLIT_OF_FILE = re.compile(rf"(?:^|[^a-zA-Z0-9])({'|'.join(SPLITS)})$")


class DataParameters(ParameterModel):
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
        chosen = [index for index, name in enumerate(self.splits) if name == split]
        if len(chosen) == len(self):
            return self
        return PromptChunk(
            self.path,
            [self.rows[index] for index in chosen],
            [self.prompts[index] for index in chosen],
            [self.completions[index] for index in chosen],
            [split] * len(chosen),
        )

    def texts(self) -> list[str]:
        """Give all texts: the first row's prompt and completion, the second row's, and so on."""
        return [text for row in zip(self.prompts, self.completions, strict=True) for text in row]

    def place(self, text_index: int) -> str:
        """Say in words where the text stands that ``texts`` gives at ``text_index``."""
        row, is_completion = divmod(text_index, 2)
        return f"{self.path}, row {self.rows[row]}, {'completion' if is_completion else 'prompt'}"


@dataclass(frozen=True)
class _Source:
    """One file, and what decides the split of its rows."""

    path: Path
    split: Split | SplitParameters


def read_prompts(data: DataParameters, split: SplitParameters) -> Iterator[PromptChunk]:
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


def _sources(data: DataParameters, split: SplitParameters) -> list[_Source]:
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


def _sources_in_folder(folder: Path, split: SplitParameters) -> list[_Source]:
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


def _read_file(source: _Source, data: DataParameters) -> Iterator[PromptChunk]:
    LOG.info("reading %s", source.path)
    with source.path.open("rb") as file:
        records = _Records(source.path, file)
        columns = _columns(source, data, next(iter(records), []))
        chunk, characters = PromptChunk(source.path), 0
        for cells in records:
            prompt, completion, split = _parse(cells, columns, source.split, records)
            chunk.rows.append(records.row)
            chunk.prompts.append(prompt)
            chunk.completions.append(completion)
            chunk.splits.append(split)
            characters += len(prompt) + len(completion)
            if characters >= _CHUNK_CHARACTERS or len(chunk) == _CHUNK_ROWS:
                yield chunk
                chunk, characters = PromptChunk(source.path), 0
    if records.row == 0:
        raise UserError(f"{source.path}: no rows below the header; add at least one")
    if len(chunk):
        yield chunk


@dataclass(frozen=True)
class _Columns:
    """Where in a record the cells stand that are read."""

    header: list[str]
    prompt: int
    completion: int | None
    split: int | None


def _columns(source: _Source, data: DataParameters, header: list[str]) -> _Columns:
    if not header:
        raise UserError(f"{source.path}: the file is empty; its first line must name the columns")
    split_column = source.split.column if isinstance(source.split, SplitParameters) else None
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


def _parse(
    cells: list[str], columns: _Columns, split: Split | SplitParameters, records: "_Records"
) -> tuple[str, str, Split]:
    """Give the prompt, completion and split of one record."""
    if len(cells) != len(columns.header):
        raise UserError(
            f"{records.place}: found {len(cells)} cells where the header names {len(columns.header)} columns; "
            "a cell with a comma or a line end must stand in double quotes"
        )
    prompt = _with_plain_line_ends(cells[columns.prompt])
    completion = "" if columns.completion is None else _with_plain_line_ends(cells[columns.completion])
    if not prompt and not completion:
        raise UserError(f"{records.place}: neither a prompt nor a completion; fill the row or delete it")
    if not isinstance(split, SplitParameters):
        return prompt, completion, split
    if columns.split is None:
        return prompt, completion, split_of(prompt or completion, split)
    said = cells[columns.split]
    if said not in SPLITS:
        raise UserError(
            f"{records.place}: column {columns.header[columns.split]!r} (split.column): found {said!r}; "
            f"allowed: {', '.join(SPLITS)}"
        )
    return prompt, completion, said


def _with_plain_line_ends(cell: str) -> str:
    return cell.replace("\r\n", "\n") if "\r" in cell else cell


class _Records:
    """The records of a CSV file, as lists of cells; blank lines are none."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.row = -1
        """The record read last: 0 is the header."""
        self._path = path
        self._file = file
        self._lines_read = 0
        self._first_line = 1
        csv.field_size_limit(_LONGEST)
        self._reader = csv.reader(self._lines(), strict=True)

    @property
    def place(self) -> str:
        """The record that is being read, or was read last, in words."""
        name = "header" if self.row == 0 else f"row {self.row}"
        return f"{self._path}, {name} (line {self._first_line})"

    def __iter__(self) -> Iterator[list[str]]:
        while True:
            self.row += 1
            cells: list[str] = []
            try:
                while not cells:
                    self._first_line = self._lines_read + 1
                    cells = next(self._reader)
            except StopIteration:
                self.row -= 1
                return
            except csv.Error as error:
                raise UserError(f"{self.place}: {_explain(error)}") from None
            yield cells

    def _lines(self) -> Iterator[str]:
        offset = 0
        while line := self._file.readline(_LONGEST):
            if offset == 0:
                if line.startswith(_UTF16_MARKS):
                    raise UserError(f"{self._path}: the file is UTF-16; save it as UTF-8")
                if line.startswith(_UTF8_MARK):
                    line, offset = line[len(_UTF8_MARK) :], len(_UTF8_MARK)
            if len(line) == _LONGEST:
                raise UserError(f"{self.place}: a line of more than {_LONGEST:,} bytes; is this a CSV file?")
            if b"\0" in line:
                raise UserError(f"{self.place}: a NUL byte at byte {offset + line.index(0):,} of the file; remove it")
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{self.place}: not UTF-8: byte 0x{line[error.start]:02x} at byte {offset + error.start:,} of the "
                    "file; save the file as UTF-8"
                ) from None
            offset += len(line)
            self._lines_read += 1
            yield text


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
