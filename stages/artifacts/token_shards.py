"""The token_ids of one split, as memory-mapped safetensors.

A file holds three tensors, in this order: row_offsets int64 [R + 1], completion_starts int64 [R] and token_ids [tokens] in
the smallest of uint8, uint16 and uint32 that holds the vocabulary.

Shapes: R rows.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from stages.artifacts.atomic import atomic_file
from stages.artifacts.regular_file import check_file, hash_file
from stages.core.split import Split
from stages.core.windows import Integers, RowSpans
from stages.errors import UserError

LOG = logging.getLogger(__name__)

METADATA_FILE = "metadata.json"
"""Beside the shards; stages/artifacts/dataset.py reads it."""
REBUILD = "build it anew with: dvc repro build_dataset"
_REBUILD_DAMAGED = (
    "build it anew with: dvc repro --force build_dataset"  # DVC does not hash a file again whose time is old
)
_LENGTH_BYTES = 8  # of the header, in front of it
_DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("<u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_Tensor = tuple[np.dtype[Any], list[int], list[int]]  # its type, its shape, where it begins and ends
_TENSORS = ("row_offsets", "completion_starts", "token_ids")


@dataclass(frozen=True)
class TokenShard:
    """The rows of one split, memory-mapped."""

    token_ids: Integers
    """[tokens]"""
    row_offsets: Integers
    """[R + 1] row r is token_ids[row_offsets[r]:row_offsets[r + 1]]."""
    completion_starts: Integers
    """[R] the first token of row r's completion; row_offsets[r + 1] where it has none."""

    @property
    def row_spans(self) -> RowSpans:
        """Where the rows and their completions lie."""
        return RowSpans(self.row_offsets, self.completion_starts)


def shard_path(folder: Path, split: Split) -> Path:
    """Return the file of one split."""
    return folder / f"{split}.safetensors"


def open_shard(path: Path) -> TokenShard:
    """Map one split's file into memory.

    Raises:
        UserError: the file is absent, shorter or longer than its header says, or not a token shard.
    """
    LOG.info("mapping %s", path)
    check_file(path, REBUILD)
    try:
        data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except ValueError:  # an empty file cannot be mapped
        raise UserError(f"{path}: the file is empty; {REBUILD}") from None
    try:
        header_end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES].tobytes(), "little")
        header = json.loads(data[_LENGTH_BYTES:header_end].tobytes())
        tensors: list[_Tensor] = [
            (_DTYPES[header[name]["dtype"]], header[name]["shape"], header[name]["data_offsets"]) for name in _TENSORS
        ]
        size = header_end + tensors[-1][2][1]
        well_formed = _is_well_formed(tensors)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise UserError(f"{path}: not a token shard; {REBUILD}") from None
    if not well_formed:
        raise UserError(f"{path}: not a token shard (its tensors are not those of one); {REBUILD}")
    if size != len(data):
        raise UserError(f"{path}: damaged: {len(data):,} bytes where its header says {size:,}; {REBUILD}")
    row_offsets, completion_starts, token_ids = (
        data[header_end + start : header_end + end].view(dtype) for dtype, _, (start, end) in tensors
    )
    return TokenShard(token_ids, row_offsets, completion_starts)


def verify_shard(path: Path, *, rows: int, tokens: int, vocabulary_size: int, sha256: str) -> None:
    """Compare a split's file with what metadata.json says of it; reads the whole file.

    Raises:
        UserError: the file is absent, its bytes are not those that were written, or it holds what no dataset holds.
    """
    shard = open_shard(path)
    if (len(shard.completion_starts), len(shard.token_ids)) != (rows, tokens):
        found = f"{len(shard.completion_starts):,} rows and {len(shard.token_ids):,} tokens"
        raise UserError(f"{path}: {found}, where {METADATA_FILE} has {rows:,} and {tokens:,}; {_REBUILD_DAMAGED}")
    if hash_file(path) != sha256:
        raise UserError(f"{path}: damaged: its SHA-256 is not that of {METADATA_FILE}; {_REBUILD_DAMAGED}")
    starts, ends = shard.row_offsets[:-1], shard.row_offsets[1:]
    if shard.row_offsets[0] != 0 or shard.row_offsets[-1] != tokens or np.any(ends <= starts):
        raise UserError(f"{path}: its rows do not follow one another; {_REBUILD_DAMAGED}")
    if np.any(shard.completion_starts < starts) or np.any(shard.completion_starts > ends):
        raise UserError(f"{path}: a completion begins outside of its row; {_REBUILD_DAMAGED}")
    if tokens and (largest := int(shard.token_ids.max())) >= vocabulary_size:
        raise UserError(f"{path}: token id {largest:,} in a vocabulary of {vocabulary_size:,}; {_REBUILD_DAMAGED}")


