"""A trained model with its vocabulary: text in, text and figures out. The terminal, the server and notebooks ask it here.

Shapes: T tokens, L layers, N heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from tokenizers.decoders import DecodeStream

from stages.core.generation import Sampling, generate, stream
from stages.core.inspection import log_probabilities
from stages.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from stages.core.saved_model import SavedModel
    from stages.core.vocabulary import Vocabulary

MOST_PROMPTS = 1024
"""Of one request to a server."""
MOST_TOKENS = 1024
"""The most new tokens of a completion that a server computes, where the model's context is not longer."""


class TokenScore(NamedTuple):
    """A token of a text, and what the model gave it."""

    token: str
    """As the vocabulary writes it: byte pairs have Ġ for a space."""
    token_id: int
    log_probability: float
    """In nats, after all tokens before it."""


class Attention(NamedTuple):
    """How much each token of a text attends to each token before it, and to itself."""

    tokens: list[str]
    """What the model read, T tokens as the vocabulary writes them."""
    weights: Tensor
    """float32 [L, N, T, T]: the token of a row attends to the token of a column; each row sums to 1."""


@dataclass(frozen=True)
class LanguageModel:
    """A model that texts are given to; its network and vocabulary are there for more than that."""

    saved: SavedModel
    vocabulary: Vocabulary

    @property
    def context_length(self) -> int:
        """The most tokens that the model reads at once."""
        return self.saved.network.config.context_length

    @property
    def most_tokens(self) -> int:
        """The most new tokens of a completion that a server computes."""
        return max(self.context_length, MOST_TOKENS)

    def complete(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Return the completions of prompts, which are computed in batches; no prompt changes another's completion.

        Args:
            prompts: texts; a model that learnt plain text continues them, one that learnt prompts answers them.
            max_new_tokens: the most tokens of a completion; None: context_length.
            temperature: 0 takes the most likely token, more makes unlikely tokens likelier.
            top_k: draw from this many most likely tokens; None: from all.
            top_p: draw from the fewest most likely tokens that have this probability together; None: from all.
            seed: another seed draws other completions.

        Raises:
            UserError: a word or character is unknown (the message names the prompt), or a value is out of range.
        """
        if isinstance(prompts, str):
            raise UserError('prompts: found a text, allowed: a list of texts, such as complete(["what is CNN"])')
        token_ids = [self.prompt_ids(prompt, f"prompt {number}") for number, prompt in enumerate(prompts, start=1)]
        sampling = Sampling(temperature, top_k, top_p, seed)
        return list(self.complete_ids(token_ids, self.longest_completion(max_new_tokens), sampling))

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """Return the completion of one prompt in pieces, each as soon as it is known; the arguments are those of ``complete``.

        Raises:
            UserError: as for ``complete``, before the first piece.
        """
        token_ids = self.prompt_ids(prompt)
        sampling = Sampling(temperature, top_k, top_p, seed)
        return self.stream_ids(token_ids, self.longest_completion(max_new_tokens), sampling)

    def log_probabilities(self, text: str, completion: str | None = None) -> list[TokenScore]:
        """Return the log-probability of each token of a text but the first, or of a completion of that text.

        Args:
            text: a text or, where there is a completion, its prompt.
            completion: what follows the prompt; its tokens are scored, and after them <EOS>, which ends it.

        Raises:
            UserError: a word or character is unknown.
        """
        if completion is None:
            token_ids, read = self._encode(text, "the text"), 1
        else:
            prompt_ids = self.prompt_ids(text, "the prompt")
            answer_ids = [*self._encode(completion, "the completion"), self.vocabulary.eos_id]
            token_ids, read = [*prompt_ids, *answer_ids], len(prompt_ids)
        if len(token_ids) <= 1:
            return []
        scores = log_probabilities(self.saved.network, token_ids)[read - 1 :]
        scored = token_ids[read:]
        return [TokenScore(*each) for each in zip(self._tokens(scored), scored, scores.tolist(), strict=True)]

    def attention(self, prompt: str) -> Attention:
        """Return what the tokens of a prompt attend to; of one longer than the context, those of its end.

        Raises:
            UserError: a word or character is unknown.
        """
        token_ids = self.prompt_ids(prompt)[-self.context_length :]
        with torch.inference_mode():
            layers = self.saved.network.attention_weights(torch.tensor([token_ids]))
        return Attention(self._tokens(token_ids), torch.stack([weights[0] for weights in layers]).float())

    def prompt_ids(self, prompt: str, place: str = "the prompt") -> list[int]:
        """Return what the network reads for a prompt.

        Args:
            prompt: the text.
            place: which prompt it is, as an error names it.

        Raises:
            UserError: a word or character is unknown.
        """
        return self.saved.prompt_ids(self._encode(prompt, place), self.vocabulary.eos_id)

    def complete_ids(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling) -> Iterator[str]:
        """Yield the completions of prompts that ``prompt_ids`` returned."""
        for completion in generate(self.saved.network, prompts, self.vocabulary.eos_id, max_new_tokens, sampling):
            yield self.vocabulary.decode(completion)

    def stream_ids(self, prompt: Sequence[int], max_new_tokens: int, sampling: Sampling) -> Iterator[str]:
        """Yield the completion of a prompt that ``prompt_ids`` returned, in pieces."""
        tokens = stream(self.saved.network, prompt, self.vocabulary.eos_id, max_new_tokens, sampling)
        return text_pieces(tokens, self.vocabulary)

    def longest_completion(self, max_new_tokens: int | None) -> int:
        """Return the most tokens of a completion.

        Raises:
            UserError: it is less than 1.
        """
        if max_new_tokens is None:
            return self.context_length
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens: found {max_new_tokens}, allowed: a whole number from 1, or none")
        return max_new_tokens

    def _encode(self, text: str, place: str) -> list[int]:
        if not isinstance(text, str):
            raise UserError(f"{place}: found {text!r}, allowed: a text")
        try:
            return self.vocabulary.encode_prompt(text)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None

    def _tokens(self, token_ids: Sequence[int]) -> list[str]:
        return [str(self.vocabulary.tokenizer.id_to_token(token_id)) for token_id in token_ids]


def text_pieces(token_ids: Iterator[int], vocabulary: Vocabulary) -> Iterator[str]:
    """Yield the text as it grows; a character whose bytes are not all there yet waits for the rest of them."""
    decoder = DecodeStream(skip_special_tokens=True)
    chosen: list[int] = []
    printed = 0
    for token_id in token_ids:
        piece = decoder.step(vocabulary.tokenizer, token_id) or ""
        chosen.append(token_id)
        printed += len(piece)
        if piece:
            yield piece
    rest = vocabulary.decode(chosen)[printed:]
    if rest:
        yield rest  # bytes whose rest never came
