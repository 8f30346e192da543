"""Names and hashes that come with other people's experiments become no option of git and no path."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages.verdict import sources

LOCK = "stages:\n  evaluate:\n    outs:\n    - path: data/scores.parquet\n      md5: {}\n"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    return tmp_path


def committed(lock: str) -> None:
    Path("dvc.lock").write_text(lock)
    subprocess.run(["git", "add", "dvc.lock"], check=True)
    author = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", *author, "commit", "--quiet", "--message", "Run"], check=True)


def in_cache(digest: str) -> Any:
    return Path("cache") / digest


REPO: Any = SimpleNamespace(cache=SimpleNamespace(local=SimpleNamespace(oid_to_path=in_cache)))


def test_an_experiment_that_is_called_like_an_option_is_none(repository: Path) -> None:
    committed(LOCK.format("a" * 32))
    assert sources._path_in_cache(REPO, "HEAD") == in_cache("a" * 32)
    before = sorted(repository.iterdir())
    assert sources._path_in_cache(REPO, "--output=pwned") is None
    assert sorted(repository.iterdir()) == before


@pytest.mark.parametrize("digest", ["../../etc/passwd", "/etc/passwd", "3", "''", "A" * 32, f"{'a' * 32}/../x"])
def test_a_hash_that_is_none_becomes_no_path(digest: str, repository: Path) -> None:
    committed(LOCK.format(digest))
    assert sources._path_in_cache(REPO, "HEAD") is None
