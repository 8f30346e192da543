"""metrics/plots/*.csv: what DVC and MLflow draw."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.artifacts.atomic import atomic_file


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as CSV, with numbers in their shortest exact form."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())
