"""The forecast of `python -m presets.fit --forecast` beside what pipelines take.

For 20 configurations from 10 thousand to 30 million parameters that no rule was tuned on. Half an hour to an hour on an idle
machine; on a busy one it says little. Writes the table between its markers in docs/fit.md.
"""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from presets.addition import write_addition
from presets.fit import TEMPLATE
from presets.fitting.advisor import forecast_of
from presets.fitting.choice import Choice
from presets.fitting.params_file import write_parameters
from stages.artifacts.table_csv import write_table

PAGE = Path("docs/fit.md")
SECONDS = 40.0
"""About what each training takes: its steps are set by a first forecast."""
POLL_SECONDS = 0.05
MODERN: dict[str, Any] = {
    "model.feed_forward": "gelu", "model.norm": "layer", "model.positions": "rotary", "model.output_projection": True,
    "model.output_bias": False, "model.tie_embeddings": True, "train.optimizer": "adamw", "train.learning_rate": 0.001,
    "train.gradient_clip": 1.0, "train.epochs": None, "split.validation": 0.05, "split.test": 0.05,
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What a pipeline took."""

    train_seconds: float
    pipeline_seconds: float
    peak_bytes: int
    """Of the training process."""


def configurations() -> Iterator[dict[str, Any]]:
    """Yield the values in which each differs from the toy: data, tokenizer, shape, batch, dropout, feed-forward, precision."""
    shapes = [
        (1, 32, 2),
        (2, 48, 3),
        (3, 96, 3),
        (2, 160, 5),
        (5, 128, 4),
        (4, 224, 7),
        (6, 320, 5),
        (8, 448, 7),
        (8, 544, 8),
    ]
    draw = random.Random(13)
    for number in range(20):
        layers, width, heads = shapes[number % len(shapes)]
        sums = number % 5 == 4 and width < 200
        values: dict[str, Any] = MODERN | {
            "model.n_layers": layers, "model.d_model": width, "model.n_heads": heads,
            "model.dropout": draw.choice([0.0, 0.0, 0.1]), "model.feed_forward": draw.choice(["gelu", "gelu", "swiglu"]),
            "train.batch_size": draw.choice([8, 24, 48]),
        }  # fmt: skip
        if sums:
            values |= {"data.csv": "data/addition.csv", "vocabulary.tokenizer": "character", "model.context_length": 16}
            values |= {"dataset.loss_on": "completion", "train.batch_size": draw.choice([64, 256])}
        else:
            values |= {"data.csv": "data/text.csv", "data.prompt_column": "text", "data.completion_column": None}
            values |= {
                "vocabulary.tokenizer": draw.choice(["character", "bpe"]),
                "vocabulary.size": draw.choice([600, 3000]),
            }
            values |= {"vocabulary.unknown_token": True, "dataset.packing": draw.choice(["rows", "stream"])}
            values |= {"model.context_length": draw.choice([48, 96, 160]), "evaluate.max_new_tokens": 50}
        yield values


def write_text(path: Path) -> None:
    """Write a megabyte of made-up words, always the same."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(3000)]
    rows = ([" ".join(draw.choices(words, k=draw.randint(5, 60)))] for _ in range(5000))
    write_table(path, ["text"], rows)


def measure() -> Measured:
    """Run the pipeline of the working folder, watching its training."""
    began = time.perf_counter()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(
        ["dvc", "repro", "--force"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    training: psutil.Process | None = None
    first = last = 0.0
    peak = 0
    while process.poll() is None:
        if training is None:
            training = next((child for child in _children(process.pid) if "stages.train" in _command(child)), None)
            first = time.perf_counter()
        elif training.is_running() and training.status() != psutil.STATUS_ZOMBIE:
            peak = max(peak, _peak_rss(training.pid))
            last = time.perf_counter()
        time.sleep(POLL_SECONDS)
    if process.returncode:
        assert process.stderr is not None
        raise RuntimeError(process.stderr.read().decode())
    return Measured(last - first, time.perf_counter() - began, peak)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _command(process: psutil.Process) -> list[str]:
    try:
        command = process.cmdline()
    except psutil.Error:
        return []
    return command if Path(command[0] if command else "").name.startswith("python") else []


def _peak_rss(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def compare(values: dict[str, Any]) -> tuple[list[str], list[float]]:
    """Forecast a configuration and run it; return the table's row, and the errors of both times and of memory."""
    steps = 100
    for _ in range(2):
        choices = {name: Choice(value, "held out") for name, value in (values | {"train.max_steps": steps}).items()}
        content = write_parameters(
            TEMPLATE.read_text(encoding="utf-8"), choices, "A configuration of benchmarks/forecast.py."
        )
        Path("params.yaml").write_text(content, encoding="utf-8")
        asked = forecast_of(Path("params.yaml"))
        steps = max(20, round(asked.steps * SECONDS / asked.forecast.training_seconds))
    found, expected = measure(), asked.forecast
    pairs = [
        (expected.train_stage_seconds, found.train_seconds),
        (expected.pipeline_seconds, found.pipeline_seconds),
        (expected.peak_bytes / 1e6, found.peak_bytes / 1e6),
    ]
    row = [
        f"{values['model.n_layers']} x {values['model.d_model']}, {values['vocabulary.tokenizer']}",
        f"{asked.parameters:,}",
    ]
    row += [f"{guess:,.0f} / {real:,.0f}" for guess, real in pairs]
    return row, [guess / real - 1 for guess, real in pairs]


def main() -> None:
    """Measure all configurations, or the first ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=20, help="only so many, and leave docs/fit.md as it is")
    given = parser.parse_args()
    root = Path.cwd()
    rows, errors = [], []
    with TemporaryDirectory() as folder:
        for name in ("stages", "presets", "pretrained", "dvc.yaml", ".dvc/config", ".dvc/plots", ".dvcignore"):
            source, target = root / name, Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            elif source.exists():
                shutil.copy(source, target)
        os.chdir(folder)
        subprocess.run(["git", "init", "--quiet"], check=True)
        Path("data").mkdir()
        write_addition(Path("data/addition.csv"))
        write_text(Path("data/text.csv"))
        for values in list(configurations())[: given.first]:
            row, error = compare(values)
            rows.append([*row, " / ".join(f"{share:+.0%}" for share in error)])
            errors.append(error)
            print("  ".join(rows[-1]), flush=True)
        os.chdir(root)
    columns = ["layers x d_model", "parameters", "training, s", "pipeline, s", "peak memory, MB", "errors"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}", *(f"| {' | '.join(row)} |" for row in rows)]
    for name, of in zip(("training time", "pipeline time", "peak memory"), zip(*errors, strict=True), strict=True):
        absolute = sorted(map(abs, of))
        lines += ["", f"Error of the {name}: median {statistics.median(absolute):.0%}, worst {absolute[-1]:.0%}."]
    table = "\n".join(lines)
    print(table)
    if given.first >= len(list(configurations())):
        begin, end = "<!-- forecast -->", "<!-- end of forecast -->"
        before, rest = PAGE.read_text(encoding="utf-8").split(begin)
        caption = "Forecast / measured, for 20 configurations that no rule was tuned on:"
        PAGE.write_text(f"{before}{begin}\n\n{caption}\n\n{table}\n\n{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
