"""What must happen before any command imports more: Ctrl-C, garbage collection, MLflow's telemetry, pydantic's plugins, how threads wait, a look at the code."""

import gc
import os
import signal
import sys
from pathlib import Path
from types import FrameType, TracebackType


def _report_interruption(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, where)
        return
    print("interrupted", file=sys.stderr)


def end_at_once(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's signature
    """End the process while it imports, where nothing is half done.

    An extension in C++ that is being imported makes an ImportError of KeyboardInterrupt, whoever imported it tries another way,
    and a traceback tells of that. `command_line.run` puts Python's own handler back.
    """
    os.write(2, b"interrupted\n")
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


# MLflow reads this as it is imported, and would otherwise report each use to its makers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# To find plugins, pydantic would look through all installed packages, a tenth of the time in which a stage starts.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")
# OpenMP's threads wait for each other by running in circles, 14 ms long by default: where another process has the processor,
# each operation of a small model costs that. libgomp itself takes this number where there are more threads than processors.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# Ctrl-C may come while a command imports torch, which takes seconds.
sys.excepthook = _report_interruption
if sys.argv[:1] == ["-m"]:  # `python -m stages.…` is looking for its module: a command, not a library, is starting
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)
    # Modules are many objects and no garbage: collecting it takes a fifth of the import's time. `command_line.run` enables it.
    gc.disable()
# What is about to be imported: stages/artifacts/stage_inputs.py compares it with what is there later. Path -> size, time and inode.
CODE_AT_START = {
    str(path): (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    for path, stat in ((path, path.stat()) for path in Path(__file__).resolve().parent.rglob("*.py"))
}
