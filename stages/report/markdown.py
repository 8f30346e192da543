"""A run's description in Markdown, as MLflow shows it above the run's parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

from stages.report.content import Sample
from stages.report.metric_labels import METRIC_LABELS, format_metric, scored_rows

SAMPLES = 3
MOST_CHARACTERS = 120
# MLflow's page sets a table's columns against each other without a space.
GAP = "&emsp;"


def describe_run(metrics: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    """Return a table of figures and one of some completions."""
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
            f"| {cell(sample.prompt)} | {cell(sample.expected)} | {cell(sample.completion)}{' (cut)' if sample.cut else ''} "
            f"| {'✓' if sample.exact_match else '✗'} |"
            for sample in samples[:SAMPLES]
        ]
    return "\n".join(lines)


def cell(text: str) -> str:
    """Return a text that stays a text within a Markdown table."""
    text = text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
    text = "".join(f"&#{ord(character)};" if character in "&<>|`*_[]()#!~$\\" else character for character in text)
    return " ".join(text.split()) or " "
