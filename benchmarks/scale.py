"""What each stage costs as a function of rows and parameters: measured, fitted, and carried on to a trillion tokens.

    python -m benchmarks.scale                              # 10 thousand to 10 million rows, 1 to 100 million parameters: 12 minutes
    python -m benchmarks.scale --rows 10000 100000 --millions 1 10

Rows are characters in two columns; models train on the CPU in float32 with AdamW. Writes the tables of docs/scale.md and its
picture. Seconds are the processor's, which other programs disturb least; the time on an idle machine is at most that.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.measuring import write_table
from benchmarks.preparation import PARAMETERS, ROOT, run

PAGE, PICTURE = Path("docs/scale.md"), Path("docs/images/scale.svg")
STEPS = 6
CONTEXT_LENGTH, BATCH_SIZE = 128, 4
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
TRILLION = 10**12
STAGES = ("build_vocabulary", "build_dataset")


class Cost(NamedTuple):
    """What one measurement found."""

    seconds: float
    """Of the processor."""
    memory: float
    """Bytes, at most at once."""
    disk: float
    """Bytes written."""


class Line(NamedTuple):
    """cost = start + slope x amount."""

    start: float
    slope: float

    def at(self, amount: float) -> float:
        """Return the cost of an amount."""
        return self.start + self.slope * amount


def main() -> None:
    """Measure, fit, draw, and write the page's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 10, 100], help="parameters of the models")
    parser.add_argument("--train", type=float, help=argparse.SUPPRESS)  # one model, in a process of its own
    given = parser.parse_args()
    if given.train:
        print(json.dumps(train(given.train)))
        return
    tokens, preparation = measure_preparation(sorted(given.rows))
    training = {millions * 1e6: measure_training(millions) for millions in sorted(given.millions)}
    curves: dict[str, dict[float, Cost]] = {**preparation, "train, each token": training}
    write_measured(curves)
    write_fits(curves)
    write_carried_on(curves, tokens_per_row=tokens)
    draw(curves)


# ---------------------------------------------------------------------------------------------------------- measuring


def write_rows(path: Path, rows: int) -> None:
    """Write rows of 10 to 40 characters, all different."""
    source = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        file.write("prompt,completion\n")
        for first in range(0, rows, 10_000):
            chosen = source.integers(len(WORDS), size=(10_000, 3))
            file.writelines(
                f"{number} {WORDS[a]} {WORDS[b]},{WORDS[c]}\n"
                for number, (a, b, c) in enumerate(chosen[: rows - first].tolist(), start=first)
            )


def measure_preparation(sizes: list[int]) -> tuple[float, dict[str, dict[float, Cost]]]:
    """Run the two preparation stages at each size; return the tokens of a row, and the costs of each stage by rows."""
    costs: dict[str, dict[float, Cost]] = {stage: {} for stage in STAGES}
    tokens = 0.0
    for rows in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "data").mkdir()
            (folder / "params.yaml").write_text(PARAMETERS.replace("tokenizer: word", "tokenizer: character"))
            write_rows(folder / "data/prompts.csv", rows)
            for stage, output in zip(STAGES, ("data/vocabulary.json", "data/dataset"), strict=True):
                _, used, kilobytes = run([sys.executable, "-m", f"stages.{stage}", "--quiet"], folder)
                costs[stage][rows] = Cost(used, 1024.0 * kilobytes, size_of(folder / output))
                print(f"{stage}: {rows:,} rows: {used:.1f} s, {kilobytes / 1000:,.0f} MB", flush=True)
            metadata = json.loads((folder / "data/dataset/metadata.json").read_text())
            tokens = metadata["splits"]["train"]["tokens"] / rows
    return tokens, costs


def measure_training(millions: float) -> Cost:
    """Train one model for some steps in a process of its own."""
    print(f"train: {millions:g} million parameters", flush=True)
    command = [sys.executable, "-c", "from benchmarks.scale import main; main()", "--train", str(millions)]
    here = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")} | {
        "PYTHONPATH": str(ROOT)
    }
    with tempfile.TemporaryDirectory() as folder:  # its checkpoints lie there
        done = subprocess.run(command, cwd=folder, env=here, stdout=subprocess.PIPE, text=True, check=True)
    return Cost(*json.loads(done.stdout.splitlines()[-1]))


