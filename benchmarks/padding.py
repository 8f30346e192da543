"""A training step on rows of many lengths: one pass padded to the longest row, beside passes for rows of like length.

Takes a table for the preset `text`, such as banking77. One thread; seconds of the processor. Writes the table of docs/performance.md.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from benchmarks.measuring import write_table
from benchmarks.tasks import Task, read_task
from stages.core import windows
from stages.core.loss import summed_loss
from stages.core.transformer import ModelParams, Transformer, TransformerConfig
from stages.training.data_module import TrainingBatches
from stages.training.optimization import TrainParams, build_optimizer
from stages.training.plan import plan_training

SHAPES = ((2, 64), (4, 192))
"""n_layers and d_model."""
ONE_PASS = 10**9
PASS_TOKENS = (ONE_PASS, 1024, windows.PASS_TOKENS, 64)
BATCH = 128
STEPS = 5


def step_of(task: Task, n_layers: int, d_model: int, pass_tokens: int) -> tuple[float, float, float]:
    """Return the median seconds of a step, and the mean passes and tokens, padding included."""
    windows.PASS_TOKENS = pass_tokens
    shape = task.values["model"] | {"n_layers": n_layers, "d_model": d_model, "n_heads": d_model // 32}
    network = Transformer(TransformerConfig(vocabulary_size=task.vocabulary.size, **ModelParams(**shape).model_dump()))
    parameters = TrainParams(**task.values["train"] | {"batch_size": BATCH})
    optimizer = build_optimizer(network, parameters)
    training = task.examples("train")
    batches = TrainingBatches(training, plan_training(training.examples_per_epoch(), parameters, None, 1), rank=0)
    seconds, counts, tokens = [], [], []
    for number in range(STEPS):
        began = time.process_time()
        batch = batches[number]
        rows_of_passes = list(windows.passes(batch.lengths))
        losses = [
            summed_loss(
                network.hidden_states(batch.input_ids[rows, :length]), network.output, batch.targets[rows, :length]
            )
            for rows, length in rows_of_passes
        ]
        (torch.stack(losses).sum() / batch.scored_in_step).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - began)
        counts.append(len(rows_of_passes))
        tokens.append(int(batch.lengths.sum()))
    return statistics.median(seconds), statistics.mean(counts), statistics.mean(tokens)


def main() -> None:
    """Time the steps in turns, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a table with the columns text and category")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = read_task("text", csv=given.data.absolute(), prompt_column="text", completion_column="category")
    rows = []
    for shape in SHAPES:
        turns = [[step_of(task, *shape, pass_tokens) for pass_tokens in PASS_TOKENS] for _ in range(given.rounds)]
        for number, pass_tokens in enumerate(PASS_TOKENS):
            seconds = statistics.median(turn[number][0] for turn in turns)
            whole = statistics.median(turn[0][0] for turn in turns)
            _, passes, tokens = turns[0][number]
            name = "one pass" if pass_tokens == ONE_PASS else f"a pass where it saves {pass_tokens:,} tokens"
            rows.append([
                f"{shape[0]} layers, d_model {shape[1]}", name, f"{passes:.1f}", f"{tokens:,.0f}",
                f"{1000 * seconds:.0f}", f"{whole / seconds:.1f}",
            ])  # fmt: skip
            print(" | ".join(rows[-1]), flush=True)
    caption = f"{BATCH} rows a step; one thread, medians of {given.rounds} turns of {STEPS} steps"
    write_table("padding", caption, ["", "", "passes", "tokens, padding included", "ms a step", "times as fast"], rows)


if __name__ == "__main__":
    main()
