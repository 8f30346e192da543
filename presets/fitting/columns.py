"""Which column is the prompt, which the completion, and which says the split: by name, then by content.

Pure functions of a frame whose cells are all text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from presets.fitting.choice import Choice
from stages.artifacts.table_columns import header_that_is_a_row
from stages.core.split import SPLITS
from stages.errors import UserError

PROMPT_NAMES = (
    ("prompt",),
    ("question", "instruction", "input", "query", "utterance", "sentence", "problem", "request", "command"),
    ("text", "title", "source", "document", "review", "message", "content", "body"),
)
"""Words in the names of columns of prompts: an earlier group beats a later one, two of one group are a tie."""
COMPLETION_NAMES = (
    ("completion",),
    ("answer", "response", "output", "reply", "solution", "summary", "translation", "parse", "program", "code"),
    ("label", "category", "intent", "target", "class", "sentiment", "topic"),
)
"""The same for completions."""
SPLIT_NAMES = ("split", "partition", "fold", "subset", "set")
OTHER_NAMES = ("id", "index", "date", "time", "url", "link", "lang", "language", "locale", "author", "score", "version")
"""Words in the names of columns about a row: never a prompt or completion by themselves."""

FEW_VALUES = 0.05
"""A column with fewer distinct values than this share of its rows is one of labels."""
_MOST_LABELS = 1000
_MOST_READINGS = 6
_LABEL_LENGTH = 60  # characters; a longer cell is a text, however often it repeats


@dataclass(frozen=True)
class Roles:
    """What each column is for."""

    prompt: Choice[str]
    completion: Choice[str | None]
    split: Choice[str | None]
    unused: tuple[str, ...]
    """Columns that the model never sees."""


def choose_roles(frame: pd.DataFrame, prompt: str | None = None, completion: str | None = None) -> Roles:
    """Return the role of each column.

    Args:
        frame: rows of text, some thousands are enough.
        prompt: the column that the user named; with it nothing is guessed.
        completion: the completion that the user named; None beside a prompt means plain text.

    Raises:
        UserError: a named column is absent, or two readings of the columns are as likely as each other.
    """
    columns = [str(name) for name in frame.columns]
    split = _choose_split(frame)
    if prompt is not None or completion is not None:
        chosen, answers = _named(columns, prompt, completion)
    else:
        chosen, answers = _guessed(frame, [name for name in columns if name != split.value])
    used = {chosen.value, answers.value, split.value}
    return Roles(chosen, answers, split, tuple(name for name in columns if name not in used))


def is_label(column: "pd.Series[str]") -> bool:
    """Return whether cells are few short values that repeat, as the classes of a classification do."""
    distinct = column.nunique()
    short = column.str.len().max() <= _LABEL_LENGTH
    return bool(2 <= distinct <= min(_MOST_LABELS, FEW_VALUES * len(column)) and short)


def words_of(name: str) -> list[str]:
    """Return the words of a column's name, in lower case and singular: ``userQuestions_2`` is user, question."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return [word.lower().removesuffix("s") if len(word) > 3 else word.lower() for word in words]


def _named(
    columns: Sequence[str], prompt: str | None, completion: str | None
) -> tuple[Choice[str], Choice[str | None]]:
    """Return the columns that the user named."""
    found = ", ".join(map(repr, columns))
    for name in filter(None, (prompt, completion)):
        if columns.count(name) != 1:
            raise UserError(f"{columns.count(name) or 'no'} column(s) {name!r}; found: {found}")
    if prompt is None:
        raise UserError(f"--completion {completion} needs --prompt as well; found: {found}")
    by_user = "named on the command line"
    return Choice(prompt, by_user), Choice(
        completion, by_user if completion else "plain text: --prompt alone was given"
    )


