"""Tokens a second in training: this project beside nanoGPT, transformers and litgpt, the peers taking turns.

On a CPU the small and the baby shape, where the peers train in float32 and are not compiled; where there is a GPU, GPT-2 with
124M parameters on it, all compiled and in bfloat16. Each trains in a process of its own. Needs torch and lightning;
transformers and litgpt are measured where they are installed.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.measuring import Options, Training, options, peak_flops, take_turns, write_table
from benchmarks.peers import (
    BABY,
    BABY_WITH_DROPOUT,
    GPT2,
    SMALL,
    Shape,
    of_litgpt,
    of_nanogpt,
    of_transformers,
    ours,
    random_tokens,
)
from stages.core.loss import summed_loss
from stages.parameters import read_section
from stages.training.optimization import TrainParams, build_optimizer
from stages.training.runtime import keep_freed_memory

Step = Callable[[], object]
Begin = Callable[[], Step]
LossOf = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
PARAMETERS = Path(__file__).parents[1] / "presets/gpt2.yaml"
BETAS = (0.9, 0.99)


def begin_ours(shape: Shape, device: str, *, bfloat16: bool, compiled: bool) -> Step:
    """Return a step of a bare loop over this project's model, loss, optimiser and data path."""
    keep_freed_memory()
    network = ours(shape).to(device)
    parameters = read_section("train", TrainParams, PARAMETERS).model_copy(
        update={"optimizer": "adamw"}
    )  # as the peers
    optimizer = build_optimizer(network, parameters)
    tokens, offsets = random_tokens(shape), torch.arange(shape.context_length + 1)

    def eager_loss(input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return summed_loss(network.hidden_states(input_ids), network.output, targets)

    loss_of = torch.compile(eager_loss) if compiled else eager_loss

    def step() -> None:
        windows = tokens[torch.randint(len(tokens) - len(offsets), (shape.batch_size, 1)) + offsets]
        input_ids, targets = send(windows[:, :-1], device), send(windows[:, 1:], device)
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            loss = loss_of(input_ids, targets) / targets.numel()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def begin_theirs(
    build: Callable[[Shape], Any], loss_of: LossOf, shape: Shape, device: str, *, bfloat16: bool, compiled: bool
) -> Step:
    """Return a step as nanoGPT's train.py does it: rows cut one by one, the loss read at every step."""
    model = build(shape).to(device).train()
    optimizer: torch.optim.Optimizer
    if hasattr(model, "configure_optimizers"):
        optimizer = model.configure_optimizers(0.1, 1e-3, BETAS, device)
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-3, betas=BETAS, weight_decay=0.1, fused=device == "cuda"
        )
    called = torch.compile(model) if compiled else model
    tokens, length = random_tokens(shape), shape.context_length

    def step() -> float:
        starts = torch.randint(len(tokens) - length, (shape.batch_size,))
        input_ids = send(torch.stack([tokens[start : start + length] for start in starts]), device)
        targets = send(torch.stack([tokens[start + 1 : start + 1 + length] for start in starts]), device)
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            loss = loss_of(called, input_ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    return step


def send(batch: torch.Tensor, device: str) -> torch.Tensor:
    """Bring a batch to the device; to a GPU while it computes."""
    return batch.pin_memory().to(device, non_blocking=True) if device == "cuda" else batch.contiguous()


def loss_from_logits(model: Any, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the loss of a model that returns logits."""
    logits = model(input_ids)
    logits = getattr(logits, "logits", logits)  # transformers wraps them
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def loss_of_nanogpt(model: Any, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the loss that nanoGPT's model computes itself."""
    loss: torch.Tensor = model(input_ids, targets)[1]
    return loss


def beginnings(shape: Shape, device: str, given: Options) -> tuple[dict[str, Begin], dict[str, Begin]]:
    """Return how this project's trainings begin, and how those of the other projects that are here do."""
    on_gpu = device == "cuda"
    begin = partial(begin_ours, shape, device)
    mine: dict[str, Begin] = {"this project, bf16-mixed, compiled": partial(begin, bfloat16=True, compiled=True)}
    if not on_gpu:
        mine["this project, bf16-mixed"] = partial(begin, bfloat16=True, compiled=False)
        mine["this project, 32-true"] = partial(begin, bfloat16=False, compiled=False)
    peers = {
        "nanoGPT": (given.nanogpt, of_nanogpt, loss_of_nanogpt),
        "transformers GPT-2": (importlib.util.find_spec("transformers"), of_transformers, loss_from_logits),
        "litgpt": (importlib.util.find_spec("litgpt") and not shape.dropout, of_litgpt, loss_from_logits),
    }
    theirs: dict[str, Begin] = {
        who: partial(begin_theirs, build, loss_of, shape, device, bfloat16=on_gpu, compiled=on_gpu)
        for who, (is_here, build, loss_of) in peers.items()
        if is_here
    }
    return mine, theirs


def measure(name: str, shape: Shape, given: Options, steps: int, device: str = "cpu") -> None:
    """Measure one shape: on a CPU in float32 and bfloat16, on a GPU in bfloat16 and compiled."""
    on_gpu = device == "cuda"
    mine, theirs = beginnings(shape, device, given)
    trainings = {who: Training(begin, given.threads, device) for who, begin in (mine | theirs).items()}
    turns = {who: partial(training.seconds, steps) for who, training in trainings.items()}
    timings = take_turns(turns, given.rounds)
    for training in trainings.values():
        training.end()
    peaks = {dtype: peak_flops(dtype, given.threads, device) for dtype in (torch.float32, torch.bfloat16)}
    compared = next(iter(theirs or mine))
    rows = []
    for who, timing in timings.items():
        peak = peaks[torch.bfloat16 if on_gpu or "bf16" in who else torch.float32]
        rows.append(
            [
                who,
                f"{timing.median * 1e3:.1f}",
                timing.rate(shape.batch_size * shape.context_length),
                f"{timings[compared].median / timing.median:.2f}",
                f"{shape.flops() / timing.median / peak:.0%}",
                *([f"{trainings[who].peak_bytes / 1e9:.1f}"] if on_gpu else []),
            ]
        )
    where = torch.cuda.get_device_name() if on_gpu else f"{given.threads} thread(s)"
    caption = (
        f"{shape.batch_size} x {shape.context_length} tokens a step, {shape.layers} layers, d_model {shape.d_model}; "
        f"{where}, {given.rounds} rounds. Fastest matrix product: "
        + ", ".join(f"{str(dtype)[6:]} {peak / 1e9:,.0f} GFLOP/s" for dtype, peak in peaks.items())
    )
    columns = ["", "ms a step", "tokens/s (middle half)", f"times {compared}", "share of the fastest product"]
    write_table(f"training {name}", caption, [*columns, *(["peak memory, GB"] if on_gpu else [])], rows)


def main() -> None:
    """Measure every shape that the machine can carry."""
    given = options(__doc__)
    measure("small", SMALL, replace(given, rounds=3 * given.rounds), steps=5)
    measure("baby", BABY, given, steps=1)
    measure("baby with dropout", BABY_WITH_DROPOUT, given, steps=1)
    if torch.cuda.is_available():
        measure("124M", GPT2, given, steps=10, device="cuda")


if __name__ == "__main__":
    main()
