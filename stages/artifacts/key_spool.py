"""Keys of rows (stages/core/text_keys.py) in a temporary file, so that they take no memory while a table is read."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from stages.core.data_figures import RowKeys

_BLOCK_BYTES = 1 << 22


class KeySpool:
    """Takes keys, and yields them again from the first one, as often as it is iterated over."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def append(self, keys: RowKeys) -> None:
        """Add those of some rows, [R, 2]."""
        self._file.write(keys.tobytes())

    def __iter__(self) -> Iterator[RowKeys]:
        """Yield all, in blocks."""
        self._file.seek(0)
        while block := self._file.read(_BLOCK_BYTES):
            yield np.frombuffer(block, np.int64).reshape(-1, 2)


@contextmanager
def open_key_spool(folder: Path) -> Iterator[KeySpool]:
    """Yield an empty spool, whose file in ``folder`` is gone afterwards."""
    with tempfile.TemporaryFile(dir=folder) as file:
        yield KeySpool(file)
