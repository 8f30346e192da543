import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.artifacts.prompts_table import DataParams
from stages.core.params_model import LARGEST_FLOAT, LARGEST_INTEGER, LONGEST_TEXT, ParamsModel
from stages.core.split import SplitParams
from stages.core.transformer import ModelParams
from stages.core.vocabulary import VocabularyParams
from stages.core.windows import DatasetParams
from stages.errors import UserError
from stages.evaluate import EvaluateParams
from stages.parameters import read_all, read_section
from stages.training.optimization import TrainParams, build_optimizer, learning_rate_factor
from stages.training.plan import plan_training
from stages.training.runtime import RuntimeParams
from tests.training.conftest import network

TOY = Path(__file__).parents[1] / "presets/toy.yaml"
SECTIONS: dict[str, type[ParamsModel]] = {
    "data": DataParams, "split": SplitParams, "vocabulary": VocabularyParams, "dataset": DatasetParams, "model": ModelParams,
    "train": TrainParams, "evaluate": EvaluateParams, "runtime": RuntimeParams,
}  # fmt: skip
KEYS = [(section, key) for section, model in SECTIONS.items() for key in model.model_fields]
STRANGE = [
    "0x" + "f" * 5000, "-0x" + "f" * 5000, "0o" + "7" * 9000, "9" * 4300, "9" * 5000, "1e400", ".inf", "-.nan", "1e308", "-1e308", "1e39",
    "[" * 50 + "]" * 50, "[" * 5000, "{a: " * 50 + "1" + "}" * 50, "&a [*a]", "{}", "[]", "[1, [2]]", "null", "true", "", "!!binary aGVsbG8=",
    "!!set {a, b}", "!!python/object/apply:os.system [touch pwned]", "2020-01-01", "12:30:45", '"\\0"', '"a\\0b"', '"\\e[31m"', "x" * 5000,
    '"' + "word " * 5000 + '"', "'../../etc/passwd'", "\U0001f642", "[" + ", ".join("9" * 50) + "]", "{? [1, 2] : 3}", "<<: 3", "- 1", "@", "|",
]  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-(10**30), 10**30),
    st.integers(0, 400).map(lambda power: 10**power),
    st.floats(allow_nan=False),
    st.floats(0, 1),
)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_toy_has_every_key_of_a_section_in_its_order(section: str) -> None:
    parameters = read_section(section, SECTIONS[section], TOY)
    assert list(read_all(TOY)[section]) == list(type(parameters).model_fields)


def test_a_key_that_moved_says_where_to(tmp_path: Path) -> None:
    path = edited(tmp_path, "  epochs: 30\n", "  epochs: 30\n  register_as: answers\n")
    with pytest.raises(UserError, match=r"train.register_as is now evaluate.register_as; move the line$"):
        read_section("train", TrainParams, path)


def test_the_old_betas_get_one_line(tmp_path: Path) -> None:
    path = edited(tmp_path, "  beta1: 0.9\n", "  betas:\n  - 0.9\n  - 0.999\n")
    with pytest.raises(UserError) as caught:
        read_section("train", TrainParams, path)
    assert str(caught.value).endswith(
        "train.betas is now two keys, train.beta1 and train.beta2, with one number each; write these two lines in its place"
    )
    assert "\n" not in str(caught.value)


def edited(folder: Path, old: str, new: str) -> Path:
    text = TOY.read_text()
    assert old in text
    path = folder / "params.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


CASES = [
    ("learning_rate: 0.1", "learning_rat: 0.1", ["unknown key train.learning_rat", "did you mean 'learning_rate'"]),
    ("learning_rate: 0.1", "learning_rate: fast", ["train.learning_rate", "found 'fast'"]),
    ("learning_rate: 0.1", "learning_rate: 0", ["train.learning_rate", "greater than 0", "found 0"]),
    ("learning_rate: 0.1", "learning_rate: .nan", ["train.learning_rate", "finite"]),
    ("learning_rate: 0.1", "learning_rate: .inf", ["train.learning_rate", "finite"]),
    ("batch_size: 1\n", "batch_size: -1\n", ["train.batch_size", "found -1"]),
    ("batch_size: 1\n", "batch_size: 1.5\n", ["train.batch_size", "integer", "found 1.5"]),
    ("batch_size: 1\n", "batch_size: true\n", ["train.batch_size", "found True"]),
    ("optimizer: adam", "optimizer: sgd", ["train.optimizer", "'adam', 'adamw' or 'muon'", "found 'sgd'"]),
    ("max_steps: null", "max_steps: 5", ["train: exactly one of epochs and max_steps"]),
    ("beta2: 0.999", "beta2: 1.0", ["train.beta2", "less than 1", "found 1.0"]),
    ("  seed: 42\n", "", ["train.seed is missing"]),
    ("train:\n", "training:\n", ["the section 'train:' is missing"]),
]


@pytest.mark.parametrize(
    ("old", "new", "told"), CASES, ids=[new.strip() or f"no {old.strip()}" for old, new, _ in CASES]
)
def test_a_wrong_value_is_told_with_its_key(tmp_path: Path, old: str, new: str, told: list[str]) -> None:
    path = edited(tmp_path, old, new)
    with pytest.raises(UserError) as error:
        read_section("train", TrainParams, path)
    for part in [str(path), *told]:
        assert part in str(error.value)