class TokenShardWriter:
    """Writes one split's file row by row, in constant memory.

    A safetensors file begins with the sizes of its tensors, which are known last. So each tensor goes to a temporary
    file in the same folder, and the three are put together at the end.
    """

    def __init__(
        self, token_dtype: np.dtype[Any], row_offsets: BinaryIO, completion_starts: BinaryIO, token_ids: BinaryIO
    ) -> None:
        """Take the three temporary files, open for writing; ``open_shard_writer`` does that."""
        self._token_dtype = token_dtype
        self._spools = (row_offsets, completion_starts, token_ids)
        self.rows = 0
        self.tokens = 0
        self.sha256 = ""  # of the finished file
        row_offsets.write(np.zeros(1, "<i8").tobytes())

    def append(self, token_ids: Integers, row_lengths: Integers, prompt_lengths: Integers) -> None:
        """Add rows.

        Args:
            token_ids: [tokens] of the rows, laid end to end.
            row_lengths: [R] the tokens of each row.
            prompt_lengths: [R] how many of them precede its completion: all of them if it has none.
        """
        row_offsets, completion_starts, spooled_token_ids = self._spools
        ends = self.tokens + np.cumsum(row_lengths)
        row_offsets.write(ends.astype("<i8").tobytes())
        completion_starts.write((ends - row_lengths + prompt_lengths).astype("<i8").tobytes())
        spooled_token_ids.write(token_ids.astype(self._token_dtype).tobytes())
        self.rows += len(row_lengths)
        self.tokens += len(token_ids)

    def assemble(self, file: BinaryIO) -> None:
        """Write the whole shard to ``file``."""
        int64 = np.dtype("<i8")
        shapes = [(int64, self.rows + 1), (int64, self.rows), (self._token_dtype, self.tokens)]
        header, start = {}, 0
        for name, (dtype, length) in zip(_TENSORS, shapes, strict=True):
            end = start + length * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": [length], "data_offsets": [start, end]}
            start = end
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)  # so that the int64 tensors are aligned
        file.write(len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded)
        for spool in self._spools:
            spool.seek(0)
            shutil.copyfileobj(spool, file, 1 << 20)


@contextmanager
def open_shard_writer(path: Path, vocabulary_size: int) -> Iterator[TokenShardWriter]:
    """Open a writer whose rows become the file ``path`` when the block ends, and nothing if it fails."""
    dtype = next(_DTYPES[name] for name in ("U8", "U16", "U32") if vocabulary_size - 1 <= np.iinfo(_DTYPES[name]).max)
    with ExitStack() as stack:
        spools = [stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for _ in _TENSORS]
        writer = TokenShardWriter(dtype, *spools)
        yield writer
        with atomic_file(path) as file:
            writer.assemble(file)
            file.flush()
            writer.sha256 = hash_file(Path(file.name))


def _is_well_formed(tensors: list[_Tensor]) -> bool:
    """Return whether the tensors are of the right types, agree in length, and follow one another without a hole."""
    (offsets_dtype, (offsets,), _), (starts_dtype, (rows,), _), (token_dtype, _, _) = tensors
    ends = [0, *(end for _, _, (_, end) in tensors)]
    return (
        offsets_dtype == starts_dtype == np.int64
        and token_dtype.kind == "u"
        and all(type(number) is int and number >= 0 for _, shape, places in tensors for number in (*shape, *places))
        and offsets == rows + 1
        and all(
            start == previous_end and end - start == length * dtype.itemsize
            for previous_end, (dtype, (length,), (start, end)) in zip(ends, tensors, strict=False)
        )
    )
