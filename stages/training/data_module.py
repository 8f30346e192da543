"""Which examples each optimiser step sees, and how they reach the device.

Shapes: B examples in a micro-batch, T tokens.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from stages.core.examples import Examples
from stages.core.permutation import shuffled
from stages.core.windows import IGNORE_INDEX, Int64s, Windows, pass_lengths
from stages.training.plan import TrainingPlan

MOST_LISTED = 1 << 22
"""Examples of which an epoch's order is a list, 24 bytes for each, of numpy's permutation; the order of more is computed."""


class Batch(NamedTuple):
    """One micro-batch of one device."""

    input_ids: torch.Tensor
    """int64 [B, T]"""
    targets: torch.Tensor
    """int64 [B, T], IGNORE_INDEX where nothing is learnt."""
    lengths: Int64s
    """[B] to how many tokens each row is padded in its pass; the same however the step is shared out."""
    scored_in_step: int
    """Targets that carry loss in the whole optimiser step, over all micro-batches and devices."""


def read_batch(examples: Examples, windows: Windows) -> Batch:
    """Read windows as one batch, of which all is computed and scored at once."""
    input_ids, targets = map(torch.from_numpy, examples.gather(windows))
    lengths = pass_lengths(windows.ends - windows.starts)
    return Batch(input_ids, targets, lengths, int((targets != IGNORE_INDEX).sum()))


class TrainingBatches(Dataset[Batch]):
    """Every micro-batch of a whole training, each a pure function of the seed and its number.

    The epochs, each in its own random order, follow each other without a seam, and every optimiser step takes the next
    ``batch_size`` examples. So all steps have the same size, and a resumed run or one with another number of devices sees
    the same examples at the same step.
    """

    def __init__(self, examples: Examples, plan: TrainingPlan, rank: int) -> None:
        self._examples = examples
        self._plan = plan
        self._rank = rank
        # The micro-batches of one step, and the steps of one epoch, are read one after another.
        self._step = lru_cache(maxsize=1)(self._read_step)
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self._index = lru_cache(maxsize=2)(examples.index)

    def __reduce__(self) -> tuple[Any, ...]:
        return TrainingBatches, (self._examples, self._plan, self._rank)  # a loader's process has caches of its own

    def __len__(self) -> int:
        return self._plan.steps * self._plan.micro_batches

    def __getitem__(self, index: int) -> Batch:
        step, part = divmod(index, self._plan.micro_batches)
        whole = self._step(step)
        rows = self._plan.rows(self._rank, part)
        return Batch(whole.input_ids[rows], whole.targets[rows], whole.lengths[rows], whole.scored_in_step)

    def _read_step(self, step: int) -> Batch:
        """Return the whole step: every device needs the number of targets in all of it."""
        examples_per_epoch = self._plan.examples
        first, end = step * self._plan.batch_size, (step + 1) * self._plan.batch_size
        pieces = [
            self._windows(
                epoch,
                max(first - epoch * examples_per_epoch, 0),
                min(end - epoch * examples_per_epoch, examples_per_epoch),
            )
            for epoch in range(first // examples_per_epoch, (end - 1) // examples_per_epoch + 1)
        ]
        windows = Windows(
            np.concatenate([piece.starts for piece in pieces]),
            np.concatenate([piece.ends for piece in pieces]),
            np.concatenate([piece.scored_from for piece in pieces]),
        )
        return read_batch(self._examples, windows)

    def _windows(self, epoch: int, first: int, end: int) -> Windows:
        """Return the windows at some places of an epoch's random order."""
        if self._plan.examples <= MOST_LISTED:
            return self._epoch(epoch).select(slice(first, end))
        offset = self._offset(np.random.default_rng([self._plan.seed, epoch]))
        numbers = shuffled(np.arange(first, end), self._plan.examples, (self._plan.seed, epoch))
        return self._index(offset).at(self._examples.full_range(offset).start + numbers)

    def _draw_epoch(self, epoch: int) -> Windows:
        """Return the windows of one epoch in its random order."""
        random = np.random.default_rng([self._plan.seed, epoch])
        windows = self._examples.full_windows(self._offset(random))
        return windows.select(random.permutation(self._plan.examples))

    def _offset(self, random: np.random.Generator) -> int:
        """Draw where an epoch's stream is cut."""
        return int(random.integers(self._examples.largest_offset() + 1))


class FromStep(Sampler[int]):
    """The numbers of a training's micro-batches from one step on; its length is that of the whole training."""

    def __init__(self, plan: TrainingPlan, step: int) -> None:
        self._batches = range(plan.steps * plan.micro_batches)
        self._first = step * plan.micro_batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[int]:
        return iter(self._batches[self._first :])


class ScoringBatches(Dataset[Batch]):
    """The windows of a split in the order of the text, cut into batches that the devices take in turn.

    All devices have the same number of batches, as each computes its part of every forward pass where weights are divided:
    the last batch of some may score nothing.
    """

    def __init__(self, examples: Examples, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self._examples = examples
        self._windows = examples.index()
        self._batch_size = batch_size
        self._batches = range(rank, world_size * math.ceil(len(self._windows) / (batch_size * world_size)), world_size)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        first = self._batches[index] * self._batch_size
        numbers = np.arange(first, min(first + self._batch_size, len(self._windows)))
        windows = self._windows.at(numbers if len(numbers) else np.zeros(1, dtype=np.int64))
        batch = read_batch(self._examples, windows)
        if not len(numbers):
            return batch._replace(targets=torch.full_like(batch.targets, IGNORE_INDEX), scored_in_step=0)
        return batch


class TokenDataModule(lightning.LightningDataModule):
    """The batches of each device, as the Trainer asks for them."""

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
        """Continue at the step at which the state was saved."""
        self._first_step = state_dict["step"]

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the micro-batches of this device that are left, in order."""
        batches = TrainingBatches(self._training, self._plan, self._rank)
        return self._loader(batches, FromStep(self._plan, self._first_step))

    def val_dataloader(self) -> DataLoader[Batch] | list[None]:
        """Return this device's share of the validation split; nothing where it has no rows."""
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
