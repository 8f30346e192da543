"""Random models of transformers come in, compute the same, are trained on, go out, and are opened again."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from stages.artifacts.metrics_json import read_json
from stages.artifacts.model_weights import write_model
from stages.artifacts.provenance_json import Provenance, md5
from stages.artifacts.vocabulary_json import VOCABULARY_FILE, write_vocabulary
from stages.core.saved_model import SavedModel
from stages.core.transformer import Transformer, TransformerConfig
from stages.core.vocabulary import Vocabulary, VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
from stages.errors import UserError
from stages.exports.huggingface import write_huggingface
from stages.exports.read_huggingface import DEFAULTS, read_huggingface, shape_of, start_weights
from stages.exports.twins import Twin, find_twin, twin_weights, weights_of_twin
from stages.load import load
from stages.train import start_folder
from tests.exports.test_exports import CONTEXT, LLAMA, TWINS, VOCABULARIES, random_model, shapes_of
from tests.frames import frame_of_texts
from tests.training.conftest import train

VOCABULARY = VOCABULARIES["bpe"]
GPT2 = {
    "context_length": 16, "d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": None, "feed_forward": "gelu_tanh",
    "d_ff": None, "norm": "layer", "positions": "learned", "output_projection": True, "bias": True,
    "output_bias": False, "tie_embeddings": True, "dropout": 0.0, "qk_norm": False, "zero_init_projections": False,
}  # fmt: skip
LLAMA_LIKE = GPT2 | {
    "n_heads": 4, "n_kv_heads": 2, "feed_forward": "swiglu", "d_ff": 24, "norm": "rms", "positions": "rotary",
    "bias": False, "tie_embeddings": False,
}  # fmt: skip


def foreign(kind: str, folder: Path, vocabulary: Vocabulary, padding: int = 0, **values: Any) -> Any:
    """Save a random model of transformers with a tokenizer, and return it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(7)
    size = vocabulary.size + padding
    if kind == "gpt2":  # OpenAI's own activation, gelu_new, is the default
        config = transformers.GPT2Config(
            vocab_size=size, n_positions=16, n_embd=16, n_layer=2, n_head=2, eos_token_id=vocabulary.eos_id,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
    else:
        config = transformers.LlamaConfig(
            vocab_size=size, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=16, eos_token_id=vocabulary.eos_id,
            **{"rms_norm_eps": 1e-5} | values,
        )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    vocabulary.tokenizer.save(str(folder / "tokenizer.json"))
    return model


def config_of(kind: str, **changed: Any) -> TransformerConfig:
    shape = {"gpt2": GPT2, "llama": LLAMA_LIKE}[kind] | {"vocabulary_size": VOCABULARY.size} | changed
    return TransformerConfig.model_validate(shape)


@torch.inference_mode()
def logits(model: Any, token_ids: torch.Tensor) -> torch.Tensor:
    answer = model(token_ids)
    return answer if isinstance(answer, torch.Tensor) else answer.logits


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("padding", [0, 5])
def test_in_trained_ten_steps_out_and_opened_again(kind: str, padding: int, tmp_path: Path) -> None:
    """With rows beyond the tokens, as some models have, too."""
    transformers = pytest.importorskip("transformers")
    model = foreign(kind, tmp_path / "in", VOCABULARY, padding)
    token_ids = torch.randint(VOCABULARY.size, (3, 16))
    config = config_of(kind)
    network = Transformer(config).eval()
    network.load_state_dict(start_weights(tmp_path / "in", config, VOCABULARY))
    expected = logits(model, token_ids)[..., : VOCABULARY.size]
    torch.testing.assert_close(logits(network, token_ids), expected, rtol=1e-4, atol=1e-4)

    if padding == 0:  # out unchanged
        write_huggingface(tmp_path / "unchanged", SavedModel(network, prompts_end_with_eos=False), VOCABULARY)
        opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "unchanged")
        torch.testing.assert_close(logits(opened, token_ids), expected, rtol=1e-4, atol=1e-4)

    result = train(network, max_steps=10, learning_rate=0.001, warmup_steps=0)
    assert result.steps == 10
    assert result.curves.train_loss[-1][1] < result.curves.train_loss[0][1]
    network.eval()
    write_huggingface(tmp_path / "out", SavedModel(network, prompts_end_with_eos=True), VOCABULARY)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(opened, token_ids), logits(network, token_ids), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(opened, token_ids), expected, atol=1e-2)

    saved, vocabulary = read_huggingface(tmp_path / "out")  # and in once more, as load does
    assert torch.equal(logits(saved.network, token_ids), logits(network, token_ids))
    assert saved.prompts_end_with_eos
    assert vocabulary.token_to_id == VOCABULARY.token_to_id
    assert load(tmp_path / "out").complete(["the cat"], max_new_tokens=3)


