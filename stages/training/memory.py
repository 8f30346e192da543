"""Refuse a model or a batch that this machine's memory cannot hold, before memory is taken for it.

On a CPU nothing else would say so: the system promises memory that it does not have, and kills the process when it is used.
Only what every training needs is counted, so that nothing is refused that fits.
"""

from typing import NamedTuple

import torch

from stages.core.examples import Examples
from stages.core.transformer import Transformer, TransformerConfig
from stages.errors import UserError
from stages.training.optimization import TrainParams, states_per_weight
from stages.training.plan import TrainingPlan
from stages.training.runtime import RuntimeParams, available_memory

_FLOAT32 = 4  # bytes
_WEIGHT_BYTES = {"32-true": 4, "bf16-mixed": 4, "16-mixed": 4, "bf16-true": 2, "64-true": 8}
"""Of a weight, of its gradient and of each number that the optimiser remembers, by train.precision."""
_ACTIVATION_BYTES = {"32-true": 4, "bf16-mixed": 2, "16-mixed": 2, "bf16-true": 2, "64-true": 8}
"""Of a number that goes from layer to layer, by train.precision."""


class Part(NamedTuple):
    """A part of the network: numbers of its weights, and numbers that a training keeps for them."""

    weights: int
    kept: int
    """The weights, their gradients and what the optimiser remembers."""


def check_model(config: TransformerConfig, parameters: TrainParams, runtime: RuntimeParams) -> None:
    """Compare what a training keeps for its weights with the memory of the computer and of its GPU.

    Raises:
        UserError: it does not fit, or this machine lacks the accelerator.
    """
    parts = count_numbers(config, parameters)
    weights, kept = (sum(part[i] for part in parts.values()) for i in range(2))
    device = "tpu" if runtime.accelerator == "tpu" else runtime.torch_device()
    states = (
        f"with their gradients and the states of {parameters.optimizer}, by train.precision {parameters.precision},"
    )
    needs = [("alone, as they are made, in float32,", weights * _FLOAT32, "cpu")]
    if runtime.strategy != "fsdp":  # whose devices divide them: ``check_batch`` knows how many there are
        needs.append((states, kept * _WEIGHT_BYTES[parameters.precision], device))
    for what, needed, where in needs:
        available = device_memory(where)
        if available is not None and needed > available:
            largest = max(parts, key=lambda name: parts[name].weights)
            raise UserError(
                f"params.yaml: model.d_model {config.d_model}, n_layers {config.n_layers}, d_ff {config.feed_forward_width}, "
                f"context_length {config.context_length} and a vocabulary of {config.vocabulary_size:,} tokens are "
                f"{weights:,} weights; {what} they take {_gigabytes(needed)}, and {_has(where)} {_gigabytes(available)}: lower "
                f"model.d_model or {largest}"
            )


def check_batch(
    network: Transformer,
    training: Examples,
    plan: TrainingPlan,
    parameters: TrainParams,
    device: torch.device,
    parts: int = 1,
) -> None:
    """Compare what a training keeps for its weights and for one micro-batch with the device's memory.

    Of a micro-batch, each layer keeps at least its input until the gradients are computed: [B, T, D]. The weights, their gradients
    and the optimiser's states are divided over ``parts`` devices.

    Raises:
        UserError: it does not fit.
    """
    available = device_memory(device.type)
    if available is None:
        return
    windows = training.windows()
    tokens = plan.micro_batch_size * float((windows.ends - windows.starts).mean())
    config = network.config
    activations = int(tokens * config.d_model * config.n_layers) * _ACTIVATION_BYTES[parameters.precision]
    kept = sum(part.kept for part in count_numbers(config, parameters).values()) * _WEIGHT_BYTES[parameters.precision]
    kept //= parts
    if activations + kept > available:
        raise UserError(
            f"params.yaml: {plan.micro_batch_size:,} examples at once, of {tokens / plan.micro_batch_size:,.0f} tokens on "
            f"average, are too many: the inputs of {config.n_layers} layers of d_model {config.d_model} take "
            f"{_gigabytes(activations)} at least and the weights {_gigabytes(kept)}, and {_has(device.type)} "
            f"{_gigabytes(available)}: lower runtime.micro_batch_size, which changes no result"
        )


def count_numbers(config: TransformerConfig, parameters: TrainParams) -> dict[str, Part]:
    """Return the parts of a network, by what makes them smaller beside model.d_model; no memory is taken."""
    with torch.device("meta"):
        network = Transformer(config.model_copy(update={"n_layers": 1}))
    states = states_per_weight(network, parameters)
    block, vocabulary, positions = "model.n_layers or d_ff", "the vocabulary (vocabulary.size)", "model.context_length"
    parts = dict.fromkeys((block, vocabulary, positions), Part(0, 0))
    for name, weight in network.named_parameters():  # a tied weight comes once
        part = {"embedding": vocabulary, "output": vocabulary, "position_table": positions}.get(
            name.split(".")[0], block
        )
        count = weight.numel() * (config.n_layers if name.startswith("blocks.") else 1)
        parts[part] = Part(parts[part].weights + count, parts[part].kept + count * (2 + states[weight]))
    for table in network.buffers():  # fixed positions
        parts[positions] = Part(parts[positions].weights + table.numel(), parts[positions].kept + table.numel())
    return parts


def device_memory(device: str) -> int | None:
    """Return the bytes of a device's memory; None where it is not known. An MPS device uses the computer's."""
    if device in {"cpu", "mps"}:
        return available_memory()
    return torch.cuda.mem_get_info()[1] if device == "cuda" else None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"


def _has(device: str) -> str:
    return "this machine has" if device in {"cpu", "mps"} else "its GPU has"
