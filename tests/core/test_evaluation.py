"""Counts by hand, and figures that the batch size does not change."""

import json
import math
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stages.core.evaluation import (
    bits_per_byte,
    count_correct,
    count_correct_by_position,
    count_pairs,
    perplexity,
    score_tokens,
)
from stages.errors import UserError

PREDICTIONS = torch.tensor([[1, 2, 3], [1, 0, 3]])
TARGETS = torch.tensor([[1, 0, 3], [2, 0, -100]])
COUNTED = torch.tensor([[True, True, False], [True, True, False]])


def test_counts_by_hand() -> None:
    assert count_correct(PREDICTIONS, TARGETS, COUNTED) == (2, 4)
    correct, counted = count_correct_by_position(PREDICTIONS, TARGETS, COUNTED)
    assert correct.tolist() == [1, 1, 0]
    assert counted.tolist() == [2, 2, 0]
    assert count_pairs(PREDICTIONS, TARGETS, COUNTED) == Counter({(1, 1): 1, (0, 2): 1, (2, 1): 1, (0, 0): 1})
    assert count_pairs(PREDICTIONS, TARGETS, COUNTED & (TARGETS == 99)) == Counter()


def test_scores_do_not_depend_on_how_many_are_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, output = torch.randn(3, 7, 8), nn.Linear(8, 11)
    targets = torch.randint(11, (3, 7))
    targets[1, 2:] = -100
    whole = score_tokens(hidden, output, targets)
    monkeypatch.setattr("stages.core.evaluation._MOST_LOGITS", 40)
    pieces = score_tokens(hidden, output, targets)
    torch.testing.assert_close(pieces.nats, whole.nats)
    assert torch.equal(pieces.predictions, whole.predictions)
    probabilities = output(hidden).softmax(-1)
    assert torch.equal(whole.predictions, probabilities.argmax(-1))
    scored = targets != -100
    expected = -probabilities[scored, targets[scored]].log().double()
    torch.testing.assert_close(whole.nats[scored], expected, atol=1e-6, rtol=1e-6)
    assert whole.nats[~scored].count_nonzero() == 0
    assert whole.nats.dtype == torch.float64


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
        assert score_tokens(hidden, output, torch.randint(11, (3, 7))).nats.dtype == torch.float64


def test_perplexity() -> None:
    assert perplexity(math.log(8)) == pytest.approx(8)
    assert perplexity(0.0) == 1
    assert perplexity(1e6) == sys.float_info.max
    assert json.loads(json.dumps(perplexity(1e6), allow_nan=False)) == sys.float_info.max
    with pytest.raises(UserError, match="the loss is nan: training diverged"):
        perplexity(math.nan)


def test_bits_per_byte() -> None:
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2)
    with pytest.raises(ValueError, match="text_bytes: found 0"):
        bits_per_byte(1.0, 0)
