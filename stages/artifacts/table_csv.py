"""metrics/*.csv and metrics/plots/*.csv: tables, and what DVC draws."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.artifacts.atomic import atomic_file

TRAIN_CURVE = Path("metrics/plots/train_loss.csv")
ROWS_BY_FILE = Path("metrics/plots/rows_by_file.csv")
ROW_LENGTHS = Path("metrics/plots/row_lengths.csv")
VALIDATION_CURVE = Path("metrics/plots/validation_loss.csv")

_ENDS_SCRIPT = re.compile(r"<(?=/?script|!--)", re.IGNORECASE)
_FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as CSV, with numbers in their shortest exact form.

    Text that a spreadsheet would take for a formula gets an apostrophe before it, by which spreadsheets know text. DVC
    copies a plotted table into a page's script as it is: within ``</script``, ``<script`` and ``<!--``, which end or
    change such a script, a space without width follows the ``<``.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_as_text(cell) for cell in row] for row in rows)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def _as_text(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    text = _ENDS_SCRIPT.sub("<\N{ZERO WIDTH SPACE}", cell)
    return f"'{text}" if text.startswith(_FORMULA_BEGINS) else text
