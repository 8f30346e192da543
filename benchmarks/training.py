"""Tokens a second in training: this project in float32 and bfloat16, transformers and nanoGPT, on a CPU."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from benchmarks.measuring import Options, options, peak_flops, take_turns, write_table
from benchmarks.peers import BABY, SMALL, Shape, of_nanogpt, of_transformers, ours, random_tokens
from stages.core.loss import summed_loss

Step = Callable[[], object]


def our_step(shape: Shape, *, bfloat16: bool) -> Step:
    """Return a step of a bare loop over this project's model, loss, optimiser and data path."""
    network = ours(shape)
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    tokens, steps = random_tokens(shape), torch.arange(shape.context_length + 1)

    def step() -> None:
        windows = tokens[torch.randint(len(tokens) - len(steps), (shape.batch_size, 1)) + steps]
        input_ids, targets = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = summed_loss(network.hidden_states(input_ids), network.output, targets) / targets.numel()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def their_step(shape: Shape, model: nn.Module, optimizer: torch.optim.Optimizer, *, nanogpt: bool) -> Step:
    """Return a step as nanoGPT's train.py does it: rows cut one by one, the loss read at every step."""
    tokens, length = random_tokens(shape), shape.context_length

    def step() -> float:
        starts = torch.randint(len(tokens) - length, (shape.batch_size,))
        input_ids = torch.stack([tokens[start : start + length] for start in starts])
        targets = torch.stack([tokens[start + 1 : start + 1 + length] for start in starts])
        if nanogpt:
            _, loss = model(input_ids, targets)
        else:
            loss = nn.functional.cross_entropy(model(input_ids).logits.flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    return step


def measure(name: str, shape: Shape, given: Options, calls: int) -> None:
    """Measure one shape."""
    steps = {"this project, 32-true": our_step(shape, bfloat16=False)}
    steps["this project, bf16-mixed"] = our_step(shape, bfloat16=True)
    model = of_transformers(shape)
    steps["transformers GPT-2"] = their_step(
        shape, model, torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99)), nanogpt=False
    )
    peer = "transformers GPT-2"
    if given.nanogpt:
        network = of_nanogpt(shape)
        optimizer = network.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
        peer = "nanoGPT"
        steps[peer] = their_step(shape, network, optimizer, nanogpt=True)
    timings = take_turns(steps, given.rounds, threads=given.threads, calls=calls)
    peaks = {dtype: peak_flops(dtype, given.threads) for dtype in (torch.float32, torch.bfloat16)}
    rows = []
    for who, timing in timings.items():
        peak = peaks[torch.bfloat16 if "bf16" in who else torch.float32]
        rows.append(
            [
                who,
                f"{timing.median * 1e3:.1f}",
                timing.rate(shape.batch_size * shape.context_length),
                f"{timings[peer].median / timing.median:.2f}",
                f"{shape.flops() / timing.median / peak:.0%}",
            ]
        )
    caption = (
        f"{shape.batch_size} x {shape.context_length} tokens a step, {shape.layers} layers, d_model {shape.d_model}; "
        f"{given.threads} thread(s), {given.rounds} rounds. Fastest matrix product: "
        + ", ".join(f"{str(dtype)[6:]} {peak / 1e9:,.0f} GFLOP/s" for dtype, peak in peaks.items())
    )
    columns = ["", "ms a step", "tokens/s (middle half)", f"times {peer}", "share of the fastest product"]
    write_table(f"training {name}", caption, columns, rows)


def main() -> None:
    """Measure both shapes."""
    given = options(__doc__)
    torch.manual_seed(0)
    measure("small", SMALL, replace(given, rounds=3 * given.rounds), calls=5)
    measure("baby", BABY, given, calls=1)


if __name__ == "__main__":
    main()
