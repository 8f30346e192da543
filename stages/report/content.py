"""What the report and the pictures show of a model: a few rows, some of the heads, so that a large model's stay small."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from stages.core.inspection import Inspection, inspect, principal_plane, spread
from stages.core.transformer import Transformer

ROWS = 6
TOKENS = 48
LAYERS = 4
HEADS = 6
LIKELY = 8
POINTS = 1000
NAMED_POINTS = 60


class Sample(NamedTuple):
    """One line of metrics/samples.csv: a prompt, what followed it in the data, what the model generated."""

    prompt: str
    expected: str
    completion: str
    exact_match: bool
    cut: bool
    """Whether the completion was stopped by evaluate.max_new_tokens while all of it was right."""


@dataclass(frozen=True)
class InspectedRow:
    """A row of the data, and what the model made of it."""

    token_ids: list[int]
    """What the model read, and the token after it."""
    completion_start: int
    """Where in token_ids the completion, or a plain text's second half, begins."""
    scored_start: int
    """Where in token_ids the tokens begin that carry loss: of those before it the model was taught nothing."""
    tokens: int
    """How long the row is; token_ids may be its beginning only."""
    expected: str
    generated: str
    exact: bool
    inspection: Inspection


@dataclass(frozen=True)
class Point:
    """A token's place among the others."""

    label: str
    x: float
    y: float
    named: bool
    """Whether the label is drawn; of many points only some are named."""


@dataclass(frozen=True)
class ReportContent:
    """Everything that the pictures and the report show."""

    rows: list[InspectedRow]
    answers: bool
    """Whether the model answers prompts, or continues plain texts."""
    layers: list[int]
    """The layers shown, from 0."""
    heads: list[int]
    """The heads shown, from 0."""
    labels: list[str]
    """The label of every token, by its id."""
    points: list[Point]
    positions: Tensor
    """The position encodings [context_length, D]; of rotary positions the cosines of the angles [context_length, H]."""
    network: Transformer

    @property
    def limits(self) -> str:
        """Return what is shown of what is not shown whole, in words; empty where all of the model is shown."""
        config = self.network.config
        limits = []
        if len(self.layers) < config.n_layers:
            limits.append(f"layers {_numbers(self.layers)} of {config.n_layers}")
        if len(self.heads) < config.n_heads:
            limits.append(f"heads {_numbers(self.heads)} of {config.n_heads}")
        longest = max((row.tokens for row in self.rows), default=0)
        token_limit = min(TOKENS, config.context_length)
        if longest > token_limit + 1:
            limits.append(f"the first {token_limit} tokens of texts of up to {longest:,}")
        if len(self.points) < config.vocabulary_size:
            limits.append(f"the embeddings of {len(self.points):,} of {config.vocabulary_size:,} tokens")
        return "; ".join(limits)


def inspect_row(
    network: Transformer,
    parts: tuple[list[int], list[int]],
    expected: str,
    generated: str,
    *,
    exact: bool,
    completions_only: bool,
) -> InspectedRow:
    """Return what the model makes of a row.

    Args:
        network: in evaluation mode.
        parts: the token ids of its prompt, and of what follows it.
        expected: what follows the prompt, as text.
        generated: what the model generated in its place.
        exact: whether they are the same.
        completions_only: whether only completions carry loss.
    """
    prompt, rest = parts
    token_ids = [*prompt, *rest][: min(TOKENS, network.config.context_length) + 1]
    inspection = inspect(network, token_ids, LIKELY)
    scored_start = len(prompt) if completions_only else 0
    return InspectedRow(
        token_ids, len(prompt), scored_start, len(prompt) + len(rest), expected, generated, exact, inspection
    )


def choose(exact: Sequence[bool]) -> list[int]:
    """Return which rows to show, in the order of the data: up to half of them with a wrong completion.

    Args:
        exact: of each row, whether its completion is right.
    """
    wrong = [index for index, right in enumerate(exact) if not right]
    right = [index for index, right in enumerate(exact) if right]
    from_wrong = max(ROWS // 2, ROWS - len(right))
    chosen = wrong[:from_wrong]
    return sorted(chosen + right[: ROWS - len(chosen)])


def build_content(network: Transformer, rows: list[InspectedRow], labels: list[str], *, answers: bool) -> ReportContent:
    """Return what the report and the pictures show.

    Args:
        network: in evaluation mode.
        rows: those to show.
        labels: the label of every token, by its id.
        answers: whether the model answers prompts, or continues plain texts.
    """
    config = network.config
    table = network.position_table.detach().cpu().float()
    positions = table[0] if config.positions == "rotary" else table
    in_rows = {token_id for row in rows for token_id in row.token_ids}
    named = set(sorted(in_rows)[:NAMED_POINTS]) if config.vocabulary_size > NAMED_POINTS else None
    plane = principal_plane(network.embedding.weight)
    drawn = [index for index in range(config.vocabulary_size) if index < POINTS or (named and index in named)]
    places: list[list[float]] = plane.tolist()
    points = [
        Point(labels[index], places[index][0], places[index][1], named is None or index in named) for index in drawn
    ]
    layers, heads = spread(config.n_layers, LAYERS), spread(config.n_heads, HEADS)
    return ReportContent(rows, answers, layers, heads, labels, points, positions, network)


def _numbers(indices: list[int]) -> str:
    return ", ".join(str(index + 1) for index in indices)
