"""The first rows of a table with all its columns, before anybody has said which of them are prompts and completions."""

import csv
import io
import itertools
import json
from collections import Counter
from pathlib import Path

import pandas as pd
from pyarrow import parquet

from presets.fitting.choice import Choice
from stages.artifacts.prompts_table import find_tables
from stages.artifacts.table_text import open_text
from stages.errors import UserError

ROWS = 2000
_BYTES = 1 << 20
_DELIMITERS = ",;\t|"


def peek(data_csv: str, delimiter: str | None = None) -> pd.DataFrame:
    """Return the first rows of the first table that ``data_csv`` names; all cells are text.

    Raises:
        UserError: there is no table, or it cannot be read.
    """
    path = find_tables(data_csv)[0]
    if path.suffix == ".parquet":
        batches = parquet.ParquetFile(path).iter_batches(ROWS)
        rows = next(batches, None)
        return pd.DataFrame() if rows is None else _as_text(pd.json_normalize(rows.to_pylist()))
    text = _beginning(path)
    if {".jsonl", ".ndjson"} & set(path.suffixes):
        lines = [line for line in text.splitlines() if line.strip()][:ROWS]
        try:
            return _as_text(pd.json_normalize([json.loads(line) for line in lines]))
        except (ValueError, AttributeError):
            raise UserError(f"{path}: not JSON Lines: each line must be an object") from None
    separator = delimiter or ("\t" if ".tsv" in path.suffixes else ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    records = list(filter(None, itertools.islice(reader, ROWS + 1)))
    if not records:
        raise UserError(f"{path}: the file is empty; its first line must name the columns")
    header = records[0]
    return pd.DataFrame([record for record in records[1:] if len(record) == len(header)], columns=header, dtype="str")


def choose_delimiter(data_csv: str) -> Choice[str | None]:
    """Return what separates the cells of a text table: the commonest of the likely marks in its header."""
    path = find_tables(data_csv)[0]
    usual = "\t" if ".tsv" in path.suffixes else ","
    if not {".csv", ".tsv"} & set(path.suffixes):
        return Choice(None, "not a table of separated cells")
    marks = Counter(mark for mark in _beginning(path).partition("\n")[0] if mark in _DELIMITERS)
    if not marks or usual in marks:
        return Choice(None, "the usual one for its name")
    found = marks.most_common(1)[0][0]
    return Choice(found, f"the header has {marks[found]} of them")


def _beginning(path: Path) -> str:
    """Return the first lines of a text table; the last one may be cut."""
    with open_text(path) as file:
        return file.read(_BYTES).decode("utf-8-sig", errors="replace")


def _as_text(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.map(lambda cell: "" if cell is None or cell != cell else str(cell)).astype("str")  # noqa: PLR0124 - NaN
