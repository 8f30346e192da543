"""Each fact of the data that a training would not say is one line with its count; what means nothing is refused."""

from pathlib import Path
from typing import Any

import pytest

from stages.artifacts.prompts_table import Source
from stages.core.split import SplitParams
from stages.core.windows import DatasetParams
from stages.errors import UserError
from stages.report.data_notes import data_notes, refuse_meaningless

ROWS = DatasetParams(packing="rows", loss_on="all", stride=None)
STREAM = ROWS.model_copy(update={"packing": "stream"})


def splitting(validation: float = 0.0, test: float = 0.0, column: str | None = None) -> SplitParams:
    return SplitParams(validation=validation, test=test, seed=0, column=column)


def of_split(rows: int, **changed: Any) -> dict[str, Any]:
    return {
        "rows": rows, "tokens": 9 * rows, "text_tokens": 7 * rows, "longer_than_context": 0, "empty_completions": 0,
        "tokens_per_row": {"median": 9, "p95": 12, "p99": 13, "longest": 14}, "near_copies_of_train": 0, "unknown_tokens": 0,
    } | changed  # fmt: skip


def notes(split: SplitParams, *named: str, dataset: DatasetParams = ROWS, **figures: Any) -> list[str]:
    sources = [Source(Path("d/train.csv"), split), *(Source(Path(f"d/{name}.csv"), name) for name in named)]  # type: ignore[arg-type]
    return data_notes({"context_length": 6} | figures, split, dataset, sources)


def test_nothing_to_say() -> None:
    assert notes(splitting(), train=of_split(20)) == []
    assert notes(splitting(test=0.1), train=of_split(18), test=of_split(2)) == []


def test_rows_longer_than_the_context() -> None:
    long = of_split(20, longer_than_context=20)
    assert notes(splitting(), train=long) == [
        "20 of 20 rows are longer than model.context_length 6: their completions lose the prompt; "
        "95 of 100 rows fit in 11, all in 13"
    ]
    (line,) = notes(splitting(), "test", train=of_split(20), test=of_split(5, longer_than_context=2))
    assert line.startswith("2 of 25 rows are longer than model.context_length 6")
    (line,) = notes(splitting(), train=long | {"empty_completions": 20})
    assert "cut into parts" in line
    assert notes(splitting(), dataset=STREAM, train=long) == []


def test_a_split_that_was_asked_for_and_has_no_rows() -> None:
    (line,) = notes(splitting(validation=0.01), train=of_split(20))
    assert line.startswith("split.validation: 0.01 takes none of the 20 rows, so that there are no validation rows")


def test_a_fraction_although_the_data_come_split() -> None:
    (line,) = notes(splitting(validation=0.1), "test", train=of_split(90), validation=of_split(10), test=of_split(7))
    assert line == (
        "split.validation: 0.1 takes 10 of the 100 rows of the training files, although the data come split; "
        "to train on all of them: -S split.validation=0.0"
    )


def test_a_fraction_that_is_not_used() -> None:
    (line,) = notes(splitting(test=0.1), "test", train=of_split(90), test=of_split(7))
    assert line == "split.test: 0.1 is not used: d/test.csv has the test rows"
    (line,) = notes(splitting(test=0.1, column="part"), train=of_split(90))
    assert line == "split.test: 0.1 is not used: the column 'part' (split.column) says the split of each row"


def test_copies_and_unknown_words_among_held_out_rows() -> None:
    assert notes(
        splitting(test=0.1), train=of_split(9), test=of_split(4, near_copies_of_train=3, unknown_tokens=2)
    ) == [
        "3 of 4 test rows are training rows too, apart from case and white space: their score says what was memorised",
        "2 of 28 test tokens are <UNK>: no training row has their words or characters",
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"near_copies_of_train": 4}, r"^d/test.csv: all 4 test rows are training rows too"),
        ({"unknown_tokens": 28}, r"^d/test.csv: every word or character of the 4 test rows is unknown"),
    ],
)
def test_a_score_that_would_mean_nothing_is_refused(changed: dict[str, int], message: str) -> None:
    sources = [Source(Path("d/train.csv"), splitting()), Source(Path("d/test.csv"), "test")]
    refuse_meaningless({"train": of_split(9), "test": of_split(4)}, sources)
    with pytest.raises(UserError, match=message):
        refuse_meaningless({"train": of_split(9), "test": of_split(4, **changed)}, sources)
