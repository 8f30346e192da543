"""One real table in every format, and in parts, gives the same dataset, byte for byte."""

import hashlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.project import ROOT

TABLE = ROOT.parent / "shared/data/banking77/train.csv"
CHANGES = {
    "csv: data/prompts.csv": "csv: {csv}",
    "prompt_column: prompt": "prompt_column: text",
    "completion_column: completion": "completion_column: category",
    "validation: 0.0": "validation: 0.1",
    "test: 0.0": "test: 0.1",
    "unknown_token: false": "unknown_token: true",
}


def write_parts(frame: pd.DataFrame, folder: Path) -> None:
    folder.mkdir()
    third = len(frame) // 3 + 1
    for part in range(3):
        frame[part * third : (part + 1) * third].to_csv(folder / f"part-{part}.csv", index=False)


FORMATS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    "data/b.csv": lambda frame, path: frame.to_csv(path, index=False),
    "data/b.tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "data/b.jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "data/b.csv.gz": lambda frame, path: frame.to_csv(path, index=False),
    "data/b.parquet": lambda frame, path: frame.to_parquet(path),
    "data/parts": write_parts,
}


@pytest.mark.skipif(not TABLE.exists(), reason=f"{TABLE} is not there")
def test_the_same_dataset_from_any_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.read_csv(TABLE, dtype=str, keep_default_na=False)
    parameters = (ROOT / "presets/toy.yaml").read_text(encoding="utf-8")
    for old, new in CHANGES.items():
        assert old in parameters
        parameters = parameters.replace(old, new, 1)
    monkeypatch.setattr(sys, "argv", ["stage", "--quiet"])
    found = set()
    for number, (csv, write) in enumerate(FORMATS.items()):
        folder = tmp_path / str(number)
        (folder / "data").mkdir(parents=True)
        monkeypatch.chdir(folder)
        Path("params.yaml").write_text(parameters.replace("{csv}", csv), encoding="utf-8")
        write(frame, Path(csv))
        for stage in ("build_vocabulary", "build_dataset"):
            runpy.run_module(f"stages.{stage}", run_name="__main__")
        outputs = [
            Path("data/vocabulary.json"),
            *sorted(Path("data/dataset").iterdir()),
            Path("metrics/plots/row_lengths.csv"),
        ]
        found.add(tuple((path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in outputs))
    assert len(found) == 1
