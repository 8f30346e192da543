"""Small models of random weights, exported and opened by the programs that the exports are for."""

import ast
import json
import random
import shlex
import subprocess
import sys
import urllib.request
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.artifacts.provenance_json import Provenance
from stages.commands.export import FORMATS, describe, refuse_used_folder
from stages.core.generation import generate
from stages.core.language_model import LanguageModel
from stages.core.saved_model import SavedModel
from stages.core.vocabulary import Vocabulary, VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
from stages.errors import UserError
from stages.exports.engines import require
from stages.exports.llama_cpp import write_gguf
from stages.exports.model_card import model_card
from stages.exports.onnx_runtime import write_onnx
from stages.exports.proof import Proof, Question, prove
from stages.exports.twins import find_twin
from tests.frames import frame_of_texts
from tests.training.conftest import network

TEXT = "the cat sat on the mat, naïve 日本 it's 27+35= \n ok"
CONTEXT = 32
VOCABULARIES = {
    tokenizer: build_vocabulary(
        VocabularyParams.model_validate({"tokenizer": tokenizer, "size": 300, "unknown_token": unknown}),
        [frame_of_texts([TEXT])],
    )
    for tokenizer, unknown in (("word", True), ("character", False), ("bpe", False))
}

SHAPES = st.fixed_dictionaries({
    "positions": st.sampled_from(["rotary", "learned", "sinusoidal"]),
    "norm": st.sampled_from(["rms", "layer", "none"]),
    "feed_forward": st.sampled_from(["swiglu", "gelu", "gelu_tanh", "relu2", "none"]),
    "qk_norm": st.booleans(),
    "bias": st.booleans(),
    "output_bias": st.booleans(),
    "output_projection": st.booleans(),
    "tie_embeddings": st.booleans(),
    "n_kv_heads": st.sampled_from([None, 1]),
    "norm_eps": st.sampled_from([1e-5, 1e-2]),
    "rope_theta": st.sampled_from([10000.0, 500.0]),
})  # fmt: skip
# Those that transformers has a class for, each of its classes as often.
TWINS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "gpt2": {"positions": st.sampled_from(["learned", "sinusoidal"]), "norm": st.just("layer"), "feed_forward": st.sampled_from(["gelu", "gelu_tanh", "relu2"])},
    "llama": {"positions": st.just("rotary"), "norm": st.just("rms"), "feed_forward": st.just("swiglu")},
    "qwen3": {"positions": st.just("rotary"), "norm": st.just("rms"), "feed_forward": st.just("swiglu"), "bias": st.just(False), "qk_norm": st.just(True)},
    "arcee": {"positions": st.just("rotary"), "norm": st.just("rms"), "feed_forward": st.sampled_from(["gelu", "relu2"])},
    "nemotron": {"positions": st.just("rotary"), "norm": st.just("layer"), "feed_forward": st.sampled_from(["gelu", "relu2"])},
    "stablelm": {"positions": st.just("rotary"), "norm": st.just("layer"), "feed_forward": st.just("swiglu"), "bias": st.just(False)},
}  # fmt: skip


def shapes_of(twin: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda shape, own: shape | {"output_bias": False, "qk_norm": False} | own,
        SHAPES,
        st.fixed_dictionaries(TWINS[twin]),
    )


