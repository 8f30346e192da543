"""What came in (metrics/data.json), on the page of a training's run."""

import csv
from collections import defaultdict
from pathlib import Path

from stages.artifacts.dvc_yaml import flatten
from stages.artifacts.metrics_json import DATA_METRICS, read_json
from stages.artifacts.table_csv import ROW_LENGTHS, ROWS_BY_FILE
from stages.tracking.runs import TrainingRun, UnrecordedRun


def log_data_figures(run: TrainingRun | UnrecordedRun) -> None:
    """Log what build_dataset found, where it is there: its figures, and as curves the rows that fit in a context."""
    if not (DATA_METRICS.exists() and ROW_LENGTHS.exists()):
        return
    figures = flatten("data", read_json(DATA_METRICS))
    run.log_metrics({name.replace(".", "/"): float(figure) for name, figure in figures.items()}, step=0)
    for context_length, shares in read_fitting_rows(ROW_LENGTHS).items():
        run.log_metrics({f"data/{split}/rows_that_fit": share for split, share in shares.items()}, step=context_length)
    run.log_files([path for path in (DATA_METRICS, ROW_LENGTHS, ROWS_BY_FILE) if path.exists()])


def read_fitting_rows(path: Path) -> dict[int, dict[str, float]]:
    """Return context_length -> split -> the share of its rows that fit in it, with the shortest first."""
    shares: defaultdict[int, dict[str, float]] = defaultdict(dict)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            shares[int(row["context_length"])][row["split"]] = float(row["share_of_rows"])
    return dict(sorted(shares.items()))
