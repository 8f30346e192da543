"""Seconds of training until a loss: this project with the preset `characters` beside nanoGPT and transformers.

All read the same characters, with the last tenth held out, in the shape of nanoGPT's CPU run. The peers train by nanoGPT's own
recipe: 2,000 steps of AdamW. The loss to reach is nanoGPT's at their end. This project trains for fewer steps, with its
learning rate at zero after them, and by its preset as it stands for as many steps as they. Each scores the whole held-out tenth
now and then, off the clock.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.measuring import clock_for, write_table
from benchmarks.peers import SMALL, Shape, of_nanogpt, of_transformers
from benchmarks.training import LossOf, loss_from_logits, loss_of_nanogpt
from stages.core.examples import Examples
from stages.core.loss import summed_loss
from stages.core.transformer import ModelParams, Transformer, TransformerConfig
from stages.core.windows import DatasetParams, RowSpans
from stages.parameters import read_section
from stages.training.data_module import TrainingBatches
from stages.training.optimization import TrainParams, build_optimizer, learning_rate_factor
from stages.training.plan import plan_training
from stages.training.runtime import keep_freed_memory

PAGE = Path("docs/recipes.md")
PICTURE = Path("docs/images/time-to-loss.svg")
PRESET = Path(__file__).parents[1] / "presets/characters.yaml"
PEER_STEPS = 2000
SHORT = {"learning_rate": 0.004, "weight_decay": 0.1}
"""Instead of the preset's, which are for its 2,000 steps: some hundred steps take more (docs/recipes.md)."""
SCORED_AT_ONCE = 512
"""Windows."""

Curve = list[tuple[int, float, float]]
"""Step, seconds of training so far, loss on the held-out tenth in nats per character."""


class Texts(NamedTuple):
    """Token ids, one a character."""

    training: Tensor
    held_out: Tensor
    size: int
    """Different characters."""


class Peer(NamedTuple):
    """A training that has begun."""

    step: Callable[[], object]
    """Does one step."""
    loss_of: Callable[[Tensor, Tensor], Tensor]
    """The mean loss of input_ids and targets, [B, T]."""
    network: nn.Module


def read_texts(path: Path) -> Texts:
    """Read a text as nanoGPT's data/shakespeare_char/prepare.py does."""
    text = path.read_text(encoding="utf-8")
    number = {character: index for index, character in enumerate(sorted(set(text)))}
    token_ids = torch.tensor([number[character] for character in text])
    cut = int(0.9 * len(token_ids))
    return Texts(token_ids[:cut], token_ids[cut:], len(number))


