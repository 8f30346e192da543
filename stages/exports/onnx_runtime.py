"""The model as model.onnx: token ids in, logits out, with a cache of keys and values or without one.

The number of rows and of tokens is free, up to the context. Inputs and outputs are named as Hugging Face's Optimum names
them: each layer's ``past_key_values`` come in, ``present`` ones go out, longer by the new tokens. Empty past ones are no cache.
Shapes: B batch, T new tokens, P past tokens, S = P + T, V vocabulary size, K heads of keys and values, H head_dim.
"""

from __future__ import annotations

import logging
import warnings
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from stages.core.kernels import fused_attention
from stages.exports.engines import cut_at_eos, named, require
from stages.exports.huggingface import tokenizer_with_ending

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stages.core.kernels import Definition, Dropout
    from stages.core.saved_model import SavedModel
    from stages.core.transformer import Transformer
    from stages.core.vocabulary import Vocabulary

ONNX_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
INPUT, OUTPUT = "input_ids", "logits"


def write_onnx(folder: Path, model: SavedModel, vocabulary: Vocabulary) -> None:
    """Write model.onnx, and tokenizer.json for the tokenizers library.

    Raises:
        UserError: onnxscript is not installed.
    """
    require("onnxscript", "to write for ONNX Runtime")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which no model of text needs
    folder.mkdir(parents=True, exist_ok=True)
    config = model.network.config
    past = [torch.zeros(2, config.key_value_heads, 2, config.head_dim) for _ in range(2 * config.n_layers)]
    example = torch.zeros(2, min(config.context_length, 3), dtype=torch.int64)
    batch = torch.export.Dim("batch")
    length = torch.export.Dim("length", max=config.context_length)
    past_sizes = {0: batch, 2: torch.export.Dim("past")}
    names = [f"{layer}.{kind}" for layer in range(config.n_layers) for kind in ("key", "value")]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="# The axis name")  # one size has one name, that of its first place
        warnings.filterwarnings("ignore", category=FutureWarning)  # between torch's own parts
        program = torch.onnx.export(
            _WithCache(model.network).eval(), (example, past), dynamo=True, verbose=False,
            input_names=[INPUT, *(f"past_key_values.{name}" for name in names)],
            output_names=[OUTPUT, *(f"present.{name}" for name in names)],
            dynamic_shapes=({0: batch, 1: length}, [past_sizes] * len(past)),
        )  # fmt: skip
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    passes = require("onnx_ir.passes.common", "to write for ONNX Runtime")
    passes.ClearMetadataAndDocStringPass()(program.model)  # paths of this machine
    program.save(folder / ONNX_FILE)
    tokenizer_with_ending(model, vocabulary).save(str(folder / TOKENIZER_FILE))


class _WithCache(nn.Module):
    """A network whose keys and values come in and go out, as a file keeps nothing between two calls."""

    def __init__(self, network: Transformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map [B, T], and each layer's keys and values [B, K, P, H], to [B, T, V] and those of all tokens, [B, K, S, H]."""
        start = past[0].shape[2]
        positions = torch.arange(start + input_ids.shape[1])  # [S]
        new = positions[start:]  # [T]
        attention_mask = positions <= new[:, None]  # [T, S]
        present: list[Tensor] = []

        def attend(
            layer: int, _definition: Definition, queries: Tensor, keys: Tensor, values: Tensor, _dropout: Dropout
        ) -> Tensor:
            keys = torch.cat((past[2 * layer], keys), dim=2)
            values = torch.cat((past[2 * layer + 1], values), dim=2)
            present.extend((keys, values))
            return fused_attention(queries, keys, values, attention_mask)

        attends = [partial(attend, layer) for layer in range(self.network.config.n_layers)]
        logits: Tensor = self.network.output(self.network.hidden_states(input_ids, new, attends))
        return (logits, *present)


Cache = dict[str, np.ndarray]
"""Keys and values, [B, K, P, H], by the names of the inputs that take them."""


class OnnxRuntime:
    """ONNX Runtime, with a file opened."""

    tolerance = 1e-3
    spare = 0

    def __init__(self, folder: Path, vocabulary: Vocabulary, *, cached: bool = True) -> None:
        """Open model.onnx and tokenizer.json.

        Args:
            folder: where they are.
            vocabulary: of the model.
            cached: whether each token is read once, or all of a text for each new token.

        Raises:
            UserError: onnxruntime is not installed.
        """
        onnxruntime = require("onnxruntime", "to check a file for ONNX Runtime")
        self.name = f"{named('onnxruntime')} {'with' if cached else 'without'} a cache"
        self._cached = cached
        self._eos_id = vocabulary.eos_id
        self._session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._tokenizer.encode_special_tokens = True  # which its file does not keep

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a prompt."""
        return list(self._tokenizer.encode(text).ids)

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Return [T, V]; with a cache the second half of a text is read after the first."""
        cache, logits = self._empty_cache(1), []
        half = (len(token_ids) + 1) // 2 if self._cached else len(token_ids)
        for part in filter(None, (token_ids[:half], token_ids[half:])):
            some, cache = self._run(np.array([part]), cache)
            logits.append(torch.from_numpy(some[0]))
        return torch.cat(logits)

    def complete(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Complete prompts of one length."""
        input_ids = unread = np.array(prompts)
        start = input_ids.shape[1]
        empty = cache = self._empty_cache(len(prompts))
        for _ in range(max_new_tokens):
            logits, cache = self._run(unread, cache) if self._cached else self._run(input_ids, empty)
            unread = logits[:, -1:].argmax(axis=-1)  # [B, 1]
            input_ids = np.concatenate((input_ids, unread), axis=1)
            if (input_ids[:, start:] == self._eos_id).any(axis=1).all():
                break
        return [cut_at_eos(row, self._eos_id) for row in input_ids[:, start:]]

    def _empty_cache(self, rows: int) -> Cache:
        inputs = self._session.get_inputs()[1:]
        return {each.name: np.zeros((rows, each.shape[1], 0, each.shape[3]), np.float32) for each in inputs}

    def _run(self, input_ids: np.ndarray, past: Cache) -> tuple[np.ndarray, Cache]:
        """Map [B, T] to [B, T, V], and the cache to a longer one."""
        logits, *present = self._session.run(None, {INPUT: input_ids.astype(np.int64), **past})
        return logits, dict(zip(past, present, strict=True))
