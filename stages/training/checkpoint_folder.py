"""The checkpoints of a training: beside the project, outside of what DVC tracks and deletes, one folder for each fingerprint.

A training never goes on from a checkpoint with other inputs. A finished training stays until DVC has recorded its result.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from stages.artifacts.atomic import PARTIAL_SUFFIX, atomic_file
from stages.artifacts.regular_file import hash_file
from stages.errors import UserError
from stages.tracking.workspace import project_root

FOLDER = Path(".checkpoints")
KEPT = 2  # where the newest is damaged, the one before it serves
_SUFFIX = ".ckpt"
_HASH_SUFFIX = ".sha256"
_PART_SUFFIX = ".safetensors"


class CheckpointFolder:
    """The checkpoints of the training with one fingerprint, and the id of its MLflow run."""

    def __init__(self, fingerprint: str) -> None:
        self.path = project_root() / FOLDER / fingerprint
        self._run = self.path / "run"
        self._finished = self.path / "finished"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from training with the same inputs; the lock ends with the process, however it ends.

        Raises:
            UserError: another process has the lock, such as a training whose `dvc repro` was killed.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock, holder = FileLock(self.path / "lock"), self.path / "pid"
        try:
            lock.acquire(timeout=0)
        except Timeout:
            pid = _read_word(holder, r"\d+") or "unknown"
            message = (
                f"{self.path}: process {pid} is training with the same inputs; wait for it, or stop it with "
                f"`kill {pid}`: the next `dvc repro` goes on from its checkpoint"
            )
            raise UserError(message) from None
        with lock:
            try:
                with atomic_file(holder) as file:
                    file.write(str(os.getpid()).encode())
                for unfinished in self.path.glob(f"*{PARTIAL_SUFFIX}"):  # of a process that was killed
                    unfinished.unlink()
                self._delete_lone_parts()
                yield
            finally:
                if not self._all():
                    self.remove()

    def newest(self) -> Path | None:
        """Return the newest checkpoint that is whole; None where there is none."""
        for path in self._all():
            if _is_whole(path):
                return path
            print(f"{path}: damaged, as by a power cut; trying the one before it", file=sys.stderr)
        return None

    def checkpoint(self, step: int) -> Path:
        """Return the path of a step's checkpoint."""
        return self.path / f"{step:012d}{_SUFFIX}"

    def forget_old(self, kept: int = KEPT) -> None:
        """Delete all but the newest checkpoints, and parts of those that were not finished."""
        for path in self._all()[kept:]:
            _delete(path)
        self._delete_lone_parts()

    def restart(self) -> None:
        """Forget everything: the next training begins at its first step, in an MLflow run of its own."""
        self.forget_old(kept=0)
        self._run.unlink(missing_ok=True)
        self._finished.unlink(missing_ok=True)

    def finish(self) -> None:
        """Keep the finished training until DVC has recorded its result, and delete those that are finished before it."""
        for finished in self.path.parent.glob(f"*/{self._finished.name}"):
            if finished != self._finished:
                CheckpointFolder(finished.parent.name).remove_finished()
        self.forget_old(kept=1)
        self._finished.touch()

    def remove_finished(self) -> None:
        """Delete the folder of a training that is finished, unless a process uses it."""
        if not self._finished.exists():
            return
        try:
            with FileLock(self.path / "lock", timeout=0):
                self.remove()
        except Timeout:
            return

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def run_id(self) -> str | None:
        """Return the MLflow run of the training that the checkpoints are of."""
        return _read_word(self._run, "[0-9a-zA-Z]+")

    def remember_run(self, run_id: str) -> None:
        """Keep the id of the training's MLflow run, for a process that goes on with it."""
        with atomic_file(self._run) as file:
            file.write(run_id.encode())

    def _delete_lone_parts(self) -> None:
        """Delete parts whose checkpoint was never finished: it appears after them."""
        finished = {path.stem for path in self._all()}
        for part in self.path.glob(f"*{_PART_SUFFIX}"):
            if part.name.split(".")[0] not in finished:
                part.unlink(missing_ok=True)

    def _all(self) -> list[Path]:
        """Return all checkpoints, the newest first."""
        return sorted(self.path.glob(f"*{_SUFFIX}"), reverse=True)


def part_path(checkpoint: Path, rank: int, devices: int) -> Path:
    """Return the path of one device's part of a checkpoint."""
    return checkpoint.with_name(f"{checkpoint.stem}.{rank:05d}-of-{devices:05d}{_PART_SUFFIX}")


def write_hashes(checkpoint: Path, digests: Mapping[Path, str]) -> None:
    """Write the SHA-256 of all files of a checkpoint beside it, as sha256sum does."""
    with atomic_file(checkpoint.with_suffix(_HASH_SUFFIX)) as file:
        file.writelines(f"{digest}  {path.name}\n".encode() for path, digest in digests.items())


def _is_whole(checkpoint: Path) -> bool:
    """Return whether all files of a checkpoint have the SHA-256 that was written with them."""
    beside = checkpoint.with_suffix(_HASH_SUFFIX)
    lines = beside.read_text(encoding="utf-8", errors="replace").splitlines() if beside.is_file() else []
    digests = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    files = {path.name: path for path in (checkpoint, *_parts(checkpoint))}
    return checkpoint.name in digests and all(
        name in files and hash_file(files[name]) == digest for name, digest in digests.items()
    )


def _parts(checkpoint: Path) -> list[Path]:
    return list(checkpoint.parent.glob(f"{checkpoint.stem}.*{_PART_SUFFIX}"))


def _read_word(path: Path, pattern: str) -> str | None:
    """Return the word in a small file, which goes into a command or an address; None where it is absent or anything else."""
    try:
        word = path.read_text(encoding="utf-8") if path.is_file() else ""  # a pipe would be waited for
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return word if re.fullmatch(pattern, word, re.ASCII) else None


def _delete(checkpoint: Path) -> None:
    for path in (checkpoint, checkpoint.with_suffix(_HASH_SUFFIX), *_parts(checkpoint)):
        path.unlink(missing_ok=True)
