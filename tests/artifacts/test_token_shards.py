import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from stages.artifacts.token_shards import open_shard, open_shard_writer, verify_shard
from stages.errors import UserError


def header(*tensors: tuple[str, int]) -> bytes:
    """Describe the three tensors of a shard, as if every number took 8 bytes."""
    described, start = {}, 0
    for name, (dtype, length) in zip(("row_offsets", "completion_starts", "token_ids"), tensors, strict=True):
        described[name] = {"dtype": dtype, "shape": [length], "data_offsets": [start, start + 8 * length]}
        start += 8 * length
    return json.dumps(described, separators=(",", ":")).encode()


def write(path: Path, vocabulary_size: int = 5) -> Path:
    with open_shard_writer(path, vocabulary_size) as writer:
        writer.append(np.array([0, 1, 2, 4, 3, 4]), np.array([6]), np.array([4]))
        writer.append(np.array([2, 1, 0, 4, 3, 4, 1, 4]), np.array([6, 2]), np.array([4, 2]))
    return path


@given(
    chunks=st.lists(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), max_size=4)),
    vocabulary_size=st.sampled_from([1, 256, 257, 65_536, 65_537]),
)
def test_what_is_written_is_read_by_us_and_by_safetensors(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[list[tuple[int, int]]], vocabulary_size: int
) -> None:
    path = tmp_path_factory.mktemp("shard") / "train.safetensors"
    lengths = [row for chunk in chunks for row in chunk]
    token_ids = np.arange(sum(map(sum, lengths))) % vocabulary_size
    with open_shard_writer(path, vocabulary_size) as writer:
        for chunk in chunks:
            sizes = np.array(chunk, dtype=np.int64).reshape(-1, 2)
            begin = writer.tokens
            writer.append(token_ids[begin : begin + sizes.sum()], sizes.sum(axis=1), sizes[:, 0])
    shard, tensors = open_shard(path), load_file(path)
    ends = np.cumsum([sum(row) for row in lengths], dtype=np.int64)
    assert shard.token_ids.tolist() == tensors["token_ids"].tolist() == token_ids.tolist()
    assert shard.token_ids.dtype == (
        np.uint8 if vocabulary_size <= 256 else np.uint16 if vocabulary_size <= 65_536 else np.uint32
    )
    assert shard.row_offsets.tolist() == tensors["row_offsets"].tolist() == [0, *ends]
    expected_starts = [end - completion for end, (_, completion) in zip(ends, lengths, strict=True)]
    assert shard.completion_starts.tolist() == tensors["completion_starts"].tolist() == expected_starts


def test_the_same_rows_give_the_same_bytes_however_they_come(tmp_path: Path) -> None:
    first = write(tmp_path / "first").read_bytes()
    with open_shard_writer(tmp_path / "second", 5) as writer:
        tokens = np.array([0, 1, 2, 4, 3, 4, 2, 1, 0, 4, 3, 4, 1, 4])
        writer.append(tokens, np.array([6, 6, 2]), np.array([4, 4, 2]))
    assert (tmp_path / "second").read_bytes() == first


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = write(tmp_path / "train.safetensors")
    before = path.read_bytes()
    with pytest.raises(IndexError), open_shard_writer(path, 5) as writer:
        writer.append(np.array([1, 4])[9:][0], np.array([2]), np.array([2]))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_damage_is_found_wherever_the_file_is_cut(tmp_path: Path) -> None:
    whole = write(tmp_path / "train.safetensors").read_bytes()
    path = tmp_path / "cut"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(
            UserError, match=r"cut: (the file is empty|not a token shard|damaged).*dvc repro build_dataset"
        ):
            open_shard(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="damaged"):
        open_shard(path)


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        b'{"row_offsets":3,"completion_starts":3,"token_ids":3}',
        header(("I64", 1), ("I64", 0), ("F32", 0)),
        header(("I64", 1), ("I64", 0), ("I64", 0)),
        header(("I64", 2), ("I64", 0), ("U8", 0)),
        header(("I64", 1), ("I64", 0), ("U8", 0)).replace(b"[8,8]", b"[0,8]"),
        b"\xff\xfe",
        b"[" * 100_000,
        header(("I64", 1), ("I64", 0), ("U8", 0)).replace(b"[0,8]", b"[0,8.0]"),
        header(("I64", 1), ("I64", 0), ("U8", 0)).replace(b"[0,8]", b"[false,8]"),
        header(("I64", -1), ("I64", -2), ("U8", 0)),
        header(("I64", 10**30), ("I64", 0), ("U8", 0)),
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train.safetensors"
    path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(8))
    with pytest.raises(UserError, match="not a token shard"):
        open_shard(path)


def test_the_writer_gives_the_files_hash(tmp_path: Path) -> None:
    path = tmp_path / "train.safetensors"
    with open_shard_writer(path, 5) as writer:
        writer.append(np.array([0, 4]), np.array([2]), np.array([2]))
    assert writer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.safetensors: not found"):
        open_shard(tmp_path / "train.safetensors")


Rows = tuple[list[int], list[int], list[int]]  # token_ids, row_lengths, prompt_lengths
SOUND: Rows = ([0, 1, 2, 4, 3, 4], [4, 2], [3, 1])


def verify(path: Path, written: Rows, **changed: int | str) -> None:
    """Write rows, and verify them as metadata.json would describe them, apart from what is changed."""
    with open_shard_writer(path, 5) as writer:
        writer.append(*map(np.array, written))
    described: dict[str, Any] = {"rows": len(written[1]), "tokens": len(written[0]), "vocabulary_size": 5}
    verify_shard(path, **described | {"sha256": writer.sha256} | changed)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "train.safetensors"
    verify(path, SOUND)
    whole = path.read_bytes()
    digest = hashlib.sha256(whole).hexdigest()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"^\S+train\.safetensors: .*dvc repro (--force )?build_dataset"):
            verify_shard(path, rows=2, tokens=6, vocabulary_size=5, sha256=digest)


@pytest.mark.parametrize(
    ("rows", "changed", "found"),
    [
        (([0, 1, 2, 4, 3, 4], [8, -2], [3, 1]), {}, "its rows do not follow one another"),
        (([0, 1, 2, 4, 3, 4], [6, 0], [3, 0]), {}, "its rows do not follow one another"),
        (([0, 1, 2, 4, 3, 4], [4, 3], [3, 1]), {}, "its rows do not follow one another"),
        (([0, 1, 2, 4, 3, 4], [4, 2], [3, -1]), {}, "a completion begins outside of its row"),
        (([0, 1, 2, 4, 3, 4], [4, 2], [5, 1]), {}, "a completion begins outside of its row"),
        (([0, 1, 5, 4, 3, 4], [4, 2], [3, 1]), {}, "token id 5 in a vocabulary of 5"),
        (SOUND, {"vocabulary_size": 4}, "token id 4 in a vocabulary of 4"),
        (SOUND, {"rows": 3}, "2 rows and 6 tokens, where metadata.json has 3 and 6"),
        (SOUND, {"tokens": 10**12}, "2 rows and 6 tokens, where metadata.json has 2 and 1,000,000,000,000"),
        (SOUND, {"sha256": "0" * 64}, "damaged: its SHA-256 is not that of metadata.json"),
    ],
)
def test_rows_that_no_dataset_holds_are_refused_even_with_their_right_hash(
    rows: Rows, changed: dict[str, Any], found: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"train\.safetensors: {re.escape(found)}; build it anew"):
        verify(tmp_path / "train.safetensors", rows, **changed)
