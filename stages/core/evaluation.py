"""Counts and figures of an evaluation.

Every function of a batch returns integers or float64 sums, which the caller adds up over batches: the batch size
changes no figure. Shapes: B batch, T tokens, D d_model, V vocabulary size.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from stages.core.windows import IGNORE_INDEX
from stages.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

_MOST_LOGITS = 2**24
"""Logits held at once, 64 MiB in float32."""


class TokenScores(NamedTuple):
    """What the model made of each place."""

    nats: Tensor
    """float64 [B, T], on the CPU, as not all devices know doubles: -ln p(target); 0 where the place is not scored."""
    predictions: Tensor
    """int64 [B, T]: the most likely token."""


@torch.no_grad()
def score_tokens(hidden: Tensor, output: nn.Linear, targets: Tensor) -> TokenScores:
    """Score every place, with only some of the logits in memory at a time.

    Args:
        hidden: [B, T, D], what the output layer reads.
        output: the layer from D to V.
        targets: int64 [B, T]; IGNORE_INDEX: not scored.
    """
    at_once = max(1, _MOST_LOGITS // output.out_features)
    rows, row_targets = hidden.flatten(0, 1), targets.flatten()  # [B, T, D] -> [B T, D], [B, T] -> [B T]
    nats, predictions = [], []
    for start in range(0, len(rows), at_once):
        some = slice(start, start + at_once)
        logits = output(rows[some]).float()  # [at_once, V]
        nats.append(functional.cross_entropy(logits, row_targets[some], ignore_index=IGNORE_INDEX, reduction="none"))
        predictions.append(logits.argmax(dim=-1))
    return TokenScores(torch.cat(nats).cpu().double().view_as(targets), torch.cat(predictions).view_as(targets))


def count_correct(predictions: Tensor, targets: Tensor, counted: Tensor) -> tuple[int, int]:
    """Return how many counted places are right, and how many are counted.

    Args:
        predictions: int64 [B, T].
        targets: int64 [B, T].
        counted: bool [B, T].
    """
    return int(((predictions == targets) & counted).sum()), int(counted.sum())


def count_correct_by_position(predictions: Tensor, targets: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same two counts for each place in the window, int64 [T] both; arguments as for ``count_correct``."""
    return ((predictions == targets) & counted).sum(dim=0), counted.sum(dim=0)


def count_pairs(predictions: Tensor, targets: Tensor, counted: Tensor) -> Counter[tuple[int, int]]:
    """Return how often each (target, prediction) occurs among the counted places, as for a confusion matrix.

    Only pairs that occur take memory. Arguments as for ``count_correct``.
    """
    return Counter(zip(targets[counted].tolist(), predictions[counted].tolist(), strict=True))


def perplexity(loss: float) -> float:
    """Return e^loss: between how many equally likely tokens the model hesitates.

    Where that is more than a float holds (a loss above 709 nats), the largest float is returned: a file of metrics
    stays valid JSON, which has no infinity.

    Args:
        loss: nats per token.

    Raises:
        UserError: the loss is not a finite number.
    """
    if not math.isfinite(loss):
        raise UserError(f"the loss is {loss}: training diverged; lower train.learning_rate or set train.gradient_clip")
    try:
        return math.exp(loss)
    except OverflowError:
        return sys.float_info.max


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Return the bits that the model needs for one byte of text, which compares models with different vocabularies.

    Args:
        nats: summed loss of the scored tokens.
        text_bytes: UTF-8 bytes that these tokens stand for.

    Raises:
        ValueError: there are no bytes.
    """
    if text_bytes < 1:
        raise ValueError(f"text_bytes: found {text_bytes}, allowed: at least 1")
    return nats / math.log(2) / text_bytes
