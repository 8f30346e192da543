"""What a stage's result is made from: the md5 of every dependency that dvc.yaml lists for it, and its parameters."""

import hashlib
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pydantic

from stages.artifacts.dvc_yaml import flatten, parameter, read_stage
from stages.artifacts.metrics_json import read_json
from stages.artifacts.regular_file import check_file, files_below
from stages.errors import UserError
from stages.parameters import read_all

MODEL_FOLDER = Path("data/model")
PROVENANCE_FILE = "provenance.json"
# A folder is known by the file in it that says what it holds (a dataset's has hashes of the data) or was made from (a model's).
FOLDER_FILES = ("metadata.json", PROVENANCE_FILE)

FINGERPRINT = re.compile("[0-9a-f]{16}")
_TRAIN_AGAIN = "type `dvc repro`, or `dvc repro --force train` where DVC takes the model for up to date"


class Provenance(pydantic.BaseModel):
    """The inputs of one run of a stage. Equal inputs give an equal fingerprint, on every machine and at any time."""

    fingerprint: str
    """Digest of everything below."""
    dependencies: dict[str, str]
    """Path -> md5, as in dvc.lock; for a folder with a metadata.json or provenance.json, the md5 of that file."""
    parameters: dict[str, Any]
    """The sections and keys of params.yaml that the stage depends on, by their names in dvc.yaml."""


def stage_provenance(stage: str, *, apart_from: str | None = None) -> Provenance:
    """Return the present inputs of a stage, read in the project's folder.

    Args:
        stage: its name in dvc.yaml.
        apart_from: the dotted name of a parameter that the stage reads but that changes no result; None: all change it.

    Raises:
        UserError: params.yaml cannot be read, or a dependency is absent.
    """
    definition = read_stage(stage)
    parameters = _without(read_all(), apart_from.split(".")) if apart_from else read_all()
    inputs = {
        "dependencies": {path.as_posix(): md5(path) for path in definition.deps},
        "parameters": {name: parameter(parameters, name) for name in definition.params},
    }
    canonical = json.dumps(inputs, sort_keys=True, ensure_ascii=True).encode()
    return Provenance(fingerprint=hashlib.sha256(canonical).hexdigest()[:16], **inputs)


def _without(parameters: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """Return parameters that lack the one under these keys."""
    first, *rest = keys
    others = {key: value for key, value in parameters.items() if key != first}
    return others | {first: _without(parameters[first], rest)} if rest else others


def check_trained_from(model: Provenance) -> None:
    """Compare what a model was trained from with the present parameters and data.

    Raises:
        UserError: they differ, as where params.yaml was edited in the moment in which DVC recorded the training; or a
            dependency is absent.
    """
    present = stage_provenance("train")
    before, now = flatten("", model.parameters), flatten("", present.parameters)
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            found = (
                f"{name.lstrip('.')} is {now.get(name)!r}, but {MODEL_FOLDER}/ was trained with {before.get(name)!r}"
            )
            raise UserError(f"params.yaml: {found}; {_TRAIN_AGAIN}")
    for path, digest in present.dependencies.items():
        if not path.endswith(".py") and model.dependencies.get(path) != digest:
            raise UserError(f"{path}: not what {MODEL_FOLDER}/ was trained from; {_TRAIN_AGAIN}")


def read_provenance(folder: Path = MODEL_FOLDER) -> Provenance:
    """Read what a model was made from.

    Raises:
        UserError: the file is absent or damaged.
    """
    path = folder / PROVENANCE_FILE
    try:
        provenance = Provenance.model_validate(read_json(path))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: not a model's provenance: {key}: {first['msg']}; type `dvc checkout`") from None
    if not FINGERPRINT.fullmatch(provenance.fingerprint):  # it names files and folders
        found = textwrap.shorten(repr(provenance.fingerprint), 60)
        raise UserError(f"{path}: fingerprint: expected 16 hexadecimal digits, found {found}; type `dvc checkout`")
    return provenance


def md5(path: Path) -> str:
    """Hash a file, or the file that says what a folder holds, or else a folder as DVC does.

    Raises:
        UserError: it is absent, or no file.
    """
    if path.is_dir():
        says = next((path / name for name in FOLDER_FILES if (path / name).exists()), None)
        if says is None:
            names = sorted(each.relative_to(path).as_posix() for each in files_below(path) if each.is_file())
            listed = json.dumps([{"md5": md5(path / name), "relpath": name} for name in names])
            return hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest() + ".dir"
        path = says
    check_file(path, "make it with `dvc repro`")
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
