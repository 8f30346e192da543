"""Print what the pipeline has made, how it compares with the last commit, and what to type next."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages import command_line
from stages.artifacts.metrics_json import read_json
from stages.artifacts.provenance_json import MODEL_FOLDER, read_provenance
from stages.errors import UserError
from stages.parameters import read_all
from stages.report.metric_labels import METRIC_LABELS, format_metric, scored_rows
from stages.tracking.workspace import run_name

EVALUATE_METRICS, TRAIN_METRICS = Path("metrics/evaluate.json"), Path("metrics/train.json")
LOCK = Path("dvc.lock")
TRAINING_LABELS = {"train_loss": "training loss", "validation_loss": "validation loss", "parameters": "parameters"}
DATA_STAGES = ("build_vocabulary", "build_dataset")
MOST_DIFFERENCES = 3


def main() -> None:
    """Print the summary."""
    quiet = command_line.command_parser(__doc__).parse_args().quiet
    metrics = read_metrics()
    committed = {
        name: value for path in (EVALUATE_METRICS, TRAIN_METRICS) for name, value in committed_json(path).items()
    }
    differences = data_differences(parse_lock(_read(LOCK)), parse_lock(committed_text(LOCK)))
    lines = (f"{label:<28}{value}".rstrip() for label, value in made(metrics, committed, differences))
    text = command_line.visible("\n".join(lines))
    print()
    if sys.stdout.isatty():
        Console(highlight=False).print(Panel(Text(text), title="Made", title_align="left", expand=False))
    else:
        print(text)
    if not quiet:
        commands = next_commands(read_all())
        print("\nNext:\n" + "\n".join(f"  {command:<43}{purpose}" for command, purpose in commands))


def read_metrics() -> dict[str, Any]:
    """Read the figures of the evaluation and of the training.

    Raises:
        UserError: a file is absent, or does not say which rows were scored.
    """
    metrics = read_json(EVALUATE_METRICS)
    for name, kind in (("split", str), ("rows", int)):
        if not isinstance(metrics.get(name), kind):
            raise UserError(
                f"{EVALUATE_METRICS}: {name}: found {metrics.get(name)!r}, expected a {kind.__name__}; "
                "make it again with `dvc repro --force evaluate`"
            )
    return metrics | read_json(TRAIN_METRICS)


def made(metrics: dict[str, Any], committed: dict[str, Any], differences: list[str]) -> list[tuple[str, str]]:
    """Return (label, value) of what there is: the model, its figures and their change, and where to look.

    Args:
        metrics: the present figures.
        committed: those of the last commit.
        differences: how the data differ from the last commit's; figures are compared only where they do not.
    """
    before = {} if differences else committed
    lines = [
        ("model", f"{MODEL_FOLDER}/"),
        ("scored on", scored_rows(metrics)),
        *(
            (label, f"{format_metric(metrics[name]):<14}{change(metrics[name], before.get(name))}")
            for name, label in (METRIC_LABELS | TRAINING_LABELS).items()
            if name in metrics
        ),
    ]
    if committed and differences:
        more = len(differences) - MOST_DIFFERENCES
        named = ", ".join(differences[:MOST_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")
        lines.append(("last commit", f"not compared: it has other data ({named})"))
    return [
        *lines,
        ("report", "metrics/report.html"),
        ("MLflow run", run_name(read_provenance().fingerprint) or "none recorded here"),
    ]


def change(now: Any, before: Any) -> str:
    """Return how a figure differs from that of the last commit; empty where it does not, or one of them is no number."""
    if not isinstance(now, int | float) or not isinstance(before, int | float) or now == before:
        return ""
    difference = now - before
    return f"{'+' if difference > 0 else '-'}{format_metric(abs(difference))} since the last commit"


def data_differences(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Return in words how the data of two states of dvc.lock differ: parameters, files; empty where they have the same dataset.

    Args:
        now: the stages of dvc.lock.
        before: those of the last commit.
    """
    if dataset_md5(now) == dataset_md5(before):
        return []
    old_params, new_params = data_params(before), data_params(now)
    old_files, new_files = data_files(before), data_files(now)
    changed = [name for name in new_params if name in old_params and new_params[name] != old_params[name]]
    words = [f"{name} {old_params[name]} -> {new_params[name]}" for name in changed]
    words += sorted(path for path, _ in old_files.items() ^ new_files.items())
    return list(dict.fromkeys(words)) or ["data/dataset"]


def data_params(stages: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that the dataset is made from, by their dotted names."""
    params: dict[str, Any] = {}
    for stage in DATA_STAGES:
        for name, value in stages.get(stage, {}).get("params", {}).get("params.yaml", {}).items():
            section = value if isinstance(value, Mapping) else {"": value}
            params |= {f"{name}.{key}".rstrip("."): each for key, each in section.items()}
    return params


def data_files(stages: Mapping[str, Any]) -> dict[str, str]:
    """Return the files that the dataset is made from, but for code, with their MD5."""
    dependencies = [each for stage in DATA_STAGES for each in stages.get(stage, {}).get("deps", [])]
    made_or_code = ("stages/", "data/vocabulary.json")
    return {each["path"]: each.get("md5", "") for each in dependencies if not each["path"].startswith(made_or_code)}


def dataset_md5(stages: Mapping[str, Any]) -> str | None:
    """Return the MD5 of the dataset that was scored; None where none was."""
    dependencies = stages.get("evaluate", {}).get("deps", [])
    return next((each["md5"] for each in dependencies if each["path"] == "data/dataset"), None)


def next_commands(parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (command, what for) of what a person may want to type next.

    Args:
        parameters: all of params.yaml.
    """
    train = parameters.get("train")
    wanted = {"learning_rate": 0.1, "min_learning_rate": 0.0} | (train if isinstance(train, dict) else {})
    rate, lowest = (float(wanted[name]) for name in ("learning_rate", "min_learning_rate"))
    other_rate = rate / 2 if rate / 2 >= lowest else rate * 2
    return [
        ("make ui", "compare runs in MLflow"),
        ('python -m stages.generate "PROMPT"', "ask the model"),
        (f"dvc exp run -S train.learning_rate={other_rate:g}", "train with another value, beside this one"),
        ("make compare", "compare all experiments in the terminal"),
        ("dvc plots show", "draw the curves"),
    ]


def parse_lock(text: str) -> dict[str, Any]:
    """Return the stages of dvc.lock; empty where it is no lock."""
    try:
        stages = YAML(typ="safe").load(text)["stages"]
    except (YAMLError, TypeError, KeyError, ValueError, RecursionError):
        return {}
    return stages if isinstance(stages, dict) else {}


def committed_json(path: Path) -> dict[str, Any]:
    """Return a file of metrics of the last commit; empty where there is none."""
    try:
        values = json.loads(committed_text(path))
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def committed_text(path: Path) -> str:
    """Return a file of the last commit; empty where there is none."""
    try:
        answer = subprocess.run(["git", "show", f"HEAD:./{path.as_posix()}"], capture_output=True, check=True)  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return ""
    return answer.stdout.decode(errors="replace")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    command_line.run(main)
