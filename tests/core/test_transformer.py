"""The network against its formulas, its invariants and two outside implementations."""

import ast
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.activations import ACT2FN

from stages.core import kernels, transformer
from stages.core.kernels import (
    FEW_TOKENS,
    Dropout,
    attend,
    drop,
    fused_attention,
    random_words,
    rms_norm,
    seed_dropout,
    squared_relu,
)
from stages.core.kv_cache import KeyValueCache
from stages.core.transformer import (
    Attention,
    Transformer,
    TransformerConfig,
    TwoLayerFeedForward,
    explicit_attention,
    rotary_positions,
    rotate,
    sinusoidal_positions,
)

TOY: dict[str, Any] = {
    "vocabulary_size": 5,
    "context_length": 6,
    "d_model": 2,
    "n_layers": 1,
    "n_heads": 1,
    "n_kv_heads": None,
    "feed_forward": "none",
    "d_ff": None,
    "norm": "none",
    "positions": "sinusoidal",
    "output_projection": False,
    "bias": False,
    "output_bias": True,
    "tie_embeddings": False,
    "dropout": 0.0,
}
SMALL: dict[str, Any] = TOY | {"vocabulary_size": 11, "context_length": 9, "d_model": 16, "n_layers": 2, "n_heads": 4}
GPT2: dict[str, Any] = SMALL | {
    "feed_forward": "gelu",
    "norm": "layer",
    "positions": "learned",
    "output_projection": True,
    "bias": True,
    "output_bias": False,
    "tie_embeddings": True,
}
LLAMA: dict[str, Any] = SMALL | {
    "feed_forward": "swiglu",
    "d_ff": 24,
    "norm": "rms",
    "positions": "rotary",
    "output_projection": True,
    "output_bias": False,
}
RECIPE: dict[str, Any] = {"qk_norm": True, "feed_forward": "relu2"}
QUERIES_KEYS_VALUES = "blocks.0.attention.queries_keys_values.weight"
VARIANTS = [
    SMALL | {"positions": positions, "norm": norm, "feed_forward": feed_forward, "n_kv_heads": n_kv_heads} | layers
    for positions, norm, feed_forward, n_kv_heads, layers in itertools.product(
        ("sinusoidal", "learned", "rotary"),
        ("none", "layer", "rms"),
        ("none", "gelu", "swiglu"),
        (None, 2, 1),
        (
            {"output_projection": False, "bias": False, "output_bias": True, "tie_embeddings": False},
            {"output_projection": True, "bias": True, "output_bias": False, "tie_embeddings": True},
        ),
    )
]


VARIANTS += [
    values | RECIPE | {"n_kv_heads": n_kv_heads}
    for values, n_kv_heads in itertools.product((SMALL, GPT2, LLAMA), (None, 2))
]


def make(values: dict[str, Any], **changes: object) -> Transformer:
    """Return a seeded model in evaluation mode."""
    torch.manual_seed(0)
    return Transformer(TransformerConfig.model_validate(values | changes)).eval()


def some_ids(model: Transformer, batch: int = 3, tokens: int | None = None) -> Tensor:
    """Return random token ids, by default as many as fit."""
    return torch.randint(model.config.vocabulary_size, (batch, tokens or model.config.context_length))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"d_model": 0}, ("d_model", "0")),
        ({"context_length": 1}, ("context_length", "1")),
        ({"dropout": 1.0}, ("dropout", "1")),
        ({"n_heads": 3}, ("n_heads: found 3", "divisor of d_model (16)")),
        ({"n_kv_heads": 3}, ("n_kv_heads: found 3", "divisor of n_heads (4)")),
        ({"positions": "rotary", "n_heads": 16}, ("'rotary' with 1 numbers", "even")),
        ({"zero_init_projections": True}, ("zero_init_projections: found true", "output_projection is false")),
        ({"d_ff": 8}, ("d_ff: found 8", "null")),
        ({"positions": "alibi"}, ("positions", "'sinusoidal', 'learned' or 'rotary'")),
        ({"d_ff": "8"}, ("d_ff", "integer")),
        ({"n_layers": 10**6}, ("n_layers", "less than or equal to 1024")),
        *(
            ({size: 10**19}, (size, "expected at most"))
            for size in ("context_length", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "vocabulary_size")
        ),
    ],
)
def test_wrong_parameters_are_named(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(pydantic.ValidationError) as error:
        TransformerConfig.model_validate(SMALL | changes)
    assert all(part in str(error.value) for part in parts)


def test_the_lesson_knows_no_machine_and_no_cache() -> None:
    tree = ast.parse(inspect.getsource(transformer))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"device", "dtype", "cache", "cached", "autocast"}
    assert not attributes & {"device", "dtype", "is_cuda", "cuda", "cpu", "is_grad_enabled", "is_compiling", "cache"}