def _guessed(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[Choice[str], Choice[str | None]]:
    """Return the columns that names, and then content, make the only likely ones."""
    if row := header_that_is_a_row(columns):
        raise UserError(f"found {', '.join(map(repr, columns))}: {row}")
    texts = [name for name in columns if not _is_about_the_row(frame[name], name)] or list(columns)
    if len(texts) == 1:
        return Choice(texts[0], "the only column of text"), Choice(None, "no second column of text: plain text")
    prompts, completions = _best_named(texts, PROMPT_NAMES), _best_named(texts, COMPLETION_NAMES)
    if not completions:
        labels = [name for name in texts if name not in prompts and is_label(frame[name])]
        completions = labels if len(labels) == 1 else []
    if not prompts and len(completions) == 1:
        rest = [name for name in texts if name not in completions]
        prompts = rest if len(rest) == 1 else []
    if len(prompts) != 1 or len(completions) != 1 or prompts == completions:
        raise UserError(_tie(columns, texts, prompts, completions))
    return _because(frame, prompts[0], PROMPT_NAMES), _because(frame, completions[0], COMPLETION_NAMES)


def _because(frame: pd.DataFrame, column: str, groups: Sequence[Sequence[str]]) -> Choice[Any]:
    """Return a column with what it was known by."""
    if _best_named([column], groups):
        return Choice(column, "by its name")
    if groups is COMPLETION_NAMES:
        return Choice(column, f"by its content: {frame[column].nunique():,} short values that repeat")
    return Choice(column, "the only other column of text")


def _best_named(columns: Sequence[str], groups: Sequence[Sequence[str]]) -> list[str]:
    """Return the columns that the first group with any match names; a whole name beats a part of one."""
    for group in groups:
        singular = {name.removesuffix("s") if len(name) > 3 else name for name in group}
        matches = [name for name in columns if singular.intersection(words_of(name))]
        whole = [name for name in matches if len(words_of(name)) == 1]
        if whole or matches:
            return whole or matches
    return []


def _is_about_the_row(column: "pd.Series[str]", name: str) -> bool:
    """Return whether a column numbers or describes the rows: by its name, or as all its cells are different numbers."""
    words = words_of(name)
    if words and words[-1] in {other.removesuffix("s") if len(other) > 3 else other for other in OTHER_NAMES}:
        return True
    named = _best_named([name], PROMPT_NAMES) or _best_named([name], COMPLETION_NAMES)
    return not named and bool(column.is_unique and column.str.fullmatch(r"\d+").all())


def _choose_split(frame: pd.DataFrame) -> Choice[str | None]:
    allowed = set(SPLITS)
    for name in map(str, frame.columns):
        if words_of(name)[-1:] and words_of(name)[-1] in SPLIT_NAMES and set(frame[name].unique()) <= allowed:
            found = ", ".join(split for split in SPLITS if (frame[name] == split).any())
            return Choice(name, f"its cells say {found}")
    return Choice(None, "no column says train, validation or test")


def _tie(columns: Sequence[str], texts: Sequence[str], prompts: Sequence[str], completions: Sequence[str]) -> str:
    """Return the error that lists the columns and the readings between which nothing decides."""
    readings: list[tuple[str, str | None]]
    if prompts and completions:
        readings = [(prompt, answer) for prompt in prompts for answer in completions if prompt != answer]
    elif prompts:
        others = [name for name in texts if name != prompts[0]]
        readings = [*((prompts[0], other) for other in others), *((other, prompts[0]) for other in others)]
        readings.append((prompts[0], None))
    else:
        readings = [(prompt, answer) for prompt in texts for answer in completions or texts if prompt != answer]
    lines = [
        f"--prompt {_quoted(prompt)}" + (f" --completion {_quoted(answer)}" if answer else "  (plain text)")
        for prompt, answer in readings[:_MOST_READINGS]
    ]
    found = ", ".join(map(repr, columns))
    return f"the columns are {found}; which is the prompt and which the completion? Add one of:\n  " + "\n  ".join(
        lines
    )


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[\w.-]+", name) else f"'{name}'"
