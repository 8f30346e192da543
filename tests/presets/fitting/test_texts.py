"""What a token is, by measured criteria, on texts of each kind."""

import random

import numpy as np
import pandas as pd
import pytest

from presets.addition import sums
from presets.fitting.texts import (
    choose_pairs,
    choose_tokenizer,
    choose_unknown,
    measure_lengths,
    shortened,
    text_figures,
)
from stages.core.rows import encode_rows
from stages.core.vocabulary import EOS, VocabularyParams
from stages.core.vocabulary_building import build_vocabulary

RANDOM = random.Random(0)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def halves(pairs: list[tuple[str, str]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = pd.DataFrame(pairs, columns=["prompt", "completion"])
    return rows[: len(rows) * 4 // 5], rows[len(rows) * 4 // 5 :]


def rows(*texts: str) -> pd.DataFrame:
    return pd.DataFrame({"prompt": texts, "completion": ""})


def word() -> str:
    return "".join(RANDOM.choices(LETTERS, k=RANDOM.randint(3, 9)))


def commands() -> list[tuple[str, str]]:
    verbs, times = ["walk", "run", "jump"], ["once", "twice", "thrice"]
    return [
        (f"{RANDOM.choice(verbs)} {RANDOM.choice(times)} and {RANDOM.choice(verbs)}", "WALK RUN") for _ in range(200)
    ]


def sorting(digits: int) -> list[tuple[str, str]]:
    rows = [[str(RANDOM.randrange(10**digits)) for _ in range(4)] for _ in range(400)]
    return [(" ".join(row), " ".join(sorted(row, key=int))) for row in rows]


def language() -> list[tuple[str, str]]:
    known = [word() for _ in range(3000)]
    return [
        (" ".join(RANDOM.choices([*known, word()], k=8)) + "?", f"{RANDOM.choice(known)} {word()}") for _ in range(300)
    ]


@pytest.mark.parametrize(
    ("pairs", "tokenizer"),
    [
        (commands(), "word"),
        (sorting(1), "word"),
        (sorting(2), "word"),
        ([(f"{one} + {two}", str(one + two)) for one in range(40, 70) for two in range(40, 70)], "character"),
        (list(sums()), "character"),
        ([("", word()) for _ in range(300)], "character"),
        (language(), "bpe"),
        ([(f"two  spaces {RANDOM.choice('abc')}", "x") for _ in range(100)], "bpe"),
    ],
    ids=["commands", "sorting digits", "sorting numbers", "spaced sums", "sums", "names", "language", "two spaces"],
)
def test_what_a_token_is(pairs: list[tuple[str, str]], tokenizer: str) -> None:
    chosen = choose_tokenizer(text_figures(*halves(pairs)))
    assert chosen.value == tokenizer, chosen.reason


def test_unknown_token_where_held_out_rows_need_it() -> None:
    vocabulary = build_vocabulary(VocabularyParams(tokenizer="word", size=8000, unknown_token=True), [rows("a b c")])
    assert choose_unknown("word", vocabulary, rows("a c")).value is False
    assert choose_unknown("word", vocabulary, rows("a d", "e")).value is True
    assert choose_unknown("word", vocabulary, rows("a d", "e")).reason.startswith("2 of 5 held-out words")


def test_more_text_gives_more_byte_pairs() -> None:
    known = [word() for _ in range(800)]
    texts = [" ".join(RANDOM.choices(known, k=12)) for _ in range(6000)]
    few, many = choose_pairs(rows(*texts[:300])), choose_pairs(rows(*texts))
    assert few.value < many.value
    assert "characters a token" in many.reason


def test_a_shortened_vocabulary_is_what_a_shorter_training_gives() -> None:
    texts = [" ".join(word() for _ in range(20)) for _ in range(100)]
    long, short = (
        build_vocabulary(VocabularyParams(tokenizer="bpe", size=size, unknown_token=False), [rows(*texts)])
        for size in (700, 400)
    )
    cut = shortened(long, 400)
    assert cut.token_to_id == short.token_to_id
    assert cut.token_to_id[EOS] == 399
    assert np.array_equal(encode_rows(cut, rows(*texts)).token_ids, encode_rows(short, rows(*texts)).token_ids)


def test_lengths() -> None:
    frame = pd.DataFrame({"prompt": ["a b", "a", ""], "completion": ["a", "", "b b b"]})
    vocabulary = build_vocabulary(VocabularyParams(tokenizer="word", size=8000, unknown_token=False), [frame])
    lengths = measure_lengths(encode_rows(vocabulary, frame))
    assert (lengths.rows, lengths.tokens, lengths.median, lengths.longest) == (3, 5 + 2 + 5, 5, 5)
    assert (lengths.longest_completion, lengths.completion_tokens) == (4, 2 + 4)