@pytest.mark.parametrize("d_model", [1, 2, 7, 16])
def test_sinusoidal_positions_follow_the_formula(d_model: int) -> None:
    table = sinusoidal_positions(50, d_model)
    for position, column in itertools.product(range(50), range(d_model)):
        angle = position / 10000 ** (2 * (column // 2) / d_model)
        expected = math.cos(angle) if column % 2 else math.sin(angle)
        assert table[position, column].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rope_theta", [10000.0, 500.0])
def test_rotary_positions_turn_pairs_by_the_formula(rope_theta: float) -> None:
    head_dim = 6
    heads = torch.randn(2, 3, 5, head_dim)
    cosine, sine = rotary_positions(5, head_dim, rope_theta)
    turned = rotate(heads, (cosine, sine))
    for position, pair in itertools.product(range(5), range(head_dim // 2)):
        turn = torch.polar(torch.tensor(1.0), torch.tensor(position / rope_theta ** (2 * pair / head_dim)))
        before = torch.complex(heads[:, :, position, pair], heads[:, :, position, pair + head_dim // 2])
        after = torch.complex(turned[:, :, position, pair], turned[:, :, position, pair + head_dim // 2])
        torch.testing.assert_close(after, before * turn)


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_fused_attention_equals_explicit_with_gradients(n_kv_heads: int) -> None:
    queries = torch.randn(2, 4, 7, 6, requires_grad=True)
    keys, values = torch.randn(2, 2, n_kv_heads, 7, 6, requires_grad=True)
    context, weights = explicit_attention(queries, keys, values, Dropout(0.0))
    fused = fused_attention(queries, keys, values)
    torch.testing.assert_close(fused, context)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 7))
    toward = torch.randn_like(context)
    torch.testing.assert_close(
        torch.autograd.grad(fused, (queries, keys, values), toward),
        torch.autograd.grad(context, (queries, keys, values), toward),
    )


@pytest.mark.parametrize("computed", [True, False])
@pytest.mark.parametrize("tokens", [9, FEW_TOKENS, FEW_TOKENS + 1])
@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_attention_in_bfloat16_equals_float32_with_gradients(
    n_kv_heads: int, tokens: int, *, computed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = LLAMA | {"d_model": 64, "n_kv_heads": n_kv_heads, "context_length": tokens}
    attention = Attention(TransformerConfig.model_validate(values))
    cosine, sine = rotary_positions(tokens, 16, 10000.0)
    x, toward = torch.randn(2, 2, tokens, 64)
    inputs = [x.requires_grad_(), *attention.parameters()]
    exact = attention(x, (cosine, sine), attend)
    explicit = Mock(wraps=explicit_attention)
    monkeypatch.setattr(transformer, "explicit_attention", explicit)
    monkeypatch.setattr(kernels, "CPU_COMPUTES_BFLOAT16", computed)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention(x, (cosine, sine), attend)
    assert explicit.called == (computed and tokens <= FEW_TOKENS)
    pairs = zip(
        [exact, *torch.autograd.grad(exact, inputs, toward)],
        [mixed, *torch.autograd.grad(mixed, inputs, toward.bfloat16())],
        strict=True,
    )
    for expected, found in pairs:
        assert (found - expected).norm() < 0.015 * expected.norm()  # bfloat16 has 8 bits, 0.4%


@pytest.mark.parametrize("tokens", [9, FEW_TOKENS + 1])
@pytest.mark.parametrize("bfloat16", [True, False])
def test_a_cpu_attends_explicitly_where_it_trains_with_dropout(
    tokens: int, *, bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = Attention(TransformerConfig.model_validate(GPT2 | {"dropout": 0.1, "context_length": tokens}))
    explicit = Mock(wraps=explicit_attention)
    monkeypatch.setattr(transformer, "explicit_attention", explicit)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        attention(torch.randn(1, tokens, 16), None, attend).sum().backward()
    assert explicit.called


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@given(dropout_p=st.floats(0, 1, exclude_max=True), numbers=st.integers(0, 50), seed=st.integers(0, 1 << 32))
def test_dropout_zeroes_or_scales_each_number_and_its_gradient_alike(
    dtype: torch.dtype, dropout_p: float, numbers: int, seed: int
) -> None:
    x = torch.ones(3, numbers, dtype=dtype, requires_grad=True)
    y = drop(x, dropout_p, random_words(torch.tensor([seed]), torch.arange(1, 4))[0])
    kept = y != 0
    # The probability is one of 65,536; all but one of these at most are zeroed.
    scale = max(1 - dropout_p, 1 / 65536)
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / scale), rtol=0.01 + 1 / 65536 / scale, atol=0)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(gradient, y)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1, 0.5, 0.999])
def test_dropout_zeroes_its_share_and_keeps_the_mean(dropout_p: float) -> None:
    drawn = drop(torch.ones(1000, 1001), dropout_p, torch.arange(1000))
    assert (drawn == 0).float().mean() == pytest.approx(dropout_p, abs=0.002)
    assert drawn.mean() == pytest.approx(1, abs=0.1 if dropout_p > 0.9 else 0.005)
    # Neighbours are drawn apart: both are zero as often as chance has it.
    # So are rows of neighbouring seeds, and a row's numbers a word or two apart.
    pairs = [(drawn[:, step:], drawn[:, :-step]) for step in (1, 2, 3, 4, 8)]
    pairs += [(drawn[step:], drawn[:-step]) for step in (1, 2, 16)]
    for first, second in pairs:
        assert ((first == 0) & (second == 0)).float().mean() == pytest.approx(dropout_p**2, abs=0.003)


def test_dropout_of_explicit_attention_zeroes_its_share_of_the_weights() -> None:
    queries, keys, values = torch.randn(3, 8, 2, 30, 6)
    context, weights = explicit_attention(queries, keys, values, Dropout(0.25))
    _, all_weights = explicit_attention(queries, keys, values, Dropout(0.0))
    kept = weights != 0
    torch.testing.assert_close(weights[kept], all_weights[kept] / 0.75)
    assert kept.sum() / (all_weights != 0).sum() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(context, weights @ values)


def test_attention_weights_of_every_layer() -> None:
    model = make(LLAMA, n_kv_heads=2)
    weights = model.attention_weights(some_ids(model))
    assert [layer.shape for layer in weights] == [(3, 4, 9, 9)] * 2
    for layer in weights:
        torch.testing.assert_close(layer.sum(-1), torch.ones(3, 4, 9))
        assert layer.triu(diagonal=1).count_nonzero() == 0


def test_toy_is_the_textbooks_attention() -> None:
    model = make(TOY)
    ids = torch.tensor([[0, 1, 2, 4, 3], [2, 1, 0, 4, 3]])
    x = model.embedding.weight[ids] + sinusoidal_positions(5, 2)
    queries, keys, values = (x @ weight.T for weight in model.state_dict()[QUERIES_KEYS_VALUES].chunk(3))
    scores = queries @ keys.transpose(1, 2) / math.sqrt(2)
    weights = (scores + torch.full((5, 5), -math.inf).triu(1)).softmax(-1)
    expected = (x + weights @ values) @ model.output.weight.T + model.output.bias
    torch.testing.assert_close(model(ids), expected)
    torch.testing.assert_close(model.attention_weights(ids)[0][:, 0], weights)
    assert sorted(model.state_dict()) == [
        QUERIES_KEYS_VALUES,
        "embedding.weight",
        "output.bias",
        "output.weight",
    ]


def test_logits_equal_gpt2() -> None:
    model = make(GPT2)
    reference = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=11,
            n_positions=9,
            n_embd=16,
            n_layer=2,
            n_head=4,
            activation_function="gelu",
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
    )
    theirs = {name: torch.randn_like(weight) / 4 for name, weight in reference.transformer.state_dict().items()}
    reference.transformer.load_state_dict(theirs)
    ours = {"embedding.weight": theirs["wte.weight"], "position_table": theirs["wpe.weight"]}
    ours |= {"output.weight": theirs["wte.weight"]}
    ours |= {f"final_norm.{kind}": theirs[f"ln_f.{kind}"] for kind in ("weight", "bias")}
    names = {
        "ln_1": "attention_norm",
        "attn.c_attn": "attention.queries_keys_values",
        "attn.c_proj": "attention.projection",
        "ln_2": "feed_forward_norm",
        "mlp.c_fc": "feed_forward.up",
        "mlp.c_proj": "feed_forward.down",
    }
    for layer, (their_name, our_name), kind in itertools.product(range(2), names.items(), ("weight", "bias")):
        weight = theirs[f"h.{layer}.{their_name}.{kind}"]
        ours[f"blocks.{layer}.{our_name}.{kind}"] = weight.t()  # GPT-2 stores a linear layer's weight transposed
    model.load_state_dict(ours)
    ids = some_ids(model)
    torch.testing.assert_close(model(ids), reference(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("n_kv_heads", [None, 2, 1])
def test_logits_and_gradients_equal_llama_and_with_qk_norm_qwen3(n_kv_heads: int | None, *, qk_norm: bool) -> None:
    model = make(LLAMA, n_kv_heads=n_kv_heads, qk_norm=qk_norm, norm_eps=1e-2, rope_theta=500.0)
    shape: dict[str, Any] = {
        "vocab_size": 11,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": n_kv_heads or 4,
        "max_position_embeddings": 9,
        "rms_norm_eps": 1e-2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    }
    reference: Any = (
        Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=4)) if qk_norm else LlamaForCausalLM(LlamaConfig(**shape))
    )
    theirs = {name: torch.randn_like(weight) / 4 for name, weight in reference.state_dict().items()}
    reference.load_state_dict(theirs)
    ours = {
        "embedding.weight": theirs["model.embed_tokens.weight"],
        "final_norm.weight": theirs["model.norm.weight"],
        "output.weight": theirs["lm_head.weight"],
    }
    names = {
        "input_layernorm": "attention_norm",
        "self_attn.o_proj": "attention.projection",
        **({"self_attn.q_norm": "attention.query_norm", "self_attn.k_norm": "attention.key_norm"} if qk_norm else {}),
        "post_attention_layernorm": "feed_forward_norm",
        "mlp.gate_proj": "feed_forward.gate",
        "mlp.up_proj": "feed_forward.up",
        "mlp.down_proj": "feed_forward.down",
    }
    for layer in range(2):
        for their_name, our_name in names.items():
            ours[f"blocks.{layer}.{our_name}.weight"] = theirs[f"model.layers.{layer}.{their_name}.weight"]
        ours[f"blocks.{layer}.attention.queries_keys_values.weight"] = torch.cat(
            [theirs[f"model.layers.{layer}.self_attn.{kind}_proj.weight"] for kind in "qkv"]
        )
    model.load_state_dict(ours)
    ids = some_ids(model)
    torch.testing.assert_close(model(ids), reference(ids).logits, atol=1e-5, rtol=1e-5)
    for logits in (model(ids), reference(ids).logits):
        logits.square().mean().backward()
    gradients = {name: weight.grad for name, weight in reference.named_parameters()}
    found = {name: weight.grad for name, weight in model.named_parameters()}
    expected = {
        "embedding.weight": gradients["model.embed_tokens.weight"],
        "final_norm.weight": gradients["model.norm.weight"],
        "output.weight": gradients["lm_head.weight"],
    }
    for layer in range(2):
        theirs_of_layer, ours_of_layer = f"model.layers.{layer}", f"blocks.{layer}"
        for their_name, our_name in names.items():
            expected[f"{ours_of_layer}.{our_name}.weight"] = gradients[f"{theirs_of_layer}.{their_name}.weight"]
        parts = [gradients[f"{theirs_of_layer}.self_attn.{part}_proj.weight"] for part in "qkv"]
        expected[f"{ours_of_layer}.attention.queries_keys_values.weight"] = torch.cat(parts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 16), (2, 4, 3, 8)])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e4])
