"""A small model with some texts, one of them hostile."""

import pytest
import torch

from stages.core.transformer import Transformer, TransformerConfig
from stages.core.vocabulary import Vocabulary, VocabularyParams
from stages.core.vocabulary_building import build_vocabulary
from stages.report.content import ReportContent, build_content, inspect_row
from stages.report.token_labels import token_labels
from tests.frames import frame_of

HOSTILE = '<script>document.title="run"</script> $x_1^2$ & </textarea>'
TEXTS = [("what is CNN", "Great"), (HOSTILE, "<b>no</b>"), ("", "Great")]
METRICS = {"split": "test", "rows": 3, "tokens": 20, "loss": 1.5, "perplexity": 4.4817, "next_token_accuracy": 0.25}


def make_content(
    texts: list[tuple[str, str]] | None = None,
    *,
    tokenizer: str = "word",
    completions_only: bool = False,
    **changed: object,
) -> ReportContent:
    """Return the report's content of an untrained model."""
    texts = TEXTS if texts is None else texts
    parameters = VocabularyParams.model_validate({"tokenizer": tokenizer, "size": 300, "unknown_token": False})
    vocabulary = build_vocabulary(parameters, [frame_of(texts)])
    torch.manual_seed(0)
    shape = {
        "context_length": 64, "d_model": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": None, "feed_forward": "gelu",
        "d_ff": None, "norm": "none", "positions": "sinusoidal", "output_projection": True, "bias": False,
        "output_bias": True, "tie_embeddings": False, "dropout": 0.0, "vocabulary_size": vocabulary.size,
    }  # fmt: skip
    network = Transformer(TransformerConfig.model_validate(shape | changed)).eval()
    rows = [
        inspect_row(
            network,
            ([*encode(vocabulary, prompt), vocabulary.eos_id], [*encode(vocabulary, completion), vocabulary.eos_id]),
            completion,
            "an answer",
            exact=False,
            completions_only=completions_only,
        )
        for prompt, completion in texts
    ]
    return build_content(network, rows, token_labels(vocabulary), answers=True)


def encode(vocabulary: Vocabulary, text: str) -> list[int]:
    return vocabulary.encode(text)


@pytest.fixture(scope="session")
def content() -> ReportContent:
    """The default."""
    return make_content()
