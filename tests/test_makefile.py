"""A real `make`: what a user gives is text, and neither make nor the shell runs any of it."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.project import ROOT, clean_environment

# Each would create the file `pwned`, or be split, if it were expanded or not quoted.
NASTY = (
    "x'; touch pwned; '",
    'x"; touch pwned; "',
    "x; touch pwned",
    "$(touch pwned)",
    "$(shell touch pwned)",
    "${shell touch pwned}",
    "`touch pwned`",
    "x & touch pwned",
    "x | touch pwned",
    "x\ntouch pwned",
    "--help",
    "it's a file.txt",
    "a$b $$c %d #e \\f",
)
# A program in place of each one that a recipe calls: it writes its name and arguments into the file `called`.
RECORD = """#!/bin/sh
printf '<%s>' "$(basename "$0")" "$@" >> called
echo >> called
"""
PROGRAMS = ("python", "dvc", "ruff", "mypy", "pytest", "uv")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the Makefile and the locks, and a virtual environment that only records what is called."""
    for name in ("Makefile", "requirements.lock", "requirements-dev.lock", "requirements-torch.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    recording_environment(tmp_path / ".venv")
    return tmp_path


def recording_environment(folder: Path, *, installed: bool = True) -> None:
    (folder / "bin").mkdir(parents=True)
    for program in PROGRAMS:
        (folder / "bin" / program).write_text(RECORD)
        (folder / "bin" / program).chmod(0o755)
    (folder / "pyvenv.cfg").touch()
    if installed:
        for stamp in ("installed", "installed-dev"):
            (folder / stamp).touch()
            os.utime(folder / stamp, (time.time() + 60,) * 2)


def make(project: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["make", *arguments],
        cwd=project,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def called(project: Path) -> list[str]:
    """Return what was called, a line a program; a newline within an argument stays one."""
    record = project / "called"
    return record.read_text().split(">\n")[:-1] if record.exists() else []


USES = [
    ("preset", "PRESET", "<python><-m><presets.use><--><{}"),
    ("repro", "PRESET", "<python><-m><presets.use><--><{}"),
    ("preset", "TEXT", "<python><-m><presets.use><--text={}><--><"),
    ("fit", "CSV", "<python><-m><presets.fit><--><{}"),
    ("repro", "CSV", "<python><-m><presets.fit><--><{}"),
    ("fit", "MINUTES", "<python><-m><presets.fit><--minutes={}><--><"),
    ("compare", "SORT", "<python><-m><stages.commands.compare><--sort={}"),
    ("verdict", "A", "<python><-m><stages.commands.verdict><--><{}><workspace"),
    ("verdict", "B", "<python><-m><stages.commands.verdict><--><main><{}"),
    ("ui", "PORT", "<python><-m><stages.commands.ui><--port={}"),
    ("serve", "PORT", "<python><-m><stages.commands.serve><--port={}"),
    ("serve", "MODEL", "<python><-m><stages.commands.serve><--><{}"),
    ("bench", "NANOGPT", "<python><-m><benchmarks.training><--nanogpt={}"),
    ("bench", "THREADS", "<python><-m><benchmarks.attention><--threads={}"),
]


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize(("target", "name", "call"), USES)
@pytest.mark.parametrize("by_environment", [False, True], ids=["argument", "environment"])
def test_text_arrives_as_it_was_given(
    target: str, name: str, call: str, nasty: str, by_environment: bool, project: Path
) -> None:
    done = make(project, target, **{name: nasty}) if by_environment else make(project, target, f"{name}={nasty}")
    assert done.returncode == 0, done.stderr
    assert call.format(nasty) in called(project)
    assert not (project / "pwned").exists()


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize("name", ["PROMPT", "COMPLETION"])
def test_a_column_counts_only_where_it_is_typed(name: str, nasty: str, project: Path) -> None:
    """Shells have a variable PROMPT of their own."""
    assert make(project, "fit", "CSV=mine.csv", f"{name}={nasty}").returncode == 0
    assert make(project, "fit", "CSV=mine.csv", **{name: nasty}).returncode == 0
    typed = f"<python><-m><presets.fit><--{name.lower()}={nasty}><--><mine.csv"
    assert called(project) == [typed, "<python><-m><presets.fit><--><mine.csv"]
    assert not (project / "pwned").exists()


@pytest.mark.parametrize("nasty", [text for text in NASTY if "\n" not in text])
def test_an_environment_of_any_name(nasty: str, project: Path) -> None:
    recording_environment(project / nasty)
    done = make(project, "repro", f"VENV={nasty}")
    assert done.returncode == 0, done.stderr
    assert called(project) == ["<dvc><repro", "<python><-m><stages.commands.summary"]
    assert make(project, "clean", f"VENV={nasty}").returncode == 0
    assert not (project / nasty).exists()
    assert not (project / "pwned").exists()


@pytest.mark.parametrize("nasty", NASTY)
def test_a_python_of_any_name(nasty: str, project: Path) -> None:
    shutil.rmtree(project / ".venv")
    done = make(project, "repro", f"PYTHON={nasty}")
    assert done.returncode != 0
    assert "error: Python 3.11 to 3.13 is needed; for example: make PYTHON=python3.12\n" in done.stderr
    assert not (project / "pwned").exists()


def test_only_a_virtual_environment_is_removed(project: Path) -> None:
    (project / "data").mkdir()
    done = make(project, "clean", "VENV=data")
    assert done.returncode != 0
    assert done.stderr.startswith("error: data: no virtual environment, kept\n")
    assert (project / "data").exists()
    assert make(project, "clean").returncode == 0
    assert not (project / ".venv").exists()
    assert make(project, "clean").returncode == 0


def test_what_is_locked_is_installed_once_by_its_hashes_and_torch_by_its_pin(project: Path) -> None:
    shutil.rmtree(project / ".venv")
    recording_environment(project / ".venv", installed=False)
    pip = "<python><-m><pip><install><--quiet><--disable-pip-version-check>"
    installing = [
        f"{pip}<--require-hashes><--no-deps><-r><requirements.lock",
        f"{pip}<-r><requirements-torch.lock",
    ]
    make(project, "preset", "PRESET=toy")
    assert called(project)[:2] == installing
    make(project, "preset", "PRESET=toy")
    assert len(called(project)) == len(installing) + 2
    (project / "requirements.lock").touch()
    make(project, "preset", "PRESET=toy")
    assert called(project)[-3:-1] == installing


def test_a_preset_is_taken_without_training(project: Path) -> None:
    make(project, "preset", "PRESET=gpt2", "TEXT=it's.txt")
    assert called(project) == ["<python><-m><presets.use><--text=it's.txt><--><gpt2"]


def test_without_git_the_fix_is_said(project: Path) -> None:
    shutil.rmtree(project / ".git")
    done = make(project, "repro")
    assert done.returncode != 0
    assert done.stderr.splitlines()[0].startswith(
        "error: this folder is no git repository, which DVC needs (a ZIP has none)"
    )
    fix = done.stderr.partition("type: ")[2].splitlines()[0].removesuffix(")")
    (project / ".gitignore").write_text(".venv\n")
    identity = {f"GIT_{who}_{what}": "t@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    subprocess.run(fix, shell=True, cwd=project, check=True, env=os.environ | identity)
    assert make(project, "repro").returncode == 0


def test_data_as_a_link_is_refused_before_anything_runs(project: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (project / "data").symlink_to(tmp_path / "elsewhere")
    done = make(project, "repro")
    assert done.stderr.startswith("error: data is a symbolic link, which DVC refuses; make it a folder")
    assert called(project) == []


def test_a_text_with_an_apostrophe_becomes_data(tmp_path: Path) -> None:
    for folder in ("presets", "stages"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for name in ("Makefile", "params.yaml", "requirements.lock", "requirements-torch.lock"):
        shutil.copy(ROOT / name, tmp_path)
    environment = tmp_path / ".venv"
    environment.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (environment / name).symlink_to(Path(sys.prefix) / name)
    (environment / "installed").touch()
    (tmp_path / "it's.txt").write_text("one\n\ntwo\n")
    done = make(tmp_path, "preset", "PRESET=characters", "TEXT=it's.txt")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/text.csv").read_text() == "text\none\ntwo\n"
    assert "wrote data/text.csv: 2 paragraphs of it's.txt" in done.stdout


def test_help_names_every_target_that_is_for_people() -> None:
    printed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = {line.split()[1] for line in printed.splitlines()}
    assert targets == {
        "help", "repro", "preset", "fit", "test", "slow", "ui", "serve", "compare", "verdict", "bench", "deps", "lock", "clean",
    }  # fmt: skip
