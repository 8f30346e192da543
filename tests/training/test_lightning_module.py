"""A step is the same function of its examples however they are divided."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core import windows
from stages.training.data_module import TrainingBatches
from stages.training.lightning_module import LanguageModel, dropout_seeds
from stages.training.plan import plan_training
from tests.training.conftest import examples, network, train_parameters

BATCH_SIZE = 12
DIVISIONS = [
    (devices, size)
    for devices, size in itertools.product((1, 2, 3, 4, 6, 12), (1, 2, 3, 4, 6, 12))
    if BATCH_SIZE % (devices * size) == 0
]


def gradients(devices: int, micro_batch_size: int, packing: str, *, step: int = 1, seed: int = 1) -> list[Tensor]:
    """Return one step's gradients, computed device by device as Lightning does: averaged over devices and micro-batches."""
    parameters = train_parameters(batch_size=BATCH_SIZE, seed=seed)
    data = examples(40, packing=packing)
    plan = plan_training(data.examples_per_epoch(), parameters, micro_batch_size, devices)
    model: Any = LanguageModel(network(dropout=0.3).double(), parameters, plan)
    for rank in range(devices):
        model._trainer = SimpleNamespace(world_size=devices, global_rank=rank)
        batches = TrainingBatches(data, plan, rank)
        for number in range(step * plan.micro_batches, (step + 1) * plan.micro_batches):
            (model.training_step(batches[number], number) / (devices * plan.micro_batches)).backward()
    return [weight.grad for weight in model.network.parameters()]


@pytest.fixture(autouse=True)
def _passes_of_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rows of each length have a pass of their own, however few."""
    monkeypatch.setattr(windows, "PASS_TOKENS", 1)


def test_passes_of_rows_of_like_length_compute_what_one_pass_does(monkeypatch: pytest.MonkeyPatch) -> None:
    data = examples(40)
    plan = plan_training(data.examples_per_epoch(), train_parameters(batch_size=BATCH_SIZE), None, 1)
    assert len(set(TrainingBatches(data, plan, 0)[1].lengths)) > 3
    by_length = gradients(1, BATCH_SIZE, "rows")
    monkeypatch.setattr(windows, "PASS_TOKENS", 10**9)
    assert set(TrainingBatches(data, plan, 0)[1].lengths) == {TrainingBatches(data, plan, 0)[1].input_ids.shape[1]}
    torch.testing.assert_close(by_length, gradients(1, BATCH_SIZE, "rows"))


@pytest.mark.parametrize("packing", ["rows", "stream"])
def test_dropout_does_not_depend_on_devices_and_micro_batches(packing: str) -> None:
    whole = gradients(1, BATCH_SIZE, packing)
    for devices, size in DIVISIONS:
        torch.testing.assert_close(gradients(devices, size, packing), whole)
    for other in (gradients(1, BATCH_SIZE, packing, seed=2), gradients(1, BATCH_SIZE, packing, step=0)):
        assert not all(torch.allclose(*pair) for pair in zip(other, whole, strict=True))


def test_dropout_seeds_are_of_the_seed_the_step_and_the_place() -> None:
    seeds = [dropout_seeds(seed, step, 50) for seed, step in itertools.product(range(3), range(20))]
    assert len(torch.cat(seeds).unique()) == 3 * 20 * 50
    assert torch.equal(dropout_seeds(1, 7, 20), dropout_seeds(1, 7, 50)[:20])
