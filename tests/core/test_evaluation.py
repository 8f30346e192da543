"""Counts by hand, and figures that the batch size does not change."""

import json
import math
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stages.core.evaluation import (
    CONFUSION_TOKENS,
    Completion,
    RowScores,
    add_by_row,
    bits_per_byte,
    complete_rows,
    confusion_matrix,
    count_pairs,
    majority_share,
    perplexity,
    score,
    score_tokens,
    summarise,
)
from stages.core.examples import Examples
from stages.core.transformer import Transformer
from stages.core.windows import DatasetParams, RowSpans
from tests.training.conftest import EOS_ID, VOCABULARY_SIZE, examples, network

PREDICTIONS = np.array([[1, 2, 3], [1, 0, 3]])
TARGETS = np.array([[1, 0, 3], [2, 0, -100]])
SCORED = np.array([[True, True, False], [True, True, False]])
COMPLETION = np.array([[False, True, False], [False, True, False]])


def test_the_baseline_of_a_classification_is_its_commonest_class() -> None:
    classes = [(1, 2)] * 60 + [(1,)] * 30 + [(2,)] * 10
    assert majority_share(classes) == 0.6
    assert majority_share([(1,)] * 100) is None
    assert majority_share([(number,) for number in range(100)]) is None
    assert majority_share([(1,), (2,)]) is None
    assert majority_share([]) is None


def test_pairs_by_hand() -> None:
    pairs = count_pairs(PREDICTIONS[SCORED], TARGETS[SCORED])
    assert pairs == Counter({(1, 1): 1, (0, 2): 1, (2, 1): 1, (0, 0): 1})
    assert count_pairs(PREDICTIONS[:0], TARGETS[:0]) == Counter()


def test_rows_by_hand() -> None:
    """The first window has the targets of rows 0 and 2, the second those of row 2 alone."""
    empty = np.zeros(3, dtype=np.int64)
    scores = RowScores(empty, np.zeros(3), empty.copy(), empty.copy(), empty.copy())
    losses = np.array([[0.5, 0.25, 9.0], [1.0, 2.0, 9.0]])
    rows = np.array([[0, 2, 2], [2, 2, 2]])
    add_by_row(scores, rows, losses, PREDICTIONS == TARGETS, SCORED, COMPLETION)
    assert scores.tokens.tolist() == [1, 0, 3]
    assert scores.loss_sum.tolist() == [0.5, 0, 3.25]
    assert scores.correct.tolist() == [1, 0, 1]
    assert scores.completion_tokens.tolist() == [0, 0, 2]
    assert scores.completion_correct.tolist() == [0, 0, 1]


def test_scores_do_not_depend_on_how_many_are_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, output = torch.randn(3, 7, 8), nn.Linear(8, 11)
    targets = torch.randint(11, (3, 7))
    targets[1, 2:] = -100
    whole = score_tokens(hidden, output, targets)
    monkeypatch.setattr("stages.core.evaluation._MOST_LOGITS", 40)
    pieces = score_tokens(hidden, output, targets)
    torch.testing.assert_close(pieces.losses, whole.losses)
    assert torch.equal(pieces.predictions, whole.predictions)
    probabilities = output(hidden).softmax(-1)
    assert torch.equal(whole.predictions, probabilities.argmax(-1))
    scored = targets != -100
    expected = -probabilities[scored, targets[scored]].log().double()
    torch.testing.assert_close(whole.losses[scored], expected, atol=1e-6, rtol=1e-6)
    assert whole.losses[~scored].count_nonzero() == 0
    assert whole.losses.dtype == torch.float64


@pytest.mark.parametrize("packing", ["rows", "stream"])
def test_the_batch_size_changes_no_figure(packing: str) -> None:
    model = network().eval()
    split = examples(packing=packing)
    figures = [summarise(score(model, split, size), 100, []) for size in (1, 3, 64)]
    assert figures[0] == figures[1] == figures[2]


def test_a_model_that_knows_nothing_hesitates_between_all_tokens() -> None:
    model = network(tie_embeddings=False)
    with torch.no_grad():
        model.output.weight.zero_()
    scores = score(model.eval(), examples(), 4)
    figures = summarise(scores, scores.tokens, [])
    assert figures["perplexity"] == pytest.approx(VOCABULARY_SIZE, rel=1e-5)
    assert figures["loss"] == pytest.approx(math.log(VOCABULARY_SIZE), rel=1e-5)
    assert figures["bits_per_byte"] == pytest.approx(math.log2(VOCABULARY_SIZE), rel=1e-5)


def test_every_target_is_counted_once_overall_and_by_position() -> None:
    split = examples()
    scores = score(network().eval(), split, 4)
    tokens = int(split.spans.row_offsets[-1])
    assert scores.tokens == int(scores.tokens_by_position.sum()) == sum(scores.pairs.values()) == tokens - 20
    right = sum(count for (target, predicted), count in scores.pairs.items() if target == predicted)
    assert int(scores.rows.correct.sum()) == int(scores.correct_by_position.sum()) == right


