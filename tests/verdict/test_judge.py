"""Which rows changed, which groups gained, and what may not be compared."""

import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from stages.core.score_table import ScoreTable
from stages.errors import UserError
from stages.verdict.judge import Runs, Verdict, is_same_text, judge
from stages.verdict.page import render
from stages.verdict.terminal import print_verdict, to_markdown
from tests.verdict.tables import Truth, make_table

HOSTILE = "<script>alert(1)</script> | [link](http://x) \x1b[31m"
ROWS = 30


def table(wrong: list[int], losses: dict[int, float] | None = None) -> ScoreTable:
    ones = np.ones(ROWS, dtype=np.int64)
    loss = np.full(ROWS, 1.0)
    for row, value in (losses or {}).items():
        loss[row] = value
    prompts = [HOSTILE if row == 0 else "x" * (row + 1) for row in range(ROWS)]
    expected = ["yes" if row % 2 else f"number {row}" for row in range(ROWS)]
    return make_table(
        loss, ones * 2, ones, [row not in wrong for row in range(ROWS)], prompts=prompts, expected=expected
    )


@pytest.fixture
def verdict() -> Verdict:
    a, b = table([0, 3, 5]), table([5, 6], {0: 0.5, 3: 0.1, 6: 4.0})
    return judge(Runs("main", [a]), Runs("wider", [b]))


def test_rows_that_changed_are_named_both_ways_the_most_certain_first(verdict: Verdict) -> None:
    assert [flip.row for flip in verdict.gained] == [4, 1]  # their loss fell by 0.9 and 0.5
    assert [(flip.row, flip.expected, flip.a, flip.b) for flip in verdict.lost] == [
        (7, "number 6", "number 6", "something else")
    ]


def test_groups_add_up(verdict: Verdict) -> None:
    lengths = verdict.groups["characters of the row"]
    assert sum(group.rows for group in lengths) == ROWS
    assert sum(group.rows * group.a for group in lengths) == pytest.approx(ROWS - 3)
    assert sum(group.rows * group.b for group in lengths) == pytest.approx(ROWS - 2)
    assert [group.name for group in verdict.groups["completion"]] == ["“yes”"]
    assert verdict.groups["completion"][0].a == pytest.approx(13 / 15)


def test_a_column_of_the_data_groups_the_rows_in_place_of_their_length() -> None:
    """Also where only one of the evaluations has it; first the group in which most changed."""
    topics = ["easy" if row < 20 else "hard" if row < 28 else None for row in range(ROWS)]
    a, b = table([0, 3, 5]), table([0, 20, 21, 28])
    verdict = judge(Runs("a", [a]), Runs("b", [replace(b, group_column="topic", groups=topics)]))
    assert list(verdict.groups) == ["topic"]
    assert [(group.name, group.rows) for group in verdict.groups["topic"]] == [("“hard”", 8), ("“easy”", 20), ("“”", 2)]
    assert verdict.groups["topic"][0].a == 1
    assert verdict.groups["topic"][0].b == pytest.approx(6 / 8)
    assert "topic" in printed(verdict, 80)
    assert "| topic | rows | A | B | B - A |" in to_markdown(verdict)
    assert ">topic</th>" in render(verdict)


def test_thousands_of_groups_take_no_time_and_only_some_are_printed() -> None:
    rows = 50_000
    one = Truth(rows, 0).model()
    grouped = replace(one, group_column="customer", groups=[str(row % 5_000) for row in range(rows)])
    began = time.process_time()
    verdict = judge(Runs("a", [grouped]), Runs("b", [replace(one, exact=one.exact[::-1])]))
    assert time.process_time() - began < 5
    assert len(verdict.groups["customer"]) == 5_000
    assert "and 4,990 more, which changed no more than these" in printed(verdict, 80)


def test_a_row_is_named_with_its_file_where_there_are_several() -> None:
    files = ["part-1.csv"] * 10 + ["part-2.csv"] * 20
    numbers = np.array([*range(1, 11), *range(1, 21)])
    a, b = (replace(table(wrong), files=files, rows=numbers) for wrong in ([12], []))
    verdict = judge(Runs("a", [a]), Runs("b", [b]))
    assert [(flip.file, flip.row) for flip in verdict.gained] == [("part-2.csv", 3)]
    assert "part-2.csv 3" in printed(verdict, 120)
    assert "<td>part-2.csv 3</td>" in render(verdict)


