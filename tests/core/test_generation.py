"""Generation against the plain model, prompt by prompt."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.generation import Sampling, sample, stream
from stages.core.generation import generate as generate_in_turn
from stages.core.kernels import without_module_calls
from stages.core.kv_cache import KeyValueCache
from stages.core.transformer import Transformer
from stages.errors import UserError
from tests.core.test_transformer import GPT2, LLAMA, SMALL, VARIANTS, make

NEVER = -1
PROMPTS = [[3, 1], [5, 9, 2, 6, 5], [3], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2]]
SAMPLINGS = [Sampling(), Sampling(temperature=1.5, seed=7), Sampling(temperature=2.0, top_k=5, top_p=0.9, seed=1)]


def peaked(values: dict[str, Any]) -> Transformer:
    """Return a model with large float64 weights, so that no two logits are so close that rounding could swap them."""
    model = make(values).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()
    return model


def generate(*arguments: Any, **options: Any) -> list[list[int]]:
    """Return all completions."""
    return list(generate_in_turn(*arguments, **options))


def complete_without_cache(model: Transformer, prompt: list[int], eos_id: int, max_new_tokens: int) -> list[int]:
    """Complete greedily, running the whole model on the window for every token."""
    sequence = list(prompt)
    for _ in range(max_new_tokens):
        window = torch.tensor([sequence[-model.config.context_length :]])
        sequence.append(int(model(window)[0, -1].argmax()))
        if sequence[-1] == eos_id:
            break
    return sequence[len(prompt) :]


@torch.no_grad()
def test_cached_hidden_states_equal_uncached_ones() -> None:
    for values in VARIANTS:
        model = peaked(values)
        lengths = [2, 5, 1]
        ids = torch.randint(model.config.vocabulary_size, (3, 9))
        whole = model.hidden_states(ids)
        for real in (lengths, [5, 5, 5]):
            for network in (model, without_module_calls(model)):
                config = model.config
                shape = (3, config.key_value_heads, config.context_length, config.head_dim)
                cache = KeyValueCache(config.n_layers, shape, model.output.weight)
                network.hidden_states(ids[:, :5], attends=cache.attends(cache.places([0, 0, 0], 5)))
                for step in range(4):
                    lengths = [length + step for length in real]
                    places = cache.places(lengths, 1)
                    token_ids = ids[range(3), lengths][:, None]
                    added = network.hidden_states(token_ids, places.positions, cache.attends(places))
                    torch.testing.assert_close(added[:, 0], whole[range(3), lengths])


@torch.no_grad()
@pytest.mark.parametrize("values", [SMALL, GPT2, LLAMA, LLAMA | {"n_kv_heads": 2}])
def test_batch_equals_one_by_one_equals_uncached(values: dict[str, Any]) -> None:
    model = peaked(values)
    for eos_id in (NEVER, 4):
        expected = [complete_without_cache(model, prompt, eos_id, 20) for prompt in PROMPTS]
        assert generate(model, PROMPTS, eos_id, 20) == expected
        assert [generate(model, [prompt], eos_id, 20)[0] for prompt in PROMPTS] == expected


def test_greedy_completions_draw_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", None)
    model = peaked(LLAMA)
    assert generate(model, PROMPTS, 4, 20) == generate(model, PROMPTS, 4, 20, Sampling(seed=1))
    with pytest.raises(TypeError):
        generate(model, PROMPTS, 4, 20, Sampling(temperature=1.0))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_neighbours_do_not_change_a_sample(sampling: Sampling) -> None:
    model = peaked(LLAMA)
    together = generate(model, PROMPTS, 4, 20, sampling)
    assert together == [generate(model, [prompt], 4, 20, sampling)[0] for prompt in PROMPTS]
    assert together == generate(model, PROMPTS[::-1], 4, 20, sampling)[::-1]
    assert together == [list(stream(model, prompt, 4, 20, sampling)) for prompt in PROMPTS]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_batch_size_changes_no_completion(batch_size: int) -> None:
    model = peaked(LLAMA)
    for sampling in SAMPLINGS:
        completions = generate(model, PROMPTS, 4, 20, sampling)
        assert generate(model, PROMPTS, 4, 20, sampling, batch_size=batch_size) == completions


def test_random_numbers_are_drawn_as_they_are_needed() -> None:
    tokens = stream(peaked(LLAMA), [3, 1], NEVER, 10**18, Sampling(temperature=1.0))
    assert len(list(itertools.islice(tokens, 20))) == 20


def test_more_tokens_continue_the_same_sample() -> None:
    model = peaked(LLAMA)
    sampling = Sampling(temperature=1.5)
    short, long = (generate(model, PROMPTS, NEVER, count, sampling) for count in (7, 40))
    assert short == [completion[:7] for completion in long]


def test_completions_end_with_eos_or_at_the_maximum() -> None:
    model = peaked(GPT2)
    for completion in generate(model, PROMPTS, 4, 12, Sampling(temperature=3.0)):
        assert 4 not in completion[:-1]
        assert len(completion) == 12 or completion[-1] == 4
    eos_only = generate(model, PROMPTS, generate(model, [[3]], NEVER, 1)[0][0], 12)[2]
    assert len(eos_only) == 1


def test_seed_changes_the_sample_and_repeats_it() -> None:
    model = make(GPT2)
    first, again, other = (generate(model, [[3]], NEVER, 30, Sampling(1.0, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_equal_random_numbers_are_not_shared_by_prompts() -> None:
    model = make(SMALL)
    with torch.no_grad():
        model.output.weight.zero_()  # every prompt has the same distribution: only the random numbers differ
    first, second = generate(model, [[1], [2]], NEVER, 30, Sampling(1.0))
    assert first != second


def frequencies(logits: list[float], sampling: Sampling) -> Tensor:
    """Return how often each token is chosen over evenly spread random numbers."""
    draws = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    chosen = sample(torch.tensor(logits).expand(10000, -1), sampling, draws)
    return chosen.bincount(minlength=len(logits)) / 10000


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    cases = [
        (Sampling(1.0), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        (Sampling(1.0, top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(1.0, top_k=9), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(1.0, top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Sampling(1.0, top_p=0.1), [0, 1, 0, 0]),
        (Sampling(1e-6), [0, 1, 0, 0]),
    ]
    for sampling, expected in cases:
        torch.testing.assert_close(
            frequencies(logits.tolist(), sampling), torch.tensor(expected, dtype=torch.float32), atol=3e-4, rtol=0
        )


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"temperature": -1.0}, "temperature: found -1.0"),
        ({"temperature": float("nan")}, "temperature: found nan"),
        ({"top_k": 0}, "top_k: found 0"),
        ({"top_p": 1.5}, "top_p: found 1.5"),
    ],
)
def test_wrong_sampling_is_named(values: dict[str, Any], found: str) -> None:
    with pytest.raises(UserError, match=found):
        Sampling(**values)


def test_model_returns_to_training() -> None:
    model = make(GPT2, dropout=0.5).train()
    assert generate(model, [[3]], NEVER, 5) == generate(model, [[3]], NEVER, 5)
    assert model.training


def test_nothing_to_do() -> None:
    model = make(SMALL)
    assert generate(model, [], NEVER, 5) == []
    assert generate(model, [[1]], NEVER, 0) == [[]]
    with pytest.raises(ValueError, match="empty prompt"):
        generate(model, [[1], []], NEVER, 5)


def test_cache_refuses_what_it_cannot_hold() -> None:
    cache = KeyValueCache(2, (1, 4, 9, 4), torch.zeros(1))
    with pytest.raises(ValueError, match="found 2 tokens for a filled cache"):
        cache.places([7], 2)
    with pytest.raises(ValueError, match=r"found 9 \+ 1 tokens"):
        cache.places([9], 1)
