"""The curves and the best weights of a training, and its end where the loss is infinite or not a number."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch

from stages.errors import UserError
from stages.training.data_module import Batch
from stages.training.lightning_module import LanguageModel
from stages.training.plan import TrainingPlan

# Enough points for any plot, and few enough that the curve of a long training can be kept in git.
CURVE_POINTS = 500

Log = Callable[[dict[str, float], int], None]


@dataclass
class Curves:
    """The curves of a training: (optimiser step, value)."""

    train_loss: list[tuple[int, float]] = field(default_factory=list)
    """Mean loss over the steps since the point before, in nats per target."""
    learning_rate: list[tuple[int, float]] = field(default_factory=list)
    """The rate with which the step was taken."""
    validation_loss: list[tuple[int, float]] = field(default_factory=list)
    """Mean loss over the whole validation split, in nats per target."""


class TrainingHistory(lightning.Callback):
    """Collects the curves, and passes each point to ``log`` as well."""

    def __init__(self, plan: TrainingPlan, log: Log) -> None:
        self.curves = Curves()
        self._plan = plan
        self._log = log
        self._every = math.ceil(plan.steps / CURVE_POINTS)
        self._scored_tokens = 0
        self._tokens = 0
        self._learning_rate = 0.0
        self._since = self._validating_since = time.perf_counter()

    @property
    def last_validated(self) -> int | None:
        """Return the step of the last validation."""
        return self.curves.validation_loss[-1][0] if self.curves.validation_loss else None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs to continue the curves."""
        return {"curves": vars(self.curves), "scored_tokens": self._scored_tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the state was saved."""
        for name, points in state_dict["curves"].items():
            getattr(self.curves, name)[:] = points
        self._scored_tokens = state_dict["scored_tokens"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock of the first point's speed."""
        self._since = time.perf_counter()

    def on_before_optimizer_step(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Note the rate of this step: when the step is done, the schedule has moved on to the next one."""
        self._learning_rate = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Add a point to the curves every few steps.

        Raises:
            UserError: the loss is infinite or not a number.
        """
        self._tokens += int(batch.lengths.sum()) * trainer.world_size
        if (batch_idx + 1) % self._plan.micro_batches:
            return
        self._scored_tokens += batch.scored_in_step
        if trainer.global_step % self._every == 0 or trainer.global_step == self._plan.steps:
            self._add_point(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Add the steps since the last point, where the training ends early.

        Raises:
            UserError: the loss is infinite or not a number.
        """
        if not self.curves.train_loss or self.curves.train_loss[-1][0] < trainer.global_step:
            self._add_point(trainer, pl_module)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock of what the speed of training leaves out."""
        self._validating_since = time.perf_counter()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Add a point to the validation curve."""
        loss = float(trainer.callback_metrics["validation_loss"])
        self.curves.validation_loss.append((trainer.global_step, loss))
        self._log({"validation_loss": loss}, trainer.global_step)
        self._since += time.perf_counter() - self._validating_since

    def _add_point(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, LanguageModel)  # noqa: S101 - tells the type checker
        step = trainer.global_step
        step_losses = pl_module.pop_step_losses()
        loss = float(step_losses.sum()) / max(1, self._scored_tokens)
        if not math.isfinite(loss):
            first_bad = int(torch.isfinite(step_losses).logical_not().nonzero()[0])
            before = self.curves.train_loss[-1][0] if self.curves.train_loss else 0
            message = (
                f"the training loss became {float(step_losses[first_bad])} at step {before + 1 + first_bad} of {self._plan.steps}: "
                "in params.yaml lower train.learning_rate, or set train.gradient_clip to 1.0"
            )
            raise UserError(message)
        self.curves.train_loss.append((step, loss))
        self.curves.learning_rate.append((step, self._learning_rate))
        now = time.perf_counter()
        self._log(
            {
                "train_loss": loss,
                "learning_rate": self._learning_rate,
                "tokens_per_second": self._tokens / (now - self._since),
            },
            step,
        )
        self._scored_tokens, self._tokens, self._since = 0, 0, now


class BestWeights(lightning.Callback):
    """Keeps the weights with the lowest validation loss, in the computer's memory; each device its rows, if they are divided."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.loss = math.inf
        self.weights: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs to compare its next weights."""
        return {"step": self.step, "loss": self.loss, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the state was saved."""
        self.step, self.loss, self.weights = state_dict["step"], state_dict["loss"], state_dict["weights"]

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Copy the weights if they are the best so far."""
        loss = float(trainer.callback_metrics["validation_loss"])
        if loss < self.loss:
            assert isinstance(pl_module, LanguageModel)  # noqa: S101 - tells the type checker
            self.step, self.loss, self.weights = trainer.global_step, loss, pl_module.weights()
