"""The model as model.gguf, which llama.cpp opens, and the programs around it: Ollama, LM Studio, llama-server.

Shapes: N heads, H head_dim, V vocabulary size.
"""

from __future__ import annotations

import json
import string
import urllib.request
from typing import TYPE_CHECKING, Any

import torch

from stages.errors import UserError
from stages.exports.engines import cut_at_eos, named, require
from stages.exports.twins import find_twin, twin_weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from stages.core.saved_model import SavedModel
    from stages.core.transformer import TransformerConfig
    from stages.core.vocabulary import Vocabulary
    from stages.exports.twins import Twin, Weights

GGUF_FILE = "model.gguf"

# What llama.cpp computes in the feed-forward of each architecture that we have a twin of.
FEED_FORWARDS: dict[Twin, str] = {
    "llama": "swiglu",
    "qwen3": "swiglu",
    "stablelm": "swiglu",
    "arcee": "relu2",
    "nemotron": "relu2",
    "gpt2": "gelu_tanh",
}
# It rotates neighbours (0, 1), (2, 3) there, where transformers and we rotate the halves (i, i + H/2).
ROTATES_NEIGHBOURS = ("llama", "arcee")
# The space, in the tokenizer that we take for characters: SentencePiece's.
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

# Our names after twin_weights, by llama.cpp's.
_ROTARY_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GPT2_NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def write_gguf(folder: Path, model: SavedModel, vocabulary: Vocabulary) -> None:
    """Write model.gguf with the weights in float32, and the vocabulary.

    Raises:
        UserError: gguf is not installed, or llama.cpp cannot compute the model or cut its texts.
    """
    config = model.network.config
    twin = gguf_twin(config)
    _refuse_vocabulary(vocabulary)
    gguf = require("gguf", "to write for llama.cpp")
    folder.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(folder / GGUF_FILE, twin)
    _add_shape(writer, config, twin)
    _add_vocabulary(gguf, writer, vocabulary, ends_with_eos=model.prompts_end_with_eos)
    for name, value in gguf_weights(model, twin).items():
        writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_weights(model: SavedModel, twin: Twin) -> Weights:
    """Return the weights by llama.cpp's names and in its order of rows."""
    config = model.network.config
    named_ = _GPT2_NAMES if twin == "gpt2" else _ROTARY_NAMES
    weights = {}
    for name, value in twin_weights(model.network, twin).items():
        place, kind = name.rsplit(".", 1)
        block = ""
        if ".layers." in place or ".h." in place:
            _, _, number, place = place.split(".", 3)
            block = f"blk.{number}."
        tensor = value
        if twin == "gpt2" and place.partition(".")[0] in ("attn", "mlp") and kind == "weight":
            tensor = value.T  # llama.cpp keeps them as nn.Linear does
        if twin == "nemotron" and named_[place].endswith("norm") and kind == "weight":
            tensor = value + 1
        if twin in ROTATES_NEIGHBOURS and place in ("self_attn.q_proj", "self_attn.k_proj"):
            tensor = _neighbours(value, config.head_dim)
        weights[f"{block}{named_[place]}.{kind}"] = tensor.contiguous()
    return weights


