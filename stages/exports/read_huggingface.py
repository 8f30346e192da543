"""Weights that come in: a folder of data/model/'s form, or one of Hugging Face, checked against the model of params.yaml.

Nothing but JSON and safetensors is read, and no code of the folder is run.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, get_args

import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer

from stages.artifacts.metrics_json import read_json
from stages.artifacts.model_weights import CONFIG, WEIGHTS, read_network
from stages.artifacts.pretrained import tokenizer_errors
from stages.artifacts.regular_file import check_file
from stages.artifacts.vocabulary_json import VOCABULARY_FILE, read_vocabulary
from stages.core.pretrained_tokenizer import take_tokenizer
from stages.core.saved_model import SavedModel
from stages.core.transformer import Transformer, TransformerConfig
from stages.errors import UserError
from stages.exports.twins import Twin, find_twin, weights_of_twin

if TYPE_CHECKING:
    from pathlib import Path

    from stages.core.vocabulary import Vocabulary
    from stages.exports.twins import Weights

TOKENIZER_FILE = "tokenizer.json"
INDEX = "model.safetensors.index.json"

# transformers' names of what is computed, by ours; its "gelu" is the exact one.
ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu2": "relu2", "silu": "swiglu",
    "swish": "swiglu",
}  # fmt: skip
# What a key of config.json is where it is absent, by transformers' classes. Sizes have no value here: they must be present.
_ROTARY_DEFAULTS = {
    "num_key_value_heads": None, "tie_word_embeddings": False, "hidden_act": "silu",
    "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
}  # fmt: skip
_BIAS_DEFAULTS = {"attention_bias": False, "mlp_bias": False}
DEFAULTS: dict[Twin, dict[str, Any]] = {
    "gpt2": {
        "n_inner": None, "tie_word_embeddings": True, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
    },
    "llama": _ROTARY_DEFAULTS | _BIAS_DEFAULTS | {"rms_norm_eps": 1e-6},
    "qwen3": _ROTARY_DEFAULTS | {
        "attention_bias": False, "num_key_value_heads": 32, "head_dim": 128, "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
    },
    "arcee": _ROTARY_DEFAULTS | _BIAS_DEFAULTS | {"hidden_act": "relu2", "rms_norm_eps": 1e-5},
    "nemotron": _ROTARY_DEFAULTS | _BIAS_DEFAULTS | {
        "hidden_act": "relu2", "norm_eps": 1e-5, "partial_rotary_factor": 0.5,
    },
    "stablelm": _ROTARY_DEFAULTS | {
        "num_key_value_heads": 32, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25,
        "use_parallel_residual": False, "qk_layernorm": False, "use_qkv_bias": False,
    },
}  # fmt: skip
# Where a class can do what this project cannot; another value is refused by its name.
_FIXED = {
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
    "partial_rotary_factor": 1.0, "use_parallel_residual": False, "qk_layernorm": False, "use_qkv_bias": False,
    "sliding_window": None, "use_sliding_window": False, "rope_type": "default",
}  # fmt: skip
_NORM_EPS = ("layer_norm_epsilon", "rms_norm_eps", "norm_eps", "layer_norm_eps")
_ROPE_KEYS = {"rope_theta", "rope_type", "partial_rotary_factor"}
_LARGEST_SIZE = 2**31
_BUFFERS = re.compile(r"\.attn\.(?:masked_)?bias$|rotary_emb\.inv_freq$")  # that older files hold beside the weights


def is_huggingface(folder: Path) -> bool:
    """Return whether a folder has a config.json of transformers."""
    return (folder / CONFIG).exists() and "model_type" in read_json(folder / CONFIG)


def start_weights(folder: Path, config: TransformerConfig, vocabulary: Vocabulary) -> Weights:
    """Return the weights with which the training of a network begins, by the names of its state.

    Raises:
        UserError: they are absent, or have another shape or other tokens than the network; the message names the key of
            params.yaml.
    """
    _refuse_other_tokens(folder, vocabulary)
    if not is_huggingface(folder):
        saved = read_network(folder).network
        _refuse_other_shape(folder, saved.config.model_dump(), config)
        return {name: value.clone() for name, value in saved.state_dict().items()}
    values = read_json(folder / CONFIG)
    shape = shape_of(folder, values)
    _refuse_other_shape(folder, shape, config)
    twin: Twin = values["model_type"]
    try:
        wanted = find_twin(config)
    except UserError as error:
        found = str(error).partition(";")[0]  # what follows is advice for an export
        raise UserError(f"params.yaml: {found}; {folder}/ is of the class {twin}") from None
    if wanted != twin:
        raise UserError(f"params.yaml: model: its shape is that of {wanted}, but {folder}/ is of the class {twin}")
    return _read_twin(folder, Transformer(config), twin)


def read_huggingface(folder: Path) -> tuple[SavedModel, Vocabulary]:
    """Read a Hugging Face folder with its tokenizer.json as a model of this project.

    Raises:
        UserError: the class, its parameters or the tokenizer are not among those that this project has.
    """
    values = read_json(folder / CONFIG)
    shape = shape_of(folder, values)
    vocabulary, ends = _read_tokenizer(folder, values)
    twin: Twin = values["model_type"]
    try:
        config = TransformerConfig(**shape, vocabulary_size=vocabulary.size, dropout=0.0, output_bias=False)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{folder / CONFIG}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    with torch.device("meta"):  # what the weights do not fit takes no memory
        numbers = sum(weight.numel() for weight in Transformer(config).parameters())
    stored = sum(path.stat().st_size for path in _weight_files(folder))
    if numbers > stored:  # each has a byte at least
        raise UserError(
            f"{folder / CONFIG}: describes {numbers:,} weights, and the files beside it have {stored:,} bytes"
        )
    network = Transformer(config)
    network.load_state_dict(_read_twin(folder, network, twin))
    network.eval().requires_grad_(requires_grad=False)
    return SavedModel(network, prompts_end_with_eos=ends), vocabulary


def shape_of(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Return what a config.json of transformers says, by the keys of the section model of params.yaml.

    Raises:
        UserError: a class or a value that this project does not have, by its name in config.json.
    """
    path = folder / CONFIG
    if values.get("model_type") not in get_args(Twin):
        raise UserError(
            f"{path}: model_type: found {str(values.get('model_type'))!r}, allowed: {', '.join(get_args(Twin))}"
        )
    twin: Twin = values["model_type"]
    gpt2 = twin == "gpt2"
    values = _with_defaults(path, twin, values)
    _refuse_other_computations(path, values)
    activation = values["activation_function" if gpt2 else "hidden_act"]
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UserError(f"{path}: found the activation {activation!r}, allowed: {', '.join(ACTIVATIONS)}")
    try:
        shape = _gpt2_shape(values) if gpt2 else _rotary_shape(values, twin)
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]} is missing, as in a config.json that is damaged") from None
    shape |= {
        "norm_eps": next(values[name] for name in _NORM_EPS if name in DEFAULTS[twin]),
        "feed_forward": ACTIVATIONS[activation],
        "output_projection": True,
        "bias": gpt2 or values.get("attention_bias", False),
        "qk_norm": twin == "qwen3",
    }
    _refuse_other_kinds(path, shape)
    width, heads = shape["d_model"], shape["n_heads"]
    if values.get("head_dim") not in (None, width // heads):
        raise UserError(
            f"{path}: head_dim: found {values['head_dim']}, allowed: {width // heads}, its width for each head"
        )
    return shape


def _with_defaults(path: Path, twin: Twin, found: dict[str, Any]) -> dict[str, Any]:
    """Return all values of a config.json, the parameters of rotary positions among the others.

    As in transformers, rope_scaling, the name in older files, counts before rope_parameters, and what either has before
    the key of the same name outside.

    Raises:
        UserError: the parameters of rotary positions are of a kind that this project does not have.
    """
    rope = found.get("rope_scaling") or found.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: rope_parameters: found {rope!r}, allowed: keys and values")
    if "type" in rope:
        rope = {"rope_type": rope["type"]} | {name: value for name, value in rope.items() if name != "type"}
    values = DEFAULTS[twin] | found | {name: rope[name] for name in _ROPE_KEYS if name in rope}
    other = sorted(set(rope) - _ROPE_KEYS)
    if other and values.get("rope_type", "default") == "default":
        raise UserError(f"{path}: rope_parameters: found {other[0]!r}, allowed: {', '.join(sorted(_ROPE_KEYS))}")
    return values


def _refuse_other_computations(path: Path, values: dict[str, Any]) -> None:
    """Check that a class computes what this project does.

    Raises:
        UserError: it does not, by the key of config.json that says so.
    """
    fixed = dict(_FIXED)
    if values.get("use_sliding_window") is False:
        del fixed["sliding_window"]  # Qwen's files have a width that is not used
    for name, allowed in fixed.items():
        if values.get(name, allowed) != allowed:
            raise UserError(f"{path}: {name}: found {values[name]!r}, allowed: {allowed!r}")
    layers = values.get("layer_types") or []
    if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        raise UserError(f"{path}: layer_types: found {str(layers)[:100]}, allowed: full_attention for each layer")
    attention, feed_forward = (values.get(name, False) for name in _BIAS_DEFAULTS)
    if attention != feed_forward:
        raise UserError(
            f"{path}: found attention_bias {attention!r} and mlp_bias {feed_forward!r}, allowed: both alike"
        )


def _gpt2_shape(values: dict[str, Any]) -> dict[str, Any]:
    return {
        "context_length": values["n_positions"], "d_model": values["n_embd"], "n_layers": values["n_layer"],
        "n_heads": values["n_head"], "n_kv_heads": None, "d_ff": values["n_inner"],
        "norm": "layer", "positions": "learned", "rope_theta": _ROTARY_DEFAULTS["rope_theta"],
        "tie_embeddings": values["tie_word_embeddings"],
    }  # fmt: skip


def _rotary_shape(values: dict[str, Any], twin: Twin) -> dict[str, Any]:
    return {
        "context_length": values["max_position_embeddings"], "d_model": values["hidden_size"],
        "n_layers": values["num_hidden_layers"], "n_heads": values["num_attention_heads"],
        "n_kv_heads": values["num_key_value_heads"], "d_ff": values["intermediate_size"],
        "norm": "layer" if twin in ("nemotron", "stablelm") else "rms", "positions": "rotary",
        "rope_theta": values["rope_theta"], "tie_embeddings": values["tie_word_embeddings"],
    }  # fmt: skip


def _refuse_other_kinds(path: Path, shape: dict[str, Any]) -> None:
    """Check the sizes and numbers that a config.json gives, before anything is computed from them.

    Raises:
        UserError: one is no size or no number.
    """
    for key in ("context_length", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff"):
        size = shape[key]
        optional = size is None and key in {"n_kv_heads", "d_ff"}
        if not optional and (type(size) is not int or not 1 <= size <= _LARGEST_SIZE):
            raise UserError(f"{path}: {key}: found {str(size)[:50]!r}, allowed: a whole number from 1")
    for key in ("norm_eps", "rope_theta"):
        if type(shape[key]) not in (int, float):
            raise UserError(f"{path}: {key}: found {str(shape[key])[:50]!r}, allowed: a number")
    for key in ("tie_embeddings", "bias"):
        if type(shape[key]) is not bool:
            raise UserError(f"{path}: {key}: found {str(shape[key])[:50]!r}, allowed: true or false")


def _refuse_other_shape(folder: Path, found: dict[str, Any], config: TransformerConfig) -> None:
    """Compare sizes; what a class writes in another way, such as a bias of zeros, is compared by its weights.

    Raises:
        UserError: a size differs, by its key.
    """
    wanted = config.model_dump()
    keys = [
        "d_model",
        "n_layers",
        "n_heads",
        "n_kv_heads",
        "d_ff",
        "feed_forward",
        "tie_embeddings",
        "qk_norm",
        "norm_eps",
    ]
    if "vocabulary_size" in found:  # a folder of our own says all, and its rotary positions have no weights
        keys += ["norm", "positions", "output_projection", "bias", "output_bias"]
    if config.positions == "rotary":
        keys.append("rope_theta")
    if config.positions == "learned":
        keys.append("context_length")
    theirs, ours = _filled_in(found), _filled_in(wanted)
    different = [key for key in keys if theirs[key] != ours[key] and (found[key], wanted[key]) != (None, None)]
    if found["feed_forward"] == "none" and "d_ff" in different:
        different.remove("d_ff")
    if different:
        raise UserError(
            "\n".join(
                f"params.yaml: model.{key}: found {json.dumps(wanted[key])}, but train.start_from: {folder} has "
                f"{json.dumps(theirs[key])}; set it so"
                for key in different
            )
        )


def _filled_in(shape: dict[str, Any]) -> dict[str, Any]:
    """Return a shape with the sizes that null stands for."""
    return shape | {
        "n_kv_heads": shape["n_kv_heads"] or shape["n_heads"], "d_ff": shape["d_ff"] or 4 * shape["d_model"],
    }  # fmt: skip


def _refuse_other_tokens(folder: Path, vocabulary: Vocabulary) -> None:
    """Compare the tokens that the weights were trained with, where the folder has them, with data/vocabulary.json.

    Raises:
        UserError: a token has another id.
    """
    names = [TOKENIZER_FILE, VOCABULARY_FILE.name]
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        listed = " or ".join(names)
        raise UserError(f"{folder}: no {listed} there, so that its tokens are not known; put it there")
    if path.name == TOKENIZER_FILE:
        with tokenizer_errors(path, str(path)):
            theirs = Tokenizer.from_str(path.read_text(encoding="utf-8")).get_vocab()
    else:
        theirs = read_vocabulary(path).token_to_id
    if theirs != vocabulary.token_to_id:
        example = next(
            (t for t in {**vocabulary.token_to_id, **theirs} if theirs.get(t) != vocabulary.token_to_id.get(t)), ""
        )
        raise UserError(
            f"params.yaml: vocabulary: {path} has the token {example!r} under {theirs.get(example, 'no id')}, but {VOCABULARY_FILE} "
            f"under {vocabulary.token_to_id.get(example, 'no id')}; set vocabulary.file to a copy of it in pretrained/tokenizers/"
        )


def _read_tokenizer(folder: Path, values: dict[str, Any]) -> tuple[Vocabulary, bool]:
    """Return the vocabulary, and whether its tokenizer ends a prompt with <EOS>."""
    path = folder / TOKENIZER_FILE
    with tokenizer_errors(path, str(path)):
        content = path.read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(content)
        eos_id = values.get("eos_token_id")
        eos_token = tokenizer.id_to_token(eos_id) if isinstance(eos_id, int) else None
        vocabulary = take_tokenizer(content, eos_token)
        return vocabulary, tokenizer.encode("").ids == [vocabulary.eos_id]


def _read_twin(folder: Path, network: Transformer, twin: Twin) -> Weights:
    """Return a folder's weights by our names."""
    weights = _read_safetensors(folder)
    if twin == "gpt2" and "wte.weight" in weights:  # as OpenAI's files have them
        weights = {f"transformer.{name}": value for name, value in weights.items()}
    weights = {name: value for name, value in weights.items() if not _BUFFERS.search(name)}
    odd = next((name for name, value in weights.items() if value.ndim == 0 or not value.is_floating_point()), None)
    if odd is not None:
        raise UserError(
            f"{folder}: the weight {odd} is {weights[odd].dtype} {list(weights[odd].shape)}: no matrix of numbers"
        )
    embedding = "transformer.wte.weight" if twin == "gpt2" else "model.embed_tokens.weight"
    if embedding in weights and network.config.tie_embeddings:
        weights["lm_head.weight"] = weights[embedding]
    size = network.config.vocabulary_size
    for name in (embedding, "lm_head.weight"):
        if name in weights and len(weights[name]) > size:
            weights[name] = weights[name][:size]  # rows that make a size divisible, and stand for no token
    length = network.config.context_length
    positions = weights.get("transformer.wpe.weight")
    if positions is not None and network.config.positions == "sinusoidal" and len(positions) > length:
        weights["transformer.wpe.weight"] = positions[:length]
    try:
        return weights_of_twin(network, twin, weights)
    except ValueError as error:
        raise UserError(f"{folder / WEIGHTS}: {error}") from None


def _weight_files(folder: Path) -> list[Path]:
    """Return the one file of weights, or those that the index names.

    Raises:
        UserError: one is absent, or no file of the folder.
    """
    names = [WEIGHTS]
    if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        files = read_json(folder / INDEX).get("weight_map")
        names = sorted(set(map(str, files.values()))) if isinstance(files, dict) else []
        if not names or any("/" in name or "\\" in name for name in names):
            raise UserError(f"{folder / INDEX}: weight_map: expected the names of files of the folder")
    for name in names:
        check_file(folder / name, "save the model with safetensors")
    return [folder / name for name in names]


def _read_safetensors(folder: Path) -> Weights:
    """Read the weights as they are named in their files."""
    weights: Weights = {}
    for path in _weight_files(folder):
        try:
            weights |= load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path}: damaged ({error})") from None
    if any(math.prod(value.shape) and not value.isfinite().all() for value in weights.values()):
        raise UserError(f"{folder}: a weight is not a number")
    return weights
