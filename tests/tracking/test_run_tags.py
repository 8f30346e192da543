"""What a run says of itself, without a store."""

from typing import Any

import pytest
from mlflow.entities import Run, RunData, RunInfo, RunTag

from stages.artifacts.provenance_json import Provenance
from stages.tracking.run_tags import name_run, run_parameters, run_tags, way_back

PARAMETERS = {"model": {"d_model": 2}, "train": {"betas": [0.9, 0.999], "patience": None}, "runtime": {"threads": 1}}


def provenance(**dependencies: str) -> Provenance:
    inputs = {f"data/{name}": digest for name, digest in dependencies.items()}
    return Provenance(fingerprint="a" * 16, dependencies=inputs, parameters={})


def run(tags: dict[str, str]) -> Run:
    info = RunInfo("r1", "1", "me", "FINISHED", 0, 0, "active")
    return Run(info, RunData(params=run_parameters(PARAMETERS), tags=[RunTag(*tag) for tag in tags.items()]))


@pytest.fixture(autouse=True)
def no_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)


def test_parameters_are_written_as_in_params_yaml() -> None:
    assert {item.key: item.value for item in run_parameters(PARAMETERS)} == {
        "model.d_model": "2",
        "train.betas": "[0.9, 0.999]",
        "train.patience": "null",
        "runtime.threads": "1",
    }


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"model": {"d_model": 4}}, "train-aaaaaaa model.d_model=4"),
        ({"runtime": {"threads": 2}}, "train-aaaaaaa other dataset"),
        (
            {"model": dict.fromkeys("abcde", 1)},
            "train-aaaaaaa model.a=1 model.b=1 model.c=1 and 2 more",
        ),
    ],
)
def test_a_name_says_what_changed_parameters_before_data_and_never_the_machine(
    changed: dict[str, Any], name: str
) -> None:
    before = run({"inputs.md5": '{"data/dataset": "old"}'})
    assert name_run(provenance(dataset="new"), run_parameters(PARAMETERS | changed), before) == name


def test_an_experiment_gives_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "crude-poet")
    assert name_run(provenance(), run_parameters(PARAMETERS), None) == "crude-poet"
    tags = run_tags(provenance())
    assert tags["dvc.experiment"] == "crude-poet"
    assert "git.changed_files" not in tags


@pytest.mark.parametrize(
    ("tags", "commands", "note"),
    [
        ({}, ["git checkout c0", "dvc repro"], ""),
        ({"dvc.experiment": "slower"}, ["git checkout c0", "dvc exp apply slower"], ""),
        ({"git.changed_files": "a, b"}, ["git checkout c0"], "Not in that commit: changes of a, b.\n"),
        ({"git.changed_files": "a, b, c, d, e"}, ["git checkout c0"], "changes of a, b, c and 2 more files.\n"),
    ],
)
def test_the_way_back_is_what_brings_it_back(tags: dict[str, str], commands: list[str], note: str) -> None:
    shown = way_back(run({"git.commit": "c0"} | tags))
    lines = [line.strip() for line in shown.splitlines() if line.startswith("    ")]
    assert lines[:-1] == commands
    assert lines[-1].startswith("mlflow models serve -m runs:/r1/model ")
    assert shown.endswith(note)
