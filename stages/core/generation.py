"""Complete prompts token by token, greedily or by sampling, with a key/value cache.

The next token always depends on the last ``context_length`` tokens alone, and its logits are those of the model run on
just these. Up to that length the cache holds them. Beyond it the window slides: each token's position, and with it
everything computed from it, changes with every step, so the window is read anew for each token: exact, but slower.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.core.transformer import (
    Block,
    GeluFeedForward,
    KeyValueCache,
    Rotation,
    SwigluFeedForward,
    Transformer,
    fused_attention,
    in_fused_dtype,
    rotate,
)
from stages.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Layer = Callable[[Tensor], Tensor]


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
) -> list[list[int]]:
    """Complete prompts together; each completion is what the prompt gets on its own.

    Args:
        model: it is put in evaluation mode meanwhile.
        prompts: token ids exactly as the model reads them: ``prompt <EOS>`` for a question, no ``<EOS>`` for a text to
            be continued. Of a prompt longer than context_length only the end is read.
        eos_id: the token that ends a completion.
        max_new_tokens: the most tokens of a completion.
        sampling: how a token is chosen.

    Returns:
        for each prompt its completion, which ends with ``eos_id`` or has ``max_new_tokens`` tokens.

    Raises:
        ValueError: a prompt is empty.
    """
    completions: list[list[int]] = [[] for _ in prompts]
    for step in _decode(model, prompts, eos_id, max_new_tokens, sampling):
        for prompt, token_id in step:
            completions[prompt].append(token_id)
    return completions


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


class TokenReader:
    """Reads one more token a row: what ``Transformer.hidden_states`` computes with a filled cache, in evaluation mode.

    The same operations on the same weights, without the modules around them: for a small model at batch 1, calling the
    modules takes longer than their arithmetic.
    """

    def __init__(self, model: Transformer) -> None:
        """Look up the weights once."""
        self._rotary = model.config.positions == "rotary"
        self._embedding = model.embedding.weight
        self._position_table = model.position_table
        blocks = cast("Sequence[Block]", model.blocks)
        self._layers = [_BlockReader(block, layer) for layer, block in enumerate(blocks)]
        self._final_norm = _norm(model.final_norm)

    def __call__(self, token_ids: Tensor, cache: KeyValueCache) -> Tensor:
        """Return what the output layer reads, [B, D], of the new tokens, [B], which are added to the cache."""
        positions, reachable = cache.reserve(1)
        x = functional.embedding(token_ids, self._embedding)  # [B] -> [B, D]
        rotation = None
        if self._rotary:
            cosine, sine = self._position_table[:, positions]
            rotation = cosine, sine
        else:
            x = x + self._position_table[positions].view(-1, x.shape[-1])  # [1, D] or, where rows differ, [B, D]
        for layer in self._layers:
            x = layer(x, rotation, cache, reachable)
        return self._final_norm(x)


class _BlockReader:
    """``Block.forward`` for one token a row."""

    def __init__(self, block: Block, layer: int) -> None:
        attention = block.attention
        self._layer = layer
        self._head_dim = attention.head_dim
        self._heads = (attention.n_heads, attention.n_kv_heads, attention.n_kv_heads)
        self._attention_norm = _norm(block.attention_norm)
        self._queries_keys_values = _linear(attention.queries_keys_values)
        self._projection = None if attention.projection is None else _linear(attention.projection)
        self._feed_forward = None
        if block.feed_forward is not None and block.feed_forward_norm is not None:
            self._feed_forward = _feed_forward(block.feed_forward)
            self._feed_forward_norm = _norm(block.feed_forward_norm)

    def __call__(self, x: Tensor, rotation: Rotation | None, cache: KeyValueCache, reachable: Tensor | None) -> Tensor:
        batch, width = x.shape
        together = in_fused_dtype(self._queries_keys_values(self._attention_norm(x)))
        heads = together.view(batch, 1, -1, self._head_dim)  # [B, (N+2K)H] -> [B, 1, N+2K, H]
        queries, keys, values = heads.transpose(1, 2).split_with_sizes(self._heads, dim=1)  # [B, N or K, 1, H]
        if rotation is not None:
            queries, keys = (rotate(turning.transpose(1, 2), rotation).transpose(1, 2) for turning in (queries, keys))
        keys, values = (stored.type_as(queries) for stored in cache.extend(self._layer, keys, values))  # [B, K, S, H]
        context = fused_attention(queries, keys, values, reachable).view(batch, width).type_as(x)  # -> [B, D]
        x = x + (context if self._projection is None else self._projection(context))
        return x if self._feed_forward is None else x + self._feed_forward(self._feed_forward_norm(x))


def _linear(layer: nn.Linear) -> Layer:
    return partial(functional.linear, weight=layer.weight, bias=layer.bias)


def _norm(norm: nn.Module) -> Layer:
    match norm:
        case nn.LayerNorm():
            shape = list(norm.normalized_shape)
            return partial(torch.layer_norm, normalized_shape=shape, weight=norm.weight, bias=norm.bias, eps=norm.eps)
        case nn.RMSNorm():
            shape = list(norm.normalized_shape)
            return partial(torch.rms_norm, normalized_shape=shape, weight=norm.weight, eps=norm.eps)
        case _:
            return _unchanged


def _unchanged(x: Tensor) -> Tensor:
    return x


def _feed_forward(module: nn.Module) -> Layer:
    match module:
        case GeluFeedForward():
            up, down = _linear(module.up), _linear(module.down)
            return lambda x: down(functional.gelu(up(x)))
        case SwigluFeedForward():
            gate, up, down = _linear(module.gate), _linear(module.up), _linear(module.down)
            return lambda x: down(functional.silu(gate(x)) * up(x))
        case _:
            raise TypeError(f"{type(module).__name__} is no feed-forward that can be read token by token")


@torch.inference_mode()
def _decode(
    model: Transformer, prompts: Sequence[Sequence[int]], eos_id: int, max_new_tokens: int, sampling: Sampling
) -> Iterator[list[tuple[int, int]]]:
    """Yield, token by token, (number of the prompt, chosen token) of every prompt that is not finished."""
    if not prompts:
        return
    if not all(prompts):
        raise ValueError("found an empty prompt, allowed: at least one token, if only <EOS>")
    was_training = model.training
    model.eval()
    try:
        yield from _Decoder(model, prompts, eos_id).run(max_new_tokens, sampling)
    finally:
        model.train(was_training)


class _Decoder:
    """The unfinished prompts: those that fit into the window share a cache; longer ones are read anew at each step."""

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]], eos_id: int) -> None:
        self.model = model
        self.eos_id = eos_id
        self.window = model.config.context_length
        self.device = model.output.weight.device
        self.sequences = [list(prompt) for prompt in prompts]
        self.cached = [row for row, prompt in enumerate(prompts) if len(prompt) <= self.window]
        self.sliding = [row for row, prompt in enumerate(prompts) if len(prompt) > self.window]
        self.cache = KeyValueCache(model.config, len(self.cached), model.output.weight)
        self.read_token = TokenReader(model)

    def run(self, max_new_tokens: int, sampling: Sampling) -> Iterator[list[tuple[int, int]]]:
        draws = None
        if sampling.temperature > 0:
            draws = torch.stack([_draws(sequence, max_new_tokens, sampling.seed) for sequence in self.sequences])
        for step in range(max_new_tokens):
            rows = self.cached + self.sliding
            if not rows:
                return
            hidden = self._read_prompts() if step == 0 else self._read_chosen()
            if self.sliding:
                hidden = torch.cat((hidden, self._read_windows()))
            logits = self.model.output(hidden)
            if draws is None:
                token_ids = logits.argmax(dim=-1)
            else:
                token_ids = sample(logits, sampling, draws[rows, step].to(self.device))
            chosen = list(zip(rows, token_ids.tolist(), strict=True))
            yield chosen
            for row, token_id in chosen:
                self.sequences[row].append(token_id)
            self._retire_finished({row for row, token_id in chosen if token_id == self.eos_id})

    def _read_prompts(self) -> Tensor:
        """Fill the cache; return the hidden states of the prompts' last tokens, [B, D]."""
        prompts = [self.sequences[row] for row in self.cached]
        if not prompts:
            return self.model.output.weight.new_empty(0, self.model.config.d_model)
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        padded = [prompt + [0] * (longest - len(prompt)) for prompt in prompts]  # any token will do: it is forgotten
        hidden = self.model.hidden_states(torch.tensor(padded, device=self.device), self.cache)  # [B, T, D]
        self.cache.forget_padding(lengths)
        return hidden[range(len(lengths)), [length - 1 for length in lengths]]

    def _read_chosen(self) -> Tensor:
        """Add the tokens chosen last to the cache; return their hidden states, [B, D]."""
        if not self.cached:
            return self.model.output.weight.new_empty(0, self.model.config.d_model)
        chosen = torch.tensor([self.sequences[row][-1] for row in self.cached], device=self.device)
        return self.read_token(chosen, self.cache)

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


def _draws(prompt: Sequence[int], count: int, seed: int) -> Tensor:
    """Return a prompt's own random numbers, float64 [count], uniform in [0, 1), drawn on CPU on every machine."""
    digest = hashlib.blake2b(repr((seed, list(prompt))).encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest))
    return torch.rand(count, generator=generator, dtype=torch.float64)
