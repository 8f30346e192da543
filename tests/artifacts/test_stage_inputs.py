"""Inputs that change while a stage runs: every dependency and parameter of every stage, whoever changes it."""

import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import stages
from stages import build_dataset, build_vocabulary
from stages.artifacts import stage_inputs
from stages.artifacts.dvc_yaml import read_stage
from stages.artifacts.provenance_json import Provenance, check_trained_from, stage_provenance
from stages.artifacts.stage_inputs import StageInputs, unchanged_inputs
from stages.errors import UserError
from tests.project import ROOT

STAGES = ("build_vocabulary", "build_dataset", "train", "evaluate")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with every input of every stage; artifacts are stand-ins, as only their bytes count."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stage", "--quiet"])
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, name)
    for stage in STAGES:
        for dep in read_stage(stage).deps:
            dep.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / dep).is_file() and not dep.exists():
                shutil.copy(ROOT / dep, dep)
    for folder in ("data/dataset", "data/model"):
        Path(folder).mkdir(exist_ok=True)
        for name in ("metadata.json", "provenance.json", "train.safetensors"):
            (Path(folder) / name).write_text("{}")
    for dep in (dep for stage in STAGES for dep in read_stage(stage).deps):
        if not dep.exists():
            dep.write_text("x")
    return tmp_path


def edit_parameter(name: str, value: Any) -> None:
    yaml = YAML()
    parameters = yaml.load(Path("params.yaml"))
    place = parameters
    *sections, key = name.split(".")
    for section in sections:
        place = place[section]
    place[key] = value
    yaml.dump(parameters, Path("params.yaml"))


@pytest.mark.parametrize("stage", STAGES)
def test_every_dependency_of_a_stage_is_watched(stage: str) -> None:
    for dep in read_stage(stage).deps:
        file = dep / "metadata.json" if dep.is_dir() else dep
        before = StageInputs(stage)
        before.check()
        file.write_bytes(file.read_bytes() + b"\n")
        with pytest.raises(
            UserError, match=rf"^{re.escape(str(file))} changed from [\d,]+ to [\d,]+ bytes while {stage} ran"
        ):
            before.check()


@pytest.mark.parametrize("stage", STAGES)
def test_every_parameter_of_a_stage_is_watched(stage: str) -> None:
    names = StageInputs(stage)._parameters
    assert {name.split(".")[0] for name in names} == {name.split(".")[0] for name in read_stage(stage).params}
    for name, value in names.items():
        before = StageInputs(stage)
        edit_parameter(name, "other")
        told = f"params.yaml: {name} changed from {value!r} to 'other' while {stage} ran"
        with pytest.raises(UserError, match=f"^{re.escape(told)}"):
            before.check()
        edit_parameter(name, value)
        before.check()


def test_what_the_stage_does_not_depend_on_may_change() -> None:
    before = StageInputs("train")
    edit_parameter("evaluate.samples", 3)
    edit_parameter("runtime.threads", 1)
    Path("params.yaml").write_text("# a comment\n" + Path("params.yaml").read_text())
    Path("data/prompts.csv").write_text("other")
    before.check()


def test_data_that_were_written_count_as_changed_whatever_they_are_now_and_code_by_what_it_is() -> None:
    """Data are read while the stage runs, so that they may have been other data in between; code was read at its start."""
    before = StageInputs("build_dataset")
    code, data = Path("stages/build_dataset.py"), Path("data/prompts.csv")
    for path in (code, data):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        os.utime(path, ns=(0, 0))
    with pytest.raises(UserError, match=r"^data/prompts\.csv was written while"):
        before.check()


def test_a_large_file_is_known_by_its_size_time_and_inode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_inputs, "SMALL", 1)
    data = Path("data/prompts.csv")
    stat = data.stat()
    before = StageInputs("build_dataset")
    assert before._files[data].md5 is None
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    assert before.changes()
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not before.changes()
    shutil.copy2(data, "copy")
    Path("copy").replace(data)  # same size and time
    assert before.changes() == ["data/prompts.csv was written"]


def test_a_small_file_that_keeps_its_time_is_known_by_its_content() -> None:
    data = Path("data/prompts.csv")
    stat = data.stat()
    before = StageInputs("build_dataset")
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert before.changes() == ["data/prompts.csv was written"]


def test_files_that_come_and_go_in_a_folder_are_seen_and_those_of_editors_are_not() -> None:
    before = StageInputs("train")
    Path("data/dataset/.train.json.swp").touch()
    Path("data/dataset/__pycache__").mkdir()
    Path("data/dataset/__pycache__/a.pyc").touch()
    before.check()
    Path("data/dataset/test.safetensors").touch()
    Path("data/dataset/train.safetensors").unlink()
    told = ["data/dataset/test.safetensors was added", "data/dataset/train.safetensors was removed"]
    assert before.changes() == told


