"""What every format of table has in common: its columns, found by name, and which rows are sound."""

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from stages.core.frames import text_data, text_sizes
from stages.core.split import SPLITS
from stages.errors import UserError

KEYS = {
    "prompt": "data.prompt_column",
    "completion": "data.completion_column",
    "split": "split.column",
    "group": "evaluate.group_column",
}
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ",": "commas"}

_CARRIAGE_RETURN = re.compile(rb"\r")
_NUMBER = re.compile(r"\s*[-+]?\d+(\.\d+)?\s*")

Columns = dict[str, pa.StringArray]
"""The text of some rows: prompt, completion, and split and group where a column says them."""
Wanted = Mapping[str, str]
"""The columns to read: a key of ``KEYS`` -> the column's name."""


class Part(NamedTuple):
    """A part of a file: some row groups of Parquet, or some bytes of text that is not compressed."""

    begin: int
    """The first row group, or a byte at which a row or the header begins."""
    end: int
    """The row group or the row after it, or the end of the file."""


class Rows(NamedTuple):
    """Successive rows of one file."""

    first: int
    """The number of the first of them; the first row of the file is 1."""
    columns: Columns


def find_column(path: Path, names: Sequence[str], role: str, wanted: Wanted) -> int:
    """Return which of a table's columns is meant.

    Raises:
        UserError: there is none of this name, or there are several.
    """
    name, key = wanted[role], KEYS[role]
    if names.count(name) == 1:
        return names.index(name)
    if name in names:
        raise UserError(
            f"{path}: the column {name!r} ({key}) stands {names.count(name)} times in the header; rename all but one"
        )
    found = ", ".join(map(repr, names[:50])) + (", ..." if len(names) > 50 else "")
    used = [mark for mark in _SEPARATORS if len(names) == 1 and mark in names[0]]
    if used:
        fix = f"the columns are separated by {_SEPARATORS[used[0]]}; read them with -S {setting('data.delimiter', used[0])}"
    elif row := header_that_is_a_row(names):
        fix = row
    elif spaced := [other for other in names if other.strip() == name.strip()]:
        fix = f"the header has white space around {spaced[0]!r}; remove it there, or use -S {setting(key, spaced[0])}"
    else:
        free = [other for other in names if other and other not in wanted.values()]
        nearest = difflib.get_close_matches(name, free, n=1) or free[:1]
        fix = f"name the right one, e.g. with -S {setting(key, nearest[0])}" if nearest else "name the right one"
        if role == "completion":
            fix += ", or -S data.completion_column=null if the table has prompts only"
        if role == "group":
            fix += ", or -S evaluate.group_column=null to score without groups"
        if role == "prompt":
            fix += "; if these are a row of data, put a line above it that names the columns"
    raise UserError(f"{path}: no column {name!r} ({key}); found: {found}; {fix}")


def header_that_is_a_row(names: Sequence[str]) -> str | None:
    """Return what to do where a header seems to be the first row: all numbers, other than the 0, 1, ... that pandas writes."""
    if (
        not names
        or not all(map(_NUMBER.fullmatch, names))
        or list(names) == [str(index) for index in range(len(names))]
    ):
        return None
    return "the first line seems to be a row of data; put a line above it that names the columns, such as prompt,completion"


def setting(key: str, value: str) -> str:
    """Return ``key=value`` as the shell and DVC read it."""
    if re.fullmatch(r"[A-Za-z_][\w.-]*", value, re.ASCII) and value.lower() not in {
        "null",
        "true",
        "false",
        "nan",
        "inf",
    }:
        return f"{key}={value}"
    quoted = f"{key}='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return shlex.quote(quoted) if set(quoted) & set('"$`\\!') else f'"{quoted}"'


def sound_columns(columns: Columns) -> Columns | None:
    """Return these columns if ``checked_row`` would take every row, without a step of Python's for each; else None."""
    empty = np.logical_and.reduce(
        [text_sizes(columns[role]) == 0 for role in ("prompt", "completion") if role in columns]
    )
    splits = set(columns["split"].unique().to_pylist()) if "split" in columns else set()
    faulty = empty.any() or splits - set(SPLITS) or not all(map(_has_no_nul, columns.values()))
    return None if faulty else columns


def _has_no_nul(texts: pa.StringArray) -> bool:
    data = np.frombuffer(text_data(texts), np.uint8)
    return int(np.count_nonzero(data)) == len(data)


def checked_row(cells: dict[str, str], wanted: Wanted) -> dict[str, str]:
    """Return the cells of one row; raise ValueError where something is wrong with them."""
    for role, cell in cells.items():
        if "\0" in cell:
            raise ValueError(f"column {wanted[role]!r}: a NUL character; remove it")
    if "split" in cells and cells["split"] not in SPLITS:
        found = f"column {wanted['split']!r} (split.column): found {cells['split']!r}"
        raise ValueError(f"{found}; allowed: {', '.join(SPLITS)}")
    if not cells["prompt"] and not cells.get("completion"):
        raise ValueError("neither a prompt nor a completion; fill the row or delete it")
    return cells


def to_columns(rows: Sequence[Mapping[str, str]], wanted: Wanted) -> Columns:
    """Return rows of cells as columns of Arrow strings."""
    return {role: pa.array([row[role] for row in rows], pa.string()) for role in wanted}


def only_chunk(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; ``combine_chunks`` copies even where there is one."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def field_of(column: pa.Array, names: Sequence[str]) -> pa.Array:
    """Return a field of a column of structs, by the names on the way to it; of none the column itself."""
    for name in names:
        column = column.flatten()[column.type.get_field_index(name)]
    return column


def plain_text(column: pa.StringArray) -> pa.StringArray:
    r"""Return text without nulls, which are empty cells, and with ``\n`` for ``\r\n``."""
    from pyarrow import compute  # noqa: PLC0415 - takes a while

    column = column.fill_null("") if column.null_count else column
    return compute.replace_substring(column, "\r\n", "\n") if _CARRIAGE_RETURN.search(text_data(column)) else column
