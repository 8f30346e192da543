"""The same inputs give the same bytes in other surroundings: hash seed, threads of preparation, locale, time zone, folder."""

import hashlib
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from benchmarks.kills import digests
from tests.project import ROOT, Project, clean_environment, clone

SURROUNDINGS = [
    {"PYTHONHASHSEED": "1", "TZ": "Asia/Kathmandu", "LC_ALL": "C", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    {"PYTHONHASHSEED": "2", "TZ": "America/St_Johns", "LC_ALL": "C.UTF-8", "RAYON_NUM_THREADS": "4", "TOKENIZERS_PARALLELISM": "true"},
]  # fmt: skip
TEXT = "".join(f'"{n} grüße, שלום",{n * n}\n' for n in range(300))


@pytest.mark.slow
def test_other_surroundings_give_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for number, environment in enumerate(SURROUNDINGS):
        project = clone(tmp_path / ("a" if number else "another folder") / "project")
        (project.folder / "data/prompts.csv").write_text("prompt,completion\n" + TEXT, encoding="utf-8")
        for old, new in (
            ("tokenizer: word", "tokenizer: bpe"),
            ("size: 8000", "size: 300"),
            ("validation: 0.0", "validation: 0.2"),
            ("context_length: 6", "context_length: 16"),
            ("epochs: 30", "epochs: 1"),
            ("threads: null", "threads: 1"),
        ):
            project.replace("params.yaml", old, new)
        project.run("dvc", "repro", "train", environment=environment)
        found.append(digests(project))
    assert found[0] == found[1]


def outputs(project: Project) -> dict[str, str]:
    """The MD5 of every file that train and evaluate write."""
    stages = YAML(typ="safe").load(project.folder / "dvc.yaml")["stages"]
    kinds = [stages[stage].get(kind, []) for stage in ("train", "evaluate") for kind in ("outs", "metrics", "plots")]
    named = [next(iter(output)) if isinstance(output, dict) else output for kind in kinds for output in kind]
    paths = [path for name in named for path in [project.folder / name, *(project.folder / name).rglob("*")]]
    return {
        path.relative_to(project.folder).as_posix(): hashlib.md5(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file()
    }


def run_in_a_terminal(project: Project, *command: str) -> str:
    """Run a command whose standard output and error are a terminal; return what it printed."""
    ours, terminal = pty.openpty()
    process = subprocess.Popen(
        command, cwd=project.folder, env=clean_environment(), stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    printed = b""
    try:
        while piece := os.read(ours, 65536):
            printed += piece
    except OSError:  # Linux says so where the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0, printed.decode()
    return printed.decode()


def test_what_is_recorded_and_shown_changes_no_byte(tmp_path: Path) -> None:
    """Tracking, progress and the command line are no deps of any stage: here they are absent, elsewhere, or other code."""
    in_terminal = clone(tmp_path / "terminal")
    (in_terminal.folder / "data/prompts.csv").write_text("prompt,completion\n" + TEXT, encoding="utf-8")
    for old, new in (
        ("tokenizer: word", "tokenizer: character"),
        ("validation: 0.0", "validation: 0.1"),
        ("test: 0.0", "test: 0.1"),
        ("context_length: 6", "context_length: 24"),
        ("dropout: 0.0", "dropout: 0.1"),
        ("epochs: 30", "epochs: null"),
        ("max_steps: null", "max_steps: 40"),
        ("threads: null", "threads: 1"),
    ):
        in_terminal.replace("params.yaml", old, new)
    for stage in ("build_vocabulary", "build_dataset"):
        in_terminal.run("python", "-m", f"stages.{stage}")
    unrecorded, other_code = (
        Project(Path(shutil.copytree(in_terminal.folder, tmp_path / name))) for name in ("unrecorded", "other code")
    )
    assert "validation_loss" in run_in_a_terminal(in_terminal, "python", "-m", "stages.train")
    run_in_a_terminal(in_terminal, "python", "-m", "stages.evaluate")
    assert (in_terminal.folder / "mlflow.db").exists()

    unrecorded.replace("params.yaml", "tracking: required", "tracking: optional")
    for stage in ("train", "evaluate"):
        unrecorded.run("python", "-m", f"stages.{stage}", environment={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    other_code.run("python", "-m", "tests.other_recording")
    assert not (other_code.folder / "mlflow.db").exists()

    expected = outputs(in_terminal)
    assert {"data/model/model.safetensors", "metrics/evaluate.json", "metrics/report.html"} <= set(expected)
    assert outputs(unrecorded) == expected
    assert outputs(other_code) == expected


# MD5 of data/vocabulary.json and of data/dataset/train.safetensors, whatever the machine and the version of Python.
PREPARED = {
    "word": ("ead0660f76af3ed891987dc4dd8ea8d1", "03c78e10ba2535be44d9db978b7e04b7"),
    "character": ("ea598d97b5cd21a61e5d86dc86516970", "92d278c80859b28f9a0ee47fcdb764d4"),
    "bpe": ("c8ecb6e45ae8561363037d5bafa3bd49", "7721767150377fb8c0e5ec0199bce56a"),
}


@pytest.mark.parametrize("tokenizer", PREPARED)
def test_every_machine_and_version_of_python_prepares_these_bytes(tokenizer: str, tmp_path: Path) -> None:
    parameters = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for old, new in (
        ("tokenizer: word", f"tokenizer: {tokenizer}"),
        ("size: 8000", "size: 300"),
        ("unknown_token: false", "unknown_token: true"),
        ("test: 0.0", "test: 0.2"),
    ):
        parameters = parameters.replace(old, new)
    (tmp_path / "data").mkdir()
    (tmp_path / "params.yaml").write_text(parameters, encoding="utf-8")
    (tmp_path / "data/prompts.csv").write_text("prompt,completion\n" + TEXT, encoding="utf-8")
    for stage in ("build_vocabulary", "build_dataset"):
        environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=tmp_path, env=environment, check=True)
    paths = (tmp_path / "data/vocabulary.json", tmp_path / "data/dataset/train.safetensors")
    assert tuple(hashlib.md5(path.read_bytes()).hexdigest() for path in paths) == PREPARED[tokenizer]