def test_gpt2_s_files_have_other_names_and_buffers(tmp_path: Path) -> None:
    """As on Hugging Face's hub: no prefix, and the mask among the weights; in two parts with an index."""
    model = foreign("gpt2", tmp_path, VOCABULARY)
    weights = {
        name.removeprefix("transformer."): value for name, value in load_file(tmp_path / "model.safetensors").items()
    }
    weights |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 16, 16).tril() for layer in range(2)}
    (tmp_path / "model.safetensors").unlink()
    parts: dict[str, dict[str, torch.Tensor]] = {"a.safetensors": {}, "b.safetensors": {}}
    for number, (name, value) in enumerate(sorted(weights.items())):
        parts["ab"[number % 2] + ".safetensors"][name] = value.contiguous()
    for file, part in parts.items():
        save_file(part, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    network = Transformer(config_of("gpt2")).eval()
    network.load_state_dict(start_weights(tmp_path, network.config, VOCABULARY))
    token_ids = torch.randint(VOCABULARY.size, (2, 16))
    torch.testing.assert_close(logits(network, token_ids), logits(model, token_ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("twin", TWINS)
@settings(max_examples=3)
@given(data=st.data())
def test_a_folder_that_was_exported_is_read_as_the_same_model(twin: str, data: st.DataObject) -> None:
    """By load, which knows no params.yaml: what the export wrote is enough."""
    pytest.importorskip("transformers")
    model = random_model(data.draw(shapes_of(twin)), VOCABULARY)
    with TemporaryDirectory() as folder:
        write_huggingface(Path(folder), model, VOCABULARY)
        saved, vocabulary = read_huggingface(Path(folder))
    token_ids = torch.randint(VOCABULARY.size, (2, CONTEXT))
    torch.testing.assert_close(logits(saved.network, token_ids), logits(model.network, token_ids), rtol=1e-4, atol=1e-4)
    assert saved.prompts_end_with_eos == model.prompts_end_with_eos
    assert vocabulary.eos_id == VOCABULARY.eos_id


@settings(max_examples=30)
@given(twin=st.sampled_from(sorted(TWINS)), data=st.data())
def test_what_goes_out_comes_in_exactly(twin: str, data: st.DataObject) -> None:
    """Every number of every shape that has a twin, also without biases or projection, and with shared heads."""
    network = random_model(data.draw(shapes_of(twin)), VOCABULARY).network
    theirs = twin_weights(network, find_twin(network.config))
    ours = weights_of_twin(Transformer(network.config), find_twin(network.config), theirs)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-6 if twin == "nemotron" else 0, msg=name)


@pytest.mark.parametrize(("kind", "changed", "named"), [
    ("gpt2", {"d_model": 32}, "params.yaml: model.d_model: found 32, but train.start_from:"),
    ("gpt2", {"n_layers": 3}, "model.n_layers: found 3"),
    ("gpt2", {"context_length": 8}, "model.context_length: found 8"),
    ("gpt2", {"feed_forward": "gelu"}, 'model.feed_forward: found "gelu"'),
    ("gpt2", {"tie_embeddings": False}, "model.tie_embeddings: found false"),
    ("gpt2", {"bias": False}, "has values, where the network of params.yaml has none"),
    ("gpt2", {"norm": "none"}, "model.norm: found none, which no public architecture has; "),
    ("gpt2", {"positions": "rotary"}, "its shape is that of nemotron"),
    ("llama", {"n_kv_heads": None}, "model.n_kv_heads: found null"),
    ("llama", {"qk_norm": True}, "model.qk_norm: found true"),
    ("llama", {"d_ff": 32}, "model.d_ff: found 32"),
    ("llama", {"bias": True}, "bias: absent"),
    ("gpt2", {"norm_eps": 1e-6}, "model.norm_eps: found 1e-06"),
    ("llama", {"norm_eps": 1e-6}, "model.norm_eps: found 1e-06"),
    ("llama", {"rope_theta": 500000.0}, "model.rope_theta: found 500000.0"),
    ("llama", {"output_projection": False}, "has values, where the network of params.yaml has none"),
])  # fmt: skip
def test_another_shape_is_named_by_its_key(kind: str, changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    foreign(kind, tmp_path, VOCABULARY)
    with pytest.raises(UserError) as refused:
        start_weights(tmp_path, config_of(kind, **changed), VOCABULARY)
    assert named in str(refused.value)


def test_a_size_that_null_derives_is_not_named_beside_its_cause(tmp_path: Path) -> None:
    foreign("gpt2", tmp_path, VOCABULARY)
    with pytest.raises(UserError) as refused:
        start_weights(tmp_path, config_of("gpt2", d_model=32, n_heads=4), VOCABULARY)
    lines = str(refused.value).splitlines()
    assert [line.split()[1] for line in lines] == ["model.d_model:", "model.n_heads:"]


def test_a_context_of_another_length_is_no_other_shape_where_positions_have_no_weights(tmp_path: Path) -> None:
    foreign("llama", tmp_path, VOCABULARY)
    assert start_weights(tmp_path, config_of("llama", context_length=64), VOCABULARY)


def test_other_tokens_are_named(tmp_path: Path) -> None:
    foreign("llama", tmp_path, VOCABULARY)
    other = build_vocabulary(
        VocabularyParams.model_validate({"tokenizer": "bpe", "size": 300, "unknown_token": False}),
        [frame_of_texts(["quite another text"])],
    )
    config = config_of("llama", vocabulary_size=other.size)
    with pytest.raises(UserError, match=r"has the token '.*' under .*; set vocabulary.file to a copy of it"):
        start_weights(tmp_path, config, other)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer.json or vocabulary.json there"):
        start_weights(tmp_path, config, other)


@pytest.mark.parametrize(("kind", "name", "value"), [
    ("gpt2", "model_type", "bert"), ("gpt2", "activation_function", "tanh"),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True), ("llama", "head_dim", 8),
    ("llama", "mlp_bias", True), ("llama", "rope_parameters", {"rope_type": "llama3", "rope_theta": 10000.0}),
    ("llama", "rope_parameters", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}),
])  # fmt: skip
def test_what_this_project_does_not_compute_is_named(kind: str, name: str, value: Any, tmp_path: Path) -> None:
    foreign(kind, tmp_path, VOCABULARY)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(UserError) as refused:
        start_weights(tmp_path, config_of(kind), VOCABULARY)
    named = {"rope_parameters": "rope_type", "activation_function": "activation 'tanh'"}.get(name, name)
    assert named in str(refused.value)
    assert "allowed" in str(refused.value)


ODD: list[Any] = [None, 0, 1.5, "x", [], {}, True, 2**31, 10**30, {"rope_type": []}]
READ = {
    "gpt2": ["model_type", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "activation_function", "layer_norm_epsilon"],
    "llama": ["max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
              "intermediate_size", "hidden_act", "head_dim", "rope_parameters", "rope_scaling", "tie_word_embeddings",
              "mlp_bias", "eos_token_id", "rms_norm_eps", "rope_theta"],
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_a_config_json_of_any_content_gives_a_line_or_the_model(kind: str, tmp_path: Path) -> None:
    foreign(kind, tmp_path, VOCABULARY)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    refused = 0
    for name in READ[kind]:
        for value in ODD:
            path.write_text(json.dumps(config | {name: value}))
            try:
                read_huggingface(tmp_path)
                start_weights(tmp_path, config_of(kind), VOCABULARY)
            except UserError:
                refused += 1
    assert refused > len(READ[kind]) * 5


@pytest.mark.parametrize("content", ["{}", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}',
                                     '{"weight_map": {"a": ".."}}', '{"weight_map": {"a": "../x.safetensors"}}'])  # fmt: skip
def test_an_index_of_any_content_gives_a_line(content: str, tmp_path: Path) -> None:
    foreign("llama", tmp_path, VOCABULARY)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"names of files of the folder|not found|expected a file"):
        start_weights(tmp_path, config_of("llama"), VOCABULARY)


