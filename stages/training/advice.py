"""Where params.yaml does not fit its data, said in a line before the first step.

What the data alone tell, such as rows longer than the context, build_dataset says (stages/report/data_notes.py).
"""

import sys
import time

import numpy as np
import torch

from stages.core.examples import Examples
from stages.core.transformer import Transformer
from stages.training.optimization import TrainParams
from stages.training.runtime import RuntimeParams

TOY_WIDTH = 8
"""A d_model up to this is one to follow by hand."""
MANY_ROWS = 1000
LONG_SECONDS = 3600.0
LARGEST_RATE_FROM_START = 3e-4

_SECONDS_A_STEP = 0.001  # however small the model: Lightning's own
_SHARE_OF_PEAK = 0.3  # of the speed of one large matrix product, that trainings reach
_FLOPS_WORTH_MEASURING = 1e13  # no machine takes an hour for less
_WINDOWS_LOOKED_AT = 1000  # for their mean length
_SIDE = 1024  # of that product


def print_advice(network: Transformer, training: Examples, parameters: TrainParams, runtime: RuntimeParams) -> None:
    """Print in one line what of params.yaml does not fit; nothing where all does."""
    steps = parameters.total_steps(training.examples_per_epoch())
    flops = step_flops(network, training, parameters.batch_size)
    speed = measured_flops(runtime) if steps * flops > _FLOPS_WORTH_MEASURING else None
    found = misfits(
        d_model=network.config.d_model,
        rows=len(training.spans.completion_starts),
        seconds=steps * (_SECONDS_A_STEP + (flops / speed / _SHARE_OF_PEAK if speed else 0.0)),
        rate_from_start=None if parameters.start_from is None else parameters.learning_rate,
    )
    if found:
        fit = "`python -m presets.fit` writes a params.yaml that fits (docs/fit.md)"
        print(f"params.yaml: {'; '.join(found)}. {fit}", file=sys.stderr, flush=True)


def misfits(*, d_model: int, rows: int, seconds: float, rate_from_start: float | None = None) -> list[str]:
    """Return in words what does not fit.

    Args:
        d_model: the model's width.
        rows: those to train on.
        seconds: what the training will take.
        rate_from_start: the learning rate of a training that begins with weights that exist; None: with random ones.
    """
    found = []
    if d_model <= TOY_WIDTH and rows >= MANY_ROWS:
        found.append(f"model.d_model {d_model} is the toy's, for {rows:,} rows")
    if seconds > LONG_SECONDS:
        found.append(f"this training takes about {seconds / 3600:,.0f} h on this machine")
    if rate_from_start is not None and rate_from_start > LARGEST_RATE_FROM_START:
        found.append(
            f"train.learning_rate {rate_from_start:g} is that of a first training, by which the weights of train.start_from lose "
            "what they know: 0.00001 to 0.0001 is usual"
        )
    return found


def step_flops(network: Transformer, training: Examples, batch_size: int) -> float:
    """Return about how many floating-point operations a step takes: 6 for each weight and token (Kaplan et al. 2020)."""
    index = training.index()
    some = index.at(np.linspace(0, len(index) - 1, min(len(index), _WINDOWS_LOOKED_AT), dtype=np.int64))
    tokens = batch_size * float((some.ends - some.starts).mean())
    weights = sum(parameter.numel() for parameter in network.parameters()) - network.embedding.weight.numel()
    return 6 * tokens * (weights + network.output.weight.numel() * network.config.tie_embeddings)


def measured_flops(runtime: RuntimeParams) -> float:
    """Return the floating-point operations a second of one large matrix product on the training's device."""
    device = runtime.torch_device()
    matrix = torch.ones(_SIDE, _SIDE, device=device)
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # reading a number waits for a GPU
        best = max(best, 2 * _SIDE**3 / (time.perf_counter() - began))
    return best
