"""The figures of metrics/evaluate.json as people read them."""

from collections.abc import Mapping
from typing import Any

METRIC_LABELS = {
    "loss": "loss, nats per token",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte of text",
    "next_token_accuracy": "next-token accuracy",
    "completion_token_accuracy": "completion token accuracy",
    "completion_exact_match": "completions right",
    "majority_baseline": "always the commonest",
    "completions_cut": "completions cut, judged by their next tokens",
}
"""Name -> label, the ones that matter first."""


def scored_rows(metrics: Mapping[str, Any]) -> str:
    """Return in words which rows the figures are of."""
    note = ", as nothing is held out" if metrics["split"] == "train" else ""
    return f"{metrics['rows']:,} {metrics['split']} rows{note}"


def format_metric(value: Any) -> str:
    """Return a figure with as many digits as one compares."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"
