"""The tables of prompts and completions: every format that ``data.csv`` may name, read as one stream of frames.

Arrow reads; where it refuses a block, or takes more than it should, the block is read once more, row by row, and the fault
is named (table_text). Every cell is text as it is written: ``NA``, ``null`` and ``007`` are words.
"""

import logging
import os
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import pyarrow as pa
import pydantic

from stages.artifacts.table_columns import Part, Rows, setting
from stages.artifacts.table_parquet import read_parquet
from stages.artifacts.table_text import read_text
from stages.core.frames import drawn_splits, split_codes, text_column, text_sizes
from stages.core.params_model import ParamsModel
from stages.core.split import SPLITS, Split, SplitParams
from stages.errors import UserError

LOG = logging.getLogger(__name__)

_ENDING = re.compile(r"\.(?:(?:csv|tsv|jsonl|ndjson)(?:\.(?:gz|zst|bz2|xz))?|parquet)$")
_FORMATS = ".csv, .tsv, .jsonl or .ndjson, also compressed (.csv.gz, .zst, .bz2, .xz), or .parquet"
_SPLIT_OF_NAME: dict[str, Split] = {"train": "train", "test": "test"}
_SPLIT_OF_NAME |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_PART = r"[-_.]?\d+(?:-of-\d+)?"
_NAMED = re.compile(rf"(?:^|[^a-z0-9])({'|'.join(_SPLIT_OF_NAME)})(?:{_PART})?$", re.IGNORECASE)
_NUMBERED = re.compile(rf"{_PART}$")
_STANDARD_INPUT = re.compile(r"-|/dev/stdin|(?:/dev|/proc/\w+)/fd/.*")
_NAMED_TABLES = 20  # in a message
_LARGE_BYTES = 1 << 24


def _as_column_name(name: Any) -> Any:
    return str(name) if type(name) is int else name  # params.yaml has the name 0 as a number


ColumnName = Annotated[str, pydantic.BeforeValidator(_as_column_name)]


class DataParams(ParamsModel):
    """Where the text is."""

    csv: str = pydantic.Field(min_length=1)
    """A table, or a folder of tables."""
    files: str | None = pydantic.Field(min_length=1)
    """In a folder: a pattern of the names to read, such as part-*.parquet; null: all tables."""
    prompt_column: ColumnName
    """The column that holds the prompts; a.b is the field b of the column a."""
    completion_column: ColumnName | None
    """The column that holds the completions; null: the prompts are plain text and have none."""
    delimiter: str | None = pydantic.Field(pattern=r"^[\t !#-/:-@\[\]^`{-~]$")
    """What separates the cells of a text table; null: a comma, in .tsv a tab."""

    @pydantic.model_validator(mode="after")
    def _learn_no_prompt_as_answer(self) -> Self:
        if self.prompt_column == self.completion_column:
            raise ValueError(
                f"prompt_column and completion_column: found {self.prompt_column!r} for both, so that prompts would be "
                "learnt as their own answers; name two columns, or set completion_column: null for plain text"
            )
        return self


@dataclass(frozen=True)
class Source:
    """One file, and what decides the split of its rows."""

    path: Path
    split: Split | SplitParams
    """The split that its name says, or how to find that of each row."""


def read_prompts(data: DataParams, split: SplitParams, group_column: str | None = None) -> Iterator[pa.Table]:
    r"""Yield every row, in frames of a few megabytes; line ends within cells become ``\n``.

    Columns: file and row (1 for the first one of a file), prompt, completion (empty where there is none) and split, and
    group, the text of ``group_column``, where that is given. A frame is an Arrow table, since pandas takes as long to import
    as 60 MB to read; ``to_pandas`` copies no text, and whatever takes a frame takes one of pandas as well.

    Raises:
        UserError: a file is absent, or is not such a table (the message names the file, row and column), or no row is
            left to train on.
    """
    rows, training_rows = 0, 0
    for source in find_sources(data, split):
        LOG.info("reading %s", source.path)
        of_file = 0
        for frame in _ahead(read_source(source, data, group_column=group_column)):
            of_file += len(frame)
            training_rows += int(np.count_nonzero(split_codes(frame) == SPLITS.index("train")))
            yield frame
        if of_file == 0:
            raise UserError(f"{source.path}: no rows below the header; add at least one")
        rows += of_file
    if training_rows == 0:
        cause = (
            f"split.validation ({split.validation}) and split.test ({split.test}) hold out all of them; lower these, "
            "or set another split.seed, or add rows"
            if split.column is None
            else f"column {split.column!r} (split.column) says train for none of them"
        )
        raise UserError(f"{data.csv}: no row to train on, of {rows:,}: {cause}")


