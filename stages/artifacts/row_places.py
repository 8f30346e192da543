"""Where the rows of a split are in the data, and which group they belong to: what data/dataset/ does not hold."""

import os

import numpy as np

from stages.artifacts.prompts_table import DataParams, find_tables, read_prompts
from stages.core.frames import rows_of
from stages.core.score_table import RowPlaces
from stages.core.split import Split, SplitParams
from stages.errors import UserError


def read_places(
    data: DataParams, split_params: SplitParams, split: Split, rows: int, group_column: str | None
) -> RowPlaces:
    """Read the table again, as build_dataset read it: the same rows in the same order.

    Args:
        data: where the table is.
        split_params: what decides the split of each row.
        split: whose rows are returned.
        rows: how many the dataset has of them.
        group_column: the column that groups rows; None: no column does.

    Raises:
        UserError: the table cannot be read, has no such column, or has another number of rows.
    """
    frames = [rows_of(frame, split) for frame in read_prompts(data, split_params, group_column)]
    numbers = np.concatenate([frame["row"].to_numpy() for frame in frames])
    if len(numbers) != rows:
        raise UserError(
            f"{data.csv}: found {len(numbers):,} {split} rows, where data/dataset/ has {rows:,}; type `dvc repro`"
        )
    folder = os.path.commonpath([path.parent for path in find_tables(data.csv, data.files)])
    names = [name for frame in frames for name in frame["file"].to_pylist()]
    short = {name: os.path.relpath(name, folder).replace(os.sep, "/") for name in set(names)}
    return RowPlaces(
        files=[short[name] for name in names],
        rows=numbers,
        group_column=group_column,
        groups=[group for frame in frames for group in frame["group"].to_pylist()] if group_column else [None] * rows,
    )
