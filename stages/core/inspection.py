"""Look inside a model while it reads: what each token attends to, what it expects next, where its tokens lie.

Shapes: T tokens, D d_model, L layers, N heads, V vocabulary size, K likely tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from stages.core.transformer import Transformer


class Inspection(NamedTuple):
    """What happened at each token of a text, on the CPU."""

    attention: Tensor
    """float32 [L, N, T, T]: how much the token of a row attends to the token of a column."""
    likely_ids: Tensor
    """int64 [T, K]: the most likely next tokens, the likeliest first."""
    likely_probabilities: Tensor
    """float32 [T, K]"""
    target_probabilities: Tensor
    """float32 [T]: what the true next token was given."""


@torch.inference_mode()
def inspect(network: Transformer, token_ids: Sequence[int], likely: int) -> Inspection:
    """Read a text whose next tokens are known.

    Args:
        network: in evaluation mode.
        token_ids: at most context_length tokens to read, and the one after them.
        likely: K, at most the vocabulary's size.
    """
    device = network.output.weight.device
    input_ids = torch.tensor([token_ids[:-1]], device=device)  # [1, T]
    targets = torch.tensor(token_ids[1:], device=device)  # [T]
    attention = torch.stack([weights[0] for weights in network.attention_weights(input_ids)])  # [L, N, T, T]
    probabilities = network(input_ids)[0].float().softmax(dim=-1)  # [T, V]
    likely_probabilities, likely_ids = probabilities.topk(min(likely, probabilities.shape[-1]), dim=-1)
    target_probabilities = probabilities.gather(-1, targets[:, None])[:, 0]
    return Inspection(attention.float().cpu(), likely_ids.cpu(), likely_probabilities.cpu(), target_probabilities.cpu())


@torch.inference_mode()
def log_probabilities(network: Transformer, token_ids: Sequence[int], batch_size: int = 32) -> Tensor:
    """Return the log-probability of each token but the first after those before it, in nats, float32 [T - 1] on the CPU.

    Each depends on at most context_length tokens before it, as in generation.

    Args:
        network: in evaluation mode.
        token_ids: T of them, at least two.
        batch_size: windows that are read at once where the text is longer than the context.
    """
    device, window = network.output.weight.device, network.config.context_length
    tokens = torch.tensor(token_ids, device=device)  # [T]
    scores = [_target_log_probabilities(network(tokens[None, :-1][:, :window])[0], tokens[1 : window + 1])]
    if len(tokens) > window + 1:
        windows = tokens[1:-1].unfold(0, window, 1)  # [T - 1 - window, window]
        targets = tokens[window + 1 :]
        for inputs, batch_targets in zip(windows.split(batch_size), targets.split(batch_size), strict=True):
            last = network.output(network.hidden_states(inputs)[:, -1])  # [B, V]
            scores.append(_target_log_probabilities(last, batch_targets))
    return torch.cat(scores).cpu()


def _target_log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Map [B, V] and [B] to [B]."""
    return logits.float().log_softmax(dim=-1).gather(-1, targets[:, None])[:, 0]


@torch.inference_mode()
def principal_plane(vectors: Tensor) -> Tensor:
    """Return each vector's place in the plane in which they differ most, float64 [V, 2]: principal component analysis.

    The sign of a component is free: here its largest entry is positive, so that the same vectors give the same picture.

    Args:
        vectors: [V, D].
    """
    centred = vectors.cpu().double()
    centred = centred - centred.mean(dim=0)
    _, components = torch.linalg.eigh(centred.T @ centred)  # [D, D], in columns, the largest variance last
    plane = components.flip(-1)[:, :2]  # [D, 2]
    largest = plane.gather(0, plane.abs().argmax(dim=0, keepdim=True))  # [1, 2]
    places = centred @ (plane * largest.sign())  # [V, D] @ [D, 2]
    return torch.nn.functional.pad(places, (0, 2 - places.shape[1]))  # one dimension lies on a line


def spread(count: int, most: int) -> list[int]:
    """Choose at most ``most`` of the numbers 0 to count - 1, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / max(1, most - 1)) for index in range(most)]