def test_weights_and_tokens_of_any_kind_give_a_line(tmp_path: Path) -> None:
    foreign("llama", tmp_path, VOCABULARY)
    weights = load_file(tmp_path / "model.safetensors")
    for odd in (torch.tensor(1.0), weights["model.embed_tokens.weight"].long()):
        save_file(weights | {"model.embed_tokens.weight": odd}, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=r"the weight model\.embed_tokens\.weight is .*: no matrix of numbers"):
            start_weights(tmp_path, config_of("llama"), VOCABULARY)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"not a tokenizer\.json"):
        start_weights(tmp_path, config_of("llama"), VOCABULARY)


def test_older_files_name_the_scaling_of_rotary_positions_otherwise(tmp_path: Path) -> None:
    foreign("llama", tmp_path, VOCABULARY)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    old = {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (tmp_path / "config.json").write_text(json.dumps(config | old))
    with pytest.raises(UserError, match="rope_type: found 'linear'"):
        start_weights(tmp_path, config_of("llama"), VOCABULARY)


@pytest.mark.parametrize(("eps", "theta"), [(1e-5, 500000.0), (1e-6, 1000000.0), (1e-2, 100.0)])
def test_another_epsilon_and_another_base_of_rotary_positions_come_in_and_go_out(
    eps: float, theta: float, tmp_path: Path
) -> None:
    """Those of Llama 3 and of Qwen3, and two that make a large difference."""
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "default", "rope_theta": theta}
    model = foreign("llama", tmp_path / "in", VOCABULARY, rms_norm_eps=eps, rope_parameters=rope)
    config = config_of("llama", norm_eps=eps, rope_theta=theta)
    network = Transformer(config).eval()
    network.load_state_dict(start_weights(tmp_path / "in", config, VOCABULARY))
    token_ids = torch.randint(VOCABULARY.size, (3, 16))
    expected = logits(model, token_ids)
    torch.testing.assert_close(logits(network, token_ids), expected, rtol=1e-4, atol=1e-4)
    write_huggingface(tmp_path / "out", SavedModel(network, prompts_end_with_eos=False), VOCABULARY)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(opened, token_ids), expected, rtol=1e-4, atol=1e-4)
    saved, _ = read_huggingface(tmp_path / "in")
    assert (saved.network.config.norm_eps, saved.network.config.rope_theta) == (eps, theta)


