"""Small real data and models, and one way to train them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.core.examples import Examples
from stages.core.transformer import Transformer, TransformerConfig
from stages.core.windows import DatasetParams, RowSpans
from stages.parameters import read_all
from stages.training.checkpoint_parts import Share, replace
from stages.training.fit import TrainingResult, fit
from stages.training.optimization import TrainParams
from stages.training.runtime import RuntimeParams

CONTEXT_LENGTH = 8
VOCABULARY_SIZE = 11
EOS_ID = 10


TOY = read_all(Path(__file__).parents[2] / "presets/toy.yaml")


def train_parameters(**changed: Any) -> TrainParams:
    values: dict[str, Any] = TOY["train"] | {
        "seed": 1, "optimizer": "adamw", "learning_rate": 0.01, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1,
        "schedule": "cosine", "warmup_steps": 2, "min_learning_rate": 0.001, "epochs": None, "max_steps": 10,
        "batch_size": 4, "gradient_clip": 1.0,
    }  # fmt: skip
    return TrainParams(**values | changed)


def runtime_parameters(**changed: Any) -> RuntimeParams:
    return RuntimeParams(**TOY["runtime"] | {"accelerator": "cpu", "threads": 1} | changed)


def network(**changed: Any) -> Transformer:
    values: dict[str, Any] = {
        "context_length": CONTEXT_LENGTH, "d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": None,
        "feed_forward": "gelu", "d_ff": None, "norm": "layer", "positions": "learned", "output_projection": True,
        "bias": True, "output_bias": False, "tie_embeddings": True, "dropout": 0.0, "vocabulary_size": VOCABULARY_SIZE,
    }  # fmt: skip
    torch.manual_seed(3)
    return Transformer(TransformerConfig(**values | changed))


def examples(rows: int = 20, packing: str = "rows", seed: int = 0) -> Examples:
    """Rows that count upwards from a random digit, of different lengths, each closed by <EOS>."""
    random = np.random.default_rng(seed)
    texts = [
        [*((int(random.integers(10)) + np.arange(random.integers(3, CONTEXT_LENGTH))) % 10), EOS_ID]
        for _ in range(rows)
    ]
    offsets = np.cumsum([0, *map(len, texts)])
    parameters = DatasetParams.model_validate({"packing": packing, "loss_on": "all", "stride": None})
    return Examples(
        np.concatenate(texts).astype(np.uint8), RowSpans(offsets, offsets[1:]), parameters, CONTEXT_LENGTH, EOS_ID
    )


def train(
    model: Transformer, *, rows: int = 20, held_out: int = 0, runtime: dict[str, Any] | None = None, **changed: Any
) -> TrainingResult:
    """Train ``model`` on ``examples`` with ``train_parameters``."""
    validation = examples(held_out, seed=1) if held_out else None
    return fit(
        model,
        examples(rows),
        validation,
        train_parameters(**changed),
        runtime_parameters(**runtime or {}),
        lambda _metrics, _step: None,
    )


def divided(whole: Any, share: Share) -> Any:
    """Return one device's rows of all tensors that have rows."""
    return replace(whole, torch.Tensor, lambda _, value: share.of(value) if value.ndim else value)