def train(millions: float) -> Cost:
    """Train a model of about so many million parameters; return the costs of a token, and of the whole in memory and on disk."""
    import lightning  # noqa: PLC0415 - takes seconds

    from stages.core.examples import Examples  # noqa: PLC0415
    from stages.core.transformer import Transformer, TransformerConfig  # noqa: PLC0415
    from stages.core.windows import DatasetParams, RowSpans  # noqa: PLC0415
    from stages.parameters import read_all  # noqa: PLC0415
    from stages.training.checkpoint_folder import CheckpointFolder  # noqa: PLC0415
    from stages.training.fit import fit  # noqa: PLC0415
    from stages.training.optimization import TrainParams  # noqa: PLC0415
    from stages.training.runtime import RuntimeParams  # noqa: PLC0415

    preset = read_all(ROOT / "presets/gpt2.yaml")
    layers = max(2, round(4 * millions ** (1 / 3)))
    width = 64 * max(1, round((millions * 1e6 / 12 / layers) ** 0.5 / 64))
    shape = {
        "context_length": CONTEXT_LENGTH,
        "d_model": width,
        "n_layers": layers,
        "n_heads": width // 64,
        "dropout": 0.0,
    }
    lightning.seed_everything(0, verbose=False)
    network = Transformer(TransformerConfig(**preset["model"] | shape, vocabulary_size=256))
    steps = {"max_steps": STEPS, "epochs": None, "batch_size": BATCH_SIZE, "precision": "32-true", "compile": False}
    parameters = TrainParams(**preset["train"] | steps | {"optimizer": "adamw"})
    runtime = RuntimeParams(**preset["runtime"] | {"accelerator": "cpu", "devices": 1})
    token_ids = np.random.default_rng(0).integers(256, size=CONTEXT_LENGTH * BATCH_SIZE * STEPS + 1).astype(np.uint8)
    spans = RowSpans(np.array([0, len(token_ids)]), np.array([len(token_ids)]))
    packing = DatasetParams(packing="stream", loss_on="all", stride=None)
    examples = Examples(token_ids, spans, packing, CONTEXT_LENGTH, 0)
    clock = [time.process_time()]
    folder = CheckpointFolder("f" * 16)
    with folder.locked():
        fit(
            network,
            examples,
            None,
            parameters,
            runtime,
            lambda *_: clock.append(time.process_time()),
            folder,
            quiet=True,
        )
        disk = size_of(folder.path)
    step = statistics.median(np.diff(clock[1:]).tolist())
    peak = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Cost(step / (CONTEXT_LENGTH * BATCH_SIZE), peak, disk)


def size_of(path: Path) -> float:
    """Return the bytes of a file or a folder."""
    return float(sum(each.stat().st_size for each in [path, *path.rglob("*")] if each.is_file()))


# -------------------------------------------------------------------------------------------------------------- fitting


def fit_line(points: dict[float, float]) -> Line:
    """Return the line through the two largest amounts: below them, the start of Python and of a first block is most of the cost."""
    (one, cost_one), (two, cost_two) = sorted(points.items())[-2:]
    slope = max(0.0, (cost_two - cost_one) / (two - one))
    return Line(max(0.0, cost_two - slope * two), slope)


def growth(points: dict[float, float]) -> float | None:
    """Return the exponent by which a cost grows between the two largest amounts, without what it costs to start."""
    if len(points) < 3:
        return None
    (_, base), *_, (one, cost_one), (two, cost_two) = sorted(points.items())
    if not base < cost_one < cost_two:
        return None
    return float(np.log((cost_two - base) / (cost_one - base)) / np.log(two / one))


