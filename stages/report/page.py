"""metrics/report.html: one page, without network, in which a person steps through a text token by token.

What comes from the data is text, never markup: Python escapes what it writes into HTML, and the page's script sets
texts alone. A content security policy forbids the page to load or run anything but what it was written with.
"""

import base64
import hashlib
import html
import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.report.content import InspectedRow, ReportContent
from stages.report.metric_labels import METRIC_LABELS, format_metric, scored_rows

TEMPLATE = Path(__file__).with_name("page.html")
SCRIPT = Path(__file__).with_name("page.js")
STYLE = Path(__file__).with_name("page.css")


def render(content: ReportContent, metrics: Mapping[str, Any]) -> str:
    """Return the page; the same model and figures give the same text."""
    script, style = SCRIPT.read_text(encoding="utf-8"), STYLE.read_text(encoding="utf-8")
    config = content.network.config
    parameters = sum(parameter.numel() for parameter in content.network.parameters())
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        policy=f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'",
        style=style,
        script=script,
        scored=html.escape(f"Scored on {scored_rows(metrics)}."),
        shape=html.escape(
            f"{parameters:,} parameters: layers {config.n_layers}, heads {config.n_heads}, width {config.d_model}, "
            f"context {config.context_length}, vocabulary {config.vocabulary_size:,}"
        ),
        figures="".join(
            f"<div><dt>{html.escape(METRIC_LABELS[name])}</dt><dd>{html.escape(format_metric(metrics[name]))}</dd></div>"
            for name in METRIC_LABELS
            if name in metrics
        ),
        limits=html.escape(f"To keep this page small it shows {content.limits}." if content.limits else ""),
        data=_json_in_html(_data(content)),
    )


def _digest(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _json_in_html(values: Any) -> str:
    """Return JSON that cannot end the element in which it stands, nor begin a comment or another element."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _data(content: ReportContent) -> dict[str, Any]:
    return {
        "answers": content.answers,
        "layers": [layer + 1 for layer in content.layers],
        "heads": [head + 1 for head in content.heads],
        "rows": [_row(content, row) for row in content.rows],
        "points": [[point.label, round(point.x, 4), round(point.y, 4), int(point.named)] for point in content.points],
    }


def _row(content: ReportContent, row: InspectedRow) -> dict[str, Any]:
    tokens = [content.labels[token_id] for token_id in row.token_ids]
    inspection = row.inspection
    return {
        "tokens": tokens,
        "completionStart": row.completion_start,
        "scoredStart": row.scored_start,
        "cut": row.tokens > len(row.token_ids),
        "expected": row.expected,
        "generated": row.generated,
        "exact": row.exact,
        "likely": [
            [
                [content.labels[token_id], round(probability, 4), int(token_id == truth)]
                for token_id, probability in zip(ids, probabilities, strict=True)
            ]
            for ids, probabilities, truth in zip(
                inspection.likely_ids.tolist(), inspection.likely_probabilities.tolist(), row.token_ids[1:], strict=True
            )
        ],
        "truth": [round(probability, 4) for probability in inspection.target_probabilities.tolist()],
        "attention": [
            [_lower_triangle(inspection.attention[layer, head].tolist()) for head in content.heads]
            for layer in content.layers
        ],
    }


def _lower_triangle(weights: Sequence[Sequence[float]]) -> list[list[int]]:
    """Return the weights in per cent, rounded; a token attends to none after itself."""
    return [[round(100 * weight) for weight in row[: index + 1]] for index, row in enumerate(weights)]
