"""The sums are right, whole and always the same."""

import csv
from pathlib import Path

from presets.addition import sums, write_addition

FIRST = [("97+70=", "167"), ("36+31=", "67"), ("70+59=", "129")]


def test_the_first_sums_never_change() -> None:
    """Other bytes would draw another order, and rerun every pipeline on them."""
    stream = sums()
    assert [next(stream) for _ in range(3)] == FIRST


def test_every_sum_once_and_right() -> None:
    """All pairs of numbers from 0 to 99."""
    seen = set()
    for prompt, completion in sums():
        first, second = prompt.removesuffix("=").split("+")
        assert int(first) + int(second) == int(completion)
        seen.add((int(first), int(second)))
    assert len(seen) == 100 * 100
    assert len(list(sums())) == 100 * 100


def test_same_bytes_every_time(tmp_path: Path) -> None:
    """The file is what the pipeline reads: a header, and a row a sum."""
    write_addition(tmp_path / "once.csv")
    write_addition(tmp_path / "twice.csv")
    assert (tmp_path / "once.csv").read_bytes() == (tmp_path / "twice.csv").read_bytes()
    with (tmp_path / "once.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["prompt", "completion"]
    assert ["27+35=", "62"] in rows
