"""The summed loss against the textbook's definition, in one piece and in several."""

import math

import pytest
import torch
from torch import Tensor, nn

from stages.core import loss
from stages.core.loss import summed_loss
from stages.core.windows import IGNORE_INDEX


def some_case(*, bias: bool) -> tuple[Tensor, nn.Linear, Tensor]:
    """Return hidden states, an output layer and targets, some of which are not scored."""
    torch.manual_seed(0)
    targets = torch.randint(13, (3, 5))
    targets[0, 1:4] = IGNORE_INDEX
    return torch.randn(3, 5, 8, requires_grad=True), nn.Linear(8, 13, bias=bias), targets


def by_definition(hidden: Tensor, output: nn.Linear, targets: Tensor) -> Tensor:
    """Return minus the sum of the scored targets' log probabilities."""
    scored = targets != IGNORE_INDEX
    log_probabilities: Tensor = output(hidden).softmax(-1)[scored, targets[scored]].log()
    return -log_probabilities.sum()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("most_logits", [10**9, 60, 1])
def test_loss_and_gradients_by_definition(monkeypatch: pytest.MonkeyPatch, most_logits: int, *, bias: bool) -> None:
    monkeypatch.setattr(loss, "_MOST_LOGITS", most_logits)
    hidden, output, targets = some_case(bias=bias)
    wanted = [hidden, *output.parameters()]
    found, expected = summed_loss(hidden, output, targets), by_definition(hidden, output, targets)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found / 7, wanted)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected / 7, wanted))


@pytest.mark.parametrize("most_logits", [10**9, 60])
def test_bfloat16_autocast(monkeypatch: pytest.MonkeyPatch, most_logits: int) -> None:
    monkeypatch.setattr(loss, "_MOST_LOGITS", most_logits)
    hidden, output, targets = some_case(bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = summed_loss(hidden.bfloat16(), output, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, by_definition(hidden, output, targets), atol=0.1, rtol=0.01)
    (gradient,) = torch.autograd.grad(found, [output.weight])
    assert gradient.isfinite().all()


@pytest.mark.parametrize("most_logits", [10**9, 60])
def test_float64_stays_float64(monkeypatch: pytest.MonkeyPatch, most_logits: int) -> None:
    monkeypatch.setattr(loss, "_MOST_LOGITS", most_logits)
    hidden, output, targets = some_case(bias=True)
    hidden, output = hidden.double(), output.double()
    found = summed_loss(hidden, output, targets)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, by_definition(hidden, output, targets), atol=0, rtol=1e-14)


def test_nothing_scored_is_zero_with_zero_gradients() -> None:
    hidden, output, targets = some_case(bias=True)
    found = summed_loss(hidden, output, torch.full_like(targets, IGNORE_INDEX))
    (gradient,) = torch.autograd.grad(found, [hidden])
    assert found == 0
    assert gradient.count_nonzero() == 0


def test_no_weight_means_the_uniform_distribution() -> None:
    hidden, output, targets = some_case(bias=False)
    nn.init.zeros_(output.weight)
    assert summed_loss(hidden, output, targets).item() == pytest.approx(12 * math.log(13))
