"""A run's description in Markdown, as MLflow shows it above the run's parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

from stages.report.metric_labels import METRIC_LABELS, format_metric, scored_rows

SAMPLES = 3
MOST_CHARACTERS = 120
# MLflow's page sets a table's columns against each other without a space.
GAP = "&emsp;"


def describe_run(metrics: Mapping[str, Any], samples: Sequence[tuple[str, str, str, bool]]) -> str:
    """Return a table of figures and some completions: prompt, expected, completion, whether they are the same."""
    lines = [
        f"### Results on {scored_rows(metrics)}",
        "",
        f"| figure | {GAP}value |",
        "|---|---:|",
    ]
    lines += [
        f"| {label} | {format_metric(metrics[name])} |" for name, label in METRIC_LABELS.items() if name in metrics
    ]
    if samples:
        lines += ["", "### Samples", "", f"| prompt{GAP} | expected{GAP} | completion{GAP} | |", "|---|---|---|---|"]
        lines += [
            f"| {_cell(prompt)} | {_cell(expected)} | {_cell(completion)} | {'✓' if exact else '✗'} |"
            for prompt, expected, completion, exact in samples[:SAMPLES]
        ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Write a text that stays a text within a Markdown table."""
    text = text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
    text = "".join(f"&#{ord(character)};" if character in "&<>|`*_[]()#!~$\\" else character for character in text)
    return " ".join(text.split()) or " "
