"""Metrics on their way to the tracking server: no step waits for it, and what it does not take is kept on disk.

An outbox is a folder of the main workspace, locked as long as its process lives and deleted when all is sent and the run has
ended. One that is found unlocked belongs to a process that was killed, or whose server was away. It is there before its run
is, so that no run is without one. Sending is given as a function: this module knows no MLflow.
"""

import json
import os
import re
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import pydantic
from filelock import FileLock, Timeout

from stages.artifacts.atomic import atomic_file, sync_folder
from stages.artifacts.regular_file import check_file
from stages.errors import UserError
from stages.tracking.workspace import project_root

FOLDER = Path(".runs/unsent")
DAMAGED = Path(".runs/damaged")
BATCH = 1000  # points in one request, the most that MLflow takes
GATHER_SECONDS = 2.0
RETRY_SECONDS = 10.0
REQUEST_SECONDS = 60.0  # how long the end of a training waits for a request under way

_STATE = "outbox.json"
_POINTS = "points.jsonl"
_SENDING = "sending.jsonl"  # while points are added to the other file
_INT64 = 2**63
_NAME = re.compile(r"\w+(/\w+)*")  # of a curve; a store would refuse all points that are sent with one of another name
_LONGEST_NAME = 250

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Point(NamedTuple):
    """One point of a curve."""

    name: str
    value: float
    milliseconds: int
    """Since 1970."""
    step: int


Send = Callable[[Sequence[Point]], None]


class DatasetDescription(pydantic.BaseModel):
    """The dataset of a training, as MLflow wants it."""

    name: str
    digest: str
    source_type: str
    source: str
    profile: str


class RunDescription(pydantic.BaseModel):
    """What a run is made with, so that a store that has lost it gets it again."""

    name: str
    tags: Mapping[str, str]
    parameters: Mapping[str, str] = {}
    dataset: DatasetDescription | None = None


class _State(pydantic.BaseModel):
    """What an outbox is of, as its file holds it."""

    store: str
    """The id of the store that it is meant for."""
    experiment_id: str
    description: RunDescription
    run_id: Annotated[str, pydantic.Field(pattern=r"^\w{1,64}$")] | None = None
    end: tuple[Status, Annotated[int, pydantic.Field(ge=0, lt=_INT64)]] | None = None
    """How the run ended, and when, in milliseconds since 1970."""


