"""What a fingerprint is taken of."""

from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from stages.artifacts.dvc_yaml import flatten
from stages.artifacts.metrics_json import write_json
from stages.artifacts.provenance_json import PROVENANCE_FILE, md5, read_provenance, stage_provenance
from stages.errors import UserError

DVC = """
stages:
  train:
    deps:
    - data.csv
    params:
    - model
    - train
  evaluate:
    deps:
    - data.csv
    params:
    - evaluate
"""
PARAMETERS = """
model:
  d_model: 2
train:
  seed: 42
  betas: [0.9, 0.999]
evaluate:
  samples: 20
  register_as: null
"""


@pytest.fixture
def fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text(DVC)
    Path("data.csv").write_text("prompt\na\n")

    def take(stage: str, old: str = "", new: str = "") -> str:
        Path("params.yaml").write_text(PARAMETERS.replace(old, new))
        return stage_provenance(stage, apart_from="evaluate.register_as").fingerprint

    return take


@pytest.mark.parametrize(("stage", "old", "new", "same"), [
    ("train", "seed: 42", "seed: 43", False),
    ("train", "0.999", "0.99", False),
    ("train", "d_model: 2", "d_model: 4", False),
    ("train", "samples: 20", "samples: 1", True),
    ("train", "register_as: null", "register_as: mine", True),
    ("evaluate", "register_as: null", "register_as: mine", True),
    ("evaluate", "samples: 20", "samples: 1", False),
])  # fmt: skip
def test_what_bears_on_the_result_changes_the_fingerprint(
    fingerprint: Callable[..., str], stage: str, old: str, new: str, same: bool
) -> None:
    assert (fingerprint(stage) == fingerprint(stage, old, new)) == same


def test_the_names_are_those_of_dvc_yaml(fingerprint: Callable[..., str]) -> None:
    fingerprint("train")
    assert stage_provenance("train").parameters == {
        "model": {"d_model": 2},
        "train": {"seed": 42, "betas": [0.9, 0.999]},
    }


def test_what_is_left_out_is_left_out_alone(fingerprint: Callable[..., str]) -> None:
    fingerprint("evaluate")
    assert stage_provenance("evaluate", apart_from="evaluate.samples").parameters == {"evaluate": {"register_as": None}}
    assert stage_provenance("evaluate").parameters == {"evaluate": {"samples": 20, "register_as": None}}


def test_a_file_that_changes_changes_the_fingerprint(fingerprint: Callable[..., str]) -> None:
    before = fingerprint("train")
    Path("data.csv").write_text("prompt\nb\n")
    assert fingerprint("train") != before


def test_a_folder_has_the_hash_that_dvc_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b/c.json", "b.x", "a b.txt", "Z/é.bin", "b/deeper/y"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    Repo.init(no_scm=True).add("folder")
    (out,) = YAML(typ="safe").load(Path("folder.dvc"))["outs"]
    assert md5(Path("folder")) == out["md5"]
    assert out["nfiles"] == 5


def test_parameters_of_any_depth_are_compared() -> None:
    """JSON may be deeper than a function can call itself."""
    deep: object = 1
    for _ in range(900):
        deep = {"a": deep}
    assert list(flatten("train", {"b": 2, "deep": deep, "c": 3}).values()) == [2, 1, 3]


@pytest.mark.parametrize(
    "fingerprint", ["../README.md", "a" * 15, "A" * 16, "0" * 16 + "\n", "", "0" * 100_000, "/etc/passwd"]
)
def test_a_fingerprint_that_could_be_a_path_is_refused(fingerprint: str, tmp_path: Path) -> None:
    write_json(tmp_path / PROVENANCE_FILE, {"fingerprint": fingerprint, "dependencies": {}, "parameters": {}})
    with pytest.raises(UserError, match="fingerprint: expected 16 hexadecimal digits, found") as error:
        read_provenance(tmp_path)
    assert len(str(error.value)) < 400
