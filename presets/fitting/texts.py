"""What a text is cut into, how long rows are, and what of them carries loss.

Pure functions of a frame with the columns ``prompt`` and ``completion``, a row a row; an absent completion is empty.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from tokenizers import Tokenizer

from presets.fitting.choice import Choice
from stages.core.rows import EncodedRows, encode_rows
from stages.core.text_cuts import split_words
from stages.core.vocabulary import EOS, TokenizerName, Vocabulary, VocabularyParams
from stages.core.vocabulary_building import build_vocabulary

MOST_WORDS = 2000
"""A closed set of words has no more of them than this."""
CLOSED_COVERAGE = 0.999
"""The share of the words of held-out rows that training rows have, from which their set counts as closed."""
OPEN_COVERAGE = 0.5
"""Below this share, words are made up anew for each row, as names and sums are: the characters say more."""
MOST_CHARACTERS = 128
"""An alphabet: beyond it, byte pairs have the shorter rows."""
SHORT_TEXT = 64
"""Characters of a text that is short."""
PAIR_SIZES = (512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
ENOUGH_SEEN = 100
"""How often a token should occur to be learnt: Gowda & May 2020, who ask it of nearly all; here of half of them."""
_BYTES = 256
_COPIED = 0.9
_NUMBERS = 0.5
_SEVERAL_DIGITS = re.compile(r"\d{2,}")


@dataclass(frozen=True)
class TextFigures:
    """What decides about the tokenizer, measured."""

    distinct_words: int
    coverage: float
    """The share of the words of held-out rows that training rows have."""
    prompt_coverage: float
    """The same in prompts alone; in completions where prompts are empty."""
    distinct_characters: int
    mean_length: float
    """Characters of a row."""
    spaces_are_single: bool
    """Words joined by single spaces give every text back."""
    numbers: float
    """The share of the words that are numbers of several digits."""
    copied: float
    """The share of the completions' words that stand in their own prompt."""


def text_figures(training: pd.DataFrame, held_out: pd.DataFrame) -> TextFigures:
    """Measure texts."""
    everything = _count_words(interleaved(training))
    completion_words = _count_words(training["completion"])
    column = "prompt" if training["prompt"].any() else "completion"
    texts = interleaved(training)
    answers = [
        (set(split_words(prompt)), split_words(completion))
        for prompt, completion in zip(training["prompt"], training["completion"], strict=True)
    ]
    copied = sum(word in prompt for prompt, completion in answers for word in completion)
    return TextFigures(
        distinct_words=len(everything),
        coverage=_coverage(everything, _count_words(interleaved(held_out))),
        prompt_coverage=_coverage(_count_words(training[column]), _count_words(held_out[column])),
        distinct_characters=len(set().union(*texts)) if texts else 0,
        mean_length=sum(map(len, texts)) / max(1, len(training)),
        spaces_are_single=all(" ".join(split_words(text)) == text for text in texts),
        numbers=_share_of_numbers(everything),
        copied=copied / max(1, completion_words.total()),
    )


def choose_tokenizer(figures: TextFigures) -> Choice[TokenizerName]:
    """Return what a token is: words of a closed set, characters where they say more than words, else byte pairs."""
    seen = f"{figures.coverage:.1%} of the words of held-out rows are in the training rows"
    computed = figures.numbers >= _NUMBERS and figures.copied < _COPIED
    closed = figures.coverage >= CLOSED_COVERAGE and figures.distinct_words <= MOST_WORDS
    if closed and figures.spaces_are_single and not computed:
        return Choice("word", f"a closed set of {figures.distinct_words:,} words: {seen}")
    if figures.distinct_characters <= MOST_CHARACTERS and figures.mean_length <= SHORT_TEXT:
        alphabet = f"an alphabet of {figures.distinct_characters} characters"
        if computed:
            return Choice("character", f"{alphabet}; {figures.numbers:.0%} of the words are numbers, made of digits")
        if figures.prompt_coverage < OPEN_COVERAGE:
            made_up = f"{1 - figures.prompt_coverage:.0%} of the words of held-out rows are in no training row"
            return Choice("character", f"{alphabet}; {made_up}")
    return Choice("bpe", f"{figures.distinct_words:,} words, an open set: {seen}")


