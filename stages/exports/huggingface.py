"""The model as a folder that transformers opens with AutoModelForCausalLM and AutoTokenizer, without code of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, processors

from stages.core.vocabulary import UNKNOWN
from stages.exports.engines import cut_at_eos, named, require
from stages.exports.twins import find_twin, twin_weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from stages.core.saved_model import SavedModel
    from stages.core.transformer import TransformerConfig
    from stages.core.vocabulary import Vocabulary
    from stages.exports.twins import Twin

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu2": "relu2", "swiglu": "silu"}
"""Our feed-forwards, by the names of transformers; its "gelu" is the exact one."""


def write_huggingface(folder: Path, model: SavedModel, vocabulary: Vocabulary) -> None:
    """Write config.json, model.safetensors, generation_config.json, tokenizer.json and tokenizer_config.json.

    Raises:
        UserError: transformers is not installed, or has no class for the model.
    """
    twin = find_twin(model.network.config)
    transformers = require("transformers", "to write a Hugging Face folder")
    eos_id = vocabulary.eos_id
    values = twin_config(model.network.config, twin)
    config = transformers.AutoConfig.for_model(twin, **values, bos_token_id=eos_id, eos_token_id=eos_id)
    config.dtype = "float32"
    foreign = transformers.AutoModelForCausalLM.from_config(config)
    foreign.load_state_dict(twin_weights(model.network, twin))
    foreign.generation_config = transformers.GenerationConfig(eos_token_id=eos_id, pad_token_id=eos_id, do_sample=False)
    foreign.save_pretrained(folder)
    write_tokenizer(folder, model, vocabulary)


def write_tokenizer(folder: Path, model: SavedModel, vocabulary: Vocabulary) -> None:
    """Write tokenizer.json and tokenizer_config.json; a prompt's token ids end with <EOS> if the model was taught so.

    Raises:
        UserError: transformers is not installed.
    """
    transformers = require("transformers", "to write a tokenizer that it opens")
    tokenizer = tokenizer_with_ending(model, vocabulary)
    eos = tokenizer.id_to_token(vocabulary.eos_id)
    special = {"eos_token": eos, "pad_token": eos}
    if vocabulary.unknown_id is not None:
        special["unk_token"] = UNKNOWN
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model.network.config.context_length,
        padding_side="left",  # as for every model that continues a text
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # a text that says <EOS> ends nothing
        **special,
    ).save_pretrained(folder)


def tokenizer_with_ending(model: SavedModel, vocabulary: Vocabulary) -> Tokenizer:
    """Return the vocabulary as a tokenizer that ends a prompt with <EOS> if the model was taught so."""
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer.to_str())
    tokenizer.post_processor = None
    if model.prompts_end_with_eos:
        eos = tokenizer.id_to_token(vocabulary.eos_id)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["$A", eos], pair=["$A", eos, "$B:1", f"{eos}:1"], special_tokens=[(eos, vocabulary.eos_id)]
        )
    return tokenizer


def twin_config(config: TransformerConfig, twin: Twin) -> dict[str, Any]:
    """Return the twin's configuration by the names of transformers, without special tokens."""
    common = {"vocab_size": config.vocabulary_size, "tie_word_embeddings": config.tie_embeddings}
    activation = ACTIVATIONS[config.feed_forward]
    if twin == "gpt2":
        return common | {
            "n_positions": config.context_length, "n_embd": config.d_model, "n_layer": config.n_layers,
            "n_head": config.n_heads, "n_inner": config.feed_forward_width, "activation_function": activation,
            "layer_norm_epsilon": config.norm_eps, "resid_pdrop": config.dropout, "embd_pdrop": config.dropout,
            "attn_pdrop": config.dropout,
        }  # fmt: skip
    epsilon = {"nemotron": "norm_eps", "stablelm": "layer_norm_eps"}.get(twin, "rms_norm_eps")
    biases = {} if twin in ("stablelm", "qwen3") else {"attention_bias": config.bias, "mlp_bias": config.bias}
    return common | biases | {
        "hidden_size": config.d_model, "intermediate_size": config.feed_forward_width,
        "num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.key_value_heads, "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length, "hidden_act": activation, epsilon: config.norm_eps,
        "attention_dropout": config.dropout,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta, "partial_rotary_factor": 1.0},
    }  # fmt: skip


class Transformers:
    """transformers, with a folder opened."""

    tolerance = 1e-3
    spare = 0

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        """Open a folder.

        Raises:
            UserError: transformers is not installed.
        """
        transformers = require("transformers", "to check a Hugging Face folder")
        self.name, self._eos_id = named("transformers"), vocabulary.eos_id
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a prompt."""
        return list(self._tokenizer(text)["input_ids"])

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Return [T, V]."""
        logits: Tensor = self._model(torch.tensor([list(token_ids)])).logits[0]
        return logits

    def complete(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Complete prompts of one length."""
        input_ids = torch.tensor([list(prompt) for prompt in prompts])
        generated = self._model.generate(
            input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=max_new_tokens
        )
        return [cut_at_eos(row.tolist(), self._eos_id) for row in generated[:, input_ids.shape[1] :]]