def _ahead(made: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield what is made, the next one of which a second thread makes meanwhile: Arrow and numpy let both run."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, made, None)
        while (now := following.result()) is not None:
            following = thread.submit(next, made, None)
            yield now


def read_source(
    source: Source, data: DataParams, part: Part | None = None, group_column: str | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of one file, or of a part of it, as ``read_prompts`` does; rows of a part are numbered from its first."""
    split_column = source.split.column if isinstance(source.split, SplitParams) else None
    wanted = {
        "prompt": data.prompt_column,
        "completion": data.completion_column,
        "split": split_column,
        "group": group_column,
    }
    names = {role: name for role, name in wanted.items() if name is not None}
    if source.path.suffix == ".parquet":
        reads = read_parquet(source.path, names, None if part is None else range(part.begin, part.end))
    else:
        reads = read_text(source.path, names, data.delimiter, part)
    return chain.from_iterable(_large_row_alone(_frame(source, rows)) for rows in reads)


def _large_row_alone(frame: pa.Table) -> Iterator[pa.Table]:
    """Yield a frame; one with a very long text in parts, so that choosing among its rows copies none of that."""
    if len(frame) == 1 or frame.nbytes < _LARGE_BYTES:
        yield frame
        return
    largest = int(np.argmax(text_sizes(text_column(frame, "prompt")) + text_sizes(text_column(frame, "completion"))))
    yield from filter(len, (frame[:largest], frame[largest : largest + 1], frame[largest + 1 :]))


def _frame(source: Source, read: Rows) -> pa.Table:
    """Add where some rows stand and which split they belong to."""
    count = len(read.columns["prompt"])
    texts = {"completion": pa.repeat("", count)} | read.columns
    if not isinstance(source.split, SplitParams):
        codes = np.full(count, SPLITS.index(source.split), np.int8)
    elif source.split.column is not None:
        codes = split_codes(texts)
    else:
        codes = drawn_splits(texts, source.split)
    columns = {
        "file": pa.DictionaryArray.from_arrays(np.zeros(count, np.int8), [str(source.path)]),
        "row": np.arange(read.first, read.first + count),
        "prompt": texts["prompt"],
        "completion": texts["completion"],
        "split": pa.DictionaryArray.from_arrays(codes, list(SPLITS)),
    }
    return pa.table(columns | {"group": texts["group"]} if "group" in texts else columns)


def find_sources(data: DataParams, split: SplitParams) -> list[Source]:
    """Return the files in the order in which they are read: by split, then by name, with numbers by their value."""
    files = sorted(
        find_tables(data.csv, data.files),
        key=lambda file: [(part.isdigit() and int(part), part) for part in re.split(r"(\d+)", str(file))],
    )
    stems = [_ENDING.sub("", file.name) for file in files]
    named = [_SPLIT_OF_NAME[said[1].lower()] if (said := _NAMED.search(stem)) else None for stem in stems]
    parts = all(map(_NUMBERED.search, stems)) and len({_NUMBERED.sub("", stem) for stem in stems}) == 1
    if files == [Path(data.csv)] or (not any(named) and (parts or data.files is not None)):
        return [Source(file, split) for file in files]
    if None in named:
        raise UserError(
            f"{files[named.index(None)]}: the name does not say which split this is; in a folder, names end with train, "
            "validation (or valid, val, dev) or test, such as train.csv or my_test-01.csv, or all are numbered parts of "
            "one table, such as part-01.csv; rename it, give one file as data.csv, or choose by data.files"
        )
    if "train" not in named:
        raise UserError(f"{data.csv}: no training file; one must be called train.csv, or end so, such as my_train.csv")
    by_rows = split.model_copy(update={name: 0.0 for name in ("validation", "test") if name in named})
    says = {name: split if split.column is not None else by_rows if name == "train" else name for name in SPLITS}
    return [Source(file, says[name]) for name in SPLITS for file, of in zip(files, named, strict=True) if of == name]


def find_tables(data_csv: str, pattern: str | None = None) -> list[Path]:
    """Return the tables that ``data.csv`` and ``data.files`` name.

    Raises:
        UserError: there is none, it is outside of the project, or it is no regular file.
    """
    path = Path(data_csv)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", data_csv):
        raise UserError(
            f"data.csv: {data_csv} is an address; fetch it first: dvc import-url {shlex.quote(data_csv)} data/"
        )
    if _STANDARD_INPUT.fullmatch(data_csv):
        raise UserError(
            f"data.csv: {data_csv} is what comes in by a pipe, and the table is read more than once; save it to a file, such as "
            "data/prompts.csv"
        )
    roots = [
        Path.cwd(),
        Path(os.environ.get("DVC_ROOT", ".")),
    ]  # `dvc exp run --temp` works in a copy, with links out of it
    _refuse_elsewhere(path, roots)
    files = _tables_in(path, pattern) if path.is_dir() else [path]
    for file in files:
        _refuse_elsewhere(file, roots)
    for file in files:
        if not file.exists():
            raise UserError(f"{path}: not found{_instead_of(path)}")
        if not file.is_file():
            raise UserError(
                f"{file}: not a file (a pipe, a device or a folder), and it is read twice; save it to a file, such as data/prompts.csv"
            )
    if pattern is not None and files == [path]:
        raise UserError(
            f"data.files: found {pattern!r}, but data.csv ({path}) is one file, no folder; set data.files: null"
        )
    return files


def _refuse_elsewhere(path: Path, roots: list[Path]) -> None:
    """Refuse a relative path that leads out of the project, by dots or by a link.

    Raises:
        UserError: it does, or its links lead in a circle.
    """
    try:
        target = path.resolve()
    except RuntimeError:
        raise UserError(f"data.csv: {path}: its links lead in a circle; give the file itself") from None
    if not path.is_absolute() and not any(target.is_relative_to(root.resolve()) for root in roots):
        raise UserError(
            f"data.csv: {path} lies outside of the project ({target}), where DVC cannot follow it; "
            "copy it to data/, or give the absolute path"
        )


def _tables_in(folder: Path, pattern: str | None) -> list[Path]:
    tables = [file for file in folder.iterdir() if _ENDING.search(file.name) and not file.name.startswith(".")]
    if not tables:
        raise UserError(f"{folder}: no table in this folder; their names end with {_FORMATS}")
    chosen = [file for file in tables if fnmatch(file.name, pattern or "*")]
    if not chosen:
        names = ", ".join(sorted(file.name for file in tables)[:_NAMED_TABLES])
        raise UserError(f"{folder}: no table here has a name like {pattern!r} (data.files); found: {names}")
    return chosen


def _instead_of(path: Path) -> str:
    """Return what to do about a path that is not there."""
    if set("*?[") & set(path.name) and path.parent.is_dir():
        folder, names = setting("data.csv", str(path.parent)), setting("data.files", path.name)
        return f"; DVC takes no patterns: name the folder, and the files in it: -S {folder} -S {names}"
    beside = sorted(str(file) for file in path.parent.glob("*") if _ENDING.search(file.name))
    there = f"; tables there: {', '.join(beside[:_NAMED_TABLES])}" if beside else ""
    return f"{there}; set data.csv, e.g. with -S data.csv=data/my_prompts.csv"
