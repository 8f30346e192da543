"""Parquet: the columns that are read, as a stream of batches."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.artifacts.table_columns import (
    Columns,
    Rows,
    Wanted,
    checked_row,
    field_of,
    find_column,
    plain_text,
    sound_columns,
)
from stages.errors import UserError

_BATCH_BYTES = 1 << 22  # of text, in the mean
_MOST_ROWS = 1 << 16


def read_parquet(path: Path, wanted: Wanted, groups: Sequence[int] | None = None) -> Iterator[Rows]:
    """Yield the rows of a Parquet file, or of some of its row groups, then numbered from the first one in these.

    Raises:
        UserError: the file is damaged, or a column holds what has no exact text, or a row is at fault.
    """
    from pyarrow import parquet  # noqa: PLC0415 - takes a while

    try:
        with parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            paths = [file.schema.column(index).path for index in range(len(file.schema))]
            names = {role: paths[find_column(path, paths, role, wanted)] for role in wanted}
            first = 1
            batch_rows = _batch_rows(file.metadata, paths, names)
            for batch in file.iter_batches(batch_rows, groups, columns=list(names.values())):
                columns = {}
                for role, name in names.items():
                    column = _leaf(batch, name)
                    if not _is_exact(column.type):
                        raise UserError(
                            f"{path}, row {first}, column {name!r}: found {column.type}, which has no one exact text; "
                            "write the column as text"
                        )
                    columns[role] = plain_text(column.cast(pa.string()))
                if sound_columns(columns) is None:
                    _explain(path, first, columns, wanted)
                yield Rows(first, columns)
                first += len(batch)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not a Parquet file, or damaged ({error})") from None


def _batch_rows(metadata: Any, paths: list[str], names: Wanted) -> int:
    """Return how many rows are read at once, by the size of their text."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    size = sum(group.column(paths.index(name)).total_uncompressed_size for group in groups for name in names.values())
    return max(1, min(_MOST_ROWS, int(_BATCH_BYTES * metadata.num_rows // max(size, 1))))


def _leaf(batch: pa.RecordBatch, path: str) -> pa.Array:
    """Return a column by its path; a.b is the field b of the column a."""
    name, *inner = [path] if path in batch.schema.names else path.split(".")
    return field_of(batch[name], inner)


def _is_exact(kind: pa.DataType) -> bool:
    """Return whether values of a type have one text, so that none is made up: fractions in binary have many."""
    if pa.types.is_dictionary(kind):
        return _is_exact(kind.value_type)
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    number = pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_boolean(kind)
    return bool(text or number or pa.types.is_temporal(kind) or pa.types.is_null(kind))


def _explain(path: Path, first: int, columns: Columns, wanted: Wanted) -> None:
    """Raise what is wrong with the first row at fault."""
    for row, cells in enumerate(zip(*(columns[role].to_pylist() for role in wanted), strict=True), first):
        try:
            checked_row(dict(zip(wanted, cells, strict=True)), wanted)
        except ValueError as error:
            raise UserError(f"{path}, row {row}: {error}") from None
