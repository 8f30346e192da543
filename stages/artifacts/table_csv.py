"""metrics/plots/*.csv: what DVC and evaluate draw."""

import csv
import io
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.artifacts.atomic import atomic_file
from stages.errors import UserError

LOG = logging.getLogger(__name__)

TRAIN_CURVE = Path("metrics/plots/train_loss.csv")
VALIDATION_CURVE = Path("metrics/plots/validation_loss.csv")

_FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as CSV, with numbers in their shortest exact form.

    Text that a spreadsheet would take for a formula gets an apostrophe before it, by which spreadsheets know text.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_as_text(cell) for cell in row] for row in rows)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def _as_text(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA_BEGINS) else cell


def read_numbers(path: Path) -> list[dict[str, float]]:
    """Read a table whose cells are all numbers, a mapping of column to number for each row.

    Raises:
        UserError: the file is absent, or a cell is no number.
    """
    LOG.info("reading %s", path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{column: float(cell) for column, cell in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise UserError(f"{path}: not found; make it with `dvc repro`") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: expected numbers ({error}); make it again with `dvc repro --force`") from None