def random_model(shape: dict[str, Any], vocabulary: Vocabulary, *, ends_with_eos: bool = True) -> SavedModel:
    d_ff = None if shape["feed_forward"] == "none" else 24
    model = network(**shape, d_ff=d_ff, context_length=CONTEXT, vocabulary_size=vocabulary.size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return SavedModel(model.eval(), prompts_end_with_eos=ends_with_eos)


def questions(model: SavedModel, vocabulary: Vocabulary) -> list[Question]:
    choose = random.Random(1)
    texts = [" ".join(choose.choices(TEXT.split(), k=1 + number % 3)) for number in range(5)]
    prompts = [model.prompt_ids(vocabulary.encode(text), vocabulary.eos_id) for text in ["a"[:0], *texts]]
    return [Question(tuple(prompt), 6) for prompt in prompts]


def export_and_prove(name: str, folder: Path, model: SavedModel, vocabulary: Vocabulary) -> Proof:
    FORMATS[name].write(folder, model, vocabulary)
    engines = FORMATS[name].open(folder, vocabulary)
    asked = questions(model, vocabulary)
    return prove(engines, model, vocabulary, asked, export=name, fingerprint="0" * 16, split="test")


def check(name: str, shape: dict[str, Any], tokenizer: str, *, ends_with_eos: bool) -> None:
    vocabulary = VOCABULARIES[tokenizer]
    with TemporaryDirectory() as folder:
        proof = export_and_prove(
            name, Path(folder), random_model(shape, vocabulary, ends_with_eos=ends_with_eos), vocabulary
        )
    assert proof.holds, proof
    assert proof.rows == 6
    assert proof.equal_completions >= proof.rows - 1
    assert proof.compared_positions >= 6
    # llama.cpp looks the tanh GELU up in a table of 16-bit numbers.
    assert proof.largest_difference < (1e-3 if (name, shape["feed_forward"]) == ("gguf", "gelu_tanh") else 1e-4)


@pytest.mark.parametrize("twin", TWINS)
@settings(max_examples=4)
@given(data=st.data(), tokenizer=st.sampled_from(list(VOCABULARIES)), ends_with_eos=st.booleans())
def test_transformers_computes_the_same(twin: str, data: st.DataObject, tokenizer: str, ends_with_eos: bool) -> None:
    pytest.importorskip("transformers")
    shape = data.draw(shapes_of(twin))
    assert find_twin(random_model(shape, VOCABULARIES[tokenizer]).network.config) == twin
    check("huggingface", shape, tokenizer, ends_with_eos=ends_with_eos)


@pytest.mark.parametrize(
    "twin", ["llama", "qwen3", "arcee with relu2", "nemotron with relu2", "stablelm", "gpt2 with gelu_tanh"]
)
@settings(max_examples=4)
@given(data=st.data(), tokenizer=st.sampled_from(["character", "bpe"]), ends_with_eos=st.booleans())
def test_llama_cpp_computes_the_same(twin: str, data: st.DataObject, tokenizer: str, ends_with_eos: bool) -> None:
    pytest.importorskip("xllamacpp")
    twin, _, feed_forward = twin.partition(" with ")
    shape = data.draw(shapes_of(twin)) | ({"feed_forward": feed_forward} if feed_forward else {})
    if twin == "arcee":
        shape["bias"] = False
    check("gguf", shape, tokenizer, ends_with_eos=ends_with_eos)


TOY = {
    "positions": "sinusoidal", "norm": "none", "feed_forward": "none", "qk_norm": False, "bias": False,
    "output_bias": True, "output_projection": False, "tie_embeddings": False, "n_kv_heads": None,
}  # fmt: skip


@settings(max_examples=2)  # torch takes seconds for each, and for each layer
@example(shape=TOY, layers=1, tokenizer="word", ends_with_eos=True)
@given(
    shape=SHAPES,
    layers=st.sampled_from([1, 2]),
    tokenizer=st.sampled_from(list(VOCABULARIES)),
    ends_with_eos=st.booleans(),
)
def test_onnx_runtime_computes_the_same_for_every_model(
    shape: dict[str, Any], layers: int, tokenizer: str, ends_with_eos: bool
) -> None:
    """With a cache and without one."""
    pytest.importorskip("onnxscript")
    check("onnx", shape | {"n_layers": layers}, tokenizer, ends_with_eos=ends_with_eos)


@given(shape=SHAPES, tokenizer=st.sampled_from(list(VOCABULARIES)), name=st.sampled_from(["huggingface", "gguf"]))
def test_what_has_no_twin_is_refused_in_a_line_that_names_the_parameter(
    shape: dict[str, Any], tokenizer: str, name: str
) -> None:
    """And without a file. What is not refused is compared above."""
    vocabulary = VOCABULARIES[tokenizer]
    model = random_model(shape, vocabulary)
    if has_twin(model):
        return
    with TemporaryDirectory() as folder:
        with pytest.raises(UserError) as refused:
            FORMATS[name].write(Path(folder), model, vocabulary)
        assert not list(Path(folder).iterdir())
    message = str(refused.value)
    parameter = message.split(":", maxsplit=1)[0].removeprefix("model.")
    found = json.dumps(shape[parameter]).strip('"')
    assert message.startswith(f"model.{parameter}: found {found}")
    assert "\n" not in message


def has_twin(model: SavedModel) -> bool:
    try:
        find_twin(model.network.config)
    except UserError:
        return False
    return True


LLAMA = {
    "positions": "rotary", "norm": "rms", "feed_forward": "swiglu", "bias": False, "output_bias": False,
    "output_projection": True, "tie_embeddings": True, "n_kv_heads": None,
}  # fmt: skip


@pytest.mark.parametrize(("shape", "tokenizer", "named"), [
    ({"feed_forward": "gelu", "norm": "layer", "positions": "learned"}, "bpe", "model.feed_forward: found gelu"),
    ({"feed_forward": "gelu"}, "bpe", "model.feed_forward: found gelu"),
    ({"feed_forward": "relu2", "bias": True}, "bpe", "model.bias: found true"),
    ({}, "word", "vocabulary.tokenizer: found word"),
])  # fmt: skip
def test_what_llama_cpp_cannot_say_is_refused_by_name(
    tmp_path: Path, shape: dict[str, Any], tokenizer: str, named: str
) -> None:
    vocabulary = VOCABULARIES[tokenizer]
    with pytest.raises(UserError) as refused:
        FORMATS["gguf"].write(tmp_path, random_model(LLAMA | shape, vocabulary), vocabulary)
    assert str(refused.value).startswith(named)


@pytest.mark.parametrize("shape", [{}, {"positions": "learned", "norm": "layer", "feed_forward": "gelu_tanh"}])
def test_llama_cpp_reads_a_text_as_long_as_the_context(shape: dict[str, Any], tmp_path: Path) -> None:
    """It refuses one of which no token is left for its answer."""
    pytest.importorskip("xllamacpp")
    vocabulary = VOCABULARIES["character"]
    model = random_model(LLAMA | shape, vocabulary)
    write_gguf(tmp_path, model, vocabulary)
    token_ids = torch.randint(vocabulary.size - 1, (CONTEXT - 1,), generator=torch.Generator().manual_seed(1))
    whole = [Question(tuple(token_ids.tolist()), 1)]  # with its completion as long as the context
    engines = FORMATS["gguf"].open(tmp_path, vocabulary)
    proof = prove(engines, model, vocabulary, whole, export="gguf", fingerprint="0" * 16, split="test")
    assert proof.equal_completions == proof.compared_positions == 1
    assert proof.largest_difference < proof.tolerance


@pytest.mark.slow
def test_llama_cpp_serves_the_completions_api(tmp_path: Path) -> None:
    """As docs/export.md has it, whole and as a stream."""
    xllamacpp = pytest.importorskip("xllamacpp")
    vocabulary = VOCABULARIES["bpe"]
    model = random_model(LLAMA, vocabulary)
    write_gguf(tmp_path, model, vocabulary)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(tmp_path / "model.gguf")
    parameters.n_parallel, parameters.n_gpu_layers, parameters.warmup = 1, 0, False
    parameters.cpuparams.n_threads = 1
    server = xllamacpp.Server(parameters)
    assert server.listening_address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{server.listening_address}/v1/models") as answer:
        assert json.load(answer)["object"] == "list"
    expected = LanguageModel(model, vocabulary).complete(["the cat"], max_new_tokens=6)[0]
    for streamed in (False, True):
        body = {"prompt": "the cat", "max_tokens": 6, "temperature": 0, "stream": streamed}
        request = urllib.request.Request(
            f"{server.listening_address}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            lines = answer.read().decode().splitlines()
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line not in ("", "data: [DONE]")]
        assert "".join(event["choices"][0]["text"] for event in events) == expected


ONE_LAYER = LLAMA | {"n_layers": 1}


@pytest.fixture(scope="module")
def onnx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that several tests read, as torch takes seconds for it."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing that concerns torch's own authors reaches a user
        write_onnx(folder, random_model(ONE_LAYER, VOCABULARIES["bpe"]), VOCABULARIES["bpe"])
    return folder


def test_a_proof_of_other_weights_does_not_hold(onnx_folder: Path) -> None:
    vocabulary = VOCABULARIES["bpe"]
    model = random_model(ONE_LAYER, vocabulary)
    engines = FORMATS["onnx"].open(onnx_folder, vocabulary)

    def proof() -> Proof:
        asked = questions(model, vocabulary)
        return prove(engines, model, vocabulary, asked, export="onnx", fingerprint="f" * 16, split="test")

    assert proof().holds
    with torch.no_grad():
        dict(model.network.named_parameters())["final_norm.weight"].mul_(1.1)
    assert not proof().holds
    assert proof().largest_difference > proof().tolerance


def test_a_proof_of_other_answers_in_one_of_two_ways_does_not_hold(tmp_path: Path) -> None:
    """Such as with a cache alone. The engines here are the model itself, and one that forgets half of a prompt."""
    vocabulary = VOCABULARIES["character"]
    model = random_model(LLAMA, vocabulary)
    asked = questions(model, vocabulary)

    class Ours:
        name, tolerance, spare = "ours", 1e-3, 0
        start = 0

        def encode(self, text: str) -> list[int]:
            return model.prompt_ids(vocabulary.encode(text), vocabulary.eos_id)

        @torch.inference_mode()
        def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
            logits: torch.Tensor = model.network(torch.tensor([token_ids]))[0]
            return logits

        def complete(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
            read = [prompt[self.start * len(prompt) // 2 :] for prompt in prompts]
            return list(generate(model.network, read, vocabulary.eos_id, max_new_tokens))

    class Forgetful(Ours):
        name, start = "forgetful", 1

    def proof(*engines: Ours) -> Proof:
        return prove(engines, model, vocabulary, asked, export="onnx", fingerprint="f" * 16, split="test")

    assert proof(Ours()).holds
    assert proof(Ours(), Ours()).equal_completions == len(asked)
    assert not proof(Ours(), Forgetful()).holds
    assert proof(Ours(), Forgetful()).equal_completions == proof(Forgetful()).equal_completions < len(asked)
    assert proof(Ours(), Forgetful()).engine == "ours, forgetful"


def test_the_same_model_gives_the_same_bytes(onnx_folder: Path, tmp_path: Path) -> None:
    vocabulary = VOCABULARIES["bpe"]
    for name in FORMATS:
        first, second = onnx_folder if name == "onnx" else tmp_path / name, tmp_path / "other/folder" / name
        for folder in {first, second} - {onnx_folder}:
            FORMATS[name].write(folder, random_model(ONE_LAYER, vocabulary), vocabulary)
        for path in first.iterdir():
            content = path.read_bytes()
            assert content == (second / path.name).read_bytes(), path.name
            for folder in (first, second, Path(__file__).parents[2]):
                assert str(folder).encode() not in content


def test_an_export_never_deletes_a_folder(tmp_path: Path) -> None:
    refuse_used_folder(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    refuse_used_folder(tmp_path / "empty")
    (tmp_path / "README.md").touch()
    for used in (tmp_path, tmp_path / "README.md"):
        with pytest.raises(UserError, match="exists already"):
            refuse_used_folder(used)


def test_an_engine_that_is_not_installed_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"absent_engine is needed to try, and cannot be imported .*pip install"):
        require("absent_engine", "to try")


def test_the_card_says_what_the_model_was_made_from() -> None:
    model = random_model(LLAMA, VOCABULARIES["word"])
    provenance = Provenance(
        fingerprint="0123456789abcdef", dependencies={"data/dataset": "d41d", "stages/train.py": "x"},
        parameters={"train.seed": 42},
    )  # fmt: skip
    proof = Proof(
        export="onnx", engine="onnxruntime 1", model="0123456789abcdef", split="test", rows=7, equal_completions=7,
        tied_completions=0, encoded_prompts=7, equal_encodings=7, compared_positions=70, largest_difference=1e-6,
        tolerance=1e-3,
    )  # fmt: skip
    for name in FORMATS:
        card = model_card(name, model, 4, provenance, {"loss": 1.25}, 'say "a"', proof)
        for text in (
            "0123456789abcdef",
            "d41d",
            "| loss | 1.25 |",
            '"train.seed": 42',
            "license:\n",
            "of 7 prompts",
            "1.0e-06",
        ):
            assert text.lower() in card.lower(), text
        assert "stages/train.py" not in card
        assert ('"say \\"a\\""' if name == "gguf" else "'say \"a\"'") in card
    assert "not checked" in model_card("onnx", model, 4, provenance, {}, "", None)
    assert "Trained from scratch on a table of prompts" in card
    started = provenance.model_copy(update={"parameters": {"train": {"start_from": "pretrained/models/gpt2"}}})
    card = model_card("onnx", random_model(LLAMA, VOCABULARIES["word"], ends_with_eos=False), 4, started, {}, "", None)
    assert "Trained from the weights of pretrained/models/gpt2 on a table of texts" in card
    assert "7 of 7" in describe(Path("x"), proof)


NASTY = [
    "it's",
    "'; touch pwned; '",
    "$(touch pwned)",
    "`touch pwned`",
    "```\ntouch pwned",
    "\U0001f642 \u202e",
    'a\\b"c',
    "TOKENS EOS_ID",
]


@pytest.mark.parametrize("prompt", NASTY)
def test_who_copies_a_command_of_the_card_runs_none_of_the_data(prompt: str, tmp_path: Path) -> None:
    model = random_model(LLAMA, VOCABULARIES["bpe"])
    provenance = Provenance(fingerprint="a" * 16, dependencies={"data/a|b.csv": "0" * 32}, parameters={})
    card = model_card("gguf", model, 4, provenance, {}, prompt, None)
    assert "| data/a&#124;b.csv | `" in card
    (command,) = [line for line in card.splitlines() if line.startswith("curl ")]
    show = [sys.executable, "-c", "import json, sys; print(json.dumps(json.loads(sys.argv[1])['prompt']))"]
    asked = command.replace("curl -s http://127.0.0.1:8080/v1/completions -d", shlex.join(show))
    done = subprocess.run(["sh", "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == prompt
    assert not list(tmp_path.iterdir())
    card = model_card("huggingface", model, 4, provenance, {}, prompt, None)
    (line,) = [line for line in card.splitlines() if line.startswith("inputs = tokenizer(")]
    literal = line.removeprefix("inputs = tokenizer(").partition(", return_tensors=")[0]
    assert ast.literal_eval(literal) == prompt
