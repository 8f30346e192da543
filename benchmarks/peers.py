"""A GPT-2 of the same shape in this project, in transformers, in nanoGPT and in litgpt, each imported when it is asked for."""

from typing import Any, NamedTuple

import torch

from stages.core.transformer import Transformer, TransformerConfig


class Shape(NamedTuple):
    """A model and a batch."""

    layers: int
    heads: int
    d_model: int
    context_length: int
    batch_size: int
    vocabulary_size: int
    dropout: float = 0.0

    def flops(self) -> float:
        """Return the floating-point operations of one training step: forward, and twice that backward.

        Each weight of a matrix takes a multiplication and an addition a token; attention takes 4 T D a token and layer,
        half of which the mask spares.
        """
        weights = 12 * self.layers * self.d_model**2 + self.vocabulary_size * self.d_model
        tokens = self.batch_size * self.context_length
        return 6 * weights * tokens + 6 * self.layers * self.context_length * self.d_model * tokens


SMALL = Shape(4, 4, 128, 64, 12, 65)
BABY = Shape(6, 6, 384, 256, 64, 65)
BABY_WITH_DROPOUT = BABY._replace(dropout=0.2, batch_size=16)
"""With the dropout of nanoGPT's config/train_shakespeare_char.py, and a quarter of its batch: all peers must fit into memory."""
GPT2 = Shape(12, 12, 768, 1024, 12, 50304)
"""124M parameters, with the vocabulary that nanoGPT rounds up and the batch of its bench.py."""


def ours(shape: Shape) -> Transformer:
    """Return this project's model."""
    values: dict[str, Any] = {
        "context_length": shape.context_length, "d_model": shape.d_model, "n_layers": shape.layers,
        "n_heads": shape.heads, "n_kv_heads": None, "feed_forward": "gelu", "d_ff": None, "norm": "layer",
        "positions": "learned", "output_projection": True, "bias": False, "output_bias": False,
        "tie_embeddings": True, "dropout": shape.dropout, "vocabulary_size": shape.vocabulary_size,
    }  # fmt: skip
    return Transformer(TransformerConfig(**values))


def of_transformers(shape: Shape) -> Any:
    """Return transformers' GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415
    from transformers.utils.logging import set_verbosity_error  # noqa: PLC0415

    set_verbosity_error()
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocabulary_size, n_positions=shape.context_length, n_embd=shape.d_model,
            n_layer=shape.layers, n_head=shape.heads,
            attn_pdrop=shape.dropout, resid_pdrop=shape.dropout, embd_pdrop=shape.dropout,
            bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def of_nanogpt(shape: Shape) -> Any:
    """Return nanoGPT's GPT-2; its checkout is in sys.path."""
    from model import GPT, GPTConfig  # noqa: PLC0415

    return GPT(
        GPTConfig(
            shape.context_length,
            shape.vocabulary_size,
            shape.layers,
            shape.heads,
            shape.d_model,
            shape.dropout,
            bias=False,
        )
    )


def of_litgpt(shape: Shape) -> Any:
    """Return litgpt's model in a shape as near as it has: rotary positions, as many weights in its layers, no dropout."""
    from litgpt.config import Config  # noqa: PLC0415
    from litgpt.model import GPT  # noqa: PLC0415

    return GPT(
        Config(
            name="peer", block_size=shape.context_length, vocab_size=shape.vocabulary_size,
            padded_vocab_size=shape.vocabulary_size, n_layer=shape.layers, n_head=shape.heads, n_embd=shape.d_model,
            bias=False, lm_head_bias=False, norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP",
            parallel_residual=False, rotary_percentage=1.0,
        )
    )  # fmt: skip


def random_tokens(shape: Shape) -> torch.Tensor:
    """Return a text of random tokens."""
    return torch.randint(shape.vocabulary_size, (200_000,))
