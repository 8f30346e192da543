"""Where the rows of the table are prepared: on this machine, or in parts on Dask, with the same result."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import pyarrow as pa

from stages.artifacts.prompts_table import DataParams, read_prompts
from stages.command_line import with_progress
from stages.core.split import SplitParams
from stages.partitions.engine_params import EngineParams

Result = TypeVar("Result")
Make = Callable[[Iterator[pa.Table]], Iterator[Result]]
"""What is made of successive frames of rows."""


def over_rows(
    make: Make[Result], data: DataParams, split: SplitParams, engine: EngineParams, *, name: str, quiet: bool
) -> Iterator[Result]:
    """Yield what is made of all rows, in their order; on Dask, of each part of the table by itself.

    Args:
        make: what is to be made; on Dask it is sent to other processes.
        data: where the table is.
        split: what decides the split of each row.
        engine: where to do it.
        name: of the stage, for its progress.
        quiet: no progress.

    Raises:
        UserError: the table is at fault, or ``make`` says so; the message is the same wherever it runs. Or Dask cannot be used.
    """
    if engine.dask is None:
        yield from make(with_progress(read_prompts(data, split), name, quiet=quiet))
        return
    from stages.partitions.cluster import FaultyRowsError, over_partitions  # noqa: PLC0415 - imports Dask

    try:
        yield from over_partitions(make, data, split, engine.dask, name=name, quiet=quiet)
    except FaultyRowsError as error:
        for _ in make(read_prompts(data, split)):  # raises what is wrong with the first row at fault
            pass
        raise RuntimeError("parts of the table were refused, and the whole was not") from error
