"""Tokenizers of today's kinds, trained here: the vocabulary gives the ids of the tokenizers library itself."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from stages.core.pretrained_tokenizer import take_tokenizer
from stages.core.rows import encode_rows
from stages.core.vocabulary import Vocabulary, VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
from stages.errors import UserError
from tests.frames import frame_of_texts

TEXT = (
    "The cat's 12345 mats, it'll  naïve café 日本語 \n\n\t tabs  \u00a0 don't I'M HELLO'S 2024-01-02 e\u0301 fi ﬁ if (x==1):\n    pass "
) * 3
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level(**options: Any) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **options)


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), byte_level(use_regex=False)]
    )


# As in the tokenizer.json of each: how text is cut and normalised, the special tokens, whether a text begins with one.
KINDS: dict[str, tuple[Any, Any, list[str], bool]] = {
    "gpt2": (byte_level(), None, ["<|endoftext|>"], False),
    "llama3": (split(LLAMA3), None, ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], True),
    "qwen2": (split(QWEN2), normalizers.NFC(), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], False),
    "smollm": (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()]),
        None, ["<|endoftext|>", "<|im_start|>"], False,
    ),
    "whole": (byte_level(use_regex=False), None, ["</s>"], False),
}  # fmt: skip


def trained(kind: str, *, special_first: bool = True) -> Tokenizer:
    cut, normalizer, special, begins = KINDS[kind]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = cut, decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=special if special_first else [],
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[special[0], "$A"], pair=None, special_tokens=[(special[0], tokenizer.token_to_id(special[0]))]
        )
    return tokenizer


LIBRARY = {kind: trained(kind) for kind in KINDS} | {"gpt2, <EOS> last": trained("gpt2", special_first=False)}
TAKEN = {kind: take_tokenizer(tokenizer.to_str(), None) for kind, tokenizer in LIBRARY.items()}
PIECES = st.sampled_from([*"ab 1'\n\té日.(", "<|endoftext|>", "</s>", "it's", "12345", "  ", "e\u0301", "The cat"])
TEXTS = st.lists(PIECES | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=12).map(
    "".join
)


def expected_ids(kind: str, text: str) -> list[int]:
    library = Tokenizer.from_str(LIBRARY[kind].to_str())
    library.encode_special_tokens = True  # a text that says <EOS> ends nothing
    return list(library.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("kind", TAKEN)
@settings(max_examples=40)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_ids_are_those_of_the_tokenizers_library(kind: str, texts: list[str]) -> None:
    vocabulary = TAKEN[kind]
    expected = [expected_ids(kind, text) for text in texts]
    assert [vocabulary.encode(text) for text in texts] == expected
    joined = memoryview("".join(text + vocabulary.end for text in texts).encode())
    assert vocabulary.encode_texts(joined).tolist() == [i for ids in expected for i in (*ids, vocabulary.eos_id)]
    for text, ids in zip(texts, expected, strict=True):
        if vocabulary.tokenizer.normalizer is None:
            assert vocabulary.decode(ids) == text


@pytest.mark.parametrize("kind", TAKEN)
def test_every_token_keeps_its_id_and_the_end_is_found_again(kind: str) -> None:
    vocabulary = TAKEN[kind]
    assert vocabulary.tokenizer.get_vocab() == LIBRARY[kind].get_vocab()
    read = Vocabulary(Tokenizer.from_str(vocabulary.tokenizer.to_str()))
    assert (read.eos_id, read.name, read.size) == (vocabulary.eos_id, "bpe", LIBRARY[kind].get_vocab_size())
    end = vocabulary.tokenizer.id_to_token(vocabulary.eos_id)
    assert end == {"llama3": "<|end_of_text|>", "whole": "</s>"}.get(kind, "<|endoftext|>")


def test_gpt2_s_kind_is_encoded_by_tiktoken_and_others_by_the_library() -> None:
    assert {kind for kind, vocabulary in TAKEN.items() if vocabulary.cuts_as_gpt2} == {"gpt2", "gpt2, <EOS> last"}
    built = VocabularyParams.model_validate({"tokenizer": "bpe", "size": 300, "unknown_token": False})
    assert build_vocabulary(built, [frame_of_texts([TEXT])]).cuts_as_gpt2


@pytest.mark.parametrize("tokenizer", ["word", "character", "bpe"])
def test_a_vocabulary_of_an_earlier_run_is_taken_unchanged(tokenizer: str) -> None:
    parameters = VocabularyParams.model_validate({"tokenizer": tokenizer, "size": 300, "unknown_token": False})
    content = build_vocabulary(parameters, [frame_of_texts([TEXT])]).tokenizer.to_str()
    assert take_tokenizer(content, None).tokenizer.to_str() == content


def test_older_files_lack_some_keys() -> None:
    parts = json.loads(LIBRARY["gpt2"].to_str())
    for key in ("type", "byte_fallback", "ignore_merges"):
        del parts["model"][key]
    parts["model"]["merges"] = [" ".join(pair) for pair in parts["model"]["merges"]]
    assert take_tokenizer(json.dumps(parts), None).tokenizer.to_str() == TAKEN["gpt2"].tokenizer.to_str()


def test_the_end_can_be_named() -> None:
    vocabulary = take_tokenizer(LIBRARY["qwen2"].to_str(), "<|im_end|>")
    assert vocabulary.tokenizer.id_to_token(vocabulary.eos_id) == "<|im_end|>"


@pytest.mark.parametrize("kind", TAKEN)
def test_the_bytes_that_are_scored_are_those_of_the_text(kind: str) -> None:
    vocabulary, text = TAKEN[kind], "naïve 12345 cats"
    rows = encode_rows(vocabulary, frame_of_texts([text]))
    assert rows.token_ids.tolist() == [*expected_ids(kind, text), vocabulary.eos_id]
    assert int(vocabulary._byte_lengths[rows.token_ids].sum()) == len(text.encode())
    assert int(vocabulary._byte_lengths[np.array([vocabulary.eos_id])].sum()) == 0


def changed(kind: str, path: str, value: Any) -> str:
    parts = json.loads(LIBRARY[kind].to_str())
    *parents, last = path.split(".")
    place = parts
    for name in parents:
        place = place[name]
    place[last] = value
    return json.dumps(parts)


@pytest.mark.parametrize(("content", "named"), [
    (changed("gpt2", "normalizer", {"type": "Lowercase"}), "normalizer: found Lowercase"),
    (changed("gpt2", "pre_tokenizer", {"type": "Whitespace"}), "pre_tokenizer: found Whitespace"),
    (changed("gpt2", "pre_tokenizer", None), "pre_tokenizer: found none"),
    (changed("gpt2", "pre_tokenizer.add_prefix_space", True), "add_prefix_space"),
    (changed("gpt2", "model.dropout", 0.1), "model.dropout: found 0.1"),
    (changed("gpt2", "model.byte_fallback", True), "model.byte_fallback: found True"),
    (Tokenizer(models.Unigram([("a", 0.0), ("</s>", 0.0)], unk_id=0)).to_str(), "a part of texts"),
    (Tokenizer(models.WordLevel({"a": 0, "[SEP]": 1}, unk_token="a")).to_str(), "a part of texts"),
    (Tokenizer(models.BPE({"a": 0, "b": 1}, [])).to_str(), "vocabulary.eos_token"),
])  # fmt: skip
def test_what_cannot_be_taken_is_named(content: str, named: str) -> None:
    with pytest.raises(UserError) as refused:
        take_tokenizer(content, None)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


def test_added_tokens_that_are_no_special_ones_are_found_in_texts_as_the_library_does() -> None:
    tokenizer = Tokenizer.from_str(LIBRARY["gpt2"].to_str())
    tokenizer.add_tokens(["<think>"])
    vocabulary = take_tokenizer(tokenizer.to_str(), None)
    tokenizer.encode_special_tokens = True
    assert vocabulary.encode("a<think>b") == tokenizer.encode("a<think>b").ids
    assert tokenizer.token_to_id("<think>") in vocabulary.encode("a<think>b")


def test_ids_with_gaps_are_named() -> None:
    parts = json.loads(LIBRARY["gpt2"].to_str())
    parts["model"]["vocab"]["zzz"] = 999
    with pytest.raises(UserError, match="ids: found none of 330, but one of 999"):
        take_tokenizer(json.dumps(parts), None)


def test_a_gap_before_a_special_token_is_named_as_the_library_closes_it() -> None:
    parts = json.loads(LIBRARY["gpt2"].to_str())
    parts["added_tokens"].append(parts["added_tokens"][0] | {"content": "<|im_end|>", "id": 999})
    with pytest.raises(UserError, match=r"added_tokens: found <\|im_end\|> under 999"):
        take_tokenizer(json.dumps(parts), None)
