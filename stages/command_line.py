"""What every command has in common: its arguments, its progress on a terminal, and how it ends."""

import argparse
import errno
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from importlib.metadata import version
from types import FrameType
from typing import Any, TypeVar

from stages.errors import Stopped, UserError

LOG = logging.getLogger(__name__)

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_FIXES = {
    errno.ENOSPC: "free some space, for example with `dvc gc --workspace`",
    errno.EDQUOT: "free some space, for example with `dvc gc --workspace`",
    errno.EROFS: "the project must lie where it can be written",
    errno.EACCES: "give yourself the permission",
    errno.EPERM: "give yourself the permission",
    errno.EISDIR: "a file is expected there",
    errno.ENOTDIR: "a folder is expected there",
}

_TERMINAL_SECONDS, _LOG_SECONDS = 0.25, 10.0  # between two looks at the progress

Chunk = TypeVar("Chunk", bound=Sized)
Batch = TypeVar("Batch")


def run(main: Callable[[], None]) -> None:
    """Call ``main`` and end the process: a mistake of the user's is told in a few lines, without a traceback."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
    signal.signal(signal.SIGTERM, _stop)
    try:
        main()
        sys.stdout.flush()
        LOG.info("done")
    except UserError as error:
        LOG.info("where the error arose", exc_info=True)
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        print(stopped.message, file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe, such as head, has had enough. Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in _FIXES:
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror}; {_FIXES[error.errno]}")


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's signature
    """End as after an error, so that what is half done is put away."""
    raise Stopped(f"stopped by {signal.Signals(number).name}", 128 + number)


def command_parser(description: str | None) -> argparse.ArgumentParser:
    """Give a parser with the options that every command has; ``description`` is the command's module docstring."""
    spec = sys.modules["__main__"].__spec__
    parser = argparse.ArgumentParser(
        prog=f"python -m {spec.name}" if spec else None,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument("-q", "--quiet", action="store_true", help="print nothing but results and errors")
    wanted.add_argument(
        "-v", "--verbose", action=_Verbose, nargs=0, help="log what is done when, with files, devices and tracebacks"
    )
    return parser


class _Verbose(argparse.Action):
    """Lets all loggers speak, those of libraries as well; those that ours silence see that ours speak."""

    def __call__(self, *_: Any) -> None:
        logging.basicConfig(level=logging.INFO, format="%(relativeCreated)6.0f ms  %(name)s: %(message)s")
        LOG.info("Python %s", sys.version)
        LOG.info(", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "dvc", "mlflow")))


def with_progress(chunks: Iterable[Chunk], name: str, *, quiet: bool) -> Iterator[Chunk]:
    """Pass chunks of rows on, and show on a terminal how many rows have gone by."""
    if quiet or not sys.stderr.isatty():
        yield from chunks
        return
    rows = 0
    for chunk in chunks:
        yield chunk
        rows += len(chunk)
        print(f"\r{name}: {rows:,} rows", end="", file=sys.stderr, flush=True)
    print("\r\033[K", end="", file=sys.stderr, flush=True)  # clear the line


def track(batches: Sequence[Batch], *, name: str, quiet: bool) -> Iterator[Batch]:
    """Pass batches on, and show how far they have come and how long the rest takes: in place on a terminal, else in lines."""
    terminal = not quiet and sys.stderr.isatty()
    began = printed_at = time.monotonic()
    if terminal:
        print(f"{name}: 0%", end="", file=sys.stderr, flush=True)
    for done, batch in enumerate(batches, start=1):
        yield batch
        now = time.monotonic()
        if not quiet and now - printed_at > (_TERMINAL_SECONDS if terminal else _LOG_SECONDS):
            printed_at = now
            left = (now - began) / done * (len(batches) - done)
            line = f"{name}: {done / len(batches):.0%}, {left:,.0f} s left"
            print(f"\r\033[K{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)  # clear the line
