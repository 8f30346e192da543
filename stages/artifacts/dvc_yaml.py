"""dvc.yaml: what each stage depends on."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.parameters import read_all

DVC_FILE = Path("dvc.yaml")

_PARAMETER = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class StageDefinition:
    """The inputs that DVC knows a stage by."""

    deps: list[Path]
    """Files and folders, sorted."""
    params: list[str]
    """Sections and keys of params.yaml, as dotted names, sorted."""


def read_stage(stage: str) -> StageDefinition:
    """Return what a stage depends on, with the values of params.yaml in place of ``${names}``.

    Raises:
        UserError: params.yaml cannot be read.
        OSError: there is no dvc.yaml.
        KeyError: it has no such stage, or params.yaml no such key.
    """
    definition = YAML(typ="safe").load(DVC_FILE.read_text(encoding="utf-8"))["stages"][stage]
    parameters = read_all()
    deps = [_PARAMETER.sub(lambda name: str(parameter(parameters, name[1])), dep) for dep in definition["deps"]]
    return StageDefinition(sorted(map(Path, deps)), sorted(definition["params"]))


def parameter(parameters: dict[str, Any], name: str) -> Any:
    """Return what params.yaml has under a dotted name.

    Raises:
        KeyError: it has no such key.
    """
    value: Any = parameters
    for key in name.split("."):
        if not isinstance(value, dict):
            raise KeyError(name)
        value = value[key]
    return value


def flatten(name: str, value: Any) -> dict[str, Any]:
    """Return the values of a section by their dotted names, however deep they lie in a file that anyone wrote."""
    leaves: dict[str, Any] = {}
    waiting = [(name, value)]
    while waiting:
        place, found = waiting.pop()
        if isinstance(found, dict):
            waiting += reversed([(f"{place}.{key}", inner) for key, inner in found.items()])
        else:
            leaves[place] = found
    return leaves
