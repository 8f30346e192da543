"""Parts of the table on the workers of Dask; what is made of each comes back in the order of the rows."""

import hashlib
import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

import stages
from stages.artifacts.prompts_table import DataParams, find_sources, read_source
from stages.command_line import track
from stages.core.frames import split_codes
from stages.core.split import SPLITS, SplitParams
from stages.errors import UserError
from stages.partitions.engine_params import LOCAL
from stages.partitions.parts import Range, RangeFacts, SourcePart, find_parts, scan_range

LOG = logging.getLogger(__name__)

Result = TypeVar("Result")

_SECONDS = 10  # until a scheduler, and a worker of it, must answer
_PATIENCE = 60  # seconds without a result, after which it is looked whether there are workers
_AHEAD = 3  # parts for each thread that are in work or wait to be taken, so that memory is bounded
_LIBRARIES = ("numpy", "pyarrow", "tokenizers", "tiktoken")  # whose versions can change what is made of rows
_CODE = ("artifacts", "core", "partitions")


class FaultyRowsError(Exception):
    """A part of the table was refused, or there are no rows to train on."""


class WorkerError(UserError):
    """A worker that cannot be used as it is."""


class MadePart(NamedTuple, Generic[Result]):
    """What was made of a part."""

    results: list[Result]
    rows: int
    training_rows: int


def over_partitions(
    make: Any, data: DataParams, split: SplitParams, address: str, *, name: str, quiet: bool
) -> Iterator[Any]:
    """Do as ``over_rows`` in parts.

    Raises:
        FaultyRowsError: the one-machine reader must say what is wrong with the table.
        UserError: Dask cannot be used.
    """
    sources = [replace(source, path=source.path.absolute()) for source in find_sources(data, split)]
    rows, training_rows = Counter[Path](), 0
    with _open_client(address) as client, _errors_explained(address):
        parts = list(find_parts(sources, data.delimiter, partial(_scan, client)))
        threads = sum(client.nthreads().values())
        # A task, not an argument of all tasks, so that each worker unpacks it once; Dask does it again where a worker is lost.
        shared = client.submit(_itself, make)
        tasks = ((shared, part, part.source.path.stat().st_size, data, surroundings()) for part in parts)
        made = _in_order(client, tasks, _AHEAD * threads)
        label = f"{name}, {len(parts):,} parts on {len(client.nthreads())} Dask workers"
        for part in track(parts, name=label, quiet=quiet):
            of_part = next(made)
            rows[part.source.path] += of_part.rows
            training_rows += of_part.training_rows
            yield from of_part.results
    if training_rows == 0 or not all(rows[source.path] for source in sources):
        raise FaultyRowsError


def _in_order(client: Any, tasks: Iterable[tuple[Any, ...]], ahead: int) -> Iterator[MadePart[Any]]:
    waiting: deque[Any] = deque()
    for task in tasks:
        waiting.append(client.submit(make_part, *task, pure=False))
        if len(waiting) == ahead:
            yield _result(client, waiting.popleft())
    while waiting:
        yield _result(client, waiting.popleft())


def _result(client: Any, future: Any) -> MadePart[Any]:
    """Wait for a result as long as there are workers."""
    while True:
        try:
            made: MadePart[Any] = future.result(timeout=_PATIENCE)
        except TimeoutError:
            if not client.nthreads():
                raise WorkerError("all workers are gone; start some, and type the same again") from None
        else:
            return made


def _itself(make: Any) -> Any:
    return make


def _scan(client: Any, ranges: list[Range]) -> list[RangeFacts]:
    found: list[RangeFacts] = client.gather(client.map(scan_range, *zip(*ranges, strict=True), pure=False))
    return found


def make_part(make: Any, part: SourcePart, size: int, data: DataParams, expected: dict[str, str]) -> MadePart[Any]:
    """Read a part of the table, on a worker, and return what is made of it.

    Raises:
        WorkerError: the worker does not see the file, or has other code or libraries.
        UserError: the part is at fault.
    """
    differing = [
        f"{name} {found}, not {expected[name]}" for name, found in surroundings().items() if found != expected[name]
    ]
    if differing:
        raise WorkerError(f"a worker has {'; '.join(differing)}; start it anew from this project, with its packages")
    path = part.source.path
    if not path.is_file() or path.stat().st_size != size:
        raise WorkerError(
            f"a worker does not see {path} as it is here; all must see the project's folder under one path"
        )
    frames = _Counted(read_source(part.source, data, part.part))
    return MadePart(list(make(iter(frames))), frames.rows, frames.training_rows)


class _Counted:
    """Passes frames on, and counts their rows."""

    def __init__(self, frames: Iterator[pa.Table]) -> None:
        self._frames = frames
        self.rows = self.training_rows = 0

    def __iter__(self) -> Iterator[pa.Table]:
        for frame in self._frames:
            self.rows += len(frame)
            self.training_rows += int(np.count_nonzero(split_codes(frame) == SPLITS.index("train")))
            yield frame


@lru_cache(maxsize=1)
def surroundings() -> dict[str, str]:
    """Return what must be the same in all processes for the same result: versions, and the code, as it was imported."""
    digest = hashlib.sha256()
    folder = Path(stages.__file__).parent
    for path in sorted(file for room in _CODE for file in (folder / room).rglob("*.py")):
        stat = path.stat()
        unchanged = stages.CODE_AT_START.get(str(path.resolve())) == (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        digest.update(f"{path.relative_to(folder).as_posix()} {unchanged} ".encode() + path.read_bytes())
    libraries = {name: version(name) for name in _LIBRARIES}
    return {"Python": python_version(), **libraries, "this project's code": digest.hexdigest()[:8]}


@contextmanager
def _open_client(address: str) -> Iterator[Any]:
    """Yield a client of a scheduler, of this machine's own one where the address is ``LOCAL``."""
    try:
        from distributed import Client, LocalCluster  # noqa: PLC0415 - optional, and takes a second
    except ModuleNotFoundError:
        raise UserError(
            "params.yaml: runtime.dask: Dask is not installed; type: pip install 'distributed>=2026.8'"
        ) from None
    if not LOG.isEnabledFor(logging.INFO):
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong comes as an error
    if address == LOCAL:
        with (
            LocalCluster(
                host="127.0.0.1", threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = Client(address, timeout=_SECONDS)
    except (OSError, ValueError) as error:
        raise UserError(
            f"params.yaml: runtime.dask: no Dask scheduler answers at {address} ({error}); start one there, or set null"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_SECONDS)
        except TimeoutError:
            raise UserError(
                f"params.yaml: runtime.dask: the scheduler at {address} has no workers; start some, in this project's folder: "
                f"PYTHONPATH=. dask worker {address}"
            ) from None
        yield client


@contextmanager
def _errors_explained(address: str) -> Iterator[None]:
    """Name in one line what went wrong on Dask."""
    from distributed import KilledWorker  # noqa: PLC0415
    from distributed.comm.core import CommClosedError  # noqa: PLC0415

    where = f"params.yaml: runtime.dask ({address})"
    try:
        yield
    except WorkerError as error:
        raise UserError(f"{where}: {error}") from None
    except UserError as error:
        raise FaultyRowsError from error
    except KilledWorker as error:
        raise UserError(
            f"{where}: workers ended again and again on one part ({error}); give them more memory"
        ) from None
    except (CancelledError, CommClosedError):
        raise UserError(f"{where}: the scheduler is gone; start it anew and type the same again") from None
    except ImportError as error:
        raise UserError(
            f"{where}: a worker or the scheduler cannot import the project ({error}); start both in its folder, with PYTHONPATH=."
        ) from None