EXAMPLES: dict[str, dict[str, Any]] = {
    "gpt2": {"positions": "learned", "norm": "layer", "feed_forward": "gelu_tanh", "bias": True},
    "llama": {},
    "qwen3": {"qk_norm": True},
    "arcee": {"feed_forward": "relu2"},
    "nemotron": {"norm": "layer", "feed_forward": "relu2"},
    "stablelm": {"norm": "layer"},
}


@pytest.mark.parametrize("twin", EXAMPLES)
def test_a_key_that_is_absent_has_the_value_of_its_class_or_is_named(twin: str, tmp_path: Path) -> None:
    """Whether an epsilon, the share of a head that is rotated, or a size; as transformers fills it in."""
    transformers = pytest.importorskip("transformers")
    write_huggingface(tmp_path, random_model(LLAMA | EXAMPLES[twin], VOCABULARY), VOCABULARY)
    config = read_json(tmp_path / "config.json")
    config |= config.pop("rope_parameters", {})  # as in older files, so that each can be absent alone
    config_class = type(transformers.AutoConfig.for_model(twin))
    refused = {}
    for absent in config:
        values = {name: value for name, value in config.items() if name != absent}
        try:
            found = shape_of(tmp_path, values)
        except UserError as error:
            refused[absent] = str(error)
            continue
        filled_in = shape_of(tmp_path, config_class(**values).to_dict())
        for shape in (found, filled_in):
            shape["n_kv_heads"] = shape["n_kv_heads"] or shape["n_heads"]
        assert found == filled_in, absent
    assert all(absent in message for absent, message in refused.items()), refused
    assert ("partial_rotary_factor" in refused) == (twin in {"nemotron", "stablelm"})
    assert len(refused) < len(config) / 2


@pytest.mark.parametrize("twin", TWINS)
def test_the_defaults_are_those_of_the_installed_classes(twin: Twin) -> None:
    transformers = pytest.importorskip("transformers")
    config_class = type(transformers.AutoConfig.for_model(twin))
    rope = {} if twin == "gpt2" else {"partial_rotary_factor": 1.0} | config_class().rope_parameters
    found = {name: rope[name] if name in rope else getattr(config_class, name) for name in DEFAULTS[twin]}
    assert found == DEFAULTS[twin]


