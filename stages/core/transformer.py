"""A decoder-only transformer, from scratch: configuration, positions, attention, feed-forward, block, model.

Each part stands before what uses it. Shapes are written as

    B  batch            N  heads (queries)       L  layers
    T  tokens           K  heads (keys, values)  V  vocabulary size
    D  d_model          H  head_dim

What a machine computes fastest is in ``kernels``; generation's cache of keys and values is in ``kv_cache``.

The smallest configuration (one layer, one head, no norm, no feed-forward, no output projection) is the textbook's
masked self-attention; the largest ones are GPT-2 (Radford et al. 2019) and LLaMA (Touvron et al. 2023).
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.core.kernels import Dropout, attend, rms_norm, squared_relu, to_attention_dtype
from stages.core.windows import ContextParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stages.core.kernels import Attend, Definition

# ---------------------------------------------------------------------------------------------------- configuration


class ModelParams(ContextParams, extra="forbid"):
    """The section ``model`` of params.yaml: the network's shape, without the vocabulary.

    Raises:
        pydantic.ValidationError: a value is out of range, or two values contradict each other.
    """

    d_model: int = pydantic.Field(ge=1, le=2**16)
    """Numbers that stand for one token between the layers."""
    n_layers: int = pydantic.Field(ge=1, le=1024)
    """Blocks, one after the other."""
    n_heads: int = pydantic.Field(ge=1, le=1024)
    """Attention heads of a block; each works on d_model / n_heads numbers."""
    n_kv_heads: int | None = pydantic.Field(ge=1, le=1024)
    """Heads of keys and values, each shared by n_heads / n_kv_heads query heads; null: as many as n_heads."""
    feed_forward: Literal["none", "gelu", "gelu_tanh", "relu2", "swiglu"]
    """What follows attention in a block: nothing, two layers with a GELU or a squared ReLU between, or a gated SwiGLU."""
    d_ff: int | None = pydantic.Field(ge=1, le=2**18)
    """The feed-forward's inner width; null: 4 d_model."""
    norm: Literal["none", "layer", "rms"]
    """The normalisation before attention, before the feed-forward and before the output layer."""
    norm_eps: float = pydantic.Field(gt=0, lt=1)
    """What a norm adds to the mean square or variance, so that it never divides by zero."""
    positions: Literal["sinusoidal", "learned", "rotary"]
    """How a token's place is told: a fixed or a learned vector that is added, or a rotation of queries and keys."""
    rope_theta: float = pydantic.Field(gt=1, le=1e12)
    """The base of rotary positions: the larger, the slower the slowest pairs rotate."""
    output_projection: bool
    """Whether a linear layer mixes the heads after attention."""
    bias: bool
    """Whether the linear layers and LayerNorms inside the blocks have a bias."""
    output_bias: bool
    """Whether the last layer, to the vocabulary, has a bias."""
    tie_embeddings: bool
    """Whether the last layer's weight is the token embedding."""
    qk_norm: bool
    """Whether the queries and keys of each head are normalised."""
    zero_init_projections: bool
    """Whether the layers that add to the residual stream start at zero."""
    dropout: float = pydantic.Field(ge=0, lt=1)
    """The share of numbers zeroed in training: embeddings, attention weights, each branch of a block."""

    @property
    def head_dim(self) -> int:
        """Numbers of one head."""
        return self.d_model // self.n_heads

    @property
    def key_value_heads(self) -> int:
        """``n_kv_heads`` with null resolved."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def feed_forward_width(self) -> int:
        """``d_ff`` with null resolved."""
        return 4 * self.d_model if self.d_ff is None else self.d_ff

    @pydantic.model_validator(mode="after")
    def _agree(self) -> Self:
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads: found {self.n_heads}, allowed: a divisor of d_model ({self.d_model})")
        if self.n_heads % self.key_value_heads:
            raise ValueError(
                f"n_kv_heads: found {self.n_kv_heads}, allowed: null or a divisor of n_heads ({self.n_heads})"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(
                f"positions: found 'rotary' with {self.head_dim} numbers a head (d_model / n_heads), allowed: an even "
                "number, because rotary positions rotate pairs"
            )
        if self.zero_init_projections and not self.output_projection:
            raise ValueError(
                "zero_init_projections: found true, allowed: false, because output_projection is false: attention without "
                "it adds to the residual stream from the first step"
            )
        if self.d_ff is not None and self.feed_forward == "none":
            raise ValueError(f"d_ff: found {self.d_ff}, allowed: null, because feed_forward is none")
        return self


class TransformerConfig(ModelParams):
    """Everything that a model's shape depends on; saved beside its weights."""

    vocabulary_size: int = pydantic.Field(ge=1, le=2**24)
    """Different tokens, from the vocabulary's file."""
    qk_norm: bool = False
    """A model that was saved without this key has no such norm."""
    zero_init_projections: bool = False
    """A model that was saved without this key has its weights already."""
    norm_eps: float = 1e-5
    """What a model that was saved without this key was trained with."""
    rope_theta: float = 10000.0
    """What a model that was saved without this key was trained with."""


