"""Every preset is a whole, valid params.yaml, and differs from the toy's in values alone."""

import re
from pathlib import Path

import pytest
import torch

from stages.core.transformer import ModelParams, Transformer, TransformerConfig
from stages.core.vocabulary import VocabularyParams
from stages.parameters import read_all, read_section
from stages.training.optimization import TrainParams
from stages.training.runtime import RuntimeParams
from tests.presets.sections import SECTIONS

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
TOY = ROOT / "presets" / "toy.yaml"
KEY_WITH_COMMENT = re.compile(r"^  # \S.*\n  (\w+):", re.MULTILINE)
KEY = re.compile(r"^  (\w+):", re.MULTILINE)
FLOW = re.compile(r"^[^#\n]*[\[{]", re.MULTILINE)

every_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)


def test_the_presets_are_those_that_the_makefile_names() -> None:
    """`make help` tells a user what there is."""
    target = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("repro:"))
    assert {path.stem for path in PRESETS} == set(target.partition("PRESET=")[2].split()[0].split("|"))


@every_preset
def test_every_section_is_valid(preset: Path) -> None:
    """No preset fails in the middle of a pipeline."""
    for name, model in SECTIONS.items():
        read_section(name, model, preset)


@every_preset
def test_keys_are_those_of_the_toy_in_the_same_order(preset: Path) -> None:
    """A diff between two presets shows values alone."""
    keys = {name: list(section) for name, section in read_all(preset).items()}
    expected = {name: list(section) for name, section in read_all(TOY).items()}
    assert list(keys) == list(expected) == list(SECTIONS)
    assert keys == expected


@every_preset
def test_every_key_has_one_comment_line_above_it(preset: Path) -> None:
    """A user finds what a key means where it stands."""
    text = preset.read_text()
    assert KEY_WITH_COMMENT.findall(text) == KEY.findall(text)


@every_preset
def test_block_style(preset: Path) -> None:
    """`dvc exp run -S` rewrites flow style as block style, which would show as a change."""
    assert not FLOW.findall(preset.read_text())


@every_preset
def test_a_preset_says_its_name(preset: Path) -> None:
    """A params.yaml that was taken from a preset says which one."""
    assert f"presets/{preset.name}" in preset.read_text().partition("\ndata:")[0]


def test_gpt2_has_the_size_of_gpt2() -> None:
    """124 million parameters, as its name promises; on no device, for speed."""
    preset = ROOT / "presets" / "gpt2.yaml"
    size = read_section("vocabulary", VocabularyParams, preset).size
    shape = read_section("model", ModelParams, preset).model_dump()
    with torch.device("meta"):
        network = Transformer(TransformerConfig(vocabulary_size=size, **shape))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters == pytest.approx(124_439_808, rel=0.001)  # OpenAI's own, with 50,257 tokens
    assert network(torch.zeros(1, 8, dtype=torch.int64, device="meta")).shape == (1, 8, size)


def test_gpt2_shares_its_batch_evenly() -> None:
    """The micro-batches make up the global batch on 1, 2, 4 and 8 devices."""
    preset = ROOT / "presets" / "gpt2.yaml"
    batch = read_section("train", TrainParams, preset).batch_size
    micro_batch = read_section("runtime", RuntimeParams, preset).micro_batch_size
    assert micro_batch is not None
    assert all(batch % (micro_batch * devices) == 0 for devices in (1, 2, 4, 8))
