"""metrics/*.json: flat names and numbers, in the order given."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.artifacts.atomic import atomic_file
from stages.artifacts.regular_file import check_file
from stages.errors import UserError

DATA_METRICS = Path("metrics/data.json")

LOG = logging.getLogger(__name__)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as JSON, indented, so that a change shows as one line in git.

    Raises:
        ValueError: a number is infinite or not a number, which JSON cannot hold.
    """
    with atomic_file(path) as file:
        file.write(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what ``write_json`` wrote.

    Raises:
        UserError: the file is absent or is no JSON object.
    """
    LOG.info("reading %s", path)
    check_file(path, "make it with `dvc repro`")
    try:
        values = json.loads(path.read_bytes())
    except RecursionError:
        raise UserError(f"{path}: not valid JSON: nested too deep; make it again with `dvc repro --force`") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); make it again with `dvc repro --force`") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object; make it again with `dvc repro --force`")
    return values
