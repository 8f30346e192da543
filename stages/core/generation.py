"""Complete prompts token by token, greedily or by sampling, with a key/value cache.

The next token always depends on the last ``context_length`` tokens alone, and its logits are those of the model run on
just these. Up to that length the cache holds them. Beyond it the window slides: each token's position, and with it
everything computed from it, changes with every step, so the window is read anew for each token: exact, but slower.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stages.core.kernels import without_module_calls
from stages.core.kv_cache import KeyValueCache
from stages.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from stages.core.transformer import Transformer


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from its logits.

    Raises:
        UserError: a value is out of range.
    """

    temperature: float = 0.0
    """What the logits are divided by; 0: always the most likely token (greedy), and nothing else here matters."""
    top_k: int | None = None
    """Choose among this many most likely tokens; None: all."""
    top_p: float | None = None
    """Choose among the fewest most likely tokens whose probabilities reach this sum (Holtzman et al. 2020)."""
    seed: int = 0
    """Seeds, with the prompt itself, a prompt's own random numbers: its neighbours never change its sample."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature: found {self.temperature}, allowed: 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k: found {self.top_k}, allowed: a whole number from 1, or none")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p: found {self.top_p}, allowed: above 0 and at most 1, or none")


GREEDY = Sampling()


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    eos_id: int,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    batch_size: int = 32,
) -> Iterator[list[int]]:
    """Yield the prompts' completions in order, each what the prompt gets on its own.

    Args:
        model: it is put in evaluation mode meanwhile.
        prompts: token ids exactly as the model reads them: ``prompt <EOS>`` for a question, no ``<EOS>`` for a text to
            be continued. Of a prompt longer than context_length only the end is read.
        eos_id: the token that ends a completion.
        max_new_tokens: the most tokens of a completion.
        sampling: how a token is chosen.
        batch_size: the most prompts that are completed at once.

    Yields:
        a completion, which ends with ``eos_id`` or has ``max_new_tokens`` tokens.

    Raises:
        ValueError: a prompt is empty.
    """
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        completions: list[list[int]] = [[] for _ in batch]
        for step in _decode(model, batch, eos_id, max_new_tokens, sampling):
            for row, token_id in step:
                completions[row].append(token_id)
        yield from completions


def stream(
    model: Transformer, prompt: Sequence[int], eos_id: int, max_new_tokens: int, sampling: Sampling = GREEDY
) -> Iterator[int]:
    """Yield the tokens of one prompt's completion as they are chosen; arguments and errors as for ``generate``."""
    for step in _decode(model, [prompt], eos_id, max_new_tokens, sampling):
        for _, token_id in step:
            yield token_id


