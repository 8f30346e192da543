"""The model as model.onnx: token ids in, logits out, with any number of rows and any length up to the context.

Shapes: B batch, T tokens, V vocabulary size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

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
    folder.mkdir(parents=True, exist_ok=True)
    network = _Explicit(model.network).eval()
    longest = model.network.config.context_length
    example = torch.zeros(2, min(longest, 3), dtype=torch.int64)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=longest)}
    with torch.no_grad():
        program = torch.onnx.export(
            network, (example,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=(sizes,),
            verbose=False,
        )  # fmt: skip
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    passes = require("onnx_ir.passes.common", "to write for ONNX Runtime")
    passes.ClearMetadataAndDocStringPass()(program.model)  # paths of this machine
    program.save(folder / ONNX_FILE)
    tokenizer_with_ending(model, vocabulary).save(str(folder / TOKENIZER_FILE))


class _Explicit(nn.Module):
    """A network that attends step by step: torch's fused operation asks for the length, which is to stay open."""

    def __init__(self, network: Transformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map [B, T] to [B, T, V]."""
        attends = [_attend_explicitly] * self.network.config.n_layers
        logits: Tensor = self.network.output(self.network.hidden_states(input_ids, attends=attends))
        return logits


def _attend_explicitly(
    definition: Definition, queries: Tensor, keys: Tensor, values: Tensor, dropout: Dropout
) -> Tensor:
    return definition(queries, keys, values, dropout)[0]


class OnnxRuntime:
    """ONNX Runtime, with a file opened."""

    tolerance = 1e-3
    spare = 0

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        """Open model.onnx and tokenizer.json.

        Raises:
            UserError: onnxruntime is not installed.
        """
        onnxruntime = require("onnxruntime", "to check a file for ONNX Runtime")
        self.name = named("onnxruntime")
        self._eos_id = vocabulary.eos_id
        self._session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._tokenizer.encode_special_tokens = True  # which its file does not keep

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a prompt."""
        return list(self._tokenizer.encode(text).ids)

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Return [T, V]."""
        return torch.from_numpy(self._run(np.array([token_ids]))[0])

    def complete(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Complete prompts of one length; each step reads everything before it."""
        input_ids = np.array(prompts)
        start = input_ids.shape[1]
        for _ in range(max_new_tokens):
            chosen = self._run(input_ids)[:, -1].argmax(axis=-1)
            input_ids = np.concatenate((input_ids, chosen[:, None]), axis=1)
            if (input_ids[:, start:] == self._eos_id).any(axis=1).all():
                break
        return [cut_at_eos(row, self._eos_id) for row in input_ids[:, start:]]

    def _run(self, input_ids: np.ndarray) -> np.ndarray:
        """Map [B, T] to [B, T, V]."""
        logits: np.ndarray = self._session.run([OUTPUT], {INPUT: input_ids.astype(np.int64)})[0]
        return logits
