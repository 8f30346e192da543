"""Memory and time of the loss at a large vocabulary, beside the usual cross-entropy over all logits at once."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measuring import options, write_table
from stages.core.loss import summed_loss

VOCABULARY_SIZE = 50_257
D_MODEL = 256
BATCH_SIZE = 8
CONTEXT_LENGTH = 512

Loss = Callable[[Tensor, nn.Linear, Tensor], Tensor]


def at_once(hidden: Tensor, output: nn.Linear, targets: Tensor) -> Tensor:
    """Return the same loss from all logits, as nanoGPT and transformers compute it."""
    return functional.cross_entropy(output(hidden).flatten(0, 1), targets.flatten(), reduction="sum")


def measure(loss_of: Loss, threads: int, rounds: int) -> tuple[float, float, float]:
    """Return the bytes that the loss and its gradients add at most, the median seconds, and the loss in nats per token."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    output = nn.Linear(D_MODEL, VOCABULARY_SIZE, bias=False)
    hidden = torch.randn(BATCH_SIZE, CONTEXT_LENGTH, D_MODEL, requires_grad=True)
    targets = torch.randint(VOCABULARY_SIZE, (BATCH_SIZE, CONTEXT_LENGTH))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        loss = loss_of(hidden, output, targets)
        loss.backward()
        seconds.append(time.perf_counter() - start)
        output.zero_grad()
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return added * 1024, median(seconds), float(loss.detach()) / targets.numel()


def main() -> None:
    """Measure both, each in a process of its own."""
    given = options(__doc__)
    rows = []
    for who, loss_of in (("this project", summed_loss), ("all logits at once", at_once)):
        with multiprocessing.get_context("spawn").Pool(1) as process:
            added, seconds, nats = process.apply(measure, (loss_of, given.threads, given.rounds))
        rows.append([who, f"{added / 1e6:,.0f}", f"{seconds:.2f}", f"{nats:.5f}"])
    caption = (
        f"Loss and gradients of {BATCH_SIZE} x {CONTEXT_LENGTH} tokens, vocabulary {VOCABULARY_SIZE:,}, d_model {D_MODEL}, "
        f"float32; {given.threads} thread(s), {given.rounds} rounds"
    )
    write_table("loss", caption, ["", "memory added, MB", "s", "nats per token"], rows)


if __name__ == "__main__":
    main()