def test_the_confusion_matrix_holds_what_was_mistaken_most_and_is_whole_where_it_is_small() -> None:
    scores = score(network().eval(), examples(), 4)
    few = confusion_matrix(scores)
    assert sum(count for *_, count in few) == scores.tokens
    assert sum(count for truth, prediction, count in few if truth == prediction) == int(scores.rows.correct.sum())
    mistaken = {(token, token + 1): 100 - token for token in range(29)}
    many = confusion_matrix(replace(scores, pairs=Counter({(29, 29): 1000} | mistaken)))
    assert many == [(token, token + 1, 100 - token) for token in range(CONFUSION_TOKENS - 1)]


def complete(
    model: Transformer, split: Examples, batch_size: int = 4, max_new_tokens: int | None = None, texts: int = 3
) -> list[Completion]:
    return complete_rows(
        model.eval(),
        split,
        score(model, split, batch_size).rows,
        eos_id=EOS_ID,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        texts=texts,
    )


def answers_three() -> Transformer:
    """A model that always says 3, then ends."""
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
    return model


@pytest.mark.parametrize(("max_new_tokens", "cut"), [
    (1, [True, True, True]),  # all begin with 3, and all go on
    (2, [False, False, False]),
    (3, [False, False, False]),
    (None, [False, False, False]),
])  # fmt: skip
def test_a_completion_is_right_only_with_its_end_however_many_tokens_are_generated(
    max_new_tokens: int | None, cut: list[bool]
) -> None:
    """The model is right for the first and the third row; the second goes on."""
    rows = [[0, 1, EOS_ID, 3, EOS_ID], [0, 1, EOS_ID, 3, 4, EOS_ID], [2, EOS_ID, 3, EOS_ID]]
    offsets = np.cumsum([0, *map(len, rows)])
    spans = RowSpans(offsets, np.array([3, 8, 13]))
    packing = DatasetParams(packing="rows", loss_on="all", stride=None)
    split = Examples(np.concatenate(rows), spans, packing, context_length=8, eos_id=EOS_ID)
    model = answers_three()
    samples = complete(model, split, 2, max_new_tokens)
    assert [sample.generated for sample in samples] == [[3], [3], [3]]
    assert [sample.exact for sample in samples] == [True, False, True]
    assert [sample.cut for sample in samples] == cut
    metrics = summarise(score(model, split, 2), 100, samples)
    assert metrics["completion_exact_match"] == pytest.approx(2 / 3, abs=1e-6)
    assert metrics.get("completions_cut", 0) == sum(cut)


def test_a_long_cell_is_not_generated_beyond_the_context() -> None:
    row = [0, EOS_ID, *[3] * 500, EOS_ID]
    packing = DatasetParams(packing="rows", loss_on="all", stride=None)
    split = Examples(np.array(row), RowSpans(np.array([0, len(row)]), np.array([2])), packing, 8, EOS_ID)
    model = network(tie_embeddings=False, output_bias=True, norm="none")
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias[3] = 1
    (completion,) = complete(model, split)
    assert completion.generated == [3] * 8
    assert completion.cut
    assert not completion.exact  # it never ends


def test_plain_text_has_samples_but_no_completion_figures() -> None:
    model = network().eval()
    split = examples()
    samples = complete(model, split, texts=2)
    assert len(samples) == 2
    assert not [name for name in summarise(score(model, split, 4), 100, samples) if "completion" in name]


class DeviceWithoutDoubles(TorchFunctionMode):
    """Takes every tensor for one on Apple's GPU, which has no float64, until it is copied to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.on_cpu: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.double:
            assert any(args[0] is tensor for tensor in self.on_cpu), "made a double on the device"
        made = func(*args, **kwargs or {})
        if func is Tensor.cpu:
            self.on_cpu.append(made)
        return made


def test_doubles_are_made_on_the_cpu_alone() -> None:
    hidden, output = torch.randn(3, 7, 8), nn.Linear(8, 11)
    with DeviceWithoutDoubles():
        assert score_tokens(hidden, output, torch.randint(11, (3, 7))).losses.dtype == torch.float64


def test_perplexity() -> None:
    assert perplexity(math.log(8)) == pytest.approx(8)
    assert perplexity(0.0) == 1
    assert perplexity(1e6) == sys.float_info.max
    assert json.loads(json.dumps(perplexity(1e6), allow_nan=False)) == sys.float_info.max
    with pytest.raises(ValueError, match="loss: found nan"):
        perplexity(math.nan)


def test_bits_per_byte() -> None:
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2)
    with pytest.raises(ValueError, match="text_bytes: found 0"):
        bits_per_byte(1.0, 0)
