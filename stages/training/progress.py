"""What a person sees of a training: a progress bar in a terminal, a line now and then elsewhere."""

import sys
from typing import Any

import lightning
from lightning.pytorch.callbacks import RichProgressBar

from stages.training.data_module import Batch, TrainingPlan
from stages.training.history import Curves

LINES = 10


def progress_callback(plan: TrainingPlan, curves: Curves) -> lightning.Callback:
    """Choose by where standard output goes."""
    return TrainingProgressBar(plan, curves) if sys.stdout.isatty() else ProgressLines(plan, curves)


class TrainingProgressBar(RichProgressBar):
    """Lightning's bar, counting optimiser steps' batches, with the losses beside it."""

    def __init__(self, plan: TrainingPlan, curves: Curves) -> None:
        super().__init__(leave=True)
        self._plan = plan
        self._curves = curves

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Training, {self._plan.steps * self._plan.batch_size / self._plan.examples:g} passes"

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        """Return the newest point of each curve."""
        return _newest(self._curves)


class ProgressLines(lightning.Callback):
    """Plain text for a log file: few lines, each complete."""

    def __init__(self, plan: TrainingPlan, curves: Curves) -> None:
        self._plan = plan
        self._curves = curves
        self._every = max(1, plan.steps // LINES)
        self._shown = 0

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Print a line every tenth of the way."""
        step = trainer.global_step
        if trainer.is_global_zero and step > self._shown and step % self._every == 0:
            self._shown = step
            figures = ", ".join(f"{name} {value}" for name, value in _newest(self._curves).items())
            print(f"step {step}/{self._plan.steps}: {figures}", flush=True)


def _newest(curves: Curves) -> dict[str, str]:
    named = {"train_loss": curves.train_loss, "validation_loss": curves.validation_loss}
    return {name: f"{points[-1][1]:.4f}" for name, points in named.items() if points}
