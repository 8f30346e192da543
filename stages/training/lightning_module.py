"""The network as Lightning trains it. Losses stay on the device until they are asked for: no step waits for a number."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning
import numpy as np
import torch
from torch.nn import functional

from stages.core.kernels import random_words, seed_dropout
from stages.core.loss import summed_loss
from stages.core.transformer import Transformer
from stages.core.windows import IGNORE_INDEX, Int64s, passes
from stages.training.data_module import Batch
from stages.training.optimization import TrainParams, build_optimizer, learning_rate_factor
from stages.training.plan import TrainingPlan


class LanguageModel(lightning.LightningModule):
    """Next-token prediction with any Transformer."""

    def __init__(self, network: Transformer, parameters: TrainParams, plan: TrainingPlan) -> None:
        super().__init__()
        self.network = network
        self._optimization = parameters
        self._plan = plan
        self._loss = self._make_loss()
        # Summed losses since the last call of pop_step_losses, in nats: of each micro-batch of this device, and of each step
        # before the last checkpoint, over all devices.
        self._losses: list[torch.Tensor] = []
        self._step_losses_before = torch.zeros(0, dtype=torch.double)
        self._validation_losses: list[torch.Tensor] = []
        self._validation_scored = 0

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return this micro-batch's share of the step's mean loss, in nats per target."""
        loss_sum = self._summed_loss(batch, self._row_seeds(batch_idx) if self.network.config.dropout > 0 else None)
        self._losses.append(loss_sum.detach())
        # Lightning divides by the micro-batches and averages over the devices; the mean is over all targets of the step.
        shares = self._plan.micro_batches * self.trainer.world_size
        return loss_sum * (shares / max(1, batch.scored_in_step))

    def pop_step_losses(self) -> torch.Tensor:
        """Return the summed loss of each step since the last call, over all devices, in nats: double [steps], on the CPU."""
        losses = torch.stack(self._losses) if self._losses else torch.zeros(0)
        step_losses = self._sum_over_devices(losses).reshape(-1, self._plan.micro_batches).sum(1)
        step_losses = torch.cat([self._step_losses_before, step_losses])
        self._losses, self._step_losses_before = [], torch.zeros(0, dtype=torch.double)
        return step_losses

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the losses since the last call of ``pop_step_losses``, as one sum a step, whatever the devices and micro-batches."""
        checkpoint["step_losses"] = self._step_losses_before = self.pop_step_losses()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue with the losses of the steps before, whatever number of devices computed them."""
        self._step_losses_before = checkpoint["step_losses"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the loss of one batch of the validation split."""
        self._validation_losses.append(self._summed_loss(batch))
        self._validation_scored += batch.scored_in_step

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss over every target of the validation split, in nats."""
        losses = self._validation_losses
        loss_sum = torch.stack(losses).cpu().double().sum() if losses else torch.zeros(())
        scored = self._sum_over_devices(torch.tensor(float(self._validation_scored)))
        self.log("validation_loss", float(self._sum_over_devices(loss_sum) / max(1.0, float(scored))), prog_bar=True)
        self._validation_losses, self._validation_scored = [], 0

    def configure_optimizers(self) -> Any:
        """Build the optimiser and its schedule, which moves at every step."""
        optimizer = build_optimizer(self.network, self._optimization)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, self._optimization, self._plan.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the whole gradient; Lightning's own clipping refuses fused optimisers in mixed precision."""
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return a copy of the network's weights, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def _summed_loss(self, batch: Batch, row_seeds: torch.Tensor | None = None) -> torch.Tensor:
        losses = []
        for rows, length in self._passes(batch):
            if row_seeds is not None:
                seed_dropout(self.network, row_seeds[rows])
            losses.append(self._loss(*self._of_one_shape(batch.input_ids[rows, :length], batch.targets[rows, :length])))
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _passes(self, batch: Batch) -> Iterable[tuple[Int64s | slice, int]]:
        """Return the rows of each pass through the network, and to what they are padded.

        Rows of like length have a pass of their own, but on a GPU, where several passes take longer than padding, and in a
        compiled network.
        """
        if self.device.type == "cpu" and not self._optimization.compile:
            return passes(batch.lengths)
        return [(slice(None), batch.input_ids.shape[1])]

    def _of_one_shape(self, input_ids: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the inputs and targets of a pass; in a compiled network padded, as every other shape would be compiled anew."""
        if not self._optimization.compile:
            return input_ids, targets
        # What is added is not scored, and comes after all that is.
        rows, tokens = input_ids.shape
        missing = (0, self.network.config.context_length - tokens, 0, self._plan.micro_batch_size - rows)
        return functional.pad(input_ids, missing), functional.pad(targets, missing, value=IGNORE_INDEX)

    def _make_loss(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return what computes the summed loss of input_ids and targets."""
        return torch.compile(self._eager_loss, dynamic=False) if self._optimization.compile else self._eager_loss

    def _eager_loss(self, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return summed_loss(self.network.hidden_states(input_ids), self.network.output, targets)

    def _sum_over_devices(self, values: torch.Tensor) -> torch.Tensor:
        values = values.cpu().double()
        if self.trainer.world_size == 1:
            return values  # not all devices know doubles
        total = self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")
        assert isinstance(total, torch.Tensor)  # noqa: S101 - tells the type checker
        return total.cpu()

    def _row_seeds(self, batch_idx: int) -> torch.Tensor:
        """Return what dropout depends on: the step and each example's place in it, whatever devices and micro-batches divide it."""
        step, micro_batch = divmod(batch_idx, self._plan.micro_batches)
        seeds = dropout_seeds(self._optimization.seed, step, self._plan.batch_size)
        return seeds[self._plan.rows(self.trainer.global_rank, micro_batch)].to(self.device)


def dropout_seeds(seed: int, step: int, examples: int) -> torch.Tensor:
    """Return the seed of dropout for each example of one optimiser step, int64 [examples]."""
    words = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64).view(np.int64)
    return random_words(torch.from_numpy(words), torch.arange(1, examples + 1))[0]