def test_rms_norm_in_few_passes_equals_its_definition_with_gradients(shape: tuple[int, ...], scale: float) -> None:
    x, weight = torch.randn(shape) * scale, torch.randn(shape[-1])
    toward = torch.randn(shape)

    def with_gradients(norm: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [value.detach().to(dtype).requires_grad_() for value in (x, weight)]
        y = norm(*inputs)
        return [y, *torch.autograd.grad(y, inputs, toward.to(dtype))]

    found = with_gradients(lambda x, weight: rms_norm(x, weight, 1e-5), torch.float32)
    expected = with_gradients(
        lambda x, weight: weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt(), torch.double
    )
    assert "RootMeanSquare" in type(found[0].grad_fn).__name__
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5 * float(exact.detach().abs().max()))
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), found[0].detach())


def test_squared_relu_equals_that_of_transformers() -> None:
    x = torch.randn(50, requires_grad=True)
    ours, theirs = squared_relu(x), ACT2FN["relu2"](x)
    assert "SquaredRelu" in type(ours.grad_fn).__name__
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(squared_relu(x.detach()), theirs)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x) for y in (ours, theirs)))
    feed_forward = TwoLayerFeedForward(make(GPT2, feed_forward="relu2").config)
    y = torch.randn(2, 3, 16)
    torch.testing.assert_close(feed_forward(y), feed_forward.down(feed_forward.up(y).clamp(min=0) ** 2))


