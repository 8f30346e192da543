"""What each part of the presets' recipe is worth: one change a rung, in equal seconds, on three tasks, with several seeds.

From nanoGPT's recipe to ours; then what did not pay, each tried on top of ours. One thread computes and seconds are the
processor's: how many steps a rung does in its time is measured before each training. Writes the table of docs/recipes.md.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.measuring import write_table
from benchmarks.tasks import Task, Trained, exact_share, loss_of, one_thread_each, read_task, train_for
from presets.addition import write_addition
from presets.text_to_csv import write_text_csv

PAGE = Path("docs/recipes.md")

Changes = dict[str, Any]

NANOGPT: Changes = {
    "model.positions": "learned", "model.norm": "layer", "model.feed_forward": "gelu", "model.zero_init_projections": False,
    "model.qk_norm": False, "train.optimizer": "adamw", "train.learning_rate": 0.001, "train.weight_decay": 0.1,
    "train.beta2": 0.99, "train.schedule": "cosine", "train.min_learning_rate": 0.0001, "train.warmup_steps": 100,
}  # fmt: skip
KEPT: dict[str, Changes] = {
    "nanoGPT's recipe: AdamW 0.001, cosine to a tenth": {},
    "rotary positions": {"model.positions": "rotary"},
    "AdamW 0.004": {"train.learning_rate": 0.004},
    "warm-up of 5 steps, linear to zero": {
        "train.schedule": "linear", "train.min_learning_rate": 0.0, "train.warmup_steps": 5,
    },
    "Muon for the blocks' matrices": {"train.optimizer": "muon"},
    "RMSNorm": {"model.norm": "rms"},
    "squared ReLU": {"model.feed_forward": "relu2"},
    "projections that start at zero": {"model.zero_init_projections": True},
}  # fmt: skip
"""Each on top of those before it."""
OTHERS: dict[str, Changes] = {
    "QK-norm": {"model.qk_norm": True},
    "SwiGLU with as many weights": {"model.feed_forward": "swiglu", "model.d_ff": 336},
    "cool-down in the last 40%": {"train.schedule": "cooldown", "train.cooldown_fraction": 0.4},
    "untied output layer": {"model.tie_embeddings": False},
    "weight decay 0.3": {"train.weight_decay": 0.3},
    "twice the learning rate": {"train.learning_rate": 0.008},
    "half the learning rate": {"train.learning_rate": 0.002},
}
"""Each on top of all that is kept."""


class Trial(NamedTuple):
    """A task with the figure that it is judged by."""

    task: Task
    measure: Callable[[Trained], float]
    unit: str


def rungs() -> dict[str, Changes]:
    """Return each rung with all its changes to a preset."""
    changes, found = dict(NANOGPT), {}
    for name, change in KEPT.items():
        changes |= change
        found[name] = dict(changes)
    return found | {f"{name} (not kept)": changes | change for name, change in OTHERS.items()}


def read_trials(folder: Path, text: Path, classes: Path) -> dict[str, Trial]:
    """Return the tasks: a text by characters, sums of two numbers, questions with their topic."""
    write_text_csv(text, folder / "text.csv")
    write_addition(folder / "addition.csv")
    characters = read_task("characters", csv=folder / "text.csv")
    sums = read_task("addition", csv=folder / "addition.csv")
    questions = read_task("text", csv=classes, prompt_column="text", completion_column="category")
    return {
        "characters": Trial(characters, partial(loss_of, characters, split="validation"), "nats"),
        "sums": Trial(sums, partial(exact_share, sums, split="test"), "right"),
        "banking77": Trial(questions, partial(exact_share, questions, split="test"), "right"),
    }


def try_rung(trial: Trial, changes: Changes, seconds: float, seed: int) -> tuple[float, int]:
    """Train once; return the figure and the steps."""
    trained = train_for(trial.task, changes | {"train.seed": seed}, seconds)
    return trial.measure(trained), trained.steps


def describe(tries: list[tuple[float, int]], unit: str) -> str:
    """Return a cell of the table: the mean, the spread over the seeds and the median of the steps."""
    figures, steps = [figure for figure, _ in tries], statistics.median_low(steps for _, steps in tries)
    shown = f"{statistics.mean(figures):.3f}" if unit == "nats" else f"{statistics.mean(figures):.1%}"
    if len(figures) > 1:
        spread = statistics.stdev(figures)
        shown += f" ± {spread:.3f}" if unit == "nats" else f" ± {100 * spread:.1f}"
    return f"{shown} ({steps:,})"


def main() -> None:
    """Climb the ladder and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="Tiny Shakespeare's input.txt")
    parser.add_argument("classes", type=Path, help="the folder of banking77: train.csv and test.csv")
    parser.add_argument("--seconds", type=float, default=60, help="of the processor, for each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", default=["characters", "sums", "banking77"])
    parser.add_argument("--processes", type=int, default=1, help="trainings side by side, of one thread each")
    given = parser.parse_args()
    with TemporaryDirectory() as folder, one_thread_each(given.processes) as pool:
        trials = read_trials(Path(folder), given.text, given.classes)
        trials = {name: trials[name] for name in given.tasks}
        waiting = {
            name: [
                [pool.submit(try_rung, trial, changes, given.seconds, seed) for seed in range(given.seeds)]
                for trial in trials.values()
            ]
            for name, changes in rungs().items()
        }
        rows = []
        for name, tries in waiting.items():
            cells = [
                describe([each.result() for each in seeds], trial.unit)
                for seeds, trial in zip(tries, trials.values(), strict=True)
            ]
            rows.append([name, *cells])
            print(" | ".join(rows[-1]), flush=True)
    caption = f"{given.seconds:g} s of one thread for each training, {given.seeds} seed(s); mean ± standard deviation (steps in that time)"
    heads = [f"{name}, {'nats' if trial.unit == 'nats' else 'exactly right'}" for name, trial in trials.items()]
    write_table("ladder", caption, ["", *heads], rows, PAGE)


if __name__ == "__main__":
    main()
