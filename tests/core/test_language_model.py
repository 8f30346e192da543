"""What a notebook asks a model, compared with what the network itself computes, one token at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.artifacts.model_weights import write_model
from stages.artifacts.provenance_json import Provenance, md5
from stages.artifacts.vocabulary_json import VOCABULARY_FILE, write_vocabulary
from stages.core.language_model import LanguageModel
from stages.core.saved_model import SavedModel
from stages.core.vocabulary import VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
from stages.errors import UserError
from stages.load import load
from tests.frames import frame_of_texts
from tests.training.conftest import network

CONTEXT = 8


def random_model(tokenizer: str = "character", text: str = "abcdefghij", *, answers: bool = True) -> LanguageModel:
    parameters = VocabularyParams.model_validate({"tokenizer": tokenizer, "size": 300, "unknown_token": False})
    vocabulary = build_vocabulary(parameters, [frame_of_texts([text])])
    net = network(context_length=CONTEXT, vocabulary_size=vocabulary.size).eval().requires_grad_(requires_grad=False)
    net.embedding.weight.mul_(20)
    return LanguageModel(SavedModel(net, prompts_end_with_eos=answers), vocabulary)


MODEL, PLAIN = random_model(), random_model(answers=False)
TEXTS = st.text(st.sampled_from("abcdefghij"), max_size=3 * CONTEXT)


def expected_scores(model: LanguageModel, token_ids: list[int]) -> list[float]:
    """Read the last tokens before each one, and it alone."""
    scores = []
    for place in range(1, len(token_ids)):
        window = torch.tensor([token_ids[max(0, place - CONTEXT) : place]])
        logits = model.saved.network(window)[0, -1].double()
        scores.append(float(logits.log_softmax(dim=-1)[token_ids[place]]))
    return scores


@given(text=TEXTS)
def test_a_text_has_the_log_probability_of_each_token_after_those_before_it(text: str) -> None:
    """Also of a text longer than the context, of which the window slides as in generation."""
    scores = PLAIN.log_probabilities(text)
    assert [score.token for score in scores] == list(text[1:])
    assert [score.token_id for score in scores] == PLAIN.vocabulary.encode(text)[1:]
    assert [score.log_probability for score in scores] == pytest.approx(
        expected_scores(PLAIN, PLAIN.vocabulary.encode(text)), abs=1e-4
    )


@given(prompt=TEXTS, completion=TEXTS, answers=st.booleans())
def test_a_completion_is_scored_after_its_prompt_and_with_its_end(prompt: str, completion: str, answers: bool) -> None:
    model = MODEL if answers else PLAIN
    scores = model.log_probabilities(prompt, completion)
    assert [score.token for score in scores] == [*completion, "<EOS>"]
    token_ids = [*model.prompt_ids(prompt), *model.vocabulary.encode(completion), model.vocabulary.eos_id]
    expected = expected_scores(model, token_ids)[-len(scores) :]
    assert [score.log_probability for score in scores] == pytest.approx(expected, abs=1e-4)


@settings(max_examples=30)
@given(
    prompts=st.lists(TEXTS, max_size=4), seed=st.integers(0, 9), temperature=st.sampled_from([0.0, 0.7, 5.0]),
    max_new_tokens=st.sampled_from([None, 1, 5, 20]),
)  # fmt: skip
def test_a_stream_is_the_batched_completion(
    prompts: list[str], seed: int, temperature: float, max_new_tokens: int | None
) -> None:
    options: dict[str, Any] = {"seed": seed, "temperature": temperature, "max_new_tokens": max_new_tokens}
    completions = MODEL.complete(prompts, **options)
    assert completions == ["".join(MODEL.stream(prompt, **options)) for prompt in prompts]
    assert all(len(completion) <= (max_new_tokens or CONTEXT) for completion in completions)


def test_temperature_zero_takes_the_likeliest_token() -> None:
    (completion,) = PLAIN.complete(["abc"], max_new_tokens=1)
    scores = {letter: PLAIN.log_probabilities("abc", letter)[0].log_probability for letter in "abcdefghij"}
    assert completion in (max(scores, key=scores.__getitem__), "")
    assert len({MODEL.complete(["abc"], temperature=3.0, seed=seed)[0] for seed in range(8)}) > 1


def test_attention_is_that_of_the_network_and_its_rows_sum_to_one() -> None:
    attention = MODEL.attention("abca")
    assert attention.tokens == ["a", "b", "c", "a", "<EOS>"]
    assert attention.weights.shape == (2, 2, 5, 5)  # layers, heads, tokens, tokens
    assert torch.allclose(attention.weights.sum(dim=-1), torch.ones(2, 2, 5))
    assert not attention.weights.triu(diagonal=1).any()
    expected = MODEL.saved.network.attention_weights(torch.tensor([MODEL.prompt_ids("abca")]))
    assert torch.equal(attention.weights[1], expected[1][0])
    assert MODEL.attention("abcdefghij").tokens == [*"defghij", "<EOS>"]  # the end of what is too long


def test_byte_pairs_are_streamed_in_whole_characters() -> None:
    model = random_model("bpe", "naïve 日本")
    for seed in range(5):
        pieces = list(model.stream("日本", temperature=1.0, seed=seed, max_new_tokens=9))
        assert "".join(pieces) == model.complete(["日本"], temperature=1.0, seed=seed, max_new_tokens=9)[0]


def test_a_mistake_is_named() -> None:
    with pytest.raises(UserError, match="prompt 2: the character 'x'"):
        MODEL.complete(["a", "x"])
    with pytest.raises(UserError, match=r"a list of texts"):
        MODEL.complete("abc")
    with pytest.raises(UserError, match="prompt 1: found 7, allowed: a text"):
        MODEL.complete([7])  # type: ignore[list-item]
    with pytest.raises(UserError, match="max_new_tokens: found 0"):
        MODEL.stream("a", max_new_tokens=0)
    with pytest.raises(UserError, match="temperature: found -1"):
        MODEL.stream("a", temperature=-1.0)
    with pytest.raises(UserError, match="the completion: the character 'x'"):
        MODEL.log_probabilities("a", "x")
    assert MODEL.complete([]) == []


def write(folder: Path, vocabulary_file: Path) -> None:
    write_vocabulary(MODEL.vocabulary, vocabulary_file)
    dependencies = {str(VOCABULARY_FILE): md5(vocabulary_file)}
    write_model(folder, MODEL.saved, Provenance(fingerprint="f" * 16, dependencies=dependencies, parameters={}))


def test_load_opens_a_folder_with_its_vocabulary_in_it_or_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = MODEL.complete(["abc"])
    write(tmp_path / "data/model", tmp_path / "data/vocabulary.json")
    write(tmp_path / "alone", tmp_path / "alone/vocabulary.json")
    monkeypatch.chdir(tmp_path)
    for model in (load(), load("data/model"), load(tmp_path / "data/model"), load("alone")):
        assert model.complete(["abc"]) == expected


def test_load_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data/model: no folder there; make it with `dvc repro`"):
        load()
    with pytest.raises(UserError, match=r"absent: no folder there; name a folder .* runs:/ID"):
        load("absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty/config.json: not found"):
        load("empty")
    for here in ("", "."):
        with pytest.raises(UserError, match=r"^config.json: not found"):
            load(here)
