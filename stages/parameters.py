"""Strict reading of one section of params.yaml into the model that its consumer owns."""

import difflib
import logging
import reprlib
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from stages.core.params_model import ParamsModel
from stages.errors import UserError

LOG = logging.getLogger(__name__)

PARAMETERS_FILE = Path("params.yaml")
MOVED = {
    "train.register_as": "is now evaluate.register_as; move the line",
    "train.betas": "is now two keys, train.beta1 and train.beta2, with one number each; write these two lines in its place",
}

_LONGEST_VALUE = 200  # characters of what was found that a message has

Section = TypeVar("Section", bound=ParamsModel)


def read_section(name: str, model: type[Section], path: Path = PARAMETERS_FILE) -> Section:
    """Read one section of ``path`` and check every key of it.

    Raises:
        UserError: the file cannot be read, the section is absent, or a key is unknown, missing or has a wrong value.
    """
    section = read_all(path).get(name)
    if not isinstance(section, dict):
        raise UserError(f"{path}: the section '{name}:' is missing; copy it from presets/toy.yaml")
    LOG.info("%s: %s: %s", path, name, section)
    try:
        return model.model_validate(section)
    except pydantic.ValidationError as error:
        details = error.errors()
        moved = [detail for detail in details if _key(name, detail) in MOVED]  # what takes their place is missing too
        raise UserError("\n".join(_explain(path, name, model, detail) for detail in moved or details)) from None


def read_all(path: Path = PARAMETERS_FILE) -> dict[str, Any]:
    """Read every section of ``path`` as plain values, with YAML 1.2 numbers (``1e-2`` is a number, as it is for DVC).

    Raises:
        UserError: the file is absent or is not a YAML mapping.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: expected a file")  # a pipe, which would be waited for
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found in {Path.cwd()}; run from the project's folder") from None
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{path}: not valid YAML: {line}{error.problem}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: nested too deep; expected sections of keys") from None
    except (YAMLError, ValueError) as error:  # bytes that are no UTF-8, or an integer of thousands of digits
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections such as 'train:'; copy presets/toy.yaml")
    return values


@lru_cache(maxsize=1)
def _parse(text: str) -> Any:
    """Parse YAML; a stage asks for several sections of one file, which takes a twentieth of a second each time."""
    return YAML(typ="safe", pure=True).load(text)


def _key(section: str, detail: Any) -> str:
    return ".".join([section, *(str(part)[:_LONGEST_VALUE] for part in detail["loc"])])


def _explain(path: Path, name: str, model: type[ParamsModel], detail: Any) -> str:
    key = _key(name, detail)
    found = _short(detail["input"])
    match detail["type"]:
        case "extra_forbidden" if key in MOVED:
            return f"{path}: {key} {MOVED[key]}"
        case "extra_forbidden":
            unknown = str(detail["loc"][-1])[:_LONGEST_VALUE]
            nearest = difflib.get_close_matches(unknown, model.model_fields, n=1)
            meant = f"did you mean '{nearest[0]}'? " if nearest else ""
            return f"{path}: unknown key {key}; {meant}allowed: {', '.join(model.model_fields)}"
        case "missing":
            return f"{path}: {key} is missing; copy its line from presets/toy.yaml"
        case "value_error" if not detail["loc"]:
            return f"{path}: {name}: {detail['ctx']['error']}"
        case "value_error":
            return f"{path}: {key}: {detail['ctx']['error']}; found {found}"
    expected = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{path}: {key}: {expected}; found {found}"


def _short(value: Any) -> str:
    """Return what was found, as Python writes it, cut to what a message holds; no more of it is looked at."""
    writer = reprlib.Repr()
    writer.maxstring = writer.maxother = writer.maxlong = _LONGEST_VALUE
    try:
        return writer.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits, which YAML has in hexadecimal
        return "a number of thousands of digits"