@pytest.mark.parametrize("text", [
    "a: [", "- 1", "", "\x00", "a: " + "[" * 5000, "a: " + "{b: " * 5000, f"a: {'9' * 5000}", "&a [*a]", "a: 1\na: 2", "\udcff",
])  # fmt: skip
def test_what_is_no_parameter_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"params\.yaml") as error:
        read_all(path)
    assert len(str(error.value)) < 300


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "params.yaml")
    with pytest.raises(UserError, match=r"params\.yaml: expected a file"):
        read_all(tmp_path / "params.yaml")


@given(key=st.sampled_from(KEYS), value=st.one_of(st.sampled_from(STRANGE), NUMBERS.map(repr)))
@settings(max_examples=200)
@example(("data", "prompt_column"), "0x" + "f" * 5000)
@example(("data", "csv"), '"a\\0b"')
@example(("train", "epochs"), "1e300")
@example(("runtime", "num_nodes"), "1000000000000")
def test_whatever_stands_in_a_key_is_bounded_or_refused_in_a_line(
    tmp_path_factory: pytest.TempPathFactory, key: tuple[str, str], value: str
) -> None:
    section, name = key
    head, mark, tail = TOY.read_text().partition(f"{section}:\n")
    text = head + mark + re.sub(rf"^  {name}: ?.*$", lambda _: f"  {name}: {value}", tail, count=1, flags=re.MULTILINE)
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(text)
    message = "fuzzed.yaml"
    try:
        parameters = read_section(section, SECTIONS[section], path)
    except UserError as error:
        parameters, message = None, str(error)
    assert "fuzzed.yaml" in message
    assert len(message) < 1500
    assert len(message.splitlines()) <= 3 + message.count("fuzzed.yaml")
    found = getattr(parameters, name, None)
    if isinstance(found, int | float):
        assert abs(found) <= (LARGEST_INTEGER if isinstance(found, int) else LARGEST_FLOAT)
    if isinstance(found, str):
        assert len(found) <= LONGEST_TEXT
    if isinstance(parameters, TrainParams):
        take_a_step(parameters)


def take_a_step(parameters: TrainParams) -> None:
    """Do with the numbers what a training does; weights that become infinite are found by their loss."""
    plan = plan_training(LARGEST_INTEGER, parameters, None, 1)
    assert plan.steps * plan.micro_batches < sys.maxsize
    assert 0 <= learning_rate_factor(plan.steps, parameters, plan.steps) <= 1
    model = network(d_model=4, n_heads=1, n_layers=1)
    optimizer = build_optimizer(model, parameters)
    model(torch.zeros(1, 2, dtype=torch.int64)).sum().backward()
    if parameters.gradient_clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), parameters.gradient_clip)
    optimizer.step()


@pytest.mark.parametrize("section", ["model", "train", "evaluate", "runtime"])
@pytest.mark.parametrize("value", [10**13, 10**19, 10**4000, -(10**19)])
def test_no_whole_number_may_be_beyond_what_a_tensor_holds(section: str, value: int, tmp_path: Path) -> None:
    text = TOY.read_text()
    head, mark, tail = text.partition(f"\n{section}:\n")
    keys = re.findall(r"^  (\w+): (?:\d+|null)$", tail.partition("\n\n")[0], re.MULTILINE)
    keys = [key for key in keys if key != "group_column"]  # a column may be called by a number
    assert keys
    for key in keys:
        path = tmp_path / "params.yaml"
        path.write_text(head + mark + re.sub(rf"^  {key}: .*$", f"  {key}: {value}", tail, count=1, flags=re.MULTILINE))
        with pytest.raises(UserError, match=rf"{section}\.{key}") as error:
            read_section(section, SECTIONS[section], path)
        assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    ("key", "value"), [("threads", 10**6), ("loader_workers", 1000), ("devices", 10**6), ("threads", 0)]
)
def test_what_the_system_cannot_start_is_refused(key: str, value: int, tmp_path: Path) -> None:
    text = re.sub(rf"^  {key}: .*$", f"  {key}: {value}", TOY.read_text(), flags=re.MULTILINE)
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"runtime\.{key}.*; found {value}"):
        read_section("runtime", RuntimeParams, tmp_path / "params.yaml")


@given(st.floats(min_value=1e-9, max_value=1e3))
def test_numbers_are_read_as_dvc_reads_them(value: float) -> None:
    """DVC writes 1.0e-05 and reads 1e-5; a YAML 1.1 reader takes the latter for text."""
    import tempfile  # noqa: PLC0415 - hypothesis does not reset pytest's tmp_path

    with tempfile.TemporaryDirectory() as folder:
        path = edited(Path(folder), "learning_rate: 0.1", f"learning_rate: {value!r}")
        assert read_section("train", TrainParams, path).learning_rate == value


def test_an_integer_is_a_valid_float(tmp_path: Path) -> None:
    parameters: Any = read_section("train", TrainParams, edited(tmp_path, "learning_rate: 0.1", "learning_rate: 1"))
    assert parameters.learning_rate == 1.0
