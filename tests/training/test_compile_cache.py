"""A compilation that was killed must not fail the next training."""

from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch._inductor.codecache import get_lock_dir

from stages.training import fit as fit_module
from stages.training.compile_cache import is_whole, remove_incomplete_libraries
from tests.training.conftest import network, train


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("kept", [0, 3, 40, 63, 1000, -1])
def test_a_library_of_which_bytes_lack_is_not_whole(kept: int, tmp_path: Path) -> None:
    library = Path(torch.__file__).parent / "lib/libshm.so"
    assert is_whole(library)
    part = tmp_path / "part.so"
    part.write_bytes(library.read_bytes()[:kept])
    assert not is_whole(part)


def test_a_library_that_a_process_is_writing_stays(cache: Path) -> None:
    for key in ("written", "killed"):
        (cache / "ab").mkdir(exist_ok=True)
        (cache / f"ab/{key}.main.so").touch()
    with FileLock(Path(get_lock_dir()) / "written.lock"):
        remove_incomplete_libraries()
    assert [path.name for path in cache.glob("ab/*")] == ["written.main.so"]


def test_a_training_that_compiles_looks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bool] = []
    monkeypatch.setattr(fit_module, "remove_incomplete_libraries", lambda: looked.append(True))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    train(network(), max_steps=1)
    assert not looked
    train(network(), max_steps=1, compile=True)
    assert looked == [True]
