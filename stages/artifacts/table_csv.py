"""metrics/*.csv and metrics/plots/*.csv: tables, and what DVC draws."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.artifacts.atomic import atomic_file

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
