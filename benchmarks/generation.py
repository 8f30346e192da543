"""Tokens a second in greedy generation at batch 1 and 32."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.measuring import options, seconds_of, take_turns, write_table
from benchmarks.peers import SMALL, of_nanogpt, of_transformers, ours
from stages.core.generation import generate
from stages.core.transformer import Transformer

NEW_TOKENS = 200
SHAPE = SMALL._replace(context_length=256)
NEVER = -1


def main() -> None:
    """Measure both batch sizes."""
    given = options(__doc__)
    torch.manual_seed(0)
    network, theirs = ours(SHAPE).eval(), of_transformers(SHAPE).eval()
    rows = []
    for batch in (1, 32):
        prompts = torch.randint(SHAPE.vocabulary_size, (batch, 8))
        peers: dict[str, Callable[[], object]] = {
            "this project": partial(with_this_project, network, prompts.tolist()),
            "transformers, with its cache": partial(with_transformers, theirs, prompts),
        }
        if given.nanogpt and batch == 1:
            peers["nanoGPT"] = partial(of_nanogpt(SHAPE).eval().generate, prompts, NEW_TOKENS)
        turns = {who: partial(seconds_of, peer, given.threads) for who, peer in peers.items()}
        timings = take_turns(turns, given.rounds)
        first = timings["this project"].median
        rows += [
            [str(batch), who, timing.rate(batch * NEW_TOKENS), f"{timing.median / first:.2f}"]
            for who, timing in timings.items()
        ]
    caption = f"{NEW_TOKENS} new tokens, 4 layers, d_model 128; {given.threads} thread(s), {given.rounds} rounds"
    columns = ["batch", "", "tokens/s (middle half)", "this project is faster by"]
    write_table("generation", caption, columns, rows)


def with_this_project(network: Transformer, prompts: list[list[int]]) -> None:
    """Generate as many tokens, greedily."""
    list(generate(network, prompts, NEVER, NEW_TOKENS))


@torch.inference_mode()
def with_transformers(model: Any, prompts: torch.Tensor) -> None:
    """Generate as many tokens, greedily."""
    mask = torch.ones_like(prompts)
    model.generate(
        prompts,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )


if __name__ == "__main__":
    main()
