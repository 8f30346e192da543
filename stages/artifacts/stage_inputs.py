"""Refuse a result whose inputs changed while it was made.

DVC hashes the inputs of a stage after its command. Without this, what was edited in the meantime would stand in dvc.lock and
in the run cache as if the result had been made from it, for good.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import stages
from stages.artifacts.dvc_yaml import DVC_FILE, StageDefinition, flatten, parameter, read_stage
from stages.artifacts.provenance_json import md5
from stages.artifacts.regular_file import files_below
from stages.errors import UserError
from stages.parameters import PARAMETERS_FILE, read_all

SMALL = 16 * 1024**2  # bytes of a file that is compared by its content as well: some hundredths of a second
LISTED = 3  # changes that a message names

_ABSENT = object()


class FileState(NamedTuple):
    """What a file is compared by."""

    size: int
    mtime_ns: int
    inode: int
    md5: str | None
    """None where the file is large."""


class StageInputs:
    """The inputs of one stage, as they were when it began: parameters by value, files by content, size, time and inode."""

    def __init__(self, stage: str) -> None:
        """Look at the inputs; a folder without dvc.yaml has none that DVC could record.

        Raises:
            UserError: params.yaml cannot be read.
        """
        self._stage = stage
        try:
            self._definition = read_stage(stage)
        except (OSError, KeyError):
            self._definition = StageDefinition([], [])
        self._parameters = self._read_parameters()
        self._files = self._read_files()
        for path, state in self._files.items():  # code that was edited after it was imported, before this look
            imported = stages.CODE_AT_START.get(str(path.resolve()))
            if imported not in (None, state[:3]):
                self._files[path] = state._replace(md5=None)

    def check(self, advice: str = "type `dvc repro` again") -> None:
        """Compare the inputs with what they were.

        Raises:
            UserError: one of them changed. The message names it, and ends with ``advice``.
        """
        changes = self.changes()
        if changes:
            more = f" and {len(changes) - LISTED} more" if len(changes) > LISTED else ""
            listed = ", ".join(changes[:LISTED])
            raise UserError(f"{listed}{more} while {self._stage} ran, so its result is not recorded; {advice}")

    def changes(self) -> list[str]:
        """Return what changed, in words."""
        try:
            parameters = self._read_parameters()
        except UserError as error:  # an editor is at it
            return [str(error)]
        files = self._read_files()
        changed = [
            f"{PARAMETERS_FILE}: {name} {_change(self._parameters.get(name, _ABSENT), parameters.get(name, _ABSENT))}"
            for name in sorted({*self._parameters, *parameters})
            if self._parameters.get(name, _ABSENT) != parameters.get(name, _ABSENT)
        ]
        return changed + [
            f"{path} {_file_change(self._files.get(path), files.get(path))}"
            for path in sorted({*self._files, *files})
            if not _is_same(path, self._files.get(path), files.get(path))
        ]

    def overwritten(self, folder: Path) -> bool:
        """Return whether a file in ``folder`` got other content in its place: who mapped it into memory has read that."""
        files = self._read_files()
        return any(
            path.is_relative_to(folder)
            and path in files
            and files[path].inode == state.inode
            and files[path] != state
            and (state.md5 is None or files[path].md5 != state.md5)
            for path, state in self._files.items()
        )

    def _read_parameters(self) -> dict[str, Any]:
        parameters = read_all() if self._definition.params else {}
        values: dict[str, Any] = {}
        for name in self._definition.params:
            try:
                values |= flatten(name, parameter(parameters, name))
            except KeyError:
                continue  # the stage itself says what is missing
        return values

    def _read_files(self) -> dict[Path, FileState]:
        ignored = _ignored_names()
        states: dict[Path, FileState] = {}
        for dep in self._definition.deps:
            for path in sorted(files_below(dep)) if dep.is_dir() else [dep]:
                if not any(fnmatch(part, name) for part in path.relative_to(dep).parts for name in ignored):
                    try:
                        states |= _read_state(path)
                    except (OSError, UserError):
                        continue  # absent, or not to be read: the stage itself says so
        return states


@contextmanager
def unchanged_inputs(stage: str) -> Iterator[StageInputs]:
    """Fail where an input of the stage changed while the block, or the function that this decorates, ran.

    Raises:
        UserError: an input changed; also in place of an error that the change may have led to.
    """
    inputs = StageInputs(stage)
    try:
        yield inputs
    except Exception as error:
        changes = inputs.changes()
        if not changes or str(error).startswith(changes[0]):
            raise
        cause = f"{error}\n" if isinstance(error, UserError) else ""
        raise UserError(f"{cause}{changes[0]} while {stage} ran; type `dvc repro` again") from error
    # Of the processes that train together, one on each machine.
    if stage != "train" or os.environ.get("LOCAL_RANK", "0") == "0":
        inputs.check()


def _read_state(path: Path) -> dict[Path, FileState]:
    """Return a file's state by its path; nothing for a folder, a pipe or a socket."""
    if not path.is_file():
        return {}
    stat = path.stat()
    return {path: FileState(stat.st_size, stat.st_mtime_ns, stat.st_ino, md5(path) if stat.st_size <= SMALL else None)}


def _is_same(path: Path, before: FileState | None, now: FileState | None) -> bool:
    """Code is imported once, at the start, so that its content counts; data are read all the time."""
    if path.suffix == ".py" and before is not None and now is not None:
        return before.md5 == now.md5
    return before == now


def _change(before: object, now: object) -> str:
    if before is _ABSENT:
        return f"was added ({now!r})"
    if now is _ABSENT:
        return f"was removed (it was {before!r})"
    return f"changed from {before!r} to {now!r}"


def _file_change(before: FileState | None, now: FileState | None) -> str:
    if before is None:
        return "was added"
    if now is None:
        return "was removed"
    if before.size != now.size:
        return f"changed from {before.size:,} to {now.size:,} bytes"
    return "was written"


def _ignored_names() -> list[str]:
    """Return the patterns of .dvcignore, such as what editors leave in folders: each stands for a name at any depth."""
    path = DVC_FILE.with_name(".dvcignore")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line.strip().rstrip("/") for line in lines if line.strip() and not line.startswith("#")]
