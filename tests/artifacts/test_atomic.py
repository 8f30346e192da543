"""What is written is on the disk, under its name, when the write has ended."""

import os
from pathlib import Path

import pytest

from stages.artifacts.atomic import atomic_file


def test_the_bytes_then_the_name_then_the_new_folders_reach_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    target = tmp_path / "new/folder/file"
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), target.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with atomic_file(target) as file:
        file.write(b"bytes")
    assert synced == [
        (str(tmp_path), False),
        (str(tmp_path / "new"), False),
        (f"{target}.partial", False),
        (str(target.parent), True),
    ]
    assert target.read_bytes() == b"bytes"


def test_a_file_system_that_syncs_no_folders_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    with atomic_file(tmp_path / "file") as file:
        file.write(b"bytes")
    assert (tmp_path / "file").read_bytes() == b"bytes"
