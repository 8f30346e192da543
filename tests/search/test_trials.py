"""A trial that ran before is taken, and only where it is the same trial."""

import subprocess
from pathlib import Path

import pytest

from stages.errors import UserError
from stages.search.trials import _check_settings, _read_metric


def git(*arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=Test", "-c", "user.email=test@example.com", *arguments], check=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A commit with an experiment search-0."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics").mkdir()
    (tmp_path / "params.yaml").write_text("train:\n  learning_rate: 0.01\n  optimizer: adamw\n")
    (tmp_path / "metrics/train.json").write_text('{"validation_loss": 1.5}')
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "Start")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    git("update-ref", f"refs/exps/{commit[:2]}/{commit[2:]}/search-0", "HEAD")
    return tmp_path


@pytest.mark.usefixtures("repository")
def test_a_finished_experiment_of_this_commit_has_its_figure() -> None:
    assert _read_metric("search-0", "validation_loss") == 1.5
    assert _read_metric("search-0", "loss") is None
    assert _read_metric("search-1", "validation_loss") is None
    assert _read_metric("0", "validation_loss") is None
    git("commit", "--quiet", "--allow-empty", "--message", "Other code")
    assert _read_metric("search-0", "validation_loss") is None


@pytest.mark.usefixtures("repository")
def test_an_experiment_with_other_values_is_not_taken_for_this_trial() -> None:
    _check_settings("search-0", {"train.learning_rate": "1.0e-2", "train.optimizer": "adamw"})
    with pytest.raises(
        UserError, match=r"search-0: .* with train.learning_rate 0.01 where this search has 0.5; take another"
    ):
        _check_settings("search-0", {"train.learning_rate": "0.5"})
