"""Figures that can be known without the code: by hand, by symmetry, or because nothing but the batch size changed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.evaluation import (
    complete_rows,
    score,
    summarise,
)
from stages.core.examples import Examples
from stages.core.rows import count_scored, encode_rows
from stages.core.saved_model import SavedModel
from stages.core.transformer import Transformer
from stages.core.vocabulary import VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
from stages.core.windows import DatasetParams, RowSpans
from stages.errors import UserError
from stages.evaluate import check_finite, decode_samples, describe, inspect_model
from stages.report.token_labels import token_labels
from tests.frames import frame_of_texts
from tests.training.conftest import EOS_ID, examples, network


def saved(model: Transformer) -> SavedModel:
    return SavedModel(model.eval().requires_grad_(requires_grad=False), prompts_end_with_eos=True)


ROW = st.lists(st.sampled_from(["a", "b", " "]), min_size=1, max_size=12).map("".join)


@settings(max_examples=30)
@given(
    texts=st.lists(ROW, min_size=1, max_size=4),
    tokenizer=st.sampled_from(["word", "character", "bpe"]),
    packing=st.sampled_from(["rows", "stream"]),
)
def test_any_plain_text_is_scored_completed_and_shown(texts: list[str], tokenizer: str, packing: str) -> None:
    """Also one of white space, and one of a single word."""
    of_tokens = {"tokenizer": tokenizer, "size": 257, "unknown_token": False}
    vocabulary = build_vocabulary(VocabularyParams.model_validate(of_tokens), [frame_of_texts([*texts, "a b"])])
    dataset = DatasetParams.model_validate({"packing": packing, "loss_on": "all", "stride": None})
    frame = frame_of_texts(texts)
    rows = encode_rows(vocabulary, frame)
    offsets = np.cumsum([0, *rows.row_lengths])
    split = Examples(rows.token_ids, RowSpans(offsets, offsets[1:]), dataset, 8, vocabulary.eos_id)
    counted = count_scored(vocabulary, frame, rows, dataset, begins_split=True)
    model = saved(network(vocabulary_size=vocabulary.size))

    scores = score(model.network, split, 4)
    assert scores.tokens == counted.tokens
    samples = complete_rows(
        model.network, split, scores.rows, eos_id=vocabulary.eos_id, batch_size=4, max_new_tokens=None, texts=3
    )
    halves = [row for row, length in enumerate(rows.row_lengths) if length > 1]
    assert [sample.row for sample in samples] == halves[:3]
    assert inspect_model(model, split, samples, vocabulary, token_labels(vocabulary), completions_only=False).points
    if counted.tokens:
        figures = summarise(scores, counted.bytes, samples)
        assert ("bits_per_byte" in figures) == (counted.bytes > 0)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_training_that_diverged_is_named_with_its_fix(loss: float) -> None:
    with pytest.raises(UserError, match=f"the loss is {loss}: training diverged; lower train.learning_rate"):
        check_finite(loss)


def test_scoring_training_rows_is_said() -> None:
    figures = {"split": "train", "rows": 2, "loss": 0.1}
    assert describe(figures).startswith("scored 2 train rows, as nothing is held out: loss 0.1000")
    assert describe(figures | {"split": "test"}).startswith("scored 2 test rows: loss 0.1000")
    assert "cut" not in describe(figures)


def test_completions_that_were_cut_are_counted() -> None:
    line = describe({"split": "test", "rows": 20, "completion_exact_match": 1.0, "completions_cut": 12})
    assert "\n12 completions were cut by evaluate.max_new_tokens" in line


def test_samples_are_readable() -> None:
    characters = VocabularyParams(tokenizer="character", size=8000, unknown_token=False)
    vocabulary = build_vocabulary(characters, [frame_of_texts(["0123456789"])])
    model, split = network().eval(), examples()
    samples = complete_rows(
        model, split, score(model, split, 4).rows, eos_id=EOS_ID, batch_size=4, max_new_tokens=None, texts=2
    )
    readable = decode_samples(samples, vocabulary)
    assert len(readable) == 2
    for sample, row in zip(samples, readable, strict=True):
        digits = [int(character) for character in row.prompt + row.expected]
        assert digits == [*sample.prompt, *sample.expected]
        assert row.exact_match == (row.completion == row.expected and sample.exact)
        assert row.cut == sample.cut
