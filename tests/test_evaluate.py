"""Figures that can be known without the code: by hand, by symmetry, or because nothing but the batch size changed."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.artifacts.model_weights import SavedModel
from stages.artifacts.token_shards import SplitMetadata
from stages.core.examples import Examples
from stages.core.rows import count_scored, encode_rows
from stages.core.transformer import Transformer
from stages.core.vocabulary import VocabularyParams, build_vocabulary
from stages.core.windows import DatasetParams, RowSpans
from stages.evaluate import (
    CONFUSED_TOKENS,
    EvaluateParams,
    complete_rows,
    confusion_matrix,
    decode_samples,
    describe,
    look_inside,
    score,
    summarise,
)
from stages.report.token_labels import token_labels
from tests.frames import frame_of_texts
from tests.training.conftest import EOS_ID, VOCABULARY_SIZE, examples, network


def saved(model: Transformer) -> SavedModel:
    return SavedModel(model.eval().requires_grad_(requires_grad=False), prompts_end_with_eos=True)


def parameters(**changed: Any) -> EvaluateParams:
    return EvaluateParams(**{"batch_size": 4, "max_new_tokens": None, "samples": 3} | changed)


def metadata(text_bytes: int = 100) -> SplitMetadata:
    return SplitMetadata(rows=20, tokens=120, scored_tokens=100, scored_bytes=text_bytes, sha256="0")


@pytest.mark.parametrize("packing", ["rows", "stream"])
def test_the_batch_size_changes_no_figure(packing: str) -> None:
    model = saved(network())
    split = examples(packing=packing)
    figures = [summarise(score(model, split, size), metadata(), []) for size in (1, 3, 64)]
    assert figures[0] == figures[1] == figures[2]


def test_a_model_that_knows_nothing_hesitates_between_all_tokens() -> None:
    model = network(tie_embeddings=False)
    with torch.no_grad():
        model.output.weight.zero_()
    scores = score(saved(model), examples(), 4)
    figures = summarise(scores, metadata(text_bytes=scores.tokens), [])
    assert figures["perplexity"] == pytest.approx(VOCABULARY_SIZE, rel=1e-5)
    assert figures["loss"] == pytest.approx(math.log(VOCABULARY_SIZE), rel=1e-5)
    assert figures["bits_per_byte"] == pytest.approx(math.log2(VOCABULARY_SIZE), rel=1e-5)


def test_every_target_is_counted_once_overall_and_by_position() -> None:
    split = examples()
    scores = score(saved(network()), split, 4)
    tokens = int(split.spans.row_offsets[-1])
    assert scores.tokens == int(scores.tokens_by_position.sum()) == sum(scores.pairs.values()) == tokens - 20
    right = sum(count for (target, predicted), count in scores.pairs.items() if target == predicted)
    assert scores.correct == int(scores.correct_by_position.sum()) == right


def test_the_confusion_matrix_holds_what_was_mistaken_most_and_is_whole_where_it_is_small() -> None:
    vocabulary = build_vocabulary(
        VocabularyParams(tokenizer="word", size=1, unknown_token=False),
        [frame_of_texts([" ".join(map(str, range(30)))])],
    )
    scores = score(saved(network()), examples(), 4)
    few = confusion_matrix(scores, token_labels(vocabulary))
    assert sum(count for *_, count in few) == scores.tokens
    assert sum(count for truth, prediction, count in few if truth == prediction) == scores.correct
    mistaken = {(token, token + 1): 100 - token for token in range(29)}
    many = confusion_matrix(replace(scores, pairs=Counter({(29, 29): 1000} | mistaken)), token_labels(vocabulary))
    assert many == [(str(token), str(token + 1), 100 - token) for token in range(CONFUSED_TOKENS - 1)]


def test_tokens_that_begin_alike_are_not_taken_for_each_other() -> None:
    words = VocabularyParams(tokenizer="word", size=1, unknown_token=False)
    vocabulary = build_vocabulary(words, [frame_of_texts(["internationalised internationalisation"])])
    scores = score(saved(network()), examples(), 4)
    confusions = confusion_matrix(replace(scores, pairs=Counter({(0, 1): 3, (1, 1): 2})), token_labels(vocabulary))
    assert confusions == [("internationalis… #0", "internationalis… #1", 3), ("internationalis… #1",) * 2 + (2,)]


def test_a_completion_is_right_only_with_its_end() -> None:
    """The model always says 3, then ends: right for the first and the third row; the second goes on."""
    rows = [[0, 1, EOS_ID, 3, EOS_ID], [0, 1, EOS_ID, 3, 4, EOS_ID], [2, EOS_ID, 3, EOS_ID]]
    offsets = np.cumsum([0, *map(len, rows)])
    spans = RowSpans(offsets, np.array([3, 8, 13]))
    packing = DatasetParams(packing="rows", loss_on="all", stride=None)
    split = Examples(np.concatenate(rows), spans, packing, context_length=8, eos_id=EOS_ID)
    model = network(tie_embeddings=False, output_bias=True)
    with torch.no_grad():
        # The last layer's bias says 3, unless the token that is read is 3: then its embedding says <EOS>.
        model.output.weight.zero_()
        model.output.bias[3] = 1
        model.embedding.weight.zero_()
        model.embedding.weight[3, 0] = 100
        model.output.weight[EOS_ID, 0] = 10
        for name, parameter in model.named_parameters():
            if name.endswith(("projection.weight", "down.weight", "position_table")):
                parameter.zero_()
    samples = complete_rows(saved(model), split, EOS_ID, parameters())
    assert [sample.completion for sample in samples] == [[3], [3], [3]]
    assert [sample.exact for sample in samples] == [True, False, True]


def test_plain_text_has_samples_but_no_completion_figures() -> None:
    model = saved(network())
    split = examples()
    samples = complete_rows(model, split, EOS_ID, parameters(samples=2))
    assert len(samples) == 2
    assert not [name for name in summarise(score(model, split, 4), metadata(), samples) if "completion" in name]


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

    scores = score(model, split, 4)
    assert scores.tokens == counted.tokens
    samples = complete_rows(model, split, vocabulary.eos_id, parameters())
    halves = [row for row, length in enumerate(rows.row_lengths) if length > 1]
    assert [sample.row for sample in samples] == halves[:3]
    assert look_inside(model, split, samples, vocabulary, token_labels(vocabulary), completions_only=False).points
    if counted.tokens:
        figures = summarise(scores, metadata(counted.bytes), samples)
        assert ("bits_per_byte" in figures) == (counted.bytes > 0)


def test_scoring_training_rows_is_said() -> None:
    figures = {"split": "train", "rows": 2, "loss": 0.1}
    assert describe(figures).startswith("scored 2 train rows, as nothing is held out: loss 0.1000")
    assert describe(figures | {"split": "test"}).startswith("scored 2 test rows: loss 0.1000")


def test_samples_are_readable() -> None:
    characters = VocabularyParams(tokenizer="character", size=8000, unknown_token=False)
    vocabulary = build_vocabulary(characters, [frame_of_texts(["0123456789"])])
    samples = complete_rows(saved(network()), examples(), EOS_ID, parameters(samples=2))
    readable = decode_samples(samples, vocabulary)
    assert len(readable) == 2
    for sample, (prompt, expected, completion, exact) in zip(samples, readable, strict=True):
        digits = [int(character) for character in prompt + expected]
        assert digits == [*sample.prompt, *sample.expected]
        assert exact == (completion == expected and sample.exact)
