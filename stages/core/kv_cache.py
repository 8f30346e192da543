"""The keys and values of tokens already read, so that generation computes each token once.

Shapes: B rows, K heads of keys and values, T new tokens, S tokens to attend to, H head_dim.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from stages.core.kernels import fused_attention

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from stages.core.kernels import Attend, Definition, Dropout


class Places(NamedTuple):
    """Where the new tokens of each row go; every layer uses the same places."""

    positions: slice | Tensor
    """The new tokens' positions: a slice or, where rows differ in length, int64 [B, 1]."""
    rows: Tensor | None
    """int64 [B, 1]: the rows' numbers, where rows differ in length."""
    attention_mask: Tensor | None
    """bool [B, 1, 1, S]: which tokens each row attends to; None: every token up to its own."""
    end: int
    """S: the tokens of the longest row, the new ones included."""


class KeyValueCache:
    """Memory for the keys and values of B rows, taken once: 2 B K capacity H numbers for each layer.

    It does not know how many tokens a row holds: ``places`` is given the lengths. What lies beyond them is overwritten, so
    that right-padded prompts can fill it.
    """

    def __init__(self, n_layers: int, shape: tuple[int, int, int, int], like: Tensor) -> None:
        """Take memory for [B, K, capacity, H] keys and values in each layer, on the device and in the dtype of ``like``."""
        self._capacity = shape[2]
        self._layers = [(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(n_layers)]

    def places(self, lengths: Sequence[int], tokens: int) -> Places:
        """Return where ``tokens`` more tokens of every row go.

        Args:
            lengths: the tokens that each row holds already.
            tokens: T; 1 where rows hold any.

        Raises:
            ValueError: a row would hold more than the capacity, or several tokens are added to a filled cache.
        """
        shortest, longest = min(lengths), max(lengths)
        end = longest + tokens
        if end > self._capacity:
            raise ValueError(f"found {longest} + {tokens} tokens, allowed: {self._capacity}")
        if longest and tokens > 1:
            raise ValueError(f"found {tokens} tokens for a filled cache, allowed: 1")
        if shortest == longest:
            return Places(slice(longest, end), None, None, end)
        device = self._layers[0][0].device
        positions = torch.tensor(lengths, device=device)[:, None]  # [B, 1]
        attention_mask = torch.arange(end, device=device) <= positions  # [B, S]
        return Places(positions, torch.arange(len(lengths), device=device)[:, None], attention_mask[:, None, None], end)

    def append(self, layer: int, keys: Tensor, values: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values, [B, K, T, H]; return all of that layer's, [B, K, S, H]."""
        stored_keys, stored_values = self._layers[layer]
        _write(stored_keys, keys, places)
        _write(stored_values, values, places)
        return stored_keys.narrow(2, 0, places.end), stored_values.narrow(2, 0, places.end)

    def attends(self, places: Places) -> list[Attend]:
        """Return for each layer what appends its new tokens and lets them attend to all that is stored."""
        return [partial(self._attend, layer, places) for layer in range(len(self._layers))]

    def _attend(
        self,
        layer: int,
        places: Places,
        _definition: Definition,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        _dropout: Dropout,
    ) -> Tensor:
        keys, values = self.append(layer, keys, values, places)
        return fused_attention(queries, keys.type_as(queries), values.type_as(queries), places.attention_mask)

    def drop(self, row: int) -> None:
        """Take one row out; the last row moves to its place, so that no memory is taken."""
        last = len(self._layers[0][0]) - 1
        for memory in itertools.chain(*self._layers):
            memory[row] = memory[last]
        self._layers = [(keys[:last], values[:last]) for keys, values in self._layers]


def _write(memory: Tensor, new: Tensor, places: Places) -> None:
    """Write [B, K, T, H] into [B, K, capacity, H]."""
    if places.rows is None:
        memory.narrow(2, places.end - new.shape[2], new.shape[2]).copy_(new)
    else:
        memory[places.rows, :, places.positions] = new.transpose(1, 2).type_as(memory)  # -> [B, 1, K, H]
