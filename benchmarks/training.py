"""Tokens a second in training: this project beside nanoGPT, transformers and litgpt, the peers taking turns.

On a CPU the small and the baby shape, where the peers train in float32 and are not compiled; where there is a GPU, GPT-2 with
124M parameters on it, all compiled and in bfloat16. Needs torch and lightning; transformers and litgpt are measured where they
are installed.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.measuring import Options, options, peak_flops, take_turns, write_table
from benchmarks.peers import BABY, GPT2, SMALL, Shape, of_litgpt, of_nanogpt, of_transformers, ours, random_tokens
from stages.core.loss import summed_loss
from stages.parameters import read_section
from stages.training.optimization import TrainParameters, build_optimizer

Step = Callable[[], object]
LossOf = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
PARAMETERS = Path(__file__).parents[1] / "presets/gpt2.yaml"
BETAS = (0.9, 0.99)


def our_step(shape: Shape, device: str, *, bfloat16: bool, compiled: bool = False) -> Step:
    """Return a step of a bare loop over this project's model, loss, optimiser and data path."""
    network = ours(shape).to(device)
    optimizer = build_optimizer(network, read_section("train", TrainParameters, PARAMETERS))
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


def their_step(
    shape: Shape,
    device: str,
    model: Any,
    loss_of: LossOf,
    *,
    bfloat16: bool,
    compiled: bool,
) -> Step:
    """Return a step as nanoGPT's train.py does it: rows cut one by one, the loss read at every step."""
    model.to(device).train()
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


def peers_of(
    shape: Shape, device: str, given: Options, *, bfloat16: bool, compiled: bool
) -> dict[str, Callable[[], Step]]:
    """Return how each of the other projects that are here begins its training."""

    def loss_from_logits(model: Any, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids)
        logits = getattr(logits, "logits", logits)  # transformers wraps them
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def loss_of_nanogpt(model: Any, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = model(input_ids, targets)[1]
        return loss

    def begin(build: Callable[[Shape], Any], loss_of: LossOf = loss_from_logits) -> Step:
        return their_step(shape, device, build(shape), loss_of, bfloat16=bfloat16, compiled=compiled)

    peers: dict[str, Callable[[], Step]] = {}
    if given.nanogpt:
        peers["nanoGPT"] = lambda: begin(of_nanogpt, loss_of_nanogpt)
    if importlib.util.find_spec("transformers"):
        peers["transformers GPT-2"] = lambda: begin(of_transformers)
    if importlib.util.find_spec("litgpt"):
        peers["litgpt"] = lambda: begin(of_litgpt)
    return peers


def measure(name: str, shape: Shape, given: Options, calls: int, device: str = "cpu") -> None:
    """Measure one shape: on a CPU in float32 and bfloat16, on a GPU in bfloat16 and compiled."""
    on_gpu = device == "cuda"
    beginnings: dict[str, Callable[[], Step]] = {}
    if not on_gpu:
        beginnings["this project, 32-true"] = lambda: our_step(shape, device, bfloat16=False)
        beginnings["this project, 32-true, compiled"] = lambda: our_step(shape, device, bfloat16=False, compiled=True)
    beginnings["this project, bf16-mixed"] = lambda: our_step(shape, device, bfloat16=True, compiled=on_gpu)
    peers = peers_of(shape, device, given, bfloat16=on_gpu, compiled=on_gpu)
    steps, memory = {}, {}
    for who, begin in (beginnings | peers).items():
        steps[who], memory[who] = begin_alone(begin, device)
    timings = take_turns(steps, given.rounds, threads=given.threads, calls=calls, device=device)
    peaks = {dtype: peak_flops(dtype, given.threads, device) for dtype in (torch.float32, torch.bfloat16)}
    compared = next(iter(peers or beginnings))
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
                *([f"{memory[who] / 1e9:.1f}"] if on_gpu else []),
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


def begin_alone(begin: Callable[[], Step], device: str) -> tuple[Step, int]:
    """Begin a training and do two steps; return the step, and the bytes that the training takes at most on a GPU."""
    if device != "cuda":
        return begin(), 0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = begin()
    step()
    step()
    return step, torch.cuda.max_memory_allocated() - before


def main() -> None:
    """Measure every shape that the machine can carry."""
    given = options(__doc__)
    torch.manual_seed(0)
    measure("small", SMALL, replace(given, rounds=3 * given.rounds), calls=5)
    measure("baby", BABY, given, calls=1)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        measure("124M", GPT2, given, calls=10, device="cuda")


if __name__ == "__main__":
    main()
