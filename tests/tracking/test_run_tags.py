"""What a run says of itself, without a store."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run, RunData, RunInfo, RunTag

from stages.artifacts.provenance_json import Provenance
from stages.tracking.baseline import git
from stages.tracking.run_tags import LONGEST_NAME, LONGEST_TAG, name_run, run_parameters, run_tags, way_back

PARAMETERS = {"model": {"d_model": 2}, "train": {"betas": [0.9, 0.999], "patience": None}, "runtime": {"threads": 1}}
LOCK = """
stages:
  build_vocabulary:
    deps:
    - {path: data/prompts.csv, md5: old, size: 1}
    - {path: stages/core/vocabulary.py, md5: v1, size: 1}
    params: {params.yaml: {vocabulary: {tokenizer: character, size: 100, file: null}, split: {validation: 0.0, seed: 0}}}
    outs: [{path: data/vocabulary.json, md5: x}]
  train:
    deps:
    - {path: data/vocabulary.json, md5: x}
    - {path: stages/core/transformer.py, md5: t1}
    params: {params.yaml: {train.learning_rate: 0.1, model: {d_model: 2, feed_forward: none, d_ff: null}, train.seed: 1,
                           train.schedule: linear, train.cooldown_fraction: 0.4}}
  evaluate:
    params: {params.yaml: {evaluate: {samples: 20}}}
