"""What a stage's result is made from: the md5 of every dependency that dvc.yaml lists for it, and its parameters."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pydantic
from ruamel.yaml import YAML

from stages.artifacts.metrics_json import read_json
from stages.errors import UserError
from stages.parameters import read_all

MODEL_FOLDER = Path("data/model")
PROVENANCE_FILE = "provenance.json"
# A folder is known by the file in it that says what it holds (a dataset's has hashes of the data) or was made from (a model's).
FOLDER_FILES = ("metadata.json", PROVENANCE_FILE)


class Provenance(pydantic.BaseModel):
    """The inputs of one run of a stage. Equal inputs give an equal fingerprint, on every machine and at any time."""

    fingerprint: str
    """Digest of everything below."""
    dependencies: dict[str, str]
    """Path -> md5, as in dvc.lock; for a folder the md5 of its metadata.json or provenance.json."""
    parameters: dict[str, Any]
    """The sections and keys of params.yaml that the stage depends on, by their names in dvc.yaml."""


def stage_provenance(stage: str, *, apart_from: str | None = None) -> Provenance:
    """Return the present inputs of a stage, read in the project's folder.

    Args:
        stage: its name in dvc.yaml.
        apart_from: the dotted name of a parameter that the stage reads but that changes no result; None: all change it.

    Raises:
        UserError: params.yaml cannot be read.
        OSError: a dependency is absent.
    """
    definition = YAML(typ="safe", pure=True).load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]
    parameters = _without(read_all(), apart_from.split(".")) if apart_from else read_all()
    inputs = {
        "dependencies": {path: md5(Path(path)) for path in sorted(definition["deps"])},
        "parameters": {name: _value(parameters, name) for name in sorted(definition["params"])},
    }
    canonical = json.dumps(inputs, sort_keys=True, ensure_ascii=True).encode()
    return Provenance(fingerprint=hashlib.sha256(canonical).hexdigest()[:16], **inputs)


def _without(parameters: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """Return parameters that lack the one under these keys."""
    first, *rest = keys
    others = {key: value for key, value in parameters.items() if key != first}
    return others | {first: _without(parameters[first], rest)} if rest else others


def _value(parameters: dict[str, Any], name: str) -> Any:
    """Return what params.yaml has under a dotted name."""
    value: Any = parameters
    for key in name.split("."):
        value = value[key]
    return value


def read_provenance(folder: Path = MODEL_FOLDER) -> Provenance:
    """Read what a model was made from.

    Raises:
        UserError: the file is absent or damaged.
    """
    path = folder / PROVENANCE_FILE
    try:
        return Provenance.model_validate(read_json(path))
    except pydantic.ValidationError as error:
        raise UserError(f"{path}: not a model's provenance: {error.errors()[0]['msg']}") from None


def md5(path: Path) -> str:
    """Hash a file, or the file that says what a folder holds."""
    if path.is_dir():
        path = next(path / name for name in FOLDER_FILES if (path / name).exists())
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
