"""The pipeline as a user has it: a real `dvc repro` in a clone; edit one thing, and see which stages run."""

import json
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.project import Project, clean_environment

ALL = ["build_vocabulary", "build_dataset", "train", "evaluate"]
DATASET_ON = ALL[1:]
TRAIN_ON = ALL[2:]


@pytest.fixture
def edited(trained: Project) -> Iterator[Project]:
    """The trained clone, put back afterwards."""
    yield trained
    trained.run("git", "reset", "--hard", "--quiet")
    trained.run("dvc", "checkout", "--quiet", "--force")


def evaluation(project: Project) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((project.folder / "metrics/evaluate.json").read_text())
    return values


def test_the_toy_learns_both_completions(trained: Project) -> None:
    assert evaluation(trained)["completion_exact_match"] == 1.0
    assert evaluation(trained)["next_token_accuracy"] in (0.9, 1.0)
    assert evaluation(trained)["split"] == "train"


def test_the_toy_answers(trained: Project) -> None:
    prompts = ["what is CNN", "CNN is what", "What is CNN", "WHAT is cnn"]
    answers = trained.run("python", "-m", "stages.generate", "--json", *prompts).stdout.splitlines()
    assert [json.loads(line)["completion"] for line in answers] == ["Great"] * 4


def test_a_second_repro_runs_nothing(trained: Project) -> None:
    assert trained.stages_run("repro") == []


def test_force_gives_the_same_bytes(trained: Project) -> None:
    assert trained.stages_run("repro", "--force", PYTHONHASHSEED="7") == ALL
    assert trained.run("git", "status", "--porcelain").stdout == ""


READ_THE_TABLE = [*ALL[:2], "evaluate"]
PARAMETERS = [
    # Another draw of no rows: the dataset has the same bytes, so that nothing is trained again.
    ("  seed: 0\n", "  seed: 1\n", READ_THE_TABLE),
    ("loss_on: all", "loss_on: completion", DATASET_ON),
]


@pytest.mark.parametrize(("old", "new", "stages"), PARAMETERS, ids=[new.strip() for _, new, _ in PARAMETERS])
def test_a_parameter_reruns_only_its_stages(edited: Project, old: str, new: str, stages: list[str]) -> None:
    edited.replace("params.yaml", old, new)
    assert edited.stages_run("repro") == stages


MORE_PARAMETERS = [
    ("prompt_column: prompt\n", "prompt_column: completion\n", READ_THE_TABLE),
    ("unknown_token: false", "unknown_token: true", ALL[:1]),
    ("d_model: 2", "d_model: 4", ["train"]),
    ("learning_rate: 0.1", "learning_rate: 0.05", ["train"]),
    ("context_length: 6", "context_length: 7", ["build_dataset", "train"]),  # which counts the rows that do not fit
    ("samples: 20", "samples: 1", ["evaluate"]),
    ("register_as: null", "register_as: answers", ["evaluate"]),
    ("group_column: null", "group_column: completion", ["evaluate"]),
]


@pytest.mark.parametrize(("old", "new", "stages"), MORE_PARAMETERS, ids=[new.strip() for _, new, _ in MORE_PARAMETERS])
def test_dvc_sees_a_parameter_in_every_stage_that_reads_it(
    edited: Project, old: str, new: str, stages: list[str]
) -> None:
    edited.replace("params.yaml", old, new)
    assert list(json.loads(edited.run("dvc", "status", "--json").stdout)) == stages


def test_a_name_to_register_takes_the_model_as_it_was_trained(edited: Project) -> None:
    with store(edited) as database:
        before = database.execute("select run_uuid from runs").fetchall()
    edited.replace("params.yaml", "register_as: null", "register_as: mine")
    edited.run("dvc", "repro")
    with store(edited) as database:
        assert database.execute("select run_uuid from runs").fetchall() == before
        versions = database.execute("select run_id from model_versions where name = 'mine'").fetchall()
    assert len(versions) == 1
    assert versions[0] in before


