"""The `train` section of params.yaml, and what it says in torch's terms: optimiser and learning-rate schedule."""

import math
from typing import Annotated, Literal, Self

import pydantic
import torch
from pydantic import Field
from torch import nn

from stages.core.params_model import ParamsModel

NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class TrainParams(ParamsModel):
    """How the weights are learnt."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Seeds the initial weights, the order of examples and dropout."""
    optimizer: Literal["adam", "adamw"]
    """Adam (Kingma & Ba 2015) adds weight_decay to the gradient; AdamW (Loshchilov & Hutter 2019) decouples it."""
    learning_rate: Annotated[float, Field(gt=0)]
    """The peak learning rate."""
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    """Decay rates of the optimiser's running averages of the gradient and of its square."""
    weight_decay: NonNegative
    """Applies to matrices (weights, embeddings) alone, not to biases and norms."""
    schedule: Literal["constant", "cosine", "linear"]
    """How the learning rate goes from its peak to min_learning_rate."""
    warmup_steps: Annotated[int, Field(ge=0)]
    """Steps in which the learning rate first climbs, linearly, to its peak."""
    min_learning_rate: NonNegative
    """Where cosine and linear schedules end."""
    epochs: Annotated[float, Field(gt=0, le=10**6)] | None
    """Passes over the training examples; null where max_steps is given."""
    max_steps: Annotated[int, Field(ge=1, le=10**9)] | None
    """Optimiser steps; null where epochs is given."""
    batch_size: Count
    """Examples in one optimiser step, over all devices together."""
    gradient_clip: NonNegative
    """The largest norm of the whole gradient; 0 does not clip."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"]
    """Lightning's precision."""
    compile: bool
    """Compile the network with torch.compile: a minute at the start, faster steps after it."""
    validate_every: Count | None
    """Steps between two validations; null validates once in each pass over the training examples."""
    keep: Literal["best", "last"]
    """Which weights become the model: those with the lowest validation loss, or the last. Without validation rows, last."""
    patience: Count | None
    """Stop after this many validations without a lower loss; null never stops early."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if (self.epochs is None) == (self.max_steps is None):
            message = f"exactly one of epochs and max_steps must be null; found epochs: {self.epochs}, max_steps: {self.max_steps}"
            raise ValueError(message)
        if self.min_learning_rate > self.learning_rate:
            message = f"min_learning_rate must be at most learning_rate ({self.learning_rate}); found {self.min_learning_rate}"
            raise ValueError(message)
        return self

    def total_steps(self, examples: int) -> int:
        """Return the number of optimiser steps for a training split with this many examples."""
        if self.max_steps is not None:
            return self.max_steps
        assert self.epochs is not None  # noqa: S101 - the validator above allows one of the two
        return math.ceil(self.epochs * examples / self.batch_size)


def learning_rate_factor(step: int, parameters: TrainParams, total_steps: int) -> float:
    """Return the learning rate of one step as a fraction of its peak.

    Args:
        step: optimiser steps done so far, from 0.
        parameters: the schedule.
        total_steps: the step at which cosine and linear schedules reach min_learning_rate.

    Linear warm-up, then constant, linear or cosine decay (Loshchilov & Hutter 2017, equation 5, one period).
    """
    if step < parameters.warmup_steps:
        return (step + 1) / (parameters.warmup_steps + 1)
    floor = parameters.min_learning_rate / parameters.learning_rate
    progress = min(1.0, (step - parameters.warmup_steps) / max(1, total_steps - parameters.warmup_steps))
    match parameters.schedule:
        case "constant":
            return 1.0
        case "linear":
            return floor + (1 - floor) * (1 - progress)
        case "cosine":
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(network: nn.Module, parameters: TrainParams) -> torch.optim.Optimizer:
    """Build the optimiser, fused where it can be, with weight decay on matrices alone."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in trained if parameter.ndim >= 2],
            "weight_decay": parameters.weight_decay,
        },
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.Adam if parameters.optimizer == "adam" else torch.optim.AdamW
    beta1, beta2 = parameters.betas
    # The fused form would unscale float16 gradients by itself, after they are clipped.
    fused = parameters.precision != "16-mixed"
    return optimizer(groups, lr=parameters.learning_rate, betas=(beta1, beta2), fused=fused)
