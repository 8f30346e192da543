"""The rule that a stage's deps are exactly what it imports, and the borders between the parts."""

import ast
import graphlib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
STAGES: dict[str, dict[str, Any]] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


# What cannot change an output, as test_same_bytes.py proves: the start-up guard, the command line, what is recorded and shown.
NOT_INGREDIENTS = (
    "stages/__init__.py", "stages/command_line.py", "stages/artifacts/stage_inputs.py", "stages/tracking/", "stages/training/advice.py",
    "stages/training/progress.py",
)  # fmt: skip


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports, at its top or within a function."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return modules


def is_ingredient(path: Path) -> bool:
    return not path.relative_to(ROOT).as_posix().startswith(NOT_INGREDIENTS)


def import_closure(path: Path) -> set[str]:
    """Every file of the project that ``path`` imports and that can change its output, itself included."""
    found: set[Path] = set()
    to_read = {path}
    while to_read:
        found |= to_read
        candidates = {ROOT / f"{module.replace('.', '/')}.py" for file in to_read for module in imported_modules(file)}
        to_read = {candidate for candidate in candidates if candidate.exists() and is_ingredient(candidate)} - found
    return {file.relative_to(ROOT).as_posix() for file in found}


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_import_closure(stage: str) -> None:
    listed = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    assert listed == import_closure(ROOT / f"stages/{stage}.py")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_the_module_of_its_name(stage: str) -> None:
    assert STAGES[stage]["cmd"] == f"python -m stages.{stage}"


def test_no_stage_depends_on_the_runtime_section() -> None:
    assert not [name for stage in STAGES.values() for name in stage["params"] if name.startswith("runtime")]


def test_every_parameter_is_tracked_by_a_stage() -> None:
    tracked = {name for stage in STAGES.values() for name in stage["params"]} | {"data.csv"}  # a dep
    sections = YAML(typ="safe").load(ROOT / "params.yaml")
    keys = {f"{section}.{key}" for section in sections if section != "runtime" for key in sections[section]}
    assert {name for name in keys if name not in tracked and name.split(".")[0] not in tracked} == set()
    assert {name for name in tracked if "." in name} <= keys


def test_no_section_is_tracked_whole_that_has_a_key_which_the_run_cache_overlooks() -> None:
    """DVC leaves out ``size`` and ``nfiles`` at any depth where it looks for an earlier run: it means those of files."""
    sections = YAML(typ="safe").load(ROOT / "params.yaml")

    def overlooked(value: Any) -> bool:
        return isinstance(value, dict) and any(
            name in ("size", "nfiles") or overlooked(inner) for name, inner in value.items()
        )

    tracked = {name for stage in STAGES.values() for name in stage["params"]}
    assert {name for name in tracked if overlooked(sections.get(name))} == set()


ALLOWED_IN_CORE = {"torch", "numpy", "pyarrow", "pydantic", "tokenizers", "tiktoken", "stages"}


@pytest.mark.parametrize("path", sorted((ROOT / "stages/core").glob("*.py")), ids=lambda path: path.name)
def test_core_imports_no_io_no_lightning_and_no_mlflow(path: Path) -> None:
    import sys  # noqa: PLC0415

    tops = {module.split(".")[0] for module in imported_modules(path)}
    assert tops - set(sys.stdlib_module_names) <= ALLOWED_IN_CORE
    assert not {
        module for module in imported_modules(path) if module.startswith(("stages.artifacts", "stages.training"))
    }


def test_only_tracking_imports_mlflow() -> None:
    users = {
        path.relative_to(ROOT / "stages").parts[0]
        for path in (ROOT / "stages").rglob("*.py")
        if "mlflow" in {module.split(".")[0] for module in imported_modules(path)}
    }
    assert users == {"tracking"}


def test_only_training_and_its_entry_import_lightning() -> None:
    users = {
        path
        for path in (ROOT / "stages").rglob("*.py")
        if "lightning" in {m.split(".")[0] for m in imported_modules(path)}
    }
    assert {path.relative_to(ROOT / "stages").parts[0] for path in users} <= {"training", "train.py"}


def test_the_parts_of_the_report_that_are_not_python_are_deps_of_evaluate() -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "stages/report").iterdir()
        if path.is_file() and path.suffix != ".py"
    }
    listed = {dep for dep in STAGES["evaluate"]["deps"] if dep.startswith("stages/report/") and not dep.endswith(".py")}
    assert listed == files


def test_no_module_imports_itself_by_way_of_others() -> None:
    imports = {path: imported_modules(path) for path in (ROOT / "stages").rglob("*.py")}
    graph = {
        path: {other for other in imports if ".".join(other.relative_to(ROOT).with_suffix("").parts) in modules}
        for path, modules in imports.items()
    }
    assert set(graphlib.TopologicalSorter(graph).static_order()) == set(graph)