def begin_ours(changes: dict[str, float], texts: Texts, shape: Shape, seed: int, steps: int) -> Peer:
    """Return this project's training by its preset, with some changes: network, data path, loss, optimiser and schedule."""
    keep_freed_memory()
    torch.manual_seed(seed)
    preset = read_section("train", TrainParams, PRESET).model_dump() | changes
    parameters = TrainParams(**preset | {"seed": seed, "max_steps": steps, "batch_size": shape.batch_size})
    sizes = {
        "context_length": shape.context_length,
        "d_model": shape.d_model,
        "n_layers": shape.layers,
        "n_heads": shape.heads,
    }
    config = read_section("model", ModelParams, PRESET).model_dump() | sizes
    network = Transformer(TransformerConfig(vocabulary_size=texts.size, **config))
    optimizer = build_optimizer(network, parameters)
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, parameters, steps))
    whole = len(texts.training)
    spans = RowSpans(np.array([0, whole]), np.array([whole]))
    packing = DatasetParams(packing="stream", loss_on="all", stride=None)
    examples = Examples(texts.training.numpy(), spans, packing, shape.context_length, eos_id=0)
    batches = iter(TrainingBatches(examples, plan_training(examples.examples_per_epoch(), parameters, None, 1), rank=0))

    def loss_of(input_ids: Tensor, targets: Tensor) -> Tensor:
        return summed_loss(network.hidden_states(input_ids), network.output, targets) / targets.numel()

    def step() -> None:
        batch = next(batches)
        loss_of(batch.input_ids, batch.targets).backward()
        nn.utils.clip_grad_norm_(network.parameters(), parameters.gradient_clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    return Peer(step, loss_of, network)


def begin_theirs(
    build: Callable[[Shape], Any], loss_of: LossOf, texts: Texts, shape: Shape, seed: int, steps: int
) -> Peer:
    """Return a training as nanoGPT's train.py does it on a CPU, with the rates of its config/train_shakespeare_char.py."""
    torch.manual_seed(seed)
    model = build(shape._replace(vocabulary_size=texts.size)).train()
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    others = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    recipe = read_section("train", TrainParams, PRESET).model_copy(
        update={"schedule": "cosine", "learning_rate": 1e-3, "min_learning_rate": 1e-4, "warmup_steps": 100}
    )
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe, steps))
    length, offsets = shape.context_length, torch.arange(shape.context_length + 1)

    def step() -> float:
        starts = torch.randint(len(texts.training) - length, (shape.batch_size,))
        windows = torch.stack([texts.training[start + offsets] for start in starts])
        loss = loss_of(model, windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    return Peer(step, partial(loss_of, model), model)


@torch.inference_mode()
def held_out_loss(peer: Peer, texts: Texts, context_length: int) -> float:
    """Return the mean loss over the held-out tenth, cut into windows of the whole context."""
    windows = texts.held_out[: (len(texts.held_out) - 1) // context_length * context_length + 1]
    pairs = zip(
        *(part.view(-1, context_length).split(SCORED_AT_ONCE) for part in (windows[:-1], windows[1:])), strict=True
    )
    peer.network.eval()
    losses = [(float(peer.loss_of(input_ids, targets.contiguous())), len(targets)) for input_ids, targets in pairs]
    peer.network.train()
    return sum(loss * count for loss, count in losses) / sum(count for _, count in losses)


def train(
    begin: Callable[..., Peer], texts: Texts, shape: Shape, steps: int, every: int, seed: int, threads: int
) -> Curve:
    """Train, and score every few steps with the clock stopped."""
    torch.set_num_threads(threads)
    clock = clock_for(threads, "cpu")
    peer = begin(texts, shape, seed, steps)
    seconds, curve = 0.0, []
    for step in range(1, steps + 1):
        began = clock()
        peer.step()
        seconds += clock() - began
        if step % every == 0 or step == steps:
            curve.append((step, seconds, held_out_loss(peer, texts, shape.context_length)))
    return curve


def draw(curves: dict[str, list[Curve]], target: float) -> None:
    """Draw each peer's first curve: loss against seconds."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, found in curves.items():
        axes.plot([seconds for _, seconds, _ in found[0]], [loss for *_, loss in found[0]], label=name)
    axes.axhline(target, color="#9ca3af", linewidth=0.8, linestyle="--")
    axes.set(xlabel="seconds of training", ylabel="held-out loss, nats per character")
    axes.legend(frameon=False)
    with mpl.rc_context({"svg.hashsalt": "time to loss"}):
        figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    """Train all, in turns, and write the table and the picture of docs/recipes.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="Tiny Shakespeare's input.txt")
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument(
        "--threads", type=int, default=1, help="1 measures processor time, which other programs disturb least"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each peer, each with a seed of its own")
    parser.add_argument("--steps", type=int, default=270, help="steps of this project")
    parser.add_argument("--peer-steps", type=int, default=PEER_STEPS, help="steps of the others")
    given = parser.parse_args()
    sys.path.append(str(given.nanogpt))
    texts = read_texts(given.text)
    peers: dict[str, tuple[Callable[..., Peer], int]] = {
        "nanoGPT": (partial(begin_theirs, of_nanogpt, loss_of_nanogpt), given.peer_steps),
        "transformers GPT-2": (partial(begin_theirs, of_transformers, loss_from_logits), given.peer_steps),
        "this project": (partial(begin_ours, SHORT), given.steps),
        "this project's preset": (partial(begin_ours, {}), given.peer_steps),
    }
    curves: dict[str, list[Curve]] = {name: [] for name in peers}
    for seed in range(given.rounds):
        for name, (begin, steps) in peers.items():
            arguments = (begin, texts, SMALL, steps, max(1, steps // 20), seed, given.threads)
            with get_context("spawn").Pool(1) as process:
                curves[name].append(process.apply(train, arguments))
            print(name, seed, json.dumps(curves[name][-1][-1]), flush=True)
    target = statistics.median(found[-1][2] for found in curves["nanoGPT"])
    took = {name: statistics.median(found[-1][1] for found in of_peer) for name, of_peer in curves.items()}
    rows = [
        [
            name,
            f"{steps:,}",
            " ".join(f"{found[-1][2]:.3f}" for found in curves[name]),
            f"{took[name]:.1f} ({', '.join(f'{found[-1][1]:.1f}' for found in curves[name])})",
            f"{took['nanoGPT'] / took[name]:.1f}",
        ]
        for name, (_, steps) in peers.items()
    ]
    clock = "seconds of the processor, one thread" if given.threads == 1 else f"seconds, {given.threads} threads"
    caption = f"{given.rounds} turn(s), each with a seed of its own; {clock}. nanoGPT's median loss, the loss to reach: {target:.3f}"
    columns = ["", "steps", "held-out loss of each turn", "seconds, median (each)", "times as fast as nanoGPT"]
    write_table("time to loss", caption, columns, rows, PAGE)
    draw(curves, target)


if __name__ == "__main__":
    main()