def test_what_does_not_bear_on_the_result_reruns_nothing(edited: Project) -> None:
    edited.replace("params.yaml", "loader_workers: 0", "loader_workers: 1")
    edited.replace("params.yaml", "  # The highest learning rate.\n", "  # Another comment.\n")
    edited.replace("params.yaml", "learning_rate: 0.1", "learning_rate: 1e-1")
    for path in (
        "stages/generate.py",
        "stages/commands/summary.py",
        "stages/command_line.py",
        "stages/tracking/runs.py",
        "stages/training/progress.py",
        "tests/conftest.py",
        "README.md",
    ):
        append_comment(edited, path)
    assert edited.stages_run("repro") == []


FILES = [
    ("stages/build_vocabulary.py", ALL[:1]),
    ("stages/core/rows.py", ALL[1:2]),
    ("stages/core/generation.py", ALL[3:]),
]


@pytest.mark.parametrize(("path", "stages"), FILES, ids=[path for path, _ in FILES])
def test_a_source_file_reruns_the_stages_that_import_it(edited: Project, path: str, stages: list[str]) -> None:
    append_comment(edited, path)
    assert edited.stages_run("repro") == stages


SHARED_FILES = [
    ("stages/core/split.py", ALL),
    ("stages/core/vocabulary.py", ALL),
    ("stages/core/transformer.py", TRAIN_ON),
    ("stages/training/history.py", TRAIN_ON[:1]),
    ("stages/artifacts/prompts_table.py", READ_THE_TABLE),
    ("stages/artifacts/token_shards.py", DATASET_ON),
    ("stages/parameters.py", ALL),
]


@pytest.mark.parametrize(("path", "stages"), SHARED_FILES, ids=[path for path, _ in SHARED_FILES])
def test_dvc_sees_an_edit_in_every_stage_that_imports_the_file(edited: Project, path: str, stages: list[str]) -> None:
    append_comment(edited, path)
    assert list(json.loads(edited.run("dvc", "status", "--json").stdout)) == stages


@pytest.mark.slow
def test_a_new_row_reruns_everything(edited: Project) -> None:
    with (edited.folder / "data/prompts.csv").open("a") as file:
        file.write("what is RNN,Older\n")
    assert edited.stages_run("repro") == ALL
    assert edited.run("python", "-m", "stages.generate", "what is CNN").stdout == "Great\n"


def test_a_parameter_put_back_restores_the_model_without_training(edited: Project) -> None:
    model = (edited.folder / "data/model/model.safetensors").read_bytes()
    edited.replace("params.yaml", "d_model: 2", "d_model: 3")
    assert edited.stages_run("repro") == TRAIN_ON
    assert (edited.folder / "data/model/model.safetensors").read_bytes() != model
    edited.replace("params.yaml", "d_model: 3", "d_model: 2")
    runs = run_count(edited)
    edited.run("dvc", "repro")
    assert (edited.folder / "data/model/model.safetensors").read_bytes() == model
    assert run_count(edited) == runs


def test_an_experiment_trains_beside_the_first_run(edited: Project) -> None:
    before = run_count(edited)
    stages = edited.stages_run("exp", "run", "--name", "slower", "--set-param", "train.learning_rate=0.07")
    assert stages == TRAIN_ON
    with store(edited) as database:
        newest = database.execute("select run_uuid, name, status from runs order by start_time desc").fetchone()
        metrics = dict(
            database.execute("select key, value from latest_metrics where run_uuid = ?", newest[:1]).fetchall()
        )
        parameters = dict(database.execute("select key, value from params where run_uuid = ?", newest[:1]).fetchall())
        inputs = database.execute("select count(*) from inputs where destination_id = ?", newest[:1]).fetchone()
    assert run_count(edited) == before + 1
    assert "slower" in newest[1]
    assert newest[2] == "FINISHED"
    assert parameters["train.learning_rate"] == "0.07"
    assert {"train_loss", "learning_rate", "next_token_accuracy", "completion_exact_match"} <= set(metrics)
    assert inputs[0] == 1
    shown = edited.run("dvc", "exp", "show", "--csv").stdout
    assert "slower" in shown