def write_measured(curves: dict[str, dict[float, Cost]]) -> None:
    """Write what was measured."""
    rows = [
        [
            stage,
            f"{amount:,.0f}",
            seconds_in_words(cost.seconds),
            f"{cost.memory / 1e6:,.0f} MB",
            f"{cost.disk / 1e6:,.1f} MB",
        ]
        for stage, costs in curves.items()
        for amount, cost in costs.items()
    ]
    columns = ["stage", "rows, or parameters", "processor time", "peak memory", "on disk"]
    write_table("measured", "Python's start included; of a training, the seconds of one token.", columns, rows, PAGE)


def write_fits(curves: dict[str, dict[float, Cost]]) -> None:
    """Write the lines through the measurements, and whether anything grows faster than its work."""
    rows = []
    for stage, costs in curves.items():
        time_line, memory_line, disk_line = lines_of(costs)
        exponent = growth({amount: cost.seconds for amount, cost in costs.items()})
        rows.append([
            stage,
            f"{seconds_in_words(time_line.start)} + {seconds_in_words(time_line.slope * 1e6)} a million",
            f"{memory_line.start / 1e6:,.0f} MB + {memory_line.slope:,.1f} bytes each",
            f"{disk_line.slope:,.1f} bytes each",
            "not measurable" if exponent is None else f"{exponent:.2f}",
        ])  # fmt: skip
    columns = ["stage", "processor time", "peak memory", "on disk", "exponent of time"]
    write_table(
        "fits", "Each is a row, or a parameter; an exponent of 1 is growth as fast as the work.", columns, rows, PAGE
    )


def lines_of(costs: dict[float, Cost]) -> list[Line]:
    """Return the lines of time, memory and disk."""
    return [fit_line({amount: cost[part] for amount, cost in costs.items()}) for part in range(3)]


def write_carried_on(curves: dict[str, dict[float, Cost]], tokens_per_row: float) -> None:
    """Write the lines' values at a billion and at a trillion tokens, with 20 tokens for each parameter (Hoffmann et al. 2022)."""
    rows = []
    for tokens in (10**9, 10**10, 10**11, TRILLION):
        cells = [f"{tokens:,}"]
        for stage in STAGES:
            time_line, memory_line, disk_line = lines_of(curves[stage])
            amount = tokens / tokens_per_row
            cells += [seconds_in_words(time_line.at(amount)), f"{memory_line.at(amount) / 1e9:,.1f} GB"]
        parameters = tokens / 20
        flops = 6 * parameters * tokens
        cells += [
            f"{disk_line.at(amount) / 1e9:,.0f} GB", f"{parameters / 1e9:,.2f} billion", f"{16 * parameters / 1e9:,.0f} GB",
            f"{flops / 4e14 / 86400:,.1f}",
        ]  # fmt: skip
        rows.append(cells)
    columns = [
        "tokens", "build_vocabulary", "its memory", "build_dataset", "its memory", "data/dataset/", "parameters",
        "weights, gradients, AdamW", "days of one GPU at 400 TFLOPS",
    ]  # fmt: skip
    caption = (
        f"Carried on by the lines above, {tokens_per_row:.0f} tokens a row, one process; beyond what was measured this is arithmetic, "
        "no measurement."
    )
    write_table("carried on", caption, columns, rows, PAGE)


def seconds_in_words(seconds: float) -> str:
    """Return a time in a unit in which it is easy to read."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds * 1e6:,.1f} µs"


def draw(curves: dict[str, dict[float, Cost]]) -> None:
    """Draw time and memory over rows and parameters, measured and fitted."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2)
    for column, stages in enumerate((STAGES, ("train, each token",))):
        for row, (part, unit) in enumerate(((0, "seconds of the processor"), (1, "bytes of memory"))):
            panel = axes[row][column]
            for stage in stages:
                points = {amount: cost[part] for amount, cost in curves[stage].items()}
                line = fit_line(points)
                amounts = np.geomspace(min(points), max(points), 50)
                (drawn,) = panel.loglog(list(points), list(points.values()), "o", label=stage)
                panel.loglog(amounts, [line.at(amount) for amount in amounts], "-", color=drawn.get_color())
            panel.set(xlabel="parameters" if column else "rows", ylabel=unit)
            panel.legend()
    with mpl.rc_context({"svg.hashsalt": "scale"}):
        figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
