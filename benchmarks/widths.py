"""The learning rate that is best at each width: the preset `characters` with its recipe, d_model from 64 to 512.

Trains the same steps with some learning rates, a factor of two apart, at each width. Writes the table of docs/recipes.md.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measuring import write_table
from benchmarks.tasks import Task, loss_of, one_thread_each, read_task, train
from presets.text_to_csv import write_text_csv

PAGE = Path("docs/recipes.md")
HEAD_DIM = 32
RATES = (0.001, 0.002, 0.004, 0.008, 0.016)


def loss_at(task: Task, d_model: int, rate: float, steps: int) -> float:
    """Return the held-out loss after some steps."""
    shape = {"model.d_model": d_model, "model.n_heads": d_model // HEAD_DIM}
    trained = train(task, shape | {"train.max_steps": steps, "train.learning_rate": rate})
    return loss_of(task, trained, split="validation")


def main() -> None:
    """Train with each rate at each width, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="Tiny Shakespeare's input.txt")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--processes", type=int, default=1, help="trainings side by side, of one thread each")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        csv = Path(folder) / "text.csv"
        write_text_csv(given.text, csv)
        task = read_task("characters", csv=csv)
    rows = []
    with one_thread_each(given.processes) as pool:
        waiting = {
            d_model: [pool.submit(loss_at, task, d_model, rate, given.steps) for rate in RATES]
            for d_model in sorted(given.widths, reverse=True)  # the longest trainings begin first
        }
        for d_model in given.widths:
            losses = [each.result() for each in waiting[d_model]]
            best = min(losses)
            rows.append([str(d_model), *(f"**{loss:.3f}**" if loss == best else f"{loss:.3f}" for loss in losses)])
            print(" | ".join(rows[-1]), flush=True)
    caption = (
        f"Held-out loss in nats per character after {given.steps:,} steps, one seed; the best of each width stands out."
    )
    write_table("widths", caption, ["d_model", *(f"{rate:g}" for rate in RATES)], rows, PAGE)


if __name__ == "__main__":
    main()
