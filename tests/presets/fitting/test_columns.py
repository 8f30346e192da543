"""Columns are known by name, then by content; nothing is guessed between two readings."""

import pandas as pd
import pytest

from presets.fitting.columns import choose_roles, is_label, words_of
from stages.errors import UserError

ROWS = 100


def frame(**columns: str | list[str]) -> pd.DataFrame:
    """A list is repeated; the mark # in a string becomes the row's number."""
    return pd.DataFrame(
        {
            name.replace("_", " ").strip(): [
                cells.replace("#", str(row)) if isinstance(cells, str) else cells[row % len(cells)]
                for row in range(ROWS)
            ]
            for name, cells in columns.items()
        }
    )


TEXT, OTHER, LABELS = "words of row #", "more words #", ["yes", "no"]


@pytest.mark.parametrize(
    ("columns", "prompt", "completion"),
    [
        (frame(prompt=TEXT, completion=OTHER), "prompt", "completion"),
        (frame(text=TEXT, category=LABELS), "text", "category"),
        (frame(Question=TEXT, Answer=OTHER, category=LABELS), "Question", "Answer"),
        (frame(answer=OTHER, question=TEXT), "question", "answer"),
        (frame(user_questions=TEXT, bot_answers=OTHER), "user questions", "bot answers"),
        (frame(anything=TEXT, label=LABELS), "anything", "label"),
        (frame(text=TEXT, anything=LABELS), "text", "anything"),
        (frame(something=TEXT, anything=LABELS), "something", "anything"),
        (frame(id="#", question=TEXT, answer=OTHER), "question", "answer"),
        (frame(question_id="#", question=TEXT, answer=OTHER), "question", "answer"),
        (frame(row="#", utterance=TEXT, intent=LABELS), "utterance", "intent"),
        (frame(prompt=[""], completion=TEXT), "prompt", "completion"),
        (frame(text=TEXT), "text", None),
        (frame(id="#", poem=TEXT), "poem", None),
        (frame(number="#"), "number", None),
        (frame(instruction=TEXT, output=OTHER, language=["en", "de"]), "instruction", "output"),
    ],
)
def test_the_only_likely_reading(columns: pd.DataFrame, prompt: str, completion: str | None) -> None:
    roles = choose_roles(columns)
    assert (roles.prompt.value, roles.completion.value) == (prompt, completion)
    assert set(roles.unused) == set(columns) - {prompt, completion}
    assert roles.prompt.reason


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        (frame(act=TEXT, prompt=OTHER), ["--prompt prompt --completion act", "--prompt act --completion prompt"]),
        (frame(left=TEXT, right=OTHER), ["--prompt left --completion right", "--prompt right --completion left"]),
        (
            frame(question=TEXT, instruction=OTHER, answer=OTHER),
            ["--prompt question --completion answer", "--prompt instruction --completion answer"],
        ),
        (
            frame(question=TEXT, answer=OTHER, response=TEXT),
            ["--prompt question --completion answer", "--prompt question --completion response"],
        ),
        (frame(my_left=TEXT, right=OTHER), ["--prompt 'my left' --completion right"]),
    ],
)
def test_a_tie_lists_the_columns_and_every_reading(columns: pd.DataFrame, options: list[str]) -> None:
    with pytest.raises(UserError) as error:
        choose_roles(columns)
    assert all(repr(name) in str(error.value) for name in columns)
    assert all(option in str(error.value) for option in options)


def test_named_columns_are_taken_as_they_are() -> None:
    columns = frame(act=TEXT, prompt=OTHER)
    roles = choose_roles(columns, "act", "prompt")
    assert (roles.prompt.value, roles.completion.value) == ("act", "prompt")
    assert choose_roles(columns, "prompt").completion.value is None
    with pytest.raises(UserError, match=r"no column.*'missing'.*'act', 'prompt'"):
        choose_roles(columns, "act", "missing")
    with pytest.raises(UserError, match="--completion act needs --prompt"):
        choose_roles(columns, None, "act")


def test_a_column_of_splits() -> None:
    columns = frame(prompt=TEXT, completion=OTHER, split=["train", "train", "test"])
    assert choose_roles(columns).split.value == "split"
    assert choose_roles(columns.replace("test", "my own")).split.value is None


@pytest.mark.parametrize(
    ("cells", "expected"),
    [(LABELS, True), (["one"], False), ("word #", False), (["long " * 20, "text " * 20], False)],
)
def test_labels_are_few_and_short(cells: str | list[str], expected: bool) -> None:
    assert is_label(frame(label=cells)["label"]) is expected


@pytest.mark.parametrize(
    ("name", "words"),
    [("userQuestions_2", ["user", "question"]), ("ID", ["id"]), ("HTMLText", ["html", "text"]), ("2", [])],
)
def test_words_of_a_name(name: str, words: list[str]) -> None:
    assert words_of(name) == words


@pytest.mark.parametrize("header", [["12", "34"], ["1.5"], ["1", "2", "2"]])
def test_a_header_of_numbers_is_a_row_that_nobody_wants_to_lose(header: list[str]) -> None:
    with pytest.raises(UserError, match=r"found '.*: the first line seems to be a row of data; put a line above it"):
        choose_roles(pd.DataFrame([[TEXT] * len(header)] * 3, columns=header))


def test_the_numbers_that_pandas_writes_as_a_header_are_names() -> None:
    numbered = pd.DataFrame({"0": ["a b", "b c", "c d"], "1": ["x y", "y z", "z z"]})
    with pytest.raises(UserError, match="which is the prompt"):
        choose_roles(numbered)
    assert choose_roles(numbered, "0", "1").prompt.value == "0"
