"""The `train` section of params.yaml, and what it says in torch's terms: optimiser and learning-rate schedule."""

import math
from typing import Annotated, Any, Literal, Self

import pydantic
import torch
from pydantic import Field

from stages.core.params_model import ParamsModel
from stages.core.transformer import Transformer
from stages.training.muon import Heads, MuonWithAdamW

MUON_RATE = 8.0
"""The learning rate of Muon's matrices, in units of train.learning_rate, by which AdamW moves the other weights."""

NonNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class TrainParams(ParamsModel):
    """How the weights are learnt."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Seeds the initial weights, the order of examples and dropout."""
    optimizer: Literal["adam", "adamw", "muon"]
    """Adam (Kingma & Ba 2015) adds weight_decay to the gradient; AdamW (Loshchilov & Hutter 2019) decouples it; muon
    (Jordan et al. 2024) makes the steps of the matrices inside the blocks orthogonal, and is AdamW for all other weights."""
    learning_rate: Annotated[float, Field(gt=0)]
    """The peak learning rate of Adam and AdamW; with muon, the matrices inside the blocks have eight times as much."""
    beta1: Decay
    """Decay rate of Adam's running average of the gradient."""
    beta2: Decay
    """Decay rate of Adam's running average of the gradient's square."""
    weight_decay: NonNegative
    """Applies to matrices (weights, embeddings) alone, not to biases and norms."""
    schedule: Literal["constant", "cosine", "linear", "cooldown"]
    """How the learning rate goes from its peak to min_learning_rate."""
    cooldown_fraction: Annotated[float, Field(gt=0, le=1)]
    """Fraction of the steps, the last ones, in which the schedule cooldown falls."""
    warmup_steps: Annotated[int, Field(ge=0)]
    """Steps in which the learning rate first climbs, linearly, to its peak."""
    min_learning_rate: NonNegative
    """Where all schedules but constant end."""
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
    start_from: str | None = None
    """A folder in pretrained/models/ whose weights the training begins with; null: random ones."""

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
        total_steps: the step at which all schedules but constant reach min_learning_rate.

    Linear warm-up, then constant, linear or cosine decay (Loshchilov & Hutter 2017, equation 5, one period), or constant
    with a linear cool-down at the end (Hägele et al. 2024).
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
        case "cooldown":
            left = (total_steps - step) / (parameters.cooldown_fraction * total_steps)
            return floor + (1 - floor) * min(1.0, max(0.0, left))


def build_optimizer(network: Transformer, parameters: TrainParams) -> torch.optim.Optimizer:
    """Build the optimiser, fused where it can be, with weight decay on matrices alone."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    options: dict[str, Any] = {
        "lr": parameters.learning_rate,
        "betas": (parameters.beta1, parameters.beta2),
        # The fused form would unscale float16 gradients by itself, after they are clipped.
        "fused": parameters.precision != "16-mixed",
    }
    match parameters.optimizer:
        case "adam":
            return torch.optim.Adam(_adam_groups(trained, parameters), **options)
        case "adamw":
            return torch.optim.AdamW(_adam_groups(trained, parameters), **options)
        case "muon":
            muon = _muon_groups(network, parameters)
            by_muon = {matrix for group in muon for matrix in group["params"]}
            others = [parameter for parameter in trained if parameter not in by_muon]
            return MuonWithAdamW([*_adam_groups(others, parameters), *muon], **options)


def states_per_weight(network: Transformer, parameters: TrainParams) -> dict[torch.nn.Parameter, int]:
    """Return how many numbers the optimiser remembers for each number of a weight: Adam two averages, Muon one."""
    muon = _muon_groups(network, parameters) if parameters.optimizer == "muon" else []
    matrices = {matrix for group in muon for matrix in group["params"]}
    return {weight: 1 if weight in matrices else 2 for weight in network.parameters()}


def _adam_groups(weights: list[torch.nn.Parameter], parameters: TrainParams) -> list[dict[str, Any]]:
    return [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": parameters.weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]


def _muon_groups(network: Transformer, parameters: TrainParams) -> list[dict[str, Any]]:
    """Return the matrices inside the blocks, by where the heads of attention lie in them."""
    groups: dict[Heads, list[torch.nn.Parameter]] = {"rows": [], "columns": [], "none": []}
    for name, weight in network.blocks.named_parameters():
        if weight.ndim == 2 and weight.requires_grad:
            groups[_heads(name)].append(weight)
    rest = {
        "lr": MUON_RATE * parameters.learning_rate,
        "weight_decay": parameters.weight_decay,
        "head_dim": network.config.head_dim,
    }
    return [{"params": matrices, "heads": heads, **rest} for heads, matrices in groups.items() if matrices]


def _heads(name: str) -> Heads:
    if name.endswith("queries_keys_values.weight"):
        return "rows"
    return "columns" if name.endswith("projection.weight") else "none"