"""
BEFORE: dict[str, Any] = {
    "data": {"csv": "data/prompts.csv"},
    "split": {"validation": 0.0, "seed": 0},
    "vocabulary": {"tokenizer": "character", "size": 100, "file": None},
    "model": {"d_model": 2, "feed_forward": "none", "d_ff": None},
    "train": {"learning_rate": 0.1, "seed": 1, "schedule": "linear", "cooldown_fraction": 0.4},
    "evaluate": {"samples": 20},
}


def provenance(**dependencies: str) -> Provenance:
    return Provenance(fingerprint="a" * 16, dependencies=dependencies, parameters={})


def run(tags: dict[str, str]) -> Run:
    info = RunInfo("r1", "1", "me", "FINISHED", 0, 0, "active")
    return Run(info, RunData(params=run_parameters(PARAMETERS), tags=[RunTag(*tag) for tag in tags.items()]))


@pytest.fixture(autouse=True)
def no_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "GIT_DIR", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_parameters_are_written_as_in_params_yaml() -> None:
    assert {item.key: item.value for item in run_parameters(PARAMETERS)} == {
        "model.d_model": "2",
        "train.betas": "[0.9, 0.999]",
        "train.patience": "null",
        "runtime.threads": "1",
    }


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that is a folder of a larger repository, with a committed result."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "project"
    (folder / "metrics").mkdir(parents=True)
    (folder / "dvc.lock").write_text(LOCK)
    (folder / "params.yaml").write_text("train: {}\n")
    (folder / "metrics/train.json").write_text("{}")
    (tmp_path / "README.md").write_text("another project's")
    git("init", "--quiet")
    git("add", "--all")
    git("-c", "user.name=T", "-c", "user.email=t@example.com", "commit", "--quiet", "--message", "Result")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("section", "changes", "named"),
    [
        ("model", {"d_model": 4}, " model.d_model=4"),
        ("train", {"learning_rate": 0.05, "seed": 2}, " train.learning_rate=0.05 train.seed=2"),
        ("data", {"csv": "data/mine.csv"}, " data.csv=data/mine.csv"),
        ("train", {}, ""),
        ("train", {"new_key": 1}, ""),
        ("evaluate", {"samples": 3}, ""),
        ("vocabulary", {"size": 200}, ""),
        ("vocabulary", {"tokenizer": "bpe", "size": 200}, " vocabulary.tokenizer=bpe vocabulary.size=200"),
        (
            "vocabulary",
            {"tokenizer": "bpe", "size": 200, "file": "pretrained/tokenizers/t.json"},
            " vocabulary.tokenizer=bpe vocabulary.file=pretrained/tokenizers/t.json",
        ),
        ("model", {"d_ff": 8}, ""),
        ("train", {"cooldown_fraction": 0.2}, ""),
        (
            "train",
            {"schedule": "cooldown", "cooldown_fraction": 0.2},
            " train.schedule=cooldown train.cooldown_fraction=0.2",
        ),
        ("split", {"seed": 3}, ""),
        ("split", {"seed": 3, "validation": 0.1}, " split.validation=0.1 split.seed=3"),
        ("train", {"learning_rate": 10**60}, " train.learning_rate=" + "1" + "0" * 38 + "…"),
    ],
)
def test_a_name_says_which_parameters_with_an_effect_differ_from_the_baseline(
    section: str, changes: dict[str, Any], named: str, committed: Path
) -> None:
    assert name_run(provenance(), BEFORE | {section: BEFORE[section] | changes}) == f"train-aaaaaaa{named}"


def test_a_name_tells_data_and_code_where_no_parameter_differs(committed: Path) -> None:
    (committed / "dvc.lock").write_text(LOCK.replace("md5: old", "md5: new"))  # as DVC has written it since
    files = {"stages/core/transformer.py": "t2", "data/vocabulary.json": "y", "stages/core/more.py": "m1"}
    assert name_run(provenance(**files), BEFORE) == "train-aaaaaaa other prompts.csv other transformer.py new more.py"
    assert name_run(provenance(**files), BEFORE | {"train": {"seed": 2}}) == "train-aaaaaaa train.seed=2"


def test_a_name_tells_of_a_folder_only_where_what_is_in_it_differs(committed: Path) -> None:
    text = LOCK.replace("stages/core/transformer.py", "pretrained/models").replace("md5: t1", "md5: f1.dir")
    assert text.count(".dir") == 1
    (committed / "dvc.lock").write_text(text)
    git("-c", "user.name=T", "-c", "user.email=t@example.com", "commit", "--quiet", "--all", "--message", "A folder")
    assert name_run(provenance(**{"pretrained/models": "f1.dir"}), BEFORE) == "train-aaaaaaa"
    assert name_run(provenance(**{"pretrained/models": "f2.dir"}), BEFORE) == "train-aaaaaaa other models"


@pytest.mark.parametrize("lock", ["", "stages: [", "stages: {train: 3}", "other: {}"])
def test_without_a_result_to_compare_with_a_name_is_the_training_alone(committed: Path, lock: str) -> None:
    (committed / "dvc.lock").write_text(lock)
    git("-c", "user.name=T", "-c", "user.email=t@example.com", "commit", "--all", "--quiet", "--message", "Broken")
    assert name_run(provenance(x="1"), BEFORE | {"train": {"seed": 2}}) == "train-aaaaaaa"


def test_an_experiment_is_compared_with_its_parent_whatever_ran_since(
    committed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = git("rev-parse", "HEAD")
    (committed / "dvc.lock").write_text(LOCK.replace("train.seed: 1", "train.seed: 7"))
    git("-c", "user.name=T", "-c", "user.email=t@example.com", "commit", "--all", "--quiet", "--message", "Later")
    monkeypatch.setenv("DVC_EXP_NAME", "crude-poet")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", parent)
    assert name_run(provenance(), BEFORE | {"train": {"seed": 7}}) == "crude-poet train.seed=7"
    tags = run_tags(provenance())
    assert tags["dvc.experiment"] == "crude-poet"
    assert tags["git.commit"] == parent
    assert "git.changed_files" not in tags


def test_only_files_of_this_project_that_the_commit_lacks_are_changed_files(committed: Path) -> None:
    (committed / "params.yaml").write_text("train: {seed: 3}\n")
    (committed / "dvc.lock").write_text("")
    (committed / "metrics/train.json").write_text("{1}")
    (committed.parent / "README.md").write_text("edited")
    (committed / "déjà vu.py").write_text("")
    (committed / "notes.txt").write_text("")
    assert run_tags(provenance(**{"déjà vu.py": "x"}))["git.changed_files"] == "params.yaml, déjà vu.py"


def test_what_is_too_long_for_a_database_is_cut(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"stages/a_module_with_a_long_name_{number:04}.py" for number in range(400)]
    for name in names:
        (committed / name).parent.mkdir(exist_ok=True)
        (committed / name).write_text("")
    monkeypatch.setenv("DVC_EXP_NAME", "")
    tags = run_tags(provenance(**dict.fromkeys(names, "d" * 32)))
    assert max(len(value) for value in tags.values()) <= LONGEST_TAG
    assert set(json.loads(tags["inputs.md5"])) < set(names)
    shown = way_back(run({"git.commit": "c0", "git.changed_files": tags["git.changed_files"]}), None)
    assert shown.endswith(f"changes of {', '.join(names[:3])} and 397 more files.\n")
    monkeypatch.setenv("DVC_EXP_NAME", "x" * 300)
    assert len(name_run(provenance(), BEFORE)) == LONGEST_NAME


@pytest.mark.parametrize(
    ("values", "sent"),
    [
        ({"notes": {"été (1)!": "a"}}, {"notes.été _1__": "a"}),
        ({"a/b": 1, "..": 2}, {"a_b": "1", "_..": "2"}),
        ({"x" * 300: 1}, {"x" * 250: "1"}),
        ({"text": "a\0b"}, {"text": "a�b"}),
        ({"text": "x" * 7000}, {"text": "x" * 5999 + "…"}),
        ({"when": dt.date(2026, 1, 2)}, {"when": '"2026-01-02"'}),
        ({"data": {"csv": "https://me:hunter2@host/x.csv?sig=1"}}, {"data.csv": "https://***@host/x.csv?sig=***"}),
    ],
)
def test_parameters_are_what_every_store_takes(values: dict[str, Any], sent: dict[str, str]) -> None:
    assert {item.key: item.value for item in run_parameters(values)} == sent


@pytest.mark.parametrize(
    ("tags", "commands", "note"),
    [
        ({}, ["git checkout c0", "dvc repro"], ""),
        ({"dvc.experiment": "slower"}, ["git checkout c0", "dvc exp apply slower"], ""),
        ({"dvc.experiment": "a$(touch${IFS}x)"}, ["git checkout c0", "dvc exp apply 'a$(touch${IFS}x)'"], ""),
        ({"git.changed_files": "a, b"}, ["git checkout c0"], "Not in that commit: changes of a, b.\n"),
        ({"git.changed_files": "a, b, c, d, e"}, ["git checkout c0"], "changes of a, b, c and 2 more files.\n"),
    ],
)
def test_the_way_back_is_what_brings_it_back(tags: dict[str, str], commands: list[str], note: str) -> None:
    shown = way_back(run({"git.commit": "c0"} | tags), "m-1")
    lines = [line.strip() for line in shown.splitlines() if line.startswith("    ")]
    assert lines[:-1] == commands
    assert lines[-1].startswith("mlflow models serve -m models:/m-1 ")
    assert shown.endswith(note)
