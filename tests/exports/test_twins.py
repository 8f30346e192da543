"""The table of docs/export.md says of every shape what it can become, and the code does what it says."""

from itertools import product
from pathlib import Path

import pytest

from stages.core.transformer import TransformerConfig
from stages.errors import UserError
from stages.exports.llama_cpp import gguf_twin
from stages.exports.twins import find_twin
from tests.exports.test_exports import LLAMA

PAGE = Path(__file__).parents[2] / "docs/export.md"
TABLE = PAGE.read_text(encoding="utf-8").partition("## What each shape can become")[2].partition("\n## ")[0]
HEAD, _, *ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines() if line[:1] == "|"
]
VALUES = {
    "positions": ["rotary", "learned", "sinusoidal"],
    "norm": ["rms", "layer", "none"],
    "feed_forward": ["swiglu", "gelu", "gelu_tanh", "relu2", "none"],
    "qk_norm": ["false", "true"],
    "bias": ["false", "true"],
}
CLASSES = {
    "LLaMA": "llama", "Qwen3": "qwen3", "Arcee": "arcee", "Nemotron": "nemotron", "StableLM": "stablelm", "GPT-2": "gpt2",
}  # fmt: skip
COLUMNS = len(VALUES)


def config_of(shape: tuple[str, ...], *, output_bias: bool) -> TransformerConfig:
    values = {name: {"true": True, "false": False}.get(value, value) for name, value in zip(VALUES, shape, strict=True)}
    sizes = {
        "context_length": 8, "d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": None, "dropout": 0.0,
        "zero_init_projections": False, "vocabulary_size": 9,
    }  # fmt: skip
    return TransformerConfig.model_validate(LLAMA | sizes | values | {"output_bias": output_bias})


def answers(config: TransformerConfig) -> list[str]:
    """Return the class of transformers, and the architecture of llama.cpp; "no" where it is refused."""
    found: list[str] = []
    for find in (find_twin, gguf_twin):
        try:
            found.append(find(config))
        except UserError:
            found.append("no")
    return found


def test_the_table_has_the_parameters_of_a_shape() -> None:
    assert [*VALUES, "Hugging Face class", "gguf", "onnx"] == HEAD
    assert {row[-1] for row in ROWS} == {"yes"}  # tested with random shapes beside this
    assert {row[COLUMNS] for row in ROWS} == {*CLASSES, "no"}
    for row in ROWS[:-1]:
        for cell, values in zip(row, VALUES.values(), strict=False):
            assert cell == "any" or set(cell.split(" or ")) <= set(values)


@pytest.mark.parametrize("positions", VALUES["positions"])
@pytest.mark.parametrize("norm", VALUES["norm"])
def test_each_shape_becomes_what_the_table_says(positions: str, norm: str) -> None:
    *rows, otherwise = ROWS
    for shape in product([positions], [norm], *list(VALUES.values())[2:]):
        fits = [
            row for row in rows
            if all(cell == "any" or value in cell.split(" or ") for cell, value in zip(row, shape, strict=False))
        ]  # fmt: skip
        assert len(fits) <= 1, shape
        name, in_gguf, _ = (fits[0] if fits else otherwise)[COLUMNS:]
        twin = CLASSES.get(name, "no")
        assert answers(config_of(shape, output_bias=False)) == [twin, twin if in_gguf == "yes" else "no"], shape
        assert answers(config_of(shape, output_bias=True)) == ["no", "no"], shape