# -------------------------------------------------------------------------------------------------------- positions


def sinusoidal_positions(context_length: int, d_model: int) -> Tensor:
    """Return the fixed position vectors, [context_length, D], that are added to the embeddings.

    PE(p, 2i) = sin(p / 10000^(2i/D)) and PE(p, 2i+1) = cos(p / 10000^(2i/D)): Vaswani et al. 2017, section 3.5. An odd
    D ends with a sine.
    """
    even = torch.arange(0, d_model, 2, dtype=torch.float64)
    angles = torch.arange(context_length, dtype=torch.float64)[:, None] / 10000 ** (even / d_model)
    table = torch.empty(context_length, d_model)
    table[:, 0::2] = angles.sin()
    table[:, 1::2] = angles.cos()[:, : d_model // 2]
    return table


def rotary_positions(context_length: int, head_dim: int, rope_theta: float) -> Tensor:
    """Return the cosines and signed sines, [2, context_length, H], by which each position rotates its pairs.

    Pair i is rotated by the angle p / rope_theta^(2i/H): Su et al. 2021, section 3.2.2. As in LLaMA, number i is paired with
    number i + H/2; the sine is negative for the first of a pair.
    """
    even = torch.arange(0, head_dim, 2, dtype=torch.float64)
    angles = torch.arange(context_length, dtype=torch.float64)[:, None] / rope_theta ** (even / head_dim)
    cosine, sine = angles.cos(), angles.sin()  # [context_length, H/2]
    table = torch.stack((torch.cat((cosine, cosine), dim=-1), torch.cat((-sine, sine), dim=-1)))
    return table.float()


Rotation = tuple[Tensor, Tensor]
"""The cosines and signed sines of some tokens, the same for every head: [1, T, H] each or, where rows differ, [B, 1, 1, H]."""


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the pairs of queries or keys, [B, N, T, H]: (a, b) becomes (a cos - b sin, b cos + a sin)."""
    cosine, sine = rotation
    partners = heads.roll(heads.shape[-1] // 2, dims=-1)
    return (heads * cosine + partners * sine).type_as(heads)


# -------------------------------------------------------------------------------------------------------- attention


def explicit_attention(queries: Tensor, keys: Tensor, values: Tensor, dropout: Dropout) -> tuple[Tensor, Tensor]:
    """Attend step by step: softmax(Q K^T / sqrt(H)) V over the tokens up to each query's own.

    Vaswani et al. 2017, equation 1, with the mask of section 3.2.3; heads of keys and values are shared as in Ainslie
    et al. 2023. ``kernels.fused_attention`` computes the same context and never holds the weights.

    Args:
        queries: [B, N, T, H].
        keys: [B, K, T, H].
        values: [B, K, T, H].
        dropout: acts on the attention weights.

    Returns:
        the context [B, N, T, H] and the attention weights [B, N, T, T]; without dropout a weight's row sums to 1.
    """
    tokens = queries.shape[-2]
    shared_by = queries.shape[1] // keys.shape[1]
    if shared_by > 1:
        keys = keys.repeat_interleave(shared_by, dim=1)  # [B, K, T, H] -> [B, N, T, H]
        values = values.repeat_interleave(shared_by, dim=1)  # [B, K, T, H] -> [B, N, T, H]
    attention_scores = (queries / math.sqrt(queries.shape[-1])) @ keys.transpose(-2, -1)  # [B, N, T, T]
    # Added, where filling a mask would cost another pass over the gradients.
    causal_mask = queries.new_full((tokens, tokens), -math.inf).triu(diagonal=1)
    attention_weights = dropout((attention_scores + causal_mask).softmax(dim=-1))
    return attention_weights @ values, attention_weights


class RMSNorm(nn.RMSNorm):
    """RMSNorm of the last dimension, in the type of numbers of what it reads: Zhang & Sennrich 2019."""

    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to the same shape and type."""
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Masked self-attention with several heads: each token gathers from itself and the tokens before it.

    With ``qk_norm`` queries and keys have a length that is learnt, so that attention scores cannot grow without bound (Henry
    et al. 2020); by RMSNorm over each head, as in Qwen3 (Yang et al. 2025).
    """

    def __init__(self, config: TransformerConfig) -> None:
        """Make the layers: one for queries, keys and values together, and one that mixes the heads if asked for."""
        super().__init__()
        self.head_dim = config.head_dim
        self.n_heads = config.n_heads
        self.n_kv_heads = config.key_value_heads
        self.query_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        width = (config.n_heads + 2 * config.key_value_heads) * config.head_dim
        self.queries_keys_values = nn.Linear(config.d_model, width, bias=config.bias)
        self.projection = (
            nn.Linear(config.d_model, config.d_model, bias=config.bias) if config.output_projection else None
        )

    def forward(self, x: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        """Return what each token gathered, [B, T, D].

        Args:
            x: [B, T, D].
            rotation: by what queries and keys are rotated; None: positions are not rotary.
            attend: computes ``explicit_attention``.
        """
        batch, tokens, _ = x.shape
        qkv = to_attention_dtype(self.queries_keys_values(x), self.dropout)  # [B, T, (N+2K)H]
        heads = qkv.view(batch, tokens, -1, self.head_dim).transpose(1, 2)  # -> [B, T, N+2K, H] -> [B, N+2K, T, H]
        queries, keys, values = heads.split_with_sizes((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=1)
        queries, keys = self.query_norm(queries), self.key_norm(keys)
        if rotation is not None:
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        context = attend(explicit_attention, queries, keys, values, self.dropout)  # [B, N, T, H]
        context = context.transpose(1, 2).reshape(batch, tokens, -1).type_as(x)  # -> [B, T, N, H] -> [B, T, D]
        return context if self.projection is None else self.projection(context)


# ------------------------------------------------------------------------------------------------------ feed-forward


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu2": squared_relu,
}
"""What stands between two layers; GELU (Hendrycks & Gimpel 2016) in its exact form or, as in GPT-2, by tanh."""


class TwoLayerFeedForward(nn.Module):
    """Two linear layers with an activation between, each token on its own: Vaswani et al. 2017, section 3.3."""

    def __init__(self, config: TransformerConfig) -> None:
        """Make the layers, D -> d_ff -> D."""
        super().__init__()
        self.activation = ACTIVATIONS[config.feed_forward]
        self.up = nn.Linear(config.d_model, config.feed_forward_width, bias=config.bias)
        self.down = nn.Linear(config.feed_forward_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        y: Tensor = self.down(self.activation(self.up(x)))
        return y


class SwigluFeedForward(nn.Module):
    """A linear layer gated by another: (SiLU(x W) * x V) W2, Shazeer 2020, equation 6."""

    def __init__(self, config: TransformerConfig) -> None:
        """Make the layers: gate and up D -> d_ff, down d_ff -> D."""
        super().__init__()
        self.gate = nn.Linear(config.d_model, config.feed_forward_width, bias=config.bias)
        self.up = nn.Linear(config.d_model, config.feed_forward_width, bias=config.bias)
        self.down = nn.Linear(config.feed_forward_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        y: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return y


# ------------------------------------------------------------------------------------------------------------ block


def make_norm(config: TransformerConfig) -> nn.Module:
    """Return the normalisation of the last dimension: LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019)."""
    match config.norm:
        case "layer":
            return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)
        case "rms":
            return RMSNorm(config.d_model, eps=config.norm_eps)
        case "none":
            return nn.Identity()


def make_feed_forward(config: TransformerConfig) -> nn.Module | None:
    """Return the feed-forward that the configuration names, if any."""
    match config.feed_forward:
        case "gelu" | "gelu_tanh" | "relu2":
            return TwoLayerFeedForward(config)
        case "swiglu":
            return SwigluFeedForward(config)
        case "none":
            return None


class Block(nn.Module):
    """One layer: attention, then a feed-forward; each normalises its input and is added to it.

    Normalising first is what GPT-2 does (Radford et al. 2019, section 2.3).
    """

    def __init__(self, config: TransformerConfig) -> None:
        """Make the parts that the configuration names."""
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        feed_forward = make_feed_forward(config)
        self.feed_forward_norm = None if feed_forward is None else make_norm(config)
        self.feed_forward = feed_forward
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        """Map [B, T, D] to [B, T, D]; the other arguments are those of ``Attention.forward``."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation, attend))
        if self.feed_forward is not None and self.feed_forward_norm is not None:
            x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return x