def choose_unknown(tokenizer: TokenizerName, vocabulary: Vocabulary, held_out: pd.DataFrame) -> Choice[bool]:
    """Return whether the vocabulary needs <UNK>: where held-out rows have what training rows lack."""
    if tokenizer == "bpe":
        return Choice(False, "byte pairs know every text")
    token_ids = encode_rows(vocabulary, held_out).token_ids
    unknown = int((token_ids == vocabulary.unknown_id).sum())
    if unknown:
        return Choice(True, f"{unknown:,} of {len(token_ids):,} held-out {tokenizer}s are in no training row")
    return Choice(False, f"every {tokenizer} of the held-out rows is in the training rows")


def choose_pairs(training: pd.DataFrame) -> Choice[int]:
    """Return how many byte pair tokens: the most of which half occur often enough to be learnt."""
    largest = build_vocabulary(VocabularyParams(tokenizer="bpe", size=PAIR_SIZES[-1], unknown_token=False), [training])
    characters = int(training["prompt"].str.len().sum() + training["completion"].str.len().sum())
    chosen = Choice(PAIR_SIZES[0], f"the smallest: {characters:,} characters are little text")
    for size in PAIR_SIZES:
        if size > largest.size:
            break
        token_ids = encode_rows(shortened(largest, size), training).token_ids
        counts = np.bincount(token_ids, minlength=size)[_BYTES : size - 1]
        median = int(np.median(counts))
        if median < ENOUGH_SEEN:
            break
        chosen = Choice(
            size, f"half of them occur at least {median:,} times; {characters / len(token_ids):.1f} characters a token"
        )
    return chosen


def shortened(vocabulary: Vocabulary, size: int) -> Vocabulary:
    """Return the byte pair vocabulary that a training for ``size`` tokens would have given: its first merges."""
    content = json.loads(vocabulary.tokenizer.to_str())
    last = size - 1
    tokens = {token: token_id for token, token_id in vocabulary.token_to_id.items() if token_id < last}
    content["model"]["vocab"] = tokens | {EOS: last}
    content["model"]["merges"] = content["model"]["merges"][: last - _BYTES]
    for token in content["added_tokens"]:
        token["id"] = last
    return Vocabulary(Tokenizer.from_str(json.dumps(content)))


@dataclass(frozen=True)
class Lengths:
    """How long rows are, in tokens."""

    rows: int
    tokens: int
    median: int
    p99: int
    longest: int
    longest_completion: int
    completion_tokens: int
    """Of all rows, <EOS> included."""


def measure_lengths(rows: EncodedRows) -> Lengths:
    """Return how long encoded rows are."""
    lengths = rows.row_lengths
    completions = lengths - rows.prompt_lengths
    return Lengths(
        rows=len(lengths),
        tokens=int(lengths.sum()),
        median=int(np.median(lengths)),
        p99=int(np.quantile(lengths, 0.99)),
        longest=int(lengths.max()),
        longest_completion=int(completions.max()),
        completion_tokens=int(completions.sum()),
    )


def interleaved(frame: pd.DataFrame) -> list[str]:
    """Return the first row's prompt and completion, the second row's, and so on."""
    both: npt.NDArray[np.object_] = frame[["prompt", "completion"]].to_numpy(dtype=object)
    return [str(text) for text in both.ravel()]


def _count_words(texts: Iterable[str]) -> Counter[str]:
    return Counter(word for text in texts for word in split_words(text))


def _coverage(known: Counter[str], held_out: Counter[str]) -> float:
    return sum(count for word, count in held_out.items() if word in known) / held_out.total() if held_out else 1.0


def _share_of_numbers(words: Counter[str]) -> float:
    numbers = sum(count for word, count in words.items() if _SEVERAL_DIGITS.search(word))
    return numbers / max(1, words.total())
