"""What is shown of a model to a person: a few texts, some of the heads, so that a large model's report stays small."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from stages.core.inspection import Inspection, inspect, principal_plane, spread
from stages.core.transformer import Transformer

TEXTS = 6
TOKENS = 48
LAYERS = 4
HEADS = 6
LIKELY = 8
POINTS = 1000
NAMED_POINTS = 60


@dataclass(frozen=True)
class Text:
    """A row of the data, and what the model made of it."""

    token_ids: list[int]
    """All that was read, and the token after it."""
    completion_start: int
    """Where in token_ids the completion, or a plain text's second half, begins."""
    learnt_start: int
    """Where in token_ids begins what the model was taught to expect: where others come, it is not wrong."""
    tokens: int
    """How long the row is; token_ids may be its beginning alone."""
    expected: str
    answer: str
    exact: bool
    reading: Inspection


@dataclass(frozen=True)
class Point:
    """A token's place among the others."""

    label: str
    x: float
    y: float
    named: bool
    """Whether the label is drawn: not all of many."""


@dataclass(frozen=True)
class ReportContent:
    """Everything that the pictures and the report show."""

    texts: list[Text]
    answers: bool
    """Whether the model answers prompts, or continues plain texts."""
    layers: list[int]
    """Which layers, from 0."""
    heads: list[int]
    labels: list[str]
    """Of every token, by its id."""
    points: list[Point]
    positions: Tensor
    """What tells a token's place: [context_length, D], or of rotary positions the cosines, [context_length, H]."""
    network: Transformer

    @property
    def limits(self) -> str:
        """Say what is left out; empty where all of the model is shown."""
        config = self.network.config
        said = []
        if len(self.layers) < config.n_layers:
            said.append(f"layers {_numbers(self.layers)} of {config.n_layers}")
        if len(self.heads) < config.n_heads:
            said.append(f"heads {_numbers(self.heads)} of {config.n_heads}")
        longest = max((text.tokens for text in self.texts), default=0)
        shown = min(TOKENS, config.context_length)
        if longest > shown + 1:
            said.append(f"the first {shown} tokens of texts of up to {longest:,}")
        if len(self.points) < config.vocabulary_size:
            said.append(f"the embeddings of {len(self.points):,} of {config.vocabulary_size:,} tokens")
        return "; ".join(said)


def inspect_row(
    network: Transformer,
    parts: tuple[list[int], list[int]],
    expected: str,
    answer: str,
    *,
    exact: bool,
    completions_only: bool,
) -> Text:
    """Let the model read a row: its prompt and what follows it."""
    prompt, rest = parts
    token_ids = [*prompt, *rest][: min(TOKENS, network.config.context_length) + 1]
    reading = inspect(network, token_ids, LIKELY)
    learnt_start = len(prompt) if completions_only else 0
    return Text(token_ids, len(prompt), learnt_start, len(prompt) + len(rest), expected, answer, exact, reading)


def choose(exact: Sequence[bool]) -> list[int]:
    """Choose the texts to show: up to half of them answered wrongly, in the order of the data."""
    wrong = [index for index, right in enumerate(exact) if not right]
    right = [index for index, right in enumerate(exact) if right]
    from_wrong = max(TEXTS // 2, TEXTS - len(right))
    chosen = wrong[:from_wrong]
    return sorted(chosen + right[: TEXTS - len(chosen)])


def show(network: Transformer, texts: list[Text], labels: list[str], *, answers: bool) -> ReportContent:
    """Choose what to show of a model that has read ``texts``."""
    config = network.config
    table = network.position_table.detach().cpu().float()
    positions = table[0, :, 0] if config.positions == "rotary" else table
    in_texts = {token_id for text in texts for token_id in text.token_ids}
    named = set(sorted(in_texts)[:NAMED_POINTS]) if config.vocabulary_size > NAMED_POINTS else None
    plane = principal_plane(network.embedding.weight)
    shown = [index for index in range(config.vocabulary_size) if index < POINTS or (named and index in named)]
    places: list[list[float]] = plane.tolist()
    points = [
        Point(labels[index], places[index][0], places[index][1], named is None or index in named) for index in shown
    ]
    layers, heads = spread(config.n_layers, LAYERS), spread(config.n_heads, HEADS)
    return ReportContent(texts, answers, layers, heads, labels, points, positions, network)


def _numbers(indices: list[int]) -> str:
    return ", ".join(str(index + 1) for index in indices)