def sample(logits: Tensor, sampling: Sampling, draws: Tensor) -> Tensor:
    """Choose one token a row at random.

    Args:
        logits: [B, V].
        sampling: how; its temperature is not 0.
        draws: float64 [B], uniform in [0, 1): where in the cumulative distribution each row's token lies.

    Returns:
        token ids, int64 [B].
    """
    size = logits.shape[-1]
    logits = logits.double()
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature  # first the maximum: no overflow
    kept, token_ids = logits.topk(min(sampling.top_k or size, size), dim=-1)  # most likely first
    probabilities = kept.softmax(dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    if sampling.top_p is not None:
        enough = cumulative - probabilities >= sampling.top_p  # those before it suffice
        probabilities = probabilities.masked_fill(enough, 0)
        cumulative = probabilities.cumsum(dim=-1)
    rank = (cumulative <= draws[:, None] * cumulative[:, -1:]).sum(dim=-1, keepdim=True)  # [B, 1]
    return token_ids.gather(-1, rank)[:, 0]


@torch.inference_mode()
def _decode(
    model: Transformer, prompts: Sequence[Sequence[int]], eos_id: int, max_new_tokens: int, sampling: Sampling
) -> Iterator[list[tuple[int, int]]]:
    """Yield, token by token, (number of the prompt, chosen token) of every prompt that is not finished."""
    if not all(prompts):
        raise ValueError("found an empty prompt, allowed: at least one token, if only <EOS>")
    was_training = model.training
    model.eval()
    try:
        yield from _Decoder(model, prompts, eos_id, sampling).run(max_new_tokens)
    finally:
        model.train(was_training)


class _Decoder:
    """The unfinished prompts: those that fit into the window share a cache; longer ones are read anew at each step."""

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]], eos_id: int, sampling: Sampling) -> None:
        config = model.config
        self.model = without_module_calls(model)
        self.eos_id = eos_id
        self.window = config.context_length
        self.device = model.output.weight.device
        self.sequences = [list(prompt) for prompt in prompts]
        self.cached = [row for row, prompt in enumerate(prompts) if len(prompt) <= self.window]
        self.sliding = [row for row, prompt in enumerate(prompts) if len(prompt) > self.window]
        shape = (len(self.cached), config.key_value_heads, self.window, config.head_dim)
        self.cache = KeyValueCache(config.n_layers, shape, like=model.output.weight)
        self.sampling = sampling
        self.random = [_generator(prompt, sampling.seed) for prompt in prompts] if sampling.temperature > 0 else []

    def run(self, max_new_tokens: int) -> Iterator[list[tuple[int, int]]]:
        for step in range(max_new_tokens):
            rows = self.cached + self.sliding
            if not rows:
                return
            hidden = []  # [B, D] of the cached rows, then of the sliding ones
            if self.cached:
                hidden.append(self._read_prompts() if step == 0 else self._read_chosen())
            if self.sliding:
                hidden.append(self._read_windows())
            logits = self.model.output(torch.cat(hidden) if len(hidden) > 1 else hidden[0])  # [B, V]
            chosen = list(zip(rows, self._choose(logits, rows).tolist(), strict=True))
            yield chosen
            for row, token_id in chosen:
                self.sequences[row].append(token_id)
            self._retire_finished({row for row, token_id in chosen if token_id == self.eos_id})

    def _choose(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        if self.sampling.temperature == 0:
            return logits.argmax(dim=-1)
        draws = [torch.rand((), generator=self.random[row], dtype=torch.float64) for row in rows]
        return sample(logits, self.sampling, torch.stack(draws).to(self.device))

    def _read_prompts(self) -> Tensor:
        """Fill the cache; return the hidden states of the prompts' last tokens, [B, D]."""
        prompts = [self.sequences[row] for row in self.cached]
        longest = max(map(len, prompts))
        padded = [prompt + [0] * (longest - len(prompt)) for prompt in prompts]  # any token will do: it is overwritten
        places = self.cache.places([0] * len(prompts), longest)
        input_ids = torch.tensor(padded, device=self.device)
        hidden = self.model.hidden_states(input_ids, attends=self.cache.attends(places))  # [B, T, D]
        return hidden[range(len(prompts)), [len(prompt) - 1 for prompt in prompts]]

    def _read_chosen(self) -> Tensor:
        """Add the tokens chosen last to the cache; return their hidden states, [B, D]."""
        sequences = [self.sequences[row] for row in self.cached]
        places = self.cache.places([len(sequence) - 1 for sequence in sequences], 1)
        chosen = torch.tensor([sequence[-1:] for sequence in sequences], device=self.device)  # [B, 1]
        return self.model.hidden_states(chosen, places.positions, self.cache.attends(places))[:, 0]

    def _read_windows(self) -> Tensor:
        """Read the last context_length tokens of the long prompts; return the last ones' hidden states, [B, D]."""
        windows = [self.sequences[row][-self.window :] for row in self.sliding]
        return self.model.hidden_states(torch.tensor(windows, device=self.device))[:, -1]

    def _retire_finished(self, finished: set[int]) -> None:
        """Drop what is finished; what no longer fits into the window leaves the cache."""
        self.sliding = [row for row in self.sliding if row not in finished]
        for place in reversed(range(len(self.cached))):
            row = self.cached[place]
            if row in finished or len(self.sequences[row]) > self.window:
                self.cache.drop(place)
                self.cached[place] = self.cached[-1]
                del self.cached[-1]
                if row not in finished:
                    self.sliding.append(row)


def _generator(prompt: Sequence[int], seed: int) -> torch.Generator:
    """Return a prompt's own source of random numbers, on the CPU on every machine."""
    digest = hashlib.blake2b(repr((seed, list(prompt))).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))
