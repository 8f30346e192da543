"""Train and evaluate with other code in place of all that records and shows: `python -m tests.other_recording`.

tests/test_same_bytes.py compares what this makes with what the real code makes.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import lightning


class Nothing:
    """Takes every call, attribute and `with` block, and does nothing; as a run it has no id."""

    id = None
    name = "nothing"

    def __init__(self, *_: object, **__: object) -> None: ...

    def __call__(self, *_: object, **__: object) -> Self:
        return self

    def __getattr__(self, name: str) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class OtherModule(ModuleType):
    """A module in which every class and function does nothing, but for those that are set."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing if name[0].isupper() else Nothing()


def parser(_description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    made.add_argument("--quiet", action="store_true", default=True)
    return made


OTHERS: dict[str, dict[str, Any]] = {
    "stages.tracking": {"__path__": []},
    "stages.tracking.workspace": {"project_root": lambda: Path("elsewhere").resolve()},
    "stages.training.progress": {"progress_callback": lambda *_: lightning.Callback()},
    "stages.command_line": {"command_parser": parser, "track": lambda batches, **_: batches},
}


class OtherCode(MetaPathFinder, Loader):
    """Finds other modules in the place of those that tests/test_dvc_deps.py leaves out of the stages' deps."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        replaced = name in OTHERS or name.startswith("stages.tracking.")
        return ModuleSpec(name, self, is_package=name == "stages.tracking") if replaced else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return OtherModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__.update(OTHERS.get(module.__name__, {}))


if __name__ == "__main__":
    sys.meta_path.insert(0, OtherCode())
    from stages import evaluate, train

    train.main()
    evaluate.main()
    assert "mlflow" not in sys.modules
