"""Which public architecture computes the same as a model of this project, and its weights under that architecture's names.

Shapes: D d_model, N heads, K heads of keys and values, H head_dim, F d_ff, V vocabulary size, P context_length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from stages.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from stages.core.transformer import Transformer, TransformerConfig

Twin = Literal["gpt2", "llama", "qwen3", "arcee", "nemotron", "stablelm"]
"""The name that transformers gives the architecture: its ``model_type``."""

Weights = dict[str, "Tensor"]

_LARGEST_ROUNDING = 1e-6


def find_twin(config: TransformerConfig) -> Twin:
    """Return the architecture whose computation is the same.

    Raises:
        UserError: there is none; the message names the parameter in the way, and what would have one.
    """
    if config.norm == "none":
        raise _without_twin("norm", "none", "layer or rms")
    if config.feed_forward == "none":
        raise _without_twin("feed_forward", "none", "any other feed-forward")
    if config.output_bias:
        raise _without_twin("output_bias", "true", "false")
    gated = config.feed_forward == "swiglu"
    if config.qk_norm:
        return _check_qwen3(config)
    if config.positions != "rotary":
        return _check_gpt2(config)
    if config.norm == "layer":
        if not gated:
            return "nemotron"
        if config.bias:
            raise _without_twin("bias", "true with norm layer and swiglu", "false (StableLM), or norm rms (LLaMA)")
        return "stablelm"
    return "llama" if gated else "arcee"


def _check_qwen3(config: TransformerConfig) -> Twin:
    if (config.positions, config.norm, config.feed_forward, config.bias) != ("rotary", "rms", "swiglu", False):
        found = f"true with {config.positions} positions, norm {config.norm}, feed_forward {config.feed_forward}, bias "
        fix = "false, or true with rotary positions, norm rms, feed_forward swiglu and bias false (Qwen3)"
        raise _without_twin("qk_norm", found + str(config.bias).lower(), fix)
    return "qwen3"


def _check_gpt2(config: TransformerConfig) -> Twin:
    if config.feed_forward == "swiglu":
        raise _without_twin("feed_forward", f"swiglu with {config.positions} positions", "gelu (GPT-2), or rotary")
    if config.norm == "rms":
        raise _without_twin("norm", f"rms with {config.positions} positions", "layer (GPT-2), or rotary")
    return "gpt2"


def _without_twin(parameter: str, found: str, fix: str) -> UserError:
    return UserError(
        f"model.{parameter}: found {found}, which no public architecture has; allowed for this export: {fix}; "
        "onnx takes every model"
    )


def twin_weights(network: Transformer, twin: Twin) -> Weights:
    """Return a network's weights as transformers names them in the twin's class, in float32 on the CPU.

    What a network does without and its twin has is written so that it changes nothing: biases of zero, the identity as
    the projection of the heads.
    """
    weights = {name: value.detach().float().cpu() for name, value in network.state_dict().items()}
    weights.setdefault("position_table", network.position_table.detach().float().cpu())
    return {name: value.clone().contiguous() for name, value in _map(network.config, weights, twin).items()}


def weights_of_twin(network: Transformer, twin: Twin, theirs: Weights) -> Weights:
    """Return the weights of a twin's class under our names, the inverse of ``twin_weights``, which it follows backwards.

    Each of our numbers is sent out as its own place in the network, so that what comes out says where each of theirs
    belongs. Sent out as zeros it says what they must be where we have none, such as a bias.

    Args:
        network: of the shape that the weights are for; its own are not used.
        twin: the class.
        theirs: the weights by that class's names, of the shapes that ``twin_weights`` gives.

    Raises:
        ValueError: weights are absent, have another shape, or have a value where the network's shape has none.
    """
    config = network.config
    state = network.state_dict()
    places, first = {}, 1
    for name, value in state.items():
        places[name] = torch.arange(first, first + value.numel(), dtype=torch.float64).view(value.shape)
        first += value.numel()
    constant = {} if "position_table" in state else {"position_table": network.position_table.detach().double().cpu()}
    zeros = {name: torch.zeros_like(value) for name, value in places.items()}
    fixed = _map(config, zeros | constant, twin)
    flat = torch.full((first,), torch.nan)
    mapped = _map(config, places | constant, twin)
    unknown = sorted(set(theirs) - set(mapped))
    if unknown:
        raise ValueError(f"{unknown[0]}: the network of params.yaml has no place for it")
    for name, sent in mapped.items():
        if name not in theirs:
            raise ValueError(f"{name}: absent")
        found = theirs[name].float()
        if found.shape != sent.shape:
            raise ValueError(f"{name}: expected {tuple(sent.shape)}, found {tuple(found.shape)}")
        value, place = found - fixed[name].float(), (sent - fixed[name]).long()
        here = place > 0
        if not here.all() and float(value[~here].abs().max()) > _LARGEST_ROUNDING:
            raise ValueError(f"{name}: has values, where the network of params.yaml has none to take them")
        flat[place[here]] = value[here]
    joined = {name: flat[place.long()] for name, place in places.items()}
    absent = next((name for name, value in joined.items() if value.isnan().any()), None)
    if absent is not None:
        raise ValueError(f"{absent}: not a number, or not among the weights")
    return joined


def _map(config: TransformerConfig, weights: Weights, twin: Twin) -> Weights:
    """Return weights, among them the position_table, under the names of a twin's class."""
    return _gpt2(config, weights) if twin == "gpt2" else _rotary(config, weights, twin)


