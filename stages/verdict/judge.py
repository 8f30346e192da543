"""The verdict on two models, or two groups of them: figures, rows whose answer changed, and groups of rows.

Shapes: R rows, G groups of them.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.core.score_table import RATIOS, Float64s, ScoreTable, column
from stages.core.vocabulary import UNKNOWN
from stages.errors import UserError
from stages.verdict.comparison import FEWEST_ROWS, Difference, compare

GROUPS = 4
"""Groups by length; and the completions that are most frequent."""
FEWEST_IN_GROUP = 2


@dataclass(frozen=True)
class Runs:
    """A model, or several that differ in their seed alone."""

    name: str
    tables: list[ScoreTable]
    """The scores of each."""

    def share_exact(self) -> Float64s:
        """Return for each row the share of the runs that completed it right, [R]."""
        return np.asarray(np.mean([column(table, "exact") for table in self.tables], axis=0))

    def row_loss(self) -> Float64s:
        """Return the mean summed loss of each row over the runs, [R]."""
        return np.asarray(np.mean([table.loss_sum for table in self.tables], axis=0))

    def answer(self, row: int) -> str:
        """Return the completion of a row, by index; of several runs the most frequent one."""
        answers = Counter(table.completions[row] or "" for table in self.tables)
        return max(answers, key=lambda answer: (answers[answer], answer))


@dataclass(frozen=True)
class Flip:
    """A row that one model completed right and the other one wrong."""

    file: str | None
    """Its file; None where all rows are of one."""
    row: int
    """Its number in its file, from 1."""
    prompt: str
    expected: str
    a: str
    b: str


@dataclass(frozen=True)
class Group:
    """Some rows, and one figure of them."""

    name: str
    rows: int
    a: float
    b: float


@dataclass(frozen=True)
class Verdict:
    """What is said of b compared with a."""

    a: str
    b: str
    runs: tuple[int, int]
    """How many each has."""
    split: str
    rows: int
    same_tokens: bool
    differences: list[Difference]
    gained: list[Flip]
    """Rows that only b completes right, the most certain ones first."""
    lost: list[Flip]
    """Rows that only a completes right."""
    group_figure: str
    """What the groups compare."""
    groups: dict[str, list[Group]]
    """By what the rows are grouped -> groups, those first in which most changed."""

    @property
    def headline(self) -> str:
        """Return the verdict in a sentence."""
        better = [each.name for each in self.differences if each.word == "better"]
        worse = [each.name for each in self.differences if each.word == "worse"]
        if better and worse:
            return f"{self.b} is better than {self.a} in {', '.join(better)}, and worse in {', '.join(worse)}"
        if better or worse:
            return f"{self.b} is {'better' if better else 'worse'} than {self.a}"
        few = f": fewer than {FEWEST_ROWS} rows were scored" if self.rows < FEWEST_ROWS else ""
        return f"can't tell {self.b} from {self.a}{few}"


def judge(a: Runs, b: Runs) -> Verdict:
    """Compare two models, or two groups of them, on the rows that all were scored on.

    Raises:
        UserError: they were scored on different rows.
    """
    for other in [*a.tables[1:], *b.tables]:
        check_same_rows(a.name, a.tables[0], b.name, other)
    first = a.tables[0]
    same_tokens = all(np.array_equal(first.tokens, other.tokens) for other in [*a.tables, *b.tables])
    differences = compare(a.tables, b.tables, same_tokens=same_tokens)
    names = {each.name for each in differences if each.a or each.b}
    figure = next(
        (name for name in ("completion_exact_match", "loss", "bits_per_byte") if name in names), differences[0].name
    )
    return Verdict(
        a.name,
        b.name,
        (len(a.tables), len(b.tables)),
        first.split,
        len(first),
        same_tokens,
        differences,
        find_flips(a, b, a_right=False),
        find_flips(a, b, a_right=True),
        figure,
        {by: group_rows(a, b, figure, *members) for by, members in _groupings([*a.tables, *b.tables]).items()},
    )


def check_same_rows(a_name: str, a: ScoreTable, b_name: str, b: ScoreTable) -> None:
    """Refuse a comparison of different rows.

    Raises:
        UserError: the splits, the numbers of rows or the texts differ.
    """
    difference = None
    if (a.split, len(a)) != (b.split, len(b)):
        difference = f"{a_name} on {len(a):,} {a.split} rows, {b_name} on {len(b):,} {b.split} rows"
    else:
        pairs = zip(zip(a.prompts, a.expected, strict=True), zip(b.prompts, b.expected, strict=True), strict=True)
        for index, (one, other) in enumerate(pairs):
            if not all(map(is_same_text, one, other)):
                place = f"{a.split} row {a.rows[index]} of {a.files[index]}"
                difference = (
                    f"{place} is {_short(' → '.join(one))} in {a_name} and {_short(' → '.join(other))} in {b_name}"
                )
                break
    if difference:
        raise UserError(
            f"{a_name} and {b_name} were not scored on the same rows: {difference}. Compare models whose data and split "
            "are the same: take data and split of one into params.yaml and type `dvc repro`"
        )


def is_same_text(a: str, b: str) -> bool:
    """Return whether two vocabularies wrote one text: white space may differ, and <UNK> stands for anything."""
    a, b = " ".join(a.split()), " ".join(b.split())
    if a == b:
        return True
    if UNKNOWN not in a + b:
        return False
    return any(
        re.fullmatch(".+?".join(map(re.escape, one.split(UNKNOWN))), other, re.DOTALL)
        for one, other in ((a, b), (b, a))
    )


def find_flips(a: Runs, b: Runs, *, a_right: bool) -> list[Flip]:
    """Return the rows that more than half of the runs of one side complete right and at most half of the other's.

    The rows whose loss changed most come first.
    """
    right_a, right_b = a.share_exact() > 0.5, b.share_exact() > 0.5
    flipped = np.flatnonzero((right_a & ~right_b) if a_right else (right_b & ~right_a))
    change = np.abs(b.row_loss() - a.row_loss())
    table = a.tables[0]
    files = table.files if len(set(table.files)) > 1 else [None] * len(table)
    return [
        Flip(files[row], int(table.rows[row]), table.prompts[row], table.expected[row], a.answer(row), b.answer(row))
        for row in flipped[np.argsort(-change[flipped], kind="stable")].tolist()
    ]


def group_rows(a: Runs, b: Runs, figure: str, group_of_row: list[int], names: list[str]) -> list[Group]:
    """Return one figure of each group of rows; those first in which most changed.

    Args:
        a: one side.
        b: the other.
        figure: its name in RATIOS.
        group_of_row: [R] the group of each row, an index of ``names``; -1: none.
        names: of the groups.
    """
    members = np.array(group_of_row)
    counts = np.bincount(members[members >= 0], minlength=len(names)).tolist()
    figures_a, figures_b = (_group_figures(runs, figure, members, len(names)).tolist() for runs in (a, b))
    groups = [
        Group(*group)
        for group in zip(names, counts, figures_a, figures_b, strict=True)
        if not (math.isnan(group[2]) or math.isnan(group[3]))
    ]
    return sorted(groups, key=lambda group: -abs(group.b - group.a) * group.rows)


def _group_figures(runs: Runs, name: str, members: npt.NDArray[np.int64], groups: int) -> Float64s:
    """Return the mean over the runs of one figure of each group, [G]; NaN where a group counts nothing."""
    ratio = RATIOS[name]
    inside = members >= 0
    figures = []
    for table in runs.tables:
        numerators, denominators = (
            np.bincount(members[inside], weights=column(table, each)[inside], minlength=groups)
            for each in (ratio.numerator, ratio.denominator)
        )
        figures.append(
            ratio.scale * np.divide(numerators, denominators, out=np.full(groups, np.nan), where=denominators > 0)
        )
    return np.asarray(np.mean(figures, axis=0))


def _groupings(tables: list[ScoreTable]) -> dict[str, tuple[list[int], list[str]]]:
    """Group rows by a column of the data, where one of the evaluations has it; else by length and by completion.

    Returns:
        by what -> the group of each row [R], an index of the names (-1: none), and the names.
    """
    for table in tables:
        if table.group_column is not None:
            names = sorted({group or "" for group in table.groups})
            index_of = {name: index for index, name in enumerate(names)}
            return {table.group_column: ([index_of[group or ""] for group in table.groups], list(map(_short, names)))}
    return {"characters of the row": _by_length(tables[0]), "completion": _by_completion(tables[0])}


def _by_length(table: ScoreTable) -> tuple[list[int], list[str]]:
    """Group rows into quarters by the characters of their texts."""
    lengths = np.array([len(p) + len(e) for p, e in zip(table.prompts, table.expected, strict=True)])
    edges = np.unique(np.quantile(lengths, np.arange(1, GROUPS + 1) / GROUPS).astype(np.int64))
    starts = [int(lengths.min()), *(edges[:-1] + 1).tolist()]
    names = [
        f"{end}" if start == end else f"{start} to {end}" for start, end in zip(starts, edges.tolist(), strict=True)
    ]
    return np.searchsorted(edges, lengths).tolist(), names


def _by_completion(table: ScoreTable) -> tuple[list[int], list[str]]:
    """Group rows by what is expected, where that repeats."""
    frequent = [
        text for text, count in Counter(filter(None, table.expected)).most_common(GROUPS) if count >= FEWEST_IN_GROUP
    ]
    index_of = {text: index for index, text in enumerate(frequent)}
    return [index_of.get(text, -1) for text in table.expected], [_short(text) for text in frequent]


def _short(text: str, most: int = 40) -> str:
    text = " ".join(text.split())
    return f"“{text if len(text) <= most else text[: most - 1] + '…'}”"
