"""How the examples become optimiser steps, micro-batches and epochs."""

from dataclasses import dataclass

from stages.errors import UserError
from stages.training.optimization import TrainParams


@dataclass(frozen=True)
class TrainingPlan:
    """The sizes that a whole training has."""

    seed: int
    examples: int
    """Examples in one epoch."""
    batch_size: int
    """Examples in one step, over all devices."""
    micro_batch_size: int
    """Examples that one device computes at once."""
    micro_batches: int
    """Micro-batches of one device in one step, whose gradients are accumulated."""
    steps: int
    """Optimiser steps."""

    @property
    def steps_per_epoch(self) -> int:
        """Return the steps that one epoch takes, to the nearest whole step."""
        return max(1, round(self.examples / self.batch_size))

    def rows(self, rank: int, micro_batch: int) -> slice:
        """Return which examples of a step one device computes in one of its micro-batches, both numbered from 0."""
        first = (rank * self.micro_batches + micro_batch) * self.micro_batch_size
        return slice(first, first + self.micro_batch_size)

    def epochs(self, steps: int) -> float:
        """Return the epochs that a number of steps makes."""
        return steps * self.batch_size / self.examples


def plan_training(
    examples: int, parameters: TrainParams, micro_batch_size: int | None, world_size: int
) -> TrainingPlan:
    """Return how the global batch is cut into what each device computes at once.

    Raises:
        UserError: there are fewer examples than one batch takes, or the batch cannot be shared evenly.
    """
    batch_size = parameters.batch_size
    if batch_size > examples:
        message = (
            f"params.yaml: train.batch_size: found {batch_size}, but the training split has {examples} example(s); "
            f"allowed: 1 to {examples}. Lower it (-S train.batch_size={examples}) or add rows"
        )
        raise UserError(message)
    if batch_size % world_size:
        message = (
            f"params.yaml: train.batch_size: found {batch_size}, which {world_size} devices cannot share evenly; take a "
            f"multiple of {world_size}, or another runtime.devices"
        )
        raise UserError(message)
    share = batch_size // world_size
    micro_batch_size = min(micro_batch_size or share, share)
    if share % micro_batch_size:
        message = (
            f"params.yaml: runtime.micro_batch_size: found {micro_batch_size}, which does not divide a device's share of "
            f"the batch, {share}"
        )
        raise UserError(message)
    return TrainingPlan(
        seed=parameters.seed,
        examples=examples,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        micro_batches=share // micro_batch_size,
        steps=parameters.total_steps(examples),
    )
