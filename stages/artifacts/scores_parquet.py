"""data/scores.parquet: what an evaluation found of each row. The same scores give the same bytes."""

import io
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.artifacts.atomic import atomic_file
from stages.core.score_table import ScoreTable
from stages.errors import UserError

SCORES_FILE = Path("data/scores.parquet")
_INTEGERS = ("rows", "tokens", "bytes", "correct", "completion_tokens", "completion_correct")
_SCHEMA = pa.schema(
    [
        ("split", pa.dictionary(pa.int8(), pa.string())),
        ("file", pa.dictionary(pa.int32(), pa.string())),
        ("row", pa.int64()),
        ("group", pa.dictionary(pa.int32(), pa.string())),
        ("prompt", pa.string()),
        ("expected", pa.string()),
        ("completion", pa.string()),
        ("exact", pa.bool_()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
        ("loss_sum", pa.float64()),
        ("correct", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("completion_correct", pa.int64()),
    ]
)
_GROUP_COLUMN = "group_column"
"""The field of ScoreTable that is no column, but said of one: metadata of the file."""
_FIELDS = [field.name for field in fields(ScoreTable) if field.name != _GROUP_COLUMN]
_COLUMNS = dict(zip(_FIELDS, _SCHEMA.names, strict=True))
"""Field of ScoreTable -> column."""


def write_scores(path: Path, table: ScoreTable) -> None:
    """Write one line for each row."""
    columns = {name: getattr(table, field) for field, name in _COLUMNS.items()}
    columns["split"] = pa.DictionaryArray.from_arrays(np.zeros(len(table), np.int8), pa.array([table.split]))
    schema = _SCHEMA if table.group_column is None else _SCHEMA.with_metadata({_GROUP_COLUMN: table.group_column})
    arrow = pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema}, schema=schema)
    with atomic_file(path) as file:
        pq.write_table(arrow, file, compression="zstd")


def read_scores(content: bytes, name: str) -> ScoreTable:
    """Read what ``write_scores`` wrote.

    Args:
        content: of the file.
        name: of the file, for errors.

    Raises:
        UserError: it is no such table, or has no rows.
    """
    try:
        arrow = pq.read_table(io.BytesIO(content))
        group_column = (arrow.schema.metadata or {}).get(_GROUP_COLUMN.encode())
        arrow = arrow.cast(_SCHEMA)
        (split,) = arrow["split"].unique().to_pylist()
    except (pa.ArrowException, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name}: not a table of scores ({reason}); make it again with `dvc repro --force evaluate`"
        ) from None
    values: dict[str, Any] = {
        field: arrow[column].to_numpy() if field in (*_INTEGERS, "loss_sum") else arrow[column].to_pylist()
        for field, column in _COLUMNS.items()
    }
    return ScoreTable(**values | {"split": split, _GROUP_COLUMN: group_column and group_column.decode()})
