"""A step is the same function of its examples however they are divided."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

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
