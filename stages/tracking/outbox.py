"""Metrics on their way to the tracking server: no step waits for it, and what it does not take is kept on disk.

An outbox is a folder of the main workspace, locked as long as its process lives and deleted when all is sent and the run has
ended. One that is found unlocked belongs to a process that was killed, or whose server was away. It is there before its run
is, so that no run is without one. Sending is given as a function: this module knows no MLflow.
"""

import json
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from filelock import FileLock, Timeout

from stages.artifacts.atomic import atomic_file
from stages.tracking.workspace import project_root

FOLDER = Path(".runs/unsent")
BATCH = 1000  # points in one request, the most that MLflow takes
GATHER_SECONDS = 2.0
RETRY_SECONDS = 10.0


class Point(NamedTuple):
    """One point of a curve."""

    name: str
    value: float
    milliseconds: int
    """Since 1970."""
    step: int


Send = Callable[[Sequence[Point]], None]


class Outbox:
    """What one run has yet to send."""

    def __init__(self, lock: FileLock, store: str) -> None:
        self._lock = lock  # held
        self._store = store
        self._run_id: str | None = None
        self._folder = Path(lock.lock_file).parent
        self._run = self._folder / "run"
        self._points = self._folder / "points.jsonl"
        self._set_aside = self._folder / "set_aside.jsonl"  # to be sent, while points are added to the other file
        self._adding = threading.Lock()
        self._end = self._folder / "end.json"
        self._files = self._folder / "files"

    @classmethod
    def open(cls, store: str) -> Self:
        """Begin an outbox; ``store`` tells which server or file it belongs to, and holds no secret."""
        folder = project_root() / FOLDER / uuid.uuid4().hex
        outbox = cls(FileLock(folder / "lock", thread_local=False), store)
        outbox._create()
        return outbox

    @classmethod
    def left_behind(cls, store: str) -> Iterator[Self]:
        """Take the outboxes whose process is gone, one after another."""
        for place in sorted((project_root() / FOLDER).glob("*/store")):
            lock = FileLock(place.with_name("lock"))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            with lock:
                if place.exists() and place.read_text(encoding="utf-8") == store:
                    yield cls(lock, store)

    @property
    def id(self) -> str:
        """Return a name that no other outbox has."""
        return self._folder.name

    @property
    def run_id(self) -> str | None:
        """Return the run that it is of; None where the process was killed before it could say so."""
        return self._run.read_text(encoding="utf-8") if self._run.exists() else None

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self._run_id = run_id
        with atomic_file(self._run) as file:
            file.write(run_id.encode())

    @property
    def folder(self) -> Path:
        """Return where it lies."""
        return self._folder

    def touch(self) -> None:
        """Show that the run's process lives."""
        self._create()
        os.utime(self._folder)

    def keep(self, points: Sequence[Point]) -> None:
        """Add points, to be sent another time."""
        lines = "".join(json.dumps(point) + "\n" for point in points)
        self._create()
        with self._adding, self._points.open("a", encoding="utf-8") as file:
            file.write(lines)

    def keep_file(self, path: Path) -> None:
        """Add a copy of a file, to be sent another time."""
        self._create()
        copy = self._files / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)

    def keep_end(self, status: str) -> None:
        """Add how the run ended, and when."""
        self._create()
        self._end.write_text(json.dumps([status, _now()]), encoding="utf-8")

    def send_points(self, send: Send) -> int:
        """Send the points that were kept until now, forget them, and return how many these were."""
        with self._adding:
            # A process that was killed, or a server that failed, may have left some that were set aside before.
            if self._points.exists() and not self._set_aside.exists():
                self._points.rename(self._set_aside)
        if not self._set_aside.exists():
            return 0
        sent = 0
        with self._set_aside.open(encoding="utf-8") as file:
            while batch := list(_parse(line for _, line in zip(range(BATCH), file, strict=False))):
                send(batch)
                sent += len(batch)
        self._set_aside.unlink()
        return sent

    def send_all_points(self, send: Send) -> int:
        """Send until nothing is left, and return how many points these were."""
        return sum(iter(lambda: self.send_points(send), 0))

    def files(self) -> Iterator[tuple[Path, Path]]:
        """Give each file that was kept, and the path that it had."""
        for path in sorted(self._files.rglob("*")):
            if path.is_file():
                yield path, path.relative_to(self._files)

    def end(self) -> tuple[str, int]:
        """Return how the run ended and when, in milliseconds since 1970: killed, where it could not say so."""
        if not self._end.exists():
            return "KILLED", int(1000 * self._folder.stat().st_mtime)
        status, milliseconds = json.loads(self._end.read_text(encoding="utf-8"))
        return status, milliseconds

    def close(self) -> None:
        """Leave what it holds to the next process."""
        self._lock.release()

    def remove(self) -> None:
        """Delete it: all is sent."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.release()

    def _create(self) -> None:
        """Make the folder where it is not there: at first, and where a person deletes it under a training."""
        store = self._folder / "store"
        with self._adding:
            if store.exists():
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.release()  # that of the folder that was deleted
            self._lock.acquire()
            if self._run_id is not None:
                self._run.write_text(self._run_id, encoding="utf-8")
            store.write_text(self._store, encoding="utf-8")  # last: without it no other process takes the folder


class Sender:
    """Keeps points in the outbox, so that a kill loses none, and sends them from a thread of its own, many at a time."""

    def __init__(self, outbox: Outbox, send: Send) -> None:
        self._outbox = outbox
        self._send = send
        self._ended = threading.Event()
        self._failed_at = -RETRY_SECONDS
        self._told = False
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def put(self, points: Sequence[Point]) -> None:
        """Take points; waits for no server, and wakes no thread. A full disk costs them, not the training."""
        try:
            self._outbox.keep(points)
        except OSError as error:
            if not self._told:
                print(f"{self._outbox.folder}/: {error.strerror}: MLflow's curves will lack points", file=sys.stderr)
            self._told = True

    def close(self) -> None:
        """Send no more; what is left stays in the outbox."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        """Send what has gathered in some seconds: a request takes the processor as long as hundreds of points in it."""
        while not self._ended.wait(GATHER_SECONDS):
            try:
                self._outbox.touch()
                if self._failed_at + RETRY_SECONDS <= time.monotonic():
                    self._outbox.send_points(self._send)
            except Exception:  # noqa: BLE001 - whatever keeps it from sending, training goes on
                self._failed_at = time.monotonic()


def _parse(lines: Iterator[str]) -> Iterator[Point]:
    for line in lines:
        try:
            yield Point(*json.loads(line))
        except (ValueError, TypeError):
            continue  # the last line of a process that was killed


def _now() -> int:
    return int(time.time() * 1000)
