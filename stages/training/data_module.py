"""Which examples each optimiser step sees, and how they reach the device.

Shapes: B examples in a micro-batch, T tokens.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from stages.core.examples import Examples
from stages.core.windows import IGNORE_INDEX, Windows
from stages.errors import UserError
from stages.training.optimization import TrainParams


class Batch(NamedTuple):
    """One micro-batch of one device."""

    input_ids: torch.Tensor
    """int64 [B, T]"""
    targets: torch.Tensor
    """int64 [B, T], IGNORE_INDEX where nothing is learnt."""
    scored_in_step: int
    """Targets that carry loss in the whole optimiser step, over all micro-batches and devices."""


class TrainingBatches(Dataset[Batch]):
    """Every micro-batch of a whole training, each a pure function of the seed and its number.

    The passes over the training examples, each in its own random order, follow each other without a seam, and every
    optimiser step takes the next ``batch_size`` examples. So all steps have the same size, and a resumed run or one with
    another number of devices sees the same examples at the same step.
    """

    def __init__(self, examples: Examples, plan: "TrainingPlan", rank: int) -> None:
        self._examples = examples
        self._plan = plan
        self._rank = rank
        # The micro-batches of one step, and the steps of one pass, are asked for one after another.
        self._step = lru_cache(maxsize=1)(self._read_step)
        self._pass = lru_cache(maxsize=2)(self._draw_pass)

    def __reduce__(self) -> tuple[Any, ...]:
        return TrainingBatches, (self._examples, self._plan, self._rank)  # a loader's process has caches of its own

    def __len__(self) -> int:
        return self._plan.steps * self._plan.micro_batches

    def __getitem__(self, index: int) -> Batch:
        step, part = divmod(index, self._plan.micro_batches)
        input_ids, targets, scored = self._step(step)
        size = self._plan.micro_batch_size
        first = (self._rank * self._plan.micro_batches + part) * size
        return Batch(input_ids[first : first + size], targets[first : first + size], scored)

    def _read_step(self, step: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Read the whole step, as every device needs the number of targets in all of it."""
        examples_per_epoch = self._plan.examples
        first, end = step * self._plan.batch_size, (step + 1) * self._plan.batch_size
        pieces = [
            self._pass(which).select(
                slice(max(first - which * examples_per_epoch, 0), end - which * examples_per_epoch)
            )
            for which in range(first // examples_per_epoch, (end - 1) // examples_per_epoch + 1)
        ]
        windows = Windows(
            np.concatenate([piece.starts for piece in pieces]),
            np.concatenate([piece.ends for piece in pieces]),
            np.concatenate([piece.scored_from for piece in pieces]),
        )
        input_ids, targets = map(torch.from_numpy, self._examples.gather(windows))
        return input_ids, targets, int((targets != IGNORE_INDEX).sum())

    def _draw_pass(self, which: int) -> Windows:
        random = np.random.default_rng([self._plan.seed, which])
        windows = self._examples.full_windows(int(random.integers(self._examples.largest_offset() + 1)))
        return windows.select(random.permutation(self._plan.examples))


class FromStep(Sampler[int]):
    """The numbers of a training's micro-batches from one step on; its length is that of the whole training."""

    def __init__(self, plan: "TrainingPlan", step: int) -> None:
        self._batches = range(plan.steps * plan.micro_batches)
        self._first = step * plan.micro_batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[int]:
        return iter(self._batches[self._first :])


class ScoringBatches(Dataset[Batch]):
    """The windows of a split in the order of the text, cut into batches and dealt out to the devices in turn."""

    def __init__(self, examples: Examples, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self._examples = examples
        self._windows = examples.windows()
        self._batch_size = batch_size
        self._batches = range(math.ceil(len(self._windows) / batch_size))[rank::world_size]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        first = self._batches[index] * self._batch_size
        windows = self._windows.select(slice(first, first + self._batch_size))
        input_ids, targets = map(torch.from_numpy, self._examples.gather(windows))
        return Batch(input_ids, targets, int((targets != IGNORE_INDEX).sum()))


@dataclass(frozen=True)
class TrainingPlan:
    """How the examples become optimiser steps."""

    seed: int
    examples: int
    """Examples in one pass."""
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
        """Return the steps that one pass over the examples takes, to the nearest whole step."""
        return max(1, round(self.examples / self.batch_size))


def plan_training(
    examples: int, parameters: TrainParams, micro_batch_size: int | None, world_size: int
) -> TrainingPlan:
    """Cut the global batch into what each device computes at once.

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


class TokenDataModule(lightning.LightningDataModule):
    """Gives the Trainer each device's batches."""

    def __init__(
        self, training: Examples, validation: Examples | None, plan: TrainingPlan, loader_workers: int
    ) -> None:
        super().__init__()
        self._training = training
        self._validation = validation
        self._plan = plan
        self._loader_workers = loader_workers
        self._first_step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs to load what comes next."""
        assert self.trainer is not None  # noqa: S101 - tells the type checker
        return {"step": self.trainer.global_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state was taken."""
        self._first_step = state_dict["step"]

    def train_dataloader(self) -> DataLoader[Batch]:
        """Load every micro-batch of the training that is left, in order."""
        batches = TrainingBatches(self._training, self._plan, self._rank)
        return self._loader(batches, FromStep(self._plan, self._first_step))

    def val_dataloader(self) -> DataLoader[Batch] | list[None]:
        """Load this device's share of the validation split; nothing where it has no rows."""
        if self._validation is None:
            return []
        size, devices = self._plan.micro_batch_size, self._world_size
        return self._loader(ScoringBatches(self._validation, size, self._rank, devices))

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def _loader(self, batches: Dataset[Batch], order: Sampler[int] | None = None) -> DataLoader[Batch]:
        # The dataset's items are whole batches, so the loader must not collate or shuffle them.
        return DataLoader(
            batches,
            batch_size=None,
            sampler=order,
            num_workers=self._loader_workers,
            persistent_workers=self._loader_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
