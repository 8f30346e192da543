"""The figures of metrics/data.json, recomputed by pandas and Python from the rows themselves."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core import data_figures as module
from stages.core.data_figures import (
    RowCounts,
    copy_keys,
    count_copies,
    count_rows,
    data_figures,
    fitting_rows,
    rows_by_file,
)
from stages.core.frames import rows_of
from stages.core.rows import encode_rows
from stages.core.split import SPLITS
from stages.core.text_keys import normalise
from stages.core.vocabulary import VocabularyParams
from stages.core.vocabulary_building import build_vocabulary

TEXT = st.text(st.sampled_from("abAB \t\n\u00a0\u00e9\u00c9\u3000"), max_size=5)
ROW = st.tuples(TEXT, TEXT, st.sampled_from(SPLITS), st.sampled_from(["d/a.csv", "d/b.csv"])).filter(
    lambda row: any(row[:2])
)
CONTEXT_LENGTH = 3


def expected_figures(
    frame: pd.DataFrame, lengths: Callable[[pd.DataFrame], pd.Series], known: set[str]
) -> dict[str, Any]:
    """What the file should say, by pandas, for characters as tokens."""
    frame = frame.assign(
        key=frame["prompt"].where(frame["prompt"] != "", frame["completion"]),
        plain=[
            "|".join(" ".join(text.lower().split()) for text in row)
            for row in zip(frame["prompt"], frame["completion"], strict=True)
        ],
        text=frame["prompt"] + frame["completion"],
        tokens=lengths(frame),
    )
    figures: dict[str, Any] = {"context_length": CONTEXT_LENGTH}
    by_split = {str(split): part for split, part in frame.groupby("split")}
    for split in SPLITS:
        if split not in by_split:
            continue
        part = by_split[split]
        median, p95, p99 = (
            int(np.percentile(part["tokens"], percent, method="inverted_cdf")) for percent in (50, 95, 99)
        )
        longer = int((part["tokens"] - 1 > CONTEXT_LENGTH).sum())
        text_tokens = int(part["text"].str.len().sum())
        figures[split] = {
            "rows": len(part), "tokens": int(part["tokens"].sum()), "text_tokens": text_tokens,
            "tokens_per_row": {"median": median, "p95": p95, "p99": p99, "longest": int(part["tokens"].max())},
            "characters_per_token": 1.0,
            "longer_than_context": longer, "share_longer_than_context": pytest.approx(longer / len(part), abs=1e-6),
            "unknown_tokens": sum(character not in known for text in part["text"] for character in text),
            "empty_prompts": int((part["prompt"] == "").sum()), "empty_completions": int((part["completion"] == "").sum()),
            "duplicate_prompts": int(part["key"].duplicated().sum()),
        }  # fmt: skip
        for other in set(by_split) - {split}:
            figures[split][f"prompts_in_{other}"] = int(part["key"].isin(by_split[other]["key"]).sum())
        if split != "train":
            of_train = set(by_split["train"]["plain"]) if "train" in by_split else set()
            figures[split]["near_copies_of_train"] = sum(row in of_train for row in part["plain"])
    return figures


@settings(max_examples=30)
@given(rows=st.lists(ROW, min_size=1, max_size=30), frames=st.integers(1, 3), at_once=st.sampled_from([1, 3, 1000]))
def test_pandas_counts_the_same(rows: list[tuple[str, str, str, str]], frames: int, at_once: int) -> None:
    frame = pd.DataFrame(
        [("a", "b", "train", "d/a.csv"), *rows], columns=["prompt", "completion", "split", "file"]
    ).astype("str")
    parameters = VocabularyParams(tokenizer="character", size=300, unknown_token=True)
    vocabulary = build_vocabulary(parameters, [rows_of(frame, "train")])
    counts = dict.fromkeys(SPLITS, RowCounts())
    keys: dict[Any, list[Any]] = {split: [] for split in SPLITS}
    for part in np.array_split(np.arange(len(frame)), frames):
        for split in SPLITS:
            of_split = rows_of(pa.Table.from_pandas(frame.iloc[part], preserve_index=False), split)
            if len(of_split):
                counts[split] += count_rows(vocabulary, of_split, encode_rows(vocabulary, of_split))
                keys[split].append(copy_keys(of_split, near_copies=True))
    with mock.patch.object(module, "_KEYS_AT_ONCE", at_once):
        copies = count_copies(keys)
    found = data_figures(counts, copies, CONTEXT_LENGTH, vocabulary, with_completions=True)

    def lengths(rows: pd.DataFrame) -> pd.Series:
        return rows["prompt"].str.len() + 1 + rows["completion"].str.len() + (rows["completion"] != "")

    training = frame[frame["split"] == "train"]
    expected = expected_figures(frame, lengths, set("".join(training["prompt"] + training["completion"])))
    assert found == expected
    assert {(f"d/{file}", split): rows for file, split, rows in rows_by_file(counts)} == frame.groupby(
        ["file", "split"]
    ).size().to_dict()
    for split, context_length, share in fitting_rows(counts):
        of_split = frame[frame["split"] == split]
        assert share == pytest.approx((lengths(of_split) - 1 <= context_length).mean(), abs=1e-6)
    assert {split: longest for split, longest, _ in fitting_rows(counts)} == {
        split: lengths(part).max() - 1 for split, part in frame.groupby("split")
    }


@given(
    st.lists(
        st.text(
            st.characters(exclude_categories=["Cs"], max_codepoint=0x24F) | st.sampled_from("\u3000\u2003\x85\x1f")
        ).map(lambda text: text.replace("\u0130", ""))
    )
)
def test_texts_are_normalised_as_python_does(texts: list[str]) -> None:
    assert normalise(pa.array(texts, pa.string())).to_pylist() == [" ".join(text.lower().split()) for text in texts]


def test_words_and_no_completions() -> None:
    frame = pd.DataFrame(
        {"prompt": ["the cat", "the dog sat"], "completion": ["", ""], "split": "train", "file": "a.csv"}
    )
    vocabulary = build_vocabulary(VocabularyParams(tokenizer="word", size=300, unknown_token=False), [frame])
    counts = dict.fromkeys(SPLITS, RowCounts())
    counts["train"] = count_rows(vocabulary, frame, encode_rows(vocabulary, frame))
    copies = count_copies(
        {split: [copy_keys(frame, near_copies=False)] if split == "train" else [] for split in SPLITS}
    )
    found = data_figures(counts, copies, 2, vocabulary, with_completions=False)
    assert set(found) == {"context_length", "train"}
    assert (found["train"]["tokens"], found["train"]["text_tokens"], found["train"]["characters_per_token"]) == (
        7,
        5,
        3.6,
    )
    assert found["train"]["share_longer_than_context"] == 0.5
    assert not {"unknown_tokens", "empty_completions", "near_copies_of_train"} & set(found["train"])
