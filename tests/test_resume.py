"""Real `dvc repro` processes, killed at chosen and at random moments."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.kills import digests, end, kill_at_random, slow_toy, start, statuses
from tests.project import Project, clean_environment


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return slow_toy(tmp_path / "project")


def start_until(project: Project, said: str, *command: str) -> "subprocess.Popen[bytes]":
    """Start a command, by default `dvc repro`, and return when it has said something."""
    log = project.folder.parent / "log"
    log.write_bytes(b"")
    process = start(project, log, *command)
    while said not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    return process


def log(project: Project) -> str:
    return (project.folder.parent / "log").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """The digests of a pipeline that nothing interrupted, and the seconds that it took."""
    project = slow_toy(tmp_path_factory.mktemp("whole") / "project")
    began = time.monotonic()
    project.run("dvc", "repro")
    return digests(project), time.monotonic() - began


def test_killed_again_and_again_it_ends_with_the_same_bytes_in_one_run(
    project: Project, whole: tuple[dict[str, str], float]
) -> None:
    first = start_until(project, "step 120/")
    os.killpg(first.pid, signal.SIGSTOP)  # so that it is still there when the second one comes
    holder = next((project.folder / ".checkpoints").glob("*/pid")).read_text()
    second = project.run("python", "-m", "stages.train", check=False)
    assert second.returncode == 1
    assert f"process {holder} is training with the same inputs" in second.stderr
    end(first, "group", signal.SIGKILL)
    assert statuses(project) == {"RUNNING": 1}

    process = start_until(project, "step 360/")
    end(process, "group", signal.SIGTERM)
    assert process.returncode != 0
    assert "stopped by SIGTERM at step" in log(project)
    assert "Traceback" not in log(project)
    assert statuses(project) == {"KILLED": 1}

    end(start_until(project, "step 480/"), "group", signal.SIGHUP)
    assert "stopped by SIGHUP at step" in log(project)

    end(start_until(project, "step 600/"), "dvc", signal.SIGKILL)
    assert "stopped because the `dvc repro` that started it is gone" in log(project)

    process = start_until(project, "Running stage 'evaluate'")
    assert "resumed at step" in log(project)
    end(process, "group", signal.SIGKILL)
    project.run("dvc", "repro")
    assert digests(project) == whole[0]
    assert statuses(project) == {"FINISHED": 1}
    assert not list((project.folder / ".checkpoints").iterdir())


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_with_the_same_bytes(
    project: Project, whole: tuple[dict[str, str], float]
) -> None:
    expected, seconds = whole
    killed = kill_at_random(project, expected, kills=20, seconds=seconds / 2, seed=0)
    assert killed.signals.total() == 20
    assert killed.runs["RUNNING"] == 0
    # A kill between the end of a training and DVC's note of it repeats the training, in a run of its own.
    assert killed.runs["FINISHED"] >= killed.passes


@pytest.mark.slow
def test_devices_that_train_together_go_on_together(tmp_path: Path) -> None:
    killed, whole = (slow_toy(tmp_path / name / "project", steps=300) for name in ("killed", "whole"))
    for project in (killed, whole):
        project.replace("params.yaml", "devices: 1", "devices: 2")
        project.replace("params.yaml", "batch_size: 1\n", "batch_size: 2\n")
    whole.run("dvc", "repro", "train")
    killed.run("dvc", "repro", "build_dataset")
    # The second device is started with the same command: it must not forget what the first one has begun.
    end(start_until(killed, "step 210/", "python", "-m", "stages.train", "--restart"), "group", signal.SIGKILL)
    assert "resumed at step" in killed.run("dvc", "repro", "train").stdout
    assert digests(killed) == digests(whole)
    assert statuses(killed) == {"FINISHED": 1}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("victim", ["first", "second"])
def test_one_process_killed_the_others_end_with_a_line_and_the_next_start_resumes(
    project: Project, strategy: str, victim: str
) -> None:
    project.replace("params.yaml", "devices: 1", "devices: 2")
    project.replace("params.yaml", "strategy: auto", f"strategy: {strategy}")
    project.replace("params.yaml", "batch_size: 1\n", "batch_size: 2\n")
    project.replace("params.yaml", "max_steps: 1200", "max_steps: 300")
    project.run("dvc", "repro", "build_dataset")
    first = start_until(project, "step 90/", "python", "-m", "stages.train")
    processes = [psutil.Process(first.pid), *psutil.Process(first.pid).children()]
    second = next(each for each in processes if each.environ().get("LOCAL_RANK") == "1")
    os.kill(first.pid if victim == "first" else second.pid, signal.SIGKILL)
    began = time.monotonic()
    if victim == "second":
        assert first.wait(60) == 1
    else:
        psutil.wait_procs([second], 60)
        first.wait()
    assert time.monotonic() - began < 60
    assert not second.is_running() or second.status() == psutil.STATUS_ZOMBIE
    errors = [line for line in log(project).splitlines() if "another process of this training ended" in line]
    assert len(errors) == 1
    assert "Traceback" not in log(project)
    assert "resumed at step" in project.run("python", "-m", "stages.train").stdout
    assert statuses(project) == {"FINISHED": 1}


def test_parameters_that_are_edited_while_it_trains_are_refused_and_nothing_trained_is_lost(
    project: Project, whole: tuple[dict[str, str], float]
) -> None:
    project.replace("params.yaml", "checkpoint_minutes: 0.008", "checkpoint_minutes: null")
    process = start_until(project, "step 120/")
    project.replace("params.yaml", "learning_rate: 0.1", "learning_rate: 0.5")
    assert process.wait() != 0
    told = next(line for line in log(project).splitlines() if line.startswith("error: "))
    assert told.startswith("error: params.yaml: train.learning_rate changed from 0.1 to 0.5 while train ran")
    for part in ("the weights are kept in", "ends in seconds, in the same MLflow run", "`dvc exp run --temp`"):
        assert part in told
    assert "Traceback" not in log(project)
    assert "learning_rate: 0.5" not in (project.folder / "dvc.lock").read_text()
    assert statuses(project) == {"FAILED": 1}

    project.replace("params.yaml", "learning_rate: 0.5", "learning_rate: 0.1")
    again = project.run("dvc", "repro").stdout
    assert "resumed at step 1200/1200" in again
    assert "tokens/s" not in again  # no step was trained again
    assert digests(project) == whole[0]
    assert statuses(project) == {"FINISHED": 1}
    assert not list((project.folder / ".checkpoints").iterdir())


@pytest.mark.slow
def test_a_reader_that_has_had_enough_ends_no_training_and_nothing_is_trained_again(
    project: Project, whole: tuple[dict[str, str], float]
) -> None:
    """As `dvc repro | head`: DVC itself fails when it cannot say that it records the training."""
    project.replace("params.yaml", "checkpoint_minutes: 0.008", "checkpoint_minutes: null")
    process = subprocess.Popen(
        ["dvc", "repro"],
        cwd=project.folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 120/"):
            break
    process.stdout.close()
    assert process.stderr is not None
    assert "standard output: Broken pipe; going on without it" in process.stderr.read()
    assert process.wait() != 0
    assert statuses(project) == {"FINISHED": 1}
    again = project.run("dvc", "repro").stdout  # resumed at its last step, or taken from DVC's run cache
    assert "tokens/s" not in again
    assert digests(project) == whole[0]
    assert statuses(project) == {"FINISHED": 1}
    assert not list((project.folder / ".checkpoints").iterdir())


def test_a_dataset_that_is_overwritten_while_it_is_trained_on_leaves_no_weights(project: Project) -> None:
    process = start_until(project, "step 120/")
    shard = project.folder / "data/dataset/train.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    with shard.open("r+b") as file:
        file.write(content)
    assert process.wait() != 0
    assert "error: data/dataset/train.safetensors was written while train ran" in log(project)
    assert not list((project.folder / ".checkpoints").iterdir())