# ------------------------------------------------------------------------------------------------------------ model


class Transformer(nn.Module):
    """Token ids in, logits of each next token out."""

    position_table: Tensor
    """[context_length, D] vectors to add, or for rotary positions [2, context_length, H] cosines and sines."""

    def __init__(self, config: TransformerConfig) -> None:
        """Make and initialise the network; the random numbers come from torch's global generator."""
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.d_model)
        match config.positions:
            case "learned":
                self.position_table = nn.Parameter(torch.randn(config.context_length, config.d_model))
            case "sinusoidal":
                table = sinusoidal_positions(config.context_length, config.d_model)
                self.register_buffer("position_table", table, persistent=False)
            case "rotary":
                table = rotary_positions(config.context_length, config.head_dim, config.rope_theta)
                self.register_buffer("position_table", table, persistent=False)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = make_norm(config)
        self.output = nn.Linear(config.d_model, config.vocabulary_size, bias=config.output_bias)
        if config.tie_embeddings:
            self.output.weight = self.embedding.weight
        initialise(self)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits, [B, T, V]: at each place those of the token that follows.

        Args:
            input_ids: int64 [B, T], T at most context_length.

        Raises:
            ValueError: T is more than context_length.
        """
        logits: Tensor = self.output(self.hidden_states(input_ids))
        return logits

    def hidden_states(
        self,
        input_ids: Tensor,
        positions: slice | Tensor | None = None,
        attends: Sequence[Attend] | None = None,
    ) -> Tensor:
        """Return what the output layer reads, [B, T, D].

        Args:
            input_ids: int64 [B, T], T at most context_length.
            positions: the tokens' places, a slice or int64 [T] or, where rows differ, [B, 1]; None: 0 to T - 1.
            attends: for each layer, what computes its attention; None: the fastest way on this device.

        Raises:
            ValueError: there are more tokens than context_length.
        """
        tokens = input_ids.shape[1]
        if tokens > self.config.context_length:
            raise ValueError(f"found {tokens} tokens, allowed: context_length ({self.config.context_length})")
        if positions is None:
            positions = slice(0, tokens)
        x = self.embedding(input_ids)  # [B, T] -> [B, T, D]
        rotation = None
        if self.config.positions == "rotary":
            cosine, sine = self.position_table[:, positions].unsqueeze(-3)
            rotation = cosine, sine
        else:
            x = x + self.position_table[positions]  # [T, D] or, where rows differ, [B, 1, D]
        x = self.dropout(x)
        for block, attend_in_layer in zip(self.blocks, attends or [attend] * self.config.n_layers, strict=True):
            x = block(x, rotation, attend_in_layer)
        hidden: Tensor = self.final_norm(x)
        return hidden

    def attention_weights(self, input_ids: Tensor) -> list[Tensor]:
        """Return for each layer how much each token (second last dimension) attends to which: [B, N, T, T].

        Raises:
            ValueError: T is more than context_length.
        """
        weights: list[Tensor] = []

        def attend_and_keep_weights(
            definition: Definition, queries: Tensor, keys: Tensor, values: Tensor, dropout: Dropout
        ) -> Tensor:
            context, attention_weights = definition(queries, keys, values, dropout)
            weights.append(attention_weights)
            return context

        self.hidden_states(input_ids, attends=[attend_and_keep_weights] * self.config.n_layers)
        return weights


def initialise(model: Transformer) -> None:
    """Draw the first weights.

    Without norms these are torch's own, drawn when the layers were made: the textbook's small model learns with them.
    With norms they are GPT-2's (Radford et al. 2019, section 2.3): small normal weights, no bias, and the layers that add
    to the residual stream smaller the more of them there are. With ``zero_init_projections`` these start at zero, so that
    each block first passes on what it reads (Zhang et al. 2019).
    """
    config = model.config
    deviation = 0.02
    residual_deviation = deviation / math.sqrt(2 * config.n_layers)
    for name, parameter in model.named_parameters():
        adds_to_residual = "projection." in name or "down." in name
        if adds_to_residual and config.zero_init_projections:
            nn.init.zeros_(parameter)
        elif config.norm == "none":
            continue
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif adds_to_residual:
            nn.init.normal_(parameter, std=residual_deviation)
        elif "norm" not in name:
            nn.init.normal_(parameter, std=deviation)