def _neighbours(rows: Tensor, head_dim: int) -> Tensor:
    """Put the rows i and i + H/2 of each head side by side, [NH, ...]."""
    halves: Tensor = rows.unflatten(0, (-1, 2, head_dim // 2))
    return halves.transpose(1, 2).flatten(0, 2)


def gguf_twin(config: TransformerConfig) -> Twin:
    """Return the architecture of llama.cpp whose computation is the same.

    Raises:
        UserError: there is none; the message names the parameter in the way.
    """
    twin = find_twin(config)
    if config.feed_forward != FEED_FORWARDS[twin]:
        raise UserError(
            f"model.feed_forward: found {config.feed_forward} with norm {config.norm} and {config.positions} positions, "
            f"where llama.cpp ({twin}) computes {FEED_FORWARDS[twin]}; allowed for gguf: that, or rotary positions with "
            "swiglu; huggingface and onnx take this model"
        )
    if twin == "arcee" and config.bias:
        raise UserError(
            f"model.bias: found true with feed_forward {config.feed_forward} and norm {config.norm}, where llama.cpp (arcee) has no "
            "biases; allowed for gguf: false; huggingface and onnx take this model"
        )
    return twin


def _refuse_vocabulary(vocabulary: Vocabulary) -> None:
    if vocabulary.name == "word":
        raise UserError(
            "vocabulary.tokenizer: found word, which llama.cpp cannot cut; allowed for gguf: bpe or character; "
            "huggingface and onnx take every vocabulary"
        )
    if vocabulary.name == "character" and SPACE in vocabulary.token_to_id:
        raise UserError(f"the vocabulary has the character {SPACE!r} (U+2581), which stands for the space in llama.cpp")
    if vocabulary.name == "bpe" and not vocabulary.cuts_as_gpt2:
        raise UserError(
            "vocabulary.file: found a tokenizer that cuts or normalises text otherwise than GPT-2's; allowed for gguf: "
            "GPT-2's kind; huggingface and onnx take every vocabulary"
        )
    if vocabulary.name == "bpe" and not _merges(vocabulary):
        raise UserError(
            "vocabulary.size: found no merges of bytes, which llama.cpp needs; allowed for gguf: more than 257"
        )


def _merges(vocabulary: Vocabulary) -> list[str]:
    merges = json.loads(vocabulary.tokenizer.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _add_shape(writer: Any, config: TransformerConfig, twin: Twin) -> None:
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.feed_forward_width)
    writer.add_head_count(config.n_heads)
    # GPT-2 has no shared heads: twin_weights repeats them.
    writer.add_head_count_kv(config.n_heads if twin == "gpt2" else config.key_value_heads)
    writer.add_file_type(0)  # float32
    if config.norm == "rms":
        writer.add_layer_norm_rms_eps(config.norm_eps)
    else:
        writer.add_layer_norm_eps(config.norm_eps)
    if config.positions == "rotary":
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_theta)
    if twin == "stablelm":
        writer.add_parallel_residual(use=False)
    writer.add_vocab_size(config.vocabulary_size)


def _add_vocabulary(gguf: Any, writer: Any, vocabulary: Vocabulary, *, ends_with_eos: bool) -> None:
    characters = vocabulary.name == "character"
    kinds = dict.fromkeys(range(vocabulary.size), gguf.TokenType.NORMAL)
    for token_id, token in vocabulary.tokenizer.get_added_tokens_decoder().items():
        kinds[token_id] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
    if vocabulary.unknown_id is not None:
        kinds[vocabulary.unknown_id] = gguf.TokenType.UNKNOWN
        writer.add_unk_token_id(vocabulary.unknown_id)
    tokens = [token.replace(" ", SPACE) if characters else token for token in vocabulary.token_to_id]
    writer.add_tokenizer_model("llama" if characters else "gpt2")
    writer.add_tokenizer_pre("default" if characters else "gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(list(kinds.values()))
    if characters:
        writer.add_token_scores([0.0] * vocabulary.size)
        writer.add_add_space_prefix(False)
    else:
        writer.add_token_merges(_merges(vocabulary))
    writer.add_bos_token_id(vocabulary.eos_id)  # otherwise it takes the token 1 for it
    writer.add_eos_token_id(vocabulary.eos_id)
    writer.add_pad_token_id(vocabulary.eos_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(ends_with_eos)


class LlamaCpp:
    """llama.cpp by the package xllamacpp, with a file opened; in float32 throughout."""

    tolerance = 1e-3
    spare = 1  # for the token that it must choose to say what it thinks of all

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        """Open model.gguf.

        Raises:
            UserError: xllamacpp is not installed.
        """
        xllamacpp = require("xllamacpp", "to check a file for llama.cpp")
        self.name = named("xllamacpp")
        self._eos_id, self._size = vocabulary.eos_id, vocabulary.size
        letters = (token_id for token, token_id in vocabulary.token_to_id.items() if token in string.printable.strip())
        self._letter = next(letters, 0)
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(folder / GGUF_FILE)
        parameters.n_parallel = 1
        parameters.n_gpu_layers = 0
        parameters.cpuparams.n_threads = torch.get_num_threads()
        parameters.warmup = False
        parameters.verbosity = -1
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self._server = xllamacpp.Server(parameters)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a prompt."""
        return list(self._ask("tokenize", {"content": text, "add_special": True})["tokens"])

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Return the log-probabilities after the last token, [1, V]."""
        # It tells of no token whose text is nothing or half a character, so it is made to choose a letter; what it
        # tells of are the log-probabilities before that.
        answer = self._complete(token_ids, 1, n_probs=self._size, logit_bias=[[self._letter, 1e6]])
        logits = torch.full((1, self._size), -torch.inf)
        for token in answer["completion_probabilities"][0]["top_logprobs"]:
            logits[0, token["id"]] = token["logprob"]
        return logits

    def complete(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Complete prompts, one after the other."""
        completions = []
        for prompt in prompts:
            answer = self._complete(prompt, max_new_tokens)
            # <EOS> is not among its tokens.
            ended = [self._eos_id] if answer["stop_type"] == "eos" else []
            completions.append(cut_at_eos([*answer["tokens"], *ended], self._eos_id))
        return completions

    def _complete(self, prompt: Sequence[int], max_new_tokens: int, **options: Any) -> Any:
        request = {"prompt": list(prompt), "n_predict": max_new_tokens, "return_tokens": True, "temperature": 0.0}
        return self._ask("completion", request | {"cache_prompt": False} | options)

    def _ask(self, place: str, question: dict[str, Any]) -> Any:
        """Ask llama.cpp's server, which listens on 127.0.0.1."""
        address, body = f"{self._server.listening_address}/{place}", json.dumps(question).encode()
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - our own server
            return json.load(answer)
