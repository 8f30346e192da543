"""Compare a foreign engine, which has opened an export, with the model that was exported.

Shapes: T tokens, V vocabulary size.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import pydantic
import torch

from stages.core.generation import generate
from stages.core.inspection import spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stages.core.examples import Examples
    from stages.core.saved_model import SavedModel
    from stages.core.transformer import Transformer
    from stages.core.vocabulary import Vocabulary
    from stages.exports.engines import Engine

PROOF_FILE = "proof.json"

MOST_TEXTS = 16
"""Rows whose logits are compared; completions are compared for all."""
MOST_CONTINUED = 20
"""Plain texts that are continued, where the rows have no completions."""
BATCH_SIZE = 32


class Question(NamedTuple):
    """A prompt as the model reads it."""

    prompt: tuple[int, ...]
    max_new_tokens: int


class Proof(pydantic.BaseModel):
    """proof.json: what an engine made of the export, beside what the model makes of the same rows."""

    export: str
    engine: str
    """Its version and, where it was run in two ways, both."""
    model: str
    """The fingerprint of the training."""
    split: str
    rows: int
    """Prompts that were completed greedily by both."""
    equal_completions: int
    """How many completions are the same, token for token, in every way that the engine was run."""
    tied_completions: int
    """How many part where two tokens are as likely as each other, within the tolerance."""
    encoded_prompts: int
    """Prompts that the export's tokenizer was given as text."""
    equal_encodings: int
    compared_positions: int
    """Places where the log-probabilities of all tokens were compared."""
    largest_difference: float
    """The largest difference between two log-probabilities of a token, as a share of the place's largest logit."""
    tolerance: float
    """What it may be."""

    @property
    def holds(self) -> bool:
        """Whether the engine computes the same."""
        return (
            self.equal_completions + self.tied_completions == self.rows
            and self.equal_encodings == self.encoded_prompts
            and self.largest_difference <= self.tolerance
        )


def ask_split(examples: Examples, context_length: int) -> list[Question]:
    """Return the prompts of all rows with a completion, else the first halves of some texts.

    An engine has no place for more tokens than the context: a prompt that leaves no room is cut at its beginning.
    """
    rows = [int(row) for row in examples.rows_with_completion()]
    rows = rows or spread(len(examples.spans.row_offsets) - 1, MOST_CONTINUED)
    pairs = [examples.prompt_and_rest(row) for row in rows]
    longest = max(1, min(context_length // 2, max((len(rest) for _, rest in pairs), default=1)))
    questions = []
    for prompt, _ in pairs:
        read = prompt if len(prompt) < context_length else prompt[-(context_length - longest) :]
        if read:
            questions.append(Question(tuple(read), min(longest, context_length - len(read))))
    return questions


def prove(
    engines: Sequence[Engine],
    model: SavedModel,
    vocabulary: Vocabulary,
    questions: Sequence[Question],
    *,
    export: str,
    fingerprint: str,
    split: str,
) -> Proof:
    """Complete, encode and score the same prompts with the model and an engine; the result says whether they agree.

    Args:
        engines: the engine in every way that it is run, such as with a cache and without.
        model: the original.
        vocabulary: its vocabulary.
        questions: the prompts.
        export: the kind of export.
        fingerprint: the training's.
        split: where the prompts are from.
    """
    ours = complete(model.network, questions, vocabulary.eos_id)
    answers = [(engine, complete_by(engine, questions)) for engine in engines]
    different = [
        [(engine, theirs[number]) for engine, theirs in answers if theirs[number] != ours[number]]
        for number in range(len(questions))
    ]
    tied = sum(
        bool(parting)
        and all(_is_tie(model.network, question.prompt, own, theirs, engine.tolerance) for engine, theirs in parting)
        for question, own, parting in zip(questions, ours, different, strict=True)
    )
    texts = [[*questions[number].prompt, *ours[number]] for number in spread(len(questions), MOST_TEXTS)]
    differences = [
        _differences(model.network, engine, text[: model.network.config.context_length - engine.spare])
        for engine in engines
        for text in texts
    ]
    encodings = [_encodes_alike(engines[0], model, vocabulary, question.prompt) for question in questions]
    return Proof(
        export=export,
        engine=", ".join(engine.name for engine in engines),
        model=fingerprint,
        split=split,
        rows=len(questions),
        equal_completions=different.count([]),
        tied_completions=tied,
        encoded_prompts=len([alike for alike in encodings if alike is not None]),
        equal_encodings=encodings.count(True),
        compared_positions=sum(len(difference) for difference in differences),
        largest_difference=max((float(difference.max()) for difference in differences), default=0.0),
        tolerance=max(engine.tolerance for engine in engines),
    )


def complete_by(engine: Engine, questions: Sequence[Question]) -> list[list[int]]:
    """Return an engine's greedy completions; prompts of one length are completed in batches."""
    completions: list[list[int]] = [[] for _ in questions]
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        alike[len(question.prompt), question.max_new_tokens].append(number)
    for (_, max_new_tokens), numbers in alike.items():
        for first in range(0, len(numbers), BATCH_SIZE):
            batch = numbers[first : first + BATCH_SIZE]
            answers = engine.complete([questions[number].prompt for number in batch], max_new_tokens)
            for number, answer in zip(batch, answers, strict=True):
                completions[number] = answer
    return completions


def complete(network: Transformer, questions: Sequence[Question], eos_id: int) -> list[list[int]]:
    """Return our own greedy completions, each as long as its question allows."""
    longest = max((question.max_new_tokens for question in questions), default=1)
    completions = generate(network, [question.prompt for question in questions], eos_id, longest)
    return [completion[: question.max_new_tokens] for question, completion in zip(questions, completions, strict=True)]


@torch.inference_mode()
def _logits(network: Transformer, token_ids: Sequence[int]) -> torch.Tensor:
    """Return [T, V], float64."""
    logits: torch.Tensor = network(torch.tensor([token_ids], device=network.output.weight.device))[0]
    return logits.cpu().double()


def _differences(network: Transformer, engine: Engine, token_ids: Sequence[int]) -> torch.Tensor:
    """Return the largest difference of a log-probability at each place that the engine tells of, [T or 1].

    It is a share of the place's largest logit, where that is above 1, as floating-point numbers are exact to a share.
    """
    theirs = engine.logits(token_ids).double()  # [T or 1, V]
    ours = _logits(network, token_ids)[-len(theirs) :]
    differences = (ours.log_softmax(dim=-1) - theirs.log_softmax(dim=-1)).abs()
    return (differences / ours.abs().amax(dim=-1, keepdim=True).clamp(min=1)).amax(dim=-1)


def _is_tie(
    network: Transformer, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int], tolerance: float
) -> bool:
    """Return whether two completions part where both tokens are as likely as each other, within the tolerance of each."""
    parting = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    if parting is None:
        return False
    last = _logits(network, [*prompt, *ours[:parting]])[-1]
    return bool(
        (last[ours[parting]] - last[theirs[parting]]).abs() <= 2 * tolerance * max(1.0, float(last.abs().max()))
    )


def _encodes_alike(engine: Engine, model: SavedModel, vocabulary: Vocabulary, prompt: Sequence[int]) -> bool | None:
    """Return whether the export's tokenizer gives a prompt's text the ids that ours does; None where it has no text."""
    text = vocabulary.decode(prompt)
    if not text:
        return None
    return engine.encode(text) == model.prompt_ids(vocabulary.encode_prompt(text), vocabulary.eos_id)
