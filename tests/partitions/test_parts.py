"""A table read in parts has the rows that it has when it is read at once, wherever its bytes are cut."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.artifacts import table_text
from stages.artifacts.prompts_table import DataParams, find_sources, read_prompts, read_source
from stages.core.split import SplitParams
from stages.errors import UserError
from stages.partitions import parts
from stages.partitions.parts import SourcePart, find_parts, scan_range

NOTHING_HELD_OUT = SplitParams(validation=0.0, test=0.0, seed=0, column=None)
CELL = st.text(st.sampled_from('ab",;\n é\t'), max_size=8)
RAW = st.text(st.sampled_from('a",\n\r'), max_size=60)
TEXT_ENDINGS = (".csv", ".tsv", ".jsonl", ".csv.gz")


def data(path: Path) -> DataParams:
    return DataParams(csv=str(path), prompt_column="prompt", completion_column="completion", delimiter=None, files=None)


def cells(frames: Iterator[pa.Table]) -> list[tuple[str, str]]:
    return [(row["prompt"], row["completion"]) for frame in frames for row in frame.to_pylist()]


def parts_of(path: Path) -> list[SourcePart]:
    return list(
        find_parts(
            find_sources(data(path), NOTHING_HELD_OUT), None, lambda ranges: [scan_range(*each) for each in ranges]
        )
    )


def rows_or_nothing(read: Callable[[], list[tuple[str, str]]]) -> list[tuple[str, str]]:
    try:
        return read()
    except UserError:
        return []


def read_in_parts(path: Path) -> list[tuple[str, str]]:
    return [row for source, part in parts_of(path) for row in cells(read_source(source, data(path), part))]


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(CELL, CELL).filter(any), min_size=1, max_size=12),
    part_bytes=st.integers(1, 60),
    block_bytes=st.sampled_from([1, 7, 10_000]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
)
@pytest.mark.parametrize("ending", TEXT_ENDINGS)
def test_the_rows_of_all_parts_are_those_of_the_table(
    ending: str, rows: list[tuple[str, str]], part_bytes: int, block_bytes: int, line_end: str, mark: bool
) -> None:
    frame = pd.DataFrame(rows, columns=["prompt", "completion"], dtype=object)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, f"prompts{ending}")
        if ending == ".jsonl":
            frame.to_json(path, orient="records", lines=True, force_ascii=False)
        else:
            encoding = "utf-8-sig" if mark else "utf-8"
            frame.to_csv(
                path, index=False, sep="\t" if ending == ".tsv" else ",", lineterminator=line_end, encoding=encoding
            )
        patch.setattr(table_text, "_BLOCK_BYTES", block_bytes)
        patch.setattr(parts, "PART_BYTES", part_bytes)
        assert read_in_parts(path) == rows


@settings(max_examples=300)
@given(text=RAW, part_bytes=st.integers(1, 30))
def test_whatever_the_bytes_are_parts_are_read_as_the_whole_or_one_is_refused(text: str, part_bytes: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "prompts.csv")
        path.write_text(f"prompt,completion\n{text}", newline="")
        patch.setattr(parts, "PART_BYTES", part_bytes)
        assert rows_or_nothing(lambda: read_in_parts(path)) == rows_or_nothing(
            lambda: cells(read_prompts(data(path), NOTHING_HELD_OUT))
        )


def test_row_groups_are_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prompts.parquet"
    frame = pd.DataFrame({"prompt": [f"p{n}" for n in range(100)], "completion": "x"})
    frame.to_parquet(path, row_group_size=7)
    monkeypatch.setattr(parts, "PART_BYTES", 500)
    assert 2 < len(parts_of(path)) <= 15
    assert read_in_parts(path) == list(zip(frame["prompt"], frame["completion"], strict=True))


def test_a_large_table_of_quoted_lines_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,completion\n" + '"a\n""b"" c\n",d\n' * 200)
    monkeypatch.setattr(parts, "PART_BYTES", 300)
    assert len(parts_of(path)) == -(-path.stat().st_size // 300)
    path.write_text("prompt,completion\n" + 'a 5" pipe,d\n' * 200)  # quotes that open nothing
    assert [of_file.part for of_file in parts_of(path)] == [None]
    assert read_in_parts(path) == [('a 5" pipe', "d")] * 200