class Outbox:
    """What one run has yet to send. Its files are read back with care: a power cut may have torn them."""

    def __init__(self, lock: FileLock, state: _State) -> None:
        self._lock = lock
        self._state = state
        self._folder = Path(lock.lock_file).parent
        self._points = self._folder / _POINTS
        self._sending = self._folder / _SENDING
        self._files = self._folder / "files"
        self._adding = threading.Lock()
        self._in_memory: list[Point] = []  # what a full disk did not take
        self._write_again_at = 0.0
        self._not_copied: list[Path] = []

    @classmethod
    def open(cls, store: str, experiment_id: str, description: RunDescription) -> Self:
        """Begin an outbox.

        Args:
            store: the id of the store that it is meant for, without a secret.
            experiment_id: the experiment of its run.
            description: what the run is made with.

        Raises:
            OSError: it cannot be written.
        """
        folder = project_root() / FOLDER / uuid.uuid4().hex
        state = _State(store=store, experiment_id=experiment_id, description=description)
        outbox = cls(FileLock(folder / "lock", thread_local=False), state)
        outbox._create()
        return outbox

    @classmethod
    def left_behind(cls) -> Iterator[Self]:
        """Take the outboxes whose process is gone, one after another; one that is not closed stays taken."""
        for state in sorted((project_root() / FOLDER).glob(f"*/{_STATE}")):
            outbox = cls._take(state.parent)
            if outbox is not None:
                yield outbox

    @classmethod
    def of_run(cls, run_id: str) -> Self | None:
        """Take the outbox that an earlier process of this run left behind; None where there is none."""
        for outbox in cls.left_behind():
            if outbox.run_id == run_id:
                return outbox
            outbox.close()
        return None

    @classmethod
    def _take(cls, folder: Path) -> Self | None:
        """Lock an outbox; None where its process lives. A damaged one is moved away, so that it is in nobody's way."""
        lock = FileLock(folder / "lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
            if not (folder / _STATE).exists():  # another process was faster
                lock.release()
                return None
            names = (_STATE, _POINTS, _SENDING)
            damaged = next((folder / name for name in names if _is_no_file(folder / name)), folder / _STATE)
            check_file(damaged, "delete it")  # a pipe would be waited for
            return cls(lock, _State.model_validate_json((folder / _STATE).read_bytes()))
        except Timeout:
            return None
        except (pydantic.ValidationError, UserError):
            cls._set_aside(folder, damaged.name)
            lock.release()
        except OSError as error:
            if folder.exists():
                print(f"{folder}/: left as it is: {error.strerror}", file=sys.stderr)
        return None

    @classmethod
    def _set_aside(cls, folder: Path, damaged: str) -> None:
        """Move a damaged outbox away, and say so; where that fails, too."""
        places = project_root() / DAMAGED
        place = places / folder.name
        try:
            places.mkdir(exist_ok=True)
            if place.exists():  # as where a person put it back
                place = places / uuid.uuid4().hex
            folder.rename(place)
        except OSError as error:
            print(f"{folder}/: damaged, and cannot be moved to {places}/: {error.strerror}; delete it", file=sys.stderr)
            return
        message = (
            f"{place}/: moved there, as its {damaged} is damaged: what it holds was not sent to MLflow; "
            "delete it when you have looked at it"
        )
        print(message, file=sys.stderr)

    @property
    def id(self) -> str:
        """Return a name that no other outbox has."""
        return self._folder.name

    @property
    def folder(self) -> Path:
        """Return where it is."""
        return self._folder

    @property
    def store(self) -> str:
        """Return the id of the store that it is meant for."""
        return self._state.store

    @property
    def experiment_id(self) -> str:
        """Return the experiment of its run."""
        return self._state.experiment_id

    @property
    def description(self) -> RunDescription:
        """Return what the run is made with."""
        return self._state.description

    @property
    def run_id(self) -> str | None:
        """Return the run that it is of; None where the process was killed before it could say so."""
        return self._state.run_id

    def belongs_to(self, run_id: str, store: str, experiment_id: str) -> None:
        """Name the run that it is of, and where that is.

        Raises:
            OSError: it cannot be written.
        """
        changes = {"run_id": run_id, "store": store, "experiment_id": experiment_id}
        self._state = self._state.model_copy(update=changes)
        self._save()

    def forget_end(self) -> None:
        """Take the run as running again.

        Raises:
            OSError: it cannot be written.
        """
        self._state = self._state.model_copy(update={"end": None})
        self._save()

    def touch(self) -> None:
        """Show that the run's process lives."""
        with self._adding:
            self._create()
        os.utime(self._folder / _STATE)

    def keep(self, points: Sequence[Point]) -> None:
        """Add points, to be sent another time; a kill in the next moment loses none.

        Raises:
            OSError: the disk does not take them; they wait in memory.
        """
        with self._adding:
            self._in_memory += points
            if time.monotonic() < self._write_again_at:
                return
            try:
                self._write("".join(json.dumps(point) + "\n" for point in self._in_memory).encode())
            except OSError:
                self._write_again_at = time.monotonic() + RETRY_SECONDS
                raise
            self._in_memory.clear()

    @property
    def in_memory(self) -> int:
        """Return how many points the disk did not take."""
        return len(self._in_memory)

    def keep_file(self, path: Path) -> None:
        """Add a copy of a file, to be sent another time; where the disk has no room, the file itself is sent."""
        copy = self._files / path
        try:
            with self._adding:
                self._create()
            copy.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(copy) as file, path.open("rb") as original:
                shutil.copyfileobj(original, file)
        except OSError:
            self._not_copied.append(path)

    def keep_end(self, status: Status) -> None:
        """Add how the run ended, and when; a full disk is no reason to fail."""
        self._state = self._state.model_copy(update={"end": (status, int(1000 * time.time()))})
        with suppress(OSError), self._adding:
            self._create()
            self._save()

    def send_points(self, send: Send) -> int:
        """Send the points that were kept until now, forget them, and return how many these were."""
        sent = self._send_file(send)
        with self._adding:
            waiting, self._in_memory = self._in_memory, []
        try:
            for first in range(0, len(waiting), BATCH):
                send(waiting[first : first + BATCH])
        except BaseException:
            with self._adding:
                self._in_memory = waiting + self._in_memory
            raise
        return sent + len(waiting)

    def send_all_points(self, send: Send) -> int:
        """Send until nothing is left, and return how many points these were."""
        return sum(iter(lambda: self.send_points(send), 0))

    def files(self) -> Iterator[tuple[Path, Path]]:
        """Yield each file that was kept, and the path that it had."""
        for path in sorted(self._files.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield path, path.relative_to(self._files)
        yield from ((path, path) for path in self._not_copied)

    def end(self) -> tuple[Status, int]:
        """Return how the run ended and when, in milliseconds since 1970: killed, where it could not say so."""
        return self._state.end or ("KILLED", int(1000 * (self._folder / _STATE).stat().st_mtime))

    def sync(self) -> None:
        """Wait until the disk has the points, so that a power cut does not lose them."""
        for path in (self._points, self._sending):
            with suppress(FileNotFoundError), path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(self._folder)

    def close(self) -> None:
        """Leave what it holds to the next process."""
        with suppress(OSError):
            self.sync()
        self._lock.release(force=True)

    def remove(self) -> None:
        """Delete it: all is sent."""
        (self._folder / _STATE).unlink(missing_ok=True)  # first: without it no other process takes what is left
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.release(force=True)

    def _create(self) -> None:
        """Make the folder, at first and where a person deletes it during a training."""
        if (self._folder / _STATE).exists():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        sync_folder(self._folder.parent)
        self._lock.release(force=True)  # that of the folder that was deleted
        self._lock.acquire()
        self._save()  # last: without it no other process takes the folder

    def _save(self) -> None:
        with atomic_file(self._folder / _STATE) as file:
            file.write(self._state.model_dump_json().encode())

    def _write(self, lines: bytes) -> None:
        """Append lines, or none of them."""
        self._create()
        with self._points.open("ab", buffering=0) as file:
            whole = file.seek(0, os.SEEK_END)
            try:
                if file.write(lines) < len(lines):  # the disk is full; the next write says so
                    file.write(lines)
            except OSError:
                with suppress(OSError):
                    file.truncate(whole)
                raise

    def _send_file(self, send: Send) -> int:
        with self._adding:
            # A process that was killed, or a server that failed, may have left some that it was sending.
            if self._points.exists() and not self._sending.exists():
                self._points.rename(self._sending)
        if not self._sending.exists():
            return 0
        sent = 0
        with self._sending.open(encoding="utf-8", errors="replace") as file:
            points = _parse(file)
            while batch := [point for _, point in zip(range(BATCH), points, strict=False)]:
                send(batch)
                sent += len(batch)
        self._sending.unlink()
        return sent


class Sender:
    """Keeps points in the outbox, so that a kill loses none, and sends them from a thread of its own, many at a time."""

    def __init__(self, outbox: Outbox, send: Send) -> None:
        self._outbox = outbox
        self._send = send
        self._ended = threading.Event()
        self._failed_at = -RETRY_SECONDS
        self._reported = False
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def put(self, points: Sequence[Point]) -> None:
        """Take points; waits for no server, and wakes no thread. A full disk is reported once, and stops no training."""
        try:
            self._outbox.keep(points)
        except OSError as error:
            if not self._reported:
                message = f"{self._outbox.folder}/: {error.strerror}: points wait in memory until MLflow takes them"
                print(message, file=sys.stderr)
            self._reported = True

    def close(self) -> None:
        """Send no more; what is left stays in the outbox.

        Raises:
            TimeoutError: the server does not end its answer.
        """
        self._ended.set()
        self._thread.join(REQUEST_SECONDS)
        if self._thread.is_alive():
            raise TimeoutError(f"no answer within {REQUEST_SECONDS:.0f} seconds")

    def _run(self) -> None:
        """Send what has gathered in some seconds: a request takes the processor as long as hundreds of points in it."""
        while not self._ended.wait(GATHER_SECONDS):
            try:
                self._outbox.touch()
                if self._failed_at + RETRY_SECONDS <= time.monotonic():
                    self._outbox.send_points(self._send)
            except Exception:  # noqa: BLE001 - whatever keeps it from sending, training goes on
                self._failed_at = time.monotonic()
            if self._failed_at + RETRY_SECONDS > time.monotonic():
                with suppress(OSError):
                    self._outbox.sync()


def _is_no_file(path: Path) -> bool:
    """Return whether something else than a file has the name, a link to nothing among them."""
    return os.path.lexists(path) and not path.is_file()


def _parse(lines: Iterator[str]) -> Iterator[Point]:
    """Yield the points that are whole; a process that was killed, or a power cut, may have torn a line."""
    for line in lines:
        with suppress(ValueError, TypeError, OverflowError, RecursionError):
            point = Point(*json.loads(line))
            if _is_point(point):
                yield point._replace(value=float(point.value))


def _is_point(point: Point) -> bool:
    name, value, *whole = point
    numbers: Sequence[Any] = (value, *whole)
    return (
        isinstance(name, str)
        and len(name) <= _LONGEST_NAME
        and _NAME.fullmatch(name) is not None
        and all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
        and all(isinstance(number, int) and -_INT64 <= number < _INT64 for number in whole)
    )
