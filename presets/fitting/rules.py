"""Lengths, tokens, speed and budget to a whole recipe: each rule is a pure function that says why.

docs/fit.md has the table of these rules and their sources.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from presets.fitting.choice import Choice
from presets.fitting.texts import Lengths
from stages.core.vocabulary import TokenizerName

HEAD_DIM = 32
SHAPES = ((2, 64), (3, 96), (4, 128), (4, 192), (6, 256), (6, 384), (8, 512), (12, 768))
"""Candidates as (n_layers, d_model), each about twice as large as the one before."""

ONE_ROW_MATTERS = 20
"""Rows below which holding any out costs more than it tells."""
HELD_OUT_ROWS = 1000
"""Rows that are enough to score on: a share of them is known to within 3% (two standard deviations of a binomial)."""
MOST_HELD_OUT = 0.1
MOST_CONTEXT = 1024
_FEW_CLASSES = 0.05
_ROUND = 8

# Muennighoff et al. 2023, "Scaling Data-Constrained Language Models", equations 5 and 6 and appendix A.
_DATA_EXPONENT = 0.353
_PARAMETER_FACTOR = 521.0
_DATA_FACTOR = 1488.0
_DATA_HALF_LIFE = 15.4
"""R*_D: passes after which repeated tokens lose most of their worth."""

REPEATS_ARE_FREE = 4
"""Passes up to which repeated rows are as good as new ones (Muennighoff et al. 2023)."""


ARCHITECTURE: dict[str, Choice[Any]] = {
    "model.feed_forward": Choice(
        "relu2", "attention alone computes too little; squared ReLU learns fastest (So et al. 2021)"
    ),
    "model.norm": Choice("rms", "as good as LayerNorm, and quicker (Zhang & Sennrich 2019)"),
    "model.positions": Choice("rotary", "better than learned ones at every size (Su et al. 2021)"),
    "model.output_projection": Choice(True, "it mixes the heads (Vaswani et al. 2017)"),
    "model.output_bias": Choice(False, "large models go without (Touvron et al. 2023)"),
    "model.tie_embeddings": Choice(True, "fewer numbers to learn from few tokens (Press & Wolf 2017)"),
    "model.zero_init_projections": Choice(True, "each block begins as nothing, and learns sooner (Zhang et al. 2019)"),
}
"""The same for all data."""
LEARNING_RATE = 0.004
"""With Muon, whose steps change what a layer returns by as much in every width, for at most so many steps:"""
STEPS_AT_FULL_RATE = 400
VALIDATIONS = 20
"""In one training."""


@dataclass(frozen=True)
class Classes:
    """Completions that are labels."""

    distinct: int
    majority: str
    share: float
    """Of the rows, that the commonest one has: what a model that always says it gets right."""


@dataclass(frozen=True)
class Candidate:
    """A shape, and what it costs on this machine."""

    n_layers: int
    d_model: int
    parameters: int
    tokens_per_second: float


def choose_held_out(rows: int, *, comes_split: bool) -> Choice[float]:
    """Return the share of rows to hold out, for validation and for test each."""
    if comes_split:
        return Choice(0.0, "the data come with such a split")
    if rows < ONE_ROW_MATTERS:
        return Choice(0.0, f"{rows} rows are too few to hold any out")
    share = min(MOST_HELD_OUT, HELD_OUT_ROWS / rows)
    share = float(f"{share:.1g}")
    return Choice(share, f"about {share * rows:,.0f} of {rows:,} rows")


def choose_packing(lengths: Lengths, *, plain: bool) -> Choice[Literal["rows", "stream"]]:
    """Return how rows become examples: short rows and those with completions one by one, long texts as a stream."""
    if not plain:
        return Choice("rows", "each row is a prompt with its completion")
    if lengths.p99 <= MOST_CONTEXT and lengths.median <= 2 * _ROUND * 2:
        return Choice("rows", f"short texts of their own: half have at most {lengths.median} tokens")
    return Choice("stream", f"running text: half of the rows have more than {lengths.median} tokens")


def choose_loss_on(tokenizer: TokenizerName, lengths: Lengths, *, plain: bool) -> Choice[Literal["all", "completion"]]:
    """Return which tokens are learnt: prompts as well, where they are language (Shi et al. 2024)."""
    share = lengths.completion_tokens / lengths.tokens
    if plain:
        return Choice("all", "plain text has no completions")
    if tokenizer == "bpe":
        return Choice(
            "all", f"completions are {share:.0%} of the tokens; what prompts teach of the language helps them"
        )
    return Choice("completion", "prompts are drawn from a closed set: there is nothing to learn in which comes next")


def choose_context(lengths: Lengths, packing: str, minutes: float) -> Choice[int]:
    """Return the context: of rows the longest, unless few are far longer than the rest; of a stream by the budget."""
    if packing == "stream":
        context = 64 if minutes < 5 else 128 if minutes < 20 else 256
        return Choice(
            context, f"of a running text, for {minutes:g} minutes: a longer one takes more time than it tells"
        )
    # A row of n tokens has n - 1 inputs.
    longest, p99 = lengths.longest - 1, lengths.p99 - 1
    if longest <= min(2 * p99 + _ROUND, MOST_CONTEXT):
        return Choice(max(2, longest), f"the longest row has {lengths.longest:,} tokens (p99: {lengths.p99:,})")
    context = min(MOST_CONTEXT, _round_up(p99))
    return Choice(context, f"p99 of rows is {lengths.p99:,} tokens (the longest: {lengths.longest:,})")


def choose_shape(candidates: Sequence[Candidate], seconds: float, unique_tokens: float) -> Choice[Candidate]:
    """Return the candidate with the lowest predicted loss for what it can read in the time.

    Args:
        candidates: in order of size.
        seconds: the time that training may take.
        unique_tokens: tokens of the training split.
    """
    losses = [
        predicted_loss(candidate.parameters, candidate.tokens_per_second * seconds, unique_tokens)
        for candidate in candidates
    ]
    best = candidates[losses.index(min(losses))]
    passes = best.tokens_per_second * seconds / unique_tokens
    return Choice(
        best,
        f"of {len(candidates)} sizes the best for {seconds:,.0f} s here: {best.parameters:,} parameters at "
        f"{best.tokens_per_second:,.0f} tokens a second, {passes:.1f} passes",
    )


def is_past_the_best(candidates: Sequence[Candidate], seconds: float, unique_tokens: float) -> bool:
    """Return whether the largest candidates so far get worse, so that still larger ones need not be timed."""
    losses = [predicted_loss(each.parameters, each.tokens_per_second * seconds, unique_tokens) for each in candidates]
    return len(losses) >= 2 and losses[-1] > losses[-2]


def timing_choices(batch_size: int) -> dict[str, Choice[Any]]:
    """Return the training parameters by which a candidate is timed."""
    return choose_training(0, 1000, validates=False) | {"train.batch_size": Choice(batch_size, "")}


def choose_training(passes: float, steps: int, *, validates: bool) -> dict[str, Choice[Any]]:
    """Return how the weights are learnt, but for the batch."""
    warmup = max(1, min(100, steps // 20))
    every = max(1, steps // VALIDATIONS)
    keeps_best = validates and passes > REPEATS_ARE_FREE
    return {
        "train.optimizer": Choice("muon", "half the steps of AdamW (Jordan et al. 2024; docs/recipes.md)"),
        "train.learning_rate": choose_learning_rate(steps),
        "train.beta1": Choice(0.9, "the usual memory of gradients"),
        "train.beta2": Choice(0.99, "short trainings need a short memory of squares"),
        "train.weight_decay": choose_weight_decay(passes),
        "train.schedule": Choice(
            "linear", "straight to zero is best for a given number of steps (Bergsma et al. 2025)"
        ),
        "train.warmup_steps": Choice(warmup, f"a twentieth of the {steps:,} steps, at most 100"),
        "train.min_learning_rate": Choice(0.0, "straight to zero"),
        "train.epochs": Choice(None, "max_steps says it"),
        "train.max_steps": Choice(steps, f"what the budget allows here: {passes:.1f} passes over the training rows"),
        "train.gradient_clip": Choice(1.0, "cuts off rare large gradients (Pascanu et al. 2013)"),
        "train.validate_every": Choice(every, f"about {VALIDATIONS} times in the training"),
        "train.keep": Choice(
            "best" if keeps_best else "last",
            "many passes may overfit"
            if keeps_best
            else "the learning rate ends at zero, and the last weights are the best",
        ),
        "train.patience": choose_patience(passes, validates=validates),
    }


def choose_learning_rate(steps: int) -> Choice[float]:
    """Return the learning rate: of muon the same for every width (Bernstein & Newhouse 2024), lower for more steps."""
    rate = LEARNING_RATE * min(1.0, (STEPS_AT_FULL_RATE / max(1, steps)) ** 0.5)
    return Choice(float(f"{rate:.1g}"), f"for {steps:,} steps, and with muon for every width (docs/recipes.md)")


def predicted_loss(parameters: float, tokens: float, unique_tokens: float) -> float:
    """Return the loss above the text's own entropy that a scaling law for repeated data predicts, in nats.

    Muennighoff et al. 2023, equation 6: tokens lose their worth as they repeat. Parameters keep theirs: with the stronger
    weight decay that ``choose_weight_decay`` gives, larger models stay better on repeated data (Kim et al. 2025).
    """
    repeats = max(0.0, tokens / unique_tokens - 1)
    worth = min(tokens, unique_tokens) + unique_tokens * _DATA_HALF_LIFE * (1 - math.exp(-repeats / _DATA_HALF_LIFE))
    return float(_PARAMETER_FACTOR / parameters**_DATA_EXPONENT + _DATA_FACTOR / worth**_DATA_EXPONENT)


def choose_batch(tokens: float, tokens_per_example: float, examples: int) -> Choice[int]:
    """Return the examples of a step: Li et al. 2025 (Step Law), a power of two that leaves 16 steps in a pass.

    Args:
        tokens: read in the whole training.
        tokens_per_example: the mean.
        examples: of the training split.
    """
    wanted = 0.58 * tokens**0.571
    most = max(1, examples // 16)
    batch = min(most, wanted / tokens_per_example)
    power = 2 ** max(0, round(math.log2(max(1.0, batch))))
    power = power if power <= most else 2 ** int(math.log2(most))
    return Choice(power, f"about {power * tokens_per_example:,.0f} tokens a step for {tokens:,.0f} in all")


def choose_dropout(passes: float, tokenizer: TokenizerName) -> Choice[float]:
    """Return the dropout: none for what is seen few times, or must be computed exactly."""
    if passes <= REPEATS_ARE_FREE:
        return Choice(0.0, f"{passes:.1f} passes: rows seen up to {REPEATS_ARE_FREE} times are as good as new")
    if tokenizer != "bpe":
        return Choice(
            0.0, f"{passes:.0f} passes over a closed set: weight decay regularises, dropout would blur the rule"
        )
    share = 0.1 if passes <= 3 * REPEATS_ARE_FREE else 0.2
    return Choice(share, f"{passes:.0f} passes over the same rows: without it they would be learnt by heart")


def choose_weight_decay(passes: float) -> Choice[float]:
    """Return the weight decay: stronger where the data repeat (Kim et al. 2025)."""
    if passes <= REPEATS_ARE_FREE:
        return Choice(0.1, "the usual for rows seen few times")
    return Choice(0.5, f"stronger than the usual 0.1, as {passes:.0f} passes repeat the rows")


def choose_patience(passes: float, *, validates: bool) -> Choice[int | None]:
    """Return after how many validations without progress to stop."""
    if not validates:
        return Choice(None, "no row is held out to watch")
    if passes <= REPEATS_ARE_FREE:
        return Choice(None, f"{passes:.1f} passes do not overfit")
    return Choice(5, "a quarter of the training without progress is too much")


def _round_up(tokens: int) -> int:
    return _ROUND * math.ceil(tokens / _ROUND)