def test_folders_that_come_and_go_while_they_are_looked_through_are_no_error() -> None:
    ended = threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            for number in range(20):
                Path(f"data/dataset/{number}/a/b").mkdir(parents=True, exist_ok=True)
            shutil.rmtree("data/dataset", ignore_errors=True)

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(200):
            StageInputs("train")
    finally:
        ended.set()
        other.join()


def test_many_changes_are_counted() -> None:
    before = StageInputs("train")
    for number in range(5):
        Path(f"data/dataset/{number}").touch()
    with pytest.raises(UserError, match=r"0 was added, .*1 was added, .*2 was added and 2 more while train ran"):
        before.check()


def test_code_that_was_edited_after_its_import_is_seen_at_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("stages/train.py")
    stat = path.stat()
    at_start = {str(path.resolve()): (stat.st_size, stat.st_mtime_ns, stat.st_ino)}
    monkeypatch.setattr(stages, "CODE_AT_START", at_start)
    StageInputs("train").check()
    path.write_text("edited while torch was imported")
    with pytest.raises(UserError, match=r"^stages/train\.py was written while train ran"):
        StageInputs("train").check()


def test_the_package_looks_at_its_code_as_it_is_imported() -> None:
    path = ROOT / "stages/train.py"
    assert stages.CODE_AT_START[str(path)][0] == path.stat().st_size


def test_parameters_that_an_editor_has_half_written_are_a_change() -> None:
    before = StageInputs("train")
    Path("params.yaml").write_text("train: [")
    with pytest.raises(UserError, match=r"^params\.yaml: not valid YAML"):
        before.check()


def test_an_error_that_the_change_led_to_names_it() -> None:
    def half_written() -> None:
        with unchanged_inputs("build_dataset"):
            Path("data/prompts.csv").write_text("prompt,completion\nwhat")
            raise UserError("data/prompts.csv: row 2: found 1 cell")

    with pytest.raises(UserError, match=r"^data/prompts\.csv: row 2: found 1 cell\ndata/prompts\.csv changed from"):
        half_written()
    with pytest.raises(UserError, match=r"^data/prompts\.csv changed from"), unchanged_inputs("build_dataset"):
        Path("data/prompts.csv").write_text("")
        raise ValueError("nothing that a user understands")
    with pytest.raises(ValueError, match="of something else"), unchanged_inputs("build_dataset"):
        raise ValueError("of something else")


def test_without_dvc_there_is_nothing_to_compare() -> None:
    Path("dvc.yaml").unlink()
    with unchanged_inputs("build_dataset"):
        Path("data/prompts.csv").write_text("other")


def test_of_the_processes_of_one_machine_one_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with unchanged_inputs("train"):
        edit_parameter("train.learning_rate", 0.5)
    with pytest.raises(UserError, match=r"evaluate\.samples changed"), unchanged_inputs("evaluate"):
        edit_parameter("evaluate.samples", 7)


def test_the_preparation_stages_refuse_what_changed_as_they_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Path("data/prompts.csv")
    for stage, last in ((build_vocabulary, "write_vocabulary"), (build_dataset, "write_metadata")):
        write = getattr(stage, last)
        stage.main()

        def add_a_row(*arguments: Any, write: Any = write) -> None:
            write(*arguments)
            with data.open("a") as file:
                file.write("a process still writes,this\n")

        with monkeypatch.context() as patched, pytest.raises(UserError, match=r"^data/prompts\.csv changed from"):
            patched.setattr(stage, last, add_a_row)
            stage.main()
        shutil.copy(ROOT / data, data)


def test_evaluation_refuses_a_model_of_other_inputs() -> None:
    model = Provenance.model_validate(stage_provenance("train").model_dump())
    check_trained_from(model)
    edit_parameter("train.learning_rate", 0.5)
    with pytest.raises(
        UserError, match=r"train\.learning_rate is 0\.5, but data/model/ was trained with 0\.1; type `dvc"
    ):
        check_trained_from(model)
    edit_parameter("train.learning_rate", 0.1)
    check_trained_from(model)
    Path("stages/train.py").write_text("a comment more, which `dvc commit` may have accepted")
    check_trained_from(model)
    Path("data/dataset/metadata.json").write_text("[]")
    with pytest.raises(UserError, match=r"^data/dataset: not what data/model/ was trained from"):
        check_trained_from(model)


def test_what_was_mapped_into_memory_counts_as_read_where_it_is_overwritten_in_place() -> None:
    dataset = Path("data/dataset")
    before = StageInputs("train")
    Path("copy").write_text("others")
    Path("copy").replace(dataset / "train.safetensors")  # a new file under the old name: the map still has the old one
    assert before.changes()
    assert not before.overwritten(dataset)
    before = StageInputs("train")
    os.utime(dataset / "train.safetensors")
    assert not before.overwritten(dataset)
    (dataset / "train.safetensors").write_text("in its place")
    assert before.overwritten(dataset)
