"""What this machine does in a second, and how much memory a training takes: measured, on real steps.

Trainings are rehearsed in a process of their own, so that its memory is theirs.
"""

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from stages.core.evaluation import score_tokens
from stages.core.examples import Examples
from stages.core.generation import generate
from stages.core.loss import summed_loss
from stages.core.transformer import Transformer, TransformerConfig
from stages.core.windows import passes
from stages.errors import UserError
from stages.training.data_module import TrainingBatches
from stages.training.optimization import TrainParams, build_optimizer
from stages.training.plan import plan_training
from stages.training.runtime import RuntimeParams, keep_freed_memory

START_BYTES = 700_000_000
"""Of a training process before its first step: the libraries."""
ACTIVATION_FACTOR = 1.15
"""What passes through memory for a moment beside what is kept for the backward pass."""
_FEWEST_STEPS = 4
_MOST_STEPS = 400  # each is a point of the curve, by which it is timed


@dataclass(frozen=True)
class TrainingSample:
    """What is rehearsed: a training, and the evaluation of its model, on a sample of the data."""

    config: TransformerConfig
    training: Examples
    validation: Examples | None
    scored: Examples
    parameters: TrainParams
    runtime: RuntimeParams
    score_batch_size: int
    """Examples that the evaluation scores at once."""
    max_new_tokens: int
    """The most tokens of a completion."""


@dataclass(frozen=True)
class Rehearsal:
    """What some real steps of a training took."""

    import_seconds: float
    start_seconds: float
    """From the imports to the first step."""
    step_seconds: float
    validation_seconds: float
    """For one validation of the sample's validation rows."""
    score_seconds: float
    """For scoring the sample's scored rows once."""
    generation_seconds: float
    """For completing the sample's scored rows once."""
    start_bytes: int
    """Memory before the first step."""
    peak_bytes: int


def free_bytes(runtime: RuntimeParams) -> int:
    """Return the memory that a training can take: of the GPU where it runs on one, else of the computer."""
    if runtime.torch_device() == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    return int(psutil.virtual_memory().available)


def state_bytes(config: TransformerConfig) -> int:
    """Return the bytes of the weights, their gradients and the two averages of Adam, in float32."""
    return 4 * 4 * count_parameters(config)