def split_heads(config: TransformerConfig, joined: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take queries, keys and values, [(N+2K)H, ...], apart: [NH, ...], [KH, ...], [KH, ...]."""
    keys = config.key_value_heads * config.head_dim
    queries, keys_, values = joined.split((config.n_heads * config.head_dim, keys, keys))
    return queries, keys_, values


_ROTARY_NORMS = {
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
}


def _rotary(config: TransformerConfig, weights: Weights, twin: Twin) -> Weights:
    """As the classes of LLaMA's kind name them."""
    mapped = {"model.embed_tokens.weight": weights["embedding.weight"], "lm_head.weight": weights["output.weight"]}
    for name, value in _norm(weights, "final_norm", twin).items():
        mapped[f"model.norm.{name}"] = value
    for layer in range(config.n_layers):
        old, new = f"blocks.{layer}", f"model.layers.{layer}"
        for name, value in _linear(weights, f"{old}.attention.queries_keys_values").items():
            for part, rows in zip("qkv", split_heads(config, value), strict=True):
                mapped[f"{new}.self_attn.{part}_proj.{name}"] = rows
        for name, value in _projection(config, weights, old).items():
            mapped[f"{new}.self_attn.o_proj.{name}"] = value
        for part in ("gate", "up", "down"):
            for name, value in _linear(weights, f"{old}.feed_forward.{part}").items():
                mapped[f"{new}.mlp.{part}_proj.{name}"] = value
        for old_norm, new_norm in _ROTARY_NORMS.items():
            for name, value in _norm(weights, f"{old}.{old_norm}", twin).items():
                mapped[f"{new}.{new_norm}.{name}"] = value
    return mapped


def _gpt2(config: TransformerConfig, weights: Weights) -> Weights:
    """As GPT-2's class names them: its layers keep their weights transposed, and every one has a bias."""
    mapped = {
        "transformer.wte.weight": weights["embedding.weight"],
        "transformer.wpe.weight": weights["position_table"],  # [P, D], learned or sinusoidal
        "lm_head.weight": weights["output.weight"],
    }
    for name, value in _norm(weights, "final_norm", "gpt2").items():
        mapped[f"transformer.ln_f.{name}"] = value
    for layer in range(config.n_layers):
        old, new = f"blocks.{layer}", f"transformer.h.{layer}"
        joined = _linear(weights, f"{old}.attention.queries_keys_values")
        shared_by = config.n_heads // config.key_value_heads
        linears = {
            "attn.c_attn": {
                name: torch.cat([rows if part == 0 else _repeat_heads(rows, config.head_dim, shared_by)
                                 for part, rows in enumerate(split_heads(config, value))])
                for name, value in joined.items()
            },
            "attn.c_proj": _projection(config, weights, old),
            "mlp.c_fc": _linear(weights, f"{old}.feed_forward.up"),
            "mlp.c_proj": _linear(weights, f"{old}.feed_forward.down"),
        }  # fmt: skip
        for place, linear in linears.items():
            mapped[f"{new}.{place}.weight"] = linear["weight"].T
            mapped[f"{new}.{place}.bias"] = linear.get("bias", linear["weight"].new_zeros(len(linear["weight"])))
        for old_norm, new_norm in (("attention_norm", "ln_1"), ("feed_forward_norm", "ln_2")):
            for name, value in _norm(weights, f"{old}.{old_norm}", "gpt2").items():
                mapped[f"{new}.{new_norm}.{name}"] = value
    return mapped


def _repeat_heads(rows: Tensor, head_dim: int, times: int) -> Tensor:
    """Repeat keys or values for each query head of its group: [KH, ...] -> [NH, ...]."""
    heads: Tensor = rows.unflatten(0, (-1, head_dim))
    return heads.repeat_interleave(times, dim=0).flatten(0, 1)


def _linear(weights: Weights, name: str) -> Weights:
    """Return the weight and, where there is one, the bias; nothing where there is no such layer."""
    return {kind: weights[f"{name}.{kind}"] for kind in ("weight", "bias") if f"{name}.{kind}" in weights}


def _projection(config: TransformerConfig, weights: Weights, block: str) -> Weights:
    if config.output_projection:
        return _linear(weights, f"{block}.attention.projection")
    identity = {"weight": torch.eye(config.d_model)}
    return identity | ({"bias": torch.zeros(config.d_model)} if config.bias else {})


def _norm(weights: Weights, name: str, twin: Twin) -> Weights:
    norm = _linear(weights, name)
    if norm and twin in ("gpt2", "nemotron", "stablelm"):
        norm.setdefault("bias", torch.zeros_like(norm["weight"]))
    if norm and twin == "nemotron":
        norm["weight"] = norm["weight"] - 1  # its norm multiplies by 1 + weight
    return norm
