"""Attention on a CPU, forward and backward: the fused operation beside the explicit one, in float32 and in bfloat16.

It is what ``FEW_TOKENS`` in stages/core/kernels.py rests on.
"""

from functools import partial

import torch
from torch import Tensor

from benchmarks.measuring import options, seconds_of, take_turns, write_table
from stages.core.kernels import Dropout, fused_attention
from stages.core.transformer import explicit_attention

TOKENS = (64, 256, 512, 1024)
TOKENS_AT_ONCE = 4096
HEADS = 6
HEAD_DIM = 64
NO_DROPOUT = Dropout(0.0)


def heads(tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """Return queries, keys, values and the context's gradient, [B, N, T, H]."""
    shape = (TOKENS_AT_ONCE // tokens, tokens, HEADS, HEAD_DIM)
    return [torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(4)]


def fused(queries: Tensor, keys: Tensor, values: Tensor, toward: Tensor) -> None:
    """Go there and back by the fused operation."""
    torch.autograd.grad(fused_attention(queries, keys, values), (queries, keys, values), toward)


def explicit(queries: Tensor, keys: Tensor, values: Tensor, toward: Tensor) -> None:
    """Go there and back step by step."""
    torch.autograd.grad(explicit_attention(queries, keys, values, NO_DROPOUT)[0], (queries, keys, values), toward)


def main() -> None:
    """Measure each length."""
    given = options(__doc__)
    rows = []
    for tokens in TOKENS:
        exact, half = heads(tokens, torch.float32), heads(tokens, torch.bfloat16)
        ways = {
            "fused, float32": partial(fused, *exact),
            "explicit, float32": partial(explicit, *exact),
            "fused, bfloat16": partial(fused, *half),
            "explicit, bfloat16": partial(explicit, *half),
        }
        turns = {name: partial(seconds_of, way, given.threads, calls=3) for name, way in ways.items()}
        timings = take_turns(turns, given.rounds)
        rows.append([f"{tokens:,}", *(f"{timing.median * 1e3:.1f}" for timing in timings.values())])
    caption = (
        f"ms for {TOKENS_AT_ONCE:,} tokens, {HEADS} heads of {HEAD_DIM}, forward and backward; "
        f"{given.threads} thread(s), {given.rounds} rounds"
    )
    write_table("attention", caption, ["context", *ways], rows)


if __name__ == "__main__":
    main()
