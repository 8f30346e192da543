import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages import command_line
from stages.artifacts.model_weights import write_model
from stages.artifacts.provenance_json import MODEL_FOLDER, Provenance, md5
from stages.artifacts.vocabulary_json import VOCABULARY_FILE, write_vocabulary
from stages.core.language_model import text_pieces
from stages.core.saved_model import SavedModel
from stages.core.transformer import Transformer
from stages.core.vocabulary import Vocabulary, VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
from stages.errors import UserError
from stages.generate import main, read_prompts
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
    provenance = Provenance(fingerprint="f" * 16, dependencies=dependencies, parameters={})
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


@pytest.mark.parametrize("as_json", [True, False])
def test_one_bad_prompt_among_many_leaves_the_others_answered(
    generate: Generate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    arguments = ["--temperature", "20"]
    good = generate("abc", "de", "f", *arguments).splitlines()
    assert len(set(good)) == 3
    arguments += ["--json"] if as_json else []
    monkeypatch.setattr(sys, "argv", ["generate", "abc", "xyz", "de", "f", "a\udcff", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line.run(main)
    assert str(ended.value).splitlines()[0].startswith("error: prompt 2: the character 'x'")
    assert str(ended.value).splitlines()[1].startswith("prompt 5: character 2 (U+DCFF) is not text")
    lines = capsys.readouterr().out.splitlines()
    if as_json:
        answers = [json.loads(line) for line in lines]
        assert [answer.get("completion") for answer in answers] == [good[0], None, *good[1:], None]
        assert answers[1]["error"].startswith("prompt 2: the character 'x'")
    else:
        assert lines == [good[0], "", *good[1:], ""]


def test_an_error_names_the_line_of_a_file(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    generate("abc")
    Path("prompts.txt").write_text("abc\nxyz\n")
    monkeypatch.setattr(sys, "argv", ["generate", "--file", "prompts.txt"])
    with pytest.raises(UserError, match=r"^prompts.txt: line 2: the character 'x'"):
        main()


def test_a_byte_order_mark_belongs_to_no_prompt(generate: Generate) -> None:
    expected = generate("abc", "de")
    Path("prompts.txt").write_bytes(b"\xef\xbb\xbfabc\r\nde\r\n")
    assert generate("--file", "prompts.txt") == expected
    assert generate(stdin="\ufeffabc\nde\n") == expected


def test_prompts_and_completions_of_several_lines(generate: Generate) -> None:
    write_vocabulary_and_model("ab\ncd")
    prompts = ["a\nb", "\n\nc", "d"]
    draw = ("--json", "--temperature", "20")
    answers = [json.loads(line) for line in generate(*prompts, *draw).splitlines()]
    assert [answer["prompt"] for answer in answers] == prompts
    assert any("\n" in answer["completion"] for answer in answers)
    lines = "".join(f"{json.dumps(prompt)}\n" for prompt in prompts)
    assert [json.loads(line) for line in generate("--json-prompts", *draw, stdin=lines).splitlines()] == answers
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    assert [json.loads(line) for line in generate("--file", "prompts.jsonl", *draw).splitlines()] == answers
    # What one command writes, another reads.
    Path("answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    assert [json.loads(line) for line in generate("--file", "answers.jsonl", *draw).splitlines()] == answers


@pytest.mark.parametrize("line", ["abc", '{"text": "abc"}', "7", "[" * 100_000, "9" * 5000, ""])
def test_a_line_that_is_no_json_prompt_leaves_the_others_answered(
    generate: Generate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    generate("abc")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f'"abc"\n{line}\n{{"prompt": "de"}}\n'))
    monkeypatch.setattr(sys, "argv", ["generate", "--json-prompts"])
    with pytest.raises(UserError, match=r"^standard input: line 2: (not JSON|JSON without a prompt)"):
        main()
    assert capsys.readouterr().out.count("\n") == 3


def test_samples_are_those_of_the_next_seeds(generate: Generate) -> None:
    draw = ["--temperature", "2", "--max-tokens", "12"]
    drawn = generate("abc", "de", *draw, "--seed", "5", "--num-samples", "3").splitlines()
    assert drawn[:3] == [generate("abc", *draw, "--seed", seed).rstrip("\n") for seed in ("5", "6", "7")]
    assert drawn[3:] == [generate("de", *draw, "--seed", seed).rstrip("\n") for seed in ("5", "6", "7")]


@pytest.mark.parametrize("arguments", [
    ["--max-tokens", "10000000000", "--temperature", "0.8"], ["--max-tokens", "0"], ["--max-tokens", "9" * 5000],
    ["--num-samples", "0"], ["--num-samples", "1001", "--temperature", "1"], ["--num-samples", "2"],
    ["--json-prompts"], ["--file", "prompts.txt"],
])  # fmt: skip
def test_an_option_out_of_range_is_refused(
    generate: Generate, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        generate("abc", *arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_control_characters(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of a streamed completion nor of many; a pipe gets them unchanged."""
    text = "".join(map(chr, [*range(0x20), 0x7F, 0x9B, 0x202E, 0x2066])).replace("\t", "")
    write_vocabulary_and_model(text)
    for arguments in (["\x1b"], ["\x1b", "\x9b"], ["\x1b", "--json"]):
        draw = (*arguments, "--temperature", "500", "--max-tokens", "16")
        if "--json" not in arguments:  # JSON writes most control characters as their codes, wherever it goes
            assert any(ord(character) != 0x0A and not character.isprintable() for character in generate(*draw))
        terminal = Terminal()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", terminal)
            generate(*draw)
        shown = terminal.getvalue()
        assert "\\u00" in shown
        assert not [character for character in shown if character != "\n" and not character.isprintable()]


def test_input_that_is_not_utf_8_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    with pytest.raises(UserError, match="standard input: cannot be read"):
        read_prompts(None)


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