def test_an_own_csv_needs_only_options(edited: Project, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("question,answer\nwho are you,me\nwho am I,you\n")
    stages = edited.stages_run(
        "exp", "run", "-S", f"data.csv={tmp_path / 'mine.csv'}", "-S", "data.prompt_column=question",
        "-S", "data.completion_column=answer",
    )  # fmt: skip
    assert stages == ALL
    assert edited.run("python", "-m", "stages.generate", "who am I").stdout == "you\n"


def test_an_evaluation_with_other_parameters_is_a_child_of_its_training(edited: Project) -> None:
    before = child_count(edited)
    edited.replace("params.yaml", "samples: 20", "samples: 2")
    assert edited.stages_run("repro") == ["evaluate"]
    assert child_count(edited) == before + 1


@pytest.mark.slow
def test_two_devices_share_a_batch_and_learn_what_one_learns(edited: Project) -> None:
    def curve() -> list[float]:
        edited.run("python", "-m", "stages.train")
        lines = (edited.folder / "metrics/plots/train_loss.csv").read_text().splitlines()[1:]
        return [float(line.split(",")[1]) for line in lines]

    before = run_count(edited)
    edited.replace("params.yaml", "batch_size: 1\n", "batch_size: 2\n")
    edited.run("dvc", "unprotect", "data/model")
    one = curve()
    edited.replace("params.yaml", "devices: 1\n", "devices: 2\n")
    assert curve() == pytest.approx(one, abs=1e-4)
    assert len(one) == 30
    assert run_count(edited) == before + 2


MISTAKES = [
    ("n_heads: 1", "n_head: 1", "did you mean 'n_heads'"),
    (
        "learning_rate: 0.1",
        "learning_rat: 0.1",
        "params.yaml: train.learning_rate is missing",
    ),  # in DVC's words
]


def test_a_mistake_is_one_line_without_a_traceback(edited: Project) -> None:
    for old, new, told in MISTAKES:
        edited.replace("params.yaml", old, new)
        failed = edited.run("dvc", "repro", check=False)
        assert failed.returncode != 0
        assert told in failed.stderr
        assert "Traceback" not in failed.stderr + failed.stdout
        edited.replace("params.yaml", new, old)


def append_comment(project: Project, path: str) -> None:
    with (project.folder / path).open("a") as file:
        file.write("\n# Edited.\n")


def store(project: Project) -> sqlite3.Connection:
    return sqlite3.connect(project.folder / "mlflow.db")


def run_count(project: Project) -> int:
    with store(project) as database:
        return int(database.execute("select count(*) from runs").fetchone()[0])


def child_count(project: Project) -> int:
    with store(project) as database:
        return int(database.execute("select count(*) from tags where key = 'mlflow.parentRunId'").fetchone()[0])


@pytest.mark.slow
def test_a_colleague_gets_what_was_pushed_and_trains_nothing(edited: Project, tmp_path: Path) -> None:
    colleague = Project(tmp_path / "colleague")
    edited.run("git", "clone", "--quiet", ".", str(colleague.folder))
    for project in (edited, colleague):
        project.run("dvc", "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    edited.run("dvc", "push")
    colleague.run("dvc", "pull")
    assert colleague.stages_run("repro") == []
    assert colleague.run("python", "-m", "stages.generate", "what is CNN").stdout == "Great\n"


@pytest.mark.slow
def test_two_machines_train_together_and_dvc_takes_their_model(edited: Project) -> None:
    edited.replace("params.yaml", "  batch_size: 1\n", "  batch_size: 2\n")
    edited.replace("params.yaml", "num_nodes: 1", "num_nodes: 2")
    runs = run_count(edited)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    machines = [
        subprocess.Popen(
            ["torchrun", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}", "--master-addr=127.0.0.1",
             f"--master-port={port}", "-m", "stages.train"],
            cwd=edited.folder, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for machine in machines:
        output = machine.communicate()[0]
        assert machine.returncode == 0, output
    edited.run("dvc", "commit", "--force", "train")
    assert edited.stages_run("repro") == ["evaluate"]
    assert evaluation(edited)["completion_exact_match"] == 1.0
    assert run_count(edited) == runs + 1
    with store(edited) as database:
        newest = database.execute("select status from runs order by start_time desc limit 1").fetchone()
    assert newest == ("FINISHED",)
