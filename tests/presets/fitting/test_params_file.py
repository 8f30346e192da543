"""What fit writes is a whole params.yaml, from which neither DVC nor our strict reader loses anything."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import modify_yaml, parse_yaml
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from presets.fitting.choice import Choice
from presets.fitting.params_file import write_parameters

TEMPLATE = (Path(__file__).parents[3] / "presets/toy.yaml").read_text(encoding="utf-8")
TOY: dict[str, dict[str, Any]] = YAML(typ="safe").load(TEMPLATE)
KEY_WITH_COMMENT = re.compile(r"^  # \S.*\n  (\w+):", re.MULTILINE)
HEADER = "One line.\nAnother."


def test_without_choices_it_says_what_the_template_says() -> None:
    written = write_parameters(TEMPLATE, {}, HEADER)
    assert parse_yaml(written, "params.yaml") == TOY
    assert written.startswith("# One line.\n# Another.\n")
    assert "null" not in written


@given(
    values=st.fixed_dictionaries(
        {
            "data.csv": st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1),
            "data.completion_column": st.none() | st.sampled_from(["null", "no", "1", "a: b", "# c", " d ", "e"]),
            "split.test": st.floats(0, 0.99),
            "model.d_model": st.integers(1, 10**6),
            "model.bias": st.booleans(),
        }
    )
)
def test_any_value_is_read_as_it_was_written(values: dict[str, Any]) -> None:
    choices = {name: Choice(value, "because of\nthis") for name, value in values.items()}
    read = parse_yaml(write_parameters(TEMPLATE, choices, HEADER), "params.yaml")
    strict = YAML(typ="safe", pure=True).load(write_parameters(TEMPLATE, choices, HEADER))
    for name, value in values.items():
        section, key = name.split(".")
        assert read[section][key] == strict[section][key] == value
    assert [list(keys) for keys in read.values()] == [list(keys) for keys in TOY.values()]


def test_every_key_keeps_one_comment_and_a_chosen_one_says_why() -> None:
    written = write_parameters(TEMPLATE, {"model.d_model": Choice(64, "p99 is\n7")}, HEADER)
    keys = [key for section in TOY.values() for key in section]
    assert KEY_WITH_COMMENT.findall(written) == keys
    assert "# Width of the vector that stands for a token. Here: p99 is 7\n  d_model: 64\n" in written


def test_a_key_that_the_template_lacks_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError, match=r"model\.absent"):
        write_parameters(TEMPLATE, {"model.absent": Choice(1, "")}, HEADER)


def test_set_param_loses_nothing(tmp_path: Path) -> None:
    """`dvc exp run -S` writes the file anew: comments after lists and the word null would be lost (DVC 8720)."""
    path = tmp_path / "params.yaml"
    path.write_text(write_parameters(TEMPLATE, {"model.n_layers": Choice(3, "three")}, HEADER), encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    with modify_yaml(str(path)) as values:
        values["model"]["n_layers"] = 4
    assert path.read_text(encoding="utf-8") == before.replace("n_layers: 3", "n_layers: 4")


def test_the_file_is_block_style() -> None:
    assert YAML(typ="safe").load(io.StringIO(write_parameters(TEMPLATE, {}, HEADER)))
    assert not re.search(r"^[^#\n]*[\[{]", write_parameters(TEMPLATE, {}, HEADER), re.MULTILINE)
