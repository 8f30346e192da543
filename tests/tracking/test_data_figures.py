"""What build_dataset found is on the page of the training's run: figures, a curve of lengths, and both files."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from stages.artifacts.metrics_json import DATA_METRICS, write_json
from stages.artifacts.table_csv import ROW_LENGTHS, write_table
from stages.tracking.data_figures import log_data_figures
from stages.tracking.runs import UnrecordedRun


class RememberedRun(UnrecordedRun):
    def __init__(self) -> None:
        self.points: dict[str, dict[int, float]] = {}
        self.files: list[Path] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.points.setdefault(name, {})[step] = value

    def log_files(self, paths: Iterable[Path]) -> None:
        self.files += paths


def test_figures_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = RememberedRun()
    log_data_figures(run)
    assert (run.points, run.files) == ({}, [])  # of a dataset that was made elsewhere
    lengths = {"median": 4, "longest": 9}
    figures = {"context_length": 6, "train": {"rows": 3, "tokens_per_row": lengths}}
    write_json(DATA_METRICS, figures)
    rows = [("train", 3, 0.5), ("train", 8, 1.0), ("test", 5, 1.0)]
    write_table(ROW_LENGTHS, ["split", "context_length", "share_of_rows"], rows)
    log_data_figures(run)
    assert run.points == {
        "data/context_length": {0: 6.0},
        "data/train/rows": {0: 3.0},
        "data/train/tokens_per_row/median": {0: 4.0},
        "data/train/tokens_per_row/longest": {0: 9.0},
        "data/train/rows_that_fit": {3: 0.5, 8: 1.0},
        "data/test/rows_that_fit": {5: 1.0},
    }
    assert run.files == [DATA_METRICS, ROW_LENGTHS]
    assert json.loads(DATA_METRICS.read_text()) == figures