def test_a_group_of_runs_answers_as_most_of_them_do() -> None:
    several = Runs("a", [table([1, 2]), table([1]), table([2, 3])])
    found = judge(several, Runs("b", [table([]), table([]), table([1, 2, 3])]))
    assert [flip.row for flip in found.gained] == [2, 3]  # wrong in two of three, right in two of three
    assert found.runs == (3, 3)


@pytest.mark.parametrize(("change", "reason"), [
    ({"split": "validation"}, "a on 30 test rows, b on 30 validation rows"),
    ({"expected": ["no"] * ROWS}, "test row 1 of test.csv is “<script>"),
])  # fmt: skip
def test_other_rows_are_refused_with_the_reason(change: dict[str, object], reason: str) -> None:
    other = replace(table([]), **change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"^a and b were not scored on the same rows: {re.escape(reason)}"):
        judge(Runs("a", [table([])]), Runs("b", [other]))


def test_fewer_rows_are_refused() -> None:
    with pytest.raises(UserError, match="a on 20 test rows, b on 19 test rows"):
        judge(Runs("a", [Truth(20, 0).model()]), Runs("b", [Truth(19, 0).model()]))


@pytest.mark.parametrize(("a", "b", "same"), [
    ("a  b\n", "a b", True),
    ("what is <UNK>", "what is RNN", True),
    ("<UNK> is <UNK>", "CNN is what", True),
    ("what is RNN", "<UNK> <UNK> RNN", True),
    ("what is RNN", "what is CNN", False),
    ("what <UNK> RNN", "what is CNN", False),
    ("a.c", "abc", False),
])  # fmt: skip
def test_vocabularies_write_one_text_in_their_ways(a: str, b: str, same: bool) -> None:
    assert is_same_text(a, b) == same


def test_the_headline_says_what_the_words_say() -> None:
    truth = Truth(300, 1)
    a, b = truth.model(), truth.model(gain=0.4)
    assert judge(Runs("a", [a]), Runs("b", [b])).headline == "b is better than a"
    assert judge(Runs("b", [b]), Runs("a", [a])).headline == "a is worse than b"
    assert judge(Runs("a", [a]), Runs("b", [a])).headline == "can't tell b from a"
    mixed = judge(Runs("a", [a]), Runs("b", [replace(b, exact=[False] * 300)])).headline
    assert mixed.startswith("b is better than a in loss")
    assert mixed.endswith("and worse in completion_exact_match")
    few = judge(Runs("a", [Truth(5, 0).model()]), Runs("b", [Truth(5, 0).model()])).headline
    assert few.endswith(": fewer than 20 rows were scored")


def printed(verdict: Verdict, width: int) -> str:
    console = Console(width=width, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    print_verdict(verdict, console)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_terminal_shows_every_word_and_no_text_becomes_a_command(verdict: Verdict, width: int) -> None:
    text = printed(verdict, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("can't tell") >= len(verdict.differences)
    assert "2 completions only B has right, 1 only A has right" in text
    assert "\x1b[31m" not in text


def test_a_name_of_a_run_controls_no_terminal(verdict: Verdict) -> None:
    text = printed(replace(verdict, a="\x1b[2J", b="\x1b]0;title\x07"), 200)
    assert r"A is \u001b[2J, B is \u001b]0;title\u0007" in text
    assert "\x1b]" not in text
    assert "\x1b[2J" not in text


def test_markdown_holds_text_as_text(verdict: Verdict) -> None:
    text = to_markdown(verdict)
    assert "<script>" not in text
    assert "(http://x)" not in text
    assert "| completions right | 0.9000 | 0.9333 | +0.0333 |" in text


def test_the_page_has_no_script_and_loads_nothing(verdict: Verdict) -> None:
    class Elements(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found.append(tag)
            assert not {name for name, _ in attrs} & {"src", "href", "onclick", "style"}

    page = render(verdict)
    Elements().feed(page)
    assert "script" not in Elements.found
    assert render(verdict) == page
