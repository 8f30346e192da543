"""A verdict on 100,000 rows: reading two files of scores, judging, and the page."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.measuring import options, seconds_of, take_turns, write_table
from stages.artifacts.scores_parquet import read_scores, write_scores
from stages.verdict import comparison
from stages.verdict.judge import Runs, judge
from stages.verdict.page import render
from tests.verdict.tables import Truth

ROWS = 100_000


def main() -> None:
    """Draw the scores of two models that differ, and time each part of `make verdict` on them."""
    given = options(__doc__)
    truth = Truth(ROWS, 0)
    tables = [truth.model(), truth.model(gain=0.05)]
    with tempfile.TemporaryDirectory() as folder:
        for index, table in enumerate(tables):
            write_scores(Path(folder) / str(index), table)
        contents = [(Path(folder) / str(index)).read_bytes() for index in range(len(tables))]
    a, b = (Runs(name, [table]) for name, table in zip("AB", tables, strict=True))
    verdict = judge(a, b)

    def judge_anew() -> None:
        comparison._row_weights.cache_clear()  # noqa: SLF001 - a command draws once
        judge(a, b)

    calls: dict[str, Callable[[], object]] = {
        "reading both": lambda: [read_scores(content, "scores") for content in contents],
        "judging: 10,000 draws, rows that changed, groups": judge_anew,
        "the page": lambda: render(verdict),
    }
    timings = take_turns({what: partial(seconds_of, call, given.threads) for what, call in calls.items()}, given.rounds)
    flips = len(verdict.gained) + len(verdict.lost)
    caption = f"{ROWS:,} rows, of which {flips:,} changed; {given.threads} thread, {given.rounds} rounds"
    write_table("verdict", caption, ["", "seconds"], [[what, f"{each.median:.3f}"] for what, each in timings.items()])


if __name__ == "__main__":
    main()
