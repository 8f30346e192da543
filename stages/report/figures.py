"""The figures of metrics/evaluate.json as people read them."""

from typing import Any

FIGURES = {
    "loss": "loss, nats per token",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte of text",
    "next_token_accuracy": "next-token accuracy",
    "completion_token_accuracy": "completion token accuracy",
    "completion_exact_match": "completions right",
}
"""Name -> label, the ones that matter first seen."""


def figure_text(value: Any) -> str:
    """Write a figure with as many digits as one compares."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"
