import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages import command_line
from stages.artifacts.model_weights import SavedModel, write_model
from stages.artifacts.provenance_json import MODEL_FOLDER, Provenance, md5
from stages.artifacts.vocabulary_json import VOCABULARY_FILE, write_vocabulary
from stages.core.transformer import Transformer
from stages.core.vocabulary import Vocabulary, VocabularyParams, build_vocabulary
from stages.errors import UserError
from stages.generate import main, read_lines, text_pieces
from tests.frames import frame_of_texts
from tests.training.conftest import network

Generate = Callable[..., str]
TEXT = "the cat sat, naïve 🐈‍⬛ 日本"


@pytest.fixture
def generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Generate:
    """The command, in a folder with a model of random weights over the letters a to j."""
    monkeypatch.chdir(tmp_path)
    write_vocabulary_and_model("abcdefghij")

    def call(*arguments: str, stdin: str = "") -> str:
        monkeypatch.setattr(sys, "argv", ["generate", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        main()
        return capsys.readouterr().out

    return call


def write_vocabulary_and_model(text: str, tokenizer: str = "character") -> Vocabulary:
    parameters = VocabularyParams.model_validate({"tokenizer": tokenizer, "size": 8000, "unknown_token": False})
    vocabulary = build_vocabulary(parameters, [frame_of_texts([text])])
    write_vocabulary(vocabulary)
    model: Transformer = network(context_length=16, vocabulary_size=vocabulary.size)
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    dependencies = {str(VOCABULARY_FILE): md5(VOCABULARY_FILE)}
    provenance = Provenance(fingerprint="f", dependencies=dependencies, parameters={})
    write_model(MODEL_FOLDER, SavedModel(model, prompts_end_with_eos=True), provenance)
    return vocabulary


def test_prompts_come_from_arguments_a_file_or_standard_input(generate: Generate) -> None:
    expected = generate("abc", "de")
    assert expected.count("\n") == 2
    Path("prompts.txt").write_text("abc\nde\n")
    assert generate("--file", "prompts.txt") == expected
    assert generate(stdin="abc\nde\n") == expected
    assert generate(stdin="abc\nde") == expected
    assert generate(stdin="") == ""


def test_only_a_line_end_ends_a_prompt(generate: Generate) -> None:
    write_vocabulary_and_model("abc\u2028\x85")
    expected = generate("a\u2028b\x85c", "b")
    assert generate(stdin="a\u2028b\x85c\nb\n") == expected
    Path("prompts.txt").write_bytes("a\u2028b\x85c\r\nb\r\n".encode())
    assert generate("--file", "prompts.txt") == expected


@pytest.mark.parametrize("tokenizer", ["character", "bpe"])
def test_a_streamed_completion_is_the_batched_one(generate: Generate, tokenizer: str) -> None:
    """Also of random bytes, which end in the midst of a character."""
    write_vocabulary_and_model("abcdefghij", tokenizer)
    assert generate("abc") + generate("de") == generate("abc", "de")
    for seed in map(str, range(5)):
        draw = ("--temperature", "1", "--seed", seed, "--max-tokens", "5")
        assert generate("abc", *draw) + generate("de", *draw) == generate("abc", "de", *draw)


def test_sampling_follows_its_seed(generate: Generate) -> None:
    draw = ["--temperature", "2", "--max-tokens", "12"]
    assert generate("abc", *draw, "--seed", "1") == generate("abc", *draw, "--seed", "1")
    assert len({generate("abc", *draw, "--seed", str(seed)) for seed in range(5)}) > 1
    assert generate("abc", *draw, "--top-k", "1") == generate("abc", "--max-tokens", "12")


def test_max_tokens_bounds_a_completion(generate: Generate) -> None:
    assert len(generate("abc", "--max-tokens", "3").strip()) <= 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["xyz"], "the character 'x'"),
        (["ab\udcff"], "character 3 (U+DCFF) is not text"),
        (["--file", "latin.txt"], "latin.txt: cannot be read"),
        (["abc", "--temperature", "-1"], "temperature: found -1.0"),
        (["abc", "--top-p", "2"], "top_p: found 2.0"),
        (["--file", "absent.txt"], "absent.txt"),
        (["abc", "--model", "absent"], "absent/config.json: not found"),
        (["abc", "--vocabulary", "absent.json"], "absent.json: not found"),
        (["abc", "--vocabulary", "other.json"], "give the model's own with --vocabulary"),
    ],
)
def test_a_mistake_is_one_line(
    generate: Generate, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    assert generate("abc")
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("other.json").write_text(VOCABULARY_FILE.read_text().replace('"a": 0', '"z": 0'))
    monkeypatch.setattr(sys, "argv", ["generate", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line.run(main)
    assert told in str(ended.value)
    assert str(ended.value).startswith("error: ")


def test_input_that_is_not_utf_8_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    with pytest.raises(UserError, match="standard input: cannot be read"):
        read_lines(None)


VOCABULARIES = {
    tokenizer: build_vocabulary(
        VocabularyParams.model_validate({"tokenizer": tokenizer, "size": 300, "unknown_token": False}),
        [frame_of_texts([TEXT])],
    )
    for tokenizer in ("word", "character", "bpe")
}


@pytest.mark.parametrize("tokenizer", VOCABULARIES)
def test_streamed_pieces_join_to_the_whole_text(tokenizer: str) -> None:
    vocabulary = VOCABULARIES[tokenizer]
    token_ids = vocabulary.encode(TEXT)
    assert "".join(text_pieces(iter([*token_ids, vocabulary.eos_id]), vocabulary)) == TEXT


@pytest.mark.parametrize("tokenizer", VOCABULARIES)
@given(numbers=st.lists(st.integers(0, 10_000)))
def test_streamed_pieces_of_any_tokens_join_to_their_text(tokenizer: str, numbers: list[int]) -> None:
    vocabulary = VOCABULARIES[tokenizer]
    token_ids = [number % vocabulary.size for number in numbers]
    assert "".join(text_pieces(iter(token_ids), vocabulary)) == vocabulary.decode(token_ids)
