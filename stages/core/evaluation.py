"""The evaluation of a model: what it makes of every token of a split, its completions, and the figures that sum them up.

Sums are of integers or of float64, each row's on its own: the batch size changes no figure.
Shapes: B batch, T tokens, D d_model, V vocabulary size, R rows, C context_length.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from stages.core.generation import generate
from stages.core.windows import IGNORE_INDEX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt
    from torch import Tensor, nn

    from stages.core.examples import Examples
    from stages.core.transformer import Transformer
    from stages.core.windows import Int64s

    Watch = Callable[[Sequence[Any]], Iterable[Any]]
    """Passes things on one by one, and may show how far they have come."""

CONFUSION_TOKENS = 16
"""As many as can be read in one matrix."""
MOST_CLASSES = 0.05
"""Of the rows: more different completions than that are no classes."""
DECIMALS = 6
"""Figures are rounded where the order in which floating-point numbers are added up begins to show."""
_MOST_LOGITS = 2**24
"""Logits in memory at once, 64 MiB in float32."""


class TokenScores(NamedTuple):
    """What the model made of each target."""

    losses: Tensor
    """float64 [B, T], on the CPU, as not all devices know doubles: -ln p(target) in nats; 0 where it is not scored."""
    predictions: Tensor
    """int64 [B, T]: the most likely token."""


@dataclass(frozen=True)
class RowScores:
    """Sums over the scored targets of each row of a split."""

    tokens: Int64s
    """[R] how many targets are scored."""
    loss_sum: npt.NDArray[np.float64]
    """[R] their summed loss, in nats."""
    correct: Int64s
    """[R] how many of them were the most likely token."""
    completion_tokens: Int64s
    """[R] how many of them belong to the completion."""
    completion_correct: Int64s
    """[R] how many of those were the most likely token."""


@dataclass(frozen=True)
class Scores:
    """What the model makes of a split, token by token, each with the true tokens before it."""

    rows: RowScores
    tokens_by_position: Int64s
    """[C] how many targets are scored at each place of the context."""
    correct_by_position: Int64s
    """[C] how many of them were the most likely token."""
    pairs: Counter[tuple[int, int]]
    """How often each (target, prediction) occurred."""

    @property
    def tokens(self) -> int:
        """Return how many targets are scored."""
        return int(self.rows.tokens.sum())

    @property
    def loss_sum(self) -> float:
        """Return the summed loss in nats, exact to the last digit in whichever order the rows stand."""
        return math.fsum(self.rows.loss_sum)

    @property
    def loss(self) -> float:
        """Return the loss in nats per token."""
        return self.loss_sum / self.tokens


@dataclass(frozen=True)
class Completion:
    """A prompt, what followed it in the data and what the model made of it, as token ids without <EOS>."""

    row: int
    """Which row of the split, from 0."""
    prompt: list[int]
    expected: list[int]
    generated: list[int]
    exact: bool
    """Whether the model generates what followed, to its end."""
    cut: bool
    """Whether it was stopped while all that it had generated was right: only its next tokens tell whether it is exact."""


def batch_slices(count: int, size: int) -> list[slice]:
    """Return the slices that cut ``count`` things into batches of ``size``."""
    return [slice(start, start + size) for start in range(0, count, size)]


@torch.inference_mode()
def score(network: Transformer, examples: Examples, batch_size: int, watch: Watch = iter) -> Scores:
    """Compare every target of a split with the model's prediction, each with the true tokens before it.

    Args:
        network: in evaluation mode.
        examples: of the split.
        batch_size: examples that are scored at once.
        watch: is given the batches.
    """
    device = network.output.weight.device
    context_length = network.config.context_length
    rows = len(examples.spans.row_offsets) - 1
    counts = np.zeros((4, rows), dtype=np.int64)
    row_scores = RowScores(counts[0], np.zeros(rows), counts[1], counts[2], counts[3])
    by_position = np.zeros((2, context_length), dtype=np.int64)
    pairs: Counter[tuple[int, int]] = Counter()
    windows = examples.windows()
    for which in watch(batch_slices(len(windows), batch_size)):
        batch = windows.select(which)
        input_ids, targets = (torch.from_numpy(array).to(device) for array in examples.gather(batch))
        losses, predictions = score_tokens(network.hidden_states(input_ids), network.output, targets)
        target_ids, predicted_ids = targets.cpu().numpy(), predictions.cpu().numpy()  # [B, T]
        correct = predicted_ids == target_ids
        scored = target_ids != IGNORE_INDEX
        positions = examples.target_positions(batch)
        completion = scored & examples.spans.is_completion(positions)
        add_by_row(row_scores, examples.spans.row_of(positions), losses.numpy(), correct, scored, completion)
        by_position[0, : scored.shape[1]] += scored.sum(axis=0)
        by_position[1, : scored.shape[1]] += (correct & scored).sum(axis=0)
        pairs += count_pairs(predicted_ids[scored], target_ids[scored])
    return Scores(row_scores, by_position[0], by_position[1], pairs)


@torch.no_grad()
def score_tokens(hidden: Tensor, output: nn.Linear, targets: Tensor) -> TokenScores:
    """Score every target, with only some of the logits in memory at a time.

    Args:
        hidden: [B, T, D], what the output layer reads.
        output: the layer from D to V.
        targets: int64 [B, T]; IGNORE_INDEX: not scored.
    """
    at_once = max(1, _MOST_LOGITS // output.out_features)
    rows, row_targets = hidden.flatten(0, 1), targets.flatten()  # [B, T, D] -> [B T, D], [B, T] -> [B T]
    losses, predictions = [], []
    for some in batch_slices(len(rows), at_once):
        logits = output(rows[some]).float()  # [at_once, V]
        losses.append(functional.cross_entropy(logits, row_targets[some], ignore_index=IGNORE_INDEX, reduction="none"))
        predictions.append(logits.argmax(dim=-1))
    return TokenScores(torch.cat(losses).cpu().double().view_as(targets), torch.cat(predictions).view_as(targets))


def add_by_row(
    scores: RowScores,
    rows: Int64s,
    losses: npt.NDArray[np.float64],
    correct: npt.NDArray[np.bool_],
    scored: npt.NDArray[np.bool_],
    completion: npt.NDArray[np.bool_],
) -> None:
    """Add the targets of a batch to the sums of their rows, in place.

    Args:
        scores: the sums so far.
        rows: [B, T] the row of each target.
        losses: [B, T] their losses.
        correct: [B, T] whether each was the most likely token.
        scored: [B, T] which targets count.
        completion: [B, T] which of those belong to a completion.
    """
    np.add.at(scores.tokens, rows[scored], 1)
    np.add.at(scores.loss_sum, rows[scored], losses[scored])
    np.add.at(scores.correct, rows[scored & correct], 1)
    np.add.at(scores.completion_tokens, rows[completion], 1)
    np.add.at(scores.completion_correct, rows[completion & correct], 1)


def count_pairs(predictions: Int64s, targets: Int64s) -> Counter[tuple[int, int]]:
    """Return how often each (target, prediction) occurs, as for a confusion matrix; only pairs that occur take memory."""
    pairs, counts = np.unique(np.stack([targets, predictions]), axis=1, return_counts=True)
    return Counter(dict(zip(zip(*pairs.tolist(), strict=True), counts.tolist(), strict=True)))


def complete_rows(
    network: Transformer,
    examples: Examples,
    scores: RowScores,
    *,
    eos_id: int,
    batch_size: int,
    max_new_tokens: int | None,
    texts: int,
    watch: Watch = iter,
) -> list[Completion]:
    """Complete the prompts of a split greedily: all that have a completion, else the first halves of some texts.

    Args:
        network: in evaluation mode.
        examples: of the split.
        scores: of its rows; they say whether a completion that was cut would have gone on right.
        eos_id: the token that ends a completion.
        batch_size: prompts that are completed at once.
        max_new_tokens: the most tokens of a completion; None: as many as the longest completion of the split has, at
            most as many as the context holds.
        texts: how many texts are continued where no row has a completion.
        watch: is given the prompts' numbers.
    """
    rows = examples.rows_with_completion()
    if len(rows) == 0:
        # White space has no words: such a text is <EOS> alone, without halves.
        rows = np.flatnonzero(np.diff(examples.spans.row_offsets) > 1)[:texts]
    pairs = [examples.prompt_and_rest(int(row)) for row in rows]
    longest = max((len(rest) for _, rest in pairs), default=1)
    limit = max_new_tokens or min(longest, network.config.context_length)
    # Prompts of similar length share a batch, which saves padding.
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]))
    prompts = [pairs[index][0] for index in order]
    generated = dict(zip(watch(order), generate(network, prompts, eos_id, limit, batch_size=batch_size), strict=True))
    all_correct = (scores.completion_tokens > 0) & (scores.completion_correct == scores.completion_tokens)  # [R]
    completions = []
    for index, (prompt, rest) in enumerate(pairs):
        row = int(rows[index])
        cut = len(rest) > limit and generated[index] == rest[:limit]
        exact = generated[index] == rest or (cut and bool(all_correct[row]))
        token_ids = [_without(eos_id, part) for part in (prompt, rest, generated[index])]
        completions.append(Completion(row, token_ids[0], token_ids[1], token_ids[2], exact, cut))
    return completions


def summarise(scores: Scores, scored_bytes: int, completions: Sequence[Completion]) -> dict[str, float]:
    """Return the figures of metrics/evaluate.json.

    Args:
        scores: of a split in which something is scored.
        scored_bytes: the UTF-8 bytes of the text that the scored targets stand for.
        completions: of all its rows that have one.

    Raises:
        ValueError: the loss is infinite or not a number.
    """
    rows, tokens = scores.rows, scores.tokens
    metrics = {
        "rows": len(rows.tokens),
        "tokens": tokens,
        "loss": scores.loss,
        "perplexity": perplexity(scores.loss),
    }
    if scored_bytes:  # the <EOS> of a row of one word, its only target, stands for none
        metrics["bits_per_byte"] = bits_per_byte(scores.loss_sum, scored_bytes)
    metrics["next_token_accuracy"] = int(rows.correct.sum()) / tokens
    completion_tokens = int(rows.completion_tokens.sum())
    if completion_tokens:
        metrics["completion_token_accuracy"] = int(rows.completion_correct.sum()) / completion_tokens
        metrics["completion_exact_match"] = sum(completion.exact for completion in completions) / len(completions)
        cut = sum(completion.cut for completion in completions)
        if cut:
            metrics["completions_cut"] = cut
        commonest = majority_share([tuple(completion.expected) for completion in completions])
        if commonest is not None:
            metrics["majority_baseline"] = commonest
    return {name: round(value, DECIMALS) for name, value in metrics.items()}


def majority_share(expected: Sequence[tuple[int, ...]]) -> float | None:
    """Return the share that always giving the commonest completion gets right: what a classifier has to beat.

    None where completions are no classes: hardly any is there twice, or all are the same.
    """
    counts = Counter(expected)
    if not 2 <= len(counts) <= MOST_CLASSES * len(expected):
        return None
    return max(counts.values()) / len(expected)


def perplexity(loss: float) -> float:
    """Return e^loss: between how many equally likely tokens the model hesitates.

    Where that is more than a float holds (a loss above 709 nats), the largest float is returned: a file of metrics
    stays valid JSON, which has no infinity.

    Args:
        loss: nats per token.

    Raises:
        ValueError: the loss is not a finite number.
    """
    if not math.isfinite(loss):
        raise ValueError(f"loss: found {loss}, allowed: a finite number")
    try:
        return math.exp(loss)
    except OverflowError:
        return sys.float_info.max


def bits_per_byte(loss_sum: float, text_bytes: int) -> float:
    """Return the bits that the model needs for one byte of text, which compares models with different vocabularies.

    Args:
        loss_sum: of the scored tokens, in nats.
        text_bytes: UTF-8 bytes that these tokens stand for.

    Raises:
        ValueError: there are no bytes.
    """
    if text_bytes < 1:
        raise ValueError(f"text_bytes: found {text_bytes}, allowed: at least 1")
    return loss_sum / math.log(2) / text_bytes


def accuracy_by_position(scores: Scores) -> list[tuple[int, float, int]]:
    """Return (position from 1, share of right predictions, scored targets) of each position where some are scored."""
    counts = zip(scores.correct_by_position.tolist(), scores.tokens_by_position.tolist(), strict=True)
    return [
        (position, correct / tokens, tokens) for position, (correct, tokens) in enumerate(counts, start=1) if tokens
    ]


def confusion_matrix(scores: Scores) -> list[tuple[int, int, int]]:
    """Return (target, prediction, count) among the tokens that were mistaken most, sorted.

    Where there are few of them, those that were scored most often are added.
    """
    by_interest = sorted(scores.pairs.items(), key=lambda item: (item[0][0] == item[0][1], -item[1], item[0]))
    tokens: set[int] = set()
    for pair, _ in by_interest:
        if len(tokens) == CONFUSION_TOKENS:
            break
        if len(tokens.union(pair)) <= CONFUSION_TOKENS:
            tokens.update(pair)
    return sorted((*pair, count) for pair, count in scores.pairs.items() if tokens.issuperset(pair))


def _without(eos_id: int, token_ids: Iterable[int]) -> list[int]:
    return [token_id for token_id in token_ids if token_id != eos_id]