def count_parameters(config: TransformerConfig) -> int:
    """Return how many numbers a network learns, without making it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Transformer(config).parameters())


def activation_bytes(config: TransformerConfig, batch_size: int, tokens: int) -> int:
    """Return the bytes that a training step keeps for its backward pass, without computing or taking any."""
    storages: dict[int, tuple[int, Any]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = (storage.nbytes(), tensor)  # noqa: SLF001 - torch has no other name for a storage
        return tensor

    with FakeTensorMode():
        network = Transformer(config)
        own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}  # noqa: SLF001
        ids = torch.zeros(batch_size, tokens, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            summed_loss(network.hidden_states(ids), network.output, ids)
    return sum(size for storage, (size, _) in storages.items() if storage not in own)


def needed_bytes(config: TransformerConfig, batch_size: int, tokens: int) -> int:
    """Return the memory that a training process takes at its peak, for batches of at most [batch_size, tokens]."""
    return START_BYTES + state_bytes(config) + round(ACTIVATION_FACTOR * activation_bytes(config, batch_size, tokens))


def peak_bytes(config: TransformerConfig, batch_size: int, tokens: int, measured: Rehearsal) -> int:
    """Return the memory at the peak: what was measured, or more where longer batches than the rehearsed ones will come."""
    longest = needed_bytes(config, batch_size, tokens) - START_BYTES + measured.start_bytes
    return max(measured.peak_bytes, longest)


def time_step(config: TransformerConfig, training: Examples, parameters: TrainParams, seconds: float) -> float:
    """Return the time of a training step: the median of as many as fit into some seconds."""
    keep_freed_memory()
    torch.manual_seed(parameters.seed)
    network = Transformer(config)
    optimizer = build_optimizer(network, parameters)
    batches = TrainingBatches(training, plan_training(training.examples_per_epoch(), parameters, None, 1), 0)
    times: list[float] = []
    while sum(times) < seconds and len(times) < len(batches):
        began = time.perf_counter()
        batch = batches[len(times)]
        loss = torch.stack(
            [
                summed_loss(
                    network.hidden_states(batch.input_ids[rows, :length]), network.output, batch.targets[rows, :length]
                )
                for rows, length in passes(batch.lengths)
            ]
        ).sum()
        (loss / batch.scored_in_step).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:] or times)


def rehearse(sample: TrainingSample, seconds: float) -> Rehearsal:
    """Do some steps of this training, and score and complete some rows, in a process of its own.

    Raises:
        UserError: it failed, as the training itself would.
    """
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    process = processes.Process(target=_rehearse, args=(theirs, sample, seconds), daemon=True)
    process.start()
    theirs.close()
    try:
        result: Rehearsal | str = ours.recv()
    except EOFError:
        raise UserError("the rehearsal of the training was killed: memory may have run out") from None
    finally:
        process.join()
    if isinstance(result, str):
        raise UserError(result)
    return result


def _rehearse(connection: Connection, sample: TrainingSample, seconds: float) -> None:
    try:
        connection.send(_measure(sample, seconds))
    except UserError as error:
        connection.send(str(error))


def _measure(sample: TrainingSample, seconds: float) -> Rehearsal:
    began = time.perf_counter()
    import stages.train  # noqa: F401, PLC0415 - all that a training imports, for its time and memory
    from stages.training.fit import fit  # noqa: PLC0415

    imported = time.perf_counter()
    sample.runtime.limit_threads()
    torch.manual_seed(sample.parameters.seed)
    network = Transformer(sample.config)
    start_bytes = _peak_bytes()
    times: list[float] = []

    def log(metrics: dict[str, float], step: int) -> None:  # noqa: ARG001
        if "train_loss" in metrics:
            times.append(time.perf_counter())

    first = sample.parameters.model_copy(update={"epochs": None, "max_steps": _FEWEST_STEPS, "patience": None})
    fit(network, sample.training, None, first, sample.runtime, log, quiet=True)
    started = times[0]
    estimate = statistics.median(np.diff(times))
    steps = max(_FEWEST_STEPS, min(_MOST_STEPS, int(seconds / estimate)))
    times.clear()
    fit(network, sample.training, None, first.model_copy(update={"max_steps": steps}), sample.runtime, log, quiet=True)
    peak_bytes = _peak_bytes()
    step_seconds = float(np.diff(times).mean())
    return Rehearsal(
        import_seconds=imported - began,
        start_seconds=started - imported,
        step_seconds=step_seconds,
        validation_seconds=_seconds_to_score(network, sample.validation, sample.parameters.batch_size, seconds)
        if sample.validation
        else 0.0,
        score_seconds=_seconds_to_score(network, sample.scored, sample.score_batch_size, seconds),
        generation_seconds=_seconds_to_complete(
            network, sample.scored, sample.score_batch_size, sample.max_new_tokens, seconds
        ),
        start_bytes=start_bytes,
        peak_bytes=peak_bytes,
    )


@torch.inference_mode()
def _seconds_to_score(network: Transformer, examples: Examples, batch_size: int, seconds: float) -> float:
    """Return the seconds to score all windows, from as many batches as a few seconds allow."""
    windows = examples.windows()
    starts = range(0, len(windows), batch_size)
    network.eval()
    return _extrapolate(_score_batches(network, examples, starts, batch_size), len(starts), seconds)


def _score_batches(network: Transformer, examples: Examples, starts: Sequence[int], batch_size: int) -> Iterator[None]:
    windows = examples.windows()
    device = network.output.weight.device
    for start in _spread(starts):
        input_ids, targets = (
            torch.from_numpy(array).to(device)
            for array in examples.gather(windows.select(slice(start, start + batch_size)))
        )
        score_tokens(network.hidden_states(input_ids), network.output, targets)
        yield


@torch.inference_mode()
def _seconds_to_complete(
    network: Transformer, examples: Examples, batch_size: int, max_new_tokens: int, seconds: float
) -> float:
    """Return the seconds to complete all prompts: each batch until the longest completion of the data in it ends."""
    rows = examples.rows_with_completion()
    if not len(rows):
        return 0.0
    pairs = sorted((examples.prompt_and_rest(int(row)) for row in rows), key=lambda pair: len(pair[0]))
    starts = range(0, len(pairs), batch_size)

    def complete() -> Iterator[None]:
        for start in _spread(starts):
            batch = pairs[start : start + batch_size]
            longest = min(max_new_tokens, max(len(rest) for _, rest in batch))
            generate(network, [prompt for prompt, _ in batch], -1, longest)  # -1: no token ends a completion
            yield

    return _extrapolate(complete(), len(starts), seconds)


def _spread(starts: Sequence[int]) -> list[int]:
    """Return numbers in an order whose beginning is spread over all of them."""
    return sorted(starts, key=lambda start: (start * 0.6180339887) % 1.0)


def _extrapolate(batches: Iterator[None], count: int, seconds: float) -> float:
    began, done = time.perf_counter(), 0
    for _ in batches:
        done += 1
        if time.perf_counter() - began > seconds / 3:
            break
    return (time.perf_counter() - began) / max(1, done) * count


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
