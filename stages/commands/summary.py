"""Say what the pipeline has made, how it compares with the last commit, and what to type next."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from stages import command_line
from stages.artifacts.metrics_json import read_json
from stages.artifacts.provenance_json import MODEL_FOLDER, read_provenance
from stages.report.metric_labels import METRIC_LABELS, format_metric, scored_rows
from stages.tracking.workspace import run_name

METRICS = (Path("metrics/evaluate.json"), Path("metrics/train.json"))
TRAINING_FIGURES = {"train_loss": "training loss", "validation_loss": "validation loss", "parameters": "parameters"}
NEXT = (
    ("make ui", "compare runs in MLflow"),
    ('python -m stages.generate "PROMPT"', "ask the model"),
    ("dvc exp run -S train.learning_rate=0.05", "train with another value, beside this one"),
    ("make compare", "compare all experiments in the terminal"),
    ("dvc plots show", "draw the curves"),
)


def main() -> None:
    """Print the summary."""
    quiet = command_line.command_parser(__doc__).parse_args().quiet
    metrics = {name: value for path in METRICS for name, value in read_json(path).items()}
    committed = {name: value for path in METRICS for name, value in committed_json(path).items()}
    text = "\n".join(f"{label:<28}{value}".rstrip() for label, value in made(metrics, committed))
    print()
    if sys.stdout.isatty():
        Console(highlight=False).print(Panel(Text(text), title="Made", title_align="left", expand=False))
    else:
        print(text)
    if not quiet:
        print("\nNext:\n" + "\n".join(f"  {command:<43}{purpose}" for command, purpose in NEXT))


def made(metrics: dict[str, Any], committed: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what there is: the model, its figures and their change, and where to look."""
    return [
        ("model", f"{MODEL_FOLDER}/"),
        ("scored on", scored_rows(metrics)),
        *(
            (label, f"{format_metric(metrics[name]):<14}{change(metrics[name], committed.get(name))}")
            for name, label in (METRIC_LABELS | TRAINING_FIGURES).items()
            if name in metrics
        ),
        ("report", "metrics/report.html"),
        ("MLflow run", run_name(read_provenance().fingerprint) or "none recorded here"),
    ]


def change(now: float, before: float | None) -> str:
    """Say how a figure differs from that of the last commit; nothing where it does not."""
    if before is None or now == before:
        return ""
    difference = now - before
    return f"{'+' if difference > 0 else '-'}{format_metric(abs(difference))} since the last commit"


def committed_json(path: Path) -> dict[str, Any]:
    """Read a file as the last commit has it; nothing where there is no such commit."""
    try:
        shown = subprocess.run(["git", "show", f"HEAD:./{path.as_posix()}"], capture_output=True, check=True)  # noqa: S603, S607
        values: dict[str, Any] = json.loads(shown.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return {}
    return values


if __name__ == "__main__":
    command_line.run(main)
