"""A study whose trials a test makes up."""

from pathlib import Path

import optuna
import pytest

from stages.search.study import FOLDER, open_study


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> optuna.Study:
    monkeypatch.chdir(tmp_path)
    FOLDER.mkdir()
    return open_study("search", "loss")
