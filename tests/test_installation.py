"""What is installed is what was locked, and a clone has the same bytes on every machine."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.project import ROOT, Project, clone

LOCKS = ("requirements.lock", "requirements-dev.lock")
PACKAGE = re.compile(r"^([a-z0-9-]+)==(\S+)(?: ; [^\\\n]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n", re.MULTILINE)
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def locked(name: str) -> set[tuple[str, str]]:
    """Return each package of a lock with its version."""
    return {(match[1], match[2]) for match in PACKAGE.finditer((ROOT / name).read_text(encoding="utf-8"))}


def required_name(requirement: str) -> str:
    return re.split(r"[<>=\[ ]", requirement, maxsplit=1)[0].replace(".", "-")


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_has_its_hashes_and_no_address(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    rest = PACKAGE.sub("", text)
    assert [line for line in rest.splitlines() if not line.startswith("#")] == []
    assert "://" not in text


def test_the_locks_have_what_is_required() -> None:
    required = {required_name(line) for line in PYPROJECT["project"]["dependencies"]} - {"torch"}
    assert required <= {name for name, _ in locked("requirements.lock")}
    extras = PYPROJECT["project"]["optional-dependencies"]
    for_development = {required_name(line) for line in extras["dev"] + extras["export"]} - {"prompt-pipeline"}
    assert for_development <= {name for name, _ in locked("requirements-dev.lock")}
    assert locked("requirements.lock") <= locked("requirements-dev.lock")


def test_torch_has_the_version_of_pyproject_and_no_hash() -> None:
    lines = (ROOT / "requirements-torch.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) == 1
    assert pins[0].startswith("torch==")
    assert pins[0] in PYPROJECT["project"]["dependencies"]


def test_what_a_user_installs_has_every_module_and_every_file_that_a_module_reads(tmp_path: Path) -> None:
    source = clone(tmp_path / "source")
    wheel = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), "."]
    source.run(sys.executable, *wheel)
    tracked = source.run("git", "ls-files", "stages", "presets").stdout.split()
    with zipfile.ZipFile(next(tmp_path.glob("prompt_pipeline-*.whl"))) as built:
        names = [name for name in built.namelist() if not re.match(r"prompt_pipeline-[^/]+\.dist-info/", name)]
    assert sorted(names) == sorted(tracked)


@pytest.fixture
def clone_with_autocrlf(tmp_path: Path) -> Project:
    """A clone of a clone, as git makes it on Windows."""
    origin = clone(tmp_path / "origin")
    project = Project(tmp_path / "windows")
    origin.run("git", "clone", "--quiet", "--config", "core.autocrlf=true", ".", str(project.folder))
    return project


def test_a_clone_with_autocrlf_has_the_same_bytes(clone_with_autocrlf: Project) -> None:
    assert clone_with_autocrlf.run("git", "status", "--porcelain").stdout == ""
    tracked = clone_with_autocrlf.run("git", "ls-files").stdout.split()
    assert len(tracked) > 100
    differ = [
        name for name in tracked if (clone_with_autocrlf.folder / name).read_bytes() != (ROOT / name).read_bytes()
    ]
    assert differ == []


def test_data_with_carriage_returns_stays_as_it_is(clone_with_autocrlf: Project, tmp_path: Path) -> None:
    rows = b"prompt,completion\r\na,b\r\n"
    for name in ("data/mine.csv", "elsewhere.csv"):
        (clone_with_autocrlf.folder / name).write_bytes(rows)
    clone_with_autocrlf.run("git", "add", "--all")
    clone_with_autocrlf.run("git", "-c", "user.name=T", "-c", "user.email=t@example.com", "commit", "--message", "Data")
    colleague = Project(tmp_path / "colleague")
    clone_with_autocrlf.run("git", "clone", "--quiet", ".", str(colleague.folder))
    for name in ("data/mine.csv", "elsewhere.csv"):
        assert (colleague.folder / name).read_bytes() == rows


def test_pictures_are_binary() -> None:
    names = subprocess.run(["git", "ls-files", "*.png"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shown = subprocess.run(
        ["git", "check-attr", "binary", "--", *names.split()], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert shown
    assert [line for line in shown if not line.endswith(": binary: set")] == []


HOOKS = YAML(typ="safe").load(ROOT / ".pre-commit-config.yaml")["repos"]


def test_hooks_run_the_tools_that_are_locked() -> None:
    assert [repository["repo"] for repository in HOOKS] == ["local"]
    assert [hook["entry"].split()[0] for hook in HOOKS[0]["hooks"]] == [
        f".venv/bin/{tool}" for tool in ("ruff", "ruff", "mypy", "python")
    ]
    assert {hook["language"] for hook in HOOKS[0]["hooks"]} == {"system"}


def test_the_hooks_format_a_commit_and_list_what_it_imports(project: Project) -> None:
    """Mypy, which reads the whole project, is left out for speed."""
    (project.folder / ".venv").symlink_to(sys.prefix)
    entry = project.folder / "stages/build_vocabulary.py"
    entry.write_text(entry.read_text(encoding="utf-8") + "\nfrom stages.core import windows\nX = [windows]\n")
    project.run("git", "add", "stages")
    failed = project.run(".venv/bin/pre-commit", "run", check=False, environment={"SKIP": "mypy"})
    assert failed.returncode == 1, failed.stdout
    assert "\n\nX = [windows]\n" in entry.read_text(encoding="utf-8")
    changed = project.run("git", "diff", "--unified=0", "dvc.yaml").stdout
    assert "\n+    - stages/core/windows.py\n" in changed
    project.run("git", "add", "dvc.yaml", "stages")
    assert "code deps of dvc.yaml....................................................Passed" in (
        project.run(".venv/bin/pre-commit", "run", check=False, environment={"SKIP": "mypy"}).stdout
    )