@pytest.mark.parametrize("values", [GPT2, LLAMA, SMALL | {"output_projection": True}])
def test_blocks_whose_projections_start_at_zero_pass_on_what_they_read(values: dict[str, Any]) -> None:
    model = make(values, zero_init_projections=True)
    x = torch.randn(2, 9, 16)
    cosine, sine = rotary_positions(9, 4, 10000.0)
    for block in model.blocks:
        assert torch.equal(block(x, (cosine, sine) if values["positions"] == "rotary" else None, attend), x)
    zero = {name for name, weight in model.named_parameters() if weight.ndim == 2 and not weight.count_nonzero()}
    assert {name.split(".", 2)[2] for name in zero} == {
        "attention.projection.weight",
        *(["feed_forward.down.weight"] if values["feed_forward"] != "none" else []),
    }
    model(some_ids(model)).square().mean().backward()
    for name in zero:
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert gradient.count_nonzero()


def test_no_later_token_changes_an_earlier_logit() -> None:
    for values in VARIANTS:
        model = make(values)
        ids = some_ids(model)
        changed = ids.clone()
        changed[:, 5:] = (changed[:, 5:] + 1) % model.config.vocabulary_size
        before, after = model(ids), model(changed)
        torch.testing.assert_close(after[:, :5], before[:, :5])
        assert not torch.equal(after[:, 5:], before[:, 5:])


