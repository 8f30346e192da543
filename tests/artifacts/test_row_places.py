"""Rows are found again in the data as build_dataset read them."""

from pathlib import Path

import pytest

from stages.artifacts.prompts_table import DataParams, read_prompts
from stages.artifacts.row_places import read_places
from stages.core.frames import rows_of
from stages.core.split import SplitParams
from stages.errors import UserError


def data(path: Path, completion: str | None = "completion") -> DataParams:
    return DataParams(csv=str(path), prompt_column="prompt", completion_column=completion, delimiter=None, files=None)


def split(column: str | None = None) -> SplitParams:
    return SplitParams(validation=0.2, test=0.3, seed=0, column=column)


def lines(first: int, last: int) -> str:
    return "prompt,completion,topic\n" + "".join(f"p{n},c{n},t{n % 3}\n" for n in range(first, last))


def test_the_numbers_are_those_of_the_rows_in_their_file(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text(lines(1, 101))
    expected = [
        text for frame in read_prompts(data(table), split()) for text in rows_of(frame, "test")["prompt"].to_pylist()
    ]
    places = read_places(data(table), split(), "test", len(expected), "topic")
    assert [f"p{row}" for row in places.rows] == expected
    assert [f"t{row % 3}" for row in places.rows] == places.groups
    assert set(places.files) == {"mine.csv"}
    assert read_places(data(table), split(), "test", len(expected), None).groups == [None] * len(expected)


def test_each_file_counts_its_own_rows(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for part in (1, 2, 3):
        (tmp_path / f"parts/part-{part}.csv").write_text(lines(100 * part + 1, 100 * part + 11))
    everything = SplitParams(validation=0, test=0, seed=0, column=None)
    places = read_places(data(tmp_path / "parts"), everything, "train", 30, None)
    assert set(places.files) == {"part-1.csv", "part-2.csv", "part-3.csv"}
    assert places.rows.tolist() == list(range(1, 11)) * 3


def test_a_group_may_be_the_completion_itself_and_in_any_format(tmp_path: Path) -> None:
    json_lines = tmp_path / "mine.jsonl"
    json_lines.write_text(
        '{"prompt": "a", "completion": "x", "topic": null}\n{"prompt": "b", "completion": "y", "topic": 7}\n'
    )
    everything = SplitParams(validation=0, test=0, seed=0, column=None)
    assert read_places(data(json_lines), everything, "train", 2, "completion").groups == ["x", "y"]
    assert read_places(data(json_lines), everything, "train", 2, "topic").groups == ["", "7"]


def test_a_column_that_is_not_there_and_other_data_are_named(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text(lines(1, 101))
    with pytest.raises(
        UserError, match=r"no column 'topics' \(evaluate.group_column\).*group_column=topic, or -S .*=null"
    ):
        read_places(data(table), split(), "test", 30, "topics")
    with pytest.raises(UserError, match=r"mine.csv: found \d+ test rows, where data/dataset/ has 7; type `dvc repro`$"):
        read_places(data(table), split(), "test", 7, None)
