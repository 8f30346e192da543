"""What every command has in common: its arguments, its progress on a terminal, and how it ends."""

import argparse
import contextlib
import errno
import gc
import io
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, TypeVar

import stages
from stages.errors import Stopped, UserError

LOG = logging.getLogger(__name__)

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_OTHER_FIX = "put that right, then type the same again; with --verbose it says where it arose"
_FIXES = {
    errno.ENOSPC: "free some space, for example with `dvc gc --workspace`",
    errno.EDQUOT: "free some space, for example with `dvc gc --workspace`",
    errno.EROFS: "the project must lie where it can be written",
    errno.EACCES: "give yourself the permission",
    errno.EPERM: "give yourself the permission",
    errno.EISDIR: "a file is expected there",
    errno.ENOTDIR: "a folder is expected there",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "its links lead in a circle",
    errno.ENXIO: "a file is expected there",  # and a socket is
    errno.EEXIST: "it is in the way: move it elsewhere",
    errno.EIO: "the disk, or the network that it is on, fails",
    errno.ESTALE: "the disk, or the network that it is on, fails",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENOMEM: "free some memory",
}

# Control characters move the cursor, colour the screen or retitle the window; the others reverse the text's direction.
_TERMINAL_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LONGEST_PATH = 200  # characters of it that a message has
_LONGEST_MESSAGE = 3000
_TERMINAL_SECONDS, _LOG_SECONDS = 0.25, 10.0  # between two looks at the progress

Chunk = TypeVar("Chunk", bound=Sized)
Batch = TypeVar("Batch")


def run_stage(main: Callable[[], None]) -> None:
    """Do as ``run``, but drop output that cannot be written: a closed pipe or a full disk ends no stage."""
    for stream, other in (("stdout", "stderr"), ("stderr", "stdout")):
        setattr(sys, stream, _lossy(getattr(sys, stream), stream, getattr(sys, other)))
    run(main)


def run(main: Callable[[], None]) -> None:
    """Call ``main`` and end the process: a user's mistake is printed as a few lines, without a traceback."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
    _handle_signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of one alphabet gets the others' letters as their codes
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
        LOG.info("done")
    except UserError as error:
        LOG.info("where the error arose", exc_info=True)
        sys.exit(f"error: {visible(_bounded(str(error)))}")
    except Stopped as stopped:
        print(stopped.message + _way_back_from_experiment(), file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("interrupted" + _way_back_from_experiment(), file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe, such as head, has had enough. Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno is None:  # raised by a library's code, not by the system
            raise
        LOG.info("where the error arose", exc_info=True)
        where = f"{str(error.filename)[:_LONGEST_PATH]}: " if error.filename else ""
        sys.exit(f"error: {visible(where)}{error.strerror}; {_FIXES.get(error.errno, _OTHER_FIX)}")


def _handle_signals() -> None:
    """From here on a signal ends the process as an error does, so that what is half done is put away."""
    if signal.getsignal(signal.SIGINT) == stages.end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _stop)


def _bounded(message: str) -> str:
    """Return a message without its middle where that is long: a damaged file may hold a value of any length."""
    half = _LONGEST_MESSAGE // 2
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:half]} [...] {message[-half:]}"


def visible(text: str) -> str:
    """Return a text of a model or of data as a terminal may get it: what would control it as its code, U+001B as backslash u001b."""
    return _TERMINAL_CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _way_back_from_experiment() -> str:
    """Return what to type after `dvc exp run` was stopped in the workspace: it leaves changes staged, and files deleted."""
    if "DVC_EXP_NAME" not in os.environ or Path(os.environ.get("DVC_ROOT", "")).resolve() != Path.cwd():
        return ""  # of another command, or in a copy that DVC deletes
    return (
        "\n`dvc exp run` was stopped: type the same again to go on. For another experiment first type `git reset --quiet && "
        "git checkout HEAD -- dvc.lock metrics`, and look at params.yaml, which has the values of the one that was stopped"
    )


class _LossyFile(io.FileIO):
    """A standard stream that drops what cannot be written, and says so once on the other one."""

    def __init__(self, descriptor: int, name: str, other: TextIO | None) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._label, self._other = {"stdout": "standard output", "stderr": "standard error"}[name], other

    def write(self, data: Any) -> int:
        """Write, and return the number of bytes as if all were written."""
        try:
            written = super().write(data)
        except OSError as error:
            self._report(error)
            written = None
        return memoryview(data).nbytes if written is None else written  # None: a pipe that is full and does not wait

    def _report(self, error: OSError) -> None:
        other, self._other = self._other, None
        if other is not None:
            with contextlib.suppress(OSError):
                print(f"{self._label}: {error.strerror}; going on without it", file=other, flush=True)


def _lossy(stream: TextIO | None, name: str, other: TextIO | None) -> TextIO:
    """Return a stream that writes where ``stream`` does, and never fails."""
    if stream is None:  # closed from the start, as by `>&-`
        return Path(os.devnull).open("w", encoding="utf-8")
    try:
        file = _LossyFile(stream.fileno(), name, other)
    except (OSError, ValueError):  # in memory, as in tests
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(file), stream.encoding, stream.errors, line_buffering=name == "stderr" or stream.isatty()
    )


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's signature
    """End as after an error, so that what is half done is put away."""
    raise Stopped(f"stopped by {signal.Signals(number).name}", 128 + number)


def command_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every command has; ``description`` is the command's module docstring."""
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
        from importlib.metadata import version  # noqa: PLC0415 - takes a while

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