def test_padding_at_the_right_changes_no_logit() -> None:
    for values in VARIANTS:
        model = make(values)
        ids = some_ids(model, tokens=5)
        padded = torch.nn.functional.pad(ids, (0, 4), value=7)
        torch.testing.assert_close(model(padded)[:, :5], model(ids))


def test_more_tokens_than_the_context_are_refused() -> None:
    model = make(SMALL)
    with pytest.raises(ValueError, match=r"found 10 tokens, allowed: context_length \(9\)"):
        model(some_ids(model, tokens=10))


def test_bfloat16_autocast_is_close_to_float32() -> None:
    for values in (GPT2, LLAMA, GPT2 | RECIPE, LLAMA | RECIPE):
        model = make(values | {"d_model": 64, "n_kv_heads": 2})
        ids = some_ids(model)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids)
        torch.testing.assert_close(logits.float(), model(ids), atol=0.02, rtol=0.02)
        gradients = torch.autograd.grad(logits.float().logsumexp(-1).sum(), list(model.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_bfloat16_weights_give_the_logits_of_float32_also_with_a_cache() -> None:
    for values in (GPT2, LLAMA, GPT2 | RECIPE, LLAMA | RECIPE):
        model = make(values | {"d_model": 64, "n_kv_heads": 2})
        ids = some_ids(model)
        expected = model(ids)
        model.bfloat16()
        cache = KeyValueCache(2, (len(ids), 2, 9, 16), model.output.weight)
        hidden = []
        for start, part in ((0, ids[:, :-1]), (8, ids[:, -1:])):
            places = cache.places([start] * len(ids), part.shape[1])
            hidden.append(model.hidden_states(part, places.positions, cache.attends(places)))
        for logits in (model(ids), model.output(torch.cat(hidden, dim=1))):
            assert logits.dtype == torch.bfloat16
            torch.testing.assert_close(logits.float(), expected, atol=0.03, rtol=0.03)


def test_first_weights() -> None:
    values = GPT2 | {"vocabulary_size": 500, "context_length": 200, "d_model": 128, "n_layers": 2}
    for name, weight in make(values).named_parameters():
        if name.endswith("bias"):
            assert weight.count_nonzero() == 0
        elif "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight))
        else:
            residual = name.endswith(("projection.weight", "down.weight"))
            assert weight.std().item() == pytest.approx(0.01 if residual else 0.02, rel=0.03)
    textbook = make(TOY, vocabulary_size=2000, d_model=64)
    assert textbook.embedding.weight.std().item() == pytest.approx(1, rel=0.03)
    for part in textbook.state_dict()[QUERIES_KEYS_VALUES].chunk(3):
        assert part.abs().max().item() == pytest.approx(1 / 8, rel=0.01)
        assert part.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.03)


def test_tied_embeddings_are_one_parameter() -> None:
    model = make(GPT2)
    assert model.output.weight is model.embedding.weight
    assert make(GPT2, tie_embeddings=False).output.weight is not model.embedding.weight


def test_random_words_are_splitmix64() -> None:
    mask = (1 << 64) - 1

    def signed(word: int) -> int:
        return ((word + (1 << 63)) & mask) - (1 << 63)

    for seed in (0, 1, -5, 1 << 62):
        state, expected = seed, []
        for _ in range(5):
            state = (state + 0x9E3779B97F4A7C15) & mask
            word = state ^ (signed(state) >> 30) & mask
            word = word * 0xBF58476D1CE4E5B9 & mask
            word ^= (signed(word) >> 27) & mask
            word = word * 0x94D049BB133111EB & mask
            expected.append(signed(word + (signed(word) >> 32)))
        assert random_words(torch.tensor([seed]), torch.arange(1, 6))[0].tolist() == expected


@pytest.mark.parametrize("bits", range(0, 64, 7))
def test_random_bits_are_even_and_independent(bits: int) -> None:
    words = random_words(torch.arange(50), torch.arange(1, 2001)) >> bits & 127
    counts = words.flatten().bincount(minlength=128).double()
    expected = words.numel() / min(128, 1 << (64 - bits))
    # 100,000 draws over at most 128 values: the sum is about the number of values, give or take 16 for one deviation.
    chi_square = ((counts[counts > 0] - expected) ** 2 / expected).sum().item()
    assert chi_square < 128 + 6 * 16


def test_a_row_drops_the_same_in_any_batch() -> None:
    model = make(GPT2 | {"dropout": 0.3}).train()
    ids, seeds = some_ids(model, batch=6), torch.arange(6)

    def hidden(rows: slice) -> Tensor:
        seed_dropout(model, seeds[rows])
        return model.hidden_states(ids[rows])

    whole = hidden(slice(0, 6))
    seed_dropout(model, seeds)
    torch.testing.assert_close(model.hidden_states(ids[:, :5]), whole[:, :5])  # without what would be padding
    for size in (1, 2, 3):
        parts = [hidden(slice(first, first + size)) for first in range(0, 6, size)]
        torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(hidden(slice(0, 6)), whole)
    seeds = seeds + 1
    assert not torch.allclose(hidden(slice(0, 6)), whole)


def test_a_compiled_network_drops_what_a_plain_one_drops() -> None:
    model = make(GPT2 | RECIPE | {"dropout": 0.3, "n_layers": 1}).train()
    counters.clear()
    compiled = torch.compile(model.hidden_states, fullgraph=True, dynamic=False)
    ids = some_ids(model)
    for seed in (1, 2):
        seed_dropout(model, torch.arange(3) * seed)
        plain, fast = model.hidden_states(ids), compiled(ids)
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
        gradients = [torch.autograd.grad(hidden.square().sum(), model.embedding.weight) for hidden in (plain, fast)]
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1


def test_every_dropout_of_the_network_draws_apart() -> None:
    model = make(GPT2 | {"dropout": 0.5}).train()
    seed_dropout(model, torch.arange(3))
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    assert len(layers) == 1 + 2 * 2  # the embeddings; attention weights and branches of each block
    seeds = torch.stack([layer.row_seeds for layer in layers if layer.row_seeds is not None])
    assert len(seeds.unique()) == 3 * len(layers)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_dropout_of_attention_only_acts_in_training(*, bfloat16: bool) -> None:
    attention = Attention(TransformerConfig.model_validate(GPT2 | {"dropout": 0.5}))
    x = torch.randn(2, 9, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        assert not torch.equal(attention(x, None, attend), attention(x, None, attend))
        attention.eval()
        assert torch.equal(attention(x, None, attend), attention(x, None, attend))


def test_dropout_only_acts_in_training() -> None:
    model = make(GPT2, dropout=0.5)
    ids = some_ids(model)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))