@pytest.mark.parametrize(("changed", "named"), [
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type: found 'linear'"),  # it counts first
    ({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}}, "found 'full_attention'"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "rope_theta: found 'x'"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: found"),
    ({"rms_norm_eps": None}, "norm_eps: found 'None'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: found 0.5"),
])  # fmt: skip
def test_rotary_positions_of_another_kind_are_named(changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    foreign("llama", tmp_path, VOCABULARY)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(UserError) as refused:
        read_huggingface(tmp_path)
    assert named in str(refused.value)


def test_a_sliding_window_is_refused_where_it_is_used(tmp_path: Path) -> None:
    """Qwen's files have its width and use_sliding_window: false."""
    pytest.importorskip("transformers")
    write_huggingface(tmp_path, random_model(LLAMA | {"qk_norm": True, "bias": False}, VOCABULARY), VOCABULARY)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | {"sliding_window": 8, "use_sliding_window": False}
    path.write_text(json.dumps(config))
    assert read_huggingface(tmp_path)[0].network.config.qk_norm
    path.write_text(json.dumps(config | {"use_sliding_window": True}))
    with pytest.raises(UserError, match=r"sliding_window: found "):
        read_huggingface(tmp_path)


def test_a_base_inside_the_rotary_parameters_counts_before_one_outside(tmp_path: Path) -> None:
    """As in transformers."""
    transformers = pytest.importorskip("transformers")
    foreign("llama", tmp_path, VOCABULARY)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config |= {"rope_theta": 10000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    path.write_text(json.dumps(config))
    assert transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == 500.0
    assert read_huggingface(tmp_path)[0].network.config.rope_theta == 500.0


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    foreign("llama", tmp_path, VOCABULARY)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    with pytest.raises(UserError, match="damaged"):
        start_weights(tmp_path, config_of("llama"), VOCABULARY)
    weights.unlink()
    with pytest.raises(UserError, match="not found"):
        start_weights(tmp_path, config_of("llama"), VOCABULARY)


def test_an_earlier_model_of_the_project_comes_in(tmp_path: Path) -> None:
    """The toy's kind, which no other program has, as well."""
    for shape, tokenizer in (
        (LLAMA, "bpe"),
        (LLAMA | {"norm": "none", "feed_forward": "none", "output_bias": True}, "word"),
    ):
        vocabulary = VOCABULARIES[tokenizer]
        model = random_model(shape, vocabulary)
        folder = tmp_path / tokenizer
        write_vocabulary(vocabulary, folder / "vocabulary.json")
        dependencies = {str(VOCABULARY_FILE): md5(folder / "vocabulary.json")}
        write_model(folder, model, Provenance(fingerprint="f" * 16, dependencies=dependencies, parameters={}))
        network = Transformer(model.network.config)
        network.load_state_dict(start_weights(folder, network.config, vocabulary))
        token_ids = torch.randint(vocabulary.size, (2, CONTEXT))
        assert torch.equal(logits(network, token_ids), logits(model.network, token_ids))
        with pytest.raises(UserError, match=r"model.output_bias: found"):
            changed = network.config.model_copy(update={"output_bias": not network.config.output_bias})
            start_weights(folder, changed, vocabulary)


def test_weights_elsewhere_are_not_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pretrained/models/mine").mkdir(parents=True)
    assert start_folder("pretrained/models/mine") == Path("pretrained/models/mine")
    for elsewhere in ("data/model", "pretrained/models", "pretrained/models/../x", "/tmp/x"):
        with pytest.raises(UserError, match=r"train.start_from: .* put it there: cp -r"):
            start_folder(elsewhere)
    with pytest.raises(UserError, match="no folder there"):
        start_folder("pretrained/models/absent")


def test_gguf_and_onnx_are_no_models_to_load(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UserError, match=r"model.onnx: for another program; load the export of kind huggingface"):
        load(tmp_path)


def test_a_tokenizer_file_is_the_librarys(tmp_path: Path) -> None:
    foreign("gpt2", tmp_path, VOCABULARY)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab() == VOCABULARY.token_to_id
