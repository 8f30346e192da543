import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stages import command_line
from stages.artifacts.model_weights import SavedModel, write_model
from stages.artifacts.vocabulary_json import VOCABULARY_FILE, write_vocabulary
from stages.core.transformer import Transformer
from stages.core.vocabulary import VocabularyParameters, build_vocabulary
from stages.generate import main, text_pieces
from stages.provenance import MODEL_FOLDER, Provenance, md5
from tests.training.conftest import network

Generate = Callable[..., str]


@pytest.fixture
def generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Generate:
    """The command, in a folder with a model of random weights over the letters a to j."""
    monkeypatch.chdir(tmp_path)
    characters = VocabularyParameters(tokenizer="character", size=8000, unknown_token=False)
    write_vocabulary(build_vocabulary(characters, [["abcdefghij"]]))
    model: Transformer = network(context_length=16)
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    dependencies = {str(VOCABULARY_FILE): md5(VOCABULARY_FILE)}
    provenance = Provenance(fingerprint="f", dependencies=dependencies, parameters={})
    write_model(MODEL_FOLDER, SavedModel(model, prompts_end_with_eos=True), provenance)

    def call(*arguments: str, stdin: str = "") -> str:
        monkeypatch.setattr(sys, "argv", ["generate", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        main()
        return capsys.readouterr().out

    return call


def test_prompts_come_from_arguments_a_file_or_standard_input(generate: Generate) -> None:
    expected = generate("abc", "de")
    assert expected.count("\n") == 2
    Path("prompts.txt").write_text("abc\nde\n")
    assert generate("--file", "prompts.txt") == expected
    assert generate(stdin="abc\nde\n") == expected


def test_a_streamed_completion_is_the_batched_one(generate: Generate) -> None:
    assert generate("abc") + generate("de") == generate("abc", "de")


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
    Path("other.json").write_text(VOCABULARY_FILE.read_text().replace('"a": 0', '"z": 0'))
    monkeypatch.setattr(sys, "argv", ["generate", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line.run(main)
    assert told in str(ended.value)
    assert str(ended.value).startswith("error: ")


@pytest.mark.parametrize("tokenizer", ["word", "character", "bpe"])
def test_streamed_pieces_join_to_the_whole_text(tokenizer: str) -> None:
    text = "the cat sat, naïve 🐈‍⬛ 日本"
    chosen = VocabularyParameters.model_validate({"tokenizer": tokenizer, "size": 300, "unknown_token": False})
    vocabulary = build_vocabulary(chosen, [[text]])
    token_ids = vocabulary.encode(text)
    assert "".join(text_pieces(iter([*token_ids, vocabulary.eos_id]), vocabulary)) == text
